//! A server of this crate on one end of a pipe, and what reaches its service.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hawser_http1::server::{self, Settings};
use hawser_http1::{Body, Error, Limits};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_util::sync::CancellationToken;

/// What a service is given, in an order that does not depend on who read it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, Vec<u8>)>,
}

pub(crate) fn fields(map: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let pair = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.to_string(), value.as_bytes().to_vec())
    };
    let mut fields: Vec<_> = map.iter().map(pair).collect();
    // Stable: repeated fields keep their order.
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

/// Reads a request to its end.
pub(crate) async fn seen<B>(request: Request<B>) -> Result<Seen, B::Error>
where
    B: http_body::Body<Data = Bytes>,
{
    let (parts, body) = request.into_parts();
    let body = body.collect().await?;
    Ok(Seen {
        line: format!("{} {} {:?}", parts.method, parts.uri, parts.version),
        fields: fields(&parts.headers),
        trailers: body.trailers().map(fields).unwrap_or_default(),
        body: body.to_bytes().to_vec(),
    })
}

pub(crate) fn settings(limits: Limits) -> Settings {
    Settings { limits: Rc::new(limits), refusal: "x-refused: yes\r\n", ..Settings::default() }
}

/// Runs `test` beside a server that answers `ok` and keeps what it saw.
pub(crate) async fn beside<T>(
    limits: Limits,
    test: impl AsyncFnOnce(DuplexStream, Rc<RefCell<Vec<Seen>>>) -> T,
) -> (T, Result<(), Error>) {
    let local = tokio::task::LocalSet::new();
    let (near, far) = duplex(1 << 20);
    let all = Rc::new(RefCell::new(Vec::new()));
    let kept = all.clone();
    let service = move |request: Request<Body>| {
        let kept = kept.clone();
        async move {
            let answer = match seen(request).await {
                Ok(seen) => {
                    kept.borrow_mut().push(seen);
                    Response::new(Full::new(Bytes::from_static(b"ok")))
                }
                Err(_) => Response::builder().status(400).body(Full::default()).expect("good"),
            };
            answer.map(|body| body.map_err(|never: Infallible| match never {}))
        }
    };
    let settings = settings(limits);
    let drain = CancellationToken::new();
    local
        .run_until(async move {
            let serving =
                server::serve(far, BytesMut::new(), &settings, service, &drain, drain.cancelled());
            tokio::join!(test(near, all), serving)
        })
        .await
}

/// Sends `bytes` as they are, and reads until the answer ends or nothing more comes.
pub(crate) async fn ask(mut stream: DuplexStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.expect("room");
    let mut answer = BytesMut::new();
    let reading = async { while stream.read_buf(&mut answer).await.expect("open") > 0 {} };
    // A connection that stays open is not at fault.
    let _ = tokio::time::timeout(Duration::from_secs(10), reading).await;
    String::from_utf8_lossy(&answer).into_owned()
}
