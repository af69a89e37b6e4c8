//! `service-resolver`: how one service's targets are reached.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::EntryMeta;
use super::fault::{Fault, SERVICE_RULE, check_span};
use crate::duration;
use crate::name::{PeerName, ServiceName};

/// `service-resolver/<service>`: how its callers reach it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceResolver {
    /// Longest wait for a connection to an instance.
    #[serde(
        default,
        rename = "ConnectTimeout",
        alias = "connect_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub connect_timeout: Option<Duration>,
    /// Longest wait for a whole HTTP response, all tries together.
    #[serde(
        default,
        rename = "RequestTimeout",
        alias = "request_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub request_timeout: Option<Duration>,
    /// Where traffic goes while no instance of the service can take it, by subset; the only key
    /// today is `*`. Without it, peers that export a service of the same name stand in. An empty
    /// list of targets switches that off.
    #[serde(
        default,
        rename = "Failover",
        alias = "failover",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub failover: BTreeMap<String, Failover>,
    /// Free pairs.
    #[serde(default, rename = "Meta", alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// Where traffic goes while no instance can take it: in this order.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failover {
    /// Another service of the same cluster; not together with `targets`.
    #[serde(
        default,
        rename = "Service",
        alias = "service",
        skip_serializing_if = "String::is_empty"
    )]
    pub service: String,
    /// Services here or in peers.
    #[serde(default, rename = "Targets", alias = "targets", skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<FailoverTarget>,
}

/// One place where a service may be served instead.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailoverTarget {
    /// The service; empty for the resolver's own.
    #[serde(
        default,
        rename = "Service",
        alias = "service",
        skip_serializing_if = "String::is_empty"
    )]
    pub service: String,
    /// The peer; empty for one's own cluster.
    #[serde(
        default,
        rename = "Peer",
        alias = "peer",
        alias = "peer_name",
        skip_serializing_if = "String::is_empty"
    )]
    pub peer: String,
}

/// Where a service may be served instead, with its names checked.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Target {
    /// The service.
    pub service: ServiceName,
    /// The peer; none for one's own cluster.
    pub peer: Option<PeerName>,
}

impl ServiceResolver {
    /// The targets that stand in for `service`; none when the entry does not say.
    pub fn failover_of(&self, service: &ServiceName) -> Option<Vec<Target>> {
        let rule = self.failover.get(ANY_SUBSET)?;
        let own = Target { service: service.clone(), peer: None };
        let named = (!rule.service.is_empty())
            .then(|| FailoverTarget { service: rule.service.clone(), peer: String::new() });
        let mut targets = Vec::new();
        for target in named.iter().chain(&rule.targets) {
            let service = match target.service.as_str() {
                "" => Some(service.clone()),
                name => name.parse().ok(),
            };
            let peer = match target.peer.as_str() {
                "" => Some(None),
                name => name.parse().ok().map(Some),
            };
            let target = service.zip(peer).map(|(service, peer)| Target { service, peer });
            targets.extend(target.filter(|target| *target != own && !targets.contains(target)));
        }
        Some(targets)
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        self.check_failover()?;
        check_span("ConnectTimeout", self.connect_timeout, CONNECT_TIMEOUT_MAX)?;
        check_span("RequestTimeout", self.request_timeout, REQUEST_TIMEOUT_MAX)
    }

    fn check_failover(&self) -> Result<(), Fault> {
        for (subset, rule) in &self.failover {
            let at = |field: &str| format!("Failover[{subset:?}].{field}");
            if subset != ANY_SUBSET {
                return Err(Fault::new(
                    format!("Failover[{subset:?}]"),
                    "there are no subsets: use \"*\"",
                ));
            }
            if !rule.service.is_empty() && !rule.targets.is_empty() {
                return Err(Fault::new(
                    at("Service"),
                    "it cannot stand beside Targets: list it there",
                ));
            }
            if rule.targets.len() > FAILOVER_TARGETS_MAX {
                return Err(Fault::new(at("Targets"), "16 is the most"));
            }
            if !rule.service.is_empty() && rule.service.parse::<ServiceName>().is_err() {
                return Err(Fault::new(at("Service"), SERVICE_RULE));
            }
            for (n, target) in rule.targets.iter().enumerate() {
                if !target.service.is_empty() && target.service.parse::<ServiceName>().is_err() {
                    return Err(Fault::new(at(&format!("Targets[{n}].Service")), SERVICE_RULE));
                }
                if !target.peer.is_empty() && target.peer.parse::<PeerName>().is_err() {
                    return Err(Fault::new(at(&format!("Targets[{n}].Peer")), SERVICE_RULE));
                }
                if target.service.is_empty() && target.peer.is_empty() {
                    return Err(Fault::new(
                        at(&format!("Targets[{n}]")),
                        "it names neither Service nor Peer",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Consul's word for all subsets.
const ANY_SUBSET: &str = "*";
const FAILOVER_TARGETS_MAX: usize = 16;
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
