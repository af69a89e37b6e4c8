//! Connections as a whole: how long they live, what they count as, how they move.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hawser_core::catalog::Protocol;
use hawser_core::intention::Action;
use hawser_core::policy::Policies;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{World, crowded, eventually, get, listener, read_all, send_raw, serve, tls};

fn policies(json: &str) -> Policies {
    serde_json::from_str(json).expect(json)
}

/// How a connection that says nothing ends.
async fn end(mut stream: TcpStream) -> std::io::Result<usize> {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut byte));
    read.await.expect("it ends in time")
}

async fn asked(world: &World) -> TcpStream {
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    let mut echo = [0; 4];
    stream.write_all(b"ping").await.expect("open");
    stream.read_exact(&mut echo).await.expect("echoed");
    stream
}

/// Waits until the caller's proxy has counted a connection that ended for `reason`.
async fn until_counted(world: &World, reason: &str) {
    eventually(reason, || {
        world.client_count("hawser_proxy_requests_total", &[("reason", reason)]) >= 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_when_it_is_silent_or_old() {
    let cases = [
        (r#"{"connections":{"IdleTimeout":"200ms"}}"#, "idle_timeout"),
        (r#"{"connections":{"MaxDuration":"300ms"}}"#, "duration_limit"),
    ];
    for (json, reason) in cases {
        let mut world = World::new(Protocol::Tcp);
        world.policies = policies(json);
        world.tcp_echo().await;
        world.start().await;
        let stream = asked(&world).await;
        let _ = end(stream).await;
        // Both proxies know; whichever is first tells the other by ending.
        eventually(reason, || {
            let labels = [("reason", reason)];
            world.client_count("hawser_proxy_requests_total", &labels)
                + world.server_count("hawser_proxy_requests_total", &labels)
                >= 1.0
        })
        .await;
        world.stop().await;
    }
}

/// Writes until nothing more is taken for a while; how much that was. Then goes on waiting for much
/// longer than sent bytes may stay unacknowledged: a reader that does not read still answers.
async fn fill(stream: &mut (impl AsyncWrite + Unpin)) -> usize {
    let chunk = vec![7; 64 * 1024];
    let mut sent = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), stream.write(&chunk)).await
    {
        sent += written.expect("open");
        assert!(sent < 256 << 20, "{sent} bytes are held by two proxies");
    }
    tokio::time::sleep(4 * UNACKNOWLEDGED).await;
    sent
}

const UNACKNOWLEDGED: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_its_writer_back_and_loses_nothing() {
    let (listener, address) = listener().await;
    let mut world = World::new(Protocol::Tcp);
    world.limits.user_timeout = UNACKNOWLEDGED;
    world.serve_application(address);
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    let (mut application, _) = listener.accept().await.expect("dialled");
    let sent = fill(&mut stream).await;
    stream.shutdown().await.expect("open");
    let received = read_all(&mut application).await.len();
    assert_eq!(received, sent);
    application.write_all(b"done").await.expect("half of it is open");
    drop(application);
    assert_eq!(read_all(&mut stream).await, b"done");
}

/// One mTLS connection for each, as native clients have them: it is the mesh's own socket that
/// nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_without_a_proxy_loses_nothing_either() {
    let (listener, address) = listener().await;
    let mut world = World::new(Protocol::Tcp);
    world.limits.user_timeout = UNACKNOWLEDGED;
    world.serve_application(address);
    world.start().await;
    let client = tls(world.inbound(), world.native_client());
    let (stream, accepted) = tokio::join!(client, listener.accept());
    let (mut stream, (mut application, _)) = (stream.expect("open"), accepted.expect("dialled"));
    let sent = fill(&mut application).await;
    drop(application);
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.expect("it ends well");
    assert_eq!(received.len(), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_move_when_weights_change_if_asked() {
    const SUBSETS: (&str, &str) = (
        "service-resolver/db",
        r#"{"Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},
            "v2":{"Filter":"Service.Meta.version == v2"}}}"#,
    );
    let split = |weights: &'static str| ("service-splitter/db", weights);
    let to_v1 = split(
        r#"{"Splits":[{"Weight":100,"ServiceSubset":"v1"},{"Weight":0,"ServiceSubset":"v2"}]}"#,
    );
    let to_v2 = split(
        r#"{"Splits":[{"Weight":0,"ServiceSubset":"v1"},{"Weight":100,"ServiceSubset":"v2"}]}"#,
    );
    for (json, moves) in [
        (r#"{"Protocol":"http","Connections":{"MoveOnChange":true,"MoveWithin":"50ms"}}"#, true),
        (r#"{"Protocol":"http"}"#, false),
    ] {
        let defaults = ("service-defaults/db", json);
        let mut world = World::new(Protocol::Http);
        world.upgrading().await;
        world.upgrading().await;
        world.entries = vec![defaults, SUBSETS, to_v1];
        world.start().await;
        let (_, mut stream) = upgrade(&world, "").await;
        // The same once more is no change.
        world.write(&[defaults, SUBSETS, to_v1]);
        ping(&mut stream).await;
        world.write(&[defaults, SUBSETS, to_v2]);
        if moves {
            let _ = end(stream).await;
            until_counted(&world, "connection_moved").await;
        } else {
            ping(&mut stream).await;
        }
        world.stop().await;
    }
}

async fn ping(stream: &mut TcpStream) {
    let mut echo = [0; 4];
    stream.write_all(b"ping").await.expect("open");
    stream.read_exact(&mut echo).await.expect("echoed");
    assert_eq!(&echo, b"ping");
}

/// Asks for an upgrade with `fields`; what answered, and the connection.
async fn upgrade(world: &World, fields: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    let request = format!(
        "GET /ws HTTP/1.1\r\nhost: db\r\nconnection: Upgrade\r\nupgrade: websocket\r\n{fields}\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    (String::from_utf8(head).expect("ASCII").to_ascii_lowercase(), stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_became_counts_for_as_long_as_it_is_open() {
    let callers = r#"{"upstreams":{"Defaults":{"Limits":{"MaxConnections":1}}}}"#;
    let requests = r#"{"upstreams":{"Defaults":{"Limits":{"MaxConcurrentRequests":1}}}}"#;
    let instances = r#"{"inbound":{"MaxConcurrentRequests":1}}"#;
    for (caller, callee, reason) in [
        (callers, "{}", "connection_limit"),
        (requests, "{}", "request_limit"),
        ("{}", instances, "concurrency_limit"),
    ] {
        let mut world = World::new(Protocol::Http);
        (world.caller_policies, world.policies) = (policies(caller), policies(callee));
        world.upgrading().await;
        world.start().await;
        let (head, mut first) = upgrade(&world, "").await;
        assert!(head.starts_with("http/1.1 101"), "{head}");
        ping(&mut first).await;
        let (head, _) = upgrade(&world, "").await;
        assert!(head.starts_with("http/1.1 503"), "{reason}: {head}");
        assert!(head.contains(&format!("x-hawser-reason: {reason}")), "{head}");
        drop(first);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !upgrade(&world, "").await.0.starts_with("http/1.1 101") {
            assert!(tokio::time::Instant::now() < deadline, "{reason}: no room again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_follows_its_hash() {
    let mut world = World::new(Protocol::Http);
    world.policies = policies(
        r#"{"load_balancer":{"Policy":"maglev","HashPolicies":[
            {"Field":"header","FieldValue":"x-user"}]}}"#,
    );
    let counts: Vec<_> = (0..3).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    for count in &counts {
        let count = count.clone();
        let address = serve(move |mut request: Request<Incoming>| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::spawn(hyper::upgrade::on(&mut request));
                Response::builder()
                    .status(101)
                    .header("connection", "upgrade")
                    .header("upgrade", "websocket")
                    .body(Full::new(Bytes::new()).boxed())
                    .expect("good")
            }
        })
        .await;
        world.serve_application(address);
    }
    world.start().await;
    for _ in 0..12 {
        let (head, _) = upgrade(&world, "x-user: 7\r\n").await;
        assert!(head.starts_with("http/1.1 101"), "{head}");
    }
    let seen: Vec<usize> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert!(seen.contains(&12), "one user goes to one instance: {seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_carry_nothing_that_heads_are_judged_by() {
    let mut world = World::new(Protocol::Http);
    let address = serve(|request: Request<Incoming>| async move {
        let collected = request.into_body().collect().await.expect("whole");
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let names: Vec<String> = trailers.keys().map(ToString::to_string).collect();
        Response::builder()
            .header("x-seen", names.join(" "))
            .body(Full::new(Bytes::new()).boxed())
            .expect("good")
    })
    .await;
    world.serve_application(address);
    let provider = json!({
        "JSONWebKeySet": { "Local": { "Filename": "/nowhere" } },
        "Forwarding": { "HeaderName": "x-claims" },
    });
    let provider = serde_json::from_value(provider).expect("Consul's shape");
    world.providers.insert("okta".into(), Arc::new(provider));
    world.requests = serde_json::from_value(json!({ "Permissions": [
        { "Action": "deny", "HTTP": { "Header": [{ "Name": "x-role", "Exact": "guest" }] } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/" } },
    ] }))
    .expect("Consul's shape");
    world.start().await;
    let names = "x-claims: 1\r\nx_claims: 1\r\nx-role: guest\r\nx-checksum: 1\r\n\
        authorization: Bearer x\r\nx-forwarded-client-cert: me\r\nx-hawser-attempt: 1\r\n";
    let request = format!(
        "POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked\r\n\
        trailer: x-checksum\r\nconnection: close\r\n\r\n4\r\nbody\r\n0\r\n{names}\r\n"
    );
    let answer = send_raw(world.outbound, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("x-seen: x-checksum\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_tls_pass_where_asked_and_are_counted_and_cut() {
    let permissive = policies(r#"{"takes_plaintext":true}"#);
    let mut world = World::new(Protocol::Tcp);
    world.policies = permissive.clone();
    world.tcp_echo().await;
    world.start().await;
    let mut plain = TcpStream::connect(world.inbound()).await.expect("listening");
    ping(&mut plain).await;
    // Those of the mesh pass beside it.
    drop(asked(&world).await);
    let labels = [("service", "db"), ("address", "127.0.0.1")];
    let counted = world.server_count("hawser_proxy_plaintext_connections_total", &labels);
    assert!((counted - 1.0).abs() < f64::EPSILON, "{counted}");
    world.policies = Policies::default();
    world.republish();
    let _ = end(plain).await;
    let mut refused = TcpStream::connect(world.inbound()).await.expect("listening");
    refused.write_all(b"ping").await.expect("open");
    let _ = end(refused).await;
    eventually("it is refused", || {
        world.server_reasons().iter().any(|reason| reason == "plaintext" || reason == "policy_cut")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_tls_never_get_around_who_is_denied_or_what_is_judged() {
    let requests = json!({ "Permissions": [
        { "Action": "allow", "HTTP": { "PathPrefix": "/" } } ] });
    let judged = Some(serde_json::from_value(requests).expect("Consul's shape"));
    for (protocol, action, requests) in [
        (Protocol::Tcp, Action::Deny, None),
        (Protocol::Tcp, Action::Allow, judged),
        (Protocol::Http, Action::Allow, None),
    ] {
        let mut world = World::new(protocol);
        world.policies = policies(r#"{"takes_plaintext":true}"#);
        world.requests = requests;
        world.tcp_echo().await;
        world.start().await;
        world.intend(action);
        let mut plain = TcpStream::connect(world.inbound()).await.expect("listening");
        let _ = plain.write_all(b"ping").await;
        let mut echo = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(20), plain.read_to_end(&mut echo));
        let _ = read.await.expect("it ends in time");
        assert_ne!(echo, b"ping", "{protocol:?} {action:?}");
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_without_tls_does_not_outlive_its_permission_while_its_callee_is_dialled() {
    let (listener, address, waiting) = crowded().await;
    let mut world = World::new(Protocol::Tcp);
    world.policies = policies(r#"{"takes_plaintext":true}"#);
    world.connect_timeout = Duration::from_secs(60);
    world.server_workers = 1;
    world.serve_application(address);
    world.start().await;
    let mut plain = TcpStream::connect(world.inbound()).await.expect("listening");
    plain.write_all(b"ping").await.expect("open");
    eventually("it is let in", || {
        world.server_count("hawser_proxy_plaintext_connections_total", &[]) >= 1.0
    })
    .await;
    world.policies = Policies::default();
    world.republish();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !world.server_reasons().iter().any(|reason| reason == "plaintext") {
        let mut next = TcpStream::connect(world.inbound()).await.expect("listening");
        let _ = next.write_all(b"ping").await;
        let _ = end(next).await;
        assert!(tokio::time::Instant::now() < deadline, "others are still let in");
    }
    let echoing = tokio::spawn(async move {
        drop(waiting);
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = socket.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    let mut echo = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), plain.read_to_end(&mut echo));
    let _ = read.await.expect("it ends in time");
    assert_eq!(echo, b"");
    echoing.abort();
}

/// A client without a proxy, which says nothing of how long it waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_request_holds_its_place_no_longer_than_a_request_may() {
    let mut world = World::new(Protocol::Http);
    world.policies = policies(r#"{"inbound":{"MaxConcurrentRequests":1}}"#);
    world.request_timeout = Duration::from_secs(2);
    world.http_mirror_or_fail().await;
    world.start().await;
    for length in [10, 10 << 20] {
        let mut half = tls(world.inbound(), world.native_client()).await.expect("a certificate");
        let head = format!("POST / HTTP/1.1\r\nhost: db\r\ncontent-length: {length}\r\n\r\nhalf");
        half.write_all(head.as_bytes()).await.expect("open");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while get(world.outbound, "/").await.status() != StatusCode::OK {
            assert!(tokio::time::Instant::now() < deadline, "{length}: there is no room again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut answer = vec![0; 1024];
        let read = tokio::time::timeout(Duration::from_secs(20), half.read(&mut answer)).await;
        let count = read.expect("an answer").expect("open");
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(answer.contains("x-hawser-reason: request_timeout"), "{answer}");
    }
}
