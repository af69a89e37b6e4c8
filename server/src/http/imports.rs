//! What peers export, in the shapes of `/v1/catalog` and `/v1/health`: for readers that name a
//! `peer`. And the lists of what is exchanged with peers.
//!
//! A peer tells of an instance what is needed to call it: where it is, its tags and weights, and
//! the worst of its checks. So its node has an address and a place but no id and no meta, and one
//! check stands for all. A peer that is not known exports nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hawser_api::error::ApiError;
use hawser_api::json;
use hawser_core::catalog::{Endpoint, Meta, Row};
use hawser_core::health::Status;
use hawser_core::name::{PeerName, ServiceName};
use hawser_core::peering::{Import, PeerService};
use hawser_core::state::{State, Topic};

use serde_json::json;

use super::ask::{Ask, Found};
use super::encode;

/// Which of an instance's two sockets is listed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Socket {
    /// The application's.
    Application,
    /// The proxy's: only what is in the mesh.
    Mesh,
}

/// The peer that a request names.
pub(crate) fn peer(ask: &Ask) -> Option<&str> {
    ask.options.peer.as_deref()
}

/// `/v1/health/service/:` and `/v1/health/connect/:` of a peer.
pub(crate) fn health<'a>(ask: &'a Ask, state: &'a State, socket: Socket) -> Found<'a> {
    listed(ask, state, move |instance| {
        let is_wanted = !ask.options.passing || instance.endpoint.status == Status::Passing;
        let service = instance.service(socket).filter(|_| is_wanted)?;
        let checks = vec![instance.check()];
        Some(json::ServiceEntry { node: instance.node(), service, checks })
    })
}

/// `/v1/health/checks/:` of a peer.
pub(crate) fn checks<'a>(ask: &'a Ask, state: &'a State) -> Found<'a> {
    listed(ask, state, |instance| Some(instance.check()))
}

/// `/v1/catalog/service/:` and `/v1/catalog/connect/:` of a peer.
pub(crate) fn instances<'a>(ask: &'a Ask, state: &'a State, socket: Socket) -> Found<'a> {
    listed(ask, state, move |instance| instance.flat(socket))
}

/// `/v1/catalog/services` of a peer.
pub(crate) fn services<'a>(ask: &'a Ask, state: &'a State) -> Found<'a> {
    let index = state.peerings().imports_index();
    Found::lazily(index, [Topic::Imports], move || {
        let mut tags_by_name: BTreeMap<&str, BTreeSet<Arc<str>>> = BTreeMap::new();
        for (peer, row) in exported(ask, state) {
            let instances = Instance::all(state, peer, row);
            for instance in instances {
                if !instance.is_wanted(ask)? {
                    continue;
                }
                let tags = tags_by_name.entry(row.value.service.as_str()).or_default();
                tags.extend(instance.endpoint.tags.iter().cloned());
            }
        }
        ask.write(&tags_by_name)
    })
}

/// `/v1/catalog/nodes` of a peer: those that carry what it exports.
pub(crate) fn nodes<'a>(ask: &'a Ask, state: &'a State) -> Found<'a> {
    let index = state.peerings().imports_index();
    Found::list(ask, index, [Topic::Imports], move || {
        let mut by_name = BTreeMap::new();
        for (peer, row) in exported(ask, state) {
            for instance in Instance::all(state, peer, row).filter(|one| one.is_seen(ask)) {
                by_name.entry(&instance.endpoint.node).or_insert_with(|| instance.node());
            }
        }
        let nodes = by_name.into_values().filter(|_| ask.wants_node(&Meta::new()));
        nodes.collect::<Vec<_>>()
    })
}

/// `/v1/imported-services`: what every peer exports to this cluster.
pub(crate) fn imported<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let peerings = state.peerings();
    Ok(Found::list(ask, peerings.imports_index(), [Topic::Imports], move || {
        let of = |(peer, row): (&PeerName, &Row<Import>)| json!({ "Service": row.value.service, "SourcePeer": peer });
        let seen =
            |(_, row): &(&PeerName, &Row<Import>)| ask.sight.service(row.value.service.as_str());
        peerings.imports().filter(seen).map(of).collect()
    }))
}

/// `/v1/exported-services`: what this cluster exports, and to whom.
pub(crate) fn exported_services<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let (entries, catalog) = (state.entries(), state.catalog());
    // `*` stands for the services that there are.
    let index = entries.index().max(catalog.names_index());
    Ok(Found::list(ask, index, [Topic::Exports, Topic::Names], move || {
        let exports = entries.exports(catalog.services()).into_iter();
        let exports = exports.filter(|(service, _)| ask.sight.service(service.as_str()));
        let one = |(service, peers)| json!({ "Service": service, "Consumers": { "Peers": peers } });
        exports.map(one).collect::<Vec<_>>()
    }))
}

/// Every service of the peer that `ask` names.
fn exported<'a>(
    ask: &'a Ask,
    state: &'a State,
) -> impl Iterator<Item = (&'a PeerName, &'a Row<Import>)> {
    let named = peer(ask).unwrap_or_default();
    let of_peer = state.peerings().imports().filter(move |(peer, _)| peer.as_str() == named);
    of_peer.filter(|(_, row)| ask.sight.service(row.value.service.as_str()))
}

/// A list of what `shape` makes of the instances of the service that `ask` names.
fn listed<'a, T: serde::Serialize + 'a>(
    ask: &'a Ask,
    state: &'a State,
    shape: impl Fn(&Instance<'_>) -> Option<T> + 'a,
) -> Found<'a> {
    let imports_index = state.peerings().imports_index();
    let peer: Option<PeerName> = peer(ask).and_then(|name| name.parse().ok());
    let service: Option<ServiceName> = ask.service();
    let Some((peer, service)) = peer.zip(service) else {
        return Found::list(ask, imports_index, [Topic::Imports], Vec::<T>::new);
    };
    let topics = [Topic::Import(service.clone())];
    let row = state.peerings().import(&PeerService { peer: peer.clone(), service });
    let index = row.map_or(imports_index, |row| row.modified);
    Found::list(ask, index, topics, move || {
        let instances = row.into_iter().flat_map(|row| {
            let wanted = Instance::all(state, &peer, row).filter(|instance| {
                instance.is_seen(ask)
                    && ask.wants_node(&Meta::new())
                    && ask.wants_tags(&instance.endpoint.tags)
            });
            wanted.filter_map(|instance| shape(&instance)).collect::<Vec<_>>()
        });
        instances.collect()
    })
}

/// The first `limit` of those `endpoints` of `service` of `peer`, as health lists them.
pub(crate) fn entries(
    state: &State,
    peer: &PeerName,
    service: &str,
    endpoints: &[&Endpoint],
    (socket, limit): (Socket, usize),
) -> Vec<json::ServiceEntry> {
    let key = service.parse().map(|service| PeerService { peer: peer.clone(), service });
    let Some(row) = key.ok().and_then(|key| state.peerings().import(&key)) else {
        return Vec::new();
    };
    let datacenter = Instance::datacenter_of(state, peer);
    let wanted = endpoints.iter().map(|endpoint| Instance { peer, datacenter, row, endpoint });
    let entry = |instance: Instance<'_>| {
        let service = instance.service(socket)?;
        Some(json::ServiceEntry { node: instance.node(), service, checks: vec![instance.check()] })
    };
    wanted.filter_map(entry).take(limit).collect()
}

/// One instance of a service of a peer.
struct Instance<'s> {
    peer: &'s PeerName,
    datacenter: &'s str,
    row: &'s Row<Import>,
    endpoint: &'s Endpoint,
}

impl<'s> Instance<'s> {
    fn datacenter_of(state: &'s State, peer: &PeerName) -> &'s str {
        let peering = state.peerings().get(peer);
        let remote = peering.and_then(|peering| peering.value.remote.as_ref());
        remote.map_or("", |remote| remote.datacenter.as_str())
    }

    fn all(
        state: &'s State,
        peer: &'s PeerName,
        row: &'s Row<Import>,
    ) -> impl Iterator<Item = Self> {
        let datacenter = Self::datacenter_of(state, peer);
        row.value.endpoints.iter().map(move |endpoint| Self { peer, datacenter, row, endpoint })
    }

    /// Whether the client may see its node; its service was asked about before.
    fn is_seen(&self, ask: &Ask) -> bool {
        ask.sight.node(self.endpoint.node.as_str())
    }

    /// Whether the options about nodes and the filter, which speaks of an instance flat with its
    /// node, want it.
    fn is_wanted(&self, ask: &Ask) -> Result<bool, ApiError> {
        if !ask.wants_node(&Meta::new()) {
            return Ok(false);
        }
        if ask.options.filter.is_none() {
            return Ok(true);
        }
        // Who filters is told of nodes, so it must see them.
        match self.flat(Socket::Application).filter(|_| self.is_seen(ask)) {
            Some(flat) => ask.wants(&flat),
            None => Ok(false),
        }
    }

    /// Where its host is, as far as that is known: an own address is not its node's.
    fn host(&self) -> IpAddr {
        self.endpoint.mesh.map_or(self.endpoint.address, |mesh| mesh.ip())
    }

    fn tags(&self) -> Vec<String> {
        self.endpoint.tags.iter().map(ToString::to_string).collect()
    }

    fn node(&self) -> json::Node {
        json::Node {
            node: self.endpoint.node.to_string(),
            address: self.host().to_string(),
            datacenter: self.datacenter.to_owned(),
            tagged_addresses: encode::tagged_addresses(self.host()),
            locality: encode::locality(&self.endpoint.locality),
            peer_name: self.peer.to_string(),
            create_index: self.row.created.0,
            modify_index: self.row.modified.0,
            ..json::Node::default()
        }
    }

    /// None where the socket asked for is the proxy's and there is none.
    fn service(&self, socket: Socket) -> Option<json::NodeService> {
        let Endpoint { instance, address, has_own_address, port, mesh, weights, .. } =
            self.endpoint;
        let name = &self.row.value.service;
        let application = json::NodeService {
            id: instance.to_string(),
            service: name.to_string(),
            tags: self.tags(),
            address: has_own_address.then(|| address.to_string()).unwrap_or_default(),
            port: *port,
            weights: json::Weights { passing: weights.passing, warning: weights.warning },
            peer_name: self.peer.to_string(),
            create_index: self.row.created.0,
            modify_index: self.row.modified.0,
            ..json::NodeService::default()
        };
        match socket {
            Socket::Application => Some(application),
            Socket::Mesh => {
                let mesh_port = mesh.as_ref()?.port();
                Some(encode::sidecar_of(application, mesh_port))
            }
        }
    }

    fn flat(&self, socket: Socket) -> Option<json::ServiceNode> {
        Some(encode::flat(self.node(), self.service(socket)?))
    }

    fn check(&self) -> json::HealthCheck {
        let Endpoint { node, instance, status, .. } = self.endpoint;
        json::HealthCheck {
            node: node.to_string(),
            check_id: format!("{instance}:{SUMMARY}"),
            name: SUMMARY.to_owned(),
            status: status.to_string(),
            service_id: instance.to_string(),
            service_name: self.row.value.service.to_string(),
            service_tags: self.tags(),
            peer_name: self.peer.to_string(),
            create_index: self.row.created.0,
            modify_index: self.row.modified.0,
            ..json::HealthCheck::default()
        }
    }
}

/// Consul's name for the one check that stands for all of a peer's.
const SUMMARY: &str = "overall-check";
