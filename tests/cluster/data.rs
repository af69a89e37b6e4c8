//! The data plane: calls through both proxies, verdicts, and life without servers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::harness::{Net, Process, eventually, get, get_json, request};

/// A server, the agent of `api` on host 2 and of `web`, its caller, on host 3.
fn mesh(net: &Net, protocol: &str, application: SocketAddr) -> (Process, Process, Process) {
    let server = net.server(1, 1, json!({}));
    let callee = net.agent(
        2,
        1,
        json!({ "service": {
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
        json!({ "service": {
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

fn upstream(net: &Net) -> SocketAddr {
    format!("{}:9191", net.address(3)).parse().expect("an address")
}

fn set_intention(net: &Net, action: &str) {
    let path = "/v1/connect/intentions/exact?source=web&destination=api";
    let reply =
        request(net.http(1), "PUT", path, Some(&json!({ "Action": action }))).expect("an answer");
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// Answers each connection with one HTTP response that names its instance.
fn http_application(text: &'static str) -> SocketAddr {
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
fn echo_application() -> SocketAddr {
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

fn exchange(socket: &mut TcpStream, text: &[u8]) -> Option<()> {
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
    eventually("both agents to have their view on disk", || {
        let has = |n: u8| net.folder().join(format!("n{n}/agent/view")).exists().then_some(());
        has(2).and(has(3))
    });
    server.kill();
    assert!(works().is_some(), "the data plane needs no server");
    for agent in [&mut caller, &mut callee] {
        agent.kill();
        agent.restart();
    }
    eventually("the call to work again", works);
}
