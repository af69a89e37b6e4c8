//! What the mesh must show between hosts, with real programs: nginx, HAProxy, Node,
//! lighttpd, h11, tonic, PostgreSQL, redis, dig, openssl.
//!
//! Each test sets up the whole scene of `tests/rig` anew: three servers and three agents of the
//! real binary in network namespaces; that of tasks has servers, one agent and ECS tasks. Needs root; run by `cargo xtask hosts test`, one at a time.
#![allow(clippy::print_stdout, reason = "figures are shown beside the verdicts")]

mod scene;
mod load;
mod capture;
mod carried;
mod refused;
mod flipped;
mod leaderless;
mod instances;
mod task;
mod tasks;
mod malformed;
mod regions;
mod backends;
mod grpc;
