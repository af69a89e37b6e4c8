//! The wire format of queries and replies, by hand: one pass, no allocation per record.
//!
//! Source: RFC 1035 §4, RFC 6891 (EDNS0). A query is read with no compression pointer followed,
//! so no packet can make the reader loop.

use std::net::IpAddr;

use hawser_core::dns::{Answer, Host, Kind, QName, Record, Zone};

/// One readable query.
pub(crate) struct Query<'p> {
    pub(crate) id: u16,
    pub(crate) recursion_desired: bool,
    /// The name asked for.
    pub(crate) name: QName,
    /// The type asked for.
    pub(crate) code: u16,
    pub(crate) class: u16,
    /// The question section as it came, so that the reply spells it the same.
    pub(crate) question: &'p [u8],
    pub(crate) edns: Option<Edns>,
}

/// What a client said of itself by EDNS0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Edns {
    /// The largest UDP reply that it takes, in octets.
    pub(crate) payload: u16,
    pub(crate) version: u8,
    /// The DO bit, which replies repeat (RFC 3225 §3).
    is_dnssec_ok: bool,
}

/// Why a packet is no query that can be answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unfit {
    /// Too short for a header, or a reply itself: answering could start a loop.
    Silent,
    /// Answered with its header alone.
    Refused(Rcode),
}

/// RFC 1035 §4.1.1, RFC 6891 §9.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    BadVers = 16,
}

/// Header bits of a reply besides its rcode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    pub(crate) authoritative: bool,
    pub(crate) recursion_available: bool,
}

/// Reads one query.
///
/// # Errors
/// [`Unfit`] says what to do with anything else.
pub(crate) fn decode(packet: &[u8]) -> Result<Query<'_>, Unfit> {
    let (Some(id), Some(bits)) = (u16_at(packet, 0), u16_at(packet, 2)) else {
        return Err(Unfit::Silent);
    };
    if packet.len() < HEADER || bits & QR != 0 {
        return Err(Unfit::Silent);
    }
    match (bits >> 11) & 0xf {
        0 => {}
        OPCODE_NOTIFY | OPCODE_UPDATE => return Err(Unfit::Refused(Rcode::Refused)),
        _ => return Err(Unfit::Refused(Rcode::NotImp)),
    }
    let malformed = Unfit::Refused(Rcode::FormErr);
    let count = |at| u16_at(packet, at).ok_or(malformed);
    let (questions, answers) = (count(4)?, count(6)?);
    if questions != 1 || answers != 0 {
        return Err(malformed);
    }
    let (name, end) = question_name(packet).ok_or(malformed)?;
    let (Some(code), Some(class)) = (u16_at(packet, end), u16_at(packet, end + 2)) else {
        return Err(malformed);
    };
    let mut query = Query {
        id,
        recursion_desired: bits & RD != 0,
        name,
        code,
        class,
        question: &packet[HEADER..end + 4],
        edns: None,
    };
    let mut at = end + 4;
    for _ in 0..count(8)? {
        at = record(packet, at).ok_or(malformed)?.end;
    }
    for _ in 0..count(10)? {
        let found = record(packet, at).ok_or(malformed)?;
        if found.code == OPT {
            // RFC 6891 §6.1.1: one OPT, under the root.
            if query.edns.is_some() || packet[at] != 0 {
                return Err(malformed);
            }
            query.edns = Some(Edns {
                payload: found.class,
                version: found.ttl.to_be_bytes()[1],
                is_dnssec_ok: found.ttl & DNSSEC_OK != 0,
            });
        }
        at = found.end;
    }
    Ok(query)
}

/// Reads the question's name and says where it ends. A pointer has nothing to point at yet.
fn question_name(packet: &[u8]) -> Option<(QName, usize)> {
    let mut name = QName::default();
    let mut at = HEADER;
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            return Some((name, at));
        }
        name.push(packet.get(at..at + length)?).ok()?;
        at += length;
    }
}

/// The fixed part of one resource record.
pub(crate) struct Fixed {
    pub(crate) code: u16,
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    pub(crate) end: usize,
}

/// Reads past one resource record that begins at `at`.
pub(crate) fn record(packet: &[u8], at: usize) -> Option<Fixed> {
    let at = past_name(packet, at)?;
    let ttl = packet.get(at + 4..at + 8)?;
    let end = at + 10 + usize::from(u16_at(packet, at + 8)?);
    (end <= packet.len()).then_some(())?;
    Some(Fixed {
        code: u16_at(packet, at)?,
        class: u16_at(packet, at + 2)?,
        ttl: u32::from_be_bytes(ttl.try_into().ok()?),
        end,
    })
}

fn past_name(packet: &[u8], mut at: usize) -> Option<usize> {
    let start = at;
    loop {
        let length = *packet.get(at)?;
        match length >> 6 {
            0b00 if length == 0 => return Some(at + 1),
            0b00 => at += 1 + usize::from(length),
            0b11 => return packet.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
        if at - start > NAME_OCTETS_MAX {
            return None;
        }
    }
}

pub(crate) fn u16_at(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

/// The type that a code means to the rules.
pub(crate) const fn kind(code: u16) -> Kind {
    match code {
        A => Kind::A,
        NS => Kind::Ns,
        SOA => Kind::Soa,
        PTR => Kind::Ptr,
        TXT => Kind::Txt,
        AAAA => Kind::Aaaa,
        SRV => Kind::Srv,
        ANY => Kind::Any,
        _ => Kind::Other,
    }
}

/// The ends of the names in one domain's records, ready for the wire.
#[derive(Clone, Debug)]
pub(crate) struct Suffixes {
    domain: Vec<u8>,
    node: Vec<u8>,
    address: Vec<u8>,
    service: Vec<u8>,
}

impl Suffixes {
    /// One for each of the zone's domains.
    pub(crate) fn of(zone: &Zone) -> Vec<Self> {
        let labels = |labels: &mut dyn Iterator<Item = &[u8]>, domain: &[u8]| {
            let mut wire = Vec::new();
            labels.for_each(|text| label(&mut wire, text));
            wire.extend_from_slice(domain);
            wire
        };
        let datacenter = zone.datacenter().as_str().as_bytes();
        let of_domain = |name: &QName| {
            let domain = labels(&mut name.labels(), &[0]);
            let under = |word: &'static str| {
                labels(&mut [word.as_bytes(), datacenter].into_iter(), &domain)
            };
            Self { node: under("node"), address: under("addr"), service: under("service"), domain }
        };
        zone.domains().iter().map(of_domain).collect()
    }
}

/// What all records of one reply share.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'s> {
    pub(crate) suffixes: &'s Suffixes,
    pub(crate) ttl_s: u32,
    /// The serial of the SOA.
    pub(crate) serial: u32,
    /// The most octets that the reply may have.
    pub(crate) limit: usize,
    pub(crate) flags: Flags,
}

/// Writes the reply that carries `answer`; whether it had to be cut, which the reply says too.
///
/// What does not fit is left out in this order: additional records, the SOA of an empty answer,
/// answers. Only the last is a cut (RFC 2181 §9).
pub(crate) fn reply(
    out: &mut Vec<u8>,
    query: &Query<'_>,
    answer: &Answer<'_>,
    terms: &Terms<'_>,
) -> bool {
    let rcode = if answer.exists { Rcode::NoError } else { Rcode::NxDomain };
    let mut draft = Draft::new(out, query, terms.limit);
    let apex = HEADER + (query.question.len() - 4).saturating_sub(terms.suffixes.domain.len());
    let fits = answer.records.iter().all(|record| draft.answer(record, terms, apex));
    let is_cut = answer.is_cut || !fits;
    if answer.records.is_empty() && answer.is_in_domain {
        draft.put(AUTHORITY, pointer(apex), SOA, SOA_MINIMUM_S, |out| {
            soa(out, apex, terms.serial);
        });
    }
    if fits {
        draft.glue(answer, terms.ttl_s);
        let _all = answer.extra.iter().all(|record| match record {
            Record::Txt(text) => draft.put(ADDITIONAL, pointer(HEADER), TXT, terms.ttl_s, |out| {
                strings(out, text);
            }),
            _ => true,
        });
    }
    draft.finish(rcode, terms.flags, is_cut);
    is_cut
}

/// Writes a reply without records.
pub(crate) fn empty(out: &mut Vec<u8>, query: &Query<'_>, rcode: Rcode, flags: Flags, cut: bool) {
    Draft::new(out, query, usize::MAX).finish(rcode, flags, cut);
}

/// Writes a reply to what is no query: the header alone.
pub(crate) fn header(out: &mut Vec<u8>, packet: &[u8], rcode: Rcode) {
    let kept = u16_at(packet, 2).unwrap_or_default() & (OPCODE | RD);
    out.clear();
    out.extend_from_slice(packet.get(..2).unwrap_or(&[0; 2]));
    out.extend_from_slice(&(QR | kept | rcode as u16).to_be_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// Writes the query that is sent to a recursor in place of `query`.
pub(crate) fn forwarded(out: &mut Vec<u8>, query: &Query<'_>, id: u16) {
    out.clear();
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&RD.to_be_bytes());
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 1]);
    out.extend_from_slice(query.question);
    opt(out, 0, false);
}

/// Passes on a recursor's reply: its rcode, its answers and, when there are none, its authority.
///
/// The question must be `query`'s own. Nothing else of the reply is believed or repeated.
/// Without an outcome the reply is malformed, else it is whether it had to be cut to `limit`.
pub(crate) fn relayed(
    out: &mut Vec<u8>,
    query: &Query<'_>,
    reply: &[u8],
    limit: usize,
) -> Option<bool> {
    let bits = u16_at(reply, 2)?;
    let mut at = HEADER + query.question.len();
    let mut counts = [u16_at(reply, 6)?, u16_at(reply, 8)?, 0];
    if counts[0] > 0 {
        counts[1] = 0;
    }
    for _ in 0..u32::from(counts[0]) + u32::from(counts[1]) {
        at = record(reply, at)?.end;
    }
    let sections = reply.get(HEADER + query.question.len()..at)?;
    let mut draft = Draft::new(out, query, limit);
    let fits = draft.out.len() + sections.len() <= draft.limit;
    if fits {
        // The question is as long in both, so the reply's pointers still point at their names.
        draft.out.extend_from_slice(sections);
        draft.counts = counts;
    }
    let is_cut = !fits || bits & TC != 0;
    let flags = Flags { authoritative: false, recursion_available: true };
    draft.finish_bits(bits & RCODE, 0, flags, is_cut);
    Some(is_cut)
}

/// Whether `reply` answers the query that went out as `id` with `question`.
pub(crate) fn answers(reply: &[u8], id: u16, question: &[u8]) -> bool {
    let is_reply = |bits: u16| bits & QR != 0 && bits & OPCODE == 0;
    u16_at(reply, 0) == Some(id)
        && u16_at(reply, 2).is_some_and(is_reply)
        && u16_at(reply, 4) == Some(1)
        && reply.get(HEADER..).is_some_and(|rest| rest.starts_with(question))
}

/// The rcode in a reply's header.
pub(crate) fn rcode_of(reply: &[u8]) -> u16 {
    u16_at(reply, 2).unwrap_or_default() & RCODE
}

/// Whether a reply says that it was cut.
pub(crate) fn is_cut(reply: &[u8]) -> bool {
    u16_at(reply, 2).unwrap_or_default() & TC != 0
}

/// The most octets of a UDP reply: what the client takes, 1,232 at most.
pub(crate) fn udp_limit(edns: Option<Edns>) -> usize {
    let payload = edns.map_or(UDP_MIN, |edns| usize::from(edns.payload));
    payload.clamp(UDP_MIN, UDP_PAYLOAD.into())
}

/// A reply under construction. What does not fit leaves no trace.
struct Draft<'b> {
    out: &'b mut Vec<u8>,
    limit: usize,
    counts: [u16; 3],
    id: u16,
    recursion_desired: bool,
    edns: Option<Edns>,
}

impl<'b> Draft<'b> {
    fn new(out: &'b mut Vec<u8>, query: &Query<'_>, limit: usize) -> Self {
        out.clear();
        out.extend_from_slice(&[0; HEADER]);
        out.extend_from_slice(query.question);
        let reserved = if query.edns.is_some() { OPT_OCTETS } else { 0 };
        Self {
            out,
            limit: limit.saturating_sub(reserved),
            counts: [0; 3],
            id: query.id,
            recursion_desired: query.recursion_desired,
            edns: query.edns,
        }
    }

    /// Adds a record to a section unless the reply would grow past its limit.
    fn put(
        &mut self,
        section: usize,
        owner: u16,
        code: u16,
        ttl_s: u32,
        data: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let start = self.out.len();
        let mut fixed = [0; RECORD_FIXED];
        fixed[0..2].copy_from_slice(&owner.to_be_bytes());
        fixed[2..4].copy_from_slice(&code.to_be_bytes());
        fixed[4..6].copy_from_slice(&CLASS_IN.to_be_bytes());
        fixed[6..10].copy_from_slice(&ttl_s.to_be_bytes());
        self.out.extend_from_slice(&fixed);
        data(self.out);
        let length = u16::try_from(self.out.len() - start - RECORD_FIXED);
        match length {
            Ok(length) if self.out.len() <= self.limit && self.counts[section] < u16::MAX => {
                self.out[start + 10..start + 12].copy_from_slice(&length.to_be_bytes());
                self.counts[section] += 1;
                true
            }
            _ => {
                self.out.truncate(start);
                false
            }
        }
    }

    fn answer(&mut self, record: &Record<'_>, terms: &Terms<'_>, apex: usize) -> bool {
        let (owner, ttl_s, suffixes) = (pointer(HEADER), terms.ttl_s, terms.suffixes);
        match record {
            Record::Address(address) => self.address(ANSWER, owner, ttl_s, *address),
            Record::Srv { weight, port, target, .. } => {
                self.put(ANSWER, owner, SRV, ttl_s, |out| {
                    out.extend_from_slice(&SRV_PRIORITY.to_be_bytes());
                    out.extend_from_slice(&weight.to_be_bytes());
                    out.extend_from_slice(&port.to_be_bytes());
                    // RFC 2782: the target is not compressed.
                    host(out, target, suffixes);
                })
            }
            Record::Txt(text) => self.put(ANSWER, owner, TXT, ttl_s, |out| strings(out, text)),
            Record::Soa => self.put(ANSWER, owner, SOA, ttl_s, |out| soa(out, apex, terms.serial)),
            Record::Ns { host: name, .. } => {
                self.put(ANSWER, owner, NS, ttl_s, |out| host(out, name, suffixes))
            }
            Record::Ptr(name) => {
                self.put(ANSWER, owner, PTR, ttl_s, |out| host(out, name, suffixes))
            }
        }
    }

    fn address(&mut self, section: usize, owner: u16, ttl_s: u32, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => {
                self.put(section, owner, A, ttl_s, |out| out.extend_from_slice(&v4.octets()))
            }
            IpAddr::V6(v6) => {
                self.put(section, owner, AAAA, ttl_s, |out| out.extend_from_slice(&v6.octets()))
            }
        }
    }

    /// Adds the addresses of the hosts that the answers name, each once, as far as there is room.
    fn glue(&mut self, answer: &Answer<'_>, ttl_s: u32) {
        let mut at = self.answers_start();
        for (position, record) in answer.records.iter().enumerate() {
            let data = at + RECORD_FIXED;
            let length = u16_at(self.out, at + 10).unwrap_or_default();
            at = data + usize::from(length);
            let Some((host, address)) = record.glue() else { continue };
            let target = if matches!(record, Record::Srv { .. }) { data + 6 } else { data };
            let is_repeat = answer.records[..position]
                .iter()
                .any(|earlier| earlier.glue() == Some((host, address)));
            if is_repeat {
                continue;
            }
            if target > POINTER_MAX || !self.address(ADDITIONAL, pointer(target), ttl_s, address) {
                return;
            }
        }
    }

    fn answers_start(&self) -> usize {
        // The question is what stands before the first record: a name, a type and a class.
        past_name(self.out, HEADER).map_or(self.out.len(), |end| end + 4)
    }

    fn finish(self, rcode: Rcode, flags: Flags, is_cut: bool) {
        let code = rcode as u16;
        self.finish_bits(code & RCODE, (code >> 4) as u8, flags, is_cut);
    }

    fn finish_bits(mut self, rcode: u16, extended: u8, flags: Flags, is_cut: bool) {
        let bit = |is_set: bool, bit: u16| if is_set { bit } else { 0 };
        let bits = QR
            | rcode
            | bit(flags.authoritative, AA)
            | bit(is_cut, TC)
            | bit(self.recursion_desired, RD)
            | bit(flags.recursion_available, RA);
        if let Some(edns) = self.edns {
            opt(self.out, extended, edns.is_dnssec_ok);
            self.counts[ADDITIONAL] += 1;
        }
        self.out[0..2].copy_from_slice(&self.id.to_be_bytes());
        self.out[2..4].copy_from_slice(&bits.to_be_bytes());
        self.out[4..6].copy_from_slice(&1_u16.to_be_bytes());
        for (count, at) in self.counts.iter().zip([6, 8, 10]) {
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
    }
}

fn label(out: &mut Vec<u8>, text: &[u8]) {
    // Labels come from parsed names and `core::dns` keeps to 63 octets; a longer one is cut
    // rather than read as something else.
    let text = &text[..text.len().min(LABEL_OCTETS_MAX)];
    out.push(text.len() as u8);
    out.extend_from_slice(text);
}

fn host(out: &mut Vec<u8>, host: &Host<'_>, suffixes: &Suffixes) {
    match host {
        Host::Node(name) => {
            name.split('.').for_each(|part| label(out, part.as_bytes()));
            out.extend_from_slice(&suffixes.node);
        }
        Host::Address(address) => {
            match address {
                IpAddr::V4(v4) => hex(out, &v4.octets()),
                IpAddr::V6(v6) => hex(out, &v6.octets()),
            }
            out.extend_from_slice(&suffixes.address);
        }
        Host::Service(name) => {
            label(out, name.as_bytes());
            out.extend_from_slice(&suffixes.service);
        }
    }
}

fn hex(out: &mut Vec<u8>, octets: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(octets.len() as u8 * 2);
    for octet in octets {
        out.push(DIGITS[usize::from(octet >> 4)]);
        out.push(DIGITS[usize::from(octet & 0xf)]);
    }
}

/// Consul's numbers: `ns` and `hostmaster` of the domain that stands at `apex`.
fn soa(out: &mut Vec<u8>, apex: usize, serial: u32) {
    for name in [b"ns".as_slice(), b"hostmaster"] {
        label(out, name);
        out.extend_from_slice(&pointer(apex).to_be_bytes());
    }
    for number in [serial, SOA_REFRESH_S, SOA_RETRY_S, SOA_EXPIRE_S, SOA_MINIMUM_S] {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

/// A text as character strings of 255 octets at most (RFC 1035 §3.3.14).
fn strings(out: &mut Vec<u8>, text: &str) {
    if text.is_empty() {
        out.push(0);
    }
    for part in text.as_bytes().chunks(255) {
        out.push(part.len() as u8);
        out.extend_from_slice(part);
    }
}

fn opt(out: &mut Vec<u8>, extended_rcode: u8, is_dnssec_ok: bool) {
    out.push(0);
    out.extend_from_slice(&OPT.to_be_bytes());
    out.extend_from_slice(&UDP_PAYLOAD.to_be_bytes());
    let do_bit = if is_dnssec_ok { 0x80 } else { 0 };
    out.extend_from_slice(&[extended_rcode, 0, do_bit, 0, 0, 0]);
}

/// A compression pointer to `at`.
fn pointer(at: usize) -> u16 {
    0xc000 | (at & POINTER_MAX) as u16
}

pub(crate) const A: u16 = 1;
pub(crate) const NS: u16 = 2;
pub(crate) const SOA: u16 = 6;
pub(crate) const PTR: u16 = 12;
pub(crate) const TXT: u16 = 16;
pub(crate) const AAAA: u16 = 28;
pub(crate) const SRV: u16 = 33;
pub(crate) const OPT: u16 = 41;
pub(crate) const IXFR: u16 = 251;
pub(crate) const AXFR: u16 = 252;
pub(crate) const ANY: u16 = 255;
pub(crate) const CLASS_IN: u16 = 1;

/// A message's fixed head, in octets.
pub(crate) const HEADER: usize = 12;
/// A query is a header, a name and an OPT; a longer one is cut and then refused.
pub(crate) const QUERY_OCTETS_MAX: usize = 4_096;
/// What a record takes at least: a pointer as its owner and an IPv4 address.
pub(crate) const ADDRESS_RECORD_MIN: usize = RECORD_FIXED + 4;
/// An SRV record's numbers and the shortest name.
pub(crate) const SRV_RECORD_MIN: usize = RECORD_FIXED + 6 + 1;
/// A reply over TCP.
pub(crate) const TCP_LIMIT: usize = 65_535;
/// An OPT record without options.
pub(crate) const OPT_OCTETS: usize = 11;

/// Fits every path unfragmented: DNS Flag Day 2020.
const UDP_PAYLOAD: u16 = 1_232;
const UDP_MIN: usize = 512;
/// Owner as a pointer, type, class, TTL, length.
const RECORD_FIXED: usize = 12;
const NAME_OCTETS_MAX: usize = 255;
const LABEL_OCTETS_MAX: usize = 63;
const POINTER_MAX: usize = 0x3fff;
const SRV_PRIORITY: u16 = 1;
const SOA_REFRESH_S: u32 = 3_600;
const SOA_RETRY_S: u32 = 600;
const SOA_EXPIRE_S: u32 = 86_400;
/// A name that is not there may be there at once.
const SOA_MINIMUM_S: u32 = 0;
const OPCODE_NOTIFY: u16 = 4;
const OPCODE_UPDATE: u16 = 5;
const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AA: u16 = 0x0400;
const TC: u16 = 0x0200;
const RD: u16 = 0x0100;
const RA: u16 = 0x0080;
const RCODE: u16 = 0x000f;
const DNSSEC_OK: u32 = 0x8000;
const ANSWER: usize = 0;
const AUTHORITY: usize = 1;
const ADDITIONAL: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for `web.service.consul A` with an OPT.
    fn good() -> Vec<u8> {
        let mut packet = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        packet.extend_from_slice(b"\x03web\x07service\x06consul\0\0\x01\0\x01");
        packet.extend_from_slice(b"\0\0\x29\x04\xd0\0\0\0\0\0\0");
        packet
    }

    fn with(edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut packet = good();
        edit(&mut packet);
        packet
    }

    fn outcome(packet: &[u8]) -> Result<(), Unfit> {
        decode(packet).map(drop)
    }

    const FORMERR: Result<(), Unfit> = Err(Unfit::Refused(Rcode::FormErr));
    const SILENT: Result<(), Unfit> = Err(Unfit::Silent);

    #[test]
    fn a_good_query_is_read() {
        let packet = good();
        let query = decode(&packet).expect("the packet is good");
        assert_eq!((query.id, query.code, query.class), (7, A, CLASS_IN));
        assert!(query.recursion_desired);
        assert!(query.name.labels().eq([b"web".as_slice(), b"service", b"consul"]));
        let edns = Edns { payload: 1_232, version: 0, is_dnssec_ok: false };
        assert_eq!(query.edns, Some(edns));
    }

    #[test]
    fn a_packet_cut_at_any_octet_is_refused_or_dropped() {
        let packet = good();
        for length in 0..packet.len() {
            let expected = if length < HEADER { SILENT } else { FORMERR };
            assert_eq!(outcome(&packet[..length]), expected, "{length} octets");
        }
    }

    #[test]
    fn malformed_packets_are_refused() {
        let long_name = |labels: usize| {
            let mut packet = good()[..HEADER].to_vec();
            packet[11] = 0;
            (0..labels).for_each(|_| label(&mut packet, &[b'a'; 63]));
            packet.extend_from_slice(b"\0\0\x01\0\x01");
            packet
        };
        let opt_at = 12 + 20 + 4;
        let cases = [
            (with(|p| p[2] |= 0x80), SILENT, "a reply is never answered"),
            (with(|p| p[5] = 0), FORMERR, "no question counted"),
            (with(|p| p[5] = 2), FORMERR, "two questions counted"),
            (with(|p| p[4..6].fill(0xff)), FORMERR, "65,535 questions counted"),
            (with(|p| p[7] = 1), FORMERR, "an answer in a query"),
            (with(|p| p[9] = 1), FORMERR, "an authority that is not there"),
            (with(|p| p[10..12].fill(0xff)), FORMERR, "65,535 additional records counted"),
            (with(|p| p[11] = 2), FORMERR, "one additional record too many"),
            (with(|p| p[11] = 0), Ok(()), "one not counted is not read"),
            (with(|p| p[12..14].copy_from_slice(b"\xc0\x0c")), FORMERR, "a pointer to itself"),
            (with(|p| p[12..14].copy_from_slice(b"\xc0\x20")), FORMERR, "a pointer forward"),
            (with(|p| p[12..14].copy_from_slice(b"\xc0\x00")), FORMERR, "a pointer to the header"),
            (with(|p| p[12] = 0x40), FORMERR, "a label of a kind that is not used"),
            (with(|p| p[12] = 0x80), FORMERR, "another one"),
            (with(|p| p[12] = 63), FORMERR, "a label past the end"),
            (long_name(3), Ok(()), "193 octets of name"),
            (long_name(4), FORMERR, "257 octets of name"),
            (long_name(60), FORMERR, "3,841 octets of name"),
            (with(|p| p.extend_from_within(opt_at..)), Ok(()), "trailing octets"),
            (
                with(|p| {
                    p.extend_from_within(opt_at..);
                    p[11] = 2;
                }),
                FORMERR,
                "two OPTs",
            ),
            (with(|p| p[opt_at + 9] = 0xff), FORMERR, "an OPT that is longer than the packet"),
            (
                with(|p| {
                    p[opt_at + 9..].copy_from_slice(&4_000_u16.to_be_bytes());
                    p.resize(opt_at + 11 + 4_000, 7);
                }),
                Ok(()),
                "a huge OPT that is there",
            ),
            (
                with(|p| {
                    p.splice(opt_at..opt_at, *b"\x01a");
                }),
                FORMERR,
                "an OPT with a name",
            ),
            (
                with(|p| p.splice(opt_at..=opt_at, *b"\xc0\x0c").for_each(drop)),
                FORMERR,
                "or pointer",
            ),
            (with(|p| p[2] |= 4 << 3), Err(Unfit::Refused(Rcode::Refused)), "NOTIFY"),
            (with(|p| p[2] |= 5 << 3), Err(Unfit::Refused(Rcode::Refused)), "UPDATE"),
            (with(|p| p[2] |= 2 << 3), Err(Unfit::Refused(Rcode::NotImp)), "STATUS"),
            (with(|p| p[2] |= 15 << 3), Err(Unfit::Refused(Rcode::NotImp)), "no opcode"),
        ];
        for (packet, expected, why) in cases {
            assert_eq!(outcome(&packet), expected, "{why}");
        }
    }

    #[test]
    fn a_reply_answers_only_the_query_it_repeats() {
        let question = b"\x03web\x04evil\0\0\x01\0\x01";
        let reply = |edit: &dyn Fn(&mut Vec<u8>)| {
            let mut reply = vec![0, 7, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
            reply.extend_from_slice(question);
            edit(&mut reply);
            reply
        };
        type Edit = fn(&mut Vec<u8>);
        let cases: [(Edit, bool, &str); 8] = [
            (|_| {}, true, "its own"),
            (|p| p[1] = 8, false, "another id"),
            (|p| p[2] &= 0x7f, false, "a query"),
            (|p| p[2] |= 0x28, false, "another opcode"),
            (|p| p[5] = 0, false, "no question"),
            (|p| p[13] = b'W', false, "another case"),
            (|p| p[13] = b'x', false, "another name"),
            (|p| p.truncate(20), false, "half a question"),
        ];
        for (edit, expected, why) in cases {
            assert_eq!(answers(&reply(&edit), 7, question), expected, "{why}");
        }
    }
}
