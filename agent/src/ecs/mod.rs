//! An agent inside an ECS task: where the task's metadata is and what it says.

mod task;
mod endpoint;

use std::collections::BTreeSet;
use std::time::Duration;

pub use endpoint::{Endpoint, InvalidEndpoint, MetadataError};
pub use task::{Container, Health, InvalidTask, Known, Task};

/// How an agent lives in its task.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the task's metadata is.
    pub endpoint: Endpoint,
    /// The agent's own container, which is none of the application's.
    pub own: String,
    /// The application's containers, by name; none: all but the agent's own, and of those the
    /// ones with a health check decide about health.
    pub containers: Option<BTreeSet<String>>,
    /// How long the proxy outlives the host's leaving while the application still runs.
    pub stop_timeout: Duration,
}

#[cfg(test)]
pub(crate) use task::tests;
