//! Access control, in Consul's keys, and the audit log.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hawser_agent as agent;
use hawser_core::acl::DefaultPolicy;
use hawser_server as server;
use serde::{Deserialize, Serialize};

use super::span;

/// What files may say about access control.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAcl {
    enabled: Option<bool>,
    default_policy: Option<String>,
    down_policy: Option<String>,
    token_ttl: Option<String>,
    /// Roles and policies are resolved with their token, so theirs is the token's.
    policy_ttl: Option<String>,
    role_ttl: Option<String>,
    enable_token_persistence: Option<bool>,
    enable_token_replication: Option<bool>,
    enable_key_list_policy: Option<bool>,
    tokens: Option<RawTokens>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTokens {
    initial_management: Option<String>,
    agent: Option<String>,
    agent_recovery: Option<String>,
    default: Option<String>,
    dns: Option<String>,
    replication: Option<String>,
    config_file_service_registration: Option<String>,
}

/// What files may say about the audit log.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAudit {
    enabled: Option<bool>,
    path: Option<PathBuf>,
}

impl RawAudit {
    fn resolve(&self) -> server::AuditSettings {
        match (self.enabled.unwrap_or(true), &self.path) {
            (false, _) => server::AuditSettings::Off,
            (true, None) => server::AuditSettings::Log,
            (true, Some(path)) => server::AuditSettings::File(path.clone()),
        }
    }
}

impl RawAcl {
    fn default_policy(&self) -> Result<Option<DefaultPolicy>> {
        let default = match self.default_policy.as_deref() {
            // As in Consul: access control is tried out before it locks anybody out.
            None | Some("allow") => DefaultPolicy::Allow,
            Some("deny") => DefaultPolicy::Deny,
            Some(word) => bail!("acl.default_policy: {word:?} is neither \"allow\" nor \"deny\""),
        };
        Ok(self.enabled.unwrap_or(false).then_some(default))
    }

    fn tokens(&self) -> RawTokens {
        self.tokens.clone().unwrap_or_default()
    }

    /// What a server runs on.
    pub(super) fn server(
        &self,
        audit: Option<&RawAudit>,
        data_dir: &Path,
    ) -> Result<server::acl::Settings> {
        let initial_management = self.tokens().initial_management;
        let initial_management = initial_management.filter(|secret| !secret.is_empty());
        ensure!(
            initial_management.as_ref().is_none_or(|secret| secret.len() <= SECRET_MAX),
            "acl.tokens.initial_management: {SECRET_MAX} characters are the most; use a UUID"
        );
        Ok(server::acl::Settings {
            default: self.default_policy()?,
            initial_management,
            reset_file: Some(data_dir.join("acl-bootstrap-reset")),
            audit: audit.cloned().unwrap_or_default().resolve(),
        })
    }

    /// What an agent runs on.
    pub(super) fn agent(&self) -> Result<agent::acl::Settings> {
        let ttl = span("acl.token_ttl", self.token_ttl.as_deref(), agent::acl::TOKEN_TTL)?;
        for (key, text) in [("policy_ttl", &self.policy_ttl), ("role_ttl", &self.role_ttl)] {
            span(&format!("acl.{key}"), text.as_deref(), ttl)?;
        }
        ensure!(
            !self.enable_key_list_policy.unwrap_or(false),
            "acl.enable_key_list_policy: it is not supported: who may read keys may list them"
        );
        let down = match self.down_policy.as_deref() {
            None | Some("extend-cache" | "async-cache") => agent::acl::DownPolicy::ExtendCache,
            Some("allow") => agent::acl::DownPolicy::Allow,
            Some("deny") => agent::acl::DownPolicy::Deny,
            Some(word) => {
                bail!("acl.down_policy: {word:?}: use extend-cache, async-cache, allow or deny")
            }
        };
        let tokens = self.tokens();
        Ok(agent::acl::Settings {
            is_enabled: self.default_policy()?.is_some(),
            down,
            token_ttl: ttl,
            default: tokens.default,
            dns: tokens.dns,
        })
    }
}

/// What an agent runs on, whether or not files say anything.
pub(super) fn agent(raw: Option<&RawAcl>) -> Result<agent::acl::Settings> {
    raw.cloned().unwrap_or_default().agent()
}

/// What a server runs on, whether or not files say anything.
pub(super) fn server(
    raw: Option<&RawAcl>,
    audit: Option<&RawAudit>,
    data_dir: &Path,
) -> Result<server::acl::Settings> {
    raw.cloned().unwrap_or_default().server(audit, data_dir).context("acl")
}

const SECRET_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(value: serde_json::Value) -> RawAcl {
        serde_json::from_value(value).expect("known keys")
    }

    #[test]
    fn it_is_off_until_it_is_enabled_and_then_allows_by_default() {
        let cases = [
            (json!({}), None),
            (json!({"default_policy": "deny"}), None),
            (json!({"enabled": true}), Some(DefaultPolicy::Allow)),
            (json!({"enabled": true, "default_policy": "deny"}), Some(DefaultPolicy::Deny)),
        ];
        for (file, expected) in cases {
            let raw = raw(file.clone());
            let server = raw.server(None, Path::new("/x")).expect("good");
            assert_eq!(server.default, expected, "{file}");
            assert_eq!(raw.agent().expect("good").is_enabled, expected.is_some(), "{file}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        let cases = [
            (json!({"default_policy": "maybe"}), "acl.default_policy"),
            (json!({"down_policy": "maybe"}), "acl.down_policy"),
            (json!({"token_ttl": "5"}), "acl.token_ttl"),
            (json!({"policy_ttl": "5"}), "acl.policy_ttl"),
            (json!({"enable_key_list_policy": true}), "acl.enable_key_list_policy"),
        ];
        for (file, key) in cases {
            let refused = format!("{:#}", raw(file).agent().expect_err(key));
            assert!(refused.contains(key), "{refused}");
        }
        let long = raw(json!({"tokens": {"initial_management": "x".repeat(257)}}));
        let Err(refused) = long.server(None, Path::new("/x")) else { panic!("too long") };
        assert!(refused.to_string().contains("initial_management"), "{refused}");
    }
}
