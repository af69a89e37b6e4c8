//! A server, agents with an instance of `api` each, and the agent of `web`, which calls them.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::app::App;
use super::load::Load;
use crate::harness::{Net, Process, eventually, get, get_json, request};

pub(super) struct Scene {
    pub(super) runtime: Runtime,
    pub(super) apps: Vec<App>,
    /// The agents of the applications, in their order.
    pub(super) agents: Vec<Process>,
    _caller: Process,
    _server: Process,
    /// Last: its folder holds what the processes logged.
    net: Net,
}

impl Scene {
    /// With the `apps`, and what `service-defaults` of `api` say besides.
    pub(super) fn new(runtime: Runtime, apps: Vec<App>, defaults: &Value) -> Self {
        let net = Net::new();
        let server = net.server(1, 1, json!({ "default_intention_policy": "allow" }));
        let mut entry = json!({ "Kind": "service-defaults", "Name": "api", "Protocol": "http" });
        let fields = entry.as_object_mut().expect("an object");
        fields.extend(
            defaults.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())),
        );
        eventually("the entry to be written", || {
            let reply = request(net.http(1), "PUT", "/v1/config", Some(&entry))?;
            (reply.status == 200).then_some(())
        });
        let agents = (FIRST..).zip(&apps).map(|(n, app)| net.agent(n, 1, instance(app))).collect();
        let caller = CALLER;
        let upstream = json!({
            "destination_name": "api",
            "local_bind_address": net.address(caller),
            "local_bind_port": UPSTREAM,
        });
        let web = json!({ "service": { "name": "web", "connect": { "sidecar_service":
            { "proxy": { "upstreams": [upstream] } } } } });
        let caller = net.agent(caller, 1, web);
        let scene = Self { runtime, apps, agents, _caller: caller, _server: server, net };
        scene.await_all();
        scene
    }

    /// Waits until every instance answers.
    pub(super) fn await_all(&self) {
        let to = self.upstream();
        for app in &self.apps {
            eventually("the instance to be used", || {
                get(to, "/").filter(|reply| reply.status == 200 && reply.body == app.name)
            });
        }
    }

    /// How many instances the catalog says are well.
    pub(super) fn passing(&self) -> usize {
        let found = get_json(self.net.http(1), "/v1/health/service/api?passing");
        found.and_then(|found| found.as_array().map(Vec::len)).unwrap_or_default()
    }

    pub(super) fn upstream(&self) -> SocketAddr {
        format!("{}:{UPSTREAM}", self.net.address(CALLER)).parse().expect("an address")
    }

    pub(super) fn load(&self, path: &'static str, rate: u32) -> Load {
        Load::start(&self.runtime, self.upstream(), path, rate)
    }
}

/// What an application's agent is told of it.
fn instance(app: &App) -> Value {
    let check = json!({ "http": format!("http://{}/healthz", app.address), "interval": "1s" });
    json!({ "service": {
        "name": "api", "id": app.name, "port": app.address.port(), "check": check,
        "connect": { "sidecar_service": { "proxy":
            { "local_service_address": app.address.ip() } } },
    } })
}

const FIRST: u8 = 2;
const CALLER: u8 = 9;
const UPSTREAM: u16 = 9191;
