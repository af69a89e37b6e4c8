//! `hawser server` and `hawser agent`: the long-running parts, from start to drained.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hawser_agent::{Agent, Join, Reload, Succession};
use hawser_server::identity::OperatorKey;
use hawser_server::{Handle, RunError, Server};
use prometheus::Registry;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::config::ecs::{Sidecar, Variables};
use crate::config::{self, Flags, Part, ServerSettings, Settings};
use crate::signal::Signals;
use crate::succession;

/// Where a long-running part takes its configuration from.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A configuration file, HCL or JSON; may be given several times.
    #[arg(long = "config-file", value_name = "FILE")]
    config_files: Vec<PathBuf>,
    /// A folder of configuration files, read by name; may be given several times.
    #[arg(long = "config-dir", value_name = "FOLDER")]
    config_folders: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) flags: Flags,
}

impl Arguments {
    /// The files and folders to read, in order.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.config_files.iter().chain(&self.config_folders).cloned().collect()
    }

    fn read(&self) -> Result<config::Raw> {
        let mut documents = config::documents(&self.paths())?;
        documents.extend(config::from_environment()?);
        let mut raw = config::combine(serde_json::json!({}), documents)?;
        raw.override_with(self.flags.clone());
        Ok(raw)
    }
}

/// Runs a part until it is told to stop, and drains it.
///
/// # Errors
/// A configuration that cannot be, a listener that cannot be bound, or a part that failed.
pub(crate) fn run(arguments: Arguments, part: Part, take_over: bool) -> Result<()> {
    // Before there is a second thread: it changes the environment.
    let (sockets, stored) = succession::kept();
    let successor = succession::Command::of_this();
    seed_randomness();
    let mut raw = arguments.read()?;
    let runtime = runtime()?;
    let sidecar = match part {
        Part::Agent => runtime.block_on(Sidecar::find(&raw, Variables::from_environment()))?,
        Part::Server => None,
    };
    if let Some(sidecar) = &sidecar {
        sidecar.fill(&mut raw)?;
    }
    let mut settings = raw.resolve(part)?;
    settings.agent.ecs = sidecar.as_ref().map(|sidecar| sidecar.watch(&raw)).transpose()?;
    settings.agent.succession =
        Succession { take_over, sockets, on_replaced: succession::announce };
    settings.start_logging()?;
    runtime.block_on(async move {
        let signals = Signals::new()?;
        let drain = CancellationToken::new();
        let mesh = Mesh::start(settings, drain.clone()).await?;
        let reload = mesh.reloader(move || {
            let mut raw = arguments.read()?;
            if let Some(sidecar) = &sidecar {
                sidecar.fill(&mut raw)?;
            }
            raw.reload()
        });
        let replace = move || match part {
            Part::Agent => successor.start(),
            Part::Server => tracing::error!("a server cannot be replaced in place: restart it"),
        };
        tokio::spawn(succession::keep(mesh.agent().handle(), drain.clone(), stored));
        tokio::spawn(signals.obey(drain, reload, replace));
        mesh.run().await
    })
}

/// A runtime for the control loops; the proxies have threads of their own.
///
/// # Errors
/// The system's, where threads cannot be started.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("starting the runtime")
}

/// The first random bytes of the crypto library take 23 ms: draw them while configuration loads.
pub(crate) fn seed_randomness() {
    std::thread::spawn(|| drop(OperatorKey::generate()));
}

/// One process's parts: an agent, and the server beside it on a host that is one.
pub(crate) struct Mesh {
    agent: Agent,
    server: Option<RunningServer>,
    drain: CancellationToken,
}

/// A server that serves already: the agent beside it joins through it.
struct RunningServer {
    task: JoinHandle<Result<(), RunError>>,
    drain: CancellationToken,
}

impl Mesh {
    /// Starts the server, where there is one, and then the agent.
    ///
    /// # Errors
    /// What either cannot start without: a folder, a port, a key.
    pub(crate) async fn start(settings: Settings, drain: CancellationToken) -> Result<Self> {
        let registry = Registry::new();
        let Settings { mut agent, server, .. } = settings;
        let server = match server {
            None => None,
            Some(ServerSettings { config, listen }) => {
                let listener = TcpListener::bind(listen)
                    .with_context(|| format!("ports.server: listening on {listen}"))?;
                listener.set_nonblocking(true)?;
                let server = Box::pin(Server::start(config, listener, &registry)).await?;
                agent.join = mint(server.handle(), agent.node.clone());
                let drain = CancellationToken::new();
                let task = tokio::spawn(server.run(drain.clone()));
                Some(RunningServer { task, drain })
            }
        };
        let is_open = |address: &SocketAddr| !address.ip().is_loopback() && !agent.acl.is_enabled;
        if let Some(address) = agent.http.plain.filter(is_open) {
            tracing::warn!(
                %address,
                "client_addr: whoever reaches this address can change the catalog: enable ACLs, or \
                 ask clients for certificates with tls.https.verify_incoming"
            );
        }
        let agent = Agent::start(agent, registry)?;
        Ok(Self { agent, server, drain })
    }

    /// The agent.
    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Reads the configuration anew whenever somebody asks the agent's API to, and gives back
    /// what does so at once, for a signal to call.
    fn reloader<R>(&self, read: R) -> impl Fn() + Send + 'static
    where
        R: Fn() -> Result<Reload> + Send + Sync + 'static,
    {
        let agent = self.agent.handle();
        let mut asked = agent.reload_requests();
        let reload = Arc::new(move || match read() {
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the configuration was not reloaded");
            }
            Ok(files) => match agent.reload(files) {
                Err(error) => tracing::error!(%error, "access_log: it cannot be opened"),
                Ok(refused) => {
                    for why in refused {
                        tracing::error!(%why, "a definition was refused");
                    }
                    tracing::info!("configuration reloaded");
                }
            },
        });
        let by_api = reload.clone();
        tokio::spawn(async move {
            while asked.changed().await.is_ok() {
                by_api();
            }
        });
        move || reload()
    }

    /// Runs until drained. The agent drains first: while it finishes its requests, its server
    /// still serves; the server then hands over its leadership.
    ///
    /// # Errors
    /// The first part that failed.
    pub(crate) async fn run(self) -> Result<()> {
        let Self { agent, server, drain } = self;
        let mut ready = agent.ready();
        let mut agent = tokio::spawn(agent.run(drain.clone()));
        tokio::spawn(async move {
            if ready.wait_for(|is_ready| *is_ready).await.is_ok() {
                tracing::info!("ready");
                notify(sd_notify::NotifyState::Ready);
            }
        });
        tokio::spawn(watchdog());
        let Some(RunningServer { task: mut server, drain: server_drain }) = server else {
            tokio::select! {
                ended = &mut agent => return agent_outcome(ended),
                () = drain.cancelled() => notify(sd_notify::NotifyState::Stopping),
            }
            return agent_outcome(agent.await);
        };
        tokio::select! {
            ended = &mut agent => {
                server_drain.cancel();
                agent_outcome(ended).and(server_outcome(server.await))
            }
            ended = &mut server => {
                drain.cancel();
                server_outcome(ended).and(agent_outcome(agent.await))
            }
            () = drain.cancelled() => {
                notify(sd_notify::NotifyState::Stopping);
                let drained = agent_outcome(agent.await);
                server_drain.cancel();
                drained.and(server_outcome(server.await))
            }
        }
    }
}

fn agent_outcome(ended: Result<Result<(), hawser_agent::RunError>, JoinError>) -> Result<()> {
    ended.context("the agent's task")?.context("the agent")
}

fn server_outcome(ended: Result<Result<(), RunError>, JoinError>) -> Result<()> {
    ended.context("the server's task")?.context("the server")
}

/// How the agent inside a server joins: by a token that its own server makes, in process.
fn mint(handle: Handle, node: hawser_core::name::NodeName) -> Join {
    Join::Mint(Arc::new(move || {
        let (handle, node) = (handle.clone(), node.clone());
        Box::pin(async move {
            handle.mint_join_token(&node, MINTED_LIFETIME).await.map_err(|error| error.to_string())
        })
    }))
}

/// Tells systemd's watchdog, twice as often as it asks, that the runtime still turns.
async fn watchdog() {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(patience / 2);
    loop {
        ticks.tick().await;
        notify(sd_notify::NotifyState::Watchdog);
    }
}

/// Tells systemd; without systemd, nobody.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "no service manager was told");
    }
}

const MINTED_LIFETIME: Duration = Duration::from_secs(120);
