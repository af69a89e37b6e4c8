//! Reply shapes under Consul's names: what the server writes and the client reads.
//!
//! Empty collections are written as `[]` and `{}`, never null.

mod store;

use std::collections::BTreeMap;

use hawser_core::catalog::{self, NamedPort, Protocol};
use hawser_core::clock::UnixTime;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use self::store::{Event, KvPair, Session, SessionServiceCheck};

/// Free pairs.
pub type Pairs = BTreeMap<String, String>;

/// Where a host stands.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Locality {
    /// The region.
    pub region: String,
    /// The zone within it.
    pub zone: String,
}

/// A host.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    /// A UUID.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name.
    pub node: String,
    /// Its address.
    pub address: String,
    /// Its datacenter.
    pub datacenter: String,
    /// Its address under the names that clients look for.
    pub tagged_addresses: Pairs,
    /// Free pairs.
    pub meta: Pairs,
    /// Where it stands, as far as it said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<Locality>,
    /// The peer whose host it is; empty for one's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer_name: String,
    /// The entry that created it.
    pub create_index: u64,
    /// The entry that last changed it.
    pub modify_index: u64,
}

/// Where an instance is reached, under a name that clients look for.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceAddress {
    /// An IP address or a DNS name.
    pub address: String,
    /// A port.
    pub port: u16,
}

/// Addresses of an instance by name.
pub type TaggedAddresses = BTreeMap<String, ServiceAddress>;

/// The kind of a service that is a mesh gateway.
pub const MESH_GATEWAY: &str = "mesh-gateway";

/// The tagged addresses of an instance that other clusters dial at `gateway`, a `host:port`; those
/// of one that is no gateway: none.
fn wan(gateway: Option<&str>) -> TaggedAddresses {
    let split = |text: &str| {
        let (host, port) = text.rsplit_once(':')?;
        let address = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Some(("wan".to_owned(), ServiceAddress { address, port: port.parse().ok()? }))
    };
    gateway.and_then(split).into_iter().collect()
}

/// What an instance says of its addresses, and where it is a gateway that of others.
pub fn tagged(gateway: Option<&str>, said: &catalog::TaggedAddresses) -> TaggedAddresses {
    let mut all = wan(gateway);
    for (tag, at) in said {
        let at = ServiceAddress { address: at.address.to_string(), port: at.port };
        all.insert(tag.to_string(), at);
    }
    all
}

/// Shares of traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Weights {
    /// While all checks pass.
    pub passing: u16,
    /// While one warns.
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// What a sidecar proxy says of whom it stands for.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceProxy {
    /// The service that it stands for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination_service_name: String,
    /// The instance that it stands for.
    #[serde(rename = "DestinationServiceID", skip_serializing_if = "String::is_empty")]
    pub destination_service_id: String,
    /// Where it reaches the application.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub local_service_address: String,
    /// And on which port.
    #[serde(skip_serializing_if = "is_zero")]
    pub local_service_port: u16,
    /// Or at which Unix socket.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub local_service_socket_path: String,
}

/// One of several ports of an instance.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServicePort {
    /// Its name.
    pub name: String,
    /// Where the application listens.
    pub port: u16,
    /// Whether it is meant where none is named.
    pub default: bool,
    /// What is spoken there, where that is not what the service speaks.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
}

impl From<&NamedPort> for ServicePort {
    fn from(named: &NamedPort) -> Self {
        Self {
            name: named.name.to_string(),
            port: named.port,
            default: named.is_default,
            protocol: named.protocol.map_or("", Protocol::as_str).to_owned(),
        }
    }
}

/// An instance's place in the mesh, as Consul words it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceConnect {}

/// An instance, inside a health or node reply.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeService {
    /// Empty for an application, `connect-proxy` for a sidecar, `mesh-gateway` for a gateway.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Its id, unique on the node.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its service.
    pub service: String,
    /// Its labels.
    pub tags: Vec<String>,
    /// Its own address; empty where it is the node's.
    pub address: String,
    /// Where a gateway is reached from outside, as `wan`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: TaggedAddresses,
    /// Free pairs.
    pub meta: Pairs,
    /// Its port.
    pub port: u16,
    /// The Unix socket that it listens on, in place of a port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Its ports, where it has several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// Its share of the traffic.
    pub weights: Weights,
    /// Whether others may change its tags.
    pub enable_tag_override: bool,
    /// Whom it stands for, when it is a sidecar.
    pub proxy: ServiceProxy,
    /// Its place in the mesh.
    pub connect: ServiceConnect,
    /// The peer that exports it; empty for one's own.
    pub peer_name: String,
    /// The entry that created it.
    pub create_index: u64,
    /// The entry that last changed it.
    pub modify_index: u64,
}

/// An instance with its node, flat: what `/catalog/service` lists.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceNode {
    /// The node's UUID.
    #[serde(rename = "ID")]
    pub id: String,
    /// The node's name.
    pub node: String,
    /// The node's address.
    pub address: String,
    /// The node's datacenter.
    pub datacenter: String,
    /// The node's address under the names that clients look for.
    pub tagged_addresses: Pairs,
    /// The node's free pairs.
    pub node_meta: Pairs,
    /// Empty for an application, `connect-proxy` for a sidecar, `mesh-gateway` for a gateway.
    pub service_kind: String,
    /// The instance's id.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    /// Its service.
    pub service_name: String,
    /// Its labels.
    pub service_tags: Vec<String>,
    /// Its own address; empty where it is the node's.
    pub service_address: String,
    /// Where a gateway is reached from outside, as `wan`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub service_tagged_addresses: TaggedAddresses,
    /// Its share of the traffic.
    pub service_weights: Weights,
    /// Its free pairs.
    pub service_meta: Pairs,
    /// Its port.
    pub service_port: u16,
    /// The Unix socket that it listens on, in place of a port.
    pub service_socket_path: String,
    /// Its ports, where it has several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_ports: Vec<ServicePort>,
    /// Whether others may change its tags.
    pub service_enable_tag_override: bool,
    /// Whom it stands for, when it is a sidecar.
    pub service_proxy: ServiceProxy,
    /// Its place in the mesh.
    pub service_connect: ServiceConnect,
    /// The peer that exports it; empty for one's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer_name: String,
    /// The entry that created it.
    pub create_index: u64,
    /// The entry that last changed it.
    pub modify_index: u64,
}

/// A check and what it last found.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthCheck {
    /// The node that it stands on.
    pub node: String,
    /// Its id, unique on the node.
    #[serde(rename = "CheckID")]
    pub check_id: String,
    /// A name for people.
    pub name: String,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// A note for people.
    pub notes: String,
    /// What it printed last.
    pub output: String,
    /// The instance that it is about; empty when it is about the whole node.
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    /// That instance's service.
    pub service_name: String,
    /// That instance's labels.
    pub service_tags: Vec<String>,
    /// How it is run.
    #[serde(rename = "Type")]
    pub kind: String,
    /// How often, where anybody says.
    pub interval: String,
    /// How long at most, where the agent says.
    pub timeout: String,
    /// Always zero.
    pub exposed_port: u16,
    /// How it is run, as its registrar wrote it.
    pub definition: serde_json::Map<String, serde_json::Value>,
    /// The peer whose check it is; empty for one's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer_name: String,
    /// The entry that created it.
    pub create_index: u64,
    /// The entry that last changed it.
    pub modify_index: u64,
}

/// An instance with its node and checks: what `/health/service` lists.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceEntry {
    /// The host.
    pub node: Node,
    /// The instance.
    pub service: NodeService,
    /// The host's checks and the instance's.
    pub checks: Vec<HealthCheck>,
}

/// A node with its instances by id: what `/catalog/node` answers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeServices {
    /// The host.
    pub node: Node,
    /// Its instances.
    pub services: BTreeMap<String, NodeService>,
}

/// A node with a list of its instances: what `/catalog/node-services` answers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NodeServiceList {
    /// The host; none when there is no such host.
    pub node: Option<Node>,
    /// Its instances.
    pub services: Vec<NodeService>,
}

/// An instance as its agent knows it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AgentService {
    /// Empty for an application, `connect-proxy` for a sidecar, `mesh-gateway` for a gateway.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// Its id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its service.
    pub service: String,
    /// Its labels.
    pub tags: Vec<String>,
    /// Free pairs.
    pub meta: Pairs,
    /// Its port.
    pub port: u16,
    /// The Unix socket that it listens on, in place of a port.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Its ports, where it has several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// Its own address; empty where it is the node's.
    pub address: String,
    /// Where a gateway is reached from outside, as `wan`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: TaggedAddresses,
    /// Its share of the traffic.
    pub weights: Weights,
    /// Whether others may change its tags.
    pub enable_tag_override: bool,
    /// Whom it stands for, when it is a sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<ServiceProxy>,
    /// A hash of all this, where the endpoint blocks on it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content_hash: String,
    /// Its datacenter.
    pub datacenter: String,
}

/// A member of the cluster, as `/agent/members` lists it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Member {
    /// Its node's name.
    pub name: String,
    /// Its address.
    pub addr: String,
    /// Its port.
    pub port: u16,
    /// `role`, `dc`, `id`, `build` and the like.
    pub tags: Pairs,
    /// 1 alive, 2 leaving, 3 left, 4 failed.
    pub status: u8,
    /// Always zero: there is no gossip protocol.
    pub protocol_min: u8,
    /// Always zero.
    pub protocol_max: u8,
    /// Always zero.
    pub protocol_cur: u8,
    /// Always zero.
    pub delegate_min: u8,
    /// Always zero.
    pub delegate_max: u8,
    /// Always zero.
    pub delegate_cur: u8,
}

/// An intention.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Intention {
    /// A UUID.
    #[serde(rename = "ID")]
    pub id: String,
    /// For people.
    pub description: String,
    /// Always `default`.
    #[serde(rename = "SourceNS")]
    pub source_ns: String,
    /// The caller, or `*`.
    pub source_name: String,
    /// The peer that the caller is of; empty for callers of one's own cluster.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source_peer: String,
    /// Always `default`.
    #[serde(rename = "DestinationNS")]
    pub destination_ns: String,
    /// The callee, or `*`.
    pub destination_name: String,
    /// Always `consul`.
    pub source_type: String,
    /// `allow` or `deny`; empty where permissions decide.
    pub action: String,
    /// What decides about each request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub permissions: Vec<serde_json::Value>,
    /// The token that every request must bring.
    #[serde(rename = "JWT", skip_serializing_if = "Option::is_none")]
    pub jwt: Option<serde_json::Value>,
    /// Free pairs.
    pub meta: Pairs,
    /// The greater decides.
    pub precedence: u8,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub updated_at: String,
    /// The entry that created it.
    pub create_index: u64,
    /// The entry that last changed it.
    pub modify_index: u64,
}

/// May it?
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IntentionCheck {
    /// Whether the caller may connect.
    pub allowed: bool,
}

/// What `/agent/connect/authorize` answers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Authorization {
    /// Whether the caller may connect.
    pub authorized: bool,
    /// Says who.
    pub reason: String,
}

/// A root certificate.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CaRoot {
    /// SHA-1 of its DER, colon-separated hex.
    #[serde(rename = "ID")]
    pub id: String,
    /// A name for people.
    pub name: String,
    /// Its serial number.
    pub serial_number: u64,
    /// The key id of the certificate that signs leaves.
    #[serde(rename = "SigningKeyID")]
    pub signing_key_id: String,
    /// The cluster's UUID.
    pub external_trust_domain: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// PEM.
    pub root_cert: String,
    /// PEM, of the active root.
    pub intermediate_certs: Vec<String>,
    /// Whether new intermediates are signed with it.
    pub active: bool,
    /// `ec`
    pub private_key_type: String,
    /// 256
    pub private_key_bits: u16,
    /// When another took its place, RFC 3339; absent for one that signs or is yet to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rotated_out_at: String,
    /// The entry that brought it.
    pub create_index: u64,
    /// The entry that last changed it.
    pub modify_index: u64,
}

/// Every trusted root.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CaRoots {
    /// The active one's id.
    #[serde(rename = "ActiveRootID")]
    pub active_root_id: String,
    /// The trust domain of every identity in the cluster.
    pub trust_domain: String,
    /// The roots.
    pub roots: Vec<CaRoot>,
}

/// One identity that nobody believes any more: exactly one of the first three is not empty.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Revocation {
    /// A node in quarantine.
    pub node: String,
    /// A service's identity.
    pub service: String,
    /// One certificate, by its serial number in colon-separated hex.
    pub serial: String,
    /// Why, for people.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// The entry that brought it.
    pub create_index: u64,
    /// The entry that last changed it.
    pub modify_index: u64,
}

/// What `/peering/token` answers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeeringToken {
    /// To be given to the other cluster. It holds a secret.
    pub peering_token: String,
}

/// One peering.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Peering {
    /// A UUID.
    #[serde(rename = "ID")]
    pub id: String,
    /// What this cluster calls the peer.
    pub name: String,
    /// `PENDING`, `ESTABLISHING`, `ACTIVE`, `FAILING` or `TERMINATED`.
    pub state: String,
    /// Free pairs.
    pub meta: Pairs,
    /// The peering's UUID in the peer's cluster; empty until that is known.
    #[serde(rename = "PeerID")]
    pub peer_id: String,
    /// Who vouches for the peer's servers.
    #[serde(rename = "PeerCAPems")]
    pub peer_ca_pems: Vec<String>,
    /// What the peer's servers are asked for.
    pub peer_server_name: String,
    /// Where they are, `host:port`.
    pub peer_server_addresses: Vec<String>,
    /// Where the peer's mesh gateways listen; Hawser's own addition.
    pub peer_gateways: Vec<String>,
    /// The round trip to the peer in steps of powers of two, zero until it is known; Hawser's own
    /// addition.
    #[serde(rename = "RoundTripMS")]
    pub round_trip_ms: u32,
    /// What goes over the stream with the peer.
    pub stream_status: PeeringStreamStatus,
    /// What is known of the peer's cluster.
    pub remote: PeeringRemote,
    /// The entry that created it.
    pub create_index: u64,
    /// The entry that last changed it.
    pub modify_index: u64,
}

/// What goes over the stream with a peer. The times are those of the server that answers; only the
/// leader has any.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeeringStreamStatus {
    /// Services that the peer exports.
    pub imported_services: Vec<String>,
    /// Services that are exported to it.
    pub exported_services: Vec<String>,
    /// RFC 3339.
    pub last_heartbeat: Option<String>,
    /// RFC 3339.
    pub last_receive: Option<String>,
    /// RFC 3339.
    pub last_send: Option<String>,
}

/// What is known of a peer's cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PeeringRemote {
    /// Always empty: there are no partitions.
    pub partition: String,
    /// Its datacenter.
    pub datacenter: String,
    /// Always empty: clusters have no place, hosts have.
    pub locality: Pairs,
}

/// One server, as the Raft configuration lists it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RaftServer {
    /// Its Raft id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its node's name.
    pub node: String,
    /// `ip:8300`
    pub address: String,
    /// Whether it leads.
    pub leader: bool,
    /// Always `3`, which Consul's clients expect.
    pub protocol_version: String,
    /// Whether it votes.
    pub voter: bool,
    /// The last entry that it is known to have.
    pub last_index: u64,
}

/// What `/operator/raft/configuration` answers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RaftConfiguration {
    /// Always zero, as Consul's is.
    pub index: u64,
    /// The servers.
    pub servers: Vec<RaftServer>,
}

/// The rules by which the servers keep in order.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AutopilotConfiguration {
    /// Whether servers that died are removed.
    pub cleanup_dead_servers: bool,
    /// How long an answer may be overdue, as a Go duration.
    pub last_contact_threshold: String,
    /// How many entries a server may be behind.
    pub max_trailing_logs: u64,
    /// Fewer voters are never left.
    pub min_quorum: u32,
    /// How long a new server must be well before it votes, as a Go duration.
    pub server_stabilization_time: String,
    /// Always empty.
    pub redundancy_zone_tag: String,
    /// Always false.
    pub disable_upgrade_migration: bool,
    /// Always empty.
    pub upgrade_version_tag: String,
    /// The entry that set it first.
    pub create_index: u64,
    /// The entry that set it last.
    pub modify_index: u64,
}

/// One server's health.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServerHealth {
    /// Its Raft id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its node's name.
    pub name: String,
    /// `ip:8300`
    pub address: String,
    /// `alive` or `failed`.
    pub serf_status: String,
    /// Its version.
    pub version: String,
    /// Whether it leads.
    pub leader: bool,
    /// How long ago the leader heard of it, as a Go duration.
    pub last_contact: String,
    /// The term of the last entry that it is known to have.
    pub last_term: u64,
    /// The last entry that it is known to have.
    pub last_index: u64,
    /// Whether it is well.
    pub healthy: bool,
    /// Whether it votes.
    pub voter: bool,
    /// RFC 3339; year 1 where it is not recorded.
    pub stable_since: String,
}

/// What `/operator/autopilot/health` answers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ClusterHealth {
    /// Whether every server is well.
    pub healthy: bool,
    /// How many voters may fail before a majority is lost.
    pub failure_tolerance: usize,
    /// The servers.
    pub servers: Vec<ServerHealth>,
}

/// Who calls whom, over the minutes that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Edge {
    /// The caller.
    pub source: String,
    /// The callee.
    pub destination: String,
    /// The cluster that the callee answered from; empty for one's own.
    pub cluster: String,
    /// A word of the closed set of reasons; `ok` for success.
    pub verdict: String,
    /// Requests, or connections of a TCP service.
    pub count: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Requests a second.
    pub rate: f64,
    /// Bytes from caller to callee.
    pub bytes_sent: u64,
    /// Bytes from callee to caller.
    pub bytes_received: u64,
    /// Half were at least this fast, in milliseconds.
    pub p50_ms: f64,
    /// 95 % were at least this fast, in milliseconds.
    pub p95_ms: f64,
    /// 99 % were at least this fast, in milliseconds.
    pub p99_ms: f64,
}

/// The edges of the last minutes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Edges {
    /// How many minutes were merged.
    pub minutes: u32,
    /// Servers that did not answer in time, so that their part is missing.
    pub missing: Vec<String>,
    /// The edges, by caller and callee.
    pub edges: Vec<Edge>,
}

/// A join token that was just made. Shown once.
#[derive(Clone, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JoinToken {
    /// `hj1.…`: a secret.
    pub token: String,
    /// The node that may use it.
    pub node: String,
    /// How long it may be used, as a Go duration.
    #[serde(rename = "TTL")]
    pub ttl: String,
}

/// A moment as RFC 3339 text, UTC.
pub fn timestamp(moment: UnixTime) -> String {
    let nanos = i128::from(moment.as_millis()) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        // Beyond the year 9999, which Go's clients cannot read either.
        .unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(port: &u16) -> bool {
    *port == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_collections_are_never_null() {
        let entry = ServiceEntry { checks: vec![HealthCheck::default()], ..Default::default() };
        let values = [
            serde_json::to_string(&entry),
            serde_json::to_string(&ServiceNode::default()),
            serde_json::to_string(&Intention::default()),
            serde_json::to_string(&CaRoots {
                roots: vec![CaRoot::default()],
                ..Default::default()
            }),
            serde_json::to_string(&NodeServices::default()),
        ];
        for value in values {
            let text = value.expect("JSON");
            assert!(!text.contains("null"), "{text}");
        }
    }

    #[test]
    fn names_are_consuls() {
        let text = serde_json::to_string(&ServiceEntry {
            checks: vec![HealthCheck::default()],
            ..Default::default()
        })
        .expect("JSON");
        for name in ["\"ID\"", "\"CheckID\"", "\"ServiceID\"", "\"TaggedAddresses\"", "\"Type\""] {
            assert!(text.contains(name), "{name} in {text}");
        }
        let root = serde_json::to_string(&CaRoot::default()).expect("JSON");
        assert!(root.contains("\"SigningKeyID\"") && root.contains("\"RootCert\""), "{root}");
    }

    #[test]
    fn a_gateway_is_reached_from_outside_where_it_says() {
        let at = |text| wan(text).remove("wan").map(|wan| (wan.address, wan.port));
        assert_eq!(at(Some("gateway.example.com:443")), Some(("gateway.example.com".into(), 443)));
        assert_eq!(at(Some("[2001:db8::7]:8443")), Some(("2001:db8::7".into(), 8443)));
        assert_eq!(at(None), None);
    }

    #[test]
    fn moments_are_rfc_3339() {
        let cases = [
            (UnixTime::from_millis(0), "1970-01-01T00:00:00Z"),
            (UnixTime::from_millis(1_790_000_000_123), "2026-09-21T14:13:20.123Z"),
            (UnixTime::from_millis(u64::MAX), "9999-12-31T23:59:59Z"),
        ];
        for (moment, expected) in cases {
            assert_eq!(timestamp(moment), expected);
        }
    }
}
