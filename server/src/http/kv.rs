//! `/v1/kv`: keys, their values and their locks.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::error::ApiError;
use hawser_api::json;
use hawser_core::acl::{Access, Resource};
use hawser_core::catalog::Row;
use hawser_core::clock::Index;
use hawser_core::kv::{self, Change, Item, VALUE_OCTETS_MAX, Write};
use hawser_core::name::{Key, SessionId};
use hawser_core::state::{Command, State, Topic};

use super::ask::{Ask, Draw, Found, Plan, Reply};

pub(crate) fn get<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let is_asked = |what: &str| ask.query.first(what).is_some();
    if is_asked("keys") {
        return Ok(keys(ask, state));
    }
    if is_asked("recurse") {
        return Ok(tree(ask, state));
    }
    let key = key(ask)?;
    ask.sight.demand(Resource::Key, Access::Read, key.as_str())?;
    let (index, topic) = (state.kv().index_of(&key), Topic::Key(key.clone()));
    let Some(row) = state.kv().get(&key) else {
        return Ok(Found::missing(index, [topic], String::new()));
    };
    if is_asked("raw") {
        let value = || bytes::Bytes::copy_from_slice(&row.value.value);
        return Ok(Found::raw(index, [topic], value));
    }
    Ok(Found::new(ask, index, [topic], move || [item(&key, row)]))
}

/// Every item below a prefix; none is as if the prefix did not exist.
fn tree<'a>(ask: &'a Ask, state: &'a State) -> Found<'a> {
    let mut rows = seen(ask, state).peekable();
    let (index, topic) = below(ask, state, rows.peek().is_some());
    if rows.peek().is_none() {
        return Found::missing(index, [topic], String::new());
    }
    Found::new(ask, index, [topic], move || {
        rows.map(|(key, row)| item(key, row)).collect::<Vec<_>>()
    })
}

/// The keys below a prefix; with a separator, those beyond it as one.
fn keys<'a>(ask: &'a Ask, state: &'a State) -> Found<'a> {
    let prefix = ask.name();
    let mut rows = seen(ask, state).peekable();
    let (index, topic) = below(ask, state, rows.peek().is_some());
    if rows.peek().is_none() {
        return Found::missing(index, [topic], String::new());
    }
    // Consul also reads the word as its own clients once misspelt it.
    let separator = ask.query.text("separator").or_else(|| ask.query.text("seperator"));
    Found::new(ask, index, [topic], move || {
        let mut keys: Vec<&str> = Vec::new();
        for (key, _) in rows {
            let key = key.as_str();
            let beyond = &key[prefix.len()..];
            let end =
                separator.and_then(|separator| Some(beyond.find(separator)? + separator.len()));
            let shown = end.map_or(key, |end| &key[..prefix.len() + end]);
            if keys.last() != Some(&shown) {
                keys.push(shown);
            }
        }
        keys.into_iter().map(str::to_owned).collect::<Vec<_>>()
    })
}

/// What the client may see below the prefix that it asks for.
fn seen<'a>(ask: &'a Ask, state: &'a State) -> impl Iterator<Item = (&'a Key, &'a Row<Item>)> {
    state.kv().below(ask.name()).filter(|(key, _)| ask.sight.key(key.as_str()))
}

/// How new that is, and what changes it. Who sees nothing, and may not, is told by the index that
/// some key changed, and not where: the last that it saw may be gone.
fn below(ask: &Ask, state: &State, sees_any: bool) -> (Index, Topic) {
    let prefix = ask.name();
    let index = match sees_any || ask.sight.may().key_read(prefix) {
        true => state.kv().index_below(prefix),
        false => state.kv().index(),
    };
    (index, Topic::Folder(Arc::from(kv::folder(prefix))))
}

pub(crate) fn put(ask: &Ask, _: &State, _: &Draw) -> Result<Plan, ApiError> {
    let key = key(ask)?;
    only_one(ask, &["cas", "acquire", "release"])?;
    if ask.body.len() > VALUE_OCTETS_MAX {
        return Err(ApiError::TooLarge { max: VALUE_OCTETS_MAX });
    }
    let flags = ask.query.number("flags")?.unwrap_or(0);
    let write = Write { key, value: Arc::from(&*ask.body), flags };
    let (change, reply) = if let Some(expected) = ask.query.number("cas")? {
        (Change::Cas(write, Index(expected)), Reply::Swapped)
    } else if let Some(session) = session(ask, "acquire")? {
        (Change::Lock(write, session), Reply::Swapped)
    } else if let Some(session) = session(ask, "release")? {
        (Change::Unlock(write, session), Reply::Swapped)
    } else {
        (Change::Set(write), Reply::Json(true.into()))
    };
    Ok(Plan { commands: vec![Command::Kv(change)], reply })
}

pub(crate) fn delete(ask: &Ask, _: &State, _: &Draw) -> Result<Plan, ApiError> {
    only_one(ask, &["recurse", "cas"])?;
    if ask.query.first("recurse").is_some() {
        return Ok(Plan::new([Command::Kv(Change::DeleteTree(ask.name().into()))]));
    }
    let key = key(ask)?;
    Ok(match ask.query.number("cas")? {
        None => Plan::new([Command::Kv(Change::Delete(key))]),
        Some(expected) => Plan {
            commands: vec![Command::Kv(Change::DeleteCas(key, Index(expected)))],
            reply: Reply::Swapped,
        },
    })
}

/// An item under its key, as JSON.
pub(crate) fn item(key: &Key, row: &Row<Item>) -> json::KvPair {
    let value = &row.value.value;
    let value = (!value.is_empty()).then(|| STANDARD.encode(value));
    json::KvPair { value, ..stored(key, row) }
}

/// The same without the value, as transactions answer what they wrote.
pub(crate) fn stored(key: &Key, row: &Row<Item>) -> json::KvPair {
    json::KvPair {
        lock_index: row.value.lock_index,
        key: key.to_string(),
        flags: row.value.flags,
        value: None,
        session: row.value.session.as_ref().map(ToString::to_string),
        create_index: row.created.0,
        modify_index: row.modified.0,
    }
}

fn key(ask: &Ask) -> Result<Key, ApiError> {
    match ask.name() {
        "" => Err(ApiError::bad_request("Missing key name")),
        text => text
            .parse()
            .map_err(|why| ApiError::bad_request(format_args!("Invalid key name: {why}"))),
    }
}

fn session(ask: &Ask, what: &str) -> Result<Option<SessionId>, ApiError> {
    let Some(text) = ask.query.first(what) else { return Ok(None) };
    let parsed = text.parse().map_err(|why| {
        ApiError::bad_request(format_args!("Invalid value for ?{what}: {text:?}: {why}"))
    });
    parsed.map(Some)
}

fn only_one(ask: &Ask, options: &[&str]) -> Result<(), ApiError> {
    let given: Vec<&str> =
        options.iter().copied().filter(|option| ask.query.first(option).is_some()).collect();
    match given[..] {
        [] | [_] => Ok(()),
        _ => Err(ApiError::bad_request(format_args!("Conflicting flags: {}", given.join(", ")))),
    }
}
