//! `MutualTLSMode` of `service-defaults` and `proxy-defaults`: whether callers without TLS pass.

use serde::{Deserialize, Serialize};

/// Whether an instance's mesh port takes callers without TLS.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum MutualTlsMode {
    /// As what is written for all services says, and else strict.
    #[default]
    #[serde(rename = "")]
    Inherit,
    /// It takes none.
    #[serde(rename = "strict")]
    Strict,
    /// It takes them while a service moves into the mesh.
    #[serde(rename = "permissive")]
    Permissive,
}

impl MutualTlsMode {
    /// Whether nothing is said.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    pub fn is_default(&self) -> bool {
        *self == Self::Inherit
    }
}
