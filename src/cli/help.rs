//! `hawser completion` and `hawser man`: what shells and readers of manuals are given, made from the
//! commands themselves.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap_complete::Shell;

/// For which shell.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Completion {
    /// bash, zsh, fish, elvish or powershell.
    shell: Shell,
}

/// Where the pages go.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Man {
    /// The folder to write them to, one page for each command.
    folder: PathBuf,
}

/// Prints what completes the commands of `hawser` in a shell.
///
/// # Errors
/// Nobody reads it.
pub(crate) fn completion(arguments: &Completion, mut command: clap::Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "hawser", &mut script);
    std::io::stdout().lock().write_all(&script).context("printing the script")
}

/// Writes manual pages.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn man(arguments: &Man, command: clap::Command) -> Result<()> {
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    clap_mangen::generate_to(command, folder)
        .with_context(|| format!("writing pages to {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_scripts_speak_of_every_command() {
        let folder = tempfile::tempdir().expect("a folder");
        let command = || crate::cli::command();
        man(&Man { folder: folder.path().to_owned() }, command()).expect("written");
        for page in ["hawser.1", "hawser-kv.1", "hawser-kv-get.1", "hawser-watch.1"] {
            let text = std::fs::read_to_string(folder.path().join(page)).expect(page);
            assert!(text.contains(".TH"), "{page}");
        }
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command(), "hawser", &mut script);
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("intention") && script.contains("force-leave"), "{shell}");
        }
    }
}
