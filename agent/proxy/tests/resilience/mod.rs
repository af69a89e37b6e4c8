//! What callers notice of instances that fail, of limits and of load.

mod app;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hawser_core::catalog::Protocol;
use hawser_core::policy::Policies;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode};

use self::app::{App, Mood};
use crate::world::{World, call, get, get_with};

fn policies(json: &str) -> Policies {
    serde_json::from_str(json).expect(json)
}

fn text(answer: &Response<Bytes>) -> String {
    String::from_utf8_lossy(answer.body()).into_owned()
}

fn reason(answer: &Response<Bytes>) -> &str {
    answer.headers().get("x-hawser-reason").map_or("", |reason| reason.to_str().expect("ASCII"))
}

/// The statuses of `count` requests, some at a time.
async fn ask(address: SocketAddr, count: usize, at_once: usize) -> BTreeMap<u16, usize> {
    let mut statuses = BTreeMap::new();
    for _ in 0..count.div_ceil(at_once) {
        let answers = (0..at_once).map(|_| get(address, "/"));
        for answer in futures_util::future::join_all(answers).await {
            *statuses.entry(answer.status().as_u16()).or_default() += 1;
        }
    }
    statuses
}

async fn three(world: &mut World) -> [App; 3] {
    let a = App::start(world, "a").await;
    let b = App::start(world, "b").await;
    let c = App::start(world, "c").await;
    world.start().await;
    [a, b, c]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_or_a_cookie_leads_to_one_instance() {
    for policy in ["ring_hash", "maglev"] {
        let mut world = World::new(Protocol::Http);
        world.policies = policies(&format!(
            r#"{{"load_balancer":{{"Policy":"{policy}","HashPolicies":[
                {{"Field":"header","FieldValue":"x-user","Terminal":true}},
                {{"Field":"cookie","FieldValue":"sid","CookieConfig":{{"TTL":"1h","Path":"/"}}}}
            ]}}}}"#
        ));
        three(&mut world).await;
        let mut met = BTreeSet::new();
        for user in 0..24 {
            let user = user.to_string();
            let headers = [("x-user", user.as_str())];
            let first = text(&get_with(world.outbound, "/", &headers).await);
            for _ in 0..3 {
                let again = get_with(world.outbound, "/", &headers).await;
                assert_eq!(text(&again), first, "{policy}: user {user}");
                assert!(!again.headers().contains_key("set-cookie"), "a header was enough");
            }
            met.insert(first);
        }
        assert_eq!(met.len(), 3, "{policy}: users are spread");
        let answer = get(world.outbound, "/").await;
        let cookie = answer.headers()["set-cookie"].to_str().expect("ASCII").to_owned();
        assert!(cookie.starts_with("sid=") && cookie.contains("Max-Age=3600"), "{cookie}");
        let cookie = cookie.split(';').next().expect("a pair").to_owned();
        for _ in 0..5 {
            let again = get_with(world.outbound, "/", &[("cookie", cookie.as_str())]).await;
            assert_eq!(text(&again), text(&answer), "{policy}: it comes back to its instance");
        }
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_take_turns_by_round_robin() {
    let mut world = World::new(Protocol::Http);
    world.policies = policies(r#"{"load_balancer":{"Policy":"round_robin"}}"#);
    let apps = three(&mut world).await;
    assert_eq!(ask(world.outbound, 30, 1).await, BTreeMap::from([(200, 30)]));
    assert_eq!(apps.map(|app| app.seen()), [10, 10, 10]);
}

/// F32: one of three fails in each of these ways, and no idempotent request notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_that_fails_costs_no_idempotent_request() {
    for mood in [Mood::Errs, Mood::Unavailable, Mood::Slow, Mood::Hangs, Mood::Resets, Mood::Gone] {
        let mut world = World::new(Protocol::Http);
        world.limits.per_try = Duration::from_millis(500);
        // A loaded machine makes tries slow that are not: they must not use up what others need.
        world.limits.retry_budget_floor = 1_000;
        let [a, b, _] = three(&mut world).await;
        assert_eq!(ask(world.outbound, 40, 8).await, BTreeMap::from([(200, 40)]), "before");
        a.turn(mood);
        let before = (a.seen(), b.seen());
        let statuses = ask(world.outbound, 240, 8).await;
        assert_eq!(statuses, BTreeMap::from([(200, 240)]), "{mood:?}");
        let share = a.seen() - before.0;
        assert!(
            share <= 60 && b.seen() > before.1,
            "{mood:?}: it is left alone, not {share} times"
        );
        world.stop().await;
    }
}

/// A proxy that is replaced leaves unread what waits to be sent to it, and nobody notices: that is
/// no retry of the kind that a budget is for, and nothing against the instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_leaves_costs_no_request_and_no_budget() {
    let mut world = World::new(Protocol::Http);
    world.limits.retry_budget_percent = 0;
    world.limits.retry_budget_floor = 0;
    let app = App::start(&mut world, "a").await;
    world.leaving_proxy().await;
    world.start().await;
    let post = || {
        let request = Request::post("/").header("host", "db").body(Full::from("once"));
        call(world.outbound, request.expect("good"))
    };
    for answer in futures_util::future::join_all((0..40).map(|_| post())).await {
        let answer = answer.expect("answered");
        assert_eq!((answer.status(), reason(&answer)), (StatusCode::OK, ""));
    }
    assert_eq!(app.seen(), 40, "each once");
    assert_eq!(world.client_metric("hawser_proxy_ejections_total") as u64, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_idempotent_is_sent_once() {
    let mut world = World::new(Protocol::Http);
    let apps = three(&mut world).await;
    apps.iter().for_each(|app| app.turn(Mood::Errs));
    let post = |key: bool| {
        let mut request = Request::post("/").header("host", "db");
        if key {
            request = request.header("idempotency-key", "1");
        }
        request.body(Bytes::from("x").into()).expect("good")
    };
    let seen = || apps.iter().map(App::seen).sum::<usize>();
    let answer = call(world.outbound, post(false)).await.expect("answered");
    assert_eq!((answer.status(), seen()), (StatusCode::INTERNAL_SERVER_ERROR, 1));
    let answer = call(world.outbound, post(true)).await.expect("answered");
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(seen(), 4, "its sender says that it may be repeated");
    world.policies = policies(r#"{"retries":{"NumRetries":0}}"#);
    world.publish();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let before = seen();
        assert_eq!(get(world.outbound, "/").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
        if seen() == before + 1 {
            break;
        }
        assert!(Instant::now() < deadline, "retries are still on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_of_another_layer_is_not_tried_again() {
    let mut world = World::new(Protocol::Http);
    let apps = three(&mut world).await;
    apps.iter().for_each(|app| app.turn(Mood::Errs));
    let answer = get_with(world.outbound, "/", &[("x-hawser-attempt", "2")]).await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(apps.iter().map(App::seen).sum::<usize>(), 1);
}

/// F33: everything fails for a while, then nothing does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_retries_stays_within_its_budget() {
    let mut world = World::new(Protocol::Http);
    let apps = three(&mut world).await;
    let seen = || apps.iter().map(App::seen).sum::<usize>();
    apps.iter().for_each(|app| app.turn(Mood::Unavailable));
    let (offered, began) = (600, Instant::now());
    let statuses = ask(world.outbound, offered, 12).await;
    let floor = 3 * (began.elapsed().as_secs() as usize + 2);
    assert_eq!(statuses.get(&503), Some(&offered), "{statuses:?}");
    let most = offered + (offered / 5).max(floor);
    assert!(seen() <= most, "{} of {offered} offered reached the applications", seen());
    assert!(seen() > offered, "some were tried again");
    apps.iter().for_each(|app| app.turn(Mood::Well));
    let statuses = ask(world.outbound, 60, 12).await;
    assert_eq!(statuses, BTreeMap::from([(200, 60)]), "it is over when its cause is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_above_a_callers_limit_fails_at_once() {
    let cases = [
        (r#"{"MaxConcurrentRequests":1}"#, "request_limit"),
        (r#"{"MaxConnections":1}"#, "connection_limit"),
    ];
    for (limits, expected) in cases {
        let mut world = World::new(Protocol::Http);
        let json =
            format!(r#"{{"upstreams":{{"Overrides":[{{"Name":"db","Limits":{limits}}}]}}}}"#);
        world.caller_policies = policies(&json);
        let gate = world.http_gated().await;
        world.start().await;
        let outbound = world.outbound;
        let first = tokio::spawn(async move { get(outbound, "/").await });
        gate.arrived().await;
        let second = get(outbound, "/").await;
        assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(reason(&second), expected);
        gate.open();
        assert_eq!(first.await.expect("no panic").status(), StatusCode::OK);
        assert_eq!(get(outbound, "/").await.status(), StatusCode::OK, "{expected}: room again");
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_above_an_instances_limit_is_told_when_to_come_again() {
    let mut world = World::new(Protocol::Http);
    world.policies = policies(r#"{"inbound":{"MaxConcurrentRequests":1}}"#);
    let gate = world.http_gated().await;
    world.start().await;
    let outbound = world.outbound;
    let first = tokio::spawn(async move { get(outbound, "/").await });
    gate.arrived().await;
    let second = get(outbound, "/").await;
    assert_eq!(second.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(reason(&second), "concurrency_limit");
    assert_eq!(second.headers()["retry-after"], "1");
    gate.open();
    assert_eq!(first.await.expect("no panic").status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_above_a_rate_is_told_when_to_come_again() {
    // So slow a rate that no machine is too slow for it.
    let rate = r#""RequestsPerSecond":1,"RequestsMaxBurst":3"#;
    let cases = [
        (format!(r#"{{"rates":{{"InstanceLevel":{{{rate}}}}}}}"#), "rate_limited"),
        (
            format!(
                r#"{{"rates":{{"InstanceLevel":{{"Routes":[{{"PathPrefix":"/",{rate}}}]}}}}}}"#
            ),
            "rate_limited",
        ),
        (format!(r#"{{"rates":{{"Callers":[{{"Name":"web",{rate}}}]}}}}"#), "caller_rate_limited"),
        (format!(r#"{{"rates":{{"Callers":[{{"Name":"*",{rate}}}]}}}}"#), "caller_rate_limited"),
        // Without servers: the fair share, which for one instance is all.
        (format!(r#"{{"global_rates":{{{rate}}}}}"#), "global_rate_limited"),
        (
            format!(r#"{{"global_rates":{{"Callers":[{{"Name":"*",{rate}}}]}}}}"#),
            "caller_rate_limited",
        ),
    ];
    for (json, expected) in cases {
        let mut world = World::new(Protocol::Http);
        world.policies = policies(&json);
        world.http_echo("a").await;
        world.start().await;
        let answers = (0..12).map(|_| get(world.outbound, "/"));
        let answers = futures_util::future::join_all(answers).await;
        let is_limited =
            |answer: &&Response<Bytes>| answer.status() == StatusCode::TOO_MANY_REQUESTS;
        let limited: Vec<_> = answers.iter().filter(is_limited).collect();
        assert!(!limited.is_empty(), "{json}: none of twelve at once");
        for answer in &limited {
            assert_eq!(reason(answer), expected, "{json}");
            assert_eq!(answer.headers()["retry-after"], "1", "{json}");
        }
        assert!(answers.len() - limited.len() >= 3, "{json}: the burst passes");
        world.stop().await;
    }
}

/// F34's other half; goodput is measured where time can be: in the core's simulation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overloaded_instance_sheds_load_but_no_question_after_its_health() {
    let mut world = World::new(Protocol::Http);
    world.request_timeout = Duration::from_secs(2);
    world.policies = policies(r#"{"inbound":{"Shedding":"adaptive"}}"#);
    let app = App::start(&mut world, "a").await;
    world.start().await;
    assert_eq!(ask(world.outbound, 120, 8).await, BTreeMap::from([(200, 120)]));
    app.turn(Mood::Hangs);
    let deadline = Instant::now() + Duration::from_secs(60);
    let shed = loop {
        let answers = (0..64).map(|_| get(world.outbound, "/"));
        let answers = futures_util::future::join_all(answers).await;
        if let Some(shed) = answers.into_iter().find(|answer| reason(answer) == "load_shed") {
            break shed;
        }
        assert!(Instant::now() < deadline, "nothing was shed");
    };
    assert_eq!(shed.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(shed.headers()["retry-after"], "1");
    let outbound = world.outbound;
    let load = tokio::spawn(async move { ask(outbound, 64, 64).await });
    for _ in 0..20 {
        assert_eq!(get(outbound, "/healthz").await.status(), StatusCode::OK);
    }
    let _ = load.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_own_deadline_is_kept_and_stays_between_proxies() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let answer = get_with(world.outbound, "/", &[("grpc-timeout", "30S")]).await;
    let seen = text(&answer);
    assert!(!seen.contains("x-hawser-deadline"), "{seen}");
    assert!(seen.contains("grpc-timeout"), "{seen}");
    assert!(!seen.contains("30S"), "the application is told what is left: {seen}");
    world.stop().await;

    let mut world = World::new(Protocol::Http);
    let _gate = world.http_gated().await;
    world.start().await;
    let answer = get_with(world.outbound, "/", &[("grpc-timeout", "200m")]).await;
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(reason(&answer), "request_timeout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_own_connect_timeout_outranks_the_others() {
    let mut world = World::new(Protocol::Http);
    // The request would end first.
    world.connect_timeout = Duration::from_secs(60);
    world.request_timeout = Duration::from_secs(10);
    world.caller_policies =
        policies(r#"{"upstreams":{"Overrides":[{"Name":"db","ConnectTimeoutMs":200}]}}"#);
    world.stalled_endpoint().await;
    world.start().await;
    let answer = get(world.outbound, "/").await;
    assert!(matches!(reason(&answer), "connect_timeout" | "handshake_timeout"), "{answer:?}");
}

/// An address that takes no more connections, and does not say so.
async fn full() -> (tokio::net::TcpListener, Vec<tokio::net::TcpStream>) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let listener = socket.listen(1).expect("listening");
    let address = listener.local_addr().expect("bound");
    let mut waiting = Vec::new();
    let brief = Duration::from_millis(300);
    while let Ok(connected) =
        tokio::time::timeout(brief, tokio::net::TcpStream::connect(address)).await
    {
        waiting.push(connected.expect("it waits to be accepted"));
    }
    (listener, waiting)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_is_waited_for_as_long_as_its_entry_says() {
    let mut world = World::new(Protocol::Http);
    world.entries = vec![
        // Where nothing is said the dial is given up after a second, and so before the request.
        ("service-defaults/db", r#"{"Protocol":"http","LocalConnectTimeoutMs":60000}"#),
        ("service-resolver/db", r#"{"RequestTimeout":"3s"}"#),
    ];
    let (listener, _waiting) = full().await;
    world.serve_application(listener.local_addr().expect("bound"));
    world.start().await;
    let answer = get(world.outbound, "/").await;
    assert!(matches!(reason(&answer), "request_timeout" | "deadline_exceeded"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateway_errors_eject_by_a_count_of_their_own() {
    let mut world = World::new(Protocol::Http);
    let check = r#"{"MaxFailures":1000,"EnforcingConsecutive5xx":100,"MaxGatewayFailures":2}"#;
    world.caller_policies = policies(&format!(
        r#"{{"upstreams":{{"Overrides":[{{"Name":"db","PassiveHealthCheck":{check}}}]}}}}"#
    ));
    world.policies = policies(r#"{"load_balancer":{"Policy":"round_robin"}}"#);
    let [a, ..] = three(&mut world).await;
    a.turn(Mood::Unavailable);
    ask(world.outbound, 30, 1).await;
    let ejected = || world.client_metric("hawser_proxy_ejections_total") > 0.0;
    crate::world::eventually("it is ejected", ejected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_count_against_the_connections_that_an_instance_takes() {
    let mut world = World::new(Protocol::Http);
    world.inbound_connections_max = Some(1);
    world.http_echo("a").await;
    world.start().await;
    let held = crate::world::tls(world.inbound(), world.native_client()).await.expect("the first");
    let answer = get(world.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
    crate::world::eventually("its proxy says why", || {
        world.server_metric("hawser_proxy_refusals_total") > 0.0
    })
    .await;
    drop(held);
    world.until_status(StatusCode::OK).await;
}
