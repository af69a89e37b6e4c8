//! Gateways: the ways into other clusters, and which of them do not work now.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hawser_core::catalog::Locality;
use hawser_core::peering::PeerGateway;
use hawser_core::route::Nearness;

/// One gateway, as one worker knows it.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    /// When something came back through it last.
    heard_at: Cell<Duration>,
    /// How often in a row it failed.
    failures: Cell<u32>,
    failed_at: Cell<Duration>,
}

impl Gateway {
    fn new(address: SocketAddr) -> Self {
        let (heard_at, failures, failed_at) = Default::default();
        Self { address, heard_at, failures, failed_at }
    }

    /// Something came back through it.
    pub(crate) fn heard(&self, now: Duration) {
        self.heard_at.set(now);
        if self.failures.replace(0) > 0 {
            tracing::info!(address = %self.address, "gateway is back");
        }
    }

    /// Whether nothing came back through it from `since` on.
    pub(crate) fn is_silent_since(&self, since: Duration) -> bool {
        self.heard_at.get() < since
    }

    /// An attempt that began at `began` got nothing from it.
    pub(crate) fn failed(&self, began: Duration, now: Duration) {
        // Attempts that were under way when it failed say nothing new.
        if self.is_bad() && began < self.failed_at.get() {
            return;
        }
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        self.failed_at.set(now);
        tracing::warn!(address = %self.address, failures, "gateway does not answer");
    }

    /// Whether it failed and nothing came back through it since.
    pub(crate) fn is_bad(&self) -> bool {
        self.failures.get() > 0
    }

    fn rests_until(&self) -> Duration {
        let Some(doublings) = self.failures.get().checked_sub(1) else { return Duration::ZERO };
        let span = REST_FIRST.saturating_mul(1 << doublings.min(16)).min(REST_MAX);
        self.failed_at.get().saturating_add(span)
    }
}

/// All gateways that one worker knows: those of two services are the same ones.
#[derive(Debug, Default)]
pub(crate) struct Gateways(RefCell<BTreeMap<SocketAddr, Rc<Gateway>>>);

impl Gateways {
    fn at(&self, address: SocketAddr) -> Rc<Gateway> {
        let new = || Rc::new(Gateway::new(address));
        self.0.borrow_mut().entry(address).or_insert_with(new).clone()
    }

    /// Forgets those that nobody uses.
    pub(crate) fn sweep(&self) {
        self.0.borrow_mut().retain(|_, gateway| Rc::strong_count(gateway) > 1);
    }
}

/// The gateways that lead to one target.
#[derive(Debug)]
pub(crate) struct Choice {
    /// Nearest first.
    gateways: Vec<(Nearness, Rc<Gateway>)>,
    turn: Cell<usize>,
    /// When one of them was tried last although all rested.
    last_resort_at: Cell<Duration>,
}

impl Choice {
    /// Orders `listed` as seen from `here`.
    pub(crate) fn new(all: &Gateways, here: &Locality, listed: &[PeerGateway]) -> Self {
        let near = |gateway: &PeerGateway| Nearness::between(here, &gateway.locality);
        let mut gateways: Vec<_> =
            listed.iter().map(|gateway| (near(gateway), all.at(gateway.address))).collect();
        gateways.sort_by_key(|(nearness, _)| *nearness);
        Self { gateways, turn: Cell::default(), last_resort_at: Cell::default() }
    }

    /// The gateways to try in one dial, in this order: those that work, nearest first, equally
    /// near ones by turns.
    ///
    /// When all rest, the one that rests least longer is tried once a second all the same: those
    /// that have no other way must not wait for half a minute after it is back.
    pub(crate) fn order(&self, now: Duration) -> Vec<Rc<Gateway>> {
        let mut usable: Vec<_> =
            self.gateways.iter().filter(|(_, gateway)| now >= gateway.rests_until()).collect();
        if usable.is_empty() {
            let failed_at = self.gateways.iter().map(|(_, gateway)| gateway.failed_at.get()).max();
            let last = failed_at.unwrap_or_default().max(self.last_resort_at.get());
            if now < last.saturating_add(REST_FIRST) {
                return Vec::new();
            }
            self.last_resort_at.set(now);
            let soonest = self.gateways.iter().min_by_key(|(_, gateway)| gateway.rests_until());
            return soonest.map(|(_, gateway)| gateway.clone()).into_iter().collect();
        }
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        for equals in usable.chunk_by_mut(|(one, _), (other, _)| one == other) {
            equals.rotate_left(turn % equals.len());
        }
        usable.into_iter().map(|(_, gateway)| gateway.clone()).collect()
    }
}

const REST_FIRST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(port: u16, zone: &str) -> PeerGateway {
        let locality = Locality { region: Some("eu".into()), zone: Some(zone.into()) };
        PeerGateway { address: SocketAddr::from(([10, 0, 0, 1], port)), locality }
    }

    fn choice(all: &Gateways, listed: &[PeerGateway]) -> Choice {
        Choice::new(all, &gateway(0, "a").locality, listed)
    }

    fn ports(order: &[Rc<Gateway>]) -> Vec<u16> {
        order.iter().map(|gateway| gateway.address.port()).collect()
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn the_nearest_come_first_and_equals_take_turns() {
        let all = Gateways::default();
        let choice = choice(&all, &[gateway(1, "b"), gateway(2, "a"), gateway(3, "a")]);
        let orders: Vec<_> = (0..3).map(|_| ports(&choice.order(at(0)))).collect();
        assert_eq!(orders, [[2, 3, 1], [3, 2, 1], [2, 3, 1]]);
    }

    #[test]
    fn one_that_fails_rests_twice_as_long_each_time() {
        let all = Gateways::default();
        let choice = choice(&all, &[gateway(1, "a"), gateway(2, "b")]);
        let first = all.at(gateway(1, "a").address);
        let mut now = at(100);
        for rest in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            first.failed(now, now);
            first.failed(now.saturating_sub(at(1)), now + at(1));
            assert_eq!(ports(&choice.order(now + at(rest - 1))), [2], "{rest} ms");
            now += at(rest);
            assert_eq!(ports(&choice.order(now)), [1, 2], "{rest} ms");
        }
        first.heard(now);
        first.failed(now, now);
        assert_eq!(ports(&choice.order(now + at(1_000))), [1, 2], "an answer forgives all");
    }

    #[test]
    fn when_all_rest_one_is_tried_once_a_second() {
        let all = Gateways::default();
        let choice = choice(&all, &[gateway(1, "a"), gateway(2, "a")]);
        for _ in 0..3 {
            for port in [1, 2] {
                all.at(gateway(port, "a").address).failed(at(0), at(0));
            }
        }
        assert!(choice.order(at(999)).is_empty());
        assert_eq!(choice.order(at(1_000)).len(), 1);
        assert!(choice.order(at(1_000)).is_empty(), "the others wait for it");
        assert!(choice.order(at(1_999)).is_empty());
        assert_eq!(choice.order(at(2_000)).len(), 1);
    }

    #[test]
    fn gateways_that_nobody_uses_are_forgotten() {
        let all = Gateways::default();
        let choice = choice(&all, &[gateway(1, "a")]);
        all.at(gateway(2, "a").address);
        all.sweep();
        assert_eq!(all.0.borrow().len(), 1);
        drop(choice);
        all.sweep();
        assert!(all.0.borrow().is_empty());
    }
}
