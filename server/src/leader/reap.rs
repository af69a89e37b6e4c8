//! Removes nodes that have been dead for long.

use std::time::Duration;

use hawser_core::clock::UnixTime;
use hawser_core::name::NodeName;
use hawser_core::state::{Command, Rejection, State};

use super::{Duties, every};
use crate::identity::now;
use crate::propose::ProposeError;

/// Proposes to drop the long dead, for as long as this server leads.
pub(super) async fn run(duties: &Duties) {
    let mut tick = every(REAP_EVERY);
    loop {
        tick.tick().await;
        for node in due(&duties.reader.current(), now(), duties.reap_after) {
            // It may have come back while the others were dropped.
            if !duties.reader.current().catalog().is_down(&node) {
                continue;
            }
            match duties.proposer.propose(Command::DropNode(node.clone())).await {
                Ok(_) => {
                    tracing::info!(node = ?node.as_str(), "a node that was dead for long is dropped")
                }
                Err(ProposeError::Rejected(Rejection::UnknownNode { .. })) => {}
                Err(failure) => {
                    tracing::warn!(node = ?node.as_str(), error = %failure, "a node is not dropped")
                }
            }
        }
    }
}

/// Who has been dead for `reap_after` or longer; a bounded number of them.
fn due(state: &State, now: UnixTime, reap_after: Duration) -> Vec<NodeName> {
    state
        .down_since()
        .filter(|(_, since)| now.since(*since) >= reap_after)
        .take(TOGETHER_MAX)
        .map(|(node, _)| node.clone())
        .collect()
}

const REAP_EVERY: Duration = Duration::from_secs(10);
const TOGETHER_MAX: usize = 100;
