//! `hawser recover`: goes on with one server, after a majority of them was lost for ever.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use hawser_server::recover::Recovery;

use super::output;

/// Which server, and whether it is meant.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The data folder of the server, as `data_dir` in its configuration.
    #[arg(long, value_name = "FOLDER")]
    data_dir: PathBuf,
    /// Do it. Without this, what would be done is printed, and nothing is changed.
    #[arg(long)]
    yes: bool,
}

/// Reads what the folder holds, says it, and with `--yes` makes the server the whole cluster.
///
/// # Errors
/// A folder that is in use, damaged or of no cluster, and the disk's.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let recovery = Recovery::read(&arguments.data_dir.join("server"))?;
    let (node, cluster) = recovery.owner();
    let (last, committed) = recovery.last();
    let mut said = format!(
        "Server {node} of cluster {cluster} holds entries up to {last}, of which it knows those up \
         to {committed} to be committed.\n"
    );
    for (name, address) in recovery.others() {
        said.push_str(&format!("Given up for ever: {name} at {address}\n"));
    }
    if !arguments.yes {
        said.push_str(
            "Nothing was changed. What only the servers that are given up know is lost: of those \
             that are left, choose the one with the most entries. Make sure that none of the \
             others runs or ever starts again, and run this with --yes.\n",
        );
        output::print(&said)?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().context("a runtime")?;
    runtime.block_on(recovery.commit()).context("making this server the whole cluster")?;
    said.push_str(
        "This server is the whole cluster now. Start it, and then new servers with empty data \
         folders that join it.\n",
    );
    output::print(&said)?;
    Ok(ExitCode::SUCCESS)
}
