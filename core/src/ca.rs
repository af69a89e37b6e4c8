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
    /// The entry that last changed any of this.
    pub index: Index,
}

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

    #[test]
    fn it_holds_from_its_first_moment_up_to_its_last() {
        assert!(DAY.holds_at(DAY.not_before));
        assert!(!DAY.holds_at(DAY.not_after));
    }
}
