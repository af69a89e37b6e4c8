//! The access log: one JSON object a line, written by a thread of its own that nobody waits for.
//!
//! Tasks: one thread, from the first record that is to be written until the data plane ends.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hawser_core::address::Address;
use serde::Serialize;

/// Which access records are written, and where to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AccessLog {
    /// Where to.
    pub to: LogSink,
    /// How many in a million of those that went well. What failed is always written.
    pub sample_ppm: u32,
}

impl AccessLog {
    /// Every record.
    pub const ALL_PPM: u32 = 1_000_000;

    /// Writes every record `to` there.
    pub const fn all(to: LogSink) -> Self {
        Self { to, sample_ppm: Self::ALL_PPM }
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        Self::all(LogSink::Off)
    }
}

/// Where access records go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum LogSink {
    /// Nowhere.
    #[default]
    Off,
    /// To standard output, a JSON object a line.
    Stdout,
    /// To a file, a JSON object a line, appended.
    File(PathBuf),
}

impl LogSink {
    fn open(&self) -> io::Result<Option<Box<dyn Write + Send>>> {
        Ok(match self {
            Self::Off => None,
            Self::Stdout => Some(Box::new(io::stdout())),
            Self::File(path) => {
                Some(Box::new(std::fs::OpenOptions::new().append(true).create(true).open(path)?))
            }
        })
    }
}

/// What one record says. Nothing here is taken from a header but the request's id and the ids of
/// its trace, and the path is without its query: credentials travel in all the rest.
#[derive(Serialize)]
pub(crate) struct Line<'a> {
    pub(crate) time_ms: u64,
    pub(crate) reporter: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source_address: Option<std::net::IpAddr>,
    pub(crate) destination: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<&'a str>,
    pub(crate) verdict: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) decided_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policy_id: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) permission: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) view_index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grpc_status: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) span_id: Option<String>,
    pub(crate) attempts: u8,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first_byte_us: Option<u64>,
    pub(crate) duration_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peer_identity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream: Option<&'a Address>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream_instance: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream_node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream_region: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) upstream_zone: Option<&'a str>,
}

/// The queue to the writer; a copy for each worker.
#[derive(Clone)]
pub(crate) struct Queue {
    lines: SyncSender<Vec<u8>>,
    losses: Arc<Losses>,
}

/// Records that were not written, since they were last counted.
#[derive(Default)]
pub(crate) struct Losses {
    /// Because the writer was behind.
    pub(crate) behind: AtomicU64,
    /// Because the file or pipe did not take them.
    pub(crate) failed: AtomicU64,
}

impl Queue {
    /// Hands a line to the writer, or counts it as dropped when the writer is behind.
    pub(crate) fn write(&self, line: &Line<'_>) {
        let mut text = Vec::with_capacity(LINE_BYTES);
        if serde_json::to_writer(&mut text, line).is_err() {
            return;
        }
        text.push(b'\n');
        if self.lines.try_send(text).is_err() {
            self.losses.behind.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The writer: its thread, and what it writes to next.
pub(crate) struct Writer {
    running: Mutex<Option<Running>>,
    losses: Arc<Losses>,
}

struct Running {
    lines: SyncSender<Vec<u8>>,
    next: Arc<Next>,
    thread: JoinHandle<()>,
}

/// What the writer shall write to from now on.
#[derive(Default)]
struct Next {
    is_there: AtomicBool,
    out: Mutex<Option<Box<dyn Write + Send>>>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { running: Mutex::default(), losses: Arc::default() }
    }

    pub(crate) fn losses(&self) -> &Losses {
        &self.losses
    }

    /// Writes to `sink` from now on, opened anew even where it is the same: a file that was moved
    /// away is left to whoever moved it.
    ///
    /// # Errors
    /// It cannot be opened; then all stays as it was.
    pub(crate) fn open(&self, sink: &LogSink) -> io::Result<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(out) = sink.open()? else {
            // Workers drop their copies of the queue at their next turn; then the thread ends.
            *running = None;
            return Ok(());
        };
        if let Some(running) = &*running {
            *running.next.out.lock().unwrap_or_else(PoisonError::into_inner) = Some(out);
            running.next.is_there.store(true, Ordering::Release);
            return Ok(());
        }
        let (lines, queue) = sync_channel(QUEUE_LINES);
        let (next, losses) = (Arc::<Next>::default(), self.losses.clone());
        let follows = next.clone();
        let thread = std::thread::Builder::new()
            .name("hawser-access-log".to_owned())
            .spawn(move || write(&queue, out, &follows, &losses))?;
        *running = Some(Running { lines, next, thread });
        Ok(())
    }

    /// A queue to the writer; none while nothing is written.
    pub(crate) fn queue(&self) -> Option<Queue> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = running.as_ref()?.lines.clone();
        Some(Queue { lines, losses: self.losses.clone() })
    }

    /// Waits until all that the workers handed over is written, but not for ever: a pipe that
    /// nobody reads keeps no process from ending.
    pub(crate) fn finish(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { lines, thread, .. }) = running else { return };
        drop(lines);
        let deadline = Instant::now() + FINISH;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::park_timeout(FLUSH / 20);
        }
    }
}

/// Writes lines until the last queue to it is gone; flushes when there is nothing to write.
fn write(queue: &Receiver<Vec<u8>>, out: Box<dyn Write + Send>, next: &Next, losses: &Losses) {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, out);
    let mut held = 0;
    let flush = |out: &mut BufWriter<_>, held: &mut u64| {
        // A full disk loses records, never requests.
        if out.flush().is_err() {
            losses.failed.fetch_add(*held, Ordering::Relaxed);
        }
        *held = 0;
    };
    loop {
        let line = queue.recv_timeout(FLUSH);
        if next.is_there.swap(false, Ordering::AcqRel) {
            let new = next.out.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(new) = new {
                flush(&mut out, &mut held);
                // What could not be flushed is lost with the old file, and counted above.
                drop(
                    std::mem::replace(&mut out, BufWriter::with_capacity(BUFFER_BYTES, new))
                        .into_parts(),
                );
            }
        }
        match line {
            Ok(line) if out.write_all(&line).is_err() => {
                losses.failed.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => held += 1,
            Err(RecvTimeoutError::Timeout) => flush(&mut out, &mut held),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    flush(&mut out, &mut held);
}

const QUEUE_LINES: usize = 16_384;
const LINE_BYTES: usize = 768;
const BUFFER_BYTES: usize = 64 * 1024;
const FLUSH: Duration = Duration::from_millis(200);
const FINISH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line<'static> {
        Line::of("web", "db")
    }

    impl Line<'static> {
        fn of(source: &'static str, destination: &'static str) -> Self {
            Self {
                time_ms: 1,
                reporter: "client",
                source: Some(source),
                source_address: None,
                destination,
                cluster: None,
                verdict: "allow",
                reason: "ok",
                decided_by: "application",
                policy: None,
                policy_id: None,
                permission: None,
                view_index: None,
                protocol: None,
                method: None,
                path: None,
                route: None,
                status: None,
                grpc_status: None,
                request_id: None,
                trace_id: None,
                span_id: None,
                attempts: 1,
                bytes_sent: 0,
                bytes_received: 0,
                first_byte_us: None,
                duration_us: 0,
                peer_identity: None,
                upstream: None,
                upstream_instance: None,
                upstream_node: None,
                upstream_region: None,
                upstream_zone: None,
            }
        }
    }

    fn lines(path: &std::path::Path) -> usize {
        std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
    }

    fn until(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < deadline, "not in ten seconds: {what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_file_that_was_moved_away_is_left_and_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let sink = LogSink::File(path.clone());
        let writer = Writer::new();
        writer.open(&sink).expect("it opens");
        let queue = writer.queue().expect("it runs");
        queue.write(&line());
        until("the first line is written", || lines(&path) == 1);
        std::fs::rename(&path, &moved).expect("moved");
        queue.write(&line());
        until("it still goes to the old file", || lines(&moved) == 2);
        writer.open(&sink).expect("it opens");
        until("there is a new file", || path.exists());
        queue.write(&line());
        drop(queue);
        writer.finish();
        assert_eq!((lines(&path), lines(&moved)), (1, 2));
    }

    #[test]
    fn a_file_that_cannot_be_opened_leaves_all_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let writer = Writer::new();
        writer.open(&LogSink::File(path.clone())).expect("it opens");
        let missing = LogSink::File(folder.path().join("no/such/folder"));
        assert!(writer.open(&missing).is_err());
        writer.queue().expect("it still runs").write(&line());
        writer.finish();
        assert_eq!(lines(&path), 1);
    }

    #[test]
    fn a_writer_that_is_behind_costs_records_and_no_time() {
        let (lines, queue) = sync_channel(2);
        let losses = Arc::new(Losses::default());
        let blocked = Queue { lines, losses: losses.clone() };
        for _ in 0..5 {
            blocked.write(&line());
        }
        assert_eq!(losses.behind.load(Ordering::Relaxed), 3);
        drop(queue);
    }

    #[test]
    fn what_the_disk_does_not_take_is_counted() {
        let writer = Writer::new();
        writer.open(&LogSink::File("/dev/full".into())).expect("it opens");
        let queue = writer.queue().expect("it runs");
        queue.write(&line());
        drop(queue);
        writer.finish();
        assert_eq!(writer.losses().failed.load(Ordering::Relaxed), 1);
    }
}
