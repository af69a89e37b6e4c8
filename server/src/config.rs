//! What a server is told before it starts. Nothing here has a default left to find.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hawser_core::intention::Action;
use hawser_core::name::{Datacenter, NodeName};

use crate::aws_iam::AwsIam;
use crate::identity::OperatorKey;
use crate::planted::Planted;

/// The configuration of one server.
pub struct Config {
    /// Its node name: unique among the servers of a cluster.
    pub node: NodeName,
    /// The cluster's datacenter.
    pub datacenter: Datacenter,
    /// Where log, snapshots and history are kept.
    pub data_dir: PathBuf,
    /// Where other servers and agents dial it.
    pub advertise: SocketAddr,
    /// How many servers found a cluster together; zero never founds one, and only joins.
    pub bootstrap_expect: u8,
    /// Other servers: `host[:port]`, addresses, DNS names, or `provider=aws ...`.
    pub retry_join: Vec<String>,
    /// The key that all servers of the cluster share.
    pub operator_key: OperatorKey,
    /// What holds where no intention does, in a cluster that this server founds.
    pub default_action: Action,
    /// How long a dead node stays in the catalog.
    pub reap_after: Duration,
    /// How long a leaf certificate holds.
    pub leaf_lifetime: Duration,
    /// Raft's clock.
    pub timing: RaftTiming,
    /// How long an agent counts as alive after its last heartbeat.
    pub lease: Duration,
    /// The bounds of the traffic history.
    pub history: crate::history::Limits,
    /// Access control of the API.
    pub acl: crate::acl::Settings,
    /// How AWS's identities become nodes; none takes joins by token only.
    pub aws_iam: Option<AwsIam>,
    /// Entries between two snapshots.
    pub snapshot_every: u64,
    /// Bytes of the log after which a snapshot is written and the log cut, however few its entries.
    pub log_bytes_max: u64,
    /// Bugs that a test asks for; none in what ships.
    pub planted: Planted,
}

/// Raft's clock. A heartbeat must make its round trip within `heartbeat`.
///
/// A follower stands for election once the leader's lease, `election_max`, has run out and then
/// for a draw between `election_min` and `election_max` nothing was heard: with the defaults,
/// after 1.3 to 1.6 s of silence.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RaftTiming {
    /// Between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// The shortest silence after the leader's lease that makes a follower stand for election.
    pub election_min: Duration,
    /// The longest; also how long the leader's lease holds.
    pub election_max: Duration,
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(150),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(800),
        }
    }
}

/// The default of [`Config::lease`].
pub const LEASE: Duration = Duration::from_secs(15);
/// The default of [`Config::reap_after`].
pub const REAP_AFTER: Duration = Duration::from_secs(72 * 3600);
/// The default of [`Config::snapshot_every`].
pub const SNAPSHOT_EVERY: u64 = 16_384;
/// The default of [`Config::log_bytes_max`].
pub const LOG_BYTES_MAX: u64 = 256 << 20;
/// The port that servers listen on when none is given.
pub const PORT: u16 = 8300;
