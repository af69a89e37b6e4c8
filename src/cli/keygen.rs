//! `hawser keygen`: a new operator key.

use std::io::Write;

use anyhow::Result;

/// Prints a new operator key: the secret that makes hosts servers of one cluster.
///
/// # Errors
/// Standard output that cannot be written.
pub(crate) fn run() -> Result<()> {
    let key = hawser_server::identity::OperatorKey::generate()?;
    writeln!(std::io::stdout().lock(), "{}", *key.reveal())?;
    Ok(())
}
