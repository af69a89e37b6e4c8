//! Rates that all instances of a service count together: this instance's part of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_core::entry::{ANY_CALLER, GlobalRateLimits};
use hawser_core::name::ServiceName;
use hawser_core::rate::Rate;
use hawser_core::reason::Reason;
use hawser_core::share::{self, Ask, LEASE, Lease, WHOLE_PPM, fair_ppm};

/// What one instance counts of the rates that hold for all.
pub(crate) struct Global {
    pub(crate) limits: GlobalRateLimits,
    instances: AtomicU32,
    whole: Option<Arc<Tap>>,
    callers: Mutex<BTreeMap<ServiceName, Arc<Tap>>>,
}

/// One rate, and this instance's part of it.
pub(crate) struct Tap {
    rate: Rate,
    per_second: u32,
    kept: AtomicU64,
    /// Parts of the whole that are leased, and until when: since which the fair share counts.
    leased_ppm: AtomicU32,
    until: AtomicU64,
    /// What came since the last question.
    came: AtomicU64,
    asking: Mutex<Asking>,
}

/// What the next question says.
#[derive(Default)]
struct Asking {
    lease: Option<Lease>,
    since: Duration,
    demand_ppm: u64,
}

impl Tap {
    fn new(per_second: u32, burst: u32) -> Option<Arc<Self>> {
        Some(Arc::new(Self {
            rate: Rate::new(per_second, burst)?,
            per_second,
            kept: AtomicU64::new(0),
            leased_ppm: AtomicU32::new(0),
            until: AtomicU64::new(0),
            came: AtomicU64::new(0),
            asking: Mutex::default(),
        }))
    }

    /// The rate at `now`, where `fair` is the share without a lease; none where it is nothing.
    fn part(&self, fair: u32, now: u64) -> Option<Rate> {
        let is_leased = now < self.until.load(Ordering::Acquire);
        self.rate.share(if is_leased { self.leased_ppm.load(Ordering::Relaxed) } else { fair })
    }

    /// # Errors
    /// How long to wait before the next would pass.
    fn take(&self, fair: u32, now: u64) -> Result<(), Duration> {
        self.came.fetch_add(1, Ordering::Relaxed);
        let rate = self.part(fair, now).ok_or(NOTHING_FOR)?;
        let mut kept = self.kept.load(Ordering::Relaxed);
        loop {
            let (next, order) = (rate.take(kept, now)?, Ordering::Relaxed);
            match self.kept.compare_exchange_weak(kept, next, order, order) {
                Ok(_) => return Ok(()),
                Err(other) => kept = other,
            }
        }
    }

    /// What to ask the servers at `now`; none where nothing came for so long that nothing is held.
    fn ask(&self, caller: Option<&ServiceName>, now: Duration) -> Option<Ask> {
        let came = self.came.swap(0, Ordering::Relaxed);
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let millis = now.saturating_sub(asking.since).as_millis().max(1);
        let whole = millis * u128::from(self.per_second);
        let demand = u128::from(came) * 1_000 * u128::from(WHOLE_PPM) / whole.max(1);
        // What came a moment ago may come again: it is forgotten by and by.
        let before = asking.demand_ppm / 4 * 3;
        asking.demand_ppm = u64::try_from(demand).unwrap_or(u64::MAX).max(before);
        asking.since = now;
        if nanos(now) >= self.until.load(Ordering::Acquire) {
            asking.lease = None;
        }
        let is_idle = came == 0 && asking.demand_ppm < FORGOTTEN_PPM;
        if caller.is_some() && is_idle {
            return None;
        }
        let (caller, demand_ppm) = (caller.cloned(), asking.demand_ppm);
        Some(Ask { caller, demand_ppm, holds: asking.lease })
    }

    /// Takes `lease` in force, which was asked for at `asked`.
    fn lease(&self, lease: Lease, fair: u32, asked: Duration, now: Duration) {
        let (until, now) = (nanos(asked + LEASE), nanos(now));
        let before = self.part(fair, now);
        let Some(after) = self.rate.share(lease.share_ppm) else {
            self.asking.lock().unwrap_or_else(PoisonError::into_inner).lease = Some(lease);
            self.leased_ppm.store(0, Ordering::Relaxed);
            return self.until.store(until, Ordering::Release);
        };
        self.asking.lock().unwrap_or_else(PoisonError::into_inner).lease = Some(lease);
        let order = Ordering::Relaxed;
        let instead = |kept| Some(after.instead_of(before, kept, now));
        let _ = self.kept.fetch_update(order, order, instead);
        self.leased_ppm.store(lease.share_ppm, Ordering::Relaxed);
        self.until.store(until, Ordering::Release);
    }

    fn is_leased(&self, now: Duration) -> bool {
        nanos(now) < self.until.load(Ordering::Acquire)
    }
}

impl Global {
    pub(crate) fn new(limits: &GlobalRateLimits) -> Self {
        Self {
            limits: limits.clone(),
            instances: AtomicU32::new(1),
            whole: Tap::new(limits.requests_per_second, limits.requests_max_burst),
            callers: Mutex::default(),
        }
    }

    /// How many instances there are, this one among them.
    pub(crate) fn among(&self, instances: usize) {
        let instances = u32::try_from(instances.max(1)).unwrap_or(u32::MAX);
        self.instances.store(instances, Ordering::Relaxed);
    }

    fn fair(&self) -> u32 {
        fair_ppm(self.instances.load(Ordering::Relaxed) as usize)
    }

    /// The tap of `caller`; none where nobody limits it.
    pub(crate) fn of_caller(&self, caller: &ServiceName) -> Option<Arc<Tap>> {
        let row = |name: &str| self.limits.callers.iter().find(|row| row.name == name);
        let row = row(caller.as_str()).or_else(|| row(ANY_CALLER))?;
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if !callers.contains_key(caller) && callers.len() >= CALLERS_MAX {
            // Those who are too many share what one of them has.
            return callers.values().next_back().cloned();
        }
        let tap = Tap::new(row.requests_per_second, row.requests_max_burst)?;
        Some(callers.entry(caller.clone()).or_insert(tap).clone())
    }

    /// Counts a request against the rate of its caller, whose tap is `caller`, and that of all.
    ///
    /// # Errors
    /// Which rate it is too much for, and when the next would pass.
    pub(crate) fn take(&self, caller: Option<&Tap>, now: u64) -> Result<(), (Reason, Duration)> {
        let fair = self.fair();
        if let Some(tap) = caller {
            tap.take(fair, now).map_err(|after| (Reason::CallerRateLimited, after))?;
        }
        let whole = self.whole.as_ref().map_or(Ok(()), |tap| tap.take(fair, now));
        whole.map_err(|after| (Reason::GlobalRateLimited, after))
    }

    /// What to ask the servers at `now`.
    pub(crate) fn asks(&self, now: Duration) -> Vec<Ask> {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let taps = callers.iter().map(|(name, tap)| (Some(name), tap));
        let taps = self.whole.iter().map(|tap| (None, tap)).chain(taps);
        taps.filter_map(|(caller, tap)| tap.ask(caller, now)).collect()
    }

    /// Takes what the servers leased to what was asked at `asked`.
    pub(crate) fn lease(
        &self,
        leased: impl Iterator<Item = (Option<ServiceName>, Lease)>,
        asked: Duration,
        now: Duration,
    ) {
        let fair = self.fair();
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        for (caller, lease) in leased {
            let tap = match &caller {
                Some(caller) => callers.get(caller),
                None => self.whole.as_ref(),
            };
            tap.into_iter().for_each(|tap| tap.lease(lease, fair, asked, now));
        }
    }

    /// How many rates it has leases of, and how many it takes its fair share of.
    pub(crate) fn standing(&self, now: Duration) -> (usize, usize) {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        let taps = || self.whole.iter().chain(callers.values());
        let leased = taps().filter(|tap| tap.is_leased(now)).count();
        (leased, taps().count() - leased)
    }
}

fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

/// When to come again where there is no share at all: the next one may be greater.
const NOTHING_FOR: Duration = Duration::from_secs(1);
/// Of a caller, less than this is not asked for.
const FORGOTTEN_PPM: u64 = 100;
const CALLERS_MAX: usize = 1_024;
const _: () = assert!(share::UNSETTLED.as_secs() == 2 * LEASE.as_secs(), "docs/traffic.md says so");

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn global(json: &str) -> Global {
        Global::new(&serde_json::from_str(json).expect(json))
    }

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    /// How many of a thousand at once pass at `now`.
    fn passed(global: &Global, caller: Option<&Tap>, now: u64) -> usize {
        (0..1_000).filter(|_| global.take(caller, now).is_ok()).count()
    }

    #[test]
    fn an_instance_takes_its_fair_share_unless_it_holds_a_lease() {
        let global = global(r#"{"RequestsPerSecond":100,"RequestsMaxBurst":40}"#);
        global.among(4);
        assert_eq!(passed(&global, None, SECOND), 10, "a fourth of the burst");
        let asks = global.asks(Duration::from_secs(1));
        assert_eq!((asks.len(), asks[0].holds), (1, None));
        assert_eq!(asks[0].demand_ppm, 10_000_000, "1,000 in a second, of 100");
        let lease = Lease { id: 7, share_ppm: 500_000 };
        let second = Duration::from_secs(1);
        global.lease([(None, lease)].into_iter(), second, second);
        assert_eq!(global.standing(second), (1, 0));
        assert_eq!(passed(&global, None, SECOND), 0, "a greater share makes no burst");
        assert_eq!(passed(&global, None, 2 * SECOND), 20, "half of the burst, saved since");
        assert_eq!(global.asks(2 * second)[0].holds, Some(lease));
        assert_eq!(passed(&global, None, 3 * SECOND), 20);
        let after = Duration::from_secs(6);
        assert_eq!(global.standing(after), (0, 1), "5 s after it was asked for");
        assert_eq!(passed(&global, None, 60 * SECOND), 10);
        assert_eq!(global.asks(60 * second)[0].holds, None);
    }

    #[test]
    fn each_caller_has_a_rate_of_its_own_that_is_asked_for_while_it_calls() {
        let json = r#"{"Callers":[{"Name":"web","RequestsPerSecond":2},
            {"Name":"*","RequestsPerSecond":1}]}"#;
        let global = global(json);
        let taps = ["web", "cron"].map(|caller| global.of_caller(&name(caller)).expect("limited"));
        assert_eq!(passed(&global, Some(&taps[0]), SECOND), 2);
        assert_eq!(passed(&global, Some(&taps[1]), SECOND), 1);
        let (why, after) = global.take(Some(&taps[1]), SECOND).expect_err("empty");
        assert_eq!(why, Reason::CallerRateLimited);
        assert!(after > Duration::ZERO && after <= Duration::from_secs(1), "{after:?}");
        let asked = |secs: u64| {
            let asks = global.asks(Duration::from_secs(secs));
            asks.into_iter().filter_map(|ask| ask.caller).collect::<Vec<_>>()
        };
        assert_eq!(asked(1), [name("cron"), name("web")]);
        let quiet = (2..200).find(|secs| asked(*secs).is_empty());
        assert!(quiet.is_some(), "whoever calls no more is forgotten");
    }
}
