//! DNS as a rule: a question and a view give records, before any wire format.

pub mod query;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use crate::catalog::Meta;
use crate::health::Status;
use crate::name::{Datacenter, NodeName, PeerName, ServiceName};
use crate::peering::PeerService;
use crate::view::{Endpoint, View};

/// A name in a question: its labels, spelled as the client spelled them.
///
/// It never holds more than DNS allows: labels of 1 to 63 octets, 253 octets with the dots.
#[derive(Clone, Debug)]
pub struct QName {
    text: [u8; NAME_OCTETS_MAX],
    ends: [u8; LABELS_MAX],
    labels: u8,
    is_odd: bool,
}

/// A label or name that is empty or longer than DNS allows.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a DNS name has labels of 1 to 63 octets and at most 253 octets with the dots")]
pub struct TooLong;

impl Default for QName {
    fn default() -> Self {
        Self { text: [0; NAME_OCTETS_MAX], ends: [0; LABELS_MAX], labels: 0, is_odd: false }
    }
}

impl QName {
    /// The name that `text` spells, with or without a dot at the end.
    ///
    /// # Errors
    /// [`TooLong`] when DNS has no such name.
    pub fn parse(text: &str) -> Result<Self, TooLong> {
        let mut name = Self::default();
        match text.strip_suffix('.').unwrap_or(text) {
            "" => {}
            labels => labels.split('.').try_for_each(|label| name.push(label.as_bytes()))?,
        }
        Ok(name)
    }

    /// Adds a label on the right.
    ///
    /// # Errors
    /// [`TooLong`] when the label is empty or it, or the name with it, is longer than DNS allows.
    pub fn push(&mut self, label: &[u8]) -> Result<(), TooLong> {
        let count = usize::from(self.labels);
        let start = if count == 0 { 0 } else { usize::from(self.ends[count - 1]) + 1 };
        let end = start + label.len();
        if label.is_empty() || label.len() > LABEL_OCTETS_MAX || end > NAME_OCTETS_MAX {
            return Err(TooLong);
        }
        if count > 0 {
            self.text[start - 1] = b'.';
        }
        self.text[start..end].copy_from_slice(label);
        // A dot inside a label would read as two labels in the text: such a name is never ours.
        self.is_odd |= label.iter().any(|octet| !octet.is_ascii_graphic() || *octet == b'.');
        self.ends[count] = u8::try_from(end).map_err(|_| TooLong)?;
        self.labels += 1;
        Ok(())
    }

    /// How many labels it has; none for the root.
    pub fn len(&self) -> usize {
        usize::from(self.labels)
    }

    /// Whether it is the root.
    pub fn is_empty(&self) -> bool {
        self.labels == 0
    }

    /// Its labels, from the left.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &[u8]> + ExactSizeIterator {
        (0..self.len()).map(|at| self.label(at))
    }

    fn label(&self, at: usize) -> &[u8] {
        &self.text[self.start(at)..usize::from(self.ends[at])]
    }

    fn start(&self, at: usize) -> usize {
        if at == 0 { 0 } else { usize::from(self.ends[at - 1]) + 1 }
    }

    /// The labels of `range` with dots between; empty when the range is.
    fn joined(&self, range: Range<usize>) -> &str {
        if range.is_empty() {
            return "";
        }
        let octets = &self.text[self.start(range.start)..usize::from(self.ends[range.end - 1])];
        str::from_utf8(octets).unwrap_or_default()
    }

    fn ends_with(&self, domain: &Self) -> bool {
        domain.len() <= self.len()
            && domain
                .labels()
                .rev()
                .zip(self.labels().rev())
                .all(|(ours, asked)| ours.eq_ignore_ascii_case(asked))
    }
}

/// The names that a host answers for, and how.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The domain, then the alternative one.
    domains: Vec<QName>,
    datacenter: Datacenter,
    node: NodeName,
    address: IpAddr,
    only_passing: bool,
}

/// A domain that cannot be served.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} cannot be served as a DNS domain: use labels such as \"consul\", 63 octets at most")]
pub struct InvalidDomain(String);

impl Zone {
    /// A zone for `domain` and, when given, `alt_domain`.
    ///
    /// `node` and `address` are the host's own: it is its own name server. With `only_passing`
    /// an instance that warns is left out like a critical one.
    ///
    /// # Errors
    /// [`InvalidDomain`] when a domain is the root, longer than 63 octets, or has other characters
    /// than letters, digits, `-` and `_` in its labels.
    pub fn new(
        domain: &str,
        alt_domain: Option<&str>,
        datacenter: Datacenter,
        node: NodeName,
        address: IpAddr,
        only_passing: bool,
    ) -> Result<Self, InvalidDomain> {
        let allowed = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_');
        let is_fit = |name: &QName| {
            !name.is_empty()
                && name.joined(0..name.len()).len() <= DOMAIN_OCTETS_MAX
                && name.labels().flatten().all(|octet| allowed(*octet))
        };
        let parse = |text: &str| {
            QName::parse(text).ok().filter(is_fit).ok_or_else(|| InvalidDomain(text.to_owned()))
        };
        let domains = [Some(domain), alt_domain]
            .into_iter()
            .flatten()
            .map(parse)
            .collect::<Result<_, _>>()?;
        Ok(Self { domains, datacenter, node, address, only_passing })
    }

    /// The domains it answers for; [`Answer::domain`] counts in them.
    pub fn domains(&self) -> &[QName] {
        &self.domains
    }

    /// The datacenter that its names are in.
    pub fn datacenter(&self) -> &Datacenter {
        &self.datacenter
    }

    /// The longest of its domains that `name` is in.
    pub fn domain_of(&self, name: &QName) -> Option<usize> {
        let fits = self.domains.iter().enumerate().filter(|(_, domain)| name.ends_with(domain));
        fits.max_by_key(|(_, domain)| domain.len()).map(|(at, _)| at)
    }
}

/// The type of record that is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// An IPv4 address.
    A,
    /// An IPv6 address.
    Aaaa,
    /// Address, port and weight.
    Srv,
    /// Text.
    Txt,
    /// Whatever there is: answered with the addresses (RFC 8482, §4.1) and a node's meta.
    Any,
    /// The start of authority.
    Soa,
    /// The name servers.
    Ns,
    /// The name of an address.
    Ptr,
    /// Anything else: there is no such record.
    Other,
}

/// One question and what the caller adds to it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'q> {
    /// The name asked for.
    pub name: &'q QName,
    /// The type asked for.
    pub kind: Kind,
    /// Drawn afresh for each question: it decides the order of the records.
    pub draw: u64,
    /// The most records that the reply could hold; the rest is left out by the same draw.
    pub most: usize,
}

/// What the view must contain before a question can be answered.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Want {
    /// A service, or the word that there is none.
    Service(ServiceName),
    /// A node, or the word that there is none.
    Node(NodeName),
    /// A service of a peer, or the word that there is none.
    Import(PeerService),
}

/// What comes of a question.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome<'v> {
    /// The view answers it.
    Answer(Answer<'v>),
    /// The view does not say yet.
    Needs(Want),
    /// A prepared query answers it: the servers know what it finds, see [`query::answer`].
    Query {
        /// Its name or id, in lower case.
        name: Box<str>,
        /// Which of the zone's domains was asked.
        domain: usize,
    },
    /// The name is in none of the zone's domains.
    Outside,
    /// The reverse name of an address that the view does not place.
    Unplaced,
}

/// The records that answer a question. All stand under the name that was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer<'v> {
    /// Which of the zone's domains was asked: the names in the records end in it.
    pub domain: usize,
    /// Whether the name is in that domain: only then is its SOA the authority of an empty answer.
    pub is_in_domain: bool,
    /// Whether the name exists, with records of this type or not. False is NXDOMAIN.
    pub exists: bool,
    /// Whether records were left out for [`Question::most`].
    pub is_cut: bool,
    /// What of the view it speaks of, so that what is asked for can be kept.
    pub about: Option<About<'v>>,
    /// The answer.
    pub records: Vec<Record<'v>>,
    /// What may be added where there is room, besides [`Record::glue`].
    pub extra: Vec<Record<'v>>,
}

/// What of the view an answer speaks of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum About<'v> {
    /// A service.
    Service(&'v ServiceName),
    /// A node.
    Node(&'v NodeName),
    /// A service of a peer.
    Import(&'v PeerService),
}

impl From<About<'_>> for Want {
    fn from(about: About<'_>) -> Self {
        match about {
            About::Service(name) => Self::Service(name.clone()),
            About::Node(name) => Self::Node(name.clone()),
            About::Import(key) => Self::Import(key.clone()),
        }
    }
}

/// One record's data.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record<'v> {
    /// A or AAAA.
    Address(IpAddr),
    /// SRV with priority 1.
    Srv {
        /// The weight.
        weight: u16,
        /// The port.
        port: u16,
        /// The name of the host.
        target: Host<'v>,
        /// The host's address.
        address: IpAddr,
    },
    /// TXT: one text, of any length.
    Txt(String),
    /// SOA of the domain.
    Soa,
    /// NS.
    Ns {
        /// The name of the server.
        host: Host<'v>,
        /// Its address.
        address: IpAddr,
    },
    /// PTR.
    Ptr(Host<'v>),
}

/// A name in a record, before the domain is added.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Host<'v> {
    /// `<node>.node.<dc>.<domain>`.
    Node(&'v str),
    /// `<hex>.addr.<dc>.<domain>`.
    Address(IpAddr),
    /// `<service>.service.<dc>.<domain>`.
    Service(&'v str),
}

impl<'v> Record<'v> {
    /// The host that the record names and its address, for the additional section.
    pub fn glue(&self) -> Option<(Host<'v>, IpAddr)> {
        match self {
            Self::Srv { target, address, .. } => Some((*target, *address)),
            Self::Ns { host, address } => Some((*host, *address)),
            Self::Address(_) | Self::Txt(_) | Self::Soa | Self::Ptr(_) => None,
        }
    }
}

/// Answers `question` from `view`.
///
/// Only what is fit is found: critical instances never, warning ones unless the zone says
/// `only_passing`. A service none of whose instances is fit does not exist, as in Consul.
/// The same question with the same draw has the same answer.
///
/// `<service>.service.<peer>.peer` is what a peer exports, as last known: addresses in the peer's
/// own network. Its nodes have no names here, so SRV records name their addresses.
///
/// `<query>.query` is a prepared query, which no view holds.
///
/// Source: Consul's DNS interface, `agent/dns.go`.
pub fn resolve<'v>(zone: &'v Zone, view: &'v View, question: &Question<'_>) -> Outcome<'v> {
    let name = question.name;
    let Some(domain) = zone.domain_of(name) else {
        return match reversed(name) {
            Some(address) => pointer(zone, view, address, question.kind),
            None => Outcome::Outside,
        };
    };
    let answer = Answer {
        domain,
        is_in_domain: true,
        exists: true,
        is_cut: false,
        about: None,
        records: Vec::new(),
        extra: Vec::new(),
    };
    let own = name.len() - zone.domains[domain].len();
    match subject(zone, name, own, question.kind) {
        Subject::Apex => Outcome::Answer(apex(zone, question.kind, answer)),
        Subject::NameServer => Outcome::Answer(address(zone.address, question.kind, answer)),
        Subject::Address(found) => Outcome::Answer(address(found, question.kind, answer)),
        Subject::Branch => Outcome::Answer(answer),
        Subject::Peer(name) => {
            let exists = known_peer(view, name).is_some();
            Outcome::Answer(Answer { exists, ..answer })
        }
        Subject::Nothing => Outcome::Answer(missing(answer)),
        Subject::Query(name) => Outcome::Query { name: name.to_ascii_lowercase().into(), domain },
        Subject::Node(asked) => node(zone, view, asked, question.kind, answer),
        Subject::Service { name, tag, way, peer: None } => {
            let selector = Selector { tag, way, is_foreign: false };
            service(zone, view, name, selector, question, answer)
        }
        Subject::Service { name, tag, way, peer: Some(peer) } => {
            let selector = Selector { tag, way, is_foreign: true };
            import(zone, view, [name, peer], selector, question, answer)
        }
    }
}

/// What a name in one of the domains is about.
#[derive(Debug, Eq, PartialEq)]
enum Subject<'q> {
    Apex,
    NameServer,
    /// Nothing stands at the name itself, but below it: it exists and has no records (RFC 8020).
    Branch,
    /// As a branch, if the peer is one.
    Peer(&'q str),
    Service {
        name: &'q str,
        tag: Option<&'q str>,
        way: Way,
        peer: Option<&'q str>,
    },
    Node(&'q str),
    Query(&'q str),
    Address(IpAddr),
    Nothing,
}

/// Which of an instance's two sockets is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Application,
    Mesh,
}

#[derive(Clone, Copy)]
struct Selector<'q> {
    tag: Option<&'q str>,
    way: Way,
    /// Whether the instances are a peer's, whose nodes have no names here.
    is_foreign: bool,
}

/// What the labels right of the keyword say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Location<'q> {
    /// Nothing, or this datacenter.
    Here,
    /// `<peer>.peer`
    Peer(&'q str),
    /// A place that is not known here.
    Elsewhere,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Keyword {
    Service,
    Connect,
    Node,
    Query,
    Addr,
    /// Consul's other words: nothing of ours stands under them.
    Foreign,
}

fn keyword(label: &[u8]) -> Option<Keyword> {
    let words: &[(&[u8], Keyword)] = match label.len() {
        4 => &[(b"node", Keyword::Node), (b"addr", Keyword::Addr)],
        5 => &[(b"query", Keyword::Query)],
        7 => &[
            (b"service", Keyword::Service),
            (b"connect", Keyword::Connect),
            (b"virtual", Keyword::Foreign),
            (b"ingress", Keyword::Foreign),
        ],
        _ => &[],
    };
    words.iter().find(|(word, _)| word.eq_ignore_ascii_case(label)).map(|(_, found)| *found)
}

/// Reads the first `own` labels of `name`: the keyword is the rightmost, what stands right of it
/// is a location, left of it what is asked for.
fn subject<'q>(zone: &Zone, name: &'q QName, own: usize, kind: Kind) -> Subject<'q> {
    if name.is_odd {
        return Subject::Nothing;
    }
    let is_short_srv = |at: usize| kind == Kind::Srv && name.label(at).starts_with(b"_");
    let found = (0..own).rev().find_map(|at| match keyword(name.label(at)) {
        Some(word) => Some((word, at, at + 1)),
        None if is_short_srv(at) => Some((Keyword::Service, at + 1, at + 1)),
        None => None,
    });
    let Some((word, left, right)) = found else {
        return match own {
            0 => Subject::Apex,
            1 if name.label(0).eq_ignore_ascii_case(b"ns") => Subject::NameServer,
            1 if name.label(0).eq_ignore_ascii_case(PEER) => Subject::Branch,
            _ => match location(zone, name, 0..own) {
                Location::Here => Subject::Branch,
                Location::Peer(peer) => Subject::Peer(peer),
                Location::Elsewhere => Subject::Nothing,
            },
        };
    };
    let peer = match location(zone, name, right..own) {
        Location::Here => None,
        Location::Peer(peer) => Some(peer),
        Location::Elsewhere => return Subject::Nothing,
    };
    match (word, left) {
        (Keyword::Foreign, _) => Subject::Nothing,
        (Keyword::Service, 0) if let Some(peer) = peer => Subject::Peer(peer),
        (Keyword::Service, 1..) => named_service(name, left, peer),
        // A peer tells of services only.
        _ if peer.is_some() => Subject::Nothing,
        (_, 0) => Subject::Branch,
        (Keyword::Connect, 1) => {
            Subject::Service { name: name.joined(0..1), tag: None, way: Way::Mesh, peer }
        }
        (Keyword::Node, _) => Subject::Node(name.joined(0..left)),
        (Keyword::Query, _) => Subject::Query(query_name(name, left)),
        (Keyword::Addr, 1) => {
            from_hex(name.joined(0..1)).map_or(Subject::Nothing, Subject::Address)
        }
        (Keyword::Connect | Keyword::Addr, _) => Subject::Nothing,
    }
}

/// `[tag.]service`, or RFC 2782's `_service._tag` where `_tcp` stands for no tag.
fn named_service<'q>(name: &'q QName, left: usize, peer: Option<&'q str>) -> Subject<'q> {
    let way = Way::Application;
    if left == 2
        && let Some(service) = name.joined(0..1).strip_prefix('_')
        && let Some(tag) = name.joined(1..2).strip_prefix('_')
    {
        let tag = Some(tag).filter(|tag| !tag.eq_ignore_ascii_case("tcp"));
        return Subject::Service { name: service, tag, way, peer };
    }
    let tag = Some(name.joined(0..left - 1)).filter(|tag| !tag.is_empty());
    Subject::Service { name: name.joined(left - 1..left), tag, way, peer }
}

/// All labels left of the keyword, dots and all; RFC 2782's `_query._tcp` is `query`.
fn query_name(name: &QName, left: usize) -> &str {
    match name.joined(0..1).strip_prefix('_') {
        Some(query) if left == 2 && name.label(1).eq_ignore_ascii_case(b"_tcp") => query,
        _ => name.joined(0..left),
    }
}

/// Reads a location suffix: none, `<dc>`, `<dc>.dc` or `<peer>.peer`.
fn location<'q>(zone: &Zone, name: &'q QName, suffix: Range<usize>) -> Location<'q> {
    let is = |at: usize, word: &[u8]| name.label(suffix.start + at).eq_ignore_ascii_case(word);
    let is_here = || is(0, zone.datacenter.as_str().as_bytes());
    match suffix.len() {
        0 => Location::Here,
        1 if is_here() => Location::Here,
        2 if is(1, PEER) => Location::Peer(name.joined(suffix.start..suffix.start + 1)),
        2 if is(1, b"dc") && is_here() => Location::Here,
        _ => Location::Elsewhere,
    }
}

/// The peer of that name, in any case of letters.
fn known_peer<'v>(view: &'v View, asked: &str) -> Option<&'v PeerName> {
    let lower = asked.to_ascii_lowercase();
    view.peers.get_key_value(lower.as_str()).map(|(name, _)| name)
}

fn missing(answer: Answer<'_>) -> Answer<'_> {
    Answer { exists: false, ..answer }
}

fn apex<'v>(zone: &'v Zone, kind: Kind, mut answer: Answer<'v>) -> Answer<'v> {
    if matches!(kind, Kind::Soa | Kind::Any) {
        answer.records.push(Record::Soa);
    }
    if matches!(kind, Kind::Ns | Kind::Any) {
        let host = host(zone.node.as_str(), zone.address);
        answer.records.push(Record::Ns { host, address: zone.address });
    }
    answer
}

fn address(address: IpAddr, kind: Kind, mut answer: Answer<'_>) -> Answer<'_> {
    if is_of(kind, address) {
        answer.records.push(Record::Address(address));
    }
    answer
}

/// Whether a question of type `kind` is answered with `address`.
fn is_of(kind: Kind, address: IpAddr) -> bool {
    match kind {
        Kind::A => address.is_ipv4(),
        Kind::Aaaa => address.is_ipv6(),
        Kind::Any => true,
        Kind::Srv | Kind::Txt | Kind::Soa | Kind::Ns | Kind::Ptr | Kind::Other => false,
    }
}

fn node<'v>(
    zone: &'v Zone,
    view: &'v View,
    asked: &str,
    kind: Kind,
    answer: Answer<'v>,
) -> Outcome<'v> {
    // The catalog tells spellings apart and DNS does not: the asked one counts, then lower case.
    let has_upper = asked.bytes().any(|octet| octet.is_ascii_uppercase());
    let lower = has_upper.then(|| asked.to_ascii_lowercase());
    let spellings = || [Some(asked), lower.as_deref()].into_iter().flatten();
    let known = spellings().find_map(|spelling| match view.nodes.get_key_value(spelling) {
        Some((name, Some(found))) => Some((name, found)),
        Some((_, None)) | None => None,
    });
    if let Some((name, found)) = known {
        let answer = Answer { about: Some(About::Node(name)), ..answer };
        let mut answer = address(found.address, kind, answer);
        match kind {
            Kind::Txt | Kind::Any => answer.records.extend(texts(&found.meta)),
            Kind::A | Kind::Aaaa => answer.extra.extend(texts(&found.meta)),
            Kind::Srv | Kind::Soa | Kind::Ns | Kind::Ptr | Kind::Other => {}
        }
        return Outcome::Answer(answer);
    }
    let unknown = spellings().find(|spelling| !view.nodes.contains_key(*spelling));
    if unknown.is_some()
        && kind != Kind::Txt
        && let Some(found) = implied(zone, view, asked)
    {
        return Outcome::Answer(address(found, kind, answer));
    }
    let name = unknown.and_then(|name| name.parse().ok()).filter(NodeName::is_segment);
    match name {
        Some(name) => Outcome::Needs(Want::Node(name)),
        None => Outcome::Answer(missing(answer)),
    }
}

/// The address of a node that the view lacks but speaks of: the host itself, or one that carries
/// an instance. So the targets of SRV records resolve with no server in reach.
///
/// Looks at every endpoint: the view is bounded by what the host uses.
fn implied(zone: &Zone, view: &View, asked: &str) -> Option<IpAddr> {
    if zone.node.as_str().eq_ignore_ascii_case(asked) {
        return Some(zone.address);
    }
    let mut endpoints = view.services.values().flat_map(|service| service.endpoints.iter());
    endpoints.find_map(|endpoint| match endpoint.mesh {
        _ if !endpoint.node.as_str().eq_ignore_ascii_case(asked) => None,
        Some(mesh) => Some(mesh.ip()),
        None => Some(endpoint.address).filter(|_| !endpoint.has_own_address),
    })
}

fn texts<'v>(meta: &'v Meta) -> impl Iterator<Item = Record<'v>> + use<'v> {
    meta.iter().map(|(key, value)| Record::Txt(text(key, value)))
}

/// `key=value` as RFC 1464 escapes it; the bare value of a key that begins with `rfc1035-`.
fn text(key: &str, value: &str) -> String {
    if key.get(..8).is_some_and(|prefix| prefix.eq_ignore_ascii_case("rfc1035-")) {
        return value.to_owned();
    }
    let inner = key.trim_matches(' ');
    let leading = key.len() - key.trim_start_matches(' ').len();
    let trailing = key.len() - inner.len() - leading;
    format!(
        "{}{}{}={}",
        "` ".repeat(leading),
        inner.replace('`', "``").replace('=', "`="),
        "` ".repeat(trailing),
        value.replace('`', "``")
    )
}

fn service<'v>(
    zone: &Zone,
    view: &'v View,
    asked: &str,
    selector: Selector<'_>,
    question: &Question<'_>,
    answer: Answer<'v>,
) -> Outcome<'v> {
    let mut lower = [0; LABEL_OCTETS_MAX];
    let lower = &mut lower[..asked.len().min(LABEL_OCTETS_MAX)];
    for (to, from) in lower.iter_mut().zip(asked.bytes()) {
        *to = from.to_ascii_lowercase();
    }
    let name = str::from_utf8(lower).unwrap_or_default();
    let Some((known, service)) = view.services.get_key_value(name) else {
        return match name.parse::<ServiceName>().ok().filter(ServiceName::is_label) {
            Some(name) => Outcome::Needs(Want::Service(name)),
            None => Outcome::Answer(missing(answer)),
        };
    };
    let answer = Answer { about: Some(About::Service(known)), ..answer };
    Outcome::Answer(instances(zone, &service.endpoints, selector, question, answer))
}

/// Answers for a service of a peer. A peer that the view does not know has none, so that nobody
/// can make a host ask for what cannot be there; a view that knows nothing yet is waited for.
fn import<'v>(
    zone: &Zone,
    view: &'v View,
    [service, peer]: [&str; 2],
    selector: Selector<'_>,
    question: &Question<'_>,
    answer: Answer<'v>,
) -> Outcome<'v> {
    let peer = match known_peer(view, peer) {
        Some(known) => Some(known.clone()),
        None if view.trust.is_none() => peer.to_ascii_lowercase().parse().ok(),
        None => None,
    };
    let service: Option<ServiceName> = service.to_ascii_lowercase().parse().ok();
    let key = peer.zip(service.filter(ServiceName::is_label));
    let Some((peer, service)) = key else { return Outcome::Answer(missing(answer)) };
    let key = PeerService { peer, service };
    let Some((known, service)) = view.imports.get_key_value(&key) else {
        return Outcome::Needs(Want::Import(key));
    };
    let answer = Answer { about: Some(About::Import(known)), ..answer };
    Outcome::Answer(instances(zone, &service.endpoints, selector, question, answer))
}

fn instances<'v>(
    zone: &Zone,
    endpoints: &'v [Endpoint],
    selector: Selector<'_>,
    question: &Question<'_>,
    mut answer: Answer<'v>,
) -> Answer<'v> {
    let is_fit = |endpoint: &&Endpoint| {
        let is_healthy = match endpoint.status {
            Status::Passing => true,
            Status::Warning => !zone.only_passing,
            Status::Critical => false,
        };
        let is_tagged = |tag: &str| endpoint.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
        is_healthy
            && selector.tag.is_none_or(is_tagged)
            && (selector.way == Way::Application || endpoint.mesh.is_some())
    };
    let mut fit = endpoints.iter().filter(is_fit).peekable();
    answer.exists = fit.peek().is_some();
    match question.kind {
        Kind::A | Kind::Aaaa | Kind::Any => {
            let addresses = fit
                .map(|endpoint| socket(endpoint, selector.way).0)
                .filter(|address| is_of(question.kind, *address));
            answer.records = addresses.map(Record::Address).collect();
            answer.records.sort_unstable_by_key(|record| match record {
                Record::Address(address) => Some(*address),
                _ => None,
            });
            answer.records.dedup();
            answer.is_cut = draw(&mut answer.records, question);
        }
        Kind::Srv => {
            answer.records = fit.map(|endpoint| srv(endpoint, selector)).collect();
            answer.records.sort_unstable_by_key(|record| match record {
                Record::Srv { address, port, .. } => Some((*address, *port)),
                _ => None,
            });
            answer.records.dedup();
            answer.is_cut = draw(&mut answer.records, question);
        }
        Kind::Txt | Kind::Soa | Kind::Ns | Kind::Ptr | Kind::Other => {}
    }
    answer
}

/// The address and port to dial, and whether the address is the instance's own.
fn socket(endpoint: &Endpoint, way: Way) -> (IpAddr, u16, bool) {
    match (way, endpoint.mesh) {
        (Way::Mesh, Some(mesh)) => (mesh.ip(), mesh.port(), false),
        _ => (endpoint.address, endpoint.port, endpoint.has_own_address),
    }
}

fn srv<'v>(endpoint: &'v Endpoint, selector: Selector<'_>) -> Record<'v> {
    let (address, port, is_own) = socket(endpoint, selector.way);
    let weight = match endpoint.status {
        Status::Passing => endpoint.weights.passing,
        Status::Warning | Status::Critical => endpoint.weights.warning,
    };
    let target = if is_own || selector.is_foreign {
        Host::Address(address)
    } else {
        host(endpoint.node.as_str(), address)
    };
    Record::Srv { weight, port, target, address }
}

/// The name of a node, or of its address where the node's name is none that DNS can carry.
fn host(node: &str, address: IpAddr) -> Host<'_> {
    let allowed = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_');
    let fits = |label: &str| {
        !label.is_empty() && label.len() <= LABEL_OCTETS_MAX && label.bytes().all(allowed)
    };
    if node.len() <= NODE_OCTETS_MAX && node.split('.').all(fits) {
        Host::Node(node)
    } else {
        Host::Address(address)
    }
}

/// Puts the first `most` records in drawn order and drops the rest; whether there was a rest.
fn draw(records: &mut Vec<Record<'_>>, question: &Question<'_>) -> bool {
    let mut state = question.draw;
    for at in 0..records.len().min(question.most) {
        let other = at + below(&mut state, records.len() - at);
        records.swap(at, other);
    }
    let is_cut = records.len() > question.most;
    records.truncate(question.most);
    is_cut
}

/// The next number below `bound`. Source: SplitMix64, Steele and others, 2014.
fn below(state: &mut u64, bound: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    let product = u128::from(mixed) * bound as u128;
    (product >> 64) as usize
}

/// Names `address` by the view: an instance's own address by its service, a node's by the node.
///
/// Looks at every endpoint: the view is bounded by what the host uses.
fn pointer<'v>(zone: &'v Zone, view: &'v View, address: IpAddr, kind: Kind) -> Outcome<'v> {
    let node = |name: &'v str| match host(name, address) {
        Host::Node(name) => Some(Host::Node(name)),
        Host::Address(_) | Host::Service(_) => None,
    };
    let own = (zone.address == address).then(|| node(zone.node.as_str())).flatten();
    let found = own
        .or_else(|| {
            let mut nodes = view.nodes.iter();
            nodes
                .find(|(_, found)| found.as_ref().is_some_and(|found| found.address == address))
                .and_then(|(name, _)| node(name.as_str()))
        })
        .or_else(|| {
            view.services.iter().find_map(|(name, service)| {
                let endpoint = service.endpoints.iter().find(|it| it.address == address)?;
                if endpoint.has_own_address {
                    Some(Host::Service(name.as_str()))
                } else {
                    node(endpoint.node.as_str())
                }
            })
        });
    let Some(host) = found else { return Outcome::Unplaced };
    let records =
        if matches!(kind, Kind::Ptr | Kind::Any) { vec![Record::Ptr(host)] } else { Vec::new() };
    Outcome::Answer(Answer {
        domain: 0,
        is_in_domain: false,
        exists: true,
        is_cut: false,
        about: None,
        records,
        extra: Vec::new(),
    })
}

/// The address whose reverse name `name` is (RFC 1035 §3.5, RFC 3596 §2.5).
fn reversed(name: &QName) -> Option<IpAddr> {
    let ends = |tree: [&[u8]; 2]| {
        let mut right = name.labels().rev();
        right.next().is_some_and(|label| label.eq_ignore_ascii_case(tree[1]))
            && right.next().is_some_and(|label| label.eq_ignore_ascii_case(tree[0]))
    };
    match name.len() {
        6 if ends([b"in-addr", b"arpa"]) => {
            let mut octets = [0; 4];
            for (octet, at) in octets.iter_mut().zip((0..4).rev()) {
                let label = name.joined(at..at + 1);
                let is_number = label.bytes().all(|digit| digit.is_ascii_digit());
                *octet = Some(label).filter(|_| is_number)?.parse().ok()?;
            }
            Some(Ipv4Addr::from(octets).into())
        }
        34 if ends([b"ip6", b"arpa"]) => {
            let mut nibbles = (0..32).rev().map(|at| match name.label(at) {
                [digit] => char::from(*digit).to_digit(16),
                _ => None,
            });
            let bits = nibbles.try_fold(0_u128, |bits, nibble| {
                nibble.map(|nibble| bits << 4 | u128::from(nibble))
            })?;
            Some(Ipv6Addr::from_bits(bits).into())
        }
        _ => None,
    }
}

fn from_hex(text: &str) -> Option<IpAddr> {
    if !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    match text.len() {
        8 => Some(Ipv4Addr::from_bits(u32::from_str_radix(text, 16).ok()?).into()),
        32 => Some(Ipv6Addr::from_bits(u128::from_str_radix(text, 16).ok()?).into()),
        _ => None,
    }
}

/// The label that marks a peer's name.
const PEER: &[u8] = b"peer";
/// RFC 1035 §2.3.4.
const LABEL_OCTETS_MAX: usize = 63;
/// 255 octets on the wire less the first length and the root.
const NAME_OCTETS_MAX: usize = 253;
const LABELS_MAX: usize = 127;
/// Leaves room for the longest `<node>.node.<dc>.<domain>`.
const DOMAIN_OCTETS_MAX: usize = 63;
/// Longer node names go by their address: with what follows they could pass 253 octets.
const NODE_OCTETS_MAX: usize = 120;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::catalog::{Locality, Weights};
    use crate::chain;
    use crate::clock::Index;
    use crate::entry::Entries;
    use crate::intention::Action;
    use crate::view::{NodeView, PeerView, ServiceView, Trust};

    fn zone() -> Zone {
        zone_with(false)
    }

    fn zone_with(only_passing: bool) -> Zone {
        Zone::new(
            "consul.",
            Some("mesh.example"),
            "dc1".parse().expect("a label"),
            "here".parse().expect("a segment"),
            "10.0.0.9".parse().expect("an address"),
            only_passing,
        )
        .expect("both domains are good")
    }

    fn endpoint(node: &str, address: &str, own: bool, status: Status, tags: &[&str]) -> Endpoint {
        Endpoint {
            node: node.parse().expect("a segment"),
            instance: format!("{node}-{address}").parse().expect("printable"),
            address: address.parse().expect("an address"),
            has_own_address: own,
            ports: Default::default(),
            port: 8080,
            mesh: None,
            locality: Locality::default(),
            tags: tags.iter().map(|tag| Arc::from(*tag)).collect(),
            weights: Weights { passing: 10, warning: 2 },
            status,
        }
    }

    fn view() -> View {
        use Status::{Critical, Passing, Warning};
        let mut meshed = endpoint("n1", "10.0.0.1", false, Passing, &[]);
        meshed.mesh = Some("10.0.0.1:21000".parse().expect("a socket address"));
        let services: [(&str, Vec<Endpoint>); 7] = [
            (
                "web",
                vec![
                    endpoint("n1", "10.0.0.1", false, Passing, &["v1", "eu.west"]),
                    endpoint("n2", "10.0.0.2", false, Warning, &["v2"]),
                    endpoint("n3", "10.0.0.3", false, Critical, &["v1"]),
                ],
            ),
            ("own", vec![endpoint("n1", "10.1.0.1", true, Passing, &[])]),
            ("six", vec![endpoint("n6", "fd00::6", true, Passing, &[])]),
            ("down", vec![endpoint("n3", "10.0.0.3", false, Critical, &[])]),
            ("gone", vec![]),
            ("paid", vec![meshed, endpoint("n2", "10.0.0.2", false, Passing, &[])]),
            (
                "twice",
                vec![
                    endpoint("n1", "10.0.0.1", false, Passing, &[]),
                    endpoint("n1", "10.0.0.1", false, Passing, &[]),
                ],
            ),
        ];
        let services = services.into_iter().map(|(name, endpoints)| {
            let name: ServiceName = name.parse().expect("a label");
            let chain = chain::compile(&Entries::default(), None, &name);
            let index = Index::default();
            (name, Arc::new(ServiceView::alone(chain, endpoints.into(), index)))
        });
        let node = |address: &str| {
            let meta =
                BTreeMap::from([("rack".into(), "a=b".into()), ("rfc1035-x".into(), "y".into())]);
            Some(Arc::new(NodeView { address: address.parse().expect("an address"), meta }))
        };
        let nodes = [
            ("n1", node("10.0.0.1")),
            ("ip-10.ec2.internal", node("10.0.0.7")),
            ("Upper_1", node("10.0.0.8")),
            ("none", None),
        ];
        let west: PeerName = "west".parse().expect("a label");
        let peer = PeerView {
            trust_domain: "2b.consul".parse().expect("a trust domain"),
            datacenter: "dc2".parse().expect("a label"),
            roots: Vec::new(),
            revoked: Default::default(),
            calls_us: "east".parse().expect("a label"),
            is_live: false,
            gateways: Vec::new(),
        };
        let exported =
            [("web", vec![endpoint("n1", "10.2.0.1", false, Passing, &["v1"])]), ("gone", vec![])];
        let imports = exported.into_iter().map(|(name, endpoints)| {
            let service: ServiceName = name.parse().expect("a label");
            let chain = chain::compile(&Entries::default(), None, &service);
            let seen = ServiceView {
                peer: Some(west.clone()),
                ..ServiceView::alone(chain, endpoints.into(), Index::default())
            };
            (PeerService { peer: west.clone(), service }, Arc::new(seen))
        });
        let trust = Trust {
            trust_domain: "1b.consul".parse().expect("a trust domain"),
            datacenter: "dc1".parse().expect("a label"),
            roots: Vec::new(),
            default_action: Action::Deny,
            issuing: Default::default(),
            revoked: Default::default(),
        };
        View {
            trust: Some(Arc::new(trust)),
            imports: imports.collect(),
            peers: Arc::new([(west.clone(), peer)].into()),
            services: services.collect(),
            nodes: nodes.into_iter().map(|(n, v)| (n.parse().expect("a segment"), v)).collect(),
            ..View::default()
        }
    }

    /// One line for an outcome: its rcode and the sorted records, or what it needs.
    fn ask_in(zone: &Zone, view: &View, name: &str, kind: Kind) -> String {
        let name = QName::parse(name).expect("short enough");
        match resolve(zone, view, &Question { name: &name, kind, draw: 7, most: 100 }) {
            Outcome::Answer(answer) => {
                let mut lines: Vec<String> = answer.records.iter().map(line).collect();
                lines.sort();
                let code = if answer.exists { "ok" } else { "nx" };
                [vec![code.to_owned()], lines].concat().join(" ")
            }
            Outcome::Query { name, domain } => format!("query {name} of {domain}"),
            Outcome::Needs(Want::Service(name)) => format!("needs service {name}"),
            Outcome::Needs(Want::Node(name)) => format!("needs node {name}"),
            Outcome::Needs(Want::Import(key)) => format!("needs import {key}"),
            Outcome::Outside => "outside".to_owned(),
            Outcome::Unplaced => "unplaced".to_owned(),
        }
    }

    fn line(record: &Record<'_>) -> String {
        let host = |host: &Host<'_>| match host {
            Host::Node(name) => format!("{name}.node"),
            Host::Address(address) => format!("{address}.addr"),
            Host::Service(name) => format!("{name}.service"),
        };
        match record {
            Record::Address(address) => address.to_string(),
            Record::Srv { weight, port, target, address } => {
                format!("srv/{weight}/{port}/{}/{address}", host(target))
            }
            Record::Txt(text) => format!("txt/{text}"),
            Record::Soa => "soa".to_owned(),
            Record::Ns { host: name, address } => format!("ns/{}/{address}", host(name)),
            Record::Ptr(name) => format!("ptr/{}", host(name)),
        }
    }

    #[test]
    fn every_form_of_name_has_its_answer() {
        use Kind::{A, Aaaa, Any, Ns, Other, Ptr, Soa, Srv, Txt};
        let cases = [
            // name, type, expected, why
            ("web.service.consul", A, "ok 10.0.0.1 10.0.0.2", "critical is left out, warning not"),
            ("WEB.Service.CONSUL", A, "ok 10.0.0.1 10.0.0.2", "case does not count"),
            ("web.service.mesh.example", A, "ok 10.0.0.1 10.0.0.2", "the alternative domain"),
            ("web.service.dc1.consul", A, "ok 10.0.0.1 10.0.0.2", "a location"),
            ("web.service.dc1.dc.consul", A, "ok 10.0.0.1 10.0.0.2", "a marked location"),
            ("web.service.dc2.consul", A, "nx", "another datacenter is not known here"),
            ("web.service.dc1.peer.consul", A, "nx", "a datacenter is no peer"),
            ("web.service.west.peer.consul", A, "ok 10.2.0.1", "a peer's service"),
            ("Web.Service.West.Peer.consul", A, "ok 10.2.0.1", "in any case"),
            ("v1.web.service.west.peer.consul", A, "ok 10.2.0.1", "with a tag"),
            ("v2.web.service.west.peer.consul", A, "nx", "with a tag that none has"),
            ("web.service.west.peer.consul", Any, "ok 10.2.0.1", "ANY"),
            ("web.service.west.peer.consul", Aaaa, "ok", "of the other family"),
            (
                "web.service.west.peer.consul",
                Srv,
                "ok srv/10/8080/10.2.0.1.addr/10.2.0.1",
                "a peer's nodes have no names here",
            ),
            (
                "_web._v1.service.west.peer.consul",
                Srv,
                "ok srv/10/8080/10.2.0.1.addr/10.2.0.1",
                "RFC 2782",
            ),
            ("gone.service.west.peer.consul", A, "nx", "the peer exports none"),
            ("own.service.west.peer.consul", A, "needs import own.west", "not in the view"),
            ("web.service.east.peer.consul", A, "nx", "no such peer"),
            ("bad_name.service.west.peer.consul", A, "nx", "no service can be called so"),
            ("web.service.west.consul", A, "nx", "a peer's name alone is no location"),
            ("web.service.west.dc.consul", A, "nx", "nor is it a datacenter"),
            ("web.service.dc1.west.peer.consul", A, "nx", "one location at a time"),
            ("web.connect.west.peer.consul", A, "nx", "a peer tells of services"),
            ("n1.node.west.peer.consul", A, "nx", "and not of nodes"),
            ("peer.consul", A, "ok", "a branch, for minimising resolvers"),
            ("west.peer.consul", A, "ok", "and the peer"),
            ("service.west.peer.consul", A, "ok", "and its keyword"),
            ("east.peer.consul", A, "nx", "and no other peer"),
            ("web.service.x.dc1.dc.consul", A, "nx", "too long a location"),
            ("v1.web.service.consul", A, "ok 10.0.0.1", "a tag"),
            ("V2.web.service.consul", A, "ok 10.0.0.2", "a tag in any case"),
            ("eu.west.web.service.consul", A, "ok 10.0.0.1", "a tag with a dot"),
            ("v3.web.service.consul", A, "nx", "a tag that none has"),
            ("web.service.consul", Aaaa, "ok", "no address of that family"),
            ("six.service.consul", Aaaa, "ok fd00::6", "IPv6"),
            ("six.service.consul", A, "ok", "only IPv6"),
            ("web.service.consul", Other, "ok", "no such type"),
            ("web.service.consul", Txt, "ok", "no texts on services"),
            ("web.service.consul", Any, "ok 10.0.0.1 10.0.0.2", "a subset answers ANY"),
            ("twice.service.consul", A, "ok 10.0.0.1", "no address twice"),
            ("twice.service.consul", Srv, "ok srv/10/8080/n1.node/10.0.0.1", "no socket twice"),
            ("down.service.consul", A, "nx", "none is healthy"),
            ("gone.service.consul", A, "nx", "the catalog has none"),
            ("new.service.consul", A, "needs service new", "not in the view"),
            ("NEW.service.consul", A, "needs service new", "wanted by its one spelling"),
            ("bad_name.service.consul", A, "nx", "no service can be called so"),
            (
                "web.service.consul",
                Srv,
                "ok srv/10/8080/n1.node/10.0.0.1 srv/2/8080/n2.node/10.0.0.2",
                "weights follow the status",
            ),
            ("own.service.consul", Srv, "ok srv/10/8080/10.1.0.1.addr/10.1.0.1", "own address"),
            ("_web._v1.service.consul", Srv, "ok srv/10/8080/n1.node/10.0.0.1", "RFC 2782"),
            ("_own._tcp.service.consul", Srv, "ok srv/10/8080/10.1.0.1.addr/10.1.0.1", "no tag"),
            ("_web._v1.consul", Srv, "ok srv/10/8080/n1.node/10.0.0.1", "without the keyword"),
            ("_web._v1.dc1.consul", Srv, "ok srv/10/8080/n1.node/10.0.0.1", "and in a location"),
            ("_web._v1.dc2.consul", Srv, "nx", "and in another"),
            ("_own._tcp.service.consul", A, "ok 10.1.0.1", "addresses by the RFC 2782 name"),
            ("_web._v1.consul", A, "nx", "the short form is for SRV only"),
            ("paid.connect.consul", A, "ok 10.0.0.1", "only what is in the mesh"),
            ("paid.connect.consul", Srv, "ok srv/10/21000/n1.node/10.0.0.1", "the proxy's port"),
            ("v1.paid.connect.consul", A, "nx", "no tags in the mesh"),
            ("web.connect.consul", A, "nx", "none is in the mesh"),
            ("web.virtual.consul", A, "nx", "no virtual addresses"),
            ("web.ingress.consul", A, "nx", "no ingress gateways"),
            ("Geo-Web.query.consul", A, "query geo-web of 0", "in lower case, as Consul's"),
            ("geo.v1.query.dc1.consul", Srv, "query geo.v1 of 0", "with dots, in a location"),
            ("_geo._tcp.query.consul", Srv, "query geo of 0", "RFC 2782's form"),
            ("geo.query.dc2.consul", A, "nx", "in another datacenter"),
            ("geo.query.west.peer.consul", A, "nx", "a peer tells of services only"),
            ("query.consul", A, "ok", "nothing stands there, but below"),
            ("n1.node.consul", A, "ok 10.0.0.1", "a node"),
            ("n1.node.dc1.consul", A, "ok 10.0.0.1", "a node in a location"),
            ("n1.node.consul", Aaaa, "ok", "a node of the other family"),
            ("n1.node.consul", Txt, "ok txt/rack=a=b txt/y", "meta"),
            ("n1.node.consul", Any, "ok 10.0.0.1 txt/rack=a=b txt/y", "address and meta"),
            ("n1.node.consul", Srv, "ok", "no ports on nodes"),
            ("ip-10.ec2.internal.node.consul", A, "ok 10.0.0.7", "a node name with dots"),
            ("Upper_1.node.consul", A, "ok 10.0.0.8", "spelled as registered"),
            ("upper_1.node.consul", A, "needs node upper_1", "another spelling is asked for"),
            ("N1.node.consul", A, "ok 10.0.0.1", "lower case stands for any"),
            ("none.node.consul", A, "nx", "no such node"),
            ("new.node.consul", A, "needs node new", "not in the view"),
            ("n3.node.consul", A, "ok 10.0.0.3", "an instance tells where its node is"),
            ("N3.node.consul", Aaaa, "ok", "and where it is not"),
            ("n3.node.consul", Txt, "needs node n3", "but not the node's meta"),
            ("n6.node.consul", Aaaa, "needs node n6", "an own address is not the node's"),
            ("a!b.node.consul", A, "nx", "no node can be called so"),
            ("here.node.consul", A, "ok 10.0.0.9", "the host itself"),
            ("here.node.consul", Txt, "needs node here", "its meta is in the catalog"),
            ("0a000001.addr.dc1.consul", A, "ok 10.0.0.1", "an address in hex"),
            ("0A000001.addr.consul", A, "ok 10.0.0.1", "in upper case"),
            ("0a000001.addr.dc1.consul", Aaaa, "ok", "of the other family"),
            ("fd000000000000000000000000000006.addr.dc1.consul", Aaaa, "ok fd00::6", "IPv6 hex"),
            ("0a00001.addr.dc1.consul", A, "nx", "seven digits"),
            ("+a000001.addr.dc1.consul", A, "nx", "a sign is no digit"),
            ("x.0a000001.addr.dc1.consul", A, "nx", "two labels"),
            ("consul", Soa, "ok soa", "the apex"),
            ("consul", Ns, "ok ns/here.node/10.0.0.9", "the host is its own server"),
            ("mesh.example", Soa, "ok soa", "the other apex"),
            ("consul", A, "ok", "nothing else at the apex"),
            ("ns.consul", A, "ok 10.0.0.9", "what SOA names"),
            ("service.consul", A, "ok", "a branch exists: minimising resolvers ask for it"),
            ("service.dc1.consul", A, "ok", "so does one in a location"),
            ("dc1.consul", A, "ok", "and the location"),
            ("dc2.consul", A, "nx", "not another one"),
            ("web.consul", A, "nx", "no keyword"),
            ("service.web.service.consul", A, "nx", "the rightmost keyword counts"),
            ("web.service.consul.evil.com", A, "outside", "the domain must stand last"),
            ("example", A, "outside", "half a domain"),
            ("xconsul", A, "outside", "a label that ends alike"),
            ("", Ns, "outside", "the root"),
            ("1.0.0.10.in-addr.arpa", Ptr, "ok ptr/n1.node", "a node's address"),
            ("2.0.0.10.in-addr.arpa", Ptr, "ok ptr/n2.node", "an instance's node"),
            ("9.0.0.10.in-addr.arpa", Ptr, "ok ptr/here.node", "its own"),
            ("1.0.1.10.in-addr.arpa", Ptr, "ok ptr/own.service", "an own address"),
            ("1.0.0.10.in-addr.arpa", A, "ok", "known, of another type"),
            ("9.9.9.9.in-addr.arpa", Ptr, "unplaced", "none of ours"),
            ("256.0.0.10.in-addr.arpa", Ptr, "outside", "no octet"),
            ("+1.0.0.10.in-addr.arpa", Ptr, "outside", "a sign is no digit"),
            (
                "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
                Ptr,
                "ok ptr/six.service",
                "IPv6",
            ),
        ];
        let (zone, view) = (zone(), view());
        for (name, kind, expected, why) in cases {
            assert_eq!(ask_in(&zone, &view, name, kind), expected, "{name} {kind:?}: {why}");
        }
    }

    #[test]
    fn a_view_that_knows_nothing_yet_is_waited_for() {
        let cases = [
            ("web.service", "needs service web"),
            ("db.service.west.peer", "needs import db.west"),
        ];
        for (name, expected) in cases {
            let asked = ask_in(&zone(), &View::default(), &format!("{name}.consul"), Kind::A);
            assert_eq!(asked, expected);
        }
    }

    #[test]
    fn only_passing_leaves_out_what_warns() {
        let answer = ask_in(&zone_with(true), &view(), "web.service.consul", Kind::A);
        assert_eq!(answer, "ok 10.0.0.1");
    }

    #[test]
    fn a_dot_inside_a_label_is_no_border() {
        let mut name = QName::default();
        for label in [b"web.service".as_slice(), b"consul"] {
            name.push(label).expect("short enough");
        }
        let (zone, view) = (zone(), view());
        let question = Question { name: &name, kind: Kind::A, draw: 0, most: 9 };
        let Outcome::Answer(answer) = resolve(&zone, &view, &question) else {
            panic!("the name is in the domain");
        };
        assert!(!answer.exists && answer.records.is_empty());
    }

    #[test]
    fn the_draw_orders_and_the_most_cuts() {
        let hosts = (1..=50).map(|at| {
            endpoint(&format!("n{at}"), &format!("10.2.0.{at}"), false, Status::Passing, &[])
        });
        let name: ServiceName = "big".parse().expect("a label");
        let chain = chain::compile(&Entries::default(), None, &name);
        let service = ServiceView::alone(chain, hosts.collect(), Index::default());
        let view = View { services: [(name, Arc::new(service))].into(), ..View::default() };
        let zone = zone();
        let name = QName::parse("big.service.consul").expect("short enough");
        let ask = |draw, most| {
            let question = Question { name: &name, kind: Kind::A, draw, most };
            match resolve(&zone, &view, &question) {
                Outcome::Answer(answer) => answer,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ask(1, 50), ask(1, 50), "the same draw, the same answer");
        assert_ne!(ask(1, 50).records, ask(2, 50).records, "another draw, another order");
        assert!(!ask(1, 50).is_cut);
        let cut = ask(1, 3);
        assert!(cut.is_cut && cut.records.len() == 3, "{cut:?}");
        let mut firsts = BTreeMap::new();
        for draw in 0..5_000 {
            *firsts.entry(line(&ask(draw, 1).records[0])).or_insert(0) += 1;
        }
        // 100 each are expected; 40 and 180 are six and eight deviations away.
        assert_eq!(firsts.len(), 50);
        assert!(firsts.values().all(|count| (40..180).contains(count)), "{firsts:?}");
    }

    #[test]
    fn a_name_that_dns_cannot_carry_goes_by_its_address() {
        let address: IpAddr = "10.0.0.1".parse().expect("an address");
        let (long, deep) = ("a".repeat(64), ["abcdefg"; 16].join("."));
        for (node, expected) in [
            ("n1", Host::Node("n1")),
            ("n1.internal", Host::Node("n1.internal")),
            (long.as_str(), Host::Address(address)),
            (deep.as_str(), Host::Address(address)),
            ("a..b", Host::Address(address)),
            ("arn:aws:ecs:eu-west-1:123456789012:cluster/web", Host::Address(address)),
            ("n 1", Host::Address(address)),
        ] {
            assert_eq!(host(node, address), expected, "{node}");
        }
    }

    #[test]
    fn texts_are_escaped_as_rfc_1464_says() {
        for (key, value, expected) in [
            ("rack", "a", "rack=a"),
            ("a=b", "c=d", "a`=b=c=d"),
            ("a`b", "c`d", "a``b=c``d"),
            (" a  ", "v", "` a` ` =v"),
            ("  ", "v", "` ` =v"),
            ("RFC1035-x", "a=`b", "a=`b"),
        ] {
            assert_eq!(text(key, value), expected, "{key:?} {value:?}");
        }
    }

    #[test]
    fn names_keep_to_the_limits_of_dns() {
        let label = |length| "a".repeat(length);
        let full = [label(63), label(63), label(63), label(61)].join(".");
        let over = [label(63), label(63), label(63), label(62)].join(".");
        let deep = ["a"; 127].join(".");
        for (text, good) in [
            ("", true),
            (".", true),
            ("web.service.consul.", true),
            ("a..b", false),
            (".a", false),
            (label(63).as_str(), true),
            (label(64).as_str(), false),
            (full.as_str(), true),
            (over.as_str(), false),
            (deep.as_str(), true),
        ] {
            assert_eq!(QName::parse(text).is_ok(), good, "{text:?}");
        }
    }

    #[test]
    fn a_zone_has_domains_that_dns_can_carry() {
        let long = ["abcdefg"; 9].join(".");
        for (domain, good) in [
            ("consul", true),
            ("a_b.example-1.com.", true),
            ("", false),
            (".", false),
            ("a b", false),
            ("a..b", false),
            (long.as_str(), false),
        ] {
            let zone = Zone::new(
                domain,
                None,
                "dc1".parse().expect("a label"),
                "here".parse().expect("a segment"),
                IpAddr::from([127, 0, 0, 1]),
                false,
            );
            assert_eq!(zone.is_ok(), good, "{domain:?}");
        }
    }
}
