//! Says that the host lives, learns which servers there are, and notices when the catalog lost it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::view::View;
use hawser_identity::root_id;
use hawser_proto::v1;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::identity::join::Membership;
use crate::identity::leaves::All;
use crate::metrics::Metrics;
use crate::servers::{Link, Member, Servers};

/// Sends heartbeats over whatever connection there is, until `drain`.
///
/// `compare` wakes anti-entropy when the catalog's row of this host is not as it was.
pub(crate) async fn run(
    servers: Arc<Servers>,
    standing: Standing,
    compare: watch::Sender<u64>,
    metrics: Metrics,
    drain: CancellationToken,
) {
    let mut links = servers.links();
    let mut known: Option<u64> = None;
    loop {
        let link = links.borrow_and_update().clone();
        let Some(link) = link else {
            tokio::select! {
                () = drain.cancelled() => return,
                changed = links.changed() => if changed.is_err() { return },
            }
            continue;
        };
        let beat = tokio::select! {
            () = drain.cancelled() => return,
            beat = beat(&link, standing.now()) => beat,
        };
        let wait = match beat {
            Ok(reply) => {
                let members = reply.servers.into_iter().map(|member| Member {
                    id: member.id,
                    name: member.name,
                    address: member.address,
                });
                servers.learn(members.collect());
                if reply.node_index == 0 || known != Some(reply.node_index) {
                    compare.send_modify(|count| *count += 1);
                }
                known = Some(reply.node_index);
                let asked = Duration::from_millis(reply.interval_ms);
                if asked.is_zero() { EVERY } else { asked.clamp(EVERY_MIN, EVERY_MAX) }
            }
            Err(why) => {
                metrics.heartbeat_errors.inc();
                tracing::warn!(why, server = %link.address(), "a heartbeat was not answered");
                // Another server may be well.
                link.retire();
                EVERY_MIN
            }
        };
        tokio::select! {
            () = drain.cancelled() => return,
            // Not `link.closed()`, which is so for ever and would make this a tight loop.
            changed = links.changed() => if changed.is_err() { return },
            () = sleep(clock::jittered(wait)) => {}
        }
    }
}

/// What a rotation of roots waits to hear: whom the host trusts, and what it shows.
pub(crate) struct Standing {
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) membership: watch::Receiver<Option<Arc<Membership>>>,
    pub(crate) leaves: watch::Receiver<All>,
}

impl Standing {
    fn now(&self) -> v1::HeartbeatRequest {
        let trust = self.views.borrow().trust.clone();
        let roots = trust.iter().flat_map(|trust| &trust.roots);
        let node = self.membership.borrow().clone();
        let leaves = self.leaves.borrow().clone();
        let credentials = leaves.values().map(|leaf| &leaf.issuer);
        let shows = credentials.chain(node.iter().map(|node| &node.credential.issuer));
        let shows: BTreeSet<&Arc<str>> = shows.collect();
        v1::HeartbeatRequest {
            trusts: roots.map(|root| root_id(root)).collect(),
            shows: shows.into_iter().map(ToString::to_string).collect(),
        }
    }
}

async fn beat(link: &Link, request: v1::HeartbeatRequest) -> Result<v1::HeartbeatReply, String> {
    let mut client = link.client();
    match timeout(CALL, client.heartbeat(request)).await {
        Err(_) => Err(format!("no answer within {CALL:?}")),
        Ok(Err(status)) => Err(format!("{}: {}", status.code(), status.message())),
        Ok(Ok(reply)) => Ok(reply.into_inner()),
    }
}

const EVERY: Duration = Duration::from_secs(5);
/// A server may ask for another pace, within reason: a lease holds 15 s.
const EVERY_MIN: Duration = Duration::from_secs(1);
const EVERY_MAX: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(4);
