//! `hawser agent`: a host's agent, or with `-dev` what `consul agent -dev` is to test harnesses.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::dev;
use super::serve::{self, Mesh};
use crate::config::{self, Part};
use crate::consul::{self, Translated};
use crate::signal::Signals;

/// How an agent runs.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "agent")]
pub(crate) struct Arguments {
    /// Run a server and an agent for tests, in memory of their own, allowing every call; files
    /// and the variable CONSUL_LOCAL_CONFIG may hold any of Consul's keys.
    #[arg(long)]
    dev: bool,
    /// Be a server as well, as `hawser server` is.
    #[arg(long)]
    server: bool,
    /// Nothing: there is no user interface.
    #[arg(long, hide = true)]
    ui: bool,
    /// Nothing: a server for tests is alone.
    #[arg(long, hide = true)]
    bootstrap: bool,
    /// Take the sockets of the agent that runs in the same folder, which then finishes what is
    /// open and ends; start as usual where none runs.
    #[arg(long, conflicts_with_all = ["dev", "server"])]
    take_over: bool,
    #[command(flatten)]
    serve: serve::Arguments,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// A configuration that cannot be, a listener that cannot be bound, or a part that failed.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    match (arguments.dev, arguments.server) {
        (true, _) => run_for_tests(&arguments.serve),
        (false, true) => serve::run(arguments.serve, Part::Server, false),
        (false, false) => serve::run(arguments.serve, Part::Agent, arguments.take_over),
    }
}

fn run_for_tests(arguments: &serve::Arguments) -> Result<()> {
    serve::seed_randomness();
    let temporary = tempfile::tempdir().context("making a temporary folder")?;
    let mut documents = config::documents(&arguments.paths())?;
    if let Ok(text) = std::env::var(LOCAL_CONFIG) {
        documents.push((LOCAL_CONFIG.to_owned(), config::parse(Path::new(LOCAL_CONFIG), &text)?));
    }
    let (mut notes, mut translated) = (Vec::new(), Vec::new());
    for (name, document) in documents {
        let Translated { value, ignored } =
            consul::translate(document).with_context(|| name.clone())?;
        notes.extend(ignored.into_iter().map(|key| format!("{name}: {key}")));
        translated.push((name, value));
    }
    let mut raw = config::combine(basis(temporary.path())?, translated)?;
    raw.override_with(arguments.flags.clone());
    let mut settings = raw.resolve(Part::Server)?;
    settings.start_logging()?;
    if !notes.is_empty() {
        tracing::info!(keys = notes.join(", "), "keys of Consul that change nothing here");
    }
    serve::runtime()?.block_on(async move {
        let signals = Signals::new()?;
        let drain = CancellationToken::new();
        let mesh = Mesh::start(settings, drain.clone()).await?;
        tokio::spawn(signals.obey(drain, || {}, || {}));
        mesh.run().await
    })
}

/// What holds for a server for tests where nothing else is said.
fn basis(folder: &Path) -> Result<Value> {
    Ok(json!({
        "data_dir": folder,
        "bind_addr": "127.0.0.1",
        "bootstrap_expect": 1,
        "operator_key_file": dev::operator_key(folder)?,
        "default_intention_policy": "allow",
        "proxy": { "workers": 1, "drain": "1s" },
    }))
}

const LOCAL_CONFIG: &str = "CONSUL_LOCAL_CONFIG";
