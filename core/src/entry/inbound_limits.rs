//! `InboundLimits` of `service-defaults`, ours: how much an instance has to do at once.

use serde::{Deserialize, Serialize};

use super::fault::Fault;

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
    pub(super) fn check(&self) -> Result<(), Fault> {
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

const NEVER_SHED_MAX: usize = 64;
