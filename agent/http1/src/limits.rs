//! Limits: what one message may take, and how long it may take to begin.

use std::time::Duration;

/// Bounds of one connection's messages.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Most bytes of a head, and of a body's trailers.
    pub head_bytes: usize,
    /// Most fields of a head, and of a body's trailers; at most 256.
    pub fields: usize,
    /// Longest request target, in bytes.
    pub target_bytes: usize,
    /// Longest time from the first byte of a request's head to its last.
    pub head: Duration,
    /// How long a connection may wait for a request. One that waited may be kept twice as long.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 64 * 1024,
            fields: 100,
            target_bytes: 8 * 1024,
            head: Duration::from_secs(30),
            idle: Duration::from_secs(300),
        }
    }
}

/// Most fields that [`Limits::fields`] can allow.
pub(crate) const FIELDS_MAX: usize = 256;
/// Longest method that any registered one comes near to.
pub(crate) const METHOD_BYTES_MAX: usize = 32;
/// Most bytes of a line that begins a chunk: a size and its extensions.
pub(crate) const CHUNK_LINE_BYTES_MAX: usize = 256;
/// Most bytes of extensions in one body: they carry nothing, and cost reading.
pub(crate) const EXTENSION_BYTES_MAX: usize = 4 * 1024;
/// Most interim answers before the answer.
pub(crate) const INTERIM_MAX: usize = 8;
