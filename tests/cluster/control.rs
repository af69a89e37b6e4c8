//! The control plane: election, forwarding, loss of servers, joining.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Net, Process, eventually, get, get_json, request};

/// Three servers that have found each other.
fn three(net: &Net) -> Vec<Process> {
    let servers = (1..=3).map(|n| net.server(n, 3, json!({}))).collect();
    for n in 1..=3 {
        eventually("a server to be ready", || get_json(net.http(n), "/v1/hawser/ready"));
    }
    servers
}

/// Which host leads, as host `asked` knows it.
fn leader(net: &Net, asked: u8) -> Option<u8> {
    let address = get_json(net.http(asked), "/v1/status/leader")?;
    let address = address.as_str()?.split(':').next()?.to_owned();
    (1..=9).find(|n| net.address(*n) == address)
}

fn allow(http: SocketAddr, source: &str, destination: &str) -> Option<()> {
    let path = format!("/v1/connect/intentions/exact?source={source}&destination={destination}");
    let reply = request(http, "PUT", &path, Some(&json!({"Action": "allow"})))?;
    (reply.status == 200).then_some(())
}

fn knows(http: SocketAddr, source: &str) -> Option<()> {
    let all = get_json(http, "/v1/connect/intentions")?;
    let is_it = |one: &Value| one["SourceName"] == source;
    all.as_array()?.iter().any(is_it).then_some(())
}

#[test]
fn a_write_through_any_server_outlives_the_leader() {
    let net = Net::new();
    let mut servers = three(&net);
    for n in 1..=3 {
        let source = format!("via-{n}");
        eventually("a write through each server", || allow(net.http(n), &source, "db"));
        knows(net.http(n), &source).expect("a server reads its own acknowledged write");
    }
    let first = eventually("a leader", || leader(&net, 1));
    servers[usize::from(first) - 1].kill();
    let other = if first == 1 { 2 } else { 1 };
    eventually("a write after the leader died", || allow(net.http(other), "after", "db"));
    let second =
        eventually("another leader", || leader(&net, other).filter(|leader| *leader != first));
    assert_ne!(first, second);
    for source in ["via-1", "via-2", "via-3", "after"] {
        knows(net.http(other), source).expect("no acknowledged write is lost");
    }
    servers[usize::from(first) - 1].restart();
    eventually("the killed server to catch up", || knows(net.http(first), "after"));
}

#[test]
fn all_servers_killed_come_back_with_everything() {
    let net = Net::new();
    let mut servers = three(&net);
    eventually("a write", || allow(net.http(1), "web", "db"));
    for server in &mut servers {
        server.kill();
    }
    for server in servers.iter_mut().rev() {
        server.restart();
    }
    eventually("the write to be there", || knows(net.http(2), "web"));
    eventually("another write", || allow(net.http(3), "cron", "db"));
}

#[test]
fn one_server_of_three_does_not_elect_itself() {
    let net = Net::new();
    let mut servers = three(&net);
    for n in [1, 2] {
        servers[n].kill();
    }
    let refused = request(
        net.http(1),
        "PUT",
        "/v1/connect/intentions/exact?source=a&destination=b",
        Some(&json!({"Action": "allow"})),
    )
    .expect("an answer, not a hang");
    assert!(refused.status >= 500, "{refused:?}");
    let stale = get(net.http(1), "/v1/catalog/nodes?stale").expect("an answer");
    assert_eq!(stale.status, 200, "stale reads go on: {stale:?}");
    servers[1].restart();
    eventually("writes with a majority back", || allow(net.http(1), "back", "db"));
}

#[test]
fn a_join_token_joins_once_and_only_its_node() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({}));
    eventually("the server to be ready", || get_json(net.http(1), "/v1/hawser/ready"));
    let token = net.join_token(1, 2);
    std::fs::write(net.folder().join("token-2"), &token).expect("written");
    std::fs::write(net.folder().join("token-3"), &token).expect("written");
    for file in ["token-2", "token-3"] {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(net.folder().join(file), mode).expect("restricted");
    }
    let mut thief = net.agent(3, 1, json!({}));
    assert!(!thief.ended().success(), "an agent that may not join ends");
    assert!(thief.log().contains("join token is not valid"), "{}", thief.log());
    let _owner = net.agent(2, 1, json!({}));
    eventually("the owner to join", || get_json(net.http(2), "/v1/hawser/ready"));
    eventually("the catalog to know the owner", || {
        let nodes = get_json(net.http(1), "/v1/catalog/nodes")?;
        nodes.as_array()?.iter().any(|node| node["Node"] == "n2").then_some(())
    });
    thief.restart();
    assert!(!thief.ended().success(), "the token is used up, and was never the thief's");
}

#[test]
fn a_dead_agents_node_turns_critical_and_comes_back() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({}));
    let service = json!({ "service": { "name": "api", "port": 9000 } });
    let mut agent = net.agent(2, 1, service);
    let passing = || {
        let found = get_json(net.http(1), "/v1/health/service/api?passing")?;
        Some(found.as_array()?.len())
    };
    eventually("the instance to be healthy", || passing().filter(|count| *count == 1));
    agent.kill();
    eventually("the lease to run out", || passing().filter(|count| *count == 0));
    agent.restart();
    eventually("the node to be alive again", || passing().filter(|count| *count == 1));
    assert!(agent.stop().success());
    eventually("the leaving node's instance to be gone", || {
        let all = get_json(net.http(1), "/v1/catalog/service/api")?;
        all.as_array()?.is_empty().then_some(())
    });
}

#[test]
fn a_watched_log_shows_what_happens_as_it_does() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({ "log_level": "error" }));
    eventually("the server to be ready", || get_json(net.http(1), "/v1/hawser/ready"));
    let refused = get(net.http(1), "/v1/agent/monitor?loglevel=loud").expect("an answer");
    assert_eq!(refused.status, 400, "{refused:?}");
    let address = net.http(1).to_string();
    let mut watcher = Command::new(env!("CARGO_BIN_EXE_hawser"))
        .args(["monitor", "-log-level=info", "-log-json", "-http-addr", &address])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut lines = BufReader::new(watcher.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("text");
    assert!(first.contains("watching the log"), "{first}");
    let _agent = net.agent(2, 1, json!({}));
    let joined = lines.map_while(Result::ok).find(|line| line.contains("joined"));
    let joined: Value = serde_json::from_str(&joined.expect("the join is logged")).expect("JSON");
    assert_eq!(joined["fields"]["node"], "n2", "{joined}");
    watcher.kill().expect("killed");
    watcher.wait().expect("waited for");
}
