//! `hawser server` and `hawser agent`: the long-running parts, from start to drained.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hawser_agent::{Agent, Join};
use hawser_server::{Handle, Server};
use prometheus::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Flags, Part, ServerSettings, Settings};
use crate::signal::Signals;

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
    flags: Flags,
}

impl Arguments {
    fn read(&self) -> Result<config::Raw> {
        let paths: Vec<PathBuf> =
            self.config_files.iter().chain(&self.config_folders).cloned().collect();
        let mut raw = config::read(&paths)?;
        raw.override_with(self.flags.clone());
        Ok(raw)
    }
}

/// Runs a part until it is told to stop, and drains it.
///
/// # Errors
/// A configuration that cannot be, a listener that cannot be bound, or a part that failed.
pub(crate) fn run(arguments: Arguments, part: Part) -> Result<()> {
    seed_randomness();
    let settings = arguments.read()?.resolve(part)?;
    settings.log.start()?;
    runtime()?.block_on(async move {
        let signals = Signals::new()?;
        let drain = CancellationToken::new();
        let mesh = Mesh::start(settings, drain.clone()).await?;
        let reload = mesh.reloader(move || arguments.read()?.definitions());
        tokio::spawn(signals.obey(drain, reload));
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
    std::thread::spawn(|| drop(hawser_server::OperatorKey::generate()));
}

/// One process's parts: an agent, and the server beside it on a host that is one.
pub(crate) struct Mesh {
    agent: Agent,
    server: Option<Server>,
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
                let server = Server::start(config, listener, &registry).await?;
                agent.join = mint(server.handle(), agent.node.clone());
                Some(server)
            }
        };
        let agent = Agent::start(agent, registry).await?;
        Ok(Self { agent, server, drain })
    }

    /// The agent.
    pub(crate) fn agent(&self) -> &Agent {
        &self.agent
    }

    /// What to call when the configuration is to be read anew, with what reads it.
    fn reloader<R>(&self, read: R) -> impl Fn() + Send + 'static
    where
        R: Fn() -> Result<agent_definitions::Both> + Send + 'static,
    {
        let agent = self.agent.reloader();
        move || match read() {
            Ok((services, checks)) => match agent.reload(services, checks) {
                Ok(()) => {
                    tracing::info!("configuration reloaded");
                }
                Err(error) => tracing::error!(%error, "the new definitions were refused"),
            },
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the configuration was not reloaded");
            }
        }
    }

    /// Runs until drained. The agent drains first: while it finishes its requests, its server
    /// still serves; the server then hands over its leadership.
    ///
    /// # Errors
    /// The first part that failed.
    pub(crate) async fn run(self) -> Result<()> {
        let Self { agent, server, drain } = self;
        let server_drain = CancellationToken::new();
        let mut ready = agent.ready();
        let mut tasks: JoinSet<Result<()>> = JoinSet::new();
        if let Some(server) = server {
            let token = server_drain.clone();
            tasks.spawn(async move { server.run(token).await.context("the server") });
        }
        let agent_drain = drain.clone();
        let mut agent = tokio::spawn(async move { agent.run(agent_drain).await });
        tokio::spawn(async move {
            if ready.wait_for(|is_ready| *is_ready).await.is_ok() {
                tracing::info!("ready");
                notify(sd_notify::NotifyState::Ready);
            }
        });
        tokio::spawn(watchdog());
        let outcome = tokio::select! {
            ended = &mut agent => ended.context("the agent's task")?.context("the agent"),
            Some(ended) = tasks.join_next() => {
                drain.cancel();
                let server = ended.context("the server's task")?;
                let agent = agent.await.context("the agent's task")?.context("the agent");
                server.and(agent)
            }
        };
        notify(sd_notify::NotifyState::Stopping);
        drain.cancel();
        server_drain.cancel();
        let mut outcome = outcome;
        while let Some(ended) = tasks.join_next().await {
            outcome = outcome.and(ended.context("the server's task")?);
        }
        outcome
    }
}

mod agent_definitions {
    //! What a reload brings.

    use hawser_api::definition::{CheckDefinition, ServiceDefinition};

    pub(super) type Both = (Vec<ServiceDefinition>, Vec<CheckDefinition>);
}

/// How the agent inside a server joins: by a token that its own server makes, in process.
fn mint(handle: Handle, node: hawser_core::name::NodeName) -> Join {
    Join::Mint(Arc::new(move || {
        let (handle, node) = (handle.clone(), node.clone());
        Box::pin(async move {
            handle
                .mint_join_token(&node, MINTED_LIFETIME)
                .await
                .map_err(|error| anyhow!(error).to_string())
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
