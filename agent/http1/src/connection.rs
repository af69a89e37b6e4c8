//! A connection: its stream, what was read and not yet used, and what is yet to be written.

use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::body::Source;
use crate::chunked::{Decoder, Piece};
use crate::encode::Output;
use crate::fault::Error;
use crate::head::Scan;
use crate::limits::Limits;

/// One connection's stream and buffers; both ends' state beyond that is their own.
pub(crate) struct Connection<IO> {
    /// None once it was handed on.
    io: Option<IO>,
    pub(crate) limits: Rc<Limits>,
    /// Read, and not yet used.
    pub(crate) input: BytesMut,
    pub(crate) scan: Scan,
    pub(crate) output: Output,
    /// Bytes that the stream took since it was made.
    pub(crate) written: u64,
    /// The body that is arriving.
    pub(crate) decoder: Decoder,
    /// Whether there will be another message after this one.
    pub(crate) keeps_alive: bool,
    /// Whether the sender of the body waits to be asked for it.
    pub(crate) asks_to_continue: bool,
    /// Whether nobody reads the body that is arriving.
    pub(crate) is_abandoned: bool,
    /// Whether the last read filled its buffer, so that the next takes a larger one.
    is_bulk: bool,
    /// Who is to look again when the body has ended or was given up.
    waiting: Option<Waker>,
    /// Who waits for more of the body.
    reader: Option<Waker>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Connection<IO> {
    pub(crate) fn new(io: IO, input: BytesMut, limits: Rc<Limits>) -> Self {
        Self {
            io: Some(io),
            limits,
            input,
            scan: Scan::default(),
            output: Output::default(),
            written: 0,
            decoder: Decoder::Done,
            keeps_alive: true,
            asks_to_continue: false,
            is_abandoned: false,
            is_bulk: false,
            waiting: None,
            reader: None,
        }
    }

    /// Reads once, at least a byte, and says how much; 0 at the end of the stream.
    ///
    /// Little is read through the stack, so that a connection that waits holds no buffer.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        expected: usize,
    ) -> Poll<io::Result<usize>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Ok(0)) };
        let is_known_large = expected > LITTLE_BYTES && expected < usize::MAX;
        if is_known_large || self.is_bulk {
            self.input.reserve(expected.clamp(LITTLE_BYTES, LARGE_BYTES));
            let room = self.input.capacity() - self.input.len();
            let count = ready!(pin!(io.read_buf(&mut self.input)).poll(cx))?;
            self.is_bulk = count == room;
            return Poll::Ready(Ok(count));
        }
        let mut little = [const { MaybeUninit::<u8>::uninit() }; LITTLE_BYTES];
        let mut little = ReadBuf::uninit(&mut little);
        ready!(Pin::new(io).poll_read(cx, &mut little))?;
        let filled = little.filled();
        self.is_bulk = filled.len() == LITTLE_BYTES && expected > 1;
        self.input.extend_from_slice(filled);
        Poll::Ready(Ok(filled.len()))
    }

    /// Writes everything that is to be written.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(io) = &mut self.io else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        while !self.output.is_empty() {
            self.written += ready!(self.output.poll_write(io, cx))? as u64;
        }
        Pin::new(io).poll_flush(cx)
    }

    /// Says that nothing more will be written.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Hands the stream on, with what was read too far.
    pub(crate) fn hand_on(&mut self) -> Option<(Bytes, IO)> {
        self.keeps_alive = false;
        let io = self.io.take()?;
        Some((self.input.split().freeze(), io))
    }

    /// Throws away what is left of the body that nobody reads, if all of it has arrived.
    pub(crate) fn skip_body(&mut self) {
        while !self.decoder.is_done() {
            match self.decoder.decode(&mut self.input, &self.limits) {
                Ok(Piece::More(_)) => return,
                Ok(_) => {}
                Err(_) => {
                    self.keeps_alive = false;
                    return;
                }
            }
        }
    }

    /// Notes who is to look again when the body has ended or was given up.
    pub(crate) fn wait(&mut self, cx: &Context<'_>) {
        if !self.waiting.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            self.waiting = Some(cx.waker().clone());
        }
    }

    /// Whether the body that was arriving was broken off.
    pub(crate) const fn is_cut(&self) -> bool {
        matches!(self.decoder, Decoder::Cut)
    }

    /// Breaks the body off that is arriving, if it has not ended: whoever reads it hears so.
    pub(crate) fn cut_body(&mut self) {
        if !self.decoder.is_done() {
            self.keeps_alive = false;
            self.asks_to_continue = false;
            self.decoder = Decoder::Cut;
            self.input.clear();
            self.reader.take().inspect(Waker::wake_by_ref);
        }
    }

    /// Gives the stream up, to be closed, and what was arriving.
    pub(crate) fn end(&mut self) -> Option<IO> {
        self.keeps_alive = false;
        self.cut_body();
        self.io.take()
    }

    fn wake(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// The body has ended: no large buffer is held until the next.
    fn rest(&mut self) {
        self.is_bulk = false;
        if self.input.is_empty() && self.input.capacity() > LITTLE_BYTES {
            self.input = BytesMut::new();
        }
        self.wake();
    }

    /// The body has broken off: there is nothing more to expect.
    fn break_off(&mut self) {
        self.keeps_alive = false;
        self.decoder = Decoder::Done;
        self.wake();
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if self.is_cut() {
                return Poll::Ready(Some(Err(Error::Incomplete)));
            }
            let piece = self.decoder.decode(&mut self.input, &self.limits)?;
            if self.decoder.is_done() {
                self.rest();
            }
            let expected = match piece {
                Piece::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Piece::Trailers(fields) => return Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Piece::End => return Poll::Ready(None),
                Piece::More(expected) => expected,
            };
            if std::mem::take(&mut self.asks_to_continue) {
                self.output.push(b"HTTP/1.1 100 Continue\r\n\r\n");
                // What the stream does not take at once is flushed before the answer.
                let _ = self.poll_flush(cx)?;
            }
            if ready!(self.poll_fill(cx, expected))? == 0 {
                if !matches!(self.decoder, Decoder::UntilClose) {
                    return Poll::Ready(Some(Err(Error::Incomplete)));
                }
                self.decoder = Decoder::Done;
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Source for Connection<IO> {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = self.poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Err(_))) => self.break_off(),
            Poll::Ready(_) => {}
            Poll::Pending => match &self.reader {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => self.reader = Some(cx.waker().clone()),
            },
        }
        polled
    }

    fn left(&self) -> Option<u64> {
        self.decoder.left()
    }

    fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    fn abandon(&mut self) {
        if !self.decoder.is_done() {
            self.is_abandoned = true;
            self.wake();
        }
    }
}

/// Read through the stack at most.
const LITTLE_BYTES: usize = 8 * 1024;
/// Read at once at most.
const LARGE_BYTES: usize = 64 * 1024;
