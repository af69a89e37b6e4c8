//! Says that the host lives, learns which servers there are, and notices when the catalog lost it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::view::View;
use hawser_identity::root_id;
use hawser_proto::v1;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::disk;
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
    mut seen: Seen,
    drain: CancellationToken,
) {
    let mut links = servers.links();
    let mut known: Option<u64> = None;
    let mut left = Left::default();
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
                seen.note(Instant::now());
                if reply.cut_off && left.may_leave(link.address(), Instant::now()) {
                    tracing::warn!(server = %link.address(), "this server is cut off from the others");
                    link.retire();
                }
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

/// Keeps on disk when a server was last heard of: a host whose view has not changed for long must
/// not count as cut off for as long when it restarts without servers.
pub(crate) struct Seen {
    view: PathBuf,
    at: Option<Instant>,
}

impl Seen {
    /// Noted as the time at which the kept `view` was last right.
    pub(crate) fn new(view: PathBuf) -> Self {
        Self { view, at: None }
    }

    fn note(&mut self, now: Instant) {
        if self.at.is_some_and(|at| now.duration_since(at) < NOTE_EVERY) {
            return;
        }
        self.at = Some(now);
        if let Err(why) = disk::touch(&self.view) {
            tracing::warn!(file = %self.view.display(), %why, "the last contact is not kept");
        }
    }
}

/// The servers that said to be cut off from the others, and were left for it.
#[derive(Default)]
struct Left(BTreeMap<SocketAddr, Instant>);

impl Left {
    /// Whether to leave `server` at `now`. Where none has a leader, each is left once in a while:
    /// going round would gain nothing.
    fn may_leave(&mut self, server: SocketAddr, now: Instant) -> bool {
        self.0.retain(|_, at| now.duration_since(*at) < LEAVE_AGAIN);
        let is_first = !self.0.contains_key(&server);
        if is_first {
            self.0.insert(server, now);
        }
        is_first
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
/// The most that a host believes to have been cut off for longer than it was.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// Longer than the servers need to agree on a leader, many times over.
const LEAVE_AGAIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_quiet_view_keeps_the_time_of_the_last_contact() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("view");
        let mut seen = Seen::new(path.clone());
        let start = Instant::now();
        seen.note(start);
        assert!(!path.exists(), "no view, nothing to note");
        let file = File::create(&path).expect("made");
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let is_noted = |after: u64, seen: &mut Seen| {
            file.set_modified(old).expect("set");
            seen.note(start + Duration::from_secs(after));
            file.metadata().and_then(|found| found.modified()).expect("a time") > old
        };
        for (after, expected, why) in [
            (59, false, "once a minute"),
            (60, true, "a minute has passed"),
            (61, false, "just noted"),
            (120, true, "and another"),
        ] {
            assert_eq!(is_noted(after, &mut seen), expected, "{after} s: {why}");
        }
    }

    #[test]
    fn a_server_that_is_cut_off_is_left_once_in_a_while() {
        let start = Instant::now();
        let (a, b) = (SocketAddr::from(([10, 0, 0, 1], 1)), SocketAddr::from(([10, 0, 0, 2], 1)));
        let mut left = Left::default();
        for (server, after, expected, why) in [
            (a, 0, true, "it says so"),
            (b, 1, true, "so does the next"),
            (a, 2, false, "all are: there is no leader"),
            (b, 29, false, "still"),
            (a, 30, true, "one more round"),
        ] {
            let at = start + Duration::from_secs(after);
            assert_eq!(left.may_leave(server, at), expected, "{server}, {after} s: {why}");
        }
    }
}
