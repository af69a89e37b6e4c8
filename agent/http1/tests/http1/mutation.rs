//! Messages with faults drawn at random: what this crate takes, hyper takes, and as the same.
//!
//! The other way round need not hold: this crate is the stricter one.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hawser_http1::Limits;
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::common::{Seen, beside, seen};
use crate::differential::Draw;

/// What parsers disagree about.
const NASTY: &[&str] = &[
    "\r",
    "\n",
    "\r\n",
    "\r\n\r\n",
    "\0",
    " ",
    "\t",
    "\u{b}",
    "\u{7f}",
    ":",
    ";",
    ",",
    "#",
    "?",
    "\\",
    "\"",
    "\u{e9}",
    "0",
    "00",
    "+",
    "-",
    "0x",
    "_",
    "0\r\n\r\n",
    "chunked",
    "identity",
    "\r\nContent-Length: 3",
    "\r\ncontent-length: 0",
    "\r\nTransfer-Encoding: chunked",
    "\r\ntransfer-encoding: x",
    "\r\nHost: b",
    "\r\nExpect: 100-continue",
    "\r\n folded",
    "\r\nConnection: close",
    "\r\nTE: trailers",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/1.0",
    "HTTP/2.0",
    "ffffffffffffffff",
    "10000000000000000",
];

impl Draw {
    /// One to three faults somewhere in `text`.
    fn mutate(&mut self, text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len() + 1);
            match self.below(4) {
                0 => drop(bytes.splice(at..at, self.of(NASTY).bytes())),
                1 => bytes.truncate(at.max(1)),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                _ if at < bytes.len() => bytes[at] = b"\r\n \t:;,x0\0"[self.below(10)],
                _ => {}
            }
        }
        bytes
    }
}

/// What hyper's server makes of `bytes`: all requests that are whole.
async fn by_hyper(bytes: &[u8]) -> Vec<Seen> {
    let (mut near, far) = duplex(1 << 16);
    let kept: Rc<RefCell<Vec<Seen>>> = Rc::default();
    let keep = kept.clone();
    let service = service_fn(move |request| {
        let keep = keep.clone();
        async move {
            let seen = seen(request).await?;
            keep.borrow_mut().push(seen);
            Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::new())))
        }
    });
    near.write_all(bytes).await.expect("room");
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service);
    let mut answers = Vec::new();
    let both = async { tokio::join!(serving, near.read_to_end(&mut answers)) };
    let _ = tokio::time::timeout(Duration::from_secs(5), both).await;
    kept.take()
}

async fn by_own(parts: &[&[u8]]) -> Vec<Seen> {
    let test = async |mut stream: DuplexStream, seen: Rc<RefCell<Vec<Seen>>>| {
        for part in parts {
            // It may be refused before all of it is sent.
            let _ = stream.write_all(part).await;
            tokio::task::yield_now().await;
        }
        let mut answers = Vec::new();
        let reading = stream.read_to_end(&mut answers);
        let _ = tokio::time::timeout(Duration::from_secs(5), reading).await;
        seen.take()
    };
    beside(Limits::default(), test).await.0
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_that_hyper_reads_otherwise() {
    let mut draw = Draw(3);
    let mut taken = 0;
    for round in 0..6_000 {
        let text = format!("{}{}", draw.request(), draw.request());
        let bytes = draw.mutate(&text);
        let own = by_own(&[&bytes]).await;
        taken += own.len();
        let (one, other) = bytes.split_at(draw.below(bytes.len() + 1));
        let shown = String::from_utf8_lossy(&bytes);
        assert_eq!(by_own(&[one, other]).await, own, "round {round}, cut: {shown:?}");
        let hyper = by_hyper(&bytes).await;
        assert!(hyper.starts_with(&own), "round {round}: {shown:?}\n{own:#?}\n{hyper:#?}");
    }
    assert!(taken > 3_000, "{taken} of 12,000: the test would show nothing");
}
