//! One instance as the balancer knows it.

use std::net::SocketAddr;
use std::time::Duration;

use super::PeerId;
use super::latency::Ewma;
use crate::entry::Target;
use crate::name::{InstanceId, NodeName};

/// Two clusters may use the same names and addresses.
pub(super) type Key = (Target, NodeName, InstanceId, SocketAddr);

#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) key: Key,
    pub(super) weight: u16,
    pub(super) in_flight: u32,
    pub(super) latency: Ewma,
    /// Until when it takes no more, as it said; and how often in a row it said so.
    pub(super) busy_until: Duration,
    pub(super) busy: u32,
    /// Requests in a row that came to nothing.
    pub(super) failures: u32,
    /// Answers in a row that were errors of the application.
    pub(super) errors: u32,
    /// Those of them that blamed something behind it.
    pub(super) gateway_errors: u32,
    /// Answers since the last comparison, and how many of them were none of these errors.
    pub(super) answers: u32,
    pub(super) good: u32,
    /// How often it was ejected; one less for each interval in which it answered.
    pub(super) ejections: u32,
    pub(super) standing: Standing,
    /// Whether it is out with its whole target, and comes back with it.
    pub(super) is_cut_off: bool,
    /// Whether it is out for what its application said.
    pub(super) is_out_for_errors: bool,
    /// When it began to come to its full share, if it still does.
    pub(super) ramp_from: Option<Duration>,
    /// Where instances take turns: what its turns have cost it.
    pub(super) turn: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    In,
    OutUntil(Duration),
    Probing,
}

impl Peer {
    pub(super) fn new(id: PeerId, key: Key, weight: u16, now: Duration) -> Self {
        Self {
            id,
            key,
            weight,
            in_flight: 0,
            busy_until: Duration::ZERO,
            busy: 0,
            latency: Ewma::new(now),
            failures: 0,
            errors: 0,
            gateway_errors: 0,
            answers: 0,
            good: 0,
            ejections: 0,
            standing: Standing::In,
            is_cut_off: false,
            is_out_for_errors: false,
            ramp_from: None,
            turn: 0,
        }
    }

    pub(super) fn is_in(&self) -> bool {
        self.standing == Standing::In
    }

    /// What peak EWMA compares.
    pub(super) fn cost(&self, now: Duration) -> f64 {
        let trouble = f64::from(self.trouble() + 1);
        let penalty = if self.is_busy(now) { BUSY_PENALTY } else { 0.0 };
        (self.latency.at(now) + penalty) * f64::from(self.in_flight + 1) * trouble * trouble
    }

    /// What least-request compares: requests under way, and what went wrong last as if it were.
    pub(super) fn load(&self, now: Duration) -> f64 {
        let trouble = f64::from(self.trouble());
        let penalty = if self.is_busy(now) { BUSY_LOAD } else { 0.0 };
        (f64::from(self.in_flight) + trouble * trouble + penalty) / f64::from(self.weight)
    }

    /// Takes in that it takes no more. That is no latency, and forgotten after a while: an instance
    /// that protects itself once must not starve for longer than it needs.
    pub(super) fn refused(&mut self, now: Duration) {
        let span = BUSY_FIRST.saturating_mul(1 << self.busy.min(8)).min(BUSY_MAX);
        // What was sent before it said so says the same once more, and not that it lasts.
        if !self.is_busy(now) {
            self.busy = self.busy.saturating_add(1);
            self.busy_until = now.saturating_add(span);
        }
    }

    /// Takes in that it takes requests.
    pub(super) fn took(&mut self) {
        self.busy = 0;
    }

    fn is_busy(&self, now: Duration) -> bool {
        now < self.busy_until
    }

    fn trouble(&self) -> u32 {
        self.failures.saturating_add(self.errors).min(TROUBLE_WEIGHED)
    }
}

/// What goes wrong in a row weighs quadratically, up to this often, so that failing fast attracts
/// no load.
const TROUBLE_WEIGHED: u32 = 50;
/// What saying "no more" adds to an instance's latency while it counts, in seconds: Linkerd's.
const BUSY_PENALTY: f64 = 5.0;
/// And to its requests under way.
const BUSY_LOAD: f64 = 100.0;
/// How long it counts, doubling with each time in a row.
const BUSY_FIRST: Duration = Duration::from_secs(1);
const BUSY_MAX: Duration = Duration::from_secs(5);
