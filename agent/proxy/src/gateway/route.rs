//! Where a server name leads from a mesh gateway: a pure function of the view.

use std::net::SocketAddr;

use hawser_core::catalog::{Endpoint, Locality};
use hawser_core::name::{PeerName, ServiceName};
use hawser_core::reason::Reason;
use hawser_core::route::{Nearness, weight};
use hawser_core::sni::{InstanceLabel, Sni};
use hawser_core::spiffe::TrustDomain;
use hawser_core::view::View;

/// Why a connection may be open, which is looked at again for as long as it is.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Permit {
    /// A service of this cluster is exported to a peer.
    Export {
        /// Which service.
        service: ServiceName,
        /// To whom.
        peer: PeerName,
        /// The cluster that it was asked of, which is this one.
        trust_domain: TrustDomain,
    },
    /// A cluster is a peer of this one, so that its gateways may be dialled.
    Peer(TrustDomain),
    /// A cluster is this one, whose servers answer peers.
    Own(TrustDomain),
}

impl Permit {
    /// Whether it holds under `view`.
    pub(crate) fn holds(&self, view: &View) -> bool {
        let is_own = |name: &TrustDomain| {
            view.trust.as_ref().is_some_and(|trust| trust.trust_domain == *name)
        };
        match self {
            Self::Export { service, peer, trust_domain } => {
                is_own(trust_domain)
                    && view.peers.contains_key(peer)
                    && view.exports.get(service).is_some_and(|peers| peers.contains(peer))
            }
            Self::Peer(name) => view.peers.values().any(|peer| peer.trust_domain == *name),
            Self::Own(name) => is_own(name),
        }
    }
}

/// Where a connection goes, and by what right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Route {
    /// The right.
    pub(crate) permit: Permit,
    /// Whom to dial: any of these. Never empty.
    pub(crate) candidates: Vec<Candidate>,
}

/// Somewhere that a connection may go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Candidate {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Those of a greater rank are dialled only when those of lesser ones fail.
    pub(crate) rank: u8,
    /// Its share of the connections within its rank; above zero.
    pub(crate) weight: u16,
}

/// Where a connection that asks for `name` goes from a gateway at `here`. `servers` are those of
/// the gateway's own cluster.
///
/// Nothing is authorised by that: whoever is reached proves the caller by mTLS and decides for
/// itself. A gateway only keeps out what could never be allowed.
///
/// # Errors
/// The [`Reason`] for which the connection is refused.
pub(crate) fn route(
    view: &View,
    servers: &[SocketAddr],
    here: &Locality,
    name: Option<&str>,
) -> Result<Route, Reason> {
    let trust = view.trust.as_deref().ok_or(Reason::ViewMissing)?;
    let sni = name.and_then(|name| name.parse().ok()).ok_or(Reason::UnknownName)?;
    match sni {
        Sni::Internal { .. } => Err(Reason::LocalName),
        Sni::External { instance, service, peer, trust_domain }
            if trust_domain == trust.trust_domain =>
        {
            let permit = Permit::Export { service: service.clone(), peer, trust_domain };
            if !permit.holds(view) {
                return Err(Reason::NotExported);
            }
            let service = view.services.get(&service).ok_or(Reason::NoEndpoint)?;
            some(permit, instances(&service.endpoints, instance), Reason::NoEndpoint)
        }
        Sni::External { trust_domain, .. } => {
            let peer = view.peers.values().find(|peer| peer.trust_domain == trust_domain);
            let gateways = &peer.ok_or(Reason::UnknownName)?.gateways;
            let candidate = |gateway: &hawser_core::peering::PeerGateway| Candidate {
                address: gateway.address,
                rank: rank(Nearness::between(here, &gateway.locality)),
                weight: 1,
            };
            let gateways = gateways.iter().map(candidate).collect();
            some(Permit::Peer(trust_domain), gateways, Reason::GatewayUnavailable)
        }
        Sni::Servers { datacenter, trust_domain }
            if trust_domain == trust.trust_domain && datacenter == trust.datacenter =>
        {
            let candidate =
                |address: &SocketAddr| Candidate { address: *address, rank: 0, weight: 1 };
            let servers = servers.iter().map(candidate).collect();
            some(Permit::Own(trust_domain), servers, Reason::NoEndpoint)
        }
        Sni::Servers { .. } => Err(Reason::UnknownName),
    }
}

fn some(permit: Permit, candidates: Vec<Candidate>, none: Reason) -> Result<Route, Reason> {
    if candidates.is_empty() { Err(none) } else { Ok(Route { permit, candidates }) }
}

/// The instance that `label` stands for if it may take traffic, or else all that may.
fn instances(endpoints: &[Endpoint], label: Option<InstanceLabel>) -> Vec<Candidate> {
    let candidate = |endpoint: &Endpoint| {
        Some(Candidate { address: endpoint.mesh?, rank: 0, weight: weight(endpoint)? })
    };
    let is_asked_for =
        |endpoint: &&Endpoint| label == Some(InstanceLabel::of(&endpoint.node, &endpoint.instance));
    match endpoints.iter().find(is_asked_for).and_then(candidate) {
        Some(one) => vec![one],
        None => endpoints.iter().filter_map(candidate).collect(),
    }
}

const fn rank(nearness: Nearness) -> u8 {
    match nearness {
        Nearness::Zone => 0,
        Nearness::Region => 1,
        Nearness::Rest => 2,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;
    use std::time::Duration;

    use hawser_core::catalog::{Protocol, Weights};
    use hawser_core::chain::Chain;
    use hawser_core::clock::Index;
    use hawser_core::health::Status;
    use hawser_core::intention::Action;
    use hawser_core::peering::PeerGateway;
    use hawser_core::view::{PeerView, ServiceView, Trust};

    use super::*;

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a good name")
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn place(region: &str, zone: &str) -> Locality {
        Locality { region: Some(region.into()), zone: Some(zone.into()) }
    }

    fn endpoint(id: &str, port: u16, status: Status) -> Endpoint {
        Endpoint {
            node: name("n1"),
            instance: name(id),
            address: at(port).ip(),
            has_own_address: false,
            ports: Default::default(),
            port: 80,
            mesh: Some(at(port)),
            locality: Locality::default(),
            tags: BTreeSet::new(),
            weights: Weights { passing: 3, warning: 1 },
            status,
        }
    }

    fn service(service: &str, endpoints: Vec<Endpoint>) -> (ServiceName, Arc<ServiceView>) {
        let chain = Chain {
            service: name(service),
            protocol: Protocol::Tcp,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(1),
            local_connect_timeout: Duration::from_secs(1),
            inbound_connections_max: None,
            policies: Arc::default(),
        };
        let view = ServiceView::alone(chain, endpoints.into(), Index(1));
        (name(service), Arc::new(view))
    }

    fn peer(trust_domain: &str, gateways: Vec<PeerGateway>) -> PeerView {
        PeerView {
            trust_domain: name(trust_domain),
            datacenter: name("dc2"),
            roots: vec![],
            revoked: Default::default(),
            calls_us: name("us"),
            is_live: true,
            gateways,
        }
    }

    fn view() -> View {
        use Status::{Critical, Passing, Warning};
        let mut idle = endpoint("idle", 7, Passing);
        idle.weights.passing = 0;
        let mut outside = endpoint("outside", 8, Passing);
        outside.mesh = None;
        let web = vec![
            endpoint("a", 1, Passing),
            endpoint("b", 2, Warning),
            endpoint("c", 3, Critical),
            idle,
            outside,
        ];
        let gateway = |port, locality| PeerGateway { address: at(port), locality };
        let gateways = vec![
            gateway(51, place("us", "a")),
            gateway(52, place("eu", "b")),
            gateway(53, place("eu", "a")),
        ];
        let exports =
            [("web", vec!["east", "ended"]), ("ill", vec!["east"]), ("gone", vec!["east"])];
        let exports = exports.map(|(service, peers)| {
            (name(service), peers.into_iter().map(name).collect::<BTreeSet<_>>())
        });
        View {
            trust: Some(Arc::new(Trust {
                trust_domain: name("own.consul"),
                datacenter: name("dc1"),
                roots: vec![],
                default_action: Action::Deny,
                issuing: Default::default(),
                revoked: Default::default(),
            })),
            services: BTreeMap::from([
                service("web", web),
                service("ill", vec![endpoint("x", 9, Critical)]),
                service("db", vec![endpoint("d", 10, Passing)]),
            ]),
            peers: Arc::new(BTreeMap::from([
                (name("east"), peer("east.consul", gateways)),
                (name("west"), peer("west.consul", vec![])),
            ])),
            exports: Arc::new(BTreeMap::from(exports)),
            ..View::default()
        }
    }

    #[test]
    fn a_name_leads_where_it_may() {
        use Reason::{GatewayUnavailable, LocalName, NoEndpoint, NotExported, UnknownName};
        let view = view();
        let label = |id: &str| InstanceLabel::of(&name("n1"), &name(id));
        let external = |prefix: String, service: &str, peer: &str, domain: &str| {
            format!("{prefix}{service}.default.default.{peer}.external.{domain}.consul")
        };
        let web = |prefix: &str| external(prefix.to_owned(), "web", "east", "own");
        let labelled = |id: &str| web(&format!("{}.", label(id)));
        let plain = |service: &str, peer: &str| external(String::new(), service, peer, "own");
        // Each with its rank and weight.
        let any = vec![(1, 0, 3), (2, 0, 1)];
        type Rows = Result<Vec<(u16, u8, u16)>, Reason>;
        let cases: Vec<(String, Rows, &str)> = vec![
            (web(""), Ok(any.clone()), "any instance that may take traffic, by its weight"),
            (labelled("a"), Ok(vec![(1, 0, 3)]), "the instance that is asked for"),
            (labelled("b"), Ok(vec![(2, 0, 1)]), "one that warns takes traffic"),
            (labelled("c"), Ok(any.clone()), "another for a critical one"),
            (labelled("idle"), Ok(any.clone()), "another for one of weight zero"),
            (labelled("outside"), Ok(any.clone()), "another for one outside the mesh"),
            (labelled("left"), Ok(any), "another for one that is gone"),
            (plain("web", "west"), Err(NotExported), "exported to another peer"),
            (plain("web", "ended"), Err(NotExported), "exported to a peer that is none any more"),
            (plain("db", "east"), Err(NotExported), "not exported at all"),
            (plain("nobody", "east"), Err(NotExported), "no such service"),
            (plain("ill", "east"), Err(NoEndpoint), "all instances are critical"),
            (plain("gone", "east"), Err(NoEndpoint), "exported and not in the view"),
            (
                external(String::new(), "web", "us", "east"),
                Ok(vec![(51, 2, 1), (52, 1, 1), (53, 0, 1)]),
                "a peer's gateways, by nearness",
            ),
            (external(String::new(), "web", "us", "west"), Err(GatewayUnavailable), "it has none"),
            (external(String::new(), "web", "us", "else"), Err(UnknownName), "nobody's cluster"),
            ("server.dc1.peering.own.consul".into(), Ok(vec![(83, 0, 1), (84, 0, 1)]), "servers"),
            ("server.dc2.peering.own.consul".into(), Err(UnknownName), "another datacenter's"),
            ("server.dc2.peering.east.consul".into(), Err(UnknownName), "a peer's"),
            ("web.default.dc1.internal.own.consul".into(), Err(LocalName), "within the cluster"),
            ("web.default.dc2.internal.east.consul".into(), Err(LocalName), "within another"),
            ("example.com".into(), Err(UnknownName), "the internet"),
            ("".into(), Err(UnknownName), "nothing"),
        ];
        for (asked, expected, why) in cases {
            let found = route(&view, &[at(83), at(84)], &place("eu", "a"), Some(&asked));
            let seen = found.map(|route| {
                assert!(route.permit.holds(&view), "{asked}: {why}");
                let row = |to: &Candidate| (to.address.port(), to.rank, to.weight);
                route.candidates.iter().map(row).collect::<Vec<_>>()
            });
            assert_eq!(seen, expected, "{asked}: {why}");
        }
        let to = |view, servers, name| route(view, servers, &Locality::default(), name);
        assert_eq!(to(&view, &[], None), Err(UnknownName), "no name");
        assert_eq!(to(&view, &[], Some("server.dc1.peering.own.consul")), Err(NoEndpoint));
        assert_eq!(to(&View::default(), &[], Some(&web(""))), Err(Reason::ViewMissing));
    }

    #[test]
    fn a_permit_ends_with_what_it_came_from() {
        let view = view();
        let export = Permit::Export {
            service: name("web"),
            peer: name("east"),
            trust_domain: name("own.consul"),
        };
        let through = Permit::Peer(name("east.consul"));
        let own = Permit::Own(name("own.consul"));
        let without_exports = View { exports: Arc::default(), ..view.clone() };
        let without_peers = View { peers: Arc::default(), ..view.clone() };
        let without_instances = View { services: BTreeMap::new(), ..view.clone() };
        let cases = [
            // view, of the export, through the peer, to own servers, why
            (&view, true, true, true, "nothing changed"),
            (&without_exports, false, true, true, "the export was withdrawn"),
            (&without_peers, false, false, true, "the peering ended"),
            (&without_instances, true, true, true, "who is connected stays so"),
            (&View::default(), false, false, false, "nobody is known any more"),
        ];
        for (view, of_export, of_peer, of_own, why) in cases {
            let held = [&export, &through, &own].map(|permit| permit.holds(view));
            assert_eq!(held, [of_export, of_peer, of_own], "{why}");
        }
    }
}
