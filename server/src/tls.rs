//! TLS on the servers' one port: who may speak, by which root, and for how long.
//!
//! Tasks: one per connection, ended by `drain`, by the peer's certificate running out, or by its
//! root losing the mesh's trust.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_core::name::Datacenter;
use hawser_core::peering::Remote;
use hawser_core::revocation::Revoked;
use hawser_core::sni::Sni;
use hawser_core::spiffe::{SpiffeId, TrustDomain};
use hawser_identity::{Anchors, Callee, Callers, Proven, Refusal};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus::IntCounterVec;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{self, CertificateDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};

use crate::identity::{self, Identity};

/// Whom the servers' port believes besides the servers of its own cluster.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trusted {
    /// Root certificates of the mesh, DER: those that agents' certificates come from.
    pub roots: Vec<Arc<[u8]>>,
    /// Servers of peers.
    pub peers: Vec<PeerServers>,
    /// Agents that are believed no more.
    pub revoked: Arc<Revoked>,
}

/// Who vouches for the servers of one peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerServers {
    /// The peer's trust domain.
    pub trust_domain: TrustDomain,
    /// Its datacenter.
    pub datacenter: Datacenter,
    /// Their roots, DER.
    pub roots: Vec<Arc<[u8]>>,
}

/// Who is at the other end: in the extensions of every request of a connection whose peer showed
/// a certificate.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its identity, verified.
    pub id: SpiffeId,
}

impl PeerServers {
    /// Who vouches for the servers of `remote`.
    pub fn of(remote: &Remote) -> Self {
        Self {
            trust_domain: remote.trust_domain.clone(),
            datacenter: remote.datacenter.clone(),
            roots: remote.server_roots.clone(),
        }
    }
}

/// A server of a peer at the other end, in the place of [`Peer`]: nothing that asks for a `Peer`
/// takes it for one. Its connection reaches [`FOR_PEERS`] and nothing else.
#[derive(Clone, Debug)]
pub struct ForeignPeer {
    /// Its identity, verified: in the trust domain of a peer.
    pub id: SpiffeId,
}

/// Where a request came from: in the extensions of every request.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub SocketAddr);

impl Source {
    /// What one who has no certificate is counted under: hosts on IPv6 have a whole network each.
    pub fn network(self) -> IpAddr {
        match self.0.ip().to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        }
    }
}

/// What servers believe each other by: the servers' root alone.
fn servers_of(identity: &Identity) -> Anchors {
    let (trust_domain, datacenter) = (identity.trust_domain(), identity.datacenter());
    Anchors::new(trust_domain.clone(), datacenter.clone()).servers([identity.server_root_der()])
}

/// What is believed on the servers' port: servers by the servers' root, agents by the mesh's, and
/// servers of peers by those of each peer.
pub(crate) fn believed(identity: &Identity, trusted: &Trusted) -> Anchors {
    let mut anchors = servers_of(identity)
        .agents(trusted.roots.iter().map(|root| &root[..]))
        .revoked(trusted.revoked.clone());
    for PeerServers { trust_domain, datacenter, roots } in &trusted.peers {
        let roots = roots.iter().map(|root| &root[..]);
        anchors = anchors.peer_servers(trust_domain.clone(), datacenter.clone(), roots);
    }
    if anchors.malformed() > 0 {
        tracing::error!(count = anchors.malformed(), "roots are malformed, and vouch for nobody");
    }
    anchors
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

/// What servers accept connections by: servers of this cluster, agents of this mesh, servers of
/// peers, and those without a certificate, who get no [`Peer`].
///
/// TLS 1.3 only. Nothing is resumed: a resumed session skips verification.
///
/// # Errors
/// When the cryptographic provider does not support TLS 1.3, which this one does.
pub fn accept_config(
    identity: &Arc<Identity>,
    trusted: &Trusted,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let callers = Callers::or_strangers(Arc::new(believed(identity, trusted)));
    let config = hawser_identity::accept(callers, Arc::new(Shows(identity.clone())), &[ALPN])?;
    Ok(Arc::new(config))
}

/// What servers dial each other by: the peer must be a server of this cluster.
///
/// # Errors
/// When the cryptographic provider does not support TLS 1.3, which this one does.
pub fn dial_config(identity: &Arc<Identity>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let callee = Callee::any(Arc::new(servers_of(identity)));
    let mut config =
        hawser_identity::dial(callee, Some(Arc::new(Shows(identity.clone()))), &[ALPN])?;
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// What servers dial the servers of a peer by. Shows this server's identity, or none: where the
/// peer does not know this cluster yet, it would refuse one.
///
/// # Errors
/// When the cryptographic provider does not support TLS 1.3, which this one does.
pub fn peer_dial_config(
    servers: &PeerServers,
    shows: Option<&Arc<Identity>>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let PeerServers { trust_domain, datacenter, roots } = servers;
    let roots = roots.iter().map(|root| &root[..]);
    let anchors = Anchors::new(trust_domain.clone(), datacenter.clone()).servers(roots);
    let shows = shows.map(|identity| Arc::new(Shows(identity.clone())) as Arc<_>);
    Ok(Arc::new(hawser_identity::dial(Callee::any(Arc::new(anchors)), shows, &[ALPN])?))
}

/// Dials `address` (`host:port`) and handshakes, within 5 s.
///
/// # Errors
/// When nobody answers there, or one who is no server of this cluster.
pub async fn dial(
    config: Arc<ClientConfig>,
    address: &str,
) -> io::Result<client::TlsStream<TcpStream>> {
    dial_as(config, address, None, HANDSHAKE_MAX).await
}

/// Dials `address` (`host:port`) and handshakes within `limit`, asking for `name` where one is
/// given: by it a gateway on the way knows where to.
async fn dial_as(
    config: Arc<ClientConfig>,
    address: &str,
    name: Option<ServerName<'static>>,
    limit: Duration,
) -> io::Result<client::TlsStream<TcpStream>> {
    let dialled = async {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        // Servers are known by their identity; an address is where, not who.
        let ip = socket.peer_addr()?.ip();
        let name = name.unwrap_or_else(|| ServerName::IpAddress(pki_types::IpAddr::from(ip)));
        TlsConnector::from(config).connect(name, socket).await
    };
    timeout(limit, dialled).await.map_err(|_| io::ErrorKind::TimedOut)?
}

/// A channel to a server of a peer, dialled here and now, within `limit`.
///
/// # Errors
/// When nobody answers there, or one who is no server of that peer: the text says which.
pub async fn connect_peer(
    config: Arc<ClientConfig>,
    address: &str,
    sni: &Sni,
    limit: Duration,
) -> Result<Channel, ConnectPeerError> {
    let endpoint = endpoint(address)?;
    let name = ServerName::try_from(sni.to_string()).map_err(io::Error::other)?;
    let stream = dial_as(config, address, Some(name), limit).await.map_err(|error| {
        let why = causes(&error);
        if tls_error(&error).is_some() { ConnectPeerError::Refused(why) } else { error.into() }
    })?;
    // Dialled once: a session that ends is a new connection's to begin.
    let stream = Mutex::new(Some(TokioIo::new(stream)));
    let taken = move |_: http::Uri| {
        let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        std::future::ready(stream.ok_or(io::ErrorKind::NotConnected.into()))
            as std::future::Ready<io::Result<_>>
    };
    Ok(endpoint.connect_with_connector(tower::service_fn(taken)).await?)
}

/// Why a server of a peer cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectPeerError {
    /// It cannot be reached.
    #[error("{0}")]
    Unreachable(#[from] io::Error),
    /// The handshake failed: it is not whom it should be, or does not know this cluster.
    #[error("TLS: {0}")]
    Refused(String),
    /// It is no address, or does not speak HTTP/2.
    #[error("{0}")]
    Transport(#[from] tonic::transport::Error),
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
    let endpoint = endpoint(address)?;
    let address: Arc<str> = address.into();
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
        let (config, address) = (config.clone(), address.clone());
        async move { dial(config, &address).await.map(TokioIo::new) }
    })))
}

fn endpoint(address: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_MAX)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_OCTETS)
        .initial_connection_window_size(WINDOW_OCTETS))
}

/// Serves `routes` to all who come to `listener`, until `drain`; then lets requests under way
/// finish, for 5 s at most.
///
/// `trusted` is who is believed at each moment: a connection whose peer's chain no longer holds by
/// it is closed, and so is one whose peer's certificate has run out.
///
/// # Errors
/// When the cryptographic provider does not support TLS 1.3, which this one does.
pub async fn serve(
    listener: TcpListener,
    identity: Arc<Identity>,
    mut trusted: watch::Receiver<Trusted>,
    routes: Routes,
    refused: IntCounterVec,
    drain: CancellationToken,
) -> Result<(), rustls::Error> {
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    let crowd = Arc::new(Crowd::default());
    let routes = routes.prepare();
    let mut config = accept_config(&identity, &trusted.borrow_and_update().clone())?;
    let mut trust_may_change = true;
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => break,
            changed = trusted.changed(), if trust_may_change => {
                trust_may_change = changed.is_ok();
                match accept_config(&identity, &trusted.borrow_and_update().clone()) {
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
                        trusted: trusted.clone(),
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
            Self::Peer(refusal) => refusal_reason(refusal),
            Self::RanOut => "ran_out",
            Self::Http(_) => "http",
        }
    }
}

fn handshake_reason(error: &io::Error) -> &'static str {
    let Some(tls) = tls_error(error) else { return "io" };
    match (Refusal::behind(tls), tls) {
        (Some(refusal), _) => refusal_reason(&refusal),
        (None, rustls::Error::InvalidCertificate(CertificateError::BadSignature)) => {
            "bad_signature"
        }
        (None, rustls::Error::InvalidCertificate(_)) => "certificate",
        (None, _) => "tls",
    }
}

/// The word for a refusal in metrics: one of a closed set.
fn refusal_reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Absent => "no_certificate",
        Refusal::ChainTooLong => "chain_too_long",
        Refusal::Malformed => "malformed",
        Refusal::NotOneUri => "not_one_uri",
        Refusal::Uri(_) => "no_identity",
        Refusal::TrustDomain => "trust_domain",
        Refusal::Datacenter => "datacenter",
        Refusal::Role => "role",
        Refusal::Usage => "usage",
        Refusal::Key => "key",
        Refusal::Lifetime => "lifetime",
        Refusal::UnknownIssuer => "unknown_issuer",
        Refusal::Expired => "expired",
        Refusal::NotYetValid => "not_valid_yet",
        Refusal::Chain(_) => "chain",
        Refusal::Unexpected => "unexpected",
        Refusal::Revoked => "revoked",
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What an error says, or the refusal that hides two levels down in TLS's own errors.
fn causes(error: &io::Error) -> String {
    match tls_error(error).and_then(Refusal::behind) {
        Some(refusal) => refusal.to_string(),
        None => error.to_string(),
    }
}

/// One connection and what it needs.
struct Connection {
    identity: Arc<Identity>,
    trusted: watch::Receiver<Trusted>,
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
        let stream = handshake(acceptor, socket).await?;
        let place = place.seated();
        let chain = chain_of(&stream);
        // Verified again, by the roots of now: they may have changed since the handshake began.
        let peer = self.verify(&chain)?;
        let runs_out = match &peer {
            Some(peer) => Instant::now() + peer.validity.not_after.since(identity::now()),
            None => Instant::now() + STRANGER_MAX,
        };
        let caller = self.caller(peer);
        let is_foreign = matches!(caller, Caller::Foreign(_));
        let (source, routes) = (Source(self.from), self.routes.clone());
        let service =
            tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                let admitted = caller.admit(&mut request);
                request.extensions_mut().insert(source);
                let mut routes = routes.clone();
                async move {
                    match admitted {
                        Ok(()) => tower::Service::call(&mut routes, request).await,
                        Err(refused) => Ok(refused.into_http()),
                    }
                }
            });
        let connection =
            http2().serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let mut connection = std::pin::pin!(connection);
        let mut trust_may_change = !chain.is_empty();
        let ended = loop {
            tokio::select! {
                biased;
                served = connection.as_mut() => break served.map_err(ConnectionError::Http),
                () = self.drain.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    break connection.await.map_err(ConnectionError::Http);
                }
                () = sleep_until(runs_out) => break Err(ConnectionError::RanOut),
                changed = self.trusted.changed(), if trust_may_change => {
                    trust_may_change = changed.is_ok();
                    if let Err(refused) = self.verify(&chain) {
                        if is_foreign {
                            // A peer that is none any more is told so, and then cut.
                            connection.as_mut().graceful_shutdown();
                            drop(timeout(FAREWELL_MAX, connection).await);
                        }
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
    ) -> Result<Option<Proven>, ConnectionError> {
        if chain.is_empty() {
            return Ok(None);
        }
        let trusted = self.trusted.borrow_and_update().clone();
        Ok(Some(believed(&self.identity, &trusted).verify(chain, identity::now())?))
    }

    fn caller(&self, peer: Option<Proven>) -> Caller {
        match peer {
            None => Caller::Stranger,
            Some(Proven { id, .. }) if id.trust_domain == *self.identity.trust_domain() => {
                Caller::Own(Peer { id })
            }
            Some(Proven { id, .. }) => Caller::Foreign(ForeignPeer { id }),
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    socket: TcpStream,
) -> Result<server::TlsStream<TcpStream>, ConnectionError> {
    socket.set_nodelay(true).map_err(ConnectionError::Handshake)?;
    let stream = timeout(HANDSHAKE_MAX, acceptor.accept(socket))
        .await
        .map_err(|_| ConnectionError::HandshakeTimeout)?
        .map_err(ConnectionError::Handshake)?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        return Err(ConnectionError::Protocol);
    }
    Ok(stream)
}

/// Who is at the other end of a connection.
#[derive(Clone)]
enum Caller {
    Stranger,
    Own(Peer),
    Foreign(ForeignPeer),
}

impl Caller {
    /// Tells the request whose it is, or refuses it: a peer's server has one call to make.
    fn admit<B>(&self, request: &mut http::Request<B>) -> Result<(), Status> {
        match self {
            Self::Stranger => {}
            Self::Own(peer) => drop(request.extensions_mut().insert(peer.clone())),
            Self::Foreign(_) if request.uri().path() != FOR_PEERS => {
                return Err(Status::permission_denied(
                    "a peer's servers may call only this: \
                     hawser.v1.Peering/Stream",
                ));
            }
            Self::Foreign(peer) => drop(request.extensions_mut().insert(peer.clone())),
        }
        Ok(())
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

/// The one call that a connection of a peer's server may make.
pub const FOR_PEERS: &str = "/hawser.v1.Peering/Stream";
const ALPN: &[u8] = b"h2";
/// How long a peer that is none any more has to hear so.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
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
    use rustls::client::Resumption;
    use rustls::pki_types::PrivatePkcs8KeyDer;
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
        trusted: watch::Sender<Trusted>,
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
        let command =
            ca.due(&state, identity::now(), Default::default()).expect("made").expect("none yet");
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
            let (trusted, seen) = watch::channel(Trusted { roots, ..Trusted::default() });
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
            Self { identity, ca, state, address, trusted, refused, drain, served }
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
        let shows = shows.map(|(chain, key)| {
            let key = PrivatePkcs8KeyDer::from(key.serialized_der().to_vec());
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key.into());
            let shown = CertifiedKey::new(chain, key.expect("a key"));
            let shown = rustls::sign::SingleCertAndKey::from(shown);
            Arc::new(shown) as Arc<dyn ResolvesClientCert>
        });
        let callee = Callee::any(Arc::new(servers_of(servers)));
        hawser_identity::dial(callee, shows, &[ALPN]).expect("supported")
    }

    pub(crate) fn csr() -> (Vec<u8>, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).expect("a request");
        (csr.der().to_vec(), key)
    }

    async fn who(client: &mut AgentClient<Channel>) -> Result<String, Status> {
        let status =
            client.heartbeat(v1::HeartbeatRequest::default()).await.expect_err("always refused");
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
        fixture.trusted.send_replace(Trusted::default());
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
