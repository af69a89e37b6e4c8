//! `/v1/health`: instances with their checks.

use hawser_api::error::ApiError;
use hawser_api::json;
use hawser_core::catalog::{Instance, Row};
use hawser_core::health::Status;
use hawser_core::state::{State, Topic};

use super::ask::{Ask, Found};
use super::encode;
use super::imports::{self, Socket};

pub(crate) fn service<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    match imports::peer(ask) {
        Some(_) => Ok(imports::health(ask, state, Socket::Application)),
        None => entries(ask, state, encode::node_service_of),
    }
}

pub(crate) fn connect<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    match imports::peer(ask) {
        Some(_) => Ok(imports::health(ask, state, Socket::Mesh)),
        None => entries(ask, state, encode::sidecar),
    }
}

fn entries<'a>(
    ask: &'a Ask,
    state: &'a State,
    shape: fn(&Row<Instance>) -> Option<json::NodeService>,
) -> Result<Found<'a>, ApiError> {
    let catalog = state.catalog();
    let Some(name) = ask.service() else {
        let none = Vec::<json::ServiceEntry>::new;
        return Ok(Found::list(ask, catalog.emptied_index(), [Topic::Names], none));
    };
    let index = catalog.service_index(&name);
    let distance = ask.distance(state);
    Ok(Found::list(ask, index, [Topic::Service(name.clone())], move || {
        let mut placed: Vec<_> = catalog
            .placed(&name)
            .filter(|placed| ask.sight.node(placed.node.value.name.as_str()))
            .filter(|placed| ask.wants_node(&placed.node.value.meta))
            .filter(|placed| ask.wants_tags(&placed.instance.value.tags))
            .filter(|placed| !ask.options.passing || placed.status() == Status::Passing)
            .collect();
        placed.sort_by_key(|placed| distance(&placed.node.value));
        placed
            .into_iter()
            .filter_map(|placed| {
                let service = shape(placed.instance)?;
                Some(encode::service_entry(&placed, service, &ask.datacenter))
            })
            .collect::<Vec<_>>()
    }))
}

pub(crate) fn node<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let catalog = state.catalog();
    let Some(name) = ask.node(state) else {
        let none = Vec::<json::HealthCheck>::new;
        return Ok(Found::list(ask, catalog.nodes_index(), [Topic::Nodes], none));
    };
    let topics = [Topic::Node(name.clone())];
    Ok(Found::list(ask, catalog.checks_index(), topics, move || {
        catalog
            .checks_on(&name)
            .map(|row| encode::check_in(catalog, &name, row))
            .filter(|check| ask.sight.check(check))
            .collect::<Vec<_>>()
    }))
}

pub(crate) fn checks<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    if imports::peer(ask).is_some() {
        return Ok(imports::checks(ask, state));
    }
    let catalog = state.catalog();
    let Some(name) = ask.service() else {
        let none = Vec::<json::HealthCheck>::new;
        return Ok(Found::list(ask, catalog.emptied_index(), [Topic::Names], none));
    };
    let index = catalog.service_index(&name);
    let distance = ask.distance(state);
    Ok(Found::list(ask, index, [Topic::Service(name.clone())], move || {
        let mut checks = Vec::new();
        let mut all: Vec<_> = catalog.placed(&name).collect();
        all.sort_by_key(|placed| distance(&placed.node.value));
        for placed in all {
            let node = &placed.node.value;
            if ask.sight.node(node.name.as_str()) && ask.wants_node(&node.meta) {
                let own = placed.checks.iter().filter(|row| row.value.instance.is_some());
                let on = &placed.node.value.name;
                checks.extend(own.map(|row| encode::health_check(on, row, Some(placed.instance))));
            }
        }
        checks
    }))
}

pub(crate) fn state<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let catalog = state.catalog();
    let wanted = ask.name();
    if !STATES.contains(&wanted) {
        return Err(ApiError::bad_request(format_args!(
            "{wanted:?} is no state: use any, passing, warning or critical"
        )));
    }
    Ok(Found::list(ask, catalog.checks_index(), [Topic::Checks], move || {
        catalog
            .checks()
            .filter(|(_, row)| wanted == "any" || row.value.status.as_str() == wanted)
            .filter(|(node, _)| {
                ask.options.node_meta.is_empty()
                    || catalog.node(node).is_some_and(|row| ask.wants_node(&row.value.meta))
            })
            .map(|(node, row)| encode::check_in(catalog, node, row))
            .filter(|check| ask.sight.check(check))
            .collect::<Vec<_>>()
    }))
}

/// `unknown` is asked for by Consul's clients; no check is ever in it.
const STATES: [&str; 5] = ["any", "passing", "warning", "critical", "unknown"];
