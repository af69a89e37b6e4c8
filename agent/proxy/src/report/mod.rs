//! Reports: one access record for each connection or request, metrics, edges and spans.
//!
//! Workers count in cells of their own; [`Local::flush`] adds them to the shared tables a few
//! times a second, so that no request waits for a lock.

mod log;
mod metrics;
mod trail;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hawser_core::address::Address;
use hawser_core::catalog::{Locality, Protocol};
use hawser_core::clock::Index;
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::name::{InstanceId, NodeName, PeerName, ServiceName};
use hawser_core::reason::{DecidedBy, Reason};
use hawser_core::spiffe::SpiffeId;
use http::Request;
use http::header::HeaderValue;
use prometheus::Registry;
use prometheus::local::LocalHistogram;
use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use tokio::sync::{mpsc, watch};

use self::log::{Line, Writer};
use self::metrics::{Labels, Metrics};
use self::trail::{Live, after, is_within, status_attribute};
use crate::trace::{Attribute, Span, SpanKind};
use crate::watch::Watched;

pub use self::log::{AccessLog, LogSink};
pub(crate) use self::trail::{
    ATTEMPT_HEADER, Owner, REQUEST_ID_HEADER, Trail, Try, answered, decided, forward,
};

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

/// Who took a connection or request.
pub(crate) struct Upstream {
    pub(crate) address: Address,
    /// Which instance it is; none for the application beside its own proxy.
    pub(crate) instance: Option<(NodeName, InstanceId)>,
    pub(crate) locality: Locality,
    /// Who it must be.
    pub(crate) identity: Option<SpiffeId>,
}

impl Upstream {
    /// The application beside its own proxy.
    pub(crate) fn application(address: Address) -> Self {
        Self { address, instance: None, locality: Locality::default(), identity: None }
    }

    fn describe(&self, attributes: &mut Vec<(&'static str, Attribute)>) {
        let text = |text: &str| Attribute::Text(text.into());
        match &self.address {
            Address::Tcp(address) => {
                attributes.push(("network.peer.address", text(&address.ip().to_string())));
                attributes.push(("network.peer.port", Attribute::Number(address.port().into())));
            }
            Address::Unix(path) => attributes.push(("network.peer.address", text(path.as_str()))),
        }
        if let Some((node, instance)) = &self.instance {
            attributes.push(("hawser.upstream.node", text(node.as_str())));
            attributes.push(("hawser.upstream.instance", text(instance.as_str())));
        }
        if let Some(zone) = &self.locality.zone {
            attributes.push(("hawser.upstream.zone", text(zone)));
        }
    }
}

/// What one connection or request came to.
#[derive(Clone)]
pub(crate) struct Record {
    pub(crate) reason: Reason,
    pub(crate) decided_by: DecidedBy,
    /// What the service speaks; none where that is not known.
    pub(crate) protocol: Option<Protocol>,
    /// The HTTP status; none for connections.
    pub(crate) status: Option<u16>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    /// From its beginning to the answer's head; none where there was none.
    pub(crate) first_byte: Option<Duration>,
    pub(crate) duration: Duration,
    pub(crate) view_index: Index,
    pub(crate) attempts: u8,
    pub(crate) upstream: Option<Rc<Upstream>>,
    /// The cluster that the callee is in, where that is another.
    pub(crate) cluster: Option<PeerName>,
    /// The route that the request took, by its name in the config entry; none without one.
    pub(crate) route: Option<Arc<str>>,
    /// Who called, and by which policy it may.
    pub(crate) caller: Option<Rc<Watched>>,
    pub(crate) trail: Option<Rc<Trail>>,
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

    /// The gRPC status: the application's, or that of the answer that a proxy gave.
    fn grpc_status(&self) -> Option<u8> {
        let trail = self.trail.as_ref().filter(|trail| trail.is_grpc)?;
        let own = (!self.reason.is_ok()).then(|| self.reason.grpc_status());
        trail.grpc_status.get().or(own)
    }

    fn is_error(&self) -> bool {
        !self.reason.is_ok()
            || self.status.is_some_and(|status| status >= 500)
            // Unknown, deadline exceeded, unimplemented, internal, unavailable, data loss: the
            // others are the caller's own doing.
            || self.grpc_status().is_some_and(|status| matches!(status, 2 | 4 | 12..=15))
    }
}

/// What all workers of a proxy report into.
pub(crate) struct Shared {
    metrics: Metrics,
    edges: Mutex<BTreeMap<EdgeKey, Tally>>,
    known: Mutex<BTreeSet<SeriesKey>>,
    writer: Writer,
    settings: watch::Sender<Settings>,
    spans: mpsc::Sender<Vec<Span>>,
    gathered: Mutex<Option<mpsc::Receiver<Vec<Span>>>>,
    plaintext: Mutex<Addresses>,
}

/// The addresses that callers without TLS came from, as many as are told apart.
#[derive(Default)]
struct Addresses(BTreeSet<IpAddr>);

impl Addresses {
    /// The label for `address`, and whether it is seen for the first time.
    fn label(&mut self, address: IpAddr) -> (String, bool) {
        if self.0.contains(&address) {
            return (address.to_string(), false);
        }
        if self.0.len() >= ADDRESSES_MAX {
            return (OTHER.to_owned(), false);
        }
        self.0.insert(address);
        (address.to_string(), true)
    }
}

/// What workers take over at their next turn.
#[derive(Clone, Copy, Default)]
struct Settings {
    log_ppm: u32,
    trace_ppm: Option<u32>,
}

type PairKey = (Reporter, ServiceName, ServiceName);
type RefusalKey = (ServiceName, Reporter, Reason);

/// What is counted apart.
#[derive(Clone, Eq, Ord, PartialEq, PartialOrd)]
struct SeriesKey {
    pair: PairKey,
    cluster: Option<PeerName>,
    route: Option<Arc<str>>,
}

impl Shared {
    /// Registers the metrics and opens the access log.
    ///
    /// # Errors
    /// When a metric of that name is registered already, or the log file cannot be opened.
    pub(crate) fn new(
        registry: &Registry,
        log: &AccessLog,
        trace_ppm: Option<u32>,
    ) -> Result<Self, ReportError> {
        let (spans, gathered) = mpsc::channel(SPAN_BATCHES_MAX);
        let shared = Self {
            metrics: Metrics::register(registry)?,
            edges: Mutex::default(),
            known: Mutex::default(),
            writer: Writer::new(),
            settings: watch::Sender::default(),
            spans,
            gathered: Mutex::new(Some(gathered)),
            plaintext: Mutex::default(),
        };
        shared.set(log, trace_ppm)?;
        Ok(shared)
    }

    /// Logs and traces so from now on, and opens the log's file anew.
    ///
    /// # Errors
    /// The file cannot be opened; then all stays as it was.
    pub(crate) fn set(&self, log: &AccessLog, trace_ppm: Option<u32>) -> io::Result<()> {
        self.writer.open(&log.to)?;
        self.settings.send_replace(Settings { log_ppm: log.sample_ppm, trace_ppm });
        Ok(())
    }

    /// What the edges counted since the last call.
    pub(crate) fn take_edges(&self) -> Vec<(EdgeKey, Tally)> {
        std::mem::take(&mut *lock(&self.edges)).into_iter().collect()
    }

    /// The spans that workers gather, in batches; none where somebody took them already.
    pub(crate) fn take_spans(&self) -> Option<mpsc::Receiver<Vec<Span>>> {
        lock(&self.gathered).take()
    }

    /// Waits, within bounds, until what was logged is written.
    pub(crate) fn finish(&self) {
        self.writer.finish();
    }

    /// Whether there is room to count `key` apart.
    fn admits(&self, key: &SeriesKey) -> bool {
        let mut known = lock(&self.known);
        if known.contains(key) {
            return true;
        }
        let is_admitted = known.len() < SERIES_MAX;
        if is_admitted {
            known.insert(key.clone());
            self.metrics.series.set(known.len() as i64);
        }
        is_admitted
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
    live: Rc<Live>,
    settings: RefCell<watch::Receiver<Settings>>,
    pairs: RefCell<HashMap<PairKey, Rc<Pair>>>,
    refusals: RefCell<BTreeMap<RefusalKey, u64>>,
    inbound: Cell<i64>,
    outbound: Cell<i64>,
}

impl Local {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let settings = shared.settings.subscribe();
        let live = Rc::new(Live {
            log: RefCell::default(),
            log_ppm: Cell::default(),
            trace_ppm: Cell::default(),
            spans: RefCell::default(),
            spans_dropped: Cell::default(),
            random: RefCell::new(SmallRng::from_os_rng()),
        });
        let local = Self {
            shared,
            live,
            settings: RefCell::new(settings),
            pairs: RefCell::default(),
            refusals: RefCell::default(),
            inbound: Cell::new(0),
            outbound: Cell::new(0),
        };
        local.take_settings();
        local
    }

    fn take_settings(&self) {
        let settings = *self.settings.borrow_mut().borrow_and_update();
        *self.live.log.borrow_mut() = self.shared.writer.queue();
        self.live.log_ppm.set(settings.log_ppm);
        self.live.trace_ppm.set(settings.trace_ppm);
    }

    /// Makes sure that a request has an id, and begins its trail where anybody will look at it.
    pub(crate) fn begin<B>(
        &self,
        owner: Owner<'_>,
        request: &mut Request<B>,
        is_grpc: bool,
    ) -> (HeaderValue, Option<Rc<Trail>>) {
        let id = trail::request_id(request.headers_mut(), &self.live);
        let trail = Trail::begin(&self.live, owner, request, &id, is_grpc);
        (id, trail)
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
        let pair = Rc::new(Pair {
            key: key.clone(),
            live: self.live.clone(),
            shared: self.shared.clone(),
            is_dirty: Cell::new(false),
            series: RefCell::default(),
            counts: RefCell::default(),
        });
        if self.pairs.borrow().len() < SERIES_MAX {
            self.pairs.borrow_mut().insert(key, pair.clone());
        }
        pair
    }

    /// Reports a connection that was refused before it had a caller or anything to relay.
    /// `from` is where it came from, where that is another host.
    pub(crate) fn refuse(
        &self,
        reporter: Reporter,
        service: &ServiceName,
        reason: Reason,
        from: Option<IpAddr>,
    ) {
        tracing::debug!(%service, reporter = reporter.as_str(), %reason, ?from, "connection refused");
        if let Some(log) = &*self.live.log.borrow() {
            log.write(&Line { source_address: from, ..refused(reporter, service, reason) });
        }
        let mut refusals = self.refusals.borrow_mut();
        let key = (service.clone(), reporter, reason);
        *refusals.entry(key).or_default() += 1;
    }

    /// Counts a caller without TLS by its address, and tells of each once.
    pub(crate) fn plaintext(&self, service: &ServiceName, from: IpAddr) {
        let (label, is_new) = lock(&self.shared.plaintext).label(from);
        if is_new {
            tracing::warn!(%service, %from, "a caller without TLS passes: MutualTLSMode permissive");
        }
        let labels = [service.as_str(), label.as_str()];
        self.shared.metrics.on_purpose.plaintext.with_label_values(&labels).inc();
    }

    /// Counts accepted connections up or down.
    pub(crate) fn connections(&self, reporter: Reporter, change: i64) {
        let cell = match reporter {
            Reporter::Server => &self.inbound,
            Reporter::Client => &self.outbound,
        };
        cell.set(cell.get() + change);
    }

    /// Adds everything counted since the last time to the shared tables, and takes over what is
    /// to be reported from now on.
    pub(crate) fn flush(&self) {
        let metrics = &self.shared.metrics;
        for pair in self.pairs.borrow().values() {
            pair.flush();
        }
        for ((service, reporter, reason), count) in self.refusals.take() {
            metrics
                .refusals
                .with_label_values(&[service.as_str(), reporter.as_str(), reason.as_str()])
                .inc_by(count);
        }
        for (cell, kind) in [(&self.inbound, "inbound"), (&self.outbound, "outbound")] {
            let change = cell.take();
            if change != 0 {
                metrics.connections.with_label_values(&[kind]).add(change);
            }
        }
        let losses = self.shared.writer.losses();
        for (why, count) in [("behind", &losses.behind), ("failed", &losses.failed)] {
            let count = count.swap(0, Ordering::Relaxed);
            if count > 0 {
                metrics.log_dropped.with_label_values(&[why]).inc_by(count);
            }
        }
        self.flush_spans();
        if self.settings.borrow().has_changed().unwrap_or(false) {
            self.take_settings();
        }
    }

    fn flush_spans(&self) {
        let spans = self.live.spans.take();
        let count = spans.len() as u64;
        let mut dropped = self.live.spans_dropped.take();
        if count > 0 && self.shared.spans.try_send(spans).is_err() {
            dropped += count;
        }
        self.shared.metrics.spans_dropped.inc_by(dropped);
    }
}

/// One pair of services, seen from one end.
pub(crate) struct Pair {
    key: PairKey,
    live: Rc<Live>,
    shared: Arc<Shared>,
    is_dirty: Cell<bool>,
    series: RefCell<Vec<Series>>,
    counts: RefCell<Counts>,
}

/// One way that a pair's requests take.
struct Series {
    cluster: Option<PeerName>,
    route: Option<Arc<str>>,
    labels: Labels,
    is_other: bool,
    duration: LocalHistogram,
    first_byte: LocalHistogram,
    requests: BTreeMap<(&'static str, Reason, Option<u8>), u64>,
    bytes_sent: u64,
    bytes_received: u64,
}

#[derive(Default)]
struct Counts {
    edges: BTreeMap<(Option<PeerName>, Reason), Tally>,
    retries: u64,
    retries_refused: u64,
    ejections: u64,
}

impl Pair {
    /// Reports one request or connection.
    pub(crate) fn record(&self, record: &Record) {
        self.is_dirty.set(true);
        self.count(record);
        if self.key.0 == Reporter::Client {
            let mut counts = self.counts.borrow_mut();
            let tally = counts.edges.entry((record.cluster.clone(), record.reason)).or_default();
            tally.count += 1;
            tally.errors += u64::from(record.is_error());
            tally.bytes_sent += record.bytes_sent;
            tally.bytes_received += record.bytes_received;
            tally.latency.record(record.duration);
        }
        if let Some(log) = &*self.live.log.borrow()
            && self.is_logged(record)
        {
            log.write(&self.line(record));
        }
        if let Some(trail) = &record.trail
            && let Some(span) = self.span(record, trail)
        {
            trail.live().push(span);
        }
    }

    fn count(&self, record: &Record) {
        let mut all = self.series.borrow_mut();
        let is_same =
            |series: &Series| series.cluster == record.cluster && series.route == record.route;
        let known = all.iter().position(is_same);
        let at = known.unwrap_or_else(|| {
            // Beyond its share, a pair's ways are counted together: the last place is theirs.
            if all.len() <= ROUTES_MAX {
                let series = self.series(record, all.len());
                all.push(series);
            }
            all.len() - 1
        });
        let series = &mut all[at];
        series.duration.observe(record.duration.as_secs_f64());
        if let Some(first_byte) = record.first_byte {
            series.first_byte.observe(first_byte.as_secs_f64());
        }
        let key = (record.class(), record.reason, record.grpc_status());
        *series.requests.entry(key).or_default() += 1;
        series.bytes_sent += record.bytes_sent;
        series.bytes_received += record.bytes_received;
    }

    /// Where a record is counted whose like there was not before, with `there` others.
    fn series(&self, record: &Record, there: usize) -> Series {
        let mut key = SeriesKey {
            pair: self.key.clone(),
            cluster: record.cluster.clone(),
            route: record.route.clone(),
        };
        if there >= ROUTES_MAX {
            key = SeriesKey { cluster: OTHER.parse().ok(), route: Some(OTHER.into()), ..key };
        }
        let is_admitted = self.shared.admits(&key);
        let labels = Labels::new(&self.key, is_admitted.then_some(&key));
        let metrics = &self.shared.metrics;
        Series {
            cluster: key.cluster,
            route: key.route,
            is_other: !is_admitted || there >= ROUTES_MAX,
            duration: metrics.durations.with_label_values(&labels.all()).local(),
            first_byte: metrics.first_bytes.with_label_values(&labels.all()).local(),
            labels,
            requests: BTreeMap::new(),
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    /// Counts a try after the first, or one that the budget refused.
    pub(crate) fn retried(&self, allowed: bool) {
        self.is_dirty.set(true);
        let mut counts = self.counts.borrow_mut();
        let count = if allowed { &mut counts.retries } else { &mut counts.retries_refused };
        *count += 1;
    }

    /// Counts a second try beside one that takes long.
    pub(crate) fn hedged(&self) {
        let (_, source, destination) = &self.key;
        let labels = [source.as_str(), destination.as_str(), "hedged"];
        self.shared.metrics.retries.with_label_values(&labels).inc();
    }

    /// Counts a fault made on purpose.
    pub(crate) fn injected(&self, fault: &str) {
        let (_, source, destination) = &self.key;
        let labels = [source.as_str(), destination.as_str(), fault];
        self.shared.metrics.on_purpose.faults.with_label_values(&labels).inc();
    }

    /// Counts a datagram that was dropped.
    pub(crate) fn datagram_dropped(&self, why: &str) {
        let (_, source, destination) = &self.key;
        let labels = [source.as_str(), destination.as_str(), why];
        self.shared.metrics.on_purpose.datagrams_dropped.with_label_values(&labels).inc();
    }

    /// Counts a copy of a request, by what became of it.
    pub(crate) fn mirrored(&self, outcome: &str) {
        let (_, source, destination) = &self.key;
        let labels = [source.as_str(), destination.as_str(), outcome];
        self.shared.metrics.on_purpose.mirrored.with_label_values(&labels).inc();
    }

    /// Counts an ejection.
    pub(crate) fn ejected(&self) {
        self.is_dirty.set(true);
        self.counts.borrow_mut().ejections += 1;
    }

    /// Whether a record is written: what failed always is.
    fn is_logged(&self, record: &Record) -> bool {
        let share_ppm = self.live.log_ppm.get();
        if share_ppm >= AccessLog::ALL_PPM || record.is_error() {
            return true;
        }
        match &record.trail {
            Some(trail) => is_within(trail.request_id.as_bytes(), share_ppm),
            None => {
                let draw = self.live.random.borrow_mut().next_u32();
                u64::from(draw) * 1_000_000 < u64::from(share_ppm) << 32
            }
        }
    }

    fn line<'a>(&'a self, record: &'a Record) -> Line<'a> {
        let (reporter, source, destination) = &self.key;
        let (upstream, trail) = (record.upstream.as_deref(), record.trail.as_deref());
        let policy = record.caller.as_ref().and_then(|caller| caller.policy());
        let instance = upstream.and_then(|upstream| upstream.instance.as_ref());
        let locality = upstream.map(|upstream| &upstream.locality);
        let identity = match &record.caller {
            Some(caller) => Some(&caller.peer.id),
            None => upstream.and_then(|upstream| upstream.identity.as_ref()),
        };
        let trace = trail.and_then(|trail| trail.trace.as_ref());
        let attempts = match (reporter, trail) {
            (Reporter::Server, Some(trail)) => trail.attempt,
            _ => record.attempts,
        };
        Line {
            time_ms: crate::clock::wall().as_millis(),
            source: Some(source.as_str()),
            cluster: record.cluster.as_ref().map(PeerName::as_str),
            verdict: match record.reason {
                Reason::IntentionDenied
                | Reason::PolicyCut
                | Reason::NotExported
                | Reason::PermissionDenied
                | Reason::PermissionsNeedHttp
                | Reason::TokenMissing
                | Reason::TokenInvalid
                | Reason::TokenKeysMissing => "deny",
                _ => "allow",
            },
            decided_by: record.decided_by.as_str(),
            policy: policy.as_ref().map(|policy| policy.rule.to_string()),
            policy_id: policy.and_then(|policy| policy.id.clone()),
            permission: trail.and_then(|trail| trail.permission.get()).map(|by| by.to_string()),
            view_index: Some(record.view_index.0),
            protocol: record.protocol.map(Protocol::as_str),
            method: trail.map(Trail::method),
            path: trail.and_then(Trail::path),
            route: record.route.as_deref(),
            status: record.status,
            grpc_status: record.grpc_status(),
            request_id: trail.and_then(|trail| trail.request_id.to_str().ok()),
            trace_id: trace.map(|trace| format!("{:032x}", trace.context.trace_id)),
            span_id: trace.filter(|trace| trace.is_sampled).map(|it| format!("{:016x}", it.span)),
            attempts,
            bytes_sent: record.bytes_sent,
            bytes_received: record.bytes_received,
            first_byte_us: record.first_byte.map(micros),
            duration_us: micros(record.duration),
            peer_identity: identity.map(SpiffeId::to_string),
            upstream: upstream.map(|upstream| &upstream.address),
            upstream_instance: instance.map(|(_, instance)| instance.as_str()),
            upstream_node: instance.map(|(node, _)| node.as_str()),
            upstream_region: locality.and_then(|locality| locality.region.as_deref()),
            upstream_zone: locality.and_then(|locality| locality.zone.as_deref()),
            ..refused(*reporter, destination, record.reason)
        }
    }

    /// The span around all of a request; none where its trace is not sampled.
    fn span(&self, record: &Record, trail: &Trail) -> Option<Span> {
        let (reporter, source, destination) = &self.key;
        let trace = trail.trace.as_ref()?;
        let kind = match reporter {
            Reporter::Client => SpanKind::Internal,
            Reporter::Server => SpanKind::Server,
        };
        let span = trail.span(kind, trace.span, trace.context.parent)?;
        let text = |text: &str| Attribute::Text(text.into());
        let mut attributes = vec![
            ("hawser.source", text(source.as_str())),
            ("hawser.destination", text(destination.as_str())),
            ("hawser.reason", Attribute::Word(record.reason.as_str())),
            ("hawser.decided_by", Attribute::Word(record.decided_by.as_str())),
            ("hawser.request_id", text(trail.request_id.to_str().unwrap_or_default())),
            ("hawser.view_index", number(record.view_index.0)),
            ("http.request.method", text(trail.method())),
            ("http.request.body.size", number(record.bytes_sent)),
            ("http.response.body.size", number(record.bytes_received)),
        ];
        attributes.extend(trail.path().map(|path| ("url.path", text(path))));
        attributes.extend(record.route.as_deref().map(|route| ("http.route", text(route))));
        attributes.extend(record.status.map(status_attribute));
        let status = record.grpc_status();
        attributes.extend(status.map(|status| ("rpc.grpc.status_code", number(u64::from(status)))));
        let cluster = record.cluster.as_ref();
        attributes.extend(cluster.map(|cluster| ("hawser.cluster", text(cluster.as_str()))));
        if *reporter == Reporter::Client {
            attributes.push(("hawser.attempts", number(record.attempts.into())));
        }
        Some(Span {
            name: record
                .route
                .as_deref()
                .map_or(span.name.clone(), |route| format!("{} {route}", span.name).into()),
            ended_ns: after(span.started_ns, record.duration),
            attributes,
            error: record.is_error().then_some(record.reason.as_str()),
            ..span
        })
    }

    fn flush(&self) {
        if !self.is_dirty.replace(false) {
            return;
        }
        let (_, source, destination) = &self.key;
        let shared = &self.shared;
        for series in &mut *self.series.borrow_mut() {
            series.flush(&shared.metrics);
        }
        let counts = self.counts.take();
        // Their pair is one of this host's own services and what it calls: never very many.
        let pair = [source.as_str(), destination.as_str()];
        for (outcome, count) in
            [("retried", counts.retries), ("over_budget", counts.retries_refused)]
        {
            if count > 0 {
                let labels = [pair[0], pair[1], outcome];
                shared.metrics.retries.with_label_values(&labels).inc_by(count);
            }
        }
        if counts.ejections > 0 {
            shared.metrics.ejections.with_label_values(&pair).inc_by(counts.ejections);
        }
        let mut edges = lock(&shared.edges);
        for ((cluster, reason), tally) in counts.edges {
            let key = EdgeKey {
                source: source.clone(),
                destination: destination.clone(),
                cluster: cluster.as_ref().map_or("", PeerName::as_str).into(),
                verdict: reason.as_str().into(),
            };
            if edges.len() < EDGES_MAX || edges.contains_key(&key) {
                edges.entry(key).or_default().merge(&tally);
            } else {
                shared.metrics.edges_dropped.inc();
            }
        }
    }
}

impl Series {
    fn flush(&mut self, metrics: &Metrics) {
        self.duration.flush();
        self.first_byte.flush();
        let [source, destination, reporter, cluster, route] = self.labels.all();
        for ((class, reason, grpc), count) in std::mem::take(&mut self.requests) {
            let grpc = grpc.map(|status| status.to_string()).unwrap_or_default();
            let reason = reason.as_str();
            let labels = [source, destination, reporter, cluster, route, class, reason, &grpc];
            metrics.requests.with_label_values(&labels).inc_by(count);
            if self.is_other {
                metrics.overflow.inc_by(count);
            }
        }
        let (sent, received) = (&mut self.bytes_sent, &mut self.bytes_received);
        for (direction, bytes) in [("sent", sent), ("received", received)] {
            let labels = [source, destination, reporter, cluster, direction];
            metrics.bytes.with_label_values(&labels).inc_by(std::mem::take(bytes));
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Does what is left to do for a request whose sender goes away before there is an answer.
pub(crate) struct Unanswered<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Unanswered<F> {
    pub(crate) fn then(report: F) -> Self {
        Self(Some(report))
    }

    /// There is an answer.
    pub(crate) fn answered(mut self) {
        self.0 = None;
    }
}

impl<F: FnOnce()> Drop for Unanswered<F> {
    fn drop(&mut self) {
        if let Some(report) = self.0.take() {
            report();
        }
    }
}

/// What is said of a connection that ended before it had a caller, so that no view was asked.
fn refused(reporter: Reporter, destination: &ServiceName, reason: Reason) -> Line<'_> {
    let decided_by = match reporter {
        Reporter::Client => DecidedBy::ClientProxy,
        Reporter::Server => DecidedBy::ServerProxy,
    };
    Line {
        time_ms: crate::clock::wall().as_millis(),
        reporter: reporter.as_str(),
        source: None,
        source_address: None,
        destination: destination.as_str(),
        cluster: None,
        verdict: "deny",
        reason: reason.as_str(),
        decided_by: decided_by.as_str(),
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
        attempts: 0,
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

fn number(value: u64) -> Attribute {
    Attribute::Number(i64::try_from(value).unwrap_or(i64::MAX))
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is counted together because there is no room to count it apart.
const OTHER: &str = "other";
/// Addresses of callers without TLS that are told apart.
const ADDRESSES_MAX: usize = 256;
/// Series of one process: pairs × clusters × routes.
const SERIES_MAX: usize = 2_000;
/// Ways of one pair: clusters × routes.
const ROUTES_MAX: usize = 32;
const EDGES_MAX: usize = 4_096;
/// Batches of spans that wait to be exported; each is of one worker's tenth of a second.
const SPAN_BATCHES_MAX: usize = 64;

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
            protocol: None,
            status,
            bytes_sent: 10,
            bytes_received: 20,
            first_byte: Some(Duration::from_millis(1)),
            duration: Duration::from_millis(3),
            view_index: Index(7),
            attempts: 1,
            upstream: None,
            cluster: None,
            route: None,
            caller: None,
            trail: None,
        }
    }

    fn shared(registry: &Registry, log: &AccessLog) -> Arc<Shared> {
        Arc::new(Shared::new(registry, log, None).expect("fresh"))
    }

    #[test]
    fn what_a_worker_counts_reaches_metrics_and_edges_once() {
        let registry = Registry::new();
        let shared = shared(&registry, &AccessLog::default());
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
        let labels = ["web", "db", "client", "", "default", "5xx", "upstream_reset", ""];
        assert_eq!(shared.metrics.requests.with_label_values(&labels).get(), 1);
    }

    #[test]
    fn the_number_of_pairs_is_bounded() {
        let registry = Registry::new();
        let shared = shared(&registry, &AccessLog::default());
        let local = Local::new(shared.clone());
        for n in 0..SERIES_MAX + 10 {
            let pair = local.pair(Reporter::Server, &name(&format!("s{n}")), &name("db"));
            pair.record(&record(Reason::Ok, None));
        }
        local.flush();
        let labels = [OTHER, OTHER, "server", OTHER, OTHER, "tcp", "ok", ""];
        assert_eq!(shared.metrics.requests.with_label_values(&labels).get(), 10);
        assert_eq!(shared.metrics.overflow.get(), 10);
    }

    #[test]
    fn the_number_of_one_pairs_ways_is_bounded() {
        let registry = Registry::new();
        let shared = shared(&registry, &AccessLog::default());
        let local = Local::new(shared.clone());
        let pair = local.pair(Reporter::Client, &name("web"), &name("db"));
        for n in 0..ROUTES_MAX + 10 {
            let route = Some(format!("r{n}").into());
            pair.record(&Record { route, ..record(Reason::Ok, Some(200)) });
        }
        local.flush();
        let count = |cluster, route| {
            let labels = ["web", "db", "client", cluster, route, "2xx", "ok", ""];
            shared.metrics.requests.with_label_values(&labels).get()
        };
        assert_eq!((count("", "r0"), count(OTHER, OTHER)), (1, 10));
        assert_eq!(shared.metrics.overflow.get(), 10);
    }

    #[test]
    fn what_failed_is_logged_whatever_the_share() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let log = AccessLog { to: LogSink::File(path.clone()), sample_ppm: 0 };
        let shared = shared(&Registry::new(), &log);
        let local = Local::new(shared.clone());
        let pair = local.pair(Reporter::Server, &name("web"), &name("db"));
        for reason in [Reason::Ok, Reason::UpstreamReset, Reason::Ok] {
            pair.record(&record(reason, Some(200)));
        }
        drop((pair, local));
        shared.finish();
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("upstream_reset"), "{text}");
    }

    #[test]
    fn records_are_written_a_json_object_a_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let registry = Registry::new();
        let shared = shared(&registry, &AccessLog::all(LogSink::File(path.clone())));
        let local = Local::new(shared.clone());
        local
            .pair(Reporter::Server, &name("web"), &name("db"))
            .record(&record(Reason::IntentionDenied, Some(403)));
        drop(local);
        shared.finish();
        let line = std::fs::read_to_string(&path).expect("it is there");
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(line["reason"], "intention_denied");
        assert_eq!(line["verdict"], "deny");
        assert_eq!(line["view_index"], 7);
    }
}
