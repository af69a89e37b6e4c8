//! What runs on this host: services and checks from files and by the API, and how the checks stand.
//!
//! What came by the API is kept on disk and comes back after a restart; so do the mesh ports and
//! the last status of each check, so that a restarted agent does not report what it has not
//! looked at yet.

mod ports;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hawser_api::definition::{CheckDefinition, CheckKind, CheckSpec, ServiceDefinition, Sidecar};
use hawser_core::address::{Address, SocketPath};
use hawser_core::anti_entropy::Rows;
use hawser_core::catalog::{Check, CheckRun, Instance};
use hawser_core::clock::UnixTime;
use hawser_core::duration;
use hawser_core::health::{Gauge, Status, Ttl};
use hawser_core::name::{CheckId, InstanceId, ServiceName};
use hawser_core::view::GATEWAY_SERVICE;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock;
use crate::config::{Gateway, ScriptChecks};
use crate::target;
use ports::Ports;
use store::{Remembered, Store};

/// Where a declaration came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    /// A file: it goes when the file no longer has it.
    File,
    /// The API: it stays until it is deregistered.
    Api,
    /// The ECS task around the agent: it stays as long as its service, and is not kept on disk.
    Task,
    /// The agent itself, whose gateway it is: it stays as long as the agent runs.
    Own,
}

/// One service as it is declared here.
#[derive(Debug)]
pub(crate) struct Declared {
    /// The definition as it was written and what it means.
    pub(crate) definition: ServiceDefinition,
    /// What the catalog is told: the definition's instance with its mesh port.
    pub(crate) instance: Instance,
    /// Where it came from.
    pub(crate) origin: Origin,
}

/// One check as it stands.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// What is checked and how.
    pub(crate) spec: Arc<CheckSpec>,
    /// What is reported.
    pub(crate) status: Status,
    /// When somebody last reported, for a TTL check: by the wall, to be kept on disk.
    pub(crate) reported_at: Option<UnixTime>,
}

/// Why a declaration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Scripts are off.
    #[error(
        "check {check}: script checks are off on this agent: set enable_local_script_checks, and \
             declare it in a file"
    )]
    ScriptsOff {
        /// Which check.
        check: CheckId,
    },
    /// The check is about a service that is not declared here.
    #[error("ServiceID \"{instance}\" does not exist")]
    UnknownService {
        /// Who is missing.
        instance: InstanceId,
    },
    /// Somebody else's check has the id.
    #[error("check {check} belongs to another service: choose another CheckID")]
    CheckTaken {
        /// The id.
        check: CheckId,
    },
    /// The target is one that checks by the API may not ask.
    #[error(
        "check {check}: a check registered by the API may only ask this host: declare it in a \
             file"
    )]
    ForeignTarget {
        /// Which check.
        check: CheckId,
    },
    /// It would ask an address that the API chose more than whether somebody is there.
    #[error(
        "check {check}: a check registered by the API may only GET from an address that this host \
             does not have, without Header and Body: declare it in a file"
    )]
    ForeignRequest {
        /// Which check.
        check: CheckId,
    },
    /// A local port is somebody else's.
    #[error("port {port} is used by service {by} already")]
    PortTaken {
        /// The port.
        port: u16,
        /// Who has it.
        by: InstanceId,
    },
    /// A socket's path is somebody else's.
    #[error("LocalBindSocketPath: {path} is used by service {by} already: choose another path")]
    PathTaken {
        /// The path.
        path: SocketPath,
        /// Who has it.
        by: InstanceId,
    },
    /// The name or the id is the gateway's.
    #[error(
        "service {service} (id {instance}): mesh gateways alone are called {GATEWAY_SERVICE}: \
             choose another name and id, or set mesh_gateway to make this host one"
    )]
    Reserved {
        /// The service.
        service: ServiceName,
        /// Its id.
        instance: InstanceId,
    },
    /// No mesh port is left.
    #[error("no mesh port is left between {} and {}: deregister a service or widen the range",
            .range.start(), .range.end())]
    NoPort {
        /// The range.
        range: RangeInclusive<u16>,
    },
    /// Too many.
    #[error("this agent has {max} {what} already, the most it takes")]
    Full {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// It could not be kept on disk.
    #[error("it could not be kept on disk: {0}")]
    Store(#[from] io::Error),
}

/// There is no such thing here.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unknown {
    /// No such service.
    #[error("unknown service ID: {0}")]
    Service(InstanceId),
    /// No such check.
    #[error("unknown check ID: {0}")]
    Check(CheckId),
    /// It is the agent's own.
    #[error("{0} is this agent's mesh gateway: unset mesh_gateway and restart the agent")]
    Own(InstanceId),
    /// The check is not one that is reported to.
    #[error("CheckID \"{0}\" does not have associated TTL")]
    NotTtl(CheckId),
}

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Who may declare script checks.
    pub(crate) scripts: ScriptChecks,
    /// The host's own address.
    pub(crate) address: IpAddr,
    /// Where proxies listen for the mesh.
    pub(crate) bind: IpAddr,
    /// The ports to choose mesh ports from.
    pub(crate) ports: RangeInclusive<u16>,
}

/// The host's declarations. Every change wakes [`Local::changes`].
pub(crate) struct Local {
    rules: Rules,
    store: Store,
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
    states: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    services: BTreeMap<InstanceId, Arc<Declared>>,
    checks: BTreeMap<CheckId, Entry>,
    ports: Ports,
    maintenance: BTreeMap<Option<InstanceId>, Arc<str>>,
    remembered: BTreeMap<CheckId, Remembered>,
    /// Checks of definitions that came by the API, deregistered since by themselves.
    dropped: BTreeSet<CheckId>,
}

struct Entry {
    spec: Arc<CheckSpec>,
    /// Written inside a service's definition: it comes and goes with it.
    is_own: bool,
    origin: Origin,
    gauge: Gauge,
    /// By the wall, to be kept on disk.
    reported_at: Option<UnixTime>,
    /// When a report is due, for a TTL check: by a clock that nobody sets.
    lapses_at: Option<Instant>,
    /// The API chose an address that this host does not have: the answer is not shown.
    is_foreign: bool,
    output: Arc<str>,
    published: Arc<str>,
    published_at: Option<Instant>,
    critical_since: Option<Instant>,
    /// How it is run, as the catalog is told. Not what it asks: that may hold secrets.
    run: CheckRun,
}

impl Local {
    /// Opens the folder and takes back what was kept there, then what the files declare, which
    /// outranks it. Answers, too, what was refused: one bad declaration holds up no other.
    pub(crate) fn open(
        rules: Rules,
        folder: PathBuf,
        services: Vec<ServiceDefinition>,
        checks: Vec<CheckDefinition>,
    ) -> Result<(Self, Vec<RegisterError>), crate::disk::UnsafeFolder> {
        let (store, kept) = Store::open(folder)?;
        let inner = Inner {
            ports: Ports::new(kept.ports),
            maintenance: kept.maintenance,
            remembered: kept.statuses,
            ..Inner::default()
        };
        let local = Self {
            rules,
            store,
            inner: Mutex::new(inner),
            changes: watch::Sender::new(1),
            states: watch::Sender::new(0),
        };
        let mut refused = local.reload(services, checks);
        for definition in kept.services {
            if !local.is_from_file(&definition.service().instance.id) {
                refused.extend(local.declare_service(definition, Origin::Api, false).err());
            }
        }
        local.drop_again(kept.dropped);
        for definition in kept.checks {
            let id = &definition.check().id;
            // One beside a service's own of the same id came after it.
            let is_free = |held: &Entry| held.origin == Origin::Api;
            if local.lock().checks.get(id).is_none_or(is_free) {
                refused.extend(local.declare_check(definition, Origin::Api).err());
            }
        }
        Ok((local, refused))
    }

    /// Wakes with a new number whenever anything here changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Replaces what the files declared by what they declare now; answers what was refused.
    pub(crate) fn reload(
        &self,
        services: Vec<ServiceDefinition>,
        checks: Vec<CheckDefinition>,
    ) -> Vec<RegisterError> {
        let (gone_services, gone_checks) = {
            let inner = self.lock();
            let keeps: BTreeSet<_> = services.iter().map(|s| &s.service().instance.id).collect();
            let keeps_checks: BTreeSet<_> = checks.iter().map(|c| &c.check().id).collect();
            let services: Vec<InstanceId> = inner
                .services
                .iter()
                .filter(|(id, held)| held.origin == Origin::File && !keeps.contains(id))
                .map(|(id, _)| id.clone())
                .collect();
            let checks: Vec<CheckId> = inner
                .checks
                .iter()
                .filter(|(id, held)| {
                    held.origin == Origin::File && !held.is_own && !keeps_checks.contains(id)
                })
                .map(|(id, _)| id.clone())
                .collect();
            (services, checks)
        };
        for id in gone_checks {
            let _ = self.deregister_check(&id);
        }
        for id in gone_services {
            let _ = self.deregister_service(&id);
        }
        let mut refused = Vec::new();
        for definition in services {
            refused.extend(self.declare_service(definition, Origin::File, false).err());
        }
        for definition in checks {
            refused.extend(self.declare_check(definition, Origin::File).err());
        }
        refused
    }

    /// Declares a service by the API and keeps it on disk.
    ///
    /// `replaces_checks`: checks that were registered beside it go too.
    pub(crate) fn register_service(
        &self,
        definition: ServiceDefinition,
        replaces_checks: bool,
    ) -> Result<(), RegisterError> {
        let kept = definition.clone();
        self.declare_service(definition, Origin::Api, replaces_checks)?;
        self.store.keep_service(&kept)?;
        self.store.keep_dropped(&self.lock().dropped);
        Ok(())
    }

    /// Declares the mesh gateway that this host is, with a check of whether it listens.
    pub(crate) fn declare_gateway(&self, gateway: &Gateway) {
        let listen = gateway.listen;
        let probed = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let definition = serde_json::json!({
            "Name": GATEWAY_SERVICE,
            "ID": GATEWAY_SERVICE,
            "Port": listen.port(),
            "Check": {
                "Name": "Mesh gateway listens",
                "TCP": SocketAddr::new(probed, listen.port()).to_string(),
                "Interval": "5s",
                "Timeout": "2s",
            },
        });
        let declared = ServiceDefinition::try_from(definition).map(|definition| {
            let advertise = Some(gateway.advertise.clone());
            self.declare_instance(definition, Origin::Own, false, advertise)
        });
        match declared {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::error!(%why, "the gateway cannot be declared"),
            Err(why) => tracing::error!(%why, "the gateway cannot be declared"),
        }
    }

    /// Declares a check by the API and keeps it on disk.
    pub(crate) fn register_check(&self, definition: CheckDefinition) -> Result<(), RegisterError> {
        let kept = definition.clone();
        self.declare_check(definition, Origin::Api)?;
        self.store.keep_check(&kept)?;
        Ok(())
    }

    /// Declares a check that the agent itself reports on, from its task's metadata.
    pub(crate) fn declare_for_task(&self, spec: CheckSpec) -> Result<(), RegisterError> {
        self.declare_spec(spec, Origin::Task)
    }

    /// Removes a service with all its checks.
    pub(crate) fn deregister_service(&self, id: &InstanceId) -> Result<(), Unknown> {
        let dropped: Vec<CheckId> = {
            let mut inner = self.lock();
            if inner.services.get(id).is_some_and(|held| held.origin == Origin::Own) {
                return Err(Unknown::Own(id.clone()));
            }
            let gone = inner.services.remove(id).ok_or_else(|| Unknown::Service(id.clone()))?;
            let mut dropped = Vec::new();
            inner.checks.retain(|check, entry| {
                let stays = entry.spec.instance.as_ref() != Some(id);
                if !stays {
                    dropped.push(check.clone());
                }
                stays
            });
            if inner.maintenance.remove(&Some(id.clone())).is_some() {
                self.store.keep_maintenance(&inner.maintenance);
            }
            let defined = gone.definition.service().checks.iter().map(|check| &check.id);
            let count = inner.dropped.len();
            for check in defined {
                inner.dropped.remove(check);
            }
            if inner.dropped.len() < count {
                self.store.keep_dropped(&inner.dropped);
            }
            dropped
        };
        self.store.forget_service(id);
        for check in &dropped {
            self.store.forget_check(check);
        }
        self.wake();
        Ok(())
    }

    /// Removes a check.
    pub(crate) fn deregister_check(&self, id: &CheckId) -> Result<(), Unknown> {
        {
            let mut inner = self.lock();
            let gone = inner.checks.remove(id).ok_or_else(|| Unknown::Check(id.clone()))?;
            let is_in_definition = gone.origin == Origin::Api && inner.is_defined(id, &gone.spec);
            if is_in_definition && inner.dropped.len() < CHECKS_MAX {
                inner.dropped.insert(id.clone());
                self.store.keep_dropped(&inner.dropped);
            }
        }
        self.store.forget_check(id);
        self.wake();
        Ok(())
    }

    /// Takes away what was deregistered before the restart, and forgets of it what is no more.
    fn drop_again(&self, dropped: BTreeSet<CheckId>) {
        let mut inner = self.lock();
        for id in dropped {
            let is_there = |held: &Entry| held.is_own && held.origin == Origin::Api;
            if inner.checks.get(&id).is_some_and(is_there) {
                inner.checks.remove(&id);
                inner.dropped.insert(id);
            }
        }
    }

    /// Puts a service, or with none the whole node, into maintenance with `reason`, or with none
    /// ends it.
    pub(crate) fn maintain(
        &self,
        instance: Option<InstanceId>,
        reason: Option<&str>,
    ) -> Result<(), Unknown> {
        let mut inner = self.lock();
        if let Some(id) = &instance
            && !inner.services.contains_key(id)
        {
            return Err(Unknown::Service(id.clone()));
        }
        match reason {
            Some(reason) => inner.maintenance.insert(instance, reason.into()),
            None => inner.maintenance.remove(&instance),
        };
        self.store.keep_maintenance(&inner.maintenance);
        drop(inner);
        self.wake();
        Ok(())
    }

    /// Takes somebody's report on a TTL check.
    pub(crate) fn report(&self, id: &CheckId, status: Status, output: &str) -> Result<(), Unknown> {
        let mut inner = self.lock();
        let entry = inner.checks.get_mut(id).ok_or_else(|| Unknown::Check(id.clone()))?;
        let CheckKind::Ttl(lifetime) = entry.spec.kind else {
            return Err(Unknown::NotTtl(id.clone()));
        };
        entry.reported_at = Some(clock::now());
        entry.lapses_at = Some(Instant::now() + lifetime);
        let changed = entry.take(status, output);
        drop(inner);
        self.announce(changed);
        Ok(())
    }

    /// Takes the result of a run of `spec`; a result of a run that was overtaken by another
    /// declaration is dropped.
    pub(crate) fn observe(&self, spec: &Arc<CheckSpec>, status: Status, output: &str) {
        let mut inner = self.lock();
        let Some(entry) = inner.checks.get_mut(&spec.id) else { return };
        if !Arc::ptr_eq(&entry.spec, spec) {
            return;
        }
        let changed = entry.take(status, output);
        drop(inner);
        self.announce(changed);
    }

    /// When the last report on a TTL check lapses; none when nobody ever reported.
    pub(crate) fn lapses_at(&self, spec: &Arc<CheckSpec>) -> Option<Instant> {
        let inner = self.lock();
        inner.checks.get(&spec.id).filter(|entry| Arc::ptr_eq(&entry.spec, spec))?.lapses_at
    }

    /// Whether the answer to a run of `spec` may be shown to whoever may read checks.
    pub(crate) fn shows_answer(&self, spec: &CheckSpec) -> bool {
        self.lock().checks.get(&spec.id).is_some_and(|entry| !entry.is_foreign)
    }

    /// Every service, by id.
    pub(crate) fn services(&self) -> Vec<Arc<Declared>> {
        self.lock().services.values().cloned().collect()
    }

    /// One service.
    pub(crate) fn service(&self, id: &str) -> Option<Arc<Declared>> {
        self.lock().services.get(id).cloned()
    }

    /// The names of the services that run here and may be in the mesh. A gateway speaks for none,
    /// and has no identity.
    pub(crate) fn names(&self) -> BTreeSet<ServiceName> {
        let inner = self.lock();
        let applications = inner
            .services
            .values()
            .filter(|held| held.instance.gateway.is_none() && held.instance.service.is_label());
        applications.map(|held| held.instance.service.clone()).collect()
    }

    /// Whether this host is a mesh gateway.
    pub(crate) fn is_gateway(&self) -> bool {
        self.lock().services.values().any(|held| held.instance.gateway.is_some())
    }

    /// Every check that somebody declared, by id.
    pub(crate) fn checks(&self) -> Vec<Standing> {
        self.lock().checks.values().map(Entry::standing).collect()
    }

    /// Every check as the catalog sees it, maintenance included, with its live output.
    pub(crate) fn all_checks(&self) -> Vec<Check> {
        let inner = self.lock();
        let declared = inner.checks.values().map(|entry| entry.check(&entry.output));
        declared.chain(inner.maintenance_checks()).collect()
    }

    /// The worst of the checks of `instance`, as an alias sees it.
    pub(crate) fn status_of(&self, instance: &InstanceId, but: &CheckId) -> Option<Status> {
        let inner = self.lock();
        inner.services.get(instance)?;
        let own = inner
            .checks
            .values()
            .filter(|entry| entry.spec.instance.as_ref() == Some(instance) && entry.spec.id != *but)
            .map(|entry| entry.gauge.reported());
        let held = inner.maintenance.contains_key(&Some(instance.clone()));
        Some(Status::worst(own.chain(held.then_some(Status::Critical))))
    }

    /// What the catalog should hold now, and when to ask again because an output waits its turn.
    ///
    /// A new status is told at once; a new output alone at most once per [`OUTPUT_EVERY`].
    pub(crate) fn rows(&self) -> (Rows, Option<Instant>) {
        let mut inner = self.lock();
        let now = Instant::now();
        let mut due: Option<Instant> = None;
        for entry in inner.checks.values_mut() {
            if entry.published == entry.output {
                continue;
            }
            match entry.published_at.map(|at| at + OUTPUT_EVERY).filter(|at| *at > now) {
                Some(later) => due = Some(due.map_or(later, |due| due.min(later))),
                None => {
                    entry.published = entry.output.clone();
                    entry.published_at = Some(now);
                }
            }
        }
        let instances = inner
            .services
            .values()
            .map(|held| (held.instance.id.clone(), held.instance.clone()))
            .collect();
        let declared = inner.checks.values().map(|entry| entry.check(&entry.published));
        let checks = declared
            .chain(inner.maintenance_checks())
            .map(|check| (check.id.clone(), check))
            .collect();
        (Rows { node: None, instances, checks }, due)
    }

    /// Removes services that have been critical for longer than their checks allow.
    pub(crate) fn reap(&self) {
        let overdue: BTreeSet<InstanceId> = {
            let inner = self.lock();
            let is_overdue =
                |entry: &&Entry| match (entry.spec.deregister_after, entry.critical_since) {
                    (Some(most), Some(since)) => since.elapsed() >= most,
                    _ => false,
                };
            let overdue = inner.checks.values().filter(is_overdue);
            overdue.filter_map(|entry| entry.spec.instance.clone()).collect()
        };
        for id in overdue {
            tracing::warn!(
                instance = id.as_str(),
                "deregistered: it was critical for longer than deregister_critical_service_after"
            );
            let _ = self.deregister_service(&id);
        }
    }

    /// Keeps the status of each check on disk, at most once per [`STATES_EVERY`], until `drain`.
    pub(crate) async fn keep_states(&self, drain: tokio_util::sync::CancellationToken) {
        let mut states = self.states.subscribe();
        loop {
            tokio::select! {
                () = drain.cancelled() => break,
                changed = states.changed() => if changed.is_err() { break },
            }
            tokio::select! {
                () = drain.cancelled() => {}
                () = tokio::time::sleep(STATES_EVERY) => {}
            }
            states.borrow_and_update();
            self.save_states();
        }
        self.save_states();
    }

    /// Writes how the checks stand.
    pub(crate) fn save_states(&self) {
        let states: BTreeMap<CheckId, Remembered> = self
            .checks()
            .into_iter()
            .map(|check| {
                let kind = check.spec.kind.as_str().to_owned();
                let reported_at = check.reported_at;
                (check.spec.id.clone(), Remembered { kind, status: check.status, reported_at })
            })
            .collect();
        self.store.keep_statuses(&states);
    }

    fn declare_service(
        &self,
        definition: ServiceDefinition,
        origin: Origin,
        replaces_checks: bool,
    ) -> Result<(), RegisterError> {
        let Instance { id, service, .. } = &definition.service().instance;
        if service.as_str() == GATEWAY_SERVICE || id.as_str() == GATEWAY_SERVICE {
            let (service, instance) = (service.clone(), id.clone());
            return Err(RegisterError::Reserved { service, instance });
        }
        if !service.is_label() {
            tracing::warn!(
                service = ?service.as_str(), instance = ?id.as_str(),
                "this name is none in DNS and in the mesh: only a-z, 0-9 and - are, 63 at most"
            );
        }
        self.declare_instance(definition, origin, replaces_checks, None)
    }

    /// Declares an instance of whatever name; `gateway` is what others dial when it is one.
    fn declare_instance(
        &self,
        definition: ServiceDefinition,
        origin: Origin,
        replaces_checks: bool,
        gateway: Option<Arc<str>>,
    ) -> Result<(), RegisterError> {
        let service = definition.service().clone();
        let id = service.instance.id.clone();
        let mut inner = self.lock();
        if !inner.services.contains_key(&id) && inner.services.len() >= SERVICES_MAX {
            return Err(RegisterError::Full { what: "services", max: SERVICES_MAX });
        }
        let mut checks = Vec::new();
        for check in service.checks {
            let is_foreign = self.admit_check(&inner, &check, origin, service.instance.address)?;
            checks.push((check, is_foreign));
        }
        let mesh_port = match &service.sidecar {
            Some(sidecar) if sidecar.application.is_some() => {
                let taken: BTreeMap<u16, InstanceId> = inner
                    .services
                    .values()
                    .filter(|held| held.instance.id != id)
                    .filter_map(|held| Some((held.instance.mesh_port?, held.instance.id.clone())))
                    .collect();
                let chosen = match sidecar.port {
                    Some(port) => match taken.get(&port) {
                        Some(by) => return Err(RegisterError::PortTaken { port, by: by.clone() }),
                        None => port,
                    },
                    None => inner
                        .ports
                        .choose(&id, &self.rules.ports, self.rules.bind, &taken)
                        .ok_or_else(|| RegisterError::NoPort { range: self.rules.ports.clone() })?,
                };
                Some(chosen)
            }
            _ => None,
        };
        inner.admit_upstreams(&id, service.sidecar.as_ref())?;
        let instance = Instance { mesh_port, gateway, ..service.instance };
        let replaced = inner.replace_checks(&id, checks, origin, replaces_checks);
        inner.services.insert(id, Arc::new(Declared { definition, instance, origin }));
        self.store.keep_ports(inner.ports.all());
        drop(inner);
        for check in replaced {
            self.store.forget_check(&check);
        }
        self.wake();
        Ok(())
    }

    fn declare_check(
        &self,
        definition: CheckDefinition,
        origin: Origin,
    ) -> Result<(), RegisterError> {
        self.declare_spec(definition.into_check(), origin)
    }

    fn declare_spec(&self, spec: CheckSpec, origin: Origin) -> Result<(), RegisterError> {
        let mut inner = self.lock();
        let address = match &spec.instance {
            None => None,
            Some(id) => match inner.services.get(id) {
                Some(held) => held.instance.address,
                None => return Err(RegisterError::UnknownService { instance: id.clone() }),
            },
        };
        let is_foreign = self.admit_check(&inner, &spec, origin, address)?;
        inner.put_check(spec, false, origin, is_foreign);
        drop(inner);
        self.wake();
        Ok(())
    }

    /// Refuses what `origin` may not declare; answers whether it asks an address that is not the
    /// host's, on the word of the API alone.
    fn admit_check(
        &self,
        inner: &Inner,
        spec: &CheckSpec,
        origin: Origin,
        address: Option<IpAddr>,
    ) -> Result<bool, RegisterError> {
        match inner.checks.get(&spec.id) {
            Some(held) if held.spec.instance != spec.instance => {
                return Err(RegisterError::CheckTaken { check: spec.id.clone() });
            }
            None if inner.checks.len() >= CHECKS_MAX => {
                return Err(RegisterError::Full { what: "checks", max: CHECKS_MAX });
            }
            _ => {}
        }
        let may_script = match self.rules.scripts {
            ScriptChecks::Off => false,
            ScriptChecks::Files => origin == Origin::File,
            ScriptChecks::FilesAndApi => true,
        };
        if matches!(spec.kind, CheckKind::Script { .. }) && !may_script {
            return Err(RegisterError::ScriptsOff { check: spec.id.clone() });
        }
        let own = [Some(self.rules.address), Some(self.rules.bind), None];
        if origin != Origin::Api || target::is_local(&spec.kind, &own) {
            return Ok(false);
        }
        let Some(address) = address.filter(|_| target::is_local(&spec.kind, &[address])) else {
            return Err(RegisterError::ForeignTarget { check: spec.id.clone() });
        };
        let is_foreign = !target::is_here(address);
        if is_foreign && !target::is_harmless(&spec.kind) {
            return Err(RegisterError::ForeignRequest { check: spec.id.clone() });
        }
        Ok(is_foreign)
    }

    fn is_from_file(&self, id: &InstanceId) -> bool {
        self.lock().services.get(id).is_some_and(|held| held.origin == Origin::File)
    }

    fn announce(&self, changed: Changed) {
        if changed.status {
            self.states.send_modify(|count| *count += 1);
        }
        if changed.status || changed.output {
            self.wake();
        }
    }

    fn wake(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether the definition of the service that `spec` is about has a check with this id.
    fn is_defined(&self, id: &CheckId, spec: &CheckSpec) -> bool {
        let service = spec.instance.as_ref().and_then(|instance| self.services.get(instance));
        service.is_some_and(|held| held.definition.service().checks.iter().any(|c| c.id == *id))
    }

    /// Refuses the local ports of upstreams that other services have.
    fn admit_upstreams(
        &self,
        id: &InstanceId,
        sidecar: Option<&Sidecar>,
    ) -> Result<(), RegisterError> {
        for upstream in sidecar.into_iter().flat_map(|sidecar| &sidecar.upstreams) {
            let others = self.services.values().filter(|held| held.instance.id != *id);
            for held in others {
                let theirs = held.definition.service().sidecar.iter().flat_map(|s| &s.upstreams);
                if theirs.into_iter().any(|theirs| theirs.bind == upstream.bind) {
                    let by = held.instance.id.clone();
                    return Err(match &upstream.bind {
                        Address::Tcp(at) => RegisterError::PortTaken { port: at.port(), by },
                        Address::Unix(path) => RegisterError::PathTaken { path: path.clone(), by },
                    });
                }
            }
        }
        Ok(())
    }

    /// Puts the checks of a service's definition in place of those that it had, and with `all` of
    /// those that were registered beside it; answers which of these are gone.
    fn replace_checks(
        &mut self,
        service: &InstanceId,
        checks: Vec<(CheckSpec, bool)>,
        origin: Origin,
        all: bool,
    ) -> Vec<CheckId> {
        let mut replaced = Vec::new();
        self.checks.retain(|id, entry| {
            let is_ours = entry.spec.instance.as_ref() == Some(service);
            let stays = checks.iter().any(|(check, _)| check.id == *id);
            let goes = is_ours && (stays || entry.is_own || all);
            if goes && !entry.is_own {
                replaced.push(id.clone());
            }
            !goes || stays
        });
        for (check, is_foreign) in checks {
            self.dropped.remove(&check.id);
            self.put_check(check, true, origin, is_foreign);
        }
        replaced
    }

    fn put_check(&mut self, spec: CheckSpec, is_own: bool, origin: Origin, is_foreign: bool) {
        let id = spec.id.clone();
        if let Some(held) = self.checks.get_mut(&id)
            && *held.spec == spec
        {
            // Declared again as it was: its history stands.
            (held.is_own, held.origin, held.is_foreign) = (is_own, origin, is_foreign);
            return;
        }
        let remembered = self.remembered.remove(&id).filter(|kept| kept.kind == spec.kind.as_str());
        let (status, reported_at) = match remembered {
            Some(kept) => (kept.status, kept.reported_at),
            None => (spec.initial, None),
        };
        let (reported_at, lapses_at) = match spec.kind {
            CheckKind::Ttl(lifetime) => {
                let (reported_at, left) = taken_up(lifetime, reported_at, clock::now());
                (Some(reported_at), Some(Instant::now() + left))
            }
            _ => (None, None),
        };
        let entry = Entry {
            is_own,
            origin,
            gauge: Gauge::new(spec.thresholds, status),
            reported_at,
            lapses_at,
            is_foreign,
            output: "".into(),
            published: "".into(),
            published_at: None,
            critical_since: (status == Status::Critical).then(Instant::now),
            run: run_of(&spec),
            spec: Arc::new(spec),
        };
        self.checks.insert(id, entry);
    }

    fn maintenance_checks(&self) -> impl Iterator<Item = Check> + '_ {
        self.maintenance.iter().filter_map(|(instance, reason)| {
            let (id, name) = match instance {
                None => (NODE_MAINTENANCE.to_owned(), "Node Maintenance Mode"),
                Some(id) => (format!("{SERVICE_MAINTENANCE}{id}"), "Service Maintenance Mode"),
            };
            // An instance id near the greatest length has no room for the prefix.
            let id = id.parse().ok()?;
            Some(Check {
                id,
                name: name.into(),
                kind: "maintenance".into(),
                status: Status::Critical,
                notes: reason.clone(),
                output: "".into(),
                instance: instance.clone(),
                run: Default::default(),
            })
        })
    }
}

#[derive(Clone, Copy)]
struct Changed {
    status: bool,
    output: bool,
}

impl Entry {
    fn take(&mut self, result: Status, output: &str) -> Changed {
        let before = self.gauge.reported();
        let status = self.gauge.observe(result);
        let output = truncated(output, self.spec.output_max);
        let changed = Changed { status: status != before, output: *output != *self.output };
        if changed.output {
            self.output = output.into();
        }
        if changed.status {
            self.published = self.output.clone();
            self.published_at = Some(Instant::now());
            tracing::info!(check = self.spec.id.as_str(), %status, was = %before, "a check changed");
        }
        self.critical_since = match status {
            Status::Critical => self.critical_since.or_else(|| Some(Instant::now())),
            _ => None,
        };
        changed
    }

    fn standing(&self) -> Standing {
        Standing {
            spec: self.spec.clone(),
            status: self.gauge.reported(),
            reported_at: self.reported_at,
        }
    }

    fn check(&self, output: &Arc<str>) -> Check {
        Check {
            id: self.spec.id.clone(),
            name: self.spec.name.clone(),
            kind: self.spec.kind.as_str().into(),
            status: self.gauge.reported(),
            notes: self.spec.notes.clone(),
            output: output.clone(),
            instance: self.spec.instance.clone(),
            run: self.run.clone(),
        }
    }
}

/// When the report on a TTL check counts as given, and for how much longer it holds, at `now`; the one
/// that was kept on disk is the last whose status differed. One that has lapsed since says nothing
/// about the service: the next is owed within one lifetime, as it is after the declaration.
fn taken_up(lifetime: Duration, kept: Option<UnixTime>, now: UnixTime) -> (UnixTime, Duration) {
    let is_good = |reported_at: &UnixTime| {
        let kept = Ttl { lifetime, reported_at: *reported_at };
        *reported_at <= now && !kept.has_lapsed(now)
    };
    match kept.filter(is_good) {
        Some(reported_at) => (reported_at, lifetime.saturating_sub(now.since(reported_at))),
        None => (now, lifetime),
    }
}

/// How often a check is run and for how long, where the agent runs it.
fn run_of(spec: &CheckSpec) -> CheckRun {
    match spec.kind {
        CheckKind::Ttl(_) => CheckRun::default(),
        _ => CheckRun {
            interval: duration::format(spec.interval).into(),
            timeout: duration::format(spec.timeout).into(),
            definition: "".into(),
        },
    }
}

/// At most `octets` octets of `text`, never cut within a character.
fn truncated(text: &str, octets: usize) -> &str {
    let octets = octets.min(OUTPUT_OCTETS_MAX);
    &text[..text.floor_char_boundary(octets)]
}

/// The id of the check that a node in maintenance has.
pub(crate) const NODE_MAINTENANCE: &str = "_node_maintenance";
const SERVICE_MAINTENANCE: &str = "_service_maintenance:";
/// How often a changed output alone is told to the catalog: a check that prints the time of day
/// must not write to Raft with every run.
const OUTPUT_EVERY: Duration = Duration::from_secs(10);
const STATES_EVERY: Duration = Duration::from_secs(1);
const OUTPUT_OCTETS_MAX: usize = 4096;
const SERVICES_MAX: usize = 1024;
const CHECKS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    fn rules() -> Rules {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        Rules {
            scripts: ScriptChecks::Off,
            address: loopback,
            bind: loopback,
            ports: 21_000..=21_255,
        }
    }

    fn open(folder: &Path, services: &[Value]) -> Local {
        let services = services.iter().map(|value| service(value.clone())).collect();
        let (local, refused) =
            Local::open(rules(), folder.to_owned(), services, vec![]).expect("opened");
        assert!(refused.is_empty(), "{refused:?}");
        local
    }

    fn service(value: Value) -> ServiceDefinition {
        value.try_into().expect("good")
    }

    fn meshed(name: &str) -> Value {
        json!({ "Name": name, "Port": 80, "Connect": { "SidecarService": {} } })
    }

    fn ids(local: &Local) -> Vec<String> {
        local.services().iter().map(|held| held.instance.id.to_string()).collect()
    }

    #[test]
    fn what_came_by_the_api_survives_a_restart_with_its_port_and_status() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let local = open(folder.path(), &[meshed("file")]);
        let mut beat = meshed("api");
        beat["Check"] = json!({ "TTL": "10m" });
        local.register_service(service(beat), false).expect("taken");
        local.report(&"service:api".parse().expect("an id"), Status::Passing, "ok").expect("a ttl");
        local.maintain(Some("api".parse().expect("an id")), Some("why")).expect("known");
        local.save_states();
        let port = local.service("api").expect("there").instance.mesh_port;
        assert!(port.is_some_and(|port| (21_000..=21_255).contains(&port)));
        drop(local);

        let again = open(folder.path(), &[]);
        assert_eq!(ids(&again), ["api"], "the file's service is gone with its file");
        assert_eq!(again.service("api").expect("there").instance.mesh_port, port);
        let checks = again.all_checks();
        let found: Vec<_> = checks.iter().map(|c| (c.id.as_str(), c.status)).collect();
        let expected =
            [("service:api", Status::Passing), ("_service_maintenance:api", Status::Critical)];
        assert_eq!(found, expected);

        again.deregister_service(&"api".parse().expect("an id")).expect("known");
        drop(again);
        assert!(ids(&open(folder.path(), &[])).is_empty(), "gone for good");
    }

    #[test]
    fn a_file_outranks_what_the_api_said_and_a_reload_takes_away() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let local = open(folder.path(), &[]);
        local.register_service(service(json!({ "Name": "web", "Port": 1 })), false).expect("taken");
        drop(local);
        let local = open(folder.path(), &[json!({ "Name": "web", "Port": 2 })]);
        assert_eq!(local.service("web").expect("there").instance.port, 2);
        assert!(local.reload(vec![service(json!({ "Name": "db" }))], vec![]).is_empty());
        assert_eq!(ids(&local), ["db"]);
    }

    #[test]
    fn a_report_that_was_kept_counts_only_while_it_holds() {
        let noon = UnixTime::from_secs(1_000_000);
        let ago = |seconds: u64| UnixTime::from_secs(1_000_000 - seconds);
        let ttl = Duration::from_secs(30);
        for (kept, expected, left, why) in [
            (None, noon, 30, "declared just now"),
            (Some(ago(10)), ago(10), 20, "it holds a while"),
            (Some(ago(30)), noon, 30, "it lapsed: nothing was written while nothing changed"),
            (Some(ago(90_000)), noon, 30, "a day ago"),
            (Some(noon.plus(ttl)), noon, 30, "the clock was ahead"),
        ] {
            let expected = (expected, Duration::from_secs(left));
            assert_eq!(taken_up(ttl, kept, noon), expected, "{why}");
        }
    }

    #[test]
    fn what_is_gone_stays_so_after_a_restart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let web = |checks: Value| service(json!({ "Name": "web", "Port": 1, "Checks": checks }));
        let both = || json!([{ "CheckID": "a", "TTL": "1h" }, { "CheckID": "b", "TTL": "1h" }]);
        let beside = |id: &str, ttl: &str| -> CheckDefinition {
            let check = json!({ "ID": id, "Name": id, "TTL": ttl, "ServiceID": "web" });
            check.try_into().expect("good")
        };
        let id = |text: &str| -> CheckId { text.parse().expect("an id") };
        let held = |local: &Local| -> Vec<String> {
            let shown = |check: &Standing| match check.spec.kind {
                CheckKind::Ttl(ttl) => format!("{} {}", check.spec.id, ttl.as_secs()),
                _ => String::new(),
            };
            local.checks().iter().map(shown).collect()
        };
        let again = |local: Local| {
            let before = held(&local);
            drop(local);
            let local = open(folder.path(), &[]);
            assert_eq!(held(&local), before, "as before the restart");
            local
        };
        let local = open(folder.path(), &[]);
        local.register_service(web(both()), false).expect("taken");
        local.register_check(beside("c", "5s")).expect("taken");
        local.register_check(beside("b", "6s")).expect("taken");
        assert_eq!(held(&local), ["a 3600", "b 6", "c 5"]);
        let local = again(local);
        local.deregister_check(&id("a")).expect("there");
        local.deregister_check(&id("b")).expect("there");
        assert_eq!(held(&local), ["c 5"]);
        let local = again(local);
        let local = again(local);
        local.register_service(web(both()), true).expect("taken");
        assert_eq!(held(&local), ["a 3600", "b 3600"], "named again, and the one beside replaced");
        let local = again(local);
        local.register_check(beside("a", "7s")).expect("taken");
        local.register_service(web(both()), false).expect("taken");
        assert_eq!(held(&local), ["a 3600", "b 3600"], "the definition came last");
        let local = again(local);
        local.deregister_check(&id("a")).expect("there");
        local.deregister_service(&"web".parse().expect("an id")).expect("there");
        local.register_service(web(both()), false).expect("taken");
        assert_eq!(held(&again(local)), ["a 3600", "b 3600"], "another service of the same id");
    }

    #[test]
    fn an_address_that_the_api_chose_is_only_looked_at() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let local = open(folder.path(), &[]);
        // For documentation: no host has it.
        let at = |check: Value| {
            service(json!({ "Name": "x", "Address": "192.0.2.7", "Port": 80, "Check": check }))
        };
        let http = |more: Value| {
            let mut check = json!({ "HTTP": "http://192.0.2.7/up", "Interval": "1s" });
            let fields = more.as_object().expect("an object").clone();
            check.as_object_mut().expect("an object").extend(fields);
            check
        };
        for (check, is_taken, why) in [
            (http(json!({})), true, "a container is asked whether it is up"),
            (json!({ "TCP": "192.0.2.7:80", "Interval": "1s" }), true, "no more than a connection"),
            (json!({ "GRPC": "192.0.2.7:80", "Interval": "1s" }), true, "no more than its health"),
            (http(json!({ "Method": "PUT" })), false, "it may change something"),
            (http(json!({ "Header": { "X-Token": ["x"] } })), false, "it may pass for somebody"),
            (http(json!({ "Body": "x" })), false, "it may say something"),
            (json!({ "TCP": "192.0.2.8:80", "Interval": "1s" }), false, "somebody else's"),
        ] {
            let taken = local.register_service(at(check), false);
            assert_eq!(taken.is_ok(), is_taken, "{why}: {taken:?}");
            if is_taken {
                let spec = local.checks()[0].spec.clone();
                assert!(!local.shows_answer(&spec), "{why}");
            }
        }
        let here = json!({ "Name": "y", "Address": "127.0.0.2", "Port": 80, "Check":
            { "HTTP": "http://127.0.0.2/up", "Method": "PUT", "Interval": "1s" } });
        local.register_service(service(here), false).expect("this host's own address");
        let check = local.checks().into_iter().find(|check| check.spec.id.as_str() == "service:y");
        assert!(local.shows_answer(&check.expect("there").spec));
    }

    #[test]
    fn the_gateway_is_the_agents_own() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let local = open(folder.path(), &[meshed("web")]);
        let kept = |local: &Local| {
            let held = local.service("mesh-gateway")?;
            Some((held.instance.port, held.instance.gateway.clone()))
        };
        for (definition, why) in [
            (json!({ "Name": "mesh-gateway", "Port": 8443 }), "by name"),
            (json!({ "Name": "web", "ID": "mesh-gateway" }), "by id"),
            (json!({ "Name": "mesh-gateway", "ID": "mine" }), "under another id"),
        ] {
            let refused = local.register_service(service(definition.clone()), false);
            let refused = refused.expect_err(why).to_string();
            assert!(refused.contains("set mesh_gateway"), "{why}: {refused}");
            let refused = local.reload(vec![service(meshed("web")), service(definition)], vec![]);
            assert_eq!(refused.len(), 1, "{why}, in a file");
        }
        assert_eq!((local.is_gateway(), kept(&local)), (false, None));

        let listen = SocketAddr::from(([0, 0, 0, 0], 8443));
        let gateway = Gateway::new(listen, "gateway.example.com:443").expect("good");
        local.declare_gateway(&gateway);
        let expected = Some((8443, Some("gateway.example.com:443".into())));
        assert_eq!((local.is_gateway(), kept(&local)), (true, expected.clone()));
        assert_eq!(local.names(), BTreeSet::from(["web".parse().expect("a name")]), "no identity");
        let checks = local.checks();
        let check = checks.iter().find(|check| check.spec.id.as_str() == "service:mesh-gateway");
        let kind = CheckKind::Tcp { address: "127.0.0.1:8443".into() };
        assert_eq!(check.map(|check| check.spec.kind.clone()), Some(kind));

        let id = "mesh-gateway".parse().expect("an id");
        assert_eq!(local.deregister_service(&id), Err(Unknown::Own(id)));
        assert!(local.reload(vec![], vec![]).is_empty());
        assert_eq!(kept(&local), expected, "no file declared it, so none takes it away");
        drop(local);
        assert_eq!(kept(&open(folder.path(), &[])), None, "it comes with the configuration alone");
    }

    #[test]
    fn what_must_not_be_declared_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let upstream = |name: &str| {
            json!({ "Name": name, "Connect": { "SidecarService": { "Proxy": { "Upstreams": [
                { "DestinationName": "db", "LocalBindPort": 9191 } ] } } } })
        };
        let port = |name: &str| json!({ "Name": name, "Port": 80, "Connect": { "SidecarService": { "Port": 21500 } } });
        let socket = |name: &str| {
            json!({ "Name": name, "Connect": { "SidecarService": { "Proxy": { "Upstreams": [
                { "DestinationName": "db", "LocalBindSocketPath": "/run/x/db.sock" } ] } } } })
        };
        let check = |check: Value| json!({ "Name": "x", "Check": check });
        let local = open(
            folder.path(),
            &[
                upstream("a"),
                port("b"),
                socket("d"),
                json!({"Name": "c",
            "Check": {"TTL": "5s", "CheckID": "beat"}}),
            ],
        );
        let cases = [
            (upstream("x"), "port 9191 is used by service a", "one upstream port, two services"),
            (port("x"), "port 21500 is used by service b", "one mesh port, two services"),
            (socket("x"), "/run/x/db.sock is used by service d", "one socket, two services"),
            (
                check(json!({"Args": ["/bin/true"], "Interval": "1s"})),
                "script checks are off",
                "A7",
            ),
            (check(json!({"TTL": "5s", "CheckID": "beat"})), "another service", "ids are unique"),
            (
                check(json!({"HTTP": "http://10.9.9.9/", "Interval": "1s"})),
                "only ask this host",
                "A6",
            ),
        ];
        for (definition, expected, why) in cases {
            let refused = local.register_service(service(definition), false).expect_err(why);
            assert!(refused.to_string().contains(expected), "{why}: {refused}");
        }
        let orphan = json!({ "Name": "n", "TTL": "5s", "ServiceID": "nobody" });
        let refused = local.register_check(orphan.try_into().expect("good")).expect_err("orphan");
        assert_eq!(refused.to_string(), "ServiceID \"nobody\" does not exist");
        assert_eq!(ids(&local), ["a", "b", "c", "d"]);
    }

    #[test]
    fn scripts_are_declared_by_files_or_by_the_api_as_the_rules_say() {
        let script = || {
            service(json!({ "Name": "x", "Check": { "Args": ["/bin/true"],
                                        "Interval": "1s" } }))
        };
        for (scripts, by_file, by_api) in [
            (ScriptChecks::Off, false, false),
            (ScriptChecks::Files, true, false),
            (ScriptChecks::FilesAndApi, true, true),
        ] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let rules = Rules { scripts, ..rules() };
            let (local, refused) =
                Local::open(rules, folder.path().to_owned(), vec![script()], vec![])
                    .expect("opened");
            assert_eq!(refused.is_empty(), by_file, "{scripts:?}: {refused:?}");
            assert!(local.reload(vec![], vec![]).is_empty());
            assert_eq!(local.register_service(script(), false).is_ok(), by_api, "{scripts:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_output_alone_is_told_once_in_ten_seconds_and_a_status_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let local = open(folder.path(), &[json!({ "Name": "web", "Check": { "TTL": "1h" } })]);
        let id: CheckId = "service:web".parse().expect("an id");
        let told = || {
            let (rows, due) = local.rows();
            (rows.checks[&id].status, rows.checks[&id].output.to_string(), due.is_some())
        };
        local.report(&id, Status::Passing, "one").expect("a ttl");
        assert_eq!(told(), (Status::Passing, "one".into(), false), "a status goes at once");
        local.report(&id, Status::Passing, "two").expect("a ttl");
        assert_eq!(told(), (Status::Passing, "one".into(), true), "an output waits its turn");
        local.report(&id, Status::Warning, "three").expect("a ttl");
        assert_eq!(told(), (Status::Warning, "three".into(), false), "unless the status moves");
        local.report(&id, Status::Warning, "four").expect("a ttl");
        tokio::time::advance(OUTPUT_EVERY).await;
        assert_eq!(told(), (Status::Warning, "four".into(), false), "its turn has come");
    }

    #[test]
    fn output_is_cut_between_characters() {
        assert_eq!(truncated("aé", 2), "a");
        assert_eq!(truncated("aé", 3), "aé");
        assert_eq!(truncated(&"x".repeat(9000), 9000).len(), OUTPUT_OCTETS_MAX);
    }
}
