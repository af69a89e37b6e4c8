//! The format as others rely on it: round trips, refusals, damage, and files of old releases.

mod acl;
mod store;
mod samples;

mod damage;
mod fuzz;
mod golden;
mod refusals;
mod round_trips;
