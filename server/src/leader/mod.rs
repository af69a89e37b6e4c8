//! What the leader alone does, for as long as it leads.
//!
//! Tasks: none of its own; [`run`] is one, and all duties of a term live and end inside it.

mod sessions;
mod acl;
pub(crate) mod expire;
mod members;
mod reap;

use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_core::ca::Progress;
use hawser_core::clock::Index;
use hawser_core::state::{Cluster, Command, Rejection, State};
use hawser_proto::{Member, v1};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

pub use self::expire::Leases;
pub(crate) use self::expire::Standing;
use crate::autopilot::Pilot;
use crate::ca::Ca;
use crate::dial::{Dialer, Lane};
use crate::identity::now;
use crate::propose::{ProposeError, Proposer, RETRY_EVERY};
use crate::raft::Raft;
use crate::read::{Consistency, Reader};
use crate::space::Space;

/// What the duties need.
pub(crate) struct Duties {
    pub(crate) own: Member,
    pub(crate) raft: Raft,
    pub(crate) dialer: Dialer,
    pub(crate) proposer: Proposer,
    pub(crate) reader: Reader,
    pub(crate) leases: Leases,
    pub(crate) space: Space,
    pub(crate) ca: Arc<Ca>,
    pub(crate) pilot: Pilot,
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
                duties.reader.led();
            }
        }
    }
}

impl Duties {
    async fn lead(&self) {
        // Nobody dies of a change of leaders: every lease begins anew.
        self.leases.extend_all();
        self.pilot.take_over(Instant::now());
        while self.reader.read(Consistency::Default).await.is_err() {
            tokio::time::sleep(RETRY_EVERY).await;
        }
        self.found().await;
        tokio::join!(
            self.keep_authority(),
            members::run(self),
            members::level(self),
            expire::run(self),
            sessions::run(self),
            reap::run(self),
            acl::run(self),
            self.watch_disk(),
        );
    }

    /// Whether a quorum has said so of late.
    fn leads(&self) -> bool {
        self.raft.status().borrow().leads_within(self.lease / 3)
    }

    /// Heartbeats go on while the disk hangs, and no write would ever be acknowledged again: a
    /// leader that cannot write hands over.
    async fn watch_disk(&self) {
        // Where every disk hangs, office must not go round and round.
        tokio::time::sleep(DISK_GRACE).await;
        let mut tick = every(DISK_EVERY);
        loop {
            tick.tick().await;
            let busy = self.raft.disk_busy();
            let heir = match busy >= self.disk_patience {
                true => self.raft.heir(),
                false if self.space.is_full() => self.heir_with_room().await,
                false => continue,
            };
            if let Some(heir) = heir {
                tracing::error!(
                    seconds = busy.as_secs_f64(),
                    to = heir,
                    "the disk hangs or is full"
                );
                self.raft.transfer_leader(heir).await;
            }
        }
    }

    /// The voter most fit to lead of those whose disk is not full.
    async fn heir_with_room(&self) -> Option<u64> {
        let status = Arc::clone(&self.raft.status().borrow());
        for heir in self.raft.heirs() {
            let Some(Ok(mut client)) =
                status.member(heir).map(|heir| self.dialer.client_of(heir, Lane::Request))
            else {
                continue;
            };
            let asked = client
                .hello(v1::HelloRequest { from: Some((&self.own).into()), ..Default::default() });
            if matches!(timeout(DISK_ASK_MAX, asked).await, Ok(Ok(reply)) if !reply.get_ref().is_full)
            {
                return Some(heir);
            }
        }
        None
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

    /// Keeps the mesh's authority in order: makes it at first, renews it in time, and leads it
    /// through rotations.
    async fn keep_authority(&self) {
        let mut tick = every(AUTHORITY_EVERY);
        let mut pace = Rotation::default();
        loop {
            tick.tick().await;
            let state = self.reader.current();
            let progress = pace.settled(&state, self.leases.progress(&state), Instant::now());
            match self.ca.due(&state, now(), progress) {
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

/// How long the steps of a rotation take, as one leader sees it.
#[derive(Debug, Default)]
struct Rotation {
    /// The authority that it is about, and since when it is so.
    since: Option<(Index, Instant)>,
    /// Since when nothing of an old root is shown.
    reissued_since: Option<Instant>,
}

impl Rotation {
    /// What `progress` amounts to by now.
    fn settled(&mut self, state: &State, progress: Progress, now: Instant) -> Progress {
        let rotating = state.authority().filter(|authority| authority.roots.len() > 1);
        match rotating {
            Some(authority) => self.step(authority.index, progress, now),
            None => {
                *self = Self::default();
                Progress::default()
            }
        }
    }

    fn step(&mut self, index: Index, progress: Progress, now: Instant) -> Progress {
        let since = match self.since {
            Some((held, since)) if held == index => since,
            _ => now,
        };
        self.since = Some((index, since));
        self.reissued_since = progress.reissued.then(|| self.reissued_since.unwrap_or(now));
        let lasts = |since: Instant, span| now.saturating_duration_since(since) >= span;
        Progress {
            trusted: progress.trusted || lasts(since, TRUST_PATIENCE),
            reissued: self.reissued_since.is_some_and(|since| lasts(since, SETTLED_AFTER)),
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
const DISK_ASK_MAX: Duration = Duration::from_secs(1);
const AUTHORITY_EVERY: Duration = Duration::from_secs(1);
/// How long an agent may keep a rotation waiting: its successor's chain is believed by the old
/// root too.
const TRUST_PATIENCE: Duration = Duration::from_secs(60);
/// How long what was opened under the old root has to end in peace, once nobody shows it.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_waits_for_the_slow_but_not_for_ever() {
        let start = Instant::now();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let mut pace = Rotation::default();
        let progress = |trusted, reissued| Progress { trusted, reissued };
        let cases = [
            (1, 0, progress(false, false), progress(false, false), "it has begun"),
            (1, 59, progress(false, false), progress(false, false), "some are slow"),
            (1, 60, progress(false, false), progress(true, false), "too slow"),
            (2, 61, progress(true, false), progress(true, false), "the next step"),
            (2, 70, progress(true, true), progress(true, false), "all is new, just now"),
            (2, 79, progress(true, true), progress(true, false), "not yet settled"),
            (2, 80, progress(true, true), progress(true, true), "settled"),
            (2, 81, progress(true, false), progress(true, false), "one is back that is not"),
            (2, 99, progress(true, true), progress(true, false), "it begins anew"),
        ];
        for (index, secs, said, expected, why) in cases {
            assert_eq!(pace.step(Index(index), said, at(secs)), expected, "{why}");
        }
    }
}
