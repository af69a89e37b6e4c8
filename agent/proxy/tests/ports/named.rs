//! Named ports: one service, one mTLS listener, several ports with protocols of their own.

use hawser_core::address::Address;
use hawser_core::catalog::Protocol;
use hawser_core::intention::Action;
use hawser_core::name::PortName;
use hawser_proxy::NamedPort;
use hyper::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{World, get};

fn name(text: &str) -> PortName {
    text.parse().expect("a name")
}

/// `db` with requests at its default port, `http`, and bytes at `raw`; called at `called`.
async fn world(called: &str) -> World {
    let mut world = World::new(Protocol::Http);
    world.tcp_echo().await;
    let raw = world.move_application(Address::Tcp(crate::world::free_address()));
    let raw = raw.expect("an application");
    let mut other = World::new(Protocol::Http);
    other.http_echo("a").await;
    let http = other.move_application(raw.clone()).expect("an application");
    world.move_application(http.clone());
    world.named_ports = vec![
        NamedPort { name: name("http"), application: http, protocol: None },
        NamedPort { name: name("raw"), application: raw, protocol: Some(Protocol::Tcp) },
    ];
    world.upstream_port = Some(name(called));
    world.start().await;
    world
}

async fn echoed(world: &World) -> Vec<u8> {
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    let _ = stream.write_all(b"ping").await;
    let _ = stream.shutdown().await;
    let mut echo = Vec::new();
    let _ = stream.read_to_end(&mut echo).await;
    echo
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_port_is_reached_by_its_name_in_its_own_protocol() {
    let by_default = world("http").await;
    assert_eq!(get(by_default.outbound, "/").await.status(), StatusCode::OK);
    let raw = world("raw").await;
    assert_eq!(echoed(&raw).await, b"ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_nobody_has_leads_nowhere() {
    let nobodys = world("nobodys").await;
    let answer = get(nobodys.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["x-hawser-reason"], "no_endpoint");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn intentions_are_of_all_ports_and_bytes_are_no_way_around_those_about_requests() {
    let mut raw = world("raw").await;
    raw.intend(Action::Deny);
    assert_eq!(echoed(&raw).await, b"");
    raw.stop().await;
    let mut raw = world("raw").await;
    let requests = json!({ "Permissions": [{ "Action": "allow", "HTTP": { "PathPrefix": "/" } }] });
    raw.requests = Some(serde_json::from_value(requests).expect("Consul's shape"));
    raw.republish();
    crate::world::eventually("bytes are refused", || {
        raw.client_count("hawser_proxy_requests_total", &[("reason", "permissions_need_http")])
            >= 1.0
            || {
                let address = raw.outbound;
                let _ = std::net::TcpStream::connect(address);
                false
            }
    })
    .await;
    assert_eq!(echoed(&raw).await, b"");
}
