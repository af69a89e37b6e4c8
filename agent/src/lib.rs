//! The control loop of one host: declares, checks, subscribes, holds identities, and answers the
//! local API; DNS and the proxy run beside it and never wait for it.
//!
//! Tasks, all spawned in [`Agent::run`]: session, heartbeat, anti-entropy, subscription, view
//! keeper, node and leaf renewal, checks, status keeper, plan, report, shares, readiness, traces, ECS
//! task, HTTP, DNS.

#![forbid(unsafe_code)]

mod clock;
pub mod monitor;
pub mod ecs;
mod resolve;
pub mod acl;
mod metrics;
mod otlp;
mod hand_over;
pub mod config;
mod disk;
mod tls;
mod servers;
mod token;
mod target;
mod local;
mod containers;
mod check;
mod identity;
mod anti_entropy;
mod heartbeat;
mod subscribe;
mod report;
mod shares;
mod keys;
mod plan;
mod host;
mod session;
mod veil;
mod forward;
mod queries;
mod api;

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_api::definition::{CheckDefinition, ServiceDefinition};
use hawser_aws::{Ambient, Finder, InvalidQuery, Query};
use hawser_core::catalog::{Instance, Locality, Meta, Node};
use hawser_core::clock::UnixTime;
use hawser_core::name::NodeName;
use hawser_core::view::View;
use hawser_proto::v1;
use hawser_proxy::{ListenerStatus, Plan, Proxy};
use tokio::sync::{OwnedRwLockWriteGuard, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub use crate::api::listen::InvalidTls;
pub use crate::config::{
    Config, Gateway, Https, InvalidAdvertise, InvalidPin, Join, Listeners, Mint, Pin, Reload,
    ScriptChecks, Shown, Succession, Telemetry, UnixSocket,
};
pub use crate::disk::UnsafeFolder;
pub use crate::hand_over::{HandOverError, Sockets};
pub use crate::identity::join::{InvalidToken, JoinError};
pub use crate::local::RegisterError;
pub use crate::otlp::{InvalidOtlp, Otlp};
pub use hawser_dns as dns;
pub use hawser_proxy as proxy;

use crate::anti_entropy::{AntiEntropy, Refused};
use crate::api::listen::{self, Bound};
use crate::hand_over::{Asker, Offer, Successor, Taken};
use crate::host::Host;
use crate::identity::join::{Membership, Token};
use crate::identity::{leaves, node};
use crate::local::{Local, Rules};
use crate::metrics::Metrics;
use crate::otlp::{Exporter, Origin};
use crate::servers::{Contact, Servers};
use crate::subscribe::{Asked, Subscription};

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its folder cannot hold keys.
    #[error("data_dir: {0}")]
    Folder(#[from] UnsafeFolder),
    /// Its folder cannot be read or written.
    #[error("data_dir: {0}")]
    Io(#[from] io::Error),
    /// Its metrics are registered already.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// An entry of `retry_join` asks AWS for nothing that there is.
    #[error("retry_join: {0}")]
    Query(#[from] InvalidQuery),
    /// The join token is none.
    #[error("join token: {0}")]
    Token(#[from] InvalidToken),
    /// It has not joined and has nothing to join with.
    #[error(
        "this host has not joined a cluster: name a file with a join token in join_token_file; \
             `hawser token create` on a server prints one"
    )]
    NeverJoined,
    /// It has not joined, and the file that was to hold its token is not there.
    #[error(
        "this host has not joined a cluster, and join_token_file {0} is not there: `hawser token \
             create` on a server prints a token"
    )]
    NoTokenFile(PathBuf),
    /// It joined under another name.
    #[error(
        "this host joined as {joined}, and is now called {configured}: set the old name, or \
             empty data_dir and join again"
    )]
    Renamed {
        /// Then.
        joined: NodeName,
        /// Now.
        configured: NodeName,
    },
    /// A port cannot be listened on.
    #[error("cannot listen on {address} for {what}: {source}")]
    Listen {
        /// What for.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A Unix socket cannot be listened on.
    #[error("cannot listen on {path} for the HTTP API: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The HTTP API cannot speak TLS with what was configured.
    #[error(transparent)]
    Tls(#[from] InvalidTls),
    /// The proxy does not start.
    #[error("proxy: {0}")]
    Proxy(#[from] hawser_proxy::StartError),
    /// The agent that runs already does not give way.
    #[error("taking over from the running agent: {0}")]
    HandOver(#[from] HandOverError),
}

/// Why an agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It could not join.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// DNS failed.
    #[error("DNS: {0}")]
    Dns(#[from] hawser_dns::Error),
    /// A task ended that never should.
    #[error("{0} ended by itself")]
    Ended(&'static str),
    /// A task panicked.
    #[error("a task panicked: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Where an agent listens.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Addresses {
    /// The HTTP API, without TLS.
    pub http: Option<SocketAddr>,
    /// The HTTP API with TLS.
    pub https: Option<SocketAddr>,
    /// DNS, UDP and TCP.
    pub dns: Option<SocketAddr>,
}

/// What can be done with an agent from outside, before and while it runs.
#[derive(Clone)]
pub struct Handle {
    host: Arc<Host>,
    telemetry: hawser_proxy::Telemetry,
    otlp: watch::Sender<Option<Otlp>>,
    ready: watch::Receiver<bool>,
    addresses: Addresses,
    listening: Arc<Listening>,
    shown: Option<watch::Sender<Arc<rustls::ServerConfig>>>,
}

impl Handle {
    /// Whether the host serves: joined, trusting, with a certificate and listeners for each
    /// service of the mesh. It needs no server for that once it has joined.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    /// What keeps it from serving, in words.
    pub fn missing(&self) -> Vec<String> {
        self.host.missing()
    }

    /// Replaces what the files declared by what they declare now, and logs and traces as they
    /// say; answers which declarations were refused.
    ///
    /// # Errors
    /// The access log cannot be opened, then it and the traces stay as they were; or HTTPS cannot
    /// show what the files hold, then all stays as it was.
    pub fn reload(&self, files: Reload) -> io::Result<Vec<RegisterError>> {
        let Reload { services, checks, https, telemetry } = files;
        let Telemetry { access_log, otlp } = telemetry;
        if let (Some(sender), Some(shown)) = (&self.shown, https) {
            sender.send_replace(listen::tls(&shown).map_err(io::Error::other)?);
        }
        let refused = self.host.local.reload(services, checks);
        self.telemetry.set(&access_log, otlp.as_ref().map(|otlp| otlp.sample_ppm))?;
        self.otlp.send_replace(otlp);
        Ok(refused)
    }

    /// Wakes when somebody asks by the API that the files be read again.
    pub fn reload_requests(&self) -> watch::Receiver<u64> {
        self.host.reloads.subscribe()
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Every socket that listens, for a service manager to keep. From then on DNS's sockets are
    /// left whole when the agent ends.
    ///
    /// # Errors
    /// The system's, where descriptors have run out.
    pub fn sockets(&self) -> io::Result<Sockets> {
        self.listening.sockets()
    }

    /// Wakes whenever [`Handle::sockets`] may answer something else; none once the proxy ended.
    pub fn socket_changes(&self) -> Option<watch::Receiver<u64>> {
        let proxy = self.listening.proxy.lock().unwrap_or_else(PoisonError::into_inner);
        proxy.as_ref().map(Proxy::socket_changes)
    }
}

/// What listens: each socket a second time, for another process to take up.
struct Listening {
    proxy: Arc<Mutex<Option<Proxy>>>,
    http: Vec<Bound>,
    dns: Option<hawser_dns::Sockets>,
}

impl Listening {
    fn new(
        proxy: &Arc<Mutex<Option<Proxy>>>,
        http: &[Bound],
        dns: Option<&(hawser_dns::Config, hawser_dns::Sockets)>,
    ) -> io::Result<Self> {
        let http = http.iter().map(Bound::try_clone).collect::<io::Result<_>>()?;
        let dns = dns.map(|(_, sockets)| sockets.try_clone()).transpose()?;
        Ok(Self { proxy: proxy.clone(), http, dns })
    }

    fn addresses(&self) -> io::Result<Addresses> {
        let mut addresses = Addresses::default();
        for bound in &self.http {
            match bound {
                Bound::Tcp(listener) => addresses.http = Some(listener.local_addr()?),
                Bound::Tls(listener, _) => addresses.https = Some(listener.local_addr()?),
                Bound::Unix(_) => {}
            }
        }
        addresses.dns = self.dns.as_ref().map(hawser_dns::Sockets::address).transpose()?;
        Ok(addresses)
    }

    fn sockets(&self) -> io::Result<Sockets> {
        let mut all = Sockets::default();
        if let Some(proxy) = &*self.proxy.lock().unwrap_or_else(PoisonError::into_inner) {
            all.add(proxy.sockets()?);
        }
        for bound in &self.http {
            match bound.try_clone()? {
                Bound::Tcp(listener) | Bound::Tls(listener, _) => all.http.push(listener),
                Bound::Unix(listener) => all.http_unix = Some(listener),
            }
        }
        if let Some(dns) = &self.dns {
            dns.is_shared.store(true, Ordering::Release);
            let dns = dns.try_clone()?;
            (all.dns_udp, all.dns_tcp) = (dns.udp, dns.tcp);
        }
        Ok(all)
    }
}

/// An agent whose proxy serves already, from what its disk holds.
pub struct Agent {
    host: Arc<Host>,
    folder: PathBuf,
    join: Join,
    drain: Duration,
    proxy: Arc<Mutex<Option<Proxy>>>,
    tracing: Tracing,
    plans: watch::Sender<Arc<Plan>>,
    planner: plan::Planner,
    asked: Asked,
    ecs: Option<ecs::Config>,
    own_service: Option<Instance>,
    http: listen::Api,
    dns: Option<(hawser_dns::Config, hawser_dns::Sockets)>,
    ready: watch::Sender<bool>,
    addresses: Addresses,
    listening: Arc<Listening>,
    on_replaced: fn(u32),
    /// Held for as long as the agent lives: one folder, one agent.
    lock: File,
}

impl Agent {
    /// Reads what the disk holds, binds listeners and starts the proxy.
    ///
    /// It never waits for a server: a host that has joined before serves from its disk; one that
    /// has not joins in [`Agent::run`].
    ///
    /// # Errors
    /// [`StartError`]
    pub fn start(config: Config, registry: prometheus::Registry) -> Result<Self, StartError> {
        let folder = config.data_dir;
        disk::private_folder(&folder)?;
        let mut inherited = Inherited::of(config.succession, &folder)?;
        disk::private_folder(&folder.join(LEAVES))?;
        let metrics = Metrics::register(&registry)?;

        let membership = Membership::kept(&folder)?;
        may_start(membership.as_ref(), &config.join, &config.node)?;

        let rules = Rules {
            scripts: config.script_checks,
            address: config.advertise,
            bind: config.bind,
            ports: config.mesh_ports,
        };
        let (local, refused) = Local::open(rules, folder.clone(), config.services, config.checks)?;
        let local =
            Arc::new(declared(local, refused, config.gateway.as_ref(), config.ecs.as_ref()));

        let view_path = folder.join(VIEW);
        let view = Arc::new(subscribe::kept(&view_path).unwrap_or_default());
        let asked = Asked::of(&view);
        let contact = Contact(Arc::new(AtomicU64::new(modified(&view_path).as_millis())));
        let servers = Servers::open(&config.servers, folder.join(SERVERS), contact.clone());
        let servers = Arc::new(servers.finding(finders(&config.servers)?));
        let views = watch::Sender::new(view);
        let leaves = watch::Sender::new(leaves::kept(&folder.join(LEAVES)));

        let mut planner = plan::Planner::new(config.bind, config.gateway.as_ref(), &servers);
        let plans = watch::Sender::new(Arc::new(planner.plan(&local.services(), &leaves.borrow())));
        let sockets = inherited.sockets.claim_proxy();
        let (proxy, tracing) =
            start_proxy(config.proxy, config.telemetry, &sockets, &plans, &views, &registry)?;

        let http = listen::bind(&config.http, &mut inherited.sockets)?;
        let dns = config.dns.map(|config| bind(config, &mut inherited.sockets)).transpose()?;
        let listening = Listening::new(&proxy, &http.bound, dns.as_ref())?;
        let (addresses, stopping) = (listening.addresses()?, CancellationToken::new());
        let host = Arc::new(Host {
            node: own_node(&folder, config.node, config.advertise, config.locality, config.meta)?,
            datacenter: config.datacenter,
            is_server: config.is_server,
            version: config.version,
            acl: token::Acl::open(config.acl, &folder, stopping.clone()),
            bind: config.bind,
            local,
            servers,
            membership: watch::Sender::new(membership.map(Arc::new)),
            leaves,
            views,
            refused: Refused::default(),
            contact,
            registry,
            metrics,
            logs: config.logs,
            listeners: listeners_of(proxy.clone()),
            reloads: watch::Sender::new(0),
            stopping,
            leave: CancellationToken::new(),
            changes: Arc::default(),
            holds: watch::Sender::new(false),
        });
        let ready = watch::Sender::new(host.missing().is_empty());
        if let Some(before) = inherited.before {
            hand_over::ready(&before, &folder)?;
            tracing::info!("this process took the agent's sockets over");
        }
        Ok(Self {
            host,
            folder,
            join: config.join,
            drain: config.drain,
            proxy,
            tracing,
            plans,
            planner,
            asked,
            ecs: config.ecs,
            own_service: config.own_service,
            http,
            dns,
            ready,
            addresses,
            listening: Arc::new(listening),
            on_replaced: inherited.on_replaced,
            lock: inherited.lock,
        })
    }

    /// A handle that outlives [`Agent::run`]'s taking the agent.
    pub fn handle(&self) -> Handle {
        Handle {
            host: self.host.clone(),
            telemetry: self.tracing.proxy.clone(),
            otlp: self.tracing.otlp.clone(),
            ready: self.ready.subscribe(),
            addresses: self.addresses,
            listening: self.listening.clone(),
            shown: self.http.shown.clone(),
        }
    }

    /// Whether the host serves: see [`Handle::ready`].
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Replaces what the files declared: see [`Handle::reload`].
    pub fn reload(&self, services: Vec<ServiceDefinition>, checks: Vec<CheckDefinition>) {
        for why in self.host.local.reload(services, checks) {
            tracing::error!(%why, "a declaration was not taken");
        }
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Runs until `drain`, or until somebody asks by the API to leave; then leaves the catalog,
    /// lets that spread, lets the proxy's connections finish, and ends.
    ///
    /// # Errors
    /// [`RunError`] when it could not join, or a task ended that never should.
    pub async fn run(self, drain: CancellationToken) -> Result<(), RunError> {
        let Self { host, folder, proxy, plans, planner, asked, http, dns, ready, .. } = self;
        let until = Until::new(&host);
        let (wants_in, wants) = mpsc::channel(WANTS_QUEUED);
        let mut speaking = speak(&host, self.own_service, &folder, &until);
        let mut tasks: JoinSet<Result<&'static str, RunError>> = JoinSet::new();
        let serves = &until.serves;
        tasks.spawn(session::run(host.clone(), self.join, folder.clone(), serves.clone()));
        let subscription = Subscription {
            local: host.local.clone(),
            servers: host.servers.clone(),
            wants,
            asked,
            views: host.views.clone(),
        };
        tasks.spawn(named("subscription", subscription.run(serves.clone())));
        let keys = keys::run(host.views.subscribe(), planner.keys(), serves.clone());
        tasks.spawn(named("provider keys", keys));
        let planning =
            plan::run(host.local.clone(), host.leaves.subscribe(), planner, plans, serves.clone());
        tasks.spawn(named("plan", planning));
        let edges = proxy.clone();
        let take = move || {
            let proxy = edges.lock().unwrap_or_else(PoisonError::into_inner);
            proxy.as_ref().map(Proxy::take_edges).unwrap_or_default()
        };
        let servers = host.servers.clone();
        let reporting = report::run(servers, take, host.metrics.clone(), until.speaks.clone());
        tasks.spawn(named("report", reporting));
        share_rates(&host, &proxy, &mut tasks, &until.speaks);
        self.tracing.export(&host, &mut tasks, serves);
        tasks.spawn(named("readiness", readiness(host.clone(), ready, serves.clone())));
        for bound in http.bound {
            let listener = bound.listen().map_err(|_| RunError::Ended("the HTTP API"))?;
            tasks.spawn(named("HTTP", api::run(listener, host.clone(), serves.clone())));
        }
        if let Some(dns) = dns {
            names(dns, &host, wants_in.clone(), &mut tasks, &until);
        }

        let application = self.ecs.map(|config| beside(config, &host, &mut tasks, serves));

        let offering = offer(&host, &folder, &self.listening, &self.lock);
        let ended = tokio::select! {
            () = drain.cancelled() => Ok(None),
            () = host.leave.cancelled() => Ok(None),
            successor = offering => Ok(Some(successor)),
            Some(ended) = tasks.join_next() => Err(early(ended)),
            Some(ended) = speaking.join_next() => Err(early(ended)),
        };
        until.speaks.cancel();
        let ended = match ended {
            Ok(Some(successor)) => {
                until.keeps.cancel();
                finish(&mut speaking).await;
                (self.on_replaced)(successor.pid);
                tracing::info!(pid = successor.pid, "another process took over: finishing");
                successor.leave();
                until.names.cancel();
                let held = proxy.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(proxy) = held {
                    proxy.give_way(self.drain).await;
                }
                Ok(())
            }
            ended => {
                let ended = ended.map(drop);
                let has_left = ended.is_err() || leave(&host).await;
                wind_down(&host, has_left, application, &proxy, self.drain).await;
                ended
            }
        };
        until.serves.cancel();
        finish(&mut speaking).await;
        finish(&mut tasks).await;
        // A sender that lives to here keeps DNS's queue open while the subscription waits.
        drop((wants_in, self.lock));
        ended
    }
}

/// What ends when: each part has its turn when the agent stops or gives way.
struct Until {
    /// What says that the host is here, and how it is.
    speaks: CancellationToken,
    /// What writes to the agent's folder.
    keeps: CancellationToken,
    /// DNS.
    names: CancellationToken,
    /// What serves: ends last.
    serves: CancellationToken,
}

impl Until {
    fn new(host: &Host) -> Self {
        let serves = CancellationToken::new();
        let (keeps, names) = (serves.child_token(), serves.child_token());
        Self { speaks: host.stopping.clone(), keeps, names, serves }
    }
}

/// Begins all that one process at a time may do for a host: speak for it, and write to its folder.
fn speak(
    host: &Arc<Host>,
    own: Option<Instance>,
    folder: &Path,
    until: &Until,
) -> JoinSet<Result<&'static str, RunError>> {
    let mut tasks = JoinSet::new();
    let (says, keeps) = (&until.speaks, &until.keeps);
    let (synced, compare) = (watch::Sender::new(0), watch::Sender::new(0));
    let (servers, membership) = (host.servers.clone(), host.membership.clone());
    let beats = heartbeat::run(
        servers.clone(),
        host.standing(),
        compare.clone(),
        host.metrics.clone(),
        heartbeat::Seen::new(folder.join(VIEW)),
        says.clone(),
    );
    tasks.spawn(named("heartbeat", beats));
    let reconciling = AntiEntropy {
        node: host.node.clone(),
        local: host.local.clone(),
        own,
        servers: servers.clone(),
        synced: synced.clone(),
        compare: compare.subscribe(),
        refused: host.refused.clone(),
        metrics: host.metrics.clone(),
    };
    tasks.spawn(named("anti-entropy", reconciling.run(says.clone())));
    tasks.spawn(named("checks", check::run(host.local.clone(), says.clone())));
    let (local, saved) = (host.local.clone(), says.clone());
    tasks.spawn(named("status keeper", async move { local.keep_states(saved).await }));
    let keeper = subscribe::keep(host.views.subscribe(), folder.join(VIEW), keeps.clone());
    tasks.spawn(named("view keeper", keeper));
    let (views, folder_of) = (host.views.subscribe(), folder.to_owned());
    let renewal = node::run(servers.clone(), membership, views, folder_of, keeps.clone());
    tasks.spawn(named("node renewal", renewal));
    let renewal = leaves::Leaves {
        folder: folder.join(LEAVES),
        local: host.local.clone(),
        servers,
        membership: host.membership.subscribe(),
        views: host.views.subscribe(),
        synced: synced.subscribe(),
        all: host.leaves.clone(),
    };
    tasks.spawn(named("leaf renewal", renewal.run(keeps.clone())));
    tasks
}

/// Waits a while for tasks that were told to end.
async fn finish(tasks: &mut JoinSet<Result<&'static str, RunError>>) {
    let finishing = async { while tasks.join_next().await.is_some() {} };
    if timeout(FINISH, finishing).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
}

/// Offers the agent's sockets to successors, until one serves from them.
async fn offer(host: &Host, folder: &Path, listening: &Listening, lock: &File) -> Successor {
    let opened = match host.is_server {
        // Its log has one writer, and its members know it by its process.
        true => None,
        false => Offer::open(folder)
            .inspect_err(|why| tracing::warn!(%why, "no other process can take over"))
            .ok(),
    };
    let Some(offer) = opened else { return std::future::pending().await };
    loop {
        let asked = match offer.next().await {
            Ok(asker) => hand_over(host, folder, asker, listening, lock).await,
            Err(why) => {
                sleep(OFFER_BACK_OFF).await;
                Err(why)
            }
        };
        match asked {
            Ok(successor) => return successor,
            Err(why) => tracing::warn!(%why, "a process that asked to take over did not"),
        }
    }
}

/// Hands everything over to one process. While it reads the disk, nothing is declared; what it
/// would not see there is written first.
async fn hand_over(
    host: &Host,
    folder: &Path,
    asker: Asker,
    listening: &Listening,
    lock: &File,
) -> Result<Successor, HandOverError> {
    tracing::info!("another process takes over");
    let Ok(turn) = timeout(LEAVE, host.changes.clone().write_owned()).await else {
        // What is declared right now would be lost between the two.
        asker.refuse("what its API was asked for is not done yet: try again".to_owned()).await;
        return Err(HandOverError::Busy);
    };
    let holding = Holding::begin(&host.holds, turn);
    host.local.save_states();
    let view = host.views.borrow().clone();
    subscribe::write(&folder.join(VIEW), view).await;
    let mut sockets = listening.sockets()?;
    sockets.lock = Some(lock.try_clone()?);
    let successor = asker.give(sockets).await?;
    holding.keep();
    Ok(successor)
}

/// The API leaves new connections alone and changes nothing, until this is dropped.
struct Holding<'a> {
    holds: &'a watch::Sender<bool>,
    _turn: OwnedRwLockWriteGuard<()>,
}

impl<'a> Holding<'a> {
    fn begin(holds: &'a watch::Sender<bool>, turn: OwnedRwLockWriteGuard<()>) -> Self {
        holds.send_replace(true);
        Self { holds, _turn: turn }
    }

    /// For good.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.holds.send_replace(false);
    }
}

/// The proxy, until it drains.
type Held = Arc<Mutex<Option<Proxy>>>;

/// What the proxy logs and traces, and the spans that it hands over.
struct Tracing {
    proxy: hawser_proxy::Telemetry,
    otlp: watch::Sender<Option<Otlp>>,
    spans: Option<mpsc::Receiver<Vec<hawser_proxy::Span>>>,
}

impl Tracing {
    /// Exports spans for as long as the proxy may have some.
    fn export(
        self,
        host: &Host,
        tasks: &mut JoinSet<Result<&'static str, RunError>>,
        until: &CancellationToken,
    ) {
        let Some(spans) = self.spans else { return };
        let exporter = Exporter::new(origin(host), host.metrics.clone());
        let exporting = exporter.run(spans, self.otlp.subscribe(), until.clone());
        tasks.spawn(named("traces", exporting));
    }
}

/// Asks the servers for shares of the rates that instances here count with others.
fn share_rates(
    host: &Host,
    proxy: &Held,
    tasks: &mut JoinSet<Result<&'static str, RunError>>,
    until: &CancellationToken,
) {
    let proxy = proxy.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(shares) = proxy.as_ref().map(Proxy::shares) else { return };
    let (servers, metrics) = (host.servers.clone(), host.metrics.clone());
    tasks.spawn(named("shares", shares::run(servers, shares, metrics, until.clone())));
}

/// What every span says of its host.
fn origin(host: &Host) -> Origin {
    let Node { name, locality, .. } = &host.node;
    let text = |word: &Option<Arc<str>>| word.as_deref().map(str::to_owned);
    Origin {
        node: name.to_string(),
        datacenter: host.datacenter.to_string(),
        region: text(&locality.region),
        zone: text(&locality.zone),
        version: host.version,
    }
}

/// Has DNS answered, from the view and, for prepared queries, by the servers.
fn names(
    (config, sockets): (hawser_dns::Config, hawser_dns::Sockets),
    host: &Arc<Host>,
    wants: mpsc::Sender<hawser_dns::Want>,
    tasks: &mut JoinSet<Result<&'static str, RunError>>,
    until: &Until,
) {
    let (queries, asks) = mpsc::channel(QUERIES_QUEUED);
    let prepared = queries::run(host.clone(), asks, config.stale_max, until.serves.clone());
    tasks.spawn(named("prepared queries", prepared));
    let feed = hawser_dns::Feed {
        views: dns_views(host, tasks, &until.serves),
        wants,
        queries,
        last_contact_ms: host.contact.0.clone(),
    };
    let (registry, drain) = (host.registry.clone(), until.names.clone());
    tasks.spawn(async move {
        hawser_dns::run(config, sockets, feed, &registry, drain).await?;
        Ok("DNS")
    });
}

/// What DNS answers from: the host's view, or what its token may see of it.
fn dns_views(
    host: &Arc<Host>,
    tasks: &mut JoinSet<Result<&'static str, RunError>>,
    until: &CancellationToken,
) -> watch::Receiver<Arc<View>> {
    if !host.acl.is_enabled() {
        return host.views.subscribe();
    }
    let veiled = watch::Sender::new(Arc::default());
    let views = veiled.subscribe();
    tasks.spawn(named("DNS's view", veil::run(host.clone(), veiled, until.clone())));
    views
}

async fn named(
    name: &'static str,
    task: impl Future<Output = ()>,
) -> Result<&'static str, RunError> {
    task.await;
    Ok(name)
}

/// What became of a task that ended before it was told to.
fn early(ended: Result<Result<&'static str, RunError>, tokio::task::JoinError>) -> RunError {
    match ended {
        Err(panicked) => RunError::Panicked(panicked),
        Ok(Err(why)) => why,
        Ok(Ok(name)) => RunError::Ended(name),
    }
}

/// The entries of `retry_join` that AWS is asked for.
fn finders(servers: &[String]) -> Result<Vec<Finder>, InvalidQuery> {
    let asked = servers.iter().filter(|server| hawser_aws::is_provider(server));
    asked.map(|text| Ok(Finder::new(Query::parse(text)?, Ambient::of_process()))).collect()
}

/// Says when the host serves and when it does not.
async fn readiness(host: Arc<Host>, ready: watch::Sender<bool>, drain: CancellationToken) {
    let mut membership = host.membership.subscribe();
    let (mut views, mut leaves) = (host.views.subscribe(), host.leaves.subscribe());
    let mut changes = host.local.changes();
    loop {
        membership.borrow_and_update();
        views.borrow_and_update();
        leaves.borrow_and_update();
        changes.borrow_and_update();
        let missing = host.missing();
        let is_ready = missing.is_empty();
        ready.send_if_modified(|held| {
            let has_changed = *held != is_ready;
            *held = is_ready;
            if has_changed {
                tracing::info!(is_ready, ?missing, "readiness changed");
            }
            has_changed
        });
        tokio::select! {
            () = drain.cancelled() => break,
            () = host.stopping.cancelled(), if is_ready => {}
            // Listeners tell nobody when they come up.
            () = sleep(READY_EVERY) => {}
            Ok(()) = membership.changed() => {}
            Ok(()) = views.changed() => {}
            Ok(()) = leaves.changed() => {}
            Ok(()) = changes.changed() => {}
        }
    }
    ready.send_replace(false);
}

/// Takes the host out of the catalog and gives that a moment to reach its callers.
///
/// Answers whether the host is out.
async fn leave(host: &Host) -> bool {
    let Some(link) = host.servers.link() else { return false };
    let mut client = link.client();
    let has_left = match timeout(LEAVE, client.leave(v1::LeaveRequest {})).await {
        Ok(Ok(_)) => {
            tracing::info!("left the catalog");
            true
        }
        Ok(Err(status)) => {
            tracing::warn!(why = status.message(), "the catalog was not left");
            false
        }
        Err(_) => {
            tracing::warn!("the catalog was not left in time");
            false
        }
    };
    sleep(PROPAGATION).await;
    has_left
}

/// The application around an agent that is a sidecar.
struct Application {
    runs: watch::Receiver<bool>,
    stop_timeout: Duration,
}

/// Watches the application that the agent stands beside.
fn beside(
    config: ecs::Config,
    host: &Host,
    tasks: &mut JoinSet<Result<&'static str, RunError>>,
    drain: &CancellationToken,
) -> Application {
    let (application_runs, runs) = watch::channel(true);
    let application = Application { runs, stop_timeout: config.stop_timeout };
    let (local, leave) = (host.local.clone(), host.leave.clone());
    let watching = containers::Watch { config, local, leave, application_runs };
    tasks.spawn(named("ECS task", watching.run(drain.clone())));
    application
}

/// Ends what serves: after the application, where the agent is a sidecar, then the proxy.
async fn wind_down(
    host: &Host,
    has_left: bool,
    application: Option<Application>,
    proxy: &Mutex<Option<Proxy>>,
    drain: Duration,
) {
    if let Some(application) = application {
        outlive(host, application, has_left).await;
    }
    let held = proxy.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(proxy) = held {
        proxy.drain(drain).await;
    }
}

/// Serves on until the application has stopped: it still calls others while it finishes.
/// Leaves the catalog meanwhile, where that has not come about.
async fn outlive(host: &Host, application: Application, mut has_left: bool) {
    let Application { runs, stop_timeout } = application;
    let leaving = async {
        while !has_left {
            sleep(PROPAGATION).await;
            has_left = leave(host).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = containers::outlive(runs, stop_timeout) => {}
        () = leaving => {}
    }
}

/// Says what was refused, and adds the gateway that the host is and the checks of the task around the agent.
fn declared(
    local: Local,
    refused: Vec<RegisterError>,
    gateway: Option<&Gateway>,
    ecs: Option<&ecs::Config>,
) -> Local {
    for why in refused {
        tracing::error!(%why, "a declaration was not taken");
    }
    if let Some(gateway) = gateway {
        local.declare_gateway(gateway);
    }
    if let Some(config) = ecs {
        containers::declare(config, &local);
    }
    local
}

/// What a process begins with.
struct Inherited {
    /// The sockets of the agent that it replaces, or those that a service manager kept.
    sockets: Sockets,
    /// The lock of the folder.
    lock: File,
    /// Whom to tell once it serves.
    before: Option<UnixStream>,
    on_replaced: fn(u32),
}

impl Inherited {
    fn of(succession: Succession, folder: &Path) -> Result<Self, StartError> {
        let on_replaced = succession.on_replaced;
        let taken = if succession.take_over { hand_over::take(folder)? } else { None };
        let (mut sockets, before) = match taken {
            Some(Taken { sockets, connection }) => (sockets, Some(connection)),
            None => (succession.sockets, None),
        };
        let lock = match sockets.lock.take().filter(|lock| disk::is_lock_of(lock, folder)) {
            Some(lock) => lock,
            None => disk::lock(folder)?,
        };
        Ok(Self { sockets, lock, before, on_replaced })
    }
}

/// Whether a host that holds `membership` may be called `node`, and join by `join`.
fn may_start(
    membership: Option<&Membership>,
    join: &Join,
    node: &NodeName,
) -> Result<(), StartError> {
    match (membership.and_then(Membership::node), join) {
        (Some(joined), _) if joined != node => {
            Err(StartError::Renamed { joined: joined.clone(), configured: node.clone() })
        }
        (None, Join::None) => Err(StartError::NeverJoined),
        (None, Join::Missing(file)) => Err(StartError::NoTokenFile(file.clone())),
        // A host that has joined lives on, whatever became of its token.
        (None, Join::Token(text)) if membership.is_none() => {
            Token::parse(text)?;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Starts the proxy, and closes what it inherited and has no use for.
fn start_proxy(
    config: hawser_proxy::Config,
    telemetry: Telemetry,
    inherited: &hawser_proxy::Inherited,
    plans: &watch::Sender<Arc<Plan>>,
    views: &watch::Sender<Arc<View>>,
    registry: &prometheus::Registry,
) -> Result<(Held, Tracing), StartError> {
    let Telemetry { access_log, otlp } = telemetry;
    let trace_ppm = otlp.as_ref().map(|otlp| otlp.sample_ppm);
    let inheriting = inherited.clone();
    let config = hawser_proxy::Config { inherited: inheriting, access_log, trace_ppm, ..config };
    let proxy = Proxy::start(config, plans.subscribe(), views.subscribe(), registry)?;
    for address in inherited.close_rest() {
        tracing::info!(%address, "a socket that was handed over has no use any more");
    }
    let (telemetry, spans) = (proxy.telemetry(), proxy.take_spans());
    let tracing = Tracing { proxy: telemetry, otlp: watch::Sender::new(otlp), spans };
    Ok((Arc::new(Mutex::new(Some(proxy))), tracing))
}

/// This host, as the catalog is told of it.
fn own_node(
    folder: &Path,
    name: NodeName,
    address: IpAddr,
    locality: Locality,
    meta: Meta,
) -> io::Result<Node> {
    Ok(Node { name, id: node_id(folder)?, address, locality, meta, tagged: Default::default() })
}

/// How the listeners of `proxy` stand, for as long as it runs.
fn listeners_of(
    proxy: Arc<Mutex<Option<Proxy>>>,
) -> Box<dyn Fn() -> Vec<ListenerStatus> + Send + Sync> {
    Box::new(move || {
        let proxy = proxy.lock().unwrap_or_else(PoisonError::into_inner);
        proxy.as_ref().map(Proxy::listeners).unwrap_or_default()
    })
}

fn bind(
    (address, config): (SocketAddr, hawser_dns::Config),
    inherited: &mut Sockets,
) -> Result<(hawser_dns::Config, hawser_dns::Sockets), StartError> {
    let sockets =
        match inherited.claim_dns(address) {
            Some(sockets) => sockets,
            None => hawser_dns::bind(address, dns_workers())
                .map_err(|source| StartError::Listen { what: "DNS", address, source })?,
        };
    Ok((config, sockets))
}

/// Names are small work: a few threads answer more than a host asks.
fn dns_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(DNS_WORKERS_MAX)
}

/// The host's UUID: made once, kept with its folder.
fn node_id(folder: &Path) -> io::Result<Arc<str>> {
    let path = folder.join(NODE_ID);
    if let Some(bytes) = disk::read(&path)? {
        match std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok()) {
            Some(id) => return Ok(uuid::Uuid::to_string(&id).into()),
            None => disk::set_aside(&path, "it holds no UUID"),
        }
    }
    let id = uuid::Uuid::new_v4().to_string();
    disk::write(&path, id.as_bytes())?;
    Ok(id.into())
}

/// When a file was last written; the epoch when there is none.
fn modified(path: &Path) -> UnixTime {
    let since = std::fs::metadata(path)
        .and_then(|found| found.modified())
        .ok()
        .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
        .unwrap_or_default();
    UnixTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX - 1))
}

const VIEW: &str = "view";
const SERVERS: &str = "servers.json";
const LEAVES: &str = "leaves";
const NODE_ID: &str = "node-id";
const WANTS_QUEUED: usize = 256;
const QUERIES_QUEUED: usize = 64;
const DNS_WORKERS_MAX: usize = 4;
const READY_EVERY: Duration = Duration::from_millis(250);
const LEAVE: Duration = Duration::from_secs(2);
const PROPAGATION: Duration = Duration::from_secs(1);
/// Who asks in vain is not heard again at once.
const OFFER_BACK_OFF: Duration = Duration::from_millis(100);
const FINISH: Duration = Duration::from_secs(5);

#[cfg(test)]
mod fake;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use hawser_core::catalog::{Instance, Weights};
    use hawser_core::health::Status;
    use hawser_core::state::{Command, NodeChanges};
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::Instant;

    use super::*;
    use crate::fake::Fake;
    use crate::identity::Request;
    use crate::identity::join::{self, Right};

    /// An agent that runs, and how to talk to it.
    struct Running {
        handle: Handle,
        http: SocketAddr,
        drain: CancellationToken,
        ended: tokio::task::JoinHandle<Result<(), RunError>>,
    }

    impl Running {
        async fn start(folder: &Path, server: SocketAddr, join: Join, services: &[Value]) -> Self {
            Self::start_as(config(folder, server, join, services)).await
        }

        async fn start_as(config: Config) -> Self {
            let agent = Agent::start(config, prometheus::Registry::new()).expect("started");
            let (handle, drain) = (agent.handle(), CancellationToken::new());
            let http = agent.addresses().http.expect("asked for");
            let ended = tokio::spawn(agent.run(drain.clone()));
            Self { handle, http, drain, ended }
        }

        async fn stop(self) -> Result<(), RunError> {
            self.drain.cancel();
            self.ended.await.expect("no panic")
        }

        /// As if killed: nothing is said, nothing is awaited.
        async fn kill(self) {
            self.ended.abort();
            let _ = self.ended.await;
        }

        async fn get(&self, path: &str) -> (u16, String) {
            self.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n"), "").await
        }

        async fn put(&self, path: &str, body: &str) -> (u16, String) {
            self.ask(&format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\n"), body).await
        }

        async fn ask(&self, head: &str, body: &str) -> (u16, String) {
            let mut socket = TcpStream::connect(self.http).await.expect("listening");
            let length = body.len();
            let request =
                format!("{head}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}");
            socket.write_all(request.as_bytes()).await.expect("written");
            let mut reply = Vec::new();
            // A refusal may come before all was sent, and the rest is then reset.
            let _ = socket.read_to_end(&mut reply).await;
            let reply = String::from_utf8_lossy(&reply).into_owned();
            let status = reply.split(' ').nth(1).and_then(|code| code.parse().ok());
            let body = reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
            (status.expect("a status line"), body.unwrap_or_default())
        }
    }

    fn config(folder: &Path, server: SocketAddr, join: Join, services: &[Value]) -> Config {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let service = |value: &Value| value.clone().try_into().expect("good");
        Config {
            node: "n1".parse().expect("a name"),
            datacenter: "dc1".parse().expect("a name"),
            data_dir: folder.join("data"),
            advertise: loopback,
            bind: loopback,
            http: Listeners { plain: Some(SocketAddr::new(loopback, 0)), ..Default::default() },
            dns: None,
            servers: vec![server.to_string()],
            join,
            services: services.iter().map(service).collect(),
            checks: vec![],
            script_checks: ScriptChecks::Off,
            own_service: None,
            gateway: None,
            locality: Default::default(),
            meta: Default::default(),
            proxy: hawser_proxy::Config { workers: 1, ..Default::default() },
            telemetry: Telemetry::default(),
            mesh_ports: 23_000..=23_999,
            drain: Duration::from_secs(1),
            ecs: None,
            is_server: false,
            succession: Succession::default(),
            acl: acl::Settings::default(),
            logs: None,
            version: "0.0.0",
        }
    }

    /// Host `n2`, which runs `db`.
    fn other_host() -> NodeChanges {
        NodeChanges {
            node: Node {
                name: "n2".parse().expect("a name"),
                id: "id".into(),
                address: IpAddr::from([10, 0, 0, 2]),
                locality: Default::default(),
                meta: Default::default(),
                tagged: Default::default(),
            },
            put_instances: vec![Instance {
                id: "db".parse().expect("an id"),
                service: "db".parse().expect("a name"),
                address: None,
                port: 5432,
                tags: Default::default(),
                meta: Default::default(),
                weights: Weights::default(),
                protocol: None,
                mesh_port: Some(21_000),
                enable_tag_override: false,
                gateway: None,
                socket: None,
                ports: Default::default(),
                tagged: Default::default(),
            }],
            put_checks: vec![],
            drop_instances: vec![],
            drop_checks: vec![],
        }
    }

    fn web() -> Value {
        json!({ "Name": "web", "Port": 80, "Connect": { "SidecarService": {} } })
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(Instant::now() < deadline, "never came true: {what}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_ready(agent: &Running) {
        let mut ready = agent.handle.ready();
        let waited = timeout(Duration::from_secs(20), ready.wait_for(|is_ready| *is_ready)).await;
        assert!(waited.is_ok(), "never ready: {:?}", agent.handle.missing());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_host_joins_serves_and_leaves() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let join = Join::Token(fake.token());
        let agent = Running::start(folder.path(), server.address, join, &[web()]).await;
        until_ready(&agent).await;
        assert_eq!(fake.services(), ["web"]);

        let (status, body) = agent.get("/v1/agent/connect/ca/leaf/web").await;
        assert_eq!(status, 200, "{body}");
        let leaf: Value = serde_json::from_str(&body).expect("JSON");
        let uri = format!("spiffe://{}/ns/default/dc/dc1/svc/web", fake::TRUST_DOMAIN);
        assert_eq!(leaf["ServiceURI"], uri);
        assert!(leaf["PrivateKeyPEM"].as_str().is_some_and(|pem| pem.starts_with("-----BEGIN")));

        let (status, body) = agent.get("/v1/catalog/nodes?stale").await;
        assert_eq!((status, body.as_str()), (200, "GET /v1/catalog/nodes?stale"), "passed on");

        let ask = json!({ "Target": "web", "ClientCertURI": uri, "ClientCertSerial": "1" });
        let (status, body) = agent.put("/v1/agent/connect/authorize", &ask.to_string()).await;
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("\"Authorized\":true"), "{body}");

        agent.stop().await.expect("a good end");
        assert_eq!(fake.left(), 1, "it said goodbye");
        assert!(fake.services().is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_mesh_gateway_listens_and_is_in_the_catalog() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let listen = free.local_addr().expect("bound");
        drop(free);
        let join = Join::Token(fake.token());
        let gateway = Gateway::new(listen, "gateway.example.com:443").expect("good");
        let gateway = Some(gateway);
        let config = Config { gateway, ..config(folder.path(), server.address, join, &[web()]) };
        let agent = Running::start_as(config).await;
        until_ready(&agent).await;
        until("it is told", || fake.services() == ["mesh-gateway", "web"]).await;
        let id = "mesh-gateway".parse().expect("an id");
        let local = &agent.handle.host.local;
        until("its check passes", || {
            local.status_of(&id, &"none".parse().expect("an id")) == Some(Status::Passing)
        })
        .await;

        let (_, body) = agent.get("/v1/agent/services?filter=Kind==%22mesh-gateway%22").await;
        let shown: Value = serde_json::from_str(&body).expect("JSON");
        let shown = &shown["mesh-gateway"];
        assert_eq!(shown["Port"], listen.port(), "{body}");
        assert_eq!(shown["TaggedAddresses"]["wan"]["Address"], "gateway.example.com");
        assert_eq!(shown["TaggedAddresses"]["wan"]["Port"], 443);
        assert!(!body.contains("\"web\""), "{body}");
        let (status, body) = agent.put("/v1/agent/service/deregister/mesh-gateway", "").await;
        assert_eq!((status, body.contains("unset mesh_gateway")), (400, true), "{body}");
        let mine = json!({ "Name": "mesh-gateway", "Port": 1 }).to_string();
        let (status, body) = agent.put("/v1/agent/service/register", &mine).await;
        assert_eq!((status, body.contains("mesh_gateway")), (400, true), "{body}");
        assert!(!agent.handle.host.leaves.borrow().contains_key("mesh-gateway"), "it has no key");
        agent.stop().await.expect("a good end");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restart_with_every_server_dead_serves_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let address = server.address;
        let join = Join::Token(fake.token());
        let agent = Running::start(folder.path(), address, join, &[web()]).await;
        until_ready(&agent).await;
        let view = folder.path().join("data").join(VIEW);
        until("the view is kept with its trust", || {
            subscribe::kept(&view).is_some_and(|view| view.trust.is_some())
        })
        .await;
        agent.kill().await;
        server.kill().await;

        let agent = Running::start(folder.path(), address, Join::None, &[web()]).await;
        assert!(*agent.handle.ready().borrow(), "ready as it starts: {:?}", agent.handle.missing());
        assert_eq!(agent.get("/v1/hawser/ready").await.0, 200);
        assert_eq!(agent.get("/v1/agent/connect/ca/leaf/web").await.0, 200);
        assert_eq!(agent.get("/v1/agent/connect/ca/roots").await.0, 200);
        let (status, body) = agent.get("/v1/catalog/nodes").await;
        assert_eq!((status, body.as_str()), (500, "No cluster leader"));

        let other = json!({ "Name": "api", "Port": 81 });
        assert_eq!(agent.put("/v1/agent/service/register", &other.to_string()).await.0, 200);
        let server = fake.listen(Some(address)).await;
        until("what changed meanwhile is told", || fake.services() == ["api", "web"]).await;
        agent.stop().await.expect("a good end");
        server.kill().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_the_catalog_lost_is_told_again_and_a_refusal_holds_up_no_other() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        fake.refuse("bad");
        let server = fake.listen(None).await;
        let services = [web(), json!({ "Name": "bad", "Port": 1 })];
        let join = Join::Token(fake.token());
        let agent = Running::start(folder.path(), server.address, join, &services).await;
        until("the good one is told", || fake.services() == ["web"]).await;
        until("the refusal is shown", || !agent.handle.host.refused.all().is_empty()).await;
        let (_, body) = agent.get("/v1/hawser/ready").await;
        assert!(body.contains("service/bad") && body.contains("bad is refused"), "{body}");

        fake.apply(Command::DropNode("n1".parse().expect("a name")));
        until("it is told again", || fake.services() == ["web"]).await;
        agent.stop().await.expect("a good end");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_cluster_rebuilt_from_nothing_is_told_what_runs_here() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let join = Join::Token(fake.token());
        // Its log is far ahead of where a new one starts.
        for _ in 0..100 {
            fake.apply(Command::SyncNode(other_host()));
        }
        let agent = Running::start(folder.path(), server.address, join, &[web()]).await;
        until("the first cluster is told", || fake.services() == ["db", "web"]).await;
        fake.rebuild();
        until("the second is", || fake.services() == ["web"]).await;
        agent.stop().await.expect("a good end");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_view_follows_the_catalog_and_outlives_the_server() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let upstreams = json!([{ "DestinationName": "db", "LocalBindPort": 23998 }]);
        let mut web = web();
        web["Connect"]["SidecarService"] = json!({ "Proxy": { "Upstreams": upstreams } });
        let join = Join::Token(fake.token());
        let agent = Running::start(folder.path(), server.address, join, &[web]).await;
        let views = agent.handle.host.views.subscribe();
        let endpoints = || {
            let view = views.borrow().clone();
            view.services.get("db").map_or(0, |service| service.endpoints.len())
        };
        until("db is looked at", || views.borrow().services.contains_key("db")).await;
        assert_eq!(endpoints(), 0);
        fake.apply(Command::SyncNode(other_host()));
        until("an instance appears", || endpoints() == 1).await;
        server.kill().await;
        until("the loss is noticed", || agent.handle.host.servers.link().is_none()).await;
        assert_eq!(endpoints(), 1, "the last view stands");
        let unanswered = agent.handle.host.metrics.heartbeat_errors.get();
        assert!(unanswered <= 2, "{unanswered} heartbeats into a closed connection");
        agent.kill().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_leaf_is_renewed_before_it_runs_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        fake.sign_for(Duration::from_secs(3));
        let server = fake.listen(None).await;
        let join = Join::Token(fake.token());
        let agent = Running::start(folder.path(), server.address, join, &[web()]).await;
        until_ready(&agent).await;
        let leaf = || agent.handle.host.leaves.borrow().get("web").cloned().expect("there");
        let first = leaf();
        until("a new one comes", || leaf().validity != first.validity).await;
        assert!(fake.leaves_signed() >= 2);
        assert!(clock::now() < first.validity.not_after, "in good time");
        agent.kill().await;
        server.kill().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn only_a_server_under_the_pinned_root_is_believed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let good = fake.listen(None).await;
        let agent = fake.listen_as("agent/client/dc/dc1/id/s1", None).await;
        let service = fake.listen_as("ns/default/dc/dc1/svc/web", None).await;
        let elsewhere = fake.listen_as("agent/server/dc/dc2/id/s1", None).await;
        let cases = [
            // token, where, joins, passing, why
            (fake.token(), good.address, true, false, "the right server"),
            (fake.token_with_other_pin(), good.address, false, true, "another root"),
            (fake.token(), agent.address, false, true, "an agent is no server"),
            (fake.token(), service.address, false, true, "a service is no server"),
            (fake.token(), elsewhere.address, false, true, "another datacenter"),
            (fake.wrong_token(), good.address, false, false, "a token that is not valid"),
        ];
        for (token, server, joins, passing, why) in cases {
            let servers =
                Servers::open(&[server.to_string()], folder.path().join("s"), Contact::default());
            let (node, datacenter) = ("n1".parse(), "dc1".parse());
            let joined = join::join(
                &servers,
                &node.expect("a name"),
                &datacenter.expect("a name"),
                &Right::Token(Token::parse(&token).expect("a token")),
                &Request::make().expect("a key"),
            )
            .await;
            match joined {
                Ok(membership) => {
                    assert!(joins, "{why}");
                    assert_eq!(membership.trust_domain().as_str(), fake::TRUST_DOMAIN);
                }
                Err(refused) => {
                    assert!(!joins, "{why}: {refused}");
                    assert_eq!(refused.is_passing(), passing, "{why}: {refused}");
                }
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_host_that_joined_lives_on_whatever_becomes_of_its_token() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (fake, other) = (Fake::new(), Fake::new());
        let (server, elsewhere) = (fake.listen(None).await, other.listen(None).await);
        let missing = || Join::Missing(folder.path().join("token"));
        let never = config(folder.path(), server.address, missing(), &[]);
        let refused = Agent::start(never, prometheus::Registry::new()).err();
        assert!(matches!(refused, Some(StartError::NoTokenFile(_))), "{refused:?}");

        let join = Join::Token(fake.token());
        let agent = Running::start(folder.path(), server.address, join, &[web()]).await;
        until_ready(&agent).await;
        until("it knows the servers", || !agent.handle.host.servers.members().is_empty()).await;
        agent.kill().await;
        let cases = [
            // what is left of the token, the server in retry_join, why
            (missing(), server.address, "the file is gone"),
            (Join::Token(String::new()), server.address, "the file is empty"),
            (Join::Token(other.wrong_token()), elsewhere.address, "another cluster's, lapsed"),
        ];
        for (join, address, why) in cases {
            let agent = Running::start(folder.path(), address, join, &[web()]).await;
            let link = || agent.handle.host.servers.link();
            until(why, || link().is_some_and(|link| link.address() == server.address)).await;
            assert!(!agent.ended.is_finished(), "{why}");
            agent.kill().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_host_whose_own_certificate_is_revoked_joins_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let minted = fake.clone();
        let join = Join::Mint(Arc::new(move || {
            let token = minted.token();
            Box::pin(async move { Ok(token) })
        }));
        let agent = Running::start(folder.path(), server.address, join, &[web()]).await;
        until_ready(&agent).await;
        let serial = || {
            let held = agent.handle.host.membership.borrow().clone();
            let held = held.expect("joined");
            hawser_identity::serial_of(&held.credential.chain[0]).expect("a certificate")
        };
        let stolen = serial();
        fake.revoke(stolen.clone());
        let address = server.address;
        server.kill().await;
        let server = fake.listen(Some(address)).await;
        until("it shows another certificate", || serial() != stolen).await;
        until("it is heard", || agent.handle.host.servers.link().is_some()).await;
        agent.stop().await.expect("a good end");
        server.kill().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_server_that_is_cut_off_from_the_others_is_left() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let join = Join::Token(fake.token());
        let agent = Running::start(folder.path(), server.address, join, &[web()]).await;
        until_ready(&agent).await;
        let mut links = agent.handle.host.servers.links();
        links.borrow_and_update();
        fake.cut_off();
        let left = timeout(Duration::from_secs(20), links.wait_for(Option::is_none)).await;
        assert!(left.is_ok_and(|left| left.is_ok()), "it stayed");
        agent.stop().await.expect("a good end");
        server.kill().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_handed_over_while_a_declaration_is_under_way() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let join = Join::Token(fake.token());
        let agent = Running::start(folder.path(), server.address, join, &[web()]).await;
        until_ready(&agent).await;
        let declaring = agent.handle.host.changes.read().await;
        let path = folder.path().join("data");
        let taken = tokio::task::spawn_blocking(move || hand_over::take(&path).map(drop)).await;
        let taken = taken.expect("no panic");
        assert!(matches!(taken, Err(HandOverError::Refused(_))), "{taken:?}");
        drop(declaring);
        let beat = json!({ "Name": "beat", "Port": 7 }).to_string();
        assert_eq!(agent.put("/v1/agent/service/register", &beat).await.0, 200, "it goes on");
        agent.stop().await.expect("a good end");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_refused_token_ends_the_agent_with_a_reason() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let join = Join::Token(fake.wrong_token());
        let agent = Running::start(folder.path(), server.address, join, &[]).await;
        let ended = agent.ended.await.expect("no panic");
        assert!(matches!(ended, Err(RunError::Join(JoinError::Refused(_)))), "{ended:?}");

        let never = config(folder.path(), server.address, Join::None, &[]);
        let refused = Agent::start(never, prometheus::Registry::new()).err();
        assert!(matches!(refused, Some(StartError::NeverJoined)), "{refused:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_local_api_speaks_consul_and_refuses_tricks() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fake = Fake::new();
        let server = fake.listen(None).await;
        let join = Join::Token(fake.token());
        let agent = Running::start(folder.path(), server.address, join, &[web()]).await;
        until_ready(&agent).await;
        let beat = json!({ "Name": "beat", "Port": 7, "Check": { "TTL": "1h" } }).to_string();
        let big = "x".repeat((1 << 20) + 1);
        let steps: &[(&str, &str, &str, u16, &str)] = &[
            // method, path, body, status, part of the reply
            ("PUT", "/v1/agent/service/register", &beat, 200, ""),
            ("PUT", "/v1/agent/service/register", "{", 400, "Request decode failed"),
            ("PUT", "/v1/agent/service/register", "{\"Nam\":1}", 400, "Nam"),
            ("PUT", "/v1/agent/service/register", &big, 413, "too large"),
            ("GET", "/v1/agent/service/register", "", 405, "not allowed"),
            ("GET", "/v1/agent/health/service/id/beat", "", 503, "critical"),
            ("PUT", "/v1/agent/check/pass/service:beat?note=well", "", 200, ""),
            ("GET", "/v1/agent/health/service/name/beat?format=text", "", 200, "passing"),
            ("PUT", "/v1/agent/check/warn/service%3Abeat", "", 200, ""),
            ("GET", "/v1/agent/health/service/id/beat?format=text", "", 429, "warning"),
            ("PUT", "/v1/agent/check/update/service:beat", "{\"Status\":\"passing\"}", 200, ""),
            ("PUT", "/v1/agent/check/pass/nobody", "", 404, "Unknown check ID"),
            ("PUT", "/v1/agent/service/maintenance/beat?enable=true&reason=why", "", 200, ""),
            ("GET", "/v1/agent/health/service/id/beat?format=text", "", 503, "maintenance"),
            ("GET", "/v1/agent/checks", "", 200, "_service_maintenance:beat"),
            ("PUT", "/v1/agent/service/maintenance/beat?enable=false", "", 200, ""),
            ("PUT", "/v1/agent/service/maintenance/beat", "", 400, "enable"),
            ("GET", "/v1/agent/services", "", 200, "web-sidecar-proxy"),
            ("GET", "/v1/agent/services?filter=Service==beat", "", 200, "{\"beat\":{"),
            ("GET", "/v1/agent/services?filter=Service==nobody", "", 200, "{}"),
            ("GET", "/v1/agent/checks?filter=Status==passing", "", 200, "{}"),
            ("GET", "/v1/agent/checks?filter=Nonsense==1", "", 400, "Nonsense"),
            ("GET", "/v1/agent/services?filter=Service==", "", 400, "a value expected"),
            ("GET", "/v1/agent/members?filter=Name==n1", "", 400, "not supported"),
            ("GET", "/v1/agent/service/web-sidecar-proxy", "", 200, "ContentHash"),
            ("GET", "/v1/agent/service/nobody", "", 404, "unknown service ID: nobody"),
            ("GET", "/v1/agent/self", "", 200, "\"NodeName\":\"n1\""),
            ("GET", "/v1/agent/members", "", 200, "\"Name\":\"n1\""),
            ("GET", "/v1/agent/version", "", 200, "HumanVersion"),
            ("GET", "/v1/agent/host", "", 200, "kernelVersion"),
            ("GET", "/v1/agent/metrics", "", 200, "\"Gauges\""),
            ("GET", "/v1/agent/metrics?format=prometheus", "", 200, "hawser_agent_view_index"),
            ("GET", "/metrics", "", 200, "hawser_agent_leaf_expiry_seconds{service=\"web\"}"),
            ("PUT", "/v1/agent/token/default", "{}", 401, "ACL support disabled"),
            ("GET", "/v1/agent/connect/ca/leaf/other", "", 404, "not registered on this node"),
            ("GET", "/v1/agent/nothing", "", 404, ""),
            ("GET", "/v2/x", "", 404, ""),
            ("PUT", "/v1/agent/service/deregister/beat", "", 200, ""),
            ("PUT", "/v1/agent/service/deregister/beat", "", 404, "Unknown service ID"),
        ];
        for (method, path, body, status, part) in steps {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost:8500\r\n");
            let (code, reply) = agent.ask(&head, body).await;
            assert_eq!(code, *status, "{method} {path}: {reply}");
            assert!(reply.contains(part), "{method} {path}: {reply}");
        }
        let tricks = [
            ("Host: evil.example\r\n", "a rebound name"),
            ("Host: localhost\r\nOrigin: http://evil.example\r\n", "another page"),
            ("Host: localhost\r\nOrigin: null\r\n", "a page without origin"),
        ];
        for (headers, why) in tricks {
            let head = format!("PUT /v1/agent/leave HTTP/1.1\r\n{headers}");
            assert_eq!(agent.ask(&head, "").await.0, 403, "{why}");
        }
        assert_eq!(agent.put("/v1/agent/leave", "").await.0, 200);
        agent.ended.await.expect("no panic").expect("it left");
        assert_eq!(fake.left(), 1);
    }
}
