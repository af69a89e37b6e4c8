//! Calm: HTTP/2 connections whose peer sends many frames that carry nothing are ended.
//!
//! hyper answers such frames one by one and bounds what it keeps, but not how many it answers. So
//! they are counted as their heads pass: each costs one of what a connection saves up by requests,
//! by what is written to it, and by time.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::Monotonic;

/// A stream that breaks when HTTP/2's frames in it are a flood.
pub(crate) struct Calm<S> {
    stream: S,
    frames: Frames,
    left: u32,
    /// When time was last counted.
    since: Duration,
    clock: Monotonic,
}

/// Where in a frame the next octet stands.
struct Frames {
    /// Octets of the preface, or of a frame's payload, that are still to come.
    rest: usize,
    head: [u8; HEAD_BYTES],
    have: usize,
}

/// What octets brought.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Brought {
    requests: u32,
    idle: u32,
}

impl Frames {
    const fn new() -> Self {
        Self { rest: PREFACE_BYTES, head: [0; HEAD_BYTES], have: 0 }
    }

    fn pass(&mut self, mut octets: &[u8]) -> Brought {
        let mut brought = Brought::default();
        while !octets.is_empty() {
            let skipped = self.rest.min(octets.len());
            self.rest -= skipped;
            octets = &octets[skipped..];
            let count = (HEAD_BYTES - self.have).min(octets.len());
            self.head[self.have..self.have + count].copy_from_slice(&octets[..count]);
            self.have += count;
            octets = &octets[count..];
            if self.have < HEAD_BYTES {
                break;
            }
            self.have = 0;
            let [a, b, c, kind, flags, ..] = self.head;
            self.rest = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            match kind {
                HEADERS => brought.requests += 1,
                DATA if self.rest > 0 || flags & END_STREAM != 0 => {}
                _ => brought.idle += 1,
            }
        }
        brought
    }
}

impl<S> Calm<S> {
    pub(crate) fn new(stream: S, clock: Monotonic) -> Self {
        Self { stream, frames: Frames::new(), left: SAVED_MAX, since: clock.now(), clock }
    }

    /// Counts what came.
    fn count(&mut self, octets: &[u8]) -> io::Result<()> {
        let Brought { requests, idle } = self.frames.pass(octets);
        self.save(requests.saturating_mul(PER_REQUEST));
        if idle > self.left {
            let now = self.clock.now();
            let millis = now.saturating_sub(self.since).as_millis();
            self.since = now;
            self.save(u32::try_from(millis).unwrap_or(u32::MAX).saturating_mul(PER_MILLISECOND));
        }
        self.left = self.left.checked_sub(idle).ok_or_else(flooded)?;
        Ok(())
    }

    fn save(&mut self, more: u32) {
        self.left = self.left.saturating_add(more).min(SAVED_MAX);
    }

    /// Counts what was written.
    fn wrote(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = &written {
            self.save(u32::try_from(count / PER_WRITTEN_BYTES).unwrap_or(u32::MAX));
        }
        written
    }
}

fn flooded() -> io::Error {
    io::Error::other("a flood of HTTP/2 frames that carry nothing")
}

impl<S: AsyncRead + Unpin> AsyncRead for Calm<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        Poll::Ready(self.count(&buf.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Calm<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, octets);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;
/// The most that is saved up, and what a connection begins with.
const SAVED_MAX: u32 = 10_000;
const PER_MILLISECOND: u32 = 1;
/// A request is followed by updates of its windows, and perhaps by its reset.
const PER_REQUEST: u32 = 10;
/// What is written makes its reader update windows.
const PER_WRITTEN_BYTES: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("short").to_be_bytes();
        let head = [length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        [head.to_vec(), vec![0x55; payload]].concat()
    }

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        let octets = [
            vec![b'P'; PREFACE_BYTES],
            frame(4, 0, 6),
            frame(HEADERS, 5, 300),
            frame(DATA, 0, 16_384),
            frame(DATA, 0, 0),
            frame(DATA, END_STREAM, 0),
            frame(6, 0, 8),
            frame(8, 0, 4),
        ]
        .concat();
        for size in [1, 2, 8, 9, 10, 24, 333, octets.len()] {
            let mut frames = Frames::new();
            let mut sum = Brought::default();
            for part in octets.chunks(size) {
                let brought = frames.pass(part);
                sum.requests += brought.requests;
                sum.idle += brought.idle;
            }
            assert_eq!(sum, Brought { requests: 1, idle: 4 }, "in parts of {size}");
        }
    }

    #[test]
    fn what_carries_nothing_must_be_earned() {
        let mut calm = Calm::new((), Monotonic::start());
        calm.count(&[b'P'; PREFACE_BYTES]).expect("the preface");
        let (ping, request) = (frame(6, 0, 8), frame(HEADERS, 5, 10));
        for _ in 0..SAVED_MAX {
            calm.count(&[request.as_slice(), &ping, &ping].concat()).expect("earned");
        }
        let flood = (0..10 * SAVED_MAX).take_while(|_| calm.count(&ping).is_ok()).count();
        assert!(flood >= SAVED_MAX as usize, "{flood}: a burst passes");
        assert!(flood < 5 * SAVED_MAX as usize, "{flood}: and ends");
    }
}
