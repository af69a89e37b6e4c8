//! Images and containers of this repository's own, apart from the machine's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

/// Where images and containers are kept, apart from the machine's own.
pub(super) struct Store {
    images: PathBuf,
    running: PathBuf,
}

impl Store {
    /// Opens it, made where it is not there.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(super) fn at(folder: &Path) -> Result<Self> {
        let store = Self { images: folder.join("images"), running: folder.join("running") };
        fs::create_dir_all(&store.images)?;
        fs::create_dir_all(&store.running)?;
        Ok(store)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(&self.images).arg("--runroot").arg(&self.running);
        command
    }

    /// Buildah on this store.
    pub(super) fn buildah(&self) -> Command {
        self.command("buildah")
    }

    /// Podman on this store, with what works where there is no systemd.
    pub(super) fn podman(&self) -> Command {
        let mut command = self.command("podman");
        command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs"]);
        command
    }
}

/// What the image is called, here and in its archive.
pub(super) const IMAGE: &str = concat!("hawser:", env!("CARGO_PKG_VERSION"));
