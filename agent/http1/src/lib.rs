//! HTTP/1.1 on one connection: as a server and as a client, strict about where a message ends.
//!
//! What RFC 9112 lets a recipient forgive, this refuses, because the next hop may forgive it in
//! another way: a length and a coding, a length twice, a bare line feed, a folded field, a blank
//! before a colon. See [`Fault`] for the whole list and the status that each is answered with.
//!
//! A connection belongs to one thread. Nothing runs in the background: a server's connection is
//! the future of [`server::serve`], a client's is driven by whoever waits for its answer.
//!
//! Tasks: one for a request's body that goes on after its answer has begun, in [`client`].

mod fault;
mod limits;
mod head;
mod chunked;
mod date;
mod encode;
mod upgrade;
mod body;
mod connection;
pub mod client;
pub mod server;

pub use crate::body::Body;
pub use crate::date::Date;
pub use crate::fault::{Error, Fault};
pub use crate::limits::Limits;
pub use crate::upgrade::{OnUpgrade, ReadAhead, Upgraded};
