//! TCP: length-prefixed queries, one after the other (RFC 7766), on a bounded number of
//! connections.
//!
//! Tasks: one per connection. A connection answers its queries in order, so no more queries are
//! in flight than there are connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::respond::{Draws, Step, Transport};
use crate::settle::Settler;
use crate::wire::QUERY_OCTETS_MAX;

/// Accepts until drained; further connections wait in the kernel while all places are taken.
pub(crate) async fn run(
    listener: TcpListener,
    settler: Arc<Settler>,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    drain: CancellationToken,
) {
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = drain.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (settler, drain) = (settler.clone(), drain.clone());
                tasks.spawn(async move {
                    settler.responder.metrics.tcp_connections.inc();
                    tokio::select! {
                        () = drain.cancelled() => {}
                        served = serve(stream, peer, &settler) => {
                            if let Err(error) = served {
                                tracing::debug!(%peer, %error, "a DNS connection was cut");
                            }
                        }
                    }
                    settler.responder.metrics.tcp_connections.dec();
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a DNS connection could not be accepted");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Answers one connection's queries until it ends, idles or misbehaves.
async fn serve(stream: TcpStream, peer: SocketAddr, settler: &Settler) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let client = settler.responder.client(peer.ip(), Transport::Tcp);
    let views = settler.views();
    let mut stream = BufReader::with_capacity(QUERY_OCTETS_MAX, stream);
    let mut draws = Draws::new();
    let (mut packet, mut out) = (Vec::new(), Vec::new());
    loop {
        // The time is for the whole query: one octet a second is as idle as none.
        match timeout(IDLE, query(&mut stream, &mut packet)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) | Err(_) => return Ok(()),
            Ok(Err(error)) => return Err(error),
        }
        let view = views.borrow().clone();
        let draw = draws.next();
        let mut step = settler.responder.respond(&packet, client, &view, draw, &mut out);
        if matches!(step, Step::Want(_) | Step::Query(_) | Step::Recurse) {
            step = match settler.admit(&step) {
                Some(_place) => settler.settle(&packet, client, step, draw, &mut out).await,
                None => settler.responder.give_up(&packet, &mut out),
            };
        }
        if step == Step::Silence {
            return Ok(());
        }
        let length = u16::try_from(out.len()).map_err(io::Error::other)?;
        out.splice(..0, length.to_be_bytes());
        timeout(IDLE, stream.get_mut().write_all(&out)).await??;
    }
}

/// Reads one query; false at the end of the stream or when its length is no query's.
async fn query(stream: &mut BufReader<TcpStream>, packet: &mut Vec<u8>) -> io::Result<bool> {
    let length = match stream.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    };
    if length > QUERY_OCTETS_MAX {
        return Ok(false);
    }
    packet.resize(length, 0);
    stream.read_exact(packet).await?;
    Ok(true)
}

/// Connections at once.
pub(crate) const CONNECTIONS_MAX: usize = 100;
/// How long a connection may take to send a query, or to take a reply.
const IDLE: Duration = Duration::from_secs(10);
const ERROR_PAUSE: Duration = Duration::from_millis(50);
