//! What operations on keys, sessions and transactions need.

use super::{held, removable, sync_node};
use crate::acl::{Access, Authorizer, Denied, Resource};
use crate::catalog::Node;
use crate::kv::Change;
use crate::name::{InstanceId, NodeName, SessionId};
use crate::session::Session;
use crate::state::{NodeChanges, State};
use crate::txn::Op;

/// Whether `may` allows a change of keys.
pub(super) fn change(may: &Authorizer, change: &Change) -> Result<(), Denied> {
    let write = |key: &str| may.demand(Resource::Key, Access::Write, key);
    match change {
        Change::Set(put) | Change::Cas(put, _) | Change::Lock(put, _) | Change::Unlock(put, _) => {
            write(put.key.as_str())
        }
        Change::Delete(key) | Change::DeleteCas(key, _) => write(key.as_str()),
        Change::DeleteTree(prefix) if may.key_write_prefix(prefix) => Ok(()),
        Change::DeleteTree(prefix) => Err(Denied {
            accessor: may.accessor().clone(),
            resource: Resource::Key,
            access: Access::Write,
            name: Some(prefix.clone()),
        }),
    }
}

/// Whether `may` allows a session to be made.
pub(super) fn create(may: &Authorizer, session: &Session) -> Result<(), Denied> {
    may.demand(Resource::Session, Access::Write, session.node.as_str())
}

/// Whether `may` allows a session to be ended. To end one that is not there takes what all sessions
/// take: else anybody could write to the log.
pub(super) fn end(may: &Authorizer, state: &State, id: &SessionId) -> Result<(), Denied> {
    match state.sessions().get(id) {
        Some(row) => create(may, &row.value),
        None => may.demand(Resource::Session, Access::Write, ""),
    }
}

/// Whether `may` allows a prepared query of that name to be written.
pub(super) fn query(may: &Authorizer, name: &str) -> Result<(), Denied> {
    may.demand(Resource::Query, Access::Write, name)
}

/// Whether `may` allows the prepared query of that id, if there is one, to be changed.
pub(super) fn held_query(may: &Authorizer, state: &State, id: &str) -> Result<(), Denied> {
    state.queries().get(id).map_or(Ok(()), |row| query(may, &row.value.name))
}

/// Whether `may` allows one operation of a transaction.
///
/// # Errors
/// [`Denied`]
pub fn operation(may: &Authorizer, state: &State, op: &Op) -> Result<(), Denied> {
    let read_key = |key: &str| may.demand(Resource::Key, Access::Read, key);
    let read_node = |node: &NodeName| may.demand(Resource::Node, Access::Read, node.as_str());
    let instance = |node: &NodeName, id: &InstanceId, access| {
        held(state, node, id).map_or(Ok(()), |instance| {
            may.demand(Resource::Service, access, instance.service.as_str())
        })
    };
    match op {
        Op::Change(put) => change(may, put),
        Op::Get(key)
        | Op::GetOrEmpty(key)
        | Op::CheckIndex(key, _)
        | Op::CheckSession(key, _)
        | Op::CheckNotExists(key) => read_key(key.as_str()),
        Op::GetTree(prefix) => {
            may.demand(Resource::Key, Access::Read, prefix)?;
            // What is found is answered as a whole, so each key must be readable.
            state.kv().below(prefix).try_for_each(|(key, _)| read_key(key.as_str()))
        }
        Op::EndSession(id) => end(may, state, id),
        Op::PutNode(node, _) => may.demand(Resource::Node, Access::Write, node.name.as_str()),
        Op::GetNode(node) => read_node(node),
        Op::DropNode(node, _) => may.demand(Resource::Node, Access::Write, node.as_str()),
        Op::PutInstance(node, put, _) => {
            may.demand(Resource::Service, Access::Write, put.service.as_str())?;
            instance(node, &put.id, Access::Write)
        }
        Op::GetInstance(node, id) => {
            read_node(node)?;
            instance(node, id, Access::Read)
        }
        Op::DropInstance(node, id, _) => removable(may, state, node, id),
        Op::PutCheck(node, check, _) => {
            on_node(may, state, node, |changes| changes.put_checks.push(check.clone()))
        }
        Op::GetCheck(node, id) => {
            read_node(node)?;
            let about = state.catalog().check(node, id).and_then(|row| row.value.instance.clone());
            about.map_or(Ok(()), |id| instance(node, &id, Access::Read))
        }
        Op::DropCheck(node, id, _) => {
            on_node(may, state, node, |changes| changes.drop_checks.push(id.clone()))
        }
    }
}

/// As a change of the node's rows; of a node that is made in the same transaction, the node.
fn on_node(
    may: &Authorizer,
    state: &State,
    node: &NodeName,
    change: impl FnOnce(&mut NodeChanges),
) -> Result<(), Denied> {
    let Some(row) = state.catalog().node(node) else {
        return may.demand(Resource::Node, Access::Write, node.as_str());
    };
    let node = Node::clone(&row.value);
    let mut changes = NodeChanges {
        node,
        put_instances: Vec::new(),
        put_checks: Vec::new(),
        drop_instances: Vec::new(),
        drop_checks: Vec::new(),
    };
    change(&mut changes);
    sync_node(may, state, &changes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::acl::{DefaultPolicy, Rules};
    use crate::authorize::command;
    use crate::clock::Index;
    use crate::kv::Write;
    use crate::state::Command;

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a good name")
    }

    #[test]
    fn a_transaction_needs_what_each_of_its_operations_needs() {
        let rules = Rules::default()
            .prefix(Resource::Key, "app/", Access::Write)
            .exact(Resource::Key, "app/secret", Access::Deny)
            .prefix(Resource::Node, "vm", Access::Read);
        let may = Authorizer::new("me".into(), DefaultPolicy::Deny, [&rules]);
        let state = State::default();
        let set = |key: &str| {
            Op::Change(Change::Set(Write { key: name(key), value: Arc::from(*b""), flags: 0 }))
        };
        let cases = [
            (vec![set("app/a"), Op::Get(name("app/b"))], true, "one's own keys"),
            (vec![set("app/a"), set("other")], false, "one of another's"),
            (vec![Op::GetOrEmpty(name("app/secret"))], false, "reading is something, too"),
            (vec![Op::CheckIndex(name("other"), Index(1))], false, "and so is asking"),
            (vec![Op::Change(Change::DeleteTree("app/a".into()))], true, "no rule below"),
            (vec![Op::Change(Change::DeleteTree("app/".into()))], false, "the secret is below"),
            (vec![Op::GetNode(name("vm-1"))], true, "a node to read"),
            (vec![Op::DropNode(name("vm-1"), None)], false, "not to remove"),
            (vec![Op::DropInstance(name("vm-1"), name("x"), None)], false, "nor what is not there"),
            (vec![Op::EndSession(name("x"))], false, "nor a session that is not there"),
        ];
        for (ops, expected, why) in cases {
            let decided = command(&may, &state, &Command::Txn(ops));
            assert_eq!(decided.is_ok(), expected, "{why}: {decided:?}");
        }
    }
}
