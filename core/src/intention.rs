//! Intentions: who may call whom, and the one function that decides it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::catalog::{Meta, Row, upsert};
use crate::clock::{Index, UnixTime};
use crate::name::{InvalidName, PeerName, ServiceName};
pub use crate::permission::Action;
use crate::permission::{JwtRequirement, Requests};

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

/// What becomes of intentions together: all of it, or nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// To be stored. One that asks for no token takes over what its callee asks of all callers,
    /// unless `only` says that these are all there are.
    pub put: Vec<Intention>,
    /// To be removed, where they are there.
    pub remove: Vec<Pair>,
    /// The callee whose other intentions fall away; none: they stay.
    pub only: Option<Side>,
    /// What must have which index.
    pub expected: Option<Expected>,
}

/// What a writer has seen, and its index then; 0: there was none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Expected {
    /// All intentions about one callee.
    Callee(Side, Index),
    /// One intention.
    Pair(Pair, Index),
}

impl Changes {
    /// The callees whose intentions may change.
    pub fn destinations(&self) -> BTreeSet<&Side> {
        let put = self.put.iter().map(|intention| &intention.pair);
        put.chain(&self.remove).map(|pair| &pair.destination).chain(&self.only).collect()
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

    /// The intentions whose destination is exactly `destination`.
    pub fn about<'a>(&'a self, destination: &'a Side) -> impl Iterator<Item = &'a Row<Intention>> {
        self.rows.values().filter(move |row| row.value.pair.destination == *destination)
    }

    /// The last entry that changed what is said about `destination`; 0 where nothing is.
    pub fn index_about(&self, destination: &Side) -> Index {
        self.about(destination).map(|row| row.modified).max().unwrap_or_default()
    }

    /// The token that `destination` asks of all callers.
    pub fn required(&self, destination: &Side) -> Option<&JwtRequirement> {
        let about = |row: &&Row<Intention>| row.value.pair.destination == *destination;
        let mut rows = self.rows.values().filter(about);
        rows.find_map(|row| row.value.requests.as_ref()?.jwt.as_ref())
    }

    /// The index of what `expected` is about.
    pub fn index_of(&self, expected: &Expected) -> Index {
        match expected {
            Expected::Callee(destination, _) => self.index_about(destination),
            Expected::Pair(pair, _) => self.get(pair).map_or(Index(0), |row| row.modified),
        }
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

    /// Stores `intention` as of entry `at`; an equal one stays as it was. Whether it changed.
    pub fn put(&mut self, intention: Intention, at: Index) -> bool {
        let pair = intention.pair.clone();
        let same = |row: &Row<Intention>| {
            row.value.action == intention.action
                && row.value.requests == intention.requests
                && row.value.description == intention.description
                && row.value.meta == intention.meta
        };
        if self.rows.get(&pair).is_some_and(same) {
            return false;
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
        true
    }

    /// Removes the intention about `pair`; whether there was one.
    pub fn remove(&mut self, pair: &Pair, at: Index) -> bool {
        let removed = self.rows.remove_mut(pair);
        if removed {
            self.index = at;
        }
        removed
    }

    /// Changes several as of entry `at`; whether anything changed.
    ///
    /// What is said about a callee has one index: where any of it changes, all of it is as of `at`.
    /// So whoever goes by that index misses no removal.
    pub fn change(&mut self, changes: Changes, at: Index) -> bool {
        let Changes { put, remove, only, .. } = changes;
        let kept: BTreeSet<Pair> = put.iter().map(|intention| intention.pair.clone()).collect();
        let others = only.iter().flat_map(|only| self.about(only)).map(|row| &row.value.pair);
        let fallen: Vec<Pair> = others.filter(|pair| !kept.contains(pair)).cloned().collect();
        let mut changed: BTreeSet<Side> = BTreeSet::new();
        for intention in put {
            let intention = if only.is_none() { self.inheriting(intention) } else { intention };
            let destination = intention.pair.destination.clone();
            if self.put(intention, at) {
                changed.insert(destination);
            }
        }
        for pair in remove.into_iter().chain(fallen) {
            if self.remove(&pair, at) {
                changed.insert(pair.destination);
            }
        }
        for destination in &changed {
            self.touch(destination, at);
        }
        !changed.is_empty()
    }

    /// `intention` with the token that its callee asks of all callers, unless it names its own.
    pub fn inheriting(&self, mut intention: Intention) -> Intention {
        let own = intention.requests.as_ref().and_then(|requests| requests.jwt.as_ref());
        if own.is_none()
            && let Some(jwt) = self.required(&intention.pair.destination)
        {
            let mut requests = intention.requests.as_deref().cloned().unwrap_or_default();
            requests.jwt = Some(jwt.clone());
            intention.requests = Some(Arc::new(requests));
        }
        intention
    }

    fn touch(&mut self, destination: &Side, at: Index) {
        let older = self.about(destination).filter(|row| row.modified != at);
        let rows: Vec<Row<Intention>> = older.cloned().collect();
        for row in rows {
            self.rows.insert_mut(row.value.pair.clone(), Row { modified: at, ..row });
        }
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
    fn all_that_is_said_about_a_callee_has_one_index() {
        let rules = [("a", "db", Deny), ("b", "db", Deny), ("c", "db", Deny), ("a", "api", Deny)];
        let mut all = intentions(&rules);
        let db: Side = "db".parse().expect("a side");
        let pair = |source: &str| Pair {
            source: source.parse().expect("a side"),
            destination: db.clone(),
            peer: None,
        };
        let only = |sources: &[&str]| Changes {
            put: sources.iter().map(|source| intention(pair(source), Deny)).collect(),
            only: Some(db.clone()),
            ..Changes::default()
        };
        assert!(!all.change(only(&["c", "b", "a"]), Index(9)), "nothing changes");
        assert_eq!((all.index(), all.index_about(&db)), (Index(4), Index(3)));
        // The newest stays as it is and another falls away: the index moves all the same.
        assert!(all.change(only(&["b", "c"]), Index(10)));
        assert!(all.about(&db).all(|row| row.modified == Index(10)));
        assert_eq!(all.index_of(&Expected::Pair(pair("b"), Index(2))), Index(10));
        assert_eq!(all.index_of(&Expected::Pair(pair("a"), Index(1))), Index(0), "it is gone");
        assert_eq!(all.iter().count(), 3, "another callee's stays");
        assert!(all.change(only(&[]), Index(11)));
        assert_eq!(all.index_about(&db), Index(0));
        assert!(!all.change(only(&[]), Index(12)));
        assert_eq!(all.index(), Index(11));
    }

    #[test]
    fn a_single_intention_takes_over_the_token_that_its_callee_asks_for() {
        let token = |name: &str| JwtRequirement {
            providers: vec![crate::permission::ProviderRequirement {
                name: name.into(),
                verify_claims: vec![],
            }],
        };
        let pair = |source: &str| Pair {
            source: source.parse().expect("a side"),
            destination: "db".parse().expect("a side"),
            peer: None,
        };
        let with = |source: &str, jwt: Option<JwtRequirement>| Intention {
            requests: jwt.map(|jwt| Arc::new(Requests { jwt: Some(jwt), ..Requests::default() })),
            ..intention(pair(source), Allow)
        };
        let mut all = Intentions::default();
        all.put(with("web", Some(token("okta"))), Index(1));
        let put = |intention| Changes { put: vec![intention], ..Changes::default() };
        // Planned before anybody asked for a token, applied after.
        assert!(all.change(put(with("cron", None)), Index(2)));
        assert!(all.change(put(with("own", Some(token("other")))), Index(3)));
        let asked = |all: &Intentions, source: &str| {
            all.get(&pair(source)).expect("held").value.requests.as_ref()?.jwt.clone()
        };
        assert_eq!(asked(&all, "cron"), Some(token("okta")));
        assert_eq!(asked(&all, "own"), Some(token("other")));
        let only = Some("db".parse().expect("a side"));
        let whole = Changes { put: vec![with("cron", None)], only, ..Changes::default() };
        assert!(all.change(whole, Index(4)));
        assert_eq!(asked(&all, "cron"), None, "who writes all of them says what is asked for");
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
