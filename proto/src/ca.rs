//! The certificate authority's records. Keys travel only sealed.

use hawser_core::ca::{Authority, Intermediate, Root, Validity};
use hawser_core::clock::{Index, UnixTime};

use crate::field::{Invalid, each, millis, present, required, span};
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
            index: Index(authority.index),
        })
    }
}

fn validity(field: &'static str, validity: Option<v1::Validity>) -> Result<Validity, Invalid> {
    present(field, validity).map(Validity::from)
}
