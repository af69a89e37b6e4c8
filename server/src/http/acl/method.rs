//! `/v1/acl/auth-method`: the ways to log in.

use std::sync::Arc;
use std::time::Duration;

use hawser_api::error::ApiError;
use hawser_api::fields::{Fields, InvalidField};
use hawser_core::acl::{AuthMethod, AwsConfig, Change, JwtConfig, KeySource, MethodKind};
use hawser_core::catalog::Row;
use hawser_core::duration;
use hawser_core::state::{Command, State};
use serde_json::{Value, json};

use super::super::ask::{Ask, Draw, Found, Plan, Reply};
use super::grants::name;
use super::shown::Stored;
use super::{NAME_MAX, list, one, replacing};
use crate::login;

pub(crate) fn methods<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    list(ask, state, || state.acl().methods().map(|row| shown(row, false)).collect())
}

pub(crate) fn method<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    one(ask, state, state.acl().method(ask.name()).map(|row| shown(row, true)))
}

pub(crate) fn create_method(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    put(ask, state, None)
}

pub(crate) fn update_method(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let row = super::found(state.acl().method(ask.name()))?;
    Ok(replacing(row.modified, put(ask, state, Some(&row.value))?))
}

pub(crate) fn delete_method(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let held = &super::found(state.acl().method(ask.name()))?.value;
    Ok(Plan::new([Command::Acl(Change::DropMethod(held.name.clone()))]))
}

fn put(ask: &Ask, state: &State, held: Option<&AuthMethod>) -> Result<Plan, ApiError> {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let stated = name(&mut fields, "Name", NAME_MAX)?;
    let name = match (stated, held) {
        (Some(stated), Some(held)) if stated != held.name => {
            return Err(InvalidField::new("Name", "cannot be changed").into());
        }
        (Some(stated), None) if state.acl().method(&stated).is_some() => {
            let why = format!("Invalid Auth Method: {stated:?} already exists: update it");
            return Err(ApiError::Refused(why));
        }
        (Some(stated), _) => stated,
        (None, Some(held)) => held.name.clone(),
        (None, None) => return Err(ApiError::bad_request("Invalid Auth Method: no Name is set")),
    };
    let kind = match (fields.parsed::<MethodKind>(&["Type"])?, held) {
        (Some(kind), Some(held)) if kind != held.kind => {
            return Err(InvalidField::new("Type", "cannot be changed").into());
        }
        (Some(kind), _) => kind,
        (None, Some(held)) => held.kind,
        (None, None) => return Err(InvalidField::new("Type", "is missing").into()),
    };
    let text = |found: Option<(String, &str)>| Arc::from(found.map_or("", |(_, text)| text));
    let method = AuthMethod {
        name,
        kind,
        display_name: text(fields.text(&["DisplayName"])?),
        description: text(fields.text(&["Description"])?),
        token_ttl: ttl(&mut fields)?,
        is_global: is_global(&mut fields)?,
        config: config(&mut fields, kind)?.to_string().into(),
    };
    fields.default_tenancy()?;
    fields.ignore(&["CreateIndex", "ModifyIndex", "Hash"]);
    fields.refuse(&["NamespaceRules"], "is of Consul Enterprise, and there are no namespaces")?;
    fields.finish()?;
    let reply = Reply::Acl(Stored::Method(method.name.clone()));
    Ok(Plan { commands: vec![Command::Acl(Change::PutMethod(method))], reply })
}

fn ttl(fields: &mut Fields<'_>) -> Result<Option<Duration>, ApiError> {
    let path = fields.path_of("MaxTokenTTL");
    let ttl = fields.duration(&["MaxTokenTTL"])?.filter(|ttl| !ttl.is_zero());
    match ttl {
        Some(ttl) if !(super::TTL_MIN..=super::TTL_MAX).contains(&ttl) => {
            Err(InvalidField::new(path, "must be from 1m to 24h, or 0 for no end").into())
        }
        ttl => Ok(ttl),
    }
}

fn is_global(fields: &mut Fields<'_>) -> Result<bool, ApiError> {
    match fields.text(&["TokenLocality"])? {
        None | Some((_, "" | "local")) => Ok(false),
        Some((_, "global")) => Ok(true),
        Some((path, _)) => Err(InvalidField::new(path, "is local or global").into()),
    }
}

fn config(fields: &mut Fields<'_>, kind: MethodKind) -> Result<Value, ApiError> {
    let Some(field) = fields.take(&["Config"])? else {
        return Err(InvalidField::new("Config", "is missing").into());
    };
    let invalid = |why: &dyn std::fmt::Display| ApiError::bad_request(why);
    let checked = match kind {
        MethodKind::Jwt => JwtConfig::parse(field.value).and_then(|config| {
            if let KeySource::Here(pems) = config.source()? {
                let whole = |why| hawser_core::acl::InvalidConfig { path: String::new(), why };
                login::keys(pems).map_err(whole)?;
            }
            Ok(())
        }),
        MethodKind::AwsIam => AwsConfig::parse(field.value).and_then(|config| {
            let whole = |why| hawser_core::acl::InvalidConfig { path: String::new(), why };
            login::sts(&config).map(drop).map_err(whole)
        }),
    };
    checked.map_err(|why| invalid(&why))?;
    Ok(field.value.clone())
}

/// An auth method; in lists, without what it is configured to.
pub(super) fn shown(row: &Row<AuthMethod>, is_whole: bool) -> Value {
    let method = &row.value;
    let mut shown = json!({
        "Name": method.name,
        "Type": method.kind.as_str(),
        "DisplayName": method.display_name,
        "Description": method.description,
        "MaxTokenTTL": duration::format(method.token_ttl.unwrap_or_default()),
        "TokenLocality": if method.is_global { "global" } else { "local" },
        "CreateIndex": row.created.0,
        "ModifyIndex": row.modified.0,
    });
    if is_whole {
        shown["Config"] = serde_json::from_str(&method.config).unwrap_or_default();
    }
    shown
}
