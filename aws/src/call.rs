//! One HTTP request on a connection of its own, bounded in time and size; no redirect is followed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::endpoint::Endpoint;

/// What was answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

/// Why nothing was answered.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The host has no address.
    #[error("{0} does not resolve")]
    Resolve(String),
    /// No connection, or it broke.
    #[error("{host}: {source}")]
    Connect {
        /// Who was asked.
        host: String,
        /// Why.
        source: std::io::Error,
    },
    /// The answer is no HTTP, or too long.
    #[error("{host}: {why}")]
    Answer {
        /// Who was asked.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// It took too long.
    #[error("{host} did not answer within {} s", within.as_secs())]
    Timeout {
        /// Who was asked.
        host: String,
        /// The bound.
        within: Duration,
    },
}

/// Sends `request` to `endpoint`, whose `Host` header it already has.
pub(crate) async fn call(
    endpoint: &Endpoint,
    request: http::Request<Bytes>,
) -> Result<Answer, CallError> {
    call_within(endpoint, request, CALL).await
}

/// As [`call`], answered `within`.
pub(crate) async fn call_within(
    endpoint: &Endpoint,
    request: http::Request<Bytes>,
    within: Duration,
) -> Result<Answer, CallError> {
    call_trusting(endpoint, request, within, &Trusted::Web).await
}

/// Who may vouch for a host that is called.
pub(crate) enum Trusted {
    /// The public web's authorities.
    Web,
    /// These, and no other.
    Only(RootCertStore),
}

impl Trusted {
    /// The authorities in `pem`; none where there are none in it, or what is no certificate.
    pub(crate) fn only(pem: &str) -> Option<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.ok()?).ok()?;
        }
        (!roots.is_empty()).then_some(Self::Only(roots))
    }

    fn roots(&self) -> RootCertStore {
        match self {
            Self::Web => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
            Self::Only(roots) => roots.clone(),
        }
    }
}

/// As [`call_within`], of a host that one of `trusted` vouches for.
pub(crate) async fn call_trusting(
    endpoint: &Endpoint,
    request: http::Request<Bytes>,
    within: Duration,
    trusted: &Trusted,
) -> Result<Answer, CallError> {
    let host = endpoint.authority();
    timeout(within, dial(endpoint, request, trusted))
        .await
        .unwrap_or(Err(CallError::Timeout { host, within }))
}

async fn dial(
    endpoint: &Endpoint,
    request: http::Request<Bytes>,
    trusted: &Trusted,
) -> Result<Answer, CallError> {
    let failed = |source| CallError::Connect { host: endpoint.authority(), source };
    let mut last = CallError::Resolve(endpoint.host().to_owned());
    for address in resolve(endpoint).await? {
        let socket = match timeout(CONNECT, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(source)) => {
                last = failed(source);
                continue;
            }
            Err(_) => {
                last = failed(std::io::ErrorKind::TimedOut.into());
                continue;
            }
        };
        if !endpoint.is_secure() {
            return exchange(endpoint, socket, request).await;
        }
        let name = ServerName::try_from(endpoint.host().to_owned())
            .map_err(|_| CallError::Resolve(endpoint.host().to_owned()))?;
        let config = tls(trusted).map_err(|why| failed(std::io::Error::other(why)))?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let secured = connector.connect(name, socket).await.map_err(failed)?;
        return exchange(endpoint, secured, request).await;
    }
    Err(last)
}

async fn exchange(
    endpoint: &Endpoint,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: http::Request<Bytes>,
) -> Result<Answer, CallError> {
    let wrong = |why: String| CallError::Answer { host: endpoint.authority(), why };
    let (mut send, connection) = http1::Builder::new()
        .max_buf_size(HEAD_OCTETS_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|why| wrong(why.to_string()))?;
    let asked = async {
        let answer = send
            .send_request(request.map(Full::new))
            .await
            .map_err(|why| wrong(why.to_string()))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), BODY_OCTETS_MAX).collect().await;
        let body = body.map_err(|why| wrong(why.to_string()))?.to_bytes();
        Ok(Answer { status, body })
    };
    let driven = async {
        // How the connection ends is told by what was asked over it.
        drop(connection.await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answered = asked => answered,
        () = driven => Err(wrong("the connection ended".to_owned())),
    }
}

async fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, CallError> {
    let at = |ip: IpAddr| SocketAddr::new(ip, endpoint.port());
    if let Some(ip) = endpoint.ip() {
        return Ok(vec![at(ip)]);
    }
    // Asked in the clear, so it must mean this host, whatever a resolver says.
    if endpoint.host() == "localhost" {
        return Ok(vec![at(Ipv4Addr::LOCALHOST.into()), at(Ipv6Addr::LOCALHOST.into())]);
    }
    let unknown = || CallError::Resolve(endpoint.host().to_owned());
    // Made anew each time: the system's configuration may have changed.
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|_| unknown())?;
    let found = resolver.lookup_ip(endpoint.host()).await.map_err(|_| unknown())?;
    Ok(found.iter().take(ADDRESSES_MAX).map(at).collect())
}

/// TLS with the public web's roots, which are built in: an image may hold no other file; or others.
fn tls(trusted: &Trusted) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(builder.with_root_certificates(trusted.roots()).with_no_client_auth())
}

const CALL: Duration = Duration::from_secs(8);
const CONNECT: Duration = Duration::from_secs(3);
const ADDRESSES_MAX: usize = 4;
const HEAD_OCTETS_MAX: usize = 16 * 1024;
/// A page of a hundred instances is about 600 KiB.
const BODY_OCTETS_MAX: usize = 2 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    #[tokio::test]
    async fn an_answer_is_bounded_and_a_redirect_is_only_an_answer() {
        let cases = [
            // status, octets, expected
            (200, 5, Ok((200, 5))),
            (302, 0, Ok((302, 0))),
            (200, BODY_OCTETS_MAX + 1, Err("length limit exceeded")),
        ];
        for (status, octets, expected) in cases {
            let fake = Fake::answering(move |_| (status, "x".repeat(octets))).await;
            let request = http::Request::builder()
                .uri("/")
                .header("host", fake.endpoint.authority())
                .body(Bytes::new())
                .expect("a request");
            match (call(&fake.endpoint, request).await, expected) {
                (Ok(answer), Ok(told)) => assert_eq!((answer.status, answer.body.len()), told),
                (Err(why), Err(told)) => assert!(why.to_string().contains(told), "{why}"),
                (answered, expected) => panic!("{:?} not {expected:?}", answered.map(|a| a.status)),
            }
        }
    }

    #[tokio::test]
    async fn nobody_there_is_said_with_the_host() {
        let endpoint: Endpoint = "http://127.0.0.1:1".parse().expect("an endpoint");
        let why = call(&endpoint, http::Request::new(Bytes::new())).await.err().expect("refused");
        assert!(why.to_string().contains("127.0.0.1:1"), "{why}");
    }
}
