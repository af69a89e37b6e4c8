//! Hedging: when a request that takes long is sent to another instance as well.

use std::time::Duration;

/// After how long without an answer another instance is asked, too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum After {
    /// Always so long.
    Fixed(Duration),
    /// As long as this share of the answers took, in percent.
    Percentile(u8),
}

/// How long the answers of one target took lately, in a bounded space: each to within an eighth.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u32>,
    total: u32,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { counts: vec![0; PLACES], total: 0 }
    }
}

impl Latencies {
    /// Takes in that an answer took `latency`. What is long past weighs less and less.
    pub fn observe(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.counts[place(micros)] += 1;
        self.total += 1;
        if self.total >= REMEMBERED {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
    }

    /// Within which time `percent` of the answers came; none while too few are known.
    pub fn within(&self, percent: u8) -> Option<Duration> {
        if self.total < KNOWN_MIN {
            return None;
        }
        let mut left = (u64::from(self.total) * u64::from(percent)).div_ceil(100);
        let at = self.counts.iter().position(|count| {
            left = left.saturating_sub(u64::from(*count));
            left == 0
        })?;
        Some(Duration::from_micros(end(at)))
    }
}

/// The place of a latency: eight for each doubling.
fn place(micros: u64) -> usize {
    let micros = micros.clamp(8, MICROS_MAX);
    let exponent = micros.ilog2();
    let eighth = (micros >> (exponent - 3)) & 7;
    (exponent as usize - 3) * 8 + eighth as usize
}

/// The longest latency of a place.
const fn end(place: usize) -> u64 {
    let exponent = place / 8;
    ((8 + place as u64 % 8 + 1) << exponent) - 1
}

/// An hour, and the places up to it.
const MICROS_MAX: u64 = 3_600_000_000;
const PLACES: usize = 30 * 8;
const REMEMBERED: u32 = 4_096;
const KNOWN_MIN: u32 = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_right_to_within_an_eighth() {
        let mut latencies = Latencies::default();
        for n in 1..50_u64 {
            latencies.observe(Duration::from_millis(n));
        }
        assert_eq!(latencies.within(90), None, "too few are known");
        for n in 50..=1_000_u64 {
            latencies.observe(Duration::from_millis(n));
        }
        for (percent, millis) in [(50, 500), (90, 900), (99, 990)] {
            let found = latencies.within(percent).expect("enough").as_millis();
            assert!(found >= millis && found <= millis * 9 / 8 + 1, "{percent} %: {found} ms");
        }
    }

    #[test]
    fn what_is_long_past_is_forgotten_and_nothing_overflows() {
        let mut latencies = Latencies::default();
        (0..10_000).for_each(|_| latencies.observe(Duration::from_secs(1)));
        (0..20_000).for_each(|_| latencies.observe(Duration::from_millis(1)));
        assert!(latencies.within(95).expect("enough") < Duration::from_millis(2));
        for extreme in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            latencies.observe(extreme);
        }
        assert!(place(u64::MAX) < PLACES && place(0) == 0);
        assert!((0..PLACES - 1).all(|at| place(end(at) + 1) <= at + 1 && end(at) < end(at + 1)));
    }
}
