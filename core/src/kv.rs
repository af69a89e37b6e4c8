//! The key-value store: items under keys, the locks that sessions hold on them, and what was
//! deleted.
//!
//! A deleted key leaves a tombstone, so that the index of what a reader waits for never goes back.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::catalog::{Row, upsert};
use crate::clock::{Index, Stamp, UnixTime};
use crate::name::{Key, SessionId};

/// What stands under a key.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Item {
    /// The value, any octets.
    pub value: Arc<[u8]>,
    /// A number that means what its writers agree on.
    pub flags: u64,
    /// How often the key was locked.
    pub lock_index: u64,
    /// Who holds the lock now.
    pub session: Option<SessionId>,
}

/// What a writer puts under a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// Where.
    pub key: Key,
    /// The value: at most [`VALUE_OCTETS_MAX`], which is the border's to check.
    pub value: Arc<[u8]>,
    /// The flags.
    pub flags: u64,
}

/// One change of the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// Puts an item.
    Set(Write),
    /// Puts an item, while the key's `ModifyIndex` is this one (0: absent).
    Cas(Write, Index),
    /// Puts an item and takes its lock for a session.
    Lock(Write, SessionId),
    /// Puts an item and gives up its lock, while the session holds it.
    Unlock(Write, SessionId),
    /// Removes a key; one that is not there is no error.
    Delete(Key),
    /// Removes a key, while its `ModifyIndex` is this one; one that is not there is no error.
    DeleteCas(Key, Index),
    /// Removes every key that begins with this text.
    DeleteTree(Arc<str>),
}

/// Why a change is refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Somebody else wrote first.
    Mismatch {
        /// What the writer had seen.
        expected: Index,
        /// What it is.
        actual: Index,
    },
    /// Another session holds the lock, or held it until just now.
    Locked,
    /// The session does not hold the lock.
    NotHolder,
    /// The store is at a bound.
    Full {
        /// Of what there is too much.
        what: &'static str,
        /// The bound.
        max: usize,
    },
}

/// The store: persistent, so that a clone is a pointer and a long read blocks no write.
#[derive(Clone, Debug, Default)]
pub struct Kv {
    items: RedBlackTreeMapSync<Key, Row<Item>>,
    /// When each deleted key was deleted.
    tombstones: RedBlackTreeMapSync<Key, Index>,
    /// The same, oldest first.
    buried: RedBlackTreeSetSync<(Index, Key)>,
    /// The newest among the tombstones that were cleared away.
    cleared: Index,
    /// Who holds which lock.
    held: RedBlackTreeSetSync<(SessionId, Key)>,
    /// Until when keys whose holder went away without a word cannot be locked.
    delays: RedBlackTreeMapSync<Key, UnixTime>,
    /// The last change of any key.
    index: Index,
    octets: usize,
}

/// The store taken apart: what a snapshot holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rows {
    /// Items by key.
    pub items: Vec<(Key, Row<Item>)>,
    /// When each deleted key was deleted.
    pub tombstones: Vec<(Key, Index)>,
    /// Until when keys cannot be locked.
    pub delays: Vec<(Key, UnixTime)>,
    /// The newest among the tombstones that were cleared away.
    pub cleared: Index,
    /// The last change of any key.
    pub index: Index,
}

impl Rows {
    /// Adds the rows of `other`.
    pub(crate) fn append(&mut self, other: Self) {
        self.items.extend(other.items);
        self.tombstones.extend(other.tombstones);
        self.delays.extend(other.delays);
        self.cleared = self.cleared.max(other.cleared);
        self.index = self.index.max(other.index);
    }
}

impl Kv {
    /// One item.
    pub fn get(&self, key: &Key) -> Option<&Row<Item>> {
        self.items.get(key)
    }

    /// Every item whose key begins with `prefix`, by key.
    pub fn below<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Row<Item>)> + 'a {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.items
            .range::<str, _>(from)
            .take_while(move |(key, _)| key.as_str().starts_with(prefix))
    }

    /// The last change of any key.
    pub fn index(&self) -> Index {
        self.index
    }

    /// The last change of `key`: also its removal.
    pub fn index_of(&self, key: &Key) -> Index {
        let there = self.items.get(key).map(|row| row.modified);
        there.or_else(|| self.tombstones.get(key).copied()).unwrap_or(self.cleared)
    }

    /// The last change of any key that begins with `prefix`, removals among them.
    pub fn index_below(&self, prefix: &str) -> Index {
        if prefix.is_empty() {
            return self.index;
        }
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let gone = self.tombstones.range::<str, _>(from);
        let gone = gone.take_while(|(key, _)| key.as_str().starts_with(prefix));
        let there = self.below(prefix).map(|(_, row)| row.modified);
        there.chain(gone.map(|(_, index)| *index)).fold(self.cleared, Index::max)
    }

    /// The keys whose locks `session` holds.
    pub fn held_by(&self, session: &SessionId) -> Vec<Key> {
        let from = (session.clone(), first_key());
        let held = self.held.range(from..).take_while(|(holder, _)| holder == session);
        held.map(|(_, key)| key.clone()).collect()
    }

    /// Applies one change; `touched` gets the keys that are not what they were.
    ///
    /// Whether the session of a lock exists is the caller's to know.
    ///
    /// # Errors
    /// [`Refusal`]; then nothing is changed.
    pub fn apply(
        &mut self,
        change: Change,
        stamp: Stamp,
        touched: &mut BTreeSet<Key>,
    ) -> Result<(), Refusal> {
        let at = stamp.index;
        match change {
            Change::Set(write) => self.set(write, at, touched),
            Change::Cas(write, expected) => {
                self.expect(&write.key, expected)?;
                self.set(write, at, touched)
            }
            Change::Lock(write, session) => self.lock(write, session, stamp, touched),
            Change::Unlock(write, session) => {
                let held = self.items.get(&write.key);
                let held = held.filter(|row| row.value.session.as_ref() == Some(&session));
                let lock_index = held.ok_or(Refusal::NotHolder)?.value.lock_index;
                let Write { key, value, flags } = write;
                self.put(key, Item { value, flags, lock_index, session: None }, at, touched)
            }
            Change::Delete(key) => {
                self.remove(&key, at, touched);
                Ok(())
            }
            Change::DeleteCas(key, expected) => {
                if self.items.contains_key(&key) {
                    self.expect(&key, expected)?;
                    self.remove(&key, at, touched);
                }
                Ok(())
            }
            Change::DeleteTree(prefix) => {
                let keys: Vec<Key> = self.below(&prefix).map(|(key, _)| key.clone()).collect();
                for key in keys {
                    self.remove(&key, at, touched);
                }
                Ok(())
            }
        }
    }

    /// Takes the lock of `key` from its holder, who is gone: the key stays free for nobody until
    /// `delay` is over; with `is_deleted`, the item goes, too.
    pub fn evict(
        &mut self,
        key: &Key,
        is_deleted: bool,
        delay: Duration,
        stamp: Stamp,
        touched: &mut BTreeSet<Key>,
    ) {
        let Some(row) = self.items.get(key).cloned() else { return };
        if is_deleted {
            self.remove(key, stamp.index, touched);
        } else {
            let item = Item { session: None, ..(*row.value).clone() };
            // It is no longer than before, so that no bound can stand in the way.
            let freed = self.put(key.clone(), item, stamp.index, touched);
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
        if !delay.is_zero() {
            self.delays.insert_mut(key.clone(), stamp.time.plus(delay.min(LOCK_DELAY_MAX)));
        }
    }

    fn set(&mut self, write: Write, at: Index, touched: &mut BTreeSet<Key>) -> Result<(), Refusal> {
        let Write { key, value, flags } = write;
        let old = self.items.get(&key).map(|row| row.value.clone());
        let (lock_index, session) =
            old.map_or((0, None), |old| (old.lock_index, old.session.clone()));
        self.put(key, Item { value, flags, lock_index, session }, at, touched)
    }

    fn lock(
        &mut self,
        write: Write,
        session: SessionId,
        stamp: Stamp,
        touched: &mut BTreeSet<Key>,
    ) -> Result<(), Refusal> {
        let Write { key, value, flags } = write;
        let old = self.items.get(&key).map(|row| row.value.clone()).unwrap_or_default();
        let lock_index = match &old.session {
            Some(holder) if *holder == session => old.lock_index,
            Some(_) => return Err(Refusal::Locked),
            None if self.delays.get(&key).is_some_and(|until| *until > stamp.time) => {
                return Err(Refusal::Locked);
            }
            None => old.lock_index + 1,
        };
        self.put(
            key,
            Item { value, flags, lock_index, session: Some(session) },
            stamp.index,
            touched,
        )
    }

    fn expect(&self, key: &Key, expected: Index) -> Result<(), Refusal> {
        let actual = self.items.get(key).map_or(Index(0), |row| row.modified);
        if actual == expected { Ok(()) } else { Err(Refusal::Mismatch { expected, actual }) }
    }

    /// The one place where an item is written. What equals the item that is there is no change.
    fn put(
        &mut self,
        key: Key,
        item: Item,
        at: Index,
        touched: &mut BTreeSet<Key>,
    ) -> Result<(), Refusal> {
        let old = self.items.get(&key).map(|row| row.value.clone());
        if old.as_deref() == Some(&item) {
            return Ok(());
        }
        if old.is_none() && self.items.size() >= KEYS_MAX {
            return Err(Refusal::Full { what: "keys", max: KEYS_MAX });
        }
        let before = old.as_deref().map_or(0, |old| weight(&key, old));
        let octets = self.octets - before + weight(&key, &item);
        if octets > OCTETS_MAX && octets > self.octets {
            return Err(Refusal::Full { what: "octets of keys and values", max: OCTETS_MAX });
        }
        if let Some(holder) = old.as_deref().and_then(|old| old.session.clone()) {
            self.held.remove_mut(&(holder, key.clone()));
        }
        if let Some(holder) = item.session.clone() {
            self.held.insert_mut((holder, key.clone()));
            self.delays.remove_mut(&key);
        }
        self.octets = octets;
        self.index = at;
        self.unbury(&key);
        touched.insert(key.clone());
        upsert(&mut self.items, key, item, at);
        Ok(())
    }

    fn remove(&mut self, key: &Key, at: Index, touched: &mut BTreeSet<Key>) {
        let Some(row) = self.items.get(key).cloned() else { return };
        self.items.remove_mut(key);
        if let Some(holder) = row.value.session.clone() {
            self.held.remove_mut(&(holder, key.clone()));
        }
        self.octets -= weight(key, &row.value);
        self.index = at;
        self.bury(key.clone(), at);
        touched.insert(key.clone());
    }

    fn bury(&mut self, key: Key, at: Index) {
        self.tombstones.insert_mut(key.clone(), at);
        self.buried.insert_mut((at, key));
        while self.buried.size() > TOMBSTONES_MAX {
            let Some(oldest) = self.buried.first().cloned() else { return };
            self.buried.remove_mut(&oldest);
            self.tombstones.remove_mut(&oldest.1);
            self.cleared = self.cleared.max(oldest.0);
        }
    }

    fn unbury(&mut self, key: &Key) {
        if let Some(at) = self.tombstones.get(key).copied() {
            self.tombstones.remove_mut(key);
            self.buried.remove_mut(&(at, key.clone()));
        }
    }

    pub(crate) fn clear_delays(&mut self, now: UnixTime) {
        let over: Vec<Key> = self
            .delays
            .iter()
            .filter(|(_, until)| **until <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in over {
            self.delays.remove_mut(&key);
        }
    }

    /// Every row: what a snapshot holds.
    pub fn dump(&self) -> Rows {
        Rows {
            items: self.items.iter().map(|(key, row)| (key.clone(), row.clone())).collect(),
            tombstones: self.tombstones.iter().map(|(key, at)| (key.clone(), *at)).collect(),
            delays: self.delays.iter().map(|(key, until)| (key.clone(), *until)).collect(),
            cleared: self.cleared,
            index: self.index,
        }
    }

    /// The store that `rows` were taken of.
    pub fn restore(rows: Rows) -> Self {
        let holder =
            |(key, row): &(Key, Row<Item>)| Some((row.value.session.clone()?, key.clone()));
        Self {
            held: rows.items.iter().filter_map(holder).collect(),
            octets: rows.items.iter().map(|(key, row)| weight(key, &row.value)).sum(),
            items: rows.items.into_iter().collect(),
            buried: rows.tombstones.iter().map(|(key, at)| (*at, key.clone())).collect(),
            tombstones: rows.tombstones.into_iter().collect(),
            delays: rows.delays.into_iter().collect(),
            cleared: rows.cleared,
            index: rows.index,
        }
    }
}

/// The folder of a key or prefix: all up to its last slash.
pub fn folder(text: &str) -> &str {
    text.rfind('/').map_or("", |slash| &text[..=slash])
}

/// Every folder that holds `key`, the outermost first: the one without a name holds all.
pub fn folders(key: &Key) -> impl Iterator<Item = &str> {
    let text = key.as_str();
    std::iter::once("").chain(text.match_indices('/').map(|(slash, _)| &text[..=slash]))
}

fn weight(key: &Key, item: &Item) -> usize {
    key.as_str().len() + item.value.len()
}

fn first_key() -> Key {
    " ".parse().expect("a space is printable")
}

/// The most octets that one value may have.
pub const VALUE_OCTETS_MAX: usize = 512 * 1024;
/// The longest that a key stays unlocked after its holder is gone.
pub const LOCK_DELAY_MAX: Duration = Duration::from_secs(60);
const KEYS_MAX: usize = 500_000;
const OCTETS_MAX: usize = 512 * 1024 * 1024;
/// Removals that are remembered one by one; of older ones, only that there were some.
const TOMBSTONES_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        text.parse().expect("a key")
    }

    fn session(text: &str) -> SessionId {
        text.parse().expect("an id")
    }

    fn write(at: &str, value: &str) -> Write {
        Write { key: key(at), value: value.as_bytes().into(), flags: 0 }
    }

    /// A store and its log: each change is an entry of its own, a second after the last.
    #[derive(Default)]
    struct Store {
        kv: Kv,
        at: u64,
    }

    impl Store {
        fn stamp(&mut self) -> Stamp {
            self.at += 1;
            Stamp { index: Index(self.at), time: UnixTime::from_secs(self.at) }
        }

        fn apply(&mut self, change: Change) -> Result<Vec<String>, Refusal> {
            let stamp = self.stamp();
            let mut touched = BTreeSet::new();
            self.kv.apply(change, stamp, &mut touched)?;
            Ok(touched.iter().map(ToString::to_string).collect())
        }

        fn evict(&mut self, at: &str, is_deleted: bool, delay: u64) {
            let stamp = self.stamp();
            let delay = Duration::from_secs(delay);
            self.kv.evict(&key(at), is_deleted, delay, stamp, &mut BTreeSet::new());
        }

        fn keys(&self, prefix: &'static str) -> Vec<&str> {
            self.kv.below(prefix).map(|(key, _)| key.as_str()).collect()
        }
    }

    #[test]
    fn a_write_is_compared_with_what_is_there() {
        let mut store = Store::default();
        let cas = |value: &str, expected| Change::Cas(write("a", value), Index(expected));
        let mismatch = |expected, actual| {
            Err(Refusal::Mismatch { expected: Index(expected), actual: Index(actual) })
        };
        let touched = || Ok(vec!["a".to_owned()]);
        let steps = [
            // change, expected, why; each is the next entry of the log
            (cas("1", 5), mismatch(5, 0), "nothing is there"),
            (cas("1", 0), touched(), "2: created"),
            (cas("2", 0), mismatch(0, 2), "it is there"),
            (cas("2", 2), touched(), "4: swapped"),
            (Change::Set(write("a", "2")), Ok(vec![]), "an equal write is no change"),
            (cas("3", 4), touched(), "6: so the index is still that of the swap"),
            (Change::DeleteCas(key("a"), Index(4)), mismatch(4, 6), "written since"),
            (Change::DeleteCas(key("a"), Index(6)), touched(), "8: removed"),
            (Change::DeleteCas(key("a"), Index(6)), Ok(vec![]), "gone is gone"),
            (Change::Delete(key("a")), Ok(vec![]), "gone is gone"),
        ];
        for (change, expected, why) in steps {
            assert_eq!(store.apply(change), expected, "{why}");
        }
    }

    #[test]
    fn an_index_never_goes_back_when_keys_go() {
        let mut store = Store::default();
        for at in ["a/1", "a/2", "b"] {
            store.apply(Change::Set(write(at, "x"))).expect("room");
        }
        let indexes = |store: &Store| {
            let below = ["", "a/", "b", "c"].map(|prefix| store.kv.index_below(prefix).0);
            (below, store.kv.index_of(&key("a/1")).0)
        };
        assert_eq!(indexes(&store), ([3, 2, 3, 0], 1));
        assert_eq!(store.apply(Change::DeleteTree("a/".into())).expect("done"), ["a/1", "a/2"]);
        assert_eq!(indexes(&store), ([4, 4, 3, 0], 4), "the tombstones speak");
        assert_eq!(store.keys(""), ["b"]);
        let restored = Kv::restore(store.kv.dump());
        assert_eq!(restored.index_below("a/"), Index(4), "after a snapshot, too");
        store.apply(Change::Set(write("a/1", "y"))).expect("room");
        assert_eq!(indexes(&store), ([5, 5, 3, 0], 5));
        for at in 0..=TOMBSTONES_MAX {
            store.apply(Change::Set(write(&format!("t/{at}"), ""))).expect("room");
        }
        let before = store.at;
        store.apply(Change::DeleteTree("t/".into())).expect("done");
        assert_eq!(store.kv.tombstones.size(), TOMBSTONES_MAX, "they are bounded");
        assert!(store.kv.index_of(&key("a/2")).0 >= 4, "forgotten, and still not less");
        assert!(store.kv.index_of(&key("t/1")).0 > before);
    }

    #[test]
    fn a_lock_has_one_holder_and_is_counted() {
        let mut store = Store::default();
        let lock = |at: &str, by: &str| Change::Lock(write(at, by), session(by));
        let unlock = |at: &str, by: &str| Change::Unlock(write(at, ""), session(by));
        let touched = || Ok(vec!["l".to_owned()]);
        let steps = [
            (unlock("l", "a"), Err(Refusal::NotHolder), "there is no such key", 0),
            (lock("l", "a"), touched(), "made and locked", 1),
            (lock("l", "b"), Err(Refusal::Locked), "one at a time", 1),
            (lock("l", "a"), Ok(vec![]), "held already", 1),
            (Change::Set(write("l", "any")), touched(), "a lock is advisory", 1),
            (unlock("l", "b"), Err(Refusal::NotHolder), "not b's to give up", 1),
            (unlock("l", "a"), touched(), "given up", 1),
            (lock("l", "b"), touched(), "free at once: it was given up", 2),
        ];
        for (change, expected, why, count) in steps {
            assert_eq!(store.apply(change), expected, "{why}");
            let held = store.kv.get(&key("l")).map_or(0, |row| row.value.lock_index);
            assert_eq!(held, count, "{why}");
        }
        assert_eq!(store.kv.held_by(&session("b")), [key("l")]);
        assert_eq!(Kv::restore(store.kv.dump()).held_by(&session("b")), [key("l")]);
    }

    #[test]
    fn a_key_whose_holder_is_gone_stays_free_for_nobody_for_a_while() {
        let mut store = Store::default();
        let lock = |by: &str| Change::Lock(write("l", by), session(by));
        store.apply(lock("a")).expect("free");
        store.evict("l", false, 2);
        assert_eq!(store.kv.held_by(&session("a")), []);
        assert_eq!(store.apply(lock("b")), Err(Refusal::Locked), "a second later");
        store.apply(lock("b")).expect("two seconds later");
        store.evict("l", true, 3_600);
        assert_eq!(store.keys(""), [""; 0], "deleted with its holder");
        assert_eq!(store.apply(lock("a")), Err(Refusal::Locked), "though deleted");
        store.at += LOCK_DELAY_MAX.as_secs();
        store.apply(lock("a")).expect("no delay is longer than the bound");
    }

    #[test]
    fn a_key_is_in_each_of_its_folders() {
        let cases = [
            ("a", vec![""]),
            ("a/b", vec!["", "a/"]),
            ("a/b/", vec!["", "a/", "a/b/"]),
            ("/", vec!["", "/"]),
        ];
        for (text, expected) in cases {
            assert_eq!(folders(&key(text)).collect::<Vec<_>>(), expected, "{text}");
        }
        for (text, expected) in [("", ""), ("a", ""), ("a/", "a/"), ("a/b", "a/")] {
            assert_eq!(folder(text), expected, "{text}");
        }
    }
}
