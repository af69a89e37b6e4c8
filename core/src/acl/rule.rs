//! Rules: on which resource, for which names, how much is allowed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What a rule is about.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Resource {
    /// Tokens, policies and roles.
    Acl,
    /// An agent's own API, by node name.
    Agent,
    /// User events, by name.
    Event,
    /// Identities of workloads, by name.
    Identity,
    /// Keys of the key-value store.
    Key,
    /// Gossip encryption keys.
    Keyring,
    /// Settings of the whole mesh.
    Mesh,
    /// Nodes of the catalog, by name.
    Node,
    /// The servers themselves.
    Operator,
    /// Peerings with other clusters.
    Peering,
    /// Prepared queries, by name.
    Query,
    /// Services, by name.
    Service,
    /// Who may call a service, by the callee's name.
    Intention,
    /// Sessions, by node name.
    Session,
}

impl Resource {
    /// Every resource, by the order of its name in Consul's documentation.
    pub const ALL: [Self; 14] = [
        Self::Acl,
        Self::Agent,
        Self::Event,
        Self::Identity,
        Self::Key,
        Self::Keyring,
        Self::Mesh,
        Self::Node,
        Self::Operator,
        Self::Peering,
        Self::Query,
        Self::Service,
        Self::Intention,
        Self::Session,
    ];

    /// Its word in rules and refusals.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acl => "acl",
            Self::Agent => "agent",
            Self::Event => "event",
            Self::Identity => "identity",
            Self::Key => "key",
            Self::Keyring => "keyring",
            Self::Mesh => "mesh",
            Self::Node => "node",
            Self::Operator => "operator",
            Self::Peering => "peering",
            Self::Query => "query",
            Self::Service => "service",
            Self::Intention => "intention",
            Self::Session => "session",
        }
    }

    /// Whether its rules name nothing: `operator = "read"`.
    pub const fn is_single(self) -> bool {
        matches!(self, Self::Acl | Self::Keyring | Self::Mesh | Self::Operator | Self::Peering)
    }
}

/// How much a rule allows. What denies outranks what allows, and what allows more what allows
/// less: so several policies merge, in the order of the variants.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Access {
    /// To see it.
    Read,
    /// To see it and, below a prefix of keys, the list of them.
    List,
    /// To see and to change it.
    Write,
    /// Nothing.
    Deny,
}

impl Access {
    /// Its word in rules.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
            Self::Deny => "deny",
        }
    }

    /// Whether it is enough where `wanted` is needed.
    pub fn grants(self, wanted: Self) -> bool {
        self != Self::Deny && self >= wanted
    }
}

/// A word that is no level of access.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no level of access: use \"read\", \"write\", \"deny\" or, for keys, \"list\"")]
pub struct InvalidAccess(String);

impl FromStr for Access {
    type Err = InvalidAccess;

    fn from_str(text: &str) -> Result<Self, InvalidAccess> {
        match text {
            "read" => Ok(Self::Read),
            "list" => Ok(Self::List),
            "write" => Ok(Self::Write),
            "deny" => Ok(Self::Deny),
            _ => Err(InvalidAccess(text.to_owned())),
        }
    }
}

/// Which names a rule covers.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Segment {
    /// The resource as a whole: it has no names.
    Whole,
    /// This name.
    Exact(Arc<str>),
    /// Every name that begins so.
    Prefix(Arc<str>),
}

/// One rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// What it is about.
    pub resource: Resource,
    /// For which names.
    pub segment: Segment,
    /// How much it allows.
    pub access: Access,
}

/// The rules of one policy.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules(pub Vec<Rule>);

impl Rules {
    /// Adds a rule on the resource as a whole.
    #[must_use]
    pub fn whole(mut self, resource: Resource, access: Access) -> Self {
        self.0.push(Rule { resource, segment: Segment::Whole, access });
        self
    }

    /// Adds a rule for one name.
    #[must_use]
    pub fn exact(mut self, resource: Resource, name: &str, access: Access) -> Self {
        self.0.push(Rule { resource, segment: Segment::Exact(name.into()), access });
        self
    }

    /// Adds a rule for all names that begin with `prefix`.
    #[must_use]
    pub fn prefix(mut self, resource: Resource, prefix: &str, access: Access) -> Self {
        self.0.push(Rule { resource, segment: Segment::Prefix(prefix.into()), access });
        self
    }

    /// Adds a rule for one service or, as a prefix, for many; with what it implies: who may use a
    /// service may see who calls it.
    #[must_use]
    pub fn service(mut self, segment: Segment, access: Access) -> Self {
        let implied = implied(access);
        self.0.push(Rule { resource: Resource::Service, segment: segment.clone(), access });
        self.0.push(Rule { resource: Resource::Intention, segment, access: implied });
        self
    }

    /// Adds `access` on everything there is.
    #[must_use]
    pub(crate) fn everything(self, access: Access) -> Self {
        Resource::ALL.into_iter().fold(self, |rules, resource| match resource.is_single() {
            true => rules.whole(resource, access),
            false => rules.prefix(resource, "", access),
        })
    }
}

/// What a rule on a service says of its intentions when it does not mention them.
const fn implied(access: Access) -> Access {
    match access {
        Access::Deny => Access::Deny,
        Access::Read | Access::List | Access::Write => Access::Read,
    }
}

/// The rules as HCL, as an operator would write them.
impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Rule { resource, segment, access } in &self.0 {
            let (word, level) = (resource.as_str(), access.as_str());
            // Intentions are a field of the rule on the service: see below.
            let (Segment::Exact(name) | Segment::Prefix(name)) = segment else {
                writeln!(f, "{word} = \"{level}\"")?;
                continue;
            };
            if *resource == Resource::Intention {
                continue;
            }
            let ending = if matches!(segment, Segment::Prefix(_)) { "_prefix" } else { "" };
            writeln!(f, "{word}{ending} {name:?} {{\n  policy = \"{level}\"")?;
            let intentions = self.0.iter().find(|rule| {
                *resource == Resource::Service
                    && rule.resource == Resource::Intention
                    && rule.segment == *segment
            });
            if let Some(rule) = intentions.filter(|rule| rule.access != implied(*access)) {
                writeln!(f, "  intentions = \"{}\"", rule.access.as_str())?;
            }
            writeln!(f, "}}")?;
        }
        Ok(())
    }
}
