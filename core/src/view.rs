//! The view: one host's coherent picture of what it uses, as of one index, and its deltas.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::catalog::{Locality, Meta, Weights};
use crate::chain::{self, Chain};
use crate::clock::Index;
use crate::health::Status;
use crate::intention::{Action, Decision, Intention, Intentions, Reason};
use crate::name::{Datacenter, InstanceId, NodeName, ServiceName};
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::state::{State, Topic};

/// What a host asks to see: nothing else is sent to it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Interest {
    /// Services that it calls or was asked for in DNS.
    pub services: BTreeSet<ServiceName>,
    /// Services that run on it, whose intentions its proxies enforce.
    pub locals: BTreeSet<ServiceName>,
    /// Nodes that it was asked for in DNS.
    pub nodes: BTreeSet<NodeName>,
}

/// What is the same for all: who the cluster is and whom it trusts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Trust {
    /// The trust domain of every identity in the cluster.
    pub trust_domain: TrustDomain,
    /// The cluster's datacenter.
    pub datacenter: Datacenter,
    /// Root certificates, DER.
    pub roots: Vec<Arc<[u8]>>,
    /// What holds where no intention does.
    pub default_action: Action,
}

/// One instance as others see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// The host it runs on.
    pub node: NodeName,
    /// Its id on that host.
    pub instance: InstanceId,
    /// The application's address: the instance's own, or its node's.
    pub address: IpAddr,
    /// Whether the instance has an address of its own.
    pub has_own_address: bool,
    /// The application's port.
    pub port: u16,
    /// Where its proxy listens for mTLS; none when it is outside the mesh.
    pub mesh: Option<SocketAddr>,
    /// Where its host stands.
    pub locality: Locality,
    /// Its labels.
    pub tags: BTreeSet<Arc<str>>,
    /// Its weights.
    pub weights: Weights,
    /// The worst of its and its node's checks.
    pub status: Status,
}

/// One service as a host sees it. Without endpoints it does not exist in the catalog.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceView {
    /// How it is reached.
    pub chain: Chain,
    /// Its instances, healthy or not, by node and id.
    pub endpoints: Arc<[Endpoint]>,
    /// The last entry that touched it; zero while it does not exist.
    pub index: Index,
}

/// One node as a host sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeView {
    /// Its address.
    pub address: IpAddr,
    /// Free pairs, for TXT records.
    pub meta: Meta,
}

/// One step that a view advances by.
#[derive(Clone, Debug)]
pub enum Change {
    /// The cluster's trust.
    Trust(Trust),
    /// A service, as it is now.
    Service(ServiceView),
    /// All intentions that concern the host's own services, as they are now.
    Intentions(Vec<Arc<Intention>>),
    /// A node as it is now; none when there is no such node.
    Node(NodeName, Option<NodeView>),
}

/// What brings a host's view from one index to the next.
#[derive(Clone, Debug)]
pub struct Delta {
    /// The index that the view stands at afterwards.
    pub index: Index,
    /// Whether the changes are the whole picture, and not steps from the one before.
    pub is_snapshot: bool,
    /// The steps.
    pub changes: Vec<Change>,
}

/// One host's coherent picture as of one index.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The index it is of.
    pub index: Index,
    /// Who the cluster is; none before the first delta.
    pub trust: Option<Arc<Trust>>,
    /// Services asked for and answered.
    pub services: BTreeMap<ServiceName, Arc<ServiceView>>,
    /// Intentions that concern the host's own services.
    pub intentions: Intentions,
    /// Nodes asked for and answered; none where there is no such node.
    pub nodes: BTreeMap<NodeName, Option<Arc<NodeView>>>,
}

impl View {
    /// The view after `delta`.
    #[must_use]
    pub fn advanced(&self, delta: Delta) -> Self {
        let mut next = if delta.is_snapshot { Self::default() } else { self.clone() };
        next.index = delta.index;
        for change in delta.changes {
            match change {
                Change::Trust(trust) => next.trust = Some(Arc::new(trust)),
                Change::Service(service) => {
                    next.services.insert(service.chain.service.clone(), Arc::new(service));
                }
                Change::Intentions(all) => {
                    let row = |value: Arc<Intention>| crate::catalog::Row {
                        value,
                        created: delta.index,
                        modified: delta.index,
                    };
                    next.intentions = Intentions::restore(all.into_iter().map(row), delta.index);
                }
                Change::Node(name, node) => {
                    next.nodes.insert(name, node.map(Arc::new));
                }
            }
        }
        next
    }

    /// The view without what `interest` no longer covers.
    #[must_use]
    pub fn narrowed(&self, interest: &Interest) -> Self {
        let mut next = self.clone();
        next.services
            .retain(|name, _| interest.services.contains(name) || interest.locals.contains(name));
        next.nodes.retain(|name, _| interest.nodes.contains(name));
        next
    }

    /// The changes that make this view out of nothing: what is kept on disk.
    pub fn as_delta(&self) -> Delta {
        let trust = self.trust.iter().map(|trust| Change::Trust(Trust::clone(trust)));
        let services =
            self.services.values().map(|service| Change::Service(ServiceView::clone(service)));
        let intentions = self.intentions.iter().map(|row| row.value.clone()).collect();
        let nodes = self
            .nodes
            .iter()
            .map(|(name, node)| Change::Node(name.clone(), node.as_deref().cloned()));
        let changes =
            trust.chain(services).chain([Change::Intentions(intentions)]).chain(nodes).collect();
        Delta { index: self.index, is_snapshot: true, changes }
    }

    /// Decides whether the owner of identity `caller` may call `destination` on this host.
    ///
    /// A caller that is no service of this trust domain, or a view that knows no trust yet, is
    /// refused: a missing identity or policy never allows.
    pub fn decide(&self, caller: &SpiffeId, destination: &ServiceName) -> Decision {
        let refused = Decision { action: Action::Deny, reason: Reason::Default };
        let Some(trust) = &self.trust else { return refused };
        match caller.service() {
            Some(source) if caller.trust_domain == trust.trust_domain => {
                self.intentions.decide(source, destination, trust.default_action)
            }
            _ => refused,
        }
    }
}

/// The whole picture that `interest` asks for, as of `state`.
pub fn snapshot(state: &State, interest: &Interest) -> Delta {
    let services = interest.services.union(&interest.locals);
    let mut changes: Vec<Change> = trust(state).map(Change::Trust).into_iter().collect();
    changes.extend(services.map(|name| Change::Service(service(state, name))));
    changes.push(Change::Intentions(intentions(state, interest)));
    changes.extend(interest.nodes.iter().map(|name| Change::Node(name.clone(), node(state, name))));
    Delta { index: state.applied(), is_snapshot: true, changes }
}

/// What `topics` changed of what `interest` asks for, as of `state`.
pub fn delta(state: &State, interest: &Interest, topics: &BTreeSet<Topic>) -> Delta {
    let is_wanted =
        |name: &ServiceName| interest.services.contains(name) || interest.locals.contains(name);
    let mut services: BTreeSet<&ServiceName> = BTreeSet::new();
    let mut changes = Vec::new();
    for topic in topics {
        match topic {
            Topic::Service(name) | Topic::Chain(name) if is_wanted(name) => {
                services.insert(name);
            }
            Topic::EveryChain => {
                services.extend(interest.services.union(&interest.locals));
            }
            Topic::Node(name) if interest.nodes.contains(name) => {
                changes.push(Change::Node(name.clone(), node(state, name)));
            }
            Topic::Intentions => {
                changes.push(Change::Intentions(intentions(state, interest)));
            }
            Topic::Authority => changes.extend(trust(state).map(Change::Trust)),
            Topic::Service(_)
            | Topic::Chain(_)
            | Topic::Node(_)
            | Topic::Nodes
            | Topic::Names
            | Topic::Checks
            | Topic::Entries
            | Topic::Acl => {}
        }
    }
    changes.extend(services.into_iter().map(|name| Change::Service(service(state, name))));
    Delta { index: state.applied(), is_snapshot: false, changes }
}

/// The topics that can change what `interest` asks for.
pub fn topics(interest: &Interest) -> BTreeSet<Topic> {
    let services = interest.services.union(&interest.locals);
    let mut topics = BTreeSet::from([Topic::Intentions, Topic::Authority, Topic::EveryChain]);
    for name in services {
        topics.insert(Topic::Service(name.clone()));
        topics.insert(Topic::Chain(name.clone()));
    }
    topics.extend(interest.nodes.iter().cloned().map(Topic::Node));
    topics
}

/// One service as a host sees it.
pub fn service(state: &State, name: &ServiceName) -> ServiceView {
    let mut declared = None;
    let endpoints: Arc<[Endpoint]> = state
        .catalog()
        .placed(name)
        .map(|placed| {
            let (node, instance) = (&placed.node.value, &placed.instance.value);
            declared = declared.or(instance.protocol);
            let address = instance.address.unwrap_or(node.address);
            Endpoint {
                node: node.name.clone(),
                instance: instance.id.clone(),
                address,
                has_own_address: instance.address.is_some(),
                port: instance.port,
                mesh: instance.mesh_port.map(|port| SocketAddr::new(node.address, port)),
                locality: node.locality.clone(),
                tags: instance.tags.clone(),
                weights: instance.weights,
                status: placed.status(),
            }
        })
        .collect();
    let index = if endpoints.is_empty() { Index(0) } else { state.catalog().service_index(name) };
    ServiceView { chain: chain::compile(state.entries(), declared, name), endpoints, index }
}

fn node(state: &State, name: &NodeName) -> Option<NodeView> {
    let row = state.catalog().node(name)?;
    Some(NodeView { address: row.value.address, meta: row.value.meta.clone() })
}

fn intentions(state: &State, interest: &Interest) -> Vec<Arc<Intention>> {
    let concerns = |intention: &Intention| match &intention.pair.destination {
        crate::intention::Side::Any => true,
        crate::intention::Side::Exact(name) => interest.locals.contains(name),
    };
    state
        .intentions()
        .iter()
        .filter(|row| concerns(&row.value))
        .map(|row| row.value.clone())
        .collect()
}

fn trust(state: &State) -> Option<Trust> {
    let cluster = state.cluster()?;
    let roots = state
        .authority()
        .map(|authority| authority.roots.iter().map(|root| root.certificate.clone()).collect());
    Some(Trust {
        trust_domain: cluster.trust_domain.clone(),
        datacenter: cluster.datacenter.clone(),
        roots: roots.unwrap_or_default(),
        default_action: cluster.default_action,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Instance, Node};
    use crate::clock::{Stamp, UnixTime};
    use crate::intention::Pair;
    use crate::spiffe::Role;
    use crate::state::{Cluster, Command, NodeChanges};

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a good name")
    }

    fn apply(state: &mut State, command: Command) -> BTreeSet<Topic> {
        let index = Index(state.applied().0 + 1);
        let stamp = Stamp { index, time: UnixTime::from_secs(index.0) };
        state.apply(stamp, command).expect("applied").into_iter().collect()
    }

    fn register(service: &str, port: u16) -> Command {
        Command::SyncNode(NodeChanges {
            node: Node {
                name: name(&format!("on-{service}")),
                id: service.into(),
                address: [10, 0, 0, 1].into(),
                locality: Locality::default(),
                meta: Meta::new(),
            },
            put_instances: vec![Instance {
                id: name(service),
                service: name(service),
                address: None,
                port,
                tags: BTreeSet::new(),
                meta: Meta::new(),
                weights: Weights::default(),
                protocol: None,
                mesh_port: Some(21_000),
                enable_tag_override: false,
            }],
            put_checks: vec![],
            drop_instances: vec![],
            drop_checks: vec![],
        })
    }

    fn intention(source: &str, destination: &str, action: Action) -> Command {
        Command::PutIntention(Intention {
            id: "".into(),
            pair: Pair { source: name(source), destination: name(destination) },
            action,
            description: "".into(),
            meta: Meta::new(),
            created_at: UnixTime::default(),
            updated_at: UnixTime::default(),
        })
    }

    fn founded() -> State {
        let mut state = State::default();
        apply(
            &mut state,
            Command::Found(Cluster {
                id: "1f2e".into(),
                trust_domain: name("1f2e.consul"),
                datacenter: name("dc1"),
                default_action: Action::Deny,
            }),
        );
        state
    }

    fn interest() -> Interest {
        Interest {
            services: BTreeSet::from([name("db"), name("missing")]),
            locals: BTreeSet::from([name("web")]),
            nodes: BTreeSet::from([name("on-db")]),
        }
    }

    /// Steps through deltas must end at the very view that a fresh snapshot gives.
    #[test]
    fn deltas_and_snapshots_agree() {
        let mut state = founded();
        let interest = interest();
        let mut view = View::default().advanced(snapshot(&state, &interest));
        let commands = [
            register("db", 5432),
            register("other", 1),
            register("web", 80),
            intention("db", "web", Action::Allow),
            intention("*", "other", Action::Allow),
            register("db", 5433),
            Command::SetLiveness { dead: vec![name("on-db")], alive: vec![] },
            Command::DropNode(name("on-db")),
        ];
        for command in commands {
            let woken = apply(&mut state, command);
            view = view.advanced(delta(&state, &interest, &woken));
            let fresh = View::default().advanced(snapshot(&state, &interest));
            assert_eq!(
                format!("{:?}", (&view.services, &view.nodes, &view.trust)),
                format!("{:?}", (&fresh.services, &fresh.nodes, &fresh.trust)),
            );
            let pairs = |view: &View| -> Vec<Pair> {
                view.intentions.iter().map(|row| row.value.pair.clone()).collect()
            };
            assert_eq!(pairs(&view), pairs(&fresh));
        }
        assert!(view.services.contains_key("missing"), "asked for and known not to exist");
        assert!(!view.services.contains_key("other"), "nobody asked for it");
    }

    #[test]
    fn every_topic_that_matters_is_watched() {
        let mut state = founded();
        let interest = interest();
        let watched = topics(&interest);
        for command in [
            register("db", 1),
            register("web", 2),
            intention("db", "web", Action::Deny),
            Command::DropNode(name("on-db")),
        ] {
            let woken = apply(&mut state, command);
            assert!(!woken.is_disjoint(&watched), "{woken:?}");
        }
        let woken = apply(&mut state, register("other", 1));
        assert!(woken.is_disjoint(&watched), "a service nobody uses wakes nobody: {woken:?}");
    }

    #[test]
    fn only_a_service_of_this_trust_domain_is_ever_allowed() {
        let mut state = founded();
        apply(&mut state, intention("db", "web", Action::Allow));
        let view = View::default().advanced(snapshot(&state, &interest()));
        let id = |trust_domain: &str, role| SpiffeId {
            trust_domain: name(trust_domain),
            datacenter: name("dc1"),
            role,
        };
        let cases = [
            (id("1f2e.consul", Role::Service(name("db"))), true, "allowed by intention"),
            (id("1f2e.consul", Role::Service(name("cron"))), false, "the default is deny"),
            (id("other.consul", Role::Service(name("db"))), false, "a foreign trust domain"),
            (id("1f2e.consul", Role::Agent(name("db"))), false, "an agent is no service"),
        ];
        for (caller, expected, why) in cases {
            assert_eq!(view.decide(&caller, &name("web")).is_allowed(), expected, "{why}");
            let nothing = View::default();
            assert!(!nothing.decide(&caller, &name("web")).is_allowed(), "no view, no call");
        }
    }

    #[test]
    fn what_is_kept_on_disk_makes_the_same_view() {
        let mut state = founded();
        apply(&mut state, register("db", 5432));
        let view = View::default().advanced(snapshot(&state, &interest()));
        let again = View::default().advanced(view.as_delta());
        assert_eq!(format!("{view:?}"), format!("{again:?}"));
        let none = view.narrowed(&Interest::default());
        assert!(none.services.is_empty() && none.nodes.is_empty());
    }
}
