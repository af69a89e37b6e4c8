//! What the server core counts and measures.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The server core's metrics. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) term: IntGauge,
    pub(crate) is_leader: IntGauge,
    pub(crate) last_index: IntGauge,
    pub(crate) committed_index: IntGauge,
    pub(crate) applied_index: IntGauge,
    pub(crate) leader_changes: IntCounter,
    pub(crate) apply_seconds: Histogram,
    pub(crate) commit_seconds: Histogram,
    pub(crate) fsync_seconds: Histogram,
    pub(crate) forwarded: IntCounter,
    pub(crate) watches: IntGauge,
    pub(crate) connections_refused: IntCounterVec,
    pub(crate) requests_limited: IntCounterVec,
    pub(crate) disk_free_bytes: IntGauge,
    pub(crate) snapshots_written: IntCounter,
    pub(crate) snapshots_installed: IntCounter,
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// When one is registered there already.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let seconds = |name: &str, help: &str| -> prometheus::Result<Histogram> {
            let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        Ok(Self {
            term: gauge("hawser_raft_term", "The Raft term this server is in.")?,
            is_leader: gauge("hawser_raft_is_leader", "1 while this server leads.")?,
            last_index: gauge("hawser_raft_last_index", "The last entry in this server's log.")?,
            committed_index: gauge(
                "hawser_raft_committed_index",
                "The last entry that this server knows to be committed.",
            )?,
            applied_index: gauge("hawser_raft_applied_index", "The last entry applied.")?,
            leader_changes: counter(
                "hawser_raft_leader_changes_total",
                "How often this server saw a new leader.",
            )?,
            apply_seconds: seconds(
                "hawser_raft_apply_seconds",
                "From a batch's first entry to its publication.",
            )?,
            commit_seconds: seconds(
                "hawser_raft_commit_seconds",
                "From a command's proposal here to its outcome.",
            )?,
            fsync_seconds: seconds(
                "hawser_raft_fsync_seconds",
                "How long a durable commit of the log takes.",
            )?,
            forwarded: counter(
                "hawser_raft_forwarded_total",
                "Commands that were forwarded to the leader.",
            )?,
            watches: gauge("hawser_watches", "Watches that are held now.")?,
            connections_refused: {
                let help = "Connections that ended by a fault of their peer, by reason.";
                let options = Opts::new("hawser_server_connections_refused_total", help);
                let refused = IntCounterVec::new(options, &["reason"])?;
                registry.register(Box::new(refused.clone()))?;
                refused
            },
            requests_limited: limited(registry)?,
            disk_free_bytes: gauge(
                "hawser_disk_free_bytes",
                "Room on the disk of the data folder.",
            )?,
            snapshots_written: counter(
                "hawser_raft_snapshots_written_total",
                "Snapshots written by this server.",
            )?,
            snapshots_installed: counter(
                "hawser_raft_snapshots_installed_total",
                "Snapshots installed on this server.",
            )?,
        })
    }
}

/// A Raft index or term as a gauge takes it.
pub(crate) fn level(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn limited(registry: &Registry) -> prometheus::Result<IntCounterVec> {
    let help = "Requests that were more than a control-plane-request-limit allows, by its mode and \
                by what was asked for.";
    let options = Opts::new("hawser_server_requests_limited_total", help);
    let limited = IntCounterVec::new(options, &["mode", "access"])?;
    registry.register(Box::new(limited.clone()))?;
    Ok(limited)
}

/// From a fast disk's fsync to a client's patience.
const SECONDS: [f64; 15] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 5.0,
];
