//! Settling: a target that comes back while another carries the traffic waits for a while.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Balancer;
use crate::entry::Target;

/// How a target came back the last time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settling {
    pub(super) since: Duration,
    pub(super) span: Duration,
}

impl Balancer {
    /// Each target, and whether an instance of it is in.
    pub(super) fn usable_targets(&self) -> BTreeMap<Target, bool> {
        let mut usable = BTreeMap::new();
        for peer in &self.peers {
            *usable.entry(peer.key.0.clone()).or_default() |= peer.is_in();
        }
        usable
    }

    /// Lets targets that `was_usable` did not have settle, and forgets what is long past.
    pub(super) fn settle_new(&mut self, was_usable: &BTreeMap<Target, bool>, now: Duration) {
        let had_another =
            |target: &Target| was_usable.iter().any(|(other, usable)| *usable && other != target);
        for (target, is_usable) in self.usable_targets() {
            let was_usable = was_usable.get(&target).copied().unwrap_or_default();
            if is_usable && !was_usable && had_another(&target) {
                self.settle(&target, now);
            }
        }
        let settling = &self.settling;
        for group in &mut self.groups {
            let settling = settling.get(&group.target);
            group.ready_at = settling.map_or(Duration::ZERO, |it| it.since + it.span);
        }
        let groups = &self.groups;
        self.settling.retain(|target, it| {
            now.saturating_sub(it.since) < SETTLING_REMEMBERED
                || groups.iter().any(|group| group.target == *target)
        });
    }

    /// Holds traffic to `target` back for a while, longer if it came back not long ago.
    fn settle(&mut self, target: &Target, now: Duration) {
        let last = self.settling.get(target);
        let soon = last.filter(|last| now.saturating_sub(last.since) < SETTLING_REMEMBERED);
        let span = soon.map_or(SETTLING_FIRST, |last| (last.span * 2).min(SETTLING_MAX));
        self.settling.insert(target.clone(), Settling { since: now, span });
        for group in self.groups.iter_mut().filter(|group| group.target == *target) {
            group.ready_at = now + span;
        }
    }

    /// Lets the target of an instance that came back settle, if it is the first to.
    pub(super) fn returned(&mut self, at: usize, now: Duration) {
        let target = self.peers[at].key.0.clone();
        let (mut here, mut elsewhere) = (false, false);
        for (other, peer) in self.peers.iter().enumerate() {
            if other != at && peer.is_in() {
                if peer.key.0 == target { here = true } else { elsewhere = true }
            }
        }
        if !here && elsewhere {
            self.settle(&target, now);
        }
    }
}

const SETTLING_FIRST: Duration = Duration::from_secs(5);
const SETTLING_MAX: Duration = Duration::from_secs(60);
/// Coming back again within this is flapping.
const SETTLING_REMEMBERED: Duration = Duration::from_secs(120);
