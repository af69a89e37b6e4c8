//! Every endpoint of the servers, as data: method, path, and who answers.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hawser_api::error::ApiError;
use hawser_core::state::State;
use http::Method;
use percent_encoding::percent_decode_str;

use super::ask::{Ask, Draw, Found, Plan};
use super::cluster::Said;
use super::{
    acl, ca, catalog, cluster, connect, coordinate, discovery, entries, event, health, imports, kv,
    openapi, operator, peering, query, session, snapshot, txn,
};
use crate::Handle;

/// Who answers.
#[derive(Clone, Copy)]
pub(crate) enum Handler {
    /// A read of the state; blocks when asked to.
    Read(for<'a> fn(&'a Ask, &'a State) -> Result<Found<'a>, ApiError>),
    /// A read of the state that can also tell of what a peer exports.
    ReadOrPeer(for<'a> fn(&'a Ask, &'a State) -> Result<Found<'a>, ApiError>),
    /// A write, planned on the state.
    Write(fn(&Ask, &State, &Draw) -> Result<Plan, ApiError>),
    /// Anything else.
    Other(fn(Handle, Ask) -> BoxFuture<'static, Said>),
    /// A file.
    Archive(fn(Handle, Ask) -> BoxFuture<'static, Result<Bytes, ApiError>>),
    /// Always this.
    Refuse(fn() -> ApiError),
}

/// One endpoint.
pub(crate) struct Route {
    pub(crate) method: Method,
    /// Below `/v1/`; `:` stands for one part, `*` for all that is left.
    pub(crate) pattern: &'static str,
    pub(crate) handler: Handler,
}

/// What a path and method lead to.
pub(crate) enum Matched {
    /// This, with the parts that the pattern leaves open.
    Route(&'static Route, Vec<String>),
    /// The path is known with other methods, comma-separated.
    OtherMethods(String),
    /// The path is not known.
    Unknown,
}

/// Finds who answers `method` on `path`.
///
/// # Errors
/// A part of the path that is no text, or holds a control character.
pub(crate) fn find(method: &Method, path: &str) -> Result<Matched, ApiError> {
    let Some(rest) = path.strip_prefix("/v1/") else { return Ok(Matched::Unknown) };
    let parts: Vec<String> = rest.split('/').map(part).collect::<Result<_, _>>()?;
    // The first pattern that matches is the path's own: what stands below it is more general.
    let mut matching =
        ROUTES.iter().filter_map(|route| Some((route, matches(route.pattern, &parts)?)));
    let Some((first, params)) = matching.next() else { return Ok(Matched::Unknown) };
    let own = || ROUTES.iter().filter(|route| route.pattern == first.pattern);
    let answers =
        |route: &&Route| route.method == *method || matches!(route.handler, Handler::Refuse(_));
    if let Some(route) = own().find(answers) {
        return Ok(Matched::Route(route, params));
    }
    let mut allow: Vec<&str> = own().map(|route| route.method.as_str()).collect();
    allow.push("OPTIONS");
    Ok(Matched::OtherMethods(allow.join(",")))
}

fn part(text: &str) -> Result<String, ApiError> {
    let decoded = percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| ApiError::bad_request("the path is not UTF-8"))?;
    if decoded.chars().any(char::is_control) {
        return Err(ApiError::bad_request("the path has a control character"));
    }
    Ok(decoded.into_owned())
}

fn matches(pattern: &str, parts: &[String]) -> Option<Vec<String>> {
    let mut open = Vec::new();
    let mut left = parts;
    for have in pattern.split('/') {
        let part = left.first();
        if have == "*" {
            open.push(left.join("/"));
            return Some(open);
        }
        left = left.get(1..).unwrap_or_default();
        match (have, part) {
            (":", Some(part)) if !part.is_empty() => open.push(part.clone()),
            (have, Some(part)) if have == part => {}
            _ => return None,
        }
    }
    left.is_empty().then_some(open)
}

macro_rules! routes {
    ($($method:ident $pattern:literal $kind:ident($handler:expr)),* $(,)?) => {
        &[$(Route {
            method: Method::$method,
            pattern: $pattern,
            handler: routes!(@ $kind, $handler),
        }),*]
    };
    (@ Other, $handler:expr) => {
        Handler::Other(|handle, ask| Box::pin($handler(handle, ask)))
    };
    (@ Archive, $handler:expr) => {
        Handler::Archive(|handle, ask| Box::pin($handler(handle, ask)))
    };
    (@ $kind:ident, $handler:expr) => { Handler::$kind($handler) };
}

/// The endpoints, the more specific of two that match first.
pub(crate) const ROUTES: &[Route] = routes![
    GET "catalog/datacenters" Read(catalog::datacenters),
    GET "catalog/nodes" ReadOrPeer(catalog::nodes),
    GET "catalog/services" ReadOrPeer(catalog::services),
    GET "catalog/service/:" ReadOrPeer(catalog::service),
    GET "catalog/connect/:" ReadOrPeer(catalog::connect),
    GET "catalog/node/:" Read(catalog::node),
    GET "catalog/node-services/:" Read(catalog::node_services),
    PUT "catalog/register" Write(catalog::register),
    PUT "catalog/deregister" Write(catalog::deregister),
    GET "health/service/:" ReadOrPeer(health::service),
    GET "health/connect/:" ReadOrPeer(health::connect),
    GET "health/node/:" Read(health::node),
    GET "health/checks/:" ReadOrPeer(health::checks),
    GET "health/state/:" Read(health::state),
    GET "connect/ca/roots" Read(connect::roots),
    GET "connect/ca/configuration" Read(ca::configuration),
    PUT "connect/ca/configuration" Other(ca::configure),
    PUT "hawser/connect/ca/rotate" Other(ca::rotate),
    GET "hawser/connect/revocations" Read(ca::revocations),
    PUT "hawser/connect/revocation" Write(ca::revoke),
    DELETE "hawser/connect/revocation/:/:" Write(ca::reinstate),
    GET "connect/intentions" Read(connect::intentions),
    POST "connect/intentions" Write(connect::create),
    GET "connect/intentions/match" Read(connect::matching),
    GET "connect/intentions/check" Read(connect::check),
    GET "connect/intentions/exact" Read(connect::exact),
    PUT "connect/intentions/exact" Write(connect::put_exact),
    DELETE "connect/intentions/exact" Write(connect::delete_exact),
    GET "connect/intentions/:" Read(connect::by_id),
    PUT "connect/intentions/:" Write(connect::put_by_id),
    DELETE "connect/intentions/:" Write(connect::delete_by_id),
    GET "discovery-chain/:" Read(discovery::chain),
    POST "discovery-chain/:" Read(discovery::chain),
    PUT "config" Write(entries::put),
    GET "config/:" Read(entries::list),
    GET "config/:/:" Read(entries::get),
    DELETE "config/:/:" Write(entries::delete),
    POST "peering/token" Other(peering::token),
    POST "peering/establish" Other(peering::establish),
    GET "peering/:" Read(peering::get),
    DELETE "peering/:" Write(peering::delete),
    GET "peerings" Read(peering::list),
    GET "exported-services" Read(imports::exported_services),
    GET "imported-services" Read(imports::imported),
    GET "status/leader" Other(cluster::leader),
    GET "status/peers" Other(cluster::peers),
    GET "operator/raft/configuration" Other(operator::raft_configuration),
    DELETE "operator/raft/peer" Other(operator::remove_peer),
    POST "operator/raft/transfer-leader" Other(operator::transfer_leader),
    PUT "operator/raft/transfer-leader" Other(operator::transfer_leader),
    GET "operator/autopilot/configuration" Read(operator::configuration),
    PUT "operator/autopilot/configuration" Write(operator::configure),
    GET "operator/autopilot/health" Other(operator::health),
    GET "operator/autopilot/state" Other(operator::state),
    PUT "hawser/join-token" Other(cluster::join_token),
    GET "hawser/edges" Other(cluster::edges),
    GET "hawser/openapi" Other(openapi::show),
    PUT "acl/bootstrap" Other(acl::bootstrap),
    GET "acl/replication" Other(acl::replication),
    GET "acl/tokens" Read(acl::tokens),
    PUT "acl/token" Write(acl::create_token),
    GET "acl/token/self" Read(acl::own_token),
    GET "acl/token/:" Read(acl::token),
    PUT "acl/token/:" Write(acl::update_token),
    DELETE "acl/token/:" Write(acl::delete_token),
    PUT "acl/token/:/clone" Write(acl::clone_token),
    GET "acl/policies" Read(acl::policies),
    PUT "acl/policy" Write(acl::create_policy),
    GET "acl/policy/name/:" Read(acl::policy_named),
    GET "acl/policy/:" Read(acl::policy),
    PUT "acl/policy/:" Write(acl::update_policy),
    DELETE "acl/policy/:" Write(acl::delete_policy),
    GET "acl/roles" Read(acl::roles),
    PUT "acl/role" Write(acl::create_role),
    GET "acl/role/name/:" Read(acl::role_named),
    GET "acl/role/:" Read(acl::role),
    PUT "acl/role/:" Write(acl::update_role),
    DELETE "acl/role/:" Write(acl::delete_role),
    POST "acl/login" Other(acl::login),
    POST "acl/logout" Other(acl::logout),
    GET "acl/auth-methods" Read(acl::methods),
    PUT "acl/auth-method" Write(acl::create_method),
    GET "acl/auth-method/:" Read(acl::method),
    PUT "acl/auth-method/:" Write(acl::update_method),
    DELETE "acl/auth-method/:" Write(acl::delete_method),
    GET "acl/binding-rules" Read(acl::bindings),
    PUT "acl/binding-rule" Write(acl::create_binding),
    GET "acl/binding-rule/:" Read(acl::binding),
    PUT "acl/binding-rule/:" Write(acl::update_binding),
    DELETE "acl/binding-rule/:" Write(acl::delete_binding),
    GET "acl/templated-policies" Other(acl::templates),
    GET "acl/templated-policy/name/:" Other(acl::template),
    GET "acl/templated-policy/name/:/:" Other(acl::template),
    POST "acl/templated-policy/preview/:" Other(acl::preview),
    POST "acl/templated-policy/preview/:/:" Other(acl::preview),
    GET "acl/*" Refuse(|| absent("this part of access control")),
    GET "kv/*" Read(kv::get),
    PUT "kv/*" Write(kv::put),
    DELETE "kv/*" Write(kv::delete),
    PUT "session/create" Write(session::create),
    PUT "session/destroy/:" Write(session::destroy),
    PUT "session/renew/:" Other(session::renew),
    GET "session/info/:" Read(session::info),
    GET "session/list" Read(session::list),
    GET "session/node/:" Read(session::of_node),
    PUT "txn" Other(txn::run),
    PUT "event/fire/:" Write(event::fire),
    GET "event/list" Read(event::list),
    GET "query" Read(query::list),
    POST "query" Write(query::create),
    GET "query/:" Read(query::get),
    PUT "query/:" Write(query::update),
    DELETE "query/:" Write(query::delete),
    GET "query/:/execute" Read(query::execute),
    GET "query/:/explain" Read(query::explain),
    GET "coordinate/datacenters" Read(coordinate::datacenters),
    GET "coordinate/nodes" Read(coordinate::nodes),
    GET "coordinate/node/:" Read(coordinate::node),
    PUT "coordinate/update" Refuse(|| absent("network coordinates")),
    GET "snapshot" Archive(snapshot::save),
    PUT "snapshot" Other(snapshot::restore),
];

fn absent(what: &str) -> ApiError {
    ApiError::NotImplemented(format!("Hawser does not have {what}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    /// `GET /v1/kv/*`, with every open part as the routes spell it.
    fn normal(endpoint: &str) -> String {
        let parts = endpoint.split('/').map(|part| if part.starts_with(':') { ":" } else { part });
        parts.collect::<Vec<_>>().join("/")
    }

    /// What docs/consul.md says of each endpoint.
    fn documented() -> BTreeMap<String, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/consul.md");
        let text = std::fs::read_to_string(&path).expect("docs/consul.md");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
        let rows = rows.filter_map(|row| {
            let (endpoint, rest) = row.split_once("` | ")?;
            let (state, _) = rest.split_once(" |")?;
            Some((normal(endpoint), state.to_owned()))
        });
        rows.collect()
    }

    #[test]
    fn the_guide_for_consuls_users_lists_every_endpoint_as_it_is() {
        let documented = documented();
        let mut wrong = Vec::new();
        let routes = ROUTES.iter().filter(|route| !matches!(route.handler, Handler::Refuse(_)));
        let agents = hawser_api::routes::AGENT.iter().filter(|route| route.is_answered);
        let agents = agents.map(|route| format!("{} /v1/agent/{}", route.method, route.pattern));
        let answered: Vec<String> = routes
            .map(|route| format!("{} /v1/{}", route.method, route.pattern))
            .chain(agents)
            .collect();
        for endpoint in &answered {
            if documented.get(endpoint).map(String::as_str) != Some("yes") {
                wrong.push(format!("| `{endpoint}` | yes | | is missing, or says no"));
            }
        }
        for (endpoint, state) in &documented {
            if state != "no" && !answered.contains(endpoint) {
                wrong.push(format!("{endpoint} says {state}, and is not answered"));
            }
        }
        for route in ROUTES.iter().filter(|route| !matches!(route.handler, Handler::Refuse(_))) {
            let path = format!("/v1/{}", route.pattern.replace([':', '*'], "x"));
            if !matches!(find(&route.method, &path), Ok(Matched::Route(found, _))
                if found.pattern == route.pattern && found.method == route.method)
            {
                wrong.push(format!("{} {path} is hidden by a route above it", route.method));
            }
        }
        assert!(wrong.is_empty(), "docs/consul.md:\n{}", wrong.join("\n"));
    }
}
