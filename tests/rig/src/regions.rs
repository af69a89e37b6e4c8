//! Three peered clusters in three regions, joined by a router that can be cut.
//!
//! Each region is a bridge with a network of its own. `e` (east) has the caller: `web` on `ew` with
//! the upstream `api` on 127.0.0.1:5001. Every region has one server (`es`, `ws`, `ns`), a host
//! with two instances of `api` (`ea`, `wa`, `na`: nginx), and mesh gateways (`eg`; `wg` and `wh`;
//! `ng` and `nh`). Between regions the router passes nothing but what is for gateways and servers,
//! so an instance of another region can be reached through a gateway alone.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::application;
use crate::cluster::{API_UPSTREAM, Reply, api, ask, secret};
use crate::net::{Host, Net, REGION_HOSTS as HOSTS, ROOT, ROUTER, bridge, ip, stand};
use crate::process::{Process, told};
use crate::wait::wait_for;

/// One region with its cluster.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Its name, and what the others call its cluster.
    pub name: &'static str,
    /// The first letter of its hosts.
    letter: char,
    /// The third octet of its network.
    network: u8,
    /// Its mesh gateways.
    pub gateways: &'static [&'static str],
}

impl Region {
    /// The host of this region whose name ends with `role`: `s`, `a`, `g`, `h` or `w`.
    ///
    /// # Errors
    /// There is none.
    pub fn host(&self, role: char) -> Result<Host> {
        host(&format!("{}{role}", self.letter))
    }

    fn cable(&self) -> String {
        format!("hw-rtr-{}", self.letter)
    }

    /// Cuts the region off from the others. Nobody is told: packets are lost.
    ///
    /// # Errors
    /// The regions are not standing.
    pub fn cut(&self) -> Result<()> {
        ip(&["-n", ROOT, "link", "set", &self.cable(), "down"])
    }

    /// Joins the region to the others again.
    ///
    /// # Errors
    /// The regions are not standing.
    pub fn join(&self) -> Result<()> {
        ip(&["-n", ROOT, "link", "set", &self.cable(), "up"])
    }
}

/// The standing regions. Dropping it ends all of it; its folder stays.
pub struct Regions {
    binary: PathBuf,
    folder: PathBuf,
    processes: BTreeMap<String, Process>,
    net: Net,
}

impl Regions {
    /// Builds the regions, peers east with the two others, exports `api` to it, and waits until
    /// `web` reaches its own region's `api` and knows those of the others.
    ///
    /// # Errors
    /// Anything that does not start, with what it printed.
    pub fn start(binary: PathBuf, folder: PathBuf) -> Result<Self> {
        let net = Net::empty()?;
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
        let mut regions = Self { binary, folder, processes: BTreeMap::new(), net };
        let built = regions.furnish();
        if built.is_err() {
            regions.tell_logs();
        }
        built.map(|()| regions)
    }

    fn furnish(&mut self) -> Result<()> {
        build_network()?;
        for region in REGIONS {
            self.write_server(&region)?;
            self.start_hawser(region.host('s')?.name)?;
        }
        for region in REGIONS {
            self.furnish_region(&region)?;
        }
        let east = REGIONS[0];
        for region in &REGIONS[1..] {
            self.peer(&east, region)?;
            let server = region.host('s')?.name;
            let export = ["services", "export", "-name", "api", "-consumer-peers", east.name];
            self.hawser(server, &export)?;
            self.hawser(server, &["intention", "create", "-allow", "peer:east/web", "api"])?;
        }
        self.intend(&east, "web", "api", "allow")?;
        for region in &REGIONS[1..] {
            self.await_imported("ew", region.name, 2)?;
            self.await_round_trip(east.host('s')?.name, region.name)?;
        }
        wait_for("web to reach api", STARTED, || {
            let body = self.through("/")?;
            ensure!(body.starts_with("e-api"), "answered by {body}");
            Ok(())
        })?;
        Ok(())
    }

    fn furnish_region(&mut self, region: &Region) -> Result<()> {
        let server = region.host('s')?;
        wait_for("a leader", STARTED, || {
            let told = self.get(server.name, "/v1/status/leader")?;
            ensure!(told.as_str().is_some_and(|leader| !leader.is_empty()), "{told}");
            Ok(())
        })?;
        let host = region.host('a')?;
        for (number, port) in [(1, 8080), (2, 8081)] {
            self.start_api(region, number, port)?;
        }
        let id = |number: u8| format!("{}-api-{number}", region.letter);
        let services = json!({ "services": [api(&id(1), 8080), api(&id(2), 8081)] });
        self.write_agent(region, host, "", Some(&services))?;
        self.start_hawser(host.name)?;
        for gateway in region.gateways {
            let gateway = self::host(gateway)?;
            self.write_agent(region, gateway, "mesh_gateway {}\n", None)?;
            self.start_hawser(gateway.name)?;
        }
        if region.letter == 'e' {
            let host = region.host('w')?;
            self.processes.insert(
                "web".into(),
                application::python(host, "web-1", 8000, &self.folder.join("web"))?,
            );
            self.write_agent(region, host, "", Some(&web()))?;
            self.start_hawser(host.name)?;
        }
        Ok(())
    }

    /// Starts the instance `number` of `api` in `region`, anew if it was killed.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_api(&mut self, region: &Region, number: u8, port: u16) -> Result<()> {
        let name = format!("{}-api-{number}", region.letter);
        let folder = self.folder.join(&name);
        let process = application::nginx(region.host('a')?, &name, port, &folder)?;
        self.processes.insert(name, process);
        Ok(())
    }

    /// Starts the server or agent of that host, anew if it ended, on the data it left.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_hawser(&mut self, name: &str) -> Result<()> {
        let mut command = host(name)?.command(&self.binary);
        let role = if name.ends_with('s') { "server" } else { "agent" };
        let folder = self.folder.join(name);
        command.arg(role).arg("--config-dir").arg(folder.join("config"));
        command.env("RUST_BACKTRACE", "1").current_dir(&folder);
        let process = Process::spawn(name, command, &folder.join("hawser.log"))?;
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    /// The running program of that name: a host's Hawser, or `e-api-1` and the like.
    ///
    /// # Errors
    /// There is none.
    pub fn process(&mut self, name: &str) -> Result<&mut Process> {
        self.processes.get_mut(name).with_context(|| format!("no process {name:?}"))
    }

    /// The network that the regions stand on.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// A folder of that host's own.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// One HTTP request by `curl` from `web` through its upstream `api`; the answer must be 200.
    ///
    /// # Errors
    /// It is not, or there is none within 5 s.
    pub fn through(&self, path: &str) -> Result<String> {
        let reply = self.answer(path)?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
        Ok(reply.body)
    }

    /// What one HTTP request from `web` through its upstream `api` is answered.
    ///
    /// # Errors
    /// There is no answer within 5 s.
    pub fn answer(&self, path: &str) -> Result<Reply> {
        let url = format!("http://127.0.0.1:{API_UPSTREAM}{path}");
        ask(host("ew")?, "GET", &url, b"", ASK)
    }

    /// Asks the HTTP API of a host.
    ///
    /// # Errors
    /// No answer within 5 s.
    pub fn ask(&self, name: &str, method: &str, path: &str, body: &Value) -> Result<Reply> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let url = format!("http://127.0.0.1:8500{path}");
        ask(host(name)?, method, &url, body.as_bytes(), ASK)
    }

    /// `GET` on the HTTP API of a host, parsed.
    ///
    /// # Errors
    /// No answer within 5 s, a status that is not 2xx, or no JSON.
    pub fn get(&self, name: &str, path: &str) -> Result<Value> {
        self.ask(name, "GET", path, &Value::Null)?.json()
    }

    /// The metrics of a host's agent, as Prometheus reads them.
    ///
    /// # Errors
    /// No answer within 5 s.
    pub fn metrics(&self, name: &str) -> Result<String> {
        let path = "/v1/agent/metrics?format=prometheus";
        Ok(self.ask(name, "GET", path, &Value::Null)?.body)
    }

    /// Runs `hawser` on a host with the arguments given, against that host's own API.
    ///
    /// # Errors
    /// It fails or takes longer than 5 s.
    pub fn hawser(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut command = host(name)?.command(&self.binary);
        command.args(arguments);
        told(command, ASK)
    }

    /// Peers two clusters as `docs/regions.md` says: a token of `there` taken up in `here`.
    fn peer(&self, here: &Region, there: &Region) -> Result<()> {
        let (ours, theirs) = (here.host('s')?, there.host('s')?);
        let token = self.hawser(theirs.name, &["peering", "generate-token", "-name", here.name])?;
        let file = self.folder.join(format!("token-of-{}", there.name));
        secret(&file, &token)?;
        let token = format!("@{}", file.display());
        let establish = ["peering", "establish", "-name", there.name, "-peering-token", &token];
        self.hawser(ours.name, &establish)?;
        for (name, peer) in [(ours.name, there.name), (theirs.name, here.name)] {
            self.await_peer(name, peer, "ACTIVE")?;
        }
        Ok(())
    }

    /// Waits until the server on host `name` says that `peer` is in `state`; how long that took.
    ///
    /// # Errors
    /// It does not within a minute.
    pub fn await_peer(&self, name: &str, peer: &str, state: &str) -> Result<Duration> {
        let waited = wait_for(format_args!("{peer} to be {state} at {name}"), STARTED, || {
            let told = self.get(name, &format!("/v1/peering/{peer}"))?;
            ensure!(told["State"] == state, "{told}");
            Ok(())
        })?;
        Ok(waited.1)
    }

    /// Waits until the server `name` knows how far `peer` is: peers that export the same are
    /// ordered by it.
    fn await_round_trip(&self, name: &str, peer: &str) -> Result<()> {
        wait_for(format_args!("{name} to know how far {peer} is"), STARTED, || {
            let told = self.get(name, &format!("/v1/peering/{peer}"))?;
            ensure!(told["RoundTripMS"].as_u64().is_some_and(|millis| millis > 0), "{told}");
            Ok(())
        })?;
        Ok(())
    }

    /// Exports exactly `services` of `region` to east.
    ///
    /// # Errors
    /// Its server does not take it.
    pub fn export(&self, region: &Region, services: &[&str]) -> Result<()> {
        let service = |name: &&str| json!({ "Name": name, "Consumers": [{ "Peer": "east" }] });
        let services: Vec<Value> = services.iter().map(service).collect();
        let entry = json!({ "Kind": "exported-services", "Name": "default", "Services": services });
        let reply = self.ask(region.host('s')?.name, "PUT", "/v1/config", &entry)?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
        Ok(())
    }

    /// Writes the intention `source` → `destination` in `region`.
    ///
    /// # Errors
    /// Its server does not take it.
    pub fn intend(&self, region: &Region, source: &str, to: &str, action: &str) -> Result<()> {
        let path = format!("/v1/connect/intentions/exact?source={source}&destination={to}");
        let body = json!({ "SourceType": "consul", "Action": action });
        let reply = self.ask(region.host('s')?.name, "PUT", &path, &body)?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
        Ok(())
    }

    /// Waits until `instances` healthy ones of the `api` of `peer` are known on host `name`.
    ///
    /// # Errors
    /// They are not within a minute.
    pub fn await_imported(&self, name: &str, peer: &str, instances: usize) -> Result<()> {
        let path = format!("/v1/health/service/api?passing&peer={peer}");
        wait_for(format_args!("{instances} api of {peer}"), STARTED, || {
            let told = self.get(name, &path)?;
            let found = told.as_array().map_or(0, Vec::len);
            if found == instances { Ok(()) } else { bail!("{found} pass: {told}") }
        })?;
        Ok(())
    }

    /// Prints the ends of all logs to standard error.
    pub fn tell_logs(&self) {
        self.processes.values().for_each(Process::tell);
    }

    fn write_server(&self, region: &Region) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.arg("keygen");
        let key = told(command, ASK)?;
        let host = region.host('s')?;
        let folder = self.folder.join(host.name);
        fs::create_dir_all(folder.join("config"))?;
        let key_file = folder.join("operator.key");
        secret(&key_file, &key)?;
        let text = format!(
            r#"bootstrap_expect = 1
operator_key_file = {key_file:?}
default_intention_policy = "deny"
{}"#,
            self.common(region, host),
        );
        fs::write(folder.join("config/server.hcl"), text)?;
        Ok(())
    }

    fn write_agent(
        &self,
        region: &Region,
        host: Host,
        more: &str,
        services: Option<&Value>,
    ) -> Result<()> {
        let folder = self.folder.join(host.name);
        fs::create_dir_all(folder.join("config"))?;
        let server = region.host('s')?;
        let mut command = server.command(&self.binary);
        command.args(["token", "create", "--node", host.name]);
        let token_file = folder.join("join.token");
        secret(&token_file, told(command, ASK)?.trim())?;
        let access = folder.join("access.log");
        let text = format!(
            r#"retry_join = ["{}"]
join_token_file = {token_file:?}
access_log = {access:?}
{more}{}"#,
            server.address,
            self.common(region, host),
        );
        fs::write(folder.join("config/agent.hcl"), text)?;
        if let Some(services) = services {
            fs::write(folder.join("config/services.json"), services.to_string())?;
        }
        Ok(())
    }

    /// What the configuration of every host has.
    fn common(&self, region: &Region, host: Host) -> String {
        format!(
            r#"node_name = "{name}"
datacenter = "{region}"
data_dir = {data:?}
bind_addr = "{address}"
advertise_addr = "{address}"
client_addr = "127.0.0.1"
locality {{
  region = "{region}"
}}
"#,
            name = host.name,
            region = region.name,
            data = self.folder.join(host.name).join("data"),
            address = host.address,
        )
    }
}

/// Bridges, hosts and the router between them.
fn build_network() -> Result<()> {
    ip(&["netns", "add", ROUTER])?;
    for region in REGIONS {
        let name = format!("hwbr-{}", region.letter);
        bridge(&name)?;
        let (cable, inside) = (region.cable(), format!("eth-{}", region.letter));
        let link = ["-n", ROOT, "link", "add", &cable, "type", "veth"];
        ip(&[&link[..], &["peer", "name", &inside, "netns", ROUTER][..]].concat())?;
        ip(&["-n", ROOT, "link", "set", &cable, "master", &name, "up"])?;
        let router = Ipv4Addr::new(10, 81, region.network, 254);
        let address = format!("{router}/24");
        ip(&["-n", ROUTER, "address", "add", &address, "dev", &inside])?;
        ip(&["-n", ROUTER, "link", "set", &inside, "up"])?;
        for host in HOSTS.iter().filter(|host| host.name.starts_with(region.letter)) {
            stand(host, &name)?;
            ip(&["-n", &host.namespace(), "route", "add", "default", "via", &router.to_string()])?;
        }
    }
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{ROUTER}")).args(["--", "sh", "-ec", PASSED]);
    told(command, ASK).context("setting up the router")?;
    Ok(())
}

fn host(name: &str) -> Result<Host> {
    let known = HOSTS.iter().copied().find(|host| host.name == name);
    known.with_context(|| format!("no host {name:?} in any region"))
}

fn web() -> Value {
    json!({ "services": [{
        "name": "web", "id": "web-1", "port": 8000, "protocol": "http",
        "connect": { "sidecar_service": { "proxy": { "upstreams": [
            { "destination_name": "api", "local_bind_port": API_UPSTREAM },
        ] } } },
    }] })
}

/// East, which calls, and the two that stand in for it.
pub const REGIONS: [Region; 3] = [
    Region { name: "east", letter: 'e', network: 1, gateways: &["eg"] },
    Region { name: "west", letter: 'w', network: 2, gateways: &["wg", "wh"] },
    Region { name: "north", letter: 'n', network: 3, gateways: &["ng", "nh"] },
];

/// The router forwards new connections to gateways and servers only.
const PASSED: &str = r#"
echo 1 > /proc/sys/net/ipv4/ip_forward
nft add table ip hawser
nft 'add chain ip hawser forward { type filter hook forward priority 0; policy drop; }'
nft add rule ip hawser forward ct state established,related accept
nft add rule ip hawser forward tcp dport '{ 8300, 8443 }' accept
"#;

const STARTED: Duration = Duration::from_secs(60);
const ASK: Duration = Duration::from_secs(5);
