//! Two data planes in one process, with real TLS between them.

mod connections;
mod datagrams;
mod faults;
mod ports;
mod races;
mod regions;
mod replay;
mod resilience;
mod streams;
mod telemetry;
mod vectors;
mod traffic;
mod world;

use std::time::Duration;

use bytes::Bytes;
use hawser_core::catalog::Protocol;
use hawser_core::health::Status;
use hawser_core::intention::Action;
use http_body_util::BodyExt as _;
use hyper::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use world::{World, eventually, free_address, get, get_with, read_all, send_raw};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_both_ways_and_each_way_closes_on_its_own() {
    let mut world = World::new(Protocol::Tcp);
    world.tcp_echo().await;
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    let question = vec![7_u8; 3 * 1024 * 1024];
    let (mut reader, mut writer) = stream.split();
    let writing = async {
        writer.write_all(&question).await.expect("open");
        writer.shutdown().await.expect("open");
    };
    let (answer, ()) = tokio::join!(read_all(&mut reader), writing);
    assert!(answer == question, "{} bytes came back", answer.len());
    eventually("an edge is counted", || {
        world.client_edges().iter().any(|(verdict, count)| verdict == "ok" && *count == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_passes_with_the_callers_name_and_without_forgeries() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let forged = [
        ("x-forwarded-client-cert", "URI=spiffe://evil"),
        ("x-hawser-anything", "1"),
        ("connection", "x-secret"),
        ("x-secret", "1"),
    ];
    for _ in 0..20 {
        let answer = get_with(world.outbound, "/path?q=1", &forged).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let text = String::from_utf8(answer.into_body().to_vec()).expect("text");
        assert!(text.starts_with("a GET /path?q=1 "), "{text}");
        let caller =
            "URI=spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/web";
        assert!(text.contains(caller), "{text}");
        assert!(!text.contains("evil") && !text.contains("x-secret"), "{text}");
        assert!(text.contains("x-request-id"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_in_both_directions() {
    let mut world = World::new(Protocol::Http);
    world.http_mirror().await;
    world.start().await;
    for size in [0, 1, 65_536, 65_537, 5_000_000] {
        let body = Bytes::from(vec![b'x'; size]);
        let request = Request::post("/").header("host", "db").body(body.clone().into());
        let answer = world::call(world.outbound, request.expect("good")).await.expect("answered");
        assert_eq!(answer.status(), StatusCode::OK, "{size} bytes");
        assert!(answer.into_body() == body, "{size} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_passes_with_its_trailers() {
    let mut world = World::new(Protocol::Grpc);
    world.grpc_echo().await;
    world.start().await;
    let mut sender = world::http2(world.outbound).await;
    for _ in 0..20 {
        let request = Request::post("http://db/pkg.Service/Method")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(http_body_util::Full::new(Bytes::from_static(b"\0\0\0\0\x02hi")))
            .expect("good");
        let answer = sender.send_request(request).await.expect("answered");
        assert_eq!(answer.status(), StatusCode::OK);
        let body = answer.into_body().collect().await.expect("whole");
        let trailers = body.trailers().cloned().expect("trailers");
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(body.to_bytes(), Bytes::from_static(b"\0\0\0\0\x02hi"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_request_is_told_so_and_an_allowed_one_passes_again() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    assert_eq!(get(world.outbound, "/").await.status(), StatusCode::OK);
    world.intend(Action::Deny);
    world.until_status(StatusCode::FORBIDDEN).await;
    let answer = get(world.outbound, "/").await;
    assert_eq!(answer.headers()["x-hawser-reason"], "intention_denied");
    assert_eq!(answer.headers()["x-hawser-decided-by"], "server_proxy");
    world.intend(Action::Allow);
    world.until_status(StatusCode::OK).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_deny_cuts_what_is_open() {
    let mut world = World::new(Protocol::Tcp);
    world.tcp_echo().await;
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(b"hello").await.expect("open");
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.expect("echoed");
    world.intend(Action::Deny);
    // Nothing is sent meanwhile: the connection ends by itself.
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut echo)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "still open: {ended:?}");
    assert!(is_closed(&world).await, "a new one was let in");
    eventually("the denial is an edge", || {
        world.client_edges().iter().any(|(verdict, _)| verdict == "intention_denied")
    })
    .await;
    world.intend(Action::Allow);
    eventually_echo(&world).await;
}

/// Whether a new connection is closed without a word; it may be before it is seen to be open.
async fn is_closed(world: &World) -> bool {
    let Ok(mut stream) = TcpStream::connect(world.outbound).await else { return true };
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0; 1])).await;
    matches!(ended, Ok(Ok(0) | Err(_)))
}

async fn eventually_echo(world: &World) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let echoed = async {
            let mut stream = TcpStream::connect(world.outbound).await?;
            stream.write_all(b"hi").await?;
            stream.read_exact(&mut [0; 2]).await
        };
        if echoed.await.is_ok() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "never allowed again");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_root_cuts_what_is_open() {
    let mut world = World::new(Protocol::Tcp);
    world.tcp_echo().await;
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(b"hello").await.expect("open");
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.expect("echoed");
    world.forget_root();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut echo)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "still open: {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_instance_costs_no_request() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.dead_endpoint();
    world.dead_endpoint();
    world.start().await;
    for n in 0..100 {
        let answer = get(world.outbound, "/").await;
        assert_eq!(answer.status(), StatusCode::OK, "request {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_instance_is_ejected_and_costs_no_request() {
    let mut world = World::new(Protocol::Http);
    world.limits.per_try = Duration::from_millis(2_000);
    world.limits.retry_budget_floor = 1_000;
    world.connect_timeout = Duration::from_millis(100);
    world.http_slow(Duration::from_millis(60)).await;
    world.stalled_endpoint().await;
    world.start().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while world.client_metric("hawser_proxy_ejections_total") < 1.0 {
        let answers: Vec<_> = (0..8).map(|_| get(world.outbound, "/")).collect();
        for answer in futures_util::future::join_all(answers).await {
            assert_eq!(answer.status(), StatusCode::OK);
        }
        assert!(tokio::time::Instant::now() < deadline, "never ejected");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_is_gone_is_said_to_be_and_another_instance_serves() {
    let mut world = World::new(Protocol::Http);
    world.gone_application();
    world.start().await;
    let answer = get(world.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["x-hawser-reason"], "application_unreachable");
    world.stop().await;

    let mut world = World::new(Protocol::Http);
    world.gone_application();
    world.http_echo("b").await;
    world.start().await;
    for n in 0..20 {
        let request = Request::post("/").header("host", "db").body(Bytes::from("x").into());
        let answer = world::call(world.outbound, request.expect("good")).await.expect("answered");
        assert_eq!(answer.status(), StatusCode::OK, "request {n}: nothing had been processed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_passes_without_an_identity() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.has_client_identity = false;
    world.start().await;
    let answer = get(world.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["x-hawser-reason"], "no_identity");
    world.stop().await;

    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.has_server_identity = false;
    world.start().await;
    assert_eq!(get(world.outbound, "/").await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_proves_another_identity_is_refused() {
    let mut world = World::new(Protocol::Http);
    world.server_identity = "other";
    world.http_echo("a").await;
    world.start().await;
    let answer = get(world.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["x-hawser-reason"], "unexpected_peer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_on_the_mesh_port_is_refused_and_counted() {
    let mut world = World::new(Protocol::Http);
    let inbound = world.http_echo("a").await;
    world.start().await;
    let answer = send_raw(inbound, b"GET / HTTP/1.1\r\nhost: db\r\n\r\n").await;
    assert!(!answer.contains("200"), "{answer}");
    eventually("the refusal is counted", || {
        world.server_metric("hawser_proxy_refusals_total") >= 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_native_client_needs_a_certificate_and_no_protocol() {
    let mut world = World::new(Protocol::Http);
    let inbound = world.http_echo("a").await;
    world.start().await;
    let ask = b"GET / HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n";
    let mut config = world.native_client();
    let mut stream = world::tls(inbound, config.clone()).await.expect("a certificate");
    stream.write_all(ask).await.expect("open");
    let answer = String::from_utf8(read_all(&mut stream).await).expect("text");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    config.client_auth_cert_resolver = std::sync::Arc::new(world::Anonymous);
    // In TLS 1.3 the client has finished before it is refused: the refusal comes on reading.
    if let Ok(mut stream) = world::tls(inbound, config).await {
        let _ = stream.write_all(ask).await;
        assert!(stream.read_u8().await.is_err(), "an anonymous client was answered");
    }
    eventually("the refusal is counted by its reason", || {
        world.server_reasons().contains(&"no_client_certificate".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_requests_are_not_passed_on() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: db\r\n\r\n", "a".repeat(9_000));
    let many: String = (0..101).map(|n| format!("x-{n}: 1\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nhost: db\r\n{many}\r\n");
    let cases: &[(&[u8], &str, &str)] = &[
        (b"GET / HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n", "200", "a good one"),
        (b"GET / HTTP/1.1\r\n\r\n", "400", "no host"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "400", "two hosts"),
        (b"GET / HTTP/1.1\r\nhost: a, b\r\n\r\n", "400", "a list of hosts"),
        (b"GET / HTTP/1.1\r\nhost: u@db\r\n\r\n", "400", "a user in the host"),
        (b"GET http://x/ HTTP/1.1\r\nhost: db\r\n\r\n", "400", "a target for another host"),
        (b"CONNECT db:80 HTTP/1.1\r\nhost: db:80\r\n\r\n", "405", "a tunnel"),
        (
            b"GET / HTTP/1.1\r\nhost: db\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "400",
            "two lengths",
        ),
        (
            b"GET / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: xchunked\r\n\r\n",
            "400",
            "unknown coding",
        ),
        (
            b"GET / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n",
            "400",
            "two codings",
        ),
        (
            b"GET / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked\r\ntransfer-encoding: \
              chunked\r\n\r\n0\r\n\r\n",
            "400",
            "a coding twice",
        ),
        (b"GET / HTTP/1.1\r\nhost: db\r\nx: a\r\n b\r\n\r\n", "400", "a folded field"),
        (b"GET / HTTP/1.1\r\nhost: db\r\nx : a\r\n\r\n", "400", "a blank before the colon"),
        (b"GET / HTTP/1.2\r\nhost: db\r\n\r\n", "400", "a version that is none"),
        (b"GET * HTTP/1.1\r\nhost: db\r\n\r\n", "400", "an asterisk to GET"),
        (long.as_bytes(), "414", "a target of 9 kB"),
        (many.as_bytes(), "431", "101 fields"),
    ];
    for (request, expected, why) in cases {
        let answer = send_raw(world.outbound, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{why}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_its_writer() {
    let mut world = World::new(Protocol::Http);
    let written = world.http_flood(256 * 1024 * 1024).await;
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: db\r\n\r\n").await.expect("open");
    let count = || written.load(std::sync::atomic::Ordering::Relaxed);
    // Wait until the writer stands still: a second without progress.
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = count();
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    assert!(count() < 64 * 1024 * 1024, "{} bytes are held somewhere", count());
    let mut buffer = vec![0; 1024 * 1024];
    let mut total = 0;
    while total < 8 * 1024 * 1024 {
        total += stream.read(&mut buffer).await.expect("flowing again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_becomes_bytes_both_ways() {
    let mut world = World::new(Protocol::Http);
    world.upgrading().await;
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream
        .write_all(
            b"GET /ws HTTP/1.1\r\nhost: db\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n",
        )
        .await
        .expect("open");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    let head = String::from_utf8(head).expect("ASCII").to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("upgrade: websocket"), "{head}");
    stream.write_all(b"ping").await.expect("open");
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.expect("echoed");
    assert_eq!(&echo, b"ping");
    world.intend(Action::Deny);
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut echo)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "a deny does not cut it: {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_come_in_time_is_a_timeout() {
    let mut world = World::new(Protocol::Http);
    world.request_timeout = Duration::from_millis(300);
    let _gate = world.http_gated().await;
    world.start().await;
    let answer = get(world.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.headers()["x-hawser-reason"], "request_timeout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_is_waited_for_where_nobody_else_can_give_it() {
    let mut world = World::new(Protocol::Http);
    world.limits.per_try = Duration::from_millis(50);
    world.http_slow(Duration::from_millis(300)).await;
    world.http_slow(Duration::from_millis(300)).await;
    world.start().await;
    for _ in 0..4 {
        assert_eq!(get(world.outbound, "/").await.status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_is_waited_for_where_the_budget_has_no_other_try() {
    let mut world = World::new(Protocol::Http);
    world.limits.per_try = Duration::from_millis(50);
    (world.limits.retry_budget_percent, world.limits.retry_budget_floor) = (0, 0);
    for _ in 0..3 {
        world.http_slow(Duration::from_millis(300)).await;
    }
    world.start().await;
    for _ in 0..4 {
        assert_eq!(get(world.outbound, "/").await.status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_runs_out_ends_what_it_opened() {
    let mut world = World::new(Protocol::Tcp);
    world.leaf_lifetime = Duration::from_secs(4);
    world.tcp_echo().await;
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(b"hello").await.expect("open");
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.expect("echoed");
    let ended = tokio::time::timeout(Duration::from_secs(15), stream.read(&mut echo)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "still open: {ended:?}");
    assert!(is_closed(&world).await, "it fails closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_is_open_and_accepts_nothing_new() {
    let mut world = World::new(Protocol::Http);
    let gate = world.http_gated().await;
    world.start().await;
    let outbound = world.outbound;
    let pending = tokio::spawn(async move { get(outbound, "/").await });
    gate.arrived().await;
    let client = world.client.take().expect("started");
    let draining = tokio::spawn(client.drain(Duration::from_secs(20)));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(outbound).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "still accepting");
        tokio::task::yield_now().await;
    }
    gate.open();
    assert_eq!(pending.await.expect("no panic").status(), StatusCode::OK);
    draining.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_plan_keeps_what_stays() {
    let mut world = World::new(Protocol::Tcp);
    world.tcp_echo().await;
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    let mut echo = [0; 2];
    stream.write_all(b"hi").await.expect("open");
    stream.read_exact(&mut echo).await.expect("echoed");
    let old = world.outbound;
    let new = free_address();
    world.move_outbound(new);
    world.until_bound(new.into()).await;
    stream.write_all(b"ho").await.expect("the open connection outlives its listener");
    stream.read_exact(&mut echo).await.expect("echoed");
    assert_eq!(&echo, b"ho");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(old).await.is_ok() {
        assert!(tokio::time::Instant::now() < deadline, "the old listener is still there");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_is_reported_and_tried_again() {
    let mut world = World::new(Protocol::Tcp);
    world.tcp_echo().await;
    let squatter = TcpListener::bind(world.outbound).await.expect("free");
    world.start_unbound();
    eventually("the error is reported", || {
        world.client_listeners().iter().any(|listener| listener.error.is_some())
    })
    .await;
    drop(squatter);
    world.until_bound(world.outbound.into()).await;
    eventually_echo(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_every_instance_is_critical_the_answer_says_so_at_once() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.status = Status::Critical;
    world.start().await;
    let answer = get(world.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["x-hawser-reason"], "no_endpoint");
}

/// Sends `bytes` on one connection, and reads until `count` answers of `body` have come.
async fn answers(world: &World, bytes: &[u8], body: &str, count: usize) -> String {
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(bytes).await.expect("open");
    let (mut all, mut buffer) = (String::new(), [0; 4096]);
    while all.matches(body).count() < count {
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut buffer)).await;
        let Ok(Ok(read @ 1..)) = read else { break };
        all += &String::from_utf8_lossy(&buffer[..read]);
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_sent_before_their_turn_are_answered_in_order() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let requests = "GET /1 HTTP/1.1\r\nhost: db\r\n\r\n\
                    POST /2 HTTP/1.1\r\nhost: db\r\ncontent-length: 5\r\n\r\nhello\
                    POST /3 HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked\r\n\r\n\
                    5\r\nhello\r\n0\r\n\r\nGET /4 HTTP/1.1\r\nhost: db\r\n\r\n";
    let all = answers(&world, requests.as_bytes(), "a GET /4", 1).await;
    let places: Vec<_> = ["a GET /1 ", "a POST /2 ", "a POST /3 ", "a GET /4 "]
        .iter()
        .map(|line| all.find(line).unwrap_or_else(|| panic!("no {line}: {all}")))
        .collect();
    assert!(places.is_sorted(), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_application_says_unasked_is_nobodys_answer() {
    let mut world = World::new(Protocol::Http);
    let forged = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\
                   content-length: 6\r\n\r\nforged";
    world.http_raw(forged, 9).await;
    world.start().await;
    for _ in 0..20 {
        assert_eq!(get(world.outbound, "/").await.into_body(), "ok");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_closes_without_a_word_costs_no_request() {
    let mut world = World::new(Protocol::Http);
    world.http_raw(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 1).await;
    world.start().await;
    for n in 0..50 {
        assert_eq!(get(world.outbound, "/").await.status(), StatusCode::OK, "request {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ambiguous_answer_is_not_passed_on() {
    let cases: &[(&[u8], &str)] = &[
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", "two lengths"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "a length and a coding",
        ),
        (b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n", "a folded field"),
        (b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", "bare line feeds"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "a switch that nobody asked for"),
    ];
    for (answer, why) in cases {
        let mut world = World::new(Protocol::Http);
        world.http_raw(answer, 1).await;
        world.start().await;
        let answer = get(world.outbound, "/").await;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{why}");
        assert_eq!(answer.headers()["x-hawser-reason"], "upstream_protocol", "{why}");
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_sent_right_behind_an_upgrade_are_not_lost() {
    let mut world = World::new(Protocol::Http);
    world.upgrading().await;
    world.start().await;
    let request = "GET /ws HTTP/1.1\r\nhost: db\r\nconnection: Upgrade\r\n\
                   upgrade: websocket\r\n\r\nearly";
    let all = answers(&world, request.as_bytes(), "early", 1).await;
    assert!(all.starts_with("HTTP/1.1 101 ") && all.ends_with("\r\n\r\nearly"), "{all}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_without_tls_is_told_from_its_first_bytes() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let mut sender = world::http2(world.outbound).await;
    let request = Request::get("http://db/x").body(http_body_util::Full::new(Bytes::new()));
    let answer = sender.send_request(request.expect("good")).await.expect("answered");
    assert_eq!(answer.status(), StatusCode::OK);
    // So is a method that begins as the preface does.
    let put = "PRI / HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n";
    let all = answers(&world, put.as_bytes(), "HTTP/1.1 ", 1).await;
    assert!(all.starts_with("HTTP/1.1 "), "{all}");
}
