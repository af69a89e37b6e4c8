//! The clustered control plane.

pub mod identity;
pub mod tls;
pub mod ca;
pub mod history;
