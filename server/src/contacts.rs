//! What this server hears of peers' servers: kept in the leader's memory, and judged by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hawser_core::clock::UnixTime;
use hawser_core::peering::{PeerState, Peering};
use tokio_util::sync::CancellationToken;

use crate::identity::now;

/// Streams with peers, by the peering's id here. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contacts(Arc<Mutex<BTreeMap<Arc<str>, Contact>>>);

/// When a peer was heard and spoken to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contact {
    heard: Option<Instant>,
    /// When its last heartbeat came.
    pub(crate) last_heartbeat: Option<UnixTime>,
    /// When its last message of any kind came.
    pub(crate) last_receive: Option<UnixTime>,
    /// When the last message was sent to it.
    pub(crate) last_send: Option<UnixTime>,
    session: CancellationToken,
}

/// A message of a peering's stream, as far as liveness goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Moved {
    Sent,
    Received { is_heartbeat: bool },
}

impl Contacts {
    /// Begins a session of `peering`. The newest counts: an older one is to end, and is told so.
    pub(crate) fn begin(&self, peering: &Arc<str>) -> CancellationToken {
        let session = CancellationToken::new();
        let mut table = self.table();
        let contact = table.entry(peering.clone()).or_default();
        std::mem::replace(&mut contact.session, session.clone()).cancel();
        session
    }

    /// Notes a message of `peering`'s stream.
    pub(crate) fn note(&self, peering: &str, moved: Moved) {
        let mut table = self.table();
        let Some(contact) = table.get_mut(peering) else { return };
        match moved {
            Moved::Sent => contact.last_send = Some(now()),
            Moved::Received { is_heartbeat } => {
                contact.heard = Some(Instant::now());
                contact.last_receive = Some(now());
                if is_heartbeat {
                    contact.last_heartbeat = contact.last_receive;
                }
            }
        }
    }

    /// What is known of `peering`'s stream, at this server.
    pub(crate) fn of(&self, peering: &str) -> Contact {
        self.table().get(peering).cloned().unwrap_or_default()
    }

    /// Forgets peerings that are no more.
    pub(crate) fn retain(&self, is_known: impl Fn(&str) -> bool) {
        self.table().retain(|id, _| is_known(id));
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Contact>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contact {
    /// How `peering` stands now, where that is another way than the state has it. `led_since` is
    /// when this server began to lead: it has heard nobody before.
    pub(crate) fn verdict(
        &self,
        peering: &Peering,
        led_since: Instant,
        now: Instant,
    ) -> Option<PeerState> {
        let silence = |since: Instant| now.saturating_duration_since(since);
        let is_heard = self.heard.is_some_and(|heard| silence(heard) <= SILENCE_MAX);
        match peering.state {
            PeerState::Establishing | PeerState::Failing if is_heard => Some(PeerState::Active),
            PeerState::Active if !is_heard && silence(led_since) > NEW_LEADER_GRACE => {
                Some(PeerState::Failing)
            }
            _ => None,
        }
    }
}

/// A peer that says nothing for so long is silent: heartbeats come every second.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a new leader waits for a peer's stream to come to it.
const NEW_LEADER_GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn peering(state: PeerState) -> Peering {
        Peering {
            id: "p".into(),
            name: "east".parse().expect("a name"),
            meta: Default::default(),
            state,
            invitation: None,
            remote: None,
        }
    }

    #[test]
    fn a_peer_stands_as_it_is_heard() {
        use PeerState::{Active, Establishing, Failing, Pending, Terminated};
        let (led, second) = (Instant::now(), Duration::from_secs(1));
        // state, heard after, now after, expected, why
        let cases = [
            (Establishing, Some(1), 1, Some(Active), "its first word"),
            (Establishing, None, 60, None, "it never spoke, so it did not fall silent"),
            (Active, Some(10), 13, None, "three seconds are a pause"),
            (Active, Some(10), 14, Some(Failing), "more are silence"),
            (Active, None, 5, None, "a new leader gives it time"),
            (Active, None, 6, Some(Failing), "and not for ever"),
            (Failing, Some(10), 11, Some(Active), "it is back"),
            (Failing, Some(10), 14, None, "it is not"),
            (Pending, None, 60, None, "nobody took the token up"),
            (Terminated, Some(10), 10, None, "what ended stays so"),
        ];
        for (state, heard, at, expected, why) in cases {
            let heard = heard.map(|seconds: u32| led + second * seconds);
            let contact = Contact { heard, ..Contact::default() };
            let verdict = contact.verdict(&peering(state), led, led + second * at);
            assert_eq!(verdict, expected, "{why}");
        }
    }

    #[test]
    fn the_newest_session_counts() {
        let contacts = Contacts::default();
        let id: Arc<str> = "p".into();
        contacts.note(&id, Moved::Received { is_heartbeat: true });
        assert_eq!(contacts.of(&id).last_receive, None, "there is no such session");
        let old = contacts.begin(&id);
        let new = contacts.begin(&id);
        assert!(old.is_cancelled() && !new.is_cancelled());
        contacts.note(&id, Moved::Received { is_heartbeat: false });
        let seen = contacts.of(&id);
        assert!(seen.last_receive.is_some() && seen.last_heartbeat.is_none());
        contacts.retain(|_| false);
        assert_eq!(contacts.of(&id).last_receive, None);
    }
}
