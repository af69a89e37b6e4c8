//! What an operation on the state needs: the one step between who asks and what is done.
//!
//! It looks at the operation, never at the path that it came by; so there is no way around it by
//! another path. A command without an arm here does not compile.

mod store;

use crate::acl::{Access, Authorizer, Denied, Resource};
use crate::catalog::Instance;
use crate::entry::{EntryKey, Kind};
use crate::name::{InstanceId, NodeName};
use crate::state::{Command, NodeChanges, State};

pub use self::store::operation;

/// Whether `may` allows `command`, given what there is.
///
/// # Errors
/// [`Denied`], the first permission that is lacking.
pub fn command(may: &Authorizer, state: &State, command: &Command) -> Result<(), Denied> {
    match command {
        Command::SyncNode(changes) => sync_node(may, state, changes),
        Command::DropNode(node) => may.demand(Resource::Node, Access::Write, node.as_str()),
        Command::PutIntention(intention) => {
            intention_write(may, &intention.pair.destination.to_string())
        }
        Command::DropIntention(pair) => intention_write(may, &pair.destination.to_string()),
        Command::ChangeIntentions { changes, .. } => changes
            .destinations()
            .into_iter()
            .try_for_each(|destination| intention_write(may, &destination.to_string())),
        Command::PutEntry { entry, .. } => entry_write(may, entry.key()),
        Command::DropEntry { key, .. } => entry_write(may, key),
        Command::SetLiveness { .. }
        | Command::SetAuthority { .. }
        | Command::Revoke(_)
        | Command::Reinstate(_)
        | Command::SetAutopilot { .. }
        | Command::SetLevel(_)
        | Command::Found(_) => may.demand(Resource::Operator, Access::Write, ""),
        Command::PutPeering(_)
        | Command::DropPeering(_)
        | Command::AcceptPeering { .. }
        | Command::SetPeerState { .. }
        | Command::SyncPeer(_) => may.demand(Resource::Peering, Access::Write, ""),
        Command::Kv(change) => store::change(may, change),
        Command::CreateSession(session) => store::create(may, session),
        Command::EndSession(id) => store::end(may, state, id),
        Command::PutQuery(query) => {
            store::query(may, &query.name)?;
            store::held_query(may, state, &query.id)
        }
        Command::DropQuery(id) => store::held_query(may, state, id),
        Command::FireEvent(event) => {
            may.demand(Resource::Event, Access::Write, event.name.as_str())
        }
        Command::Txn(ops) => ops.iter().try_for_each(|op| operation(may, state, op)),
        // A join token makes a node of its bearer, and an ACL command makes a token.
        Command::PutJoinToken(_) | Command::UseJoinToken { .. } | Command::Acl(_) => {
            may.demand(Resource::Acl, Access::Write, "")
        }
        // A snapshot holds tokens, and all that operators decided.
        Command::Stage(_) | Command::Restore { .. } => may
            .demand(Resource::Acl, Access::Write, "")
            .and_then(|()| may.demand(Resource::Operator, Access::Write, "")),
    }
}

/// Whether `may` shows the config entry called `key`.
pub fn entry_read(may: &Authorizer, key: &EntryKey) -> bool {
    match key.kind {
        // What holds for all services is no secret of any.
        Kind::ProxyDefaults => true,
        Kind::ServiceDefaults
        | Kind::ServiceResolver
        | Kind::ServiceSplitter
        | Kind::ServiceRouter => may.service_read(&key.name),
        Kind::ExportedServices | Kind::JwtProvider | Kind::Mesh => {
            may.demand(Resource::Mesh, Access::Read, "").is_ok()
        }
        Kind::RequestLimit => may.demand(Resource::Operator, Access::Read, "").is_ok(),
    }
}

fn entry_write(may: &Authorizer, key: &EntryKey) -> Result<(), Denied> {
    match key.kind {
        Kind::ProxyDefaults | Kind::ExportedServices | Kind::JwtProvider | Kind::Mesh => {
            may.demand(Resource::Mesh, Access::Write, "")
        }
        Kind::ServiceDefaults
        | Kind::ServiceResolver
        | Kind::ServiceSplitter
        | Kind::ServiceRouter => may.demand(Resource::Service, Access::Write, &key.name),
        Kind::RequestLimit => may.demand(Resource::Operator, Access::Write, ""),
    }
}

fn intention_write(may: &Authorizer, destination: &str) -> Result<(), Denied> {
    if may.intention_write(destination) {
        return Ok(());
    }
    Err(Denied {
        accessor: may.accessor().clone(),
        resource: Resource::Intention,
        access: Access::Write,
        name: Some(destination.into()),
    })
}

/// A node's own row and checks need the node; an instance and its checks need the service, and
/// where the instance was another service's before, that one too.
fn sync_node(may: &Authorizer, state: &State, changes: &NodeChanges) -> Result<(), Denied> {
    let node = &changes.node.name;
    let is_same = state.catalog().node(node).is_some_and(|row| *row.value == changes.node);
    // To write what changes nothing is still to write.
    if !is_same || changes.is_of_node_alone() {
        may.demand(Resource::Node, Access::Write, node.as_str())?;
    }
    for instance in &changes.put_instances {
        may.demand(Resource::Service, Access::Write, instance.service.as_str())?;
        owned(may, state, node, &instance.id)?;
    }
    for id in &changes.drop_instances {
        removable(may, state, node, id)?;
    }
    for check in &changes.put_checks {
        about(may, state, changes, check.instance.as_ref())?;
        let held = state.catalog().checks_on(node).find(|row| row.value.id == check.id);
        if let Some(held) = held {
            about(may, state, changes, held.value.instance.as_ref())?;
        }
    }
    for id in &changes.drop_checks {
        let held = state.catalog().checks_on(node).find(|row| row.value.id == *id);
        about(may, state, changes, held.and_then(|row| row.value.instance.as_ref()))?;
    }
    Ok(())
}

/// Whether an instance that is there already may be replaced or removed.
fn owned(may: &Authorizer, state: &State, node: &NodeName, id: &InstanceId) -> Result<(), Denied> {
    match held(state, node, id) {
        Some(instance) => may.demand(Resource::Service, Access::Write, instance.service.as_str()),
        None => Ok(()),
    }
}

/// Whether an instance may be removed. Who may write one service learns from this whether the node
/// has an instance of another, so one that is not there takes the node itself.
fn removable(
    may: &Authorizer,
    state: &State,
    node: &NodeName,
    id: &InstanceId,
) -> Result<(), Denied> {
    match held(state, node, id) {
        Some(_) => owned(may, state, node, id),
        None => may.demand(Resource::Node, Access::Write, node.as_str()),
    }
}

/// Whether a check about `instance`, or the whole node, may be written.
fn about(
    may: &Authorizer,
    state: &State,
    changes: &NodeChanges,
    instance: Option<&InstanceId>,
) -> Result<(), Denied> {
    let node = &changes.node.name;
    let service = instance.and_then(|id| {
        let put = changes.put_instances.iter().find(|instance| instance.id == *id);
        put.or_else(|| held(state, node, id)).map(|instance| &instance.service)
    });
    match service {
        Some(service) => may.demand(Resource::Service, Access::Write, service.as_str()),
        None => may.demand(Resource::Node, Access::Write, node.as_str()),
    }
}

fn held<'a>(state: &'a State, node: &'a NodeName, id: &InstanceId) -> Option<&'a Instance> {
    state.catalog().instances_on(node).map(|row| &*row.value).find(|held| held.id == *id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acl::{DefaultPolicy, Rules};
    use crate::catalog::{Check, Locality, Meta, Node, Weights};
    use crate::clock::{Index, Stamp, UnixTime};
    use crate::entry::{Body, Entry, ProxyDefaults, ServiceDefaults};
    use crate::health::Status;
    use crate::intention::{Changes, Pair};

    fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a good name")
    }

    fn node(address: u8) -> Node {
        Node {
            name: name("n1"),
            id: "id".into(),
            address: [10, 0, 0, address].into(),
            locality: Locality::default(),
            meta: Meta::new(),
            tagged: Default::default(),
        }
    }

    fn instance(id: &str, service: &str) -> Instance {
        Instance {
            id: name(id),
            service: name(service),
            address: None,
            port: 80,
            tags: [].into(),
            meta: Meta::new(),
            weights: Weights::default(),
            protocol: None,
            mesh_port: None,
            enable_tag_override: false,
            gateway: None,
            socket: None,
            ports: Default::default(),
            tagged: Default::default(),
        }
    }

    fn check(id: &str, about: Option<&str>) -> Check {
        Check {
            id: name(id),
            name: id.into(),
            kind: "".into(),
            status: Status::Passing,
            notes: "".into(),
            output: "".into(),
            instance: about.map(name),
            run: Default::default(),
        }
    }

    fn sync(address: u8, put: &[(&str, &str)], checks: Vec<Check>) -> NodeChanges {
        NodeChanges {
            node: node(address),
            put_instances: put.iter().map(|(id, service)| instance(id, service)).collect(),
            put_checks: checks,
            drop_instances: Vec::new(),
            drop_checks: Vec::new(),
        }
    }

    fn state() -> State {
        let mut state = State::default();
        let checks = vec![check("cw", Some("w1")), check("cn", None)];
        let command = Command::SyncNode(sync(1, &[("w1", "web"), ("d1", "db")], checks));
        let stamp = Stamp { index: Index(1), time: UnixTime::from_secs(1) };
        state.apply(stamp, command).expect("applied");
        state
    }

    /// Each row: what is done, what it needs, and that nothing less is enough.
    #[test]
    fn every_command_needs_its_permission_and_no_other() {
        use Resource::{Acl, Intention, Mesh, Node, Operator, Service};
        let drops = |instances: &[&str], checks: &[&str]| NodeChanges {
            drop_instances: instances.iter().map(|id| name(id)).collect(),
            drop_checks: checks.iter().map(|id| name(id)).collect(),
            ..sync(1, &[], vec![])
        };
        let pair = |to: &str| Pair { source: name("a"), destination: name(to), peer: None };
        let entry = |name: &str, body| Entry::new(name, body).expect("a good entry");
        let put = |entry| Command::PutEntry { entry, expected: None, fits: None };
        let change = |remove, only: Option<&str>| Command::ChangeIntentions {
            changes: Changes { remove, only: only.map(name), ..Changes::default() },
            fits: None,
        };
        let web = || entry("web", Body::ServiceDefaults(ServiceDefaults::default()));
        let global = || entry("global", Body::ProxyDefaults(ProxyDefaults::default()));
        type Needs<'a> = Vec<(Resource, &'a str)>;
        let cases: Vec<(Command, Needs<'_>, &str)> = vec![
            (Command::SyncNode(sync(1, &[], vec![])), vec![(Node, "n1")], "also to change nothing"),
            (Command::SyncNode(sync(2, &[], vec![])), vec![(Node, "n1")], "the node changes"),
            (
                Command::SyncNode(sync(1, &[("w2", "web")], vec![check("c", Some("w2"))])),
                vec![(Service, "web")],
                "a new instance with its check",
            ),
            (
                Command::SyncNode(sync(1, &[("d1", "web")], vec![])),
                vec![(Service, "web"), (Service, "db")],
                "an instance that was another service's",
            ),
            (Command::SyncNode(drops(&["d1"], &[])), vec![(Service, "db")], "an instance goes"),
            (Command::SyncNode(drops(&[], &["cw"])), vec![(Service, "web")], "its check goes"),
            (Command::SyncNode(drops(&[], &["cn"])), vec![(Node, "n1")], "the node's check goes"),
            (
                Command::SyncNode(sync(1, &[], vec![check("cn", Some("w1"))])),
                vec![(Service, "web"), (Node, "n1")],
                "a check that was the node's",
            ),
            (Command::DropNode(name("n1")), vec![(Node, "n1")], "the node goes"),
            (Command::DropIntention(pair("db")), vec![(Intention, "db")], "by destination"),
            (Command::DropIntention(pair("*")), vec![(Intention, "")], "all destinations"),
            (
                change(vec![pair("db")], Some("api")),
                vec![(Intention, "api"), (Intention, "db")],
                "all about one callee, and one about another",
            ),
            (change(vec![], Some("*")), vec![(Intention, "")], "all about all of them"),
            (put(web()), vec![(Service, "web")], "an entry of a service"),
            (put(global()), vec![(Mesh, "")], "an entry of all services"),
            (
                Command::SetLiveness { dead: vec![], alive: vec![] },
                vec![(Operator, "")],
                "what only servers do",
            ),
            (
                Command::Acl(crate::acl::Change::DropPolicy("p".into())),
                vec![(Acl, "")],
                "access control itself",
            ),
        ];
        let state = state();
        for (done, needs, why) in cases {
            let grants = |needs: &[(Resource, &str)]| {
                let rules = needs.iter().fold(Rules::default(), |rules, (resource, name)| {
                    match (resource.is_single(), name.is_empty()) {
                        (true, _) => rules.whole(*resource, Access::Write),
                        (false, true) => rules.prefix(*resource, "", Access::Write),
                        (false, false) => rules.exact(*resource, name, Access::Write),
                    }
                });
                Authorizer::new("a".into(), DefaultPolicy::Deny, [&rules])
            };
            assert_eq!(command(&grants(&needs), &state, &done), Ok(()), "{why}");
            for left_out in 0..needs.len() {
                let mut less = needs.clone();
                less.remove(left_out);
                assert!(command(&grants(&less), &state, &done).is_err(), "{why}: {less:?}");
            }
        }
    }
}
