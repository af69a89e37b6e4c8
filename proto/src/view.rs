//! What a host asks to see, and the steps that its view advances by.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::ca::Issuing;
use hawser_core::catalog::Endpoint;
use hawser_core::chain::Chain;
use hawser_core::clock::Index;
use hawser_core::entry::{
    self, Body, Entry, EntryKey, GatewayMode, JwtProvider, MESH_NAME, Mesh, MeshHttp, MeshIncoming,
    RequestNormalization, Target,
};
use hawser_core::intention::Intention;
use hawser_core::name::PeerName;
use hawser_core::normal::Rules;
use hawser_core::peering::{Exports, PeerGateway, PeerService};
use hawser_core::policy::Policies;
use hawser_core::view::{
    Change, Delta, Interest, NodeView, PeerView, ServiceView, TargetView, Trust,
};

use crate::field::{Invalid, each, each_parsed, millis, parsed, required, span, texts};
use crate::model::{action, meta_in, meta_out, protocol};
use crate::v1;
use crate::v1::change::Kind;

impl From<&Interest> for v1::Interest {
    fn from(interest: &Interest) -> Self {
        Self {
            services: texts(&interest.services),
            locals: texts(&interest.locals),
            nodes: texts(&interest.nodes),
            imports: interest.imports.iter().map(Into::into).collect(),
            gateway: interest.gateway,
        }
    }
}

impl TryFrom<v1::Interest> for Interest {
    type Error = Invalid;

    fn try_from(interest: v1::Interest) -> Result<Self, Invalid> {
        Ok(Self {
            services: each_parsed("interest.services", &interest.services)?,
            locals: each_parsed("interest.locals", &interest.locals)?,
            nodes: each_parsed("interest.nodes", &interest.nodes)?,
            imports: each::<_, PeerService>(interest.imports)?.into_iter().collect(),
            gateway: interest.gateway,
        })
    }
}

impl From<&Trust> for v1::Trust {
    fn from(trust: &Trust) -> Self {
        Self {
            trust_domain: trust.trust_domain.to_string(),
            datacenter: trust.datacenter.to_string(),
            roots: trust.roots.iter().map(|root| root.to_vec()).collect(),
            default_action: v1::Action::from(trust.default_action).into(),
            issuing_root: trust.issuing.root.to_string(),
            reissue_within_ms: millis(trust.issuing.reissue_within),
            revoked: Some((&*trust.revoked).into()),
        }
    }
}

impl TryFrom<v1::Trust> for Trust {
    type Error = Invalid;

    fn try_from(trust: v1::Trust) -> Result<Self, Invalid> {
        Ok(Self {
            trust_domain: parsed("trust.trust_domain", &trust.trust_domain)?,
            datacenter: parsed("trust.datacenter", &trust.datacenter)?,
            roots: trust.roots.into_iter().map(Arc::from).collect(),
            default_action: action("trust.default_action", trust.default_action)?,
            issuing: Issuing {
                root: trust.issuing_root.into(),
                reissue_within: Duration::from_millis(trust.reissue_within_ms),
            },
            revoked: crate::ca::revoked(trust.revoked)?,
        })
    }
}

impl From<&Chain> for v1::Chain {
    fn from(chain: &Chain) -> Self {
        Self {
            service: chain.service.to_string(),
            protocol: v1::Protocol::from(chain.protocol).into(),
            connect_timeout_ms: millis(chain.connect_timeout),
            request_timeout_ms: millis(chain.request_timeout),
            local_connect_timeout_ms: millis(chain.local_connect_timeout),
            inbound_connections_max: chain.inbound_connections_max.unwrap_or_default(),
            policies_json: policies_out(&chain.policies),
        }
    }
}

impl TryFrom<v1::Chain> for Chain {
    type Error = Invalid;

    fn try_from(chain: v1::Chain) -> Result<Self, Invalid> {
        let most = chain.inbound_connections_max;
        Ok(Self {
            service: parsed("chain.service", &chain.service)?,
            protocol: protocol("chain.protocol", chain.protocol)?,
            connect_timeout: span("chain.connect_timeout_ms", chain.connect_timeout_ms)?,
            request_timeout: span("chain.request_timeout_ms", chain.request_timeout_ms)?,
            local_connect_timeout: span(
                "chain.local_connect_timeout_ms",
                chain.local_connect_timeout_ms,
            )?,
            inbound_connections_max: (most > 0).then_some(most),
            policies: policies_in("chain.policies_json", &chain.policies_json)?,
        })
    }
}

impl From<&ServiceView> for v1::ServiceView {
    fn from(service: &ServiceView) -> Self {
        Self {
            chain: Some((&service.chain).into()),
            endpoints: service.endpoints.iter().map(Into::into).collect(),
            index: service.index.0,
            peer: peer_out(service.peer.as_ref()),
            gateway_mode: mode_out(service.gateway_mode),
            failover: service.failover.iter().map(Into::into).collect(),
            routing: service.routing.as_deref().map(Into::into),
        }
    }
}

impl TryFrom<v1::ServiceView> for ServiceView {
    type Error = Invalid;

    fn try_from(service: v1::ServiceView) -> Result<Self, Invalid> {
        let endpoints: Vec<Endpoint> = each(service.endpoints)?;
        let failover: Vec<TargetView> = each(service.failover)?;
        Ok(Self {
            chain: required("service_view.chain", service.chain)?,
            peer: peer_in("service_view.peer", &service.peer)?,
            gateway_mode: mode_in("service_view.gateway_mode", &service.gateway_mode)?,
            endpoints: endpoints.into(),
            failover: failover.into(),
            index: Index(service.index),
            routing: service.routing.map(|it| it.try_into().map(Arc::new)).transpose()?,
        })
    }
}

impl From<&TargetView> for v1::TargetView {
    fn from(view: &TargetView) -> Self {
        Self {
            service: view.target.service.to_string(),
            peer: peer_out(view.target.peer.as_ref()),
            gateway_mode: mode_out(view.gateway_mode),
            endpoints: view.endpoints.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::TargetView> for TargetView {
    type Error = Invalid;

    fn try_from(view: v1::TargetView) -> Result<Self, Invalid> {
        let endpoints: Vec<Endpoint> = each(view.endpoints)?;
        let target = Target {
            service: parsed("target_view.service", &view.service)?,
            peer: peer_in("target_view.peer", &view.peer)?,
        };
        let gateway_mode = mode_in("target_view.gateway_mode", &view.gateway_mode)?;
        Ok(Self { target, gateway_mode, endpoints: endpoints.into() })
    }
}

impl From<(&PeerName, &PeerView)> for v1::PeerView {
    fn from((name, peer): (&PeerName, &PeerView)) -> Self {
        Self {
            name: name.to_string(),
            trust_domain: peer.trust_domain.to_string(),
            datacenter: peer.datacenter.to_string(),
            roots: peer.roots.iter().map(|root| root.to_vec()).collect(),
            calls_us: peer.calls_us.to_string(),
            is_live: peer.is_live,
            gateways: peer.gateways.iter().map(Into::into).collect(),
            revoked: Some((&*peer.revoked).into()),
        }
    }
}

impl TryFrom<v1::PeerView> for (PeerName, PeerView) {
    type Error = Invalid;

    fn try_from(peer: v1::PeerView) -> Result<Self, Invalid> {
        let view = PeerView {
            trust_domain: parsed("peer_view.trust_domain", &peer.trust_domain)?,
            datacenter: parsed("peer_view.datacenter", &peer.datacenter)?,
            roots: peer.roots.into_iter().map(Arc::from).collect(),
            calls_us: parsed("peer_view.calls_us", &peer.calls_us)?,
            is_live: peer.is_live,
            gateways: each(peer.gateways)?,
            revoked: crate::ca::revoked(peer.revoked)?,
        };
        Ok((parsed("peer_view.name", &peer.name)?, view))
    }
}

impl From<&Exports> for v1::Exports {
    fn from(exports: &Exports) -> Self {
        let all = exports.iter().map(|(service, peers)| v1::Export {
            service: service.to_string(),
            peers: texts(peers),
        });
        Self { all: all.collect() }
    }
}

impl TryFrom<v1::Exports> for Exports {
    type Error = Invalid;

    fn try_from(exports: v1::Exports) -> Result<Self, Invalid> {
        let one = |export: v1::Export| {
            let peers = each_parsed("export.peers", &export.peers)?;
            Ok((parsed("export.service", &export.service)?, peers))
        };
        exports.all.into_iter().map(one).collect()
    }
}

fn policies_out(policies: &Policies) -> String {
    if *policies == Policies::default() {
        return String::new();
    }
    serde_json::to_string(policies).expect("policies are structs of texts, numbers and lists")
}

fn policies_in(field: &'static str, json: &str) -> Result<Arc<Policies>, Invalid> {
    if json.is_empty() {
        return Ok(Arc::default());
    }
    serde_json::from_str(json).map(Arc::new).map_err(|why| Invalid::new(field, why))
}

fn peer_out(peer: Option<&PeerName>) -> String {
    peer.map(ToString::to_string).unwrap_or_default()
}

fn peer_in(field: &'static str, name: &str) -> Result<Option<PeerName>, Invalid> {
    if name.is_empty() { Ok(None) } else { parsed(field, name).map(Some) }
}

fn mode_out(mode: GatewayMode) -> String {
    mode.as_str().to_owned()
}

fn mode_in(field: &'static str, word: &str) -> Result<GatewayMode, Invalid> {
    GatewayMode::ALL
        .into_iter()
        .find(|mode| mode.as_str() == word)
        .ok_or_else(|| Invalid::new(field, "use none, local or remote, or leave it empty"))
}

/// The entry that says `rules`.
fn mesh(rules: Rules) -> Entry {
    let normalization = RequestNormalization {
        is_off: !rules.is_on,
        merge_slashes: Some(rules.merges_slashes),
        escaped_slashes: rules.escaped_slashes,
        underscores: rules.underscores,
    };
    let incoming = MeshIncoming { normalization, forwarded: rules.forwarded };
    let mesh = Mesh { http: MeshHttp { incoming, ..Default::default() }, ..Default::default() };
    Entry::new(MESH_NAME, Body::Mesh(mesh)).expect("its one name, and nothing to check")
}

fn provider_out((name, provider): (&Arc<str>, &Arc<JwtProvider>)) -> v1::Entry {
    let body_json = serde_json::to_string(&**provider).expect("structs of texts and numbers");
    let key = EntryKey { kind: entry::Kind::JwtProvider, name: name.clone() };
    v1::Entry { key: Some((&key).into()), body_json }
}

fn provider_in(entry: v1::Entry) -> Result<(Arc<str>, Arc<JwtProvider>), Invalid> {
    let entry = Entry::try_from(entry)?;
    match entry.body() {
        Body::JwtProvider(body) => Ok((entry.key().name.clone(), Arc::new(body.clone()))),
        _ => Err(Invalid::new("intentions.providers", "it is another kind of entry")),
    }
}

impl From<&Change> for v1::Change {
    fn from(change: &Change) -> Self {
        let kind = match change {
            Change::Trust(trust) => Kind::Trust(trust.into()),
            Change::Service(service) => Kind::Service(service.into()),
            Change::Intentions(all, providers) => Kind::Intentions(v1::Intentions {
                all: all.iter().map(|one| one.as_ref().into()).collect(),
                providers: providers.iter().map(provider_out).collect(),
            }),
            Change::Normal(rules) => Kind::Mesh((&mesh(*rules)).into()),
            Change::Node(name, None) => {
                Kind::Node(v1::NodeView { name: name.to_string(), ..Default::default() })
            }
            Change::Node(name, Some(node)) => Kind::Node(v1::NodeView {
                name: name.to_string(),
                address: node.address.to_string(),
                meta: meta_out(&node.meta),
            }),
            Change::Import(service) => Kind::Import(service.into()),
            Change::Peers(peers) => {
                Kind::Peers(v1::PeerViews { all: peers.iter().map(Into::into).collect() })
            }
            Change::Exports(exports) => Kind::Exports(exports.into()),
            Change::Gateways(gateways) => {
                Kind::Gateways(v1::Gateways { all: gateways.iter().map(Into::into).collect() })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Change> for Change {
    type Error = Invalid;

    fn try_from(change: v1::Change) -> Result<Self, Invalid> {
        let kind = change.kind.ok_or_else(|| {
            Invalid::new("change.kind", "it is missing, or none that this release knows")
        })?;
        Ok(match kind {
            Kind::Trust(trust) => Self::Trust(trust.try_into()?),
            Kind::Service(service) => Self::Service(service.try_into()?),
            Kind::Intentions(intentions) => {
                let all: Vec<Intention> = each(intentions.all)?;
                let providers = intentions.providers.into_iter().map(provider_in);
                let providers = providers.collect::<Result<_, _>>()?;
                Self::Intentions(all.into_iter().map(Arc::new).collect(), providers)
            }
            Kind::Mesh(entry) => match Entry::try_from(entry)?.body() {
                Body::Mesh(mesh) => Self::Normal(mesh.rules()),
                _ => return Err(Invalid::new("change.mesh", "it is another kind of entry")),
            },
            Kind::Node(node) => {
                let name = parsed("node_view.name", &node.name)?;
                let seen = match node.address.as_str() {
                    "" => None,
                    address => Some(NodeView {
                        address: parsed("node_view.address", address)?,
                        meta: meta_in(node.meta),
                    }),
                };
                Self::Node(name, seen)
            }
            Kind::Import(service) => Self::Import(service.try_into()?),
            Kind::Peers(peers) => {
                let all: Vec<(PeerName, PeerView)> = each(peers.all)?;
                Self::Peers(all.into_iter().collect())
            }
            Kind::Exports(exports) => Self::Exports(exports.try_into()?),
            Kind::Gateways(gateways) => Self::Gateways(each::<_, PeerGateway>(gateways.all)?),
        })
    }
}

impl From<&Delta> for v1::Delta {
    fn from(delta: &Delta) -> Self {
        Self {
            index: delta.index.0,
            is_snapshot: delta.is_snapshot,
            changes: delta.changes.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Delta> for Delta {
    type Error = Invalid;

    fn try_from(delta: v1::Delta) -> Result<Self, Invalid> {
        Ok(Self {
            index: Index(delta.index),
            is_snapshot: delta.is_snapshot,
            changes: each(delta.changes)?,
        })
    }
}
