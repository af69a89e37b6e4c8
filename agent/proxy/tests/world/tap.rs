//! A tap: what stands on the way to a proxy, counts connections, and can break them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::listener;

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
    /// Passes on to `proxy` what comes to the address beside it.
    pub(crate) async fn before(proxy: SocketAddr) -> (Self, SocketAddr) {
        let (listener, address) = listener().await;
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
                    let Ok(mut callee) = TcpStream::connect(proxy).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut caller, &mut callee) => {}
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
