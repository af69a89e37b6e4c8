//! Server names: what a connection between proxies asks for, and what a gateway routes by.

use std::fmt;
use std::str::FromStr;

use crate::name::{Datacenter, InstanceId, NodeName, PeerName, ServiceName};
use crate::spiffe::TrustDomain;

/// A server name in Consul's layout.
///
/// It routes and authorises nothing by itself: whom a connection reaches is proved by mTLS, end to
/// end. `trust_domain` is always that of the cluster which runs the service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Sni {
    /// `<service>.default.<dc>.internal.<trust domain>`: within one cluster.
    Internal {
        /// The service.
        service: ServiceName,
        /// Its datacenter.
        datacenter: Datacenter,
        /// Its cluster.
        trust_domain: TrustDomain,
    },
    /// `[<instance>.]<service>.default.default.<peer>.external.<trust domain>`: from a peer.
    External {
        /// One instance; none for any.
        instance: Option<InstanceLabel>,
        /// The service.
        service: ServiceName,
        /// What the service's cluster calls the caller's.
        peer: PeerName,
        /// The service's cluster.
        trust_domain: TrustDomain,
    },
    /// `server.<dc>.peering.<trust domain>`: the servers of a cluster, for peering.
    Servers {
        /// Their datacenter.
        datacenter: Datacenter,
        /// Their cluster.
        trust_domain: TrustDomain,
    },
}

/// Stands for one instance in a server name: `i` and sixteen hexadecimal digits.
///
/// Ids may hold what no DNS label can, so they travel as a digest. Two instances that share one
/// would only share their traffic.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct InstanceLabel(u64);

impl InstanceLabel {
    /// The label of instance `id` on `node`.
    pub fn of(node: &NodeName, id: &InstanceId) -> Self {
        let octets = node.as_str().bytes().chain([0]).chain(id.as_str().bytes());
        Self(
            octets
                .fold(FNV_OFFSET, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(FNV_PRIME)),
        )
    }
}

impl fmt::Display for InstanceLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{:016x}", self.0)
    }
}

impl FromStr for InstanceLabel {
    type Err = InvalidSni;

    fn from_str(text: &str) -> Result<Self, InvalidSni> {
        let is_digit = |octet: u8| matches!(octet, b'0'..=b'9' | b'a'..=b'f');
        text.strip_prefix('i')
            .filter(|digits| digits.len() == 16 && digits.bytes().all(is_digit))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or(InvalidSni)
    }
}

/// A server name that is none of Hawser's.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is no server name of a mesh")]
pub struct InvalidSni;

impl FromStr for Sni {
    type Err = InvalidSni;

    /// Parses exactly what [`Sni`] writes: lower case, no trailing dot.
    fn from_str(text: &str) -> Result<Self, InvalidSni> {
        let labels: Vec<&str> = text.split('.').take(LABELS_MAX + 1).collect();
        if text.len() > NAME_OCTETS_MAX || labels.len() > LABELS_MAX || text.ends_with('.') {
            return Err(InvalidSni);
        }
        // A label may look like a keyword, so every place where one may stand is tried.
        [2, 3, 4, 5].into_iter().find_map(|at| Self::split_at(&labels, at)).ok_or(InvalidSni)
    }
}

/// A service's name that a server name may carry: the catalog has others, too.
fn label(text: &str) -> Option<ServiceName> {
    ServiceName::in_mesh(text).ok()
}

impl Sni {
    /// Reads `labels` whose keyword stands at `at`.
    fn split_at(labels: &[&str], at: usize) -> Option<Self> {
        let trust_domain = labels.get(at + 1..)?.join(".").parse().ok()?;
        match (labels[at], &labels[..at]) {
            ("internal", [service, "default", datacenter]) => Some(Self::Internal {
                service: label(service)?,
                datacenter: datacenter.parse().ok()?,
                trust_domain,
            }),
            ("external", [service, "default", "default", peer]) => Some(Self::External {
                instance: None,
                service: label(service)?,
                peer: peer.parse().ok()?,
                trust_domain,
            }),
            ("external", [instance, service, "default", "default", peer]) => Some(Self::External {
                instance: Some(instance.parse().ok()?),
                service: label(service)?,
                peer: peer.parse().ok()?,
                trust_domain,
            }),
            ("peering", ["server", datacenter]) => {
                Some(Self::Servers { datacenter: datacenter.parse().ok()?, trust_domain })
            }
            _ => None,
        }
    }
}

impl fmt::Display for Sni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal { service, datacenter, trust_domain } => {
                write!(f, "{service}.default.{datacenter}.internal.{trust_domain}")
            }
            Self::External { instance, service, peer, trust_domain } => {
                if let Some(instance) = instance {
                    write!(f, "{instance}.")?;
                }
                write!(f, "{service}.default.default.{peer}.external.{trust_domain}")
            }
            Self::Servers { datacenter, trust_domain } => {
                write!(f, "server.{datacenter}.peering.{trust_domain}")
            }
        }
    }
}

/// FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
/// DNS's bound, which TLS shares.
const NAME_OCTETS_MAX: usize = 253;
/// More than any layout with a trust domain of a few labels.
const LABELS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_written_as_it_was_read() {
        for text in [
            "web.default.dc1.internal.1f2e.consul",
            "web.default.default.east.external.1f2e.consul",
            "i00c0ffee00c0ffee.web.default.default.east.external.1f2e.consul",
            "server.dc1.peering.1f2e.consul",
        ] {
            assert_eq!(text.parse::<Sni>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_no_name_of_a_mesh_is_refused() {
        let long = format!("web.default.dc1.internal.{}", "a".repeat(240));
        for text in [
            "",
            "web",
            "example.com",
            "web.default.dc1.internal.",
            "Web.default.dc1.internal.1f2e.consul",
            "web.other.dc1.internal.1f2e.consul",
            "a.b.default.dc1.internal.1f2e.consul",
            "web.default.default.external.1f2e.consul",
            "x.web.default.default.east.external.1f2e.consul",
            "i00C0FFEE00c0ffee.web.default.default.east.external.1f2e.consul",
            "client.dc1.peering.1f2e.consul",
            "web.default.dc1.internal.1f2e.consul.",
            long.as_str(),
        ] {
            assert_eq!(text.parse::<Sni>(), Err(InvalidSni), "{text:?}");
        }
    }

    #[test]
    fn an_instance_has_one_label_everywhere() {
        let label = |node: &str, id: &str| {
            let (node, id) = (node.parse().expect("a node"), id.parse().expect("an id"));
            InstanceLabel::of(&node, &id)
        };
        assert_eq!(label("vm-1", "web 1"), label("vm-1", "web 1"));
        assert_ne!(label("vm-1", "web 1"), label("vm-1", "web 2"));
        assert_ne!(label("a", "bc"), label("ab", "c"), "the boundary counts");
        let written = label("vm-1", "web 1").to_string();
        assert_eq!(written.parse(), Ok(label("vm-1", "web 1")));
    }
}
