//! `LoadBalancer` of `service-resolver`: how callers choose among a service's instances.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use crate::duration;

/// How callers choose among a service's instances.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct LoadBalancer {
    /// The policy. Left out: two candidates, and the one with the lower peak-EWMA latency.
    #[serde(alias = "policy")]
    pub policy: PolicyName,
    /// For `ring_hash`.
    #[serde(alias = "ring_hash_config", skip_serializing_if = "Option::is_none")]
    pub ring_hash_config: Option<RingHashConfig>,
    /// For `least_request`.
    #[serde(alias = "least_request_config", skip_serializing_if = "Option::is_none")]
    pub least_request_config: Option<LeastRequestConfig>,
    /// What of a request `ring_hash` and `maglev` go by, in this order.
    #[serde(alias = "hash_policies", skip_serializing_if = "Vec::is_empty")]
    pub hash_policies: Vec<HashPolicy>,
    /// Ours: with a hash, no instance takes more than this share of the mean load, in percent; what
    /// is above goes to the next. Zero is no bound; left out it is 150.
    #[serde(alias = "bounded_load_percent", skip_serializing_if = "Option::is_none")]
    pub bounded_load_percent: Option<u32>,
    /// Ours: how an instance that is new, or back, comes to its full share.
    #[serde(alias = "slow_start", skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
}

/// Consul's word for a policy.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum PolicyName {
    /// Hawser's own: peak EWMA.
    #[default]
    #[serde(rename = "")]
    Default,
    /// Any, by weight.
    #[serde(rename = "random")]
    Random,
    /// One after another, by weight.
    #[serde(rename = "round_robin")]
    RoundRobin,
    /// The one with the fewest requests under way among a few.
    #[serde(rename = "least_request")]
    LeastRequest,
    /// By a hash of the request, on a ring.
    #[serde(rename = "ring_hash")]
    RingHash,
    /// By a hash of the request, in a table.
    #[serde(rename = "maglev")]
    Maglev,
}

/// The settings of `ring_hash`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct RingHashConfig {
    /// Fewest places on the ring; zero is 1024.
    #[serde(alias = "minimum_ring_size")]
    pub minimum_ring_size: u64,
    /// Most places on the ring; zero is 8388608.
    #[serde(alias = "maximum_ring_size")]
    pub maximum_ring_size: u64,
}

/// The settings of `least_request`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct LeastRequestConfig {
    /// How many are drawn and compared; zero is 2.
    #[serde(alias = "choice_count")]
    pub choice_count: u32,
}

/// One part of a request that is hashed.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct HashPolicy {
    /// `header`, `cookie` or `query_parameter`; empty with `SourceIP`.
    #[serde(alias = "field", skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// The name of the header, cookie or parameter.
    #[serde(alias = "field_value", skip_serializing_if = "String::is_empty")]
    pub field_value: String,
    /// How a cookie is made for a request that lacks it.
    #[serde(alias = "cookie_config", skip_serializing_if = "Option::is_none")]
    pub cookie_config: Option<CookieConfig>,
    /// Hash the address that the request comes from.
    #[serde(rename = "SourceIP", alias = "source_ip", skip_serializing_if = "std::ops::Not::not")]
    pub source_ip: bool,
    /// Where this part is there, the following ones do not count.
    #[serde(alias = "terminal", skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
}

/// How a cookie is made for a request that lacks it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct CookieConfig {
    /// Whether it lasts for as long as the client's session.
    #[serde(alias = "session", skip_serializing_if = "std::ops::Not::not")]
    pub session: bool,
    /// How long it lasts otherwise.
    #[serde(
        rename = "TTL",
        alias = "ttl",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub ttl: Option<Duration>,
    /// Its path.
    #[serde(alias = "path", skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// How an instance that is new, or back, comes to its full share.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct SlowStart {
    /// How long it takes; `0s` switches it off. Left out: 10 s.
    #[serde(
        alias = "window",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub window: Option<Duration>,
    /// What it begins with, in percent; zero is 10.
    #[serde(alias = "minimum_percent")]
    pub minimum_percent: u8,
}

impl LoadBalancer {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let at = |field: &str| format!("LoadBalancer.{field}");
        let is_hashed = matches!(self.policy, PolicyName::RingHash | PolicyName::Maglev);
        if !self.hash_policies.is_empty() && !is_hashed {
            return Err(Fault::new(
                at("HashPolicies"),
                "only ring_hash and maglev hash: set Policy",
            ));
        }
        if self.bounded_load_percent.is_some() && !is_hashed {
            return Err(Fault::new(
                at("BoundedLoadPercent"),
                "only ring_hash and maglev hash: set Policy",
            ));
        }
        if self.bounded_load_percent.is_some_and(|percent| (1..=100).contains(&percent)) {
            return Err(Fault::new(at("BoundedLoadPercent"), "use 0 for none, or more than 100"));
        }
        if self.ring_hash_config.is_some() && self.policy != PolicyName::RingHash {
            return Err(Fault::new(at("RingHashConfig"), "it needs the Policy ring_hash"));
        }
        if let Some(ring) = &self.ring_hash_config {
            if ring.minimum_ring_size.max(ring.maximum_ring_size) > RING_SIZE_MAX {
                return Err(Fault::new(at("RingHashConfig"), "8388608 places are the most"));
            }
            if ring.maximum_ring_size > 0 && ring.minimum_ring_size > ring.maximum_ring_size {
                return Err(Fault::new(
                    at("RingHashConfig.MinimumRingSize"),
                    "it is above MaximumRingSize",
                ));
            }
        }
        if let Some(least) = &self.least_request_config {
            if self.policy != PolicyName::LeastRequest {
                return Err(Fault::new(
                    at("LeastRequestConfig"),
                    "it needs the Policy least_request",
                ));
            }
            if least.choice_count == 1 || least.choice_count > CHOICES_MAX {
                return Err(Fault::new(
                    at("LeastRequestConfig.ChoiceCount"),
                    "use 2 to 64, or 0 for 2",
                ));
            }
        }
        self.slow_start.as_ref().map_or(Ok(()), SlowStart::check)?;
        if self.hash_policies.len() > HASH_POLICIES_MAX {
            return Err(Fault::new(at("HashPolicies"), "16 are the most"));
        }
        for (n, policy) in self.hash_policies.iter().enumerate() {
            let at = |field: &str| at(&format!("HashPolicies[{n}].{field}"));
            policy.check().map_err(|(field, why)| Fault::new(at(field), why))?;
        }
        Ok(())
    }
}

impl SlowStart {
    fn check(&self) -> Result<(), Fault> {
        if self.minimum_percent > 100 {
            return Err(Fault::new("LoadBalancer.SlowStart.MinimumPercent", "100 is the most"));
        }
        if self.window.is_some_and(|window| window > SLOW_START_MAX) {
            return Err(Fault::new("LoadBalancer.SlowStart.Window", "1h is the most"));
        }
        Ok(())
    }
}

impl HashPolicy {
    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.source_ip {
            if self.field.is_empty() && self.field_value.is_empty() {
                return Ok(());
            }
            return Err(("SourceIP", "it cannot stand beside Field: make two policies"));
        }
        if !["header", "cookie", "query_parameter"].contains(&self.field.as_str()) {
            return Err(("Field", "use header, cookie or query_parameter, or set SourceIP"));
        }
        let is_token =
            |octet: u8| octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet);
        if self.field_value.is_empty() || !self.field_value.bytes().all(is_token) {
            return Err(("FieldValue", "name the header, cookie or parameter"));
        }
        let Some(cookie) = &self.cookie_config else { return Ok(()) };
        if self.field != "cookie" {
            return Err(("CookieConfig", "it needs the Field cookie"));
        }
        if cookie.session && cookie.ttl.is_some_and(|ttl| !ttl.is_zero()) {
            return Err(("CookieConfig.Session", "it cannot stand beside TTL"));
        }
        let is_bad = |octet: u8| !octet.is_ascii_graphic() || octet == b';' || octet == b',';
        if cookie.path.bytes().any(is_bad) {
            return Err(("CookieConfig.Path", "use a path like /shop"));
        }
        Ok(())
    }
}

/// Envoy's bound.
pub(crate) const RING_SIZE_MAX: u64 = 8 * 1024 * 1024;
const CHOICES_MAX: u32 = 64;
const HASH_POLICIES_MAX: usize = 16;
const SLOW_START_MAX: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let cases = [
            // the value, what the refusal names; empty where it is good
            (r#"{}"#, ""),
            (r#"{"Policy":"least_request","LeastRequestConfig":{"ChoiceCount":3}}"#, ""),
            (r#"{"Policy":"ring_hash","HashPolicies":[{"SourceIP":true,"Terminal":true}]}"#, ""),
            (
                r#"{"Policy":"maglev","HashPolicies":[{"Field":"cookie","FieldValue":"sid","CookieConfig":{"TTL":"1h","Path":"/a"}}]}"#,
                "",
            ),
            (
                r#"{"Policy":"random","HashPolicies":[{"SourceIP":true}]}"#,
                "LoadBalancer.HashPolicies",
            ),
            (
                r#"{"Policy":"ring_hash","HashPolicies":[{"Field":"path"}]}"#,
                "HashPolicies[0].Field",
            ),
            (
                r#"{"Policy":"ring_hash","HashPolicies":[{"Field":"header","FieldValue":"a","SourceIP":true}]}"#,
                "HashPolicies[0].SourceIP",
            ),
            (
                r#"{"Policy":"ring_hash","HashPolicies":[{"Field":"header"}]}"#,
                "HashPolicies[0].FieldValue",
            ),
            (
                r#"{"Policy":"ring_hash","HashPolicies":[{"Field":"header","FieldValue":"a","CookieConfig":{}}]}"#,
                "HashPolicies[0].CookieConfig",
            ),
            (
                r#"{"Policy":"ring_hash","RingHashConfig":{"MinimumRingSize":9,"MaximumRingSize":8}}"#,
                "RingHashConfig.MinimumRingSize",
            ),
            (r#"{"Policy":"maglev","RingHashConfig":{}}"#, "LoadBalancer.RingHashConfig"),
            (r#"{"Policy":"maglev","LeastRequestConfig":{}}"#, "LoadBalancer.LeastRequestConfig"),
            (
                r#"{"Policy":"least_request","LeastRequestConfig":{"ChoiceCount":1}}"#,
                "LeastRequestConfig.ChoiceCount",
            ),
            (r#"{"Policy":"maglev","BoundedLoadPercent":100}"#, "BoundedLoadPercent"),
            (r#"{"SlowStart":{"MinimumPercent":101}}"#, "SlowStart.MinimumPercent"),
        ];
        for (json, expected) in cases {
            let parsed: LoadBalancer = serde_json::from_str(json).expect(json);
            match parsed.check() {
                Ok(()) => assert!(expected.is_empty(), "{json} is taken"),
                Err(Fault { field, .. }) => assert!(
                    !expected.is_empty() && field.ends_with(expected),
                    "{json}: {field:?} is not {expected:?}"
                ),
            }
        }
    }
}
