//! Hashes: what of a request leads it to its instance, and the numbers they are compared by.

use std::net::IpAddr;

use crate::entry::HashPolicy;

/// What a request has to be hashed by. Names of headers come in any case.
pub trait Subject {
    /// A header's first value.
    fn header(&self, name: &str) -> Option<&[u8]>;
    /// The query, without its question mark.
    fn query(&self) -> Option<&str>;
    /// Where it comes from.
    fn source(&self) -> Option<IpAddr>;
}

/// What the policies make of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hashed<'a> {
    /// Its hash; none where it has nothing that the policies ask for.
    pub hash: Option<u64>,
    /// The policy whose cookie the request lacks and its answer should set; the hash that goes with
    /// it is `hash`.
    pub cookie: Option<&'a HashPolicy>,
}

/// Hashes `subject` by `policies`, in their order. `draw` is the value of a cookie that has to be
/// made.
pub fn hash<'a>(policies: &'a [HashPolicy], subject: &impl Subject, draw: u64) -> Hashed<'a> {
    let mut hashed = Hashed { hash: None, cookie: None };
    for policy in policies {
        let made;
        let octets: Option<&[u8]> = match policy.field.as_str() {
            "header" => subject.header(&policy.field_value),
            "query_parameter" => subject.query().and_then(|query| parameter(query, policy)),
            "cookie" => match subject.header("cookie").and_then(|all| cookie(all, policy)) {
                Some(found) => Some(found),
                None if policy.cookie_config.is_some() && hashed.cookie.is_none() => {
                    hashed.cookie = Some(policy);
                    made = cookie_value(draw);
                    Some(made.as_bytes())
                }
                None => None,
            },
            _ => match subject.source() {
                Some(IpAddr::V4(source)) => {
                    hashed.add(&source.octets());
                    None
                }
                Some(IpAddr::V6(source)) => {
                    hashed.add(&source.octets());
                    None
                }
                None => None,
            },
        };
        if let Some(octets) = octets {
            hashed.add(octets);
        }
        if policy.terminal && hashed.hash.is_some() {
            break;
        }
    }
    hashed
}

impl Hashed<'_> {
    fn add(&mut self, octets: &[u8]) {
        self.hash = Some(of(self.hash.unwrap_or_default(), octets));
    }
}

/// The value of a cookie that was made with `draw`.
pub fn cookie_value(draw: u64) -> String {
    format!("{draw:016x}")
}

/// The `Set-Cookie` that goes with a cookie of `policy` made with `draw`.
pub fn set_cookie(policy: &HashPolicy, draw: u64) -> String {
    let mut text = format!("{}={}", policy.field_value, cookie_value(draw));
    if let Some(config) = &policy.cookie_config {
        if !config.path.is_empty() {
            text.push_str("; Path=");
            text.push_str(&config.path);
        }
        if let Some(ttl) = config.ttl.filter(|ttl| !config.session && !ttl.is_zero()) {
            text.push_str(&format!("; Max-Age={}", ttl.as_secs().max(1)));
        }
    }
    text.push_str("; HttpOnly");
    text
}

fn parameter<'a>(query: &'a str, policy: &HashPolicy) -> Option<&'a [u8]> {
    query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == policy.field_value).then_some(value.as_bytes())
    })
}

fn cookie<'a>(all: &'a [u8], policy: &HashPolicy) -> Option<&'a [u8]> {
    all.split(|octet| *octet == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let at = pair.iter().position(|octet| *octet == b'=')?;
        (&pair[..at] == policy.field_value.as_bytes()).then_some(&pair[at + 1..])
    })
}

/// A hash of `octets` that goes on from `seed`: FNV-1a, its bits mixed so that neighbours are far
/// apart. The same on every host, and no defence against those who choose what is hashed: the load
/// of an instance is bounded instead.
pub(super) fn of(seed: u64, octets: &[u8]) -> u64 {
    let start = seed ^ 0xCBF2_9CE4_8422_2325;
    let fold = |hash: u64, octet: &u8| (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01B3);
    mix(octets.iter().fold(start, fold))
}

/// `SplitMix64`'s finaliser.
pub(super) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request {
        headers: &'static [(&'static str, &'static str)],
        query: Option<&'static str>,
    }

    impl Subject for Request {
        fn header(&self, name: &str) -> Option<&[u8]> {
            let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.as_bytes())
        }

        fn query(&self) -> Option<&str> {
            self.query
        }

        fn source(&self) -> Option<IpAddr> {
            Some([192, 0, 2, 7].into())
        }
    }

    fn policies(json: &str) -> Vec<HashPolicy> {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn what_the_policies_name_is_what_counts() {
        let plain = Request { headers: &[], query: None };
        let full = Request {
            headers: &[("X-User", "ann"), ("Cookie", "a=1; sid=abc; b=2")],
            query: Some("x=1&user=ann&y"),
        };
        let header = policies(r#"[{"Field":"header","FieldValue":"x-user"}]"#);
        let query = policies(r#"[{"Field":"query_parameter","FieldValue":"user"}]"#);
        let cookie = policies(r#"[{"Field":"cookie","FieldValue":"sid"}]"#);
        let source = policies(r#"[{"SourceIP":true}]"#);
        let ann = Some(of(0, b"ann"));
        let cases = [
            // policies, request, expected, why
            (&header, &full, ann, "a header"),
            (&query, &full, ann, "a parameter hashes as the same text does"),
            (&cookie, &full, Some(of(0, b"abc")), "one cookie among several"),
            (&source, &full, Some(of(0, &[192, 0, 2, 7])), "the source"),
            (&header, &plain, None, "a header that is not there"),
            (&cookie, &plain, None, "a cookie that nobody makes"),
        ];
        for (policies, request, expected, why) in cases {
            assert_eq!(hash(policies, request, 1).hash, expected, "{why}");
        }
        let first = policies(
            r#"[{"Field":"header","FieldValue":"x-user","Terminal":true},{"SourceIP":true}]"#,
        );
        assert_eq!(hash(&first, &full, 1).hash, ann, "nothing after a terminal one that is there");
        assert_ne!(hash(&first, &plain, 1).hash, None, "but if it is not there");
        let both = policies(r#"[{"Field":"header","FieldValue":"x-user"},{"SourceIP":true}]"#);
        assert_ne!(hash(&both, &full, 1).hash, ann, "parts add up");
    }

    #[test]
    fn a_cookie_that_is_made_leads_to_where_it_will_lead() {
        let made = policies(
            r#"[{"Field":"cookie","FieldValue":"sid","CookieConfig":{"TTL":"90s","Path":"/a"}}]"#,
        );
        let hashed = hash(&made, &Request { headers: &[], query: None }, 0xAB);
        assert_eq!(hashed.hash, Some(of(0, cookie_value(0xAB).as_bytes())));
        let policy = hashed.cookie.expect("it is to be set");
        let text = set_cookie(policy, 0xAB);
        assert_eq!(text, "sid=00000000000000ab; Path=/a; Max-Age=90; HttpOnly");
    }
}
