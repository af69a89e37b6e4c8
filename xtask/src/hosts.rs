//! `cargo xtask hosts`: the scene of `tests/rig`, to be tested or to be walked around in.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use hawser_rig::{Cluster, Host, Options, net};

use crate::step::{cargo, run as shown, timed};

/// What to do with the hosts.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Build Hawser and set up 3 servers, 3 agents, nginx, PostgreSQL and a Python service.
    Up,
    /// End everything on the hosts and take them down.
    Down,
    /// Run tests/hosts; what follows `--` goes to the test program.
    Test {
        /// Run this `hawser`, such as the one of `cargo xtask dist`, instead of the debug build's.
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
        /// Arguments of the test program, such as a part of a test's name.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run a command on a host: s1 to s3, a1 to a3, or r.
    Run {
        /// The host.
        host: String,
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

/// Does it.
///
/// # Errors
/// Not root, a program is missing, the scene does not come up, or the command fails.
pub(crate) fn run(root: &Path, action: &Action) -> Result<()> {
    match action {
        Action::Up => up(root),
        Action::Down => down(),
        Action::Test { binary, arguments } => test(root, binary.as_deref(), arguments),
        Action::Run { host, command } => {
            let (program, arguments) = command.split_first().context("no command")?;
            shown(Host::named(host)?.command(program).args(arguments))
        }
    }
}

/// Where cargo puts what it builds.
pub(crate) fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |own| root.join(own))
}

fn up(root: &Path) -> Result<()> {
    shown(&mut cargo(root, &["build", "--bin", "hawser"]))?;
    let binary = target(root).join("debug/hawser");
    let folder = std::env::temp_dir().join(UP);
    let cluster = Cluster::start(Options { binary, folder, postgres: true })?;
    let folder = cluster.leave();
    println!(
        "standing; configuration, data and logs are in {}\n\n\
         cargo xtask hosts run a1 curl http://127.0.0.1:5001/     # web -> api (nginx on a2, a3)\n\
         cargo xtask hosts run a1 psql -h 127.0.0.1 -p 5433 -U postgres -c 'select version()'\n\
         cargo xtask hosts run a1 dig @127.0.0.1 -p 8600 api.service.consul\n\
         cargo xtask hosts run s1 curl http://127.0.0.1:8500/v1/status/leader\n\
         cargo xtask hosts down",
        folder.display()
    );
    Ok(())
}

fn down() -> Result<()> {
    net::clear()?;
    let folder = std::env::temp_dir().join(UP);
    if folder.exists() {
        std::fs::remove_dir_all(&folder)
            .with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

fn test(root: &Path, binary: Option<&Path>, arguments: &[String]) -> Result<()> {
    for program in PROGRAMS {
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        });
        if !found {
            bail!("{program} is not installed; `.ci/run` names the Debian packages");
        }
    }
    let flags = ["--test-threads=1", "--show-output"];
    let mut command = cargo(root, &["test", "--test", "hosts", "--"]);
    command.args(flags);
    command.args(arguments);
    if let Some(binary) = binary {
        command.env("HAWSER_BINARY", binary.canonicalize()?);
    }
    let ended = timed("hosts", || shown(&mut command));
    // A test program that was killed could not clear up behind itself.
    net::clear().and(ended)
}

/// The folder of the scene that `up` leaves standing, below the temporary one.
const UP: &str = "hawser-hosts-up";

/// What the scene and its tests call; PostgreSQL's own programs are looked for by the rig.
const PROGRAMS: [&str; 16] = [
    "ip",
    "nft",
    "nsenter",
    "setpriv",
    "curl",
    "nginx",
    "haproxy",
    "node",
    "lighttpd",
    "redis-server",
    "redis-cli",
    "python3",
    "psql",
    "dig",
    "tcpdump",
    "openssl",
];
