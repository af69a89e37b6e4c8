//! What a host asks to see, and the steps that its view advances by.

use std::sync::Arc;

use hawser_core::catalog::{Locality, Weights};
use hawser_core::chain::Chain;
use hawser_core::clock::Index;
use hawser_core::intention::Intention;
use hawser_core::view::{Change, Delta, Endpoint, Interest, NodeView, ServiceView, Trust};

use crate::field::{
    Invalid, each, each_parsed, millis, optional_socket, parsed, required, short, span, texts,
};
use crate::model::{action, meta_in, meta_out, protocol, status};
use crate::v1;
use crate::v1::change::Kind;

impl From<&Interest> for v1::Interest {
    fn from(interest: &Interest) -> Self {
        Self {
            services: texts(&interest.services),
            locals: texts(&interest.locals),
            nodes: texts(&interest.nodes),
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
        })
    }
}

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
        })
    }
}

impl From<&ServiceView> for v1::ServiceView {
    fn from(service: &ServiceView) -> Self {
        Self {
            chain: Some((&service.chain).into()),
            endpoints: service.endpoints.iter().map(Into::into).collect(),
            index: service.index.0,
        }
    }
}

impl TryFrom<v1::ServiceView> for ServiceView {
    type Error = Invalid;

    fn try_from(service: v1::ServiceView) -> Result<Self, Invalid> {
        let endpoints: Vec<Endpoint> = each(service.endpoints)?;
        Ok(Self {
            chain: required("service_view.chain", service.chain)?,
            endpoints: endpoints.into(),
            index: Index(service.index),
        })
    }
}

impl From<&Change> for v1::Change {
    fn from(change: &Change) -> Self {
        let kind = match change {
            Change::Trust(trust) => Kind::Trust(trust.into()),
            Change::Service(service) => Kind::Service(service.into()),
            Change::Intentions(all) => {
                let all = all.iter().map(|one| one.as_ref().into()).collect();
                Kind::Intentions(v1::Intentions { all })
            }
            Change::Node(name, None) => {
                Kind::Node(v1::NodeView { name: name.to_string(), ..Default::default() })
            }
            Change::Node(name, Some(node)) => Kind::Node(v1::NodeView {
                name: name.to_string(),
                address: node.address.to_string(),
                meta: meta_out(&node.meta),
            }),
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
                Self::Intentions(all.into_iter().map(Arc::new).collect())
            }
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
