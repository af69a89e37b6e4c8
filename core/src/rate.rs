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

    /// This part of it, in parts per million, for one of those who share it: of the burst as much
    /// as of the rate, and never less than one. None for nothing.
    pub fn share(self, ppm: u32) -> Option<Self> {
        let each = self.each.saturating_mul(WHOLE_PPM).checked_div(ppm.into())?;
        Some(Self { each, ahead: self.ahead.max(each) })
    }

    /// What to keep in place of `kept` when this rate takes the place of `before`: as many may
    /// come at once as might have before, up to this one's burst. None for a rate of nothing.
    pub fn instead_of(self, before: Option<Self>, kept: u64, now: u64) -> u64 {
        let full = now.saturating_add(self.ahead);
        let Some(before) = before else { return full };
        let saved = u128::from(before.ahead.saturating_sub(kept.saturating_sub(now)));
        let saved = saved * u128::from(self.each) / u128::from(before.each.max(1));
        full - u64::try_from(saved).unwrap_or(u64::MAX).min(self.ahead)
    }
}

const WHOLE_PPM: u64 = 1_000_000;

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
    fn a_share_that_changes_neither_makes_nor_loses_what_was_saved() {
        let (second, whole) = (1_000_000_000, Rate::new(100, 50).expect("above zero"));
        let at_once = |rate: Option<Rate>, mut kept: u64, now: u64| {
            let mut passed = 0;
            while let Some(next) = rate.and_then(|rate| rate.take(kept, now).ok()) {
                (kept, passed) = (next, passed + 1);
            }
            passed
        };
        let cases = [
            // share before, what it had saved, share after, what passes at once, why
            (1_000_000, 50, 100_000, 5, "no more than its own burst"),
            (100_000, 5, 1_000_000, 5, "a greater share saves from then on"),
            (100_000, 0, 1_000_000, 0, "nothing comes of nothing"),
            (0, 0, 1_000_000, 0, "who had no share has saved nothing"),
            (1_000, 1, 500_000, 1, "one at least, of any share"),
            (500_000, 25, 0, 0, "no share lets nothing through"),
        ];
        for (before, saved, after, expected, why) in cases {
            let (old, new) = (whole.share(before), whole.share(after));
            let mut kept = 0;
            for _ in saved..at_once(old, 0, second) {
                kept = old.expect("a share").take(kept, second).expect("saved");
            }
            let kept = new.map_or(kept, |new| new.instead_of(old, kept, second));
            assert_eq!(at_once(new, kept, second), expected, "{before} to {after}: {why}");
        }
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
