//! The client that the command line uses: one request a connection, over TCP, TLS or a Unix socket.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use hawser_core::clock::Index;

use crate::tls;

/// Where an agent's or server's HTTP API listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `host:port`
    Tcp(String),
    /// `host:port`, with TLS.
    Tls(String),
    /// A socket's path.
    Unix(PathBuf),
}

impl Address {
    /// The same, with TLS where it is a host's and TLS can be spoken.
    #[must_use]
    pub fn with_tls(self) -> Self {
        match self {
            Self::Tcp(authority) => Self::Tls(authority),
            other => other,
        }
    }
}

/// A text that is no address of an HTTP API.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidAddress {
    /// Neither a host and port nor a socket.
    #[error(
        "{0:?} is no address: write 127.0.0.1:8500, http://127.0.0.1:8500, \
             https://api.example:8501 or unix:///a/path"
    )]
    Malformed(String),
}

impl FromStr for Address {
    type Err = InvalidAddress;

    /// Takes what `CONSUL_HTTP_ADDR` takes.
    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let malformed = || InvalidAddress::Malformed(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.is_empty() { Err(malformed()) } else { Ok(Self::Unix(path.into())) };
        }
        let (bare, is_tls) = match text.strip_prefix("https://") {
            Some(bare) => (bare, true),
            None => (text.strip_prefix("http://").unwrap_or(text), false),
        };
        let authority = bare.trim_end_matches('/');
        let authority: http::uri::Authority = authority.parse().map_err(|_| malformed())?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(malformed());
        }
        let port = authority.port_u16().unwrap_or(if is_tls { TLS_PORT } else { PORT });
        let authority = format!("{}:{port}", authority.host());
        Ok(if is_tls { Self::Tls(authority) } else { Self::Tcp(authority) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(authority) => write!(f, "http://{authority}"),
            Self::Tls(authority) => write!(f, "https://{authority}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot reach {address}: {source}: is the agent running? Set -http-addr otherwise")]
    Connect {
        /// Where.
        address: Address,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to {address} broke: {source}")]
    Broken {
        /// Where.
        address: Address,
        /// How.
        #[source]
        source: hyper::Error,
    },
    /// The answer did not come in time.
    #[error("{address} did not answer within {}", hawser_core::duration::format(*.after))]
    TimedOut {
        /// Where.
        address: Address,
        /// How long it had.
        after: Duration,
    },
    /// The answer is longer than this client takes.
    #[error("the answer of {address} is longer than {ANSWER_OCTETS_MAX} bytes, or broke off")]
    TooLong {
        /// Where.
        address: Address,
    },
    /// The answer is a refusal. Worded as Go's client words it, which scripts look for.
    #[error("Unexpected response code: {} ({body})", .status.as_u16())]
    Refused {
        /// Its status.
        status: StatusCode,
        /// What it says.
        body: String,
    },
    /// The answer is not what this endpoint answers.
    #[error("{address} answered something else than expected: {source}")]
    Unreadable {
        /// Where.
        address: Address,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The request cannot be written.
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
}

/// A good answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// `X-Consul-Index`, which the next blocking read waits beyond.
    pub fn index(&self) -> Option<Index> {
        let text = self.headers.get("x-consul-index")?.to_str().ok()?;
        text.parse().ok().map(Index)
    }
}

/// A client of one HTTP API.
#[derive(Clone)]
pub struct Client {
    address: Address,
    token: Option<HeaderValue>,
    timeout: Duration,
    tls: Option<Arc<tls::Tls>>,
}

impl Client {
    /// A client of the API at `address`.
    pub const fn new(address: Address) -> Self {
        Self { address, token: None, timeout: TIMEOUT, tls: None }
    }

    /// Speaks TLS as `tls` says, to an address that asks for it.
    #[must_use]
    pub fn with_tls(mut self, tls: tls::Tls) -> Self {
        self.tls = Some(Arc::new(tls));
        self
    }

    /// Shows `token` with every request.
    #[must_use]
    pub fn with_token(mut self, mut token: HeaderValue) -> Self {
        token.set_sensitive(true);
        self.token = Some(token);
        self
    }

    /// Waits at most this long for an answer: more than a blocking read's own wait.
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whose client it is.
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Sends one request. `path` begins with `/v1/`, its parts encoded by [`segment`].
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] for any status but 2xx.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Result<Answer, ClientError> {
        let answer = self.send_any(method, path, query, body).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let body = String::from_utf8_lossy(&answer.body).trim().to_owned();
        Err(ClientError::Refused { status: answer.status, body })
    }

    /// Sends one request and takes an answer of any status.
    ///
    /// # Errors
    /// [`ClientError`], but never [`ClientError::Refused`].
    pub async fn send_any(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Result<Answer, ClientError> {
        let address = || self.address.clone();
        let exchange = async {
            let connect = |source| ClientError::Connect { address: address(), source };
            match &self.address {
                Address::Tcp(authority) => {
                    let stream = TcpStream::connect(authority).await.map_err(connect)?;
                    let request = self.request(method, authority, path, query, body)?;
                    self.exchange(stream, request).await
                }
                Address::Tls(authority) => {
                    let stream = self.secure(authority).await.map_err(connect)?;
                    let request = self.request(method, authority, path, query, body)?;
                    self.exchange(stream, request).await
                }
                Address::Unix(socket) => {
                    let stream = UnixStream::connect(socket).await.map_err(connect)?;
                    let request = self.request(method, "localhost", path, query, body)?;
                    self.exchange(stream, request).await
                }
            }
        };
        match timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::TimedOut { address: address(), after: self.timeout }),
        }
    }

    async fn secure(&self, authority: &str) -> io::Result<TlsStream<TcpStream>> {
        match &self.tls {
            Some(tls) => tls.connect(authority).await,
            None => tls::Tls::new(&tls::Settings::default())?.connect(authority).await,
        }
    }

    /// Reads a reply that goes on: `each` takes it piece by piece, until it ends or `each` breaks.
    ///
    /// Only the head must come within the client's timeout.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] for any status but 2xx.
    pub async fn follow(
        &self,
        path: &str,
        query: &[(&str, &str)],
        each: impl FnMut(&Bytes) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let connect = |source| ClientError::Connect { address: self.address.clone(), source };
        match &self.address {
            Address::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await.map_err(connect)?;
                let request = self.request(Method::GET, authority, path, query, None)?;
                self.follow_on(stream, request, each).await
            }
            Address::Tls(authority) => {
                let stream = self.secure(authority).await.map_err(connect)?;
                let request = self.request(Method::GET, authority, path, query, None)?;
                self.follow_on(stream, request, each).await
            }
            Address::Unix(socket) => {
                let stream = UnixStream::connect(socket).await.map_err(connect)?;
                let request = self.request(Method::GET, "localhost", path, query, None)?;
                self.follow_on(stream, request, each).await
            }
        }
    }

    async fn follow_on<S>(
        &self,
        stream: S,
        request: Request<Full<Bytes>>,
        mut each: impl FnMut(&Bytes) -> ControlFlow<()>,
    ) -> Result<(), ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let broken = |source| ClientError::Broken { address: self.address.clone(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let followed = async {
            let head = timeout(self.timeout, sender.send_request(request)).await;
            let late =
                |_| ClientError::TimedOut { address: self.address.clone(), after: self.timeout };
            let (head, mut body) = head.map_err(late)?.map_err(broken)?.into_parts();
            if !head.status.is_success() {
                let body = Limited::new(body, ANSWER_OCTETS_MAX).collect().await;
                let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                let body = String::from_utf8_lossy(&body).trim().to_owned();
                return Err(ClientError::Refused { status: head.status, body });
            }
            while let Some(frame) = body.frame().await {
                if let Some(piece) = frame.map_err(broken)?.data_ref()
                    && each(piece).is_break()
                {
                    break;
                }
            }
            Ok(())
        };
        tokio::pin!(followed, connection);
        tokio::select! {
            biased;
            followed = &mut followed => followed,
            ended = &mut connection => match ended {
                Ok(()) => followed.await,
                Err(source) => Err(broken(source)),
            },
        }
    }

    /// Reads JSON, with the index to wait beyond.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<(T, Option<Index>), ClientError> {
        let answer = self.send(Method::GET, path, query, None).await?;
        Ok((self.decode(&answer)?, answer.index()))
    }

    /// Writes JSON with PUT and reads the answer as JSON; an empty answer reads as null.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn put<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        body: &B,
    ) -> Result<T, ClientError> {
        self.write(Method::PUT, path, query, body).await
    }

    /// Writes JSON with POST and reads the answer as JSON; an empty answer reads as null.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        body: &B,
    ) -> Result<T, ClientError> {
        self.write(Method::POST, path, query, body).await
    }

    /// Deletes, and reads the answer as JSON; an empty answer reads as null.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, ClientError> {
        let answer = self.send(Method::DELETE, path, query, None).await?;
        self.decode(&answer)
    }

    async fn write<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: &B,
    ) -> Result<T, ClientError> {
        let unreadable = |source| ClientError::Unreadable { address: self.address.clone(), source };
        let body = serde_json::to_vec(body).map_err(unreadable)?;
        let answer = self.send(method, path, query, Some(body.into())).await?;
        self.decode(&answer)
    }

    fn decode<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, ClientError> {
        let body: &[u8] = if answer.body.is_empty() { b"null" } else { &answer.body };
        serde_json::from_slice(body)
            .map_err(|source| ClientError::Unreadable { address: self.address.clone(), source })
    }

    fn request(
        &self,
        method: Method,
        host: &str,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut target = path.to_owned();
        for (number, (key, value)) in query.iter().enumerate() {
            target.push(if number == 0 { '?' } else { '&' });
            target.push_str(key);
            if !value.is_empty() {
                target.push('=');
                target.push_str(&segment(value));
            }
        }
        let mut request = Request::builder().method(method).uri(target).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        Ok(request.body(Full::new(body.unwrap_or_default()))?)
    }

    async fn exchange<S>(
        &self,
        stream: S,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let broken = |source| ClientError::Broken { address: self.address.clone(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_OCTETS_MAX).collect().await;
            let body = body.map_err(|source| match source.downcast::<hyper::Error>() {
                Ok(source) => broken(*source),
                Err(source) => {
                    debug_assert!(source.is::<LengthLimitError>());
                    ClientError::TooLong { address: self.address.clone() }
                }
            })?;
            Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
        };
        // The connection moves bytes only while it is polled; the answer is what is waited for.
        tokio::pin!(answer, connection);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = &mut connection => match ended {
                Ok(()) => answer.await,
                Err(source) => Err(broken(source)),
            },
        }
    }
}

/// Encodes one part of a path, or one value of a query.
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// RFC 3986's unreserved characters stand as they are.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const TLS_PORT: u16 = 8501;
const PORT: u16 = 8500;
/// Longer than any read that does not block takes.
const TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_OCTETS_MAX: usize = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn addresses_are_read_as_consuls_clients_write_them() {
        let tcp = |text: &str| Ok(Address::Tcp(text.to_owned()));
        let cases = [
            ("127.0.0.1:8501", tcp("127.0.0.1:8501")),
            ("http://127.0.0.1:8500/", tcp("127.0.0.1:8500")),
            ("localhost", tcp("localhost:8500")),
            ("http://[::1]:8500", tcp("[::1]:8500")),
            ("unix:///run/hawser.sock", Ok(Address::Unix("/run/hawser.sock".into()))),
            ("https://a:8443", Ok(Address::Tls("a:8443".to_owned()))),
            ("https://a", Ok(Address::Tls("a:8501".to_owned()))),
            ("unix://", Err(InvalidAddress::Malformed("unix://".to_owned()))),
            ("a b", Err(InvalidAddress::Malformed("a b".to_owned()))),
            ("u@a:1", Err(InvalidAddress::Malformed("u@a:1".to_owned()))),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Address>(), expected, "{text}");
        }
    }

    /// Answers one connection with `reply`; gives back what was asked.
    async fn once(reply: &'static str) -> (Client, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut asked = Vec::new();
            let mut chunk = [0; 1024];
            while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
                let read = stream.read(&mut chunk).await.expect("a request");
                asked.extend_from_slice(&chunk[..read]);
            }
            stream.write_all(reply.as_bytes()).await.expect("a reader");
            String::from_utf8(asked).expect("text")
        });
        (Client::new(address.parse().expect("an address")), asked)
    }

    #[tokio::test]
    async fn an_answer_comes_with_its_index() {
        let reply = "HTTP/1.1 200 OK\r\nX-Consul-Index: 42\r\nContent-Length: 7\r\n\r\n[\"dc1\"]";
        let (client, asked) = once(reply).await;
        let client = client.with_token(HeaderValue::from_static("t"));
        let query = [("stale", ""), ("tag", "a b")];
        let path = format!("/v1/catalog/service/{}", segment("a/b"));
        let (list, index): (Vec<String>, _) = client.get(&path, &query).await.expect("good");
        assert_eq!((list, index), (vec!["dc1".to_owned()], Some(Index(42))));
        let asked = asked.await.expect("served");
        assert!(asked.starts_with("GET /v1/catalog/service/a%2Fb?stale&tag=a%20b "), "{asked}");
        assert!(asked.contains("x-consul-token: t"), "{asked}");
    }

    #[tokio::test]
    async fn a_refusal_shows_status_and_body() {
        let reply = "HTTP/1.1 500 Oops\r\nContent-Length: 17\r\n\r\nNo cluster leader";
        let (client, _asked) = once(reply).await;
        let refused = client.get::<Vec<String>>("/v1/catalog/nodes", &[]).await.expect_err("500");
        assert_eq!(refused.to_string(), "Unexpected response code: 500 (No cluster leader)");
    }

    #[tokio::test]
    async fn nobody_there_says_what_to_do() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let client = Client::new(address.parse().expect("an address"));
        let refused = client.get::<()>("/v1/status/leader", &[]).await.expect_err("nobody");
        assert!(refused.to_string().contains("is the agent running?"), "{refused}");
    }

    #[tokio::test]
    async fn silence_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let client = Client::new(address.parse().expect("an address"));
        let client = client.with_timeout(Duration::from_millis(20));
        let refused = client.get::<()>("/v1/status/leader", &[]).await.expect_err("silence");
        assert!(matches!(refused, ClientError::TimedOut { .. }), "{refused}");
    }
}
