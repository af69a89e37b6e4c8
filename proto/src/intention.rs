//! Intentions and the pairs that they are about.

use std::sync::Arc;

use hawser_core::clock::UnixTime;
use hawser_core::intention::{Action, Intention, Pair};
use hawser_core::permission::Requests;

use crate::field::{Invalid, parsed, required};
use crate::model::{action, meta_in, meta_out};
use crate::v1;

impl From<&Pair> for v1::Pair {
    fn from(pair: &Pair) -> Self {
        Self {
            source: pair.source.to_string(),
            destination: pair.destination.to_string(),
            peer: pair.peer.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Pair> for Pair {
    type Error = Invalid;

    fn try_from(pair: v1::Pair) -> Result<Self, Invalid> {
        Ok(Self {
            destination: parsed("pair.destination", &pair.destination)?,
            source: parsed("pair.source", &pair.source)?,
            peer: match pair.peer.as_str() {
                "" => None,
                name => Some(parsed("pair.peer", name)?),
            },
        })
    }
}

impl From<&Intention> for v1::Intention {
    fn from(intention: &Intention) -> Self {
        let per_request = intention.requests.is_some();
        let whole = if per_request { Action::Deny } else { intention.action };
        let requests_action = per_request.then(|| v1::Action::from(intention.action));
        Self {
            id: intention.id.to_string(),
            pair: Some((&intention.pair).into()),
            action: v1::Action::from(whole).into(),
            requests_action: requests_action.unwrap_or_default().into(),
            requests_json: intention.requests.as_deref().map(written).unwrap_or_default(),
            description: intention.description.to_string(),
            meta: meta_out(&intention.meta),
            created_at_ms: intention.created_at.as_millis(),
            updated_at_ms: intention.updated_at.as_millis(),
        }
    }
}

impl TryFrom<v1::Intention> for Intention {
    type Error = Invalid;

    fn try_from(intention: v1::Intention) -> Result<Self, Invalid> {
        let pair = required("intention.pair", intention.pair)?;
        let whole = action("intention.action", intention.action)?;
        Ok(Self {
            id: intention.id.into(),
            pair,
            action: match intention.requests_json.is_empty() {
                true => whole,
                false => action("intention.requests_action", intention.requests_action)?,
            },
            requests: match intention.requests_json.as_str() {
                "" => None,
                json => Some(Arc::new(read(json)?)),
            },
            description: intention.description.into(),
            meta: meta_in(intention.meta),
            created_at: UnixTime::from_millis(intention.created_at_ms),
            updated_at: UnixTime::from_millis(intention.updated_at_ms),
        })
    }
}

fn written(requests: &Requests) -> String {
    serde_json::to_string(requests).expect("structs of texts and flags")
}

/// What they say is not judged again: what no longer compiles is refused where it is asked.
fn read(json: &str) -> Result<Requests, Invalid> {
    serde_json::from_str(json).map_err(|why| Invalid::new("intention.requests_json", why))
}
