//! Recorded histories of clients of whole clusters, while servers are killed, paused, cut off and
//! exchanged: judged by a linearizability checker (Wing and Gong's algorithm, with Lowe's memory).
//!
//! `HAWSER_HISTORIES=N` records N histories of each kind instead of the few that every run has.

mod clients;
mod links;
mod model;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use self::clients::Play;
use self::links::{Links, Over};
use crate::harness::{Net, Process, eventually, get_json, hawser, request};
use crate::operate::voters;

/// Servers behind relays.
struct Cluster {
    servers: BTreeMap<u8, Process>,
    links: Links,
    _over: Over,
    net: Net,
}

impl Cluster {
    /// Three servers that have found each other, each with the bug `bug`.
    fn new(bug: Option<&str>) -> Self {
        let net = Net::new();
        let links = Links::new(&net);
        for n in 1..=HOSTS {
            links.relay(&net, n);
        }
        let servers = (1..=3).map(|n| (n, net.server_behind(n, 3, bug))).collect();
        for n in 1..=3 {
            eventually("a server to be ready", || get_json(net.http(n), "/v1/hawser/ready"));
        }
        let http = net.http(1).to_string();
        let hurry = ["-server-stabilization-time=1s", "-cleanup-dead-servers=false"];
        let set = [&["operator", "autopilot", "set-config"], &hurry[..], &["-http-addr", &http]];
        assert!(hawser(&set.concat()).status.success());
        Self { servers, _over: Over(links.clone()), links, net }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.keys().map(|n| self.net.http(*n)).collect()
    }

    /// Who leads, by the word of whoever answers.
    fn leader(&self) -> u8 {
        eventually("a leader", || {
            let known = self.servers.keys().find_map(|n| {
                let address = get_json(self.net.http(*n), "/v1/status/leader")?;
                let host = address.as_str()?.split(':').next()?;
                (1..=HOSTS).find(|n| self.net.address(100 + n) == host)
            });
            known.filter(|n| self.servers.contains_key(n))
        })
    }

    /// The `n`th of those who do not lead.
    fn follower(&self, n: usize) -> u8 {
        let leader = self.leader();
        let followers: Vec<u8> = self.servers.keys().copied().filter(|n| *n != leader).collect();
        followers[n % followers.len()]
    }

    fn server(&mut self, n: u8) -> &mut Process {
        self.servers.get_mut(&n).expect("a server of this cluster")
    }

    /// Records a history while `fault` does its worst, and gives it to the checker.
    fn record(&mut self, number: usize, fault: impl FnOnce(&mut Self, &Play)) -> Vec<String> {
        let play = Play::new(format!("h{number}"), self.addresses());
        let (events, mut faults) = play.run(|play| {
            assert!(play.advances(STEP, LONG), "writes before the fault");
            fault(self, play);
            play.advances(STEP, LONG);
        });
        let wrong = model::violations(&events);
        faults.extend(wrong.iter().map(|key| {
            let mut told: Vec<_> = events.iter().filter(|event| event.key == *key).collect();
            told.sort_by_key(|event| event.called);
            format!("key {key} was no register: {told:#?}")
        }));
        faults
    }

    /// Records histories with one fault after the other, and holds the servers to each.
    fn hold(&mut self, faults: &[(&str, Fault)]) {
        for number in 0..rounds(faults.len()) {
            let (what, fault) = faults[number % faults.len()];
            let found = self.record(number, |cluster, play| fault(cluster, play, number));
            assert!(found.is_empty(), "history {number}, {what}:\n{}", found.join("\n"));
        }
    }
}

/// What is done to a cluster in the midst of a history, given the history's number.
type Fault = fn(&mut Cluster, &Play, usize);

fn rounds(at_least: usize) -> usize {
    let stated = std::env::var("HAWSER_HISTORIES").ok().and_then(|text| text.parse().ok());
    stated.unwrap_or(at_least)
}

/// Kills `servers`, lets the others go on for a while, and starts them again.
fn kill(cluster: &mut Cluster, play: &Play, servers: &[u8]) {
    servers.iter().for_each(|n| cluster.server(*n).kill());
    play.advances(STEP, SHORT);
    servers.iter().for_each(|n| cluster.server(*n).restart());
}

/// Stops the clocks of `servers` for a while.
fn pause(cluster: &mut Cluster, play: &Play, servers: &[u8]) {
    servers.iter().for_each(|n| cluster.server(*n).signal("-STOP"));
    play.advances(STEP, SHORT);
    servers.iter().for_each(|n| cluster.server(*n).signal("-CONT"));
}

/// Cuts `servers` off from all others for a while; their clients still reach them.
fn isolate(cluster: &Cluster, play: &Play, servers: &[u8]) {
    cluster.links.isolate(servers);
    play.advances(STEP, SHORT);
    cluster.links.isolate(&[]);
}

#[test]
fn histories_with_kills_are_linearizable() {
    Cluster::new(None).hold(&[
        ("the leader is killed", |cluster, play, _| kill(cluster, play, &[cluster.leader()])),
        ("a follower is killed", |cluster, play, n| kill(cluster, play, &[cluster.follower(n)])),
        ("all are killed", |cluster, play, _| kill(cluster, play, &[1, 2, 3])),
        ("a majority is killed", |cluster, play, n| {
            kill(cluster, play, &[cluster.leader(), cluster.follower(n)]);
        }),
        ("one is killed after the other", |cluster, play, _| {
            kill(cluster, play, &[cluster.leader()]);
            kill(cluster, play, &[cluster.leader()]);
        }),
        ("the leader is killed while a follower stands still", |cluster, play, n| {
            let (leader, follower) = (cluster.leader(), cluster.follower(n));
            cluster.server(follower).signal("-STOP");
            kill(cluster, play, &[leader]);
            cluster.server(follower).signal("-CONT");
        }),
    ]);
}

#[test]
fn histories_with_pauses_are_linearizable() {
    Cluster::new(None).hold(&[
        ("the leader stands still", |cluster, play, _| pause(cluster, play, &[cluster.leader()])),
        ("a follower stands still", |cluster, play, n| {
            pause(cluster, play, &[cluster.follower(n)]);
        }),
        ("all stand still", |cluster, play, _| pause(cluster, play, &[1, 2, 3])),
        ("both followers stand still", |cluster, play, n| {
            pause(cluster, play, &[cluster.follower(n), cluster.follower(n + 1)]);
        }),
        ("one after the other stands still", |cluster, play, _| {
            pause(cluster, play, &[cluster.leader()]);
            pause(cluster, play, &[cluster.leader()]);
        }),
        ("the leader stands still, and is killed", |cluster, play, _| {
            let leader = cluster.leader();
            pause(cluster, play, &[leader]);
            kill(cluster, play, &[leader]);
        }),
    ]);
}

#[test]
fn histories_with_partitions_are_linearizable() {
    Cluster::new(None).hold(&[
        ("the leader is cut off", |cluster, play, _| isolate(cluster, play, &[cluster.leader()])),
        ("a follower is cut off", |cluster, play, n| {
            isolate(cluster, play, &[cluster.follower(n)]);
        }),
        ("each is alone", |cluster, play, _| isolate(cluster, play, &[1, 2, 3])),
        ("one after the other is cut off", |cluster, play, _| {
            isolate(cluster, play, &[cluster.leader()]);
            isolate(cluster, play, &[cluster.leader()]);
        }),
        ("the leader is cut off, and another killed", |cluster, play, n| {
            let (leader, follower) = (cluster.leader(), cluster.follower(n));
            cluster.links.isolate(&[leader]);
            play.advances(STEP, SHORT);
            kill(cluster, play, &[follower]);
            cluster.links.isolate(&[]);
        }),
        ("a follower is cut off, and the leader stands still", |cluster, play, n| {
            let (leader, follower) = (cluster.leader(), cluster.follower(n));
            cluster.links.isolate(&[follower]);
            pause(cluster, play, &[leader]);
            cluster.links.isolate(&[]);
        }),
    ]);
}

#[test]
fn histories_with_changes_of_membership_are_linearizable() {
    Cluster::new(None).hold(&[
        ("a server joins while the leader hands over", |cluster, play, number| {
            join(cluster, number);
            transfer(cluster);
            play.advances(STEP, SHORT);
            is_voter(cluster, added(number), true);
        }),
        ("the leader is killed while a server leaves", |cluster, play, number| {
            leave(cluster, number - 1);
            kill(cluster, play, &[cluster.leader()]);
        }),
        ("the leader is cut off while a server joins", |cluster, play, number| {
            join(cluster, number);
            isolate(cluster, play, &[cluster.leader()]);
            is_voter(cluster, added(number), true);
        }),
        ("a server leaves while a follower stands still", |cluster, play, number| {
            let follower = cluster.follower(number);
            let follower = if follower == added(number - 1) { 1 } else { follower };
            cluster.server(follower).signal("-STOP");
            leave(cluster, number - 1);
            play.advances(STEP, SHORT);
            cluster.server(follower).signal("-CONT");
        }),
    ]);
}

/// Which host joined in history `number`: one that none was before.
fn added(number: usize) -> u8 {
    4 + u8::try_from(number / 2).expect("few histories change the membership")
}

fn join(cluster: &mut Cluster, number: usize) {
    let n = added(number);
    let server = cluster.net.server_behind(n, 0, None);
    cluster.servers.insert(n, server);
}

fn is_voter(cluster: &Cluster, n: u8, expected: bool) {
    let name = format!("n{n}");
    eventually("the servers to agree on who votes", || {
        let known = voters(cluster.net.http(cluster.leader()))?;
        (known.contains(&name) == expected).then_some(())
    });
}

/// Removes the host that joined in history `number`, and ends it.
fn leave(cluster: &mut Cluster, number: usize) {
    let n = added(number);
    let address = format!("{}:8300", cluster.net.address(100 + n));
    let path = format!("/v1/operator/raft/peer?address={address}");
    eventually("it to be removed", || {
        let leader = cluster.leader();
        if leader == n {
            transfer(cluster);
            return None;
        }
        request(cluster.net.http(leader), "DELETE", &path, None)?;
        let known = voters(cluster.net.http(leader))?;
        (!known.contains(&format!("n{n}"))).then_some(())
    });
    drop(cluster.servers.remove(&n));
}

/// Lets another server lead; where none can, all stays as it is.
fn transfer(cluster: &Cluster) {
    let http = cluster.net.http(cluster.leader());
    drop(request(http, "POST", "/v1/operator/raft/transfer-leader", None));
}

#[test]
fn a_build_that_acknowledges_before_it_is_durable_is_found() {
    let mut cluster = Cluster::new(Some("early-ack"));
    // Nothing is lost by a kill that meets no write on its way to the disk.
    let is_found = (0..TRIES).any(|number| {
        let found = cluster.record(number, |cluster, play| kill(cluster, play, &[1, 2, 3]));
        found.iter().any(|fault| fault.contains("was no register"))
    });
    assert!(is_found, "{TRIES} kills of all servers lost nothing that anybody noticed");
}

#[test]
fn a_build_that_reads_stale_is_found() {
    let mut cluster = Cluster::new(Some("stale-reads"));
    let found = cluster.record(0, |cluster, play| isolate(cluster, play, &[cluster.follower(0)]));
    assert!(found.iter().any(|fault| fault.contains("was no register")), "{found:?}");
}

/// How often a bug may hide before its test fails.
const TRIES: usize = 8;
/// Acknowledged writes before, during and after a fault.
const STEP: usize = 12;
/// How long a fault lasts when nothing goes on meanwhile.
const SHORT: Duration = Duration::from_millis(1_700);
const LONG: Duration = Duration::from_secs(60);
/// How many hosts a cluster may ever have.
const HOSTS: u8 = 60;
