//! `cargo xtask fix`: mends what a program can mend.

use std::path::Path;

use anyhow::Result;

use crate::r#gen;
use crate::step::{cargo, run as shown, timed};

/// Writes generated code, applies lint suggestions and formats.
///
/// # Errors
/// A step fails.
pub(crate) fn run(root: &Path) -> Result<()> {
    timed("gen", || r#gen::run(root, false))?;
    timed("clippy", || {
        let arguments = ["clippy", "--fix", "--workspace", "--all-targets", "--allow-dirty"];
        shown(&mut cargo(root, &arguments))
    })?;
    timed("fmt", || shown(&mut cargo(root, &["fmt", "--all"])))
}
