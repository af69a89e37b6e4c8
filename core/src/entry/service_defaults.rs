//! `service-defaults`: what holds for one service.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::EntryMeta;
use super::connections::Connections;
use super::fault::{Fault, check_protocol};
use super::inbound_limits::InboundLimits;
use super::mesh_gateway::MeshGatewayConfig;
use super::mutual_tls::MutualTlsMode;
use super::rate_limits::RateLimits;
use super::retries::Retries;
use super::upstream::UpstreamConfig;

/// `service-defaults/<service>`: what holds for one service.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct ServiceDefaults {
    /// `tcp`, `http`, `http2` or `grpc`; ours: `udp`.
    #[serde(alias = "protocol", skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Longest wait for the application to accept a connection, in milliseconds.
    #[serde(alias = "local_connect_timeout_ms", skip_serializing_if = "Option::is_none")]
    pub local_connect_timeout_ms: Option<u32>,
    /// Most connections that one instance's proxy accepts at once; zero is no limit of its own.
    #[serde(alias = "max_inbound_connections", skip_serializing_if = "Option::is_none")]
    pub max_inbound_connections: Option<u32>,
    /// How it calls others.
    #[serde(alias = "upstream_config", skip_serializing_if = "Option::is_none")]
    pub upstream_config: Option<Box<UpstreamConfig>>,
    /// How requests to it are tried again.
    #[serde(alias = "retries", skip_serializing_if = "Option::is_none")]
    pub retries: Option<Box<Retries>>,
    /// How many requests a second its instances take.
    #[serde(alias = "rate_limits", skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<Box<RateLimits>>,
    /// How much its instances have to do at once.
    #[serde(alias = "inbound_limits", skip_serializing_if = "Option::is_none")]
    pub inbound_limits: Option<Box<InboundLimits>>,
    /// How long a connection to it may live.
    #[serde(
        default,
        rename = "Connections",
        alias = "connections",
        skip_serializing_if = "Option::is_none"
    )]
    pub connections: Option<Box<Connections>>,
    /// Whether callers without TLS pass.
    #[serde(
        default,
        rename = "MutualTLSMode",
        alias = "mutual_tls_mode",
        skip_serializing_if = "MutualTlsMode::is_default"
    )]
    pub mutual_tls_mode: MutualTlsMode,
    /// How the service is reached where it is a peer's.
    #[serde(alias = "mesh_gateway", skip_serializing_if = "MeshGatewayConfig::is_default")]
    pub mesh_gateway: MeshGatewayConfig,
    /// Free pairs.
    #[serde(alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

impl ServiceDefaults {
    /// The level that its fields need: see [`crate::operation::LEVEL`].
    pub(super) fn level(&self) -> u32 {
        match self.rate_limits.as_deref() {
            Some(rates) if rates.global.is_some() => 2,
            _ => 0,
        }
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        check_protocol("Protocol", self.protocol.as_deref())?;
        self.upstream_config.as_deref().map_or(Ok(()), UpstreamConfig::check)?;
        self.retries.as_deref().map_or(Ok(()), Retries::check)?;
        self.rate_limits.as_deref().map_or(Ok(()), RateLimits::check)?;
        self.inbound_limits.as_deref().map_or(Ok(()), InboundLimits::check)?;
        self.connections.as_deref().map_or(Ok(()), Connections::check)?;
        match self.local_connect_timeout_ms {
            Some(ms) if ms == 0 || ms > LOCAL_CONNECT_TIMEOUT_MS_MAX => Err(Fault::new(
                "LocalConnectTimeoutMs",
                format!("must be more than 0 and at most {LOCAL_CONNECT_TIMEOUT_MS_MAX}"),
            )),
            _ => Ok(()),
        }
    }
}

const LOCAL_CONNECT_TIMEOUT_MS_MAX: u32 = 60_000;
