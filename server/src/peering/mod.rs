//! Peering, the servers' side: tokens, taking them up, and the stream between leaders.
//!
//! Tasks: [`run`], spawned by the server, with one task inside for each peering that this cluster
//! dials; and one per stream that a peer's server opened, ended by `drain` or with its connection.

pub(crate) mod token;
mod trust;
pub(crate) mod export;
mod pending;
mod session;
mod dial;
pub(crate) mod establish;
mod service;
mod leader;

pub(crate) use leader::run;
pub(crate) use service::PeeringRpc;

/// What a message between clusters may hold.
pub(crate) const MESSAGE_OCTETS_MAX: usize = 8 * 1024 * 1024;
