//! Attacks and bad input, each with its exact outcome.

mod http;
mod requests;
mod tls;
