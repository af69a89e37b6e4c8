//! Succession: sockets that systemd keeps between processes, and the process that replaces this one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use hawser_agent::{Handle, Sockets};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// The sockets that systemd kept for this process since the one before, and their names.
///
/// Changes the environment: call it before there is a second thread.
pub(crate) fn kept() -> (Sockets, BTreeSet<String>) {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let mut sockets = Sockets::default();
    for (number, name) in names.split(':').enumerate().take(passed.len()) {
        let udp = passed.take_udp_socket(number).ok().flatten().map(OwnedFd::from);
        let tcp = || passed.take_tcp_listener(number).ok().flatten().map(OwnedFd::from);
        let tcp_or_udp = udp.or_else(tcp);
        let unix = || passed.take_unix_listener(number).ok().flatten().map(OwnedFd::from);
        match tcp_or_udp.or_else(unix) {
            Some(socket) => sockets.take(name, socket),
            None => tracing::warn!(name, "systemd passed something that is no socket"),
        }
    }
    let names = names.split(':').filter(|name| !name.is_empty()).map(str::to_owned);
    (sockets, names.collect())
}

/// Lets systemd keep what `agent` listens on, so that a crash or a restart refuses nobody.
/// Ends with `stopping`, and takes back then what other hosts call: they must find it closed.
/// `stored` is what it keeps already: of that, too, it must forget what is not listened on any more,
/// or connections would wait where nobody accepts them.
pub(crate) async fn keep(agent: Handle, stopping: CancellationToken, mut stored: BTreeSet<String>) {
    // Set by systemd 254 and later; before, the store may be there unsaid.
    let is_off = std::env::var("FDSTORE").is_ok_and(|most| most == "0");
    if is_off || std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let Some(mut changes) = agent.socket_changes() else { return };
    loop {
        changes.borrow_and_update();
        match agent.sockets() {
            Ok(sockets) => store(&sockets, &mut stored),
            Err(error) => tracing::warn!(%error, "systemd keeps no sockets"),
        }
        tokio::select! {
            () = stopping.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
    stored.iter().filter(|name| Sockets::is_called_by_others(name)).for_each(|name| forget(name));
}

fn store(sockets: &Sockets, stored: &mut BTreeSet<String>) {
    let named = sockets.named();
    let names: BTreeSet<String> = named.iter().map(|(name, _)| name.clone()).collect();
    stored.difference(&names).for_each(|name| forget(name));
    for (name, socket) in named {
        // What is there already is not stored twice.
        let states = [NotifyState::FdStore, NotifyState::FdName(&name)];
        if let Err(error) = sd_notify::notify_with_fds(&states, &[socket]) {
            tracing::debug!(%error, name, "systemd does not keep a socket");
        }
    }
    *stored = names;
}

fn forget(name: &str) {
    let states = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
    if let Err(error) = sd_notify::notify(&states) {
        tracing::debug!(%error, name, "systemd was not told");
    }
}

/// Tells systemd that `pid` is the service from now on.
pub(crate) fn announce(pid: u32) {
    if let Err(error) = sd_notify::notify(&[NotifyState::MainPid(pid)]) {
        tracing::debug!(%error, "no service manager was told");
    }
}

/// How this process was started, for starting its successor: by then another binary may stand
/// where this one's stood.
pub(crate) struct Command {
    program: Option<PathBuf>,
    arguments: Vec<OsString>,
}

impl Command {
    /// The command of this process.
    pub(crate) fn of_this() -> Self {
        let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        if !arguments.iter().any(|argument| argument == TAKE_OVER) {
            arguments.push(TAKE_OVER.into());
        }
        Self { program: std::env::current_exe().ok(), arguments }
    }

    /// Starts the successor, which takes over from this process by itself.
    pub(crate) fn start(&self) {
        let Some(program) = &self.program else {
            tracing::error!("nobody knows where this process's binary is: it is not replaced");
            return;
        };
        let mut command = tokio::process::Command::new(program);
        command.args(&self.arguments).stdin(Stdio::null());
        // They name this process.
        for variable in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(variable);
        }
        match command.spawn() {
            Ok(mut child) => {
                tracing::info!(program = %program.display(), pid = child.id(), "successor started");
                tokio::spawn(async move {
                    // It outlives this process where all goes well.
                    if let Ok(status) = child.wait().await {
                        tracing::error!(%status, "the successor ended: this process goes on");
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, program = %program.display(), "no successor started");
            }
        }
    }
}

const TAKE_OVER: &str = "--take-over";
