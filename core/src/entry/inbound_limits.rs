//! `InboundLimits` of `service-defaults`, ours: how much an instance has to do at once.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use crate::duration;

/// How much an instance has to do at once.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct InboundLimits {
    /// Most requests that its application has to answer at once; zero is no fixed limit.
    #[serde(alias = "max_concurrent_requests")]
    pub max_concurrent_requests: u32,
    /// Whether requests are shed while answers take so long that the application must be
    /// overloaded.
    #[serde(alias = "shedding")]
    pub shedding: Shedding,
    /// Beginnings of paths that are never shed, besides those that ask for health.
    #[serde(alias = "never_shed", skip_serializing_if = "Vec::is_empty")]
    pub never_shed: Vec<String>,
    /// Largest body of a request, in bytes; zero is any.
    #[serde(alias = "max_request_bytes", skip_serializing_if = "is_zero")]
    pub max_request_bytes: u64,
    /// Longest time in which nothing comes of a request's body that is not over; zero is for ever,
    /// left out is 30 s. Calls of gRPC may be silent for as long as they like.
    #[serde(
        alias = "request_idle_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub request_idle_timeout: Option<Duration>,
}

/// What an instance takes of the body of one request.
///
/// Apart from [`InboundLimits`] where a view carries them, for what reads those there knows no fields
/// but its own.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestBodies {
    /// Most bytes; zero is any number.
    pub max_bytes: u64,
    /// Longest silence; zero is for ever, none the proxy's own.
    #[serde(with = "duration::serde_option", skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
}

/// Whether requests are shed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Shedding {
    /// Never.
    #[default]
    #[serde(rename = "off", alias = "")]
    Off,
    /// By how long answers take.
    #[serde(rename = "adaptive")]
    Adaptive,
}

impl InboundLimits {
    /// What of it is about all requests together.
    pub fn of_all(&self) -> Self {
        Self { max_request_bytes: 0, request_idle_timeout: None, ..self.clone() }
    }

    /// What of it is about the body of each request; none where it says nothing.
    pub fn of_bodies(&self) -> Option<RequestBodies> {
        let (max_bytes, idle_timeout) = (self.max_request_bytes, self.request_idle_timeout);
        let says = max_bytes > 0 || idle_timeout.is_some();
        says.then_some(RequestBodies { max_bytes, idle_timeout })
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.request_idle_timeout.is_some_and(|span| span > IDLE_MAX) {
            return Err(Fault::new("InboundLimits.RequestIdleTimeout", "1h is the most"));
        }
        if self.never_shed.len() > NEVER_SHED_MAX {
            return Err(Fault::new("InboundLimits.NeverShed", "64 are the most"));
        }
        let is_bad = |prefix: &String| !prefix.starts_with('/');
        match self.never_shed.iter().position(is_bad) {
            Some(n) => {
                Err(Fault::new(format!("InboundLimits.NeverShed[{n}]"), "a path begins with /"))
            }
            None => Ok(()),
        }
    }
}

// What serde asks for takes a reference.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

const NEVER_SHED_MAX: usize = 64;
const IDLE_MAX: Duration = Duration::from_secs(3_600);
