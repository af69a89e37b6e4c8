//! Requests whose length nobody says beforehand: gRPC calls and chunked bodies.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use hawser_core::catalog::Protocol;
use hawser_core::policy::Policies;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::world::{AnyBody, World, eventually, get, listener, send_raw, serve};

/// What a gRPC application does with a call, once it has all of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mood {
    /// Answers with what it was sent, trailers and all.
    Echoes,
    /// Answers with this status, and nothing else.
    Fails(&'static str),
    /// The same, and asks for no other try.
    FailsForGood(&'static str),
    /// Answers with a message, and this status at its end.
    FailsLate(&'static str),
    /// Resets the call.
    Resets,
    /// Never answers.
    Hangs,
}

fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_str(value).expect("a value"))
    };
    pairs.iter().map(pair).collect()
}

fn body(frames: Vec<Frame<Bytes>>) -> AnyBody {
    StreamBody::new(stream::iter(frames.into_iter().map(Ok::<_, Infallible>))).boxed()
}

async fn answer(mood: Mood, request: Request<Incoming>) -> Result<Response<AnyBody>, Infallible> {
    let sent = request.into_body().collect().await;
    let response = Response::builder().header("content-type", "application/grpc");
    let (head, frames): (&[(&'static str, &str)], _) = match mood {
        Mood::Hangs => std::future::pending().await,
        Mood::Fails(status) => (&[("grpc-status", status)], Vec::new()),
        Mood::FailsForGood(status) => {
            (&[("grpc-status", status), ("grpc-retry-pushback-ms", "-1")], Vec::new())
        }
        Mood::FailsLate(status) => {
            let trailers = Frame::trailers(fields(&[("grpc-status", status)]));
            (&[], vec![Frame::data(Bytes::from_static(b"late")), trailers])
        }
        Mood::Echoes | Mood::Resets => {
            let Ok(sent) = sent else { std::future::pending().await };
            let mut trailers = sent.trailers().cloned().unwrap_or_default();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            (&[], vec![Frame::data(sent.to_bytes()), Frame::trailers(trailers)])
        }
    };
    let mut response = response.body(body(frames)).expect("good");
    response.headers_mut().extend(fields(head));
    Ok(response)
}

/// A gRPC application, and an instance of `db` before it. Answers how many calls reached it.
async fn application(world: &mut World, mood: Mood) -> Arc<AtomicUsize> {
    let (listener, address) = listener().await;
    let seen = Arc::<AtomicUsize>::default();
    let counted = seen.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let counted = counted.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                counted.fetch_add(1, Ordering::SeqCst);
                async move {
                    match mood {
                        // An error of the service resets the stream.
                        Mood::Resets => {
                            let sent = request.into_body().collect().await;
                            Err(sent.err().map_or("reset", |_| "broken"))
                        }
                        _ => Ok(answer(mood, request).await.unwrap_or_else(|never| match never {})),
                    }
                }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    world.instance(address);
    seen
}

async fn connect(address: SocketAddr) -> SendRequest<AnyBody> {
    let stream = TcpStream::connect(address).await.expect("listening");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    sender
}

fn call(headers: &[(&'static str, &str)], body: AnyBody) -> Request<AnyBody> {
    let mut request = Request::post("http://db.example/echo.Echo/Say")
        .header("content-type", "application/grpc")
        .body(body)
        .expect("good");
    request.headers_mut().extend(fields(headers));
    request
}

/// A message in two pieces and, as HTTP/2 lets any message have them, trailers.
fn message() -> AnyBody {
    let trailers = Frame::trailers(fields(&[("x-checksum", "77")]));
    body(vec![Frame::data("mess".into()), Frame::data("age".into()), trailers])
}

/// The answer's status, message and trailers; the head's fields where there are no others.
async fn read(response: Response<Incoming>) -> (String, Bytes, HeaderMap) {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("whole");
    let fields = body.trailers().cloned().unwrap_or(parts.headers);
    let status = fields.get("grpc-status").map_or("", |it| it.to_str().expect("ASCII")).to_owned();
    (status, body.to_bytes(), fields)
}

fn retries(words: &str) -> Policies {
    let json = format!(r#"{{"retries":{{"RetryOn":[{words}]}}}}"#);
    serde_json::from_str(&json).expect("good")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_tried_again_with_all_of_its_message() {
    let cases = [
        (Mood::Fails("14"), r#""unavailable""#),
        (Mood::Resets, r#""reset""#),
        (Mood::Hangs, r#""reset""#),
    ];
    for (mood, words) in cases {
        let mut world = World::new(Protocol::Grpc);
        world.policies = retries(words);
        world.limits.per_try = Duration::from_millis(300);
        world.limits.retry_budget_floor = 1_000;
        let bad = application(&mut world, mood).await;
        application(&mut world, Mood::Echoes).await;
        world.start().await;
        let mut sender = connect(world.outbound).await;
        for n in 0..200 {
            let response = sender.send_request(call(&[], message())).await.expect("an answer");
            let (status, sent, trailers) = read(response).await;
            assert_eq!((&*status, &sent[..]), ("0", &b"message"[..]), "{mood:?}: call {n}");
            assert_eq!(trailers["x-checksum"], "77", "{mood:?}: what followed it follows it");
            if bad.load(Ordering::SeqCst) >= 2 {
                break;
            }
        }
        assert!(bad.load(Ordering::SeqCst) > 0, "{mood:?}: the bad one was never asked");
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_hedged_once_its_message_has_come() {
    let mut world = World::new(Protocol::Grpc);
    world.policies = serde_json::from_str(r#"{"retries":{"HedgeAfter":"100ms"}}"#).expect("good");
    world.limits.retry_budget_floor = 1_000;
    let bad = application(&mut world, Mood::Hangs).await;
    application(&mut world, Mood::Echoes).await;
    world.start().await;
    let mut sender = connect(world.outbound).await;
    for n in 0..50 {
        let key = [("idempotency-key", "1")];
        let response = sender.send_request(call(&key, message())).await.expect("an answer");
        let (status, sent, _) = read(response).await;
        assert_eq!((&*status, &sent[..]), ("0", &b"message"[..]), "call {n}");
        if bad.load(Ordering::SeqCst) >= 1 {
            break;
        }
    }
    assert!(bad.load(Ordering::SeqCst) > 0, "the one that hangs was never asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stream_is_not_sent_twice() {
    let mut world = World::new(Protocol::Grpc);
    world.policies = retries(r#""unavailable""#);
    let seen = application(&mut world, Mood::Fails("14")).await;
    let other = application(&mut world, Mood::Fails("14")).await;
    world.start().await;
    let mut sender = connect(world.outbound).await;
    let pieces = (0..5).map(|_| Frame::data(Bytes::from(vec![7; 16 * 1024])));
    let request = call(&[], body(pieces.collect()));
    let (status, ..) = read(sender.send_request(request).await.expect("an answer")).await;
    assert_eq!(status, "14");
    let seen = seen.load(Ordering::SeqCst) + other.load(Ordering::SeqCst);
    assert_eq!(seen, 1, "80 KiB are more than is kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_asks_for_no_other_try_gets_none() {
    let mut world = World::new(Protocol::Grpc);
    world.policies = retries(r#""unavailable""#);
    let seen = application(&mut world, Mood::FailsForGood("14")).await;
    let other = application(&mut world, Mood::FailsForGood("14")).await;
    world.start().await;
    let mut sender = connect(world.outbound).await;
    let response = sender.send_request(call(&[], message())).await.expect("an answer");
    assert_eq!(read(response).await.0, "14");
    assert_eq!(seen.load(Ordering::SeqCst) + other.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_ejected_for_what_its_answers_say_at_their_end() {
    let mut world = World::new(Protocol::Grpc);
    world.policies =
        serde_json::from_str(r#"{"load_balancer":{"Policy":"round_robin"}}"#).expect("good");
    let bad = application(&mut world, Mood::FailsLate("14")).await;
    application(&mut world, Mood::Echoes).await;
    application(&mut world, Mood::Echoes).await;
    world.start().await;
    let mut sender = connect(world.outbound).await;
    for _ in 0..60 {
        let response = sender.send_request(call(&[], message())).await.expect("an answer");
        read(response).await;
    }
    eventually("an ejection is counted", || {
        world.client_metric("hawser_proxy_ejections_total") > 0.0
    })
    .await;
    assert!(bad.load(Ordering::SeqCst) < 20, "it does not take its turn in all of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_for_longer_than_a_request_may() {
    let mut world = World::new(Protocol::Grpc);
    world.request_timeout = Duration::from_secs(3);
    application(&mut world, Mood::Echoes).await;
    world.start().await;
    let mut sender = connect(world.outbound).await;
    let (pieces, streamed) = mpsc::channel::<Frame<Bytes>>(4);
    let streamed = stream::unfold(streamed, |mut streamed| async move {
        Some((Ok::<_, Infallible>(streamed.recv().await?), streamed))
    });
    let answering = sender.send_request(call(&[], StreamBody::new(streamed).boxed()));
    let sending = async {
        for piece in ["one", "two", "three"] {
            pieces.send(Frame::data(piece.into())).await.expect("it is read");
            // Together longer than the timeout.
            tokio::time::sleep(Duration::from_millis(1_500)).await;
        }
        drop(pieces);
    };
    let (response, ()) = tokio::join!(answering, sending);
    let (status, sent, _) = read(response.expect("an answer")).await;
    assert_eq!((&*status, &sent[..]), ("0", &b"onetwothree"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_an_answer_ends_by_the_timeout_or_the_callers_own() {
    let mut world = World::new(Protocol::Grpc);
    world.request_timeout = Duration::from_millis(700);
    world.policies = serde_json::from_str(r#"{"retries":{"NumRetries":0}}"#).expect("good");
    application(&mut world, Mood::Hangs).await;
    world.start().await;
    let mut sender = connect(world.outbound).await;
    let endless = || StreamBody::new(stream::pending::<Result<_, Infallible>>()).boxed();
    type Case<'a> = (&'a [(&'static str, &'a str)], AnyBody, &'a str);
    let cases: [Case<'_>; 2] = [
        (&[], message(), "all of it was sent: the timeout counts from there"),
        (&[("grpc-timeout", "500m")], endless(), "the caller waits no longer"),
    ];
    for (headers, body, why) in cases {
        let response = sender.send_request(call(headers, body)).await.expect("an answer");
        assert_eq!(response.headers()["x-hawser-reason"], "request_timeout", "{why}");
        assert_eq!(read(response).await.0, "4", "{why}");
    }
}

/// Answers the first requests, `bad` of them, 503, and all others 200; each with what it was sent.
async fn fickle(world: &mut World, bad: usize) {
    let count = Arc::<AtomicUsize>::default();
    let address = serve(move |request: Request<Incoming>| {
        let is_bad = count.fetch_add(1, Ordering::SeqCst) < bad;
        async move {
            let sent = request.into_body().collect().await.expect("whole");
            let checksum = sent.trailers().and_then(|it| it.get("x-checksum").cloned());
            let mut response = Response::new(Full::new(sent.to_bytes()).boxed());
            response
                .headers_mut()
                .extend(checksum.map(|it| (HeaderName::from_static("x-got"), it)));
            if is_bad {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            response
        }
    })
    .await;
    world.instance(address);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunked_body_is_sent_again_with_its_trailers() {
    let mut world = World::new(Protocol::Http);
    fickle(&mut world, 1).await;
    fickle(&mut world, 0).await;
    world.start().await;
    let put = b"PUT / HTTP/1.1\r\nhost: db\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
        trailer: x-checksum\r\n\r\n4\r\nmess\r\n3\r\nage\r\n0\r\nx-checksum: 77\r\n\r\n";
    for n in 0..3 {
        let answer = send_raw(world.outbound, put).await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200"), "request {n}: {answer}");
        assert!(answer.contains("x-got: 77"), "request {n}: {answer}");
        assert!(answer.contains("content-length: 7"), "request {n}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_follow_a_body_of_known_length() {
    let mut world = World::new(Protocol::Http2);
    application(&mut world, Mood::Echoes).await;
    world.start().await;
    let mut sender = connect(world.outbound).await;
    let request = call(&[("content-length", "7")], message());
    let (_, sent, trailers) = read(sender.send_request(request).await.expect("an answer")).await;
    assert_eq!(
        (&sent[..], &trailers["x-checksum"]),
        (&b"message"[..], &HeaderValue::from_static("77"))
    );
}

/// With the budget used up, what came to nothing says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_back_by_the_budget_says_so() {
    let mut world = World::new(Protocol::Http);
    world.policies =
        serde_json::from_str(r#"{"retries":{"BudgetPercent":0,"BudgetMinPerSecond":0}}"#)
            .expect("good");
    let gate = world.http_gated().await;
    let tap = world.tap().await;
    world.start().await;
    let outbound = world.outbound;
    let asked = tokio::spawn(async move { get(outbound, "/").await });
    gate.arrived().await;
    tap.cut();
    let answer = asked.await.expect("no panic");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["x-hawser-reason"], "retry_budget");
}

async fn bounded(limits: &'static str) -> World {
    let mut world = World::new(Protocol::Http);
    fickle(&mut world, 0).await;
    world.entries = vec![("service-defaults/db", limits)];
    world.start().await;
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_larger_than_its_callee_takes_is_refused() {
    let world = bounded(r#"{"Protocol":"http","InboundLimits":{"MaxRequestBytes":10}}"#).await;
    let chunked = |second: &str| {
        let size = second.len();
        format!("transfer-encoding: chunked\r\n\r\n6\r\n012345\r\n{size}\r\n{second}\r\n0\r\n\r\n")
    };
    let cases = [
        // framing and body, status, why
        ("content-length: 10\r\n\r\n0123456789".to_owned(), "200", "as large as it may be"),
        ("content-length: 11\r\n\r\n0123456789a".to_owned(), "413", "its head says so"),
        (chunked("6789"), "200", "in chunks"),
        (chunked("6789ab"), "413", "larger, as it turns out"),
    ];
    for (rest, status, why) in cases {
        let request = format!("PUT / HTTP/1.1\r\nhost: db\r\nconnection: close\r\n{rest}");
        let answer = send_raw(world.outbound, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{why}: {answer}");
        let is_told = answer.contains("x-hawser-reason: request_too_large");
        assert_eq!(is_told, status == "413", "{why}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_stalls_is_given_up() {
    let world =
        bounded(r#"{"Protocol":"http","InboundLimits":{"RequestIdleTimeout":"300ms"}}"#).await;
    let request = "PUT / HTTP/1.1\r\nhost: db\r\ntransfer-encoding: chunked\r\n\r\n4\r\nmore\r\n";
    let answer = send_raw(world.outbound, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("x-hawser-reason: request_stalled"), "{answer}");
}
