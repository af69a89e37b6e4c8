//! Nodes, instances, checks and what they are made of.

use std::collections::BTreeMap;

use hawser_core::anti_entropy::Rows;
use hawser_core::catalog::{
    Check, CheckRun, Instance, Locality, Meta, NamedPort, Node, Protocol, TaggedAddress,
    TaggedAddresses, Weights,
};
use hawser_core::clock::Index;
use hawser_core::health::Status;
use hawser_core::intention::Action;
use hawser_core::state::NodeChanges;

use crate::field::{
    Invalid, each, each_parsed, non_empty, optional_ip, parsed, required, short, text_or_empty,
    texts,
};
use crate::v1;

impl From<&Locality> for v1::Locality {
    fn from(locality: &Locality) -> Self {
        Self {
            region: text_or_empty(locality.region.as_ref()),
            zone: text_or_empty(locality.zone.as_ref()),
        }
    }
}

impl From<v1::Locality> for Locality {
    /// Any two texts are a locality; empty ones were not said.
    fn from(locality: v1::Locality) -> Self {
        Self { region: non_empty(&locality.region), zone: non_empty(&locality.zone) }
    }
}

impl From<&Node> for v1::Node {
    fn from(node: &Node) -> Self {
        Self {
            name: node.name.to_string(),
            id: node.id.to_string(),
            address: node.address.to_string(),
            locality: Some((&node.locality).into()),
            meta: meta_out(&node.meta),
            tagged: tagged_out(&node.tagged),
        }
    }
}

impl TryFrom<v1::Node> for Node {
    type Error = Invalid;

    fn try_from(node: v1::Node) -> Result<Self, Invalid> {
        Ok(Self {
            name: parsed("node.name", &node.name)?,
            id: node.id.into(),
            address: parsed("node.address", &node.address)?,
            locality: node.locality.map(Locality::from).unwrap_or_default(),
            meta: meta_in(node.meta),
            tagged: tagged_in(node.tagged)?,
        })
    }
}

impl From<&Instance> for v1::Instance {
    fn from(instance: &Instance) -> Self {
        let protocol = instance.protocol.map_or(v1::Protocol::Unspecified, v1::Protocol::from);
        Self {
            id: instance.id.to_string(),
            service: instance.service.to_string(),
            address: instance.address.map(|address| address.to_string()).unwrap_or_default(),
            port: instance.port.into(),
            tags: texts(&instance.tags),
            meta: meta_out(&instance.meta),
            weight_passing: instance.weights.passing.into(),
            weight_warning: instance.weights.warning.into(),
            protocol: protocol.into(),
            mesh_port: instance.mesh_port.unwrap_or_default().into(),
            enable_tag_override: instance.enable_tag_override,
            gateway: text_or_empty(instance.gateway.as_ref()),
            socket: instance.socket.as_ref().map(ToString::to_string).unwrap_or_default(),
            ports: instance.ports.iter().map(Into::into).collect(),
            tagged: tagged_out(&instance.tagged),
        }
    }
}

impl TryFrom<v1::Instance> for Instance {
    type Error = Invalid;

    fn try_from(instance: v1::Instance) -> Result<Self, Invalid> {
        let mesh_port = short("instance.mesh_port", instance.mesh_port)?;
        let protocol = match instance.protocol {
            0 => None,
            word => Some(protocol("instance.protocol", word)?),
        };
        Ok(Self {
            id: parsed("instance.id", &instance.id)?,
            service: parsed("instance.service", &instance.service)?,
            address: optional_ip("instance.address", &instance.address)?,
            port: short("instance.port", instance.port)?,
            tags: instance.tags.into_iter().map(Into::into).collect(),
            meta: meta_in(instance.meta),
            weights: Weights {
                passing: short("instance.weight_passing", instance.weight_passing)?,
                warning: short("instance.weight_warning", instance.weight_warning)?,
            },
            protocol,
            mesh_port: (mesh_port > 0).then_some(mesh_port),
            enable_tag_override: instance.enable_tag_override,
            gateway: non_empty(&instance.gateway),
            socket: match instance.socket.as_str() {
                "" => None,
                path => Some(parsed("instance.socket", path)?),
            },
            ports: each(instance.ports)?.into(),
            tagged: tagged_in(instance.tagged)?,
        })
    }
}

impl From<&NamedPort> for v1::NamedPort {
    fn from(named: &NamedPort) -> Self {
        let protocol = named.protocol.map_or(v1::Protocol::Unspecified, v1::Protocol::from);
        Self {
            name: named.name.to_string(),
            port: named.port.into(),
            is_default: named.is_default,
            protocol: protocol.into(),
        }
    }
}

impl TryFrom<v1::NamedPort> for NamedPort {
    type Error = Invalid;

    fn try_from(named: v1::NamedPort) -> Result<Self, Invalid> {
        Ok(Self {
            name: parsed("named_port.name", &named.name)?,
            port: short("named_port.port", named.port)?,
            is_default: named.is_default,
            protocol: match named.protocol {
                0 => None,
                word => Some(protocol("named_port.protocol", word)?),
            },
        })
    }
}

impl From<&Check> for v1::Check {
    fn from(check: &Check) -> Self {
        Self {
            id: check.id.to_string(),
            name: check.name.to_string(),
            kind: check.kind.to_string(),
            status: v1::Status::from(check.status).into(),
            notes: check.notes.to_string(),
            output: check.output.to_string(),
            instance: check.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
            interval: check.run.interval.to_string(),
            timeout: check.run.timeout.to_string(),
            definition: check.run.definition.to_string(),
        }
    }
}

impl TryFrom<v1::Check> for Check {
    type Error = Invalid;

    fn try_from(check: v1::Check) -> Result<Self, Invalid> {
        let instance = match check.instance.as_str() {
            "" => None,
            id => Some(parsed("check.instance", id)?),
        };
        Ok(Self {
            id: parsed("check.id", &check.id)?,
            name: check.name.into(),
            kind: check.kind.into(),
            status: status("check.status", check.status)?,
            notes: check.notes.into(),
            output: check.output.into(),
            instance,
            run: CheckRun {
                interval: check.interval.into(),
                timeout: check.timeout.into(),
                definition: check.definition.into(),
            },
        })
    }
}

impl From<&NodeChanges> for v1::NodeChanges {
    fn from(changes: &NodeChanges) -> Self {
        Self {
            node: Some((&changes.node).into()),
            put_instances: changes.put_instances.iter().map(Into::into).collect(),
            put_checks: changes.put_checks.iter().map(Into::into).collect(),
            drop_instances: texts(&changes.drop_instances),
            drop_checks: texts(&changes.drop_checks),
        }
    }
}

impl TryFrom<v1::NodeChanges> for NodeChanges {
    type Error = Invalid;

    fn try_from(changes: v1::NodeChanges) -> Result<Self, Invalid> {
        Ok(Self {
            node: required("node_changes.node", changes.node)?,
            put_instances: each(changes.put_instances)?,
            put_checks: each(changes.put_checks)?,
            drop_instances: each_parsed("node_changes.drop_instances", &changes.drop_instances)?,
            drop_checks: each_parsed("node_changes.drop_checks", &changes.drop_checks)?,
        })
    }
}

impl From<(&Rows, Index)> for v1::DeclaredReply {
    /// One node's rows as the catalog holds them as of an index.
    fn from((rows, index): (&Rows, Index)) -> Self {
        Self {
            node: rows.node.as_ref().map(Into::into),
            instances: rows.instances.values().map(Into::into).collect(),
            checks: rows.checks.values().map(Into::into).collect(),
            index: index.0,
        }
    }
}

impl TryFrom<v1::DeclaredReply> for (Rows, Index) {
    type Error = Invalid;

    fn try_from(reply: v1::DeclaredReply) -> Result<Self, Invalid> {
        let instances: Vec<Instance> = each(reply.instances)?;
        let checks: Vec<Check> = each(reply.checks)?;
        let rows = Rows {
            node: reply.node.map(Node::try_from).transpose()?,
            instances: instances.into_iter().map(|one| (one.id.clone(), one)).collect(),
            checks: checks.into_iter().map(|one| (one.id.clone(), one)).collect(),
        };
        Ok((rows, Index(reply.index)))
    }
}

impl From<Protocol> for v1::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Http => Self::Http,
            Protocol::Http2 => Self::Http2,
            Protocol::Grpc => Self::Grpc,
        }
    }
}

impl From<Status> for v1::Status {
    fn from(status: Status) -> Self {
        match status {
            Status::Passing => Self::Passing,
            Status::Warning => Self::Warning,
            Status::Critical => Self::Critical,
        }
    }
}

impl From<Action> for v1::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Allow => Self::Allow,
            Action::Deny => Self::Deny,
        }
    }
}

/// The protocol that a number stands for; one that this release does not know is refused.
pub(crate) fn protocol(field: &'static str, number: i32) -> Result<Protocol, Invalid> {
    match v1::Protocol::try_from(number) {
        Ok(v1::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(v1::Protocol::Http) => Ok(Protocol::Http),
        Ok(v1::Protocol::Http2) => Ok(Protocol::Http2),
        Ok(v1::Protocol::Grpc) => Ok(Protocol::Grpc),
        Ok(v1::Protocol::Unspecified) | Err(_) => Err(unknown(field, number)),
    }
}

/// The status that a number stands for; one that this release does not know is refused.
pub(crate) fn status(field: &'static str, number: i32) -> Result<Status, Invalid> {
    match v1::Status::try_from(number) {
        Ok(v1::Status::Passing) => Ok(Status::Passing),
        Ok(v1::Status::Warning) => Ok(Status::Warning),
        Ok(v1::Status::Critical) => Ok(Status::Critical),
        Ok(v1::Status::Unspecified) | Err(_) => Err(unknown(field, number)),
    }
}

/// The action that a number stands for; one that this release does not know is refused.
pub(crate) fn action(field: &'static str, number: i32) -> Result<Action, Invalid> {
    match v1::Action::try_from(number) {
        Ok(v1::Action::Allow) => Ok(Action::Allow),
        Ok(v1::Action::Deny) => Ok(Action::Deny),
        Ok(v1::Action::Unspecified) | Err(_) => Err(unknown(field, number)),
    }
}

fn unknown(field: &'static str, number: i32) -> Invalid {
    match number {
        0 => Invalid::new(field, "it is missing"),
        _ => Invalid::new(field, format_args!("{number} is no value that this release knows")),
    }
}

fn tagged_out(tagged: &TaggedAddresses) -> BTreeMap<String, v1::TaggedAddress> {
    let one = |at: &TaggedAddress| v1::TaggedAddress {
        address: at.address.to_string(),
        port: at.port.into(),
    };
    tagged.iter().map(|(name, at)| (name.to_string(), one(at))).collect()
}

fn tagged_in(tagged: BTreeMap<String, v1::TaggedAddress>) -> Result<TaggedAddresses, Invalid> {
    let one = |(name, at): (String, v1::TaggedAddress)| {
        let port = short("tagged.port", at.port)?;
        Ok((name.into(), TaggedAddress { address: at.address.into(), port }))
    };
    tagged.into_iter().map(one).collect()
}

/// Free pairs as they travel.
pub(crate) fn meta_out(meta: &Meta) -> BTreeMap<String, String> {
    meta.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// Free pairs as they arrived.
pub(crate) fn meta_in(meta: BTreeMap<String, String>) -> Meta {
    meta.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}
