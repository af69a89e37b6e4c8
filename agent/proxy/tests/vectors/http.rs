//! HTTP/1.1 as attackers write it, octet by octet: each request is refused, or the application sees
//! exactly the one that was decided about. The numbers are those of docs/security.md.
//!
//! Every row is sent both ways that a request can come: by the application to its own proxy, and by
//! whoever holds a certificate to the callee's proxy, past every other check.

use std::time::Duration;

use hawser_core::catalog::Protocol;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{self, World, listener};

/// What must come of a request.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// An answer with this status, by a proxy.
    Refused(u16),
    /// The application sees this.
    Seen(&'static str),
}

use Then::{Refused, Seen};

/// A row: the number in the catalogue, the request without `host`, what must come of it.
type Row = (&'static str, &'static [u8], Then);

const HEADS: &[Row] = &[
    ("H2", b"POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H2", b"POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H3", b"POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H3", b"POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H3", b"POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked\r\ntransfer-encoding: cow\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H3", b"POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H3", b"POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H3", b"POST / HTTP/1.0\r\nhost: db\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H5", b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", Refused(400)),
    ("H5", b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: 5, 5\r\n\r\nxxxxx", Refused(400)),
    ("H5", b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: +5\r\n\r\nxxxxx", Refused(400)),
    ("H5", b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: 0x5\r\n\r\nxxxxx", Refused(400)),
    ("H5", b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: \r\n\r\n", Refused(400)),
    ("H5", b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: 18446744073709551616\r\n\r\n", Refused(400)),
    ("H6", b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: 05\r\n\r\nxxxxx", Seen("\"content-length\": \"5\"")),
    ("H10", b"GET / HTTP/1.1\r\nhost: db\r\nx-a: b\r\n c\r\n\r\n", Refused(400)),
    ("H10", b"GET / HTTP/1.1\r\nhost: db\r\nx-a: b\0c\r\n\r\n", Refused(400)),
    ("H10", b"GET / HTTP/1.1\r\nhost: db\r\nx-a: b\rc\r\n\r\n", Refused(400)),
    ("H10", b"GET / HTTP/1.1\r\nhost: db\r\n: b\r\n\r\n", Refused(400)),
    ("H10", b"GET /\r\n\r\n", Refused(400)),
    ("H10", b"GET / HTTP/1.2\r\nhost: db\r\n\r\n", Refused(400)),
    ("H11", b"GET / HTTP/1.1\r\n\r\n", Refused(400)),
    ("H11", b"GET / HTTP/1.1\r\nhost: db\r\nhost: db\r\n\r\n", Refused(400)),
    ("H11", b"GET / HTTP/1.1\r\nhost: a, b\r\n\r\n", Refused(400)),
    ("H11", b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n", Refused(400)),
    ("H11", b"GET http://evil/ HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H11", b"GET http://db/a HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /a ")),
    ("H11", b"GET / HTTP/1.1\r\nhost: DB\r\n\r\n", Seen("\"host\": \"db\"")),
    ("H12", b"GET /pub/../admin HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /admin ")),
    ("H12", b"GET /pub/%2e%2e/admin HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /admin ")),
    ("H12", b"GET /./admin HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /admin ")),
    ("H12", b"GET //admin HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /admin ")),
    ("H12", b"GET /a\\b HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H12", b"GET /a%5cb HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H12", b"GET /a%2fb HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H12", b"GET /a%252fb HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H12", b"GET /a;x=1 HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /a;x=1 ")),
    ("H12", b"GET /a/..;/b HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H12", b"GET /a%00 HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H12", b"GET /a%zz HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H12", b"GET /a\xff HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H12", b"GET /%c0%af HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H12", b"GET /admin%20 HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /admin%20 ")),
    ("H12", b"GET /ADMIN HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /ADMIN ")),
    ("H12", b"GET /admin/ HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /admin/ ")),
    ("H12", b"GET /admin? HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a GET /admin? ")),
    ("H13", b"GET * HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H13", b"OPTIONS * HTTP/1.1\r\nhost: db\r\n\r\n", Seen("a OPTIONS * ")),
    ("H13", b"CONNECT db:80 HTTP/1.1\r\nhost: db:80\r\n\r\n", Refused(405)),
    ("H13", b"FOO / HTTP/1.1\r\nhost: db\r\n\r\n", Refused(405)),
    ("H13", b"get / HTTP/1.1\r\nhost: db\r\n\r\n", Refused(405)),
    ("H13", b"GET ftp://db/ HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
    ("H14", b"GET / HTTP/1.1\r\nhost: db\r\nx_role: admin\r\n\r\n", Refused(400)),
    ("H15", b"GET / HTTP/1.1\r\nhost: db\r\nconnection: x-forwarded-client-cert\r\n\r\n", Seen("URI=spiffe://11111111")),
    ("H16", b"GET / HTTP/1.1\r\nhost: db\r\nx-forwarded-for: 9.9.9.9\r\n\r\n", Seen("\"x-forwarded-for\": \"127.0.0.1\"")),
    ("H16", b"GET / HTTP/1.1\r\nhost: db\r\nx-forwarded-proto: https\r\n\r\n", Seen("\"x-forwarded-proto\": \"http\"")),
    ("H17", b"GET / HTTP/1.1\r\nhost: db\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n\r\n", Seen("a GET / ")),
    // Parsers of HTTP/1 repair these in silence, each in its way.
    ("H1", b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H1", b"POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", Refused(400)),
    ("H4", b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nxxxxx", Refused(400)),
    ("H9", b"GET / HTTP/1.1\nhost: db\n\n", Refused(400)),
    ("H12", b"GET /admin#x HTTP/1.1\r\nhost: db\r\n\r\n", Refused(400)),
];

/// Names that must never reach an application as a caller wrote them.
const FORGED: &[u8] = b"GET / HTTP/1.1\r\nhost: db\r\n\
    x-forwarded-client-cert: FORGED\r\nx-forwarded-for: FORGED\r\nx-forwarded-proto: FORGED\r\n\
    x-forwarded-host: FORGED\r\nforwarded: FORGED\r\nx-hawser-reason: FORGED\r\n\
    x-envoy-original-path: FORGED\r\nx-original-url: FORGED\r\nx-consul-token: FORGED\r\n\
    proxy-authorization: FORGED\r\nkeep-alive: FORGED\r\nx-nominated: FORGED\r\n\
    connection: x-nominated\r\n\r\n";

/// Sends octets as they are, and reads one answer: its status, and all of it.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, octets: &[u8]) -> (u16, String) {
    // It may be refused before all of it is sent.
    let _ = stream.write_all(octets).await;
    let _ = stream.flush().await;
    let mut answer = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..count]);
            if is_whole(&answer) {
                break;
            }
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(20), reading).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    assert!(read.is_ok(), "no whole answer to {}: {text}", String::from_utf8_lossy(octets));
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, text)
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.is_some_and(|length| body.len() >= length.parse().unwrap_or(0))
}

/// One answer over each way in.
async fn both_ways(world: &World, octets: &[u8]) -> [(u16, String); 2] {
    let plain = TcpStream::connect(world.outbound).await.expect("listening");
    let mutual = world::tls(world.inbound(), world.native_client()).await.expect("a certificate");
    [exchange(plain, octets).await, exchange(mutual, octets).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_head_is_refused_or_seen_as_it_was_decided_about() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    for (id, octets, then) in HEADS {
        let shown = String::from_utf8_lossy(octets);
        for (status, answer) in both_ways(&world, octets).await {
            match then {
                Refused(expected) => {
                    assert_eq!(status, *expected, "{id}: {shown}\n{answer}");
                    assert!(
                        !answer.contains("a GET") && !answer.contains("a POST"),
                        "{id}: {answer}"
                    );
                }
                Seen(expected) => {
                    assert_eq!(status, 200, "{id}: {shown}\n{answer}");
                    assert!(answer.contains(expected), "{id}: {shown}\n{answer}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_only_proxies_say_passes_from_a_caller() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    for (status, answer) in both_ways(&world, FORGED).await {
        assert_eq!(status, 200, "{answer}");
        assert!(!answer.contains("FORGED"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_have_their_limits() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let head = |target: &str, fields: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: db\r\n{fields}\r\n").into_bytes()
    };
    let fields = |count: usize| (0..count).map(|n| format!("x-{n}: a\r\n")).collect::<String>();
    let cases = [
        (head("/", &fields(80)), 200, "80 fields"),
        (head("/", &fields(101)), 431, "102 fields"),
        (head(&format!("/{}", "a".repeat(8_000)), ""), 200, "a target of 8 kB"),
        (head(&format!("/{}", "a".repeat(9_000)), ""), 414, "of 9 kB"),
        (head(&format!("/{}", "a".repeat(60_000)), ""), 414, "of 60 kB"),
        (head("/", &format!("x-a: {}\r\n", "a".repeat(40_000))), 200, "a field of 40 kB"),
        (head("/", &format!("x-a: {}\r\n", "a".repeat(400_000))), 431, "of 400 kB"),
    ];
    for (octets, expected, why) in cases {
        for (status, _) in both_ways(&world, &octets).await {
            assert_eq!(status, expected, "H19: {why}");
        }
    }
}

/// Bodies whose chunks are not as they must be: the request fails, and nobody else's with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_its_framing_harms_itself_only() {
    const BODIES: [&[u8]; 5] = [
        b"fffffffffffffffff\r\n",
        b"-1\r\nx\r\n0\r\n\r\n",
        b"1;a\nb\r\nx\r\n0\r\n\r\n",
        b"1\r\nxGET /smuggled HTTP/1.1\r\n\r\n",
        b"zz\r\nx\r\n0\r\n\r\n",
    ];
    let mut world = World::new(Protocol::Http);
    world.http_mirror_or_fail().await;
    world.start().await;
    for body in BODIES {
        let head = b"POST / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked\r\n\r\n";
        let octets = [head, body].concat();
        for (status, answer) in both_ways(&world, &octets).await {
            assert_eq!(status, 400, "H7: {}\n{answer}", String::from_utf8_lossy(body));
        }
        let good = b"POST / HTTP/1.1\r\nhost: db\r\ncontent-length: 4\r\n\r\ngood";
        for (status, answer) in both_ways(&world, good).await {
            assert!(status == 200 && answer.ends_with("good"), "H7: the next one: {answer}");
        }
    }
}

/// Answers as a broken or hostile application gives them: none is two answers to anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_can_be_read_in_two_ways_is_not_passed_on() {
    let bomb =
        format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "a".repeat(300_000));
    let cases: [(&[u8], u16, &str); 7] = [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, "as it should be"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            502,
            "two framings",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nokx",
            502,
            "two lengths",
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
            502,
            "twice the same",
        ),
        (
            b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            204,
            "a body where there is none",
        ),
        (b"HTP/1.1 200 OK\r\n\r\n", 502, "no HTTP"),
        (bomb.as_bytes(), 502, "a bomb of fields"),
    ];
    for (answer, expected, why) in cases {
        let mut world = World::new(Protocol::Http);
        let (listener, application) = listener().await;
        let answer = answer.to_vec();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(octet) = socket.read_u8().await else { break };
                    head.push(octet);
                }
                let _ = socket.write_all(&answer).await;
                let _ = socket.shutdown().await;
            }
        });
        world.serve_application(application);
        world.start().await;
        let got = world::get(world.outbound, "/").await;
        assert_eq!(got.status(), expected, "H21: {why}");
        world.stop().await;
    }
}
