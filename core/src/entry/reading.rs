//! Reading an entry as somebody writes it: what is wrong is said of the field, wherever it stands,
//! and what Consul has and Hawser has not is refused with the reason.

use serde_json::{Map, Value};

use super::{Body, Entry, InvalidEntry, Kind};

impl Entry {
    /// Reads and checks what somebody writes: the entry of `kind` called `name`, in Consul's JSON
    /// shape without kind and name.
    ///
    /// `Namespace` and `Partition` may be `default` wherever they stand, and say nothing then.
    ///
    /// # Errors
    /// [`InvalidEntry`], which names the entry, the field with those around it, and what to do.
    pub fn written(
        kind: Kind,
        name: &str,
        mut json: Map<String, Value>,
    ) -> Result<Self, InvalidEntry> {
        drop_tenancy(&mut json);
        let text = Value::Object(json).to_string();
        let mut from = serde_json::Deserializer::from_str(&text);
        let body = Body::read(kind, &mut from).map_err(|fault| {
            let said = fault.to_string();
            let field = path_at(&text, blamed(&text, fault.column(), &said));
            let why = why(kind, &field, &said);
            InvalidEntry::Field { kind, name: name.to_owned(), field, why }
        })?;
        Self::new(name, body)
    }
}

/// Drops what says that something is where everything is.
fn drop_tenancy(object: &mut Map<String, Value>) {
    let is_tenancy = |key: &str| ["namespace", "partition"].contains(&&*normal(key));
    let is_default = |value: &Value| matches!(value.as_str(), Some("" | "default"));
    object.retain(|key, value| !(is_tenancy(key) && is_default(value)));
    for (key, value) in object {
        // What users name as they like.
        if ["meta", "set", "add"].contains(&&*normal(key)) {
            continue;
        }
        let items = match value {
            Value::Array(list) => list.iter_mut().collect(),
            value => vec![value],
        };
        items.into_iter().filter_map(Value::as_object_mut).for_each(drop_tenancy);
    }
}

/// What is wrong with `field`, and what to do: `said` is what the parser says.
fn why(kind: Kind, field: &str, said: &str) -> String {
    let said = said.rsplit_once(" at line ").map_or(said, |(said, _)| said);
    if !said.starts_with("unknown field") {
        return said.to_owned();
    }
    let last = field.rsplit('.').next().unwrap_or(field);
    let is_it = |(of, name, _): &&Refused| {
        (of.is_empty() || of.contains(&kind)) && normal(name) == normal(last)
    };
    if let Some((_, _, reason)) = REFUSED.iter().find(is_it) {
        return format!("it is not supported: {reason}");
    }
    let mut known: Vec<&str> = said.split('`').skip(3).step_by(2).collect();
    // Each has another spelling, which says nothing new.
    if known.iter().any(|name| name.starts_with(char::is_uppercase)) {
        known.retain(|name| name.starts_with(char::is_uppercase));
    }
    format!("there is no such field: use one of {}", known.join(", "))
}

/// A list or an object that is open, and where in it one is.
enum Open {
    Object { key: String, wants_key: bool },
    List(usize),
}

/// Up to which octet `text` leads to the field that is to blame. What a value says is found wrong
/// once it was read, and then the object around it may have been closed, too.
fn blamed(text: &str, end: usize, said: &str) -> usize {
    let last = end.checked_sub(1).and_then(|at| text.as_bytes().get(at));
    let is_closed = matches!(last, Some(b'}' | b']')) && !said.starts_with("missing field");
    if is_closed { end - 1 } else { end }
}

/// The field at the `end`th octet of `text`, which is JSON in one line.
fn path_at(text: &str, end: usize) -> String {
    let (octets, mut open, mut at) = (text.as_bytes(), Vec::<Open>::new(), 0);
    while at < end.min(octets.len()) {
        match (octets[at], open.last_mut()) {
            (b'{', _) => open.push(Open::Object { key: String::new(), wants_key: true }),
            (b'[', _) => open.push(Open::List(0)),
            (b'}' | b']', _) => drop(open.pop()),
            (b',', Some(Open::List(n))) => *n += 1,
            (b',', Some(Open::Object { wants_key, .. })) => *wants_key = true,
            (b'"', within) => {
                let from = at;
                at += 1;
                while octets.get(at).is_some_and(|octet| *octet != b'"') {
                    at += if octets[at] == b'\\' { 2 } else { 1 };
                }
                if let Some(Open::Object { key, wants_key }) = within
                    && *wants_key
                {
                    *wants_key = false;
                    let quoted = text.get(from..=at).unwrap_or_default();
                    *key = serde_json::from_str(quoted).unwrap_or_default();
                }
            }
            _ => {}
        }
        at += 1;
    }
    open.iter().fold(String::new(), |path, step| match step {
        Open::Object { key, .. } if key.is_empty() => path,
        Open::Object { key, .. } if path.is_empty() => key.clone(),
        Open::Object { key, .. } => format!("{path}.{key}"),
        Open::List(n) => format!("{path}[{n}]"),
    })
}

/// A key as it is compared: Consul takes it in any case, with underscores or without.
fn normal(key: &str) -> String {
    key.chars().filter(|letter| *letter != '_').flat_map(char::to_lowercase).collect()
}

/// The kinds that have a field in Consul (none: any), its name, and why it is refused here.
type Refused = (&'static [Kind], &'static str, &'static str);

const NO_CAPTURE: &str =
    "the proxy takes what is sent to its listeners and captures nothing; leave it out";
const NO_ENVOY: &str = "there is no Envoy here that would read it; leave it out";
const NO_TENANCY: &str = "only \"default\" exists; leave it out";
const NO_GROUPS: &str = "there are no sameness groups; name each Peer";
const PEERS: &str = "other clusters are peers; name Peer";

/// What Consul's entries have and these have not.
const REFUSED: &[Refused] = &[
    (&[], "Namespace", NO_TENANCY),
    (&[], "Partition", NO_TENANCY),
    (&[], "EnvoyExtensions", NO_ENVOY),
    (&[], "EnvoyListenerJSON", NO_ENVOY),
    (&[], "EnvoyClusterJSON", NO_ENVOY),
    (&[], "TransparentProxy", NO_CAPTURE),
    (&[], "Mode", NO_CAPTURE),
    (&[], "SamenessGroup", NO_GROUPS),
    (&[], "Datacenter", PEERS),
    (&[], "Datacenters", PEERS),
    (&[], "Expose", "checks are run by the agent on the host itself; leave it out"),
    (
        &[Kind::ProxyDefaults],
        "AccessLogs",
        "each agent says it for its host: access_log in its configuration",
    ),
    (
        &[Kind::ProxyDefaults],
        "FailoverPolicy",
        "instances in one's own zone come first, then the region's; leave it out",
    ),
    (
        &[Kind::ProxyDefaults],
        "local_connect_timeout_ms",
        "write LocalConnectTimeoutMs in service-defaults of each service",
    ),
    (
        &[Kind::ProxyDefaults],
        "local_request_timeout_ms",
        "write RequestTimeout in service-resolver of each service",
    ),
    (
        &[Kind::ServiceDefaults],
        "LocalRequestTimeoutMs",
        "write RequestTimeout in its service-resolver: the callee's proxy keeps it, too",
    ),
    (&[Kind::ServiceDefaults], "ExternalSNI", "terminating gateways are not supported"),
    (&[Kind::ServiceDefaults], "Destination", "terminating gateways are not supported"),
    (
        &[Kind::ServiceDefaults],
        "BalanceInboundConnections",
        "connections are spread over all workers anyway; leave it out",
    ),
    (
        &[Kind::ServiceDefaults],
        "BalanceOutboundConnections",
        "connections are spread over all workers anyway; leave it out",
    ),
    (
        &[Kind::ServiceDefaults],
        "Protocol",
        "it belongs to the callee: write it in service-defaults of the upstream",
    ),
    (
        &[Kind::ServiceDefaults],
        "MeshGateway",
        "it belongs to the callee: write it in service-defaults of the upstream",
    ),
    (&[Kind::ServiceDefaults], "PathRegex", "use PathExact or PathPrefix"),
    (
        &[Kind::ServiceResolver],
        "Policy",
        "targets are tried in the order in which they are listed; leave it out",
    ),
    (&[Kind::JwtProvider], "UseSNI", "the server name is always sent; leave it out"),
    (&[Kind::JwtProvider], "RetryPolicy", "keys are fetched again until they come; leave it out"),
    (
        &[Kind::JwtProvider],
        "JWKSCluster",
        "each callee's agent fetches the keys by itself; leave it out",
    ),
    (
        &[Kind::Mesh],
        "TLS",
        "between proxies it is TLS 1.3 with its own suites, always; leave it out",
    ),
    (
        &[Kind::Mesh],
        "ValidateClusters",
        "entries are checked together when they are written; leave it out",
    ),
    (&[Kind::Mesh], "Peering", "servers of peers speak to each other directly; leave it out"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn written(key: &str, json: &str) -> Result<Entry, InvalidEntry> {
        let (kind, name) = key.split_once('/').expect("kind/name");
        let Ok(Value::Object(json)) = serde_json::from_str(json) else { panic!("{json}") };
        Entry::written(kind.parse().expect("a kind"), name, json)
    }

    #[test]
    fn what_is_wrong_is_said_of_the_field_wherever_it_stands() {
        let cases = [
            (
                "service-defaults/web",
                r#"{"Protcol":"http"}"#,
                "Protcol: there is no such field: use",
            ),
            (
                "service-defaults/web",
                r#"{"UpstreamConfig":{"Overrides":[{"Name":"a"},{"Name":"b","Limts":{}}]}}"#,
                "UpstreamConfig.Overrides[1].Limts: there is no such field: use one of Name, Peer,",
            ),
            (
                "service-defaults/web",
                r#"{"UpstreamConfig":{"Defaults":{"Limits":{"MaxConnections":"many"}}}}"#,
                "UpstreamConfig.Defaults.Limits.MaxConnections: invalid type: string \"many\"",
            ),
            (
                "service-router/web",
                r#"{"Routes":[{},{"Destination":{"RequestTimeout":"soon"}}]}"#,
                "service-router/web: Routes[1].Destination.RequestTimeout: ",
            ),
            (
                "service-router/web",
                r#"{"Routes":[{"Match":{"HTTP":{"Header":[{"Exact":"a,\"]}b\\"},"x"]}}}]}"#,
                "Routes[0].Match.HTTP.Header[1]: ",
            ),
            (
                "service-resolver/web",
                r#"{"Failover":{"*":{"Targets":[{"Peer":"w"},{"Datacenter":"dc2"}]}}}"#,
                "Failover.*.Targets[1].Datacenter: it is not supported: other clusters are peers",
            ),
            (
                "service-resolver/web",
                r#"{"Failover":{"*":{"Targets":[{"Peer":"w","Namespace":"a"}]}}}"#,
                "Failover.*.Targets[0].Namespace: it is not supported: only \"default\" exists",
            ),
            (
                "jwt-provider/okta",
                r#"{"JSONWebKeySet":{"Remote":{"UseSNI":true,"URI":"https://a"}}}"#,
                "JSONWebKeySet.Remote.UseSNI: it is not supported: the server name is always sent",
            ),
            (
                "jwt-provider/okta",
                r#"{"JSONWebKeySet":{"Remote":{}}}"#,
                "jwt-provider/okta: JSONWebKeySet.Remote: missing field `URI`",
            ),
        ];
        for (key, json, expected) in cases {
            let refused = written(key, json).expect_err(json).to_string();
            assert!(refused.contains(expected), "{refused:?} has no {expected:?}");
        }
    }

    #[test]
    fn the_one_namespace_may_be_named_anywhere() {
        let entry = written(
            "service-resolver/web",
            r#"{"Meta":{"Namespace":"default"},"Namespace":"",
                "Failover":{"*":{"namespace":"default",
                    "Targets":[{"Peer":"w","Partition":"default","Namespace":"default"}]}}}"#,
        );
        let entry = entry.expect("nothing is elsewhere");
        let shown = serde_json::to_value(entry.body()).expect("JSON");
        let targets = serde_json::json!([{ "Peer": "w" }]);
        assert_eq!(shown["Failover"]["*"]["Targets"], targets);
        assert_eq!(shown["Meta"]["Namespace"], "default", "that is the user's own");
    }

    #[test]
    fn each_field_that_is_refused_is_documented_and_none_that_is_taken() {
        let docs = include_str!("../../../docs/traffic.md");
        for (kinds, name, reason) in REFUSED {
            assert!(docs.contains(&format!("`{name}`")), "{name} is not in docs/traffic.md");
            assert!(!reason.ends_with('.') && !reason.is_empty(), "{name}");
            for kind in *kinds {
                let json = Map::from_iter([((*name).to_owned(), Value::from("x"))]);
                let refused = Entry::written(*kind, kind.fixed_name().unwrap_or("web"), json);
                let nested = ["Protocol", "MeshGateway"].contains(name);
                let said = refused.expect_err(name).to_string();
                assert!(nested || said.contains(reason), "{kind} {name}: {said}");
            }
        }
    }
}
