//! Tokens, policies and roles: the rows of access control.

use std::fmt;
use std::sync::Arc;

use super::rule::{Access, Resource, Rules};
use super::template::Template;
use crate::clock::UnixTime;

/// What a client shows. It is kept as it is, because who may write tokens may read it again; no
/// log, refusal or debug text ever holds it.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret {
    text: Arc<str>,
    hash: [u8; 32],
}

impl Secret {
    /// The secret `text`, whose SHA-256 is `hash`: it is found by that, so that how long a search
    /// takes tells nothing of the text.
    pub fn new(text: impl Into<Arc<str>>, hash: [u8; 32]) -> Self {
        Self { text: text.into(), hash }
    }

    /// The text, for who may read it.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Its SHA-256.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A right to register one service, with its sidecar, and to discover the others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceIdentity {
    /// The service.
    pub service: Arc<str>,
    /// Where it holds; empty: everywhere.
    pub datacenters: Vec<Arc<str>>,
}

/// A right to register one node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeIdentity {
    /// The node.
    pub node: Arc<str>,
    /// Where it holds.
    pub datacenter: Arc<str>,
}

/// A templated policy with what it is made for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Templated {
    /// Which template.
    pub template: Template,
    /// The name it is made for; none for a template that takes none.
    pub name: Option<Arc<str>>,
    /// Where it holds; empty: everywhere.
    pub datacenters: Vec<Arc<str>>,
}

/// What a token or a role is given.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Grants {
    /// Policies, by id.
    pub policies: Vec<Arc<str>>,
    /// Services whose identity it has.
    pub services: Vec<ServiceIdentity>,
    /// Nodes whose identity it has.
    pub nodes: Vec<NodeIdentity>,
    /// Templated policies.
    pub templates: Vec<Templated>,
}

/// A token.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Token {
    /// Its public name, a UUID.
    pub accessor: Arc<str>,
    /// What its holder shows.
    pub secret: Secret,
    /// What it is for.
    pub description: Arc<str>,
    /// What it may do itself.
    pub grants: Grants,
    /// Roles, by id.
    pub roles: Vec<Arc<str>>,
    /// Whether it holds in this datacenter only.
    pub is_local: bool,
    /// The auth method that it was logged in by.
    pub method: Option<Arc<str>>,
    /// When it was made.
    pub created_at: UnixTime,
    /// The moment from which it is worthless.
    pub expires_at: Option<UnixTime>,
}

impl Token {
    /// Whether it is worthless at `now`.
    pub fn is_expired(&self, now: UnixTime) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

/// A policy: rules with a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// A UUID.
    pub id: Arc<str>,
    /// Its name, unique.
    pub name: Arc<str>,
    /// What it is for.
    pub description: Arc<str>,
    /// The rules as they were written, HCL or JSON.
    pub text: Arc<str>,
    /// The same rules, parsed.
    pub rules: Rules,
    /// Where it holds; empty: everywhere.
    pub datacenters: Vec<Arc<str>>,
}

impl Policy {
    /// The policies that are there without being written, and that nobody changes.
    pub(super) fn builtin() -> [Self; 2] {
        let policy = |id: &str, name: &str, description: &str, rules: Rules| Self {
            id: id.into(),
            name: name.into(),
            description: description.into(),
            text: rules.to_string().into(),
            rules,
            datacenters: Vec::new(),
        };
        let reader = Rules::default().everything(Access::Read);
        let reader = reader.prefix(Resource::Key, "", Access::List);
        [
            policy(
                MANAGEMENT_ID,
                "global-management",
                "A policy that grants unlimited access",
                Rules::default().everything(Access::Write),
            ),
            policy(
                READ_ONLY_ID,
                "builtin/global-read-only",
                "A policy that grants unlimited read-only access to all components",
                reader,
            ),
        ]
    }
}

/// A role: grants with a name, for many tokens at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Role {
    /// A UUID.
    pub id: Arc<str>,
    /// Its name, unique.
    pub name: Arc<str>,
    /// What it is for.
    pub description: Arc<str>,
    /// What its tokens may do.
    pub grants: Grants,
}

/// The id of the policy that allows everything.
pub const MANAGEMENT_ID: &str = "00000000-0000-0000-0000-000000000001";
/// The id of the policy that allows to read everything.
pub const READ_ONLY_ID: &str = "00000000-0000-0000-0000-000000000002";
/// The token of those who show none.
pub const ANONYMOUS_ACCESSOR: &str = "00000000-0000-0000-0000-000000000002";
/// What those who show none are taken to show.
pub const ANONYMOUS_SECRET: &str = "anonymous";
