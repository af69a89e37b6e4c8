//! Rates that hold for all instances of a service, and what one host may ask of a server.

use serde_json::json;

use crate::data::{http_application, mesh, set_intention, upstream};
use crate::harness::{Net, Reply, eventually, get, request};

/// Writes a config entry, once the cluster's level has risen to what it needs.
fn write(net: &Net, entry: &serde_json::Value) {
    eventually("the entry to be taken", || {
        request(net.http(1), "PUT", "/v1/config", Some(entry)).filter(|reply| reply.status == 200)
    });
}

#[test]
fn a_global_rate_is_leased_from_the_servers_and_counts_requests() {
    let net = Net::new();
    let _mesh = mesh(&net, "http", http_application("hello"));
    set_intention(&net, "allow");
    write(
        &net,
        &json!({ "Kind": "service-defaults", "Name": "api", "Protocol": "http", "RateLimits": {
            "Global": { "RequestsPerSecond": 1, "RequestsMaxBurst": 3 },
        } }),
    );
    let limited = eventually("a request to be too much", || {
        get(upstream(&net), "/").filter(|reply| reply.status == 429)
    });
    assert!(limited.head.contains("global_rate_limited"), "{limited:?}");
    assert!(limited.head.contains("retry-after: 1"), "{limited:?}");
    let leased = |reply: &Reply| {
        reply.body.contains(r#"hawser_agent_rate_shares{share="leased"} 1"#)
            && reply.body.contains(r#"hawser_agent_rate_shares{share="fair"} 0"#)
    };
    eventually("a share to be leased", || get(net.http(2), "/metrics").filter(leased));
    eventually("requests to pass at their rate", || {
        get(upstream(&net), "/").filter(|reply| reply.status == 200)
    });
}

#[test]
fn what_a_host_asks_of_a_server_is_limited_as_an_entry_says() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({}));
    let put = |key: &str| {
        let path = format!("/v1/kv/{key}");
        request(net.http(1), "PUT", &path, Some(&json!(1))).expect("an answer")
    };
    eventually("a first write", || {
        request(net.http(1), "PUT", "/v1/kv/a", Some(&json!(1))).filter(|reply| reply.status == 200)
    });
    let entry = |mode: &str| {
        json!({ "Kind": "control-plane-request-limit", "Name": "hosts", "Mode": mode,
            "KV": { "WriteRate": 0.001 } })
    };
    write(&net, &entry("permissive"));
    for n in 0..5 {
        assert_eq!(put(&format!("b{n}")).status, 200, "counted, and let through");
    }
    write(&net, &entry("enforcing"));
    let refused =
        eventually("a write to be too much", || Some(put("c")).filter(|reply| reply.status == 429));
    assert!(refused.head.contains("retry-after: "), "{refused:?}");
    assert!(refused.body.contains("rate limit exceeded"), "{refused:?}");
    assert!(refused.body.contains("control-plane-request-limit/hosts"), "{refused:?}");
    assert_eq!(get(net.http(1), "/v1/kv/a").expect("an answer").status, 200, "reads are not");
    let metrics = get(net.http(1), "/metrics").expect("an answer").body;
    for mode in ["permissive", "enforcing"] {
        let row =
            format!(r#"hawser_server_requests_limited_total{{access="write",mode="{mode}"}}"#);
        assert!(metrics.contains(&row), "{row}: {metrics}");
    }
    write(&net, &entry("disabled"));
    eventually("writes to pass", || Some(put("d")).filter(|reply| reply.status == 200));
    let entry = json!({ "Kind": "control-plane-request-limit", "Name": "x", "Mode": "enforcing" });
    let refused = request(net.http(1), "PUT", "/v1/config", Some(&entry)).expect("an answer");
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.body.contains("control-plane-request-limit/x: ReadRate"), "{refused:?}");
}
