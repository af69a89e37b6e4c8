//! Terms: what entries say of calling one upstream, compiled when a view arrives.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use hawser_core::balance::{self, Fault, Rules, Subject};
use hawser_core::chain::Chain;
use hawser_core::entry::{Target, UpstreamLimits};
use hawser_core::retry::{self, Again, Retry};
use hawser_core::view::ServiceView;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderValue};

use crate::http::is_grpc;
use crate::limits::Limits;

/// What entries say of calling one upstream.
pub(super) struct Terms {
    /// None while the upstream is not in the view.
    pub(super) chain: Option<Rc<Chain>>,
    pub(super) rules: Rules,
    pub(super) limits: UpstreamLimits,
    pub(super) retry: Retry,
}

impl Terms {
    /// Compiles what the callee's and the caller's entries say.
    pub(super) fn compile(
        callee: Option<&ServiceView>,
        caller: Option<&ServiceView>,
        target: &Target,
        limits: &Limits,
    ) -> Self {
        let own = caller.and_then(|caller| caller.chain.policies.upstreams.as_ref());
        let own = own.map(|upstreams| upstreams.of(target)).unwrap_or_default();
        let chain = callee.map(|callee| {
            let mut chain = callee.chain.clone();
            if let Some(ms) = own.connect_timeout_ms {
                chain.connect_timeout = Duration::from_millis(ms.into());
            }
            Rc::new(chain)
        });
        let policies = chain.as_ref().map(|chain| chain.policies.clone()).unwrap_or_default();
        let check = own.passive_health_check.as_ref();
        let usual = Retry::new(
            limits.retries,
            limits.per_try,
            limits.retry_budget_percent,
            limits.retry_budget_floor,
        );
        let retry = match &policies.retries {
            Some(entry) => {
                let mut retry = usual.with(entry);
                // What the entry says is for the host, and each worker counts by itself.
                if entry.budget_min_per_second.is_some() {
                    retry.budget_floor = retry.budget_floor.div_ceil(limits.workers.max(1));
                }
                retry
            }
            None => usual,
        };
        Self {
            rules: Rules::compile(policies.load_balancer.as_ref(), check),
            limits: own.limits.unwrap_or_default(),
            retry,
            chain,
        }
    }

    /// Whether the address that a request comes from is hashed.
    pub(super) fn hashes_source(&self) -> bool {
        self.rules.hash.iter().any(|policy| policy.source_ip)
    }
}

/// Where a request belongs.
#[derive(Default)]
pub(super) struct Affinity {
    pub(super) hash: Option<u64>,
    /// A cookie that its answer should set.
    pub(super) cookie: Option<HeaderValue>,
}

impl Affinity {
    /// Where a request belongs by `terms`.
    pub(super) fn of(
        terms: &Terms,
        parts: &http::request::Parts,
        source: Option<SocketAddr>,
        draw: impl FnOnce() -> u64,
    ) -> Self {
        if terms.rules.hash.is_empty() {
            return Self::default();
        }
        let draw = draw();
        let seen = Seen { headers: &parts.headers, query: parts.uri.query(), source };
        let hashed = balance::hash(&terms.rules.hash, &seen, draw);
        let text = hashed.cookie.map(|policy| balance::set_cookie(policy, draw));
        Self { hash: hashed.hash, cookie: text.and_then(|text| text.try_into().ok()) }
    }

    /// Where a connection from `source` belongs by `terms`.
    pub(super) fn of_source(terms: &Terms, source: Option<SocketAddr>) -> Option<u64> {
        let seen = Seen { headers: &HeaderMap::new(), query: None, source };
        balance::hash(&terms.rules.hash, &seen, 0).hash
    }
}

struct Seen<'a> {
    headers: &'a HeaderMap,
    query: Option<&'a str>,
    source: Option<SocketAddr>,
}

impl Subject for Seen<'_> {
    fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.get(name).map(HeaderValue::as_bytes)
    }

    fn query(&self) -> Option<&str> {
        self.query
    }

    fn source(&self) -> Option<IpAddr> {
        self.source.map(|source| source.ip())
    }
}

/// What an answer of the application says of its instance; none when it is good.
pub(super) fn fault(status: StatusCode, headers: &HeaderMap) -> Option<Fault> {
    match status.as_u16() {
        429 => Some(Fault::Busy),
        502..=504 => Some(Fault::Gateway),
        500.. => Some(Fault::Application),
        200 => grpc_fault(grpc_status(headers)?),
        _ => None,
    }
}

/// What a gRPC status says of the instance that gave it; none when it is good.
pub(super) fn grpc_fault(status: u32) -> Option<Fault> {
    match status {
        8 => Some(Fault::Busy),
        14 => Some(Fault::Gateway),
        2 | 13 | 15 => Some(Fault::Application),
        _ => None,
    }
}

/// Whether an answer says only at its end how the call went.
pub(super) fn is_told_at_its_end(status: StatusCode, headers: &HeaderMap) -> bool {
    status == StatusCode::OK && is_grpc(headers) && !headers.contains_key("grpc-status")
}

/// The gRPC status of an answer that has no message.
pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// What an answer asks of its caller before it tries again; none where it says nothing.
pub(super) fn again(status: StatusCode, headers: &HeaderMap) -> Option<Again> {
    if let Some(pushback) = headers.get("grpc-retry-pushback-ms") {
        return Some(retry::pushback(pushback.as_bytes()));
    }
    let now = crate::clock::wall;
    let after = match headers.get(header::RETRY_AFTER) {
        Some(after) => retry::retry_after(after.as_bytes(), now),
        // An answer like any other may tell of the limit too.
        None if is_limited(status) => {
            retry::rate_limit_reset(headers.get("x-ratelimit-reset")?.as_bytes(), now)
        }
        None => None,
    };
    after.map(Again::After)
}

fn is_limited(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_when_to_come_again() {
        let secs = |secs| Some(Again::After(Duration::from_secs(secs)));
        type Case<'a> = (u16, &'a [(&'static str, &'a str)], Option<Again>, &'a str);
        let cases: &[Case<'_>] = &[
            (503, &[("retry-after", "2")], secs(2), "in seconds"),
            (503, &[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], secs(0), "as a date"),
            (429, &[("x-ratelimit-reset", "3")], secs(3), "of a limit"),
            (429, &[("retry-after", "2"), ("x-ratelimit-reset", "3")], secs(2), "the standard's"),
            (500, &[("x-ratelimit-reset", "3")], None, "no limit was met"),
            (200, &[("grpc-retry-pushback-ms", "2000")], secs(2), "gRPC's"),
            (200, &[("grpc-retry-pushback-ms", "-1")], Some(Again::Never), "not at all"),
            (503, &[], None, "it says nothing"),
        ];
        for (status, fields, expected, why) in cases {
            let status = StatusCode::from_u16(*status).expect("a status");
            let mut headers = HeaderMap::new();
            for (name, value) in *fields {
                headers.insert(*name, value.parse().expect("a value"));
            }
            assert_eq!(again(status, &headers), *expected, "{why}");
        }
    }
}
