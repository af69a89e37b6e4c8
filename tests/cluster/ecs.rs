//! An agent as the sidecar of an ECS task, with the task's metadata played on loopback.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use hawser_rig::metadata::{Metadata, task};
use serde_json::{Value, json};

use crate::harness::{Net, eventually, get_json, hawser, request};

/// The endpoint of a task whose containers share `address`, and whose application runs well.
fn metadata(address: &str) -> Metadata {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = address.parse().expect("an address");
    Metadata::serve(listener, task(TASK, "Web_Shop", address)).expect("bound")
}

/// A sidecar that runs, configured by its environment alone; killed when it goes out of scope.
struct Sidecar {
    child: Child,
    http: SocketAddr,
}

impl Sidecar {
    fn start(net: &Net, metadata: &Metadata, token: &str) -> Self {
        let address = net.address(2);
        let config = json!({
            "data_dir": net.folder().join("task"),
            "bind_addr": address,
            "client_addr": address,
            "retry_join": [net.address(1)],
            "proxy": { "workers": 1 },
            "ecs": { "stop_timeout": "30s" },
        });
        let child = Command::new(env!("CARGO_BIN_EXE_hawser"))
            .arg("agent")
            .env("ECS_CONTAINER_METADATA_URI_V4", metadata.uri())
            .env("HAWSER_ECS_METADATA_LOOPBACK", "1")
            .env("HAWSER_CONFIG_JSON", config.to_string())
            .env("HAWSER_JOIN_TOKEN", token)
            .env("HAWSER_SERVICE_PORT", "9000")
            .env("HAWSER_LOG", "warn,hawser=info,hawser_agent=info")
            .stdin(Stdio::null())
            .stderr(log(net))
            .spawn()
            .expect("the binary runs");
        Self { child, http: net.http(2) }
    }

    /// What `hawser health`, the task definition's health check, ends with.
    fn is_ready(&self) -> bool {
        let health = Command::new(env!("CARGO_BIN_EXE_hawser"))
            .args(["health", &format!("--http-addr={}", self.http)])
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs");
        health.status.success()
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    fn has_ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("waited for")
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // One that has ended already cannot be killed again, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn log(net: &Net) -> std::fs::File {
    std::fs::File::create(net.folder().join("task.log")).expect("a log file")
}

fn token(net: &Net) -> String {
    let body = json!({ "Node": format!("ecs-{TASK}"), "TTL": "60s" });
    let reply = eventually("a join token", || {
        let reply = request(net.http(1), "PUT", "/v1/hawser/join-token", Some(&body))?;
        (reply.status == 200).then_some(reply)
    });
    let value: Value = serde_json::from_str(&reply.body).expect("JSON");
    value["Token"].as_str().expect("a token").to_owned()
}

/// The instances of the task's service that the catalog has, passing or all.
fn instances(net: &Net, only: &str) -> Option<Vec<Value>> {
    let found = get_json(net.http(1), &format!("/v1/health/service/web-shop{only}"))?;
    found.as_array().cloned()
}

fn until_passing(net: &Net, count: usize, what: &str) {
    eventually(what, || instances(net, "?passing").filter(|all| all.len() == count));
}

#[test]
fn a_task_joins_follows_its_containers_and_outlives_its_application() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({}));
    let metadata = metadata(&net.address(2));
    let token = token(&net);
    let mut sidecar = Sidecar::start(&net, &metadata, &token);
    eventually("the sidecar to be ready", || sidecar.is_ready().then_some(()));

    let all =
        eventually("the task's instance", || instances(&net, "").filter(|all| all.len() == 1));
    assert_eq!(all[0]["Service"]["ID"], format!("web-shop-{TASK}"));
    assert_eq!(all[0]["Service"]["Port"], 9000);
    let node = &all[0]["Node"];
    assert_eq!(node["Node"], format!("ecs-{TASK}"));
    assert_eq!(node["Address"], net.address(2));
    assert_eq!(node["Meta"]["family"], "Web_Shop", "{node}");
    assert_eq!(node["Locality"], json!({ "Region": "eu-west-1", "Zone": "eu-west-1b" }), "{node}");
    assert_eq!(instances(&net, "?passing").expect("an answer").len(), 0, "nothing is known yet");

    metadata.tell("/Containers/1/Health/status", "HEALTHY");
    until_passing(&net, 1, "the healthy application to pass");
    metadata.tell("/Containers/1/Health/status", "UNHEALTHY");
    until_passing(&net, 0, "the unhealthy application to turn critical");
    metadata.tell("/Containers/1/Health/status", "HEALTHY");
    until_passing(&net, 1, "the application to recover");

    sidecar.terminate();
    eventually("the task to leave the catalog", || instances(&net, "").filter(Vec::is_empty));
    assert!(!sidecar.is_ready(), "no application may start beside a sidecar that stops");
    assert!(sidecar.has_ended().is_none(), "the application still runs: its proxy stays");
    metadata.tell("/Containers/1/KnownStatus", "STOPPED");
    let ended = eventually("the sidecar to end", || sidecar.has_ended());
    assert!(ended.success(), "{ended}");
    let log = std::fs::read_to_string(net.folder().join("task.log")).expect("a log");
    assert!(!log.contains(&token), "the token is a secret");
    assert!(!log.contains("still runs"), "{log}");
}

#[test]
fn a_task_that_ecs_stops_leaves_before_it_is_signalled() {
    let net = Net::new();
    let _server = net.server(1, 1, json!({}));
    let metadata = metadata(&net.address(2));
    metadata.tell("/Containers/1/Health/status", "HEALTHY");
    let mut sidecar = Sidecar::start(&net, &metadata, &token(&net));
    until_passing(&net, 1, "the healthy application to pass");
    metadata.tell("/DesiredStatus", "STOPPED");
    eventually("the task to leave the catalog", || instances(&net, "").filter(Vec::is_empty));
    assert!(sidecar.has_ended().is_none(), "the application still runs: its proxy stays");
    metadata.tell("/Containers/1/KnownStatus", "STOPPED");
    let ended = eventually("the sidecar to end", || sidecar.has_ended());
    assert!(ended.success(), "{ended}");
}

#[test]
fn metadata_is_asked_for_nowhere_else_than_ecs_puts_it() {
    let net = Net::new();
    let cases = [
        ("http://10.0.0.1/v4/id", "no task metadata endpoint"),
        ("http://127.0.0.1:1/v4/id", "no task metadata endpoint"),
    ];
    for (uri, part) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_hawser"))
            .args(["agent", "--data-dir"])
            .arg(net.folder())
            .env("ECS_CONTAINER_METADATA_URI_V4", uri)
            .stdin(Stdio::null())
            .output()
            .expect("the binary runs");
        assert!(!output.status.success(), "{uri}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(part) && said.contains("ECS_CONTAINER_METADATA_URI_V4"), "{said}");
    }
}

#[test]
fn the_guide_counts_its_steps_and_its_configurations_are_valid() {
    let counted = |before: &str, heading: &str| {
        let section = GUIDE.split("\n## ").find(|section| section.starts_with(heading));
        let lines = section.expect("a section").lines();
        let steps = lines.filter_map(|line| line.strip_prefix(before));
        steps.filter(|step| step.starts_with(|first: char| first.is_ascii_digit())).count()
    };
    assert_eq!(counted("", "With Terraform, in six steps"), 6);
    assert_eq!(counted("### ", "By hand, in five steps"), 5);

    let net = Net::new();
    let block = |fence: &str| {
        let rest = GUIDE.split_once(fence).expect("a block").1;
        rest.split_once("\n```").expect("its end").0.to_owned()
    };
    let containers: Value =
        serde_json::from_str(&format!("[{}]", block("```json\n"))).expect("JSON");
    let sidecar = containers[0]["environment"][0]["value"].as_str().expect("a configuration");
    let pin = hawser(&["pin", net.operator_key().to_str().expect("UTF-8")]).stdout;
    for (name, text) in [("server.hcl", block("```hcl\n")), ("sidecar.json", sidecar.to_owned())] {
        let path = net.folder().join(name);
        std::fs::write(&path, text).expect("written");
        let told = Command::new(env!("CARGO_BIN_EXE_hawser"))
            .arg("validate")
            .arg(path)
            .env("HAWSER_SERVER_PIN", String::from_utf8_lossy(&pin).trim())
            .output()
            .expect("the binary runs");
        assert!(told.status.success(), "{name}: {}", String::from_utf8_lossy(&told.stderr));
    }
}

const GUIDE: &str = include_str!("../../docs/ecs.md");
const TASK: &str = "e9028f8d5d8e4f258373e7b93ce9a3c3";
