//! Attacks and bad input, each with its exact outcome.

mod exchanges;
mod frames;
mod http;
mod http2;
mod requests;
mod tls;
