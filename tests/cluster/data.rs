//! The data plane: calls through both proxies, verdicts, and life without servers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Net, Process, eventually, get, get_json, request};

/// A server, the agent of `api` on host 2 and of `web`, its caller, on host 3.
pub(crate) fn mesh(
    net: &Net,
    protocol: &str,
    application: SocketAddr,
) -> (Process, Process, Process) {
    mesh_with(net, protocol, application, &json!({}))
}

/// The same, with agents that trace as `telemetry` says.
pub(crate) fn mesh_with(
    net: &Net,
    protocol: &str,
    application: SocketAddr,
    telemetry: &Value,
) -> (Process, Process, Process) {
    let server = net.server(1, 1, json!({}));
    let callee = net.agent(
        2,
        1,
        json!({ "telemetry": telemetry, "service": {
            "name": "api",
            "port": application.port(),
            "protocol": protocol,
            "connect": { "sidecar_service": { "proxy": {
                "local_service_address": application.ip(),
            } } },
        } }),
    );
    let caller = net.agent(
        3,
        1,
        json!({ "telemetry": telemetry, "service": {
            "name": "web",
            "connect": { "sidecar_service": { "proxy": { "upstreams": [{
                "destination_name": "api",
                "local_bind_address": net.address(3),
                "local_bind_port": 9191,
            }] } } },
        } }),
    );
    for n in [2, 3] {
        eventually("an agent to be ready", || get_json(net.http(n), "/v1/hawser/ready"));
    }
    (server, callee, caller)
}

pub(crate) fn upstream(net: &Net) -> SocketAddr {
    format!("{}:9191", net.address(3)).parse().expect("an address")
}

pub(crate) fn set_intention(net: &Net, action: &str) {
    let path = "/v1/connect/intentions/exact?source=web&destination=api";
    let reply =
        request(net.http(1), "PUT", path, Some(&json!({ "Action": action }))).expect("an answer");
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// Answers each connection with one HTTP response that names its instance.
pub(crate) fn http_application(text: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            std::thread::spawn(move || serve_http(socket, text));
        }
    });
    address
}

fn serve_http(mut socket: TcpStream, text: &str) -> Option<()> {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
            let read = socket.read(&mut chunk).ok().filter(|read| *read > 0)?;
            seen.extend_from_slice(&chunk[..read]);
        }
        seen.clear();
        write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).ok()?;
    }
}

/// Sends back what it is sent.
pub(crate) fn echo_application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut back = socket.try_clone().expect("a second handle");
                std::io::copy(&mut socket, &mut back)
            });
        }
    });
    address
}

#[test]
fn a_call_is_allowed_denied_and_allowed_again() {
    let net = Net::new();
    let _mesh = mesh(&net, "http", http_application("hello"));
    let refused = eventually("the default to deny", || {
        get(upstream(&net), "/").filter(|reply| reply.status == 403)
    });
    assert!(refused.head.contains("intention_denied"), "{refused:?}");
    set_intention(&net, "allow");
    let reply = eventually("the call to be allowed", || {
        get(upstream(&net), "/").filter(|reply| reply.status == 200)
    });
    assert_eq!(reply.body, "hello");
    set_intention(&net, "deny");
    eventually("the call to be denied", || {
        get(upstream(&net), "/").filter(|reply| reply.status == 403)
    });
    let edges = eventually("the map to show both verdicts", || {
        let edges = get_json(net.http(1), "/v1/hawser/edges?minutes=5")?.to_string();
        (edges.contains("\"ok\"") && edges.contains("intention_denied")).then_some(edges)
    });
    assert!(edges.contains("web") && edges.contains("api"), "{edges}");
}

#[test]
fn a_new_deny_cuts_an_open_connection() {
    let net = Net::new();
    let _mesh = mesh(&net, "tcp", echo_application());
    set_intention(&net, "allow");
    let mut socket = eventually("the relay to work", || {
        let mut socket = TcpStream::connect(upstream(&net)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        exchange(&mut socket, b"ping").map(|()| socket)
    });
    set_intention(&net, "deny");
    let mut rest = [0; 16];
    let cut = socket.read(&mut rest);
    assert!(matches!(cut, Ok(0) | Err(_)), "the connection was cut, not left: {cut:?}");
    eventually("new connections to be refused", || {
        let mut socket = TcpStream::connect(upstream(&net)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        exchange(&mut socket, b"ping").is_none().then_some(())
    });
    set_intention(&net, "allow");
    eventually("the relay to work again", || {
        let mut socket = TcpStream::connect(upstream(&net)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        exchange(&mut socket, b"again")
    });
}

pub(crate) fn exchange(socket: &mut TcpStream, text: &[u8]) -> Option<()> {
    socket.write_all(text).ok()?;
    let mut back = vec![0; text.len()];
    socket.read_exact(&mut back).ok()?;
    (back == text).then_some(())
}

#[test]
fn without_any_server_a_restarted_agent_serves_from_disk() {
    let net = Net::new();
    let (mut server, mut callee, mut caller) = mesh(&net, "http", http_application("hello"));
    set_intention(&net, "allow");
    let works = || get(upstream(&net), "/").filter(|reply| reply.status == 200);
    eventually("the call to work", works);
    // A view reaches the disk within a second of its news: here, who calls, and where to.
    let has = |n: u8, news: &[u8]| {
        let view = std::fs::read(net.folder().join(format!("n{n}/agent/view"))).ok()?;
        view.windows(news.len()).any(|part| part == news).then_some(())
    };
    let callee_address = net.address(2);
    eventually("the callee to know on disk who may call", || has(2, b"web"));
    eventually("the caller to know on disk where to call", || has(3, callee_address.as_bytes()));
    server.kill();
    assert!(works().is_some(), "the data plane needs no server");
    for agent in [&mut caller, &mut callee] {
        agent.kill();
        agent.restart();
    }
    eventually("the call to work again", works);
}

#[test]
fn a_host_that_stops_leaves_first_and_finishes_what_is_under_way() {
    let net = Net::new();
    let (release, held) = std::sync::mpsc::channel();
    let (_server, mut callee, _caller) = mesh(&net, "http", held_application(held));
    set_intention(&net, "allow");
    let asked = upstream(&net);
    let under_way = eventually("a request to be under way", || {
        let mut socket = TcpStream::connect(asked).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
        write!(socket, "GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n").ok()?;
        let mut first = [0; 12];
        socket.read_exact(&mut first).ok()?;
        (&first == b"HTTP/1.1 200").then_some(socket)
    });
    let stopping = std::thread::spawn(move || callee.stop());
    eventually("the catalog to know the instance no more", || {
        let found = get_json(net.http(1), "/v1/catalog/service/api")?;
        found.as_array()?.is_empty().then_some(())
    });
    assert!(!stopping.is_finished(), "it waits for the request");
    release.send(()).expect("the application waits");
    let mut rest = String::new();
    (&under_way).read_to_string(&mut rest).expect("the whole answer");
    assert!(rest.ends_with("begun, done"), "{rest}");
    assert!(stopping.join().expect("no panic").success());
}

/// Answers one request in two parts: the second once it is told to.
fn held_application(release: std::sync::mpsc::Receiver<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut head = [0; 4096];
            if !matches!(socket.read(&mut head), Ok(read) if read > 0) {
                continue;
            }
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nbegun,";
            if socket.write_all(head.as_bytes()).is_err() || release.recv().is_err() {
                return;
            }
            // A caller that is gone is what the test would find.
            let _ = socket.write_all(b" done");
        }
    });
    address
}
