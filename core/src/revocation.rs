//! Revocations: identities that nobody believes any more, whatever their certificates say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rpds::RedBlackTreeMapSync;

use crate::catalog::{Row, upsert};
use crate::clock::{Index, Stamp, UnixTime};
use crate::name::{NodeName, ServiceName};
use crate::spiffe::{Role, SpiffeId};

/// The serial number of a certificate: 1 to 20 octets, as RFC 5280 §4.1.2.2 has it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Serial(Arc<[u8]>);

/// A text that is no serial number.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is no serial number: write 1 to 20 octets in hexadecimal, as in 5f:0a:91")]
pub struct InvalidSerial;

impl Serial {
    /// The serial number with these octets.
    ///
    /// # Errors
    /// [`InvalidSerial`] when there are none, or more than 20.
    pub fn new(octets: &[u8]) -> Result<Self, InvalidSerial> {
        if octets.is_empty() || octets.len() > SERIAL_OCTETS_MAX {
            return Err(InvalidSerial);
        }
        Ok(Self(octets.into()))
    }

    /// Its octets.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, octet) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            write!(f, "{colon}{octet:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Serial {
    type Err = InvalidSerial;

    fn from_str(text: &str) -> Result<Self, InvalidSerial> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(|octet| *octet != b':')
            .map(|octet| char::from(octet).to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or(InvalidSerial)?;
        if !digits.len().is_multiple_of(2) {
            return Err(InvalidSerial);
        }
        let octets: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        Self::new(&octets)
    }
}

/// The first octets of the serial numbers of all certificates that are made for one node: what
/// tells two instances of a service apart, whose identity is the same.
pub type NodeTag = [u8; NODE_TAG_OCTETS];

/// The tag of `node`: FNV-1a of its name, made a positive number of full length.
pub fn node_tag(node: &NodeName) -> NodeTag {
    let fold = |hash: u64, octet: u8| (hash ^ u64::from(octet)).wrapping_mul(FNV_PRIME);
    let mut tag = node.as_str().bytes().fold(FNV_OFFSET, fold).to_be_bytes();
    tag[0] = tag[0] & 0x7f | 0x40;
    tag
}

/// What is revoked.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Subject {
    /// Everything that was or will be certified for a node: it is in quarantine.
    Node(NodeName),
    /// An identity, wherever it is shown.
    Service(ServiceName),
    /// One certificate; its owner gets another.
    Certificate(Serial),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Service(service) => write!(f, "service {service}"),
            Self::Certificate(serial) => write!(f, "certificate {serial}"),
        }
    }
}

/// One revocation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Revocation {
    /// What is revoked.
    pub subject: Subject,
    /// Why, for people.
    pub reason: Arc<str>,
    /// Since when.
    pub at: UnixTime,
}

/// The revocations: a persistent table.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    rows: RedBlackTreeMapSync<Subject, Row<Revocation>>,
    index: Index,
}

/// The table is at its bound.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Full;

impl Revocations {
    /// One revocation.
    pub fn get(&self, subject: &Subject) -> Option<&Row<Revocation>> {
        self.rows.get(subject)
    }

    /// Every revocation, by subject.
    pub fn iter(&self) -> impl Iterator<Item = &Row<Revocation>> {
        self.rows.values()
    }

    /// The last entry that changed any.
    pub fn index(&self) -> Index {
        self.index
    }

    /// Stores `revocation`. Those of certificates that have surely run out are forgotten.
    ///
    /// # Errors
    /// [`Full`]
    pub(crate) fn put(&mut self, revocation: Revocation, stamp: Stamp) -> Result<(), Full> {
        let lapsed: Vec<Subject> = self
            .rows
            .values()
            .filter(|row| matches!(row.value.subject, Subject::Certificate(_)))
            .filter(|row| row.value.at.plus(KEPT) <= stamp.time)
            .map(|row| row.value.subject.clone())
            .collect();
        for subject in lapsed {
            self.rows.remove_mut(&subject);
        }
        let is_new = !self.rows.contains_key(&revocation.subject);
        if is_new && self.rows.size() >= REVOCATIONS_MAX {
            return Err(Full);
        }
        let subject = revocation.subject.clone();
        upsert(&mut self.rows, subject, revocation, stamp.index);
        self.index = stamp.index;
        Ok(())
    }

    /// Undoes a revocation; false when there is none.
    pub(crate) fn remove(&mut self, subject: &Subject, at: Index) -> bool {
        let was_there = self.rows.remove_mut(subject);
        if was_there {
            self.index = at;
        }
        was_there
    }

    /// The table that `rows` and `index` were taken of.
    pub(crate) fn restore(rows: Vec<Row<Revocation>>, index: Index) -> Self {
        let rows = rows.into_iter().map(|row| (row.value.subject.clone(), row));
        Self { rows: rows.collect(), index }
    }

    /// What hosts and servers need of it.
    pub fn revoked(&self) -> Revoked {
        let mut revoked = Revoked::default();
        for row in self.rows.values() {
            match &row.value.subject {
                Subject::Node(node) => {
                    revoked.nodes.insert(node_tag(node), node.clone());
                }
                Subject::Service(service) => {
                    revoked.services.insert(service.clone());
                }
                Subject::Certificate(serial) => {
                    revoked.certificates.insert(serial.clone());
                }
            }
        }
        revoked
    }
}

/// Whom nobody in a cluster believes any more.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Revoked {
    /// Nodes in quarantine, by their tag.
    pub nodes: BTreeMap<NodeTag, NodeName>,
    /// Identities.
    pub services: BTreeSet<ServiceName>,
    /// Certificates.
    pub certificates: BTreeSet<Serial>,
}

impl Revoked {
    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.services.is_empty() && self.certificates.is_empty()
    }

    /// Whether `id` is, when it is shown in a certificate with this serial number.
    pub fn covers(&self, id: &SpiffeId, serial: &[u8]) -> bool {
        if self.is_empty() {
            return false;
        }
        let by_role = match &id.role {
            Role::Service(service) => self.services.contains(service),
            Role::Agent(node) => self.nodes.values().any(|revoked| revoked == node),
            Role::Server(_) | Role::MeshGateway => false,
        };
        let by_node = || {
            let tag = serial.first_chunk::<NODE_TAG_OCTETS>();
            tag.is_some_and(|tag| self.nodes.contains_key(tag))
        };
        by_role || self.is_certificate(serial) || by_node()
    }

    /// Whether the certificate with this serial number is revoked by itself.
    pub fn is_certificate(&self, serial: &[u8]) -> bool {
        self.certificates.iter().any(|revoked| revoked.octets() == serial)
    }
}

const NODE_TAG_OCTETS: usize = 8;
const SERIAL_OCTETS_MAX: usize = 20;
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
/// Longer than any certificate holds.
const KEPT: Duration = Duration::from_secs(8 * 86_400);
/// Each is sent to every host.
pub(crate) const REVOCATIONS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn name<T: FromStr<Err: fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a good name")
    }

    fn stamp(index: u64) -> Stamp {
        Stamp { index: Index(index), time: UnixTime::from_secs(1_000_000 + index * 86_400) }
    }

    fn revoke(table: &mut Revocations, subject: Subject, index: u64) {
        let stamp = stamp(index);
        let revocation = Revocation { subject, reason: "".into(), at: stamp.time };
        table.put(revocation, stamp).expect("room");
    }

    #[test]
    fn serial_numbers_are_written_as_others_write_them() {
        let octets = [0x5f, 0x0a, 0x91];
        for text in ["5f:0a:91", "5F0A91", "5f0a91"] {
            assert_eq!(name::<Serial>(text).octets(), octets, "{text}");
        }
        assert_eq!(Serial::new(&octets).expect("short").to_string(), "5f:0a:91");
        let long = "00".repeat(21);
        for text in ["", ":", "5", "5f:0", "xy", &long, "é0"] {
            assert_eq!(text.parse::<Serial>(), Err(InvalidSerial), "{text:?}");
        }
    }

    #[test]
    fn who_is_revoked_is_covered_and_nobody_else() {
        let mut table = Revocations::default();
        let tag = node_tag(&name("n1"));
        let on = |node: &str, last: u8| {
            let mut serial = node_tag(&name(node)).to_vec();
            serial.extend([last; 8]);
            serial
        };
        assert!(tag[0] & 0x80 == 0 && tag[0] != 0, "a positive number of full length");
        revoke(&mut table, Subject::Node(name("n1")), 1);
        revoke(&mut table, Subject::Service(name("db")), 2);
        revoke(&mut table, Subject::Certificate(Serial::new(&on("n2", 7)).expect("short")), 3);
        let revoked = table.revoked();
        let service = |text: &str| Role::Service(name(text));
        let cases = [
            (service("web"), on("n1", 1), true, "all of a node in quarantine"),
            (Role::Agent(name("n1")), vec![9; 16], true, "its agent, whatever its certificate"),
            (Role::Agent(name("n2")), on("n2", 1), false, "another node's"),
            (service("db"), on("n2", 1), true, "an identity, wherever it is"),
            (service("web"), on("n2", 1), false, "another identity"),
            (service("web"), on("n2", 7), true, "that very certificate"),
            (service("web"), vec![], false, "no serial number is none of these"),
        ];
        for (role, serial, expected, why) in cases {
            let (trust_domain, datacenter) = (name("1f2e.consul"), name("dc1"));
            let id = SpiffeId { trust_domain, datacenter, role };
            assert_eq!(revoked.covers(&id, &serial), expected, "{why}");
            assert!(!Revoked::default().covers(&id, &serial), "{why}: nobody is revoked");
        }
    }

    #[test]
    fn what_ran_out_is_forgotten_and_what_is_undone_is_gone() {
        let mut table = Revocations::default();
        let old = Subject::Certificate(name("01"));
        revoke(&mut table, old.clone(), 1);
        revoke(&mut table, Subject::Service(name("db")), 2);
        revoke(&mut table, Subject::Certificate(name("02")), 9);
        assert!(table.get(&old).is_none(), "it ran out long ago");
        assert_eq!(table.iter().count(), 2, "an identity has no end");
        assert!(table.remove(&Subject::Service(name("db")), Index(10)));
        assert_eq!(table.index(), Index(10));
        assert!(!table.remove(&Subject::Service(name("db")), Index(11)), "it was undone");
        assert_eq!(table.index(), Index(10));
    }
}
