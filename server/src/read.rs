//! The only door for reads: the published state, as fresh as the reader asks for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_core::clock::Index;
use hawser_core::state::State;
use hawser_proto::{Member, v1};
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::dial::{Dialer, Lane};
use crate::planted::Planted;
use crate::propose::{PATIENCE, RETRY_EVERY};
use crate::raft::Raft;
use crate::watch::Published;

/// Reads the state, on any server. Clones share it.
#[derive(Clone)]
pub struct Reader {
    raft: Raft,
    dialer: Dialer,
    published: Published,
    contact: Contact,
    /// For how long a leader counts as one that nobody heard.
    lease: Duration,
    planted: Planted,
}

/// How fresh a reading must be.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Consistency {
    /// What this server has, however old.
    Stale,
    /// All that was acknowledged, by the word of a leader whose lease runs.
    #[default]
    Default,
    /// All that was acknowledged, by the word of a quorum.
    Consistent,
}

/// A state with what is known of its age.
#[derive(Clone, Debug)]
pub struct Reading {
    /// The state.
    pub state: Arc<State>,
    /// Whether this server knows a leader.
    pub known_leader: bool,
    /// Since when this server has not heard from a leader; zero at the leader.
    pub last_contact: Duration,
}

impl Reading {
    /// Whether this server has been without a leader for so long that an agent, whose heartbeats
    /// count for `lease`, should speak to another: long after an election ends, and early enough
    /// to be heard there in time.
    pub(crate) fn is_cut_off(&self, lease: Duration) -> bool {
        self.last_contact > lease / CUT_OFF_PER_LEASE
    }
}

/// Why nothing fresh enough can be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReadError {
    /// No leader vouched for the state in time.
    #[error("the servers have no leader now: try again, or read stale")]
    NoLeader,
    /// A leader vouched for a state that this server has not reached in time.
    #[error("this server is behind: try another, or read stale")]
    Behind,
    /// This server stops.
    #[error("this server is stopping: ask another")]
    ShuttingDown,
}

/// When this server last heard from a leader. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Contact(Arc<Mutex<Option<Instant>>>);

impl Contact {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// A leader was heard just now.
    pub(crate) fn heard(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago that was; longer than anyone asks for, if never.
    pub(crate) fn age(&self) -> Duration {
        let heard = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map_or(NEVER, |heard| heard.elapsed())
    }
}

impl Reader {
    pub(crate) fn new(
        raft: Raft,
        dialer: Dialer,
        published: Published,
        contact: Contact,
        config: &Config,
    ) -> Self {
        let (lease, planted) = (config.timing.election_max, config.planted);
        Self { raft, dialer, published, contact, lease, planted }
    }

    /// Notes that this server led until now: nobody knew better.
    pub(crate) fn led(&self) {
        self.contact.heard();
    }

    /// What this server has now, however old.
    pub fn current(&self) -> Arc<State> {
        self.published.current()
    }

    /// The state, at least as fresh as `consistency` demands. Waits at most 5 s.
    ///
    /// # Errors
    /// [`ReadError`]; never for [`Consistency::Stale`].
    pub async fn read(&self, consistency: Consistency) -> Result<Reading, ReadError> {
        let quorum = match consistency {
            Consistency::Stale => return Ok(self.reading()),
            _ if self.planted.reads_stale() => return Ok(self.reading()),
            Consistency::Default => false,
            Consistency::Consistent => true,
        };
        let deadline = Instant::now() + PATIENCE;
        let index = self.read_index(quorum, deadline).await?;
        self.reach(index, deadline).await?;
        Ok(self.reading())
    }

    /// Waits, for 5 s at most, until this server has applied `index`.
    ///
    /// # Errors
    /// [`ReadError::Behind`]
    pub async fn wait_for(&self, index: Index) -> Result<Reading, ReadError> {
        self.reach(index, Instant::now() + PATIENCE).await?;
        Ok(self.reading())
    }

    fn reading(&self) -> Reading {
        let status = Arc::clone(&self.raft.status().borrow());
        let age = self.contact.age();
        let (known_leader, last_contact) = match (status.is_leader, status.quorum_heard) {
            (true, _) if status.leads_within(self.lease) => (true, Duration::ZERO),
            (true, heard) => (false, heard.map_or(age, |heard| heard.elapsed())),
            (false, _) => (status.leader.is_some() && age <= self.lease * 2, age),
        };
        Reading { state: self.current(), known_leader, last_contact }
    }

    async fn read_index(&self, quorum: bool, deadline: Instant) -> Result<Index, ReadError> {
        let mut status = self.raft.status();
        loop {
            let seen = Arc::clone(&status.borrow_and_update());
            if seen.is_stopped {
                return Err(ReadError::ShuttingDown);
            }
            let leader =
                seen.leader.filter(|id| *id != self.raft.id()).and_then(|id| seen.member(id));
            let index = if seen.is_leader {
                timeout_at(deadline, self.raft.read_index(quorum)).await.ok().and_then(Result::ok)
            } else if let Some(leader) = leader {
                self.ask(leader, quorum, deadline).await
            } else {
                None
            };
            if let Some(index) = index {
                return Ok(index);
            }
            let pause = Instant::now() + RETRY_EVERY;
            if pause >= deadline {
                return Err(ReadError::NoLeader);
            }
            drop(timeout_at(pause, status.changed()).await);
        }
    }

    async fn ask(&self, leader: &Member, quorum: bool, deadline: Instant) -> Option<Index> {
        let mut client = self.dialer.client_of(leader, Lane::Request).ok()?;
        // A leader that just died must not use up all the patience.
        let limit = deadline.min(Instant::now() + ASK_MAX);
        let request = v1::ReadIndexRequest { quorum };
        let reply = timeout_at(limit, client.read_index(request)).await.ok()?.ok()?;
        Some(Index(reply.into_inner().index))
    }

    async fn reach(&self, index: Index, deadline: Instant) -> Result<(), ReadError> {
        let mut applied = self.published.applied();
        match timeout_at(deadline, applied.wait_for(|applied| *applied >= index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ReadError::ShuttingDown),
            Err(_) => Err(ReadError::Behind),
        }
    }
}

const ASK_MAX: Duration = Duration::from_secs(1);
const CUT_OFF_PER_LEASE: u32 = 3;
/// A hundred years, which every form of a duration has room for.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_cut_off_after_a_third_of_a_lease() {
        let lease = Duration::from_secs(15);
        for (known_leader, since, expected, why) in [
            (true, 0, false, "a leader, or one that follows"),
            (false, 2, false, "an election: it is over soon"),
            (false, 5, false, "at the border"),
            (false, 6, true, "no leader for long"),
            (true, 6, true, "it believes in one that it does not hear"),
        ] {
            let last_contact = Duration::from_secs(since);
            let reading = Reading { state: Arc::default(), known_leader, last_contact };
            assert_eq!(reading.is_cut_off(lease), expected, "{why}");
        }
    }
}
