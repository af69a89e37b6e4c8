//! `Retries` of `service-defaults`, ours: how requests to a service are tried again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use crate::duration;

/// How requests to a service are tried again. What is left out is as without it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Retries {
    /// Most tries after the first that an application may see; zero is none.
    #[serde(alias = "num_retries", skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// What is tried again, for every method, in Consul's words. Left out: resets, timeouts and
    /// 500, 502, 503 and 504, for methods that may be repeated. What reached no application is
    /// tried again in any case.
    #[serde(alias = "retry_on", skip_serializing_if = "Vec::is_empty")]
    pub retry_on: Vec<String>,
    /// Statuses that are tried again, for every method.
    #[serde(alias = "retry_on_status_codes", skip_serializing_if = "Vec::is_empty")]
    pub retry_on_status_codes: Vec<u16>,
    /// Longest try while another is possible.
    #[serde(
        alias = "per_try_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub per_try_timeout: Option<Duration>,
    /// The pause before the first retry is drawn from zero to this; it doubles with each.
    #[serde(
        alias = "backoff_base",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub backoff_base: Option<Duration>,
    /// Longest such pause.
    #[serde(
        alias = "backoff_max",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub backoff_max: Option<Duration>,
    /// Which share of the requests of the last ten seconds may be retries, in percent.
    #[serde(alias = "budget_percent", skip_serializing_if = "Option::is_none")]
    pub budget_percent: Option<u8>,
    /// Retries a second that are allowed whatever the share.
    #[serde(alias = "budget_min_per_second", skip_serializing_if = "Option::is_none")]
    pub budget_min_per_second: Option<u32>,
    /// After how long without an answer a request that may be repeated goes to another instance as
    /// well; the first good answer counts.
    #[serde(
        default,
        rename = "HedgeAfter",
        alias = "hedge_after",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub hedge_after: Option<Duration>,
    /// The same: as long as this share of the last answers took, in percent.
    #[serde(
        default,
        rename = "HedgePercentile",
        alias = "hedge_percentile",
        skip_serializing_if = "Option::is_none"
    )]
    pub hedge_percentile: Option<u8>,
}

impl Retries {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let at = |field: &str| format!("Retries.{field}");
        if self.num_retries.is_some_and(|count| count > RETRIES_MAX) {
            return Err(Fault::new(at("NumRetries"), "10 is the most"));
        }
        for (n, word) in self.retry_on.iter().enumerate() {
            if !RETRY_CONDITIONS.contains(&word.as_str()) {
                return Err(Fault::new(at(&format!("RetryOn[{n}]")), RETRY_RULE));
            }
        }
        if self.retry_on_status_codes.iter().any(|status| !(400..600).contains(status)) {
            return Err(Fault::new(at("RetryOnStatusCodes"), "use 400 to 599"));
        }
        let spans = [
            (self.per_try_timeout, "PerTryTimeout"),
            (self.backoff_base, "BackoffBase"),
            (self.backoff_max, "BackoffMax"),
            (self.hedge_after, "HedgeAfter"),
        ];
        let is_bad = |span: Duration| span.is_zero() || span > SPAN_MAX;
        if let Some((_, field)) = spans.into_iter().find(|(span, _)| span.is_some_and(is_bad)) {
            return Err(Fault::new(at(field), "it must be more than 0 and at most 1h"));
        }
        if self.backoff_max.is_some_and(|most| self.backoff_base.is_some_and(|base| base > most)) {
            return Err(Fault::new(at("BackoffBase"), "it is above BackoffMax"));
        }
        if self.hedge_percentile.is_some_and(|percent| !(50..100).contains(&percent)) {
            return Err(Fault::new(at("HedgePercentile"), "use 50 to 99"));
        }
        if self.hedge_percentile.is_some() && self.hedge_after.is_some() {
            return Err(Fault::new(at("HedgePercentile"), "it cannot stand beside HedgeAfter"));
        }
        if self.budget_percent.is_some_and(|percent| percent > 100) {
            return Err(Fault::new(at("BudgetPercent"), "100 is the most"));
        }
        if self.budget_min_per_second.is_some_and(|floor| floor > 1_000_000) {
            return Err(Fault::new(at("BudgetMinPerSecond"), "1000000 is the most"));
        }
        Ok(())
    }
}

/// Every word that `RetryOn` may have: Consul's, and Envoy's for what is safe for all methods.
pub(crate) const RETRY_CONDITIONS: [&str; 13] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "envoy-ratelimited",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];
const RETRY_RULE: &str = "use 5xx, gateway-error, reset, reset-before-request, connect-failure, \
    refused-stream, retriable-4xx, envoy-ratelimited, cancelled, deadline-exceeded, internal, \
    resource-exhausted or unavailable";
const RETRIES_MAX: u32 = 10;
const SPAN_MAX: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let cases = [
            (r#"{"NumRetries":11}"#, "Retries.NumRetries"),
            (r#"{"RetryOn":["5xx","4xx"]}"#, "Retries.RetryOn[1]"),
            (r#"{"RetryOnStatusCodes":[200]}"#, "Retries.RetryOnStatusCodes"),
            (r#"{"PerTryTimeout":"0s"}"#, "Retries.PerTryTimeout"),
            (r#"{"BackoffBase":"2s","BackoffMax":"1s"}"#, "Retries.BackoffBase"),
            (r#"{"BudgetPercent":101}"#, "Retries.BudgetPercent"),
            (r#"{"HedgeAfter":"0s"}"#, "Retries.HedgeAfter"),
            (r#"{"HedgePercentile":100}"#, "Retries.HedgePercentile"),
            (r#"{"HedgeAfter":"1s","HedgePercentile":95}"#, "Retries.HedgePercentile"),
        ];
        for (json, expected) in cases {
            let parsed: Retries = serde_json::from_str(json).expect(json);
            assert_eq!(parsed.check().expect_err(json).field, expected);
        }
    }
}
