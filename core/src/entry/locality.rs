//! `PrioritizeByLocality`: whether near instances go before others.

use serde::{Deserialize, Serialize};

/// Whether near instances go before others.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct PrioritizeByLocality {
    /// How.
    #[serde(alias = "mode")]
    pub mode: LocalityMode,
}

/// How far locality counts.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum LocalityMode {
    /// Those of one's own zone first, then those of the region, then all others; each while one of
    /// them can take traffic. Unlike in Consul this is what holds where nothing is said.
    #[default]
    #[serde(rename = "failover", alias = "")]
    Failover,
    /// Not at all: all instances share the traffic.
    #[serde(rename = "none")]
    None,
}
