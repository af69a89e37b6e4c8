//! One run of an HTTP, TCP or gRPC check.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use hawser_core::address::SocketPath;
use hawser_core::health::Status;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::tls::Trust;
use crate::target::{self, Target, TargetError};

/// What one run found, and what it has to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Found {
    /// The status.
    pub(crate) status: Status,
    /// The output, at most some KiB.
    pub(crate) output: String,
}

impl Found {
    /// A critical finding that says why.
    pub(crate) fn critical(why: impl fmt::Display) -> Self {
        Self { status: Status::Critical, output: why.to_string() }
    }
}

/// Why a run got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    /// The target is not asked.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// It cannot be reached.
    #[error("{host}:{port}: {source}")]
    Connect {
        /// Where.
        host: String,
        /// On which port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// Nobody listens at the socket, or it is not for the agent.
    #[error("unix:{path}: {source}")]
    Socket {
        /// Which.
        path: SocketPath,
        /// Why.
        source: io::Error,
    },
    /// It does not speak HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be made.
    #[error("{0}")]
    Request(#[from] http::Error),
    /// It does not speak gRPC's health protocol.
    #[error("no answer of gRPC's health protocol: {0}")]
    Grpc(String),
}

/// What an HTTP check asks.
pub(crate) struct HttpRequest<'a> {
    pub(crate) target: Target,
    pub(crate) url: &'a Uri,
    pub(crate) method: &'a Method,
    pub(crate) headers: &'a [(HeaderName, HeaderValue)],
    pub(crate) body: &'a Arc<str>,
    /// None: in clear text.
    pub(crate) tls: Option<(Trust, &'a str)>,
    /// Whether the body of the answer is part of what is found.
    pub(crate) shows_answer: bool,
}

/// Connects, and that is all.
pub(crate) async fn tcp(target: &Target) -> Result<Found, ProbeError> {
    connect(target).await?;
    let output = format!("TCP connect {}:{}: Success", target.host, target.port);
    Ok(Found { status: Status::Passing, output })
}

/// Connects to a Unix socket, and that is all.
pub(crate) async fn socket(path: &SocketPath) -> Result<Found, ProbeError> {
    match UnixStream::connect(path.as_str()).await {
        Ok(_) => {
            let output = format!("TCP connect unix:{path}: Success");
            Ok(Found { status: Status::Passing, output })
        }
        Err(source) => Err(ProbeError::Socket { path: path.clone(), source }),
    }
}

/// 2xx passes, 429 warns, the rest is critical; redirects are answers like any other.
pub(crate) async fn http(ask: HttpRequest<'_>) -> Result<Found, ProbeError> {
    let socket = connect(&ask.target).await?;
    match &ask.tls {
        None => http_on(socket, &ask).await,
        Some((trust, name)) => {
            let secured = secure(*trust, name, &ask.target, socket, b"http/1.1").await?;
            http_on(secured, &ask).await
        }
    }
}

async fn http_on(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ask: &HttpRequest<'_>,
) -> Result<Found, ProbeError> {
    let (mut send, connection) = http1::handshake(TokioIo::new(io)).await?;
    let _driver = Driver(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let path = ask.url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder().method(ask.method.clone()).uri(path);
    let stated = |name: &HeaderName| ask.headers.iter().any(|(held, _)| held == name);
    if !stated(&header::HOST)
        && let Some(authority) = ask.url.authority()
    {
        request = request.header(header::HOST, authority.as_str());
    }
    if !stated(&header::USER_AGENT) {
        request = request.header(header::USER_AGENT, "Hawser Health Check");
    }
    for (name, value) in ask.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(ask.body.as_bytes())))?;
    let response = send.send_request(request).await?;
    let code = response.status();
    let printed = match ask.shows_answer {
        true => printed(response.into_body()).await,
        false => "(not shown: this host does not have the address that was asked)".to_owned(),
    };
    let status = match code {
        _ if code.is_success() => Status::Passing,
        StatusCode::TOO_MANY_REQUESTS => Status::Warning,
        _ => Status::Critical,
    };
    // Without the query, which may hold a secret.
    let url = format_args!("{}:{}{}", ask.target.host, ask.target.port, ask.url.path());
    Ok(Found { status, output: format!("HTTP {} {url}: {code} Output: {printed}", ask.method) })
}

/// `grpc.health.v1.Health/Check` answers SERVING.
pub(crate) async fn grpc(
    target: &Target,
    service: &str,
    tls: Option<(Trust, &str)>,
) -> Result<Found, ProbeError> {
    let socket = connect(target).await?;
    let status = match tls {
        None => grpc_on(socket, target, service).await?,
        Some((trust, name)) => {
            let secured = secure(trust, name, target, socket, b"h2").await?;
            grpc_on(secured, target, service).await?
        }
    };
    let whole = format_args!("gRPC check {}:{}/{service}", target.host, target.port);
    Ok(match status {
        SERVING => Found { status: Status::Passing, output: format!("{whole}: SERVING") },
        other => Found::critical(format_args!("{whole}: status {other}, not SERVING")),
    })
}

async fn grpc_on(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    target: &Target,
    service: &str,
) -> Result<i32, ProbeError> {
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    let _driver = Driver(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let message = HealthRequest { service: service.to_owned() }.encode_to_vec();
    let mut frame = BytesMut::with_capacity(message.len() + FRAME_HEAD);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(&message);
    let authority = match target.host.contains(':') {
        true => format!("[{}]:{}", target.host, target.port),
        false => format!("{}:{}", target.host, target.port),
    };
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(frame.freeze()))?;
    let response = send.send_request(request).await?;
    let refused = |status: &HeaderValue| {
        ProbeError::Grpc(format!("grpc-status {}", String::from_utf8_lossy(status.as_bytes())))
    };
    if let Some(status) = response.headers().get("grpc-status")
        && status != "0"
    {
        return Err(refused(status));
    }
    let body = Limited::new(response.into_body(), OUTPUT_OCTETS_MAX)
        .collect()
        .await
        .map_err(|why| ProbeError::Grpc(why.to_string()))?;
    if let Some(status) = body.trailers().and_then(|trailers| trailers.get("grpc-status"))
        && status != "0"
    {
        return Err(refused(status));
    }
    let bytes = body.to_bytes();
    let answer = bytes.get(FRAME_HEAD..).unwrap_or_default();
    let answer = HealthReply::decode(answer).map_err(|why| ProbeError::Grpc(why.to_string()))?;
    Ok(answer.status)
}

#[derive(Clone, PartialEq, Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthReply {
    #[prost(int32, tag = "1")]
    status: i32,
}

async fn connect(target: &Target) -> Result<TcpStream, ProbeError> {
    let address = target::resolve(target).await?;
    TcpStream::connect(address).await.map_err(|source| ProbeError::Connect {
        host: target.host.clone(),
        port: target.port,
        source,
    })
}

async fn secure(
    trust: Trust,
    name: &str,
    target: &Target,
    socket: TcpStream,
    protocol: &[u8],
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ProbeError> {
    let failed =
        |source| ProbeError::Connect { host: target.host.clone(), port: target.port, source };
    let config =
        super::tls::client(trust, protocol).map_err(|why| failed(io::Error::other(why)))?;
    let name = ServerName::try_from(name.to_owned())
        .map_err(|why| failed(io::Error::new(io::ErrorKind::InvalidInput, why)))?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.map_err(failed)
}

/// The first octets of a body, as text.
async fn printed(mut body: hyper::body::Incoming) -> String {
    let mut octets = Vec::new();
    while octets.len() < OUTPUT_OCTETS_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        if let Some(data) = frame.data_ref() {
            let room = OUTPUT_OCTETS_MAX - octets.len();
            octets.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    String::from_utf8_lossy(&octets).into_owned()
}

/// Ends the task that drives a connection with the run that needed it.
struct Driver(tokio::task::JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

const SERVING: i32 = 1;
const FRAME_HEAD: usize = 5;
const OUTPUT_OCTETS_MAX: usize = 4096;
