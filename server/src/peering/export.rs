//! What a peer may use: the services exported to it, as they are now, and what changed of them.

use std::collections::{BTreeMap, BTreeSet};

use hawser_core::name::{PeerName, ServiceName};
use hawser_core::peering::Import;
use hawser_core::state::{State, Topic};
use hawser_core::view;
use hawser_proto::v1;
use prost::Message;

/// What one peer is told, by name.
pub(crate) type Exported = BTreeMap<ServiceName, Import>;

/// What `exported-services` gives `peer` of `state`: services that have an instance.
pub(crate) fn exported(state: &State, peer: &PeerName) -> Exported {
    let one = |service: ServiceName| {
        let seen = view::service(state, &service);
        let (protocol, endpoints) = (seen.chain.protocol, seen.endpoints);
        let import = Import { service: service.clone(), protocol, endpoints };
        (!import.endpoints.is_empty()).then_some((service, import))
    };
    names(state, peer).into_iter().filter_map(one).collect()
}

/// The services that are exported to `peer`, whether they have instances or not.
pub(crate) fn names(state: &State, peer: &PeerName) -> BTreeSet<ServiceName> {
    let exports = state.entries().exports(state.catalog().services());
    exports.into_iter().filter(|(_, peers)| peers.contains(peer)).map(|(name, _)| name).collect()
}

/// What can change [`exported`], and who this cluster is.
pub(crate) fn topics(state: &State, peer: &PeerName) -> BTreeSet<Topic> {
    let mut topics = BTreeSet::from([
        Topic::Exports,
        Topic::Names,
        Topic::EveryChain,
        Topic::Peers,
        Topic::Authority,
    ]);
    topics.extend(view::GATEWAY_SERVICE.parse().map(Topic::Service));
    for name in names(state, peer) {
        topics.insert(Topic::Chain(name.clone()));
        topics.insert(Topic::Service(name));
    }
    topics
}

/// The messages that tell all of `now`.
pub(crate) fn snapshot(now: &Exported) -> Vec<v1::ExportedChange> {
    let mut changes = chunks(now.values(), Vec::new());
    if changes.is_empty() {
        changes.push(v1::ExportedChange::default());
    }
    changes[0].is_snapshot = true;
    changes
}

/// The messages that lead from `before` to `now`; none when they are equal.
pub(crate) fn changes(before: &Exported, now: &Exported) -> Vec<v1::ExportedChange> {
    let gone = before.keys().filter(|name| !now.contains_key(*name)).map(ToString::to_string);
    let changed = now.values().filter(|import| before.get(&import.service) != Some(*import));
    chunks(changed, gone.collect())
}

fn chunks<'a>(put: impl Iterator<Item = &'a Import>, drop: Vec<String>) -> Vec<v1::ExportedChange> {
    let mut changes = Vec::new();
    let mut change = v1::ExportedChange { is_snapshot: false, put: Vec::new(), drop };
    let mut octets = 0;
    for import in put {
        let import = v1::Import::from(import);
        octets += import.encoded_len();
        if octets > CHUNK_OCTETS && !change.put.is_empty() {
            octets = import.encoded_len();
            changes.push(std::mem::take(&mut change));
        }
        change.put.push(import);
    }
    if !change.put.is_empty() || !change.drop.is_empty() {
        changes.push(change);
    }
    changes
}

/// A message is sent once it holds so much, so that heartbeats get between.
const CHUNK_OCTETS: usize = 1024 * 1024;
