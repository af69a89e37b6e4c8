//! Leases of agents: renewed by heartbeats, kept in the leader's memory, and run out by a write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hawser_core::ca::Progress;
use hawser_core::clock::Index;
use hawser_core::name::{NodeName, SessionId};
use hawser_core::peering::{PeerState, Peering};
use hawser_core::state::{Command, State};
use hawser_proto::{Member, v1};
use tokio_util::sync::CancellationToken;

use super::sessions::Renewals;
use super::{Duties, every};
use crate::dial::{Dialer, Lane};
use crate::raft::Raft;

/// How far one agent has come with a rotation of roots.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Standing {
    /// Of which authority it is.
    pub(crate) authority: Index,
    /// It trusts every root of it.
    pub(crate) trusts: bool,
    /// All that it shows is of the active root.
    pub(crate) reissued: bool,
}

/// Who was heard, with what they said of a rotation.
type Heard = BTreeMap<NodeName, Option<Standing>>;

fn standings(heard: &Heard) -> impl Iterator<Item = (NodeName, Standing)> {
    heard.iter().filter_map(|(node, standing)| Some((node.clone(), (*standing)?)))
}

/// Where heartbeats of agents go. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Leases(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// At a follower: who was heard since the last report to the leader.
    heard: BTreeMap<NodeName, Option<Standing>>,
    /// At the leader: how far each node has come with a rotation of roots.
    standings: BTreeMap<NodeName, Standing>,
    /// At the leader: when each node was heard last.
    renewed: BTreeMap<NodeName, Instant>,
    sessions: Renewals,
}

impl Leases {
    /// Notes that `node`'s agent is alive: the leader knows within a second.
    pub fn renew(&self, node: NodeName) {
        self.hear(node, None);
    }

    /// The same, while roots are rotated: with how far `node` has come.
    pub(crate) fn renew_in_rotation(&self, node: NodeName, standing: Standing) {
        self.hear(node, Some(standing));
    }

    fn hear(&self, node: NodeName, standing: Option<Standing>) {
        let mut table = self.table();
        if table.heard.len() < HEARD_MAX || table.heard.contains_key(&node) {
            let held = table.heard.entry(node).or_default();
            // What was said in between without a word of it does not undo it.
            *held = standing.or(*held);
        }
    }

    /// Notes, at the leader, how far agents have come with a rotation.
    pub(crate) fn stand_all(&self, standings: impl IntoIterator<Item = (NodeName, Standing)>) {
        self.table().standings.extend(standings.into_iter().take(HEARD_MAX));
    }

    /// How far the fleet has come with the rotation of `state`'s authority.
    ///
    /// What an agent that is dead shows may still be in use, so it counts for what is shown, and
    /// not for what is trusted: that it catches up with when it is back.
    pub(crate) fn progress(&self, state: &State) -> Progress {
        let Some(authority) = state.authority() else { return Progress::default() };
        let mut table = self.table();
        if authority.roots.len() == 1 {
            table.standings.clear();
            return Progress::default();
        }
        let mut progress = Progress { trusted: true, reissued: true };
        for row in state.catalog().nodes().filter(|row| !row.value.is_external()) {
            let node = &row.value.name;
            let standing = table.standings.get(node).copied().unwrap_or_default();
            let is_current = standing.authority == authority.index;
            let is_dead = state.catalog().is_down(node);
            progress.trusted &= is_dead || (is_current && standing.trusts);
            progress.reissued &= is_current && standing.reissued;
        }
        // A peer that is not heard of has not heard of the new root either.
        let is_lost = |peering: &Peering| peering.state == PeerState::Failing;
        progress.reissued &= !state.peerings().iter().any(|row| is_lost(&row.value));
        progress
    }

    /// Notes that a session's holder is well: the leader knows within a second.
    pub fn renew_session(&self, session: SessionId) {
        self.table().sessions.renew(session);
    }

    /// Notes, at the leader, which sessions were renewed at a follower.
    pub(crate) fn renew_sessions(&self, sessions: impl IntoIterator<Item = SessionId>) {
        self.table().sessions.renew_all(sessions);
    }

    /// Which sessions were not renewed in time.
    pub(super) fn sessions_due(&self, state: &State, now: Instant) -> Vec<SessionId> {
        self.table().sessions.due(state, now)
    }

    /// Notes, at the leader, whom a follower heard.
    pub(crate) fn renew_all(&self, nodes: impl IntoIterator<Item = NodeName>) {
        let now = Instant::now();
        let mut table = self.table();
        table.renewed.extend(nodes.into_iter().take(HEARD_MAX).map(|node| (node, now)));
    }

    /// Begins every lease anew: a new leader has heard nobody yet.
    pub(crate) fn extend_all(&self) {
        let mut table = self.table();
        table.renewed.clear();
        table.sessions.extend_all();
    }

    /// Whether agents could be heard since `before`. Who did not listen for a while cannot say who
    /// was silent meanwhile, and begins every lease anew: this process stood still, or it was cut
    /// off from the servers that hear most agents.
    pub(super) fn has_listened(&self, before: Instant, now: Instant, leads: bool) -> bool {
        let is_late = now.saturating_duration_since(before) > LISTENED_WITHIN;
        if is_late || !leads {
            self.extend_all();
        }
        !is_late && leads
    }

    /// Who died and who came back, as of `now`. A node that was never heard of begins its lease.
    fn due(&self, state: &State, now: Instant, lease: Duration) -> (Vec<NodeName>, Vec<NodeName>) {
        let mut table = self.table();
        let (mut dead, mut alive) = (Vec::new(), Vec::new());
        let mut kept = BTreeMap::new();
        for row in state.catalog().nodes().filter(|row| !row.value.is_external()) {
            // Nobody renews for a node without an agent: its registrar says how it is.
            if row.value.is_external() {
                continue;
            }
            let node = &row.value.name;
            let is_down = state.catalog().is_down(node);
            let Some(renewed) = table.renewed.get(node).copied() else {
                if !is_down {
                    kept.insert(node.clone(), now);
                }
                continue;
            };
            let is_late = now.saturating_duration_since(renewed) > lease;
            match (is_late, is_down) {
                (true, false) if dead.len() < TOGETHER_MAX => dead.push(node.clone()),
                (false, true) if alive.len() < TOGETHER_MAX => alive.push(node.clone()),
                _ => {}
            }
            kept.insert(node.clone(), renewed);
        }
        table.renewed = kept;
        (dead, alive)
    }

    fn take_heard(&self) -> (Heard, BTreeSet<SessionId>) {
        let mut table = self.table();
        (std::mem::take(&mut table.heard), std::mem::take(&mut table.sessions.heard))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Brings renewals to the leader, until `drain`.
pub(crate) async fn report(leases: Leases, raft: Raft, dialer: Dialer, drain: CancellationToken) {
    let mut tick = every(REPORT_EVERY);
    let status = raft.status();
    loop {
        tokio::select! {
            () = drain.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (is_leader, leader) = {
            let status = status.borrow();
            let leader = status.leader.and_then(|id| status.member(id));
            (status.is_leader, leader.cloned())
        };
        if is_leader {
            let (nodes, sessions) = leases.take_heard();
            leases.stand_all(standings(&nodes));
            leases.renew_all(nodes.into_keys());
            leases.renew_sessions(sessions);
        } else if let Some(leader) = leader {
            let (nodes, sessions) = leases.take_heard();
            if nodes.is_empty() && sessions.is_empty() {
                continue;
            }
            if !send(&dialer, &leader, &nodes, &sessions).await {
                // The next leader hears of them; renewing twice does no harm.
                nodes.into_iter().for_each(|(node, standing)| leases.hear(node, standing));
                sessions.into_iter().for_each(|session| leases.renew_session(session));
            }
        }
    }
}

async fn send(
    dialer: &Dialer,
    leader: &Member,
    nodes: &Heard,
    sessions: &BTreeSet<SessionId>,
) -> bool {
    let Ok(mut client) = dialer.client_of(leader, Lane::Request) else { return false };
    let standings = standings(nodes).map(|(node, standing)| v1::Standing {
        node: node.to_string(),
        authority: standing.authority.0,
        trusts: standing.trusts,
        reissued: standing.reissued,
    });
    let standings = standings.collect();
    let nodes = nodes.keys().map(ToString::to_string).collect();
    let sessions = sessions.iter().map(ToString::to_string).collect();
    let call = client.renew_leases(v1::Leases { nodes, sessions, standings });
    matches!(tokio::time::timeout(REPORT_MAX, call).await, Ok(Ok(_)))
}

/// Proposes deaths and returns, for as long as this server leads.
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
        let state = duties.reader.current();
        let (dead, alive) = duties.leases.due(&state, now, duties.lease);
        if dead.is_empty() && alive.is_empty() {
            continue;
        }
        tracing::info!(dead = ?dead, alive = ?alive, "liveness of nodes changed");
        if let Err(failure) = duties.proposer.propose(Command::SetLiveness { dead, alive }).await {
            tracing::warn!(error = %failure, "liveness of nodes is not stored yet");
        }
    }
}

const REPORT_EVERY: Duration = Duration::from_millis(500);
const REPORT_MAX: Duration = Duration::from_secs(2);
pub(super) const EXPIRE_EVERY: Duration = Duration::from_millis(500);
/// A look later than this came after a standstill.
const LISTENED_WITHIN: Duration = Duration::from_secs(2);
/// Nodes in one report or table: as many as a catalog may hold.
const HEARD_MAX: usize = 100_000;
/// Nodes in one write.
const TOGETHER_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use hawser_core::catalog::Node;
    use hawser_core::clock::{Index, Stamp, UnixTime};
    use hawser_core::state::NodeChanges;

    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn name(text: &str) -> NodeName {
        text.parse().expect("a name")
    }

    fn apply(state: &mut State, command: Command) {
        let index = Index(state.applied().0 + 1);
        let stamp = Stamp { index, time: UnixTime::from_secs(1) };
        state.apply(stamp, command).expect("applied");
    }

    fn node(text: &str) -> Node {
        Node {
            id: "".into(),
            name: name(text),
            address: "10.0.0.1".parse().expect("an address"),
            locality: Default::default(),
            meta: Default::default(),
            tagged: Default::default(),
        }
    }

    fn state(nodes: &[&str]) -> State {
        let mut state = State::default();
        for text in nodes {
            let changes = NodeChanges {
                node: node(text),
                put_instances: Vec::new(),
                put_checks: Vec::new(),
                drop_instances: Vec::new(),
                drop_checks: Vec::new(),
            };
            apply(&mut state, Command::SyncNode(changes));
        }
        state
    }

    #[test]
    fn a_lease_runs_out_once_and_a_heartbeat_brings_the_node_back() {
        let mut state = state(&["a", "b"]);
        let leases = Leases::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let none = (Vec::new(), Vec::new());
        assert_eq!(leases.due(&state, at(0), LEASE), none, "a new leader waits a whole lease");
        leases.table().renewed.insert(name("b"), at(10));
        assert_eq!(leases.due(&state, at(15), LEASE), none, "not over yet");
        assert_eq!(leases.due(&state, at(16), LEASE), (vec![name("a")], Vec::new()));
        let (dead, alive) = (vec![name("a")], Vec::new());
        apply(&mut state, Command::SetLiveness { dead, alive });
        assert_eq!(leases.due(&state, at(17), LEASE), none, "said once");
        leases.table().renewed.insert(name("a"), at(18));
        assert_eq!(leases.due(&state, at(18), LEASE), (Vec::new(), vec![name("a")]));
        leases.extend_all();
        assert_eq!(leases.due(&state, at(99), LEASE), none, "the dead stay so until heard");
        let cases = [
            // looked before, leads, counts, why
            (98, true, true, "as ever"),
            (60, true, false, "the process stood still"),
            (98, false, false, "no quorum was heard"),
        ];
        for (before, leads, expected, why) in cases {
            leases.table().renewed.insert(name("b"), at(50));
            assert_eq!(leases.has_listened(at(before), at(99), leads), expected, "{why}");
            let dead = if expected { vec![name("b")] } else { Vec::new() };
            assert_eq!(leases.due(&state, at(99), LEASE).0, dead, "{why}");
        }
        leases.extend_all();
        assert!(!leases.table().renewed.contains_key(&name("a")));
    }
}
