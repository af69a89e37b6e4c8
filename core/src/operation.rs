//! How the servers run themselves: autopilot's rules, the level that every one of them has reached,
//! and which of them were given up for lost.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Row;
use crate::clock::Index;

/// What this release understands. A cluster's level is the least of its servers'; commands above
/// it are not proposed, so that no server ever meets one that it cannot read.
///
/// 0: before levels were told. 1: autopilot, levels. 2: auth methods, intentions changed together,
/// request limits, rates of all instances together.
pub const LEVEL: u32 = 2;

/// The level from which intentions change together, and entries are checked against them.
pub const INTENTIONS_LEVEL: u32 = 2;

/// The rules by which a leader keeps the membership in order. Consul's names and defaults.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Autopilot {
    /// Whether servers that died are removed.
    pub cleanup_dead_servers: bool,
    /// How long a server's answer may be overdue before it counts as unwell.
    pub last_contact_threshold: Duration,
    /// How many entries a server may be behind before it counts as unwell.
    pub max_trailing_logs: u64,
    /// Fewer voters than this are never left by a removal of dead ones.
    pub min_quorum: u32,
    /// How long a new server must have been well before it votes.
    pub server_stabilization_time: Duration,
}

impl Default for Autopilot {
    fn default() -> Self {
        Self {
            cleanup_dead_servers: true,
            last_contact_threshold: Duration::from_millis(200),
            max_trailing_logs: 250,
            min_quorum: 0,
            server_stabilization_time: Duration::from_secs(10),
        }
    }
}

impl Autopilot {
    /// How long a server must have been silent to count as dead: well beyond a restart, and never
    /// below five seconds.
    pub fn dead_after(&self) -> Duration {
        self.server_stabilization_time.saturating_mul(3).max(DEAD_AFTER_MIN)
    }
}

/// What the servers agree on about themselves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Operation {
    autopilot: Row<Autopilot>,
    level: u32,
    given_up: BTreeSet<u64>,
}

impl Default for Operation {
    fn default() -> Self {
        let (created, modified) = (Index(0), Index(0));
        let autopilot = Row { value: Arc::default(), created, modified };
        Self { autopilot, level: 0, given_up: BTreeSet::new() }
    }
}

impl Operation {
    /// As a snapshot holds it.
    pub fn restore(autopilot: Row<Autopilot>, level: u32, given_up: BTreeSet<u64>) -> Self {
        Self { autopilot, level, given_up }
    }

    /// The rules that hold; as of entry 0 where nobody set any.
    pub fn autopilot(&self) -> &Row<Autopilot> {
        &self.autopilot
    }

    /// The level that every server had reached.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// The ids of servers that a recovery from a lost quorum left behind: they may know of writes
    /// that this cluster never had, and never come back.
    pub fn given_up(&self) -> &BTreeSet<u64> {
        &self.given_up
    }

    /// Whether there is nothing in it that a snapshot needs to hold.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Gives servers up. Part of a recovery alone, which happens outside the log.
    pub fn give_up(&mut self, servers: impl IntoIterator<Item = u64>) {
        self.given_up.extend(servers);
        while self.given_up.len() > GIVEN_UP_MAX {
            self.given_up.pop_first();
        }
    }

    pub(crate) fn set_autopilot(&mut self, rules: Autopilot, at: Index) {
        let created = match self.autopilot.created {
            Index(0) => at,
            created => created,
        };
        self.autopilot = Row { value: Arc::new(rules), created, modified: at };
    }

    /// Levels only rise: what was written at one may need it for ever.
    pub(crate) fn raise(&mut self, level: u32) {
        self.level = self.level.max(level);
    }

    /// What a restored archive brings: its rules, and neither another cluster's level nor the
    /// servers that it lost.
    pub(crate) fn adopt(&mut self, archived: Self, at: Index) {
        if archived.autopilot.modified != Index(0) {
            self.autopilot = Row { modified: at, created: at, ..archived.autopilot };
        }
    }
}

const DEAD_AFTER_MIN: Duration = Duration::from_secs(5);
const GIVEN_UP_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_keep_the_entry_that_made_them_and_levels_only_rise() {
        let mut operation = Operation::default();
        assert!(operation.is_default());
        operation.set_autopilot(Autopilot { min_quorum: 3, ..Autopilot::default() }, Index(7));
        operation.set_autopilot(Autopilot::default(), Index(9));
        let row = operation.autopilot();
        assert_eq!((row.created, row.modified), (Index(7), Index(9)));
        operation.raise(2);
        operation.raise(1);
        assert_eq!(operation.level(), 2);
        let mut other = Operation::default();
        other.give_up([4]);
        other.adopt(operation, Index(30));
        assert_eq!(other.autopilot().modified, Index(30), "the rules come with an archive");
        assert_eq!((other.level(), other.given_up()), (0, &[4].into()), "nothing else does");
    }

    #[test]
    fn a_restart_is_no_death() {
        let rules = |secs| Autopilot {
            server_stabilization_time: Duration::from_secs(secs),
            ..Autopilot::default()
        };
        for (secs, dead) in [(10, 30), (2, 6), (0, 5)] {
            assert_eq!(rules(secs).dead_after(), Duration::from_secs(dead), "{secs} s");
        }
    }
}
