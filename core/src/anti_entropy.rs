//! Anti-entropy: what a host declares against what the catalog holds, as a pure difference.

use std::collections::BTreeMap;

use crate::catalog::{Check, Instance, Node};
use crate::name::{CheckId, InstanceId};
use crate::state::NodeChanges;

/// One host's rows, as declared on it or as the catalog holds them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rows {
    /// The host; none in a catalog that does not know it.
    pub node: Option<Node>,
    /// Its instances.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Its checks, without the node's liveness, which belongs to the servers.
    pub checks: BTreeMap<CheckId, Check>,
}

/// The changes that make `catalog` equal to what `declared` says `node` is; none when it is.
///
/// Where an instance lets others change its tags through the catalog, the catalog's tags stand.
pub fn reconcile(node: &Node, declared: &Rows, catalog: &Rows) -> Option<NodeChanges> {
    let put_instances: Vec<Instance> = declared
        .instances
        .values()
        .map(|instance| with_overridden_tags(instance, catalog.instances.get(&instance.id)))
        .filter(|instance| catalog.instances.get(&instance.id) != Some(instance))
        .collect();
    let put_checks: Vec<Check> = declared
        .checks
        .values()
        .filter(|check| catalog.checks.get(&check.id) != Some(check))
        .cloned()
        .collect();
    let drop_instances: Vec<InstanceId> = catalog
        .instances
        .keys()
        .filter(|id| !declared.instances.contains_key(*id))
        .cloned()
        .collect();
    // A check goes with its instance, so only checks that outlive theirs are dropped by name.
    let drop_checks: Vec<CheckId> = catalog
        .checks
        .values()
        .filter(|check| !declared.checks.contains_key(&check.id))
        .filter(|check| check.instance.as_ref().is_none_or(|id| !drop_instances.contains(id)))
        .map(|check| check.id.clone())
        .collect();
    let is_same = catalog.node.as_ref() == Some(node)
        && put_instances.is_empty()
        && put_checks.is_empty()
        && drop_instances.is_empty()
        && drop_checks.is_empty();
    (!is_same).then(|| NodeChanges {
        node: node.clone(),
        put_instances,
        put_checks,
        drop_instances,
        drop_checks,
    })
}

fn with_overridden_tags(declared: &Instance, held: Option<&Instance>) -> Instance {
    match held {
        Some(held) if declared.enable_tag_override => {
            Instance { tags: held.tags.clone(), ..declared.clone() }
        }
        _ => declared.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::catalog::{Locality, Meta, Weights};
    use crate::health::Status;

    fn node() -> Node {
        Node {
            name: "n1".parse().expect("a name"),
            id: "id".into(),
            address: [10, 0, 0, 1].into(),
            locality: Locality::default(),
            meta: Meta::new(),
            tagged: Default::default(),
        }
    }

    fn instance(id: &str, tag: &str, enable_tag_override: bool) -> Instance {
        Instance {
            id: id.parse().expect("an id"),
            service: "web".parse().expect("a name"),
            address: None,
            port: 80,
            tags: BTreeSet::from([tag.into()]),
            meta: Meta::new(),
            weights: Weights::default(),
            protocol: None,
            mesh_port: None,
            enable_tag_override,
            gateway: None,
            socket: None,
            ports: Default::default(),
            tagged: Default::default(),
        }
    }

    fn check(id: &str, of: Option<&str>) -> Check {
        Check {
            id: id.parse().expect("an id"),
            name: id.into(),
            kind: "ttl".into(),
            status: Status::Passing,
            notes: "".into(),
            output: "".into(),
            instance: of.map(|of| of.parse().expect("an id")),
            run: Default::default(),
        }
    }

    fn rows(known: bool, instances: &[Instance], checks: &[Check]) -> Rows {
        Rows {
            node: known.then(node),
            instances: instances.iter().map(|one| (one.id.clone(), one.clone())).collect(),
            checks: checks.iter().map(|one| (one.id.clone(), one.clone())).collect(),
        }
    }

    #[test]
    fn the_difference_is_what_is_missing_changed_or_left_over() {
        let (old, new) = (instance("a", "v1", false), instance("a", "v2", false));
        let free = |tag| instance("a", tag, true);
        let of_a = check("c", Some("a"));
        let cases = [
            // declared, catalog, expected (put, put checks, dropped, dropped checks), why
            (rows(true, &[], &[]), rows(true, &[], &[]), None, "nothing to do"),
            (rows(true, &[], &[]), rows(false, &[], &[]), Some((0, 0, 0, 0)), "an unknown node"),
            (
                rows(true, &[new], std::slice::from_ref(&of_a)),
                rows(true, std::slice::from_ref(&old), &[]),
                Some((1, 1, 0, 0)),
                "changed and new",
            ),
            (
                rows(true, &[], &[]),
                rows(true, std::slice::from_ref(&old), std::slice::from_ref(&of_a)),
                Some((0, 0, 1, 0)),
                "a check goes with its instance",
            ),
            (
                rows(true, std::slice::from_ref(&old), &[]),
                rows(true, std::slice::from_ref(&old), &[of_a]),
                Some((0, 0, 0, 1)),
                "a check that outlives its declaration",
            ),
            (rows(true, &[free("v1")], &[]), rows(true, &[free("v9")], &[]), None, "tags are free"),
        ];
        for (declared, catalog, expected, why) in cases {
            let found = reconcile(&node(), &declared, &catalog).map(|changes| {
                (
                    changes.put_instances.len(),
                    changes.put_checks.len(),
                    changes.drop_instances.len(),
                    changes.drop_checks.len(),
                )
            });
            assert_eq!(found, expected, "{why}");
        }
    }
}
