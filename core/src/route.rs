//! The route: a service's instances in the order in which one host prefers them.

use crate::catalog::{Endpoint, Locality};
use crate::entry::{GatewayMode, Target};
use crate::health::Status;
use crate::name::PeerName;
use crate::peering::PeerGateway;
use crate::view::{ServiceView, View};

/// How near an instance stands.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Nearness {
    /// In the caller's zone.
    Zone,
    /// In the caller's region, another zone.
    Region,
    /// Elsewhere, or nobody knows where.
    Rest,
}

impl Nearness {
    /// How near `there` is to `here`. A zone counts within its region only.
    pub fn between(here: &Locality, there: &Locality) -> Self {
        let same_region = here.region.is_some() && here.region == there.region;
        let same_zone = here.zone.is_some() && here.zone == there.zone;
        let no_regions = here.region.is_none() && there.region.is_none();
        match (same_region, same_zone) {
            (true, true) => Self::Zone,
            (false, true) if no_regions => Self::Zone,
            (true, false) => Self::Region,
            (false, _) => Self::Rest,
        }
    }
}

/// Which way the instances of a peer are reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way<'a> {
    /// Each at its own address.
    Direct,
    /// All through any of these gateways, by server name.
    Through(&'a [PeerGateway]),
}

/// The way to `peer` under `mode`; none when there is none: the peer is unknown, or no gateway is
/// known that the mode asks for.
pub fn way<'a>(view: &'a View, peer: &PeerName, mode: GatewayMode) -> Option<Way<'a>> {
    let peer = view.peers.get(peer)?;
    let through =
        |gateways: &'a [PeerGateway]| (!gateways.is_empty()).then_some(Way::Through(gateways));
    match mode {
        GatewayMode::None => Some(Way::Direct),
        GatewayMode::Local => through(&view.gateways),
        GatewayMode::Remote => through(&peer.gateways),
        GatewayMode::Default => through(&peer.gateways).or(Some(Way::Direct)),
    }
}

/// Instances that are equally near: traffic goes to the first group that can take it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Group<'a> {
    /// What they are instances of.
    pub target: Target,
    /// The way there is, when they are a peer's.
    pub gateway_mode: GatewayMode,
    /// How near they stand.
    pub nearness: Nearness,
    /// Each with its weight, which is above zero.
    pub endpoints: Vec<(&'a Endpoint, u16)>,
}

/// Orders the instances that may be sent mesh traffic for `service` from `here`: its own by
/// nearness, then those of each target that stands in for it. Targets in peers whose servers are
/// silent come last, because what is known of them is old; those to which there is no way are left
/// out.
///
/// An instance with a critical check, without a proxy or with weight zero takes none. When every
/// instance is critical there is no group: the checks are fresh knowledge, and failing at once is
/// more honest than traffic to what is known to be broken. Instances of a view that is merely old
/// are kept, for last known beats none. Where a service leaves locality aside, the instances of each
/// target are all equally near.
pub fn route<'a>(view: &View, service: &'a ServiceView, here: &Locality) -> Vec<Group<'a>> {
    let is_flat = service.chain.policies.ignores_locality;
    let own = (service.target(), service.gateway_mode, &*service.endpoints);
    let others = service.failover.iter();
    let others = others.map(|other| (other.target.clone(), other.gateway_mode, &*other.endpoints));
    let mut targets: Vec<(Target, GatewayMode, &'a [Endpoint])> = [own]
        .into_iter()
        .chain(others)
        .filter(|(target, mode, _)| {
            target.peer.as_ref().is_none_or(|peer| way(view, peer, *mode).is_some())
        })
        .collect();
    targets.sort_by_key(|(target, ..)| {
        let peer = target.peer.as_ref().and_then(|peer| view.peers.get(peer));
        peer.is_some_and(|peer| !peer.is_live)
    });
    targets
        .into_iter()
        .flat_map(|(target, mode, endpoints)| {
            by_nearness(here, endpoints, is_flat).map(move |(nearness, endpoints)| Group {
                target: target.clone(),
                gateway_mode: mode,
                nearness,
                endpoints,
            })
        })
        .collect()
}

/// The instances among `endpoints` that may be sent traffic, with their weights, nearest first;
/// where it `is_flat`, all are of the rest.
fn by_nearness<'a>(
    here: &Locality,
    endpoints: &'a [Endpoint],
    is_flat: bool,
) -> impl Iterator<Item = (Nearness, Vec<(&'a Endpoint, u16)>)> {
    [Nearness::Zone, Nearness::Region, Nearness::Rest].into_iter().filter_map(move |nearness| {
        let equally_near: Vec<_> = endpoints
            .iter()
            .filter(|endpoint| endpoint.mesh.is_some())
            .filter(|endpoint| match is_flat {
                true => nearness == Nearness::Rest,
                false => Nearness::between(here, &endpoint.locality) == nearness,
            })
            .filter_map(|endpoint| weight(endpoint).map(|weight| (endpoint, weight)))
            .collect();
        (!equally_near.is_empty()).then_some((nearness, equally_near))
    })
}

/// The share of traffic that `endpoint` takes, as healthy as it is; none when it may take none.
pub fn weight(endpoint: &Endpoint) -> Option<u16> {
    let weight = match endpoint.status {
        Status::Passing => endpoint.weights.passing,
        Status::Warning => endpoint.weights.warning,
        Status::Critical => 0,
    };
    (weight > 0).then_some(weight)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::catalog::{Protocol, Weights};
    use crate::chain::Chain;
    use crate::clock::Index;
    use crate::policy::Policies;
    use crate::view::{PeerView, TargetView};

    fn locality(region: &str, zone: &str) -> Locality {
        let known = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
        Locality { region: known(region), zone: known(zone) }
    }

    fn endpoint(name: &str, locality: Locality, status: Status) -> Endpoint {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Endpoint {
            node: name.parse().expect("a name"),
            instance: name.parse().expect("an id"),
            address,
            has_own_address: false,
            ports: Default::default(),
            port: 80,
            mesh: Some(SocketAddr::new(address, 21000)),
            locality,
            tags: BTreeSet::new(),
            weights: Weights::default(),
            status,
        }
    }

    fn chain() -> Chain {
        Chain {
            service: "web".parse().expect("a name"),
            protocol: Protocol::Http,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(15),
            local_connect_timeout: Duration::from_secs(1),
            inbound_connections_max: None,
            policies: Arc::default(),
        }
    }

    fn names(endpoints: Vec<Endpoint>, here: &Locality) -> Vec<Vec<String>> {
        let view = ServiceView::alone(chain(), endpoints.into(), Index(1));
        let name = |(endpoint, _): &(&Endpoint, u16)| endpoint.node.to_string();
        route(&View::default(), &view, here)
            .iter()
            .map(|group| group.endpoints.iter().map(name).collect())
            .collect()
    }

    #[test]
    fn the_nearest_healthy_come_first() {
        use Status::{Critical, Passing, Warning};
        let here = locality("eu", "a");
        let mut outside = endpoint("outside", locality("eu", "a"), Passing);
        outside.mesh = None;
        let mut idle = endpoint("idle", locality("eu", "a"), Passing);
        idle.weights.passing = 0;
        let all = vec![
            endpoint("far", locality("us", "a"), Passing),
            endpoint("near", locality("eu", "a"), Passing),
            endpoint("ill", locality("eu", "a"), Critical),
            endpoint("next", locality("eu", "b"), Warning),
            endpoint("unknown", locality("", ""), Passing),
            outside,
            idle,
        ];
        assert_eq!(names(all, &here), [vec!["near"], vec!["next"], vec!["far", "unknown"]]);
    }

    #[test]
    fn where_locality_is_left_aside_all_are_equally_near() {
        let all = ["near", "far"].map(|name| {
            let region = if name == "near" { "eu" } else { "us" };
            endpoint(name, locality(region, "a"), Status::Passing)
        });
        let policies = Policies { ignores_locality: true, ..Policies::default() };
        let chain = Chain { policies: Arc::new(policies), ..chain() };
        let view = ServiceView::alone(chain, all.to_vec().into(), Index(1));
        let groups = route(&View::default(), &view, &locality("eu", "a"));
        let sizes: Vec<_> = groups.iter().map(|group| group.endpoints.len()).collect();
        assert_eq!(sizes, [2]);
    }

    #[test]
    fn where_all_are_critical_none_is_sent_traffic() {
        let all = vec![endpoint("a", locality("eu", "a"), Status::Critical)];
        assert!(names(all, &locality("eu", "a")).is_empty());
    }

    fn target(service: &str, peer: &str) -> Target {
        let peer = (!peer.is_empty()).then(|| peer.parse().expect("a name"));
        Target { service: service.parse().expect("a name"), peer }
    }

    fn peer(is_live: bool, gateways: usize) -> PeerView {
        let gateway = |n: usize| PeerGateway {
            address: SocketAddr::new([192, 0, 2, 1].into(), 8443 + n as u16),
            locality: Locality::default(),
        };
        PeerView {
            trust_domain: "2b.consul".parse().expect("a trust domain"),
            datacenter: "dc2".parse().expect("a name"),
            roots: Vec::new(),
            revoked: Default::default(),
            calls_us: "east".parse().expect("a name"),
            is_live,
            gateways: (0..gateways).map(gateway).collect(),
        }
    }

    #[test]
    fn what_stands_in_comes_after_in_its_order_and_old_knowledge_last() {
        let here = locality("eu", "a");
        let stands_in = |service: &str, peer: &str, mode, node: &str| TargetView {
            target: target(service, peer),
            gateway_mode: mode,
            endpoints: Arc::new([endpoint(node, locality("eu", "a"), Status::Passing)]),
        };
        let view = View {
            peers: Arc::new(
                [("silent", false, 1), ("west", true, 1), ("flat", true, 0)]
                    .into_iter()
                    .map(|(name, is_live, gateways)| {
                        (name.parse().expect("a name"), peer(is_live, gateways))
                    })
                    .collect(),
            ),
            ..View::default()
        };
        let own = endpoint("own", locality("us", "a"), Status::Passing);
        let service = ServiceView {
            chain: chain(),
            peer: None,
            gateway_mode: GatewayMode::Default,
            endpoints: Arc::new([own]),
            failover: Arc::new([
                stands_in("web", "silent", GatewayMode::Default, "s"),
                stands_in("web", "flat", GatewayMode::Remote, "no-way"),
                stands_in("web", "flat", GatewayMode::Default, "f"),
                stands_in("web", "gone", GatewayMode::None, "unknown-peer"),
                stands_in("backup", "", GatewayMode::Default, "b"),
                stands_in("web", "west", GatewayMode::Local, "no-gateway-here"),
                stands_in("web", "west", GatewayMode::Default, "w"),
            ]),
            index: Index(1),
            routing: None,
        };
        let order: Vec<String> = route(&view, &service, &here)
            .iter()
            .map(|group| group.endpoints[0].0.node.to_string())
            .collect();
        assert_eq!(order, ["own", "f", "b", "w", "s"]);
    }

    #[test]
    fn nearness_is_a_zone_within_a_region() {
        let cases = [
            // here, there, expected, why
            (("eu", "a"), ("eu", "a"), Nearness::Zone, "both match"),
            (("eu", "a"), ("eu", "b"), Nearness::Region, "only the region does"),
            (("eu", "a"), ("us", "a"), Nearness::Rest, "a zone's name means nothing elsewhere"),
            (("", "a"), ("", "a"), Nearness::Zone, "nobody names regions"),
            (("", ""), ("", ""), Nearness::Rest, "nobody names anything"),
            (("eu", ""), ("eu", ""), Nearness::Region, "zones unnamed"),
        ];
        for ((region, zone), (there_region, there_zone), expected, why) in cases {
            let (here, there) = (locality(region, zone), locality(there_region, there_zone));
            assert_eq!(Nearness::between(&here, &there), expected, "{why}");
        }
    }
}
