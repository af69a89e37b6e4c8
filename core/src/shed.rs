//! Shedding: how much an application may have to do at once, by how long it takes to answer.

use std::time::Duration;

use crate::edge::Sketch;

/// How many requests may wait for an application at once.
///
/// The sign of overload is that even the quickest answers take long: a standing queue delays all
/// alike, while an application that has slow things to do still does the quick ones quickly. So
/// those of the answers that came soonest are compared, window by window, with what they were at
/// their best lately. While they take more than twice that and 10 ms, the limit shrinks in
/// proportion, at most to a half at once, from the third such window in a row on; while they do not, and the limit is needed, it grows by
/// its square root. At the limit the queue is then about as long as what is being worked at, and the
/// work never runs out. It does not shrink below what was proven lately: as many as waited beside a
/// request that was answered quickly are no overload, whatever else they wait for.
///
/// What was best lately must not be forgotten in a long overload, or the limit would drift upwards:
/// now and then one window runs with half the limit, and measures it anew.
#[derive(Clone, Debug)]
pub struct Gate {
    limit: f64,
    seen: Sketch,
    count: u32,
    /// Most that waited at once in this window.
    peak: u32,
    window_ends: Duration,
    /// The last ones, the current one first.
    eras: [Era; ERAS],
    era_ends: Duration,
    /// How many windows in a row needed the limit.
    needed: u32,
    /// How many windows in a row were too slow.
    slow: u32,
}

/// What was learned in one while.
#[derive(Clone, Copy, Debug, Default)]
struct Era {
    /// The soonest answers, in the window where they were soonest.
    best: Option<Duration>,
    /// Most that waited beside one that was answered quickly.
    proven: u32,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            limit: LIMIT_START,
            seen: Sketch::default(),
            count: 0,
            peak: 0,
            window_ends: Duration::ZERO,
            eras: [Era::default(); ERAS],
            era_ends: Duration::ZERO,
            needed: 0,
            slow: 0,
        }
    }
}

impl Gate {
    /// Whether one more may wait beside `waiting` others.
    pub fn admits(&mut self, waiting: u32) -> bool {
        self.peak = self.peak.max(waiting.saturating_add(1));
        waiting < self.limit()
    }

    /// How many may wait at once now.
    pub fn limit(&self) -> u32 {
        let is_measuring = self.needed >= MEASURE_EVERY;
        let limit = if is_measuring { self.limit / 2.0 } else { self.limit };
        limit.max(LIMIT_MIN) as u32
    }

    /// Takes in that an answer began after `latency`, to a request that was let in beside `beside`
    /// others.
    pub fn answered(&mut self, latency: Duration, beside: u32, now: Duration) {
        self.seen.record(latency);
        self.count += 1;
        if self.most().is_some_and(|most| latency <= most) {
            self.eras[0].proven = self.eras[0].proven.max(beside);
        }
        if now >= self.window_ends && self.count >= ANSWERS_MIN {
            self.close(now);
        }
    }

    /// Takes in that nobody waited any longer after `latency`. What failed at once says nothing
    /// about how long answers take.
    pub fn given_up(&mut self, latency: Duration, beside: u32, now: Duration) {
        if self.most().is_some_and(|most| latency > most) {
            self.answered(latency, beside, now);
        }
    }

    /// How long the soonest answers may take; none before any were seen.
    fn most(&self) -> Option<Duration> {
        let best = self.eras.iter().filter_map(|era| era.best).min()?;
        Some(best * TOLERANCE + SLACK)
    }

    fn close(&mut self, now: Duration) {
        let Some(soonest) = self.seen.quantile(SOONEST_PERMILLE) else { return };
        if now >= self.era_ends {
            self.eras.rotate_right(1);
            self.eras[0] = Era::default();
            self.era_ends = now.saturating_add(ERA);
        }
        let era = &mut self.eras[0];
        era.best = Some(era.best.map_or(soonest, |best| best.min(soonest)));
        let most = self.most().unwrap_or(soonest);
        let is_needed = f64::from(self.peak) >= f64::from(self.limit()) / 2.0;
        self.slow = if soonest > most { self.slow + 1 } else { 0 };
        if self.slow >= SLOW_WINDOWS {
            let ratio = (most.as_secs_f64() / soonest.as_secs_f64()).max(0.5);
            let proven = self.eras.iter().map(|era| era.proven).max().unwrap_or_default();
            // Where fewer waited than may, those were too many already.
            let less = self.limit.min(f64::from(self.peak)) * ratio;
            self.limit = self.limit.min(less.max(f64::from(proven)).max(LIMIT_MIN));
        } else if is_needed && self.slow == 0 {
            self.limit = (self.limit + self.limit.sqrt()).min(LIMIT_MAX);
        }
        self.needed = match self.needed {
            MEASURE_EVERY.. => 0,
            needed if is_needed => needed + 1,
            _ => 0,
        };
        (self.seen, self.count, self.peak) = (Sketch::default(), 0, 0);
        self.window_ends = now.saturating_add(WINDOW);
    }
}

/// Whether `path` is asked by those who watch over an application: what is shed must not be what
/// says that it lives. `more` are prefixes that an operator names.
pub fn is_vital(path: &str, more: &[String]) -> bool {
    VITAL.contains(&path)
        || path.starts_with("/grpc.health.v1.Health/")
        || more.iter().any(|prefix| path.starts_with(prefix.as_str()))
}

/// What the field asks for its health by.
const VITAL: [&str; 10] = [
    "/health",
    "/healthz",
    "/health/live",
    "/health/ready",
    "/livez",
    "/readyz",
    "/ready",
    "/-/healthy",
    "/-/ready",
    "/actuator/health",
];
const LIMIT_START: f64 = 256.0;
/// An application that takes one at a time is still kept busy over the way there and back.
const LIMIT_MIN: f64 = 8.0;
const LIMIT_MAX: f64 = 16_384.0;
const TOLERANCE: u32 = 2;
const SLACK: Duration = Duration::from_millis(10);
const SOONEST_PERMILLE: u16 = 50;
/// A window without a quick answer may be chance.
const SLOW_WINDOWS: u32 = 3;
const WINDOW: Duration = Duration::from_millis(250);
const ANSWERS_MIN: u32 = 16;
const ERA: Duration = Duration::from_secs(8);
const ERAS: usize = 8;
const MEASURE_EVERY: u32 = 32;

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    /// An application with so many workers, and a queue before them that nobody bounds.
    struct Simulated {
        /// When each worker is free, in microseconds.
        free: BinaryHeap<Reverse<u64>>,
        /// When each answer begins, when it was asked for, and beside how many others.
        due: BinaryHeap<Reverse<(u64, u64, u32)>>,
    }

    struct Ran {
        /// Answers within the deadline, a second.
        good: f64,
        shed: u32,
        asked: u32,
        slowest: Duration,
    }

    /// Runs `secs` seconds of `per_second` requests, each taking what `work` says in microseconds.
    fn run(
        gate: &mut Gate,
        workers: usize,
        per_second: u64,
        secs: u64,
        mut work: impl FnMut(u64) -> u64,
    ) -> Ran {
        let mut app =
            Simulated { free: (0..workers).map(|_| Reverse(0)).collect(), due: BinaryHeap::new() };
        let mut ran = Ran { good: 0.0, shed: 0, asked: 0, slowest: Duration::ZERO };
        let (mut good, settled) = (0_u32, secs * 1_000_000 / 4);
        for n in 0..secs * per_second {
            let now = n * 1_000_000 / per_second;
            while let Some(Reverse((done, asked, beside))) = app.due.peek().copied()
                && done <= now
            {
                app.due.pop();
                let latency = Duration::from_micros(done - asked);
                gate.answered(latency, beside, Duration::from_micros(done));
                if done > settled {
                    good += u32::from(latency <= Duration::from_secs(1));
                    ran.slowest = ran.slowest.max(latency);
                }
            }
            ran.asked += 1;
            let beside = app.due.len() as u32;
            if !gate.admits(beside) {
                ran.shed += 1;
                continue;
            }
            let Some(Reverse(free)) = app.free.pop() else { continue };
            let done = free.max(now) + work(n);
            app.free.push(Reverse(done));
            app.due.push(Reverse((done, now, beside)));
        }
        ran.good = f64::from(good) / (secs as f64 * 0.75);
        ran
    }

    /// Something between 0.5 and 1.5 times the mean.
    fn spread(mean: u64) -> impl FnMut(u64) -> u64 {
        move |n| mean / 2 + n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % mean
    }

    #[test]
    fn three_times_the_load_leaves_most_of_the_goodput() {
        // workers, mean work in microseconds
        for (workers, work) in [(8, 20_000), (1, 5_000), (64, 100_000), (16, 2_000)] {
            let capacity = workers as u64 * 1_000_000 / work;
            let peak = run(&mut Gate::default(), workers, capacity * 9 / 10, 40, spread(work));
            let mut gate = Gate::default();
            let over = run(&mut gate, workers, capacity * 3, 40, spread(work));
            let case = format!("{workers} workers, {work} us: {} of {}", over.good, peak.good);
            assert!(over.good >= 0.8 * peak.good, "{case}");
            assert!(over.slowest <= Duration::from_millis(500), "{case}: {:?}", over.slowest);
        }
    }

    #[test]
    fn a_long_overload_does_not_move_the_limit() {
        let mut gate = Gate::default();
        let first = run(&mut gate, 8, 1_200, 30, spread(20_000));
        let limit = gate.limit();
        let late = run(&mut gate, 8, 1_200, 600, spread(20_000));
        assert!(gate.limit() <= limit * 2, "{limit} became {}", gate.limit());
        assert!(late.good >= 0.9 * first.good, "{} became {}", first.good, late.good);
        assert!(late.slowest <= Duration::from_millis(300), "{:?}", late.slowest);
    }

    #[test]
    fn what_is_no_overload_sheds_nothing() {
        let drawn = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        // One in ten by chance: some windows have none.
        let mut long_polls = |n: u64| if drawn(n) % 10 == 0 { 2_000 } else { 2_000_000 };
        let mut growing = |n: u64| 5_000 + n / 4;
        type Case<'a> = (&'a str, usize, u64, &'a mut dyn FnMut(u64) -> u64);
        let cases: [Case<'_>; 4] = [
            ("a quiet application", 100, 200, &mut spread(20_000)),
            ("one that is well used", 100, 4_000, &mut spread(20_000)),
            ("long polls beside quick answers", 1_000, 100, &mut long_polls),
            ("one that slowly gets slower, below its limit", 500, 500, &mut growing),
        ];
        for (why, workers, per_second, work) in cases {
            let ran = run(&mut Gate::default(), workers, per_second, 60, work);
            assert_eq!(ran.shed, 0, "{why}: of {}", ran.asked);
        }
    }

    #[test]
    fn the_limit_comes_back_when_the_load_is_gone() {
        let mut gate = Gate::default();
        run(&mut gate, 4, 2_400, 20, spread(10_000));
        let after = run(&mut gate, 4, 300, 20, spread(10_000));
        assert!(after.shed * 100 <= after.asked * 5, "{} of {}", after.shed, after.asked);
    }

    #[test]
    fn questions_after_health_are_vital() {
        let more = ["/internal/".to_owned()];
        for (path, expected) in [
            ("/healthz", true),
            ("/grpc.health.v1.Health/Check", true),
            ("/internal/alive", true),
            ("/healthz/../orders", false),
            ("/orders", false),
        ] {
            assert_eq!(is_vital(path, &more), expected, "{path}");
        }
    }
}
