//! The HTTP API of one host: what the agent knows is answered here, the rest by a server.
//!
//! Tasks: `run` accepts; one task per connection.

mod agent;
mod access;
mod connect;
mod forward;
mod gzip;
pub(crate) mod listen;
mod monitor;
mod reply;
mod telemetry;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hawser_api::error::ApiError;
use hawser_api::query::{Query, QueryOptions};
use hawser_api::routes::agent_methods;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::listen::{Accepted, Listener};
use crate::forward::Forwarding;
use crate::host::Host;

/// Accepts until `drain`, then lets requests finish for [`DRAIN`] and cuts the rest.
pub(crate) async fn run(listener: Listener, host: Arc<Host>, drain: CancellationToken) {
    let api = Arc::new(Api {
        host,
        is_open_loopback: listener.is_open_loopback(),
        forwarding: Forwarding::default(),
        drain: drain.clone(),
    });
    let mut holds = api.host.holds.subscribe();
    // While another process is about to accept instead, connections wait for it.
    let mut round = drain.child_token();
    let clients = Arc::new(Clients::default());
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = drain.cancelled() => break,
            Ok(()) = holds.changed() => {
                match *holds.borrow_and_update() {
                    true => round.cancel(),
                    false => round = drain.child_token(),
                }
                continue;
            }
            accepted = listener.accept(), if !round.is_cancelled() => accepted,
        };
        match accepted {
            Ok((socket, from)) => match Clients::enter(&clients, from.ip()) {
                Some(place) => {
                    let (api, drain, cut) = (api.clone(), round.clone(), cut.clone());
                    connections.spawn(async move {
                        tokio::select! {
                            () = cut.cancelled() => {}
                            () = serve(api, socket, from, drain) => {}
                        }
                        drop(place);
                    });
                }
                None => {
                    api.host.metrics.http_refused.inc();
                    socket.dismiss(TOO_MANY);
                }
            },
            Err(why) => {
                // Out of files, mostly: waiting is all that helps, ending would not.
                tracing::warn!(%why, "a connection to the HTTP API could not be accepted");
                sleep(ACCEPT_BACK_OFF).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

/// What every request is answered from.
pub(crate) struct Api {
    host: Arc<Host>,
    /// Whether only this host can reach it: then a browser's tricks are what to fear.
    is_open_loopback: bool,
    forwarding: Forwarding,
    drain: CancellationToken,
}

/// One request, taken apart.
struct Ask {
    method: Method,
    /// Path segments after `/v1/`, decoded.
    path: Vec<String>,
    query: Query,
    /// Path and query as they came.
    target: String,
    headers: http::HeaderMap,
    body: Bytes,
    from: SocketAddr,
}

impl Ask {
    /// Refuses methods other than `allowed`.
    fn must_be(&self, allowed: &[Method]) -> Result<(), ApiError> {
        if allowed.contains(&self.method) {
            return Ok(());
        }
        let allow: Vec<&str> = allowed.iter().map(Method::as_str).collect();
        let method = self.method.to_string();
        Err(ApiError::MethodNotAllowed { method, allow: allow.join(",") })
    }
}

type Reply = Response<Full<Bytes>>;

async fn serve(api: Arc<Api>, socket: Accepted, from: SocketAddr, drain: CancellationToken) {
    let socket = match socket.open().await {
        Ok(socket) => socket,
        Err(why) => {
            tracing::debug!(%from, %why, "a client of the HTTP API failed its handshake");
            return;
        }
    };
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(api.respond(request, from).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(why) = ended {
        tracing::debug!(%from, %why, "an HTTP connection ended early");
    }
}

impl Api {
    async fn respond(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
    ) -> Response<Either<Full<Bytes>, monitor::Endless>> {
        self.host.metrics.http_requests.inc();
        let mut reply = self.respond_plainly(request, from).await;
        reply
            .headers_mut()
            .entry("x-consul-default-acl-policy")
            .or_insert_with(|| HeaderValue::from_static(self.host.acl.default_word()));
        reply
    }

    async fn respond_plainly(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
    ) -> Response<Either<Full<Bytes>, monitor::Endless>> {
        if let Err(why) = self.admit(&request) {
            return reply::text(StatusCode::FORBIDDEN, why).map(Either::Left);
        }
        let packs = gzip::is_wanted(request.headers());
        let is_options = request.method() == Method::OPTIONS;
        let answered = match monitor::is_asked(request.uri().path()) {
            true => self.watched(&request, from).await.map(|reply| reply.map(Either::Right)),
            false => self.answer(request, from).await.map(|reply| reply.map(Either::Left)),
        };
        match answered {
            Ok(reply) if packs => match reply.into_parts() {
                (head, Either::Left(body)) => {
                    gzip::compressed(Reply::from_parts(head, body)).await.map(Either::Left)
                }
                (head, endless) => Response::from_parts(head, endless),
            },
            Ok(reply) => reply,
            Err(ApiError::MethodNotAllowed { allow, .. }) if is_options => {
                reply::allow(&allow).map(Either::Left)
            }
            Err(why) => reply::refusal(&why).map(Either::Left),
        }
    }

    /// The log as it comes, for who may see it.
    async fn watched(
        &self,
        request: &Request<Incoming>,
        from: SocketAddr,
    ) -> Result<Response<monitor::Endless>, ApiError> {
        let ask = Ask {
            method: request.method().clone(),
            path: vec![],
            query: Query::parse(request.uri().query().unwrap_or_default())?,
            target: String::new(),
            headers: request.headers().clone(),
            body: Bytes::new(),
            from,
        };
        access::admit(self, &ask, &["monitor"]).await?;
        monitor::reply(self, request)
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
    ) -> Result<Reply, ApiError> {
        let ask = self.take(request, from).await?;
        Box::pin(self.route(&ask)).await
    }

    /// Refuses what only a browser that was tricked would send: see `reliability.md` A11.
    fn admit(&self, request: &Request<Incoming>) -> Result<(), &'static str> {
        let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or("?"));
        if self.is_open_loopback && host.is_some_and(|host| !is_this_host(host)) {
            return Err("this Host is not served here: use localhost or 127.0.0.1\n");
        }
        let origin = request.headers().get(header::ORIGIN);
        let is_same = |origin: &http::HeaderValue| {
            let origin = origin.to_str().unwrap_or_default();
            let authority =
                origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            authority.is_some_and(|authority| Some(authority) == host)
        };
        match origin {
            Some(origin) if !is_same(origin) => {
                Err("requests from other web pages are not answered\n")
            }
            _ => Ok(()),
        }
    }

    async fn take(&self, request: Request<Incoming>, from: SocketAddr) -> Result<Ask, ApiError> {
        let (head, body) = request.into_parts();
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        if target.len() > TARGET_MAX {
            return Err(ApiError::bad_request("the URL is too long"));
        }
        let decoded = |part: &str| -> Result<String, ApiError> {
            let part = percent_decode_str(part)
                .decode_utf8()
                .map_err(|_| ApiError::bad_request("the path is not UTF-8"))?;
            if part.chars().any(char::is_control) {
                return Err(ApiError::bad_request("the path has control characters"));
            }
            Ok(part.into_owned())
        };
        let path = head.uri.path().split('/').skip(1).map(decoded).collect::<Result<_, _>>()?;
        let query = Query::parse(head.uri.query().unwrap_or_default())?;
        let path: Vec<String> = path;
        let max = if path.iter().eq(SNAPSHOT) { SNAPSHOT_MAX } else { BODY_MAX };
        let body = collect(body, max).await?;
        Ok(Ask { method: head.method, path, query, target, headers: head.headers, body, from })
    }

    async fn route(&self, ask: &Ask) -> Result<Reply, ApiError> {
        let path: Vec<&str> = ask.path.iter().map(String::as_str).collect();
        match path[..] {
            ["metrics"] => {
                access::admit(self, ask, &["metrics"]).await?;
                telemetry::prometheus(&self.host)
            }
            ["v1", "hawser", "ready"] => {
                ask.must_be(&[Method::GET])?;
                Ok(self.ready())
            }
            ["v1", "agent", ref rest @ ..] => {
                // What is changed while another process reads the disk would be lost.
                let _turn = match ask.method == Method::GET {
                    true => None,
                    false => Some(self.host.changes.read().await),
                };
                // Tenancy and datacenter are refused alike everywhere.
                let options = QueryOptions::with_filter(&ask.query)?;
                if options.datacenter.is_some_and(|asked| asked != self.host.datacenter.as_str()) {
                    return Err(ApiError::UnknownDatacenter);
                }
                let methods = agent_methods(rest);
                let method = ask.method.as_str();
                if methods.is_empty() {
                    return Err(ApiError::UnknownPath);
                }
                if !methods.contains(&method) {
                    let allow = [&methods[..], &["OPTIONS"]].concat().join(",");
                    let method = method.chars().take(METHOD_SHOWN).collect();
                    return Err(ApiError::MethodNotAllowed { method, allow });
                }
                let caller = access::admit(self, ask, rest).await?;
                match rest {
                    ["connect", rest @ ..] => connect::answer(self, ask, rest, &caller).await,
                    rest => agent::answer(self, ask, rest, &caller).await,
                }
            }
            ["v1", _, ..] => self.forwarding.pass(&self.host, ask, &self.drain).await,
            _ => Err(ApiError::UnknownPath),
        }
    }

    fn ready(&self) -> Reply {
        let missing = self.host.missing();
        let status = match missing.is_empty() {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
        let body = serde_json::json!({
            "Ready": missing.is_empty(),
            "Missing": missing,
            "ServerConnected": self.host.servers.link().is_some(),
            "Refused": self.host.refused.all(),
        });
        reply::json_as(status, &body, true)
    }
}

/// Whether a `Host` header means a loopback address, whatever the port.
fn is_this_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

/// The whole body, at most `max` octets, each part within [`BODY_PROGRESS`].
async fn collect(mut body: Incoming, max: usize) -> Result<Bytes, ApiError> {
    let mut all = BytesMut::new();
    loop {
        let frame = timeout(BODY_PROGRESS, body.frame())
            .await
            .map_err(|_| ApiError::bad_request("the body did not arrive in time"))?;
        match frame {
            None => return Ok(all.freeze()),
            Some(Err(why)) => return Err(ApiError::bad_request(why)),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if all.len() + data.len() > max {
                    return Err(ApiError::TooLarge { max });
                }
                all.extend_from_slice(&data);
            }
        }
    }
}

/// How many connections each client has open.
#[derive(Default)]
struct Clients(Mutex<HashMap<IpAddr, usize>>);

/// One open connection, counted until it is dropped.
struct Place {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    fn enter(this: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let mut open = this.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(client).or_default();
        if *count >= CONNECTIONS_PER_CLIENT {
            return None;
        }
        *count += 1;
        Some(Place { clients: this.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

const TOO_MANY: &[u8] =
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const CONNECTIONS_PER_CLIENT: usize = 200;
const HEADERS: Duration = Duration::from_secs(10);
const BODY_PROGRESS: Duration = Duration::from_secs(10);
const BODY_MAX: usize = 1 << 20;
const SNAPSHOT: [&str; 2] = ["v1", "snapshot"];
/// Below what a server takes in one message.
const SNAPSHOT_MAX: usize = 7 << 20;
const BUFFER_MAX: usize = 64 << 10;
const TARGET_MAX: usize = 8 << 10;
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(100);
const METHOD_SHOWN: usize = 16;
const DRAIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_this_host() {
        for (host, expected) in [
            ("localhost", true),
            ("LOCALHOST:8500", true),
            ("127.0.0.1:8500", true),
            ("127.8.8.8", true),
            ("[::1]:8500", true),
            ("evil.example", false),
            ("localhost.evil.example:8500", false),
            ("10.0.0.1:8500", false),
            ("127.0.0.1.nip.io", false),
            ("", false),
        ] {
            assert_eq!(is_this_host(host), expected, "{host:?}");
        }
    }

    #[test]
    fn a_client_has_so_many_connections_and_no_more() {
        let clients = Arc::new(Clients::default());
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let mut places: Vec<_> = (0..CONNECTIONS_PER_CLIENT)
            .map(|_| Clients::enter(&clients, one).expect("room"))
            .collect();
        assert!(Clients::enter(&clients, one).is_none());
        assert!(Clients::enter(&clients, other).is_some(), "others have their own");
        places.pop();
        assert!(Clients::enter(&clients, one).is_some(), "room again");
        drop(places);
        assert!(clients.0.lock().expect("not poisoned").is_empty(), "nobody is remembered");
    }
}
