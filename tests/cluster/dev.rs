//! `hawser dev`, as the README says.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use crate::harness::{Net, eventually, get, get_json, hawser, request};

struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody listens on, and that the system gives nobody else for a while.
fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    listener.local_addr().expect("an address").port().to_string()
}

/// A free port whose twin for a second cluster, 1000 above, is free too.
fn free_pair() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let twin = |port: u16| port.checked_add(1_000).filter(|twin| is_free(*twin));
    let drawn = (0..100).filter_map(|_| free_port().parse::<u16>().ok());
    drawn.into_iter().find(|port| twin(*port).is_some()).expect("a pair of free ports")
}

/// Calls until `expected` answers. Whoever answers until then: no call may fail.
fn served_until(upstream: SocketAddr, expected: &str) {
    eventually(expected, || {
        let reply = get(upstream, "/").expect("an answer");
        assert_eq!(reply.status, 200, "on the way to {expected:?}: {reply:?}");
        (reply.body == expected).then_some(())
    });
}

#[test]
fn a_service_that_stops_in_one_cluster_is_served_by_the_other() {
    let net = Net::new();
    let names = ["--http-port", "--dns-port", "--server-port", "--upstream-port", "--mesh-port"];
    let ports: Vec<(&str, u16)> =
        names.into_iter().chain(["--gateway-port"]).map(|name| (name, free_pair())).collect();
    let child = Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args(["dev", "--clusters", "2", "--data-dir"])
        .arg(net.folder().join("dev"))
        .args(ports.iter().flat_map(|(name, port)| [(*name).to_owned(), port.to_string()]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let _dev = Dev(child);
    let (http, upstream) = (at(ports[0].1), at(ports[3].1));
    eventually("dc1 to answer", || get(upstream, "/").filter(|reply| reply.body == "api, dc1\n"));
    for (http, peer) in [(http, "dc2"), (at(ports[0].1 + 1_000), "dc1")] {
        let path = format!("/v1/health/service/api?passing&peer={peer}");
        eventually("what the peer exports", || {
            get_json(http, &path)?.as_array().filter(|list| list.len() == 1).map(|_| ())
        });
    }
    let listed = hawser(&["peering", "list", "-http-addr", &http.to_string()]);
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("dc2") && listed.contains("ACTIVE"), "{listed}");

    let maintain = |enable: bool| {
        let path = format!("/v1/agent/service/maintenance/api-1?enable={enable}");
        let reply = request(http, "PUT", &path, None).expect("an answer");
        assert_eq!(reply.status, 200, "{reply:?}");
    };
    maintain(true);
    served_until(upstream, "api, dc2\n");
    maintain(false);
    served_until(upstream, "api, dc1\n");
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn dev_has_something_to_curl() {
    let net = Net::new();
    let ports: Vec<String> = (0..5).map(|_| free_port()).collect();
    let child = Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args([
            "dev",
            "--http-port",
            &ports[0],
            "--dns-port",
            &ports[1],
            "--server-port",
            &ports[2],
        ])
        .args(["--upstream-port", &ports[3], "--mesh-port", &ports[4], "--data-dir"])
        .arg(net.folder().join("dev"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let _dev = Dev(child);
    let at =
        |port: &str| -> SocketAddr { format!("127.0.0.1:{port}").parse().expect("an address") };
    let (http, upstream) = (at(&ports[0]), at(&ports[3]));
    eventually("the mesh to be ready", || get_json(http, "/v1/hawser/ready"));
    let reply =
        eventually("web to reach api", || get(upstream, "/").filter(|reply| reply.status == 200));
    assert!(reply.body.starts_with("api, instance "), "{reply:?}");
    let mut seen = std::collections::BTreeSet::new();
    eventually("all three instances to take part", || {
        seen.extend(get(upstream, "/").map(|reply| reply.body));
        (seen.len() == 3).then_some(())
    });

    let address = http.to_string();
    let denied = hawser(&["intention", "create", "-deny", "-http-addr", &address, "web", "api"]);
    assert!(denied.status.success(), "{denied:?}");
    eventually("the call to be denied", || get(upstream, "/").filter(|reply| reply.status == 403));
    let path = "/v1/connect/intentions/exact?source=web&destination=api";
    assert_eq!(request(http, "DELETE", path, Some(&json!({}))).expect("an answer").status, 200);
    eventually("the call to be allowed", || get(upstream, "/").filter(|reply| reply.status == 200));
    let map = eventually("the map to show the call", || {
        let map = hawser(&["map", "-http-addr", &address]);
        let text = String::from_utf8_lossy(&map.stdout).into_owned();
        (map.status.success() && text.contains("api")).then_some(text)
    });
    assert!(map.contains("web"), "{map}");
}

/// As the test suites of Consul's Python and Go clients start a server for themselves.
#[test]
fn a_clients_own_tests_can_start_a_server() {
    let net = Net::new();
    let http = net.http(1);
    let local = json!({
        "ports": { "http": 8500, "https": -1, "dns": 8600, "grpc_tls": -1, "server": 8300 },
        "bind_addr": net.address(1),
        "performance": { "raft_multiplier": 1 },
        "enable_script_checks": true,
        "acl": { "enabled": true, "tokens": { "initial_management": "secret" } },
    });
    let child = Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args(["agent", "-dev", "-log-level", "warn", "-node=test"])
        .arg(format!("-client={}", net.address(1)))
        .env("CONSUL_LOCAL_CONFIG", local.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let _dev = Dev(child);
    eventually("a leader", || {
        let leader = get_json(http, "/v1/status/leader")?;
        leader.as_str().filter(|leader| !leader.is_empty()).map(str::to_owned)
    });
    eventually("the servers' own service", || {
        (get_json(http, "/v1/catalog/services")? == json!({ "consul": [] })).then_some(())
    });
    let script = json!({ "name": "s1", "tags": ["a"],
                         "check": { "args": ["/bin/true"], "interval": "1s" } });
    let register = "/v1/agent/service/register";
    let reply = request(http, "PUT", register, Some(&script)).expect("an answer");
    assert_eq!(reply.status, 200, "{reply:?}");
    eventually("the script to pass", || {
        let passing = get_json(http, "/v1/health/service/s1?passing")?;
        passing.as_array().filter(|list| list.len() == 1).map(|_| ())
    });
    let services = get_json(http, "/v1/catalog/services").expect("services");
    assert_eq!(services, json!({ "consul": [], "s1": ["a"] }));
    let own = get_json(http, "/v1/agent/services").expect("services");
    assert!(own.get("consul").is_none() && own.get("s1").is_some(), "{own}");
    let nodes = get_json(http, "/v1/catalog/nodes").expect("nodes");
    assert_eq!(nodes.as_array().map(Vec::len), Some(1), "{nodes}");
}

#[test]
fn a_key_that_nobody_has_is_told_with_its_file() {
    let net = Net::new();
    let file = net.folder().join("odd.json");
    std::fs::write(&file, r#"{"prts": {"http": 1}}"#).expect("written");
    let path = file.to_str().expect("a path");
    for arguments in [vec!["agent", "-dev", "-config-file", path], vec!["validate", path]] {
        let refused = hawser(&arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("odd.json: prts"), "{said}");
    }
}
