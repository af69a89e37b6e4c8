//! The state under Consul's names: pure, so that every reply can be tested without a cluster.

use std::net::IpAddr;

use hawser_api::json;
use hawser_core::ca::{Authority, Root};
use hawser_core::catalog::{Catalog, Check, Instance, Locality, Meta, Node, Placed, Row};
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::intention::Intention;
use hawser_core::name::{Datacenter, NodeName};
use hawser_core::spiffe::TrustDomain;
use serde_json::json;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

pub(crate) use crate::identity::pem;

/// A host.
pub(crate) fn node(row: &Row<Node>, datacenter: &Datacenter) -> json::Node {
    let Node { name, id, address, locality, meta, tagged } = &*row.value;
    let mut tagged_addresses = tagged_addresses(*address);
    for (tag, at) in tagged {
        tagged_addresses.insert(tag.to_string(), at.address.to_string());
    }
    json::Node {
        id: id.to_string(),
        node: name.to_string(),
        address: address.to_string(),
        datacenter: datacenter.to_string(),
        tagged_addresses,
        meta: pairs(meta),
        locality: self::locality(locality),
        peer_name: String::new(),
        create_index: row.created.0,
        modify_index: row.modified.0,
    }
}

/// Where a host stands, as far as it said.
pub(crate) fn locality(place: &Locality) -> Option<json::Locality> {
    let Locality { region, zone } = place;
    (region.is_some() || zone.is_some()).then(|| json::Locality {
        region: region.as_deref().unwrap_or_default().to_owned(),
        zone: zone.as_deref().unwrap_or_default().to_owned(),
    })
}

/// An instance's application.
pub(crate) fn node_service(row: &Row<Instance>) -> json::NodeService {
    let instance = &*row.value;
    json::NodeService {
        kind: instance.gateway.as_ref().map(|_| json::MESH_GATEWAY.to_owned()).unwrap_or_default(),
        id: instance.id.to_string(),
        service: instance.service.to_string(),
        tags: tags(instance),
        address: own_address(instance),
        tagged_addresses: json::tagged(instance.gateway.as_deref(), &instance.tagged),
        meta: pairs(&instance.meta),
        port: instance.port,
        socket_path: instance.socket.as_ref().map(ToString::to_string).unwrap_or_default(),
        ports: instance.ports.iter().map(Into::into).collect(),
        weights: weights(instance),
        enable_tag_override: instance.enable_tag_override,
        proxy: json::ServiceProxy::default(),
        connect: json::ServiceConnect::default(),
        peer_name: String::new(),
        create_index: row.created.0,
        modify_index: row.modified.0,
    }
}

/// An instance's application, always listed.
pub(crate) fn node_service_of(row: &Row<Instance>) -> Option<json::NodeService> {
    Some(node_service(row))
}

/// An instance's place in the mesh, as the sidecar that Consul would have registered; none when it
/// is outside the mesh.
pub(crate) fn sidecar(row: &Row<Instance>) -> Option<json::NodeService> {
    let port = row.value.mesh_port?;
    Some(sidecar_of(node_service(row), port))
}

/// The sidecar that Consul would have registered for `application`, listening on `port`.
pub(crate) fn sidecar_of(application: json::NodeService, port: u16) -> json::NodeService {
    json::NodeService {
        kind: "connect-proxy".to_owned(),
        id: format!("{}{SIDECAR_SUFFIX}", application.id),
        service: format!("{}{SIDECAR_SUFFIX}", application.service),
        port,
        proxy: json::ServiceProxy {
            destination_service_name: application.service.clone(),
            destination_service_id: application.id.clone(),
            local_service_address: match application.socket_path.is_empty() {
                true => "127.0.0.1".to_owned(),
                false => String::new(),
            },
            local_service_port: application.port,
            local_service_socket_path: application.socket_path,
        },
        // The proxy has one port for all of the application's.
        socket_path: String::new(),
        ports: Vec::new(),
        ..application
    }
}

/// An instance's application, or its sidecar, with its node and checks.
pub(crate) fn service_entry(
    placed: &Placed<'_>,
    service: json::NodeService,
    datacenter: &Datacenter,
) -> json::ServiceEntry {
    let on = &placed.node.value.name;
    json::ServiceEntry {
        node: node(placed.node, datacenter),
        service,
        checks: placed
            .checks
            .iter()
            .map(|row| health_check(on, row, row.value.instance.as_ref().map(|_| placed.instance)))
            .collect(),
    }
}

/// An instance's application, or its sidecar, flat with its node.
pub(crate) fn service_node(
    host: &Row<Node>,
    service: json::NodeService,
    datacenter: &Datacenter,
) -> json::ServiceNode {
    flat(node(host, datacenter), service)
}

/// An instance, flat with its node.
pub(crate) fn flat(host: json::Node, service: json::NodeService) -> json::ServiceNode {
    json::ServiceNode {
        id: host.id,
        node: host.node,
        address: host.address,
        datacenter: host.datacenter,
        tagged_addresses: host.tagged_addresses,
        node_meta: host.meta,
        service_kind: service.kind,
        service_id: service.id,
        service_name: service.service,
        service_tags: service.tags,
        service_address: service.address,
        service_tagged_addresses: service.tagged_addresses,
        service_weights: service.weights,
        service_meta: service.meta,
        service_port: service.port,
        service_socket_path: service.socket_path,
        service_ports: service.ports,
        service_enable_tag_override: service.enable_tag_override,
        service_proxy: service.proxy,
        service_connect: service.connect,
        peer_name: service.peer_name,
        create_index: service.create_index,
        modify_index: service.modify_index,
    }
}

/// A check on `node`, with the instance that it is about.
pub(crate) fn health_check(
    node: &NodeName,
    row: &Row<Check>,
    about: Option<&Row<Instance>>,
) -> json::HealthCheck {
    let check = &*row.value;
    json::HealthCheck {
        node: node.to_string(),
        check_id: check.id.to_string(),
        name: check.name.to_string(),
        status: check.status.to_string(),
        notes: check.notes.to_string(),
        output: check.output.to_string(),
        service_id: check.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
        service_name: about.map(|row| row.value.service.to_string()).unwrap_or_default(),
        service_tags: about.map(|row| tags(&row.value)).unwrap_or_default(),
        kind: check.kind.to_string(),
        interval: check.run.interval.to_string(),
        timeout: check.run.timeout.to_string(),
        exposed_port: 0,
        // It was an object when it was taken.
        definition: serde_json::from_str(&check.run.definition).unwrap_or_default(),
        peer_name: String::new(),
        create_index: row.created.0,
        modify_index: row.modified.0,
    }
}

/// A check on `node`, its instance looked up.
pub(crate) fn check_in(catalog: &Catalog, node: &NodeName, row: &Row<Check>) -> json::HealthCheck {
    let about = row.value.instance.as_ref().and_then(|id| catalog.instance(node, id));
    health_check(node, row, about)
}

/// An intention.
pub(crate) fn intention(row: &Row<Intention>) -> json::Intention {
    let intention = &*row.value;
    let requests = intention.requests.as_deref();
    let permissions = requests.map(|requests| &requests.permissions[..]).unwrap_or_default();
    let permissions: Vec<_> = permissions.iter().map(|permission| json!(permission)).collect();
    json::Intention {
        id: intention.id.to_string(),
        description: intention.description.to_string(),
        source_ns: DEFAULT_NAMESPACE.to_owned(),
        source_name: intention.pair.source.to_string(),
        source_peer: intention.pair.peer.iter().map(ToString::to_string).collect(),
        destination_ns: DEFAULT_NAMESPACE.to_owned(),
        destination_name: intention.pair.destination.to_string(),
        source_type: "consul".to_owned(),
        action: match permissions.is_empty() {
            true => intention.action.as_str().to_owned(),
            false => String::new(),
        },
        permissions,
        jwt: requests.and_then(|requests| Some(json!(requests.jwt.as_ref()?))),
        meta: pairs(&intention.meta),
        precedence: intention.pair.precedence(),
        created_at: json::timestamp(intention.created_at),
        updated_at: json::timestamp(intention.updated_at),
        create_index: row.created.0,
        modify_index: row.modified.0,
    }
}

/// The trusted roots. No key is in it, sealed or not.
pub(crate) fn roots(authority: &Authority, trust_domain: &TrustDomain) -> json::CaRoots {
    let domain = trust_domain.as_str();
    let cluster = domain.split_once('.').map_or(domain, |(cluster, _)| cluster);
    let active = authority.roots.iter().find(|root| root.active);
    json::CaRoots {
        active_root_id: active.map(|root| root.id.to_string()).unwrap_or_default(),
        trust_domain: domain.to_owned(),
        roots: authority.roots.iter().map(|root| ca_root(root, authority, cluster)).collect(),
    }
}

fn ca_root(root: &Root, authority: &Authority, cluster: &str) -> json::CaRoot {
    let signer: &[u8] =
        if root.active { &authority.intermediate.certificate } else { &root.certificate };
    let cross = root.cross.as_deref().filter(|_| authority.roots.len() > 1);
    let intermediates = [Some(&*authority.intermediate.certificate), cross];
    let intermediates = || intermediates.into_iter().flatten().map(pem);
    json::CaRoot {
        id: root.id.to_string(),
        name: root.name.to_string(),
        serial_number: root.serial,
        signing_key_id: subject_key_id(signer).unwrap_or_default(),
        external_trust_domain: cluster.to_owned(),
        not_before: json::timestamp(root.validity.not_before),
        not_after: json::timestamp(root.validity.not_after),
        root_cert: pem(&root.certificate),
        intermediate_certs: root.active.then(intermediates).into_iter().flatten().collect(),
        active: root.active,
        private_key_type: "ec".to_owned(),
        private_key_bits: 256,
        rotated_out_at: root.rotated_out.map(json::timestamp).unwrap_or_default(),
        create_index: root.created.0,
        modify_index: root.modified.0,
    }
}

/// An edge, counted over `seconds`.
pub(crate) fn edge(key: &EdgeKey, tally: &Tally, seconds: f64) -> json::Edge {
    let millis = |permille| {
        tally.latency.quantile(permille).map_or(0.0, |latency| latency.as_secs_f64() * 1000.0)
    };
    json::Edge {
        source: key.source.to_string(),
        destination: key.destination.to_string(),
        cluster: key.cluster.to_string(),
        verdict: key.verdict.to_string(),
        count: tally.count,
        errors: tally.errors,
        // Counts of minutes are far below where f64 stops being exact.
        rate: if seconds > 0.0 { tally.count as f64 / seconds } else { 0.0 },
        bytes_sent: tally.bytes_sent,
        bytes_received: tally.bytes_received,
        p50_ms: millis(500),
        p95_ms: millis(950),
        p99_ms: millis(990),
    }
}

/// Free pairs.
pub(crate) fn pairs(meta: &Meta) -> json::Pairs {
    meta.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn subject_key_id(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => {
            Some(id.0.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":"))
        }
        _ => None,
    })
}

/// An address under the names that clients look for.
pub(crate) fn tagged_addresses(address: IpAddr) -> json::Pairs {
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    let address = address.to_string();
    ["lan".to_owned(), "wan".to_owned(), format!("lan_{family}"), format!("wan_{family}")]
        .into_iter()
        .map(|tag| (tag, address.clone()))
        .collect()
}

fn tags(instance: &Instance) -> Vec<String> {
    instance.tags.iter().map(ToString::to_string).collect()
}

fn own_address(instance: &Instance) -> String {
    instance.address.map(|address| address.to_string()).unwrap_or_default()
}

fn weights(instance: &Instance) -> json::Weights {
    json::Weights { passing: instance.weights.passing, warning: instance.weights.warning }
}

const SIDECAR_SUFFIX: &str = "-sidecar-proxy";
const DEFAULT_NAMESPACE: &str = "default";
