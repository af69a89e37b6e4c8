//! Formats on disk: log entries, snapshot files and a host's view.

pub mod command;
pub mod snapshot;
pub mod view;
