//! Hand-over: a new process takes the listening sockets of the running one, which then gives way.
//!
//! The running agent waits at a Unix socket in its folder. A successor asks there and is sent every
//! listening socket and the lock of the folder as descriptors (SCM_RIGHTS). It reads the disk,
//! serves from the same sockets beside its predecessor, and says that it is ready; the predecessor
//! then stops speaking for the node, says so, and ends with its last connection. A successor that
//! dies before it is ready leaves everything as it was.

mod channel;
mod give;
mod take;

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use hawser_proxy::{Inherited, Kind, Listening, Socket};
use serde::{Deserialize, Serialize};

pub(crate) use give::{Asker, Offer, Successor};
pub(crate) use take::{Taken, ready, take};

/// Why a running agent is not replaced.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The other process went away, or the system refused.
    #[error("the other process: {0}")]
    Io(#[from] io::Error),
    /// It says something else than is its turn to say.
    #[error("the other process said something unexpected")]
    Unexpected,
    /// It runs as another user.
    #[error("the other process runs as user {0}")]
    Stranger(u32),
    /// This process is in the middle of what it was asked for.
    #[error("this agent has not done yet what its API was asked for")]
    Busy,
    /// It will not be replaced.
    #[error("the running agent refuses: {0}")]
    Refused(String),
}

/// Listening sockets from elsewhere: an agent that gives way, or the service manager.
#[derive(Debug, Default)]
pub struct Sockets {
    pub(crate) lock: Option<File>,
    pub(crate) outbound: Vec<TcpListener>,
    /// Those of [`Self::outbound`] that are Unix sockets.
    pub(crate) outbound_unix: Vec<UnixListener>,
    pub(crate) inbound: Vec<TcpListener>,
    pub(crate) http: Vec<TcpListener>,
    pub(crate) http_unix: Option<UnixListener>,
    pub(crate) dns_udp: Vec<UdpSocket>,
    pub(crate) dns_tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Takes a socket by the name that [`Sockets::named`] gave it; closes one of another name.
    pub fn take(&mut self, name: &str, socket: OwnedFd) {
        let kind = name.split('_').next().unwrap_or_default();
        match kind {
            LOCK => self.lock = Some(socket.into()),
            OUTBOUND => self.outbound.push(socket.into()),
            OUTBOUND_UNIX => self.outbound_unix.push(socket.into()),
            INBOUND => self.inbound.push(socket.into()),
            HTTP => self.http.push(socket.into()),
            HTTP_UNIX => self.http_unix = Some(socket.into()),
            DNS_UDP => self.dns_udp.push(socket.into()),
            DNS_TCP => self.dns_tcp.push(socket.into()),
            _ => tracing::warn!(name, "a socket was handed over under an unknown name"),
        }
    }

    /// Every socket with a name that says what it is for, and with its address: fit for
    /// systemd's `FDNAME=`. Those of one name serve one address.
    pub fn named(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut all = Vec::new();
        all.extend(self.lock.iter().map(|lock| (LOCK.to_owned(), lock.as_fd())));
        let tcp = [
            (OUTBOUND, &self.outbound),
            (INBOUND, &self.inbound),
            (HTTP, &self.http),
            (DNS_TCP, &self.dns_tcp),
        ];
        for (kind, sockets) in tcp {
            all.extend(sockets.iter().filter_map(|socket| {
                Some((name(kind, socket.local_addr().ok()?), socket.as_fd()))
            }));
        }
        all.extend(self.outbound_unix.iter().filter_map(|socket| {
            let bound = socket.local_addr().ok()?;
            let path = bound.as_pathname()?.to_str()?.to_owned();
            Some((name_unix(&path), socket.as_fd()))
        }));
        all.extend(
            self.dns_udp.iter().filter_map(|socket| {
                Some((name(DNS_UDP, socket.local_addr().ok()?), socket.as_fd()))
            }),
        );
        let unix = self.http_unix.iter();
        all.extend(unix.map(|socket| (HTTP_UNIX.to_owned(), socket.as_fd())));
        all
    }

    /// Whether other hosts call the socket of this name: while a host is out of the catalog, those
    /// must find it closed.
    pub fn is_called_by_others(name: &str) -> bool {
        name.starts_with(INBOUND)
    }

    /// Adds the sockets of the proxy.
    pub(crate) fn add(&mut self, listening: Vec<Listening>) {
        for Listening { kind, socket, .. } in listening {
            match (kind, socket) {
                (Kind::Outbound, Socket::Tcp(socket)) => self.outbound.push(socket),
                (Kind::Inbound | Kind::Gateway, Socket::Tcp(socket)) => self.inbound.push(socket),
                // Other hosts call no socket of this kind.
                (_, Socket::Unix(socket)) => self.outbound_unix.push(socket),
            }
        }
    }

    /// The sockets of the proxy, to be taken up by its listeners.
    pub(crate) fn claim_proxy(&mut self) -> Inherited {
        let tcp = self.outbound.drain(..).chain(self.inbound.drain(..)).map(Socket::Tcp);
        Inherited::new(tcp.chain(self.outbound_unix.drain(..).map(Socket::Unix)))
    }

    /// The listener of the HTTP API at `address`; port 0 stands for whichever it was.
    pub(crate) fn claim_http(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let is_it = |held: &TcpListener| held.local_addr().is_ok_and(|at| stands_for(address, at));
        let found = self.http.iter().position(is_it)?;
        Some(self.http.swap_remove(found))
    }

    /// The listener of the HTTP API at `path`.
    pub(crate) fn claim_http_unix(&mut self, path: &Path) -> Option<UnixListener> {
        let is_it = |held: &mut UnixListener| {
            held.local_addr().is_ok_and(|at| at.as_pathname() == Some(path))
        };
        self.http_unix.take_if(is_it)
    }

    /// The sockets of DNS at `address`; port 0 stands for whichever it was.
    pub(crate) fn claim_dns(&mut self, address: SocketAddr) -> Option<hawser_dns::Sockets> {
        let is_here = |at: io::Result<SocketAddr>| at.is_ok_and(|at| stands_for(address, at));
        let (udp, tcp) = (std::mem::take(&mut self.dns_udp), std::mem::take(&mut self.dns_tcp));
        let udp: Vec<_> = udp.into_iter().filter(|it| is_here(it.local_addr())).collect();
        let tcp: Vec<_> = tcp.into_iter().filter(|it| is_here(it.local_addr())).collect();
        let is_whole = !udp.is_empty() && !tcp.is_empty();
        is_whole.then(|| hawser_dns::Sockets { udp, tcp, is_shared: std::sync::Arc::default() })
    }
}

/// What the two processes say to each other, one message each.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// The successor wants the sockets.
    Ask { version: u32 },
    /// Some of them, by name, in the order of the descriptors beside.
    Sockets { names: Vec<String>, more: bool },
    /// The predecessor will not be replaced.
    Refused { why: String },
    /// The successor serves.
    Ready,
    /// The predecessor speaks for the node no more.
    Leaving,
}

/// The name of a socket at `address`; colons are not allowed in systemd's.
fn name(kind: &str, address: SocketAddr) -> String {
    format!("{kind}_{}", address.to_string().replace(':', "-"))
}

/// The name of the socket at `path`, of the characters that systemd allows in one.
fn name_unix(path: &str) -> String {
    let written = path.chars().map(|character| match character {
        '!'..='~' if !matches!(character, ':' | '%') => character.to_string(),
        other => format!("%{:x}.", u32::from(other)),
    });
    let name = format!("{OUTBOUND_UNIX}_{}", written.collect::<String>());
    name.chars().take(NAME_CHARACTERS_MAX).collect()
}

/// Whether a socket at `held` is what `wanted` asks for.
fn stands_for(wanted: SocketAddr, held: SocketAddr) -> bool {
    wanted.ip() == held.ip() && (wanted.port() == 0 || wanted.port() == held.port())
}

/// The most that systemd takes.
const NAME_CHARACTERS_MAX: usize = 255;
const SOCKET: &str = "hand-over.sock";
const VERSION: u32 = 1;
const LOCK: &str = "lock";
/// Those of the proxy that applications here call.
const OUTBOUND: &str = "outbound";
const OUTBOUND_UNIX: &str = "outbound-unix";
/// Those that other hosts call.
const INBOUND: &str = "inbound";
const HTTP: &str = "http";
const HTTP_UNIX: &str = "http-unix";
const DNS_UDP: &str = "dns-udp";
const DNS_TCP: &str = "dns-tcp";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_does_not_speak_beside_a_predecessor_that_went_back() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ended = || {
            let (mine, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
            // It can be told something, and says nothing.
            theirs.shutdown(std::net::Shutdown::Write).expect("shut");
            (mine, theirs)
        };
        let waiting = channel::listen(folder.path(), SOCKET).expect("bound");
        let (connection, _other) = ended();
        assert!(ready(&connection, folder.path()).is_err(), "it waits for another: it goes on");
        drop(waiting);
        let (connection, _other) = ended();
        ready(&connection, folder.path()).expect("it is gone");
    }

    #[test]
    fn sockets_are_known_again_by_their_names() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let dns = hawser_dns::bind(any, 2).expect("bound");
        let mut given = Sockets { dns_udp: dns.udp, dns_tcp: dns.tcp, ..Sockets::default() };
        given.http.push(TcpListener::bind(any).expect("bound"));
        given.outbound.push(TcpListener::bind(any).expect("bound"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a:b é.sock");
        given.outbound_unix.push(UnixListener::bind(&path).expect("bound"));
        let names: Vec<_> = given.named().into_iter().map(|(name, _)| name).collect();
        let is_allowed = |name: &String| !name.contains(':') && name.is_ascii() && name.len() < 256;
        assert!(names.iter().all(is_allowed), "{names:?}");
        assert!(!names.iter().any(|name| Sockets::is_called_by_others(name)), "{names:?}");
        let mut taken = Sockets::default();
        for (name, socket) in given.named() {
            taken.take(&name, socket.try_clone_to_owned().expect("a second handle"));
        }
        taken.take("other_127.0.0.1-1", given.http[0].try_clone().expect("cloned").into());
        let http = given.http[0].local_addr().expect("bound");
        let elsewhere = SocketAddr::new(http.ip(), http.port().wrapping_add(1).max(1));
        assert!(taken.claim_http(elsewhere).is_none());
        assert_eq!(taken.claim_http(http).expect("there").local_addr().expect("bound"), http);
        let bound = taken.outbound_unix[0].local_addr().expect("bound");
        assert_eq!(bound.as_pathname(), Some(path.as_path()));
        let dns = taken.claim_dns(any).expect("whole");
        assert_eq!((dns.udp.len(), dns.tcp.len(), taken.outbound.len()), (2, 1, 1));
    }
}
