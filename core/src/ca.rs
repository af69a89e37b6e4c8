//! The certificate authority's records: roots, the intermediate, and when a leaf is renewed.
//!
//! Keys are here only sealed: bytes that mean nothing without the operator's key.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Index, UnixTime};

/// From when until when a certificate holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    /// Not before this moment.
    pub not_before: UnixTime,
    /// Not at this moment or after it.
    pub not_after: UnixTime,
}

/// A certificate that has run out.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the certificate ran out at {not_after}")]
pub struct Expired {
    /// When it did.
    pub not_after: UnixTime,
}

impl Validity {
    /// When to ask for the next certificate: evenly spread over 50–70 % of this one's lifetime.
    ///
    /// `draw_permille` is in `0..=1000` and comes from the caller's generator, so that a fleet
    /// started together does not renew together. The answer is never before `now`.
    ///
    /// # Errors
    /// [`Expired`] once `now` has reached `not_after`: reconnect with a fresh identity instead.
    pub fn renew_at(&self, now: UnixTime, draw_permille: u16) -> Result<UnixTime, Expired> {
        if now >= self.not_after {
            return Err(Expired { not_after: self.not_after });
        }
        let lifetime = self.not_after.since(self.not_before).as_millis() as u64;
        let draw = u64::from(draw_permille.min(1000));
        let permille =
            RENEW_FROM_PERMILLE + (RENEW_TO_PERMILLE - RENEW_FROM_PERMILLE) * draw / 1000;
        let offset = lifetime / 1000 * permille + lifetime % 1000 * permille / 1000;
        Ok(self.not_before.plus(Duration::from_millis(offset)).max(now))
    }

    /// Whether it holds at `now`.
    pub fn holds_at(&self, now: UnixTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

/// A root certificate that the mesh trusts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Root {
    /// SHA-1 of its DER in colon-separated hex: Consul's id for it.
    pub id: Arc<str>,
    /// A name for people.
    pub name: Arc<str>,
    /// The certificate, DER.
    pub certificate: Arc<[u8]>,
    /// Its serial number, as Consul shows it.
    pub serial: u64,
    /// When it holds.
    pub validity: Validity,
    /// Whether new intermediates are signed with it.
    pub active: bool,
    /// Its key, sealed with the operator's key.
    pub sealed_key: Arc<[u8]>,
    /// The same key, certified by the root before it: by it those who know only that one believe
    /// what this one vouches for. None for a first root.
    pub cross: Option<Arc<[u8]>>,
    /// When another took its place; none for one that signs or is yet to.
    pub rotated_out: Option<UnixTime>,
    /// The entry that brought it.
    pub created: Index,
    /// The entry that last changed it.
    pub modified: Index,
}

/// The certificate that signs leaves, under the active root.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Intermediate {
    /// The certificate, DER.
    pub certificate: Arc<[u8]>,
    /// When it holds.
    pub validity: Validity,
    /// Its key, sealed with the operator's key.
    pub sealed_key: Arc<[u8]>,
}

/// The authority as all servers agree on it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authority {
    /// Every trusted root; exactly one is active.
    pub roots: Vec<Root>,
    /// Who signs leaves.
    pub intermediate: Intermediate,
    /// How long a leaf holds.
    pub leaf_lifetime: Duration,
    /// What else an operator may set.
    pub policy: Policy,
    /// The ids of roots that were trusted once and must never be again, whatever brings them back:
    /// the newest last.
    pub retired: Vec<Arc<str>>,
    /// The entry that made it.
    pub created: Index,
    /// The entry that last changed any of this.
    pub index: Index,
}

/// How the authority is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy {
    /// How long a new intermediate holds.
    pub intermediate_lifetime: Duration,
    /// How long a new root holds.
    pub root_lifetime: Duration,
    /// For how long at least an old root stays trusted beside its successor.
    pub overlap: Duration,
    /// Whether it was set by the API: then no server's configuration changes it.
    pub is_set: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            intermediate_lifetime: Duration::from_secs(365 * DAY_SECS),
            root_lifetime: Duration::from_secs(10 * 365 * DAY_SECS),
            overlap: Duration::from_secs(600),
            is_set: false,
        }
    }
}

/// How far the fleet has come with a rotation.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Progress {
    /// Every living agent has said that it trusts every root of now.
    pub trusted: bool,
    /// Every agent, living or not, has said that all it shows is of the active root; and no peer
    /// is out of reach.
    pub reissued: bool,
}

/// What the authority needs next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// An intermediate, before the present one runs out.
    Intermediate,
    /// A successor of the active root, before that runs out.
    Introduce,
    /// The root that was introduced signs from now on: all know it.
    Activate,
    /// These roots are trusted no more: nothing that they vouch for is in use.
    Retire(Vec<Arc<str>>),
}

impl Authority {
    /// The root that signs.
    pub fn active(&self) -> Option<&Root> {
        self.roots.iter().find(|root| root.active)
    }

    /// The root that is to sign once all trust it; none while no rotation has begun.
    pub fn introduced(&self) -> Option<&Root> {
        self.roots.iter().find(|root| !root.active && root.rotated_out.is_none())
    }

    /// Trusts the roots with these ids no more, for good.
    pub fn retire(&mut self, ids: &[Arc<str>]) {
        self.roots.retain(|root| !ids.contains(&root.id));
        self.remember_retired(ids);
    }

    /// Notes `ids` among those that must never be trusted again: only the newest are known for ever.
    pub(crate) fn remember_retired(&mut self, ids: &[Arc<str>]) {
        let new: Vec<Arc<str>> =
            ids.iter().filter(|id| !self.retired.contains(id)).cloned().collect();
        self.retired.extend(new);
        let surplus = self.retired.len().saturating_sub(RETIRED_MAX);
        self.retired.drain(..surplus);
    }

    /// The next step of its life: one at a time.
    ///
    /// `longest` is how long a certificate may be in use at most after it was signed: by then a
    /// root has nothing left to vouch for, whatever the fleet has said.
    pub fn due(&self, now: UnixTime, progress: Progress, longest: Duration) -> Due {
        let is_due = |validity: &Validity, draw| {
            validity.renew_at(now, draw).is_ok_and(|at| at <= now) || now >= validity.not_after
        };
        if self.introduced().is_some() {
            // What is cross-signed is believed by the old root, but that must still hold.
            let is_late = self.active().is_none_or(|root| now >= root.validity.not_after);
            if progress.trusted || is_late {
                return Due::Activate;
            }
        } else if self.active().is_none_or(|root| is_due(&root.validity, 1000)) {
            return Due::Introduce;
        }
        let is_over = |root: &&Root| {
            root.rotated_out.is_some_and(|since| {
                (progress.reissued && now >= since.plus(self.policy.overlap))
                    || now >= since.plus(longest)
                    || now >= root.validity.not_after
            })
        };
        let over: Vec<Arc<str>> =
            self.roots.iter().filter(is_over).map(|root| root.id.clone()).collect();
        if !over.is_empty() {
            return Due::Retire(over);
        }
        if is_due(&self.intermediate.validity, 0) { Due::Intermediate } else { Due::Nothing }
    }
}

/// Who signs now, as every host learns it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Issuing {
    /// The active root's id; empty while there is none.
    pub root: Arc<str>,
    /// Over how long the fleet asks for new certificates when that changes.
    pub reissue_within: Duration,
}

/// How long a fleet of `certificates` takes to ask for new ones: fast where it is small, and
/// spread so that signing is a fraction of what one server can do.
pub fn reissue_within(certificates: usize) -> Duration {
    let each = u32::try_from(certificates).unwrap_or(u32::MAX);
    REISSUE_EACH.saturating_mul(each).clamp(REISSUE_MIN, REISSUE_MAX)
}

const DAY_SECS: u64 = 86_400;
const RETIRED_MAX: usize = 64;
const REISSUE_EACH: Duration = Duration::from_millis(5);
const REISSUE_MIN: Duration = Duration::from_secs(2);
const REISSUE_MAX: Duration = Duration::from_secs(60);
const RENEW_FROM_PERMILLE: u64 = 500;
const RENEW_TO_PERMILLE: u64 = 700;

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Validity = Validity {
        not_before: UnixTime::from_secs(1_000_000),
        not_after: UnixTime::from_secs(1_086_400),
    };

    #[test]
    fn renewal_falls_in_the_window_and_never_in_the_past() {
        let at = |hours: u64| UnixTime::from_secs(1_000_000 + hours * 3600);
        let cases = [
            // now, draw, expected, why
            (at(0), 0, Ok(at(12)), "the window opens at half life"),
            (at(0), 1000, Ok(UnixTime::from_secs(1_060_480)), "and closes at 70 %"),
            (at(0), u16::MAX, Ok(UnixTime::from_secs(1_060_480)), "a wild draw stays inside"),
            (at(20), 0, Ok(at(20)), "a late caller renews now"),
            (at(24), 0, Err(Expired { not_after: DAY.not_after }), "too late"),
        ];
        for (now, draw, expected, why) in cases {
            assert_eq!(DAY.renew_at(now, draw), expected, "{why}");
        }
    }

    fn root(id: &str, active: bool, from_day: u64, days: u64) -> Root {
        let at = |day: u64| UnixTime::from_secs(day * DAY_SECS);
        Root {
            id: id.into(),
            name: "".into(),
            certificate: [].into(),
            serial: 1,
            validity: Validity { not_before: at(from_day), not_after: at(from_day + days) },
            active,
            sealed_key: [].into(),
            cross: None,
            rotated_out: None,
            created: Index(0),
            modified: Index(0),
        }
    }

    #[test]
    fn a_root_is_succeeded_in_steps_that_each_wait_for_the_fleet() {
        let (day, longest) = (Duration::from_secs(DAY_SECS), Duration::from_secs(3 * DAY_SECS));
        let at = |day: u64| UnixTime::from_secs(day * DAY_SECS);
        let alone = |from_day| Authority {
            roots: vec![root("a", true, 0, 1000)],
            intermediate: Intermediate {
                certificate: [].into(),
                validity: Validity { not_before: at(from_day), not_after: at(from_day + 100) },
                sealed_key: [].into(),
            },
            leaf_lifetime: day,
            policy: Policy { overlap: day, ..Policy::default() },
            retired: Vec::new(),
            created: Index(1),
            index: Index(1),
        };
        let mut begun = alone(100);
        begun.roots.push(root("b", false, 100, 1000));
        let mut rotated = alone(100);
        rotated.roots = vec![root("a", false, 0, 1000), root("b", true, 100, 1000)];
        rotated.roots[0].rotated_out = Some(at(100));
        let mut late = begun.clone();
        late.roots[0].validity.not_after = at(101);
        let progress = |trusted, reissued| Progress { trusted, reissued };
        let none = Progress::default();
        let retire = || Due::Retire(vec!["a".into()]);
        let cases = [
            (alone(100), 110, none, Due::Nothing, "all is in order"),
            (alone(100), 150, none, Due::Intermediate, "half of its life is over"),
            (alone(100), 250, none, Due::Intermediate, "it ran out: late is better than never"),
            (alone(680), 700, none, Due::Introduce, "the root has 30 % left"),
            (begun.clone(), 101, none, Due::Nothing, "not all know it"),
            (begun.clone(), 150, none, Due::Intermediate, "what waits must still be signed"),
            (begun, 101, progress(true, false), Due::Activate, "all know it"),
            (late, 101, none, Due::Activate, "nothing is left to lose"),
            (rotated.clone(), 100, progress(true, true), Due::Nothing, "the overlap"),
            (rotated.clone(), 101, progress(true, false), Due::Nothing, "some still show it"),
            (rotated.clone(), 101, progress(true, true), retire(), "nobody does"),
            (rotated, 103, none, retire(), "nothing of it can be in use"),
        ];
        for (authority, day, progress, expected, why) in cases {
            assert_eq!(authority.due(at(day), progress, longest), expected, "{why}");
        }
    }

    #[test]
    fn a_fleet_asks_for_certificates_over_a_time_that_fits_it() {
        assert_eq!(reissue_within(1), REISSUE_MIN);
        assert_eq!(reissue_within(2_000), Duration::from_secs(10));
        assert_eq!(reissue_within(usize::MAX), REISSUE_MAX);
    }

    #[test]
    fn it_holds_from_its_first_moment_up_to_its_last() {
        assert!(DAY.holds_at(DAY.not_before));
        assert!(!DAY.holds_at(DAY.not_after));
    }
}
