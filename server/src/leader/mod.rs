//! What the leader alone does, for as long as it leads.
//!
//! Tasks: none of its own; [`run`] is one, and all duties of a term live and end inside it.

mod sessions;
mod acl;
pub(crate) mod expire;
mod members;
mod reap;

use std::sync::Arc;
use std::time::Duration;

use hawser_core::state::{Cluster, Command, Rejection};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub use self::expire::Leases;
use crate::ca::Ca;
use crate::identity::now;
use crate::propose::{ProposeError, Proposer, RETRY_EVERY};
use crate::raft::Raft;
use crate::read::{Consistency, Reader};
use crate::space::Space;

/// What the duties need.
pub(crate) struct Duties {
    pub(crate) raft: Raft,
    pub(crate) proposer: Proposer,
    pub(crate) reader: Reader,
    pub(crate) leases: Leases,
    pub(crate) space: Space,
    pub(crate) ca: Arc<Ca>,
    /// What a cluster that begins is called.
    pub(crate) cluster: Cluster,
    pub(crate) lease: Duration,
    pub(crate) reap_after: Duration,
    /// A leader whose disk hangs for so long lets another lead.
    pub(crate) disk_patience: Duration,
    /// How access control is set up.
    pub(crate) acl: crate::acl::Settings,
}

/// Runs the leader's duties whenever this server leads, until `drain`.
pub(crate) async fn run(duties: Duties, drain: CancellationToken) {
    let mut status = duties.raft.status();
    loop {
        let term = tokio::select! {
            () = drain.cancelled() => return,
            led = status.wait_for(|status| status.is_leader || status.is_stopped) => match led {
                Ok(led) if led.is_leader => led.term,
                _ => return,
            },
        };
        tracing::info!(term, "this server leads");
        tokio::select! {
            () = drain.cancelled() => return,
            () = duties.lead() => {}
            _ = status.wait_for(|status| !status.is_leader || status.term != term) => {
                tracing::info!(term, "this server no longer leads");
            }
        }
    }
}

impl Duties {
    async fn lead(&self) {
        // Nobody dies of a change of leaders: every lease begins anew.
        self.leases.extend_all();
        while self.reader.read(Consistency::Default).await.is_err() {
            tokio::time::sleep(RETRY_EVERY).await;
        }
        self.found().await;
        tokio::join!(
            self.keep_authority(),
            members::run(&self.raft),
            expire::run(self),
            sessions::run(self),
            reap::run(self),
            acl::run(self),
            self.watch_disk(),
        );
    }

    /// Heartbeats go on while the disk hangs, and no write would ever be acknowledged again: a
    /// leader that cannot write hands over.
    async fn watch_disk(&self) {
        // Where every disk is full, office must not go round and round.
        tokio::time::sleep(DISK_GRACE).await;
        let mut tick = every(DISK_EVERY);
        loop {
            tick.tick().await;
            let busy = self.raft.disk_busy();
            if busy < self.disk_patience && !self.space.is_full() {
                continue;
            }
            if let Some(heir) = self.raft.heir() {
                tracing::error!(
                    seconds = busy.as_secs_f64(),
                    to = heir,
                    "the disk hangs or is full"
                );
                self.raft.transfer_leader(heir).await;
            }
        }
    }

    /// Names the cluster, where it has no name yet.
    async fn found(&self) {
        while self.reader.current().cluster().is_none() {
            match self.proposer.propose(Command::Found(self.cluster.clone())).await {
                Ok(_) => tracing::info!(cluster = %self.cluster.id, "the cluster is founded"),
                Err(ProposeError::Rejected(Rejection::AlreadyFounded)) => return,
                Err(failure) => {
                    tracing::warn!(error = %failure, "the cluster cannot be founded yet");
                    tokio::time::sleep(RETRY_EVERY).await;
                }
            }
        }
    }

    /// Keeps the mesh's authority in order: makes it at first, renews it in time.
    async fn keep_authority(&self) {
        let mut tick = every(AUTHORITY_EVERY);
        loop {
            tick.tick().await;
            match self.ca.due(&self.reader.current(), now()) {
                Ok(None) => {}
                Ok(Some(command)) => match self.proposer.propose(command).await {
                    Ok(_) => tracing::info!("the mesh's authority is renewed"),
                    Err(failure) => {
                        tracing::warn!(error = %failure, "the mesh's authority is not stored");
                    }
                },
                Err(failure) => {
                    tracing::error!(error = %failure, "the mesh's authority is out of order");
                }
            }
        }
    }
}

/// A tick at once and then every `period`; ticks that were missed are not made up for.
fn every(period: Duration) -> tokio::time::Interval {
    let mut tick = interval(period);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

const DISK_GRACE: Duration = Duration::from_secs(3);
const DISK_EVERY: Duration = Duration::from_millis(250);
const AUTHORITY_EVERY: Duration = Duration::from_secs(10);
