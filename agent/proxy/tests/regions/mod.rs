//! Services of other clusters: directly, through gateways, and in place of what is not there.

use std::sync::atomic::Ordering;
use std::time::Duration;

use hawser_core::catalog::Protocol;
use hawser_core::entry::{GatewayMode, Target};
use hawser_core::intention::Action;
use hawser_core::sni::InstanceLabel;
use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::region::{Passage, Region};
use crate::world::{World, eventually, free_address, get, name};

/// The first word of an answer: who gave it.
async fn who(world: &World) -> String {
    let answer = get(world.outbound, "/").await;
    assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.headers());
    let text = String::from_utf8(answer.into_body().to_vec()).expect("text");
    text.split(' ').next().expect("a word").to_owned()
}

async fn refusal(world: &World) -> (StatusCode, String, String) {
    let answer = get(world.outbound, "/").await;
    let field = |name: &str| {
        let value = answer.headers().get(name).map(|value| value.to_str().expect("ASCII"));
        value.unwrap_or_default().to_owned()
    };
    (answer.status(), field("x-hawser-reason"), field("x-hawser-decided-by"))
}

/// A caller that has no `db` of its own, and a cluster `east` that has one.
async fn east(tag: &'static str) -> (World, Region) {
    let mut world = World::new(Protocol::Http);
    world.connect_timeout = Duration::from_secs(1);
    let mut east = Region::new(&world, "east", '2', Protocol::Http);
    east.http_echo(tag).await;
    east.start().await;
    (world, east)
}

/// Another that has, after that.
async fn west(world: &mut World) -> Region {
    let mut west = Region::new(world, "west", '3', Protocol::Http);
    west.http_echo("west").await;
    west.start().await;
    west.announce(world);
    west
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peers_service_stands_in_for_one_that_is_not_there() {
    let (mut world, east) = east("east").await;
    east.announce(&mut world);
    world.start().await;
    let answer = get(world.outbound, "/x").await;
    let text = String::from_utf8(answer.into_body().to_vec()).expect("text");
    assert!(text.starts_with("east GET /x"), "{text}");
    let caller =
        "URI=spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/web";
    assert!(text.contains(caller), "{text}");
    eventually("the edge says where the answer came from", || {
        world.client_clusters() == [("east".to_owned(), "ok".to_owned())]
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_may_be_a_peers_service() {
    let (mut world, east) = east("east").await;
    world.http_echo("own").await;
    east.announce(&mut world);
    world.destination = Target { service: name("db"), peer: Some(east.name.clone()) };
    world.start().await;
    for _ in 0..5 {
        assert_eq!(who(&world).await, "east");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ones_own_instances_come_first() {
    let (mut world, east) = east("east").await;
    world.http_echo("own").await;
    east.announce(&mut world);
    world.start().await;
    for _ in 0..5 {
        assert_eq!(who(&world).await, "own");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_passes_it_on_without_a_key() {
    let (mut world, mut east) = east("east").await;
    let callee = east.instance(None);
    // What the caller dials is the gateway alone: the instance's own address is nobody's.
    let real = east.proxied();
    let passage = Passage::to(real).await;
    east.only(callee);
    east.gateways = vec![passage.address];
    east.announce(&mut world);
    world.start().await;
    assert_eq!(who(&world).await, "east");
    assert_eq!(passage.passed.load(Ordering::Relaxed), 1);
    let hello = String::from_utf8_lossy(&passage.hello.borrow()).into_owned();
    let label =
        InstanceLabel::of(&"host-0".parse().expect("a name"), &"db-0".parse().expect("an id"));
    let asked = format!("{label}.db.default.default.home.external.{}", east.domain);
    assert!(hello.contains(&asked), "it does not ask for {asked}: {hello:?}");
}

/// A gateway sees one connection, whatever is in it; each stream in it ends by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_share_a_connection_through_a_gateway() {
    let mut world = World::new(Protocol::Tcp);
    let mut east = Region::new(&world, "east", '2', Protocol::Tcp);
    east.tcp_echo().await;
    east.start().await;
    let (passage, nobody) = (Passage::to(east.proxied()).await, east.instance(None));
    east.only(nobody);
    east.gateways = vec![passage.address];
    east.announce(&mut world);
    world.start().await;
    let mut streams = Vec::new();
    for nth in 0..20_u8 {
        let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
        stream.write_all(&[nth]).await.expect("open");
        assert_eq!(stream.read_u8().await.expect("echoed"), nth);
        streams.push(stream);
    }
    for (nth, stream) in (0..).zip(&mut streams) {
        stream.write_all(&[nth, 7]).await.expect("open");
        stream.shutdown().await.expect("open");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("it ends");
        assert_eq!(rest, [nth, 7]);
    }
    assert_eq!(passage.passed.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_does_not_answer_costs_no_request() {
    for hangs in [false, true] {
        let (mut world, mut east) = east("east").await;
        let first = Passage::to(east.proxied()).await;
        first.freeze(true);
        let second = Passage::to(east.proxied()).await;
        let dead = if hangs { first.address } else { free_address() };
        east.gateways = vec![dead, second.address];
        east.announce(&mut world);
        world.start().await;
        for _ in 0..10 {
            assert_eq!(who(&world).await, "east", "hangs: {hangs}");
        }
        assert!(second.passed.load(Ordering::Relaxed) > 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_gateway_answers_the_next_target_does() {
    for hangs in [false, true] {
        let (mut world, mut east) = east("east").await;
        for _ in 0..3 {
            east.dead_endpoint();
        }
        let (one, other) = (Passage::to(east.proxied()).await, Passage::to(east.proxied()).await);
        one.freeze(true);
        other.freeze(true);
        east.gateways = if hangs {
            vec![one.address, other.address]
        } else {
            vec![free_address(), free_address()]
        };
        east.announce(&mut world);
        let _west = west(&mut world).await;
        world.start().await;
        for n in 0..10 {
            assert_eq!(who(&world).await, "west", "request {n}, hangs: {hangs}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_gateway_answers_and_nobody_stands_in_the_answer_says_so() {
    let (mut world, mut east) = east("east").await;
    east.gateways = vec![free_address(), free_address()];
    east.announce(&mut world);
    world.start().await;
    let expected = (StatusCode::SERVICE_UNAVAILABLE, "gateway_unavailable", "client_proxy");
    for _ in 0..3 {
        let (status, reason, by) = refusal(&world).await;
        assert_eq!((status, reason.as_str(), by.as_str()), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_way_that_is_cut_under_a_request_is_left_for_the_next_target() {
    let (mut world, mut east) = east("east").await;
    let (one, other) = (Passage::to(east.proxied()).await, Passage::to(east.proxied()).await);
    east.gateways = vec![one.address, other.address];
    east.announce(&mut world);
    let _west = west(&mut world).await;
    world.start().await;
    assert_eq!(who(&world).await, "east");
    one.freeze(true);
    other.freeze(true);
    // All of these wait in the connection that hangs now, or come after it.
    let waiting: Vec<_> = (0..3).map(|_| who(&world)).collect();
    for answer in futures_util::future::join_all(waiting).await {
        assert_eq!(answer, "west");
    }
    for _ in 0..10 {
        assert_eq!(who(&world).await, "west");
    }
    // It comes back by one request, and the others stay for a while.
    one.freeze(false);
    other.freeze(false);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while who(&world).await != "east" {
        assert!(tokio::time::Instant::now() < deadline, "it never comes back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(who(&world).await, "west", "it settles first");
    while who(&world).await != "east" {
        assert!(tokio::time::Instant::now() < deadline, "it never settles");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(who(&world).await, "east");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_tries_walk_past_a_region_that_refuses() {
    let mut world = World::new(Protocol::Http);
    let mut east = Region::new(&world, "east", '2', Protocol::Http);
    for _ in 0..5 {
        east.dead_endpoint();
    }
    east.announce(&mut world);
    let _west = west(&mut world).await;
    world.start().await;
    for n in 0..10 {
        assert_eq!(who(&world).await, "west", "request {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_without_a_way_to_it_is_left_out() {
    let (mut world, mut east) = east("east").await;
    east.gateway_mode = GatewayMode::Remote;
    east.announce(&mut world);
    world.start().await;
    assert_eq!(refusal(&world).await.1, "no_endpoint");
    let passage = Passage::to(east.proxied()).await;
    east.gateways = vec![passage.address];
    east.announce(&mut world);
    world.publish_others();
    world.until_status(StatusCode::OK).await;
    assert_eq!(passage.passed.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_to_the_next_target_too() {
    let mut world = World::new(Protocol::Tcp);
    let mut east = Region::new(&world, "east", '2', Protocol::Tcp);
    east.dead_endpoint();
    east.dead_endpoint();
    east.gateways = vec![free_address(), free_address()];
    east.announce(&mut world);
    let mut west = Region::new(&world, "west", '3', Protocol::Tcp);
    west.tcp_tag(b"west").await;
    west.start().await;
    west.announce(&mut world);
    world.start().await;
    for _ in 0..5 {
        let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
        let mut tag = [0; 4];
        stream.read_exact(&mut tag).await.expect("a tag");
        assert_eq!(&tag, b"west");
    }
    eventually("the edge says where they went", || {
        world.client_clusters().contains(&("west".to_owned(), "ok".to_owned()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callee_decides_by_exports_and_then_by_intentions_with_the_peer() {
    let (mut world, mut east) = east("east").await;
    east.announce(&mut world);
    world.start().await;
    world.until_status(StatusCode::OK).await;
    let cases = [
        // exported, action, expected reason
        (false, Action::Allow, "not_exported"),
        (true, Action::Deny, "intention_denied"),
    ];
    for (is_exported, action, expected) in cases {
        (east.is_exported, east.action) = (is_exported, action);
        east.publish();
        world.until_status(StatusCode::FORBIDDEN).await;
        let (_, reason, by) = refusal(&world).await;
        assert_eq!((reason.as_str(), by.as_str()), (expected, "server_proxy"));
        (east.is_exported, east.action) = (true, Action::Allow);
        east.publish();
        world.until_status(StatusCode::OK).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tcp_caller_learns_that_nothing_is_exported_to_it() {
    let mut world = World::new(Protocol::Tcp);
    let mut east = Region::new(&world, "east", '2', Protocol::Tcp);
    east.tcp_tag(b"east").await;
    east.is_exported = false;
    east.start().await;
    east.announce(&mut world);
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    assert!(stream.read_u8().await.is_err(), "it was let in");
    eventually("the edge has the reason", || {
        world.client_clusters().contains(&(String::new(), "not_exported".to_owned()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_cannot_prove_to_be_the_callee_is_refused() {
    let stranger = Region::new(&World::new(Protocol::Http), "stranger", '4', Protocol::Http);
    let own = "11111111-2222-3333-4444-555555555555.consul";
    let cases = [
        // the cluster that its certificate names, whether its root is known, reason, why
        (("", "dc2"), false, "untrusted_certificate", "signed by a root that is not the peer's"),
        ((own, "dc1"), true, "untrusted_certificate", "a peer's root vouches for no own service"),
        (("9.consul", "dc2"), true, "wrong_trust_domain", "a cluster that is no peer"),
    ];
    for ((domain, datacenter), is_root_known, expected, why) in cases {
        let mut world = World::new(Protocol::Http);
        let mut east = Region::new(&world, "east", '2', Protocol::Http);
        east.http_echo("east").await;
        let domain = if domain.is_empty() { east.domain.clone() } else { domain.to_owned() };
        east.start_as(&domain, datacenter).await;
        east.announce(&mut world);
        if !is_root_known {
            let forged = stranger.as_peer().roots;
            world.others.peers.get_mut(&east.name).expect("announced").roots = forged;
        }
        world.start().await;
        let (status, reason, _) = refusal(&world).await;
        assert_eq!((status, reason.as_str()), (StatusCode::SERVICE_UNAVAILABLE, expected), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_service_of_another_cluster_is_not_the_callee() {
    let (mut world, east) = east("east").await;
    east.announce(&mut world);
    let mut west = west(&mut world).await;
    // West's instance listens where east's is thought to be.
    west.only(west.proxied());
    world.others.failover[0].endpoints = west.endpoints();
    world.others.failover.truncate(1);
    world.start().await;
    let (status, reason, _) = refusal(&world).await;
    assert_eq!((status, reason.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "unexpected_peer"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_whose_cluster_is_no_peer_any_more_is_cut_and_refused() {
    let mut world = World::new(Protocol::Tcp);
    let mut east = Region::new(&world, "east", '2', Protocol::Tcp);
    east.tcp_echo().await;
    east.start().await;
    east.announce(&mut world);
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"x").await.expect("open");
    assert_eq!(stream.read_u8().await.expect("echoed"), b'x');
    east.caller = None;
    east.publish();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await;
    assert!(matches!(ended, Ok(Err(_))), "still open: {ended:?}");
    // It may be refused before it is seen to be open.
    if let Ok(mut stream) = TcpStream::connect(world.outbound).await {
        assert!(stream.read_u8().await.is_err(), "it was let in");
    }
}
