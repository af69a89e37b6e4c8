//! All config entries, and what they say together.

use std::collections::BTreeSet;

use rpds::RedBlackTreeMapSync;

use super::exported_services::{ANY, ExportedService};
use super::fault::{DETECTED, UDP};
use super::jwt_provider::JwtProvider;
use super::locality::LocalityMode;
use super::mesh_gateway::GatewayMode;
use super::mutual_tls::MutualTlsMode;
use super::request_limit::RequestLimit;
use super::service_defaults::ServiceDefaults;
use super::service_resolver::{ServiceResolver, Subset};
use super::service_router::ServiceRouter;
use super::service_splitter::ServiceSplitter;
use super::{Body, EXPORTED_SERVICES_NAME, Entry, EntryKey, Kind, MESH_NAME, PROXY_DEFAULTS_NAME};
use crate::catalog::{Protocol, Row, upsert};
use crate::clock::Index;
use crate::name::{PeerName, ServiceName};
use crate::normal;
use crate::peering::Exports;

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

    /// How much one host may ask of each server, by the names of the entries that say so.
    pub fn request_limits(&self) -> impl Iterator<Item = (&str, &RequestLimit)> {
        let from = EntryKey { kind: Kind::RequestLimit, name: "".into() };
        let rows = self.rows.range(from..);
        rows.filter_map(|(key, row)| match row.value.body() {
            Body::RequestLimit(entry) => Some((&*key.name, entry)),
            _ => None,
        })
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

    /// How requests are made normal.
    pub fn normal(&self) -> normal::Rules {
        match self.body(Kind::Mesh, MESH_NAME) {
            Some(Body::Mesh(entry)) => entry.rules(),
            _ => normal::Rules::default(),
        }
    }

    /// Whether instances of `service` take callers without TLS.
    pub(crate) fn takes_plaintext(&self, service: &ServiceName) -> bool {
        let own = self.service_defaults(service).map(|entry| entry.mutual_tls_mode);
        match own.unwrap_or_default() {
            MutualTlsMode::Permissive => true,
            MutualTlsMode::Strict => false,
            MutualTlsMode::Inherit => self.takes_plaintext_by_default(),
        }
    }

    fn takes_plaintext_by_default(&self) -> bool {
        match self.body(Kind::ProxyDefaults, PROXY_DEFAULTS_NAME) {
            Some(Body::ProxyDefaults(all)) => all.mutual_tls_mode == MutualTlsMode::Permissive,
            _ => false,
        }
    }

    /// Whether all instances of `service` share its traffic, however near they are.
    pub(crate) fn ignores_locality(&self, service: &ServiceName) -> bool {
        let own = self.service_resolver(service).and_then(|entry| entry.prioritize_by_locality);
        let all = || match self.body(Kind::ProxyDefaults, PROXY_DEFAULTS_NAME) {
            Some(Body::ProxyDefaults(all)) => all.prioritize_by_locality,
            _ => None,
        };
        own.or_else(all).is_some_and(|said| said.mode == LocalityMode::None)
    }

    /// An entry that lets callers without TLS pass though `mesh` does not allow that.
    pub(crate) fn unallowed_plaintext(&self) -> Option<&EntryKey> {
        if matches!(self.body(Kind::Mesh, MESH_NAME), Some(Body::Mesh(mesh)) if mesh.allow_permissive)
        {
            return None;
        }
        let row = self.rows.values().find(|row| match row.value.body() {
            Body::ServiceDefaults(entry) => entry.mutual_tls_mode == MutualTlsMode::Permissive,
            Body::ProxyDefaults(entry) => entry.mutual_tls_mode == MutualTlsMode::Permissive,
            _ => false,
        })?;
        Some(row.value.key())
    }

    pub(crate) fn jwt_provider(&self, name: &str) -> Option<&JwtProvider> {
        match self.body(Kind::JwtProvider, name)? {
            Body::JwtProvider(entry) => Some(entry),
            _ => None,
        }
    }

    /// One subset of `service`.
    pub fn subset(&self, service: &ServiceName, subset: &str) -> Option<&Subset> {
        self.service_resolver(service)?.subsets.get(subset)
    }

    /// The services that entries say more of than their protocol.
    pub(crate) fn with_chains(&self) -> BTreeSet<ServiceName> {
        let says = [Kind::ServiceResolver, Kind::ServiceSplitter, Kind::ServiceRouter];
        let keys = self.rows.keys().filter(|key| says.contains(&key.kind));
        keys.filter_map(|key| key.name.parse().ok()).collect()
    }

    pub(crate) fn service_splitter(&self, service: &ServiceName) -> Option<&ServiceSplitter> {
        match self.body(Kind::ServiceSplitter, service.as_str())? {
            Body::ServiceSplitter(entry) => Some(entry),
            _ => None,
        }
    }

    pub(crate) fn service_router(&self, service: &ServiceName) -> Option<&ServiceRouter> {
        match self.body(Kind::ServiceRouter, service.as_str())? {
            Body::ServiceRouter(entry) => Some(entry),
            _ => None,
        }
    }

    /// The protocol that the entries give `service`, if they say.
    pub(crate) fn protocol(&self, service: &ServiceName) -> Option<Protocol> {
        let word = self.protocol_word(service).filter(|word| *word != DETECTED)?;
        Some(Protocol::from_consul(word))
    }

    /// Whether the entries ask to detect what `service` speaks, should nobody state it.
    pub(crate) fn detects_protocol(&self, service: &ServiceName) -> bool {
        self.protocol_word(service) == Some(DETECTED)
    }

    /// Whether the entries say that `service` speaks UDP. To whatever does not know of datagrams it
    /// is a TCP service.
    pub(crate) fn speaks_udp(&self, service: &ServiceName) -> bool {
        self.protocol_word(service) == Some(UDP)
    }

    fn protocol_word(&self, service: &ServiceName) -> Option<&str> {
        let own = self.service_defaults(service).and_then(|entry| entry.protocol.as_deref());
        let shared = || match self.body(Kind::ProxyDefaults, PROXY_DEFAULTS_NAME)? {
            Body::ProxyDefaults(entry) => entry.config.protocol.as_deref(),
            _ => None,
        };
        own.or_else(shared)
    }

    /// Which way connections to `service` of a peer take.
    pub fn gateway_mode(&self, service: &ServiceName) -> GatewayMode {
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
            // What is not in the mesh cannot be called from elsewhere.
            if !name.is_label() {
                continue;
            }
            exports.entry(name).or_default().extend(peers(service));
        }
        let everyone: Vec<PeerName> = all.into_iter().flat_map(peers).collect();
        if !everyone.is_empty() {
            let callable =
                |name: &&ServiceName| name.is_label() && !NEVER_EXPORTED.contains(&name.as_str());
            for service in services.filter(callable) {
                exports.entry(service.clone()).or_default().extend(everyone.iter().cloned());
            }
        }
        exports
    }

    fn body(&self, kind: Kind, name: &str) -> Option<&Body> {
        Some(self.rows.get(&EntryKey { kind, name: name.into() })?.value.body())
    }
}

/// What `*` does not export: the servers and the gateways themselves.
const NEVER_EXPORTED: [&str; 2] = ["consul", "mesh-gateway"];
