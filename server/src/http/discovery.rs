//! `/v1/discovery-chain`: what a service's name leads to, as Consul draws it.

use std::time::Duration;

use hawser_api::error::ApiError;
use hawser_api::fields::{Fields, InvalidField};
use hawser_core::acl::{Access, Resource};
use hawser_core::catalog::Protocol;
use hawser_core::discovery::{self, Destination, Graph, Next, Resolver};
use hawser_core::duration;
use hawser_core::entry::GatewayMode;
use hawser_core::name::ServiceName;
use hawser_core::sni::Sni;
use hawser_core::state::{State, Topic};
use serde_json::{Map, Value, json};

use super::ask::{Ask, Found};

/// What a caller wants otherwise than the entries say.
#[derive(Debug, Default)]
struct Overrides {
    protocol: Option<Protocol>,
    connect_timeout: Option<Duration>,
    gateway_mode: Option<GatewayMode>,
}

/// The chain of one service: compiled anew whenever an entry changes.
pub(crate) fn chain<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let name: ServiceName = ask.name().parse().map_err(|why| {
        ApiError::bad_request(format_args!("Bad request: service name {:?}: {why}", ask.name()))
    })?;
    ask.sight.demand(Resource::Service, Access::Read, name.as_str())?;
    if let Some(other) = ask.query.text("compile-dc")
        && other != ask.datacenter.as_str()
    {
        let why = "compile-dc: other clusters are peers, and compile their own chains";
        return Err(ApiError::bad_request(why));
    }
    let overrides = overrides(ask)?;
    let index = state.entries().index();
    Ok(Found::lazily(index, [Topic::Entries, Topic::Peers], move || {
        let graph = discovery::compile_as(state.entries(), &name, overrides.protocol);
        let graph = graph.map_err(ApiError::bad_request)?;
        let drawn = Drawing { ask, state, overrides: &overrides, graph: &graph }.chain();
        ask.write(&json!({ "Chain": drawn }))
    }))
}

fn overrides(ask: &Ask) -> Result<Overrides, ApiError> {
    if ask.body.is_empty() {
        return Ok(Overrides::default());
    }
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let protocol = match fields.text(&["OverrideProtocol"])? {
        None | Some((_, "")) => None,
        Some((_, word)) => Some(Protocol::from_consul(word)),
    };
    let connect_timeout = fields.duration(&["OverrideConnectTimeout"])?;
    let connect_timeout = connect_timeout.filter(|span| !span.is_zero());
    let gateway_mode = match fields.object(&["OverrideMeshGateway"])? {
        None => None,
        Some(mut inner) => {
            let word = inner.text(&["Mode"])?.map_or("", |(_, word)| word);
            let mode = GatewayMode::ALL.into_iter().find(|mode| mode.as_str() == word);
            let unknown = || InvalidField::new("OverrideMeshGateway.Mode", GATEWAY_MODES);
            let mode = mode.ok_or_else(unknown)?;
            inner.finish()?;
            Some(mode).filter(|mode| *mode != GatewayMode::Default)
        }
    };
    fields.finish()?;
    Ok(Overrides { protocol, connect_timeout, gateway_mode })
}

impl Overrides {
    fn is_none(&self) -> bool {
        self.protocol.is_none() && self.connect_timeout.is_none() && self.gateway_mode.is_none()
    }

    /// Eight digits that tell one set of overrides from another.
    fn hash(&self) -> String {
        let text = format!("{self:?}");
        let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, octet| {
            (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193)
        });
        format!("{hash:08x}")
    }
}

/// One chain on its way into JSON.
struct Drawing<'a> {
    ask: &'a Ask,
    state: &'a State,
    overrides: &'a Overrides,
    graph: &'a Graph,
}

impl Drawing<'_> {
    fn chain(&self) -> Value {
        let graph = self.graph;
        let router = format!("router:{}", self.named(&graph.service));
        let start = match graph.routes.is_empty() {
            true => self.node(&graph.start),
            false => router.clone(),
        };
        let mut nodes = Map::new();
        if !graph.routes.is_empty() {
            nodes.insert(router, self.router());
        }
        for service in graph.splitters.keys().filter(|it| self.is_reached(it)) {
            let key = self.node(&Next::Splitter(service.clone()));
            nodes.insert(key, self.splitter(service));
        }
        for (end, resolver) in &graph.resolvers {
            nodes.insert(format!("resolver:{}", self.target_id(end)), self.resolver(end, resolver));
        }
        let others = graph.resolvers.values().flat_map(|it| it.failover.iter().flatten());
        let targets: Map<String, Value> = graph
            .resolvers
            .keys()
            .chain(others)
            .map(|end| (self.target_id(end), self.target(end)))
            .collect();
        let mut chain = json!({
            "ServiceName": graph.service.as_str(),
            "Namespace": "default",
            "Partition": "default",
            "Datacenter": self.ask.datacenter.as_str(),
            "Protocol": graph.protocol.as_str(),
            "StartNode": start,
            "Nodes": nodes,
            "Targets": targets,
        });
        if !self.overrides.is_none() {
            chain["CustomizationHash"] = json!(self.overrides.hash());
        } else if graph.is_default() {
            chain["Default"] = json!(true);
        }
        chain
    }

    fn is_reached(&self, service: &ServiceName) -> bool {
        let is_it = |next: &Next| matches!(next, Next::Splitter(it) if it == service);
        match self.graph.routes.as_slice() {
            [] => is_it(&self.graph.start),
            routes => routes.iter().any(|route| is_it(&route.next)),
        }
    }

    fn named(&self, service: &ServiceName) -> String {
        format!("{service}.default.default")
    }

    fn node(&self, next: &Next) -> String {
        match next {
            Next::Splitter(service) => format!("splitter:{}", self.named(service)),
            Next::Resolver(end) => format!("resolver:{}", self.target_id(end)),
        }
    }

    fn target_id(&self, end: &Destination) -> String {
        let subset = end.subset.iter().map(|subset| format!("{subset}.")).collect::<String>();
        let place = match &end.peer {
            None => self.ask.datacenter.to_string(),
            Some(peer) => format!("external.{peer}"),
        };
        format!("{subset}{}.default.default.{place}", end.service)
    }

    fn router(&self) -> Value {
        let service = &self.graph.service;
        let rest = || {
            json!({
                "Match": { "HTTP": { "PathPrefix": "/" } },
                "Destination": {
                    "Service": service.as_str(), "Namespace": "default", "Partition": "default",
                },
            })
        };
        let routes = self.graph.routes.iter().map(|route| {
            let definition = route.definition.as_ref().map_or_else(rest, |it| json!(it));
            json!({ "Definition": definition, "NextNode": self.node(&route.next) })
        });
        let routes: Vec<Value> = routes.collect();
        json!({ "Type": "router", "Name": self.named(service), "Routes": routes })
    }

    fn splitter(&self, service: &ServiceName) -> Value {
        let splits = self.graph.splitters.get(service).into_iter().flat_map(|it| &it.splits);
        let splits = splits.map(|split| {
            json!({
                "Definition": split.definition,
                "Weight": split.definition.weight,
                "NextNode": self.node(&Next::Resolver(split.next.clone())),
            })
        });
        let splits: Vec<Value> = splits.collect();
        json!({ "Type": "splitter", "Name": self.named(service), "Splits": splits })
    }

    fn resolver(&self, end: &Destination, resolver: &Resolver) -> Value {
        let mut inner = json!({
            "ConnectTimeout": duration::format(self.connect_timeout(resolver)),
            "RequestTimeout": duration::format(resolver.request_timeout),
            "Target": self.target_id(end),
        });
        if resolver.is_default {
            inner["Default"] = json!(true);
        }
        let others = resolver.failover.iter().flatten();
        let others: Vec<String> = others.map(|other| self.target_id(other)).collect();
        if !others.is_empty() {
            inner["Failover"] = json!({ "Targets": others });
        }
        json!({ "Type": "resolver", "Name": self.target_id(end), "Resolver": inner })
    }

    fn connect_timeout(&self, resolver: &Resolver) -> Duration {
        self.overrides.connect_timeout.unwrap_or(resolver.connect_timeout)
    }

    fn target(&self, end: &Destination) -> Value {
        let resolver = self.graph.resolvers.get(end);
        let chain = hawser_core::chain::compile(self.state.entries(), None, &end.service);
        let connect = resolver.map_or(chain.connect_timeout, |it| it.connect_timeout);
        let connect = self.overrides.connect_timeout.unwrap_or(connect);
        let mut target = json!({
            "ID": self.target_id(end),
            "Service": end.service.as_str(),
            "Namespace": "default",
            "Partition": "default",
            "Datacenter": self.ask.datacenter.as_str(),
            "MeshGateway": {},
            "Subset": {},
            "ConnectTimeout": duration::format(connect),
        });
        if let Some(subset) = &end.subset {
            target["ServiceSubset"] = json!(&**subset);
            target["Subset"] = json!(self.state.entries().subset(&end.service, subset));
        }
        if let Some(peer) = &end.peer {
            target["Peer"] = json!(peer.as_str());
            target["Datacenter"] = json!("");
            let mode = self.state.entries().gateway_mode(&end.service);
            let mode = self.overrides.gateway_mode.unwrap_or(mode);
            if mode != GatewayMode::Default {
                target["MeshGateway"] = json!({ "Mode": mode.as_str() });
            }
        }
        if let Some(sni) = self.sni(end) {
            target["SNI"] = json!(sni);
            target["Name"] = json!(sni);
        }
        target
    }

    /// The name that connections ask for; none of a peer that has not been heard of, and none of a
    /// service whose name can be in no mesh.
    fn sni(&self, end: &Destination) -> Option<String> {
        let service = Some(end.service.clone()).filter(ServiceName::is_label)?;
        let sni = match &end.peer {
            None => Sni::Internal {
                service,
                datacenter: self.ask.datacenter.clone(),
                trust_domain: self.state.cluster()?.trust_domain.clone(),
            },
            Some(peer) => {
                let peerings = self.state.peerings();
                let row = peerings.iter().find(|row| row.value.name == *peer)?;
                let remote = row.value.remote.as_ref()?;
                Sni::External {
                    instance: None,
                    service,
                    peer: remote.calls_us.clone(),
                    trust_domain: remote.trust_domain.clone(),
                }
            }
        };
        Some(sni.to_string())
    }
}

const GATEWAY_MODES: &str = "use none, local or remote";
