//! The HTTP API of real servers on loopback: what is written through one is read through another,
//! and reads that wait wake.

mod store;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hawser_core::intention::Action;
use hawser_core::operation::LEVEL;
use hawser_server::identity::OperatorKey;
use hawser_server::{Config, Handle, RaftTiming, Server, history, http};
use prometheus::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const PATIENCE: Duration = Duration::from_secs(30);

/// Servers that found a cluster together; they stop when this is dropped.
struct Cluster {
    handles: Vec<Handle>,
    drain: CancellationToken,
    _folders: Vec<TempDir>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}

impl Cluster {
    async fn start(size: u8) -> Self {
        let listeners: Vec<TcpListener> =
            (0..size).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let addresses: Vec<_> =
            listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect();
        let mut cluster =
            Self { handles: Vec::new(), drain: CancellationToken::new(), _folders: Vec::new() };
        for (number, listener) in listeners.into_iter().enumerate() {
            let folder = tempfile::tempdir().expect("a folder");
            let config = Config {
                node: format!("s{number}").parse().expect("a name"),
                datacenter: "dc1".parse().expect("a datacenter"),
                data_dir: folder.path().to_owned(),
                advertise: addresses[number],
                bootstrap_expect: size,
                retry_join: addresses.iter().map(ToString::to_string).collect(),
                operator_key: KEY.parse::<OperatorKey>().expect("a key"),
                default_action: Action::Deny,
                reap_after: Duration::from_secs(3_600),
                leaf_lifetime: Duration::from_secs(24 * 3_600),
                timing: RaftTiming::default(),
                lease: Duration::from_secs(15),
                history: history::Limits::default(),
                aws_iam: None,
                acl: hawser_server::acl::Settings::default(),
                snapshot_every: 1_024,
                log_bytes_max: hawser_server::config::LOG_BYTES_MAX,
                planted: hawser_server::planted::Planted::default(),
            };
            let server =
                Server::start(config, listener, &Registry::new()).await.expect("it starts");
            cluster.handles.push(server.handle());
            cluster._folders.push(folder);
            tokio::spawn(server.run(cluster.drain.clone()));
        }
        for handle in &cluster.handles {
            tokio::time::timeout(PATIENCE, handle.ready()).await.expect("a leader");
        }
        cluster
    }

    fn leader(&self) -> usize {
        self.handles.iter().position(|handle| handle.roster.is_leader()).expect("a leader")
    }
}

struct Reply {
    status: u16,
    headers: ::http::HeaderMap,
    body: Value,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    fn index(&self) -> u64 {
        self.header("x-consul-index").parse().expect("an index")
    }
}

async fn call(handle: &Handle, method: &str, path: &str, body: Value) -> Reply {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    send(handle, method, path, body).await
}

async fn send(handle: &Handle, method: &str, path: &str, body: Bytes) -> Reply {
    let request =
        ::http::Request::builder().method(method).uri(path).body(body).expect("a request");
    // Boxed: futures within futures have a depth that the compiler follows no further.
    let response = Box::pin(http::respond(handle, request)).await;
    let text = String::from_utf8_lossy(response.body()).into_owned();
    Reply {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: serde_json::from_str(&text).unwrap_or(Value::String(text)),
    }
}

async fn get(handle: &Handle, path: &str) -> Reply {
    call(handle, "GET", path, Value::Null).await
}

fn registration(number: usize, status: &str) -> Value {
    json!({
        "Node": "ext", "Address": "10.0.0.9",
        "Service": { "ID": format!("web-{number}"), "Service": "web", "Port": 80 },
        "Check": { "CheckID": format!("c{number}"), "ServiceID": format!("web-{number}"), "Status": status },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_answers_as_consul_does() {
    let cluster = Cluster::start(1).await;
    let server = &cluster.handles[0];
    for (method, path, body) in [
        ("PUT", "/v1/catalog/register", registration(1, "passing")),
        (
            "PUT",
            "/v1/connect/intentions/exact?source=web&destination=db",
            json!({"Action": "allow"}),
        ),
        (
            "PUT",
            "/v1/config",
            json!({"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}),
        ),
    ] {
        let reply = call(server, method, path, body).await;
        assert_eq!((reply.status, &reply.body), (200, &json!(true)), "{path}");
    }
    let found = get(server, "/v1/health/service/web?passing").await;
    assert_eq!(found.body[0]["Service"]["ID"], "web-1", "{}", found.body);
    assert!(found.index() > 0);
    for (name, value) in [
        ("content-type", "application/json"),
        ("x-content-type-options", "nosniff"),
        ("x-consul-knownleader", "true"),
        ("x-consul-lastcontact", "0"),
        ("x-consul-effective-consistency", "leader"),
        ("x-consul-default-acl-policy", "allow"),
    ] {
        assert_eq!(found.header(name), value, "{name}");
    }
    let consistencies =
        [("stale", "stale"), ("consistent", "consistent"), ("max_stale=10s", "stale")];
    for (query, expected) in consistencies {
        let reply = get(server, &format!("/v1/catalog/nodes?{query}")).await;
        assert_eq!(reply.header("x-consul-effective-consistency"), expected, "{query}");
    }
    let missing = get(server, "/v1/config/service-defaults/nobody").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.body, "Config entry not found for \"service-defaults\" / \"nobody\"");
    assert!(missing.index() > 0, "also without an object");
    let address = &server.roster.own().address;
    assert_eq!(get(server, "/v1/status/leader").await.body, json!(address));
    assert_eq!(get(server, "/v1/status/peers").await.body, json!([address]));
    let raft = get(server, "/v1/operator/raft/configuration").await.body;
    assert_eq!((&raft["Index"], &raft["Servers"][0]["Leader"]), (&json!(0), &json!(true)));
    let health = get(server, "/v1/operator/autopilot/health").await;
    assert_eq!((health.status, &health.body["Healthy"]), (200, &json!(true)));
    let token =
        call(server, "PUT", "/v1/hawser/join-token", json!({"Node": "n1", "TTL": "5m"})).await;
    assert!(token.body["Token"].as_str().is_some_and(|token| token.starts_with("hj1.")));
    assert_eq!(token.body["TTL"], "5m0s");
    let edges = get(server, "/v1/hawser/edges?minutes=5").await;
    assert_eq!((edges.status, &edges.body["Edges"]), (200, &json!([])), "{}", edges.body);
    let deadline = Instant::now() + PATIENCE;
    let roots = loop {
        let roots = get(server, "/v1/connect/ca/roots").await;
        if roots.status == 200 || Instant::now() > deadline {
            break roots;
        }
        tokio::task::yield_now().await;
    };
    let root = &roots.body["Roots"][0];
    assert_eq!(root["ID"], roots.body["ActiveRootID"], "{}", roots.body);
    assert!(root["RootCert"].as_str().is_some_and(|pem| pem.starts_with("-----BEGIN CERTIFICATE")));
    assert!(!roots.body.to_string().to_lowercase().contains("sealed"), "no key, sealed or not");
    let made = get(server, "/v1/connect/ca/configuration").await;
    assert_eq!((made.status, &made.body["Config"]["LeafCertTTL"]), (200, &json!("24h0m0s")));
    let pem = get(server, "/v1/connect/ca/roots?pem=true").await;
    assert_eq!(pem.header("content-type"), "application/pem-certificate-chain");
    for (method, path, body, status) in [
        ("OPTIONS", "/v1/catalog/nodes", Value::Null, 200),
        ("POST", "/v1/catalog/nodes", Value::Null, 405),
        ("GET", "/v1/catalog/nodes?dc=dc2", Value::Null, 500),
        ("GET", "/v1/catalog/nodes?index=x", Value::Null, 400),
        ("GET", "/v1/acl/tokens", Value::Null, 401),
        ("GET", "/v1/query/nothing", Value::Null, 404),
        ("PUT", "/v1/coordinate/update", Value::Null, 501),
        ("PUT", "/v1/config", Value::Null, 400),
        ("PUT", "/v1/config", json!({ "Kind": "a".repeat(1 << 20) }), 413),
        ("PUT", "/v1/hawser/join-token", json!({ "Node": "n1", "TTL": "1000h" }), 400),
    ] {
        let reply = call(server, method, path, body).await;
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.body);
    }
    let reply = call(server, "POST", "/v1/catalog/nodes", Value::Null).await;
    assert_eq!(reply.header("allow"), "GET,OPTIONS");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_read_wakes_for_its_service_only() {
    let cluster = Cluster::start(1).await;
    let server = cluster.handles[0].clone();
    let first = get(&server, "/v1/health/service/web").await;
    assert_eq!(first.body, json!([]));
    let path = format!("/v1/health/service/web?index={}&wait=5m", first.index());
    let waiting = {
        let server = server.clone();
        tokio::spawn(async move { get(&server, &path).await })
    };
    let other = json!({ "Node": "o", "Address": "10.0.0.8", "Service": { "Service": "db" } });
    assert_eq!(call(&server, "PUT", "/v1/catalog/register", other).await.body, json!(true));
    assert!(!waiting.is_finished(), "another service is nothing to it");
    let write = call(&server, "PUT", "/v1/catalog/register", registration(1, "critical")).await;
    assert_eq!(write.body, json!(true));
    let woken = tokio::time::timeout(PATIENCE, waiting).await.expect("it wakes").expect("it ran");
    assert!(woken.index() > first.index());
    assert_eq!(woken.body[0]["Service"]["ID"], "web-1");
    let path = format!("/v1/health/service/web?index={}&wait=10ms", woken.index());
    let still = get(&server, &path).await;
    assert_eq!((still.status, still.index()), (200, woken.index()), "the wait runs out quietly");
    assert_eq!(still.body, woken.body, "with the whole body");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_acknowledged_every_server_shows() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader();
    for number in 0..12 {
        let writer = &cluster.handles[number % 3];
        let reply =
            call(writer, "PUT", "/v1/catalog/register", registration(number, "passing")).await;
        assert_eq!(reply.body, json!(true), "through server {}", number % 3);
        for (reader, handle) in cluster.handles.iter().enumerate() {
            let path = format!(
                "/v1/health/service/web?{}",
                if number % 2 == 0 { "" } else { "consistent" }
            );
            let found = get(handle, &path).await;
            let count = found.body.as_array().map_or(0, Vec::len);
            assert_eq!(count, number + 1, "write {number} read through server {reader}");
        }
    }
    let follower = &cluster.handles[(leader + 1) % 3];
    let reply = get(follower, "/v1/status/leader").await;
    assert_eq!(reply.body, json!(cluster.handles[leader].roster.own().address));
    let index = get(follower, "/v1/health/service/web").await.index();
    let waiting = {
        let (follower, path) = (follower.clone(), format!("/v1/health/service/web?index={index}"));
        tokio::spawn(async move { get(&follower, &path).await })
    };
    let gone = json!({ "Node": "ext", "ServiceID": "web-0" });
    let reply = call(&cluster.handles[leader], "PUT", "/v1/catalog/deregister", gone).await;
    assert_eq!(reply.body, json!(true));
    let woken = tokio::time::timeout(PATIENCE, waiting).await.expect("it wakes").expect("it ran");
    assert_eq!(woken.body.as_array().map(Vec::len), Some(11), "a follower's readers wake too");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let health = get(&cluster.handles[leader], "/v1/operator/autopilot/health").await;
        if (health.status, &health.body["FailureTolerance"]) == (200, &json!(1)) {
            break;
        }
        assert!(Instant::now() < deadline, "one of three may fail: {}", health.body);
        tokio::task::yield_now().await;
    }
}

/// Of two writes that fit alone and not together, one is refused: whichever servers they come to.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn config_entries_that_race_never_end_in_a_misfit() {
    let cluster = Cluster::start(3).await;
    let write =
        async |handle: &Handle, entry: Value| call(handle, "PUT", "/v1/config", entry).await.status;
    for round in 0..8 {
        let (all, part) = (format!("all-{round}"), format!("part-{round}"));
        let resolver =
            |subsets: Value| json!({ "Kind": "service-resolver", "Name": all, "Subsets": subsets });
        let redirect = json!({
            "Kind": "service-resolver", "Name": part,
            "Redirect": { "Service": all, "ServiceSubset": "v1" },
        });
        let leader = &cluster.handles[0];
        assert_eq!(write(leader, resolver(json!({ "v1": {} }))).await, 200);
        let (needs, drops) = tokio::join!(
            write(&cluster.handles[round % 3], redirect),
            write(&cluster.handles[(round + 1) % 3], resolver(json!({ "v2": {} }))),
        );
        assert!(
            matches!((needs, drops), (200, 400) | (400, 200)),
            "round {round}: {needs} and {drops}"
        );
        let chain = get(leader, &format!("/v1/discovery-chain/{part}")).await;
        assert_eq!(chain.status, 200, "{}", chain.body);
    }
}

/// Waits until every server of a young cluster is known to understand what this release says.
async fn levelled(handle: &Handle) {
    let deadline = Instant::now() + PATIENCE;
    while handle.reader.current().operation().level() < LEVEL {
        assert!(Instant::now() < deadline, "the level stays");
        tokio::task::yield_now().await;
    }
}

fn sources(of: &[String]) -> Value {
    let sources: Vec<Value> =
        of.iter().map(|name| json!({ "Name": name, "Action": "allow" })).collect();
    json!({ "Kind": "service-intentions", "Name": "db", "Sources": sources })
}

fn names(entry: &Value) -> BTreeSet<String> {
    let listed = entry["Sources"].as_array().into_iter().flatten();
    listed.filter_map(|source| source["Name"].as_str().map(str::to_owned)).collect()
}

/// Whoever writes all that is said about a callee leaves exactly that, or is told that it did not.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn intentions_that_race_leave_what_one_writer_wrote() {
    let cluster = Cluster::start(3).await;
    for handle in &cluster.handles {
        levelled(handle).await;
    }
    let path = "/v1/config/service-intentions/db";
    for round in 0..6_usize {
        let of = |writer: usize| -> Vec<String> {
            (0..3).map(|n| format!("r{round}-w{writer}-{n}")).chain(["shared".into()]).collect()
        };
        let seen = get(&cluster.handles[0], path).await;
        let index = seen.body["ModifyIndex"].as_u64().unwrap_or(0);
        let query = if round % 2 == 0 { String::new() } else { format!("?cas={index}") };
        let write = async |writer: usize| {
            let (handle, query) = (&cluster.handles[writer], format!("/v1/config{query}"));
            call(handle, "PUT", &query, sources(&of(writer))).await
        };
        let (a, b, c) = tokio::join!(write(0), write(1), write(2));
        let replies = [a, b, c];
        assert!(replies.iter().all(|reply| reply.status == 200), "round {round}");
        let taken: Vec<usize> =
            (0..3).filter(|writer| replies[*writer].body == json!(true)).collect();
        let expected = if round % 2 == 0 { 3 } else { 1 };
        assert_eq!(taken.len(), expected, "round {round}: one index, one writer");
        let held = names(&get(&cluster.handles[0], &format!("{path}?consistent")).await.body);
        let is_one = taken.iter().any(|writer| held == of(*writer).into_iter().collect());
        assert!(is_one, "round {round}: {held:?} is a mixture");
    }
    let seen = get(&cluster.handles[0], path).await.body["ModifyIndex"].as_u64().expect("there");
    // Another removes one: what stays is unchanged, and yet the index is another.
    let gone = "/v1/connect/intentions/exact?source=shared&destination=db";
    assert_eq!(call(&cluster.handles[1], "DELETE", gone, Value::Null).await.body, json!(true));
    let stale = format!("/v1/config?cas={seen}");
    let reply = call(&cluster.handles[2], "PUT", &stale, sources(&["late".into()])).await;
    assert_eq!((reply.status, &reply.body), (200, &json!(false)));
    let stale = format!("{path}?cas={seen}");
    assert_eq!(call(&cluster.handles[2], "DELETE", &stale, Value::Null).await.body, json!(false));
}

/// Of an intention and an entry that it needs, whichever comes second is judged by the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn intentions_and_what_they_need_are_checked_together() {
    let cluster = Cluster::start(3).await;
    for handle in &cluster.handles {
        levelled(handle).await;
    }
    let provider = json!({ "Kind": "jwt-provider", "Name": "okta",
                           "JSONWebKeySet": { "Local": { "Filename": "/keys" } } });
    let path = "/v1/config/jwt-provider/okta";
    let asks = json!({ "Kind": "service-intentions", "Name": "db",
        "JWT": { "Providers": [{ "Name": "okta" }] },
        "Sources": [{ "Name": "web", "Action": "allow" }] });
    for round in 0..6_usize {
        let (one, other) = (&cluster.handles[round % 3], &cluster.handles[(round + 1) % 3]);
        assert_eq!(call(one, "PUT", "/v1/config", provider.clone()).await.status, 200);
        let (asked, gone) = tokio::join!(
            call(one, "PUT", "/v1/config", asks.clone()),
            call(other, "DELETE", path, Value::Null),
        );
        let answers = (asked.status, gone.status);
        assert!(matches!(answers, (200, 400) | (400, 200)), "round {round}: {answers:?}");
        let refused = if asked.status == 400 { asked.body } else { gone.body };
        let expected = if answers.0 == 400 {
            "service-intentions/db, source web: JWT.Providers[0].Name: there is no jwt-provider/okta"
        } else {
            "jwt-provider/okta: Name: service-intentions/db, source web asks for its tokens"
        };
        assert!(refused.as_str().is_some_and(|it| it.contains(expected)), "{refused}");
        let all = "/v1/config/service-intentions/db";
        assert_eq!(call(one, "DELETE", all, Value::Null).await.status, 200);
    }
    // A rule for one more caller never misses what is asked of all, whoever writes first.
    assert_eq!(call(&cluster.handles[0], "PUT", "/v1/config", provider).await.status, 200);
    for round in 0..6_usize {
        let exact = format!("/v1/connect/intentions/exact?source=cron{round}&destination=db");
        let (asked, added) = tokio::join!(
            call(&cluster.handles[round % 3], "PUT", "/v1/config", asks.clone()),
            call(&cluster.handles[1], "PUT", &exact, json!({ "Action": "allow" })),
        );
        assert_eq!((asked.status, added.status), (200, 200), "{} {}", asked.body, added.body);
        let held = get(&cluster.handles[1], &format!("{exact}&consistent")).await;
        let is_bare = held.status == 200 && held.body["JWT"].is_null();
        assert!(!is_bare, "round {round}: {}", held.body);
        let all = "/v1/config/service-intentions/db";
        assert_eq!(call(&cluster.handles[0], "DELETE", all, Value::Null).await.status, 200);
    }
}
