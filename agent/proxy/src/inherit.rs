//! Listening sockets that outlive a process: taken over from the one before, lent to the one after.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hawser_core::address::{Address, SocketPath};

use crate::Kind;
use crate::unix;

/// Listening sockets of the process before this one. Listeners at their addresses take them up
/// instead of binding anew, with the connections that wait in them.
#[derive(Clone, Debug, Default)]
pub struct Inherited(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    tcp: BTreeMap<SocketAddr, Vec<Option<TcpListener>>>,
    unix: BTreeMap<SocketPath, UnixListener>,
}

impl Inherited {
    /// What `sockets` can be taken up for: each for the address that it is bound to.
    pub fn new(sockets: impl IntoIterator<Item = Socket>) -> Self {
        let mut all = All::default();
        for socket in sockets {
            match (socket.address(), socket) {
                (Ok(Address::Tcp(address)), Socket::Tcp(listener)) => {
                    all.tcp.entry(address).or_default().push(Some(listener));
                }
                (Ok(Address::Unix(path)), Socket::Unix(listener)) => {
                    all.unix.insert(path, listener);
                }
                (Err(error), _) => {
                    tracing::warn!(%error, "a socket that was handed over is none");
                }
                (Ok(address), _) => {
                    tracing::warn!(%address, "a socket that was handed over is of another kind");
                }
            }
        }
        Self(Arc::new(Mutex::new(all)))
    }

    /// Whether there is anything to take up.
    pub fn is_empty(&self) -> bool {
        let all = self.lock();
        all.tcp.is_empty() && all.unix.is_empty()
    }

    /// Takes the sockets at `address` that fall to one of `workers`: all are served by somebody,
    /// however many workers there were before.
    pub(crate) fn claim(
        &self,
        address: SocketAddr,
        worker: usize,
        workers: usize,
    ) -> Vec<TcpListener> {
        let mut all = self.lock();
        let sockets = all.tcp.get_mut(&address).into_iter().flatten().enumerate();
        let own = sockets.filter(|(number, _)| number % workers == worker);
        own.filter_map(|(_, socket)| socket.take()).collect()
    }

    /// Takes the socket at `path`, while callers can still find it there.
    pub(crate) fn claim_unix(&self, path: &SocketPath) -> Option<UnixListener> {
        self.lock().unix.remove(path).filter(|_| unix::File::at(path).is_some())
    }

    /// Closes what nobody took up, and says at which addresses that was. Unix sockets among them
    /// are removed from where they stood.
    pub fn close_rest(&self) -> Vec<Address> {
        let All { tcp, unix } = std::mem::take(&mut *self.lock());
        let is_left = |sockets: &Vec<Option<TcpListener>>| sockets.iter().any(Option::is_some);
        let left = tcp.into_iter().filter(|(_, sockets)| is_left(sockets));
        let mut closed: Vec<_> = left.map(|(address, _)| Address::Tcp(address)).collect();
        for path in unix.into_keys() {
            if let Some(file) = unix::File::at(&path) {
                unix::remove(&path, file);
            }
            closed.push(path.into());
        }
        closed
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that listens.
#[derive(Debug)]
pub enum Socket {
    /// At an IP address and a port.
    Tcp(TcpListener),
    /// At a path.
    Unix(UnixListener),
}

impl Socket {
    /// Another handle to it.
    ///
    /// # Errors
    /// The system's, where descriptors have run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(socket) => socket.try_clone().map(Self::Tcp),
            Self::Unix(socket) => socket.try_clone().map(Self::Unix),
        }
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// The system's, and where that is nothing that callers could name.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(socket) => socket.local_addr().map(Address::Tcp),
            Self::Unix(socket) => {
                let bound = socket.local_addr()?;
                let path = bound.as_pathname().and_then(|path| path.to_str());
                let path = path.and_then(|path| path.parse::<SocketPath>().ok());
                path.map(Address::Unix).ok_or_else(|| io::ErrorKind::InvalidInput.into())
            }
        }
    }
}

/// A socket that listens, for another process to take up.
#[derive(Debug)]
pub struct Listening {
    /// Which way its connections go.
    pub kind: Kind,
    /// Its address.
    pub address: Address,
    /// The socket, shared with the worker that accepts from it.
    pub socket: Socket,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_socket_falls_to_exactly_one_worker() {
        for (sockets, workers) in [(1, 1), (4, 2), (2, 4), (3, 2)] {
            let first = TcpListener::bind("127.0.0.1:0").expect("bound");
            let address = first.local_addr().expect("bound");
            let clones = (1..sockets).map(|_| first.try_clone().expect("cloned"));
            let all: Vec<_> = clones.collect();
            let inherited = Inherited::new(all.into_iter().chain([first]).map(Socket::Tcp));
            let claimed = |worker| inherited.claim(address, worker, workers).len();
            let counts: Vec<_> = (0..workers).map(claimed).collect();
            assert_eq!(counts.iter().sum::<usize>(), sockets, "{sockets} to {workers}: {counts:?}");
            assert_eq!(claimed(0), 0, "once");
            assert_eq!(inherited.close_rest(), []);
        }
        let left = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = left.local_addr().expect("bound");
        let inherited = Inherited::new([Socket::Tcp(left)]);
        assert_eq!(inherited.close_rest(), [Address::Tcp(address)]);
        assert!(inherited.is_empty());
    }

    #[test]
    fn a_unix_socket_is_taken_up_once_and_only_where_it_can_be_found() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| -> SocketPath {
            folder.path().join(name).to_str().expect("printable").parse().expect("a path")
        };
        let (kept, lost, unused) = (path("kept"), path("lost"), path("unused"));
        let bind = |path: &SocketPath| Socket::Unix(unix::bind(path, 0o600).expect("bound"));
        let inherited = Inherited::new([bind(&kept), bind(&lost), bind(&unused)]);
        std::fs::remove_file(lost.as_str()).expect("it was there");
        assert!(inherited.claim_unix(&kept).is_some());
        assert!(inherited.claim_unix(&kept).is_none(), "once");
        assert!(inherited.claim_unix(&lost).is_none(), "nobody could call it");
        assert_eq!(inherited.close_rest(), [Address::Unix(unused.clone())]);
        assert_eq!(unix::File::at(&unused), None, "it went with its listener");
    }
}
