//! Peerings, and what peers say of themselves and export.

use std::sync::Arc;

use hawser_core::catalog::{Endpoint, Locality, Row, Weights};
use hawser_core::clock::Index;
use hawser_core::name::PeerName;
use hawser_core::peering::{Import, PeerGateway, PeerService, PeerUpdate, Peering, Remote};

use crate::field::{
    Invalid, each, each_parsed, hash, optional_socket, parsed, required, short, texts,
};
use crate::model::{meta_in, meta_out, protocol, status};
use crate::v1;

impl From<&Endpoint> for v1::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            node: endpoint.node.to_string(),
            instance: endpoint.instance.to_string(),
            address: endpoint.address.to_string(),
            has_own_address: endpoint.has_own_address,
            port: endpoint.port.into(),
            mesh: endpoint.mesh.map(|address| address.to_string()).unwrap_or_default(),
            locality: Some((&endpoint.locality).into()),
            tags: texts(&endpoint.tags),
            weight_passing: endpoint.weights.passing.into(),
            weight_warning: endpoint.weights.warning.into(),
            status: v1::Status::from(endpoint.status).into(),
            ports: endpoint.ports.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Endpoint> for Endpoint {
    type Error = Invalid;

    fn try_from(endpoint: v1::Endpoint) -> Result<Self, Invalid> {
        Ok(Self {
            node: parsed("endpoint.node", &endpoint.node)?,
            instance: parsed("endpoint.instance", &endpoint.instance)?,
            address: parsed("endpoint.address", &endpoint.address)?,
            has_own_address: endpoint.has_own_address,
            port: short("endpoint.port", endpoint.port)?,
            mesh: optional_socket("endpoint.mesh", &endpoint.mesh)?,
            locality: endpoint.locality.map(Locality::from).unwrap_or_default(),
            tags: endpoint.tags.into_iter().map(Into::into).collect(),
            weights: Weights {
                passing: short("endpoint.weight_passing", endpoint.weight_passing)?,
                warning: short("endpoint.weight_warning", endpoint.weight_warning)?,
            },
            status: status("endpoint.status", endpoint.status)?,
            ports: each(endpoint.ports)?.into(),
        })
    }
}

impl From<&PeerGateway> for v1::PeerGateway {
    fn from(gateway: &PeerGateway) -> Self {
        Self { address: gateway.address.to_string(), locality: Some((&gateway.locality).into()) }
    }
}

impl TryFrom<v1::PeerGateway> for PeerGateway {
    type Error = Invalid;

    fn try_from(gateway: v1::PeerGateway) -> Result<Self, Invalid> {
        Ok(Self {
            address: parsed("peer_gateway.address", &gateway.address)?,
            locality: gateway.locality.map(Locality::from).unwrap_or_default(),
        })
    }
}

impl From<&Remote> for v1::Remote {
    fn from(remote: &Remote) -> Self {
        Self {
            peering: remote.peering.to_string(),
            trust_domain: remote.trust_domain.to_string(),
            datacenter: remote.datacenter.to_string(),
            calls_us: remote.calls_us.to_string(),
            server_roots: remote.server_roots.iter().map(|root| root.to_vec()).collect(),
            roots: remote.roots.iter().map(|root| root.to_vec()).collect(),
            servers: texts(&remote.servers),
            gateways: remote.gateways.iter().map(Into::into).collect(),
            rtt_ms: remote.rtt_ms.unwrap_or_default(),
            revoked: Some((&*remote.revoked).into()),
        }
    }
}

impl TryFrom<v1::Remote> for Remote {
    type Error = Invalid;

    /// # Errors
    /// Also for a gateway whose host is a name: resolve it first.
    fn try_from(remote: v1::Remote) -> Result<Self, Invalid> {
        let roots = |roots: Vec<Vec<u8>>| roots.into_iter().map(Arc::from).collect();
        Ok(Self {
            peering: remote.peering.into(),
            trust_domain: parsed("remote.trust_domain", &remote.trust_domain)?,
            datacenter: parsed("remote.datacenter", &remote.datacenter)?,
            calls_us: parsed("remote.calls_us", &remote.calls_us)?,
            server_roots: roots(remote.server_roots),
            roots: roots(remote.roots),
            servers: remote.servers.into_iter().map(Into::into).collect(),
            gateways: each(remote.gateways)?,
            rtt_ms: (remote.rtt_ms > 0).then_some(remote.rtt_ms),
            revoked: crate::ca::revoked(remote.revoked)?,
        })
    }
}

impl From<&PeerService> for v1::PeerService {
    fn from(key: &PeerService) -> Self {
        Self { peer: key.peer.to_string(), service: key.service.to_string() }
    }
}

impl TryFrom<v1::PeerService> for PeerService {
    type Error = Invalid;

    fn try_from(key: v1::PeerService) -> Result<Self, Invalid> {
        Ok(Self {
            peer: parsed("peer_service.peer", &key.peer)?,
            service: parsed("peer_service.service", &key.service)?,
        })
    }
}

impl From<&Import> for v1::Import {
    fn from(import: &Import) -> Self {
        Self {
            service: import.service.to_string(),
            protocol: v1::Protocol::from(import.protocol).into(),
            endpoints: import.endpoints.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Import> for Import {
    type Error = Invalid;

    fn try_from(import: v1::Import) -> Result<Self, Invalid> {
        let endpoints: Vec<Endpoint> = each(import.endpoints)?;
        Ok(Self {
            service: parsed("import.service", &import.service)?,
            protocol: protocol("import.protocol", import.protocol)?,
            endpoints: endpoints.into(),
        })
    }
}

impl From<&Peering> for v1::PeeringRow {
    /// The row without its indexes.
    fn from(peering: &Peering) -> Self {
        Self {
            id: peering.id.to_string(),
            name: peering.name.to_string(),
            meta: meta_out(&peering.meta),
            state: peering.state.to_string(),
            invitation: peering.invitation.map(Vec::from).unwrap_or_default(),
            remote: peering.remote.as_ref().map(Into::into),
            created: 0,
            modified: 0,
        }
    }
}

impl From<&Row<Peering>> for v1::PeeringRow {
    fn from(row: &Row<Peering>) -> Self {
        let (created, modified) = (row.created.0, row.modified.0);
        Self { created, modified, ..Self::from(&*row.value) }
    }
}

impl TryFrom<v1::PeeringRow> for Peering {
    type Error = Invalid;

    fn try_from(row: v1::PeeringRow) -> Result<Self, Invalid> {
        let invitation = match row.invitation.as_slice() {
            [] => None,
            octets => Some(hash("peering_row.invitation", octets)?),
        };
        Ok(Self {
            id: row.id.into(),
            name: parsed("peering_row.name", &row.name)?,
            meta: meta_in(row.meta),
            state: parsed("peering_row.state", &row.state)?,
            invitation,
            remote: row.remote.map(Remote::try_from).transpose()?,
        })
    }
}

impl TryFrom<v1::PeeringRow> for Row<Peering> {
    type Error = Invalid;

    fn try_from(row: v1::PeeringRow) -> Result<Self, Invalid> {
        let (created, modified) = (Index(row.created), Index(row.modified));
        Ok(Self { value: Arc::new(row.try_into()?), created, modified })
    }
}

impl From<(&PeerName, &Row<Import>)> for v1::ImportRow {
    fn from((peer, row): (&PeerName, &Row<Import>)) -> Self {
        Self {
            peer: peer.to_string(),
            import: Some((&*row.value).into()),
            created: row.created.0,
            modified: row.modified.0,
        }
    }
}

impl TryFrom<v1::ImportRow> for (PeerName, Row<Import>) {
    type Error = Invalid;

    fn try_from(row: v1::ImportRow) -> Result<Self, Invalid> {
        let import: Import = required("import_row.import", row.import)?;
        let (created, modified) = (Index(row.created), Index(row.modified));
        let peer = parsed("import_row.peer", &row.peer)?;
        Ok((peer, Row { value: Arc::new(import), created, modified }))
    }
}

impl From<&PeerUpdate> for v1::PeerUpdate {
    fn from(update: &PeerUpdate) -> Self {
        Self {
            name: update.name.to_string(),
            id: update.id.to_string(),
            remote: update.remote.as_ref().map(Into::into),
            is_snapshot: update.is_snapshot,
            put: update.put.iter().map(Into::into).collect(),
            drop: texts(&update.drop),
        }
    }
}

impl TryFrom<v1::PeerUpdate> for PeerUpdate {
    type Error = Invalid;

    fn try_from(update: v1::PeerUpdate) -> Result<Self, Invalid> {
        Ok(Self {
            name: parsed("peer_update.name", &update.name)?,
            id: update.id.into(),
            remote: update.remote.map(Remote::try_from).transpose()?,
            is_snapshot: update.is_snapshot,
            put: each(update.put)?,
            drop: each_parsed("peer_update.drop", &update.drop)?,
        })
    }
}
