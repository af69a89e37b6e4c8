//! Bad configuration gets an error that names the key and the fix; bad requests stop nothing.

use serde_json::json;

use crate::harness::{Net, eventually, get, get_json, hawser, request};

#[test]
fn a_bad_configuration_is_refused_by_key() {
    let net = Net::new();
    let key = net.operator_key();
    let key = key.to_str().expect("a path in UTF-8");
    let open = net.folder().join("open.key");
    std::fs::copy(key, &open).expect("copied");
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&open, mode).expect("opened up");
    }
    let open = open.to_str().expect("a path in UTF-8");
    let base = format!(
        "node_name = \"n1\"\nadvertise_addr = \"127.0.0.1\"\ndata_dir = \"{}\"\n",
        net.folder().join("data").display()
    );
    let server = format!("{base}operator_key_file = \"{key}\"\n");
    let cases = [
        // part, file, what the error must say
        ("server", format!("{server}nod_name = \"x\"\n"), "nod_name"),
        ("server", format!("{base}operator_key_file = \"/nowhere\"\n"), "/nowhere"),
        ("server", format!("{base}operator_key_file = \"{open}\"\n"), "chmod 600"),
        ("server", base.clone(), "operator_key_file"),
        ("server", format!("{server}bootstrap_expect = 2\n"), "bootstrap_expect"),
        ("server", format!("{server}default_intention_policy = \"maybe\"\n"), "maybe"),
        ("server", format!("{server}leaf_cert_ttl = \"1s\"\n"), "leaf_cert_ttl"),
        ("server", format!("{server}datacenter = \"DC 1\"\n"), "datacenter"),
        ("server", format!("{server}ports {{ http = 70000 }}\n"), "ports.http"),
        ("server", format!("{server}raft {{ heartbeat_ms = 5000 }}\n"), "heartbeat_ms"),
        ("server", format!("{server}recursors = [\"dns.example\"]\n"), "recursors"),
        ("server", format!("{server}log_level = \"loud\"\n"), "log_level"),
        ("server", format!("{server}service {{ name = \"*\" }}\n"), "*"),
        ("server", format!("{server}service {{\n name = \"web\"\n prt = 1\n}}\n"), "prt"),
        ("server", format!("{server}service {{ name = \"web\"\n"), "n1.hcl"),
        ("agent", base.clone(), "retry_join"),
        ("agent", format!("{base}retry_join = [\"x\"]\njoin_token_file = \"/no\"\n"), "/no"),
        ("agent", format!("{base}retry_join = [\"127.0.0.1\"]\n"), "join_token_file"),
    ];
    for (part, text, expected) in cases {
        let file = net.folder().join("n1.hcl");
        std::fs::write(&file, &text).expect("written");
        let refused = hawser(&[part, "--config-file", file.to_str().expect("UTF-8")]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{text} was accepted");
        assert!(said.contains(expected), "{text}: {said:?} does not say {expected:?}");
    }
}

#[test]
fn a_bad_request_is_refused_by_field_and_stops_nothing() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({}));
    let http = net.http(1);
    eventually("the server to be ready", || get_json(http, "/v1/hawser/ready"));
    let cases = [
        // method, path, body, status, what the error must say
        ("PUT", "/v1/agent/service/register", json!({"Name": "*"}), 400, "*"),
        ("PUT", "/v1/agent/service/register", json!({"Nam": "web"}), 400, "Nam"),
        ("PUT", "/v1/agent/service/register", json!({"Name": "web", "Port": 70000}), 400, "Port"),
        ("PUT", "/v1/agent/service/register", json!([]), 400, ""),
        ("PUT", "/v1/agent/check/pass/none", json!({}), 404, "none"),
        ("PUT", "/v1/connect/intentions/exact?source=web", json!({"Action": "allow"}), 400, ""),
        (
            "PUT",
            "/v1/connect/intentions/exact?source=web&destination=db",
            json!({"Action": "perhaps"}),
            400,
            "perhaps",
        ),
        ("PUT", "/v1/config", json!({"Kind": "service-default", "Name": "x"}), 400, "kind"),
        (
            "PUT",
            "/v1/config",
            json!({"Kind": "service-defaults", "Name": "x", "Protocol": "htp"}),
            400,
            "Protocol",
        ),
        ("PUT", "/v1/hawser/join-token", json!({"Node": "a/b"}), 400, "Node"),
        ("PUT", "/v1/hawser/join-token", json!({"Node": "a", "TTL": "1y"}), 400, "TTL"),
        ("GET", "/v1/health/service/web?index=x", json!(null), 400, "index"),
        ("GET", "/v1/health/service/web?stale&consistent", json!(null), 400, "consistent"),
        ("GET", "/v1/nowhere", json!(null), 404, ""),
        ("POST", "/v1/catalog/nodes", json!({}), 405, ""),
    ];
    for (method, path, body, status, expected) in cases {
        let body = (!body.is_null()).then_some(&body);
        let reply = request(http, method, path, body).expect("an answer");
        assert_eq!(reply.status, status, "{method} {path} {body:?}: {reply:?}");
        assert!(reply.body.contains(expected), "{path}: {:?} lacks {expected:?}", reply.body);
    }
    let deep = "[".repeat(100_000);
    let huge = format!("{{\"Name\":\"{}\"}}", "x".repeat(4 << 20));
    for body in [deep, huge] {
        let reply = request(
            http,
            "PUT",
            "/v1/agent/service/register",
            Some(&serde_json::Value::String(body)),
        );
        if let Some(reply) = reply {
            assert!((400..500).contains(&reply.status), "{reply:?}");
        }
    }
    assert_eq!(get(http, "/v1/status/leader").expect("an answer").status, 200);
}
