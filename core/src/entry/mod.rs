//! Config entries: what operators write once for a service, or for all, in Consul's JSON shape.
//!
//! Each kind has a file with its fields and with the rules of one entry by itself. A new kind is a
//! file, a variant of [`Kind`] and of [`Body`], and an arm wherever the compiler then asks.

mod fault;
mod header_edits;
mod mesh_gateway;
mod mutual_tls;
mod connections;
mod inbound_limits;
mod injection;
mod load_balancer;
mod locality;
mod rate_limits;
mod retries;
mod upstream;
mod proxy_defaults;
mod service_defaults;
mod service_resolver;
mod service_splitter;
mod service_router;
mod exported_services;
mod jwt_provider;
mod mesh;
mod request_limit;
mod entries;
mod reading;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::connections::Connections;
pub use self::entries::Entries;
pub use self::exported_services::{Consumer, ExportedService, ExportedServices};
pub(crate) use self::fault::pattern;
pub use self::header_edits::HeaderEdits;
pub use self::inbound_limits::{InboundLimits, RequestBodies, Shedding};
pub use self::injection::{
    FaultInjection, Injected, InjectedAbort, InjectedBandwidth, InjectedDelay, Mirror, Percentage,
};
pub use self::jwt_provider::{
    CacheConfig, Forwarding, HeaderLocation, JsonWebKeySet, JwtProvider, LocalKeys, Location,
    NamedLocation, RemoteKeys,
};
pub(crate) use self::load_balancer::RING_SIZE_MAX;
pub use self::load_balancer::{
    CookieConfig, HashPolicy, LeastRequestConfig, LoadBalancer, PolicyName, RingHashConfig,
    SlowStart,
};
pub use self::locality::{LocalityMode, PrioritizeByLocality};
pub use self::mesh::{Mesh, MeshHttp, MeshIncoming, RequestNormalization};
pub use self::mesh_gateway::{GatewayMode, MeshGatewayConfig};
pub use self::mutual_tls::MutualTlsMode;
pub use self::proxy_defaults::{ProxyDefaults, ProxyDefaultsConfig};
pub use self::rate_limits::{
    ANY_CALLER, CallerRateLimit, GlobalRateLimits, InstanceRateLimits, RateLimits, RouteRateLimit,
};
pub use self::request_limit::{AreaLimit, LimitMode, PerSecond, RequestLimit};
#[cfg(test)]
pub(crate) use self::retries::RETRY_CONDITIONS;
pub use self::retries::Retries;
pub use self::service_defaults::ServiceDefaults;
pub use self::service_resolver::{
    Failover, FailoverTarget, Redirect, ServiceResolver, Subset, Target,
};
pub(crate) use self::service_router::PSEUDO;
pub use self::service_router::{
    HeaderMatch, HttpMatch, IdleTimeout, QueryMatch, RouteDestination, RouteMatch, ServiceRoute,
    ServiceRouter,
};
pub(crate) use self::service_splitter::WHOLE;
pub use self::service_splitter::{ServiceSplit, ServiceSplitter, Sticky, Weight};
pub use self::upstream::{PassiveHealthCheck, Upstream, UpstreamConfig, UpstreamLimits};
use crate::name::ServiceName;

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
    /// Which share of one service's requests goes where.
    ServiceSplitter,
    /// Which of one service's requests go where.
    ServiceRouter,
    /// Which services peers may use; its one entry is named `default`.
    ExportedServices,
    /// Whose tokens requests may bring.
    JwtProvider,
    /// What holds for the whole mesh; its one entry is named `mesh`.
    Mesh,
    /// How much one host may ask of each server.
    RequestLimit,
}

impl Kind {
    /// Consul's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ProxyDefaults => "proxy-defaults",
            Self::ServiceDefaults => "service-defaults",
            Self::ServiceResolver => "service-resolver",
            Self::ServiceSplitter => "service-splitter",
            Self::ServiceRouter => "service-router",
            Self::ExportedServices => "exported-services",
            Self::JwtProvider => "jwt-provider",
            Self::Mesh => "mesh",
            Self::RequestLimit => "control-plane-request-limit",
        }
    }

    /// The name of its one entry; none where entries are named after services.
    pub const fn fixed_name(self) -> Option<&'static str> {
        match self {
            Self::ProxyDefaults => Some(PROXY_DEFAULTS_NAME),
            Self::ExportedServices => Some(EXPORTED_SERVICES_NAME),
            Self::Mesh => Some(MESH_NAME),
            Self::ServiceDefaults
            | Self::ServiceResolver
            | Self::ServiceSplitter
            | Self::ServiceRouter
            | Self::JwtProvider
            | Self::RequestLimit => None,
        }
    }

    /// Every kind.
    pub const ALL: [Self; 9] = [
        Self::ProxyDefaults,
        Self::ServiceDefaults,
        Self::ServiceResolver,
        Self::ServiceSplitter,
        Self::ServiceRouter,
        Self::ExportedServices,
        Self::JwtProvider,
        Self::Mesh,
        Self::RequestLimit,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no kind of entry.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{given:?} is no kind of config entry: use one of {}", Kind::ALL.map(Kind::as_str).join(", "))]
pub struct UnknownKind {
    given: String,
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| UnknownKind { given: text.to_owned() })
    }
}

/// Which entry: its kind and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EntryKey {
    /// Its kind.
    pub kind: Kind,
    /// Its name: a service's, or the kind's fixed one.
    pub name: Arc<str>,
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
    /// For shares of one service's requests.
    ServiceSplitter(ServiceSplitter),
    /// For one service's requests.
    ServiceRouter(ServiceRouter),
    /// For peers.
    ExportedServices(ExportedServices),
    /// For callees that ask for tokens.
    JwtProvider(JwtProvider),
    /// For the whole mesh.
    Mesh(Mesh),
    /// For the servers.
    RequestLimit(RequestLimit),
}

impl Body {
    /// Which kind it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::ProxyDefaults(_) => Kind::ProxyDefaults,
            Self::ServiceDefaults(_) => Kind::ServiceDefaults,
            Self::ServiceResolver(_) => Kind::ServiceResolver,
            Self::ServiceSplitter(_) => Kind::ServiceSplitter,
            Self::ServiceRouter(_) => Kind::ServiceRouter,
            Self::ExportedServices(_) => Kind::ExportedServices,
            Self::JwtProvider(_) => Kind::JwtProvider,
            Self::Mesh(_) => Kind::Mesh,
            Self::RequestLimit(_) => Kind::RequestLimit,
        }
    }

    /// The level that a cluster must have reached for it: see [`crate::operation::LEVEL`].
    pub(crate) fn level(&self) -> u32 {
        match self {
            Self::RequestLimit(_) => 2,
            Self::ServiceDefaults(entry) => entry.level(),
            _ => 0,
        }
    }

    /// Reads what an entry of `kind` says, in Consul's JSON shape without kind and name.
    ///
    /// # Errors
    /// The format's own, and one that names the field for a field that the kind does not have.
    pub fn read<'de, D: Deserializer<'de>>(kind: Kind, json: D) -> Result<Self, D::Error> {
        Ok(match kind {
            Kind::ProxyDefaults => Self::ProxyDefaults(Deserialize::deserialize(json)?),
            Kind::ServiceDefaults => Self::ServiceDefaults(Deserialize::deserialize(json)?),
            Kind::ServiceResolver => Self::ServiceResolver(Deserialize::deserialize(json)?),
            Kind::ServiceSplitter => Self::ServiceSplitter(Deserialize::deserialize(json)?),
            Kind::ServiceRouter => Self::ServiceRouter(Deserialize::deserialize(json)?),
            Kind::ExportedServices => Self::ExportedServices(Deserialize::deserialize(json)?),
            Kind::JwtProvider => Self::JwtProvider(Deserialize::deserialize(json)?),
            Kind::Mesh => Self::Mesh(Deserialize::deserialize(json)?),
            Kind::RequestLimit => Self::RequestLimit(Deserialize::deserialize(json)?),
        })
    }

    fn check(&self) -> Result<(), fault::Fault> {
        match self {
            Self::ProxyDefaults(entry) => entry.check(),
            Self::ServiceDefaults(entry) => entry.check(),
            Self::ServiceResolver(entry) => entry.check(),
            Self::ServiceSplitter(entry) => entry.check(),
            Self::ServiceRouter(entry) => entry.check(),
            Self::ExportedServices(entry) => entry.check(),
            Self::JwtProvider(entry) => entry.check(),
            Self::Mesh(_) => Ok(()),
            Self::RequestLimit(entry) => entry.check(),
        }
    }
}

/// Consul's JSON shape, without kind and name.
impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::ProxyDefaults(entry) => entry.serialize(serializer),
            Self::ServiceDefaults(entry) => entry.serialize(serializer),
            Self::ServiceResolver(entry) => entry.serialize(serializer),
            Self::ServiceSplitter(entry) => entry.serialize(serializer),
            Self::ServiceRouter(entry) => entry.serialize(serializer),
            Self::ExportedServices(entry) => entry.serialize(serializer),
            Self::JwtProvider(entry) => entry.serialize(serializer),
            Self::Mesh(entry) => entry.serialize(serializer),
            Self::RequestLimit(entry) => entry.serialize(serializer),
        }
    }
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
    /// A field that cannot be.
    #[error("{kind}/{name}: {field}: {why}")]
    Field {
        /// The entry's kind.
        kind: Kind,
        /// The entry's name.
        name: String,
        /// The field.
        field: String,
        /// What is wrong with it, and what it may be.
        why: String,
    },
}

impl Entry {
    /// Checks `body` and makes it the entry called `name`.
    ///
    /// # Errors
    /// [`InvalidEntry`], which names the entry, the field and what it may be.
    pub fn new(name: &str, body: Body) -> Result<Self, InvalidEntry> {
        let entry = Self::stored(name, body)?;
        let kind = entry.key.kind;
        if kind.fixed_name().is_none() && kind != Kind::JwtProvider {
            // The catalog knows other names, but nothing that an entry speaks of has one.
            ServiceName::in_mesh(name).map_err(|why| InvalidEntry::Name {
                kind,
                name: name.to_owned(),
                why,
            })?;
        }
        entry.body.check().map_err(|fault| InvalidEntry::Field {
            kind,
            name: name.to_owned(),
            field: fault.field,
            why: fault.why.into_owned(),
        })?;
        Ok(entry)
    }

    /// The entry called `name`, as it was stored: its body was checked when it was written, and a
    /// rule that came later must not make a log or a snapshot unreadable.
    ///
    /// # Errors
    /// [`InvalidEntry`], for a name that its kind cannot have.
    pub fn stored(name: &str, body: Body) -> Result<Self, InvalidEntry> {
        let (kind, owned) = (body.kind(), || name.to_owned());
        match kind.fixed_name() {
            Some(expected) if name != expected => {
                return Err(InvalidEntry::FixedName { kind, expected, name: owned() });
            }
            Some(_) => {}
            None => {
                let parsed = name.parse::<ServiceName>();
                parsed.map_err(|why| InvalidEntry::Name { kind, name: owned(), why })?;
            }
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

/// The name of the one `proxy-defaults` entry.
pub const PROXY_DEFAULTS_NAME: &str = "global";

/// The name of the one `exported-services` entry.
pub const EXPORTED_SERVICES_NAME: &str = "default";

/// The name of the one `mesh` entry.
pub const MESH_NAME: &str = "mesh";

#[cfg(test)]
mod tests;
