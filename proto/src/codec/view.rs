//! A host's view as a file: what it serves from when it restarts without servers.
//!
//! Layout: 8 octets of magic, a `u32` version, a `u64` length, a `u32` CRC-32 of the version, the
//! length and the body, all little-endian, then the body: a `Delta` from nothing.

use hawser_core::view::{Delta, View};
use prost::Message;

use crate::field::Invalid;
use crate::v1;

/// Why a file is no view.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It does not begin as a view does.
    #[error("it is no view file")]
    Magic,
    /// A later release wrote it.
    #[error("its format is version {0}, and this release reads up to {VERSION}")]
    Version(u32),
    /// Octets are missing from its end, or too many.
    #[error("it has {actual} octets of body where it should have {expected}")]
    Length {
        /// What its head says.
        expected: u64,
        /// What follows its head.
        actual: u64,
    },
    /// Its checksum is wrong.
    #[error("its checksum is wrong: it was damaged")]
    Checksum,
    /// It is whole, but says what no view may say.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// The view as a file's contents.
pub fn encode(view: &View) -> Vec<u8> {
    let body = v1::Delta::from(&view.as_delta()).encode_to_vec();
    let length = (body.len() as u64).to_le_bytes();
    let version = VERSION.to_le_bytes();
    let sum = checksum(&version, &length, &body).to_le_bytes();
    [&MAGIC[..], &version, &length, &sum, &body].concat()
}

/// Reads a view back, whole or not at all.
///
/// # Errors
/// [`DecodeError`]; then the host has no view and asks a server for one.
pub fn decode(file: &[u8]) -> Result<View, DecodeError> {
    let rest = file.strip_prefix(&MAGIC[..]).ok_or(DecodeError::Magic)?;
    let short = || DecodeError::Length { expected: HEAD_OCTETS, actual: rest.len() as u64 };
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (sum, body) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    // Length and version are named in errors before the sum proves them, and trusted only after.
    let (expected, actual) = (u64::from_le_bytes(*length), body.len() as u64);
    if expected != actual {
        return Err(DecodeError::Length { expected, actual });
    }
    if checksum(version, length, body) != u32::from_le_bytes(*sum) {
        return Err(DecodeError::Checksum);
    }
    match u32::from_le_bytes(*version) {
        VERSION => {}
        other => return Err(DecodeError::Version(other)),
    }
    let delta = v1::Delta::decode(body).map_err(|why| Invalid::new("delta", why))?;
    let delta = Delta::try_from(delta)?;
    if !delta.is_snapshot {
        return Err(Invalid::new("delta.is_snapshot", "a file holds a whole view").into());
    }
    Ok(View::default().advanced(delta))
}

fn checksum(version: &[u8; 4], length: &[u8; 8], body: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(version);
    sum.update(length);
    sum.update(body);
    sum.finalize()
}

const MAGIC: [u8; 8] = *b"hawserVW";
const VERSION: u32 = 1;
/// Version, length and checksum.
const HEAD_OCTETS: u64 = 16;
