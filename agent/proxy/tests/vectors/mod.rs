//! Attacks and bad input, each with its exact outcome.

mod requests;
