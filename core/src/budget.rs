//! The retry budget: how much of a caller's traffic to one target may be second tries.

use std::time::Duration;

/// Counts requests and retries of the last ten seconds.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    buckets: [Bucket; WINDOW_SECS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    second: u64,
    requests: u32,
    retries: u32,
}

impl Budget {
    /// Counts a first try.
    pub fn request(&mut self, now: Duration) {
        let bucket = self.bucket(now);
        bucket.requests = bucket.requests.saturating_add(1);
    }

    /// Whether another try may be made; counts it if so.
    ///
    /// `floor` a second are allowed whatever the share, so that a quiet caller can retry at all.
    pub fn retry(&mut self, now: Duration, percent: u8, floor: u32) -> bool {
        let allowed = self.has_room(now, percent, floor);
        if allowed {
            let bucket = self.bucket(now);
            bucket.retries = bucket.retries.saturating_add(1);
        }
        allowed
    }

    /// Whether another try might be made, as [`Budget::retry`] would say.
    pub fn has_room(&mut self, now: Duration, percent: u8, floor: u32) -> bool {
        let second = now.as_secs();
        let is_recent = |bucket: &&Bucket| bucket.second + WINDOW_SECS as u64 > second;
        let (requests, retries) =
            self.buckets.iter().filter(is_recent).fold((0_u64, 0_u64), |(requests, retries), b| {
                (requests + u64::from(b.requests), retries + u64::from(b.retries))
            });
        let is_within = (retries + 1) * 100 <= requests * u64::from(percent);
        is_within || self.bucket(now).retries < floor
    }

    fn bucket(&mut self, now: Duration) -> &mut Bucket {
        let second = now.as_secs();
        let bucket = &mut self.buckets[(second % WINDOW_SECS as u64) as usize];
        if bucket.second != second {
            *bucket = Bucket { second, ..Bucket::default() };
        }
        bucket
    }
}

const WINDOW_SECS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_held_to_its_share() {
        let mut budget = Budget::default();
        let (mut requests, mut retries) = (0_u32, 0_u32);
        for millis in 0..60_000_u64 {
            let now = Duration::from_millis(millis);
            budget.request(now);
            requests += 1;
            retries += u32::from(budget.retry(now, 20, 3));
        }
        assert!(retries * 100 <= requests * 21, "{retries} retries of {requests} requests");
        assert!(retries * 100 >= requests * 19, "{retries} retries of {requests} requests");
    }

    #[test]
    fn a_quiet_caller_may_retry_at_its_floor() {
        let mut budget = Budget::default();
        let now = Duration::from_secs(100);
        budget.request(now);
        let allowed = (0..10).filter(|_| budget.retry(now, 20, 3)).count();
        assert_eq!(allowed, 3);
        assert!(budget.retry(now + Duration::from_secs(1), 20, 3), "the next second has its own");
    }
}
