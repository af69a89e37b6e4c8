//! Keeping the servers: autopilot, replacement, new addresses, hand-over, with the real binary.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::{Net, Process, eventually, get_json, hawser, request};

/// Three servers that have found each other, with an autopilot in a hurry.
pub(crate) fn three(net: &Net) -> Vec<Process> {
    let servers = (1..=3).map(|n| net.server(n, 3, json!({}))).collect();
    for n in 1..=3 {
        eventually("a server to be ready", || get_json(net.http(n), "/v1/hawser/ready"));
    }
    operator(net.http(1), &["autopilot", "set-config", "-server-stabilization-time=1s"]);
    servers
}

/// Host `n` as a server that founds nothing and joins the others.
pub(crate) fn joining(net: &Net, n: u8) -> Process {
    let others: Vec<String> = (1..=3).map(|n| net.address(n)).collect();
    net.server(n, 0, json!({ "bootstrap_expect": 0, "retry_join": others }))
}

/// What `hawser operator …` prints.
fn operator(http: SocketAddr, arguments: &[&str]) -> String {
    let http = http.to_string();
    let ran = hawser(&[&["operator"], arguments, &["-http-addr", &http]].concat());
    assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// Who the servers are, by name, as `http` knows them.
fn peers(http: SocketAddr) -> Option<Vec<Value>> {
    let configuration = get_json(http, "/v1/operator/raft/configuration")?;
    configuration["Servers"].as_array().cloned()
}

/// The names of those who vote.
pub(crate) fn voters(http: SocketAddr) -> Option<BTreeSet<String>> {
    let voters = peers(http)?.into_iter().filter(|server| server["Voter"] == true);
    voters.map(|server| Some(server["Node"].as_str()?.to_owned())).collect()
}

fn names<const N: usize>(of: [&str; N]) -> BTreeSet<String> {
    of.map(str::to_owned).into()
}

/// A server by its name.
fn peer(http: SocketAddr, name: &str) -> Option<Value> {
    peers(http)?.into_iter().find(|server| server["Node"] == name)
}

pub(crate) fn put(http: SocketAddr, key: &str) -> Option<()> {
    let reply = request(http, "PUT", &format!("/v1/kv/{key}"), Some(&json!(key)))?;
    (reply.status == 200).then_some(())
}

pub(crate) fn has(http: SocketAddr, key: &str) -> Option<()> {
    get_json(http, &format!("/v1/kv/{key}")).map(drop)
}

#[test]
fn a_server_that_died_is_replaced_and_comes_back_without_a_hand() {
    let net = Net::new();
    let mut servers = three(&net);
    eventually("a write", || put(net.http(1), "before"));
    servers[2].kill();
    eventually("the dead one to go", || {
        voters(net.http(1)).filter(|voters| *voters == names(["n1", "n2"]))
    });
    let _fourth = joining(&net, 4);
    eventually("a new one to vote", || {
        voters(net.http(1)).filter(|voters| *voters == names(["n1", "n2", "n4"]))
    });
    eventually("it to have what was written", || has(net.http(4), "before"));

    servers[2].restart();
    eventually("the one that was removed to vote again", || {
        voters(net.http(1)).filter(|voters| *voters == names(["n1", "n2", "n3", "n4"]))
    });
    eventually("a write through it", || put(net.http(3), "after"));
    let state = get_json(net.http(2), "/v1/operator/autopilot/state").expect("an answer");
    assert_eq!(state["Servers"].as_object().map(serde_json::Map::len), Some(4), "{state}");
    eventually("all to be well", || get_json(net.http(3), "/v1/operator/autopilot/health"));
}

#[test]
fn a_server_with_a_new_address_heals_by_itself() {
    let net = Net::new();
    let mut servers = three(&net);
    servers[1].kill();
    let moved = net.address(52);
    servers[1].reconfigure(|config| {
        config["bind_addr"] = json!(moved);
        config["client_addr"] = json!(moved);
    });
    servers[1].restart();
    eventually("its new address to be known", || {
        peer(net.http(1), "n2").filter(|server| server["Address"] == format!("{moved}:8300"))
    });
    eventually("a write through it", || put(net.http(52), "moved"));
    eventually("it to vote", || {
        voters(net.http(1)).filter(|voters| *voters == names(["n1", "n2", "n3"]))
    });
    servers[0].kill();
    eventually("a majority with it", || put(net.http(3), "with-it"));
}

#[test]
fn operators_hand_over_remove_and_set_rules() {
    let net = Net::new();
    let mut servers = three(&net);
    let rules = operator(net.http(2), &["autopilot", "get-config"]);
    assert!(rules.contains("ServerStabilizationTime = 1s\n"), "{rules}");
    assert!(rules.contains("CleanupDeadServers = true\n"), "{rules}");
    operator(net.http(3), &["autopilot", "set-config", "-cleanup-dead-servers=false"]);
    let rules = operator(net.http(2), &["autopilot", "get-config"]);
    assert!(rules.contains("CleanupDeadServers = false\n"), "{rules}");
    assert!(rules.contains("ServerStabilizationTime = 1s\n"), "what is not named stays: {rules}");
    let wrong = json!({ "MaxTrailingLogs": "many" });
    let path = "/v1/operator/autopilot/configuration";
    let refused = request(net.http(1), "PUT", path, Some(&wrong)).expect("an answer");
    assert_eq!(refused.status, 400, "{}", refused.body);
    let late = request(net.http(1), "PUT", &format!("{path}?cas=1"), Some(&json!({})));
    assert_eq!(late.expect("an answer").body.trim(), "false");

    let leads = |server: &Value| server["Leader"] == true;
    let all = peers(net.http(1)).expect("servers");
    let heir = all.iter().find(|server| !leads(server)).expect("a follower");
    let (id, name) = (heir["ID"].as_str().expect("an id"), heir["Node"].as_str().expect("a name"));
    eventually("all to be well", || get_json(net.http(3), "/v1/operator/autopilot/health"));
    assert_eq!(operator(net.http(1), &["raft", "transfer-leader", "-id", id]), "Success\n");
    eventually("the heir to lead", || peer(net.http(1), name).filter(leads));
    let unknown = request(net.http(1), "POST", "/v1/operator/raft/transfer-leader?id=7", None);
    assert_eq!(unknown.expect("an answer").status, 500);
    let leader = request(net.http(1), "DELETE", &format!("/v1/operator/raft/peer?id={id}"), None);
    let leader = leader.expect("an answer");
    assert!(leader.body.contains("transfer the leadership first"), "{}", leader.body);

    let gone = all.iter().rfind(|server| server["ID"] != id).expect("another");
    let number: u8 = gone["Node"].as_str().expect("a name")[1..].parse().expect("a number");
    servers[usize::from(number) - 1].kill();
    let asked = if number == 1 { 2 } else { 1 };
    let address = gone["Address"].as_str().expect("an address");
    eventually("nobody removes it unasked, and it is unwell", || {
        let reply = crate::harness::get(net.http(asked), "/v1/operator/autopilot/health")?;
        (reply.status == 429).then_some(())
    });
    assert_eq!(voters(net.http(asked)).map(|voters| voters.len()), Some(3));
    operator(net.http(asked), &["raft", "remove-peer", "-address", address]);
    eventually("it to be gone", || voters(net.http(asked)).filter(|voters| voters.len() == 2));
    let again = request(
        net.http(asked),
        "DELETE",
        &format!("/v1/operator/raft/peer?address={address}"),
        None,
    );
    assert_eq!(again.expect("an answer").status, 500, "it is gone");
    eventually("two go on", || put(net.http(asked), "two"));
    let none = request(net.http(asked), "DELETE", "/v1/operator/raft/peer", None);
    assert_eq!(none.expect("an answer").status, 400);
}

/// What `hawser recover` prints for host `n`.
fn recover(net: &Net, n: u8, arguments: &[&str]) -> Result<String, String> {
    let folder = net.folder().join(format!("n{n}"));
    let folder = folder.to_str().expect("text");
    let ran = hawser(&[&["recover", "--data-dir", folder], arguments].concat());
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&ran.stderr).into_owned()),
    }
}

#[test]
fn two_of_three_servers_lost_for_ever_cost_no_acknowledged_write() {
    let net = Net::new();
    let mut servers = three(&net);
    let keys: Vec<String> = (0..60).map(|number| format!("key-{number}")).collect();
    for (number, key) in (0..).zip(&keys) {
        let through = net.http(1 + number % 3);
        eventually("an acknowledged write", || put(through, key));
    }
    let used = recover(&net, 1, &["--yes"]).expect_err("it runs");
    assert!(used.contains("another process uses this data folder"), "{used}");
    // Any of the three may be the one that is left: it knows all that was acknowledged once it
    // has applied it.
    eventually("it to have the last write", || {
        get_json(net.http(1), &format!("/v1/kv/{}?stale", keys.last().expect("a key")))
    });
    for server in &mut servers {
        server.kill();
    }

    let said = recover(&net, 1, &[]).expect("it reads");
    assert!(said.contains("Nothing was changed"), "{said}");
    for other in ["n2", "n3"] {
        assert!(said.contains(&format!("Given up for ever: {other} at ")), "{said}");
    }
    let said = recover(&net, 1, &["--yes"]).expect("it is the whole cluster");
    assert!(said.contains("whole cluster now"), "{said}");
    servers[0].restart();
    eventually("a write to the one that is left", || put(net.http(1), "alone"));
    for key in &keys {
        has(net.http(1), key).unwrap_or_else(|| panic!("{key} was acknowledged, and is lost"));
    }
    assert_eq!(voters(net.http(1)), Some(names(["n1"])));

    let added = [joining(&net, 4), joining(&net, 5)];
    for n in [4, 5] {
        eventually("a new server to have everything", || has(net.http(n), "alone"));
        for key in &keys {
            has(net.http(n), key).unwrap_or_else(|| panic!("{key} is lost on n{n}"));
        }
    }
    eventually("three to vote again", || {
        voters(net.http(1)).filter(|voters| *voters == names(["n1", "n4", "n5"]))
    });

    // One that was given up, and comes back with its disk, stays out and is told why.
    servers[1].restart();
    eventually("it to be refused", || {
        servers[1].log().contains("was given up when the cluster was recovered").then_some(())
    });
    assert_eq!(voters(net.http(1)), Some(names(["n1", "n4", "n5"])));
    servers[1].kill();
    servers[0].kill();
    eventually("the others to go on without the one that was left", || put(net.http(4), "on"));
    drop(added);
}

#[test]
fn there_is_nothing_to_recover_where_no_cluster_was() {
    let net = Net::new();
    std::fs::create_dir_all(net.folder().join("n1/server")).expect("a folder");
    let refused = recover(&net, 1, &["--yes"]).expect_err("it is empty");
    assert!(refused.contains("never part of a cluster"), "{refused}");
}
