//! `/v1/coordinate`: network coordinates, which nobody here measures: every list is empty.
//!
//! Hawser orders endpoints by zone and by latency that proxies see, not by coordinates of gossip.

use hawser_api::error::ApiError;
use hawser_core::state::{State, Topic};
use serde_json::{Value, json};

use super::ask::{Ask, Found};

pub(crate) fn datacenters<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let index = state.catalog().nodes_index();
    Ok(Found::new(ask, index, [Topic::Nodes], || {
        [json!({ "Datacenter": ask.datacenter.as_str(), "AreaID": "wan", "Coordinates": [] })]
    }))
}

pub(crate) fn nodes<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let index = state.catalog().nodes_index();
    Ok(Found::list(ask, index, [Topic::Nodes], Vec::<Value>::new))
}

pub(crate) fn node<'a>(_: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let index = state.catalog().nodes_index();
    Ok(Found::missing(index, [Topic::Nodes], String::new()))
}
