//! What Prometheus sees of the data plane.

use hawser_core::name::PeerName;
use prometheus::core::Collector;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::{OTHER, PairKey, SeriesKey};

/// The metrics of one process's data plane.
pub(super) struct Metrics {
    pub(super) requests: IntCounterVec,
    pub(super) durations: HistogramVec,
    pub(super) first_bytes: HistogramVec,
    pub(super) bytes: IntCounterVec,
    pub(super) retries: IntCounterVec,
    pub(super) ejections: IntCounterVec,
    pub(super) on_purpose: OnPurpose,
    pub(super) refusals: IntCounterVec,
    pub(super) connections: IntGaugeVec,
    pub(super) log_dropped: IntCounterVec,
    pub(super) spans_dropped: IntCounter,
    pub(super) edges_dropped: IntCounter,
    pub(super) overflow: IntCounter,
    pub(super) series: IntGauge,
}

/// What routes do beside carrying requests.
pub(super) struct OnPurpose {
    pub(super) faults: IntCounterVec,
    pub(super) mirrored: IntCounterVec,
    pub(super) plaintext: IntCounterVec,
    pub(super) datagrams_dropped: IntCounterVec,
}

impl OnPurpose {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, kind: &str| {
            let labels = ["source", "destination", kind];
            registered(registry, IntCounterVec::new(Opts::new(name, help), &labels)?)
        };
        let plaintext = Opts::new(
            "hawser_proxy_plaintext_connections_total",
            "Connections of callers without TLS, by their address.",
        );
        Ok(Self {
            faults: counters(
                "hawser_proxy_faults_injected_total",
                "Faults that routes made on purpose.",
                "fault",
            )?,
            mirrored: counters(
                "hawser_proxy_mirrored_total",
                "Copies of requests, by what became of them.",
                "outcome",
            )?,
            datagrams_dropped: counters(
                "hawser_proxy_datagrams_dropped_total",
                "Datagrams of UDP upstreams that were dropped, and flows that made room.",
                "why",
            )?,
            plaintext: registered(
                registry,
                IntCounterVec::new(plaintext, &["service", "address"])?,
            )?,
        })
    }
}

impl Metrics {
    /// # Errors
    /// A metric of that name is registered already.
    pub(super) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help)?);
        let histogram = |name: &str, help: &str| {
            let options = HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec());
            registered(registry, HistogramVec::new(options, &SERIES)?)
        };
        Ok(Self {
            requests: counters(
                "hawser_proxy_requests_total",
                "Requests, and connections of TCP services, by how they ended.",
                &[SERIES.as_slice(), &["code", "reason", "grpc_status"]].concat(),
            )?,
            durations: histogram(
                "hawser_proxy_request_duration_seconds",
                "How long requests, and connections of TCP services, took to their last byte.",
            )?,
            first_bytes: histogram(
                "hawser_proxy_first_byte_seconds",
                "How long requests took to the head of their answer, all tries together.",
            )?,
            bytes: counters(
                "hawser_proxy_bytes_total",
                "Bytes relayed; sent is from caller to callee.",
                &["source", "destination", "reporter", "cluster", "direction"],
            )?,
            retries: counters(
                "hawser_proxy_retries_total",
                "Tries after the first or beside it, and those that the budget refused.",
                &["source", "destination", "outcome"],
            )?,
            ejections: counters(
                "hawser_proxy_ejections_total",
                "Instances ejected after failures in a row, counted by each worker.",
                &["source", "destination"],
            )?,
            on_purpose: OnPurpose::register(registry)?,
            refusals: counters(
                "hawser_proxy_refusals_total",
                "Connections refused before anything was relayed.",
                &["service", "reporter", "reason"],
            )?,
            connections: registered(
                registry,
                IntGaugeVec::new(
                    Opts::new("hawser_proxy_connections", "Connections accepted and open."),
                    &["kind"],
                )?,
            )?,
            log_dropped: counters(
                "hawser_proxy_access_log_dropped_total",
                "Access records lost: the writer was behind, or its file or pipe failed.",
                &["why"],
            )?,
            spans_dropped: counter(
                "hawser_proxy_spans_dropped_total",
                "Spans lost because there was no room for them until they are exported.",
            )?,
            edges_dropped: counter(
                "hawser_proxy_edges_dropped_total",
                "Edges of the call graph dropped because there are too many.",
            )?,
            overflow: counter(
                "hawser_proxy_series_overflow_total",
                "Requests counted under \"other\" because there are too many series.",
            )?,
            series: registered(
                registry,
                IntGauge::new(
                    "hawser_proxy_series",
                    "Pairs of services, by cluster and route, that are counted apart.",
                )?,
            )?,
        })
    }
}

/// The values of [`SERIES`].
pub(super) struct Labels {
    source: String,
    destination: String,
    reporter: &'static str,
    cluster: String,
    route: String,
}

impl Labels {
    /// Those of `key`, or of what is counted together where there is none.
    pub(super) fn new(pair: &PairKey, key: Option<&SeriesKey>) -> Self {
        let (reporter, source, destination) = pair;
        let reporter = reporter.as_str();
        match key {
            Some(key) => Self {
                source: source.to_string(),
                destination: destination.to_string(),
                reporter,
                cluster: key.cluster.as_ref().map(PeerName::to_string).unwrap_or_default(),
                route: key.route.as_deref().unwrap_or(DEFAULT_ROUTE).to_owned(),
            },
            None => Self {
                source: OTHER.to_owned(),
                destination: OTHER.to_owned(),
                reporter,
                cluster: OTHER.to_owned(),
                route: OTHER.to_owned(),
            },
        }
    }

    pub(super) fn all(&self) -> [&str; 5] {
        [&self.source, &self.destination, self.reporter, &self.cluster, &self.route]
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

const SERIES: [&str; 5] = ["source", "destination", "reporter", "cluster", "route"];
/// The route of a service whose config entries name none.
const DEFAULT_ROUTE: &str = "default";
const DURATION_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
