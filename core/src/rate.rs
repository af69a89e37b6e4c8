//! Rates: how many requests a second, with which burst, counted by one number each.

use std::time::Duration;

/// So many requests a second, and so many at once after a quiet time.
///
/// Counted by the generic cell rate algorithm: all that is kept is the time at which a bucket is
/// full again, so that one atomic number is enough for any number of threads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// Nanoseconds that one request takes up.
    each: u64,
    /// Nanoseconds that may be taken up ahead of time.
    ahead: u64,
}

impl Rate {
    /// `per_second` requests, and up to `burst` at once; zero for a burst of one second's requests.
    /// None where `per_second` is zero.
    pub fn new(per_second: u32, burst: u32) -> Option<Self> {
        let each = 1_000_000_000_u64.checked_div(per_second.into())?.max(1);
        let burst = if burst == 0 { per_second } else { burst };
        Some(Self { each, ahead: each.saturating_mul(burst.into()) })
    }

    /// Lets one request through at `now`, and answers what to keep in place of `kept`. Both count
    /// nanoseconds from the same beginning.
    ///
    /// # Errors
    /// How long to wait before the next would pass.
    pub fn take(self, kept: u64, now: u64) -> Result<u64, Duration> {
        let next = kept.max(now).saturating_add(self.each);
        match next.saturating_sub(now).checked_sub(self.ahead) {
            Some(early) if early > 0 => Err(Duration::from_nanos(early)),
            _ => Ok(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of the requests at these milliseconds pass.
    fn passed(rate: Rate, at: impl Iterator<Item = u64>) -> usize {
        let mut kept = 0;
        let mut pass = |millis: u64| match rate.take(kept, millis * 1_000_000) {
            Ok(next) => {
                kept = next;
                true
            }
            Err(_) => false,
        };
        at.filter(|millis| pass(*millis)).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let cases = [
            // per second, burst, requests each millisecond for how many, passed, why
            (10, 10, 1, 10, "what was saved passes at once, here all in one millisecond"),
            (10, 1, 1_000, 10, "one each tenth of a second"),
            (10, 5, 10_000, 104, "the burst, then the rate"),
            (10, 0, 10_000, 109, "a burst of a second's"),
            (1_000_000_000, 1, 100, 100, "as fast as time is counted"),
        ];
        for (per_second, burst, millis, expected, why) in cases {
            let rate = Rate::new(per_second, burst).expect("above zero");
            let at: Vec<u64> = match millis {
                1 => vec![1_000; 50],
                _ => (1_000..1_000 + millis).collect(),
            };
            assert_eq!(passed(rate, at.into_iter()), expected, "{why}");
        }
        assert_eq!(Rate::new(0, 5), None);
    }

    #[test]
    fn who_is_too_early_hears_how_much() {
        let rate = Rate::new(2, 1).expect("above zero");
        let kept = rate.take(0, 1_000).expect("the first");
        assert_eq!(rate.take(kept, 1_000), Err(Duration::from_millis(500)));
        assert_eq!(rate.take(kept, 400_001_000), Err(Duration::from_millis(100)));
        assert!(rate.take(kept, 500_001_000).is_ok());
    }
}
