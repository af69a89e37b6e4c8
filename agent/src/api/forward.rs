//! Requests that only a server can answer, carried to one and back.

use std::time::Duration;

use hawser_api::error::ApiError;
use hawser_proto::v1;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{Ask, Reply, access};
use crate::host::Host;

/// How many requests wait for a server at once.
pub(crate) struct Forwarding(Semaphore);

impl Default for Forwarding {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

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

    /// Asks a server for `target` as the holder of `secret`.
    pub(crate) async fn own(
        &self,
        host: &Host,
        secret: &str,
        method: &str,
        target: &str,
        body: Vec<u8>,
    ) -> Result<v1::HttpReply, ApiError> {
        let request = v1::HttpRequest {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Some(secret)
                .filter(|secret| !secret.is_empty())
                .map(token)
                .into_iter()
                .collect(),
            body: body.into(),
        };
        timeout(OWN, self.ask(host, request)).await.map_err(|_| ApiError::NoLeader)?
    }

    async fn ask(&self, host: &Host, request: v1::HttpRequest) -> Result<v1::HttpReply, ApiError> {
        // Over the servers' bound on streams, requests would hold up heartbeats.
        let _place = self
            .0
            .try_acquire()
            .map_err(|_| ApiError::Unavailable(format!("{AT_ONCE} requests wait already")))?;
        // One server may just have been left for another.
        let mut links = host.servers.links();
        let linked = timeout(LINKED, links.wait_for(Option::is_some)).await;
        let link = linked.ok().and_then(Result::ok).and_then(|link| link.clone());
        let link = link.ok_or(ApiError::NoLeader)?;
        let mut client = link.client();
        // What was to be written may have been, when no word of it came back.
        let lost = match request.method.as_str() {
            "GET" => ApiError::NoLeader,
            _ => ApiError::Unknown,
        };
        let answered = tokio::select! {
            () = link.closed() => return Err(lost),
            answered = timeout(LONGEST, client.http(request)) => answered,
        };
        match answered {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(match status.code() {
                Code::InvalidArgument => ApiError::bad_request(status.message()),
                Code::ResourceExhausted => ApiError::Unavailable(status.message().to_owned()),
                Code::Unauthenticated | Code::PermissionDenied => {
                    ApiError::Refused(format!("rpc error: {}", status.message()))
                }
                _ => lost,
            }),
            Err(_) => Err(lost),
        }
    }
}

fn token(secret: &str) -> v1::Header {
    v1::Header { name: TOKEN.to_owned(), value: secret.as_bytes().to_vec() }
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

const TOKEN: &str = "x-consul-token";
/// Headers that mean something to a server.
const PASSED: [&str; 6] =
    ["accept", "authorization", "cache-control", "content-type", TOKEN, "user-agent"];
const HOP_BY_HOP: [&str; 6] =
    ["connection", "content-length", "keep-alive", "te", "transfer-encoding", "upgrade"];
/// Half of the streams that a server allows on one connection.
const AT_ONCE: usize = 512;
/// The longest blocking query, with its jitter, and some time to answer.
const LONGEST: Duration = Duration::from_secs(660);
const OWN: Duration = Duration::from_secs(2);
/// How long a request waits for a connection to a server while there is none.
const LINKED: Duration = Duration::from_secs(2);
