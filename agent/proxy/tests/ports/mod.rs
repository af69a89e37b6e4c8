//! Where applications listen and are listened for, and what is spoken there.

mod detected;
mod named;
mod sockets;
