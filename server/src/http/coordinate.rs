//! `/v1/coordinate`: network coordinates, which nobody here measures: every list is empty.
//!
//! Hawser orders endpoints by zone and by latency that proxies see, not by coordinates of gossip.

use hawser_api::error::ApiError;
use hawser_core::clock::Index;
use hawser_core::state::State;
use serde_json::{Value, json};

use super::ask::{Ask, Found};

pub(crate) fn datacenters<'a>(ask: &'a Ask, _: &'a State) -> Result<Found<'a>, ApiError> {
    Ok(Found::new(ask, ALWAYS, [], || {
        [json!({ "Datacenter": ask.datacenter.as_str(), "AreaID": "wan", "Coordinates": [] })]
    }))
}

pub(crate) fn nodes<'a>(ask: &'a Ask, _: &'a State) -> Result<Found<'a>, ApiError> {
    Ok(Found::list(ask, ALWAYS, [], Vec::<Value>::new))
}

pub(crate) fn node<'a>(_: &'a Ask, _: &'a State) -> Result<Found<'a>, ApiError> {
    Ok(Found::missing(ALWAYS, [], String::new()))
}

/// What never changes is as it was at first.
const ALWAYS: Index = Index(1);
