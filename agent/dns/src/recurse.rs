//! Names that are not ours: asks the configured recursors in order and believes little.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::wire::{self, Query, Rcode};

/// The reply of the first recursor that has one; none when all fail.
///
/// Each gets [`RECURSOR_TIMEOUT`] over UDP and, when its reply was cut, the same over TCP. A
/// reply counts only from the recursor's address, to a socket and with an id drawn for this query,
/// and with the question repeated octet for octet.
pub(crate) async fn ask(recursors: &[SocketAddr], query: &Query<'_>) -> Option<Vec<u8>> {
    for recursor in recursors {
        let id = rand::random();
        let mut packet = Vec::new();
        wire::forwarded(&mut packet, query, id);
        let over_udp = timeout(RECURSOR_TIMEOUT, udp(*recursor, &packet, id, query.question));
        let reply = match over_udp.await {
            Ok(Ok(reply)) if wire::is_cut(&reply) => {
                let over_tcp =
                    timeout(RECURSOR_TIMEOUT, tcp(*recursor, &packet, id, query.question));
                // A cut reply still beats none: the client is told that it is cut.
                over_tcp.await.ok().and_then(Result::ok).or(Some(reply))
            }
            Ok(Ok(reply)) => Some(reply),
            Ok(Err(error)) => {
                tracing::debug!(%recursor, %error, "a recursor could not be asked");
                None
            }
            Err(_) => {
                tracing::debug!(%recursor, "a recursor did not answer in time");
                None
            }
        };
        let is_final = |reply: &Vec<u8>| {
            [Rcode::NoError as u16, Rcode::NxDomain as u16].contains(&wire::rcode_of(reply))
        };
        if let Some(reply) = reply.filter(is_final) {
            return Some(reply);
        }
    }
    None
}

async fn udp(to: SocketAddr, packet: &[u8], id: u16, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Port 0: the kernel draws the port. Connected: only the recursor's replies are received.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(to).await?;
    socket.send(packet).await?;
    let mut reply = vec![0; REPLY_OCTETS_MAX];
    loop {
        let length = socket.recv(&mut reply).await?;
        if wire::answers(&reply[..length], id, question) {
            reply.truncate(length);
            return Ok(reply);
        }
    }
}

async fn tcp(to: SocketAddr, packet: &[u8], id: u16, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), packet].concat()).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; length.into()];
    stream.read_exact(&mut reply).await?;
    if wire::answers(&reply, id, question) {
        Ok(reply)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the reply answers another question"))
    }
}

/// Consul's `recursor_timeout`.
const RECURSOR_TIMEOUT: Duration = Duration::from_secs(2);
/// More than any recursor sends to a client that announces 1,232 octets.
const REPLY_OCTETS_MAX: usize = 4_096;
