//! `service-router`: which requests for a service go where, and how.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::EntryMeta;
use super::fault::{Fault, check_label, check_pattern, check_service, check_tenancy};
use super::header_edits::{HeaderEdits, check_name};
use super::injection::{FaultInjection, Mirror};
use crate::duration;

/// `service-router/<service>`: the first route that a request matches counts; one that matches none
/// goes to the service itself.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct ServiceRouter {
    /// In the order in which they are tried.
    #[serde(alias = "routes", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<ServiceRoute>,
    /// Free pairs.
    #[serde(alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// One route: which requests, and what becomes of them.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct ServiceRoute {
    /// Which requests; none is all.
    #[serde(rename = "Match", alias = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<RouteMatch>,
    /// What becomes of them; none is that they go to the service itself.
    #[serde(alias = "destination", skip_serializing_if = "Option::is_none")]
    pub destination: Option<RouteDestination>,
}

/// Which requests a route is for.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct RouteMatch {
    /// By what stands in their head: all of it must match.
    #[serde(
        rename = "HTTP",
        alias = "Http",
        alias = "http",
        skip_serializing_if = "Option::is_none"
    )]
    pub http: Option<HttpMatch>,
}

/// What must stand in a request's head.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct HttpMatch {
    /// This path.
    #[serde(alias = "path_exact", skip_serializing_if = "String::is_empty")]
    pub path_exact: String,
    /// A path that begins so.
    #[serde(alias = "path_prefix", skip_serializing_if = "String::is_empty")]
    pub path_prefix: String,
    /// A path that this regular expression matches as a whole.
    #[serde(alias = "path_regex", skip_serializing_if = "String::is_empty")]
    pub path_regex: String,
    /// Whether upper and lower case in exact paths and prefixes are the same.
    #[serde(alias = "case_insensitive", skip_serializing_if = "is_false")]
    pub case_insensitive: bool,
    /// All of these fields.
    #[serde(alias = "header", skip_serializing_if = "Vec::is_empty")]
    pub header: Vec<HeaderMatch>,
    /// All of these parameters.
    #[serde(alias = "query_param", skip_serializing_if = "Vec::is_empty")]
    pub query_param: Vec<QueryMatch>,
    /// One of these methods; none is any.
    #[serde(alias = "methods", skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
}

/// What a field must be.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// Its name.
    #[serde(alias = "name")]
    pub name: String,
    /// There at all.
    #[serde(alias = "present", skip_serializing_if = "is_false")]
    pub present: bool,
    /// This value.
    #[serde(alias = "exact", skip_serializing_if = "String::is_empty")]
    pub exact: String,
    /// A value that begins so.
    #[serde(alias = "prefix", skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// A value that ends so.
    #[serde(alias = "suffix", skip_serializing_if = "String::is_empty")]
    pub suffix: String,
    /// A value that this regular expression matches as a whole.
    #[serde(alias = "regex", skip_serializing_if = "String::is_empty")]
    pub regex: String,
    /// Whether it must not be so.
    #[serde(alias = "invert", skip_serializing_if = "is_false")]
    pub invert: bool,
}

/// What a parameter of the query must be.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct QueryMatch {
    /// Its name.
    #[serde(alias = "name")]
    pub name: String,
    /// There at all.
    #[serde(alias = "present", skip_serializing_if = "is_false")]
    pub present: bool,
    /// This value.
    #[serde(alias = "exact", skip_serializing_if = "String::is_empty")]
    pub exact: String,
    /// A value that this regular expression matches as a whole.
    #[serde(alias = "regex", skip_serializing_if = "String::is_empty")]
    pub regex: String,
}

/// Where the requests of a route go, and how.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct RouteDestination {
    /// The service; empty for the router's own.
    #[serde(alias = "service", skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Its subset; then its splitter has no say.
    #[serde(alias = "service_subset", skip_serializing_if = "String::is_empty")]
    pub service_subset: String,
    /// `default`, or empty.
    #[serde(alias = "namespace", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `default`, or empty.
    #[serde(alias = "partition", skip_serializing_if = "String::is_empty")]
    pub partition: String,
    /// What stands in place of the path, or of its beginning, that was matched.
    #[serde(alias = "prefix_rewrite", skip_serializing_if = "String::is_empty")]
    pub prefix_rewrite: String,
    /// Longest wait for a whole answer, all tries together.
    #[serde(
        alias = "request_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub request_timeout: Option<Duration>,
    /// Longest silence within an answer.
    #[serde(alias = "idle_timeout", skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<IdleTimeout>,
    /// Most tries beside the first; zero leaves it to the proxy.
    #[serde(alias = "num_retries", skip_serializing_if = "is_zero")]
    pub num_retries: u32,
    /// Whether to try again where no connection was made. It is always so.
    #[serde(alias = "retry_on_connect_failure", skip_serializing_if = "is_false")]
    pub retry_on_connect_failure: bool,
    /// When to try again besides, whatever the method: Envoy's words.
    #[serde(alias = "retry_on", skip_serializing_if = "Vec::is_empty")]
    pub retry_on: Vec<String>,
    /// Statuses upon which to try again, whatever the method.
    #[serde(alias = "retry_on_status_codes", skip_serializing_if = "Vec::is_empty")]
    pub retry_on_status_codes: Vec<u16>,
    /// Ours: longest wait for the beginning of an answer, while there may be one more try.
    #[serde(
        alias = "per_try_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub per_try_timeout: Option<Duration>,
    /// Ours: faults that are made on purpose.
    #[serde(alias = "fault_injection", skip_serializing_if = "Option::is_none")]
    pub fault_injection: Option<FaultInjection>,
    /// Ours: where copies of the requests go.
    #[serde(alias = "mirror", skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Mirror>,
    /// What is changed in the requests.
    #[serde(alias = "request_headers", skip_serializing_if = "Option::is_none")]
    pub request_headers: Option<HeaderEdits>,
    /// What is changed in the answers.
    #[serde(alias = "response_headers", skip_serializing_if = "Option::is_none")]
    pub response_headers: Option<HeaderEdits>,
}

/// How long an answer may be silent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IdleTimeout {
    /// So long.
    After(Duration),
    /// For ever: a negative duration.
    Off,
}

impl Serialize for IdleTimeout {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::After(span) => to.serialize_str(&duration::format(*span)),
            Self::Off => to.serialize_str("-1s"),
        }
    }
}

impl<'de> Deserialize<'de> for IdleTimeout {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Nanos(i64),
            Text(String),
        }
        let parse = |text: &str| duration::parse(text).map_err(serde::de::Error::custom);
        match Written::deserialize(from)? {
            Written::Nanos(nanos) => {
                Ok(u64::try_from(nanos)
                    .map_or(Self::Off, |it| Self::After(Duration::from_nanos(it))))
            }
            Written::Text(text) => match text.strip_prefix('-') {
                Some(span) => parse(span).map(|_| Self::Off),
                None => parse(&text).map(Self::After),
            },
        }
    }
}

impl ServiceRouter {
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.routes.len() > ROUTES_MAX {
            return Err(Fault::new("Routes", format!("{ROUTES_MAX} are the most")));
        }
        for (n, route) in self.routes.iter().enumerate() {
            let http = route.matching.as_ref().and_then(|matching| matching.http.as_ref());
            if let Some(http) = http {
                http.check(&format!("Routes[{n}].Match.HTTP"))?;
            }
            if let Some(destination) = &route.destination {
                let has_path = http.is_some_and(HttpMatch::can_be_rewritten);
                destination.check(&format!("Routes[{n}].Destination"), has_path)?;
            }
        }
        Ok(())
    }
}

impl HttpMatch {
    fn can_be_rewritten(&self) -> bool {
        !self.path_exact.is_empty() || !self.path_prefix.is_empty()
    }

    fn check(&self, at: &str) -> Result<(), Fault> {
        let paths = [
            ("PathExact", &self.path_exact),
            ("PathPrefix", &self.path_prefix),
            ("PathRegex", &self.path_regex),
        ];
        if paths.iter().filter(|(_, path)| !path.is_empty()).count() > 1 {
            return Err(Fault::new(at, "it may have one of PathExact, PathPrefix and PathRegex"));
        }
        for (field, path) in &paths[..2] {
            if !path.is_empty() && !path.starts_with('/') {
                return Err(Fault::new(format!("{at}.{field}"), "it must begin with /"));
            }
        }
        check_pattern(&format!("{at}.PathRegex"), &self.path_regex)?;
        if self.case_insensitive && !self.path_regex.is_empty() {
            let why = "it goes with PathExact and PathPrefix: write (?i) into the expression";
            return Err(Fault::new(format!("{at}.CaseInsensitive"), why));
        }
        if self.header.len() + self.query_param.len() > CONDITIONS_MAX {
            return Err(Fault::new(at, format!("{CONDITIONS_MAX} conditions are the most")));
        }
        for (n, header) in self.header.iter().enumerate() {
            header.check(&format!("{at}.Header[{n}]"))?;
        }
        for (n, param) in self.query_param.iter().enumerate() {
            param.check(&format!("{at}.QueryParam[{n}]"))?;
        }
        let mut seen = BTreeSet::new();
        for method in &self.methods {
            let is_word = !method.is_empty() && method.len() <= METHOD_OCTETS_MAX;
            if !is_word || !method.bytes().all(|octet| octet.is_ascii_uppercase() || octet == b'-')
            {
                let why = format!("{method:?} is no method: write it in capitals");
                return Err(Fault::new(format!("{at}.Methods"), why));
            }
            if !seen.insert(method) {
                return Err(Fault::new(
                    format!("{at}.Methods"),
                    format!("{method} is there twice"),
                ));
            }
        }
        Ok(())
    }
}

impl HeaderMatch {
    fn check(&self, at: &str) -> Result<(), Fault> {
        let is_pseudo = PSEUDO.contains(&self.name.as_str());
        if !is_pseudo && !self.name.eq_ignore_ascii_case("host") {
            check_name(&format!("{at}.Name"), &self.name)?;
        }
        let given = [
            self.present,
            !self.exact.is_empty(),
            !self.prefix.is_empty(),
            !self.suffix.is_empty(),
            !self.regex.is_empty(),
        ];
        if given.into_iter().filter(|given| *given).count() != 1 {
            let why = "it must have one of Present, Exact, Prefix, Suffix and Regex";
            return Err(Fault::new(at, why));
        }
        check_pattern(&format!("{at}.Regex"), &self.regex)
    }
}

impl QueryMatch {
    fn check(&self, at: &str) -> Result<(), Fault> {
        if self.name.is_empty() {
            return Err(Fault::new(format!("{at}.Name"), "it is missing"));
        }
        let given = [self.present, !self.exact.is_empty(), !self.regex.is_empty()];
        if given.into_iter().filter(|given| *given).count() != 1 {
            return Err(Fault::new(at, "it must have one of Present, Exact and Regex"));
        }
        check_pattern(&format!("{at}.Regex"), &self.regex)
    }
}

impl RouteDestination {
    fn check(&self, at: &str, has_path: bool) -> Result<(), Fault> {
        let field = |field: &str| format!("{at}.{field}");
        check_service(&field("Service"), &self.service)?;
        check_label(&field("ServiceSubset"), &self.service_subset)?;
        check_tenancy(at, &self.namespace, &self.partition)?;
        if !self.prefix_rewrite.is_empty() {
            if !has_path {
                let why = "it needs PathExact or PathPrefix in Match.HTTP";
                return Err(Fault::new(field("PrefixRewrite"), why));
            }
            let is_target = |octet: u8| octet.is_ascii_graphic() && !b"?#".contains(&octet);
            if !self.prefix_rewrite.starts_with('/') || !self.prefix_rewrite.bytes().all(is_target)
            {
                let why = "it must be a path that begins with /";
                return Err(Fault::new(field("PrefixRewrite"), why));
            }
        }
        self.check_times(at)?;
        let (faults, mirror) = (&self.fault_injection, &self.mirror);
        faults.as_ref().map_or(Ok(()), |faults| faults.check(&field("FaultInjection")))?;
        mirror.as_ref().map_or(Ok(()), |mirror| mirror.check(&field("Mirror")))?;
        if self.num_retries > RETRIES_MAX {
            return Err(Fault::new(field("NumRetries"), format!("{RETRIES_MAX} is the most")));
        }
        if let Some(word) = self.retry_on.iter().find(|word| !RETRY_ON.contains(&word.as_str())) {
            let why = format!("{word:?} is none of {}", RETRY_ON.join(", "));
            return Err(Fault::new(field("RetryOn"), why));
        }
        if let Some(code) = self.retry_on_status_codes.iter().find(|it| !(400..600).contains(*it)) {
            let why = format!("{code} is no status of an error: use 400 to 599");
            return Err(Fault::new(field("RetryOnStatusCodes"), why));
        }
        for (name, edits) in
            [("RequestHeaders", &self.request_headers), ("ResponseHeaders", &self.response_headers)]
        {
            edits.as_ref().map_or(Ok(()), |edits| edits.check(&field(name)))?;
        }
        Ok(())
    }

    fn check_times(&self, at: &str) -> Result<(), Fault> {
        let idle = match self.idle_timeout {
            Some(IdleTimeout::After(span)) => Some(span),
            Some(IdleTimeout::Off) | None => None,
        };
        for (field, span) in [
            ("RequestTimeout", self.request_timeout),
            ("IdleTimeout", idle),
            ("PerTryTimeout", self.per_try_timeout),
        ] {
            if span.is_some_and(|span| span > SPAN_MAX) {
                return Err(Fault::new(format!("{at}.{field}"), "24h is the most"));
            }
        }
        let total = self.request_timeout.filter(|span| !span.is_zero());
        match (self.per_try_timeout, total) {
            (Some(per_try), Some(total)) if per_try >= total => {
                let total = duration::format(total);
                let why = format!("it must be below RequestTimeout, which is {total}");
                Err(Fault::new(format!("{at}.PerTryTimeout"), why))
            }
            _ => Ok(()),
        }
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What of an HTTP/2 head may be asked for like a field.
pub(crate) const PSEUDO: [&str; 4] = [":authority", ":method", ":path", ":scheme"];
/// Envoy's words for when to try again, and its own for gRPC.
const RETRY_ON: [&str; 12] = [
    "5xx",
    "gateway-error",
    "reset",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];
const ROUTES_MAX: usize = 256;
const CONDITIONS_MAX: usize = 32;
const METHOD_OCTETS_MAX: usize = 32;
const RETRIES_MAX: u32 = 10;
const SPAN_MAX: Duration = Duration::from_secs(24 * 3600);
