//! The one place where it is decided what a token may do.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::rule::{Access, Resource, Rule, Rules, Segment};

/// What holds where no rule does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DefaultPolicy {
    /// Everything but access control itself.
    Allow,
    /// Nothing.
    Deny,
    /// Everything: access control is off.
    Off,
}

/// Why an operation is refused, in the words that Consul's clients show.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "Permission denied: token with AccessorID '{accessor}' lacks permission '{}:{}'{}",
    resource.as_str(),
    access.as_str(),
    name.as_ref().map(|name| format!(" on {name:?}")).unwrap_or_default()
)]
pub struct Denied {
    /// Whose token it is.
    pub accessor: Arc<str>,
    /// What it is about.
    pub resource: Resource,
    /// How much would have been needed.
    pub access: Access,
    /// On which name; none for a resource without names.
    pub name: Option<Arc<str>>,
}

/// What one token may do: every rule that its policies have, merged.
///
/// A rule for the very name beats one for a prefix of it, and a longer prefix a shorter one; of two
/// rules for the same the stricter wins, as [`Access`] is ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorizer {
    accessor: Arc<str>,
    default: DefaultPolicy,
    rules: BTreeMap<Resource, Names>,
}

/// The rules about one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    whole: Option<Access>,
    exact: BTreeMap<Arc<str>, Access>,
    prefix: BTreeMap<Arc<str>, Access>,
}

impl Names {
    fn add(&mut self, segment: &Segment, access: Access) {
        let merged = |held: Option<Access>| held.map_or(access, |held| held.max(access));
        match segment {
            Segment::Whole => self.whole = Some(merged(self.whole)),
            Segment::Exact(name) => {
                let access = merged(self.exact.get(name).copied());
                self.exact.insert(name.clone(), access);
            }
            Segment::Prefix(name) => {
                let access = merged(self.prefix.get(name).copied());
                self.prefix.insert(name.clone(), access);
            }
        }
    }

    fn covering(&self, name: &str) -> Option<Access> {
        if let Some(access) = self.exact.get(name) {
            return Some(*access);
        }
        self.covering_prefix(name)
    }

    /// What the longest prefix of `name` that has a rule says.
    fn covering_prefix(&self, name: &str) -> Option<Access> {
        let longest = self.prefix.keys().map(|prefix| prefix.len()).max()?.min(name.len());
        (0..=longest)
            .rev()
            .filter_map(|end| name.get(..end))
            .find_map(|start| self.prefix.get(start).copied())
    }

    /// The rules for names below `prefix`.
    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Access> + 'a {
        let begins = move |(name, _): &(&Arc<str>, &Access)| name.starts_with(prefix);
        let all = self.exact.iter().filter(begins).chain(self.prefix.iter().filter(begins));
        all.map(|(_, access)| *access)
    }
}

impl Authorizer {
    /// Merges `all`, for the token that `accessor` names.
    pub fn new<'a>(
        accessor: Arc<str>,
        default: DefaultPolicy,
        all: impl IntoIterator<Item = &'a Rules>,
    ) -> Self {
        let mut rules: BTreeMap<Resource, Names> = BTreeMap::new();
        for Rule { resource, segment, access } in all.into_iter().flat_map(|rules| &rules.0) {
            rules.entry(*resource).or_default().add(segment, *access);
        }
        Self { accessor, default, rules }
    }

    /// May do everything: access control is off.
    pub fn off() -> Self {
        Self::new("".into(), DefaultPolicy::Off, [])
    }

    /// Whose token it is; empty while access control is off.
    pub fn accessor(&self) -> &Arc<str> {
        &self.accessor
    }

    /// What holds where no rule does.
    pub fn default_policy(&self) -> DefaultPolicy {
        self.default
    }

    /// The merged rules, from which an equal authorizer can be made.
    pub fn rules(&self) -> Rules {
        let mut all = Rules::default();
        for (resource, names) in &self.rules {
            if let Some(access) = names.whole {
                all = all.whole(*resource, access);
            }
            for (name, access) in &names.exact {
                all = all.exact(*resource, name, *access);
            }
            for (name, access) in &names.prefix {
                all = all.prefix(*resource, name, *access);
            }
        }
        all
    }

    /// Whether `access` on `name` is allowed.
    pub fn may(&self, resource: Resource, access: Access, name: &str) -> bool {
        match self.default {
            DefaultPolicy::Off => true,
            default => match self.decided(resource, name) {
                Some(held) => held.grants(access),
                // Who writes tokens is somebody: what nobody decided never lets one in.
                None => default == DefaultPolicy::Allow && resource != Resource::Acl,
            },
        }
    }

    /// As [`Self::may`], with the refusal made.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn demand(&self, resource: Resource, access: Access, name: &str) -> Result<(), Denied> {
        if self.may(resource, access, name) {
            return Ok(());
        }
        let name = (!resource.is_single()).then(|| name.into());
        Err(Denied { accessor: self.accessor.clone(), resource, access, name })
    }

    fn decided(&self, resource: Resource, name: &str) -> Option<Access> {
        let names = self.rules.get(&resource);
        if resource.is_single() {
            let own = names.and_then(|names| names.whole);
            // What was carved out of operator still follows it where it says nothing itself.
            let is_operator = matches!(resource, Resource::Mesh | Resource::Peering);
            return own.or_else(|| {
                is_operator.then(|| self.rules.get(&Resource::Operator)?.whole).flatten()
            });
        }
        names?.covering(name)
    }

    /// Whether `service` may be seen.
    pub fn service_read(&self, service: &str) -> bool {
        self.may(Resource::Service, Access::Read, service)
    }

    /// Whether `service` may be registered.
    pub fn service_write(&self, service: &str) -> bool {
        self.may(Resource::Service, Access::Write, service)
    }

    /// Whether `node` may be seen.
    pub fn node_read(&self, node: &str) -> bool {
        self.may(Resource::Node, Access::Read, node)
    }

    /// Whether `node` may be changed.
    pub fn node_write(&self, node: &str) -> bool {
        self.may(Resource::Node, Access::Write, node)
    }

    /// Whether a key may be read.
    pub fn key_read(&self, key: &str) -> bool {
        self.may(Resource::Key, Access::Read, key)
    }

    /// Whether keys below `prefix` may be listed. Where listing is no level of its own, who may
    /// read may list.
    pub fn key_list(&self, prefix: &str) -> bool {
        self.may(Resource::Key, Access::List, prefix) || self.key_read(prefix)
    }

    /// Whether a key may be written.
    pub fn key_write(&self, key: &str) -> bool {
        self.may(Resource::Key, Access::Write, key)
    }

    /// Whether every key below `prefix` may be written: no rule below it says less.
    pub fn key_write_prefix(&self, prefix: &str) -> bool {
        let Some(names) = self.rules.get(&Resource::Key) else { return self.key_write(prefix) };
        let covering = match (names.covering_prefix(prefix), self.default) {
            (_, DefaultPolicy::Off) => return true,
            (Some(access), _) => access == Access::Write,
            (None, default) => default == DefaultPolicy::Allow,
        };
        covering && names.below(prefix).all(|access| access == Access::Write)
    }

    /// Whether intentions to `destination` may be seen. Those to all services are seen by who
    /// sees those to any.
    pub fn intention_read(&self, destination: &str) -> bool {
        if destination != ANY {
            return self.may(Resource::Intention, Access::Read, destination);
        }
        let any = |names: &Names| names.below("").any(|access| access.grants(Access::Read));
        self.may(Resource::Intention, Access::Read, ANY)
            || self.rules.get(&Resource::Intention).is_some_and(any)
    }

    /// Whether intentions to `destination` may be changed. Those to all services are changed by
    /// who may change those to each.
    pub fn intention_write(&self, destination: &str) -> bool {
        if destination != ANY {
            return self.may(Resource::Intention, Access::Write, destination);
        }
        let all = |names: &Names| names.below("").all(|access| access == Access::Write);
        self.may(Resource::Intention, Access::Write, "")
            && self.rules.get(&Resource::Intention).is_none_or(all)
    }
}

/// The destination of an intention to all services.
const ANY: &str = "*";

#[cfg(test)]
mod tests {
    use super::*;

    use Access::{Deny, List, Read, Write};
    use Resource::{Acl, Intention, Key, Mesh, Operator, Peering, Service};

    fn token(default: DefaultPolicy, policies: &[Rules]) -> Authorizer {
        Authorizer::new("a1".into(), default, policies)
    }

    fn rules() -> Rules {
        Rules::default()
    }

    #[test]
    fn the_most_specific_rule_decides() {
        let rules = rules()
            .prefix(Service, "", Read)
            .prefix(Service, "foo", Write)
            .prefix(Service, "foo-secret", Deny)
            .exact(Service, "foobar", Read);
        let token = token(DefaultPolicy::Deny, &[rules]);
        let cases = [
            ("web", true, false, "the empty prefix covers all"),
            ("foo", true, true, "a prefix covers its own name"),
            ("food", true, true, "and longer ones"),
            ("foobar", true, false, "an exact rule beats a prefix that allows more"),
            ("foobars", true, true, "an exact rule covers no longer name"),
            ("foo-secret-1", false, false, "the longest prefix wins, although it denies"),
            ("fo", true, false, "a shorter name is not below the prefix"),
        ];
        for (name, read, write, why) in cases {
            assert_eq!(
                (token.service_read(name), token.service_write(name)),
                (read, write),
                "{why}"
            );
        }
    }

    #[test]
    fn of_several_policies_the_stricter_rule_wins() {
        let cases = [
            (vec![Read, Write], Write),
            (vec![Write, Read], Write),
            (vec![Write, Deny], Deny),
            (vec![Deny, Write], Deny),
            (vec![Read, List], List),
            (vec![List, Write], Write),
        ];
        for (levels, expected) in cases {
            let policies: Vec<Rules> =
                levels.iter().map(|access| rules().exact(Key, "a", *access)).collect();
            let token = token(DefaultPolicy::Allow, &policies);
            let held = [Read, List, Write].map(|wanted| token.may(Key, wanted, "a"));
            assert_eq!(
                held,
                [Read, List, Write].map(|wanted| expected.grants(wanted)),
                "{levels:?}"
            );
        }
    }

    #[test]
    fn where_no_rule_holds_the_default_does_but_never_for_access_control() {
        for (default, name, access, expected) in [
            (DefaultPolicy::Allow, Service, Write, true),
            (DefaultPolicy::Allow, Operator, Write, true),
            (DefaultPolicy::Allow, Acl, Read, false),
            (DefaultPolicy::Deny, Service, Read, false),
            (DefaultPolicy::Deny, Operator, Read, false),
            (DefaultPolicy::Off, Acl, Write, true),
        ] {
            assert_eq!(
                token(default, &[]).may(name, access, "x"),
                expected,
                "{default:?} {name:?}"
            );
        }
    }

    #[test]
    fn mesh_and_peering_follow_operator_where_they_say_nothing() {
        let of = |rules: Rules| {
            let token = token(DefaultPolicy::Deny, &[rules]);
            [Mesh, Peering].map(|resource| token.may(resource, Write, ""))
        };
        assert_eq!(of(rules().whole(Operator, Write)), [true, true]);
        assert_eq!(of(rules().whole(Operator, Write).whole(Mesh, Read)), [false, true]);
        assert_eq!(of(rules().whole(Operator, Read).whole(Peering, Write)), [false, true]);
    }

    #[test]
    fn a_tree_of_keys_is_written_only_where_nothing_below_says_less() {
        let base = || rules().prefix(Key, "app/", Write);
        let cases = [
            (DefaultPolicy::Deny, base(), "app/", true, "the prefix itself"),
            (DefaultPolicy::Deny, base(), "app/x/", true, "below it"),
            (DefaultPolicy::Deny, base(), "", false, "above it"),
            (
                DefaultPolicy::Deny,
                base().exact(Key, "app/pw", Read),
                "app/",
                false,
                "a reader's key below",
            ),
            (
                DefaultPolicy::Deny,
                base().prefix(Key, "app/s/", Deny),
                "app/",
                false,
                "a denied tree below",
            ),
            (
                DefaultPolicy::Deny,
                base().prefix(Key, "app/s/", Deny),
                "app/t",
                true,
                "beside the denied",
            ),
            (DefaultPolicy::Allow, rules().exact(Key, "b", Deny), "a", true, "by default"),
            (
                DefaultPolicy::Allow,
                rules().exact(Key, "b", Deny),
                "",
                false,
                "what is denied is in it",
            ),
        ];
        for (default, rules, prefix, expected, why) in cases {
            assert_eq!(token(default, &[rules]).key_write_prefix(prefix), expected, "{why}");
        }
    }

    #[test]
    fn intentions_to_all_need_any_to_read_and_all_to_write() {
        let cases = [
            (rules().exact(Intention, "db", Read), true, false),
            (rules().prefix(Intention, "", Write), true, true),
            (rules().prefix(Intention, "", Write).exact(Intention, "db", Read), true, false),
            (rules().exact(Intention, "db", Write), true, false),
            (rules().exact(Intention, "db", Deny), false, false),
        ];
        for (rules, read, write) in cases {
            let shown = format!("{rules:?}");
            let token = token(DefaultPolicy::Deny, &[rules]);
            assert_eq!(
                (token.intention_read("*"), token.intention_write("*")),
                (read, write),
                "{shown}"
            );
        }
    }

    #[test]
    fn a_refusal_says_whose_token_lacks_what() {
        let token = token(DefaultPolicy::Deny, &[]);
        let refused = |resource, name| token.demand(resource, Write, name).expect_err("denied");
        assert_eq!(
            refused(Service, "web").to_string(),
            "Permission denied: token with AccessorID 'a1' lacks permission 'service:write' on \
             \"web\""
        );
        assert_eq!(
            refused(Operator, "").to_string(),
            "Permission denied: token with AccessorID 'a1' lacks permission 'operator:write'"
        );
    }

    #[test]
    fn merged_rules_make_an_equal_authorizer() {
        let token = token(
            DefaultPolicy::Allow,
            &[rules().everything(Read), rules().exact(Key, "k", Deny).prefix(Key, "k", List)],
        );
        let again = Authorizer::new("a1".into(), DefaultPolicy::Allow, [&token.rules()]);
        assert_eq!(again, token);
    }

    #[test]
    fn names_of_several_octets_are_cut_between_letters_only() {
        let token = token(DefaultPolicy::Deny, &[rules().prefix(Key, "é", Read)]);
        assert!(token.key_read("éa"));
        assert!(!token.key_read("è"), "shares the first octet only");
    }
}
