//! A worker: one thread, its runtime, its listeners, its pools, and what it knows of the world.
//!
//! Tasks: one for each listener, and those that its connections start.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_core::address::{Address, SocketPath};
use hawser_core::catalog::Locality;
use hawser_core::entry::Target;
use hawser_core::name::{InstanceId, PortName};
use hawser_core::reason::Reason;
use hawser_core::view::{PeerView, Trust, View};
use hawser_identity::{Anchors, Leaf};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Monotonic;
use crate::context::{Budgets, Context, Http1};
use crate::gateway::{self, Gateway};
use crate::gateways::Gateways;
use crate::guard::Intake;
use crate::handshakes::Handshakes;
use crate::inherit::{Inherited, Listening, Socket};
use crate::limits::Limits;
use crate::report::{Local, Reporter};
use crate::select::Selector;
use crate::socket::{self, Listen};
use crate::tls::{self, Identity};
use crate::trailers::Trailers;
use crate::unix;
use crate::usage::Usage;
use crate::{Kind, ListenerStatus, Plan, inbound, outbound};

/// The workers that serve a listener, each with its sockets or why it could not bind.
type BoundBy = BTreeMap<usize, Result<Vec<Socket>, String>>;

/// Listeners' states, and counts that workers share.
#[derive(Default)]
pub(crate) struct Board {
    bound: Mutex<BTreeMap<(Kind, Address), BoundBy>>,
    /// The files of the Unix sockets among them, to be removed with them.
    files: Mutex<BTreeMap<SocketPath, unix::File>>,
    open: Mutex<BTreeMap<InstanceId, Arc<AtomicUsize>>>,
    /// Counts changes of the sockets.
    changed: watch::Sender<u64>,
    usage: Mutex<BTreeMap<(InstanceId, Target), Arc<Usage>>>,
    intakes: Mutex<BTreeMap<InstanceId, Arc<Intake>>>,
}

impl Board {
    fn set(
        &self,
        kind: Kind,
        address: &Address,
        worker: usize,
        sockets: Result<Vec<Socket>, String>,
    ) {
        let is_news = sockets.is_ok();
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.entry((kind, address.clone())).or_default().insert(worker, sockets);
        drop(bound);
        if is_news {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// The worker's own handle to the socket at `path`, which all workers share: whoever comes
    /// first takes it up or binds it.
    fn unix(
        &self,
        (path, mode): (&SocketPath, u32),
        worker: usize,
        inherited: &Inherited,
    ) -> io::Result<UnixListener> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Kind::Outbound, Address::Unix(path.clone()));
        let shared = {
            let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
            let mut sockets = bound.get(&key).into_iter().flat_map(BTreeMap::values).flatten();
            sockets.find_map(|sockets| sockets.first()).map(Socket::try_clone).transpose()?
        };
        if let Some(Socket::Unix(shared)) = shared {
            return Ok(shared);
        }
        let listener = match inherited.claim_unix(path) {
            Some(taken) => {
                unix::set_mode(path, mode)?;
                taken
            }
            None => unix::bind(path, mode)?,
        };
        files.extend(unix::File::at(path).map(|file| (path.clone(), file)));
        // Before the next worker looks.
        let lent = Socket::Unix(listener.try_clone()?);
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.entry(key).or_default().insert(worker, Ok(vec![lent]));
        Ok(listener)
    }

    /// Forgets a worker's listener; answers whether it was the last at `address`.
    fn remove(&self, kind: Kind, address: &Address, worker: usize) -> bool {
        let mut bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kind, address.clone());
        let mut is_last = false;
        if let Some(workers) = bound.get_mut(&key) {
            workers.remove(&worker);
            is_last = workers.is_empty();
            if is_last {
                bound.remove(&key);
            }
        }
        drop(bound);
        self.changed.send_modify(|count| *count += 1);
        is_last
    }

    /// Removes the file of a Unix socket that nobody serves any more.
    fn remove_file(&self, path: &SocketPath) {
        let file = self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        if let Some(file) = file {
            unix::remove(path, file);
        }
    }

    fn open(&self, instance: &InstanceId) -> Arc<AtomicUsize> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Counts of instances that are gone and have no connections are of no use.
        open.retain(|_, count| Arc::strong_count(count) > 1);
        open.entry(instance.clone()).or_default().clone()
    }

    /// What is under way from an instance to one upstream.
    fn usage(&self, instance: &InstanceId, upstream: &Target) -> Arc<Usage> {
        let mut all = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, usage| Arc::strong_count(usage) > 1);
        all.entry((instance.clone(), upstream.clone())).or_default().clone()
    }

    /// What an instance takes in.
    fn intake(&self, instance: &InstanceId) -> Arc<Intake> {
        let mut all = self.intakes.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, intake| Arc::strong_count(intake) > 1);
        all.entry(instance.clone()).or_default().clone()
    }

    /// What the instances here count of rates that hold for all instances of their services.
    pub(crate) fn intakes(&self) -> Vec<(InstanceId, Arc<Intake>)> {
        let all = self.intakes.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(instance, intake)| (instance.clone(), intake.clone())).collect()
    }

    /// All listeners, with the error of whichever worker could not bind.
    pub(crate) fn listeners(&self) -> Vec<ListenerStatus> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let status = |((kind, address), workers): (&(Kind, Address), &BoundBy)| {
            let error = workers.values().find_map(|sockets| sockets.as_ref().err().cloned());
            ListenerStatus { address: address.clone(), kind: *kind, error }
        };
        bound.iter().map(status).collect()
    }

    /// All sockets that listen, for another process to take up.
    pub(crate) fn sockets(&self) -> io::Result<Vec<Listening>> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for ((kind, address), workers) in &*bound {
            let own = workers.values().flatten().flatten();
            // All workers accept from one Unix socket.
            let count = if address.tcp().is_some() { usize::MAX } else { 1 };
            for socket in own.take(count) {
                let socket = socket.try_clone()?;
                all.push(Listening { kind: *kind, address: address.clone(), socket });
            }
        }
        Ok(all)
    }

    /// Wakes when [`Board::sockets`] may answer something else.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// What a worker is started with.
pub(crate) struct Start {
    pub(crate) number: usize,
    pub(crate) workers: usize,
    pub(crate) limits: Limits,
    pub(crate) locality: Locality,
    pub(crate) shared: Arc<crate::report::Shared>,
    pub(crate) gateway: Arc<gateway::Shared>,
    pub(crate) board: Arc<Board>,
    pub(crate) plans: watch::Receiver<Arc<Plan>>,
    pub(crate) views: watch::Receiver<Arc<View>>,
    pub(crate) inherited: Inherited,
    /// Told once the first plan is carried out.
    pub(crate) begun: mpsc::Sender<()>,
    pub(crate) drain: CancellationToken,
    pub(crate) is_succeeded: Arc<AtomicBool>,
    pub(crate) cut: CancellationToken,
}

struct Worker {
    number: usize,
    workers: usize,
    inherited: Inherited,
    context: Rc<Context>,
    board: Arc<Board>,
    plan: Arc<Plan>,
    anchors: Option<Arc<Anchors>>,
    generation: u64,
    identities: BTreeMap<InstanceId, (Arc<Leaf>, Rc<Identity>)>,
    /// Each instance's leaf, with what is cancelled when another takes its place.
    leaves: Leaves,
    listeners: BTreeMap<Key, Listener>,
    gateway: Rc<Gateway>,
}

type Leaves = BTreeMap<InstanceId, (Arc<Leaf>, CancellationToken)>;

/// What is cancelled once `leaf` is the instance's no more. What another leaf had opened is told
/// that now: long before its end, so that nothing has to be cut then.
fn supersede(leaves: &mut Leaves, instance: &InstanceId, leaf: &Arc<Leaf>) -> CancellationToken {
    if let Some((held, token)) = leaves.get(instance) {
        if Arc::ptr_eq(held, leaf) {
            return token.clone();
        }
        token.cancel();
    }
    let token = CancellationToken::new();
    leaves.insert(instance.clone(), (leaf.clone(), token.clone()));
    token
}

/// What makes a listener the same one after a change of plan.
#[derive(Clone, Eq, Ord, PartialEq, PartialOrd)]
struct Key {
    kind: Kind,
    address: Address,
    instance: InstanceId,
    /// The service for inbound, the destination for outbound, its own for the gateway.
    subject: Target,
    /// Which port of the destination, where that is named.
    port: Option<PortName>,
}

struct Listener {
    port: Port,
    stop: CancellationToken,
    is_bound: bool,
    /// The mode of its socket's file, where it is one.
    mode: u32,
    /// What ends its socket for datagrams, where it has one.
    datagrams: Option<CancellationToken>,
}

#[derive(Clone)]
enum Port {
    In(Rc<inbound::Port>),
    Out(Rc<outbound::Port>),
    Gateway(Rc<Gateway>),
}

impl Start {
    /// What everything in the worker shares, with its share of the limits.
    fn context(&self) -> Rc<Context> {
        let share = |all: usize| (all / self.workers).max(1);
        Rc::new(Context {
            http1: Http1::new(&self.limits),
            locality: self.locality.clone(),
            clock: Monotonic::start(),
            view: RefCell::new(Arc::default()),
            keys: RefCell::default(),
            trailers: RefCell::default(),
            report: Local::new(self.shared.clone()),
            buffers: Arc::default(),
            watched: Rc::default(),
            gateways: Gateways::default(),
            budgets: Budgets::default(),
            handshakes: Handshakes::new(
                share(self.limits.handshakes),
                share(self.limits.handshakes_per_address),
            ),
            random: RefCell::new(SmallRng::from_os_rng()),
            drain: self.drain.clone(),
            is_succeeded: self.is_succeeded.clone(),
            tracker: TaskTracker::new(),
            connections: Cell::new(0),
            connections_max: share(self.limits.connections),
            requests: Rc::default(),
            requests_max: share(self.limits.requests),
            mirrors: Rc::default(),
            limits: self.limits.clone().of_one(self.workers),
        })
    }
}

/// Runs a worker until it is told to drain and everything has ended, or to cut.
pub(crate) async fn run(start: Start) {
    let context = start.context();
    let mut worker = Worker::new(
        context.clone(),
        (start.number, start.workers),
        start.board,
        start.inherited,
        start.gateway,
    );
    let (mut plans, mut views) = (start.plans, start.views);
    worker.view(&views.borrow_and_update().clone());
    worker.plan(&plans.borrow_and_update().clone());
    // Nobody waits for it where nothing was handed over.
    let _ = start.begun.send(());
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut has_plans, mut has_views) = (true, true);
    loop {
        tokio::select! {
            biased;
            () = start.drain.cancelled() => break,
            changed = views.changed(), if has_views => match changed {
                Ok(()) => worker.view(&views.borrow_and_update().clone()),
                // Whoever made views is gone: the last one goes on serving.
                Err(_) => has_views = false,
            },
            changed = plans.changed(), if has_plans => match changed {
                Ok(()) => worker.plan(&plans.borrow_and_update().clone()),
                Err(_) => has_plans = false,
            },
            _ = tick.tick() => worker.tick(),
        }
    }
    worker.close_listeners();
    context.tracker.close();
    loop {
        tokio::select! {
            biased;
            () = start.cut.cancelled() => break,
            () = context.tracker.wait() => break,
            changed = views.changed(), if has_views => match changed {
                Ok(()) => worker.view(&views.borrow_and_update().clone()),
                Err(_) => has_views = false,
            },
            _ = tick.tick() => worker.tick(),
        }
    }
    worker.cut_all();
    // One turn for what was cut to say so in its records.
    tokio::task::yield_now().await;
    worker.retire();
}

impl Worker {
    /// The first of the pair is which of how many it is.
    fn new(
        context: Rc<Context>,
        (number, workers): (usize, usize),
        board: Arc<Board>,
        inherited: Inherited,
        gateway: Arc<gateway::Shared>,
    ) -> Self {
        Self {
            number,
            workers,
            inherited,
            context: context.clone(),
            board,
            plan: Arc::default(),
            anchors: None,
            generation: 0,
            identities: BTreeMap::new(),
            leaves: BTreeMap::new(),
            listeners: BTreeMap::new(),
            gateway: Rc::new(Gateway::new(context, gateway, workers)),
        }
    }

    /// Takes over a new view: trust first, then endpoints, then open connections.
    fn view(&mut self, view: &Arc<View>) {
        let old = self.context.view.replace(view.clone());
        self.context.trailers.replace(Rc::new(Trailers::new(view)));
        if !is_same_trust(&old, view) {
            let anchors = |trust: &Trust| Arc::new(tls::anchors(trust, &view.peers));
            self.anchors = view.trust.as_deref().map(anchors);
            self.context.watched.prove(self.anchors.as_ref());
            self.identities.clear();
            self.identify();
        }
        for listener in self.listeners.values() {
            match &listener.port {
                Port::In(port) => port.refresh(),
                Port::Out(port) => port.refresh(),
                Port::Gateway(_) => {}
            }
        }
        self.context.gateways.sweep();
        self.context.watched.decide(view);
        self.gateway.decide(view);
    }

    /// Takes over a new plan: what stays is kept, with its connections.
    fn plan(&mut self, plan: &Arc<Plan>) {
        (self.plan, *self.context.keys.borrow_mut()) = (plan.clone(), plan.keys.clone());
        let mut wanted = BTreeSet::new();
        for local in &plan.services {
            if let Some(inbound) = &local.inbound {
                let key = Key {
                    kind: Kind::Inbound,
                    address: inbound.listen.into(),
                    instance: local.instance.clone(),
                    subject: Target { service: local.service.clone(), peer: None },
                    port: None,
                };
                wanted.insert(key.clone());
                let listener = self.listeners.entry(key).or_insert_with(|| {
                    let port = inbound::Port::new(
                        self.context.clone(),
                        local.service.clone(),
                        local.instance.clone(),
                        inbound.application.clone(),
                        self.board.open(&local.instance),
                        self.board.intake(&local.instance),
                    );
                    Listener::new(Port::In(Rc::new(port)))
                });
                if let Port::In(port) = &listener.port {
                    port.retarget(&inbound.application);
                    port.set_ports(&inbound.ports);
                }
            }
            for outbound in &local.outbounds {
                let key = Key {
                    kind: Kind::Outbound,
                    address: outbound.listen.clone(),
                    instance: local.instance.clone(),
                    subject: outbound.destination.clone(),
                    port: outbound.port.clone(),
                };
                wanted.insert(key.clone());
                let listener = self.listeners.entry(key).or_insert_with(|| {
                    let usage = self.board.usage(&local.instance, &outbound.destination);
                    Listener::new(Port::out(&self.context, local, outbound, usage))
                });
                listener.set_mode(outbound);
            }
        }
        wanted.extend(plan.gateway.as_ref().map(|plan| self.plan_gateway(plan)));
        let (board, number) = (&self.board, self.number);
        self.listeners.retain(|key, listener| {
            let stays = wanted.contains(key);
            if !stays {
                listener.stop.cancel();
                let is_last = board.remove(key.kind, &key.address, number);
                if let (Address::Unix(path), true) = (&key.address, is_last) {
                    board.remove_file(path);
                }
                tracing::info!(address = %key.address, "listener removed");
            }
            stays
        });
        self.identify();
        self.bind();
    }

    /// Takes over a plan of the gateway, and answers its listener's key.
    fn plan_gateway(&mut self, plan: &crate::Gateway) -> Key {
        self.gateway.servers(&plan.servers);
        let key = Key {
            kind: Kind::Gateway,
            address: plan.listen.into(),
            instance: plan.instance.clone(),
            subject: Target { service: plan.service.clone(), peer: None },
            port: None,
        };
        let gateway = &self.gateway;
        let listener = || Listener::new(Port::Gateway(gateway.clone()));
        self.listeners.entry(key.clone()).or_insert_with(listener);
        key
    }

    /// Gives every port the identity that its leaf and the roots of now make, where either is new.
    fn identify(&mut self) {
        let plan = self.plan.clone();
        for local in &plan.services {
            let known = self.identities.get(&local.instance);
            let is_same = match (&local.identity, known) {
                (Some(leaf), Some((old, _))) => Arc::ptr_eq(leaf, old),
                _ => false,
            };
            let identity = match (&local.identity, &self.anchors) {
                _ if is_same => known.map(|(_, identity)| identity.clone()),
                (Some(leaf), Some(anchors)) => {
                    self.generation += 1;
                    let superseded = supersede(&mut self.leaves, &local.instance, leaf);
                    match Identity::new(leaf, anchors, self.generation) {
                        Ok(identity) => Some(Rc::new(identity.until(superseded))),
                        Err(error) => {
                            let service = &local.service;
                            tracing::error!(%service, %error, "identity refused; nothing is served");
                            None
                        }
                    }
                }
                _ => None,
            };
            match (&local.identity, &identity) {
                (Some(leaf), Some(identity)) => {
                    let known = (leaf.clone(), identity.clone());
                    self.identities.insert(local.instance.clone(), known);
                }
                _ => {
                    self.identities.remove(&local.instance);
                }
            }
        }
        let present: BTreeSet<_> = plan.services.iter().map(|local| &local.instance).collect();
        self.identities.retain(|instance, _| present.contains(instance));
        self.leaves.retain(|instance, _| present.contains(instance));
        for (key, listener) in &self.listeners {
            let identity = self.identities.get(&key.instance).map(|(_, identity)| identity);
            listener.port.identify(identity);
        }
    }

    /// Binds what is not bound yet; what fails is tried again at the next tick.
    fn bind(&mut self) {
        for (key, listener) in &mut self.listeners {
            let address = key.address.tcp();
            if let Some(Err(error)) = address.map(|address| listener.bind_datagrams(address)) {
                tracing::debug!(address = %key.address, %error, "no socket for datagrams yet");
            }
            if listener.is_bound {
                continue;
            }
            let sockets = match &key.address {
                Address::Tcp(address) => {
                    let inherited = self.inherited.claim(*address, self.number, self.workers);
                    socket::listen(*address, inherited)
                }
                Address::Unix(path) => self
                    .board
                    .unix((path, listener.mode), self.number, &self.inherited)
                    .and_then(socket::listen_unix),
            };
            let bound = match sockets {
                Ok(sockets) => {
                    listener.is_bound = true;
                    let mut lent = Vec::with_capacity(sockets.len());
                    for (socket, for_others) in sockets {
                        lent.push(for_others);
                        let (context, port) = (self.context.clone(), listener.port.clone());
                        let stop = listener.stop.clone();
                        tokio::task::spawn_local(accept(context, socket, port, stop));
                    }
                    Ok(lent)
                }
                Err(error) => Err(error.to_string()),
            };
            self.board.set(key.kind, &key.address, self.number, bound);
        }
    }

    fn tick(&mut self) {
        self.bind();
        self.context.watched.tick();
        self.context.watched.expire(crate::clock::wall());
        for listener in self.listeners.values() {
            match &listener.port {
                Port::In(port) => port.sweep(),
                Port::Out(port) => port.sweep(),
                Port::Gateway(_) => {}
            }
        }
        self.gateway.tick();
        self.context.report.flush();
    }

    fn cut_all(&self) {
        self.context.watched.cut_all();
        self.gateway.cut_all();
    }

    /// Stops accepting. The ports stay, for the connections that came in by them; so do the files
    /// of Unix sockets, which another process may serve.
    fn close_listeners(&self) {
        for (key, listener) in &self.listeners {
            listener.stop.cancel();
            self.board.remove(key.kind, &key.address, self.number);
        }
    }

    /// Hands over what was counted.
    fn retire(&mut self) {
        self.listeners.clear();
        self.gateway.flush();
        self.context.report.flush();
    }
}

impl Listener {
    fn new(port: Port) -> Self {
        Self { port, stop: CancellationToken::new(), is_bound: false, mode: 0, datagrams: None }
    }

    /// Takes over the mode that its socket's file should have.
    fn set_mode(&mut self, outbound: &crate::Outbound) {
        let was = std::mem::replace(&mut self.mode, outbound.mode);
        if self.is_bound
            && was != outbound.mode
            && let Address::Unix(path) = &outbound.listen
            && let Err(error) = unix::set_mode(path, outbound.mode)
        {
            tracing::warn!(%path, %error, "the socket keeps its mode");
        }
    }

    /// Binds a socket for datagrams beside the one for connections where its upstream speaks UDP,
    /// and closes it where it does so no more.
    fn bind_datagrams(&mut self, address: std::net::SocketAddr) -> io::Result<()> {
        let Port::Out(port) = &self.port else { return Ok(()) };
        if !port.carries_datagrams() {
            self.datagrams.take().iter().for_each(CancellationToken::cancel);
            return Ok(());
        }
        if self.datagrams.is_some() {
            return Ok(());
        }
        let (socket, stop) = (socket::bind_udp(address)?, self.stop.child_token());
        self.datagrams = Some(stop.clone());
        tokio::task::spawn_local(port.clone().serve_datagrams(socket, stop));
        Ok(())
    }
}

impl Port {
    /// The port by which `local` calls `outbound`.
    fn out(
        context: &Rc<Context>,
        local: &crate::LocalService,
        outbound: &crate::Outbound,
        usage: Arc<Usage>,
    ) -> Self {
        let (service, instance) = (local.service.clone(), local.instance.clone());
        let destination = outbound.destination.clone();
        let selector = outbound.port.clone().map(|name| Rc::new(Selector::Port(name)));
        let port =
            outbound::Port::new(context.clone(), service, instance, destination, usage, selector);
        port.refresh();
        Self::Out(Rc::new(port))
    }

    /// Counts accepted connections up or down.
    fn connections(&self, context: &Context, change: i64) {
        match self {
            Self::In(_) => context.report.connections(Reporter::Server, change),
            Self::Out(_) => context.report.connections(Reporter::Client, change),
            Self::Gateway(gateway) => gateway.connections(change),
        }
    }

    /// Counts a connection that is dropped because there are too many.
    fn overloaded(&self, context: &Context, from: Option<IpAddr>) {
        let reason = Reason::Overloaded;
        match self {
            Self::In(port) => context.report.refuse(Reporter::Server, &port.service, reason, from),
            Self::Out(port) => {
                context.report.refuse(Reporter::Client, &port.destination.service, reason, from);
            }
            Self::Gateway(gateway) => gateway.overloaded(),
        }
    }

    fn identify(&self, identity: Option<&Rc<Identity>>) {
        match self {
            Self::In(port) => *port.identity.borrow_mut() = identity.cloned(),
            Self::Out(port) => port.identify(identity),
            // It speaks for nobody.
            Self::Gateway(_) => {}
        }
    }
}

/// Whether `new` trusts whom `old` trusted, by the same roots.
fn is_same_trust(old: &View, new: &View) -> bool {
    let is_same_own = match (&old.trust, &new.trust) {
        (Some(old), Some(new)) => {
            old.roots == new.roots
                && old.revoked == new.revoked
                && old.trust_domain == new.trust_domain
                && old.datacenter == new.datacenter
        }
        (None, None) => true,
        _ => false,
    };
    let is_same_peer = |(old, new): (&PeerView, &PeerView)| {
        old.roots == new.roots
            && old.revoked == new.revoked
            && old.trust_domain == new.trust_domain
            && old.datacenter == new.datacenter
    };
    let are_same_peers = || {
        Arc::ptr_eq(&old.peers, &new.peers)
            || (old.peers.len() == new.peers.len()
                && old.peers.values().zip(new.peers.values()).all(is_same_peer))
    };
    is_same_own && are_same_peers()
}

/// Accepts until told to stop. An error backs off; it never ends the listener.
async fn accept(context: Rc<Context>, listener: Listen, port: Port, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let socket = match accepted {
            Ok(socket) => socket,
            Err(error) => {
                // Out of descriptors, most likely: the connection waits in the backlog meanwhile.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_BACK_OFF).await;
                continue;
            }
        };
        if context.connections.get() >= context.connections_max {
            // Dropped at once: nobody is helped by a connection that waits for memory.
            let from = socket.peer_addr().ok().map(|from| from.ip());
            port.overloaded(&context, from);
            continue;
        }
        let (context, port) = (context.clone(), port.clone());
        context.connections.set(context.connections.get() + 1);
        port.connections(&context, 1);
        context.clone().tracker.spawn_local(async move {
            match port.clone() {
                Port::In(port) => port.serve(socket).await,
                Port::Out(port) => port.serve(socket).await,
                Port::Gateway(gateway) => gateway.serve(socket).await,
            }
            context.connections.set(context.connections.get() - 1);
            port.connections(&context, -1);
        });
    }
}

const TICK: Duration = Duration::from_millis(100);
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
