//! The certificate authority's records. Keys travel only sealed.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::ca::{Authority, Intermediate, Policy, Root, Validity};
use hawser_core::catalog::Row;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::revocation::{Revocation, Revoked, Serial, Subject, node_tag};

use crate::field::{Invalid, each, each_parsed, millis, parsed, present, required, span, texts};
use crate::v1;

impl From<&Validity> for v1::Validity {
    fn from(validity: &Validity) -> Self {
        Self {
            not_before_ms: validity.not_before.as_millis(),
            not_after_ms: validity.not_after.as_millis(),
        }
    }
}

impl From<v1::Validity> for Validity {
    /// Any two moments are a validity; one that ends before it begins never holds.
    fn from(validity: v1::Validity) -> Self {
        Self {
            not_before: UnixTime::from_millis(validity.not_before_ms),
            not_after: UnixTime::from_millis(validity.not_after_ms),
        }
    }
}

impl From<&Root> for v1::Root {
    fn from(root: &Root) -> Self {
        Self {
            id: root.id.to_string(),
            name: root.name.to_string(),
            certificate: root.certificate.to_vec(),
            serial: root.serial,
            validity: Some((&root.validity).into()),
            active: root.active,
            sealed_key: root.sealed_key.to_vec(),
            created: root.created.0,
            modified: root.modified.0,
            cross: root.cross.as_deref().map(<[u8]>::to_vec).unwrap_or_default(),
            rotated_out_ms: root.rotated_out.map_or(0, UnixTime::as_millis),
        }
    }
}

impl TryFrom<v1::Root> for Root {
    type Error = Invalid;

    fn try_from(root: v1::Root) -> Result<Self, Invalid> {
        Ok(Self {
            id: root.id.into(),
            name: root.name.into(),
            certificate: root.certificate.into(),
            serial: root.serial,
            validity: validity("root.validity", root.validity)?,
            active: root.active,
            sealed_key: root.sealed_key.into(),
            created: Index(root.created),
            modified: Index(root.modified),
            cross: (!root.cross.is_empty()).then(|| root.cross.into()),
            rotated_out: (root.rotated_out_ms > 0)
                .then(|| UnixTime::from_millis(root.rotated_out_ms)),
        })
    }
}

impl From<&Intermediate> for v1::Intermediate {
    fn from(intermediate: &Intermediate) -> Self {
        Self {
            certificate: intermediate.certificate.to_vec(),
            validity: Some((&intermediate.validity).into()),
            sealed_key: intermediate.sealed_key.to_vec(),
        }
    }
}

impl TryFrom<v1::Intermediate> for Intermediate {
    type Error = Invalid;

    fn try_from(intermediate: v1::Intermediate) -> Result<Self, Invalid> {
        Ok(Self {
            certificate: intermediate.certificate.into(),
            validity: validity("intermediate.validity", intermediate.validity)?,
            sealed_key: intermediate.sealed_key.into(),
        })
    }
}

impl From<&Authority> for v1::Authority {
    fn from(authority: &Authority) -> Self {
        Self {
            roots: authority.roots.iter().map(Into::into).collect(),
            intermediate: Some((&authority.intermediate).into()),
            leaf_lifetime_ms: millis(authority.leaf_lifetime),
            index: authority.index.0,
            intermediate_lifetime_ms: millis(authority.policy.intermediate_lifetime),
            root_lifetime_ms: millis(authority.policy.root_lifetime),
            // A zero on the wire is what an older release wrote.
            overlap_ms: millis(authority.policy.overlap).max(1),
            is_set: authority.policy.is_set,
            created: authority.created.0,
            retired: authority.retired.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<v1::Authority> for Authority {
    type Error = Invalid;

    fn try_from(authority: v1::Authority) -> Result<Self, Invalid> {
        Ok(Self {
            roots: each(authority.roots)?,
            intermediate: required("authority.intermediate", authority.intermediate)?,
            leaf_lifetime: span("authority.leaf_lifetime_ms", authority.leaf_lifetime_ms)?,
            policy: Policy {
                intermediate_lifetime: or(
                    authority.intermediate_lifetime_ms,
                    Policy::default().intermediate_lifetime,
                ),
                root_lifetime: or(authority.root_lifetime_ms, Policy::default().root_lifetime),
                overlap: or(authority.overlap_ms, Policy::default().overlap),
                is_set: authority.is_set,
            },
            retired: authority.retired.into_iter().map(Into::into).collect(),
            // Older releases did not say.
            created: match authority.created {
                0 => Index(authority.index),
                created => Index(created),
            },
            index: Index(authority.index),
        })
    }
}

/// A time that older releases left out.
fn or(ms: u64, default: Duration) -> Duration {
    if ms == 0 { default } else { Duration::from_millis(ms) }
}

fn serial(field: &'static str, octets: &[u8]) -> Result<Serial, Invalid> {
    Serial::new(octets).map_err(|why| Invalid::new(field, why))
}

impl From<&Subject> for v1::Subject {
    fn from(subject: &Subject) -> Self {
        use v1::subject::Kind;
        Self {
            kind: Some(match subject {
                Subject::Node(node) => Kind::Node(node.to_string()),
                Subject::Service(service) => Kind::Service(service.to_string()),
                Subject::Certificate(serial) => Kind::Certificate(serial.octets().to_vec()),
            }),
        }
    }
}

impl TryFrom<v1::Subject> for Subject {
    type Error = Invalid;

    fn try_from(subject: v1::Subject) -> Result<Self, Invalid> {
        use v1::subject::Kind;
        Ok(match present("subject.kind", subject.kind)? {
            Kind::Node(node) => Self::Node(parsed("subject.node", &node)?),
            Kind::Service(service) => Self::Service(parsed("subject.service", &service)?),
            Kind::Certificate(octets) => Self::Certificate(serial("subject.certificate", &octets)?),
        })
    }
}

impl From<&Revocation> for v1::Revocation {
    fn from(revocation: &Revocation) -> Self {
        Self {
            subject: Some((&revocation.subject).into()),
            reason: revocation.reason.to_string(),
            at_ms: revocation.at.as_millis(),
        }
    }
}

impl TryFrom<v1::Revocation> for Revocation {
    type Error = Invalid;

    fn try_from(revocation: v1::Revocation) -> Result<Self, Invalid> {
        Ok(Self {
            subject: required("revocation.subject", revocation.subject)?,
            reason: revocation.reason.into(),
            at: UnixTime::from_millis(revocation.at_ms),
        })
    }
}

impl From<&Row<Revocation>> for v1::RevocationRow {
    fn from(row: &Row<Revocation>) -> Self {
        Self {
            revocation: Some((&*row.value).into()),
            created: row.created.0,
            modified: row.modified.0,
        }
    }
}

impl TryFrom<v1::RevocationRow> for Row<Revocation> {
    type Error = Invalid;

    fn try_from(row: v1::RevocationRow) -> Result<Self, Invalid> {
        Ok(Self {
            value: Arc::new(required("revocation_row.revocation", row.revocation)?),
            created: Index(row.created),
            modified: Index(row.modified),
        })
    }
}

impl From<&Revoked> for v1::Revoked {
    fn from(revoked: &Revoked) -> Self {
        Self {
            nodes: texts(revoked.nodes.values()),
            services: texts(&revoked.services),
            certificates: revoked
                .certificates
                .iter()
                .map(|serial| serial.octets().to_vec())
                .collect(),
        }
    }
}

impl TryFrom<v1::Revoked> for Revoked {
    type Error = Invalid;

    fn try_from(revoked: v1::Revoked) -> Result<Self, Invalid> {
        let nodes: Vec<hawser_core::name::NodeName> = each_parsed("revoked.nodes", &revoked.nodes)?;
        let certificates = revoked.certificates.iter();
        Ok(Self {
            nodes: nodes.into_iter().map(|node| (node_tag(&node), node)).collect(),
            services: each_parsed("revoked.services", &revoked.services)?,
            certificates: certificates
                .map(|octets| serial("revoked.certificates", octets))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Older releases say nothing, and nobody is revoked then.
pub(crate) fn revoked(revoked: Option<v1::Revoked>) -> Result<Arc<Revoked>, Invalid> {
    revoked.map(Revoked::try_from).transpose().map(|revoked| Arc::new(revoked.unwrap_or_default()))
}

fn validity(field: &'static str, validity: Option<v1::Validity>) -> Result<Validity, Invalid> {
    present(field, validity).map(Validity::from)
}
