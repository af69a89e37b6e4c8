//! The discovery chain: what config entries make of a service's name.

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Protocol;
use crate::entry::Entries;
use crate::name::ServiceName;
use crate::policy::Policies;

/// How callers reach one service, compiled from the entries that concern it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    /// The service that was asked for.
    pub service: ServiceName,
    /// What its instances speak.
    pub protocol: Protocol,
    /// Longest wait for a connection to an instance.
    pub connect_timeout: Duration,
    /// Longest wait for a whole HTTP response, all tries together.
    pub request_timeout: Duration,
    /// Longest wait of an instance's proxy for its application to accept.
    pub local_connect_timeout: Duration,
    /// Most connections that one instance's proxy accepts at once.
    pub inbound_connections_max: Option<u32>,
    /// What else entries say of its traffic.
    pub policies: Arc<Policies>,
}

/// Compiles the chain of `service`. Same entries, same chain, on every host.
///
/// `declared` is the protocol that the service's instances state themselves; an entry that
/// names one outranks it.
pub fn compile(entries: &Entries, declared: Option<Protocol>, service: &ServiceName) -> Chain {
    let defaults = entries.service_defaults(service);
    let resolver = entries.service_resolver(service);
    let mut policies = Policies::of(entries, service);
    // Detection is for what nobody states.
    policies.detects_protocol &= declared.is_none();
    let local_connect_ms = defaults.and_then(|entry| entry.local_connect_timeout_ms);
    Chain {
        service: service.clone(),
        protocol: entries.protocol(service).or(declared).unwrap_or_default(),
        connect_timeout: resolver
            .and_then(|entry| entry.connect_timeout)
            .unwrap_or(CONNECT_TIMEOUT),
        request_timeout: resolver
            .and_then(|entry| entry.request_timeout)
            .unwrap_or(REQUEST_TIMEOUT),
        local_connect_timeout: local_connect_ms
            .map_or(LOCAL_CONNECT_TIMEOUT, |ms| Duration::from_millis(ms.into())),
        inbound_connections_max: defaults
            .and_then(|entry| entry.max_inbound_connections)
            .filter(|most| *most > 0),
        policies: Arc::new(policies),
    }
}

/// A connection that takes longer than this inside a region is not coming.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Consul's and Envoy's default.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const LOCAL_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Index;
    use crate::entry::{
        Body, Entry, ProxyDefaults, ProxyDefaultsConfig, ServiceDefaults, ServiceResolver,
    };

    #[test]
    fn the_nearest_word_on_the_protocol_counts() {
        let global = Body::ProxyDefaults(ProxyDefaults {
            config: ProxyDefaultsConfig { protocol: Some("http".into()) },
            ..Default::default()
        });
        let own = Body::ServiceDefaults(ServiceDefaults {
            protocol: Some("grpc".into()),
            ..Default::default()
        });
        let web: ServiceName = "web".parse().expect("a name");
        let cases = [
            // entries, declared, expected, why
            (vec![], None, Protocol::Tcp, "nobody says"),
            (vec![], Some(Protocol::Http2), Protocol::Http2, "only the instance says"),
            (vec![("global", global.clone())], Some(Protocol::Tcp), Protocol::Http, "entries rule"),
            (vec![("global", global), ("web", own)], None, Protocol::Grpc, "own before shared"),
        ];
        for (bodies, declared, expected, why) in cases {
            let mut entries = Entries::default();
            for (name, body) in bodies {
                entries.put(Entry::new(name, body).expect("a good entry"), Index(1));
            }
            assert_eq!(compile(&entries, declared, &web).protocol, expected, "{why}");
        }
    }

    #[test]
    fn a_protocol_is_detected_only_where_nobody_states_one() {
        let shared = |protocol: &str| {
            Body::ProxyDefaults(ProxyDefaults {
                config: ProxyDefaultsConfig { protocol: Some(protocol.into()) },
                ..Default::default()
            })
        };
        let own = |protocol: &str| {
            Body::ServiceDefaults(ServiceDefaults {
                protocol: Some(protocol.into()),
                ..Default::default()
            })
        };
        let (tcp, http) = (Protocol::Tcp, Protocol::Http);
        let cases = [
            // entries, declared, protocol, detected, why
            (vec![], None, tcp, false, "nobody asks for it"),
            (vec![("global", shared("auto"))], None, tcp, true, "nobody states one"),
            (vec![("global", shared("auto"))], Some(http), http, false, "the instance does"),
            (vec![("global", shared("auto"))], Some(tcp), tcp, false, "the instance does, too"),
            (vec![("global", shared("auto")), ("web", own("http"))], None, http, false, "its own"),
            (vec![("global", shared("http")), ("web", own("auto"))], None, tcp, true, "its own"),
        ];
        for (bodies, declared, protocol, detected, why) in cases {
            let mut entries = Entries::default();
            for (name, body) in bodies {
                entries.put(Entry::new(name, body).expect("a good entry"), Index(1));
            }
            let chain = compile(&entries, declared, &"web".parse().expect("a name"));
            assert_eq!(
                (chain.protocol, chain.policies.detects_protocol),
                (protocol, detected),
                "{why}"
            );
        }
    }

    #[test]
    fn a_resolver_sets_the_timeouts() {
        let body = Body::ServiceResolver(ServiceResolver {
            connect_timeout: Some(Duration::from_millis(250)),
            request_timeout: None,
            ..Default::default()
        });
        let mut entries = Entries::default();
        entries.put(Entry::new("web", body).expect("a good entry"), Index(1));
        let chain = compile(&entries, None, &"web".parse().expect("a name"));
        assert_eq!(chain.connect_timeout, Duration::from_millis(250));
        assert_eq!(chain.request_timeout, REQUEST_TIMEOUT);
    }
}
