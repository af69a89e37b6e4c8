//! The data plane of one host: mTLS between services, routed, balanced, authorized and reported.
//!
//! Threads of their own, apart from the control loop: each worker has a runtime, listeners, pools
//! and counters of its own, and shares with the others only the kernel's address.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use hawser_core::address::Address;
use hawser_core::catalog::{Locality, Protocol};
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::entry::Target;
use hawser_core::jwt::KeyRing;
use hawser_core::name::{InstanceId, PortName, ServiceName};
use hawser_core::view::View;
use hawser_identity::Leaf;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

mod clock;
mod limits;
mod select;
mod detect;
mod unix;
mod inherit;
mod socket;
pub mod tls;
mod trace;
mod relay;
mod judge;
mod watch;
mod report;
mod trailers;
mod throttle;
mod calm;
mod tee;
mod bounded;
mod http;
mod admit;
mod datagrams;
mod lifespan;
mod streams;
mod gateways;
mod pool;
mod usage;
mod global;
mod guard;
mod handshakes;
mod context;
mod inbound;
mod plain;
mod outbound;
mod gateway;
mod worker;
mod shares;

pub use crate::inherit::{Inherited, Listening, Socket};
pub use crate::limits::Limits;
pub use crate::report::{AccessLog, LogSink, ReportError};
pub use crate::shares::{Asked, Shares};
pub use crate::trace::{Attribute, Span, SpanKind};

/// How the data plane runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many threads carry traffic.
    pub workers: usize,
    /// Every bound and timeout.
    pub limits: Limits,
    /// Which access records are written, and where to.
    pub access_log: AccessLog,
    /// How many in a million of the traces that begin here are sampled; none where there are no
    /// traces. See [`Proxy::take_spans`].
    pub trace_ppm: Option<u32>,
    /// Where this host stands.
    pub locality: Locality,
    /// Listening sockets of the process before this one.
    pub inherited: Inherited,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            limits: Limits::default(),
            access_log: AccessLog::default(),
            trace_ppm: None,
            locality: Locality::default(),
            inherited: Inherited::default(),
        }
    }
}

/// What this host's proxy is to do: the services it stands beside.
#[derive(Clone, Default)]
pub struct Plan {
    /// The local instances, each with its ports.
    pub services: Vec<LocalService>,
    /// The mesh gateway; none where this host is none.
    pub gateway: Option<Gateway>,
    /// The keys that tokens are signed with, of providers whose entry does not hold them itself.
    pub keys: Arc<KeyRing>,
}

/// A mesh gateway: where other clusters' proxies, and one's own on their way there, come in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gateway {
    /// The service that it is an instance of.
    pub service: ServiceName,
    /// Its id on this host.
    pub instance: InstanceId,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the servers of its own cluster listen, for peerings that pass through it.
    pub servers: Arc<[SocketAddr]>,
}

/// One local instance.
#[derive(Clone)]
pub struct LocalService {
    /// The service it is a copy of.
    pub service: ServiceName,
    /// Its id on this host.
    pub instance: InstanceId,
    /// Its certificate and key. Without one its listeners are bound, and refuse.
    pub identity: Option<Arc<Leaf>>,
    /// Where others reach it; none when nobody calls it through the mesh.
    pub inbound: Option<Inbound>,
    /// Whom it calls.
    pub outbounds: Vec<Outbound>,
}

/// Where others reach a local instance. What it speaks stands in the view.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Inbound {
    /// Where the proxy listens for mTLS.
    pub listen: SocketAddr,
    /// Where the application listens, by default.
    pub application: Address,
    /// Where it listens by the names of its ports.
    pub ports: Vec<NamedPort>,
}

/// One of several ports of a local instance.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NamedPort {
    /// Its name.
    pub name: PortName,
    /// Where the application listens.
    pub application: Address,
    /// What is spoken there, where that is not what the view says of the service.
    pub protocol: Option<Protocol>,
}

/// A service that a local instance calls.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outbound {
    /// Whom: a service of one's own cluster, or of a peer.
    pub destination: Target,
    /// Which of its ports; none for the default one.
    pub port: Option<PortName>,
    /// Where the proxy listens for the application.
    pub listen: Address,
    /// The mode of the socket's file, where `listen` is one.
    pub mode: u32,
}

/// Which way a listener's connections go.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// From other hosts to an application here.
    Inbound,
    /// From an application here to other hosts.
    Outbound,
    /// Between clusters, through the mesh gateway.
    Gateway,
}

/// One listener and how it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListenerStatus {
    /// Its address.
    pub address: Address,
    /// Which way it goes.
    pub kind: Kind,
    /// Why it is not bound; it is tried again all the time.
    pub error: Option<String>,
}

/// Why the data plane cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Metrics or access log.
    #[error("reports cannot begin")]
    Report(#[from] ReportError),
    /// The system gives no thread.
    #[error("a worker cannot be started")]
    Thread(#[source] std::io::Error),
}

/// The running data plane. Dropping it cuts everything; [`Proxy::drain`] does not.
pub struct Proxy {
    shared: Arc<report::Shared>,
    gateway: Arc<gateway::Shared>,
    board: Arc<worker::Board>,
    drain: CancellationToken,
    is_succeeded: Arc<AtomicBool>,
    cut: CancellationToken,
    workers: Vec<JoinHandle<()>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("workers", &self.workers.len()).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Starts the workers. They follow `plans` and `views`, and serve from the last of each when
    /// the senders are gone.
    ///
    /// # Errors
    /// [`StartError`]; an address that cannot be bound is none, see [`Proxy::listeners`].
    #[allow(clippy::needless_pass_by_value, reason = "they belong to the data plane from now on")]
    pub fn start(
        config: Config,
        plans: channel::Receiver<Arc<Plan>>,
        views: channel::Receiver<Arc<View>>,
        registry: &prometheus::Registry,
    ) -> Result<Self, StartError> {
        let workers = config.workers.max(1);
        let mut proxy = Self {
            shared: Arc::new(report::Shared::new(registry, &config.access_log, config.trace_ppm)?),
            gateway: Arc::new(gateway::Shared::new(registry).map_err(ReportError::Metrics)?),
            board: Arc::default(),
            drain: CancellationToken::new(),
            is_succeeded: Arc::default(),
            cut: CancellationToken::new(),
            workers: Vec::with_capacity(workers),
        };
        let (begun, has_begun) = mpsc::channel();
        for number in 0..workers {
            let start = worker::Start {
                number,
                workers,
                limits: config.limits.clone(),
                locality: config.locality.clone(),
                shared: proxy.shared.clone(),
                gateway: proxy.gateway.clone(),
                board: proxy.board.clone(),
                plans: plans.clone(),
                views: views.clone(),
                inherited: config.inherited.clone(),
                begun: begun.clone(),
                drain: proxy.drain.clone(),
                is_succeeded: proxy.is_succeeded.clone(),
                cut: proxy.cut.clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(StartError::Thread)?;
            let thread = std::thread::Builder::new()
                .name(format!("hawser-proxy-{number}"))
                .spawn(move || tokio::task::LocalSet::new().block_on(&runtime, worker::run(start)))
                .map_err(StartError::Thread)?;
            proxy.workers.push(thread);
        }
        drop(begun);
        if !config.inherited.is_empty() {
            // Whoever hands over stops accepting once all workers here do.
            for _ in 0..workers {
                let _ = has_begun.recv_timeout(BEGIN_WITHIN);
            }
        }
        Ok(proxy)
    }

    /// What the edges of the call graph counted since the last call; at most 4,096 of them.
    pub fn take_edges(&self) -> Vec<(EdgeKey, Tally)> {
        self.shared.take_edges()
    }

    /// The spans of sampled requests, in batches, as workers hand them over ten times a second. Who
    /// takes them exports them; of those that wait for it there are never more than some thousand.
    /// None where somebody took them before.
    pub fn take_spans(&self) -> Option<tokio::sync::mpsc::Receiver<Vec<Span>>> {
        self.shared.take_spans()
    }

    /// What can be changed while it runs, by a handle that outlives the proxy.
    pub fn telemetry(&self) -> Telemetry {
        Telemetry(self.shared.clone())
    }

    /// What the instances here count of rates that hold for all instances of their services.
    pub fn shares(&self) -> Shares {
        Shares::of(&self.board)
    }

    /// Every listener, and why it is not bound where it is not.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        self.board.listeners()
    }

    /// Every socket that listens, for another process to take up.
    ///
    /// # Errors
    /// The system's, where descriptors have run out.
    pub fn sockets(&self) -> std::io::Result<Vec<Listening>> {
        self.board.sockets()
    }

    /// Wakes whenever [`Proxy::sockets`] may answer something else.
    pub fn socket_changes(&self) -> channel::Receiver<u64> {
        self.board.changes()
    }

    /// Leaves its sockets to another process that has taken them up: as [`Proxy::drain`], but what
    /// is open stays until it ends by itself or `deadline` has come. HTTP/1.1 connections end with
    /// their next answer.
    pub async fn give_way(self, deadline: Duration) {
        self.is_succeeded.store(true, Ordering::Release);
        self.drain(deadline).await;
    }

    /// Stops accepting, tells peers, waits for what is open, and cuts what is left at `deadline`.
    pub async fn drain(mut self, deadline: Duration) {
        self.drain.cancel();
        let workers = std::mem::take(&mut self.workers);
        let mut ended = tokio::task::spawn_blocking(move || {
            for worker in workers {
                if worker.join().is_err() {
                    tracing::error!("a worker of the data plane panicked");
                }
            }
        });
        if tokio::time::timeout(deadline, &mut ended).await.is_err() {
            self.cut.cancel();
            let _ = ended.await;
        }
        let shared = self.shared.clone();
        let _ = tokio::task::spawn_blocking(move || shared.finish()).await;
    }
}

/// What a running data plane logs and traces.
#[derive(Clone)]
pub struct Telemetry(Arc<report::Shared>);

impl Telemetry {
    /// Logs and traces so from now on; opens the log's file anew even where it is the same, for
    /// those who moved it away.
    ///
    /// # Errors
    /// The file cannot be opened; then all stays as it was.
    pub fn set(&self, log: &AccessLog, trace_ppm: Option<u32>) -> std::io::Result<()> {
        self.0.set(log, trace_ppm)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.drain.cancel();
        self.cut.cancel();
    }
}

const BEGIN_WITHIN: Duration = Duration::from_secs(5);
