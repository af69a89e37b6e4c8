//! openraft's state machine around [`State::apply`], and its snapshots.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::{Stream, StreamExt};
use hawser_core::clock::{Index, Stamp};
use hawser_core::operation::LEVEL;
use hawser_core::state::{State, Topic};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};

use super::types::{
    LogId, Outcome, Proposal, Snapshot, SnapshotMeta, Stored, Types, meta_from, meta_to,
};
use crate::config::LOG_BYTES_MAX;
use crate::metrics::{Metrics, level};
use crate::snapshot::{self, Snapshots};
use crate::space::Space;
use crate::watch::Published;

/// The state that grows with the log.
#[derive(Debug)]
pub(crate) struct Machine {
    state: State,
    last: Option<LogId>,
    membership: Stored,
    files: Files,
    published: Published,
    space: Space,
    metrics: Metrics,
}

/// The snapshot files with the one that is current.
#[derive(Clone, Debug)]
struct Files {
    snapshots: Snapshots,
    current: Arc<Mutex<Option<Snapshot>>>,
}

/// Writes one snapshot, of the state as it was when this was made.
#[derive(Debug)]
pub(crate) struct Builder {
    state: State,
    meta: SnapshotMeta,
    files: Files,
    metrics: Metrics,
}

impl Machine {
    /// The state as of the newest intact snapshot from which the log goes on; `purged` is the
    /// last entry that the log no longer has.
    ///
    /// # Errors
    /// The disk's; or no snapshot is intact that the log goes on from.
    pub(crate) fn open(
        snapshots: Snapshots,
        purged: Option<u64>,
        published: Published,
        space: Space,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let mut machine = Self {
            state: State::default(),
            last: None,
            membership: Stored::default(),
            files: Files { snapshots, current: Arc::default() },
            published,
            space,
            metrics,
        };
        let mut refused: Option<io::Error> = None;
        for file in machine.files.snapshots.list()? {
            match file.read() {
                Ok((meta, state)) => {
                    let meta = meta_from(meta).map_err(io::Error::other)?;
                    if meta.last_log_id.map(|id| id.index) < purged {
                        break;
                    }
                    Self::expect_level(&state)?;
                    machine.take(&meta, state, file);
                    return Ok(machine);
                }
                Err(failure) => {
                    tracing::error!(error = %failure, "a snapshot cannot be read");
                    refused.get_or_insert(failure.into());
                }
            }
        }
        match (purged, refused) {
            (None, _) => Ok(machine),
            (Some(_), Some(refused)) => Err(refused),
            (Some(purged), None) => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no snapshot reaches entry {purged}, and the log begins after it"),
            )),
        }
    }

    /// What a newer release wrote cannot be applied as it means it: then this server must not go on.
    fn expect_level(state: &State) -> io::Result<()> {
        let level = state.operation().level();
        if level <= LEVEL {
            return Ok(());
        }
        let why = format!(
            "the cluster has reached level {level}, and this release knows {LEVEL}: start the \
             release that ran here before, or a newer one"
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }

    fn take(&mut self, meta: &SnapshotMeta, state: State, file: snapshot::Snapshot) {
        self.state = state;
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.files.set(Snapshot { meta: meta.clone(), snapshot: file });
        self.metrics.applied_index.set(level(self.state.applied().0));
        self.published.replace(self.state.clone());
    }

    fn apply_one(
        &mut self,
        id: LogId,
        payload: EntryPayload<Proposal, u64, super::types::Place>,
        changed: &mut BTreeSet<Topic>,
    ) -> Outcome {
        let index = Index(id.index);
        self.last = Some(id);
        match payload {
            EntryPayload::Normal(Proposal { time, command }) => {
                let topics = self.state.apply(Stamp { index, time }, command)?;
                changed.extend(topics);
            }
            EntryPayload::Membership(membership) => {
                self.membership = Stored::new(Some(id), membership);
                self.state.skip(index);
            }
            EntryPayload::Blank => self.state.skip(index),
        }
        Ok(index)
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = snapshot::Snapshot;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Stored)> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        loop {
            let began = Instant::now();
            let mut changed = BTreeSet::new();
            let mut answers = Vec::new();
            let mut applied = 0_usize;
            while applied < PUBLISHED_TOGETHER_MAX {
                let Some(item) = entries.next().await else { break };
                let (entry, responder) = item?;
                let outcome = self.apply_one(entry.log_id, entry.payload, &mut changed);
                answers.extend(responder.map(|responder| (responder, outcome)));
                applied += 1;
            }
            if applied == 0 {
                return Ok(());
            }
            Self::expect_level(&self.state)?;
            // Published before it is answered: who has the answer reads the write.
            self.metrics.applied_index.set(level(self.state.applied().0));
            self.published.publish(self.state.clone(), &changed);
            for (responder, outcome) in answers {
                responder.send(outcome);
            }
            self.metrics.apply_seconds.observe(began.elapsed().as_secs_f64());
        }
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        // One that can wait does: it frees room in the end, and needs some first. One that does
        // not fit would end the process, here and at the same entry on every other server.
        let last = self.files.current().as_ref().map_or(0, |last| last.snapshot.length());
        if !force && !self.space.fits(last.saturating_mul(2).saturating_add(SNAPSHOT_GROWTH_BYTES))
        {
            return None;
        }
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let meta =
            SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() };
        Builder {
            state: self.state.clone(),
            meta,
            files: self.files.clone(),
            metrics: self.metrics.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        file: snapshot::Snapshot,
    ) -> io::Result<()> {
        let snapshots = self.files.snapshots.clone();
        let description = meta_to(meta);
        let (state, file) = tokio::task::spawn_blocking(move || {
            let (found, state) = file.read()?;
            if found != description {
                let why = format!("{}: it is of another entry than said", file.path().display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            Ok((state, snapshots.keep(file, &description)?))
        })
        .await??;
        Self::expect_level(&state)?;
        self.take(meta, state, file);
        self.metrics.snapshots_installed.inc();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.files.current().clone())
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = snapshot::Snapshot;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (state, snapshots) = (self.state.clone(), self.files.snapshots.clone());
        let description = meta_to(&self.meta);
        let file =
            tokio::task::spawn_blocking(move || snapshots.write(&description, &state)).await??;
        let snapshot = Snapshot { meta: self.meta.clone(), snapshot: file };
        self.files.set(snapshot.clone());
        self.metrics.snapshots_written.inc();
        Ok(snapshot)
    }
}

impl Files {
    /// Makes `snapshot` the current one, unless a newer came in meanwhile.
    fn set(&self, snapshot: Snapshot) {
        let mut current = self.current();
        if current.as_ref().is_none_or(|held| held.meta.last_log_id <= snapshot.meta.last_log_id) {
            *current = Some(snapshot);
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Snapshot>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Publishing costs a clone and wake-ups, waiting costs latency: a batch at most this long.
const PUBLISHED_TOGETHER_MAX: usize = 1_024;
/// How much larger than twice the last a snapshot may be: a log as long as it may get, all new keys.
const SNAPSHOT_GROWTH_BYTES: u64 = LOG_BYTES_MAX;
