//! `cargo xtask clients`: tests/clients, which drives the real binary by clients that people have.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::hosts::target;
use crate::step::{cargo, run as shown, timed};

/// Builds the binary, makes a virtual environment with the clients where there is none, and runs
/// the tests.
///
/// # Errors
/// The binary does not build, the clients cannot be had, or a test fails.
pub(crate) fn run(root: &Path) -> Result<()> {
    let venv =
        target(root).join("clients").join(format!("venv-{PY_CONSUL}-{PYTEST}-{SCHEMATHESIS}"));
    timed("py-consul", || install(&venv))?;
    timed("build", || shown(&mut cargo(root, &["build", "--bin", "hawser"])))?;
    timed("clients", || {
        shown(
            Command::new(venv.join("bin/python"))
                .args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/clients"])
                .current_dir(root)
                .env("PYTHONDONTWRITEBYTECODE", "1")
                .env("HAWSER", target(root).join("debug/hawser")),
        )
    })
}

fn install(venv: &Path) -> Result<()> {
    if venv.join("bin/pytest").is_file() {
        return Ok(());
    }
    shown(Command::new("python3").args(["-m", "venv"]).arg(venv))?;
    let pip = ["-m", "pip", "install", "-q", "--disable-pip-version-check"];
    let wanted = [
        format!("py-consul=={PY_CONSUL}"),
        format!("pytest=={PYTEST}"),
        format!("schemathesis=={SCHEMATHESIS}"),
    ];
    shown(Command::new(venv.join("bin/python")).args(pip).args(wanted))
}

const PY_CONSUL: &str = "1.8.0";
const PYTEST: &str = "9.2.0";
const SCHEMATHESIS: &str = "4.32.5";
