//! `cargo xtask ci`: all that a change must pass, in one command that writes nothing.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::step::{cargo, run as shown, timed};
use crate::{r#gen, tidy};

/// Runs every step but those in `without`, and stops at the first that fails.
///
/// # Errors
/// A step fails, or `without` names none.
pub(crate) fn run(root: &Path, without: &[String]) -> Result<()> {
    for name in without {
        ensure!(STEPS.contains(&name.as_str()), "no step {name:?}: there are {STEPS:?}");
    }
    for name in STEPS {
        if !without.iter().any(|left_out| left_out == name) {
            timed(name, || step(root, name))?;
        }
    }
    Ok(())
}

fn step(root: &Path, name: &str) -> Result<()> {
    match name {
        "fmt" => shown(&mut cargo(root, &["fmt", "--all", "--check"])),
        "tidy" => tidy::run(root),
        "gen" => r#gen::run(root, true),
        "clippy" => {
            let everything = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
            shown(&mut cargo(root, &everything))?;
            // Plain `cargo test` leaves this one out, and so does `--all-targets`.
            let hosts =
                ["clippy", "--package", "hawser", "--test", "hosts", "--", "-D", "warnings"];
            shown(&mut cargo(root, &hosts))
        }
        "doc" => {
            let mut command = cargo(root, &["doc", "--workspace", "--no-deps", "--quiet"]);
            shown(command.env("RUSTDOCFLAGS", "-D warnings"))
        }
        "test" => shown(&mut cargo(root, &["test", "--workspace"])),
        "deny" => deny(root),
        unknown => anyhow::bail!("no step {unknown:?}"),
    }
}

/// Licences, bans and sources. The advisories need a database from the network, so they are no step.
fn deny(root: &Path) -> Result<()> {
    let mut probe = Command::new("cargo-deny");
    let is_installed = probe.arg("--version").stdout(Stdio::null()).status().is_ok();
    ensure!(
        is_installed,
        "cargo-deny is missing: `cargo install --locked cargo-deny`, or leave \
        the step out by `--without deny`"
    );
    // Crates of other systems are looked at too, and no build here has fetched them.
    shown(&mut cargo(root, &["fetch", "--locked", "--quiet"]))?;
    shown(&mut cargo(root, &["deny", "--offline", "check", "licenses", "bans", "sources"]))
}

/// In the order they run: the quick ones first.
const STEPS: [&str; 7] = ["fmt", "tidy", "gen", "clippy", "doc", "test", "deny"];
