//! TLS between proxies: configurations of one leaf, and verifiers that read identity strictly.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::ca::Validity;
use hawser_core::clock::UnixTime;
use hawser_core::reason::Reason;
use hawser_core::spiffe::{Role, SpiffeId, TrustDomain};
use hawser_core::view::Trust;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    OtherError, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, TrustAnchor};
use webpki::{ExtendedKeyUsageValidator, KeyPurposeIdIter};
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry;
use x509_parser::prelude::{FromDer, X509Certificate};

/// HTTP/2 between proxies, and from native clients that speak it.
pub const ALPN_H2: &[u8] = b"h2";
/// HTTP/1.1: native clients, and upgraded connections between proxies.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";
/// Bytes between proxies, after one byte by the callee's proxy that says whether it relays.
pub const ALPN_TCP: &[u8] = b"hawser-tcp/1";

/// One service's certificate and its key.
pub struct Leaf {
    /// Who it says its holder is.
    pub id: SpiffeId,
    /// The leaf, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// When it holds.
    pub validity: Validity,
}

impl fmt::Debug for Leaf {
    /// Says whose it is, and nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The one provider of the mesh: TLS 1.3, AES-128-GCM and X25519 first.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
}

/// Why a leaf cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// The key is of a kind that rustls does not sign with, or malformed.
    #[error("the leaf's key cannot be used")]
    Key(#[source] rustls::Error),
    /// Key and certificate do not belong together, or TLS refuses the configuration.
    #[error("the leaf's certificate cannot be used")]
    Certificate(#[source] rustls::Error),
}

/// Whom this host trusts: the roots of one trust domain.
pub struct Anchors {
    trust_domain: TrustDomain,
    roots: Vec<TrustAnchor<'static>>,
}

impl Anchors {
    /// Reads the roots of `trust`. Those that cannot be read are left out: less is trusted, not
    /// more.
    pub fn new(trust: &Trust) -> Self {
        let anchor = |der: &Arc<[u8]>| {
            let certificate = CertificateDer::from(der.as_ref());
            webpki::anchor_from_trusted_cert(&certificate).ok().map(|anchor| anchor.to_owned())
        };
        Self {
            trust_domain: trust.trust_domain.clone(),
            roots: trust.roots.iter().filter_map(anchor).collect(),
        }
    }

    /// Proves who holds `leaf`, and until when.
    ///
    /// # Errors
    /// The [`Reason`] for which it is refused: the chain, the time, the key's kind, the usages,
    /// the lifetime, or an identity that is not exactly one SPIFFE URI of a service in the
    /// trust domain.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: rustls_pki_types::UnixTime,
    ) -> Result<Proven, Reason> {
        let octets: usize = intermediates.iter().map(|der| der.len()).sum::<usize>() + leaf.len();
        if intermediates.len() > INTERMEDIATES_MAX || octets > CHAIN_OCTETS_MAX {
            return Err(Reason::UnfitCertificate);
        }
        let certificate =
            webpki::EndEntityCert::try_from(leaf).map_err(|why| webpki_reason(&why))?;
        certificate
            .verify_for_usage(SIGNATURES, &self.roots, intermediates, now, BothUsages, None, None)
            .map_err(|why| webpki_reason(&why))?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|_| Reason::UntrustedCertificate)?;
        let id = identity(&parsed)?;
        if id.trust_domain != self.trust_domain {
            return Err(Reason::WrongTrustDomain);
        }
        if !matches!(id.role, Role::Service(_)) {
            return Err(Reason::WrongRole);
        }
        let validity = fitness(&parsed)?;
        Ok(Proven { id, validity })
    }
}

/// An identity that a certificate proved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proven {
    /// Who.
    pub id: SpiffeId,
    /// When the certificate holds.
    pub validity: Validity,
}

/// Reads who holds `leaf`, whose chain a handshake has verified already.
///
/// # Errors
/// As [`Anchors::verify`], for what the certificate itself says.
pub fn read(leaf: &CertificateDer<'_>) -> Result<Proven, Reason> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| Reason::UntrustedCertificate)?;
    Ok(Proven { id: identity(&parsed)?, validity: fitness(&parsed)? })
}

/// What one leaf and one set of roots make: everything that handshakes need.
pub struct Identity {
    /// Whose it is.
    pub id: SpiffeId,
    /// When its leaf holds.
    pub validity: Validity,
    /// Tells this identity from those before and after it, so that pools do not mix them.
    pub generation: u64,
    provider: Arc<CryptoProvider>,
    anchors: Arc<Anchors>,
    key: Arc<CertifiedKey>,
    accept: [Arc<ServerConfig>; 4],
}

impl Identity {
    /// Prepares `leaf` for use under `anchors`.
    ///
    /// # Errors
    /// [`LeafError`] when key and certificate cannot be used.
    pub fn new(
        provider: &Arc<CryptoProvider>,
        leaf: &Leaf,
        anchors: &Arc<Anchors>,
        generation: u64,
    ) -> Result<Self, LeafError> {
        let key =
            provider.key_provider.load_private_key(leaf.key.clone_key()).map_err(LeafError::Key)?;
        let key = Arc::new(CertifiedKey::new(leaf.chain.clone(), key));
        key.keys_match().map_err(LeafError::Certificate)?;
        let accept = |alpn: &[&[u8]]| {
            let verifier = Arc::new(Callers(Verifier::new(provider, anchors)));
            let mut config = ServerConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .map_err(LeafError::Certificate)?
                .with_client_cert_verifier(verifier)
                .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key.clone())));
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            // A resumed session would skip the check of the caller's certificate.
            config.send_tls13_tickets = 0;
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.max_early_data_size = 0;
            Ok(Arc::new(config))
        };
        let accept =
            [accept(&[])?, accept(&[ALPN_H2])?, accept(&[ALPN_HTTP1])?, accept(&[ALPN_TCP])?];
        Ok(Self {
            id: leaf.id.clone(),
            validity: leaf.validity,
            generation,
            provider: provider.clone(),
            anchors: anchors.clone(),
            key,
            accept,
        })
    }

    /// The configuration that answers with exactly `protocol`.
    pub fn accept(&self, protocol: Wire) -> Arc<ServerConfig> {
        self.accept[protocol as usize].clone()
    }

    /// The configuration that calls `expected` and nobody else.
    ///
    /// # Errors
    /// [`LeafError`] when TLS refuses it.
    pub fn dial(&self, expected: SpiffeId, alpn: &[u8]) -> Result<Arc<ClientConfig>, LeafError> {
        let verifier = Verifier::new(&self.provider, &self.anchors);
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(LeafError::Certificate)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Callee { verifier, expected }))
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                self.key.clone(),
            )));
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Arc::new(config))
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
}

impl Wire {
    /// What a callee of the given kind speaks with a caller that offers `alpn`.
    pub fn choose<'a>(is_http: bool, alpn: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut offers_http1 = false;
        for name in alpn {
            match name {
                ALPN_H2 if is_http => return Self::H2,
                ALPN_HTTP1 if is_http => offers_http1 = true,
                ALPN_TCP if !is_http => return Self::Tcp,
                _ => {}
            }
        }
        if offers_http1 { Self::Http1 } else { Self::Native }
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
    match error {
        rustls::Error::NoCertificatesPresented => Reason::NoClientCertificate,
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref::<Refused>().map_or(Reason::UntrustedCertificate, |r| r.0)
        }
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::NotValidYet,
        ) => Reason::CertificateExpired,
        rustls::Error::InvalidCertificate(_) => Reason::UntrustedCertificate,
        rustls::Error::InvalidMessage(_) => Reason::Plaintext,
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => Reason::CertificateExpired,
            AlertDescription::CertificateRequired => Reason::NoClientCertificate,
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown => Reason::UntrustedCertificate,
            _ => Reason::HandshakeFailed,
        },
        _ => Reason::HandshakeFailed,
    }
}

/// A refusal by our own verifier, on its way through rustls.
#[derive(Debug, thiserror::Error)]
#[error("the peer's certificate is refused: {0}")]
struct Refused(Reason);

fn refused(reason: Reason) -> rustls::Error {
    let error = match reason {
        Reason::CertificateExpired => CertificateError::Expired,
        other => CertificateError::Other(OtherError(Arc::new(Refused(other)))),
    };
    rustls::Error::InvalidCertificate(error)
}

struct Verifier {
    anchors: Arc<Anchors>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(provider: &CryptoProvider, anchors: &Arc<Anchors>) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        Self { anchors: anchors.clone(), algorithms }
    }

    fn signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({})", self.anchors.trust_domain)
    }
}

/// Accepts any service of the trust domain: which one may call is for the intentions to say.
#[derive(Debug)]
struct Callers(Verifier);

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: rustls_pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.anchors.verify(end_entity, intermediates, now).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("the mesh speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

/// Accepts exactly one service, whatever name TLS was given.
#[derive(Debug)]
struct Callee {
    verifier: Verifier,
    expected: SpiffeId,
}

impl ServerCertVerifier for Callee {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: rustls_pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let proven =
            self.verifier.anchors.verify(end_entity, intermediates, now).map_err(refused)?;
        if proven.id != self.expected {
            return Err(refused(Reason::UnexpectedPeer));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("the mesh speaks TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

/// Whoever names usages must name both sides of a handshake, so that neither role can be borrowed.
/// Intermediates may name none; that a leaf does is for [`fitness`] to see.
struct BothUsages;

impl ExtendedKeyUsageValidator for BothUsages {
    fn validate(&self, iter: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let (mut client, mut server, mut none) = (false, false, true);
        for id in iter {
            none = false;
            let id = id?.to_decoded_oid();
            client |= id == [1, 3, 6, 1, 5, 5, 7, 3, 2];
            server |= id == [1, 3, 6, 1, 5, 5, 7, 3, 1];
        }
        if none || (client && server) { Ok(()) } else { Err(webpki::Error::EmptyEkuExtension) }
    }
}

fn webpki_reason(error: &webpki::Error) -> Reason {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
            Reason::CertificateExpired
        }
        webpki::Error::EmptyEkuExtension | webpki::Error::RequiredEkuNotFoundContext(_) => {
            Reason::UnfitCertificate
        }
        _ => Reason::UntrustedCertificate,
    }
}

/// The one identity of a certificate: exactly one URI, byte for byte. Names of other kinds and
/// the subject are not read.
fn identity(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Reason> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| Reason::MalformedIdentity)?
        .ok_or(Reason::MalformedIdentity)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|_| Reason::MalformedIdentity),
        _ => Err(Reason::MalformedIdentity),
    }
}

/// Checks a leaf's key and lifetime, which webpki leaves to its user.
fn fitness(certificate: &X509Certificate<'_>) -> Result<Validity, Reason> {
    let algorithm = &certificate.public_key().algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
    let is_p256 = algorithm.algorithm == oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|oid| oid == oid_registry::OID_EC_P256);
    let is_ed25519 = algorithm.algorithm == oid_registry::OID_SIG_ED25519;
    let validity = validity(certificate);
    let lifetime = validity.not_after.since(validity.not_before);
    let usages = certificate.extended_key_usage().ok().flatten();
    let has_both =
        usages.is_some_and(|usages| usages.value.client_auth && usages.value.server_auth);
    let is_short = lifetime <= LEAF_LIFETIME_MAX;
    if !(is_p256 || is_ed25519) || !is_short || !has_both || certificate.is_ca() {
        return Err(Reason::UnfitCertificate);
    }
    Ok(validity)
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let moment = |time: x509_parser::time::ASN1Time| {
        UnixTime::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
    };
    let validity = certificate.validity();
    Validity { not_before: moment(validity.not_before), not_after: moment(validity.not_after) }
}

const SIGNATURES: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] = &[
    webpki::aws_lc_rs::ECDSA_P256_SHA256,
    webpki::aws_lc_rs::ECDSA_P256_SHA384,
    webpki::aws_lc_rs::ECDSA_P384_SHA256,
    webpki::aws_lc_rs::ECDSA_P384_SHA384,
    webpki::aws_lc_rs::ED25519,
];
const SCHEMES: &[SignatureScheme] =
    &[SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519];
/// A leaf and at most two intermediates: one of ours, and a cross-signed one in a rotation.
const INTERMEDIATES_MAX: usize = 2;
const CHAIN_OCTETS_MAX: usize = 16 * 1024;
/// Limits the damage of a stolen authority; ours issues for a day. A minute of grace on top.
const LEAF_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600 + 60);

#[cfg(test)]
mod tests;
