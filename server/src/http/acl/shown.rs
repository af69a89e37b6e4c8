//! Tokens, policies and roles as Consul's clients read them.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::json::timestamp;
use hawser_core::acl::{Grants, Policy, Role, Tables, Token};
use hawser_core::catalog::Row;
use hawser_core::state::State;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{binding, method};

/// Which row a write is answered with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Stored {
    /// A token, by accessor.
    Token(Arc<str>),
    /// A policy, by id.
    Policy(Arc<str>),
    /// A role, by id.
    Role(Arc<str>),
    /// An auth method, by name.
    Method(Arc<str>),
    /// A binding rule, by id.
    Binding(Arc<str>),
}

/// What was stored, as who wrote it reads it; null when it is gone again already.
pub(crate) fn shown(state: &State, stored: &Stored) -> Value {
    let tables = state.acl();
    let shown = match stored {
        Stored::Token(accessor) => tables.token(accessor).map(|row| token(tables, row, true)),
        Stored::Policy(id) => tables.policy(id).map(|row| policy(&row, true)),
        Stored::Role(id) => tables.role(id).map(|row| role(tables, row)),
        Stored::Method(name) => tables.method(name).map(|row| method::shown(row, true)),
        Stored::Binding(id) => tables.binding(id).map(binding::shown),
    };
    shown.unwrap_or_default()
}

/// A token; its secret only for who may write tokens, or its holder.
pub(super) fn token(tables: &Tables, row: &Row<Token>, reveals_secret: bool) -> Value {
    let token = &row.value;
    let secret = if reveals_secret { token.secret.reveal() } else { HIDDEN };
    let mut shown = json!({
        "AccessorID": token.accessor,
        "SecretID": secret,
        "Description": token.description,
        "Local": token.is_local,
        "CreateTime": timestamp(token.created_at),
        "CreateIndex": row.created.0,
        "ModifyIndex": row.modified.0,
    });
    let roles = token.roles.iter().filter_map(|id| tables.role(id));
    let roles: Vec<Value> =
        roles.map(|row| json!({ "ID": row.value.id, "Name": row.value.name })).collect();
    if !roles.is_empty() {
        shown["Roles"] = roles.into();
    }
    if let Some(method) = &token.method {
        shown["AuthMethod"] = json!(method);
    }
    if let Some(at) = token.expires_at {
        shown["ExpirationTime"] = timestamp(at).into();
    }
    add_grants(&mut shown, tables, &token.grants);
    shown["Hash"] = hash(&format!("{:?}{:?}{:?}", token.description, token.grants, token.roles));
    shown
}

/// A policy, with its rules or, in lists, without.
pub(super) fn policy(row: &Row<Policy>, with_rules: bool) -> Value {
    let policy = &row.value;
    let mut shown = json!({
        "ID": policy.id,
        "Name": policy.name,
        "Description": policy.description,
        "Datacenters": null,
        "Hash": hash(&format!("{:?}{:?}{:?}", policy.name, policy.description, policy.text)),
        "CreateIndex": row.created.0,
        "ModifyIndex": row.modified.0,
    });
    if !policy.datacenters.is_empty() {
        shown["Datacenters"] = json!(policy.datacenters);
    }
    if with_rules {
        shown["Rules"] = json!(policy.text);
    }
    shown
}

/// A role.
pub(super) fn role(tables: &Tables, row: &Row<Role>) -> Value {
    let role = &row.value;
    let mut shown = json!({
        "ID": role.id,
        "Name": role.name,
        "Description": role.description,
        "Hash": hash(&format!("{:?}{:?}{:?}", role.name, role.description, role.grants)),
        "CreateIndex": row.created.0,
        "ModifyIndex": row.modified.0,
    });
    add_grants(&mut shown, tables, &role.grants);
    shown
}

/// Adds what is granted, leaving out what is empty and links to what is gone.
fn add_grants(shown: &mut Value, tables: &Tables, grants: &Grants) {
    let policies = grants.policies.iter().filter_map(|id| tables.policy(id));
    let services = grants.services.iter().map(|identity| {
        let one = json!({ "ServiceName": identity.service });
        with_datacenters(one, &identity.datacenters)
    });
    let nodes = grants
        .nodes
        .iter()
        .map(|identity| json!({ "NodeName": identity.node, "Datacenter": identity.datacenter }));
    let templates = grants.templates.iter().map(|templated| {
        let mut one = json!({ "TemplateName": templated.template.as_str() });
        if let Some(name) = &templated.name {
            one["TemplateVariables"] = json!({ "Name": name });
        }
        with_datacenters(one, &templated.datacenters)
    });
    let lists: [(&str, Vec<Value>); 4] = [
        (
            "Policies",
            policies.map(|row| json!({ "ID": row.value.id, "Name": row.value.name })).collect(),
        ),
        ("ServiceIdentities", services.collect()),
        ("NodeIdentities", nodes.collect()),
        ("TemplatedPolicies", templates.collect()),
    ];
    let lists: Map<String, Value> = lists
        .into_iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| (name.to_owned(), list.into()))
        .collect();
    if let Value::Object(object) = shown {
        object.extend(lists);
    }
}

fn with_datacenters(mut one: Value, datacenters: &[Arc<str>]) -> Value {
    if !datacenters.is_empty() {
        one["Datacenters"] = json!(datacenters);
    }
    one
}

/// A text that differs whenever `contents` do; clients compare it and nothing else.
fn hash(contents: &str) -> Value {
    STANDARD.encode(Sha256::digest(contents)).into()
}

/// What stands in the place of a secret that is not shown.
pub(super) const HIDDEN: &str = "<hidden>";
