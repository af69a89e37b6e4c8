//! Access control, with the real binary: bootstrap, a policy, a token, and what it opens.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::{Net, eventually, get, get_json, hawser, request};

/// Runs `hawser acl …` against `http` as the holder of `token`, and reads what it prints.
fn acl(http: SocketAddr, token: &str, arguments: &[&str]) -> Result<Value, String> {
    let http = http.to_string();
    let ending = ["-format=json", "-http-addr", &http, "-token", token];
    let ran = hawser(&[&["acl"], arguments, &ending].concat());
    if !ran.status.success() {
        return Err(String::from_utf8_lossy(&ran.stderr).into_owned());
    }
    Ok(serde_json::from_slice(&ran.stdout).expect("JSON"))
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().expect(key).to_owned()
}

fn config(tokens: &Value) -> Value {
    json!({ "acl": { "enabled": true, "default_policy": "deny", "tokens": tokens } })
}

#[test]
fn a_token_opens_what_its_policy_says_and_nothing_else() {
    let net = Net::new();
    let mut server = net.server(1, 1, config(&json!({})));
    let (http, agent) = (net.http(1), net.http(2));
    eventually("the server to be ready", || get_json(http, "/v1/hawser/ready"));
    let first = eventually("a first token", || acl(http, "", &["bootstrap"]).ok());
    let root = text(&first, "SecretID");
    let again = acl(http, "", &["bootstrap"]).expect_err("it works once");
    assert!(again.contains("bootstrap no longer allowed"), "{again}");

    let rules = "service \"web\" { policy = \"write\" } node_prefix \"\" { policy = \"read\" }";
    acl(http, &root, &["policy", "create", "-name=web", "-rules", rules]).expect("a policy");
    let made = acl(http, &root, &["token", "create", "-policy-name=web", "-description=of web"]);
    let made = made.expect("a token");
    let (web, accessor) = (text(&made, "SecretID"), text(&made, "AccessorID"));
    let own = acl(http, &web, &["token", "read", "-self"]).expect("its own");
    assert_eq!(text(&own, "AccessorID"), accessor);
    let refused = acl(http, &web, &["token", "list"]).expect_err("others' tokens");
    assert!(refused.contains("lacks permission 'acl:read'"), "{refused}");

    // A host joins with a token that only who may write tokens can make.
    let refused = request(http, "PUT", "/v1/hawser/join-token", Some(&json!({ "Node": "n2" })));
    assert_eq!(refused.expect("an answer").status, 403);
    let address = http.to_string();
    let line = ["join-token", "-node=n2", "-http-addr", &address, "-token", &root];
    let token = hawser(&line);
    assert!(token.status.success(), "{token:?}");
    let file = net.folder().join("token-2");
    std::fs::write(&file, &token.stdout).expect("written");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, mode).expect("restricted");
    let _agent = net.agent(2, 1, config(&json!({})));
    eventually("the agent to serve", || get_json(agent, "/v1/hawser/ready"));

    let register = |name: &str, token: &str| {
        let path = format!("/v1/agent/service/register?token={token}");
        let body = json!({ "Name": name, "Port": 80 });
        eventually("an answer", || request(agent, "PUT", &path, Some(&body))).status
    };
    assert_eq!(register("web", ""), 403, "who shows nothing may nothing");
    assert_eq!(register("web", "no-such-token"), 403);
    assert_eq!(register("db", &web), 403, "another's service");
    // However the body names it: what is declared is what is asked about.
    for body in [
        json!({ "Service": "db", "Port": 80 }),
        json!({ "name": "db", "id": "web" }),
        json!({ "Name": "web", "ID": "db", "Check": { "TTL": "10s" } }),
    ] {
        let reply = request(agent, "PUT", "/v1/agent/service/register", Some(&body));
        assert_eq!(reply.expect("an answer").status, 403, "{body}");
    }
    let check = json!({ "Name": "whole host", "TTL": "10s" });
    let path = format!("/v1/agent/check/register?token={web}");
    let refused = request(agent, "PUT", &path, Some(&check)).expect("an answer");
    assert_eq!(refused.status, 403, "a check of the node needs the node");
    assert_eq!(register("web", &web), 200);
    assert_eq!(register("db", &root), 200);
    let stolen = json!({ "Name": "web", "ID": "db" });
    let path = format!("/v1/agent/service/register?token={web}");
    let refused = request(agent, "PUT", &path, Some(&stolen)).expect("an answer");
    assert_eq!(refused.status, 403, "the id is of another's service");
    let path = format!("/v1/agent/service/deregister/db?token={web}");
    assert_eq!(request(agent, "PUT", &path, None).expect("an answer").status, 403);
    // The agent brings both to the catalog by its own certificate.
    let services = |http: SocketAddr, token: &str| {
        let path = format!("/v1/catalog/services?token={token}");
        get_json(http, &path).map(|all| all.as_object().expect("a map").len())
    };
    eventually("all services", || services(agent, &root).filter(|count| *count == 3));
    assert_eq!(services(agent, &web), Some(1), "web alone");
    assert_eq!(services(http, ""), Some(0));
    let listed = |token: &str| {
        let all = get_json(agent, &format!("/v1/agent/services?token={token}")).expect("a list");
        all.as_object().expect("a map").keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(listed(&web), ["web"]);
    assert_eq!(listed(""), Vec::<String>::new());
    let self_path = format!("/v1/agent/self?token={web}");
    assert_eq!(get(agent, &self_path).expect("an answer").status, 403, "needs agent:read");
    let hidden = get(http, &format!("/v1/health/service/db?token={web}")).expect("an answer");
    assert_eq!((hidden.status, hidden.body.as_str()), (200, "[]"));

    // Without servers, who was known stays known, and nobody else becomes so.
    server.kill();
    assert_eq!(register("web", &web), 200);
    assert_eq!(register("web", "never-seen"), 403);
    server.restart();
    eventually("the server to be back", || services(http, &root));
    acl(http, &root, &["token", "list"]).expect("tokens outlive a restart");
    let log = server.log();
    assert!(log.contains("audit") && log.contains("acl/policy"), "writes are noted: {log}");
    for secret in [&root, &web] {
        assert!(!log.contains(secret.as_str()), "no secret is logged");
    }
}
