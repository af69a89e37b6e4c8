//! How the API answers: packed, cached, filtered, and refused by the same rules everywhere.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::json;

use crate::harness::{Net, eventually};

/// What the API answers to a request with `headers`: head, and body as it came.
fn ask(api: SocketAddr, target: &str, headers: &str) -> Option<(String, Vec<u8>)> {
    let mut stream = TcpStream::connect(api).ok()?;
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).ok()?;
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&reply[..end]).to_lowercase();
    Some((head, reply[end + 4..].to_vec()))
}

#[test]
fn replies_are_packed_and_cached_for_those_who_ask() {
    let net = Net::new();
    let socket = net.http(1);
    let _server = net.server(1, 1, json!({}));
    eventually("the server's own service", || {
        let (_, body) = ask(socket, "/v1/catalog/services", "")?;
        body.starts_with(br#"{"consul""#).then_some(())
    });

    let (head, plain) = ask(socket, "/v1/agent/metrics", "").expect("an answer");
    assert!(!head.contains("content-encoding"), "{head}");
    let (head, packed) =
        ask(socket, "/v1/agent/metrics", "Accept-Encoding: gzip\r\n").expect("an answer");
    assert!(head.contains("content-encoding: gzip"), "{head}");
    assert!(head.contains("vary: accept-encoding"), "{head}");
    assert!(packed.starts_with(&[0x1f, 0x8b]) && packed.len() < plain.len() / 2);

    let cached = |headers| ask(socket, "/v1/catalog/nodes?cached", headers).expect("an answer").0;
    let held = cached("Cache-Control: max-age=60\r\n");
    assert!(held.contains("x-cache: hit") && held.contains("age: 0"), "{held}");
    let fresh = cached("Cache-Control: must-revalidate\r\n");
    assert!(fresh.contains("x-cache: miss"), "{fresh}");
    let refused = cached("Cache-Control: max-age=soon\r\n");
    assert!(refused.starts_with("http/1.1 400"), "{refused}");
    for (target, expected) in [
        ("/v1/agent/self?dc=elsewhere", "http/1.1 500"),
        ("/v1/agent/services?ns=team", "http/1.1 400"),
        ("/v1/catalog/services?filter=ServiceName+matches+%60%5Econ%60", "http/1.1 200"),
        ("/v1/catalog/services?filter=ServiceName+matches+%60(%60", "http/1.1 400"),
        ("/v1/catalog/nodes?near=_agent", "http/1.1 200"),
    ] {
        let (head, _) = ask(socket, target, "").expect("an answer");
        assert!(head.starts_with(expected), "{target}: {head}");
        assert!(head.contains("x-consul-default-acl-policy: allow"), "{target}: {head}");
    }
}
