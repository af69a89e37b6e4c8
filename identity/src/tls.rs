//! TLS as the mesh speaks it: 1.3 alone, nothing resumed, every peer verified by [`Anchors`].

use std::sync::Arc;

use hawser_core::clock::UnixTime;
use hawser_core::spiffe::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{self, CertificateDer, ServerName};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};

use crate::anchors::Anchors;
use crate::provider::{ALGORITHMS, provider};
use crate::refusal::Refusal;

/// Verifies those who call.
#[derive(Debug)]
pub struct Callers {
    anchors: Arc<Anchors>,
    admits_strangers: bool,
}

impl Callers {
    /// Only those whom `anchors` trusts.
    pub fn new(anchors: Arc<Anchors>) -> Self {
        Self { anchors, admits_strangers: false }
    }

    /// Those whom `anchors` trusts, and those who show no certificate at all: nobody in
    /// particular, whom the caller of this must keep from all that needs an identity.
    pub fn or_strangers(anchors: Arc<Anchors>) -> Self {
        Self { anchors, admits_strangers: true }
    }
}

/// Verifies whom one called, whatever name TLS was given.
#[derive(Debug)]
pub struct Callee {
    anchors: Arc<Anchors>,
    expected: Option<SpiffeId>,
}

impl Callee {
    /// Anyone whom `anchors` trusts.
    pub fn any(anchors: Arc<Anchors>) -> Self {
        Self { anchors, expected: None }
    }

    /// `expected` and nobody else.
    pub fn only(anchors: Arc<Anchors>, expected: SpiffeId) -> Self {
        Self { anchors, expected: Some(expected) }
    }
}

/// What is the same for verifiers of both sides: signatures within the handshake.
macro_rules! handshake_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            leaf: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, leaf, signed, &ALGORITHMS)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            ALGORITHMS.supported_schemes()
        }
    };
}

impl ClientCertVerifier for Callers {
    fn client_auth_mandatory(&self) -> bool {
        !self.admits_strangers
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: pki_types::UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.anchors.verify_parts(leaf, intermediates, wall_clock(now))?;
        Ok(ClientCertVerified::assertion())
    }

    handshake_signatures!();
}

impl ServerCertVerifier for Callee {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let proven = self.anchors.verify_parts(leaf, intermediates, wall_clock(now))?;
        match &self.expected {
            Some(expected) if proven.id != *expected => Err(Refusal::Unexpected.into()),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    handshake_signatures!();
}

fn wall_clock(now: pki_types::UnixTime) -> UnixTime {
    UnixTime::from_secs(now.as_secs())
}

/// Accepts `callers`, and answers in one of `protocols`. TLS 1.3 only. Nothing is resumed: a
/// resumed session skips verification.
///
/// # Errors
/// When the cryptographic provider does not support TLS 1.3, which this one does.
pub fn accept(
    callers: Callers,
    shows: Arc<dyn ResolvesServerCert>,
    protocols: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(callers))
        .with_cert_resolver(shows);
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// Calls `callee` in one of `protocols`; shows no certificate without `shows`. TLS 1.3 only.
/// Nothing is resumed: a resumed session skips verification.
///
/// # Errors
/// When the cryptographic provider does not support TLS 1.3, which this one does.
pub fn dial(
    callee: Callee,
    shows: Option<Arc<dyn ResolvesClientCert>>,
    protocols: &[&[u8]],
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(callee));
    let mut config = match shows {
        Some(shows) => builder.with_client_cert_resolver(shows),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}
