//! Recovery from a lost quorum: one server of those that are left becomes the whole cluster.
//!
//! The one way round the rule that a majority decides; so it is an operator's decision, made on the
//! folder of a server that does not run. Entries of its log that were never acknowledged count from
//! now on. The server gets another id, so that none of those that were given up takes it for the
//! one that it knew, and their ids are kept: they are not let in again.

use std::io;
use std::path::{Path, PathBuf};

use hawser_core::clock::{Index, Stamp, UnixTime};
use hawser_core::operation::LEVEL;
use hawser_core::state::{Command, State};
use hawser_proto::{Invalid, v1};
use prometheus::{Histogram, HistogramOpts};
use prost::Message;

use crate::snapshot::Snapshots;
use crate::store::{OpenError, Slot, Store};

/// What the folder of a server that does not run holds, read and not yet changed.
pub struct Recovery {
    store: Store,
    snapshots: Snapshots,
    state: State,
    last: v1::LogId,
    own: v1::Member,
    others: Vec<v1::Member>,
    committed: u64,
}

/// Why a folder cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// It cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The disk refused, or what it holds is damaged.
    #[error("{path}: {source}")]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no cluster in it.
    #[error("{0}: this server was never part of a cluster, so there is nothing to recover")]
    Empty(PathBuf),
    /// The log and the snapshots do not fit together.
    #[error("{path}: no intact snapshot reaches entry {purged}, after which the log begins")]
    Gap {
        /// The folder.
        path: PathBuf,
        /// The last entry that the log no longer has.
        purged: u64,
    },
    /// A newer release wrote it.
    #[error(
        "{path}: the cluster reached level {level}, and this release knows {LEVEL}: use a newer one"
    )]
    Level {
        /// The folder.
        path: PathBuf,
        /// The level.
        level: u32,
    },
}

impl Recovery {
    /// Reads everything in `folder`, the server's own (`<data_dir>/server`), and changes nothing.
    ///
    /// # Errors
    /// [`RecoverError`]
    pub fn read(folder: &Path) -> Result<Self, RecoverError> {
        let io = |source| RecoverError::Io { path: folder.to_owned(), source };
        if !Store::exists(folder) {
            return Err(RecoverError::Empty(folder.to_owned()));
        }
        let options = HistogramOpts::new("fsync", "Not collected.");
        let fsync = Histogram::with_opts(options).map_err(|why| io(io::Error::other(why)))?;
        let store = Store::open_any(folder, fsync)?;
        let snapshots = Snapshots::open(folder).map_err(io)?;
        let purged = log_id(&store, Slot::Purged).map_err(io)?;
        let mut found = Replay::from_snapshot(&snapshots, purged.index, folder)?;
        found.replay(&store, purged).map_err(io)?;
        let level = found.state.operation().level();
        if level > LEVEL {
            return Err(RecoverError::Level { path: folder.to_owned(), level });
        }
        let owner = store.owner();
        let (mine, others): (Vec<_>, Vec<_>) = found
            .members
            .into_iter()
            .partition(|member| member.id == owner.server_id || member.name == owner.node);
        let own = mine.into_iter().find(|member| !member.address.is_empty());
        let own = own.filter(|_| found.last.index > 0);
        let own = own.ok_or_else(|| RecoverError::Empty(folder.to_owned()))?;
        let committed = log_id(&store, Slot::Committed).map_err(io)?.index.max(found.applied_from);
        let Replay { state, last, .. } = found;
        Ok(Self { store, snapshots, state, last, own, others, committed })
    }

    /// The server's name, and the cluster's UUID.
    pub fn owner(&self) -> (&str, &str) {
        let owner = self.store.owner();
        (&owner.node, &owner.cluster_id)
    }

    /// The last entry that it has, and the last that it knows to be committed.
    pub fn last(&self) -> (u64, u64) {
        (self.last.index, self.committed)
    }

    /// The servers that are given up: name and address.
    pub fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        self.others.iter().map(|member| (member.name.as_str(), member.address.as_str()))
    }

    /// Makes this server the whole cluster, durably. Done again, it does no more harm.
    ///
    /// # Errors
    /// The disk's. The server does not lead then, nor does it vote, until this succeeds.
    pub async fn commit(self) -> io::Result<()> {
        let Self { store, snapshots, mut state, last, own, others, .. } = self;
        let id = rand::random_range(1..=u64::MAX);
        let gone = others.iter().map(|member| member.id);
        state.give_up(gone.chain([own.id, store.owner().server_id]));
        let membership = v1::Membership {
            configs: vec![v1::membership::Config { voters: vec![id] }],
            members: vec![v1::Member { id, ..own }],
        };
        let meta = v1::SnapshotMeta {
            last: Some(last),
            membership_log: Some(last),
            membership: Some(membership),
            ..Default::default()
        };
        // First what the log's end leads to, then the end of the log: a server that starts between
        // the two is no member, and waits.
        tokio::task::spawn_blocking(move || snapshots.write(&meta, &state)).await??;
        store.recover(id, last.index, last.encode_to_vec()).await
    }
}

/// A state that grows with a log that is read from the disk.
struct Replay {
    state: State,
    last: v1::LogId,
    members: Vec<v1::Member>,
    applied_from: u64,
}

impl Replay {
    /// As of the newest intact snapshot that the log goes on from.
    fn from_snapshot(
        snapshots: &Snapshots,
        purged: u64,
        folder: &Path,
    ) -> Result<Self, RecoverError> {
        let path = || folder.to_owned();
        let mut refused = None;
        for file in snapshots.list().map_err(|source| RecoverError::Io { path: path(), source })? {
            match file.read() {
                Ok((meta, state)) => {
                    let last = meta.last.unwrap_or_default();
                    if last.index < purged {
                        break;
                    }
                    let members = meta.membership.unwrap_or_default().members;
                    return Ok(Self { state, last, members, applied_from: last.index });
                }
                Err(failure) => refused = refused.or(Some(io::Error::from(failure))),
            }
        }
        match (purged, refused) {
            (0, _) => Ok(Self {
                state: State::default(),
                last: v1::LogId::default(),
                members: Vec::new(),
                applied_from: 0,
            }),
            (_, Some(source)) => Err(RecoverError::Io { path: path(), source }),
            (purged, None) => Err(RecoverError::Gap { path: path(), purged }),
        }
    }

    /// Applies every entry that the log has, acknowledged or not.
    fn replay(&mut self, store: &Store, purged: v1::LogId) -> io::Result<()> {
        let first = if purged.index == 0 { 0 } else { purged.index.saturating_add(1) };
        let mut next = match self.last.index {
            0 => first,
            last => last.saturating_add(1),
        };
        let Some(end) = store.last().map(|last| last.saturating_add(1)) else { return Ok(()) };
        while next < end {
            let records = store.read(next, end, BATCH_BYTES)?;
            let Some((last, _)) = records.last() else {
                return Err(io::Error::other(format!("log entry {next} is missing")));
            };
            next = last.saturating_add(1);
            for (index, bytes) in &records {
                let unreadable = |why: &dyn std::fmt::Display| {
                    let text = format!("log entry {index} cannot be read by this release: {why}");
                    io::Error::new(io::ErrorKind::InvalidData, text)
                };
                let entry = v1::LogEntry::decode(&**bytes).map_err(|why| unreadable(&why))?;
                self.apply(entry).map_err(|why| unreadable(&why))?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, entry: v1::LogEntry) -> Result<(), Invalid> {
        use v1::log_entry::Payload;
        let missing = |what| Invalid::new(what, "it is missing, or none that this release knows");
        let id = entry.id.ok_or_else(|| missing("log_entry.id"))?;
        let index = Index(id.index);
        self.last = id;
        match entry.payload.ok_or_else(|| missing("log_entry.payload"))? {
            Payload::Command(command) => {
                let (time, command) = <(UnixTime, Command)>::try_from(command)?;
                // A refusal is an outcome like any other.
                drop(self.state.apply(Stamp { index, time }, command));
            }
            Payload::Membership(membership) => {
                self.members = membership.members;
                self.state.skip(index);
            }
            Payload::Blank(v1::Nothing {}) => self.state.skip(index),
        }
        Ok(())
    }
}

fn log_id(store: &Store, slot: Slot) -> io::Result<v1::LogId> {
    match store.slot(slot) {
        Some(bytes) => Ok(v1::LogId::decode(bytes.as_slice())?),
        None => Ok(v1::LogId::default()),
    }
}

const BATCH_BYTES: usize = 4 << 20;
