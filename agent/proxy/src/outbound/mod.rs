//! Outbound: connections from the application, routed, balanced and carried to the peer.
//!
//! Tasks: one for each connection; one for each request in an HTTP/2 connection (by hyper); one
//! for each connection to a peer; one for each upgraded connection.

mod branch;
mod dial;
mod datagrams;
mod hedge;
mod http;
mod inject;
mod mirror;
mod ports;
mod reach;
mod streams;
mod tcp;
mod terms;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::balance::{Ask, Balancer, Effect, Fault, Outcome, PeerId, Pick};
use hawser_core::budget::Budget;
use hawser_core::catalog::{Endpoint, Protocol};
use hawser_core::chain::Chain;
use hawser_core::entry::{GatewayMode, Target};
use hawser_core::hedge::Latencies;
use hawser_core::name::{InstanceId, PeerName, ServiceName};
use hawser_core::peering::{PeerGateway, PeerService};
use hawser_core::policy::Policies;
use hawser_core::reason::{DecidedBy, Reason};
use hawser_core::route::{Group, route};
use hawser_core::view::{PeerView, ServiceView, View};
use rand::{Rng as _, RngCore as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use self::branch::Branches;
use self::ports::Seen;
use self::reach::{Instance, Reach};
use self::terms::Terms;
use crate::context::Context;
use crate::lifespan::Moves;
use crate::report::{Pair, Record, Reporter};
use crate::select::Selector;
use crate::socket;
use crate::tls::Identity;
use crate::usage::{Held, Usage};

/// One upstream of one local service, in one worker.
pub(crate) struct Port {
    pub(crate) context: Rc<Context>,
    pub(crate) service: ServiceName,
    pub(crate) destination: Target,
    instance: InstanceId,
    pair: Rc<Pair>,
    identity: RefCell<Option<Rc<Identity>>>,
    current: RefCell<Current>,
    balancer: RefCell<Balancer>,
    reaches: RefCell<BTreeMap<Target, Rc<Reach>>>,
    instances: RefCell<BTreeMap<PeerId, Rc<Instance>>>,
    /// That of its caller and target, also where other upstreams and routes lead there.
    budget: Rc<RefCell<Budget>>,
    /// Where what is sent here goes, when that is not all to the destination's own instances.
    branches: RefCell<Option<Branches>>,
    /// What the caller's entries call it by: the upstream that leads here.
    named: Target,
    terms: RefCell<Rc<Terms>>,
    usage: Arc<Usage>,
    /// Cancelled when what decides where connections go changes, and made anew.
    changed: RefCell<CancellationToken>,
    /// How long answers took lately, where hedging asks.
    latencies: RefCell<Option<Box<Latencies>>>,
    /// Which of the destination's ports it leads to; none for the default one, as the view has it.
    selector: Option<Rc<Selector>>,
    seen: RefCell<Option<Seen>>,
    /// The ports for what was detected here.
    speaking: RefCell<BTreeMap<Protocol, Rc<Port>>>,
}

/// What the route was made of.
#[derive(Clone, Default)]
struct Current {
    service: Option<Arc<ServiceView>>,
    /// What entries say of the caller stands in its own service.
    caller: Option<Arc<ServiceView>>,
    peers: Arc<BTreeMap<PeerName, PeerView>>,
    gateways: Arc<[PeerGateway]>,
}

impl Current {
    fn is_same(&self, other: &Self) -> bool {
        let is_same = |old: &Option<Arc<ServiceView>>, new: &Option<Arc<ServiceView>>| {
            old.as_ref().map(Arc::as_ptr) == new.as_ref().map(Arc::as_ptr)
        };
        is_same(&self.service, &other.service)
            && is_same(&self.caller, &other.caller)
            && Arc::ptr_eq(&self.peers, &other.peers)
            && Arc::ptr_eq(&self.gateways, &other.gateways)
    }
}

impl Port {
    pub(crate) fn new(
        context: Rc<Context>,
        service: ServiceName,
        instance: InstanceId,
        destination: Target,
        usage: Arc<Usage>,
        selector: Option<Rc<Selector>>,
    ) -> Self {
        let terms = Terms::compile(None, None, &destination, &context.limits);
        let pair = context.report.pair(Reporter::Client, &service, &destination.service);
        let budget = context.budgets.of(&service, &destination);
        Self {
            context,
            service,
            named: destination.clone(),
            destination,
            instance,
            pair,
            identity: RefCell::default(),
            current: RefCell::default(),
            balancer: RefCell::default(),
            reaches: RefCell::default(),
            instances: RefCell::default(),
            budget,
            branches: RefCell::default(),
            terms: RefCell::new(Rc::new(terms)),
            usage,
            changed: RefCell::default(),
            latencies: RefCell::default(),
            selector,
            seen: RefCell::default(),
            speaking: RefCell::default(),
        }
    }

    /// Takes over a new identity, or none. Pooled connections of the one before end in peace.
    pub(crate) fn identify(&self, identity: Option<&Rc<Identity>>) {
        let is_same = match (&*self.identity.borrow(), identity) {
            (Some(old), Some(new)) => Rc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            *self.identity.borrow_mut() = identity.cloned();
            let current = self.look();
            self.arrange(current);
        }
        self.spoken_here().iter().for_each(|port| port.identify(identity));
    }

    /// Takes over what the view says now of the destination, and of the ways to it.
    pub(crate) fn refresh(&self) {
        let current = self.look();
        let is_same = self.current.borrow().is_same(&current);
        if !is_same {
            self.arrange(current);
        }
        self.spoken_here().iter().for_each(|port| port.refresh());
    }

    /// Takes over an identity, and what another port says now of this one's destination.
    fn adopt(&self, identity: Option<Rc<Identity>>, current: Current) {
        *self.identity.borrow_mut() = identity;
        let service = current.service.map(|service| self.seen(service));
        self.arrange(Current { service, ..current });
    }

    fn look(&self) -> Current {
        let view = self.context.view.borrow();
        let Target { service, peer } = &self.destination;
        let service = match peer {
            None => view.services.get(service),
            Some(peer) => {
                let (peer, service) = (peer.clone(), service.clone());
                view.imports.get(&PeerService { peer, service })
            }
        };
        Current {
            service: service.cloned().map(|service| self.seen(service)),
            caller: view.services.get(&self.service).cloned(),
            peers: view.peers.clone(),
            gateways: view.gateways.clone(),
        }
    }

    /// Routes anew, and keeps the connections to all instances that are called as before.
    fn arrange(&self, current: Current) {
        let view = self.context.view.borrow().clone();
        let service = current.service.clone();
        let routing = service.as_deref().and_then(|service| service.routing.as_ref());
        let branches = {
            let old = self.branches.borrow();
            if old.as_ref().map(Branches::routing).zip(routing).is_none_or(|(a, b)| !a.is_same(b))
                && (old.is_some() || routing.is_some())
            {
                old.iter().flat_map(Branches::ports).for_each(|branch| branch.move_on());
                self.move_on();
            }
            routing.map(|routing| Branches::new(self, routing, &current, old.as_ref()))
        };
        *self.branches.borrow_mut() = branches;
        // What goes to the ends of routes is balanced there.
        let own = service.as_deref().filter(|service| service.routing.is_none());
        let groups = own.map(|service| route(&view, service, &self.context.locality));
        let groups = groups.unwrap_or_default();
        let terms = Terms::compile(
            service.as_deref(),
            current.caller.as_deref(),
            &self.named,
            &self.context.limits,
        );
        if self.terms.borrow().rules.leads_elsewhere(&terms.rules) {
            self.move_on();
        }
        self.balancer.borrow_mut().update(&groups, &terms.rules, self.context.clock.now());
        *self.terms.borrow_mut() = Rc::new(terms);
        let mut reaches = BTreeMap::new();
        for group in &groups {
            if !reaches.contains_key(&group.target)
                && let Some(reach) = self.reach(&view, &group.target, group.gateway_mode)
            {
                reaches.insert(group.target.clone(), reach);
            }
        }
        self.replace_instances(&groups, &reaches);
        *self.reaches.borrow_mut() = reaches;
        *self.current.borrow_mut() = current;
    }

    /// How `target` is called now: as before, if that is still so.
    fn reach(&self, view: &View, target: &Target, mode: GatewayMode) -> Option<Rc<Reach>> {
        let identity = self.identity.borrow().clone()?;
        let peer = match &target.peer {
            None => None,
            Some(peer) => Some(view.peers.get(peer)?),
        };
        let known = self.reaches.borrow().get(target).cloned();
        let reach = match known.filter(|known| known.is_of(&identity, peer)) {
            Some(known) => known,
            None => match Reach::new(&identity, target, peer, self.selector.as_deref()) {
                Ok(reach) => Rc::new(reach),
                Err(error) => {
                    let (service, destination) = (&self.service, &target.service);
                    tracing::error!(%service, %destination, %error, "cannot call");
                    return None;
                }
            },
        };
        reach.find_way(&self.context, view, mode);
        Some(reach)
    }

    fn replace_instances(&self, groups: &[Group<'_>], reaches: &BTreeMap<Target, Rc<Reach>>) {
        let routed = groups.iter().flat_map(|group| {
            let reach = reaches.get(&group.target);
            group.endpoints.iter().map(move |(endpoint, _)| (*endpoint, reach))
        });
        let mut old = std::mem::take(&mut *self.instances.borrow_mut());
        let mut new = BTreeMap::new();
        for (id, (endpoint, reach)) in self.balancer.borrow().peers().zip(routed) {
            let instance = match old.remove(&id) {
                Some(known) if known.is_within(reach) => known,
                known => {
                    // What the old identity opened takes no more requests.
                    known.iter().for_each(|known| known.forget());
                    let gone = known.map(|known| known.gone.clone());
                    let Some(instance) = instance(endpoint, reach) else { continue };
                    Rc::new(Instance { gone: gone.unwrap_or_default(), ..instance })
                }
            };
            new.insert(id, instance);
        }
        // Connections to instances that are gone take no more requests and end with their last.
        for gone in old.values() {
            gone.forget();
            // Where else could what is open go?
            if !new.is_empty() {
                gone.gone.cancel();
            }
        }
        *self.instances.borrow_mut() = new;
    }

    /// Tells what is open that new connections may go elsewhere now.
    fn move_on(&self) {
        self.changed.replace(CancellationToken::new()).cancel();
    }

    /// When a connection to `instance` should move, where `policies` ask that it does.
    fn moves(&self, instance: &Instance, policies: &Policies) -> Option<Moves> {
        let within = policies.connections.as_ref()?.moves_within()?;
        let millis = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let wait = self.context.random.borrow_mut().random_range(0..=millis);
        let wait = Duration::from_millis(wait);
        let changed = self.changed.borrow().clone();
        Some(Moves { gone: instance.gone.clone(), changed, wait })
    }

    /// Carries one connection of the application.
    pub(crate) async fn serve(self: Rc<Self>, socket: TcpStream) {
        socket::tune(&socket);
        let terms = self.terms();
        let refuse = |reason| {
            let callee = &self.destination.service;
            self.context.report.refuse(Reporter::Client, callee, reason, None);
        };
        let Some(chain) = terms.chain.clone() else { return refuse(Reason::ViewMissing) };
        if chain.protocol.is_http() {
            return Box::pin(self.serve_http(socket)).await;
        }
        if chain.policies.detects_protocol
            && let Some(port) = Box::pin(self.detected(&socket)).await
        {
            return Box::pin(port.serve_http(socket)).await;
        }
        let Some(_held) = self.usage.connections.take(terms.limits.max_connections) else {
            return refuse(Reason::ConnectionLimit);
        };
        let end = match &*self.branches.borrow() {
            None => Some(self.clone()),
            Some(branches) => branches.next(),
        };
        // Without an end, the port itself finds no instance, and says so.
        let port = end.unwrap_or_else(|| self.clone());
        let chain = port.terms().chain.clone().unwrap_or(chain);
        Box::pin(port.serve_tcp(socket, &chain)).await;
    }

    /// What entries say of calling the upstream now.
    fn terms(&self) -> Rc<Terms> {
        self.terms.borrow().clone()
    }

    /// A request's place among those that `terms` allow; given back when it is dropped. One that
    /// asks for an upgrade has a connection of its own.
    ///
    /// # Errors
    /// The limit that is reached.
    fn enter(&self, terms: &Terms, is_upgrade: bool) -> Result<[Held; 2], Reason> {
        let limits = &terms.limits;
        let request = self.usage.requests.take(limits.max_concurrent_requests);
        let request = request.ok_or(Reason::RequestLimit)?;
        // In HTTP/1.1 each request has a connection for as long as it takes.
        let is_http1 = |chain: &Rc<Chain>| chain.protocol == Protocol::Http;
        let has_own = is_upgrade || terms.chain.as_ref().is_some_and(is_http1);
        let most = limits.max_connections.filter(|_| has_own);
        let connection = self.usage.connections.take(most).ok_or(Reason::ConnectionLimit)?;
        Ok([request, connection])
    }

    /// Whether where connections come from has a say in where what they carry goes.
    fn hashes_source(&self) -> bool {
        match &*self.branches.borrow() {
            None => self.terms.borrow().hashes_source(),
            Some(branches) => branches.ports().iter().any(|port| port.hashes_source()),
        }
    }

    /// Compares the instances every now and then.
    pub(crate) fn sweep(&self) {
        for branch in self.branches.borrow().iter().flat_map(Branches::ports) {
            branch.sweep();
        }
        self.spoken_here().iter().for_each(|port| port.sweep());
        for instance in self.instances.borrow().values() {
            instance.sweep(&self.context);
        }
        let ejected = self.balancer.borrow_mut().sweep(self.context.clock.now());
        for (peer, span) in ejected {
            let Some(instance) = self.instances.borrow().get(&peer).cloned() else { continue };
            self.pair.ejected();
            let (destination, address) = (&self.destination.service, instance.address);
            tracing::warn!(%destination, %address, ?span, "instance ejected for its success rate");
        }
    }

    fn pick(&self, ask: Ask<'_>) -> Result<Picked<'_>, Reason> {
        let now = self.context.clock.now();
        let mut random = self.context.random.borrow_mut();
        let pick = self
            .balancer
            .borrow_mut()
            .pick(now, ask, || random.next_u64())
            .ok_or(Reason::NoEndpoint)?;
        let instance = self.instances.borrow().get(&pick.peer).cloned();
        let instance = instance.ok_or(Reason::NoEndpoint)?;
        Ok(Picked { port: self, pick, instance, is_finished: false })
    }

    /// Takes in how an answer ended that [`Picked::began`].
    fn concluded(&self, pick: Pick, fault: Option<Fault>) {
        let Some(instance) = self.instances.borrow().get(&pick.peer).cloned() else { return };
        let now = self.context.clock.now();
        let effect = self.balancer.borrow_mut().concluded(pick, fault, now);
        self.heed(effect, false, &instance);
    }

    /// Does what follows from the outcome of a request to `instance`.
    fn heed(&self, effect: Effect, is_unreachable: bool, instance: &Rc<Instance>) {
        let (destination, address) = (&self.destination.service, instance.address);
        match effect {
            Effect::None => {}
            Effect::Ejected(span) if is_unreachable => {
                self.pair.ejected();
                let cluster = instance.peer().map_or("", PeerName::as_str);
                tracing::warn!(%destination, cluster, ?span, "target unreachable");
                // What is stuck on the way there would go on holding up requests.
                let is_cut = |other: &&Rc<Instance>| other.is_within(instance.reach.as_ref());
                self.instances.borrow().values().filter(is_cut).for_each(|it| it.forget());
            }
            Effect::Ejected(span) => {
                self.pair.ejected();
                tracing::warn!(%destination, %address, ?span, "instance ejected");
                // What is stuck there would go on holding up requests: new ones begin anew.
                instance.forget();
            }
            Effect::Returned => tracing::info!(%destination, %address, "instance is back"),
        }
    }

    fn record(&self, reason: Reason, started: Duration) -> Record {
        Record {
            reason,
            decided_by: DecidedBy::ClientProxy,
            protocol: self.current.borrow().service.as_ref().map(|it| it.chain.protocol),
            status: None,
            bytes_sent: 0,
            bytes_received: 0,
            first_byte: None,
            duration: self.context.clock.now().saturating_sub(started),
            view_index: self.context.view.borrow().index,
            attempts: 1,
            upstream: None,
            cluster: self.destination.peer.clone(),
            route: None,
            caller: None,
            trail: None,
        }
    }
}

fn instance(endpoint: &Endpoint, reach: Option<&Rc<Reach>>) -> Option<Instance> {
    Some(Instance::new(endpoint, endpoint.mesh?, reach.cloned()))
}

/// An instance that was picked; says that nobody waited when it is dropped unfinished.
struct Picked<'a> {
    port: &'a Port,
    pick: Pick,
    instance: Rc<Instance>,
    is_finished: bool,
}

impl Picked<'_> {
    fn finish(mut self, outcome: Outcome) {
        self.settle(outcome);
    }

    /// It answered well after `latency`: so did its target.
    fn answered(self, latency: Duration, now: Duration) {
        self.heard(now);
        self.finish(Outcome::Answered(latency));
    }

    /// It answered after `latency`, with an error.
    fn erred(self, latency: Duration, now: Duration, fault: Fault) {
        self.heard(now);
        self.finish(Outcome::Erred(latency, fault));
    }

    /// Its answer began after `latency`, and says at its end how the call went.
    fn began(self, latency: Duration, now: Duration) -> Pick {
        let pick = self.pick;
        self.heard(now);
        self.finish(Outcome::Began(latency));
        pick
    }

    fn heard(&self, now: Duration) {
        if let Some(reach) = &self.instance.reach {
            reach.heard(now);
        }
    }

    /// An attempt that began at `began` came to nothing for `reason`.
    fn failed(self, reason: Reason, began: Duration) {
        let outcome = match reason {
            // Our own lack is not the instance's fault.
            Reason::NoIdentity | Reason::Overloaded | Reason::PendingLimit => Outcome::Unknown,
            Reason::GatewayUnavailable => Outcome::Unreachable,
            Reason::ConnectTimeout | Reason::HandshakeTimeout => self.silence_since(began),
            Reason::ConnectFailed if self.instance.reach.as_ref().is_some_and(|it| it.missed()) => {
                Outcome::Unreachable
            }
            _ => Outcome::Failed,
        };
        self.finish(outcome);
    }

    /// What it means that it has not answered since `began`: where nobody in its cluster has, it
    /// is the cluster that does not.
    fn silence_since(&self, began: Duration) -> Outcome {
        match &self.instance.reach {
            Some(reach) if reach.is_cut_since(began) => Outcome::Unreachable,
            _ => Outcome::Failed,
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        let port = self.port;
        let now = port.context.clock.now();
        let effect = port.balancer.borrow_mut().finish(self.pick, outcome, now);
        port.heed(effect, outcome == Outcome::Unreachable, &self.instance);
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        self.settle(Outcome::Unknown);
    }
}
