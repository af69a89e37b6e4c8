//! What comes of an exchange whose two ways do not end together.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hawser_http1::server::serve;
use hawser_http1::{Body, Error, Limits};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Either, Full, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_util::sync::CancellationToken;

use crate::common::settings;

/// Serves one end of a pipe by `service` while `test` holds the other.
async fn with<T, F, B>(
    service: impl FnMut(Request<Body>) -> F,
    room: usize,
    test: impl AsyncFnOnce(DuplexStream) -> T,
) -> (T, Result<(), Error>)
where
    F: Future<Output = Response<B>>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (near, far) = duplex(room);
    let (settings, drain) = (settings(Limits::default()), CancellationToken::new());
    let serving = serve(far, BytesMut::new(), &settings, service, &drain, drain.cancelled());
    let both = async { tokio::join!(test(near), serving) };
    let local = tokio::task::LocalSet::new();
    let ended = local.run_until(both).await;
    // Whoever still reads hears that it has ended.
    tokio::time::timeout(Duration::from_secs(60), local).await.expect("nobody waits for ever");
    ended
}

async fn all(mut stream: DuplexStream) -> String {
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer));
    reading.await.expect("closed").expect("open");
    String::from_utf8_lossy(&answer).into_owned()
}

fn full(text: &'static str) -> Full<Bytes> {
    Full::new(Bytes::from_static(text.as_bytes()))
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_reads_ends_the_connection_unless_it_has_arrived() {
    for (sent, answers) in [("hello", 2), ("hell", 1)] {
        let test = async |mut stream: DuplexStream| {
            let text = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n{sent}");
            stream.write_all(text.as_bytes()).await.expect("room");
            if answers == 2 {
                let next = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
                stream.write_all(next).await.expect("room");
            }
            all(stream).await
        };
        let (answer, _) = with(async |_| Response::new(full("ok")), 1 << 16, test).await;
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), answers, "{sent}: {answer}");
        assert!(answer.ends_with("connection: close\r\n\r\nok"), "{sent}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_goes_on_after_its_answer_is_over() {
    let kept: Rc<RefCell<Vec<u8>>> = Rc::default();
    let keep = kept.clone();
    let service = |request: Request<Body>| {
        let keep = keep.clone();
        // As a proxy does whose application answers early: the rest goes on beside.
        tokio::task::spawn_local(async move {
            if let Ok(body) = request.into_body().collect().await {
                keep.borrow_mut().extend_from_slice(&body.to_bytes());
            }
        });
        std::future::ready(Response::new(full("early")))
    };
    let test = async |mut stream: DuplexStream| {
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n";
        stream.write_all(head).await.expect("room");
        let mut answer = BytesMut::new();
        while !answer.ends_with(b"early") {
            assert!(stream.read_buf(&mut answer).await.expect("open") > 0, "{answer:?}");
        }
        stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.expect("still read");
        stream
            .write_all(b"GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .await
            .expect("room");
        all(stream).await
    };
    let (answer, _) = with(service, 1 << 16, test).await;
    assert_eq!(kept.borrow().as_slice(), b"onetwo");
    assert!(answer.ends_with("early") && answer.contains("200 OK"), "the next: {answer}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_waited_for_no_longer_than_an_idle_connection() {
    let ended: Rc<RefCell<Option<bool>>> = Rc::default();
    let told = ended.clone();
    let service = |request: Request<Body>| {
        let told = told.clone();
        tokio::task::spawn_local(async move {
            let body = request.into_body().collect().await;
            *told.borrow_mut() = Some(body.is_ok());
        });
        std::future::ready(Response::new(full("early")))
    };
    let test = async |mut stream: DuplexStream| {
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n";
        stream.write_all(head).await.expect("room");
        let mut answer = String::new();
        let within = Limits::default().idle + Duration::from_secs(5);
        let reading = tokio::time::timeout(within, stream.read_to_string(&mut answer));
        reading.await.expect("closed in time").expect("text");
    };
    with(service, 1 << 16, test).await.1.expect("it ends in peace");
    assert_eq!(*ended.borrow(), Some(false), "what broke off is not whole");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_closes_even_if_the_question_is_still_read() {
    let ended: Rc<Cell<Option<bool>>> = Rc::default();
    let told = ended.clone();
    let service = |request: Request<Body>| {
        let told = told.clone();
        tokio::task::spawn_local(async move {
            told.set(Some(request.into_body().collect().await.is_ok()));
        });
        let frames = [Ok(Frame::data(Bytes::from_static(b"par"))), Err("broken")];
        std::future::ready(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
    };
    let test = async |mut stream: DuplexStream| {
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc";
        stream.write_all(head).await.expect("room");
        all(stream).await
    };
    let (answer, served) = with(service, 1 << 16, test).await;
    assert!(!answer.contains("0\r\n\r\n"), "it must not look whole: {answer}");
    assert!(served.is_err_and(|error| error.is_message()));
    assert_eq!(ended.get(), Some(false), "whoever read on was told");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_to_go_on_after_the_answer_has_begun() {
    let ended: Rc<Cell<Option<bool>>> = Rc::default();
    let told = ended.clone();
    let service = |request: Request<Body>| {
        let told = told.clone();
        let (begun, beginning) = tokio::sync::oneshot::channel::<()>();
        tokio::task::spawn_local(async move {
            let _ = beginning.await;
            told.set(Some(request.into_body().collect().await.is_ok()));
        });
        let frames = futures_util::stream::once(async move {
            drop(begun);
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"no")))
        });
        let answer = Response::builder().status(StatusCode::PAYLOAD_TOO_LARGE);
        std::future::ready(answer.body(StreamBody::new(Box::pin(frames))).expect("good"))
    };
    let test = async |mut stream: DuplexStream| {
        let head =
            b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        stream.write_all(head).await.expect("room");
        all(stream).await
    };
    let (answer, _) = with(service, 1 << 16, test).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("connection: close\r\n") && !answer.contains(" 100 "), "{answer}");
    assert_eq!(ended.get(), Some(false));
}

/// It has no more requests, and still wants its answer.
#[tokio::test(start_paused = true)]
async fn who_closes_its_own_end_gets_its_answer() {
    let service = |_| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Its end may take as long again, once it was seen that somebody takes it.
        let slowly = async {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"late")))
        };
        Response::new(StreamBody::new(Box::pin(futures_util::stream::once(slowly))))
    };
    let test = async |mut stream: DuplexStream| {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("room");
        stream.shutdown().await.expect("open");
        all(stream).await
    };
    let (answer, served) = with(service, 1 << 16, test).await;
    assert!(answer.contains("late") && answer.contains("connection: close\r\n"), "{answer}");
    assert!(served.is_ok(), "{served:?}");
}

/// A peer that says nothing more may have gone: whoever waits for long would still hold its
/// connection.
#[tokio::test(start_paused = true)]
async fn who_closes_before_its_answer_has_gone() {
    let dropped = Rc::new(Cell::new(false));
    struct Told(Rc<Cell<bool>>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    let service = |_| {
        let told = Told(dropped.clone());
        async move {
            let _told = told;
            std::future::pending::<()>().await;
            Response::new(full("never"))
        }
    };
    let test = async |mut stream: DuplexStream| {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("room");
        stream.shutdown().await.expect("open");
        all(stream).await
    };
    let (answer, served) = with(service, 1 << 16, test).await;
    assert_eq!((answer.as_str(), dropped.get()), ("", true));
    assert!(matches!(served, Err(Error::Incomplete)), "{served:?}");
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body_have_none() {
    let cases = [
        ("HEAD", 200, Some("9"), "content-length: 9\r\n", "what it would be"),
        ("HEAD", 200, None, "", "it may not be known"),
        ("GET", 204, Some("9"), "", "no length for what has none"),
        ("GET", 304, Some("9"), "content-length: 9\r\n", "what it would be"),
    ];
    for (method, status, length, field, why) in cases {
        let service = |_| {
            let mut answer = Response::builder().status(status);
            if let Some(length) = length {
                answer = answer.header("content-length", length);
            }
            std::future::ready(answer.body(full("forbidden")).expect("good"))
        };
        let test = async |mut stream: DuplexStream| {
            let two = format!("{method} / HTTP/1.1\r\nhost: a\r\n\r\n").repeat(2);
            stream.write_all(two.as_bytes()).await.expect("room");
            let mut answer = BytesMut::new();
            let ended = |answer: &BytesMut| {
                String::from_utf8_lossy(answer).matches("\r\n\r\n").count() == 2
            };
            while !ended(&answer) {
                assert!(stream.read_buf(&mut answer).await.expect("open") > 0, "{answer:?}");
            }
            String::from_utf8_lossy(&answer).into_owned()
        };
        let (answer, _) = with(service, 1 << 16, test).await;
        assert!(!answer.contains("forbidden"), "{method} {status}, {why}: {answer}");
        assert_eq!(answer.matches("content-length").count(), 2 * usize::from(!field.is_empty()));
        assert!(answer.contains(field) && !answer.contains("transfer-encoding"), "{why}: {answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_a_request_without_a_body_may_change_the_protocol() {
    let seen = Rc::new(Cell::new(None));
    let service = |request: Request<Body>| {
        seen.set(Some(request.body().is_upgrade()));
        std::future::ready(Response::new(full("ok")))
    };
    for (fields, expected) in [
        ("connection: upgrade\r\nupgrade: echo\r\n\r\n", true),
        ("connection: upgrade\r\nupgrade: echo\r\ncontent-length: 5\r\n\r\nhello", false),
        ("upgrade: echo\r\n\r\n", false),
        ("connection: upgrade\r\n\r\n", false),
    ] {
        let test = async |mut stream: DuplexStream| {
            let text = format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}");
            stream.write_all(text.as_bytes()).await.expect("room");
            stream.read_exact(&mut [0; 15]).await.expect("an answer");
        };
        let _ = with(service, 1 << 16, test).await;
        assert_eq!(seen.take(), Some(expected), "{fields:?}");
    }
}

/// A body without end, which counts how often it was asked.
struct Endless(Rc<Cell<usize>>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.set(self.0.get() + 1);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 1024])))))
    }
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_is_not_written_for() {
    let asked = Rc::new(Cell::new(0));
    let service = |_| std::future::ready(Response::new(Endless(asked.clone())));
    let test = async |mut stream: DuplexStream| {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("room");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = asked.get();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(asked.get(), before, "nothing is asked for that cannot be sent");
        before
    };
    let (asked, _) = with(service, 4 * 1024, test).await;
    assert!(asked <= 72, "{asked} KiB are kept for whoever does not read");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_read_is_not_taken() {
    let service = |request: Request<Body>| async move {
        let mut body = request.into_body();
        let _ = body.frame().await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        Response::new(Either::<_, Full<Bytes>>::Left(body))
    };
    let test = async |mut stream: DuplexStream| {
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n";
        stream.write_all(head).await.expect("room");
        let mut taken = 0;
        let writing = async {
            while stream.write_all(&[b'x'; 1024]).await.is_ok() {
                taken += 1;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(10), writing).await;
        taken
    };
    let (taken, _) = with(service, 4 * 1024, test).await;
    assert!(taken < 80, "{taken} KiB were taken of a body that nobody reads");
}
