//! Templated policies: what there is, and what one would allow.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_api::error::ApiError;
use hawser_api::fields::Fields;
use hawser_core::acl::Template;
use http::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::ask::Ask;
use super::super::cluster::Said;
use super::grants::variable;
use crate::Handle;

/// Every built-in template, by name.
pub(crate) async fn templates(_: Handle, ask: Ask) -> Said {
    let all: BTreeMap<&str, Value> =
        Template::ALL.map(|template| (template.as_str(), shown(template))).into();
    Ok((StatusCode::OK, ask.write(&all)?))
}

/// One template.
pub(crate) async fn template(_: Handle, ask: Ask) -> Said {
    Ok((StatusCode::OK, ask.write(&shown(named(&ask)?))?))
}

/// The policy that a template makes for a name.
pub(crate) async fn preview(_: Handle, ask: Ask) -> Said {
    let template = named(&ask)?;
    let name = match ask.body.is_empty() {
        true => None,
        false => {
            let body = ask.json()?;
            let mut fields = Fields::open(&body, "")?;
            // The variables stand by themselves, or in an object of their own.
            let bare = fields.text(&["Name"])?.map(|(_, name)| name.into());
            let name = variable(&mut fields)?.or(bare);
            fields.ignore(&["TemplateName", "TemplateID", "Datacenters"]);
            fields.finish()?;
            name
        }
    };
    Template::find(template.as_str(), name.as_deref()).map_err(ApiError::bad_request)?;
    let rules = template.rules(name.as_deref().unwrap_or_default()).to_string();
    let digest = URL_SAFE_NO_PAD.encode(Sha256::digest(&rules));
    let policy = json!({
        "ID": format!("synthetic-{digest}"),
        "Name": format!("synthetic-policy-{digest}"),
        "Description": format!("synthetic policy generated from templated policy: {}",
                               template.as_str()),
        "Rules": rules,
        "Hash": digest,
        "CreateIndex": 0,
        "ModifyIndex": 0,
    });
    Ok((StatusCode::OK, ask.write(&policy)?))
}

/// The template that the path names, in one part or in two.
fn named(ask: &Ask) -> Result<Template, ApiError> {
    let name = ask.params.join("/");
    let found = Template::ALL.into_iter().find(|template| template.as_str() == name);
    found.ok_or_else(|| {
        ApiError::NotFound(format!("Invalid templated policy Name: {name:?}: ACL not found"))
    })
}

fn shown(template: Template) -> Value {
    let schema = match template.takes_name() {
        false => String::new(),
        true => json!({
            "type": "object",
            "properties": { "name": { "type": "string", "$ref": "#/definitions/min-length-one" } },
            "required": ["name"],
            "definitions": { "min-length-one": { "type": "string", "minLength": 1 } },
        })
        .to_string(),
    };
    json!({
        "TemplateName": template.as_str(),
        "Schema": schema,
        "Template": template.rules("{{.Name}}").to_string(),
        "Description": template.description(),
    })
}
