//! The tables of access control: what may be written to them, and what a secret stands for.

use std::collections::BTreeSet;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use super::authorizer::{Authorizer, DefaultPolicy};
use super::method::{AuthMethod, BindKind, BindingRule, Identity, InvalidBinding};
use super::model::{
    ANONYMOUS_ACCESSOR, Grants, MANAGEMENT_ID, NodeIdentity, Policy, Role, ServiceIdentity,
    Templated, Token,
};
use super::rule::Rules;
use super::template::{InvalidTemplate, Template};
use crate::catalog::Row;
use crate::clock::{Index, UnixTime};
use crate::filter::{Filter, InvalidFilter};

/// Every token, policy and role, and every way to log in.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    tokens: RedBlackTreeMapSync<Arc<str>, Row<Token>>,
    by_secret: RedBlackTreeMapSync<[u8; 32], Arc<str>>,
    policies: RedBlackTreeMapSync<Arc<str>, Row<Policy>>,
    roles: RedBlackTreeMapSync<Arc<str>, Row<Role>>,
    methods: RedBlackTreeMapSync<Arc<str>, Row<AuthMethod>>,
    bindings: RedBlackTreeMapSync<Arc<str>, Row<BindingRule>>,
    bootstrapped: Option<Index>,
    index: Index,
}

/// A change that the tables refuse.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// There was a first token before.
    #[error("ACL bootstrap no longer allowed (reset index: {reset})")]
    Bootstrapped {
        /// What the reset file must say to allow it once more.
        reset: Index,
    },
    /// Another one has the name.
    #[error("Invalid {what}: a {what} with Name {name:?} already exists")]
    NameTaken {
        /// A policy or a role.
        what: &'static str,
        /// The name.
        name: Arc<str>,
    },
    /// Another token has the secret, or this one had another.
    #[error("the SecretID of a token is its own, and stays the same")]
    Secret,
    /// It is one that nobody changes.
    #[error("{what} is built in: it can be neither changed nor deleted")]
    Builtin {
        /// Which.
        what: Arc<str>,
    },
    /// Somebody else changed or deleted it first.
    #[error("it was changed or deleted meanwhile: read it, and try again")]
    Changed,
    /// There are too many.
    #[error("there are {max} {what} already, which is the most: remove some first")]
    Full {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        max: usize,
    },
}

/// A binding rule that is about somebody, and makes no sense for them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("binding rule {rule}: {why}")]
pub struct BindError {
    /// Its id.
    pub rule: Arc<str>,
    /// What is wrong.
    pub why: BindFault,
}

/// What is wrong with a binding rule.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BindFault {
    /// Its selector cannot be put to who logs in.
    #[error("Selector: {0}")]
    Selector(InvalidFilter),
    /// Its name makes none.
    #[error("BindName: {0}")]
    Name(InvalidBinding),
    /// There is no such templated policy.
    #[error("BindName: {0}")]
    Template(InvalidTemplate),
}

/// What a secret stands for.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What its token may do.
    pub authorizer: Authorizer,
    /// The moment from which it stands for nothing.
    pub expires_at: Option<UnixTime>,
}

impl Tables {
    /// The last entry that changed them.
    pub fn index(&self) -> Index {
        self.index
    }

    /// The entry that made the first token; none while there was none.
    pub fn bootstrapped(&self) -> Option<Index> {
        self.bootstrapped
    }

    /// Every token, by accessor. Those that expired are there until the leader removes them.
    pub fn tokens(&self) -> impl Iterator<Item = &Row<Token>> {
        self.tokens.values()
    }

    /// The token that `accessor` names.
    pub fn token(&self, accessor: &str) -> Option<&Row<Token>> {
        self.tokens.get(accessor)
    }

    /// The token whose secret has `hash`.
    pub fn token_by_secret(&self, hash: &[u8; 32]) -> Option<&Row<Token>> {
        self.tokens.get(self.by_secret.get(hash)?)
    }

    /// Every policy, those that are built in first.
    pub fn policies(&self) -> impl Iterator<Item = Row<Policy>> + '_ {
        let builtin = Policy::builtin().into_iter().map(|policy| Row {
            value: Arc::new(policy),
            created: Index(1),
            modified: Index(1),
        });
        builtin.chain(self.policies.values().cloned())
    }

    /// The policy with the id.
    pub fn policy(&self, id: &str) -> Option<Row<Policy>> {
        match self.policies.get(id) {
            Some(row) => Some(row.clone()),
            None => self.policies().take(2).find(|row| &*row.value.id == id),
        }
    }

    /// The policy with the name.
    pub fn policy_named(&self, name: &str) -> Option<Row<Policy>> {
        self.policies().find(|row| &*row.value.name == name)
    }

    /// Every role, by id.
    pub fn roles(&self) -> impl Iterator<Item = &Row<Role>> {
        self.roles.values()
    }

    /// The role with the id.
    pub fn role(&self, id: &str) -> Option<&Row<Role>> {
        self.roles.get(id)
    }

    /// The role with the name.
    pub fn role_named(&self, name: &str) -> Option<&Row<Role>> {
        self.roles.values().find(|row| &*row.value.name == name)
    }

    /// Every auth method, by name.
    pub fn methods(&self) -> impl Iterator<Item = &Row<AuthMethod>> {
        self.methods.values()
    }

    /// The auth method with the name.
    pub fn method(&self, name: &str) -> Option<&Row<AuthMethod>> {
        self.methods.get(name)
    }

    /// Every binding rule, by id.
    pub fn bindings(&self) -> impl Iterator<Item = &Row<BindingRule>> {
        self.bindings.values()
    }

    /// The binding rule with the id.
    pub fn binding(&self, id: &str) -> Option<&Row<BindingRule>> {
        self.bindings.get(id)
    }

    /// What `identity` gets who logs in by `method` in `datacenter`: grants and roles. Roles and
    /// policies that are not there are left out; nothing at all is a refusal to who asks.
    ///
    /// # Errors
    /// [`BindError`]: a rule that is about `identity` makes no sense for it.
    pub fn bind(
        &self,
        method: &str,
        identity: &Identity,
        datacenter: &str,
    ) -> Result<(Grants, Vec<Arc<str>>), BindError> {
        let (mut grants, mut roles) = (Grants::default(), Vec::new());
        let own = self.bindings.values().map(|row| &row.value);
        for rule in own.filter(|rule| &*rule.method == method) {
            let wrong = |why| BindError { rule: rule.id.clone(), why };
            if !rule.selector.is_empty() {
                let selects = Filter::parse(&rule.selector)
                    .and_then(|selector| selector.matches(&identity.fields))
                    .map_err(|why| wrong(BindFault::Selector(why)))?;
                if !selects {
                    continue;
                }
            }
            let (name, variable) =
                rule.names(identity).map_err(|why| wrong(BindFault::Name(why)))?;
            match rule.kind {
                BindKind::Service => grants
                    .services
                    .push(ServiceIdentity { service: name.into(), datacenters: Vec::new() }),
                BindKind::Node => grants
                    .nodes
                    .push(NodeIdentity { node: name.into(), datacenter: datacenter.into() }),
                BindKind::Role => {
                    roles.extend(self.role_named(&name).map(|row| row.value.id.clone()));
                }
                BindKind::Policy => {
                    grants
                        .policies
                        .extend(self.policy_named(&name).map(|row| row.value.id.clone()));
                }
                BindKind::Template => {
                    let template = Template::find(&name, variable.as_deref())
                        .map_err(|why| wrong(BindFault::Template(why)))?;
                    let (name, datacenters) = (variable.map(Into::into), Vec::new());
                    grants.templates.push(Templated { template, name, datacenters });
                }
            }
        }
        roles.sort();
        roles.dedup();
        grants.policies.sort();
        grants.policies.dedup();
        Ok((grants, roles))
    }

    /// What the secret with `hash` stands for at `now` in `datacenter`; none when it is of no
    /// token, or of one that expired.
    pub fn resolve(
        &self,
        hash: &[u8; 32],
        now: UnixTime,
        datacenter: &str,
        default: DefaultPolicy,
    ) -> Option<Resolved> {
        let token = &self.token_by_secret(hash)?.value;
        if token.is_expired(now) {
            return None;
        }
        let mut rules = self.rules(&token.grants, datacenter);
        for role in token.roles.iter().filter_map(|id| self.roles.get(id)) {
            rules.extend(self.rules(&role.value.grants, datacenter));
        }
        let authorizer = Authorizer::new(token.accessor.clone(), default, &rules);
        Some(Resolved { authorizer, expires_at: token.expires_at })
    }

    /// What those may do who show no secret, while there is no token for them.
    pub fn anonymous(default: DefaultPolicy) -> Authorizer {
        Authorizer::new(ANONYMOUS_ACCESSOR.into(), default, [])
    }

    fn rules(&self, grants: &Grants, datacenter: &str) -> Vec<Rules> {
        let holds = |places: &[Arc<str>]| {
            places.is_empty() || places.iter().any(|place| &**place == datacenter)
        };
        let policies = grants.policies.iter().filter_map(|id| self.policy(id));
        let policies = policies.filter(|row| holds(&row.value.datacenters));
        let services = grants.services.iter().filter(|identity| holds(&identity.datacenters));
        let nodes = grants.nodes.iter().filter(|identity| &*identity.datacenter == datacenter);
        let templates = grants.templates.iter().filter(|templated| holds(&templated.datacenters));
        policies
            .map(|row| row.value.rules.clone())
            .chain(services.map(|identity| Template::Service.rules(&identity.service)))
            .chain(nodes.map(|identity| Template::Node.rules(&identity.node)))
            .chain(templates.map(|templated| {
                templated.template.rules(templated.name.as_deref().unwrap_or_default())
            }))
            .collect()
    }

    /// Stores the first token, which may be done once; and once more with `reset` saying when.
    pub(crate) fn bootstrap(
        &mut self,
        token: Token,
        reset: Option<Index>,
        at: Index,
    ) -> Result<(), Refusal> {
        if let Some(before) = self.bootstrapped
            && reset != Some(before)
        {
            return Err(Refusal::Bootstrapped { reset: before });
        }
        self.put_token(token, at)?;
        self.bootstrapped = Some(at);
        Ok(())
    }

    pub(crate) fn put_token(&mut self, token: Token, at: Index) -> Result<(), Refusal> {
        let held = self.tokens.get(&token.accessor);
        let owner = self.by_secret.get(token.secret.hash());
        if owner.is_some_and(|owner| *owner != token.accessor)
            || held.is_some_and(|held| held.value.secret != token.secret)
        {
            return Err(Refusal::Secret);
        }
        // The way that it was logged in by may be gone since.
        if token.method.as_ref().is_some_and(|method| self.method(method).is_none()) {
            return Err(Refusal::Changed);
        }
        if held.is_none() && self.tokens.size() >= TOKENS_MAX {
            return Err(Refusal::Full { what: "ACL tokens", max: TOKENS_MAX });
        }
        let created = held.map_or(at, |held| held.created);
        self.index = at;
        self.by_secret.insert_mut(*token.secret.hash(), token.accessor.clone());
        let row = Row { created, modified: at, value: Arc::new(token) };
        self.tokens.insert_mut(row.value.accessor.clone(), row);
        Ok(())
    }

    pub(crate) fn drop_tokens(
        &mut self,
        accessors: &BTreeSet<Arc<str>>,
        at: Index,
    ) -> Result<(), Refusal> {
        if accessors.contains(ANONYMOUS_ACCESSOR) {
            return Err(Refusal::Builtin { what: "the anonymous token".into() });
        }
        for accessor in accessors {
            let Some(row) = self.tokens.get(accessor) else { continue };
            let hash = *row.value.secret.hash();
            self.by_secret.remove_mut(&hash);
            self.tokens.remove_mut(accessor);
            self.index = at;
        }
        Ok(())
    }

    pub(crate) fn put_policy(&mut self, policy: Policy, at: Index) -> Result<(), Refusal> {
        if Policy::builtin().iter().any(|builtin| builtin.id == policy.id) {
            return Err(Refusal::Builtin { what: policy.name });
        }
        if self.policy_named(&policy.name).is_some_and(|row| row.value.id != policy.id) {
            return Err(Refusal::NameTaken { what: "policy", name: policy.name });
        }
        let held = self.policies.get(&policy.id);
        if held.is_none() && self.policies.size() >= POLICIES_MAX {
            return Err(Refusal::Full { what: "ACL policies", max: POLICIES_MAX });
        }
        let created = held.map_or(at, |held| held.created);
        self.index = at;
        let row = Row { created, modified: at, value: Arc::new(policy) };
        self.policies.insert_mut(row.value.id.clone(), row);
        Ok(())
    }

    pub(crate) fn drop_policy(&mut self, id: &str, at: Index) -> Result<(), Refusal> {
        if let Some(builtin) = Policy::builtin().into_iter().find(|builtin| &*builtin.id == id) {
            return Err(Refusal::Builtin { what: builtin.name });
        }
        if self.policies.remove_mut(id) {
            self.index = at;
        }
        Ok(())
    }

    pub(crate) fn put_role(&mut self, role: Role, at: Index) -> Result<(), Refusal> {
        if self.role_named(&role.name).is_some_and(|row| row.value.id != role.id) {
            return Err(Refusal::NameTaken { what: "role", name: role.name });
        }
        let held = self.roles.get(&role.id);
        if held.is_none() && self.roles.size() >= ROLES_MAX {
            return Err(Refusal::Full { what: "ACL roles", max: ROLES_MAX });
        }
        let created = held.map_or(at, |held| held.created);
        self.index = at;
        let row = Row { created, modified: at, value: Arc::new(role) };
        self.roles.insert_mut(row.value.id.clone(), row);
        Ok(())
    }

    pub(crate) fn drop_role(&mut self, id: &str, at: Index) {
        if self.roles.remove_mut(id) {
            self.index = at;
        }
    }

    pub(crate) fn put_method(&mut self, method: AuthMethod, at: Index) -> Result<(), Refusal> {
        let held = self.methods.get(&method.name);
        if held.is_none() && self.methods.size() >= METHODS_MAX {
            return Err(Refusal::Full { what: "ACL auth methods", max: METHODS_MAX });
        }
        let created = held.map_or(at, |held| held.created);
        self.index = at;
        let row = Row { created, modified: at, value: Arc::new(method) };
        self.methods.insert_mut(row.value.name.clone(), row);
        Ok(())
    }

    /// Removes an auth method with its binding rules and the tokens that it gave.
    pub(crate) fn drop_method(&mut self, name: &str, at: Index) {
        if !self.methods.remove_mut(name) {
            return;
        }
        self.index = at;
        let rules = self.bindings.values().filter(|row| &*row.value.method == name);
        let rules: Vec<Arc<str>> = rules.map(|row| row.value.id.clone()).collect();
        for id in &rules {
            self.bindings.remove_mut(id);
        }
        let tokens = self.tokens.values().filter(|row| row.value.method.as_deref() == Some(name));
        let tokens: Vec<Row<Token>> = tokens.cloned().collect();
        for row in tokens {
            self.by_secret.remove_mut(row.value.secret.hash());
            self.tokens.remove_mut(&row.value.accessor);
        }
    }

    pub(crate) fn put_binding(&mut self, rule: BindingRule, at: Index) -> Result<(), Refusal> {
        if self.method(&rule.method).is_none() {
            return Err(Refusal::Changed);
        }
        let held = self.bindings.get(&rule.id);
        if held.is_none() && self.bindings.size() >= BINDINGS_MAX {
            return Err(Refusal::Full { what: "ACL binding rules", max: BINDINGS_MAX });
        }
        let created = held.map_or(at, |held| held.created);
        self.index = at;
        let row = Row { created, modified: at, value: Arc::new(rule) };
        self.bindings.insert_mut(row.value.id.clone(), row);
        Ok(())
    }

    pub(crate) fn drop_binding(&mut self, id: &str, at: Index) {
        if self.bindings.remove_mut(id) {
            self.index = at;
        }
    }

    /// Tokens that are worthless at `now`, at most `max` of them.
    pub fn expired(&self, now: UnixTime, max: usize) -> BTreeSet<Arc<str>> {
        let expired = self.tokens.values().filter(|row| row.value.is_expired(now));
        expired.take(max).map(|row| row.value.accessor.clone()).collect()
    }

    /// Whether some token that holds at `now` may do everything.
    pub fn has_management(&self, now: UnixTime) -> bool {
        let manages = |id: &Arc<str>| &**id == MANAGEMENT_ID;
        self.tokens
            .values()
            .any(|row| !row.value.is_expired(now) && row.value.grants.policies.iter().any(manages))
    }

    /// The tables taken apart.
    pub(crate) fn dump(&self) -> Dump {
        Dump {
            tokens: self.tokens.values().cloned().collect(),
            policies: self.policies.values().cloned().collect(),
            roles: self.roles.values().cloned().collect(),
            methods: self.methods.values().cloned().collect(),
            bindings: self.bindings.values().cloned().collect(),
            bootstrapped: self.bootstrapped,
            index: self.index,
        }
    }

    /// The tables that `dump` was taken of.
    pub(crate) fn restore(dump: Dump) -> Self {
        let by_id = |row: Row<Policy>| (row.value.id.clone(), row);
        Self {
            by_secret: dump
                .tokens
                .iter()
                .map(|row| (*row.value.secret.hash(), row.value.accessor.clone()))
                .collect(),
            tokens: dump.tokens.into_iter().map(|row| (row.value.accessor.clone(), row)).collect(),
            policies: dump.policies.into_iter().map(by_id).collect(),
            roles: dump.roles.into_iter().map(|row| (row.value.id.clone(), row)).collect(),
            methods: dump.methods.into_iter().map(|row| (row.value.name.clone(), row)).collect(),
            bindings: dump.bindings.into_iter().map(|row| (row.value.id.clone(), row)).collect(),
            bootstrapped: dump.bootstrapped,
            index: dump.index,
        }
    }
}

/// The tables taken apart: what a snapshot holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Dump {
    /// Tokens.
    pub tokens: Vec<Row<Token>>,
    /// Policies, without those that are built in.
    pub policies: Vec<Row<Policy>>,
    /// Roles.
    pub roles: Vec<Row<Role>>,
    /// Auth methods.
    pub methods: Vec<Row<AuthMethod>>,
    /// Binding rules.
    pub bindings: Vec<Row<BindingRule>>,
    /// The entry that made the first token.
    pub bootstrapped: Option<Index>,
    /// The last entry that changed them.
    pub index: Index,
}

impl Dump {
    /// Adds the rows of `other`.
    pub(crate) fn append(&mut self, other: Self) {
        self.tokens.extend(other.tokens);
        self.policies.extend(other.policies);
        self.roles.extend(other.roles);
        self.methods.extend(other.methods);
        self.bindings.extend(other.bindings);
        self.bootstrapped = self.bootstrapped.or(other.bootstrapped);
        self.index = self.index.max(other.index);
    }
}

const TOKENS_MAX: usize = 100_000;
const POLICIES_MAX: usize = 10_000;
const ROLES_MAX: usize = 10_000;
const METHODS_MAX: usize = 1_000;
const BINDINGS_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::super::model::{NodeIdentity, READ_ONLY_ID, Secret, ServiceIdentity, Templated};
    use super::super::rule::{Access, Resource};
    use super::*;

    const NOON: UnixTime = UnixTime::from_secs(1_000_000);
    const LATER: UnixTime = UnixTime::from_secs(1_000_010);

    fn token(number: u8) -> Token {
        Token {
            accessor: format!("accessor-{number}").into(),
            secret: Secret::new(format!("secret-{number}"), [number; 32]),
            description: "".into(),
            grants: Grants::default(),
            roles: Vec::new(),
            is_local: false,
            method: None,
            created_at: NOON,
            expires_at: None,
        }
    }

    fn policy(id: &str, name: &str, rules: Rules) -> Policy {
        let text = rules.to_string().into();
        let (id, name) = (id.into(), name.into());
        Policy { id, name, description: "".into(), text, rules, datacenters: Vec::new() }
    }

    fn authorizer(tables: &Tables, number: u8) -> Authorizer {
        let resolved = tables.resolve(&[number; 32], NOON, "dc1", DefaultPolicy::Deny);
        resolved.expect("a token").authorizer
    }

    #[test]
    fn what_a_token_may_do_is_all_that_it_links_to() {
        let mut tables = Tables::default();
        let writes = |resource| Rules::default().prefix(resource, "", Access::Write);
        tables.put_policy(policy("p1", "keys", writes(Resource::Key)), Index(1)).expect("stored");
        let elsewhere = Policy {
            datacenters: vec!["dc2".into()],
            ..policy("p2", "events", writes(Resource::Event))
        };
        tables.put_policy(elsewhere, Index(2)).expect("stored");
        let role = Role {
            id: "r1".into(),
            name: "sessions".into(),
            description: "".into(),
            grants: Grants {
                nodes: vec![
                    NodeIdentity { node: "vm-1".into(), datacenter: "dc1".into() },
                    NodeIdentity { node: "vm-2".into(), datacenter: "dc2".into() },
                ],
                ..Grants::default()
            },
        };
        tables.put_role(role, Index(3)).expect("stored");
        let grants = Grants {
            policies: ["p1", "p2", "gone"].map(Into::into).into(),
            services: vec![ServiceIdentity { service: "web".into(), datacenters: vec![] }],
            nodes: Vec::new(),
            templates: vec![Templated {
                template: Template::Dns,
                name: None,
                datacenters: Vec::new(),
            }],
        };
        let one = Token { grants, roles: vec!["r1".into(), "gone".into()], ..token(1) };
        tables.put_token(one, Index(4)).expect("stored");
        let may = authorizer(&tables, 1);
        let cases = [
            (may.key_write("a"), true, "its policy"),
            (may.may(Resource::Event, Access::Write, "a"), false, "a policy for elsewhere"),
            (may.service_write("web"), true, "its identity"),
            (may.service_write("web-sidecar-proxy"), true, "with the sidecar's"),
            (may.service_write("db"), false, "nobody else's"),
            (may.service_read("db"), true, "which is seen"),
            (may.node_write("vm-1"), true, "its role's node"),
            (may.node_write("vm-2"), false, "a node elsewhere"),
            (may.may(Resource::Query, Access::Read, "q"), true, "its template"),
            (may.may(Resource::Acl, Access::Read, ""), false, "nothing more"),
        ];
        for (found, expected, why) in cases {
            assert_eq!(found, expected, "{why}");
        }
        tables.drop_policy("p1", Index(5)).expect("dropped");
        assert!(!authorizer(&tables, 1).key_write("a"), "what is dropped allows nothing");
    }

    #[test]
    fn the_built_in_policies_allow_everything_and_to_read_everything() {
        let mut tables = Tables::default();
        for (number, id) in [(1, MANAGEMENT_ID), (2, READ_ONLY_ID)] {
            let grants = Grants { policies: vec![id.into()], ..Grants::default() };
            tables.put_token(Token { grants, ..token(number) }, Index(1)).expect("stored");
            let may = authorizer(&tables, number);
            for resource in Resource::ALL {
                assert!(may.may(resource, Access::Read, "x"), "{resource:?}");
                assert_eq!(may.may(resource, Access::Write, "x"), number == 1, "{resource:?}");
            }
            let refused = tables.put_policy(policy(id, "mine", Rules::default()), Index(2));
            assert_eq!(refused, Err(Refusal::Builtin { what: "mine".into() }));
            assert!(matches!(tables.drop_policy(id, Index(2)), Err(Refusal::Builtin { .. })));
        }
    }

    #[test]
    fn bootstrap_happens_once_and_once_more_for_who_knows_the_index() {
        let mut tables = Tables::default();
        tables.bootstrap(token(1), None, Index(7)).expect("the first");
        let refused = Err(Refusal::Bootstrapped { reset: Index(7) });
        assert_eq!(tables.bootstrap(token(2), None, Index(8)), refused);
        assert_eq!(tables.bootstrap(token(2), Some(Index(6)), Index(9)), refused);
        tables.bootstrap(token(2), Some(Index(7)), Index(10)).expect("by the reset file");
        let refused = Err(Refusal::Bootstrapped { reset: Index(10) });
        assert_eq!(tables.bootstrap(token(3), Some(Index(7)), Index(11)), refused, "used up");
    }

    #[test]
    fn a_secret_belongs_to_one_token_and_stays() {
        let mut tables = Tables::default();
        tables.put_token(token(1), Index(1)).expect("stored");
        let thief = Token { secret: token(1).secret, ..token(2) };
        assert_eq!(tables.put_token(thief, Index(2)), Err(Refusal::Secret));
        let changed = Token { secret: token(2).secret, ..token(1) };
        assert_eq!(tables.put_token(changed, Index(3)), Err(Refusal::Secret));
        tables.drop_tokens(&["accessor-1".into()].into(), Index(4)).expect("dropped");
        assert!(tables.token_by_secret(&[1; 32]).is_none());
        let refused = tables.drop_tokens(&[ANONYMOUS_ACCESSOR.into()].into(), Index(5));
        assert!(matches!(refused, Err(Refusal::Builtin { .. })));
    }

    #[test]
    fn names_are_unique_and_a_row_may_keep_its_own() {
        let mut tables = Tables::default();
        let none = Rules::default;
        tables.put_policy(policy("p1", "a", none()), Index(1)).expect("stored");
        tables.put_policy(policy("p1", "a", none()), Index(2)).expect("its own name");
        let taken = tables.put_policy(policy("p2", "a", none()), Index(3));
        assert_eq!(taken, Err(Refusal::NameTaken { what: "policy", name: "a".into() }));
        let builtin = tables.put_policy(policy("p2", "global-management", none()), Index(4));
        assert!(matches!(builtin, Err(Refusal::NameTaken { .. })));
        let row = tables.policy("p1").expect("there");
        assert_eq!((row.created, row.modified), (Index(1), Index(2)));
    }

    #[test]
    fn an_expired_token_stands_for_nothing_and_is_reaped() {
        let mut tables = Tables::default();
        let short = Token { expires_at: Some(LATER), ..token(1) };
        tables.put_token(short, Index(1)).expect("stored");
        tables.put_token(token(2), Index(2)).expect("stored");
        let resolve = |now| tables.resolve(&[1; 32], now, "dc1", DefaultPolicy::Allow);
        assert!(resolve(NOON).is_some());
        assert!(resolve(LATER).is_none());
        assert_eq!(tables.expired(NOON, 10).len(), 0);
        assert_eq!(tables.expired(LATER, 10), ["accessor-1".into()].into());
    }

    #[test]
    fn restored_tables_are_the_same() {
        let mut tables = Tables::default();
        tables.bootstrap(token(1), None, Index(1)).expect("stored");
        tables.put_policy(policy("p", "p", Rules::default()), Index(2)).expect("stored");
        let again = Tables::restore(tables.dump());
        assert_eq!(format!("{:?}", again.dump()), format!("{:?}", tables.dump()));
        assert!(again.token_by_secret(&[1; 32]).is_some());
        assert_eq!(again.bootstrapped(), Some(Index(1)));
    }
}
