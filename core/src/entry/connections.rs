//! `Connections` of `service-defaults`, ours: how long what is one connection may live.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use crate::duration;

/// How long a TCP connection to a service may live, or one that a request became (WebSocket).
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connections {
    /// Longest time that nothing moves either way; zero is for ever, left out is 1 h.
    #[serde(
        default,
        rename = "IdleTimeout",
        alias = "idle_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub idle_timeout: Option<Duration>,
    /// Longest life, whatever moves; zero, and left out, is for ever.
    #[serde(
        default,
        rename = "MaxDuration",
        alias = "max_duration",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub max_duration: Option<Duration>,
    /// Whether connections end, spread over `MoveWithin`, when a new one might go elsewhere: their
    /// instance may take no more, or routes, weights or the load balancer's policy changed.
    #[serde(
        default,
        rename = "MoveOnChange",
        alias = "move_on_change",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub move_on_change: bool,
    /// Over how long; left out is 30 s.
    #[serde(
        default,
        rename = "MoveWithin",
        alias = "move_within",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub move_within: Option<Duration>,
}

impl Connections {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let at = |field: &str| format!("Connections.{field}");
        let spans = [
            (self.idle_timeout, "IdleTimeout"),
            (self.max_duration, "MaxDuration"),
            (self.move_within, "MoveWithin"),
        ];
        if let Some((_, field)) =
            spans.into_iter().find(|(span, _)| span.is_some_and(|span| span > SPAN_MAX))
        {
            return Err(Fault::new(at(field), "720h is the most"));
        }
        if self.move_within.is_some() && !self.move_on_change {
            return Err(Fault::new(at("MoveWithin"), "it needs MoveOnChange: true"));
        }
        Ok(())
    }

    /// Longest time that nothing moves, where the entry says; none is for ever.
    pub fn idle(&self, usual: Duration) -> Option<Duration> {
        Some(self.idle_timeout.unwrap_or(usual)).filter(|span| !span.is_zero())
    }

    /// Longest life; none is for ever.
    pub fn longest(&self) -> Option<Duration> {
        self.max_duration.filter(|span| !span.is_zero())
    }

    /// Over how long connections end that should move; none where they stay.
    pub fn moves_within(&self) -> Option<Duration> {
        self.move_on_change.then(|| self.move_within.unwrap_or(MOVE_WITHIN))
    }
}

const SPAN_MAX: Duration = Duration::from_secs(720 * 3_600);
const MOVE_WITHIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let cases = [
            (r#"{"IdleTimeout":"721h"}"#, "Connections.IdleTimeout"),
            (r#"{"MaxDuration":"721h"}"#, "Connections.MaxDuration"),
            (r#"{"MoveOnChange":true,"MoveWithin":"721h"}"#, "Connections.MoveWithin"),
            (r#"{"MoveWithin":"1s"}"#, "Connections.MoveWithin"),
        ];
        for (json, expected) in cases {
            let parsed: Connections = serde_json::from_str(json).expect(json);
            assert_eq!(parsed.check().expect_err(json).field, expected);
        }
    }

    #[test]
    fn what_is_left_out_is_usual_and_zero_is_for_ever() {
        let hour = Duration::from_secs(3_600);
        let second = Some(Duration::from_secs(1));
        let cases = [
            // entry, idle, longest, moves within
            ("{}", Some(hour), None, None),
            (r#"{"IdleTimeout":"0s","MaxDuration":"0s"}"#, None, None, None),
            (r#"{"IdleTimeout":"1s","MaxDuration":"1s"}"#, second, second, None),
            (r#"{"MoveOnChange":true}"#, Some(hour), None, Some(Duration::from_secs(30))),
            (r#"{"MoveOnChange":true,"MoveWithin":"1s"}"#, Some(hour), None, second),
        ];
        for (json, idle, longest, moves) in cases {
            let parsed: Connections = serde_json::from_str(json).expect(json);
            let said = (parsed.idle(hour), parsed.longest(), parsed.moves_within());
            assert_eq!(said, (idle, longest, moves), "{json}");
        }
    }
}
