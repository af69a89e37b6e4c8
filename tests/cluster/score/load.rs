//! Requests at a steady rate, whether they are answered or not, and what came of each.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// What came of one request.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// When it was sent, from the start of the load.
    pub(super) at: Duration,
    /// How long until the last byte of its answer, or until it failed.
    pub(super) took: Duration,
    /// None where there was no answer.
    pub(super) status: Option<u16>,
    /// The answer's body, its reason where the mesh gave it, or why there is none.
    pub(super) said: String,
}

impl Answer {
    pub(super) fn is_good(&self) -> bool {
        self.status == Some(200)
    }
}

/// A running load.
pub(super) struct Load {
    began: Instant,
    offered: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    task: JoinHandle<Vec<Answer>>,
}

impl Load {
    /// Starts `rate` GETs of `path` a second.
    pub(super) fn start(runtime: &Runtime, to: SocketAddr, path: &'static str, rate: u32) -> Self {
        let (offered, is_over): (Arc<AtomicU64>, Arc<AtomicBool>) =
            (Arc::default(), Arc::default());
        let began = Instant::now();
        let sending = send(to, path, rate, began, offered.clone(), is_over.clone());
        Self { began, offered, is_over, task: runtime.spawn(sending) }
    }

    /// How long it runs already.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// How many requests it has sent.
    pub(super) fn offered(&self) -> u64 {
        self.offered.load(Ordering::SeqCst)
    }

    /// Stops it, waits for what is under way, and answers all in the order in which they were sent.
    pub(super) fn finish(self, runtime: &Runtime) -> Vec<Answer> {
        self.is_over.store(true, Ordering::SeqCst);
        let mut answers = runtime.block_on(self.task).expect("no panic");
        answers.sort_by_key(|answer| answer.at);
        answers
    }
}

/// The time that `permille` of the answers did not exceed.
pub(super) fn quantile<'a>(answers: impl Iterator<Item = &'a Answer>, permille: usize) -> Duration {
    let mut took: Vec<Duration> = answers.map(|answer| answer.took).collect();
    took.sort();
    let last = took.len().saturating_sub(1);
    took.get(last * permille / 1000).copied().unwrap_or_default()
}

async fn send(
    to: SocketAddr,
    path: &'static str,
    rate: u32,
    began: Instant,
    offered: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
) -> Vec<Answer> {
    let kept: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let (done, mut answers) = mpsc::unbounded_channel();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !is_over.load(Ordering::SeqCst) {
        tick.tick().await;
        offered.fetch_add(1, Ordering::SeqCst);
        let (at, kept, done) = (began.elapsed(), kept.clone(), done.clone());
        tokio::spawn(async move {
            let sent = Instant::now();
            let asked = tokio::time::timeout(PATIENCE, ask(&kept, to, path)).await;
            let (status, said) = match asked {
                Ok(Ok((status, said))) => (Some(status), said),
                Ok(Err(error)) => (None, error.to_string()),
                Err(_) => (None, format!("no answer within {PATIENCE:?}")),
            };
            // Whoever gathers them outlives those that ask.
            let _ = done.send(Answer { at, took: sent.elapsed(), status, said });
        });
    }
    drop(done);
    let mut all = Vec::new();
    while let Some(answer) = answers.recv().await {
        all.push(answer);
    }
    all
}

/// One request, in a connection that is kept.
async fn ask(
    kept: &Mutex<Vec<TcpStream>>,
    to: SocketAddr,
    path: &str,
) -> io::Result<(u16, String)> {
    let known = kept.lock().expect("not poisoned").pop();
    let mut socket = match known {
        Some(socket) => socket,
        None => {
            let socket = TcpStream::connect(to).await?;
            socket.set_nodelay(true)?;
            socket
        }
    };
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: api\r\n\r\n").as_bytes()).await?;
    let mut read = Vec::new();
    let end = loop {
        if let Some(at) = read.windows(4).position(|end| end == b"\r\n\r\n") {
            break at + 4;
        }
        if socket.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    let field = |name: &str| {
        head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    let malformed = || io::Error::other(format!("no answer of HTTP: {head:?}"));
    let status = head.get(9..12).and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
    let length: usize =
        field("content-length").and_then(|text| text.parse().ok()).ok_or_else(malformed)?;
    while read.len() < end + length {
        if socket.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    if field("connection").as_deref() != Some("close") {
        kept.lock().expect("not poisoned").push(socket);
    }
    let body = String::from_utf8_lossy(&read[end..]).into_owned();
    Ok((status, field("x-hawser-reason").unwrap_or(body)))
}

const PATIENCE: Duration = Duration::from_secs(20);
