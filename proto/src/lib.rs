//! hawser.v1: the one format of wire, Raft log, snapshot and disk.
//!
//! What arrives is parsed into `hawser-core`'s types by `TryFrom`, which may refuse; what leaves is
//! made by `From`, which may not. Whatever `From` makes, `TryFrom` of the same release accepts: a
//! log entry or snapshot that a server wrote and cannot read would stop it.

/// The messages and services as generated from `proto/hawser/v1/*.proto` by `cargo xtask gen`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::unwrap_used, clippy::large_futures)]
pub mod v1 {
    include!("gen/hawser.v1.rs");
}

mod field;
mod model;
mod intention;
mod entry;
mod ca;
pub mod acl;
mod peering;
mod store;
mod operation;
mod command;
mod rejection;
mod view;
mod routing;
mod edge;
mod share;
pub mod member;
pub mod codec;

pub use field::Invalid;
pub use member::Member;
