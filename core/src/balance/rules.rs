//! Rules: what config entries make of balancing, with a value for everything.

use std::time::Duration;

use crate::entry::{HashPolicy, LoadBalancer, PassiveHealthCheck, PolicyName, RING_SIZE_MAX};

/// How instances are chosen, and when they are left alone. [`Rules::default`] is what holds where
/// nobody says anything.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    /// How one is chosen.
    pub policy: Policy,
    /// What of a request is hashed, where the policy hashes.
    pub hash: Vec<HashPolicy>,
    /// How an instance that is new, or back, comes to its full share.
    pub slow_start: SlowStart,
    /// When an instance is ejected.
    pub outlier: Outlier,
}

/// How an instance of a group is chosen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Policy {
    /// Of two drawn by weight, the one with the lower peak-EWMA latency times load.
    #[default]
    PeakEwma,
    /// Of this many drawn by weight, the one with the fewest requests under way.
    LeastRequest(u32),
    /// One after another, by weight.
    RoundRobin,
    /// Any, by weight.
    Random,
    /// The owner of the request's hash.
    Hash(Hashing),
}

/// How a hash leads to an instance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hashing {
    /// The table that it is looked up in.
    pub table: Table,
    /// Most that one instance takes, in percent of the mean load; zero is no bound.
    pub bound_percent: u32,
}

/// The table that a hash is looked up in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Table {
    /// A ring with at least and at most so many places.
    Ring {
        /// At least.
        min: u64,
        /// At most.
        max: u64,
    },
    /// Maglev's table.
    Maglev,
}

/// How an instance that is new, or back, comes to its full share: its weight grows in a straight
/// line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SlowStart {
    /// How long that takes; zero is not at all.
    pub window: Duration,
    /// What it begins with, in percent.
    pub min_percent: u8,
}

impl Default for SlowStart {
    fn default() -> Self {
        Self { window: Duration::from_secs(10), min_percent: 10 }
    }
}

/// When an instance is ejected, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Outlier {
    /// How many requests in a row must come to nothing: no connection, a reset, silence.
    pub failures: u32,
    /// How many answers in a row must be errors of the application.
    pub errors: u32,
    /// How many answers in a row must say that something behind the application failed; none is no
    /// such rule.
    pub gateway_errors: Option<u32>,
    /// Which share of the ejections for errors of the application happens, in percent.
    pub errors_enforced_percent: u32,
    /// How long success rates are counted before instances are compared.
    pub interval: Duration,
    /// How many standard deviations below the mean a success rate ejects, times 1000; none is no
    /// such rule.
    pub success_stdev_permille: Option<u32>,
    /// How long the first ejection lasts; each in a row lasts twice as long.
    pub first: Duration,
    /// How long any lasts at most.
    pub longest: Duration,
    /// Most of a group that is out at once, in percent; at least one may be.
    pub max_percent: u32,
    /// Where fewer than this share of a group is in, in percent, ejections in it do not count.
    pub panic_percent: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            failures: 5,
            errors: 5,
            gateway_errors: None,
            errors_enforced_percent: 100,
            interval: Duration::from_secs(10),
            success_stdev_permille: Some(1_900),
            first: Duration::from_secs(1),
            longest: LONGEST,
            max_percent: 50,
            panic_percent: 0,
        }
    }
}

impl Rules {
    /// Whether by `new` rules the same connection may go to another instance.
    pub fn leads_elsewhere(&self, new: &Self) -> bool {
        self.policy != new.policy || self.hash != new.hash
    }

    /// Compiles what the callee's `service-resolver` and the caller's `service-defaults` say.
    pub fn compile(balancer: Option<&LoadBalancer>, check: Option<&PassiveHealthCheck>) -> Self {
        let outlier = check.map(Outlier::compile).unwrap_or_default();
        let Some(balancer) = balancer else { return Self { outlier, ..Self::default() } };
        let hashing = |table| {
            let bound_percent = balancer.bounded_load_percent.unwrap_or(BOUND_PERCENT);
            Policy::Hash(Hashing { table, bound_percent })
        };
        let policy = match balancer.policy {
            PolicyName::Default => Policy::PeakEwma,
            PolicyName::Random => Policy::Random,
            PolicyName::RoundRobin => Policy::RoundRobin,
            PolicyName::LeastRequest => {
                let choices = balancer.least_request_config.map_or(0, |least| least.choice_count);
                Policy::LeastRequest(choices.max(2))
            }
            PolicyName::RingHash => {
                let ring = balancer.ring_hash_config.unwrap_or_default();
                let or = |given: u64, other| if given == 0 { other } else { given };
                let max = or(ring.maximum_ring_size, RING_SIZE_MAX);
                let min = or(ring.minimum_ring_size, RING_SIZE_MIN).min(max);
                hashing(Table::Ring { min, max })
            }
            PolicyName::Maglev => hashing(Table::Maglev),
        };
        let given = balancer.slow_start.unwrap_or_default();
        let usual = SlowStart::default();
        let min_percent = match given.minimum_percent {
            0 => usual.min_percent,
            percent => percent,
        };
        let slow_start = SlowStart { window: given.window.unwrap_or(usual.window), min_percent };
        Self { policy, hash: balancer.hash_policies.clone(), slow_start, outlier }
    }
}

impl Outlier {
    fn compile(check: &PassiveHealthCheck) -> Self {
        let usual = Self::default();
        let failures = if check.max_failures == 0 { usual.failures } else { check.max_failures };
        let first = check.base_ejection_time.unwrap_or(usual.first);
        let some = |given: Option<u32>, usual| match given {
            None => usual,
            Some(0) => None,
            Some(count) => Some(count),
        };
        Self {
            failures,
            errors: failures,
            gateway_errors: some(check.max_gateway_failures, usual.gateway_errors),
            errors_enforced_percent: check
                .enforcing_consecutive_5xx
                .unwrap_or(usual.errors_enforced_percent),
            interval: check.interval.unwrap_or(usual.interval),
            success_stdev_permille: some(
                check.success_rate_stdev_factor,
                usual.success_stdev_permille,
            ),
            first,
            longest: LONGEST.max(first),
            max_percent: check.max_ejection_percent.unwrap_or(usual.max_percent),
            panic_percent: check.panic_percent.unwrap_or(usual.panic_percent),
        }
    }

    /// How long an instance is out that was out `times` before in a row.
    pub(super) fn span(&self, times: u32) -> Duration {
        self.first.saturating_mul(1 << times.min(16)).min(self.longest)
    }
}

/// Envoy's fewest places on a ring.
const RING_SIZE_MIN: u64 = 1_024;
/// One hot key must not take an instance down.
const BOUND_PERCENT: u32 = 150;
const LONGEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consuls_fields_become_rules() {
        let balancer: LoadBalancer = serde_json::from_str(
            r#"{"Policy":"ring_hash","RingHashConfig":{"MaximumRingSize":512},
                "SlowStart":{"Window":"0s"}}"#,
        )
        .expect("good");
        let check: PassiveHealthCheck = serde_json::from_str(
            r#"{"Interval":"2s","MaxFailures":3,"EnforcingConsecutive5xx":0,
                "MaxEjectionPercent":100,"BaseEjectionTime":"90s"}"#,
        )
        .expect("good");
        let rules = Rules::compile(Some(&balancer), Some(&check));
        let table = Table::Ring { min: 512, max: 512 };
        assert_eq!(rules.policy, Policy::Hash(Hashing { table, bound_percent: 150 }));
        assert_eq!(rules.slow_start, SlowStart { window: Duration::ZERO, min_percent: 10 });
        let outlier = rules.outlier;
        assert_eq!((outlier.failures, outlier.errors), (3, 3));
        assert_eq!((outlier.errors_enforced_percent, outlier.max_percent), (0, 100));
        assert_eq!(outlier.span(9), Duration::from_secs(90), "no longer than the base above 60s");
        assert_eq!(Rules::compile(None, None), Rules::default());
    }
}
