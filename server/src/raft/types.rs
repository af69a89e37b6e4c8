//! The types that openraft is run with, and what they are on the wire and on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hawser_core::clock::{Index, UnixTime};
use hawser_core::state::{Command, Rejection};
use hawser_proto::{Invalid, v1};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, StoredMembership};

openraft::declare_raft_types!(
    /// What openraft is run with.
    pub(crate) Types:
        D = Proposal,
        R = Outcome,
        NodeId = u64,
        Node = Place,
);

pub(crate) type LeaderId = openraft::vote::leader_id_adv::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::LogId<LeaderId>;
pub(crate) type Vote = openraft::Vote<LeaderId>;
pub(crate) type Entry = openraft::Entry<LeaderId, EntryPayload<Proposal, u64, Place>>;
pub(crate) type Membership = openraft::Membership<u64, Place>;
pub(crate) type Stored = StoredMembership<LeaderId, u64, Place>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Place>;
pub(crate) type Snapshot = openraft::Snapshot<LeaderId, u64, Place, crate::snapshot::Snapshot>;

/// What becomes of a command: applied, at which index, or refused.
pub(crate) type Outcome = Result<Index, Rejection>;

/// A command with its proposer's clock.
#[derive(Clone, Eq, PartialEq)]
pub(crate) struct Proposal {
    pub(crate) time: UnixTime,
    pub(crate) command: Command,
}

/// Openraft prints entries into its traces: what commands carry stays out of them.
impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.command {
            Command::Found(_) => "found",
            Command::SyncNode(_) => "sync-node",
            Command::DropNode(_) => "drop-node",
            Command::SetLiveness { .. } => "set-liveness",
            Command::PutIntention(_) => "put-intention",
            Command::DropIntention(_) => "drop-intention",
            Command::ChangeIntentions { .. } => "change-intentions",
            Command::PutEntry { .. } => "put-entry",
            Command::DropEntry { .. } => "drop-entry",
            Command::SetAuthority { .. } => "set-authority",
            Command::SetAutopilot { .. } => "set-autopilot",
            Command::SetLevel(_) => "set-level",
            Command::Stage(_) => "stage",
            Command::Restore { .. } => "restore",
            Command::Revoke(_) => "revoke",
            Command::Reinstate(_) => "reinstate",
            Command::PutJoinToken(_) => "put-join-token",
            Command::UseJoinToken { .. } => "use-join-token",
            Command::Acl(_) => "acl",
            Command::PutPeering(_) => "put-peering",
            Command::DropPeering(_) => "drop-peering",
            Command::AcceptPeering { .. } => "accept-peering",
            Command::SetPeerState { .. } => "set-peer-state",
            Command::SyncPeer(_) => "sync-peer",
            Command::Kv(_) => "kv",
            Command::CreateSession(_) => "create-session",
            Command::EndSession(_) => "end-session",
            Command::Txn(_) => "txn",
            Command::FireEvent(_) => "fire-event",
            Command::PutQuery(_) => "put-query",
            Command::DropQuery(_) => "drop-query",
        })
    }
}

/// Who a member is and where it is dialled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) address: String,
}

pub(crate) fn log_id_to(id: &LogId) -> v1::LogId {
    v1::LogId { term: id.leader_id.term, leader: id.leader_id.node_id, index: id.index }
}

pub(crate) fn log_id_from(id: v1::LogId) -> LogId {
    LogId::new(LeaderId::new(id.term, id.leader), id.index)
}

pub(crate) fn vote_to(vote: &Vote) -> v1::Vote {
    let LeaderId { term, node_id } = vote.leader_id;
    v1::Vote { term, leader: node_id, committed: vote.committed }
}

pub(crate) fn vote_from(vote: Option<v1::Vote>) -> Result<Vote, Invalid> {
    let vote = vote.ok_or_else(|| Invalid::new("vote", "it is missing"))?;
    let leader_id = LeaderId::new(vote.term, vote.leader);
    Ok(Vote { leader_id, committed: vote.committed })
}

pub(crate) fn membership_to(membership: &Membership) -> v1::Membership {
    v1::Membership {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|voters| v1::membership::Config { voters: voters.iter().copied().collect() })
            .collect(),
        members: membership
            .nodes()
            .map(|(id, place)| v1::Member {
                id: *id,
                name: place.name.clone(),
                address: place.address.clone(),
            })
            .collect(),
    }
}

pub(crate) fn membership_from(membership: v1::Membership) -> Result<Membership, Invalid> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|config| config.voters.into_iter().collect()).collect();
    let places: BTreeMap<u64, Place> = membership
        .members
        .into_iter()
        .map(|member| (member.id, Place { name: member.name, address: member.address }))
        .collect();
    if configs.is_empty() && places.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, places).map_err(|why| Invalid::new("membership", why))
}

pub(crate) fn entry_to(entry: &Entry) -> v1::LogEntry {
    use v1::log_entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(v1::Nothing {}),
        EntryPayload::Normal(Proposal { time, command }) => {
            Payload::Command((*time, command).into())
        }
        EntryPayload::Membership(membership) => Payload::Membership(membership_to(membership)),
    };
    v1::LogEntry { id: Some(log_id_to(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn entry_from(entry: v1::LogEntry) -> Result<Entry, Invalid> {
    use v1::log_entry::Payload;
    let id = entry.id.ok_or_else(|| Invalid::new("log_entry.id", "it is missing"))?;
    let payload = match entry.payload {
        Some(Payload::Blank(v1::Nothing {})) => EntryPayload::Blank,
        Some(Payload::Command(command)) => {
            let (time, command) = command.try_into()?;
            EntryPayload::Normal(Proposal { time, command })
        }
        Some(Payload::Membership(membership)) => {
            EntryPayload::Membership(membership_from(membership)?)
        }
        None => {
            let why = "it is missing, or none that this release knows";
            return Err(Invalid::new("log_entry.payload", why));
        }
    };
    Ok(Entry { log_id: log_id_from(id), payload })
}

/// A snapshot's description as it is in the file and on the wire.
pub(crate) fn meta_to(meta: &SnapshotMeta) -> v1::SnapshotMeta {
    v1::SnapshotMeta {
        last: meta.last_log_id.as_ref().map(log_id_to),
        membership_log: meta.last_membership.log_id().as_ref().map(log_id_to),
        membership: Some(membership_to(meta.last_membership.membership())),
        ..Default::default()
    }
}

pub(crate) fn meta_from(meta: v1::SnapshotMeta) -> Result<SnapshotMeta, Invalid> {
    let membership = membership_from(meta.membership.unwrap_or_default())?;
    Ok(SnapshotMeta {
        last_log_id: meta.last.map(log_id_from),
        last_membership: Stored::new(meta.membership_log.map(log_id_from), membership),
    })
}
