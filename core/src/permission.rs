//! Permissions: what an intention says about single requests, and the guard that it is compiled to.
//!
//! Where a request can be read in two ways, the way that refuses counts. A permission that denies
//! applies if *any* reading of the request fits it: any of a field's values, any element of a list,
//! all of its values as one list, a host with its port or without, the path as written or as meant. One that allows applies if the *only* reading does: the field
//! is there exactly once, the path is in its normal form. (Consul CVE-2024-10006, Envoy
//! CVE-2026-26308.)

use std::fmt;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::normal;

/// Whether a caller may.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

impl Action {
    /// Consul's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }
}

/// What an intention says about single requests, in Consul's shape.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requests {
    /// The first that applies decides; where none does, the cluster's default.
    #[serde(rename = "Permissions", default, skip_serializing_if = "Vec::is_empty")]
    pub permissions: Vec<Permission>,
    /// The token that every request must bring, whatever else decides.
    #[serde(rename = "JWT", default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtRequirement>,
}

impl Requests {
    /// The names of all providers whose tokens matter.
    pub fn providers(&self) -> impl Iterator<Item = &str> {
        let own = self.permissions.iter().filter_map(|permission| permission.jwt.as_ref());
        let all = self.jwt.iter().chain(own);
        all.flat_map(|jwt| jwt.providers.iter().map(|provider| provider.name.as_str()))
    }
}

/// Which requests, and whether they may.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permission {
    /// Whether they may.
    #[serde(rename = "Action", alias = "action")]
    pub action: Action,
    /// Which ones.
    #[serde(rename = "HTTP", alias = "http", default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpPermission>,
    /// The token that these must bring.
    #[serde(rename = "JWT", alias = "jwt", default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtRequirement>,
}

/// Which requests: those that fit all that is said here.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpPermission {
    /// The whole path.
    #[serde(rename = "PathExact", alias = "path_exact", default)]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path_exact: String,
    /// How the path begins.
    #[serde(rename = "PathPrefix", alias = "path_prefix", default)]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path_prefix: String,
    /// A regular expression for the whole path.
    #[serde(rename = "PathRegex", alias = "path_regex", default)]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path_regex: String,
    /// Header fields, all of which must fit.
    #[serde(rename = "Header", alias = "header", default, skip_serializing_if = "Vec::is_empty")]
    pub header: Vec<HeaderPermission>,
    /// Methods, one of which it must be; none: any.
    #[serde(rename = "Methods", alias = "methods", default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
}

/// What a header field must be. Exactly one of the ways to say so is used.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeaderPermission {
    /// The field's name; `host` is the request's authority.
    #[serde(rename = "Name", alias = "name")]
    pub name: String,
    /// It is there.
    #[serde(rename = "Present", alias = "present", default)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub present: bool,
    /// Its whole value.
    #[serde(rename = "Exact", alias = "exact", default, skip_serializing_if = "String::is_empty")]
    pub exact: String,
    /// How its value begins.
    #[serde(
        rename = "Prefix",
        alias = "prefix",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub prefix: String,
    /// How its value ends.
    #[serde(
        rename = "Suffix",
        alias = "suffix",
        default,
        skip_serializing_if = "String::is_empty"
    )]
    pub suffix: String,
    /// What its value holds.
    #[serde(rename = "Contains", alias = "contains", default)]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub contains: String,
    /// A regular expression for its whole value.
    #[serde(rename = "Regex", alias = "regex", default, skip_serializing_if = "String::is_empty")]
    pub regex: String,
    /// Whether all this must not be so.
    #[serde(rename = "Invert", alias = "invert", default)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub invert: bool,
    /// Whether ASCII case is of no account.
    #[serde(rename = "IgnoreCase", alias = "ignore_case", default)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_case: bool,
}

/// The token that a request must bring: one of any of these providers.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtRequirement {
    /// Whose tokens will do.
    #[serde(rename = "Providers", alias = "providers", default)]
    pub providers: Vec<ProviderRequirement>,
}

/// What a token of one provider must say.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderRequirement {
    /// The `jwt-provider` entry.
    #[serde(rename = "Name", alias = "name")]
    pub name: String,
    /// Claims, all of which it must hold.
    #[serde(rename = "VerifyClaims", alias = "verify_claims", default)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verify_claims: Vec<ClaimRequirement>,
}

/// One claim of a token.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequirement {
    /// Its name, and those inside it.
    #[serde(rename = "Path", alias = "path")]
    pub path: Vec<String>,
    /// What it is, or what is in it when it is a list.
    #[serde(rename = "Value", alias = "value")]
    pub value: String,
}

/// A field that cannot be, and how to put it right.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct Fault {
    /// The field, from `Permissions` or `JWT` on.
    pub field: String,
    /// What is wrong with it, and what it may be.
    pub why: String,
}

impl Fault {
    fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

/// The fields of a request's head, whoever keeps them.
pub trait Fields {
    /// Shows every value of the field called `name`, which is in lower case.
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8]));
}

/// A request as rules see it: normal.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path in normal form, without the query.
    pub path: &'a str,
    /// Its authority in normal form.
    pub authority: &'a str,
    /// Its fields, as the application will get them.
    pub fields: &'a dyn Fields,
}

/// Why a request proves no claims of a provider.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Unproven {
    /// It brings no token.
    Missing,
    /// Its token is malformed, not the provider's, run out, or there are two.
    Invalid,
    /// This host holds no keys of the provider yet.
    NoKeys,
}

/// The claims that a request proves, by provider.
pub trait Tokens {
    /// The claims of its token of the provider called `name`.
    ///
    /// # Errors
    /// [`Unproven`].
    fn claims(&mut self, name: &str) -> Result<Arc<Value>, Unproven>;
}

/// What decided about a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum By {
    /// The permission with this number, from 0.
    Permission(usize),
    /// The intention's action: it has no permissions, only a token to bring.
    Action,
    /// No permission applies: the cluster's default.
    Default,
    /// The claims of its token are not those that every request needs.
    Claims,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Permission(number) => write!(f, "{number}"),
            Self::Action => f.write_str("action"),
            Self::Default => f.write_str("default"),
            Self::Claims => f.write_str("claims"),
        }
    }
}

/// Whether a request may, and what decided it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It may.
    Allowed(By),
    /// It may not.
    Denied(By),
    /// It needs a token that it does not bring.
    Unproven(Unproven),
}

/// What an intention says about requests, ready to decide.
#[derive(Debug)]
pub struct Guard {
    rules: Vec<Rule>,
    jwt: Option<JwtRequirement>,
    action: Action,
}

#[derive(Debug)]
struct Rule {
    action: Action,
    path: Path,
    methods: Vec<String>,
    fields: Vec<FieldRule>,
    jwt: Option<JwtRequirement>,
}

#[derive(Debug)]
enum Path {
    Any,
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

#[derive(Debug)]
struct FieldRule {
    name: String,
    test: Test,
    invert: bool,
    ignore_case: bool,
}

#[derive(Debug)]
enum Test {
    Present,
    Exact(Vec<u8>),
    Prefix(Vec<u8>),
    Suffix(Vec<u8>),
    Contains(Vec<u8>),
    Regex(Regex),
}

impl Guard {
    /// Compiles what an intention with `action` says about requests.
    ///
    /// # Errors
    /// [`Fault`], which names the field and what it may be.
    pub fn compile(requests: &Requests, action: Action) -> Result<Self, Fault> {
        if requests.permissions.len() > PERMISSIONS_MAX {
            return Err(Fault::new("Permissions", format!("{PERMISSIONS_MAX} are the most")));
        }
        let compiled = requests.permissions.iter().enumerate().map(|(n, permission)| {
            let at = format!("Permissions[{n}]");
            Rule::compile(permission, &at)
        });
        if let Some(jwt) = &requests.jwt {
            check_jwt(jwt, "JWT")?;
        }
        Ok(Self { rules: compiled.collect::<Result<_, _>>()?, jwt: requests.jwt.clone(), action })
    }

    /// The names of the header fields that it decides by, in lower case.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().flat_map(|rule| &rule.fields).map(|field| field.name.as_str())
    }

    /// Decides about one request; `default` is the cluster's, for what no permission covers.
    pub fn decide(&self, asked: &Asked<'_>, default: Action, tokens: &mut dyn Tokens) -> Verdict {
        match self.jwt.as_ref().map(|jwt| prove(jwt, tokens)) {
            Some(Err(unproven)) => return Verdict::Unproven(unproven),
            Some(Ok(false)) => return Verdict::Denied(By::Claims),
            Some(Ok(true)) | None => {}
        }
        if self.rules.is_empty() {
            return verdict(self.action, By::Action);
        }
        for (n, rule) in self.rules.iter().enumerate() {
            if !rule.applies(asked) {
                continue;
            }
            match rule.jwt.as_ref().map(|jwt| prove(jwt, tokens)) {
                Some(Err(unproven)) => return Verdict::Unproven(unproven),
                Some(Ok(false)) => {}
                Some(Ok(true)) | None => return verdict(rule.action, By::Permission(n)),
            }
        }
        verdict(default, By::Default)
    }
}

const fn verdict(action: Action, by: By) -> Verdict {
    match action {
        Action::Allow => Verdict::Allowed(by),
        Action::Deny => Verdict::Denied(by),
    }
}

/// Whether the request brings a token of any of the providers with the claims that are asked of it.
fn prove(jwt: &JwtRequirement, tokens: &mut dyn Tokens) -> Result<bool, Unproven> {
    let (mut is_proven, mut worst) = (false, Unproven::Missing);
    for provider in &jwt.providers {
        match tokens.claims(&provider.name) {
            Ok(claims) if provider.verify_claims.iter().all(|claim| holds(&claims, claim)) => {
                return Ok(true);
            }
            Ok(_) => is_proven = true,
            Err(unproven) => worst = worst.max(unproven),
        }
    }
    if is_proven { Ok(false) } else { Err(worst) }
}

fn holds(claims: &Value, claim: &ClaimRequirement) -> bool {
    let found = claim.path.iter().try_fold(claims, |value, name| value.as_object()?.get(name));
    let is_it = |value: &Value| match value {
        Value::String(text) => *text == claim.value,
        Value::Bool(flag) => claim.value == if *flag { "true" } else { "false" },
        Value::Number(number) => number.to_string() == claim.value,
        _ => false,
    };
    match found {
        Some(Value::Array(all)) => all.iter().any(is_it),
        Some(value) => is_it(value),
        None => false,
    }
}

impl Rule {
    fn compile(permission: &Permission, at: &str) -> Result<Self, Fault> {
        let none = HttpPermission::default();
        let http = permission.http.as_ref().unwrap_or(&none);
        if *http == none && permission.jwt.is_none() {
            return Err(Fault::new(at, "it says nothing: name a path, methods, fields or a token"));
        }
        for (n, method) in http.methods.iter().enumerate() {
            let field = || format!("{at}.HTTP.Methods[{n}]");
            if !normal::is_method(method) {
                let why = format!("{method:?} is no method that proxies pass on; use upper case");
                return Err(Fault::new(field(), why));
            }
            if http.methods[..n].contains(method) {
                return Err(Fault::new(field(), "it is listed before"));
            }
        }
        if http.header.len() > FIELDS_MAX {
            return Err(Fault::new(
                format!("{at}.HTTP.Header"),
                format!("{FIELDS_MAX} are the most"),
            ));
        }
        if let Some(jwt) = &permission.jwt {
            check_jwt(jwt, &format!("{at}.JWT"))?;
        }
        let fields = http.header.iter().enumerate();
        let fields =
            fields.map(|(n, field)| FieldRule::compile(field, &format!("{at}.HTTP.Header[{n}]")));
        Ok(Self {
            action: permission.action,
            path: Path::compile(http, &format!("{at}.HTTP"))?,
            methods: http.methods.clone(),
            fields: fields.collect::<Result<_, _>>()?,
            jwt: permission.jwt.clone(),
        })
    }

    fn applies(&self, asked: &Asked<'_>) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|method| method == asked.method))
            && self.path.fits(asked.path, self.action)
            && self.fields.iter().all(|field| field.fits(asked, self.action))
    }
}

impl Path {
    fn compile(http: &HttpPermission, at: &str) -> Result<Self, Fault> {
        let HttpPermission { path_exact, path_prefix, path_regex, .. } = http;
        let given = [path_exact, path_prefix, path_regex];
        if given.iter().filter(|text| !text.is_empty()).count() > 1 {
            return Err(Fault::new(at, "use one of PathExact, PathPrefix and PathRegex"));
        }
        if !path_regex.is_empty() {
            return regex(path_regex, &format!("{at}.PathRegex")).map(Self::Regex);
        }
        let (field, text) = match (path_exact.is_empty(), path_prefix.is_empty()) {
            (true, true) => return Ok(Self::Any),
            (false, _) => ("PathExact", path_exact),
            (true, false) => ("PathPrefix", path_prefix),
        };
        let fault = |why: String| Err(Fault::new(format!("{at}.{field}"), why));
        // Rules are compared with normal paths: one that is not would never apply.
        match normal::target(text.as_bytes(), &AS_WRITTEN) {
            Err(why) => return fault(why.to_string()),
            Ok(Some(normal)) => {
                return fault(format!("no path looks like this: write {normal:?}"));
            }
            Ok(None) if text.contains('?') => {
                return fault("a query is no part of the path".to_owned());
            }
            Ok(None) => {}
        }
        Ok(if path_exact.is_empty() {
            Self::Prefix(text.clone())
        } else {
            Self::Exact(text.clone())
        })
    }

    fn fits(&self, path: &str, action: Action) -> bool {
        let fits = |path: &[u8]| match self {
            Self::Any => true,
            Self::Exact(exact) => path == exact.as_bytes(),
            Self::Prefix(prefix) => path.starts_with(prefix.as_bytes()),
            Self::Regex(regex) => regex.is_match(path),
        };
        fits(path.as_bytes())
            || (action == Action::Deny && normal::meaning(path).is_some_and(|meant| fits(&meant)))
    }
}

impl FieldRule {
    fn compile(field: &HeaderPermission, at: &str) -> Result<Self, Fault> {
        let name = field.name.to_ascii_lowercase();
        let is_name =
            |octet: u8| octet.is_ascii_alphanumeric() || b"-_.!#$&'*+^`|~%".contains(&octet);
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(Fault::new(format!("{at}.Name"), "it is no name of a header field"));
        }
        if NEVER_SEEN.contains(&&*name)
            || name.starts_with("x-hawser-")
            || name.starts_with("x-envoy-")
        {
            let why = "proxies drop this field: it never reaches a callee";
            return Err(Fault::new(format!("{at}.Name"), why));
        }
        let texts = [&field.exact, &field.prefix, &field.suffix, &field.contains, &field.regex];
        let count =
            texts.iter().filter(|text| !text.is_empty()).count() + usize::from(field.present);
        if count != 1 {
            let why = "use one of Present, Exact, Prefix, Suffix, Contains and Regex";
            return Err(Fault::new(at, why));
        }
        let octets = |text: &String| {
            if field.ignore_case { text.to_ascii_lowercase() } else { text.clone() }.into_bytes()
        };
        let test = match texts.map(|text| !text.is_empty()) {
            [true, ..] => Test::Exact(octets(&field.exact)),
            [_, true, ..] => Test::Prefix(octets(&field.prefix)),
            [_, _, true, ..] => Test::Suffix(octets(&field.suffix)),
            [_, _, _, true, _] => Test::Contains(octets(&field.contains)),
            [.., true] => Test::Regex(regex(&field.regex, &format!("{at}.Regex"))?),
            _ => Test::Present,
        };
        if field.ignore_case && matches!(test, Test::Present | Test::Regex(_)) {
            let why = "it goes with Exact, Prefix, Suffix and Contains; in Regex, begin with (?i)";
            return Err(Fault::new(format!("{at}.IgnoreCase"), why));
        }
        Ok(Self { name, test, invert: field.invert, ignore_case: field.ignore_case })
    }

    fn fits(&self, asked: &Asked<'_>, action: Action) -> bool {
        match (action, self.invert) {
            (Action::Deny, false) => self.any(asked),
            // Denied unless the field is plainly so.
            (Action::Deny, true) => !self.only(asked),
            (Action::Allow, false) => self.only(asked),
            // Allowed only if the field is plainly otherwise.
            (Action::Allow, true) => {
                let expected = usize::from(!matches!(self.test, Test::Present));
                self.count(asked) == expected && !self.any(asked)
            }
        }
    }

    /// Whether any reading of any value passes the test: the value, one element of it, all values
    /// as the one list that they stand for (RFC 9110 §5.3), an authority without its port.
    fn any(&self, asked: &Asked<'_>) -> bool {
        if self.name == "host" {
            let authority = asked.authority.as_bytes();
            return self.passes(authority) || self.passes(normal::host(authority));
        }
        // Of cookies HTTP/2 makes fields of their own, which applications get as one (RFC 9113
        // §8.2.3).
        let (separator, joint): (u8, &[&[u8]]) = match self.name.as_str() {
            "cookie" => (b';', &[b"; "]),
            _ => (b',', &[b", ", b","]),
        };
        let (mut count, mut is_any) = (0_usize, false);
        self.each(asked, &mut |value| {
            count += 1;
            let mut elements = value.split(|octet| *octet == separator).map(<[u8]>::trim_ascii);
            is_any |= self.passes(value) || elements.any(|element| self.passes(element));
        });
        is_any || (count > 1 && joint.iter().any(|joint| self.passes(&self.joined(asked, joint))))
    }

    /// All values as one.
    fn joined(&self, asked: &Asked<'_>, joint: &[u8]) -> Vec<u8> {
        let mut whole = Vec::new();
        let mut is_first = true;
        self.each(asked, &mut |value| {
            if !std::mem::take(&mut is_first) {
                whole.extend_from_slice(joint);
            }
            whole.extend_from_slice(value);
        });
        whole
    }

    /// Whether there is one value, and as a whole it passes the test.
    fn only(&self, asked: &Asked<'_>) -> bool {
        let (mut count, mut passes) = (0_usize, false);
        self.each(asked, &mut |value| {
            count += 1;
            passes = self.passes(value);
        });
        count == 1 && passes
    }

    fn count(&self, asked: &Asked<'_>) -> usize {
        let mut count = 0;
        self.each(asked, &mut |_| count += 1);
        count
    }

    fn each(&self, asked: &Asked<'_>, see: &mut dyn FnMut(&[u8])) {
        if self.name == "host" {
            see(asked.authority.as_bytes());
        } else {
            asked.fields.each(&self.name, see);
        }
    }

    fn passes(&self, value: &[u8]) -> bool {
        if self.ignore_case && value.iter().any(u8::is_ascii_uppercase) {
            return self.test.passes(&value.to_ascii_lowercase());
        }
        self.test.passes(value)
    }
}

impl Test {
    fn passes(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(exact) => value == exact,
            Self::Prefix(prefix) => value.starts_with(prefix),
            Self::Suffix(suffix) => value.ends_with(suffix),
            Self::Contains(part) => value.windows(part.len()).any(|window| window == part),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

fn check_jwt(jwt: &JwtRequirement, at: &str) -> Result<(), Fault> {
    if jwt.providers.is_empty() || jwt.providers.len() > PROVIDERS_MAX {
        let why = format!("name between 1 and {PROVIDERS_MAX} jwt-provider entries");
        return Err(Fault::new(format!("{at}.Providers"), why));
    }
    for (n, provider) in jwt.providers.iter().enumerate() {
        let at = format!("{at}.Providers[{n}]");
        if provider.name.is_empty() {
            return Err(Fault::new(format!("{at}.Name"), "is missing"));
        }
        if provider.verify_claims.len() > CLAIMS_MAX {
            return Err(Fault::new(
                format!("{at}.VerifyClaims"),
                format!("{CLAIMS_MAX} are the most"),
            ));
        }
        for (n, claim) in provider.verify_claims.iter().enumerate() {
            if claim.path.is_empty() || claim.path.len() > CLAIM_DEPTH_MAX {
                let why =
                    format!("name between 1 and {CLAIM_DEPTH_MAX} claims, one inside the other");
                return Err(Fault::new(format!("{at}.VerifyClaims[{n}].Path"), why));
            }
        }
    }
    Ok(())
}

/// A regular expression for the whole of a text, of bounded size; matching takes linear time.
fn regex(text: &str, at: &str) -> Result<Regex, Fault> {
    if text.len() > REGEX_OCTETS_MAX {
        return Err(Fault::new(at, format!("{REGEX_OCTETS_MAX} bytes are the most")));
    }
    // On its own first, so that no stray parenthesis reaches out of the group.
    let build = |text: &str| {
        RegexBuilder::new(text)
            // As in RE2, classes are ASCII; and no octet is one that `.` passes over.
            .unicode(false)
            .dot_matches_new_line(true)
            .size_limit(REGEX_SIZE_MAX)
            .dfa_size_limit(REGEX_SIZE_MAX)
            .build()
    };
    build(text)
        .and_then(|_| build(&format!(r"\A(?:{text})\z")))
        .map_err(|why| Fault::new(at, format!("is no regular expression in RE2's syntax: {why}")))
}

/// Rules under which every text that some choice of the mesh leaves as it is stays as it is.
const AS_WRITTEN: normal::Rules = normal::Rules {
    is_on: true,
    merges_slashes: false,
    escaped_slashes: normal::EscapedSlashes::Keep,
    underscores: normal::Underscores::Keep,
    forwarded: normal::Forwarded::Keep,
};
/// Fields that both proxies drop from every request.
const NEVER_SEEN: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];
const PERMISSIONS_MAX: usize = 256;
const FIELDS_MAX: usize = 32;
const PROVIDERS_MAX: usize = 16;
const CLAIMS_MAX: usize = 32;
const CLAIM_DEPTH_MAX: usize = 8;
const REGEX_OCTETS_MAX: usize = 1024;
/// Bytes of one compiled expression.
const REGEX_SIZE_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests;
