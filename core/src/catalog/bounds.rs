//! How long what a host says of itself may be: every server holds all of it in memory.

use super::{Check, Instance, Meta, Node, TaggedAddresses};

/// A text or list that is longer than servers hold.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {max} {unit} are the most")]
pub struct TooLong {
    /// What of the row.
    pub field: &'static str,
    /// The most.
    pub max: usize,
    /// Of what.
    pub unit: &'static str,
}

impl Node {
    /// Checks what the node says of itself.
    ///
    /// # Errors
    /// [`TooLong`]
    pub fn check_bounds(&self) -> Result<(), TooLong> {
        text("node.id", &self.id, ID_OCTETS_MAX)?;
        meta("node.meta", &self.meta)?;
        tagged("node.tagged_addresses", &self.tagged)
    }
}

impl Instance {
    /// Checks what is said of the instance.
    ///
    /// # Errors
    /// [`TooLong`]
    pub fn check_bounds(&self) -> Result<(), TooLong> {
        count("put_instances.tags", self.tags.len(), TAGS_MAX)?;
        self.tags.iter().try_for_each(|tag| text("put_instances.tags", tag, LABEL_OCTETS_MAX))?;
        meta("put_instances.meta", &self.meta)?;
        tagged("put_instances.tagged_addresses", &self.tagged)?;
        let gateway = self.gateway.as_deref().unwrap_or_default();
        text("put_instances.gateway", gateway, LABEL_OCTETS_MAX)
    }
}

impl Check {
    /// Checks what is said of the check.
    ///
    /// # Errors
    /// [`TooLong`]
    pub fn check_bounds(&self) -> Result<(), TooLong> {
        let texts = [
            ("put_checks.name", &self.name, NAME_OCTETS_MAX),
            ("put_checks.type", &self.kind, SPAN_OCTETS_MAX),
            ("put_checks.notes", &self.notes, OUTPUT_OCTETS_MAX),
            ("put_checks.output", &self.output, OUTPUT_OCTETS_MAX),
            ("put_checks.interval", &self.run.interval, SPAN_OCTETS_MAX),
            ("put_checks.timeout", &self.run.timeout, SPAN_OCTETS_MAX),
            ("put_checks.definition", &self.run.definition, DEFINITION_OCTETS_MAX),
        ];
        texts.into_iter().try_for_each(|(field, held, max)| text(field, held, max))
    }
}

fn text(field: &'static str, text: &str, max: usize) -> Result<(), TooLong> {
    if text.len() > max { Err(TooLong { field, max, unit: "octets" }) } else { Ok(()) }
}

fn count(field: &'static str, count: usize, max: usize) -> Result<(), TooLong> {
    if count > max { Err(TooLong { field, max, unit: "entries" }) } else { Ok(()) }
}

fn meta(field: &'static str, meta: &Meta) -> Result<(), TooLong> {
    count(field, meta.len(), PAIRS_MAX)?;
    meta.iter().try_for_each(|(key, value)| {
        text(field, key, KEY_OCTETS_MAX)?;
        text(field, value, LABEL_OCTETS_MAX)
    })
}

fn tagged(field: &'static str, addresses: &TaggedAddresses) -> Result<(), TooLong> {
    count(field, addresses.len(), PAIRS_MAX)?;
    addresses.iter().try_for_each(|(name, at)| {
        text(field, name, LABEL_OCTETS_MAX)?;
        text(field, &at.address, LABEL_OCTETS_MAX)
    })
}

/// An id of a node: 128 octets.
pub const ID_OCTETS_MAX: usize = 128;
/// A check's definition as JSON.
pub const DEFINITION_OCTETS_MAX: usize = 16 * 1024;
/// A duration, or the kind of a check.
pub const SPAN_OCTETS_MAX: usize = 64;
const OUTPUT_OCTETS_MAX: usize = 64 * 1024;
/// A check's name for people.
const NAME_OCTETS_MAX: usize = 4096;
/// Tags and values of meta.
const LABEL_OCTETS_MAX: usize = 512;
const KEY_OCTETS_MAX: usize = 128;
const PAIRS_MAX: usize = 64;
const TAGS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{CheckRun, TaggedAddress};
    use super::*;
    use crate::health::Status;

    fn check() -> Check {
        Check {
            id: "c".parse().expect("an id"),
            name: "c".into(),
            kind: "http".into(),
            status: Status::Passing,
            notes: "".into(),
            output: "".into(),
            instance: None,
            run: CheckRun::default(),
        }
    }

    #[test]
    fn what_is_too_long_is_named() {
        let long: Arc<str> = "x".repeat(20 * 1024).into();
        assert_eq!(check().check_bounds(), Ok(()));
        let definition = CheckRun { definition: long.clone(), ..CheckRun::default() };
        let interval = CheckRun { interval: long.clone(), ..CheckRun::default() };
        for (held, field) in [
            (Check { run: definition, ..check() }, "put_checks.definition"),
            (Check { run: interval, ..check() }, "put_checks.interval"),
            (Check { name: long.clone(), ..check() }, "put_checks.name"),
            (Check { kind: long.clone(), ..check() }, "put_checks.type"),
        ] {
            let refused = held.check_bounds().expect_err(field);
            assert_eq!(refused.field, field);
        }
        let many: TaggedAddresses =
            (0..65).map(|at| (at.to_string().into(), TaggedAddress::default())).collect();
        assert!(tagged("node.tagged_addresses", &many).is_err());
        assert!(meta("node.meta", &Meta::from([("k".into(), long)])).is_err());
    }
}
