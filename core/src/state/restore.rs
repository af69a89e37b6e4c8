//! Restoring: a snapshot that takes the state's place through the log, part by part.

use std::sync::Arc;

use super::{Dump, Rejection, State, Topic};
use crate::ca::Authority;
use crate::catalog::Row;
use crate::clock::{Index, Stamp};
use crate::query::PreparedQuery;

/// A part of a snapshot that is to be restored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RestorePart {
    /// Which restoration it belongs to.
    pub id: Arc<str>,
    /// Its place: from 0 on, one after the other.
    pub number: u32,
    /// Some rows.
    pub rows: Box<Dump>,
}

/// What a snapshot's authority is to a cluster that has one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AuthorityChoice {
    /// The cluster's own goes on to sign; the snapshot's roots are trusted for a while.
    #[default]
    Keep,
    /// The snapshot's signs again; the cluster's own roots are trusted for a while. For a new
    /// cluster that takes the place of one that is lost.
    Restore,
}

/// The parts of a restoration that have come so far.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Staged {
    /// Which restoration it is.
    pub id: Arc<str>,
    /// The parts, in order.
    pub parts: Vec<Arc<Dump>>,
}

impl State {
    pub(super) fn stage(&mut self, part: RestorePart) -> Result<Vec<Topic>, Rejection> {
        let RestorePart { id, number, rows } = part;
        if number == 0 {
            // Another that was begun is given up.
            self.staged = Some(Staged { id, parts: vec![Arc::new(*rows)] });
            return Ok(Vec::new());
        }
        let staged = self.staged.as_mut().filter(|staged| staged.id == id);
        let staged = staged.filter(|staged| staged.parts.len() == number as usize);
        let staged = staged.ok_or(Rejection::NotStaged)?;
        if staged.parts.len() >= PARTS_MAX {
            return Err(Rejection::Full { what: "parts of a snapshot", max: PARTS_MAX });
        }
        staged.parts.push(Arc::new(*rows));
        Ok(Vec::new())
    }

    /// Puts what was staged into the place of everything but the cluster itself. Revocations
    /// stay: an identity does not become trustworthy by a restoration.
    pub(super) fn restore_staged(
        &mut self,
        id: &str,
        parts: u32,
        choice: AuthorityChoice,
        stamp: Stamp,
    ) -> Result<Vec<Topic>, Rejection> {
        let is_it = |staged: &Staged| *staged.id == *id && staged.parts.len() == parts as usize;
        let staged = self.staged.take().filter(is_it).ok_or(Rejection::NotStaged)?;
        let mut whole = Dump::default();
        for part in staged.parts {
            whole.append(Dump::clone(&part));
        }
        whole.rebase(stamp.index);
        whole.cluster.clone_from(&self.cluster);
        // An archive of before the first token must not open the door to whoever comes first.
        whole.acl.bootstrapped = whole.acl.bootstrapped.or(self.acl.bootstrapped());
        whole.authority = chosen(self.authority.take(), whole.authority, choice, stamp);
        for row in self.revocations.iter() {
            let is_it = |held: &&Row<_>| held.value == row.value;
            if !whole.revocations.iter().any(|held| is_it(&held)) {
                whole.revocations.retain(|held| held.value.subject != row.value.subject);
                whole.revocations.push(row.clone());
            }
        }
        let archived = std::mem::replace(&mut whole.operation, self.operation.clone());
        whole.operation.adopt(archived, stamp.index);
        whole.applied = stamp.index;
        *self = Self::restore(whole);
        Ok(vec![Topic::Everything])
    }
}

/// The authority that goes on, with the roots of the other trusted for a while.
fn chosen(
    own: Option<Authority>,
    old: Option<Authority>,
    choice: AuthorityChoice,
    stamp: Stamp,
) -> Option<Authority> {
    let (mut stays, goes) = match (own, old, choice) {
        (Some(own), Some(old), AuthorityChoice::Keep) => (own, old),
        (Some(own), Some(old), AuthorityChoice::Restore) => (old, own),
        (own, old, _) => return own.or(old),
    };
    // What either has retired is trusted by neither again, unless it is what signs from now on.
    let kept = goes.retired.iter().filter(|id| stays.active().is_none_or(|root| root.id != **id));
    let kept: Vec<Arc<str>> = kept.cloned().collect();
    stays.retire(&kept);
    for mut root in goes.roots {
        if stays.retired.contains(&root.id) {
            continue;
        }
        if stays.roots.len() < ROOTS_MAX && stays.roots.iter().all(|held| held.id != root.id) {
            root.active = false;
            root.rotated_out = Some(stamp.time);
            stays.roots.push(root);
        }
    }
    stays.index = stamp.index;
    Some(stays)
}

impl Dump {
    /// Adds the rows of `other`; what there is only once is taken from whichever has it.
    pub fn append(&mut self, other: Self) {
        let Self {
            applied,
            cluster,
            nodes,
            instances,
            checks,
            indexes,
            down_since,
            intentions,
            intentions_index,
            entries,
            entries_index,
            authority,
            revocations,
            revocations_index,
            join_tokens,
            acl,
            peerings,
            peerings_index,
            imports,
            imports_index,
            kv,
            sessions,
            sessions_index,
            events,
            operation,
            queries,
            queries_index,
            staged: _,
        } = other;
        self.applied = self.applied.max(applied);
        self.cluster = self.cluster.take().or(cluster);
        self.nodes.extend(nodes);
        self.instances.extend(instances);
        self.checks.extend(checks);
        self.indexes.append(indexes);
        self.down_since.extend(down_since);
        self.intentions.extend(intentions);
        self.intentions_index = self.intentions_index.max(intentions_index);
        self.entries.extend(entries);
        self.entries_index = self.entries_index.max(entries_index);
        self.authority = self.authority.take().or(authority);
        self.revocations.extend(revocations);
        self.revocations_index = self.revocations_index.max(revocations_index);
        self.join_tokens.extend(join_tokens);
        self.acl.append(acl);
        self.peerings.extend(peerings);
        self.peerings_index = self.peerings_index.max(peerings_index);
        self.imports.extend(imports);
        self.imports_index = self.imports_index.max(imports_index);
        self.kv.append(kv);
        self.sessions.extend(sessions);
        self.sessions_index = self.sessions_index.max(sessions_index);
        self.events.extend(events);
        if self.operation.is_default() {
            self.operation = operation;
        }
        self.append_queries(queries, queries_index);
    }

    fn append_queries(&mut self, rows: Vec<Row<PreparedQuery>>, index: Index) {
        self.queries.extend(rows);
        self.queries_index = self.queries_index.max(index);
    }

    /// Makes every row as of `at`: indexes of another log mean nothing in this one, and who waits
    /// for a newer one must wake.
    fn rebase(&mut self, at: Index) {
        fn rows<'a, T: 'a>(all: impl IntoIterator<Item = &'a mut Row<T>>, at: Index) {
            for row in all {
                row.created = row.created.min(at);
                row.modified = at;
            }
        }
        rows(&mut self.nodes, at);
        rows(self.instances.iter_mut().map(|(_, row)| row), at);
        rows(self.checks.iter_mut().map(|(_, row)| row), at);
        rows(&mut self.intentions, at);
        rows(&mut self.entries, at);
        rows(&mut self.revocations, at);
        rows(&mut self.acl.tokens, at);
        rows(&mut self.acl.policies, at);
        rows(&mut self.acl.roles, at);
        rows(&mut self.acl.methods, at);
        rows(&mut self.acl.bindings, at);
        rows(&mut self.peerings, at);
        rows(self.imports.iter_mut().map(|(_, row)| row), at);
        rows(self.kv.items.iter_mut().map(|(_, row)| row), at);
        rows(&mut self.sessions, at);
        self.indexes.rebase(at);
        self.intentions_index = at;
        self.entries_index = at;
        self.revocations_index = at;
        self.acl.index = at;
        self.acl.bootstrapped = self.acl.bootstrapped.map(|index| index.min(at));
        self.peerings_index = at;
        self.imports_index = at;
        self.kv.tombstones.clear();
        self.kv.cleared = at;
        self.kv.index = at;
        self.sessions_index = at;
        rows(&mut self.queries, at);
        self.queries_index = at;
        // What happened in another log did not happen in this one.
        self.events.clear();
        if let Some(authority) = &mut self.authority {
            authority.index = at;
            authority.created = authority.created.min(at);
            for root in &mut authority.roots {
                root.created = root.created.min(at);
                root.modified = at;
            }
        }
        // One that was used since would work a second time.
        self.join_tokens.clear();
    }
}

/// Parts of one restoration.
const PARTS_MAX: usize = 512;
/// As many as an authority may have.
const ROOTS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca::{Intermediate, Policy, Root, Validity};
    use crate::clock::UnixTime;
    use crate::kv::{Change, Write};
    use crate::name::NodeName;
    use crate::revocation::{Revocation, Subject};
    use crate::state::{Command, JoinToken};

    const VALIDITY: Validity =
        Validity { not_before: UnixTime::from_secs(0), not_after: UnixTime::from_secs(9) };

    fn apply(state: &mut State, command: Command) -> Result<Vec<Topic>, Rejection> {
        let index = Index(state.applied().0 + 1);
        state.apply(Stamp { index, time: UnixTime::from_secs(1_000 + index.0) }, command)
    }

    fn set(key: &str) -> Command {
        let write = Write { key: key.parse().expect("a key"), value: [1].into(), flags: 0 };
        Command::Kv(Change::Set(write))
    }

    fn stage(number: u32, rows: &Dump) -> Command {
        let rows = Box::new(rows.clone());
        Command::Stage(RestorePart { id: "r".into(), number, rows })
    }

    fn restore(parts: u32) -> Command {
        Command::Restore { id: "r".into(), parts, choice: AuthorityChoice::Keep }
    }

    fn revoked(service: &str) -> Revocation {
        let subject = Subject::Service(service.parse().expect("a name"));
        Revocation { subject, reason: "".into(), at: UnixTime::from_secs(9) }
    }

    fn authority(active: &str, others: &[&str], retired: &[&str]) -> Authority {
        let root = |id: &str| Root {
            id: id.into(),
            name: "".into(),
            certificate: [].into(),
            serial: 1,
            validity: VALIDITY,
            active: id == active,
            sealed_key: [].into(),
            cross: None,
            rotated_out: None,
            created: Index(1),
            modified: Index(1),
        };
        Authority {
            roots: [active].iter().chain(others).map(|id| root(id)).collect(),
            intermediate: Intermediate {
                certificate: [].into(),
                validity: VALIDITY,
                sealed_key: [].into(),
            },
            leaf_lifetime: Duration::from_secs(1),
            policy: Policy::default(),
            retired: retired.iter().map(|id| (*id).into()).collect(),
            created: Index(1),
            index: Index(1),
        }
    }

    #[test]
    fn a_root_that_was_retired_is_not_trusted_again_by_a_restoration() {
        use AuthorityChoice::{Keep, Restore};
        let cases = [
            // own, the snapshot's, choice, the roots that are trusted, why
            (
                ("b", [].as_slice(), ["a"].as_slice()),
                ("a", [].as_slice(), [].as_slice()),
                Keep,
                vec!["b"],
                "it was stolen, and retired since",
            ),
            (("b", &[], &[]), ("a", &[], &[]), Keep, vec!["b", "a"], "another's is, for a while"),
            (
                ("b", &[], &["a"]),
                ("a", &["c"], &[]),
                Restore,
                vec!["a", "c", "b"],
                "it signs again",
            ),
            (("b", &[], &["c"]), ("a", &["c"], &[]), Restore, vec!["a", "b"], "c signs nothing"),
            (("b", &[], &[]), ("a", &[], &["b"]), Keep, vec!["b", "a"], "what signs goes on"),
        ];
        for ((own, others, retired), (old, older, gone), choice, expected, why) in cases {
            let own = Some(authority(own, others, retired));
            let old = Some(authority(old, older, gone));
            let stamp = Stamp { index: Index(9), time: UnixTime::from_secs(9) };
            let chosen = chosen(own, old, choice, stamp).expect("there are two");
            let ids: Vec<&str> = chosen.roots.iter().map(|root| &*root.id).collect();
            assert_eq!(ids, expected, "{why}");
            assert!(chosen.active().is_some(), "{why}");
        }
        let mut held = authority("a", &[], &[]);
        let many: Vec<Arc<str>> = (0..100).map(|n| format!("r{n}").into()).collect();
        held.retire(&many);
        held.retire(&many[90..]);
        let (first, last) = (held.retired.first(), held.retired.last());
        assert_eq!(first.map(|id| &**id), Some("r36"), "the newest 64");
        assert_eq!(last.map(|id| &**id), Some("r99"));
    }

    #[test]
    fn what_was_saved_takes_the_place_of_what_came_after() {
        let mut state = State::default();
        apply(&mut state, set("old")).expect("stored");
        let node: NodeName = "n1".parse().expect("a name");
        let expires_at = UnixTime::from_secs(9_999);
        let token = JoinToken { hash: [1; 32], node, expires_at, used_by: None };
        apply(&mut state, Command::PutJoinToken(token)).expect("stored");
        let saved = state.dump();
        apply(&mut state, set("new")).expect("stored");
        apply(&mut state, Command::Revoke(revoked("web"))).expect("revoked");

        let half = Dump { kv: Default::default(), ..saved.clone() };
        let other = Dump { kv: saved.kv, ..Dump::default() };
        apply(&mut state, stage(0, &half)).expect("staged");
        assert_eq!(apply(&mut state, restore(2)), Err(Rejection::NotStaged), "one is missing");
        apply(&mut state, stage(0, &half)).expect("begun anew");
        assert_eq!(apply(&mut state, stage(2, &other)), Err(Rejection::NotStaged), "a gap");
        apply(&mut state, stage(1, &other)).expect("staged");
        // What is staged is part of the state, wherever it is taken up.
        let mut state = State::restore(state.dump());
        assert_eq!(apply(&mut state, restore(2)), Ok(vec![Topic::Everything]));

        let after = state.dump();
        let keys: Vec<&str> = after.kv.items.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["old"]);
        assert_eq!(after.kv.items[0].1.modified, state.applied(), "its index is of this log");
        assert_eq!(after.kv.items[0].1.created, Index(1));
        assert_eq!(after.revocations.len(), 1, "nobody is trusted again by it");
        assert!(after.join_tokens.is_empty(), "none works a second time");
        assert_eq!(apply(&mut state, restore(2)), Err(Rejection::NotStaged), "once");
    }
}
