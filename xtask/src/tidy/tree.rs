//! The files that tidy looks at.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A repository's files, each with its path from the root.
pub(super) struct Tree {
    /// Where it stands.
    pub(super) root: PathBuf,
    /// In order.
    pub(super) files: Vec<PathBuf>,
}

impl Tree {
    /// What git has, and what it would take next.
    pub(super) fn committed(root: &Path) -> Result<Self> {
        let mut command = Command::new("git");
        command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let output = command.current_dir(root).output().context("starting git")?;
        ensure!(output.status.success(), "git ls-files: {}", output.status);
        let listed = String::from_utf8(output.stdout).context("a file name that is not UTF-8")?;
        let mut files: Vec<PathBuf> = listed.split_terminator('\0').map(PathBuf::from).collect();
        files.retain(|path| root.join(path).is_file());
        files.sort();
        Ok(Self { root: root.to_owned(), files })
    }

    /// Every file below `root`.
    #[cfg(test)]
    pub(super) fn all(root: &Path) -> Result<Self> {
        fn walk(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    walk(root, &path, files)?;
                } else {
                    files.push(path.strip_prefix(root)?.to_owned());
                }
            }
            Ok(())
        }
        let mut files = Vec::new();
        walk(root, root, &mut files)?;
        files.retain(|path| path != Path::new("Cargo.lock"));
        files.sort();
        Ok(Self { root: root.to_owned(), files })
    }

    /// A file's text.
    pub(super) fn read(&self, path: &Path) -> Result<String> {
        let whole = self.root.join(path);
        fs::read_to_string(&whole).with_context(|| format!("reading {}", whole.display()))
    }

    /// The Rust sources that people write: generated ones are somebody else's manners.
    pub(super) fn sources(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().filter(|path| {
            path.extension().is_some_and(|ending| ending == "rs")
                && !path.components().any(|part| part.as_os_str() == "gen")
        })
    }
}
