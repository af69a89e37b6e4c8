//! What the host's proxy is to do: local services and their credentials, as the proxy takes them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hawser_core::entry::Target;
use hawser_core::jwt::KeyRing;
use hawser_core::name::ServiceName;
use hawser_identity::Leaf;
use hawser_proxy::{Gateway, Inbound, LocalService, NamedPort, Outbound, Plan};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::identity::Credential;
use crate::identity::leaves::All;
use crate::local::{Declared, Local};
use crate::servers::Servers;

/// Credentials as the proxy takes them, made once each.
#[derive(Default)]
struct Leaves(BTreeMap<ServiceName, (Arc<Credential>, Arc<Leaf>)>);

impl Leaves {
    /// The proxy's form of `credential`; the same one for as long as the credential stays, so
    /// that the proxy sees what changed by comparing pointers.
    fn of(&mut self, name: &ServiceName, credential: &Arc<Credential>) -> Arc<Leaf> {
        match self.0.get(name) {
            Some((held, leaf)) if Arc::ptr_eq(held, credential) => leaf.clone(),
            _ => {
                let leaf = Arc::new(credential.leaf());
                self.0.insert(name.clone(), (credential.clone(), leaf.clone()));
                leaf
            }
        }
    }
}

/// Makes plans for the proxy of one host.
pub(crate) struct Planner {
    leaves: Leaves,
    /// Where inbound mTLS listeners bind.
    bind: IpAddr,
    /// Where the mesh gateway listens; none where the host is none.
    gateway: Option<SocketAddr>,
    /// Where the cluster's servers are.
    servers: watch::Receiver<Arc<[SocketAddr]>>,
    /// The keys of token providers.
    keys: watch::Sender<Arc<KeyRing>>,
}

impl Planner {
    /// A planner for a host that binds at `bind` and is perhaps a `gateway`.
    pub(crate) fn new(bind: IpAddr, gateway: Option<&config::Gateway>, servers: &Servers) -> Self {
        let gateway = gateway.map(|gateway| gateway.listen);
        let (servers, keys) = (servers.addresses(), watch::Sender::default());
        Self { leaves: Leaves::default(), bind, gateway, servers, keys }
    }

    /// Where the keys of token providers are put.
    pub(crate) fn keys(&self) -> watch::Sender<Arc<KeyRing>> {
        self.keys.clone()
    }

    /// What the proxy is to do for `services`.
    ///
    /// A service without a credential keeps its listeners, which then refuse: a port that is
    /// closed would look like an application that is down.
    pub(crate) fn plan(&mut self, services: &[Arc<Declared>], credentials: &All) -> Plan {
        self.leaves.0.retain(|name, _| credentials.contains_key(name));
        let gateway = services.iter().find_map(|held| self.gateway(held));
        let services = services.iter().filter_map(|held| self.service(held, credentials));
        Plan { services: services.collect(), gateway, keys: self.keys.borrow().clone() }
    }

    /// The gateway, if `held` is it.
    fn gateway(&self, held: &Declared) -> Option<Gateway> {
        held.instance.gateway.as_ref()?;
        Some(Gateway {
            service: held.instance.service.clone(),
            instance: held.instance.id.clone(),
            listen: self.gateway?,
            servers: self.servers.borrow().clone(),
        })
    }

    /// A service's place in the mesh, if it has one.
    fn service(&mut self, held: &Declared, credentials: &All) -> Option<LocalService> {
        let sidecar = held.definition.service().sidecar.as_ref()?;
        let name = &held.instance.service;
        let inbound = held.instance.mesh_port.zip(sidecar.application.clone());
        let named = sidecar.ports.iter().cloned();
        let named =
            named.map(|(name, application, protocol)| NamedPort { name, application, protocol });
        let outbounds = sidecar.upstreams.iter().map(|upstream| Outbound {
            destination: Target {
                service: upstream.destination.clone(),
                peer: upstream.peer.clone(),
            },
            port: upstream.destination_port.clone(),
            listen: upstream.bind.clone(),
            mode: upstream.mode,
        });
        Some(LocalService {
            service: name.clone(),
            instance: held.instance.id.clone(),
            identity: credentials.get(name).map(|credential| self.leaves.of(name, credential)),
            inbound: inbound.map(|(port, application)| Inbound {
                listen: SocketAddr::new(self.bind, port),
                application,
                ports: named.collect(),
            }),
            outbounds: outbounds.collect(),
        })
    }
}

/// Gives the proxy a new plan whenever declarations, credentials or servers change, until `drain`.
pub(crate) async fn run(
    local: Arc<Local>,
    mut credentials: watch::Receiver<All>,
    mut planner: Planner,
    plans: watch::Sender<Arc<Plan>>,
    drain: CancellationToken,
) {
    let mut changes = local.changes();
    let mut services: Vec<Arc<Declared>> = Vec::new();
    let mut held: Option<All> = None;
    let mut servers: Option<Arc<[SocketAddr]>> = None;
    let mut keys = planner.keys.subscribe();
    loop {
        changes.borrow_and_update();
        let now = local.services();
        let all = credentials.borrow_and_update().clone();
        let to = planner.servers.borrow_and_update().clone();
        let has_new_keys = keys.has_changed().unwrap_or(false);
        keys.mark_unchanged();
        let is_same = !has_new_keys
            && servers.as_ref() == Some(&to)
            && now.len() == services.len()
            && now.iter().zip(&services).all(|(a, b)| Arc::ptr_eq(a, b))
            && held.as_ref().is_some_and(|held| Arc::ptr_eq(held, &all));
        if !is_same {
            plans.send_replace(Arc::new(planner.plan(&now, &all)));
            (services, held, servers) = (now, Some(all), Some(to));
        }
        tokio::select! {
            () = drain.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            changed = credentials.changed() => if changed.is_err() { return },
            changed = keys.changed() => match changed {
                Ok(()) => keys.mark_changed(),
                Err(_) => return,
            },
            changed = planner.servers.changed() => if changed.is_err() { return },
        }
    }
}
