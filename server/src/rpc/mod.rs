//! The gRPC services: parse, then propose, read, watch or sign, then encode.

pub(crate) mod status;
pub(crate) mod raft;
pub(crate) mod agent;
