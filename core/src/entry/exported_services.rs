//! `exported-services`: which services peers may use.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::EntryMeta;
use super::fault::{Fault, SERVICE_RULE};
use crate::name::{PeerName, ServiceName};

/// `exported-services/default`: which services peers may use.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct ExportedServices {
    /// Each service, or `*` for all, with its peers.
    #[serde(alias = "services")]
    pub services: Vec<ExportedService>,
    /// Free pairs.
    #[serde(alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
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

impl ExportedServices {
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.services.len() > EXPORTED_SERVICES_MAX {
            return Err(Fault::new("Services", "8192 is the most"));
        }
        let mut seen = BTreeSet::new();
        for (n, service) in self.services.iter().enumerate() {
            let field = |field: &str| format!("Services[{n}].{field}");
            if service.name != ANY && ServiceName::in_mesh(&service.name).is_err() {
                return Err(Fault::new(field("Name"), SERVICE_RULE));
            }
            if !seen.insert(&service.name) {
                return Err(Fault::new(field("Name"), "it is listed before: merge the two"));
            }
            if service.consumers.is_empty() {
                return Err(Fault::new(field("Consumers"), "there is none: name a Peer"));
            }
            let bad = |consumer: &Consumer| consumer.peer.parse::<PeerName>().is_err();
            if service.consumers.iter().any(bad) {
                return Err(Fault::new(field("Consumers.Peer"), SERVICE_RULE));
            }
        }
        Ok(())
    }
}

/// Consul's word for all services.
pub(super) const ANY: &str = "*";
const EXPORTED_SERVICES_MAX: usize = 8192;
