//! HTTP/1.1 on pipes: what is refused, what is taken, and that hyper reads the same.

mod client;
mod common;
mod differential;
mod exchange;
mod mutation;
mod vectors;
