//! One packet and the current view → a reply, or what must happen first.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_core::dns::{self, Answer, InvalidDomain, Kind, Outcome, Question, Want, Zone};
use hawser_core::view::View;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::wire::{self, Flags, Query, Rcode, Suffixes, Terms, Unfit};
use crate::{Config, Feed};

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
            ttl_s: u32::try_from(config.ttl.as_secs()).unwrap_or(u32::MAX).min(TTL_MAX_S),
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
                self.write(&query, &answer, limit, out)
            }
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
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Step {
        let needs_serial = answer.records.is_empty() || query.code == wire::SOA;
        let terms = Terms {
            suffixes: &self.suffixes[answer.domain],
            ttl_s: self.ttl_s,
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
