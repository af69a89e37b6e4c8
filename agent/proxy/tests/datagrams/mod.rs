//! UDP upstreams: datagrams keep their bounds, flows their instance, and verdicts hold for each flow.

use std::net::SocketAddr;
use std::time::Duration;

use hawser_core::catalog::Protocol;
use hawser_core::intention::Action;
use hawser_core::policy::Policies;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

use crate::world::{World, eventually};

/// Answers each datagram with the port that it came from, two bytes, and with itself.
async fn echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = socket.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let answer = [&from.port().to_be_bytes(), &buffer[..length]].concat();
            let _ = socket.send_to(&answer, from).await;
        }
    });
    address
}

async fn world() -> World {
    let mut world = World::new(Protocol::Tcp);
    world.policies = Policies { datagrams: true, ..Policies::default() };
    world.serve_application(echo().await);
    world
}

async fn client(world: &World) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    socket.connect(world.outbound).await.expect("an address");
    socket
}

/// The answer to `datagram`, without the port that the application saw; none within a while.
async fn ask(socket: &UdpSocket, datagram: &[u8]) -> Option<(u16, Vec<u8>)> {
    // An error tells that nobody listened before.
    let _ = socket.send(datagram).await;
    let mut buffer = vec![0; 65_535];
    let answered = timeout(Duration::from_millis(500), socket.recv(&mut buffer)).await;
    let length = answered.ok()?.ok()?;
    let (port, rest) = buffer[..length].split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*port), rest.to_vec()))
}

/// Asks until there is an answer.
async fn until_answered(socket: &UdpSocket) -> u16 {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some((port, _)) = ask(socket, b"hello").await {
            // What was asked before may still be answered.
            let mut buffer = [0; 64];
            while timeout(Duration::from_millis(200), socket.recv(&mut buffer)).await.is_ok() {}
            return port;
        }
        assert!(Instant::now() < deadline, "no answer");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_keep_their_bounds_and_flows_are_apart() {
    let mut world = world().await;
    world.start().await;
    let (a, b) = (client(&world).await, client(&world).await);
    let (first, second) = (until_answered(&a).await, until_answered(&b).await);
    assert_ne!(first, second, "each sender has a flow of its own");
    for length in [1, 0, 1_200, 9_000, 60_000, 3] {
        let sent: Vec<u8> = (0..length).map(|n| n as u8).collect();
        let deadline = Instant::now() + Duration::from_secs(30);
        // One that is lost on a loaded machine is sent again, as who speaks UDP does.
        let answered = loop {
            if let Some(answered) = ask(&a, &sent).await {
                break answered;
            }
            assert!(Instant::now() < deadline, "{length}: no answer");
        };
        assert_eq!(answered, (first, sent), "{length}: whole, and by the same flow");
    }
    assert_eq!(world.client_count("hawser_proxy_datagrams_dropped_total", &[]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deny_ends_flows_and_refuses_others() {
    let mut world = world().await;
    world.start().await;
    let socket = client(&world).await;
    until_answered(&socket).await;
    world.intend(Action::Deny);
    let labels = |reason| [("reason", reason)];
    let count =
        |world: &World, reason| world.client_count("hawser_proxy_requests_total", &labels(reason));
    eventually("the flow to be cut", || count(&world, "policy_cut") == 1.0).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while count(&world, "intention_denied") == 0.0 {
        assert_eq!(ask(&socket, b"denied").await, None, "nothing comes back");
        assert!(Instant::now() < deadline, "a new flow was not refused");
    }
    world.intend(Action::Allow);
    until_answered(&socket).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_goes_to_an_instance_that_lives() {
    let mut world = World::new(Protocol::Tcp);
    world.policies = Policies { datagrams: true, ..Policies::default() };
    world.dead_endpoint();
    world.serve_application(echo().await);
    world.start_unbound();
    for _ in 0..4 {
        until_answered(&client(&world).await).await;
    }
}
