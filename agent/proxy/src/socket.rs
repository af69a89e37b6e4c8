//! Sockets: how listeners are bound, how streams are tuned, and reads that are wide.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hawser_core::address::Address;
use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::inherit::Socket;
use crate::limits::Limits;
use crate::unix;

/// Makes ready one worker's sockets at `address`: those that it inherited, or else one that it
/// binds. Beside each stands a second handle to it, for another process to take up.
///
/// # Errors
/// What the system says: the address is taken, or not this host's.
pub(crate) fn listen(
    address: SocketAddr,
    inherited: Vec<std::net::TcpListener>,
) -> io::Result<Vec<(Listen, Socket)>> {
    let sockets = if inherited.is_empty() { vec![bind(address)?] } else { inherited };
    let ready = |socket: std::net::TcpListener| {
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket.try_clone()?)?;
        Ok((Listen::Tcp(listener), Socket::Tcp(socket)))
    };
    sockets.into_iter().map(ready).collect()
}

/// Makes ready one worker's handle to a Unix socket, and another for another process to take up.
///
/// # Errors
/// What the system says.
pub(crate) fn listen_unix(listener: UnixListener) -> io::Result<Vec<(Listen, Socket)>> {
    listener.set_nonblocking(true)?;
    let lent = Socket::Unix(listener.try_clone()?);
    Ok(vec![(Listen::Unix(tokio::net::UnixListener::from_std(listener)?), lent)])
}

/// One worker's listening socket.
pub(crate) enum Listen {
    Tcp(TcpListener),
    Unix(tokio::net::UnixListener),
}

impl Listen {
    /// The next connection.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn accept(&self) -> io::Result<TcpStream> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(socket, _)| socket),
            Self::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                unix::carried(socket.into_std()?)
            }
        }
    }
}

/// Binds one worker's socket for datagrams at `address`: the kernel spreads them by who sends them.
///
/// # Errors
/// What the system says: the address is taken, or not this host's.
pub(crate) fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket =
        socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    // An agent that takes over binds beside the one that it takes over from.
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Binds an address that all workers share: the kernel spreads the connections.
fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket =
        socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Connects within `within`.
///
/// # Errors
/// What the system says, or [`io::ErrorKind::TimedOut`].
pub(crate) async fn connect(address: SocketAddr, within: Duration) -> io::Result<TcpStream> {
    match tokio::time::timeout(within, TcpStream::connect(address)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Connects to an application on this host within `within`, and tunes the connection.
///
/// # Errors
/// As [`connect`].
pub(crate) async fn call(application: &Address, within: Duration) -> io::Result<TcpStream> {
    match application {
        Address::Tcp(address) => {
            let stream = connect(*address, within).await?;
            tune(&stream);
            Ok(stream)
        }
        // What there is to tune is TCP's.
        Address::Unix(path) => unix::connect(path, within).await,
    }
}

/// Sets what every stream wants. A socket that refuses an option still works.
pub(crate) fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = SockRef::from(stream);
    let alive = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    let _ = socket.set_tcp_keepalive(&alive);
    // There is no network to be fair to on loopback, and the pacing of BBR costs a fifth of bulk.
    if stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
        let _ = socket.set_tcp_congestion(b"reno");
    }
}

/// Buffers that one worker's connections borrow while they move bytes, and only then.
#[derive(Debug, Default)]
pub(crate) struct Buffers(Mutex<Vec<Box<[u8]>>>);

impl Buffers {
    /// Lends a buffer of [`BUFFER_BYTES`]. Give it back with [`Buffers::give`].
    pub(crate) fn lend(&self) -> Box<[u8]> {
        // Only the worker's own thread comes here: the lock is never waited for.
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
    }

    /// Takes a buffer back.
    pub(crate) fn give(&self, buffer: Box<[u8]>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < BUFFERS_KEPT {
            spare.push(buffer);
        }
    }
}

/// A stream that reads as much as there is in one system call, however little it is asked for.
///
/// rustls asks for 4 KiB at a time, a quarter of a record.
#[derive(Debug)]
pub(crate) struct Wide {
    stream: TcpStream,
    buffers: Arc<Buffers>,
    left: Option<Left>,
}

#[derive(Debug)]
struct Left {
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Wide {
    pub(crate) fn new(stream: TcpStream, buffers: Arc<Buffers>) -> Self {
        Self { stream, buffers, left: None }
    }

    /// Gives the connection up once what was sent stays unacknowledged for too long.
    ///
    /// Only where the peer always reads, as it does where many streams share a connection. Linux
    /// gives up as early on one that acknowledges everything and has no room for more (since 5.11).
    pub(crate) fn expect_reader(&self, limits: &Limits) {
        let _ = SockRef::from(&self.stream).set_tcp_user_timeout(Some(limits.user_timeout));
    }
}

impl AsyncRead for Wide {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(left) = &mut this.left {
            let count = buf.remaining().min(left.to - left.from);
            buf.put_slice(&left.buffer[left.from..left.from + count]);
            left.from += count;
            if left.from == left.to
                && let Some(left) = this.left.take()
            {
                this.buffers.give(left.buffer);
            }
            return Poll::Ready(Ok(()));
        }
        if buf.remaining() >= BUFFER_BYTES {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let mut buffer = this.buffers.lend();
        let mut wide = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut this.stream).poll_read(cx, &mut wide);
        let to = wide.filled().len();
        let count = to.min(buf.remaining());
        buf.put_slice(&buffer[..count]);
        if count < to {
            this.left = Some(Left { buffer, from: count, to });
        } else {
            this.buffers.give(buffer);
        }
        polled
    }
}

impl AsyncWrite for Wide {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

/// A stream that fails as soon as its connection is cut.
pub(crate) struct Severable<IO> {
    io: IO,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<IO> Severable<IO> {
    pub(crate) fn new(io: IO, cut: &CancellationToken) -> Self {
        Self { io, cut: Box::pin(cut.clone().cancelled_owned()) }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Severable<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Severable<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// How much is read or written at once: four full TLS records.
pub(crate) const BUFFER_BYTES: usize = 64 * 1024;
const BUFFERS_KEPT: usize = 64;
const BACKLOG: i32 = 1_024;
const KEEPALIVE_AFTER: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(3);
const KEEPALIVE_PROBES: u32 = 3;
