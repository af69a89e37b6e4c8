//! `provider=aws tag_key=... tag_value=...`: which of AWS's addresses are servers.

use crate::endpoint::{Endpoint, InvalidEndpoint, InvalidRegion, Region};

/// What is looked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Query {
    pub(crate) tag_key: String,
    pub(crate) tag_value: String,
    /// None: the process's own.
    pub(crate) region: Option<Region>,
    pub(crate) address: AddressType,
    pub(crate) service: Service,
    /// None: the region's own.
    pub(crate) endpoint: Option<Endpoint>,
}

/// Which of an instance's addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum AddressType {
    PrivateV4,
    PublicV4,
    PublicV6,
}

/// Where the tag is looked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Service {
    Ec2,
    Ecs { cluster: String, family: Option<String> },
}

/// A text that asks for nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidQuery {
    /// It is no list of `key=value`.
    #[error("{0:?} is not key=value")]
    Pair(String),
    /// The key does not exist.
    #[error(
        "{0} is no key; there are tag_key, tag_value, region, addr_type, service, ecs_cluster, \
         ecs_family and endpoint"
    )]
    Key(String),
    /// It is there twice.
    #[error("{0} is said twice")]
    Twice(String),
    /// It would be a secret in a configuration file.
    #[error(
        "{0} does not belong in a configuration file: give the instance or task a role, or set \
         AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    Secret(String),
    /// It must be said.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Its value is none that it may have.
    #[error("{key}={value}: use {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The region is none.
    #[error("region: {0}")]
    Region(#[from] InvalidRegion),
    /// The endpoint is none.
    #[error("endpoint: {0}")]
    Endpoint(#[from] InvalidEndpoint),
}

/// Whether an entry of `retry_join` names a provider rather than a host.
pub fn is_provider(text: &str) -> bool {
    text.trim_start().starts_with("provider=")
}

impl Query {
    /// Parses `provider=aws key=value ...`; a value may stand in double quotes.
    ///
    /// # Errors
    /// [`InvalidQuery`]
    pub fn parse(text: &str) -> Result<Self, InvalidQuery> {
        let mut pairs = pairs(text)?;
        let mut take = |key: &str| {
            let at = pairs.iter().position(|(name, _)| name == key)?;
            Some(pairs.swap_remove(at).1)
        };
        let value = |key, value: String, allowed| InvalidQuery::Value { key, value, allowed };
        match take("provider") {
            Some(provider) if provider == "aws" => {}
            other => return Err(value("provider", other.unwrap_or_default(), "aws")),
        }
        let address = match take("addr_type").as_deref() {
            None | Some("private_v4") => AddressType::PrivateV4,
            Some("public_v4") => AddressType::PublicV4,
            Some("public_v6") => AddressType::PublicV6,
            Some(other) => {
                let allowed = "private_v4, public_v4 or public_v6";
                return Err(value("addr_type", other.to_owned(), allowed));
            }
        };
        let (cluster, family) = (take("ecs_cluster"), take("ecs_family"));
        let service = match take("service").as_deref() {
            None | Some("ec2") if cluster.is_some() || family.is_some() => {
                return Err(InvalidQuery::Missing("service=ecs, which ecs_cluster goes with,"));
            }
            None | Some("ec2") => Service::Ec2,
            Some("ecs") if address != AddressType::PrivateV4 => {
                return Err(value("addr_type", "public".to_owned(), "private_v4 with service=ecs"));
            }
            Some("ecs") => {
                let cluster = cluster.ok_or(InvalidQuery::Missing("ecs_cluster"))?;
                Service::Ecs { cluster, family }
            }
            Some(other) => return Err(value("service", other.to_owned(), "ec2 or ecs")),
        };
        let query = Self {
            tag_key: take("tag_key").ok_or(InvalidQuery::Missing("tag_key"))?,
            tag_value: take("tag_value").ok_or(InvalidQuery::Missing("tag_value"))?,
            region: take("region").map(|text| text.parse()).transpose()?,
            endpoint: take("endpoint").map(|text| text.parse()).transpose()?,
            address,
            service,
        };
        match pairs.into_iter().next() {
            None => Ok(query),
            Some((key, _)) if SECRETS.contains(&key.as_str()) => Err(InvalidQuery::Secret(key)),
            Some((key, _)) => Err(InvalidQuery::Key(key)),
        }
    }
}

fn pairs(text: &str) -> Result<Vec<(String, String)>, InvalidQuery> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let no_pair = || InvalidQuery::Pair(rest.chars().take(SHOWN_MAX).collect());
        let (key, after) = rest.split_once('=').ok_or_else(no_pair)?;
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or_else(no_pair)?,
            None => after.split_at(after.find(char::is_whitespace).unwrap_or(after.len())),
        };
        let is_key = |octet: u8| octet.is_ascii_lowercase() || octet == b'_';
        let ends = next.is_empty() || next.starts_with(char::is_whitespace);
        if key.is_empty() || !key.bytes().all(is_key) || value.is_empty() || !ends {
            // The value of a secret must not be shown.
            return Err(InvalidQuery::Pair(key.chars().take(SHOWN_MAX).collect()));
        }
        if pairs.iter().any(|(held, _)| held == key) {
            return Err(InvalidQuery::Twice(key.to_owned()));
        }
        pairs.push((key.to_owned(), value.to_owned()));
        rest = next.trim_start();
    }
    Ok(pairs)
}

const SECRETS: [&str; 3] = ["access_key_id", "secret_access_key", "session_token"];
const SHOWN_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_a_tag_and_may_have_more() {
        let plain = Query {
            tag_key: "role".into(),
            tag_value: "mesh".into(),
            region: None,
            address: AddressType::PrivateV4,
            service: Service::Ec2,
            endpoint: None,
        };
        let spaced = Query { tag_value: "a mesh".into(), ..plain.clone() };
        let full = Query {
            region: Some("eu-west-1".parse().expect("a region")),
            endpoint: Some("http://127.0.0.1:5000".parse().expect("an endpoint")),
            service: Service::Ecs { cluster: "c".into(), family: Some("f".into()) },
            ..plain.clone()
        };
        let cases = [
            ("provider=aws tag_key=role tag_value=mesh", plain.clone()),
            (
                "  tag_value=mesh   provider=aws service=ec2 addr_type=private_v4 tag_key=role",
                plain,
            ),
            ("provider=aws tag_key=role tag_value=\"a mesh\"", spaced),
            (
                "provider=aws tag_key=role tag_value=mesh service=ecs ecs_cluster=c ecs_family=f \
                 region=eu-west-1 endpoint=http://127.0.0.1:5000",
                full,
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(Query::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_by_its_key() {
        let cases = [
            // what follows the provider, what the error must say
            ("provider=gce tag_key=a tag_value=b", "provider=gce"),
            ("provider=aws tag_key=a", "tag_value is missing"),
            ("provider=aws tag_value=a", "tag_key is missing"),
            ("provider=aws tag_key=a tag_value=b tag=c", "tag is no key"),
            ("provider=aws tag_key=a tag_value=b tag_key=c", "tag_key is said twice"),
            ("provider=aws tag_key=a tag_value=b region=EU", "region"),
            ("provider=aws tag_key=a tag_value=b service=s3", "ec2 or ecs"),
            ("provider=aws tag_key=a tag_value=b service=ecs", "ecs_cluster is missing"),
            ("provider=aws tag_key=a tag_value=b ecs_cluster=c", "service=ecs"),
            ("provider=aws tag_key=a tag_value=b addr_type=v4", "addr_type=v4"),
            ("provider=aws tag_key=a tag_value=b endpoint=http://10.0.0.1", "in the clear"),
            ("provider=aws tag_key=a tag_value=b secret_access_key=zzz", "secret_access_key"),
            ("provider=aws tag_key=a tag_value=\"b", "is not key=value"),
            ("provider=aws tag_key", "is not key=value"),
        ];
        for (text, says) in cases {
            let why = Query::parse(text).expect_err(text).to_string();
            assert!(why.contains(says), "{text}: {why}");
            assert!(!why.contains("zzz"), "a secret is shown: {why}");
        }
    }
}
