//! Shapes of the key-value store and its sessions.

use serde::{Deserialize, Serialize};

/// A key and what stands under it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct KvPair {
    /// How often it was locked.
    pub lock_index: u64,
    /// The key.
    pub key: String,
    /// A number that means what its writers agree on.
    pub flags: u64,
    /// The value in base64; null where it is empty.
    pub value: Option<String>,
    /// Who holds the lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The entry that created it.
    pub create_index: u64,
    /// The entry that last changed it.
    pub modify_index: u64,
}

/// A session.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Session {
    /// A UUID.
    #[serde(rename = "ID")]
    pub id: String,
    /// A name for people.
    pub name: String,
    /// The node that it ends with.
    pub node: String,
    /// For how long its keys cannot be locked after it ended, nanoseconds.
    pub lock_delay: u64,
    /// `release` or `delete`: what becomes of its keys.
    pub behavior: String,
    /// How often it must be renewed; empty where it need not.
    #[serde(rename = "TTL")]
    pub ttl: String,
    /// Checks of the node that it ends with.
    pub node_checks: Vec<String>,
    /// Checks of instances that it ends with; null where there are none, as Consul has it.
    pub service_checks: Option<Vec<SessionServiceCheck>>,
    /// The entry that created it.
    pub create_index: u64,
    /// The same.
    pub modify_index: u64,
}

/// A check of an instance that a session ends with.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SessionServiceCheck {
    /// The check's id.
    #[serde(rename = "ID")]
    pub id: String,
    /// Empty: there are none but the default one.
    pub namespace: String,
}

/// A user event.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Event {
    /// A UUID.
    #[serde(rename = "ID")]
    pub id: String,
    /// What happened.
    pub name: String,
    /// What watchers are told, in base64; null where it is nothing.
    pub payload: Option<String>,
    /// Which nodes it is for.
    pub node_filter: String,
    /// Which services it is for.
    pub service_filter: String,
    /// Which tags of those services it is for.
    pub tag_filter: String,
    /// Of the format.
    pub version: u64,
    /// Its place among the events.
    #[serde(rename = "LTime")]
    pub l_time: u64,
}
