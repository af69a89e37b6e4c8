//! Real programs behind the mesh, each in its own protocol: HTTP, upgrades, gRPC, PostgreSQL, redis.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_rig::application::{postgres, psql};
use hawser_rig::backend::{Backend, KINDS, Kind, redis, redis_cli};
use hawser_rig::cluster::ask;
use hawser_rig::{Cluster, Host, wait_for};
use serde_json::{Value, json};

use crate::grpc;
use crate::scene::on_servers;

/// The backends on a2, and the way to each from a1.
struct Scene<'a> {
    cluster: &'a mut Cluster,
    backends: Vec<Backend>,
}

#[test]
fn real_programs_are_served_between_hosts() {
    on_servers("backends", |cluster| {
        let scene = Scene::build(cluster)?;
        for backend in &scene.backends {
            http_is_carried(backend)?;
        }
        upgrades_become_bytes()?;
        redis_keeps_what_it_is_given()?;
        postgres_answers()?;
        grpc::calls_streams_and_statuses(GRPC)
    });
}

impl<'a> Scene<'a> {
    fn build(cluster: &'a mut Cluster) -> Result<Self> {
        let a2 = Host::named("a2")?;
        let mut backends = Vec::new();
        for (kind, port) in KINDS.into_iter().zip(FIRST..) {
            let (process, backend) = kind.start_on(a2, port, &cluster.folder(kind.name()))?;
            cluster.keep_running(process);
            backends.push(backend);
        }
        cluster.keep_running(redis(a2, REDIS, &cluster.folder("redis"))?);
        cluster.keep_running(postgres(a2, POSTGRES, &cluster.folder("postgres"))?);
        grpc::serve(a2, GRPC)?;
        let http = KINDS.map(Kind::name);
        let all = || http.into_iter().zip(FIRST..).chain(OTHERS);
        let protocol = |name: &str| match name {
            "grpc" => "grpc",
            "redis" | "postgres" => "tcp",
            _ => "http",
        };
        let services = all().map(|(name, port)| {
            json!({
                "name": name, "port": port, "protocol": protocol(name),
                "connect": { "sidecar_service": {} },
                "check": { "tcp": format!("127.0.0.1:{port}"), "interval": "1s" },
            })
        });
        let upstreams = all().map(
            |(name, port)| json!({ "destination_name": name, "local_bind_port": port + THROUGH }),
        );
        let upstreams: Vec<Value> = upstreams.collect();
        let web = json!({ "name": "web", "port": 8000, "protocol": "http",
            "connect": { "sidecar_service": { "proxy": { "upstreams": upstreams } } } });
        let services: Vec<Value> = services.collect();
        for (agent, text) in
            [("a1", json!({ "service": web })), ("a2", json!({ "services": services }))]
        {
            cluster.write_agent(agent)?;
            let config = cluster.folder(agent).join("config");
            let _ = fs::remove_file(config.join("services.hcl"));
            fs::write(config.join("services.json"), text.to_string())?;
            cluster.start_hawser(agent)?;
        }
        let scene = Self { cluster, backends };
        scene.intend()?;
        for (name, _) in all() {
            scene.cluster.await_healthy("a1", name, 1, Duration::from_secs(60))?;
        }
        for backend in &scene.backends {
            let port = backend.port + THROUGH;
            wait_for(format_args!("{} through the mesh", backend.kind.name()), SOON, || {
                let url = format!("http://127.0.0.1:{port}/first");
                let reply = ask(Host::named("a1")?, "GET", &url, b"", Duration::from_secs(2))?;
                ensure!(reply.status == backend.good(), "{} {}", reply.status, reply.body);
                Ok(())
            })?;
        }
        Ok(scene)
    }

    /// `web` may ask for everything but what nobody may, by these methods.
    fn intend(&self) -> Result<()> {
        let deny = |path: &str| json!({ "Action": "deny", "HTTP": { "PathPrefix": path } });
        let allow = json!({ "Action": "allow",
            "HTTP": { "PathPrefix": "/", "Methods": ["GET", "POST", "PUT", "HEAD", "OPTIONS"] } });
        for kind in KINDS {
            let path =
                format!("/v1/connect/intentions/exact?source=web&destination={}", kind.name());
            let permissions = [deny("/admin"), deny("/smuggled"), allow.clone()];
            let body = json!({ "SourceType": "consul", "Permissions": permissions });
            self.cluster.put("s1", &path, &body)?;
        }
        for (name, _) in OTHERS {
            self.cluster.intend("web", name, "allow")?;
        }
        Ok(())
    }
}

/// What a backend says of a request that it serves.
pub(crate) trait Good {
    /// The status.
    fn good(&self) -> u16;
}

impl Good for Backend {
    fn good(&self) -> u16 {
        // It serves files, and there are none.
        if self.kind == Kind::Lighttpd { 404 } else { 200 }
    }
}

fn http_is_carried(backend: &Backend) -> Result<()> {
    let (a1, port) = (Host::named("a1")?, backend.port + THROUGH);
    let body = vec![b'x'; 300_000];
    for (method, path, body) in
        [("GET", "/a?b=c", &b""[..]), ("POST", "/form", b"a=b"), ("PUT", "/large", &body)]
    {
        if backend.kind == Kind::Haproxy && path == "/large" {
            // It answers before it has read, and its reset may overtake the answer.
            continue;
        }
        let url = format!("http://127.0.0.1:{port}{path}");
        let reply = ask(a1, method, &url, body, Duration::from_secs(10))?;
        let told =
            format!("{} {method} {path}: {} {}", backend.kind.name(), reply.status, reply.body);
        // A server of files takes none.
        let is_good =
            reply.status == backend.good() || (!backend.kind.is_echo() && method != "GET");
        ensure!(is_good, "{told}");
        ensure!(!backend.kind.is_echo() || reply.body.contains(path), "{told}");
    }
    let reply = ask(a1, "GET", &format!("http://127.0.0.1:{port}/admin"), b"", SOON)?;
    ensure!(
        reply.status == 403,
        "{} may be asked for /admin: {}",
        backend.kind.name(),
        reply.status
    );
    Ok(())
}

/// Node answers 101 and echoes what follows.
fn upgrades_become_bytes() -> Result<()> {
    let at = KINDS.iter().position(|kind| *kind == Kind::Node).context("node")?;
    let port = FIRST + u16::try_from(at)? + THROUGH;
    on_a1(move || {
        let mut stream = connect(port)?;
        let head = "GET /chat HTTP/1.1\r\nhost: node\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";
        stream.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut octet = [0];
            stream.read_exact(&mut octet)?;
            answer.push(octet[0]);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 101"), "{answer}");
        // A frame is bytes like any other.
        let frame: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        let mut writer = stream.try_clone()?;
        let sent = frame.clone();
        let writing = thread::spawn(move || writer.write_all(&sent));
        let mut echoed = vec![0; frame.len()];
        stream.read_exact(&mut echoed)?;
        ensure!(echoed == frame, "the echo is another");
        writing.join().ok().context("the writer panicked")??;
        Ok(())
    })
}

fn redis_keeps_what_it_is_given() -> Result<()> {
    let (a1, port) = (Host::named("a1")?, REDIS + THROUGH);
    let commands: String = (0..2_000).map(|n| format!("SET key-{n} value-{n}\r\n")).collect();
    let told = redis_cli(a1, port, &["--pipe"], commands.as_bytes())?;
    ensure!(told.contains("errors: 0, replies: 2000"), "{told}");
    let value = redis_cli(a1, port, &["GET", "key-1999"], b"")?;
    ensure!(value == "value-1999", "{value}");
    let large = "z".repeat(2_000_000);
    redis_cli(a1, port, &["-x", "SET", "large"], large.as_bytes())?;
    let length = redis_cli(a1, port, &["STRLEN", "large"], b"")?;
    ensure!(length.ends_with("2000000"), "{length}");
    Ok(())
}

fn postgres_answers() -> Result<()> {
    let (a1, port) = (Host::named("a1")?, POSTGRES + THROUGH);
    let sum = psql(a1, port, "select sum(n) from generate_series(1, 1000) as n")?;
    ensure!(sum == "500500", "{sum}");
    let rows = psql(a1, port, "select repeat('y', 1000) from generate_series(1, 2000)")?;
    ensure!(rows.len() == 2000 * 1001 - 1, "{} bytes came", rows.len());
    Ok(())
}

/// Runs `inside` on a1.
pub(crate) fn on_a1<T: Send + 'static>(
    inside: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let host = Host::named("a1")?;
    let thread = thread::spawn(move || {
        host.enter()?;
        inside()
    });
    thread.join().ok().context("the thread panicked")?
}

/// A connection to an upstream, from a1.
pub(crate) fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.set_write_timeout(Some(SOON))?;
    Ok(stream)
}

/// The first backend's port on a2; the others follow.
const FIRST: u16 = 9_001;
const REDIS: u16 = 9_101;
const POSTGRES: u16 = 9_102;
const GRPC: u16 = 9_103;
const OTHERS: [(&str, u16); 3] = [("redis", REDIS), ("postgres", POSTGRES), ("grpc", GRPC)];
/// What is added to a port on a2 makes that of its upstream on a1.
pub(crate) const THROUGH: u16 = 1_000;
const SOON: Duration = Duration::from_secs(10);
