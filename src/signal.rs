//! Signals: stop gracefully, stop now, reload, be replaced.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals that the process acts on.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    replace: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Asked {
    /// Drain and stop; asked again, stop at once.
    Stop,
    /// Read the configuration anew.
    Reload,
    /// Start the binary anew and hand everything over to it.
    Replace,
}

impl Signals {
    /// Takes over the signals from their defaults.
    ///
    /// # Errors
    /// The system's, where a handler cannot be set.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            replace: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => Asked::Reload,
            _ = self.replace.recv() => Asked::Replace,
        }
    }

    /// Cancels `drain` on the first ask to stop and ends the process on the second; calls
    /// `reload` and `replace` in between. Returns never.
    pub(crate) async fn obey(
        mut self,
        drain: CancellationToken,
        reload: impl Fn(),
        replace: impl Fn(),
    ) {
        loop {
            match self.next().await {
                Asked::Reload => reload(),
                Asked::Replace => replace(),
                Asked::Stop if drain.is_cancelled() => {
                    tracing::warn!("asked to stop again: stopping without draining");
                    std::process::exit(EXIT_NOT_DRAINED);
                }
                Asked::Stop => {
                    tracing::info!("asked to stop: draining");
                    drain.cancel();
                }
            }
        }
    }
}

/// The exit code of a process that was stopped before it had drained.
const EXIT_NOT_DRAINED: i32 = 130;
