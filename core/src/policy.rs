//! Policies: what config entries say of the traffic of one service, as a view carries it.

use serde::{Deserialize, Serialize};

use crate::entry::{
    Connections, Entries, GlobalRateLimits, InboundLimits, LoadBalancer, RateLimits, RequestBodies,
    Retries, UpstreamConfig,
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
    /// What its instances take of the body of one request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_bodies: Option<RequestBodies>,
    /// How long a connection to it may live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<Connections>,
    /// Whether it speaks UDP: what is relayed are datagrams, each after its length.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub datagrams: bool,
    /// Whether all its instances share the traffic, however near they are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignores_locality: bool,
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
        let inbound = defaults.and_then(|entry| entry.inbound_limits.as_deref());
        Self {
            load_balancer: resolver.and_then(|entry| entry.load_balancer.as_deref().cloned()),
            upstreams: defaults.and_then(|entry| entry.upstream_config.as_deref().cloned()),
            retries: defaults.and_then(|entry| entry.retries.as_deref().cloned()),
            rates: rates.and_then(RateLimits::of_instance),
            global_rates: rates.and_then(|rates| rates.global.clone()),
            inbound: inbound.map(InboundLimits::of_all),
            request_bodies: inbound.and_then(InboundLimits::of_bodies),
            datagrams: entries.speaks_udp(service),
            ignores_locality: entries.ignores_locality(service),
            takes_plaintext: entries.takes_plaintext(service),
            detects_protocol: entries.detects_protocol(service),
            connections: defaults.and_then(|entry| entry.connections.as_deref().cloned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Stamp, UnixTime};
    use crate::entry::{Body, Entry, Kind};
    use crate::state::{Command, State};

    #[test]
    fn what_a_resolver_says_of_locality_outranks_what_all_have() {
        let none = r#"{"PrioritizeByLocality":{"Mode":"none"}}"#;
        let failover = r#"{"PrioritizeByLocality":{"Mode":"failover"}}"#;
        let cases = [
            // of the service, of all, whether locality is left aside
            ("{}", "{}", false),
            (none, "{}", true),
            ("{}", none, true),
            (failover, none, false),
            (none, failover, true),
        ];
        for (own, all, expected) in cases {
            let mut state = State::default();
            let written = [("service-resolver", "db", own), ("proxy-defaults", "global", all)];
            for (n, (kind, name, json)) in (1..).zip(written) {
                let kind: Kind = kind.parse().expect(kind);
                let body = Body::read(kind, &mut serde_json::Deserializer::from_str(json));
                let entry = Entry::new(name, body.expect(json)).expect(json);
                let stamp = Stamp { index: crate::clock::Index(n), time: UnixTime::from_secs(n) };
                let command = Command::PutEntry { entry, expected: None, fits: None };
                state.apply(stamp, command).expect("applied");
            }
            let policies = Policies::of(state.entries(), &"db".parse().expect("a name"));
            assert_eq!(policies.ignores_locality, expected, "{own} and {all}");
        }
    }

    #[test]
    fn what_bodies_may_be_stands_apart_from_what_older_agents_read() {
        let limits =
            r#"{"MaxConcurrentRequests":7,"MaxRequestBytes":10,"RequestIdleTimeout":"5s"}"#;
        let limits: InboundLimits = serde_json::from_str(limits).expect("good");
        let bodies = limits.of_bodies().expect("there");
        assert_eq!((bodies.max_bytes, bodies.idle_timeout.map(|it| it.as_secs())), (10, Some(5)));
        let all = serde_json::to_string(&limits.of_all()).expect("JSON");
        assert!(!all.contains("MaxRequestBytes") && !all.contains("RequestIdleTimeout"), "{all}");
        assert_eq!(InboundLimits::default().of_bodies(), None);
    }
}
