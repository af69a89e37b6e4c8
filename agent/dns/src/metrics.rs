//! What the discovery plane counts, with labels from closed sets.

use hawser_core::dns::Kind;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::wire::Rcode;

/// Counters, looked up once so that a query costs one atomic addition.
#[derive(Debug)]
pub(crate) struct Metrics {
    queries: [[IntCounter; RCODES.len()]; TYPES.len()],
    pub(crate) ignored: IntCounter,
    pub(crate) truncated: IntCounter,
    pub(crate) wants_answered: IntCounter,
    pub(crate) wants_timed_out: IntCounter,
    pub(crate) queries_answered: IntCounter,
    pub(crate) queries_failed: IntCounter,
    pub(crate) recursed: IntCounter,
    pub(crate) recursions_failed: IntCounter,
    /// Queries that met a full table of waiting ones.
    pub(crate) overloaded: IntCounter,
    pub(crate) tcp_connections: IntGauge,
}

impl Metrics {
    /// Registers all of them.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let vec = |name: &str, help: &str, labels: &[&str]| {
            let made = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let counter = |name: &str, help: &str| {
            let made = IntCounter::new(name, help)?;
            registry.register(Box::new(made.clone()))?;
            Ok::<_, prometheus::Error>(made)
        };
        let queries = vec(
            "hawser_dns_queries_total",
            "Queries answered, by type asked for and rcode.",
            &["type", "rcode"],
        )?;
        let wants = vec(
            "hawser_dns_want_waits_total",
            "Queries that waited for a name to enter the view, by how the wait ended.",
            &["outcome"],
        )?;
        let prepared = vec(
            "hawser_dns_prepared_queries_total",
            "Queries for what a prepared query finds, by outcome.",
            &["outcome"],
        )?;
        let recursed = vec(
            "hawser_dns_recursions_total",
            "Queries for outside names that went to the recursors, by outcome.",
            &["outcome"],
        )?;
        let tcp_connections =
            IntGauge::new("hawser_dns_tcp_connections", "Open DNS connections over TCP.")?;
        registry.register(Box::new(tcp_connections.clone()))?;
        Ok(Self {
            queries: TYPES
                .map(|kind| RCODES.map(|(_, rcode)| queries.with_label_values(&[kind, rcode]))),
            ignored: counter(
                "hawser_dns_ignored_total",
                "Packets that were no queries and got no reply.",
            )?,
            truncated: counter(
                "hawser_dns_truncated_total",
                "Replies that did not hold every answer and said so.",
            )?,
            wants_answered: wants.with_label_values(&["answered"]),
            wants_timed_out: wants.with_label_values(&["timed_out"]),
            queries_answered: prepared.with_label_values(&["answered"]),
            queries_failed: prepared.with_label_values(&["failed"]),
            recursed: recursed.with_label_values(&["answered"]),
            recursions_failed: recursed.with_label_values(&["failed"]),
            overloaded: counter(
                "hawser_dns_overloaded_total",
                "Queries failed at once because too many others were waiting.",
            )?,
            tcp_connections,
        })
    }

    /// Counts one reply to a question of type `kind`, or to a packet that had none.
    pub(crate) fn count(&self, kind: Option<Kind>, rcode: Rcode) {
        let row = match kind {
            Some(Kind::A) => 0,
            Some(Kind::Aaaa) => 1,
            Some(Kind::Srv) => 2,
            Some(Kind::Txt) => 3,
            Some(Kind::Any) => 4,
            Some(Kind::Soa) => 5,
            Some(Kind::Ns) => 6,
            Some(Kind::Ptr) => 7,
            Some(Kind::Other) => 8,
            None => 9,
        };
        let column = RCODES.iter().position(|(known, _)| *known == rcode).unwrap_or(0);
        self.queries[row][column].inc();
    }
}

const TYPES: [&str; 10] =
    ["a", "aaaa", "srv", "txt", "any", "soa", "ns", "ptr", "other", "unreadable"];
const RCODES: [(Rcode, &str); 7] = [
    (Rcode::NoError, "noerror"),
    (Rcode::FormErr, "formerr"),
    (Rcode::ServFail, "servfail"),
    (Rcode::NxDomain, "nxdomain"),
    (Rcode::NotImp, "notimp"),
    (Rcode::Refused, "refused"),
    (Rcode::BadVers, "badvers"),
];
