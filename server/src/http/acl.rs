//! `/v1/acl`: tokens, policies and roles.

mod grants;
mod method;
mod binding;
mod shown;
mod template;
mod login;

use std::sync::Arc;

use hawser_api::error::ApiError;
use hawser_api::fields::{Fields, InvalidField};
use hawser_api::rules;
use hawser_core::acl::{ANONYMOUS_ACCESSOR, Change, Grants, Policy, Role, Token};
use hawser_core::catalog::Row;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::state::{Command, Rejection, State, Topic};
use http::StatusCode;
use serde_json::{Value, json};

pub(crate) use self::binding::{binding, bindings, create_binding, delete_binding, update_binding};
use self::grants::{name, texts, uuid};
pub(crate) use self::login::{login, logout};
pub(crate) use self::method::{create_method, delete_method, method, methods, update_method};
pub(crate) use self::shown::{Stored, shown};
pub(crate) use self::template::{preview, template, templates};
use super::ask::{Ask, Draw, Found, Plan, Reply};
use super::cluster::Said;
use crate::Handle;
use crate::acl::{management, random_uuid, secret};
use crate::identity::now;
use crate::propose::ProposeError;

/// Makes the first token, which may do everything. Its reply is the only one without a token.
pub(crate) async fn bootstrap(handle: Handle, ask: Ask) -> Said {
    let stated = match ask.body.is_empty() {
        true => None,
        false => {
            let body = ask.json()?;
            let mut fields = Fields::open(&body, "")?;
            let stated = uuid(&mut fields, "BootstrapSecret")?;
            fields.finish()?;
            stated
        }
    };
    let reset = handle.acl.settings().reset_file.clone();
    let reset = match reset {
        None => None,
        // Not there, mostly: then nothing is to be reset.
        Some(path) => tokio::fs::read_to_string(path).await.ok(),
    };
    let reset = reset.and_then(|text| text.trim().parse().ok()).map(Index);
    let token = management(
        &stated.unwrap_or_else(random_uuid),
        "Bootstrap Token (Global Management)",
        now(),
    );
    let accessor = token.accessor.clone();
    let change = Change::Bootstrap { token, reset };
    match handle.proposer.propose(Command::Acl(change)).await {
        Ok(index) => {
            let reading = handle.reader.wait_for(index).await.map_err(super::unread)?;
            let made = shown(&reading.state, &Stored::Token(accessor));
            Ok((StatusCode::OK, ask.write(&made)?))
        }
        Err(ProposeError::Rejected(Rejection::Acl(refusal))) => {
            Err(ApiError::Forbidden(format!("Permission denied: {refusal}")))
        }
        Err(refused) => Err(super::unwritten(refused)),
    }
}

/// Consul's community edition copies no tokens between datacenters either, and says so.
pub(crate) async fn replication(_: Handle, ask: Ask) -> Said {
    let status = json!({
        "Enabled": false, "Running": false, "SourceDatacenter": "", "ReplicationType": "",
        "ReplicatedIndex": 0, "ReplicatedRoleIndex": 0, "ReplicatedTokenIndex": 0,
        "LastSuccess": NEVER, "LastError": NEVER, "LastErrorMessage": "",
    });
    Ok((StatusCode::OK, ask.write(&status)?))
}

fn list<'a, T: serde::Serialize>(
    ask: &'a Ask,
    state: &'a State,
    all: impl FnOnce() -> Vec<T> + 'a,
) -> Result<Found<'a>, ApiError> {
    Ok(Found::list(ask, state.acl().index(), [Topic::Acl], all))
}

fn one<'a>(ask: &'a Ask, state: &'a State, found: Option<Value>) -> Result<Found<'a>, ApiError> {
    let index = state.acl().index();
    match found {
        Some(value) => Ok(Found::new(ask, index, [Topic::Acl], || value)),
        None => Ok(Found::missing(index, [Topic::Acl], NOT_FOUND.to_owned())),
    }
}

pub(crate) fn tokens<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let wanted = |row: &&Row<Token>| {
        let token = &row.value;
        let has = |key: &str, held: &[Arc<str>]| match ask.query.text(key) {
            Some(id) => held.iter().any(|held| **held == *id),
            None => true,
        };
        let serves = |name: &str| token.grants.services.iter().any(|held| *held.service == *name);
        !token.is_expired(now())
            && has("policy", &token.grants.policies)
            && has("role", &token.roles)
            && ask.query.text("servicename").is_none_or(serves)
            && ask
                .query
                .text("authmethod")
                .is_none_or(|method| token.method.as_deref() == Some(method))
    };
    list(ask, state, move || {
        let rows = state.acl().tokens().filter(wanted);
        rows.map(|row| shown::token(state.acl(), row, ask.reveals_secrets())).collect()
    })
}

pub(crate) fn token<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let row = live(state, ask.name());
    let shown = row.map(|row| shown::token(state.acl(), row, ask.reveals_secrets()));
    one(ask, state, shown)
}

/// The token that asks: it knows its secret.
pub(crate) fn own_token<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let Some(row) = live(state, ask.sight.may().accessor()) else {
        return Err(ApiError::Forbidden(NOT_FOUND.to_owned()));
    };
    one(ask, state, Some(shown::token(state.acl(), row, true)))
}

fn live<'a>(state: &'a State, accessor: &str) -> Option<&'a Row<Token>> {
    state.acl().token(accessor).filter(|row| !row.value.is_expired(now()))
}

pub(crate) fn policies<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    list(ask, state, || state.acl().policies().map(|row| shown::policy(&row, false)).collect())
}

pub(crate) fn policy<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    one(ask, state, state.acl().policy(ask.name()).map(|row| shown::policy(&row, true)))
}

pub(crate) fn policy_named<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    one(ask, state, state.acl().policy_named(ask.name()).map(|row| shown::policy(&row, true)))
}

pub(crate) fn roles<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let tables = state.acl();
    list(ask, state, move || {
        let wanted = |row: &&Row<Role>| match ask.query.text("policy") {
            Some(id) => row.value.grants.policies.iter().any(|held| **held == *id),
            None => true,
        };
        tables.roles().filter(wanted).map(|row| shown::role(tables, row)).collect()
    })
}

pub(crate) fn role<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    one(ask, state, state.acl().role(ask.name()).map(|row| shown::role(state.acl(), row)))
}

pub(crate) fn role_named<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    one(ask, state, state.acl().role_named(ask.name()).map(|row| shown::role(state.acl(), row)))
}

pub(crate) fn create_token(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let accessor = uuid(&mut fields, "AccessorID")?;
    if accessor.as_deref().is_some_and(|accessor| state.acl().token(accessor).is_some()) {
        let why = "Invalid Token: AccessorID is already in use";
        return Err(ApiError::bad_request(why));
    }
    let text = uuid(&mut fields, "SecretID")?.unwrap_or_else(|| draw.secret_uuid());
    let written = WrittenToken::read(&mut fields, state, draw)?;
    fields.finish()?;
    put_token(Token {
        accessor: accessor.unwrap_or_else(|| draw.uuid(0)).into(),
        secret: secret(&text),
        description: written.description,
        grants: written.grants,
        roles: written.roles,
        is_local: written.is_local,
        method: None,
        created_at: draw.now,
        expires_at: written.expires_at,
    })
}

pub(crate) fn update_token(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let row = found(live(state, ask.name()))?;
    let held = &row.value;
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    for (field, value) in [("AccessorID", &*held.accessor), ("SecretID", held.secret.reveal())] {
        // Who may not read the secret writes back what it was shown.
        let stated = fields.text(&[field])?.filter(|(_, stated)| *stated != shown::HIDDEN);
        if stated.is_some_and(|(_, stated)| stated != value) {
            return Err(InvalidField::new(field, "cannot be changed").into());
        }
    }
    let written = WrittenToken::read(&mut fields, state, draw)?;
    fields.finish()?;
    if written.expires_at.is_some() && written.expires_at != held.expires_at {
        return Err(InvalidField::new("ExpirationTime", "cannot be changed").into());
    }
    let token = Token {
        description: written.description,
        grants: written.grants,
        roles: written.roles,
        ..(**held).clone()
    };
    Ok(replacing(row.modified, put_token(token)?))
}

pub(crate) fn clone_token(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let held = &found(live(state, ask.name()))?.value;
    if &*held.accessor == ANONYMOUS_ACCESSOR {
        return Err(ApiError::bad_request("Cloning the anonymous token is not permitted"));
    }
    if held.method.is_some() {
        let why = "Cloning a token that was logged in for is not permitted: log in again";
        return Err(ApiError::bad_request(why));
    }
    let mut description = None;
    if !ask.body.is_empty() {
        let body = ask.json()?;
        let mut fields = Fields::open(&body, "")?;
        description = fields.text(&["Description"])?.map(|(_, text)| text.into());
        fields.default_tenancy()?;
        fields.finish()?;
    }
    put_token(Token {
        accessor: draw.uuid(0).into(),
        secret: secret(&draw.secret_uuid()),
        description: description.unwrap_or_else(|| held.description.clone()),
        created_at: draw.now,
        ..(**held).clone()
    })
}

pub(crate) fn delete_token(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let held = &found(state.acl().token(ask.name()))?.value;
    if held.accessor == *ask.sight.may().accessor() {
        let why = "Deletion of the request's authorization token is not permitted";
        return Err(ApiError::bad_request(why));
    }
    Ok(Plan::new([Command::Acl(Change::DropTokens([held.accessor.clone()].into()))]))
}

fn put_token(token: Token) -> Result<Plan, ApiError> {
    let reply = Reply::Acl(Stored::Token(token.accessor.clone()));
    Ok(Plan { commands: vec![Command::Acl(Change::PutToken(token))], reply })
}

/// What a client writes of a token.
struct WrittenToken {
    description: Arc<str>,
    grants: Grants,
    roles: Vec<Arc<str>>,
    is_local: bool,
    expires_at: Option<UnixTime>,
}

impl WrittenToken {
    fn read(fields: &mut Fields<'_>, state: &State, draw: &Draw) -> Result<Self, ApiError> {
        let description = fields.text(&["Description"])?.map_or("", |(_, text)| text).into();
        let grants = grants::grants(fields, state)?;
        let roles = grants::roles(fields, state)?;
        let is_local = fields.flag(&["Local"])?;
        let expires_at = expiry(fields, draw.now)?;
        fields.default_tenancy()?;
        // What a client read it may write back; these are the servers' to say.
        fields.ignore(&["Hash", "CreateTime", "CreateIndex", "ModifyIndex", "AuthMethod"]);
        fields.ignore(&["AuthMethodNamespace", "Legacy"]);
        fields
            .refuse(&["Rules", "Type"], "belongs to the tokens before Consul 1.4: use Policies")?;
        Ok(Self { description, grants, roles, is_local, expires_at })
    }
}

/// When a token becomes worthless: at a time, or after a span.
fn expiry(fields: &mut Fields<'_>, now: UnixTime) -> Result<Option<UnixTime>, ApiError> {
    let path = fields.path_of("ExpirationTTL");
    let ttl = fields.duration(&["ExpirationTTL"])?;
    let at = match fields.text(&["ExpirationTime"])? {
        None => None,
        Some((_, NEVER)) => None,
        Some((path, text)) => {
            let at =
                time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
            let at = at.ok().and_then(|at| u64::try_from(at.unix_timestamp()).ok());
            let why = "must be a time such as 2030-01-02T15:04:05Z";
            Some(UnixTime::from_secs(at.ok_or_else(|| InvalidField::new(path, why))?))
        }
    };
    match (ttl, at) {
        (Some(_), Some(_)) => {
            let why = "stands beside ExpirationTime: say one of them";
            Err(InvalidField::new(path, why).into())
        }
        (Some(ttl), None) if ttl < TTL_MIN || ttl > TTL_MAX => {
            Err(InvalidField::new(path, "must be from 1m to 24h").into())
        }
        (Some(ttl), None) => Ok(Some(now.plus(ttl))),
        (None, at) => Ok(at),
    }
}

pub(crate) fn create_policy(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    put_policy(ask, state, draw.uuid(0).into(), None)
}

pub(crate) fn update_policy(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let row = found(state.acl().policy(ask.name()))?;
    let held = row.value;
    Ok(replacing(row.modified, put_policy(ask, state, held.id.clone(), Some(&held))?))
}

fn put_policy(
    ask: &Ask,
    state: &State,
    id: Arc<str>,
    held: Option<&Policy>,
) -> Result<Plan, ApiError> {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let stated = fields.text(&["ID"])?;
    if let Some((path, stated)) = stated
        && stated != &*id
    {
        return Err(InvalidField::new(path, "is chosen by the servers: leave it out").into());
    }
    let name = match name(&mut fields, "Name", NAME_MAX)? {
        Some(name) => name,
        None => match held {
            Some(held) => held.name.clone(),
            None => return Err(ApiError::bad_request("Invalid Policy: no Name is set")),
        },
    };
    if state.acl().policy_named(&name).is_some_and(|row| row.value.id != id) {
        let why = format!("Invalid Policy: A Policy with Name {name:?} already exists");
        return Err(ApiError::Refused(why));
    }
    let text = fields.text(&["Rules"])?.map_or("", |(_, text)| text);
    let policy = Policy {
        id,
        name,
        description: fields.text(&["Description"])?.map_or("", |(_, text)| text).into(),
        rules: rules::parse(text).map_err(ApiError::bad_request)?,
        text: text.into(),
        datacenters: texts(&mut fields, "Datacenters")?,
    };
    fields.default_tenancy()?;
    fields.ignore(&["Hash", "CreateIndex", "ModifyIndex", "TemplatedPolicyName"]);
    fields.finish()?;
    let reply = Reply::Acl(Stored::Policy(policy.id.clone()));
    Ok(Plan { commands: vec![Command::Acl(Change::PutPolicy(policy))], reply })
}

pub(crate) fn delete_policy(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let held = found(state.acl().policy(ask.name()))?.value;
    Ok(Plan::new([Command::Acl(Change::DropPolicy(held.id.clone()))]))
}

pub(crate) fn create_role(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    put_role(ask, state, draw.uuid(0).into(), None)
}

pub(crate) fn update_role(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let row = found(state.acl().role(ask.name()))?;
    let held = &row.value;
    Ok(replacing(row.modified, put_role(ask, state, held.id.clone(), Some(held))?))
}

fn put_role(ask: &Ask, state: &State, id: Arc<str>, held: Option<&Role>) -> Result<Plan, ApiError> {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    if let Some((path, stated)) = fields.text(&["ID"])?
        && stated != &*id
    {
        return Err(InvalidField::new(path, "is chosen by the servers: leave it out").into());
    }
    let name = match name(&mut fields, "Name", ROLE_NAME_MAX)? {
        Some(name) => name,
        None => match held {
            Some(held) => held.name.clone(),
            None => return Err(ApiError::bad_request("Invalid Role: no Name is set")),
        },
    };
    if state.acl().role_named(&name).is_some_and(|row| row.value.id != id) {
        let why = format!("Invalid Role: A Role with Name {name:?} already exists");
        return Err(ApiError::Refused(why));
    }
    let role = Role {
        id,
        name,
        description: fields.text(&["Description"])?.map_or("", |(_, text)| text).into(),
        grants: grants::grants(&mut fields, state)?,
    };
    fields.default_tenancy()?;
    fields.ignore(&["Hash", "CreateIndex", "ModifyIndex"]);
    fields.finish()?;
    let reply = Reply::Acl(Stored::Role(role.id.clone()));
    Ok(Plan { commands: vec![Command::Acl(Change::PutRole(role))], reply })
}

pub(crate) fn delete_role(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let held = &found(state.acl().role(ask.name()))?.value;
    Ok(Plan::new([Command::Acl(Change::DropRole(held.id.clone()))]))
}

/// The same, while what is replaced is as of `expected`: it may be deleted before this is applied.
fn replacing(expected: Index, plan: Plan) -> Plan {
    let commands = plan.commands.into_iter().map(|command| match command {
        Command::Acl(change) => {
            Command::Acl(Change::Replace { expected, change: Box::new(change) })
        }
        other => other,
    });
    Plan { commands: commands.collect(), ..plan }
}

fn found<T>(row: Option<T>) -> Result<T, ApiError> {
    row.ok_or_else(|| ApiError::NotFound(NOT_FOUND.to_owned()))
}

const NOT_FOUND: &str = "ACL not found";
/// Go's zero time.
const NEVER: &str = "0001-01-01T00:00:00Z";
const TTL_MIN: std::time::Duration = std::time::Duration::from_secs(60);
const TTL_MAX: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
const NAME_MAX: usize = 128;
const ROLE_NAME_MAX: usize = 256;
