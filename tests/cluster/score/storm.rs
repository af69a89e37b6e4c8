//! F33: every instance fails for a while; retries must not add to the load, and stop with the cause.

use std::time::Duration;

use serde_json::json;

use super::app::{App, Mood};
use super::scene::Scene;
use super::{judge, sized};
use crate::harness::eventually;

#[test]
fn retries_add_a_fifth_at_most_while_all_fail() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let apps = runtime.block_on(async {
        vec![App::start("a").await, App::start("b").await, App::start("c").await]
    });
    let scene = Scene::new(runtime, apps, &json!({}));
    let (before, failing, after) = sized((5, 60, 15), (1, 5, 3));
    let load = scene.load("/", sized(300, 60));
    let pass = |secs: u64| {
        let until = load.elapsed() + Duration::from_secs(secs);
        let mut left = secs;
        // Longer than anything else is waited for.
        while left > 0 {
            left = left.saturating_sub(30);
            let next = until.saturating_sub(Duration::from_secs(left));
            eventually("the load to flow", || (load.elapsed() >= next).then_some(()));
        }
    };
    let seen = || scene.apps.iter().map(App::seen).sum::<u64>();
    pass(before);
    let (offered_before, seen_before, broken) = (load.offered(), seen(), load.elapsed());
    scene.apps.iter().for_each(|app| app.turn(Mood::Unavailable));
    pass(failing);
    scene.apps.iter().for_each(|app| app.turn(Mood::Well));
    let (offered, reached) = (load.offered() - offered_before, seen() - seen_before);
    let healed = load.elapsed();
    pass(after);
    let all_offered = load.offered();
    let answers = load.finish(&scene.runtime);
    let failed = answers.iter().filter(|it| it.at >= broken && it.at < healed && !it.is_good());
    let failed = failed.count();
    let last = answers.iter().rfind(|answer| !answer.is_good());
    let normal = last.map_or(Duration::ZERO, |it| (it.at + it.took).saturating_sub(healed));
    let ratio = reached as f64 / offered as f64;
    // What the budget allows: a fifth of what was offered in its window, or a few each second.
    let floor = 3 * (healed.as_secs() + 2);
    let allowed = offered + (all_offered / 5).max(floor);
    judge(
        "retrystorm",
        &format!(
            "{reached} of {offered} offered reached the instances ({ratio:.2} x), {failed} failed \
             in {:.0?}; normal {normal:.1?} after they healed",
            healed - broken,
        ),
        &[
            ("within the retry budget", reached <= allowed),
            ("clients see that it fails", failed > 0),
        ],
        &[
            ("1.2 x what is offered at most", ratio <= 1.2),
            ("normal within 5 s", normal <= Duration::from_secs(5)),
        ],
    );
}
