//! What two proxies say of the requests between them: access log, metrics, traces, ids.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use hawser_core::catalog::Protocol;
use hawser_core::intention::Action;
use hawser_proxy::{AccessLog, Attribute, LogSink, Proxy, Span, SpanKind};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::{Request, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;

use crate::world::{self, World, eventually, get, get_with};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// A world whose proxies log to `client.log` and `server.log` in the folder.
fn logging(protocol: Protocol) -> (World, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut world = World::new(protocol);
    world.logs = ["client.log", "server.log"]
        .map(|name| AccessLog::all(LogSink::File(folder.path().join(name))));
    (world, folder)
}

fn lines(folder: &TempDir, of: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.path().join(of)).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

async fn line(folder: &TempDir, of: &str) -> Value {
    eventually("a line is written", || !lines(folder, of).is_empty()).await;
    lines(folder, of).remove(0)
}

fn keys(line: &Value) -> Vec<&str> {
    line.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_log_a_request_with_all_there_is_to_know() {
    let (mut world, folder) = logging(Protocol::Http);
    let application = world.http_echo("a").await;
    world.start().await;
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let given = [("x-request-id", "abc-1"), ("traceparent", traceparent.as_str())];
    let answer = get_with(world.outbound, "/path?token=hidden", &given).await;
    assert_eq!(answer.headers()["x-request-id"], "abc-1");

    let client = line(&folder, "client.log").await;
    let shared = [
        ("source", "web"),
        ("destination", "db"),
        ("verdict", "allow"),
        ("reason", "ok"),
        ("decided_by", "application"),
        ("protocol", "http"),
        ("method", "GET"),
        ("path", "/path"),
        ("request_id", "abc-1"),
        ("trace_id", TRACE),
    ];
    let server = line(&folder, "server.log").await;
    for (key, value) in shared {
        assert_eq!((&client[key], &server[key]), (&value.into(), &value.into()), "{key}");
    }
    let domain = "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc";
    let length = answer.body().len();
    let of_client = [
        ("reporter", Value::from("client")),
        ("status", 200.into()),
        ("attempts", 1.into()),
        ("bytes_sent", 0.into()),
        ("bytes_received", length.into()),
        ("peer_identity", format!("{domain}/db").into()),
        ("upstream_instance", "db-0".into()),
        ("upstream_node", "host-0".into()),
        ("view_index", 2.into()),
    ];
    for (key, value) in of_client {
        assert_eq!(client[key], value, "{key}");
    }
    let of_server = [
        ("reporter", Value::from("server")),
        ("policy", "intention web -> db".into()),
        ("policy_id", "1".into()),
        ("peer_identity", format!("{domain}/web").into()),
        ("upstream", application_of(&server, application).into()),
        ("view_index", 2.into()),
    ];
    for (key, value) in of_server {
        assert_eq!(server[key], value, "{key}");
    }
    for line in [&client, &server] {
        let (first, all) = (&line["first_byte_us"], &line["duration_us"]);
        assert!(first.as_u64() <= all.as_u64() && first.is_u64(), "{line}");
        assert!(keys(line).contains(&"time_ms"));
    }
}

/// The application's own address: what `http_echo` gives back is its proxy's.
fn application_of(server: &Value, mesh: std::net::SocketAddr) -> String {
    let said = server["upstream"].as_str().expect("an address").to_owned();
    assert_ne!(said, mesh.to_string());
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_says_which_intention_denied() {
    let (mut world, folder) = logging(Protocol::Http);
    world.http_echo("a").await;
    world.intend(Action::Deny);
    world.start().await;
    assert_eq!(get(world.outbound, "/").await.status(), StatusCode::FORBIDDEN);
    for of in ["client.log", "server.log"] {
        let line = line(&folder, of).await;
        let said = ["verdict", "reason", "decided_by"].map(|key| line[key].clone());
        assert_eq!(said, ["deny", "intention_denied", "server_proxy"], "{of}");
    }
    assert_eq!(line(&folder, "server.log").await["policy"], "intention web -> db");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_an_intention_decides_about_requests_its_permission_is_told() {
    let (mut world, folder) = logging(Protocol::Http);
    world.http_echo("a").await;
    let requests = r#"{"Permissions":[
        {"Action":"deny","HTTP":{"PathPrefix":"/admin"}},
        {"Action":"allow","HTTP":{"PathPrefix":"/a"}}]}"#;
    world.requests = Some(serde_json::from_str(requests).expect("good"));
    world.intend(Action::Allow);
    world.start().await;
    let cases =
        [("/admin/x", "deny", "0"), ("/about", "allow", "1"), ("/other", "deny", "default")];
    for (n, (path, ..)) in cases.iter().enumerate() {
        get(world.outbound, path).await;
        eventually("it is logged", || lines(&folder, "server.log").len() == n + 1).await;
    }
    for (line, (path, verdict, permission)) in lines(&folder, "server.log").iter().zip(cases) {
        assert_eq!((&line["path"], &line["verdict"]), (&path.into(), &verdict.into()));
        assert_eq!(line["permission"], permission, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_says_which_view_it_met() {
    let (mut world, folder) = logging(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    get(world.outbound, "/").await;
    let first = line(&folder, "server.log").await["view_index"].as_u64().expect("a number");
    world.republish();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        get(world.outbound, "/").await;
        let later = lines(&folder, "server.log");
        if later.iter().any(|line| line["view_index"].as_u64() > Some(first)) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in ten seconds: {later:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_policy_cuts_was_ended_by_the_proxy() {
    let (mut world, folder) = logging(Protocol::Http);
    let application = world::serve(|_| async {
        let first = Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"first")));
        let body = stream::once(async { first }).chain(stream::pending());
        hyper::Response::new(http_body_util::BodyExt::boxed(StreamBody::new(body)))
    })
    .await;
    world.instance(application);
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: db\r\n\r\n").await.expect("open");
    let mut seen = Vec::new();
    while !seen.ends_with(b"first\r\n") {
        seen.push(stream.read_u8().await.expect("an answer"));
    }
    world.intend(Action::Deny);
    let line = line(&folder, "server.log").await;
    let said = ["status", "reason", "decided_by"].map(|key| line[key].clone());
    assert_eq!(said, [200.into(), "policy_cut".into(), Value::from("server_proxy")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_became_is_logged_when_it_has_ended() {
    let (mut world, folder) = logging(Protocol::Http);
    world.upgrading().await;
    world.start().await;
    for (is_cut, reason, by) in [(false, "ok", "application"), (true, "policy_cut", "server_proxy")]
    {
        let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
        let head =
            "GET /ws HTTP/1.1\r\nhost: db\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("open");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.expect("an answer"));
        }
        let mut echo = [0; 5];
        stream.write_all(b"hello").await.expect("open");
        stream.read_exact(&mut echo).await.expect("echoed");
        let before = lines(&folder, "server.log").len();
        if is_cut {
            world.intend(Action::Deny);
        } else {
            stream.shutdown().await.expect("open");
        }
        eventually("it is logged", || lines(&folder, "server.log").len() > before).await;
        let line = lines(&folder, "server.log").pop().expect("a line");
        let bytes = (&line["bytes_sent"], &line["bytes_received"]);
        assert_eq!((&line["status"], bytes), (&101.into(), (&5.into(), &5.into())), "{line}");
        assert_eq!((&line["reason"], &line["decided_by"]), (&reason.into(), &by.into()), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_refused_without_a_name_is_told_by_its_address() {
    let (mut world, folder) = logging(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let mut nameless = world.native_client();
    nameless.client_auth_cert_resolver = std::sync::Arc::new(world::Anonymous);
    let mut stream = TcpStream::connect(world.inbound()).await.expect("listening");
    stream.write_all(b"GET / HTTP/1.1\r\nhost: db\r\n\r\n").await.expect("open");
    let line = line(&folder, "server.log").await;
    let said = ["reason", "source_address"].map(|key| line[key].clone());
    assert_eq!(said, ["plaintext", "127.0.0.1"]);
    // Told that it needs one at its first read, at the latest.
    if let Ok(mut stream) = world::tls(world.inbound(), nameless).await {
        let _ = stream.read_u8().await;
    }
    eventually("it is logged", || lines(&folder, "server.log").len() >= 2).await;
    let line = &lines(&folder, "server.log")[1];
    let said = ["reason", "source_address"].map(|key| line[key].clone());
    assert_eq!(said, ["no_client_certificate", "127.0.0.1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_logged_with_its_bytes() {
    let (mut world, folder) = logging(Protocol::Tcp);
    world.tcp_echo().await;
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(b"hello").await.expect("open");
    stream.shutdown().await.expect("open");
    assert_eq!(world::read_all(&mut stream).await, b"hello");
    for of in ["client.log", "server.log"] {
        let line = line(&folder, of).await;
        assert_eq!((&line["protocol"], &line["status"]), (&"tcp".into(), &Value::Null), "{of}");
        let bytes = (&line["bytes_sent"], &line["bytes_received"]);
        assert_eq!(bytes, (&5.into(), &5.into()), "{of}");
        assert!(line["peer_identity"].is_string(), "{of}: {line}");
    }
    let labels = [("source", "web"), ("destination", "db"), ("code", "tcp")];
    eventually("it is counted", || {
        world.client_count("hawser_proxy_requests_total", &labels) >= 1.0
            && world.server_count("hawser_proxy_requests_total", &labels) >= 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_ever_logged_or_traced() {
    let (mut world, folder) = logging(Protocol::Http);
    world.trace_ppm = Some(1_000_000);
    world.http_echo("a").await;
    world.start().await;
    let spans = Collected::of(&world);
    let places = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "x-consul-token",
        "x-vault-token",
        "x-api-key",
        "x-amz-security-token",
        "user-agent",
        "referer",
        "x-request-id",
        "traceparent",
        "tracestate",
        "b3",
    ];
    for (n, place) in places.iter().enumerate() {
        // No id allows a blank, so that what stands in one by mistake is not one.
        let secret = format!("Bearer canary-{n}-s3cr3t");
        get_with(
            world.outbound,
            &format!("/p{n};jsessionid=canary?access_token=canary-q{n}"),
            &[(place, &secret)],
        )
        .await;
    }
    eventually("all is logged", || lines(&folder, "server.log").len() >= places.len()).await;
    world.stop().await;
    for of in ["client.log", "server.log"] {
        let text = std::fs::read_to_string(folder.path().join(of)).expect("there");
        assert!(text.contains("/p0"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
    let text = format!("{:?}", spans.all(|spans| !spans.is_empty()).await);
    assert!(text.contains("/p0") && !text.contains("canary"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unsafe_request_id_is_replaced_and_a_missing_one_made() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let long = "a".repeat(200);
    for given in ["", "a b", "\"quoted\"", long.as_str()] {
        let answer = get_with(world.outbound, "/", &[("x-request-id", given)]).await;
        let id = answer.headers()["x-request-id"].to_str().expect("text").to_owned();
        assert_eq!(id.len(), 32, "{given:?} became {id}");
        let seen = String::from_utf8(answer.into_body().to_vec()).expect("text");
        assert!(seen.contains(&format!("\"x-request-id\": \"{id}\"")), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_grpc_is_counted_by_its_status() {
    let (mut world, folder) = logging(Protocol::Grpc);
    world.grpc_echo().await;
    world.start().await;
    let mut sender = world::http2(world.outbound).await;
    let request = Request::post("http://db/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(http_body_util::Full::new(Bytes::from_static(b"\0\0\0\0\x02hi")))
        .expect("good");
    let answer = sender.send_request(request).await.expect("answered");
    let _ = answer.into_body().collect().await.expect("whole");
    for of in ["client.log", "server.log"] {
        let line = line(&folder, of).await;
        assert_eq!((&line["grpc_status"], &line["protocol"]), (&0.into(), &"grpc".into()), "{of}");
    }
    let labels = [("grpc_status", "0"), ("route", "default"), ("reason", "ok")];
    eventually("it is counted at both ends", || {
        world.client_count("hawser_proxy_requests_total", &labels) >= 1.0
            && world.server_count("hawser_proxy_requests_total", &labels) >= 1.0
    })
    .await;
    let pair = [("source", "web"), ("destination", "db")];
    for name in ["hawser_proxy_request_duration_seconds", "hawser_proxy_first_byte_seconds"] {
        assert!(world.client_count(name, &pair) >= 1.0, "{name}");
        assert!(world.server_count(name, &pair) >= 1.0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_sender_leaves_is_reported() {
    let (mut world, folder) = logging(Protocol::Http);
    world.stalled_endpoint().await;
    world.connect_timeout = Duration::from_secs(30);
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(b"GET /left HTTP/1.1\r\nhost: db\r\n\r\n").await.expect("open");
    let answered = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut [0; 1])).await;
    assert!(answered.is_err(), "the instance says nothing");
    drop(stream);
    let line = line(&folder, "client.log").await;
    assert_eq!((&line["reason"], &line["status"]), (&"downstream_reset".into(), &499.into()));
}

/// The spans of both proxies, as they come.
struct Collected {
    spans: std::sync::Arc<std::sync::Mutex<Vec<Span>>>,
}

impl Collected {
    fn of(world: &World) -> Self {
        let spans = std::sync::Arc::<std::sync::Mutex<Vec<Span>>>::default();
        for proxy in [&world.client, &world.server] {
            let taken = proxy.as_ref().and_then(Proxy::take_spans);
            let mut batches: Receiver<Vec<Span>> = taken.expect("nobody took them before");
            let all = spans.clone();
            tokio::spawn(async move {
                while let Some(batch) = batches.recv().await {
                    all.lock().expect("whole").extend(batch);
                }
            });
        }
        Self { spans }
    }

    async fn all(&self, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        eventually("the spans come", || enough(&self.spans.lock().expect("whole"))).await;
        self.spans.lock().expect("whole").clone()
    }
}

fn of_kind(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    spans.iter().filter(|span| span.kind == kind).collect()
}

fn attribute<'a>(span: &'a Span, name: &str) -> Option<&'a Attribute> {
    span.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_try_is_a_span_between_the_callers_and_the_callees() {
    let mut world = World::new(Protocol::Http);
    world.trace_ppm = Some(0);
    world.gone_application();
    world.http_echo("a").await;
    world.start().await;
    let spans = Collected::of(&world);
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let given = [("traceparent", traceparent.as_str()), ("tracestate", "other=1")];
    // Which of the two is tried first is drawn: until the first try fails once.
    let mut asked = 0;
    loop {
        asked += 1;
        let answer = get_with(world.outbound, "/", &given).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let seen = String::from_utf8(answer.into_body().to_vec()).expect("text");
        assert!(seen.contains(&format!("00-{TRACE}-")) && !seen.contains(CALLER), "{seen}");
        assert!(seen.contains("other=1"), "{seen}");
        let whole = |all: &[Span]| of_kind(all, SpanKind::Internal).len() == asked;
        let all = spans.all(whole).await;
        if of_kind(&all, SpanKind::Client).len() > asked {
            break;
        }
        assert!(asked < 100, "the dead instance was never tried");
    }
    let all = spans
        .all(|all| of_kind(all, SpanKind::Server).len() == of_kind(all, SpanKind::Client).len())
        .await;
    let by_id: BTreeMap<_, _> = all.iter().map(|span| (span.span_id, span)).collect();
    assert_eq!(by_id.len(), all.len(), "no two have one id");
    for span in &all {
        let hex: String = span.trace_id.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(hex, TRACE);
        assert_eq!(span.state.as_deref(), Some("other=1"));
        assert!(span.started_ns <= span.ended_ns);
        let parent = span.parent.expect("none is the root");
        let above = by_id.get(&parent).map(|above| above.kind);
        let expected = match span.kind {
            SpanKind::Internal => {
                assert_eq!(format!("{:016x}", u64::from_be_bytes(parent)), CALLER);
                None
            }
            SpanKind::Client => Some(SpanKind::Internal),
            SpanKind::Server => Some(SpanKind::Client),
        };
        assert_eq!(above, expected, "{span:?}");
        let service = if span.kind == SpanKind::Server { "db" } else { "web" };
        assert_eq!(span.service.as_str(), service);
    }
    let failed: Vec<_> = all.iter().filter(|span| span.error.is_some()).collect();
    assert!(failed.iter().all(|span| span.error == Some("application_unreachable")));
    let of_failed: Vec<_> = failed.iter().map(|span| span.kind).collect();
    assert!(of_failed.contains(&SpanKind::Client) && of_failed.contains(&SpanKind::Server));
    let again = all.iter().find(|span| attribute(span, "http.request.resend_count").is_some());
    let again = again.expect("one was sent again");
    assert_eq!(attribute(again, "hawser.attempt"), Some(&Attribute::Number(2)));
    assert_eq!(attribute(again, "http.response.status_code"), Some(&Attribute::Number(200)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hedge_is_a_try_with_a_span_of_its_own() {
    let mut world = World::new(Protocol::Http);
    world.trace_ppm = Some(1_000_000);
    world.limits.retry_budget_floor = 1_000;
    world.policies = serde_json::from_str(r#"{"retries":{"HedgeAfter":"100ms"}}"#).expect("good");
    let gate = world.http_gated().await;
    world.http_echo("a").await;
    world.start().await;
    let spans = Collected::of(&world);
    let tries = |spans: &[Span]| {
        let mut tries: BTreeMap<[u8; 16], Vec<Span>> = BTreeMap::new();
        for span in of_kind(spans, SpanKind::Client) {
            tries.entry(span.trace_id).or_default().push(span.clone());
        }
        tries.into_values().find(|tries| tries.len() == 2)
    };
    // Until one goes first to the instance that does not answer.
    for _ in 0..50 {
        assert_eq!(get(world.outbound, "/").await.status(), StatusCode::OK);
        if gate.has_arrived() {
            break;
        }
    }
    let is_quicker = |it: &Span| attribute(it, "hawser.attempt") == Some(&Attribute::Number(2));
    // The callee reports by itself, and maybe later.
    let is_whole = |spans: &[Span]| {
        let quicker = tries(spans).and_then(|tries| tries.into_iter().find(is_quicker));
        let callees = of_kind(spans, SpanKind::Server);
        quicker.is_some_and(|it| callees.iter().any(|span| span.parent == Some(it.span_id)))
    };
    let all = spans.all(is_whole).await;
    let mut tries = tries(&all).expect("there");
    tries.sort_by_key(|span| attribute(span, "hawser.attempt") != Some(&Attribute::Number(1)));
    let said = |span: &Span| attribute(span, "hawser.reason").cloned();
    assert_eq!(said(&tries[0]), Some(Attribute::Word("downstream_reset")), "it was given up");
    assert_eq!(said(&tries[1]), Some(Attribute::Word("ok")), "it was quicker");
    assert_eq!(attribute(&tries[1], "hawser.attempt"), Some(&Attribute::Number(2)));
    assert_eq!(tries[0].parent, tries[1].parent);
    let callees = of_kind(&all, SpanKind::Server);
    assert!(callees.iter().any(|span| span.parent == Some(tries[1].span_id)), "{callees:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_is_a_try_with_a_span() {
    let mut world = World::new(Protocol::Http);
    world.trace_ppm = Some(1_000_000);
    world.gone_application();
    world.upgrading().await;
    world.start().await;
    let spans = Collected::of(&world);
    let head = "GET /ws HTTP/1.1\r\nhost: db\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let is_open = |span: &Span| attribute(span, "http.response.status_code").cloned();
    for _ in 0..50 {
        if world::send_raw(world.outbound, head.as_bytes()).await.starts_with("HTTP/1.1 101") {
            break;
        }
    }
    let switched = Some(Attribute::Number(101));
    // The callee's, which comes when what the request became has ended, is below that of its dial.
    spans
        .all(|spans| {
            let tries = of_kind(spans, SpanKind::Client);
            let tried = tries.iter().find(|it| is_open(it) == switched).map(|it| it.span_id);
            let callees = of_kind(spans, SpanKind::Server);
            tried.is_some() && callees.iter().any(|callee| callee.parent == tried)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sampled_passes_as_it_came_and_leaves_no_span() {
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    let sampled = format!("00-{TRACE}-{CALLER}-01");
    // traces, what came, whether it passes unchanged, whether spans come
    let cases = [
        (None, Some(&sampled), true, false),
        (None, None, true, false),
        (Some(1_000_000), Some(&unsampled), true, false),
        (Some(0), None, false, false),
        (Some(1_000_000), None, false, true),
    ];
    for (trace_ppm, came, is_unchanged, has_spans) in cases {
        let mut world = World::new(Protocol::Http);
        world.trace_ppm = trace_ppm;
        world.http_echo("a").await;
        world.start().await;
        let spans = Collected::of(&world);
        let given: Vec<_> = came.iter().map(|value| ("traceparent", value.as_str())).collect();
        let answer = get_with(world.outbound, "/", &given).await;
        let seen = String::from_utf8(answer.into_body().to_vec()).expect("text");
        let why = format!("{trace_ppm:?}, {came:?}: {seen}");
        match came {
            Some(value) => assert_eq!(seen.contains(value.as_str()), is_unchanged, "{why}"),
            None => assert_eq!(!seen.contains("traceparent"), is_unchanged, "{why}"),
        }
        // What a worker has gathered it hands over before it ends.
        world.stop().await;
        if has_spans {
            let all = spans.all(|all| all.len() == 3).await;
            let root = of_kind(&all, SpanKind::Internal);
            assert_eq!((root.len(), root[0].parent), (1, None), "{why}");
        } else {
            assert!(spans.all(|_| true).await.is_empty(), "{why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b3_goes_on_as_b3() {
    let mut world = World::new(Protocol::Http);
    world.trace_ppm = Some(0);
    world.http_echo("a").await;
    world.start().await;
    let _spans = Collected::of(&world);
    let single = format!("{TRACE}-{CALLER}-1");
    let seen = |answer: hyper::Response<Bytes>| {
        String::from_utf8(answer.into_body().to_vec()).expect("text")
    };
    let text = seen(get_with(world.outbound, "/", &[("b3", &single)]).await);
    assert!(text.contains(&format!("\"b3\": \"{TRACE}-")) && !text.contains(CALLER), "{text}");
    assert!(!text.contains("traceparent"), "{text}");
    let several = [("x-b3-traceid", TRACE), ("x-b3-spanid", CALLER), ("x-b3-sampled", "1")];
    let text = seen(get_with(world.outbound, "/", &several).await);
    assert!(text.contains(&format!("\"x-b3-traceid\": \"{TRACE}\"")), "{text}");
    assert!(text.contains("x-b3-parentspanid") && !text.contains(CALLER), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_logged_and_traced_can_be_changed_while_it_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.start().await;
    let path = folder.path().join("client.log");
    let telemetry = world.client.as_ref().expect("started").telemetry();
    let written = |path: &Path| std::fs::read_to_string(path).unwrap_or_default().lines().count();
    telemetry.set(&AccessLog::all(LogSink::File(path.clone())), Some(1_000_000)).expect("opened");
    let spans = Collected::of(&world);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while written(&path) == 0 || spans.all(|_| true).await.is_empty() {
        get(world.outbound, "/").await;
        assert!(tokio::time::Instant::now() < deadline, "nothing is logged");
    }
    telemetry.set(&AccessLog::default(), None).expect("nothing to open");
    let missing = AccessLog::all(LogSink::File(folder.path().join("no/folder/log")));
    assert!(telemetry.set(&missing, None).is_err());
}
