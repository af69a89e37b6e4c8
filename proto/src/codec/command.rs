//! One command as octets: what a log entry holds.

use hawser_core::clock::UnixTime;
use hawser_core::state::Command;
use prost::Message;

use crate::field::Invalid;
use crate::v1;

/// A command and its proposer's clock as octets. Equal commands are equal octets.
pub fn encode(time: UnixTime, command: &Command) -> Vec<u8> {
    v1::Command::from((time, command)).encode_to_vec()
}

/// Reads a command back.
///
/// # Errors
/// Octets that are no command, or one that this release does not know. There is no checksum: the
/// store that keeps log entries has its own.
pub fn decode(octets: &[u8]) -> Result<(UnixTime, Command), Invalid> {
    v1::Command::decode(octets).map_err(|why| Invalid::new("command", why))?.try_into()
}
