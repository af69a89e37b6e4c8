//! Keeps the membership whole: learners that caught up vote, and half-done changes are ended.

use std::collections::BTreeSet;
use std::time::Duration;

use super::every;
use crate::raft::{Raft, Status};

/// What the membership needs next.
#[derive(Debug, Eq, PartialEq)]
enum Step {
    /// End a change of voters that a former leader left half done.
    Finish,
    /// Let a learner vote, in the place of voters of the same name.
    Promote { id: u64, replaced: BTreeSet<u64> },
}

/// Changes the membership step by step, for as long as this server leads.
pub(super) async fn run(raft: &Raft) {
    let mut tick = every(LOOK_EVERY);
    let status = raft.status();
    loop {
        tick.tick().await;
        let step = next(&status.borrow());
        let done = match step {
            None => continue,
            Some(Step::Finish) => raft.finish_change().await,
            Some(Step::Promote { id, replaced }) => {
                tracing::info!(id, replaced = ?replaced, "a server that caught up votes now");
                raft.promote(id, replaced).await
            }
        };
        if let Err(failure) = done {
            tracing::debug!(error = %failure, "the membership stays for the moment");
        }
    }
}

fn next(status: &Status) -> Option<Step> {
    if status.is_joint {
        return Some(Step::Finish);
    }
    let caught_up = |id: &u64| {
        status.matched.get(id).is_some_and(|matched| matched + LAG_MAX >= status.last_index)
    };
    let learner = status
        .members
        .iter()
        .find(|member| !status.voters.contains(&member.id) && caught_up(&member.id))?;
    let replaced = status
        .members
        .iter()
        .filter(|member| member.name == learner.name && member.id != learner.id)
        .map(|member| member.id)
        .filter(|id| status.voters.contains(id))
        .collect();
    Some(Step::Promote { id: learner.id, replaced })
}

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How many entries a learner may be behind when it begins to vote.
const LAG_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use hawser_proto::Member;

    use super::*;

    fn member(id: u64, name: &str) -> Member {
        let name = name.parse().expect("a name");
        Member { id, name, address: "127.0.0.1:1".to_owned() }
    }

    #[test]
    fn a_learner_votes_once_it_caught_up_and_replaces_its_namesake() {
        let mut status = Status {
            is_leader: true,
            last_index: 10_000,
            members: vec![member(1, "a"), member(2, "b"), member(3, "c"), member(9, "b")],
            voters: [1, 2, 3].into(),
            ..Status::default()
        };
        assert_eq!(next(&status), None, "nothing is known of it yet");
        status.matched.insert(9, 100);
        assert_eq!(next(&status), None, "far behind");
        status.matched.insert(9, 9_900);
        assert_eq!(next(&status), Some(Step::Promote { id: 9, replaced: [2].into() }));
        status.is_joint = true;
        assert_eq!(next(&status), Some(Step::Finish), "one change at a time");
    }
}
