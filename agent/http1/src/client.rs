//! The client's end of a connection: one request at a time, driven by whoever waits for its answer.
//!
//! Nothing runs beside the exchange: an idle connection is looked at when it is taken up again. A
//! request's body that is not over when its answer begins goes on in a task of its own, so that
//! neither waits for the other.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, UPGRADE};
use http::{Method, Response, StatusCode, request};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;

use crate::body::{Body, Source};
use crate::chunked::Decoder;
use crate::connection::Connection;
use crate::encode::{self, Encoder, OUTPUT_BYTES_MAX, WrongLength, encode_frame};
use crate::fault::{Error, Fault};
use crate::head::{self, Framing, Manner, Scan};
use crate::limits::{INTERIM_MAX, Limits};
use crate::upgrade::{OnUpgrade, Upgraded};

/// Makes a connection of `io`, over which requests can be sent.
pub fn handshake<IO>(io: IO, limits: Rc<Limits>) -> SendRequest<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let connection = Connection::new(io, BytesMut::new(), limits);
    SendRequest(Rc::new(RefCell::new(Exchange {
        connection,
        is_busy: false,
        is_sent: true,
        sending: None,
    })))
}

/// Sends requests over one connection, one after another.
pub struct SendRequest<IO>(Rc<RefCell<Exchange<IO>>>);

impl<IO> std::fmt::Debug for SendRequest<IO> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendRequest").finish_non_exhaustive()
    }
}

/// A request that had no answer.
#[derive(Debug)]
pub struct Failed<B> {
    /// Why.
    pub error: Error,
    /// The request's body, where nothing of it was taken.
    pub body: Option<B>,
    /// Whether the stream took a byte of it.
    pub was_sent: bool,
}

/// A connection, and the exchange that goes on over it.
struct Exchange<IO> {
    connection: Connection<IO>,
    /// Whether an answer is waited for.
    is_busy: bool,
    /// Whether the request is all written.
    is_sent: bool,
    /// The rest of a request whose answer has begun.
    sending: Option<JoinHandle<()>>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin + 'static> SendRequest<IO> {
    /// Whether it takes no more requests, as far as anyone has looked.
    pub fn is_closed(&self) -> bool {
        !self.0.borrow().is_idle()
    }

    /// Whether it still takes requests, after a look at what came meanwhile: its end, or bytes
    /// that nobody asked for.
    pub fn is_ready(&mut self) -> bool {
        let exchange = &mut *self.0.borrow_mut();
        if !exchange.is_idle() {
            return false;
        }
        let mut cx = Context::from_waker(Waker::noop());
        exchange.connection.keeps_alive = exchange.connection.poll_fill(&mut cx, 1).is_pending();
        exchange.connection.keeps_alive
    }

    /// Sends a request, and waits until its answer has begun.
    ///
    /// # Errors
    /// [`Failed`], with the body if the connection was found closed before any of it was sent.
    pub async fn try_send_request<B>(
        &mut self,
        head: &request::Parts,
        body: B,
    ) -> Result<Response<Body>, Failed<B>>
    where
        B: http_body::Body<Data = Bytes> + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if !self.is_ready() {
            return Err(Failed { error: Error::Closed, body: Some(body), was_sent: false });
        }
        let before = self.0.borrow().connection.written;
        match self.exchange(head, body).await {
            Ok(response) => Ok(response),
            Err(error) => {
                let exchange = &mut *self.0.borrow_mut();
                exchange.connection.keeps_alive = false;
                let was_sent = exchange.connection.written > before;
                Err(Failed { error, body: None, was_sent })
            }
        }
    }

    async fn exchange<B>(&self, parts: &request::Parts, body: B) -> Result<Response<Body>, Error>
    where
        B: http_body::Body<Data = Bytes> + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (hint, is_over) = (body.size_hint(), body.is_end_stream());
        let encoder = {
            let exchange = &mut *self.0.borrow_mut();
            (exchange.is_busy, exchange.is_sent) = (true, false);
            encode::request(&mut exchange.connection.output, parts, &hint, is_over)
                .map_err(|WrongLength| Error::Message(None))?
        };
        let mut sending = Sending { body: Some(body), encoder };
        let mut interim = 0;
        let (mut response, manner) = poll_fn(|cx| {
            // Its end may be read before the request is all written: what it says then counts.
            let sent = sending.poll(&self.0, cx);
            let exchange = &mut *self.0.borrow_mut();
            let answer = exchange.poll_head(&parts.method, &mut interim, cx);
            match (sent, answer) {
                (_, Poll::Ready(Ok(answer))) => Poll::Ready(Ok(answer)),
                (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => {
                    Poll::Ready(Err(error))
                }
                (_, Poll::Pending) => Poll::Pending,
            }
        })
        .await?;
        let body = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let protocol = |headers: &HeaderMap| headers.get(UPGRADE).cloned();
            let is_asked_for =
                protocol(&parts.headers).zip(protocol(response.headers())).is_some_and(
                    |(asked, granted)| asked.as_bytes().eq_ignore_ascii_case(granted.as_bytes()),
                );
            if !(is_asked_for && manner.upgrades) {
                return Err(Fault::Status.into());
            }
            let (ahead, io) = self.0.borrow_mut().connection.hand_on().ok_or(Error::Closed)?;
            let (sender, on_upgrade) = OnUpgrade::new();
            let _ = sender.send(Upgraded::new(ahead, io));
            Body::new(None, Some(on_upgrade))
        } else {
            self.body(manner, sending)
        };
        *response.version_mut() = http::Version::HTTP_11;
        Ok(response.map(|()| body))
    }

    /// The body of an answer that has begun.
    fn body<B>(&self, manner: Manner, mut sending: Sending<B>) -> Body
    where
        B: http_body::Body<Data = Bytes> + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let exchange = &mut *self.0.borrow_mut();
        let connection = &mut exchange.connection;
        exchange.is_busy = false;
        connection.keeps_alive &= manner.keeps_alive;
        connection.decoder = Decoder::from(manner.framing);
        connection.is_abandoned = false;
        if manner.framing == Framing::Empty {
            // Without an end of the request to wait for, the exchange is over.
            return Body::empty();
        }
        if !exchange.is_sent {
            let shared = self.0.clone();
            exchange.sending = Some(tokio::task::spawn_local(async move {
                let sent = sending.finish(&shared).await;
                let connection = &mut shared.borrow_mut().connection;
                connection.keeps_alive &= sent.is_ok();
                if sent.is_err_and(|error| error.is_message()) {
                    // Its receiver waits for the rest in vain, and so would the answer's.
                    connection.cut_body();
                }
            }));
        }
        Body::new(Some(self.0.clone()), None)
    }
}

/// A request's body on its way.
struct Sending<B> {
    /// None once it is over.
    body: Option<B>,
    encoder: Encoder,
}

impl<B> Sending<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Writes the rest of a request whose answer has begun.
    ///
    /// A server may go on reading after its answer, for as long as it does read.
    async fn finish<IO: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        exchange: &RefCell<Exchange<IO>>,
    ) -> Result<(), Error> {
        loop {
            let written = exchange.borrow().connection.written;
            let sending = poll_fn(|cx| self.poll(exchange, cx));
            if let Ok(sent) = tokio::time::timeout(UNREAD_MAX, sending).await {
                return sent;
            }
            let connection = &mut exchange.borrow_mut().connection;
            if connection.is_done() && connection.written == written {
                drop(connection.end());
                return Err(Error::Closed);
            }
        }
    }

    /// Writes what there is of the request; ready when that was all of it.
    fn poll<IO: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        exchange: &RefCell<Exchange<IO>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        if exchange.borrow().is_sent {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut is_waiting = false;
            while let Some(body) = &mut self.body {
                if exchange.borrow().connection.output.len() >= OUTPUT_BYTES_MAX {
                    break;
                }
                let is_over = body.is_end_stream();
                let frame = if is_over { Poll::Ready(None) } else { Pin::new(body).poll_frame(cx) };
                let Poll::Ready(frame) = frame else {
                    is_waiting = true;
                    break;
                };
                let frame =
                    frame.transpose().map_err(|error| Error::Message(Some(error.into())))?;
                let is_over = {
                    let output = &mut exchange.borrow_mut().connection.output;
                    encode_frame(&mut self.encoder, output, frame)?
                };
                if is_over {
                    self.body = None;
                }
            }
            ready!(exchange.borrow_mut().connection.poll_flush(cx))?;
            if self.body.is_none() {
                exchange.borrow_mut().is_sent = true;
                return Poll::Ready(Ok(()));
            }
            if is_waiting {
                return Poll::Pending;
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Exchange<IO> {
    /// Whether nothing is under way, and another request may be sent.
    fn is_idle(&self) -> bool {
        let connection = &self.connection;
        let is_whole = !self.is_busy && self.is_sent && connection.decoder.is_done();
        is_whole && connection.keeps_alive && connection.input.is_empty()
    }

    /// Reads the head of the answer; interim ones are passed over.
    fn poll_head(
        &mut self,
        method: &Method,
        interim: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Response<()>, Manner), Error>> {
        let connection = &mut self.connection;
        loop {
            if let Some(first) = connection.input.first()
                && *first != b'H'
            {
                return Poll::Ready(Err(Fault::NotHttp.into()));
            }
            let end = connection.scan.end(&connection.input)?;
            if end.unwrap_or(connection.input.len()) > connection.limits.head_bytes {
                return Poll::Ready(Err(Fault::HeadTooLong.into()));
            }
            if let Some(length) = end {
                let head = connection.input.split_to(length).freeze();
                connection.scan = Scan::default();
                let (response, manner) = head::response(&head, method, &connection.limits)?;
                let status = response.status();
                if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok((response, manner)));
                }
                *interim += 1;
                if *interim > INTERIM_MAX {
                    return Poll::Ready(Err(Fault::Interim.into()));
                }
                continue;
            }
            if ready!(connection.poll_fill(cx, 1))? == 0 {
                let is_closed = connection.input.is_empty();
                let error = if is_closed { Error::Closed } else { Error::Incomplete };
                return Poll::Ready(Err(error));
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Source for Exchange<IO> {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.connection.poll_piece(cx)
    }

    fn left(&self) -> Option<u64> {
        self.connection.left()
    }

    fn is_done(&self) -> bool {
        self.connection.is_done()
    }

    fn abandon(&mut self) {
        // Whoever still sends the request does so for nothing, and for no other answer.
        if !self.is_sent {
            self.connection.keeps_alive = false;
            self.sending.take().inspect(|sending| sending.abort());
        }
        if !self.connection.is_done() {
            self.connection.keeps_alive = false;
        }
    }
}

/// How long a server that has answered may leave the rest of the request unread.
const UNREAD_MAX: Duration = Duration::from_secs(10);
