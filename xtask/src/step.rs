//! Running one program of a chore, shown and timed.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

/// Cargo on the repository, as the cargo that runs this chore.
pub(crate) fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root);
    command
}

/// Runs `command` with its output shown.
///
/// # Errors
/// It cannot be started or ends with a code other than 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Runs one step and prints its name, how it ended and how long it took.
///
/// # Errors
/// The step's own.
pub(crate) fn timed(name: &str, step: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("==> {name}");
    let began = Instant::now();
    let ended = step().with_context(|| format!("step `{name}`"));
    let verdict = if ended.is_ok() { "ok" } else { "FAILED" };
    println!("==> {name}: {verdict} after {:.1} s", began.elapsed().as_secs_f64());
    ended
}
