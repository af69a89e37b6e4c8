//! Consensus by openraft. Nothing outside this folder names a type of it.

mod types;
mod log;
mod machine;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hawser_core::clock::{Index, UnixTime};
use hawser_core::state::{Command, Rejection};
use hawser_proto::{Invalid, Member, v1};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, LinearizableReadError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest};
use openraft::{ChangeMembers, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use self::log::Log;
use self::machine::Machine;
use self::network::Network;
use self::types::{Place, Proposal, Types};
use crate::dial::Dialer;
use crate::metrics::{Metrics, level};
use crate::snapshot::{Snapshot, Snapshots};
use crate::space::Space;
use crate::store::{Slot, Store};
use crate::watch::Published;

/// This server's part in the consensus. Clones share it.
#[derive(Clone)]
pub(crate) struct Raft {
    id: u64,
    inner: openraft::Raft<Types, Machine>,
    store: Weak<Store>,
    log_bytes_max: u64,
    status: watch::Receiver<Arc<Status>>,
}

/// What a [`Raft`] stands on.
pub(crate) struct Setup<'a> {
    pub(crate) cluster_id: &'a str,
    pub(crate) config: &'a crate::config::Config,
    pub(crate) store: Arc<Store>,
    pub(crate) snapshots: Snapshots,
    pub(crate) published: Published,
    pub(crate) dialer: Dialer,
    pub(crate) space: Space,
    pub(crate) metrics: Metrics,
}

/// What a server knows of the consensus at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Status {
    /// The term.
    pub term: u64,
    /// The leader's id, when one is known.
    pub leader: Option<u64>,
    /// Whether this server leads.
    pub is_leader: bool,
    /// The last entry in this server's log.
    pub last_index: u64,
    /// The last entry that this server knows to be committed.
    pub committed: u64,
    /// The last entry applied.
    pub applied: u64,
    /// The last entry in the current snapshot.
    pub snapshot: u64,
    /// The last entry that the log no longer has.
    pub purged: u64,
    /// Every member of the cluster, learners included.
    pub members: Vec<Member>,
    /// Those of them who vote, in the newest configuration.
    pub voters: BTreeSet<u64>,
    /// A change of voters is under way, and both sets must agree.
    pub is_joint: bool,
    /// While leading: how far each other member's log is known to match.
    pub matched: BTreeMap<u64, u64>,
    /// While leading: when each other member last answered a heartbeat.
    pub heard: BTreeMap<u64, Instant>,
    /// While leading: when a quorum last answered.
    pub quorum_heard: Option<Instant>,
    /// Consensus ended here: by a failure, or because it was stopped.
    pub is_stopped: bool,
}

/// Why a command was not applied.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum WriteError {
    /// This server does not lead, or not surely: the command was certainly not proposed.
    #[error("this server does not lead")]
    NotLeader,
    /// It may or may not be applied later.
    #[error("leadership was lost before the outcome was known")]
    Unknown,
}

/// Why there is no read index.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this server does not lead, or a quorum does not answer it")]
pub(crate) struct NotLeading;

/// Why a message of another server was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    /// It says what no server of this release says.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Consensus ended here.
    #[error("this server stops")]
    Stopped,
}

/// Why the membership did not change.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ChangeError {
    /// This server does not lead, or another change is under way: again later.
    #[error("not now: {0}")]
    NotNow(String),
}

impl Raft {
    /// Starts consensus from what the disk holds.
    ///
    /// # Errors
    /// The disk's; what it holds cannot be read; or the timing is impossible.
    pub(crate) async fn start(setup: Setup<'_>) -> io::Result<Self> {
        let Setup { cluster_id, config: settings, store, snapshots, .. } = setup;
        let (timing, snapshot_every) = (&settings.timing, settings.snapshot_every);
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: cluster_id.to_owned(),
            heartbeat_interval: millis(timing.heartbeat),
            election_timeout_min: millis(timing.election_min),
            election_timeout_max: millis(timing.election_max),
            install_snapshot_timeout: millis(SNAPSHOT_TRANSFER_MAX),
            max_payload_entries: ENTRIES_PER_APPEND_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
            // A follower that is a little behind is served from the log.
            max_in_snapshot_log_to_keep: snapshot_every,
            replication_lag_threshold: snapshot_every.saturating_mul(2),
            purge_batch_size: snapshot_every.div_ceil(8).max(1),
            enable_pre_vote: Some(true),
            // The state is in memory and the committed position is written late: a leader that
            // restarts must learn from a quorum what is committed before it leads again.
            enable_leader_restore: Some(false),
            ..Default::default()
        };
        let config = Arc::new(config.validate().map_err(io::Error::other)?);
        let id = store.owner().server_id;
        let purged = match store.slot(Slot::Purged) {
            Some(bytes) => Some(<v1::LogId as prost::Message>::decode(bytes.as_slice())?.index),
            None => None,
        };
        let machine = {
            let (published, space) = (setup.published.clone(), setup.space);
            let metrics = setup.metrics.clone();
            tokio::task::spawn_blocking(move || {
                Machine::open(snapshots, purged, published, space, metrics)
            })
            .await??
        };
        let dialer = setup.dialer.clone();
        let network = Network::new(id, setup.dialer);
        let inner = openraft::Raft::new(id, config, network, Log::new(Arc::clone(&store)), machine)
            .await
            .map_err(io::Error::other)?;
        let mut seen = inner.metrics();
        let (tell, status) = watch::channel(Arc::new(status_of(&seen.borrow_watched())));
        let metrics = setup.metrics;
        tokio::spawn(async move {
            // Ends when openraft does: it drops the other end of `seen`.
            loop {
                let now = status_of(&seen.borrow_watched());
                metrics.record(&now);
                for member in &now.members {
                    if tell.borrow().member(member.id).is_some_and(|held| held != member) {
                        dialer.note(member.id, &member.address);
                    }
                }
                tell.send_if_modified(|held| {
                    if held.leader != now.leader && now.leader.is_some() {
                        metrics.leader_changes.inc();
                    }
                    let differs = **held != now;
                    if differs {
                        *held = Arc::new(now);
                    }
                    differs
                });
                if seen.changed().await.is_err() {
                    let mut last = (**tell.borrow()).clone();
                    (last.is_stopped, last.is_leader, last.leader) = (true, false, None);
                    metrics.record(&last);
                    tell.send_replace(Arc::new(last));
                    return;
                }
            }
        });
        let log_bytes_max = settings.log_bytes_max;
        Ok(Self { id, inner, store: Arc::downgrade(&store), log_bytes_max, status })
    }

    /// This server's id.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// What is known now, and a way to wait for it to change.
    pub(crate) fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Whether this server has ever been part of a cluster.
    pub(crate) async fn is_initialised(&self) -> bool {
        self.inner.is_initialized().await.unwrap_or(true)
    }

    /// Proposes a command here and waits for its outcome.
    pub(crate) async fn propose(
        &self,
        time: UnixTime,
        command: Command,
    ) -> Result<Result<Index, Rejection>, WriteError> {
        match self.inner.client_write(Proposal { time, command }).await {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(WriteError::NotLeader)
            }
            Err(_) => Err(WriteError::Unknown),
        }
    }

    /// An index such that who has applied it reads everything that was acknowledged before the
    /// call: by a quorum's word, or by the leader's lease.
    pub(crate) async fn read_index(&self, quorum: bool) -> Result<Index, NotLeading> {
        let policy = if quorum { ReadPolicy::ReadIndex } else { ReadPolicy::LeaseRead };
        match self.inner.get_read_log_id(policy).await {
            Ok((read, _)) => Ok(Index(read.index())),
            Err(RaftError::APIError(
                LinearizableReadError::ForwardToLeader(_)
                | LinearizableReadError::QuorumNotEnough(_),
            ))
            | Err(RaftError::Fatal(_)) => Err(NotLeading),
        }
    }

    /// Makes `members` a cluster. Harmless where there is one already.
    pub(crate) async fn initialise(&self, members: &[Member]) -> Result<(), ChangeError> {
        let members: BTreeMap<u64, Place> =
            members.iter().map(|member| (member.id, place(member))).collect();
        match self.inner.initialize(members).await {
            Ok(()) => Ok(()),
            Err(failure) => Err(ChangeError::NotNow(failure.to_string())),
        }
    }

    /// Adds a member that does not vote, or notes that a member is dialled elsewhere now.
    pub(crate) async fn put_member(&self, member: &Member) -> Result<(), ChangeError> {
        let places = BTreeMap::from([(member.id, place(member))]);
        self.change(ChangeMembers::SetNodes(places)).await
    }

    /// Lets `id` vote and removes `replaced`, in one step.
    pub(crate) async fn promote(
        &self,
        id: u64,
        replaced: BTreeSet<u64>,
    ) -> Result<(), ChangeError> {
        let promote = ChangeMembers::AddVoterIds([id].into());
        if replaced.is_empty() {
            return self.change(promote).await;
        }
        let remove = ChangeMembers::RemoveVoters(replaced);
        self.change(ChangeMembers::Batch(vec![promote, remove])).await
    }

    /// Removes a member that votes.
    pub(crate) async fn remove_voter(&self, id: u64) -> Result<(), ChangeError> {
        self.change(ChangeMembers::RemoveVoters([id].into())).await
    }

    /// Removes members that do not vote.
    pub(crate) async fn remove_learners(&self, ids: BTreeSet<u64>) -> Result<(), ChangeError> {
        self.change(ChangeMembers::RemoveNodes(ids)).await
    }

    /// Ends a change of voters that a former leader left half done.
    pub(crate) async fn finish_change(&self) -> Result<(), ChangeError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::new())).await
    }

    async fn change(&self, change: ChangeMembers<u64, Place>) -> Result<(), ChangeError> {
        match self.inner.change_membership(change, false).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(ChangeError::NotNow(failure.to_string())),
        }
    }

    /// Asks `to` to lead in this server's place; it may decline.
    pub(crate) async fn transfer_leader(&self, to: u64) {
        if let Err(failure) = self.inner.trigger().transfer_leader(to).await {
            tracing::debug!(error = %failure, "leadership cannot be handed over");
        }
    }

    /// The voter who is most fit to lead in this server's place, when there is another.
    pub(crate) fn heir(&self) -> Option<u64> {
        self.heirs().first().copied()
    }

    /// The other voters, the most fit to lead in this server's place first.
    pub(crate) fn heirs(&self) -> Vec<u64> {
        let status = self.status.borrow();
        let mut others: Vec<u64> =
            status.voters.iter().copied().filter(|id| *id != self.id).collect();
        others.sort_by_key(|id| std::cmp::Reverse(status.matched.get(id)));
        others
    }

    /// For how long the disk has not finished what it was told to write.
    pub(crate) fn disk_busy(&self) -> Duration {
        self.store.upgrade().map_or(Duration::ZERO, |store| store.busy())
    }

    /// Writes a snapshot now.
    pub(crate) async fn snapshot(&self) {
        if let Err(failure) = self.inner.trigger().snapshot().await {
            tracing::debug!(error = %failure, "no snapshot can be written");
        }
    }

    /// Keeps the log short, by its size: how many entries it may have is bounded elsewhere, and a
    /// few of them can be large. Ends with `stop`.
    pub(crate) async fn bound_log(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(LOG_LOOKED_AT_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut status = self.status();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let Some(bytes) = self.store.upgrade().map(|store| store.log_bytes()) else { return };
            if bytes <= self.log_bytes_max {
                continue;
            }
            let before = Arc::clone(&status.borrow());
            if before.applied > before.snapshot {
                self.snapshot().await;
                let written = status.wait_for(|now| now.snapshot > before.snapshot);
                if !matches!(timeout(SNAPSHOT_TRANSFER_MAX, written).await, Ok(Ok(_))) {
                    continue;
                }
            }
            let upto = status.borrow().snapshot;
            if upto > before.purged && self.inner.trigger().purge_log(upto).await.is_ok() {
                tracing::info!(bytes, upto, "the log had grown large and is shortened");
            }
        }
    }

    /// Ends consensus here and waits until it has.
    pub(crate) async fn stop(&self) {
        if let Err(failure) = self.inner.shutdown().await {
            tracing::error!(error = %failure, "consensus ended badly");
        }
    }

    /// Answers a candidate.
    pub(crate) async fn vote(&self, from: v1::VoteRequest) -> Result<v1::VoteReply, MessageError> {
        let request = openraft::raft::VoteRequest {
            vote: types::vote_from(from.vote)?,
            last_log_id: from.last.map(types::log_id_from),
            leadership_transfer: from.leadership_transfer,
        };
        let reply = if from.pre_vote {
            self.inner.pre_vote(request).await
        } else {
            self.inner.vote(request).await
        };
        let reply = reply.map_err(|_| MessageError::Stopped)?;
        Ok(v1::VoteReply {
            vote: Some(types::vote_to(&reply.vote)),
            granted: reply.vote_granted,
            last: reply.last_log_id.as_ref().map(types::log_id_to),
        })
    }

    /// Takes entries, or a heartbeat, from a leader.
    pub(crate) async fn append(
        &self,
        from: v1::AppendRequest,
    ) -> Result<v1::AppendReply, MessageError> {
        use v1::append_reply::Kind;
        let entries =
            from.entries.into_iter().map(types::entry_from).collect::<Result<Vec<_>, _>>()?;
        let request = AppendEntriesRequest {
            vote: types::vote_from(from.vote)?,
            prev_log_id: from.previous.map(types::log_id_from),
            entries,
            leader_commit: from.committed.map(types::log_id_from),
        };
        let reply = self.inner.append_entries(request).await.map_err(|_| MessageError::Stopped)?;
        let kind = match reply {
            AppendEntriesResponse::Success => Kind::Success(v1::Nothing {}),
            AppendEntriesResponse::PartialSuccess(matched) => Kind::Partial(v1::PartialSuccess {
                matched: matched.as_ref().map(types::log_id_to),
            }),
            AppendEntriesResponse::Conflict => Kind::Conflict(v1::Nothing {}),
            AppendEntriesResponse::HigherVote(vote) => Kind::HigherVote(types::vote_to(&vote)),
        };
        Ok(v1::AppendReply { kind: Some(kind) })
    }

    /// Replaces the state by a snapshot that a leader sent.
    pub(crate) async fn install(
        &self,
        from: v1::SnapshotMeta,
        file: Snapshot,
    ) -> Result<v1::SnapshotReply, MessageError> {
        let vote = types::vote_from(from.vote)?;
        let meta = types::meta_from(from)?;
        let snapshot = types::Snapshot { meta, snapshot: file };
        let reply = self
            .inner
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|_| MessageError::Stopped)?;
        Ok(v1::SnapshotReply { vote: Some(types::vote_to(&reply.vote)) })
    }

    /// Hears that a leader hands its office to another.
    pub(crate) async fn hear_transfer(
        &self,
        from: v1::TransferRequest,
    ) -> Result<(), MessageError> {
        let vote = types::vote_from(from.vote)?;
        let request = TransferLeaderRequest::new(vote, from.to, from.last.map(types::log_id_from));
        let heard: Result<_, Fatal<Types>> = self.inner.handle_transfer_leader(request).await;
        match heard {
            Ok(outcome) => {
                if let Err(declined) = outcome {
                    tracing::info!(reason = %declined, "leadership is not taken over");
                }
                Ok(())
            }
            Err(_) => Err(MessageError::Stopped),
        }
    }
}

impl Status {
    /// Whether this server leads with a quorum behind it: one cut off from the others believes
    /// to lead until it hears of another leader.
    pub fn leads_within(&self, lease: Duration) -> bool {
        self.is_leader
            && (self.voters.len() == 1
                || self.quorum_heard.is_some_and(|heard| heard.elapsed() <= lease))
    }

    /// The member with this id.
    pub fn member(&self, id: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }
}

impl Metrics {
    fn record(&self, status: &Status) {
        self.term.set(level(status.term));
        self.is_leader.set(i64::from(status.is_leader));
        self.last_index.set(level(status.last_index));
        self.committed_index.set(level(status.committed));
    }
}

fn place(member: &Member) -> Place {
    Place { name: member.name.to_string(), address: member.address.clone() }
}

fn status_of(metrics: &RaftMetrics<Types>) -> Status {
    let index = |id: &Option<types::LogId>| id.map_or(0, |id| id.index);
    let membership = metrics.membership_config.membership();
    let is_leader = metrics.state == ServerState::Leader;
    Status {
        term: metrics.current_term,
        leader: metrics.current_leader,
        is_leader,
        last_index: metrics.last_log_index.unwrap_or(0),
        committed: index(&metrics.local_committed),
        applied: index(&metrics.last_applied),
        snapshot: index(&metrics.snapshot),
        purged: index(&metrics.purged),
        members: membership
            .nodes()
            .filter_map(|(id, place)| {
                let name = place.name.parse().ok()?;
                Some(Member { id: *id, name, address: place.address.clone() })
            })
            .collect(),
        voters: membership.get_joint_config().last().cloned().unwrap_or_default(),
        is_joint: membership.get_joint_config().len() > 1,
        matched: metrics
            .replication
            .iter()
            .flatten()
            .filter_map(|(id, matched)| Some((*id, matched.as_ref()?.index)))
            .collect(),
        heard: metrics
            .heartbeat
            .iter()
            .flatten()
            .filter_map(|(id, heard)| Some((*id, instant(heard.as_ref()?)?)))
            .collect(),
        quorum_heard: metrics.last_quorum_acked.as_ref().and_then(instant),
        is_stopped: metrics.running_state.is_err(),
    }
}

fn instant(then: &openraft::type_config::alias::SerdeInstantOf<Types>) -> Option<Instant> {
    Instant::now().checked_sub(openraft::Instant::elapsed(&then.into_inner()))
}

/// How long a follower may take to receive and to install a snapshot.
pub(crate) const SNAPSHOT_TRANSFER_MAX: Duration = Duration::from_secs(30);
const ENTRIES_PER_APPEND_MAX: u64 = 1_024;
const LOG_LOOKED_AT_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use openraft::StorageError;
    use openraft::testing::log::{StoreBuilder, Suite};
    use tempfile::TempDir;

    use super::*;
    use crate::watch::Watches;

    struct Disk;

    impl StoreBuilder<Types, Log, Machine, TempDir> for Disk {
        async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<Types>> {
            let folder = tempfile::tempdir().expect("a folder");
            let metrics = Metrics::register(&prometheus::Registry::new()).expect("new names");
            let store = Store::open(folder.path(), "c1", "s1", metrics.fsync_seconds.clone())
                .expect("a new store");
            let snapshots = Snapshots::open(folder.path()).expect("a folder");
            let space = Space::new(folder.path().to_owned(), metrics.disk_free_bytes.clone());
            let published = Published::new(Watches::new(metrics.watches.clone()));
            let machine = Machine::open(snapshots, None, published, space, metrics)
                .expect("an empty machine");
            Ok((folder, Log::new(Arc::new(store)), machine))
        }
    }

    /// Upstream's own conformance suite: what openraft relies on.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_store_passes_openrafts_suite() {
        Suite::test_all(Disk).await.expect("conforming storage");
    }
}
