//! Whether a command fits: what config entries and intentions say together, asked before it is
//! proposed.
//!
//! Not asked by `apply`: what fits is for one release to say, and the state is a function of the
//! log. Who proposes asks, and lets the command count as long as nothing that it was checked
//! against was written since.

use crate::catalog::Protocol;
use crate::clock::Index;
use crate::discovery::{self, Misfit};
use crate::entry::{Entries, EntryKey, Kind};
use crate::intention::{Intention, Pair, Side};
use crate::name::ServiceName;
use crate::operation::INTENTIONS_LEVEL;
use crate::permission::Requests;

use super::{Command, Rejection, State};

/// What a command was checked against.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fits {
    /// The index of all config entries.
    pub entries: Index,
    /// The index of all intentions; none where not every server looks at it.
    pub intentions: Option<Index>,
}

impl State {
    /// Whether config entries and intentions fit together once `command` is applied, and what that
    /// holds for; none where the command cannot change that.
    ///
    /// # Errors
    /// [`Rejection::Misfit`], [`Rejection::IntentionMisfit`], or [`Rejection::IndexMismatch`] where
    /// the command would be refused anyway.
    pub fn fit(&self, command: &Command) -> Result<Option<Fits>, Rejection> {
        match command {
            Command::PutEntry { entry, expected, .. } => {
                self.expect_entry(entry.key(), *expected)?;
                let mut entries = self.entries.clone();
                entries.put(entry.clone(), self.applied);
                self.fit_entries(&entries, entry.key())?;
            }
            Command::DropEntry { key, expected, .. } => {
                self.expect_entry(key, *expected)?;
                let mut entries = self.entries.clone();
                entries.remove(key, self.applied);
                self.fit_entries(&entries, key)?;
            }
            Command::PutIntention(intention) => self.fit_intention(intention)?,
            Command::ChangeIntentions { changes, .. } => {
                self.expect_intentions(changes)?;
                changes.put.iter().try_for_each(|intention| self.fit_intention(intention))?;
            }
            _ => return Ok(None),
        }
        let is_known = self.operation.level() >= INTENTIONS_LEVEL;
        let intentions = is_known.then(|| self.intentions.index());
        Ok(Some(Fits { entries: self.entries.index(), intentions }))
    }

    /// Whether nothing was written since a command was checked.
    pub(super) fn expect_fit(&self, fits: Option<Fits>) -> Result<(), Rejection> {
        let Some(Fits { entries, intentions }) = fits else { return Ok(()) };
        let intentions = intentions.unwrap_or(self.intentions.index());
        let pairs = [(entries, self.entries.index()), (intentions, self.intentions.index())];
        match pairs.into_iter().find(|(checked, actual)| checked != actual) {
            Some((checked, actual)) => Err(Rejection::EntriesChanged { checked, actual }),
            None => Ok(()),
        }
    }

    fn fit_intention(&self, intention: &Intention) -> Result<(), Rejection> {
        match self.unmet(&self.entries, intention) {
            None => Ok(()),
            Some(Unmet { field, why, .. }) => {
                Err(Rejection::IntentionMisfit { pair: intention.pair.clone(), field, why })
            }
        }
    }

    /// What fits now still has to when `entries` hold, which differ in `key`.
    fn fit_entries(&self, entries: &Entries, key: &EntryKey) -> Result<(), Misfit> {
        discovery::check(&self.entries, entries, key)?;
        let concerned: &dyn Fn(&Pair) -> bool = match key.kind {
            Kind::JwtProvider | Kind::ProxyDefaults => &|_| true,
            Kind::ServiceDefaults => &|pair| match &pair.destination {
                Side::Exact(service) => service.as_str() == &*key.name,
                Side::Any => false,
            },
            _ => return Ok(()),
        };
        let rows = self.intentions.iter().map(|row| &*row.value);
        for intention in rows.filter(|it| it.requests.is_some() && concerned(&it.pair)) {
            if let Some(unmet) = self.unmet(entries, intention)
                && self.unmet(&self.entries, intention).is_none()
            {
                return Err(unmet.of_entry(key, &intention.pair));
            }
        }
        Ok(())
    }

    /// What `intention` asks for and `entries` do not have.
    fn unmet(&self, entries: &Entries, intention: &Intention) -> Option<Unmet> {
        let requests = intention.requests.as_deref()?;
        let is_missing = |name: &str| entries.jwt_provider(name).is_none();
        if let Some((field, name)) = providers(requests).find(|(_, name)| is_missing(name)) {
            let why = format!("there is no jwt-provider/{name}: write that entry first");
            return Some(Unmet { field, why, is_provider: true });
        }
        let Side::Exact(service) = &intention.pair.destination else { return None };
        if !self.takes_bytes(entries, service) {
            return None;
        }
        let why = format!(
            "{service} takes connections and no requests: set Protocol of service-defaults/{service} \
             to http, http2 or grpc first"
        );
        let field = if requests.permissions.is_empty() { "JWT" } else { "Permissions" };
        Some(Unmet { field: field.to_owned(), why, is_provider: false })
    }

    /// Whether `service` is known not to take requests: entries say so, or its instances where
    /// entries do not.
    fn takes_bytes(&self, entries: &Entries, service: &ServiceName) -> bool {
        if let Some(written) = entries.protocol(service) {
            return !written.is_http();
        }
        let mut own =
            self.catalog.placed(service).map(|placed| placed.instance.value.protocol).peekable();
        own.peek().is_some() && !own.any(|protocol| protocol.is_some_and(Protocol::is_http))
    }
}

/// What an intention asks for and is not there.
struct Unmet {
    field: String,
    why: String,
    is_provider: bool,
}

impl Unmet {
    /// The same, said of the entry whose change would take it away.
    fn of_entry(self, key: &EntryKey, pair: &Pair) -> Misfit {
        let whose = format!("service-intentions/{}, source {}", pair.destination, whose(pair));
        let field = match (self.is_provider, key.kind) {
            (true, _) => "Name",
            (false, Kind::ProxyDefaults) => "Config.protocol",
            (false, _) => "Protocol",
        };
        let asks = if self.is_provider { "asks for its tokens" } else { "decides about requests" };
        let why = format!("{whose} {asks} in {}: change that first", self.field);
        Misfit { key: key.clone(), field: field.to_owned(), why }
    }
}

/// A pair's source, with the peer that it is of.
pub(super) fn whose(pair: &Pair) -> String {
    match &pair.peer {
        Some(peer) => format!("peer:{peer}/{}", pair.source),
        None => pair.source.to_string(),
    }
}

/// The providers whose tokens `requests` asks for, each with the field that names it.
fn providers(requests: &Requests) -> impl Iterator<Item = (String, &str)> {
    let all = requests.jwt.iter().map(|jwt| ("JWT".to_owned(), jwt));
    let single = requests.permissions.iter().enumerate().filter_map(|(n, permission)| {
        Some((format!("Permissions[{n}].JWT"), permission.jwt.as_ref()?))
    });
    all.chain(single).flat_map(|(at, jwt)| {
        let named = jwt.providers.iter().enumerate();
        named.map(move |(n, it)| (format!("{at}.Providers[{n}].Name"), it.name.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{Stamp, UnixTime};
    use crate::entry::{Body, Entry};
    use crate::intention::{Action, Changes};
    use crate::permission::Guard;

    fn apply(state: &mut State, command: Command) -> Result<(), Rejection> {
        let index = Index(state.applied().0 + 1);
        state.apply(Stamp { index, time: UnixTime::default() }, command).map(drop)
    }

    fn key(text: &str) -> EntryKey {
        let (kind, name) = text.split_once('/').expect("kind/name");
        EntryKey { kind: kind.parse().expect("a kind"), name: name.into() }
    }

    fn put(at: &str, json: &str) -> Command {
        let key = key(at);
        let body = Body::read(key.kind, &mut serde_json::Deserializer::from_str(json));
        let entry = Entry::new(&key.name, body.expect(json)).expect(at);
        Command::PutEntry { entry, expected: None, fits: None }
    }

    fn remove(at: &str) -> Command {
        Command::DropEntry { key: key(at), expected: None, fits: None }
    }

    /// `web` may call `destination` as `requests` says.
    fn intention(destination: &str, requests: &str) -> Intention {
        let requests: Requests = serde_json::from_str(requests).expect(requests);
        Guard::compile(&requests, Action::Deny).expect("good requests");
        Intention {
            id: "".into(),
            pair: Pair {
                source: "web".parse().expect("a side"),
                destination: destination.parse().expect("a side"),
                peer: None,
            },
            action: Action::Deny,
            requests: Some(Arc::new(requests)),
            description: "".into(),
            meta: Default::default(),
            created_at: UnixTime::default(),
            updated_at: UnixTime::default(),
        }
    }

    fn change(intention: Intention) -> Command {
        let changes = Changes { put: vec![intention], ..Changes::default() };
        Command::ChangeIntentions { changes, fits: None }
    }

    const PROVIDER: &str = r#"{"JSONWebKeySet":{"Local":{"Filename":"/keys"}}}"#;
    const PATHS: &str = r#"{"Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/"}}]}"#;
    const TOKEN: &str = r#"{"JWT":{"Providers":[{"Name":"okta"}]}}"#;
    const ONE_TOKEN: &str = r#"{"Permissions":[{"Action":"allow","HTTP":{"PathPrefix":"/"},
        "JWT":{"Providers":[{"Name":"okta"}]}}]}"#;

    #[test]
    fn intentions_and_entries_fit_whichever_is_written_first() {
        let http = || put("service-defaults/db", r#"{"Protocol":"http"}"#);
        let tcp = || put("service-defaults/db", r#"{"Protocol":"tcp"}"#);
        let all_http = || put("proxy-defaults/global", r#"{"Config":{"protocol":"http"}}"#);
        let all_tcp = || put("proxy-defaults/global", r#"{"Config":{"protocol":"tcp"}}"#);
        let provider = || put("jwt-provider/okta", PROVIDER);
        let to = |destination, requests| change(intention(destination, requests));
        let db = |requests| to("db", requests);
        type Row = (Vec<Command>, Command, Option<&'static str>);
        let cases: Vec<Row> = vec![
            (vec![http()], db(PATHS), None),
            (vec![], db(PATHS), None),
            (
                vec![tcp()],
                db(PATHS),
                Some(
                    "service-intentions/db, source web: Permissions: db takes connections and no \
                     requests: set Protocol of service-defaults/db",
                ),
            ),
            (vec![all_tcp()], db(PATHS), Some("source web: Permissions: db takes connections")),
            (vec![all_tcp(), http()], db(PATHS), None),
            (vec![all_http(), tcp()], db(PATHS), Some("source web: Permissions: db takes")),
            (vec![provider(), tcp()], db(TOKEN), Some("source web: JWT: db takes connections")),
            (
                vec![http()],
                db(TOKEN),
                Some("source web: JWT.Providers[0].Name: there is no jwt-provider/okta: write"),
            ),
            (
                vec![http()],
                db(ONE_TOKEN),
                Some("source web: Permissions[0].JWT.Providers[0].Name: there is no jwt-provider/"),
            ),
            (vec![tcp()], to("*", TOKEN), Some("service-intentions/*, source web: JWT.Providers")),
            (vec![provider(), tcp()], to("*", TOKEN), None),
            (
                vec![provider(), http(), db(ONE_TOKEN)],
                remove("jwt-provider/okta"),
                Some(
                    "jwt-provider/okta: Name: service-intentions/db, source web asks for its \
                     tokens in Permissions[0].JWT.Providers[0].Name: change that first",
                ),
            ),
            (vec![provider(), http(), db(PATHS)], remove("jwt-provider/okta"), None),
            (vec![http()], remove("jwt-provider/okta"), None),
            (
                vec![http(), db(PATHS)],
                tcp(),
                Some(
                    "service-defaults/db: Protocol: service-intentions/db, source web decides \
                     about requests in Permissions: change that first",
                ),
            ),
            (vec![http(), to("api", PATHS)], tcp(), None),
            (
                vec![all_http(), db(PATHS)],
                all_tcp(),
                Some("proxy-defaults/global: Config.protocol: service-intentions/db, source web"),
            ),
            (vec![all_tcp(), http(), db(PATHS)], remove("service-defaults/db"), Some("Protocol: ")),
            (vec![all_http(), http(), db(PATHS)], remove("service-defaults/db"), None),
            // What did not fit before stands in nobody's way.
            (vec![tcp(), db(PATHS)], all_tcp(), None),
        ];
        for (before, command, expected) in cases {
            let mut state = State::default();
            for command in before {
                apply(&mut state, command).expect("applied");
            }
            let fit = state.fit(&command);
            match (expected, fit) {
                (None, fit) => assert!(matches!(fit, Ok(Some(_))), "{command:?}: {fit:?}"),
                (Some(expected), Err(refused)) => {
                    let said = refused.to_string();
                    assert!(said.contains(expected), "{said:?} has no {expected:?}");
                }
                (Some(expected), Ok(_)) => panic!("{command:?} fits: expected {expected}"),
            }
        }
    }

    #[test]
    fn what_instances_say_counts_where_entries_do_not() {
        let mut state = State::default();
        let declared = |protocol| crate::state::tests::declared("db", protocol);
        let command = change(intention("db", PATHS));
        apply(&mut state, declared(None)).expect("applied");
        assert!(state.fit(&command).is_err(), "one is there, and it takes bytes");
        apply(&mut state, declared(Some(Protocol::Http))).expect("applied");
        assert!(state.fit(&command).is_ok());
        apply(&mut state, declared(Some(Protocol::Tcp))).expect("applied");
        assert!(state.fit(&command).is_err());
    }

    #[test]
    fn what_was_checked_counts_while_neither_side_was_written_since() {
        let mut state = State::default();
        apply(&mut state, put("jwt-provider/okta", PROVIDER)).expect("applied");
        let ask = change(intention("db", TOKEN));
        let take_away = remove("jwt-provider/okta");
        // Before every server looks at intentions, entries are all that a command is held to.
        let fits = state.fit(&take_away).expect("fits").expect("checked");
        assert_eq!(fits, Fits { entries: Index(1), intentions: None });
        apply(&mut state, Command::SetLevel(INTENTIONS_LEVEL)).expect("applied");

        // Both are checked, then both are proposed, in either order.
        let fits = |state: &State, command: &Command| {
            command.clone().fitting(state.fit(command).expect("fits").expect("checked"))
        };
        let (asked, taken) = (fits(&state, &ask), fits(&state, &take_away));
        let mut other = state.clone();
        apply(&mut state, asked.clone()).expect("applied");
        let late = apply(&mut state, taken.clone());
        assert!(matches!(late, Err(Rejection::EntriesChanged { .. })), "{late:?}");
        assert!(matches!(state.fit(&take_away), Err(Rejection::Misfit(_))));
        apply(&mut other, taken).expect("applied");
        let late = apply(&mut other, asked);
        assert!(matches!(late, Err(Rejection::EntriesChanged { .. })), "{late:?}");
        assert!(matches!(other.fit(&ask), Err(Rejection::IntentionMisfit { .. })));
    }
}
