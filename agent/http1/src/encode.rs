//! What is sent: heads and bodies, gathered so that they leave in one system call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, request, response};
use http_body::{Frame, SizeHint};
use tokio::io::AsyncWrite;

use crate::date::Date;
use crate::fault::Error;
use crate::head::is_never_trailer;

/// Bytes on their way out, in order.
#[derive(Debug, Default)]
pub(crate) struct Output {
    queue: VecDeque<Bytes>,
    /// After the queue: heads, chunk sizes, and bodies that are cheaper to copy than to point at.
    small: BytesMut,
    bytes: usize,
}

impl Output {
    pub(crate) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(crate) const fn len(&self) -> usize {
        self.bytes
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.small.extend_from_slice(bytes);
        self.bytes += bytes.len();
    }

    pub(crate) fn push_data(&mut self, data: Bytes) {
        if data.len() <= COPIED_BYTES_MAX {
            return self.push(&data);
        }
        self.bytes += data.len();
        if !self.small.is_empty() {
            self.queue.push_back(self.small.split().freeze());
        }
        self.queue.push_back(data);
    }

    fn push_field(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.push(name.as_str().as_bytes());
        self.push(b": ");
        self.push(value.as_bytes());
        self.push(b"\r\n");
    }

    fn push_length(&mut self, length: u64) {
        let mut digits = [0; 20];
        let mut from = digits.len();
        let mut rest = length;
        loop {
            from -= 1;
            digits[from] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(b"content-length: ");
        self.push(&digits[from..]);
        self.push(b"\r\n");
    }

    fn push_chunk_size(&mut self, size: usize) {
        let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
        for place in (0..digits).rev() {
            self.push(&[b"0123456789abcdef"[size >> (4 * place) & 15]]);
        }
        self.push(b"\r\n");
    }

    /// Writes once, as much as the stream takes, and says how much that was.
    pub(crate) fn poll_write<IO: AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let io = Pin::new(io);
        let written = if self.queue.is_empty() {
            ready!(io.poll_write(cx, &self.small))?
        } else {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let small = std::iter::once(&self.small[..]);
            let mut count = 0;
            let bytes = self.queue.iter().map(|bytes| &bytes[..]).chain(small);
            for (slice, bytes) in slices.iter_mut().zip(bytes) {
                *slice = IoSlice::new(bytes);
                count += 1;
            }
            ready!(io.poll_write_vectored(cx, &slices[..count]))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.consume(written);
        Poll::Ready(Ok(written))
    }

    fn consume(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(first) = self.queue.front_mut() {
            if count < first.len() {
                return first.advance(count);
            }
            count -= first.len();
            self.queue.pop_front();
        }
        if count < self.small.len() {
            self.small.advance(count);
        } else if self.small.capacity() > COPIED_BYTES_MAX {
            self.small = BytesMut::new();
        } else {
            // Its room stays for the next head.
            self.small.clear();
        }
    }
}

/// How the body that is sent says where it ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Encoder {
    /// There is none, whatever the message has.
    Empty,
    /// After so many bytes more.
    Length(u64),
    /// With its last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// A body that is not as long as its head says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct WrongLength;

impl Encoder {
    pub(crate) fn data(&mut self, out: &mut Output, data: Bytes) -> Result<(), WrongLength> {
        match self {
            Self::Empty => {}
            Self::UntilClose => out.push_data(data),
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(WrongLength)?;
                out.push_data(data);
            }
            // An empty chunk would be the last one.
            Self::Chunked if data.is_empty() => {}
            Self::Chunked => {
                out.push_chunk_size(data.len());
                out.push_data(data);
                out.push(b"\r\n");
            }
        }
        Ok(())
    }

    pub(crate) fn end(
        self,
        out: &mut Output,
        trailers: Option<&HeaderMap>,
    ) -> Result<(), WrongLength> {
        match self {
            Self::Length(1..) => Err(WrongLength),
            Self::Chunked => {
                out.push(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    if !is_never_trailer(name) {
                        out.push_field(name, value);
                    }
                }
                out.push(b"\r\n");
                Ok(())
            }
            Self::Empty | Self::Length(0) | Self::UntilClose => Ok(()),
        }
    }
}

/// Encodes one frame, or the end; says whether the body is over.
pub(crate) fn encode_frame(
    encoder: &mut Encoder,
    output: &mut Output,
    frame: Option<Frame<Bytes>>,
) -> Result<bool, Error> {
    let wrong = |WrongLength| Error::Message(None);
    let Some(frame) = frame else {
        encoder.end(output, None).map_err(wrong)?;
        return Ok(true);
    };
    match frame.into_data() {
        Ok(data) => encoder.data(output, data).map_err(wrong).map(|()| false),
        Err(frame) => {
            encoder.end(output, frame.trailers_ref()).map_err(wrong)?;
            Ok(true)
        }
    }
}

/// What decides how an answer is framed, besides itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) is_head: bool,
    pub(crate) is_http10: bool,
    /// Whether the connection stays open afterwards.
    pub(crate) keeps_alive: bool,
}

/// Writes the head of a request, and says how its body is framed.
///
/// # Errors
/// When its fields say two lengths, or its method is for proxies that tunnel.
pub(crate) fn request(
    out: &mut Output,
    parts: &request::Parts,
    hint: &SizeHint,
    is_over: bool,
) -> Result<Encoder, WrongLength> {
    if parts.method == Method::CONNECT {
        return Err(WrongLength);
    }
    out.push(parts.method.as_str().as_bytes());
    out.push(b" ");
    out.push(parts.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes());
    out.push(b" HTTP/1.1\r\n");
    let is_upgrade = parts.headers.contains_key(header::UPGRADE);
    let length = length(&parts.headers)?;
    fields(out, &parts.headers, is_upgrade);
    let encoder = match (length, hint.exact().or(is_over.then_some(0))) {
        (Some(length), _) => {
            out.push_length(length);
            Encoder::Length(length)
        }
        (None, Some(0)) => {
            // Said where a body is usual: RFC 9110 §8.6.
            if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
                out.push_length(0);
            }
            Encoder::Length(0)
        }
        (None, Some(length)) => {
            out.push_length(length);
            Encoder::Length(length)
        }
        (None, None) => {
            out.push(CHUNKED);
            Encoder::Chunked
        }
    };
    out.push(b"\r\n");
    Ok(encoder)
}

/// Writes the head of an answer, and says how its body is framed.
///
/// # Errors
/// When its fields say two lengths.
pub(crate) fn response(
    out: &mut Output,
    parts: &response::Parts,
    hint: &SizeHint,
    asked: &mut Asked,
    date: &Date,
) -> Result<Encoder, WrongLength> {
    let length = length(&parts.headers)?;
    out.push(b"HTTP/1.1 ");
    out.push(parts.status.as_str().as_bytes());
    out.push(b" ");
    out.push(parts.status.canonical_reason().unwrap_or_default().as_bytes());
    out.push(b"\r\n");
    let is_switch = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    fields(out, &parts.headers, is_switch);
    if !is_switch && !parts.headers.contains_key(header::DATE) {
        date.with(|date| {
            out.push(b"date: ");
            out.push(date);
            out.push(b"\r\n");
        });
    }
    let is_bare = is_switch || parts.status == StatusCode::NO_CONTENT;
    let has_no_body = is_bare || asked.is_head || parts.status == StatusCode::NOT_MODIFIED;
    let encoder = match length.or(hint.exact()) {
        _ if is_bare => Encoder::Empty,
        // What the body would have been, where that is said and not merely its absence here.
        _ if has_no_body => {
            length.inspect(|length| out.push_length(*length));
            Encoder::Empty
        }
        Some(length) => {
            out.push_length(length);
            Encoder::Length(length)
        }
        None if asked.is_http10 => {
            asked.keeps_alive = false;
            Encoder::UntilClose
        }
        None => {
            out.push(CHUNKED);
            Encoder::Chunked
        }
    };
    if !is_switch {
        match (asked.keeps_alive, asked.is_http10) {
            (false, _) => out.push(b"connection: close\r\n"),
            (true, true) => out.push(b"connection: keep-alive\r\n"),
            (true, false) => {}
        }
    }
    out.push(b"\r\n");
    Ok(encoder)
}

/// Writes the fields, but for those that say what only this connection knows.
fn fields(out: &mut Output, headers: &HeaderMap, is_upgrade: bool) {
    for (name, value) in headers {
        let is_ours = *name == header::CONTENT_LENGTH
            || *name == header::TRANSFER_ENCODING
            || (*name == header::CONNECTION && !is_upgrade);
        if !is_ours {
            out.push_field(name, value);
        }
    }
}

/// The length that the fields say.
fn length(headers: &HeaderMap) -> Result<Option<u64>, WrongLength> {
    let mut said = headers.get_all(header::CONTENT_LENGTH).iter();
    match (said.next(), said.next()) {
        (None, _) => Ok(None),
        (Some(length), None) => {
            crate::head::number(length.as_bytes()).map(Some).map_err(|_| WrongLength)
        }
        (Some(_), Some(_)) => Err(WrongLength),
    }
}

/// A body is asked for more while less than this waits to be written.
pub(crate) const OUTPUT_BYTES_MAX: usize = 64 * 1024;
const CHUNKED: &[u8] = b"transfer-encoding: chunked\r\n";
/// Copying this much costs less than pointing at it.
const COPIED_BYTES_MAX: usize = 4 * 1024;
const SLICES_MAX: usize = 16;
