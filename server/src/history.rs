//! What the mesh's traffic was: edges by minute, on each server's own disk, bounded and expendable.
//!
//! This is the one store here that may lose what it was given. If it does not open it is moved
//! aside and started anew; nothing else depends on it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hawser_core::clock::UnixTime;
use hawser_core::edge::{EdgeKey, Tally};
use hawser_proto::v1;
use prost::Message;
use sled::IVec;

use crate::identity::now;

/// How much history a server keeps.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For how long.
    pub max_age: Duration,
    /// How many octets on disk at most.
    pub max_bytes: u64,
    /// How many different edges in one minute; more are not recorded.
    pub edges_per_minute: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(24 * 3600),
            max_bytes: 256 * 1024 * 1024,
            edges_per_minute: 10_000,
        }
    }
}

/// One edge in one minute.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EdgeMinute {
    /// Minutes since the Unix epoch.
    pub minute: u64,
    /// Which edge.
    pub key: EdgeKey,
    /// What happened on it.
    pub tally: Tally,
}

impl From<&EdgeMinute> for v1::EdgeMinute {
    fn from(row: &EdgeMinute) -> Self {
        Self { minute: row.minute, edge: Some((&row.key, &row.tally).into()) }
    }
}

impl TryFrom<v1::EdgeMinute> for EdgeMinute {
    type Error = hawser_proto::Invalid;

    fn try_from(row: v1::EdgeMinute) -> Result<Self, Self::Error> {
        let (key, tally) = row.edge.unwrap_or_default().try_into()?;
        Ok(Self { minute: row.minute, key, tally })
    }
}

/// Why history cannot be kept at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made or moved.
    #[error("cannot prepare {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not even an empty one opens.
    #[error("cannot start a new history in {}", path.display())]
    Anew {
        /// Where.
        path: PathBuf,
        /// Why, when it said so.
        source: Option<sled::Error>,
    },
}

/// One server's history. Clones share it. Its methods touch the disk: call them where blocking is
/// allowed.
#[derive(Clone)]
pub struct History {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    path: PathBuf,
    limits: Limits,
    /// None only while it is rebuilt, or after that failed.
    db: Option<sled::Db>,
    /// What is held of each minute.
    held: BTreeMap<u64, Held>,
    bytes: u64,
}

/// How much of one minute is held.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Held {
    edges: usize,
    bytes: u64,
}

impl History {
    /// Opens the history in `folder`; if it does not open, moves it aside to
    /// `history.broken-<unix seconds>` beside it and starts anew.
    ///
    /// # Errors
    /// [`OpenError`] when not even that is possible.
    pub fn open(folder: &Path, limits: Limits) -> Result<Self, OpenError> {
        let path = folder.to_owned();
        let refused = |source| OpenError::Folder { path: folder.to_owned(), source };
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent).map_err(refused)?;
        }
        // A store that brings the process down when it is opened leaves this mark behind. Without
        // it, a process that aborts on panic would try the same store forever.
        let mark = beside(folder, "opening");
        let died = mark.exists();
        fs::write(&mark, b"").map_err(refused)?;
        let opened = if died { Err(None) } else { open_and_count(folder) };
        let (db, held) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let aside = beside(folder, &format!("broken-{}", now().as_secs()));
                tracing::error!(?error, died, aside = %aside.display(), "the traffic history does \
                    not open: moved aside, starting anew");
                if folder.exists() {
                    forget_broken(folder).map_err(refused)?;
                    fs::rename(folder, &aside).map_err(refused)?;
                }
                open_and_count(folder).map_err(|source| OpenError::Anew { path, source })?
            }
        };
        fs::remove_file(&mark).map_err(refused)?;
        let bytes = held.values().map(|held| held.bytes).sum();
        let inner = Inner { path: folder.to_owned(), limits, db: Some(db), held, bytes };
        Ok(Self { inner: Arc::new(Mutex::new(inner)) })
    }

    /// Adds `edges` to the minute of `now`, and answers how many did not fit.
    ///
    /// # Errors
    /// The store's own.
    pub fn record(
        &self,
        now: UnixTime,
        edges: impl IntoIterator<Item = (EdgeKey, Tally)>,
    ) -> Result<usize, sled::Error> {
        self.lock().record(minute_of(now), edges)
    }

    /// Every edge of the minutes `from..=to`, newest minute first; at most 100,000 rows or 16 MiB,
    /// so that what is cut off is the oldest.
    ///
    /// # Errors
    /// The store's own.
    pub fn range(&self, from: u64, to: u64) -> Result<Vec<EdgeMinute>, sled::Error> {
        let Some(db) = self.lock().db.clone() else { return Ok(Vec::new()) };
        let until = to.saturating_add(1).to_be_bytes();
        let (mut rows, mut octets) = (Vec::new(), 0);
        for row in db.range(from.to_be_bytes()..until).rev().take(ROWS_MAX) {
            let (key, value) = row?;
            octets += key.len() + value.len();
            if octets > RANGE_OCTETS_MAX {
                break;
            }
            rows.extend(decode(&key, &value));
        }
        Ok(rows)
    }

    /// Waits until all that was recorded is on disk.
    ///
    /// # Errors
    /// The store's own.
    pub fn flush(&self) -> Result<(), sled::Error> {
        let db = self.lock().db.clone();
        db.map_or(Ok(()), |db| db.flush().map(drop))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Counts are set from the store's rows at each opening, so a panic leaves them near enough.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn record(
        &mut self,
        minute: u64,
        edges: impl IntoIterator<Item = (EdgeKey, Tally)>,
    ) -> Result<usize, sled::Error> {
        if !self.held.contains_key(&minute) {
            self.prune(minute)?;
        }
        let Some(db) = self.db.clone() else { return Ok(edges.into_iter().count()) };
        let mut held = self.held.get(&minute).copied().unwrap_or_default();
        let mut refused = 0;
        for (key, mut tally) in edges {
            let row_key = row_key(minute, &key);
            let old = db.get(&row_key)?;
            match &old {
                Some(old) => {
                    if let Some(row) = decode(&row_key, old) {
                        tally.merge(&row.tally);
                    }
                }
                None if held.edges >= self.limits.edges_per_minute => {
                    refused += 1;
                    continue;
                }
                None => held.edges += 1,
            }
            let value = v1::Edge::from((&key, &tally)).encode_to_vec();
            let octets = |value: usize| (row_key.len() + value) as u64;
            let (more, less) = (octets(value.len()), old.map_or(0, |old| octets(old.len())));
            held.bytes = (held.bytes + more).saturating_sub(less);
            self.bytes = (self.bytes + more).saturating_sub(less);
            db.insert(row_key, value)?;
        }
        self.held.insert(minute, held);
        Ok(refused)
    }

    /// Drops what is too old or too much, before a new minute begins.
    fn prune(&mut self, minute: u64) -> Result<(), sled::Error> {
        let Some(db) = self.db.clone() else { return Ok(()) };
        let oldest = minute.saturating_sub(self.limits.max_age.as_secs() / 60);
        // What the store keeps on disk is a multiple of what it is given.
        let bytes_max = self.limits.max_bytes / AMPLIFICATION;
        while let Some((&first, held)) = self.held.first_key_value()
            && (first < oldest || self.bytes > bytes_max)
        {
            self.bytes = self.bytes.saturating_sub(held.bytes);
            self.held.pop_first();
            let keys = db.range(first.to_be_bytes()..(first + 1).to_be_bytes()).keys();
            for key in keys.collect::<Result<Vec<_>, _>>()? {
                db.remove(key)?;
            }
        }
        if db.size_on_disk()? > self.limits.max_bytes {
            drop(db);
            self.rebuild()?;
        }
        Ok(())
    }

    /// Writes what is held into a new store: the old one's file never shrinks.
    fn rebuild(&mut self) -> Result<(), sled::Error> {
        let Some(old) = self.db.take() else { return Ok(()) };
        let rows: Vec<(IVec, IVec)> = old.iter().collect::<Result<_, _>>()?;
        drop(old);
        fs::remove_dir_all(&self.path)?;
        let db = config(&self.path).open()?;
        for (key, value) in rows {
            db.insert(key, value)?;
        }
        self.db = Some(db);
        Ok(())
    }
}

/// The edges of several minutes, or of several servers, each summed up.
pub fn sum(rows: impl IntoIterator<Item = EdgeMinute>) -> BTreeMap<EdgeKey, Tally> {
    let mut edges: BTreeMap<EdgeKey, Tally> = BTreeMap::new();
    for row in rows {
        edges.entry(row.key).or_default().merge(&row.tally);
    }
    edges
}

/// The minute that `time` falls into.
pub fn minute_of(time: UnixTime) -> u64 {
    time.as_secs() / 60
}

type Counted = (sled::Db, BTreeMap<u64, Held>);

/// Opens the store and reads all of it, so that what is broken shows now and not later.
fn open_and_count(path: &Path) -> Result<Counted, Option<sled::Error>> {
    let open = || -> Result<Counted, sled::Error> {
        let db = config(path).open()?;
        let mut held: BTreeMap<u64, Held> = BTreeMap::new();
        for row in db.iter() {
            let (key, value) = row?;
            let Some(minute) = minute_in(&key) else { continue };
            let held = held.entry(minute).or_default();
            held.edges += 1;
            held.bytes += (key.len() + value.len()) as u64;
        }
        Ok((db, held))
    };
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(Some),
        Err(_) => Err(None),
    }
}

fn config(path: &Path) -> sled::Config {
    sled::Config::new().path(path).cache_capacity(CACHE_OCTETS).flush_every_ms(Some(FLUSH_EVERY_MS))
}

/// `<folder>.<suffix>`
fn beside(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    folder.with_file_name(name)
}

/// Removes what was moved aside before: one broken store is enough to look into.
fn forget_broken(folder: &Path) -> io::Result<()> {
    let prefix = beside(folder, "broken-");
    let prefix = prefix.file_name().unwrap_or_default().to_string_lossy();
    for entry in fs::read_dir(folder.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&*prefix) {
            let is_folder = entry.file_type()?.is_dir();
            let path = entry.path();
            if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) }?;
        }
    }
    Ok(())
}

/// The minute first, so that ages are ranges; names hold no NUL.
fn row_key(minute: u64, key: &EdgeKey) -> Vec<u8> {
    let EdgeKey { source, destination, cluster, verdict } = key;
    let mut row = minute.to_be_bytes().to_vec();
    row.extend(format!("{source}\0{destination}\0{cluster}\0{verdict}").into_bytes());
    row
}

fn minute_in(key: &[u8]) -> Option<u64> {
    key.first_chunk().copied().map(u64::from_be_bytes)
}

/// The row; none when it is damaged, for one lost row is no reason to lose them all.
fn decode(key: &[u8], value: &[u8]) -> Option<EdgeMinute> {
    let minute = minute_in(key)?;
    let (key, tally) = v1::Edge::decode(value).ok()?.try_into().ok()?;
    Some(EdgeMinute { minute, key, tally })
}

const ROWS_MAX: usize = 100_000;
/// Half of what servers take from each other in one message.
const RANGE_OCTETS_MAX: usize = 16 * 1024 * 1024;
const AMPLIFICATION: u64 = 4;
const CACHE_OCTETS: u64 = 16 * 1024 * 1024;
const FLUSH_EVERY_MS: u64 = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(source: &str, destination: &str, count: u64) -> (EdgeKey, Tally) {
        let key = EdgeKey {
            source: source.parse().expect("a name"),
            destination: destination.parse().expect("a name"),
            cluster: "".into(),
            verdict: "ok".into(),
        };
        let mut tally = Tally { count, bytes_sent: 10 * count, ..Tally::default() };
        tally.latency.record(Duration::from_millis(count));
        (key, tally)
    }

    fn counts(history: &History, from: u64, to: u64) -> Vec<(u64, String, u64)> {
        let rows = history.range(from, to).expect("read");
        rows.iter().map(|row| (row.minute, row.key.source.to_string(), row.tally.count)).collect()
    }

    fn minute(minute: u64) -> UnixTime {
        UnixTime::from_secs(minute * 60 + 59)
    }

    fn row(minute: u64, source: &str, count: u64) -> (u64, String, u64) {
        (minute, source.to_owned(), count)
    }

    #[test]
    fn reports_of_one_minute_add_up_and_outlive_the_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history");
        let history = History::open(&path, Limits::default()).expect("opens");
        for (at, source, count) in
            [(100, "web", 3), (100, "web", 4), (100, "app", 1), (101, "web", 5)]
        {
            history.record(minute(at), [edge(source, "db", count)]).expect("recorded");
        }
        let all = [row(101, "web", 5), row(100, "web", 7), row(100, "app", 1)];
        assert_eq!(counts(&history, 0, u64::MAX), all);
        assert_eq!(counts(&history, 100, 100), all[1..]);
        assert_eq!(counts(&history, 102, 200), []);
        let summed = sum(history.range(0, 200).expect("read"));
        let web = &summed[&edge("web", "db", 0).0];
        assert_eq!((web.count, web.bytes_sent), (12, 120));
        assert_eq!(web.latency.buckets().map(|(_, count)| count).sum::<u64>(), 3);
        history.flush().expect("flushed");
        drop(history);
        let again = History::open(&path, Limits::default()).expect("opens again");
        assert_eq!(counts(&again, 0, u64::MAX), all);
        assert_eq!(again.lock().held.len(), 2);
    }

    #[test]
    fn history_is_bounded_by_age_by_size_and_by_edges_in_a_minute() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits {
            max_age: Duration::from_secs(120),
            max_bytes: 64 * 1024 * 1024,
            edges_per_minute: 2,
        };
        let history = History::open(&folder.path().join("history"), limits).expect("opens");
        let three = || [edge("a", "z", 1), edge("b", "z", 1), edge("c", "z", 1)];
        assert_eq!(history.record(minute(10), three()).expect("recorded"), 1);
        assert_eq!(history.record(minute(10), three()).expect("recorded"), 1, "still");
        assert_eq!(counts(&history, 0, 99), [row(10, "b", 2), row(10, "a", 2)]);
        history.record(minute(12), [edge("a", "z", 1)]).expect("recorded");
        assert_eq!(counts(&history, 0, 99).len(), 3, "two minutes old is not too old");
        history.record(minute(13), [edge("a", "z", 1)]).expect("recorded");
        assert_eq!(counts(&history, 0, 99), [row(13, "a", 1), row(12, "a", 1)]);

        history.lock().limits.max_bytes = 0;
        history.record(minute(14), [edge("a", "z", 9)]).expect("recorded");
        assert_eq!(counts(&history, 0, 99), [row(14, "a", 9)], "no room for the past");
        let held = history.lock().held.clone();
        assert_eq!(held.into_keys().collect::<Vec<_>>(), [14]);
    }

    #[test]
    fn a_store_that_outgrew_its_bound_is_rebuilt_with_what_it_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        let history =
            History::open(&folder.path().join("history"), Limits::default()).expect("opens");
        history.record(minute(1), [edge("a", "z", 1)]).expect("recorded");
        history.lock().rebuild().expect("rebuilt");
        history.record(minute(2), [edge("a", "z", 2)]).expect("recorded");
        assert_eq!(counts(&history, 0, 9), [row(2, "a", 2), row(1, "a", 1)]);
    }

    #[test]
    fn what_does_not_open_is_moved_aside() {
        type Damage = fn(&Path);
        let cases: [(&str, usize, Damage); 3] = [
            ("garbage for the store, which sled takes for an empty one", 0, |path| {
                fs::write(path.join("db"), vec![0xa5; 1 << 20]).expect("written");
            }),
            ("a file for a folder", 1, |path| {
                fs::remove_dir_all(path).expect("removed");
                fs::write(path, b"not a folder").expect("written");
            }),
            ("a process that died opening it", 1, |path| {
                fs::write(beside(path, "opening"), b"").expect("written");
            }),
        ];
        for (why, moved, damage) in cases {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("history");
            let history = History::open(&path, Limits::default()).expect(why);
            history.record(minute(1), [edge("a", "z", 1)]).expect(why);
            history.flush().expect(why);
            drop(history);
            damage(&path);
            let anew = History::open(&path, Limits::default()).expect(why);
            assert_eq!(counts(&anew, 0, 9), [], "{why}");
            anew.record(minute(2), [edge("a", "z", 2)]).expect(why);
            assert_eq!(counts(&anew, 0, 9), [row(2, "a", 2)], "{why}");
            let aside = fs::read_dir(folder.path())
                .expect("a folder")
                .filter_map(Result::ok)
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("history.broken-"));
            assert_eq!(aside.count(), moved, "{why}");
            assert!(!beside(&path, "opening").exists(), "{why}");
        }
    }

    #[test]
    fn a_damaged_row_is_passed_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let history =
            History::open(&folder.path().join("history"), Limits::default()).expect("opens");
        history.record(minute(1), [edge("a", "z", 1)]).expect("recorded");
        let db = history.lock().db.clone().expect("open");
        let key = row_key(1, &edge("b", "z", 1).0);
        db.insert(key, b"\xff\xff").expect("written");
        assert_eq!(counts(&history, 0, 9), [row(1, "a", 1)]);
    }
}
