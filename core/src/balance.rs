//! The balancer: which instance takes the next request, and which are out for a while.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::entry::Target;
use crate::name::{InstanceId, NodeName};
use crate::route::Group;

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
    /// It answered after this long, whatever it said.
    Answered(Duration),
    /// It did not answer: connect failure, reset, timeout, or its proxy could not serve.
    Failed,
    /// There is no way to its target now, whichever instance is picked: no gateway could be
    /// reached. All of the target's instances are out at once.
    Unreachable,
    /// Nobody waited for the answer.
    Unknown,
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
/// Two candidates are drawn by weight and the one with the lower cost wins; cost is the peak-EWMA
/// latency times one more than the requests in flight, times the square of one more than the
/// failures in a row. Five failures in a row eject an instance
/// for a second, doubling up to a minute; then one request decides whether it comes back. At most
/// half of a group is out at once, at least one may be, and the last one only while another group
/// can take the load. A group whose instances are all out or tried hands over to the next.
///
/// A target that had no instance in, while another had, settles when it gets one: for a while it is
/// used only where no other can be. The while doubles if the target soon goes and comes again, so
/// that one which flaps does not swing the traffic.
#[derive(Clone, Debug, Default)]
pub struct Balancer {
    peers: Vec<Peer>,
    groups: Vec<Span>,
    settling: BTreeMap<Target, Settling>,
    next_id: u64,
}

/// One group among `Balancer::peers`.
#[derive(Clone, Debug)]
struct Span {
    /// Where it ends; it begins where the one before ends.
    end: usize,
    target: Target,
    /// Until when its target settles.
    ready_at: Duration,
}

/// How a target came back the last time.
#[derive(Clone, Copy, Debug)]
struct Settling {
    since: Duration,
    span: Duration,
}

#[derive(Clone, Debug)]
struct Peer {
    id: PeerId,
    key: Key,
    weight: u16,
    in_flight: u32,
    latency: Ewma,
    failures: u32,
    /// How often it was ejected since it last answered.
    ejections: u32,
    standing: Standing,
    /// Whether it is out with its whole target, and comes back with it.
    is_cut_off: bool,
}

/// Two clusters may use the same names and addresses.
type Key = (Target, NodeName, InstanceId, SocketAddr);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    In,
    OutUntil(Duration),
    Probing,
}

impl Balancer {
    /// Takes over the groups of a new route. What is known of instances that stay is kept.
    pub fn update(&mut self, groups: &[Group<'_>], now: Duration) {
        let was_usable: BTreeMap<Target, bool> = self.usable_targets();
        let mut known: BTreeMap<_, Peer> =
            self.peers.drain(..).map(|peer| (peer.key.clone(), peer)).collect();
        self.groups.clear();
        for group in groups {
            for (endpoint, weight) in &group.endpoints {
                let Some(address) = endpoint.mesh else { continue };
                let (node, instance) = (endpoint.node.clone(), endpoint.instance.clone());
                let key = (group.target.clone(), node, instance, address);
                let peer = known.remove(&key).unwrap_or_else(|| {
                    self.next_id += 1;
                    Peer {
                        id: PeerId(self.next_id),
                        key,
                        weight: *weight,
                        in_flight: 0,
                        latency: Ewma::new(now),
                        failures: 0,
                        ejections: 0,
                        standing: Standing::In,
                        is_cut_off: false,
                    }
                });
                self.peers.push(Peer { weight: (*weight).max(1), ..peer });
            }
            let (end, target) = (self.peers.len(), group.target.clone());
            self.groups.push(Span { end, target, ready_at: Duration::ZERO });
        }
        let had_another =
            |target: &Target| was_usable.iter().any(|(other, usable)| *usable && other != target);
        for (target, is_usable) in self.usable_targets() {
            let was_usable = was_usable.get(&target).copied().unwrap_or_default();
            if is_usable && !was_usable && had_another(&target) {
                self.settle(&target, now);
            }
        }
        let settling = &self.settling;
        for group in &mut self.groups {
            let settling = settling.get(&group.target);
            group.ready_at = settling.map_or(Duration::ZERO, |it| it.since + it.span);
        }
        self.settling.retain(|target, it| {
            now.saturating_sub(it.since) < SETTLING_REMEMBERED
                || groups.iter().any(|group| group.target == *target)
        });
    }

    /// Each target, and whether an instance of it is in.
    fn usable_targets(&self) -> BTreeMap<Target, bool> {
        let mut usable = BTreeMap::new();
        for peer in &self.peers {
            *usable.entry(peer.key.0.clone()).or_default() |= peer.standing == Standing::In;
        }
        usable
    }

    /// Holds traffic to `target` back for a while, longer if it came back not long ago.
    fn settle(&mut self, target: &Target, now: Duration) {
        let last = self.settling.get(target);
        let soon = last.filter(|last| now.saturating_sub(last.since) < SETTLING_REMEMBERED);
        let span = soon.map_or(SETTLING_FIRST, |last| (last.span * 2).min(SETTLING_MAX));
        self.settling.insert(target.clone(), Settling { since: now, span });
        for group in self.groups.iter_mut().filter(|group| group.target == *target) {
            group.ready_at = now + span;
        }
    }

    /// The instances that it knows: those of the last update, in its order.
    pub fn peers(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.peers.iter().map(|peer| peer.id)
    }

    /// Whether an instance that is not in `tried` is in: only then is it worth giving up a slow one.
    pub fn has_other(&self, tried: &[PeerId]) -> bool {
        self.peers.iter().any(|peer| peer.standing == Standing::In && !tried.contains(&peer.id))
    }

    /// How many instances are out.
    pub fn ejected(&self) -> usize {
        self.peers.iter().filter(|peer| peer.standing != Standing::In).count()
    }

    /// Picks an instance that is not in `tried`, and counts a request in flight to it.
    ///
    /// `may_probe` says whether the request can be tried again elsewhere, so that it may be the one
    /// which finds out whether an ejected instance answers again; one that is long overdue is
    /// probed with any request. `draw` yields uniformly distributed numbers. None when every
    /// instance was tried or none exists.
    pub fn pick(
        &mut self,
        now: Duration,
        tried: &[PeerId],
        may_probe: bool,
        mut draw: impl FnMut() -> u64,
    ) -> Option<Pick> {
        // A target that settles is for when no other can.
        for may_settle in [false, true] {
            let mut start = 0;
            for group in 0..self.groups.len() {
                let Span { end, ready_at, .. } = self.groups[group];
                let range = std::mem::replace(&mut start, end)..end;
                if (now < ready_at) != may_settle {
                    continue;
                }
                if let Some(at) = self.pick_in(range, now, tried, may_probe, &mut draw) {
                    return Some(self.take(at));
                }
            }
        }
        // Everything left is out: the one that comes back soonest is better than a refusal.
        let soonest = (0..self.peers.len())
            .filter(|at| !tried.contains(&self.peers[*at].id))
            .min_by_key(|at| match self.peers[*at].standing {
                Standing::OutUntil(until) => until,
                Standing::In | Standing::Probing => Duration::MAX,
            })?;
        Some(self.take(soonest))
    }

    /// Reports how a picked request went.
    pub fn finish(&mut self, pick: Pick, outcome: Outcome, now: Duration) -> Effect {
        let Some(at) = self.peers.iter().position(|peer| peer.id == pick.peer) else {
            return Effect::None;
        };
        let peer = &mut self.peers[at];
        peer.in_flight = peer.in_flight.saturating_sub(1);
        match outcome {
            Outcome::Answered(latency) => {
                peer.latency.observe(latency, now);
                peer.failures = 0;
                let was_out = peer.standing != Standing::In;
                // A late answer of before the ejection is no proof; the probe's is.
                if was_out && !pick.is_probe {
                    return Effect::None;
                }
                peer.ejections = 0;
                peer.standing = Standing::In;
                if was_out {
                    self.returned(at, now);
                    self.reconnect(at);
                    Effect::Returned
                } else {
                    Effect::None
                }
            }
            Outcome::Unreachable => match peer.standing {
                Standing::In => self.cut_off(at, now),
                Standing::Probing if pick.is_probe => self.cut_off(at, now),
                // The others that were under way say nothing new.
                Standing::Probing | Standing::OutUntil(_) => Effect::None,
            },
            Outcome::Failed => {
                peer.failures = peer.failures.saturating_add(1);
                let is_due = match peer.standing {
                    Standing::In => peer.failures >= FAILURES_TO_EJECT,
                    Standing::Probing => pick.is_probe,
                    Standing::OutUntil(_) => false,
                };
                match (is_due, peer.is_cut_off) {
                    (true, true) => self.cut_off(at, now),
                    (true, false) => self.eject(at, now),
                    (false, _) => Effect::None,
                }
            }
            Outcome::Unknown => {
                if pick.is_probe && peer.standing == Standing::Probing {
                    peer.standing = Standing::OutUntil(now);
                }
                Effect::None
            }
        }
    }

    /// Counts something that stays open beyond its [`Balancer::finish`], such as a TCP connection.
    pub fn open(&mut self, peer: PeerId) {
        if let Some(peer) = self.peers.iter_mut().find(|known| known.id == peer) {
            peer.in_flight = peer.in_flight.saturating_add(1);
        }
    }

    /// Counts the end of what [`Balancer::open`] counted.
    pub fn close(&mut self, peer: PeerId) {
        if let Some(peer) = self.peers.iter_mut().find(|known| known.id == peer) {
            peer.in_flight = peer.in_flight.saturating_sub(1);
        }
    }

    fn pick_in(
        &self,
        group: std::ops::Range<usize>,
        now: Duration,
        tried: &[PeerId],
        may_probe: bool,
        draw: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        let peers = &self.peers[group.clone()];
        let is_due = |peer: &Peer| match peer.standing {
            Standing::OutUntil(until) => {
                now >= until && (may_probe || now.saturating_sub(until) >= PROBE_OVERDUE)
            }
            Standing::In | Standing::Probing => false,
        };
        let is_new = |peer: &Peer| tried.is_empty() || !tried.contains(&peer.id);
        if let Some(at) = peers.iter().position(|peer| is_due(peer) && is_new(peer)) {
            return Some(group.start + at);
        }
        let candidate = |peer: &&Peer| peer.standing == Standing::In && is_new(peer);
        let total: u64 = peers.iter().filter(candidate).map(|peer| u64::from(peer.weight)).sum();
        if total == 0 {
            return None;
        }
        let at = |mut ticket: u64| {
            let hit = |(_, peer): &(usize, &Peer)| {
                let weight = u64::from(peer.weight);
                let is_hit = ticket < weight;
                ticket = ticket.saturating_sub(weight);
                is_hit
            };
            let found = peers.iter().enumerate().filter(|(_, peer)| candidate(peer)).find(hit);
            found.map(|(at, _)| at)
        };
        let first = at(draw() % total)?;
        let left = total - u64::from(peers[first].weight);
        if left == 0 {
            return Some(group.start + first);
        }
        // The second is drawn from the others, so that two instances are always compared.
        let mut ticket = draw() % left;
        let before: u64 =
            peers[..first].iter().filter(candidate).map(|peer| u64::from(peer.weight)).sum();
        if ticket >= before {
            ticket += u64::from(peers[first].weight);
        }
        let second = at(ticket)?;
        let cheaper = if peers[second].cost(now) < peers[first].cost(now) { second } else { first };
        Some(group.start + cheaper)
    }

    fn take(&mut self, at: usize) -> Pick {
        let peer = &mut self.peers[at];
        peer.in_flight = peer.in_flight.saturating_add(1);
        let is_probe = peer.standing != Standing::In;
        if is_probe {
            peer.standing = Standing::Probing;
        }
        let (id, address) = (peer.id, peer.key.3);
        Pick { peer: id, address, is_probe, group: self.group_at(at) }
    }

    fn eject(&mut self, at: usize, now: Duration) -> Effect {
        let group = self.group_of(at);
        let others_out = |range: std::ops::Range<usize>| {
            range.filter(|i| *i != at && self.peers[*i].standing != Standing::In).count()
        };
        let (size, out) = (group.len(), others_out(group.clone()));
        let is_last_here = out + 1 == size;
        let another_group_can = (0..self.peers.len())
            .any(|i| !group.contains(&i) && self.peers[i].standing == Standing::In);
        let is_within_cap = out < (size / 2).max(1);
        let peer = &mut self.peers[at];
        if !is_within_cap || (is_last_here && !another_group_can) {
            peer.standing = Standing::In;
            return Effect::None;
        }
        let span = ejection(peer.ejections);
        peer.ejections = peer.ejections.saturating_add(1);
        peer.standing = Standing::OutUntil(now.saturating_add(span));
        Effect::Ejected(span)
    }

    /// Lets the target of an instance that came back settle, if it is the first to.
    fn returned(&mut self, at: usize, now: Duration) {
        let target = self.peers[at].key.0.clone();
        let usable = |peer: &Peer| peer.standing == Standing::In;
        let mut others =
            self.peers.iter().enumerate().filter(|(other, peer)| *other != at && usable(peer));
        let (mut here, mut elsewhere) = (false, false);
        others.by_ref().for_each(
            |(_, peer)| {
                if peer.key.0 == target { here = true } else { elsewhere = true }
            },
        );
        if !here && elsewhere {
            self.settle(&target, now);
        }
    }

    /// Ejects every instance of the target that the one at `at` is of.
    fn cut_off(&mut self, at: usize, now: Duration) -> Effect {
        let (target, times) = (self.peers[at].key.0.clone(), self.peers[at].ejections);
        let span = ejection(times);
        let until = now.saturating_add(span);
        for (other, peer) in self.peers.iter_mut().enumerate() {
            if peer.key.0 != target {
                continue;
            }
            peer.standing = match peer.standing {
                // What was out by itself before comes back by itself.
                Standing::OutUntil(own) if other != at && !peer.is_cut_off => {
                    Standing::OutUntil(own.max(until))
                }
                _ => {
                    peer.is_cut_off = true;
                    peer.ejections = peer.ejections.max(times.saturating_add(1));
                    Standing::OutUntil(until)
                }
            };
        }
        Effect::Ejected(span)
    }

    /// Brings back all that was cut off with the one at `at`.
    fn reconnect(&mut self, at: usize) {
        if !std::mem::take(&mut self.peers[at].is_cut_off) {
            return;
        }
        let target = self.peers[at].key.0.clone();
        for peer in self.peers.iter_mut().filter(|peer| peer.key.0 == target) {
            if std::mem::take(&mut peer.is_cut_off) {
                peer.ejections = 0;
                peer.standing = Standing::In;
            }
        }
    }

    fn group_of(&self, at: usize) -> std::ops::Range<usize> {
        let group = self.group_at(at);
        let start = if group == 0 { 0 } else { self.groups[group - 1].end };
        start..self.groups[group].end
    }

    fn group_at(&self, at: usize) -> usize {
        self.groups.partition_point(|group| group.end <= at)
    }
}

impl Peer {
    fn cost(&self, now: Duration) -> f64 {
        let failures = f64::from(self.failures.min(FAILURES_WEIGHED) + 1);
        self.latency.at(now) * f64::from(self.in_flight + 1) * failures * failures
    }
}

/// How long an instance is out that was out `times` before in a row.
fn ejection(times: u32) -> Duration {
    EJECTION_FIRST.saturating_mul(1 << times.min(16)).min(EJECTION_MAX)
}

/// Latency in seconds that rises at once and falls slowly.
#[derive(Clone, Copy, Debug)]
struct Ewma {
    value: f64,
    stamp: Duration,
}

impl Ewma {
    fn new(now: Duration) -> Self {
        Self { value: LATENCY_START.as_secs_f64(), stamp: now }
    }

    fn at(&self, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.stamp);
        // Below a millisecond the decay is under 0.01 %: not worth an exponential a request.
        if passed < Duration::from_millis(1) {
            return self.value;
        }
        self.value * (-passed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }

    fn observe(&mut self, latency: Duration, now: Duration) {
        let latency = latency.as_secs_f64();
        if latency > self.value {
            *self = Self { value: latency, stamp: now };
            return;
        }
        let keep = (-now.saturating_sub(self.stamp).as_secs_f64() / DECAY.as_secs_f64()).exp();
        *self = Self { value: self.value * keep + latency * (1.0 - keep), stamp: now };
    }
}

/// Linkerd's decay and start.
const DECAY: Duration = Duration::from_secs(10);
const LATENCY_START: Duration = Duration::from_millis(30);
/// Failures in a row weigh quadratically, up to this many, so that failing fast attracts no load.
const FAILURES_WEIGHED: u32 = 50;
const FAILURES_TO_EJECT: u32 = 5;
const EJECTION_FIRST: Duration = Duration::from_secs(1);
const EJECTION_MAX: Duration = Duration::from_secs(60);
/// How long an ejected instance waits for a request that can be tried again elsewhere.
const PROBE_OVERDUE: Duration = Duration::from_secs(2);
const SETTLING_FIRST: Duration = Duration::from_secs(5);
const SETTLING_MAX: Duration = Duration::from_secs(60);
/// Coming back again within this is flapping.
const SETTLING_REMEMBERED: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::catalog::{Endpoint, Locality, Weights};
    use crate::entry::GatewayMode;
    use crate::health::Status;
    use crate::route::Nearness;

    fn endpoints(count: u16) -> Vec<Endpoint> {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        (0..count)
            .map(|n| Endpoint {
                node: format!("n{n}").parse().expect("a name"),
                instance: format!("i{n}").parse().expect("an id"),
                address,
                has_own_address: false,
                port: n,
                mesh: Some(SocketAddr::new(address, n)),
                locality: Locality::default(),
                tags: BTreeSet::new(),
                weights: Weights::default(),
                status: Status::Passing,
            })
            .collect()
    }

    fn target(peer: &str) -> Target {
        let peer = (!peer.is_empty()).then(|| peer.parse().expect("a name"));
        Target { service: "web".parse().expect("a name"), peer }
    }

    fn group<'a>(peer: &str, endpoints: &'a [Endpoint]) -> Group<'a> {
        Group {
            target: target(peer),
            gateway_mode: GatewayMode::Default,
            nearness: Nearness::Zone,
            endpoints: endpoints.iter().map(|endpoint| (endpoint, 1)).collect(),
        }
    }

    fn balancer(endpoints: &[Endpoint], sizes: &[usize]) -> Balancer {
        let mut rest = endpoints;
        let mut groups = Vec::new();
        for size in sizes {
            let (members, others) = rest.split_at(*size);
            rest = others;
            groups.push(group("", members));
        }
        let mut balancer = Balancer::default();
        balancer.update(&groups, Duration::ZERO);
        balancer
    }

    /// SplitMix64: enough for draws, and the same everywhere.
    fn draws(mut seed: u64) -> impl FnMut() -> u64 {
        move || {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }
    }

    fn at(secs: f64) -> Duration {
        Duration::from_secs_f64(secs)
    }

    /// Fails requests to `port` until nothing changes, and says what ejected it.
    fn fail(balancer: &mut Balancer, port: u16, times: u32, now: Duration) -> Effect {
        let mut last = Effect::None;
        for _ in 0..times {
            let at = balancer.peers.iter().position(|p| p.key.3.port() == port).expect("known");
            let pick = balancer.take(at);
            last = balancer.finish(pick, Outcome::Failed, now);
        }
        last
    }

    #[test]
    fn five_failures_in_a_row_eject_and_one_good_probe_returns() {
        let all = endpoints(3);
        let mut balancer = balancer(&all, &[3]);
        let mut draw = draws(1);
        assert_eq!(fail(&mut balancer, 0, 4, at(0.0)), Effect::None);
        assert_eq!(fail(&mut balancer, 0, 1, at(0.0)), Effect::Ejected(EJECTION_FIRST));
        for _ in 0..100 {
            let pick = balancer.pick(at(0.5), &[], true, &mut draw).expect("two are in");
            assert_ne!(pick.address.port(), 0);
            balancer.finish(pick, Outcome::Answered(at(0.001)), at(0.5));
        }
        let not_yet = balancer.pick(at(1.5), &[], false, &mut draw).expect("two are in");
        assert_ne!(not_yet.address.port(), 0, "a request that cannot be repeated does not probe");
        let probe = balancer.pick(at(1.5), &[], true, &mut draw).expect("due");
        assert_eq!((probe.address.port(), probe.is_probe), (0, true));
        let other = balancer.pick(at(1.5), &[], true, &mut draw).expect("two are in");
        assert_ne!(other.address.port(), 0, "one probe at a time");
        let failed = balancer.finish(probe, Outcome::Failed, at(1.5));
        assert_eq!(failed, Effect::Ejected(EJECTION_FIRST * 2), "the wait doubles");
        let probe = balancer.pick(at(3.6), &[], true, &mut draw).expect("due");
        assert_eq!((probe.address.port(), probe.is_probe), (0, true));
        let good = balancer.finish(probe, Outcome::Answered(at(0.001)), at(3.6));
        assert_eq!(good, Effect::Returned);
        assert_eq!(balancer.ejected(), 0);
    }

    #[test]
    fn the_cap_is_half_but_at_least_one_and_never_the_last_without_a_substitute() {
        let cases: &[(&[usize], &[u16], usize, &str)] = &[
            (&[1], &[0], 0, "a lone instance stays"),
            (&[2], &[0, 1], 1, "one of two"),
            (&[3], &[0, 1, 2], 1, "half of three is one"),
            (&[4], &[0, 1, 2, 3], 2, "half of four"),
            (&[1, 1], &[0], 1, "another group can take the load"),
            (&[1, 1], &[0, 1], 1, "but not when it is the last of all"),
        ];
        for (sizes, failing, expected, why) in cases {
            let all = endpoints(sizes.iter().sum::<usize>() as u16);
            let mut balancer = balancer(&all, sizes);
            for port in *failing {
                fail(&mut balancer, *port, 20, at(0.0));
            }
            assert_eq!(balancer.ejected(), *expected, "{why}");
        }
    }

    #[test]
    fn a_group_without_an_available_instance_hands_over() {
        let all = endpoints(3);
        let mut balancer = balancer(&all, &[1, 2]);
        let mut draw = draws(2);
        let first = balancer.pick(at(0.0), &[], true, &mut draw).expect("three are in");
        assert_eq!(first.address.port(), 0, "the nearest group first");
        let second = balancer.pick(at(0.0), &[first.peer], true, &mut draw).expect("two left");
        assert_ne!(second.address.port(), 0, "what was tried is not tried again");
        let third =
            balancer.pick(at(0.0), &[first.peer, second.peer], true, &mut draw).expect("one left");
        let tried = [first.peer, second.peer, third.peer];
        assert!(balancer.has_other(&tried[..2]) && !balancer.has_other(&tried));
        assert_eq!(balancer.pick(at(0.0), &tried, true, &mut draw), None);
    }

    #[test]
    fn load_follows_latency_and_weight() {
        let all = endpoints(2);
        let groups = [group("", &all[..2])];
        let mut balancer = Balancer::default();
        balancer.update(&groups, at(0.0));
        let mut draw = draws(3);
        let mut counts = [0_u32; 2];
        for n in 0..1_000 {
            let now = at(f64::from(n) * 0.01);
            let pick = balancer.pick(now, &[], true, &mut draw).expect("in");
            let port = usize::from(pick.address.port());
            counts[port] += 1;
            let latency = if port == 0 { 0.005 } else { 0.200 };
            balancer.finish(pick, Outcome::Answered(at(latency)), now);
        }
        assert!(counts[0] > 9 * counts[1], "the slow one takes little: {counts:?}");
    }

    #[test]
    fn failing_fast_attracts_no_load() {
        let all = endpoints(2);
        let mut balancer = balancer(&all, &[2]);
        let mut draw = draws(4);
        let mut failed = 0_u32;
        for n in 0..1_000 {
            let now = at(f64::from(n) * 0.001);
            let pick = balancer.pick(now, &[], true, &mut draw).expect("in");
            let is_bad = pick.address.port() == 0;
            failed += u32::from(is_bad);
            let good = Outcome::Answered(at(0.005));
            balancer.finish(pick, if is_bad { Outcome::Failed } else { good }, now);
        }
        assert!(failed <= 10, "{failed} of 1,000 went to an instance that fails at once");
    }

    #[test]
    fn what_is_known_of_an_instance_outlives_a_new_route() {
        let all = endpoints(3);
        let mut balancer = balancer(&all, &[3]);
        fail(&mut balancer, 1, 5, at(0.0));
        let before: Vec<_> = balancer.peers().collect();
        balancer.update(&[group("", &all[1..])], at(0.1));
        assert_eq!(balancer.peers().collect::<Vec<_>>(), before[1..]);
        assert_eq!(balancer.ejected(), 1);
    }

    #[test]
    fn a_target_that_comes_back_settles_and_longer_if_it_flaps() {
        let all = endpoints(4);
        let (own, west) = all.split_at(2);
        let (both, only_west) = ([group("", own), group("west", west)], [group("west", west)]);
        let mut balancer = Balancer::default();
        let mut draw = draws(7);
        let mut group_at = |balancer: &mut Balancer, now: f64| {
            let pick = balancer.pick(at(now), &[], true, &mut draw).expect("one can");
            balancer.finish(pick, Outcome::Answered(at(0.001)), at(now));
            if pick.address.port() < 2 { "own" } else { "west" }
        };
        balancer.update(&both, at(0.0));
        assert_eq!(group_at(&mut balancer, 0.0), "own", "at the start nothing settles");
        balancer.update(&only_west, at(10.0));
        assert_eq!(group_at(&mut balancer, 10.0), "west");
        balancer.update(&both, at(20.0));
        assert_eq!(group_at(&mut balancer, 20.0), "west", "it settles");
        assert_eq!(group_at(&mut balancer, 24.9), "west", "it still does");
        assert_eq!(group_at(&mut balancer, 25.1), "own", "it has settled");
        balancer.update(&only_west, at(30.0));
        balancer.update(&both, at(31.0));
        assert_eq!(group_at(&mut balancer, 40.9), "west", "twice as long, for it flaps");
        balancer.update(&both, at(40.95));
        assert_eq!(group_at(&mut balancer, 41.1), "own", "another update changes nothing");
        balancer.update(&only_west, at(50.0));
        balancer.update(&both, at(51.0));
        balancer.update(&[group("", own)], at(52.0));
        assert_eq!(group_at(&mut balancer, 52.0), "own", "nothing else can");
    }

    #[test]
    fn a_target_to_which_there_is_no_way_is_out_at_once_and_comes_back_by_a_probe() {
        let all = endpoints(4);
        let mut balancer = Balancer::default();
        balancer.update(&[group("east", &all[..2]), group("west", &all[2..])], at(0.0));
        let mut draw = draws(9);
        let pick = balancer.pick(at(0.0), &[], true, &mut draw).expect("all are in");
        assert_eq!(pick.group, 0);
        assert_eq!(
            balancer.finish(pick, Outcome::Unreachable, at(0.0)),
            Effect::Ejected(EJECTION_FIRST)
        );
        for _ in 0..20 {
            let pick = balancer.pick(at(0.5), &[], true, &mut draw).expect("two are in");
            assert_eq!(pick.group, 1);
            balancer.finish(pick, Outcome::Answered(at(0.001)), at(0.5));
        }
        let probe = balancer.pick(at(1.1), &[], true, &mut draw).expect("one is due");
        assert!(probe.is_probe && probe.group == 0);
        assert_eq!(balancer.finish(probe, Outcome::Answered(at(0.001)), at(1.1)), Effect::Returned);
        let second = balancer.pick(at(1.2), &[], false, &mut draw).expect("it settles");
        assert_eq!(second.group, 1);
        let later = balancer.pick(at(6.2), &[], false, &mut draw).expect("it has settled");
        assert_eq!(later.group, 0);
    }

    #[test]
    fn what_was_cut_off_together_comes_back_together() {
        let all = endpoints(4);
        let mut balancer = Balancer::default();
        balancer.update(&[group("east", &all[..3]), group("west", &all[3..])], at(0.0));
        let mut draw = draws(3);
        let mut pick = |balancer: &mut Balancer, now| {
            balancer.pick(at(now), &[], true, &mut draw).expect("one is in")
        };
        let picks: Vec<_> = (0..5).map(|_| pick(&mut balancer, 0.0)).collect();
        let effects: Vec<_> = picks
            .into_iter()
            .map(|pick| balancer.finish(pick, Outcome::Unreachable, at(0.0)))
            .collect();
        assert_eq!(effects[0], Effect::Ejected(EJECTION_FIRST));
        assert!(
            effects[1..].iter().all(|it| *it == Effect::None),
            "one cut, not five: {effects:?}"
        );
        let probe = pick(&mut balancer, 1.0);
        assert!(probe.is_probe);
        let again = balancer.finish(probe, Outcome::Failed, at(1.0));
        assert_eq!(again, Effect::Ejected(EJECTION_FIRST * 2), "no instance comes back alone");
        assert_eq!(balancer.ejected(), 3);
        let probe = pick(&mut balancer, 3.0);
        balancer.finish(probe, Outcome::Answered(at(0.001)), at(3.0));
        assert_eq!(balancer.ejected(), 0);
    }

    /// Random histories: an ejected instance is never picked while another is available, and the
    /// last available one is never ejected.
    #[test]
    fn no_history_breaks_the_rules_of_ejection() {
        for seed in 0..200 {
            let mut draw = draws(seed);
            let sizes: Vec<usize> =
                (0..1 + draw() % 3).map(|_| 1 + (draw() % 4) as usize).collect();
            let all = endpoints(sizes.iter().sum::<usize>() as u16);
            let mut balancer = balancer(&all, &sizes);
            let bad = draw();
            let mut now = Duration::ZERO;
            let mut open: Vec<Pick> = Vec::new();
            for step in 0..500 {
                now += Duration::from_millis(draw() % 200);
                if draw().is_multiple_of(3) && !open.is_empty() {
                    let pick = open.swap_remove(draw() as usize % open.len());
                    let outcome = match (bad >> (pick.address.port() % 64)) & 1 {
                        _ if draw().is_multiple_of(10) => Outcome::Unknown,
                        1 => Outcome::Failed,
                        _ => Outcome::Answered(Duration::from_millis(draw() % 50)),
                    };
                    balancer.finish(pick, outcome, now);
                } else if open.len() < 32 {
                    let may_probe = draw().is_multiple_of(2);
                    let before = balancer.clone();
                    let pick =
                        balancer.pick(now, &[], may_probe, &mut draw).expect("nothing was tried");
                    let peer =
                        before.peers.iter().find(|p| p.id == pick.peer).expect("it is known");
                    let is_due = matches!(peer.standing, Standing::OutUntil(until) if now >= until);
                    assert!(
                        peer.standing == Standing::In || is_due,
                        "seed {seed} step {step}: picked {peer:?} at {now:?}"
                    );
                    open.push(pick);
                }
                let is_in = balancer.peers.iter().filter(|p| p.standing == Standing::In).count();
                assert!(is_in > 0, "seed {seed} step {step}: the last one was ejected");
            }
        }
    }
}
