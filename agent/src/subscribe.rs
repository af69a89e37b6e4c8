//! The host's view: asked for by what runs here and what was asked in DNS, kept on disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_core::name::{NodeName, ServiceName};
use hawser_core::peering::PeerService;
use hawser_core::view::{Delta, Interest, ServiceView, View};
use hawser_dns::Want;
use hawser_proto::codec;
use hawser_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
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

/// The names that DNS was asked for: bounded. What the view says does not exist is dropped first,
/// then what it has not answered yet, then what was asked for longest ago: whoever asks for names
/// that nobody has must not push out those in use.
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

/// What a name that was asked for is worth keeping, least first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Worth {
    /// The view says that there is no such thing.
    Nothing,
    /// The view does not say.
    Unknown,
    /// There is.
    Something,
}

impl Name {
    fn worth(&self, view: &View) -> Worth {
        let is_there = |service: &Arc<ServiceView>| {
            service.index.0 > 0
                || service.routing.is_some()
                || !service.endpoints.is_empty()
                || !service.failover.is_empty()
        };
        let is_there = match self {
            Self::Service(name) => view.services.get(name).map(is_there),
            Self::Node(name) => view.nodes.get(name).map(Option::is_some),
            Self::Import(key) => view.imports.get(key).map(is_there),
        };
        match is_there {
            Some(false) => Worth::Nothing,
            None => Worth::Unknown,
            Some(true) => Worth::Something,
        }
    }
}

impl Asked {
    /// The names in a view that was kept: they go on being answered and refreshed.
    pub(crate) fn of(view: &View) -> Self {
        let mut asked = Self::default();
        // What is exported is a gateway's by being one, and may be more than is remembered.
        for name in view.services.keys().filter(|name| !view.exports.contains_key(*name)) {
            asked.put(Name::Service(name.clone()), view);
        }
        for name in view.nodes.keys() {
            asked.put(Name::Node(name.clone()), view);
        }
        for key in view.imports.keys() {
            asked.put(Name::Import(key.clone()), view);
        }
        asked
    }

    /// Takes one more in; `view` says which of those held exist.
    fn want(&mut self, want: Want, view: &View) {
        let name = match want {
            Want::Service(name) => Name::Service(name),
            Want::Node(name) => Name::Node(name),
            Want::Import(key) => Name::Import(key),
        };
        self.put(name, view);
    }

    fn put(&mut self, name: Name, view: &View) {
        self.clock += 1;
        self.names.insert(name, self.clock);
        let others = self.names.iter().filter(|(_, at)| **at != self.clock);
        if self.names.len() > ASKED_MAX
            && let Some((least, _)) = others.min_by_key(|(name, at)| (name.worth(view), **at))
        {
            let least = least.clone();
            self.names.remove(&least);
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
                    Some(want) = self.wants.recv() => {
                        self.asked.want(want, &self.views.borrow());
                    }
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
        // Names that DNS was asked for wait for each other a little: whoever asks for one after the
        // other that nobody has must not make the host send all that it follows each time.
        let (mut waits, mut next_at) = (false, Instant::now());
        loop {
            tokio::select! {
                () = drain.cancelled() => return Ended::Drained,
                () = link.closed() => return Ended::Closed,
                delta = deltas.message() => match delta {
                    Ok(Some(delta)) => match Delta::try_from(delta) {
                        Ok(delta) => self.advance(delta, &current),
                        Err(why) => return Ended::Malformed(why),
                    },
                    Ok(None) => return Ended::Closed,
                    Err(status) => return Ended::Failed(Box::new(status)),
                },
                changed = changes.changed() => match changed {
                    Ok(()) => waits = false,
                    Err(_) => return Ended::Drained,
                },
                Some(want) = self.wants.recv() => {
                    self.take_wants(want);
                    waits = true;
                }
                () = sleep_until(next_at), if waits => {}
            }
            if waits && Instant::now() < next_at {
                continue;
            }
            waits = false;
            changes.borrow_and_update();
            let wanted = interest(&self.local, &self.asked);
            if wanted != current {
                next_at = Instant::now() + WANTS_EVERY;
                current = wanted;
                let sent = send.send(v1::Interest::from(&current));
                match timeout(OPEN, sent).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return Ended::Closed,
                    Err(_) => return Ended::Timeout,
                }
                self.narrow(&current);
            }
        }
    }

    /// Leaves out of the view what is not asked for any more.
    fn narrow(&self, interest: &Interest) {
        let narrowed = narrowed(&self.views.borrow(), interest);
        if let Some(narrowed) = narrowed {
            self.views.send_replace(Arc::new(narrowed));
        }
    }

    /// Takes `want` in, and all that wait behind it.
    fn take_wants(&mut self, want: Want) {
        let view = self.views.borrow().clone();
        self.asked.want(want, &view);
        while let Ok(want) = self.wants.try_recv() {
            self.asked.want(want, &view);
        }
    }

    fn advance(&self, delta: Delta, interest: &Interest) {
        // A snapshot arrives whole, in one message: until it has, the old view stands.
        let next = self.views.borrow().advanced(delta);
        // What was on its way when it was asked for no more would never change again.
        let next = narrowed(&next, interest).unwrap_or(next);
        self.views.send_replace(Arc::new(next));
    }
}

/// `view` without what `interest` does not ask for; none when that is nothing.
fn narrowed(view: &View, interest: &Interest) -> Option<View> {
    let size = |view: &View| view.services.len() + view.nodes.len() + view.imports.len();
    let narrowed = view.narrowed(interest);
    (size(&narrowed) < size(view)).then_some(narrowed)
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
/// A tenth of what DNS waits for a name.
const WANTS_EVERY: Duration = Duration::from_millis(100);
const KEEP_EVERY: Duration = Duration::from_secs(1);
const BACKOFF_BASE: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const RETIRE_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use hawser_core::catalog::Meta;
    use hawser_core::clock::Index;
    use hawser_core::view::{Change, NodeView};

    use super::*;

    #[test]
    fn what_was_asked_longest_ago_is_dropped() {
        let (mut asked, view) = (Asked::default(), View::default());
        let service = |n: usize| -> ServiceName { format!("s{n}").parse().expect("a name") };
        for n in 0..ASKED_MAX {
            asked.want(Want::Service(service(n)), &view);
        }
        asked.want(Want::Service(service(0)), &view);
        asked.want(Want::Node("n".parse().expect("a name")), &view);
        assert_eq!(asked.names.len(), ASKED_MAX);
        assert!(asked.names.contains_key(&Name::Service(service(0))), "asked for again");
        assert!(!asked.names.contains_key(&Name::Service(service(1))), "the oldest");
    }

    #[test]
    fn names_that_nobody_has_push_out_none_in_use() {
        let node = |text: &str| -> NodeName { text.parse().expect("a name") };
        let there = NodeView { address: [10, 0, 0, 1].into(), meta: Meta::new() };
        let mut changes = vec![Change::Node(node("used"), Some(there))];
        let mut asked = Asked::default();
        asked.want(Want::Node(node("used")), &View::default());
        for n in 0..ASKED_MAX * 3 {
            let name = node(&format!("no{n}"));
            let delta = Delta { index: Index(1), is_snapshot: true, changes: changes.clone() };
            let view = View::default().advanced(delta);
            asked.want(Want::Node(name.clone()), &view);
            assert!(asked.names.contains_key(&Name::Node(name.clone())), "it is asked for");
            // Answered at times, and then there is none.
            if n % 500 == 0 {
                changes.push(Change::Node(name, None));
            }
        }
        assert_eq!(asked.names.len(), ASKED_MAX);
        assert!(asked.names.contains_key(&Name::Node(node("used"))), "there is such a node");
        assert!(!asked.names.contains_key(&Name::Node(node("no2500"))), "there is none");
    }

    #[test]
    fn what_is_asked_for_no_more_does_not_come_back() {
        let node = |text: &str| -> NodeName { text.parse().expect("a name") };
        let changes = vec![Change::Node(node("a"), None), Change::Node(node("b"), None)];
        let view = View::default().advanced(Delta { index: Index(1), is_snapshot: true, changes });
        let only = |names: &[&str]| Interest {
            nodes: names.iter().map(|name| node(name)).collect(),
            ..Interest::default()
        };
        assert!(narrowed(&view, &only(&["a", "b"])).is_none(), "all is asked for");
        let narrowed = narrowed(&view, &only(&["b"])).expect("a is not");
        assert_eq!(narrowed.nodes.keys().collect::<Vec<_>>(), [&node("b")]);
    }

    #[test]
    fn a_kept_view_comes_back_and_a_damaged_one_is_set_aside() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("view");
        assert!(kept(&path).is_none());
        let view = View { index: Index(7), ..View::default() };
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
