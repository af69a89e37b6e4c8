//! What is refused, with which status; and what is taken that looks as if it might not be.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hawser_http1::server::serve;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio_util::sync::CancellationToken;

use crate::common::{ask, beside};
use hawser_http1::{Error, Fault, Limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// The status of the first answer to `bytes`, and how the connection ended.
async fn outcome(bytes: &[u8]) -> (String, Result<(), Error>) {
    let (answer, ended) =
        beside(Limits::default(), async |stream, _| ask(stream, bytes).await).await;
    (answer.split(' ').nth(1).unwrap_or_default().to_owned(), ended)
}

#[tokio::test(start_paused = true)]
async fn what_is_malformed_or_ambiguous_is_refused() {
    let long_target = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(8 * 1024));
    let long_line = format!("GET /{}", "a".repeat(70 * 1024));
    let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(100));
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(66 * 1024));
    let long_method = format!("{} / HTTP/1.1\r\nhost: a\r\n\r\n", "M".repeat(33));
    let h = |fields: &str| format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\nhello");
    let owned = [
        (long_target, Fault::TargetTooLong),
        (long_line, Fault::TargetTooLong),
        (many, Fault::TooManyFields),
        (large, Fault::HeadTooLong),
        (long_method, Fault::MethodTooLong),
        (h("content-length: 5\r\ntransfer-encoding: chunked"), Fault::LengthAndCoding),
        (h("transfer-encoding: chunked\r\ncontent-length: 5"), Fault::LengthAndCoding),
        (h("content-length: 5\r\ncontent-length: 5"), Fault::Lengths),
        (h("content-length: 5\r\ncontent-length: 6"), Fault::Lengths),
        (h("content-length: 5, 5"), Fault::Length),
        (h("content-length: +5"), Fault::Length),
        (h("content-length: -5"), Fault::Length),
        (h("content-length: 0x5"), Fault::Length),
        (h("content-length: 5 5"), Fault::Length),
        (h("content-length: 5;"), Fault::Length),
        (h("content-length:"), Fault::Length),
        (h("content-length: 18446744073709551616"), Fault::Length),
        (h("transfer-encoding: gzip, chunked"), Fault::Coding),
        (h("transfer-encoding: chunked, chunked"), Fault::Coding),
        (h("transfer-encoding: chunked\r\ntransfer-encoding: chunked"), Fault::Coding),
        (h("transfer-encoding: xchunked"), Fault::Coding),
        (h("transfer-encoding: identity"), Fault::Coding),
        (h("transfer-encoding: \"chunked\""), Fault::Coding),
        (h("transfer-encoding:\u{b}chunked"), Fault::Field),
        (h("transfer-encoding : chunked"), Fault::Field),
        (h("transfer-encoding\t: chunked"), Fault::Field),
        (h(" content-length: 5"), Fault::Folded),
        (h("x: y\r\n z"), Fault::Folded),
        (h("x: y\r\n\tz"), Fault::Folded),
        (h("x: y\nz: w"), Fault::LineEnd),
        (h("x: y\rz: w"), Fault::Field),
        (h("x: y\0"), Fault::Field),
        (h("x: y\u{7f}"), Fault::Field),
        (h("x: \u{1}"), Fault::Field),
        (h(": y"), Fault::Field),
        (h("x"), Fault::Field),
        (h("x y: z"), Fault::Field),
        (h("x\u{0}: z"), Fault::Field),
        (h("héader: z"), Fault::Field),
        (h("expect: 200-ok"), Fault::Expectation),
        (h("host: b"), Fault::Hosts),
    ];
    let plain: &[(&[u8], Fault)] = &[
        (b"GET / HTTP/1.1\n\n", Fault::LineEnd),
        (b"GET / HTTP/1.1\nhost: a\r\n\r\n", Fault::LineEnd),
        (b"GET / HTTP/1.1\r\nhost: a\n\r\n", Fault::LineEnd),
        (b"GET / HTTP/1.1\r\nhost: a\r\n\n", Fault::LineEnd),
        (b"GET / HTTP/1.1\r\r\nhost: a\r\n\r\n", Fault::LineEnd),
        (b"\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::NotHttp),
        (b"\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::NotHttp),
        (b" GET / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::NotHttp),
        (b"\x16\x03\x01\x02\x00", Fault::NotHttp),
        (b"\0", Fault::NotHttp),
        (b"GET / HTTP/1.1\r\n\r\n", Fault::NoHost),
        (b"GET / HTTP/1.2\r\nhost: a\r\n\r\n", Fault::Version),
        (b"GET / HTTP/1.\r\nhost: a\r\n\r\n", Fault::Version),
        (b"GET / http/1.1\r\nhost: a\r\n\r\n", Fault::Version),
        (b"GET / HTTP/1.1 \r\nhost: a\r\n\r\n", Fault::LineEnd),
        (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", Fault::OtherVersion),
        (b"GET / HTTP/0.9\r\nhost: a\r\n\r\n", Fault::OtherVersion),
        (b"GET /\r\n\r\n", Fault::FirstLine),
        (b"GET  / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::FirstLine),
        (b"GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n", Fault::FirstLine),
        (b"GE(T / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::FirstLine),
        (b"GET a HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Target),
        (b"GET * HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Target),
        (b"GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Target),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Target),
        (b"GET ftp://a/ HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Target),
        (b"GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Target),
        (b"GET a:80 HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Target),
        (b"CONNECT / HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Target),
        (b"CONNECT http://a/ HTTP/1.1\r\nhost: a\r\n\r\n", Fault::Target),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Fault::Coding),
    ];
    let plain = plain.iter().map(|(bytes, fault)| (*bytes, *fault));
    let owned = owned.iter().map(|(text, fault)| (text.as_bytes(), *fault));
    for (bytes, fault) in plain.chain(owned) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
        let (status, ended) = outcome(bytes).await;
        assert_eq!(ended.err().and_then(|error| error.fault()), Some(fault), "{text:?}");
        assert_eq!(status, fault.status().as_str(), "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_its_framing_ends_the_connection() {
    let cases: &[(&str, &str)] = &[
        ("5\r\nhello\r\n0\r\n\r\n", "200"),
        ("5;a=b\r\nhello\r\n0\r\n\r\n", "200"),
        ("5;a=\"b;c\"\r\nhello\r\n000\r\n\r\n", "200"),
        ("5\r\nhello\r\n0\r\nx: y\r\n\r\n", "200"),
        ("5\nhello\r\n0\r\n\r\n", "400"),
        ("5\r\nhello\n0\r\n\r\n", "400"),
        ("5\r\nhelloX\r\n0\r\n\r\n", "400"),
        ("5 \r\nhello\r\n0\r\n\r\n", "400"),
        (" 5\r\nhello\r\n0\r\n\r\n", "400"),
        ("5 ;a\r\nhello\r\n0\r\n\r\n", "400"),
        ("0x5\r\nhello\r\n0\r\n\r\n", "400"),
        ("+5\r\nhello\r\n0\r\n\r\n", "400"),
        ("-5\r\nhello\r\n0\r\n\r\n", "400"),
        ("g\r\nhello\r\n0\r\n\r\n", "400"),
        ("\r\nhello\r\n0\r\n\r\n", "400"),
        (";a\r\nhello\r\n0\r\n\r\n", "400"),
        ("5;a\rb\r\nhello\r\n0\r\n\r\n", "400"),
        ("5;\0\r\nhello\r\n0\r\n\r\n", "400"),
        ("5\rhello\r\n0\r\n\r\n", "400"),
        ("10000000000000000\r\nhello", "400"),
        ("ffffffffffffffff0\r\nhello", "400"),
        ("5\r\nhello\r\n0\r\ncontent-length: 5\r\n\r\n", "400"),
        ("5\r\nhello\r\n0\r\ntransfer-encoding: chunked\r\n\r\n", "400"),
        ("5\r\nhello\r\n0\r\nhost: b\r\n\r\n", "400"),
        ("5\r\nhello\r\n0\r\nconnection: x\r\n\r\n", "400"),
        ("5\r\nhello\r\n0\r\nauthorization: Bearer x\r\nx: y\r\n\r\n", "200"),
        ("5\r\nhello\r\n0\r\n x: y\r\n\r\n", "400"),
        ("5\r\nhello\r\n0\r\nx: y\r\n z\r\n\r\n", "400"),
        ("5\r\nhello\r\n0\r\nx : y\r\n\r\n", "400"),
        ("5\r\nhello\r\n0\r\nx: y\n\r\n", "400"),
    ];
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(300));
    let often = format!("{}0\r\n\r\n", format!("1;{}\r\nx\r\n", "a".repeat(200)).repeat(30));
    let many = format!("0\r\n{}\r\n", "x: y\r\n".repeat(101));
    let large = format!("0\r\nx: {}\r\n\r\n", "y".repeat(66 * 1024));
    let owned = [&long, &often, &many, &large].map(|text| (text.as_str(), "400"));
    for (body, expected) in cases.iter().copied().chain(owned) {
        let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let next = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        let text = format!("{head}{body}{next}");
        let test =
            async |stream, seen: std::rc::Rc<std::cell::RefCell<Vec<crate::common::Seen>>>| {
                let answer = ask(stream, text.as_bytes()).await;
                (answer, seen.take())
            };
        let ((answer, seen), _) = beside(Limits::default(), test).await;
        let shown = &body[..body.len().min(60)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{shown:?}: {answer}");
        let is_whole = expected == "200";
        let trailers = seen.first().map_or(&[][..], |seen| &seen.trailers);
        assert!(trailers.iter().all(|(name, _)| name == "x"), "{shown:?}: {trailers:?}");
        assert_eq!(seen.len(), if is_whole { 2 } else { 0 }, "{shown:?}: {seen:?}");
        assert_eq!(answer.contains("connection: close"), !is_whole, "{shown:?}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_unusual_and_clear_is_taken() {
    let cases: &[(&str, &str)] = &[
        ("\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", "GET / HTTP/1.1"),
        ("GET http://a/b?c HTTP/1.1\r\nhost: a\r\n\r\n", "GET http://a/b?c HTTP/1.1"),
        ("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", "OPTIONS * HTTP/1.1"),
        ("CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n", "CONNECT a:80 HTTP/1.1"),
        ("GET //b/../c HTTP/1.1\r\nhost: a\r\n\r\n", "GET //b/../c HTTP/1.1"),
        ("PURGE /a HTTP/1.1\r\nhost: a\r\n\r\n", "PURGE /a HTTP/1.1"),
        ("GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.0"),
        ("GET / HTTP/1.1\r\nHOST: a\r\nX:\ty \t\r\n\r\n", "GET / HTTP/1.1"),
        ("GET / HTTP/1.1\r\nhost:\r\nx: caf\u{e9}\r\n\r\n", "GET / HTTP/1.1"),
        ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 00\r\n\r\n", "POST / HTTP/1.1"),
        (
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1",
        ),
    ];
    for (text, line) in cases {
        let test =
            async |stream, seen: std::rc::Rc<std::cell::RefCell<Vec<crate::common::Seen>>>| {
                (ask(stream, text.as_bytes()).await, seen.take())
            };
        let ((answer, seen), _) = beside(Limits::default(), test).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{text:?}: {answer}");
        assert_eq!(seen[0].line, *line, "{text:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_before_their_turn_are_answered_in_order() {
    let test = async |stream, seen: std::rc::Rc<std::cell::RefCell<Vec<crate::common::Seen>>>| {
        let text = "POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello\
                    GET /2 HTTP/1.1\r\nhost: a\r\n\r\n\
                    POST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                    3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n\
                    GET /4 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n\
                    GET /5 HTTP/1.1\r\nhost: a\r\n\r\n";
        (ask(stream, text.as_bytes()).await, seen.take())
    };
    let ((answer, seen), ended) = beside(Limits::default(), test).await;
    let lines: Vec<_> = seen.iter().map(|seen| &seen.line[..]).collect();
    assert_eq!(lines.len(), 4, "after `close` nothing is read: {lines:?}");
    assert!(lines.iter().zip(1..).all(|(line, n)| line.contains(&format!("/{n} "))), "{lines:?}");
    assert_eq!((&seen[0].body[..], &seen[2].body[..]), (&b"hello"[..], &b"abcde"[..]));
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 4, "{answer}");
    assert_eq!(answer.matches("connection: close").count(), 1, "{answer}");
    assert!(ended.is_ok(), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn old_clients_are_answered_in_their_way() {
    let cases = [
        ("GET / HTTP/1.0\r\n\r\n", "connection: close"),
        ("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", "connection: keep-alive"),
    ];
    for (text, expected) in cases {
        let test = async |stream, _| ask(stream, text.as_bytes()).await;
        let (answer, _) = beside(Limits::default(), test).await;
        assert!(answer.contains(expected), "{text:?}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_and_an_idle_connection_have_times_of_their_own() {
    let limits =
        Limits { head: Duration::from_secs(5), idle: Duration::from_secs(60), ..Limits::default() };
    let start = tokio::time::Instant::now();
    let test = async |mut stream: tokio::io::DuplexStream, _| {
        stream.write_all(b"GET / HT").await.expect("open");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    };
    let (answer, ended) = beside(limits.clone(), test).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(ended.err().and_then(|error| error.fault()), Some(Fault::HeadTimeout));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());

    let start = tokio::time::Instant::now();
    let test = async |mut stream: tokio::io::DuplexStream, _| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    };
    let (answer, ended) = beside(limits, test).await;
    assert_eq!((answer.as_str(), ended.is_ok()), ("", true), "closed without a word");
    let took = start.elapsed();
    assert!(Duration::from_secs(60) <= took && took < Duration::from_secs(121), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_is_asked_for_once_where_it_waits_to_be() {
    let test = async |mut stream: tokio::io::DuplexStream, _| {
        let head =
            b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        stream.write_all(head).await.expect("open");
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).await.expect("asked for");
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        ask(stream, b"hello").await
    };
    let (answer, _) = beside(Limits::default(), test).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn trailers_are_sent_to_those_who_take_them() {
    for (te, expected) in [("te: trailers\r\n", "0\r\nx-sum: 1\r\n\r\n"), ("", "0\r\n\r\n")] {
        let (mut near, far) = tokio::io::duplex(1 << 16);
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{te}\r\n");
        near.write_all(request.as_bytes()).await.expect("room");
        let service = |_| async {
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-sum", http::HeaderValue::from_static("1"));
            trailers.insert("content-length", http::HeaderValue::from_static("9"));
            let frames = [
                Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"ok"))),
                Ok(Frame::trailers(trailers)),
            ];
            http::Response::new(StreamBody::new(futures_util::stream::iter(frames)))
        };
        let (settings, drain) =
            (crate::common::settings(Limits::default()), CancellationToken::new());
        let served =
            serve(far, BytesMut::new(), &settings, service, &drain, drain.cancelled()).await;
        served.expect("it ends in peace");
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.expect("text");
        assert!(answer.ends_with(&format!("\r\n\r\n2\r\nok\r\n{expected}")), "{te:?}: {answer}");
    }
}

#[tokio::test]
async fn draining_ends_a_connection_after_the_answer_under_way() {
    let drain = CancellationToken::new();
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let two = "GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2);
    near.write_all(two.as_bytes()).await.expect("room");
    let service = |_| async {
        drain.cancel();
        http::Response::new(http_body_util::Full::new(Bytes::from_static(b"ok")))
    };
    let settings = crate::common::settings(Limits::default());
    let mut answer = String::new();
    let serving = serve(far, BytesMut::new(), &settings, service, &drain, drain.cancelled());
    let (served, read) = tokio::join!(serving, near.read_to_string(&mut answer));
    assert!(served.is_ok() && read.is_ok(), "{served:?} {read:?}");
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}
