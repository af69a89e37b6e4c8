//! The server's end of a connection: requests in, answers out, in order.
//!
//! Requests that were sent before their turn wait in the connection's buffer; one is answered at a
//! time.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, Version, response};
use http_body::SizeHint;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::chunked::Decoder;
use crate::connection::Connection;
use crate::date::Date;
use crate::encode::{self, Asked, Encoder, OUTPUT_BYTES_MAX, WrongLength, encode_frame};
use crate::fault::{Error, Fault};
use crate::head::{self, Framing, Manner, Scan};
use crate::limits::Limits;
use crate::upgrade::{OnUpgrade, Upgraded};

/// What all connections of one listener share.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The bounds of requests.
    pub limits: Rc<Limits>,
    /// The date of answers that carry none.
    pub date: Rc<Date>,
    /// Fields of the answer to a request that breaks a rule, each with its CR LF.
    pub refusal: &'static str,
    /// Whether trailers are sent to whoever asks: the peer takes them for others.
    pub passes_trailers: bool,
}

/// Answers the requests of one connection by `service` until either side has had enough.
///
/// `ahead` was read from `io` already. Once `drain` is cancelled, the next answer is the last one and
/// says so. Once `idle_ends` is over, a connection that waits for a request is closed. A request that breaks a rule is answered with
/// [`Fault::status`], and the connection ends.
///
/// # Errors
/// [`Error`] when it ends otherwise than between two messages.
pub async fn serve<IO, S, F, B>(
    io: IO,
    ahead: BytesMut,
    settings: &Settings,
    mut service: S,
    drain: &CancellationToken,
    idle_ends: impl Future<Output = ()>,
) -> Result<(), Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
    S: FnMut(Request<Body>) -> F,
    F: Future<Output = Response<B>>,
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connection = Connection::new(io, ahead, settings.limits.clone());
    let connection = Rc::new(RefCell::new(connection));
    let _closing = Closing(connection.clone());
    let mut idle_ends = pin!(idle_ends);
    let mut timer = Timer::new(&settings.limits);
    loop {
        let next = poll_fn(|cx| {
            let next = poll_head(&mut connection.borrow_mut(), &mut timer, cx);
            match next {
                // A request that has begun is waited for.
                Poll::Pending if timer.head.is_none() => {
                    idle_ends.as_mut().poll(cx).map(|()| Ok(None))
                }
                next => next,
            }
        });
        let (request, manner) = match next.await {
            Ok(Some(head)) => head,
            Ok(None) => {
                let _ = poll_fn(|cx| connection.borrow_mut().poll_shutdown(cx)).await;
                return Ok(());
            }
            Err(Error::Fault(fault)) => {
                Box::pin(refuse(&connection, settings, fault)).await;
                return Err(fault.into());
            }
            Err(error) => return Err(error),
        };
        timer.has_served = true;
        let exchange = Exchange {
            connection: &connection,
            settings,
            drain,
            manner,
            upgrade: None,
            half_closed: None,
        };
        // Boxed: a connection that waits for a request holds none of what answers one.
        Box::pin(exchange.run(request, &mut service)).await?;
        if !connection.borrow().keeps_alive {
            Box::pin(close(&connection)).await;
            return Ok(());
        }
    }
}

/// Closes the stream with the future that serves it, whoever may still read a request's body.
struct Closing<IO: AsyncRead + AsyncWrite + Unpin>(Rc<RefCell<Connection<IO>>>);

impl<IO: AsyncRead + AsyncWrite + Unpin> Drop for Closing<IO> {
    fn drop(&mut self) {
        let stream = self.0.borrow_mut().end();
        drop(stream);
    }
}

/// How long a connection has waited for a request, and a request for its end.
struct Timer<'a> {
    limits: &'a Limits,
    idle: Pin<Box<Sleep>>,
    /// Whether there was a request since the idle timer was set.
    has_served: bool,
    /// Set while a head has begun and not ended.
    head: Option<Pin<Box<Sleep>>>,
}

impl<'a> Timer<'a> {
    fn new(limits: &'a Limits) -> Self {
        let idle = Box::pin(tokio::time::sleep(limits.idle));
        Self { limits, idle, has_served: false, head: None }
    }

    /// Whether it is time to give up a connection without a request.
    ///
    /// The timer is set once a period, and not for each request: so a period passes for the last
    /// request, and at most one more.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.idle.as_mut().poll(cx).is_ready() {
            if !std::mem::take(&mut self.has_served) {
                return Poll::Ready(());
            }
            self.idle.as_mut().reset(Instant::now() + self.limits.idle);
        }
        Poll::Pending
    }

    /// Whether a head that has begun took too long.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let span = self.limits.head;
        let head = self.head.get_or_insert_with(|| Box::pin(tokio::time::sleep(span)));
        head.as_mut().poll(cx)
    }
}

type Head = (Request<()>, Manner);

/// Reads the next head; none when the connection is to end in peace.
fn poll_head<IO: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<IO>,
    timer: &mut Timer<'_>,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Head>, Error>> {
    loop {
        if let Some(length) = head_length(connection)? {
            let head = connection.input.split_to(length).freeze();
            connection.scan = Scan::default();
            timer.head = None;
            return Poll::Ready(Ok(Some(head::request(&head, &connection.limits)?)));
        }
        let has_begun = !connection.input.is_empty();
        match connection.poll_fill(cx, 1) {
            Poll::Ready(Ok(0)) if has_begun => return Poll::Ready(Err(Error::Incomplete)),
            Poll::Ready(Ok(0)) => return Poll::Ready(Ok(None)),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
            Poll::Pending if has_begun => {
                ready!(timer.poll_head(cx));
                return Poll::Ready(Err(Fault::HeadTimeout.into()));
            }
            Poll::Pending => {
                ready!(timer.poll_idle(cx));
                return Poll::Ready(Ok(None));
            }
        }
    }
}

/// The length of the head that the input begins with; none while it has not all arrived.
fn head_length<IO>(connection: &mut Connection<IO>) -> Result<Option<usize>, Fault> {
    let Connection { input, scan, limits, .. } = connection;
    // One empty line before a request is what old clients send after a body (RFC 9112 §2.2).
    if !scan.had_blank && input.starts_with(b"\r\n") {
        scan.had_blank = true;
        input.advance(2);
    }
    match input.first() {
        None => return Ok(None),
        Some(b'\r') if input.len() < 2 && !scan.had_blank => return Ok(None),
        Some(first) if first.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(first) => {}
        _ => return Err(Fault::NotHttp),
    }
    let end = scan.end(input)?;
    if end.unwrap_or(input.len() + 1) <= limits.head_bytes {
        return Ok(end);
    }
    Err(if scan.is_in_first_line() { Fault::TargetTooLong } else { Fault::HeadTooLong })
}

/// Answers a request that breaks a rule.
async fn refuse<IO: AsyncRead + AsyncWrite + Unpin>(
    connection: &RefCell<Connection<IO>>,
    settings: &Settings,
    fault: Fault,
) {
    let status = fault.status();
    {
        let output = &mut connection.borrow_mut().output;
        output.push(b"HTTP/1.1 ");
        output.push(status.as_str().as_bytes());
        output.push(b" ");
        output.push(status.canonical_reason().unwrap_or_default().as_bytes());
        output.push(b"\r\ncontent-length: 0\r\nconnection: close\r\ndate: ");
        settings.date.with(|date| output.push(date));
        output.push(b"\r\n");
        output.push(settings.refusal.as_bytes());
        output.push(b"\r\n");
    }
    let flushing = poll_fn(|cx| connection.borrow_mut().poll_flush(cx));
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, flushing).await {
        linger(connection).await;
    }
}

/// Ends a connection after its last answer.
async fn close<IO: AsyncRead + AsyncWrite + Unpin>(connection: &RefCell<Connection<IO>>) {
    let is_whole = {
        let connection = &mut *connection.borrow_mut();
        let is_whole = connection.decoder.is_done() && connection.input.is_empty();
        connection.cut_body();
        is_whole
    };
    if is_whole {
        let _ = poll_fn(|cx| connection.borrow_mut().poll_shutdown(cx)).await;
    } else {
        linger(connection).await;
    }
}

/// Closes this way, and reads the other for a while: closing on unread bytes would reset the
/// connection, and the peer might never see the answer.
async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(connection: &RefCell<Connection<IO>>) {
    let mut left = LINGER_BYTES_MAX;
    let lingering = poll_fn(|cx| {
        let mut connection = connection.borrow_mut();
        ready!(connection.poll_shutdown(cx))?;
        loop {
            connection.input.clear();
            let count = ready!(connection.poll_fill(cx, 1))?;
            left = left.saturating_sub(count);
            if count == 0 || left == 0 {
                return Poll::Ready(Ok::<_, std::io::Error>(()));
            }
        }
    });
    let _ = tokio::time::timeout(LINGER, lingering).await;
}

/// One request and its answer.
struct Exchange<'a, IO> {
    connection: &'a Rc<RefCell<Connection<IO>>>,
    settings: &'a Settings,
    drain: &'a CancellationToken,
    manner: Manner,
    upgrade: Option<oneshot::Sender<Upgraded>>,
    /// Set while the client has closed its end and nothing was sent to it since.
    half_closed: Option<Pin<Box<Sleep>>>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> Exchange<'_, IO> {
    async fn run<S, F, B>(mut self, request: Request<()>, service: &mut S) -> Result<(), Error>
    where
        S: FnMut(Request<Body>) -> F,
        F: Future<Output = Response<B>>,
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut asked = Asked {
            is_head: *request.method() == Method::HEAD,
            is_http10: request.version() == Version::HTTP_10,
            keeps_alive: self.manner.keeps_alive,
        };
        let body = self.begin();
        let mut answering = pin!(service(request.map(|()| body)));
        let response = poll_fn(|cx| match answering.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Ok(response)),
            Poll::Pending => self.poll_gone(cx).map(Err),
        });
        let (parts, body) = response.await?.into_parts();
        if parts.status.is_informational() && parts.status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::Message(None));
        }
        {
            let mut body = pin!(body);
            // Nothing of the body is asked while the connection is borrowed: it may be made of it.
            let hint = body.size_hint();
            let encoder = self.head(&parts, &hint, &mut asked)?;
            if parts.status == StatusCode::SWITCHING_PROTOCOLS {
                return self.switch().await;
            }
            self.send(encoder, body.as_mut()).await?;
        }
        self.settle().await;
        Ok(())
    }

    /// Writes the head of the answer, and says how its body is framed.
    fn head(
        &self,
        parts: &response::Parts,
        hint: &SizeHint,
        asked: &mut Asked,
    ) -> Result<Encoder, Error> {
        let connection = &mut *self.connection.borrow_mut();
        if connection.asks_to_continue {
            // Whether its sender now sends the body all the same, nobody knows.
            connection.cut_body();
        }
        if connection.is_abandoned {
            connection.skip_body();
        }
        let is_readable = connection.decoder.is_done() || !connection.is_abandoned;
        asked.keeps_alive &= connection.keeps_alive && is_readable && !self.drain.is_cancelled();
        let (output, date) = (&mut connection.output, &self.settings.date);
        let encoder = encode::response(output, parts, hint, asked, date)
            .map_err(|WrongLength| Error::Message(None))?;
        connection.keeps_alive &= asked.keeps_alive;
        Ok(encoder)
    }

    /// Waits until whoever still reads the request's body is done with it: an answer may be over
    /// before its question is.
    async fn settle(&self) {
        let settling = poll_fn(|cx| {
            let connection = &mut *self.connection.borrow_mut();
            if connection.is_abandoned {
                connection.skip_body();
            }
            if connection.decoder.is_done() || connection.is_abandoned || connection.is_cut() {
                return Poll::Ready(());
            }
            connection.wait(cx);
            Poll::Pending
        });
        let idle = self.settings.limits.idle;
        if !self.connection.borrow().decoder.is_done() {
            let _ = Box::pin(tokio::time::timeout(idle, settling)).await;
        }
        let connection = &mut *self.connection.borrow_mut();
        connection.keeps_alive &= connection.decoder.is_done();
    }

    /// Takes the request's body up.
    fn begin(&mut self) -> Body {
        let connection = &mut *self.connection.borrow_mut();
        let has_body = self.manner.framing != Framing::Empty;
        connection.decoder = Decoder::from(self.manner.framing);
        connection.asks_to_continue = self.manner.expects_continue && has_body;
        connection.is_abandoned = false;
        let on_upgrade = self.manner.upgrades.then(|| {
            let (sender, on_upgrade) = OnUpgrade::new();
            self.upgrade = Some(sender);
            on_upgrade
        });
        let source =
            has_body.then(|| -> Rc<RefCell<dyn crate::body::Source>> { self.connection.clone() });
        Body::new(source, on_upgrade)
    }

    /// Whether the client has gone while its answer was being made.
    ///
    /// What it sends meanwhile are requests before their turn: a few are kept, and then it waits.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let connection = &mut *self.connection.borrow_mut();
        if !connection.output.is_empty()
            && let Poll::Ready(Err(error)) = connection.poll_flush(cx)
        {
            return Poll::Ready(error.into());
        }
        if !connection.decoder.is_done() {
            // Another task may be reading the body. It says when it is done.
            connection.wait(cx);
            return Poll::Pending;
        }
        if let Some(timer) = &mut self.half_closed {
            return timer.as_mut().poll(cx).map(|()| Error::Incomplete);
        }
        while connection.input.len() < AHEAD_BYTES_MAX {
            match ready!(connection.poll_fill(cx, 1)) {
                // It has no more requests, or has gone: nobody can tell until something is sent.
                Ok(0) => {
                    connection.keeps_alive = false;
                    let timer = Box::pin(tokio::time::sleep(HALF_CLOSED));
                    let timer = self.half_closed.insert(timer);
                    return timer.as_mut().poll(cx).map(|()| Error::Incomplete);
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(error.into()),
            }
        }
        Poll::Pending
    }

    /// Sends the body of an answer, beginning with the head that waits to be sent.
    async fn send<B>(&mut self, mut encoder: Encoder, mut body: Pin<&mut B>) -> Result<(), Error>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let takes_trailers = self.manner.takes_trailers || self.settings.passes_trailers;
        let mut is_over = body.is_end_stream() || encoder == Encoder::Empty;
        if is_over {
            let output = &mut self.connection.borrow_mut().output;
            encoder.end(output, None).map_err(|WrongLength| Error::Message(None))?;
        }
        poll_fn(|cx| {
            loop {
                let mut is_waiting = false;
                while !is_over && self.connection.borrow().output.len() < OUTPUT_BYTES_MAX {
                    let Poll::Ready(frame) = body.as_mut().poll_frame(cx) else {
                        is_waiting = true;
                        break;
                    };
                    let frame =
                        frame.transpose().map_err(|error| Error::Message(Some(error.into())))?;
                    // Trailers are for those who say that they take them.
                    let frame = frame.filter(|frame| frame.is_data() || takes_trailers);
                    let is_last = body.is_end_stream();
                    let output = &mut self.connection.borrow_mut().output;
                    is_over = encode_frame(&mut encoder, output, frame)?;
                    if is_last && !is_over {
                        is_over = encode_frame(&mut encoder, output, None)?;
                    }
                }
                if !self.connection.borrow().output.is_empty() {
                    self.half_closed = None;
                }
                ready!(self.connection.borrow_mut().poll_flush(cx))?;
                if is_over {
                    return Poll::Ready(Ok(()));
                }
                if is_waiting {
                    return self.poll_gone(cx).map(Err);
                }
            }
        })
        .await
    }

    /// Sends the answer that changes the protocol, and hands the stream on.
    async fn switch(self) -> Result<(), Error> {
        let Some(upgrade) = self.upgrade else { return Err(Error::Message(None)) };
        poll_fn(|cx| self.connection.borrow_mut().poll_flush(cx)).await?;
        let handed_on = self.connection.borrow_mut().hand_on();
        let (ahead, io) = handed_on.ok_or(Error::Closed)?;
        // Whoever asked for it may have gone meanwhile: then it ends here.
        let _ = upgrade.send(Upgraded::new(ahead, io));
        Ok(())
    }
}

/// Requests before their turn are kept up to this many bytes.
const AHEAD_BYTES_MAX: usize = 8 * 1024;
/// How long an answer is waited for whose client has closed its end: it may have gone.
const HALF_CLOSED: Duration = Duration::from_secs(2);
/// How long the peer may take to read a last answer.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1024 * 1024;
