//! Applications that can be made to misbehave, and one that can do only so much at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

/// What an application does with a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(super) enum Mood {
    /// Answers at once, or as soon as it has room.
    Well,
    /// Answers 500.
    Errs,
    /// Answers 503.
    Unavailable,
    /// Answers after ten seconds.
    Slow,
    /// Closes the connection on it.
    Resets,
    /// Says nothing, and takes no connections: those that come wait in the kernel, or are dropped.
    Silent,
}

/// An application that answers with its name.
#[derive(Clone)]
pub(super) struct App {
    pub(super) name: &'static str,
    pub(super) address: SocketAddr,
    mood: Arc<AtomicU8>,
    seen: Arc<AtomicU64>,
    /// How many requests it works on at once, and for how long on each; none: at once on all.
    capacity: Option<(Arc<Semaphore>, Duration)>,
}

impl App {
    pub(super) async fn start(name: &'static str) -> Self {
        Self::of(name, None).await
    }

    /// One that works on `at_once` requests at most, for `each` on one; the others wait in it.
    pub(super) async fn limited(name: &'static str, at_once: usize, each: Duration) -> Self {
        Self::of(name, Some((Arc::new(Semaphore::new(at_once)), each))).await
    }

    async fn of(name: &'static str, capacity: Option<(Arc<Semaphore>, Duration)>) -> Self {
        let listener = listen().expect("bound");
        let address = listener.local_addr().expect("bound");
        let (mood, seen) = (Arc::new(AtomicU8::new(Mood::Well as u8)), Arc::default());
        let app = Self { name, address, mood, seen, capacity };
        let own = app.clone();
        tokio::spawn(async move {
            loop {
                while own.is(Mood::Silent) {
                    tokio::time::sleep(LOOK).await;
                }
                let accepted = tokio::time::timeout(LOOK, listener.accept()).await;
                let Ok(Ok((socket, _))) = accepted else { continue };
                tokio::spawn(own.clone().serve(socket));
            }
        });
        app
    }

    pub(super) fn turn(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    /// How many requests reached it, besides those after its health.
    pub(super) fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }

    fn is(&self, mood: Mood) -> bool {
        self.mood.load(Ordering::SeqCst) == mood as u8
    }

    async fn serve(self, mut socket: TcpStream) -> io::Result<()> {
        let mut read = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = read.windows(4).position(|end| end == b"\r\n\r\n") {
                    break at + 4;
                }
                if socket.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
            };
            let is_vital = read.starts_with(b"GET /healthz");
            read.drain(..end);
            if !is_vital {
                self.seen.fetch_add(1, Ordering::SeqCst);
                self.work().await;
            }
            if self.is(Mood::Resets) {
                return Ok(());
            }
            while self.is(Mood::Silent) {
                tokio::time::sleep(LOOK).await;
            }
            let status = match self.mood.load(Ordering::SeqCst) {
                // Its check does not see what its callers see.
                _ if is_vital => "200 OK",
                mood if mood == Mood::Errs as u8 => "500 Internal Server Error",
                mood if mood == Mood::Unavailable as u8 => "503 Service Unavailable",
                _ => "200 OK",
            };
            let length = self.name.len();
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{}", self.name);
            socket.write_all(answer.as_bytes()).await?;
        }
    }

    async fn work(&self) {
        if self.is(Mood::Slow) {
            tokio::time::sleep(SLOW).await;
        }
        if let Some((room, each)) = &self.capacity {
            let _place = room.acquire().await.expect("never closed");
            tokio::time::sleep(*each).await;
        }
    }
}

/// A listener before which few connections wait.
fn listen() -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    socket.listen(16)
}

const LOOK: Duration = Duration::from_millis(20);
const SLOW: Duration = Duration::from_secs(10);
