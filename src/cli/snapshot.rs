//! `hawser snapshot`: the whole state as a file, and back.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use hawser_api::client::Client;
use hawser_server::archive::{self, Meta};
use hyper::Method;

use super::output::{self, Formatted, Table};

/// Backups of the servers' state.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Save the state into a file. It holds tokens: keep it as you keep those.
    Save {
        /// Leave out the keys of the certificate authority, which are sealed in it otherwise.
        #[arg(long)]
        without_ca: bool,
        /// The file to write.
        file: PathBuf,
    },
    /// Put a saved state into the place of the cluster's, on all servers at once.
    Restore {
        /// Let the saved certificate authority sign again: for a new cluster with the operator key
        /// of the one that was saved.
        #[arg(long)]
        with_ca: bool,
        /// The file to read.
        file: PathBuf,
    },
    /// Check a file, and print what it says of itself. Asks nobody.
    Inspect {
        /// The file to read.
        file: PathBuf,
        #[command(flatten)]
        formatted: Formatted,
    },
}

/// Does what was asked for.
///
/// # Errors
/// The API's, the file's, and what is wrong with an archive.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    match arguments.what {
        What::Save { without_ca, file } => {
            let query: &[(&str, &str)] = if without_ca { &[("authority", "omit")] } else { &[] };
            let saved = client.send(Method::GET, PATH, query, None).await?;
            // What cannot be restored is no backup.
            let meta = checked(&saved.body)?;
            write(&file, &saved.body)?;
            let index = meta.index;
            output::print(&format!("Saved and verified snapshot to index {index}\n"))?;
        }
        What::Restore { with_ca, file } => {
            let archive = read(&file)?;
            checked(&archive).with_context(|| file.display().to_string())?;
            let query: &[(&str, &str)] = if with_ca { &[("authority", "restore")] } else { &[] };
            client.send(Method::PUT, PATH, query, Some(archive.into())).await?;
            output::print("Restored snapshot\n")?;
        }
        What::Inspect { file, formatted } => {
            let meta = checked(&read(&file)?).with_context(|| file.display().to_string())?;
            formatted.print(&meta, table)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn checked(octets: &[u8]) -> Result<Meta> {
    let (meta, state) = archive::unpack(octets)?;
    archive::parts(&state)?;
    Ok(meta)
}

/// Writes aside and renames, so that a file with that name is always whole.
fn write(file: &Path, octets: &[u8]) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut aside = file.as_os_str().to_owned();
    aside.push(".unverified");
    let named = || format!("writing {}", file.display());
    let mut out = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&aside)
        .with_context(named)?;
    out.write_all(octets).and_then(|()| out.sync_all()).with_context(named)?;
    std::fs::rename(&aside, file).with_context(named)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let named = || format!("reading {}", file.display());
    let mut octets = Vec::new();
    let opened = std::fs::File::open(file).with_context(named)?;
    opened.take(OCTETS_MAX + 1).read_to_end(&mut octets).with_context(named)?;
    ensure!(octets.len() as u64 <= OCTETS_MAX, "{}: it is no snapshot archive", file.display());
    Ok(octets)
}

fn table(meta: &Meta) -> String {
    let mut table = Table::new(["Field", "Value"]);
    let authority = if meta.has_authority { "sealed" } else { "left out" };
    for (field, value) in [
        ("Cluster", meta.cluster.clone()),
        ("Index", meta.index.to_string()),
        ("Term", meta.term.to_string()),
        ("Size", meta.size.to_string()),
        ("Release", meta.release.clone()),
        ("Version", meta.version.to_string()),
        ("CA", authority.to_owned()),
    ] {
        table.row([field, &value]);
    }
    table.into_text()
}

const PATH: &str = "/v1/snapshot";
const OCTETS_MAX: u64 = 256 << 20;
