//! `service-resolver`: how one service's targets are reached.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::EntryMeta;
use super::fault::{Fault, SERVICE_RULE, check_label, check_service, check_span, check_tenancy};
use super::load_balancer::LoadBalancer;
use super::locality::PrioritizeByLocality;
use crate::duration;
use crate::filter::Filter;
use crate::name::{PeerName, ServiceName};

/// `service-resolver/<service>`: how its callers reach it.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct ServiceResolver {
    /// Longest wait for a connection to an instance.
    #[serde(
        alias = "connect_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub connect_timeout: Option<Duration>,
    /// Longest wait for a whole HTTP response, all tries together.
    #[serde(
        alias = "request_timeout",
        with = "duration::serde_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub request_timeout: Option<Duration>,
    /// The subset that is meant where none is named; without it, all instances.
    #[serde(alias = "default_subset", skip_serializing_if = "String::is_empty")]
    pub default_subset: String,
    /// Parts of the instances, by name.
    #[serde(alias = "subsets", skip_serializing_if = "BTreeMap::is_empty")]
    pub subsets: BTreeMap<String, Subset>,
    /// What is called in its place.
    #[serde(alias = "redirect", skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// Where traffic goes while no instance of the service can take it, by subset; `*` is for
    /// those that have no key of their own. Without one, peers that export a service of the same
    /// name stand in. An empty
    /// list of targets switches that off.
    #[serde(alias = "failover", skip_serializing_if = "BTreeMap::is_empty")]
    pub failover: BTreeMap<String, Failover>,
    /// How callers choose among its instances.
    #[serde(alias = "load_balancer", skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<Box<LoadBalancer>>,
    /// Whether near instances go first; where it says nothing, `proxy-defaults` do.
    #[serde(alias = "prioritize_by_locality", skip_serializing_if = "Option::is_none")]
    pub prioritize_by_locality: Option<PrioritizeByLocality>,
    /// Free pairs.
    #[serde(alias = "meta", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: EntryMeta,
}

/// A part of a service's instances.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Subset {
    /// Which: an expression over an instance as `/v1/health/service` shows it. Empty is all.
    #[serde(alias = "filter", skip_serializing_if = "String::is_empty")]
    pub filter: String,
    /// Whether those with a warning are left out, too.
    #[serde(alias = "only_passing", skip_serializing_if = "is_false")]
    pub only_passing: bool,
}

/// What is called in place of a service.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Redirect {
    /// The service; empty for the resolver's own.
    #[serde(alias = "service", skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Its subset.
    #[serde(alias = "service_subset", skip_serializing_if = "String::is_empty")]
    pub service_subset: String,
    /// `default`, or empty.
    #[serde(alias = "namespace", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// `default`, or empty.
    #[serde(alias = "partition", skip_serializing_if = "String::is_empty")]
    pub partition: String,
    /// Empty: other clusters are peers.
    #[serde(alias = "datacenter", skip_serializing_if = "String::is_empty")]
    pub datacenter: String,
    /// The peer; empty for one's own cluster.
    #[serde(alias = "peer", skip_serializing_if = "String::is_empty")]
    pub peer: String,
}

/// Where traffic goes while no instance can take it: in this order.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct Failover {
    /// Another service of the same cluster; not together with `targets`.
    #[serde(alias = "service", skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Its subset.
    #[serde(alias = "service_subset", skip_serializing_if = "String::is_empty")]
    pub service_subset: String,
    /// Services here or in peers.
    #[serde(alias = "targets", skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<FailoverTarget>,
}

/// One place where a service may be served instead.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase", deny_unknown_fields)]
pub struct FailoverTarget {
    /// The service; empty for the resolver's own.
    #[serde(alias = "service", skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Its subset.
    #[serde(alias = "service_subset", skip_serializing_if = "String::is_empty")]
    pub service_subset: String,
    /// The peer; empty for one's own cluster.
    #[serde(alias = "peer", alias = "peer_name", skip_serializing_if = "String::is_empty")]
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
    /// What the entry says of the failover of `subset`, or of no subset.
    pub fn failover_of(&self, subset: Option<&str>) -> Option<&Failover> {
        let own = subset.and_then(|subset| self.failover.get(subset));
        own.or_else(|| self.failover.get(ANY_SUBSET))
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        self.check_subsets()?;
        if let Some(redirect) = &self.redirect {
            self.check_redirect(redirect)?;
        }
        for (subset, rule) in &self.failover {
            self.check_failover(subset, rule)?;
        }
        self.load_balancer.as_deref().map_or(Ok(()), LoadBalancer::check)?;
        check_span("ConnectTimeout", self.connect_timeout, CONNECT_TIMEOUT_MAX)?;
        check_span("RequestTimeout", self.request_timeout, REQUEST_TIMEOUT_MAX)
    }

    fn check_subsets(&self) -> Result<(), Fault> {
        if self.subsets.len() > SUBSETS_MAX {
            return Err(Fault::new("Subsets", format!("{SUBSETS_MAX} are the most")));
        }
        for (name, subset) in &self.subsets {
            if ServiceName::in_mesh(name).is_err() {
                return Err(Fault::new(format!("Subsets[{name:?}]"), SERVICE_RULE));
            }
            if !subset.filter.is_empty()
                && let Err(why) = Filter::parse(&subset.filter)
            {
                return Err(Fault::new(format!("Subsets[{name:?}].Filter"), why.to_string()));
            }
        }
        if !self.default_subset.is_empty() && !self.subsets.contains_key(&self.default_subset) {
            let why = format!("{:?} is none of Subsets: add it there", self.default_subset);
            return Err(Fault::new("DefaultSubset", why));
        }
        Ok(())
    }

    fn check_redirect(&self, redirect: &Redirect) -> Result<(), Fault> {
        if !self.failover.is_empty() {
            return Err(Fault::new("Redirect", "it cannot stand beside Failover: drop one"));
        }
        if !self.subsets.is_empty() || !self.default_subset.is_empty() {
            return Err(Fault::new("Redirect", "it cannot stand beside Subsets: drop one"));
        }
        check_service("Redirect.Service", &redirect.service)?;
        check_label("Redirect.ServiceSubset", &redirect.service_subset)?;
        check_tenancy("Redirect", &redirect.namespace, &redirect.partition)?;
        if !redirect.datacenter.is_empty() {
            return Err(Fault::new("Redirect.Datacenter", DATACENTER_RULE));
        }
        if !redirect.peer.is_empty() && redirect.peer.parse::<PeerName>().is_err() {
            return Err(Fault::new("Redirect.Peer", SERVICE_RULE));
        }
        if !redirect.peer.is_empty() && !redirect.service_subset.is_empty() {
            let why = "subsets of peers are not known here: drop it, or Peer";
            return Err(Fault::new("Redirect.ServiceSubset", why));
        }
        if !redirect.service_subset.is_empty() && redirect.service.is_empty() {
            return Err(Fault::new("Redirect.ServiceSubset", "it needs Service"));
        }
        if redirect.service.is_empty() && redirect.peer.is_empty() {
            return Err(Fault::new("Redirect", "it names neither Service nor Peer"));
        }
        Ok(())
    }

    fn check_failover(&self, subset: &str, rule: &Failover) -> Result<(), Fault> {
        let at = |field: &str| format!("Failover[{subset:?}].{field}");
        if subset != ANY_SUBSET && !self.subsets.contains_key(subset) {
            let why = "it is none of Subsets: add it there, or use \"*\"";
            return Err(Fault::new(format!("Failover[{subset:?}]"), why));
        }
        let is_short = !rule.service.is_empty() || !rule.service_subset.is_empty();
        if is_short && !rule.targets.is_empty() {
            return Err(Fault::new(at("Service"), "it cannot stand beside Targets: list it there"));
        }
        if rule.targets.len() > FAILOVER_TARGETS_MAX {
            return Err(Fault::new(at("Targets"), "16 is the most"));
        }
        check_service(&at("Service"), &rule.service)?;
        check_label(&at("ServiceSubset"), &rule.service_subset)?;
        for (n, target) in rule.targets.iter().enumerate() {
            target.check(&at(&format!("Targets[{n}]")))?;
        }
        Ok(())
    }
}

impl FailoverTarget {
    fn check(&self, at: &str) -> Result<(), Fault> {
        check_service(&format!("{at}.Service"), &self.service)?;
        check_label(&format!("{at}.ServiceSubset"), &self.service_subset)?;
        if !self.peer.is_empty() && self.peer.parse::<PeerName>().is_err() {
            return Err(Fault::new(format!("{at}.Peer"), SERVICE_RULE));
        }
        if !self.peer.is_empty() && !self.service_subset.is_empty() {
            let why = "subsets of peers are not known here: drop it, or Peer";
            return Err(Fault::new(format!("{at}.ServiceSubset"), why));
        }
        if self.service.is_empty() && self.peer.is_empty() && self.service_subset.is_empty() {
            return Err(Fault::new(at, "it names neither Service, ServiceSubset nor Peer"));
        }
        Ok(())
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Consul's word for all subsets.
const ANY_SUBSET: &str = "*";
const DATACENTER_RULE: &str = "other clusters are peers: leave it out, and name Peer";
const SUBSETS_MAX: usize = 64;
const FAILOVER_TARGETS_MAX: usize = 16;
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
