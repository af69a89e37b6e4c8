//! Requests that only a server can answer, within the bound of those that wait for one at once.

use std::time::Duration;

use hawser_api::error::ApiError;
use hawser_proto::v1;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::Code;

use crate::host::Host;

/// How many requests wait for a server at once.
pub(crate) struct Forwarding(Semaphore);

impl Default for Forwarding {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Forwarding {
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

    /// Asks a server, once there is one.
    pub(crate) async fn ask(
        &self,
        host: &Host,
        request: v1::HttpRequest,
    ) -> Result<v1::HttpReply, ApiError> {
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

/// The header that shows `secret`.
pub(crate) fn token(secret: &str) -> v1::Header {
    v1::Header { name: TOKEN.to_owned(), value: secret.as_bytes().to_vec() }
}

/// The header that a request shows its token in.
pub(crate) const TOKEN: &str = "x-consul-token";
/// Half of the streams that a server allows on one connection.
const AT_ONCE: usize = 512;
/// The longest blocking query, with its jitter, and some time to answer.
const LONGEST: Duration = Duration::from_secs(660);
const OWN: Duration = Duration::from_secs(2);
/// How long a request waits for a connection to a server while there is none.
const LINKED: Duration = Duration::from_secs(2);
