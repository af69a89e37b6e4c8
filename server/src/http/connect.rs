//! `/v1/connect`: the trusted roots, and who may call whom.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::error::ApiError;
use hawser_api::fields::{Field, Fields, InvalidField};
use hawser_api::json;
use hawser_core::acl::{Access, Resource};
use hawser_core::catalog::Row;
use hawser_core::clock::Index;
use hawser_core::intention::{Action, Changes, Expected, Intention, Pair, Side};
use hawser_core::name::{PeerName, ServiceName};
use hawser_core::permission::{Guard, JwtRequirement, Permission, Requests};
use hawser_core::state::{Command, State, Topic};
use serde_json::json;

use super::ask::{Ask, Draw, Found, Plan, Reply};
use super::{catalog, encode};

pub(crate) fn roots<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let (Some(authority), Some(cluster)) = (state.authority(), state.cluster()) else {
        return Err(ApiError::Refused(
            "the certificate authority is not there yet: a leader makes it at first start"
                .to_owned(),
        ));
    };
    if ask.query.flag("pem")? {
        let roots = authority.roots.iter().map(|root| encode::pem(&root.certificate));
        let text: String = roots.collect();
        let answer = Box::new(move || Ok(text.into()));
        return Ok(Found {
            index: authority.index,
            topics: [Topic::Authority].into(),
            answer,
            is_raw: false,
            waits: true,
        });
    }
    let trust_domain = &cluster.trust_domain;
    Ok(Found::new(ask, authority.index, [Topic::Authority], move || {
        encode::roots(authority, trust_domain)
    }))
}

pub(crate) fn intentions<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let all = state.intentions();
    Ok(Found::list(ask, all.index(), [Topic::Intentions], move || {
        let seen = |row: &&Row<Intention>| ask.sight.intention(&row.value.pair);
        let mut rows: Vec<_> = all.iter().filter(seen).collect();
        rows.sort_by_key(|row| Reverse(row.value.pair.precedence()));
        rows.into_iter().map(encode::intention).collect::<Vec<_>>()
    }))
}

pub(crate) fn exact<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let pair = queried_pair(ask)?;
    ask.sight.demand_intention(&pair.destination, Access::Read)?;
    Ok(one(ask, state, state.intentions().get(&pair)))
}

pub(crate) fn by_id<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let found = with_id(state, ask.name()).filter(|row| ask.sight.intention(&row.value.pair));
    Ok(one(ask, state, found))
}

fn one<'a>(ask: &'a Ask, state: &State, row: Option<&'a Row<Intention>>) -> Found<'a> {
    match row {
        Some(row) => Found::new(ask, row.modified, [Topic::Intentions], || encode::intention(row)),
        None => {
            let index = state.intentions().index();
            Found::missing(index, [Topic::Intentions], NOT_FOUND.to_owned())
        }
    }
}

pub(crate) fn check<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    if ask.query.text("source-type").is_some_and(|kind| kind != "consul") {
        return Err(ApiError::bad_request("source-type: only \"consul\" is supported"));
    }
    let Pair { source: Side::Exact(source), destination: Side::Exact(destination), peer } =
        queried_pair(ask)?
    else {
        return Err(ApiError::bad_request("source and destination must each be one service"));
    };
    ask.sight.demand(Resource::Intention, Access::Read, destination.as_str())?;
    let default = default_action(state);
    let all = state.intentions();
    Ok(Found::new(ask, all.index(), [Topic::Intentions], move || json::IntentionCheck {
        allowed: all.decide(&source, peer.as_ref(), &destination, default).is_allowed(),
    }))
}

pub(crate) fn matching<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let is_source = match ask.query.text("by") {
        Some("source") => true,
        Some("destination") => false,
        _ => {
            return Err(ApiError::bad_request(
                "required query parameter 'by' is source or destination",
            ));
        }
    };
    let mut names = Vec::new();
    for text in ask.query.all("name") {
        let named =
            if is_source { source_of("name", text)? } else { (None, side_of("name", text)?) };
        ask.sight.demand_intention(&named.1, Access::Read)?;
        names.push((text, named));
    }
    if names.is_empty() {
        return Err(ApiError::bad_request("required query parameter 'name' not set"));
    }
    let all = state.intentions();
    Ok(Found::new(ask, all.index(), [Topic::Intentions], move || {
        let matches = |(peer, name): &(Option<PeerName>, Side)| {
            let covers = |row: &&Row<Intention>| {
                let pair = &row.value.pair;
                let held = if is_source { &pair.source } else { &pair.destination };
                // A callee's rules are about callers of every cluster, a caller's about its own.
                (*held == Side::Any || held == name) && (!is_source || pair.peer == *peer)
            };
            let seen = |row: &&Row<Intention>| ask.sight.intention(&row.value.pair);
            let mut rows: Vec<_> = all.iter().filter(covers).filter(seen).collect();
            rows.sort_by_key(|row| Reverse(row.value.pair.precedence()));
            rows.into_iter().map(encode::intention).collect::<Vec<_>>()
        };
        names.iter().map(|(text, name)| (*text, matches(name))).collect::<BTreeMap<_, _>>()
    }))
}

pub(crate) fn put_exact(ask: &Ask, _: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let queried = queried_pair(ask)?;
    let written = Written::read(ask)?;
    for (name, stated, expected) in [
        ("SourceName", &written.source, &queried.source),
        ("DestinationName", &written.destination, &queried.destination),
    ] {
        if stated.as_ref().is_some_and(|stated| stated != expected) {
            let why = format_args!("is {expected} in the URL");
            return Err(InvalidField::new(name, why).into());
        }
    }
    if written.peer.is_some() && written.peer != queried.peer {
        let named = queried.peer.as_ref().map_or("none", PeerName::as_str);
        let why = format_args!("is {named} in the URL: write source=peer:NAME/SERVICE there");
        return Err(InvalidField::new("SourcePeer", why).into());
    }
    let put = vec![written.intention(queried, &draw.uuid(0), draw)?];
    Ok(Plan::new([change(Changes { put, ..Changes::default() })]))
}

pub(crate) fn delete_exact(ask: &Ask, _: &State, _: &Draw) -> Result<Plan, ApiError> {
    let remove = vec![queried_pair(ask)?];
    Ok(Plan::new([change(Changes { remove, ..Changes::default() })]))
}

fn change(changes: Changes) -> Command {
    Command::ChangeIntentions { changes, fits: None }
}

pub(crate) fn create(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let written = Written::read(ask)?;
    let pair = written.pair()?;
    ask.sight.demand_intention(&pair.destination, Access::Write)?;
    if state.intentions().get(&pair).is_some() {
        return Err(ApiError::Refused(format!(
            "Failed to create intention: duplicate intention found: {pair}"
        )));
    }
    let expected = Some(Expected::Pair(pair.clone(), Index(0)));
    let put = vec![written.intention(pair, &draw.uuid(0), draw)?];
    let reply = Reply::Json(json!({ "ID": draw.uuid(0) }));
    let changes = Changes { put, expected, ..Changes::default() };
    Ok(Plan { commands: vec![change(changes)], reply })
}

pub(crate) fn put_by_id(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let Some(row) = with_id(state, ask.name()) else {
        return Err(ApiError::NotFound(NOT_FOUND.to_owned()));
    };
    let held = &row.value.pair;
    let written = Written::read(ask)?;
    let pair = Pair {
        source: written.source.clone().unwrap_or_else(|| held.source.clone()),
        destination: written.destination.clone().unwrap_or_else(|| held.destination.clone()),
        peer: written.peer.clone().or_else(|| held.peer.clone()),
    };
    let moves = pair != *held;
    if moves && state.intentions().get(&pair).is_some_and(|there| there.value.id != row.value.id) {
        return Err(ApiError::Refused(format!("duplicate intention found: {pair}")));
    }
    let kept = Intention {
        created_at: row.value.created_at,
        ..written.intention(pair, &row.value.id, draw)?
    };
    let expected = Some(Expected::Pair(held.clone(), row.modified));
    let remove = if moves { vec![held.clone()] } else { Vec::new() };
    let changes = Changes { put: vec![kept], remove, only: None, expected };
    Ok(Plan { commands: vec![change(changes)], reply: Reply::Json(json!({ "ID": row.value.id })) })
}

pub(crate) fn delete_by_id(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    match with_id(state, ask.name()) {
        Some(row) => {
            let pair = row.value.pair.clone();
            let expected = Some(Expected::Pair(pair.clone(), row.modified));
            let changes = Changes { remove: vec![pair], expected, ..Changes::default() };
            Ok(Plan::new([change(changes)]))
        }
        None => Err(ApiError::NotFound(NOT_FOUND.to_owned())),
    }
}

/// An intention as a client writes it.
struct Written {
    source: Option<Side>,
    peer: Option<PeerName>,
    destination: Option<Side>,
    says: Says,
    description: String,
    meta: hawser_core::catalog::Meta,
}

impl Written {
    fn read(ask: &Ask) -> Result<Self, ApiError> {
        let body = ask.json()?;
        let mut fields = Fields::open(&body, "")?;
        let source = fields.text(&["SourceName"])?;
        let source = source.map(|(path, text)| side_of(&path, text)).transpose()?;
        let destination = fields.text(&["DestinationName"])?;
        let destination = destination.map(|(path, text)| side_of(&path, text)).transpose()?;
        let says = Says::read(&mut fields)?;
        let description = description(&mut fields)?;
        let meta = fields.meta(&["Meta"])?;
        if let Some((path, kind)) = fields.text(&["SourceType"])?
            && kind != "consul"
        {
            return Err(InvalidField::new(path, "only \"consul\" is supported").into());
        }
        for name in ["SourceNS", "DestinationNS", "SourcePartition", "DestinationPartition"] {
            if let Some((path, text)) = fields.text(&[name])?
                && text != "default"
            {
                return Err(InvalidField::new(path, "only \"default\" exists").into());
            }
        }
        let peer = fields.parsed(&["SourcePeer"])?;
        fields.refuse(&["SourceSamenessGroup"], NO_GROUPS)?;
        catalog::datacenter(&mut fields, ask)?;
        // What a client read it may write back; these are the servers' to say.
        fields.ignore(&["ID", "Precedence", "CreatedAt", "UpdatedAt", "Hash"]);
        fields.ignore(&["CreateIndex", "ModifyIndex", "DefaultAddr", "DefaultPort"]);
        fields.finish()?;
        Ok(Self { source, peer, destination, says, description, meta })
    }

    fn pair(&self) -> Result<Pair, ApiError> {
        match (&self.source, &self.destination) {
            (Some(source), Some(destination)) => {
                let (source, destination) = (source.clone(), destination.clone());
                Ok(Pair { source, destination, peer: self.peer.clone() })
            }
            (None, _) => Err(InvalidField::new("SourceName", "is missing").into()),
            (_, None) => Err(InvalidField::new("DestinationName", "is missing").into()),
        }
    }

    /// The intention about `pair`. What tokens its callee asks of all callers it gets when it is
    /// stored.
    fn intention(self, pair: Pair, id: &str, draw: &Draw) -> Result<Intention, ApiError> {
        self.says.check_destination(&pair.destination)?;
        must_be_callable("SourceName", &pair.source)?;
        must_be_callable("DestinationName", &pair.destination)?;
        Ok(Intention {
            id: id.into(),
            pair,
            action: self.says.action,
            requests: self.says.requests.map(Arc::new),
            description: self.description.into(),
            meta: self.meta,
            created_at: draw.now,
            updated_at: draw.now,
        })
    }
}

/// What an intention says: of all requests alike, or of each.
pub(crate) struct Says {
    pub(crate) action: Action,
    pub(crate) requests: Option<Requests>,
}

impl Says {
    /// Takes `Action` or `Permissions`, exactly one of which must be there, and `JWT`.
    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, InvalidField> {
        let permissions = fields.list(&["Permissions"])?;
        let jwt = jwt(fields)?;
        let at = fields.path_of("Permissions");
        let permissions: Vec<Permission> = permissions
            .into_iter()
            .map(|Field { path, value }| {
                serde::Deserialize::deserialize(value).map_err(|why| InvalidField::new(path, why))
            })
            .collect::<Result<_, _>>()?;
        let action = action(fields)?;
        let action = match (action, permissions.is_empty()) {
            (Some(action), true) => action,
            // What cannot ask about requests refuses all of them.
            (None, false) => Action::Deny,
            (Some(_), false) => {
                return Err(InvalidField::new(
                    at,
                    "cannot stand beside Action: use one of the two",
                ));
            }
            (None, true) => {
                let why = "is missing: say \"allow\" or \"deny\", or list Permissions";
                return Err(InvalidField::new(fields.path_of("Action"), why));
            }
        };
        let mut says = Self {
            action,
            requests: (!permissions.is_empty()).then_some(Requests { permissions, jwt: None }),
        };
        says.require(jwt, at.trim_end_matches("Permissions"))?;
        Ok(says)
    }

    /// Permissions are about one callee's requests.
    pub(crate) fn check_destination(&self, destination: &Side) -> Result<(), InvalidField> {
        let has_permissions =
            self.requests.as_ref().is_some_and(|requests| !requests.permissions.is_empty());
        if has_permissions && *destination == Side::Any {
            let why = "cannot be about every destination: name one";
            return Err(InvalidField::new("Permissions", why));
        }
        Ok(())
    }

    /// Requires `jwt` of every request, and checks all that is said of requests.
    pub(crate) fn require(
        &mut self,
        jwt: Option<JwtRequirement>,
        at: &str,
    ) -> Result<(), InvalidField> {
        if let Some(jwt) = jwt {
            self.requests.get_or_insert_default().jwt = Some(jwt);
        }
        let Some(requests) = &self.requests else { return Ok(()) };
        Guard::compile(requests, self.action)
            .map(drop)
            .map_err(|fault| InvalidField::new(format!("{at}{}", fault.field), fault.why))
    }
}

/// Takes the token that is required of every request.
pub(crate) fn jwt(fields: &mut Fields<'_>) -> Result<Option<JwtRequirement>, InvalidField> {
    let Some(Field { path, value }) = fields.take(&["JWT"])? else { return Ok(None) };
    if value.is_null() {
        return Ok(None);
    }
    let read = serde::Deserialize::deserialize(value);
    read.map(Some).map_err(|why| InvalidField::new(path, why))
}

/// Takes the action, if it is there.
fn action(fields: &mut Fields<'_>) -> Result<Option<Action>, InvalidField> {
    match fields.text(&["Action"])? {
        Some((_, "allow")) => Ok(Some(Action::Allow)),
        Some((_, "deny")) => Ok(Some(Action::Deny)),
        Some((_, "")) | None => Ok(None),
        Some((path, word)) => {
            Err(InvalidField::new(path, format_args!("{word:?} is neither \"allow\" nor \"deny\"")))
        }
    }
}

/// Takes a description, within Consul's bound.
pub(crate) fn description(fields: &mut Fields<'_>) -> Result<String, InvalidField> {
    match fields.text(&["Description"])? {
        Some((path, text)) if text.len() > DESCRIPTION_OCTETS_MAX => Err(InvalidField::new(
            path,
            format_args!("{DESCRIPTION_OCTETS_MAX} octets is the most"),
        )),
        text => Ok(text.map(|(_, text)| text.to_owned()).unwrap_or_default()),
    }
}

/// What holds where no intention does: deny, until the cluster says otherwise.
pub(crate) fn default_action(state: &State) -> Action {
    state.cluster().map_or(Action::Deny, |cluster| cluster.default_action)
}

/// Reads `name`, `ns/name` or `partition/ns/name`, where namespace and partition are `default`.
pub(crate) fn side_of(field: &str, text: &str) -> Result<Side, ApiError> {
    let parts: Vec<&str> = text.split('/').take(4).collect();
    let name = match parts.as_slice() {
        [name] | ["default", name] | ["default", "default", name] => *name,
        [peer, ..] if peer.starts_with("peer:") => {
            let why = "a service of a peer can only be the source";
            return Err(InvalidField::new(field, why).into());
        }
        _ => {
            let why = "only the namespace and partition \"default\" exist: write the name alone";
            return Err(InvalidField::new(field, why).into());
        }
    };
    name.parse().map_err(|why| InvalidField::new(field, format_args!("{name:?}: {why}")).into())
}

/// The name in the mesh that `text` spells.
pub(crate) fn in_mesh(field: &str, text: &str) -> Result<ServiceName, InvalidField> {
    ServiceName::in_mesh(text)
        .map_err(|why| InvalidField::new(field, format_args!("{text:?} is in no mesh: {why}")))
}

/// Refuses what nothing in the mesh is called: an intention about it would hold for nobody, and a
/// `deny` that holds for nobody lets everybody in.
pub(crate) fn must_be_callable(field: &str, side: &Side) -> Result<(), InvalidField> {
    match side {
        Side::Exact(name) => in_mesh(field, name.as_str()).map(drop),
        Side::Any => Ok(()),
    }
}

/// Reads a caller: as [`side_of`], or `peer:<peer>/<name>` for one of a peer.
fn source_of(field: &str, text: &str) -> Result<(Option<PeerName>, Side), ApiError> {
    let Some(rest) = text.strip_prefix("peer:") else { return Ok((None, side_of(field, text)?)) };
    let invalid = |why: &dyn std::fmt::Display| InvalidField::new(field, why);
    let Some((peer, name)) = rest.split_once('/') else {
        return Err(invalid(&"a service of a peer is written peer:PEER/SERVICE").into());
    };
    let peer = peer.parse().map_err(|why| invalid(&format_args!("peer {peer:?}: {why}")))?;
    Ok((Some(peer), side_of(field, name)?))
}

fn queried_pair(ask: &Ask) -> Result<Pair, ApiError> {
    let text = |key: &str| {
        ask.query.text(key).ok_or_else(|| {
            ApiError::bad_request(format_args!("required query parameter '{key}' not set"))
        })
    };
    let (peer, source) = source_of("source", text("source")?)?;
    Ok(Pair { source, destination: side_of("destination", text("destination")?)?, peer })
}

fn with_id<'a>(state: &'a State, id: &str) -> Option<&'a Row<Intention>> {
    state.intentions().iter().find(|row| &*row.value.id == id)
}

/// Why a sameness group is refused.
pub(crate) const NO_GROUPS: &str = "sameness groups are not supported: name each peer";
const NOT_FOUND: &str = "Intention not found";
const DESCRIPTION_OCTETS_MAX: usize = 512;
