//! The Consul-compatible HTTP dialect: what clients write, what they are answered, and the client
//! that the command line uses.

pub mod fields;
pub mod definition;
pub mod json;
pub mod error;
pub mod rules;
pub mod query;
pub mod routes;
pub mod tls;
pub mod client;
