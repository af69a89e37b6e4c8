//! Config entries: what operators write once for a service, or for all, in Consul's JSON shape.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize};

use crate::catalog::{Protocol, Row, upsert};
use crate::clock::Index;
use crate::duration;
use crate::name::{PeerName, ServiceName};
use crate::peering::Exports;

/// Free pairs on an entry.
pub type EntryMeta = BTreeMap<String, String>;

/// Which kind of entry.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// Defaults for every service; its one entry is named `global`.
    ProxyDefaults,
    /// Defaults for one service.
    ServiceDefaults,
    /// How one service's targets are reached.
    ServiceResolver,
    /// Which services peers may use; its one entry is named `default`.
    ExportedServices,
}

impl Kind {
    /// Consul's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProxyDefaults => "proxy-defaults",
            Self::ServiceDefaults => "service-defaults",
            Self::ServiceResolver => "service-resolver",
            Self::ExportedServices => "exported-services",
        }
    }

    /// Every kind.
    pub const ALL: [Self; 4] =
        [Self::ProxyDefaults, Self::ServiceDefaults, Self::ServiceResolver, Self::ExportedServices];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no kind of entry.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{0:?} is no kind of config entry: use proxy-defaults, service-defaults, service-resolver or \
         exported-services"
)]
pub struct UnknownKind(String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// Which entry: its kind and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EntryKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name: a service's, or `global`.
    pub name: Arc<str>,
}

/// `proxy-defaults/global`: what holds for every service.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyDefaults {
    /// The only key read today is `protocol`.
    #[serde(default, rename = "Config", alias = "config")]
    pub config: ProxyDefaultsConfig,
    /// How services of peers are reached, where `service-defaults` do not say.
    #[serde(
        default,
        rename = "MeshGateway",
        alias = "mesh_gateway",
        skip_serializing_if = "MeshGatewayConfig::is_default"
    )]
    pub mesh_gateway: MeshGatewayConfig,
    /// Free pairs.
    #[serde(default, rename = "Meta", alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// The settings inside `proxy-defaults`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyDefaultsConfig {
    /// The protocol of services that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// Which way connections to services of peers take.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum GatewayMode {
    /// To the peer's gateways where it has any, else directly.
    #[default]
    #[serde(rename = "")]
    Default,
    /// Directly to the instances: both networks are one.
    #[serde(rename = "none")]
    None,
    /// To the gateways of this cluster, which pass on to those of the peer.
    #[serde(rename = "local")]
    Local,
    /// To the gateways of the peer.
    #[serde(rename = "remote")]
    Remote,
}

impl GatewayMode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Default, Self::None, Self::Local, Self::Remote];

    /// Consul's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::None => "none",
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// The settings inside `MeshGateway`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshGatewayConfig {
    /// Which way to take.
    #[serde(default, rename = "Mode", alias = "mode")]
    pub mode: GatewayMode,
}

impl MeshGatewayConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `service-defaults/<service>`: what holds for one service.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceDefaults {
    /// `tcp`, `http`, `http2` or `grpc`.
    #[serde(
        default,
        rename = "Protocol",
        alias = "protocol",
        skip_serializing_if = "Option::is_none"
    )]
    pub protocol: Option<String>,
    /// Longest wait for the application to accept a connection, in milliseconds.
    #[serde(
        default,
        rename = "LocalConnectTimeoutMs",
        alias = "local_connect_timeout_ms",
        skip_serializing_if = "Option::is_none"
    )]
    pub local_connect_timeout_ms: Option<u32>,
    /// Most connections that one instance's proxy accepts at once; zero is no limit of its own.
    #[serde(
        default,
        rename = "MaxInboundConnections",
        alias = "max_inbound_connections",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_inbound_connections: Option<u32>,
    /// How the service is reached where it is a peer's.
    #[serde(
        default,
        rename = "MeshGateway",
        alias = "mesh_gateway",
        skip_serializing_if = "MeshGatewayConfig::is_default"
    )]
    pub mesh_gateway: MeshGatewayConfig,
    /// Free pairs.
    #[serde(default, rename = "Meta", alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// `service-resolver/<service>`: how its callers reach it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceResolver {
    /// Longest wait for a connection to an instance.
    #[serde(
        default,
        rename = "ConnectTimeout",
        alias = "connect_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub connect_timeout: Option<Duration>,
    /// Longest wait for a whole HTTP response, all tries together.
    #[serde(
        default,
        rename = "RequestTimeout",
        alias = "request_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub request_timeout: Option<Duration>,
    /// Where traffic goes while no instance of the service can take it, by subset; the only key
    /// today is `*`. Without it, peers that export a service of the same name stand in. An empty
    /// list of targets switches that off.
    #[serde(
        default,
        rename = "Failover",
        alias = "failover",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub failover: BTreeMap<String, Failover>,
    /// Free pairs.
    #[serde(default, rename = "Meta", alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// Where traffic goes while no instance can take it: in this order.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    /// Another service of the same cluster; not together with `targets`.
    #[serde(
        default,
        rename = "Service",
        alias = "service",
        skip_serializing_if = "String::is_empty"
    )]
    pub service: String,
    /// Services here or in peers.
    #[serde(default, rename = "Targets", alias = "targets", skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<FailoverTarget>,
}

/// One place where a service may be served instead.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverTarget {
    /// The service; empty for the resolver's own.
    #[serde(
        default,
        rename = "Service",
        alias = "service",
        skip_serializing_if = "String::is_empty"
    )]
    pub service: String,
    /// The peer; empty for one's own cluster.
    #[serde(
        default,
        rename = "Peer",
        alias = "peer",
        alias = "peer_name",
        skip_serializing_if = "String::is_empty"
    )]
    pub peer: String,
}

/// `exported-services/default`: which services peers may use.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedServices {
    /// Each service, or `*` for all, with its peers.
    #[serde(default, rename = "Services", alias = "services")]
    pub services: Vec<ExportedService>,
    /// Free pairs.
    #[serde(default, rename = "Meta", alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// One service that peers may use.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedService {
    /// Its name, or `*`.
    #[serde(rename = "Name", alias = "name")]
    pub name: String,
    /// Who may use it.
    #[serde(default, rename = "Consumers", alias = "consumers")]
    pub consumers: Vec<Consumer>,
}

/// One who may use an exported service.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consumer {
    /// The peer's name in this cluster.
    #[serde(rename = "Peer", alias = "peer", alias = "PeerName", alias = "peer_name")]
    pub peer: String,
}

/// Where a service may be served instead, with its names checked.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// The service.
    pub service: ServiceName,
    /// The peer; none for one's own cluster.
    pub peer: Option<PeerName>,
}

impl ServiceResolver {
    /// The targets that stand in for `service`; none when the entry does not say.
    pub fn failover_of(&self, service: &ServiceName) -> Option<Vec<Target>> {
        let rule = self.failover.get(ANY_SUBSET)?;
        let own = Target { service: service.clone(), peer: None };
        let named = (!rule.service.is_empty())
            .then(|| FailoverTarget { service: rule.service.clone(), peer: String::new() });
        let mut targets = Vec::new();
        for target in named.iter().chain(&rule.targets) {
            let service = match target.service.as_str() {
                "" => Some(service.clone()),
                name => name.parse().ok(),
            };
            let peer = match target.peer.as_str() {
                "" => Some(None),
                name => name.parse().ok().map(Some),
            };
            let target = service.zip(peer).map(|(service, peer)| Target { service, peer });
            targets.extend(target.filter(|target| *target != own && !targets.contains(target)));
        }
        Some(targets)
    }

    fn check_failover(&self) -> Result<(), (String, &'static str)> {
        for (subset, rule) in &self.failover {
            let at = |field: &str| format!("Failover[{subset:?}].{field}");
            if subset != ANY_SUBSET {
                return Err((format!("Failover[{subset:?}]"), "there are no subsets: use \"*\""));
            }
            if !rule.service.is_empty() && !rule.targets.is_empty() {
                return Err((at("Service"), "it cannot stand beside Targets: list it there"));
            }
            if rule.targets.len() > FAILOVER_TARGETS_MAX {
                return Err((at("Targets"), "16 is the most"));
            }
            if !rule.service.is_empty() && rule.service.parse::<ServiceName>().is_err() {
                return Err((at("Service"), SERVICE_RULE));
            }
            for (n, target) in rule.targets.iter().enumerate() {
                if !target.service.is_empty() && target.service.parse::<ServiceName>().is_err() {
                    return Err((at(&format!("Targets[{n}].Service")), SERVICE_RULE));
                }
                if !target.peer.is_empty() && target.peer.parse::<PeerName>().is_err() {
                    return Err((at(&format!("Targets[{n}].Peer")), SERVICE_RULE));
                }
                if target.service.is_empty() && target.peer.is_empty() {
                    return Err((
                        at(&format!("Targets[{n}]")),
                        "it names neither Service nor Peer",
                    ));
                }
            }
        }
        Ok(())
    }
}

impl ExportedServices {
    fn check(&self) -> Result<(), (String, &'static str)> {
        if self.services.len() > EXPORTED_SERVICES_MAX {
            return Err(("Services".into(), "8192 is the most"));
        }
        let mut seen = std::collections::BTreeSet::new();
        for (n, service) in self.services.iter().enumerate() {
            let field = |field: &str| format!("Services[{n}].{field}");
            if service.name != ANY && service.name.parse::<ServiceName>().is_err() {
                return Err((field("Name"), SERVICE_RULE));
            }
            if !seen.insert(&service.name) {
                return Err((field("Name"), "it is listed before: merge the two"));
            }
            if service.consumers.is_empty() {
                return Err((field("Consumers"), "there is none: name a Peer"));
            }
            let bad = |consumer: &Consumer| consumer.peer.parse::<PeerName>().is_err();
            if service.consumers.iter().any(bad) {
                return Err((field("Consumers.Peer"), SERVICE_RULE));
            }
        }
        Ok(())
    }
}

/// What an entry says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body {
    /// For every service.
    ProxyDefaults(ProxyDefaults),
    /// For one service.
    ServiceDefaults(ServiceDefaults),
    /// For one service's callers.
    ServiceResolver(ServiceResolver),
    /// For peers.
    ExportedServices(ExportedServices),
}

/// One config entry, checked when it was made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    key: EntryKey,
    body: Body,
}

/// Why an entry cannot be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidEntry {
    /// The kind's one entry has a fixed name.
    #[error("{kind}: Name must be {expected:?}, not {name:?}")]
    FixedName {
        /// The entry's kind.
        kind: Kind,
        /// The name it must have.
        expected: &'static str,
        /// The name that was given.
        name: String,
    },
    /// The name is no service's.
    #[error("{kind}/{name}: Name: {why}")]
    Name {
        /// The entry's kind.
        kind: Kind,
        /// The name that was given.
        name: String,
        /// What is wrong with it.
        why: crate::name::InvalidName,
    },
    /// A protocol that no proxy speaks.
    #[error("{kind}/{name}: Protocol: {given:?} is none of tcp, http, http2 and grpc")]
    Protocol {
        /// The entry's kind.
        kind: Kind,
        /// The entry's name.
        name: String,
        /// What was given.
        given: String,
    },
    /// A time that is zero or above its bound.
    #[error("{kind}/{name}: {field} must be more than 0 and at most {max}")]
    OutOfRange {
        /// The entry's kind.
        kind: Kind,
        /// The entry's name.
        name: String,
        /// The field.
        field: &'static str,
        /// The greatest value allowed, in words.
        max: &'static str,
    },
    /// A field that cannot be.
    #[error("{kind}/{name}: {field}: {why}")]
    Field {
        /// The entry's kind.
        kind: Kind,
        /// The entry's name.
        name: String,
        /// The field.
        field: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Entry {
    /// Checks `body` and makes it the entry called `name`.
    ///
    /// # Errors
    /// [`InvalidEntry`], which names the entry, the field and what it may be.
    pub fn new(name: &str, body: Body) -> Result<Self, InvalidEntry> {
        let kind = body.kind();
        let protocol = match &body {
            Body::ProxyDefaults(entry) => {
                if name != PROXY_DEFAULTS_NAME {
                    let (expected, name) = (PROXY_DEFAULTS_NAME, name.to_owned());
                    return Err(InvalidEntry::FixedName { kind, expected, name });
                }
                entry.config.protocol.as_ref()
            }
            Body::ServiceDefaults(entry) => entry.protocol.as_ref(),
            Body::ExportedServices(_) if name != EXPORTED_SERVICES_NAME => {
                let (expected, name) = (EXPORTED_SERVICES_NAME, name.to_owned());
                return Err(InvalidEntry::FixedName { kind, expected, name });
            }
            Body::ServiceResolver(_) | Body::ExportedServices(_) => None,
        };
        let checked = match &body {
            Body::ServiceResolver(entry) => entry.check_failover(),
            Body::ExportedServices(entry) => entry.check(),
            Body::ProxyDefaults(_) | Body::ServiceDefaults(_) => Ok(()),
        };
        if let Err((field, why)) = checked {
            return Err(InvalidEntry::Field { kind, name: name.to_owned(), field, why });
        }
        if kind != Kind::ProxyDefaults
            && let Err(why) = name.parse::<ServiceName>()
        {
            return Err(InvalidEntry::Name { kind, name: name.to_owned(), why });
        }
        if let Some(given) = protocol
            && !PROTOCOLS.contains(&given.as_str())
        {
            let (name, given) = (name.to_owned(), given.clone());
            return Err(InvalidEntry::Protocol { kind, name, given });
        }
        if let Body::ServiceResolver(entry) = &body {
            let timeouts = [
                ("ConnectTimeout", entry.connect_timeout, CONNECT_TIMEOUT_MAX, "60s"),
                ("RequestTimeout", entry.request_timeout, REQUEST_TIMEOUT_MAX, "24h"),
            ];
            for (field, span, bound, max) in timeouts {
                if span.is_some_and(|span| span.is_zero() || span > bound) {
                    return Err(InvalidEntry::OutOfRange {
                        kind,
                        name: name.to_owned(),
                        field,
                        max,
                    });
                }
            }
        }
        if let Body::ServiceDefaults(entry) = &body
            && entry.local_connect_timeout_ms.is_some_and(|ms| ms == 0 || ms > 60_000)
        {
            let (field, max) = ("LocalConnectTimeoutMs", "60000");
            return Err(InvalidEntry::OutOfRange { kind, name: name.to_owned(), field, max });
        }
        Ok(Self { key: EntryKey { kind, name: name.into() }, body })
    }

    /// Which entry it is.
    pub fn key(&self) -> &EntryKey {
        &self.key
    }

    /// What it says.
    pub fn body(&self) -> &Body {
        &self.body
    }
}

impl Body {
    /// Which kind it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::ProxyDefaults(_) => Kind::ProxyDefaults,
            Self::ServiceDefaults(_) => Kind::ServiceDefaults,
            Self::ServiceResolver(_) => Kind::ServiceResolver,
            Self::ExportedServices(_) => Kind::ExportedServices,
        }
    }
}

/// All config entries.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    rows: RedBlackTreeMapSync<EntryKey, Row<Entry>>,
    index: Index,
}

impl Entries {
    /// The last entry of the log that changed any of them.
    pub fn index(&self) -> Index {
        self.index
    }

    /// Every entry, by kind and name.
    pub fn iter(&self) -> impl Iterator<Item = &Row<Entry>> {
        self.rows.values()
    }

    /// One entry.
    pub fn get(&self, key: &EntryKey) -> Option<&Row<Entry>> {
        self.rows.get(key)
    }

    /// Stores `entry` as of log position `at`; an equal one stays as it was. Whether it changed.
    pub fn put(&mut self, entry: Entry, at: Index) -> bool {
        if self.rows.get(entry.key()).is_some_and(|row| *row.value == entry) {
            return false;
        }
        upsert(&mut self.rows, entry.key().clone(), entry, at);
        self.index = at;
        true
    }

    /// Removes one entry; whether there was one.
    pub fn remove(&mut self, key: &EntryKey, at: Index) -> bool {
        let removed = self.rows.remove_mut(key);
        if removed {
            self.index = at;
        }
        removed
    }

    /// Puts rows back as a snapshot holds them.
    pub fn restore(rows: impl IntoIterator<Item = Row<Entry>>, index: Index) -> Self {
        let rows = rows.into_iter().map(|row| (row.value.key().clone(), row)).collect();
        Self { rows, index }
    }

    pub(crate) fn service_defaults(&self, service: &ServiceName) -> Option<&ServiceDefaults> {
        match self.body(Kind::ServiceDefaults, service.as_str())? {
            Body::ServiceDefaults(entry) => Some(entry),
            _ => None,
        }
    }

    pub(crate) fn service_resolver(&self, service: &ServiceName) -> Option<&ServiceResolver> {
        match self.body(Kind::ServiceResolver, service.as_str())? {
            Body::ServiceResolver(entry) => Some(entry),
            _ => None,
        }
    }

    /// The protocol that the entries give `service`, if they say.
    pub(crate) fn protocol(&self, service: &ServiceName) -> Option<Protocol> {
        let own = self.service_defaults(service).and_then(|entry| entry.protocol.as_deref());
        let shared = || match self.body(Kind::ProxyDefaults, PROXY_DEFAULTS_NAME)? {
            Body::ProxyDefaults(entry) => entry.config.protocol.as_deref(),
            _ => None,
        };
        own.or_else(shared).map(Protocol::from_consul)
    }

    /// Which way connections to `service` of a peer take.
    pub(crate) fn gateway_mode(&self, service: &ServiceName) -> GatewayMode {
        let own = self.service_defaults(service).map(|entry| entry.mesh_gateway.mode);
        let shared = || match self.body(Kind::ProxyDefaults, PROXY_DEFAULTS_NAME) {
            Some(Body::ProxyDefaults(entry)) => entry.mesh_gateway.mode,
            _ => GatewayMode::Default,
        };
        own.filter(|mode| *mode != GatewayMode::Default).unwrap_or_else(shared)
    }

    /// Which of `services` the entries let which peers use.
    pub fn exports<'a>(&self, services: impl Iterator<Item = &'a ServiceName>) -> Exports {
        let mut exports = Exports::new();
        let Some(Body::ExportedServices(entry)) =
            self.body(Kind::ExportedServices, EXPORTED_SERVICES_NAME)
        else {
            return exports;
        };
        let peers = |service: &ExportedService| -> Vec<PeerName> {
            service.consumers.iter().filter_map(|consumer| consumer.peer.parse().ok()).collect()
        };
        let (all, named): (Vec<_>, Vec<_>) =
            entry.services.iter().partition(|service| service.name == ANY);
        for service in named {
            let Ok(name) = service.name.parse::<ServiceName>() else { continue };
            exports.entry(name).or_default().extend(peers(service));
        }
        let everyone: Vec<PeerName> = all.into_iter().flat_map(peers).collect();
        if !everyone.is_empty() {
            for service in services.filter(|name| !NEVER_EXPORTED.contains(&name.as_str())) {
                exports.entry(service.clone()).or_default().extend(everyone.iter().cloned());
            }
        }
        exports
    }

    fn body(&self, kind: Kind, name: &str) -> Option<&Body> {
        Some(self.rows.get(&EntryKey { kind, name: name.into() })?.value.body())
    }
}

/// The name of the one `proxy-defaults` entry.
pub const PROXY_DEFAULTS_NAME: &str = "global";

/// The name of the one `exported-services` entry.
pub const EXPORTED_SERVICES_NAME: &str = "default";

/// Consul's word for all subsets, and for all services.
const ANY_SUBSET: &str = "*";
const ANY: &str = "*";
/// What `*` does not export: the servers and the gateways themselves.
const NEVER_EXPORTED: [&str; 2] = ["consul", "mesh-gateway"];
const SERVICE_RULE: &str = "use at most 63 of a-z, 0-9 and -";
const FAILOVER_TARGETS_MAX: usize = 16;
const EXPORTED_SERVICES_MAX: usize = 8192;
const PROTOCOLS: [&str; 4] = ["tcp", "http", "http2", "grpc"];
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_entry_is_refused_with_its_field() {
        let resolver = |connect_timeout| {
            Body::ServiceResolver(ServiceResolver { connect_timeout, ..Default::default() })
        };
        let spoken = |protocol: &str| {
            let protocol = Some(protocol.to_owned());
            Body::ServiceDefaults(ServiceDefaults { protocol, ..Default::default() })
        };
        let cases = [
            ("web", spoken("htp"), "service-defaults/web: Protocol: \"htp\""),
            ("Web", spoken("http"), "service-defaults/Web: Name: "),
            ("all", Body::ProxyDefaults(ProxyDefaults::default()), "Name must be \"global\""),
            ("web", resolver(Some(Duration::ZERO)), "service-resolver/web: ConnectTimeout must"),
        ];
        for (name, body, expected) in cases {
            let refused = Entry::new(name, body).expect_err(expected).to_string();
            assert!(refused.contains(expected), "{refused:?} has no {expected:?}");
        }
    }

    #[test]
    fn an_unknown_field_is_named() {
        let refused = serde_json::from_str::<ServiceDefaults>(r#"{"Protcol":"http"}"#)
            .expect_err("a typing error");
        assert!(refused.to_string().contains("Protcol"), "{refused}");
    }
}
