//! A caller `web`, a callee `db`, their applications, and all that stands between.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hawser_core::address::{Address, SocketPath};
use hawser_core::ca::Validity;
use hawser_core::catalog::{self, Instance, Locality, Node, Protocol, Row, Weights};
use hawser_core::chain::Chain;
use hawser_core::clock::{Index, Stamp, UnixTime};
use hawser_core::entry::{Body, Entry, Kind, Target};
use hawser_core::health::Status;
use hawser_core::intention::{Action, Intention, Intentions, Pair, Side};
use hawser_core::jwt::Providers;
use hawser_core::name::{PortName, ServiceName};
use hawser_core::normal;
use hawser_core::permission::Requests;
use hawser_core::policy::Policies;
use hawser_core::revocation::Revoked;
use hawser_core::spiffe::{Role, SpiffeId};
use hawser_core::state::{Command, NodeChanges, State};
use hawser_core::view::{Endpoint, PeerView, ServiceView, Trust, View};
use hawser_identity::Leaf;
use hawser_proxy::tls::{self, Identity};
use hawser_proxy::{
    AccessLog, Config, Inbound, Limits, ListenerStatus, LocalService, NamedPort, Outbound, Plan,
    Proxy,
};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus::Registry;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub(crate) mod region;
pub(crate) mod tap;

use region::Others;
use tap::Tap;

const DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

pub(crate) struct World {
    pub(crate) outbound: SocketAddr,
    pub(crate) limits: Limits,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) leaf_lifetime: Duration,
    pub(crate) has_client_identity: bool,
    pub(crate) has_server_identity: bool,
    pub(crate) server_identity: &'static str,
    pub(crate) status: Status,
    /// Most connections that an instance of `db` takes.
    pub(crate) inbound_connections_max: Option<u32>,
    /// What stands before an instance's proxy, by the proxy's own address.
    taps: BTreeMap<SocketAddr, SocketAddr>,
    /// What entries say of `db`.
    pub(crate) policies: Policies,
    /// What they say of `web`, the caller.
    pub(crate) caller_policies: Policies,
    /// Whom `web` calls.
    pub(crate) destination: Target,
    /// Config entries, `kind/name` and JSON: with any, the view is what servers would make of them
    /// and of the instances, of which the first has `version` `v1` in its meta, and so on.
    pub(crate) entries: Vec<(&'static str, &'static str)>,
    /// What the caller's view has besides.
    pub(crate) others: Others,
    /// The ports of `db` by name, and which of them `web` calls.
    pub(crate) named_ports: Vec<NamedPort>,
    pub(crate) upstream_port: Option<PortName>,
    /// The socket on which `web` reaches its upstream in place of [`Self::outbound`], and its mode.
    pub(crate) upstream_socket: Option<(SocketPath, u32)>,
    pub(crate) client: Option<Proxy>,
    pub(crate) server: Option<Proxy>,
    /// What the two log.
    pub(crate) logs: [AccessLog; 2],
    pub(crate) trace_ppm: Option<u32>,
    protocol: Protocol,
    /// Where each instance's proxy listens, and its application where our proxy serves it.
    instances: Vec<(SocketAddr, Option<Address>)>,
    issuer: Issuer<'static, KeyPair>,
    root: Vec<u8>,
    is_root_known: bool,
    /// Whom nobody believes any more.
    pub(crate) revoked: Revoked,
    /// How many workers the callee's proxy has. With one, what one connection saw of a new view
    /// all others have seen too.
    pub(crate) server_workers: usize,
    action: Action,
    pub(crate) requests: Option<Requests>,
    pub(crate) rules: normal::Rules,
    pub(crate) providers: Providers,
    index: u64,
    views: watch::Sender<Arc<View>>,
    client_plans: watch::Sender<Arc<Plan>>,
    server_plans: watch::Sender<Arc<Plan>>,
    client_registry: Registry,
    server_registry: Registry,
}

impl World {
    pub(crate) fn new(protocol: Protocol) -> Self {
        let (root, issuer) = authority();
        Self {
            outbound: free_address(),
            limits: Limits::default(),
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            leaf_lifetime: Duration::from_secs(86_400),
            has_client_identity: true,
            has_server_identity: true,
            server_identity: "db",
            status: Status::Passing,
            inbound_connections_max: None,
            taps: BTreeMap::new(),
            policies: Policies::default(),
            caller_policies: Policies::default(),
            destination: Target { service: name("db"), peer: None },
            entries: Vec::new(),
            others: Others::default(),
            named_ports: Vec::new(),
            upstream_port: None,
            upstream_socket: None,
            client: None,
            server: None,
            logs: Default::default(),
            trace_ppm: None,
            protocol,
            instances: Vec::new(),
            issuer,
            root,
            is_root_known: true,
            revoked: Revoked::default(),
            server_workers: 2,
            action: Action::Allow,
            requests: None,
            rules: normal::Rules::default(),
            providers: Providers::default(),
            index: 1,
            views: watch::channel(Arc::default()).0,
            client_plans: watch::channel(Arc::default()).0,
            server_plans: watch::channel(Arc::default()).0,
            client_registry: Registry::new(),
            server_registry: Registry::new(),
        }
    }

    pub(crate) async fn start(&mut self) {
        self.start_unbound();
        let mut expected: Vec<_> =
            self.instances.iter().filter(|(_, app)| app.is_some()).map(|(at, _)| *at).collect();
        if self.upstream_socket.is_none() {
            expected.push(self.outbound);
        }
        for address in expected {
            self.until_bound(address.into()).await;
        }
        if let Some((path, _)) = self.upstream_socket.clone() {
            self.until_bound(path.into()).await;
        }
    }

    pub(crate) fn start_unbound(&mut self) {
        self.publish();
        let server = LocalService {
            service: name("db"),
            instance: "unused".parse().expect("an id"),
            identity: self.has_server_identity.then(|| self.leaf(self.server_identity)),
            inbound: None,
            outbounds: Vec::new(),
        };
        let services = self.instances.iter().enumerate().filter_map(|(n, (listen, app))| {
            let inbound = Some(Inbound {
                listen: *listen,
                application: app.clone()?,
                ports: self.named_ports.clone(),
            });
            let instance = format!("db-{n}").parse().expect("an id");
            Some(LocalService { instance, inbound, ..server.clone() })
        });
        self.server_plans
            .send_replace(Arc::new(Plan { services: services.collect(), ..Plan::default() }));
        self.move_outbound(self.outbound);
        let config = |workers, log: &AccessLog| Config {
            workers,
            limits: self.limits.clone(),
            access_log: log.clone(),
            trace_ppm: self.trace_ppm,
            ..Config::default()
        };
        let [client_log, server_log] = &self.logs;
        let start = |workers, log, plans: &watch::Sender<_>, registry| {
            Proxy::start(config(workers, log), plans.subscribe(), self.views.subscribe(), registry)
                .expect("it starts")
        };
        self.client = Some(start(1, client_log, &self.client_plans, &self.client_registry));
        self.server =
            Some(start(self.server_workers, server_log, &self.server_plans, &self.server_registry));
    }

    pub(crate) fn move_outbound(&mut self, listen: SocketAddr) {
        self.outbound = listen;
        let known = self.client_plans.borrow().services.first().and_then(|s| s.identity.clone());
        let identity = self.has_client_identity.then(|| known.unwrap_or_else(|| self.leaf("web")));
        let client = LocalService {
            service: name("web"),
            instance: "web-1".parse().expect("an id"),
            identity,
            inbound: None,
            outbounds: vec![self.upstream(listen)],
        };
        self.client_plans
            .send_replace(Arc::new(Plan { services: vec![client], ..Plan::default() }));
    }

    /// The ports of `db` as its instances declare them; the first is the default one.
    fn catalog_ports(&self) -> Arc<[catalog::NamedPort]> {
        let ports = self.named_ports.iter().enumerate().map(|(n, named)| catalog::NamedPort {
            name: named.name.clone(),
            port: named.application.tcp().map_or(0, |at| at.port()),
            is_default: n == 0,
            protocol: named.protocol,
        });
        ports.collect()
    }

    fn upstream(&self, listen: SocketAddr) -> Outbound {
        let destination = self.destination.clone();
        match self.upstream_socket.clone() {
            None => Outbound {
                destination,
                port: self.upstream_port.clone(),
                listen: listen.into(),
                mode: 0,
            },
            Some((path, mode)) => Outbound { destination, port: None, listen: path.into(), mode },
        }
    }

    /// What the caller's calls were counted as: cluster and verdict.
    pub(crate) fn client_clusters(&self) -> Vec<(String, String)> {
        let edges = self.client.as_ref().map(Proxy::take_edges).unwrap_or_default();
        edges
            .into_iter()
            .map(|(key, _)| (key.cluster.to_string(), key.verdict.to_string()))
            .collect()
    }

    /// Who `web` is, and who vouches for it: what a peer must know to be called by it.
    pub(crate) fn as_peer(&self) -> PeerView {
        PeerView {
            trust_domain: DOMAIN.parse().expect("good"),
            datacenter: "dc1".parse().expect("a name"),
            roots: vec![self.root.as_slice().into()],
            revoked: Default::default(),
            calls_us: "unused".parse().expect("a name"),
            is_live: true,
            gateways: Vec::new(),
        }
    }

    pub(crate) async fn stop(&mut self) {
        for proxy in [self.client.take(), self.server.take()].into_iter().flatten() {
            proxy.drain(Duration::ZERO).await;
        }
    }

    pub(crate) fn intend(&mut self, action: Action) {
        self.action = action;
        self.publish();
    }

    /// Shows both proxies the world as it is now.
    pub(crate) fn republish(&mut self) {
        self.publish();
    }

    /// Waits until requests for `path` are denied.
    pub(crate) async fn until_guarded(&self, path: &str) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while get(self.outbound, path).await.status() != StatusCode::FORBIDDEN {
            assert!(tokio::time::Instant::now() < deadline, "{path} is still allowed");
        }
    }

    /// Tells the first instance's proxy that its application is elsewhere now.
    pub(crate) fn retarget(&mut self, application: SocketAddr) {
        self.server_plans.send_modify(|plan| {
            let plan = Arc::make_mut(plan);
            let inbound = plan.services.first_mut().and_then(|first| first.inbound.as_mut());
            inbound.expect("an instance").application = application.into();
        });
    }

    /// Shows both proxies that the service speaks something else.
    pub(crate) fn speak(&mut self, protocol: Protocol) {
        self.protocol = protocol;
        self.publish();
    }

    pub(crate) fn forget_root(&mut self) {
        self.is_root_known = false;
        self.publish();
    }

    pub(crate) fn client_listeners(&self) -> Vec<ListenerStatus> {
        self.client.as_ref().map(Proxy::listeners).unwrap_or_default()
    }

    pub(crate) async fn until_bound(&self, address: Address) {
        eventually("the listener is bound", || {
            let server = self.server.as_ref().map(Proxy::listeners).unwrap_or_default();
            let mut all = self.client_listeners().into_iter().chain(server);
            all.any(|listener| listener.address == address && listener.error.is_none())
        })
        .await;
    }

    pub(crate) async fn until_status(&self, status: StatusCode) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let answer = get(self.outbound, "/").await;
            if answer.status() == status {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "still {}", answer.status());
        }
    }

    pub(crate) fn client_edges(&self) -> Vec<(String, u64)> {
        let edges = self.client.as_ref().map(Proxy::take_edges).unwrap_or_default();
        edges.into_iter().map(|(key, tally)| (key.verdict.to_string(), tally.count)).collect()
    }

    pub(crate) fn client_metric(&self, name: &str) -> f64 {
        sum(&self.client_registry, name)
    }

    /// The values of the counter's children whose labels include all of `labels`, added up.
    pub(crate) fn client_count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        count(&self.client_registry, name, labels)
    }

    pub(crate) fn server_count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        count(&self.server_registry, name, labels)
    }

    pub(crate) fn server_metric(&self, name: &str) -> f64 {
        sum(&self.server_registry, name)
    }

    /// The reasons of all refusals so far.
    pub(crate) fn server_reasons(&self) -> Vec<String> {
        let families = self.server_registry.gather();
        let refusals = families.iter().filter(|f| f.name() == "hawser_proxy_refusals_total");
        refusals
            .flat_map(|family| family.get_metric())
            .flat_map(|metric| metric.get_label())
            .filter(|label| label.name() == "reason")
            .map(|label| label.value().to_owned())
            .collect()
    }

    /// What a client that is no proxy calls `db` with, as `web`: TLS without ALPN.
    pub(crate) fn native_client(&self) -> rustls::ClientConfig {
        self.numbered_client(&rand::random::<[u8; 16]>().map(|octet| octet & 0x7f | 1))
    }

    /// The same, with a certificate of this serial number: 16 octets.
    pub(crate) fn numbered_client(&self, serial: &[u8]) -> rustls::ClientConfig {
        let view = self.views.borrow();
        let anchors =
            Arc::new(tls::anchors(view.trust.as_deref().expect("published"), &view.peers));
        let uri = format!("spiffe://{DOMAIN}/ns/default/dc/dc1/svc/web");
        let leaf = numbered_leaf(&self.issuer, &uri, self.leaf_lifetime, Some(serial));
        let identity = Identity::new(&leaf, &anchors, 0).expect("a good leaf");
        let callee = SpiffeId { role: Role::Service(name("db")), ..leaf.id.clone() };
        let config = identity.dial(callee, &[tls::ALPN_H2]).expect("good");
        let mut config = rustls::ClientConfig::clone(&config);
        config.alpn_protocols.clear();
        config
    }

    /// Publishes other clusters anew, and of one's own nothing: services stay the same objects.
    pub(crate) fn publish_others(&mut self) {
        let view = View::clone(&self.views.borrow());
        let peers = Arc::new(self.others.peers.clone());
        self.views.send_replace(Arc::new(View { peers, ..view }));
    }

    /// Writes other config entries.
    pub(crate) fn write(&mut self, entries: &[(&'static str, &'static str)]) {
        self.entries = entries.to_vec();
        self.publish();
    }

    /// The state that servers would have.
    fn state(&self) -> State {
        let mut state = State::default();
        let mut commands: Vec<Command> = Vec::new();
        for (key, json) in &self.entries {
            let (kind, name) = key.split_once('/').expect("kind/name");
            let kind: Kind = kind.parse().expect(kind);
            let body = Body::read(kind, &mut serde_json::Deserializer::from_str(json));
            let entry = Entry::new(name, body.expect(json)).expect(json);
            commands.push(Command::PutEntry { entry, expected: None, fits: None });
        }
        for (n, (mesh, _)) in self.instances.iter().enumerate() {
            commands.push(Command::SyncNode(NodeChanges {
                node: Node {
                    name: format!("host-{n}").parse().expect("a name"),
                    id: format!("{n}").into(),
                    address: mesh.ip(),
                    locality: Locality::default(),
                    meta: BTreeMap::new(),
                    tagged: Default::default(),
                },
                put_instances: vec![Instance {
                    id: format!("db-{n}").parse().expect("an id"),
                    service: name("db"),
                    address: None,
                    port: 1,
                    tags: BTreeSet::new(),
                    meta: [("version".into(), format!("v{}", n + 1).into())].into(),
                    weights: Weights::default(),
                    protocol: None,
                    mesh_port: Some(mesh.port()),
                    enable_tag_override: false,
                    gateway: None,
                    socket: None,
                    ports: Default::default(),
                    tagged: Default::default(),
                }],
                put_checks: vec![],
                drop_instances: vec![],
                drop_checks: vec![],
            }));
        }
        for (n, command) in (1..).zip(commands) {
            let stamp = Stamp { index: Index(n), time: UnixTime::from_secs(n) };
            state.apply(stamp, command).expect("applied");
        }
        state
    }

    /// Lets everyone see what was changed here.
    pub(crate) fn publish(&mut self) {
        self.index += 1;
        let index = Index(self.index);
        let endpoint = |(n, (mesh, _)): (usize, &(SocketAddr, Option<Address>))| Endpoint {
            node: format!("host-{n}").parse().expect("a name"),
            instance: format!("db-{n}").parse().expect("an id"),
            address: mesh.ip(),
            has_own_address: false,
            ports: self.catalog_ports(),
            port: 1,
            mesh: Some(*self.taps.get(mesh).unwrap_or(mesh)),
            locality: Locality::default(),
            tags: BTreeSet::new(),
            weights: Weights::default(),
            status: self.status,
        };
        let service = ServiceView::alone(
            Chain {
                service: name("db"),
                protocol: self.protocol,
                connect_timeout: self.connect_timeout,
                request_timeout: self.request_timeout,
                local_connect_timeout: Duration::from_secs(5),
                inbound_connections_max: self.inbound_connections_max,
                policies: Arc::new(self.policies.clone()),
            },
            self.instances.iter().enumerate().map(endpoint).collect(),
            index,
        );
        let chain = Chain {
            service: name("web"),
            policies: Arc::new(self.caller_policies.clone()),
            ..service.chain
        };
        let mut services = if self.entries.is_empty() {
            vec![service]
        } else {
            let state = self.state();
            let all = BTreeSet::from([name("db"), self.destination.service.clone()]);
            all.iter().map(|name| hawser_core::view::service(&state, name)).collect()
        };
        services.push(ServiceView::alone(chain, Arc::new([]), index));
        let intention = Arc::new(Intention {
            id: "1".into(),
            pair: Pair {
                source: Side::Exact(name("web")),
                destination: Side::Exact(name("db")),
                peer: None,
            },
            action: self.action,
            requests: self.requests.clone().map(Arc::new),
            description: "".into(),
            meta: BTreeMap::new(),
            created_at: UnixTime::default(),
            updated_at: UnixTime::default(),
        });
        let row = Row { value: intention, created: index, modified: index };
        let roots = if self.is_root_known { vec![self.root.as_slice().into()] } else { vec![] };
        let view = View {
            index,
            trust: Some(Arc::new(Trust {
                trust_domain: DOMAIN.parse().expect("good"),
                datacenter: "dc1".parse().expect("a name"),
                roots,
                default_action: Action::Deny,
                issuing: Default::default(),
                revoked: Arc::new(self.revoked.clone()),
            })),
            services: services
                .into_iter()
                .map(|it| (it.chain.service.clone(), Arc::new(it)))
                .collect(),
            intentions: Intentions::restore([row], index),
            normal: self.rules,
            providers: Arc::new(self.providers.clone()),
            ..View::default()
        };
        let view = self.others.complete(view).compiled(&View::default());
        self.views.send_replace(Arc::new(view));
    }

    /// Where another service of the caller's host calls `db`; nobody allows it to.
    pub(crate) async fn also_calls(&mut self, service: &'static str) -> SocketAddr {
        let listen = free_address();
        let other = LocalService {
            service: name(service),
            instance: service.parse().expect("an id"),
            identity: Some(self.leaf(service)),
            inbound: None,
            outbounds: vec![Outbound {
                destination: self.destination.clone(),
                port: None,
                listen: listen.into(),
                mode: 0,
            }],
        };
        self.client_plans.send_modify(|plan| {
            let mut more = Plan::clone(plan);
            more.services.push(other);
            *plan = Arc::new(more);
        });
        self.until_bound(listen.into()).await;
        listen
    }

    fn leaf(&self, service: &str) -> Arc<Leaf> {
        let uri = format!("spiffe://{DOMAIN}/ns/default/dc/dc1/svc/{service}");
        leaf(&self.issuer, &uri, self.leaf_lifetime)
    }

    /// An instance with this application.
    pub(crate) fn instance(&mut self, application: SocketAddr) -> SocketAddr {
        let listen = free_address();
        self.instances.push((listen, Some(application.into())));
        listen
    }

    /// Where the last instance's application listens, from now on elsewhere.
    pub(crate) fn move_application(&mut self, to: Address) -> Option<Address> {
        self.instances.last_mut().and_then(|(_, application)| application.replace(to))
    }

    /// Where the first instance's proxy listens.
    pub(crate) fn inbound(&self) -> SocketAddr {
        self.instances.first().expect("an instance").0
    }

    /// An instance whose application is somebody else's.
    pub(crate) fn serve_application(&mut self, application: SocketAddr) {
        self.instance(application);
    }

    /// Answers with the request's body, or with a failure where it breaks off.
    pub(crate) async fn http_mirror_or_fail(&mut self) -> SocketAddr {
        let address = serve(|request: Request<Incoming>| async move {
            match request.into_body().collect().await {
                Ok(body) => Response::new(Full::new(body.to_bytes()).boxed()),
                Err(_) => {
                    let mut response = Response::new(Full::new(Bytes::new()).boxed());
                    *response.status_mut() = StatusCode::BAD_REQUEST;
                    response
                }
            }
        })
        .await;
        self.instance(address)
    }

    /// Puts a tap before the first instance's proxy.
    pub(crate) async fn tap(&mut self) -> Tap {
        self.tap_at(None).await
    }

    /// Puts one there that passes on `rate` bytes each millisecond at most.
    pub(crate) async fn tap_at(&mut self, rate: Option<usize>) -> Tap {
        let inbound = self.inbound();
        let (tap, address) = Tap::before(inbound, rate).await;
        self.taps.insert(inbound, address);
        tap
    }

    /// What a proxy of `db` proves who it is with, once the view is published.
    fn identity_of_db(&self) -> Identity {
        let view = self.views.borrow();
        let trust = view.trust.as_deref().expect("published");
        let anchors = Arc::new(tls::anchors(trust, &view.peers));
        Identity::new(&self.leaf("db"), &anchors, 0).expect("a good leaf")
    }

    /// An instance whose proxy shows who it is to the first at once and to others only once the
    /// gate is open. It echoes; counted are connections that brought a byte.
    pub(crate) async fn hesitant_proxy(&mut self) -> (Gate, Arc<AtomicUsize>) {
        self.publish();
        let acceptor = self.identity_of_db().accept(tls::Wire::Tcp);
        let acceptor = tokio_rustls::TlsAcceptor::from(acceptor);
        let (listener, address) = listener().await;
        self.instances.push((address, None));
        let (gate, count) = (Gate::new(), Arc::new(AtomicUsize::new(0)));
        let (hold, counted) = (gate.clone(), count.clone());
        tokio::spawn(async move {
            let mut is_first = true;
            while let Ok((socket, _)) = listener.accept().await {
                let waits = !std::mem::replace(&mut is_first, false);
                let (acceptor, hold, counted) = (acceptor.clone(), hold.clone(), counted.clone());
                tokio::spawn(async move {
                    if waits {
                        hold.wait().await;
                    }
                    let mut stream = acceptor.accept(socket).await?;
                    stream.write_all(&[0]).await?;
                    let mut bytes = [0; 1024];
                    let mut first = true;
                    loop {
                        let count = stream.read(&mut bytes).await?;
                        if count == 0 {
                            return stream.shutdown().await;
                        }
                        counted.fetch_add(usize::from(first), Ordering::SeqCst);
                        first = false;
                        stream.write_all(&bytes[..count]).await?;
                    }
                });
            }
        });
        (gate, count)
    }

    /// What a proxy of `db` that speaks nothing but `wire` accepts with.
    fn acceptor(&mut self, wire: tls::Wire) -> tokio_rustls::TlsAcceptor {
        self.publish();
        tokio_rustls::TlsAcceptor::from(self.identity_of_db().accept(wire))
    }

    /// An instance whose proxy is of the version before requests in streams: it answers in HTTP/2.
    pub(crate) async fn old_http_proxy(&mut self) {
        let acceptor = self.acceptor(tls::Wire::H2);
        let (listener, address) = listener().await;
        self.instances.push((address, None));
        let answer = |request: Request<Incoming>| async move {
            let text = format!("old {} {}", request.uri(), request.headers().contains_key("host"));
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
        };
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let stream = TokioIo::new(acceptor.accept(socket).await.expect("a caller"));
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(stream, service_fn(answer)).await;
                });
            }
        });
    }

    /// An instance whose proxy is of the version before streams: it echoes, and counts connections.
    pub(crate) async fn old_proxy(&mut self) -> Arc<AtomicUsize> {
        let acceptor = self.acceptor(tls::Wire::Tcp);
        let (listener, address) = listener().await;
        self.instances.push((address, None));
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(socket).await?;
                    stream.write_all(&[0]).await?;
                    let (mut reader, mut writer) = tokio::io::split(stream);
                    tokio::io::copy(&mut reader, &mut writer).await?;
                    writer.shutdown().await
                });
            }
        });
        count
    }

    /// Before the first instance's proxy, one that was just replaced: in the first connection it
    /// says goodbye before it has read a request. Those that follow reach the proxy.
    pub(crate) async fn leaving_proxy(&mut self) {
        self.publish();
        let inbound = self.inbound();
        let acceptor = self.identity_of_db().accept(tls::Wire::H2);
        let acceptor = tokio_rustls::TlsAcceptor::from(acceptor);
        let (listener, address) = listener().await;
        self.taps.insert(inbound, address);
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await?;
            let mut stream = acceptor.accept(socket).await?;
            // SETTINGS, and GOAWAY of stream 0 without an error (RFC 9113 §6.5, §6.8).
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
            stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await?;
            let leaving = tokio::spawn(async move { read_all(&mut stream).await });
            while let Ok((mut caller, _)) = listener.accept().await {
                let mut callee = TcpStream::connect(inbound).await?;
                tokio::spawn(async move {
                    tokio::io::copy_bidirectional(&mut caller, &mut callee).await
                });
            }
            leaving.abort();
            Ok::<_, std::io::Error>(())
        });
    }

    /// An instance whose host does not answer.
    pub(crate) fn dead_endpoint(&mut self) {
        self.instances.push((free_address(), None));
    }

    /// An instance whose proxy accepts and then says nothing.
    pub(crate) async fn stalled_endpoint(&mut self) {
        let (listener, address) = listener().await;
        self.instances.push((address, None));
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((socket, _)) = listener.accept().await {
                held.push(socket);
            }
        });
    }

    /// An instance whose application is not there.
    pub(crate) fn gone_application(&mut self) {
        self.instance(free_address());
    }

    pub(crate) async fn tcp_echo(&mut self) -> SocketAddr {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = socket.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    let _ = writer.shutdown().await;
                });
            }
        });
        self.instance(address)
    }

    /// Answers with its name, the request's line and its fields.
    pub(crate) async fn http_echo(&mut self, tag: &'static str) -> SocketAddr {
        let address = serve(move |request: Request<Incoming>| async move {
            let text =
                format!("{tag} {} {} {:?}", request.method(), request.uri(), request.headers());
            Response::new(Full::new(Bytes::from(text)).boxed())
        })
        .await;
        self.instance(address)
    }

    /// Answers after a while, so that an instance that was never tried looks faster.
    pub(crate) async fn http_slow(&mut self, span: Duration) -> SocketAddr {
        let address = serve(move |_| async move {
            tokio::time::sleep(span).await;
            Response::new(Full::new(Bytes::from_static(b"slow")).boxed())
        })
        .await;
        self.instance(address)
    }

    /// Answers with the request's body.
    pub(crate) async fn http_mirror(&mut self) -> SocketAddr {
        let address = serve(|request: Request<Incoming>| async move {
            let body = request.into_body().collect().await.expect("whole").to_bytes();
            Response::new(Full::new(body).boxed())
        })
        .await;
        self.instance(address)
    }

    /// Answers with `size` bytes; counts those it could write.
    pub(crate) async fn http_flood(&mut self, size: usize) -> Arc<AtomicUsize> {
        let written = Arc::new(AtomicUsize::new(0));
        let count = written.clone();
        let address = serve(move |_| {
            let count = count.clone();
            async move {
                const CHUNK: usize = 64 * 1024;
                let frames = (0..size / CHUNK).map(move |_| {
                    count.fetch_add(CHUNK, Ordering::Relaxed);
                    Ok(Frame::data(Bytes::from(vec![0; CHUNK])))
                });
                Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed())
            }
        })
        .await;
        self.instance(address);
        written
    }

    /// Answers only once its gate is open.
    pub(crate) async fn http_gated(&mut self) -> Gate {
        let gate = Gate::new();
        let inner = gate.clone();
        let address = serve(move |_| {
            let gate = inner.clone();
            async move {
                gate.wait().await;
                Response::new(Full::new(Bytes::from_static(b"late")).boxed())
            }
        })
        .await;
        self.instance(address);
        gate
    }

    /// Switches to an echo of bytes.
    pub(crate) async fn upgrading(&mut self) -> SocketAddr {
        let address = serve(|mut request: Request<Incoming>| async move {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgraded.await.expect("upgraded"));
                let mut buffer = [0; 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    stream.write_all(&buffer[..count]).await.expect("open");
                }
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .body(Full::new(Bytes::new()).boxed())
                .expect("good")
        })
        .await;
        self.instance(address)
    }

    /// Answers each head on a connection with `answer` as it is, `per_connection` times, and then
    /// closes it.
    pub(crate) async fn http_raw(&mut self, answer: &'static [u8], per_connection: usize) {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    for _ in 0..per_connection {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            let Ok(octet) = socket.read_u8().await else { return };
                            head.push(octet);
                        }
                        if socket.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        self.instance(address);
    }

    /// HTTP/2: answers with the request's body and gRPC's trailers.
    pub(crate) async fn grpc_echo(&mut self) -> SocketAddr {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service_fn(|request: Request<Incoming>| async move {
                    let body = request.into_body().collect().await.expect("whole").to_bytes();
                    let mut trailers = hyper::HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().expect("good"));
                    let frames =
                        [Ok::<_, Infallible>(Frame::data(body)), Ok(Frame::trailers(trailers))];
                    let body = StreamBody::new(futures_util::stream::iter(frames));
                    Ok::<_, Infallible>(
                        Response::builder()
                            .header("content-type", "application/grpc")
                            .body(body)
                            .expect("good"),
                    )
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service),
                );
            }
        });
        self.instance(address)
    }
}

pub(crate) fn leaf(issuer: &Issuer<'static, KeyPair>, uri: &str, lifetime: Duration) -> Arc<Leaf> {
    numbered_leaf(issuer, uri, lifetime, None)
}

fn numbered_leaf(
    issuer: &Issuer<'static, KeyPair>,
    uri: &str,
    lifetime: Duration,
    serial: Option<&[u8]>,
) -> Arc<Leaf> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.serial_number = serial.map(rcgen::SerialNumber::from_slice);
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - Duration::from_secs(300);
    params.not_after = now + lifetime;
    let certificate = params.signed_by(&key, issuer).expect("signed");
    let moment = |time: time::OffsetDateTime| {
        UnixTime::from_secs(u64::try_from(time.unix_timestamp()).expect("after 1970"))
    };
    Arc::new(Leaf {
        id: uri.parse().expect("an identity"),
        chain: vec![certificate.der().clone()],
        key: key.serialize_der().try_into().expect("PKCS#8"),
        validity: Validity {
            not_before: moment(params.not_before),
            not_after: moment(params.not_after),
        },
    })
}

/// A root, DER, and who signs by it.
pub(crate) fn authority() -> (Vec<u8>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).expect("a root").der().to_vec();
    (root, Issuer::new(params, key))
}

/// Offers no certificate.
#[derive(Debug)]
pub(crate) struct Anonymous;

impl rustls::client::ResolvesClientCert for Anonymous {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

pub(crate) async fn tls(
    address: SocketAddr,
    config: rustls::ClientConfig,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = "db.mesh".try_into().expect("a name");
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[derive(Clone)]
pub(crate) struct Gate {
    arrived: Arc<watch::Sender<bool>>,
    opened: Arc<watch::Sender<bool>>,
}

impl Gate {
    fn new() -> Self {
        Self {
            arrived: Arc::new(watch::channel(false).0),
            opened: Arc::new(watch::channel(false).0),
        }
    }

    async fn wait(&self) {
        self.arrived.send_replace(true);
        self.opened.subscribe().wait_for(|open| *open).await.expect("a gate");
    }

    pub(crate) async fn arrived(&self) {
        self.arrived.subscribe().wait_for(|arrived| *arrived).await.expect("a gate");
    }

    pub(crate) fn has_arrived(&self) -> bool {
        *self.arrived.borrow()
    }

    pub(crate) fn open(&self) {
        self.opened.send_replace(true);
    }
}

pub(crate) type AnyBody = http_body_util::combinators::BoxBody<Bytes, Infallible>;

pub(crate) async fn serve<F, A>(answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Response<AnyBody>> + Send + 'static,
{
    let (listener, address) = listener().await;
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service)
                .with_upgrades();
            tokio::spawn(serving);
        }
    });
    address
}

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// A listener that takes no connection until some of those that wait are accepted: what connects
/// before that has no answer. With it, those that wait.
pub(crate) async fn crowded() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let listener = socket.listen(1).expect("bound");
    let address = listener.local_addr().expect("bound");
    let mut waiting = Vec::new();
    let within = Duration::from_millis(500);
    while let Ok(connected) = tokio::time::timeout(within, TcpStream::connect(address)).await {
        waiting.push(connected.expect("room in the queue"));
        assert!(waiting.len() < 16, "its queue has no end");
    }
    (listener, address, waiting)
}

/// An address that nobody listens on now. Taken from below the ephemeral range, so that no
/// outgoing connection of another test takes it in between.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let offset = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id() as usize * 61;
        let port = 12_000 + (offset % 18_000) as u16;
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Response<Bytes> {
    get_with(address, path, &[]).await
}

pub(crate) async fn get_with(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Response<Bytes> {
    let mut request = Request::get(path).header("host", "db.example");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::new())).expect("good");
    call(address, request).await.expect("an answer")
}

pub(crate) async fn call(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, hyper::Error> {
    let stream = TcpStream::connect(address).await.expect("listening");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
}

pub(crate) async fn http2(
    address: SocketAddr,
) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("listening");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

/// Sends bytes as they are, and reads what comes back until it ends or pauses after a head.
pub(crate) async fn send_raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("listening");
    stream.write_all(bytes).await.expect("open");
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await;
        match read {
            Ok(Ok(count @ 1..)) => answer.extend_from_slice(&buffer[..count]),
            _ => break,
        }
        if answer.windows(4).any(|four| four == b"\r\n\r\n") {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) async fn read_all(reader: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    reader.read_to_end(&mut all).await.expect("it ends well");
    all
}

/// Waits until `holds`, at most ten seconds.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "not in ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn name(text: &str) -> ServiceName {
    text.parse().expect("a name")
}

fn count(registry: &Registry, name: &str, labels: &[(&str, &str)]) -> f64 {
    let families = registry.gather();
    let metrics = families.iter().filter(|family| family.name() == name);
    let has_all = |metric: &&prometheus::proto::Metric| {
        labels.iter().all(|(label, value)| {
            metric.get_label().iter().any(|it| it.name() == *label && it.value() == *value)
        })
    };
    metrics
        .flat_map(|family| family.get_metric())
        .filter(has_all)
        .map(|metric| match metric.get_histogram().get_sample_count() {
            0 => metric.get_counter().get_value(),
            samples => samples as f64,
        })
        .sum()
}

fn sum(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name);
    family.map_or(0.0, |family| {
        family.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum()
    })
}
