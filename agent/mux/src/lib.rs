//! Many streams of bytes in one connection between two proxies, with credit for each.
//!
//! Pure: bytes and calls go in, events and bytes come out. Sockets, tasks, buffers and what the
//! codes of verdicts mean belong to whoever carries the bytes.
//!
//! The caller opens streams; the callee answers each with a verdict before any byte of it passes,
//! unless both agreed that every stream is let in.
//! Each direction of a stream ends by itself. Every byte needs credit that the receiver gave for
//! its own stream, so one that is not read holds up no other.

mod frame;
mod credit;
mod session;

pub use crate::credit::{WINDOW_FIRST, WINDOW_MAX, WINDOWS_SPARE};
pub use crate::frame::{CONTROL_BYTES, DATA_BYTES_MAX, HEADER_BYTES, StreamId, Violation};
pub use crate::session::{BULK_BYTES, Entry, Event, RESETS_MAX, STREAMS_MAX, Session, Side};
