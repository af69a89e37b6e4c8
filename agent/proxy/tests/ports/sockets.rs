//! Unix sockets: applications and upstreams at paths, in every protocol.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use hawser_core::address::{Address, SocketPath};
use hawser_core::catalog::Protocol;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::world::{World, eventually, get, http2};

fn path(folder: &tempfile::TempDir, name: &str) -> SocketPath {
    folder.path().join(name).to_str().expect("printable").parse().expect("a path")
}

/// Lets the last instance's application listen at `path`, and nowhere else that its proxy knows.
fn move_to_socket(world: &mut World, path: &SocketPath) {
    let before = world.move_application(Address::Unix(path.clone()));
    let application = before.and_then(|before| before.tcp()).expect("an application");
    let listener = UnixListener::bind(path.as_str()).expect("bound");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut application = TcpStream::connect(application).await?;
                copy_bidirectional(&mut socket, &mut application).await
            });
        }
    });
}

/// A port that leads to the socket at `path`, for clients that know no other.
async fn port_before(path: &SocketPath) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let path = PathBuf::from(path.as_str());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let path = path.clone();
            tokio::spawn(async move {
                let mut socket = UnixStream::connect(path).await?;
                copy_bidirectional(&mut client, &mut socket).await
            });
        }
    });
    address
}

/// A caller and a callee whose applications and proxies meet at sockets in `folder`.
async fn world_at_sockets(folder: &tempfile::TempDir, protocol: Protocol) -> (World, SocketAddr) {
    let mut world = World::new(protocol);
    match protocol {
        Protocol::Tcp => world.tcp_echo().await,
        Protocol::Http => world.http_echo("a").await,
        Protocol::Http2 | Protocol::Grpc => world.grpc_echo().await,
    };
    move_to_socket(&mut world, &path(folder, "application.sock"));
    let upstream = path(folder, "upstream.sock");
    world.upstream_socket = Some((upstream.clone(), 0o600));
    world.start().await;
    let port = port_before(&upstream).await;
    (world, port)
}

async fn echoed(path: &SocketPath) {
    let mut stream = UnixStream::connect(path.as_str()).await.expect("listening");
    stream.write_all(b"ping").await.expect("open");
    stream.shutdown().await.expect("open");
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).await.expect("it ends well");
    assert_eq!(echo, b"ping");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_protocol_passes_between_sockets() {
    for protocol in [Protocol::Tcp, Protocol::Http, Protocol::Grpc] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut world, port) = world_at_sockets(&folder, protocol).await;
        match protocol {
            Protocol::Tcp => {
                for _ in 0..20 {
                    echoed(&path(&folder, "upstream.sock")).await;
                }
            }
            Protocol::Http => {
                for _ in 0..20 {
                    assert_eq!(get(port, "/").await.status(), StatusCode::OK);
                }
            }
            Protocol::Http2 | Protocol::Grpc => {
                let mut sender = http2(port).await;
                let request = Request::post("http://db/pkg.Service/Method")
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(Full::new(Bytes::from_static(b"\0\0\0\0\x02hi")))
                    .expect("good");
                let answer = sender.send_request(request).await.expect("answered");
                let body = answer.into_body().collect().await.expect("whole");
                assert_eq!(body.trailers().expect("trailers")["grpc-status"], "0");
            }
        }
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_left_its_socket_is_unreachable_and_said_to_be() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.move_application(Address::Unix(path(&folder, "nobody.sock")));
    world.start().await;
    let answer = get(world.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["x-hawser-reason"], "application_unreachable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_has_its_mode_replaces_a_stale_one_and_goes_with_its_upstream() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let upstream = path(&folder, "upstream.sock");
    // As a process that crashed leaves it.
    drop(std::os::unix::net::UnixListener::bind(upstream.as_str()).expect("bound"));
    let mode = |path: &SocketPath| {
        let found = std::fs::metadata(path.as_str()).expect("there");
        found.permissions().mode() & 0o777
    };
    let (mut world, _) = world_at_sockets(&folder, Protocol::Tcp).await;
    assert_eq!(mode(&upstream), 0o600);
    echoed(&upstream).await;
    world.upstream_socket = Some((upstream.clone(), 0o660));
    world.move_outbound(world.outbound);
    eventually("the mode is another", || mode(&upstream) == 0o660).await;
    echoed(&upstream).await;
    let moved = path(&folder, "moved.sock");
    world.upstream_socket = Some((moved.clone(), 0o600));
    world.move_outbound(world.outbound);
    world.until_bound(moved.clone().into()).await;
    eventually("the old socket is gone", || std::fs::symlink_metadata(upstream.as_str()).is_err())
        .await;
    echoed(&moved).await;
    // What stands there is somebody's file: it stays, and the listener says so.
    let taken = path(&folder, "taken");
    std::fs::write(taken.as_str(), "precious").expect("written");
    world.upstream_socket = Some((taken.clone(), 0o600));
    world.move_outbound(world.outbound);
    eventually("the listener says why", || {
        let said = |error: &String| error.contains("no socket");
        world.client_listeners().iter().any(|it| it.error.as_ref().is_some_and(said))
    })
    .await;
    assert_eq!(std::fs::read_to_string(taken.as_str()).expect("there"), "precious");
    // It is tried again until it can be bound.
    std::fs::remove_file(taken.as_str()).expect("there");
    world.until_bound(taken.clone().into()).await;
    echoed(&taken).await;
    tokio::time::timeout(Duration::from_secs(10), world.stop()).await.expect("it ends");
    assert!(std::fs::symlink_metadata(taken.as_str()).is_ok(), "another process may serve it");
}
