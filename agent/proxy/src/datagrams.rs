//! Datagrams of UDP services: each goes as its length and its bytes where a TCP service's bytes go.
//!
//! One end of a pair of connected sockets stands in for the application's, so that what carries
//! connections carries flows of datagrams as it is. Tasks: one for each flow at its callee.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UdpSocket, UnixStream};

/// A socket for what carries connections, and its other end for what speaks datagrams.
///
/// # Errors
/// The system's, where descriptors have run out.
pub(crate) fn pair() -> io::Result<(TcpStream, UnixStream)> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    let near = std::net::TcpStream::from(OwnedFd::from(near));
    Ok((TcpStream::from_std(near)?, UnixStream::from_std(far)?))
}

/// Writes one datagram.
///
/// # Errors
/// The flow ended, or the datagram is longer than UDP can carry.
pub(crate) async fn write(to: &mut WriteHalf<'_>, datagram: &[u8]) -> io::Result<()> {
    let length = u16::try_from(datagram.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Together, so that they leave as one.
    let mut framed = Vec::with_capacity(LENGTH_BYTES + datagram.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(datagram);
    to.write_all(&framed).await
}

/// Reads one datagram into `buffer`, which holds [`DATAGRAM_BYTES_MAX`] of them.
///
/// # Errors
/// The flow ended.
pub(crate) async fn read<'a>(
    from: &mut ReadHalf<'_>,
    buffer: &'a mut [u8],
) -> io::Result<&'a [u8]> {
    let length = usize::from(from.read_u16().await?);
    let datagram = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
    from.read_exact(datagram).await?;
    Ok(datagram)
}

/// A flow to the application at `address`: what is written to it arrives as datagrams.
///
/// # Errors
/// The system's; whether anybody listens there is not known before something is sent.
pub(crate) async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let own: SocketAddr = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(address).await?;
    let (near, mut far) = pair()?;
    tokio::task::spawn_local(async move {
        let (mut from, mut to) = far.split();
        tokio::select! {
            _ = give(&mut from, &socket) => {}
            _ = take(&mut to, &socket) => {}
        }
    });
    Ok(near)
}

async fn give(from: &mut ReadHalf<'_>, socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let datagram = read(from, &mut buffer).await?;
        // Nobody listens at this moment, or there is no room: as it is with datagrams.
        let _ = socket.send(datagram).await;
    }
}

async fn take(to: &mut WriteHalf<'_>, socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // An error tells of one that was sent before and reached nobody.
        let Ok(length) = socket.recv(&mut buffer).await else { continue };
        write(to, &buffer[..length]).await?;
    }
}

const LENGTH_BYTES: usize = 2;
/// The longest that UDP carries over IPv4 is a little less.
pub(crate) const DATAGRAM_BYTES_MAX: usize = u16::MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn datagrams_keep_their_bounds() {
        let (near, mut far) = pair().expect("descriptors");
        let (mut from_near, mut to_near) = near.into_split();
        let copying =
            tokio::spawn(async move { tokio::io::copy(&mut from_near, &mut to_near).await });
        let (mut from, mut to) = far.split();
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        for length in [0, 1, 1_200, 65_507, DATAGRAM_BYTES_MAX, 3] {
            let sent: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let reading = read(&mut from, &mut buffer);
            let (written, read) = tokio::join!(write(&mut to, &sent), reading);
            written.expect("written");
            assert_eq!(read.expect("read"), sent, "{length}");
        }
        let long = vec![0; DATAGRAM_BYTES_MAX + 1];
        assert!(write(&mut to, &long).await.is_err());
        drop(far);
        let _ = copying.await;
    }
}
