//! The only door for writes: stamp a command, bring it to the leader, wait for its outcome.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::clock::{Index, UnixTime};
use hawser_core::state::{Command, Rejection};
use hawser_proto::{Member, v1};
use prost::Message;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Code, ConnectError, Status};

use crate::dial::{Dialer, Lane};
use crate::identity::now;
use crate::metrics::Metrics;
use crate::raft::{Raft, WriteError};
use crate::space::Space;
use crate::watch::Published;

/// Proposes commands, from any server. Clones share it.
#[derive(Clone)]
pub struct Proposer(Arc<Inner>);

struct Inner {
    raft: Raft,
    dialer: Dialer,
    metrics: Metrics,
    space: Space,
    published: Published,
    /// Held at the leader from the check of a config entry or an intention until its outcome is
    /// known.
    entries: Mutex<()>,
    stopping: CancellationToken,
}

/// Why a command has no outcome.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ProposeError {
    /// The state refuses it: an outcome like any other, and final.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// No leader was found in time. The command was not proposed.
    #[error("the servers have no leader now: try again")]
    NoLeader,
    /// The leader was lost, or did not answer in time: it may or may not be applied.
    #[error("the outcome is unknown: read what there is before trying again")]
    Unknown,
    /// This server stops. The command was not proposed.
    #[error("this server is stopping: ask another")]
    ShuttingDown,
    /// Not every server understands it yet. The command was not proposed.
    #[error(
        "not every server understands this yet: it needs level {needs}; upgrade or remove the \
         others, which `hawser operator autopilot state` lists with their releases"
    )]
    Level {
        /// The level that it needs.
        needs: u32,
    },
    /// The leader's disk is full. The command was not proposed.
    #[error("the disk of the leading server is full: free some of it, and writes go on")]
    DiskFull,
    /// What it would be in the log could not be read back. The command was not proposed.
    #[error("it cannot be stored: {why}")]
    Unreadable {
        /// Which field, and what is wrong with it.
        why: String,
    },
    /// It does not fit into one entry of the log. The command was not proposed.
    #[error("a change of {bytes} bytes is more than the {max} that fit at once: split it")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
}

/// What became of one try.
enum Try {
    Done(Result<Index, Rejection>),
    /// It was certainly not proposed.
    Again,
    /// It was certainly not proposed, and will not be soon.
    DiskFull,
    /// It was certainly not proposed, as long as a server is of an older release.
    Level,
    Unknown,
}

impl Proposer {
    pub(crate) fn new(
        raft: Raft,
        dialer: Dialer,
        metrics: Metrics,
        space: Space,
        published: Published,
        stopping: CancellationToken,
    ) -> Self {
        let entries = Mutex::default();
        Self(Arc::new(Inner { raft, dialer, metrics, space, published, entries, stopping }))
    }

    /// Brings `command` to the leader and waits until it is applied on this path: who has the
    /// index reads the write at the leader, and anywhere that has applied it.
    ///
    /// Waits at most 5 s in all, elections included. A command is tried again only while it was
    /// certainly not proposed before.
    ///
    /// # Errors
    /// [`ProposeError`]
    pub async fn propose(&self, command: Command) -> Result<Index, ProposeError> {
        let Inner { raft, metrics, stopping, .. } = &*self.0;
        if stopping.is_cancelled() {
            return Err(ProposeError::ShuttingDown);
        }
        let time = now();
        let message = v1::Command::from((time, &command));
        let bytes = message.encoded_len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { bytes, max: COMMAND_BYTES_MAX });
        }
        // An entry of the log that cannot be read ends every server that has it, for good.
        let read = <(UnixTime, Command)>::try_from(message);
        read.map_err(|invalid| ProposeError::Unreadable { why: invalid.to_string() })?;
        let began = Instant::now();
        let deadline = began + PATIENCE;
        let mut status = raft.status();
        loop {
            let seen = Arc::clone(&status.borrow_and_update());
            if seen.is_stopped {
                return Err(ProposeError::ShuttingDown);
            }
            let leader = seen.leader.filter(|id| *id != raft.id()).and_then(|id| seen.member(id));
            let tried = if seen.is_leader {
                self.propose_here(time, command.clone(), deadline).await
            } else if let Some(leader) = leader {
                self.forward(leader, time, &command, deadline).await
            } else {
                Try::Again
            };
            match tried {
                Try::Done(outcome) => {
                    metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
                    return Ok(outcome?);
                }
                Try::Unknown => return Err(ProposeError::Unknown),
                Try::DiskFull => return Err(ProposeError::DiskFull),
                // A cluster that begins has heard from all its servers in a moment.
                Try::Again | Try::Level => {}
            }
            let pause = Instant::now() + RETRY_EVERY;
            if pause >= deadline {
                return Err(match tried {
                    Try::Level => ProposeError::Level { needs: command.level() },
                    _ => ProposeError::NoLeader,
                });
            }
            // Whichever comes first: news of a leader, or the time to ask the same one again.
            drop(timeout_at(pause, status.changed()).await);
        }
    }

    /// Proposes, at the leader, what another server forwarded.
    ///
    /// # Errors
    /// [`Code::Aborted`] and [`DISK_FULL`] when it was certainly not proposed; any other code leaves
    /// that open.
    pub(crate) async fn accept(&self, command: v1::Command) -> Result<v1::Outcome, Status> {
        let bytes = command.encoded_len();
        let (time, command) = <(UnixTime, Command)>::try_from(command)
            .map_err(|why| Status::invalid_argument(why.to_string()))?;
        if bytes > COMMAND_BYTES_MAX {
            return Err(Status::invalid_argument(format!("a command of {bytes} bytes")));
        }
        let deadline = Instant::now() + PATIENCE;
        match self.propose_here(time, command, deadline).await {
            Try::Done(outcome) => Ok((&outcome).into()),
            Try::Again => Err(Status::aborted("this server does not lead")),
            Try::DiskFull => Err(Status::new(DISK_FULL, ProposeError::DiskFull.to_string())),
            Try::Level => Err(Status::new(LEVEL, "a server is of an older release")),
            Try::Unknown => Err(Status::unknown("the outcome is unknown")),
        }
    }

    async fn propose_here(&self, time: UnixTime, command: Command, deadline: Instant) -> Try {
        if self.0.space.is_full() {
            return Try::DiskFull;
        }
        let needs = command.level();
        let is_raise = matches!(command, Command::SetLevel(_));
        if needs > 0 && !is_raise && needs > self.0.published.current().operation().level() {
            return Try::Level;
        }
        match command {
            Command::PutEntry { .. }
            | Command::DropEntry { .. }
            | Command::PutIntention(_)
            | Command::ChangeIntentions { .. } => {
                Box::pin(self.propose_fitting(time, command, deadline)).await
            }
            _ => self.commit(time, command, deadline).await,
        }
    }

    /// Proposes a config entry or intentions once they fit to all others, one at a time.
    ///
    /// The turn keeps two of them from passing the check together. Who lost the lead meanwhile and
    /// has it again may have missed one: the command says what it was checked against, and the
    /// state refuses it where that is no longer so.
    async fn propose_fitting(&self, time: UnixTime, command: Command, deadline: Instant) -> Try {
        let Inner { raft, published, entries, .. } = &*self.0;
        let Ok(_turn) = timeout_at(deadline, entries.lock()).await else { return Try::Again };
        loop {
            let Ok(Ok(index)) = timeout_at(deadline, raft.read_index(false)).await else {
                return Try::Again;
            };
            let mut applied = published.applied();
            let reached = applied.wait_for(|applied| *applied >= index);
            if !matches!(timeout_at(deadline, reached).await, Ok(Ok(_))) {
                return Try::Again;
            }
            let (state, asked) = (published.current(), command.clone());
            // Every chain is compiled for it: not on a thread that others' requests wait for.
            let checked = tokio::task::spawn_blocking(move || state.fit(&asked)).await;
            let command = match checked {
                Ok(Ok(None)) => command.clone(),
                Ok(Ok(Some(at))) => command.clone().fitting(at),
                Ok(Err(rejection)) => return Try::Done(Err(rejection)),
                Err(_) => return Try::Again,
            };
            match self.commit(time, command, deadline).await {
                Try::Done(Err(Rejection::EntriesChanged { .. })) if Instant::now() < deadline => {}
                tried => return tried,
            }
        }
    }

    async fn commit(&self, time: UnixTime, command: Command, deadline: Instant) -> Try {
        match timeout_at(deadline, self.0.raft.propose(time, command)).await {
            Ok(Ok(outcome)) => Try::Done(outcome),
            Ok(Err(WriteError::NotLeader)) => Try::Again,
            Ok(Err(WriteError::Unknown)) | Err(_) => Try::Unknown,
        }
    }

    async fn forward(
        &self,
        leader: &Member,
        time: UnixTime,
        command: &Command,
        deadline: Instant,
    ) -> Try {
        let Ok(mut client) = self.0.dialer.client_of(leader, Lane::Request) else {
            return Try::Again;
        };
        self.0.metrics.forwarded.inc();
        let message = v1::Command::from((time, command));
        match timeout_at(deadline, client.propose(message)).await {
            Ok(Ok(reply)) => reply.into_inner().try_into().map_or(Try::Unknown, Try::Done),
            Ok(Err(refused)) if refused.code() == DISK_FULL => Try::DiskFull,
            // An older leader cannot even read it.
            Ok(Err(refused))
                if refused.code() == LEVEL
                    || (refused.code() == Code::InvalidArgument && command.level() > 0) =>
            {
                Try::Level
            }
            Ok(Err(refused)) if certainly_not_taken(&refused) => Try::Again,
            Ok(Err(refused)) => {
                tracing::warn!(leader = leader.id, code = ?refused.code(), "a forwarded command was lost");
                Try::Unknown
            }
            Err(_) => Try::Unknown,
        }
    }
}

/// Whether a call failed before its receiver could have done anything.
fn certainly_not_taken(refused: &Status) -> bool {
    if refused.code() == Code::Aborted {
        return true;
    }
    let mut cause = refused.source();
    while let Some(failure) = cause {
        if failure.is::<ConnectError>() {
            return true;
        }
        cause = failure.source();
    }
    false
}

/// How long a command waits for its outcome, and between two looks for a leader.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
pub(crate) const RETRY_EVERY: Duration = Duration::from_millis(50);
/// How a leader with a full disk refuses what was forwarded: a code that no transport makes up.
const DISK_FULL: Code = Code::FailedPrecondition;
/// How a leader refuses what some server would not understand.
const LEVEL: Code = Code::Unimplemented;
const COMMAND_BYTES_MAX: usize = 8 << 20;
