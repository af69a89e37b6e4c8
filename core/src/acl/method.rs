//! Auth methods and binding rules: how somebody who is known elsewhere gets a token here.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::duration;
use crate::jwks::Algorithm;

/// By whose word somebody logs in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum MethodKind {
    /// Whoever signs JSON Web Tokens.
    Jwt,
    /// AWS, about its users and roles.
    AwsIam,
}

impl MethodKind {
    /// The word that clients know it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jwt => "jwt",
            Self::AwsIam => "aws-iam",
        }
    }
}

/// There is no such kind of auth method.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no type of auth method here: use jwt or aws-iam")]
pub struct InvalidKind(String);

impl FromStr for MethodKind {
    type Err = InvalidKind;

    fn from_str(text: &str) -> Result<Self, InvalidKind> {
        let all = [Self::Jwt, Self::AwsIam];
        let found = all.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| InvalidKind(text.to_owned()))
    }
}

/// One way to log in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthMethod {
    /// Its name, unique.
    pub name: Arc<str>,
    /// By whose word.
    pub kind: MethodKind,
    /// Its name for people.
    pub display_name: Arc<str>,
    /// What it is for.
    pub description: Arc<str>,
    /// How long its tokens hold; none: until they are logged out.
    pub token_ttl: Option<Duration>,
    /// Whether its tokens are good in every datacenter, and not in this one alone.
    pub is_global: bool,
    /// What its kind needs to know, as JSON: [`JwtConfig`] or [`AwsConfig`].
    pub config: Arc<str>,
}

/// What a token gets that was logged in for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BindKind {
    /// A service's identity.
    Service,
    /// A node's identity.
    Node,
    /// A role, if there is one of the name.
    Role,
    /// A policy, if there is one of the name.
    Policy,
    /// A templated policy.
    Template,
}

impl BindKind {
    /// The word that clients know it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Node => "node",
            Self::Role => "role",
            Self::Policy => "policy",
            Self::Template => "templated-policy",
        }
    }
}

/// There is nothing of the kind that a rule could bind.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no BindType: use service, node, role, policy or templated-policy")]
pub struct InvalidBindKind(String);

impl FromStr for BindKind {
    type Err = InvalidBindKind;

    fn from_str(text: &str) -> Result<Self, InvalidBindKind> {
        let all = [Self::Service, Self::Node, Self::Role, Self::Policy, Self::Template];
        let found = all.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| InvalidBindKind(text.to_owned()))
    }
}

/// Who gets what when they log in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BindingRule {
    /// A UUID.
    pub id: Arc<str>,
    /// What it is for.
    pub description: Arc<str>,
    /// Whose logins it is about.
    pub method: Arc<str>,
    /// Whom it is about, as a filter; empty: everybody.
    pub selector: Arc<str>,
    /// What they get.
    pub kind: BindKind,
    /// Of which name; `${…}` stands for what is known of who logs in.
    pub name: Arc<str>,
    /// The name that a templated policy is made for, as [`Self::name`].
    pub variable: Option<Arc<str>>,
}

/// What a method of the kind `jwt` is told, with Consul's keys.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JwtConfig {
    /// Public keys, PEM.
    #[serde(rename = "JWTValidationPubKeys", skip_serializing_if = "Vec::is_empty")]
    pub public_keys: Vec<String>,
    /// Where the keys are.
    #[serde(rename = "JWKSURL", skip_serializing_if = "String::is_empty")]
    pub jwks_url: String,
    /// Who vouches for that place, PEM; empty: the public web's authorities.
    #[serde(rename = "JWKSCACert", skip_serializing_if = "String::is_empty")]
    pub jwks_ca: String,
    /// Where an issuer says where its keys are.
    #[serde(rename = "OIDCDiscoveryURL", skip_serializing_if = "String::is_empty")]
    pub discovery_url: String,
    /// Who vouches for that place, PEM; empty: the public web's authorities.
    #[serde(rename = "OIDCDiscoveryCACert", skip_serializing_if = "String::is_empty")]
    pub discovery_ca: String,
    /// How tokens may be signed; none: RS256.
    #[serde(rename = "JWTSupportedAlgs", skip_serializing_if = "Vec::is_empty")]
    pub algorithms: Vec<String>,
    /// One of these must be in a token's `aud`; none: anything.
    #[serde(rename = "BoundAudiences", skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// What a token's `iss` must be; empty: anything.
    #[serde(rename = "BoundIssuer", skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// Claims that rules see as `value.<name>`: the claim, or a pointer to it, and the name.
    #[serde(rename = "ClaimMappings", skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, String>,
    /// Claims that rules see as `list.<name>`.
    #[serde(rename = "ListClaimMappings", skip_serializing_if = "BTreeMap::is_empty")]
    pub lists: BTreeMap<String, String>,
    /// How long a token holds that does not say; none: 150 s.
    #[serde(rename = "ExpirationLeeway", with = "duration::serde_option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration_leeway: Option<Duration>,
    /// How long before it was issued a token holds that does not say; none: 150 s.
    #[serde(rename = "NotBeforeLeeway", with = "duration::serde_option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before_leeway: Option<Duration>,
    /// How far clocks may differ; none: 60 s.
    #[serde(rename = "ClockSkewLeeway", with = "duration::serde_option")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skew: Option<Duration>,
}

/// What is wrong with the configuration of an auth method.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("Config{path}: {why}")]
pub struct InvalidConfig {
    /// Where, beginning with a dot; empty: as a whole.
    pub path: String,
    /// What is wrong there.
    pub why: String,
}

impl InvalidConfig {
    /// `why` at the field `name`.
    pub fn at(name: &str, why: impl fmt::Display) -> Self {
        Self { path: format!(".{name}"), why: why.to_string() }
    }

    fn whole(why: impl fmt::Display) -> Self {
        Self { path: String::new(), why: why.to_string() }
    }
}

/// Where the keys of a method come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeySource<'a> {
    /// They are here, PEM.
    Here(&'a [String]),
    /// A key set is at `url`, for which `ca` vouches.
    Set {
        /// Its address.
        url: &'a str,
        /// PEM, or empty.
        ca: &'a str,
    },
    /// The issuer at `url`, for which `ca` vouches, says where they are.
    Discovered {
        /// Its address.
        url: &'a str,
        /// PEM, or empty.
        ca: &'a str,
    },
}

impl JwtConfig {
    /// Reads and checks one.
    ///
    /// # Errors
    /// [`InvalidConfig`], which names the field.
    pub fn parse(config: &Value) -> Result<Self, InvalidConfig> {
        let read: Self = serde_json::from_value(config.clone()).map_err(InvalidConfig::whole)?;
        read.source()?;
        read.algorithms()?;
        let mut names: Vec<&String> = read.claims.values().chain(read.lists.values()).collect();
        if names.iter().any(|name| !is_variable(name)) {
            let why = "the names on the right are letters, digits and _, at most 64";
            return Err(InvalidConfig::at("ClaimMappings", why));
        }
        if names.len() > MAPPINGS_MAX {
            let why = format!("{MAPPINGS_MAX} claims are the most");
            return Err(InvalidConfig::at("ClaimMappings", why));
        }
        names.sort();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let why = format!("{:?} is the name of two claims", twice[0]);
            return Err(InvalidConfig::at("ClaimMappings", why));
        }
        Ok(read)
    }

    /// Where its keys are.
    ///
    /// # Errors
    /// None or several places are named.
    pub fn source(&self) -> Result<KeySource<'_>, InvalidConfig> {
        let here = (!self.public_keys.is_empty()).then_some(KeySource::Here(&self.public_keys));
        let set = (!self.jwks_url.is_empty())
            .then_some(KeySource::Set { url: &self.jwks_url, ca: &self.jwks_ca });
        let found = (!self.discovery_url.is_empty())
            .then_some(KeySource::Discovered { url: &self.discovery_url, ca: &self.discovery_ca });
        match (here, set, found) {
            (Some(one), None, None) | (None, Some(one), None) | (None, None, Some(one)) => Ok(one),
            _ => Err(InvalidConfig::whole(
                "exactly one of JWTValidationPubKeys, JWKSURL and OIDCDiscoveryURL must be set",
            )),
        }
    }

    /// How its tokens may be signed.
    ///
    /// # Errors
    /// One is not known here.
    pub fn algorithms(&self) -> Result<Vec<Algorithm>, InvalidConfig> {
        if self.algorithms.is_empty() {
            return Ok(vec![Algorithm::Rs256]);
        }
        let named = |name: &String| {
            let why = format!("{name:?} is no algorithm with a public key that is known here");
            Algorithm::named(name).ok_or_else(|| InvalidConfig::at("JWTSupportedAlgs", why))
        };
        self.algorithms.iter().map(named).collect()
    }

    /// What `claims` say of who brought them.
    pub fn identity(&self, claims: &Value) -> Identity {
        let find = |path: &str| match path.starts_with('/') {
            true => claims.pointer(path),
            false => claims.get(path),
        };
        let mut identity = Identity::default();
        let mut values = serde_json::Map::new();
        for (path, name) in &self.claims {
            let text = find(path).and_then(plain).unwrap_or_default();
            identity.variables.insert(format!("value.{name}"), text.clone());
            values.insert(name.clone(), text.into());
        }
        let mut lists = serde_json::Map::new();
        for (path, name) in &self.lists {
            let list: Vec<Value> = match find(path) {
                Some(Value::Array(all)) => all.iter().filter_map(plain).map(Into::into).collect(),
                Some(one) => plain(one).map(Into::into).into_iter().collect(),
                None => Vec::new(),
            };
            lists.insert(name.clone(), list.into());
        }
        identity.fields = json!({ "value": values, "list": lists });
        identity
    }
}

/// A claim as text; none for what is no single value.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// What a method of the kind `aws-iam` is told, with Consul's keys.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AwsConfig {
    /// Who may log in: ARNs of users and roles; a `*` may stand at the end.
    #[serde(rename = "BoundIAMPrincipalARNs")]
    pub principals: Vec<String>,
    /// What `X-Consul-IAM-ServerID` must have been signed as; empty: it need not be there.
    #[serde(rename = "ServerIDHeaderValue", skip_serializing_if = "String::is_empty")]
    pub server_id: String,
    /// The STS that is asked; empty: that of the region.
    #[serde(rename = "STSEndpoint", skip_serializing_if = "String::is_empty")]
    pub sts_endpoint: String,
    /// The region that signatures are for.
    #[serde(rename = "STSRegion", skip_serializing_if = "String::is_empty")]
    pub sts_region: String,
}

impl AwsConfig {
    /// Reads and checks one.
    ///
    /// # Errors
    /// [`InvalidConfig`], which names the field.
    pub fn parse(config: &Value) -> Result<Self, InvalidConfig> {
        let read: Self = serde_json::from_value(config.clone()).map_err(InvalidConfig::whole)?;
        let is_good = |arn: &String| {
            let rest = arn.strip_prefix("arn:aws").and_then(|rest| rest.split_once(":iam::"));
            let fixed = arn.strip_suffix('*').unwrap_or(arn);
            rest.is_some_and(|(_, rest)| rest.contains(":role/") || rest.contains(":user/"))
                && !fixed.contains('*')
        };
        let wrong = |why: String| InvalidConfig::at("BoundIAMPrincipalARNs", why);
        if read.principals.is_empty() || read.principals.len() > PRINCIPALS_MAX {
            return Err(wrong(format!("name from one to {PRINCIPALS_MAX} users or roles")));
        }
        if let Some(bad) = read.principals.iter().find(|arn| !is_good(arn)) {
            let why = "is no ARN of a user or role; a * may stand at its end, after the account";
            return Err(wrong(format!("{bad:?} {why}")));
        }
        Ok(read)
    }

    /// Whether `arn`, of a user or role without its path, may log in.
    pub fn admits(&self, arn: &str) -> bool {
        self.principals.iter().any(|bound| match bound.strip_suffix('*') {
            Some(start) => arn.starts_with(start),
            None => arn == bound,
        })
    }
}

/// What is known of who logs in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    /// What selectors look at.
    pub fields: Value,
    /// What `${…}` in names stands for.
    pub variables: BTreeMap<String, String>,
}

/// A name in a binding rule that stands for nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidBinding {
    /// A `${` has no end.
    #[error("{0:?}: a ${{ has no }}")]
    Open(String),
    /// Nothing is known by that name.
    #[error("{name:?}: there is no {variable:?} for this auth method")]
    Unknown {
        /// The name.
        name: String,
        /// What stands between `${` and `}`.
        variable: String,
    },
    /// What it makes is no name.
    #[error("{0:?} is no name that a {kind} could have", kind = .1.as_str())]
    Name(String, BindKind),
}

impl BindingRule {
    /// The names in `${…}` of both its names.
    ///
    /// # Errors
    /// [`InvalidBinding::Open`]
    pub fn variables(&self) -> Result<Vec<String>, InvalidBinding> {
        let mut all = Vec::new();
        for text in [Some(&self.name), self.variable.as_ref()].into_iter().flatten() {
            filled(text, |variable| {
                all.push(variable.to_owned());
                Some(String::new())
            })?;
        }
        Ok(all)
    }

    /// Its name for `identity`, and that of its template. Values are written small, as Consul does.
    ///
    /// # Errors
    /// [`InvalidBinding`]
    pub fn names(&self, identity: &Identity) -> Result<(String, Option<String>), InvalidBinding> {
        let fill = |text: &str| {
            filled(text, |variable| Some(identity.variables.get(variable)?.to_ascii_lowercase()))
        };
        let name = fill(&self.name)?;
        let is_good = match self.kind {
            BindKind::Service | BindKind::Node => is_label(&name),
            BindKind::Role | BindKind::Policy => is_word(&name),
            BindKind::Template => true,
        };
        if !is_good {
            return Err(InvalidBinding::Name(name, self.kind));
        }
        let variable = self.variable.as_deref().map(fill).transpose()?;
        if let Some(variable) = variable.as_ref().filter(|variable| !is_label(variable)) {
            return Err(InvalidBinding::Name(variable.clone(), self.kind));
        }
        Ok((name, variable))
    }
}

/// `text` with each `${…}` replaced.
fn filled(
    text: &str,
    mut value: impl FnMut(&str) -> Option<String>,
) -> Result<String, InvalidBinding> {
    let (mut made, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let end = after.split_once('}');
        let (variable, left) = end.ok_or_else(|| InvalidBinding::Open(text.to_owned()))?;
        let unknown = || InvalidBinding::Unknown {
            name: text.to_owned(),
            variable: variable.trim().to_owned(),
        };
        made.push_str(before);
        made.push_str(&value(variable.trim()).ok_or_else(unknown)?);
        rest = left;
    }
    made.push_str(rest);
    Ok(made)
}

fn is_variable(text: &str) -> bool {
    let is_good = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(is_good)
}

/// As Consul takes names of services and nodes for identities.
fn is_label(text: &str) -> bool {
    let is_end = |octet: &u8| octet.is_ascii_lowercase() || octet.is_ascii_digit();
    let octets = text.as_bytes();
    octets.len() <= NAME_OCTETS_MAX
        && octets.first().is_some_and(is_end)
        && octets.last().is_some_and(is_end)
        && octets.iter().all(|octet| is_end(octet) || b"-_".contains(octet))
}

fn is_word(text: &str) -> bool {
    let is_good = |octet: u8| octet.is_ascii_alphanumeric() || b"-_/".contains(&octet);
    (1..=NAME_OCTETS_MAX).contains(&text.len()) && text.bytes().all(is_good)
}

const NAME_OCTETS_MAX: usize = 256;
const MAPPINGS_MAX: usize = 64;
const PRINCIPALS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: BindKind, name: &str) -> BindingRule {
        let text = Arc::<str>::from;
        BindingRule {
            id: text("r"),
            description: text(""),
            method: text("m"),
            selector: text(""),
            kind,
            name: text(name),
            variable: None,
        }
    }

    #[test]
    fn a_configuration_says_where_it_is_wrong() {
        let cases = [
            // configuration, what is said of it
            (json!({ "JWKSURL": "https://id.example/keys" }), ""),
            (json!({ "JWTValidationPubKeys": ["x"], "JWKSURL": "https://a" }), "exactly one"),
            (json!({ "BoundIssuer": "x" }), "exactly one"),
            (json!({ "JWKSURL": "https://a", "Jwks": 1 }), "Jwks"),
            (json!({ "JWKSURL": "https://a", "JWTSupportedAlgs": ["HS256"] }), "HS256"),
            (json!({ "JWKSURL": "https://a", "ClaimMappings": { "a": "b c" } }), "ClaimMappings"),
            (
                json!({ "JWKSURL": "https://a", "ClaimMappings": { "a": "x", "b": "x" } }),
                "two claims",
            ),
            (json!({ "JWKSURL": "https://a", "ClockSkewLeeway": "soon" }), "duration"),
        ];
        for (config, expected) in cases {
            let said = JwtConfig::parse(&config).err().map(|why| why.to_string());
            let said = said.unwrap_or_default();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said}");
        }
        let admit = |arns: &[&str]| AwsConfig::parse(&json!({ "BoundIAMPrincipalARNs": arns }));
        assert!(admit(&[]).is_err());
        assert!(admit(&["*"]).is_err());
        assert!(admit(&["arn:aws:iam::*:role/x"]).is_err());
        let config = admit(&["arn:aws:iam::123456789012:role/web-*"]).expect("good");
        assert!(config.admits("arn:aws:iam::123456789012:role/web-1"));
        assert!(!config.admits("arn:aws:iam::123456789012:role/db"));
    }

    #[test]
    fn names_are_made_of_what_is_known() {
        let config = json!({
            "JWKSURL": "https://a",
            "ClaimMappings": { "sub": "user", "/org/team": "team", "none": "none" },
            "ListClaimMappings": { "groups": "groups" },
        });
        let config = JwtConfig::parse(&config).expect("good");
        let claims = json!({ "sub": "Ann", "org": { "team": "A-1" }, "groups": ["x", 2, {}] });
        let identity = config.identity(&claims);
        assert_eq!(identity.fields["list"]["groups"], json!(["x", "2"]));
        let cases = [
            // kind, name, what it makes
            (BindKind::Service, "web", Ok("web")),
            (BindKind::Service, "web-${value.user}", Ok("web-ann")),
            (BindKind::Service, "${ value.user }-${value.team}", Ok("ann-a-1")),
            (BindKind::Service, "${value.none}", Err("is no name")),
            (BindKind::Service, "web-${value.none}", Err("is no name")),
            (BindKind::Service, "a b", Err("is no name")),
            (BindKind::Role, "Ops/${value.user}", Ok("Ops/ann")),
            (BindKind::Role, "${value.other}", Err("value.other")),
            (BindKind::Role, "${value.user", Err("has no }")),
        ];
        for (kind, name, expected) in cases {
            match (rule(kind, name).names(&identity), expected) {
                (Ok((made, _)), Ok(expected)) => assert_eq!(made, expected, "{name}"),
                (Err(why), Err(said)) => assert!(why.to_string().contains(said), "{why}"),
                (made, _) => panic!("{name}: {made:?}"),
            }
        }
        let known = rule(BindKind::Role, "a${x}b${ y }").variables();
        assert_eq!(known.expect("closed"), ["x", "y"]);
    }
}
