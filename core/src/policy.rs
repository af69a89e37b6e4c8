//! Policies: what config entries say of the traffic of one service, as a view carries it.

use serde::{Deserialize, Serialize};

use crate::entry::{
    Connections, Entries, GlobalRateLimits, InboundLimits, LoadBalancer, RateLimits, Retries,
    UpstreamConfig,
};
use crate::name::ServiceName;

/// What config entries say of the traffic of one service, in their own shape. Each proxy compiles
/// what it needs when a view arrives.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Policies {
    /// How its callers choose among its instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// How it calls others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstreams: Option<UpstreamConfig>,
    /// How requests to it are tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// How many requests a second its instances take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rates: Option<RateLimits>,
    /// How many requests a second all of them together take. By itself, because older agents know
    /// `rates` without it and refuse what they do not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_rates: Option<GlobalRateLimits>,
    /// How much its instances have to do at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inbound: Option<InboundLimits>,
    /// How long a connection to it may live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// Whether it speaks UDP: what is relayed are datagrams, each after its length.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub datagrams: bool,
    /// Whether its instances take callers without TLS.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub takes_plaintext: bool,
    /// Whether its callers' proxies detect what is spoken, because nobody stated it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub detects_protocol: bool,
}

impl Policies {
    /// What `entries` say of `service`.
    pub fn of(entries: &Entries, service: &ServiceName) -> Self {
        let resolver = entries.service_resolver(service);
        let defaults = entries.service_defaults(service);
        let rates = defaults.and_then(|entry| entry.rate_limits.as_deref());
        Self {
            load_balancer: resolver.and_then(|entry| entry.load_balancer.as_deref().cloned()),
            upstreams: defaults.and_then(|entry| entry.upstream_config.as_deref().cloned()),
            retries: defaults.and_then(|entry| entry.retries.as_deref().cloned()),
            rates: rates.and_then(RateLimits::of_instance),
            global_rates: rates.and_then(|rates| rates.global.clone()),
            inbound: defaults.and_then(|entry| entry.inbound_limits.as_deref().cloned()),
            datagrams: entries.speaks_udp(service),
            takes_plaintext: entries.takes_plaintext(service),
            detects_protocol: entries.detects_protocol(service),
            connections: defaults.and_then(|entry| entry.connections.as_deref().cloned()),
        }
    }
}
