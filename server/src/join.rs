//! Finding the other servers, founding a cluster with them or being admitted to theirs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use hawser_aws::Finder;
use hawser_proto::{Member, v1};
use hickory_resolver::TokioResolver;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::config::PORT;
use crate::dial::{Dialer, Lane};
use crate::raft::{Raft, Status};
use crate::read::Contact;

/// What joining needs.
pub(crate) struct Join {
    pub(crate) own: Member,
    pub(crate) bootstrap_expect: u8,
    pub(crate) retry_join: Vec<Seed>,
    /// Where addresses are asked for by tag.
    pub(crate) finders: Vec<Finder>,
    pub(crate) raft: Raft,
    pub(crate) dialer: Dialer,
    pub(crate) acquaintances: Acquaintances,
    pub(crate) contact: Contact,
    /// A leader that was not heard for so long leads this server no more.
    pub(crate) silence: Duration,
}

/// An address to find other servers at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Seed {
    Address(SocketAddr),
    Name { host: String, port: u16 },
}

/// An entry of `retry_join` that can be no address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("retry_join: {0:?} is not host, host:port, address, address:port or [address]:port")]
pub struct InvalidSeed(String);

/// Servers without a cluster that this one heard of, told to others so that all know all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acquaintances(Arc<Mutex<BTreeMap<u64, Member>>>);

/// What one round of questions found.
#[derive(Debug, Default, Eq, PartialEq)]
struct Round {
    /// Where an initialised cluster's leader is, or one that may know.
    cluster: Option<String>,
    /// Whether who knows the leader knows of this server, where it is now.
    lists_us: bool,
    /// Servers without a cluster, with what they expect.
    waiting: BTreeMap<u64, (Member, u32)>,
}

/// What a round makes one do.
#[derive(Debug, Eq, PartialEq)]
enum Decision {
    Admit(String),
    Found(Vec<Member>),
    Wait(&'static str),
}

impl Seed {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidSeed> {
        let invalid = || InvalidSeed(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Address(address));
        }
        let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok(Self::Address(SocketAddr::new(ip, PORT)));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().map_err(|_| invalid())?),
            None => (text, PORT),
        };
        let fits = |octet: u8| octet.is_ascii_alphanumeric() || b"-._".contains(&octet);
        if host.is_empty() || host.len() > 253 || !host.bytes().all(fits) || port == 0 {
            return Err(invalid());
        }
        Ok(Self::Name { host: host.to_owned(), port })
    }
}

impl Acquaintances {
    pub(crate) fn note(&self, member: Member) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < PEERS_MAX || known.contains_key(&member.id) {
            known.insert(member.id, member);
        }
    }

    pub(crate) fn list(&self) -> Vec<Member> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn forget_all(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Brings this server into a cluster and keeps its address there true, until `drain`.
pub(crate) async fn run(join: Join, drain: CancellationToken) {
    tokio::select! {
        () = drain.cancelled() => {}
        () = join.join() => {}
    }
}

impl Join {
    async fn join(&self) {
        if !self.raft.is_initialised().await {
            self.find_cluster().await;
        }
        let mut status = self.raft.status();
        loop {
            let (is_listed, leader) = {
                let status = status.borrow_and_update();
                // What a server knew when it stopped, it still knows when it starts.
                let is_heard = status.is_leader || self.contact.age() <= self.silence;
                let leader = status.leader.filter(|_| is_heard).and_then(|id| status.member(id));
                let is_listed = status.member(self.own.id) == Some(&self.own);
                (is_listed, leader.cloned())
            };
            match leader {
                Some(_) if is_listed => {
                    // Silence is no news.
                    match timeout(self.silence, status.changed()).await {
                        Ok(Err(_)) => return,
                        Ok(Ok(())) | Err(_) => continue,
                    }
                }
                Some(leader) if leader.id == self.own.id => {
                    if let Err(failure) = self.raft.put_member(&self.own).await {
                        tracing::debug!(error = %failure, "the own address is not stored yet");
                    }
                }
                Some(leader) if self.admit(&self.dialer.address(&leader)).await => {}
                // All may have moved at once: each tells the others where it is now. Or this one was
                // removed while it was away, and nobody tells it so.
                _ => match self.ask_all().await {
                    Round { cluster: Some(server), lists_us, .. } if !(is_listed && lists_us) => {
                        self.admit(&server).await;
                    }
                    _ => {}
                },
            }
            pause().await;
        }
    }

    /// Returns once this server is in a cluster.
    async fn find_cluster(&self) {
        let mut before = Decision::Wait("nobody was asked yet");
        loop {
            let round = self.ask_all().await;
            let decision = decide(&self.own, self.bootstrap_expect, round);
            match &decision {
                Decision::Admit(server) => drop(self.admit(server).await),
                // What is founded must have looked the same twice: none may be on its way in.
                Decision::Found(members) if members.len() == 1 || decision == before => {
                    let names: Vec<String> =
                        members.iter().map(|member| member.name.to_string()).collect();
                    tracing::info!(servers = ?names, "founding a cluster");
                    if let Err(failure) = self.raft.initialise(members).await {
                        tracing::warn!(error = %failure, "no cluster is founded");
                    }
                }
                Decision::Found(_) => {}
                Decision::Wait(why) => {
                    if decision != before {
                        tracing::info!(why, "no cluster yet");
                    }
                }
            }
            before = decision;
            pause().await;
            if self.raft.is_initialised().await {
                self.acquaintances.forget_all();
                return;
            }
        }
    }

    async fn ask_all(&self) -> Round {
        let mut addresses = resolve(&self.retry_join).await;
        for finder in &self.finders {
            let found = finder.addresses().await;
            addresses.extend(found.into_iter().map(|ip| SocketAddr::new(ip, PORT).to_string()));
        }
        addresses.extend(self.acquaintances.list().into_iter().map(|member| member.address));
        addresses.remove(&self.own.address);
        let answers: Vec<v1::HelloReply> = stream::iter(addresses)
            .map(|address| self.hello(address))
            .buffer_unordered(ASKED_TOGETHER)
            .filter_map(std::future::ready)
            .collect()
            .await;
        self.acquaintances.forget_all();
        let mut round = Round::default();
        for answer in answers {
            let Some(Ok(member)) = answer.member.map(Member::try_from) else { continue };
            if member.id == self.own.id {
                continue;
            }
            self.dialer.note(member.id, &member.address);
            if answer.is_initialised {
                let leader = answer.leader.and_then(|leader| Member::try_from(leader).ok());
                let known = leader.is_some();
                let address = leader.unwrap_or(member).address;
                if known || round.cluster.is_none() {
                    round.cluster = Some(address);
                }
                if known {
                    let own = v1::Member::from(&self.own);
                    round.lists_us = answer.members.contains(&own);
                }
                continue;
            }
            for other in answer.members.into_iter().take(PEERS_MAX) {
                if let Ok(other) = Member::try_from(other)
                    && other.id != self.own.id
                {
                    self.acquaintances.note(other);
                }
            }
            self.acquaintances.note(member.clone());
            round.waiting.insert(member.id, (member, answer.bootstrap_expect));
        }
        round
    }

    async fn hello(&self, address: String) -> Option<v1::HelloReply> {
        let mut client = self.dialer.client(&address, Lane::Request).ok()?;
        let request = v1::HelloRequest {
            from: Some((&self.own).into()),
            bootstrap_expect: self.bootstrap_expect.into(),
        };
        match timeout(HELLO_MAX, client.hello(request)).await {
            Ok(Ok(reply)) => Some(reply.into_inner()),
            Ok(Err(refused)) => {
                tracing::debug!(%address, error = %refused, "a server does not answer");
                None
            }
            Err(_) => None,
        }
    }

    /// Asks the server at `address` to be let in; whether it was.
    async fn admit(&self, address: &str) -> bool {
        let Ok(mut client) = self.dialer.client(address, Lane::Request) else { return false };
        match timeout(ADMIT_MAX, client.admit(v1::Member::from(&self.own))).await {
            Ok(Ok(_)) => {
                tracing::info!(%address, "this server is admitted");
                return true;
            }
            Ok(Err(refused))
                if matches!(refused.code(), Code::AlreadyExists | Code::FailedPrecondition) =>
            {
                tracing::error!(error = refused.message(), "this server is not admitted");
            }
            Ok(Err(refused)) => {
                tracing::debug!(%address, error = %refused, "not admitted yet");
            }
            Err(_) => tracing::debug!(%address, "not admitted in time"),
        }
        false
    }
}

/// A cluster that is there is joined. Otherwise the server with the lowest id founds one, once it
/// has heard, itself, as many as are expected, all of whom expect the same.
fn decide(own: &Member, expect: u8, round: Round) -> Decision {
    if let Some(server) = round.cluster {
        return Decision::Admit(server);
    }
    if expect == 0 {
        return Decision::Wait("this server founds none, and no cluster answers");
    }
    if round.waiting.values().any(|(_, theirs)| *theirs != 0 && *theirs != u32::from(expect)) {
        return Decision::Wait("servers disagree on bootstrap_expect: give all the same");
    }
    let mut founders: Vec<Member> = round
        .waiting
        .into_values()
        .filter(|(_, theirs)| *theirs != 0)
        .map(|(member, _)| member)
        .collect();
    founders.push(own.clone());
    founders.sort_by_key(|member| member.id);
    let names: BTreeSet<&str> = founders.iter().map(|member| member.name.as_str()).collect();
    if names.len() < founders.len() {
        return Decision::Wait("two servers have the same name: rename one");
    }
    if founders.len() < usize::from(expect) {
        return Decision::Wait("waiting for more servers");
    }
    if founders.first().is_some_and(|first| first.id != own.id) {
        return Decision::Wait("another server founds the cluster");
    }
    Decision::Found(founders)
}

/// Every address of every seed that resolves now.
async fn resolve(seeds: &[Seed]) -> BTreeSet<String> {
    let mut addresses = BTreeSet::new();
    for seed in seeds.iter().take(SEEDS_MAX) {
        match seed {
            Seed::Address(address) => {
                addresses.insert(address.to_string());
            }
            Seed::Name { host, port } => {
                for ip in look_up(host).await {
                    addresses.insert(SocketAddr::new(ip, *port).to_string());
                }
            }
        }
    }
    addresses
}

/// The addresses of `host`, by this system's resolver; none when it has none in time.
pub(crate) async fn look_up(host: &str) -> Vec<IpAddr> {
    // Made anew each time: the system's configuration may have changed.
    let resolver = match TokioResolver::builder_tokio().and_then(|builder| builder.build()) {
        Ok(resolver) => resolver,
        Err(failure) => {
            tracing::warn!(error = %failure, "this system cannot resolve names");
            return Vec::new();
        }
    };
    match timeout(LOOK_UP_MAX, resolver.lookup_ip(host)).await {
        Ok(Ok(found)) => found.iter().take(PEERS_MAX).collect(),
        Ok(Err(failure)) => {
            tracing::debug!(host, error = %failure, "a server's name does not resolve");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

/// Between two rounds: half a second to one and a half, so that servers do not ask in step.
async fn pause() {
    sleep(Duration::from_millis(rand::random_range(500..1_500))).await;
}

/// Whether `old`, of the same name as one who wants in, was heard so lately that it lives.
pub(crate) fn is_living(status: &Status, old: u64, silence: Duration) -> bool {
    status.heard.get(&old).is_some_and(|heard| heard.elapsed() < silence)
}

const HELLO_MAX: Duration = Duration::from_secs(2);
const ADMIT_MAX: Duration = Duration::from_secs(5);
const LOOK_UP_MAX: Duration = Duration::from_secs(5);
const SEEDS_MAX: usize = 64;
const PEERS_MAX: usize = 64;
const ASKED_TOGETHER: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64) -> Member {
        let name = format!("s{id}").parse().expect("a name");
        Member { id, name, address: format!("127.0.0.1:{id}") }
    }

    fn waiting(others: &[(u64, u32)]) -> Round {
        let waiting = others.iter().map(|(id, expect)| (*id, (member(*id), *expect))).collect();
        Round { cluster: None, lists_us: false, waiting }
    }

    #[test]
    fn who_founds_and_who_waits() {
        let found = |ids: &[u64]| Decision::Found(ids.iter().map(|id| member(*id)).collect());
        let cases = [
            // own id, own expectation, others, expected decision
            (1, 1, waiting(&[]), found(&[1])),
            (1, 3, waiting(&[]), Decision::Wait("waiting for more servers")),
            (1, 3, waiting(&[(2, 3)]), Decision::Wait("waiting for more servers")),
            (1, 3, waiting(&[(2, 3), (3, 3)]), found(&[1, 2, 3])),
            (2, 3, waiting(&[(1, 3), (3, 3)]), Decision::Wait("another server founds the cluster")),
            (1, 3, waiting(&[(2, 3), (3, 0)]), Decision::Wait("waiting for more servers")),
            (
                1,
                3,
                waiting(&[(2, 3), (3, 5)]),
                Decision::Wait("servers disagree on bootstrap_expect: give all the same"),
            ),
            (
                1,
                0,
                waiting(&[(2, 3), (3, 3)]),
                Decision::Wait("this server founds none, and no cluster answers"),
            ),
        ];
        for (own, expect, round, expected) in cases {
            let shown = format!("{own} {expect} {round:?}");
            assert_eq!(decide(&member(own), expect, round), expected, "{shown}");
        }
        let round = Round { cluster: Some("a:1".to_owned()), ..waiting(&[(2, 3), (3, 3)]) };
        assert_eq!(decide(&member(1), 3, round), Decision::Admit("a:1".to_owned()));
    }

    #[test]
    fn seeds_are_addresses_or_names() {
        let name = |host: &str, port| Seed::Name { host: host.to_owned(), port };
        let address = |text: &str| Seed::Address(text.parse().expect("an address"));
        let good = [
            ("10.0.0.1", address("10.0.0.1:8300")),
            ("10.0.0.1:99", address("10.0.0.1:99")),
            ("::1", address("[::1]:8300")),
            ("[::1]", address("[::1]:8300")),
            ("[::1]:99", address("[::1]:99")),
            ("servers.example", name("servers.example", 8300)),
            ("servers.example:99", name("servers.example", 99)),
        ];
        for (text, expected) in good {
            assert_eq!(Seed::parse(text).as_ref(), Ok(&expected), "{text}");
        }
        for text in ["", ":8300", "a b", "host:port", "host:0", "http://host", "host:99999"] {
            assert!(Seed::parse(text).is_err(), "{text}");
        }
    }
}
