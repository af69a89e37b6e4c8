//! A mesh gateway between TLS clients and the instances that they ask for by name.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hawser_core::catalog::{Locality, Protocol, Weights};
use hawser_core::chain::Chain;
use hawser_core::clock::Index;
use hawser_core::health::Status;
use hawser_core::intention::Action;
use hawser_core::name::{PeerName, ServiceName};
use hawser_core::peering::PeerGateway;
use hawser_core::sni::InstanceLabel;
use hawser_core::view::{Endpoint, PeerView, ServiceView, Trust, View};
use hawser_proxy::{Config, Gateway, Limits, Plan, Proxy};
use prometheus::Registry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const WEB: &str = "web.default.default.east.external.own.consul";
const SERVERS: &str = "server.dc1.peering.own.consul";
const REFUSED: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];
const UNREACHABLE: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];

struct World {
    listen: SocketAddr,
    limits: Limits,
    instances: Vec<Instance>,
    statuses: Vec<Status>,
    exports: BTreeMap<ServiceName, BTreeSet<PeerName>>,
    peer_gateways: Vec<SocketAddr>,
    servers: Vec<SocketAddr>,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    views: watch::Sender<Arc<View>>,
    registry: Registry,
    proxy: Option<Proxy>,
}

/// Where an instance listens, and the certificate that it shows.
struct Instance {
    address: SocketAddr,
    certificate: Option<CertificateDer<'static>>,
}

impl World {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).expect("a root").der().clone();
        Self {
            listen: free_address(),
            limits: Limits::default(),
            instances: Vec::new(),
            statuses: Vec::new(),
            exports: BTreeMap::from([(name("web"), BTreeSet::from([name("east")]))]),
            peer_gateways: Vec::new(),
            servers: Vec::new(),
            root,
            issuer: Issuer::new(params, key),
            views: watch::channel(Arc::default()).0,
            registry: Registry::new(),
            proxy: None,
        }
    }

    /// Adds an instance that speaks TLS under a certificate of its own, and echoes.
    async fn instance(&mut self) {
        let (address, certificate) = self.echo().await;
        self.instances.push(Instance { address, certificate: Some(certificate) });
        self.statuses.push(Status::Passing);
    }

    /// Adds an instance that does not answer.
    fn dead_instance(&mut self) {
        self.instances.push(Instance { address: free_address(), certificate: None });
        self.statuses.push(Status::Passing);
    }

    async fn echo(&self) -> (SocketAddr, CertificateDer<'static>) {
        let label = |n| format!("{}.{WEB}", label(n));
        let names = [WEB.into(), SERVERS.into(), label(0), label(1), label(2)];
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS#8");
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("known versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .expect("they fit");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let stream = acceptor.accept(socket).await?;
                    let (mut reader, mut writer) = tokio::io::split(stream);
                    tokio::io::copy(&mut reader, &mut writer).await?;
                    writer.shutdown().await
                });
            }
        });
        (address, certificate)
    }

    fn publish(&self) {
        let index = Index(self.views.borrow().index.0 + 1);
        let endpoint = |(n, instance): (usize, &Instance)| Endpoint {
            node: name("n1"),
            instance: name(&format!("web-{n}")),
            address: instance.address.ip(),
            has_own_address: false,
            ports: Default::default(),
            port: 1,
            mesh: Some(instance.address),
            locality: Locality::default(),
            tags: BTreeSet::new(),
            weights: Weights::default(),
            status: self.statuses[n],
        };
        let chain = Chain {
            service: name("web"),
            protocol: Protocol::Tcp,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
            local_connect_timeout: Duration::from_secs(1),
            inbound_connections_max: None,
            policies: Arc::default(),
        };
        let endpoints = self.instances.iter().enumerate().map(endpoint).collect();
        let gateway =
            |address: &SocketAddr| PeerGateway { address: *address, locality: Locality::default() };
        let east = PeerView {
            trust_domain: name("east.consul"),
            datacenter: name("dc1"),
            roots: vec![],
            revoked: Default::default(),
            calls_us: name("us"),
            is_live: true,
            gateways: self.peer_gateways.iter().map(gateway).collect(),
        };
        let trust = Trust {
            trust_domain: name("own.consul"),
            datacenter: name("dc1"),
            roots: vec![],
            default_action: Action::Deny,
            issuing: Default::default(),
            revoked: Default::default(),
        };
        let web = ServiceView::alone(chain, endpoints, index);
        self.views.send_replace(Arc::new(View {
            index,
            trust: Some(Arc::new(trust)),
            services: BTreeMap::from([(name("web"), Arc::new(web))]),
            peers: Arc::new(BTreeMap::from([(name("east"), east)])),
            exports: Arc::new(self.exports.clone()),
            ..View::default()
        }));
    }

    async fn start(&mut self) {
        self.publish();
        let gateway = Gateway {
            service: name("mesh-gateway"),
            instance: name("mesh-gateway"),
            listen: self.listen,
            servers: self.servers.clone().into(),
        };
        let plan = Plan { gateway: Some(gateway), ..Plan::default() };
        let (_, plans) = watch::channel(Arc::new(plan));
        let config = Config { workers: 1, limits: self.limits.clone(), ..Config::default() };
        let proxy = Proxy::start(config, plans, self.views.subscribe(), &self.registry);
        self.proxy = Some(proxy.expect("it starts"));
        eventually("it listens", || {
            let listeners = self.proxy.as_ref().map(Proxy::listeners).unwrap_or_default();
            listeners.iter().any(|one| one.address == self.listen.into() && one.error.is_none())
        })
        .await;
    }

    /// A TLS connection through the gateway to `asked`.
    async fn call(&self, asked: &str) -> io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(Arc::new(self.client()));
        let server = asked.to_owned().try_into().expect("a name");
        connector.connect(server, TcpStream::connect(self.listen).await?).await
    }

    fn client(&self) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("known versions")
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// The ClientHello of a client that asks for `asked`.
    fn hello(&self, asked: &str) -> Vec<u8> {
        let server = asked.to_owned().try_into().expect("a name");
        let mut client =
            rustls::ClientConnection::new(Arc::new(self.client()), server).expect("good");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("memory");
        hello
    }

    /// What the gateway answers to `octets`, to its end.
    async fn answer(&self, octets: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.listen).await.expect("listening");
        let _ = stream.write_all(octets).await;
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        read.expect("an end").expect("no reset");
        answer
    }

    /// Which instance shows `certificate`.
    fn which(&self, stream: &TlsStream<TcpStream>) -> Option<usize> {
        let shown = stream.get_ref().1.peer_certificates()?.first()?.clone();
        self.instances.iter().position(|one| one.certificate.as_ref() == Some(&shown))
    }

    fn count(&self, metric: &str, label: &str) -> f64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == metric);
        metrics
            .flat_map(|family| family.get_metric())
            .filter(|metric| {
                label.is_empty() || metric.get_label().iter().any(|one| one.value() == label)
            })
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            .sum()
    }

    async fn until_counted(&self, metric: &str, label: &str, expected: f64) {
        eventually(&format!("{metric} {label} is {expected}"), || {
            (self.count(metric, label) - expected).abs() < f64::EPSILON
        })
        .await;
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a good name")
}

fn label(n: usize) -> InstanceLabel {
    InstanceLabel::of(&name("n1"), &name(&format!("web-{n}")))
}

fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("bound")
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn is_echoed(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut echo = [0; 4];
    let asked = async {
        stream.write_all(b"ping").await?;
        stream.flush().await?;
        stream.read_exact(&mut echo).await
    };
    timeout(PATIENCE, asked).await.is_ok_and(|read| read.is_ok()) && echo == *b"ping"
}

async fn is_cut(stream: &mut TlsStream<TcpStream>) -> bool {
    matches!(timeout(PATIENCE, stream.read(&mut [0; 1])).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_passes_end_to_end_and_each_way_closes_on_its_own() {
    let mut world = World::new();
    world.instance().await;
    world.start().await;
    let stream = world.call(WEB).await.expect("through");
    assert_eq!(world.which(&stream), Some(0), "the instance itself is at the other end");
    let question = vec![7_u8; 3 * 1024 * 1024];
    let (mut reader, mut writer) = tokio::io::split(stream);
    let writing = async {
        writer.write_all(&question).await.expect("open");
        writer.shutdown().await.expect("open");
    };
    let mut answer = Vec::new();
    let (read, ()) = tokio::join!(reader.read_to_end(&mut answer), writing);
    read.expect("whole");
    assert!(answer == question, "{} bytes came back", answer.len());
    drop((reader, writer));
    world.until_counted("hawser_gateway_connections_total", "ok", 1.0).await;
    world.until_counted("hawser_gateway_connections", "", 0.0).await;
    for direction in ["sent", "received"] {
        let moved = world.count("hawser_gateway_bytes_total", direction);
        assert!(moved > question.len() as f64, "{moved} bytes {direction}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_picks_its_instance_and_no_label_the_least_busy() {
    let mut world = World::new();
    for _ in 0..3 {
        world.instance().await;
    }
    world.start().await;
    let mut held = Vec::new();
    for n in [2, 0, 1, 1, 1, 0] {
        let stream = world.call(&format!("{}.{WEB}", label(n))).await.expect("through");
        assert_eq!(world.which(&stream), Some(n));
        held.push(stream);
    }
    // By now 0 has two connections, 1 three and 2 one.
    let mut found = Vec::new();
    for _ in 0..3 {
        let stream = world.call(WEB).await.expect("through");
        found.extend(world.which(&stream));
        held.push(stream);
    }
    found.sort_unstable();
    assert_eq!(found, [0, 2, 2]);
    world.statuses[1] = Status::Critical;
    world.publish();
    let stream = world.call(&format!("{}.{WEB}", label(1))).await.expect("through");
    assert_ne!(world.which(&stream), Some(1), "a critical instance is stood in for");
    for stream in &mut held {
        assert!(is_echoed(stream).await, "who is connected stays so");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_instance_is_asked_for_the_next_one_is_tried() {
    let mut world = World::new();
    world.dead_instance();
    world.instance().await;
    world.start().await;
    for _ in 0..4 {
        let stream = world.call(WEB).await.expect("through");
        assert_eq!(world.which(&stream), Some(1));
    }
    let hello = world.hello(&format!("{}.{WEB}", label(0)));
    assert_eq!(world.answer(&hello).await, UNREACHABLE, "the caller chose it, and shall know");
    world.until_counted("hawser_gateway_refusals_total", "connect_failed", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_pass_is_refused_with_an_alert_and_its_reason() {
    let mut world = World::new();
    world.limits.handshake = Duration::from_millis(500);
    world.instance().await;
    world.start().await;
    let hello = |name: &str| world.hello(name);
    let external = |service: &str, peer: &str, cluster: &str| {
        format!("{service}.default.default.{peer}.external.{cluster}.consul")
    };
    let huge = [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc][..], &[0; 16_380]].concat();
    let cases: Vec<(Vec<u8>, [u8; 7], &str, &str)> = vec![
        (hello(&external("db", "east", "own")), REFUSED, "not_exported", "an unknown service"),
        (hello(&external("web", "west", "own")), REFUSED, "not_exported", "another peer"),
        (hello("web.default.dc1.internal.own.consul"), REFUSED, "local_name", "a local name"),
        (hello("example.com"), REFUSED, "unknown_name", "no name of a mesh"),
        (hello(&external("web", "us", "else")), REFUSED, "unknown_name", "nobody's cluster"),
        (hello("127.0.0.1"), REFUSED, "unknown_name", "no name at all"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), REFUSED, "plaintext", "no TLS"),
        (huge, REFUSED, "handshake_failed", "a hello that is too large"),
        (vec![22, 3, 1, 0, 4, 2, 0, 0, 0], REFUSED, "handshake_failed", "another message"),
        (hello(WEB)[..100].to_vec(), REFUSED, "handshake_timeout", "a hello that stops"),
        (vec![], REFUSED, "handshake_timeout", "a silent client"),
        (hello(SERVERS), UNREACHABLE, "no_endpoint", "no server is known"),
        (hello(&external("web", "us", "east")), UNREACHABLE, "gateway_unavailable", "no gateway"),
    ];
    let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
    for (octets, alert, reason, why) in &cases {
        assert_eq!(world.answer(octets).await, alert, "{why}");
        let count = counts.entry(reason).or_default();
        *count += 1.0;
        world.until_counted("hawser_gateway_refusals_total", reason, *count).await;
    }
    let error = world.call("example.com").await.expect_err("refused").to_string();
    assert!(error.contains("UnrecognisedName"), "a client is told: {error}");
    drop(TcpStream::connect(world.listen).await);
    world.until_counted("hawser_gateway_connections_total", "downstream_reset", 1.0).await;
    let refused = world.count("hawser_gateway_refusals_total", "downstream_reset");
    assert!(refused < 1.0, "who only looks is not refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_no_more_is_cut() {
    let mut world = World::new();
    world.instance().await;
    world.exports.insert(name("web"), BTreeSet::from([name("east"), name("west")]));
    world.start().await;
    let mut stream = world.call(WEB).await.expect("through");
    assert!(is_echoed(&mut stream).await);
    world.exports.insert(name("web"), BTreeSet::from([name("west")]));
    world.publish();
    // Nothing is sent meanwhile: the connection ends by itself.
    assert!(is_cut(&mut stream).await);
    world.until_counted("hawser_gateway_connections_total", "policy_cut", 1.0).await;
    assert_eq!(world.answer(&world.hello(WEB)).await, REFUSED);
    world.exports.insert(name("web"), BTreeSet::from([name("east")]));
    world.publish();
    let mut stream = world.call(WEB).await.expect("through again");
    world.instances.clear();
    world.publish();
    assert_eq!(world.answer(&world.hello(WEB)).await, UNREACHABLE);
    assert!(is_echoed(&mut stream).await, "its instance left the catalog, not the connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_finish_what_is_open_and_then_cuts() {
    let mut world = World::new();
    world.instance().await;
    world.start().await;
    let mut first = world.call(WEB).await.expect("through");
    let mut second = world.call(WEB).await.expect("through");
    let proxy = world.proxy.take().expect("it runs");
    let draining = tokio::spawn(proxy.drain(Duration::from_secs(2)));
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(world.listen).await.is_ok() {
        assert!(Instant::now() < deadline, "it still listens");
    }
    assert!(is_echoed(&mut first).await, "what is open goes on");
    first.shutdown().await.expect("open");
    assert!(is_cut(&mut first).await, "and may end by itself");
    assert!(is_cut(&mut second).await, "the rest is cut");
    draining.await.expect("no panic");
    world.until_counted("hawser_gateway_connections_total", "ok", 1.0).await;
    world.until_counted("hawser_gateway_connections_total", "draining", 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_and_servers_are_reached_through_it() {
    let mut far = World::new();
    far.instance().await;
    far.start().await;
    // The near gateway's own cluster is `own`, too; the far one answers for `east`.
    let mut near = World::new();
    near.root = far.root.clone();
    near.peer_gateways = vec![free_address(), far.instances[0].address];
    near.servers = vec![free_address(), far.instances[0].address];
    near.start().await;
    let mut server = near.call(SERVERS).await.expect("through to a server");
    assert_eq!(far.which(&server), Some(0));
    assert!(is_echoed(&mut server).await);
    let hello = near.hello("web.default.default.us.external.east.consul");
    let mut peer = TcpStream::connect(near.listen).await.expect("listening");
    peer.write_all(&hello).await.expect("open");
    let mut head = [0; 3];
    peer.read_exact(&mut head).await.expect("a gateway of the peer answers");
    assert_eq!(head[0], 22, "with a handshake record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_names_our_gateway_as_its_own_gets_no_loop() {
    let mut world = World::new();
    world.peer_gateways = vec![world.listen];
    world.start().await;
    let hello = world.hello("web.default.default.us.external.east.consul");
    assert_eq!(world.answer(&hello).await, UNREACHABLE);
    world.until_counted("hawser_gateway_refusals_total", "gateway_unavailable", 1.0).await;
    world.until_counted("hawser_gateway_connections", "", 0.0).await;
    assert_eq!(world.answer(&hello).await, UNREACHABLE, "it is forgotten with its connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_do_not_keep_others_out() {
    let mut world = World::new();
    world.limits.handshakes = 4;
    world.limits.handshake = PATIENCE;
    world.instance().await;
    world.start().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(world.listen).await.expect("listening");
        stream.write_all(&[22]).await.expect("open");
        silent.push(stream);
    }
    let mut stream = world.call(WEB).await.expect("through");
    assert!(is_echoed(&mut stream).await);
    // The four that came last still wait, or three and the one that got through.
    eventually("the others were given up", || {
        world.count("hawser_gateway_refusals_total", "overloaded") >= 16.0
    })
    .await;
    let mut alert = Vec::new();
    silent[0].read_to_end(&mut alert).await.expect("no reset");
    assert_eq!(alert, UNREACHABLE);
}
