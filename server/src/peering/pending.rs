//! What a peer said and what is not proposed yet: many messages become one change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hawser_core::catalog::Endpoint;
use hawser_core::name::{PeerName, ServiceName};
use hawser_core::peering::{Import, PeerUpdate, Peering, Remote};
use hawser_core::state::State;
use hawser_proto::{Invalid, v1};
use prost::Message;
use tokio::sync::Notify;

/// What came in since it was last taken.
#[derive(Default)]
pub(crate) struct Pending {
    held: Mutex<Batch>,
    wake: Notify,
}

/// Services and more that a peer told of.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    is_snapshot: bool,
    put: BTreeMap<ServiceName, Import>,
    /// How much was put, encoded, since the last was taken.
    octets: usize,
    drop: BTreeSet<ServiceName>,
    /// Who the peer says that it is.
    pub(crate) remote: Option<v1::Remote>,
    /// How long its answers take, where that is another time than before.
    pub(crate) rtt_ms: Option<u32>,
    /// Whether what is held is whole: a heartbeat came after it.
    is_whole: bool,
}

/// Why a change is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}")]
    Invalid(#[from] Invalid),
    #[error(
        "it exports more than the {SERVICES_MAX} services or {ENDPOINTS_MAX} instances that are taken of a peer"
    )]
    TooMuch,
}

impl Pending {
    /// Notes what is exported now.
    ///
    /// # Errors
    /// [`Refused`]: the peer is not understood, or does not keep within bounds.
    pub(crate) fn exported(&self, change: v1::ExportedChange) -> Result<(), Refused> {
        let octets: usize = change.put.iter().map(Message::encoded_len).sum();
        let put: Vec<Import> =
            change.put.into_iter().map(Import::try_from).collect::<Result<_, _>>()?;
        if put.iter().flat_map(|import| import.endpoints.iter()).any(is_overlong) {
            return Err(Refused::TooMuch);
        }
        if put.iter().any(|import| !import.service.is_label()) {
            let why = "a service of the mesh has a name of a-z, 0-9 and -";
            return Err(Invalid::new("exported_change.put", why).into());
        }
        let gone: Vec<ServiceName> = change
            .drop
            .iter()
            .map(|name| name.parse().map_err(|why| Invalid::new("exported_change.drop", why)))
            .collect::<Result<_, _>>()?;
        let mut held = self.held();
        if change.is_snapshot {
            held.is_snapshot = true;
            held.put.clear();
            held.drop.clear();
        }
        for name in gone {
            held.put.remove(&name);
            held.drop.insert(name);
        }
        for import in put {
            held.drop.remove(&import.service);
            held.put.insert(import.service.clone(), import);
        }
        held.octets += octets;
        let endpoints: usize = held.put.values().map(|import| import.endpoints.len()).sum();
        if held.put.len() > SERVICES_MAX
            || held.drop.len() > SERVICES_MAX
            || endpoints > ENDPOINTS_MAX
            || held.octets > HELD_OCTETS_MAX
        {
            return Err(Refused::TooMuch);
        }
        Ok(())
    }

    /// Notes who the peer is now.
    pub(crate) fn remote(&self, remote: v1::Remote) {
        self.held().remote = Some(remote);
    }

    /// Notes another round trip.
    pub(crate) fn rtt(&self, rtt_ms: u32) {
        self.held().rtt_ms = Some(rtt_ms);
    }

    /// What was noted is whole: it may be taken.
    pub(crate) fn whole(&self) {
        let mut held = self.held();
        if held.is_something() {
            held.is_whole = true;
            self.wake.notify_one();
        }
    }

    /// Waits for something whole, and takes it. Cancel-safe.
    pub(crate) async fn take(&self) -> Batch {
        loop {
            {
                let mut held = self.held();
                if held.is_whole {
                    return std::mem::take(&mut *held);
                }
            }
            self.wake.notified().await;
        }
    }

    fn held(&self) -> MutexGuard<'_, Batch> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch {
    fn is_something(&self) -> bool {
        self.is_snapshot
            || !self.put.is_empty()
            || !self.drop.is_empty()
            || self.remote.is_some()
            || self.rtt_ms.is_some()
    }

    /// The updates that bring `state` to what the peer said: only what is not so already, in
    /// steps that fit into the log. `remote` is who the peer is now, where it said so.
    pub(crate) fn updates(
        self,
        state: &State,
        peering: &Peering,
        remote: Option<Remote>,
    ) -> Vec<PeerUpdate> {
        let held = |name: &ServiceName| import_of(state, &peering.name, name);
        let mut drop: Vec<ServiceName> = if self.is_snapshot {
            let held = state.peerings().imported_from(&peering.name);
            held.filter(|name| !self.put.contains_key(*name)).cloned().collect()
        } else {
            self.drop.into_iter().filter(|name| held(name).is_some()).collect()
        };
        let put = self.put.into_values().filter(|import| held(&import.service) != Some(import));
        let mut remote = remote.filter(|remote| peering.remote.as_ref() != Some(remote));
        let mut updates = Vec::new();
        let mut some: Vec<Import> = Vec::new();
        let mut octets = 0;
        let mut step = |put| PeerUpdate {
            name: peering.name.clone(),
            id: peering.id.clone(),
            remote: remote.take(),
            is_snapshot: false,
            put,
            drop: std::mem::take(&mut drop),
        };
        for import in put {
            let own = v1::Import::from(&import).encoded_len();
            octets += own;
            if octets > STEP_OCTETS && !some.is_empty() {
                octets = own;
                updates.push(step(std::mem::take(&mut some)));
            }
            some.push(import);
        }
        let last = step(some);
        if last.remote.is_some() || !last.put.is_empty() || !last.drop.is_empty() {
            updates.push(last);
        }
        updates
    }
}

/// Whether the texts of an instance are longer than any catalog's need to be.
fn is_overlong(endpoint: &Endpoint) -> bool {
    let place = [&endpoint.locality.region, &endpoint.locality.zone];
    let is_long = |text: &Arc<str>| text.len() > TEXT_OCTETS_MAX;
    endpoint.tags.len() > TAGS_MAX
        || endpoint.tags.iter().any(is_long)
        || place.into_iter().flatten().any(is_long)
}

fn import_of<'a>(state: &'a State, peer: &PeerName, service: &ServiceName) -> Option<&'a Import> {
    let (peer, service) = (peer.clone(), service.clone());
    let row = state.peerings().import(&hawser_core::peering::PeerService { peer, service })?;
    Some(&row.value)
}

/// A round trip in steps of powers of two: another one counts once it has held for 30 s, so that
/// nothing is written, and no traffic moves, because a packet was late.
///
/// What counts is the shortest of the last few, for a busy host makes them longer and never
/// shorter. Peers that are a few milliseconds away are all equally near.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoundTrip {
    settled: Option<u32>,
    other: Option<(u32, Instant)>,
    recent: VecDeque<u32>,
}

impl RoundTrip {
    /// As it is stored.
    pub(crate) fn new(settled: Option<u32>) -> Self {
        Self { settled, ..Self::default() }
    }

    /// Counts one that `took` so long, and says what is to be stored where that is news.
    pub(crate) fn measured(&mut self, took: Duration, now: Instant) -> Option<u32> {
        let millis = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        if self.recent.len() == SAMPLES_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(millis.clamp(MILLIS_MIN, MILLIS_MAX));
        let least = self.recent.iter().min().copied().unwrap_or(MILLIS_MAX);
        let step = least.next_power_of_two();
        if self.recent.len() < SAMPLES_FIRST || self.settled == Some(step) {
            self.other = None;
            return None;
        }
        let since = match self.other {
            Some((other, since)) if other == step => since,
            _ => now,
        };
        if self.settled.is_some() && now.saturating_duration_since(since) < SETTLES_AFTER {
            self.other = Some((step, since));
            return None;
        }
        (self.settled, self.other) = (Some(step), None);
        self.settled
    }
}

const SERVICES_MAX: usize = hawser_core::state::IMPORTS_PER_PEER_MAX;
const ENDPOINTS_MAX: usize = hawser_core::state::IMPORTED_INSTANCES_PER_PEER_MAX;
/// Of what was not proposed yet.
const HELD_OCTETS_MAX: usize = 64 * 1024 * 1024;
const TAGS_MAX: usize = 256;
const TEXT_OCTETS_MAX: usize = 512;
/// Half of what fits into one entry of the log.
const STEP_OCTETS: usize = 4 * 1024 * 1024;
/// Clusters that are nearer than this are not told apart.
const MILLIS_MIN: u32 = 4;
const MILLIS_MAX: u32 = 60_000;
/// One measurement says too little.
const SAMPLES_FIRST: usize = 3;
const SAMPLES_MAX: usize = 8;
const SETTLES_AFTER: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use hawser_core::clock::{Index, Stamp, UnixTime};
    use hawser_core::peering::PeerState;
    use hawser_core::state::Command;

    use super::*;

    fn import(service: &str, protocol: v1::Protocol) -> v1::Import {
        let protocol = protocol.into();
        v1::Import { service: service.to_owned(), protocol, endpoints: Vec::new() }
    }

    fn said(is_snapshot: bool, put: &[&str], drop: &[&str]) -> v1::ExportedChange {
        v1::ExportedChange {
            is_snapshot,
            put: put.iter().map(|name| import(name, v1::Protocol::Tcp)).collect(),
            drop: drop.iter().map(ToString::to_string).collect(),
        }
    }

    async fn taken(changes: Vec<v1::ExportedChange>) -> Batch {
        let pending = Pending::default();
        for change in changes {
            pending.exported(change).expect("good");
        }
        pending.whole();
        pending.take().await
    }

    fn peering() -> Peering {
        Peering {
            id: "p".into(),
            name: "east".parse().expect("a name"),
            meta: Default::default(),
            state: PeerState::Active,
            invitation: None,
            remote: None,
        }
    }

    #[tokio::test]
    async fn only_what_changed_is_proposed() {
        let mut state = State::default();
        let apply = |state: &mut State, command| {
            let index = Index(state.applied().0 + 1);
            state.apply(Stamp { index, time: UnixTime::default() }, command).expect("applied");
        };
        apply(&mut state, Command::PutPeering(peering()));
        let cases = [
            (vec![said(true, &["a", "b"], &[])], vec!["a", "b"], vec![], "all is new"),
            (vec![said(true, &["a", "b"], &[])], vec![], vec![], "told again"),
            (vec![said(false, &["c"], &["a"])], vec!["c"], vec!["a"], "a step"),
            (vec![said(false, &["d"], &[]), said(false, &[], &["d"])], vec![], vec![], "undone"),
            (
                vec![said(true, &["b"], &[]), said(false, &["c"], &[])],
                vec![],
                vec![],
                "a snapshot in two messages drops nothing in between",
            ),
            (vec![said(true, &[], &[])], vec![], vec!["b", "c"], "nothing is exported any more"),
        ];
        for (changes, put, drop, why) in cases {
            let updates = taken(changes).await.updates(&state, &peering(), None);
            let names = |names: Vec<String>| names;
            let seen_put = names(
                updates
                    .iter()
                    .flat_map(|update| &update.put)
                    .map(|i| i.service.to_string())
                    .collect(),
            );
            let seen_drop = names(
                updates.iter().flat_map(|update| &update.drop).map(|n| n.to_string()).collect(),
            );
            assert_eq!(
                (seen_put, seen_drop),
                (
                    names(put.iter().map(|n| n.to_string()).collect()),
                    names(drop.iter().map(|n| n.to_string()).collect())
                ),
                "{why}"
            );
            assert!(updates.len() <= 1, "{why}");
            for update in updates {
                apply(&mut state, Command::SyncPeer(update));
            }
        }
    }

    #[test]
    fn a_peer_keeps_within_bounds() {
        let pending = Pending::default();
        let many: Vec<String> = (0..=SERVICES_MAX).map(|n| format!("s{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(pending.exported(said(true, &many, &[])), Err(Refused::TooMuch));
        let wrong = pending.exported(said(false, &["*"], &[])).expect_err("no name");
        assert!(wrong.to_string().contains("import.service"), "{wrong}");
    }

    #[test]
    fn a_round_trip_settles_slowly() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut rtt = RoundTrip::default();
        let cases = [
            // at, it took, so often, stored, why
            (0, 90, 1, None, "one says too little"),
            (1, 2, 1, None, "and so do two"),
            (2, 80, 1, Some(4), "the shortest of three, and never below what is near"),
            (3, 30, 6, None, "late packets are no news while one of the last eight was short"),
            (10, 30, 1, None, "it has moved away, which must hold"),
            (20, 9, 1, None, "and this is another step"),
            (30, 30, 7, None, "the shortest counts"),
            (49, 15, 1, None, "29 s are not enough"),
            (50, 15, 1, Some(16), "30 s are"),
            (51, 14, 1, None, "the same step"),
        ];
        for (at, millis, times, expected, why) in cases {
            let took = Duration::from_millis(millis);
            let stored = (0..times).filter_map(|_| rtt.measured(took, start + second * at)).last();
            assert_eq!(stored, expected, "{why}");
        }
    }
}
