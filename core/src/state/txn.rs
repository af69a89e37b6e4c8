//! Transactions on the state: each operation sees what those before it did, and one that cannot be
//! done undoes them all.

use std::collections::BTreeSet;

use super::store::{key_of, key_topics};
use super::{NodeChanges, Rejection, State, Topic};
use crate::catalog::Node;
use crate::clock::{Index, Stamp};
use crate::kv::Change;
use crate::name::{Key, NodeName};
use crate::txn::{FOUND_MAX, Failure, Found, OPS_MAX, Op};

impl State {
    /// What reading operations find; `None` where one of them writes.
    ///
    /// # Errors
    /// One [`Failure`] for each operation that cannot be done.
    pub fn look_up(&self, ops: &[Op]) -> Option<Result<Vec<Found>, Vec<Failure>>> {
        if !ops.iter().all(Op::is_read) {
            return None;
        }
        let mut found = Vec::new();
        let mut failures = Vec::new();
        for (number, op) in ops.iter().enumerate() {
            if let Err(why) = self.find(op, &mut found) {
                failures.push(Failure { op: number, why });
            }
        }
        Some(if failures.is_empty() { Ok(found) } else { Err(failures) })
    }

    pub(super) fn txn(&mut self, ops: Vec<Op>, stamp: Stamp) -> Result<Vec<Topic>, Rejection> {
        if ops.len() > OPS_MAX {
            return Err(Rejection::Full { what: "operations", max: OPS_MAX });
        }
        // Tables are persistent, so this is a pointer to each.
        let before = self.clone();
        let mut attempt = Attempt {
            state: self,
            stamp,
            keys: BTreeSet::new(),
            topics: Vec::new(),
            found: vec![],
        };
        let mut failures = Vec::new();
        for (number, op) in ops.into_iter().enumerate() {
            if let Err(why) = attempt.run(op) {
                failures.push(Failure { op: number, why });
            }
        }
        let Attempt { keys, mut topics, found, .. } = attempt;
        if !failures.is_empty() {
            *self = before;
            return Err(Rejection::Txn { failures });
        }
        topics.extend(key_topics(&keys));
        self.recent.put(stamp.index, found);
        Ok(topics)
    }

    /// Adds what a reading operation finds.
    fn find(&self, op: &Op, found: &mut Vec<Found>) -> Result<(), String> {
        let missing = |key: &Key| format!("key {:?} doesn't exist", key.as_str());
        match op {
            Op::Get(key) => {
                let row = self.kv.get(key).ok_or_else(|| missing(key))?;
                found.push(Found::Item(key.clone(), row.clone()));
            }
            Op::GetOrEmpty(key) => found.push(match self.kv.get(key) {
                Some(row) => Found::Item(key.clone(), row.clone()),
                None => Found::Absent(key.clone()),
            }),
            Op::GetTree(prefix) => {
                let room = FOUND_MAX.saturating_sub(found.len());
                let rows = self.kv.below(prefix).take(room + 1);
                found.extend(rows.map(|(key, row)| Found::Item(key.clone(), row.clone())));
                if found.len() > FOUND_MAX {
                    return Err(format!("a transaction may read {FOUND_MAX} keys: read fewer"));
                }
            }
            Op::CheckIndex(key, expected) => {
                let row = self.kv.get(key).ok_or_else(|| missing(key))?;
                if row.modified != *expected {
                    return Err(format!(
                        "failed index check for key {:?}, current modify index {} != {expected}",
                        key.as_str(),
                        row.modified
                    ));
                }
                found.push(Found::Stored(key.clone(), row.clone()));
            }
            Op::CheckSession(key, expected) => {
                let row = self.kv.get(key).ok_or_else(|| missing(key))?;
                if row.value.session.as_ref() != Some(expected) {
                    return Err(format!(
                        "failed session check for key {:?}, current session {:?} != {:?}",
                        key.as_str(),
                        row.value.session.as_ref().map_or("", |session| session.as_str()),
                        expected.as_str()
                    ));
                }
                found.push(Found::Stored(key.clone(), row.clone()));
            }
            Op::CheckNotExists(key) if self.kv.get(key).is_some() => {
                return Err(format!("key {:?} exists", key.as_str()));
            }
            _ => return self.find_in_catalog(op, found),
        }
        Ok(())
    }

    fn find_in_catalog(&self, op: &Op, found: &mut Vec<Found>) -> Result<(), String> {
        match op {
            Op::GetNode(node) => {
                let row = self.catalog.node(node);
                let row = row.ok_or_else(|| format!("node {:?} doesn't exist", node.as_str()))?;
                found.push(Found::Node(row.clone()));
            }
            Op::GetInstance(node, id) => {
                let row = self.catalog.instance(node, id);
                let row = row.ok_or_else(|| format!("service {:?} doesn't exist", id.as_str()))?;
                found.push(Found::Instance(node.clone(), row.clone()));
            }
            Op::GetCheck(node, id) => {
                let row = self.catalog.check(node, id);
                let row = row.ok_or_else(|| {
                    format!("check {:?} on node {:?} doesn't exist", id.as_str(), node.as_str())
                })?;
                found.push(Found::Check(node.clone(), row.clone()));
            }
            _ => {}
        }
        Ok(())
    }
}

/// A transaction under way.
struct Attempt<'a> {
    state: &'a mut State,
    stamp: Stamp,
    keys: BTreeSet<Key>,
    topics: Vec<Topic>,
    found: Vec<Found>,
}

impl Attempt<'_> {
    fn run(&mut self, op: Op) -> Result<(), String> {
        match op {
            Op::Change(change) => self.change(change),
            Op::EndSession(id) => {
                if self.state.sessions.get(&id).is_none() {
                    return Err(format!("session {:?} doesn't exist", id.as_str()));
                }
                let topics = self.state.end_session(&id, self.stamp);
                self.topics.extend(topics);
                Ok(())
            }
            Op::PutNode(node, expected) => {
                let name = node.name.clone();
                let actual = self.state.catalog.node(&name).map(|row| row.modified);
                expect("node", name.as_str(), expected, actual)?;
                self.sync(changes(node))?;
                self.find(&Op::GetNode(name))
            }
            Op::DropNode(name, expected) => {
                let actual = self.state.catalog.node(&name).map(|row| row.modified);
                expect("node", name.as_str(), expected, actual)?;
                // What is to go is gone.
                if actual.is_some() {
                    let dropped = self.state.drop_node(&name, self.stamp.index);
                    self.topics.extend(dropped.map_err(|refused| refused.to_string())?);
                }
                Ok(())
            }
            Op::PutInstance(node, instance, expected) => {
                let id = instance.id.clone();
                let actual = self.state.catalog.instance(&node, &id).map(|row| row.modified);
                expect("service", id.as_str(), expected, actual)?;
                let host = self.host(&node)?;
                self.sync(NodeChanges { put_instances: vec![instance], ..changes(host) })?;
                self.find(&Op::GetInstance(node, id))
            }
            Op::DropInstance(node, id, expected) => {
                let actual = self.state.catalog.instance(&node, &id).map(|row| row.modified);
                expect("service", id.as_str(), expected, actual)?;
                let Ok(host) = self.host(&node) else { return Ok(()) };
                self.sync(NodeChanges { drop_instances: vec![id], ..changes(host) })
            }
            Op::PutCheck(node, check, expected) => {
                let id = check.id.clone();
                let actual = self.state.catalog.check(&node, &id).map(|row| row.modified);
                expect("check", id.as_str(), expected, actual)?;
                let host = self.host(&node)?;
                self.sync(NodeChanges { put_checks: vec![check], ..changes(host) })?;
                self.find(&Op::GetCheck(node, id))
            }
            Op::DropCheck(node, id, expected) => {
                let actual = self.state.catalog.check(&node, &id).map(|row| row.modified);
                expect("check", id.as_str(), expected, actual)?;
                let Ok(host) = self.host(&node) else { return Ok(()) };
                self.sync(NodeChanges { drop_checks: vec![id], ..changes(host) })
            }
            read => self.find(&read),
        }
    }

    fn find(&mut self, op: &Op) -> Result<(), String> {
        self.state.find(op, &mut self.found)
    }

    fn change(&mut self, change: Change) -> Result<(), String> {
        let key = key_of(&change);
        let (verb, stores) = match &change {
            Change::Set(_) | Change::Cas(..) => ("set", true),
            Change::Lock(..) => ("lock", true),
            Change::Unlock(..) => ("unlock", true),
            Change::Delete(_) | Change::DeleteCas(..) | Change::DeleteTree(_) => ("delete", false),
        };
        let shown = key.as_ref().map_or("", Key::as_str).to_owned();
        self.state.touch_keys(change, self.stamp, &mut self.keys).map_err(|refused| {
            let why = match refused {
                Rejection::IndexMismatch { .. } => "index is stale".to_owned(),
                Rejection::Locked { .. } => "lock is already held".to_owned(),
                Rejection::NotHolder { .. } => {
                    "lock isn't held, or is held by another session".to_owned()
                }
                other => other.to_string(),
            };
            format!("failed to {verb} key {shown:?}, {why}")
        })?;
        if let Some(key) = key.filter(|_| stores)
            && let Some(row) = self.state.kv.get(&key)
        {
            self.found.push(Found::Stored(key, row.clone()));
        }
        Ok(())
    }

    fn host(&self, name: &NodeName) -> Result<Node, String> {
        let row = self.state.catalog.node(name);
        let row = row.ok_or_else(|| format!("node {:?} doesn't exist", name.as_str()))?;
        Ok((*row.value).clone())
    }

    fn sync(&mut self, changes: NodeChanges) -> Result<(), String> {
        let topics = self.state.sync_node(changes, self.stamp);
        self.topics.extend(topics.map_err(|refused| refused.to_string())?);
        Ok(())
    }
}

fn changes(node: Node) -> NodeChanges {
    NodeChanges {
        node,
        put_instances: Vec::new(),
        put_checks: Vec::new(),
        drop_instances: Vec::new(),
        drop_checks: Vec::new(),
    }
}

fn expect(
    what: &str,
    name: &str,
    expected: Option<Index>,
    actual: Option<Index>,
) -> Result<(), String> {
    match expected {
        Some(expected) if expected != actual.unwrap_or_default() => {
            Err(format!("failed to set {what} {name:?}, index is stale"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::{Locality, Meta};
    use crate::clock::UnixTime;
    use crate::kv::Write;
    use crate::state::Command;

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a good name")
    }

    fn write(key: &str, value: &str) -> Write {
        Write { key: name(key), value: value.as_bytes().into(), flags: 0 }
    }

    fn set(key: &str) -> Op {
        Op::Change(Change::Set(write(key, "x")))
    }

    fn node(text: &str) -> Node {
        Node {
            name: name(text),
            id: format!("id-{text}").into(),
            address: [10, 0, 0, 1].into(),
            locality: Locality::default(),
            meta: Meta::new(),
            tagged: Default::default(),
        }
    }

    fn run(state: &mut State, ops: Vec<Op>) -> Result<Vec<Topic>, Rejection> {
        let index = Index(state.applied().0 + 1);
        state.apply(Stamp { index, time: UnixTime::from_secs(index.0) }, Command::Txn(ops))
    }

    #[test]
    fn each_operation_sees_those_before_it() {
        let mut state = State::default();
        let ops = vec![
            set("a"),
            Op::Change(Change::Cas(write("b", "y"), Index(0))),
            Op::GetTree(Arc::from("")),
            Op::PutNode(node("n1"), Some(Index(0))),
            Op::GetOrEmpty(name("c")),
            Op::Change(Change::Delete(name("a"))),
            Op::CheckNotExists(name("a")),
        ];
        let topics = run(&mut state, ops).expect("done");
        assert!(topics.contains(&Topic::Key(name("b"))) && topics.contains(&Topic::Nodes));
        let found = state.found_at(Index(1)).expect("kept");
        let shown: Vec<String> = found
            .iter()
            .map(|found| match found {
                Found::Item(key, row) => format!("{key}={}", row.value.value.len()),
                Found::Stored(key, row) => format!("{key}@{}", row.modified),
                Found::Absent(key) => format!("no {key}"),
                Found::Node(row) => row.value.name.to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(shown, ["a@1", "b@1", "a=1", "b=1", "n1", "no c"]);
        let left: Vec<_> = state.kv().below("").map(|(key, _)| key.as_str()).collect();
        assert_eq!(left, ["b"]);
    }

    #[test]
    fn one_that_cannot_be_done_undoes_them_all() {
        let mut state = State::default();
        run(&mut state, vec![set("a"), Op::PutNode(node("n1"), None)]).expect("done");
        let before = format!("{:?}", state.dump());
        let cases = [
            (Op::Get(name("z")), "key \"z\" doesn't exist"),
            (Op::CheckNotExists(name("a")), "key \"a\" exists"),
            (
                Op::CheckIndex(name("a"), Index(9)),
                "failed index check for key \"a\", current modify index 1 != 9",
            ),
            (
                Op::CheckSession(name("a"), name("s")),
                "failed session check for key \"a\", current session \"\" != \"s\"",
            ),
            (
                Op::Change(Change::Cas(write("a", "1"), Index(0))),
                "failed to set key \"a\", index is stale",
            ),
            (
                Op::Change(Change::DeleteCas(name("a"), Index(7))),
                "failed to delete key \"a\", index is stale",
            ),
            (
                Op::Change(Change::Lock(write("a", "1"), name("s"))),
                "failed to lock key \"a\", invalid session \"s\"",
            ),
            (Op::PutNode(node("n1"), Some(Index(0))), "failed to set node \"n1\", index is stale"),
            (Op::GetNode(name("n2")), "node \"n2\" doesn't exist"),
            (Op::GetInstance(name("n1"), name("w")), "service \"w\" doesn't exist"),
            (Op::GetCheck(name("n1"), name("w")), "check \"w\" on node \"n1\" doesn't exist"),
            (Op::EndSession(name("s")), "session \"s\" doesn't exist"),
        ];
        for (op, why) in cases {
            let all = vec![set("b"), op, Op::DropNode(name("n1"), None)];
            let failures = vec![Failure { op: 1, why: why.to_owned() }];
            assert_eq!(run(&mut state, all), Err(Rejection::Txn { failures }), "{why}");
            let mut after = state.dump();
            after.applied = Index(1);
            assert_eq!(format!("{after:?}"), before, "{why}");
        }
        let many = vec![set("c"); OPS_MAX + 1];
        let full = Rejection::Full { what: "operations", max: OPS_MAX };
        assert_eq!(run(&mut state, many), Err(full));
    }

    #[test]
    fn operations_that_only_read_need_no_entry_of_the_log() {
        let mut state = State::default();
        run(&mut state, vec![set("a")]).expect("done");
        assert!(state.look_up(&[Op::Get(name("a")), set("b")]).is_none(), "one writes");
        let found = state.look_up(&[Op::Get(name("a")), Op::GetOrEmpty(name("b"))]);
        assert_eq!(found.expect("reads").expect("found").len(), 2);
        let failed = state.look_up(&[Op::GetOrEmpty(name("b")), Op::Get(name("b"))]);
        assert_eq!(failed.expect("reads").expect_err("not there")[0].op, 1);
    }
}
