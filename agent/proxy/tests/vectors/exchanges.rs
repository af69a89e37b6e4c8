//! H18, H29, H30: whose bytes go where, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hawser_core::catalog::Protocol;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::world::{World, get, listener};

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nhost: db\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const SWITCHED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

/// What an application saw on one connection: before it answered, and after.
struct Seen {
    before: String,
    after: String,
}

/// An application that answers each connection's head with `answer`, or never, and tells what came.
async fn scripted(world: &mut World, answer: Option<&'static [u8]>) -> mpsc::Receiver<Seen> {
    let (listener, address) = listener().await;
    let (tell, told) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let before = quiet(&mut socket).await;
                if let Some(answer) = answer {
                    let _ = socket.write_all(answer).await;
                }
                let after = quiet(&mut socket).await;
                let _ = tell.send(Seen { before, after }).await;
                // A switched connection stays open.
                let mut rest = [0; 64];
                while socket.read(&mut rest).await.is_ok_and(|count| count > 0) {}
            });
        }
    });
    world.serve_application(address);
    told
}

/// What comes until nothing has for a while.
async fn quiet(socket: &mut TcpStream) -> String {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(Ok(count @ 1..)) =
        timeout(Duration::from_millis(700), socket.read(&mut buffer)).await
    {
        seen.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// Sends an upgrade and bytes right behind it; answers how the answer begins.
async fn asked_early(world: &World, early: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(format!("{UPGRADE}{early}").as_bytes()).await.expect("open");
    let mut buffer = [0; 4096];
    let read = timeout(Duration::from_secs(30), stream.read(&mut buffer)).await;
    let count = read.expect("an answer").unwrap_or(0);
    (String::from_utf8_lossy(&buffer[..count]).into_owned(), stream)
}

/// H18: no byte of what is to be a tunnel leaves before the application says that it is one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_an_upgrade_waits_for_the_101() {
    let ok: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let cases: [(Option<&'static [u8]>, &str, &str, &str); 3] = [
        (Some(SWITCHED), "HTTP/1.1 101", "EARLY", "switched: it follows"),
        (Some(ok), "HTTP/1.1 200", "", "answered: it was never for the application"),
        (None, "HTTP/1.1 504", "", "never answered"),
    ];
    for (answer, begins, after, why) in cases {
        let mut world = World::new(Protocol::Http);
        world.request_timeout = Duration::from_secs(3);
        let mut told = scripted(&mut world, answer).await;
        world.start().await;
        let (head, _stream) = asked_early(&world, "EARLY").await;
        assert!(head.starts_with(begins), "{why}: {head}");
        let seen = timeout(Duration::from_secs(30), told.recv()).await.expect("in time");
        let seen = seen.expect("a connection");
        assert!(seen.before.starts_with("GET /ws HTTP/1.1\r\n"), "{why}: {}", seen.before);
        assert!(seen.before.ends_with("\r\n\r\n"), "{why}: the head alone: {}", seen.before);
        assert_eq!(seen.after, after, "{why}");
        world.stop().await;
    }
}

/// Applications of which the first that is asked reads a while and breaks off.
async fn breaking(world: &mut World) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    for _ in 0..2 {
        let (listener, address) = listener().await;
        let asked = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let asked = asked.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 256 * 1024];
                    let mut count = socket.read(&mut buffer).await.unwrap_or(0);
                    if count == 0 {
                        return;
                    }
                    let is_first = asked.fetch_add(1, Ordering::SeqCst) == 0;
                    let most = if is_first { 100_000 } else { usize::MAX };
                    while count < most.min(buffer.len()) {
                        let reading = socket.read(&mut buffer[count..]);
                        match timeout(Duration::from_millis(700), reading).await {
                            Ok(Ok(more @ 1..)) => count += more,
                            _ => break,
                        }
                    }
                    if !is_first {
                        let bodies = count - head_bytes(&buffer[..count]);
                        let text = bodies.to_string();
                        let head =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
                        let _ = socket.write_all((head + &text).as_bytes()).await;
                    }
                });
            }
        });
        world.serve_application(address);
    }
    asked
}

fn head_bytes(octets: &[u8]) -> usize {
    octets.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4)
}

/// H29: a body goes to a second application only if it was kept whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_not_kept_is_never_sent_again() {
    let cases = [
        (40_000, StatusCode::OK, "40000", 2, "kept: the second gets all of it"),
        (200_000, StatusCode::BAD_GATEWAY, "", 1, "more than is kept: nobody else gets any of it"),
    ];
    for (size, status, body, times, why) in cases {
        let mut world = World::new(Protocol::Http);
        let asked = breaking(&mut world).await;
        world.start().await;
        let request = http::Request::put("/")
            .header("host", "db")
            .body(http_body_util::Full::new(bytes::Bytes::from(vec![b'x'; size])))
            .expect("good");
        let answer = crate::world::call(world.outbound, request).await.expect("an answer");
        assert_eq!(answer.status(), status, "{why}");
        if status == StatusCode::OK {
            assert_eq!(answer.body(), body, "{why}");
        }
        assert_eq!(asked.load(Ordering::SeqCst), times, "{why}");
        world.stop().await;
    }
}

/// H30: nobody's request rides a connection that another service has opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_never_rides_another_services_connection() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let other = world.also_calls("cron").await;
    for n in 0..12 {
        let (allowed, denied) = tokio::join!(get(world.outbound, "/"), get(other, "/"));
        assert_eq!(denied.status(), StatusCode::FORBIDDEN, "{n}: the other has its own");
        assert_eq!(denied.headers()["x-hawser-reason"], "intention_denied", "{n}");
        assert_eq!(allowed.status(), StatusCode::OK, "{n}: who may does not suffer");
    }
}
