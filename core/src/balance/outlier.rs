//! Passive health: who is ejected for what it did, for how long, and how it comes back.

use std::ops::Range;
use std::time::Duration;

use super::peer::{Peer, Standing};
use super::{Balancer, Effect, Fault, PeerId, Pick};

impl Balancer {
    /// Takes in an answer of the instance at `at`; `fault` where it was an error.
    pub(super) fn answered(
        &mut self,
        at: usize,
        pick: Pick,
        fault: Option<Fault>,
        now: Duration,
    ) -> Effect {
        let peer = &mut self.peers[at];
        let is_error = matches!(fault, Some(Fault::Application | Fault::Gateway));
        peer.failures = 0;
        peer.answers = peer.answers.saturating_add(1);
        match fault {
            None => (peer.errors, peer.gateway_errors) = (0, 0),
            Some(Fault::Busy) => {}
            Some(Fault::Application) => {
                (peer.errors, peer.gateway_errors) = (peer.errors.saturating_add(1), 0);
            }
            Some(Fault::Gateway) => {
                peer.errors = peer.errors.saturating_add(1);
                peer.gateway_errors = peer.gateway_errors.saturating_add(1);
            }
        }
        peer.good = peer.good.saturating_add(u32::from(!is_error));
        if peer.is_in() {
            return if is_error { self.erred(at, now) } else { Effect::None };
        }
        // A late answer of before the ejection is no proof; the probe's is.
        if !pick.is_probe {
            return Effect::None;
        }
        if is_error && peer.is_out_for_errors {
            return self.eject(at, now);
        }
        peer.standing = Standing::In;
        peer.is_out_for_errors = false;
        self.ramp(at, now);
        self.returned(at, now);
        self.reconnect(at);
        Effect::Returned
    }

    /// Takes in that a request to the instance at `at` came to nothing.
    pub(super) fn failed(&mut self, at: usize, pick: Pick, now: Duration) -> Effect {
        let outlier = self.rules.outlier;
        let peer = &mut self.peers[at];
        peer.failures = peer.failures.saturating_add(1);
        let is_due = match peer.standing {
            Standing::In => peer.failures >= outlier.failures,
            Standing::Probing => pick.is_probe,
            Standing::OutUntil(_) => false,
        };
        match (is_due, peer.is_cut_off) {
            (true, true) => self.cut_off(at, now),
            (true, false) => self.eject(at, now),
            (false, _) => Effect::None,
        }
    }

    /// Takes in that there is no way to the target of the instance at `at`.
    pub(super) fn unreachable(&mut self, at: usize, pick: Pick, now: Duration) -> Effect {
        match self.peers[at].standing {
            Standing::In => self.cut_off(at, now),
            Standing::Probing if pick.is_probe => self.cut_off(at, now),
            // The others that were under way say nothing new.
            Standing::Probing | Standing::OutUntil(_) => Effect::None,
        }
    }

    /// Ejects an instance for the errors of its application, where they are its own: while others
    /// of its group answer well. What every instance answers with errors is the requests' fault, or
    /// that of something behind them all.
    fn erred(&mut self, at: usize, now: Duration) -> Effect {
        let outlier = self.rules.outlier;
        let peer = &self.peers[at];
        let is_due = peer.errors >= outlier.errors
            || outlier.gateway_errors.is_some_and(|most| peer.gateway_errors >= most);
        let does_well = |other: &Peer| other.is_in() && other.errors == 0 && other.failures == 0;
        if !is_due || !self.group_of(at).any(|i| i != at && does_well(&self.peers[i])) {
            return Effect::None;
        }
        self.credit_percent += outlier.errors_enforced_percent;
        if self.credit_percent < 100 {
            let peer = &mut self.peers[at];
            (peer.errors, peer.gateway_errors) = (0, 0);
            return Effect::None;
        }
        self.credit_percent -= 100;
        let effect = self.eject(at, now);
        self.peers[at].is_out_for_errors = effect != Effect::None;
        effect
    }

    /// Compares success rates once an interval has passed, and answers whom that ejects for how
    /// long. Call it every now and then.
    ///
    /// A rate ejects when it is the configured number of standard deviations below the mean of its
    /// group, and a tenth below it: in a group that does well, a little less well is no fault.
    /// Groups of fewer than 5 with 100 answers each are not judged.
    pub fn sweep(&mut self, now: Duration) -> Vec<(PeerId, Duration)> {
        if now < self.sweep_at {
            return Vec::new();
        }
        self.sweep_at = now.saturating_add(self.rules.outlier.interval);
        let mut start = 0;
        let mut due = Vec::new();
        if let Some(permille) = self.rules.outlier.success_stdev_permille {
            for group in &self.groups {
                let range = std::mem::replace(&mut start, group.end)..group.end;
                due.extend(self.below(range, f64::from(permille) / 1_000.0));
            }
        }
        for (at, peer) in self.peers.iter_mut().enumerate() {
            if peer.answers == 0 && peer.is_in() {
                // Nobody asked it, for it erred: forget by halves, or nobody ever will.
                peer.errors /= 2;
                peer.gateway_errors /= 2;
                peer.failures /= 2;
            } else if peer.is_in() && !due.contains(&at) {
                peer.ejections = peer.ejections.saturating_sub(1);
            }
            (peer.answers, peer.good) = (0, 0);
        }
        let eject = |at: usize| match self.eject(at, now) {
            Effect::Ejected(span) => {
                self.peers[at].is_out_for_errors = true;
                Some((self.peers[at].id, span))
            }
            Effect::None | Effect::Returned => None,
        };
        due.into_iter().filter_map(eject).collect()
    }

    /// Those of a group whose success rate is `factor` standard deviations below the mean.
    fn below(&self, group: Range<usize>, factor: f64) -> Vec<usize> {
        let rate = |at: usize| f64::from(self.peers[at].good) / f64::from(self.peers[at].answers);
        let is_judged = |at: &usize| {
            let peer = &self.peers[*at];
            peer.is_in() && peer.answers >= SUCCESS_ANSWERS_MIN
        };
        let judged: Vec<(usize, f64)> = group.filter(is_judged).map(|at| (at, rate(at))).collect();
        if judged.len() < SUCCESS_INSTANCES_MIN {
            return Vec::new();
        }
        let count = judged.len() as f64;
        let mean = judged.iter().map(|(_, rate)| rate).sum::<f64>() / count;
        let variance = judged.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
        let least = (mean - factor * variance.sqrt()).min(mean - SUCCESS_MARGIN);
        judged.into_iter().filter(|(_, rate)| *rate < least).map(|(at, _)| at).collect()
    }

    fn eject(&mut self, at: usize, now: Duration) -> Effect {
        let outlier = self.rules.outlier;
        let group = self.group_of(at);
        let others_out = group.clone().filter(|i| *i != at && !self.peers[*i].is_in()).count();
        let is_last_here = others_out + 1 == group.len();
        let another_group_can =
            (0..self.peers.len()).any(|i| !group.contains(&i) && self.peers[i].is_in());
        let most = (group.len() * outlier.max_percent as usize / 100).max(1);
        let peer = &mut self.peers[at];
        if others_out >= most || (is_last_here && !another_group_can) {
            peer.standing = Standing::In;
            return Effect::None;
        }
        let span = outlier.span(peer.ejections);
        peer.ejections = peer.ejections.saturating_add(1);
        let until = now.saturating_add(span);
        peer.standing = Standing::OutUntil(until);
        self.look_at = self.look_at.min(until);
        Effect::Ejected(span)
    }

    /// Ejects every instance of the target that the one at `at` is of.
    fn cut_off(&mut self, at: usize, now: Duration) -> Effect {
        let (target, times) = (self.peers[at].key.0.clone(), self.peers[at].ejections);
        let span = self.rules.outlier.span(times);
        let until = now.saturating_add(span);
        self.look_at = self.look_at.min(until);
        for (other, peer) in self.peers.iter_mut().enumerate() {
            if peer.key.0 != target {
                continue;
            }
            peer.standing = match peer.standing {
                // What was out by itself before comes back by itself.
                Standing::OutUntil(own) if other != at && !peer.is_cut_off => {
                    Standing::OutUntil(own.max(until))
                }
                _ => {
                    peer.is_cut_off = true;
                    peer.ejections = peer.ejections.max(times.saturating_add(1));
                    Standing::OutUntil(until)
                }
            };
        }
        Effect::Ejected(span)
    }

    /// Brings back all that was cut off with the one at `at`.
    fn reconnect(&mut self, at: usize) {
        if !std::mem::take(&mut self.peers[at].is_cut_off) {
            return;
        }
        let target = self.peers[at].key.0.clone();
        self.peers[at].ejections = 0;
        for peer in self.peers.iter_mut().filter(|peer| peer.key.0 == target) {
            if std::mem::take(&mut peer.is_cut_off) {
                peer.ejections = 0;
                peer.standing = Standing::In;
            }
        }
    }
}

/// Envoy's.
const SUCCESS_INSTANCES_MIN: usize = 5;
const SUCCESS_ANSWERS_MIN: u32 = 100;
const SUCCESS_MARGIN: f64 = 0.1;
