//! The choice among the instances of one group, by each policy.

use std::time::Duration;

use super::peer::{Peer, Standing};
use super::rules::{Hashing, Policy, SlowStart};
use super::table::Table;
use super::{Ask, PROBE_OVERDUE};

/// The instances of one group as one request sees them. Numbers are places in `peers`.
pub(super) struct Field<'a> {
    pub(super) peers: &'a [Peer],
    /// Their weights added up: [`tickets`].
    pub(super) tickets: &'a [u64],
    pub(super) ask: Ask<'a>,
    pub(super) now: Duration,
    /// Whether any instance, of whatever group, may be due for its probe.
    pub(super) may_be_due: bool,
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
            Policy::LeastRequest(choices) => {
                self.best_of(choices, draw, |peer| peer.load(self.now))
            }
            Policy::Random | Policy::Hash(_) => self.best_of(1, draw, |_| 0.0),
            Policy::RoundRobin => self.next_in_turn(),
            Policy::PeakEwma => self.best_of(2, draw, |peer| peer.cost(self.now)),
        }
    }

    /// One that is due for its probe.
    fn due(&self) -> Option<usize> {
        if !self.may_be_due {
            return None;
        }
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
        if age >= slow.window {
            return weight * 100;
        }
        let percent = (age.as_secs_f64() * 100.0 / slow.window.as_secs_f64()) as u64;
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

    /// The cheapest of `choices` drawn by share. The first two differ, so that two are always
    /// compared; of equals the first drawn is taken.
    fn best_of(
        &self,
        choices: u32,
        draw: &mut impl FnMut() -> u64,
        cost: impl Fn(&Peer) -> f64,
    ) -> Option<usize> {
        let first = self.drawn(None, draw)?;
        if choices < 2 || self.peers.len() < 2 {
            return Some(first);
        }
        let Some(second) = self.drawn(Some(first), draw) else { return Some(first) };
        let others = (2..choices).map(|_| self.drawn(None, draw));
        let mut best = (first, cost(&self.peers[first]));
        for other in std::iter::once(Some(second)).chain(others).flatten() {
            let other = (other, cost(&self.peers[other]));
            if other.1 < best.1 {
                best = other;
            }
        }
        Some(best.0)
    }

    /// One that may be chosen, drawn by share, and not `but`; none when there is none.
    ///
    /// It is drawn by weight first, and drawn again if it may not be, or by as much as its share is
    /// below its weight: that takes a few steps however many instances there are. Where luck does
    /// not find one soon, most may not be, and those that may are counted.
    fn drawn(&self, but: Option<usize>, draw: &mut impl FnMut() -> u64) -> Option<usize> {
        let whole = *self.tickets.last()?;
        for _ in 0..DRAWS_MAX {
            let ticket = draw();
            let at = self.tickets.partition_point(|end| *end <= ticket % whole);
            let peer = &self.peers[at];
            if Some(at) == but || !self.may(peer) {
                continue;
            }
            // The high bits are not those that the ticket came from.
            let full = u64::from(peer.weight) * 100;
            let share = self.share(peer);
            if share == full || (ticket >> 32) % full < share {
                return Some(at);
            }
        }
        let left = |at: usize| if Some(at) == but { 0 } else { self.share(&self.peers[at]) };
        let open = || (0..self.peers.len()).filter(|at| self.may(&self.peers[*at]));
        let total: u64 = open().map(left).sum();
        let mut ticket = draw().checked_rem(total)?;
        open().find(|at| {
            let share = left(*at);
            let is_hit = ticket < share;
            ticket = ticket.saturating_sub(share);
            is_hit
        })
    }

    /// Who takes `hash`: its owner, or the next that may and has room. One that is due for a probe
    /// is probed by what it owns.
    fn owner(&self, table: &Table, hash: u64, hashing: Hashing) -> Option<usize> {
        let open = |peer: &Peer| self.may(peer) || (self.may_be_due && self.is_due(peer));
        // The load of all counts only where somebody has more than a little.
        let mut load_of_all = None;
        let mut has_room = |peer: &Peer| {
            if hashing.bound_percent == 0 || u64::from(peer.in_flight) < BOUND_FLOOR {
                return true;
            }
            let (load, weight) = *load_of_all.get_or_insert_with(|| {
                let all = self.peers.iter().filter(|peer| open(peer));
                all.fold((0_u64, 0_u64), |(load, weight), peer| {
                    (load + u64::from(peer.in_flight), weight + u64::from(peer.weight))
                })
            });
            let share = u64::from(hashing.bound_percent) * (load + 1) * u64::from(peer.weight);
            u64::from(peer.in_flight) < share.div_ceil(100 * weight.max(1))
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

/// What the weights of `peers` add up to, each with those before it.
pub(super) fn tickets(peers: &[Peer]) -> Vec<u64> {
    let mut whole = 0;
    let add = |peer: &Peer| {
        whole += u64::from(peer.weight);
        whole
    };
    peers.iter().map(add).collect()
}

/// How often one is drawn by luck.
const DRAWS_MAX: u32 = 8;
/// Below this many requests under way nobody is too busy to keep what hashes to it.
const BOUND_FLOOR: u64 = 8;
