//! `/v1/acl/binding-rule`: who gets what when they log in.

use std::sync::Arc;

use hawser_api::error::ApiError;
use hawser_api::fields::{Fields, InvalidField};
use hawser_core::acl::{
    AuthMethod, BindKind, BindingRule, Change, Identity, JwtConfig, MethodKind, Template,
};
use hawser_core::catalog::Row;
use hawser_core::filter::Filter;
use hawser_core::state::{Command, State};
use serde_json::{Value, json};

use super::super::ask::{Ask, Draw, Found, Plan, Reply};
use super::shown::Stored;
use super::{list, one, replacing};

pub(crate) fn bindings<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let wanted = |row: &&Row<BindingRule>| {
        ask.query.text("authmethod").is_none_or(|method| *row.value.method == *method)
    };
    list(ask, state, move || state.acl().bindings().filter(wanted).map(shown).collect())
}

pub(crate) fn binding<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    one(ask, state, state.acl().binding(ask.name()).map(shown))
}

pub(crate) fn create_binding(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    put(ask, state, draw.uuid(0).into(), None)
}

pub(crate) fn update_binding(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let row = super::found(state.acl().binding(ask.name()))?;
    let held = &row.value;
    Ok(replacing(row.modified, put(ask, state, held.id.clone(), Some(held))?))
}

pub(crate) fn delete_binding(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let held = &super::found(state.acl().binding(ask.name()))?.value;
    Ok(Plan::new([Command::Acl(Change::DropBinding(held.id.clone()))]))
}

fn put(
    ask: &Ask,
    state: &State,
    id: Arc<str>,
    held: Option<&BindingRule>,
) -> Result<Plan, ApiError> {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    if let Some((path, stated)) = fields.text(&["ID"])?
        && !stated.is_empty()
        && stated != &*id
    {
        return Err(InvalidField::new(path, "is chosen by the servers: leave it out").into());
    }
    let text = |found: Option<(String, &str)>| found.map_or("", |(_, text)| text).to_owned();
    let method = match (fields.text(&["AuthMethod"])?, held) {
        (Some((path, stated)), Some(held)) if stated != &*held.method => {
            return Err(InvalidField::new(path, "cannot be changed").into());
        }
        (Some((_, stated)), _) => stated,
        (None, Some(held)) => &*held.method,
        (None, None) => return Err(InvalidField::new("AuthMethod", "is missing").into()),
    };
    let method = state.acl().method(method).ok_or_else(|| {
        ApiError::bad_request(format_args!("AuthMethod: there is none with the name {method:?}"))
    })?;
    let kind = fields.parsed::<BindKind>(&["BindType"])?;
    let kind = kind.ok_or_else(|| InvalidField::new("BindType", "is missing"))?;
    let variable = match fields.object(&["BindVars"])? {
        None => None,
        Some(mut variables) => {
            let name = variables.text(&["Name"])?.map(|(_, name)| name.into());
            variables.finish()?;
            name
        }
    };
    let rule = BindingRule {
        id,
        description: text(fields.text(&["Description"])?).into(),
        method: method.value.name.clone(),
        selector: text(fields.text(&["Selector"])?).into(),
        kind,
        name: text(fields.text(&["BindName"])?).into(),
        variable: variable.filter(|name: &Arc<str>| !name.is_empty()),
    };
    check(&rule, &method.value)?;
    fields.default_tenancy()?;
    fields.ignore(&["CreateIndex", "ModifyIndex", "Hash"]);
    fields.finish()?;
    let reply = Reply::Acl(Stored::Binding(rule.id.clone()));
    Ok(Plan { commands: vec![Command::Acl(Change::PutBinding(rule))], reply })
}

/// Whether a rule can ever make sense for who logs in by `method`.
fn check(rule: &BindingRule, method: &AuthMethod) -> Result<(), ApiError> {
    let wrong = |field: &str, why: &dyn std::fmt::Display| {
        ApiError::from(InvalidField::new(field, format_args!("{why}")))
    };
    if rule.name.is_empty() {
        return Err(wrong("BindName", &"is missing"));
    }
    if !rule.selector.is_empty() {
        Filter::parse(&rule.selector).map_err(|why| wrong("Selector", &why))?;
    }
    let known = known(method);
    for variable in rule.variables().map_err(|why| wrong("BindName", &why))? {
        let is_known = known.iter().any(|name| match name.strip_suffix('*') {
            Some(start) => variable.starts_with(start) && variable.len() > start.len(),
            None => *name == variable,
        });
        if !is_known {
            let why = format!("{variable:?} is nothing that this method knows: {known:?}");
            return Err(wrong("BindName", &why));
        }
    }
    match rule.kind {
        BindKind::Template => {
            Template::find(&rule.name, rule.variable.as_deref())
                .map_err(|why| wrong("BindName", &why))?;
        }
        _ if rule.variable.is_some() => {
            return Err(wrong("BindVars", &"are for the BindType templated-policy"));
        }
        _ if known.is_empty() || !rule.name.contains("${") => {
            rule.names(&Identity::default()).map_err(|why| wrong("BindName", &why))?;
        }
        _ => {}
    }
    Ok(())
}

/// What `${…}` may name; a `*` stands for any ending.
fn known(method: &AuthMethod) -> Vec<String> {
    match method.kind {
        MethodKind::Jwt => {
            let config = serde_json::from_str(&method.config).unwrap_or_default();
            let config = JwtConfig::parse(&config).unwrap_or_default();
            config.claims.values().map(|name| format!("value.{name}")).collect()
        }
        MethodKind::AwsIam => ["entity_name", "entity_id", "account_id"].map(Into::into).into(),
    }
}

/// A binding rule.
pub(super) fn shown(row: &Row<BindingRule>) -> Value {
    let rule = &row.value;
    let mut shown = json!({
        "ID": rule.id,
        "Description": rule.description,
        "AuthMethod": rule.method,
        "Selector": rule.selector,
        "BindType": rule.kind.as_str(),
        "BindName": rule.name,
        "CreateIndex": row.created.0,
        "ModifyIndex": row.modified.0,
    });
    if let Some(name) = &rule.variable {
        shown["BindVars"] = json!({ "Name": name });
    }
    shown
}
