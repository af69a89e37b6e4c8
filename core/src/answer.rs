//! What a prepared query finds: instances here, or else those of the first peer that has some.

use std::collections::BTreeMap;

use crate::catalog::{Endpoint, Meta, Node, Placed};
use crate::health::Status;
use crate::name::{PeerName, ServiceName};
use crate::peering::PeerService;
use crate::query::{Failover, Selection};
use crate::state::State;

/// What a query found.
#[derive(Debug)]
pub struct Found<'s> {
    /// Who answers it.
    pub instances: Instances<'s>,
    /// How many places were looked at after this cluster.
    pub failovers: usize,
}

/// Instances of one place.
#[derive(Debug)]
pub enum Instances<'s> {
    /// Of this cluster.
    Own(Vec<Placed<'s>>),
    /// Of a peer.
    Of(&'s PeerName, Vec<&'s Endpoint>),
}

impl Instances<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Self::Own(placed) => placed.is_empty(),
            Self::Of(_, endpoints) => endpoints.is_empty(),
        }
    }
}

/// Answers what is `asked`: with the instances here that will do, or else with those of the first
/// peer that has some. None of those that `is_seen` hides, by service and node, are looked at.
pub fn execute<'s>(
    state: &'s State,
    asked: &Selection,
    is_seen: impl Fn(&str, &str) -> bool,
) -> Found<'s> {
    let none = || Found { instances: Instances::Own(Vec::new()), failovers: 0 };
    let Ok(service) = asked.service.parse::<ServiceName>() else { return none() };
    let own = state.catalog().placed(&service).filter(|placed| {
        is_seen(service.as_str(), placed.node.value.name.as_str()) && will_do(asked, placed)
    });
    let own: Vec<_> = own.collect();
    if !own.is_empty() {
        return Found { instances: Instances::Own(own), failovers: 0 };
    }
    let places = places(state, asked, &service);
    for (number, peer) in (1..).zip(&places) {
        let key = PeerService { peer: peer.clone(), service: service.clone() };
        let Some(row) = state.peerings().import(&key) else { continue };
        let Some(peering) = state.peerings().get(peer) else { continue };
        let endpoints = row.value.endpoints.iter().filter(|endpoint| {
            is_seen(service.as_str(), endpoint.node.as_str()) && endpoint_will_do(asked, endpoint)
        });
        let found = Instances::Of(&peering.value.name, endpoints.collect());
        if !found.is_empty() {
            return Found { instances: found, failovers: number };
        }
    }
    Found { failovers: places.len(), ..none() }
}

/// The peers to look at, in order, each once. A datacenter is that of a peer.
fn places(state: &State, asked: &Selection, service: &ServiceName) -> Vec<PeerName> {
    let in_datacenter = |datacenter: &str| {
        let mut peerings = state.peerings().iter();
        peerings.find_map(|row| {
            let remote = row.value.remote.as_ref()?;
            (remote.datacenter.as_str() == datacenter).then(|| row.value.name.clone())
        })
    };
    let Failover { nearest_n, datacenters, targets } = &asked.failover;
    let nearest = state.peerings().exporters(service).into_iter();
    let nearest = nearest.take((*nearest_n).into()).map(|peering| peering.name.clone());
    let named = datacenters.iter().filter_map(|datacenter| in_datacenter(datacenter));
    let targets = targets.iter().filter_map(|target| match target.peer.as_str() {
        "" => in_datacenter(&target.datacenter),
        peer => peer.parse().ok(),
    });
    let mut places: Vec<PeerName> = Vec::new();
    for peer in nearest.chain(named).chain(targets) {
        if !places.contains(&peer) {
            places.push(peer);
        }
    }
    places
}

fn will_do(asked: &Selection, placed: &Placed<'_>) -> bool {
    let ignored = |id: &str| asked.ignore_check_ids.iter().any(|one| one == id);
    let counted = placed.checks.iter().filter(|row| !ignored(row.value.id.as_str()));
    let instance = &placed.instance.value;
    is_well(asked, Status::worst(counted.map(|row| row.value.status)))
        && has_tags(asked, |tag| instance.tags.iter().any(|own| own.eq_ignore_ascii_case(tag)))
        && has_pairs(&asked.node_meta, &placed.node.value.meta)
        && has_pairs(&asked.service_meta, &instance.meta)
        && (!asked.connect || instance.mesh_port.is_some())
}

/// A peer tells of no meta, so what asks for some finds none.
fn endpoint_will_do(asked: &Selection, endpoint: &Endpoint) -> bool {
    is_well(asked, endpoint.status)
        && has_tags(asked, |tag| endpoint.tags.iter().any(|own| own.eq_ignore_ascii_case(tag)))
        && asked.node_meta.is_empty()
        && asked.service_meta.is_empty()
        && (!asked.connect || endpoint.mesh.is_some())
}

fn is_well(asked: &Selection, status: Status) -> bool {
    match status {
        Status::Passing => true,
        Status::Warning => !asked.only_passing,
        Status::Critical => false,
    }
}

fn has_tags(asked: &Selection, has: impl Fn(&str) -> bool) -> bool {
    asked.tags.iter().all(|tag| match tag.strip_prefix('!') {
        Some(unwanted) => !has(unwanted),
        None => has(tag),
    })
}

fn has_pairs(wanted: &BTreeMap<String, String>, held: &Meta) -> bool {
    wanted.iter().all(|(key, value)| held.get(key.as_str()).is_some_and(|held| **held == **value))
}

/// Puts what was found in order: by chance, and then, where `near` is a node, nearest first.
pub fn order(placed: &mut [Placed<'_>], near: Option<&Node>, mut draw: u64) {
    for last in (1..placed.len()).rev() {
        draw = draw.wrapping_mul(MULTIPLIER).wrapping_add(1);
        // The high bits are the random ones, and the remainder is below the length.
        let other = (draw >> 33) as usize % (last + 1);
        placed.swap(last, other);
    }
    if let Some(near) = near {
        placed.sort_by_key(|placed| near.distance(&placed.node.value));
    }
}

/// Knuth's, for numbers that follow from a draw.
const MULTIPLIER: u64 = 6_364_136_223_846_793_005;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_wanted_and_unwanted() {
        let asked = |tags: &[&str]| Selection {
            tags: tags.iter().map(ToString::to_string).collect(),
            ..Selection::default()
        };
        let has = |tag: &str| ["blue", "v1"].contains(&tag);
        for (tags, expected) in [
            (&[][..], true),
            (&["blue", "v1"], true),
            (&["blue", "v2"], false),
            (&["blue", "!v2"], true),
            (&["!blue"], false),
        ] {
            assert_eq!(has_tags(&asked(tags), has), expected, "{tags:?}");
        }
    }

    #[test]
    fn warning_is_well_unless_only_passing_is_asked_for() {
        for (only_passing, status, expected) in [
            (false, Status::Warning, true),
            (true, Status::Warning, false),
            (true, Status::Passing, true),
            (false, Status::Critical, false),
        ] {
            let asked = Selection { only_passing, ..Selection::default() };
            assert_eq!(is_well(&asked, status), expected);
        }
    }
}
