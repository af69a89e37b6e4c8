//! Configuration: HCL or JSON files with Consul's keys → one raw form → what server and agent run on.

mod acl;
mod aws;
mod gateway;
mod http;
mod telemetry;
pub(crate) mod ecs;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hawser_agent as agent;
use hawser_api::definition::{CheckDefinition, Definitions, ServiceDefinition};
use hawser_core::catalog::{Instance, Locality, Meta, Weights};
use hawser_core::intention::Action;
use hawser_core::name::{Datacenter, NodeName};
use hawser_server as server;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What files may say. Every key is optional here; defaults stand in [`Raw::resolve`] only.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Raw {
    node_name: Option<String>,
    datacenter: Option<String>,
    data_dir: Option<PathBuf>,
    bind_addr: Option<IpAddr>,
    advertise_addr: Option<IpAddr>,
    client_addr: Option<IpAddr>,
    ports: Option<RawPorts>,
    addresses: Option<http::RawAddresses>,
    unix_sockets: Option<http::RawUnixSockets>,
    tls: Option<http::RawTls>,
    bootstrap_expect: Option<u8>,
    retry_join: Option<Vec<String>>,
    operator_key_file: Option<PathBuf>,
    default_intention_policy: Option<Action>,
    reap_after: Option<String>,
    leaf_cert_ttl: Option<String>,
    raft: Option<RawRaft>,
    join_method: Option<String>,
    join_token_file: Option<PathBuf>,
    server_pin: Option<String>,
    aws_iam: Option<aws::RawAwsIam>,
    acl: Option<acl::RawAcl>,
    audit: Option<acl::RawAudit>,
    enable_script_checks: Option<bool>,
    enable_local_script_checks: Option<bool>,
    locality: Option<RawLocality>,
    node_meta: Option<BTreeMap<String, String>>,
    domain: Option<String>,
    alt_domain: Option<String>,
    recursors: Option<Vec<String>>,
    dns_config: Option<RawDns>,
    proxy: Option<RawProxy>,
    ecs: Option<ecs::RawEcs>,
    mesh_gateway: Option<gateway::RawGateway>,
    log_level: Option<String>,
    log_json: Option<bool>,
    access_log: Option<telemetry::RawAccessLog>,
    telemetry: Option<telemetry::RawTelemetry>,
    service: Option<Value>,
    services: Option<Value>,
    check: Option<Value>,
    checks: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawPorts {
    /// −1 switches the listener off, as in Consul.
    http: Option<i32>,
    https: Option<i32>,
    dns: Option<i32>,
    server: Option<u16>,
    sidecar_min_port: Option<u16>,
    sidecar_max_port: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawRaft {
    heartbeat_ms: Option<u64>,
    election_min_ms: Option<u64>,
    election_max_ms: Option<u64>,
    snapshot_every: Option<u64>,
    log_mib_max: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawLocality {
    region: Option<String>,
    zone: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawDns {
    only_passing: Option<bool>,
    ttl: Option<String>,
    stale_max: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawProxy {
    workers: Option<usize>,
    drain: Option<String>,
}

/// Everything that a process needs to know, with nothing optional that has a default.
pub(crate) struct Settings {
    /// How the process logs.
    pub(crate) log: crate::telemetry::Log,
    /// The host's agent.
    pub(crate) agent: agent::Config,
    /// The Raft member, when this host is one.
    pub(crate) server: Option<ServerSettings>,
}

/// A server's configuration and where it listens.
pub(crate) struct ServerSettings {
    /// What the server runs on.
    pub(crate) config: server::Config,
    /// Where it listens for servers and agents.
    pub(crate) listen: SocketAddr,
}

impl Settings {
    /// Starts logging, to standard error and to those who watch the agent's API.
    ///
    /// # Errors
    /// A filter in the environment that does not parse.
    pub(crate) fn start_logging(&mut self) -> Result<()> {
        self.agent.logs = Some(self.log.start()?);
        Ok(())
    }
}

/// Which of the two a process is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Part {
    /// An agent alone.
    Agent,
    /// A Raft member with an agent inside.
    Server,
}

/// Reads the given files and folders, in order; later values win, lists grow.
///
/// # Errors
/// A file that cannot be read or parsed, or a key that does not exist; each names its file.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Raw> {
    combine(Value::Object(serde_json::Map::new()), documents(paths)?)
}

/// What the given files and folders say, in order, each with the file that says it.
///
/// # Errors
/// A file that cannot be read or parsed.
pub(crate) fn documents(paths: &[PathBuf]) -> Result<Vec<(String, Value)>> {
    let mut documents = Vec::new();
    for file in files(paths)? {
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("reading {}", file.display()))?;
        documents.push((file.display().to_string(), parse(&file, &text)?));
    }
    Ok(documents)
}

/// What the variable `HAWSER_CONFIG_JSON` says, where it is set.
///
/// # Errors
/// It is no JSON object.
pub(crate) fn from_environment() -> Result<Option<(String, Value)>> {
    match std::env::var(CONFIG_JSON) {
        Ok(text) => Ok(Some((CONFIG_JSON.to_owned(), parse(Path::new(CONFIG_JSON), &text)?))),
        Err(_) => Ok(None),
    }
}

/// What `documents` say over `base`: later values win, lists grow.
///
/// # Errors
/// A key that does not exist or a value that cannot be; each names its document.
pub(crate) fn combine(base: Value, documents: Vec<(String, Value)>) -> Result<Raw> {
    let mut merged = base;
    for (name, value) in documents {
        serde_json::from_value::<Raw>(value.clone()).with_context(|| match culprit(&value) {
            Some(key) => format!("{name}: {key}"),
            None => name,
        })?;
        merge(&mut merged, value);
    }
    serde_json::from_value(merged).context("the configuration files together")
}

/// The key that does not parse, such as `ports.http`: each is tried by itself.
fn culprit(value: &Value) -> Option<String> {
    let fails = |alone: Value| serde_json::from_value::<Raw>(alone).is_err();
    let keys = value.as_object()?;
    let (key, inner) = keys.iter().find(|(key, inner)| fails(json!({ *key: inner })))?;
    let deeper = inner.as_object().into_iter().flatten();
    let mut deeper = deeper.filter(|(below, inner)| fails(json!({ key: { *below: inner } })));
    Some(deeper.next().map_or_else(|| key.clone(), |(below, _)| format!("{key}.{below}")))
}

/// The configuration files of a folder, by name; of one that is not there, none.
///
/// # Errors
/// A folder that cannot be read.
pub(crate) fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.is_dir() { files(&[folder.to_owned()]) } else { Ok(Vec::new()) }
}

/// The first of `keys` that `file` says anything about.
///
/// # Errors
/// A file that cannot be read or parsed.
pub(crate) fn first_key<'k>(file: &Path, keys: &[&'k str]) -> Result<Option<&'k str>> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let said = parse(file, &text)?;
    Ok(keys.iter().copied().find(|key| said.get(key).is_some()))
}

/// The configuration files that `paths` name: a folder stands for its *.hcl and *.json, by name.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let mut inside: Vec<PathBuf> = std::fs::read_dir(path)
            .with_context(|| format!("reading folder {}", path.display()))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()?;
        let is_config =
            |file: &PathBuf| file.extension().is_some_and(|end| end == "hcl" || end == "json");
        inside.retain(is_config);
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

/// Parses what `file` says: JSON where the name or the first character says so, else HCL.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Value> {
    let is_json = file.extension().is_some_and(|end| end == "json")
        || (file.extension().is_none() && text.trim_start().starts_with('{'));
    let value: Value = if is_json {
        serde_json::from_str(text).with_context(|| format!("{}", file.display()))?
    } else {
        hcl::from_str(text).with_context(|| format!("{}", file.display()))?
    };
    ensure!(value.is_object(), "{}: it must hold keys and values", file.display());
    Ok(value)
}

/// Lays `over` on `under`: objects key by key, lists one after the other, all else replaced.
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                let is_definition =
                    matches!(key.as_str(), "service" | "services" | "check" | "checks");
                match under.get_mut(&key) {
                    Some(held) if is_definition => append(held, value),
                    Some(held) => merge(held, value),
                    None => {
                        under.insert(key, value);
                    }
                }
            }
        }
        (Value::Array(under), Value::Array(over)) => under.extend(over),
        (under, over) => *under = over,
    }
}

/// Makes `held` a list that also has `more`: several files may each define a service.
fn append(held: &mut Value, more: Value) {
    let mut list = into_list(held.take());
    list.extend(into_list(more));
    *held = Value::Array(list);
}

fn into_list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        Value::Null => Vec::new(),
        one => vec![one],
    }
}

impl RawPorts {
    /// The ports that inbound mTLS listeners are given.
    fn mesh(&self) -> Result<RangeInclusive<u16>> {
        let (first, last) = SIDECAR_PORTS;
        let ports = self.sidecar_min_port.unwrap_or(first)..=self.sidecar_max_port.unwrap_or(last);
        ensure!(
            !ports.is_empty() && *ports.start() > 0,
            "ports.sidecar_min_port must be above 0 and not above ports.sidecar_max_port"
        );
        Ok(ports)
    }
}

impl Raw {
    /// Sets what command-line flags say over what files say.
    pub(crate) fn override_with(&mut self, flags: Flags) {
        let Flags {
            node_name,
            datacenter,
            data_dir,
            bind_addr,
            advertise_addr,
            client_addr,
            retry_join,
            bootstrap_expect,
            http_port,
            dns_port,
            server_port,
            domain,
            enable_script_checks,
            enable_local_script_checks,
            log_level,
        } = flags;
        self.datacenter = datacenter.or(self.datacenter.take());
        self.client_addr = client_addr.or(self.client_addr);
        self.domain = domain.or(self.domain.take());
        self.log_level = log_level.or(self.log_level.take());
        if http_port.is_some() || dns_port.is_some() || server_port.is_some() {
            let ports = self.ports.get_or_insert_default();
            ports.http = http_port.or(ports.http);
            ports.dns = dns_port.or(ports.dns);
            ports.server = server_port.or(ports.server);
        }
        if enable_script_checks {
            self.enable_script_checks = Some(true);
        }
        if enable_local_script_checks {
            self.enable_local_script_checks = Some(true);
        }
        self.node_name = node_name.or(self.node_name.take());
        self.data_dir = data_dir.or(self.data_dir.take());
        self.bind_addr = bind_addr.or(self.bind_addr);
        self.advertise_addr = advertise_addr.or(self.advertise_addr);
        self.bootstrap_expect = bootstrap_expect.or(self.bootstrap_expect);
        if !retry_join.is_empty() {
            self.retry_join = Some(retry_join);
        }
    }

    /// The services and checks that the files declare.
    ///
    /// # Errors
    /// A definition that is not well formed; the error names the field.
    pub(crate) fn definitions(&self) -> Result<(Vec<ServiceDefinition>, Vec<CheckDefinition>)> {
        let written = [
            ("service", &self.service),
            ("services", &self.services),
            ("check", &self.check),
            ("checks", &self.checks),
        ];
        let file: serde_json::Map<String, Value> = written
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
            .collect();
        let Definitions { services, checks } = Definitions::from_json(&Value::Object(file))?;
        Ok((services, checks))
    }

    /// What a reload brings.
    ///
    /// # Errors
    /// A value that cannot be; the error names the key.
    pub(crate) fn reload(&self) -> Result<agent::Reload> {
        let (services, checks) = self.definitions()?;
        let https = self.api()?.tls.map(|https| https.shown);
        Ok(agent::Reload { services, checks, https, telemetry: self.telemetry()? })
    }

    /// Where the listeners for this host's own clients stand.
    fn client(&self) -> IpAddr {
        self.client_addr.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// What the proxies log and trace.
    fn telemetry(&self) -> Result<agent::Telemetry> {
        telemetry::resolve(self.access_log.as_ref(), self.telemetry.as_ref())
    }

    /// How the process logs.
    ///
    /// # Errors
    /// A log level that is none.
    pub(crate) fn log(&self) -> Result<crate::telemetry::Log> {
        let level = self.log_level.as_deref().unwrap_or("info");
        crate::telemetry::Log::new(level, self.log_json.unwrap_or(false))
    }

    /// Fills in the defaults and checks what belongs together.
    ///
    /// # Errors
    /// A value that cannot be, named by its key, with what it may be.
    pub(crate) fn resolve(&self, part: Part) -> Result<Settings> {
        let node = self.node_name()?;
        let datacenter: Datacenter = self
            .datacenter
            .as_deref()
            .unwrap_or("dc1")
            .parse()
            .context("datacenter: use a-z, 0-9 and -")?;
        let data_dir = self.data_dir.clone().context("data_dir: say where to keep data")?;
        let bind = self.bind_addr.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let advertise = self.advertise(bind)?;
        let ports = self.ports.clone().unwrap_or_default();
        let server_port = ports.server.unwrap_or(server::config::PORT);
        let server = match part {
            Part::Agent => None,
            Part::Server => {
                Some(self.server(&node, &datacenter, &data_dir, bind, advertise, server_port)?)
            }
        };
        let servers = match part {
            Part::Agent => self.retry_join.clone().unwrap_or_default(),
            Part::Server => vec![SocketAddr::new(advertise, server_port).to_string()],
        };
        let agent = self.agent(AgentBasics {
            node,
            datacenter,
            data_dir,
            bind,
            advertise,
            servers,
            server_port,
            is_server: part == Part::Server,
        })?;
        Ok(Settings { log: self.log()?, agent, server })
    }

    /// Checks what can be without looking at other files, the network or the host.
    ///
    /// # Errors
    /// As [`Raw::resolve`], but for what a host has to have: folders, keys and addresses.
    pub(crate) fn check(&self) -> Result<()> {
        self.expected_servers()?;
        self.timing()?;
        self.leaf_lifetime()?;
        span("reap_after", self.reap_after.as_deref(), server::config::REAP_AFTER)?;
        let mut complete = self.clone();
        complete.data_dir.get_or_insert_default();
        complete.advertise_addr.get_or_insert(IpAddr::V4(Ipv4Addr::LOCALHOST));
        complete.retry_join.get_or_insert_with(|| vec!["localhost".to_owned()]);
        complete.join_token_file = None;
        complete.resolve(Part::Agent).map(drop)
    }

    fn node_name(&self) -> Result<NodeName> {
        let name = match &self.node_name {
            Some(name) => name.clone(),
            None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        };
        let name: NodeName = name.parse().with_context(|| format!("node_name: {name:?}"))?;
        ensure!(
            name.is_segment(),
            "node_name: {:?}: use letters, digits, -, _ and .",
            name.as_str()
        );
        Ok(name)
    }

    /// The address that others reach this host at: said, or the bound one, or the one that the
    /// system would send from.
    fn advertise(&self, bind: IpAddr) -> Result<IpAddr> {
        match self.advertise_addr {
            Some(address) => {
                ensure!(
                    !address.is_unspecified(),
                    "advertise_addr: {address} is no host's address"
                );
                Ok(address)
            }
            None if !bind.is_unspecified() => Ok(bind),
            None => source_address(bind).context(
                "advertise_addr: the host has no route to guess it by; say which address others \
                 reach this host at",
            ),
        }
    }

    fn server(
        &self,
        node: &NodeName,
        datacenter: &Datacenter,
        data_dir: &Path,
        bind: IpAddr,
        advertise: IpAddr,
        port: u16,
    ) -> Result<ServerSettings> {
        let key_file = self
            .operator_key_file
            .clone()
            .or_else(|| credential("operator.key"))
            .context("operator_key_file: servers need one; `hawser keygen` makes it")?;
        let operator_key =
            server::identity::OperatorKey::read(&key_file).context("operator_key_file")?;
        let config = server::Config {
            node: node.clone(),
            datacenter: datacenter.clone(),
            data_dir: data_dir.join("server"),
            advertise: SocketAddr::new(advertise, port),
            bootstrap_expect: self.expected_servers()?,
            retry_join: self.retry_join.clone().unwrap_or_default(),
            operator_key,
            default_action: self.default_intention_policy.unwrap_or(Action::Deny),
            reap_after: span("reap_after", self.reap_after.as_deref(), server::config::REAP_AFTER)?,
            leaf_lifetime: self.leaf_lifetime()?,
            timing: self.timing()?,
            lease: server::config::LEASE,
            history: server::history::Limits::default(),
            aws_iam: self.aws_iam.as_ref().map(aws::RawAwsIam::resolve).transpose()?,
            acl: acl::server(self.acl.as_ref(), self.audit.as_ref(), data_dir)?,
            snapshot_every: self
                .raft
                .as_ref()
                .and_then(|raft| raft.snapshot_every)
                .unwrap_or(server::config::SNAPSHOT_EVERY),
            log_bytes_max: self
                .raft
                .as_ref()
                .and_then(|raft| raft.log_mib_max)
                .map_or(server::config::LOG_BYTES_MAX, |mib| mib.saturating_mul(1 << 20)),
            planted: planted(),
        };
        Ok(ServerSettings { config, listen: SocketAddr::new(bind, port) })
    }

    fn expected_servers(&self) -> Result<u8> {
        let bootstrap_expect = self.bootstrap_expect.unwrap_or(0);
        ensure!(
            matches!(bootstrap_expect, 0 | 1 | 3 | 5),
            "bootstrap_expect: {bootstrap_expect} servers cannot agree well; use 1, 3 or 5, or \
             leave it out to join a cluster that exists"
        );
        Ok(bootstrap_expect)
    }

    fn timing(&self) -> Result<server::RaftTiming> {
        let raft = self.raft.clone().unwrap_or_default();
        let defaults = server::RaftTiming::default();
        let millis =
            |given: Option<u64>, default: Duration| given.map_or(default, Duration::from_millis);
        let timing = server::RaftTiming {
            heartbeat: millis(raft.heartbeat_ms, defaults.heartbeat),
            election_min: millis(raft.election_min_ms, defaults.election_min),
            election_max: millis(raft.election_max_ms, defaults.election_max),
        };
        ensure!(
            timing.heartbeat * 2 < timing.election_min && timing.election_min < timing.election_max,
            "raft: heartbeat_ms must be less than half of election_min_ms, and that less than \
             election_max_ms"
        );
        Ok(timing)
    }

    fn leaf_lifetime(&self) -> Result<Duration> {
        let lifetime = span("leaf_cert_ttl", self.leaf_cert_ttl.as_deref(), LEAF_LIFETIME)?;
        ensure!(
            (LEAF_LIFETIME_MIN..=LEAF_LIFETIME_MAX).contains(&lifetime),
            "leaf_cert_ttl: it must be from 1h to 168h"
        );
        Ok(lifetime)
    }

    /// How the host joins: by the method it names, a file's token, or the environment's.
    fn join(&self) -> Result<agent::Join> {
        let join_token_file =
            self.join_token_file.clone().or_else(|| credential("hawser.join-token"));
        let join = match join_token_file {
            None => match std::env::var(JOIN_TOKEN) {
                Ok(token) => agent::Join::Token(token.trim().to_owned()),
                Err(_) => agent::Join::None,
            },
            Some(file) => match std::fs::read_to_string(&file) {
                Ok(text) => agent::Join::Token(text.trim().to_owned()),
                // A token that was used is of no use: it may go once the host has joined.
                Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
                    agent::Join::Missing(file)
                }
                Err(why) => {
                    let what = format!("join_token_file {}", file.display());
                    return Err(anyhow::Error::new(why).context(what));
                }
            },
        };
        let method = self.join_method.as_deref();
        let pin = self.server_pin.clone().or_else(|| aws::ambient_pin(method));
        Ok(aws::join(method, pin.as_deref(), self.join_token_file.is_some())?.unwrap_or(join))
    }

    fn agent(&self, basics: AgentBasics) -> Result<agent::Config> {
        let AgentBasics {
            node,
            datacenter,
            data_dir,
            bind,
            advertise,
            servers,
            server_port,
            is_server,
        } = basics;
        let ports = self.ports.clone().unwrap_or_default();
        let dns_at = self.addresses.as_ref().and_then(|all| all.dns).unwrap_or(self.client());
        let dns_listen = listener("ports.dns", ports.dns, DNS_PORT, dns_at)?;
        let locality = self.locality();
        let (services, checks) = self.definitions()?;
        let join = self.join()?;
        for server in self.retry_join.iter().flatten() {
            agent::config::check_server(server).context("retry_join")?;
        }
        ensure!(
            is_server || !servers.is_empty(),
            "retry_join: say at least one server's address, such as \"10.0.0.10\""
        );
        let proxy = self.proxy.clone().unwrap_or_default();
        let workers = proxy.workers.unwrap_or_else(default_workers);
        ensure!((1..=WORKERS_MAX).contains(&workers), "proxy.workers: use 1 to {WORKERS_MAX}");
        let mesh_ports = ports.mesh()?;
        let with_config = |listen| anyhow::Ok((listen, self.dns(&node, &datacenter, advertise)?));
        let dns = dns_listen.map(with_config).transpose()?;
        Ok(agent::Config {
            node,
            datacenter,
            data_dir: data_dir.join("agent"),
            advertise,
            bind,
            http: self.api()?,
            dns,
            servers,
            join,
            services,
            own_service: is_server.then(|| server_service(server_port)).transpose()?,
            checks,
            script_checks: self.script_checks(),
            locality: locality.clone(),
            meta: self.meta(),
            proxy: agent::proxy::Config { workers, locality, ..agent::proxy::Config::default() },
            telemetry: self.telemetry()?,
            gateway: self.gateway(bind, advertise)?,
            mesh_ports,
            drain: span("proxy.drain", proxy.drain.as_deref(), DRAIN)?,
            ecs: None,
            is_server,
            acl: acl::agent(self.acl.as_ref())?,
            logs: None,
            succession: agent::Succession::default(),
            version: env!("CARGO_PKG_VERSION"),
        })
    }

    fn dns(
        &self,
        node: &NodeName,
        datacenter: &Datacenter,
        advertise: IpAddr,
    ) -> Result<hawser_agent::dns::Config> {
        let raw = self.dns_config.clone().unwrap_or_default();
        let recursors = self
            .recursors
            .iter()
            .flatten()
            .map(|text| {
                let address = text.parse::<SocketAddr>().ok();
                address
                    .or_else(|| Some(SocketAddr::new(text.parse().ok()?, 53)))
                    .with_context(|| format!("recursors: {text:?} is no IP address or IP:port"))
            })
            .collect::<Result<_>>()?;
        let domain = |key: &str, text: &str| -> Result<String> {
            let text = text.trim_end_matches('.').to_ascii_lowercase();
            let is_label = |label: &str| label.parse::<Datacenter>().is_ok();
            ensure!(text.split('.').all(is_label), "{key}: {text:?} is no domain name");
            Ok(text)
        };
        Ok(hawser_agent::dns::Config {
            domain: domain("domain", self.domain.as_deref().unwrap_or("consul"))?,
            alt_domain: match &self.alt_domain {
                None => None,
                Some(text) => Some(domain("alt_domain", text)?),
            },
            datacenter: datacenter.clone(),
            ttl: span("dns_config.ttl", raw.ttl.as_deref(), DNS_TTL)?,
            only_passing: raw.only_passing.unwrap_or(false),
            recursors,
            stale_max: span("dns_config.stale_max", raw.stale_max.as_deref(), DNS_STALE_MAX)?,
            node: node.clone(),
            address: advertise,
        })
    }

    fn gateway(&self, bind: IpAddr, advertise: IpAddr) -> Result<Option<agent::Gateway>> {
        self.mesh_gateway.as_ref().map(|raw| raw.resolve(bind, advertise)).transpose()
    }

    fn locality(&self) -> Locality {
        let raw = self.locality.clone().unwrap_or_default();
        Locality { region: raw.region.map(Into::into), zone: raw.zone.map(Into::into) }
    }

    fn script_checks(&self) -> agent::ScriptChecks {
        if self.enable_script_checks.unwrap_or(false) {
            agent::ScriptChecks::FilesAndApi
        } else if self.enable_local_script_checks.unwrap_or(false) {
            agent::ScriptChecks::Files
        } else {
            agent::ScriptChecks::Off
        }
    }

    fn meta(&self) -> Meta {
        let pairs = self.node_meta.iter().flatten();
        pairs.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
    }
}

/// What flags may say over files.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Flags {
    /// This host's name in the catalog.
    #[arg(long = "node", value_name = "NAME")]
    node_name: Option<String>,
    /// Where to keep data.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// The address to listen on for servers, agents and the mesh.
    #[arg(long = "bind", value_name = "ADDRESS")]
    bind_addr: Option<IpAddr>,
    /// The address that others reach this host at.
    #[arg(long = "advertise", value_name = "ADDRESS")]
    advertise_addr: Option<IpAddr>,
    /// A server to join; may be given several times.
    #[arg(long, value_name = "ADDRESS")]
    retry_join: Vec<String>,
    /// How many servers found a new cluster together.
    #[arg(long, value_name = "N")]
    bootstrap_expect: Option<u8>,
    /// The cluster's name.
    #[arg(long, value_name = "NAME")]
    datacenter: Option<String>,
    /// The address at which the HTTP API and DNS listen.
    #[arg(long = "client", value_name = "ADDRESS")]
    client_addr: Option<IpAddr>,
    /// Port of the HTTP API; -1 for none.
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    http_port: Option<i32>,
    /// Port of DNS; -1 for none.
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    dns_port: Option<i32>,
    /// Port of the server.
    #[arg(long, value_name = "PORT")]
    server_port: Option<u16>,
    /// The DNS domain to answer.
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Let files and the API declare script checks.
    #[arg(long)]
    enable_script_checks: bool,
    /// Let files, and never the API, declare script checks.
    #[arg(long)]
    enable_local_script_checks: bool,
    /// How much to log: trace, debug, info, warn or error.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

struct AgentBasics {
    node: NodeName,
    datacenter: Datacenter,
    data_dir: PathBuf,
    bind: IpAddr,
    advertise: IpAddr,
    servers: Vec<String>,
    server_port: u16,
    is_server: bool,
}

/// A server in the catalog, as Consul's users look for it: `consul.service.consul`.
fn server_service(port: u16) -> Result<Instance> {
    Ok(Instance {
        id: "consul".parse()?,
        service: "consul".parse()?,
        address: None,
        port,
        tags: BTreeSet::new(),
        meta: Meta::default(),
        weights: Weights::default(),
        protocol: None,
        mesh_port: None,
        enable_tag_override: false,
        gateway: None,
        socket: None,
        ports: Default::default(),
        tagged: Default::default(),
    })
}

/// Where a client listener stands: `port`, or its default; none for Consul's −1.
fn listener(
    key: &str,
    port: Option<i32>,
    default: u16,
    address: IpAddr,
) -> Result<Option<SocketAddr>> {
    match port {
        None => Ok(Some(SocketAddr::new(address, default))),
        Some(-1) => Ok(None),
        Some(port) => match u16::try_from(port) {
            Ok(port) => Ok(Some(SocketAddr::new(address, port))),
            Err(_) => bail!("{key}: {port} is no port; use 0 to 65535, or -1 for none"),
        },
    }
}

/// The bug that a test asks for by [`PLANTED`]: only builds with debug assertions, which are not
/// for others, have any.
fn planted() -> server::planted::Planted {
    #[cfg(debug_assertions)]
    return std::env::var(PLANTED)
        .map_or_else(|_| Default::default(), |name| server::planted::Planted::named(&name));
    #[cfg(not(debug_assertions))]
    Default::default()
}

/// The file of a credential that systemd handed over under `name`, if it did.
fn credential(name: &str) -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name);
    path.exists().then_some(path)
}

fn span(key: &str, text: Option<&str>, default: Duration) -> Result<Duration> {
    match text {
        None => Ok(default),
        Some(text) => hawser_core::duration::parse(text).with_context(|| key.to_owned()),
    }
}

/// The address that the system would send from: a routing look-up, no packet leaves.
fn source_address(family: IpAddr) -> Option<IpAddr> {
    let (from, towards) = match family {
        IpAddr::V4(_) => ("0.0.0.0:0", "192.0.2.1:9"),
        IpAddr::V6(_) => ("[::]:0", "[2001:db8::1]:9"),
    };
    let socket = UdpSocket::bind(from).ok()?;
    socket.connect(towards).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

/// One worker a core, up to what one host's proxies can use.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(DEFAULT_WORKERS_MAX)
}

/// The variables that configure a process without files, such as a task's.
const CONFIG_JSON: &str = "HAWSER_CONFIG_JSON";
const JOIN_TOKEN: &str = "HAWSER_JOIN_TOKEN";
#[cfg(debug_assertions)]
const PLANTED: &str = "HAWSER_PLANTED_BUG";
const DNS_PORT: u16 = 8600;
const SIDECAR_PORTS: (u16, u16) = (21_000, 21_255);
const WORKERS_MAX: usize = 64;
const DEFAULT_WORKERS_MAX: usize = 8;
const LEAF_LIFETIME: Duration = Duration::from_secs(24 * 3600);
const LEAF_LIFETIME_MIN: Duration = Duration::from_secs(3600);
const LEAF_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const DRAIN: Duration = Duration::from_secs(30);
const DNS_TTL: Duration = Duration::from_secs(5);
const DNS_STALE_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use hawser_fuzz::Target;

    use super::*;

    #[test]
    fn what_no_host_could_run_on_is_told_without_starting_it() {
        let cases = [
            // file, key
            (json!({"ports": {"http": 70_000}}), "ports.http"),
            (json!({"ports": {"dns": -2}}), "ports.dns"),
            (json!({"ports": {"https": 8501}}), "tls.https.cert_file"),
            (json!({"ports": {"https": -2}}), "ports.https"),
            (json!({"addresses": {"http": "here"}}), "addresses.http"),
            (json!({"addresses": {"http": "unix://"}}), "addresses.http"),
            (
                json!({"unix_sockets": {"mode": "rw"}, "addresses": {"http": "unix:///a"}}),
                "unix_sockets.mode",
            ),
            (
                json!({"unix_sockets": {"user": "no such"}, "addresses": {"http": "unix:///a"}}),
                "unix_sockets.user",
            ),
            (json!({"ports": {"sidecar_min_port": 9, "sidecar_max_port": 8}}), "sidecar_min_port"),
            (json!({"advertise_addr": "0.0.0.0"}), "advertise_addr"),
            (json!({"node_name": "a/b"}), "node_name"),
            (json!({"bootstrap_expect": 2}), "bootstrap_expect"),
            (json!({"raft": {"heartbeat_ms": 900}}), "heartbeat_ms"),
            (json!({"leaf_cert_ttl": "1m"}), "leaf_cert_ttl"),
            (json!({"recursors": ["dns"]}), "recursors"),
            (json!({"dns_config": {"ttl": "5"}}), "dns_config.ttl"),
            (json!({"proxy": {"workers": 0}}), "proxy.workers"),
            (json!({"access_log": {"sample_ratio": 2}}), "access_log.sample_ratio"),
            (json!({"telemetry": {"otlp": {}}}), "telemetry.otlp.endpoint"),
            (json!({"telemetry": {"otlp": {"endpoint": "collector"}}}), "telemetry.otlp.endpoint"),
            (json!({"datacenter": "DC_1"}), "datacenter"),
            (json!({"log_level": "loud"}), "log_level"),
            (json!({"retry_join": []}), "retry_join"),
            (json!({"mesh_gateway": {"bind": "here"}}), "mesh_gateway.bind"),
            (json!({"mesh_gateway": {"bind": "0.0.0.0:0"}}), "mesh_gateway.bind"),
            (json!({"mesh_gateway": {"advertise": "gateway"}}), "mesh_gateway.advertise"),
            (json!({"mesh_gateway": {"advertise": "0.0.0.0:8443"}}), "mesh_gateway.advertise"),
        ];
        for (file, key) in cases {
            let raw: Raw = serde_json::from_value(file.clone()).expect("known keys");
            let refused = format!("{:#}", raw.check().expect_err(key));
            assert!(refused.contains(key), "{file}: {refused}");
        }
        assert!(Raw { node_name: Some("n1".to_owned()), ..Raw::default() }.check().is_ok());
    }

    #[test]
    fn a_file_that_does_not_parse_is_told_by_its_key() {
        let cases = [
            // file, key
            (json!({"node_name": "n", "ports": {"http": "many"}}), Some("ports.http")),
            (json!({"bind_addr": "here"}), Some("bind_addr")),
            (json!({"raft": {"heartbeat": 1}}), Some("raft.heartbeat")),
            (json!({"mesh_gateway": {"port": 1}}), Some("mesh_gateway.port")),
            (json!({"node_name": "n"}), None),
        ];
        for (file, key) in cases {
            assert_eq!(culprit(&file).as_deref(), key, "{file}");
        }
    }

    /// In both languages; what is read is checked as at the start of a process.
    #[test]
    fn a_file_is_read_or_refused() {
        Target::new("config_file").cases(3_000).run(|input| {
            let Ok(text) = std::str::from_utf8(input) else { return false };
            let is_json = text.starts_with('{');
            let file = Path::new(if is_json { "a.json" } else { "a.hcl" });
            let Ok(value) = parse(file, text) else { return false };
            combine(json!({}), vec![("a".to_owned(), value)]).is_ok_and(|raw| raw.check().is_ok())
        });
    }
}
