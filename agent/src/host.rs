//! What the parts of a running agent share: handles to its tables, and what is missing.

use std::net::IpAddr;
use std::sync::Arc;

use hawser_core::catalog::Node;
use hawser_core::name::Datacenter;
use hawser_core::peering::PeerService;
use hawser_core::view::View;
use hawser_proxy::ListenerStatus;
use prometheus::Registry;
use tokio::sync::{RwLock, watch};
use tokio_util::sync::CancellationToken;

use crate::anti_entropy::Refused;
use crate::clock;
use crate::heartbeat::Standing;
use crate::identity::join::Membership;
use crate::identity::leaves;
use crate::local::Local;
use crate::metrics::Metrics;
use crate::monitor::Logs;
use crate::servers::{Contact, Servers};
use crate::token::Acl;

/// One running agent, as its tasks see it.
pub(crate) struct Host {
    /// The host's own row.
    pub(crate) node: Node,
    /// Its datacenter.
    pub(crate) datacenter: Datacenter,
    /// Whether a server runs in the same process.
    pub(crate) is_server: bool,
    /// The release.
    pub(crate) version: &'static str,
    /// Where inbound mTLS listeners bind.
    pub(crate) bind: IpAddr,
    /// What runs here.
    pub(crate) local: Arc<Local>,
    /// Which servers there are.
    pub(crate) servers: Arc<Servers>,
    /// Who may ask what of the agent.
    pub(crate) acl: Acl,
    /// Who the host is; none before it joined.
    pub(crate) membership: watch::Sender<Option<Arc<Membership>>>,
    /// Who its services are.
    pub(crate) leaves: watch::Sender<leaves::All>,
    /// What it sees.
    pub(crate) views: watch::Sender<Arc<View>>,
    /// What servers refused.
    pub(crate) refused: Refused,
    /// When a server was last heard of.
    pub(crate) contact: Contact,
    /// All metrics of the process.
    pub(crate) registry: Registry,
    /// The agent's own.
    pub(crate) metrics: Metrics,
    /// What the process logs, where it can be watched.
    pub(crate) logs: Option<Logs>,
    /// How the proxy's listeners stand.
    pub(crate) listeners: Box<dyn Fn() -> Vec<ListenerStatus> + Send + Sync>,
    /// Wakes whoever can read the files anew.
    pub(crate) reloads: watch::Sender<u64>,
    /// Cancelled once the agent stops saying that it is here.
    pub(crate) stopping: CancellationToken,
    /// Cancelled to make the agent leave and end.
    pub(crate) leave: CancellationToken,
    /// What changes the host's declarations holds it for reading; who hands over, for writing.
    pub(crate) changes: Arc<RwLock<()>>,
    /// Whether the API leaves new connections to another process, or will soon.
    pub(crate) holds: watch::Sender<bool>,
}

impl Host {
    /// What a rotation of roots waits to hear of this host.
    pub(crate) fn standing(&self) -> Standing {
        Standing {
            views: self.views.subscribe(),
            membership: self.membership.subscribe(),
            leaves: self.leaves.subscribe(),
        }
    }

    /// What keeps this host from serving, in words; empty when it serves.
    ///
    /// A server that cannot be reached is not among it: the host serves from its disk.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.stopping.is_cancelled() {
            missing.push("the agent stops".to_owned());
        }
        if self.membership.borrow().is_none() {
            missing.push("the host has not joined the cluster yet".to_owned());
        }
        if self.views.borrow().trust.is_none() {
            missing.push("no server has told yet whom to trust".to_owned());
        }
        let leaves = self.leaves.borrow().clone();
        let (view, now) = (self.views.borrow().clone(), clock::now());
        for held in self.local.services() {
            let Some(sidecar) = &held.definition.service().sidecar else { continue };
            let service = &held.instance.service;
            for upstream in &sidecar.upstreams {
                let service = upstream.destination.clone();
                let (is_known, name) = match upstream.peer.clone() {
                    None => (view.services.contains_key(&service), service.to_string()),
                    Some(peer) => {
                        let key = PeerService { peer, service };
                        (view.imports.contains_key(&key), key.to_string())
                    }
                };
                if !is_known {
                    missing.push(format!("no server has told yet where service {name} is"));
                }
            }
            match leaves.get(service) {
                None => missing.push(format!("service {service} has no certificate yet")),
                Some(leaf) if !leaf.validity.holds_at(now) => {
                    missing.push(format!("the certificate of service {service} does not hold now"));
                }
                Some(_) => {}
            }
        }
        for listener in (self.listeners)() {
            if let Some(why) = listener.error {
                missing.push(format!("nothing listens on {}: {why}", listener.address));
            }
        }
        missing
    }

    /// Brings the gauges up to date.
    pub(crate) fn measure(&self) {
        let now = clock::now();
        let secs = |until: hawser_core::clock::UnixTime| {
            let (until, now) = (until.as_secs(), now.as_secs());
            // Seconds since the epoch fit with room to spare.
            until as i64 - now as i64
        };
        self.metrics.server_connected.set(i64::from(self.servers.link().is_some()));
        let age = i64::try_from(self.contact.ago().as_secs()).unwrap_or(i64::MAX);
        self.metrics.contact_age.set(age);
        let index = i64::try_from(self.views.borrow().index.0).unwrap_or(i64::MAX);
        self.metrics.view_index.set(index);
        if let Some(membership) = self.membership.borrow().as_ref() {
            self.metrics.node_expiry.set(secs(membership.credential.validity.not_after));
        }
        self.metrics.leaf_expiry.reset();
        for (service, leaf) in self.leaves.borrow().iter() {
            let gauge = self.metrics.leaf_expiry.with_label_values(&[service.as_str()]);
            gauge.set(secs(leaf.validity.not_after) as f64);
        }
    }
}
