//! Replies in Consul's manner.

use bytes::Bytes;
use hawser_api::error::ApiError;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::Serialize;

use super::{Ask, Reply};

/// 200 with JSON; indented when asked.
pub(super) fn json(ask: &Ask, body: &impl Serialize) -> Reply {
    json_as(StatusCode::OK, body, ask.query.first("pretty").is_some())
}

/// JSON with any status.
pub(super) fn json_as(status: StatusCode, body: &impl Serialize, is_pretty: bool) -> Reply {
    let written = match is_pretty {
        true => serde_json::to_vec_pretty(body),
        false => serde_json::to_vec(body),
    };
    match written {
        Ok(bytes) => made(status, "application/json", bytes),
        Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, &why.to_string()),
    }
}

/// Text.
pub(super) fn text(status: StatusCode, body: &str) -> Reply {
    made(status, "text/plain; charset=utf-8", body.as_bytes().to_vec())
}

/// 200 without a body: how Consul answers writes to the agent.
pub(super) fn done() -> Reply {
    let mut reply = Response::new(Full::new(Bytes::new()));
    policy(&mut reply);
    reply
}

/// What OPTIONS is answered.
pub(super) fn allow(methods: &str) -> Reply {
    let mut reply = done();
    if let Ok(methods) = methods.parse() {
        reply.headers_mut().insert(header::ALLOW, methods);
    }
    reply
}

/// A refusal as clients expect it.
pub(super) fn refusal(why: &ApiError) -> Reply {
    let mut reply = text(why.status(), &why.to_string());
    if let ApiError::MethodNotAllowed { allow, .. } = why
        && let Ok(allow) = allow.parse()
    {
        reply.headers_mut().insert(header::ALLOW, allow);
    }
    reply
}

/// With the index that a blocking read goes on from.
pub(super) fn with_index(mut reply: Reply, index: u64) -> Reply {
    reply.headers_mut().insert("x-consul-index", HeaderValue::from(index.max(1)));
    reply
}

/// Any body.
pub(super) fn made(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    policy(&mut reply);
    reply
}

fn policy(reply: &mut Reply) {
    // Nobody may take a reply for a web page's script.
    let nosniff = HeaderValue::from_static("nosniff");
    reply.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
}
