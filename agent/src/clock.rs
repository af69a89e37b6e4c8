//! The wall clock and the waits of the control loop: the one place that asks the system for time.

use std::time::{Duration, SystemTime};

use hawser_core::clock::UnixTime;
use rand::Rng;

/// Now, by the wall.
pub(crate) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// `span`, up to a fifth shorter or longer, so that a fleet does not act in step.
pub(crate) fn jittered(span: Duration) -> Duration {
    span.mul_f64(rand::rng().random_range(0.8..=1.2))
}

/// A wait spread evenly over `0..=span`.
pub(crate) fn up_to(span: Duration) -> Duration {
    span.mul_f64(rand::rng().random_range(0.0..=1.0))
}

/// A draw in `0..=1000`.
pub(crate) fn permille() -> u16 {
    rand::rng().random_range(0..=1000)
}

/// Full-jitter exponential back-off: each failure doubles the span that the wait is drawn from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits drawn from `0..=base`, later from at most `0..=cap`.
    pub(crate) const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// It worked: the next failure is the first again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// It failed again: how long to wait now.
    pub(crate) fn next(&mut self) -> Duration {
        let span = self.base.saturating_mul(1 << self.failures.min(16)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        // Never nothing at all: a server that fails at once must not be asked in a tight loop.
        up_to(span).max(self.base / 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_off_grows_to_its_cap_and_starts_over() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(base, cap);
        for failure in 0..40 {
            let wait = backoff.next();
            let most = base.saturating_mul(1 << failure.min(16)).min(cap);
            assert!(wait <= most && wait >= base / 4, "{failure}: {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= base);
    }
}
