//! `hawser join`: makes a host under systemd a member of a cluster, or leaves it as it was.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_core::duration;
use hawser_core::name::NodeName;

use super::output;
use crate::config;

/// Which cluster, and as whom. Not printable: the token is a secret.
#[derive(Clone, clap::Args)]
pub(crate) struct Arguments {
    /// A server's address, `HOST[:PORT]`; more of them behind commas.
    server: String,
    /// What `hawser token create` printed; - reads it from standard input, where no list of
    /// processes shows it.
    token: String,
    /// The name that the token was made for [default: the host's name]
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// How long joining may take before the host is put back as it was.
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse)]
    timeout: Duration,
    /// Write the files and start nothing: the agent joins when it is started first.
    #[arg(long)]
    no_start: bool,
    /// Write into the host's file system below this folder, as for an image, and start nothing.
    #[arg(long, value_name = "FOLDER")]
    config_root: Option<PathBuf>,
}

/// Writes the agent's configuration and token, starts it, and waits until it serves.
///
/// # Errors
/// A host that has a configuration already, arguments that cannot be, files that cannot be
/// written, or a cluster that did not take the host; then nothing that was written stays.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    let starts = !arguments.no_start && arguments.config_root.is_none();
    let places = Places::below(arguments.config_root.as_deref().unwrap_or(Path::new("/")));
    let node = match arguments.node {
        Some(node) => node,
        None => own_name()?,
    };
    let config = configuration(&node, &arguments.server)?;
    let token = match arguments.token.as_str() {
        "-" => from_standard_input()?,
        token => token.to_owned(),
    };
    let token = checked(token.trim())?;
    if arguments.config_root.is_none() {
        ensure!(rustix::process::geteuid().is_root(), "run it as root: it writes below /etc");
    }
    if starts {
        systemctl(&["cat", UNIT])
            .with_context(|| format!("{UNIT} is not installed: install the package first"))?;
    }
    refuse_configured(&places)?;

    let written = Written::write(&places, &config, token)?;
    if !starts {
        return output::print(&format!(
            "{} and {} are written; the token works once and for minutes, so start it soon:\n\
             systemctl enable --now {UNIT}\n",
            places.config.display(),
            places.token.display()
        ));
    }
    if let Err(why) = start(arguments.timeout) {
        written.undo();
        return Err(why.context(format!("{node} has not joined, and is as it was before")));
    }
    // It worked once and never will again.
    fs::remove_file(&places.token)
        .with_context(|| format!("removing {}", places.token.display()))?;
    output::print(&format!(
        "{node} has joined. {UNIT} is ready, and starts with the host.\n\
         Services go into files in {}; then: systemctl reload hawser-agent\n",
        places.folder.display()
    ))
}

/// Where things stand in a host's file system.
struct Places {
    /// The agent's configuration folder.
    folder: PathBuf,
    /// A server's configuration folder.
    server: PathBuf,
    /// What this command writes.
    config: PathBuf,
    /// Where the unit's `LoadCredential=` looks for the token.
    token: PathBuf,
}

impl Places {
    fn below(root: &Path) -> Self {
        let folder = root.join("etc/hawser/agent.d");
        Self {
            config: folder.join("join.hcl"),
            folder,
            server: root.join("etc/hawser/server.d"),
            token: root.join("etc/credstore/hawser.join-token"),
        }
    }
}

/// The files of one try to join.
struct Written {
    config: PathBuf,
    token: PathBuf,
}

impl Written {
    fn write(places: &Places, config: &str, token: &str) -> Result<Self> {
        let written = Self { config: places.config.clone(), token: places.token.clone() };
        let both = put(&places.config, config, FOLDER_MODE, CONFIG_MODE)
            .and_then(|()| put(&places.token, token, SECRETS_MODE, TOKEN_MODE));
        if let Err(why) = both {
            written.undo();
            return Err(why);
        }
        Ok(written)
    }

    fn undo(&self) {
        for path in [&self.config, &self.token] {
            // What was never written is as gone as what is removed.
            drop(fs::remove_file(path));
        }
    }
}

/// Writes a file that nobody sees before it has its mode, whatever the umask.
fn put(path: &Path, text: &str, folder_mode: u32, mode: u32) -> Result<()> {
    let folder = path.parent().context("a file without a folder")?;
    DirBuilder::new()
        .recursive(true)
        .mode(folder_mode)
        .create(folder)
        .with_context(|| format!("creating {}", folder.display()))?;
    let fresh = path.with_extension("new");
    let what = || format!("writing {}", fresh.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(TOKEN_MODE)
        .open(&fresh)
        .with_context(what)?;
    file.write_all(text.as_bytes()).with_context(what)?;
    file.set_permissions(Permissions::from_mode(mode)).with_context(what)?;
    file.sync_all().with_context(what)?;
    fs::rename(&fresh, path).with_context(|| format!("writing {}", path.display()))
}

/// Refuses a host that says already how it joins, or that is a server.
fn refuse_configured(places: &Places) -> Result<()> {
    if let Some(file) = config::files_in(&places.server)?.first() {
        bail!(
            "this host is configured as a server by {}: its agent is inside the server, and joins \
             by itself",
            file.display()
        );
    }
    for file in config::files_in(&places.folder)? {
        if file == places.config {
            bail!(
                "this host is configured already, by {}: if it shall join another cluster, stop \
                 hawser-agent, remove that file and /var/lib/hawser/agent, and ask again",
                file.display()
            );
        }
        if let Some(key) = config::first_key(&file, &JOINING)? {
            bail!(
                "this host is configured already: {} says {key}. Take {} out of that file, or \
                 leave joining to it and start hawser-agent",
                file.display(),
                JOINING.join(", ")
            );
        }
    }
    Ok(())
}

/// What the agent needs to know to join. Services are in files of their own.
fn configuration(node: &NodeName, servers: &str) -> Result<String> {
    let servers: Vec<String> = servers
        .split(',')
        .map(|server| {
            let is_address =
                |letter: char| letter.is_ascii_alphanumeric() || ".:-[]".contains(letter);
            ensure!(
                !server.is_empty() && server.chars().all(is_address),
                "{server:?} is no server's address: give HOST or HOST:PORT"
            );
            Ok(format!("{server:?}"))
        })
        .collect::<Result<_>>()?;
    Ok(format!(
        "# By `hawser join`. Services go into files of their own, beside this one.\n\
         node_name  = \"{node}\"\n\
         data_dir   = \"/var/lib/hawser\"\n\
         retry_join = [{}]\n",
        servers.join(", ")
    ))
}

/// The token, if it looks like one; it says nothing of the node it was made for.
fn checked(token: &str) -> Result<&str> {
    let is_part = |part: &str| {
        URL_SAFE_NO_PAD.decode(part).is_ok_and(|octets| octets.len() == TOKEN_PART_OCTETS)
    };
    let parts: Vec<&str> = token.split('.').collect();
    let is_token = matches!(parts[..], ["hj1", secret, pin] if is_part(secret) && is_part(pin));
    ensure!(
        is_token,
        "the token is none: it must look like hj1.SECRET.PIN, as `hawser token create` prints it"
    );
    Ok(token)
}

fn own_name() -> Result<NodeName> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.parse().with_context(|| format!("the host's name {name:?} cannot be a node's: use --node"))
}

fn from_standard_input() -> Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .take(TOKEN_OCTETS_MAX)
        .read_to_string(&mut text)
        .context("reading the token from standard input")?;
    Ok(text)
}

/// Starts the unit for good and waits until it is ready; else stops and disables it again.
fn start(timeout: Duration) -> Result<()> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", "--quiet", UNIT])?;
    let started = systemctl(&["start", "--no-block", UNIT]).and_then(|_| ready(timeout, since));
    if started.is_err() {
        // The first failure is the one to tell.
        drop(systemctl(&["disable", "--quiet", "--now", UNIT]));
        drop(systemctl(&["reset-failed", UNIT]));
    }
    started
}

fn ready(timeout: Duration, since: u64) -> Result<()> {
    let began = Instant::now();
    loop {
        let shown = systemctl(&["show", UNIT, "--property=ActiveState,SubState,NRestarts"])?;
        match Condition::parse(&shown) {
            Condition::Ready => return Ok(()),
            Condition::Failed => bail!("the agent ended{}", last_words(since)),
            Condition::Starting if began.elapsed() >= timeout => {
                bail!("it took longer than {timeout:?}{}", last_words(since))
            }
            Condition::Starting => thread::sleep(PAUSE),
        }
    }
}

/// How far the unit is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Condition {
    Starting,
    Ready,
    Failed,
}

impl Condition {
    /// Reads what `systemctl show` says. An agent that was restarted once has failed: the next try
    /// has the same token.
    fn parse(shown: &str) -> Self {
        let value = |key: &str| {
            let mut lines = shown.lines().filter_map(|line| line.split_once('='));
            lines.find(|(found, _)| *found == key).map_or("", |(_, value)| value)
        };
        let has_restarted = !matches!(value("NRestarts"), "" | "0");
        match (value("ActiveState"), value("SubState")) {
            _ if has_restarted => Self::Failed,
            (_, "auto-restart") | ("failed" | "deactivating", _) => Self::Failed,
            ("active", _) => Self::Ready,
            _ => Self::Starting,
        }
    }
}

/// What the agent said last since `since`, for whom it did not start.
fn last_words(since: u64) -> String {
    let said = Command::new("journalctl")
        .args(["--unit", UNIT, "--output", "cat", "--no-pager", "--quiet"])
        .args(["--lines", "40", "--since", &format!("@{since}")])
        .output();
    let Ok(said) = said else { return String::new() };
    let said = String::from_utf8_lossy(&said.stdout);
    let tells = |line: &&str| ["hawser: ", "ERROR", "WARN"].iter().any(|mark| line.contains(mark));
    let line = said.lines().rfind(tells);
    let why = line.map(|line| line.split_once("why=").map_or(line, |(_, why)| why));
    why.map_or_else(String::new, |why| format!(": {}", why.trim_start_matches("hawser: ")))
}

/// Asks the service manager.
fn systemctl(arguments: &[&str]) -> Result<String> {
    let output = match Command::new("systemctl").args(arguments).output() {
        Err(why) if why.kind() == ErrorKind::NotFound => {
            bail!("there is no systemctl: use --no-start, and start `hawser agent` yourself")
        }
        other => other.context("running systemctl")?,
    };
    ensure!(
        output.status.success(),
        "systemctl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

const UNIT: &str = "hawser-agent.service";
/// The keys that this command is there to set.
const JOINING: [&str; 4] = ["node_name", "data_dir", "retry_join", "join_token_file"];
const FOLDER_MODE: u32 = 0o750;
/// Nothing in it is secret, and the agent's user reads it whoever owns the folder.
const CONFIG_MODE: u32 = 0o644;
const SECRETS_MODE: u32 = 0o700;
const TOKEN_MODE: u32 = 0o600;
const TOKEN_PART_OCTETS: usize = 32;
const TOKEN_OCTETS_MAX: u64 = 1024;
/// Between two looks at the unit.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> String {
        let part = URL_SAFE_NO_PAD.encode([7; TOKEN_PART_OCTETS]);
        format!("hj1.{part}.{part}")
    }

    fn join(root: &Path, server: &str, token: &str) -> Result<()> {
        run(Arguments {
            server: server.to_owned(),
            token: token.to_owned(),
            node: Some("web-1".parse().expect("a name")),
            timeout: Duration::ZERO,
            no_start: false,
            config_root: Some(root.to_owned()),
        })
    }

    fn refused(joined: Result<()>) -> String {
        joined.map(|()| "it joined".to_owned()).unwrap_or_else(|why| format!("{why:#}"))
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").permissions().mode() & 0o7777
    }

    #[test]
    fn the_files_say_who_joins_whom_and_only_root_reads_the_token() {
        let root = tempfile::tempdir().expect("a temporary folder");
        join(root.path(), "10.0.0.1,s2.example:8301", &format!(" {}\n", token())).expect("joins");
        let places = Places::below(root.path());
        let config = fs::read_to_string(&places.config).expect("written");
        let expected = "node_name  = \"web-1\"\ndata_dir   = \"/var/lib/hawser\"\n\
                        retry_join = [\"10.0.0.1\", \"s2.example:8301\"]\n";
        assert!(config.ends_with(expected), "{config}");
        config::read(std::slice::from_ref(&places.folder)).expect("the agent reads it");
        assert_eq!(fs::read_to_string(&places.token).expect("written"), token());
        let modes = [&places.config, &places.token].map(|path| mode(path));
        assert_eq!(modes, [0o644, 0o600]);
        assert_eq!(mode(places.token.parent().expect("a folder")) & 0o077, 0);
    }

    #[test]
    fn a_host_that_says_already_how_it_joins_is_left_alone() {
        let cases = [
            ("etc/hawser/agent.d/join.hcl", "", "remove that file"),
            ("etc/hawser/agent.d/a.hcl", "retry_join = [\"a\"]", "a.hcl says retry_join"),
            ("etc/hawser/agent.d/a.json", "{\"data_dir\": \"/x\"}", "a.json says data_dir"),
            ("etc/hawser/agent.d/a.hcl", "node_name = ", "a.hcl"),
            ("etc/hawser/server.d/s.hcl", "", "configured as a server"),
            // what does not say it
            ("etc/hawser/agent.d/web.hcl", "service { name = \"web\" }", "it joined"),
            ("etc/hawser/agent.d/notes.txt", "node_name", "it joined"),
        ];
        for (file, text, expected) in cases {
            let root = tempfile::tempdir().expect("a temporary folder");
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
            fs::write(&path, text).expect("writable");
            let told = refused(join(root.path(), "10.0.0.1", &token()));
            assert!(told.contains(expected), "{file}: {told}");
            assert_eq!(fs::read_to_string(&path).expect("still there"), text, "{file}");
            let is_written = Places::below(root.path()).token.exists();
            assert_eq!(is_written, expected == "it joined", "{file}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_written() {
        let good = token();
        let cases = [
            ("", good.as_str(), "no server's address"),
            ("a,,b", &good, "no server's address"),
            ("a\"b", &good, "no server's address"),
            ("a b", &good, "no server's address"),
            ("10.0.0.1", "", "the token is none"),
            ("10.0.0.1", "hj1.a.b", "the token is none"),
            ("10.0.0.1", &good[..good.len() - 1], "the token is none"),
            ("10.0.0.1", &good.replace("hj1", "hj2"), "the token is none"),
        ];
        for (server, token, expected) in cases {
            let root = tempfile::tempdir().expect("a temporary folder");
            let told = refused(join(root.path(), server, token));
            assert!(told.contains(expected), "{server:?} {token:?}: {told}");
            assert!(token.is_empty() || !told.contains(token), "a token is never printed: {told}");
            assert!(!root.path().join("etc").exists(), "{server:?} {token:?}");
        }
    }

    #[test]
    fn a_unit_is_ready_when_it_says_so_and_failed_when_it_starts_again() {
        let cases = [
            ("ActiveState=activating\nSubState=start\nNRestarts=0\n", Condition::Starting),
            ("ActiveState=inactive\nSubState=dead\nNRestarts=0\n", Condition::Starting),
            ("ActiveState=active\nSubState=running\nNRestarts=0\n", Condition::Ready),
            ("ActiveState=activating\nSubState=auto-restart\nNRestarts=0\n", Condition::Failed),
            ("ActiveState=activating\nSubState=start\nNRestarts=1\n", Condition::Failed),
            ("ActiveState=active\nSubState=running\nNRestarts=2\n", Condition::Failed),
            ("ActiveState=failed\nSubState=failed\nNRestarts=0\n", Condition::Failed),
            ("", Condition::Starting),
        ];
        for (shown, expected) in cases {
            assert_eq!(Condition::parse(shown), expected, "{shown:?}");
        }
    }
}
