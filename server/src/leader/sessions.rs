//! Ends sessions whose holders no longer renew them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use hawser_core::name::SessionId;
use hawser_core::state::{Command, State};

use super::expire::EXPIRE_EVERY;
use super::{Duties, every};

/// When sessions were renewed.
#[derive(Debug, Default)]
pub(super) struct Renewals {
    /// At a follower: who was renewed since the last report to the leader.
    pub(super) heard: BTreeSet<SessionId>,
    /// At the leader: when each was renewed last.
    renewed: BTreeMap<SessionId, Instant>,
}

impl Renewals {
    /// Notes that a session's holder is well.
    pub(super) fn renew(&mut self, session: SessionId) {
        if self.heard.len() < HEARD_MAX || self.heard.contains(&session) {
            self.heard.insert(session);
        }
    }

    /// Notes, at the leader, which sessions were renewed.
    pub(super) fn renew_all(&mut self, sessions: impl IntoIterator<Item = SessionId>) {
        let now = Instant::now();
        self.renewed.extend(sessions.into_iter().take(HEARD_MAX).map(|session| (session, now)));
    }

    /// Begins every TTL anew.
    pub(super) fn extend_all(&mut self) {
        self.renewed.clear();
    }

    /// Sessions that were not renewed for twice their TTL, as Consul counts it: holders renew once
    /// a TTL, and one late renewal must not cost a lock.
    pub(super) fn due(&mut self, state: &State, now: Instant) -> Vec<SessionId> {
        let mut kept = BTreeMap::new();
        let mut due = Vec::new();
        for row in state.sessions().iter() {
            let Some(ttl) = row.value.ttl else { continue };
            let id = &row.value.id;
            let renewed = self.renewed.get(id).copied().unwrap_or(now);
            if now.saturating_duration_since(renewed) >= ttl * 2 && due.len() < TOGETHER_MAX {
                due.push(id.clone());
            }
            kept.insert(id.clone(), renewed);
        }
        self.renewed = kept;
        due
    }
}

/// Proposes ends, for as long as this server leads.
pub(super) async fn run(duties: &Duties) {
    let mut tick = every(EXPIRE_EVERY);
    let mut looked = Instant::now();
    loop {
        tick.tick().await;
        let (before, now) = (looked, Instant::now());
        looked = now;
        if !duties.leases.has_listened(before, now, duties.leads()) {
            continue;
        }
        for session in duties.leases.sessions_due(&duties.reader.current(), now) {
            // Whoever was deposed meanwhile has not heard the holders either.
            if !duties.leads() {
                break;
            }
            match duties.proposer.propose(Command::EndSession(session.clone())).await {
                Ok(_) => tracing::info!(%session, "a session that was not renewed ended"),
                Err(failure) => tracing::warn!(%session, error = %failure, "it does not end yet"),
            }
        }
    }
}

/// Sessions in one report or table: as many as there may be.
const HEARD_MAX: usize = 100_000;
/// Sessions that end in one round.
const TOGETHER_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hawser_core::catalog::Node;
    use hawser_core::clock::{Index, Stamp, UnixTime};
    use hawser_core::session::{Behavior, Session};
    use hawser_core::state::NodeChanges;

    use super::*;

    fn id(text: &str) -> SessionId {
        text.parse().expect("an id")
    }

    /// A node with one session of a TTL of ten seconds, and one that needs no renewal.
    fn state() -> State {
        let mut state = State::default();
        let node = Node {
            id: "".into(),
            name: "a".parse().expect("a name"),
            address: "10.0.0.1".parse().expect("an address"),
            locality: Default::default(),
            meta: Default::default(),
            tagged: Default::default(),
        };
        let session = |id: &str, ttl| {
            Command::CreateSession(Session {
                id: id.parse().expect("an id"),
                name: "".into(),
                node: "a".parse().expect("a name"),
                lock_delay: Duration::ZERO,
                behavior: Behavior::Release,
                ttl,
                node_checks: Vec::new(),
                service_checks: Vec::new(),
            })
        };
        let sync = Command::SyncNode(NodeChanges {
            node,
            put_instances: Vec::new(),
            put_checks: Vec::new(),
            drop_instances: Vec::new(),
            drop_checks: Vec::new(),
        });
        let ttl = Some(Duration::from_secs(10));
        for (at, command) in (1..).zip([sync, session("short", ttl), session("endless", None)]) {
            let stamp = Stamp { index: Index(at), time: UnixTime::from_secs(at) };
            state.apply(stamp, command).expect("applied");
        }
        state
    }

    #[test]
    fn a_session_ends_after_two_ttls_without_a_word() {
        let (state, start) = (state(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut renewals = Renewals::default();
        assert_eq!(renewals.due(&state, at(0)), [], "the leader begins to count");
        assert_eq!(renewals.due(&state, at(19)), [], "one TTL late is not too late");
        assert_eq!(renewals.due(&state, at(20)), [id("short")]);
        renewals.renewed.insert(id("short"), at(15));
        assert_eq!(renewals.due(&state, at(34)), [], "renewed");
        assert_eq!(renewals.due(&state, at(35)), [id("short")]);
        renewals.extend_all();
        assert_eq!(renewals.due(&state, at(99)), [], "a new leader begins anew");
        renewals.renew_all([id("gone")]);
        renewals.due(&state, at(99));
        assert!(!renewals.renewed.contains_key(&id("gone")), "what is not there is forgotten");
    }
}
