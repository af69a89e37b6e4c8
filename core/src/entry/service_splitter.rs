//! `service-splitter`: which share of a service's requests goes where.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::EntryMeta;
use super::fault::{Fault, check_label, check_service, check_tenancy};
use super::header_edits::{HeaderEdits, check_name};

/// `service-splitter/<service>`: each request goes to one of the splits.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct ServiceSplitter {
    /// Their weights are 100 together.
    #[serde(alias = "splits", skip_serializing_if = "Vec::is_empty")]
    pub splits: Vec<ServiceSplit>,
    /// Ours: what requests must have in common to go to the same split.
    #[serde(alias = "sticky", skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// Free pairs.
    #[serde(alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// One share of the requests.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct ServiceSplit {
    /// How many of a hundred.
    #[serde(alias = "weight")]
    pub weight: Weight,
    /// The service; empty for the splitter's own.
    #[serde(alias = "service", skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Its subset; then its own splitter has no say.
    #[serde(alias = "service_subset", skip_serializing_if = "String::is_empty")]
    pub service_subset: String,
    /// `default`, or empty.
    #[serde(alias = "namespace", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `default`, or empty.
    #[serde(alias = "partition", skip_serializing_if = "String::is_empty")]
    pub partition: String,
    /// What is changed in the requests.
    #[serde(alias = "request_headers", skip_serializing_if = "Option::is_none")]
    pub request_headers: Option<HeaderEdits>,
    /// What is changed in the answers.
    #[serde(alias = "response_headers", skip_serializing_if = "Option::is_none")]
    pub response_headers: Option<HeaderEdits>,
}

/// What requests must have in common to go to the same split. Those without it go round.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Sticky {
    /// `header`, `cookie` or `query_parameter`.
    #[serde(alias = "field")]
    pub field: String,
    /// Its name.
    #[serde(alias = "field_value")]
    pub field_value: String,
}

/// A share, in hundredths of a percent; written in percent.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Weight(pub u16);

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 100.0)
    }
}

impl Serialize for Weight {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // Whole percents are written as such, as Go does.
        if self.0.is_multiple_of(100) {
            return to.serialize_u16(self.0 / 100);
        }
        to.serialize_f64(f64::from(self.0) / 100.0)
    }
}

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let percent = f64::deserialize(from)?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(serde::de::Error::custom("Weight must be from 0 to 100"));
        }
        // Within bounds, and what is finer than a hundredth is rounded, as Consul does.
        Ok(Self((percent * 100.0).round() as u16))
    }
}

impl ServiceSplitter {
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.splits.is_empty() {
            return Err(Fault::new("Splits", "there is none: name at least one"));
        }
        if self.splits.len() > SPLITS_MAX {
            return Err(Fault::new("Splits", format!("{SPLITS_MAX} are the most")));
        }
        for (n, split) in self.splits.iter().enumerate() {
            split.check(&format!("Splits[{n}]"))?;
            let is_same = |other: &ServiceSplit| {
                other.service == split.service && other.service_subset == split.service_subset
            };
            if self.splits[..n].iter().any(is_same) {
                return Err(Fault::new(format!("Splits[{n}]"), "it is listed before: merge them"));
            }
        }
        let sum: u32 = self.splits.iter().map(|split| u32::from(split.weight.0)).sum();
        if sum != u32::from(WHOLE.0) {
            let sum = f64::from(sum) / 100.0;
            let why = format!("their weights are {sum} together: make them 100");
            return Err(Fault::new("Splits", why));
        }
        self.sticky.as_ref().map_or(Ok(()), Sticky::check)
    }
}

impl ServiceSplit {
    fn check(&self, at: &str) -> Result<(), Fault> {
        check_service(&format!("{at}.Service"), &self.service)?;
        check_label(&format!("{at}.ServiceSubset"), &self.service_subset)?;
        check_tenancy(at, &self.namespace, &self.partition)?;
        for (name, edits) in
            [("RequestHeaders", &self.request_headers), ("ResponseHeaders", &self.response_headers)]
        {
            edits.as_ref().map_or(Ok(()), |edits| edits.check(&format!("{at}.{name}")))?;
        }
        Ok(())
    }
}

impl Sticky {
    fn check(&self) -> Result<(), Fault> {
        match self.field.as_str() {
            "header" | "cookie" => check_name("Sticky.FieldValue", &self.field_value),
            "query_parameter" if !self.field_value.is_empty() => Ok(()),
            "query_parameter" => Err(Fault::new("Sticky.FieldValue", "it is missing")),
            _ => Err(Fault::new("Sticky.Field", "use header, cookie or query_parameter")),
        }
    }
}

/// All of it.
pub(crate) const WHOLE: Weight = Weight(10_000);
const SPLITS_MAX: usize = 64;
