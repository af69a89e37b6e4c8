//! Requests that programs read differently, through two proxies to five real programs: each sees
//! exactly the requests that its proxy authorized, one for one, and no request harms another.
//!
//! Needs nginx, HAProxy, Node, lighttpd and Debian's python3-h11, so plain `cargo test` leaves it out.

mod payloads;
#[allow(dead_code, reason = "the other tests need the rest")]
mod world;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use hawser_core::catalog::Protocol;
use hawser_proxy::{AccessLog, LogSink};
use hawser_rig::backend::{Backend, KINDS};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use payloads::PAYLOADS;
use world::{World, free_address, read_all};

/// Methods and paths, each with how often it came.
type Requests = BTreeMap<(String, String), usize>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_smuggled_to_real_programs() {
    for kind in KINDS {
        let folder = tempfile::tempdir().expect("a folder");
        let started = kind.start(free_address().port(), folder.path());
        let (_process, backend) = started.expect("it starts");
        let mut world = World::new(Protocol::Http);
        world.serve_application(SocketAddr::from(([127, 0, 0, 1], backend.port)));
        world.requests = Some(serde_json::from_value(permissions()).expect("Consul's shape"));
        let log = folder.path().join("access.log");
        world.logs[1] = AccessLog::all(LogSink::File(log.clone()));
        world.start().await;
        for (n, payload) in PAYLOADS.iter().enumerate() {
            attack(world.outbound, payload).await;
            // Several, so that a connection that was left in disorder is met.
            for again in 0..2 {
                let target = format!("/good/{n}/{again}");
                let answer = ask(world.outbound, &target).await;
                let is_own = match kind.is_echo() {
                    true => answer.ends_with(&format!("saw {target}\n")),
                    // It serves files, and there are none.
                    false => answer.starts_with("HTTP/1.1 404 "),
                };
                let shown = String::from_utf8_lossy(payload);
                assert!(is_own, "{}: after {shown:?}: {answer}", kind.name());
            }
        }
        compare(&backend, &log).await;
        world.stop().await;
    }
}

/// Anybody may ask for everything but what nobody may.
fn permissions() -> Value {
    let deny = |path: &str| json!({ "Action": "deny", "HTTP": { "PathPrefix": path } });
    let methods = ["GET", "POST", "PUT", "HEAD", "OPTIONS"];
    let allow = json!({ "Action": "allow", "HTTP": { "PathPrefix": "/", "Methods": methods } });
    json!({ "Permissions": [deny("/admin"), deny("/smuggled"), allow] })
}

/// What the backend saw is what its proxy authorized; what was answered well, it saw.
async fn compare(backend: &Backend, log: &Path) {
    let name = backend.kind.name();
    let deadline = Instant::now() + Duration::from_secs(20);
    let seen = loop {
        let seen = seen(backend);
        let (authorized, served) = recorded(log);
        let (smuggled, lost) = (above(&seen, &authorized), above(&served, &seen));
        let count: usize = seen.values().sum();
        // Both logs are written behind the answers.
        if smuggled.is_empty() && lost.is_empty() && count >= 2 * PAYLOADS.len() {
            break seen;
        }
        let told = format!("not authorized: {smuggled:#?}; not seen: {lost:#?}; {count} seen");
        assert!(Instant::now() < deadline, "{name}: {told}");
        sleep(Duration::from_millis(50)).await;
    };
    for (method, path) in seen.keys() {
        let is_denied = ["/admin", "/smuggled"].iter().any(|denied| path.starts_with(denied));
        assert!(!is_denied && method != "CONNECT", "{name} saw {method} {path}");
    }
}

fn seen(backend: &Backend) -> Requests {
    let mut seen = Requests::new();
    for (method, target) in backend.seen().expect("a log") {
        let path = target.split('?').next().unwrap_or_default().to_owned();
        *seen.entry((method, path)).or_default() += 1;
    }
    seen
}

/// What the callee's proxy let pass, and what of it was answered.
fn recorded(log: &Path) -> (Requests, Requests) {
    let (mut authorized, mut served) = (Requests::new(), Requests::new());
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // A last line without its end is still being written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let request = (text("method"), text("path"));
        if text("verdict") != "deny" && text("reason") != "bad_request" {
            *authorized.entry(request.clone()).or_default() += 1;
        }
        if text("reason") == "ok" {
            *served.entry(request).or_default() += 1;
        }
    }
    (authorized, served)
}

/// What came more often in `these` than in `those`.
fn above(these: &Requests, those: &Requests) -> Vec<String> {
    let count = |key| those.get(key).copied().unwrap_or_default();
    let more = these.iter().filter(|(key, times)| **times > count(*key));
    more.map(|(key, times)| format!("{key:?}: {times}, not {}", count(key))).collect()
}

/// Writes `payload` as it is and listens until nothing more is said.
async fn attack(to: SocketAddr, payload: &[u8]) {
    let mut stream = TcpStream::connect(to).await.expect("listening");
    // It may be refused before all of it is sent.
    let _ = stream.write_all(payload).await;
    let mut buffer = [0; 4096];
    while matches!(timeout(SILENCE, stream.read(&mut buffer)).await, Ok(Ok(1..))) {}
}

/// One request on a connection of its own.
async fn ask(to: SocketAddr, target: &str) -> String {
    let mut stream = TcpStream::connect(to).await.expect("listening");
    let request = format!("GET {target} HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("open");
    String::from_utf8_lossy(&read_all(&mut stream).await).into_owned()
}

/// How long a connection says nothing until what was sent on it is taken for answered.
const SILENCE: Duration = Duration::from_millis(150);
