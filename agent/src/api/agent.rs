//! `/v1/agent/…`: what runs here and how it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hawser_api::definition::{CheckDefinition, ServiceDefinition};
use hawser_api::error::ApiError;
use hawser_api::fields::{self, Fields};
use hawser_api::json::{
    AgentService, HealthCheck, MESH_GATEWAY, Member, Pairs, ServiceProxy, Weights, tagged,
};
use hawser_api::query::QueryOptions;
use hawser_core::address::Address;
use hawser_core::catalog::{Check, Meta};
use hawser_core::filter::Filter;
use hawser_core::health::Status;
use hawser_core::name::{CheckId, InstanceId};
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use super::access::Caller;
use super::{Api, Ask, Reply, reply, telemetry};
use crate::clock;
use crate::host::Host;
use crate::local::{Declared, NODE_MAINTENANCE, RegisterError, Unknown};

pub(super) async fn answer(
    api: &Api,
    ask: &Ask,
    path: &[&str],
    caller: &Caller,
) -> Result<Reply, ApiError> {
    match path {
        ["check" | "service", ..] | ["maintenance"] if path[..] != ["service"] => {
            declared(api, ask, path).await
        }
        ["token", ..] if api.host.acl.is_enabled() => Err(ApiError::NotImplemented(
            "tokens of the agent are said in its configuration: acl.tokens".to_owned(),
        )),
        ["token", ..] => Err(ApiError::AclDisabled),
        ["leave"] => {
            ask.must_be(&[Method::PUT])?;
            api.host.leave.cancel();
            Ok(reply::done())
        }
        ["reload"] => {
            ask.must_be(&[Method::PUT])?;
            api.host.reloads.send_modify(|count| *count += 1);
            Ok(reply::done())
        }
        ["force-leave", node] => {
            ask.must_be(&[Method::PUT])?;
            let body = json!({ "Node": node }).to_string().into_bytes();
            let answered = api.forwarding.own(
                &api.host,
                &caller.secret,
                "PUT",
                "/v1/catalog/deregister",
                body,
            );
            match answered.await? {
                answered if answered.status == 200 => Ok(reply::done()),
                answered => {
                    Err(ApiError::Refused(String::from_utf8_lossy(&answered.body).into_owned()))
                }
            }
        }
        ["join", ..] | ["metrics", "stream"] => Err(ApiError::NotImplemented(
            "not supported: hosts join with a token from `hawser token create`, and metrics \
             are at /metrics"
                .to_owned(),
        )),
        _ => {
            ask.must_be(&[Method::GET])?;
            read(api, ask, path, caller).await
        }
    }
}

async fn read(api: &Api, ask: &Ask, path: &[&str], caller: &Caller) -> Result<Reply, ApiError> {
    let (host, may) = (&api.host, &caller.may);
    let options = match path {
        ["services" | "checks"] => QueryOptions::with_filter(&ask.query)?,
        _ => QueryOptions::from_query(&ask.query)?,
    };
    match path {
        ["self"] => Ok(reply::json(ask, &about(api).await)),
        ["services"] => {
            let all: BTreeMap<String, AgentService> = services(host)
                .filter(|service| may.service_read(&service.service))
                .map(|service| (service.id.clone(), service))
                .collect();
            Ok(reply::json(ask, &filtered(&all, options.filter.as_ref())?))
        }
        ["checks"] => {
            let all: BTreeMap<String, HealthCheck> = checks(host)
                .filter(|check| match check.service_name.as_str() {
                    "" => may.node_read(&check.node),
                    service => may.service_read(service),
                })
                .map(|check| (check.check_id.clone(), check))
                .collect();
            Ok(reply::json(ask, &filtered(&all, options.filter.as_ref())?))
        }
        ["members"] => {
            let mut all = members(api, caller).await;
            all.retain(|member| may.node_read(&member.name));
            Ok(reply::json(ask, &all))
        }
        ["metrics"] => telemetry::answer(host, ask),
        ["version"] => Ok(reply::json(
            ask,
            &json!({ "SHA": "", "BuildDate": "1970-01-01T00:00:00Z",
                     "HumanVersion": host.version, "FIPS": "" }),
        )),
        ["host"] => Ok(reply::json(ask, &machine())),
        ["health", "service", "id", id] => {
            let found: Vec<AgentService> = services(host).filter(|held| held.id == *id).collect();
            health(host, ask, &found, &format!("ServiceId {id} not found"), false)
        }
        ["health", "service", "name", name] => {
            let found: Vec<AgentService> = services(host)
                .filter(|held| held.service == *name && held.kind.is_empty())
                .filter(|held| may.service_read(&held.service))
                .collect();
            health(host, ask, &found, &format!("ServiceName {name} Not Found"), true)
        }
        _ => Err(ApiError::UnknownPath),
    }
}

async fn declared(api: &Api, ask: &Ask, path: &[&str]) -> Result<Reply, ApiError> {
    let local = &api.host.local;
    if let ["service", id] = path
        && !matches!(*id, "register" | "deregister" | "maintenance")
    {
        ask.must_be(&[Method::GET])?;
        return one(api, ask, id).await;
    }
    ask.must_be(&[Method::PUT])?;
    match path {
        ["service", "register"] => {
            let definition = ServiceDefinition::try_from(fields::parse(&ask.body)?)?;
            let replaces = ask.query.flag("replace-existing-checks")?;
            local.register_service(definition, replaces).map_err(|why| refused(&why))?;
        }
        ["service", "deregister", id] => {
            let id = application(&api.host, id);
            local.deregister_service(&parsed::<InstanceId>(&id)?).map_err(|why| unknown(&why))?;
        }
        ["service", "maintenance", id] => {
            let id = parsed::<InstanceId>(id)?;
            local.maintain(Some(id), reason(ask)?).map_err(|why| unknown(&why))?;
        }
        ["maintenance"] => local.maintain(None, reason(ask)?).map_err(|why| unknown(&why))?,
        ["check", "register"] => {
            let definition = CheckDefinition::try_from(fields::parse(&ask.body)?)?;
            local.register_check(definition).map_err(|why| refused(&why))?;
        }
        ["check", "deregister", id] => {
            local.deregister_check(&parsed::<CheckId>(id)?).map_err(|why| unknown(&why))?;
        }
        ["check", verb @ ("pass" | "warn" | "fail"), id] => {
            let status = match *verb {
                "pass" => Status::Passing,
                "warn" => Status::Warning,
                _ => Status::Critical,
            };
            let note = ask.query.first("note").unwrap_or_default();
            local.report(&parsed::<CheckId>(id)?, status, note).map_err(|why| unknown(&why))?;
        }
        ["check", "update", id] => {
            let body = fields::parse(&ask.body)?;
            let mut fields = Fields::open(&body, "")?;
            let status = fields
                .parsed::<Status>(&["Status"])?
                .ok_or_else(|| ApiError::bad_request("Status is missing"))?;
            let output = fields.text(&["Output"])?.map_or("", |(_, output)| output);
            fields.finish()?;
            local.report(&parsed::<CheckId>(id)?, status, output).map_err(|why| unknown(&why))?;
        }
        _ => return Err(ApiError::UnknownPath),
    }
    Ok(reply::done())
}

/// Those of `all` that `filter` wants, by their keys.
fn filtered<T: Serialize>(
    all: &BTreeMap<String, T>,
    filter: Option<&Filter>,
) -> Result<Map<String, Value>, ApiError> {
    let mut shown = Map::new();
    for (key, item) in all {
        let item = serde_json::to_value(item).map_err(|why| ApiError::Refused(why.to_string()))?;
        shown.insert(key.clone(), item);
    }
    if let Some(filter) = filter {
        // A selector that no element has is an error, so all are looked at together first.
        let mut wanted: Vec<Value> = shown.values().cloned().collect();
        filter.retain(&mut wanted).map_err(ApiError::bad_request)?;
        shown.retain(|_, item| filter.matches(item) == Ok(true));
    }
    Ok(shown)
}

/// One service, or the sidecar of one; with `hash`, once it is no longer that.
async fn one(api: &Api, ask: &Ask, id: &str) -> Result<Reply, ApiError> {
    let options = QueryOptions::from_query(&ask.query)?;
    let known = ask.query.text("hash").map(str::to_owned);
    let deadline = Instant::now() + options.wait_with_jitter(clock::permille());
    let mut changes = api.host.local.changes();
    loop {
        changes.borrow_and_update();
        let found = services(&api.host).find(|held| held.id == id);
        let mut found =
            found.ok_or_else(|| ApiError::NotFound(format!("unknown service ID: {id}")))?;
        let hash = hash(&found);
        let is_new = known.as_ref() != Some(&hash);
        let is_over = !is_new
            && tokio::select! {
                () = api.drain.cancelled() => true,
                changed = timeout_at(deadline, changes.changed()) => !matches!(changed, Ok(Ok(()))),
            };
        if is_new || is_over {
            found.content_hash.clone_from(&hash);
            let mut reply = reply::json(ask, &found);
            if let Ok(hash) = HeaderValue::try_from(hash) {
                reply.headers_mut().insert("x-consul-contenthash", hash);
            }
            return Ok(reply);
        }
    }
}

fn hash(service: &AgentService) -> String {
    let written = serde_json::to_vec(service).unwrap_or_default();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &written);
    digest.as_ref()[..8].iter().map(|octet| format!("{octet:02x}")).collect()
}

/// The services, each followed by its sidecar as Consul shows it.
fn services(host: &Host) -> impl Iterator<Item = AgentService> + use<> {
    let datacenter = host.datacenter.to_string();
    host.local.services().into_iter().flat_map(move |held| {
        let application = shown(&held, &datacenter);
        let sidecar = sidecar(&held, &application);
        [Some(application), sidecar].into_iter().flatten()
    })
}

fn shown(held: &Declared, datacenter: &str) -> AgentService {
    let instance = &held.instance;
    AgentService {
        kind: instance.gateway.as_ref().map(|_| MESH_GATEWAY.to_owned()).unwrap_or_default(),
        id: instance.id.to_string(),
        service: instance.service.to_string(),
        tags: instance.tags.iter().map(|tag| tag.to_string()).collect(),
        meta: pairs(&instance.meta),
        port: instance.port,
        socket_path: instance.socket.as_ref().map(ToString::to_string).unwrap_or_default(),
        ports: instance.ports.iter().map(Into::into).collect(),
        address: instance.address.map(|address| address.to_string()).unwrap_or_default(),
        tagged_addresses: tagged(instance.gateway.as_deref(), &instance.tagged),
        weights: Weights { passing: instance.weights.passing, warning: instance.weights.warning },
        enable_tag_override: instance.enable_tag_override,
        proxy: None,
        content_hash: String::new(),
        datacenter: datacenter.to_owned(),
    }
}

fn sidecar(held: &Declared, application: &AgentService) -> Option<AgentService> {
    let port = held.instance.mesh_port?;
    let local = held.definition.service().sidecar.as_ref()?.application.as_ref()?;
    let (ip, local_port, socket) = match local {
        Address::Tcp(at) => (at.ip().to_string(), at.port(), String::new()),
        Address::Unix(path) => (String::new(), 0, path.to_string()),
    };
    Some(AgentService {
        kind: "connect-proxy".to_owned(),
        id: format!("{}{SIDECAR}", application.id),
        service: format!("{}{SIDECAR}", application.service),
        port,
        proxy: Some(ServiceProxy {
            destination_service_name: application.service.clone(),
            destination_service_id: application.id.clone(),
            local_service_address: ip,
            local_service_port: local_port,
            local_service_socket_path: socket,
        }),
        socket_path: String::new(),
        ports: Vec::new(),
        ..application.clone()
    })
}

/// The application behind `id`: a sidecar is not registered by itself, so deregistering it is
/// deregistering nothing; `id` itself unless it is one.
fn application(host: &Host, id: &str) -> String {
    match id.strip_suffix(SIDECAR) {
        Some(application) if host.local.service(id).is_none() => application.to_owned(),
        _ => id.to_owned(),
    }
}

fn checks(host: &Host) -> impl Iterator<Item = HealthCheck> + use<> {
    let node = host.node.name.to_string();
    let by_id: BTreeMap<InstanceId, Arc<Declared>> =
        host.local.services().into_iter().map(|held| (held.instance.id.clone(), held)).collect();
    host.local.all_checks().into_iter().map(move |check: Check| {
        let owner = check.instance.as_ref().and_then(|id| by_id.get(id));
        HealthCheck {
            node: node.clone(),
            check_id: check.id.to_string(),
            name: check.name.to_string(),
            status: check.status.to_string(),
            notes: check.notes.to_string(),
            output: check.output.to_string(),
            service_id: check.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
            service_name: owner.map(|held| held.instance.service.to_string()).unwrap_or_default(),
            service_tags: owner
                .map(|held| held.instance.tags.iter().map(|tag| tag.to_string()).collect())
                .unwrap_or_default(),
            kind: check.kind.to_string(),
            interval: check.run.interval.to_string(),
            timeout: check.run.timeout.to_string(),
            ..HealthCheck::default()
        }
    })
}

/// The health of `found`, as load balancers ask for it: the status says all.
fn health(
    host: &Host,
    ask: &Ask,
    found: &[AgentService],
    absent: &str,
    is_list: bool,
) -> Result<Reply, ApiError> {
    if found.is_empty() {
        return Err(ApiError::NotFound(absent.to_owned()));
    }
    let all: Vec<HealthCheck> = checks(host).collect();
    let mut worst = 0;
    let mut shown = Vec::new();
    for service in found {
        let of: Vec<&HealthCheck> = all
            .iter()
            .filter(|check| check.service_id.is_empty() || check.service_id == service.id)
            .collect();
        let rank = of.iter().map(|check| rank(check)).max().unwrap_or(0);
        worst = worst.max(rank);
        shown.push(json!({ "AggregatedStatus": WORDS[rank].0, "Service": service, "Checks": of }));
    }
    let (word, status) = WORDS[worst];
    let mut answer = if ask.query.first("format") == Some("text") {
        reply::text(status, word)
    } else if is_list {
        reply::json_as(status, &shown, ask.query.first("pretty").is_some())
    } else {
        reply::json_as(status, &shown[0], ask.query.first("pretty").is_some())
    };
    answer.headers_mut().insert("x-consul-reason", HeaderValue::from_static(word));
    Ok(answer)
}

/// Where a check stands among [`WORDS`].
fn rank(check: &HealthCheck) -> usize {
    let is_maintenance =
        check.check_id == NODE_MAINTENANCE || check.check_id.starts_with("_service_maintenance:");
    match check.status.as_str() {
        _ if is_maintenance => 3,
        "critical" => 2,
        "warning" => 1,
        _ => 0,
    }
}

async fn about(api: &Api) -> Value {
    let host = &api.host;
    let leader = api.forwarding.own(host, "", "GET", "/v1/status/leader?stale", vec![]).await;
    let leader: String =
        leader.ok().and_then(|reply| serde_json::from_slice(&reply.body).ok()).unwrap_or_default();
    let me = member(
        host,
        host.node.name.as_str(),
        &host.node.address.to_string(),
        host.is_server,
        ALIVE,
    );
    json!({
        "Config": {
            "Datacenter": host.datacenter.as_str(),
            "PrimaryDatacenter": host.datacenter.as_str(),
            "NodeName": host.node.name.as_str(),
            "NodeID": &*host.node.id,
            "Revision": "",
            "Server": host.is_server,
            "Version": host.version,
            "BuildDate": "1970-01-01T00:00:00Z",
        },
        "DebugConfig": { "BindAddr": host.bind.to_string(), "AdvertiseAddrLAN": host.node.address.to_string() },
        "Coord": { "Vec": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "Error": 1.5, "Adjustment": 0.0,
                   "Height": 0.00001 },
        "Member": me,
        "Stats": {
            "agent": {
                "services": host.local.services().len().to_string(),
                "checks": host.local.checks().len().to_string(),
                "refused": host.refused.all().len().to_string(),
                "view_index": host.views.borrow().index.to_string(),
                "server": host.servers.link().map(|link| link.address().to_string()).unwrap_or_default(),
            },
            "consul": {
                "server": host.is_server.to_string(),
                "known_servers": host.servers.members().len().to_string(),
                "leader_addr": leader,
            },
        },
        "Meta": pairs(&host.node.meta),
        "xDS": { "SupportedProxies": {}, "Port": -1, "Ports": { "Plaintext": -1, "TLS": -1 } },
    })
}

/// Servers from the heartbeats, hosts from the catalog; while cut off, what is known here.
async fn members(api: &Api, caller: &Caller) -> Vec<Member> {
    let host = &api.host;
    let servers = host.servers.members();
    let names: BTreeSet<&str> = servers.iter().map(|server| server.name.as_str()).collect();
    let own = |path: &'static str| async move {
        let reply = api.forwarding.own(host, &caller.secret, "GET", path, vec![]).await.ok()?;
        let rows: Vec<Map<String, Value>> = serde_json::from_slice(&reply.body).ok()?;
        (reply.status == 200).then_some(rows)
    };
    let (nodes, failing) =
        tokio::join!(own("/v1/catalog/nodes?stale"), own("/v1/health/state/critical?stale"));
    let text = |row: &Map<String, Value>, key: &str| {
        row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let failed: BTreeSet<String> = failing
        .unwrap_or_default()
        .iter()
        .filter(|row| text(row, "CheckID") == hawser_core::health::NODE_LIVENESS_CHECK)
        .map(|row| text(row, "Node"))
        .collect();
    let mut all: BTreeMap<String, Member> = nodes
        .unwrap_or_default()
        .iter()
        .map(|row| {
            let (name, address) = (text(row, "Node"), text(row, "Address"));
            let status = if failed.contains(&name) { FAILED } else { ALIVE };
            let mut member = member(host, &name, &address, names.contains(name.as_str()), status);
            member.tags.insert("id".to_owned(), text(row, "ID"));
            (name, member)
        })
        .collect();
    for server in &servers {
        all.entry(server.name.clone()).or_insert_with(|| {
            let address = server.address.rsplit_once(':').map_or("", |(address, _)| address);
            member(host, &server.name, address, true, ALIVE)
        });
    }
    all.entry(host.node.name.to_string()).or_insert_with(|| {
        let address = host.node.address.to_string();
        member(host, host.node.name.as_str(), &address, host.is_server, ALIVE)
    });
    all.into_values().collect()
}

fn member(host: &Host, name: &str, address: &str, is_server: bool, status: u8) -> Member {
    let mut tags = Pairs::new();
    let role = if is_server { "consul" } else { "node" };
    for (key, value) in [("role", role), ("dc", host.datacenter.as_str()), ("build", host.version)]
    {
        tags.insert(key.to_owned(), value.to_owned());
    }
    if is_server {
        tags.insert("port".to_owned(), SERVER_PORT.to_string());
    }
    Member {
        name: name.to_owned(),
        addr: address.to_owned(),
        port: SERVER_PORT,
        tags,
        status,
        ..Member::default()
    }
}

fn machine() -> Value {
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    json!({
        "Host": {
            "hostname": text(uname.nodename()), "os": "linux", "kernelVersion": text(uname.release()),
            "kernelArch": text(uname.machine()),
        },
        "CPU": vec![json!({}); cpus],
        "CollectionTime": clock::now().as_millis(),
        "Errors": null,
    })
}

fn reason(ask: &Ask) -> Result<Option<&str>, ApiError> {
    if ask.query.first("enable").is_none() {
        return Err(ApiError::bad_request("Missing value for enable"));
    }
    let reason = ask.query.text("reason").unwrap_or(REASON);
    Ok(ask.query.flag("enable")?.then_some(reason))
}

fn parsed<T: std::str::FromStr<Err = hawser_core::name::InvalidName>>(
    text: &str,
) -> Result<T, ApiError> {
    text.parse().map_err(|why| ApiError::bad_request(format_args!("{text:?}: {why}")))
}

fn pairs(meta: &Meta) -> Pairs {
    meta.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn refused(why: &RegisterError) -> ApiError {
    match why {
        RegisterError::UnknownService { .. } => ApiError::NotFound(why.to_string()),
        RegisterError::Store(_) => ApiError::Refused(why.to_string()),
        _ => ApiError::BadRequest(why.to_string()),
    }
}

fn unknown(why: &Unknown) -> ApiError {
    let text = match why {
        Unknown::Service(id) => format!("Unknown service ID \"{id}\""),
        Unknown::Check(id) => format!("Unknown check ID \"{id}\""),
        Unknown::NotTtl(_) | Unknown::Own(_) => return ApiError::BadRequest(why.to_string()),
    };
    ApiError::NotFound(text)
}

const WORDS: [(&str, StatusCode); 4] = [
    ("passing", StatusCode::OK),
    ("warning", StatusCode::TOO_MANY_REQUESTS),
    ("critical", StatusCode::SERVICE_UNAVAILABLE),
    ("maintenance", StatusCode::SERVICE_UNAVAILABLE),
];
const SIDECAR: &str = "-sidecar-proxy";
const ALIVE: u8 = 1;
const FAILED: u8 = 4;
const SERVER_PORT: u16 = 8300;
const REASON: &str = "Maintenance mode is enabled for this node or service, but no reason was \
                      provided. This is a default message.";
