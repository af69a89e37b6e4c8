//! The balancer: which instance takes the next request, and which are out for a while.

mod choose;
mod hash;
mod latency;
mod outlier;
mod peer;
mod rules;
mod settle;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use self::choose::Field;
use self::peer::{Peer, Standing};
use self::settle::Settling;
use crate::entry::Target;
use crate::route::Group;

pub use self::hash::{Hashed, Subject, cookie_value, hash, set_cookie};
pub use self::rules::{Hashing, Outlier, Policy, Rules, SlowStart, Table};

/// Names one instance for as long as a balancer knows it; never used again for another.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerId(u64);

/// An instance that was picked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pick {
    /// Which one.
    pub peer: PeerId,
    /// Where its proxy listens.
    pub address: SocketAddr,
    /// Whether this is the one request that decides whether it comes back.
    pub is_probe: bool,
    /// Which of the groups of the last update it is in.
    pub group: usize,
}

/// How a request or connection to an instance went, as far as the instance is to blame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It answered well after this long.
    Answered(Duration),
    /// Its answer began after this long, and [`Balancer::concluded`] says later whether it was good.
    Began(Duration),
    /// It answered with an error after this long.
    Erred(Duration, Fault),
    /// It did not answer: connect failure, reset, timeout, or its proxy could not serve.
    Failed,
    /// There is no way to its target now, whichever instance is picked: no gateway could be
    /// reached. All of the target's instances are out at once.
    Unreachable,
    /// Nobody waited for the answer.
    Unknown,
}

/// What kind of error an instance answered with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Its application failed: a status of 500 and above, or gRPC's internal and unknown.
    Application,
    /// What its application needs failed: 502, 503, 504, or gRPC's unavailable.
    Gateway,
    /// It takes no more for the moment: 429, or a load that was shed. No fault that ejects, but
    /// answering so quickly must not attract more.
    Busy,
}

/// What a request asks of the balancer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// The instances that were tried already.
    pub tried: &'a [PeerId],
    /// Whether the request can be tried again elsewhere, so that it may be the one which finds out
    /// whether an ejected instance answers again; one that is long overdue is probed with any.
    pub may_probe: bool,
    /// What leads it to its instance, where the policy hashes.
    pub hash: Option<u64>,
}

/// What an outcome changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Nothing that anyone need hear of.
    None,
    /// The instance is out for this long.
    Ejected(Duration),
    /// The instance is back.
    Returned,
}

/// Picks instances of one destination for one caller.
///
/// Where no entry says otherwise, two candidates are drawn by weight and the one with the lower cost
/// wins; cost is the peak-EWMA latency times one more than the requests in flight, times the square
/// of one more than what went wrong in a row. An instance that is new among others, or back, comes
/// to its full weight within ten seconds. Five failures in a row eject an instance
/// for a second, doubling up to a minute; then one request decides whether it comes back. At most
/// half of a group is out at once, at least one may be, and the last one only while another group
/// can take the load. A group whose instances are all out or tried hands over to the next.
///
/// A target that had no instance in, while another had, settles when it gets one: for a while it is
/// used only where no other can be. The while doubles if the target soon goes and comes again, so
/// that one which flaps does not swing the traffic.
#[derive(Clone, Debug, Default)]
pub struct Balancer {
    rules: Rules,
    peers: Vec<Peer>,
    /// Where each of them is.
    places: BTreeMap<PeerId, usize>,
    groups: Vec<Span>,
    /// Before this no instance is due for its probe.
    look_at: Duration,
    settling: BTreeMap<Target, Settling>,
    next_id: u64,
    /// Until when an instance comes to its full share.
    ramping_until: Duration,
    /// What the share of ejections that happens has added up to.
    credit_percent: u32,
    /// When success rates are compared next.
    sweep_at: Duration,
}

/// One group among `Balancer::peers`.
#[derive(Clone, Debug)]
struct Span {
    /// Where it ends; it begins where the one before ends.
    end: usize,
    target: Target,
    /// Until when its target settles.
    ready_at: Duration,
    /// Where the policy hashes.
    table: Option<table::Table>,
    /// What the weights of its members add up to, each with those before it.
    tickets: Vec<u64>,
}

impl Balancer {
    /// Takes over the groups of a new route, and the rules that hold now. What is known of instances
    /// that stay is kept.
    pub fn update(&mut self, groups: &[Group<'_>], rules: &Rules, now: Duration) {
        let was_usable: BTreeMap<Target, bool> = self.usable_targets();
        let is_first = self.peers.is_empty();
        if self.rules != *rules {
            self.sweep_at = now.saturating_add(rules.outlier.interval);
            self.rules = rules.clone();
        }
        let mut known: BTreeMap<_, Peer> =
            self.peers.drain(..).map(|peer| (peer.key.clone(), peer)).collect();
        self.groups.clear();
        for group in groups {
            let start = self.peers.len();
            for (endpoint, weight) in &group.endpoints {
                let Some(address) = endpoint.mesh else { continue };
                let (node, instance) = (endpoint.node.clone(), endpoint.instance.clone());
                let key = (group.target.clone(), node, instance, address);
                let weight = (*weight).max(1);
                let known = known.remove(&key);
                let is_new = known.is_none();
                let peer = known.unwrap_or_else(|| {
                    self.next_id += 1;
                    Peer::new(PeerId(self.next_id), key, weight, now)
                });
                self.peers.push(Peer { weight, ..peer });
                if is_new && !is_first {
                    self.ramp(self.peers.len() - 1, now);
                }
            }
            let (end, target) = (self.peers.len(), group.target.clone());
            let table = table_of(self.rules.policy, &self.peers[start..]);
            let tickets = choose::tickets(&self.peers[start..]);
            self.groups.push(Span { end, target, ready_at: Duration::ZERO, table, tickets });
        }
        self.places = self.peers.iter().enumerate().map(|(at, peer)| (peer.id, at)).collect();
        self.look_at = Duration::ZERO;
        self.settle_new(&was_usable, now);
    }

    /// Lets the instance at `at` come to its full share from `now` on.
    fn ramp(&mut self, at: usize, now: Duration) {
        // Where instances take turns it begins behind the others, and has nothing to catch up on.
        let group = self.groups.len().min(self.group_at(at));
        let start = if group == 0 { 0 } else { self.groups[group - 1].end };
        let end = self.groups.get(group).map_or(self.peers.len(), |group| group.end);
        let last = self.peers[start..end].iter().map(|peer| peer.turn).max();
        self.peers[at].turn = last.unwrap_or_default();
        let window = self.rules.slow_start.window;
        if !window.is_zero() {
            self.peers[at].ramp_from = Some(now);
            self.ramping_until = self.ramping_until.max(now.saturating_add(window));
        }
    }

    /// The instances that it knows: those of the last update, in its order.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.peers.iter().map(|peer| peer.id)
    }

    /// Whether an instance that is not in `tried` is in: only then is it worth giving up a slow one.
    pub fn has_other(&self, tried: &[PeerId]) -> bool {
        self.peers.iter().any(|peer| peer.is_in() && !tried.contains(&peer.id))
    }

    /// How many instances are out.
    pub fn ejected(&self) -> usize {
        self.peers.iter().filter(|peer| !peer.is_in()).count()
    }

    /// Picks an instance that was not tried, and counts a request in flight to it.
    ///
    /// `draw` yields uniformly distributed numbers. None when every instance was tried or none
    /// exists.
    pub fn pick(
        &mut self,
        now: Duration,
        ask: Ask<'_>,
        mut draw: impl FnMut() -> u64,
    ) -> Option<Pick> {
        self.look(now);
        // A target that settles is for when no other can.
        for may_settle in [false, true] {
            for group in 0..self.groups.len() {
                if (now < self.groups[group].ready_at) != may_settle {
                    continue;
                }
                if let Some(at) = self.pick_in(group, now, ask, &mut draw) {
                    return Some(self.take(at));
                }
            }
        }
        // Everything left is out: the one that comes back soonest is better than a refusal.
        let soonest = (0..self.peers.len())
            .filter(|at| !ask.tried.contains(&self.peers[*at].id))
            .min_by_key(|at| match self.peers[*at].standing {
            Standing::OutUntil(until) => until,
            Standing::In | Standing::Probing => Duration::MAX,
        })?;
        Some(self.take(soonest))
    }

    /// Finds out when an instance is next due for its probe, if none was before.
    fn look(&mut self, now: Duration) {
        if now < self.look_at {
            return;
        }
        let until = |peer: &Peer| match peer.standing {
            Standing::OutUntil(until) => Some(until),
            Standing::In | Standing::Probing => None,
        };
        self.look_at = self.peers.iter().filter_map(until).min().unwrap_or(Duration::MAX);
    }

    fn pick_in(
        &mut self,
        group: usize,
        now: Duration,
        ask: Ask<'_>,
        draw: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        let range = self.members(group);
        let (start, peers) = (range.start, &self.peers[range]);
        let is_in_panic = |percent: u32| {
            let count = peers.iter().filter(|peer| peer.is_in()).count();
            count * 100 < peers.len() * percent as usize
        };
        let panic_percent = self.rules.outlier.panic_percent;
        let field = Field {
            peers,
            tickets: &self.groups[group].tickets,
            ask,
            now,
            may_be_due: now >= self.look_at,
            slow_start: (now < self.ramping_until).then_some(self.rules.slow_start),
            is_panic: panic_percent > 0 && is_in_panic(panic_percent),
        };
        let table = self.groups[group].table.as_ref();
        let chosen = field.choose(self.rules.policy, table, draw)?;
        if self.rules.policy == Policy::RoundRobin {
            let stride = STRIDE / field.share(&peers[chosen]).max(1);
            let peer = &mut self.peers[start + chosen];
            peer.turn = peer.turn.saturating_add(stride);
        }
        Some(start + chosen)
    }

    /// Reports how a picked request went.
    pub fn finish(&mut self, pick: Pick, outcome: Outcome, now: Duration) -> Effect {
        let Some(at) = self.place(pick.peer) else { return Effect::None };
        let peer = &mut self.peers[at];
        peer.in_flight = peer.in_flight.saturating_sub(1);
        match outcome {
            Outcome::Answered(latency) => {
                peer.latency.observe(latency, now);
                peer.took();
                self.answered(at, pick, None, now)
            }
            Outcome::Began(latency) => {
                peer.latency.observe(latency, now);
                peer.took();
                peer.failures = 0;
                match peer.is_in() {
                    true => Effect::None,
                    false => self.answered(at, pick, None, now),
                }
            }
            Outcome::Erred(_, Fault::Busy) => {
                peer.refused(now);
                self.answered(at, pick, Some(Fault::Busy), now)
            }
            Outcome::Erred(latency, fault) => {
                peer.latency.observe(latency, now);
                self.answered(at, pick, Some(fault), now)
            }
            Outcome::Unreachable => self.unreachable(at, pick, now),
            Outcome::Failed => self.failed(at, pick, now),
            Outcome::Unknown => {
                if pick.is_probe && peer.standing == Standing::Probing {
                    peer.standing = Standing::OutUntil(now);
                    self.look_at = self.look_at.min(now);
                }
                Effect::None
            }
        }
    }

    /// Reports how an answer ended that was [`Outcome::Began`]: `fault` where it was an error after
    /// all, as gRPC says at the end.
    pub fn concluded(&mut self, pick: Pick, fault: Option<Fault>, now: Duration) -> Effect {
        let Some(at) = self.place(pick.peer) else { return Effect::None };
        if fault == Some(Fault::Busy) {
            self.peers[at].refused(now);
        }
        // Whether it is back, its first bytes have said.
        self.answered(at, Pick { is_probe: false, ..pick }, fault, now)
    }

    /// Counts something that stays open beyond its [`Balancer::finish`], such as a TCP connection.
    pub fn open(&mut self, peer: PeerId) {
        if let Some(at) = self.place(peer) {
            self.peers[at].in_flight = self.peers[at].in_flight.saturating_add(1);
        }
    }

    /// Counts the end of what [`Balancer::open`] counted.
    pub fn close(&mut self, peer: PeerId) {
        if let Some(at) = self.place(peer) {
            self.peers[at].in_flight = self.peers[at].in_flight.saturating_sub(1);
        }
    }

    fn place(&self, peer: PeerId) -> Option<usize> {
        self.places.get(&peer).copied()
    }

    fn take(&mut self, at: usize) -> Pick {
        let peer = &mut self.peers[at];
        peer.in_flight = peer.in_flight.saturating_add(1);
        let is_probe = !peer.is_in();
        if is_probe {
            peer.standing = Standing::Probing;
        }
        let (id, address) = (peer.id, peer.key.3);
        Pick { peer: id, address, is_probe, group: self.group_at(at) }
    }

    fn group_of(&self, at: usize) -> std::ops::Range<usize> {
        self.members(self.group_at(at))
    }

    fn members(&self, group: usize) -> std::ops::Range<usize> {
        let start = if group == 0 { 0 } else { self.groups[group - 1].end };
        start..self.groups[group].end
    }

    fn group_at(&self, at: usize) -> usize {
        self.groups.partition_point(|group| group.end <= at)
    }
}

/// The table that leads hashes to `peers`, where the policy hashes. Addresses do not count: an
/// instance that moves keeps what hashes to it.
fn table_of(policy: Policy, peers: &[Peer]) -> Option<table::Table> {
    let Policy::Hash(hashing) = policy else { return None };
    let name = |peer: &Peer| {
        let (target, node, instance, _) = &peer.key;
        let cluster = target.peer.as_ref().map_or("", |peer| peer.as_str());
        let parts = [target.service.as_str(), cluster, node.as_str(), instance.as_str()];
        parts.iter().fold(0, |hash, part| hash::of(hash, part.as_bytes()))
    };
    let members: Vec<(u64, u16)> = peers.iter().map(|peer| (name(peer), peer.weight)).collect();
    Some(table::Table::build(hashing.table, &members))
}

/// How long an ejected instance waits for a request that can be tried again elsewhere.
const PROBE_OVERDUE: Duration = Duration::from_secs(2);
/// What a turn costs an instance of weight one hundredth.
const STRIDE: u64 = 1 << 24;
