//! Transactions: operations on keys and the catalog that happen together or not at all.

use std::sync::Arc;

use crate::catalog::{Check, Instance, Node, Row};
use crate::clock::Index;
use crate::kv::{Change, Item};
use crate::name::{CheckId, InstanceId, Key, NodeName, SessionId};

/// One operation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Changes keys.
    Change(Change),
    /// Reads a key, which must be there.
    Get(Key),
    /// Reads a key, or that it is not there.
    GetOrEmpty(Key),
    /// Reads every key that begins with this text.
    GetTree(Arc<str>),
    /// Fails unless the key's `ModifyIndex` is this one.
    CheckIndex(Key, Index),
    /// Fails unless this session holds the key's lock.
    CheckSession(Key, SessionId),
    /// Fails if the key is there.
    CheckNotExists(Key),
    /// Ends a session.
    EndSession(SessionId),
    /// Stores a node; with an index, only while that is its `ModifyIndex` (0: absent).
    PutNode(Node, Option<Index>),
    /// Reads a node, which must be there.
    GetNode(NodeName),
    /// Removes a node; with an index, only while that is its `ModifyIndex`.
    DropNode(NodeName, Option<Index>),
    /// Stores an instance on a node that is there; the index as for a node.
    PutInstance(NodeName, Instance, Option<Index>),
    /// Reads an instance, which must be there.
    GetInstance(NodeName, InstanceId),
    /// Removes an instance; the index as for a node.
    DropInstance(NodeName, InstanceId, Option<Index>),
    /// Stores a check on a node that is there; the index as for a node.
    PutCheck(NodeName, Check, Option<Index>),
    /// Reads a check, which must be there.
    GetCheck(NodeName, CheckId),
    /// Removes a check; the index as for a node.
    DropCheck(NodeName, CheckId, Option<Index>),
}

impl Op {
    /// Whether it changes nothing.
    pub const fn is_read(&self) -> bool {
        matches!(
            self,
            Self::Get(_)
                | Self::GetOrEmpty(_)
                | Self::GetTree(_)
                | Self::CheckIndex(..)
                | Self::CheckSession(..)
                | Self::CheckNotExists(_)
                | Self::GetNode(_)
                | Self::GetInstance(..)
                | Self::GetCheck(..)
        )
    }
}

/// What an operation found or made.
#[derive(Clone, Debug)]
pub enum Found {
    /// A key with its value.
    Item(Key, Row<Item>),
    /// A key as it is now, the value left out.
    Stored(Key, Row<Item>),
    /// A key that is not there.
    Absent(Key),
    /// A node.
    Node(Row<Node>),
    /// An instance on its node.
    Instance(NodeName, Row<Instance>),
    /// A check on its node.
    Check(NodeName, Row<Check>),
}

/// Why a transaction did not happen: one of these for each operation that could not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// Which operation, counted from 0.
    pub op: usize,
    /// Why, worded as Consul words it where clients look for it.
    pub why: String,
}

/// What the latest transactions found, for the servers that proposed them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recent {
    found: rpds::RedBlackTreeMapSync<Index, Arc<Vec<Found>>>,
    /// Of the values in them.
    octets: usize,
}

impl Recent {
    pub(crate) fn get(&self, at: Index) -> Option<&Arc<Vec<Found>>> {
        self.found.get(&at)
    }

    pub(crate) fn put(&mut self, at: Index, found: Vec<Found>) {
        self.octets += octets(&found);
        self.found.insert_mut(at, Arc::new(found));
        while self.found.size() > RECENT_MAX || self.octets > RECENT_OCTETS_MAX {
            let Some((oldest, gone)) = self.found.first() else { return };
            let (oldest, gone) = (*oldest, octets(gone));
            self.octets -= gone;
            self.found.remove_mut(&oldest);
        }
    }
}

fn octets(found: &[Found]) -> usize {
    let value = |found: &Found| match found {
        Found::Item(key, row) => key.as_str().len() + row.value.value.len(),
        _ => 0,
    };
    found.iter().map(|found| size_of::<Found>() + value(found)).sum()
}

/// The most operations that one transaction may have.
pub const OPS_MAX: usize = 128;
/// The most keys that one transaction may read.
pub(crate) const FOUND_MAX: usize = 8_192;
/// Transactions whose findings are kept: more than are ever applied between two publications.
const RECENT_MAX: usize = 1_024;
/// Octets of values that are kept with them: they are shared with the store while they stand there.
const RECENT_OCTETS_MAX: usize = 64 * 1024 * 1024;
