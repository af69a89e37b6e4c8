//! What DNS may tell: the view, without what the token that DNS asks with may not see.
//!
//! Tasks: `run` is one.

use std::sync::Arc;

use hawser_core::acl::Authorizer;
use hawser_core::catalog::Endpoint;
use hawser_core::clock::Index;
use hawser_core::name::NodeName;
use hawser_core::view::{ServiceView, TargetView, View};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::host::Host;

/// Keeps `shown` what DNS may tell of the host's view, until `drain`.
pub(crate) async fn run(
    host: Arc<Host>,
    shown: watch::Sender<Arc<View>>,
    drain: CancellationToken,
) {
    let mut views = host.views.subscribe();
    let mut tick = interval(host.acl.token_ttl());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let view = views.borrow_and_update().clone();
        // A token that is none sees nothing; so does one that nobody can be asked about.
        let may = host.acl.resolve(&host.servers, host.acl.dns_secret()).await.ok();
        let veiled = match may.as_deref() {
            Some(may) => veiled(&view, may),
            None => View { index: view.index, trust: view.trust.clone(), ..View::default() },
        };
        shown.send_replace(Arc::new(veiled));
        tokio::select! {
            () = drain.cancelled() => return,
            changed = views.changed() => if changed.is_err() { return },
            _ = tick.tick() => {}
        }
    }
}

/// `view` as `may` sees it: what is hidden looks like what is not there.
fn veiled(view: &View, may: &Authorizer) -> View {
    let service = |held: &Arc<ServiceView>| Arc::new(shown(held, may));
    let node = |name: &NodeName| may.node_read(name.as_str());
    View {
        services: view.services.iter().map(|(name, held)| (name.clone(), service(held))).collect(),
        imports: view.imports.iter().map(|(name, held)| (name.clone(), service(held))).collect(),
        nodes: view
            .nodes
            .iter()
            .map(|(name, held)| (name.clone(), held.clone().filter(|_| node(name))))
            .collect(),
        ..view.clone()
    }
}

/// A service with what may be seen of its instances and of what stands in for them.
fn shown(held: &ServiceView, may: &Authorizer) -> ServiceView {
    if !may.service_read(held.chain.service.as_str()) {
        let nothing = ServiceView::alone(held.chain.clone(), [].into(), Index(0));
        return ServiceView { peer: held.peer.clone(), ..nothing };
    }
    let seen = |endpoints: &Arc<[Endpoint]>| -> Arc<[Endpoint]> {
        let on_seen = |end: &&Endpoint| may.node_read(end.node.as_str());
        match endpoints.iter().all(|end| on_seen(&end)) {
            true => endpoints.clone(),
            false => endpoints.iter().filter(on_seen).cloned().collect(),
        }
    };
    let stands_in = |view: &&TargetView| may.service_read(view.target.service.as_str());
    ServiceView {
        endpoints: seen(&held.endpoints),
        failover: held
            .failover
            .iter()
            .filter(stands_in)
            .map(|view| TargetView { endpoints: seen(&view.endpoints), ..view.clone() })
            .collect(),
        routing: None,
        ..held.clone()
    }
}

#[cfg(test)]
mod tests {
    use hawser_core::acl::{Access, DefaultPolicy, Resource, Rules};
    use hawser_core::catalog::{Locality, Meta, Protocol, Weights};
    use hawser_core::chain::Chain;
    use hawser_core::health::Status;
    use hawser_core::view::{Change, Delta, NodeView};

    use super::*;

    fn endpoint(node: &str) -> Endpoint {
        Endpoint {
            node: node.parse().expect("a name"),
            instance: "i".parse().expect("an id"),
            address: [10, 0, 0, 1].into(),
            has_own_address: false,
            ports: Default::default(),
            port: 80,
            mesh: None,
            locality: Locality::default(),
            tags: [].into(),
            weights: Weights::default(),
            status: Status::Passing,
        }
    }

    fn service(name: &str) -> Change {
        let chain = Chain {
            service: name.parse().expect("a name"),
            protocol: Protocol::Tcp,
            connect_timeout: std::time::Duration::from_secs(1),
            request_timeout: std::time::Duration::from_secs(1),
            local_connect_timeout: std::time::Duration::from_secs(1),
            inbound_connections_max: None,
            policies: Arc::default(),
        };
        let endpoints = [endpoint("n1"), endpoint("n2")].into();
        Change::Service(ServiceView::alone(chain, endpoints, Index(1)))
    }

    #[test]
    fn dns_tells_of_services_and_nodes_that_its_token_sees() {
        let node = NodeView { address: [10, 0, 0, 1].into(), meta: Meta::new() };
        let changes = vec![
            service("web"),
            service("db"),
            Change::Node("n1".parse().expect("a name"), Some(node.clone())),
            Change::Node("n2".parse().expect("a name"), Some(node)),
        ];
        let view = View::default().advanced(Delta { index: Index(1), is_snapshot: true, changes });
        let rules = Rules::default().exact(Resource::Service, "web", Access::Read).exact(
            Resource::Node,
            "n1",
            Access::Read,
        );
        let may = Authorizer::new("a".into(), DefaultPolicy::Deny, [&rules]);
        let seen = veiled(&view, &may);
        let ends = |name: &str| seen.services[name].endpoints.len();
        assert_eq!((ends("web"), ends("db")), (1, 0), "web on n1 alone; db looks empty");
        let nodes: Vec<bool> = seen.nodes.values().map(Option::is_some).collect();
        assert_eq!(nodes, [true, false]);
        assert_eq!(veiled(&view, &Authorizer::off()).services["db"].endpoints.len(), 2);
    }
}
