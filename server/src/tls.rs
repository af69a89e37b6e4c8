//! TLS on the servers' one port: who may speak, by which root, and for how long.
//!
//! Tasks: one per connection, ended by `drain`, by the peer's certificate running out, or by its
//! root losing the mesh's trust.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_core::ca::Validity;
use hawser_core::clock::UnixTime;
use hawser_core::name::Datacenter;
use hawser_core::spiffe::{InvalidSpiffeId, Role, SpiffeId, TrustDomain};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::IntCounterVec;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature,
};
use rustls::pki_types::{self, CertificateDer, ServerName, TrustAnchor};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519};
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::identity::{self, Identity};

/// Root certificates of the mesh, DER: those that agents' certificates come from.
pub type Roots = Arc<[Arc<[u8]>]>;

/// Who is at the other end: in the extensions of every request of a connection whose peer showed
/// a certificate.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its identity, verified.
    pub id: SpiffeId,
}

/// Where a request came from: in the extensions of every request.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub SocketAddr);

/// Why a certificate is no identity of this mesh.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// More certificates, or more octets of them, than an identity of ours comes with.
    #[error("the chain is longer than 3 certificates or 16 KiB")]
    ChainTooLong,
    /// It is no X.509 certificate, or one of an extension stands twice.
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
    /// An identity that has no business on this port.
    #[error("the certificate's role may not speak here")]
    Role,
    /// Its usages are not exactly client and server authentication, by digital signature.
    #[error("the certificate is not for client and server authentication alone")]
    Usage,
    /// Its key is neither P-256 nor Ed25519.
    #[error("the certificate's key is neither P-256 nor Ed25519")]
    Key,
    /// It holds for longer than an identity may.
    #[error("the certificate's lifetime is longer than {} days", LIFETIME_MAX.as_secs() / 86_400)]
    Lifetime,
    /// The chain does not end at a root of its role, or does not hold now.
    #[error("the chain does not hold")]
    Chain(#[from] webpki::Error),
}

impl Refusal {
    /// The word for it in metrics: one of a closed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ChainTooLong => "chain_too_long",
            Self::Malformed => "malformed",
            Self::NotOneUri => "not_one_uri",
            Self::Uri(_) => "no_identity",
            Self::TrustDomain => "trust_domain",
            Self::Datacenter => "datacenter",
            Self::Role => "role",
            Self::Usage => "usage",
            Self::Key => "key",
            Self::Lifetime => "lifetime",
            Self::Chain(webpki::Error::UnknownIssuer) => "unknown_issuer",
            Self::Chain(webpki::Error::CertExpired { .. }) => "expired",
            Self::Chain(webpki::Error::CertNotValidYet { .. }) => "not_valid_yet",
            Self::Chain(_) => "chain",
        }
    }
}

/// Whom to trust for what: each role has a root set of its own, never a union.
#[derive(Clone)]
pub struct Trust {
    trust_domain: TrustDomain,
    datacenter: Datacenter,
    servers: Vec<TrustAnchor<'static>>,
    /// None: agents may not speak here.
    agents: Option<Vec<TrustAnchor<'static>>>,
}

impl Trust {
    /// Servers only.
    pub fn in_servers(identity: &Identity) -> Self {
        Self {
            trust_domain: identity.trust_domain().clone(),
            datacenter: identity.datacenter().clone(),
            servers: anchors([identity.server_root_der()]),
            agents: None,
        }
    }

    /// Servers by the servers' root, and agents by the mesh's roots.
    pub fn in_servers_and_agents(identity: &Identity, mesh_roots: &[Arc<[u8]>]) -> Self {
        let agents = anchors(mesh_roots.iter().map(|root| &root[..]));
        Self { agents: Some(agents), ..Self::in_servers(identity) }
    }

    /// Who `leaf` says it is, if all of it holds at `now`.
    ///
    /// # Errors
    /// [`Refusal`]: anything but one identity of this cluster, in a role that may speak here,
    /// vouched for by that role's roots.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(SpiffeId, Validity), Refusal> {
        let octets = intermediates.iter().fold(leaf.len(), |sum, next| sum + next.len());
        if intermediates.len() + 1 > CHAIN_MAX || octets > CHAIN_OCTETS_MAX {
            return Err(Refusal::ChainTooLong);
        }
        let (rest, parsed) =
            x509_parser::parse_x509_certificate(leaf).map_err(|_| Refusal::Malformed)?;
        if !rest.is_empty() {
            return Err(Refusal::Malformed);
        }
        let id = only_uri(&parsed)?.parse::<SpiffeId>()?;
        if id.trust_domain != self.trust_domain {
            return Err(Refusal::TrustDomain);
        }
        if id.datacenter != self.datacenter {
            return Err(Refusal::Datacenter);
        }
        let roots = match (&id.role, &self.agents) {
            (Role::Server(_), _) => &self.servers,
            (Role::Agent(_), Some(roots)) => roots,
            (Role::Agent(_) | Role::Service(_) | Role::MeshGateway, _) => {
                return Err(Refusal::Role);
            }
        };
        check_usage(&parsed)?;
        check_key(&parsed)?;
        let validity = check_lifetime(&parsed)?;
        let leaf = webpki::EndEntityCert::try_from(leaf)?;
        let at = pki_types::UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()));
        // Both usages were found above, so either serves to have the chain's checked too.
        let usage = webpki::KeyUsage::client_auth();
        leaf.verify_for_usage(ALGORITHMS.all, roots, intermediates, at, usage, None, None)?;
        Ok((id, validity))
    }
}

/// Roots as the chain's verifier takes them. One that does not parse vouches for nobody.
fn anchors<'a>(roots: impl IntoIterator<Item = &'a [u8]>) -> Vec<TrustAnchor<'static>> {
    let anchor = |root: &[u8]| {
        let der = CertificateDer::from(root);
        webpki::anchor_from_trusted_cert(&der).map(|anchor| anchor.to_owned())
    };
    roots
        .into_iter()
        .filter_map(|root| {
            anchor(root).inspect_err(|error| tracing::error!(%error, "a root is malformed")).ok()
        })
        .collect()
}

/// The one name that the certificate holds, a URI. The subject is never read.
fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, Refusal> {
    let names = certificate.subject_alternative_name().map_err(|_| Refusal::Malformed)?;
    match names.map(|extension| &extension.value.general_names[..]) {
        Some([GeneralName::URI(uri)]) => Ok(uri),
        _ => Err(Refusal::NotOneUri),
    }
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let key_usage = certificate.key_usage().map_err(|_| Refusal::Malformed)?;
    let extended = certificate.extended_key_usage().map_err(|_| Refusal::Malformed)?;
    let constraints = certificate.basic_constraints().map_err(|_| Refusal::Malformed)?;
    let signs_only = key_usage.is_some_and(|extension| {
        let usage = extension.value;
        usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
    });
    let authenticates_only = extended.is_some_and(|extension| {
        let usage = extension.value;
        let others = usage.any
            || usage.code_signing
            || usage.email_protection
            || usage.time_stamping
            || usage.ocsp_signing
            || !usage.other.is_empty();
        usage.client_auth && usage.server_auth && !others
    });
    let is_ca = constraints.is_some_and(|extension| extension.value.ca);
    if signs_only && authenticates_only && !is_ca { Ok(()) } else { Err(Refusal::Usage) }
}

fn check_key(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    key_kind(certificate.public_key()).map(drop).ok_or(Refusal::Key)
}

/// The kinds of keys that identities have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum KeyKind {
    P256,
    Ed25519,
}

/// The kind of a public key; none when it is one that no identity has.
pub(crate) fn key_kind(key: &SubjectPublicKeyInfo<'_>) -> Option<KeyKind> {
    let AlgorithmIdentifier { algorithm, parameters } = &key.algorithm;
    if *algorithm == OID_SIG_ED25519 {
        return Some(KeyKind::Ed25519);
    }
    let curve = parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_p256 =
        *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve.is_some_and(|curve| curve == OID_EC_P256);
    is_p256.then_some(KeyKind::P256)
}

fn check_lifetime(certificate: &X509Certificate<'_>) -> Result<Validity, Refusal> {
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let moment = |secs: i64| u64::try_from(secs).map_err(|_| Refusal::Lifetime);
    let (from, until) = (moment(from)?, moment(until)?);
    if until.saturating_sub(from) > LIFETIME_MAX.as_secs() {
        return Err(Refusal::Lifetime);
    }
    Ok(Validity { not_before: UnixTime::from_secs(from), not_after: UnixTime::from_secs(until) })
}

impl From<Refusal> for rustls::Error {
    fn from(refusal: Refusal) -> Self {
        let certificate = match refusal {
            // The peer is told what it can act on; the rest is for our own log and metric.
            Refusal::Malformed => CertificateError::BadEncoding,
            Refusal::Chain(webpki::Error::UnknownIssuer) => CertificateError::UnknownIssuer,
            Refusal::Chain(webpki::Error::CertExpired { .. }) => CertificateError::Expired,
            Refusal::Chain(webpki::Error::CertNotValidYet { .. }) => CertificateError::NotValidYet,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        Self::InvalidCertificate(certificate)
    }
}

/// What the peer is verified by, at either end.
struct Verifier {
    trust: Trust,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

fn wall_clock(now: pki_types::UnixTime) -> UnixTime {
    UnixTime::from_secs(now.as_secs())
}

fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered)
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        // A host that joins has no certificate yet; every call but that one asks for a `Peer`.
        false
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
        self.trust.verify(leaf, intermediates, wall_clock(now))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
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
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust.verify(leaf, intermediates, wall_clock(now))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
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
}

/// Shows the identity's certificate of the moment.
struct Shows(Arc<Identity>);

impl fmt::Debug for Shows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shows").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Shows {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certificate())
    }
}

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certificate())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What servers accept connections by: servers of this cluster, agents of this mesh, and peers
/// without a certificate, which get no [`Peer`].
///
/// TLS 1.3 only. Nothing is resumed: a resumed session skips verification.
///
/// # Errors
/// When the cryptographic provider does not support TLS 1.3, which this one does.
pub fn accept_config(
    identity: &Arc<Identity>,
    mesh_roots: &[Arc<[u8]>],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let trust = Trust::in_servers_and_agents(identity, mesh_roots);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Verifier { trust }))
        .with_cert_resolver(Arc::new(Shows(identity.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// What servers dial each other by: the peer must be a server of this cluster.
///
/// # Errors
/// When the cryptographic provider does not support TLS 1.3, which this one does.
pub fn dial_config(identity: &Arc<Identity>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let trust = Trust::in_servers(identity);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust }))
        .with_client_cert_resolver(Arc::new(Shows(identity.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// Dials `address` (`host:port`) and handshakes, within 5 s.
///
/// # Errors
/// When nobody answers there, or one who is no server of this cluster.
pub async fn dial(
    config: Arc<ClientConfig>,
    address: &str,
) -> io::Result<client::TlsStream<TcpStream>> {
    let dialled = async {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        // Servers are known by their identity; an address is where, not who.
        let unnamed = ServerName::IpAddress(pki_types::IpAddr::from(socket.peer_addr()?.ip()));
        TlsConnector::from(config).connect(unnamed, socket).await
    };
    timeout(HANDSHAKE_MAX, dialled).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// A channel to the server at `address` (`host:port`): dialled when first used, and again when
/// it breaks.
///
/// # Errors
/// When `address` cannot stand in a URI.
pub fn channel(
    config: Arc<ClientConfig>,
    address: &str,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_MAX)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_OCTETS)
        .initial_connection_window_size(WINDOW_OCTETS);
    let address: Arc<str> = address.into();
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
        let (config, address) = (config.clone(), address.clone());
        async move { dial(config, &address).await.map(TokioIo::new) }
    })))
}

/// Serves `routes` to all who come to `listener`, until `drain`; then lets requests under way
/// finish, for 5 s at most.
///
/// `roots` are the mesh's at each moment: a connection whose peer's chain no longer holds by them
/// is closed, and so is one whose peer's certificate has run out.
///
/// # Errors
/// When the cryptographic provider does not support TLS 1.3, which this one does.
pub async fn serve(
    listener: TcpListener,
    identity: Arc<Identity>,
    mut roots: watch::Receiver<Roots>,
    routes: Routes,
    refused: IntCounterVec,
    drain: CancellationToken,
) -> Result<(), rustls::Error> {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let crowd = Arc::new(Crowd::default());
    let routes = routes.prepare();
    let mut config = accept_config(&identity, &roots.borrow_and_update().clone())?;
    let mut roots_may_change = true;
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => break,
            changed = roots.changed(), if roots_may_change => {
                roots_may_change = changed.is_ok();
                match accept_config(&identity, &roots.borrow_and_update().clone()) {
                    Ok(next) => config = next,
                    Err(error) => tracing::error!(%error, "new roots cannot be used"),
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((socket, from)) => {
                    let Some(place) = Crowd::enter(&crowd, from.ip()) else {
                        tracing::debug!(%from, "too many handshakes or connections at once");
                        refused.with_label_values(&["too_many"]).inc();
                        continue;
                    };
                    let connection = Connection {
                        identity: identity.clone(),
                        roots: roots.clone(),
                        routes: routes.clone(),
                        drain: drain.clone(),
                        from,
                    };
                    let acceptor = TlsAcceptor::from(config.clone());
                    let served = connection.run(acceptor, socket, place, refused.clone());
                    connections.spawn(cut.clone().run_until_cancelled_owned(served));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_BACK_OFF).await;
                }
            },
        }
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN_MAX, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

/// Why a connection ended other than by its peer's wish.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("the handshake took longer than {} s", HANDSHAKE_MAX.as_secs())]
    HandshakeTimeout,
    #[error("the handshake failed: {}", causes(.0))]
    Handshake(#[source] io::Error),
    #[error("the peer did not offer HTTP/2")]
    Protocol,
    #[error("the peer's certificate no longer holds: {0}")]
    Peer(#[from] Refusal),
    #[error("the peer's certificate ran out, or it came without one and stayed too long")]
    RanOut,
    #[error("HTTP/2 failed: {0}")]
    Http(#[from] hyper::Error),
}

impl ConnectionError {
    /// The word for it in metrics: one of a closed set.
    fn reason(&self) -> &'static str {
        match self {
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Handshake(error) => handshake_reason(error),
            Self::Protocol => "protocol",
            Self::Peer(refusal) => refusal.reason(),
            Self::RanOut => "ran_out",
            Self::Http(_) => "http",
        }
    }
}

fn handshake_reason(error: &io::Error) -> &'static str {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::Other(OtherError(other)) => {
                other.downcast_ref::<Refusal>().map_or("certificate", Refusal::reason)
            }
            CertificateError::BadEncoding => "malformed",
            CertificateError::UnknownIssuer => "unknown_issuer",
            CertificateError::Expired => "expired",
            CertificateError::NotValidYet => "not_valid_yet",
            CertificateError::BadSignature => "bad_signature",
            _ => "certificate",
        },
        Some(_) => "tls",
        None => "io",
    }
}

/// An error with all that it came from. A refusal hides two levels down in TLS's own errors.
fn causes(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut refusal = None;
    if let Some(inner) = error.get_ref()
        && let Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) =
            inner.downcast_ref::<rustls::Error>()
    {
        refusal = Some(other.0.clone());
    }
    if let Some(refusal) = refusal {
        text = refusal.to_string();
    }
    text
}

/// One connection and what it needs.
struct Connection {
    identity: Arc<Identity>,
    roots: watch::Receiver<Roots>,
    routes: Routes,
    drain: CancellationToken,
    from: SocketAddr,
}

impl Connection {
    /// Serves the connection, and says why it ended unless its peer wished it so.
    async fn run(
        self,
        acceptor: TlsAcceptor,
        socket: TcpStream,
        place: Place,
        refused: IntCounterVec,
    ) {
        let from = self.from;
        if let Err(error) = self.serve(acceptor, socket, place).await {
            let reason = error.reason();
            tracing::info!(%from, reason, %error, "connection ended");
            refused.with_label_values(&[reason]).inc();
        }
    }

    /// Carries the connection from its first octet to its last.
    async fn serve(
        mut self,
        acceptor: TlsAcceptor,
        socket: TcpStream,
        place: Place,
    ) -> Result<(), ConnectionError> {
        socket.set_nodelay(true).map_err(ConnectionError::Handshake)?;
        let stream = timeout(HANDSHAKE_MAX, acceptor.accept(socket))
            .await
            .map_err(|_| ConnectionError::HandshakeTimeout)?
            .map_err(ConnectionError::Handshake)?;
        let place = place.seated();
        let chain = chain_of(&stream);
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(ConnectionError::Protocol);
        }
        // Verified again, by the roots of now: they may have changed since the handshake began.
        let peer = self.verify(&chain)?;
        let runs_out = match &peer {
            Some((_, validity)) => Instant::now() + validity.not_after.since(identity::now()),
            None => Instant::now() + STRANGER_MAX,
        };
        let extensions = (peer.map(|(id, _)| Peer { id }), Source(self.from));
        let routes = self.routes.clone();
        let service =
            tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                let (peer, source) = extensions.clone();
                request.extensions_mut().insert(source);
                if let Some(peer) = peer {
                    request.extensions_mut().insert(peer);
                }
                tower::Service::call(&mut routes.clone(), request)
            });
        let connection =
            http2().serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let mut connection = std::pin::pin!(connection);
        let mut roots_may_change = !chain.is_empty();
        let ended = loop {
            tokio::select! {
                biased;
                served = connection.as_mut() => break served.map_err(ConnectionError::Http),
                () = self.drain.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    break connection.await.map_err(ConnectionError::Http);
                }
                () = sleep_until(runs_out) => break Err(ConnectionError::RanOut),
                changed = self.roots.changed(), if roots_may_change => {
                    roots_may_change = changed.is_ok();
                    if let Err(refused) = self.verify(&chain) {
                        break Err(refused);
                    }
                }
            }
        };
        drop(place);
        ended
    }

    fn verify(
        &mut self,
        chain: &[CertificateDer<'static>],
    ) -> Result<Option<(SpiffeId, Validity)>, ConnectionError> {
        let Some((leaf, intermediates)) = chain.split_first() else { return Ok(None) };
        let roots = self.roots.borrow_and_update().clone();
        let trust = Trust::in_servers_and_agents(&self.identity, &roots);
        Ok(Some(trust.verify(leaf, intermediates, identity::now())?))
    }
}

fn chain_of(stream: &server::TlsStream<TcpStream>) -> Vec<CertificateDer<'static>> {
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    shown.iter().map(|certificate| certificate.clone().into_owned()).collect()
}

fn http2() -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_OCTETS_MAX)
        .initial_stream_window_size(WINDOW_OCTETS)
        .initial_connection_window_size(WINDOW_OCTETS);
    builder
}

/// How many are here, and how many of them are still shaking hands, in all and by address.
#[derive(Default)]
struct Crowd {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    connections: usize,
    handshakes: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Crowd {
    /// A place for one more from `address`; none when there are too many.
    fn enter(crowd: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut counts = crowd.lock();
        let of_address = counts.by_address.get(&address).copied().unwrap_or(0);
        if counts.connections >= CONNECTIONS_MAX
            || counts.handshakes >= HANDSHAKES_MAX
            || of_address >= HANDSHAKES_PER_ADDRESS_MAX
        {
            return None;
        }
        counts.connections += 1;
        counts.handshakes += 1;
        counts.by_address.insert(address, of_address + 1);
        drop(counts);
        Some(Place { crowd: crowd.clone(), address, is_seated: false })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Counts> {
        // Counts stay true even if a holder panicked: each change is one statement.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn handshake_ended(&mut self, address: IpAddr) {
        self.handshakes -= 1;
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

/// One connection's place, given back when dropped.
struct Place {
    crowd: Arc<Crowd>,
    address: IpAddr,
    is_seated: bool,
}

impl Place {
    /// The handshake is over.
    fn seated(mut self) -> Self {
        self.crowd.lock().handshake_ended(self.address);
        self.is_seated = true;
        self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.crowd.lock();
        counts.connections -= 1;
        if !self.is_seated {
            counts.handshake_ended(self.address);
        }
    }
}

/// The one cryptographic provider: AES-128-GCM and X25519 first, and no more than is needed.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1],
        signature_verification_algorithms: ALGORITHMS,
        ..aws_lc_rs::default_provider()
    })
}

/// The signatures that identities are made with: no RSA, no SHA-1, no other curves.
static ALGORITHMS: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::aws_lc_rs::ECDSA_P256_SHA256, webpki::aws_lc_rs::ED25519],
    mapping: &[
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[webpki::aws_lc_rs::ECDSA_P256_SHA256]),
        (SignatureScheme::ED25519, &[webpki::aws_lc_rs::ED25519]),
    ],
};

const ALPN: &[u8] = b"h2";
/// Leaf, intermediate and a root or cross-signed root.
const CHAIN_MAX: usize = 3;
const CHAIN_OCTETS_MAX: usize = 16 * 1024;
/// What a stolen certificate is good for at most.
pub(crate) const LIFETIME_MAX: Duration = Duration::from_secs(7 * 86_400);
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
const HANDSHAKES_MAX: usize = 1024;
/// Generous, because the hosts of a whole site may stand behind one address.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 128;
const CONNECTIONS_MAX: usize = 32_768;
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// A host that joins needs one call.
const STRANGER_MAX: Duration = Duration::from_secs(60);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(5);
const STREAMS_MAX: u32 = 1024;
const HEADER_OCTETS_MAX: u32 = 16 * 1024;
const WINDOW_OCTETS: u32 = 1024 * 1024;

#[cfg(test)]
pub(crate) mod tests {
    use std::convert::Infallible;
    use std::future::{Ready, ready};
    use std::task::{Context, Poll};

    use hawser_core::clock::{Index, Stamp};
    use hawser_core::state::State;
    use hawser_proto::v1;
    use hawser_proto::v1::agent_client::AgentClient;
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tonic::{Code, Status};

    use super::*;
    use crate::ca::{Ca, Issued};
    use crate::identity::OperatorKey;

    /// Answers every call with who called, as far as the connection says.
    #[derive(Clone)]
    struct WhoCalls;

    impl tonic::server::NamedService for WhoCalls {
        const NAME: &'static str = "hawser.v1.Agent";
    }

    impl tower::Service<http::Request<tonic::body::Body>> for WhoCalls {
        type Response = http::Response<tonic::body::Body>;
        type Error = Infallible;
        type Future = Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
            assert!(request.extensions().get::<Source>().is_some());
            let peer = request.extensions().get::<Peer>();
            let who = peer.map_or("nobody".to_owned(), |peer| peer.id.to_string());
            ready(Ok(Status::new(Code::FailedPrecondition, who).into_http()))
        }
    }

    /// A cluster of one listener, and what it takes to call it.
    struct Fixture {
        identity: Arc<Identity>,
        ca: Ca,
        state: State,
        address: String,
        roots: watch::Sender<Roots>,
        refused: IntCounterVec,
        drain: CancellationToken,
        served: tokio::task::JoinHandle<Result<(), rustls::Error>>,
    }

    fn cluster() -> (Arc<Identity>, Ca, State) {
        let key = OperatorKey::generate().expect("randomness");
        let (datacenter, node) = ("dc1".parse(), "s1".parse());
        let (datacenter, node) = (datacenter.expect("a name"), node.expect("a name"));
        let identity = Arc::new(Identity::new(&key, &datacenter, &node).expect("an identity"));
        let ca = Ca::new(identity.clone(), Duration::from_secs(3600));
        let mut state = State::default();
        let command = ca.due(&state, identity::now()).expect("made").expect("none yet");
        let stamp = Stamp { index: Index(1), time: identity::now() };
        state.apply(stamp, command).expect("applied");
        (identity, ca, state)
    }

    impl Fixture {
        async fn new() -> Self {
            let (identity, ca, state) = cluster();
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound").to_string();
            let authority = state.authority().expect("applied");
            let roots = authority.roots.iter().map(|root| root.certificate.clone()).collect();
            let (roots, seen) = watch::channel(roots);
            let drain = CancellationToken::new();
            let routes = Routes::new(WhoCalls);
            let refused =
                IntCounterVec::new(prometheus::Opts::new("refused", "refused"), &["reason"]);
            let refused = refused.expect("good names");
            let served = tokio::spawn(serve(
                listener,
                identity.clone(),
                seen,
                routes,
                refused.clone(),
                drain.clone(),
            ));
            Self { identity, ca, state, address, roots, refused, drain, served }
        }

        fn id(&self, path: &str) -> String {
            format!("spiffe://{}{path}", self.identity.trust_domain())
        }

        fn config(&self, shows: Option<(Issued, KeyPair)>) -> ClientConfig {
            config_of(&self.identity, shows.map(|(issued, key)| (issued.chain, key)))
        }

        fn agent(&self) -> (Issued, KeyPair) {
            let (csr, key) = csr();
            let node = "n1".parse().expect("a name");
            let now = identity::now();
            (self.ca.sign_node(self.state.authority(), &csr, &node, now).expect("signed"), key)
        }

        fn service(&self) -> (Issued, KeyPair) {
            let (csr, key) = csr();
            let (node, service) = ("n1".parse().expect("name"), "web".parse().expect("name"));
            let (authority, now) = (self.state.authority(), identity::now());
            let issued = self.ca.sign_leaf(authority, &csr, &node, &service, now);
            (issued.expect("signed"), key)
        }

        /// Who the server takes one for who dials by `config`.
        async fn call(&self, config: ClientConfig) -> Result<String, Status> {
            let channel = channel(Arc::new(config), &self.address).expect("an address");
            who(&mut AgentClient::new(channel)).await
        }
    }

    /// What one dials by who shows a certificate that the mesh signed, or none.
    pub(crate) fn config_of(
        servers: &Identity,
        shows: Option<(Vec<CertificateDer<'static>>, KeyPair)>,
    ) -> ClientConfig {
        let verifier = Arc::new(Verifier { trust: Trust::in_servers(servers) });
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("supported")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match shows {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivatePkcs8KeyDer::from(key.serialized_der().to_vec());
                builder.with_client_auth_cert(chain, PrivateKeyDer::Pkcs8(key)).expect("a pair")
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config
    }

    pub(crate) fn csr() -> (Vec<u8>, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).expect("a request");
        (csr.der().to_vec(), key)
    }

    async fn who(client: &mut AgentClient<Channel>) -> Result<String, Status> {
        let status = client.heartbeat(v1::HeartbeatRequest {}).await.expect_err("always refused");
        match status.code() {
            Code::FailedPrecondition => Ok(status.message().to_owned()),
            _ => Err(status),
        }
    }

    #[tokio::test]
    async fn each_peer_is_who_its_certificate_says_or_nobody() {
        let fixture = Fixture::new().await;
        let dial = dial_config(&fixture.identity).expect("supported");
        let cases = [
            (dial.as_ref().clone(), fixture.id("/agent/server/dc/dc1/id/s1")),
            (fixture.config(Some(fixture.agent())), fixture.id("/agent/client/dc/dc1/id/n1")),
            (fixture.config(None), "nobody".to_owned()),
        ];
        for (config, expected) in cases {
            assert_eq!(fixture.call(config).await.expect("served"), expected);
        }
    }

    #[tokio::test]
    async fn whoever_is_none_of_those_is_refused_and_the_next_is_served() {
        let fixture = Fixture::new().await;
        let (foreign, foreign_ca, foreign_state) = cluster();
        let (csr, key) = csr();
        let (node, now) = ("n1".parse().expect("a name"), identity::now());
        let signed = foreign_ca.sign_node(foreign_state.authority(), &csr, &node, now);
        let foreign_agent = fixture.config(Some((signed.expect("signed"), key)));
        let foreign_server = dial_config(&foreign).expect("supported").as_ref().clone();
        let mut no_protocol = fixture.config(Some(fixture.agent()));
        no_protocol.alpn_protocols = vec![b"http/1.1".to_vec()];
        let cases = [
            ("T2: a server of another cluster, which goes", foreign_server, "tls"),
            ("T2: an agent of another cluster", foreign_agent, "trust_domain"),
            ("T8: a service", fixture.config(Some(fixture.service())), "role"),
            ("T19: another protocol", no_protocol, "tls"),
        ];
        for (why, config, reason) in cases {
            let count = fixture.refused.with_label_values(&[reason]);
            let before = count.get();
            assert!(fixture.call(config).await.is_err(), "{why}");
            let counted = async {
                while count.get() == before {
                    tokio::task::yield_now().await;
                }
            };
            let counted = timeout(Duration::from_secs(30), counted).await;
            assert!(counted.is_ok(), "{why} is counted under {reason}");
            let good = fixture.config(Some(fixture.agent()));
            assert!(fixture.call(good).await.is_ok(), "after {why}");
        }
    }

    #[tokio::test]
    async fn what_is_no_tls_of_1_3_is_closed() {
        let fixture = Fixture::new().await;
        // TLS 1.2 as its client would begin, plain HTTP, and what no protocol says.
        let hello_1_2: &[u8] = b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03\
            \x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\
            \x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\
            \x00\x00\x04\xc0\x2b\xc0\x2f\x01\x00";
        for first in [hello_1_2, b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64]] {
            let mut socket = TcpStream::connect(&fixture.address).await.expect("connects");
            socket.write_all(first).await.expect("sent");
            let mut answer = Vec::new();
            let read = timeout(HANDSHAKE_MAX, socket.read_to_end(&mut answer));
            // An alert at most, then the end.
            drop(read.await.expect("closed at once"));
            assert!(answer.len() <= 7, "{answer:?}");
        }
        assert!(fixture.call(fixture.config(None)).await.is_ok());
    }

    #[tokio::test]
    async fn a_handshake_that_does_not_go_on_is_cut() {
        let fixture = Fixture::new().await;
        let mut socket = TcpStream::connect(&fixture.address).await.expect("connects");
        socket.write_all(b"\x16").await.expect("sent");
        let mut answer = Vec::new();
        let read = timeout(HANDSHAKE_MAX * 4, socket.read_to_end(&mut answer)).await;
        drop(read.expect("cut"));
        assert!(answer.is_empty());
    }

    #[tokio::test]
    async fn an_agent_whose_root_is_no_longer_trusted_is_cut_off() {
        let fixture = Fixture::new().await;
        let config = Arc::new(fixture.config(Some(fixture.agent())));
        let mut stream = dial(config.clone(), &fixture.address).await.expect("let in");
        let server = dial_config(&fixture.identity).expect("supported");
        let channel = channel(server, &fixture.address).expect("an address");
        let mut server = AgentClient::new(channel);
        assert!(who(&mut server).await.is_ok());
        fixture.roots.send_replace(Arc::new([]));
        let mut rest = Vec::new();
        let ended = timeout(HANDSHAKE_MAX, stream.read_to_end(&mut rest)).await;
        drop(ended.expect("the open connection is cut"));
        assert!(fixture.call(config.as_ref().clone()).await.is_err(), "and no new one is let in");
        assert!(who(&mut server).await.is_ok(), "servers have a root of their own");
    }

    #[tokio::test]
    async fn no_session_is_resumed() {
        let fixture = Fixture::new().await;
        let mut config = fixture.config(Some(fixture.agent()));
        config.resumption = Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        for _ in 0..2 {
            let mut stream = dial(config.clone(), &fixture.address).await.expect("let in");
            // HTTP/2 settings come after whatever ticket there could be.
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
            assert!(stream.read(&mut [0; 64]).await.expect("an answer") > 0);
            let session = stream.get_ref().1;
            assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full), "T16");
            assert_eq!(session.tls13_tickets_received(), 0, "T16");
        }
    }

    #[tokio::test]
    async fn a_dialler_refuses_a_server_of_another_cluster() {
        let (here, there) = (Fixture::new().await, Fixture::new().await);
        let config = dial_config(&here.identity).expect("supported");
        assert!(dial(config.clone(), &here.address).await.is_ok());
        let refused = dial(config, &there.address).await.expect_err("another cluster's");
        assert_eq!(causes(&refused), Refusal::TrustDomain.to_string());
    }

    #[tokio::test]
    async fn draining_ends_with_connections_open() {
        let fixture = Fixture::new().await;
        let config = Arc::new(fixture.config(Some(fixture.agent())));
        let stream = dial(config, &fixture.address).await.expect("let in");
        fixture.drain.cancel();
        let served = timeout(DRAIN_MAX * 4, fixture.served).await.expect("ends");
        assert!(served.expect("no panic").is_ok());
        drop(stream);
        assert!(TcpStream::connect(&fixture.address).await.is_err(), "nobody listens");
    }

    #[test]
    fn one_address_cannot_take_every_place() {
        let crowd = Arc::new(Crowd::default());
        let address = |last: u16| IpAddr::from([10, 0, (last >> 8) as u8, last as u8]);
        let one: Vec<_> = std::iter::from_fn(|| Crowd::enter(&crowd, address(1))).collect();
        assert_eq!(one.len(), HANDSHAKES_PER_ADDRESS_MAX);
        assert!(Crowd::enter(&crowd, address(2)).is_some(), "another's is free");
        let seated: Vec<_> = one.into_iter().map(Place::seated).collect();
        assert!(Crowd::enter(&crowd, address(1)).is_some(), "what is over no longer counts");
        let many: Vec<_> = (0..).map_while(|last| Crowd::enter(&crowd, address(last))).collect();
        assert_eq!(many.len(), HANDSHAKES_MAX);
        drop((seated, many));
        let counts = crowd.lock();
        assert_eq!((counts.connections, counts.handshakes, counts.by_address.len()), (0, 0, 0));
    }
}
