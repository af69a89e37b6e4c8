//! `mesh`: what holds for the whole mesh; here, how requests are made normal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::EntryMeta;
use crate::normal::{EscapedSlashes, Forwarded, Rules, Underscores};

/// `mesh/mesh`: what holds for the whole mesh.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Mesh {
    /// What holds for HTTP.
    #[serde(rename = "HTTP", alias = "http", skip_serializing_if = "is_default")]
    pub http: MeshHttp,
    /// Whether `MutualTLSMode` may be `permissive` anywhere.
    #[serde(rename = "AllowEnablingPermissiveMutualTLS")]
    #[serde(alias = "allow_enabling_permissive_mutual_tls", default)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_permissive: bool,
    /// Free pairs.
    #[serde(alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// What holds for HTTP.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct MeshHttp {
    /// Taken, and of no effect: a caller's `x-forwarded-client-cert` never passes.
    #[serde(rename = "SanitizeXForwardedClientCert", alias = "sanitize_x_forwarded_client_cert")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sanitize_x_forwarded_client_cert: bool,
    /// What holds for requests as they come in.
    #[serde(alias = "incoming", skip_serializing_if = "is_default")]
    pub incoming: MeshIncoming,
}

/// What holds for requests as they come in.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshIncoming {
    /// How they are made normal.
    #[serde(rename = "RequestNormalization", alias = "request_normalization", default)]
    #[serde(skip_serializing_if = "is_default")]
    pub normalization: RequestNormalization,
    /// What is done about `x-forwarded-for`, `-proto`, `-host` and `forwarded` of a caller. Ours.
    #[serde(rename = "ForwardedHeaders", alias = "forwarded_headers", default)]
    #[serde(skip_serializing_if = "is_default")]
    pub forwarded: Forwarded,
}

/// How requests are made normal. What is not said is the safe choice.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestNormalization {
    /// Passes paths as they come. Rules about paths can then be got around.
    #[serde(rename = "InsecureDisablePathNormalization")]
    #[serde(alias = "insecure_disable_path_normalization", default)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_off: bool,
    /// Whether `//` becomes `/`: unless this says `false`.
    #[serde(rename = "MergeSlashes", alias = "merge_slashes", default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge_slashes: Option<bool>,
    /// What is done about `%2F`, `%5C` and `\`.
    #[serde(rename = "PathWithEscapedSlashesAction", alias = "path_with_escaped_slashes_action")]
    #[serde(default, skip_serializing_if = "is_default")]
    pub escaped_slashes: EscapedSlashes,
    /// What is done about field names with `_`.
    #[serde(rename = "HeadersWithUnderscoresAction", alias = "headers_with_underscores_action")]
    #[serde(default, skip_serializing_if = "is_default")]
    pub underscores: Underscores,
}

impl Mesh {
    /// How requests are made normal.
    pub fn rules(&self) -> Rules {
        let given = &self.http.incoming.normalization;
        Rules {
            is_on: !given.is_off,
            merges_slashes: given.merge_slashes.unwrap_or(true),
            escaped_slashes: given.escaped_slashes,
            underscores: given.underscores,
            forwarded: self.http.incoming.forwarded,
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_mesh_does_not_say_is_the_safe_choice() {
        let read = |json: &str| serde_json::from_str::<Mesh>(json).expect("good").rules();
        assert_eq!(read("{}"), Rules::default());
        let said = r#"{"HTTP":{"Incoming":{"ForwardedHeaders":"keep","RequestNormalization":{
            "MergeSlashes":false,"PathWithEscapedSlashesAction":"UNESCAPE_AND_FORWARD",
            "HeadersWithUnderscoresAction":"DROP_HEADER"}}}}"#;
        let expected = Rules {
            is_on: true,
            merges_slashes: false,
            escaped_slashes: EscapedSlashes::Decode,
            underscores: Underscores::Drop,
            forwarded: Forwarded::Keep,
        };
        assert_eq!(read(said), expected);
        let again: Mesh = serde_json::from_str(said).expect("good");
        let text = serde_json::to_string(&again).expect("good");
        assert_eq!(serde_json::from_str::<Mesh>(&text).expect("good"), again);
    }
}
