//! The certificate authority, with the real binary: rotation under traffic, and revocation.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::data::{echo_application, exchange, http_application, mesh, set_intention, upstream};
use crate::harness::{Net, eventually, get, get_json, hawser, request};

/// Runs `hawser connect …` against `http`, and answers what it prints.
fn connect(http: SocketAddr, arguments: &[&str]) -> String {
    let http = http.to_string();
    let ran = hawser(&[&["connect"], arguments, &["-http-addr", &http]].concat());
    assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

/// The active root's id, and how many there are.
fn roots(http: SocketAddr) -> Option<(String, usize)> {
    let roots = get_json(http, "/v1/connect/ca/roots")?;
    let active = roots["ActiveRootID"].as_str()?.to_owned();
    Some((active, roots["Roots"].as_array()?.len()))
}

/// Calls without a pause until it is told to stop; how often, and how often in vain.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn begin(to: SocketAddr) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..2).map(|_| {
            let (stop, sent) = (stop.clone(), sent.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    sent.fetch_add(1, Ordering::Relaxed);
                    match get(to, "/") {
                        Some(reply) if reply.status == 200 => {}
                        other => failures.push(format!("{other:?}")),
                    }
                }
                failures
            })
        });
        Self { threads: threads.collect(), stop, sent }
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops, and answers what failed.
    fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("it ended")).collect()
    }
}

#[test]
fn a_root_is_rotated_under_traffic_and_no_request_fails() {
    let net = Net::new();
    let (mut server, _callee, _caller) = mesh(&net, "http", http_application("hello"));
    let http = net.http(1);
    set_intention(&net, "allow");
    eventually("the call to be allowed", || {
        get(upstream(&net), "/").filter(|reply| reply.status == 200)
    });
    let config = net.folder().join("ca.json");
    let body = json!({ "Provider": "consul", "Config": { "RootOverlap": "1s" } });
    std::fs::write(&config, body.to_string()).expect("written");
    connect(http, &["ca", "set-config", "-config-file", config.to_str().expect("a path")]);
    let shown: Value = serde_json::from_str(&connect(http, &["ca", "get-config"])).expect("JSON");
    assert_eq!(shown["Config"]["RootOverlap"], "1s");
    assert_eq!(shown["Config"]["LeafCertTTL"], "24h0m0s", "what is left out stays");

    let (first, count) = roots(http).expect("a root");
    assert_eq!(count, 1);
    let leaf = |n| get_json(net.http(n), "/v1/agent/connect/ca/leaf/api").expect("a leaf");
    let before = leaf(2)["SerialNumber"].clone();
    let traffic = Traffic::begin(upstream(&net));
    connect(http, &["ca", "rotate"]);
    let refused = request(http, "PUT", "/v1/hawser/connect/ca/rotate", None).expect("an answer");
    assert_eq!(refused.status, 400, "one rotation at a time: {refused:?}");
    let second = eventually("a new root to sign, with the old one trusted still", || {
        let (active, count) = roots(http)?;
        (active != first && count == 2).then_some(active)
    });
    let listed = get_json(http, "/v1/connect/ca/roots").expect("roots");
    let of = |id: &str| {
        let all = listed["Roots"].as_array().expect("a list");
        all.iter().find(|root| root["ID"] == id).expect("it is listed").clone()
    };
    assert_eq!((&of(&first)["Active"], &of(&second)["Active"]), (&json!(false), &json!(true)));
    assert!(of(&first)["RotatedOutAt"].is_string(), "since when it signs no more");
    let certificates = of(&second)["IntermediateCerts"].as_array().expect("a list").len();
    assert_eq!(certificates, 2, "the signer, and the new root as the old one certifies it");
    eventually("the old root to be gone, once nobody shows it", || {
        roots(http).filter(|now| *now == (second.clone(), 1))
    });
    assert_ne!(leaf(2)["SerialNumber"], before, "a new leaf");
    let after = traffic.sent();
    eventually("traffic after it", || (traffic.sent() > after + 20).then_some(()));
    let failures = traffic.end();
    assert!(failures.is_empty(), "{} failed: {:?}", failures.len(), failures.first());

    server.kill();
    server.restart();
    eventually("the server to know its authority again", || {
        roots(http).filter(|now| *now == (second.clone(), 1))
    });
    let call = get(upstream(&net), "/").expect("an answer");
    assert_eq!(call.status, 200, "{call:?}");
}

fn open(net: &Net) -> Option<TcpStream> {
    let mut socket = TcpStream::connect(upstream(net)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    exchange(&mut socket, b"ping").map(|()| socket)
}

#[test]
fn what_is_revoked_is_cut_refused_and_listed_until_that_is_undone() {
    let net = Net::new();
    let (mut server, _callee, _caller) = mesh(&net, "tcp", echo_application());
    let http = net.http(1);
    set_intention(&net, "allow");
    let listed = || get_json(http, "/v1/hawser/connect/revocations");
    for subject in [["-service", "web"], ["-node", "n3"]] {
        let mut socket = eventually("the relay to work", || open(&net));
        connect(http, &[&["revoke", "-reason=stolen"], &subject[..]].concat());
        let mut rest = [0; 16];
        let cut = socket.read(&mut rest);
        assert!(matches!(cut, Ok(0) | Err(_)), "{subject:?}: it was cut, not left: {cut:?}");
        assert!(open(&net).is_none(), "{subject:?}: no connection is believed");
        // It is a fact of the cluster, not of a process.
        server.kill();
        server.restart();
        let all = eventually("the list after a restart", listed);
        assert_eq!(all.as_array().map(Vec::len), Some(1), "{all}");
        assert_eq!(all[0]["Reason"], "stolen");
        assert!(open(&net).is_none(), "{subject:?}: and stays so");
        connect(http, &[&["reinstate"], &subject[..]].concat());
        assert_eq!(listed(), Some(json!([])));
    }
    eventually("the relay to work again", || open(&net));

    let leaf = |n| get_json(net.http(n), "/v1/agent/connect/ca/leaf/web").expect("a leaf");
    let stolen = leaf(3)["SerialNumber"].as_str().expect("a text").to_owned();
    connect(http, &["revoke", "-serial", &stolen]);
    eventually("another certificate in the place of the one that was revoked", || {
        (leaf(3)["SerialNumber"] != stolen.as_str()).then_some(())
    });
    eventually("the relay to work with it", || open(&net));
    assert!(connect(http, &["revocations"]).contains(&stolen));
}
