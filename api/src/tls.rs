//! TLS towards the HTTP API: which authorities are trusted, and what is shown.

use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What `CONSUL_CACERT` and its siblings say; every part is PEM.
#[derive(Clone, Default)]
pub struct Settings {
    /// The authorities that are trusted; none trusts the system's.
    pub authorities: Option<Vec<u8>>,
    /// The certificate that is shown; none shows none.
    pub certificate: Option<Vec<u8>>,
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// The name that the API's certificate must have; none means the address's host.
    pub server_name: Option<String>,
    /// Whether any certificate will do.
    pub trusts_anyone: bool,
}

/// How TLS is spoken with the API.
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: Option<String>,
}

/// Why TLS cannot be spoken as was asked.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTls {
    /// No authority in PEM.
    #[error("-ca-file: it holds no certificate in PEM")]
    Authorities,
    /// No certificate in PEM.
    #[error("-client-cert: it holds no certificate in PEM")]
    Certificate,
    /// No key in PEM, or a certificate without one.
    #[error("-client-key: the certificate needs its key, in PEM")]
    Key,
    /// They do not fit together.
    #[error("-client-cert: {0}")]
    Tls(#[from] rustls::Error),
}

impl From<InvalidTls> for io::Error {
    fn from(invalid: InvalidTls) -> Self {
        Self::new(io::ErrorKind::InvalidInput, invalid)
    }
}

impl Tls {
    /// Reads what `settings` hold.
    ///
    /// # Errors
    /// [`InvalidTls`]
    pub fn new(settings: &Settings) -> Result<Self, InvalidTls> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match (settings.trusts_anyone, &settings.authorities) {
            (true, _) => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(algorithms)))
            }
            (false, Some(pem)) => {
                let mut roots = RootCertStore::empty();
                if roots.add_parsable_certificates(certificates(pem)).0 == 0 {
                    return Err(InvalidTls::Authorities);
                }
                builder.with_root_certificates(roots)
            }
            (false, None) => builder.with_root_certificates(system_roots()),
        };
        let mut config = match &settings.certificate {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let chain = certificates(pem);
                if chain.is_empty() {
                    return Err(InvalidTls::Certificate);
                }
                let key = settings.key.as_deref().ok_or(InvalidTls::Key)?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| InvalidTls::Key)?;
                builder.with_client_auth_cert(chain, key)?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), server_name: settings.server_name.clone() })
    }

    /// Dials `authority`, `host:port`.
    pub(crate) async fn connect(&self, authority: &str) -> io::Result<TlsStream<TcpStream>> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name)
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let socket = TcpStream::connect(authority).await?;
        TlsConnector::from(self.config.clone()).connect(name, socket).await
    }
}

fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for path in BUNDLES {
        let Ok(found) = CertificateDer::pem_file_iter(path) else { continue };
        roots.add_parsable_certificates(found.filter_map(Result::ok));
        break;
    }
    roots
}

/// Believes every certificate whose holder has its key: `CONSUL_HTTP_SSL_VERIFY=false`.
#[derive(Debug)]
struct Anyone(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// Where Debian, Red Hat and Alpine keep their bundles.
const BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
