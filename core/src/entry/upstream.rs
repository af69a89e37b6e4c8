//! `UpstreamConfig` of `service-defaults`: how one service calls others.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::{Fault, SERVICE_RULE};
use crate::duration;
use crate::entry::Target;
use crate::name::{PeerName, ServiceName};

/// How one service calls others: it stands in the caller's entry.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct UpstreamConfig {
    /// For every upstream.
    #[serde(alias = "defaults", skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Upstream>,
    /// For single ones, over the defaults.
    #[serde(alias = "overrides", skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Upstream>,
}

/// How one upstream is called.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Upstream {
    /// The service; empty in the defaults.
    #[serde(alias = "name", skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The peer that it is of; empty for one's own cluster.
    #[serde(alias = "peer", skip_serializing_if = "String::is_empty")]
    pub peer: String,
    /// Longest wait for a connection to an instance, in milliseconds; outranks the resolver's.
    #[serde(alias = "connect_timeout_ms", skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u32>,
    /// How much may be under way at once.
    #[serde(alias = "limits", skip_serializing_if = "Option::is_none")]
    pub limits: Option<UpstreamLimits>,
    /// When an instance is left alone for a while.
    #[serde(alias = "passive_health_check", skip_serializing_if = "Option::is_none")]
    pub passive_health_check: Option<PassiveHealthCheck>,
}

/// How much may be under way at once from one caller's proxy to one upstream.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct UpstreamLimits {
    /// Most connections of the application, TCP services included.
    #[serde(alias = "max_connections", skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Most requests that wait for a connection to an instance.
    #[serde(alias = "max_pending_requests", skip_serializing_if = "Option::is_none")]
    pub max_pending_requests: Option<u32>,
    /// Most requests under way.
    #[serde(alias = "max_concurrent_requests", skip_serializing_if = "Option::is_none")]
    pub max_concurrent_requests: Option<u32>,
}

/// When an instance is left alone for a while.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct PassiveHealthCheck {
    /// How long success rates are counted before instances are compared.
    #[serde(
        alias = "interval",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub interval: Option<Duration>,
    /// How many failures in a row eject an instance; zero is the default.
    #[serde(alias = "max_failures")]
    pub max_failures: u32,
    /// Which share of the ejections for answers of 500 and above happens, in percent.
    #[serde(alias = "enforcing_consecutive_5xx", skip_serializing_if = "Option::is_none")]
    pub enforcing_consecutive_5xx: Option<u32>,
    /// Most instances of a group that are out at once, in percent; at least one may be.
    #[serde(alias = "max_ejection_percent", skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<u32>,
    /// How long the first ejection lasts; each in a row lasts twice as long.
    #[serde(
        alias = "base_ejection_time",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub base_ejection_time: Option<Duration>,
    /// Ours: how many answers of 502, 503 or 504 in a row eject an instance; zero is no such rule.
    #[serde(alias = "max_gateway_failures", skip_serializing_if = "Option::is_none")]
    pub max_gateway_failures: Option<u32>,
    /// Ours: how many standard deviations below the mean a success rate ejects, times 1000; zero is
    /// no such rule.
    #[serde(alias = "success_rate_stdev_factor", skip_serializing_if = "Option::is_none")]
    pub success_rate_stdev_factor: Option<u32>,
    /// Ours: where fewer than this share of a group is in, in percent, ejections in it do not
    /// count. Zero, the default, never.
    #[serde(alias = "panic_percent", skip_serializing_if = "Option::is_none")]
    pub panic_percent: Option<u32>,
}

impl UpstreamConfig {
    /// What holds for `target`: its override, and the defaults where that does not say.
    pub fn of(&self, target: &Target) -> Upstream {
        let peer = target.peer.as_ref().map_or("", |peer| peer.as_str());
        let is_of = |it: &&Upstream| it.name == target.service.as_str() && it.peer == peer;
        let own = self.overrides.iter().find(is_of).cloned().unwrap_or_default();
        let Some(shared) = &self.defaults else { return own };
        Upstream {
            connect_timeout_ms: own.connect_timeout_ms.or(shared.connect_timeout_ms),
            limits: own.limits.or(shared.limits),
            passive_health_check: own.passive_health_check.or(shared.passive_health_check),
            ..own
        }
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.overrides.len() > OVERRIDES_MAX {
            return Err(Fault::new("UpstreamConfig.Overrides", "1024 are the most"));
        }
        if let Some(defaults) = &self.defaults {
            let at = |field: &str| format!("UpstreamConfig.Defaults.{field}");
            if !defaults.name.is_empty() {
                return Err(Fault::new(at("Name"), "defaults are for all: use Overrides"));
            }
            defaults.check().map_err(|(field, why)| Fault::new(at(field), why))?;
        }
        let mut seen = std::collections::BTreeSet::new();
        for (n, upstream) in self.overrides.iter().enumerate() {
            let at = |field: &str| format!("UpstreamConfig.Overrides[{n}].{field}");
            if ServiceName::in_mesh(&upstream.name).is_err() {
                return Err(Fault::new(at("Name"), SERVICE_RULE));
            }
            if !upstream.peer.is_empty() && upstream.peer.parse::<PeerName>().is_err() {
                return Err(Fault::new(at("Peer"), SERVICE_RULE));
            }
            if !seen.insert((&upstream.name, &upstream.peer)) {
                return Err(Fault::new(at("Name"), "it is listed before: merge the two"));
            }
            upstream.check().map_err(|(field, why)| Fault::new(at(field), why))?;
        }
        Ok(())
    }
}

impl Upstream {
    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.connect_timeout_ms.is_some_and(|ms| ms == 0 || ms > 60_000) {
            return Err(("ConnectTimeoutMs", "use 1 to 60000"));
        }
        let Some(check) = &self.passive_health_check else { return Ok(()) };
        let span =
            |span: Option<Duration>| span.is_some_and(|span| span < SPAN_MIN || span > SPAN_MAX);
        let percent = |given: Option<u32>| given.is_some_and(|percent| percent > 100);
        let faults = [
            (span(check.interval), "PassiveHealthCheck.Interval", SPAN_RULE),
            (span(check.base_ejection_time), "PassiveHealthCheck.BaseEjectionTime", SPAN_RULE),
            (
                percent(check.enforcing_consecutive_5xx),
                "PassiveHealthCheck.EnforcingConsecutive5xx",
                PERCENT_RULE,
            ),
            (
                percent(check.max_ejection_percent),
                "PassiveHealthCheck.MaxEjectionPercent",
                PERCENT_RULE,
            ),
            (percent(check.panic_percent), "PassiveHealthCheck.PanicPercent", PERCENT_RULE),
        ];
        match faults.into_iter().find(|(is_bad, ..)| *is_bad) {
            Some((_, field, why)) => Err((field, why)),
            None => Ok(()),
        }
    }
}

const OVERRIDES_MAX: usize = 1024;
const SPAN_MIN: Duration = Duration::from_millis(10);
const SPAN_MAX: Duration = Duration::from_secs(3_600);
const SPAN_RULE: &str = "use 10ms to 1h";
const PERCENT_RULE: &str = "100 is the most";

#[cfg(test)]
mod tests {
    use super::*;

    fn target(service: &str, peer: &str) -> Target {
        let peer = (!peer.is_empty()).then(|| peer.parse().expect("a name"));
        Target { service: service.parse().expect("a name"), peer }
    }

    #[test]
    fn an_override_outranks_the_defaults_field_by_field() {
        let config: UpstreamConfig = serde_json::from_str(
            r#"{"Defaults":{"ConnectTimeoutMs":900,"Limits":{"MaxConnections":5}},
                "Overrides":[{"Name":"db","Limits":{"MaxConcurrentRequests":7}},
                             {"Name":"db","Peer":"west","ConnectTimeoutMs":50}]}"#,
        )
        .expect("good");
        config.check().expect("good");
        let db = config.of(&target("db", ""));
        assert_eq!(db.connect_timeout_ms, Some(900));
        assert_eq!(db.limits.and_then(|limits| limits.max_concurrent_requests), Some(7));
        assert_eq!(db.limits.and_then(|limits| limits.max_connections), None, "whole blocks");
        assert_eq!(config.of(&target("db", "west")).connect_timeout_ms, Some(50));
        assert_eq!(config.of(&target("api", "")).connect_timeout_ms, Some(900));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let cases = [
            (r#"{"Defaults":{"Name":"db"}}"#, "UpstreamConfig.Defaults.Name"),
            (r#"{"Overrides":[{"Name":"d b"}]}"#, "UpstreamConfig.Overrides[0].Name"),
            (r#"{"Overrides":[{"Name":"a"},{"Name":"a"}]}"#, "UpstreamConfig.Overrides[1].Name"),
            (r#"{"Defaults":{"ConnectTimeoutMs":0}}"#, "UpstreamConfig.Defaults.ConnectTimeoutMs"),
            (
                r#"{"Defaults":{"PassiveHealthCheck":{"MaxEjectionPercent":101}}}"#,
                "UpstreamConfig.Defaults.PassiveHealthCheck.MaxEjectionPercent",
            ),
            (
                r#"{"Defaults":{"PassiveHealthCheck":{"Interval":"1ms"}}}"#,
                "UpstreamConfig.Defaults.PassiveHealthCheck.Interval",
            ),
        ];
        for (json, expected) in cases {
            let parsed: UpstreamConfig = serde_json::from_str(json).expect(json);
            assert_eq!(parsed.check().expect_err(json).field, expected);
        }
    }
}
