//! Sessions: what holds locks, for as long as a node, its checks and a holder's word last.

use std::sync::Arc;
use std::time::Duration;

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::catalog::{Row, upsert};
use crate::clock::Index;
use crate::name::{CheckId, NodeName, SessionId};

/// What becomes of the keys that a session holds when it ends.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Behavior {
    /// Their locks are free again.
    #[default]
    Release,
    /// They are deleted.
    Delete,
}

impl Behavior {
    /// Consul's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Delete => "delete",
        }
    }
}

/// A session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// A name for people.
    pub name: Arc<str>,
    /// The node that it ends with.
    pub node: NodeName,
    /// For how long its keys cannot be locked after it ended.
    pub lock_delay: Duration,
    /// What becomes of its keys.
    pub behavior: Behavior,
    /// How often its holder must renew it; none lives until it is destroyed.
    pub ttl: Option<Duration>,
    /// Checks of the node that it ends with.
    pub node_checks: Vec<CheckId>,
    /// Checks of the node's instances that it ends with.
    pub service_checks: Vec<CheckId>,
}

/// The sessions: persistent tables.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    rows: RedBlackTreeMapSync<SessionId, Row<Session>>,
    by_node: RedBlackTreeSetSync<(NodeName, SessionId)>,
    index: Index,
}

impl Sessions {
    /// One session.
    pub fn get(&self, id: &SessionId) -> Option<&Row<Session>> {
        self.rows.get(id)
    }

    /// Every session, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Row<Session>> {
        self.rows.values()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rows.size()
    }

    /// The sessions of one node, by id.
    pub fn on<'a>(&'a self, node: &'a NodeName) -> impl Iterator<Item = &'a Row<Session>> + 'a {
        let from = (node.clone(), first_id());
        let ids = self.by_node.range(from..).take_while(move |(owner, _)| owner == node);
        ids.filter_map(|(_, id)| self.rows.get(id))
    }

    /// The last entry that made or ended one.
    pub fn index(&self) -> Index {
        self.index
    }

    pub(crate) fn put(&mut self, session: Session, at: Index) {
        self.index = at;
        self.by_node.insert_mut((session.node.clone(), session.id.clone()));
        upsert(&mut self.rows, session.id.clone(), session, at);
    }

    pub(crate) fn remove(&mut self, id: &SessionId, at: Index) -> Option<Row<Session>> {
        let row = self.rows.get(id).cloned()?;
        self.rows.remove_mut(id);
        self.by_node.remove_mut(&(row.value.node.clone(), id.clone()));
        self.index = at;
        Some(row)
    }

    /// The sessions as a snapshot holds them.
    pub(crate) fn restore(rows: Vec<Row<Session>>, index: Index) -> Self {
        let of = |row: &Row<Session>| (row.value.node.clone(), row.value.id.clone());
        Self {
            by_node: rows.iter().map(of).collect(),
            rows: rows.into_iter().map(|row| (row.value.id.clone(), row)).collect(),
            index,
        }
    }
}

fn first_id() -> SessionId {
    " ".parse().expect("a space is printable")
}

/// The least that a session's TTL may be.
pub const TTL_MIN: Duration = Duration::from_secs(10);
/// The most that a session's TTL may be.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 3_600);
/// For how long a session's keys cannot be locked after it ended, unless it says otherwise.
pub const LOCK_DELAY: Duration = Duration::from_secs(15);
