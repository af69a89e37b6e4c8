//! Trailers: fields behind a body, where many applications look for those of the head.
//!
//! What decides about a request is decided by its head. So nothing may follow the body that the head
//! could not have said, or that something was decided by.

use hawser_core::normal::Underscores;
use hawser_core::view::View;
use http::header::{self, HeaderMap, HeaderName};

/// What may not stand in trailers, by one view.
#[derive(Debug, Default)]
pub(crate) struct Trailers {
    keeps_underscores: bool,
    /// Fields with claims, and those that intentions decide by.
    decided_by: Vec<HeaderName>,
}

impl Trailers {
    pub(crate) fn new(view: &View) -> Self {
        let claims = view.providers.values().filter_map(|it| it.forwarding.as_ref());
        let claims = claims.map(|forwarding| forwarding.header_name.as_str());
        let fields = view.guards.values().flat_map(|guard| guard.fields());
        let mut decided_by: Vec<HeaderName> =
            claims.chain(fields).filter_map(|name| name.parse().ok()).collect();
        decided_by.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        decided_by.dedup();
        Self { keeps_underscores: view.normal.underscores == Underscores::Keep, decided_by }
    }

    /// Drops what may not stand in the trailers of a request. A head with such fields may be
    /// refused; here the application has begun to work already.
    pub(crate) fn clean(&self, trailers: &mut HeaderMap) {
        for name in self.decided_by.iter().chain(&OF_HEADS) {
            trailers.remove(name);
        }
        if self.keeps_underscores || !trailers.keys().any(has_underscore) {
            return;
        }
        let bad: Vec<HeaderName> =
            trailers.keys().filter(|it| has_underscore(it)).cloned().collect();
        for name in bad {
            trailers.remove(name);
        }
    }
}

fn has_underscore(name: &HeaderName) -> bool {
    name.as_str().contains('_')
}

/// Fields that say whom a message is for, who sends it, how long it is and how to read it
/// (RFC 9110 §6.5.1).
const OF_HEADS: [HeaderName; 9] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::AUTHORIZATION,
    header::COOKIE,
    header::RANGE,
    header::CACHE_CONTROL,
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hawser_core::normal::Rules;

    use super::*;

    #[test]
    fn trailers_say_nothing_that_heads_decide_by() {
        let provider = r#"{"JSONWebKeySet":{"Local":{"Filename":"/k"}},
            "Forwarding":{"HeaderName":"X-User"}}"#;
        let provider = Arc::new(serde_json::from_str(provider).expect("Consul's shape"));
        let kept = Rules { underscores: Underscores::Keep, ..Rules::default() };
        let view = |normal| {
            let providers = Arc::new([("okta".into(), Arc::clone(&provider))].into());
            View { providers, normal, ..View::default() }
        };
        let cases: &[(Rules, &str, bool, &str)] = &[
            (Rules::default(), "x-checksum", true, "what is for the end of a body"),
            (Rules::default(), "grpc-status", true, "so is this"),
            (Rules::default(), "x-user", false, "claims are the proxy's word"),
            (Rules::default(), "x_user", false, "however it is written"),
            (kept, "x_other", true, "where the mesh lets it"),
            (kept, "x-user", false, "claims never"),
            (Rules::default(), "authorization", false, "a token that nobody checked"),
            (Rules::default(), "content-length", false, "a second length"),
        ];
        for (rules, name, expected, why) in cases {
            let mut trailers = HeaderMap::new();
            trailers
                .insert(name.parse::<HeaderName>().expect("a name"), "1".parse().expect("good"));
            Trailers::new(&view(*rules)).clean(&mut trailers);
            assert_eq!(!trailers.is_empty(), *expected, "{name}: {why}");
        }
    }
}
