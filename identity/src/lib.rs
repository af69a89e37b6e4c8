//! Who is at the other end: the one strict reading of certificates, and TLS built on it.
//!
//! Server, agent and proxy verify their peers here and nowhere else. Modules stand in reading
//! order: each may use those above it.

mod provider;
mod refusal;
mod certificate;
mod anchors;
mod leaf;
mod tls;
mod signature;

pub use anchors::Anchors;
pub use certificate::{
    KeyKind, LIFETIME_MAX, Proven, find_pinned, id_of, pin_of, public_key_of, read, root_id,
    serial_of,
};
pub use leaf::{Leaf, LeafError};
pub use provider::provider;
pub use refusal::Refusal;
pub use signature::Signatures;
pub use tls::{Callee, Callers, accept, dial};
