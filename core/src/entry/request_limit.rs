//! `control-plane-request-limit`: how much one host may ask of each server.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::EntryMeta;
use super::fault::Fault;

/// `control-plane-request-limit/<any name>`: how much one host may ask of each server.
///
/// Every entry counts by itself, and what one of them refuses is refused.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct RequestLimit {
    /// What becomes of what is too much.
    #[serde(alias = "mode")]
    pub mode: LimitMode,
    /// Reads of all areas together.
    #[serde(alias = "read_rate", skip_serializing_if = "PerSecond::is_unlimited")]
    pub read_rate: PerSecond,
    /// Writes of all areas together.
    #[serde(alias = "write_rate", skip_serializing_if = "PerSecond::is_unlimited")]
    pub write_rate: PerSecond,
    /// Access control.
    #[serde(rename = "ACL", alias = "acl", skip_serializing_if = "Option::is_none")]
    pub acl: Option<AreaLimit>,
    /// The catalog.
    #[serde(alias = "catalog", skip_serializing_if = "Option::is_none")]
    pub catalog: Option<AreaLimit>,
    /// Config entries.
    #[serde(alias = "config_entry", skip_serializing_if = "Option::is_none")]
    pub config_entry: Option<AreaLimit>,
    /// Roots, and certificates for services.
    #[serde(rename = "ConnectCA", alias = "connect_ca", skip_serializing_if = "Option::is_none")]
    pub connect_ca: Option<AreaLimit>,
    /// Network coordinates.
    #[serde(alias = "coordinate", skip_serializing_if = "Option::is_none")]
    pub coordinate: Option<AreaLimit>,
    /// Discovery chains.
    #[serde(alias = "discovery_chain", skip_serializing_if = "Option::is_none")]
    pub discovery_chain: Option<AreaLimit>,
    /// Checks and the instances that pass them.
    #[serde(alias = "health", skip_serializing_if = "Option::is_none")]
    pub health: Option<AreaLimit>,
    /// Intentions.
    #[serde(alias = "intention", skip_serializing_if = "Option::is_none")]
    pub intention: Option<AreaLimit>,
    /// Keys and values.
    #[serde(rename = "KV", alias = "kv", skip_serializing_if = "Option::is_none")]
    pub kv: Option<AreaLimit>,
    /// Prepared queries.
    #[serde(alias = "prepared_query", skip_serializing_if = "Option::is_none")]
    pub prepared_query: Option<AreaLimit>,
    /// Sessions.
    #[serde(alias = "session", skip_serializing_if = "Option::is_none")]
    pub session: Option<AreaLimit>,
    /// Transactions.
    #[serde(alias = "txn", skip_serializing_if = "Option::is_none")]
    pub txn: Option<AreaLimit>,
    /// Free pairs.
    #[serde(alias = "meta", skip_serializing_if = "EntryMeta::is_empty")]
    pub meta: EntryMeta,
}

/// How much of one area.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct AreaLimit {
    /// Reads.
    #[serde(alias = "read_rate", skip_serializing_if = "PerSecond::is_unlimited")]
    pub read_rate: PerSecond,
    /// Writes.
    #[serde(alias = "write_rate", skip_serializing_if = "PerSecond::is_unlimited")]
    pub write_rate: PerSecond,
}

/// What becomes of what is too much.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LimitMode {
    /// It is counted and passes.
    #[default]
    Permissive,
    /// It is refused.
    Enforcing,
    /// It is not even counted.
    Disabled,
}

/// Requests a second, to the thousandth; zero is no limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PerSecond {
    /// Thousandths of a request a second.
    pub milli: u64,
}

impl PerSecond {
    /// Whether nothing is limited.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    pub fn is_unlimited(&self) -> bool {
        self.milli == 0
    }
}

impl Serialize for PerSecond {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.milli.is_multiple_of(1_000) {
            return to.serialize_u64(self.milli / 1_000);
        }
        #[allow(clippy::cast_precision_loss, reason = "it is below PER_SECOND_MAX")]
        to.serialize_f64(self.milli as f64 / 1_000.0)
    }
}

impl<'de> Deserialize<'de> for PerSecond {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let per_second = f64::deserialize(from)?;
        if !(0.0..=PER_SECOND_MAX).contains(&per_second) {
            return Err(serde::de::Error::custom("a rate must be from 0 to 1000000000"));
        }
        // Within bounds; what is finer is rounded, but never to no limit at all.
        let milli = (per_second * 1_000.0).ceil() as u64;
        Ok(Self { milli })
    }
}

impl RequestLimit {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let areas = [
            &self.acl,
            &self.catalog,
            &self.config_entry,
            &self.connect_ca,
            &self.coordinate,
            &self.discovery_chain,
            &self.health,
            &self.intention,
            &self.kv,
            &self.prepared_query,
            &self.session,
            &self.txn,
        ];
        let says = |read: PerSecond, write: PerSecond| read.milli > 0 || write.milli > 0;
        let of_area = |area: &AreaLimit| says(area.read_rate, area.write_rate);
        let is_any = says(self.read_rate, self.write_rate)
            || areas.into_iter().flatten().any(of_area)
            || self.mode == LimitMode::Disabled;
        if is_any {
            return Ok(());
        }
        Err(Fault::new("ReadRate", "nothing is limited: give it, WriteRate or an area a rate"))
    }
}

const PER_SECOND_MAX: f64 = 1e9;
