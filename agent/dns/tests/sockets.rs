//! The discovery plane over real sockets on loopback, asked by hickory's encoder.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hawser_core::catalog::{Locality, Weights};
use hawser_core::chain;
use hawser_core::clock::Index;
use hawser_core::dns::query::Found;
use hawser_core::entry::Entries;
use hawser_core::health::Status;
use hawser_core::name::ServiceName;
use hawser_core::view::{Endpoint, ServiceView, View};
use hawser_dns::{Config, Feed, QueryAsk, Want};
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// A discovery plane on a thread with a runtime of its own.
struct Plane {
    address: SocketAddr,
    views: watch::Sender<Arc<View>>,
    wants: mpsc::Receiver<Want>,
    queries: mpsc::Receiver<QueryAsk>,
    registry: prometheus::Registry,
    drain: CancellationToken,
    ended: Option<JoinHandle<Result<(), hawser_dns::Error>>>,
}

impl Plane {
    fn start(services: &[(&str, u16)], recursors: Vec<SocketAddr>) -> Self {
        let sockets = hawser_dns::bind((Ipv4Addr::LOCALHOST, 0).into(), 2).expect("loopback");
        let address = sockets.address().expect("bound");
        let (views, receiver) = watch::channel(Arc::new(view(services)));
        let (sender, wants) = mpsc::channel(16);
        let (asks, queries) = mpsc::channel(16);
        let last_contact_ms = Arc::new(AtomicU64::new(u64::MAX));
        let feed = Feed { views: receiver, wants: sender, queries: asks, last_contact_ms };
        let config = Config {
            domain: "consul".to_owned(),
            alt_domain: Some("mesh.test".to_owned()),
            datacenter: "dc1".parse().expect("a label"),
            ttl: Duration::from_secs(5),
            only_passing: false,
            recursors,
            stale_max: Duration::from_secs(86_400),
            node: "here".parse().expect("a segment"),
            address: Ipv4Addr::new(10, 0, 0, 9).into(),
        };
        let (registry, drain) = (prometheus::Registry::new(), CancellationToken::new());
        let (inner_registry, inner_drain) = (registry.clone(), drain.clone());
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(hawser_dns::run(config, sockets, feed, &inner_registry, inner_drain))
        });
        Self { address, views, wants, queries, registry, drain, ended: Some(ended) }
    }

    fn count(&self, metric: &str, labels: &[(&str, &str)]) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == metric).expect("registered");
        let fits = |metric: &&prometheus::proto::Metric| {
            labels.iter().all(|(name, value)| {
                metric.get_label().iter().any(|it| it.name() == *name && it.value() == *value)
            })
        };
        let found = family.get_metric().iter().filter(fits);
        found.map(|metric| metric.get_counter().get_value() as u64).sum()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.drain.cancel();
        if let Some(ended) = self.ended.take() {
            let ended = ended.join();
            if !std::thread::panicking() {
                ended.expect("no panic").expect("a clean end");
            }
        }
    }
}

fn view(services: &[(&str, u16)]) -> View {
    let endpoint = |at: u16| Endpoint {
        node: format!("node-{at}").parse().expect("a segment"),
        instance: format!("web-{at}").parse().expect("printable"),
        address: Ipv4Addr::new(10, 1, (at >> 8) as u8, at as u8).into(),
        has_own_address: false,
        ports: Default::default(),
        port: 8_080,
        mesh: None,
        locality: Locality::default(),
        tags: Default::default(),
        weights: Weights::default(),
        status: Status::Passing,
    };
    let services = services.iter().map(|(name, count)| {
        let name: ServiceName = name.parse().expect("a label");
        let chain = chain::compile(&Entries::default(), None, &name);
        let endpoints = (0..*count).map(endpoint).collect();
        (name, Arc::new(ServiceView::alone(chain, endpoints, Index::default())))
    });
    View { services: services.collect(), ..View::default() }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message.set_edns(Edns::new()).edns.as_mut().expect("set").set_max_payload(1_232);
    message
}

fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    socket.connect(to).expect("loopback");
    socket
}

fn receive(socket: &UdpSocket) -> Message {
    let mut reply = [0; 4_096];
    let length = socket.recv(&mut reply).expect("a reply in time");
    Message::from_vec(&reply[..length]).expect("the reply can be decoded")
}

fn over_udp(to: SocketAddr, message: &Message) -> Message {
    let socket = client(to);
    socket.send(&message.to_vec().expect("encodes")).expect("loopback");
    receive(&socket)
}

fn framed(message: &Message) -> Vec<u8> {
    let packet = message.to_vec().expect("encodes");
    [&(packet.len() as u16).to_be_bytes(), packet.as_slice()].concat()
}

fn read_framed(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a reply in time");
    let mut reply = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut reply).expect("a whole reply");
    Message::from_vec(&reply).expect("the reply can be decoded")
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("loopback");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    stream
}

#[test]
fn udp_and_tcp_answer_and_the_drain_ends_both() {
    let plane = Plane::start(&[("web", 3), ("many", 300)], Vec::new());
    for name in ["web.service.consul.", "web.service.mesh.test."] {
        let reply = over_udp(plane.address, &query(name, RecordType::A));
        assert_eq!(reply.answers.len(), 3, "{name}");
    }
    let cut = over_udp(plane.address, &query("many.service.consul.", RecordType::A));
    assert!(cut.metadata.truncation && cut.answers.len() < 300);
    let mut stream = connect(plane.address);
    // Two at once: both are answered, in order.
    let (first, second) = (
        query("many.service.consul.", RecordType::A),
        query("web.service.consul.", RecordType::SRV),
    );
    stream.write_all(&[framed(&first), framed(&second)].concat()).expect("loopback");
    let reply = read_framed(&mut stream);
    assert_eq!((reply.metadata.id, reply.answers.len()), (first.metadata.id, 300));
    assert!(!reply.metadata.truncation, "TCP holds them all");
    let reply = read_framed(&mut stream);
    assert_eq!((reply.metadata.id, reply.answers.len()), (second.metadata.id, 3));
    assert_eq!(plane.count("hawser_dns_queries_total", &[("type", "a"), ("rcode", "noerror")]), 4);
    assert_eq!(plane.count("hawser_dns_truncated_total", &[]), 1);
    plane.drain.cancel();
    assert_eq!(stream.read(&mut [0; 1]).expect("an orderly end"), 0);
}

#[test]
fn a_name_that_the_view_lacks_is_wanted_once_and_answered_when_it_comes() {
    let mut plane = Plane::start(&[], Vec::new());
    let socket = client(plane.address);
    let asked: Vec<Message> =
        (0..20).map(|_| query("web.service.consul.", RecordType::A)).collect();
    for message in &asked {
        socket.send(&message.to_vec().expect("encodes")).expect("loopback");
    }
    assert_eq!(plane.wants.blocking_recv(), Some(Want::Service("web".parse().expect("a label"))));
    plane.views.send_replace(Arc::new(view(&[("web", 1)])));
    for _ in &asked {
        let reply = receive(&socket);
        assert_eq!(reply.answers.len(), 1);
    }
    // All sent before the view moved have waited for the one want; of those that found it there,
    // one in 64 says that the name is still asked for.
    let mut more = 0;
    while let Ok(want) = plane.wants.try_recv() {
        assert_eq!(want, Want::Service("web".parse().expect("a label")));
        more += 1;
    }
    assert!(more < asked.len() / 2, "{more} wants beside the one for all");
    assert!(plane.count("hawser_dns_want_waits_total", &[("outcome", "answered")]) > 0);
}

#[test]
fn what_a_prepared_query_finds_is_asked_for_by_name_and_answered_with_its_own_ttl() {
    let mut plane = Plane::start(&[], Vec::new());
    let to = plane.address;
    let asked = std::thread::spawn(move || {
        let own = over_udp(to, &query("Geo-Web.Query.consul.", RecordType::A));
        let none = over_udp(to, &query("_none._tcp.query.dc1.consul.", RecordType::SRV));
        let lost = over_udp(to, &query("lost.query.consul.", RecordType::A));
        [own, none, lost]
    });
    let endpoints = view(&[("web", 2)]).services["web"].endpoints.to_vec();
    let found = Found { endpoints, ttl: Some(Duration::from_secs(90)), is_foreign: false };
    for (name, found) in
        [("geo-web", Some(found)), ("none", Some(Default::default())), ("lost", None)]
    {
        let ask = plane.queries.blocking_recv().expect("asked");
        assert_eq!(&*ask.name, name);
        if let Some(found) = found {
            ask.answer.send(Arc::new(found)).expect("somebody waits");
        }
    }
    let [own, none, lost] = asked.join().expect("three replies");
    assert_eq!((own.answers.len(), own.answers[0].ttl), (2, 90), "{own:?}");
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(lost.metadata.response_code, ResponseCode::ServFail);
    let count = |outcome| plane.count("hawser_dns_prepared_queries_total", &[("outcome", outcome)]);
    assert_eq!((count("answered"), count("failed")), (2, 1));
}

#[test]
fn a_name_that_does_not_come_is_servfail_and_an_empty_one_nxdomain() {
    let mut plane = Plane::start(&[], Vec::new());
    let reply = over_udp(plane.address, &query("gone.service.consul.", RecordType::A));
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(plane.count("hawser_dns_want_waits_total", &[("outcome", "timed_out")]), 1);
    assert_eq!(plane.wants.try_recv(), Ok(Want::Service("gone".parse().expect("a label"))));
    plane.views.send_replace(Arc::new(view(&[("gone", 0)])));
    let reply = over_udp(plane.address, &query("gone.service.consul.", RecordType::A));
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn what_is_no_query_gets_no_reply_and_harms_none() {
    let plane = Plane::start(&[("web", 1)], Vec::new());
    let socket = client(plane.address);
    let mut looped = query("web.service.consul.", RecordType::A).to_vec().expect("encodes");
    looped[2] |= 0x80;
    for packet in [&looped[..], b"", b"short", &[0x80; 4_000]] {
        socket.send(packet).expect("loopback");
    }
    let good = query("web.service.consul.", RecordType::A);
    socket.send(&good.to_vec().expect("encodes")).expect("loopback");
    assert_eq!(receive(&socket).metadata.id, good.metadata.id, "the first reply is to the query");
    // A stream that lies about its length is closed; others go on.
    let mut liar = connect(plane.address);
    liar.write_all(&[0xff, 0xff, 1, 2, 3]).expect("loopback");
    assert_eq!(liar.read(&mut [0; 1]).unwrap_or(0), 0);
    let mut stream = connect(plane.address);
    stream.write_all(&framed(&good)).expect("loopback");
    assert_eq!(read_framed(&mut stream).answers.len(), 1);
}

/// Answers each query on `socket` with the replies that `replies` makes of it.
fn recursor(
    replies: impl Fn(&Message) -> Vec<Vec<u8>> + Send + 'static,
) -> (SocketAddr, std::net::TcpListener) {
    let tcp = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
    let address = tcp.local_addr().expect("bound");
    let socket = UdpSocket::bind(address).expect("the same port is free for UDP");
    std::thread::spawn(move || {
        let mut packet = [0; 4_096];
        while let Ok((length, peer)) = socket.recv_from(&mut packet) {
            let asked = Message::from_vec(&packet[..length]).expect("a good query");
            for reply in replies(&asked) {
                // A client that has its reply is gone.
                let _gone = socket.send_to(&reply, peer);
            }
        }
    });
    (address, tcp)
}

fn answered(asked: &Message, last: u8) -> Message {
    let mut reply = asked.clone().into_response();
    reply.edns = None;
    let name = asked.queries[0].name().clone();
    reply.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, last))));
    reply
}

#[test]
fn outside_names_go_to_the_recursors_in_order_and_forged_replies_are_ignored() {
    let bytes = |message: &Message| message.to_vec().expect("encodes");
    let (failing, _tcp) = recursor(move |asked| {
        let mut reply = asked.clone().into_response();
        reply.metadata.response_code = ResponseCode::ServFail;
        vec![bytes(&reply)]
    });
    let (working, listener) = recursor(move |asked| {
        if asked.queries[0].name().to_ascii().starts_with("big.") {
            let mut cut = asked.clone().into_response();
            cut.metadata.truncation = true;
            return vec![bytes(&cut)];
        }
        let mut other_id = answered(asked, 66);
        other_id.metadata.id ^= 1;
        let mut other_name = answered(asked, 66);
        other_name.queries[0].set_name(Name::from_ascii("www.evil.").expect("a name"));
        let mut other_case = answered(asked, 66);
        other_case.queries[0].set_name(Name::from_ascii("WWW.example.com.").expect("a name"));
        let forged = [other_id, other_name, other_case].iter().map(bytes).collect::<Vec<_>>();
        [forged, vec![b"x".to_vec(), bytes(&answered(asked, 1))]].concat()
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("loopback");
            let asked = read_framed(&mut stream);
            stream.write_all(&framed(&answered(&asked, 2))).expect("loopback");
        }
    });
    let plane = Plane::start(&[], vec![failing, working]);
    for (name, last) in [("www.example.com.", 1), ("big.example.com.", 2)] {
        let asked = query(name, RecordType::A);
        let reply = over_udp(plane.address, &asked);
        assert_eq!(reply.metadata.id, asked.metadata.id, "{name}");
        assert!(reply.metadata.recursion_available && !reply.metadata.authoritative, "{name}");
        assert_eq!(reply.answers.len(), 1, "{name}: {reply:?}");
        assert_eq!(reply.answers[0].data, RData::A(A::new(192, 0, 2, last)), "{name}");
    }
    assert_eq!(plane.count("hawser_dns_recursions_total", &[("outcome", "answered")]), 2);
}

#[test]
fn with_no_recursor_left_an_outside_name_is_servfail() {
    let (failing, _tcp) = recursor(|asked| {
        let mut reply = asked.clone().into_response();
        reply.metadata.response_code = ResponseCode::Refused;
        vec![reply.to_vec().expect("encodes")]
    });
    let plane = Plane::start(&[], vec![failing]);
    let reply = over_udp(plane.address, &query("www.example.com.", RecordType::A));
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(reply.metadata.recursion_available);
    assert_eq!(plane.count("hawser_dns_recursions_total", &[("outcome", "failed")]), 1);
}

#[test]
fn connections_beyond_the_bound_wait_for_a_place() {
    const BOUND: usize = 100;
    let plane = Plane::start(&[("web", 1)], Vec::new());
    let asked = framed(&query("web.service.consul.", RecordType::A));
    let mut holding: Vec<TcpStream> = (0..BOUND)
        .map(|_| {
            let mut stream = connect(plane.address);
            stream.write_all(&asked).expect("loopback");
            read_framed(&mut stream);
            stream
        })
        .collect();
    let mut next = connect(plane.address);
    next.write_all(&asked).expect("loopback");
    let open = || {
        let families = plane.registry.gather();
        let gauge = families.iter().find(|it| it.name() == "hawser_dns_tcp_connections");
        gauge.expect("registered").get_metric()[0].get_gauge().get_value() as usize
    };
    assert_eq!(open(), BOUND);
    assert_eq!(
        over_udp(plane.address, &query("web.service.consul.", RecordType::A)).answers.len(),
        1
    );
    drop(holding.pop());
    assert_eq!(read_framed(&mut next).answers.len(), 1, "a place became free");
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let first = hawser_dns::bind((Ipv4Addr::LOCALHOST, 0).into(), 2).expect("loopback");
    let address = first.address().expect("bound");
    assert_eq!(first.udp.len(), 2);
    let second = hawser_dns::bind(address, 2).expect_err("the port is taken");
    assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
}

#[test]
fn a_drain_ends_idle_workers() {
    let mut plane = Plane::start(&[], Vec::new());
    plane.drain.cancel();
    let ended = plane.ended.take().expect("running");
    let deadline = Instant::now() + PATIENCE;
    while !ended.is_finished() {
        assert!(Instant::now() < deadline, "the workers did not notice the drain");
        std::thread::yield_now();
    }
    ended.join().expect("no panic").expect("a clean end");
}

const PATIENCE: Duration = Duration::from_secs(20);
