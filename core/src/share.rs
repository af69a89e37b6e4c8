//! Shares: how the servers divide a rate among the instances of a service that count it together.
//!
//! The leader keeps a [`Book`] in memory and leases shares whose sum is never more than the whole.
//! An instance without a lease takes the fair share: the whole, divided by how many instances it
//! knows of ([`fair_ppm`]).
//!
//! **Bound.** All instances together let through no more than the rate allows, plus its burst, plus
//! one request for each instance; and for each time that an instance begins, or loses the servers,
//! its fair share of the rate for [`UNSETTLED`] and of the burst once (of a caller's rate also for
//! each instance that it begins to call). A leader's change adds nothing. An instance that the catalog counts as dead while it serves adds its fair share for as
//! long as that lasts. `core/tests/share.rs` draws faults and holds it to that.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::name::{InstanceId, NodeName, ServiceName};

/// Parts of the whole.
pub const WHOLE_PPM: u32 = 1_000_000;

/// How long a lease holds: for who holds it, since it asked.
pub const LEASE: Duration = Duration::from_secs(5);

/// The longest that an instance which began, or lost the servers, goes uncounted.
pub const UNSETTLED: Duration = Duration::from_secs(10);

/// The share of each of `instances`, where nobody leases any.
pub fn fair_ppm(instances: usize) -> u32 {
    WHOLE_PPM / u32::try_from(instances.max(1)).unwrap_or(WHOLE_PPM).min(WHOLE_PPM)
}

/// One instance that takes part.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Holder {
    /// The node it runs on.
    pub node: NodeName,
    /// Its id there.
    pub instance: InstanceId,
}

/// What an instance says of one rate when it asks for a share.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ask {
    /// Whose rate: a caller's; none for that of all together.
    pub caller: Option<ServiceName>,
    /// What came lately, as parts of the whole rate; there may be more than that.
    pub demand_ppm: u64,
    /// What it holds now.
    pub holds: Option<Lease>,
}

/// A share, leased.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lease {
    /// Which lease; a later one has a greater number.
    pub id: u64,
    /// How much of the whole.
    pub share_ppm: u32,
}

/// What the leader leased to whom. A new leader begins with an empty one, see [`Book::new`].
#[derive(Debug)]
pub struct Book {
    began: Duration,
    next_id: u64,
    services: BTreeMap<ServiceName, Service>,
}

#[derive(Debug, Default)]
struct Service {
    heard: BTreeMap<Holder, Duration>,
    rates: BTreeMap<Option<ServiceName>, BTreeMap<Holder, Row>>,
}

/// What one instance has of one rate.
#[derive(Debug, Default)]
struct Row {
    demand_ppm: u64,
    /// When it asked last.
    asked: Duration,
    /// Whether it said that it holds a lease; else it takes its fair share.
    holds: bool,
    /// Leases that may be in force, the last one last.
    leases: Vec<(Lease, Duration)>,
}

impl Row {
    /// The most that it may take.
    fn counted(&self, fair: u32, now: Duration) -> u32 {
        let in_force = self.leases.iter().filter(|(_, until)| *until > now);
        let leased = in_force.map(|(lease, _)| lease.share_ppm).max();
        leased.max((!self.holds).then_some(fair)).unwrap_or(0)
    }

    /// Forgets what ended, and what `holds` took the place of.
    fn settle(&mut self, holds: Option<Lease>, now: Duration) {
        self.holds = holds.is_some();
        let is_known = |held: &Lease| self.leases.iter().any(|(lease, _)| lease.id == held.id);
        let since = holds.filter(is_known).map_or(0, |held| held.id);
        self.leases.retain(|(lease, until)| *until > now && lease.id >= since);
    }
}

impl Book {
    /// The book of a server that leads since `now`; `first_id` is greater than all before.
    ///
    /// For [`UNSETTLED`] it leases nobody more than he says that he holds: what the leader before
    /// leased has ended by then.
    pub fn new(first_id: u64, now: Duration) -> Self {
        Self { began: now, next_id: first_id, services: BTreeMap::new() }
    }

    /// Leases `holder` shares of the rates of `service` that it asks for, in the same order; none
    /// where it is to go on with what it has.
    ///
    /// `known` are the instances that the catalog takes for alive: those of them that do not ask
    /// are believed to take their fair share.
    pub fn lease(
        &mut self,
        service: &ServiceName,
        holder: &Holder,
        known: &[Holder],
        asks: &[Ask],
        now: Duration,
    ) -> Vec<Option<Lease>> {
        self.sweep(now);
        if !self.services.contains_key(service) && self.services.len() >= SERVICES_MAX {
            return vec![None; asks.len()];
        }
        let age = now.saturating_sub(self.began);
        let (listened, recovered) = (age >= LEASE, age >= UNSETTLED);
        let held = self.services.entry(service.clone()).or_default();
        held.heard.insert(holder.clone(), now);
        let silent = known.iter().filter(|other| !held.heard.contains_key(*other)).count();
        let instances = held.heard.len() + silent;
        let (fair, silent) = (fair_ppm(instances), if listened { silent } else { 0 });
        let kept = fair.saturating_mul(u32::try_from(silent).unwrap_or(u32::MAX));
        let capacity = WHOLE_PPM.saturating_sub(kept);
        let lease = |ask: &Ask| {
            let is_new = !held.rates.contains_key(&ask.caller);
            if is_new && held.rates.len() >= RATES_MAX {
                return None;
            }
            let rows = held.rates.entry(ask.caller.clone()).or_default();
            let row = rows.entry(holder.clone()).or_default();
            (row.demand_ppm, row.asked) = (ask.demand_ppm, now);
            row.settle(ask.holds, now);
            let division = Division::of(rows.values().map(|row| row.demand_ppm), capacity);
            let others = rows.iter().filter(|(other, _)| *other != holder);
            let others: u64 = others.map(|(_, row)| u64::from(row.counted(fair, now))).sum();
            let room =
                u64::from(if recovered { capacity } else { WHOLE_PPM }).saturating_sub(others);
            let claimed = ask.holds.map(|held| held.share_ppm);
            let wanted = match (recovered, claimed) {
                (false, None) => return None,
                (false, Some(claimed)) => division.of_one(ask.demand_ppm).min(claimed),
                (true, _) => division.of_one(ask.demand_ppm),
            };
            let share_ppm = u32::try_from(room).unwrap_or(WHOLE_PPM).min(wanted);
            let row = rows.get_mut(holder)?;
            // Who holds nothing goes on with its fair share until there is something to hold.
            if (claimed.is_none() && share_ppm < division.floor) || row.leases.len() >= LEASES_MAX {
                return None;
            }
            let lease = Lease { id: self.next_id, share_ppm };
            self.next_id += 1;
            row.leases.push((lease, now + LEASE));
            Some(lease)
        };
        asks.iter().map(lease).collect()
    }

    /// Forgets who was not heard of for as long as a lease holds.
    fn sweep(&mut self, now: Duration) {
        self.services.retain(|_, service| {
            service.heard.retain(|_, at| now.saturating_sub(*at) < LEASE);
            for rows in service.rates.values_mut() {
                rows.retain(|_, row| now.saturating_sub(row.asked) < LEASE);
            }
            service.rates.retain(|_, rows| !rows.is_empty());
            !service.heard.is_empty() || !service.rates.is_empty()
        });
    }
}

/// How one rate is divided: to each what it needs, as long as that lasts, and what is left evenly;
/// where it does not last, the greatest give. A tenth goes to all alike, for what may come.
struct Division {
    floor: u32,
    level: u64,
    spare: u64,
}

impl Division {
    fn of(demands: impl Iterator<Item = u64>, capacity: u32) -> Self {
        let mut demands: Vec<u64> = demands.collect();
        let count = u64::try_from(demands.len().max(1)).unwrap_or(u64::MAX);
        let floor = u64::from(capacity) / count / 10;
        demands.iter_mut().for_each(|demand| *demand = (*demand).max(floor));
        demands.sort_unstable();
        let (mut left, mut takers) = (u64::from(capacity), count);
        for demand in demands {
            let even = left / takers.max(1);
            if demand > even {
                return Self { floor: narrow(floor), level: even, spare: 0 };
            }
            left -= demand;
            takers -= 1;
        }
        Self { floor: narrow(floor), level: u64::MAX, spare: left / count }
    }

    fn of_one(&self, demand_ppm: u64) -> u32 {
        let needed = demand_ppm.max(self.floor.into()).min(self.level);
        narrow(needed.saturating_add(self.spare))
    }
}

fn narrow(ppm: u64) -> u32 {
    u32::try_from(ppm).unwrap_or(WHOLE_PPM).min(WHOLE_PPM)
}

const SERVICES_MAX: usize = 4_096;
/// A rate for all, a row for each caller that an entry may name, and callers that share a row.
const RATES_MAX: usize = 4_096;
/// Of one instance and rate: who asks each second has no more in force.
const LEASES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn division(demands: &[u64], capacity: u32) -> Vec<u32> {
        let division = Division::of(demands.iter().copied(), capacity);
        demands.iter().map(|demand| division.of_one(*demand)).collect()
    }

    #[test]
    fn each_gets_what_it_needs_and_the_greatest_give() {
        let cases: [(&[u64], u32, &[u32], &str); 6] = [
            (&[0, 0], WHOLE_PPM, &[500_000, 500_000], "nothing comes: evenly"),
            (&[700_000], WHOLE_PPM, &[1_000_000], "alone: all"),
            (&[600_000, 200_000], WHOLE_PPM, &[700_000, 300_000], "what is left evenly"),
            (&[900_000, 900_000], WHOLE_PPM, &[500_000, 500_000], "both give"),
            (&[9_000_000, 100_000], WHOLE_PPM, &[900_000, 100_000], "the greater gives"),
            (&[9_000_000, 0], WHOLE_PPM, &[950_000, 50_000], "a little for who is quiet"),
        ];
        for (demands, capacity, expected, why) in cases {
            assert_eq!(division(demands, capacity), expected, "{why}");
        }
    }

    fn holder(n: usize) -> Holder {
        Holder {
            node: format!("n{n}").parse().expect("a name"),
            instance: "db".parse().expect("an id"),
        }
    }

    struct Servers {
        book: Book,
        known: Vec<Holder>,
        held: Vec<Option<Lease>>,
    }

    impl Servers {
        fn new(instances: usize) -> Self {
            let known = (0..instances).map(holder).collect();
            let book = Book::new(1, Duration::ZERO);
            Self { book, known, held: vec![None; instances] }
        }

        /// Instance `n` asks, `demand_percent` of the whole came to it.
        fn ask(&mut self, n: usize, demand_percent: u64, secs: u64) -> Option<u32> {
            let asks =
                [Ask { caller: None, demand_ppm: demand_percent * 10_000, holds: self.held[n] }];
            let (service, now) = ("db".parse().expect("a name"), Duration::from_secs(secs));
            let leased = self.book.lease(&service, &self.known[n], &self.known, &asks, now);
            self.held[n] = leased[0].or(self.held[n]);
            leased[0].map(|lease| lease.share_ppm)
        }
    }

    #[test]
    fn shares_follow_demand_and_what_one_gets_another_gave_before() {
        let mut servers = Servers::new(2);
        assert_eq!(servers.ask(0, 10, 0), None, "a new leader knows of nothing yet");
        assert_eq!(servers.ask(1, 90, 9), None);
        assert_eq!(servers.ask(0, 10, 10), Some(100_000), "both ask: as much as it needs");
        assert_eq!(servers.ask(1, 90, 10), Some(500_000), "the other may not have heard of that");
        assert_eq!(servers.ask(1, 0, 11), Some(475_000), "quiet now");
        assert_eq!(servers.ask(0, 90, 11), Some(500_000), "nor this one of what is less");
        assert_eq!(servers.ask(1, 0, 12), Some(75_000), "it has");
        assert_eq!(servers.ask(0, 90, 12), Some(525_000), "what it held last but one");
        assert_eq!(servers.ask(1, 0, 13), Some(75_000));
        assert_eq!(servers.ask(0, 90, 13), Some(925_000));
    }

    #[test]
    fn who_is_silent_keeps_its_fair_share_and_a_new_leader_raises_nobody() {
        let mut servers = Servers::new(4);
        servers.ask(0, 300, 8);
        assert_eq!(servers.ask(0, 300, 10), Some(250_000), "three may take theirs");
        let lease = servers.held[0];
        servers.book = Book::new(1_000, Duration::from_secs(100));
        assert_eq!(servers.ask(0, 300, 101), Some(250_000), "as it says that it holds");
        assert!(servers.held[0].map(|lease| lease.id) > lease.map(|lease| lease.id));
        assert_eq!(servers.ask(1, 300, 102), None, "it holds nothing, and has its fair share");
        assert_eq!(servers.ask(0, 300, 109), Some(250_000), "not before the old ones have ended");
    }
}
