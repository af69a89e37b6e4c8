//! The key-value store, its sessions and transactions: in commands and as rows of a snapshot.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::catalog::Row;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::event::Event;
use hawser_core::kv::{Change, Item, Write};
use hawser_core::name::Key;
use hawser_core::query::PreparedQuery;
use hawser_core::session::{Behavior, Session};
use hawser_core::state::Dump;
use hawser_core::txn::{Failure, Op};

use crate::field::{Invalid, each_parsed, millis, parsed, present, required, texts};
use crate::v1;
use crate::v1::kv_change::Kind;
use crate::v1::snapshot_record::Kind as Record;
use crate::v1::txn_op::Kind as OpKind;

impl From<&Write> for v1::KvWrite {
    fn from(write: &Write) -> Self {
        Self { key: write.key.to_string(), value: write.value.to_vec(), flags: write.flags }
    }
}

impl TryFrom<v1::KvWrite> for Write {
    type Error = Invalid;

    fn try_from(write: v1::KvWrite) -> Result<Self, Invalid> {
        Ok(Self {
            key: parsed("kv_write.key", &write.key)?,
            value: write.value.into(),
            flags: write.flags,
        })
    }
}

impl From<&Change> for v1::KvChange {
    fn from(change: &Change) -> Self {
        let kind = match change {
            Change::Set(write) => Kind::Set(write.into()),
            Change::Cas(write, expected) => {
                Kind::Cas(v1::KvCas { write: Some(write.into()), expected: expected.0 })
            }
            Change::Lock(write, session) => {
                Kind::Lock(v1::KvLock { write: Some(write.into()), session: session.to_string() })
            }
            Change::Unlock(write, session) => {
                Kind::Unlock(v1::KvLock { write: Some(write.into()), session: session.to_string() })
            }
            Change::Delete(key) => Kind::Delete(key.to_string()),
            Change::DeleteCas(key, index) => Kind::DeleteCas(at(key, *index)),
            Change::DeleteTree(prefix) => Kind::DeleteTree(prefix.to_string()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::KvChange> for Change {
    type Error = Invalid;

    fn try_from(change: v1::KvChange) -> Result<Self, Invalid> {
        Ok(match present("kv_change.kind", change.kind)? {
            Kind::Set(write) => Self::Set(write.try_into()?),
            Kind::Cas(cas) => Self::Cas(required("kv_cas.write", cas.write)?, Index(cas.expected)),
            Kind::Lock(lock) => Self::Lock(
                required("kv_lock.write", lock.write)?,
                parsed("kv_lock.session", &lock.session)?,
            ),
            Kind::Unlock(lock) => Self::Unlock(
                required("kv_lock.write", lock.write)?,
                parsed("kv_lock.session", &lock.session)?,
            ),
            Kind::Delete(key) => Self::Delete(parsed("kv_change.delete", &key)?),
            Kind::DeleteCas(delete) => {
                Self::DeleteCas(parsed("kv_at.key", &delete.key)?, Index(delete.index))
            }
            Kind::DeleteTree(prefix) => Self::DeleteTree(prefix.into()),
        })
    }
}

impl From<&Session> for v1::Session {
    fn from(session: &Session) -> Self {
        let behavior = match session.behavior {
            Behavior::Release => v1::SessionBehavior::Release,
            Behavior::Delete => v1::SessionBehavior::Delete,
        };
        Self {
            id: session.id.to_string(),
            name: session.name.to_string(),
            node: session.node.to_string(),
            lock_delay_ms: whole_millis(session.lock_delay),
            behavior: behavior.into(),
            ttl_ms: session.ttl.map_or(0, millis),
            node_checks: texts(&session.node_checks),
            service_checks: texts(&session.service_checks),
        }
    }
}

impl TryFrom<v1::Session> for Session {
    type Error = Invalid;

    fn try_from(session: v1::Session) -> Result<Self, Invalid> {
        let behavior = match v1::SessionBehavior::try_from(session.behavior) {
            Ok(v1::SessionBehavior::Release) => Behavior::Release,
            Ok(v1::SessionBehavior::Delete) => Behavior::Delete,
            Ok(v1::SessionBehavior::Unspecified) | Err(_) => {
                return Err(Invalid::new("session.behavior", "it is none that this release knows"));
            }
        };
        Ok(Self {
            id: parsed("session.id", &session.id)?,
            name: session.name.into(),
            node: parsed("session.node", &session.node)?,
            lock_delay: Duration::from_millis(session.lock_delay_ms),
            behavior,
            ttl: Some(session.ttl_ms).filter(|ttl| *ttl > 0).map(Duration::from_millis),
            node_checks: each_parsed("session.node_checks", &session.node_checks)?,
            service_checks: each_parsed("session.service_checks", &session.service_checks)?,
        })
    }
}

impl From<&Event> for v1::Event {
    fn from(event: &Event) -> Self {
        Self {
            id: event.id.to_string(),
            name: event.name.to_string(),
            payload: event.payload.to_vec(),
            node_filter: event.node_filter.to_string(),
            service_filter: event.service_filter.to_string(),
            tag_filter: event.tag_filter.to_string(),
        }
    }
}

impl TryFrom<v1::Event> for Event {
    type Error = Invalid;

    fn try_from(event: v1::Event) -> Result<Self, Invalid> {
        Ok(Self {
            id: event.id.into(),
            name: parsed("event.name", &event.name)?,
            payload: event.payload.into(),
            node_filter: event.node_filter.into(),
            service_filter: event.service_filter.into(),
            tag_filter: event.tag_filter.into(),
        })
    }
}

impl TryFrom<v1::EventRow> for (Index, Arc<Event>) {
    type Error = Invalid;

    fn try_from(row: v1::EventRow) -> Result<Self, Invalid> {
        let event: Event = required("event_row.event", row.event)?;
        Ok((Index(row.index), Arc::new(event)))
    }
}

impl From<&PreparedQuery> for v1::PreparedQuery {
    fn from(query: &PreparedQuery) -> Self {
        Self {
            id: query.id.to_string(),
            name: query.name.to_string(),
            session: query.session.as_ref().map(ToString::to_string).unwrap_or_default(),
            // Texts, lists and numbers: nothing of it cannot be written.
            body_json: serde_json::to_string(&query.body).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::PreparedQuery> for PreparedQuery {
    type Error = Invalid;

    fn try_from(query: v1::PreparedQuery) -> Result<Self, Invalid> {
        let session = match query.session.as_str() {
            "" => None,
            id => Some(parsed("prepared_query.session", id)?),
        };
        let body = serde_json::from_str(&query.body_json)
            .map_err(|why| Invalid::new("prepared_query.body_json", why))?;
        Ok(Self { id: query.id.into(), name: query.name.into(), session, body })
    }
}

impl From<&Op> for v1::TxnOp {
    fn from(op: &Op) -> Self {
        let id = |node: &dyn ToString, id: &dyn ToString, expected: Option<Index>| v1::TxnId {
            node: node.to_string(),
            id: id.to_string(),
            expected: expected.map(|index| index.0),
        };
        let kind = match op {
            Op::Change(change) => OpKind::Change(change.into()),
            Op::Get(key) => OpKind::Get(key.to_string()),
            Op::GetOrEmpty(key) => OpKind::GetOrEmpty(key.to_string()),
            Op::GetTree(prefix) => OpKind::GetTree(prefix.to_string()),
            Op::CheckIndex(key, index) => OpKind::CheckIndex(at(key, *index)),
            Op::CheckSession(key, session) => OpKind::CheckSession(v1::KvHolder {
                key: key.to_string(),
                session: session.to_string(),
            }),
            Op::CheckNotExists(key) => OpKind::CheckNotExists(key.to_string()),
            Op::EndSession(session) => OpKind::EndSession(session.to_string()),
            Op::PutNode(node, expected) => OpKind::PutNode(v1::TxnNode {
                node: Some(node.into()),
                expected: expected.map(|index| index.0),
            }),
            Op::GetNode(node) => OpKind::GetNode(node.to_string()),
            Op::DropNode(node, expected) => OpKind::DropNode(v1::TxnDropNode {
                node: node.to_string(),
                expected: expected.map(|index| index.0),
            }),
            Op::PutInstance(node, instance, expected) => OpKind::PutInstance(v1::TxnInstance {
                node: node.to_string(),
                instance: Some(instance.into()),
                expected: expected.map(|index| index.0),
            }),
            Op::GetInstance(node, instance) => OpKind::GetInstance(id(node, instance, None)),
            Op::DropInstance(node, instance, expected) => {
                OpKind::DropInstance(id(node, instance, *expected))
            }
            Op::PutCheck(node, check, expected) => OpKind::PutCheck(v1::TxnCheck {
                node: node.to_string(),
                check: Some(check.into()),
                expected: expected.map(|index| index.0),
            }),
            Op::GetCheck(node, check) => OpKind::GetCheck(id(node, check, None)),
            Op::DropCheck(node, check, expected) => OpKind::DropCheck(id(node, check, *expected)),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::SessionRow> for Row<Session> {
    type Error = Invalid;

    fn try_from(row: v1::SessionRow) -> Result<Self, Invalid> {
        let value = Arc::new(required("session_row.session", row.session)?);
        Ok(Self { value, created: Index(row.created), modified: Index(row.modified) })
    }
}

impl TryFrom<v1::PreparedQueryRow> for Row<PreparedQuery> {
    type Error = Invalid;

    fn try_from(row: v1::PreparedQueryRow) -> Result<Self, Invalid> {
        let value = Arc::new(required("prepared_query_row.query", row.query)?);
        Ok(Self { value, created: Index(row.created), modified: Index(row.modified) })
    }
}

impl TryFrom<v1::TxnOp> for Op {
    type Error = Invalid;

    fn try_from(op: v1::TxnOp) -> Result<Self, Invalid> {
        let node_of = |id: &v1::TxnId| parsed("txn_id.node", &id.node);
        Ok(match present("txn_op.kind", op.kind)? {
            OpKind::Change(change) => Self::Change(change.try_into()?),
            OpKind::Get(key) => Self::Get(parsed("txn_op.get", &key)?),
            OpKind::GetOrEmpty(key) => Self::GetOrEmpty(parsed("txn_op.get_or_empty", &key)?),
            OpKind::GetTree(prefix) => Self::GetTree(prefix.into()),
            OpKind::CheckIndex(check) => {
                Self::CheckIndex(parsed("kv_at.key", &check.key)?, Index(check.index))
            }
            OpKind::CheckSession(holder) => Self::CheckSession(
                parsed("kv_holder.key", &holder.key)?,
                parsed("kv_holder.session", &holder.session)?,
            ),
            OpKind::CheckNotExists(key) => {
                Self::CheckNotExists(parsed("txn_op.check_not_exists", &key)?)
            }
            OpKind::EndSession(id) => Self::EndSession(parsed("txn_op.end_session", &id)?),
            OpKind::PutNode(put) => {
                Self::PutNode(required("txn_node.node", put.node)?, put.expected.map(Index))
            }
            OpKind::GetNode(node) => Self::GetNode(parsed("txn_op.get_node", &node)?),
            OpKind::DropNode(drop) => {
                Self::DropNode(parsed("txn_drop_node.node", &drop.node)?, drop.expected.map(Index))
            }
            OpKind::PutInstance(put) => Self::PutInstance(
                parsed("txn_instance.node", &put.node)?,
                required("txn_instance.instance", put.instance)?,
                put.expected.map(Index),
            ),
            OpKind::GetInstance(id) => {
                Self::GetInstance(node_of(&id)?, parsed("txn_id.id", &id.id)?)
            }
            OpKind::DropInstance(id) => Self::DropInstance(
                node_of(&id)?,
                parsed("txn_id.id", &id.id)?,
                id.expected.map(Index),
            ),
            OpKind::PutCheck(put) => Self::PutCheck(
                parsed("txn_check.node", &put.node)?,
                required("txn_check.check", put.check)?,
                put.expected.map(Index),
            ),
            OpKind::GetCheck(id) => Self::GetCheck(node_of(&id)?, parsed("txn_id.id", &id.id)?),
            OpKind::DropCheck(id) => {
                Self::DropCheck(node_of(&id)?, parsed("txn_id.id", &id.id)?, id.expected.map(Index))
            }
        })
    }
}

impl From<&Failure> for v1::TxnFailure {
    fn from(failure: &Failure) -> Self {
        Self { op: u32::try_from(failure.op).unwrap_or(u32::MAX), why: failure.why.clone() }
    }
}

impl From<v1::TxnFailure> for Failure {
    fn from(failure: v1::TxnFailure) -> Self {
        Self { op: usize::try_from(failure.op).unwrap_or(usize::MAX), why: failure.why }
    }
}

impl TryFrom<v1::KvRow> for (Key, Row<Item>) {
    type Error = Invalid;

    fn try_from(row: v1::KvRow) -> Result<Self, Invalid> {
        let session = match row.session.as_str() {
            "" => None,
            text => Some(parsed("kv_row.session", text)?),
        };
        let item =
            Item { value: row.value.into(), flags: row.flags, lock_index: row.lock_index, session };
        let (created, modified) = (Index(row.created), Index(row.modified));
        Ok((parsed("kv_row.key", &row.key)?, Row { value: Arc::new(item), created, modified }))
    }
}

impl TryFrom<v1::KvAt> for (Key, Index) {
    type Error = Invalid;

    fn try_from(at: v1::KvAt) -> Result<Self, Invalid> {
        Ok((parsed("kv_at.key", &at.key)?, Index(at.index)))
    }
}

impl TryFrom<v1::KvDelay> for (Key, UnixTime) {
    type Error = Invalid;

    fn try_from(delay: v1::KvDelay) -> Result<Self, Invalid> {
        Ok((parsed("kv_delay.key", &delay.key)?, UnixTime::from_millis(delay.until_ms)))
    }
}

/// The store's rows of a snapshot, one after the other; none of a store that was never used.
pub(crate) fn rows(dump: &Dump) -> impl Iterator<Item = Record> {
    let kv = &dump.kv;
    let indexes = v1::KvIndexes {
        index: kv.index.0,
        cleared: kv.cleared.0,
        sessions: dump.sessions_index.0,
        queries: dump.queries_index.0,
    };
    let is_used = indexes != v1::KvIndexes::default();
    let items = kv.items.iter().map(|(key, row)| {
        Record::Kv(v1::KvRow {
            key: key.to_string(),
            value: row.value.value.to_vec(),
            flags: row.value.flags,
            lock_index: row.value.lock_index,
            session: row.value.session.as_ref().map(ToString::to_string).unwrap_or_default(),
            created: row.created.0,
            modified: row.modified.0,
        })
    });
    let tombstones = kv.tombstones.iter().map(|(key, index)| Record::KvTombstone(at(key, *index)));
    let delays = kv.delays.iter().map(|(key, until)| {
        Record::KvDelay(v1::KvDelay { key: key.to_string(), until_ms: until.as_millis() })
    });
    let sessions = dump.sessions.iter().map(|row| {
        Record::Session(v1::SessionRow {
            session: Some((&*row.value).into()),
            created: row.created.0,
            modified: row.modified.0,
        })
    });
    let events = dump.events.iter().map(|(index, event)| {
        Record::Event(v1::EventRow { event: Some((&**event).into()), index: index.0 })
    });
    let queries = dump.queries.iter().map(|row| {
        Record::Query(v1::PreparedQueryRow {
            query: Some((&*row.value).into()),
            created: row.created.0,
            modified: row.modified.0,
        })
    });
    let events = events.chain(queries);
    let indexes = is_used.then_some(Record::KvIndexes(indexes));
    indexes.into_iter().chain(items).chain(tombstones).chain(delays).chain(sessions).chain(events)
}

/// Takes the store's indexes into `dump`.
pub(crate) fn add_indexes(dump: &mut Dump, indexes: &v1::KvIndexes) {
    dump.kv.index = Index(indexes.index);
    dump.kv.cleared = Index(indexes.cleared);
    dump.sessions_index = Index(indexes.sessions);
    dump.queries_index = Index(indexes.queries);
}

fn at(key: &Key, index: Index) -> v1::KvAt {
    v1::KvAt { key: key.to_string(), index: index.0 }
}

fn whole_millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
