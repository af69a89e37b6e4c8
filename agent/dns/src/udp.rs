//! UDP: each worker is a thread with a socket of its own that blocks in `recvfrom`.
//!
//! An answer from the view costs two system calls and no hand-over between threads. Tasks: one
//! per query that must wait, bounded by [`Settler::admit`].

use std::io;
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hawser_core::view::View;
use rustix::net::SendFlags;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::respond::{Draws, Step, Transport};
use crate::settle::Settler;
use crate::wire::QUERY_OCTETS_MAX;

/// One thread's socket and all it needs.
pub(crate) struct Worker {
    pub(crate) socket: Arc<UdpSocket>,
    pub(crate) settler: Arc<Settler>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: Arc<AtomicBool>,
}

impl Worker {
    /// Serves until stopped. Blocks the thread.
    pub(crate) fn run(self) {
        let mut views = self.settler.views();
        let mut view = views.borrow_and_update().clone();
        let mut draws = Draws::new();
        let mut packet = [0; QUERY_OCTETS_MAX];
        let mut out = Vec::with_capacity(QUERY_OCTETS_MAX);
        while !self.stop.load(Ordering::Relaxed) {
            match self.socket.recv_from(&mut packet) {
                Ok((length, peer)) => {
                    refresh(&mut views, &mut view);
                    self.serve(&packet[..length], peer, &view, draws.next(), &mut out);
                }
                Err(error) => match error.kind() {
                    // The timeout only bounds how long a stop can go unnoticed.
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted => {}
                    _ if self.stop.load(Ordering::Relaxed) => {}
                    _ => {
                        tracing::warn!(%error, "a DNS socket could not receive");
                        std::thread::sleep(ERROR_PAUSE);
                    }
                },
            }
        }
    }

    fn serve(&self, packet: &[u8], peer: SocketAddr, view: &View, draw: u64, out: &mut Vec<u8>) {
        let responder = &self.settler.responder;
        let client = responder.client(peer.ip(), Transport::Udp);
        match responder.respond(packet, client, view, draw, out) {
            Step::Silence => {}
            Step::Reply => send(&self.socket, out, peer),
            step => {
                let Some(place) = self.settler.admit(&step) else {
                    responder.give_up(packet, out);
                    return send(&self.socket, out, peer);
                };
                let (settler, socket) = (self.settler.clone(), self.socket.clone());
                let packet = packet.to_vec();
                self.tasks.spawn_on(
                    async move {
                        let mut out = Vec::new();
                        if settler.settle(&packet, client, step, draw, &mut out).await
                            == Step::Reply
                        {
                            send(&socket, &out, peer);
                        }
                        drop(place);
                    },
                    &self.runtime,
                );
            }
        }
    }
}

/// Takes the newest view, at the price of one atomic load when there is none.
fn refresh(views: &mut watch::Receiver<Arc<View>>, view: &mut Arc<View>) {
    if views.has_changed().unwrap_or(false) {
        *view = views.borrow_and_update().clone();
    }
}

/// Sends without waiting: a reply that does not fit the socket's buffer is lost, as UDP may be.
fn send(socket: &UdpSocket, reply: &[u8], peer: SocketAddr) {
    if let Err(error) = rustix::net::sendto(socket, reply, SendFlags::DONTWAIT, &peer) {
        tracing::debug!(%peer, %error, "a DNS reply could not be sent");
    }
}

/// Stops the workers of these sockets, also when it is dropped.
pub(crate) struct Stopper {
    pub(crate) sockets: Vec<Arc<UdpSocket>>,
    pub(crate) stop: Arc<AtomicBool>,
    /// Whether other processes read from them too.
    pub(crate) is_shared: Arc<AtomicBool>,
}

impl Stopper {
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.is_shared.load(Ordering::Acquire) {
            // Shut down, they would be deaf for the others too: the time-out ends the wait.
            return;
        }
        for socket in &self.sockets {
            // Linux wakes the readers of an unconnected socket too and still reports ENOTCONN.
            let _not_connected = socket2::SockRef::from(&**socket).shutdown(Shutdown::Read);
        }
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How long a worker may block without looking whether it must stop.
pub(crate) const RECEIVE_TIMEOUT: Duration = Duration::from_secs(1);
const ERROR_PAUSE: Duration = Duration::from_millis(50);
