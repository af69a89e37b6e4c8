//! What the host's proxy is to do: local services and their credentials, as the proxy takes them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hawser_core::name::ServiceName;
use hawser_identity::Leaf;
use hawser_proxy::{Inbound, LocalService, Outbound, Plan};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::identity::Credential;
use crate::identity::leaves::All;
use crate::local::{Declared, Local};

/// Credentials as the proxy takes them, made once each.
#[derive(Default)]
pub(crate) struct Leaves(BTreeMap<ServiceName, (Arc<Credential>, Arc<Leaf>)>);

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

/// What the proxy is to do for `services`.
///
/// A service without a credential keeps its listeners, which then refuse: a port that is closed
/// would look like an application that is down.
pub(crate) fn plan(
    services: &[Arc<Declared>],
    credentials: &All,
    leaves: &mut Leaves,
    bind: IpAddr,
) -> Plan {
    leaves.0.retain(|name, _| credentials.contains_key(name));
    let services = services.iter().filter_map(|held| {
        let sidecar = held.definition.service().sidecar.as_ref()?;
        let name = &held.instance.service;
        let inbound = held.instance.mesh_port.zip(sidecar.local_address);
        let outbounds = sidecar.upstreams.iter().map(|upstream| Outbound {
            destination: upstream.destination.clone(),
            listen: SocketAddr::new(upstream.bind, upstream.port),
        });
        Some(LocalService {
            service: name.clone(),
            instance: held.instance.id.clone(),
            identity: credentials.get(name).map(|credential| leaves.of(name, credential)),
            inbound: inbound.map(|(port, application)| Inbound {
                listen: SocketAddr::new(bind, port),
                application,
            }),
            outbounds: outbounds.collect(),
        })
    });
    Plan { services: services.collect() }
}

/// Gives the proxy a new plan whenever declarations or credentials change, until `drain`.
pub(crate) async fn run(
    local: Arc<Local>,
    mut credentials: watch::Receiver<All>,
    mut leaves: Leaves,
    plans: watch::Sender<Arc<Plan>>,
    bind: IpAddr,
    drain: CancellationToken,
) {
    let mut changes = local.changes();
    let mut services: Vec<Arc<Declared>> = Vec::new();
    let mut held: Option<All> = None;
    loop {
        changes.borrow_and_update();
        let now = local.services();
        let all = credentials.borrow_and_update().clone();
        let is_same = now.len() == services.len()
            && now.iter().zip(&services).all(|(a, b)| Arc::ptr_eq(a, b))
            && held.as_ref().is_some_and(|held| Arc::ptr_eq(held, &all));
        if !is_same {
            plans.send_replace(Arc::new(plan(&now, &all, &mut leaves, bind)));
            (services, held) = (now, Some(all));
        }
        tokio::select! {
            () = drain.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            changed = credentials.changed() => if changed.is_err() { return },
        }
    }
}
