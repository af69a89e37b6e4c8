//! Listening sockets that outlive a process: taken over from the one before, lent to the one after.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Kind;

/// Listening sockets of the process before this one. Listeners at their addresses take them up
/// instead of binding anew, with the connections that wait in them.
#[derive(Clone, Debug, Default)]
pub struct Inherited(Arc<Mutex<BTreeMap<SocketAddr, Vec<Option<TcpListener>>>>>);

impl Inherited {
    /// What `listeners` can be taken up for: each for the address that it is bound to.
    pub fn new(listeners: impl IntoIterator<Item = TcpListener>) -> Self {
        let mut all: BTreeMap<SocketAddr, Vec<Option<TcpListener>>> = BTreeMap::new();
        for listener in listeners {
            match listener.local_addr() {
                Ok(address) => all.entry(address).or_default().push(Some(listener)),
                Err(error) => tracing::warn!(%error, "a socket that was handed over is none"),
            }
        }
        Self(Arc::new(Mutex::new(all)))
    }

    /// Whether there is anything to take up.
    pub fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Takes the sockets at `address` that fall to one of `workers`: all are served by somebody,
    /// however many workers there were before.
    pub(crate) fn claim(
        &self,
        address: SocketAddr,
        worker: usize,
        workers: usize,
    ) -> Vec<TcpListener> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sockets = all.get_mut(&address).into_iter().flatten().enumerate();
        let own = sockets.filter(|(number, _)| number % workers == worker);
        own.filter_map(|(_, socket)| socket.take()).collect()
    }

    /// Closes what nobody took up, and says at which addresses that was.
    pub fn close_rest(&self) -> Vec<SocketAddr> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let is_left = |sockets: &Vec<Option<TcpListener>>| sockets.iter().any(Option::is_some);
        all.into_iter()
            .filter(|(_, sockets)| is_left(sockets))
            .map(|(address, _)| address)
            .collect()
    }
}

/// A socket that listens, for another process to take up.
#[derive(Debug)]
pub struct Listening {
    /// Which way its connections go.
    pub kind: Kind,
    /// Its address.
    pub address: SocketAddr,
    /// The socket, shared with the worker that accepts from it.
    pub socket: TcpListener,
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
            let inherited = Inherited::new(all.into_iter().chain([first]));
            let claimed = |worker| inherited.claim(address, worker, workers).len();
            let counts: Vec<_> = (0..workers).map(claimed).collect();
            assert_eq!(counts.iter().sum::<usize>(), sockets, "{sockets} to {workers}: {counts:?}");
            assert_eq!(claimed(0), 0, "once");
            assert_eq!(inherited.close_rest(), []);
        }
        let left = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = left.local_addr().expect("bound");
        let inherited = Inherited::new([left]);
        assert_eq!(inherited.close_rest(), [address]);
        assert!(inherited.is_empty());
    }
}
