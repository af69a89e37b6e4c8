//! `/v1/event`: fire an event, list the latest.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::error::ApiError;
use hawser_api::json;
use hawser_core::clock::Index;
use hawser_core::event::{Event, PAYLOAD_OCTETS_MAX};
use hawser_core::state::{Command, State, Topic};
use serde_json::json as object;

use super::ask::{Ask, Draw, Found, Plan, Reply};

pub(crate) fn fire(ask: &Ask, _: &State, draw: &Draw) -> Result<Plan, ApiError> {
    if ask.body.len() > PAYLOAD_OCTETS_MAX {
        return Err(ApiError::TooLarge { max: PAYLOAD_OCTETS_MAX });
    }
    let name = ask
        .name()
        .parse()
        .map_err(|why| ApiError::bad_request(format_args!("Invalid event name: {why}")))?;
    let event = Event {
        id: draw.uuid(0).into(),
        name,
        payload: Arc::from(&*ask.body),
        node_filter: filter(ask, "node")?,
        service_filter: filter(ask, "service")?,
        tag_filter: filter(ask, "tag")?,
    };
    if !event.tag_filter.is_empty() && event.service_filter.is_empty() {
        return Err(ApiError::bad_request("Cannot provide tag filter without service filter"));
    }
    // It has no place in the log yet, as Consul's has no Lamport time before it is sent.
    let reply = Reply::Json(object!(shown(Index(0), &event)));
    Ok(Plan { commands: vec![Command::FireEvent(event)], reply })
}

pub(crate) fn list<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let is_wanted = |event: &Event| {
        let is = |key: &str, held: &str| ask.query.text(key).is_none_or(|wanted| wanted == held);
        is("name", event.name.as_str())
            && ask.sight.event(event.name.as_str())
            && is("node", &event.node_filter)
            && is("service", &event.service_filter)
            && is("tag", &event.tag_filter)
    };
    let wanted: Vec<_> = state.events().iter().filter(|(_, event)| is_wanted(event)).collect();
    // Where none is wanted any more, an index that is no lower than before.
    let index = wanted.last().map_or(state.events().forgotten(), |(at, _)| *at);
    Ok(Found::list(ask, index, [Topic::Events], move || {
        wanted.into_iter().map(|(at, event)| shown(at, event)).collect::<Vec<_>>()
    }))
}

fn filter(ask: &Ask, key: &str) -> Result<Arc<str>, ApiError> {
    let text = ask.query.text(key).unwrap_or_default();
    if text.len() > FILTER_OCTETS_MAX {
        let why = format_args!("Invalid value for ?{key}: {FILTER_OCTETS_MAX} octets is the most");
        return Err(ApiError::bad_request(why));
    }
    Ok(text.into())
}

fn shown(at: Index, event: &Event) -> json::Event {
    json::Event {
        id: event.id.to_string(),
        name: event.name.to_string(),
        payload: (!event.payload.is_empty()).then(|| STANDARD.encode(&event.payload)),
        node_filter: event.node_filter.to_string(),
        service_filter: event.service_filter.to_string(),
        tag_filter: event.tag_filter.to_string(),
        version: VERSION,
        l_time: at.0,
    }
}

const FILTER_OCTETS_MAX: usize = 512;
/// Of the event's format, as Consul counts it.
const VERSION: u64 = 1;
