//! TLS towards servers: only a server's certificate under the one server root is believed.

use std::sync::{Arc, Mutex};

use aws_lc_rs::digest;
use hawser_core::name::Datacenter;
use hawser_core::spiffe::{Role, SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

/// What an agent believes servers by.
#[derive(Clone)]
pub(crate) enum Anchor {
    /// Before joining: SHA-256 of the server root's public key, from the join token.
    Pin([u8; 32]),
    /// Afterwards: the root itself, and the trust domain that it vouches in.
    Root { certificate: CertificateDer<'static>, trust_domain: TrustDomain },
}

/// The server root and the server that were met.
#[derive(Clone)]
pub(crate) struct Met {
    /// The root that vouched, DER.
    pub(crate) root: CertificateDer<'static>,
    /// Who answered.
    pub(crate) server: SpiffeId,
}

/// Why a certificate is not what it should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum InvalidCertificate {
    /// Not X.509.
    #[error("it is no X.509 certificate")]
    Malformed,
    /// Not exactly one URI and nothing else as subject alternative name.
    #[error("it has not exactly one name, a URI")]
    Names,
    /// The URI is no identity.
    #[error("its name is no SPIFFE id of ours")]
    SpiffeId,
}

/// The identity in a certificate: its one subject alternative name.
///
/// # Errors
/// Anything but exactly one URI is refused: two names are two ways round a policy.
pub(crate) fn identity_of(certificate: &[u8]) -> Result<SpiffeId, InvalidCertificate> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
        .map_err(|_| InvalidCertificate::Malformed)?;
    let mut names =
        parsed.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        });
    match (names.next().map(Vec::as_slice), names.next()) {
        (Some([GeneralName::URI(uri)]), None) => {
            uri.parse().map_err(|_| InvalidCertificate::SpiffeId)
        }
        _ => Err(InvalidCertificate::Names),
    }
}

/// The SubjectPublicKeyInfo of a certificate, DER.
pub(crate) fn public_key_of(certificate: &[u8]) -> Result<Vec<u8>, InvalidCertificate> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate)
        .map_err(|_| InvalidCertificate::Malformed)?;
    Ok(parsed.public_key().raw.to_vec())
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: what a join token pins.
pub(crate) fn pin_of(certificate: &[u8]) -> Result<[u8; 32], InvalidCertificate> {
    let key = public_key_of(certificate)?;
    let mut pin = [0; 32];
    pin.copy_from_slice(digest::digest(&digest::SHA256, &key).as_ref());
    Ok(pin)
}

/// Whether `chain` leads from its first certificate to one of `roots` at this moment.
pub(crate) fn leads_to(chain: &[CertificateDer<'static>], roots: &[Arc<[u8]>]) -> bool {
    let Some((leaf, rest)) = chain.split_first() else { return false };
    let roots: Vec<_> = roots.iter().map(|root| CertificateDer::from(root.to_vec())).collect();
    let anchors: Vec<_> =
        roots.iter().filter_map(|root| webpki::anchor_from_trusted_cert(root).ok()).collect();
    let Ok(leaf) = webpki::EndEntityCert::try_from(leaf) else { return false };
    leaf.verify_for_usage(
        provider::default_provider().signature_verification_algorithms.all,
        &anchors,
        rest,
        UnixTime::now(),
        webpki::KeyUsage::client_auth(),
        None,
        None,
    )
    .is_ok()
}

/// A client configuration that believes servers by `anchor`, and the verifier that tells who was
/// met.
///
/// # Errors
/// A certificate and key that rustls cannot use.
pub(crate) fn client(
    anchor: Anchor,
    datacenter: Datacenter,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<(ClientConfig, Arc<ServerVerifier>), rustls::Error> {
    let provider = Arc::new(mesh_provider());
    let verifier = Arc::new(ServerVerifier {
        anchor,
        datacenter,
        algorithms: provider.signature_verification_algorithms,
        met: Mutex::new(None),
    });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the checks of certificates that changed meanwhile.
    config.resumption = rustls::client::Resumption::disabled();
    Ok((config, verifier))
}

/// aws-lc-rs with X25519 and AES-128-GCM first.
fn mesh_provider() -> CryptoProvider {
    let mut chosen = provider::default_provider();
    chosen.kx_groups = vec![
        provider::kx_group::X25519,
        provider::kx_group::SECP256R1,
        provider::kx_group::SECP384R1,
    ];
    chosen.cipher_suites = vec![
        provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
        provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
        provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    chosen
}

/// Believes a peer only as a server of this datacenter under the server root.
pub(crate) struct ServerVerifier {
    anchor: Anchor,
    datacenter: Datacenter,
    algorithms: WebPkiSupportedAlgorithms,
    met: Mutex<Option<Met>>,
}

impl ServerVerifier {
    /// Whom the last good handshake met.
    pub(crate) fn met(&self) -> Option<Met> {
        self.met.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn root(
        &self,
        presented: &[CertificateDer<'_>],
    ) -> Result<CertificateDer<'static>, CertificateError> {
        match &self.anchor {
            Anchor::Root { certificate, .. } => Ok(certificate.clone()),
            Anchor::Pin(pin) => presented
                .iter()
                .find(|certificate| pin_of(certificate).is_ok_and(|found| found == *pin))
                .map(|certificate| certificate.clone().into_owned())
                .ok_or(CertificateError::UnknownIssuer),
        }
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Met, CertificateError> {
        let root = self.root(intermediates)?;
        let anchor = webpki::anchor_from_trusted_cert(&root)
            .map_err(|_| CertificateError::BadEncoding)?
            .to_owned();
        let parsed =
            webpki::EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        parsed
            .verify_for_usage(
                self.algorithms.all,
                &[anchor],
                intermediates,
                now,
                webpki::KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(|why| match why {
                webpki::Error::CertExpired { .. } => CertificateError::Expired,
                webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
                webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
                _ => CertificateError::BadEncoding,
            })?;
        let server = identity_of(leaf).map_err(|_| CertificateError::NotValidForName)?;
        let is_ours = match &self.anchor {
            Anchor::Root { trust_domain, .. } => server.trust_domain == *trust_domain,
            Anchor::Pin(_) => true,
        };
        let is_server = matches!(server.role, Role::Server(_));
        if !is_ours || !is_server || server.datacenter != self.datacenter {
            return Err(CertificateError::NotValidForName);
        }
        Ok(Met { root, server })
    }
}

impl std::fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerVerifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let met = self.check(leaf, intermediates, now)?;
        *self.met.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(met);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
