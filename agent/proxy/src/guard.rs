//! The guard of one instance: how many requests it takes, at what rate, under what load.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_core::entry::{
    ANY_CALLER, GlobalRateLimits, InboundLimits, RateLimits, RequestBodies, Shedding,
};
use hawser_core::name::ServiceName;
use hawser_core::policy::Policies;
use hawser_core::rate::Rate;
use hawser_core::reason::Reason;
use hawser_core::shed::{self, Gate};

use crate::clock::Monotonic;
use crate::global::{Global, Tap};
use crate::usage::{Count, Held};

/// What all workers count for one instance.
pub(crate) struct Intake {
    pub(crate) clock: Monotonic,
    requests: Count,
    rates: Mutex<Option<Arc<Rates>>>,
    global: Mutex<Option<Arc<Global>>>,
}

impl Default for Intake {
    fn default() -> Self {
        Self {
            clock: Monotonic::start(),
            requests: Count::default(),
            rates: Mutex::default(),
            global: Mutex::default(),
        }
    }
}

impl Intake {
    /// The rates that `limits` ask for, with what was counted already where they are the same.
    fn rates(&self, limits: &RateLimits) -> Arc<Rates> {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        match &*rates {
            Some(known) if known.limits == *limits => known.clone(),
            _ => rates.insert(Arc::new(Rates::new(limits))).clone(),
        }
    }

    /// The same for the rates of all instances together; none where there are none.
    fn share(&self, limits: Option<&GlobalRateLimits>) -> Option<Arc<Global>> {
        let mut global = self.global.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = global.as_ref().map(|known| &known.limits) == limits;
        if !is_same {
            *global = limits.map(|limits| Arc::new(Global::new(limits)));
        }
        global.clone()
    }

    /// This instance's part of the rates of all together; none where there are none.
    pub(crate) fn global(&self) -> Option<Arc<Global>> {
        self.global.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A rate, and when its bucket is full again.
struct Bucket {
    rate: Rate,
    kept: AtomicU64,
}

impl Bucket {
    fn new(per_second: u32, burst: u32) -> Option<Self> {
        Some(Self { rate: Rate::new(per_second, burst)?, kept: AtomicU64::new(0) })
    }

    fn take(&self, now: u64) -> Result<(), Duration> {
        let mut kept = self.kept.load(Ordering::Relaxed);
        loop {
            let next = self.rate.take(kept, now)?;
            let order = Ordering::Relaxed;
            match self.kept.compare_exchange_weak(kept, next, order, order) {
                Ok(_) => return Ok(()),
                Err(other) => kept = other,
            }
        }
    }
}

struct Rates {
    limits: RateLimits,
    whole: Option<Bucket>,
    routes: Vec<Bucket>,
    callers: Mutex<BTreeMap<ServiceName, Arc<Bucket>>>,
}

impl Rates {
    fn new(limits: &RateLimits) -> Self {
        let instance = limits.instance_level.clone().unwrap_or_default();
        let route = |route: &hawser_core::entry::RouteRateLimit| {
            Bucket::new(route.requests_per_second, route.requests_max_burst)
        };
        Self {
            limits: limits.clone(),
            whole: Bucket::new(instance.requests_per_second, instance.requests_max_burst),
            routes: instance.routes.iter().filter_map(route).collect(),
            callers: Mutex::default(),
        }
    }

    /// The bucket that counts requests to `path`.
    fn of_path(&self, path: &str) -> Option<&Bucket> {
        let routes = self.limits.instance_level.iter().flat_map(|instance| &instance.routes);
        let is_match = |route: &hawser_core::entry::RouteRateLimit| {
            path == route.path_exact
                || (!route.path_prefix.is_empty() && path.starts_with(&route.path_prefix))
        };
        let found = routes.zip(&self.routes).find(|(route, _)| is_match(route));
        found.map(|(_, bucket)| bucket).or(self.whole.as_ref())
    }

    /// The bucket of `caller`; none where nobody limits it.
    fn of_caller(&self, caller: &ServiceName) -> Option<Arc<Bucket>> {
        let row = |name: &str| self.limits.callers.iter().find(|row| row.name == name);
        let row = row(caller.as_str()).or_else(|| row(ANY_CALLER))?;
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if !callers.contains_key(caller) && callers.len() >= CALLERS_MAX {
            // Those who are too many share what one of them has.
            return callers.values().next_back().cloned();
        }
        let bucket = Bucket::new(row.requests_per_second, row.requests_max_burst)?;
        Some(callers.entry(caller.clone()).or_insert_with(|| Arc::new(bucket)).clone())
    }
}

/// The guard of one instance in one worker.
pub(crate) struct Guard {
    intake: Arc<Intake>,
    rates: Option<Arc<Rates>>,
    /// The buckets of callers that this worker has met.
    callers: RefCell<BTreeMap<ServiceName, Option<Arc<Bucket>>>>,
    global: Option<Arc<Global>>,
    /// The same for what all instances count together.
    taps: RefCell<BTreeMap<ServiceName, Option<Arc<Tap>>>>,
    limits: InboundLimits,
    /// What is taken of the body of one request.
    pub(crate) bodies: RequestBodies,
    load: Rc<RefCell<Load>>,
    clock: Monotonic,
}

/// What waits for the application, in one worker.
#[derive(Default)]
pub(crate) struct Load {
    gate: Gate,
    waiting: u32,
}

/// Why a request is not taken, and when to come again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) after: Duration,
}

impl Guard {
    /// The guard that `policies` ask for; `load` goes on from the one before.
    pub(crate) fn new(
        policies: &Policies,
        intake: Arc<Intake>,
        load: Rc<RefCell<Load>>,
        clock: Monotonic,
    ) -> Self {
        let rates = policies.rates.as_ref().map(|limits| intake.rates(limits));
        let global = intake.share(policies.global_rates.as_ref());
        let limits = policies.inbound.clone().unwrap_or_default();
        let bodies = policies.request_bodies.unwrap_or_default();
        let (callers, taps) = (RefCell::default(), RefCell::default());
        Self { rates, limits, bodies, intake, callers, global, taps, load, clock }
    }

    /// Notes how many instances of the service there are.
    pub(crate) fn among(&self, instances: impl FnOnce() -> usize) {
        if let Some(global) = &self.global {
            global.among(instances());
        }
    }

    /// Takes a request, or says why not. `now` is the worker's.
    pub(crate) fn admit(
        &self,
        path: &str,
        caller: &ServiceName,
        now: Duration,
    ) -> Result<Admitted, Refused> {
        if let Some(rates) = &self.rates {
            self.check_rates(rates, path, caller)?;
        }
        if let Some(global) = &self.global {
            self.check_global(global, caller)?;
        }
        let busy = |reason| Refused { reason, after: BUSY_AFTER };
        let most = self.limits.max_concurrent_requests;
        let held = self.intake.requests.take((most > 0).then_some(most));
        let held = held.ok_or_else(|| busy(Reason::ConcurrencyLimit))?;
        if self.limits.shedding == Shedding::Off {
            return Ok(Admitted { held, waiting: None });
        }
        let mut counted = self.load.borrow_mut();
        let waiting = counted.waiting;
        if !counted.gate.admits(waiting) && !shed::is_vital(path, &self.limits.never_shed) {
            return Err(busy(Reason::LoadShed));
        }
        counted.waiting += 1;
        drop(counted);
        let (load, clock) = (self.load.clone(), self.clock);
        let waiting = Waiting { load, clock, since: now, beside: waiting, is_answered: false };
        Ok(Admitted { held, waiting: Some(waiting) })
    }

    fn check_global(&self, global: &Global, caller: &ServiceName) -> Result<(), Refused> {
        let now = self.intake.clock.now_ns();
        let refused = |(reason, after)| Refused { reason, after };
        if global.limits.callers.is_empty() {
            return global.take(None, now).map_err(refused);
        }
        let mut taps = self.taps.borrow_mut();
        if !taps.contains_key(caller) && taps.len() >= CALLERS_MAX {
            taps.clear();
        }
        let tap = taps.entry(caller.clone()).or_insert_with(|| global.of_caller(caller));
        global.take(tap.as_deref(), now).map_err(refused)
    }

    fn check_rates(&self, rates: &Rates, path: &str, caller: &ServiceName) -> Result<(), Refused> {
        let now = self.intake.clock.now_ns();
        let refused = |reason| move |after| Refused { reason, after };
        if !rates.limits.callers.is_empty() {
            let mut callers = self.callers.borrow_mut();
            if !callers.contains_key(caller) && callers.len() >= CALLERS_MAX {
                callers.clear();
            }
            let bucket = callers.entry(caller.clone()).or_insert_with(|| rates.of_caller(caller));
            if let Some(bucket) = bucket {
                bucket.take(now).map_err(refused(Reason::CallerRateLimited))?;
            }
        }
        match rates.of_path(path) {
            Some(bucket) => bucket.take(now).map_err(refused(Reason::RateLimited)),
            None => Ok(()),
        }
    }
}

/// A request that was taken.
pub(crate) struct Admitted {
    held: Held,
    waiting: Option<Waiting>,
}

impl Admitted {
    /// The application began to answer; what is left is held until it has ended.
    pub(crate) fn answered(self, now: Duration) -> Held {
        if let Some(waiting) = self.waiting {
            waiting.answered(now);
        }
        self.held
    }
}

/// One that waits for the application.
struct Waiting {
    load: Rc<RefCell<Load>>,
    clock: Monotonic,
    since: Duration,
    /// How many others waited then.
    beside: u32,
    is_answered: bool,
}

impl Waiting {
    fn answered(mut self, now: Duration) {
        self.is_answered = true;
        let latency = now.saturating_sub(self.since);
        self.load.borrow_mut().gate.answered(latency, self.beside, now);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut load = self.load.borrow_mut();
        load.waiting = load.waiting.saturating_sub(1);
        if !self.is_answered {
            let now = self.clock.now();
            load.gate.given_up(now.saturating_sub(self.since), self.beside, now);
        }
    }
}

/// When to come again to an instance that has too much to do.
const BUSY_AFTER: Duration = Duration::from_secs(1);
const CALLERS_MAX: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(json: &str, intake: &Arc<Intake>) -> Guard {
        let policies: Policies = serde_json::from_str(json).expect(json);
        Guard::new(&policies, intake.clone(), Rc::default(), Monotonic::start())
    }

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    #[test]
    fn rates_are_counted_over_workers_by_route_and_by_caller() {
        let intake = Arc::default();
        let json = r#"{"rates":{
            "InstanceLevel":{"RequestsPerSecond":1,"RequestsMaxBurst":4,
                "Routes":[{"PathPrefix":"/slow","RequestsPerSecond":1,"RequestsMaxBurst":2}]},
            "Callers":[{"Name":"greedy","RequestsPerSecond":1,"RequestsMaxBurst":1}]}}"#;
        let workers = [guard(json, &intake), guard(json, &intake)];
        let ask = |n: usize, path: &str, caller: &str| {
            workers[n % 2].admit(path, &name(caller), Duration::ZERO).map(drop)
        };
        let reason = |n, path, caller| ask(n, path, caller).map_err(|refused| refused.reason);
        assert_eq!(reason(0, "/", "greedy"), Ok(()));
        assert_eq!(reason(1, "/", "greedy"), Err(Reason::CallerRateLimited), "the same bucket");
        for n in 0..3 {
            assert_eq!(reason(n, "/", "web"), Ok(()), "{n}");
        }
        assert_eq!(reason(0, "/", "web"), Err(Reason::RateLimited));
        for n in 0..2 {
            assert_eq!(reason(n, "/slow/a", "web"), Ok(()), "a route has a bucket of its own");
        }
        assert_eq!(reason(0, "/slow/a", "web"), Err(Reason::RateLimited));
        let refused = ask(0, "/", "web").expect_err("empty");
        assert!(refused.after > Duration::ZERO && refused.after <= Duration::from_secs(1));
    }

    #[test]
    fn what_is_under_way_is_counted_over_workers_until_it_ends() {
        let intake = Arc::default();
        let json = r#"{"inbound":{"MaxConcurrentRequests":2}}"#;
        let (a, b) = (guard(json, &intake), guard(json, &intake));
        let ask = |guard: &Guard| guard.admit("/", &name("web"), Duration::ZERO);
        let (first, _second) = (ask(&a).ok(), ask(&b).ok());
        let refused = ask(&a).map(drop).expect_err("two are under way");
        assert_eq!(refused.reason, Reason::ConcurrencyLimit);
        let held = first.expect("taken").answered(Duration::ZERO);
        assert!(ask(&a).is_err(), "its answer is still under way");
        drop(held);
        assert!(ask(&b).is_ok());
    }

    #[test]
    fn what_waits_too_long_is_shed_but_never_questions_after_health() {
        let guard = guard(r#"{"inbound":{"Shedding":"adaptive"}}"#, &Arc::default());
        let web = name("web");
        let mut now = Duration::ZERO;
        // Quick at first, then everything takes a second.
        for latency in [5, 1_000].map(Duration::from_millis) {
            for _ in 0..2_000 {
                let Ok(admitted) = guard.admit("/", &web, now) else { continue };
                now += Duration::from_millis(5);
                drop(admitted.answered(now.saturating_sub(Duration::from_millis(5)) + latency));
            }
        }
        let held: Vec<_> = (0..64).filter_map(|_| guard.admit("/", &web, now).ok()).collect();
        assert!(held.len() < 64, "{} wait at once", held.len());
        let refused = guard.admit("/", &web, now).map(drop).expect_err("full");
        assert_eq!(refused.reason, Reason::LoadShed);
        assert!(guard.admit("/healthz", &web, now).is_ok());
        drop(held);
        assert!(guard.admit("/", &web, now).is_ok(), "places come back");
    }

    #[test]
    fn nothing_is_shed_that_nobody_asked_to_shed() {
        let (guard, web) = (guard("{}", &Arc::default()), name("web"));
        let slow = |n| guard.admit("/", &web, Duration::from_secs(n));
        let waiting: Vec<_> = (0..20_000).filter_map(|n| slow(n).ok()).collect();
        assert_eq!(waiting.len(), 20_000);
    }
}
