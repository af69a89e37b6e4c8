//! Who this host and its services are: keys made here, certificates signed by servers, kept 0600.

pub(crate) mod join;
pub(crate) mod leaves;
pub(crate) mod node;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_core::ca::Validity;
use hawser_core::clock::UnixTime;
use hawser_core::spiffe::SpiffeId;
use hawser_core::view::Trust;
use hawser_identity::{Leaf, Refusal, id_of, public_key_of, serial_of};
use hawser_proto::v1;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// A private key, its certificate, and what the certificate says. Not printable.
#[derive(Clone)]
pub(crate) struct Credential {
    /// Whose it is.
    pub(crate) id: SpiffeId,
    /// The certificate, then intermediates.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The roots that were trusted when it was signed.
    pub(crate) roots: Vec<Arc<[u8]>>,
    /// The id of the root that vouches for it; empty for one of an older release.
    pub(crate) issuer: Arc<str>,
    /// When it holds.
    pub(crate) validity: Validity,
    /// The key, PKCS #8.
    key: Zeroizing<Vec<u8>>,
}

/// Why a server's reply is no certificate for us.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum InvalidReply {
    /// A part is missing.
    #[error("the server's reply has no {0}")]
    Missing(&'static str),
    /// The certificate is malformed.
    #[error("the server's certificate is malformed: {0}")]
    Certificate(#[from] Refusal),
    /// It is for another key.
    #[error("the server's certificate is for another key")]
    OtherKey,
    /// It is for somebody else.
    #[error("the server's certificate is for somebody else")]
    OtherIdentity,
}

/// A key that waits for its certificate.
pub(crate) struct Request {
    key: KeyPair,
    /// The signing request, DER.
    pub(crate) csr: Vec<u8>,
}

impl Request {
    /// Makes a P-256 key and a request for it. What the request says besides the key counts for
    /// nothing.
    pub(crate) fn make() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let csr = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(Self { key, csr })
    }

    /// SHA-256 of the public key, SPKI.
    pub(crate) fn key_hash(&self) -> [u8; 32] {
        let spki = rcgen::PublicKeyData::subject_public_key_info(&self.key);
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &spki);
        digest.as_ref().try_into().expect("SHA-256 has 32 octets")
    }

    /// The credential, if `reply` certifies this very key for `expected`.
    pub(crate) fn answered(
        &self,
        reply: v1::CertificateReply,
        expected: &SpiffeId,
    ) -> Result<Credential, InvalidReply> {
        let leaf = reply.chain.first().ok_or(InvalidReply::Missing("certificate"))?;
        if public_key_of(leaf)? != rcgen::PublicKeyData::subject_public_key_info(&self.key) {
            return Err(InvalidReply::OtherKey);
        }
        if id_of(leaf)? != *expected {
            return Err(InvalidReply::OtherIdentity);
        }
        let validity = reply.validity.ok_or(InvalidReply::Missing("validity"))?;
        Ok(Credential {
            id: expected.clone(),
            chain: reply.chain.into_iter().map(CertificateDer::from).collect(),
            roots: reply.roots.into_iter().map(Arc::from).collect(),
            issuer: reply.issuing_root.into(),
            validity: validity.into(),
            key: Zeroizing::new(self.key.serialize_der()),
        })
    }
}

impl Credential {
    /// Whether `trust` asks for another in its place, because a new root signs.
    pub(crate) fn is_superseded(&self, trust: &Trust) -> bool {
        let signs = &trust.issuing.root;
        !signs.is_empty() && self.issuer != *signs
    }

    /// Whether it was revoked alone, as `trust` has it.
    pub(crate) fn is_revoked(&self, trust: &Trust) -> bool {
        let serial = self.chain.first().and_then(|leaf| serial_of(leaf).ok());
        serial.is_some_and(|serial| trust.revoked.is_certificate(serial.octets()))
    }

    /// It as TLS takes it.
    pub(crate) fn leaf(&self) -> Leaf {
        Leaf {
            id: self.id.clone(),
            chain: self.chain.clone(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.to_vec())),
            validity: self.validity,
        }
    }

    /// The key, PEM: for the API's leaf endpoint only.
    pub(crate) fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.key)
    }

    /// The chain, PEM.
    pub(crate) fn chain_pem(&self) -> String {
        self.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
    }

    fn kept(&self) -> Kept {
        Kept {
            id: self.id.to_string(),
            key: Zeroizing::new(STANDARD.encode(&*self.key)),
            chain: self.chain.iter().map(|certificate| STANDARD.encode(certificate)).collect(),
            roots: self.roots.iter().map(|root| STANDARD.encode(root)).collect(),
            issuer: self.issuer.to_string(),
            not_before: self.validity.not_before,
            not_after: self.validity.not_after,
        }
    }
}

/// DER as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        // Base64 is ASCII, so every chunk is text.
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// A credential as it is kept on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    id: String,
    key: Zeroizing<String>,
    chain: Vec<String>,
    roots: Vec<String>,
    #[serde(default)]
    issuer: String,
    not_before: UnixTime,
    not_after: UnixTime,
}

/// A kept credential that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damaged {
    /// Not JSON of the right shape.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Not base64.
    #[error("{0}")]
    Base64(#[from] base64::DecodeError),
    /// Not an identity.
    #[error("{0}")]
    Identity(#[from] hawser_core::spiffe::InvalidSpiffeId),
    /// Not a name.
    #[error("{0}")]
    Name(#[from] hawser_core::name::InvalidName),
    /// The parts do not belong together.
    #[error("key, certificate and identity do not belong together")]
    Mismatch,
}

impl TryFrom<Kept> for Credential {
    type Error = Damaged;

    fn try_from(kept: Kept) -> Result<Self, Damaged> {
        let decode_all = |all: Vec<String>| -> Result<Vec<Vec<u8>>, base64::DecodeError> {
            all.iter().map(|text| STANDARD.decode(text)).collect()
        };
        let key = Zeroizing::new(STANDARD.decode(kept.key.as_bytes())?);
        let chain = decode_all(kept.chain)?;
        let id: SpiffeId = kept.id.parse()?;
        let pair = KeyPair::try_from(key.as_slice()).map_err(|_| Damaged::Mismatch)?;
        let is_whole = chain.first().is_some_and(|leaf| {
            let key = rcgen::PublicKeyData::subject_public_key_info(&pair);
            public_key_of(leaf).is_ok_and(|held| held == key)
                && id_of(leaf).is_ok_and(|held| held == id)
        });
        if !is_whole {
            return Err(Damaged::Mismatch);
        }
        Ok(Self {
            id,
            chain: chain.into_iter().map(CertificateDer::from).collect(),
            roots: decode_all(kept.roots)?.into_iter().map(Arc::from).collect(),
            issuer: kept.issuer.into(),
            validity: Validity { not_before: kept.not_before, not_after: kept.not_after },
            key,
        })
    }
}
