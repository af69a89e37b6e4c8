//! HTTP/2 as attackers write it, frame by frame, each with its exact outcome.
//!
//! Every row is sent both ways that a request can come: by the application to its own proxy, and by
//! whoever holds a certificate to the callee's proxy. After each the next connection is served.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use hawser_core::catalog::Protocol;
use http_body_util::Full;
use hyper::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, block, flood, frame, next, preface, request, text,
};
use crate::world::{self, World, listener};

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}
type Stream = Pin<Box<dyn Duplex>>;

/// A world whose application answers with what it saw, except to `/hang`, and counts.
async fn counted() -> (World, Arc<AtomicUsize>) {
    let mut world = World::new(Protocol::Grpc);
    let seen = Arc::new(AtomicUsize::new(0));
    let (listener, address) = listener().await;
    let count = seen.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let count = count.clone();
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                count.fetch_add(1, Ordering::SeqCst);
                async move {
                    if request.uri().path() == "/hang" {
                        std::future::pending::<()>().await;
                    }
                    let text = format!("a {} {:?}", request.uri(), request.headers());
                    Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    world.serve_application(address);
    world.start().await;
    (world, seen)
}

/// Both ways in, each a connection that has said nothing yet.
async fn ways(world: &World) -> [(Stream, &'static str); 2] {
    let plain = TcpStream::connect(world.outbound).await.expect("listening");
    let mut config = world.native_client();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let mutual = world::tls(world.inbound(), config).await.expect("a certificate");
    [(Box::pin(plain), "outbound"), (Box::pin(mutual), "inbound")]
}

/// The next ones are served.
async fn still_serves(world: &World, after: &str) {
    for (mut stream, way) in ways(world).await {
        let octets = [preface(), request(1, &GOOD)].concat();
        stream.write_all(&octets).await.expect("open");
        let answer = answer(&mut stream, 1).await;
        assert_eq!(answer, Outcome::Status(200), "{way}: after {after}");
    }
}

const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "db"), (":path", "/")];

/// What a peer was told of a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
}

use Outcome::{GoAway, Reset, Status};

/// What is said of `stream` first.
async fn answer(from: &mut Stream, stream: u32) -> Outcome {
    loop {
        let Some(frame) = next(from).await else { return Outcome::Closed };
        match frame.kind {
            GOAWAY if frame.code() != 0 => return GoAway(frame.code()),
            RST_STREAM if frame.stream == stream => return Reset(frame.code()),
            HEADERS if frame.stream == stream => return Status(frame.status()),
            _ => {}
        }
    }
}

/// The requests that a head may or may not make: what differs from [`GOOD`], and what comes of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_head_is_refused_or_passed_on() {
    let m = (":method", "GET");
    let s = (":scheme", "http");
    let a = (":authority", "db");
    let p = (":path", "/");
    let long = "a".repeat(70_000);
    type Fields<'a> = &'a [(&'a str, &'a str)];
    let cases: &[(&str, Fields<'_>, Outcome)] = &[
        ("a good one", &GOOD, Status(200)),
        ("H11: authority and host", &[m, s, a, p, ("host", "db")], Status(200)),
        ("H11: that differ", &[m, s, a, p, ("host", "evil")], Status(400)),
        ("H11: two hosts", &[m, s, p, ("host", "db"), ("host", "db")], Status(400)),
        ("H11: none", &[m, s, p], Status(400)),
        ("H11: a user", &[m, s, (":authority", "u@db"), p], Status(400)),
        ("H11: two authorities", &[m, s, a, a, p], Reset(PROTOCOL_ERROR)),
        ("H12: no slash", &[m, s, a, (":path", "admin")], Reset(PROTOCOL_ERROR)),
        ("H12: nothing", &[m, s, a, (":path", "")], Reset(PROTOCOL_ERROR)),
        ("H12: an escaped slash", &[m, s, a, (":path", "/a%2fb")], Status(400)),
        ("H12: a backslash", &[m, s, a, (":path", "/a\\b")], Status(400)),
        ("H12: NUL", &[m, s, a, (":path", "/a%00")], Status(400)),
        ("H13: no method", &[s, a, p], Reset(PROTOCOL_ERROR)),
        ("H13: unknown", &[(":method", "FOO"), s, a, p], Status(405)),
        ("H13: lower case", &[(":method", "get"), s, a, p], Status(405)),
        ("H13: a tunnel", &[(":method", "CONNECT"), a], Status(405)),
        ("H13: another scheme", &[m, (":scheme", "ftp"), a, p], Status(400)),
        ("H14: an underscore", &[m, s, a, p, ("x_role", "admin")], Status(400)),
        ("H15: of one hop", &[m, s, a, p, ("connection", "x")], Reset(PROTOCOL_ERROR)),
        ("H17: an upgrade", &[m, s, a, p, ("upgrade", "h2c")], Reset(PROTOCOL_ERROR)),
        ("H2: framing", &[m, s, a, p, ("transfer-encoding", "chunked")], Reset(PROTOCOL_ERROR)),
        ("te", &[m, s, a, p, ("te", "gzip")], Reset(PROTOCOL_ERROR)),
        ("upper case", &[m, s, a, p, ("X-A", "b")], GoAway(PROTOCOL_ERROR)),
        ("a line break", &[m, s, a, p, ("x", "a\r\nhost: evil")], GoAway(PROTOCOL_ERROR)),
        ("unknown pseudo-field", &[m, s, a, p, (":x", "a")], GoAway(PROTOCOL_ERROR)),
        ("pseudo-fields last", &[m, s, a, ("x", "a"), p], Reset(PROTOCOL_ERROR)),
        ("H5: no number", &[m, s, a, p, ("content-length", "+5")], Reset(PROTOCOL_ERROR)),
        ("H5: other than it is", &[m, s, a, p, ("content-length", "5")], Reset(PROTOCOL_ERROR)),
        ("H19: of 70 kB", &[m, s, a, p, ("x", &long)], Status(431)),
    ];
    let (world, _) = counted().await;
    let mut others = Vec::new();
    for (why, fields, expected) in cases {
        for (mut stream, way) in ways(&world).await {
            let block = block(fields);
            let mut parts = block.chunks(16_000);
            let first = parts.next().unwrap_or_default();
            let rest: Vec<&[u8]> = parts.collect();
            let whole = if rest.is_empty() { END_HEADERS } else { 0 };
            let mut octets = [preface(), frame(HEADERS, END_STREAM | whole, 1, first)].concat();
            for (n, part) in rest.iter().enumerate() {
                let last = if n + 1 == rest.len() { END_HEADERS } else { 0 };
                octets.extend(frame(CONTINUATION, last, 1, part));
            }
            stream.write_all(&octets).await.expect("open");
            let got = answer(&mut stream, 1).await;
            if got != *expected {
                others.push(format!("{why}, {way}: {got:?}, not {expected:?}"));
            }
        }
    }
    assert!(others.is_empty(), "{others:#?}");
    still_serves(&world, "all heads").await;
}

/// What no connection survives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_the_protocol_ends() {
    let window = |step: u32| step.to_be_bytes();
    let cases: [(&str, Vec<u8>, Outcome); 9] = [
        ("DATA on no stream", frame(DATA, 0, 0, b"x"), GoAway(PROTOCOL_ERROR)),
        ("an even stream", request(2, &GOOD), GoAway(PROTOCOL_ERROR)),
        ("an idle stream reset", frame(RST_STREAM, 0, 9, &[0; 4]), GoAway(PROTOCOL_ERROR)),
        ("a frame of 1 MiB", frame(DATA, 0, 1, &[0; 1 << 20]), GoAway(FRAME_SIZE_ERROR)),
        ("half a PING", frame(PING, 0, 0, &[0; 4]), GoAway(PROTOCOL_ERROR)),
        ("an end without a beginning", frame(CONTINUATION, 0, 1, b""), GoAway(PROTOCOL_ERROR)),
        (
            "H24: a window of 2^31",
            frame(WINDOW_UPDATE, 0, 0, &window(0x7fff_ffff)),
            GoAway(FLOW_CONTROL_ERROR),
        ),
        ("a step of none", frame(WINDOW_UPDATE, 0, 0, &window(0)), GoAway(PROTOCOL_ERROR)),
        (
            "another frame among a head's",
            [frame(HEADERS, 0, 1, &block(&GOOD)), frame(PING, 0, 0, &[0; 8])].concat(),
            GoAway(PROTOCOL_ERROR),
        ),
    ];
    let (world, seen) = counted().await;
    let mut others = Vec::new();
    for (why, octets, expected) in cases {
        for (mut stream, way) in ways(&world).await {
            // It may be refused before all of it is sent.
            let _ = stream.write_all(&[preface(), octets.clone()].concat()).await;
            let got = answer(&mut stream, 1).await;
            if got != expected {
                others.push(format!("{why}, {way}: {got:?}, not {expected:?}"));
            }
        }
    }
    assert!(others.is_empty(), "{others:#?}");
    assert_eq!(seen.load(Ordering::SeqCst), 0, "nothing reached the application");
    still_serves(&world, "broken protocols").await;
}

/// A flood, and what ends it.
struct Flood {
    why: &'static str,
    first: Vec<u8>,
    octets: fn(u32) -> Vec<u8>,
    /// How many repetitions end it for certain.
    most: u32,
    ends: u32,
}

fn stream_of(n: u32) -> u32 {
    2 * n + 1
}

/// H22, H23: floods that cost more than they are worth, ended within so many frames.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_ends_its_connection_and_nobody_elses() {
    let opened = || frame(HEADERS, END_HEADERS, 1, &block(&hanging()));
    let floods = [
        Flood {
            why: "H22: rapid reset",
            first: preface(),
            octets: |n| {
                let reset = frame(RST_STREAM, 0, stream_of(n), &8_u32.to_be_bytes());
                [request(stream_of(n), &hanging()), reset].concat()
            },
            most: 20_000,
            ends: ENHANCE_YOUR_CALM,
        },
        Flood {
            why: "H22: resets that we are made to send",
            first: preface(),
            octets: |n| {
                let step = frame(WINDOW_UPDATE, 0, stream_of(n), &0x7fff_ffff_u32.to_be_bytes());
                [request(stream_of(n), &hanging()), step].concat()
            },
            most: 20_000,
            ends: ENHANCE_YOUR_CALM,
        },
        Flood {
            why: "H22: heads that are errors",
            first: preface(),
            octets: |n| request(stream_of(n), &GOOD[1..]),
            most: 20_000,
            ends: ENHANCE_YOUR_CALM,
        },
        Flood {
            why: "H23: a head without end",
            first: [preface(), frame(HEADERS, 0, 1, &block(&GOOD))].concat(),
            octets: |_| frame(CONTINUATION, 0, 1, &block(&[("x", &"a".repeat(16_000))])),
            most: 2_000,
            ends: ENHANCE_YOUR_CALM,
        },
        Flood {
            why: "H23: a head of empty pieces",
            first: [preface(), frame(HEADERS, 0, 1, &block(&GOOD))].concat(),
            octets: |_| frame(CONTINUATION, 0, 1, b""),
            most: 2_000,
            ends: ENHANCE_YOUR_CALM,
        },
        Flood {
            why: "H24: PING",
            first: preface(),
            octets: |n| frame(PING, 0, 0, &[n.to_be_bytes(), [0; 4]].concat()),
            most: 100_000,
            ends: ENHANCE_YOUR_CALM,
        },
        Flood {
            why: "H24: SETTINGS",
            first: preface(),
            octets: |_| frame(SETTINGS, 0, 0, &[0, 99, 0, 0, 0, 0]),
            most: 100_000,
            ends: ENHANCE_YOUR_CALM,
        },
        Flood {
            why: "H24: PRIORITY",
            first: preface(),
            octets: |n| frame(PRIORITY, 0, stream_of(n), &[0, 0, 0, 0, 9]),
            most: 100_000,
            ends: ENHANCE_YOUR_CALM,
        },
        Flood {
            why: "H24: WINDOW_UPDATE",
            first: preface(),
            octets: |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
            most: 100_000,
            ends: ENHANCE_YOUR_CALM,
        },
        Flood {
            why: "H24: DATA without any",
            first: [preface(), opened()].concat(),
            octets: |_| frame(DATA, 0, 1, b""),
            most: 100_000,
            ends: ENHANCE_YOUR_CALM,
        },
    ];
    let (world, seen) = counted().await;
    for Flood { why, first, octets, most, ends } in floods {
        for (stream, way) in ways(&world).await {
            let frames = flood(stream, &first, most, octets).await;
            // What still comes in when a socket is closed takes its last words with it.
            let last = frames.iter().find(|it| it.kind == GOAWAY).map(Frame::code);
            assert!(last.is_none_or(|code| code == ends), "{why}, {way}: {last:?}");
        }
        still_serves(&world, why).await;
    }
    let seen = seen.load(Ordering::SeqCst);
    assert!(seen < 2_000, "{seen} requests of floods reached the application");
}

fn hanging() -> [(&'static str, &'static str); 4] {
    [(":method", "GET"), (":scheme", "http"), (":authority", "db"), (":path", "/hang")]
}

/// H24: frames that cost an answer or nothing, and fewer of them than end a connection, are answered
/// one by one, and no more of them are kept than are read: the connection goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_that_costs_nothing_is_answered_in_its_turn() {
    const COUNT: u32 = 8_000;
    type Made = fn(u32) -> Vec<u8>;
    let floods: [(&str, Made, Option<u8>); 4] = [
        ("PING", |n| frame(PING, 0, 0, &[n.to_be_bytes(), [0; 4]].concat()), Some(PING)),
        ("SETTINGS", |_| frame(SETTINGS, 0, 0, &[0, 99, 0, 0, 0, 0]), Some(SETTINGS)),
        ("PRIORITY", |n| frame(PRIORITY, 0, stream_of(n), &[0, 0, 0, 0, 9]), None),
        ("WINDOW_UPDATE", |_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()), None),
    ];
    let (world, _) = counted().await;
    for (why, octets, answered_by) in floods {
        for (stream, way) in ways(&world).await {
            let good = |n| if n == COUNT { request(1_000_001, &GOOD) } else { octets(n) };
            let (mut reader, mut writer) = tokio::io::split(stream);
            let writing = async {
                writer.write_all(&preface()).await.expect("open");
                for from in (0..=COUNT).step_by(100) {
                    let batch: Vec<u8> =
                        (from..(from + 100).min(COUNT + 1)).flat_map(good).collect();
                    writer.write_all(&batch).await.expect("open");
                }
                writer.flush().await.expect("open");
            };
            let reading = async {
                let mut answers = 0;
                loop {
                    let frame = next(&mut reader).await.expect("the connection lives");
                    match frame.kind {
                        HEADERS => break (frame.status(), answers),
                        kind if Some(kind) == answered_by && frame.flags & ACK != 0 => answers += 1,
                        _ => {}
                    }
                }
            };
            let ((), (status, answers)) = tokio::join!(writing, reading);
            assert_eq!(status, 200, "{why}, {way}");
            // Of settings the first frame is answered too.
            let expected = match answered_by {
                Some(SETTINGS) => COUNT + 1,
                Some(_) => COUNT,
                None => 0,
            };
            assert_eq!(answers, expected, "{why}, {way}");
        }
    }
}

/// H25: no more streams at once than there may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_above_the_limit_is_refused_and_those_below_it_live() {
    let (world, _) = counted().await;
    for (mut stream, way) in ways(&world).await {
        let mut octets = preface();
        octets.extend((0..101).flat_map(|n| request(stream_of(n), &hanging())));
        stream.write_all(&octets).await.expect("open");
        let refused = stream_of(100);
        assert_eq!(answer(&mut stream, refused).await, Reset(REFUSED_STREAM), "{way}");
        // One that ends makes room for one.
        let cancel = frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
        stream.write_all(&[cancel, request(stream_of(101), &GOOD)].concat()).await.expect("open");
        assert_eq!(answer(&mut stream, stream_of(101)).await, Status(200), "{way}");
    }
}

/// H23: a head that is small on the wire and large once it is unpacked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bomb_of_fields_ends_its_connection() {
    let (world, seen) = counted().await;
    for (mut stream, way) in ways(&world).await {
        let mut head = block(&GOOD);
        // One field of 4,000 octets goes into the table, and is named 10,000 times: 40 MB.
        head.push(0x40);
        text("x", &mut head);
        text(&"a".repeat(4_000), &mut head);
        head.extend([0xbe; 10_000]);
        let octets = [preface(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &head)].concat();
        stream.write_all(&octets).await.expect("open");
        assert_eq!(answer(&mut stream, 1).await, GoAway(ENHANCE_YOUR_CALM), "{way}");
    }
    assert_eq!(seen.load(Ordering::SeqCst), 0);
    still_serves(&world, "a bomb").await;
}

/// H24: a reader that opens no window keeps its own answer waiting, and nobody else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_without_a_window_holds_up_itself_alone() {
    let (world, _) = counted().await;
    for (mut stream, way) in ways(&world).await {
        // SETTINGS_INITIAL_WINDOW_SIZE of none.
        let mut octets = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        octets.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
        octets.extend((0..50).flat_map(|n| request(stream_of(n), &GOOD)));
        stream.write_all(&octets).await.expect("open");
        for n in 0..50 {
            assert_eq!(answer_of_any(&mut stream).await, Status(200), "{way}: {n}");
        }
        // A window for the last: its body comes, with none of the others read.
        let last = stream_of(49);
        let step = frame(WINDOW_UPDATE, 0, last, &65_535_u32.to_be_bytes());
        stream.write_all(&step).await.expect("open");
        loop {
            let frame = next(&mut stream).await.expect("the connection lives");
            if frame.kind == DATA && !frame.payload.is_empty() {
                assert_eq!(frame.stream, last, "{way}");
                break;
            }
        }
        // A window that is too large ends that stream alone.
        let step = frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes());
        stream.write_all(&[step.clone(), step].concat()).await.expect("open");
        assert_eq!(reset_of(&mut stream, 1).await, Reset(FLOW_CONTROL_ERROR), "{way}");
    }
    still_serves(&world, "stalls").await;
}

async fn answer_of_any(from: &mut Stream) -> Outcome {
    loop {
        let Some(frame) = next(from).await else { return Outcome::Closed };
        match frame.kind {
            GOAWAY => return GoAway(frame.code()),
            HEADERS => return Status(frame.status()),
            _ => {}
        }
    }
}

async fn reset_of(from: &mut Stream, stream: u32) -> Outcome {
    loop {
        let Some(frame) = next(from).await else { return Outcome::Closed };
        match frame.kind {
            GOAWAY if frame.code() != 0 => return GoAway(frame.code()),
            RST_STREAM if frame.stream == stream => return Reset(frame.code()),
            _ => {}
        }
    }
}

/// What follows a stream's end is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_after_the_end_is_refused() {
    let (world, _) = counted().await;
    for (mut stream, way) in ways(&world).await {
        let octets = [preface(), request(1, &hanging()), frame(DATA, 0, 1, b"x")].concat();
        stream.write_all(&octets).await.expect("open");
        assert_eq!(reset_of(&mut stream, 1).await, GoAway(PROTOCOL_ERROR), "{way}");
    }
}

/// A proxy's own answer to HEAD is a head alone, in one frame (RFC 9110 §9.3.2).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_head_has_no_body() {
    let (world, _) = counted().await;
    let [_, scheme, authority, path] = GOOD;
    for (mut stream, way) in ways(&world).await {
        let refused = [(":method", "HEAD"), scheme, authority, (":path", "/a%2fb")];
        let good = [(":method", "GET"), scheme, authority, path];
        stream.write_all(&[preface(), request(1, &refused)].concat()).await.expect("open");
        loop {
            let frame = next(&mut stream).await.expect("the connection lives");
            if frame.kind == HEADERS {
                assert_eq!((frame.stream, frame.status()), (1, 400), "{way}");
                assert_eq!(frame.flags & END_STREAM, END_STREAM, "{way}: more is to come");
                break;
            }
        }
        stream.write_all(&request(3, &good)).await.expect("open");
        loop {
            let frame = next(&mut stream).await.expect("the connection lives");
            assert!(frame.kind != DATA || frame.stream == 3, "{way}: {frame:?}");
            if frame.stream == 3 && frame.flags & END_STREAM != 0 {
                break;
            }
        }
    }
}
