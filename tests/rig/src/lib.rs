//! Hosts as network namespaces, with Hawser and real applications on them.
//!
//! `tests/hosts` and `cargo xtask hosts` stand on this. The namespaces hang on a bridge in a
//! namespace of its own, so nothing here touches the machine's interfaces, and none of them has a
//! default route, so nothing leaves it. Needs root.

pub mod wait;
pub mod process;
pub mod net;
pub mod metadata;
pub mod application;
pub mod backend;
pub mod cluster;
pub mod regions;

pub use cluster::{Cluster, Options};
pub use net::{Host, Net};
pub use process::Process;
pub use regions::Regions;
pub use wait::wait_for;
