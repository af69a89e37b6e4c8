//! Setting up the scene for one test, and telling what happened when it fails.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use hawser_rig::{Cluster, Options};

/// Runs `test` on a fresh scene. The scene's folder is removed when the test passes; when it fails,
/// the ends of all logs are printed and the folder stays.
pub(crate) fn on_hosts(name: &str, postgres: bool, test: impl FnOnce(&mut Cluster) -> Result<()>) {
    on(name, |options| Cluster::start(Options { postgres, ..options }), test);
}

/// The same with servers alone: the test sets up the rest.
pub(crate) fn on_servers(name: &str, test: impl FnOnce(&mut Cluster) -> Result<()>) {
    on(name, Cluster::servers, test);
}

fn on(
    name: &str,
    start: impl FnOnce(Options) -> Result<Cluster>,
    test: impl FnOnce(&mut Cluster) -> Result<()>,
) {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_hawser"));
    let binary = std::env::var_os("HAWSER_BINARY").map_or(built, PathBuf::from);
    let folder = std::env::temp_dir().join(format!("hawser-hosts-{name}"));
    let options = Options { binary, folder: folder.clone(), postgres: false };
    let mut cluster = match start(options) {
        Ok(cluster) => cluster,
        Err(why) => panic!("the scene does not come up: {why:#}"),
    };
    let ended = test(&mut cluster);
    if let Err(why) = ended {
        cluster.tell_logs();
        panic!("{why:#}");
    }
    drop(cluster);
    fs::remove_dir_all(&folder).expect("the scene's folder is ours");
}
