//! `/v1/config`: config entries, with `service-intentions` as another spelling of intentions.

use std::collections::BTreeSet;
use std::sync::Arc;

use hawser_api::error::ApiError;
use hawser_api::fields::{Field, Fields, InvalidField, normal};
use hawser_core::acl::Access;
use hawser_core::catalog::Row;
use hawser_core::clock::Index;
use hawser_core::entry::{Entry, EntryKey, Kind};
use hawser_core::intention::{Changes, Expected, Intention, Pair, Side};
use hawser_core::name::PeerName;
use hawser_core::permission::Permission;
use hawser_core::state::{Command, State, Topic};
use serde_json::{Map, Value, json};

use super::ask::{Ask, Draw, Found, Plan, Reply};
use super::{connect, encode};

/// A kind that a client may name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Spoken {
    Stored(Kind),
    Intentions,
}

fn spoken(word: &str) -> Result<Spoken, ApiError> {
    if word == SERVICE_INTENTIONS {
        return Ok(Spoken::Intentions);
    }
    word.parse().map(Spoken::Stored).map_err(|_| {
        ApiError::bad_request(format_args!(
            "invalid config entry kind: {word:?} is not supported: use {} or {SERVICE_INTENTIONS}",
            Kind::ALL.map(Kind::as_str).join(", "),
        ))
    })
}

pub(crate) fn list<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let kind = match spoken(ask.name())? {
        Spoken::Stored(kind) => kind,
        Spoken::Intentions => {
            let all = state.intentions();
            return Ok(Found::list(ask, all.index(), [Topic::Intentions], move || {
                let names: BTreeSet<&Side> =
                    all.iter().map(|row| &row.value.pair.destination).collect();
                let seen = names.into_iter().filter(|name| ask.sight.destination(name));
                seen.filter_map(|name| about(state, name)).collect::<Vec<_>>()
            }));
        }
    };
    let all = state.entries();
    Ok(Found::list(ask, all.index(), [Topic::Entries], move || {
        let of_kind = all.iter().filter(|row| row.value.key().kind == kind);
        of_kind.filter(|row| ask.sight.entry(row.value.key())).map(entry).collect::<Vec<_>>()
    }))
}

pub(crate) fn get<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let name = named(ask);
    let missing = |index, topic| {
        let why = format!("Config entry not found for {:?} / {name:?}", ask.name());
        Ok(Found::missing(index, [topic], why))
    };
    match spoken(ask.name())? {
        Spoken::Intentions => {
            let index = state.intentions().index();
            let Ok(name) = name.parse::<Side>() else { return missing(index, Topic::Intentions) };
            ask.sight.demand_intention(&name, Access::Read)?;
            let Some(written) = about(state, &name) else {
                return missing(index, Topic::Intentions);
            };
            Ok(Found::new(ask, index, [Topic::Intentions], || written))
        }
        Spoken::Stored(kind) => {
            let all = state.entries();
            let key = EntryKey { kind, name: name.into() };
            ask.sight.demand_entry(&key)?;
            match all.get(&key) {
                Some(row) => Ok(Found::new(ask, row.modified, [Topic::Entries], || entry(row))),
                None => missing(all.index(), Topic::Entries),
            }
        }
    }
}

pub(crate) fn put(ask: &Ask, _: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let expected = ask.query.number("cas")?.map(Index);
    let body = ask.json()?;
    let Value::Object(mut object) = body else {
        return Err(ApiError::bad_request("Request decode failed: the body must be an object"));
    };
    let kind = taken(&mut object, "Kind")?
        .ok_or_else(|| ApiError::bad_request("Request decode failed: Kind: is missing"))?;
    let name = taken(&mut object, "Name")?;
    for tenancy in ["Namespace", "Partition"] {
        if taken(&mut object, tenancy)?.is_some_and(|name| name != "default") {
            return Err(InvalidField::new(tenancy, "only \"default\" exists").into());
        }
    }
    object.retain(|key, value| !(SERVERS_TO_SAY.contains(&&*normal(key)) || value.is_null()));
    let reply = if expected.is_some() { Reply::Swapped } else { Reply::Json(Value::Bool(true)) };
    let command = match spoken(&kind)? {
        Spoken::Intentions => {
            let name = name.ok_or_else(|| missing_name(&kind))?;
            ask.sight.demand_intention(&connect::side_of("Name", &name)?, Access::Write)?;
            put_intentions(&Value::Object(object), &name, expected, draw)?
        }
        Spoken::Stored(kind) => {
            let name = name.or_else(|| kind.fixed_name().map(str::to_owned));
            let name = name.ok_or_else(|| missing_name(kind.as_str()))?;
            let entry = Entry::written(kind, &name, object).map_err(ApiError::bad_request)?;
            Command::PutEntry { entry, expected, fits: None }
        }
    };
    Ok(Plan { commands: vec![command], reply })
}

pub(crate) fn delete(ask: &Ask, _: &State, _: &Draw) -> Result<Plan, ApiError> {
    let expected = ask.query.number("cas")?.map(Index);
    let name = named(ask);
    let reply = if expected.is_some() { Reply::Swapped } else { Reply::Json(json!({})) };
    let command = match spoken(ask.name())? {
        Spoken::Stored(kind) => {
            let key = EntryKey { kind, name: name.into() };
            Command::DropEntry { key, expected, fits: None }
        }
        Spoken::Intentions => {
            let name: Side = connect::side_of("Name", name)?;
            ask.sight.demand_intention(&name, Access::Write)?;
            only(Vec::new(), name, expected)
        }
    };
    Ok(Plan { commands: vec![command], reply })
}

/// Makes `put` all that is said about `destination`, while `expected` is the index of that.
fn only(put: Vec<Intention>, destination: Side, expected: Option<Index>) -> Command {
    let expected = expected.map(|index| Expected::Callee(destination.clone(), index));
    let changes = Changes { put, remove: Vec::new(), only: Some(destination), expected };
    Command::ChangeIntentions { changes, fits: None }
}

/// The command that makes the intentions about `name` those that `body` lists.
fn put_intentions(
    body: &Value,
    name: &str,
    expected: Option<Index>,
    draw: &Draw,
) -> Result<Command, ApiError> {
    let destination = connect::side_of("Name", name)?;
    connect::must_be_callable("Name", &destination)?;
    let mut fields = Fields::open(body, "")?;
    let jwt = connect::jwt(&mut fields)?;
    let mut written: Vec<Intention> = Vec::new();
    let mut sources = BTreeSet::new();
    let meta = fields.meta(&["Meta"])?;
    for (number, Field { path, value }) in (0..).zip(fields.list(&["Sources"])?) {
        let mut source = Source::read(Fields::open(value, &path)?)?;
        source.says.require(jwt.clone(), "")?;
        source.says.check_destination(&destination)?;
        let pair =
            Pair { source: source.side, destination: destination.clone(), peer: source.peer };
        if !sources.insert((pair.peer.clone(), pair.source.clone())) {
            let of_peer = pair.peer.iter().map(|peer| format!(" of peer {peer}"));
            let of_peer: String = of_peer.collect();
            let why = format_args!("{}{of_peer} is there twice", pair.source);
            return Err(InvalidField::new(source.name_path, why).into());
        }
        written.push(Intention {
            id: draw.uuid(number).into(),
            pair,
            action: source.says.action,
            requests: source.says.requests.map(Arc::new),
            description: source.description.into(),
            meta: meta.clone(),
            created_at: draw.now,
            updated_at: draw.now,
        });
    }
    fields.finish()?;
    if written.len() > SOURCES_MAX {
        let why = format_args!("{SOURCES_MAX} sources are the most");
        return Err(InvalidField::new("Sources", why).into());
    }
    Ok(only(written, destination, expected))
}

/// One element of `Sources`, as a client writes it.
struct Source {
    name_path: String,
    side: Side,
    peer: Option<PeerName>,
    says: connect::Says,
    description: String,
}

impl Source {
    fn read(mut fields: Fields<'_>) -> Result<Self, ApiError> {
        let (name_path, text) = fields
            .text(&["Name"])?
            .ok_or_else(|| InvalidField::new(fields.path_of("Name"), "is missing"))?;
        let side = connect::side_of(&name_path, text)?;
        connect::must_be_callable(&name_path, &side)?;
        let peer = fields.parsed(&["Peer"])?;
        let says = connect::Says::read(&mut fields)?;
        let description = connect::description(&mut fields)?;
        if let Some((path, kind)) = fields.text(&["Type"])?
            && kind != "consul"
        {
            return Err(InvalidField::new(path, "only \"consul\" is supported").into());
        }
        fields.refuse(&["SamenessGroup"], connect::NO_GROUPS)?;
        fields.default_tenancy()?;
        fields.ignore(&["Precedence", "LegacyID", "LegacyMeta"]);
        fields.ignore(&["LegacyCreateTime", "LegacyUpdateTime"]);
        fields.finish()?;
        Ok(Self { name_path, side, peer, says, description })
    }
}

/// The intentions about one destination as one entry; none when there is none.
fn about(state: &State, destination: &Side) -> Option<Value> {
    let mut rows: Vec<&Row<Intention>> = state.intentions().about(destination).collect();
    let first = rows.first()?;
    let meta = encode::pairs(&first.value.meta);
    let created = rows.iter().map(|row| row.created).min().unwrap_or_default();
    let modified = state.intentions().index_about(destination);
    rows.sort_by_key(|row| std::cmp::Reverse(row.value.pair.precedence()));
    let sources: Vec<Value> = rows
        .into_iter()
        .map(|row| {
            let mut source = json!({
                "Name": row.value.pair.source.to_string(),
                "Precedence": row.value.pair.precedence(),
                "Type": "consul",
            });
            match permissions(&row.value) {
                [] => source["Action"] = json!(row.value.action.as_str()),
                permissions => source["Permissions"] = json!(permissions),
            }
            if let Some(peer) = &row.value.pair.peer {
                source["Peer"] = json!(peer.as_str());
            }
            if !row.value.description.is_empty() {
                source["Description"] = json!(row.value.description);
            }
            source
        })
        .collect();
    let mut entry = json!({
        "Kind": SERVICE_INTENTIONS,
        "Name": destination.to_string(),
        "Sources": sources,
        "CreateIndex": created.0,
        "ModifyIndex": modified.0,
    });
    if let Some(jwt) = state.intentions().required(destination) {
        entry["JWT"] = json!(jwt);
    }
    if !meta.is_empty() {
        entry["Meta"] = json!(meta);
    }
    Some(entry)
}

fn permissions(intention: &Intention) -> &[Permission] {
    intention.requests.as_ref().map_or(&[], |requests| &requests.permissions)
}

/// A stored entry with its kind, name and indexes around it.
fn entry(row: &Row<Entry>) -> Value {
    // These types are plain structs with text keys, which JSON can always hold.
    let mut value = serde_json::to_value(row.value.body()).unwrap_or_else(|_| json!({}));
    let key = row.value.key();
    value["Kind"] = json!(key.kind.as_str());
    value["Name"] = json!(key.name);
    value["CreateIndex"] = json!(row.created.0);
    value["ModifyIndex"] = json!(row.modified.0);
    value
}

/// Takes a text out of `object`, its key in any spelling.
fn taken(object: &mut Map<String, Value>, name: &str) -> Result<Option<String>, ApiError> {
    let keys: Vec<String> =
        object.keys().filter(|key| normal(key) == normal(name)).cloned().collect();
    let mut found = None;
    for key in keys {
        match object.remove(&key) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() => {}
            Some(Value::String(text)) if found.is_none() => found = Some(text),
            Some(_) => return Err(InvalidField::new(key, "must be one text").into()),
        }
    }
    Ok(found)
}

fn missing_name(kind: &str) -> ApiError {
    ApiError::bad_request(format_args!("Request decode failed: {kind}: Name: is missing"))
}

fn named(ask: &Ask) -> &str {
    ask.params.get(1).map_or("", String::as_str)
}

const SERVICE_INTENTIONS: &str = "service-intentions";
/// What a client read it may write back; these are the servers' to say.
const SERVERS_TO_SAY: [&str; 3] = ["createindex", "modifyindex", "hash"];
const SOURCES_MAX: usize = 1_024;
