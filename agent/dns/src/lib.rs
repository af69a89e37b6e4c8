//! The discovery plane of one host: DNS answered from the host's view, over UDP and TCP.
//!
//! The rules are `hawser_core::dns`; this crate carries packets to them and back. Nothing here
//! asks a server: a name that the view lacks is named to the agent as a [`Want`].

mod config;
mod wire;
mod metrics;
mod respond;
mod recurse;
mod settle;
mod udp;
mod tcp;

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use hawser_core::dns::{InvalidDomain, Want};
use prometheus::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::config::{Config, Feed, QueryAsk};
use crate::metrics::Metrics;
use crate::respond::Responder;
use crate::settle::Settler;
use crate::udp::{Stopper, Worker};

/// Bound sockets of one address.
#[derive(Debug)]
pub struct Sockets {
    /// One per worker, all on the same port.
    pub udp: Vec<UdpSocket>,
    /// Listeners on the same port.
    pub tcp: Vec<TcpListener>,
    /// Set once another process has them too: then they are left whole when this one stops.
    pub is_shared: Arc<AtomicBool>,
}

impl Sockets {
    /// The address that they are bound to.
    ///
    /// # Errors
    /// When there is no socket, or the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match (self.udp.first(), self.tcp.first()) {
            (Some(socket), _) => socket.local_addr(),
            (None, Some(listener)) => listener.local_addr(),
            (None, None) => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The same sockets, for another process to take up.
    ///
    /// # Errors
    /// The system's, where descriptors have run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        let udp = self.udp.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?;
        let tcp = self.tcp.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { udp, tcp, is_shared: self.is_shared.clone() })
    }
}

/// Binds `udp_workers` UDP sockets (at least one) and a TCP listener to `address`.
///
/// With port 0 a port is chosen that is free for both.
///
/// # Errors
/// What the kernel says, such as that the address is in use.
pub fn bind(address: SocketAddr, udp_workers: usize) -> io::Result<Sockets> {
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        // TCP first: it does not share its port, so another process on the port is noticed.
        let tcp = TcpListener::bind(address)?;
        match bind_udp(tcp.local_addr()?, udp_workers.max(1)) {
            Ok(udp) => return Ok(Sockets { udp, tcp: vec![tcp], is_shared: Arc::default() }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn bind_udp(address: SocketAddr, workers: usize) -> io::Result<Vec<UdpSocket>> {
    let bind_one = |_| {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if workers > 1 {
            socket.set_reuse_port(true)?;
        }
        // A burst waits here while a worker is off its core; the kernel may grant less.
        socket.set_recv_buffer_size(RECEIVE_BUFFER_OCTETS)?;
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    (0..workers).map(bind_one).collect()
}

/// Why the discovery plane cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A domain in the configuration.
    #[error(transparent)]
    Domain(#[from] InvalidDomain),
    /// The metrics are registered already.
    #[error("the DNS metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// A socket cannot be made ready.
    #[error("a DNS socket cannot be made ready")]
    Socket(#[from] io::Error),
    /// A worker ended before it was told to.
    #[error("a DNS worker ended unasked")]
    Worker,
}

/// Serves DNS on `sockets` until drained.
///
/// Threads: one per UDP socket. Queries that wait when the drain begins have a second to end.
///
/// # Errors
/// [`Error`] when it cannot begin, or when a worker dies.
pub async fn run(
    config: Config,
    sockets: Sockets,
    feed: Feed,
    registry: &Registry,
    drain: CancellationToken,
) -> Result<(), Error> {
    let responder = Responder::new(&config, &feed, Metrics::new(registry)?)?;
    let settler = Arc::new(Settler::new(responder, config.recursors, feed));
    let tasks = TaskTracker::new();
    let places = Arc::new(Semaphore::new(tcp::CONNECTIONS_MAX));
    let stopper = Stopper {
        sockets: sockets.udp.into_iter().map(Arc::new).collect(),
        stop: Arc::new(AtomicBool::new(false)),
        is_shared: sockets.is_shared,
    };
    let mut workers = JoinSet::new();
    for listener in sockets.tcp {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (settler, places) = (settler.clone(), places.clone());
        workers.spawn(tcp::run(listener, settler, places, tasks.clone(), drain.clone()));
    }
    for socket in &stopper.sockets {
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(udp::RECEIVE_TIMEOUT))?;
        let worker = Worker {
            socket: socket.clone(),
            settler: settler.clone(),
            runtime: tokio::runtime::Handle::current(),
            tasks: tasks.clone(),
            stop: stopper.stop.clone(),
        };
        workers.spawn_blocking(|| worker.run());
    }
    let ended = tokio::select! {
        () = drain.cancelled() => Ok(()),
        _ended = workers.join_next(), if !workers.is_empty() => Err(Error::Worker),
    };
    // An accept loop ends by the same drain, so it may be the one that ended first.
    let ended = if drain.is_cancelled() { Ok(()) } else { ended };
    stopper.stop();
    tasks.close();
    let _in_time = tokio::time::timeout(DRAIN, tasks.wait()).await;
    if ended.is_ok() {
        while workers.join_next().await.is_some() {}
    }
    ended
}

/// How long queries may still wait for their answer once the drain begins.
const DRAIN: Duration = Duration::from_secs(1);
/// About 4,000 queries.
const RECEIVE_BUFFER_OCTETS: usize = 1 << 20;
const PORT_TRIES: u32 = 16;
