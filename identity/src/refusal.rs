//! Why a certificate is no identity: one closed set, which each caller puts into its own words.

use std::sync::Arc;

use hawser_core::spiffe::InvalidSpiffeId;
use rustls::{CertificateError, OtherError};

/// Why a peer is not believed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It showed no certificate.
    #[error("no certificate was shown")]
    Absent,
    /// More certificates, or more octets of them, than an identity of ours comes with.
    #[error("the chain is longer than 3 certificates or 16 KiB")]
    ChainTooLong,
    /// It is no X.509 certificate, or one of its extensions stands twice.
    #[error("the certificate is malformed")]
    Malformed,
    /// It does not hold exactly one name, a URI.
    #[error("the certificate does not name exactly one URI and nothing else")]
    NotOneUri,
    /// Its name is no identity.
    #[error("the certificate's URI is no identity")]
    Uri(#[from] InvalidSpiffeId),
    /// An identity of another trust domain.
    #[error("the certificate is of another trust domain")]
    TrustDomain,
    /// An identity of another datacenter.
    #[error("the certificate is of another datacenter")]
    Datacenter,
    /// An identity that has no business here.
    #[error("the certificate's role may not speak here")]
    Role,
    /// The leaf's usages are not exactly client and server authentication, by digital signature;
    /// or its issuer's usages leave out one of these.
    #[error("the certificate is not for client and server authentication alone")]
    Usage,
    /// Its key is neither P-256 nor Ed25519.
    #[error("the certificate's key is neither P-256 nor Ed25519")]
    Key,
    /// The identity, its node or this very certificate is revoked.
    #[error("the identity is revoked")]
    Revoked,
    /// It holds for longer than an identity may.
    #[error("the certificate's lifetime is longer than 7 days")]
    Lifetime,
    /// The chain does not end at a root of its role.
    #[error("the chain does not end at a root that is trusted for its role")]
    UnknownIssuer,
    /// A certificate of the chain has run out.
    #[error("a certificate of the chain has run out")]
    Expired,
    /// A certificate of the chain does not hold yet.
    #[error("a certificate of the chain does not hold yet")]
    NotYetValid,
    /// The chain breaks another rule of RFC 5280.
    #[error("the chain does not hold")]
    Chain(#[source] webpki::Error),
    /// An identity, but not the one that was called.
    #[error("the certificate is of somebody else than was called")]
    Unexpected,
}

impl Refusal {
    /// The refusal by which a handshake failed; none when it failed by something else.
    pub fn behind(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::NoCertificatesPresented => Some(Self::Absent),
            rustls::Error::InvalidCertificate(why) => match why {
                CertificateError::BadEncoding => Some(Self::Malformed),
                CertificateError::UnknownIssuer => Some(Self::UnknownIssuer),
                CertificateError::Expired => Some(Self::Expired),
                CertificateError::NotValidYet => Some(Self::NotYetValid),
                CertificateError::Revoked => Some(Self::Revoked),
                CertificateError::Other(OtherError(other)) => other.downcast_ref::<Self>().cloned(),
                _ => None,
            },
            _ => None,
        }
    }
}

impl From<webpki::Error> for Refusal {
    fn from(why: webpki::Error) -> Self {
        match why {
            webpki::Error::UnknownIssuer => Self::UnknownIssuer,
            webpki::Error::CertExpired { .. } => Self::Expired,
            webpki::Error::CertNotValidYet { .. } => Self::NotYetValid,
            webpki::Error::EmptyEkuExtension | webpki::Error::RequiredEkuNotFoundContext(_) => {
                Self::Usage
            }
            other => Self::Chain(other),
        }
    }
}

impl From<Refusal> for rustls::Error {
    /// The peer is told what it can act on; the rest is for our own log and metrics.
    fn from(refusal: Refusal) -> Self {
        Self::InvalidCertificate(match refusal {
            Refusal::Absent => return Self::NoCertificatesPresented,
            Refusal::Malformed => CertificateError::BadEncoding,
            Refusal::UnknownIssuer => CertificateError::UnknownIssuer,
            Refusal::Expired => CertificateError::Expired,
            Refusal::NotYetValid => CertificateError::NotValidYet,
            Refusal::Revoked => CertificateError::Revoked,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}
