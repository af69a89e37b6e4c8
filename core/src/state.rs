//! What the servers agree on: commands, and the one function that applies them.

mod fit;
mod restore;
mod steps;
mod store;
mod txn;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::acl;
use crate::ca::Authority;
use crate::catalog::bounds::TooLong;
use crate::catalog::{Catalog, Check, Indexes, Instance, Node, Row, Touched, liveness_id};
use crate::clock::{Index, Stamp, UnixTime};
use crate::discovery::Misfit;
use crate::entry::{Entries, Entry, EntryKey, Kind};
use crate::event::{Event, Events};
use crate::health::Status;
use crate::intention::{Action, Changes, Expected, Intention, Intentions, Pair};
use crate::kv::{self, Kv};
use crate::name::{
    CheckId, Datacenter, InstanceId, Key, NodeName, PeerName, ServiceName, SessionId,
};
use crate::operation::{Autopilot, INTENTIONS_LEVEL, Operation};
use crate::peering::{Import, PeerState, PeerUpdate, Peering, PeeringTouched, Peerings, Remote};
use crate::query::{PreparedQuery, QUERIES_MAX, Queries};
use crate::revocation::{REVOCATIONS_MAX, Revocation, Revocations, Subject};
use crate::session::{Session, Sessions};
use crate::spiffe::TrustDomain;
use crate::txn::{Failure, Found, Op, Recent};

pub use self::fit::Fits;
use self::fit::whose;
pub use self::restore::{AuthorityChoice, RestorePart, Staged};

/// What never changes about a cluster once it is born.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cluster {
    /// The cluster's UUID.
    pub id: Arc<str>,
    /// `<id>.consul`
    pub trust_domain: TrustDomain,
    /// The cluster's datacenter.
    pub datacenter: Datacenter,
    /// What holds where no intention does.
    pub default_action: Action,
}

/// What reconciles one node's rows with what its agent declares, in one log entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeChanges {
    /// The node as it is now.
    pub node: Node,
    /// Instances to store.
    pub put_instances: Vec<Instance>,
    /// Checks to store.
    pub put_checks: Vec<Check>,
    /// Instances to remove, with their checks.
    pub drop_instances: Vec<InstanceId>,
    /// Checks to remove.
    pub drop_checks: Vec<CheckId>,
}

impl NodeChanges {
    /// Checks how long all is that they store.
    ///
    /// # Errors
    /// [`TooLong`]
    pub fn check_bounds(&self) -> Result<(), TooLong> {
        self.node.check_bounds()?;
        self.put_instances.iter().try_for_each(Instance::check_bounds)?;
        self.put_checks.iter().try_for_each(Check::check_bounds)
    }

    /// Whether it speaks of the node's own row alone.
    pub fn is_of_node_alone(&self) -> bool {
        self.put_instances.is_empty()
            && self.put_checks.is_empty()
            && self.drop_instances.is_empty()
            && self.drop_checks.is_empty()
    }
}

/// A right to join once, under one name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JoinToken {
    /// SHA-256 of the secret; the secret itself is never stored.
    pub hash: [u8; 32],
    /// The node name that it is bound to.
    pub node: NodeName,
    /// The moment from which it is worthless.
    pub expires_at: UnixTime,
    /// SHA-256 of the public key that it was used for: until it expires, whoever holds that key
    /// may use it again, for the reply may have been lost. None: it was not used.
    pub used_by: Option<[u8; 32]>,
}

/// One change that the servers agree on. Clock, randomness and signatures are taken before it is
/// proposed and travel inside it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// Names the cluster: the first entry of a new one.
    Found(Cluster),
    /// Reconciles one node.
    SyncNode(NodeChanges),
    /// Removes a node with all that stands on it.
    DropNode(NodeName),
    /// Records which nodes' agents died and which came back.
    SetLiveness {
        /// Nodes whose lease ran out.
        dead: Vec<NodeName>,
        /// Nodes heard of again.
        alive: Vec<NodeName>,
    },
    /// Stores an intention.
    PutIntention(Intention),
    /// Removes an intention.
    DropIntention(Pair),
    /// Changes intentions together.
    ChangeIntentions {
        /// What becomes of them.
        changes: Changes,
        /// What they were found to fit to: see [`State::fit`].
        fits: Option<Fits>,
    },
    /// Stores a config entry; with `expected`, only while that is its `ModifyIndex` (0: absent).
    PutEntry {
        /// The entry.
        entry: Entry,
        /// The index it must have.
        expected: Option<Index>,
        /// What it was found to fit to: see [`State::fit`].
        fits: Option<Fits>,
    },
    /// Removes a config entry; with `expected`, only while that is its `ModifyIndex`.
    DropEntry {
        /// Which.
        key: EntryKey,
        /// The index it must have.
        expected: Option<Index>,
        /// What its absence was found to fit to: see [`State::fit`].
        fits: Option<Fits>,
    },
    /// Stores the authority, while `expected` is the index of the one it replaces (0: none).
    SetAuthority {
        /// The authority; its `index` fields are set by `apply`.
        authority: Authority,
        /// The index of what it replaces.
        expected: Index,
    },
    /// Revokes an identity, or says anew why.
    Revoke(Revocation),
    /// Undoes a revocation.
    Reinstate(Subject),
    /// Sets autopilot's rules; with `expected`, only while that is their `ModifyIndex`.
    SetAutopilot {
        /// The rules.
        rules: Autopilot,
        /// The index they must have.
        expected: Option<Index>,
    },
    /// Notes that every server has reached this level.
    SetLevel(u32),
    /// Stores a join token.
    PutJoinToken(JoinToken),
    /// Uses up a join token, for `node`.
    UseJoinToken {
        /// SHA-256 of the secret that was shown.
        hash: [u8; 32],
        /// Who showed it.
        node: NodeName,
        /// SHA-256 of the public key that is to be certified; none from a release that did not
        /// say, and then the token is good no more.
        key: Option<[u8; 32]>,
    },
    /// Changes access control.
    Acl(acl::Change),
    /// Stores a peering: a token was given out, or one was taken up. One that exists under its
    /// name keeps who the peer is, unless the peering brings that.
    PutPeering(Peering),
    /// Removes a peering, with what the peer exports.
    DropPeering(PeerName),
    /// Takes up an invitation: whoever shows the secret is the peer from now on.
    AcceptPeering {
        /// SHA-256 of the secret that was shown.
        invitation: [u8; 32],
        /// Who showed it.
        remote: Remote,
    },
    /// Records how a peering stands.
    SetPeerState {
        /// Which.
        name: PeerName,
        /// Its id here, so that a peering that was made anew is not meant.
        id: Arc<str>,
        /// How it stands.
        state: PeerState,
    },
    /// Records what a peer said of itself and of its services.
    SyncPeer(PeerUpdate),
    /// Changes the key-value store.
    Kv(kv::Change),
    /// Makes a session.
    CreateSession(Session),
    /// Ends a session.
    EndSession(SessionId),
    /// Does several things, or none of them.
    Txn(Vec<Op>),
    /// Tells watchers that something happened.
    FireEvent(Event),
    /// Brings a part of a snapshot that is to be restored.
    Stage(RestorePart),
    /// Puts a snapshot whose parts have all come into the place of everything.
    Restore {
        /// Which restoration.
        id: Arc<str>,
        /// How many parts there are.
        parts: u32,
        /// Whose authority goes on.
        choice: AuthorityChoice,
    },
    /// Stores a prepared query, over one of its id.
    PutQuery(PreparedQuery),
    /// Removes a prepared query.
    DropQuery(Arc<str>),
}

/// What a change woke: each names the readers whose answer may differ now.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Topic {
    /// Readers of one service's instances and health.
    Service(ServiceName),
    /// Readers of one node's rows.
    Node(NodeName),
    /// Readers of the list of nodes.
    Nodes,
    /// Readers of the list of services and their tags.
    Names,
    /// Readers of checks across services.
    Checks,
    /// Readers of intentions.
    Intentions,
    /// Readers of config entries.
    Entries,
    /// Readers of one service's chain.
    Chain(ServiceName),
    /// Readers of any chain: a default for all services changed.
    EveryChain,
    /// Readers of roots and of revocations.
    Authority,
    /// Readers of tokens, policies and roles.
    Acl,
    /// Readers of peerings: who the peers are and how they stand.
    Peers,
    /// Readers of what peers export under one name.
    Import(ServiceName),
    /// Readers of all that peers export.
    Imports,
    /// Readers of what is exported to peers.
    Exports,
    /// Readers of one key.
    Key(Key),
    /// Readers of keys that begin with something in this folder: all up to the last slash.
    Folder(Arc<str>),
    /// Readers of sessions.
    Sessions,
    /// Readers of user events.
    Events,
    /// Readers of how the servers run themselves.
    Operation,
    /// Every reader of anything: a snapshot was restored.
    Everything,
    /// Readers of prepared queries.
    Queries,
}

/// A command that the state refuses: an outcome like any other, replicated too.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// The cluster has a name already.
    #[error("the cluster was founded before")]
    AlreadyFounded,
    /// No such node.
    #[error("there is no node {node}")]
    UnknownNode {
        /// Who is missing.
        node: NodeName,
    },
    /// Another living host has the name.
    #[error(
        "node name {node} belongs to a living host with another id: choose another name, or \
             stop that host and wait for its lease to run out"
    )]
    NodeNameTaken {
        /// The name.
        node: NodeName,
    },
    /// A check is about an instance that its node does not have.
    #[error("check {check}: there is no instance {instance} on node {node}")]
    UnknownInstance {
        /// The node.
        node: NodeName,
        /// The check.
        check: CheckId,
        /// The instance that is missing.
        instance: InstanceId,
    },
    /// Another prepared query has the name.
    #[error("name {name:?} aliases an existing query name: choose another")]
    QueryNameTaken {
        /// The name.
        name: Arc<str>,
    },
    /// No such intention.
    #[error("there is no intention {pair}")]
    UnknownIntention {
        /// The pair.
        pair: Pair,
    },
    /// Somebody else wrote first.
    #[error("it was changed meanwhile: its index is {actual}, not {expected}")]
    IndexMismatch {
        /// What the writer had seen.
        expected: Index,
        /// What it is.
        actual: Index,
    },
    /// Unknown, used before, run out or bound to another name: deliberately not said which.
    #[error(
        "the join token is not valid for node {node}: it may be used once, within its \
             lifetime, by the node that it was made for"
    )]
    JoinToken {
        /// Who showed it.
        node: NodeName,
    },
    /// Unknown, or used by another cluster before.
    #[error(
        "the peering token is not valid: it may be used by one cluster only, and only the last \
             one made for a peer counts"
    )]
    PeeringToken,
    /// No such peering, or another one by now.
    #[error("there is no such peering with {name}")]
    UnknownPeering {
        /// The name.
        name: PeerName,
    },
    /// The cluster is a peer already, or is this very one.
    #[error("{name} is the cluster of {trust_domain}, which cannot be peered with: {why}")]
    PeerTaken {
        /// The name that was to be given.
        name: PeerName,
        /// Whose cluster it is.
        trust_domain: TrustDomain,
        /// Why not.
        why: PeerConflict,
    },
    /// Another session holds the lock, or held it until just now.
    #[error("key {key} is locked by another session, or was until just now")]
    Locked {
        /// The key.
        key: Key,
    },
    /// A lock cannot be given up by who does not hold it.
    #[error("key {key} is not locked by this session")]
    NotHolder {
        /// The key.
        key: Key,
    },
    /// No such session.
    #[error("invalid session {:?}", session.as_str())]
    UnknownSession {
        /// Which.
        session: SessionId,
    },
    /// A session is to end with a check that its node does not have.
    #[error("Missing check '{check}' registration")]
    UnknownCheck {
        /// The check.
        check: CheckId,
    },
    /// A session is to end with a check that is critical.
    #[error("Check '{check}' is in critical state")]
    CriticalCheck {
        /// The check.
        check: CheckId,
    },
    /// A transaction did not happen.
    #[error("the transaction did not happen: {}", why(.failures))]
    Txn {
        /// Which operations could not, and why.
        failures: Vec<Failure>,
    },
    /// No such revocation.
    #[error("{subject} is not revoked")]
    NotRevoked {
        /// What is not.
        subject: Subject,
    },
    /// Parts of a snapshot did not come, or another restoration was begun.
    #[error("the parts of the snapshot did not all arrive: restore it again")]
    NotStaged,
    /// A table is at its bound.
    #[error("there are {max} {what} already, which is the most: remove some first")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// The config entries would not fit together any more.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// An intention asks for what config entries do not have.
    #[error("service-intentions/{}, source {}: {field}: {why}", pair.destination, whose(pair))]
    IntentionMisfit {
        /// The intention.
        pair: Pair,
        /// Its field.
        field: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Another config entry was written after this one was found to fit: it is to be checked anew.
    #[error("config entries were changed meanwhile: their index is {actual}, not {checked}")]
    EntriesChanged {
        /// The index that the entry was checked at.
        checked: Index,
        /// What it is.
        actual: Index,
    },
    /// Access control refuses a change of itself.
    #[error(transparent)]
    Acl(#[from] acl::Refusal),
}

/// Why a cluster cannot become a peer under a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PeerConflict {
    /// It is the cluster itself.
    #[error("it is this cluster")]
    Own,
    /// It is one under another name.
    #[error("it is a peer under another name: delete that peering first")]
    OtherName,
    /// The name is another cluster's.
    #[error("the name is another cluster's: delete that peering first, or choose another name")]
    OtherCluster,
}

impl Command {
    /// The level that a cluster must have reached for it: see [`crate::operation::LEVEL`].
    pub fn level(&self) -> u32 {
        match self {
            Self::SetAutopilot { .. } | Self::SetLevel(_) => 1,
            Self::ChangeIntentions { .. } => INTENTIONS_LEVEL,
            Self::Acl(change) => change.level(),
            Self::PutEntry { entry, .. } => entry.body().level(),
            _ => 0,
        }
    }

    /// The same, to count only while what it was checked against is as it was.
    pub fn fitting(mut self, checked: Fits) -> Self {
        if let Self::PutEntry { fits, .. }
        | Self::DropEntry { fits, .. }
        | Self::ChangeIntentions { fits, .. } = &mut self
        {
            *fits = Some(checked);
        }
        self
    }
}

/// All that the servers agree on, as of one entry of the log.
#[derive(Clone, Debug, Default)]
pub struct State {
    applied: Index,
    cluster: Option<Cluster>,
    catalog: Catalog,
    down_since: RedBlackTreeMapSync<NodeName, UnixTime>,
    intentions: Intentions,
    entries: Entries,
    authority: Option<Authority>,
    revocations: Revocations,
    join_tokens: RedBlackTreeMapSync<[u8; 32], JoinToken>,
    acl: acl::Tables,
    peerings: Peerings,
    kv: Kv,
    sessions: Sessions,
    recent: Recent,
    events: Events,
    operation: Operation,
    staged: Option<Staged>,
    queries: Queries,
}

impl State {
    /// The last entry that was applied.
    pub fn applied(&self) -> Index {
        self.applied
    }

    /// The cluster, once it is founded.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// Nodes, instances and checks.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Who may call whom.
    pub fn intentions(&self) -> &Intentions {
        &self.intentions
    }

    /// Config entries.
    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// The certificate authority, once there is one.
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// Identities that nobody believes any more.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Tokens, policies and roles.
    pub fn acl(&self) -> &acl::Tables {
        &self.acl
    }

    /// The clusters that this one is peered with, and what they export.
    pub fn peerings(&self) -> &Peerings {
        &self.peerings
    }

    /// The key-value store.
    pub fn kv(&self) -> &Kv {
        &self.kv
    }

    /// The sessions.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// The latest user events.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// How the servers run themselves.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// Gives servers up for lost: for a recovery from a lost quorum, which has no log to go
    /// through, and for nothing else.
    pub fn give_up(&mut self, servers: impl IntoIterator<Item = u64>) {
        self.operation.give_up(servers);
    }

    /// The prepared queries.
    pub fn queries(&self) -> &Queries {
        &self.queries
    }

    /// What the transaction that was applied at `index` found; none once it is long ago.
    pub fn found_at(&self, index: Index) -> Option<&Arc<Vec<Found>>> {
        self.recent.get(index)
    }

    /// Since when each dead node is dead.
    pub fn down_since(&self) -> impl Iterator<Item = (&NodeName, UnixTime)> {
        self.down_since.iter().map(|(node, since)| (node, *since))
    }

    /// Applies one committed entry and names the topics whose watchers must wake.
    ///
    /// Equal states given equal entries end equal, on every server: `stamp` is the only clock
    /// here.
    ///
    /// # Errors
    /// A [`Rejection`]: an outcome like any other, and the entry still counts as applied.
    pub fn apply(&mut self, stamp: Stamp, command: Command) -> Result<Vec<Topic>, Rejection> {
        debug_assert!(stamp.index > self.applied, "the log only moves forward");
        self.applied = stamp.index;
        let mut topics = self.apply_one(stamp, command)?;
        self.end_sessions_of(&mut topics, stamp);
        Ok(topics)
    }

    fn apply_one(&mut self, stamp: Stamp, command: Command) -> Result<Vec<Topic>, Rejection> {
        let at = stamp.index;
        match command {
            Command::Found(cluster) => self.found(cluster),
            Command::SyncNode(changes) => self.sync_node(changes, stamp),
            Command::DropNode(node) => self.drop_node(&node, at),
            Command::SetLiveness { dead, alive } => Ok(self.set_liveness(&dead, &alive, stamp)),
            Command::PutIntention(intention) => self.put_intention(intention, at),
            Command::DropIntention(pair) => self.drop_intention(pair, at),
            Command::ChangeIntentions { changes, fits } => {
                self.change_intentions(changes, fits, at)
            }
            Command::PutEntry { entry, expected, fits } => {
                self.expect_fit(fits)?;
                self.put_entry(entry, expected, at)
            }
            Command::DropEntry { key, expected, fits } => self.drop_entry(&key, expected, fits, at),
            Command::SetAuthority { authority, expected } => {
                self.set_authority(authority, expected, at)
            }
            Command::Revoke(revocation) => self.revoke(revocation, stamp),
            Command::Reinstate(subject) => self.reinstate(subject, at),
            Command::SetAutopilot { rules, expected } => self.set_autopilot(rules, expected, at),
            Command::SetLevel(level) => {
                self.operation.raise(level);
                Ok(vec![Topic::Operation])
            }
            Command::PutJoinToken(token) => self.put_join_token(token, stamp.time),
            Command::UseJoinToken { hash, node, key } => {
                self.use_join_token(&hash, node, key, stamp.time)
            }
            Command::Acl(change) => {
                self.acl.apply(change, at)?;
                Ok(vec![Topic::Acl])
            }
            Command::PutPeering(peering) => self.put_peering(peering, at),
            Command::DropPeering(name) => self.drop_peering(name, at),
            Command::AcceptPeering { invitation, remote } => {
                self.accept_peering(invitation, remote, at)
            }
            Command::SetPeerState { name, id, state } => self.set_peer_state(&name, &id, state, at),
            Command::SyncPeer(update) => self.sync_peer(update, at),
            Command::Kv(change) => self.change_key(change, stamp),
            Command::CreateSession(session) => self.create_session(session, at),
            Command::EndSession(id) => Ok(self.end_session(&id, stamp)),
            Command::Txn(ops) => self.txn(ops, stamp),
            Command::FireEvent(event) => {
                self.events.fire(event, at);
                Ok(vec![Topic::Events])
            }
            Command::Stage(part) => self.stage(part),
            Command::Restore { id, parts, choice } => {
                self.restore_staged(&id, parts, choice, stamp)
            }
            Command::PutQuery(query) => self.put_query(query, at),
            Command::DropQuery(id) => Ok(self.drop_query(&id, at)),
        }
    }

    /// Counts an entry that carries no command: a membership change, or a leader's first.
    pub fn skip(&mut self, index: Index) {
        self.applied = index;
    }

    fn put_query(&mut self, query: PreparedQuery, at: Index) -> Result<Vec<Topic>, Rejection> {
        if let Some(session) = &query.session
            && self.sessions.get(session).is_none()
        {
            return Err(Rejection::UnknownSession { session: session.clone() });
        }
        let other = self.queries.named(&query.name, query.is_template());
        if other.is_some_and(|other| other.value.id != query.id) {
            return Err(Rejection::QueryNameTaken { name: query.name });
        }
        if self.queries.get(&query.id).is_none() && self.queries.count() >= QUERIES_MAX {
            return Err(Rejection::Full { what: "prepared queries", max: QUERIES_MAX });
        }
        self.queries.put(query, at);
        Ok(vec![Topic::Queries])
    }

    fn drop_query(&mut self, id: &str, at: Index) -> Vec<Topic> {
        let was_there = self.queries.remove(id, at);
        was_there.then_some(Topic::Queries).into_iter().collect()
    }

    fn found(&mut self, cluster: Cluster) -> Result<Vec<Topic>, Rejection> {
        if self.cluster.is_some() {
            return Err(Rejection::AlreadyFounded);
        }
        self.cluster = Some(cluster);
        Ok(vec![Topic::Authority])
    }

    fn sync_node(&mut self, changes: NodeChanges, stamp: Stamp) -> Result<Vec<Topic>, Rejection> {
        self.admit(&changes)?;
        let NodeChanges { node, put_instances, put_checks, drop_instances, drop_checks } = changes;
        let (name, at) = (node.name.clone(), stamp.index);
        let mut touched = Touched::default();
        let is_new = self.catalog.node(&name).is_none();
        let is_external = node.is_external();
        self.catalog.put_node(node, at, &mut touched);
        for id in drop_checks {
            self.catalog.drop_check(&name, &id, at, &mut touched);
        }
        for id in drop_instances {
            self.catalog.drop_instance(&name, &id, at, &mut touched);
        }
        for instance in put_instances {
            self.catalog.put_instance(&name, instance, at, &mut touched);
        }
        for check in put_checks {
            self.catalog.put_check(&name, check, at, &mut touched);
        }
        let mut topics = topics(&touched);
        // One that is there and dead comes back when its agent is heard of, and by nothing else.
        if !is_external && is_new {
            topics.extend(self.set_liveness(&[], std::slice::from_ref(&name), stamp));
            topics.push(Topic::Nodes);
        }
        Ok(topics)
    }

    /// Whether a node's changes may be applied, before any of them is.
    fn admit(&self, changes: &NodeChanges) -> Result<(), Rejection> {
        let name = &changes.node.name;
        let known = self.catalog.node(name);
        if known.is_none() && self.catalog.node_count() >= NODES_MAX {
            return Err(Rejection::Full { what: "nodes", max: NODES_MAX });
        }
        if known.is_some_and(|row| row.value.id != changes.node.id) && !self.catalog.is_down(name) {
            return Err(Rejection::NodeNameTaken { node: name.clone() });
        }
        let mut instances: BTreeSet<InstanceId> =
            self.catalog.instances_on(name).map(|row| row.value.id.clone()).collect();
        for id in &changes.drop_instances {
            instances.remove(id);
        }
        instances.extend(changes.put_instances.iter().map(|instance| instance.id.clone()));
        if instances.len() > INSTANCES_PER_NODE_MAX {
            return Err(Rejection::Full {
                what: "instances on this node",
                max: INSTANCES_PER_NODE_MAX,
            });
        }
        // Its liveness is nothing that it says.
        let liveness = liveness_id();
        let held = self.catalog.checks_on(name).map(|row| &row.value.id);
        let mut checks: BTreeSet<&CheckId> =
            held.filter(|id| liveness.as_ref() != Some(*id)).collect();
        for id in &changes.drop_checks {
            checks.remove(id);
        }
        checks.extend(changes.put_checks.iter().map(|check| &check.id));
        if checks.len() > CHECKS_PER_NODE_MAX {
            return Err(Rejection::Full { what: "checks on this node", max: CHECKS_PER_NODE_MAX });
        }
        for check in &changes.put_checks {
            if let Some(instance) = &check.instance
                && !instances.contains(instance)
            {
                let (node, check) = (name.clone(), check.id.clone());
                return Err(Rejection::UnknownInstance { node, check, instance: instance.clone() });
            }
        }
        Ok(())
    }

    fn drop_node(&mut self, node: &NodeName, at: Index) -> Result<Vec<Topic>, Rejection> {
        if self.catalog.node(node).is_none() {
            return Err(Rejection::UnknownNode { node: node.clone() });
        }
        let mut touched = Touched::default();
        self.catalog.drop_node(node, at, &mut touched);
        self.down_since.remove_mut(node);
        let mut topics = topics(&touched);
        topics.push(Topic::Nodes);
        Ok(topics)
    }

    fn set_liveness(&mut self, dead: &[NodeName], alive: &[NodeName], stamp: Stamp) -> Vec<Topic> {
        let mut touched = Touched::default();
        let marks = dead
            .iter()
            .map(|node| (node, Status::Critical))
            .chain(alive.iter().map(|node| (node, Status::Passing)));
        for (node, status) in marks {
            let (Some(id), Some(_)) = (liveness_id(), self.catalog.node(node)) else { continue };
            match status {
                Status::Critical => {
                    if !self.down_since.contains_key(node) {
                        self.down_since.insert_mut(node.clone(), stamp.time);
                    }
                }
                Status::Passing | Status::Warning => {
                    self.down_since.remove_mut(node);
                }
            }
            let output = match status {
                Status::Critical => "Agent not live or unreachable",
                Status::Passing | Status::Warning => "Agent alive and reachable",
            };
            let check = Check {
                id,
                name: "Serf Health Status".into(),
                kind: "".into(),
                status,
                notes: "".into(),
                output: output.into(),
                instance: None,
                run: Default::default(),
            };
            self.catalog.put_check(node, check, stamp.index, &mut touched);
        }
        topics(&touched)
    }

    fn put_intention(&mut self, intention: Intention, at: Index) -> Result<Vec<Topic>, Rejection> {
        let is_new = self.intentions.get(&intention.pair).is_none();
        if is_new && self.intentions.iter().count() >= INTENTIONS_MAX {
            return Err(Rejection::Full { what: "intentions", max: INTENTIONS_MAX });
        }
        self.intentions.put(intention, at);
        Ok(vec![Topic::Intentions])
    }

    fn drop_intention(&mut self, pair: Pair, at: Index) -> Result<Vec<Topic>, Rejection> {
        match self.intentions.remove(&pair, at) {
            true => Ok(vec![Topic::Intentions]),
            false => Err(Rejection::UnknownIntention { pair }),
        }
    }

    fn change_intentions(
        &mut self,
        changes: Changes,
        fits: Option<Fits>,
        at: Index,
    ) -> Result<Vec<Topic>, Rejection> {
        self.expect_fit(fits)?;
        self.expect_intentions(&changes)?;
        let is_new = |intention: &&Intention| self.intentions.get(&intention.pair).is_none();
        let added = changes.put.iter().filter(is_new).count();
        if added > 0 && self.intentions.iter().count() + added > INTENTIONS_MAX {
            return Err(Rejection::Full { what: "intentions", max: INTENTIONS_MAX });
        }
        let is_changed = self.intentions.change(changes, at);
        Ok(is_changed.then_some(Topic::Intentions).into_iter().collect())
    }

    fn expect_intentions(&self, changes: &Changes) -> Result<(), Rejection> {
        let Some(known) = &changes.expected else { return Ok(()) };
        let (Expected::Callee(_, expected) | Expected::Pair(_, expected)) = *known;
        match self.intentions.index_of(known) {
            actual if actual == expected => Ok(()),
            actual => Err(Rejection::IndexMismatch { expected, actual }),
        }
    }

    fn put_entry(
        &mut self,
        entry: Entry,
        expected: Option<Index>,
        at: Index,
    ) -> Result<Vec<Topic>, Rejection> {
        self.expect_entry(entry.key(), expected)?;
        let key = entry.key().clone();
        if self.entries.get(&key).is_none() && self.entries.iter().count() >= ENTRIES_MAX {
            return Err(Rejection::Full { what: "config entries", max: ENTRIES_MAX });
        }
        if !self.entries.put(entry, at) {
            return Ok(Vec::new());
        }
        Ok(entry_topics(&key))
    }

    fn drop_entry(
        &mut self,
        key: &EntryKey,
        expected: Option<Index>,
        fits: Option<Fits>,
        at: Index,
    ) -> Result<Vec<Topic>, Rejection> {
        self.expect_fit(fits)?;
        self.expect_entry(key, expected)?;
        if !self.entries.remove(key, at) {
            return Ok(Vec::new());
        }
        Ok(entry_topics(key))
    }

    fn expect_entry(&self, key: &EntryKey, expected: Option<Index>) -> Result<(), Rejection> {
        let actual = self.entries.get(key).map_or(Index(0), |row| row.modified);
        match expected {
            Some(expected) if expected != actual => {
                Err(Rejection::IndexMismatch { expected, actual })
            }
            _ => Ok(()),
        }
    }

    fn set_authority(
        &mut self,
        mut authority: Authority,
        expected: Index,
        at: Index,
    ) -> Result<Vec<Topic>, Rejection> {
        let actual = self.authority.as_ref().map_or(Index(0), |old| old.index);
        if actual != expected {
            return Err(Rejection::IndexMismatch { expected, actual });
        }
        let old = self.authority.take();
        authority.created = old.as_ref().map_or(at, |old| old.created);
        let old_roots = old.map(|old| old.roots).unwrap_or_default();
        authority.index = at;
        for root in &mut authority.roots {
            let old = old_roots.iter().find(|old| old.id == root.id);
            root.created = old.map_or(at, |old| old.created);
            root.modified = match old {
                Some(old) if old.active == root.active => old.modified,
                _ => at,
            };
        }
        self.authority = Some(authority);
        Ok(vec![Topic::Authority])
    }

    fn revoke(&mut self, revocation: Revocation, stamp: Stamp) -> Result<Vec<Topic>, Rejection> {
        let full = |_| Rejection::Full { what: "revocations", max: REVOCATIONS_MAX };
        self.revocations.put(revocation, stamp).map_err(full)?;
        Ok(vec![Topic::Authority])
    }

    fn reinstate(&mut self, subject: Subject, at: Index) -> Result<Vec<Topic>, Rejection> {
        match self.revocations.remove(&subject, at) {
            true => Ok(vec![Topic::Authority]),
            false => Err(Rejection::NotRevoked { subject }),
        }
    }

    fn set_autopilot(
        &mut self,
        rules: Autopilot,
        expected: Option<Index>,
        at: Index,
    ) -> Result<Vec<Topic>, Rejection> {
        let actual = self.operation.autopilot().modified;
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(Rejection::IndexMismatch { expected, actual });
        }
        self.operation.set_autopilot(rules, at);
        Ok(vec![Topic::Operation])
    }

    fn put_join_token(&mut self, token: JoinToken, now: UnixTime) -> Result<Vec<Topic>, Rejection> {
        let lapsed: Vec<[u8; 32]> = self
            .join_tokens
            .values()
            .filter(|token| token.expires_at <= now)
            .map(|token| token.hash)
            .collect();
        for hash in lapsed {
            self.join_tokens.remove_mut(&hash);
        }
        if self.join_tokens.size() >= JOIN_TOKENS_MAX {
            // One that was used has done what it was made for.
            let used = self.join_tokens.values().find(|token| token.used_by.is_some());
            if let Some(hash) = used.map(|token| token.hash) {
                self.join_tokens.remove_mut(&hash);
            }
        }
        if self.join_tokens.size() >= JOIN_TOKENS_MAX {
            return Err(Rejection::Full { what: "unused join tokens", max: JOIN_TOKENS_MAX });
        }
        self.join_tokens.insert_mut(token.hash, token);
        Ok(Vec::new())
    }

    fn use_join_token(
        &mut self,
        hash: &[u8; 32],
        node: NodeName,
        key: Option<[u8; 32]>,
        now: UnixTime,
    ) -> Result<Vec<Topic>, Rejection> {
        let is_free = |token: &&JoinToken| token.used_by.is_none() || token.used_by == key;
        let good = |token: &&JoinToken| token.node == node && token.expires_at > now;
        let Some(token) = self.join_tokens.get(hash).filter(good).filter(is_free).cloned() else {
            return Err(Rejection::JoinToken { node });
        };
        match key {
            Some(_) => self.join_tokens.insert_mut(*hash, JoinToken { used_by: key, ..token }),
            None => {
                self.join_tokens.remove_mut(hash);
            }
        }
        Ok(Vec::new())
    }

    fn put_peering(&mut self, mut peering: Peering, at: Index) -> Result<Vec<Topic>, Rejection> {
        let old = self.peerings.get(&peering.name).map(|row| row.value.clone());
        if old.is_none() && self.peerings.iter().count() >= PEERINGS_MAX {
            return Err(Rejection::Full { what: "peerings", max: PEERINGS_MAX });
        }
        if let Some(remote) = &peering.remote {
            self.admit_peer(&peering.name, remote)?;
        }
        if let Some(old) = old {
            peering.id = old.id.clone();
            if peering.remote.is_none()
                && old.remote.is_some()
                && old.state != PeerState::Terminated
            {
                peering.state = old.state;
                peering.remote.clone_from(&old.remote);
            }
        }
        let mut touched = PeeringTouched::default();
        self.peerings.put(peering, at, &mut touched);
        Ok(peering_topics(touched))
    }

    /// Whether the cluster of `remote` may be the peer called `name`.
    fn admit_peer(&self, name: &PeerName, remote: &Remote) -> Result<(), Rejection> {
        let taken = |why| Rejection::PeerTaken {
            name: name.clone(),
            trust_domain: remote.trust_domain.clone(),
            why,
        };
        if self.cluster.as_ref().is_some_and(|own| own.trust_domain == remote.trust_domain) {
            return Err(taken(PeerConflict::Own));
        }
        if self.peerings.with(&remote.trust_domain).is_some_and(|row| row.value.name != *name) {
            return Err(taken(PeerConflict::OtherName));
        }
        let is_other = |held: &Remote| held.trust_domain != remote.trust_domain;
        let held = self.peerings.get(name).and_then(|row| row.value.remote.as_ref());
        if held.is_some_and(is_other) {
            return Err(taken(PeerConflict::OtherCluster));
        }
        Ok(())
    }

    fn drop_peering(&mut self, name: PeerName, at: Index) -> Result<Vec<Topic>, Rejection> {
        if self.peerings.get(&name).is_none() {
            return Err(Rejection::UnknownPeering { name });
        }
        let mut touched = PeeringTouched::default();
        self.peerings.remove(&name, at, &mut touched);
        Ok(peering_topics(touched))
    }

    fn accept_peering(
        &mut self,
        invitation: [u8; 32],
        remote: Remote,
        at: Index,
    ) -> Result<Vec<Topic>, Rejection> {
        let invited = |row: &&Row<Peering>| row.value.invitation == Some(invitation);
        let row = self.peerings.iter().find(invited).ok_or(Rejection::PeeringToken)?;
        let peering = Peering::clone(&row.value);
        // The reply may have been lost, so the same cluster may show it again; another may not.
        // Nothing is taken of what it says then: who only has the token proves nothing by it.
        if let Some(held) = &peering.remote {
            let who = |remote: &Remote| {
                (
                    remote.trust_domain.clone(),
                    remote.datacenter.clone(),
                    remote.server_roots.clone(),
                )
            };
            let is_same = peering.state != PeerState::Terminated && who(held) == who(&remote);
            return if is_same { Ok(Vec::new()) } else { Err(Rejection::PeeringToken) };
        }
        self.admit_peer(&peering.name, &remote)?;
        let state = PeerState::Establishing;
        let mut touched = PeeringTouched::default();
        self.peerings.put(Peering { state, remote: Some(remote), ..peering }, at, &mut touched);
        Ok(peering_topics(touched))
    }

    /// The peering called `name`, if it is still the one with `id`.
    fn peering(&self, name: &PeerName, id: &str) -> Result<Peering, Rejection> {
        let row = self.peerings.get(name).filter(|row| *row.value.id == *id);
        let row = row.ok_or_else(|| Rejection::UnknownPeering { name: name.clone() })?;
        Ok(Peering::clone(&row.value))
    }

    fn set_peer_state(
        &mut self,
        name: &PeerName,
        id: &str,
        state: PeerState,
        at: Index,
    ) -> Result<Vec<Topic>, Rejection> {
        let peering = self.peering(name, id)?;
        if peering.state == PeerState::Terminated {
            return Ok(Vec::new());
        }
        let mut touched = PeeringTouched::default();
        self.peerings.put(Peering { state, ..peering }, at, &mut touched);
        Ok(peering_topics(touched))
    }

    fn sync_peer(&mut self, update: PeerUpdate, at: Index) -> Result<Vec<Topic>, Rejection> {
        let PeerUpdate { name, id, remote, is_snapshot, put, drop } = update;
        let peering = self.peering(&name, &id)?;
        if peering.state == PeerState::Terminated {
            return Err(Rejection::UnknownPeering { name });
        }
        if let Some(remote) = &remote {
            self.admit_peer(&name, remote)?;
        }
        let mut gone: BTreeSet<ServiceName> = drop.into_iter().collect();
        if is_snapshot {
            let stays =
                |service: &&ServiceName| put.iter().any(|import| import.service == **service);
            let held = self.peerings.imported_from(&name);
            gone.extend(held.filter(|service| !stays(service)).cloned());
        }
        let stays = |service: &ServiceName| {
            !gone.contains(service) && !put.iter().any(|import| import.service == *service)
        };
        let held = self.peerings.imports();
        let kept = held.filter(|(peer, row)| **peer == name && stays(&row.value.service));
        let (services, instances) = kept
            .map(|(_, row)| row.value.endpoints.len())
            .chain(put.iter().map(|import| import.endpoints.len()))
            .fold((0, 0), |(services, sum), instances| (services + 1, sum + instances));
        if services > IMPORTS_PER_PEER_MAX {
            return Err(Rejection::Full { what: "imported services", max: IMPORTS_PER_PEER_MAX });
        }
        if instances > IMPORTED_INSTANCES_PER_PEER_MAX {
            let max = IMPORTED_INSTANCES_PER_PEER_MAX;
            return Err(Rejection::Full { what: "imported instances", max });
        }
        let mut touched = PeeringTouched::default();
        for service in gone {
            self.peerings.drop_import(&name, &service, at, &mut touched);
        }
        for import in put {
            self.peerings.put_import(&name, import, at, &mut touched);
        }
        if remote.is_some() {
            self.peerings.put(Peering { remote, ..peering }, at, &mut touched);
        }
        Ok(peering_topics(touched))
    }

    /// Every row and index: what a snapshot holds.
    pub fn dump(&self) -> Dump {
        Dump {
            applied: self.applied,
            cluster: self.cluster.clone(),
            nodes: self.catalog.nodes().cloned().collect(),
            instances: self
                .catalog
                .instances()
                .map(|(node, row)| (node.clone(), row.clone()))
                .collect(),
            checks: self.catalog.checks().map(|(node, row)| (node.clone(), row.clone())).collect(),
            indexes: self.catalog.indexes(),
            down_since: self.down_since().map(|(node, since)| (node.clone(), since)).collect(),
            intentions: self.intentions.iter().cloned().collect(),
            intentions_index: self.intentions.index(),
            entries: self.entries.iter().cloned().collect(),
            entries_index: self.entries.index(),
            authority: self.authority.clone(),
            revocations: self.revocations.iter().cloned().collect(),
            revocations_index: self.revocations.index(),
            join_tokens: self.join_tokens.values().cloned().collect(),
            acl: self.acl.dump(),
            peerings: self.peerings.iter().cloned().collect(),
            peerings_index: self.peerings.index(),
            imports: self
                .peerings
                .imports()
                .map(|(peer, row)| (peer.clone(), row.clone()))
                .collect(),
            imports_index: self.peerings.imports_index(),
            kv: self.kv.dump(),
            sessions: self.sessions.iter().cloned().collect(),
            sessions_index: self.sessions.index(),
            events: self.events.iter().map(|(at, event)| (at, event.clone())).collect(),
            operation: self.operation.clone(),
            staged: self.staged.clone(),
            queries: self.queries.iter().cloned().collect(),
            queries_index: self.queries.index(),
        }
    }

    /// The state that `dump` was taken of.
    pub fn restore(dump: Dump) -> Self {
        let mut catalog = Catalog::default();
        for row in dump.nodes {
            catalog.restore_node(row);
        }
        for (node, row) in dump.instances {
            catalog.restore_instance(node, row);
        }
        for (node, row) in dump.checks {
            catalog.restore_check(node, row);
        }
        catalog.restore_indexes(&dump.indexes);
        Self {
            applied: dump.applied,
            cluster: dump.cluster,
            catalog,
            down_since: dump.down_since.into_iter().collect(),
            intentions: Intentions::restore(dump.intentions, dump.intentions_index),
            entries: Entries::restore(dump.entries, dump.entries_index),
            authority: dump.authority,
            revocations: Revocations::restore(dump.revocations, dump.revocations_index),
            join_tokens: dump.join_tokens.into_iter().map(|token| (token.hash, token)).collect(),
            acl: acl::Tables::restore(dump.acl),
            peerings: Peerings::restore(
                dump.peerings,
                dump.imports,
                dump.peerings_index,
                dump.imports_index,
            ),
            kv: Kv::restore(dump.kv),
            sessions: Sessions::restore(dump.sessions, dump.sessions_index),
            recent: Recent::default(),
            events: Events::restore(dump.events),
            operation: dump.operation,
            staged: dump.staged,
            queries: Queries::restore(dump.queries, dump.queries_index),
        }
    }
}

/// A state taken apart: what a snapshot holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Dump {
    /// The last entry applied.
    pub applied: Index,
    /// The cluster.
    pub cluster: Option<Cluster>,
    /// Nodes.
    pub nodes: Vec<Row<Node>>,
    /// Instances, each with its node.
    pub instances: Vec<(NodeName, Row<Instance>)>,
    /// Checks, each with its node.
    pub checks: Vec<(NodeName, Row<Check>)>,
    /// The catalog's log positions.
    pub indexes: Indexes,
    /// Since when dead nodes are dead.
    pub down_since: BTreeMap<NodeName, UnixTime>,
    /// Intentions.
    pub intentions: Vec<Row<Intention>>,
    /// The last entry that changed them.
    pub intentions_index: Index,
    /// Config entries.
    pub entries: Vec<Row<Entry>>,
    /// The last entry that changed them.
    pub entries_index: Index,
    /// The certificate authority.
    pub authority: Option<Authority>,
    /// Revocations.
    pub revocations: Vec<Row<Revocation>>,
    /// The last entry that changed them.
    pub revocations_index: Index,
    /// Join tokens that were not used yet.
    pub join_tokens: Vec<JoinToken>,
    /// Access control.
    pub acl: acl::Dump,
    /// Peerings.
    pub peerings: Vec<Row<Peering>>,
    /// The last entry that changed them.
    pub peerings_index: Index,
    /// What peers export, each with its peer.
    pub imports: Vec<(PeerName, Row<Import>)>,
    /// The last entry that changed them.
    pub imports_index: Index,
    /// The key-value store.
    pub kv: kv::Rows,
    /// Sessions.
    pub sessions: Vec<Row<Session>>,
    /// The last entry that made or ended one.
    pub sessions_index: Index,
    /// User events, each with the entry that fired it.
    pub events: Vec<(Index, Arc<Event>)>,
    /// How the servers run themselves.
    pub operation: Operation,
    /// The parts of a snapshot that is being restored.
    pub staged: Option<Staged>,
    /// Prepared queries.
    pub queries: Vec<Row<PreparedQuery>>,
    /// The last entry that changed any of them.
    pub queries_index: Index,
}

fn why(failures: &[Failure]) -> String {
    let texts: Vec<&str> = failures.iter().map(|failure| failure.why.as_str()).collect();
    texts.join("; ")
}

fn peering_topics(touched: PeeringTouched) -> Vec<Topic> {
    let mut topics: Vec<Topic> = Vec::new();
    if touched.peers {
        topics.push(Topic::Peers);
    }
    if !touched.imports.is_empty() {
        topics.push(Topic::Imports);
    }
    topics.extend(touched.imports.into_iter().map(Topic::Import));
    topics
}

fn topics(touched: &Touched) -> Vec<Topic> {
    let mut topics: Vec<Topic> = Vec::new();
    topics.extend(touched.services.iter().cloned().map(Topic::Service));
    topics.extend(touched.nodes.iter().cloned().map(Topic::Node));
    if touched.names {
        topics.push(Topic::Names);
    }
    if !touched.nodes.is_empty() || !touched.services.is_empty() {
        topics.push(Topic::Nodes);
        topics.push(Topic::Checks);
    }
    topics
}

fn entry_topics(key: &EntryKey) -> Vec<Topic> {
    let chain = || key.name.parse().map_or(Topic::EveryChain, Topic::Chain);
    let topic = match key.kind {
        Kind::ProxyDefaults | Kind::Mesh => Topic::EveryChain,
        // Providers go out with the intentions that name them.
        Kind::JwtProvider => Topic::Intentions,
        Kind::ServiceDefaults
        | Kind::ServiceResolver
        | Kind::ServiceSplitter
        | Kind::ServiceRouter => chain(),
        Kind::ExportedServices => Topic::Exports,
        Kind::RequestLimit => return vec![Topic::Entries],
    };
    vec![Topic::Entries, topic]
}

/// Bounds of the tables: far above what a cluster carries, far below what would stop it.
const NODES_MAX: usize = 100_000;
const INSTANCES_PER_NODE_MAX: usize = 1_024;
const CHECKS_PER_NODE_MAX: usize = 4_096;
const INTENTIONS_MAX: usize = 100_000;
const ENTRIES_MAX: usize = 50_000;
const JOIN_TOKENS_MAX: usize = 10_000;
const PEERINGS_MAX: usize = 128;
/// Services that one peer may export here.
pub const IMPORTS_PER_PEER_MAX: usize = 5_000;
/// Instances of them all.
pub const IMPORTED_INSTANCES_PER_PEER_MAX: usize = 100_000;

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::{Locality, Meta, Protocol, Weights};
    use crate::entry::{Body, ServiceDefaults};

    const NOON: UnixTime = UnixTime::from_secs(1_000_000);

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a good name")
    }

    fn node(text: &str) -> Node {
        Node {
            name: name(text),
            id: format!("id-of-{text}").into(),
            address: [10, 0, 0, 1].into(),
            locality: Locality::default(),
            meta: Meta::new(),
            tagged: Default::default(),
        }
    }

    fn instance(id: &str, service: &str) -> Instance {
        Instance {
            id: name(id),
            service: name(service),
            address: None,
            port: 80,
            tags: BTreeSet::new(),
            meta: Meta::new(),
            weights: Weights::default(),
            protocol: Some(Protocol::Http),
            mesh_port: Some(21_000),
            enable_tag_override: false,
            gateway: None,
            socket: None,
            ports: Default::default(),
            tagged: Default::default(),
        }
    }

    fn check(id: &str, instance: Option<&str>, status: Status) -> Check {
        Check {
            id: name(id),
            name: id.into(),
            kind: "ttl".into(),
            status,
            notes: "".into(),
            output: "".into(),
            instance: instance.map(name),
            run: Default::default(),
        }
    }

    fn sync(on: &str, instances: &[(&str, &str)], checks: Vec<Check>) -> Command {
        Command::SyncNode(NodeChanges {
            node: node(on),
            put_instances: instances.iter().map(|(id, service)| instance(id, service)).collect(),
            put_checks: checks,
            drop_instances: Vec::new(),
            drop_checks: Vec::new(),
        })
    }

    /// Applies commands one after the other, a second apart, and answers the last one's outcome.
    fn run(state: &mut State, commands: Vec<Command>) -> Result<Vec<Topic>, Rejection> {
        let mut outcome = Ok(Vec::new());
        for command in commands {
            let index = Index(state.applied().0 + 1);
            let time = NOON.plus(Duration::from_secs(index.0));
            outcome = state.apply(Stamp { index, time }, command);
        }
        outcome
    }

    #[test]
    fn a_change_wakes_only_those_it_concerns() {
        let mut state = State::default();
        run(&mut state, vec![sync("n1", &[("web-1", "web")], vec![])]).expect("applied");
        let woken = run(&mut state, vec![sync("n2", &[("db-1", "db")], vec![])]).expect("applied");
        assert!(woken.contains(&Topic::Service(name("db"))));
        assert!(woken.contains(&Topic::Names));
        assert!(!woken.contains(&Topic::Service(name("web"))), "{woken:?}");
        let flap = check("c", Some("db-1"), Status::Critical);
        let woken = run(&mut state, vec![sync("n2", &[], vec![flap])]).expect("applied");
        assert!(woken.contains(&Topic::Service(name("db"))));
        assert!(!woken.contains(&Topic::Names), "health is no news for the list of names");
        let again = run(&mut state, vec![sync("n2", &[("db-1", "db")], vec![])]);
        assert_eq!(again, Ok(Vec::new()), "an equal write is no change");
    }

    #[test]
    fn a_check_that_moves_wakes_what_it_leaves() {
        let mut state = State::default();
        let of = |instance| check("c", Some(instance), Status::Critical);
        let both = [("web-1", "web"), ("db-1", "db")];
        run(&mut state, vec![sync("n1", &both, vec![of("web-1")])]).expect("applied");
        let woken = run(&mut state, vec![sync("n1", &[], vec![of("db-1")])]).expect("applied");
        for service in ["web", "db"] {
            assert!(woken.contains(&Topic::Service(name(service))), "{service}: {woken:?}");
            assert_eq!(state.catalog().service_index(&name(service)), Index(2), "{service}");
        }
    }

    #[test]
    fn a_nodes_checks_are_bounded_whatever_it_says_to_drop() {
        let checks = |of: &str, count: usize| -> Vec<Check> {
            (0..count).map(|n| check(&format!("{of}-{n}"), None, Status::Passing)).collect()
        };
        let dropping = |put: Vec<Check>, drop: Vec<CheckId>| {
            let Command::SyncNode(changes) = sync("n1", &[], put) else { unreachable!() };
            Command::SyncNode(NodeChanges { drop_checks: drop, ..changes })
        };
        let ids = |of: &str| (0..CHECKS_PER_NODE_MAX).map(|n| name(&format!("{of}-{n}"))).collect();
        let mut state = State::default();
        let full = vec![sync("n1", &[], checks("a", CHECKS_PER_NODE_MAX))];
        run(&mut state, full).expect("as many as there may be");
        let refused =
            Err(Rejection::Full { what: "checks on this node", max: CHECKS_PER_NODE_MAX });
        let invented = vec![dropping(checks("b", 1), ids("none"))];
        assert_eq!(run(&mut state, invented), refused, "what is not there frees nothing");
        let mut all: Vec<Check> = checks("a", CHECKS_PER_NODE_MAX);
        all.iter_mut().for_each(|check| check.status = Status::Critical);
        let changed = run(&mut state, vec![sync("n1", &[], all)]);
        changed.expect("what is there may change, all of it");
        let exchanged = vec![dropping(checks("b", CHECKS_PER_NODE_MAX), ids("a"))];
        run(&mut state, exchanged).expect("those that go make room");
    }

    #[test]
    fn an_index_moves_with_its_own_service_and_never_back() {
        let mut state = State::default();
        run(
            &mut state,
            vec![sync("n1", &[("web-1", "web")], vec![]), sync("n2", &[("db-1", "db")], vec![])],
        )
        .expect("applied");
        let index = |state: &State, service| state.catalog().service_index(&name(service));
        assert_eq!((index(&state, "web"), index(&state, "db")), (Index(1), Index(2)));
        run(&mut state, vec![Command::DropNode(name("n2"))]).expect("applied");
        assert_eq!(index(&state, "db"), Index(3), "the last instance's going is a change");
        assert_eq!(index(&state, "web"), Index(1));
        assert_eq!(state.catalog().services().count(), 1);
    }

    #[test]
    fn a_dead_node_is_critical_until_it_is_heard_of_again() {
        let mut state = State::default();
        let status = |state: &State| {
            state.catalog().placed(&name("web")).next().map(|placed| placed.status())
        };
        let dead = |nodes: &[&str]| Command::SetLiveness {
            dead: nodes.iter().map(|node| name(node)).collect(),
            alive: vec![],
        };
        run(&mut state, vec![sync("n1", &[("web-1", "web")], vec![])]).expect("applied");
        assert_eq!(status(&state), Some(Status::Passing));
        let woken = run(&mut state, vec![dead(&["n1", "ghost"])]).expect("applied");
        assert!(woken.contains(&Topic::Service(name("web"))));
        assert_eq!(status(&state), Some(Status::Critical));
        assert_eq!(state.down_since().count(), 1, "nobody mourns a node that never was");
        run(&mut state, vec![sync("n1", &[], vec![])]).expect("applied");
        assert_eq!(status(&state), Some(Status::Critical), "anyone may write rows");
        let alive = Command::SetLiveness { dead: vec![], alive: vec![name("n1")] };
        run(&mut state, vec![alive]).expect("applied");
        assert_eq!(status(&state), Some(Status::Passing), "its agent was heard of");
        assert_eq!(state.down_since().count(), 0);
    }

    #[test]
    fn a_peering_token_that_was_taken_up_makes_nobody_else_the_peer() {
        let remote = |trust_domain: &str, root: u8| Remote {
            peering: "b".into(),
            trust_domain: name(trust_domain),
            datacenter: name("dc2"),
            calls_us: name("east"),
            server_roots: vec![[root].into()],
            roots: vec![[root].into()],
            revoked: Default::default(),
            servers: vec!["192.0.2.1:8300".into()],
            gateways: vec![],
            rtt_ms: None,
        };
        let accept = |remote| Command::AcceptPeering { invitation: [7; 32], remote };
        let mut state = State::default();
        let (meta, invitation) = (Meta::new(), Some([7; 32]));
        let (id, state_of) = ("a".into(), PeerState::Pending);
        let peering =
            Peering { id, name: name("west"), meta, state: state_of, invitation, remote: None };
        run(&mut state, vec![Command::PutPeering(peering)]).expect("applied");
        run(&mut state, vec![accept(remote("2b.consul", 1))]).expect("the first is the peer");
        run(&mut state, vec![accept(remote("2b.consul", 1))]).expect("its reply was lost");
        for (other, why) in [
            (remote("3c.consul", 1), "another cluster"),
            (remote("2b.consul", 2), "one that only says that it is the peer"),
        ] {
            let refused = run(&mut state, vec![accept(other)]);
            assert_eq!(refused, Err(Rejection::PeeringToken), "{why}");
        }
        let mut stolen = remote("2b.consul", 1);
        stolen.roots = vec![[9].into()];
        run(&mut state, vec![accept(stolen)]).expect("it says who the peer is");
        let held = state.peerings().get(&name::<PeerName>("west")).expect("held").value.clone();
        assert_eq!(held.remote, Some(remote("2b.consul", 1)), "and nothing else is taken of it");
    }

    #[test]
    fn refusals_leave_the_state_as_it_was() {
        let mut state = State::default();
        run(&mut state, vec![sync("n1", &[("web-1", "web")], vec![])]).expect("applied");
        let before = state.dump();
        let mut imposter = node("n1");
        imposter.id = "another".into();
        let taken = Command::SyncNode(NodeChanges {
            node: imposter,
            put_instances: vec![],
            put_checks: vec![],
            drop_instances: vec![name("web-1")],
            drop_checks: vec![],
        });
        let orphan = sync("n1", &[("x", "x")], vec![check("c", Some("gone"), Status::Passing)]);
        let body = Body::ServiceDefaults(ServiceDefaults::default());
        let entry = Entry::new("web", body).expect("a good entry");
        let pair = Pair { source: name("a"), destination: name("b"), peer: None };
        let key = EntryKey { kind: Kind::ServiceDefaults, name: "web".into() };
        let token = Command::UseJoinToken { hash: [7; 32], node: name("n1"), key: None };
        let refused = [
            (taken, Rejection::NodeNameTaken { node: name("n1") }),
            (
                orphan,
                Rejection::UnknownInstance {
                    node: name("n1"),
                    check: name("c"),
                    instance: name("gone"),
                },
            ),
            (Command::DropNode(name("n9")), Rejection::UnknownNode { node: name("n9") }),
            (Command::DropIntention(pair.clone()), Rejection::UnknownIntention { pair }),
            (
                Command::PutEntry { entry, expected: Some(Index(4)), fits: None },
                Rejection::IndexMismatch { expected: Index(4), actual: Index(0) },
            ),
            (
                Command::DropEntry { key, expected: Some(Index(4)), fits: None },
                Rejection::IndexMismatch { expected: Index(4), actual: Index(0) },
            ),
            (token, Rejection::JoinToken { node: name("n1") }),
        ];
        for (command, expected) in refused {
            assert_eq!(run(&mut state, vec![command]), Err(expected));
        }
        let after = state.dump();
        assert_eq!(after.instances.len(), before.instances.len());
        assert_eq!(after.indexes, before.indexes);
        assert_eq!(after.applied, Index(8), "a refused entry still counts");
    }

    /// One instance of `service`, on a node, which says that it speaks `protocol`.
    pub(crate) fn declared(service: &str, protocol: Option<Protocol>) -> Command {
        let instance = Instance { protocol, ..instance(service, service) };
        Command::SyncNode(NodeChanges {
            node: node("n1"),
            put_instances: vec![instance],
            put_checks: vec![],
            drop_instances: vec![],
            drop_checks: vec![],
        })
    }

    /// A command about a config entry given as JSON.
    fn put_entry(kind: Kind, name: &str, json: &str) -> Command {
        let body = Body::read(kind, &mut serde_json::Deserializer::from_str(json)).expect(json);
        let entry = Entry::new(name, body).expect("a good entry");
        Command::PutEntry { entry, expected: None, fits: None }
    }

    #[test]
    fn entries_are_checked_before_they_are_proposed_and_only_then() {
        let mut state = State::default();
        let subset = put_entry(
            Kind::ServiceResolver,
            "web",
            r#"{"DefaultSubset": "v1", "Subsets": {"v1": {}}}"#,
        );
        let redirect = put_entry(
            Kind::ServiceResolver,
            "api",
            r#"{"Redirect": {"Service": "web", "ServiceSubset": "v1"}}"#,
        );
        assert!(matches!(state.fit(&redirect), Err(Rejection::Misfit(_))), "there is no subset");
        assert_eq!(state.fit(&Command::DropNode(name("n"))), Ok(None));
        let at = state.fit(&subset).expect("it fits").expect("an index");
        run(&mut state, vec![subset.fitting(at)]).expect("stored");
        let at = state.fit(&redirect).expect("it fits now").expect("an index");
        let key = EntryKey { kind: Kind::ServiceResolver, name: "web".into() };
        let drop = Command::DropEntry { key, expected: None, fits: None };
        let dropped_at = state.fit(&drop).expect("nothing needs it").expect("an index");
        assert_eq!(at, dropped_at);
        run(&mut state, vec![redirect.fitting(at)]).expect("stored");
        let refused = run(&mut state, vec![drop.clone().fitting(dropped_at)]);
        let actual = state.entries().index();
        assert_eq!(refused, Err(Rejection::EntriesChanged { checked: at.entries, actual }));
        assert!(matches!(state.fit(&drop), Err(Rejection::Misfit(_))), "it is needed by now");
        let before = state.applied();
        run(&mut state, vec![drop]).expect("what the log says is done, whatever it leads to");
        assert!(state.applied() > before && state.entries().iter().count() == 1);
    }

    #[test]
    fn a_join_token_is_good_once_in_time_and_for_its_node() {
        let token = |expires_at| {
            let node = name("n1");
            Command::PutJoinToken(JoinToken { hash: [1; 32], node, expires_at, used_by: None })
        };
        let used_for = |node: &str, key| {
            let key = Some([key; 32]);
            Command::UseJoinToken { hash: [1; 32], node: name(node), key }
        };
        let used =
            |node: &str| Command::UseJoinToken { hash: [1; 32], node: name(node), key: None };
        let later = NOON.plus(Duration::from_secs(600));
        let refused = |node: &str| Err(Rejection::JoinToken { node: name(node) });
        let cases = [
            (vec![token(later), used("n1")], Ok(vec![]), "the one use"),
            (vec![token(later), used("n1"), used("n1")], refused("n1"), "a second use"),
            (vec![token(later), used("n2")], refused("n2"), "another node"),
            (vec![token(NOON), used("n1")], refused("n1"), "too late"),
            (
                vec![token(later), used_for("n1", 1), used_for("n1", 1)],
                Ok(vec![]),
                "the same key again: the reply was lost",
            ),
            (
                vec![token(later), used_for("n1", 1), used_for("n1", 2)],
                refused("n1"),
                "another key is another host",
            ),
            (vec![token(later), used_for("n1", 1), used("n1")], refused("n1"), "no key at all"),
            (
                vec![token(NOON), used_for("n1", 1), used_for("n1", 1)],
                refused("n1"),
                "the same key, too late",
            ),
        ];
        for (commands, expected, why) in cases {
            assert_eq!(run(&mut State::default(), commands), expected, "{why}");
        }
    }

    #[test]
    fn a_restored_state_goes_on_as_the_dumped_one() {
        let mut state = State::default();
        let flap = check("c", Some("web-1"), Status::Warning);
        run(
            &mut state,
            vec![
                sync("n1", &[("web-1", "web"), ("db-1", "db")], vec![flap]),
                Command::SetLiveness { dead: vec![name("n1")], alive: vec![] },
            ],
        )
        .expect("applied");
        let mut copy = State::restore(state.dump());
        for state in [&mut state, &mut copy] {
            run(state, vec![Command::DropNode(name("n1")), sync("n2", &[("w", "web")], vec![])])
                .expect("applied");
        }
        let (one, two) = (state.dump(), copy.dump());
        assert_eq!(one.indexes, two.indexes);
        assert_eq!(format!("{one:?}"), format!("{two:?}"));
    }

    #[test]
    fn the_founding_happens_once() {
        let cluster = Cluster {
            id: "1f2e".into(),
            trust_domain: "1f2e.consul".parse().expect("a trust domain"),
            datacenter: name("dc1"),
            default_action: Action::Deny,
        };
        let mut state = State::default();
        run(&mut state, vec![Command::Found(cluster.clone())]).expect("founded");
        assert_eq!(run(&mut state, vec![Command::Found(cluster)]), Err(Rejection::AlreadyFounded));
    }
}
