//! The task metadata endpoint, version 4: the one place that it may be at, and a bounded question.
//!
//! Source: AWS, "Amazon ECS task metadata endpoint version 4".

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::task::{Container, InvalidTask, Task};

/// Where the metadata of this task is. Holding one is the proof that it is nowhere else than ECS
/// puts it, so that a variable cannot send the agent to ask somebody else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    address: SocketAddr,
    path: String,
}

/// An address that no metadata endpoint has.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is no task metadata endpoint: ECS says http://169.254.170.2/v4/ and an id")]
pub struct InvalidEndpoint(String);

/// Why there is no metadata.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// Nobody answers there.
    #[error("{address} cannot be reached: {source}")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not speak HTTP, or broke off.
    #[error("the answer broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The question cannot be written.
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
    /// It took too long.
    #[error("no answer within {ANSWER:?}")]
    Slow,
    /// It is too much.
    #[error("the answer is longer than {BODY_OCTETS_MAX} bytes, or broke off")]
    TooLong,
    /// It is a refusal.
    #[error("the endpoint answered {0}")]
    Status(StatusCode),
    /// It says what no task says.
    #[error(transparent)]
    Invalid(#[from] InvalidTask),
}

impl Endpoint {
    /// Takes a loopback address besides, where a test plays the endpoint.
    ///
    /// # Errors
    /// [`InvalidEndpoint`]
    pub fn on_loopback(text: &str) -> Result<Self, InvalidEndpoint> {
        Self::parse(text, |ip| ip.is_loopback() || ip == LINK_LOCAL)
    }

    fn parse(text: &str, is_allowed: impl Fn(IpAddr) -> bool) -> Result<Self, InvalidEndpoint> {
        let invalid = || InvalidEndpoint(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| invalid())?;
        let authority = uri.authority().ok_or_else(invalid)?;
        let is_plain = uri.scheme_str() == Some("http")
            && uri.query().is_none()
            && !authority.as_str().contains('@');
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let ip: IpAddr = host.parse().map_err(|_| invalid())?;
        if !is_plain || !is_allowed(ip) {
            return Err(invalid());
        }
        let address = SocketAddr::new(ip, authority.port_u16().unwrap_or(80));
        Ok(Self { address, path: uri.path().trim_end_matches('/').to_owned() })
    }

    /// Asks for the whole task.
    ///
    /// # Errors
    /// [`MetadataError`]
    pub async fn task(&self) -> Result<Task, MetadataError> {
        Ok(Task::parse(&self.get("/task").await?)?)
    }

    /// Asks for the container that asks.
    ///
    /// # Errors
    /// [`MetadataError`]
    pub async fn own(&self) -> Result<Container, MetadataError> {
        Ok(Container::parse(&self.get("").await?)?)
    }

    async fn get(&self, below: &str) -> Result<Bytes, MetadataError> {
        timeout(ANSWER, self.ask(below)).await.map_err(|_| MetadataError::Slow)?
    }

    /// One question on a connection of its own; no redirect is followed.
    async fn ask(&self, below: &str) -> Result<Bytes, MetadataError> {
        let address = self.address;
        let socket = TcpStream::connect(address)
            .await
            .map_err(|source| MetadataError::Unreachable { address, source })?;
        let (mut send, connection) = http1::handshake(TokioIo::new(socket)).await?;
        let path = format!("{}{below}", self.path);
        let request = Request::get(if path.is_empty() { "/" } else { &path })
            .header(header::HOST, address.to_string())
            .header(header::ACCEPT, "application/json")
            .body(Empty::<Bytes>::new())?;
        let asked = async {
            let response = send.send_request(request).await?;
            if response.status() != StatusCode::OK {
                return Err(MetadataError::Status(response.status()));
            }
            match Limited::new(response.into_body(), BODY_OCTETS_MAX).collect().await {
                Ok(body) => Ok(body.to_bytes()),
                Err(why) if why.is::<LengthLimitError>() => Err(MetadataError::TooLong),
                Err(why) => match why.downcast::<hyper::Error>() {
                    Ok(broken) => Err(MetadataError::Broken(*broken)),
                    Err(_) => Err(MetadataError::TooLong),
                },
            }
        };
        // The connection is driven beside the question and ends with it.
        tokio::pin!(connection, asked);
        tokio::select! {
            biased;
            answered = &mut asked => answered,
            ended = &mut connection => {
                ended?;
                asked.await
            }
        }
    }
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    /// Takes what ECS sets in `ECS_CONTAINER_METADATA_URI_V4`.
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        Self::parse(text, |ip| ip == LINK_LOCAL)
    }
}

/// Where ECS answers on every host and every Fargate task.
const LINK_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2));
const ANSWER: Duration = Duration::from_secs(1);
const BODY_OCTETS_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_endpoint_is_where_ecs_puts_it() {
        let cases = [
            // text, by itself, with loopback allowed
            ("http://169.254.170.2/v4/0123-abc", true, true),
            ("http://169.254.170.2:80/v4/0123-abc", true, true),
            ("http://127.0.0.1:7000/v4/x", false, true),
            ("http://[::1]:7000/v4/x", false, true),
            ("http://169.254.169.254/latest", false, false),
            ("http://10.0.0.1/v4/x", false, false),
            ("http://example.com/v4/x", false, false),
            ("http://localhost/v4/x", false, false),
            ("https://169.254.170.2/v4/x", false, false),
            ("http://169.254.170.2@10.0.0.1/v4/x", false, false),
            ("http://u@169.254.170.2/v4/x", false, false),
            ("http://169.254.170.2/v4/x?to=y", false, false),
            ("169.254.170.2/v4/x", false, false),
            ("", false, false),
        ];
        for (text, alone, with_loopback) in cases {
            assert_eq!(text.parse::<Endpoint>().is_ok(), alone, "{text}");
            assert_eq!(Endpoint::on_loopback(text).is_ok(), with_loopback, "{text}");
        }
    }

    /// An endpoint that gives each connection the same answer, and then keeps it open.
    async fn answering(answer: String) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await;
                let _ = socket.write_all(answer.as_bytes()).await;
                open.push(socket);
            }
        });
        Endpoint::on_loopback(&format!("http://{address}/v4/x")).expect("an endpoint")
    }

    #[tokio::test]
    async fn what_is_no_metadata_is_told_apart() {
        let ok =
            |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let cases = [
            // answer, part of the error
            (ok("{}"), "TaskARN"),
            (ok("not json"), "no JSON"),
            (ok(&"x".repeat(BODY_OCTETS_MAX + 1)), "longer than"),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(), "404"),
            ("HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/\r\n\r\n".to_owned(), "302"),
            ("SSH-2.0-x\r\n\r\n".to_owned(), "broke"),
            (String::new(), "no answer within"),
        ];
        for (answer, part) in cases {
            let refused = answering(answer.clone()).await.task().await.expect_err("no metadata");
            assert!(refused.to_string().contains(part), "{refused}: {}", answer.len());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let nobody = Endpoint::on_loopback(&format!("http://{address}/v4/x")).expect("one");
        let refused = nobody.task().await.expect_err("nobody listens");
        assert!(refused.to_string().contains("cannot be reached"), "{refused}");
    }

    #[tokio::test]
    async fn a_container_knows_its_own_name() {
        let body = r#"{"Name":"hawser","Networks":[{"NetworkMode":"awsvpc","IPv4Addresses":["10.0.1.9"]}]}"#;
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let own = answering(answer).await.own().await.expect("a container");
        assert_eq!(own.name, "hawser");
        assert_eq!(own.address, Some(IpAddr::from([10, 0, 1, 9])));
    }
}
