//! Several ports of one service, and a protocol that nobody states.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::json;

use crate::data::{echo_application, http_application};
use crate::harness::{Net, eventually, get, get_json, request};

fn ping(at: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect(at).ok()?;
    let mut echo = [0; 4];
    stream.write_all(b"ping").ok()?;
    stream.read_exact(&mut echo).ok()?;
    (&echo == b"ping").then_some(())
}

#[test]
fn ports_are_reached_by_name_and_protocols_detected_where_asked() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({ "default_intention_policy": "allow" }));
    let (http, raw) = (http_application("hello"), echo_application());
    let sidecar = json!({ "sidecar_service": {} });
    let _callee = net.agent(
        2,
        1,
        json!({ "services": [
            { "name": "api", "connect": sidecar, "ports": [
                { "name": "http", "port": http.port(), "default": true, "protocol": "http" },
                { "name": "raw", "port": raw.port() },
            ] },
            { "name": "quiet", "port": http.port(), "connect": sidecar },
        ] }),
    );
    let upstream = |name: &str, named: Option<&str>, port: u16| {
        json!({ "destination_name": name, "destination_port": named,
            "local_bind_address": net.address(3), "local_bind_port": port })
    };
    let upstreams = [
        upstream("api", Some("http"), 9191),
        upstream("api", Some("raw"), 9192),
        upstream("quiet", None, 9193),
    ];
    let _caller = net.agent(
        3,
        1,
        json!({ "service": { "name": "web", "connect": { "sidecar_service": { "proxy": {
            "upstreams": upstreams } } } } }),
    );
    for n in [2, 3] {
        eventually("an agent to be ready", || get_json(net.http(n), "/v1/hawser/ready"));
    }
    let at = |port: u16| -> SocketAddr {
        format!("{}:{port}", net.address(3)).parse().expect("an address")
    };
    let asked = |port: u16| get(at(port), "/").filter(|reply| reply.status == 200);
    assert_eq!(eventually("the port by name", || asked(9191)).body, "hello");
    eventually("the other port", || ping(at(9192)));
    let shown = get_json(net.http(1), "/v1/catalog/service/api").expect("an answer");
    let expected = json!([
        { "Name": "http", "Port": http.port(), "Default": true, "Protocol": "http" },
        { "Name": "raw", "Port": raw.port(), "Default": false },
    ]);
    assert_eq!(shown[0]["ServicePorts"], expected);
    assert_eq!(shown[0]["ServicePort"], json!(http.port()));

    // As bytes, nobody would tell the application that this was the last request.
    let entry = json!({ "Kind": "service-defaults", "Name": "quiet", "Protocol": "auto" });
    let written = request(net.http(1), "PUT", "/v1/config", Some(&entry)).expect("an answer");
    assert_eq!(written.status, 200, "{written:?}");
    assert_eq!(eventually("requests to be seen", || asked(9193)).body, "hello");
}
