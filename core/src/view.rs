//! The view: one host's coherent picture of what it uses, as of one index, and its deltas.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::ca::{self, Issuing};
pub use crate::catalog::Endpoint;
use crate::catalog::{Check, Meta, Placed, Protocol, Row};
use crate::chain::{self, Chain};
use crate::clock::Index;
use crate::discovery::{self, Destination, Graph, Next, Resolver, Route, Split};
use crate::entry::{GatewayMode, HeaderEdits, ServiceRoute, Sticky, Target, WHOLE, Weight};
use crate::filter::Filter;
use crate::health::Status;
use crate::intention::{Action, Decision, Intention, Intentions, Pair, Reason};
use crate::jwt::{self, KeyRing, Providers};
use crate::name::{Datacenter, NodeName, PeerName, ServiceName};
use crate::normal;
use crate::peering::{Exports, PeerGateway, PeerService, PeerState, Peering};
use crate::permission::Guard;
use crate::revocation::Revoked;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::state::{State, Topic};

/// What a host asks to see: nothing else is sent to it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Interest {
    /// Services that it calls or was asked for in DNS.
    pub services: BTreeSet<ServiceName>,
    /// Services that run on it, whose intentions its proxies enforce.
    pub locals: BTreeSet<ServiceName>,
    /// Nodes that it was asked for in DNS.
    pub nodes: BTreeSet<NodeName>,
    /// Services of peers that it calls under the peer's name or was asked for in DNS.
    pub imports: BTreeSet<PeerService>,
    /// Whether it is a mesh gateway, and needs all that is exported.
    pub gateway: bool,
}

/// What is the same for all: who the cluster is and whom it trusts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trust {
    /// The trust domain of every identity in the cluster.
    pub trust_domain: TrustDomain,
    /// The cluster's datacenter.
    pub datacenter: Datacenter,
    /// Root certificates, DER.
    pub roots: Vec<Arc<[u8]>>,
    /// What holds where no intention does.
    pub default_action: Action,
    /// Who signs now.
    pub issuing: Issuing,
    /// Whom nobody believes any more.
    pub revoked: Arc<Revoked>,
}

/// One service as a host sees it. Without endpoints it does not exist in the catalog.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceView {
    /// How it is reached.
    pub chain: Chain,
    /// The peer that it is a service of; none for one's own cluster.
    pub peer: Option<PeerName>,
    /// Which way its instances are reached, when it is a peer's.
    pub gateway_mode: GatewayMode,
    /// Its instances, healthy or not, by node and id.
    pub endpoints: Arc<[Endpoint]>,
    /// What stands in for it while no instance can take traffic: in this order.
    pub failover: Arc<[TargetView]>,
    /// The last entry that touched it; zero while it does not exist.
    pub index: Index,
    /// Where what is sent to it goes, where that is not all to its own instances.
    pub routing: Option<Arc<Routing>>,
}

/// Where what is sent to a service goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Routing {
    /// The first that matches counts; the last matches all.
    pub routes: Vec<RouteView>,
    /// The ends of all routes, each with its instances and what stands in for it.
    pub ends: Vec<(Destination, Arc<ServiceView>)>,
}

impl Routing {
    /// Whether it leads what is sent to the same ends, in the same shares.
    pub fn is_same(&self, other: &Self) -> bool {
        let ends = |routing: &Self| routing.ends.iter().map(|(end, _)| end.clone()).collect();
        let (own, others): (Vec<Destination>, Vec<Destination>) = (ends(self), ends(other));
        self.routes == other.routes && own == others
    }
}

/// One route.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RouteView {
    /// What it matches and how its requests are sent; none is all, as usual.
    pub definition: Option<ServiceRoute>,
    /// What its requests must have in common to go to the same end.
    pub sticky: Option<Sticky>,
    /// The shares of its ends.
    pub splits: Vec<SplitView>,
    /// Which of the ends copies of its requests go to.
    pub mirror: Option<usize>,
}

/// One share of a route's requests.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SplitView {
    /// Its weight beside the others.
    pub weight: Weight,
    /// Which of the ends its requests go to.
    pub end: usize,
    /// What is changed in them.
    pub request_headers: Option<HeaderEdits>,
    /// What is changed in the answers.
    pub response_headers: Option<HeaderEdits>,
}

impl ServiceView {
    /// A service of one's own cluster that nothing stands in for.
    pub fn alone(chain: Chain, endpoints: Arc<[Endpoint]>, index: Index) -> Self {
        Self {
            chain,
            peer: None,
            gateway_mode: GatewayMode::Default,
            endpoints,
            failover: Arc::new([]),
            index,
            routing: None,
        }
    }

    /// How many of its instances may take traffic.
    pub fn alive(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.status != Status::Critical).count()
    }

    /// The service as a target among those that stand in for it.
    pub fn target(&self) -> Target {
        Target { service: self.chain.service.clone(), peer: self.peer.clone() }
    }
}

/// One target of a service's failover.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TargetView {
    /// Which service, and of which cluster.
    pub target: Target,
    /// Which way its instances are reached, when it is a peer's.
    pub gateway_mode: GatewayMode,
    /// Its instances, healthy or not, by node and id.
    pub endpoints: Arc<[Endpoint]>,
}

/// One peer as a host sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerView {
    /// The trust domain of its identities.
    pub trust_domain: TrustDomain,
    /// Its datacenter.
    pub datacenter: Datacenter,
    /// Who vouches for its services, DER.
    pub roots: Vec<Arc<[u8]>>,
    /// Which of them it revoked.
    pub revoked: Arc<Revoked>,
    /// What it calls this cluster: part of the names that its gateways route by.
    pub calls_us: PeerName,
    /// Whether its servers are heard of; if not, what it exports is as last known.
    pub is_live: bool,
    /// Its mesh gateways.
    pub gateways: Vec<PeerGateway>,
}

/// One node as a host sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeView {
    /// Its address.
    pub address: IpAddr,
    /// Free pairs, for TXT records.
    pub meta: Meta,
}

/// One step that a view advances by.
#[derive(Clone, Debug)]
pub enum Change {
    /// The cluster's trust.
    Trust(Trust),
    /// A service, as it is now.
    Service(ServiceView),
    /// All intentions that concern the host's own services, as they are now, and the providers of
    /// tokens that they name.
    Intentions(Vec<Arc<Intention>>, Providers),
    /// How requests are made normal.
    Normal(normal::Rules),
    /// A node as it is now; none when there is no such node.
    Node(NodeName, Option<NodeView>),
    /// A service of a peer, as it is now.
    Import(ServiceView),
    /// All peers, as they are now.
    Peers(BTreeMap<PeerName, PeerView>),
    /// Which of the host's own services, or of all when it is a gateway, each peer may use.
    Exports(Exports),
    /// Where the mesh gateways of one's own cluster listen for its own hosts.
    Gateways(Vec<PeerGateway>),
}

/// What brings a host's view from one index to the next.
#[derive(Clone, Debug)]
pub struct Delta {
    /// The index that the view stands at afterwards.
    pub index: Index,
    /// Whether the changes are the whole picture, and not steps from the one before.
    pub is_snapshot: bool,
    /// The steps.
    pub changes: Vec<Change>,
}

/// One host's coherent picture as of one index.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The index it is of.
    pub index: Index,
    /// Who the cluster is; none before the first delta.
    pub trust: Option<Arc<Trust>>,
    /// Services asked for and answered.
    pub services: BTreeMap<ServiceName, Arc<ServiceView>>,
    /// Intentions that concern the host's own services.
    pub intentions: Intentions,
    /// Nodes asked for and answered; none where there is no such node.
    pub nodes: BTreeMap<NodeName, Option<Arc<NodeView>>>,
    /// Services of peers, asked for by the peer's name and answered.
    pub imports: BTreeMap<PeerService, Arc<ServiceView>>,
    /// Every peer.
    pub peers: Arc<BTreeMap<PeerName, PeerView>>,
    /// Which of the host's own services, or of all when it is a gateway, each peer may use.
    pub exports: Arc<Exports>,
    /// Where the mesh gateways of one's own cluster listen for its own hosts.
    pub gateways: Arc<[PeerGateway]>,
    /// How requests are made normal.
    pub normal: normal::Rules,
    /// Whose tokens those intentions ask for.
    pub providers: Arc<Providers>,
    /// What decides about single requests, compiled, by the intention that says so.
    pub guards: Arc<BTreeMap<Pair, Arc<Guard>>>,
    /// The key sets of those providers that hold them themselves.
    pub inline_keys: Arc<KeyRing>,
}

impl View {
    /// The view after `delta`.
    #[must_use]
    pub fn advanced(&self, delta: Delta) -> Self {
        let mut next = if delta.is_snapshot { Self::default() } else { self.clone() };
        next.index = delta.index;
        for change in delta.changes {
            match change {
                Change::Trust(trust) => next.trust = Some(Arc::new(trust)),
                Change::Service(service) => {
                    next.services.insert(service.chain.service.clone(), Arc::new(service));
                }
                Change::Normal(rules) => next.normal = rules,
                Change::Intentions(all, providers) => {
                    next.providers = Arc::new(providers);
                    let row = |value: Arc<Intention>| crate::catalog::Row {
                        value,
                        created: delta.index,
                        modified: delta.index,
                    };
                    next.intentions = Intentions::restore(all.into_iter().map(row), delta.index);
                }
                Change::Node(name, node) => {
                    next.nodes.insert(name, node.map(Arc::new));
                }
                Change::Import(service) => {
                    let Some(peer) = service.peer.clone() else { continue };
                    let key = PeerService { peer, service: service.chain.service.clone() };
                    next.imports.insert(key, Arc::new(service));
                }
                Change::Peers(peers) => next.peers = Arc::new(peers),
                Change::Exports(exports) => next.exports = Arc::new(exports),
                Change::Gateways(gateways) => next.gateways = gateways.into(),
            }
        }
        next.compiled(self)
    }

    /// The view with a guard for each intention that decides about requests, and the keys that
    /// providers hold themselves; those of `before` are kept where nothing changed. What does not
    /// compile has none, and is refused.
    #[must_use]
    pub fn compiled(mut self, before: &Self) -> Self {
        let guard = |intention: &Arc<Intention>| {
            let pair = &intention.pair;
            let requests = intention.requests.as_ref()?;
            let old = before.intentions.get(pair).map(|row| &row.value);
            let is_same = old.is_some_and(|old| {
                (&old.requests, old.action) == (&intention.requests, intention.action)
            });
            let kept = before.guards.get(pair).filter(|_| is_same).cloned();
            let made = || Guard::compile(requests, intention.action).ok().map(Arc::new);
            Some((pair.clone(), kept.or_else(made)?))
        };
        if self.intentions.index() != before.intentions.index() || self.guards.is_empty() {
            let guards = self.intentions.iter().filter_map(|row| guard(&row.value)).collect();
            self.guards = Arc::new(guards);
        }
        if !Arc::ptr_eq(&self.providers, &before.providers) {
            self.inline_keys = Arc::new(jwt::inline(&self.providers));
        }
        self
    }

    /// What decides about each request, where `decision` leaves it to the requests.
    pub fn guard(&self, decision: &Decision) -> Option<&Arc<Guard>> {
        match &decision.reason {
            Reason::Requests(pair) => self.guards.get(pair),
            Reason::Intention(_) | Reason::Default | Reason::NotExported => None,
        }
    }

    /// The view without what `interest` no longer covers.
    #[must_use]
    pub fn narrowed(&self, interest: &Interest) -> Self {
        let mut next = self.clone();
        next.services.retain(|name, _| {
            interest.services.contains(name)
                || interest.locals.contains(name)
                || (interest.gateway && self.exports.contains_key(name))
        });
        next.nodes.retain(|name, _| interest.nodes.contains(name));
        next.imports.retain(|key, _| interest.imports.contains(key));
        next
    }

    /// The changes that make this view out of nothing: what is kept on disk.
    pub fn as_delta(&self) -> Delta {
        let trust = self.trust.iter().map(|trust| Change::Trust(Trust::clone(trust)));
        let services =
            self.services.values().map(|service| Change::Service(ServiceView::clone(service)));
        let intentions = self.intentions.iter().map(|row| row.value.clone()).collect();
        let nodes = self
            .nodes
            .iter()
            .map(|(name, node)| Change::Node(name.clone(), node.as_deref().cloned()));
        let imports =
            self.imports.values().map(|service| Change::Import(ServiceView::clone(service)));
        let whole = [
            Change::Intentions(intentions, Providers::clone(&self.providers)),
            Change::Normal(self.normal),
            Change::Peers(BTreeMap::clone(&self.peers)),
            Change::Exports(Exports::clone(&self.exports)),
            Change::Gateways(self.gateways.to_vec()),
        ];
        let changes = trust.chain(services).chain(whole).chain(nodes).chain(imports).collect();
        Delta { index: self.index, is_snapshot: true, changes }
    }

    /// Decides whether the owner of identity `caller` may call `destination` on this host.
    ///
    /// A caller that is no service of this cluster or of a peer, or a view that knows no trust
    /// yet, is refused: a missing identity or policy never allows. A service of a peer may call
    /// only what is exported to that peer, and then what intentions with the peer as source allow.
    pub fn decide(&self, caller: &SpiffeId, destination: &ServiceName) -> Decision {
        let refused = |reason| Decision { action: Action::Deny, reason };
        let (Some(trust), Some(source)) = (&self.trust, caller.service()) else {
            return refused(Reason::Default);
        };
        let default = trust.default_action;
        if caller.trust_domain == trust.trust_domain {
            return self.intentions.decide(source, None, destination, default);
        }
        let Some(peer) = self.peer_of(caller) else { return refused(Reason::Default) };
        if !self.exports.get(destination).is_some_and(|peers| peers.contains(peer)) {
            return refused(Reason::NotExported);
        }
        self.intentions.decide(source, Some(peer), destination, default)
    }

    /// The peer whose identity `id` is.
    pub fn peer_of(&self, id: &SpiffeId) -> Option<&PeerName> {
        let is_of = |peer: &PeerView| {
            peer.trust_domain == id.trust_domain && peer.datacenter == id.datacenter
        };
        self.peers.iter().find_map(|(name, peer)| is_of(peer).then_some(name))
    }
}

/// The whole picture that `interest` asks for, as of `state`.
pub fn snapshot(state: &State, interest: &Interest) -> Delta {
    let mut changes: Vec<Change> = trust(state).map(Change::Trust).into_iter().collect();
    changes
        .extend(wanted(state, interest).iter().map(|name| Change::Service(service(state, name))));
    changes.push(intentions(state, interest));
    changes.push(Change::Normal(state.entries().normal()));
    changes.push(Change::Peers(peers(state)));
    changes.push(Change::Exports(exports(state, interest)));
    changes.push(Change::Gateways(gateways(state)));
    changes.extend(interest.imports.iter().map(|key| Change::Import(import(state, key))));
    changes.extend(interest.nodes.iter().map(|name| Change::Node(name.clone(), node(state, name))));
    Delta { index: state.applied(), is_snapshot: true, changes }
}

/// What `topics` changed of what `interest` asks for, as of `state`.
pub fn delta(state: &State, interest: &Interest, topics: &BTreeSet<Topic>) -> Delta {
    let wanted = wanted(state, interest);
    let mut changes = Vec::new();
    for topic in topics {
        match topic {
            Topic::Node(name) if interest.nodes.contains(name) => {
                changes.push(Change::Node(name.clone(), node(state, name)));
            }
            Topic::Intentions => changes.push(intentions(state, interest)),
            Topic::EveryChain => changes.push(Change::Normal(state.entries().normal())),
            Topic::Authority => changes.extend(trust(state).map(Change::Trust)),
            Topic::Peers => changes.push(Change::Peers(peers(state))),
            Topic::Service(name) if name.as_str() == GATEWAY_SERVICE => {
                changes.push(Change::Gateways(gateways(state)));
            }
            _ => {}
        }
    }
    if topics.contains(&Topic::Exports) || (interest.gateway && topics.contains(&Topic::Names)) {
        changes.push(Change::Exports(exports(state, interest)));
    }
    let all = [Topic::EveryChain, Topic::Exports].iter().any(|topic| topics.contains(topic));
    let is_due = |name: &&ServiceName| {
        all || !topics.is_disjoint(&topics_of(state, name, topics.contains(&Topic::Peers)))
    };
    changes.extend(wanted.iter().filter(is_due).map(|name| Change::Service(service(state, name))));
    let is_due = |key: &&PeerService| {
        let own = [Topic::Import(key.service.clone()), Topic::Chain(key.service.clone())];
        all || own.iter().any(|topic| topics.contains(topic))
    };
    let due = interest.imports.iter().filter(is_due);
    changes.extend(due.map(|key| Change::Import(import(state, key))));
    Delta { index: state.applied(), is_snapshot: false, changes }
}

/// The topics that can change what `interest` asks for, as of `state`. They may change with it, so
/// they are asked for anew after every delta.
pub fn topics(state: &State, interest: &Interest) -> BTreeSet<Topic> {
    let mut topics = BTreeSet::from([
        Topic::Intentions,
        Topic::Authority,
        Topic::EveryChain,
        Topic::Peers,
        Topic::Exports,
    ]);
    topics.extend(GATEWAY_SERVICE.parse().map(Topic::Service));
    if interest.gateway {
        topics.insert(Topic::Names);
    }
    for name in wanted(state, interest) {
        topics.extend(topics_of(state, &name, false));
    }
    for key in &interest.imports {
        topics.insert(Topic::Import(key.service.clone()));
        topics.insert(Topic::Chain(key.service.clone()));
    }
    topics.extend(interest.nodes.iter().cloned().map(Topic::Node));
    topics
}

/// The topics that can change what a host sees of `service`.
fn topics_of(state: &State, service: &ServiceName, with_peers: bool) -> BTreeSet<Topic> {
    let own = [Topic::Service(service.clone()), Topic::Chain(service.clone())];
    let mut topics = BTreeSet::from(own);
    topics.insert(Topic::Import(service.clone()));
    let Ok(graph) = discovery::compile(state.entries(), service) else { return topics };
    topics.extend(graph.consulted.iter().cloned().map(Topic::Chain));
    for (end, resolver) in &graph.resolvers {
        let others = stand_ins(state, end, Some(resolver));
        if with_peers && !others.is_empty() {
            topics.insert(Topic::Peers);
        }
        for end in others.into_iter().chain([end.clone()]) {
            topics.insert(Topic::Chain(end.service.clone()));
            match end.peer {
                None => topics.insert(Topic::Service(end.service)),
                Some(_) => topics.insert(Topic::Import(end.service)),
            };
        }
    }
    topics
}

/// The services that `interest` covers: also those that a gateway passes on.
fn wanted(state: &State, interest: &Interest) -> BTreeSet<ServiceName> {
    let mut wanted: BTreeSet<ServiceName> =
        interest.services.union(&interest.locals).cloned().collect();
    if interest.gateway {
        wanted.extend(state.entries().exports(state.catalog().services()).into_keys());
    }
    wanted
}

/// What stands in for an end: as its resolver says, or else peers' services of the same name. For a
/// part of a service nothing does that nobody named.
fn stand_ins(state: &State, end: &Destination, resolver: Option<&Resolver>) -> Vec<Destination> {
    if let Some(declared) = resolver.and_then(|resolver| resolver.failover.clone()) {
        return declared;
    }
    if end.peer.is_some() || end.subset.is_some() {
        return Vec::new();
    }
    let one = |peer: &Peering| Destination {
        service: end.service.clone(),
        subset: None,
        peer: Some(peer.name.clone()),
    };
    state.peerings().exporters(&end.service).into_iter().map(one).collect()
}

/// One service as a host sees it.
pub fn service(state: &State, name: &ServiceName) -> ServiceView {
    let whole = Destination::whole(name);
    // Entries that do not fit together are refused when they are written.
    let graph = discovery::compile(state.entries(), name).ok();
    match graph {
        Some(graph) if !graph.is_trivial() => {
            let (endpoints, declared) = own(state, &whole);
            let index = own_index(state, name, &endpoints);
            let chain = chain::compile(state.entries(), declared, name);
            let routing = Some(Arc::new(routing(state, &graph)));
            ServiceView { routing, ..ServiceView::alone(chain, endpoints, index) }
        }
        Some(graph) => end(state, &whole, graph.resolvers.get(&whole)),
        None => end(state, &whole, None),
    }
}

/// One service of a peer as a host sees it.
pub fn import(state: &State, key: &PeerService) -> ServiceView {
    let (service, peer) = (key.service.clone(), Some(key.peer.clone()));
    end(state, &Destination { service, subset: None, peer }, None)
}

/// Where what is sent to a service goes.
fn routing(state: &State, graph: &Graph) -> Routing {
    let ends: Vec<(Destination, Arc<ServiceView>)> = graph
        .resolvers
        .iter()
        .map(|(key, resolver)| (key.clone(), Arc::new(end(state, key, Some(resolver)))))
        .collect();
    let position = |key: &Destination| ends.iter().position(|(end, _)| end == key);
    let route = |definition: Option<&ServiceRoute>, next: &Next, mirror| match next {
        Next::Resolver(key) => {
            let split =
                position(key).map(|end| SplitView { weight: WHOLE, end, ..Default::default() });
            let splits = split.into_iter().collect();
            RouteView { definition: definition.cloned(), sticky: None, splits, mirror }
        }
        Next::Splitter(service) => {
            let splitter = graph.splitters.get(service);
            let splits = splitter.into_iter().flat_map(|splitter| &splitter.splits);
            let split = |split: &Split| {
                Some(SplitView {
                    weight: split.definition.weight,
                    end: position(&split.next)?,
                    request_headers: split.definition.request_headers.clone(),
                    response_headers: split.definition.response_headers.clone(),
                })
            };
            RouteView {
                definition: definition.cloned(),
                sticky: splitter.and_then(|splitter| splitter.sticky.clone()),
                splits: splits.filter_map(split).collect(),
                mirror,
            }
        }
    };
    let routes = match graph.routes.as_slice() {
        [] => vec![route(None, &graph.start, None)],
        routes => {
            let mirror = |it: &Route| it.mirror.as_ref().and_then(position);
            let routes = routes.iter();
            routes.map(|it| route(it.definition.as_ref(), &it.next, mirror(it))).collect()
        }
    };
    Routing { routes, ends }
}

/// One end of a service's routes: its instances, and what stands in for them.
fn end(state: &State, end: &Destination, resolver: Option<&Resolver>) -> ServiceView {
    let (endpoints, declared) = instances(state, end);
    let index = match &end.peer {
        None => own_index(state, &end.service, &endpoints),
        Some(peer) => {
            let key = PeerService { peer: peer.clone(), service: end.service.clone() };
            state.peerings().import(&key).map_or(Index(0), |row| row.modified)
        }
    };
    let others: Vec<(TargetView, Option<Protocol>)> = stand_ins(state, end, resolver)
        .into_iter()
        .map(|other| {
            let (endpoints, declared) = instances(state, &other);
            let gateway_mode = state.entries().gateway_mode(&other.service);
            (TargetView { target: other.target(), gateway_mode, endpoints }, declared)
        })
        .collect();
    // Where the own cluster has no instance that says, those that stand in do.
    let spoken = declared.or_else(|| others.iter().find_map(|(_, declared)| *declared));
    let chain = chain::compile(state.entries(), spoken, &end.service);
    // Requests cannot be sent to what takes bytes, nor the other way round.
    let is_fit = |declared: Option<Protocol>| {
        declared.is_none_or(|declared| declared.is_http() == chain.protocol.is_http())
    };
    let failover =
        others.into_iter().filter_map(|(target, declared)| is_fit(declared).then_some(target));
    let failover = failover.collect();
    let gateway_mode = match end.peer {
        None => GatewayMode::Default,
        Some(_) => state.entries().gateway_mode(&end.service),
    };
    let peer = end.peer.clone();
    ServiceView { chain, peer, gateway_mode, endpoints, failover, index, routing: None }
}

fn own_index(state: &State, name: &ServiceName, endpoints: &[Endpoint]) -> Index {
    if endpoints.is_empty() { Index(0) } else { state.catalog().service_index(name) }
}

fn instances(state: &State, end: &Destination) -> (Arc<[Endpoint]>, Option<Protocol>) {
    // The catalog has names that neither DNS nor an identity can carry: what is called so is
    // found by the HTTP API alone.
    if !end.service.is_label() {
        return (Arc::default(), None);
    }
    match &end.peer {
        None => own(state, end),
        Some(peer) => foreign(state, peer, &end.service),
    }
}

/// Which instances are part of a subset.
struct Part {
    only_passing: bool,
    /// None is all; a filter that cannot be read is of no instance.
    filter: Option<Option<Filter>>,
}

impl Part {
    fn of(state: &State, end: &Destination) -> Self {
        let resolver = state.entries().service_resolver(&end.service);
        let subset = end.subset.as_deref().map(|name| resolver?.subsets.get(name));
        match subset {
            None => Self { only_passing: false, filter: None },
            Some(None) => Self { only_passing: false, filter: Some(None) },
            Some(Some(subset)) => {
                let filter = Some(subset.filter.as_str()).filter(|filter| !filter.is_empty());
                let filter = filter.map(|filter| Filter::parse(filter).ok());
                Self { only_passing: subset.only_passing, filter }
            }
        }
    }

    fn has(&self, placed: &Placed<'_>) -> bool {
        if self.only_passing && placed.status() != Status::Passing {
            return false;
        }
        match &self.filter {
            None => true,
            Some(None) => false,
            Some(Some(filter)) => filter.matches(&shown(placed)).unwrap_or_default(),
        }
    }
}

/// An instance as filters of subsets see it: in the shape of `/v1/health/service`.
fn shown(placed: &Placed<'_>) -> serde_json::Value {
    let (node, instance) = (&placed.node.value, &placed.instance.value);
    let pairs = |meta: &Meta| -> BTreeMap<String, String> {
        meta.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    };
    let tags: Vec<&str> = instance.tags.iter().map(|tag| &**tag).collect();
    let check = |check: &&Row<Check>| {
        let check = &check.value;
        serde_json::json!({
            "CheckID": check.id.as_str(),
            "Name": &*check.name,
            "Status": check.status.as_str(),
            "Notes": &*check.notes,
            "Output": &*check.output,
            "Type": &*check.kind,
        })
    };
    serde_json::json!({
        "Node": {
            "ID": &*node.id,
            "Node": node.name.as_str(),
            "Address": node.address.to_string(),
            "Meta": pairs(&node.meta),
        },
        "Service": {
            "ID": instance.id.as_str(),
            "Service": instance.service.as_str(),
            "Tags": tags,
            "Meta": pairs(&instance.meta),
            "Address": instance.address.map(|it| it.to_string()).unwrap_or_default(),
            "Port": instance.port,
            "Weights": { "Passing": instance.weights.passing, "Warning": instance.weights.warning },
        },
        "Checks": placed.checks.iter().map(check).collect::<Vec<_>>(),
    })
}

/// The instances of a service of this cluster, and what they say that they speak.
fn own(state: &State, end: &Destination) -> (Arc<[Endpoint]>, Option<Protocol>) {
    let mut declared = None;
    let part = Part::of(state, end);
    let placed = state.catalog().placed(&end.service).filter(|placed| part.has(placed));
    let endpoints = placed.map(|placed| {
        let (node, instance) = (&placed.node.value, &placed.instance.value);
        declared = declared.or(instance.protocol);
        let address = instance.address.unwrap_or(node.address);
        Endpoint {
            node: node.name.clone(),
            instance: instance.id.clone(),
            address,
            has_own_address: instance.address.is_some(),
            ports: instance.ports.clone(),
            port: instance.port,
            mesh: instance.mesh_port.map(|port| SocketAddr::new(node.address, port)),
            locality: node.locality.clone(),
            tags: instance.tags.clone(),
            weights: instance.weights,
            status: placed.status(),
        }
    });
    (endpoints.collect(), declared)
}

/// The instances of a service of `peer`, and what they speak.
fn foreign(
    state: &State,
    peer: &PeerName,
    service: &ServiceName,
) -> (Arc<[Endpoint]>, Option<Protocol>) {
    let key = PeerService { peer: peer.clone(), service: service.clone() };
    match state.peerings().import(&key) {
        Some(row) => (row.value.endpoints.clone(), Some(row.value.protocol)),
        None => (Arc::new([]), None),
    }
}

fn peers(state: &State) -> BTreeMap<PeerName, PeerView> {
    let is_used = |peering: &Peering| peering.state != PeerState::Terminated;
    let rows = state.peerings().iter().map(|row| &*row.value).filter(|peering| is_used(peering));
    let view = |peering: &Peering| {
        let remote = peering.remote.clone()?;
        let view = PeerView {
            trust_domain: remote.trust_domain,
            datacenter: remote.datacenter,
            roots: remote.roots,
            revoked: remote.revoked,
            calls_us: remote.calls_us,
            is_live: peering.state != PeerState::Failing,
            gateways: remote.gateways,
        };
        Some((peering.name.clone(), view))
    };
    rows.filter_map(view).collect()
}

fn exports(state: &State, interest: &Interest) -> Exports {
    let mut exports = if interest.gateway {
        state.entries().exports(state.catalog().services())
    } else {
        state.entries().exports(interest.locals.iter())
    };
    if !interest.gateway {
        exports.retain(|service, _| interest.locals.contains(service));
    }
    exports
}

/// The mesh gateways of one's own cluster that may take traffic, as its own hosts dial them.
fn gateways(state: &State) -> Vec<PeerGateway> {
    let Ok(name) = GATEWAY_SERVICE.parse() else { return Vec::new() };
    let placed = state.catalog().placed(&name);
    placed
        .filter(|placed| placed.instance.value.gateway.is_some())
        .filter(|placed| placed.status() != Status::Critical)
        .map(|placed| {
            let (node, instance) = (&placed.node.value, &placed.instance.value);
            let address = instance.address.unwrap_or(node.address);
            PeerGateway {
                address: SocketAddr::new(address, instance.port),
                locality: node.locality.clone(),
            }
        })
        .collect()
}

/// The service that mesh gateways are instances of.
pub const GATEWAY_SERVICE: &str = "mesh-gateway";

fn node(state: &State, name: &NodeName) -> Option<NodeView> {
    let row = state.catalog().node(name)?;
    Some(NodeView { address: row.value.address, meta: row.value.meta.clone() })
}

fn intentions(state: &State, interest: &Interest) -> Change {
    let concerns = |intention: &Intention| match &intention.pair.destination {
        crate::intention::Side::Any => true,
        crate::intention::Side::Exact(name) => interest.locals.contains(name),
    };
    let rows = state.intentions().iter().filter(|row| concerns(&row.value));
    let all: Vec<Arc<Intention>> = rows.map(|row| row.value.clone()).collect();
    let named = all.iter().filter_map(|intention| intention.requests.as_ref());
    let provider = |name: &str| {
        let provider = state.entries().jwt_provider(name)?;
        Some((name.into(), Arc::new(provider.clone())))
    };
    let providers = named.flat_map(|requests| requests.providers()).filter_map(provider).collect();
    Change::Intentions(all, providers)
}

fn trust(state: &State) -> Option<Trust> {
    let cluster = state.cluster()?;
    let authority = state.authority();
    let roots = authority
        .map(|authority| authority.roots.iter().map(|root| root.certificate.clone()).collect());
    let active = authority.and_then(|authority| authority.active());
    let certificates = state.catalog().instance_count() + state.catalog().node_count();
    Some(Trust {
        trust_domain: cluster.trust_domain.clone(),
        datacenter: cluster.datacenter.clone(),
        roots: roots.unwrap_or_default(),
        default_action: cluster.default_action,
        issuing: Issuing {
            root: active.map(|root| root.id.clone()).unwrap_or_default(),
            reissue_within: ca::reissue_within(certificates),
        },
        revoked: Arc::new(state.revocations().revoked()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Instance, Locality, Node, Weights};
    use crate::clock::{Stamp, UnixTime};
    use crate::spiffe::Role;
    use crate::state::{Cluster, Command, NodeChanges};

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a good name")
    }

    fn apply(state: &mut State, command: Command) -> BTreeSet<Topic> {
        let index = Index(state.applied().0 + 1);
        let stamp = Stamp { index, time: UnixTime::from_secs(index.0) };
        state.apply(stamp, command).expect("applied").into_iter().collect()
    }

    fn register(service: &str, port: u16) -> Command {
        Command::SyncNode(NodeChanges {
            node: Node {
                name: name(&format!("on-{service}")),
                id: service.into(),
                address: [10, 0, 0, 1].into(),
                locality: Locality::default(),
                meta: Meta::new(),
                tagged: Default::default(),
            },
            put_instances: vec![Instance {
                id: name(service),
                service: name(service),
                address: None,
                port,
                tags: BTreeSet::new(),
                meta: Meta::new(),
                weights: Weights::default(),
                protocol: None,
                mesh_port: Some(21_000),
                enable_tag_override: false,
                gateway: None,
                socket: None,
                ports: Default::default(),
                tagged: Default::default(),
            }],
            put_checks: vec![],
            drop_instances: vec![],
            drop_checks: vec![],
        })
    }

    fn intention(source: &str, destination: &str, action: Action) -> Command {
        Command::PutIntention(Intention {
            id: "".into(),
            pair: Pair { source: name(source), destination: name(destination), peer: None },
            action,
            requests: None,
            description: "".into(),
            meta: Meta::new(),
            created_at: UnixTime::default(),
            updated_at: UnixTime::default(),
        })
    }

    fn founded() -> State {
        let mut state = State::default();
        apply(
            &mut state,
            Command::Found(Cluster {
                id: "1f2e".into(),
                trust_domain: name("1f2e.consul"),
                datacenter: name("dc1"),
                default_action: Action::Deny,
            }),
        );
        state
    }

    fn interest() -> Interest {
        Interest {
            services: BTreeSet::from([name("db"), name("missing")]),
            locals: BTreeSet::from([name("web")]),
            nodes: BTreeSet::from([name("on-db")]),
            ..Interest::default()
        }
    }

    /// Steps through deltas must end at the very view that a fresh snapshot gives.
    #[test]
    fn deltas_and_snapshots_agree() {
        let mut state = founded();
        let interest = interest();
        let mut view = View::default().advanced(snapshot(&state, &interest));
        let commands = [
            register("db", 5432),
            register("other", 1),
            register("web", 80),
            intention("db", "web", Action::Allow),
            intention("*", "other", Action::Allow),
            register("db", 5433),
            Command::SetLiveness { dead: vec![name("on-db")], alive: vec![] },
            Command::DropNode(name("on-db")),
        ];
        for command in commands {
            let woken = apply(&mut state, command);
            view = view.advanced(delta(&state, &interest, &woken));
            let fresh = View::default().advanced(snapshot(&state, &interest));
            assert_eq!(
                format!("{:?}", (&view.services, &view.nodes, &view.trust)),
                format!("{:?}", (&fresh.services, &fresh.nodes, &fresh.trust)),
            );
            let pairs = |view: &View| -> Vec<Pair> {
                view.intentions.iter().map(|row| row.value.pair.clone()).collect()
            };
            assert_eq!(pairs(&view), pairs(&fresh));
        }
        assert!(view.services.contains_key("missing"), "asked for and known not to exist");
        assert!(!view.services.contains_key("other"), "nobody asked for it");
    }

    #[test]
    fn every_topic_that_matters_is_watched() {
        let mut state = founded();
        let interest = interest();
        let watched = topics(&state, &interest);
        for command in [
            register("db", 1),
            register("web", 2),
            intention("db", "web", Action::Deny),
            Command::DropNode(name("on-db")),
        ] {
            let woken = apply(&mut state, command);
            assert!(!woken.is_disjoint(&watched), "{woken:?}");
        }
        let woken = apply(&mut state, register("other", 1));
        assert!(woken.is_disjoint(&watched), "a service nobody uses wakes nobody: {woken:?}");
    }

    #[test]
    fn only_a_service_of_this_trust_domain_is_ever_allowed() {
        let mut state = founded();
        apply(&mut state, intention("db", "web", Action::Allow));
        let view = View::default().advanced(snapshot(&state, &interest()));
        let id = |trust_domain: &str, role| SpiffeId {
            trust_domain: name(trust_domain),
            datacenter: name("dc1"),
            role,
        };
        let cases = [
            (id("1f2e.consul", Role::Service(name("db"))), true, "allowed by intention"),
            (id("1f2e.consul", Role::Service(name("cron"))), false, "the default is deny"),
            (id("other.consul", Role::Service(name("db"))), false, "a foreign trust domain"),
            (id("1f2e.consul", Role::Agent(name("db"))), false, "an agent is no service"),
        ];
        for (caller, expected, why) in cases {
            assert_eq!(view.decide(&caller, &name("web")).is_allowed(), expected, "{why}");
            let nothing = View::default();
            assert!(!nothing.decide(&caller, &name("web")).is_allowed(), "no view, no call");
        }
    }

    #[test]
    fn what_is_kept_on_disk_makes_the_same_view() {
        let mut state = founded();
        apply(&mut state, register("db", 5432));
        let view = View::default().advanced(snapshot(&state, &interest()));
        let again = View::default().advanced(view.as_delta());
        assert_eq!(format!("{view:?}"), format!("{again:?}"));
        let none = view.narrowed(&Interest::default());
        assert!(none.services.is_empty() && none.nodes.is_empty());
    }
}
