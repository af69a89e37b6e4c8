//! Access control: tokens, policies, roles, and the changes to them.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::acl::{
    Access, AuthMethod, BindingRule, Change, Dump, Grants, NodeIdentity, Policy, Refusal, Resource,
    Role, Rule, Rules, Secret, Segment, ServiceIdentity, Template, Templated, Token,
};
use hawser_core::catalog::Row;
use hawser_core::clock::{Index, UnixTime};

use crate::field::{Invalid, hash, non_empty, present, required, text_or_empty, texts};
use crate::v1;
use crate::v1::{acl_change, acl_refusal, acl_row, acl_rule};

/// Rules as they travel.
pub fn rules_out(rules: &Rules) -> Vec<v1::AclRule> {
    rules.0.iter().map(Into::into).collect()
}

impl From<&Rule> for v1::AclRule {
    fn from(rule: &Rule) -> Self {
        let segment = match &rule.segment {
            Segment::Whole => None,
            Segment::Exact(name) => Some(acl_rule::Segment::Exact(name.to_string())),
            Segment::Prefix(name) => Some(acl_rule::Segment::Prefix(name.to_string())),
        };
        let (resource, access) = (resource_out(rule.resource), access_out(rule.access));
        Self { resource: resource.into(), access: access.into(), segment }
    }
}

impl TryFrom<v1::AclRule> for Rule {
    type Error = Invalid;

    fn try_from(rule: v1::AclRule) -> Result<Self, Invalid> {
        Ok(Self {
            resource: resource(rule.resource)?,
            access: access(rule.access)?,
            segment: match rule.segment {
                None => Segment::Whole,
                Some(acl_rule::Segment::Exact(name)) => Segment::Exact(name.into()),
                Some(acl_rule::Segment::Prefix(name)) => Segment::Prefix(name.into()),
            },
        })
    }
}

/// All of them, as one set of rules.
///
/// # Errors
/// One about a resource or with a level of access that this release does not know.
pub fn rules(messages: Vec<v1::AclRule>) -> Result<Rules, Invalid> {
    messages.into_iter().map(Rule::try_from).collect::<Result<_, _>>().map(Rules)
}

fn resource_out(resource: Resource) -> v1::AclResource {
    match resource {
        Resource::Acl => v1::AclResource::Acl,
        Resource::Agent => v1::AclResource::Agent,
        Resource::Event => v1::AclResource::Event,
        Resource::Identity => v1::AclResource::Identity,
        Resource::Key => v1::AclResource::Key,
        Resource::Keyring => v1::AclResource::Keyring,
        Resource::Mesh => v1::AclResource::Mesh,
        Resource::Node => v1::AclResource::Node,
        Resource::Operator => v1::AclResource::Operator,
        Resource::Peering => v1::AclResource::Peering,
        Resource::Query => v1::AclResource::Query,
        Resource::Service => v1::AclResource::Service,
        Resource::Intention => v1::AclResource::Intention,
        Resource::Session => v1::AclResource::Session,
    }
}

fn resource(number: i32) -> Result<Resource, Invalid> {
    let known = Resource::ALL.into_iter().find(|known| i32::from(resource_out(*known)) == number);
    known.ok_or_else(|| Invalid::new("acl_rule.resource", format_args!("{number} is unknown")))
}

fn access_out(access: Access) -> v1::AclAccess {
    match access {
        Access::Read => v1::AclAccess::Read,
        Access::List => v1::AclAccess::List,
        Access::Write => v1::AclAccess::Write,
        Access::Deny => v1::AclAccess::Deny,
    }
}

fn access(number: i32) -> Result<Access, Invalid> {
    let all = [Access::Read, Access::List, Access::Write, Access::Deny];
    let known = all.into_iter().find(|known| i32::from(access_out(*known)) == number);
    known.ok_or_else(|| Invalid::new("acl_rule.access", format_args!("{number} is unknown")))
}

fn arcs(texts: Vec<String>) -> Vec<Arc<str>> {
    texts.into_iter().map(Into::into).collect()
}

impl From<&Grants> for v1::AclGrants {
    fn from(grants: &Grants) -> Self {
        let services = grants.services.iter().map(|identity| v1::AclServiceIdentity {
            service: identity.service.to_string(),
            datacenters: texts(&identity.datacenters),
        });
        let nodes = grants.nodes.iter().map(|identity| v1::AclNodeIdentity {
            node: identity.node.to_string(),
            datacenter: identity.datacenter.to_string(),
        });
        let templates = grants.templates.iter().map(|templated| v1::AclTemplated {
            template: templated.template.as_str().to_owned(),
            name: text_or_empty(templated.name.as_ref()),
            datacenters: texts(&templated.datacenters),
        });
        Self {
            policies: texts(&grants.policies),
            services: services.collect(),
            nodes: nodes.collect(),
            templates: templates.collect(),
        }
    }
}

impl TryFrom<v1::AclGrants> for Grants {
    type Error = Invalid;

    fn try_from(grants: v1::AclGrants) -> Result<Self, Invalid> {
        let service = |identity: v1::AclServiceIdentity| ServiceIdentity {
            service: identity.service.into(),
            datacenters: arcs(identity.datacenters),
        };
        let node = |identity: v1::AclNodeIdentity| NodeIdentity {
            node: identity.node.into(),
            datacenter: identity.datacenter.into(),
        };
        let templated = |templated: v1::AclTemplated| {
            let name = non_empty(&templated.name);
            let template = Template::find(&templated.template, name.as_deref())
                .map_err(|why| Invalid::new("acl_templated.template", why))?;
            Ok(Templated { template, name, datacenters: arcs(templated.datacenters) })
        };
        Ok(Self {
            policies: arcs(grants.policies),
            services: grants.services.into_iter().map(service).collect(),
            nodes: grants.nodes.into_iter().map(node).collect(),
            templates: grants.templates.into_iter().map(templated).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Token> for v1::AclToken {
    fn from(token: &Token) -> Self {
        Self {
            accessor: token.accessor.to_string(),
            secret: token.secret.reveal().to_owned(),
            secret_hash: token.secret.hash().to_vec(),
            description: token.description.to_string(),
            grants: Some((&token.grants).into()),
            roles: texts(&token.roles),
            is_local: token.is_local,
            created_at_ms: token.created_at.as_millis(),
            expires_at_ms: token.expires_at.map_or(0, |at| at.as_millis().max(1)),
            auth_method: text_or_empty(token.method.as_ref()),
        }
    }
}

impl TryFrom<v1::AclToken> for Token {
    type Error = Invalid;

    fn try_from(token: v1::AclToken) -> Result<Self, Invalid> {
        Ok(Self {
            accessor: token.accessor.into(),
            secret: Secret::new(token.secret, hash("acl_token.secret_hash", &token.secret_hash)?),
            description: token.description.into(),
            grants: required("acl_token.grants", token.grants)?,
            roles: arcs(token.roles),
            is_local: token.is_local,
            method: non_empty(&token.auth_method),
            created_at: UnixTime::from_millis(token.created_at_ms),
            expires_at: Some(token.expires_at_ms).filter(|at| *at > 0).map(UnixTime::from_millis),
        })
    }
}

impl From<&Policy> for v1::AclPolicy {
    fn from(policy: &Policy) -> Self {
        Self {
            id: policy.id.to_string(),
            name: policy.name.to_string(),
            description: policy.description.to_string(),
            text: policy.text.to_string(),
            rules: rules_out(&policy.rules),
            datacenters: texts(&policy.datacenters),
        }
    }
}

impl TryFrom<v1::AclPolicy> for Policy {
    type Error = Invalid;

    fn try_from(policy: v1::AclPolicy) -> Result<Self, Invalid> {
        Ok(Self {
            id: policy.id.into(),
            name: policy.name.into(),
            description: policy.description.into(),
            text: policy.text.into(),
            rules: rules(policy.rules)?,
            datacenters: arcs(policy.datacenters),
        })
    }
}

impl From<&Role> for v1::AclRole {
    fn from(role: &Role) -> Self {
        Self {
            id: role.id.to_string(),
            name: role.name.to_string(),
            description: role.description.to_string(),
            grants: Some((&role.grants).into()),
        }
    }
}

impl TryFrom<v1::AclRole> for Role {
    type Error = Invalid;

    fn try_from(role: v1::AclRole) -> Result<Self, Invalid> {
        Ok(Self {
            id: role.id.into(),
            name: role.name.into(),
            description: role.description.into(),
            grants: required("acl_role.grants", role.grants)?,
        })
    }
}

impl From<&AuthMethod> for v1::AclAuthMethod {
    fn from(method: &AuthMethod) -> Self {
        let ttl = method.token_ttl.map_or(0, |ttl| ttl.as_millis().max(1));
        Self {
            name: method.name.to_string(),
            kind: method.kind.as_str().to_owned(),
            display_name: method.display_name.to_string(),
            description: method.description.to_string(),
            token_ttl_ms: u64::try_from(ttl).unwrap_or(u64::MAX),
            is_global: method.is_global,
            config: method.config.to_string(),
        }
    }
}

impl TryFrom<v1::AclAuthMethod> for AuthMethod {
    type Error = Invalid;

    fn try_from(method: v1::AclAuthMethod) -> Result<Self, Invalid> {
        let ttl = Some(method.token_ttl_ms).filter(|ttl| *ttl > 0);
        Ok(Self {
            name: method.name.into(),
            kind: method.kind.parse().map_err(|why| Invalid::new("acl_auth_method.kind", why))?,
            display_name: method.display_name.into(),
            description: method.description.into(),
            token_ttl: ttl.map(Duration::from_millis),
            is_global: method.is_global,
            config: method.config.into(),
        })
    }
}

impl From<&BindingRule> for v1::AclBindingRule {
    fn from(rule: &BindingRule) -> Self {
        Self {
            id: rule.id.to_string(),
            description: rule.description.to_string(),
            auth_method: rule.method.to_string(),
            selector: rule.selector.to_string(),
            kind: rule.kind.as_str().to_owned(),
            name: rule.name.to_string(),
            variable: text_or_empty(rule.variable.as_ref()),
        }
    }
}

impl TryFrom<v1::AclBindingRule> for BindingRule {
    type Error = Invalid;

    fn try_from(rule: v1::AclBindingRule) -> Result<Self, Invalid> {
        Ok(Self {
            id: rule.id.into(),
            description: rule.description.into(),
            method: rule.auth_method.into(),
            selector: rule.selector.into(),
            kind: rule.kind.parse().map_err(|why| Invalid::new("acl_binding_rule.kind", why))?,
            name: rule.name.into(),
            variable: non_empty(&rule.variable),
        })
    }
}

impl From<&Change> for v1::AclChange {
    fn from(change: &Change) -> Self {
        use acl_change::Kind;
        let kind = match change {
            Change::Bootstrap { token, reset } => Kind::Bootstrap(v1::AclBootstrap {
                token: Some(token.into()),
                reset: reset.map_or(0, |index| index.0),
            }),
            Change::PutToken(token) => Kind::PutToken(token.into()),
            Change::DropTokens(accessors) => {
                Kind::DropTokens(v1::AclTokens { accessors: texts(accessors) })
            }
            Change::PutPolicy(policy) => Kind::PutPolicy(policy.into()),
            Change::DropPolicy(id) => Kind::DropPolicy(id.to_string()),
            Change::PutRole(role) => Kind::PutRole(role.into()),
            Change::DropRole(id) => Kind::DropRole(id.to_string()),
            Change::PutMethod(method) => Kind::PutAuthMethod(method.into()),
            Change::DropMethod(name) => Kind::DropAuthMethod(name.to_string()),
            Change::PutBinding(rule) => Kind::PutBindingRule(rule.into()),
            Change::DropBinding(id) => Kind::DropBindingRule(id.to_string()),
            Change::Replace { expected, change } => Kind::Replace(Box::new(v1::AclReplace {
                expected: expected.0,
                change: Some(Box::new((&**change).into())),
            })),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::AclChange> for Change {
    type Error = Invalid;

    fn try_from(change: v1::AclChange) -> Result<Self, Invalid> {
        use acl_change::Kind;
        Ok(match present("acl_change.kind", change.kind)? {
            Kind::Bootstrap(bootstrap) => Self::Bootstrap {
                token: required("acl_bootstrap.token", bootstrap.token)?,
                reset: Some(Index(bootstrap.reset)).filter(|index| index.0 > 0),
            },
            Kind::PutToken(token) => Self::PutToken(token.try_into()?),
            Kind::DropTokens(tokens) => {
                Self::DropTokens(tokens.accessors.into_iter().map(Into::into).collect())
            }
            Kind::PutPolicy(policy) => Self::PutPolicy(policy.try_into()?),
            Kind::DropPolicy(id) => Self::DropPolicy(id.into()),
            Kind::PutRole(role) => Self::PutRole(role.try_into()?),
            Kind::DropRole(id) => Self::DropRole(id.into()),
            Kind::PutAuthMethod(method) => Self::PutMethod(method.try_into()?),
            Kind::DropAuthMethod(name) => Self::DropMethod(name.into()),
            Kind::PutBindingRule(rule) => Self::PutBinding(rule.try_into()?),
            Kind::DropBindingRule(id) => Self::DropBinding(id.into()),
            Kind::Replace(replace) => {
                let change = *present("acl_replace.change", replace.change)?;
                if matches!(change.kind, Some(Kind::Replace(_))) {
                    return Err(Invalid::new("acl_replace.change", "it is another replacement"));
                }
                let (expected, change) = (Index(replace.expected), Box::new(change.try_into()?));
                Self::Replace { expected, change }
            }
        })
    }
}

impl From<&Refusal> for v1::AclRefusal {
    fn from(refusal: &Refusal) -> Self {
        use acl_refusal::Kind;
        let kind = match refusal {
            Refusal::Bootstrapped { reset } => Kind::Bootstrapped(reset.0),
            Refusal::NameTaken { what, name } => Kind::NameTaken(v1::AclNameTaken {
                what: (*what).to_owned(),
                name: name.to_string(),
            }),
            Refusal::Secret => Kind::Secret(v1::AclNothing {}),
            Refusal::Changed => Kind::Changed(v1::AclNothing {}),
            Refusal::Builtin { what } => Kind::Builtin(what.to_string()),
            Refusal::Full { what, max } => {
                let max = u64::try_from(*max).unwrap_or(u64::MAX);
                Kind::Full(v1::AclFull { what: (*what).to_owned(), max })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::AclRefusal> for Refusal {
    type Error = Invalid;

    fn try_from(refusal: v1::AclRefusal) -> Result<Self, Invalid> {
        use acl_refusal::Kind;
        let known = |field, words: &[&'static str], word: &str| {
            let found = words.iter().copied().find(|known| *known == word);
            found.ok_or_else(|| Invalid::new(field, "no word that this release knows"))
        };
        Ok(match present("acl_refusal.kind", refusal.kind)? {
            Kind::Bootstrapped(index) => Self::Bootstrapped { reset: Index(index) },
            Kind::NameTaken(taken) => Self::NameTaken {
                what: known("acl_name_taken.what", &NAMED, &taken.what)?,
                name: taken.name.into(),
            },
            Kind::Secret(v1::AclNothing {}) => Self::Secret,
            Kind::Changed(v1::AclNothing {}) => Self::Changed,
            Kind::Builtin(what) => Self::Builtin { what: what.into() },
            Kind::Full(full) => Self::Full {
                what: known("acl_full.what", &TABLES, &full.what)?,
                max: usize::try_from(full.max).unwrap_or(usize::MAX),
            },
        })
    }
}

/// The rows of a snapshot that hold `dump`; none while access control was never used.
pub(crate) fn rows(dump: &Dump) -> impl Iterator<Item = v1::AclRow> + '_ {
    use acl_row::Kind;
    fn row<T>(row: &Row<T>, kind: Kind) -> v1::AclRow {
        v1::AclRow { kind: Some(kind), created: row.created.0, modified: row.modified.0 }
    }
    let bootstrapped = dump.bootstrapped.map_or(0, |index| index.0);
    let meta = Kind::Meta(v1::AclMeta { bootstrapped, index: dump.index.0 });
    let meta =
        (dump.index > Index(0)).then_some(v1::AclRow { kind: Some(meta), created: 0, modified: 0 });
    let tokens = dump.tokens.iter().map(|held| row(held, Kind::Token((&*held.value).into())));
    let policies = dump.policies.iter().map(|held| row(held, Kind::Policy((&*held.value).into())));
    let roles = dump.roles.iter().map(|held| row(held, Kind::Role((&*held.value).into())));
    let methods =
        dump.methods.iter().map(|held| row(held, Kind::AuthMethod((&*held.value).into())));
    let bindings =
        dump.bindings.iter().map(|held| row(held, Kind::BindingRule((&*held.value).into())));
    meta.into_iter().chain(tokens).chain(policies).chain(roles).chain(methods).chain(bindings)
}

/// Adds one row to `dump`.
pub(crate) fn add(dump: &mut Dump, message: v1::AclRow) -> Result<(), Invalid> {
    use acl_row::Kind;
    fn stored<T>(value: T, created: u64, modified: u64) -> Row<T> {
        Row { value: Arc::new(value), created: Index(created), modified: Index(modified) }
    }
    let (created, modified) = (message.created, message.modified);
    match present("acl_row.kind", message.kind)? {
        Kind::Token(token) => dump.tokens.push(stored(token.try_into()?, created, modified)),
        Kind::Policy(policy) => dump.policies.push(stored(policy.try_into()?, created, modified)),
        Kind::Role(role) => dump.roles.push(stored(role.try_into()?, created, modified)),
        Kind::AuthMethod(method) => {
            dump.methods.push(stored(method.try_into()?, created, modified));
        }
        Kind::BindingRule(rule) => {
            dump.bindings.push(stored(rule.try_into()?, created, modified));
        }
        Kind::Meta(meta) => {
            dump.bootstrapped = Some(Index(meta.bootstrapped)).filter(|index| index.0 > 0);
            dump.index = Index(meta.index);
        }
    }
    Ok(())
}

const NAMED: [&str; 2] = ["policy", "role"];
const TABLES: [&str; 5] =
    ["ACL tokens", "ACL policies", "ACL roles", "ACL auth methods", "ACL binding rules"];
