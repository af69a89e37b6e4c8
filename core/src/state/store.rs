//! Keys and sessions in the state: whose lock it is, and what ends with a node or a check.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Rejection, State, Topic};
use crate::clock::{Index, Stamp};
use crate::health::Status;
use crate::kv::{self, Change, Refusal};
use crate::name::{CheckId, Key, SessionId};
use crate::session::{Behavior, Session};

impl State {
    pub(super) fn change_key(
        &mut self,
        change: Change,
        stamp: Stamp,
    ) -> Result<Vec<Topic>, Rejection> {
        let mut touched = BTreeSet::new();
        self.touch_keys(change, stamp, &mut touched)?;
        Ok(key_topics(&touched))
    }

    /// Applies a change whose session, if it locks for one, exists.
    pub(super) fn touch_keys(
        &mut self,
        change: Change,
        stamp: Stamp,
        touched: &mut BTreeSet<Key>,
    ) -> Result<(), Rejection> {
        let key = key_of(&change);
        if let Change::Lock(_, session) = &change
            && self.sessions.get(session).is_none()
        {
            return Err(Rejection::UnknownSession { session: session.clone() });
        }
        self.kv.apply(change, stamp, touched).map_err(|refusal| match (refusal, key) {
            (Refusal::Mismatch { expected, actual }, _) => {
                Rejection::IndexMismatch { expected, actual }
            }
            (Refusal::Full { what, max }, _) => Rejection::Full { what, max },
            (Refusal::Locked, Some(key)) => Rejection::Locked { key },
            (Refusal::NotHolder, Some(key)) => Rejection::NotHolder { key },
            (Refusal::Locked | Refusal::NotHolder, None) => {
                unreachable!("only a change of one key takes or gives up a lock")
            }
        })
    }

    pub(super) fn create_session(
        &mut self,
        session: Session,
        at: Index,
    ) -> Result<Vec<Topic>, Rejection> {
        let node = &session.node;
        if self.catalog.node(node).is_none() {
            return Err(Rejection::UnknownNode { node: node.clone() });
        }
        for check in session.node_checks.iter().chain(&session.service_checks) {
            match self.status_of(&session, check) {
                None => return Err(Rejection::UnknownCheck { check: check.clone() }),
                Some(Status::Critical) => {
                    return Err(Rejection::CriticalCheck { check: check.clone() });
                }
                Some(Status::Passing | Status::Warning) => {}
            }
        }
        if self.sessions.count() >= SESSIONS_MAX {
            return Err(Rejection::Full { what: "sessions", max: SESSIONS_MAX });
        }
        self.sessions.put(session, at);
        Ok(vec![Topic::Sessions])
    }

    /// Ends a session, with its locks; one that is not there is no error.
    pub(super) fn end_session(&mut self, id: &SessionId, stamp: Stamp) -> Vec<Topic> {
        let Some(row) = self.sessions.remove(id, stamp.index) else { return Vec::new() };
        let is_deleted = row.value.behavior == Behavior::Delete;
        let mut touched = BTreeSet::new();
        self.kv.clear_delays(stamp.time);
        for key in self.kv.held_by(id) {
            self.kv.evict(&key, is_deleted, row.value.lock_delay, stamp, &mut touched);
        }
        let mut topics = key_topics(&touched);
        topics.push(Topic::Sessions);
        if self.queries.end(id, stamp.index) {
            topics.push(Topic::Queries);
        }
        topics
    }

    /// Ends the sessions that cannot go on after what `topics` say has changed.
    pub(super) fn end_sessions_of(&mut self, topics: &mut Vec<Topic>, stamp: Stamp) {
        if self.sessions.count() == 0 {
            return;
        }
        let lost = topics
            .iter()
            .filter_map(|topic| if let Topic::Node(node) = topic { Some(node) } else { None })
            .flat_map(|node| self.sessions.on(node))
            .filter(|row| !self.is_kept(&row.value))
            .map(|row| row.value.id.clone());
        for id in lost.collect::<Vec<_>>() {
            topics.extend(self.end_session(&id, stamp));
        }
    }

    fn is_kept(&self, session: &Session) -> bool {
        let is_well = |check: &CheckId| {
            self.status_of(session, check).is_some_and(|status| status != Status::Critical)
        };
        self.catalog.node(&session.node).is_some()
            && session.node_checks.iter().chain(&session.service_checks).all(is_well)
    }

    fn status_of(&self, session: &Session, check: &CheckId) -> Option<Status> {
        self.catalog.check(&session.node, check).map(|row| row.value.status)
    }
}

/// The one key that a change is about; none for a tree.
pub(super) fn key_of(change: &Change) -> Option<Key> {
    match change {
        Change::Set(write)
        | Change::Cas(write, _)
        | Change::Lock(write, _)
        | Change::Unlock(write, _) => Some(write.key.clone()),
        Change::Delete(key) | Change::DeleteCas(key, _) => Some(key.clone()),
        Change::DeleteTree(_) => None,
    }
}

/// Who waits for any of these keys, or for what begins as they do.
pub(super) fn key_topics(keys: &BTreeSet<Key>) -> Vec<Topic> {
    let folders: BTreeSet<&str> = keys.iter().flat_map(kv::folders).collect();
    let folders = folders.into_iter().map(|folder| Topic::Folder(Arc::from(folder)));
    folders.chain(keys.iter().cloned().map(Topic::Key)).collect()
}

const SESSIONS_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::{Check, Locality, Meta, Node};
    use crate::clock::UnixTime;
    use crate::kv::Write;
    use crate::name::NodeName;
    use crate::state::{Command, NodeChanges};

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a good name")
    }

    fn apply(state: &mut State, command: Command) -> Result<Vec<Topic>, Rejection> {
        let index = Index(state.applied().0 + 1);
        state.apply(Stamp { index, time: UnixTime::from_secs(1_000 + index.0) }, command)
    }

    fn sync(checks: &[(&str, Status)], drop: &[&str]) -> Command {
        let node = Node {
            name: name("n1"),
            id: "id".into(),
            address: [10, 0, 0, 1].into(),
            locality: Locality::default(),
            meta: Meta::new(),
            tagged: Default::default(),
        };
        let check = |(id, status): &(&str, Status)| Check {
            id: name(id),
            name: (*id).into(),
            kind: "ttl".into(),
            status: *status,
            notes: "".into(),
            output: "".into(),
            instance: None,
            run: Default::default(),
        };
        Command::SyncNode(NodeChanges {
            node,
            put_instances: Vec::new(),
            put_checks: checks.iter().map(check).collect(),
            drop_instances: Vec::new(),
            drop_checks: drop.iter().map(|id| name(id)).collect(),
        })
    }

    fn session(id: &str, behavior: Behavior, checks: &[&str]) -> Session {
        Session {
            id: name(id),
            name: "".into(),
            node: name("n1"),
            lock_delay: Duration::ZERO,
            behavior,
            ttl: None,
            node_checks: checks.iter().map(|id| name(id)).collect(),
            service_checks: Vec::new(),
        }
    }

    fn lock(key: &str, by: &str) -> Command {
        let write = Write { key: name(key), value: Arc::from(*b"x"), flags: 0 };
        Command::Kv(Change::Lock(write, name(by)))
    }

    /// A node with a passing check, and two sessions that end with it: each holds a key.
    fn locked() -> State {
        let mut state = State::default();
        for command in [
            sync(&[("app", Status::Passing)], &[]),
            Command::CreateSession(session("freeing", Behavior::Release, &["serfHealth", "app"])),
            Command::CreateSession(session("deleting", Behavior::Delete, &["app"])),
            lock("a/1", "freeing"),
            lock("a/2", "deleting"),
        ] {
            apply(&mut state, command).expect("applied");
        }
        state
    }

    #[test]
    fn sessions_end_with_what_they_stand_on() {
        let liveness = |dead: &[&str]| Command::SetLiveness {
            dead: dead.iter().map(|node| name(node)).collect(),
            alive: Vec::new(),
        };
        let cases = [
            // command, sessions left, why
            (sync(&[("app", Status::Warning)], &[]), vec!["deleting", "freeing"], "a warning"),
            (sync(&[("new", Status::Critical)], &[]), vec!["deleting", "freeing"], "not theirs"),
            (sync(&[("app", Status::Critical)], &[]), vec![], "critical"),
            (sync(&[], &["app"]), vec![], "the check is gone"),
            (liveness(&["n1"]), vec!["deleting"], "the agent is dead"),
            (Command::DropNode(name("n1")), vec![], "the node is gone"),
            (Command::EndSession(name("freeing")), vec!["deleting"], "destroyed"),
        ];
        for (command, expected, why) in cases {
            let mut state = locked();
            let topics = apply(&mut state, command).expect(why);
            let left: Vec<_> = state.sessions().iter().map(|row| row.value.id.as_str()).collect();
            assert_eq!(left, expected, "{why}");
            let holder = |key: &str| {
                let row = state.kv().get(&name(key))?;
                Some(row.value.session.as_ref().map(ToString::to_string))
            };
            let freed = if left.contains(&"freeing") { Some("freeing".to_owned()) } else { None };
            assert_eq!(holder("a/1"), Some(freed), "{why}: free, and still there");
            assert_eq!(holder("a/2").is_some(), left.contains(&"deleting"), "{why}");
            let is_woken = topics.contains(&Topic::Sessions);
            assert_eq!(is_woken, left.len() < 2, "{why}: {topics:?}");
            assert_eq!(topics.contains(&Topic::Folder("a/".into())), is_woken, "{why}");
            let restored = State::restore(state.dump());
            assert_eq!(format!("{:?}", restored.dump()), format!("{:?}", state.dump()));
        }
    }

    #[test]
    fn a_session_needs_a_node_and_checks_that_are_well() {
        let mut state = locked();
        apply(&mut state, sync(&[("bad", Status::Critical)], &[])).expect("applied");
        let elsewhere =
            Session { node: name::<NodeName>("n2"), ..session("s", Behavior::Release, &[]) };
        let cases = [
            (elsewhere, Rejection::UnknownNode { node: name("n2") }),
            (
                session("s", Behavior::Release, &["none"]),
                Rejection::UnknownCheck { check: name("none") },
            ),
            (
                session("s", Behavior::Release, &["bad"]),
                Rejection::CriticalCheck { check: name("bad") },
            ),
        ];
        for (session, expected) in cases {
            assert_eq!(apply(&mut state, Command::CreateSession(session)), Err(expected));
        }
        let unknown = Rejection::UnknownSession { session: name("s") };
        assert_eq!(apply(&mut state, lock("b", "s")), Err(unknown), "and a lock needs a session");
    }

    #[test]
    fn a_write_wakes_its_key_and_its_folders_only() {
        let mut state = State::default();
        let write = Write { key: name("a/b/c"), value: Arc::from(*b""), flags: 0 };
        let topics = apply(&mut state, Command::Kv(Change::Set(write))).expect("room");
        let folder = |text: &str| Topic::Folder(text.into());
        assert_eq!(topics, [folder(""), folder("a/"), folder("a/b/"), Topic::Key(name("a/b/c"))]);
    }
}
