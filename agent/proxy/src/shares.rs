//! Shares of rates that hold for all instances of a service: what to ask the servers for, and what
//! they leased.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::name::InstanceId;
use hawser_core::share::{Ask, Lease};

use crate::guard::Intake;
use crate::worker::Board;

/// The instances here that have such rates, by a handle that outlives the proxy.
#[derive(Clone)]
pub struct Shares(Arc<Board>);

impl fmt::Debug for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shares").finish_non_exhaustive()
    }
}

/// What one instance asks for.
pub struct Asked {
    /// The instance.
    pub instance: InstanceId,
    /// Its rates; empty where nobody called lately, and then it says only that it is there.
    pub asks: Vec<Ask>,
    intake: Arc<Intake>,
    at: Duration,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl Shares {
    pub(crate) fn of(board: &Arc<Board>) -> Self {
        Self(board.clone())
    }

    /// What the instances ask for now, which begins the next round of counting.
    pub fn ask(&self) -> Vec<Asked> {
        let asked = |(instance, intake): (InstanceId, Arc<Intake>)| {
            let (global, at) = (intake.global()?, intake.clock.now());
            Some(Asked { instance, asks: global.asks(at), intake, at })
        };
        self.0.intakes().into_iter().filter_map(asked).collect()
    }

    /// How many rates are leased shares of, and how many the instances take their fair share of.
    pub fn standing(&self) -> (usize, usize) {
        let standing = |(_, intake): (InstanceId, Arc<Intake>)| {
            Some(intake.global()?.standing(intake.clock.now()))
        };
        let all = self.0.intakes().into_iter().filter_map(standing);
        all.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

impl Asked {
    /// Takes what the servers leased: for each question in turn, or none where all stays as it is.
    pub fn lease(self, leases: impl IntoIterator<Item = Option<Lease>>) {
        let Some(global) = self.intake.global() else { return };
        let leased = self.asks.into_iter().zip(leases);
        let leased = leased.filter_map(|(ask, lease)| Some((ask.caller, lease?)));
        global.lease(leased, self.at, self.intake.clock.now());
    }
}
