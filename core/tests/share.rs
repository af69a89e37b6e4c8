//! Rates that instances count together, under faults drawn from a seed: asks and answers are lost
//! or late, instances are cut off, leaders change, and what comes to whom changes all the time.

use std::time::Duration;

use hawser_core::rate::Rate;
use hawser_core::share::{Ask, Book, Holder, LEASE, Lease, UNSETTLED, WHOLE_PPM, fair_ppm};

const RATE: u32 = 1_000;
const BURST: u32 = 200;
const STEP: Duration = Duration::from_millis(10);
const EVERY: Duration = Duration::from_secs(1);
const CALL: Duration = Duration::from_secs(2);

/// Draws that a seed repeats. Source: SplitMix64, Steele and others, 2014.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}

struct Instance {
    holder: Holder,
    lease: Option<(Lease, Duration)>,
    rate: Option<Rate>,
    kept: u64,
    asked: u64,
    since: Duration,
    next: Duration,
    call: Option<Call>,
    per_second: u64,
    is_cut: bool,
    fell: Duration,
    passed: u64,
}

/// A question under way.
struct Call {
    sent: Duration,
    /// When it comes to the leader, and when its answer comes back; none where it is lost.
    there: Option<Duration>,
    back: Option<Duration>,
    ask: Ask,
    answer: Option<Option<Lease>>,
}

impl Instance {
    fn new(n: usize) -> Self {
        Self {
            holder: Holder {
                node: format!("n{n}").parse().expect("a name"),
                instance: "db".parse().expect("an id"),
            },
            lease: None,
            rate: None,
            kept: 0,
            asked: 0,
            since: Duration::ZERO,
            next: Duration::ZERO,
            call: None,
            per_second: 0,
            is_cut: false,
            fell: Duration::ZERO,
            passed: 0,
        }
    }

    fn share(&self, all: usize) -> u32 {
        self.lease.map_or(fair_ppm(all), |(lease, _)| lease.share_ppm)
    }

    /// Ends the lease, and takes the rate that its share is now; whether the lease ended.
    fn turn(&mut self, all: usize, now: Duration) -> bool {
        let falls = self.lease.is_some_and(|(_, until)| until <= now);
        if falls {
            self.lease = None;
            self.fell = now;
        }
        let rate = whole().share(self.share(all));
        if rate != self.rate {
            let now = nanos(now);
            self.kept = match (rate, self.rate) {
                (Some(new), Some(_)) => new.instead_of(self.rate, self.kept, now),
                _ => self.kept,
            };
            self.rate = rate;
        }
        falls
    }

    fn request(&mut self, now: Duration) {
        self.asked += 1;
        if let Some(Ok(kept)) = self.rate.map(|rate| rate.take(self.kept, nanos(now))) {
            self.kept = kept;
            self.passed += 1;
        }
    }

    fn ask(&mut self, draws: &mut Draws, lossy: bool, now: Duration) {
        let millis = u64::try_from((now - self.since).as_millis()).expect("short").max(1);
        let demand_ppm = self.asked * 1_000 * u64::from(WHOLE_PPM) / millis / u64::from(RATE);
        let ask = Ask { caller: None, demand_ppm, holds: self.lease.map(|(lease, _)| lease) };
        (self.asked, self.since, self.next) = (0, now, now + EVERY);
        let mut late = |after: Duration| {
            let is_lost = lossy && draws.below(4) == 0;
            let millis = draws.below(if lossy { 1_200 } else { 20 });
            (!is_lost).then(|| after + Duration::from_millis(millis))
        };
        let there = late(now).filter(|_| !self.is_cut);
        let back = there.and_then(&mut late);
        self.call = Some(Call { sent: now, there, back, ask, answer: None });
    }
}

fn whole() -> Rate {
    Rate::new(RATE, BURST).expect("above zero")
}

fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).expect("short")
}

struct Run {
    passed: u64,
    falls: u64,
    came: u64,
}

/// Runs `count` instances for `span` from the time at which a leader has led for long.
fn run(draws: &mut Draws, count: usize, span: Duration, lossy: bool) -> Run {
    let mut instances: Vec<_> = (0..count).map(Instance::new).collect();
    let known: Vec<_> = instances.iter().map(|instance| instance.holder.clone()).collect();
    let service = "db".parse().expect("a name");
    let mut leads = Some(Book::new(1, Duration::ZERO));
    let (mut elects, mut now, mut falls, mut came) = (Duration::MAX, Duration::ZERO, 0, 0);
    for (n, instance) in instances.iter_mut().enumerate() {
        instance.per_second = if n == 0 { 5_000 } else { 40 };
        instance.next = Duration::from_millis(draws.below(1_000));
    }
    while now < span {
        if lossy && leads.is_some() && draws.below(3_000) == 0 {
            leads = None;
            elects = now + Duration::from_millis(draws.below(12_000));
        }
        if elects <= now {
            leads = Some(Book::new(nanos(now), now));
            elects = Duration::MAX;
        }
        for instance in &mut instances {
            falls += u64::from(instance.turn(count, now));
            if lossy && draws.below(500) == 0 {
                instance.per_second = [0, 10, 300, 2_000, 20_000][draws.below(5) as usize];
            }
            if lossy && draws.below(3_000) == 0 {
                instance.is_cut = !instance.is_cut;
            }
            let steps = nanos(now) / nanos(STEP);
            let comes = |step: u64| instance.per_second * step / 100;
            for _ in comes(steps)..comes(steps + 1) {
                instance.request(now);
                came += 1;
            }
            if instance.call.is_none() && instance.next <= now {
                instance.ask(draws, lossy, now);
            }
            let Some(call) = &mut instance.call else { continue };
            if call.there.is_some_and(|there| there <= now) {
                call.there = None;
                let asks = std::slice::from_ref(&call.ask);
                let holder = &instance.holder;
                call.answer =
                    leads.as_mut().map(|book| book.lease(&service, holder, &known, asks, now)[0]);
            }
            if call.back.is_some_and(|back| back <= now) {
                if let Some(Some(lease)) = call.answer {
                    instance.lease = Some((lease, call.sent + LEASE));
                }
                instance.call = None;
            } else if call.sent + CALL <= now {
                instance.call = None;
            }
            falls += u64::from(instance.turn(count, now));
        }
        let shares: u64 = instances.iter().map(|it| u64::from(it.share(count))).sum();
        let fallen =
            instances.iter().filter(|it| it.lease.is_none() && now < it.fell + UNSETTLED).count();
        let most = u64::from(WHOLE_PPM) + fallen as u64 * u64::from(fair_ppm(count));
        assert!(shares <= most, "{now:?}: shares of {shares} in force, {fallen} fell lately");
        now += STEP;
    }
    Run { passed: instances.iter().map(|it| it.passed).sum(), falls, came }
}

#[test]
fn all_together_stay_within_the_bound_whatever_is_lost_or_late() {
    for seed in 0..30 {
        let mut draws = Draws(seed);
        let count = 1 + draws.below(8) as usize;
        let span = Duration::from_secs(120);
        let run = run(&mut draws, count, span, true);
        let (rate, burst, count) = (u64::from(RATE), u64::from(BURST), count as u64);
        let each = (rate * UNSETTLED.as_secs() + burst).div_ceil(count);
        let most = rate * span.as_secs() + burst + count + (run.falls + count) * each;
        assert!(run.passed <= most, "seed {seed}: {} of {most} passed", run.passed);
    }
}

#[test]
fn without_faults_all_of_the_rate_is_used_where_it_is_needed() {
    let mut draws = Draws(7);
    let span = Duration::from_secs(60);
    let Run { passed, falls, came } = run(&mut draws, 4, span, false);
    assert_eq!(falls, 0);
    assert!(came > 300_000, "{came} came");
    // At first each has its fair share, and the three that need little use 120 of 1,000.
    let rate = u64::from(RATE);
    assert!(passed >= rate * 45, "{passed} passed");
    assert!(passed <= rate * span.as_secs() + u64::from(BURST) + 4, "{passed} passed");
}
