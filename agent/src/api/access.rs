//! What each question to the agent itself needs: the step before its answer.

use std::sync::Arc;

use hawser_api::error::ApiError;
use hawser_api::fields::{self, Fields};
use hawser_core::acl::{Access, Authorizer, Resource};
use http::header;
use serde_json::Value;

use super::{Api, Ask};

/// Who asks.
pub(super) struct Caller {
    /// What it showed, or the host shows for it; empty for nothing.
    pub(super) secret: String,
    /// What it may do.
    pub(super) may: Arc<Authorizer>,
}

/// Who asks, once it is sure that it may.
///
/// # Errors
/// Its token is none, or lacks what the path needs.
pub(super) async fn admit(api: &Api, ask: &Ask, path: &[&str]) -> Result<Caller, ApiError> {
    let shown = secret(ask)?;
    let secret = match shown.is_empty() {
        true => api.host.acl.default_secret().unwrap_or_default().to_owned(),
        false => shown,
    };
    // Trust is no secret: every handshake shows it.
    if path == ["connect", "ca", "roots"] {
        let nobody = Authorizer::new("".into(), hawser_core::acl::DefaultPolicy::Deny, []);
        return Ok(Caller { secret, may: Arc::new(nobody) });
    }
    let may = api.host.acl.resolve(&api.host.servers, &secret).await?;
    for (resource, access, name) in needs(api, ask, path) {
        may.demand(resource, access, &name).map_err(|why| ApiError::Forbidden(why.to_string()))?;
    }
    Ok(Caller { secret, may })
}

/// The secret that a request shows; empty where it shows none.
pub(super) fn secret(ask: &Ask) -> Result<String, ApiError> {
    let text = |value: &http::HeaderValue| {
        let text = value.to_str().map(str::to_owned);
        text.map_err(|_| ApiError::Forbidden("ACL not found".to_owned()))
    };
    if let Some(token) = ask.headers.get("x-consul-token") {
        return text(token);
    }
    if let Some(authorization) = ask.headers.get(header::AUTHORIZATION) {
        let authorization = text(authorization)?;
        if let Some((scheme, token)) = authorization.split_once(' ')
            && scheme.eq_ignore_ascii_case("bearer")
        {
            return Ok(token.trim().to_owned());
        }
    }
    Ok(ask.query.text("token").unwrap_or_default().to_owned())
}

type Need = (Resource, Access, String);

fn needs(api: &Api, ask: &Ask, path: &[&str]) -> Vec<Need> {
    use Access::{Read, Write};
    let own = || api.host.node.name.to_string();
    let services = |ids: Vec<String>, access| -> Vec<Need> {
        ids.into_iter().map(|name| (Resource::Service, access, name)).collect()
    };
    let of_service = |id: &str, access| services(of_instance(api, id), access);
    let of_check = |id: &str| match instance_of_check(api, id) {
        Some(id) => services(of_instance(api, &id), Write),
        None => vec![(Resource::Node, Write, own())],
    };
    match path {
        // Filtered by what the caller may see.
        ["services" | "checks" | "members"] | ["health", "service", "name", _] => vec![],
        ["service", "register"] => services(registered(api, ask), Write),
        ["service", "deregister" | "maintenance", id] => of_service(id, Write),
        ["service", id] | ["health", "service", "id", id] => of_service(id, Read),
        ["maintenance"] => vec![(Resource::Node, Write, own())],
        ["check", "register"] => {
            let mut all = match text(ask, &["ServiceID"]) {
                Some(id) => services(of_instance(api, &id), Write),
                None => vec![(Resource::Node, Write, own())],
            };
            // One that is there already is replaced.
            let id = text(ask, &["CheckID", "ID"]).or_else(|| text(ask, &["Name"]));
            let held = id.filter(|id| is_check(api, id));
            all.extend(held.into_iter().flat_map(|id| of_check(&id)));
            all
        }
        ["check", _, id] => of_check(id),
        ["connect", "authorize"] => services(text(ask, &["Target"]).into_iter().collect(), Write),
        ["connect", "ca", "leaf", service] => services(vec![(*service).to_owned()], Write),
        ["self" | "version" | "metrics" | "monitor"] => {
            vec![(Resource::Agent, Read, own())]
        }
        ["host"] => vec![(Resource::Operator, Read, String::new())],
        ["force-leave", _] => vec![(Resource::Operator, Write, String::new())],
        // What is not named here changes the agent, for all that is known.
        _ => vec![(Resource::Agent, Write, own())],
    }
}

/// The services whose rights a registration needs: its own, and the one that it replaces.
fn registered(api: &Api, ask: &Ask) -> Vec<String> {
    let name = text(ask, &["Name"]);
    let id = text(ask, &["ID"]).or_else(|| name.clone());
    let mut all: Vec<String> = name.into_iter().collect();
    all.extend(id.into_iter().flat_map(|id| of_instance(api, &id)));
    all
}

/// The service that `id`, or what `id` is the sidecar of, is an instance of; none for one that is
/// not here.
fn of_instance(api: &Api, id: &str) -> Vec<String> {
    let ids = [id, id.strip_suffix("-sidecar-proxy").unwrap_or(id)];
    let all = api.host.local.services();
    let found = all.iter().find(|held| ids.contains(&held.instance.id.as_str()));
    found.map(|held| held.instance.service.to_string()).into_iter().collect()
}

fn is_check(api: &Api, id: &str) -> bool {
    api.host.local.all_checks().iter().any(|check| check.id.as_str() == id)
}

fn instance_of_check(api: &Api, id: &str) -> Option<String> {
    let all = api.host.local.all_checks();
    let check = all.into_iter().find(|check| check.id.as_str() == id)?;
    check.instance.map(|instance| instance.to_string())
}

/// A text of the body; none where there is none: the handler says then what is wrong.
fn text(ask: &Ask, names: &[&str]) -> Option<String> {
    let body: Value = fields::parse(&ask.body).ok()?;
    let mut fields = Fields::open(&body, "").ok()?;
    let found = fields.text(names).ok()?;
    found.map(|(_, text)| text.to_owned())
}
