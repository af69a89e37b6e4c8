//! Whole clusters of the real binary on loopback, as an ordinary user may run them.

mod acl;
mod bad_input;
mod ca;
mod control;
mod data;
mod dev;
mod ecs;
mod harness;
mod histories;
mod limits;
mod operate;
mod ports;
mod score;
mod sockets;
mod snapshot;
mod traces;
mod upgrade;
mod wire;
