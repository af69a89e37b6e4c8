//! One packet and the current view → a reply, or what must happen first.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_core::dns::{self, Answer, InvalidDomain, Kind, Outcome, Question, Want, Zone, query};
use hawser_core::view::View;
use tokio::sync::mpsc;

use crate::config::{Config, Feed};
use crate::metrics::Metrics;
use crate::wire::{self, Flags, Query, Rcode, Suffixes, Terms, Unfit};

/// All that answering needs besides the packet and the view.
#[derive(Debug)]
pub(crate) struct Responder {
    zone: Zone,
    suffixes: Vec<Suffixes>,
    ttl_s: u32,
    has_recursors: bool,
    own_address: IpAddr,
    stale_max: Duration,
    last_contact_ms: Arc<AtomicU64>,
    touches: mpsc::Sender<Want>,
    pub(crate) metrics: Metrics,
}

/// Who asks, and over what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    /// Loopback or the host itself: an address that nobody else can forge.
    is_local: bool,
    transport: Transport,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What comes of one packet.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Step {
    /// Nothing is sent.
    Silence,
    /// The reply is written.
    Reply,
    /// The view must contain this first.
    Want(Want),
    /// The servers must be asked what this prepared query finds.
    Query(Box<str>),
    /// A recursor must be asked.
    Recurse,
}

impl Responder {
    pub(crate) fn new(
        config: &Config,
        feed: &Feed,
        metrics: Metrics,
    ) -> Result<Self, InvalidDomain> {
        let zone = Zone::new(
            &config.domain,
            config.alt_domain.as_deref(),
            config.datacenter.clone(),
            config.node.clone(),
            config.address,
            config.only_passing,
        )?;
        Ok(Self {
            suffixes: Suffixes::of(&zone),
            zone,
            ttl_s: seconds(config.ttl),
            has_recursors: !config.recursors.is_empty(),
            own_address: config.address.to_canonical(),
            stale_max: config.stale_max,
            last_contact_ms: feed.last_contact_ms.clone(),
            touches: feed.wants.clone(),
            metrics,
        })
    }

    /// The client behind `address`.
    pub(crate) fn client(&self, address: IpAddr, transport: Transport) -> Client {
        let address = address.to_canonical();
        Client { is_local: address.is_loopback() || address == self.own_address, transport }
    }

    /// Answers `packet` from `view`; `draw` decides the order of the records.
    pub(crate) fn respond(
        &self,
        packet: &[u8],
        client: Client,
        view: &View,
        draw: u64,
        out: &mut Vec<u8>,
    ) -> Step {
        let query = match wire::decode(packet) {
            Ok(query) => query,
            Err(Unfit::Silent) => {
                self.metrics.ignored.inc();
                return Step::Silence;
            }
            Err(Unfit::Refused(rcode)) => {
                wire::header(out, packet, rcode);
                self.metrics.count(None, rcode);
                return Step::Reply;
            }
        };
        if let Some(rcode) = unserved(&query, client) {
            return self.fail(&query, rcode, out);
        }
        let kind = wire::kind(query.code);
        let limit = limit(&query, packet, client);
        let question = Question { name: &query.name, kind, draw, most: most(kind, limit) };
        match dns::resolve(&self.zone, view, &question) {
            Outcome::Answer(answer) if self.is_too_old(&answer) => {
                self.fail(&query, Rcode::ServFail, out)
            }
            Outcome::Answer(answer) => {
                self.touch(&answer, draw);
                self.write(&query, &answer, self.ttl_s, limit, out)
            }
            Outcome::Query { name, .. } => Step::Query(name),
            Outcome::Needs(_) if self.is_stale() => self.fail(&query, Rcode::ServFail, out),
            Outcome::Needs(want) => Step::Want(want),
            Outcome::Outside | Outcome::Unplaced
                if self.has_recursors && client.is_local && query.recursion_desired =>
            {
                Step::Recurse
            }
            Outcome::Outside => self.fail(&query, Rcode::Refused, out),
            Outcome::Unplaced => self.fail(&query, Rcode::NxDomain, out),
        }
    }

    /// Answers `packet`, which asks for a prepared query, with what that found.
    pub(crate) fn answer_query(
        &self,
        packet: &[u8],
        client: Client,
        found: &query::Found,
        out: &mut Vec<u8>,
    ) -> Step {
        let Ok(query) = wire::decode(packet) else { return Step::Silence };
        let Some(domain) = self.zone.domain_of(&query.name) else { return Step::Silence };
        let kind = wire::kind(query.code);
        let limit = limit(&query, packet, client);
        let question = Question { name: &query.name, kind, draw: 0, most: most(kind, limit) };
        let answer = query::answer(found, domain, &question);
        let ttl_s = found.ttl.map_or(self.ttl_s, seconds);
        self.write(&query, &answer, ttl_s, limit, out)
    }

    /// Writes the reply that says that `packet`'s question cannot be answered now.
    pub(crate) fn give_up(&self, packet: &[u8], out: &mut Vec<u8>) -> Step {
        match wire::decode(packet) {
            Ok(query) => self.fail(&query, Rcode::ServFail, out),
            Err(_) => Step::Silence,
        }
    }

    /// Writes a recursor's `reply` for the client; false when it cannot be read.
    pub(crate) fn relay(
        &self,
        packet: &[u8],
        client: Client,
        reply: &[u8],
        out: &mut Vec<u8>,
    ) -> bool {
        let Ok(query) = wire::decode(packet) else { return false };
        let Some(is_cut) = wire::relayed(out, &query, reply, limit(&query, packet, client)) else {
            return false;
        };
        if is_cut {
            self.metrics.truncated.inc();
        }
        let rcode = if wire::rcode_of(reply) == Rcode::NxDomain as u16 {
            Rcode::NxDomain
        } else {
            Rcode::NoError
        };
        self.metrics.count(Some(wire::kind(query.code)), rcode);
        true
    }

    fn write(
        &self,
        query: &Query<'_>,
        answer: &Answer<'_>,
        ttl_s: u32,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Step {
        let needs_serial = answer.records.is_empty() || query.code == wire::SOA;
        let terms = Terms {
            suffixes: &self.suffixes[answer.domain],
            ttl_s,
            serial: if needs_serial || query.code == wire::ANY { serial() } else { 0 },
            limit,
            flags: self.flags(true),
        };
        if wire::reply(out, query, answer, &terms) {
            self.metrics.truncated.inc();
        }
        let rcode = if answer.exists { Rcode::NoError } else { Rcode::NxDomain };
        self.metrics.count(Some(wire::kind(query.code)), rcode);
        Step::Reply
    }

    fn fail(&self, query: &Query<'_>, rcode: Rcode, out: &mut Vec<u8>) -> Step {
        wire::empty(out, query, rcode, self.flags(rcode == Rcode::NxDomain), false);
        self.metrics.count(Some(wire::kind(query.code)), rcode);
        Step::Reply
    }

    fn flags(&self, authoritative: bool) -> Flags {
        Flags { authoritative, recursion_available: self.has_recursors }
    }

    /// Whether an answer speaks of the catalog as it was too long ago to repeat.
    fn is_too_old(&self, answer: &Answer<'_>) -> bool {
        (answer.about.is_some() || !answer.exists) && self.is_stale()
    }

    fn is_stale(&self) -> bool {
        match self.last_contact_ms.load(Ordering::Relaxed) {
            u64::MAX => false,
            last => since_epoch().saturating_sub(Duration::from_millis(last)) > self.stale_max,
        }
    }

    /// Says of a few answers what they spoke of, so that the agent forgets the least asked first.
    fn touch(&self, answer: &Answer<'_>, draw: u64) {
        if let Some(about) = answer.about
            && draw.is_multiple_of(ANSWERS_PER_TOUCH)
        {
            // A full queue means that the agent is told enough.
            let _full = self.touches.try_send(about.into());
        }
    }
}

/// Draws for the order of records: they spread load and guard nothing.
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn new() -> Self {
        Self(rand::random::<u64>() | 1)
    }

    /// Source: xorshift64*, Vigna, 2016.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// The rcode of what is never answered, whatever the name.
fn unserved(query: &Query<'_>, client: Client) -> Option<Rcode> {
    if query.edns.is_some_and(|edns| edns.version != 0) {
        return Some(Rcode::BadVers);
    }
    match query.code {
        _ if query.class != wire::CLASS_IN => Some(Rcode::Refused),
        wire::AXFR | wire::IXFR => Some(Rcode::NotImp),
        wire::OPT => Some(Rcode::FormErr),
        wire::ANY if !client.is_local => Some(Rcode::Refused),
        _ => None,
    }
}

/// The most octets of the reply.
///
/// Over UDP a stranger's address may be forged: it gets at most twice what it sent, or the word
/// to come back by TCP.
fn limit(query: &Query<'_>, packet: &[u8], client: Client) -> usize {
    match client.transport {
        Transport::Tcp => wire::TCP_LIMIT,
        Transport::Udp if client.is_local => wire::udp_limit(query.edns),
        Transport::Udp => wire::udp_limit(query.edns).min(AMPLIFICATION_MAX * packet.len()),
    }
}

/// The most records of a type that `limit` octets can hold.
fn most(kind: Kind, limit: usize) -> usize {
    let octets = if kind == Kind::Srv { wire::SRV_RECORD_MIN } else { wire::ADDRESS_RECORD_MIN };
    (limit / octets).min(if kind == Kind::Srv { SRV_RECORDS_MAX } else { ADDRESS_RECORDS_MAX })
}

/// A TTL as records have it.
fn seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).min(TTL_MAX_S)
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The SOA's serial: Unix time, as Consul's, modulo 2³² as serials are.
fn serial() -> u32 {
    since_epoch().as_secs() as u32
}

/// RFC 2181 §8.
const TTL_MAX_S: u32 = i32::MAX as u32;
const AMPLIFICATION_MAX: usize = 2;
/// Consul's cuts before packing.
const ADDRESS_RECORDS_MAX: usize = 4_096;
const SRV_RECORDS_MAX: usize = 1_024;
/// Rare enough to cost nothing, often enough to tell a busy name from an idle one.
const ANSWERS_PER_TOUCH: u64 = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hawser_core::catalog::{Locality, Weights};
    use hawser_core::chain;
    use hawser_core::clock::Index;
    use hawser_core::entry::Entries;
    use hawser_core::health::Status;
    use hawser_core::name::ServiceName;
    use hawser_core::view::{Endpoint, NodeView, ServiceView};
    use hawser_fuzz::Target;
    use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Asked, ResponseCode};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
    use tokio::sync::watch;

    use super::*;

    /// What a refusal may be longer than its query by.
    const HEAD_AND_OPT: usize = 12 + 11;

    struct Bench {
        responder: Responder,
        view: View,
        wants: mpsc::Receiver<Want>,
    }

    fn bench(recursors: &[&str]) -> Bench {
        let config = Config {
            domain: "consul".to_owned(),
            alt_domain: None,
            datacenter: "dc1".parse().expect("a label"),
            ttl: Duration::from_secs(5),
            only_passing: false,
            recursors: recursors.iter().map(|text| text.parse().expect("an address")).collect(),
            stale_max: Duration::from_secs(86_400),
            node: "here".parse().expect("a segment"),
            address: IpAddr::from([10, 0, 0, 9]),
        };
        let (sender, wants) = mpsc::channel(1_000);
        let (_, views) = watch::channel(Arc::default());
        let (queries, _) = mpsc::channel(1);
        let last_contact_ms = Arc::new(u64::MAX.into());
        let feed = Feed { views, wants: sender, queries, last_contact_ms };
        let metrics = Metrics::new(&prometheus::Registry::new()).expect("a fresh registry");
        let responder = Responder::new(&config, &feed, metrics).expect("a good domain");
        Bench { responder, view: view(), wants }
    }

    /// `one` has an instance, `many` 5,000, `node.n1` a lot of meta.
    fn view() -> View {
        let endpoint = |at: u16| Endpoint {
            node: format!("node-{at}").parse().expect("a segment"),
            instance: format!("web-{at}").parse().expect("printable"),
            address: [10, 1, (at >> 8) as u8, at as u8].into(),
            has_own_address: false,
            ports: Default::default(),
            port: 8_080,
            mesh: None,
            locality: Locality::default(),
            tags: Default::default(),
            weights: Weights::default(),
            status: Status::Passing,
        };
        let services = [("one", 1), ("ten", 10), ("many", 5_000)].map(|(name, count)| {
            let name: ServiceName = name.parse().expect("a label");
            let chain = chain::compile(&Entries::default(), None, &name);
            let endpoints = (0..count).map(endpoint).collect();
            (name, Arc::new(ServiceView::alone(chain, endpoints, Index::default())))
        });
        let meta = BTreeMap::from([("k".into(), "v".repeat(600).into()), ("s".into(), "t".into())]);
        let node = NodeView { address: [10, 1, 0, 1].into(), meta };
        let nodes = [("n1".parse().expect("a segment"), Some(Arc::new(node)))];
        View { services: services.into(), nodes: nodes.into(), ..View::default() }
    }

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const STRANGER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Asked::query(Name::from_ascii(name).expect("a name"), kind));
        if let Some(payload) = payload {
            message.set_edns(Edns::new()).edns.as_mut().expect("set").set_max_payload(payload);
        }
        message
    }

    impl Bench {
        /// Asks and checks what must hold of every reply.
        fn ask(&self, message: &Message, from: IpAddr, transport: Transport) -> Message {
            let packet = message.to_vec().expect("the query can be encoded");
            let client = self.responder.client(from, transport);
            let mut out = Vec::new();
            let step = self.responder.respond(&packet, client, &self.view, 3, &mut out);
            assert_eq!(step, Step::Reply, "{message:?}");
            let reply = Message::from_vec(&out).expect("every reply can be decoded");
            assert_eq!(reply.metadata.id, message.metadata.id);
            assert_eq!(reply.metadata.message_type, MessageType::Response);
            assert_eq!(reply.queries, message.queries, "the question is repeated");
            assert_eq!(reply.edns.is_some(), message.edns.is_some(), "OPT is answered by OPT");
            let limit = match transport {
                Transport::Tcp => 65_535,
                Transport::Udp if from == STRANGER => 2 * packet.len(),
                Transport::Udp => usize::from(message.max_payload()).clamp(512, 1_232),
            };
            assert!(out.len() <= limit, "{} octets for {limit}", out.len());
            reply
        }
    }

    /// A client that can be trusted with its address, and one that cannot.
    const CLIENTS: [(IpAddr, Transport); 3] =
        [(LOCAL, Transport::Udp), (LOCAL, Transport::Tcp), (STRANGER, Transport::Udp)];

    #[test]
    fn a_packet_is_ignored_or_answered_as_others_read_it() {
        let mut bench = bench(&["192.0.2.53:53"]);
        bench.view.services.remove("many");
        Target::new("dns_query").octets_max(600).run(|packet| {
            let theirs = Message::from_vec(packet);
            for (from, transport) in CLIENTS {
                let client = bench.responder.client(from, transport);
                let mut out = Vec::new();
                let step = bench.responder.respond(packet, client, &bench.view, 3, &mut out);
                while bench.wants.try_recv().is_ok() {}
                if step != Step::Reply {
                    continue;
                }
                let reply = Message::from_vec(&out).expect("every reply can be decoded");
                assert_eq!(reply.metadata.message_type, MessageType::Response);
                assert_eq!(out[..2], packet[..2], "the id is repeated");
                if from == STRANGER {
                    let most = (2 * packet.len()).max(packet.len() + HEAD_AND_OPT);
                    assert!(out.len() <= most, "{} octets for {}", out.len(), packet.len());
                }
            }
            match (wire::decode(packet), theirs) {
                (Ok(query), Ok(theirs)) => {
                    let [asked] = &theirs.queries[..] else { panic!("{:?}", theirs.queries) };
                    assert_eq!(query.code, u16::from(asked.query_type()));
                    assert_eq!(query.class, u16::from(asked.query_class()));
                    assert_eq!(query.edns.is_some(), theirs.edns.is_some());
                    true
                }
                (ours, _) => ours.is_ok(),
            }
        });
    }

    #[test]
    fn a_recursors_reply_is_passed_on_within_its_bound_or_not_at_all() {
        let bench = bench(&["192.0.2.53:53"]);
        let packet = query("example.com.", RecordType::A, Some(1_232)).to_vec().expect("a query");
        let question = &packet[12..12 + 17];
        Target::new("dns_reply").cases(50_000).run(|reply| {
            // Its id is one that nobody can guess; here it is the packet's that is changed.
            if !wire::answers(reply, 0x1234, question) {
                return false;
            }
            let mut is_relayed = false;
            for (from, transport) in CLIENTS {
                let client = bench.responder.client(from, transport);
                let mut out = Vec::new();
                is_relayed = bench.responder.relay(&packet, client, reply, &mut out);
                if is_relayed {
                    let most = match transport {
                        Transport::Udp if from == STRANGER => 2 * packet.len(),
                        Transport::Udp => 1_232,
                        Transport::Tcp => 65_535,
                    };
                    assert!(out.len() <= most, "{} octets", out.len());
                    assert_eq!(out[12..12 + 17], *question);
                }
            }
            is_relayed
        });
    }

    #[test]
    fn answers_decode_to_what_the_rules_say() {
        let bench = bench(&[]);
        let ask = |name, kind| bench.ask(&query(name, kind, Some(4_096)), LOCAL, Transport::Udp);
        let reply = ask("ONE.service.consul.", RecordType::A);
        assert!(reply.metadata.authoritative && !reply.metadata.recursion_available);
        assert!(reply.metadata.recursion_desired && !reply.metadata.truncation);
        assert_eq!(reply.answers.len(), 1);
        assert_eq!(reply.answers[0].data, RData::A(A::new(10, 1, 0, 0)));
        assert_eq!(reply.answers[0].ttl, 5);
        assert_eq!(reply.answers[0].name.to_ascii(), "ONE.service.consul.", "spelled as asked");

        let reply = ask("_one._tcp.service.consul.", RecordType::SRV);
        let RData::SRV(srv) = &reply.answers[0].data else { panic!("{reply:?}") };
        assert_eq!((srv.priority, srv.weight, srv.port), (1, 1, 8_080));
        assert_eq!(srv.target.to_ascii(), "node-0.node.dc1.consul.");
        assert_eq!(reply.additionals.len(), 1);
        assert_eq!(reply.additionals[0].name, srv.target);
        assert_eq!(reply.additionals[0].data, RData::A(A::new(10, 1, 0, 0)));

        for (name, kind, code) in [
            ("one.service.consul.", RecordType::AAAA, ResponseCode::NoError),
            ("x.y.consul.", RecordType::A, ResponseCode::NXDomain),
        ] {
            let reply = ask(name, kind);
            assert_eq!(reply.metadata.response_code, code);
            assert!(reply.answers.is_empty());
            let soa = &reply.authorities[0];
            assert_eq!((soa.name.to_ascii().as_str(), soa.ttl), ("consul.", 0));
            let RData::SOA(soa) = &soa.data else { panic!("{reply:?}") };
            assert_eq!(soa.mname.to_ascii(), "ns.consul.");
            assert_eq!(soa.rname.to_ascii(), "hostmaster.consul.");
        }

        let reply = ask("consul.", RecordType::NS);
        let RData::NS(ns) = &reply.answers[0].data else { panic!("{reply:?}") };
        assert_eq!(ns.0.to_ascii(), "here.node.dc1.consul.");
        assert_eq!(reply.additionals[0].name, ns.0);

        let reply = ask("n1.node.consul.", RecordType::TXT);
        let RData::TXT(txt) = &reply.answers[0].data else { panic!("{reply:?}") };
        let lengths: Vec<usize> = txt.txt_data.iter().map(|part| part.len()).collect();
        assert_eq!(lengths, [255, 255, 92], "long texts are split");

        let reply = ask("9.0.0.10.in-addr.arpa.", RecordType::PTR);
        let RData::PTR(ptr) = &reply.answers[0].data else { panic!("{reply:?}") };
        assert_eq!(ptr.0.to_ascii(), "here.node.dc1.consul.");
    }

    #[test]
    fn replies_keep_to_their_size_and_say_when_they_are_cut() {
        use RecordType::{SRV, TXT};
        const A: RecordType = RecordType::A;
        let cases = [
            // name, type, EDNS payload, from, transport, cut, least answers, why
            ("ten", A, None, LOCAL, Transport::Udp, false, 10, "ten fit 512 octets"),
            ("many", A, None, LOCAL, Transport::Udp, true, 29, "without EDNS 512 octets"),
            ("many", A, Some(1_232), LOCAL, Transport::Udp, true, 70, "with EDNS"),
            ("many", A, Some(65_535), LOCAL, Transport::Udp, true, 70, "never above 1,232"),
            ("many", A, Some(0), LOCAL, Transport::Udp, true, 28, "never below 512"),
            ("ten", SRV, None, LOCAL, Transport::Udp, false, 10, "addresses go first"),
            ("many", SRV, None, LOCAL, Transport::Udp, true, 9, "then services"),
            ("many", A, None, LOCAL, Transport::Tcp, true, 4_000, "TCP takes 64 KiB"),
            ("many", SRV, Some(512), LOCAL, Transport::Tcp, true, 1_000, "of SRV fewer"),
            ("one", A, None, STRANGER, Transport::Udp, false, 1, "less than twice the query"),
            ("ten", A, None, STRANGER, Transport::Udp, true, 2, "strangers come by TCP"),
            ("ten", A, None, STRANGER, Transport::Tcp, false, 10, "and get all"),
            ("ten", TXT, None, STRANGER, Transport::Udp, false, 0, "a SOA left out is no cut"),
        ];
        let bench = bench(&[]);
        for (name, kind, payload, from, transport, is_cut, least, why) in cases {
            let message = query(&format!("{name}.service.consul."), kind, payload);
            let reply = bench.ask(&message, from, transport);
            assert_eq!(reply.metadata.truncation, is_cut, "{name} {kind}: {why}");
            assert!(reply.answers.len() >= least, "{}: {why}", reply.answers.len());
            let glue = reply.additionals.len();
            assert!(glue == 0 || !is_cut || transport == Transport::Tcp, "{why}");
        }
    }

    #[test]
    fn what_is_not_served_is_refused_by_its_rcode() {
        use ResponseCode::{NXDomain, NoError, NotImp, Refused};
        // 16 means BADVERS in an OPT and BADSIG in a TSIG; hickory has one name for both.
        const BADVERS: ResponseCode = ResponseCode::BADSIG;
        let of = |name: &str, kind| query(name, kind, Some(1_232));
        let chaos = |mut message: Message| {
            message.queries[0].set_query_class(DNSClass::CH);
            message
        };
        let version = |mut message: Message| {
            message.edns.as_mut().expect("set").set_version(1);
            message
        };
        let a = RecordType::A;
        let cases = [
            (of("one.service.consul.", RecordType::AXFR), LOCAL, NotImp, "no transfers"),
            (of("consul.", RecordType::IXFR), LOCAL, NotImp, "not in parts either"),
            (chaos(of("version.bind.", RecordType::TXT)), LOCAL, Refused, "no version"),
            (version(of("one.service.consul.", a)), LOCAL, BADVERS, "an EDNS to come"),
            (of("one.service.consul.", RecordType::ANY), LOCAL, NoError, "a subset for a local"),
            (of("one.service.consul.", RecordType::ANY), STRANGER, Refused, "none for others"),
            (of("example.com.", a), LOCAL, Refused, "not ours, and no recursors"),
            (of("one.service.consul.evil.com.", a), LOCAL, Refused, "ours in the middle only"),
            (of(".", RecordType::NS), LOCAL, Refused, "the root"),
            (of("9.9.9.9.in-addr.arpa.", RecordType::PTR), LOCAL, NXDomain, "no name known"),
        ];
        let bench = bench(&[]);
        for (message, from, code, why) in cases {
            let reply = bench.ask(&message, from, Transport::Udp);
            assert_eq!(reply.metadata.response_code, code, "{why}");
            assert_eq!(reply.answers.is_empty(), code != NoError, "{why}");
        }
    }

    #[test]
    fn only_local_clients_that_wish_it_reach_the_recursors() {
        let bench = bench(&["127.0.0.1:53"]);
        let mut unwished = query("example.com.", RecordType::A, None);
        unwished.metadata.recursion_desired = false;
        let outside = query("example.com.", RecordType::A, None);
        let reverse = query("9.9.9.9.in-addr.arpa.", RecordType::PTR, None);
        let ours = query("none.consul.", RecordType::A, None);
        let own = IpAddr::from([10, 0, 0, 9]);
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().expect("an address");
        for (message, from, goes, why) in [
            (&outside, LOCAL, true, "loopback"),
            (&outside, own, true, "the host's own address"),
            (&outside, mapped, true, "loopback in IPv6's clothes"),
            (&outside, STRANGER, false, "a stranger"),
            (&unwished, LOCAL, false, "without the wish"),
            (&reverse, LOCAL, true, "an address that is none of ours"),
            (&ours, LOCAL, false, "a name of ours that is not there"),
        ] {
            let packet = message.to_vec().expect("the query can be encoded");
            let client = bench.responder.client(from, Transport::Udp);
            let step = bench.responder.respond(&packet, client, &bench.view, 1, &mut Vec::new());
            assert_eq!(step == Step::Recurse, goes, "{why}");
        }
        assert!(bench.ask(&ours, LOCAL, Transport::Udp).metadata.recursion_available);
    }

    #[test]
    fn a_view_is_repeated_until_it_is_too_old() {
        let bench = bench(&[]);
        let day = 86_400_000;
        let now = u64::try_from(since_epoch().as_millis()).expect("before the year 584,556,019");
        let known = query("one.service.consul.", RecordType::A, None);
        let missing = query("v9.one.service.consul.", RecordType::A, None);
        let unknown = query("new.service.consul.", RecordType::A, None);
        let fixed = query("0a000001.addr.dc1.consul.", RecordType::A, None);
        for (last, message, code, why) in [
            (u64::MAX, &known, ResponseCode::NoError, "connected"),
            (now - day / 2, &known, ResponseCode::NoError, "half a day"),
            (now - 2 * day, &known, ResponseCode::ServFail, "two days"),
            (0, &known, ResponseCode::ServFail, "never heard"),
            (0, &missing, ResponseCode::ServFail, "what is missing may have come since"),
            (0, &unknown, ResponseCode::ServFail, "nobody to ask"),
            (0, &fixed, ResponseCode::NoError, "an address does not age"),
        ] {
            bench.responder.last_contact_ms.store(last, Ordering::Relaxed);
            let reply = bench.ask(message, LOCAL, Transport::Udp);
            assert_eq!(reply.metadata.response_code, code, "{why}");
        }
    }

    #[test]
    fn names_in_use_are_named_now_and_then() {
        let mut bench = bench(&[]);
        let packet = query("one.service.consul.", RecordType::A, None).to_vec().expect("encodes");
        let client = bench.responder.client(LOCAL, Transport::Udp);
        for draw in 0..2 * ANSWERS_PER_TOUCH {
            bench.responder.respond(&packet, client, &bench.view, draw, &mut Vec::new());
        }
        let one = || Want::Service("one".parse().expect("a label"));
        assert_eq!(bench.wants.try_recv(), Ok(one()));
        assert_eq!(bench.wants.try_recv(), Ok(one()));
        assert!(bench.wants.try_recv().is_err(), "and no more");
    }

    #[test]
    fn a_recursors_reply_is_passed_on_without_what_was_not_asked() {
        let bench = bench(&["127.0.0.1:53"]);
        let asked = query("www.example.com.", RecordType::A, Some(1_232));
        let packet = asked.to_vec().expect("encodes");
        let record = |name: &str, last| {
            let name = Name::from_ascii(name).expect("a name");
            hickory_proto::rr::Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, last)))
        };
        let mut upstream = Message::response(99, OpCode::Query);
        upstream.add_queries(asked.queries.clone());
        upstream.add_answer(record("www.example.com.", 1));
        upstream.add_authority(record("evil.example.", 2));
        upstream.add_additional(record("bank.example.", 3));
        let upstream = upstream.to_vec().expect("encodes");
        let client = bench.responder.client(LOCAL, Transport::Udp);
        let mut out = Vec::new();
        assert!(bench.responder.relay(&packet, client, &upstream, &mut out));
        let reply = Message::from_vec(&out).expect("decodes");
        assert_eq!(reply.metadata.id, asked.metadata.id);
        assert!(!reply.metadata.authoritative && reply.metadata.recursion_available);
        assert_eq!(reply.answers, [record("www.example.com.", 1)]);
        assert!(reply.authorities.is_empty() && reply.additionals.is_empty());
        for length in 0..upstream.len() {
            // Cut anywhere it is refused or still a message; it never panics.
            if bench.responder.relay(&packet, client, &upstream[..length], &mut out) {
                Message::from_vec(&out).expect("decodes");
            }
        }
    }

    /// A packet with a few octets flipped, cut, doubled, swapped or overwritten.
    fn mutated(seed: &[u8], next: &mut dyn FnMut() -> usize) -> Vec<u8> {
        let mut packet = seed.to_vec();
        for _ in 0..1 + next() % 6 {
            let at = next() % packet.len().max(1);
            match next() % 8 {
                0 if at < packet.len() => packet[at] ^= 1 << (next() % 8),
                1 if at < packet.len() => packet[at] = next() as u8,
                2 => packet.truncate(at),
                3 => packet.splice(at..at, [next() as u8; 3]).for_each(drop),
                4 if at < packet.len() => packet[at] = [0, 0xc0, 0xff, 63, 64][next() % 5],
                5 if packet.len() < 8_192 => packet.extend_from_within(at..),
                6 if packet.len() > HEADER_OCTETS => packet[4 + next() % 8] = next() as u8 % 3,
                _ => packet.extend((0..next() % 40).map(|fill| fill as u8)),
            }
        }
        packet
    }

    #[test]
    fn no_mutated_packet_stops_the_responder() {
        const PACKETS: usize = 200_000;
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as usize
        };
        let bench = bench(&["127.0.0.1:53"]);
        let reversed = "1.0.1.10.in-addr.arpa.";
        let seeds: Vec<Vec<u8>> = [
            query("one.service.consul.", RecordType::A, None),
            query("v1.one.service.dc1.consul.", RecordType::ANY, Some(4_096)),
            query("_ten._tcp.service.consul.", RecordType::SRV, Some(1_232)),
            query("n1.node.consul.", RecordType::TXT, Some(512)),
            query("0a000001.addr.dc1.consul.", RecordType::AAAA, None),
            query(reversed, RecordType::PTR, None),
            query("consul.", RecordType::SOA, Some(1_232)),
            query("example.com.", RecordType::A, Some(1_232)),
        ]
        .iter()
        .map(|message| message.to_vec().expect("the query can be encoded"))
        .collect();
        let good = query("one.service.consul.", RecordType::A, None);
        let (mut out, mut replies, mut answers) = (Vec::new(), 0, 0);
        for round in 0..PACKETS {
            let packet = mutated(&seeds[next() % seeds.len()], &mut next);
            let from = if next() % 4 == 0 { STRANGER } else { LOCAL };
            let client = bench.responder.client(from, Transport::Udp);
            match bench.responder.respond(&packet, client, &bench.view, next() as u64, &mut out) {
                Step::Reply => {
                    replies += 1;
                    assert!(out.len() <= 1_232, "{packet:?}");
                    let reply = Message::from_vec(&out);
                    let reply = reply.unwrap_or_else(|why| panic!("{why}: {out:?} to {packet:?}"));
                    assert_eq!(reply.metadata.message_type, MessageType::Response);
                    answers += usize::from(!reply.answers.is_empty());
                }
                Step::Silence => {
                    let is_reply = packet.get(2).is_some_and(|bits| bits & 0x80 != 0);
                    assert!(packet.len() < HEADER_OCTETS || is_reply, "{packet:?}");
                }
                Step::Want(_) | Step::Query(_) | Step::Recurse => {}
            }
            let mut relayed = Vec::new();
            bench.responder.relay(&seeds[round % seeds.len()], client, &packet, &mut relayed);
        }
        assert!(replies > PACKETS / 2 && answers > PACKETS / 50, "{replies} and {answers}");
        assert_eq!(bench.ask(&good, LOCAL, Transport::Udp).answers.len(), 1);
    }

    const HEADER_OCTETS: usize = 12;
}
