//! Services and checks as operators and clients declare them, in Consul's shape, made into the
//! mesh's own nouns or refused with the field and what to write instead.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::address::{Address, SocketPath};
use hawser_core::catalog::{
    Instance, NamedPort, Protocol, TaggedAddress, TaggedAddresses, Weights,
};
use hawser_core::health::{Status, Thresholds};
use hawser_core::name::{CheckId, InstanceId, PeerName, PortName, ServiceName};
use http::{HeaderName, HeaderValue, Method, Uri};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::fields::{Field, Fields, InvalidField};

/// A service that a host declares: holding one is the proof that its definition is good.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// What the catalog is told; its `mesh_port` is none until the agent has chosen one.
    pub instance: Instance,
    /// Its checks, in the order they were written.
    pub checks: Vec<CheckSpec>,
    /// Its place in the mesh; none when it has none.
    pub sidecar: Option<Sidecar>,
}

/// What the host's proxy does for one service.
#[derive(Clone, Debug, PartialEq)]
pub struct Sidecar {
    /// The inbound mTLS port that was asked for; none lets the agent choose.
    pub port: Option<u16>,
    /// Where the proxy reaches the application; none when it listens nowhere, and only calls others.
    pub application: Option<Address>,
    /// Where the proxy reaches its ports by name.
    pub ports: Vec<(PortName, Address, Option<Protocol>)>,
    /// Whom the application calls.
    pub upstreams: Vec<Upstream>,
}

/// One service that an application calls through its host's proxy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Upstream {
    /// The service that is called.
    pub destination: ServiceName,
    /// The peer whose service it is; none for one's own cluster.
    pub peer: Option<PeerName>,
    /// Which of its ports; none for the default one.
    pub destination_port: Option<PortName>,
    /// Where the application reaches it.
    pub bind: Address,
    /// The mode of the socket's file, where `bind` is one.
    pub mode: u32,
}

/// A check that a host runs, or that is reported to it.
#[derive(Clone, PartialEq)]
pub struct CheckSpec {
    /// Its id, unique on the node.
    pub id: CheckId,
    /// A name for people.
    pub name: Arc<str>,
    /// A note for people.
    pub notes: Arc<str>,
    /// The instance that it is about; none when it is about the whole node.
    pub instance: Option<InstanceId>,
    /// What it is reported as before its first result.
    pub initial: Status,
    /// How many results in a row move it.
    pub thresholds: Thresholds,
    /// How it is run.
    pub kind: CheckKind,
    /// From the start of one run to the start of the next: one second at least.
    pub interval: Duration,
    /// Longest wait for one run.
    pub timeout: Duration,
    /// Most octets of output that are kept.
    pub output_max: usize,
    /// How long its instance may stay critical before it is removed: a minute at least.
    pub deregister_after: Option<Duration>,
}

/// How a check is run.
#[derive(Clone, PartialEq)]
pub enum CheckKind {
    /// 2xx passes, 429 warns, anything else is critical. Redirects are never followed.
    Http {
        /// `http` or `https`, with a host.
        url: Uri,
        /// `GET` unless another was asked for.
        method: Method,
        /// Sent with every request. May hold secrets.
        headers: Vec<(HeaderName, HeaderValue)>,
        /// Sent with every request.
        body: Arc<str>,
        /// Whether any certificate will do.
        tls_skip_verify: bool,
        /// The name that the certificate must have; none means the URL's host.
        tls_server_name: Option<Arc<str>>,
    },
    /// An accepted connection passes.
    Tcp {
        /// `host:port`
        address: Arc<str>,
    },
    /// An accepted connection passes, at a Unix socket.
    Socket {
        /// Which.
        path: SocketPath,
    },
    /// `SERVING` of gRPC's health protocol passes.
    Grpc {
        /// `host:port`
        address: Arc<str>,
        /// The service that is asked about; empty means the whole server.
        service: Arc<str>,
        /// Whether the server speaks TLS.
        use_tls: bool,
        /// Whether any certificate will do.
        tls_skip_verify: bool,
        /// The name that the certificate must have; none means the host.
        tls_server_name: Option<Arc<str>>,
    },
    /// Somebody reports at least this often, or it turns critical.
    Ttl(Duration),
    /// Exit status 0 passes, 1 warns, anything else is critical. Run without a shell.
    Script {
        /// The program and its arguments.
        args: Vec<String>,
    },
    /// It is as well as another instance on the same node.
    Alias {
        /// Which.
        instance: InstanceId,
    },
}

impl CheckKind {
    /// Consul's word for it, as the catalog's checks carry it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Http { .. } => "http",
            Self::Tcp { .. } | Self::Socket { .. } => "tcp",
            Self::Grpc { .. } => "grpc",
            Self::Ttl(_) => "ttl",
            Self::Script { .. } => "script",
            Self::Alias { .. } => "alias",
        }
    }
}

impl fmt::Debug for CheckSpec {
    /// Without URL, headers, body and arguments, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckSpec")
            .field("id", &self.id)
            .field("instance", &self.instance)
            .field("kind", &self.kind)
            .field("interval", &self.interval)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CheckKind {
    /// Its name only: the rest may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A service's definition as it was written, known to be good.
///
/// Serialises as what was written, so that an agent can keep on disk what it was told.
#[derive(Clone, PartialEq)]
pub struct ServiceDefinition {
    source: Value,
    service: Service,
}

impl ServiceDefinition {
    /// What it means.
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// What it means, for keeps.
    pub fn into_service(self) -> Service {
        self.service
    }
}

impl TryFrom<Value> for ServiceDefinition {
    type Error = InvalidField;

    fn try_from(source: Value) -> Result<Self, InvalidField> {
        let service = service(Fields::open(&source, "")?)?;
        Ok(Self { source, service })
    }
}

impl fmt::Debug for ServiceDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServiceDefinition").field(&self.service).finish()
    }
}

impl Serialize for ServiceDefinition {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.source.serialize(to)
    }
}

impl<'de> Deserialize<'de> for ServiceDefinition {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Value::deserialize(from)?.try_into().map_err(serde::de::Error::custom)
    }
}

/// A check's definition as it was written, known to be good. It may be about an instance that is
/// declared elsewhere, or about the whole node.
#[derive(Clone, PartialEq)]
pub struct CheckDefinition {
    source: Value,
    check: CheckSpec,
}

impl CheckDefinition {
    /// What it means.
    pub fn check(&self) -> &CheckSpec {
        &self.check
    }

    /// What it means, for keeps.
    pub fn into_check(self) -> CheckSpec {
        self.check
    }
}

impl TryFrom<Value> for CheckDefinition {
    type Error = InvalidField;

    fn try_from(source: Value) -> Result<Self, InvalidField> {
        let check = check(Fields::open(&source, "")?, &Owner::Stated)?;
        Ok(Self { source, check })
    }
}

impl fmt::Debug for CheckDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CheckDefinition").field(&self.check).finish()
    }
}

impl Serialize for CheckDefinition {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.source.serialize(to)
    }
}

impl<'de> Deserialize<'de> for CheckDefinition {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Value::deserialize(from)?.try_into().map_err(serde::de::Error::custom)
    }
}

/// The services and checks of one file: `service`, `services`, `check` and `checks`, each one
/// definition or a list of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Definitions {
    /// Services, in the order they were written.
    pub services: Vec<ServiceDefinition>,
    /// Checks that stand by themselves.
    pub checks: Vec<CheckDefinition>,
}

impl Definitions {
    /// Reads a file that holds nothing else.
    ///
    /// # Errors
    /// A field that is none of the four, or a definition that is not good.
    pub fn from_json(file: &Value) -> Result<Self, InvalidField> {
        let mut fields = Fields::open(file, "")?;
        let all = Self::take(&mut fields)?;
        fields.finish()?;
        Ok(all)
    }

    /// Takes the four fields out of a file that may hold others too.
    ///
    /// # Errors
    /// A definition that is not good, or two services or checks of one id.
    pub fn take(fields: &mut Fields<'_>) -> Result<Self, InvalidField> {
        let mut all = Self::default();
        for name in ["service", "services"] {
            for Field { path, value } in fields.list(&[name])? {
                let service = service(Fields::open(value, &path)?)?;
                let id = &service.instance.id;
                if all.services.iter().any(|other| other.service.instance.id == *id) {
                    let why = format_args!("there is another service with id {id}: give it an id");
                    return Err(InvalidField::new(path, why));
                }
                all.services.push(ServiceDefinition { source: value.clone(), service });
            }
        }
        for name in ["check", "checks"] {
            for Field { path, value } in fields.list(&[name])? {
                let check = check(Fields::open(value, &path)?, &Owner::Stated)?;
                let id = &check.id;
                if all.checks.iter().any(|other| other.check.id == *id) {
                    let why = format_args!("there is another check with id {id}: give it an id");
                    return Err(InvalidField::new(path, why));
                }
                all.checks.push(CheckDefinition { source: value.clone(), check });
            }
        }
        Ok(all)
    }
}

/// Reads a service's definition.
///
/// # Errors
/// The first field that is not good, with its path and what to write instead.
pub fn service(mut fields: Fields<'_>) -> Result<Service, InvalidField> {
    refuse_kinds(&mut fields)?;
    let (name_path, written) =
        fields.text(&["Name", "Service"])?.ok_or_else(|| missing(&fields, "Name"))?;
    let name: ServiceName = written
        .parse()
        .map_err(|why| InvalidField::new(name_path, format_args!("{written:?}: {why}")))?;
    let id = match fields.parsed::<InstanceId>(&["ID"])? {
        Some(id) => id,
        None => instance_id(name.as_str())?,
    };
    let (port, ports) = ports(&mut fields)?;
    let mut protocol = protocol(&mut fields)?;
    let checks = checks(&mut fields, &name, &id)?;
    let instance = Instance {
        address: address(&mut fields)?,
        port,
        tags: tags(&mut fields)?,
        meta: fields.meta(&["Meta"])?,
        weights: weights(&mut fields)?,
        protocol: None,
        mesh_port: None,
        enable_tag_override: fields.flag(&["EnableTagOverride"])?,
        gateway: None,
        socket: None,
        ports,
        tagged: TaggedAddresses::new(),
        id,
        service: name,
    };
    let instance = Instance { socket: socket(&mut fields, &instance)?, ..instance };
    let sidecar = match fields.object(&["Connect"])? {
        None => None,
        Some(mut connect) => {
            connect.refuse(
                &["Native"],
                "applications that speak the mesh's TLS themselves are not supported: use \
                 SidecarService, and the host's proxy speaks it for them",
            )?;
            let sidecar = match connect.object(&["SidecarService"])? {
                None => None,
                Some(fields) => {
                    in_mesh(&instance.service, "Name")?;
                    Some(sidecar(fields, &instance, &mut protocol)?)
                }
            };
            connect.finish()?;
            sidecar
        }
    };
    let instance = Instance { tagged: tagged_addresses(&mut fields)?, ..instance };
    check_locality(&mut fields)?;
    // Access control is not there yet, so a token gives no right that could be lost.
    fields.ignore(&["Token", "PeerName", "ContentHash", "CreateIndex", "ModifyIndex"]);
    fields.ignore(&["Datacenter"]);
    fields.finish()?;
    Ok(Service { instance: Instance { protocol, ..instance }, checks, sidecar })
}

/// Whose check it is.
enum Owner<'a> {
    /// The service's whose definition it stands in; the text is the id it has by default.
    Service(&'a ServiceName, &'a InstanceId, String),
    /// Whoever it says itself, or the node.
    Stated,
}

fn checks(
    fields: &mut Fields<'_>,
    name: &ServiceName,
    id: &InstanceId,
) -> Result<Vec<CheckSpec>, InvalidField> {
    let mut written = fields.list(&["Check"])?;
    written.extend(fields.list(&["Checks"])?);
    if written.len() > CHECKS_MAX {
        let why = format_args!("{} checks: {CHECKS_MAX} is the most", written.len());
        return Err(InvalidField::new(fields.path_of("Checks"), why));
    }
    let is_several = written.len() > 1;
    let mut ids = BTreeSet::new();
    let mut checks = Vec::with_capacity(written.len());
    for (number, Field { path, value }) in (1..).zip(written) {
        let default_id =
            if is_several { format!("service:{id}:{number}") } else { format!("service:{id}") };
        let check = check(Fields::open(value, &path)?, &Owner::Service(name, id, default_id))?;
        if !ids.insert(check.id.clone()) {
            let why = format_args!("there is another check with id {}", check.id);
            return Err(InvalidField::new(path, why));
        }
        checks.push(check);
    }
    Ok(checks)
}

fn check(mut fields: Fields<'_>, owner: &Owner<'_>) -> Result<CheckSpec, InvalidField> {
    let (id, name, instance) = whose(&mut fields, owner)?;
    let notes = fields.text(&["Notes"])?.map_or("", |(_, notes)| notes).into();
    let initial = fields.parsed::<Status>(&["Status"])?.unwrap_or(Status::Critical);
    let thresholds = thresholds(&mut fields)?;
    let timeout = fields.duration(&["Timeout"])?.unwrap_or(TIMEOUT).min(TIMEOUT_MAX);
    let output_max = fields
        .whole(&["OutputMaxSize"], OUTPUT_OCTETS_MAX)?
        .filter(|max| *max > 0)
        .unwrap_or(OUTPUT_OCTETS_MAX);
    let deregister_after = fields
        .duration(&["DeregisterCriticalServiceAfter"])?
        .map(|after| after.max(DEREGISTER_AFTER_MIN));
    let kind = kind(&mut fields)?;
    let interval = interval(&mut fields, &kind)?;
    fields.default_tenancy()?;
    fields.ignore(&["Token"]);
    fields.finish()?;
    Ok(CheckSpec {
        id,
        name: name.into(),
        notes,
        instance,
        initial,
        thresholds,
        kind,
        interval,
        timeout,
        output_max: usize::try_from(output_max).unwrap_or(usize::MAX),
        deregister_after,
    })
}

/// Its id, its name, and the instance that it is about.
fn whose(
    fields: &mut Fields<'_>,
    owner: &Owner<'_>,
) -> Result<(CheckId, String, Option<InstanceId>), InvalidField> {
    let stated_id = fields.parsed::<CheckId>(&["CheckID", "ID"])?;
    let stated_name = fields.text(&["Name"])?.map(|(_, name)| name.to_owned());
    let stated_service = fields.parsed::<InstanceId>(&["ServiceID"])?;
    match owner {
        Owner::Service(service, instance, default_id) => {
            if stated_service.is_some_and(|stated| stated != **instance) {
                let why = format_args!("a check inside a service's definition is about {instance}");
                return Err(InvalidField::new(fields.path_of("ServiceID"), why));
            }
            let id = match stated_id {
                Some(id) => id,
                None => default_id.parse().map_err(|why| {
                    InvalidField::new(fields.path_of("CheckID"), format_args!("set one: {why}"))
                })?,
            };
            let name = stated_name.unwrap_or_else(|| format!("Service '{service}' check"));
            Ok((id, name, Some((*instance).clone())))
        }
        Owner::Stated => {
            let Some(name) = stated_name.or_else(|| Some(stated_id.as_ref()?.to_string())) else {
                return Err(missing(fields, "Name"));
            };
            let id = match stated_id {
                Some(id) => id,
                None => name.parse().map_err(|why| {
                    InvalidField::new(fields.path_of("Name"), format_args!("{name:?}: {why}"))
                })?,
            };
            Ok((id, name, stated_service))
        }
    }
}

fn interval(fields: &mut Fields<'_>, kind: &CheckKind) -> Result<Duration, InvalidField> {
    let interval = fields.duration(&["Interval"])?;
    match (kind, interval) {
        (CheckKind::Ttl(_), Some(_)) => Err(InvalidField::new(
            fields.path_of("Interval"),
            "a TTL check is reported, not run: leave Interval out, or TTL",
        )),
        (CheckKind::Ttl(_) | CheckKind::Alias { .. }, None) => Ok(INTERVAL_MIN),
        (_, Some(interval)) => Ok(interval.max(INTERVAL_MIN)),
        (_, None) => Err(InvalidField::new(
            fields.path_of("Interval"),
            "is missing: say how often the check runs, such as \"10s\"",
        )),
    }
}

fn kind(fields: &mut Fields<'_>) -> Result<CheckKind, InvalidField> {
    for name in ["DockerContainerID", "Shell", "UDP", "H2PING", "OSService", "AliasNode"] {
        fields.refuse(
            &[name],
            "checks of this kind are not supported: use HTTP, TCP, GRPC, TTL, Args or AliasService",
        )?;
    }
    fields.refuse(&["TCPUseTLS"], "a TCP check does not speak TLS: use an https HTTP check")?;
    let tls = Tls {
        skip_verify: fields.flag(&["TLSSkipVerify"])?,
        server_name: fields.text(&["TLSServerName"])?.map(|(_, name)| name.into()),
    };
    let http = http_check(fields, &tls)?;
    let tcp = tcp_check(fields)?;
    let grpc = grpc_check(fields, &tls)?;
    let ttl = fields.duration(&["TTL"])?.map(CheckKind::Ttl);
    let args_path = fields.path_of("Args");
    let args = fields.texts(&["Args", "ScriptArgs"])?;
    if args.first().is_some_and(String::is_empty) {
        return Err(InvalidField::new(args_path, "must begin with a program"));
    }
    let script = (!args.is_empty()).then_some(CheckKind::Script { args });
    let alias = fields
        .parsed::<InstanceId>(&["AliasService"])?
        .map(|instance| CheckKind::Alias { instance });
    // What only HTTP and gRPC checks read is taken by them; without either it means nothing.
    fields.ignore(&["H2PINGUseTLS", "DisableRedirects"]);
    let mut kinds = [http, tcp, grpc, ttl, script, alias].into_iter().flatten();
    match (kinds.next(), kinds.next()) {
        (Some(kind), None) => Ok(kind),
        (Some(one), Some(two)) => Err(InvalidField::new(
            fields.path_of(one.as_str()),
            format_args!("{one:?} and {two:?} at once: a check is of one kind"),
        )),
        (None, _) => Err(InvalidField::new(
            fields.path_of("HTTP"),
            "the check does nothing: set HTTP, TCP, GRPC, TTL, Args or AliasService",
        )),
    }
}

/// Whom a check trusts when it speaks TLS.
struct Tls {
    skip_verify: bool,
    server_name: Option<Arc<str>>,
}

fn http_check(fields: &mut Fields<'_>, tls: &Tls) -> Result<Option<CheckKind>, InvalidField> {
    let url = fields.text(&["HTTP"])?;
    let method = match fields.text(&["Method"])? {
        None => Method::GET,
        Some((path, text)) => text
            .parse()
            .map_err(|_| InvalidField::new(path, format_args!("{text:?} is no HTTP method")))?,
    };
    let headers = headers(fields)?;
    let body = fields.text(&["Body"])?.map_or("", |(_, body)| body).into();
    let Some((path, text)) = url else { return Ok(None) };
    let wrong = |why: &str| InvalidField::new(&path, format_args!("{text:?} {why}"));
    let url: Uri =
        text.parse().map_err(|_| wrong("is no URL: it must begin with http:// or https://"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(wrong("must begin with http:// or https://"));
    }
    if url.host().is_none_or(str::is_empty) {
        return Err(wrong("has no host"));
    }
    Ok(Some(CheckKind::Http {
        url,
        method,
        headers,
        body,
        tls_skip_verify: tls.skip_verify,
        tls_server_name: tls.server_name.clone(),
    }))
}

fn headers(fields: &mut Fields<'_>) -> Result<Vec<(HeaderName, HeaderValue)>, InvalidField> {
    let Some(Field { path, value }) = fields.take(&["Header", "Headers"])? else {
        return Ok(Vec::new());
    };
    let object = value
        .as_object()
        .ok_or_else(|| InvalidField::new(&path, "must be an object of lists of texts"))?;
    let mut headers = Vec::new();
    for (key, values) in object {
        let wrong = |why: &str| InvalidField::new(format!("{path}.{key}"), why);
        let name: HeaderName = key.parse().map_err(|_| wrong("is no header's name"))?;
        let values = match values {
            Value::Array(list) => list.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            let text = value.as_str().ok_or_else(|| wrong("must be a list of texts"))?;
            let value = text.parse().map_err(|_| wrong("has a character no header may have"))?;
            headers.push((name.clone(), value));
        }
    }
    if headers.len() > HEADERS_MAX {
        return Err(InvalidField::new(path, format_args!("{HEADERS_MAX} headers are the most")));
    }
    Ok(headers)
}

/// `host:port`, or `unix:` and the path of a socket.
fn tcp_check(fields: &mut Fields<'_>) -> Result<Option<CheckKind>, InvalidField> {
    let Some((path, text)) = fields.text(&["TCP"])? else { return Ok(None) };
    if let Some(socket) = text.strip_prefix("unix:") {
        // `unix:///run/x` is how others write it.
        let socket = socket.strip_prefix("//").unwrap_or(socket);
        let socket = socket
            .parse()
            .map_err(|why| InvalidField::new(path, format_args!("{socket:?}: {why}")))?;
        return Ok(Some(CheckKind::Socket { path: socket }));
    }
    host_and_port(text).map_err(|why| InvalidField::new(path, why))?;
    Ok(Some(CheckKind::Tcp { address: text.into() }))
}

fn grpc_check(fields: &mut Fields<'_>, tls: &Tls) -> Result<Option<CheckKind>, InvalidField> {
    let target = fields.text(&["GRPC"])?;
    let use_tls = fields.flag(&["GRPCUseTLS"])?;
    let Some((path, text)) = target else { return Ok(None) };
    let (address, service) = text.split_once('/').unwrap_or((text, ""));
    host_and_port(address).map_err(|why| InvalidField::new(path, why))?;
    Ok(Some(CheckKind::Grpc {
        address: address.into(),
        service: service.into(),
        use_tls,
        tls_skip_verify: tls.skip_verify,
        tls_server_name: tls.server_name.clone(),
    }))
}

fn host_and_port(text: &str) -> Result<(), String> {
    let refused = || format!("{text:?} must be a host and a port, such as \"127.0.0.1:5432\"");
    let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<IpAddr>().is_ok()),
        None => {
            let allowed = |octet: u8| octet.is_ascii_alphanumeric() || b"-._".contains(&octet);
            !host.is_empty() && host.bytes().all(allowed)
        }
    };
    if is_host && is_port { Ok(()) } else { Err(refused()) }
}

fn thresholds(fields: &mut Fields<'_>) -> Result<Thresholds, InvalidField> {
    let mut count = |name: &str| -> Result<u16, InvalidField> {
        // The bound is u16's own, so nothing is cut off.
        Ok(fields.whole(&[name], u16::MAX.into())?.unwrap_or(0) as u16)
    };
    // Zero, Consul's default, means what one means: the first result moves the check.
    let after = |results: u16| NonZeroU16::new(results).unwrap_or(NonZeroU16::MIN);
    let success = count("SuccessBeforePassing")?;
    let critical = count("FailuresBeforeCritical")?;
    let warning = count("FailuresBeforeWarning")?;
    let warning = if warning == 0 { critical } else { warning };
    if warning > critical {
        return Err(InvalidField::new(
            fields.path_of("FailuresBeforeWarning"),
            "must not be greater than FailuresBeforeCritical",
        ));
    }
    Ok(Thresholds {
        success_before_passing: after(success),
        failures_before_warning: after(warning),
        failures_before_critical: after(critical),
    })
}

fn sidecar(
    mut fields: Fields<'_>,
    instance: &Instance,
    protocol: &mut Option<Protocol>,
) -> Result<Sidecar, InvalidField> {
    let port = fields.port(&["Port"])?;
    let (application, upstreams) = match fields.object(&["Proxy"])? {
        None => (application(None, None, None, instance), Vec::new()),
        Some(fields) => proxy(fields, instance, protocol)?,
    };
    fields.refuse(
        &["Check", "Checks"],
        "the host's proxy is watched by its agent: declare checks on the service itself",
    )?;
    // A sidecar is no instance of its own here: what Consul lets it carry is the service's.
    fields.ignore(&["ID", "Name", "Tags", "Meta", "Weights", "Address", "TaggedAddresses", "Kind"]);
    fields.ignore(&["EnableTagOverride", "Token", "Locality"]);
    fields.default_tenancy()?;
    fields.finish()?;
    let ports = named_applications(application.as_ref(), &instance.ports);
    Ok(Sidecar { port, application, ports, upstreams })
}

/// Where the proxy reaches the ports of an application: beside the default one.
fn named_applications(
    default: Option<&Address>,
    ports: &[NamedPort],
) -> Vec<(PortName, Address, Option<Protocol>)> {
    let ip = default.and_then(Address::tcp).map_or(Ipv4Addr::LOCALHOST.into(), |it| it.ip());
    let reached = ports.iter().map(|named| {
        let own = Address::Tcp(SocketAddr::new(ip, named.port));
        // The default one may be elsewhere than the catalog says.
        let address = default.filter(|_| named.is_default).cloned().unwrap_or(own);
        (named.name.clone(), address, named.protocol)
    });
    reached.collect()
}

/// Where the proxy reaches the application: where its sidecar says, or else the service itself.
fn application(
    ip: Option<IpAddr>,
    port: Option<u16>,
    socket: Option<SocketPath>,
    instance: &Instance,
) -> Option<Address> {
    if let Some(socket) = socket {
        return Some(socket.into());
    }
    if let Some(socket) = instance.socket.as_ref().filter(|_| ip.is_none() && port.is_none()) {
        return Some(socket.clone().into());
    }
    let port = port.filter(|port| *port > 0).unwrap_or(instance.port);
    let ip = ip.unwrap_or(Ipv4Addr::LOCALHOST.into());
    (port > 0).then(|| SocketAddr::new(ip, port).into())
}

/// Refuses the name of a service that can have no identity.
fn in_mesh(name: &ServiceName, field: &str) -> Result<(), InvalidField> {
    match name.is_label() {
        true => Ok(()),
        false => Err(InvalidField::new(
            field,
            format_args!(
                "{:?}: services of the mesh have names of a-z, 0-9 and -, 63 at most",
                name.as_str()
            ),
        )),
    }
}

/// Where the proxy reaches the application, and whom the application calls.
fn proxy(
    mut fields: Fields<'_>,
    instance: &Instance,
    protocol: &mut Option<Protocol>,
) -> Result<(Option<Address>, Vec<Upstream>), InvalidField> {
    for (name, expected) in [
        ("DestinationServiceName", instance.service.as_str()),
        ("DestinationServiceID", instance.id.as_str()),
    ] {
        if let Some((path, text)) = fields.text(&[name])?
            && text != expected
        {
            let why = format_args!("is {expected:?} for this sidecar: leave it out");
            return Err(InvalidField::new(path, why));
        }
    }
    let ip = fields.parsed(&["LocalServiceAddress"])?;
    let port = fields.port(&["LocalServicePort"])?.filter(|port| *port > 0);
    let socket = fields.parsed::<SocketPath>(&["LocalServiceSocketPath"])?;
    if socket.is_some() && (ip.is_some() || port.is_some()) {
        let why = "the application is either there or at LocalServiceAddress and LocalServicePort: \
                   leave one out";
        return Err(InvalidField::new(fields.path_of("LocalServiceSocketPath"), why));
    }
    let mut upstreams = Vec::new();
    for Field { path, value } in fields.list(&["Upstreams"])? {
        upstreams.push(upstream(Fields::open(value, &path)?, &upstreams)?);
    }
    if upstreams.len() > UPSTREAMS_MAX {
        let why = format_args!("{UPSTREAMS_MAX} upstreams are the most");
        return Err(InvalidField::new(fields.path_of("Upstreams"), why));
    }
    if let Some(Field { path, value }) = fields.take(&["Config"])?
        && let Some(word) = value.get("protocol").or_else(|| value.get("Protocol"))
    {
        *protocol = protocol.or(Some(protocol_word(&format!("{path}.protocol"), word)?));
    }
    fields.refuse(
        &["TransparentProxy", "Expose", "EnvoyExtensions", "AccessLogs"],
        "not supported: leave it out",
    )?;
    check_gateway_mode(&mut fields)?;
    if let Some((path, mode)) = fields.text(&["Mode"])?
        && mode != "direct"
    {
        let why = format_args!("{mode:?} is not supported: declare Upstreams, or use \"direct\"");
        return Err(InvalidField::new(path, why));
    }
    fields.finish()?;
    Ok((application(ip, port, socket, instance), upstreams))
}

fn upstream(mut fields: Fields<'_>, others: &[Upstream]) -> Result<Upstream, InvalidField> {
    if let Some((path, kind)) = fields.text(&["DestinationType"])?
        && kind != "service"
    {
        return Err(InvalidField::new(
            path,
            format_args!("{kind:?}: only \"service\" is supported"),
        ));
    }
    let destination: ServiceName =
        fields.parsed(&["DestinationName"])?.ok_or_else(|| missing(&fields, "DestinationName"))?;
    in_mesh(&destination, &fields.path_of("DestinationName"))?;
    let peer = match fields.text(&["DestinationPeer"])? {
        Some((path, text)) if !text.is_empty() => Some(
            text.parse().map_err(|why| InvalidField::new(path, format_args!("{text:?}: {why}")))?,
        ),
        _ => None,
    };
    fields.refuse(
        &["Datacenter"],
        "other datacenters are reached as peers: name the peer in DestinationPeer",
    )?;
    for name in ["DestinationNamespace", "DestinationPartition"] {
        if let Some((path, text)) = fields.text(&[name])?
            && text != "default"
        {
            return Err(InvalidField::new(path, "only \"default\" exists: leave it out"));
        }
    }
    let destination_port = match fields.text(&["DestinationPort"])? {
        Some((path, _)) if peer.is_some() => {
            let why =
                "names a port of services of one's own cluster: leave it or DestinationPeer out";
            return Err(InvalidField::new(path, why));
        }
        Some((path, text)) => Some(port_name(&path, text)?),
        None => None,
    };
    let (bind, mode) = upstream_bind(&mut fields)?;
    check_gateway_mode(&mut fields)?;
    fields.ignore(&["Config", "CentrallyConfigured"]);
    if let Some(other) = others.iter().find(|other| other.bind == bind) {
        let why = format_args!("{bind} is that of {} already", other.destination);
        let field = if bind.tcp().is_some() { "LocalBindPort" } else { "LocalBindSocketPath" };
        return Err(InvalidField::new(fields.path_of(field), why));
    }
    fields.finish()?;
    Ok(Upstream { destination, peer, destination_port, bind, mode })
}

/// Where the application reaches an upstream, and the mode of the socket's file where that is one.
fn upstream_bind(fields: &mut Fields<'_>) -> Result<(Address, u32), InvalidField> {
    let ip = fields.parsed::<IpAddr>(&["LocalBindAddress"])?;
    let port = fields.port(&["LocalBindPort"])?.filter(|port| *port > 0);
    let socket = fields.parsed::<SocketPath>(&["LocalBindSocketPath"])?;
    let mode = match fields.text(&["LocalBindSocketMode"])? {
        Some((path, text)) if !text.is_empty() => {
            if socket.is_none() {
                let why = "is the mode of LocalBindSocketPath: set that too, or leave this out";
                return Err(InvalidField::new(path, why));
            }
            Some(socket_mode(text).ok_or_else(|| {
                let why = "must be octal and at most \"0777\", such as \"0660\"";
                InvalidField::new(path, format_args!("{text:?} {why}"))
            })?)
        }
        _ => None,
    };
    let bind = match (socket, port) {
        (Some(_), _) if ip.is_some() || port.is_some() => {
            let why = "the upstream is either there or at LocalBindAddress and LocalBindPort: \
                       leave one out";
            return Err(InvalidField::new(fields.path_of("LocalBindSocketPath"), why));
        }
        (Some(socket), _) => Address::Unix(socket),
        (None, Some(port)) => {
            SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()), port).into()
        }
        (None, None) => {
            let why = "is missing: say where the application reaches the upstream, or set \
                       LocalBindSocketPath";
            return Err(InvalidField::new(fields.path_of("LocalBindPort"), why));
        }
    };
    Ok((bind, mode.unwrap_or(SOCKET_MODE)))
}

fn socket_mode(text: &str) -> Option<u32> {
    let is_octal = text.len() <= 4 && text.bytes().all(|octet| matches!(octet, b'0'..=b'7'));
    u32::from_str_radix(text, 8).ok().filter(|mode| is_octal && *mode <= 0o777)
}

fn check_gateway_mode(fields: &mut Fields<'_>) -> Result<(), InvalidField> {
    let Some(mut gateway) = fields.object(&["MeshGateway"])? else { return Ok(()) };
    if let Some((path, mode)) = gateway.text(&["Mode"])?
        && mode != "none"
    {
        return Err(InvalidField::new(
            path,
            format_args!("{mode:?} is not supported: use \"none\""),
        ));
    }
    gateway.finish()
}

fn refuse_kinds(fields: &mut Fields<'_>) -> Result<(), InvalidField> {
    if let Some((path, kind)) = fields.text(&["Kind"])? {
        let why = format_args!(
            "{kind:?} is not supported: the host's proxy is part of its agent, so declare \
             Connect.SidecarService on the application's own service"
        );
        return Err(InvalidField::new(path, why));
    }
    fields.refuse(&["Proxy"], "belongs inside Connect.SidecarService")?;
    fields.default_tenancy()
}

fn protocol(fields: &mut Fields<'_>) -> Result<Option<Protocol>, InvalidField> {
    match fields.take(&["Protocol"])? {
        None => Ok(None),
        Some(Field { path, value }) => protocol_word(&path, value).map(Some),
    }
}

fn protocol_word(path: &str, value: &Value) -> Result<Protocol, InvalidField> {
    match value.as_str() {
        Some(word @ ("tcp" | "http" | "http2" | "grpc")) => Ok(Protocol::from_consul(word)),
        _ => Err(InvalidField::new(
            path,
            format_args!("{value} is none of \"tcp\", \"http\", \"http2\" and \"grpc\""),
        )),
    }
}

fn address(fields: &mut Fields<'_>) -> Result<Option<IpAddr>, InvalidField> {
    let Some((path, text)) = fields.text(&["Address"])? else { return Ok(None) };
    let Ok(address) = text.parse::<IpAddr>() else {
        let why =
            format_args!("{text:?} is no IP address: use one, or leave it out for the host's");
        return Err(InvalidField::new(path, why));
    };
    if address.is_unspecified() {
        let why = format_args!("{text:?} is nowhere: name an address that others can dial");
        return Err(InvalidField::new(path, why));
    }
    Ok(Some(address))
}

/// Its port, the default one of several; and its ports by name.
fn ports(fields: &mut Fields<'_>) -> Result<(u16, Arc<[NamedPort]>), InvalidField> {
    let port_path = fields.path_of("Port");
    let port = fields.port(&["Port"])?.filter(|port| *port > 0);
    let path = fields.path_of("Ports");
    let written = fields.list(&["Ports"])?;
    if written.len() > PORTS_MAX {
        return Err(InvalidField::new(path, format_args!("{PORTS_MAX} ports are the most")));
    }
    let mut all: Vec<NamedPort> = Vec::with_capacity(written.len());
    for Field { path, value } in written {
        let named = named_port(Fields::open(value, &path)?)?;
        if all.iter().any(|other| other.name == named.name) {
            let why = format_args!("there is another port called {}", named.name);
            return Err(InvalidField::new(path, why));
        }
        all.push(named);
    }
    if let [only] = all.as_mut_slice() {
        only.is_default = true;
    }
    let mut defaults = all.iter().filter(|named| named.is_default);
    let default = match (defaults.next(), defaults.next()) {
        (Some(default), None) => default.port,
        (None, _) if all.is_empty() => return Ok((port.unwrap_or(0), Arc::default())),
        _ => {
            let why = "exactly one is meant where none is named: give that Default = true";
            return Err(InvalidField::new(path, why));
        }
    };
    if port.is_some_and(|port| port != default) {
        let why =
            format_args!("is {default} where Ports says that this is the default: leave it out");
        return Err(InvalidField::new(port_path, why));
    }
    Ok((default, all.into()))
}

fn named_port(mut fields: Fields<'_>) -> Result<NamedPort, InvalidField> {
    let (path, text) = fields.text(&["Name"])?.ok_or_else(|| missing(&fields, "Name"))?;
    let name = port_name(&path, text)?;
    let port = fields.port(&["Port"])?.filter(|port| *port > 0);
    let port = port.ok_or_else(|| missing(&fields, "Port"))?;
    let is_default = fields.flag(&["Default"])?;
    // Empty is how it is shown where nothing was said.
    let protocol = match fields.text(&["Protocol"])? {
        Some((path, word)) => Some(protocol_word(&path, &word.into())?),
        None => None,
    };
    fields.finish()?;
    Ok(NamedPort { name, port, is_default, protocol })
}

fn port_name(path: &str, text: &str) -> Result<PortName, InvalidField> {
    text.parse().map_err(|why| InvalidField::new(path, format_args!("{text:?}: {why}")))
}

/// The Unix socket that the application listens on, in place of a port.
fn socket(
    fields: &mut Fields<'_>,
    instance: &Instance,
) -> Result<Option<SocketPath>, InvalidField> {
    let path = fields.path_of("SocketPath");
    let socket = fields.parsed(&["SocketPath"])?;
    if socket.is_some() && (instance.port > 0 || instance.address.is_some()) {
        let why = "an application that listens on a socket has no Address and no Port: leave these \
                   out, or SocketPath";
        return Err(InvalidField::new(path, why));
    }
    Ok(socket)
}

fn tags(fields: &mut Fields<'_>) -> Result<BTreeSet<Arc<str>>, InvalidField> {
    let path = fields.path_of("Tags");
    let written = fields.texts(&["Tags"])?;
    if written.len() > TAGS_MAX {
        return Err(InvalidField::new(path, format_args!("{TAGS_MAX} tags are the most")));
    }
    for (at, tag) in written.iter().enumerate() {
        if tag.len() > TAG_OCTETS_MAX || tag.chars().any(char::is_control) {
            let why = format_args!("a tag is printable and has at most {TAG_OCTETS_MAX} octets");
            return Err(InvalidField::new(format!("{path}[{at}]"), why));
        }
    }
    Ok(written.into_iter().map(Arc::from).collect())
}

fn weights(fields: &mut Fields<'_>) -> Result<Weights, InvalidField> {
    let Some(mut fields) = fields.object(&["Weights"])? else { return Ok(Weights::default()) };
    let most = u64::from(u16::MAX);
    let path = fields.path_of("Passing");
    let passing = fields.whole(&["Passing"], most)?;
    let warning = fields.whole(&["Warning"], most)?;
    fields.finish()?;
    let (passing, warning) = match (passing, warning) {
        // Go's client writes both as zero when nobody set them.
        (Some(0), Some(0)) => return Ok(Weights::default()),
        (Some(0), _) => return Err(InvalidField::new(path, "must be from 1 to 65535")),
        (passing, warning) => (passing.unwrap_or(1), warning.unwrap_or(1)),
    };
    // The bound just checked is u16's own.
    Ok(Weights { passing: passing as u16, warning: warning as u16 })
}

/// Tagged addresses are read, so that a wrong one is refused, and go no further: one host has one
/// address in the mesh.
/// Addresses by name: of a service objects with a port, of a node plain texts.
///
/// # Errors
/// Something else, or more or longer ones than the catalog keeps.
pub fn tagged_addresses(fields: &mut Fields<'_>) -> Result<TaggedAddresses, InvalidField> {
    let Some(Field { path, value }) = fields.take(&["TaggedAddresses"])? else {
        return Ok(TaggedAddresses::new());
    };
    let object = value.as_object().ok_or_else(|| InvalidField::new(&path, "must be an object"))?;
    if object.len() > TAGGED_MAX {
        return Err(InvalidField::new(path, format_args!("{TAGGED_MAX} addresses are the most")));
    }
    let mut all = TaggedAddresses::new();
    for (tag, value) in object {
        let path = format!("{path}.{tag}");
        let (address, port) = match value {
            Value::String(address) => (address.as_str(), 0),
            value => {
                let mut tagged = Fields::open(value, &path)?;
                let address = tagged.text(&["Address"])?.map_or("", |(_, text)| text);
                let port = tagged.port(&["Port"])?.unwrap_or(0);
                tagged.finish()?;
                (address, port)
            }
        };
        if tag.len() > TAG_OCTETS_MAX || address.len() > TAG_OCTETS_MAX {
            let why = format_args!("{TAG_OCTETS_MAX} octets are the most, of name and address");
            return Err(InvalidField::new(path, why));
        }
        all.insert(tag.as_str().into(), TaggedAddress { address: address.into(), port });
    }
    Ok(all)
}

/// A service stands where its host stands; what it says itself is read and goes no further.
fn check_locality(fields: &mut Fields<'_>) -> Result<(), InvalidField> {
    let Some(mut locality) = fields.object(&["Locality"])? else { return Ok(()) };
    locality.text(&["Region"])?;
    locality.text(&["Zone"])?;
    locality.finish()
}

fn instance_id(text: &str) -> Result<InstanceId, InvalidField> {
    text.parse().map_err(|why| InvalidField::new("ID", format_args!("{text:?}: {why}")))
}

fn missing(fields: &Fields<'_>, name: &str) -> InvalidField {
    InvalidField::new(fields.path_of(name), "is missing")
}

/// Owner and group may connect: who is in the agent's group is for the operator to say.
const SOCKET_MODE: u32 = 0o660;
const INTERVAL_MIN: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(600);
const DEREGISTER_AFTER_MIN: Duration = Duration::from_secs(60);
const OUTPUT_OCTETS_MAX: u64 = 4096;
const CHECKS_MAX: usize = 64;
const UPSTREAMS_MAX: usize = 256;
const HEADERS_MAX: usize = 64;
const TAGGED_MAX: usize = 64;
const PORTS_MAX: usize = 16;
const TAGS_MAX: usize = 256;
const TAG_OCTETS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Service, InvalidField> {
        ServiceDefinition::try_from(value).map(ServiceDefinition::into_service)
    }

    #[test]
    fn one_definition_in_every_spelling() {
        let go = json!({
            "Name": "web", "Port": 8080, "Tags": ["v1"], "Check": null, "Checks": [
                { "HTTP": "http://127.0.0.1:8080/up", "Interval": "10s", "Header": {"X_a": ["1"]} },
                { "TTL": "30s", "CheckID": "beat" },
            ],
            "Connect": { "SidecarService": { "Proxy": { "Upstreams": [
                { "DestinationName": "db", "DestinationPeer": "east", "LocalBindPort": 5432 },
            ] } } },
        });
        let snake = json!({
            "name": "web", "port": 8080, "tags": ["v1"], "checks": [
                { "http": "http://127.0.0.1:8080/up", "interval": "10s", "header": {"X_a": ["1"]} },
                { "ttl": "30s", "id": "beat" },
            ],
            "connect": [{ "sidecar_service": { "proxy": { "upstreams": {
                "destination_name": "db", "destination_peer": "east", "local_bind_port": 5432,
            } } } }],
        });
        let (go, snake) = (read(go).expect("good"), read(snake).expect("good"));
        assert_eq!(go, snake);
        assert_eq!(go.instance.id.as_str(), "web");
        let ids: Vec<_> = go.checks.iter().map(|check| check.id.as_str()).collect();
        assert_eq!(ids, ["service:web:1", "beat"]);
        assert!(go.checks.iter().all(|check| check.initial == Status::Critical));
        let sidecar = go.sidecar.expect("in the mesh");
        let at = |text: &str| Address::Tcp(text.parse().expect("an address"));
        assert_eq!(sidecar.application, Some(at("127.0.0.1:8080")));
        assert_eq!(sidecar.upstreams[0].bind, at("127.0.0.1:5432"));
        assert_eq!(sidecar.upstreams[0].peer, Some("east".parse().expect("a name")));
    }

    #[test]
    fn several_ports_have_names_and_one_is_the_default() {
        let service = read(json!({ "Name": "api", "Ports": [
            { "Name": "http", "Port": 8080, "Default": true },
            { "Name": "admin", "Port": 9090, "Protocol": "grpc" },
        ], "Connect": { "SidecarService": { "Proxy": {
            "LocalServiceAddress": "127.0.0.2", "LocalServicePort": 81,
        } } } }));
        let service = service.expect("good");
        let named = |named: &NamedPort| (named.name.to_string(), named.port, named.is_default);
        let ports: Vec<_> = service.instance.ports.iter().map(named).collect();
        assert_eq!(ports, [("http".into(), 8080, true), ("admin".into(), 9090, false)]);
        assert_eq!(service.instance.port, 8080, "for those who know no names");
        let sidecar = service.sidecar.expect("in the mesh");
        let reached = |(name, at, spoken): &(PortName, Address, Option<Protocol>)| {
            (name.to_string(), at.to_string(), *spoken)
        };
        let reached: Vec<_> = sidecar.ports.iter().map(reached).collect();
        let expected = [
            ("http".to_owned(), "127.0.0.2:81".to_owned(), None),
            ("admin".to_owned(), "127.0.0.2:9090".to_owned(), Some(Protocol::Grpc)),
        ];
        assert_eq!(reached, expected);
    }

    #[test]
    fn applications_and_upstreams_may_be_at_sockets() {
        let socket = |path: &str| Some(Address::Unix(path.parse().expect("a path")));
        let tcp = |text: &str| Some(Address::Tcp(text.parse().expect("an address")));
        let own = json!({ "Name": "web", "SocketPath": "/run/web.sock" });
        let port = json!({ "Name": "web", "Port": 80 });
        let cases = [
            // service, its proxy, where the application is, why
            (&own, json!({}), socket("/run/web.sock"), "the service's own"),
            (&own, json!({ "LocalServicePort": 81 }), tcp("127.0.0.1:81"), "the proxy's word"),
            (&port, json!({}), tcp("127.0.0.1:80"), "the service's own"),
            (
                &port,
                json!({ "LocalServiceSocketPath": "/run/b.sock" }),
                socket("/run/b.sock"),
                "the proxy's word",
            ),
        ];
        for (service, proxy, expected, why) in cases {
            let mut definition = service.clone();
            definition["Connect"] = json!({ "SidecarService": { "Proxy": proxy } });
            let service = read(definition).expect(why);
            assert_eq!(service.sidecar.expect("in the mesh").application, expected, "{why}");
        }
        let modes = [(None, 0o660), (Some("0600"), 0o600), (Some("777"), 0o777), (Some(""), 0o660)];
        for (written, expected) in modes {
            let upstream = json!({ "DestinationName": "db", "LocalBindSocketPath": "/run/db.sock",
                "LocalBindSocketMode": written });
            let definition = json!({ "Name": "web", "Connect": { "SidecarService": {
                "Proxy": { "Upstreams": [upstream] } } } });
            let sidecar = read(definition).expect("good").sidecar.expect("in the mesh");
            let upstream = &sidecar.upstreams[0];
            assert_eq!(Some(upstream.bind.clone()), socket("/run/db.sock"));
            assert_eq!(upstream.mode, expected, "{written:?}");
        }
    }

    #[test]
    fn a_single_check_is_named_after_its_service() {
        let value =
            json!({"Name": "db", "ID": "db-1", "Check": {"TCP": "[::1]:1", "Interval": "5ms"}});
        let service = read(value).expect("good");
        assert_eq!(service.checks[0].id.as_str(), "service:db-1");
        assert_eq!(service.checks[0].interval, INTERVAL_MIN, "raised silently, as in Consul");
        assert_eq!(service.checks[0].instance, Some(service.instance.id));
    }

    #[test]
    fn a_bad_definition_is_refused_with_its_field() {
        let with = |key: &str, value: Value| {
            let mut definition = json!({ "Name": "web" });
            definition[key] = value;
            definition
        };
        let check = |value: Value| with("Checks", json!([{ "TTL": "5s" }, value]));
        let pairs = |n: usize| (0..n).map(|i| (format!("k{i}"), json!("v"))).collect::<Value>();
        let upstreams = |value: Value| {
            with("Connect", json!({ "SidecarService": { "Proxy": { "Upstreams": value } } }))
        };
        let db = json!({ "DestinationName": "db", "LocalBindPort": 1 });
        let cases = [
            (json!({}), "Name", "is missing"),
            (json!([]), "the body", "object"),
            (json!({ "Name": "*" }), "Name", "means all"),
            (
                json!({ "Name": "Web", "Port": 1, "Connect": { "SidecarService": {} } }),
                "Name",
                "of the mesh",
            ),
            (json!({ "name": "a", "Name": "b" }), "name", "again"),
            (with("Prt", json!(80)), "Prt", "unknown field \"Prt\""),
            (with("Port", json!(65536)), "Port", "from 0 to 65535"),
            (with("Port", json!("80")), "Port", "whole number"),
            (with("Address", json!("0.0.0.0")), "Address", "nowhere"),
            (with("Address", json!("::")), "Address", "nowhere"),
            (with("Address", json!("db.example")), "Address", "no IP address"),
            (with("Weights", json!({ "Passing": 0 })), "Weights.Passing", "from 1"),
            (with("Weights", json!({ "Passing": 70000 })), "Weights.Passing", "65535"),
            (with("Meta", pairs(65)), "Meta", "64 is the most"),
            (with("Meta", json!({ "a b": "" })), "Meta.a b", "letters"),
            (with("Meta", json!({ "consul-x": "" })), "Meta.consul-x", "reserved"),
            (with("Meta", json!({ "k": "v".repeat(513) })), "Meta.k", "512"),
            (
                with("Meta", json!({ "k".repeat(129): "" })),
                &format!("Meta.{}", "k".repeat(129)),
                "128",
            ),
            (with("Kind", json!("connect-proxy")), "Kind", "SidecarService"),
            (with("Namespace", json!("team")), "Namespace", "only \"default\""),
            (with("Protocol", json!("htp")), "Protocol", "none of"),
            (with("Check", json!({ "HTTP": "http://x/" })), "Check.Interval", "such as"),
            (check(json!({ "TTL": "5s", "Interval": "1s" })), "Checks[1].Interval", "reported"),
            (check(json!({ "Interval": "1s" })), "Checks[1].HTTP", "does nothing"),
            (check(json!({ "TTL": "5s", "TCP": "a:1" })), "Checks[1].tcp", "one kind"),
            (check(json!({ "UDP": "a:1", "Interval": "1s" })), "Checks[1].UDP", "not supported"),
            (check(json!({ "TTL": "5" })), "Checks[1].TTL", "no duration"),
            (check(json!({ "TTL": "5s", "Intervl": "1s" })), "Checks[1].Intervl", "unknown field"),
            (
                check(json!({ "HTTP": "file:///etc/passwd", "Interval": "1s" })),
                "Checks[1].HTTP",
                "http://",
            ),
            (check(json!({ "TCP": "unix:x.sock", "Interval": "1s" })), "Checks[1].TCP", "absolute"),
            (
                check(json!({ "TCP": "nohost", "Interval": "1s" })),
                "Checks[1].TCP",
                "host and a port",
            ),
            (
                check(json!({ "TCP": "a:1", "Interval": "1s", "TLSSkipVerify": 1 })),
                "Checks[1].TLSSkipVerify",
                "true or false",
            ),
            (check(json!({ "TTL": "5s", "Status": "ok" })), "Checks[1].Status", "passing, warning"),
            (check(json!({ "TTL": "5s", "ServiceID": "x" })), "Checks[1].ServiceID", "about web"),
            (
                check(json!({ "TTL": "5s", "FailuresBeforeWarning": 3 })),
                "Checks[1].FailuresBeforeWarning",
                "greater",
            ),
            (
                upstreams(json!([{ "DestinationName": "db" }])),
                "Connect.SidecarService.Proxy.Upstreams[0].LocalBindPort",
                "missing",
            ),
            (
                upstreams(json!([{
                    "DestinationName": "db", "DestinationPeer": "East", "LocalBindPort": 1,
                }])),
                "Connect.SidecarService.Proxy.Upstreams[0].DestinationPeer",
                "a-z",
            ),
            (
                upstreams(json!([{
                    "DestinationName": "db", "Datacenter": "dc2", "LocalBindPort": 1,
                }])),
                "Connect.SidecarService.Proxy.Upstreams[0].Datacenter",
                "DestinationPeer",
            ),
            (with("Ports", json!([{ "Port": 80 }])), "Ports[0].Name", "missing"),
            (with("Ports", json!([{ "Name": "A", "Port": 80 }])), "Ports[0].Name", "not allowed"),
            (with("Ports", json!([{ "Name": "a" }])), "Ports[0].Port", "missing"),
            (
                with("Ports", json!([{ "Name": "a", "Port": 1, "Protocol": "udp" }])),
                "Ports[0].Protocol",
                "none of",
            ),
            (
                with("Ports", json!([{ "Name": "a", "Port": 1 }, { "Name": "b", "Port": 2 }])),
                "Ports",
                "Default = true",
            ),
            (
                with("Ports", json!([{ "Name": "a", "Port": 1 }, { "Name": "a", "Port": 2 }])),
                "Ports[1]",
                "another port called a",
            ),
            (
                json!({ "Name": "web", "Port": 2, "Ports": [{ "Name": "a", "Port": 1 }] }),
                "Port",
                "leave it out",
            ),
            (
                upstreams(json!([{ "DestinationName": "db", "LocalBindPort": 1,
                    "DestinationPeer": "east", "DestinationPort": "admin" }])),
                "Connect.SidecarService.Proxy.Upstreams[0].DestinationPort",
                "one's own cluster",
            ),
            (with("SocketPath", json!("run/x.sock")), "SocketPath", "absolute path"),
            (
                json!({ "Name": "web", "Port": 80, "SocketPath": "/run/x.sock" }),
                "SocketPath",
                "leave these out",
            ),
            (
                with(
                    "Connect",
                    json!({ "SidecarService": { "Proxy": {
                    "LocalServiceSocketPath": "/run/x.sock", "LocalServicePort": 80 } } }),
                ),
                "Connect.SidecarService.Proxy.LocalServiceSocketPath",
                "leave one out",
            ),
            (
                upstreams(json!([{ "DestinationName": "db", "LocalBindPort": 1,
                    "LocalBindSocketPath": "/run/x.sock" }])),
                "Connect.SidecarService.Proxy.Upstreams[0].LocalBindSocketPath",
                "leave one out",
            ),
            (
                upstreams(json!([{ "DestinationName": "db", "LocalBindSocketPath": "/run/x.sock",
                    "LocalBindSocketMode": "1777" }])),
                "Connect.SidecarService.Proxy.Upstreams[0].LocalBindSocketMode",
                "octal",
            ),
            (
                upstreams(json!([{ "DestinationName": "db", "LocalBindPort": 1,
                    "LocalBindSocketMode": "0600" }])),
                "Connect.SidecarService.Proxy.Upstreams[0].LocalBindSocketMode",
                "set that too",
            ),
            (
                upstreams(json!([
                    { "DestinationName": "db", "LocalBindSocketPath": "/run/x.sock" },
                    { "DestinationName": "api", "LocalBindSocketPath": "/run/x.sock" },
                ])),
                "Connect.SidecarService.Proxy.Upstreams[1].LocalBindSocketPath",
                "already",
            ),
            (
                upstreams(json!([db, db])),
                "Connect.SidecarService.Proxy.Upstreams[1].LocalBindPort",
                "already",
            ),
        ];
        for (definition, field, why) in cases {
            let shown = definition.to_string();
            let refused = read(definition).expect_err(&shown);
            assert_eq!(refused.field, field, "{shown}: {refused}");
            assert!(refused.why.contains(why), "{refused} has no {why:?}");
        }
    }

    #[test]
    fn a_file_holds_one_or_many() {
        let file = json!({
            "service": { "name": "a" },
            "services": [{ "name": "b" }, { "name": "b", "id": "b2" }],
            "check": { "name": "disk", "args": ["/bin/true"], "interval": "30s" },
        });
        let all = Definitions::from_json(&file).expect("good");
        let ids: Vec<_> = all.services.iter().map(|s| s.service().instance.id.as_str()).collect();
        assert_eq!(ids, ["a", "b", "b2"]);
        assert_eq!(all.checks[0].check().id.as_str(), "disk");
        assert_eq!(all.checks[0].check().instance, None);
        let twice = json!({ "services": [{ "name": "b" }, { "name": "b" }] });
        let refused = Definitions::from_json(&twice).expect_err("one id twice");
        assert_eq!(refused.field, "services[1]");
        let unknown = json!({ "servces": [] });
        assert_eq!(Definitions::from_json(&unknown).expect_err("unknown").field, "servces");
    }

    #[test]
    fn what_was_written_is_kept_and_no_secret_is_shown() {
        let written = json!({"Name": "web", "Check": {
            "HTTP": "https://x/?key=s3cret", "Interval": "1s", "Header": {"Authorization": ["s3cret"]},
        }});
        let definition = ServiceDefinition::try_from(written.clone()).expect("good");
        assert_eq!(serde_json::to_value(&definition).expect("JSON"), written);
        assert!(!format!("{definition:?}").contains("s3cret"));
    }
}
