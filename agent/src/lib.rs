//! The control loop of one host: declares, checks, subscribes, holds identities, and answers the
//! local API; DNS and the proxy run beside it and never wait for it.

#![forbid(unsafe_code)]

mod clock;
mod disk;
mod tls;
mod servers;
mod local;
mod check;
mod metrics;
mod identity;
mod anti_entropy;
