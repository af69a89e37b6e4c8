//! A tap: what stands on the way to a proxy, counts connections, and can break them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

/// What befalls the connections that are open.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Fate {
    Passes,
    IsCut,
    IsSilent,
}

pub(crate) struct Tap {
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    fate: watch::Sender<Fate>,
}

impl Tap {
    /// Passes on to `proxy` what comes to the address beside it; no faster than `rate`, in bytes
    /// each millisecond, and with little on its way where there is one.
    pub(crate) async fn before(proxy: SocketAddr, rate: Option<usize>) -> (Self, SocketAddr) {
        let socket = TcpSocket::new_v4().expect("a socket");
        if rate.is_some() {
            narrow(&socket).expect("taken");
        }
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
        let listener = socket.listen(1_024).expect("bound");
        let address = listener.local_addr().expect("bound");
        let tap = Self {
            accepted: Arc::default(),
            open: Arc::default(),
            fate: watch::channel(Fate::Passes).0,
        };
        let (accepted, open, fate) = (tap.accepted.clone(), tap.open.clone(), tap.fate.clone());
        tokio::spawn(async move {
            while let Ok((mut caller, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                open.fetch_add(1, Ordering::Relaxed);
                let (open, mut fate) = (open.clone(), fate.subscribe());
                // What befalls others later than this one is not for it.
                fate.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut callee) = connect(proxy, rate).await else { return };
                    tokio::select! {
                        () = pass(&mut caller, &mut callee, rate) => {}
                        _ = fate.changed() => {
                            if *fate.borrow() == Fate::IsSilent {
                                let _ = fate.changed().await;
                            }
                        }
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        (tap, address)
    }

    /// How many connections there were.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// How many there are.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Ends those that are open; new ones pass.
    pub(crate) fn cut(&self) {
        self.fate.send_replace(Fate::IsCut);
    }

    /// Passes on nothing more of those that are open, without a word; new ones pass.
    pub(crate) fn silence(&self) {
        self.fate.send_replace(Fate::IsSilent);
    }
}

async fn connect(proxy: SocketAddr, rate: Option<usize>) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if rate.is_some() {
        narrow(&socket)?;
    }
    socket.connect(proxy).await
}

/// Lets little be on its way to a socket, as on a network: what its peer holds for it follows from
/// that, and from the size of packets.
fn narrow(socket: &TcpSocket) -> std::io::Result<()> {
    socket.set_recv_buffer_size(ON_ITS_WAY)?;
    socket2::SockRef::from(socket).set_tcp_mss(PACKET)
}

async fn pass(caller: &mut TcpStream, callee: &mut TcpStream, rate: Option<usize>) {
    let Some(rate) = rate else {
        let _ = tokio::io::copy_bidirectional(caller, callee).await;
        return;
    };
    let ((from_caller, to_caller), (from_callee, to_callee)) = (caller.split(), callee.split());
    let _ =
        tokio::join!(trickle(from_caller, to_callee, rate), trickle(from_callee, to_caller, rate));
}

async fn trickle(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    rate: usize,
) -> std::io::Result<()> {
    let mut bytes = vec![0; rate];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..count]).await?;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What a receiver takes before it is read, in bytes.
const ON_ITS_WAY: u32 = 64 * 1024;
/// What a packet on Ethernet carries, in bytes.
const PACKET: u32 = 1_460;
