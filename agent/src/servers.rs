//! The one multiplexed mTLS channel to a server: which servers are known, which one is in use.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hawser_aws::Finder;
use hawser_proto::v1::agent_client::AgentClient;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rand::seq::SliceRandom;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::clock::{self, Backoff};
use crate::disk;
use crate::resolve;

/// A client of the Agent service on one connection.
pub(crate) type Client = AgentClient<Wire>;

/// One living connection to one server. Clones share it.
#[derive(Clone)]
pub(crate) struct Link {
    client: Client,
    address: SocketAddr,
    shown: Arc<[CertificateDer<'static>]>,
    closed: CancellationToken,
    is_revoked: Arc<AtomicBool>,
}

impl Link {
    /// The certificates that the server proved itself by, its own first.
    pub(crate) fn shown(&self) -> &[CertificateDer<'static>] {
        &self.shown
    }

    /// A client that calls over this connection.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The server's address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives the connection up, so that another server is tried.
    pub(crate) fn retire(&self) {
        self.closed.cancel();
    }

    /// Whether the server said that what this host showed is revoked.
    fn is_revoked(&self) -> bool {
        self.is_revoked.load(Ordering::Acquire)
    }

    /// Ends when the connection has.
    pub(crate) async fn closed(&self) {
        self.closed.cancelled().await;
    }
}

/// When a server was last heard of: milliseconds since the epoch, `u64::MAX` while connected.
#[derive(Clone, Default)]
pub(crate) struct Contact(pub(crate) Arc<AtomicU64>);

impl Contact {
    /// How long ago a server was last heard of; zero while connected.
    pub(crate) fn ago(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            u64::MAX => Duration::ZERO,
            at => clock::now().since(hawser_core::clock::UnixTime::from_millis(at)),
        }
    }
}

/// Why no connection to a server came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// No address is known.
    #[error("no server address is known: set retry_join")]
    NoServers,
    /// The name did not resolve.
    #[error("{server} does not resolve: {source}")]
    Resolve {
        /// The name.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answered in time.
    #[error("{server} did not answer within {within:?}")]
    Timeout {
        /// Where.
        server: String,
        /// The bound.
        within: Duration,
    },
    /// TCP or TLS failed.
    #[error("{server}: {source}")]
    Handshake {
        /// Where.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// HTTP/2 failed.
    #[error("{server}: {source}")]
    Http {
        /// Where.
        server: String,
        /// Why.
        source: hyper::Error,
    },
    /// The server says that what this host showed is revoked.
    #[error("{server}: this host's certificate is revoked")]
    Revoked {
        /// Where.
        server: String,
    },
}

/// Why no connection is kept any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ended {
    /// It was told to end.
    Drained,
    /// A server said that the host's certificate is revoked: none will talk to it.
    Revoked,
}

/// The servers that this agent may use and the connection to one of them.
pub(crate) struct Servers {
    configured: Vec<String>,
    finders: Vec<Finder>,
    path: PathBuf,
    roster: Mutex<Roster>,
    links: watch::Sender<Option<Link>>,
    /// The one whose connection ended last: there may be a reason.
    lost: Mutex<Option<SocketAddr>>,
    addresses: watch::Sender<Arc<[SocketAddr]>>,
    contact: Contact,
}

/// The servers as heartbeats told, and as they told before the last change: a wrong list never
/// strands an agent.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
struct Roster {
    current: Vec<Member>,
    previous: Vec<Member>,
}

/// One server of the cluster.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Member {
    /// Its Raft id.
    pub(crate) id: u64,
    /// Its node's name.
    pub(crate) name: String,
    /// `host:port` to dial.
    pub(crate) address: String,
}

impl Servers {
    /// Knows the `configured` servers and those that `path` remembers.
    pub(crate) fn open(configured: &[String], path: PathBuf, contact: Contact) -> Self {
        let roster = match disk::read(&path) {
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|why| {
                disk::set_aside(&path, &why.to_string());
                Roster::default()
            }),
            Ok(None) => Roster::default(),
            Err(why) => {
                tracing::warn!(file = %path.display(), %why, "the known servers cannot be read");
                Roster::default()
            }
        };
        let configured: Vec<String> = configured
            .iter()
            .filter(|server| !hawser_aws::is_provider(server))
            .map(|server| with_port(server))
            .collect();
        let told = addresses(roster.current.iter().map(|member| &member.address));
        // Until a server has told of the others, those that were named are all that is known.
        let known = if told.is_empty() { addresses(&configured) } else { told };
        Self {
            configured,
            addresses: watch::Sender::new(known),
            finders: Vec::new(),
            path,
            roster: Mutex::new(roster),
            links: watch::Sender::new(None),
            lost: Mutex::default(),
            contact,
        }
    }

    /// Asks `finders`, too, when nobody else answers.
    pub(crate) fn finding(self, finders: Vec<Finder>) -> Self {
        Self { finders, ..self }
    }

    /// Every server worth a try, one after the other.
    pub(crate) fn round(&self) -> Round<'_> {
        Round { servers: self, left: self.candidates().into(), tried: Vec::new(), has_asked: false }
    }

    /// The connection in use; none while there is none.
    pub(crate) fn links(&self) -> watch::Receiver<Option<Link>> {
        self.links.subscribe()
    }

    /// The connection in use now.
    pub(crate) fn link(&self) -> Option<Link> {
        self.links.borrow().clone()
    }

    /// Where the servers listen, as last told.
    pub(crate) fn addresses(&self) -> watch::Receiver<Arc<[SocketAddr]>> {
        self.addresses.subscribe()
    }

    /// The servers as last told.
    pub(crate) fn members(&self) -> Vec<Member> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    /// Takes the servers that a heartbeat told and keeps them on disk.
    pub(crate) fn learn(&self, mut members: Vec<Member>) {
        if members.is_empty() {
            return;
        }
        members.truncate(MEMBERS_MAX);
        members.sort_by(|a, b| a.address.cmp(&b.address));
        let changed = {
            let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
            if roster.current == members {
                return;
            }
            roster.previous = std::mem::replace(&mut roster.current, members);
            roster.clone()
        };
        let told = addresses(changed.current.iter().map(|member| &member.address));
        self.addresses.send_replace(told);
        let written = serde_json::to_vec(&changed)
            .map_err(io::Error::from)
            .and_then(|bytes| disk::write(&self.path, &bytes));
        if let Err(why) = written {
            tracing::warn!(file = %self.path.display(), %why, "the known servers were not kept");
        }
    }

    /// Every address worth a try, in random order, those told last before the rest, and of those
    /// the one whose connection ended last after the others.
    pub(crate) fn candidates(&self) -> Vec<String> {
        let mut draw = rand::rng();
        let roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let addresses = |members: Vec<Member>| members.into_iter().map(|member| member.address);
        let mut told: Vec<String> = addresses(roster.current).collect();
        let mut rest: Vec<String> =
            self.configured.iter().cloned().chain(addresses(roster.previous)).collect();
        told.shuffle(&mut draw);
        let lost = *self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        told.sort_by_key(|address| lost.is_some() && address.parse().ok() == lost);
        rest.shuffle(&mut draw);
        let mut all = Vec::new();
        for address in told.into_iter().chain(rest) {
            if !all.contains(&address) {
                all.push(address);
            }
        }
        all
    }

    /// Keeps a connection to some server for as long as `drain` and the servers allow.
    ///
    /// `config` is asked for each connection anew, because certificates change.
    pub(crate) async fn run(
        &self,
        config: impl Fn() -> Result<ClientConfig, rustls::Error>,
        drain: CancellationToken,
    ) -> Ended {
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
        loop {
            let connected = tokio::select! {
                biased;
                () = drain.cancelled() => return Ended::Drained,
                connected = self.connect_any(&config) => connected,
            };
            match connected {
                Ok(link) => {
                    let since = tokio::time::Instant::now();
                    tracing::info!(server = %link.address, "connected to a server");
                    self.contact.0.store(u64::MAX, Ordering::Relaxed);
                    self.links.send_replace(Some(link.clone()));
                    tokio::select! {
                        () = drain.cancelled() => {}
                        () = link.closed() => {}
                    }
                    link.retire();
                    *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.address);
                    self.links.send_replace(None);
                    self.contact.0.store(clock::now().as_millis(), Ordering::Relaxed);
                    if drain.is_cancelled() {
                        return Ended::Drained;
                    }
                    if link.is_revoked() {
                        return Ended::Revoked;
                    }
                    tracing::warn!(server = %link.address, "the connection to the server ended");
                    if since.elapsed() >= STABLE {
                        backoff.reset();
                    }
                }
                Err(ConnectError::Revoked { .. }) => return Ended::Revoked,
                Err(why) => tracing::warn!(%why, "no server can be reached"),
            }
            tokio::select! {
                () = drain.cancelled() => return Ended::Drained,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    async fn connect_any(
        &self,
        config: &impl Fn() -> Result<ClientConfig, rustls::Error>,
    ) -> Result<Link, ConnectError> {
        let mut last = ConnectError::NoServers;
        let mut round = self.round();
        while let Some(server) = round.next().await {
            let config = config().map_err(|why| ConnectError::Handshake {
                server: server.clone(),
                source: io::Error::other(why),
            })?;
            match connect(&server, Arc::new(config)).await {
                Ok(link) => return Ok(link),
                Err(why) => {
                    tracing::debug!(%why, "a server cannot be reached");
                    last = why;
                }
            }
        }
        Err(last)
    }
}

/// One round of trying servers: those known, and only then those that AWS must be asked for.
pub(crate) struct Round<'a> {
    servers: &'a Servers,
    left: VecDeque<String>,
    tried: Vec<String>,
    has_asked: bool,
}

impl Round<'_> {
    /// The next one to try; none once all were.
    pub(crate) async fn next(&mut self) -> Option<String> {
        if self.left.is_empty() && !self.has_asked {
            self.has_asked = true;
            for finder in &self.servers.finders {
                let found = finder.addresses().await;
                let found =
                    found.into_iter().map(|ip| SocketAddr::new(ip, SERVER_PORT).to_string());
                self.left.extend(found.filter(|server| !self.tried.contains(server)));
            }
            self.left.make_contiguous().shuffle(&mut rand::rng());
        }
        let next = self.left.pop_front()?;
        self.tried.push(next.clone());
        Some(next)
    }
}

/// Connects to `server`, a `host:port`, trying each address that it resolves to.
pub(crate) async fn connect(server: &str, config: Arc<ClientConfig>) -> Result<Link, ConnectError> {
    let late = |within| ConnectError::Timeout { server: server.to_owned(), within };
    let unresolved = |source| ConnectError::Resolve { server: server.to_owned(), source };
    let (host, port) =
        resolve::split(server).ok_or_else(|| unresolved(io::ErrorKind::InvalidInput.into()))?;
    let addresses = timeout(RESOLVE, resolve::look_up(host, port))
        .await
        .map_err(|_| late(RESOLVE))?
        .map_err(unresolved)?;
    let mut last = unresolved(io::ErrorKind::NotFound.into());
    for address in addresses.into_iter().take(ADDRESSES_MAX) {
        match dial(server, address, config.clone()).await {
            Ok(link) => return Ok(link),
            Err(why) => last = why,
        }
    }
    Err(last)
}

async fn dial(
    server: &str,
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> Result<Link, ConnectError> {
    let late = |within| ConnectError::Timeout { server: server.to_owned(), within };
    let failed = |source| ConnectError::Handshake { server: server.to_owned(), source };
    let socket = timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(|_| late(CONNECT))?
        .map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    // Pings notice a silent peer; this notices one that no longer acknowledges what is sent.
    socket2::SockRef::from(&socket).set_tcp_user_timeout(Some(USER_TIMEOUT)).map_err(failed)?;
    let name = ServerName::try_from(SERVER_NAME)
        .map_err(|why| failed(io::Error::new(io::ErrorKind::InvalidInput, why)))?;
    let secured =
        timeout(HANDSHAKE, tokio_rustls::TlsConnector::from(config).connect(name, socket))
            .await
            .map_err(|_| late(HANDSHAKE))?
            .map_err(failed)?;
    let shown = secured.get_ref().1.peer_certificates().unwrap_or_default().into();
    let is_revoked = Arc::new(AtomicBool::new(false));
    let shake = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(Heard { stream: secured, is_revoked: is_revoked.clone() }));
    let (send, connection) =
        timeout(HANDSHAKE, shake).await.map_err(|_| late(HANDSHAKE))?.map_err(|source| {
            let server = server.to_owned();
            match is_revoked.load(Ordering::Acquire) {
                true => ConnectError::Revoked { server },
                false => ConnectError::Http { server, source },
            }
        })?;
    let closed = CancellationToken::new();
    let (ends, ended) = (closed.clone(), closed.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = ended.cancelled() => {}
            result = connection => {
                if let Err(why) = result {
                    tracing::debug!(%why, "the connection to the server broke");
                }
            }
        }
        ends.cancel();
    });
    let origin = http::Uri::from_static(ORIGIN);
    let client =
        AgentClient::with_origin(Wire(send), origin).max_decoding_message_size(MESSAGE_MAX_BYTES);
    Ok(Link { client, address, shown, closed, is_revoked })
}

/// A connection that notes when the server says that the host's certificate is revoked: it says so
/// only after the handshake, to whoever reads next.
struct Heard<S> {
    stream: S,
    is_revoked: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Err(why)) = &read
            && let Some(rustls::Error::AlertReceived(AlertDescription::CertificateRevoked)) =
                why.get_ref().and_then(|source| source.downcast_ref())
        {
            self.is_revoked.store(true, Ordering::Release);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// An HTTP/2 connection as tonic wants to see it.
#[derive(Clone)]
pub(crate) struct Wire(SendRequest<tonic::body::Body>);

impl tower::Service<http::Request<tonic::body::Body>> for Wire {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// Those of `written` that are addresses and no names.
fn addresses<'a>(written: impl IntoIterator<Item = &'a String>) -> Arc<[SocketAddr]> {
    written.into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// `host:port` of a server written as `host`, `host:port` or a bare address.
pub(crate) fn with_port(server: &str) -> String {
    if let Ok(address) = server.parse::<IpAddr>() {
        return SocketAddr::new(address, SERVER_PORT).to_string();
    }
    let has_port = server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if has_port { server.to_owned() } else { format!("{server}:{SERVER_PORT}") }
}

/// The port that servers listen on when an address names none.
const SERVER_PORT: u16 = 8300;
/// Not a name that anything resolves: servers are believed by their SPIFFE id.
const SERVER_NAME: &str = "server.hawser.internal";
const ORIGIN: &str = "https://server.hawser.internal";
const RESOLVE: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(1);
const HANDSHAKE: Duration = Duration::from_secs(3);
/// Interval and timeout together stay under the 10 s in which a dead server must be noticed.
const PING_INTERVAL: Duration = Duration::from_secs(4);
const PING_TIMEOUT: Duration = Duration::from_secs(4);
const USER_TIMEOUT: Duration = Duration::from_secs(8);
const BACKOFF_BASE: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A connection that lived this long was a good one.
const STABLE: Duration = Duration::from_secs(10);
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// The greatest message taken from a server: a large view.
const MESSAGE_MAX_BYTES: usize = 64 << 20;
const MEMBERS_MAX: usize = 64;
const ADDRESSES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_port_gets_the_usual_one() {
        for (given, expected) in [
            ("10.0.0.1", "10.0.0.1:8300"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("::1", "[::1]:8300"),
            ("[::1]:7", "[::1]:7"),
            ("servers.example", "servers.example:8300"),
            ("servers.example:9", "servers.example:9"),
        ] {
            assert_eq!(with_port(given), expected, "{given}");
        }
    }

    #[test]
    fn the_last_two_lists_and_the_configured_servers_are_all_tried() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("servers.json");
        let member = |address: &str| Member { id: 1, name: "s".into(), address: address.into() };
        let configured = ["c:1".to_owned()];
        let servers = Servers::open(&configured, path.clone(), Contact::default());
        servers.learn(vec![member("a:1"), member("b:1")]);
        servers.learn(vec![member("x:1")]);
        servers.learn(vec![]);
        servers.learn(vec![member("10.0.0.1:1"), member("x:1")]);
        let expected: [SocketAddr; 1] = ["10.0.0.1:1".parse().expect("an address")];
        assert_eq!(servers.addresses().borrow()[..], expected, "where a gateway passes peers on");
        servers.learn(vec![member("x:1")]);
        assert!(servers.addresses().borrow().is_empty());

        let again = Servers::open(&configured, path, Contact::default());
        let mut tried = again.candidates();
        assert_eq!(tried[0], "x:1", "those told last come first");
        *again.lost.lock().expect("not poisoned") = Some(expected[0]);
        again.learn(vec![member("10.0.0.1:1"), member("10.0.0.2:1")]);
        assert_eq!(again.candidates()[..2], ["10.0.0.2:1", "10.0.0.1:1"], "the lost one later");
        tried.sort();
        assert_eq!(tried, ["10.0.0.1:1", "c:1", "x:1"]);
    }
}
