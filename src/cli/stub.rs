//! An HTTP API for tests: gives the answers it was told, and remembers what it was asked.

use std::sync::{Arc, Mutex};

use hawser_api::client::{Address, Client};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

/// A stub that is listening.
pub(crate) struct Stub {
    address: Address,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    /// Answers the given statuses and bodies, one after the other, and 599 after that.
    pub(crate) async fn answering(replies: &[(u16, &str)]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        let address = address.parse().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stub = Self { address, asked: Arc::clone(&asked) };
        let replies: Vec<(u16, String)> =
            replies.iter().map(|(status, body)| (*status, (*body).to_owned())).collect();
        tokio::spawn(async move {
            let mut replies = replies.into_iter();
            while let Ok((stream, _)) = listener.accept().await {
                let reply = replies.next().unwrap_or((599, "asked too often".to_owned()));
                let service = hyper::service::service_fn(|request| {
                    answer(request, reply.clone(), Arc::clone(&asked))
                });
                // A client that goes away is the test's to notice.
                drop(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            }
        });
        stub
    }

    /// A client of this stub.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address.clone())
    }

    /// What it was asked, in order: method, target, and body where there is one.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.asked.lock().expect("no test panics holding it").clone()
    }
}

async fn answer(
    request: Request<Incoming>,
    (status, body): (u16, String),
    asked: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, sent) = request.into_parts();
    let sent = sent.collect().await?.to_bytes();
    let text = format!("{} {} {}", head.method, head.uri, String::from_utf8_lossy(&sent));
    asked.lock().expect("no test panics holding it").push(text.trim_end().to_owned());
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status.try_into().expect("tests give real statuses");
    Ok(response)
}

/// Parses a command line as `hawser NOUN` would and runs it against a stub.
macro_rules! asked {
    ($arguments:ty, $line:expr, $stub:expr) => {{
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: $arguments,
        }
        let text = String::from($line);
        let words = std::iter::once("hawser").chain(text.split_whitespace());
        let line = <Line as clap::Parser>::try_parse_from(words).expect("a good command line");
        run(line.arguments, &$stub.client()).await
    }};
}
pub(crate) use asked;
