//! Intentions: who may call whom, and the one function that decides it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::catalog::{Meta, Row, upsert};
use crate::clock::{Index, UnixTime};
use crate::name::{InvalidName, PeerName, ServiceName};
pub use crate::permission::Action;
use crate::permission::Requests;

/// One side of an intention: a service, or every service.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Side {
    /// Just this one.
    Exact(ServiceName),
    /// `*`
    Any,
}

impl FromStr for Side {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text {
            "*" => Ok(Self::Any),
            name => name.parse().map(Self::Exact),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => name.fmt(f),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Whom an intention is about.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Pair {
    /// The callee. First, so that a table ordered by pairs keeps a callee's intentions together.
    pub destination: Side,
    /// The caller.
    pub source: Side,
    /// The peer that the caller is of; none for callers of one's own cluster. A rule is about
    /// callers of one cluster only: `*` of one's own covers no peer's.
    pub peer: Option<PeerName>,
}

impl Pair {
    /// Consul's precedence: the greater decides. 9, 8, 6 and 5 from most to least specific.
    pub const fn precedence(&self) -> u8 {
        match (&self.source, &self.destination) {
            (Side::Exact(_), Side::Exact(_)) => 9,
            (Side::Any, Side::Exact(_)) => 8,
            (Side::Exact(_), Side::Any) => 6,
            (Side::Any, Side::Any) => 5,
        }
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(peer) = &self.peer {
            write!(f, "peer:{peer}/")?;
        }
        write!(f, "{} -> {}", self.source, self.destination)
    }
}

/// A rule: this pair may, or may not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Intention {
    /// A UUID, for Consul's clients that address intentions by id.
    pub id: Arc<str>,
    /// Whom it is about.
    pub pair: Pair,
    /// What it says of whole connections: `deny` where its permissions decide, so that whoever
    /// cannot ask about requests is refused.
    pub action: Action,
    /// What it says of single requests; none where it says the same of all.
    pub requests: Option<Arc<Requests>>,
    /// For people.
    pub description: Arc<str>,
    /// Free pairs.
    pub meta: Meta,
    /// When it was first written.
    pub created_at: UnixTime,
    /// When it was last written.
    pub updated_at: UnixTime,
}

/// Why a caller may or may not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reason {
    /// This intention, the most specific that covers the pair.
    Intention(Pair),
    /// This intention, which decides about each request on its own.
    Requests(Pair),
    /// No intention covers the pair: the cluster's default.
    Default,
    /// The callee is not exported to the caller's cluster.
    NotExported,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intention(pair) => write!(f, "intention {pair}"),
            Self::Requests(pair) => write!(f, "intention {pair}, which decides about each request"),
            Self::Default => f.write_str("default intention policy"),
            Self::NotExported => f.write_str("the service is not exported to the caller's cluster"),
        }
    }
}

/// A verdict and where it comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decision {
    /// May it?
    pub action: Action,
    /// Says who?
    pub reason: Reason,
}

impl Decision {
    /// Whether the caller may connect.
    pub fn is_allowed(&self) -> bool {
        self.action == Action::Allow
    }
}

/// All intentions, ordered by callee and then caller.
#[derive(Clone, Debug, Default)]
pub struct Intentions {
    rows: RedBlackTreeMapSync<Pair, Row<Intention>>,
    index: Index,
}

impl Intentions {
    /// The last entry that changed any of them.
    pub fn index(&self) -> Index {
        self.index
    }

    /// Every intention.
    pub fn iter(&self) -> impl Iterator<Item = &Row<Intention>> {
        self.rows.values()
    }

    /// One intention.
    pub fn get(&self, pair: &Pair) -> Option<&Row<Intention>> {
        self.rows.get(pair)
    }

    /// The intentions that name `destination`, or every destination, most specific first.
    pub fn covering(&self, destination: &ServiceName) -> Vec<&Row<Intention>> {
        let covers = |row: &&Row<Intention>| match &row.value.pair.destination {
            Side::Exact(name) => name == destination,
            Side::Any => true,
        };
        let mut rows: Vec<_> = self.rows.values().filter(covers).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.value.pair.precedence()));
        rows
    }

    /// Decides whether `source`, of one's own cluster or of `peer`, may call `destination`.
    ///
    /// Only the most specific intention that covers the pair counts; where none does, the
    /// cluster's `default`.
    pub fn decide(
        &self,
        source: &ServiceName,
        peer: Option<&PeerName>,
        destination: &ServiceName,
        default: Action,
    ) -> Decision {
        let exact = |name: &ServiceName| Side::Exact(name.clone());
        let pair = |source, destination| Pair { source, destination, peer: peer.cloned() };
        let by_precedence = [
            pair(exact(source), exact(destination)),
            pair(Side::Any, exact(destination)),
            pair(exact(source), Side::Any),
            pair(Side::Any, Side::Any),
        ];
        by_precedence
            .into_iter()
            .find_map(|pair| {
                let intention = &self.rows.get(&pair)?.value;
                Some(match intention.requests {
                    // Not allowed as a whole: whoever looks no further refuses.
                    Some(_) => Decision { action: Action::Deny, reason: Reason::Requests(pair) },
                    None => Decision { action: intention.action, reason: Reason::Intention(pair) },
                })
            })
            .unwrap_or(Decision { action: default, reason: Reason::Default })
    }

    /// Whether it matters who calls `service`: an intention decides about single requests, asks for a
    /// token, or denies somebody by name. Who shows no identity would get around it.
    pub fn need_callers_of(&self, service: &ServiceName) -> bool {
        let covers = |pair: &Pair| match &pair.destination {
            Side::Exact(name) => name == service,
            Side::Any => true,
        };
        let names = |pair: &Pair| pair.peer.is_some() || matches!(pair.source, Side::Exact(_));
        self.iter().map(|row| &row.value).any(|intention| {
            covers(&intention.pair)
                && (intention.requests.is_some()
                    || (intention.action == Action::Deny && names(&intention.pair)))
        })
    }

    /// Stores `intention` as of entry `at`; an equal one stays as it was.
    pub fn put(&mut self, intention: Intention, at: Index) {
        let pair = intention.pair.clone();
        let same = |row: &Row<Intention>| {
            row.value.action == intention.action
                && row.value.requests == intention.requests
                && row.value.description == intention.description
                && row.value.meta == intention.meta
        };
        if self.rows.get(&pair).is_some_and(same) {
            return;
        }
        let intention = match self.rows.get(&pair) {
            Some(old) => Intention {
                id: old.value.id.clone(),
                created_at: old.value.created_at,
                ..intention
            },
            None => intention,
        };
        upsert(&mut self.rows, pair, intention, at);
        self.index = at;
    }

    /// Removes the intention about `pair`; whether there was one.
    pub fn remove(&mut self, pair: &Pair, at: Index) -> bool {
        let removed = self.rows.remove_mut(pair);
        if removed {
            self.index = at;
        }
        removed
    }

    /// Puts rows back as a snapshot, or a view, holds them.
    pub fn restore(rows: impl IntoIterator<Item = Row<Intention>>, index: Index) -> Self {
        let rows = rows.into_iter().map(|row| (row.value.pair.clone(), row)).collect();
        Self { rows, index }
    }
}

#[cfg(test)]
mod tests {
    use super::Action::{Allow, Deny};
    use super::*;

    fn intentions(rules: &[(&str, &str, Action)]) -> Intentions {
        let mut all = Intentions::default();
        for (at, (source, destination, action)) in (1..).zip(rules) {
            let pair = Pair {
                source: source.parse().expect("a side"),
                destination: destination.parse().expect("a side"),
                peer: None,
            };
            all.put(intention(pair, *action), Index(at));
        }
        all
    }

    fn intention(pair: Pair, action: Action) -> Intention {
        Intention {
            id: "".into(),
            pair,
            action,
            requests: None,
            description: "".into(),
            meta: Meta::new(),
            created_at: UnixTime::default(),
            updated_at: UnixTime::default(),
        }
    }

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    #[test]
    fn the_most_specific_intention_decides() {
        let all = intentions(&[("*", "*", Deny), ("web", "*", Allow), ("*", "db", Deny)]);
        let cases = [
            // source, destination, expected, precedence of the reason, why
            ("web", "api", Allow, 6, "an exact source beats the catch-all"),
            ("web", "db", Deny, 8, "an exact destination outranks an exact source"),
            ("cron", "api", Deny, 5, "only the catch-all covers it"),
        ];
        for (source, destination, expected, precedence, why) in cases {
            let decided = all.decide(&name(source), None, &name(destination), Allow);
            assert_eq!(decided.action, expected, "{source} -> {destination}: {why}");
            let Reason::Intention(pair) = decided.reason else { panic!("{why}") };
            assert_eq!(pair.precedence(), precedence, "{why}");
        }
    }

    #[test]
    fn who_calls_matters_where_somebody_is_denied_by_name() {
        type Rules = &'static [(&'static str, &'static str, Action)];
        let cases: &[(Rules, bool, &str)] = &[
            (&[], false, "nobody says anything"),
            (&[("web", "db", Allow)], false, "who is allowed loses nothing"),
            (&[("*", "db", Deny), ("web", "db", Allow)], false, "nobody is denied by name"),
            (&[("cron", "db", Deny)], true, "cron would pass without its name"),
            (&[("cron", "*", Deny)], true, "wherever it is said"),
            (&[("cron", "api", Deny)], false, "elsewhere"),
        ];
        for (rules, expected, why) in cases {
            let all = intentions(rules);
            assert_eq!(all.need_callers_of(&name("db")), *expected, "{why}");
        }
        let mut all = Intentions::default();
        let source = "web".parse().expect("a side");
        let pair = Pair { source, destination: "db".parse().expect("a side"), peer: None };
        let requests = Some(Arc::default());
        all.put(Intention { requests, ..intention(pair, Allow) }, Index(1));
        assert!(all.need_callers_of(&name("db")), "a request, or its token, decides");
    }

    #[test]
    fn without_an_intention_the_default_decides() {
        let none = Intentions::default();
        for default in [Allow, Deny] {
            let decided = none.decide(&name("web"), None, &name("db"), default);
            assert_eq!(decided, Decision { action: default, reason: Reason::Default });
        }
    }

    #[test]
    fn an_equal_write_moves_no_index() {
        let mut all = intentions(&[("web", "db", Deny)]);
        let pair = all.iter().next().expect("one").value.pair.clone();
        all.put(intention(pair.clone(), Deny), Index(9));
        assert_eq!(all.index(), Index(1));
        all.put(intention(pair.clone(), Allow), Index(10));
        assert_eq!(all.index(), Index(10));
        assert_eq!(all.get(&pair).expect("kept").created, Index(1));
        assert!(all.remove(&pair, Index(11)));
        assert!(!all.remove(&pair, Index(12)));
        assert_eq!(all.index(), Index(11));
    }
}
