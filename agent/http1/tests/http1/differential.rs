//! Valid messages, cut at every byte, are read as hyper reads them whole.

use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;

use crate::common::{Seen, beside, fields, seen};
use bytes::Bytes;
use hawser_http1::{Limits, client};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

/// Numbers that are the same in every run.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    pub(crate) fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len())]
    }

    fn fields(&mut self) -> String {
        let names = ["x-a", "X-B", "Accept", "x-long-name-of-a-field", "Cookie", "x-a", "ETag"];
        let values = ["", "1", "a, b", "\"quoted; text\"", "  padded\t", "caf\u{e9}", "*/*;q=0.1"];
        let count = self.below(6);
        (0..count)
            .map(|_| {
                format!("{}:{}{}\r\n", self.of(&names), self.of(&["", " ", "\t"]), self.of(&values))
            })
            .collect()
    }

    /// A body, and the field that says where it ends.
    fn body(&mut self) -> (String, String) {
        let size = self.below(40);
        let text: String = (0..size).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
        match self.below(3) {
            0 => (String::new(), String::new()),
            1 => (format!("Content-Length: {size}\r\n"), text),
            _ => {
                let mut chunks = String::new();
                let mut rest = &text[..];
                while !rest.is_empty() {
                    let (chunk, after) = rest.split_at(1 + self.below(rest.len()));
                    let extension = self.of(&["", ";a", ";a=b", ";a=\"b c\""]);
                    chunks += &format!("{:X}{extension}\r\n{chunk}\r\n", chunk.len());
                    rest = after;
                }
                let trailers = self.of(&["", "", "x-sum: 1\r\n", "x-sum: 1\r\nx-other:\r\n"]);
                let chunks = format!("{chunks}{}\r\n{trailers}\r\n", self.of(&["0", "000"]));
                ("Transfer-Encoding: chunked\r\n".to_owned(), chunks)
            }
        }
    }

    pub(crate) fn request(&mut self) -> String {
        let method = self.of(&["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "M-SEARCH"]);
        let target =
            self.of(&["/", "/a/b?c=d&e", "//x", "/%7e/..;a", "http://a.example/b", "/a?b?c/d"]);
        let (framing, body) = self.body();
        let (one, other) = (self.fields(), self.fields());
        format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{one}{framing}{other}\r\n{body}")
    }

    fn response(&mut self) -> String {
        let status = self.of(&["200 OK", "404 Not Found", "503", "299 ", "201 Some thing else"]);
        let interim = self.of(&["", "", "", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"]);
        let (mut framing, body) = self.body();
        if framing.is_empty() {
            framing = "content-length: 0\r\n".to_owned();
        }
        let (one, other) = (self.fields(), self.fields());
        format!("{interim}HTTP/1.1 {status}\r\n{one}{framing}{other}\r\n{body}")
    }
}

/// What hyper's server makes of a request.
async fn hyper_request(text: &str) -> Seen {
    let (mut near, far) = duplex(1 << 16);
    let kept: Rc<RefCell<Option<Seen>>> = Rc::default();
    let keep = kept.clone();
    let service = service_fn(move |request| {
        let keep = keep.clone();
        async move {
            let seen = seen(request).await.expect("whole");
            *keep.borrow_mut() = Some(seen);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
        }
    });
    near.write_all(text.as_bytes()).await.expect("room");
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service);
    let mut answer = [0; 1];
    tokio::select! {
        _ = serving => {}
        _ = near.read(&mut answer) => {}
    }
    kept.take().unwrap_or_else(|| panic!("hyper refuses {text:?}"))
}

/// What this crate's server makes of it, sent in parts.
async fn own_request(parts: &[&[u8]]) -> Seen {
    let test = async |mut stream: tokio::io::DuplexStream, seen: Rc<RefCell<Vec<Seen>>>| {
        for part in parts {
            stream.write_all(part).await.expect("room");
            tokio::task::yield_now().await;
        }
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        seen.take().remove(0)
    };
    beside(Limits::default(), test).await.0
}

#[tokio::test]
async fn requests_are_read_as_hyper_reads_them() {
    let mut draw = Draw(1);
    for round in 0..400 {
        let text = draw.request();
        let expected = hyper_request(&text).await;
        let bytes = text.as_bytes();
        // Every cut for some, one cut and single bytes for the others.
        let cuts: Vec<usize> =
            if round < 40 { (0..=bytes.len()).collect() } else { vec![draw.below(bytes.len())] };
        for cut in cuts {
            let (one, other) = bytes.split_at(cut);
            assert_eq!(own_request(&[one, other]).await, expected, "cut at {cut}: {text:?}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(own_request(&single).await, expected, "byte by byte: {text:?}");
    }
}

/// Status, fields, body and trailers of an answer.
type Answer = (u16, Vec<(String, Vec<u8>)>, Vec<u8>, Vec<(String, Vec<u8>)>);

async fn answer<B>(response: Response<B>) -> Answer
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("whole");
    let trailers = body.trailers().map(fields).unwrap_or_default();
    (parts.status.as_u16(), fields(&parts.headers), body.to_bytes().to_vec(), trailers)
}

fn asking() -> Request<Empty<Bytes>> {
    Request::get("/").header("host", "a").body(Empty::new()).expect("good")
}

async fn hyper_response(text: &str) -> Answer {
    let (near, mut far) = duplex(1 << 16);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(near)).await.expect("open");
    let asked = async {
        let answering = async {
            // Bytes before the question would be nobody's answer.
            let _ = far.read(&mut [0; 1024]).await;
            far.write_all(text.as_bytes()).await.expect("room");
        };
        let (answered, ()) = tokio::join!(sender.send_request(asking()), answering);
        answer(answered.expect("an answer")).await
    };
    tokio::select! {
        answer = asked => answer,
        ended = connection => panic!("{ended:?}: {text:?}"),
    }
}

async fn own_response(parts: &[&[u8]]) -> (Answer, bool) {
    let (near, mut far) = duplex(1 << 16);
    let mut sender = client::handshake(near, Rc::new(Limits::default()));
    let (head, body) = asking().into_parts();
    let asked = async {
        let response = sender.try_send_request(&head, body).await.expect("an answer");
        answer(response).await
    };
    let answering = async {
        let mut question = Vec::new();
        while !question.ends_with(b"\r\n\r\n") {
            question.push(far.read_u8().await.expect("a question"));
        }
        assert_eq!(question, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        for part in parts {
            far.write_all(part).await.expect("room");
            tokio::task::yield_now().await;
        }
    };
    let (answer, ()) = tokio::join!(asked, answering);
    (answer, sender.is_ready())
}

#[tokio::test]
async fn answers_are_read_as_hyper_reads_them() {
    let mut draw = Draw(2);
    for round in 0..400 {
        let text = draw.response();
        let (bytes, expected) = (text.as_bytes(), hyper_response(&text).await);
        let cuts: Vec<usize> =
            if round < 40 { (0..=bytes.len()).collect() } else { vec![draw.below(bytes.len())] };
        for cut in cuts {
            let (one, other) = bytes.split_at(cut);
            let (answer, is_ready) = own_response(&[one, other]).await;
            assert_eq!(answer, expected, "cut at {cut}: {text:?}");
            assert!(is_ready, "the connection can be used again: {text:?}");
        }
    }
}
