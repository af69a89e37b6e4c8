//! Routers, splitters and resolvers, from the entries that operators write to what instances see.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hawser_core::catalog::Protocol;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{World, call, eventually, get, get_with, listener, name, serve};

const HTTP: (&str, &str) = ("proxy-defaults/global", r#"{"Config":{"protocol":"http"}}"#);
const SUBSETS: (&str, &str) = (
    "service-resolver/db",
    r#"{"DefaultSubset":"v1","Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},
        "v2":{"Filter":"Service.Meta.version == v2"}}}"#,
);

/// Two instances of `db` that say who they are: `a` is of subset `v1`, and `b` of `v2`.
async fn two(entries: &[(&'static str, &'static str)]) -> World {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.http_echo("b").await;
    world.entries = [&[HTTP, SUBSETS], entries].concat();
    world.start().await;
    world
}

fn text(answer: Response<Bytes>) -> String {
    assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
    String::from_utf8(answer.into_body().to_vec()).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_routed_by_path_header_query_and_method() {
    let world = two(&[(
        "service-router/db",
        r#"{"Routes":[
            {"Match":{"HTTP":{"PathExact":"/exact"}},"Destination":{"ServiceSubset":"v2"}},
            {"Match":{"HTTP":{"PathPrefix":"/prefix/"}},"Destination":{"ServiceSubset":"v2"}},
            {"Match":{"HTTP":{"PathRegex":"/r[0-9]+"}},"Destination":{"ServiceSubset":"v2"}},
            {"Match":{"HTTP":{"Header":[{"Name":"x-canary","Exact":"yes"}]}},
             "Destination":{"ServiceSubset":"v2"}},
            {"Match":{"HTTP":{"QueryParam":[{"Name":"v","Exact":"2"}]}},
             "Destination":{"ServiceSubset":"v2"}},
            {"Match":{"HTTP":{"Methods":["DELETE"]}},"Destination":{"ServiceSubset":"v2"}}]}"#,
    )])
    .await;
    type Field = Option<(&'static str, &'static str)>;
    let cases: &[(&str, &str, Field, &str)] = &[
        ("GET", "/", None, "a"),
        ("GET", "/exact", None, "b"),
        ("GET", "/exactly", None, "a"),
        ("GET", "/prefix/x", None, "b"),
        ("GET", "/prefix", None, "a"),
        ("GET", "/r17", None, "b"),
        ("GET", "/r17x", None, "a"),
        ("GET", "/", Some(("x-canary", "yes")), "b"),
        ("GET", "/", Some(("x-canary", "no")), "a"),
        ("GET", "/?u=1&v=2", None, "b"),
        ("GET", "/?v=22", None, "a"),
        ("DELETE", "/", None, "b"),
    ];
    for (method, target, field, expected) in cases {
        let mut request = Request::builder().method(*method).uri(*target).header("host", "db");
        if let Some((name, value)) = field {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::new())).expect("good");
        let answer = text(call(world.outbound, request).await.expect("an answer"));
        assert!(answer.starts_with(&format!("{expected} ")), "{method} {target}: {answer}");
    }
    for (route, expected) in
        [("/exact", 1.0), ("/prefix/*", 1.0), ("~/r[0-9]+", 1.0), ("#3", 1.0), ("default", 6.0)]
    {
        eventually(route, || {
            let labels = [("route", route)];
            world.client_count("hawser_proxy_requests_total", &labels) == expected
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_are_rewritten_and_headers_changed() {
    let world = two(&[
        (
            "service-router/db",
            r#"{"Routes":[{"Match":{"HTTP":{"PathPrefix":"/api/"}},"Destination":{"PrefixRewrite":"/v1/",
                "RequestHeaders":{"Add":{"x-added":"1"},"Set":{"x-set":"new"},"Remove":["x-gone"]},
                "ResponseHeaders":{"Set":{"x-answered":"route"},"Remove":["date"]}}}]}"#,
        ),
        (
            "service-splitter/db",
            r#"{"Splits":[{"Weight":100,"RequestHeaders":{"Set":{"x-split":"here"}},
                "ResponseHeaders":{"Set":{"x-split-answer":"there"}}}]}"#,
        ),
    ])
    .await;
    let fields = [("x-set", "old"), ("x-gone", "1"), ("x-added", "0")];
    let answer = get_with(world.outbound, "/api/x?q=1", &fields).await;
    assert_eq!(answer.headers()["x-answered"], "route");
    assert_eq!(answer.headers()["x-split-answer"], "there");
    let seen = text(answer);
    assert!(seen.starts_with("a GET /v1/x?q=1 "), "{seen}");
    for expected in [r#""x-set": "new""#, r#""x-split": "here""#, r#""x-added": "0""#] {
        assert!(seen.contains(expected), "{expected}: {seen}");
    }
    assert!(seen.contains(r#""x-added": "1""#), "{seen}");
    assert!(!seen.contains("x-gone"), "{seen}");
    let other = get(world.outbound, "/other").await;
    assert!(other.headers().get("x-answered").is_none(), "another route");
}

/// How many of `requests` each instance got, each by a connection of its own.
async fn counts(world: &World, requests: usize, fields: &[(&str, &str)]) -> [usize; 2] {
    let mut counts = [0; 2];
    for _ in 0..requests {
        let answer = text(get_with(world.outbound, "/", fields).await);
        counts[usize::from(answer.starts_with("b "))] += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn splits_are_exact_and_follow_their_weights() {
    let mut world = two(&[(
        "service-splitter/db",
        r#"{"Splits":[{"Weight":90,"ServiceSubset":"v1"},{"Weight":10,"ServiceSubset":"v2"}]}"#,
    )])
    .await;
    assert_eq!(counts(&world, 50, &[]).await, [45, 5]);
    world.write(&[
        HTTP,
        SUBSETS,
        ("service-splitter/db", r#"{"Splits":[{"Weight":100,"ServiceSubset":"v2"}]}"#),
    ]);
    // The view takes a moment.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while counts(&world, 10, &[]).await != [0, 10] {
        assert!(tokio::time::Instant::now() < deadline, "the new weights count");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_the_same_cookie_stay_together() {
    let world = two(&[(
        "service-splitter/db",
        r#"{"Splits":[{"Weight":50,"ServiceSubset":"v1"},{"Weight":50,"ServiceSubset":"v2"}],
            "Sticky":{"Field":"cookie","FieldValue":"sid"}}"#,
    )])
    .await;
    let mut seen = [0; 2];
    for session in 0..16 {
        let cookie = format!("theme=dark; sid=session-{session}");
        let counts = counts(&world, 5, &[("cookie", &cookie)]).await;
        assert!(counts.contains(&5), "session {session} was split: {counts:?}");
        seen[usize::from(counts[1] == 5)] += 1;
    }
    assert!(!seen.contains(&0), "all sessions went to one instance");
    assert_eq!(counts(&world, 10, &[]).await, [5, 5], "those without a cookie go round");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_leads_to_another_service_and_subset() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.http_echo("b").await;
    world.destination.service = name("front");
    world.entries = vec![
        HTTP,
        SUBSETS,
        ("service-resolver/front", r#"{"Redirect":{"Service":"db","ServiceSubset":"v2"}}"#),
    ];
    world.start().await;
    assert_eq!(counts(&world, 4, &[]).await, [0, 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_go_to_the_subset_that_is_the_default() {
    let mut world = World::new(Protocol::Tcp);
    for tag in [b'a', b'b'] {
        let (listener, address) = listener().await;
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.write_all(&[tag]).await;
            }
        });
        world.instance(address);
    }
    world.entries = vec![(
        "service-resolver/db",
        r#"{"DefaultSubset":"v2","Subsets":{"v2":{"Filter":"Service.Meta.version == v2"}}}"#,
    )];
    world.start().await;
    for _ in 0..4 {
        let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
        assert_eq!(stream.read_u8().await.expect("a tag"), b'b');
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subset_without_instances_fails_over_to_the_one_that_is_named() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.entries = vec![
        HTTP,
        (
            "service-resolver/db",
            r#"{"DefaultSubset":"v9","Subsets":{"v9":{"Filter":"Service.Meta.version == v9"},
                "v1":{"Filter":"Service.Meta.version == v1"}},
                "Failover":{"v9":{"Targets":[{"ServiceSubset":"v1"}]}}}"#,
        ),
    ];
    world.start().await;
    assert!(text(get(world.outbound, "/").await).starts_with("a "));
}

/// An application that answers with 503 so many times, and then well; and how often it was asked.
async fn failing(times: usize) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let address = serve(move |_| {
        let count = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut answer = Response::new(Full::new(Bytes::from_static(b"done")).boxed());
            if count < times {
                *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            answer
        }
    })
    .await;
    (address, asked)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listed_statuses_are_tried_again_whatever_the_method() {
    let routes: &'static str = r#"{"Routes":[
        {"Match":{"HTTP":{"PathExact":"/listed"}},
         "Destination":{"NumRetries":2,"RetryOnStatusCodes":[503]}},
        {"Match":{"HTTP":{"PathExact":"/once"}},
         "Destination":{"NumRetries":1,"RetryOn":["5xx"]}},
        {"Match":{"HTTP":{"PathExact":"/other"}},
         "Destination":{"NumRetries":2,"RetryOnStatusCodes":[502]}}]}"#;
    let cases = [
        // path, failures before, status, asked, why
        ("/listed", 2, StatusCode::OK, 3, "both retries were needed"),
        ("/listed", 5, StatusCode::SERVICE_UNAVAILABLE, 3, "no more than two"),
        ("/once", 5, StatusCode::SERVICE_UNAVAILABLE, 2, "no more than one"),
        ("/other", 1, StatusCode::SERVICE_UNAVAILABLE, 1, "another status is listed"),
        ("/plain", 1, StatusCode::SERVICE_UNAVAILABLE, 1, "nothing is listed"),
    ];
    for (path, failures, status, expected, why) in cases {
        let mut world = World::new(Protocol::Http);
        let (address, asked) = failing(failures).await;
        world.instance(address);
        world.entries = vec![HTTP, ("service-router/db", routes)];
        world.start().await;
        let request = Request::post(path).header("host", "db").body(Full::new("x".into()));
        let answer = call(world.outbound, request.expect("good")).await.expect("an answer");
        assert_eq!(answer.status(), status, "{path}: {why}");
        assert_eq!(asked.load(Ordering::SeqCst), expected, "{path}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_routes_retries_outrank_its_services() {
    let defaults: &'static str =
        r#"{"Protocol":"http","Retries":{"NumRetries":3,"RetryOnStatusCodes":[503]}}"#;
    let routes: &'static str = r#"{"Routes":[
        {"Match":{"HTTP":{"PathExact":"/fewer"}},"Destination":{"NumRetries":1}},
        {"Match":{"HTTP":{"PathExact":"/other"}},
         "Destination":{"RetryOnStatusCodes":[502]}}]}"#;
    let cases = [
        // path, asked, why
        ("/plain", 4, "the route says nothing"),
        ("/fewer", 2, "the route's number, the service's statuses"),
        ("/other", 1, "the route's statuses"),
    ];
    for (path, expected, why) in cases {
        let mut world = World::new(Protocol::Http);
        let (address, asked) = failing(9).await;
        world.instance(address);
        world.entries = vec![("service-defaults/db", defaults), ("service-router/db", routes)];
        world.start().await;
        let request = Request::post(path).header("host", "db").body(Full::new("x".into()));
        let answer = call(world.outbound, request.expect("good")).await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}: {why}");
        assert_eq!(asked.load(Ordering::SeqCst), expected, "{path}: {why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_that_takes_too_long_is_given_up_for_another() {
    let mut world = World::new(Protocol::Http);
    // A loaded machine makes tries slow that are not: they must not use up what others need.
    world.limits.retry_budget_floor = 1_000;
    let stuck = serve(|_| async {
        std::future::pending::<()>().await;
        Response::new(Full::new(Bytes::new()).boxed())
    })
    .await;
    world.instance(stuck);
    world.http_echo("b").await;
    world.entries = vec![
        HTTP,
        (
            "service-router/db",
            r#"{"Routes":[{"Destination":{"PerTryTimeout":"50ms","RequestTimeout":"30s"}}]}"#,
        ),
    ];
    world.start().await;
    for _ in 0..10 {
        let answer = tokio::time::timeout(Duration::from_secs(10), get(world.outbound, "/"));
        assert!(text(answer.await.expect("before the request's timeout")).starts_with("b "));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_falls_silent_is_broken_off() {
    let mut world = World::new(Protocol::Http);
    let silent = serve(|_| async {
        let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"begun")))]);
        let rest = futures_util::stream::pending();
        let body = StreamBody::new(futures_util::StreamExt::chain(first, rest));
        Response::new(http_body_util::combinators::BoxBody::new(body))
    })
    .await;
    world.instance(silent);
    world.entries = vec![
        HTTP,
        (
            "service-router/db",
            r#"{"Routes":[{"Destination":{"IdleTimeout":"100ms","RequestTimeout":"1h"}}]}"#,
        ),
    ];
    world.start().await;
    let request = Request::get("/").header("host", "db").body(Full::new(Bytes::new()));
    let ended = call(world.outbound, request.expect("good"));
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await.expect("before an hour");
    assert!(ended.is_err(), "{ended:?}");
    eventually("it is counted as what it was", || {
        world.client_edges().iter().any(|(verdict, _)| verdict == "request_timeout")
    })
    .await;
}
