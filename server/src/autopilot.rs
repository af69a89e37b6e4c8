//! Autopilot's judgement, in the leader's memory: which servers are well and since when, what they
//! run, and what the membership needs next.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hawser_core::clock::UnixTime;
use hawser_core::operation::{Autopilot, LEVEL};
use hawser_proto::Member;

use crate::raft::Status;

/// What the leader knows of the servers. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Pilot {
    own: u64,
    /// An answer is overdue after this, and the rules' threshold counts from there.
    grace: Duration,
    table: Arc<Mutex<Table>>,
    /// Held while a server is admitted and while the cluster's level rises, so that none comes in
    /// below it.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct Table {
    led_since: Option<Instant>,
    seen: BTreeMap<u64, Seen>,
}

/// What is known of one server.
#[derive(Clone, Debug, Default)]
struct Seen {
    well_since: Option<(Instant, UnixTime)>,
    release: String,
    level: Option<u32>,
}

/// The servers as the leader sees them at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Assessment {
    pub(crate) term: u64,
    pub(crate) servers: Vec<Standing>,
}

/// One server as the leader sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) member: Member,
    pub(crate) is_leader: bool,
    pub(crate) is_voter: bool,
    pub(crate) is_well: bool,
    /// How long ago it was heard; none where it never was.
    pub(crate) silence: Option<Duration>,
    pub(crate) last_index: u64,
    pub(crate) well_since: Option<UnixTime>,
    /// Its release; empty while it has not said.
    pub(crate) release: String,
}

/// What the membership needs next.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// End a change of voters that a former leader left half done.
    Finish,
    /// Let a learner vote, in the place of voters of the same name or of one that died.
    Promote { id: u64, replaced: BTreeSet<u64> },
    /// Remove learners that died.
    DropLearners(BTreeSet<u64>),
    /// Remove a voter that died.
    DropVoter(u64),
}

impl Pilot {
    pub(crate) fn new(own: u64, grace: Duration) -> Self {
        Self { own, grace, table: Arc::default(), turn: Arc::default() }
    }

    /// Begins anew: this server leads from now on, and has heard nobody yet.
    pub(crate) fn take_over(&self, now: Instant) {
        *self.table() = Table { led_since: Some(now), seen: BTreeMap::new() };
    }

    /// Notes who is well, and forgets who is gone.
    pub(crate) fn observe(
        &self,
        status: &Status,
        rules: &Autopilot,
        (now, wall): (Instant, UnixTime),
    ) {
        let mut table = self.table();
        table.seen.retain(|id, _| status.member(*id).is_some());
        for member in &status.members {
            let is_well = self.is_well(status, member.id, rules, now);
            let seen = table.seen.entry(member.id).or_default();
            seen.well_since = is_well.then(|| seen.well_since.unwrap_or((now, wall)));
        }
    }

    /// Notes what a server says that it runs.
    pub(crate) fn heard(&self, id: u64, release: &str, level: u32) {
        let mut table = self.table();
        if let Some(seen) = table.seen.get_mut(&id) {
            seen.release = release.chars().take(RELEASE_CHARS_MAX).collect();
            seen.level = Some(level);
        }
    }

    /// The least level of all members; none while one of them has not said.
    pub(crate) fn least_level(&self, status: &Status) -> Option<u32> {
        let table = self.table();
        let levels = status.members.iter().map(|member| match member.id == self.own {
            true => Some(LEVEL),
            false => table.seen.get(&member.id).and_then(|seen| seen.level),
        });
        levels.min().flatten()
    }

    /// The servers as of `now`. A server that does not lead hears nobody, and calls none well.
    pub(crate) fn assess(&self, status: &Status, rules: &Autopilot, now: Instant) -> Assessment {
        let table = self.table();
        let servers = status.members.iter().map(|member| {
            let seen = table.seen.get(&member.id).filter(|_| status.is_leader);
            let release = match member.id == self.own {
                true => env!("CARGO_PKG_VERSION").to_owned(),
                false => seen.map(|seen| seen.release.clone()).unwrap_or_default(),
            };
            Standing {
                member: member.clone(),
                is_leader: status.leader == Some(member.id),
                is_voter: status.voters.contains(&member.id),
                is_well: status.is_leader && self.is_well(status, member.id, rules, now),
                silence: self.silence(status, member.id, now),
                last_index: match member.id == self.own {
                    true => status.last_index,
                    false => status.matched.get(&member.id).copied().unwrap_or(0),
                },
                well_since: seen.and_then(|seen| seen.well_since).map(|(_, wall)| wall),
                release,
            }
        });
        Assessment { term: status.term, servers: servers.collect() }
    }

    /// What the membership needs next, one change at a time.
    pub(crate) fn next(&self, status: &Status, rules: &Autopilot, now: Instant) -> Option<Step> {
        if status.is_joint {
            return Some(Step::Finish);
        }
        let table = self.table();
        let led_since = table.led_since?;
        let is_dead = |id: u64| {
            let heard = status.heard.get(&id).map_or(led_since, |heard| led_since.max(*heard));
            id != self.own && now.saturating_duration_since(heard) >= rules.dead_after()
        };
        let dead: BTreeSet<u64> = match rules.cleanup_dead_servers {
            true => status.voters.iter().copied().filter(|id| is_dead(*id)).collect(),
            false => BTreeSet::new(),
        };
        // Who leads for a moment knows nobody for longer: the rest of the proof is its log.
        let patience = rules.server_stabilization_time;
        let is_settled = now.saturating_duration_since(led_since) > patience.mul_f64(1.1);
        let needed = if is_settled { patience } else { Duration::ZERO };
        let is_stable = |id: &u64| {
            let since = table.seen.get(id).and_then(|seen| seen.well_since);
            since.is_some_and(|(since, _)| now.saturating_duration_since(since) >= needed)
        };
        // A majority of the voters lives, or nothing could be removed anyway.
        let may_remove = dead.len() * 2 < status.voters.len();
        let learners = || status.members.iter().filter(|it| !status.voters.contains(&it.id));
        if let Some(learner) = learners().find(|learner| is_stable(&learner.id)) {
            let namesakes = status.members.iter().filter(|other| other.name == learner.name);
            let namesakes = namesakes.map(|other| other.id).filter(|id| *id != learner.id);
            let mut replaced: BTreeSet<u64> =
                namesakes.filter(|id| status.voters.contains(id)).collect();
            if replaced.is_empty() && may_remove {
                replaced.extend(dead.first());
            }
            return Some(Step::Promote { id: learner.id, replaced });
        }
        if rules.cleanup_dead_servers {
            let gone: BTreeSet<u64> =
                learners().map(|learner| learner.id).filter(|id| is_dead(*id)).collect();
            if !gone.is_empty() {
                return Some(Step::DropLearners(gone));
            }
        }
        let left = status.voters.len().saturating_sub(1);
        let is_enough = left >= usize::try_from(rules.min_quorum).unwrap_or(usize::MAX).max(1);
        dead.first().filter(|_| may_remove && is_enough).map(|id| Step::DropVoter(*id))
    }

    /// Whether a quorum of those that stay was heard of late when `id` goes.
    pub(crate) fn may_go(&self, status: &Status, id: u64, rules: &Autopilot, now: Instant) -> bool {
        let left: BTreeSet<u64> = status.voters.iter().copied().filter(|it| *it != id).collect();
        let limit = self.grace + rules.last_contact_threshold;
        let lives = |id: &&u64| self.silence(status, **id, now).is_some_and(|it| it <= limit);
        left.iter().filter(lives).count() * 2 > left.len()
    }

    fn silence(&self, status: &Status, id: u64, now: Instant) -> Option<Duration> {
        if id == self.own {
            return Some(Duration::ZERO);
        }
        status.heard.get(&id).map(|heard| now.saturating_duration_since(*heard))
    }

    fn is_well(&self, status: &Status, id: u64, rules: &Autopilot, now: Instant) -> bool {
        if id == self.own {
            return true;
        }
        let limit = self.grace + rules.last_contact_threshold;
        let is_near = |matched: &u64| matched + rules.max_trailing_logs >= status.last_index;
        self.silence(status, id, now).is_some_and(|silence| silence <= limit)
            && status.matched.get(&id).is_some_and(is_near)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Assessment {
    /// Whether every server is well.
    pub(crate) fn is_well(&self) -> bool {
        !self.servers.is_empty() && self.servers.iter().all(|server| server.is_well)
    }

    /// How many voters may fail before a majority is lost.
    pub(crate) fn failure_tolerance(&self) -> usize {
        let voters = || self.servers.iter().filter(|server| server.is_voter);
        let well = voters().filter(|server| server.is_well).count();
        well.saturating_sub(voters().count() / 2 + 1)
    }
}

const RELEASE_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(1);
    const STABLE: Duration = Duration::from_secs(10);

    fn member(id: u64, name: &str) -> Member {
        let name = name.parse().expect("a name");
        Member { id, name, address: "127.0.0.1:1".to_owned() }
    }

    /// Server 1 leads three voters and a learner, and heard all of them at `now`.
    fn status(now: Instant) -> Status {
        Status {
            is_leader: true,
            leader: Some(1),
            last_index: 10_000,
            members: vec![member(1, "a"), member(2, "b"), member(3, "c"), member(9, "d")],
            voters: [1, 2, 3].into(),
            heard: [2, 3, 9].map(|id| (id, now)).into(),
            matched: [2, 3, 9].map(|id| (id, 10_000)).into(),
            ..Status::default()
        }
    }

    fn pilot(start: Instant) -> Pilot {
        let pilot = Pilot::new(1, GRACE);
        pilot.take_over(start);
        pilot
    }

    fn observe(pilot: &Pilot, status: &Status, now: Instant) {
        pilot.observe(status, &Autopilot::default(), (now, UnixTime::from_secs(1)));
    }

    #[test]
    fn a_learner_votes_once_it_caught_up_and_was_well_for_long_enough() {
        let start = Instant::now();
        let (pilot, rules) = (pilot(start), Autopilot::default());
        let later = start + STABLE * 2;
        let mut status = status(later);
        status.matched.insert(9, 100);
        observe(&pilot, &status, later);
        assert_eq!(pilot.next(&status, &rules, later), None, "far behind");
        status.matched.insert(9, 9_900);
        observe(&pilot, &status, later);
        assert_eq!(pilot.next(&status, &rules, later), None, "well since just now");
        let stable = later + STABLE;
        status.heard = [2, 3, 9].map(|id| (id, stable)).into();
        observe(&pilot, &status, stable);
        let promote = |replaced: BTreeSet<u64>| Some(Step::Promote { id: 9, replaced });
        assert_eq!(pilot.next(&status, &rules, stable), promote([].into()));
        status.members[3] = member(9, "b");
        assert_eq!(
            pilot.next(&status, &rules, stable),
            promote([2].into()),
            "its namesake's place"
        );
        status.members[3] = member(9, "d");
        status.heard.insert(3, stable - rules.dead_after());
        assert_eq!(
            pilot.next(&status, &rules, stable),
            promote([3].into()),
            "the dead one's place"
        );
        status.is_joint = true;
        assert_eq!(pilot.next(&status, &rules, stable), Some(Step::Finish), "one change at a time");
    }

    #[test]
    fn a_leader_of_late_lets_vote_who_has_the_log() {
        let start = Instant::now();
        let (pilot, rules) = (pilot(start), Autopilot::default());
        let soon = start + Duration::from_secs(1);
        let status = status(soon);
        observe(&pilot, &status, soon);
        let expected = Some(Step::Promote { id: 9, replaced: BTreeSet::new() });
        assert_eq!(pilot.next(&status, &rules, soon), expected);
    }

    #[test]
    fn the_dead_are_removed_while_a_majority_lives() {
        let start = Instant::now();
        let pilot = pilot(start);
        let on = Autopilot::default();
        let off = Autopilot { cleanup_dead_servers: false, ..on };
        let three = Autopilot { min_quorum: 3, ..on };
        let now = start + Duration::from_secs(300);
        let one = Some(Step::DropVoter(3));
        type Case<'a> = (&'a Autopilot, &'a [u64], &'a [u64], Option<Step>, &'a str);
        // rules, voters, dead, expected, why
        let cases: [Case<'_>; 7] = [
            (&on, &[1, 2, 3], &[], None, "all live"),
            (&on, &[1, 2, 3], &[3], one, "one of three"),
            (&on, &[1, 2, 3], &[2, 3], None, "no majority lives"),
            (&on, &[1, 2], &[2], None, "half is no majority"),
            (&on, &[1, 2, 3, 4, 5], &[3, 4], Some(Step::DropVoter(3)), "one after the other"),
            (&off, &[1, 2, 3], &[3], None, "it is off"),
            (&three, &[1, 2, 3], &[3], None, "three must stay"),
        ];
        for (rules, voters, dead, expected, why) in cases {
            let heard = |id: &u64| match dead.contains(id) {
                true => (*id, now - rules.dead_after()),
                false => (*id, now),
            };
            let status = Status {
                members: voters.iter().map(|id| member(*id, &format!("s{id}"))).collect(),
                voters: voters.iter().copied().collect(),
                heard: voters.iter().map(heard).collect(),
                ..status(now)
            };
            observe(&pilot, &status, now);
            assert_eq!(pilot.next(&status, rules, now), expected, "{why}");
        }
        let mut status = status(now);
        status.heard.insert(9, start);
        status.matched.remove(&9);
        observe(&pilot, &status, now);
        assert_eq!(pilot.next(&status, &on, now), Some(Step::DropLearners([9].into())));
    }

    #[test]
    fn who_was_never_heard_dies_only_after_the_leader_led_for_long_enough() {
        let start = Instant::now();
        let (pilot, rules) = (pilot(start), Autopilot::default());
        let mut status = status(start);
        status.heard.remove(&3);
        status.heard.remove(&9);
        let before = start + rules.dead_after() - Duration::from_millis(1);
        status.heard.insert(2, before);
        assert_eq!(pilot.next(&status, &rules, before), None);
        assert!(!pilot.may_go(&status, 2, &rules, before), "one of two that stay is silent");
        assert!(pilot.may_go(&status, 3, &rules, before));
    }

    #[test]
    fn the_level_is_that_of_the_least_and_unknown_while_one_is_silent() {
        let start = Instant::now();
        let (pilot, status) = (pilot(start), status(start));
        observe(&pilot, &status, start);
        for id in [2, 3] {
            pilot.heard(id, "0.1.0", LEVEL);
        }
        assert_eq!(pilot.least_level(&status), None, "server 9 has not said");
        pilot.heard(9, "0.0.9", 0);
        assert_eq!(pilot.least_level(&status), Some(0));
        pilot.heard(9, "0.2.0", LEVEL + 1);
        assert_eq!(pilot.least_level(&status), Some(LEVEL), "one's own is the most");
    }
}
