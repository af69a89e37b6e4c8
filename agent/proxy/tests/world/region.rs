//! Another cluster: its own authority, a callee `db` behind its own proxy, its gateways.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hawser_core::catalog::{Locality, Protocol, Row, Weights};
use hawser_core::chain::Chain;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::entry::{GatewayMode, Target};
use hawser_core::health::Status;
use hawser_core::intention::{Action, Intention, Intentions, Pair, Side};
use hawser_core::name::PeerName;
use hawser_core::peering::{PeerGateway, PeerService};
use hawser_core::view::{Endpoint, PeerView, ServiceView, TargetView, Trust, View};
use hawser_proxy::{Config, Inbound, LocalService, Plan, Proxy};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use prometheus::Registry;
use rcgen::{Issuer, KeyPair};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::{World, authority, free_address, leaf, listener, name, serve};

/// What the caller's view has besides its own cluster.
#[derive(Default)]
pub(crate) struct Others {
    pub(crate) peers: BTreeMap<PeerName, PeerView>,
    /// What stands in for `db`, in this order.
    pub(crate) failover: Vec<TargetView>,
}

impl Others {
    /// Adds what it has to the view of the caller's own cluster.
    pub(super) fn complete(&self, mut view: View) -> View {
        view.peers = Arc::new(self.peers.clone());
        let Some(own) = view.services.get(&name("db")).cloned() else { return view };
        for other in &self.failover {
            let Some(peer) = other.target.peer.clone() else { continue };
            let key = PeerService { peer: peer.clone(), service: other.target.service.clone() };
            let import = ServiceView {
                peer: Some(peer),
                gateway_mode: other.gateway_mode,
                endpoints: other.endpoints.clone(),
                ..ServiceView::clone(&own)
            };
            view.imports.insert(key, Arc::new(import));
        }
        let failover = self.failover.clone().into();
        view.services
            .insert(name("db"), Arc::new(ServiceView { failover, ..ServiceView::clone(&own) }));
        view
    }
}

/// A peer of the caller's cluster, with instances of `db`.
pub(crate) struct Region {
    pub(crate) name: PeerName,
    pub(crate) domain: String,
    pub(crate) gateway_mode: GatewayMode,
    pub(crate) gateways: Vec<SocketAddr>,
    /// What it says of `db` and of its callers.
    pub(crate) is_exported: bool,
    pub(crate) action: Action,
    pub(crate) caller: Option<PeerView>,
    root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    protocol: Protocol,
    /// Where each instance's proxy listens, and its application.
    instances: Vec<(SocketAddr, Option<SocketAddr>)>,
    index: u64,
    views: watch::Sender<Arc<View>>,
    proxy: Option<Proxy>,
}

impl Region {
    /// A cluster that the caller's calls `peer`, where `web` of the caller's cluster may call `db`.
    pub(crate) fn new(world: &World, peer: &str, digit: char, protocol: Protocol) -> Self {
        let (root, issuer) = authority();
        let domain = "11111111-2222-3333-4444-555555555555.consul".replace('1', &digit.to_string());
        Self {
            name: peer.parse().expect("a name"),
            domain,
            gateway_mode: GatewayMode::Default,
            gateways: Vec::new(),
            is_exported: true,
            action: Action::Allow,
            caller: Some(world.as_peer()),
            root,
            issuer,
            protocol,
            instances: Vec::new(),
            index: 1,
            views: watch::channel(Arc::default()).0,
            proxy: None,
        }
    }

    /// An instance that answers with its name, the request's line and its fields.
    pub(crate) async fn http_echo(&mut self, tag: &'static str) -> SocketAddr {
        let address = serve(move |request: Request<Incoming>| async move {
            let text =
                format!("{tag} {} {} {:?}", request.method(), request.uri(), request.headers());
            Response::new(Full::new(Bytes::from(text)).boxed())
        })
        .await;
        self.instance(Some(address))
    }

    pub(crate) async fn tcp_tag(&mut self, tag: &'static [u8]) -> SocketAddr {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, tag).await;
            }
        });
        self.instance(Some(address))
    }

    pub(crate) async fn tcp_echo(&mut self) -> SocketAddr {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = socket.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
        self.instance(Some(address))
    }

    /// Where its first instance's proxy listens.
    pub(crate) fn proxied(&self) -> SocketAddr {
        self.instances[0].0
    }

    /// Says from now on that its only instance is at `address`.
    pub(crate) fn only(&mut self, address: SocketAddr) {
        self.instances = vec![(address, None)];
    }

    /// An instance on a host that does not answer.
    pub(crate) fn dead_endpoint(&mut self) {
        self.instance(None);
    }

    pub(crate) fn instance(&mut self, application: Option<SocketAddr>) -> SocketAddr {
        let listen = free_address();
        self.instances.push((listen, application));
        listen
    }

    /// Its proxy starts with a certificate that says it is a `db` of this cluster.
    pub(crate) async fn start_as(&mut self, domain: &str, datacenter: &str) {
        self.publish();
        let uri = format!("spiffe://{domain}/ns/default/dc/{datacenter}/svc/db");
        let leaf = leaf(&self.issuer, &uri, Duration::from_secs(86_400));
        let services = self.instances.iter().enumerate().filter_map(|(n, (listen, app))| {
            Some(LocalService {
                service: name("db"),
                instance: format!("db-{n}").parse().expect("an id"),
                identity: Some(leaf.clone()),
                inbound: Some(Inbound {
                    listen: *listen,
                    application: (*app)?.into(),
                    ports: Vec::new(),
                }),
                outbounds: Vec::new(),
            })
        });
        let (_, plans) =
            watch::channel(Arc::new(Plan { services: services.collect(), ..Plan::default() }));
        let config = Config { workers: 1, ..Config::default() };
        let proxy = Proxy::start(config, plans, self.views.subscribe(), &Registry::new());
        self.proxy = Some(proxy.expect("it starts"));
        for (listen, app) in &self.instances {
            while app.is_some() && TcpStream::connect(listen).await.is_err() {
                tokio::task::yield_now().await;
            }
        }
    }

    pub(crate) async fn start(&mut self) {
        let domain = self.domain.clone();
        self.start_as(&domain, "dc2").await;
    }

    /// Tells the caller's cluster of it, as the last that stands in for `db`.
    pub(crate) fn announce(&self, world: &mut World) {
        let target = Target { service: name("db"), peer: Some(self.name.clone()) };
        let (gateway_mode, endpoints) = (self.gateway_mode, self.endpoints());
        world.others.failover.retain(|known| known.target != target);
        world.others.failover.push(TargetView { target, gateway_mode, endpoints });
        world.others.peers.insert(self.name.clone(), self.as_peer());
    }

    pub(crate) fn as_peer(&self) -> PeerView {
        let locality = Locality::default();
        let gateway =
            |address: &SocketAddr| PeerGateway { address: *address, locality: locality.clone() };
        PeerView {
            trust_domain: self.domain.parse().expect("good"),
            datacenter: "dc2".parse().expect("a name"),
            roots: vec![self.root.as_slice().into()],
            revoked: Default::default(),
            calls_us: "home".parse().expect("a name"),
            is_live: true,
            gateways: self.gateways.iter().map(gateway).collect(),
        }
    }

    pub(crate) fn endpoints(&self) -> Arc<[Endpoint]> {
        let endpoint = |(n, (mesh, _)): (usize, &(SocketAddr, Option<SocketAddr>))| Endpoint {
            node: format!("host-{n}").parse().expect("a name"),
            instance: format!("db-{n}").parse().expect("an id"),
            address: mesh.ip(),
            has_own_address: false,
            ports: Default::default(),
            port: 1,
            mesh: Some(*mesh),
            locality: Locality::default(),
            tags: BTreeSet::new(),
            weights: Weights::default(),
            status: Status::Passing,
        };
        self.instances.iter().enumerate().map(endpoint).collect()
    }

    /// Gives its proxy the view that its fields make.
    pub(crate) fn publish(&mut self) {
        self.index += 1;
        let index = Index(self.index);
        let chain = Chain {
            service: name("db"),
            protocol: self.protocol,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(30),
            local_connect_timeout: Duration::from_secs(5),
            inbound_connections_max: None,
            policies: Arc::default(),
        };
        let home: PeerName = "home".parse().expect("a name");
        let pair = Pair {
            source: Side::Exact(name("web")),
            destination: Side::Exact(name("db")),
            peer: Some(home.clone()),
        };
        let intention = Arc::new(Intention {
            id: "1".into(),
            pair,
            action: self.action,
            requests: None,
            description: "".into(),
            meta: BTreeMap::new(),
            created_at: UnixTime::default(),
            updated_at: UnixTime::default(),
        });
        let row = Row { value: intention, created: index, modified: index };
        let service = ServiceView::alone(chain, self.endpoints(), index);
        let exports = self.is_exported.then(|| (name("db"), BTreeSet::from([home.clone()])));
        let view = View {
            index,
            trust: Some(Arc::new(Trust {
                trust_domain: self.domain.parse().expect("good"),
                datacenter: "dc2".parse().expect("a name"),
                roots: vec![self.root.as_slice().into()],
                default_action: Action::Deny,
                issuing: Default::default(),
                revoked: Default::default(),
            })),
            services: BTreeMap::from([(name("db"), Arc::new(service))]),
            intentions: Intentions::restore([row], index),
            peers: Arc::new(self.caller.iter().map(|peer| (home.clone(), peer.clone())).collect()),
            exports: Arc::new(exports.into_iter().collect()),
            ..View::default()
        };
        self.views.send_replace(Arc::new(view));
    }
}

/// A gateway that passes every connection on to one address, until it is stopped or frozen.
pub(crate) struct Passage {
    pub(crate) address: SocketAddr,
    pub(crate) passed: Arc<AtomicUsize>,
    /// The first bytes that it passed last.
    pub(crate) hello: watch::Receiver<Vec<u8>>,
    frozen: watch::Sender<bool>,
}

impl Passage {
    pub(crate) async fn to(callee: SocketAddr) -> Self {
        let (listener, address) = listener().await;
        let passed = Arc::new(AtomicUsize::new(0));
        let (frozen, freezing) = watch::channel(false);
        let (heard, hello) = watch::channel(Vec::new());
        let count = passed.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(pass(socket, callee, freezing.clone(), heard.clone()));
            }
        });
        Self { address, passed, hello, frozen }
    }

    /// It goes on accepting, and moves no byte while it is frozen: like a stopped process.
    pub(crate) fn freeze(&self, is_frozen: bool) {
        self.frozen.send_replace(is_frozen);
    }
}

async fn pass(
    mut socket: TcpStream,
    callee: SocketAddr,
    mut frozen: watch::Receiver<bool>,
    heard: watch::Sender<Vec<u8>>,
) {
    let thawed = frozen.wait_for(|is_frozen| !is_frozen).await.is_ok();
    if !thawed {
        return;
    }
    let mut hello = vec![0; 4096];
    let Ok(count) = socket.peek(&mut hello).await else { return };
    heard.send_replace(hello[..count].to_vec());
    let Ok(mut onward) = TcpStream::connect(callee).await else { return };
    let mut copying = std::pin::pin!(tokio::io::copy_bidirectional(&mut socket, &mut onward));
    loop {
        tokio::select! {
            biased;
            changed = frozen.wait_for(|is_frozen| *is_frozen) => if changed.is_err() { return },
            _ = copying.as_mut() => return,
        }
        if frozen.wait_for(|is_frozen| !is_frozen).await.is_err() {
            return;
        }
    }
}
