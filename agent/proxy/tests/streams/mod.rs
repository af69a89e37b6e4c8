//! TCP connections as streams in one mTLS connection: each as if it had one of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hawser_core::catalog::Protocol;
use hawser_core::intention::Action;
use hawser_core::reason::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::world::tap::Tap;
use crate::world::{World, eventually, get, listener, tls};

async fn world() -> (World, Tap) {
    let mut world = World::new(Protocol::Tcp);
    world.tcp_echo().await;
    let tap = world.tap().await;
    (world, tap)
}

async fn connect(world: &World) -> TcpStream {
    TcpStream::connect(world.outbound).await.expect("listening")
}

async fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut echo = [0; 5];
    stream.write_all(b"hello").await?;
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_exact(&mut echo));
    read.await.expect("an answer or an end")?;
    assert_eq!(&echo, b"hello");
    Ok(())
}

async fn connected(world: &World) -> TcpStream {
    let mut stream = connect(world).await;
    echo(&mut stream).await.expect("echoed");
    stream
}

/// Whether a new connection ends without a word.
async fn is_refused(world: &World) -> bool {
    let Ok(mut stream) = TcpStream::connect(world.outbound).await else { return true };
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0; 1])).await;
    matches!(ended, Ok(Ok(0) | Err(_)))
}

async fn ends(stream: &mut TcpStream) {
    let ended = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0; 1])).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "still open: {ended:?}");
}

async fn until_echoed(world: &World) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while echo(&mut connect(world).await).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "never echoed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_short_connections_need_few_handshakes() {
    let (mut world, tap) = world().await;
    world.start().await;
    for _ in 0..50 {
        let twenty = (0..20).map(|_| connected(&world));
        for mut stream in futures_util::future::join_all(twenty).await {
            stream.shutdown().await.expect("open");
            assert_eq!(stream.read(&mut [0; 1]).await.expect("it ends well"), 0);
        }
    }
    assert!(tap.accepted() <= 4, "{} handshakes", tap.accepted());
    eventually("each is counted at both ends", || {
        world.client_count("hawser_proxy_requests_total", &[("reason", "ok")]) >= 1000.0
            && world.server_count("hawser_proxy_requests_total", &[("reason", "ok")]) >= 1000.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deny_cuts_streams_and_leaves_their_connection() {
    let (mut world, tap) = world().await;
    world.start().await;
    let mut open = connected(&world).await;
    world.intend(Action::Deny);
    ends(&mut open).await;
    assert!(is_refused(&world).await, "a new one was let in");
    eventually("both proxies say why", || {
        let labels = |reason| [("reason", reason)];
        let count = |reason| world.client_count("hawser_proxy_requests_total", &labels(reason));
        count("policy_cut") == 1.0 && count("intention_denied") == 1.0
    })
    .await;
    world.intend(Action::Allow);
    until_echoed(&world).await;
    assert_eq!(tap.accepted(), 1, "the connection itself was never forbidden");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    let (listener, address) = listener().await;
    let mut world = World::new(Protocol::Tcp);
    world.serve_application(address);
    let tap = world.tap().await;
    world.start().await;
    let mut free = connect(&world).await;
    let (mut served, _) = listener.accept().await.expect("dialled");
    let mut stuck = connect(&world).await;
    let (unread, _) = listener.accept().await.expect("dialled");
    let chunk = vec![7; 64 * 1024];
    let mut sent = 0;
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(500), stuck.write(&chunk)).await
    {
        sent += written.expect("open");
        assert!(sent < 256 << 20, "{sent} bytes are held by two proxies");
    }
    let mut buffer = [0; 4];
    for _ in 0..100 {
        free.write_all(b"ping").await.expect("open");
        served.read_exact(&mut buffer).await.expect("it passes the other");
        served.write_all(b"pong").await.expect("open");
        free.read_exact(&mut buffer).await.expect("and back");
    }
    assert_eq!(tap.accepted(), 1, "they share a connection");
    drop(unread);
    ends(&mut stuck).await;
    free.write_all(b"last").await.expect("open");
    served.read_exact(&mut buffer).await.expect("it does not mind the other's end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_bulk_has_its_connection_for_itself() {
    let (mut world, tap) = world().await;
    world.start().await;
    let (mut reader, mut writer) = connected(&world).await.into_split();
    let chunk = vec![7; 256 * 1024];
    let writing = tokio::spawn(async move { while writer.write_all(&chunk).await.is_ok() {} });
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 256 * 1024];
        while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while tap.accepted() < 2 {
        connected(&world).await;
        assert!(tokio::time::Instant::now() < deadline, "others go on in the same connection");
    }
    writing.abort();
    reading.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_ends_its_streams_and_no_more() {
    let (mut world, tap) = world().await;
    world.start().await;
    let mut open = [connected(&world).await, connected(&world).await];
    assert_eq!(tap.accepted(), 1);
    tap.cut();
    for stream in &mut open {
        ends(stream).await;
    }
    // It is tried again in another connection, with the same and only instance.
    connected(&world).await;
    assert_eq!(tap.accepted(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_is_left_and_given_up() {
    let (mut world, tap) = world().await;
    world.limits.ping_interval = Duration::from_millis(200);
    world.limits.ping_timeout = Duration::from_millis(200);
    world.limits.user_timeout = Duration::from_secs(1);
    world.start().await;
    let mut open = connected(&world).await;
    tap.silence();
    // It is asked for in the silent one first, and again in another.
    connected(&world).await;
    assert_eq!(tap.accepted(), 2);
    ends(&mut open).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_knows_no_streams_gets_a_connection_for_each() {
    let mut world = World::new(Protocol::Tcp);
    let count = world.old_proxy().await;
    world.start().await;
    let all = (0..20).map(|_| connected(&world));
    futures_util::future::join_all(all).await;
    let connections = count.load(Ordering::Relaxed);
    assert!((20..30).contains(&connections), "{connections} connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_knows_no_streams_of_requests_is_asked_in_http2() {
    let mut world = World::new(Protocol::Http);
    world.old_http_proxy().await;
    world.start().await;
    let answer = get(world.outbound, "/x?y").await;
    let text = String::from_utf8(answer.into_body().to_vec()).expect("text");
    assert!(text.starts_with("old http://") && text.ends_with("/x?y false"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_share_a_connection() {
    let mut world = World::new(Protocol::Http);
    world.http_slow(Duration::from_millis(100)).await;
    let tap = world.tap().await;
    world.start().await;
    for _ in 0..2 {
        let all = (0..50).map(|_| get(world.outbound, "/"));
        for answer in futures_util::future::join_all(all).await {
            assert_eq!(&answer.into_body()[..], b"slow");
        }
    }
    assert_eq!(tap.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_count_streams() {
    let (mut world, tap) = world().await;
    world.inbound_connections_max = Some(2);
    world.start().await;
    let (first, mut second) = (connected(&world).await, connected(&world).await);
    assert!(is_refused(&world).await, "a third was let in");
    drop(first);
    until_echoed(&world).await;
    echo(&mut second).await.expect("it stays");
    assert_eq!(tap.accepted(), 1);
    eventually("it is said why", || world.server_reasons().is_empty()).await;
    eventually("as an overload", || {
        world.server_count("hawser_proxy_requests_total", &[("reason", "overloaded")]) >= 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_nobody_uses_is_closed() {
    let (mut world, tap) = world().await;
    world.limits.session_idle = Duration::from_millis(300);
    world.start().await;
    let mut open = connected(&world).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        echo(&mut open).await.expect("a stream keeps it open");
    }
    assert_eq!((tap.accepted(), tap.open()), (1, 1));
    drop(open);
    eventually("it is closed", || tap.open() == 0).await;
    connected(&world).await;
    assert_eq!(tap.accepted(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_gives_way_keeps_its_streams_to_their_end() {
    let (mut world, tap) = world().await;
    world.start().await;
    let mut open = connected(&world).await;
    let server = world.server.take().expect("started");
    let mut leaving = tokio::spawn(server.give_way(Duration::from_secs(120)));
    eventually("it listens no more", || std::net::TcpStream::connect(world.inbound()).is_err())
        .await;
    echo(&mut open).await.expect("it lives");
    assert!(!leaving.is_finished(), "it waits for the stream");
    drop(open);
    let left = tokio::time::timeout(Duration::from_secs(60), &mut leaving).await;
    left.expect("long before its deadline").expect("no panic");
    eventually("its connection is closed", || tap.open() == 0).await;
    assert_eq!(tap.accepted(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_drains_sends_its_streams_last_bytes() {
    let (listener, address) = listener().await;
    let mut world = World::new(Protocol::Tcp);
    world.serve_application(address);
    world.start().await;
    let mut stream = connect(&world).await;
    let (mut application, _) = listener.accept().await.expect("dialled");
    let client = world.client.take().expect("started");
    let leaving = tokio::spawn(client.drain(Duration::from_secs(120)));
    application.shutdown().await.expect("open");
    let mut nothing = Vec::new();
    stream.read_to_end(&mut nothing).await.expect("it ends well");
    stream.write_all(&vec![7; 1 << 20]).await.expect("open this way");
    drop(stream);
    let mut all = Vec::new();
    application.read_to_end(&mut all).await.expect("it ends well");
    assert_eq!(all.len(), 1 << 20);
    let left = tokio::time::timeout(Duration::from_secs(60), leaving).await;
    left.expect("long before its deadline").expect("no panic");
}

/// Writes without end, and reads without end at the other side; counts what came through.
fn flood(from: TcpStream, to: TcpStream) -> (Arc<AtomicUsize>, [JoinHandle<()>; 2]) {
    let (mut from, mut to) = (from, to);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let writing = tokio::spawn(async move {
        let chunk = vec![7; 256 * 1024];
        while from.write_all(&chunk).await.is_ok() {}
    });
    let reading = tokio::spawn(async move {
        let mut buffer = vec![0; 256 * 1024];
        while let Ok(read @ 1..) = to.read(&mut buffer).await {
            counted.fetch_add(read, Ordering::Relaxed);
        }
    });
    (count, [writing, reading])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_bulk_starves_no_other_in_its_connection() {
    for from_caller in [true, false] {
        let (listener, address) = listener().await;
        let mut world = World::new(Protocol::Tcp);
        world.serve_application(address);
        // What is slow is the way between the proxies: it is the connection that has no room.
        let tap = world.tap_at(Some(16 * 1024)).await;
        world.start().await;
        let mut small = connect(&world).await;
        let (mut served, _) = listener.accept().await.expect("dialled");
        let bulk = connect(&world).await;
        let (application, _) = listener.accept().await.expect("dialled");
        let ends = if from_caller { (bulk, application) } else { (application, bulk) };
        let (count, tasks) = flood(ends.0, ends.1);
        eventually("it is in bulk", || count.load(Ordering::Relaxed) > 8 << 20).await;
        let before = count.load(Ordering::Relaxed);
        let pings = 20;
        for _ in 0..pings {
            let mut buffer = [0; 4];
            let passing = async {
                small.write_all(b"ping").await.expect("open");
                served.read_exact(&mut buffer).await.expect("it passes");
                served.write_all(b"pong").await.expect("open");
                small.read_exact(&mut buffer).await.expect("and back");
            };
            let passed = tokio::time::timeout(Duration::from_secs(20), passing).await;
            passed.expect("it has its turn");
        }
        let between = count.load(Ordering::Relaxed) - before;
        assert!(between > 0, "the bulk went on");
        assert!(between / pings < 16 << 20, "{between} bytes went before {pings} small ones");
        assert_eq!(tap.accepted(), 1, "they share a connection");
        tasks.iter().for_each(JoinHandle::abort);
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_turns_to_http_takes_no_more_streams() {
    const OPEN: u8 = 1;
    const VERDICT: u8 = 2;
    const LEAVE: u8 = 9;
    let (mut world, _) = world().await;
    world.server_workers = 1;
    world.start().await;
    let mut config = world.native_client();
    config.alpn_protocols = vec![hawser_proxy::tls::ALPN_STREAMS.to_vec()];
    let mut session = tls(world.inbound(), config).await.expect("a certificate");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let (mut refusal, mut has_left) = (0, false);
    for stream in 1_u32.. {
        if !has_left {
            let [a, b, c, d] = stream.to_be_bytes();
            session.write_all(&[OPEN, 0, 0, 0, a, b, c, d]).await.expect("open");
        }
        let mut frame = [0; 8];
        let read = tokio::time::timeout(Duration::from_secs(10), session.read_exact(&mut frame));
        read.await.expect("a frame").expect("open");
        match frame {
            [LEAVE, ..] => has_left = true,
            [VERDICT, code, .., 1] => {
                assert_eq!(code, 0, "it carries bytes");
                world.speak(Protocol::Http);
            }
            [VERDICT, code, ..] => refusal = code,
            other => panic!("{other:?}"),
        }
        if refusal != 0 && has_left {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "it goes on to carry bytes");
        // No more streams than a connection may have.
        assert!(stream < 120, "it goes on to carry bytes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let reason = Reason::from_code(refusal).expect("a reason");
    assert_eq!(reason, Reason::Draining);
}
