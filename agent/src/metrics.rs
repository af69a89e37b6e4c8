//! What the agent counts about itself.

use prometheus::{
    GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, core::Collector,
};

/// The agent's own metrics.
#[derive(Clone)]
pub(crate) struct Metrics {
    /// 1 while a server is connected.
    pub(crate) server_connected: IntGauge,
    /// Seconds since a server was last heard of; 0 while connected.
    pub(crate) contact_age: IntGauge,
    /// The index of the view.
    pub(crate) view_index: IntGauge,
    /// Seconds until each service's leaf runs out; negative once it has.
    pub(crate) leaf_expiry: GaugeVec,
    /// Seconds until the node's certificate runs out.
    pub(crate) node_expiry: IntGauge,
    /// Rounds of anti-entropy.
    pub(crate) anti_entropy_runs: IntCounter,
    /// Rounds that failed.
    pub(crate) anti_entropy_errors: IntCounter,
    /// Heartbeats that were not answered.
    pub(crate) heartbeat_errors: IntCounter,
    /// Edges dropped because they could not be reported.
    pub(crate) edges_dropped: IntCounter,
    /// Rates of all instances together, by whether a share of them is leased.
    pub(crate) rate_shares: IntGaugeVec,
    /// Spans that the collector took.
    pub(crate) spans_exported: IntCounter,
    /// Spans that it did not, by why.
    pub(crate) spans_dropped: IntCounterVec,
    /// Requests that the HTTP API answered.
    pub(crate) http_requests: IntCounter,
    /// Connections that the HTTP API refused.
    pub(crate) http_refused: IntCounter,
}

impl Metrics {
    /// Registers them all.
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help)?);
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help)?);
        let leaf = Opts::new(
            "hawser_agent_leaf_expiry_seconds",
            "Seconds until a service's leaf certificate runs out.",
        );
        let dropped = Opts::new(
            "hawser_agent_spans_dropped_total",
            "Spans that were dropped: too many waited, the collector refused them, or it was \
             unreachable when the agent stopped.",
        );
        Ok(Self {
            rate_shares: shares(registry)?,
            server_connected: gauge(
                "hawser_agent_server_connected",
                "1 while the agent is connected to a server.",
            )?,
            contact_age: gauge(
                "hawser_agent_last_contact_seconds",
                "Seconds since a server was last heard of; 0 while connected.",
            )?,
            view_index: gauge("hawser_agent_view_index", "The Raft index of the host's view.")?,
            leaf_expiry: registered(registry, GaugeVec::new(leaf, &["service"])?)?,
            node_expiry: gauge(
                "hawser_agent_node_certificate_expiry_seconds",
                "Seconds until the node's certificate runs out.",
            )?,
            anti_entropy_runs: counter(
                "hawser_agent_anti_entropy_runs_total",
                "Rounds of comparing this host with the catalog.",
            )?,
            anti_entropy_errors: counter(
                "hawser_agent_anti_entropy_errors_total",
                "Rounds that did not end in agreement.",
            )?,
            heartbeat_errors: counter(
                "hawser_agent_heartbeat_errors_total",
                "Heartbeats that no server answered.",
            )?,
            edges_dropped: counter(
                "hawser_agent_edges_dropped_total",
                "Edges that were dropped because no server took them.",
            )?,
            spans_exported: counter(
                "hawser_agent_spans_exported_total",
                "Spans that the collector took.",
            )?,
            spans_dropped: registered(registry, IntCounterVec::new(dropped, &["why"])?)?,
            http_requests: counter(
                "hawser_agent_http_requests_total",
                "Requests that the agent's HTTP API answered.",
            )?,
            http_refused: counter(
                "hawser_agent_http_connections_refused_total",
                "Connections that the agent's HTTP API refused.",
            )?,
        })
    }
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn shares(registry: &Registry) -> Result<IntGaugeVec, prometheus::Error> {
    let shares = Opts::new(
        "hawser_agent_rate_shares",
        "Rates of all instances together that are counted here, by whether a share is leased \
         or the fair share is taken.",
    );
    registered(registry, IntGaugeVec::new(shares, &["share"])?)
}
