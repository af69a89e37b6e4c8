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
    let drop_instances: Vec<InstanceId> =
        catalog.instances.keys().filter(|id| !declared.instances.contains_key(*id)).cloned().collect();
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
