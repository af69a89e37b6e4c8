//! Latency as the balancer weighs it: peak EWMA.

use std::time::Duration;

/// Latency in seconds that rises at once and falls slowly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ewma {
    value: f64,
    stamp: Duration,
}

impl Ewma {
    pub(super) fn new(now: Duration) -> Self {
        Self { value: LATENCY_START.as_secs_f64(), stamp: now }
    }

    pub(super) fn at(&self, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.stamp);
        // Below a millisecond the decay is under 0.01 %: not worth an exponential a request.
        if passed < Duration::from_millis(1) {
            return self.value;
        }
        self.value * (-passed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }

    pub(super) fn observe(&mut self, latency: Duration, now: Duration) {
        let latency = latency.as_secs_f64();
        if latency > self.value {
            *self = Self { value: latency, stamp: now };
            return;
        }
        let keep = (-now.saturating_sub(self.stamp).as_secs_f64() / DECAY.as_secs_f64()).exp();
        *self = Self { value: self.value * keep + latency * (1.0 - keep), stamp: now };
    }
}

/// Linkerd's decay and start.
const DECAY: Duration = Duration::from_secs(10);
const LATENCY_START: Duration = Duration::from_millis(30);
