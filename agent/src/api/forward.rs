//! A client's request that only a server can answer, carried to one and back.

use hawser_api::error::ApiError;
use hawser_proto::v1;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tokio_util::sync::CancellationToken;

use super::{Ask, Reply, access};
use crate::forward::{Forwarding, TOKEN, token};
use crate::host::Host;

impl Forwarding {
    /// Asks a server what `ask` asks.
    pub(super) async fn pass(
        &self,
        host: &Host,
        ask: &Ask,
        drain: &CancellationToken,
    ) -> Result<Reply, ApiError> {
        // Who shows nothing asks as the host lets those ask.
        let default = match access::secret(ask)?.is_empty() {
            true => host.acl.default_secret(),
            false => None,
        };
        // A token without text is none, and would stand before the host's.
        let is_passed = |(name, value): &(&HeaderName, &HeaderValue)| {
            PASSED.contains(&name.as_str()) && !(*name == TOKEN && value.is_empty())
        };
        let headers = ask.headers.iter().filter(is_passed).map(|(name, value)| v1::Header {
            name: name.to_string(),
            value: value.as_bytes().to_vec(),
        });
        let request = v1::HttpRequest {
            method: ask.method.to_string(),
            target: ask.target.clone(),
            headers: headers.chain(default.map(token)).collect(),
            body: ask.body.clone(),
        };
        let stops = || ApiError::Unavailable("the agent stops".to_owned());
        tokio::select! {
            () = drain.cancelled() => Err(stops()),
            reply = self.ask(host, request) => reply.and_then(made),
        }
    }
}

fn made(reply: v1::HttpReply) -> Result<Reply, ApiError> {
    let malformed = || ApiError::Unavailable("the server's reply is malformed".to_owned());
    let status = u16::try_from(reply.status).map_err(|_| malformed())?;
    let mut made = Response::new(Full::new(reply.body));
    *made.status_mut() = StatusCode::from_u16(status).map_err(|_| malformed())?;
    for header in reply.headers {
        let name = HeaderName::try_from(header.name).map_err(|_| malformed())?;
        // What belongs to a connection is this one's own affair.
        if HOP_BY_HOP.contains(&name.as_str()) {
            continue;
        }
        let value = HeaderValue::try_from(header.value).map_err(|_| malformed())?;
        made.headers_mut().append(name, value);
    }
    Ok(made)
}

/// Headers that mean something to a server.
const PASSED: [&str; 6] =
    ["accept", "authorization", "cache-control", "content-type", TOKEN, "user-agent"];
const HOP_BY_HOP: [&str; 6] =
    ["connection", "content-length", "keep-alive", "te", "transfer-encoding", "upgrade"];
