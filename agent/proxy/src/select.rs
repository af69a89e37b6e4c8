//! Selectors: which port of a service a connection between proxies is for, and what is spoken there.
//!
//! The caller's proxy says so beside the protocols that it offers in TLS (ALPN). Gateways pass that
//! on as it came, and the callee reads it before it chooses how to answer. A connection without one
//! is for the default port.

use std::sync::Arc;

use hawser_core::catalog::{Endpoint, NamedPort, Protocol};
use hawser_core::name::PortName;
use hawser_core::policy::Policies;
use hawser_core::view::{ServiceView, TargetView};

/// What a connection is for, where that is not all that the service says by default.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Selector {
    /// One of its ports.
    Port(PortName),
    /// Its default port, where the caller's proxy has detected requests of this protocol.
    Detected(Protocol),
}

/// A selector that this version cannot read: nothing is served by guess.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Unknown;

impl Selector {
    /// What is offered beside the protocols.
    pub(crate) fn offer(&self) -> Vec<u8> {
        let offer = match self {
            Self::Port(name) => format!("{PORT}{name}"),
            Self::Detected(protocol) => format!("{DETECTED}{}", protocol.as_str()),
        };
        offer.into_bytes()
    }

    /// The selector among what a caller offers; none where there is none.
    ///
    /// # Errors
    /// [`Unknown`] where one is malformed, or there are two.
    pub(crate) fn among<'a>(
        offered: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Option<Self>, Unknown> {
        let mut found = None;
        for offer in offered {
            let read = if let Some(name) = offer.strip_prefix(PORT.as_bytes()) {
                let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
                Self::Port(name.ok_or(Unknown)?)
            } else if let Some(protocol) = offer.strip_prefix(DETECTED.as_bytes()) {
                match protocol {
                    b"http" => Self::Detected(Protocol::Http),
                    b"http2" => Self::Detected(Protocol::Http2),
                    _ => return Err(Unknown),
                }
            } else {
                continue;
            };
            if found.replace(read).is_some() {
                return Err(Unknown);
            }
        }
        Ok(found)
    }

    /// The service as it is through this: what is spoken there, and the instances that have it.
    pub(crate) fn of(&self, service: &ServiceView) -> ServiceView {
        let mut seen = service.clone();
        match self {
            Self::Detected(protocol) => seen.chain.protocol = *protocol,
            Self::Port(name) => {
                let having = |endpoints: &[Endpoint]| -> Arc<[Endpoint]> {
                    endpoints.iter().filter(|it| port(&it.ports, name).is_some()).cloned().collect()
                };
                seen.endpoints = having(&service.endpoints);
                let others = service.failover.iter();
                let others = others.map(|other| TargetView {
                    endpoints: having(&other.endpoints),
                    ..other.clone()
                });
                seen.failover = others.collect();
                let mut said = seen.endpoints.iter().filter_map(|it| port(&it.ports, name));
                if let Some(protocol) = said.find_map(|port| port.protocol) {
                    seen.chain.protocol = protocol;
                }
                // Routes, shares and redirects are of the default port, as in Consul.
                let mut all = seen.endpoints.iter().filter_map(|it| port(&it.ports, name));
                if !all.any(|port| port.is_default) {
                    seen.routing = None;
                }
            }
        }
        if seen.chain.policies.detects_protocol {
            let policies = Policies::clone(&seen.chain.policies);
            seen.chain.policies = Arc::new(Policies { detects_protocol: false, ..policies });
        }
        seen
    }
}

fn port<'a>(ports: &'a [NamedPort], name: &PortName) -> Option<&'a NamedPort> {
    ports.iter().find(|port| port.name == *name)
}

const PORT: &str = "hawser-port/";
const DETECTED: &str = "hawser-detected/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_read_as_it_was_offered_and_nothing_by_guess() {
        let port = Selector::Port("admin".parse().expect("a name"));
        let detected = Selector::Detected(Protocol::Http2);
        for selector in [port, detected] {
            let offer = selector.offer();
            let offered = [b"h2".as_slice(), &offer];
            assert_eq!(Selector::among(offered.into_iter()), Ok(Some(selector)));
        }
        type Case<'a> = (&'a [&'a [u8]], Result<Option<Selector>, Unknown>, &'a str);
        let cases: [Case<'_>; 7] = [
            (&[], Ok(None), "nothing is offered"),
            (&[b"h2", b"http/1.1", b"hawser-tcp/2"], Ok(None), "no selector"),
            (&[b"hawser-port/"], Err(Unknown), "no name"),
            (&[b"hawser-port/A"], Err(Unknown), "no port is called so"),
            (&[b"hawser-port/\xff"], Err(Unknown), "no text"),
            (&[b"hawser-detected/quic"], Err(Unknown), "of a later version"),
            (&[b"hawser-port/a", b"h2", b"hawser-port/b"], Err(Unknown), "which?"),
        ];
        for (offered, expected, why) in cases {
            assert_eq!(Selector::among(offered.iter().copied()), expected, "{why}");
        }
    }
}
