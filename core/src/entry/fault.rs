//! What is wrong with a field, and the rules that several kinds share.

use std::borrow::Cow;
use std::time::Duration;

use regex::{Regex, RegexBuilder};

use crate::duration;
use crate::name::ServiceName;

/// A field that cannot be, and how to put it right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    pub(super) field: String,
    pub(super) why: Cow<'static, str>,
}

impl Fault {
    pub(super) fn new(field: impl Into<String>, why: impl Into<Cow<'static, str>>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

/// A protocol must be one that proxies speak.
pub(super) fn check_protocol(field: &str, given: Option<&str>) -> Result<(), Fault> {
    match given {
        Some(given) if given != DETECTED && !PROTOCOLS.contains(&given) => {
            let why = format!("{given:?} is none of tcp, udp, http, http2, grpc and auto");
            Err(Fault::new(field, why))
        }
        _ => Ok(()),
    }
}

/// A span must be more than zero, and at most `max`.
pub(super) fn check_span(field: &str, span: Option<Duration>, max: Duration) -> Result<(), Fault> {
    match span {
        Some(span) if span.is_zero() || span > max => {
            let max = duration::format(max);
            Err(Fault::new(field, format!("must be more than 0 and at most {max}")))
        }
        _ => Ok(()),
    }
}

/// A service's name, where one is given.
pub(super) fn check_service(field: &str, name: &str) -> Result<(), Fault> {
    match name.is_empty() || ServiceName::in_mesh(name).is_ok() {
        true => Ok(()),
        false => Err(Fault::new(field, SERVICE_RULE)),
    }
}

/// A subset's name, where one is given: a DNS label, as it is part of names.
pub(super) fn check_label(field: &str, name: &str) -> Result<(), Fault> {
    check_service(field, name)
}

/// Namespaces and partitions are Consul's to sell: everything is in the default one.
pub(super) fn check_tenancy(at: &str, namespace: &str, partition: &str) -> Result<(), Fault> {
    for (field, given) in [("Namespace", namespace), ("Partition", partition)] {
        if !["", "default"].contains(&given) {
            let why = "only \"default\" exists: leave it out";
            return Err(Fault::new(format!("{at}.{field}"), why));
        }
    }
    Ok(())
}

/// A regular expression must be one, and small.
pub(super) fn check_pattern(field: &str, text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        return Ok(());
    }
    if text.len() > PATTERN_OCTETS_MAX {
        return Err(Fault::new(field, format!("{PATTERN_OCTETS_MAX} octets are the most")));
    }
    match pattern(text) {
        Some(_) => Ok(()),
        None => Err(Fault::new(field, "it is no regular expression, or takes too much memory")),
    }
}

/// The regular expression `text`, which matches a text as a whole or not at all; none where it is
/// no regular expression, or one that takes too much memory. It takes linear time.
pub(crate) fn pattern(text: &str) -> Option<Regex> {
    // By itself first: parentheses that close too early must not escape the group around them.
    let by_itself = RegexBuilder::new(text).size_limit(PATTERN_MEMORY_MAX).build();
    by_itself.ok()?;
    let whole = format!("^(?:{text})$");
    RegexBuilder::new(&whole).size_limit(PATTERN_MEMORY_MAX).build().ok()
}

const PATTERN_OCTETS_MAX: usize = 1024;
const PATTERN_MEMORY_MAX: usize = 1 << 20;
pub(super) const SERVICE_RULE: &str = "use at most 63 of a-z, 0-9 and -";
/// Asks to detect what is spoken.
pub(super) const DETECTED: &str = "auto";
pub(super) const UDP: &str = "udp";
const PROTOCOLS: [&str; 5] = ["tcp", UDP, "http", "http2", "grpc"];
