//! TLS between proxies: configurations of one leaf, and the mesh's words for what TLS refuses.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hawser_core::ca::Validity;
use hawser_core::clock::UnixTime;
use hawser_core::name::PeerName;
use hawser_core::reason::Reason;
use hawser_core::spiffe::SpiffeId;
use hawser_core::view::{PeerView, Trust};
use hawser_identity::{Anchors, Callee, Callers, Leaf, LeafError, Proven, Refusal};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, ClientConfig, ServerConfig};
use tokio_util::sync::CancellationToken;

/// HTTP/2 between proxies, and from native clients that speak it.
pub const ALPN_H2: &[u8] = b"h2";
/// HTTP/1.1: native clients, and upgraded connections between proxies.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
/// Bytes between proxies, after one byte by the callee's proxy that says whether it relays.
pub const ALPN_TCP: &[u8] = b"hawser-tcp/1";
/// Many streams of bytes between proxies in one connection, each after its own verdict.
pub const ALPN_STREAMS: &[u8] = b"hawser-tcp/2";

/// Many streams of HTTP/1.1 messages between proxies in one connection.
pub const ALPN_REQUESTS: &[u8] = b"hawser-http/1";

/// Whom this host's proxy trusts: services alone, those of its own cluster by the roots of `trust`
/// and those of each peer by that peer's. Roots that cannot be read are left out: less is trusted,
/// not more.
pub fn anchors(trust: &Trust, peers: &BTreeMap<PeerName, PeerView>) -> Anchors {
    let own = Anchors::new(trust.trust_domain.clone(), trust.datacenter.clone())
        .services(trust.roots.iter().map(|root| &root[..]))
        .revoked(trust.revoked.clone());
    peers.values().fold(own, |anchors, peer| {
        let (trust_domain, datacenter) = (peer.trust_domain.clone(), peer.datacenter.clone());
        let roots = peer.roots.iter().map(|root| &root[..]);
        anchors.peer_services(trust_domain, datacenter, roots, peer.revoked.clone())
    })
}

/// Reads who holds `leaf`, whose chain a handshake has verified already.
///
/// # Errors
/// The [`Reason`] for which it is refused, for what the certificate itself says.
pub(crate) fn read(leaf: &[u8]) -> Result<Proven, Reason> {
    hawser_identity::read(leaf).map_err(|refusal| refusal_reason(&refusal))
}

/// What one leaf and one set of roots make: everything that handshakes need.
pub struct Identity {
    /// Whose it is.
    pub id: SpiffeId,
    /// When its leaf holds.
    pub validity: Validity,
    /// Tells this identity from those before and after it, so that pools do not mix them.
    pub generation: u64,
    /// Cancelled when another leaf took its place: what was accepted with it ends in peace.
    pub superseded: CancellationToken,
    anchors: Arc<Anchors>,
    key: Arc<CertifiedKey>,
    accept: [Arc<ServerConfig>; 6],
}

impl Identity {
    /// Prepares `leaf` for use under `anchors`.
    ///
    /// # Errors
    /// [`LeafError`] when key and certificate cannot be used.
    pub fn new(leaf: &Leaf, anchors: &Arc<Anchors>, generation: u64) -> Result<Self, LeafError> {
        let key = leaf.certified()?;
        let shows = Arc::new(SingleCertAndKey::from(key.clone()));
        let accept = |protocols: &[&[u8]]| {
            let callers = Callers::new(anchors.clone());
            hawser_identity::accept(callers, shows.clone(), protocols)
                .map(Arc::new)
                .map_err(LeafError::Certificate)
        };
        let accept = [
            accept(&[])?,
            accept(&[ALPN_H2])?,
            accept(&[ALPN_HTTP1])?,
            accept(&[ALPN_TCP])?,
            accept(&[ALPN_STREAMS])?,
            accept(&[ALPN_REQUESTS])?,
        ];
        Ok(Self {
            id: leaf.id.clone(),
            validity: leaf.validity,
            generation,
            superseded: CancellationToken::new(),
            anchors: anchors.clone(),
            key,
            accept,
        })
    }

    /// The same, superseded when `token` is cancelled: the roots may change while the leaf stays.
    #[must_use]
    pub fn until(self, token: CancellationToken) -> Self {
        Self { superseded: token, ..self }
    }

    /// The configuration that answers with exactly `protocol`.
    pub fn accept(&self, protocol: Wire) -> Arc<ServerConfig> {
        self.accept[protocol as usize].clone()
    }

    /// The configuration that calls `expected` and nobody else, and would rather speak what
    /// stands first in `alpn`.
    ///
    /// # Errors
    /// [`LeafError`] when TLS refuses it.
    pub fn dial(&self, expected: SpiffeId, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, LeafError> {
        let callee = Callee::only(self.anchors.clone(), expected);
        let shows = Arc::new(SingleCertAndKey::from(self.key.clone()));
        let config = hawser_identity::dial(callee, Some(shows), alpn);
        config.map(Arc::new).map_err(LeafError::Certificate)
    }

    /// By what it proves others.
    pub(crate) fn anchors(&self) -> &Arc<Anchors> {
        &self.anchors
    }

    /// Whether its leaf holds at `now`.
    pub fn holds_at(&self, now: UnixTime) -> bool {
        self.validity.holds_at(now)
    }
}

/// What is spoken inside TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wire {
    /// No protocol was agreed on: bytes, or HTTP/1.1, as Consul's native clients speak.
    Native = 0,
    /// HTTP/2.
    H2 = 1,
    /// HTTP/1.1.
    Http1 = 2,
    /// Bytes after a verdict.
    Tcp = 3,
    /// Streams of bytes, each after a verdict.
    Streams = 4,
    /// Streams of HTTP/1.1 messages.
    Requests = 5,
}

impl Wire {
    /// What a callee of the given kind speaks with a caller that offers `alpn`.
    pub fn choose<'a>(is_http: bool, alpn: impl Iterator<Item = &'a [u8]>) -> Self {
        let (mut offers_h2, mut offers_http1, mut offers_tcp) = (false, false, false);
        for name in alpn {
            match name {
                ALPN_REQUESTS if is_http => return Self::Requests,
                ALPN_H2 if is_http => offers_h2 = true,
                ALPN_HTTP1 if is_http => offers_http1 = true,
                ALPN_STREAMS if !is_http => return Self::Streams,
                ALPN_TCP if !is_http => offers_tcp = true,
                _ => {}
            }
        }
        match (offers_h2, offers_http1, offers_tcp) {
            (true, ..) => Self::H2,
            (_, true, _) => Self::Http1,
            (.., true) => Self::Tcp,
            _ => Self::Native,
        }
    }
}

/// The reason behind a failed handshake or a failed read after it.
pub fn reason(error: &io::Error) -> Reason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(error) => tls_reason(error),
        None => match error.kind() {
            io::ErrorKind::TimedOut => Reason::HandshakeTimeout,
            _ => Reason::HandshakeFailed,
        },
    }
}

/// The reason behind an error of rustls.
pub fn tls_reason(error: &rustls::Error) -> Reason {
    if let Some(refusal) = Refusal::behind(error) {
        return refusal_reason(&refusal);
    }
    match error {
        rustls::Error::InvalidCertificate(_) => Reason::UntrustedCertificate,
        rustls::Error::InvalidMessage(_) => Reason::Plaintext,
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => Reason::CertificateExpired,
            AlertDescription::CertificateRevoked => Reason::IdentityRevoked,
            AlertDescription::CertificateRequired => Reason::NoClientCertificate,
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown => Reason::UntrustedCertificate,
            _ => Reason::HandshakeFailed,
        },
        _ => Reason::HandshakeFailed,
    }
}

/// The mesh's word for a refusal.
pub(crate) fn refusal_reason(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::Absent => Reason::NoClientCertificate,
        Refusal::Malformed | Refusal::UnknownIssuer | Refusal::Chain(_) => {
            Reason::UntrustedCertificate
        }
        Refusal::Expired | Refusal::NotYetValid => Reason::CertificateExpired,
        Refusal::NotOneUri | Refusal::Uri(_) => Reason::MalformedIdentity,
        Refusal::TrustDomain => Reason::WrongTrustDomain,
        Refusal::Datacenter => Reason::WrongDatacenter,
        Refusal::Role => Reason::WrongRole,
        Refusal::Unexpected => Reason::UnexpectedPeer,
        Refusal::Revoked => Reason::IdentityRevoked,
        Refusal::ChainTooLong | Refusal::Usage | Refusal::Key | Refusal::Lifetime => {
            Reason::UnfitCertificate
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_keeps_its_word_on_its_way_through_tls() {
        let cases = [
            (Refusal::Absent, Reason::NoClientCertificate),
            (Refusal::Malformed, Reason::UntrustedCertificate),
            (Refusal::UnknownIssuer, Reason::UntrustedCertificate),
            (Refusal::Expired, Reason::CertificateExpired),
            (Refusal::NotYetValid, Reason::CertificateExpired),
            (Refusal::NotOneUri, Reason::MalformedIdentity),
            (Refusal::TrustDomain, Reason::WrongTrustDomain),
            (Refusal::Datacenter, Reason::WrongDatacenter),
            (Refusal::Role, Reason::WrongRole),
            (Refusal::Unexpected, Reason::UnexpectedPeer),
            (Refusal::Lifetime, Reason::UnfitCertificate),
        ];
        for (refusal, expected) in cases {
            let error = rustls::Error::from(refusal);
            assert_eq!(tls_reason(&error), expected, "{error}");
            assert_eq!(reason(&io::Error::other(error)), expected);
        }
    }

    #[test]
    fn what_is_spoken_is_what_both_know() {
        let cases: &[(bool, &[&[u8]], Wire, &str)] = &[
            (true, &[ALPN_H2, ALPN_REQUESTS], Wire::Requests, "streams of HTTP, in whatever order"),
            (true, &[ALPN_H2, ALPN_HTTP1], Wire::H2, "HTTP/2 where it is offered"),
            (true, &[ALPN_HTTP1, ALPN_H2], Wire::H2, "in whatever order"),
            (true, &[ALPN_HTTP1], Wire::Http1, "or HTTP/1.1"),
            (true, &[], Wire::Native, "a native client says nothing"),
            (true, &[ALPN_TCP], Wire::Native, "a TCP caller of an HTTP service"),
            (false, &[ALPN_TCP], Wire::Tcp, "bytes with a verdict"),
            (false, &[ALPN_STREAMS, ALPN_TCP], Wire::Streams, "streams where they are offered"),
            (false, &[ALPN_TCP, ALPN_STREAMS], Wire::Streams, "in whatever order"),
            (true, &[ALPN_STREAMS, ALPN_TCP], Wire::Native, "a TCP caller of an HTTP service"),
            (false, &[ALPN_H2], Wire::Native, "bytes, whatever they are"),
        ];
        for (is_http, offered, expected, why) in cases {
            assert_eq!(Wire::choose(*is_http, offered.iter().copied()), *expected, "{why}");
        }
    }
}
