//! `/v1/session`: what locks are held by.

use std::time::Duration;

use hawser_api::error::ApiError;
use hawser_api::fields::{Field, Fields, InvalidField};
use hawser_api::json;
use hawser_core::acl::{Access, Resource};
use hawser_core::catalog::Row;
use hawser_core::duration;
use hawser_core::health::NODE_LIVENESS_CHECK;
use hawser_core::name::{CheckId, NodeName, SessionId};
use hawser_core::session::{Behavior, LOCK_DELAY, Session, TTL_MAX, TTL_MIN};
use hawser_core::state::{Command, State, Topic};
use http::StatusCode;
use serde_json::{Value, json as object};

use super::ask::{Ask, Draw, Found, Plan, Reply};
use super::catalog::datacenter;
use super::cluster::Said;
use super::unread;
use crate::Handle;
use crate::read::Consistency;

pub(crate) fn create(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let body = if ask.body.is_empty() { object!({}) } else { ask.json()? };
    let mut fields = Fields::open(&body, "")?;
    datacenter(&mut fields, ask)?;
    fields.default_tenancy()?;
    let id = draw.uuid(0);
    let session = Session {
        // A UUID is printable.
        id: id.parse().map_err(ApiError::bad_request)?,
        name: name(&mut fields)?.into(),
        node: node(&mut fields, ask, state)?,
        lock_delay: lock_delay(&mut fields)?,
        behavior: behavior(&mut fields)?,
        ttl: ttl(&mut fields)?,
        node_checks: node_checks(&mut fields)?,
        service_checks: service_checks(&mut fields)?,
    };
    fields.ignore(&["ID", "CreateIndex", "ModifyIndex"]);
    fields.finish()?;
    let reply = Reply::Json(object!({ "ID": id }));
    Ok(Plan { commands: vec![Command::CreateSession(session)], reply })
}

fn name<'a>(fields: &mut Fields<'a>) -> Result<&'a str, ApiError> {
    match fields.text(&["Name"])? {
        Some((path, text)) if text.len() > NAME_OCTETS_MAX => {
            let why = format_args!("{NAME_OCTETS_MAX} octets is the most");
            Err(InvalidField::new(path, why).into())
        }
        name => Ok(name.map_or("", |(_, text)| text)),
    }
}

/// The node that is named, or the one whose agent asks.
fn node(fields: &mut Fields<'_>, ask: &Ask, state: &State) -> Result<NodeName, ApiError> {
    let node = fields.parsed::<NodeName>(&["Node"])?.or_else(|| ask.from.clone());
    let node = node.ok_or_else(|| InvalidField::new("Node", "is missing: name a node"))?;
    // Which nodes there are is told to those only who could use them.
    ask.sight.demand(Resource::Session, Access::Write, node.as_str())?;
    if state.catalog().node(&node).is_none() {
        return Err(ApiError::Refused("Missing node registration".to_owned()));
    }
    Ok(node)
}

/// A text as Go writes durations, or a number: of seconds where it is small, as Consul reads it,
/// and of nanoseconds otherwise.
fn lock_delay(fields: &mut Fields<'_>) -> Result<Duration, ApiError> {
    let Some(Field { path, value }) = fields.take(&["LockDelay"])? else { return Ok(LOCK_DELAY) };
    let delay = match value {
        Value::String(text) if text.is_empty() => Some(LOCK_DELAY),
        Value::String(text) => duration::parse(text).ok(),
        Value::Number(number) => number.as_u64().map(|number| match number {
            0..LOCK_DELAY_SECONDS_MAX => Duration::from_secs(number),
            nanos => Duration::from_nanos(nanos),
        }),
        _ => None,
    };
    Ok(delay.ok_or_else(|| InvalidField::new(path, "must be a duration such as \"15s\""))?)
}

fn behavior(fields: &mut Fields<'_>) -> Result<Behavior, ApiError> {
    match fields.text(&["Behavior"])? {
        None | Some((_, "release")) => Ok(Behavior::Release),
        Some((_, "delete")) => Ok(Behavior::Delete),
        Some((_, other)) => Err(ApiError::bad_request(format_args!(
            "Invalid Behavior setting '{other}': use release or delete"
        ))),
    }
}

fn ttl(fields: &mut Fields<'_>) -> Result<Option<Duration>, ApiError> {
    let ttl = fields.duration(&["TTL"])?;
    match ttl {
        Some(ttl) if !(TTL_MIN..=TTL_MAX).contains(&ttl) => {
            Err(ApiError::bad_request(format_args!(
                "Invalid Session TTL '{}', must be between [{}={}]",
                ttl.as_nanos(),
                duration::format(TTL_MIN),
                duration::format(TTL_MAX),
            )))
        }
        ttl => Ok(ttl),
    }
}

/// Those named, also by their older name; the node's liveness where none are.
fn node_checks(fields: &mut Fields<'_>) -> Result<Vec<CheckId>, ApiError> {
    let (mut texts, mut is_said) = (Vec::new(), false);
    for names in [["NodeChecks"], ["Checks"]] {
        if let Some(Field { path, value }) = fields.take(&names)? {
            is_said = true;
            let list =
                value.as_array().ok_or_else(|| InvalidField::new(&path, "must be a list"))?;
            for (at, item) in list.iter().enumerate() {
                let path = format!("{path}[{at}]");
                texts.push((path, item.as_str().unwrap_or_default()));
            }
        }
    }
    if !is_said {
        texts.push(("NodeChecks".to_owned(), NODE_LIVENESS_CHECK));
    }
    checks(texts)
}

/// Each as an object with its id, or as the bare id.
fn service_checks(fields: &mut Fields<'_>) -> Result<Vec<CheckId>, ApiError> {
    let mut texts = Vec::new();
    for Field { path, value } in fields.list(&["ServiceChecks"])? {
        if let Some(text) = value.as_str() {
            texts.push((path, text));
            continue;
        }
        let mut check = Fields::open(value, &path)?;
        let (path, text) =
            check.text(&["ID"])?.ok_or_else(|| InvalidField::new(path, "has no ID"))?;
        check.default_tenancy()?;
        check.finish()?;
        texts.push((path, text));
    }
    checks(texts)
}

fn checks(texts: Vec<(String, &str)>) -> Result<Vec<CheckId>, ApiError> {
    if texts.len() > CHECKS_MAX {
        let why = format_args!("{CHECKS_MAX} checks are the most");
        return Err(InvalidField::new("NodeChecks", why).into());
    }
    let mut checks = Vec::new();
    for (path, text) in texts {
        let check = text
            .parse()
            .map_err(|why| InvalidField::new(path, format_args!("{text:?} is no check: {why}")))?;
        if !checks.contains(&check) {
            checks.push(check);
        }
    }
    Ok(checks)
}

pub(crate) fn destroy(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let id: SessionId = ask.name().parse().map_err(ApiError::bad_request)?;
    // One that has ended already is ended, and the log need not say so again.
    let held = state.sessions().get(&id);
    Ok(Plan::new(held.map(|_| Command::EndSession(id))))
}

/// Notes that the holder is well. The leader counts from when it hears of it.
pub(crate) async fn renew(handle: Handle, ask: Ask) -> Said {
    let reading = handle.reader.read(Consistency::Default).await.map_err(unread)?;
    let id: Option<SessionId> = ask.name().parse().ok();
    let Some(row) = id.as_ref().and_then(|id| reading.state.sessions().get(id)) else {
        return Err(ApiError::NotFound(format!("Session id '{}' not found", ask.name())));
    };
    ask.sight.demand(Resource::Session, Access::Write, row.value.node.as_str())?;
    handle.leases.renew_session(row.value.id.clone());
    Ok((StatusCode::OK, ask.write(&[session(row)])?))
}

pub(crate) fn info<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let row = ask.name().parse().ok().and_then(|id| state.sessions().get(&id));
    let row = row.filter(|row| ask.sight.session(row.value.node.as_str()));
    let index = row.map_or(state.sessions().index(), |row| row.modified);
    Ok(Found::list(ask, index, [Topic::Sessions], move || {
        row.map(session).into_iter().collect::<Vec<_>>()
    }))
}

pub(crate) fn list<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let sessions = state.sessions();
    Ok(Found::list(ask, sessions.index(), [Topic::Sessions], move || {
        let seen = sessions.iter().filter(|row| ask.sight.session(row.value.node.as_str()));
        seen.map(session).collect::<Vec<_>>()
    }))
}

pub(crate) fn of_node<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let sessions = state.sessions();
    Ok(Found::list(ask, sessions.index(), [Topic::Sessions], move || {
        let node = ask.any_node(state).filter(|node| ask.sight.session(node.as_str()));
        let Some(node) = node else { return Vec::new() };
        sessions.on(&node).map(session).collect::<Vec<_>>()
    }))
}

fn session(row: &Row<Session>) -> json::Session {
    let Session { id, name, node, lock_delay, behavior, ttl, node_checks, service_checks } =
        &*row.value;
    let texts = |checks: &[CheckId]| checks.iter().map(ToString::to_string).collect::<Vec<_>>();
    let service_checks = (!service_checks.is_empty()).then(|| {
        let of = |id| json::SessionServiceCheck { id, namespace: String::new() };
        texts(service_checks).into_iter().map(of).collect()
    });
    json::Session {
        id: id.to_string(),
        name: name.to_string(),
        node: node.to_string(),
        lock_delay: u64::try_from(lock_delay.as_nanos()).unwrap_or(u64::MAX),
        behavior: behavior.as_str().to_owned(),
        ttl: ttl.map(duration::format).unwrap_or_default(),
        node_checks: texts(node_checks),
        service_checks,
        create_index: row.created.0,
        modify_index: row.modified.0,
    }
}

const NAME_OCTETS_MAX: usize = 512;
const CHECKS_MAX: usize = 64;
/// From here on, a number is one of nanoseconds.
const LOCK_DELAY_SECONDS_MAX: u64 = 1_000;
