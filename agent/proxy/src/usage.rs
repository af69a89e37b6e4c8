//! Usage: what is under way from one service to another, counted over all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// What is under way from one service to another.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    pub(crate) connections: Count,
    pub(crate) pending: Count,
    pub(crate) requests: Count,
}

/// A count of what has a limit.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicU32>);

/// One place among those that are limited; given back when dropped.
#[derive(Debug)]
pub(crate) struct Held(Option<Arc<AtomicU32>>);

impl Count {
    /// A place, if fewer than `most` are taken. Without a limit nothing is counted.
    pub(crate) fn take(&self, most: Option<u32>) -> Option<Held> {
        let Some(most) = most else { return Some(Held(None)) };
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let held = Held(Some(self.0.clone()));
        (before < most).then_some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_comes_back_when_it_is_dropped() {
        let count = Count::default();
        let first = count.take(Some(1)).expect("room");
        assert!(count.take(Some(1)).is_none(), "full");
        drop(first);
        let _again = count.take(Some(1)).expect("room again");
        assert!(count.take(None).is_some(), "no limit");
    }
}
