//! Health as values: a check's status, thresholds and TTL, and what they add up to.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::UnixTime;

/// What a check found. The order is from best to worst.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The instance serves.
    Passing,
    /// The instance serves with trouble; it keeps its traffic.
    Warning,
    /// The instance must not be sent traffic.
    Critical,
}

impl Status {
    /// Consul's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// The worst of several; passing when there is none.
    pub fn worst(all: impl IntoIterator<Item = Self>) -> Self {
        all.into_iter().max().unwrap_or(Self::Passing)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no status.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no status: use passing, warning or critical")]
pub struct UnknownStatus(String);

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        match text {
            "passing" => Ok(Self::Passing),
            "warning" => Ok(Self::Warning),
            "critical" => Ok(Self::Critical),
            other => Err(UnknownStatus(other.to_owned())),
        }
    }
}

/// How many results in a row move a check from one status to another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thresholds {
    /// Successes in a row before a failing check passes again.
    pub success_before_passing: NonZeroU16,
    /// Failures in a row before a passing check warns.
    pub failures_before_warning: NonZeroU16,
    /// Failures in a row before a check turns critical.
    pub failures_before_critical: NonZeroU16,
}

impl Default for Thresholds {
    fn default() -> Self {
        let one = NonZeroU16::MIN;
        Self {
            success_before_passing: one,
            failures_before_warning: one,
            failures_before_critical: one,
        }
    }
}

/// A check's reported status, moved by results and held still by its thresholds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gauge {
    thresholds: Thresholds,
    reported: Status,
    successes: u16,
    failures: u16,
}

impl Gauge {
    /// A gauge that reports `initial` until results move it.
    pub const fn new(thresholds: Thresholds, initial: Status) -> Self {
        Self { thresholds, reported: initial, successes: 0, failures: 0 }
    }

    /// What the check is reported as.
    pub const fn reported(&self) -> Status {
        self.reported
    }

    /// Takes one result and answers what is reported from now on.
    ///
    /// A warning result counts as a success: the instance answered.
    pub fn observe(&mut self, result: Status) -> Status {
        if result == Status::Critical {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.thresholds.failures_before_critical.get() {
                self.reported = Status::Critical;
            } else if self.failures >= self.thresholds.failures_before_warning.get()
                && self.reported == Status::Passing
            {
                self.reported = Status::Warning;
            }
        } else {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            if self.successes >= self.thresholds.success_before_passing.get() {
                self.reported = result;
            }
        }
        self.reported
    }
}

/// A check that turns critical when nobody reports for a while.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ttl {
    /// How long one report holds.
    pub lifetime: Duration,
    /// When the last report came.
    pub reported_at: UnixTime,
}

impl Ttl {
    /// When the report lapses.
    pub fn lapses_at(&self) -> UnixTime {
        self.reported_at.plus(self.lifetime)
    }

    /// Whether the report has lapsed by `now`.
    pub fn has_lapsed(&self, now: UnixTime) -> bool {
        now >= self.lapses_at()
    }
}

/// The id of the node-level check that says whether the host's agent is alive.
pub const NODE_LIVENESS_CHECK: &str = "serfHealth";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_status_wins() {
        use Status::{Critical, Passing, Warning};
        assert_eq!(Status::worst([]), Passing);
        assert_eq!(Status::worst([Passing, Warning]), Warning);
        assert_eq!(Status::worst([Critical, Passing, Warning]), Critical);
    }

    #[test]
    fn thresholds_hold_a_status_still() {
        use Status::{Critical, Passing, Warning};
        let count = |n| NonZeroU16::new(n).expect("not zero");
        let thresholds = Thresholds {
            success_before_passing: count(2),
            failures_before_warning: count(2),
            failures_before_critical: count(3),
        };
        let mut gauge = Gauge::new(thresholds, Passing);
        let steps = [
            // result, reported, why
            (Critical, Passing, "one failure is not yet two"),
            (Passing, Passing, "a success clears the failures"),
            (Critical, Passing, "one again"),
            (Critical, Warning, "two warn"),
            (Critical, Critical, "three are critical"),
            (Passing, Critical, "one success is not yet two"),
            (Critical, Critical, "and a failure clears it"),
            (Passing, Critical, "one"),
            (Passing, Passing, "two successes pass"),
        ];
        for (result, reported, why) in steps {
            assert_eq!(gauge.observe(result), reported, "{why}");
        }
    }

    #[test]
    fn a_ttl_lapses_at_its_end_and_not_before() {
        let ttl =
            Ttl { lifetime: Duration::from_millis(100), reported_at: UnixTime::from_millis(1_000) };
        assert!(!ttl.has_lapsed(UnixTime::from_millis(1_099)));
        assert!(ttl.has_lapsed(UnixTime::from_millis(1_100)));
    }
}
