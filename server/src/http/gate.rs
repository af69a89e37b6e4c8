//! Who asks, and whether it may: the step between a request and its handler.

use std::sync::Arc;

use hawser_api::error::ApiError;
use hawser_api::query::Query;
use hawser_core::acl::{Access as Level, DefaultPolicy, Resource, Tables};
use hawser_core::state::State;
use http::{HeaderMap, Method, header};

use super::access::{self, Access};
use super::routes::{Handler, Route};
use super::sight::Sight;
use crate::acl::{Acl, Unknown};
use crate::audit::Entry;

/// One request's way in. The state is shown to it again whenever it is read again, so that a token
/// that is deleted ends what it began.
pub(super) struct Gate {
    acl: Arc<Acl>,
    route: &'static Route,
    access: Option<Access>,
    secret: Result<String, Unknown>,
}

impl Gate {
    /// The gate of `route`, for who shows what `headers` and `query` hold.
    ///
    /// # Errors
    /// Access control is asked for, and off.
    pub(super) fn new(
        acl: Arc<Acl>,
        route: &'static Route,
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<Self, ApiError> {
        if route.pattern.starts_with("acl/") && !acl.is_enabled() {
            return Err(ApiError::AclDisabled);
        }
        let access = access::of(&route.method, route.pattern);
        Ok(Self { acl, route, access, secret: secret(headers, query) })
    }

    /// What the client may see of `state`.
    ///
    /// # Errors
    /// Its token is none, or lacks what the route needs.
    pub(super) fn open(&self, state: &State) -> Result<Sight, ApiError> {
        if !self.acl.is_enabled() {
            return Ok(Sight::off());
        }
        if self.access == Some(Access::Open) {
            return Ok(Sight::new(Arc::new(Tables::anonymous(DefaultPolicy::Deny))));
        }
        let may = self.secret.as_deref().map_err(|unknown| *unknown);
        let may = may.and_then(|secret| self.acl.resolve(state, secret));
        let sight = Sight::new(may.map_err(|unknown| ApiError::Forbidden(unknown.to_string()))?);
        match self.access {
            Some(Access::Open | Access::Sight | Access::Commands) => {}
            Some(Access::Needs(resource, level)) => sight.demand(resource, level, "")?,
            Some(Access::NeedsAll(all)) => {
                all.iter().try_for_each(|(resource, level)| sight.demand(*resource, *level, ""))?;
            }
            // A route that nobody thought about is for those who may do everything.
            None => sight.demand(Resource::Acl, Level::Write, "")?,
        }
        Ok(sight)
    }

    /// Whether the request asks about the state at all, and not only of this server.
    pub(super) fn is_guarded(&self) -> bool {
        self.acl.is_enabled() && self.access != Some(Access::Open)
    }

    /// What the audit log says of the request; nothing of reads, and none while access control
    /// is off.
    pub(super) fn entry(&self, state: &State, what: &[String]) -> Option<Entry> {
        // An archive holds every token: who took one must be known.
        let is_archive = matches!(self.route.handler, Handler::Archive(_));
        if !self.acl.is_enabled() || (self.route.method == Method::GET && !is_archive) {
            return None;
        }
        let known = self.secret.as_deref().ok();
        let known = known.and_then(|secret| self.acl.resolve(state, secret).ok());
        Some(Entry {
            accessor: known.map(|may| may.accessor().to_string()).unwrap_or_default(),
            method: self.route.method.to_string(),
            operation: self.route.pattern,
            what: what.to_vec(),
            status: 0,
            index: 0,
        })
    }
}

/// The secret that a request shows; empty where it shows none. What is no text is of nobody.
fn secret(headers: &HeaderMap, query: &Query) -> Result<String, Unknown> {
    let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).map_err(|_| Unknown);
    if let Some(token) = headers.get("x-consul-token") {
        return text(token);
    }
    if let Some(authorization) = headers.get(header::AUTHORIZATION) {
        let authorization = text(authorization)?;
        if let Some((scheme, token)) = authorization.split_once(' ')
            && scheme.eq_ignore_ascii_case("bearer")
        {
            return Ok(token.trim().to_owned());
        }
    }
    Ok(query.text("token").unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use hawser_core::acl::{Authorizer, Change, Grants, Policy, Rules, Token};
    use hawser_core::authorize;
    use hawser_core::clock::UnixTime;
    use hawser_core::entry::{Body, Entry as ConfigEntry, ProxyDefaults, ServiceDefaults};
    use hawser_core::intention::{Action, Intention, Pair};
    use hawser_core::kv;
    use hawser_core::session::{Behavior, Session};
    use hawser_core::state::Command;
    use serde_json::{Value, json};

    use super::super::access::ACCESS;
    use super::super::ask::Draw;
    use super::super::routes::{Handler, ROUTES, find};
    use super::super::tests::{apply, ask, state};
    use super::super::{Seen, attempt};
    use super::*;
    use crate::acl::Settings;

    fn acl() -> Arc<Acl> {
        let default = Some(DefaultPolicy::Deny);
        Arc::new(Acl::new(Settings { default, ..Settings::default() }))
    }

    fn gate(route: &'static Route, headers: &[(&'static str, &[u8])], query: &str) -> Gate {
        let header = |(name, value): &(&'static str, &[u8])| {
            let name = header::HeaderName::from_static(name);
            (name, http::HeaderValue::from_bytes(value).expect("a header"))
        };
        let headers: HeaderMap = headers.iter().map(header).collect();
        Gate::new(acl(), route, &headers, &Query::parse(query).expect("good")).expect("it is on")
    }

    /// A state in which everything that may not be seen has a secret in it.
    fn full() -> State {
        let mut state = state();
        let pair = Pair {
            source: "a".parse().expect("one"),
            destination: "web".parse().expect("one"),
            peer: None,
        };
        let intention = Intention {
            id: "11111111-aaaa-4aaa-8aaa-000000000001".into(),
            pair,
            action: Action::Allow,
            requests: None,
            description: "SECRET".into(),
            meta: Default::default(),
            created_at: UnixTime::from_secs(1),
            updated_at: UnixTime::from_secs(1),
        };
        apply(&mut state, Command::PutIntention(intention)).expect("stored");
        let bodies = [
            ("web", Body::ServiceDefaults(ServiceDefaults::default())),
            ("global", Body::ProxyDefaults(ProxyDefaults::default())),
        ];
        let write = kv::Write {
            key: "web".parse().expect("a key"),
            value: Arc::from(*b"SECRET"),
            flags: 0,
        };
        apply(&mut state, Command::Kv(kv::Change::Set(write))).expect("stored");
        let session = Session {
            id: "22222222-aaaa-4aaa-8aaa-000000000002".parse().expect("an id"),
            name: "SECRET".into(),
            node: "a".parse().expect("a name"),
            lock_delay: Default::default(),
            behavior: Behavior::Release,
            ttl: None,
            node_checks: Vec::new(),
            service_checks: Vec::new(),
        };
        apply(&mut state, Command::CreateSession(session)).expect("stored");
        let body = hawser_core::query::Body {
            service: hawser_core::query::Selection {
                service: "web".into(),
                near: "SECRET".into(),
                ..Default::default()
            },
            ..Default::default()
        };
        let (id, name) = (QUERY.into(), "web".into());
        let query = hawser_core::query::PreparedQuery { id, name, session: None, body };
        apply(&mut state, Command::PutQuery(query)).expect("stored");
        for (name, body) in bodies {
            let entry = ConfigEntry::new(name, body).expect("a good entry");
            apply(&mut state, Command::PutEntry { entry, expected: None, fits: None })
                .expect("stored");
        }
        state
    }

    #[test]
    fn every_route_has_a_row_and_every_row_a_route() {
        for route in ROUTES.iter().filter(|route| !matches!(route.handler, Handler::Refuse(_))) {
            let found = access::of(&route.method, route.pattern);
            assert!(
                found.is_some(),
                "{} {} has no row in access.rs: say there what it needs",
                route.method,
                route.pattern
            );
            let is_read = matches!(route.handler, Handler::Read(_) | Handler::ReadOrPeer(_));
            assert!(
                !(is_read && found == Some(Access::Commands)),
                "{}: a read leads to no command",
                route.pattern
            );
        }
        for (method, pattern, _) in ACCESS {
            let is_there = |route: &Route| route.method == *method && route.pattern == *pattern;
            assert!(ROUTES.iter().any(is_there), "{method} {pattern} is no route");
        }
    }

    /// Each route with each token that is none is refused with the same words.
    #[test]
    fn every_route_refuses_tokens_that_are_none() {
        let state = full();
        let long = vec![b'x'; 10_000];
        let shown: [(&str, &[u8]); 5] = [
            ("x-consul-token", b"unknown"),
            ("x-consul-token", b"<hidden>"),
            ("x-consul-token", &[0xff, 0xfe]),
            ("x-consul-token", &long),
            ("authorization", b"Bearer unknown"),
        ];
        for route in ROUTES {
            if access::of(&route.method, route.pattern) == Some(Access::Open) {
                continue;
            }
            for (name, value) in shown {
                let refused = gate(route, &[(name, value)], "").open(&state).expect_err(name);
                assert_eq!(
                    refused,
                    ApiError::Forbidden("ACL not found".into()),
                    "{}",
                    route.pattern
                );
            }
            let refused = gate(route, &[], "token=unknown").open(&state).map(drop);
            assert_eq!(refused, Err(ApiError::Forbidden("ACL not found".into())));
        }
    }

    /// No read tells who may see nothing what there is: neither in what it says nor by its index.
    #[test]
    fn no_read_leaks_to_those_who_may_see_nothing() {
        let state = full();
        let fills = [
            QUERY,
            "22222222-aaaa-4aaa-8aaa-000000000002",
            "web",
            "a",
            "b",
            "service-defaults",
            "service-intentions",
            "any",
            "global",
            "11111111-aaaa-4aaa-8aaa-000000000001",
        ];
        let queries = [
            "",
            "?source=a&destination=web",
            "?by=destination&name=web",
            "?passing",
            "?node-meta=rack:a",
            "?recurse",
            "?keys",
            "?raw",
        ];
        let needles = ["SECRET", "10.0.0.", "web-1", "rack", "service:web", "\"db\"", "id-a"];
        for route in ROUTES {
            let (Handler::Read(look) | Handler::ReadOrPeer(look), Some(access)) =
                (route.handler, access::of(&route.method, route.pattern))
            else {
                continue;
            };
            let sight = match gate(route, &[], "").open(&state) {
                Ok(sight) => sight,
                Err(refused) => {
                    assert!(matches!(access, Access::Needs(..)), "{}: {refused}", route.pattern);
                    continue;
                }
            };
            for (fill, query) in fills.iter().flat_map(|fill| queries.map(|query| (*fill, query))) {
                let path = format!("/v1/{}{query}", route.pattern);
                let holes = route.pattern.matches([':', '*']).count();
                let mut params = vec![fill.to_owned(); holes];
                if holes == 2 {
                    params[1] = "web".to_owned();
                }
                let mut asked = ask(&path, params, "").expect("a good query");
                asked.sight = sight.clone();
                let Ok(Seen::New { index, answer, .. }) = attempt(&asked, &state, look, None)
                else {
                    continue;
                };
                let Ok(body) = answer else { continue };
                let body = String::from_utf8_lossy(&body).into_owned();
                for needle in needles {
                    assert!(!body.contains(needle), "{path} with {fill}: {body}");
                }
                if fill == "web" && route.pattern.ends_with("/service/:") {
                    let absent = ask(&path, vec!["no-such".into()], "").expect("good");
                    let Ok(Seen::New { index: of_absent, .. }) =
                        attempt(&absent, &state, look, None)
                    else {
                        panic!("{path}")
                    };
                    assert_eq!(index, of_absent, "{path}: a hidden service is as an absent one");
                }
            }
        }
    }

    /// Each write by who may only read is refused, whichever path it takes.
    #[test]
    fn every_write_by_a_reader_is_refused() {
        let state = full();
        let reads = state.acl().policy(hawser_core::acl::READ_ONLY_ID).expect("built in");
        let reader = Authorizer::new("r".into(), DefaultPolicy::Deny, [&reads.value.rules]);
        let register = json!({"Node": "n", "Address": "10.9.9.9", "Service": {"Service": "web"}});
        let on_held = json!({"Node": "a", "Service": {"ID": "web-1", "Service": "web", "Port": 1}});
        let intention = json!({"SourceName": "a", "DestinationName": "web", "Action": "deny"});
        let several = json!({"Kind": "service-intentions", "Name": "web",
                             "Sources": [{"Name": "a", "Action": "deny"}]});
        let id = "/v1/connect/intentions/11111111-aaaa-4aaa-8aaa-000000000001";
        let exact = "/v1/connect/intentions/exact?source=a&destination=web";
        let cases: Vec<(Method, &str, Value)> = vec![
            (Method::PUT, "/v1/catalog/register", register),
            (Method::PUT, "/v1/catalog/register", on_held),
            (Method::PUT, "/v1/catalog/deregister", json!({"Node": "a"})),
            (Method::PUT, "/v1/catalog/deregister", json!({"Node": "no-such"})),
            (Method::PUT, "/v1/catalog/deregister", json!({"Node": "a", "ServiceID": "web-1"})),
            (Method::PUT, "/v1/catalog/deregister", json!({"Node": "a", "ServiceID": "no-such"})),
            (Method::PUT, "/v1/catalog/register", json!({"Node": "a", "Address": "10.0.0.1"})),
            (Method::POST, "/v1/connect/intentions", intention.clone()),
            (Method::PUT, "/v1/session/create", json!({"Node": "no-such"})),
            (
                Method::POST,
                "/v1/connect/intentions",
                json!({"SourceName": "b",
                "DestinationName": "web", "Action": "deny"}),
            ),
            (Method::PUT, exact, intention.clone()),
            (Method::DELETE, exact, Value::Null),
            (Method::PUT, id, intention),
            (Method::DELETE, id, Value::Null),
            (Method::PUT, "/v1/config", several.clone()),
            (Method::PUT, "/v1/config?cas=99", several),
            (Method::PUT, "/v1/config", json!({"Kind": "service-defaults", "Name": "web"})),
            (Method::PUT, "/v1/config", json!({"Kind": "proxy-defaults"})),
            (Method::DELETE, "/v1/config/service-defaults/web", Value::Null),
            (Method::DELETE, "/v1/config/proxy-defaults/global", Value::Null),
            (Method::DELETE, "/v1/config/service-intentions/web", Value::Null),
            (Method::DELETE, "/v1/config/service-intentions/web?cas=99", Value::Null),
            (Method::PUT, "/v1/kv/web", json!("x")),
            (Method::PUT, "/v1/kv/web?cas=0", json!("x")),
            (Method::DELETE, "/v1/kv/web", Value::Null),
            (Method::DELETE, "/v1/kv/?recurse", Value::Null),
            (Method::PUT, "/v1/session/create", json!({"Node": "a"})),
            (Method::PUT, SESSION_DESTROY, Value::Null),
            (Method::PUT, "/v1/event/fire/deploy", Value::Null),
            (Method::POST, "/v1/query", json!({"Name": "q", "Service": {"Service": "web"}})),
            (Method::PUT, QUERY_PATH, json!({"Name": "web", "Service": {"Service": "web"}})),
            (Method::DELETE, QUERY_PATH, Value::Null),
        ];
        for (method, path, body) in &cases {
            let bare = path.split('?').next().expect("a path");
            let Ok(super::super::routes::Matched::Route(route, params)) = find(method, bare) else {
                panic!("{method} {path} is no route")
            };
            let Handler::Write(plan) = route.handler else { panic!("{path} is no write") };
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let mut asked = ask(path, params, &body).expect("good");
            asked.sight = Sight::new(Arc::new(reader.clone()));
            let draw = Draw { now: UnixTime::from_secs(9), random: 1, secret: 2 };
            let refused = super::super::planned(&asked, &state, &draw, plan);
            match refused {
                Err(ApiError::Forbidden(why)) => assert!(why.contains("permission"), "{why}"),
                other => panic!("{method} {path} {body}: {other:?}"),
            }
        }
        for route in ROUTES.iter().filter(|route| matches!(route.handler, Handler::Write(_))) {
            let is_tried = cases.iter().any(|(method, path, _)| {
                let bare = path.split('?').next().unwrap_or_default();
                matches!(find(method, bare), Ok(super::super::routes::Matched::Route(found, _))
                    if (&found.method, found.pattern) == (&route.method, route.pattern))
            });
            let guarded = matches!(
                access::of(&route.method, route.pattern),
                Some(Access::Needs(_, Level::Write))
            );
            assert!(is_tried || guarded, "{} {} is not tried", route.method, route.pattern);
        }
        let writes = Command::SetLiveness { dead: vec![], alive: vec![] };
        assert!(authorize::command(&reader, &state, &writes).is_err());
    }

    /// What replaces the state, or says whom to believe, is for operators.
    #[test]
    fn who_restores_rotates_or_revokes_must_be_an_operator() {
        let routes = [
            (Method::PUT, "/v1/snapshot", true),
            (Method::PUT, "/v1/connect/ca/configuration", false),
            (Method::PUT, "/v1/hawser/connect/ca/rotate", false),
            (Method::PUT, "/v1/hawser/connect/revocation", false),
            (Method::DELETE, "/v1/hawser/connect/revocation/node/a", false),
        ];
        let rights = [
            (None, None),
            (None, Some(Level::Read)),
            (None, Some(Level::Write)),
            (Some(Level::Write), None),
            (Some(Level::Write), Some(Level::Read)),
            (Some(Level::Write), Some(Level::Write)),
        ];
        for (acl, operator) in rights {
            let state = holder_of(acl, operator);
            for (method, path, needs_acl) in &routes {
                let Ok(super::super::routes::Matched::Route(route, _)) = find(method, path) else {
                    panic!("{method} {path} is no route")
                };
                let may = operator == Some(Level::Write) && (acl.is_some() || !needs_acl);
                let opened = gate(route, &[("x-consul-token", b"shown")], "").open(&state);
                assert_eq!(opened.is_ok(), may, "{method} {path} with {acl:?}, {operator:?}");
                assert!(gate(route, &[], "").open(&state).is_err(), "{method} {path} by anybody");
            }
        }
    }

    /// A state with one token, `shown`, that has these rights and no others.
    fn holder_of(acl: Option<Level>, operator: Option<Level>) -> State {
        let mut rules = Rules::default();
        for (resource, level) in [(Resource::Acl, acl), (Resource::Operator, operator)] {
            let Some(level) = level else { continue };
            rules = rules.whole(resource, level);
        }
        let mut state = state();
        let policy = Policy {
            id: "33333333-aaaa-4aaa-8aaa-000000000003".into(),
            name: "p".into(),
            description: "".into(),
            text: "".into(),
            rules,
            datacenters: Vec::new(),
        };
        let grants = Grants { policies: vec![policy.id.clone()], ..Grants::default() };
        apply(&mut state, Command::Acl(Change::PutPolicy(policy))).expect("stored");
        let token = Token {
            accessor: "44444444-aaaa-4aaa-8aaa-000000000004".into(),
            secret: crate::acl::secret("shown"),
            description: "".into(),
            grants,
            roles: Vec::new(),
            is_local: false,
            method: None,
            created_at: UnixTime::from_secs(1),
            expires_at: None,
        };
        apply(&mut state, Command::Acl(Change::PutToken(token))).expect("stored");
        state
    }

    #[test]
    fn a_reader_of_some_sees_those_and_is_told_that_there_is_more() {
        let state = full();
        let rules = Rules::default().exact(Resource::Service, "web", Level::Read).prefix(
            Resource::Node,
            "",
            Level::Read,
        );
        let sight =
            || Sight::new(Arc::new(Authorizer::new("t".into(), DefaultPolicy::Deny, [&rules])));
        let cases = [
            ("/v1/catalog/services", json!({"web": ["blue", "v1", "v2"]}), true),
            ("/v1/catalog/service/db", json!([]), true),
        ];
        for (path, expected, hides) in cases {
            let Ok(super::super::routes::Matched::Route(route, params)) = find(&Method::GET, path)
            else {
                panic!("{path}")
            };
            let (Handler::Read(look) | Handler::ReadOrPeer(look)) = route.handler else {
                panic!("{path}")
            };
            let mut asked = ask(path, params, "").expect("good");
            asked.sight = sight();
            let Ok(Seen::New { answer: Ok(body), .. }) = attempt(&asked, &state, look, None) else {
                panic!("{path}")
            };
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!((body, asked.sight.has_hidden()), (expected, hides), "{path}");
        }
    }

    #[test]
    fn a_token_is_taken_from_where_clients_put_it() {
        let route = &ROUTES[0];
        type Shown<'a> = &'a [(&'static str, &'a [u8])];
        let cases: [(Shown<'_>, &str, Result<&str, Unknown>); 7] = [
            (&[], "", Ok("")),
            (&[("x-consul-token", b"a")], "token=b", Ok("a")),
            (&[("authorization", b"Bearer a")], "", Ok("a")),
            (&[("authorization", b"bearer a")], "", Ok("a")),
            (&[("authorization", b"Basic a")], "", Ok("")),
            (&[], "token=b", Ok("b")),
            (&[("x-consul-token", &[0xff])], "token=b", Err(Unknown)),
        ];
        for (headers, query, expected) in cases {
            let gate = gate(route, headers, query);
            assert_eq!(gate.secret.as_deref().map_err(|unknown| *unknown), expected);
        }
    }

    const QUERY: &str = "33333333-aaaa-4aaa-8aaa-000000000003";
    const QUERY_PATH: &str = "/v1/query/33333333-aaaa-4aaa-8aaa-000000000003";
    const SESSION_DESTROY: &str = "/v1/session/destroy/22222222-aaaa-4aaa-8aaa-000000000002";
}
