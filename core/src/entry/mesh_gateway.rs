//! Which way services of peers are reached.

use serde::{Deserialize, Serialize};

/// Which way connections to services of peers take.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum GatewayMode {
    /// To the peer's gateways where it has any, else directly.
    #[default]
    #[serde(rename = "")]
    Default,
    /// Directly to the instances: both networks are one.
    #[serde(rename = "none")]
    None,
    /// To the gateways of this cluster, which pass on to those of the peer.
    #[serde(rename = "local")]
    Local,
    /// To the gateways of the peer.
    #[serde(rename = "remote")]
    Remote,
}

impl GatewayMode {
    /// Every mode.
    pub const ALL: [Self; 4] = [Self::Default, Self::None, Self::Local, Self::Remote];

    /// Consul's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Default => "",
            Self::None => "none",
            Self::Local => "local",
            Self::Remote => "remote",
        }
    }
}

/// The settings inside `MeshGateway`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct MeshGatewayConfig {
    /// Which way to take.
    #[serde(alias = "mode")]
    pub mode: GatewayMode,
}

impl MeshGatewayConfig {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
