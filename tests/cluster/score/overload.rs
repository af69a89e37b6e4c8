//! F34: three times what an instance can do is offered, and it goes on doing what it can.

use std::time::Duration;

use serde_json::json;

use super::app::App;
use super::load::{Answer, Load, quantile};
use super::scene::Scene;
use super::{judge, sized, tell};
use crate::harness::eventually;

#[test]
fn three_times_the_capacity_leaves_most_of_it_useful() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let each = sized(Duration::from_millis(20), Duration::from_millis(100));
    let app = runtime.block_on(App::limited("a", AT_ONCE, each));
    let inbound = json!({ "InboundLimits": { "Shedding": "adaptive" } });
    let scene = Scene::new(runtime, vec![app], &inbound);
    let capacity = (AT_ONCE as f64 / each.as_secs_f64()) as u32;
    let peak = run(&scene, capacity * 9 / 10, sized(10, 2));
    let over = run(&scene, capacity * 3, sized(30, 5));
    let is_up = scene.passing() == 1;
    let ratio = over.goodput / peak.goodput;
    tell(format_args!(
        "  at {} of {capacity} requests/s: goodput {:.0}/s, {} shed",
        capacity * 9 / 10,
        peak.goodput,
        peak.shed,
    ));
    judge(
        "overload",
        &format!(
            "goodput {:.0}/s at three times the capacity, {ratio:.2} of its peak; {} of {} shed, p99 \
             of that {:.1?}; p99 of what was served {:.1?}; {} of {} questions after health failed",
            over.goodput,
            over.shed,
            over.requests,
            over.shed_p99,
            over.served_p99,
            over.vital_failed,
            over.vital,
        ),
        &[
            ("each is served or shed", over.others.is_empty() && peak.others.is_empty()),
            ("questions after health are answered", over.vital_failed == 0 && over.vital > 0),
            ("the instance stays in the catalog", is_up),
        ],
        &[
            ("goodput is 80 % of the peak", ratio >= 0.8),
            ("what is shed is told within 10 ms", over.shed_p99 <= Duration::from_millis(10)),
        ],
    );
}

struct Outcome {
    requests: usize,
    /// Answers of use, a second.
    goodput: f64,
    shed: usize,
    shed_p99: Duration,
    served_p99: Duration,
    vital: usize,
    vital_failed: usize,
    /// The first that were neither served nor shed.
    others: Vec<String>,
}

fn run(scene: &Scene, rate: u32, secs: u64) -> Outcome {
    let span = Duration::from_secs(secs);
    let vital = scene.load("/healthz", 10);
    let load = scene.load("/", rate);
    eventually("the load to flow", || (load.elapsed() >= span).then_some(()));
    let span = load.elapsed();
    let finish = |load: Load| load.finish(&scene.runtime);
    let (answers, vital) = (finish(load), finish(vital));
    let is_shed = |answer: &&Answer| answer.status == Some(503) && answer.said == "load_shed";
    let is_useful = |answer: &&Answer| answer.is_good() && answer.took <= USEFUL;
    let other = answers.iter().filter(|answer| !answer.is_good() && !is_shed(answer));
    Outcome {
        requests: answers.len(),
        goodput: answers.iter().filter(is_useful).count() as f64 / span.as_secs_f64(),
        shed: answers.iter().filter(is_shed).count(),
        shed_p99: quantile(answers.iter().filter(is_shed), 990),
        served_p99: quantile(answers.iter().filter(|answer| answer.is_good()), 990),
        vital: vital.len(),
        vital_failed: vital.iter().filter(|answer| !answer.is_good()).count(),
        others: other.take(5).map(|it| format!("{:?} {}", it.status, it.said)).collect(),
    }
}

const AT_ONCE: usize = 16;
/// An answer is of use to who waits no longer than this.
const USEFUL: Duration = Duration::from_secs(1);
