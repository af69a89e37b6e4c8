//! Commands: what a log entry carries, and what a server forwards to its leader.

use hawser_core::clock::{Index, UnixTime};
use hawser_core::entry::{Entry, EntryKey};
use hawser_core::intention::{Changes, Expected};
use hawser_core::name::{NodeName, PeerName};
use hawser_core::peering::{PeerState, Remote};
use hawser_core::state::{AuthorityChoice, Cluster, Command, Fits, JoinToken};

use crate::field::{
    Invalid, each, each_parsed, hash, optional_hash, parsed, present, required, texts,
};
use crate::model::action;
use crate::v1;
use crate::v1::command::Kind;

impl From<&Cluster> for v1::Cluster {
    fn from(cluster: &Cluster) -> Self {
        Self {
            id: cluster.id.to_string(),
            trust_domain: cluster.trust_domain.to_string(),
            datacenter: cluster.datacenter.to_string(),
            default_action: v1::Action::from(cluster.default_action).into(),
        }
    }
}

impl TryFrom<v1::Cluster> for Cluster {
    type Error = Invalid;

    fn try_from(cluster: v1::Cluster) -> Result<Self, Invalid> {
        Ok(Self {
            id: cluster.id.into(),
            trust_domain: parsed("cluster.trust_domain", &cluster.trust_domain)?,
            datacenter: parsed("cluster.datacenter", &cluster.datacenter)?,
            default_action: action("cluster.default_action", cluster.default_action)?,
        })
    }
}

impl From<&JoinToken> for v1::JoinToken {
    fn from(token: &JoinToken) -> Self {
        Self {
            hash: token.hash.to_vec(),
            node: token.node.to_string(),
            expires_at_ms: token.expires_at.as_millis(),
            used_by: token.used_by.map(Vec::from).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::JoinToken> for JoinToken {
    type Error = Invalid;

    fn try_from(token: v1::JoinToken) -> Result<Self, Invalid> {
        Ok(Self {
            hash: hash("join_token.hash", &token.hash)?,
            node: parsed("join_token.node", &token.node)?,
            expires_at: UnixTime::from_millis(token.expires_at_ms),
            used_by: optional_hash("join_token.used_by", &token.used_by)?,
        })
    }
}

impl From<(UnixTime, &Command)> for v1::Command {
    /// A command with its proposer's clock.
    fn from((time, command): (UnixTime, &Command)) -> Self {
        // Zero is what a missing clock looks like, so the epoch travels as its first millisecond.
        Self { time_ms: time.as_millis().max(1), kind: Some(command.into()) }
    }
}

fn shown(hash: &[u8; 32], node: &NodeName, key: Option<[u8; 32]>) -> v1::UseJoinToken {
    let key = key.map(Vec::from).unwrap_or_default();
    v1::UseJoinToken { hash: hash.to_vec(), node: node.to_string(), key }
}

fn accepted(invitation: &[u8; 32], remote: &Remote) -> v1::AcceptPeering {
    v1::AcceptPeering { invitation: invitation.to_vec(), remote: Some(remote.into()) }
}

fn peer_state(name: &PeerName, id: &str, state: PeerState) -> v1::SetPeerState {
    let (name, id, state) = (name.to_string(), id.to_owned(), state.to_string());
    v1::SetPeerState { name, id, state }
}

impl From<&Command> for Kind {
    fn from(command: &Command) -> Self {
        match command {
            Command::Found(cluster) => Self::Found(cluster.into()),
            Command::SyncNode(changes) => Self::SyncNode(changes.into()),
            Command::DropNode(node) => Self::DropNode(node.to_string()),
            Command::SetLiveness { dead, alive } => {
                Self::SetLiveness(v1::Liveness { dead: texts(dead), alive: texts(alive) })
            }
            Command::PutIntention(intention) => Self::PutIntention(intention.into()),
            Command::DropIntention(pair) => Self::DropIntention(pair.into()),
            Command::ChangeIntentions { changes, fits } => {
                Self::ChangeIntentions(changed(changes, *fits))
            }
            Command::PutEntry { entry, expected, fits } => {
                Self::PutEntry(put_entry(entry, *expected, *fits))
            }
            Command::DropEntry { key, expected, fits } => {
                Self::DropEntry(drop_entry(key, *expected, *fits))
            }
            Command::SetAuthority { authority, expected } => Self::SetAuthority(v1::SetAuthority {
                authority: Some(authority.into()),
                expected: expected.0,
            }),
            Command::SetAutopilot { rules, expected } => Self::SetAutopilot(v1::SetAutopilot {
                rules: Some(rules.into()),
                expected: expected.map(|index| index.0),
            }),
            Command::SetLevel(level) => Self::SetLevel(*level),
            Command::Stage(part) => Self::Stage(part.into()),
            Command::Restore { id, parts, choice } => Self::Restore(v1::Restore {
                id: id.to_string(),
                parts: *parts,
                with_authority: *choice == AuthorityChoice::Restore,
            }),
            Command::Revoke(revocation) => Self::Revoke(revocation.into()),
            Command::Reinstate(subject) => Self::Reinstate(subject.into()),
            Command::PutJoinToken(token) => Self::PutJoinToken(token.into()),
            Command::UseJoinToken { hash, node, key } => {
                Self::UseJoinToken(shown(hash, node, *key))
            }
            Command::Acl(change) => Self::Acl(change.into()),
            Command::PutPeering(peering) => Self::PutPeering(peering.into()),
            Command::DropPeering(name) => Self::DropPeering(name.to_string()),
            Command::AcceptPeering { invitation, remote } => {
                Self::AcceptPeering(accepted(invitation, remote))
            }
            Command::SetPeerState { name, id, state } => {
                Self::SetPeerState(peer_state(name, id, *state))
            }
            Command::SyncPeer(update) => Self::SyncPeer(update.into()),
            Command::Kv(change) => Self::Kv(change.into()),
            Command::CreateSession(session) => Self::CreateSession(session.into()),
            Command::FireEvent(event) => Self::FireEvent(event.into()),
            Command::PutQuery(query) => Self::PutQuery(query.into()),
            Command::DropQuery(id) => Self::DropQuery(id.to_string()),
            Command::EndSession(id) => Self::EndSession(id.to_string()),
            Command::Txn(ops) => Self::Txn(v1::Txn { ops: ops.iter().map(Into::into).collect() }),
        }
    }
}

impl TryFrom<v1::Command> for (UnixTime, Command) {
    type Error = Invalid;

    /// # Errors
    /// A command without a clock or of a kind that this release does not know, or one whose
    /// fields are not what they must be.
    fn try_from(command: v1::Command) -> Result<Self, Invalid> {
        if command.time_ms == 0 {
            return Err(Invalid::new("command.time_ms", "it is missing"));
        }
        let kind = command.kind.ok_or_else(|| {
            Invalid::new("command.kind", "it is missing, or none that this release knows")
        })?;
        Ok((UnixTime::from_millis(command.time_ms), kind.try_into()?))
    }
}

impl TryFrom<v1::PutEntry> for Command {
    type Error = Invalid;

    fn try_from(put: v1::PutEntry) -> Result<Self, Invalid> {
        let entry = required("put_entry.entry", put.entry)?;
        let fits = fits(put.fits, put.fits_intentions);
        Ok(Self::PutEntry { entry, expected: put.expected.map(Index), fits })
    }
}

impl TryFrom<v1::DropEntry> for Command {
    type Error = Invalid;

    fn try_from(drop: v1::DropEntry) -> Result<Self, Invalid> {
        let key = required("drop_entry.key", drop.key)?;
        let fits = fits(drop.fits, drop.fits_intentions);
        Ok(Self::DropEntry { key, expected: drop.expected.map(Index), fits })
    }
}

impl TryFrom<v1::ChangeIntentions> for Command {
    type Error = Invalid;

    fn try_from(changes: v1::ChangeIntentions) -> Result<Self, Invalid> {
        let expected = match (changes.expected.map(Index), changes.expected_pair) {
            (None, _) => None,
            (Some(index), Some(pair)) => Some(Expected::Pair(pair.try_into()?, index)),
            (Some(index), None) => {
                let callee = parsed("change_intentions.expected_callee", &changes.expected_callee)?;
                Some(Expected::Callee(callee, index))
            }
        };
        let only = match changes.only.as_str() {
            "" => None,
            only => Some(parsed("change_intentions.only", only)?),
        };
        let fits = fits(changes.fits, changes.fits_intentions);
        let (put, remove) = (each(changes.put)?, each(changes.remove)?);
        Ok(Self::ChangeIntentions { changes: Changes { put, remove, only, expected }, fits })
    }
}

fn changed(changes: &Changes, fits: Option<Fits>) -> v1::ChangeIntentions {
    let (expected_callee, expected_pair, expected) = match &changes.expected {
        None => (String::new(), None, None),
        Some(Expected::Callee(callee, index)) => (callee.to_string(), None, Some(index.0)),
        Some(Expected::Pair(pair, index)) => (String::new(), Some(pair.into()), Some(index.0)),
    };
    v1::ChangeIntentions {
        put: changes.put.iter().map(Into::into).collect(),
        remove: changes.remove.iter().map(Into::into).collect(),
        only: changes.only.as_ref().map(ToString::to_string).unwrap_or_default(),
        expected_pair,
        expected_callee,
        expected,
        fits: fits.map(|fits| fits.entries.0),
        fits_intentions: intentions_of(fits),
    }
}

fn put_entry(entry: &Entry, expected: Option<Index>, fits: Option<Fits>) -> v1::PutEntry {
    v1::PutEntry {
        entry: Some(entry.into()),
        expected: expected.map(|index| index.0),
        fits: fits.map(|fits| fits.entries.0),
        fits_intentions: intentions_of(fits),
    }
}

fn drop_entry(key: &EntryKey, expected: Option<Index>, fits: Option<Fits>) -> v1::DropEntry {
    v1::DropEntry {
        key: Some(key.into()),
        expected: expected.map(|index| index.0),
        fits: fits.map(|fits| fits.entries.0),
        fits_intentions: intentions_of(fits),
    }
}

fn intentions_of(fits: Option<Fits>) -> Option<u64> {
    fits?.intentions.map(|index| index.0)
}

fn fits(entries: Option<u64>, intentions: Option<u64>) -> Option<Fits> {
    Some(Fits { entries: Index(entries?), intentions: intentions.map(Index) })
}

fn choice(with_authority: bool) -> AuthorityChoice {
    if with_authority { AuthorityChoice::Restore } else { AuthorityChoice::Keep }
}

impl TryFrom<Kind> for Command {
    type Error = Invalid;

    fn try_from(kind: Kind) -> Result<Self, Invalid> {
        Ok(match kind {
            Kind::Found(cluster) => Self::Found(cluster.try_into()?),
            Kind::SyncNode(changes) => Self::SyncNode(changes.try_into()?),
            Kind::DropNode(node) => Self::DropNode(parsed("command.drop_node", &node)?),
            Kind::SetLiveness(liveness) => Self::SetLiveness {
                dead: each_parsed("liveness.dead", &liveness.dead)?,
                alive: each_parsed("liveness.alive", &liveness.alive)?,
            },
            Kind::PutIntention(intention) => Self::PutIntention(intention.try_into()?),
            Kind::DropIntention(pair) => Self::DropIntention(pair.try_into()?),
            Kind::ChangeIntentions(changes) => changes.try_into()?,
            Kind::PutEntry(put) => put.try_into()?,
            Kind::DropEntry(drop) => drop.try_into()?,
            Kind::SetAuthority(set) => Self::SetAuthority {
                authority: present("set_authority.authority", set.authority)?.try_into()?,
                expected: Index(set.expected),
            },
            Kind::SetAutopilot(set) => Self::SetAutopilot {
                rules: present("set_autopilot.rules", set.rules)?.into(),
                expected: set.expected.map(Index),
            },
            Kind::SetLevel(level) => Self::SetLevel(level),
            Kind::Stage(part) => Self::Stage(part.try_into()?),
            Kind::Restore(restore) => Self::Restore {
                id: restore.id.into(),
                parts: restore.parts,
                choice: choice(restore.with_authority),
            },
            Kind::Revoke(revocation) => Self::Revoke(revocation.try_into()?),
            Kind::Reinstate(subject) => Self::Reinstate(subject.try_into()?),
            Kind::PutJoinToken(token) => Self::PutJoinToken(token.try_into()?),
            Kind::UseJoinToken(shown) => Self::UseJoinToken {
                hash: hash("use_join_token.hash", &shown.hash)?,
                node: parsed("use_join_token.node", &shown.node)?,
                key: optional_hash("use_join_token.key", &shown.key)?,
            },
            Kind::Acl(change) => Self::Acl(change.try_into()?),
            Kind::PutPeering(row) => Self::PutPeering(row.try_into()?),
            Kind::DropPeering(name) => Self::DropPeering(parsed("command.drop_peering", &name)?),
            Kind::AcceptPeering(accept) => Self::AcceptPeering {
                invitation: hash("accept_peering.invitation", &accept.invitation)?,
                remote: required("accept_peering.remote", accept.remote)?,
            },
            Kind::SetPeerState(set) => Self::SetPeerState {
                name: parsed("set_peer_state.name", &set.name)?,
                id: set.id.into(),
                state: parsed("set_peer_state.state", &set.state)?,
            },
            Kind::SyncPeer(update) => Self::SyncPeer(update.try_into()?),
            Kind::Kv(change) => Self::Kv(change.try_into()?),
            Kind::CreateSession(session) => Self::CreateSession(session.try_into()?),
            Kind::EndSession(id) => Self::EndSession(parsed("command.end_session", &id)?),
            Kind::FireEvent(event) => Self::FireEvent(event.try_into()?),
            Kind::PutQuery(query) => Self::PutQuery(query.try_into()?),
            Kind::DropQuery(id) => Self::DropQuery(id.into()),
            Kind::Txn(txn) => Self::Txn(each(txn.ops)?),
        })
    }
}
