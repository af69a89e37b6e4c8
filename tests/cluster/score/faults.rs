//! F32: one of three instances fails in each of six ways, and no request that may be repeated fails.

use std::time::Duration;

use serde_json::json;

use super::app::{App, Mood};
use super::load::{Answer, quantile};
use super::scene::Scene;
use super::{judge, sized, tell};
use crate::harness::eventually;

/// How an instance fails.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Its agent is killed.
    Killed,
    /// Its agent is stopped: connections stay, and nobody answers.
    Stopped,
    /// Its application says nothing, and connections to it get no answer.
    Blackholed,
    /// Its application answers 500.
    Errs,
    /// Its application answers after ten seconds.
    Slow,
    /// Its application closes the connection on each request.
    Resets,
}

/// What one fault did.
struct Outcome {
    requests: usize,
    failed: Vec<String>,
    /// Of those sent 3 s after the fault or later, how many had to wait for the instance, such as
    /// those that try whether it is back; and how many there were.
    late: [usize; 2],
    /// Before the fault, and from 5 s after it.
    p99: [Duration; 2],
}

#[test]
fn instance_faults_cost_no_request() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let apps = runtime.block_on(async {
        vec![App::start("a").await, App::start("b").await, App::start("c").await]
    });
    let mut scene = Scene::new(runtime, apps, &json!({}));
    let (mut requests, mut failed, mut is_left_alone, mut is_well) = (0, 0, true, true);
    for kind in
        [Kind::Errs, Kind::Resets, Kind::Slow, Kind::Blackholed, Kind::Stopped, Kind::Killed]
    {
        let one = befall(&mut scene, kind);
        let ([before, after], [waited, late]) = (one.p99, one.late);
        tell(format_args!(
            "  {kind:?}: {} requests, {} failed; {waited} of {late} waited from 3 s on; p99 \
             {before:.1?} before, {after:.1?} from 5 s on {}",
            one.requests,
            one.failed.len(),
            one.failed.first().map_or("", String::as_str),
        ));
        (requests, failed) = (requests + one.requests, failed + one.failed.len());
        is_left_alone &= waited * 100 <= late;
        // Below that the difference is the machine's.
        is_well &= after <= (before * 2).max(Duration::from_millis(50));
    }
    judge(
        "instancedeath",
        &format!("{failed} of {requests} failed"),
        &[("no request fails", failed == 0)],
        &[
            ("1 % at most wait for it after 3 s", is_left_alone),
            ("p99 is what it was, or twice that, after 5 s", is_well),
        ],
    );
}

/// Lets one of the instances fail under load, and mends it.
fn befall(scene: &mut Scene, kind: Kind) -> Outcome {
    let (before, after) = sized((5, 15), (1, 3));
    let load = scene.load("/", sized(1_000, 60));
    let until = |span: Duration| {
        eventually("the load to flow", || (load.elapsed() >= span).then_some(()));
    };
    let used = scene.apps[0].seen();
    until(Duration::from_secs(before));
    eventually("the instance to be used", || (scene.apps[0].seen() >= used + USED).then_some(()));
    let broken = load.elapsed();
    match kind {
        Kind::Killed => scene.agents[0].kill(),
        Kind::Stopped => scene.agents[0].signal("-STOP"),
        Kind::Blackholed => scene.apps[0].turn(Mood::Silent),
        Kind::Errs => scene.apps[0].turn(Mood::Errs),
        Kind::Slow => scene.apps[0].turn(Mood::Slow),
        Kind::Resets => scene.apps[0].turn(Mood::Resets),
    }
    until(broken + Duration::from_secs(after));
    let answers = load.finish(&scene.runtime);
    match kind {
        Kind::Killed => scene.agents[0].restart(),
        Kind::Stopped => scene.agents[0].signal("-CONT"),
        _ => scene.apps[0].turn(Mood::Well),
    }
    scene.await_all();
    let late = || answers.iter().filter(|answer| answer.at >= broken + EJECTED);
    let waited = |answer: &&Answer| answer.took >= WAITED;
    let settled = broken + Duration::from_secs(5);
    let failed = answers.iter().filter(|answer| !answer.is_good());
    Outcome {
        requests: answers.len(),
        failed: failed
            .map(|it| format!("at {:?}: {:?} {}", it.at.saturating_sub(broken), it.status, it.said))
            .collect(),
        late: [late().filter(waited).count(), late().count()],
        p99: [
            quantile(answers.iter().filter(|answer| answer.at < broken), 990),
            quantile(answers.iter().filter(|answer| answer.at >= settled), 990),
        ],
    }
}

/// So many requests reach the instance before it fails: the fault of one that is not used shows
/// nothing.
const USED: u64 = 5;
/// From then on, an instance that fails is left alone.
const EJECTED: Duration = Duration::from_secs(3);
/// Who waited for an instance that fails waited at least this long.
const WAITED: Duration = Duration::from_secs(1);
