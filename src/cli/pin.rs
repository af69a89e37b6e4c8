//! `hawser pin`: what hosts know the servers of a cluster by.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_server::identity::OperatorKey;

/// Where the key is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The operator key's file.
    #[arg(value_name = "FILE")]
    operator_key_file: PathBuf,
}

/// Prints the pin, which is no secret: `server_pin` of hosts that join without a token.
///
/// # Errors
/// A key that cannot be read, or standard output that cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let key = OperatorKey::read(&arguments.operator_key_file)?;
    writeln!(std::io::stdout().lock(), "{}", URL_SAFE_NO_PAD.encode(key.pin()?))?;
    Ok(())
}
