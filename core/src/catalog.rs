//! Nodes, instances and checks, and the tables that hold them.

pub mod bounds;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::address::SocketPath;
use crate::clock::Index;
use crate::health::{NODE_LIVENESS_CHECK, Status};
use crate::name::{CheckId, InstanceId, NodeName, PortName, ServiceName};

/// Free pairs that operators attach to nodes and instances.
pub type Meta = BTreeMap<Arc<str>, Arc<str>>;

/// Where a host stands, as far as it said.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Locality {
    /// The region, such as `eu-west-1`.
    pub region: Option<Arc<str>>,
    /// The zone within it, such as `eu-west-1a`.
    pub zone: Option<Arc<str>>,
}

/// Addresses by names that clients choose by, such as `wan`: told to readers of the API as they
/// were written, and used for nothing here.
pub type TaggedAddresses = BTreeMap<Arc<str>, TaggedAddress>;

/// One address by name.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct TaggedAddress {
    /// An IP address or a DNS name.
    pub address: Arc<str>,
    /// The port; zero where the instance's own holds, and for nodes.
    pub port: u16,
}

/// How a check is run, in Consul's words: told to readers of the API, and used for nothing here.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CheckRun {
    /// How often, such as `10s`; empty where nobody says.
    pub interval: Arc<str>,
    /// The longest wait for one run; empty where nobody says.
    pub timeout: Arc<str>,
    /// Consul's `Definition`, a JSON object, as a registrar wrote it; empty where none did.
    pub definition: Arc<str>,
}

/// A host in the catalog.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its name, unique in the cluster.
    pub name: NodeName,
    /// A UUID that stays with the host's data folder.
    pub id: Arc<str>,
    /// The address that others reach it at.
    pub address: IpAddr,
    /// Its region and zone.
    pub locality: Locality,
    /// Free pairs.
    pub meta: Meta,
    /// Its address under other names, and other addresses.
    pub tagged: TaggedAddresses,
}

impl Node {
    /// Whether it was registered through the catalog and has no agent: then it has no lease that
    /// could run out, and its health is what its registrar says.
    pub fn is_external(&self) -> bool {
        self.meta.contains_key(EXTERNAL_META)
    }

    /// How far `other` is, for ordering: 0 the same node, 1 its zone, 2 its region, 3 elsewhere.
    ///
    /// A node that does not say where it stands is elsewhere.
    pub fn distance(&self, other: &Self) -> u8 {
        let (here, there) = (&self.locality, &other.locality);
        let is_same_region = here.region.is_some() && here.region == there.region;
        let is_same_zone = here.zone.is_some() && here.zone == there.zone;
        match (self.name == other.name, is_same_region, is_same_zone) {
            (true, _, _) => 0,
            (_, true, true) => 1,
            (_, true, false) => 2,
            (_, false, _) => 3,
        }
    }
}

/// How much traffic an instance takes, relative to its siblings.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Weights {
    /// While all its checks pass.
    pub passing: u16,
    /// While one warns.
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// The application protocol that a service speaks.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Protocol {
    /// Bytes: relayed, not understood.
    #[default]
    Tcp,
    /// HTTP/1.1 between the application and its proxy.
    Http,
    /// HTTP/2 without TLS between the application and its proxy.
    Http2,
    /// gRPC: HTTP/2 with the status in trailers.
    Grpc,
}

impl Protocol {
    /// Consul's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
        }
    }

    /// The protocol that Consul's `word` means; anything it does not know is relayed as TCP.
    pub fn from_consul(word: &str) -> Self {
        match word {
            "http" => Self::Http,
            "http2" => Self::Http2,
            "grpc" => Self::Grpc,
            _ => Self::Tcp,
        }
    }

    /// Whether requests, and not just bytes, are seen.
    pub const fn is_http(self) -> bool {
        !matches!(self, Self::Tcp)
    }
}

/// One of several ports of an instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedPort {
    /// Its name, unique in its instance.
    pub name: PortName,
    /// Where the application listens.
    pub port: u16,
    /// Whether it is the one that is meant where no port is named.
    pub is_default: bool,
    /// What is spoken there, where that is not what the service speaks.
    pub protocol: Option<Protocol>,
}

/// One copy of a service on one node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Instance {
    /// Its id, unique on the node.
    pub id: InstanceId,
    /// The service that it is a copy of.
    pub service: ServiceName,
    /// Its own address, where it differs from the node's.
    pub address: Option<IpAddr>,
    /// The port that the application listens on, the default one of several; zero when it has
    /// none.
    pub port: u16,
    /// Labels that DNS and queries select by.
    pub tags: BTreeSet<Arc<str>>,
    /// Free pairs.
    pub meta: Meta,
    /// Its share of the traffic.
    pub weights: Weights,
    /// The protocol it declares, used where no config entry says otherwise.
    pub protocol: Option<Protocol>,
    /// The port of its proxy's inbound mTLS listener; none when it is outside the mesh.
    pub mesh_port: Option<u16>,
    /// Whether others may change its tags through the catalog.
    pub enable_tag_override: bool,
    /// What other clusters dial, `host:port`, when it is a mesh gateway; none when it is not.
    pub gateway: Option<Arc<str>>,
    /// The Unix socket that the application listens on, in place of a port.
    pub socket: Option<SocketPath>,
    /// Its ports by name, as it declares them; none where it has one port, or no name for it.
    pub ports: Arc<[NamedPort]>,
    /// Other addresses of it, by name.
    pub tagged: TaggedAddresses,
}

/// One instance as others see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// The host it runs on.
    pub node: NodeName,
    /// Its id on that host.
    pub instance: InstanceId,
    /// The application's address: the instance's own, or its node's.
    pub address: IpAddr,
    /// Whether the instance has an address of its own.
    pub has_own_address: bool,
    /// Its ports by name.
    pub ports: Arc<[NamedPort]>,
    /// The application's port.
    pub port: u16,
    /// Where its proxy listens for mTLS; none when it is outside the mesh.
    pub mesh: Option<SocketAddr>,
    /// Where its host stands.
    pub locality: Locality,
    /// Its labels.
    pub tags: BTreeSet<Arc<str>>,
    /// Its weights.
    pub weights: Weights,
    /// The worst of its and its node's checks.
    pub status: Status,
}

/// What a check belongs to and what it last found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Check {
    /// Its id, unique on the node.
    pub id: CheckId,
    /// A name for people.
    pub name: Arc<str>,
    /// How it is run: `http`, `tcp`, `grpc`, `ttl`, `script`, or empty for the node's liveness.
    pub kind: Arc<str>,
    /// What it found.
    pub status: Status,
    /// A note by whoever declared it.
    pub notes: Arc<str>,
    /// What it printed last.
    pub output: Arc<str>,
    /// The instance it is about; none when it is about the whole node.
    pub instance: Option<InstanceId>,
    /// How it is run.
    pub run: CheckRun,
}

/// One stored value and the log positions that made it what it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row<T> {
    /// The value.
    pub value: Arc<T>,
    /// The entry that created it.
    pub created: Index,
    /// The entry that last changed it.
    pub modified: Index,
}

/// Which instance: unique in the cluster.
pub type InstanceKey = (NodeName, InstanceId);

/// What a change in the catalog touched, for waking those who watch it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Touched {
    /// Nodes whose own row, instances or checks changed.
    pub nodes: BTreeSet<NodeName>,
    /// Services whose instances, or their health, changed.
    pub services: BTreeSet<ServiceName>,
    /// Whether the set of services or their tags changed, and not just health.
    pub names: bool,
}

/// The tables: persistent, so that a clone is a pointer and a long read blocks no write.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    nodes: RedBlackTreeMapSync<NodeName, Row<Node>>,
    instances: RedBlackTreeMapSync<InstanceKey, Row<Instance>>,
    checks: RedBlackTreeMapSync<(NodeName, CheckId), Row<Check>>,
    services: RedBlackTreeMapSync<ServiceName, Members>,
    nodes_index: Index,
    checks_index: Index,
    names_index: Index,
    emptied_index: Index,
}

/// A service's instances and the last entry that touched any of them.
#[derive(Clone, Debug)]
struct Members {
    keys: RedBlackTreeSetSync<InstanceKey>,
    index: Index,
}

/// One instance with all that a reader of its health needs.
#[derive(Clone, Debug)]
pub struct Placed<'a> {
    /// The host it runs on.
    pub node: &'a Row<Node>,
    /// The instance.
    pub instance: &'a Row<Instance>,
    /// The node's own checks, then the instance's.
    pub checks: Vec<&'a Row<Check>>,
}

impl Placed<'_> {
    /// The worst of its checks.
    pub fn status(&self) -> Status {
        Status::worst(self.checks.iter().map(|check| check.value.status))
    }
}

impl Catalog {
    /// The last entry that changed the list of nodes.
    pub fn nodes_index(&self) -> Index {
        self.nodes_index
    }

    /// The last entry that changed any check.
    pub fn checks_index(&self) -> Index {
        self.checks_index
    }

    /// The last entry that changed which services exist, or their tags.
    pub fn names_index(&self) -> Index {
        self.names_index
    }

    /// The last entry that touched `service`; for one that does not exist, the last entry that
    /// removed any service, so that an index never goes back.
    pub fn service_index(&self, service: &ServiceName) -> Index {
        self.services.get(service).map_or(self.emptied_index, |members| members.index)
    }

    /// The last entry that removed any service: the index of all that do not exist.
    pub fn emptied_index(&self) -> Index {
        self.emptied_index
    }

    /// Every node, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Row<Node>> {
        self.nodes.values()
    }

    /// How many instances there are.
    pub fn instance_count(&self) -> usize {
        self.instances.size()
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.size()
    }

    /// One node.
    pub fn node(&self, name: &NodeName) -> Option<&Row<Node>> {
        self.nodes.get(name)
    }

    /// Every service name, in order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Every instance, by node and id.
    pub fn instances(&self) -> impl Iterator<Item = (&NodeName, &Row<Instance>)> {
        self.instances.iter().map(|((node, _), row)| (node, row))
    }

    /// Every check, by node and id.
    pub fn checks(&self) -> impl Iterator<Item = (&NodeName, &Row<Check>)> {
        self.checks.iter().map(|((node, _), row)| (node, row))
    }

    /// One instance.
    pub fn instance(&self, node: &NodeName, id: &InstanceId) -> Option<&Row<Instance>> {
        self.instances.get(&(node.clone(), id.clone()))
    }

    /// One check.
    pub fn check(&self, node: &NodeName, id: &CheckId) -> Option<&Row<Check>> {
        self.checks.get(&(node.clone(), id.clone()))
    }

    /// The instances that stand on `node`, by id.
    pub fn instances_on<'a>(
        &'a self,
        node: &'a NodeName,
    ) -> impl Iterator<Item = &'a Row<Instance>> + 'a {
        // Ids are compared as text, and the least text is no valid id, so a range over the pair
        // needs a starting id of its own: the smallest printable one.
        let from = (node.clone(), first_instance_id());
        self.instances
            .range(from..)
            .take_while(move |((owner, _), _)| owner == node)
            .map(|(_, row)| row)
    }

    /// The checks on `node`, the node's own and its instances', by id.
    pub fn checks_on<'a>(
        &'a self,
        node: &'a NodeName,
    ) -> impl Iterator<Item = &'a Row<Check>> + 'a {
        let from = (node.clone(), first_check_id());
        self.checks
            .range(from..)
            .take_while(move |((owner, _), _)| owner == node)
            .map(|(_, row)| row)
    }

    /// The instances of `service` with their nodes and checks, by node and id.
    pub fn placed<'a>(&'a self, service: &ServiceName) -> impl Iterator<Item = Placed<'a>> + 'a {
        self.services.get(service).into_iter().flat_map(|members| members.keys.iter()).filter_map(
            |key| {
                let (owner, id) = key;
                let node = self.nodes.get(owner)?;
                let instance = self.instances.get(key)?;
                let concerns =
                    |check: &&Row<Check>| check.value.instance.as_ref().is_none_or(|of| of == id);
                let checks = self.checks_on(&node.value.name).filter(concerns).collect();
                Some(Placed { node, instance, checks })
            },
        )
    }

    /// Whether `node` is known to be without a living agent.
    pub fn is_down(&self, node: &NodeName) -> bool {
        liveness_id()
            .and_then(|id| self.checks.get(&(node.clone(), id)))
            .is_some_and(|check| check.value.status == Status::Critical)
    }

    pub(crate) fn put_node(&mut self, node: Node, at: Index, touched: &mut Touched) {
        let name = node.name.clone();
        if self.nodes.get(&name).is_some_and(|row| *row.value == node) {
            return;
        }
        self.nodes_index = at;
        upsert(&mut self.nodes, name.clone(), node, at);
        self.touch_services_on(&name, at, touched);
        touched.nodes.insert(name);
    }

    pub(crate) fn put_instance(
        &mut self,
        node: &NodeName,
        instance: Instance,
        at: Index,
        touched: &mut Touched,
    ) {
        let key = (node.clone(), instance.id.clone());
        let service = instance.service.clone();
        let old = self.instances.get(&key).map(|row| row.value.clone());
        if old.as_deref() == Some(&instance) {
            return;
        }
        if let Some(old) = &old
            && old.service != service
        {
            self.leave_service(&old.service, &key, at, touched);
        }
        if old.is_none_or(|old| old.service != service || old.tags != instance.tags) {
            self.names_index = at;
            touched.names = true;
        }
        upsert(&mut self.instances, key.clone(), instance, at);
        let mut members = self.services.get(&service).cloned().unwrap_or_else(Members::none);
        members.keys.insert_mut(key);
        members.index = at;
        self.services.insert_mut(service.clone(), members);
        touched.services.insert(service);
        touched.nodes.insert(node.clone());
    }

    pub(crate) fn drop_instance(
        &mut self,
        node: &NodeName,
        id: &InstanceId,
        at: Index,
        touched: &mut Touched,
    ) {
        let key = (node.clone(), id.clone());
        let Some(row) = self.instances.get(&key).cloned() else { return };
        self.instances.remove_mut(&key);
        let orphans: Vec<CheckId> = self
            .checks_on(node)
            .filter(|check| check.value.instance.as_ref() == Some(id))
            .map(|check| check.value.id.clone())
            .collect();
        for check in orphans {
            self.checks.remove_mut(&(node.clone(), check));
            self.checks_index = at;
        }
        self.leave_service(&row.value.service, &key, at, touched);
        touched.nodes.insert(node.clone());
    }

    pub(crate) fn put_check(
        &mut self,
        node: &NodeName,
        check: Check,
        at: Index,
        touched: &mut Touched,
    ) {
        let key = (node.clone(), check.id.clone());
        let held = self.checks.get(&key).map(|row| Arc::clone(&row.value));
        if held.as_deref() == Some(&check) {
            return;
        }
        self.checks_index = at;
        let about = check.instance.clone();
        upsert(&mut self.checks, key, check, at);
        if let Some(held) = held.filter(|held| held.instance != about) {
            self.touch_checked(node, held.instance.as_ref(), at, touched);
        }
        self.touch_checked(node, about.as_ref(), at, touched);
    }

    pub(crate) fn drop_check(
        &mut self,
        node: &NodeName,
        id: &CheckId,
        at: Index,
        touched: &mut Touched,
    ) {
        let key = (node.clone(), id.clone());
        let Some(row) = self.checks.get(&key).cloned() else { return };
        self.checks.remove_mut(&key);
        self.checks_index = at;
        self.touch_checked(node, row.value.instance.as_ref(), at, touched);
    }

    pub(crate) fn drop_node(&mut self, name: &NodeName, at: Index, touched: &mut Touched) {
        let instances: Vec<InstanceId> =
            self.instances_on(name).map(|row| row.value.id.clone()).collect();
        for id in instances {
            self.drop_instance(name, &id, at, touched);
        }
        let checks: Vec<CheckId> = self.checks_on(name).map(|row| row.value.id.clone()).collect();
        for id in checks {
            self.drop_check(name, &id, at, touched);
        }
        if self.nodes.remove_mut(name) {
            self.nodes_index = at;
            touched.nodes.insert(name.clone());
        }
    }

    /// Puts a row back as a snapshot holds it, without counting it as a change.
    pub(crate) fn restore_node(&mut self, row: Row<Node>) {
        self.nodes.insert_mut(row.value.name.clone(), row);
    }

    pub(crate) fn restore_instance(&mut self, node: NodeName, row: Row<Instance>) {
        let key = (node, row.value.id.clone());
        let service = row.value.service.clone();
        let mut members = self.services.get(&service).cloned().unwrap_or_else(Members::none);
        members.keys.insert_mut(key.clone());
        members.index = members.index.max(row.modified);
        self.services.insert_mut(service, members);
        self.instances.insert_mut(key, row);
    }

    pub(crate) fn restore_check(&mut self, node: NodeName, row: Row<Check>) {
        self.checks.insert_mut((node, row.value.id.clone()), row);
    }

    pub(crate) fn restore_indexes(&mut self, indexes: &Indexes) {
        self.nodes_index = indexes.nodes;
        self.checks_index = indexes.checks;
        self.names_index = indexes.names;
        self.emptied_index = indexes.emptied;
        for (service, index) in &indexes.services {
            if let Some(members) = self.services.get(service) {
                let members = Members { keys: members.keys.clone(), index: *index };
                self.services.insert_mut(service.clone(), members);
            }
        }
    }

    /// The log positions that a snapshot must carry beside the rows.
    pub fn indexes(&self) -> Indexes {
        Indexes {
            nodes: self.nodes_index,
            checks: self.checks_index,
            names: self.names_index,
            emptied: self.emptied_index,
            services: self.services.iter().map(|(name, m)| (name.clone(), m.index)).collect(),
        }
    }

    fn touch_checked(
        &mut self,
        node: &NodeName,
        about: Option<&InstanceId>,
        at: Index,
        touched: &mut Touched,
    ) {
        touched.nodes.insert(node.clone());
        match about {
            None => self.touch_services_on(node, at, touched),
            Some(id) => {
                if let Some(row) = self.instances.get(&(node.clone(), id.clone())) {
                    let service = row.value.service.clone();
                    self.touch_service(&service, at, touched);
                }
            }
        }
    }

    fn touch_services_on(&mut self, node: &NodeName, at: Index, touched: &mut Touched) {
        let services: BTreeSet<ServiceName> =
            self.instances_on(node).map(|row| row.value.service.clone()).collect();
        for service in services {
            self.touch_service(&service, at, touched);
        }
    }

    fn touch_service(&mut self, service: &ServiceName, at: Index, touched: &mut Touched) {
        if let Some(members) = self.services.get(service) {
            let members = Members { keys: members.keys.clone(), index: at };
            self.services.insert_mut(service.clone(), members);
        }
        touched.services.insert(service.clone());
    }

    fn leave_service(
        &mut self,
        service: &ServiceName,
        key: &InstanceKey,
        at: Index,
        touched: &mut Touched,
    ) {
        touched.services.insert(service.clone());
        touched.names = true;
        self.names_index = at;
        let Some(members) = self.services.get(service) else { return };
        let mut members = Members { keys: members.keys.clone(), index: at };
        members.keys.remove_mut(key);
        if members.keys.is_empty() {
            self.services.remove_mut(service);
            self.emptied_index = at;
        } else {
            self.services.insert_mut(service.clone(), members);
        }
    }
}

/// The log positions of the catalog's tables and services, as a snapshot carries them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Indexes {
    /// Of the list of nodes.
    pub nodes: Index,
    /// Of the checks.
    pub checks: Index,
    /// Of the service names and their tags.
    pub names: Index,
    /// Of the last removal of a whole service.
    pub emptied: Index,
    /// Of each service.
    pub services: BTreeMap<ServiceName, Index>,
}

impl Indexes {
    /// Takes over what `other` knows besides.
    pub(crate) fn append(&mut self, other: Self) {
        self.nodes = self.nodes.max(other.nodes);
        self.checks = self.checks.max(other.checks);
        self.names = self.names.max(other.names);
        self.emptied = self.emptied.max(other.emptied);
        self.services.extend(other.services);
    }

    /// Makes all of them `at`.
    pub(crate) fn rebase(&mut self, at: Index) {
        (self.nodes, self.checks, self.names, self.emptied) = (at, at, at, at);
        self.services.values_mut().for_each(|index| *index = at);
    }
}

impl Members {
    fn none() -> Self {
        Self { keys: RedBlackTreeSetSync::new_sync(), index: Index(0) }
    }
}

/// Stores `value` under `key`, keeping the entry that created it.
pub(crate) fn upsert<K: Ord, T>(
    table: &mut RedBlackTreeMapSync<K, Row<T>>,
    key: K,
    value: T,
    at: Index,
) {
    let created = table.get(&key).map_or(at, |row| row.created);
    table.insert_mut(key, Row { value: Arc::new(value), created, modified: at });
}

/// The id of a node's liveness check.
pub fn liveness_id() -> Option<CheckId> {
    NODE_LIVENESS_CHECK.parse().ok()
}

fn first_instance_id() -> InstanceId {
    FIRST_PRINTABLE.parse().expect("a space is printable")
}

fn first_check_id() -> CheckId {
    FIRST_PRINTABLE.parse().expect("a space is printable")
}

/// The key of the pair that marks a node without an agent.
pub const EXTERNAL_META: &str = "hawser-external";

/// The least text that a printable id can be.
const FIRST_PRINTABLE: &str = " ";
