//! What each question to the agent itself needs: the step before its answer.

use std::sync::Arc;

use hawser_api::definition::{CheckDefinition, Service, ServiceDefinition};
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
        ["service", "register"] => {
            let Some(definition) = parsed::<ServiceDefinition>(ask) else { return vec![] };
            let Service { instance, checks, .. } = definition.service();
            let mut all = vec![(Resource::Service, Write, instance.service.to_string())];
            // What is there already under these ids is replaced.
            all.extend(of_service(instance.id.as_str(), Write));
            let held = checks.iter().filter_map(|check| replaced(api, check.id.as_str()));
            all.extend(held.flat_map(of_check));
            all
        }
        ["service", "deregister" | "maintenance", id] => of_service(id, Write),
        ["service", id] | ["health", "service", "id", id] => of_service(id, Read),
        ["maintenance"] => vec![(Resource::Node, Write, own())],
        ["check", "register"] => {
            let Some(check) = parsed::<CheckDefinition>(ask) else { return vec![] };
            let (id, about) = (check.check().id.as_str(), &check.check().instance);
            let mut all = match about {
                Some(instance) => services(of_instance(api, instance.as_str()), Write),
                None => vec![(Resource::Node, Write, own())],
            };
            // One that is there already is replaced.
            all.extend(replaced(api, id).into_iter().flat_map(of_check));
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

/// What the body declares, as its handler reads it; none where that refuses it.
fn parsed<T: TryFrom<Value>>(ask: &Ask) -> Option<T> {
    T::try_from(fields::parse(&ask.body).ok()?).ok()
}

/// The service that `id`, or what `id` is the sidecar of, is an instance of; none for one that is
/// not here.
fn of_instance(api: &Api, id: &str) -> Vec<String> {
    let all = api.host.local.services();
    let named = |id: &str| all.iter().find(|held| held.instance.id.as_str() == id);
    let found = named(id).or_else(|| named(id.strip_suffix("-sidecar-proxy")?));
    found.map(|held| held.instance.service.to_string()).into_iter().collect()
}

/// The check's id, where such a check is here.
fn replaced<'c>(api: &Api, id: &'c str) -> Option<&'c str> {
    let all = api.host.local.all_checks();
    all.iter().any(|check| check.id.as_str() == id).then_some(id)
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
