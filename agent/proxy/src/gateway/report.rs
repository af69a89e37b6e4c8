//! What a gateway counts and says: connections by how they ended, bytes, and refusals in the log.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_core::reason::Reason;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

use crate::relay::Moved;

/// What all workers of a gateway share.
pub(crate) struct Shared {
    connections: IntCounterVec,
    refusals: IntCounterVec,
    bytes: IntCounterVec,
    open: IntGauge,
    /// The random octets of the handshakes that are passed on to peers' gateways.
    passing: Mutex<BTreeSet<[u8; 32]>>,
}

impl Shared {
    /// Registers the metrics.
    ///
    /// # Errors
    /// When one of that name is registered already.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let open = IntGauge::new(
            "hawser_gateway_connections",
            "Connections that the mesh gateway has accepted and that are open.",
        )?;
        registry.register(Box::new(open.clone()))?;
        Ok(Self {
            connections: counters(
                "hawser_gateway_connections_total",
                "Connections to the mesh gateway, by how they ended.",
                "reason",
            )?,
            refusals: counters(
                "hawser_gateway_refusals_total",
                "Connections that the mesh gateway refused before it relayed anything.",
                "reason",
            )?,
            bytes: counters(
                "hawser_gateway_bytes_total",
                "Bytes that the mesh gateway relayed; sent is from caller to callee.",
                "direction",
            )?,
            open,
            passing: Mutex::default(),
        })
    }
}

/// A handshake that is passed on to another gateway, until it is dropped.
pub(crate) struct Passing {
    shared: Arc<Shared>,
    random: [u8; 32],
}

impl Drop for Passing {
    fn drop(&mut self) {
        let mut passing = self.shared.passing.lock().unwrap_or_else(PoisonError::into_inner);
        passing.remove(&self.random);
    }
}

/// What one worker counts; added to [`Shared`] by [`Local::flush`].
pub(crate) struct Local {
    shared: Arc<Shared>,
    counts: RefCell<BTreeMap<Reason, Count>>,
    moved: Cell<Moved>,
    open: Cell<i64>,
    said: RefCell<BTreeMap<Reason, Said>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    connections: u64,
    refusals: u64,
}

/// When refusals for one reason were last logged, and how many have not been since.
#[derive(Clone, Copy, Debug)]
struct Said {
    at: Duration,
    kept_back: u64,
}

impl Local {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            counts: RefCell::default(),
            moved: Cell::default(),
            open: Cell::new(0),
            said: RefCell::default(),
        }
    }

    /// Counts accepted connections up or down.
    pub(crate) fn open(&self, change: i64) {
        self.open.set(self.open.get() + change);
    }

    /// Counts a connection that was relayed.
    pub(crate) fn relayed(&self, reason: Reason, moved: Moved) {
        self.counts.borrow_mut().entry(reason).or_default().connections += 1;
        let all = self.moved.get();
        self.moved
            .set(Moved { sent: all.sent + moved.sent, received: all.received + moved.received });
    }

    /// Counts a connection that was refused, and says so: once in [`SAY_EVERY`] for each reason.
    pub(crate) fn refused(
        &self,
        reason: Reason,
        from: Option<SocketAddr>,
        name: Option<&str>,
        now: Duration,
    ) {
        {
            let mut counts = self.counts.borrow_mut();
            let count = counts.entry(reason).or_default();
            count.connections += 1;
            count.refusals += 1;
        }
        let mut said = self.said.borrow_mut();
        if let Some(said) = said.get_mut(&reason)
            && now.saturating_sub(said.at) < SAY_EVERY
        {
            said.kept_back += 1;
            return;
        }
        let before = said.insert(reason, Said { at: now, kept_back: 0 });
        let not_said = before.map_or(0, |said| said.kept_back);
        // A name is whatever a stranger sent: it is written escaped, and no longer than a name is.
        let name = name.map(|name| name.get(..NAME_OCTETS_MAX).unwrap_or(name));
        tracing::warn!(%reason, from = ?from, name = ?name, not_said, "the gateway refused a connection");
    }

    /// Counts a connection that ended before it asked for anything.
    pub(crate) fn looked_at(&self, reason: Reason) {
        self.counts.borrow_mut().entry(reason).or_default().connections += 1;
    }

    /// Takes note of a handshake that is passed on to another gateway; none when it is passed on
    /// already: it has come back, and would do so for ever.
    pub(crate) fn pass(&self, random: [u8; 32]) -> Option<Passing> {
        let mut passing = self.shared.passing.lock().unwrap_or_else(PoisonError::into_inner);
        passing.insert(random).then(|| Passing { shared: self.shared.clone(), random })
    }

    /// Adds everything counted since the last time to what all workers share.
    pub(crate) fn flush(&self) {
        let shared = &self.shared;
        for (reason, count) in self.counts.take() {
            let label = [reason.as_str()];
            shared.connections.with_label_values(&label).inc_by(count.connections);
            if count.refusals > 0 {
                shared.refusals.with_label_values(&label).inc_by(count.refusals);
            }
        }
        let moved = self.moved.take();
        for (direction, bytes) in [("sent", moved.sent), ("received", moved.received)] {
            if bytes > 0 {
                shared.bytes.with_label_values(&[direction]).inc_by(bytes);
            }
        }
        shared.open.add(self.open.take());
    }
}

const SAY_EVERY: Duration = Duration::from_secs(10);
const NAME_OCTETS_MAX: usize = 253;
