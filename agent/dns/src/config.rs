//! What the discovery plane is told: how to serve, and the view as it moves.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hawser_core::dns::{Want, query};
use hawser_core::name::{Datacenter, NodeName};
use hawser_core::view::View;
use tokio::sync::{mpsc, oneshot, watch};

/// How names are served.
#[derive(Clone, Debug)]
pub struct Config {
    /// The domain that all names end in: `consul`.
    pub domain: String,
    /// A second one; a reply uses the domain that was asked.
    pub alt_domain: Option<String>,
    /// The datacenter whose names are known here.
    pub datacenter: Datacenter,
    /// How long clients may keep an answer; whole seconds.
    pub ttl: Duration,
    /// Whether instances that warn are left out too.
    pub only_passing: bool,
    /// Who is asked for names outside the domains, in this order; with none they are refused.
    pub recursors: Vec<SocketAddr>,
    /// How long the last view is repeated once no server can be heard.
    pub stale_max: Duration,
    /// The host's own name.
    pub node: NodeName,
    /// The host's own address.
    pub address: IpAddr,
}

/// What the agent tells the discovery plane, and what it is told.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The host's view as it moves on.
    pub views: watch::Receiver<Arc<View>>,
    /// Names that were asked for: those that the view lacks, each once while anyone waits, and
    /// now and then one that it has, so that the agent knows which are in use.
    pub wants: mpsc::Sender<Want>,
    /// Prepared queries that were asked for.
    pub queries: mpsc::Sender<QueryAsk>,
    /// When a server was last heard, in milliseconds of Unix time; `u64::MAX` while connected.
    pub last_contact_ms: Arc<AtomicU64>,
}

/// A prepared query that somebody waits for.
#[derive(Debug)]
pub struct QueryAsk {
    /// Its name or id, in lower case.
    pub name: Box<str>,
    /// Takes what it finds; dropped when nobody can say.
    pub answer: oneshot::Sender<Arc<query::Found>>,
}
