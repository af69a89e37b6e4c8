//! Upgrades: agents are replaced by new processes under load, and nobody notices.
//!
//! `HAWSER_UPGRADES`, `HAWSER_UPGRADE_CONNECTIONS` and `HAWSER_UPGRADE_RATE` (requests per second)
//! set the size of the run; docs/upgrade.md has the large one.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::harness::{Net, Process, eventually, get, get_json, request};

/// Agents of `api` (HTTP) and `db` (TCP) on host 2, and of `web`, which calls both, on host 3.
struct Scene {
    _server: Process,
    callee: Process,
    caller: Process,
    /// Last: its folder holds what the processes logged.
    net: Net,
}

impl Scene {
    fn new(api: SocketAddr, db: SocketAddr) -> Self {
        let net = Net::new();
        let extra = json!({ "default_intention_policy": "allow" });
        let server = net.server(1, 1, extra);
        let sidecar = |at: SocketAddr| json!({ "sidecar_service": { "proxy": { "local_service_address": at.ip() } } });
        let drain = json!({ "workers": 1, "drain": "60s" });
        let callee = json!({ "proxy": drain, "services": [
            { "name": "api", "port": api.port(), "protocol": "http", "connect": sidecar(api) },
            { "name": "db", "port": db.port(), "protocol": "tcp", "connect": sidecar(db) },
        ] });
        let upstream = |name: &str, port: u16| {
            let bind = net.address(3);
            json!({ "destination_name": name, "local_bind_address": bind, "local_bind_port": port })
        };
        let upstreams = [upstream("api", 9191), upstream("db", 9192)];
        let caller = json!({ "proxy": drain, "service": {
            "name": "web",
            "connect": { "sidecar_service": { "proxy": { "upstreams": upstreams } } },
        } });
        let (callee, caller) = (net.agent(2, 1, callee), net.agent(3, 1, caller));
        for n in [2, 3] {
            eventually("an agent to be ready", || get_json(net.http(n), "/v1/hawser/ready"));
        }
        let scene = Self { _server: server, callee, caller, net };
        let api = scene.upstream(9191);
        eventually("a call", || get(api, "/").filter(|reply| reply.status == 200));
        let db = scene.upstream(9192);
        eventually("a stream", || ping(&mut TcpStream::connect(db).ok()?));
        scene
    }

    fn upstream(&self, port: u16) -> SocketAddr {
        format!("{}:{port}", self.net.address(3)).parse().expect("an address")
    }

    /// Replaces both agents, and waits until their successors are ready.
    fn replace(&mut self) {
        for (n, agent) in [(2, &mut self.callee), (3, &mut self.caller)] {
            let before = started(self.net.folder(), n);
            agent.replace();
            let log = self.net.folder().to_owned();
            eventually("the successor", || (started(&log, n) > before).then_some(()));
        }
        for n in [2, 3] {
            let http = self.net.http(n);
            eventually("an agent to be ready", || get_json(http, "/v1/hawser/ready"));
        }
    }
}

/// How often a process took over on host `n`.
fn started(folder: &std::path::Path, n: u8) -> usize {
    let log = std::fs::read_to_string(folder.join(format!("n{n}.log"))).unwrap_or_default();
    log.matches("took the agent's sockets over").count()
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    requests: AtomicU64,
    streams: AtomicU64,
    failed: AtomicU64,
    /// The reasons, and how often each.
    why: Mutex<BTreeMap<String, u64>>,
    is_over: AtomicBool,
}

impl Seen {
    fn count(&self, what: &AtomicU64, outcome: std::io::Result<()>) {
        what.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = outcome {
            self.failed.fetch_add(1, Ordering::Relaxed);
            *self.why.lock().expect("not poisoned").entry(error.to_string()).or_default() += 1;
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

#[test]
fn agents_are_replaced_under_load_and_nothing_fails() {
    let upgrades = sized("HAWSER_UPGRADES", 3);
    let connections = sized("HAWSER_UPGRADE_CONNECTIONS", 200);
    let rate = sized("HAWSER_UPGRADE_RATE", 200);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // On a thread of its own: clients by the thousand must not keep it from answering.
    let mut applications = tokio::runtime::Builder::new_multi_thread();
    let applications = applications.worker_threads(1).enable_all().build().expect("a runtime");
    let (api, db) = applications.block_on(async { (http_application().await, echo().await) });
    let mut scene = Scene::new(api, db);
    let seen = Arc::new(Seen::default());
    let (http, tcp) = (scene.upstream(9191), scene.upstream(9192));
    // Nine in ten ask by HTTP, now and then; the rest hold streams.
    let callers = connections * 9 / 10;
    let pause = Duration::from_secs_f64(callers as f64 / rate as f64);
    let clients: Vec<_> = (0..connections)
        .map(|number| {
            let (seen, offset) = (seen.clone(), pause.mul_f64(number as f64 / connections as f64));
            runtime.spawn(async move {
                tokio::time::sleep(offset).await;
                if number < callers {
                    ask(http, pause, &seen).await
                } else {
                    hold(tcp, &seen).await
                }
            })
        })
        .collect();
    eventually("all clients to be under way", || {
        let done = seen.requests.load(Ordering::Relaxed);
        (done >= callers as u64).then_some(())
    });
    let own = scene.net.http(1);
    let instances = || get_json(own, "/v1/health/service/api?passing").expect("answered");
    let began = Instant::now();
    for _ in 0..upgrades {
        scene.replace();
        eventually("those of long ago to end", || {
            let most = scene.callee.finishing().max(scene.caller.finishing());
            (most <= GENERATIONS).then_some(())
        });
        assert_eq!(instances().as_array().map(Vec::len), Some(1), "it never left the catalog");
    }
    let took = began.elapsed();
    seen.is_over.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for client in clients {
            client.await.expect("no panic");
        }
    });
    let count = |what: &AtomicU64| what.load(Ordering::Relaxed);
    let (requests, streams) = (count(&seen.requests), count(&seen.streams));
    let failed = count(&seen.failed);
    let told = format!(
        "{upgrades} upgrades of both agents in {took:.1?} under {connections} connections: \
         {requests} requests, {streams} streams, {failed} failed\n"
    );
    std::io::stdout().write_all(told.as_bytes()).expect("written");
    assert_eq!(failed, 0, "{:?}", seen.why.lock().expect("not poisoned"));
    assert!(requests > 0 && streams > 0);
    eventually("all that were replaced to end", || {
        (scene.callee.finishing() + scene.caller.finishing() == 0).then_some(())
    });
}

/// Asks over one connection for as long as it lasts, and opens the next.
async fn ask(to: SocketAddr, pause: Duration, seen: &Seen) {
    while !seen.is_over() {
        let asked = async {
            let mut socket = dial(to).await?;
            let mut is_last = false;
            while !is_last && !seen.is_over() {
                let asked = ask_once(&mut socket).await;
                is_last = *asked.as_ref().unwrap_or(&true);
                seen.count(&seen.requests, asked.map(drop));
                tokio::time::sleep(pause).await;
            }
            Ok(())
        };
        if let Err(error) = asked.await {
            seen.count(&seen.requests, Err(error));
        }
    }
}

/// One request; answers whether the connection ends with it.
async fn ask_once(socket: &mut tokio::net::TcpStream) -> std::io::Result<bool> {
    socket.write_all(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n").await?;
    let mut read = Vec::new();
    while !read.ends_with(b"hello") {
        if socket.read_buf(&mut read).await? == 0 {
            return Err(std::io::Error::other(format!("ended after {}", told(&read))));
        }
    }
    let text = String::from_utf8_lossy(&read).to_ascii_lowercase();
    if !text.starts_with("http/1.1 200 ") {
        return Err(std::io::Error::other(told(&read)));
    }
    Ok(text.contains("connection: close"))
}

/// An answer without what is another in each.
fn told(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let is_own = |line: &&str| line.starts_with("date:") || line.starts_with("x-request-id:");
    text.lines().filter(|line| !is_own(line)).collect::<Vec<_>>().join(" | ")
}

/// Holds one stream after another, each for some seconds, and talks in it.
async fn hold(to: SocketAddr, seen: &Seen) {
    while !seen.is_over() {
        let held = async {
            let mut socket = dial(to).await?;
            let until = Instant::now() + STREAM;
            while Instant::now() < until && !seen.is_over() {
                socket.write_all(b"ping").await?;
                let mut back = [0; 4];
                socket.read_exact(&mut back).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            socket.shutdown().await?;
            let rest = socket.read(&mut [0; 4]).await?;
            if rest == 0 { Ok(()) } else { Err(std::io::Error::other("more than was sent")) }
        };
        seen.count(&seen.streams, held.await);
    }
}

async fn dial(to: SocketAddr) -> std::io::Result<tokio::net::TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_nodelay(true)?;
    socket.connect(to).await
}

/// Answers every request with `hello`.
async fn http_application() -> SocketAddr {
    serve(|mut socket| async move {
        let mut read = Vec::new();
        loop {
            while !read.windows(4).any(|end| end == b"\r\n\r\n") {
                if socket.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
            }
            read.clear();
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await?;
        }
    })
    .await
}

async fn echo() -> SocketAddr {
    serve(|mut socket| async move {
        let (mut read, mut write) = socket.split();
        tokio::io::copy(&mut read, &mut write).await?;
        write.shutdown().await
    })
    .await
}

async fn serve<F>(answer: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bound");
    let listener = socket.listen(BACKLOG).expect("listening");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => drop(tokio::spawn(answer(socket))),
                // Out of descriptors: what waits goes on waiting.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    address
}

#[test]
fn a_signal_replaces_the_binary_with_its_api_dns_and_declarations() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({}));
    let mut agent = net.agent(2, 1, json!({}));
    let http = net.http(2);
    eventually("the agent to be ready", || get_json(http, "/v1/hawser/ready"));
    let dns: SocketAddr = format!("{}:8600", net.address(2)).parse().expect("an address");
    let service = json!({ "Name": "held", "Port": 1, "Check": { "TTL": "1h" } });
    let put = |path: &str, body| request(http, "PUT", path, body).map(|reply| reply.status);
    assert_eq!(put("/v1/agent/service/register", Some(&service)), Some(200));
    assert_eq!(put("/v1/agent/check/pass/service:held", None), Some(200));
    let is_over = Arc::new(AtomicBool::new(false));
    let asking = {
        let is_over = is_over.clone();
        std::thread::spawn(move || {
            let mut asked = 0;
            while !is_over.load(Ordering::Relaxed) {
                let reply = get(http, "/v1/agent/services").expect("no connection is refused");
                assert_eq!(reply.status, 200, "{reply:?}");
                assert!(is_answered(dns), "no question is lost");
                asked += 1;
            }
            asked
        })
    };
    agent.signal("-USR2");
    assert!(agent.ended().success());
    let log = agent.log();
    assert!(log.contains("took the agent's sockets over"), "{log}");
    let services = get_json(http, "/v1/agent/services").expect("answered");
    assert!(services.get("held").is_some(), "{services}");
    let checks = get_json(http, "/v1/agent/checks").expect("answered");
    assert_eq!(checks["service:held"]["Status"], "passing", "{checks}");
    let registered = json!({ "Name": "new", "Port": 2 });
    assert_eq!(put("/v1/agent/service/register", Some(&registered)), Some(200));
    eventually("the catalog to have what the successor was told", || {
        let found = get_json(net.http(1), "/v1/catalog/service/new")?;
        (found.as_array()?.len() == 1).then_some(())
    });
    is_over.store(true, Ordering::Relaxed);
    assert!(asking.join().expect("nothing failed") > 0);
}

#[test]
fn a_successor_that_cannot_start_changes_nothing() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({}));
    let agent = net.agent(2, 1, json!({}));
    let http = net.http(2);
    eventually("the agent to be ready", || get_json(http, "/v1/hawser/ready"));
    let config = net.folder().join("n2.json");
    let whole = std::fs::read_to_string(&config).expect("readable");
    std::fs::write(&config, whole.replace("n2\"", "renamed\"")).expect("written");
    agent.signal("-USR2");
    eventually("the successor to give up", || {
        agent.log().contains("this process goes on").then_some(())
    });
    assert!(get(http, "/v1/agent/self").is_some_and(|reply| reply.status == 200));
    std::fs::write(&config, whole).expect("written");
    agent.signal("-USR2");
    let mut agent = agent;
    assert!(agent.ended().success(), "and the next one may do better");
    assert!(get(http, "/v1/agent/self").is_some_and(|reply| reply.status == 200));
}

/// Whether DNS answers a question for `consul.service.consul` over UDP, whatever it answers.
fn is_answered(dns: SocketAddr) -> bool {
    let socket = UdpSocket::bind((dns.ip(), 0)).expect("bound");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["consul", "service", "consul"] {
        question.push(label.len() as u8);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send_to(&question, dns).expect("sent");
    let mut reply = [0; 512];
    matches!(socket.recv(&mut reply), Ok(read) if read > 12 && reply[..2] == question[..2])
}

fn ping(socket: &mut TcpStream) -> Option<()> {
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    socket.write_all(b"ping").ok()?;
    let mut back = [0; 4];
    socket.read_exact(&mut back).ok()
}

fn sized(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// So many predecessors of an agent may still be finishing: each is a process.
const GENERATIONS: usize = 8;
const BACKLOG: u32 = 4_096;
const STREAM: Duration = Duration::from_secs(4);
