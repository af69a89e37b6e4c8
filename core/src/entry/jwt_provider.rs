//! `jwt-provider`: whose tokens requests may bring, where they bring them, and what they must say.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::EntryMeta;
use super::fault::{Fault, check_span};
use crate::duration;
use crate::jwks::KeySet;

/// `jwt-provider/<name>`: one issuer of tokens.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtProvider {
    /// Its keys.
    #[serde(rename = "JSONWebKeySet", alias = "json_web_key_set", alias = "JsonWebKeySet")]
    pub keys: JsonWebKeySet,
    /// What a token's `iss` must be; empty: anything.
    #[serde(rename = "Issuer", alias = "issuer", default)]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// One of these must be in a token's `aud`; none: anything.
    #[serde(rename = "Audiences", alias = "audiences", default)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// Where requests bring tokens; none: `authorization: Bearer` and `?access_token=`.
    #[serde(rename = "Locations", alias = "locations", default)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<Location>,
    /// Where the application gets the claims.
    #[serde(rename = "Forwarding", alias = "forwarding", default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<Forwarding>,
    /// How far clocks may differ; zero: 30 s.
    #[serde(rename = "ClockSkewSeconds", alias = "clock_skew_seconds", default)]
    #[serde(skip_serializing_if = "is_zero")]
    pub clock_skew_seconds: u32,
    /// Taken, and of no effect: a signature is checked each time.
    #[serde(rename = "CacheConfig", alias = "cache_config", default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_config: Option<CacheConfig>,
    /// Free pairs.
    #[serde(rename = "Meta", alias = "meta", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// Where a provider's keys are: exactly one of the two.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct JsonWebKeySet {
    /// Here, or on each callee's host.
    #[serde(alias = "local", skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalKeys>,
    /// At the provider.
    #[serde(alias = "remote", skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteKeys>,
}

/// Keys that are here: exactly one of the two.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalKeys {
    /// The key set, base64.
    #[serde(rename = "JWKS", alias = "jwks", default, skip_serializing_if = "String::is_empty")]
    pub jwks: String,
    /// A file with the key set on each callee's host.
    #[serde(rename = "Filename", alias = "filename", default)]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub filename: String,
}

/// Keys that each callee's agent fetches.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteKeys {
    /// Where from, `https://…`.
    #[serde(rename = "URI", alias = "uri")]
    pub uri: String,
    /// Longest wait for them, in milliseconds; zero: 1500.
    #[serde(rename = "RequestTimeoutMs", alias = "request_timeout_ms", default)]
    #[serde(skip_serializing_if = "is_zero")]
    pub request_timeout_ms: u32,
    /// How long they are used before they are fetched again; none: 5 min.
    #[serde(rename = "CacheDuration", alias = "cache_duration", default)]
    #[serde(with = "duration::serde_option", skip_serializing_if = "Option::is_none")]
    pub cache_duration: Option<Duration>,
    /// Taken, and of no effect: keys are always fetched before they are needed.
    #[serde(rename = "FetchAsynchronously", alias = "fetch_asynchronously", default)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fetch_asynchronously: bool,
}

/// Where a request brings a token: exactly one of the three.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Location {
    /// In a header field.
    #[serde(rename = "Header", alias = "header", default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderLocation>,
    /// In a parameter of the query.
    #[serde(rename = "QueryParam", alias = "query_param", default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_param: Option<NamedLocation>,
    /// In a cookie.
    #[serde(rename = "Cookie", alias = "cookie", default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<NamedLocation>,
}

/// A header field with a token.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderLocation {
    /// The field's name.
    #[serde(rename = "Name", alias = "name")]
    pub name: String,
    /// What stands before the token, as `Bearer `.
    #[serde(rename = "ValuePrefix", alias = "value_prefix", default)]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value_prefix: String,
    /// Whether the application gets the token, too.
    #[serde(rename = "Forward", alias = "forward", default)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub forward: bool,
}

/// A parameter or cookie with a token.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedLocation {
    /// Its name.
    #[serde(rename = "Name", alias = "name")]
    pub name: String,
}

/// Where the application gets the claims.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forwarding {
    /// The field, with the claims in base64 for URLs. Callers cannot set it.
    #[serde(rename = "HeaderName", alias = "header_name")]
    pub header_name: String,
    /// Whether the base64 is padded.
    #[serde(rename = "PadForwardPayloadHeader", alias = "pad_forward_payload_header", default)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pad: bool,
}

/// Consul's cache of checked tokens.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct CacheConfig {
    /// How many.
    #[serde(alias = "size")]
    pub size: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl JwtProvider {
    /// How far clocks may differ.
    pub const fn skew(&self) -> Duration {
        Duration::from_secs(match self.clock_skew_seconds {
            0 => SKEW_SECONDS,
            given => given as u64,
        })
    }

    /// The key set that the entry holds itself; none where it is elsewhere.
    pub fn inline_keys(&self) -> Option<KeySet> {
        let local = self.keys.local.as_ref().filter(|local| !local.jwks.is_empty())?;
        KeySet::read(&STANDARD.decode(&local.jwks).ok()?).ok()
    }

    /// Where requests bring tokens.
    pub fn locations(&self) -> Vec<Location> {
        if !self.locations.is_empty() {
            return self.locations.clone();
        }
        let header = HeaderLocation {
            name: "authorization".into(),
            value_prefix: "Bearer ".into(),
            forward: false,
        };
        let query = NamedLocation { name: "access_token".into() };
        vec![
            Location { header: Some(header), ..Location::default() },
            Location { query_param: Some(query), ..Location::default() },
        ]
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        self.keys.check()?;
        if self.audiences.len() > AUDIENCES_MAX {
            return Err(Fault::new("Audiences", format!("{AUDIENCES_MAX} are the most")));
        }
        if self.locations.len() > LOCATIONS_MAX {
            return Err(Fault::new("Locations", format!("{LOCATIONS_MAX} are the most")));
        }
        for (n, location) in self.locations.iter().enumerate() {
            location.check(&format!("Locations[{n}]"))?;
        }
        if let Some(forwarding) = &self.forwarding {
            check_field("Forwarding.HeaderName", &forwarding.header_name)?;
        }
        if self.clock_skew_seconds > SKEW_SECONDS_MAX {
            return Err(Fault::new("ClockSkewSeconds", format!("{SKEW_SECONDS_MAX} is the most")));
        }
        Ok(())
    }
}

impl JsonWebKeySet {
    fn check(&self) -> Result<(), Fault> {
        match (&self.local, &self.remote) {
            (Some(local), None) => match (local.jwks.is_empty(), local.filename.is_empty()) {
                (false, true) => {
                    let at = "JSONWebKeySet.Local.JWKS";
                    let json =
                        STANDARD.decode(&local.jwks).map_err(|_| Fault::new(at, "is no base64"))?;
                    KeySet::read(&json).map(drop).map_err(|why| Fault::new(at, why.to_string()))
                }
                (true, false) if local.filename.starts_with('/') => Ok(()),
                (true, false) => {
                    Err(Fault::new("JSONWebKeySet.Local.Filename", "must be a whole path"))
                }
                _ => Err(Fault::new("JSONWebKeySet.Local", "use one of JWKS and Filename")),
            },
            (None, Some(remote)) => {
                if !is_url(&remote.uri) || remote.uri.bytes().any(|octet| !octet.is_ascii_graphic())
                {
                    let why = "must be an https:// URL: keys fetched in the clear are anyone's";
                    return Err(Fault::new("JSONWebKeySet.Remote.URI", why));
                }
                let span = Some(Duration::from_millis(remote.request_timeout_ms.into()))
                    .filter(|span| !span.is_zero());
                check_span("JSONWebKeySet.Remote.RequestTimeoutMs", span, TIMEOUT_MAX)?;
                check_span("JSONWebKeySet.Remote.CacheDuration", remote.cache_duration, CACHE_MAX)
            }
            _ => Err(Fault::new("JSONWebKeySet", "use one of Local and Remote")),
        }
    }
}

impl Location {
    fn check(&self, at: &str) -> Result<(), Fault> {
        match (&self.header, &self.query_param, &self.cookie) {
            (Some(header), None, None) => check_field(&format!("{at}.Header.Name"), &header.name),
            (None, Some(named), None) | (None, None, Some(named)) => {
                let is_plain =
                    |octet: u8| octet.is_ascii_alphanumeric() || b"-._~".contains(&octet);
                if named.name.is_empty() || !named.name.bytes().all(is_plain) {
                    return Err(Fault::new(at, "Name: use letters, digits, -, ., _ and ~"));
                }
                Ok(())
            }
            _ => Err(Fault::new(at, "use one of Header, QueryParam and Cookie")),
        }
    }
}

/// Over TLS, or where no network lies between.
fn is_url(text: &str) -> bool {
    let host = |rest: &str| rest.split(['/', ':', '?']).next().unwrap_or_default().to_owned();
    match text.split_once("://") {
        Some(("https", rest)) => !host(rest).is_empty(),
        Some(("http", rest)) => ["127.0.0.1", "localhost"].contains(&host(rest).as_str()),
        _ => false,
    }
}

fn check_field(at: &str, name: &str) -> Result<(), Fault> {
    let is_name = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-';
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(Fault::new(at, "use a header field's name: letters, digits and -"));
    }
    let name = name.to_ascii_lowercase();
    if RESERVED.contains(&&*name) || name.starts_with("x-hawser-") || name.starts_with("x-envoy-") {
        return Err(Fault::new(at, "this field is the proxies' own"));
    }
    Ok(())
}

const RESERVED: [&str; 8] = [
    "connection",
    "content-length",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
];
const SKEW_SECONDS: u64 = 30;
const SKEW_SECONDS_MAX: u32 = 3600;
const AUDIENCES_MAX: usize = 64;
const LOCATIONS_MAX: usize = 16;
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
const CACHE_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_refused_with_its_field() {
        let keys = r#""JSONWebKeySet":{"Local":{"Filename":"/etc/jwks.json"}}"#;
        let cases = [
            (r#"{"JSONWebKeySet":{}}"#.to_owned(), "JSONWebKeySet"),
            (r#"{"JSONWebKeySet":{"Local":{}}}"#.to_owned(), "JSONWebKeySet.Local"),
            (
                r#"{"JSONWebKeySet":{"Local":{"JWKS":"e30="}}}"#.to_owned(),
                "JSONWebKeySet.Local.JWKS",
            ),
            (
                r#"{"JSONWebKeySet":{"Remote":{"URI":"http://a/k"}}}"#.to_owned(),
                "JSONWebKeySet.Remote.URI",
            ),
            (format!(r#"{{{keys},"Locations":[{{}}]}}"#), "Locations[0]"),
            (
                format!(r#"{{{keys},"Locations":[{{"Header":{{"Name":"host"}}}}]}}"#),
                "Locations[0].Header.Name",
            ),
            (
                format!(r#"{{{keys},"Forwarding":{{"HeaderName":"x-hawser-a"}}}}"#),
                "Forwarding.HeaderName",
            ),
            (format!(r#"{{{keys},"ClockSkewSeconds":9999}}"#), "ClockSkewSeconds"),
        ];
        for (json, field) in cases {
            let provider: JwtProvider = serde_json::from_str(&json).expect("it reads");
            assert_eq!(provider.check().expect_err(field).field, field);
        }
        let good: JwtProvider = serde_json::from_str(&format!("{{{keys}}}")).expect("it reads");
        assert_eq!(good.check(), Ok(()));
    }
}
