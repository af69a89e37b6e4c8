//! Edges: who called whom, how often, and how long it took, small enough to send every 10 s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::name::ServiceName;

/// Which edge of the call graph.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EdgeKey {
    /// The caller.
    pub source: ServiceName,
    /// The callee.
    pub destination: ServiceName,
    /// The cluster that the callee answered from; empty for one's own.
    pub cluster: Arc<str>,
    /// A word of the closed set of reasons; `ok` for success.
    pub verdict: Arc<str>,
}

/// What happened on an edge.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Requests, or connections of a TCP service.
    pub count: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Bytes from caller to callee.
    pub bytes_sent: u64,
    /// Bytes from callee to caller.
    pub bytes_received: u64,
    /// How long they took.
    pub latency: Sketch,
}

impl Tally {
    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.errors = self.errors.saturating_add(other.errors);
        self.bytes_sent = self.bytes_sent.saturating_add(other.bytes_sent);
        self.bytes_received = self.bytes_received.saturating_add(other.bytes_received);
        self.latency.merge(&other.latency);
    }
}

/// A histogram of latencies with a relative error of at most 1/16, whatever their range.
///
/// Buckets are log-linear in microseconds: sixteen to each power of two. Sketches of different
/// hosts merge without loss.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sketch {
    counts: BTreeMap<u16, u64>,
}

impl Sketch {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let count = self.counts.entry(bucket(micros)).or_default();
        *count = count.saturating_add(1);
    }

    /// Adds what `other` counted.
    pub fn merge(&mut self, other: &Self) {
        for (bucket, more) in &other.counts {
            let count = self.counts.entry(*bucket).or_default();
            *count = count.saturating_add(*more);
        }
    }

    /// The latency that `permille` of all stay at or below; none when nothing was counted.
    pub fn quantile(&self, permille: u16) -> Option<Duration> {
        let total: u64 = self.counts.values().sum();
        let rank = (u128::from(total) * u128::from(permille.min(1000))).div_ceil(1000).max(1);
        let mut seen: u128 = 0;
        self.counts.iter().find_map(|(bucket, count)| {
            seen += u128::from(*count);
            (seen >= rank).then(|| Duration::from_micros(upper_bound(*bucket)))
        })
    }

    /// Bucket numbers, ascending, with their counts.
    pub fn buckets(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        self.counts.iter().map(|(bucket, count)| (*bucket, *count))
    }
}

impl FromIterator<(u16, u64)> for Sketch {
    /// Buckets beyond the greatest are counted in it.
    fn from_iter<I: IntoIterator<Item = (u16, u64)>>(buckets: I) -> Self {
        let mut counts = BTreeMap::new();
        for (bucket, more) in buckets {
            let count: &mut u64 = counts.entry(bucket.min(BUCKET_MAX)).or_default();
            *count = count.saturating_add(more);
        }
        Self { counts }
    }
}

/// The bucket of a latency in microseconds.
fn bucket(micros: u64) -> u16 {
    if micros < LINEAR {
        return micros as u16;
    }
    let power = micros.ilog2();
    let step = (micros >> (power - LINEAR_BITS)) as u16 & (LINEAR as u16 - 1);
    ((power - LINEAR_BITS + 1) as u16) * LINEAR as u16 + step
}

/// The greatest number of microseconds that falls into `bucket`.
fn upper_bound(bucket: u16) -> u64 {
    let (group, step) = (u32::from(bucket) / LINEAR as u32, u64::from(bucket) % LINEAR);
    match group {
        0 => step,
        _ => {
            let width = 1_u64 << (group - 1);
            (LINEAR + step).saturating_mul(width).saturating_add(width - 1)
        }
    }
}

const LINEAR_BITS: u32 = 4;
const LINEAR: u64 = 1 << LINEAR_BITS;
/// The bucket of `u64::MAX` microseconds.
const BUCKET_MAX: u16 = (64 - LINEAR_BITS as u16 + 1) * LINEAR as u16 - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_falls_into_a_bucket_that_bounds_it_closely() {
        for micros in [0, 1, 15, 16, 17, 31, 32, 100, 999, 1_000, 65_535, 1 << 40, u64::MAX] {
            let bound = upper_bound(bucket(micros));
            assert!(bound >= micros, "{micros} in a bucket up to {bound}");
            assert!(bound - micros <= micros / 16, "{micros} in a bucket up to {bound}");
        }
        assert_eq!(bucket(u64::MAX), BUCKET_MAX);
    }

    #[test]
    fn quantiles_of_merged_sketches_are_those_of_all() {
        let (mut low, mut high) = (Sketch::default(), Sketch::default());
        for _ in 0..99 {
            low.record(Duration::from_micros(100));
        }
        high.record(Duration::from_millis(50));
        low.merge(&high);
        let near = |permille, micros: u64| {
            let found = low.quantile(permille).expect("counted").as_micros() as u64;
            assert!(found >= micros && found <= micros + micros / 16, "{permille}: {found}");
        };
        near(500, 100);
        near(990, 100);
        near(1000, 50_000);
        assert_eq!(Sketch::default().quantile(500), None);
    }
}
