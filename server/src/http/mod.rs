//! The Consul-compatible HTTP API of the servers: parse, read or propose, encode.
//!
//! One door: [`respond`] answers every `/v1` path that is not the agent's own. Handlers are plain
//! functions of a request and a state; waiting, consistency and headers are here.

mod sight;
mod acl;
mod access;
mod ask;
mod encode;
mod imports;
mod catalog;
mod health;
mod connect;
mod ca;
mod snapshot;
mod entries;
mod discovery;
mod coordinate;
mod event;
mod query;
mod kv;
mod session;
mod txn;
mod cluster;
mod operator;
mod peering;
mod openapi;
mod routes;
mod gate;

use bytes::Bytes;
use hawser_api::error::ApiError;
use hawser_api::query::{Cached, Freshness, Query, QueryOptions};
use hawser_core::authorize;
use hawser_core::clock::Index;
use hawser_core::name::NodeName;
use hawser_core::spiffe::Role;
use hawser_core::state::{Command, Rejection, State, Topic};
use http::header::{
    AGE, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use http::{Extensions, Method, Request, Response, StatusCode};
use std::collections::BTreeSet;
use tokio::time::{Instant, timeout_at};

use self::ask::{Ask, Draw, Found, Plan, Reply};
use self::gate::Gate;
use self::routes::{Handler, Matched, Route};
use self::sight::{Sight, denied};
use crate::Handle;
use crate::identity::now;
use crate::propose::ProposeError;
use crate::read::{Consistency, ReadError, Reading};
use crate::request_limits::{Access, Area, Exceeded};
use crate::tls::Peer;

/// Answers one request whose body is in memory already.
///
/// Never fails: what cannot be answered becomes a status and a text that says what to do. A read
/// that names an index waits, for eleven minutes at most; dropping the future ends the wait.
pub async fn respond(handle: &Handle, request: Request<Bytes>) -> Response<Bytes> {
    let answered = answer(handle, request).await;
    let answer = answered.unwrap_or_else(|refused| Answer::refusal(&refused));
    answer.into_response(handle.acl.default_word())
}

/// A reply in the making.
struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    content_type: &'static str,
}

impl Answer {
    fn json(status: StatusCode, body: Bytes) -> Self {
        Self { status, headers: Vec::new(), body, content_type: JSON }
    }

    fn refusal(refused: &ApiError) -> Self {
        let mut headers = Vec::new();
        if let ApiError::MethodNotAllowed { allow, .. } = refused {
            headers.extend(HeaderValue::from_str(allow).ok().map(|allow| (ALLOW, allow)));
        }
        if let ApiError::Limited { after, .. } = refused {
            let secs = u64::try_from(after.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX);
            headers.push((RETRY_AFTER, HeaderValue::from(secs.max(1))));
        }
        let body = refused.to_string().into();
        Self { status: refused.status(), headers, body, content_type: TEXT }
    }

    fn into_response(self, default_policy: &'static str) -> Response<Bytes> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(DEFAULT_ACL_POLICY, HeaderValue::from_static(default_policy));
        headers.extend(self.headers);
        response
    }
}

async fn answer(handle: &Handle, request: Request<Bytes>) -> Result<Answer, ApiError> {
    let (head, body) = request.into_parts();
    let (route, params) = match routes::find(&head.method, head.uri.path())? {
        Matched::Unknown => return Err(ApiError::UnknownPath),
        Matched::Route(route, params) => (route, params),
        Matched::OtherMethods(allow) if head.method == Method::OPTIONS => {
            let allow = HeaderValue::from_str(&allow).map_err(ApiError::bad_request)?;
            let mut answer = Answer::json(StatusCode::OK, Bytes::new());
            answer.headers.push((ALLOW, allow));
            return Ok(answer);
        }
        Matched::OtherMethods(allow) => {
            let method = head.method.as_str().chars().take(METHOD_SHOWN).collect();
            return Err(ApiError::MethodNotAllowed { method, allow });
        }
    };
    let query = Query::parse(head.uri.query().unwrap_or_default())?;
    let gate = Gate::new(handle.acl.clone(), route, &head.headers, &query)?;
    if let Handler::Refuse(refuse) = route.handler {
        return Err(refuse());
    }
    let max = match route.pattern {
        "snapshot" => snapshot::ARCHIVE_OCTETS_MAX,
        _ => BODY_OCTETS_MAX,
    };
    if body.len() > max {
        return Err(ApiError::TooLarge { max });
    }
    let from = head.extensions.get().and_then(|peer: &Peer| match &peer.id.role {
        Role::Agent(node) | Role::Server(node) => Some(node.clone()),
        Role::Service(_) | Role::MeshGateway => None,
    });
    permitted(handle, route, &head.extensions)?;
    let mut ask = ask(handle, route, params, query, (body, from))?;
    if let Freshness::Cached(cached) = &mut ask.options.freshness
        && let Some(header) = head.headers.get(CACHE_CONTROL)
    {
        *cached = Cached::from_cache_control(&String::from_utf8_lossy(header.as_bytes()))?;
    }
    let Some(mut entry) = gate.entry(&handle.reader.current(), &ask.params) else {
        return handled(handle, route, ask, &gate).await;
    };
    let answered = handled(handle, route, ask, &gate).await;
    entry.status = match &answered {
        Ok(answer) => answer.status.as_u16(),
        Err(refused) => refused.status().as_u16(),
    };
    entry.index = handle.reader.current().applied().0;
    handle.acl.audit.note(entry).await;
    answered
}

/// Refuses what is more than a `control-plane-request-limit` allows the host that asks.
fn permitted(handle: &Handle, route: &Route, from: &Extensions) -> Result<(), ApiError> {
    let node = from.get().and_then(|peer: &Peer| match &peer.id.role {
        Role::Agent(node) | Role::Server(node) => Some(node),
        Role::Service(_) | Role::MeshGateway => None,
    });
    let (Some(area), Some(node)) = (Area::of(route.pattern), node) else { return Ok(()) };
    let access = match route.method.is_safe() || matches!(route.handler, Handler::Read(_)) {
        true => Access::Read,
        false => Access::Write,
    };
    let taken = handle.limits.take(node, area, access);
    taken.map_err(|Exceeded { by, after }| ApiError::Limited { by: by.to_string(), after })
}

/// What is asked, before anybody knows whether it may be.
fn ask(
    handle: &Handle,
    route: &Route,
    params: Vec<String>,
    query: Query,
    (body, from): (Bytes, Option<NodeName>),
) -> Result<Ask, ApiError> {
    let options = match route.handler {
        Handler::Read(_) => QueryOptions::with_filter(&query)?,
        Handler::ReadOrPeer(_) => QueryOptions::with_peer(&query)?,
        _ => QueryOptions::from_query(&query)?,
    };
    let datacenter = handle.identity.datacenter().clone();
    if options.datacenter.as_deref().is_some_and(|asked| asked != datacenter.as_str()) {
        return Err(ApiError::UnknownDatacenter);
    }
    let contacts = handle.contacts.clone();
    // Nothing is seen before the gate has looked at a state.
    Ok(Ask { params, query, options, datacenter, body, from, contacts, sight: Sight::nothing() })
}

async fn handled(
    handle: &Handle,
    route: &Route,
    mut ask: Ask,
    gate: &Gate,
) -> Result<Answer, ApiError> {
    match route.handler {
        Handler::Read(look) | Handler::ReadOrPeer(look) => read(handle, ask, gate, look).await,
        Handler::Write(plan) => write(handle, ask, gate, plan).await,
        Handler::Other(reply) => {
            // Servers without a leader still tell how they stand, to who could ask before.
            let reading = match gate.is_guarded() {
                true => handle.reader.read(Consistency::Default).await.ok(),
                false => None,
            };
            let state = reading.map_or_else(|| handle.reader.current(), |reading| reading.state);
            ask.sight = gate.open(&state)?;
            let (status, body) = reply(handle.clone(), ask).await?;
            Ok(Answer::json(status, body))
        }
        Handler::Archive(save) => {
            let reading = handle.reader.read(Consistency::Default).await.map_err(unread)?;
            ask.sight = gate.open(&reading.state)?;
            let body = save(handle.clone(), ask).await?;
            Ok(Answer { content_type: GZIP, ..Answer::json(StatusCode::OK, body) })
        }
        Handler::Refuse(refuse) => Err(refuse()),
    }
}

type Look = for<'a> fn(&'a Ask, &'a State) -> Result<Found<'a>, ApiError>;

/// Reads, and waits until what is found is newer than what the client has seen.
async fn read(handle: &Handle, mut ask: Ask, gate: &Gate, look: Look) -> Result<Answer, ApiError> {
    let (mut reading, effective) = fresh(handle, ask.options.freshness).await?;
    let beyond = ask.options.index;
    ask.sight = gate.open(&reading.state)?;
    let mut seen = attempt(&ask, &reading.state, look, beyond)?;
    if let Seen::Old(topics) = &seen {
        if handle.watches.held() >= WAITING_MAX {
            return Err(ApiError::Unavailable(format!(
                "{WAITING_MAX} readers wait at this server already: ask another, or without ?index"
            )));
        }
        let wait = ask.options.wait_with_jitter(rand::random_range(0..=1000));
        let deadline = Instant::now() + wait;
        let mut topics = topics.clone();
        // Subscribed before the state is read again, so that nothing falls between the two.
        let mut watch = handle.watches.subscribe(topics.clone());
        loop {
            // The first reading was as fresh as was asked for, and states only move forward.
            reading = stale(handle).await?;
            ask.sight = gate.open(&reading.state)?;
            seen = attempt(&ask, &reading.state, look, beyond)?;
            match &seen {
                Seen::New { .. } => break,
                Seen::Old(others) if *others != topics => {
                    topics.clone_from(others);
                    watch.retopic(topics.clone());
                }
                Seen::Old(_) => {
                    if timeout_at(deadline, watch.changed()).await.is_err() {
                        reading = stale(handle).await?;
                        ask.sight = gate.open(&reading.state)?;
                        seen = attempt(&ask, &reading.state, look, None)?;
                        break;
                    }
                }
            }
        }
    }
    let Seen::New { index, answer, is_raw } = seen else { return Err(ApiError::Unknown) };
    let mut reply = match answer {
        Ok(body) => Answer::json(StatusCode::OK, body),
        Err(refused) => Answer::refusal(&refused),
    };
    if is_raw && reply.status == StatusCode::OK {
        // A browser must not run what anybody may have stored.
        reply.content_type = TEXT;
        reply.headers.push((CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox")));
    } else if reply.body.starts_with(PEM_START) {
        reply.content_type = PEM;
    }
    reply.headers.extend(about(&reading, index, effective));
    if matches!(ask.options.freshness, Freshness::Cached(_)) {
        reply.headers.extend(about_cache(&reading, effective));
    }
    if ask.sight.has_hidden() {
        reply.headers.push((FILTERED, HeaderValue::from_static("true")));
    }
    Ok(reply)
}

/// What a read says of its answer: how new it is, and by whose word.
fn about(
    reading: &Reading,
    index: Index,
    effective: &'static str,
) -> [(HeaderName, HeaderValue); 5] {
    let millis = u64::try_from(reading.last_contact.as_millis()).unwrap_or(u64::MAX);
    let known_leader = if reading.known_leader { "true" } else { "false" };
    [
        (INDEX, HeaderValue::from(index.0.max(1))),
        (KNOWN_LEADER, HeaderValue::from_static(known_leader)),
        (LAST_CONTACT, HeaderValue::from(millis)),
        (
            EFFECTIVE_CONSISTENCY,
            HeaderValue::from_static(if effective == CACHED { "stale" } else { effective }),
        ),
        (QUERY_BACKEND, HeaderValue::from_static("blocking-query")),
    ]
}

/// Whether an answer came from memory alone, and how old that was.
fn about_cache(reading: &Reading, effective: &'static str) -> Vec<(HeaderName, HeaderValue)> {
    match effective {
        CACHED => vec![
            (CACHE, HeaderValue::from_static("HIT")),
            (AGE, HeaderValue::from(reading.last_contact.as_secs())),
        ],
        _ => vec![(CACHE, HeaderValue::from_static("MISS"))],
    }
}

/// What a look at one state found.
enum Seen {
    /// Nothing newer than the client has.
    Old(BTreeSet<Topic>),
    /// An answer, or that there is no such object.
    New { index: Index, answer: Result<Bytes, ApiError>, is_raw: bool },
}

fn attempt(ask: &Ask, state: &State, look: Look, beyond: Option<Index>) -> Result<Seen, ApiError> {
    let found = look(ask, state)?;
    // An index is never shown as zero, so one is what a client has seen of nothing.
    let index = found.index.max(Index(1));
    match beyond {
        Some(beyond) if found.waits && index <= beyond => Ok(Seen::Old(found.topics)),
        _ => Ok(Seen::New { index, answer: (found.answer)(), is_raw: found.is_raw }),
    }
}

/// A reading as fresh as was asked for, and the word for it.
async fn fresh(handle: &Handle, freshness: Freshness) -> Result<(Reading, &'static str), ApiError> {
    let read = |consistency| async move { handle.reader.read(consistency).await.map_err(unread) };
    match freshness {
        Freshness::Stale { max } => {
            let reading = read(Consistency::Stale).await?;
            match max {
                Some(max) if reading.last_contact > max => {
                    Ok((read(Consistency::Default).await?, "leader"))
                }
                _ => Ok((reading, "stale")),
            }
        }
        Freshness::Default => Ok((read(Consistency::Default).await?, "leader")),
        Freshness::Cached(Cached { max_age, stale_if_error }) => {
            let held = read(Consistency::Stale).await?;
            if max_age.is_none_or(|max| held.last_contact <= max && !max.is_zero()) {
                return Ok((held, CACHED));
            }
            match read(Consistency::Default).await {
                Err(ApiError::NoLeader) if held.last_contact <= stale_if_error => {
                    Ok((held, CACHED))
                }
                reading => Ok((reading?, "leader")),
            }
        }
        Freshness::Consistent => Ok((read(Consistency::Consistent).await?, "consistent")),
    }
}

async fn stale(handle: &Handle) -> Result<Reading, ApiError> {
    handle.reader.read(Consistency::Stale).await.map_err(unread)
}

/// Plans a write on a fresh state and proposes it, command by command.
///
/// Where somebody else wrote what it was planned on, and the client did not ask to be told, it is
/// planned anew.
async fn write(
    handle: &Handle,
    mut ask: Ask,
    gate: &Gate,
    plan: fn(&Ask, &State, &Draw) -> Result<Plan, ApiError>,
) -> Result<Answer, ApiError> {
    for is_last in (0..PLANS_MAX).map(|n| n + 1 == PLANS_MAX) {
        let reading = handle.reader.read(Consistency::Default).await.map_err(unread)?;
        ask.sight = gate.open(&reading.state)?;
        let draw = Draw { now: now(), random: rand::random(), secret: rand::random() };
        let Plan { commands, reply } = planned(&ask, &reading.state, &draw, plan)?;
        let is_swap = reply == Reply::Swapped;
        let applied = match propose_all(handle, &reading.state, commands).await {
            Ok(applied) => applied,
            Err(ProposeError::Rejected(
                Rejection::IndexMismatch { .. }
                | Rejection::Locked { .. }
                | Rejection::NotHolder { .. },
            )) if is_swap => return Ok(Answer::json(StatusCode::OK, Bytes::from_static(b"false"))),
            Err(ProposeError::Rejected(Rejection::IndexMismatch { .. })) if !is_last => continue,
            Err(refused) => return Err(unwritten(refused)),
        };
        if let Some(index) = applied {
            // Then even a stale read here sees it. It is applied already, so this cannot fail it.
            drop(handle.reader.wait_for(index).await);
        }
        let body = match &reply {
            Reply::Json(value) => ask.write(value)?,
            Reply::Swapped => Bytes::from_static(b"true"),
            Reply::Acl(stored) => ask.write(&acl::shown(&handle.reader.current(), stored))?,
        };
        return Ok(Answer::json(StatusCode::OK, body));
    }
    Err(ApiError::Unknown)
}

/// Proposes `commands` one after the other; the index of the last, where there is one.
async fn propose_all(
    handle: &Handle,
    state: &State,
    commands: Vec<Command>,
) -> Result<Option<Index>, ProposeError> {
    let mut applied = None;
    for command in commands {
        let is_made = matches!(command, Command::CreateSession(_));
        for step in state.in_steps(command)? {
            match handle.proposer.propose(step).await {
                Ok(index) => applied = Some(index),
                // What was to go is gone.
                Err(ProposeError::Rejected(
                    Rejection::UnknownIntention { .. }
                    | Rejection::UnknownNode { .. }
                    | Rejection::UnknownPeering { .. },
                )) if !is_made => {}
                Err(refused) => return Err(refused),
            }
        }
    }
    Ok(applied)
}

/// What is to be done, once all of it is allowed: nothing is begun that may not be ended.
fn planned(
    ask: &Ask,
    state: &State,
    draw: &Draw,
    plan: fn(&Ask, &State, &Draw) -> Result<Plan, ApiError>,
) -> Result<Plan, ApiError> {
    let plan = plan(ask, state, draw)?;
    for command in &plan.commands {
        authorize::command(ask.sight.may(), state, command).map_err(|why| denied(&why))?;
    }
    Ok(plan)
}

fn unread(refused: ReadError) -> ApiError {
    match refused {
        ReadError::NoLeader => ApiError::NoLeader,
        ReadError::Behind | ReadError::ShuttingDown => ApiError::Unavailable(refused.to_string()),
    }
}

fn unwritten(refused: ProposeError) -> ApiError {
    match refused {
        ProposeError::NoLeader => ApiError::NoLeader,
        ProposeError::Unknown => ApiError::Unknown,
        ProposeError::Rejected(Rejection::Acl(refusal)) => ApiError::bad_request(refusal),
        ProposeError::Rejected(Rejection::Misfit(misfit)) => ApiError::bad_request(misfit),
        ProposeError::Rejected(misfit @ Rejection::IntentionMisfit { .. }) => {
            ApiError::bad_request(misfit)
        }
        ProposeError::Rejected(rejection) => ApiError::Refused(rejection.to_string()),
        ProposeError::Level { .. } => ApiError::Refused(refused.to_string()),
        ProposeError::TooLarge { max, .. } => ApiError::TooLarge { max },
        ProposeError::Unreadable { why } => ApiError::bad_request(why),
        ProposeError::ShuttingDown | ProposeError::DiskFull => {
            ApiError::Unavailable(refused.to_string())
        }
    }
}

const JSON: &str = "application/json";
const GZIP: &str = "application/x-gzip";
const TEXT: &str = "text/plain; charset=utf-8";
const PEM: &str = "application/pem-certificate-chain";
const PEM_START: &[u8] = b"-----BEGIN";
const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
const LAST_CONTACT: HeaderName = HeaderName::from_static("x-consul-lastcontact");
const EFFECTIVE_CONSISTENCY: HeaderName = HeaderName::from_static("x-consul-effective-consistency");
const QUERY_BACKEND: HeaderName = HeaderName::from_static("x-consul-query-backend");
const CACHE: HeaderName = HeaderName::from_static("x-cache");
/// What an answer from memory alone calls its consistency, inside.
const CACHED: &str = "cached";
const DEFAULT_ACL_POLICY: HeaderName = HeaderName::from_static("x-consul-default-acl-policy");
const FILTERED: HeaderName = HeaderName::from_static("x-consul-results-filtered-by-acls");
/// Twice the largest body that any endpoint needs.
const BODY_OCTETS_MAX: usize = 1024 * 1024;
const METHOD_SHOWN: usize = 16;
/// How often a write is planned while others write what it was planned on.
const PLANS_MAX: u32 = 8;
/// Readers that may wait at one server, agents' streams counted too.
const WAITING_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use hawser_core::catalog::{Check, EXTERNAL_META, Endpoint, Instance, Node, Protocol};
    use hawser_core::clock::{Stamp, UnixTime};
    use hawser_core::health::Status;
    use hawser_core::intention::Action;
    use hawser_core::peering::{Import, PeerState, PeerUpdate, Peering, Remote};
    use hawser_core::state::{Cluster, NodeChanges};
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use serde_json::{Value, json};

    use super::*;

    pub(super) fn apply(state: &mut State, command: Command) -> Result<(), Rejection> {
        let index = Index(state.applied().0 + 1);
        let stamp = Stamp { index, time: UnixTime::from_secs(1_790_000_000) };
        state.apply(stamp, command).map(drop)
    }

    fn check(id: &str, status: Status, about: Option<&str>) -> Check {
        Check {
            id: id.parse().expect("an id"),
            name: id.into(),
            kind: "http".into(),
            status,
            notes: "".into(),
            output: "".into(),
            instance: about.map(|id| id.parse().expect("an id")),
            run: Default::default(),
        }
    }

    fn instance(id: &str, service: &str, tags: &[&str]) -> Instance {
        Instance {
            id: id.parse().expect("an id"),
            service: service.parse().expect("a name"),
            address: None,
            port: 80,
            tags: tags.iter().map(|tag| (*tag).into()).collect(),
            meta: Default::default(),
            weights: Default::default(),
            protocol: None,
            mesh_port: Some(21000),
            enable_tag_override: false,
            gateway: None,
            socket: None,
            ports: Default::default(),
            tagged: Default::default(),
        }
    }

    /// Two hosts: `a` with a passing and a critical web, `b` with db.
    pub(super) fn state() -> State {
        let mut state = State::default();
        let cluster = Cluster {
            id: "1f2e".into(),
            trust_domain: "1f2e.consul".parse().expect("a trust domain"),
            datacenter: "dc1".parse().expect("a datacenter"),
            default_action: Action::Deny,
        };
        apply(&mut state, Command::Found(cluster)).expect("a new cluster");
        let host = |name: &str, address: &str| Node {
            name: name.parse().expect("a name"),
            id: format!("id-{name}").into(),
            address: address.parse().expect("an address"),
            locality: Default::default(),
            meta: [("rack".into(), name.into())].into(),
            tagged: Default::default(),
        };
        let sync = |node, put_instances, put_checks| {
            let (drop_instances, drop_checks) = (Vec::new(), Vec::new());
            let changes =
                NodeChanges { node, put_instances, put_checks, drop_instances, drop_checks };
            Command::SyncNode(changes)
        };
        let web =
            vec![instance("web-1", "web", &["v1", "blue"]), instance("web-2", "web", &["v2"])];
        let checks = vec![
            check("service:web-1", Status::Passing, Some("web-1")),
            check("service:web-2", Status::Critical, Some("web-2")),
        ];
        apply(&mut state, sync(host("a", "10.0.0.1"), web, checks)).expect("a host");
        let db = vec![Instance { mesh_port: None, ..instance("db", "db", &[]) }];
        apply(&mut state, sync(host("b", "10.0.0.2"), db, Vec::new())).expect("a host");
        state
    }

    pub(super) fn ask(path: &str, params: Vec<String>, body: &str) -> Result<Ask, ApiError> {
        let query = Query::parse(path.split_once('?').map_or("", |(_, query)| query))?;
        let options = QueryOptions::with_peer(&query)?;
        let datacenter = "dc1".parse().expect("a datacenter");
        Ok(Ask {
            params,
            query,
            options,
            datacenter,
            body: Bytes::copy_from_slice(body.as_bytes()),
            from: Some("a".parse().expect("a name")),
            sight: Sight::off(),
            contacts: Default::default(),
        })
    }

    fn find(method: &Method, path: &str) -> Result<(Handler, Vec<String>), ApiError> {
        match routes::find(method, path.split('?').next().expect("a path"))? {
            Matched::Route(route, params) => Ok((route.handler, params)),
            Matched::OtherMethods(allow) => {
                Err(ApiError::MethodNotAllowed { method: method.to_string(), allow })
            }
            Matched::Unknown => Err(ApiError::UnknownPath),
        }
    }

    pub(super) fn get(state: &State, path: &str) -> Result<(Index, Value), ApiError> {
        let (handler, params) = find(&Method::GET, path)?;
        let (Handler::Read(look) | Handler::ReadOrPeer(look)) = handler else {
            panic!("{path} is no read of the state")
        };
        match attempt(&ask(path, params, "")?, state, look, None)? {
            Seen::New { index, answer, .. } => {
                Ok((index, serde_json::from_slice(&answer?).expect("JSON")))
            }
            Seen::Old(_) => panic!("nothing to wait for"),
        }
    }

    pub(super) fn write(
        state: &mut State,
        method: &Method,
        path: &str,
        body: &Value,
    ) -> Result<Reply, ApiError> {
        let (handler, params) = find(method, path)?;
        let Handler::Write(plan) = handler else { panic!("{path} is no write") };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let draw = Draw {
            now: UnixTime::from_secs(1_790_000_000),
            random: u128::from(state.applied().0) << 64,
            secret: u128::from(state.applied().0) << 64 | 1,
        };
        let plan = plan(&ask(path, params, &body)?, state, &draw)?;
        for command in plan.commands {
            apply(state, command).map_err(|refused| ApiError::Refused(refused.to_string()))?;
        }
        Ok(plan.reply)
    }

    pub(super) fn pick<'a>(list: &'a Value, pointer: &str) -> Vec<&'a str> {
        let items = list.as_array().expect("a list");
        items
            .iter()
            .map(|item| item.pointer(pointer).and_then(Value::as_str).expect("a text"))
            .collect()
    }

    #[test]
    fn reads_list_what_was_asked_for() {
        let state = state();
        let cases = [
            // path, what each item is picked by, expected, why
            ("/v1/catalog/nodes", "/Node", vec!["a", "b"], "all"),
            ("/v1/catalog/nodes?node-meta=rack:b", "/Node", vec!["b"], "by meta"),
            ("/v1/catalog/service/web", "/ServiceID", vec!["web-1", "web-2"], "healthy or not"),
            ("/v1/catalog/service/web?tag=v1&tag=blue", "/ServiceID", vec!["web-1"], "all tags"),
            ("/v1/catalog/service/web?tag=v1&tag=v2", "/ServiceID", vec![], "no one has both"),
            ("/v1/catalog/service/nobody", "/ServiceID", vec![], "unknown is empty"),
            ("/v1/catalog/service/No%20Name", "/ServiceID", vec![], "impossible is empty"),
            (
                "/v1/catalog/connect/web",
                "/ServiceID",
                vec!["web-1-sidecar-proxy", "web-2-sidecar-proxy"],
                "sidecars",
            ),
            ("/v1/catalog/connect/db", "/ServiceID", vec![], "outside the mesh"),
            ("/v1/health/service/web", "/Service/ID", vec!["web-1", "web-2"], "all"),
            ("/v1/health/service/web?passing", "/Service/ID", vec!["web-1"], "only passing"),
            ("/v1/health/service/web?passing=false", "/Service/ID", vec!["web-1", "web-2"], "all"),
            (
                "/v1/health/connect/web?passing=1",
                "/Service/Proxy/DestinationServiceID",
                vec!["web-1"],
                "sidecars",
            ),
            (
                "/v1/health/node/a",
                "/CheckID",
                vec!["serfHealth", "service:web-1", "service:web-2"],
                "all of it",
            ),
            ("/v1/health/node/id-b", "/CheckID", vec!["serfHealth"], "by id"),
            ("/v1/health/node/nobody", "/CheckID", vec![], "unknown is empty"),
            (
                "/v1/health/checks/web",
                "/CheckID",
                vec!["service:web-1", "service:web-2"],
                "no node's",
            ),
            ("/v1/health/state/critical", "/ServiceName", vec!["web"], "one"),
            (
                "/v1/health/state/any",
                "/Status",
                vec!["passing", "passing", "critical", "passing"],
                "all",
            ),
            ("/v1/catalog/nodes?filter=Node+==+b", "/Node", vec!["b"], "filtered"),
            (
                "/v1/health/service/web?filter=%22v2%22+in+Service.Tags+and+Node.Meta.rack==a",
                "/Service/ID",
                vec!["web-2"],
                "filtered by tag and meta",
            ),
            (
                "/v1/health/state/any?filter=ServiceID+!=+%22%22",
                "/CheckID",
                vec!["service:web-1", "service:web-2"],
                "filtered",
            ),
        ];
        for (path, pointer, expected, why) in &cases {
            let (index, list) = get(&state, path).expect(path);
            assert_eq!(pick(&list, pointer), *expected, "{path}: {why}");
            assert!(index > Index(0), "{path}: an index is never zero");
        }
        let (_, services) = get(&state, "/v1/catalog/services").expect("good");
        assert_eq!(services, json!({ "db": [], "web": ["blue", "v1", "v2"] }));
        let path = "/v1/catalog/services?filter=ServiceTags+contains+v1";
        let (_, services) = get(&state, path).expect("good");
        assert_eq!(services, json!({ "web": ["blue", "v1"] }), "tags of matching instances only");
        let path = "/v1/catalog/node/a?filter=ID+==+web-2";
        let (_, node) = get(&state, path).expect("good");
        let ids: Vec<_> =
            node["Services"].as_object().expect("by id").keys().map(String::as_str).collect();
        assert_eq!((ids, &node["Node"]["Node"]), (vec!["web-2"], &json!("a")), "the node is kept");
        for wrong in ["Nod+==+x", "Node+matches+%22(%22", "Node+=="] {
            let path = format!("/v1/catalog/nodes?filter={wrong}");
            assert_eq!(get(&state, &path).expect_err(wrong).status(), 400, "{wrong}");
        }
        let (_, node) = get(&state, "/v1/catalog/node/a").expect("good");
        assert_eq!(node["Node"]["ID"], "id-a");
        assert_eq!(node["Services"]["web-1"]["Port"], 80);
        assert_eq!(get(&state, "/v1/catalog/node/nobody").expect("good").1, Value::Null);
        let (_, node) = get(&state, "/v1/catalog/node-services/id-b").expect("good");
        assert_eq!(node["Services"][0]["ID"], "db");
        let refused = get(&state, "/v1/health/state/odd").expect_err("no state");
        assert_eq!(refused.status(), 400);
    }

    #[test]
    fn an_index_moves_with_its_own_object_only() {
        let mut state = state();
        let paths = [
            "/v1/catalog/services",
            "/v1/health/service/web",
            "/v1/health/service/db",
            "/v1/catalog/node/b",
            "/v1/health/state/any",
        ];
        let before = paths.map(|path| get(&state, path).expect(path).0);
        let node = state.catalog().node(&"a".parse().expect("a name")).expect("a host");
        let changes = NodeChanges {
            node: (*node.value).clone(),
            put_instances: Vec::new(),
            put_checks: vec![check("service:web-2", Status::Passing, Some("web-2"))],
            drop_instances: Vec::new(),
            drop_checks: Vec::new(),
        };
        apply(&mut state, Command::SyncNode(changes)).expect("a health flap");
        let after = paths.map(|path| get(&state, path).expect(path).0);
        let moved: Vec<_> =
            (0..paths.len()).filter(|at| before[*at] != after[*at]).map(|at| paths[at]).collect();
        assert_eq!(moved, ["/v1/health/service/web", "/v1/health/state/any"]);
    }

    #[test]
    fn a_read_waits_for_what_is_newer_and_for_nothing_else() {
        let state = state();
        let (handler, params) = find(&Method::GET, "/v1/health/service/web").expect("a route");
        let Handler::ReadOrPeer(look) = handler else { panic!("a read") };
        let ask = ask("", params, "").expect("good");
        let (index, _) = get(&state, "/v1/health/service/web").expect("good");
        let older = Index(index.0 - 1);
        assert!(matches!(attempt(&ask, &state, look, Some(older)), Ok(Seen::New { .. })));
        let Ok(Seen::Old(topics)) = attempt(&ask, &state, look, Some(index)) else {
            panic!("nothing is newer")
        };
        assert_eq!(topics, [Topic::Service("web".parse().expect("a name"))].into());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut state = state();
        let (put, post, delete) = (Method::PUT, Method::POST, Method::DELETE);
        let yes = Reply::Json(Value::Bool(true));
        let written = [
            (
                &put,
                "/v1/catalog/register",
                json!({
                    "Node": "ext", "Address": "10.9.9.9", "NodeMeta": {"external-node": "true"},
                    "Service": {"service": "old", "ID": "old-1", "Port": 1, "Weights": {"Passing": 0, "Warning": 0}},
                    "Check": {"Name": "up", "Status": "passing", "serviceid": "old-1", "Definition": {"TCP": "x"}},
                }),
            ),
            (
                &put,
                "/v1/connect/intentions/exact?source=web&destination=default/db",
                json!({"Action": "allow"}),
            ),
            (
                &put,
                "/v1/config",
                json!({"Kind": "service-defaults", "Name": "web", "Protocol": "http"}),
            ),
            (
                &put,
                "/v1/config",
                json!({"kind": "service-intentions", "name": "api", "sources": [
                    {"name": "web", "action": "allow"}, {"name": "*", "action": "deny"},
                ]}),
            ),
        ];
        for (method, path, body) in &written {
            assert_eq!(write(&mut state, method, path, body), Ok(yes.clone()), "{path}");
        }
        let (_, ext) = get(&state, "/v1/health/service/old").expect("good");
        assert_eq!(pick(&ext[0]["Checks"], "/CheckID"), ["up"], "and no liveness: no agent");
        assert_eq!(ext[0]["Node"]["Meta"][EXTERNAL_META], "true");
        assert!(!ext[0]["Node"]["ID"].as_str().expect("a text").is_empty(), "an id is made");
        let (_, one) =
            get(&state, "/v1/connect/intentions/exact?source=web&destination=db").expect("good");
        assert_eq!((&one["Action"], &one["Precedence"]), (&json!("allow"), &json!(9)));
        let (_, entry) = get(&state, "/v1/config/service-defaults/web").expect("good");
        let index = entry["ModifyIndex"].as_u64().expect("an index");
        assert_eq!(
            entry,
            json!({
                "Kind": "service-defaults", "Name": "web", "Protocol": "http",
                "CreateIndex": index, "ModifyIndex": index,
            })
        );
        let (_, api) = get(&state, "/v1/config/service-intentions/api").expect("good");
        assert_eq!(pick(&api["Sources"], "/Name"), ["web", "*"], "by precedence");
        let (_, all) = get(&state, "/v1/connect/intentions").expect("good");
        assert_eq!(pick(&all, "/DestinationName"), ["api", "db", "api"]);
        let ids: BTreeSet<_> = pick(&all, "/ID").into_iter().collect();
        assert_eq!(ids.len(), 3, "one draw gives as many ids as are wanted");
        let checks =
            [("web", "db", true), ("web", "api", true), ("db", "api", false), ("db", "web", false)];
        for (source, destination, allowed) in checks {
            let path =
                format!("/v1/connect/intentions/check?source={source}&destination={destination}");
            assert_eq!(
                get(&state, &path).expect("good").1,
                json!({ "Allowed": allowed }),
                "{path}"
            );
        }
        let (_, matched) =
            get(&state, "/v1/connect/intentions/match?by=destination&name=api&name=db")
                .expect("good");
        assert_eq!(pick(&matched["api"], "/Action"), ["allow", "deny"]);
        assert_eq!(pick(&matched["db"], "/SourceName"), ["web"]);
        let swap = |index: u64| format!("/v1/config?cas={index}");
        let grpc = json!({"Kind": "service-defaults", "Name": "web", "Protocol": "grpc"});
        assert!(write(&mut state, &put, &swap(index - 1), &grpc).is_err(), "refused by the state");
        assert_eq!(write(&mut state, &put, &swap(index), &grpc), Ok(Reply::Swapped));
        let only = json!({"Kind": "service-intentions", "Name": "api", "Sources": [{"Name": "db", "Action": "deny"}]});
        assert_eq!(write(&mut state, &put, "/v1/config", &only), Ok(yes.clone()));
        let (_, api) = get(&state, "/v1/config/service-intentions/api").expect("good");
        assert_eq!(pick(&api["Sources"], "/Name"), ["db"], "the others fall away");
        let new = json!({"SourceName": "a", "DestinationName": "b", "Action": "deny"});
        let Ok(Reply::Json(made)) = write(&mut state, &post, "/v1/connect/intentions", &new) else {
            panic!("made")
        };
        let path = format!("/v1/connect/intentions/{}", made["ID"].as_str().expect("an id"));
        assert_eq!(get(&state, &path).expect("good").1["SourceName"], "a");
        assert!(write(&mut state, &post, "/v1/connect/intentions", &new).is_err(), "twice");
        assert_eq!(write(&mut state, &delete, &path, &Value::Null), Ok(yes.clone()));
        assert_eq!(get(&state, &path).expect_err("gone").status(), 404);
        let gone = json!({"Node": "ext"});
        assert_eq!(write(&mut state, &put, "/v1/catalog/deregister", &gone), Ok(yes.clone()));
        assert_eq!(write(&mut state, &put, "/v1/catalog/deregister", &gone), Ok(yes), "again");
        assert_eq!(get(&state, "/v1/health/service/old").expect("good").1, json!([]));
    }

    #[test]
    fn intentions_about_requests_are_read_as_they_were_written() {
        let mut state = state();
        let put = Method::PUT;
        let permissions = json!([{
            "Action": "allow",
            "HTTP": {"PathPrefix": "/pub", "Methods": ["GET"],
                     "Header": [{"Name": "x-team", "Exact": "a", "Invert": true}]},
            "JWT": {"Providers": [{"Name": "okta"}]},
        }]);
        let jwt = json!({"Providers": [
            {"Name": "okta", "VerifyClaims": [{"Path": ["a", "b"], "Value": "c"}]},
        ]});
        let entry = json!({"Kind": "service-intentions", "Name": "db", "JWT": jwt, "Sources": [
            {"Name": "web", "Permissions": permissions},
            {"Name": "cron", "Action": "allow"},
        ]});
        write(&mut state, &put, "/v1/config", &entry).expect("good");
        let (_, read) = get(&state, "/v1/config/service-intentions/db").expect("there");
        assert_eq!(read["JWT"], jwt);
        let source = |name: &str| {
            let sources = read["Sources"].as_array().expect("a list");
            sources.iter().find(|source| source["Name"] == name).cloned().expect(name)
        };
        assert_eq!(source("web")["Permissions"], permissions);
        assert_eq!(source("web").get("Action"), None);
        assert_eq!(source("cron")["Action"], "allow");
        // Whoever asks about a whole connection is told that it may not.
        for caller in ["web", "cron"] {
            let check = format!("/v1/connect/intentions/check?source={caller}&destination=db");
            assert_eq!(get(&state, &check).expect("good").1["Allowed"], false, "{caller}");
        }
        // A rule for one more caller keeps what is asked of all.
        let exact = "/v1/connect/intentions/exact?source=api&destination=db";
        write(&mut state, &put, exact, &json!({"Action": "allow"})).expect("good");
        let (_, api) = get(&state, exact).expect("there");
        assert_eq!((&api["Action"], &api["JWT"]), (&json!("allow"), &jwt));
        let any = json!({"Kind": "service-intentions", "Name": "*", "Sources": [
            {"Name": "web", "Permissions": permissions},
        ]});
        let refused = write(&mut state, &put, "/v1/config", &any).expect_err("for every callee");
        assert!(refused.to_string().contains("name one"), "{refused}");
    }

    #[test]
    fn writers_that_planned_on_the_same_state_never_leave_a_union() {
        let entry = |names: &[&str]| {
            let sources: Vec<Value> =
                names.iter().map(|name| json!({"Name": name, "Action": "allow"})).collect();
            json!({"Kind": "service-intentions", "Name": "db", "Sources": sources})
        };
        let plan = |state: &State, path: &str, body: &Value| {
            let draw = Draw { now: UnixTime::from_secs(1_790_000_000), random: 1, secret: 2 };
            let ask = ask(path, Vec::new(), &body.to_string()).expect("good");
            entries::put(&ask, state, &draw).expect("good").commands
        };
        let names = |state: &State| -> Vec<String> {
            let rows = state.intentions().iter();
            rows.map(|row| row.value.pair.source.to_string()).collect()
        };
        // What is there, what both write, whether they name the index that they saw.
        type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], bool);
        let cases: &[Case<'_>] = &[
            (&[], &["a"], &["b"], false),
            (&[], &["a"], &["b"], true),
            (&["x"], &["a"], &["b"], false),
            (&["x"], &["a"], &["b"], true),
            // The first only takes away: the newest of what stays is as old as it was.
            (&["x", "y"], &["y"], &["b", "x"], true),
            (&["x", "y"], &["y"], &["b", "x"], false),
        ];
        for (there, first, second, is_swap) in cases {
            let mut state = state();
            for command in plan(&state, "/v1/config", &entry(there)) {
                apply(&mut state, command).expect("applied");
            }
            let db = "db".parse().expect("a side");
            let seen = state.intentions().index_about(&db).0;
            let path =
                if *is_swap { format!("/v1/config?cas={seen}") } else { "/v1/config".into() };
            let planned = [first, second].map(|names| plan(&state, &path, &entry(names)));
            let [one, other] = planned.map(|commands| match &commands[..] {
                [command] => command.clone(),
                several => panic!("{} commands are several writes", several.len()),
            });
            apply(&mut state, one).expect("the first");
            match (apply(&mut state, other), is_swap) {
                (Ok(()), false) => assert_eq!(names(&state), *second),
                (Err(Rejection::IndexMismatch { .. }), true) => assert_eq!(names(&state), *first),
                (outcome, _) => panic!("{there:?} {first:?} {second:?}: {outcome:?}"),
            }
        }
    }

    #[test]
    fn callers_of_peers_have_rules_of_their_own() {
        let mut state = state();
        let (put, post, delete) = (Method::PUT, Method::POST, Method::DELETE);
        let sources = json!({"Kind": "service-intentions", "Name": "db", "Sources": [
            {"Name": "web", "Action": "deny"},
            {"Name": "web", "Peer": "west", "Action": "allow"},
            {"Name": "*", "Peer": "west", "Action": "deny"},
        ]});
        write(&mut state, &put, "/v1/config", &sources).expect("the same name of two clusters");
        let (_, entry) = get(&state, "/v1/config/service-intentions/db").expect("good");
        let pairs = entry["Sources"].as_array().expect("a list").iter();
        let pairs: Vec<_> = pairs.map(|it| (it["Name"].clone(), it.get("Peer").cloned())).collect();
        let expected = [("web", None), ("web", Some("west")), ("*", Some("west"))];
        let expected = expected.map(|(name, peer)| (json!(name), peer.map(|peer| json!(peer))));
        assert_eq!(pairs, expected, "as written: a peer's has it, one's own has none");
        let exact = "/v1/connect/intentions/exact?source=peer:east/web&destination=db";
        write(&mut state, &put, exact, &json!({"Action": "allow"})).expect("by the URL");
        let api = json!({"SourceName": "web", "SourcePeer": "west", "DestinationName": "api",
                         "Action": "allow"});
        write(&mut state, &post, "/v1/connect/intentions", &api).expect("by the body");
        assert!(write(&mut state, &post, "/v1/connect/intentions", &api).is_err(), "twice");
        let checks = [
            // source, destination, allowed, why
            ("web", "db", false, "one's own is denied"),
            ("peer:west/web", "db", true, "the peer's is allowed"),
            ("peer:west/cron", "db", false, "the peer's catch-all"),
            ("peer:east/web", "db", true, "written by the URL"),
            ("peer:east/cron", "db", false, "no rule: the default"),
            ("peer:west/web", "api", true, "written by the body"),
            ("web", "api", false, "a peer's rule is not one's own"),
        ];
        for (source, destination, allowed, why) in checks {
            let path =
                format!("/v1/connect/intentions/check?source={source}&destination={destination}");
            let (_, answer) = get(&state, &path).expect("good");
            assert_eq!(answer, json!({ "Allowed": allowed }), "{path}: {why}");
        }
        let shown = |path: &str, name: &str| {
            let (_, matched) = get(&state, path).expect(path);
            let all = matched[name].as_array().expect("a list").clone();
            let side = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
            let text =
                |it: &Value| format!("{}/{}", side(it, "SourcePeer"), side(it, "SourceName"));
            all.iter().map(text).collect::<Vec<_>>()
        };
        let path = "/v1/connect/intentions/match?by=destination&name=db";
        assert_eq!(shown(path, "db"), ["/web", "east/web", "west/web", "west/*"]);
        let path = "/v1/connect/intentions/match?by=source&name=peer:west/web";
        assert_eq!(shown(path, "peer:west/web"), ["west/web", "west/web", "west/*"]);
        let path = "/v1/connect/intentions/match?by=source&name=web";
        assert_eq!(shown(path, "web"), ["/web"]);
        assert_eq!(get(&state, exact).expect("good").1["SourcePeer"], "east");
        write(&mut state, &delete, exact, &Value::Null).expect("removed");
        assert_eq!(get(&state, exact).expect_err("gone").status(), 404);
    }

    /// A peer `west` that exports `api` with a passing and a critical instance, and `db`.
    fn exporting(state: &mut State) {
        let remote = Remote {
            peering: "2b-1".into(),
            trust_domain: "2b.consul".parse().expect("a trust domain"),
            datacenter: "dc2".parse().expect("a name"),
            calls_us: "east".parse().expect("a name"),
            server_roots: Vec::new(),
            roots: Vec::new(),
            revoked: Default::default(),
            servers: Vec::new(),
            gateways: Vec::new(),
            rtt_ms: None,
        };
        let peering = Peering {
            id: "1f-1".into(),
            name: "west".parse().expect("a name"),
            meta: Default::default(),
            state: PeerState::Active,
            invitation: None,
            remote: Some(remote),
        };
        apply(state, Command::PutPeering(peering)).expect("a peering");
        let far = |node: &str, last: u8, status, tag: &str| Endpoint {
            node: node.parse().expect("a name"),
            instance: format!("{node}-1").parse().expect("an id"),
            address: [10, 2, 0, last].into(),
            has_own_address: false,
            ports: Default::default(),
            port: 80,
            mesh: (last < 9).then(|| ([10, 2, 0, last], 21000).into()),
            locality: Default::default(),
            tags: [tag.into()].into(),
            weights: Default::default(),
            status,
        };
        let api =
            vec![far("far-a", 1, Status::Passing, "v1"), far("far-b", 2, Status::Critical, "v2")];
        export(state, vec![("api", api), ("db", vec![far("far-c", 9, Status::Passing, "")])], &[]);
    }

    fn export(state: &mut State, put: Vec<(&str, Vec<Endpoint>)>, drop: &[&str]) {
        let import = |(name, endpoints): (&str, Vec<Endpoint>)| Import {
            service: name.parse().expect("a name"),
            protocol: Protocol::Http,
            endpoints: endpoints.into(),
        };
        let update = PeerUpdate {
            name: "west".parse().expect("a name"),
            id: "1f-1".into(),
            remote: None,
            is_snapshot: false,
            put: put.into_iter().map(import).collect(),
            drop: drop.iter().map(|name| name.parse().expect("a name")).collect(),
        };
        apply(state, Command::SyncPeer(update)).expect("what it exports");
    }

    #[test]
    fn what_a_peer_exports_is_read_by_its_name() {
        let mut state = state();
        exporting(&mut state);
        let cases = [
            // path, what each item is picked by, expected, why
            ("health/service/api?peer=west", "/Service/ID", vec!["far-a-1", "far-b-1"], "all"),
            ("health/service/api?peer=west&passing", "/Node/Node", vec!["far-a"], "only passing"),
            ("health/service/api?peer=west&tag=v2", "/Checks/0/Status", vec!["critical"], "by tag"),
            (
                "health/service/api?peer=west&filter=Node.PeerName+==+east",
                "/Node",
                vec![],
                "filter",
            ),
            ("health/service/api?peer=east", "/Node", vec![], "an unknown peer is empty"),
            ("health/service/api?peer=No%20Peer", "/Node", vec![], "an impossible one, too"),
            ("health/service/web?peer=west", "/Node", vec![], "one's own is not the peer's"),
            ("health/service/api", "/Node", vec![], "nor the peer's one's own"),
            ("health/service/api?peer=west&node-meta=a:b", "/Node", vec![], "no meta is told"),
            ("health/connect/db?peer=west", "/Service/ID", vec![], "outside the mesh"),
            ("health/checks/db?peer=west", "/CheckID", vec!["far-c-1:overall-check"], "one each"),
            ("catalog/service/api?peer=west", "/PeerName", vec!["west", "west"], "flat"),
            ("catalog/connect/db?peer=west", "/PeerName", vec![], "outside the mesh"),
            ("catalog/nodes?peer=west", "/Node", vec!["far-a", "far-b", "far-c"], "by name"),
            ("catalog/nodes?peer=west&filter=Address+==+10.2.0.9", "/Node", vec!["far-c"], "some"),
            ("catalog/nodes?peer=east", "/Node", vec![], "an unknown peer is empty"),
        ];
        for (path, pointer, expected, why) in &cases {
            let (index, list) = get(&state, &format!("/v1/{path}")).expect(path);
            assert_eq!(pick(&list, pointer), *expected, "{path}: {why}");
            assert!(index > Index(0), "{path}: an index is never zero");
        }
        let (_, found) = get(&state, "/v1/health/connect/api?peer=west").expect("good");
        let (node, service) = (&found[0]["Node"], &found[0]["Service"]);
        assert_eq!((&node["Address"], &node["Datacenter"]), (&json!("10.2.0.1"), &json!("dc2")));
        assert_eq!((&node["PeerName"], &service["PeerName"]), (&json!("west"), &json!("west")));
        assert_eq!((&service["Kind"], &service["Port"]), (&json!("connect-proxy"), &json!(21000)));
        let (_, services) = get(&state, "/v1/catalog/services?peer=west").expect("good");
        assert_eq!(services, json!({ "api": ["v1", "v2"], "db": [""] }));
        let path = "/v1/catalog/services?peer=west&filter=ServiceTags+contains+v1";
        assert_eq!(get(&state, path).expect("good").1, json!({ "api": ["v1"] }));
        let own = get(&state, "/v1/catalog/services").expect("good").1;
        assert_eq!(own, json!({ "db": [], "web": ["blue", "v1", "v2"] }));
    }

    #[test]
    fn what_is_exchanged_with_peers_is_listed() {
        let mut state = state();
        exporting(&mut state);
        let body = json!({"Kind": "exported-services", "Name": "default", "Services": [
            {"Name": "*", "Consumers": [{"Peer": "west"}]},
            {"Name": "web", "Consumers": [{"Peer": "north"}]},
        ]});
        write(&mut state, &Method::PUT, "/v1/config", &body).expect("written");
        let (_, exported) = get(&state, "/v1/exported-services").expect("good");
        let expected = json!([
            {"Service": "db", "Consumers": {"Peers": ["west"]}},
            {"Service": "web", "Consumers": {"Peers": ["north", "west"]}},
        ]);
        assert_eq!(exported, expected);
        let (_, imported) = get(&state, "/v1/imported-services").expect("good");
        let expected = json!([
            {"Service": "api", "SourcePeer": "west"}, {"Service": "db", "SourcePeer": "west"},
        ]);
        assert_eq!(imported, expected);
    }

    #[test]
    fn a_reader_of_a_peer_waits_for_that_service_and_never_goes_back() {
        let mut state = state();
        exporting(&mut state);
        let paths = [
            "/v1/health/service/api?peer=west",
            "/v1/health/service/db?peer=west",
            "/v1/catalog/services?peer=west",
            "/v1/health/service/db",
        ];
        let indexes = |state: &State| paths.map(|path| get(state, path).expect(path).0);
        let first = indexes(&state);
        export(&mut state, Vec::new(), &["api"]);
        let second = indexes(&state);
        assert!(second[0] > first[0] && second[2] > first[2], "it is gone: {second:?}");
        assert_eq!((second[1], second[3]), (first[1], first[3]), "the others are as before");
        assert_eq!(get(&state, paths[0]).expect("good").1, json!([]));
        export(&mut state, vec![("api", Vec::new())], &[]);
        assert!(indexes(&state)[0] > second[0], "it is back");
        let (handler, params) = find(&Method::GET, "/v1/health/service/api").expect("a route");
        let Handler::ReadOrPeer(look) = handler else { panic!("a read") };
        let ask = ask(paths[0], params, "").expect("good");
        let Ok(Seen::Old(topics)) = attempt(&ask, &state, look, Some(state.applied())) else {
            panic!("nothing is newer")
        };
        assert_eq!(topics, [Topic::Import("api".parse().expect("a name"))].into());
    }

    #[test]
    fn what_is_wrong_is_refused_where_it_is_wrong() {
        let mut state = state();
        let (put, get, post) = (Method::PUT, Method::GET, Method::POST);
        let register = "/v1/catalog/register";
        let exact = "/v1/connect/intentions/exact?source=web&destination=db";
        let cases = [
            (&put, register, json!({}), 400, "Must provide node"),
            (&put, register, json!({"Node": "x"}), 400, "Must provide address"),
            (
                &put,
                register,
                json!({"Node": "x", "Address": "10.0.0.1", "Oops": 1}),
                400,
                "unknown field \"Oops\"",
            ),
            (
                &put,
                register,
                json!({"Node": "x", "Address": "10.0.0.1", "Service": {"Prt": 1, "Service": "a"}}),
                400,
                "Service.Prt",
            ),
            (
                &put,
                register,
                json!({"Node": "x", "Datacenter": "dc2", "Address": "10.0.0.1"}),
                500,
                "No path to datacenter",
            ),
            (
                &put,
                register,
                json!({"Node": "x", "Address": "10.0.0.1", "Check": {"CheckID": "c", "ServiceID": "no"}}),
                500,
                "no instance no",
            ),
            (
                &put,
                register,
                json!({"Node": "a", "Check": {"CheckID": "serfHealth", "Status": "critical"}}),
                400,
                "belongs to the servers",
            ),
            (&put, exact, json!({}), 400, "Action: is missing"),
            (&put, exact, json!({"Action": "alow"}), 400, "neither"),
            (
                &put,
                exact,
                json!({"Permissions": [{"Action": "deny"}]}),
                400,
                "[0]: it says nothing",
            ),
            (
                &put,
                exact,
                json!({"Action": "allow", "Permissions": [{"Action": "deny"}]}),
                400,
                "use one of the two",
            ),
            (
                &put,
                exact,
                json!({"Permissions": [{"Action": "allow", "HTTP": {"PathExact": "x"}}]}),
                400,
                "Permissions[0].HTTP.PathExact: the path does not begin with /",
            ),
            (
                &put,
                "/v1/config",
                json!({"Kind": "jwt-provider", "Name": "okta", "JSONWebKeySet": {}}),
                400,
                "jwt-provider/okta: JSONWebKeySet: use one of Local and Remote",
            ),
            (
                &put,
                exact,
                json!({"Action": "allow", "SourceName": "api"}),
                400,
                "is web in the URL",
            ),
            (
                &put,
                "/v1/connect/intentions/exact?source=web",
                json!({"Action": "allow"}),
                400,
                "'destination' not set",
            ),
            (
                &put,
                "/v1/connect/intentions/exact?source=web&destination=peer:x/db",
                json!({"Action": "allow"}),
                400,
                "can only be the source",
            ),
            (
                &put,
                "/v1/connect/intentions/exact?source=peer:x&destination=db",
                json!({"Action": "allow"}),
                400,
                "peer:PEER/SERVICE",
            ),
            (&put, exact, json!({"Action": "allow", "SourcePeer": "x"}), 400, "is none in the URL"),
            (
                &put,
                "/v1/config",
                json!({"Kind": "service-intentions", "Name": "db", "Sources": [
                    {"Name": "web", "Peer": "west", "Action": "allow"},
                    {"Name": "web", "Peer": "west", "Action": "deny"},
                ]}),
                400,
                "web of peer west is there twice",
            ),
            (
                &put,
                "/v1/connect/intentions/exact?source=team/web&destination=db",
                json!({"Action": "allow"}),
                400,
                "namespace",
            ),
            (
                &post,
                "/v1/connect/intentions",
                json!({"Action": "allow", "SourceName": "a"}),
                400,
                "DestinationName: is missing",
            ),
            (
                &put,
                "/v1/config",
                json!({"Kind": "ingress-gateway", "Name": "web"}),
                400,
                "not supported",
            ),
            (
                &put,
                "/v1/config",
                json!({"Kind": "service-splitter", "Name": "web"}),
                400,
                "Splits: there is none",
            ),
            (
                &put,
                "/v1/config",
                json!({"Kind": "service-defaults", "Name": "web", "Protcol": "http"}),
                400,
                "Protcol",
            ),
            (
                &put,
                "/v1/config",
                json!({"Kind": "service-defaults", "Protocol": "http"}),
                400,
                "Name: is missing",
            ),
            (
                &put,
                "/v1/config",
                json!({"Kind": "service-defaults", "Name": "web", "Protocol": "htp"}),
                400,
                "htp",
            ),
            (
                &put,
                "/v1/config",
                json!({"Kind": "service-defaults", "Name": "web", "Namespace": "x"}),
                400,
                "default",
            ),
            (&put, "/v1/catalog/nodes", json!({}), 405, "not allowed"),
            (&put, "/v1/connect/intentions/match", json!({}), 405, "not allowed"),
            (&get, "/v1/catalog/register", Value::Null, 405, "not allowed"),
            (&get, "/v1/nothing", Value::Null, 404, "Invalid URL path"),
            (&get, "/v2/catalog/nodes", Value::Null, 404, "Invalid URL path"),
            (&get, "/v1/catalog/node/a%0ab", Value::Null, 400, "control character"),
        ];
        for (method, path, body, status, why) in cases {
            let refused = write(&mut state, method, path, &body).expect_err(path);
            assert_eq!(refused.status().as_u16(), status, "{path} {body}: {refused}");
            assert!(refused.to_string().contains(why), "{path} {body}: {refused} has no {why:?}");
        }
    }

    #[test]
    fn what_nothing_in_the_mesh_is_called_is_neither_denied_nor_revoked_nor_configured() {
        let (put, post) = (Method::PUT, Method::POST);
        for name in ["Web", "web ", "a/b", "w\u{e9}b"] {
            let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC).to_string();
            let exact = |pair: String| format!("/v1/connect/intentions/exact?{pair}");
            let (deny, config) = (json!({"Action": "deny"}), "/v1/config");
            for (method, path, body) in [
                (&put, exact(format!("source={encoded}&destination=db")), deny.clone()),
                (&put, exact(format!("source=web&destination={encoded}")), deny.clone()),
                (
                    &post,
                    "/v1/connect/intentions".to_owned(),
                    json!({"Action": "deny", "SourceName": name, "DestinationName": "db"}),
                ),
                (
                    &put,
                    config.to_owned(),
                    json!({"Kind": "service-intentions", "Name": "db",
                           "Sources": [{"Name": name, "Action": "deny"}]}),
                ),
                (
                    &put,
                    config.to_owned(),
                    json!({"Kind": "service-intentions", "Name": name,
                           "Sources": [{"Name": "web", "Action": "deny"}]}),
                ),
                (&put, config.to_owned(), json!({"Kind": "service-defaults", "Name": name})),
                (&put, "/v1/hawser/connect/revocation".to_owned(), json!({"Service": name})),
            ] {
                let mut state = state();
                let refused = write(&mut state, method, &path, &body).expect_err(&path);
                assert_eq!(refused.status(), 400, "{path} {body}: {refused}");
            }
        }
        let node = json!({"Node": "a b"});
        let revoked = write(&mut state(), &put, "/v1/hawser/connect/revocation", &node);
        assert_eq!(revoked.map_err(|why| why.status().as_u16()), Err(400), "no agent is called so");
    }

    #[test]
    fn a_path_allows_what_its_routes_do() {
        let allowed = |path: &str| match routes::find(&Method::PATCH, path) {
            Ok(Matched::OtherMethods(allow)) => allow,
            _ => panic!("{path} has other methods"),
        };
        assert_eq!(allowed("/v1/connect/intentions"), "GET,POST,OPTIONS");
        assert_eq!(allowed("/v1/connect/intentions/exact"), "GET,PUT,DELETE,OPTIONS");
        assert_eq!(allowed("/v1/connect/intentions/match"), "GET,OPTIONS");
    }
}
