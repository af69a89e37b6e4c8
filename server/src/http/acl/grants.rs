//! What a token or a role is given, as clients write it.

use std::sync::Arc;

use hawser_api::error::ApiError;
use hawser_api::fields::{Field, Fields, InvalidField};
use hawser_core::acl::{Grants, NodeIdentity, ServiceIdentity, Template, Templated};
use hawser_core::state::State;

/// Takes policies, identities and templated policies.
pub(super) fn grants(fields: &mut Fields<'_>, state: &State) -> Result<Grants, ApiError> {
    let policies = links(fields, "Policies", "policy", |id, name| {
        let tables = state.acl();
        let row =
            id.map_or_else(|| tables.policy_named(name.unwrap_or("")), |id| tables.policy(id));
        row.map(|row| row.value.id.clone())
    })?;
    let (mut services, mut nodes, mut templates) = (Vec::new(), Vec::new(), Vec::new());
    for mut fields in objects(fields, "ServiceIdentities")? {
        let service = label(&mut fields, "ServiceName")?;
        services.push(ServiceIdentity { service, datacenters: texts(&mut fields, "Datacenters")? });
        fields.finish()?;
    }
    for mut fields in objects(fields, "NodeIdentities")? {
        let node = label(&mut fields, "NodeName")?;
        nodes.push(NodeIdentity { node, datacenter: label(&mut fields, "Datacenter")? });
        fields.finish()?;
    }
    for mut fields in objects(fields, "TemplatedPolicies")? {
        let path = fields.path_of("TemplateName");
        let found = fields.text(&["TemplateName"])?;
        let template = found.ok_or_else(|| InvalidField::new(&path, "is missing"))?.1;
        let name = variable(&mut fields)?;
        let template = Template::find(template, name.as_deref())
            .map_err(|why| InvalidField::new(&path, why))?;
        let datacenters = texts(&mut fields, "Datacenters")?;
        fields.ignore(&["TemplateID"]);
        fields.finish()?;
        templates.push(Templated { template, name, datacenters });
    }
    let all = policies.len() + services.len() + nodes.len() + templates.len();
    if all > LINKS_MAX {
        return Err(ApiError::bad_request(format_args!(
            "{all} policies and identities are more than the {LINKS_MAX} that fit: use roles"
        )));
    }
    Ok(Grants { policies, services, nodes, templates })
}

/// Takes the roles of a token.
pub(super) fn roles(fields: &mut Fields<'_>, state: &State) -> Result<Vec<Arc<str>>, ApiError> {
    links(fields, "Roles", "role", |id, name| {
        let tables = state.acl();
        let row = id.map_or_else(|| tables.role_named(name.unwrap_or("")), |id| tables.role(id));
        row.map(|row| row.value.id.clone())
    })
}

/// The name that a template is made for.
pub(super) fn variable(fields: &mut Fields<'_>) -> Result<Option<Arc<str>>, ApiError> {
    let Some(mut variables) = fields.object(&["TemplateVariables"])? else { return Ok(None) };
    let name = match variables.text(&["Name"])? {
        None => None,
        Some((path, text)) => Some(checked(&path, text)?),
    };
    variables.finish()?;
    Ok(name)
}

/// Takes links of the form `[{"ID": …}, {"Name": …}]`, as ids.
fn links(
    fields: &mut Fields<'_>,
    list: &str,
    what: &str,
    find: impl Fn(Option<&str>, Option<&str>) -> Option<Arc<str>>,
) -> Result<Vec<Arc<str>>, ApiError> {
    let mut ids = Vec::new();
    for mut link in objects(fields, list)? {
        let id = link.text(&["ID"])?.map(|(_, id)| id);
        let name = link.text(&["Name"])?.map(|(_, name)| name);
        link.finish()?;
        let found = find(id, name).ok_or_else(|| {
            let by = if id.is_some() { "ID" } else { "name" };
            let shown = id.or(name).unwrap_or_default();
            ApiError::bad_request(format_args!("No such ACL {what} with {by} {shown:?}"))
        })?;
        if !ids.contains(&found) {
            ids.push(found);
        }
    }
    if ids.len() > LINKS_MAX {
        return Err(InvalidField::new(list, format_args!("{LINKS_MAX} are the most")).into());
    }
    Ok(ids)
}

fn objects<'a>(fields: &mut Fields<'a>, list: &str) -> Result<Vec<Fields<'a>>, InvalidField> {
    let items = fields.list(&[list])?;
    items.into_iter().map(|Field { path, value }| Fields::open(value, &path)).collect()
}

/// Takes a name that must be there: of a service, a node or a datacenter.
fn label(fields: &mut Fields<'_>, field: &str) -> Result<Arc<str>, ApiError> {
    match fields.text(&[field])? {
        Some((path, text)) => checked(&path, text),
        None => Err(InvalidField::new(fields.path_of(field), "is missing").into()),
    }
}

fn checked(path: &str, text: &str) -> Result<Arc<str>, ApiError> {
    let is_good = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit();
    let is_inner = |octet: u8| is_good(octet) || b"-_.".contains(&octet);
    let octets = text.as_bytes();
    let ends = [octets.first(), octets.last()];
    if text.len() <= LABEL_MAX
        && octets.iter().all(|octet| is_inner(*octet))
        && ends.iter().all(|octet| octet.is_some_and(|octet| is_good(*octet)))
    {
        return Ok(text.into());
    }
    let why = format_args!("{text:?}: use a-z, 0-9, -, _ and . within {LABEL_MAX} octets");
    Err(InvalidField::new(path, why).into())
}

/// Takes a list of names.
pub(super) fn texts(fields: &mut Fields<'_>, field: &str) -> Result<Vec<Arc<str>>, ApiError> {
    let texts = fields.texts(&[field])?;
    if texts.len() > LINKS_MAX {
        return Err(InvalidField::new(field, format_args!("{LINKS_MAX} are the most")).into());
    }
    Ok(texts.into_iter().map(Into::into).collect())
}

/// Takes the name of a policy or a role.
pub(super) fn name(
    fields: &mut Fields<'_>,
    field: &str,
    max: usize,
) -> Result<Option<Arc<str>>, ApiError> {
    let Some((path, text)) = fields.text(&[field])? else { return Ok(None) };
    let is_good = |octet: u8| octet.is_ascii_alphanumeric() || b"-_/".contains(&octet);
    if text.len() > max || !text.bytes().all(is_good) {
        let why = format_args!("{text:?}: use letters, digits, -, _ and / within {max} octets");
        return Err(InvalidField::new(path, why).into());
    }
    Ok(Some(text.into()))
}

/// Takes a UUID that the client has chosen, where it has.
pub(super) fn uuid(fields: &mut Fields<'_>, field: &str) -> Result<Option<String>, ApiError> {
    let Some((path, text)) = fields.text(&[field])? else { return Ok(None) };
    match uuid::Uuid::try_parse(text) {
        Ok(uuid) if text.len() == 36 => {
            let text = uuid.to_string();
            if text.starts_with(RESERVED) {
                let why = "UUIDs that begin with zeros are reserved";
                return Err(InvalidField::new(path, why).into());
            }
            Ok(Some(text))
        }
        _ => Err(InvalidField::new(path, "must be a UUID").into()),
    }
}

const RESERVED: &str = "00000000-0000-0000-0000-0000000000";
const LINKS_MAX: usize = 256;
const LABEL_MAX: usize = 256;
