//! How the servers run themselves: autopilot's rules, levels, servers that were given up.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::catalog::Row;
use hawser_core::clock::Index;
use hawser_core::operation::{Autopilot, Operation};

use crate::v1;

impl From<&Autopilot> for v1::Autopilot {
    fn from(rules: &Autopilot) -> Self {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self {
            cleanup_dead_servers: rules.cleanup_dead_servers,
            last_contact_threshold_ms: millis(rules.last_contact_threshold),
            max_trailing_logs: rules.max_trailing_logs,
            min_quorum: rules.min_quorum,
            server_stabilization_time_ms: millis(rules.server_stabilization_time),
        }
    }
}

impl From<v1::Autopilot> for Autopilot {
    fn from(rules: v1::Autopilot) -> Self {
        Self {
            cleanup_dead_servers: rules.cleanup_dead_servers,
            last_contact_threshold: Duration::from_millis(rules.last_contact_threshold_ms),
            max_trailing_logs: rules.max_trailing_logs,
            min_quorum: rules.min_quorum,
            server_stabilization_time: Duration::from_millis(rules.server_stabilization_time_ms),
        }
    }
}

impl From<&Operation> for v1::Operation {
    fn from(operation: &Operation) -> Self {
        let autopilot = operation.autopilot();
        Self {
            // Nobody set any: what a later release takes for its defaults holds there.
            autopilot: (autopilot.modified != Index(0)).then(|| (&*autopilot.value).into()),
            created: autopilot.created.0,
            modified: autopilot.modified.0,
            level: operation.level(),
            given_up: operation.given_up().iter().copied().collect(),
        }
    }
}

impl From<v1::Operation> for Operation {
    fn from(row: v1::Operation) -> Self {
        let rules = row.autopilot.map(Autopilot::from).unwrap_or_default();
        let (created, modified) = (Index(row.created), Index(row.modified));
        let autopilot = Row { value: Arc::new(rules), created, modified };
        Self::restore(autopilot, row.level, row.given_up.into_iter().collect())
    }
}
