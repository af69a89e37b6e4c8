//! Who the servers are, and what this one knows of the consensus.

use std::sync::Arc;
use std::time::Duration;

use hawser_proto::Member;
use tokio::sync::watch;

use crate::raft::{Raft, Status};
use crate::read::Contact;

/// The servers of the cluster, as this one sees them. Clones share it.
#[derive(Clone)]
pub struct Roster {
    own: Member,
    raft: Raft,
    contact: Contact,
}

impl Roster {
    pub(crate) fn new(own: Member, raft: Raft, contact: Contact) -> Self {
        Self { own, raft, contact }
    }

    /// This server.
    pub fn own(&self) -> &Member {
        &self.own
    }

    /// Every server, those that do not vote yet included.
    pub fn members(&self) -> Vec<Member> {
        self.raft.status().borrow().members.clone()
    }

    /// The leader, when one is known.
    pub fn leader(&self) -> Option<Member> {
        let status = self.raft.status();
        let status = status.borrow();
        status.leader.and_then(|id| status.member(id)).cloned()
    }

    /// Whether this server leads.
    pub fn is_leader(&self) -> bool {
        self.raft.status().borrow().is_leader
    }

    /// All that is known of the consensus now.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.raft.status().borrow())
    }

    /// Where to wait for news of the consensus.
    pub(crate) fn changes(&self) -> watch::Receiver<Arc<Status>> {
        self.raft.status()
    }

    /// How long ago this server heard from a leader; zero at the leader.
    pub fn last_contact(&self) -> Duration {
        if self.is_leader() { Duration::ZERO } else { self.contact.age() }
    }

    /// Asks server `to` to lead in the present leader's place; only the leader can ask, and `to`
    /// may decline.
    pub async fn transfer_leader(&self, to: u64) {
        self.raft.transfer_leader(to).await;
    }

    /// Writes a snapshot now and lets the log before it go.
    pub async fn snapshot(&self) {
        self.raft.snapshot().await;
    }
}
