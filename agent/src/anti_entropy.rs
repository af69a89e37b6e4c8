//! Keeps the catalog's rows of this host equal to what the host declares.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_core::anti_entropy::{Rows, reconcile};
use hawser_core::catalog::{Instance, Node};
use hawser_core::clock::Index;
use hawser_core::state::NodeChanges;
use hawser_proto::v1;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::clock::{self, Backoff};
use crate::local::Local;
use crate::metrics::Metrics;
use crate::servers::{Link, Servers};

/// What the loop reads and writes.
pub(crate) struct AntiEntropy {
    /// The host's own row.
    pub(crate) node: Node,
    /// What runs here.
    pub(crate) local: Arc<Local>,
    /// What the process itself is, beside what is declared.
    pub(crate) own: Option<Instance>,
    /// Whom to tell.
    pub(crate) servers: Arc<Servers>,
    /// Wakes after each success.
    pub(crate) synced: watch::Sender<u64>,
    /// Wakes this loop to compare everything now.
    pub(crate) compare: watch::Receiver<u64>,
    /// What servers refused, by id.
    pub(crate) refused: Refused,
    /// Counts.
    pub(crate) metrics: Metrics,
}

/// What servers refused, with their words, by `service/<id>` and `check/<id>`.
#[derive(Clone, Default)]
pub(crate) struct Refused(Arc<Mutex<BTreeMap<String, String>>>);

impl Refused {
    /// All of them.
    pub(crate) fn all(&self) -> BTreeMap<String, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, all: BTreeMap<String, String>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (item, why) in all.iter().filter(|(item, why)| held.get(*item) != Some(why)) {
            tracing::error!(item, why, "the servers refuse what is declared here");
        }
        *held = all;
    }
}

/// Why a round did not end in agreement.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    /// No server answered in time.
    #[error("no server answered in time")]
    Timeout,
    /// A server failed.
    #[error("{}: {}", .0.code(), .0.message())]
    Failed(Box<tonic::Status>),
    /// A server refused what was told.
    #[error("refused: {}", .0.message())]
    Refused(Box<tonic::Status>),
    /// The reply is malformed.
    #[error("the server's reply: {0}")]
    Reply(#[from] hawser_proto::Invalid),
}

impl AntiEntropy {
    /// Reconciles on every change at once, and compares everything about once a minute, until
    /// `drain`.
    pub(crate) async fn run(mut self, drain: CancellationToken) {
        let mut changes = self.local.changes();
        let mut links = self.servers.links();
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        let mut belief: Option<Rows> = None;
        let mut failing_since: Option<Instant> = None;
        loop {
            let link = links.borrow_and_update().clone();
            let Some(link) = link else {
                // What was believed may have changed by the time a server is reached again.
                belief = None;
                tokio::select! {
                    () = drain.cancelled() => return,
                    changed = links.changed() => if changed.is_err() { return },
                }
                continue;
            };
            changes.borrow_and_update();
            self.compare.borrow_and_update();
            let round = tokio::select! {
                () = drain.cancelled() => return,
                round = self.round(&link, &mut belief) => round,
            };
            self.metrics.anti_entropy_runs.inc();
            let next = match round {
                Ok(due) => {
                    backoff.reset();
                    failing_since = None;
                    let full = Instant::now() + clock::jittered(COMPARE_EVERY);
                    due.map_or(full, |due| due.min(full))
                }
                Err(why) => {
                    self.metrics.anti_entropy_errors.inc();
                    tracing::warn!(%why, server = %link.address(), "the catalog was not reconciled");
                    belief = None;
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= RETIRE_AFTER {
                        // An election is over by now: this server is cut off from the rest.
                        failing_since = None;
                        link.retire();
                    }
                    let wait = Instant::now() + backoff.next();
                    tokio::select! {
                        () = drain.cancelled() => return,
                        () = sleep_until(wait) => continue,
                    }
                }
            };
            let is_full_due = tokio::select! {
                () = drain.cancelled() => return,
                () = sleep_until(next) => true,
                changed = changes.changed() => if changed.is_err() { return } else { false },
                Ok(()) = self.compare.changed() => true,
                Ok(()) = links.changed() => true,
            };
            if is_full_due {
                belief = None;
            } else {
                // A burst of changes becomes one write.
                tokio::time::sleep(GATHER).await;
            }
        }
    }

    /// Brings the catalog to what is declared; answers when an output that waits its turn is due.
    async fn round(
        &self,
        link: &Link,
        belief: &mut Option<Rows>,
    ) -> Result<Option<Instant>, SyncError> {
        let mut held = match belief.take() {
            Some(held) => held,
            None => self.catalog(link).await?,
        };
        let (mut declared, mut due) = self.local.rows();
        let own = self.own.clone();
        declared.instances.extend(own.map(|own| (own.id.clone(), own)));
        let Some(changes) = reconcile(&self.node, &declared, &held) else {
            *belief = Some(held);
            self.refused.replace(BTreeMap::new());
            self.synced.send_modify(|count| *count += 1);
            return Ok(due);
        };
        match self.send(link, &changes).await {
            Ok(()) => {
                self.refused.replace(BTreeMap::new());
                apply(&mut held, changes);
            }
            Err(SyncError::Refused(status)) => {
                let refused = self.one_by_one(link, &changes, &status, &mut held).await?;
                let is_all_well = refused.is_empty();
                self.refused.replace(refused);
                if !is_all_well {
                    let again = Instant::now() + clock::jittered(REFUSED_AGAIN);
                    due = Some(due.map_or(again, |due| due.min(again)));
                }
            }
            Err(other) => return Err(other),
        }
        *belief = Some(held);
        self.synced.send_modify(|count| *count += 1);
        Ok(due)
    }

    /// Sends the parts of refused `changes` by themselves, so that a bad one holds up no other;
    /// answers what was refused of them. `why` is what the whole was refused with.
    async fn one_by_one(
        &self,
        link: &Link,
        changes: &NodeChanges,
        why: &tonic::Status,
        held: &mut Rows,
    ) -> Result<BTreeMap<String, String>, SyncError> {
        let mut refused = BTreeMap::new();
        let parts = parts(changes);
        if let [] | [_] = &parts[..] {
            let key = parts.first().map_or_else(|| format!("node/{}", changes.node.name), key);
            refused.insert(key, why.message().to_owned());
            return Ok(refused);
        }
        for part in parts {
            let key = key(&part);
            match self.send(link, &part).await {
                Ok(()) => apply(held, part),
                Err(SyncError::Refused(status)) => {
                    refused.insert(key, status.message().to_owned());
                }
                Err(other) => return Err(other),
            }
        }
        Ok(refused)
    }

    /// The catalog's rows: a server answers with all that was acknowledged, so what this host
    /// wrote last is among them. Its index is no help: that of a cluster rebuilt starts anew.
    async fn catalog(&self, link: &Link) -> Result<Rows, SyncError> {
        let mut client = link.client();
        let asked = client.declared(v1::DeclaredRequest {});
        let reply = timeout(CALL, asked).await.map_err(|_| SyncError::Timeout)?;
        let reply = reply.map_err(|status| SyncError::Failed(Box::new(status)))?.into_inner();
        let (rows, _): (Rows, Index) = reply.try_into()?;
        Ok(rows)
    }

    async fn send(&self, link: &Link, changes: &NodeChanges) -> Result<(), SyncError> {
        let asked = async { link.client().sync(v1::NodeChanges::from(changes)).await };
        match timeout(CALL, asked).await.map_err(|_| SyncError::Timeout)? {
            Ok(_) => Ok(()),
            Err(status) => Err(match status.code() {
                Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::NotFound
                | Code::OutOfRange
                | Code::PermissionDenied
                | Code::ResourceExhausted => SyncError::Refused(Box::new(status)),
                _ => SyncError::Failed(Box::new(status)),
            }),
        }
    }
}

/// `changes` in parts that stand by themselves: removals, each instance with its checks, and each
/// other check.
fn parts(changes: &NodeChanges) -> Vec<NodeChanges> {
    let empty = || NodeChanges {
        node: changes.node.clone(),
        put_instances: vec![],
        put_checks: vec![],
        drop_instances: vec![],
        drop_checks: vec![],
    };
    let mut parts = Vec::new();
    if !changes.drop_instances.is_empty() || !changes.drop_checks.is_empty() {
        parts.push(NodeChanges {
            drop_instances: changes.drop_instances.clone(),
            drop_checks: changes.drop_checks.clone(),
            ..empty()
        });
    }
    for instance in &changes.put_instances {
        parts.push(NodeChanges { put_instances: vec![instance.clone()], ..empty() });
    }
    for check in &changes.put_checks {
        parts.push(NodeChanges { put_checks: vec![check.clone()], ..empty() });
    }
    parts
}

fn key(part: &NodeChanges) -> String {
    match (part.put_instances.first(), part.put_checks.first()) {
        (Some(instance), _) => format!("service/{}", instance.id),
        (None, Some(check)) => format!("check/{}", check.id),
        (None, None) => format!("node/{}", part.node.name),
    }
}

/// What the catalog holds once it has taken `changes`.
fn apply(rows: &mut Rows, changes: NodeChanges) {
    rows.node = Some(changes.node);
    for id in changes.drop_checks {
        rows.checks.remove(&id);
    }
    for id in changes.drop_instances {
        rows.instances.remove(&id);
        rows.checks.retain(|_, check| check.instance.as_ref() != Some(&id));
    }
    let instances = changes.put_instances.into_iter().map(|row| (row.id.clone(), row));
    rows.instances.extend(instances);
    rows.checks.extend(changes.put_checks.into_iter().map(|row| (row.id.clone(), row)));
}

const COMPARE_EVERY: Duration = Duration::from_secs(60);
const CALL: Duration = Duration::from_secs(10);
const GATHER: Duration = Duration::from_millis(20);
const BACKOFF_BASE: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// What was refused is tried again sooner than all is compared: a name may have become free.
const REFUSED_AGAIN: Duration = Duration::from_secs(10);
const RETIRE_AFTER: Duration = Duration::from_secs(10);
