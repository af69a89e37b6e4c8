//! Faults on purpose, copies of requests, and second tries beside the first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hawser_core::catalog::Protocol;
use hawser_core::policy::Policies;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};

use crate::world::{World, call, eventually, get, get_with, serve};

const HTTP: (&str, &str) = ("proxy-defaults/global", r#"{"Config":{"protocol":"http"}}"#);

async fn routed(router: &'static str) -> World {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.entries = vec![HTTP, ("service-router/db", router)];
    world.start().await;
    world
}

fn injected(world: &World, fault: &str) -> f64 {
    world.client_count("hawser_proxy_faults_injected_total", &[("fault", fault)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_aborts_delays_and_slows_what_it_says() {
    let world = routed(
        r#"{"Routes":[
            {"Match":{"HTTP":{"Header":[{"Name":"x-test","Exact":"abort"}]}},"Destination":{
                "FaultInjection":{"Abort":{"Percentage":100,"HTTPStatus":418,"GRPCStatus":8}}}},
            {"Match":{"HTTP":{"PathPrefix":"/late"}},"Destination":{"RequestTimeout":"200ms",
                "FaultInjection":{"Delay":{"Percentage":100,"Duration":"60s"}}}},
            {"Match":{"HTTP":{"PathPrefix":"/delay"}},"Destination":{
                "FaultInjection":{"Delay":{"Percentage":100,"Duration":"20ms"}}}},
            {"Match":{"HTTP":{"PathPrefix":"/trickle"}},"Destination":{"RequestTimeout":"1s",
                "FaultInjection":{"Bandwidth":{"Percentage":100,"BytesPerSecond":10}}}},
            {"Match":{"HTTP":{"PathPrefix":"/rate"}},"Destination":{
                "FaultInjection":{"Bandwidth":{"Percentage":100,"BytesPerSecond":5000}}}}]}"#,
    )
    .await;
    let abort = [("x-test", "abort")];
    let answer = get_with(world.outbound, "/", &abort).await;
    assert_eq!(answer.status(), 418);
    assert_eq!(answer.headers()["x-hawser-reason"], "fault_injected");
    assert_eq!(answer.headers()["x-hawser-decided-by"], "client_proxy");
    let grpc = [abort[0], ("content-type", "application/grpc")];
    let answer = get_with(world.outbound, "/", &grpc).await;
    assert_eq!(
        (answer.status(), &answer.headers()["grpc-status"]),
        (StatusCode::OK, &"8".parse().expect("good"))
    );
    let answer = get(world.outbound, "/late").await;
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.headers()["x-hawser-reason"], "request_timeout", "a wait counts");
    assert_eq!(get(world.outbound, "/delay").await.status(), StatusCode::OK);
    let whole = get(world.outbound, "/rate").await;
    assert!(whole.body().starts_with(b"a GET /rate "), "{whole:?}");
    let trickle = Request::get("/trickle").header("host", "db").body(Full::default());
    let broken = call(world.outbound, trickle.expect("good")).await;
    assert!(broken.is_err(), "ten bytes a second are too slow: {broken:?}");
    assert_eq!(get(world.outbound, "/").await.status(), StatusCode::OK, "others are not met");
    assert_eq!(
        ["abort", "delay", "bandwidth"].map(|fault| injected(&world, fault)),
        [2.0, 2.0, 2.0]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_elsewhere_and_never_counts_for_the_client() {
    let mut world = World::new(Protocol::Http);
    world.http_mirror().await;
    let seen = Arc::new(AtomicUsize::new(0));
    let count = seen.clone();
    let shadow = serve(move |request: Request<Incoming>| {
        let count = count.clone();
        async move {
            let body = request.into_body().collect().await.expect("whole").to_bytes();
            assert_eq!(body, "question");
            count.fetch_add(1, Ordering::Relaxed);
            // Neither errors nor silence are the client's concern.
            if count.load(Ordering::Relaxed) > 2 {
                std::future::pending::<()>().await;
            }
            let mut failed = Response::new(Full::new(Bytes::new()).boxed());
            *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            failed
        }
    })
    .await;
    world.serve_application(shadow);
    world.entries = vec![
        HTTP,
        (
            "service-resolver/db",
            r#"{"Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},
                "v2":{"Filter":"Service.Meta.version == v2"}}}"#,
        ),
        (
            "service-router/db",
            r#"{"Routes":[{"Destination":{"ServiceSubset":"v1",
                "Mirror":{"ServiceSubset":"v2","Percentage":100}}}]}"#,
        ),
    ];
    world.start().await;
    for _ in 0..5 {
        let request = Request::post("/").header("host", "db").body("question".into());
        let answer = call(world.outbound, request.expect("good")).await.expect("answered");
        assert_eq!((answer.status(), &answer.body()[..]), (StatusCode::OK, &b"question"[..]));
    }
    eventually("five copies", || seen.load(Ordering::Relaxed) == 5).await;
    let mirrored =
        |outcome| world.client_count("hawser_proxy_mirrored_total", &[("outcome", outcome)]);
    eventually("two were answered", || mirrored("answered") == 2.0).await;
    eventually("five requests are counted", || {
        world.client_count("hawser_proxy_requests_total", &[("code", "2xx")]) == 5.0
    })
    .await;
    assert_eq!(world.client_count("hawser_proxy_requests_total", &[("code", "5xx")]), 0.0);
    world.stop().await;
    assert_eq!(
        world.client_count("hawser_proxy_mirrored_total", &[("outcome", "failed")]),
        3.0,
        "what is under way ends with the proxy"
    );
}

/// Two instances that take turns, of which the first keeps silent; counts what each was asked.
async fn one_silent(retries: &str) -> (World, [Arc<AtomicUsize>; 2]) {
    let mut world = World::new(Protocol::Http);
    // Longer than any of this takes: a try that is given up is no hedge.
    world.limits.per_try = Duration::from_secs(60);
    let json = format!(r#"{{"load_balancer":{{"Policy":"round_robin"}},"retries":{retries}}}"#);
    world.policies = serde_json::from_str::<Policies>(&json).expect(&json);
    let counts = [Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0))];
    for (n, count) in counts.iter().enumerate() {
        let count = count.clone();
        let address = serve(move |request: Request<Incoming>| {
            let is_slow = n == 0 && request.uri().path() == "/slow";
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                if is_slow {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                Response::new(
                    Full::new(Bytes::from(if is_slow { "slow" } else { "quick" })).boxed(),
                )
            }
        })
        .await;
        world.serve_application(address);
    }
    world.start().await;
    (world, counts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answer_is_hedged_where_the_request_may_be_repeated() {
    let (world, counts) = one_silent(r#"{"HedgeAfter":"50ms","BudgetMinPerSecond":100}"#).await;
    for _ in 0..4 {
        let answer = get(world.outbound, "/slow").await;
        assert_eq!(answer.body(), "quick", "whoever is first");
    }
    let hedged = world.client_count("hawser_proxy_retries_total", &[("outcome", "hedged")]);
    assert!(hedged >= 1.0, "{hedged}");
    let asked = || counts.each_ref().map(|count| count.load(Ordering::Relaxed));
    let before = asked();
    for _ in 0..2 {
        let request = Request::post("/slow").header("host", "db").body("once".into());
        let answer = call(world.outbound, request.expect("good")).await.expect("answered");
        assert_eq!(answer.status(), StatusCode::OK);
    }
    let after = asked();
    assert_eq!(after[0] + after[1], before[0] + before[1] + 2, "each was sent once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hedges_stay_within_the_retry_budget() {
    let (world, counts) =
        one_silent(r#"{"HedgeAfter":"10ms","BudgetPercent":0,"BudgetMinPerSecond":0}"#).await;
    for _ in 0..2 {
        assert_eq!(get(world.outbound, "/slow").await.status(), StatusCode::OK);
    }
    let sum: usize = counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    assert_eq!(sum, 2);
    eventually("the budget refused", || {
        world.client_count("hawser_proxy_retries_total", &[("outcome", "over_budget")]) >= 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_percentile_hedges_once_enough_is_known() {
    let (world, _) = one_silent(r#"{"HedgePercentile":90,"BudgetMinPerSecond":100}"#).await;
    for _ in 0..60 {
        assert_eq!(get(world.outbound, "/").await.body(), "quick");
    }
    for _ in 0..4 {
        assert_eq!(get(world.outbound, "/slow").await.body(), "quick");
    }
    let hedged = world.client_count("hawser_proxy_retries_total", &[("outcome", "hedged")]);
    assert!(hedged >= 1.0, "{hedged}");
}
