//! TLS as attackers speak it to a callee's port: names, protocols, hellos in pieces and without end.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::catalog::Protocol;
use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{self, World, eventually, read_all, send_raw};

const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n";

async fn http_world() -> World {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.limits.handshake = Duration::from_millis(500);
    world.start().await;
    world
}

async fn asked(world: &World, name: &str, config: rustls::ClientConfig) -> Option<String> {
    let name = name.to_owned().try_into().expect("a name");
    let socket = TcpStream::connect(world.inbound()).await.expect("listening");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, socket).await.ok()?;
    stream.write_all(ASK).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    String::from_utf8(answer).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_name_grants_nothing_and_takes_nothing() {
    let world = http_world().await;
    for name in ["db.mesh", "other.default.dc1.internal", "DB.MESH", "localhost", "127.0.0.1"] {
        let answer = asked(&world, name, world.native_client()).await;
        let is_served = answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"));
        assert!(is_served, "T20: {name}: the certificate decides, and nothing else");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_agreed_on_is_what_is_spoken() {
    let world = http_world().await;
    for (offered, expected, why) in [
        (&["http/1.1"][..], true, "as agreed"),
        (&["h2"], false, "HTTP/1.1 where HTTP/2 was agreed on"),
        (&["hawser-tcp/1"], true, "nothing was agreed on: as without an offer"),
    ] {
        let mut config = world.native_client();
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let answer = asked(&world, "db.mesh", config).await;
        let is_served = answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200"));
        assert_eq!(is_served, expected, "T19: {why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_in_pieces_is_a_hello() {
    let world = http_world().await;
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    let address = world.inbound();
    tokio::spawn(async move {
        let mut socket = TcpStream::connect(address).await.expect("listening");
        let mut head = [0; 5];
        far.read_exact(&mut head).await.expect("a record");
        let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        far.read_exact(&mut hello).await.expect("a hello");
        // A record for each octet.
        let records = hello.iter().flat_map(|octet| [head[0], head[1], head[2], 0, 1, *octet]);
        let records: Vec<u8> = records.collect();
        for piece in records.chunks(97) {
            socket.write_all(piece).await.expect("open");
        }
        let _ = tokio::io::copy_bidirectional(&mut far, &mut socket).await;
    });
    let connector = tokio_rustls::TlsConnector::from(Arc::new(world.native_client()));
    let name = "db.mesh".try_into().expect("a name");
    let mut stream = connector.connect(name, near).await.expect("T22: in pieces");
    stream.write_all(ASK).await.expect("open");
    assert!(read_all(&mut stream).await.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_without_end_and_one_that_is_none_are_closed() {
    let world = http_world().await;
    let cases: [(&[u8], &str, &str); 4] = [
        (b"", "handshake_timeout", "T22: silence"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "handshake_timeout", "T22: a hello that stops"),
        (b"\x16\x03\x01\x00\x04\x01\xff\xff\xff", "handshake", "T22: a hello of 16 MB"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "plaintext", "T23: another protocol's head"),
    ];
    for (octets, reason, why) in cases {
        let mut socket = TcpStream::connect(world.inbound()).await.expect("listening");
        socket.write_all(octets).await.expect("open");
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut rest));
        assert!(ended.await.is_ok(), "{why}: still open");
        eventually(why, || world.server_reasons().iter().any(|it| it.starts_with(reason))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_port_takes_no_tls_and_no_other_protocols_head() {
    let world = http_world().await;
    for octets in [
        &b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n"[..],
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n\r\n",
    ] {
        let answer = send_raw(world.outbound, octets).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "T23: {answer}");
    }
}

/// T22: whoever opens connections and says nothing waits for itself alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_cannot_hold_all_handshakes() {
    let mut world = World::new(Protocol::Http);
    world.limits.handshakes = 8;
    world.limits.handshakes_per_address = 2;
    world.limits.handshake = Duration::from_secs(60);
    world.http_echo("a").await;
    world.start().await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 2], 0).into()).expect("an address of this host");
        silent.push(socket.connect(world.inbound()).await.expect("listening"));
    }
    let answer = world::get(world.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::OK);
    drop(silent);
}
