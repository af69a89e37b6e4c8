//! Whole clusters of the real binary on loopback, as an ordinary user may run them.

mod acl;
mod bad_input;
mod control;
mod data;
mod dev;
mod ecs;
mod harness;
mod traces;
mod upgrade;
