//! `cargo xtask image`: the container image from the static binary, and a test of it.

mod store;
mod scene;
mod task;

use std::env::consts::ARCH;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::store::{IMAGE, Store};
use crate::dist;
use crate::hosts::target;
use crate::step::{cargo, run as shown, timed};

/// Builds the image as an archive, and with `test` lets an ECS task run of it.
///
/// # Errors
/// The build fails, a program is missing, or a check fails.
pub(crate) fn run(root: &Path, debug: bool, test: bool) -> Result<()> {
    let binary = if debug { debug_binary(root)? } else { dist::release(root)? };
    let folder = target(root).join("image");
    let store = Store::at(&folder.join("store"))?;
    let archive = folder.join(format!("hawser-{VERSION}.tar"));
    timed("image", || build(root, &binary, &folder, &store, &archive))?;
    println!("{} ({} KiB)", archive.display(), fs::metadata(&archive)?.len() / 1024);
    if test { task::run(&binary, &folder, store) } else { Ok(()) }
}

/// Static as what ships, and quickly built.
fn debug_binary(root: &Path) -> Result<PathBuf> {
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let mut build = cargo(root, &["build", "--bin", "hawser", "--target", &triple]);
    shown(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(target(root).join(triple).join("debug/hawser"))
}

fn build(root: &Path, binary: &Path, folder: &Path, store: &Store, archive: &Path) -> Result<()> {
    let context = folder.join("context");
    if context.exists() {
        fs::remove_dir_all(&context)?;
    }
    fs::create_dir_all(context.join("data"))?;
    fs::copy(binary, context.join("hawser"))
        .with_context(|| format!("copying {}", binary.display()))?;
    fs::set_permissions(context.join("hawser"), Permissions::from_mode(0o755))?;
    let mut build = store.buildah();
    build.args(["build", "--quiet", "--format", "docker", "--tag", IMAGE, "--file"]);
    shown(build.arg(root.join("Dockerfile")).arg(&context))?;
    if archive.exists() {
        fs::remove_file(archive)?;
    }
    let mut push = store.buildah();
    push.args(["push", "--quiet", IMAGE]);
    shown(push.arg(format!("docker-archive:{}:{IMAGE}", archive.display())))
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
