//! What is wrong with a field, and the rules that several kinds share.

use std::borrow::Cow;
use std::time::Duration;

use crate::duration;

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
        Some(given) if !PROTOCOLS.contains(&given) => {
            Err(Fault::new(field, format!("{given:?} is none of tcp, http, http2 and grpc")))
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

pub(super) const SERVICE_RULE: &str = "use at most 63 of a-z, 0-9 and -";
const PROTOCOLS: [&str; 4] = ["tcp", "http", "http2", "grpc"];
