//! SPIFFE identities in Consul's layout: parsed strictly, compared whole, never normalised.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::name::{Datacenter, NodeName, ServiceName};

/// The authority of a SPIFFE ID: lower-case letters, digits, `.`, `-` and `_`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The trust domain's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        let allowed = |octet: u8| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > TRUST_DOMAIN_OCTETS_MAX || !text.bytes().all(allowed) {
            return Err(InvalidSpiffeId::TrustDomain);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a URI is not an identity of ours.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidSpiffeId {
    /// It does not begin with `spiffe://`, in lower case.
    #[error("it does not begin with spiffe://")]
    Scheme,
    /// The part before the path is not a trust domain.
    #[error("its trust domain is malformed")]
    TrustDomain,
    /// The path is none of the layouts that Hawser issues.
    #[error("its path is none of Hawser's layouts")]
    Path,
    /// A name in the path is malformed.
    #[error("a name in its path is malformed")]
    Name,
    /// More octets than SPIFFE allows.
    #[error("it is longer than 2048 octets")]
    TooLong,
}

/// What an identity is for: the part of the path that says which ports it may speak to.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Role {
    /// `/ns/default/dc/<dc>/svc/<service>`: a workload.
    Service(ServiceName),
    /// `/agent/client/dc/<dc>/id/<node>`: the agent of a host.
    Agent(NodeName),
    /// `/agent/server/dc/<dc>/id/<node>`: a member of the Raft cluster.
    Server(NodeName),
    /// `/gateway/mesh/dc/<dc>`: a mesh gateway.
    MeshGateway,
}

/// One identity: who, in which trust domain and datacenter.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    /// Whose certificate authority vouches for it.
    pub trust_domain: TrustDomain,
    /// The datacenter in the path.
    pub datacenter: Datacenter,
    /// Who it is.
    pub role: Role,
}

impl SpiffeId {
    /// The service, when this is a workload's identity.
    pub fn service(&self) -> Option<&ServiceName> {
        match &self.role {
            Role::Service(name) => Some(name),
            Role::Agent(_) | Role::Server(_) | Role::MeshGateway => None,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    /// Parses the exact bytes of a URI SAN.
    ///
    /// # Errors
    /// Anything outside the layouts of [`Role`]: no percent-encoding, query, fragment, port,
    /// user, empty or dot segment, trailing slash or upper-case scheme is accepted, because two
    /// spellings of one identity are two ways round a policy.
    fn from_str(uri: &str) -> Result<Self, InvalidSpiffeId> {
        if uri.len() > URI_OCTETS_MAX {
            return Err(InvalidSpiffeId::TooLong);
        }
        let rest = uri.strip_prefix("spiffe://").ok_or(InvalidSpiffeId::Scheme)?;
        let (authority, path) = rest.split_once('/').ok_or(InvalidSpiffeId::Path)?;
        let trust_domain = authority.parse()?;
        let segments: Vec<&str> = path.split('/').take(SEGMENTS_MAX + 1).collect();
        let name = |_| InvalidSpiffeId::Name;
        let (datacenter, role) = match segments[..] {
            ["ns", "default", "dc", dc, "svc", service] => (dc, Role::Service(label(service)?)),
            ["agent", "client", "dc", dc, "id", node] => (dc, Role::Agent(segment(node)?)),
            ["agent", "server", "dc", dc, "id", node] => (dc, Role::Server(segment(node)?)),
            ["gateway", "mesh", "dc", dc] => (dc, Role::MeshGateway),
            _ => return Err(InvalidSpiffeId::Path),
        };
        Ok(Self { trust_domain, datacenter: datacenter.parse().map_err(name)?, role })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, datacenter, role } = self;
        write!(f, "spiffe://{trust_domain}")?;
        match role {
            Role::Service(name) => write!(f, "/ns/default/dc/{datacenter}/svc/{name}"),
            Role::Agent(node) => write!(f, "/agent/client/dc/{datacenter}/id/{node}"),
            Role::Server(node) => write!(f, "/agent/server/dc/{datacenter}/id/{node}"),
            Role::MeshGateway => write!(f, "/gateway/mesh/dc/{datacenter}"),
        }
    }
}

/// A service's name that may stand in an identity: the catalog has others, too.
fn label(text: &str) -> Result<ServiceName, InvalidSpiffeId> {
    ServiceName::in_mesh(text).map_err(|_| InvalidSpiffeId::Name)
}

/// A node's name that may stand in an identity: the catalog has others, too.
fn segment(text: &str) -> Result<NodeName, InvalidSpiffeId> {
    NodeName::of_agent(text).map_err(|_| InvalidSpiffeId::Name)
}

const URI_OCTETS_MAX: usize = 2048;
const TRUST_DOMAIN_OCTETS_MAX: usize = 255;
const SEGMENTS_MAX: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_written_as_it_was_read() {
        for uri in [
            "spiffe://1f2e.consul/ns/default/dc/dc1/svc/web",
            "spiffe://1f2e.consul/agent/client/dc/dc1/id/vm-1.local",
            "spiffe://1f2e.consul/agent/server/dc/dc1/id/s1",
            "spiffe://1f2e.consul/gateway/mesh/dc/dc1",
        ] {
            let id: SpiffeId = uri.parse().expect("a good identity");
            assert_eq!(id.to_string(), uri);
        }
    }

    #[test]
    fn every_second_spelling_is_refused() {
        use InvalidSpiffeId as No;
        let long = format!("spiffe://td/ns/default/dc/dc1/svc/{}", "a".repeat(2048));
        let cases = [
            ("SPIFFE://td/ns/default/dc/dc1/svc/web", No::Scheme),
            ("https://td/ns/default/dc/dc1/svc/web", No::Scheme),
            ("spiffe://td", No::Path),
            ("spiffe:///ns/default/dc/dc1/svc/web", No::TrustDomain),
            ("spiffe://TD/ns/default/dc/dc1/svc/web", No::TrustDomain),
            ("spiffe://u@td:1/ns/default/dc/dc1/svc/web", No::TrustDomain),
            ("spiffe://td/ns/default/dc/dc1/svc/web/", No::Path),
            ("spiffe://td//ns/default/dc/dc1/svc/web", No::Path),
            ("spiffe://td/ns/default/dc/dc1/svc/../svc/web", No::Path),
            ("spiffe://td/ns/default/dc/dc1/svc/%77eb", No::Name),
            ("spiffe://td/ns/default/dc/dc1/svc/web?x", No::Name),
            ("spiffe://td/ns/default/dc/dc1/svc/web#x", No::Name),
            ("spiffe://td/ns/default/dc/dc1/svc/web\0", No::Name),
            ("spiffe://td/ns/other/dc/dc1/svc/web", No::Path),
            ("spiffe://td/agent/client/dc/dc1/id/..", No::Name),
            (long.as_str(), No::TooLong),
        ];
        for (uri, expected) in cases {
            assert_eq!(uri.parse::<SpiffeId>(), Err(expected), "{uri}");
        }
    }
}
