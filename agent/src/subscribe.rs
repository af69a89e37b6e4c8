//! The host's view: asked for by what runs here and what was asked in DNS, kept on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_core::name::{NodeName, ServiceName};
use hawser_core::peering::PeerService;
use hawser_core::view::{Delta, Interest, View};
use hawser_dns::Want;
use hawser_proto::codec;
use hawser_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::clock::Backoff;
use crate::disk;
use crate::local::Local;
use crate::servers::{Link, Servers};

/// What the loop reads and writes.
pub(crate) struct Subscription {
    /// What runs here.
    pub(crate) local: Arc<Local>,
    /// Whom to ask.
    pub(crate) servers: Arc<Servers>,
    /// What DNS was asked for and does not know.
    pub(crate) wants: mpsc::Receiver<Want>,
    /// Names asked for before the restart, and since.
    pub(crate) asked: Asked,
    /// Where the view goes.
    pub(crate) views: watch::Sender<Arc<View>>,
}

/// The names that DNS was asked for: bounded, those asked for longest ago dropped first.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    names: BTreeMap<Name, u64>,
    clock: u64,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Name {
    Service(ServiceName),
    Node(NodeName),
    Import(PeerService),
}

impl Asked {
    /// The names in a view that was kept: they go on being answered and refreshed.
    pub(crate) fn of(view: &View) -> Self {
        let mut asked = Self::default();
        // What is exported is a gateway's by being one, and may be more than is remembered.
        for name in view.services.keys().filter(|name| !view.exports.contains_key(*name)) {
            asked.put(Name::Service(name.clone()));
        }
        for name in view.nodes.keys() {
            asked.put(Name::Node(name.clone()));
        }
        for key in view.imports.keys() {
            asked.put(Name::Import(key.clone()));
        }
        asked
    }

    fn want(&mut self, want: Want) {
        self.put(match want {
            Want::Service(name) => Name::Service(name),
            Want::Node(name) => Name::Node(name),
            Want::Import(key) => Name::Import(key),
        });
    }

    fn put(&mut self, name: Name) {
        self.clock += 1;
        self.names.insert(name, self.clock);
        if self.names.len() > ASKED_MAX
            && let Some((oldest, _)) = self.names.iter().min_by_key(|(_, at)| **at)
        {
            let oldest = oldest.clone();
            self.names.remove(&oldest);
        }
    }
}

/// What this host asks to see.
pub(crate) fn interest(local: &Local, asked: &Asked) -> Interest {
    let gateway = local.is_gateway();
    let mut interest = Interest { locals: local.names(), gateway, ..Interest::default() };
    for held in local.services() {
        let sidecar = held.definition.service().sidecar.as_ref();
        let upstreams = sidecar.into_iter().flat_map(|sidecar| &sidecar.upstreams);
        for upstream in upstreams {
            let service = upstream.destination.clone();
            match upstream.peer.clone() {
                None => interest.services.insert(service),
                Some(peer) => interest.imports.insert(PeerService { peer, service }),
            };
        }
    }
    for name in asked.names.keys() {
        match name {
            Name::Service(name) => interest.services.insert(name.clone()),
            Name::Node(name) => interest.nodes.insert(name.clone()),
            Name::Import(key) => interest.imports.insert(key.clone()),
        };
    }
    interest
}

/// Why a subscription ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the agent stops")]
    Drained,
    #[error("no server answered in time")]
    Timeout,
    #[error("{}: {}", .0.code(), .0.message())]
    Failed(Box<tonic::Status>),
    #[error("the server ended it")]
    Closed,
    #[error("the server's message: {0}")]
    Malformed(#[from] hawser_proto::Invalid),
}

impl Subscription {
    /// Keeps the view current until `drain`. While no server answers, the last view stands.
    pub(crate) async fn run(mut self, drain: CancellationToken) {
        let mut links = self.servers.links();
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        let mut failing_since: Option<Instant> = None;
        loop {
            let link = links.borrow_and_update().clone();
            let Some(link) = link else {
                tokio::select! {
                    () = drain.cancelled() => return,
                    changed = links.changed() => if changed.is_err() { return },
                    // Remembered, so that the first snapshot answers it.
                    Some(want) = self.wants.recv() => self.asked.want(want),
                }
                continue;
            };
            let before = self.views.borrow().index;
            match self.follow(&link, &drain).await {
                Ended::Drained => return,
                why => tracing::warn!(%why, server = %link.address(), "the subscription ended"),
            }
            if self.views.borrow().index != before {
                backoff.reset();
                failing_since = None;
            }
            let since = *failing_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= RETIRE_AFTER {
                // An election is over by now: this server is cut off from the rest.
                failing_since = None;
                link.retire();
            }
            tokio::select! {
                () = drain.cancelled() => return,
                () = sleep(backoff.next()) => {}
            }
        }
    }

    /// Follows one stream to its end.
    async fn follow(&mut self, link: &Link, drain: &CancellationToken) -> Ended {
        let mut changes = self.local.changes();
        changes.borrow_and_update();
        let mut current = interest(&self.local, &self.asked);
        let (send, interests) = mpsc::channel(INTERESTS_QUEUED);
        // The queue is empty, so this cannot wait.
        let _ = send.try_send(v1::Interest::from(&current));
        let mut client = link.client();
        let opened = client.subscribe(ReceiverStream::new(interests));
        let mut deltas = match timeout(OPEN, opened).await {
            Err(_) => return Ended::Timeout,
            Ok(Err(status)) => return Ended::Failed(Box::new(status)),
            Ok(Ok(reply)) => reply.into_inner(),
        };
        loop {
            tokio::select! {
                () = drain.cancelled() => return Ended::Drained,
                () = link.closed() => return Ended::Closed,
                delta = deltas.message() => match delta {
                    Ok(Some(delta)) => match Delta::try_from(delta) {
                        Ok(delta) => self.advance(delta),
                        Err(why) => return Ended::Malformed(why),
                    },
                    Ok(None) => return Ended::Closed,
                    Err(status) => return Ended::Failed(Box::new(status)),
                },
                changed = changes.changed() => if changed.is_err() { return Ended::Drained },
                Some(want) = self.wants.recv() => {
                    self.asked.want(want);
                    while let Ok(want) = self.wants.try_recv() {
                        self.asked.want(want);
                    }
                }
            }
            changes.borrow_and_update();
            let wanted = interest(&self.local, &self.asked);
            if wanted != current {
                current = wanted;
                let sent = send.send(v1::Interest::from(&current));
                match timeout(OPEN, sent).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ended::Closed,
                    Err(_) => return Ended::Timeout,
                }
                let narrowed = self.views.borrow().narrowed(&current);
                let dropped = {
                    let view = self.views.borrow();
                    narrowed.services.len() < view.services.len()
                        || narrowed.nodes.len() < view.nodes.len()
                        || narrowed.imports.len() < view.imports.len()
                };
                if dropped {
                    self.views.send_replace(Arc::new(narrowed));
                }
            }
        }
    }

    fn advance(&self, delta: Delta) {
        // A snapshot arrives whole, in one message: until it has, the old view stands.
        let next = Arc::new(self.views.borrow().advanced(delta));
        self.views.send_replace(next);
    }
}

/// The view that `path` keeps; a damaged one is set aside and said.
pub(crate) fn kept(path: &Path) -> Option<View> {
    let bytes = disk::read(path).unwrap_or_else(|why| {
        tracing::error!(file = %path.display(), %why, "the kept view cannot be read");
        None
    })?;
    codec::view::decode(&bytes).inspect_err(|why| disk::set_aside(path, &why.to_string())).ok()
}

/// Keeps the view on disk until `drain`, and once more then: the first change at once, those
/// that follow together, [`KEEP_EVERY`] after the last write.
pub(crate) async fn keep(
    mut views: watch::Receiver<Arc<View>>,
    path: PathBuf,
    drain: CancellationToken,
) {
    let mut written = views.borrow().clone();
    loop {
        tokio::select! {
            () = drain.cancelled() => break,
            changed = views.changed() => if changed.is_err() { break },
        }
        let view = views.borrow_and_update().clone();
        write(&path, view.clone()).await;
        written = view;
        tokio::select! {
            () = drain.cancelled() => break,
            () = sleep(KEEP_EVERY) => {}
        }
    }
    let last = views.borrow().clone();
    if !Arc::ptr_eq(&last, &written) {
        write(&path, last).await;
    }
}

/// Writes the view to disk.
pub(crate) async fn write(path: &Path, view: Arc<View>) {
    let owned = path.to_owned();
    let written =
        tokio::task::spawn_blocking(move || disk::write(&owned, &codec::view::encode(&view))).await;
    match written {
        Ok(Ok(())) => {}
        Ok(Err(why)) => {
            tracing::error!(file = %path.display(), %why, "the view could not be kept");
        }
        Err(why) => tracing::error!(file = %path.display(), %why, "the view could not be kept"),
    }
}

/// How many names DNS may make the host follow.
const ASKED_MAX: usize = 1024;
const INTERESTS_QUEUED: usize = 4;
const OPEN: Duration = Duration::from_secs(10);
const KEEP_EVERY: Duration = Duration::from_secs(1);
const BACKOFF_BASE: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const RETIRE_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_longest_ago_is_dropped() {
        let mut asked = Asked::default();
        let service = |n: usize| -> ServiceName { format!("s{n}").parse().expect("a name") };
        for n in 0..ASKED_MAX {
            asked.want(Want::Service(service(n)));
        }
        asked.want(Want::Service(service(0)));
        asked.want(Want::Node("n".parse().expect("a name")));
        assert_eq!(asked.names.len(), ASKED_MAX);
        assert!(asked.names.contains_key(&Name::Service(service(0))), "asked for again");
        assert!(!asked.names.contains_key(&Name::Service(service(1))), "the oldest");
    }

    #[test]
    fn a_kept_view_comes_back_and_a_damaged_one_is_set_aside() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("view");
        assert!(kept(&path).is_none());
        let view = View { index: hawser_core::clock::Index(7), ..View::default() };
        let mut bytes = codec::view::encode(&view);
        disk::write(&path, &bytes).expect("written");
        assert_eq!(kept(&path).expect("whole").index, view.index);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        disk::write(&path, &bytes).expect("written");
        assert!(kept(&path).is_none());
        assert!(!path.exists() && folder.path().join("view.damaged").exists());
    }
}
