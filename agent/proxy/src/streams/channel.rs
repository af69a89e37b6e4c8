//! A channel: a stream that is read and written like a connection of its own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hawser_core::reason::Reason;
use hawser_mux::HEADER_BYTES;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::slot::Broken;
use super::stream::Stream;

/// One end of one stream, as bytes. Dropped before both directions are over, it is given up.
pub(crate) struct Channel(Stream);

impl Channel {
    pub(crate) fn new(stream: Stream) -> Self {
        Self(stream)
    }

    /// # Errors
    /// What broke the stream.
    fn check(&self) -> io::Result<()> {
        match self.0.slot.broken.get() {
            None => Ok(()),
            Some(Broken::Session(reason)) => Err(io::Error::other(Lost(reason))),
            Some(Broken::Peer(_) | Broken::Socket) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    fn finish(&self) {
        if !self.0.slot.has_taken_all.replace(true) {
            self.0.session.machine.borrow_mut().finish(self.0.id);
            self.0.session.wake();
        }
    }
}

impl AsyncRead for Channel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Stream { session, id, slot, .. } = &self.0;
        slot.wait(cx);
        let mut inbox = slot.inbox.borrow_mut();
        if inbox.is_empty() {
            self.check()?;
            return if slot.has_ended.get() { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let (bytes, _) = inbox.as_slices();
        let count = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..count]);
        inbox.drain(..count);
        if inbox.is_empty() && inbox.capacity() > KEPT_BYTES {
            *inbox = Default::default();
        }
        let mut machine = session.machine.borrow_mut();
        machine.consumed(*id, count);
        if machine.has_news() {
            session.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Channel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let Stream { session, id, slot, .. } = &self.0;
        if slot.has_taken_all.get() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let (mut machine, mut batch) = (session.machine.borrow_mut(), session.batch.borrow_mut());
        // What is said goes before what is sent: that there is a stream, before its bytes.
        batch.say(&mut machine);
        let has_said_all = !machine.has_news();
        let credit = machine.room(*id);
        if has_said_all && credit == 0 {
            session.leave_queue(slot);
            batch.release();
            slot.wait_to_write(cx);
            return Poll::Pending;
        }
        let least = bytes.len().min(credit) + HEADER_BYTES;
        let Some(room) = batch.room(least).filter(|_| has_said_all) else {
            slot.wait_to_write(cx);
            session.queue(slot);
            return Poll::Pending;
        };
        let (header, room) = room.split_at_mut(HEADER_BYTES);
        let count = bytes.len().min(credit).min(room.len()).min(session.leave_queue(slot));
        if count == 0 {
            return Poll::Ready(Ok(0));
        }
        let made = machine.data(*id, count).ok_or(io::ErrorKind::InvalidInput)?;
        header.copy_from_slice(&made);
        room[..count].copy_from_slice(&bytes[..count]);
        batch.filled(HEADER_BYTES + count);
        slot.taken.set(slot.taken.get() + count as u64);
        session.wake();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The session's driver sends what is in the batch at the end of this turn.
        Poll::Ready(self.check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let slot = &self.0.slot;
        if slot.has_ended.get() && slot.has_taken_all.get() {
            self.0.is_over.set(true);
        }
    }
}

/// The connection that carried a stream ended.
#[derive(Debug, thiserror::Error)]
#[error("the connection ended: {0}")]
struct Lost(Reason);

/// Why a channel broke.
pub(crate) fn reason(error: &io::Error) -> Reason {
    let lost = error.get_ref().and_then(|inner| inner.downcast_ref::<Lost>());
    match lost {
        // The handshake was over: it is the connection that failed.
        None | Some(Lost(Reason::Ok | Reason::HandshakeFailed | Reason::HandshakeTimeout)) => {
            Reason::UpstreamReset
        }
        Some(Lost(reason)) => *reason,
    }
}

/// An inbox that is empty keeps no more room than this.
const KEPT_BYTES: usize = 2 * 1024;
