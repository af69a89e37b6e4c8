//! One batch to the collector: OTLP over HTTP, on a connection of its own, within bounds.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::message::Exported;
use crate::resolve;

/// Where spans go, and which.
#[derive(Clone, Debug)]
pub struct Otlp {
    pub(super) collector: Arc<Collector>,
    /// How many in a million of the traces that begin here are sampled.
    pub(crate) sample_ppm: u32,
}

/// Who takes them.
pub(super) struct Collector {
    host: String,
    port: u16,
    path: PathAndQuery,
    authority: HeaderValue,
    /// None where it is asked in the clear.
    tls: Option<Arc<ClientConfig>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers hold keys of the collector.
        let Self { host, port, path, .. } = self;
        f.debug_struct("Collector")
            .field("host", host)
            .field("port", port)
            .field("path", path)
            .finish_non_exhaustive()
    }
}

/// Why spans cannot go there.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOtlp {
    /// The endpoint is none.
    #[error("endpoint: {0:?} is no collector; write http://host:4318 or https://host")]
    Endpoint(String),
    /// A header is none.
    #[error("headers: {0:?} is no header, or its value is none")]
    Header(String),
    /// The certificates are none.
    #[error("ca_file: it holds no PEM certificate that can be trusted")]
    Roots,
}

impl Otlp {
    /// A collector at `endpoint`, to which `/v1/traces` is added; `headers` go with each request.
    /// The collector must prove itself by one of the certificates in `roots`, PEM, or else by
    /// those of the public web.
    ///
    /// # Errors
    /// [`InvalidOtlp`], which names the key.
    pub fn new(
        endpoint: &str,
        sample_ppm: u32,
        headers: BTreeMap<String, String>,
        roots: Option<Vec<u8>>,
    ) -> Result<Self, InvalidOtlp> {
        let bad = || InvalidOtlp::Endpoint(endpoint.to_owned());
        let uri: Uri = endpoint.parse().map_err(|_| bad())?;
        let (is_secure, default_port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return Err(bad()),
        };
        let authority = uri.authority().filter(|it| !it.as_str().contains('@')).ok_or_else(bad)?;
        let base = uri.path().trim_end_matches('/');
        let base = base.strip_suffix(TRACES).unwrap_or(base);
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let headers = headers.into_iter().map(|(name, value)| {
            let bad = || InvalidOtlp::Header(name.clone());
            let parsed = HeaderName::try_from(&name).map_err(|_| bad())?;
            let mut value = HeaderValue::try_from(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            Ok((parsed, value))
        });
        let collector = Collector {
            host,
            port: authority.port_u16().unwrap_or(default_port),
            path: PathAndQuery::try_from(format!("{base}{TRACES}")).map_err(|_| bad())?,
            authority: HeaderValue::try_from(authority.as_str()).map_err(|_| bad())?,
            tls: if is_secure { Some(Arc::new(tls(roots)?)) } else { None },
            headers: headers.collect::<Result<_, _>>()?,
        };
        Ok(Self { collector: Arc::new(collector), sample_ppm })
    }
}

/// Why a batch did not arrive.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    /// It may arrive later.
    #[error("{0}")]
    Passing(String, Option<Duration>),
    /// It never will.
    #[error("the collector answers {0}")]
    Refused(StatusCode),
}

impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        Self::Passing(error.to_string(), None)
    }
}

impl From<hyper::Error> for SendError {
    fn from(error: hyper::Error) -> Self {
        Self::Passing(error.to_string(), None)
    }
}

/// Sends a batch; answers how many spans of it the collector did not take.
pub(super) async fn send(collector: &Collector, batch: Vec<u8>) -> Result<u64, SendError> {
    let late = |_| SendError::Passing("the collector does not answer in time".to_owned(), None);
    timeout(CALL, dial(collector, Bytes::from(batch))).await.map_err(late)?
}

async fn dial(collector: &Collector, batch: Bytes) -> Result<u64, SendError> {
    let mut last = SendError::Passing(format!("{} does not resolve", collector.host), None);
    for address in
        resolve::look_up(&collector.host, collector.port).await?.into_iter().take(ADDRESSES_MAX)
    {
        let socket = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(error)) => {
                last = error.into();
                continue;
            }
            Err(_) => {
                last = SendError::Passing(format!("{address} does not accept"), None);
                continue;
            }
        };
        let Some(tls) = &collector.tls else { return exchange(collector, socket, batch).await };
        let name = ServerName::try_from(collector.host.clone()).map_err(io::Error::other)?;
        let secured = TlsConnector::from(tls.clone()).connect(name, socket).await?;
        return exchange(collector, secured, batch).await;
    }
    Err(last)
}

async fn exchange(
    collector: &Collector,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    batch: Bytes,
) -> Result<u64, SendError> {
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(HEAD_BYTES_MAX).handshake(TokioIo::new(stream)).await?;
    let mut request = Request::post(Uri::from(collector.path.clone()))
        .header(header::HOST, &collector.authority)
        .header(header::CONTENT_TYPE, "application/x-protobuf");
    for (name, value) in &collector.headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(batch)).map_err(io::Error::other)?;
    let asked = async {
        let answer = sender.send_request(request).await?;
        let (status, wait) = (answer.status(), retry_after(answer.headers()));
        if status.is_success() {
            let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
            let body = body.map_err(io::Error::other)?.to_bytes();
            // What cannot be read says nothing of spans that were not taken.
            return Ok(Exported::decode(body).map_or(0, |exported| exported.rejected()));
        }
        Err(match status.as_u16() {
            // What OTLP says may be sent again.
            429 | 502 | 503 | 504 => {
                SendError::Passing(format!("the collector answers {status}"), wait)
            }
            _ => SendError::Refused(status),
        })
    };
    let driven = async {
        // How the connection ends is told by what was asked over it.
        drop(connection.await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answered = asked => answered,
        () = driven => Err(SendError::Passing("the connection ended".to_owned(), None)),
    }
}

fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

fn tls(roots: Option<Vec<u8>>) -> Result<ClientConfig, InvalidOtlp> {
    let mut trusted = RootCertStore::empty();
    match roots {
        None => trusted.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|_| InvalidOtlp::Roots)?;
                trusted.add(certificate).map_err(|_| InvalidOtlp::Roots)?;
            }
            if trusted.is_empty() {
                return Err(InvalidOtlp::Roots);
            }
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| InvalidOtlp::Roots)?;
    Ok(builder.with_root_certificates(trusted).with_no_client_auth())
}

const TRACES: &str = "/v1/traces";
const CALL: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(3);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
const ADDRESSES_MAX: usize = 4;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const BODY_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_base_to_which_the_path_is_added() {
        let cases = [
            // endpoint, host, port, path
            ("http://127.0.0.1:4318", Some(("127.0.0.1", 4318, "/v1/traces"))),
            ("http://collector/", Some(("collector", 80, "/v1/traces"))),
            ("https://[2001:db8::1]", Some(("2001:db8::1", 443, "/v1/traces"))),
            ("https://x.example/otlp", Some(("x.example", 443, "/otlp/v1/traces"))),
            ("https://x.example/v1/traces", Some(("x.example", 443, "/v1/traces"))),
            ("collector:4318", None),
            ("grpc://collector:4317", None),
            ("http://key@collector", None),
            ("", None),
        ];
        for (endpoint, expected) in cases {
            let made = Otlp::new(endpoint, 0, BTreeMap::new(), None).ok();
            let said = made.as_ref().map(|otlp| {
                (otlp.collector.host.as_str(), otlp.collector.port, otlp.collector.path.as_str())
            });
            assert_eq!(said, expected, "{endpoint}");
        }
    }

    #[test]
    fn what_may_be_a_key_is_not_shown() {
        let headers = BTreeMap::from([("x-key".to_owned(), "s3cr3t".to_owned())]);
        let otlp = Otlp::new("https://collector", 0, headers, None).expect("good");
        assert!(!format!("{otlp:?} {:?}", otlp.collector.headers).contains("s3cr3t"));
    }
}
