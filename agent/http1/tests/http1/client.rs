//! What a client takes from a server, and when its connection may be used again.

use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use hawser_http1::client::{self, Failed, SendRequest};
use hawser_http1::{Body, Error, Fault, Limits};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

fn pair() -> (SendRequest<DuplexStream>, DuplexStream) {
    let (near, far) = duplex(1 << 16);
    (client::handshake(near, Rc::new(Limits::default())), far)
}

fn asking(method: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri("/").header("host", "a");
    request.body(Full::default()).expect("good")
}

async fn send<B>(
    sender: &mut SendRequest<DuplexStream>,
    request: Request<B>,
) -> Result<Response<Body>, Failed<B>>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Unpin + 'static,
{
    let (head, body) = request.into_parts();
    sender.try_send_request(&head, body).await
}

async fn local<T>(test: impl Future<Output = T>) -> T {
    tokio::task::LocalSet::new().run_until(test).await
}

/// Sends a request of `method`, answers `bytes`, and closes that way.
async fn exchange(
    method: &str,
    bytes: &[u8],
) -> (Result<Result<Bytes, Error>, Failed<Full<Bytes>>>, bool) {
    local(async {
        let (mut sender, mut far) = pair();
        let asked = async {
            let response = send(&mut sender, asking(method)).await?;
            Ok(response.into_body().collect().await.map(|body| body.to_bytes()))
        };
        let answering = async {
            let mut question = [0; 1024];
            let _ = far.read(&mut question).await;
            far.write_all(bytes).await.expect("room");
            far
        };
        let (answer, mut far) = tokio::join!(asked_or_closed(asked), answering);
        let is_ready = sender.is_ready();
        let _ = far.shutdown().await;
        (answer, is_ready)
    })
    .await
}

/// Waits no longer than a test may.
async fn asked_or_closed<T>(asked: impl Future<Output = T>) -> T {
    let within = std::time::Duration::from_secs(10);
    tokio::time::timeout(within, asked).await.expect("an outcome")
}

#[tokio::test]
async fn an_answer_that_is_malformed_or_ambiguous_is_refused() {
    let cases: &[(&str, Fault)] = &[
        ("HTTP/1.1 200 OK\nx: y\r\n\r\n", Fault::LineEnd),
        ("HTTP/1.1 200 OK\r\nx: y\n\r\n", Fault::LineEnd),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", Fault::NotHttp),
        ("ICY 200 OK\r\n\r\n", Fault::NotHttp),
        ("HTTP/1.1 20 OK\r\n\r\n", Fault::Status),
        ("HTTP/1.1 999 OK\r\n\r\n", Fault::Status),
        ("HTTP/2.0 200 OK\r\n\r\n", Fault::Version),
        ("HTTP/1.1 200 OK\r\nx: y\r\n z\r\n\r\n", Fault::Folded),
        ("HTTP/1.1 200 OK\r\nx : y\r\n\r\n", Fault::Field),
        ("HTTP/1.1 200 OK\r\nx: y\0\r\n\r\n", Fault::Field),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\na", Fault::Lengths),
        ("HTTP/1.1 200 OK\r\ncontent-length: a\r\n\r\n", Fault::Length),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            Fault::LengthAndCoding,
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n", Fault::Coding),
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Fault::Coding),
        ("HTTP/1.1 101 Switching\r\nupgrade: a\r\nconnection: upgrade\r\n\r\n", Fault::Status),
        ("HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\nhello", Fault::Status),
        ("HTTP/1.1 103 Hints\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Fault::Status),
    ];
    for (bytes, fault) in cases {
        let (answer, is_ready) = exchange("GET", bytes.as_bytes()).await;
        let failed = answer.expect_err(bytes);
        assert_eq!(failed.error.fault(), Some(*fault), "{bytes:?}");
        assert!(failed.was_sent && !is_ready, "{bytes:?}");
    }
    let interim = "HTTP/1.1 102 Processing\r\n\r\n".repeat(9);
    let (answer, _) = exchange("GET", interim.as_bytes()).await;
    assert_eq!(answer.expect_err("too many").error.fault(), Some(Fault::Interim));
}

#[tokio::test]
async fn a_connection_is_used_again_only_where_nothing_is_left_of_it() {
    let cases: &[(&str, &str, &str, bool, &str)] = &[
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "ok", true, "a length"),
        ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok!", "ok", false, "a byte more"),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
            "",
            false,
            "an answer more",
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
            "ok",
            false,
            "it says so",
        ),
        ("GET", "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", "ok", false, "HTTP/1.0"),
        (
            "GET",
            "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
            "ok",
            true,
            "HTTP/1.0 that says so",
        ),
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", "", true, "no body to HEAD"),
        ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", "", true, "nor here"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", "", true, "nor here"),
        ("GET", "HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", "", true, "said twice"),
        (
            "GET",
            "HTTP/1.1 204 No Content\r\ncontent-length: 9\r\n\r\n",
            "",
            false,
            "nine bytes that may yet come would be the next answer",
        ),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n",
            "ok",
            true,
            "chunks with a trailer",
        ),
    ];
    for (method, bytes, body, reusable, why) in cases {
        let (answer, is_ready) = exchange(method, bytes.as_bytes()).await;
        assert_eq!(answer.expect(why).expect(why), body.as_bytes(), "{why}");
        assert_eq!(is_ready, *reusable, "{why}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_told_from_one_that_ends() {
    for (bytes, is_whole) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", false),
        ("HTTP/1.1 200 OK\r\n\r\nok", true),
    ] {
        let ended = local(async {
            let (mut sender, mut far) = pair();
            far.write_all(b"").await.expect("open");
            let asked = send(&mut sender, asking("GET"));
            let answering = async {
                let _ = far.read(&mut [0; 1024]).await;
                far.write_all(bytes.as_bytes()).await.expect("room");
                far.shutdown().await.expect("open");
            };
            let (answer, ()) = tokio::join!(asked, answering);
            let ended = answer.expect("a head").into_body().collect().await;
            assert!(!sender.is_ready(), "{bytes:?}");
            ended.map(|body| body.to_bytes())
        })
        .await;
        assert_eq!(ended.is_ok(), is_whole, "{bytes:?}: {ended:?}");
    }
}

#[tokio::test]
async fn a_request_comes_back_from_a_connection_that_was_closed_before() {
    for sent in [&b""[..], b"HTTP/1.1 408 Request Timeout\r\n\r\n"] {
        let (mut sender, mut far) = pair();
        far.write_all(sent).await.expect("room");
        drop(far);
        let failed = send(&mut sender, asking("POST")).await.expect_err("closed");
        assert!(failed.body.is_some() && !failed.was_sent);
    }
}

#[tokio::test]
async fn a_body_goes_on_after_its_answer_has_begun() {
    local(async {
        let (mut sender, mut far) = pair();
        let (frames, body) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
        let body = StreamBody::new(tokio_stream(body));
        let request = Request::post("/").header("host", "a").body(Box::pin(body)).expect("good");
        let answering = async {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(far.read_u8().await.expect("a head"));
            }
            let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            far.write_all(answer).await.expect("room");
        };
        let (answer, ()) = tokio::join!(send(&mut sender, request), answering);
        let Ok(mut answer) = answer else { panic!("no answer") };
        for word in ["one", "two"] {
            frames.send(Ok(Frame::data(Bytes::from(word)))).await.expect("wanted");
            let expected = format!("3\r\n{word}\r\n");
            let mut chunk = vec![0; expected.len()];
            far.read_exact(&mut chunk).await.expect("it goes on");
            assert_eq!(chunk, expected.as_bytes());
            far.write_all(&chunk).await.expect("room");
            let frame = answer.body_mut().frame().await.expect("more").expect("well");
            assert_eq!(frame.into_data().expect("data"), word);
        }
        drop(frames);
        let mut last = [0; 5];
        far.read_exact(&mut last).await.expect("its end");
        assert_eq!(&last, b"0\r\n\r\n");
        assert!(sender.is_closed(), "the answer has not ended");
        far.write_all(&last).await.expect("room");
        assert!(answer.body_mut().frame().await.is_none());
        assert!(sender.is_ready(), "both have ended");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_off_ends_its_answer_too() {
    local(async {
        let (mut sender, mut far) = pair();
        let (frames, body) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
        let request = Request::post("/").header("host", "a").header("content-length", "10");
        let request = request.body(Box::pin(StreamBody::new(tokio_stream(body)))).expect("good");
        let answering = async {
            let _ = far.read(&mut [0; 1024]).await;
            let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
            far.write_all(answer).await.expect("room");
        };
        let (answer, ()) = tokio::join!(send(&mut sender, request), answering);
        let Ok(answer) = answer else { panic!("no answer") };
        drop(frames);
        let ended = asked_or_closed(answer.into_body().collect()).await;
        assert!(matches!(ended, Err(Error::Incomplete)), "{ended:?}");
        assert!(!sender.is_ready());
    })
    .await;
}

#[tokio::test]
async fn a_change_to_a_protocol_that_nobody_asked_for_is_refused() {
    for (granted, is_refused) in [("ECHO", false), ("h2c", true), ("echo, h2c", true)] {
        let refused = local(async {
            let (mut sender, mut far) = pair();
            let request = Request::get("/").header("host", "a").header("connection", "upgrade");
            let request = request.header("upgrade", "echo").body(Full::default()).expect("good");
            let answering = async {
                let _ = far.read(&mut [0; 1024]).await;
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                     upgrade: {granted}\r\n\r\n"
                );
                far.write_all(answer.as_bytes()).await.expect("room");
            };
            tokio::join!(send(&mut sender, request), answering).0.err()
        })
        .await;
        let fault = refused.and_then(|failed| failed.error.fault());
        assert_eq!(fault, is_refused.then_some(Fault::Status), "{granted}");
    }
}

/// Frames as they are sent.
fn tokio_stream(
    mut frames: tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, Infallible>>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> {
    futures_util::stream::poll_fn(move |cx| frames.poll_recv(cx))
}

#[tokio::test]
async fn a_change_of_protocol_hands_on_what_was_read_too_far() {
    local(async {
        let (mut sender, mut far) = pair();
        let request = Request::get("/")
            .header("host", "a")
            .header("connection", "upgrade")
            .header("upgrade", "echo")
            .body(Full::<Bytes>::default())
            .expect("good");
        let answering = async {
            let mut question = [0; 1024];
            let count = far.read(&mut question).await.expect("a question");
            let text = String::from_utf8_lossy(&question[..count]).into_owned();
            assert!(text.contains("connection: upgrade\r\n"), "{text}");
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                           upgrade: echo\r\n\r\nhello";
            far.write_all(answer).await.expect("room");
        };
        let (answer, ()) = tokio::join!(send(&mut sender, request), answering);
        let mut answer = answer.expect("an answer");
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut stream = answer.body_mut().on_upgrade().expect("it may").await.expect("it has");
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).await.expect("read too far");
        assert_eq!(&hello, b"hello");
        stream.write_all(b"back").await.expect("open");
        far.read_exact(&mut hello[..4]).await.expect("passed on");
        assert_eq!(&hello[..4], b"back");
    })
    .await;
}

/// A server that has answered before the request was all there: what becomes of the rest.
#[tokio::test(start_paused = true)]
async fn what_nobody_reads_after_the_answer_is_given_up() {
    const EARLY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let ask = || {
        let request = Request::post("/").header("host", "a");
        request.body(Full::new(Bytes::from(vec![7; 1 << 20]))).expect("good")
    };
    for reads in [true, false] {
        local(async {
            let (mut sender, mut far) = pair();
            let asking = async {
                let Ok(answer) = send(&mut sender, ask()).await else { panic!("no early answer") };
                answer.into_body().collect().await.expect("whole").to_bytes()
            };
            let answering = async {
                far.read_u8().await.expect("a request");
                far.write_all(EARLY).await.expect("room");
            };
            let (answer, ()) = tokio::join!(asking, answering);
            assert_eq!(answer, "ok");
            drop(sender);
            let pause = std::time::Duration::from_secs(8);
            let mut received = 0;
            let mut buffer = vec![0; 1 << 16];
            // Slowly, where it reads: each pause is longer than a timer, none is without a read.
            while reads && received < 1 << 20 {
                tokio::time::sleep(pause).await;
                received += far.read(&mut buffer).await.expect("it goes on");
            }
            let is_closed = async {
                // Nothing comes any more of what was sent, and nothing is taken.
                while far.write_all(b"x").await.is_ok() {
                    tokio::time::sleep(pause).await;
                }
            };
            let closed = tokio::time::timeout(10 * pause, is_closed).await;
            closed.expect("it is closed, and holds nothing");
        })
        .await;
    }
}
