//! The relay: bytes both ways between two streams, each direction closed on its own.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hawser_core::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::socket::Buffers;

/// What a relay moved and how it ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Moved {
    /// Bytes from downstream to upstream.
    pub(crate) sent: u64,
    /// Bytes from upstream to downstream.
    pub(crate) received: u64,
}

/// Relays until both directions are closed.
///
/// `moved` counts as it goes, so that a relay that is cut still knows what it moved. A buffer is
/// borrowed only while it holds bytes: an idle connection has none. Nothing is read that cannot
/// be written, so a slow reader slows its writer.
///
/// # Errors
/// [`Reason::DownstreamReset`] or [`Reason::UpstreamReset`] by whose stream broke, and
/// [`Reason::IdleTimeout`] when nothing moved for `idle`.
pub(crate) async fn relay<D, U>(
    downstream: &mut D,
    upstream: &mut U,
    buffers: &Arc<Buffers>,
    idle: Duration,
    moved: &mut Moved,
) -> Result<(), Reason>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Half::new(buffers), Half::new(buffers));
    let mut timer = std::pin::pin!(tokio::time::sleep(idle));
    let mut seen = Moved::default();
    poll_fn(|cx| {
        let sent = there.poll(cx, downstream, upstream, &mut moved.sent);
        let received = back.poll(cx, upstream, downstream, &mut moved.received);
        for (polled, read, written) in [
            (&sent, Reason::DownstreamReset, Reason::UpstreamReset),
            (&received, Reason::UpstreamReset, Reason::DownstreamReset),
        ] {
            if let Poll::Ready(Err(broken)) = polled {
                let reason = if matches!(broken, Broken::Read) { read } else { written };
                return Poll::Ready(Err(reason));
            }
        }
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(Ok(()));
        }
        while timer.as_mut().poll(cx).is_ready() {
            if seen == *moved {
                return Poll::Ready(Err(Reason::IdleTimeout));
            }
            seen = *moved;
            timer.as_mut().reset(Instant::now() + idle);
        }
        Poll::Pending
    })
    .await
}

/// Which side of one direction broke.
enum Broken {
    Read,
    Write,
}

/// One direction.
struct Half {
    buffers: Arc<Buffers>,
    held: Option<Box<[u8]>>,
    from: usize,
    to: usize,
    state: State,
    must_flush: bool,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum State {
    Open,
    Ended,
    Closed,
}

impl Half {
    fn new(buffers: &Arc<Buffers>) -> Self {
        Self {
            buffers: buffers.clone(),
            held: None,
            from: 0,
            to: 0,
            state: State::Open,
            must_flush: false,
        }
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        read: &mut R,
        write: &mut W,
        count: &mut u64,
    ) -> Poll<Result<(), Broken>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            if let Some(held) = &self.held {
                let bytes = &held[self.from..self.to];
                let written = ready!(Pin::new(&mut *write).poll_write(cx, bytes));
                let written = written.map_err(|_| Broken::Write)?;
                if written == 0 {
                    return Poll::Ready(Err(Broken::Write));
                }
                *count += written as u64;
                self.from += written;
                self.must_flush = true;
                if self.from == self.to
                    && let Some(held) = self.held.take()
                {
                    self.buffers.give(held);
                }
                continue;
            }
            match self.state {
                State::Closed => return Poll::Ready(Ok(())),
                State::Ended => {
                    // Whoever is closed already has nothing left to close.
                    match ready!(Pin::new(&mut *write).poll_shutdown(cx)) {
                        Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                            return Poll::Ready(Err(Broken::Write));
                        }
                        _ => self.state = State::Closed,
                    }
                }
                State::Open => {
                    let mut buffer = self.buffers.lend();
                    let mut room = ReadBuf::new(&mut buffer);
                    let polled = Pin::new(&mut *read).poll_read(cx, &mut room);
                    let filled = room.filled().len();
                    match polled {
                        Poll::Ready(Ok(())) if filled > 0 => {
                            (self.held, self.from, self.to) = (Some(buffer), 0, filled);
                        }
                        Poll::Ready(Ok(())) => {
                            self.buffers.give(buffer);
                            self.state = State::Ended;
                        }
                        Poll::Ready(Err(_)) => {
                            self.buffers.give(buffer);
                            return Poll::Ready(Err(Broken::Read));
                        }
                        Poll::Pending => {
                            self.buffers.give(buffer);
                            if self.must_flush {
                                ready!(Pin::new(&mut *write).poll_flush(cx))
                                    .map_err(|_| Broken::Write)?;
                                self.must_flush = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn each_direction_closes_on_its_own() {
        let (mut app, mut downstream) = duplex(1024);
        let (mut upstream, mut server) = duplex(1024);
        let buffers = Arc::new(Buffers::default());
        let relaying = tokio::spawn(async move {
            let mut moved = Moved::default();
            let idle = Duration::from_secs(60);
            let ended = relay(&mut downstream, &mut upstream, &buffers, idle, &mut moved).await;
            (ended, moved)
        });
        app.write_all(b"question").await.expect("open");
        app.shutdown().await.expect("open");
        let mut question = String::new();
        server.read_to_string(&mut question).await.expect("it ends");
        assert_eq!(question, "question");
        server.write_all(b"a long answer").await.expect("still open this way");
        drop(server);
        let mut answer = String::new();
        app.read_to_string(&mut answer).await.expect("it ends");
        assert_eq!(answer, "a long answer");
        let (ended, moved) = relaying.await.expect("no panic");
        assert_eq!((ended, moved), (Ok(()), Moved { sent: 8, received: 13 }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_given_up() {
        let (_app, mut downstream) = duplex(16);
        let (mut upstream, _server) = duplex(16);
        let buffers = Arc::new(Buffers::default());
        let mut moved = Moved::default();
        let idle = Duration::from_secs(60);
        let ended = relay(&mut downstream, &mut upstream, &buffers, idle, &mut moved).await;
        assert_eq!(ended, Err(Reason::IdleTimeout));
    }
}
