//! Hawser's nouns and rules: pure values, computed the same on every host.
//!
//! Nothing here opens a socket, reads a clock, draws a random number or waits. Modules stand in
//! reading order: each may use those above it.

pub mod clock;
pub mod duration;
pub mod filter;
pub mod name;
pub mod address;
pub mod normal;
pub mod spiffe;
pub mod sni;
pub mod health;
pub mod catalog;
pub mod revocation;
pub mod peering;
pub mod permission;
pub mod intention;
pub mod jwks;
pub mod entry;
pub mod jwt;
pub mod policy;
pub mod chain;
pub mod discovery;
pub mod acl;
pub mod ca;
pub mod reason;
pub mod edge;
pub mod event;
pub mod kv;
pub mod session;
pub mod txn;
pub mod operation;
pub mod query;
pub mod state;
pub mod answer;
pub mod authorize;
pub mod anti_entropy;
pub mod view;
pub mod route;
pub mod hedge;
pub mod retry;
pub mod traffic;
pub mod balance;
pub mod budget;
pub mod rate;
pub mod share;
pub mod shed;
pub mod dns;
