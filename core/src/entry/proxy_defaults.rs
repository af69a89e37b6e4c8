//! `proxy-defaults`: what holds for every service.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::EntryMeta;
use super::fault::{Fault, check_protocol};
use super::locality::PrioritizeByLocality;
use super::mesh_gateway::MeshGatewayConfig;
use super::mutual_tls::MutualTlsMode;

/// `proxy-defaults/global`: what holds for every service.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct ProxyDefaults {
    /// The only key read today is `protocol`.
    #[serde(alias = "config")]
    pub config: ProxyDefaultsConfig,
    /// How services of peers are reached, where `service-defaults` do not say.
    #[serde(alias = "mesh_gateway", skip_serializing_if = "MeshGatewayConfig::is_default")]
    pub mesh_gateway: MeshGatewayConfig,
    /// Whether callers without TLS pass, where `service-defaults` do not say.
    #[serde(
        rename = "MutualTLSMode",
        alias = "mutual_tls_mode",
        skip_serializing_if = "MutualTlsMode::is_default"
    )]
    pub mutual_tls_mode: MutualTlsMode,
    /// Whether near instances go first, where a `service-resolver` does not say.
    #[serde(alias = "prioritize_by_locality", skip_serializing_if = "Option::is_none")]
    pub prioritize_by_locality: Option<PrioritizeByLocality>,
    /// Free pairs.
    #[serde(alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// The settings inside `proxy-defaults`.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProxyDefaultsConfig {
    /// The protocol of services that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

impl ProxyDefaults {
    pub(super) fn check(&self) -> Result<(), Fault> {
        check_protocol("Config.protocol", self.config.protocol.as_deref())
    }
}
