//! Handshakes: how many callers may be at theirs at once, in all and from one address.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// The handshakes of callers in one worker.
pub(crate) struct Handshakes {
    all: Semaphore,
    /// Most from one address.
    of_one: usize,
    /// Those addresses that a handshake is under way from, or waits: no more than connections.
    addresses: RefCell<HashMap<IpAddr, Arc<Semaphore>>>,
}

impl Handshakes {
    /// At most `all` at once, and `of_one` from one address.
    pub(crate) fn new(all: usize, of_one: usize) -> Self {
        Self { all: Semaphore::new(all), of_one, addresses: RefCell::default() }
    }

    /// Waits for a place for a handshake with `from`: first among those of its address, so that one
    /// that has too many waits for itself alone.
    pub(crate) async fn enter(&self, from: IpAddr) -> Place<'_> {
        let new = || Arc::new(Semaphore::new(self.of_one));
        let of_one = self.addresses.borrow_mut().entry(from).or_insert_with(new).clone();
        let mut place = Place { handshakes: self, from, of_one: None, all: None };
        place.of_one = of_one.acquire_owned().await.ok();
        place.all = self.all.acquire().await.ok();
        place
    }
}

/// One handshake's place.
pub(crate) struct Place<'a> {
    handshakes: &'a Handshakes,
    from: IpAddr,
    of_one: Option<OwnedSemaphorePermit>,
    all: Option<SemaphorePermit<'a>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        (self.of_one, self.all) = (None, None);
        let mut addresses = self.handshakes.addresses.borrow_mut();
        // Nobody else of this address has a place, or waits for one.
        if addresses.get(&self.from).is_some_and(|of_one| Arc::strong_count(of_one) == 1) {
            addresses.remove(&self.from);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn an_address_with_too_many_waits_for_itself_alone() {
        let handshakes = Handshakes::new(3, 2);
        let [a, b] = [1, 2].map(|last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
        let enter = |from| handshakes.enter(from).now_or_never();
        let (first, second) = (enter(a), enter(a));
        assert!(first.is_some() && second.is_some() && enter(a).is_none(), "two are the most");
        let other = enter(b);
        assert!(other.is_some() && enter(b).is_none(), "three are the most of all");
        drop(first);
        assert!(enter(a).is_some(), "its place is free again");
        drop((second, other));
        assert!(handshakes.addresses.borrow().is_empty(), "nothing is kept of who has gone");
    }
}
