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
        self.latency.at(now) * f64::from(self.in_flight + 1) * trouble * trouble
    }

    /// What least-request compares: requests under way, and what went wrong last as if it were.
    pub(super) fn load(&self) -> f64 {
        let trouble = f64::from(self.trouble());
        (f64::from(self.in_flight) + trouble * trouble) / f64::from(self.weight)
    }

    fn trouble(&self) -> u32 {
        self.failures.saturating_add(self.errors).min(TROUBLE_WEIGHED)
    }
}

/// What goes wrong in a row weighs quadratically, up to this often, so that failing fast attracts
/// no load.
const TROUBLE_WEIGHED: u32 = 50;
