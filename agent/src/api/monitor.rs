//! `GET /v1/agent/monitor`: the process's log as it comes.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use hawser_api::error::ApiError;
use hawser_api::query::Query;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use tracing::Level;

use super::Api;
use crate::monitor::{Logs, Seen};

/// A body that goes on until the client has enough or the agent stops.
pub(super) type Endless = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// Whether `target` asks for the log.
pub(super) fn is_asked(path: &str) -> bool {
    path == "/v1/agent/monitor"
}

/// The log from here on: `?loglevel=` says how fine, `?logjson` that it be JSON.
///
/// # Errors
/// Another method than GET, a word that is no level, or a process that keeps no log.
pub(super) fn reply(api: &Api, request: &Request<Incoming>) -> Result<Response<Endless>, ApiError> {
    if request.method() != Method::GET {
        let (method, allow) = (request.method().to_string(), Method::GET.to_string());
        return Err(ApiError::MethodNotAllowed { method, allow });
    }
    let query = Query::parse(request.uri().query().unwrap_or_default())?;
    let word = query.first("loglevel").filter(|word| !word.is_empty()).unwrap_or("info");
    let level = level(word).ok_or_else(|| {
        ApiError::bad_request(format!(
            "Unknown log level: {word:?}: use trace, debug, info, warn or error"
        ))
    })?;
    let as_json = query.first("logjson").is_some_and(|word| word != "false");
    let logs = api
        .host
        .logs
        .as_ref()
        .ok_or_else(|| ApiError::NotImplemented("this process keeps no log to watch".into()))?;
    let mut reply = Response::new(StreamBody::new(lines(logs, level, as_json, api)));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    reply.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(reply)
}

fn lines(
    logs: &Logs,
    level: Level,
    as_json: bool,
    api: &Api,
) -> BoxStream<'static, Result<Frame<Bytes>, Infallible>> {
    let drained = api.drain.clone().cancelled_owned();
    // The first line says that the watch stands, so that nobody waits for a head.
    let first = match as_json {
        true => format!("{{\"message\":\"watching the log\",\"level\":\"{level}\"}}\n"),
        false => format!("watching the log from {level} on\n"),
    };
    let seen = stream::unfold(logs.watch(level), move |mut watch| async move {
        let text = match watch.next().await? {
            Seen::Line(line) if as_json => format!("{}\n", line.json),
            Seen::Line(line) => format!("{}\n", line.text),
            Seen::Missed(count) if as_json => format!("{{\"missed\":{count}}}\n"),
            Seen::Missed(count) => format!("{count} lines were missed\n"),
        };
        Some((text, watch))
    });
    stream::once(std::future::ready(first))
        .chain(seen.take_until(drained))
        .map(|text| Ok(Frame::data(Bytes::from(text))))
        .boxed()
}

fn level(word: &str) -> Option<Level> {
    match word.to_ascii_lowercase().as_str() {
        "err" => Some(Level::ERROR),
        other => other.parse().ok(),
    }
}
