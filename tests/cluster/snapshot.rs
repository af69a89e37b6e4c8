//! Snapshots, with the real binary: saved, checked, and restored on a running cluster.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::harness::{Net, eventually, get, get_json, hawser, request};

fn snapshot(http: SocketAddr, arguments: &[&str]) -> Result<String, String> {
    let http = http.to_string();
    let ran = hawser(&[&["snapshot"], arguments, &["-http-addr", &http]].concat());
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&ran.stderr).into_owned()),
    }
}

fn set(http: SocketAddr, key: &str) {
    let path = format!("/v1/kv/{key}");
    eventually("a write", || {
        request(http, "PUT", &path, Some(&json!("x"))).filter(|reply| reply.status == 200)
    });
}

fn has(http: SocketAddr, key: &str) -> bool {
    let path = format!("/v1/kv/{key}");
    let reply = eventually("an answer", || get(http, &path).filter(|reply| reply.status != 500));
    reply.status == 200
}

#[test]
fn a_snapshot_is_saved_checked_and_restored_on_every_server() {
    let net = Net::new();
    let mut servers: Vec<_> = (1..=3).map(|n| net.server(n, 3, json!({}))).collect();
    let http = net.http(1);
    set(http, "kept");
    let file = net.folder().join("backup.snap");
    let file = file.to_str().expect("a path");
    snapshot(http, &["save", file]).expect("saved");
    let said = snapshot(http, &["inspect", "-format=json", file]).expect("whole");
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&said["Version"], &said["HasAuthority"]), (&json!(1), &json!(true)));
    let bare = net.folder().join("bare.snap");
    let bare = bare.to_str().expect("a path");
    snapshot(http, &["save", "-without-ca", bare]).expect("saved");
    assert!(snapshot(http, &["inspect", bare]).expect("whole").contains("left out"));

    let mut octets = std::fs::read(file).expect("the file");
    let at = octets.len() / 2;
    octets[at] ^= 1;
    let bad = net.folder().join("bad.snap");
    std::fs::write(&bad, octets).expect("written");
    let bad = bad.to_str().expect("a path");
    snapshot(http, &["inspect", bad]).expect_err("damaged");
    snapshot(http, &["restore", bad]).expect_err("damaged");

    set(http, "later");
    let roots = |n| get_json(net.http(n), "/v1/connect/ca/roots").map(|it| it["Roots"].clone());
    let before = eventually("roots", || roots(1));
    snapshot(net.http(2), &["restore", file]).expect("restored");
    for n in 1..=3 {
        assert!(has(net.http(n), "kept") && !has(net.http(n), "later"), "server {n}");
    }
    let ids = |roots: &Value| roots[0]["ID"].clone();
    assert_eq!(ids(&eventually("roots", || roots(1))), ids(&before), "the authority goes on");
    set(net.http(3), "after");
    for server in &mut servers {
        server.kill();
    }
    for server in &mut servers {
        server.restart();
    }
    for n in 1..=3 {
        assert!(has(net.http(n), "kept") && has(net.http(n), "after"), "server {n}, again");
        assert!(!has(net.http(n), "later"), "server {n}, again");
    }
}
