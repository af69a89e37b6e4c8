//! What changes while something is under way: the change counts.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hawser_core::catalog::Protocol;
use hawser_core::name::NodeName;
use hawser_core::permission::Requests;
use hawser_core::revocation::{Revoked, Serial, node_tag};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{World, call, crowded, eventually, get, http2, listener, name, serve, tls};

/// A caller that has heard all of the callee's part of the handshake, and has yet to send its own.
struct Hesitant {
    stream: TcpStream,
    tls: rustls::ClientConnection,
}

impl Hesitant {
    async fn begin(world: &World, config: rustls::ClientConfig) -> Self {
        let mut stream = TcpStream::connect(world.inbound()).await.expect("listening");
        let name = "db.mesh".try_into().expect("a name");
        let mut tls = rustls::ClientConnection::new(config.into(), name).expect("good");
        let mut hello = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut hello).expect("memory");
        }
        stream.write_all(&hello).await.expect("open");
        while tls.is_handshaking() {
            let mut bytes = vec![0; 16 * 1024];
            let count = stream.read(&mut bytes).await.expect("open");
            assert!(count > 0, "the callee says who it is");
            let mut bytes = &bytes[..count];
            while !bytes.is_empty() {
                tls.read_tls(&mut bytes).expect("memory");
                tls.process_new_packets().expect("the callee proves itself");
            }
        }
        Self { stream, tls }
    }

    /// Says who it is, and waits for the end.
    async fn finish(mut self) {
        let mut rest = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut rest).expect("memory");
        }
        self.stream.write_all(&rest).await.expect("open");
        let mut nothing = [0; 1024];
        let reading = async { while matches!(self.stream.read(&mut nothing).await, Ok(1..)) {} };
        let _ = tokio::time::timeout(Duration::from_secs(20), reading).await;
    }
}

/// Waits until a connection ends.
async fn ended(stream: &mut (impl AsyncReadExt + Unpin), what: &str) {
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0; 1])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{what}: {read:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_revoked_in_its_handshake_is_refused() {
    let node: NodeName = "n1".parse().expect("a name");
    let mut serial = node_tag(&node).to_vec();
    serial.extend([7; 8]);
    let certificate = Serial::new(&serial).expect("16 octets");
    let cases = [
        ("certificate", Some(Revoked { certificates: [certificate].into(), ..Revoked::default() })),
        ("node", Some(Revoked { nodes: [(node_tag(&node), node)].into(), ..Revoked::default() })),
        ("service", Some(Revoked { services: [name("web")].into(), ..Revoked::default() })),
        ("root", None),
    ];
    for (what, revoked) in cases {
        let (listener, address) = listener().await;
        let mut world = World::new(Protocol::Tcp);
        world.limits.handshake = Duration::from_secs(60);
        world.server_workers = 1;
        world.serve_application(address);
        world.start().await;
        let config = world.numbered_client(&serial);
        let mut open = tls(world.inbound(), config.clone()).await.expect("a certificate");
        let (_application, _) = listener.accept().await.expect("dialled");
        let held = Hesitant::begin(&world, config).await;
        let reason = match revoked {
            Some(revoked) => {
                world.revoked = revoked;
                world.republish();
                "identity_revoked"
            }
            None => {
                world.forget_root();
                "untrusted_certificate"
            }
        };
        ended(&mut open, what).await;
        let dialled = tokio::spawn(async move { listener.accept().await.is_ok() });
        held.finish().await;
        assert!(!dialled.is_finished(), "{what}: the application was dialled");
        dialled.abort();
        eventually(what, || world.server_reasons().iter().any(|it| it == reason)).await;
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callee_that_is_revoked_in_its_handshake_is_not_called() {
    let mut world = World::new(Protocol::Tcp);
    world.connect_timeout = Duration::from_secs(60);
    let (gate, count) = world.hesitant_proxy().await;
    world.start().await;
    let mut open = TcpStream::connect(world.outbound).await.expect("listening");
    open.write_all(b"x").await.expect("open");
    open.read_exact(&mut [0; 1]).await.expect("echoed");
    let mut held = TcpStream::connect(world.outbound).await.expect("listening");
    held.write_all(b"x").await.expect("open");
    gate.arrived().await;
    world.revoked = Revoked { services: [name("db")].into(), ..Revoked::default() };
    world.republish();
    ended(&mut open, "what was open is cut").await;
    gate.open();
    ended(&mut held, "what was about to be").await;
    assert_eq!(count.load(Ordering::SeqCst), 1, "a revoked callee was sent bytes");
    let labels = [("reason", "identity_revoked")];
    eventually("it is said why", || {
        world.client_count("hawser_proxy_requests_total", &labels) >= 1.0
    })
    .await;
}

/// Waits until requests are answered by `who`, and then sees that they all are.
async fn all_reach<A: Future<Output = Bytes>>(who: &str, ask: impl Fn() -> A) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while ask().await != who {
        assert!(tokio::time::Instant::now() < deadline, "none reaches {who}");
    }
    for n in 0..20 {
        assert_eq!(ask().await, who, "number {n}");
    }
}

async fn ask_http1(address: SocketAddr) -> Bytes {
    get(address, "/").await.into_body()
}

async fn ask_http2(address: SocketAddr) -> Bytes {
    let request = Request::get("http://db/").body(Full::new(Bytes::new())).expect("good");
    let answer = http2(address).await.send_request(request).await.expect("answered");
    answer.into_body().collect().await.expect("whole").to_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_follow_an_application_that_moved_though_one_was_under_way() {
    let mut world = World::new(Protocol::Http);
    world.server_workers = 1;
    let gate = world.http_gated().await;
    world.start().await;
    let next = serve(|_| async { Response::new(Full::new(Bytes::from("next")).boxed()) }).await;
    let outbound = world.outbound;
    let slow = tokio::spawn(async move { get(outbound, "/").await });
    gate.arrived().await;
    world.retarget(next);
    all_reach("next", || ask_http1(outbound)).await;
    gate.open();
    assert_eq!(slow.await.expect("no panic").body(), "late");
    all_reach("next", || ask_http1(outbound)).await;
}

async fn serve_http2(listener: tokio::net::TcpListener, who: &'static str) {
    while let Ok((socket, _)) = listener.accept().await {
        let service = hyper::service::service_fn(move |_| async move {
            Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(who))))
        });
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), service),
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_follow_an_application_that_moved_though_it_was_being_dialled() {
    let (old, address, waiting) = crowded().await;
    let (new, next) = listener().await;
    let mut world = World::new(Protocol::Http2);
    world.server_workers = 1;
    world.serve_application(address);
    let tap = world.tap().await;
    world.start().await;
    tokio::spawn(serve_http2(new, "next"));
    let outbound = world.outbound;
    let first = tokio::spawn(ask_http2(outbound));
    eventually("it is under way", || tap.accepted() >= 1).await;
    world.retarget(next);
    // The old one comes to life only once new requests have reached the next.
    let reached = tokio::time::timeout(Duration::from_secs(10), ask_http2(outbound)).await;
    drop(waiting);
    tokio::spawn(serve_http2(old, "old"));
    first.await.expect("no panic");
    all_reach("next", || ask_http2(outbound)).await;
    assert_eq!(reached.expect("nobody waits for the old one"), "next");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_heads_leave_their_connection_to_others() {
    let mut world = World::new(Protocol::Http);
    let gate = world.http_gated().await;
    let tap = world.tap().await;
    world.requests = serde_json::from_value(json!({ "Permissions": [
        { "Action": "deny", "HTTP": { "PathPrefix": "/denied" } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/" } },
    ] }))
    .expect("Consul's shape");
    world.start().await;
    let outbound = world.outbound;
    let slow = tokio::spawn(async move {
        let request = Request::post("/slow").header("host", "db").body(Full::from("question"));
        call(outbound, request.expect("good")).await
    });
    gate.arrived().await;
    let stream = TcpStream::connect(outbound).await.expect("listening");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("open");
    tokio::spawn(connection);
    for n in 0..1_100 {
        let request = Request::head("/denied").header("host", "db").body(Full::<Bytes>::default());
        let answer = sender.send_request(request.expect("good")).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "number {n}");
        assert_eq!(answer.headers()["x-hawser-reason"], "permission_denied", "number {n}");
        assert_ne!(answer.headers()["content-length"], "0", "number {n}");
        sender.ready().await.expect("open");
    }
    gate.open();
    let answer = slow.await.expect("no panic").expect("its connection lives");
    assert_eq!(answer.body(), "late");
    assert_eq!(tap.accepted(), 1, "all in one connection");
    let labels = [("reason", "permission_denied")];
    eventually("the callee's reason is counted", || {
        world.client_count("hawser_proxy_requests_total", &labels) >= 1_100.0
    })
    .await;
}

/// Answers each request with its own body, as it comes.
async fn echo_http2(listener: tokio::net::TcpListener) {
    while let Ok((socket, _)) = listener.accept().await {
        let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
            let answer = Response::builder().header("content-type", "application/grpc");
            Ok::<_, std::convert::Infallible>(answer.body(request.into_body()).expect("good"))
        });
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), service),
        );
    }
}

/// Those that may be asked for, by their prefix.
fn allowed(prefixes: &[&str]) -> Option<Requests> {
    let permissions: Vec<_> = prefixes
        .iter()
        .map(|prefix| json!({ "Action": "allow", "HTTP": { "PathPrefix": prefix } }))
        .collect();
    let requests = serde_json::from_value(json!({ "Permissions": permissions }));
    Some(requests.expect("Consul's shape"))
}

/// A world whose application echoes, and may be asked for `/a` and `/b`.
async fn judged() -> World {
    let (listener, address) = listener().await;
    tokio::spawn(echo_http2(listener));
    let mut world = World::new(Protocol::Grpc);
    world.serve_application(address);
    world.requests = allowed(&["/a", "/b"]);
    world
}

/// A request whose body and answer both go on for as long as both like.
struct Both {
    sender: h2::SendStream<Bytes>,
    receiver: h2::RecvStream,
}

impl Both {
    async fn begin(client: &h2::client::SendRequest<Bytes>, path: &str) -> Self {
        let request = Request::post(format!("http://db{path}"))
            .header("content-type", "application/grpc")
            .body(())
            .expect("good");
        let mut client = client.clone().ready().await.expect("open");
        let (answer, sender) = client.send_request(request, false).expect("room");
        let mut both = Self { sender, receiver: answer.await.expect("answered").into_body() };
        both.ping().await.expect("it goes on");
        both
    }

    async fn ping(&mut self) -> Result<(), h2::Error> {
        self.sender.send_data(Bytes::from("ping"), false)?;
        let data = tokio::time::timeout(Duration::from_secs(20), self.receiver.data()).await;
        let data = data.expect("bytes, or an end").transpose()?;
        assert_eq!(data.expect("no end without an error"), "ping");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_under_way_ends_with_its_permission_and_no_other_does() {
    let mut world = judged().await;
    let tap = world.tap().await;
    world.start().await;
    let socket = TcpStream::connect(world.outbound).await.expect("listening");
    let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    tokio::spawn(connection);
    let mut first = Both::begin(&client, "/a").await;
    let mut second = Both::begin(&client, "/b").await;
    // The same once more is no change.
    world.republish();
    first.ping().await.expect("it goes on");
    world.requests = allowed(&["/b"]);
    world.republish();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while first.ping().await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "it goes on without a permission");
    }
    second.ping().await.expect("it goes on");
    let _ = Both::begin(&client, "/b").await;
    assert_eq!(tap.accepted(), 1, "in the same connection");
    eventually("it is said why", || {
        world.server_count("hawser_proxy_requests_total", &[("reason", "policy_cut")]) >= 1.0
    })
    .await;
}

/// Its caller opens no window for the answer: nothing can be said to it, and what it sends would
/// go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_cannot_be_told_of_its_end_takes_its_connection_with_it() {
    let mut world = judged().await;
    world.start().await;
    let mut config = world.native_client();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = tls(world.inbound(), config).await.expect("a certificate");
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let (client, connection) = builder.handshake::<_, Bytes>(socket).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.expect("open");
    let request = Request::post("http://db/a").body(()).expect("good");
    let (answer, mut sender) = client.send_request(request, false).expect("room");
    let answer = answer.await.expect("answered");
    assert_eq!(answer.status(), StatusCode::OK);
    sender.send_data(Bytes::from("more than it may hear of"), false).expect("open");
    world.requests = allowed(&["/b"]);
    world.republish();
    let ended = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::select! {
            reset = std::future::poll_fn(|cx| sender.poll_reset(cx)) => drop(reset),
            ended = connection => drop(ended),
        }
    });
    ended.await.expect("it goes on without a permission");
}
