//! Keys, sessions and transactions: what Consul's clients see of them.

use hawser_server::Handle;
use serde_json::{Value, json};

use super::{Cluster, PATIENCE, Reply, call, get, send};

/// Whether `found` says all that `expected` does: objects may say more.
fn says(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => expected
            .iter()
            .all(|(key, value)| found.get(key).is_some_and(|found| says(found, value))),
        (Value::Array(found), Value::Array(expected)) => {
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| says(a, b))
        }
        _ => found == expected,
    }
}

/// A request and what must come of it.
type Step<'a> = (&'a str, &'a str, &'a str, u16, Value);

async fn walk(server: &Handle, steps: &[Step<'_>]) {
    for (method, path, body, status, expected) in steps {
        let reply = send(server, method, path, (*body).to_owned().into()).await;
        let Reply { status: found, body: said, .. } = &reply;
        assert_eq!(found, status, "{method} {path} {body}: {said}");
        assert!(says(said, expected), "{method} {path} {body}: {said} is not {expected}");
    }
}

async fn host(server: &Handle) {
    let node = json!({
        "Node": "n1", "Address": "10.0.0.1",
        "Check": [{ "CheckID": "up", "Status": "passing" }],
    });
    assert_eq!(call(server, "PUT", "/v1/catalog/register", node).await.body, json!(true));
}

async fn session(server: &Handle, body: Value) -> String {
    let made = call(server, "PUT", "/v1/session/create", body).await;
    made.body["ID"].as_str().unwrap_or_else(|| panic!("no session: {}", made.body)).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_answer_as_consuls_do() {
    let cluster = Cluster::start(1).await;
    let server = &cluster.handles[0];
    let (yes, no, nothing) = (json!(true), json!(false), json!(""));
    let item = json!([{ "Key": "app/a b", "Value": "AXg=", "Flags": 18446744073709551615_u64, "LockIndex": 0 }]);
    walk(
        server,
        &[
            ("GET", "/v1/kv/app/a%20b", "", 404, nothing.clone()),
            ("GET", "/v1/kv/app?recurse", "", 404, nothing.clone()),
            ("GET", "/v1/kv/?keys", "", 404, nothing.clone()),
            ("PUT", "/v1/kv/app/a%20b?flags=18446744073709551615", "\u{1}x", 200, yes.clone()),
            ("GET", "/v1/kv/app/a%20b", "", 200, item.clone()),
            ("GET", "/v1/kv/app%2Fa%20b", "", 200, item),
            ("GET", "/v1/kv/app/a%20b?raw", "", 200, json!("\u{1}x")),
            ("PUT", "/v1/kv/app/empty", "", 200, yes.clone()),
            ("GET", "/v1/kv/app/empty", "", 200, json!([{ "Value": null, "Flags": 0 }])),
            ("PUT", "/v1/kv/app/empty?cas=0", "1", 200, no.clone()),
            ("PUT", "/v1/kv/app/new?cas=0", "1", 200, yes.clone()),
            ("PUT", "/v1/kv/app//sub/", "", 200, yes.clone()),
            ("PUT", "/v1/kv/b", "", 200, yes.clone()),
            ("GET", "/v1/kv/?keys&separator=/", "", 200, json!(["app/", "b"])),
            (
                "GET",
                "/v1/kv/app/?keys&seperator=/",
                "",
                200,
                json!(["app//", "app/a b", "app/empty", "app/new"]),
            ),
            (
                "GET",
                "/v1/kv/ap?keys",
                "",
                200,
                json!(["app//sub/", "app/a b", "app/empty", "app/new"]),
            ),
            ("GET", "/v1/kv/app/e?recurse", "", 200, json!([{ "Key": "app/empty" }])),
            ("DELETE", "/v1/kv/app/new?cas=1", "", 200, no),
            ("DELETE", "/v1/kv/none?cas=1", "", 200, yes.clone()),
            ("DELETE", "/v1/kv/app/?recurse", "", 200, yes.clone()),
            ("DELETE", "/v1/kv/app/?recurse", "", 200, yes),
            ("GET", "/v1/kv/?keys", "", 200, json!(["b"])),
        ],
    )
    .await;
    for (method, path, body, status, text) in [
        ("GET", "/v1/kv/", "", 400, "Missing key name"),
        ("PUT", "/v1/kv/", "x", 400, "Missing key name"),
        ("PUT", "/v1/kv/a?cas=0&acquire=s", "", 400, "Conflicting flags: cas, acquire"),
        ("DELETE", "/v1/kv/a?recurse&cas=1", "", 400, "Conflicting flags: recurse, cas"),
        ("PUT", "/v1/kv/a?flags=x", "", 400, "?flags"),
        ("PUT", "/v1/kv/a?cas=-1", "", 400, "?cas"),
        ("PUT", "/v1/kv/a?acquire=none", "", 500, "invalid session \"none\""),
        ("PUT", "/v1/kv/a?acquire=", "", 400, "?acquire"),
        ("PUT", "/v1/kv/a", &"x".repeat(512 * 1024 + 1), 413, "max size: 524288"),
        ("PUT", &format!("/v1/kv/{}", "x".repeat(513)), "", 400, "512"),
        ("POST", "/v1/kv/a", "", 405, "not allowed"),
    ] {
        let reply = send(server, method, path, body.to_owned().into()).await;
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.body);
        assert!(reply.body.to_string().replace('\\', "").contains(text), "{path}: {}", reply.body);
    }
    let largest = send(server, "PUT", "/v1/kv/a", "x".repeat(512 * 1024).into()).await;
    assert_eq!((largest.status, &largest.body), (200, &json!(true)));
    let raw = get(server, "/v1/kv/a?raw").await;
    assert_eq!(raw.header("content-security-policy"), "sandbox");
    assert_eq!(raw.header("content-type"), "text/plain; charset=utf-8");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_of_a_prefix_wakes_when_a_key_below_it_goes() {
    let cluster = Cluster::start(1).await;
    let server = cluster.handles[0].clone();
    let missing = get(&server, "/v1/kv/app/a").await;
    assert!(missing.index() > 0, "also without a key");
    for key in ["app/a", "app/b", "other"] {
        send(&server, "PUT", &format!("/v1/kv/{key}"), "x".into()).await;
    }
    let first = get(&server, "/v1/kv/app?recurse").await;
    let wait = |path: String| {
        let server = server.clone();
        tokio::spawn(async move { get(&server, &path).await })
    };
    let tree = wait(format!("/v1/kv/app?recurse&index={}", first.index()));
    let key = wait(format!("/v1/kv/app/a?index={}", get(&server, "/v1/kv/app/a").await.index()));
    send(&server, "PUT", "/v1/kv/other", "y".into()).await;
    send(&server, "PUT", "/v1/kv/app/b", "x".into()).await;
    assert!(!tree.is_finished(), "another key is nothing to it, nor an equal value");
    send(&server, "DELETE", "/v1/kv/app/b", "".into()).await;
    let woken = tokio::time::timeout(PATIENCE, tree).await.expect("it wakes").expect("it ran");
    assert!(woken.index() > first.index());
    assert!(says(&woken.body, &json!([{ "Key": "app/a" }])), "{}", woken.body);
    assert!(!key.is_finished(), "a key wakes for itself alone");
    send(&server, "DELETE", "/v1/kv/app?recurse", "".into()).await;
    let woken = tokio::time::timeout(PATIENCE, key).await.expect("it wakes").expect("it ran");
    assert_eq!((woken.status, woken.body), (404, json!("")));
    let gone = get(&server, "/v1/kv/app?recurse").await;
    assert_eq!(gone.status, 404);
    assert!(gone.index() > first.index(), "an index never goes back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_hold_locks_and_end_with_what_they_stand_on() {
    let cluster = Cluster::start(1).await;
    let server = &cluster.handles[0];
    host(server).await;
    let holder = session(
        server,
        json!({ "Node": "n1", "NodeChecks": ["up"], "LockDelay": "0s", "Name": "deploy", "ttl": "15s" }),
    )
    .await;
    let deleter = session(
        server,
        json!({ "Node": "n1", "Checks": [], "LockDelay": 20, "Behavior": "delete" }),
    )
    .await;
    let shown = json!([{
        "ID": holder, "Name": "deploy", "Node": "n1", "LockDelay": 0, "Behavior": "release",
        "TTL": "15s", "NodeChecks": ["up"], "ServiceChecks": null,
    }]);
    let held = json!([{ "Key": "lock", "Session": holder, "LockIndex": 1 }]);
    let freed = json!([{ "Key": "lock", "LockIndex": 1 }]);
    let (yes, no) = (json!(true), json!(false));
    let by = |verb: &str, session: &str| format!("/v1/kv/lock?{verb}={session}");
    let critical = json!({
        "Node": "n1", "Address": "10.0.0.1", "Check": { "CheckID": "up", "Status": "critical" },
    });
    walk(
        server,
        &[
            ("GET", &format!("/v1/session/info/{holder}"), "", 200, shown.clone()),
            ("PUT", &format!("/v1/session/renew/{holder}"), "", 200, shown),
            ("GET", "/v1/session/node/n1", "", 200, json!([{}, {}])),
            ("GET", "/v1/session/node/none", "", 200, json!([])),
            ("GET", "/v1/session/list", "", 200, json!([{}, {}])),
            ("PUT", &by("release", &holder), "", 200, no.clone()),
            ("PUT", &by("acquire", &holder), "me", 200, yes.clone()),
            ("PUT", &by("acquire", &deleter), "me", 200, no.clone()),
            ("GET", "/v1/kv/lock", "", 200, held.clone()),
            ("PUT", "/v1/kv/lock", "other", 200, yes.clone()),
            ("GET", "/v1/kv/lock", "", 200, held),
            ("PUT", "/v1/catalog/register", &critical.to_string(), 200, yes.clone()),
            ("GET", &format!("/v1/session/info/{holder}"), "", 200, json!([])),
            ("GET", "/v1/kv/lock", "", 200, freed),
            (
                "PUT",
                &format!("/v1/session/renew/{holder}"),
                "",
                404,
                json!(format!("Session id '{holder}' not found")),
            ),
            ("PUT", &by("acquire", &deleter), "me", 200, yes.clone()),
            ("PUT", &format!("/v1/session/destroy/{deleter}"), "", 200, yes.clone()),
            ("PUT", &format!("/v1/session/destroy/{deleter}"), "", 200, yes),
            ("GET", "/v1/kv/lock", "", 404, json!("")),
        ],
    )
    .await;
    let late = session(server, json!({ "Node": "n1", "NodeChecks": [] })).await;
    walk(server, &[("PUT", &by("acquire", &late), "", 200, no)]).await;
    for (body, status, text) in [
        (json!({ "Node": "n1" }), 500, "Missing check 'serfHealth' registration"),
        (json!({ "Node": "n1", "NodeChecks": ["up"] }), 500, "Check 'up' is in critical state"),
        (json!({ "Node": "none" }), 500, "Missing node registration"),
        (json!({ "NodeChecks": [] }), 400, "Node"),
        (json!({ "Node": "n1", "TTL": "9s" }), 400, "must be between [10s=24h0m0s]"),
        (json!({ "Node": "n1", "TTL": "25h" }), 400, "Invalid Session TTL"),
        (json!({ "Node": "n1", "TTL": "soon" }), 400, "TTL"),
        (json!({ "Node": "n1", "Behavior": "keep" }), 400, "Invalid Behavior setting 'keep'"),
        (json!({ "Node": "n1", "Tty": "10s" }), 400, "Tty"),
    ] {
        let reply = call(server, "PUT", "/v1/session/create", body.clone()).await;
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
        assert!(reply.body.to_string().contains(text), "{body}: {}", reply.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_happens_as_a_whole_through_any_server() {
    let cluster = Cluster::start(3).await;
    for (number, server) in cluster.handles.iter().enumerate() {
        let key = format!("t/{number}");
        let set = json!([
            { "KV": { "Verb": "set", "Key": key, "Value": "eA==", "Flags": 7 } },
            { "KV": { "Verb": "get-tree", "Key": key } },
            { "Node": { "Verb": "set", "Node": { "Node": key.replace('/', "-"), "Address": "10.0.0.2" } } },
            { "Service": { "Verb": "set", "Node": key.replace('/', "-"), "Service": { "ID": "w", "Service": "web", "Port": 1 } } },
            { "Check": { "Verb": "set", "Check": { "Node": key.replace('/', "-"), "CheckID": "c", "ServiceID": "w", "Status": "passing" } } },
        ]);
        let done = call(server, "PUT", "/v1/txn", set).await;
        assert_eq!(done.status, 200, "{}", done.body);
        let expected = json!({ "Results": [
            { "KV": { "Key": key, "Value": null, "Flags": 7 } },
            { "KV": { "Key": key, "Value": "eA==" } },
            { "Node": { "Address": "10.0.0.2" } },
            { "Service": { "ID": "w", "Port": 1 } },
            { "Check": { "CheckID": "c", "ServiceName": "web" } },
        ], "Errors": null });
        assert!(says(&done.body, &expected), "{}", done.body);
        let failing = json!([
            { "KV": { "Verb": "delete", "Key": key } },
            { "KV": { "Verb": "check-index", "Key": "none", "Index": 1 } },
            { "KV": { "Verb": "check-not-exists", "Key": "none" } },
        ]);
        let failed = call(server, "PUT", "/v1/txn", failing).await;
        let errors = json!([{ "OpIndex": 1, "What": "key \"none\" doesn't exist" }]);
        assert_eq!(
            (failed.status, &failed.body),
            (409, &json!({ "Results": null, "Errors": errors }))
        );
        let read = json!([{ "KV": { "Verb": "get", "Key": key } }, { "KV": { "Verb": "get-or-empty", "Key": "none" } }]);
        let read = call(server, "PUT", "/v1/txn", read).await;
        let expected = json!({ "Results": [
            { "KV": { "Key": key, "Value": "eA==" } },
            { "KV": { "Key": "none", "Value": null, "ModifyIndex": 0 } },
        ] });
        assert!(says(&read.body, &expected), "nothing was deleted: {}", read.body);
    }
    let many = vec![json!({ "KV": { "Verb": "get-or-empty", "Key": "a" } }); 129];
    for (body, text) in [
        (json!({}), "must be a list"),
        (json!([{}]), "[0]: must be one of"),
        (json!([{ "KV": { "Verb": "put", "Key": "a" } }]), "no verb here"),
        (json!([{ "KV": { "Verb": "set" } }]), "[0].KV.Key"),
        (json!([{ "KV": { "Verb": "lock", "Key": "a" } }]), "[0].KV.Session"),
        (json!([{ "KV": { "Verb": "set", "Key": "a", "Value": "*" } }]), "[0].KV.Value: no base64"),
        (
            json!([{ "Check": { "Verb": "get", "Check": { "CheckID": "a" } } }]),
            "[0].Check.Check.Node",
        ),
        (json!(many), "too many operations (129 > 128)"),
    ] {
        let reply = call(&cluster.handles[0], "PUT", "/v1/txn", body.clone()).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.body);
        assert!(reply.body.to_string().replace('\\', "").contains(text), "{body}: {}", reply.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_listed_by_every_server_and_wakes_those_who_wait() {
    let cluster = Cluster::start(3).await;
    let [first, second, _] = &cluster.handles[..] else { panic!("three") };
    let none = get(second, "/v1/event/list?name=deploy").await;
    assert_eq!((none.status, &none.body), (200, &json!([])));
    let waiting = {
        let (server, path) =
            (second.clone(), format!("/v1/event/list?name=deploy&index={}", none.index()));
        tokio::spawn(async move { get(&server, &path).await })
    };
    let other = send(first, "PUT", "/v1/event/fire/other", "".into()).await;
    assert!(says(&other.body, &json!({ "Name": "other", "Payload": null, "Version": 1 })));
    let path = "/v1/event/fire/deploy?node=%5En&service=web&tag=v1";
    let fired = send(first, "PUT", path, "1609030".into()).await;
    let expected = json!({
        "ID": fired.body["ID"], "Name": "deploy", "Payload": "MTYwOTAzMA==",
        "NodeFilter": "^n", "ServiceFilter": "web", "TagFilter": "v1",
    });
    assert!(says(&fired.body, &expected), "{}", fired.body);
    let woken = tokio::time::timeout(PATIENCE, waiting).await.expect("it wakes").expect("it ran");
    assert!(says(&woken.body, &json!([expected])), "{}", woken.body);
    assert_eq!(woken.body[0]["LTime"], woken.index());
    let large = send(first, "PUT", "/v1/event/fire/a", "x".repeat(513).into()).await;
    assert_eq!(large.status, 413);
    let lone = send(first, "PUT", "/v1/event/fire/a?tag=v1", "".into()).await;
    assert_eq!(lone.status, 400, "{}", lone.body);
    let coordinates = get(first, "/v1/coordinate/datacenters").await;
    let nowhere = json!([{ "Datacenter": "dc1", "AreaID": "wan", "Coordinates": [] }]);
    assert_eq!(coordinates.body, nowhere);
    assert_eq!(get(first, "/v1/coordinate/nodes").await.body, json!([]));
    assert_eq!(get(first, "/v1/coordinate/node/n1").await.status, 404);
}
