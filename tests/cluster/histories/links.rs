//! The links between servers, which a test cuts and heals: a relay before each server, which tells
//! who dials by whose socket it is.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::harness::Net;

/// Relays before the servers of one network. Clones share them.
#[derive(Clone)]
pub(super) struct Links(Arc<Shared>);

struct Shared {
    folder: PathBuf,
    cut: Mutex<Cut>,
    changed: Condvar,
}

#[derive(Default)]
struct Cut {
    /// Which servers are alone.
    alone: BTreeSet<u8>,
    /// The test is over.
    is_over: bool,
}

/// The two servers that a connection joins; who dials may be nobody's server.
#[derive(Clone, Copy)]
struct Pair {
    from: Option<u8>,
    to: u8,
}

impl Links {
    /// No link is cut.
    pub(super) fn new(net: &Net) -> Self {
        let (cut, changed) = (Mutex::default(), Condvar::new());
        Self(Arc::new(Shared { folder: net.folder().to_owned(), cut, changed }))
    }

    /// Relays what comes to host `100 + n` to server `n`, as long as the test runs.
    pub(super) fn relay(&self, net: &Net, n: u8) {
        let at = |n| -> SocketAddr { format!("{}:8300", net.address(n)).parse().expect("one") };
        let (from, to) = (at(100 + n), at(n));
        let listener = TcpListener::bind(from).expect("the relay's address is free");
        let links = self.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let links = links.clone();
                std::thread::spawn(move || links.serve(&socket, n, to));
            }
        });
    }

    /// Cuts every link of `servers`, or heals all where there are none.
    pub(super) fn isolate(&self, servers: &[u8]) {
        let mut cut = self.0.cut.lock().unwrap_or_else(PoisonError::into_inner);
        cut.alone = servers.iter().copied().collect();
        self.0.changed.notify_all();
    }

    /// Waits until the link between the two is whole; false when the test is over.
    fn wait(&self, pair: Pair) -> bool {
        let cut = self.0.cut.lock().unwrap_or_else(PoisonError::into_inner);
        let is_cut = |cut: &mut Cut| {
            let is_own = pair.from == Some(pair.to);
            let is_alone =
                |server: Option<u8>| server.is_some_and(|server| cut.alone.contains(&server));
            !cut.is_over && !is_own && (is_alone(pair.from) || is_alone(Some(pair.to)))
        };
        let cut = self.0.changed.wait_while(cut, is_cut);
        !cut.unwrap_or_else(PoisonError::into_inner).is_over
    }

    fn serve(&self, socket: &TcpStream, n: u8, to: SocketAddr) {
        let from = socket.peer_addr().ok().and_then(|peer| dialler(&self.0.folder, peer));
        let pair = Pair { from, to: n };
        if !self.wait(pair) {
            return;
        }
        let Ok(upstream) = TcpStream::connect(to) else { return };
        std::thread::scope(|scope| {
            scope.spawn(|| self.pump(socket, &upstream, pair));
            self.pump(&upstream, socket, pair);
        });
    }

    /// Carries bytes one way. A cut loses none: as in TCP, they come once it is healed.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, pair: Pair) {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            let is_on = self.wait(pair);
            if count == 0 || !is_on || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // One side is gone already, mostly.
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}

/// Ends what waits for a link, with the test.
pub(super) struct Over(pub(super) Links);

impl Drop for Over {
    fn drop(&mut self) {
        let Links(shared) = &self.0;
        shared.cut.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
        shared.changed.notify_all();
    }
}

/// Which server of the network in `folder` has the socket whose own address is `address`.
fn dialler(folder: &Path, address: SocketAddr) -> Option<u8> {
    let SocketAddr::V4(address) = address else { return None };
    let octets = u32::from_le_bytes(address.ip().octets());
    let local = format!("{octets:08X}:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let row = table.lines().find(|row| row.split_whitespace().nth(1) == Some(&local))?;
    let socket = format!("socket:[{}]", row.split_whitespace().nth(9)?);
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    for process in processes.map(|entry| entry.path()) {
        let Ok(arguments) = std::fs::read(process.join("cmdline")) else { continue };
        let arguments = String::from_utf8_lossy(&arguments);
        let Some((_, rest)) = arguments.split_once(&format!("{}/n", folder.display())) else {
            continue;
        };
        let Ok(open) = std::fs::read_dir(process.join("fd")) else { continue };
        let targets = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        if targets.into_iter().any(|target| target == Path::new(&socket)) {
            return rest.split_once(".json")?.0.parse().ok();
        }
    }
    None
}
