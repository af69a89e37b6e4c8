//! Reports: one access record for each connection or request, metrics, and edges.
//!
//! Workers count in cells of their own; [`Local::flush`] adds them to the shared tables a few
//! times a second, so that no request waits for a lock. One thread writes the access log.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hawser_core::clock::Index;
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::name::{PeerName, ServiceName};
use hawser_core::reason::{DecidedBy, Reason};
use prometheus::local::LocalHistogram;
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use serde::Serialize;

/// Where access records go.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum AccessLog {
    /// Nowhere.
    #[default]
    Off,
    /// To standard output, a JSON object a line.
    Stdout,
    /// To a file, a JSON object a line, appended.
    File(PathBuf),
}

/// Which end of the mesh reports.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Reporter {
    /// The caller's proxy.
    Client,
    /// The callee's proxy.
    Server,
}

impl Reporter {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// What one connection or request came to.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) reason: Reason,
    pub(crate) decided_by: DecidedBy,
    /// The HTTP status; none for connections.
    pub(crate) status: Option<u16>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) duration: Duration,
    pub(crate) view_index: Index,
    pub(crate) attempts: u8,
    pub(crate) upstream: Option<SocketAddr>,
    /// The cluster that the callee is in, where that is another.
    pub(crate) cluster: Option<PeerName>,
}

impl Record {
    fn class(&self) -> &'static str {
        match self.status.map(|status| status / 100) {
            None => "tcp",
            Some(1) => "1xx",
            Some(2) => "2xx",
            Some(3) => "3xx",
            Some(4) => "4xx",
            Some(_) => "5xx",
        }
    }

    fn is_error(&self) -> bool {
        !self.reason.is_ok() || self.status.is_some_and(|status| status >= 500)
    }
}

#[derive(Serialize)]
struct Line<'a> {
    time_ms: u64,
    reporter: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    destination: &'a str,
    verdict: &'static str,
    reason: &'static str,
    decided_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    bytes_sent: u64,
    bytes_received: u64,
    duration_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    view_index: Option<u64>,
    attempts: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// A connection that ended before it had a caller, so that no view was asked.
    fn refused(reporter: Reporter, destination: &'a ServiceName, reason: Reason) -> Self {
        let decided_by = match reporter {
            Reporter::Client => DecidedBy::ClientProxy,
            Reporter::Server => DecidedBy::ServerProxy,
        };
        Self {
            time_ms: crate::clock::wall().as_millis(),
            reporter: reporter.as_str(),
            source: None,
            destination: destination.as_str(),
            verdict: "deny",
            reason: reason.as_str(),
            decided_by: decided_by.as_str(),
            status: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration_us: 0,
            view_index: None,
            attempts: 0,
            upstream: None,
            cluster: None,
        }
    }
}

/// What all workers of a proxy report into.
pub(crate) struct Shared {
    requests: IntCounterVec,
    durations: HistogramVec,
    bytes: IntCounterVec,
    retries: IntCounterVec,
    ejections: IntCounterVec,
    refusals: IntCounterVec,
    connections: IntGaugeVec,
    log_dropped: IntCounter,
    edges_dropped: IntCounter,
    pairs: IntGauge,
    edges: Mutex<BTreeMap<EdgeKey, Tally>>,
    known: Mutex<BTreeSet<PairKey>>,
    log: Option<SyncSender<Vec<u8>>>,
    dropped_lines: AtomicU64,
}

type PairKey = (Reporter, ServiceName, ServiceName);
type RefusalKey = (ServiceName, Reporter, Reason);

impl Shared {
    /// Registers the metrics and opens the access log.
    ///
    /// # Errors
    /// When a metric of that name is registered already, or the log file cannot be opened.
    pub(crate) fn new(registry: &Registry, log: &AccessLog) -> Result<Self, ReportError> {
        let pair = ["source", "destination", "reporter"];
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let durations = HistogramVec::new(
            prometheus::HistogramOpts::new(
                "hawser_proxy_request_duration_seconds",
                "How long requests, and connections of TCP services, took to their last byte.",
            )
            .buckets(DURATION_BUCKETS.to_vec()),
            &pair,
        )?;
        registry.register(Box::new(durations.clone()))?;
        let connections = IntGaugeVec::new(
            Opts::new("hawser_proxy_connections", "Connections accepted and open."),
            &["kind"],
        )?;
        registry.register(Box::new(connections.clone()))?;
        let pairs = IntGauge::new("hawser_proxy_pairs", "Pairs of services with metrics.")?;
        registry.register(Box::new(pairs.clone()))?;
        Ok(Self {
            requests: counters(
                "hawser_proxy_requests_total",
                "Requests, and connections of TCP services, by how they ended.",
                &["source", "destination", "reporter", "code", "reason"],
            )?,
            durations,
            bytes: counters(
                "hawser_proxy_bytes_total",
                "Bytes relayed; sent is from caller to callee.",
                &["source", "destination", "reporter", "direction"],
            )?,
            retries: counters(
                "hawser_proxy_retries_total",
                "Tries after the first, and those that the budget refused.",
                &["source", "destination", "outcome"],
            )?,
            ejections: counters(
                "hawser_proxy_ejections_total",
                "Instances ejected after failures in a row, counted by each worker.",
                &["source", "destination"],
            )?,
            refusals: counters(
                "hawser_proxy_refusals_total",
                "Connections refused before anything was relayed.",
                &["service", "reporter", "reason"],
            )?,
            connections,
            log_dropped: counter(
                "hawser_proxy_access_log_dropped_total",
                "Access records dropped because the writer could not keep up.",
            )?,
            edges_dropped: counter(
                "hawser_proxy_edges_dropped_total",
                "Edges not kept because too many were waiting to be taken.",
            )?,
            pairs,
            edges: Mutex::default(),
            known: Mutex::default(),
            log: open_log(log)?,
            dropped_lines: AtomicU64::new(0),
        })
    }

    /// Hands a line to the writer, or counts it as dropped when the writer is behind.
    fn write(&self, log: &SyncSender<Vec<u8>>, line: &Line<'_>) {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        if log.try_send(text).is_err() {
            self.dropped_lines.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What the edges counted since the last call.
    pub(crate) fn take_edges(&self) -> Vec<(EdgeKey, Tally)> {
        std::mem::take(&mut *lock(&self.edges)).into_iter().collect()
    }

    /// The key under which a pair is counted: its own, or `other` once there are too many.
    fn admit(&self, key: PairKey) -> Option<PairKey> {
        let mut known = lock(&self.known);
        if !known.contains(&key) {
            if known.len() >= PAIRS_MAX {
                return None;
            }
            known.insert(key.clone());
            self.pairs.set(known.len() as i64);
        }
        Some(key)
    }
}

/// Why reports cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A metric is registered twice.
    #[error("the proxy's metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// The access log cannot be opened.
    #[error("the access log cannot be opened")]
    AccessLog(#[from] io::Error),
}

/// What one worker reports into; flushed into [`Shared`].
pub(crate) struct Local {
    shared: Arc<Shared>,
    pairs: RefCell<HashMap<PairKey, Rc<Pair>>>,
    refusals: RefCell<BTreeMap<RefusalKey, u64>>,
    inbound: Cell<i64>,
    outbound: Cell<i64>,
}

/// One pair of services, seen from one end.
pub(crate) struct Pair {
    source: ServiceName,
    destination: ServiceName,
    reporter: Reporter,
    labels: [String; 2],
    log: Option<SyncSender<Vec<u8>>>,
    shared: Arc<Shared>,
    is_dirty: Cell<bool>,
    latency: LocalHistogram,
    counts: RefCell<Counts>,
}

#[derive(Default)]
struct Counts {
    requests: BTreeMap<(&'static str, Reason), u64>,
    edges: BTreeMap<(Option<PeerName>, Reason), Tally>,
    bytes_sent: u64,
    bytes_received: u64,
    retries: u64,
    retries_refused: u64,
    ejections: u64,
}

impl Local {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            pairs: RefCell::default(),
            refusals: RefCell::default(),
            inbound: Cell::new(0),
            outbound: Cell::new(0),
        }
    }

    /// The tally of a pair. Look it up once for a connection, not for each request.
    pub(crate) fn pair(
        &self,
        reporter: Reporter,
        source: &ServiceName,
        destination: &ServiceName,
    ) -> Rc<Pair> {
        let key = (reporter, source.clone(), destination.clone());
        if let Some(pair) = self.pairs.borrow().get(&key) {
            return pair.clone();
        }
        let admitted = self.shared.admit(key.clone());
        let labels = match &admitted {
            Some(_) => [source.to_string(), destination.to_string()],
            None => [OTHER.to_owned(), OTHER.to_owned()],
        };
        let pair = Rc::new(Pair {
            source: source.clone(),
            destination: destination.clone(),
            reporter,
            latency: self
                .shared
                .durations
                .with_label_values(&[&labels[0], &labels[1], reporter.as_str()])
                .local(),
            labels,
            log: self.shared.log.clone(),
            shared: self.shared.clone(),
            is_dirty: Cell::new(false),
            counts: RefCell::default(),
        });
        if self.pairs.borrow().len() < PAIRS_MAX {
            self.pairs.borrow_mut().insert(key, pair.clone());
        }
        pair
    }

    /// Reports a connection that was refused before it had a caller or anything to relay.
    pub(crate) fn refuse(&self, reporter: Reporter, service: &ServiceName, reason: Reason) {
        tracing::debug!(%service, reporter = reporter.as_str(), %reason, "connection refused");
        if let Some(log) = &self.shared.log {
            self.shared.write(log, &Line::refused(reporter, service, reason));
        }
        let mut refusals = self.refusals.borrow_mut();
        let key = (service.clone(), reporter, reason);
        *refusals.entry(key).or_default() += 1;
    }

    /// Counts accepted connections up or down.
    pub(crate) fn connections(&self, reporter: Reporter, change: i64) {
        let cell = match reporter {
            Reporter::Server => &self.inbound,
            Reporter::Client => &self.outbound,
        };
        cell.set(cell.get() + change);
    }

    /// Adds everything counted since the last time to the shared tables.
    pub(crate) fn flush(&self) {
        for pair in self.pairs.borrow().values() {
            pair.flush();
        }
        for ((service, reporter, reason), count) in self.refusals.take() {
            self.shared
                .refusals
                .with_label_values(&[service.as_str(), reporter.as_str(), reason.as_str()])
                .inc_by(count);
        }
        for (cell, kind) in [(&self.inbound, "inbound"), (&self.outbound, "outbound")] {
            let change = cell.take();
            if change != 0 {
                self.shared.connections.with_label_values(&[kind]).add(change);
            }
        }
        let dropped = self.shared.dropped_lines.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            self.shared.log_dropped.inc_by(dropped);
        }
    }
}

impl Pair {
    /// Reports one request or connection.
    pub(crate) fn record(&self, record: &Record) {
        self.is_dirty.set(true);
        self.latency.observe(record.duration.as_secs_f64());
        let mut counts = self.counts.borrow_mut();
        *counts.requests.entry((record.class(), record.reason)).or_default() += 1;
        counts.bytes_sent += record.bytes_sent;
        counts.bytes_received += record.bytes_received;
        if self.reporter == Reporter::Client {
            let tally = counts.edges.entry((record.cluster.clone(), record.reason)).or_default();
            tally.count += 1;
            tally.errors += u64::from(record.is_error());
            tally.bytes_sent += record.bytes_sent;
            tally.bytes_received += record.bytes_received;
            tally.latency.record(record.duration);
        }
        drop(counts);
        if let Some(log) = &self.log {
            self.write(log, record);
        }
    }

    /// Counts a try after the first, or one that the budget refused.
    pub(crate) fn retried(&self, allowed: bool) {
        self.is_dirty.set(true);
        let mut counts = self.counts.borrow_mut();
        let count = if allowed { &mut counts.retries } else { &mut counts.retries_refused };
        *count += 1;
    }

    /// Counts an ejection.
    pub(crate) fn ejected(&self) {
        self.is_dirty.set(true);
        self.counts.borrow_mut().ejections += 1;
    }

    fn write(&self, log: &SyncSender<Vec<u8>>, record: &Record) {
        let line = Line {
            time_ms: crate::clock::wall().as_millis(),
            reporter: self.reporter.as_str(),
            source: Some(self.source.as_str()),
            destination: self.destination.as_str(),
            verdict: match record.reason {
                Reason::IntentionDenied | Reason::PolicyCut | Reason::NotExported => "deny",
                _ => "allow",
            },
            reason: record.reason.as_str(),
            decided_by: record.decided_by.as_str(),
            status: record.status,
            bytes_sent: record.bytes_sent,
            bytes_received: record.bytes_received,
            duration_us: u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX),
            view_index: Some(record.view_index.0),
            attempts: record.attempts,
            upstream: record.upstream,
            cluster: record.cluster.as_ref().map(PeerName::as_str),
        };
        self.shared.write(log, &line);
    }

    fn flush(&self) {
        if !self.is_dirty.replace(false) {
            return;
        }
        self.latency.flush();
        let counts = self.counts.take();
        let shared = &self.shared;
        let [source, destination] = [self.labels[0].as_str(), self.labels[1].as_str()];
        let reporter = self.reporter.as_str();
        for ((class, reason), count) in counts.requests {
            let labels = [source, destination, reporter, class, reason.as_str()];
            shared.requests.with_label_values(&labels).inc_by(count);
        }
        for (direction, bytes) in [("sent", counts.bytes_sent), ("received", counts.bytes_received)]
        {
            let labels = [source, destination, reporter, direction];
            shared.bytes.with_label_values(&labels).inc_by(bytes);
        }
        for (outcome, count) in
            [("retried", counts.retries), ("over_budget", counts.retries_refused)]
        {
            if count > 0 {
                shared.retries.with_label_values(&[source, destination, outcome]).inc_by(count);
            }
        }
        if counts.ejections > 0 {
            shared.ejections.with_label_values(&[source, destination]).inc_by(counts.ejections);
        }
        let mut edges = lock(&shared.edges);
        for ((cluster, reason), tally) in counts.edges {
            let key = EdgeKey {
                source: self.source.clone(),
                destination: self.destination.clone(),
                cluster: cluster.as_ref().map_or("", PeerName::as_str).into(),
                verdict: reason.as_str().into(),
            };
            if edges.len() < EDGES_MAX || edges.contains_key(&key) {
                edges.entry(key).or_default().merge(&tally);
            } else {
                shared.edges_dropped.inc();
            }
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.flush();
    }
}

fn open_log(log: &AccessLog) -> io::Result<Option<SyncSender<Vec<u8>>>> {
    let out: Box<dyn Write + Send> = match log {
        AccessLog::Off => return Ok(None),
        AccessLog::Stdout => Box::new(io::stdout()),
        AccessLog::File(path) => {
            Box::new(std::fs::OpenOptions::new().append(true).create(true).open(path)?)
        }
    };
    let (lines, queue) = sync_channel(LOG_QUEUE);
    std::thread::Builder::new()
        .name("hawser-access-log".to_owned())
        .spawn(move || write_log(&queue, out))?;
    Ok(Some(lines))
}

/// Writes lines until the last worker is gone; flushes when there is nothing to write.
fn write_log(queue: &Receiver<Vec<u8>>, out: Box<dyn Write + Send>) {
    let mut out = io::BufWriter::with_capacity(64 * 1024, out);
    loop {
        let line = match queue.recv_timeout(LOG_FLUSH) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                let _ = out.flush();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        // A full disk loses records, never requests.
        let _ = out.write_all(&line);
    }
    let _ = out.flush();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const OTHER: &str = "other";
const PAIRS_MAX: usize = 1_000;
const EDGES_MAX: usize = 4_096;
const LOG_QUEUE: usize = 16_384;
const LOG_FLUSH: Duration = Duration::from_millis(200);
const DURATION_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    fn record(reason: Reason, status: Option<u16>) -> Record {
        Record {
            reason,
            decided_by: DecidedBy::Application,
            status,
            bytes_sent: 10,
            bytes_received: 20,
            duration: Duration::from_millis(3),
            view_index: Index(7),
            attempts: 1,
            upstream: None,
            cluster: None,
        }
    }

    #[test]
    fn what_a_worker_counts_reaches_metrics_and_edges_once() {
        let registry = Registry::new();
        let shared = Arc::new(Shared::new(&registry, &AccessLog::Off).expect("fresh"));
        let local = Local::new(shared.clone());
        let pair = local.pair(Reporter::Client, &name("web"), &name("db"));
        pair.record(&record(Reason::Ok, Some(200)));
        pair.record(&record(Reason::UpstreamReset, Some(502)));
        local.flush();
        local.flush();
        let edges = shared.take_edges();
        let seen: Vec<_> =
            edges.iter().map(|(key, tally)| (&*key.verdict, tally.count, tally.errors)).collect();
        assert_eq!(seen, [("ok", 1, 0), ("upstream_reset", 1, 1)]);
        assert!(shared.take_edges().is_empty(), "they are handed out once");
        let labels = ["web", "db", "client", "5xx", "upstream_reset"];
        assert_eq!(shared.requests.with_label_values(&labels).get(), 1);
    }

    #[test]
    fn the_number_of_pairs_is_bounded() {
        let registry = Registry::new();
        let shared = Arc::new(Shared::new(&registry, &AccessLog::Off).expect("fresh"));
        let local = Local::new(shared.clone());
        for n in 0..PAIRS_MAX + 10 {
            let pair = local.pair(Reporter::Server, &name(&format!("s{n}")), &name("db"));
            pair.record(&record(Reason::Ok, None));
        }
        local.flush();
        let labels = [OTHER, OTHER, "server", "tcp", "ok"];
        assert_eq!(shared.requests.with_label_values(&labels).get(), 10);
    }

    #[test]
    fn records_are_written_a_json_object_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let registry = Registry::new();
        let shared =
            Arc::new(Shared::new(&registry, &AccessLog::File(path.clone())).expect("fresh"));
        let local = Local::new(shared.clone());
        local
            .pair(Reporter::Server, &name("web"), &name("db"))
            .record(&record(Reason::IntentionDenied, Some(403)));
        drop(local);
        drop(shared);
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        let line = loop {
            let text = std::fs::read_to_string(&path).expect("it is there");
            if text.ends_with('\n') {
                break text;
            }
            assert!(std::time::Instant::now() < deadline, "nothing was written");
            std::thread::yield_now();
        };
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["reason"], "intention_denied");
        assert_eq!(line["verdict"], "deny");
        assert_eq!(line["view_index"], 7);
    }
}
