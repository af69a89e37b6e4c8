//! The route: a service's instances in the order in which one host prefers them.

use crate::catalog::Locality;
use crate::health::Status;
use crate::view::{Endpoint, ServiceView};

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

/// Instances that are equally near: traffic goes to the first group that can take it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Group<'a> {
    /// How near they stand.
    pub nearness: Nearness,
    /// Each with its weight, which is above zero.
    pub endpoints: Vec<(&'a Endpoint, u16)>,
}

/// Orders the instances of `service` that may be sent mesh traffic from `here`.
///
/// An instance with a critical check, without a proxy or with weight zero takes none. When every
/// instance is critical there is no group: the checks are fresh knowledge, and failing at once is
/// more honest than traffic to what is known to be broken. Instances of a view that is merely old
/// are kept, for last known beats none.
pub fn route<'a>(service: &'a ServiceView, here: &Locality) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for nearness in [Nearness::Zone, Nearness::Region, Nearness::Rest] {
        let endpoints: Vec<_> = service
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.mesh.is_some())
            .filter(|endpoint| Nearness::between(here, &endpoint.locality) == nearness)
            .filter_map(|endpoint| weight(endpoint).map(|weight| (endpoint, weight)))
            .collect();
        if !endpoints.is_empty() {
            groups.push(Group { nearness, endpoints });
        }
    }
    groups
}

fn weight(endpoint: &Endpoint) -> Option<u16> {
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
            port: 80,
            mesh: Some(SocketAddr::new(address, 21000)),
            locality,
            tags: BTreeSet::new(),
            weights: Weights::default(),
            status,
        }
    }

    fn names(endpoints: Vec<Endpoint>, here: &Locality) -> Vec<Vec<String>> {
        let service: crate::name::ServiceName = "web".parse().expect("a name");
        let view = ServiceView {
            chain: Chain {
                service,
                protocol: Protocol::Http,
                connect_timeout: Duration::from_secs(1),
                request_timeout: Duration::from_secs(15),
                local_connect_timeout: Duration::from_secs(1),
                inbound_connections_max: None,
            },
            endpoints: endpoints.into(),
            index: Index(1),
        };
        let name = |(endpoint, _): &(&Endpoint, u16)| endpoint.node.to_string();
        route(&view, here).iter().map(|group| group.endpoints.iter().map(name).collect()).collect()
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
    fn where_all_are_critical_none_is_sent_traffic() {
        let all = vec![endpoint("a", locality("eu", "a"), Status::Critical)];
        assert!(names(all, &locality("eu", "a")).is_empty());
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
