//! Intentions and the pairs that they are about.

use hawser_core::clock::UnixTime;
use hawser_core::intention::{Intention, Pair};

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
        Self {
            id: intention.id.to_string(),
            pair: Some((&intention.pair).into()),
            action: v1::Action::from(intention.action).into(),
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
        Ok(Self {
            id: intention.id.into(),
            pair: required("intention.pair", intention.pair)?,
            action: action("intention.action", intention.action)?,
            description: intention.description.into(),
            meta: meta_in(intention.meta),
            created_at: UnixTime::from_millis(intention.created_at_ms),
            updated_at: UnixTime::from_millis(intention.updated_at_ms),
        })
    }
}
