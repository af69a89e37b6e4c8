//! The clustered control plane.

pub mod identity;
pub mod tls;
pub mod ca;
pub mod aws_iam;
pub mod history;
mod audit;
pub mod acl;
pub mod config;
mod metrics;
mod space;
mod snapshot;
pub mod archive;
pub mod store;
pub mod watch;
mod dial;
mod raft;
pub mod propose;
pub mod read;
mod roster;
mod leader;
mod contacts;
mod handle;
pub mod traffic;
mod join;
mod peering;
pub mod http;
mod rpc;
mod server;

pub use audit::Settings as AuditSettings;
pub use config::{Config, RaftTiming};
pub use handle::{Handle, MintError};
pub use hawser_proto::Member;
pub use leader::Leases;
pub use raft::Status;
pub use roster::Roster;
pub use server::{RunError, Server, StartError};
