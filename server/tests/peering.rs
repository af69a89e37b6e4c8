//! Clusters that become peers, in one process and over their real TLS.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hawser_core::catalog::{Check, Instance, Node, Protocol};
use hawser_core::health::Status;
use hawser_core::intention::Action;
use hawser_core::name::PeerName;
use hawser_core::peering::{PeerService, PeerState, Peering};
use hawser_core::sni::Sni;
use hawser_core::state::{Command, NodeChanges, State};
use hawser_proto::v1;
use hawser_proto::v1::agent_client::AgentClient;
use hawser_proto::v1::peer_message::Kind;
use hawser_proto::v1::peering_client::PeeringClient;
use hawser_proto::v1::raft_client::RaftClient;
use hawser_server::identity::OperatorKey;
use hawser_server::tls::{self, PeerServers};
use hawser_server::{Config, Handle, RaftTiming, RunError, Server, StartError, history, http};
use prometheus::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_secs(30);

/// One server of a cluster; it can be stopped and started again.
struct Site {
    number: usize,
    address: SocketAddr,
    all: Vec<SocketAddr>,
    datacenter: String,
    key: String,
    folder: TempDir,
    running: Option<Running>,
}

struct Running {
    handle: Handle,
    drain: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.drain.cancel();
        }
    }
}

impl Site {
    fn config(&self) -> Config {
        Config {
            node: format!("s{}", self.number).parse().expect("a name"),
            datacenter: self.datacenter.parse().expect("a datacenter"),
            data_dir: self.folder.path().to_owned(),
            advertise: self.address,
            bootstrap_expect: u8::try_from(self.all.len()).expect("few"),
            retry_join: self.all.iter().map(ToString::to_string).collect(),
            operator_key: self.key.parse::<OperatorKey>().expect("a key"),
            default_action: Action::Deny,
            reap_after: Duration::from_secs(3_600),
            leaf_lifetime: Duration::from_secs(24 * 3_600),
            timing: RaftTiming::default(),
            lease: Duration::from_secs(15),
            history: history::Limits::default(),
            aws_iam: None,
            snapshot_every: 1_024,
            log_bytes_max: hawser_server::config::LOG_BYTES_MAX,
            planted: hawser_server::planted::Planted::default(),
            acl: hawser_server::acl::Settings::default(),
        }
    }

    async fn start(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let server = loop {
            assert!(Instant::now() < deadline, "port and store are free again");
            let Ok(listener) = TcpListener::bind(self.address) else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            match Server::start(self.config(), listener, &Registry::new()).await {
                Ok(server) => break server,
                Err(StartError::Store(_) | StartError::History(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(failure) => panic!("{failure}"),
            }
        };
        let (handle, drain) = (server.handle(), CancellationToken::new());
        let task = tokio::spawn(server.run(drain.clone()));
        self.running = Some(Running { handle, drain, task });
    }

    async fn stop(&mut self) {
        let running = self.running.take().expect("it runs");
        running.drain.cancel();
        running.task.await.expect("no panic").expect("a clean end");
    }

    fn handle(&self) -> &Handle {
        &self.running.as_ref().expect("it runs").handle
    }
}

/// The servers of one cluster.
struct Cluster(Vec<Site>);

impl Cluster {
    async fn start(datacenter: &str, size: usize) -> Self {
        let key = OperatorKey::generate().expect("randomness").reveal().to_string();
        let held: Vec<TcpListener> =
            (0..size).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let all: Vec<SocketAddr> =
            held.iter().map(|listener| listener.local_addr().expect("bound")).collect();
        drop(held);
        let mut sites = Vec::new();
        for (number, address) in all.iter().enumerate() {
            let mut site = Site {
                number,
                address: *address,
                all: all.clone(),
                datacenter: datacenter.to_owned(),
                key: key.clone(),
                folder: tempfile::tempdir().expect("a folder"),
                running: None,
            };
            site.start().await;
            sites.push(site);
        }
        let cluster = Self(sites);
        for site in &cluster.0 {
            tokio::time::timeout(PATIENCE, site.handle().ready()).await.expect("a leader");
        }
        cluster.until("an authority", |state| state.authority().is_some()).await;
        cluster
    }

    fn one(&self) -> &Handle {
        let running = self.0.iter().find(|site| site.running.is_some());
        running.expect("one runs").handle()
    }

    /// Waits until the state at the first server is as `wanted`.
    async fn until(&self, what: &str, wanted: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.one().reader.current()) {
            assert!(Instant::now() < deadline, "{what}, in time: {:#?}", self.peerings());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn peerings(&self) -> Vec<Peering> {
        let state = self.one().reader.current();
        state.peerings().iter().map(|row| Peering::clone(&row.value)).collect()
    }

    async fn until_state(&self, peer: &str, wanted: PeerState) {
        self.until(&format!("{peer} is {wanted}"), |state| state_of(state, peer) == Some(wanted))
            .await;
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        call(self.one(), method, path, body).await
    }

    async fn token(&self, peer: &str) -> String {
        let (status, body) =
            self.call("POST", "/v1/peering/token", json!({ "PeerName": peer })).await;
        assert_eq!(status, 200, "{body}");
        body["PeeringToken"].as_str().expect("a token").to_owned()
    }

    async fn establish(&self, peer: &str, token: &str) -> (u16, Value) {
        let body = json!({ "PeerName": peer, "PeeringToken": token });
        self.call("POST", "/v1/peering/establish", body).await
    }

    async fn register(&self, service: &str, status: Status) {
        let node = format!("on-{service}");
        let changes = NodeChanges {
            node: Node {
                name: node.parse().expect("a name"),
                id: node.as_str().into(),
                address: [10, 1, 1, 1].into(),
                locality: Default::default(),
                meta: Default::default(),
                tagged: Default::default(),
            },
            put_instances: vec![instance(service, None)],
            put_checks: vec![Check {
                id: "up".parse().expect("an id"),
                name: "up".into(),
                kind: "http".into(),
                status,
                notes: "".into(),
                output: "not to be told".into(),
                instance: Some(service.parse().expect("an id")),
                run: Default::default(),
            }],
            drop_instances: Vec::new(),
            drop_checks: Vec::new(),
        };
        self.one().proposer.propose(Command::SyncNode(changes)).await.expect("registered");
    }

    async fn export(&self, services: &[&str], peer: &str) {
        let one = |service: &&str| json!({ "Name": service, "Consumers": [{ "Peer": peer }] });
        let services: Vec<Value> = services.iter().map(one).collect();
        let entry = json!({ "Kind": "exported-services", "Name": "default", "Services": services });
        let (status, body) = self.call("PUT", "/v1/config", entry).await;
        assert_eq!(status, 200, "{body}");
    }
}

fn instance(service: &str, gateway: Option<&str>) -> Instance {
    Instance {
        id: service.parse().expect("an id"),
        service: service.parse().expect("a name"),
        address: None,
        port: 80,
        tags: BTreeSet::new(),
        meta: Default::default(),
        weights: Default::default(),
        protocol: Some(Protocol::Http),
        mesh_port: Some(21_000),
        enable_tag_override: false,
        gateway: gateway.map(Into::into),
        socket: None,
        ports: Default::default(),
        tagged: Default::default(),
    }
}

fn state_of(state: &State, peer: &str) -> Option<PeerState> {
    Some(state.peerings().get(&peer.parse::<PeerName>().expect("a name"))?.value.state)
}

/// How the instances of `service` of `peer` are, as imported.
fn imported(state: &State, peer: &str, service: &str) -> Option<Vec<Status>> {
    let key = PeerService {
        peer: peer.parse().expect("a name"),
        service: service.parse().expect("a name"),
    };
    let row = state.peerings().import(&key)?;
    Some(row.value.endpoints.iter().map(|endpoint| endpoint.status).collect())
}

async fn call(handle: &Handle, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request =
        ::http::Request::builder().method(method).uri(path).body(body).expect("a request");
    let response = Box::pin(http::respond(handle, request)).await;
    let text = String::from_utf8_lossy(response.body()).into_owned();
    let status = response.status().as_u16();
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

/// Two clusters that are peers: the first gave the token out, and the second dials.
async fn peers() -> (Cluster, Cluster) {
    let (east, west) = (Cluster::start("dc1", 1).await, Cluster::start("dc2", 1).await);
    let token = east.token("west").await;
    assert_eq!(east.call("GET", "/v1/peering/west", Value::Null).await.1["State"], "PENDING");
    assert_eq!(west.establish("east", &token).await, (200, json!({})));
    east.until_state("west", PeerState::Active).await;
    west.until_state("east", PeerState::Active).await;
    (east, west)
}

/// What a server of `from` sees at the port of `to`, under its own identity.
async fn dialled(from: &Handle, to: &Handle, shows: bool) -> Channel {
    let servers = PeerServers {
        trust_domain: to.identity.trust_domain().clone(),
        datacenter: to.identity.datacenter().clone(),
        roots: vec![to.identity.server_root_der().into()],
    };
    let config =
        tls::peer_dial_config(&servers, shows.then_some(&from.identity)).expect("supported");
    let PeerServers { trust_domain, datacenter, .. } = servers;
    let sni = Sni::Servers { trust_domain, datacenter };
    let address = &to.roster.own().address;
    tls::connect_peer(config, address, &sni, PATIENCE).await.expect("a connection")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_exports_the_other_imports() {
    let (east, west) = peers().await;
    for service in ["web", "private"] {
        west.register(service, Status::Passing).await;
    }
    west.export(&["web", "missing"], "east").await;
    let is =
        |wanted: Option<Vec<Status>>| move |state: &State| imported(state, "west", "web") == wanted;
    east.until("web is imported", is(Some(vec![Status::Passing]))).await;
    let state = east.one().reader.current();
    assert_eq!(imported(&state, "west", "private"), None, "nobody exported it");
    assert_eq!(imported(&state, "west", "missing"), None, "there is none");
    let key = PeerService {
        peer: "west".parse().expect("a name"),
        service: "web".parse().expect("a name"),
    };
    let import = state.peerings().import(&key).expect("imported").value.clone();
    assert_eq!(import.protocol, Protocol::Http);
    assert_eq!(import.endpoints[0].mesh, Some("10.1.1.1:21000".parse().expect("an address")));

    west.register("web", Status::Critical).await;
    east.until("its health changes", is(Some(vec![Status::Critical]))).await;
    let (_, list) = east.call("GET", "/v1/imported-services", Value::Null).await;
    assert_eq!(list, json!([{ "Service": "web", "SourcePeer": "west" }]));
    let (_, list) = west.call("GET", "/v1/exported-services", Value::Null).await;
    assert_eq!(list[1]["Service"], "web");
    assert_eq!(list[1]["Consumers"]["Peers"], json!(["east"]));

    let (_, all) = east.call("GET", "/v1/peerings", Value::Null).await;
    let (_, far) = west.call("GET", "/v1/peering/east", Value::Null).await;
    let seen = &all[0];
    assert_eq!((&seen["Name"], &seen["State"]), (&json!("west"), &json!("ACTIVE")));
    assert_eq!((&seen["PeerID"], &seen["ID"]), (&far["ID"], &far["PeerID"]));
    assert_eq!(seen["Remote"]["Datacenter"], "dc2");
    assert_eq!(seen["StreamStatus"]["ImportedServices"], json!(["web"]));
    assert_eq!(far["StreamStatus"]["ExportedServices"], json!(["missing", "web"]));
    assert!(seen["StreamStatus"]["LastHeartbeat"].is_string(), "{seen}");
    assert_eq!(
        far["PeerServerName"],
        format!("server.dc1.peering.{}", east.one().identity.trust_domain())
    );

    let applied = east.one().reader.current().applied();
    west.register("private", Status::Critical).await;
    west.export(&["private"], "east").await;
    east.until("web is exported no more", is(None)).await;
    let state = east.one().reader.current();
    assert_eq!(imported(&state, "west", "private"), Some(vec![Status::Critical]));
    assert!(state.applied().0 - applied.0 <= 3, "what did not change is not written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_are_told_and_resolved() {
    let (east, west) = peers().await;
    let changes = NodeChanges {
        node: Node {
            name: "edge".parse().expect("a name"),
            id: "edge".into(),
            address: [10, 1, 1, 2].into(),
            locality: Default::default(),
            meta: Default::default(),
            tagged: Default::default(),
        },
        put_instances: vec![instance("mesh-gateway", Some("127.0.0.9:8443"))],
        put_checks: Vec::new(),
        drop_instances: Vec::new(),
        drop_checks: Vec::new(),
    };
    west.one().proposer.propose(Command::SyncNode(changes)).await.expect("registered");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, seen) = east.call("GET", "/v1/peering/west", Value::Null).await;
        if seen["PeerGateways"] == json!(["127.0.0.9:8443"]) {
            break;
        }
        assert!(Instant::now() < deadline, "{seen}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_peering_ends_on_both_sides() {
    for dialler_deletes in [false, true] {
        let (east, west) = peers().await;
        east.register("api", Status::Passing).await;
        east.export(&["api"], "west").await;
        west.register("web", Status::Passing).await;
        west.export(&["web"], "east").await;
        east.until("web", |state| imported(state, "west", "web").is_some()).await;
        west.until("api", |state| imported(state, "east", "api").is_some()).await;
        let ((here, there), (deletes, hears)) = if dialler_deletes {
            (("east", "west"), (&west, &east))
        } else {
            (("west", "east"), (&east, &west))
        };
        let path = format!("/v1/peering/{here}");
        assert_eq!(deletes.call("DELETE", &path, Value::Null).await.0, 200);
        assert_eq!(deletes.call("DELETE", &path, Value::Null).await.0, 200, "again");
        assert_eq!(deletes.call("GET", &path, Value::Null).await.0, 404);
        hears.until_state(there, PeerState::Terminated).await;
        for (cluster, peer) in [(deletes, here), (hears, there)] {
            let state = cluster.one().reader.current();
            assert_eq!(state.peerings().imports().count(), 0, "nothing of {peer} is left");
        }
        // And they may begin anew, under the same names.
        let token = hears.token(there).await;
        assert_eq!(deletes.establish(here, &token).await, (200, json!({})));
        deletes.until_state(here, PeerState::Active).await;
        hears.until_state(there, PeerState::Active).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_fails_and_comes_back() {
    let (mut east, west) = peers().await;
    east.register("api", Status::Passing).await;
    east.export(&["api"], "west").await;
    west.until("api", |state| imported(state, "east", "api").is_some()).await;
    east.0[0].stop().await;
    west.until_state("east", PeerState::Failing).await;
    let state = west.one().reader.current();
    assert!(imported(&state, "east", "api").is_some(), "what was last known stays");
    east.0[0].start().await;
    west.until_state("east", PeerState::Active).await;
    east.until_state("west", PeerState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_one_clusters_and_no_token_makes_a_peer_of_oneself() {
    let (east, west) = peers().await;
    let north = Cluster::start("dc3", 1).await;
    let token = east.token("north").await;
    let older = east.token("other").await;
    let newer = east.token("other").await;
    let cases = [
        (&east, "self", token.clone(), 500, "this cluster", "one's own"),
        (&west, "again", token.clone(), 500, "another name", "a peer already"),
        (&north, "x", "?".to_owned(), 400, "base64", "no token"),
        (
            &north,
            "x",
            with(&token, "ServerAddresses", json!(["127.0.0.1:1"])),
            500,
            "reached",
            "nobody is there",
        ),
        (
            &north,
            "x",
            with(&token, "EstablishmentSecret", json!("A".repeat(43))),
            500,
            "not valid",
            "another secret",
        ),
        (&north, "x", with(&token, "CA", json!([pem_of(&west)])), 500, "reached", "another root"),
        (&north, "east", older, 500, "not valid", "only the last one counts"),
        (&north, "east", newer.clone(), 200, "", "the last one"),
        (&north, "east", newer.clone(), 200, "", "the same cluster again"),
    ];
    for (cluster, name, token, expected, says, why) in cases {
        let (status, body) = cluster.establish(name, &token).await;
        assert_eq!(status, expected, "{why}: {body}");
        assert!(says.is_empty() || body.to_string().contains(says), "{why}: {body}");
    }
    let south = Cluster::start("dc4", 1).await;
    let (status, body) = south.establish("east", &newer).await;
    assert_eq!(status, 500, "{body}");
    assert!(body.to_string().contains("one cluster only"), "{body}");
    assert!(south.peerings().is_empty(), "nothing is stored of what failed");
    assert_eq!(west.peerings().len(), 1);
    let (status, body) =
        west.call("POST", "/v1/peering/token", json!({ "PeerName": "east" })).await;
    assert_eq!((status, body.to_string().contains("delete")), (400, true), "{body}");
}

/// The token with another value under `key`.
fn with(token: &str, key: &str, value: Value) -> String {
    let mut json: Value =
        serde_json::from_slice(&STANDARD.decode(token).expect("base64")).expect("JSON");
    json[key] = value;
    STANDARD.encode(json.to_string())
}

fn pem_of(cluster: &Cluster) -> String {
    let der = STANDARD.encode(cluster.one().identity.server_root_der());
    format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peers_server_reaches_its_stream_and_nothing_else() {
    let (east, west) = peers().await;
    let channel = dialled(west.one(), east.one(), true).await;
    let mut raft = RaftClient::new(channel.clone());
    let mut agent = AgentClient::new(channel.clone());
    let mut peering = PeeringClient::new(channel);
    let refused = [
        raft.vote(v1::VoteRequest::default()).await.err(),
        raft.append(v1::AppendRequest::default()).await.err(),
        raft.propose(v1::Command::default()).await.err(),
        raft.read_index(v1::ReadIndexRequest::default()).await.err(),
        raft.hello(v1::HelloRequest::default()).await.err(),
        raft.admit(v1::Member::default()).await.err(),
        raft.history(v1::HistoryRequest::default()).await.err(),
        raft.transfer_leader(v1::TransferRequest::default()).await.err(),
        raft.install_snapshot(tokio_stream::empty::<v1::SnapshotChunk>()).await.err(),
        raft.renew_leases(v1::Leases::default()).await.err(),
        agent.join(v1::JoinRequest::default()).await.err(),
        agent.join_nonce(v1::JoinNonceRequest::default()).await.err(),
        agent.sign_leaf(v1::SignLeafRequest::default()).await.err(),
        agent.sync(v1::NodeChanges::default()).await.err(),
        agent.heartbeat(v1::HeartbeatRequest::default()).await.err(),
        agent.subscribe(tokio_stream::empty::<v1::Interest>()).await.err(),
        agent.http(v1::HttpRequest::default()).await.err(),
        peering.exchange(v1::ExchangeRequest::default()).await.err(),
    ];
    for (call, refused) in refused.into_iter().enumerate() {
        let code = refused.map(|refused| refused.code());
        assert_eq!(code, Some(Code::PermissionDenied), "call {call}");
    }
    let open = |id: &str| v1::PeerMessage { kind: Some(Kind::Open(id.to_owned())) };
    let gone = peering.stream(tokio_stream::iter([open("b9f7")])).await.expect_err("no such");
    assert_eq!(gone.code(), Code::NotFound);
    let mut stranger = PeeringClient::new(dialled(west.one(), east.one(), false).await);
    let refused = stranger.stream(tokio_stream::iter([open("b9f7")])).await.expect_err("nobody");
    assert_eq!(refused.code(), Code::PermissionDenied, "one without a certificate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_becomes_another_cluster() {
    let (east, west) = peers().await;
    let north = Cluster::start("dc3", 1).await;
    assert_eq!(north.establish("east", &east.token("north").await).await.0, 200);
    east.until_state("north", PeerState::Active).await;
    let peering =
        |name: &str| east.peerings().into_iter().find(|peering| &*peering.name.to_string() == name);
    let of_west = peering("west").expect("a peer");
    let held = of_west.remote.clone().expect("known");
    let open =
        |peering: &Peering| v1::PeerMessage { kind: Some(Kind::Open(peering.id.to_string())) };
    // A peer opens the peering of another.
    let mut client = PeeringClient::new(dialled(north.one(), east.one(), true).await);
    let refused = client.stream(tokio_stream::iter([open(&of_west)])).await.expect_err("not its");
    assert_eq!(refused.code(), Code::PermissionDenied);
    // A peer says that it is another.
    let forged = v1::Remote {
        trust_domain: north.one().identity.trust_domain().to_string(),
        datacenter: "dc3".to_owned(),
        ..v1::Remote::from(&held)
    };
    let mut client = PeeringClient::new(dialled(west.one(), east.one(), true).await);
    let beat = v1::Heartbeat { number: 1, is_answer: false };
    let said = [
        open(&of_west),
        v1::PeerMessage { kind: Some(Kind::Remote(forged)) },
        v1::PeerMessage { kind: Some(Kind::Heartbeat(beat)) },
    ];
    let stays = tokio_stream::StreamExt::chain(tokio_stream::iter(said), tokio_stream::pending());
    let mut stream = client.stream(stays).await.expect("opened").into_inner();
    let ended =
        tokio::time::timeout(PATIENCE, async { while let Ok(Some(_)) = stream.message().await {} });
    ended.await.expect("it is hung up on");
    let now = peering("west").expect("still a peer").remote.expect("known");
    assert_eq!((now.trust_domain, now.roots), (held.trust_domain, held.roots));
    west.until_state("east", PeerState::Active).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn any_server_may_be_asked_and_the_leader_speaks() {
    let (mut east, west) = (Cluster::start("dc1", 3).await, Cluster::start("dc2", 1).await);
    let follower = |cluster: &Cluster| {
        cluster.0.iter().position(|site| !site.handle().roster.is_leader()).expect("a follower")
    };
    // A follower gives the token out, and a follower is shown it.
    let at = follower(&east);
    let body = json!({ "PeerName": "west" });
    let (status, body) = call(east.0[at].handle(), "POST", "/v1/peering/token", body).await;
    assert_eq!(status, 200, "{body}");
    let address = json!([east.0[at].address.to_string()]);
    let token = with(body["PeeringToken"].as_str().expect("a token"), "ServerAddresses", address);
    assert_eq!(west.establish("east", &token).await, (200, json!({})));
    east.until_state("west", PeerState::Active).await;
    west.until_state("east", PeerState::Active).await;

    let to = east.0[follower(&east)].handle();
    let mut client = PeeringClient::new(dialled(west.one(), to, true).await);
    let first = v1::PeerMessage { kind: Some(Kind::Open("x".to_owned())) };
    let refused = client.stream(tokio_stream::iter([first])).await.expect_err("a follower");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let leader = to.roster.leader().expect("known").address;
    assert_eq!(refused.metadata().get("hawser-leader").expect("named"), leader.as_str());

    // The leader goes, and the next one speaks.
    let led = east.0.iter().position(|site| site.handle().roster.is_leader()).expect("a leader");
    east.0[led].stop().await;
    east.register("api", Status::Passing).await;
    east.export(&["api"], "west").await;
    west.until("api", |state| imported(state, "east", "api").is_some()).await;
    west.until_state("east", PeerState::Active).await;
}
