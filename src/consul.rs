//! Consul's agent configuration, as its users' test harnesses write it, in Hawser's keys.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// What a Consul configuration says in Hawser's keys, and which of its keys say nothing here.
pub(crate) struct Translated {
    /// Hawser's keys.
    pub(crate) value: Value,
    /// Keys that Consul has and that change nothing here.
    pub(crate) ignored: Vec<String>,
}

/// Translates `value`, an object with Consul's keys.
///
/// # Errors
/// A key that Consul has not, or a value of the wrong kind; the error names it.
pub(crate) fn translate(value: Value) -> Result<Translated> {
    let Value::Object(given) = value else { bail!("it must hold keys and values") };
    let mut kept = Map::new();
    let mut ignored = Vec::new();
    for (key, value) in given {
        match key.as_str() {
            "ports" => {
                let value = ports(value, &mut ignored)?;
                kept.insert(key, value);
            }
            "addresses" => {
                let value = addresses(value, &mut ignored)?;
                kept.insert(key, value);
            }
            "tls" => {
                let value = tls(value, &mut ignored)?;
                kept.insert(key, value);
            }
            "client_addr" => {
                let text = value.as_str().context("client_addr: it must be text")?;
                // Consul takes several; the first is the one that clients are told.
                let first = text.split_whitespace().next().context("client_addr: it is empty")?;
                kept.insert(key, first.into());
            }
            "dns_config" => {
                let value = dns(value, &mut ignored)?;
                kept.insert(key, value);
            }
            // A host cannot be asked for fewer servers than one, and `-dev` is one.
            "bootstrap_expect" | "retry_join" | "start_join" => ignored.push(key),
            _ if SAME.contains(&key.as_str()) => {
                kept.insert(key, value);
            }
            _ if WITHOUT_EFFECT.contains(&key.as_str()) => ignored.push(key),
            _ => bail!("{key}: neither Consul nor Hawser has this key"),
        }
    }
    Ok(Translated { value: Value::Object(kept), ignored })
}

fn ports(value: Value, ignored: &mut Vec<String>) -> Result<Value> {
    let Value::Object(given) = value else { bail!("ports: it must hold names and numbers") };
    let mut kept = Map::new();
    for (name, port) in given {
        match name.as_str() {
            "http" | "dns" | "server" | "sidecar_min_port" | "sidecar_max_port" => {
                kept.insert(name, port);
            }
            _ if name == "https" || OTHER_PORTS.contains(&name.as_str()) => {
                let number = port.as_i64().with_context(|| format!("ports.{name}: no number"))?;
                ensure!(
                    (-1..=i64::from(u16::MAX)).contains(&number),
                    "ports.{name}: {number} is no port; use -1 to 65535"
                );
                match name.as_str() {
                    "https" => drop(kept.insert(name, port)),
                    _ => ignored.push(format!("ports.{name}")),
                }
            }
            _ => bail!("ports.{name}: neither Consul nor Hawser has this port"),
        }
    }
    Ok(Value::Object(kept))
}

/// The addresses of the listeners that there are here; of several for one, the first.
fn addresses(value: Value, ignored: &mut Vec<String>) -> Result<Value> {
    let Value::Object(given) = value else { bail!("addresses: it must hold names and addresses") };
    let mut kept = Map::new();
    for (name, address) in given {
        if !matches!(name.as_str(), "http" | "https" | "dns") {
            ignored.push(format!("addresses.{name}"));
            continue;
        }
        let text =
            address.as_str().with_context(|| format!("addresses.{name}: it must be text"))?;
        if let Some(first) = text.split_whitespace().next() {
            kept.insert(name, first.into());
        }
    }
    Ok(Value::Object(kept))
}

/// What HTTPS shows; between hosts there is always TLS, with certificates of the cluster's own.
fn tls(value: Value, ignored: &mut Vec<String>) -> Result<Value> {
    let Value::Object(given) = value else { bail!("tls: it must hold keys and values") };
    let mut kept = Map::new();
    for (part, value) in given {
        let Value::Object(keys) = value else { bail!("tls.{part}: it must hold keys and values") };
        if !matches!(part.as_str(), "defaults" | "https") {
            ignored.push(format!("tls.{part}"));
            continue;
        }
        let mut held = Map::new();
        for (key, value) in keys {
            match key.as_str() {
                "cert_file" | "key_file" | "ca_file" | "verify_incoming" => {
                    held.insert(key, value);
                }
                _ => ignored.push(format!("tls.{part}.{key}")),
            }
        }
        kept.insert(part, held.into());
    }
    Ok(Value::Object(kept))
}

fn dns(value: Value, ignored: &mut Vec<String>) -> Result<Value> {
    let Value::Object(given) = value else { bail!("dns_config: it must hold keys and values") };
    let mut kept = Map::new();
    for (key, value) in given {
        match key.as_str() {
            "only_passing" => {
                kept.insert(key, value);
            }
            _ => ignored.push(format!("dns_config.{key}")),
        }
    }
    Ok(Value::Object(kept))
}

/// Keys that mean here what they mean there.
const SAME: [&str; 22] = [
    "acl",
    "advertise_addr",
    "alt_domain",
    "bind_addr",
    "check",
    "checks",
    "data_dir",
    "datacenter",
    "default_intention_policy",
    "domain",
    "enable_local_script_checks",
    "enable_script_checks",
    "locality",
    "log_json",
    "log_level",
    "node_meta",
    "node_name",
    "proxy",
    "recursors",
    "service",
    "services",
    "unix_sockets",
];

/// Keys of Consul that change nothing about a server for tests.
const WITHOUT_EFFECT: [&str; 61] = [
    "auto_config",
    "auto_encrypt",
    "auto_reload_config",
    "autopilot",
    "bootstrap",
    "ca_file",
    "ca_path",
    "cache",
    "cert_file",
    "check_output_max_size",
    "check_update_interval",
    "cloud",
    "config_entries",
    "connect",
    "default_query_time",
    "disable_anonymous_signature",
    "disable_coordinates",
    "disable_host_node_id",
    "disable_http_unprintable_char_filter",
    "disable_keyring_file",
    "disable_remote_exec",
    "disable_update_check",
    "discard_check_output",
    "discovery_max_stale",
    "enable_agent_tls_for_checks",
    "enable_central_service_config",
    "enable_debug",
    "enable_syslog",
    "encrypt",
    "encrypt_verify_incoming",
    "encrypt_verify_outgoing",
    "experiments",
    "gossip_lan",
    "gossip_wan",
    "http_config",
    "key_file",
    "leave_on_terminate",
    "license_path",
    "limits",
    "log_file",
    "max_query_time",
    "node_id",
    "peering",
    "performance",
    "pid_file",
    "primary_datacenter",
    "raft_logstore",
    "raft_protocol",
    "reconnect_timeout",
    "reporting",
    "rpc",
    "segments",
    "server",
    "session_ttl_min",
    "skip_leave_on_interrupt",
    "telemetry",
    "translate_wan_addrs",
    "ui",
    "ui_config",
    "use_streaming_backend",
    "watches",
];

/// Listeners that Consul has and Hawser has not.
const OTHER_PORTS: [&str; 7] = [
    "expose_max_port",
    "expose_min_port",
    "grpc",
    "grpc_tls",
    "proxy_max_port",
    "serf_lan",
    "serf_wan",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_test_harnesses_write_is_understood() {
        let cases = [
            // given, kept, ignored
            (
                json!({"ports": {"https": -1, "dns": -1, "grpc_tls": -1, "http": 8501},
                       "performance": {"raft_multiplier": 1}, "enable_script_checks": true}),
                json!({"ports": {"https": -1, "dns": -1, "http": 8501},
                       "enable_script_checks": true}),
                vec!["performance", "ports.grpc_tls"],
            ),
            (
                json!({"tls": {"defaults": {"ca_file": "a", "verify_outgoing": true},
                               "internal_rpc": {"verify_server_hostname": true}}}),
                json!({"tls": {"defaults": {"ca_file": "a"}}}),
                vec!["tls.defaults.verify_outgoing", "tls.internal_rpc"],
            ),
            (
                json!({"acl": {"enabled": true, "tokens": {"initial_management": "x"}}}),
                json!({"acl": {"enabled": true, "tokens": {"initial_management": "x"}}}),
                vec![],
            ),
            (
                json!({"node_name": "n", "addresses": {"http": "127.0.0.2"}, "bootstrap": true}),
                json!({"node_name": "n", "addresses": {"http": "127.0.0.2"}}),
                vec!["bootstrap"],
            ),
            (
                json!({"client_addr": "127.0.0.1 ::1", "dns_config": {"only_passing": true,
                       "allow_stale": true}}),
                json!({"client_addr": "127.0.0.1", "dns_config": {"only_passing": true}}),
                vec!["dns_config.allow_stale"],
            ),
        ];
        for (given, kept, ignored) in cases {
            let Translated { value, ignored: mut found } =
                translate(given.clone()).expect("understood");
            found.sort();
            assert_eq!((value, found), (kept, ignored.iter().map(ToString::to_string).collect()));
        }
    }

    #[test]
    fn what_consul_would_refuse_is_refused_by_its_name() {
        for (given, named) in [
            (json!({"node_nam": "n"}), "node_nam"),
            (json!({"ports": {"htp": 1}}), "ports.htp"),
            (json!({"ports": {"https": 70_000}}), "ports.https"),
            (json!({"ports": 1}), "ports"),
            (json!({"client_addr": 1}), "client_addr"),
            (json!([]), "keys and values"),
        ] {
            let refused = translate(given.clone()).err().expect("refused").to_string();
            assert!(refused.contains(named), "{given}: {refused}");
        }
    }
}
