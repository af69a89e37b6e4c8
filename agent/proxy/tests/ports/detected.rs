//! Detection: requests and bytes by one upstream of a service that states no protocol.

use bytes::Bytes;
use hawser_core::catalog::Protocol;
use hawser_core::policy::Policies;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{World, get, http2};

fn detecting() -> World {
    let mut world = World::new(Protocol::Tcp);
    world.policies = Policies { detects_protocol: true, ..Policies::default() };
    world
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_seen_as_requests_in_what_they_are_sent() {
    let mut world = detecting();
    world.http_echo("a").await;
    world.start().await;
    for _ in 0..5 {
        assert_eq!(get(world.outbound, "/").await.status(), StatusCode::OK);
    }
    world.stop().await;

    let mut world = detecting();
    world.grpc_echo().await;
    world.start().await;
    let mut sender = http2(world.outbound).await;
    let request = Request::post("http://db/pkg.Service/Method")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from_static(b"\0\0\0\0\x02hi")))
        .expect("good");
    let answer = sender.send_request(request).await.expect("answered");
    let body = answer.into_body().collect().await.expect("whole");
    assert_eq!(body.trailers().expect("trailers")["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_whoever_speaks_first() {
    let mut world = detecting();
    world.tcp_echo().await;
    world.start().await;
    for first in [&b"ping"[..], b"GET key", b"PRI * HT"] {
        let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
        stream.write_all(first).await.expect("open");
        let mut echo = vec![0; first.len()];
        stream.read_exact(&mut echo).await.expect("echoed");
        assert_eq!(echo, first);
    }
    // The application waits to be spoken to, and is carried all the same.
    let (listener, address) = crate::world::listener().await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(b"220 ready").await;
        }
    });
    let mut world = detecting();
    world.serve_application(address);
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    let mut greeting = [0; 9];
    stream.read_exact(&mut greeting).await.expect("greeted");
    assert_eq!(&greeting, b"220 ready");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_never_gets_around_an_intention_about_requests() {
    let mut world = detecting();
    let requests = json!({ "Permissions": [
        { "Action": "deny", "HTTP": { "PathPrefix": "/admin" } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/" } },
    ] });
    world.requests = Some(serde_json::from_value(requests).expect("Consul's shape"));
    world.http_echo("a").await;
    world.start().await;
    assert_eq!(get(world.outbound, "/x").await.status(), StatusCode::OK);
    assert_eq!(get(world.outbound, "/admin").await.status(), StatusCode::FORBIDDEN);
    // Not a request as this proxy knows them, and perhaps one for the application.
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    stream.write_all(b"\r\nGET /admin HTTP/1.1\r\nhost: db\r\n\r\n").await.expect("open");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(String::from_utf8_lossy(&answer), "");
}
