//! Whom a gateway dials next: who has the fewest connections, was not chosen for longest, and did
//! not fail just now.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::route::Candidate;

/// What one worker knows of those it dials. Bounded: whoever has no connection and did not fail
/// lately is forgotten at the next [`Targets::sweep`].
#[derive(Default)]
pub(crate) struct Targets {
    known: RefCell<BTreeMap<SocketAddr, Target>>,
    turns: Cell<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Target {
    open: u32,
    /// When it was last chosen, in turns.
    chosen: u64,
    /// How long it is out after its last failure; zero when it works.
    out: Duration,
    out_until: Duration,
}

/// Counts an open connection to somebody until it is dropped.
pub(crate) struct Open {
    targets: Rc<Targets>,
    address: SocketAddr,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut known = self.targets.known.borrow_mut();
        let target = known.entry(self.address).or_default();
        target.open = target.open.saturating_sub(1);
    }
}

impl Targets {
    /// Chooses among those of `candidates` that are not in `tried`, and counts a connection to it.
    ///
    /// Whoever failed just now comes last, but comes: it may be the only one. `draw` decides where
    /// nothing else does, so that workers do not all begin with the same.
    pub(crate) fn choose(
        self: &Rc<Self>,
        candidates: &[Candidate],
        tried: &[SocketAddr],
        now: Duration,
        mut draw: impl FnMut() -> u32,
    ) -> Option<Open> {
        let mut known = self.known.borrow_mut();
        let untried = candidates.iter().filter(|one| !tried.contains(&one.address));
        let best = untried.min_by_key(|one| {
            let target = known.get(&one.address).copied().unwrap_or_default();
            let load = (u64::from(target.open) + 1) * WEIGHT_UNIT / u64::from(one.weight.max(1));
            (target.out_until > now, one.rank, load, target.chosen, draw())
        })?;
        self.turns.set(self.turns.get() + 1);
        let target = known.entry(best.address).or_default();
        target.chosen = self.turns.get();
        target.open += 1;
        Some(Open { targets: self.clone(), address: best.address })
    }

    /// Forgets those that neither are connected nor failed lately.
    pub(crate) fn sweep(&self, now: Duration) {
        let is_known = |target: &Target| target.open > 0 || target.out_until + OUT_MAX > now;
        self.known.borrow_mut().retain(|_, target| is_known(target));
    }
}

impl Open {
    /// To whom.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connection came about.
    pub(crate) fn succeeded(&self) {
        let mut known = self.targets.known.borrow_mut();
        if let Some(target) = known.get_mut(&self.address) {
            (target.out, target.out_until) = (Duration::ZERO, Duration::ZERO);
        }
    }

    /// It did not: for a while, longer after each failure in a row, others come first.
    pub(crate) fn failed(self, now: Duration) {
        let mut known = self.targets.known.borrow_mut();
        if let Some(target) = known.get_mut(&self.address) {
            target.out = (target.out * 2).clamp(OUT_MIN, OUT_MAX);
            target.out_until = now + target.out;
        }
    }
}

/// Weights are up to 65535, so that this keeps them apart.
const WEIGHT_UNIT: u64 = 1 << 20;
const OUT_MIN: Duration = Duration::from_secs(1);
const OUT_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn to(port: u16, rank: u8, weight: u16) -> Candidate {
        Candidate { address: at(port), rank, weight }
    }

    fn chosen(targets: &Rc<Targets>, among: &[Candidate], now: u64) -> Option<Open> {
        targets.choose(among, &[], Duration::from_secs(now), || 0)
    }

    #[test]
    fn connections_spread_by_weight_and_return() {
        let targets = Rc::new(Targets::default());
        let among = [to(1, 0, 2), to(2, 0, 1), to(3, 1, 100)];
        let mut held: Vec<Open> =
            (0..30).map(|_| chosen(&targets, &among, 0).expect("somebody")).collect();
        let count = |held: &[Open], port| held.iter().filter(|o| o.address() == at(port)).count();
        assert_eq!((count(&held, 1), count(&held, 2), count(&held, 3)), (20, 10, 0));
        held.retain(|open| open.address() != at(2));
        assert_eq!(chosen(&targets, &among, 0).expect("somebody").address(), at(2));
    }

    #[test]
    fn equals_take_turns() {
        let targets = Rc::new(Targets::default());
        let among = [to(1, 0, 1), to(2, 0, 1), to(3, 0, 1)];
        let turn = || chosen(&targets, &among, 0).expect("somebody").address().port();
        let turns: Vec<u16> = (0..6).map(|_| turn()).collect();
        assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn who_failed_comes_last_for_a_while_that_grows() {
        let targets = Rc::new(Targets::default());
        let among = [to(1, 0, 1), to(2, 1, 1)];
        let mut now = 0;
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            let first = chosen(&targets, &among, now).expect("somebody");
            assert_eq!(first.address(), at(1), "at {now}");
            first.failed(Duration::from_secs(now));
            let until = now + expected;
            let second = chosen(&targets, &among, until - 1).expect("somebody");
            assert_eq!(second.address(), at(2), "until {until}");
            let only = chosen(&targets, &among[..1], until - 1).expect("somebody");
            assert_eq!(only.address(), at(1), "nobody else is there");
            targets.sweep(Duration::from_secs(until));
            now = until;
        }
        chosen(&targets, &among, now).expect("somebody").succeeded();
        chosen(&targets, &among, now).expect("somebody").failed(Duration::from_secs(now));
        assert_eq!(chosen(&targets, &among, now + 1).expect("somebody").address(), at(1));
        targets.sweep(Duration::from_secs(now + 1_000));
        assert!(targets.known.borrow().is_empty(), "nothing is kept for ever");
    }

    #[test]
    fn nobody_is_tried_twice() {
        let targets = Rc::new(Targets::default());
        let among = [to(1, 0, 1), to(2, 0, 1)];
        let next = |tried: &[SocketAddr]| {
            let open = targets.choose(&among, tried, Duration::ZERO, || 0);
            open.map(|open| open.address().port())
        };
        assert_eq!(next(&[at(1)]), Some(2));
        assert_eq!(next(&[at(1), at(2)]), None);
    }
}
