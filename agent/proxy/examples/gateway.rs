//! A mesh gateway with static input: what the benchmark beside the peers drives.
//!
//! `gateway --listen A --to B --workers N` passes on what asks for
//! `web.default.default.east.external.own.consul`.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::catalog::{Locality, Protocol, Weights};
use hawser_core::chain::Chain;
use hawser_core::clock::Index;
use hawser_core::health::Status;
use hawser_core::intention::Action;
use hawser_core::view::{Endpoint, PeerView, ServiceView, Trust, View};
use hawser_proxy::{Config, Gateway, Plan, Proxy};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut given = BTreeMap::new();
    let mut words = std::env::args().skip(1);
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        given.insert(name, value);
    }
    let take = |name: &str| given.get(name).ok_or_else(|| format!("{name} is missing"));
    let (listen, to) = (take("--listen")?.parse()?, take("--to")?.parse()?);
    let workers = given.get("--workers").map_or(Ok(1), |workers| workers.parse())?;
    let gateway = Gateway {
        service: "mesh-gateway".parse()?,
        instance: "mesh-gateway".parse()?,
        listen,
        servers: Arc::new([]),
    };
    let plan = Plan { gateway: Some(gateway), ..Plan::default() };
    let (_plans, plans) = watch::channel(Arc::new(plan));
    let (_views, views) = watch::channel(Arc::new(view(to)?));
    let config = Config { workers, ..Config::default() };
    let proxy = Proxy::start(config, plans, views, &prometheus::Registry::new())?;
    signal(SignalKind::terminate())?.recv().await;
    proxy.drain(Duration::from_secs(1)).await;
    Ok(())
}

/// `web`, at `to`, exported to `east`.
fn view(to: SocketAddr) -> Result<View, Box<dyn Error>> {
    let endpoint = Endpoint {
        node: "vm-1".parse()?,
        instance: "web-1".parse()?,
        address: to.ip(),
        has_own_address: false,
        ports: Default::default(),
        port: to.port(),
        mesh: Some(to),
        locality: Locality::default(),
        tags: BTreeSet::new(),
        weights: Weights::default(),
        status: Status::Passing,
    };
    let chain = Chain {
        service: "web".parse()?,
        protocol: Protocol::Tcp,
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(15),
        local_connect_timeout: Duration::from_secs(1),
        inbound_connections_max: None,
        policies: Arc::default(),
    };
    let east = PeerView {
        trust_domain: "east.consul".parse()?,
        datacenter: "dc1".parse()?,
        roots: Vec::new(),
        revoked: Default::default(),
        calls_us: "us".parse()?,
        is_live: true,
        gateways: Vec::new(),
    };
    let trust = Trust {
        trust_domain: "own.consul".parse()?,
        datacenter: "dc1".parse()?,
        roots: Vec::new(),
        default_action: Action::Deny,
        issuing: Default::default(),
        revoked: Default::default(),
    };
    let service = ServiceView::alone(chain, [endpoint].into(), Index(1));
    Ok(View {
        index: Index(1),
        trust: Some(Arc::new(trust)),
        services: BTreeMap::from([("web".parse()?, Arc::new(service))]),
        peers: Arc::new(BTreeMap::from([("east".parse()?, east)])),
        exports: Arc::new(BTreeMap::from([("web".parse()?, BTreeSet::from(["east".parse()?]))])),
        ..View::default()
    })
}
