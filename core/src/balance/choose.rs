//! The choice among the instances of one group, by each policy.

use std::time::Duration;

use super::peer::{Peer, Standing};
use super::rules::{Hashing, Policy, SlowStart};
use super::table::Table;
use super::{Ask, PROBE_OVERDUE};

/// The instances of one group as one request sees them. Numbers are places in `peers`.
pub(super) struct Field<'a> {
    pub(super) peers: &'a [Peer],
    pub(super) ask: Ask<'a>,
    pub(super) now: Duration,
    /// None where nobody comes to its share.
    pub(super) slow_start: Option<SlowStart>,
    /// Whether ejections do not count, for too many are out.
    pub(super) is_panic: bool,
}

impl Field<'_> {
    /// Chooses by `policy`; none when no instance may be.
    ///
    /// One that is due for its probe is chosen first, where no hash says who should be.
    pub(super) fn choose(
        &self,
        policy: Policy,
        table: Option<&Table>,
        draw: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        if let (Policy::Hash(hashing), Some(table)) = (policy, table) {
            let hash = self.ask.hash.unwrap_or_else(draw);
            return self.owner(table, hash, hashing);
        }
        if let Some(due) = self.due() {
            return Some(due);
        }
        match policy {
            Policy::LeastRequest(choices) => self.best_of(choices, draw, Peer::load),
            Policy::Random | Policy::Hash(_) => self.best_of(1, draw, |_| 0.0),
            Policy::RoundRobin => self.next_in_turn(),
            Policy::PeakEwma => self.best_of(2, draw, |peer| peer.cost(self.now)),
        }
    }

    /// One that is due for its probe.
    fn due(&self) -> Option<usize> {
        self.peers.iter().position(|peer| self.is_due(peer))
    }

    /// Who is next where instances take turns: whose last turn is longest ago by its share.
    fn next_in_turn(&self) -> Option<usize> {
        let open = self.peers.iter().enumerate().filter(|(_, peer)| self.may(peer));
        open.min_by_key(|(_, peer)| peer.turn).map(|(at, _)| at)
    }

    /// Whether `peer` may be chosen at all.
    fn may(&self, peer: &Peer) -> bool {
        (self.is_panic || peer.is_in()) && self.is_untried(peer)
    }

    /// The share of traffic that `peer` takes, in hundredths of its weight.
    pub(super) fn share(&self, peer: &Peer) -> u64 {
        let weight = u64::from(peer.weight);
        let (Some(slow), Some(from)) = (self.slow_start, peer.ramp_from) else {
            return weight * 100;
        };
        let age = self.now.saturating_sub(from);
        let percent = (age.as_millis() * 100 / slow.window.as_millis().max(1)).min(100) as u64;
        weight * percent.max(u64::from(slow.min_percent)).max(1)
    }

    fn is_untried(&self, peer: &Peer) -> bool {
        self.ask.tried.is_empty() || !self.ask.tried.contains(&peer.id)
    }

    /// Whether it is time to find out about `peer`, and this request may.
    fn is_due(&self, peer: &Peer) -> bool {
        let is_time = match peer.standing {
            Standing::OutUntil(until) => {
                let overdue = self.now.saturating_sub(until) >= PROBE_OVERDUE;
                self.now >= until && (self.ask.may_probe || overdue)
            }
            Standing::In | Standing::Probing => false,
        };
        is_time && self.is_untried(peer)
    }

    fn total(&self) -> u64 {
        self.peers.iter().filter(|peer| self.may(peer)).map(|peer| self.share(peer)).sum()
    }

    /// The cheapest of `choices` drawn by share. The first two differ, so that two are always
    /// compared; of equals the first drawn is taken.
    fn best_of(
        &self,
        choices: u32,
        draw: &mut impl FnMut() -> u64,
        cost: impl Fn(&Peer) -> f64,
    ) -> Option<usize> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let first = self.at(draw() % total)?;
        let left = total - self.share(&self.peers[first]);
        if choices < 2 || left == 0 {
            return Some(first);
        }
        let mut ticket = draw() % left;
        let before = self.peers[..first].iter().filter(|peer| self.may(peer));
        if ticket >= before.map(|peer| self.share(peer)).sum() {
            ticket += self.share(&self.peers[first]);
        }
        let second = self.at(ticket);
        let others = (2..choices).map(|_| self.at(draw() % total));
        let mut best = (first, cost(&self.peers[first]));
        for other in std::iter::once(second).chain(others).flatten() {
            let other = (other, cost(&self.peers[other]));
            if other.1 < best.1 {
                best = other;
            }
        }
        Some(best.0)
    }

    /// The instance whose share `ticket` falls into.
    fn at(&self, mut ticket: u64) -> Option<usize> {
        let mut open = self.peers.iter().enumerate().filter(|(_, peer)| self.may(peer));
        let found = open.find(|(_, peer)| {
            let share = self.share(peer);
            let is_hit = ticket < share;
            ticket = ticket.saturating_sub(share);
            is_hit
        });
        found.map(|(at, _)| at)
    }

    /// Who takes `hash`: its owner, or the next that may and has room. One that is due for a probe
    /// is probed by what it owns.
    fn owner(&self, table: &Table, hash: u64, hashing: Hashing) -> Option<usize> {
        let open = |peer: &Peer| self.may(peer) || self.is_due(peer);
        let all = self.peers.iter().filter(|peer| open(peer));
        let (load, weight) = all.fold((0_u64, 0_u64), |(load, weight), peer| {
            (load + u64::from(peer.in_flight), weight + u64::from(peer.weight))
        });
        let has_room = |peer: &Peer| {
            let share = u64::from(hashing.bound_percent) * (load + 1) * u64::from(peer.weight);
            let most = share.div_ceil(100 * weight.max(1)).max(BOUND_FLOOR);
            hashing.bound_percent == 0 || u64::from(peer.in_flight) < most
        };
        let (mut met, mut left, mut full) = (Vec::new(), self.peers.len(), None);
        for at in table.walk(hash) {
            let peer = &self.peers[at];
            if open(peer) {
                if has_room(peer) {
                    return Some(at);
                }
                full.get_or_insert(at);
            }
            met.resize(self.peers.len(), false);
            if !std::mem::replace(&mut met[at], true) {
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        full
    }
}

/// Below this many requests under way nobody is too busy to keep what hashes to it.
const BOUND_FLOOR: u64 = 8;
