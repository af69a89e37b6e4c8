//! `hawser validate`: whether configuration files are good, without starting anything.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::output;
use crate::config;

/// Files and folders to check.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Configuration files, HCL or JSON, or folders of them; checked together.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Print nothing when they are good.
    #[arg(long)]
    quiet: bool,
}

/// Reads the files together as an agent or server would.
///
/// # Errors
/// The first thing that is wrong, by file and key.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let raw = config::read(&arguments.files)?;
    raw.check()?;
    if !arguments.quiet {
        output::print("Configuration is valid!\n")?;
    }
    Ok(ExitCode::SUCCESS)
}
