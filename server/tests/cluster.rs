//! Whole servers on loopback, over their real TLS: each on a runtime of its own, so that one can
//! be cut off in the middle of whatever it does.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use hawser_core::catalog::Node;
use hawser_core::clock::Index;
use hawser_core::entry::{
    Body, CookieConfig, Entry, HashPolicy, LoadBalancer, PolicyName, ServiceResolver,
};
use hawser_core::intention::Action;
use hawser_core::kv::{Change, Write};
use hawser_core::state::{Command, NodeChanges};
use hawser_server::identity::OperatorKey;
use hawser_server::propose::ProposeError;
use hawser_server::read::Consistency;
use hawser_server::{Config, Handle, RaftTiming, RunError, Server, StartError, history};
use prometheus::Registry;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const TIMING: RaftTiming = RaftTiming {
    heartbeat: Duration::from_millis(100),
    election_min: Duration::from_millis(500),
    election_max: Duration::from_millis(1_000),
};

/// A place for a server: its folder and address stay when it is restarted.
struct Place {
    name: String,
    address: SocketAddr,
    folder: TempDir,
}

struct Running {
    runtime: Option<Runtime>,
    handle: Handle,
    registry: Registry,
    drain: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

impl Place {
    fn new(name: &str) -> (Self, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let folder = tempfile::tempdir().expect("a folder");
        (Self { name: name.to_owned(), address, folder }, listener)
    }

    fn config(&self, expect: u8, others: &[&Place]) -> Config {
        Config {
            node: self.name.parse().expect("a name"),
            datacenter: "dc1".parse().expect("a datacenter"),
            data_dir: self.folder.path().to_owned(),
            advertise: self.address,
            bootstrap_expect: expect,
            retry_join: others.iter().map(|other| other.address.to_string()).collect(),
            operator_key: KEY.parse::<OperatorKey>().expect("a key"),
            default_action: Action::Deny,
            reap_after: Duration::from_secs(3_600),
            leaf_lifetime: Duration::from_secs(24 * 3_600),
            timing: TIMING,
            lease: Duration::from_secs(15),
            history: history::Limits::default(),
            aws_iam: None,
            acl: hawser_server::acl::Settings::default(),
            snapshot_every: 64,
            log_bytes_max: 1 << 20,
            planted: hawser_server::planted::Planted::default(),
        }
    }

    fn start(&self, expect: u8, others: &[&Place]) -> Running {
        let listener = wait("the port is free again", || TcpListener::bind(self.address).ok());
        self.start_on(&listener, expect, others)
    }

    fn start_on(&self, listener: &TcpListener, expect: u8, others: &[&Place]) -> Running {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        // What was cut off may need a moment to let go of its files.
        let (server, registry) = wait("the store is free", || {
            let registry = Registry::new();
            let listener = listener.try_clone().expect("a socket");
            let config = self.config(expect, others);
            match runtime.block_on(Server::start(config, listener, &registry)) {
                Ok(server) => Some((server, registry)),
                Err(StartError::Store(_) | StartError::History(_)) => None,
                Err(failure) => panic!("{}: {failure}", self.name),
            }
        });
        let handle = server.handle();
        let drain = CancellationToken::new();
        let task = runtime.spawn(server.run(drain.clone()));
        Running { runtime: Some(runtime), handle, registry, drain, task }
    }
}

impl Running {
    fn call<F: Future>(&self, call: F) -> F::Output {
        self.runtime.as_ref().expect("it runs").block_on(call)
    }

    fn id(&self) -> u64 {
        self.handle.roster.own().id
    }

    /// Writes one node, again and again until it is acknowledged.
    fn write(&self, number: usize) -> Index {
        wait("an acknowledged write", || self.try_write(number).ok())
    }

    fn try_write(&self, number: usize) -> Result<Index, ProposeError> {
        self.call(self.handle.proposer.propose(Command::SyncNode(node(number))))
    }

    /// How many nodes a read of this consistency finds.
    fn count(&self, consistency: Consistency) -> usize {
        wait("a reading", || {
            let reading = self.call(self.handle.reader.read(consistency)).ok()?;
            Some(reading.state.catalog().nodes().count())
        })
    }

    fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).expect(name);
        let metric = family.get_metric().first().expect(name);
        metric.get_counter().get_value()
    }

    fn voters(&self) -> Vec<u64> {
        self.handle.roster.status().voters.iter().copied().collect()
    }

    /// Cuts it off, as `kill -9` would.
    fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    fn stop(mut self) {
        self.drain.cancel();
        let runtime = self.runtime.take().expect("it runs");
        let ended = runtime.block_on(&mut self.task).expect("no panic");
        ended.expect("a clean end");
    }
}

fn node(number: usize) -> NodeChanges {
    NodeChanges {
        node: Node {
            name: format!("n{number}").parse().expect("a name"),
            id: format!("{number}").into(),
            address: "10.0.0.1".parse().expect("an address"),
            locality: Default::default(),
            meta: Default::default(),
            tagged: Default::default(),
        },
        put_instances: Vec::new(),
        put_checks: Vec::new(),
        drop_instances: Vec::new(),
        drop_checks: Vec::new(),
    }
}

/// Waits until `look` finds something.
#[track_caller]
fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait(what, || holds().then_some(()));
}

/// Three servers that agree on a leader, the leader first.
fn three() -> (Vec<Place>, Vec<Running>) {
    let (places, listeners): (Vec<Place>, Vec<TcpListener>) =
        ["s1", "s2", "s3"].map(Place::new).into_iter().unzip();
    let all: Vec<&Place> = places.iter().collect();
    let mut running: Vec<Running> = places
        .iter()
        .zip(listeners)
        .map(|(place, listener)| place.start_on(&listener, 3, &all))
        .collect();
    let leader = agreed(&running);
    let mut places = places;
    places.swap(0, leader);
    running.swap(0, leader);
    (places, running)
}

/// Which of them all of them take for their leader.
fn agreed(running: &[Running]) -> usize {
    wait("a leader", || {
        let leader = running[0].handle.roster.leader()?;
        let agree = |server: &Running| server.handle.roster.leader().as_ref() == Some(&leader);
        if !running.iter().all(agree) {
            return None;
        }
        running.iter().position(|server| server.id() == leader.id)
    })
}

#[test]
fn three_servers_found_a_cluster_and_write_from_anywhere() {
    let (_places, running) = three();
    for (number, server) in running.iter().enumerate() {
        let index = server.write(number);
        assert!(server.handle.reader.current().applied() >= Index(1));
        assert!(index > Index(0));
    }
    for server in &running {
        assert_eq!(server.count(Consistency::Consistent), 3, "a quorum's word");
        assert_eq!(server.count(Consistency::Default), 3, "the leader's lease");
        server.call(server.handle.ready());
    }
    assert_eq!(running[0].metric("hawser_raft_forwarded_total"), 0.0, "the leader needs nobody");
    assert!(running[1].metric("hawser_raft_forwarded_total") >= 1.0);

    let state = wait("an authority", || {
        let state = running[1].handle.reader.current();
        state.authority().is_some().then_some(state)
    });
    let cluster = state.cluster().expect("founded before the authority");
    assert_eq!(&*cluster.id, running[1].handle.identity.cluster_id());

    let refused = running[1]
        .call(running[1].handle.proposer.propose(Command::DropNode("nobody".parse().expect("a"))));
    assert!(matches!(refused, Err(ProposeError::Rejected(_))), "{refused:?}");
    running.into_iter().for_each(Running::kill);
}

#[test]
fn a_killed_leader_costs_no_acknowledged_write_and_comes_back_from_its_disk() {
    let (places, mut running) = three();
    for number in 0..20 {
        running[1].write(number);
    }
    let term = running[1].handle.roster.status().term;
    running.remove(0).kill();
    running[0].write(20);
    assert!(running[0].handle.roster.status().term > term, "another leads");
    assert_eq!(running[1].count(Consistency::Consistent), 21);

    let all: Vec<&Place> = places.iter().collect();
    let back = places[0].start(3, &all);
    wait_until("it catches up", || back.count(Consistency::Stale) == 21);
    assert_eq!(back.voters().len(), 3, "it is the member that it was");
    running.push(back);

    running.into_iter().for_each(Running::kill);
    let running: Vec<Running> = places.iter().map(|place| place.start(3, &all)).collect();
    agreed(&running);
    assert_eq!(running[0].count(Consistency::Consistent), 21, "all were killed at once");
    running.into_iter().for_each(Running::kill);
}

/// A log that a server cannot read back would end it, and every other that has it, for good.
#[test]
fn what_could_not_be_read_back_never_reaches_the_log() {
    let (place, listener) = Place::new("s1");
    let server = place.start_on(&listener, 1, &[]);
    server.write(0);
    let cookie = CookieConfig { ttl: Some(Duration::MAX), ..Default::default() };
    let hashed = HashPolicy {
        field: "cookie".to_owned(),
        field_value: "s".to_owned(),
        cookie_config: Some(cookie),
        ..Default::default()
    };
    let balancer = LoadBalancer {
        policy: PolicyName::Maglev,
        hash_policies: vec![hashed],
        ..Default::default()
    };
    let resolver =
        ServiceResolver { load_balancer: Some(Box::new(balancer)), ..Default::default() };
    let entry = Entry::stored("web", Body::ServiceResolver(resolver)).expect("a name");
    let put = Command::PutEntry { entry, expected: None, fits: None };
    let refused = server.call(server.handle.proposer.propose(put));
    assert!(matches!(refused, Err(ProposeError::Unreadable { .. })), "{refused:?}");
    server.write(1);
    server.kill();
    let again = place.start_on(&listener, 1, &[]);
    assert_eq!(again.count(Consistency::Default), 2);
    again.kill();
}

#[test]
fn a_log_of_few_large_entries_is_cut() {
    let (place, listener) = Place::new("s1");
    let server = place.start_on(&listener, 1, &[]);
    server.write(0);
    let put = |number: u8| {
        let write = Write {
            key: "blob".parse().expect("a key"),
            value: vec![number; 256 << 10].into(),
            flags: 0,
        };
        wait("an acknowledged write", || {
            let command = Command::Kv(Change::Set(write.clone()));
            server.call(server.handle.proposer.propose(command)).ok()
        });
    };
    (0..8).for_each(put);
    wait_until("it is cut", || server.handle.roster.status().purged > 4);
    server.kill();
    let again = place.start_on(&listener, 1, &[]);
    assert_eq!(again.count(Consistency::Default), 1, "nothing is lost with it");
    again.kill();
}

#[test]
fn a_server_alone_of_three_never_elects_itself() {
    let (places, running) = three();
    running[0].write(0);
    running.into_iter().for_each(Running::kill);
    let all: Vec<&Place> = places.iter().collect();
    let old = places[0].start(3, &all);
    let (fresh_place, listener) = Place::new("s9");
    let fresh = fresh_place.start_on(&listener, 3, &[]);
    // Many elections' time: there is no event to wait for when nothing may happen.
    let end = Instant::now() + TIMING.election_max * 5;
    while Instant::now() < end {
        for server in [&old, &fresh] {
            assert!(!server.handle.roster.status().is_leader, "it leads alone");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let refused = old.try_write(1);
    assert_eq!(refused, Err(ProposeError::NoLeader), "certainly not written");
    assert!(old.call(old.handle.reader.read(Consistency::Default)).is_err());
    let stale = old.call(old.handle.reader.read(Consistency::Stale)).expect("always");
    assert!(!stale.known_leader);
    assert_eq!(stale.state.catalog().nodes().count(), 1, "what it has is still read");
    [old, fresh].into_iter().for_each(Running::kill);
}

#[test]
fn servers_that_all_moved_at_once_find_each_other() {
    let (mut places, running) = three();
    running[0].write(0);
    running.into_iter().for_each(Running::kill);
    let listeners: Vec<TcpListener> =
        places.iter().map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    for (place, listener) in places.iter_mut().zip(&listeners) {
        place.address = listener.local_addr().expect("an address");
    }
    let all: Vec<&Place> = places.iter().collect();
    let running: Vec<Running> = places
        .iter()
        .zip(&listeners)
        .map(|(place, listener)| place.start_on(listener, 3, &all))
        .collect();
    running[0].write(1);
    wait_until("the membership has the new addresses", || {
        let members = running[1].handle.roster.members();
        running.iter().all(|server| members.contains(server.handle.roster.own()))
    });
    assert_eq!(running[2].count(Consistency::Consistent), 2);
    running.into_iter().for_each(Running::kill);
}

#[test]
fn a_drained_leader_hands_over_first() {
    let (_places, mut running) = three();
    running[0].write(0);
    let term = running[0].handle.roster.status().term;
    running.remove(0).stop();
    let leader = agreed(&running);
    let status = running[leader].handle.roster.status();
    assert_eq!(status.term, term + 1, "one election, asked for");
    running[0].write(1);
    running.into_iter().for_each(Running::kill);
}

#[test]
fn a_new_server_joins_by_snapshot_and_a_wiped_one_is_replaced() {
    let (mut places, mut running) = three();
    for number in 0..300 {
        running[number % 3].write(number);
    }
    wait_until("the log's beginning is purged", || {
        running.iter().all(|server| server.handle.roster.status().purged > 0)
    });

    // One comes under the name of another that lost its disk.
    let wiped = places.remove(2);
    let old_id = running[2].id();
    running.remove(2).kill();
    let (replacement, listener) = Place::new(&wiped.name);
    places.push(replacement);
    let all: Vec<&Place> = places.iter().collect();
    let replacement = places[2].start_on(&listener, 3, &all);
    assert_ne!(replacement.id(), old_id, "a wiped folder is another server");
    wait_until("it votes in the old one's place", || {
        let voters = running[0].voters();
        voters.len() == 3 && voters.contains(&replacement.id()) && !voters.contains(&old_id)
    });
    assert!(replacement.metric("hawser_raft_snapshots_installed_total") >= 1.0);
    wait_until("nothing is left of the old one", || {
        running[0].handle.roster.members().iter().all(|member| member.id != old_id)
    });
    running.push(replacement);

    // Another is new.
    let (fourth_place, listener) = Place::new("s4");
    let fourth = fourth_place.start_on(&listener, 0, &all);
    wait_until("the fourth votes", || running[0].voters().contains(&fourth.id()));
    wait_until("it has it all", || fourth.count(Consistency::Stale) == 300);
    assert!(fourth.metric("hawser_raft_snapshots_installed_total") >= 1.0);
    fourth.write(300);

    // Whoever takes a living server's name stays out.
    let (impostor_place, listener) = Place::new("s4");
    let impostor = impostor_place.start_on(&listener, 0, &all);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let members = running[0].handle.roster.members();
        assert!(members.iter().all(|member| member.id != impostor.id()));
        std::thread::sleep(Duration::from_millis(20));
    }
    running.into_iter().chain([fourth, impostor]).for_each(Running::kill);
}

#[test]
fn a_damaged_log_is_refused_with_what_to_do() {
    let (place, listener) = Place::new("s1");
    let server = place.start_on(&listener, 1, &[]);
    for number in 0..5 {
        server.write(number);
    }
    server.stop();
    drop(listener);
    let file = place.folder.path().join("raft.redb");
    cut(&file);
    let listener = TcpListener::bind(place.address).expect("the port");
    let runtime = Runtime::new().expect("a runtime");
    let started = runtime.block_on(Server::start(place.config(1, &[]), listener, &Registry::new()));
    let failure = started.err().expect("a damaged log").to_string();
    for part in ["raft.redb is damaged", "move the folder", "away"] {
        assert!(failure.contains(part), "{failure:?} has no {part:?}");
    }
}

fn cut(file: &Path) {
    let length = std::fs::metadata(file).expect("the file").len();
    let file = std::fs::OpenOptions::new().write(true).open(file).expect("the file");
    file.set_len(length / 2).expect("cut");
}
