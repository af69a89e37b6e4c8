//! The whole scene: three servers, three agents, and the applications they carry.
//!
//! `web` (Python) runs on a1 and has the upstreams `api` on 127.0.0.1:5001 and `db` on
//! 127.0.0.1:5433. `api` (nginx) has three instances: api-1 on a2, api-2 and api-3 on a3. `db`
//! (PostgreSQL) runs on a3. `cron` on a2 has the upstream `api` too, and no intention allows it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::application;
use crate::net::{Host, Net};
use crate::process::{Process, finish, told};
use crate::wait::wait_for;

/// What to set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `hawser` to run.
    pub binary: PathBuf,
    /// Where configuration, data and logs go; made anew.
    pub folder: PathBuf,
    /// Whether PostgreSQL is wanted; it takes some seconds.
    pub postgres: bool,
}

/// A standing scene. Dropping it ends all of it; its folder stays.
pub struct Cluster {
    options: Options,
    /// Everything that runs, by name: `s1`, `a1`, `api-1`, `postgres`, `web-1` …
    processes: BTreeMap<String, Process>,
    net: Net,
}

/// What an HTTP request was answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Errors
    /// The status is not 2xx or the body is not JSON.
    pub fn json(&self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "status {}: {}", self.status, self.body);
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }
}

impl Cluster {
    /// Builds the scene and waits until `web` reaches `api` (and `db`) through the mesh.
    ///
    /// # Errors
    /// Anything that does not start, with what it printed.
    pub fn start(options: Options) -> Result<Self> {
        Self::bare(options)?.built(Self::furnish)
    }

    /// The three servers, and the other hosts with nothing on them.
    ///
    /// # Errors
    /// Anything that does not start, with what it printed.
    pub fn servers(options: Options) -> Result<Self> {
        Self::bare(options)?.built(Self::serve)
    }

    fn built(mut self, build: impl FnOnce(&mut Self) -> Result<()>) -> Result<Self> {
        let built = build(&mut self);
        if built.is_err() {
            self.tell_logs();
        }
        built.map(|()| self)
    }

    /// The hosts alone, with nothing on them.
    ///
    /// # Errors
    /// Not root, or the hosts cannot be built.
    pub fn bare(options: Options) -> Result<Self> {
        let net = Net::build()?;
        if options.folder.exists() {
            fs::remove_dir_all(&options.folder)?;
        }
        fs::create_dir_all(&options.folder)?;
        // PostgreSQL's user has to reach its folder below.
        fs::set_permissions(&options.folder, fs::Permissions::from_mode(0o755))?;
        Ok(Self { options, processes: BTreeMap::new(), net })
    }

    fn serve(&mut self) -> Result<()> {
        self.write_servers()?;
        for server in SERVERS {
            self.start_hawser(server)?;
        }
        self.await_leader(SERVERS[0], STARTED)?;
        Ok(())
    }

    fn furnish(&mut self) -> Result<()> {
        self.serve()?;
        self.start_applications()?;
        for agent in AGENTS {
            self.write_agent(agent)?;
            self.start_hawser(agent)?;
        }
        self.intend("web", "api", "allow")?;
        self.intend("web", "db", "allow")?;
        let wanted: &[(&str, usize)] = if self.options.postgres {
            &[("api", 3), ("web", 1), ("db", 1)]
        } else {
            &[("api", 3), ("web", 1)]
        };
        for (service, instances) in wanted {
            self.await_healthy("a1", service, *instances, STARTED)?;
        }
        self.await_carried("a1", API_UPSTREAM, STARTED)?;
        if self.options.postgres {
            let host = Host::named("a1")?;
            wait_for("psql through the mesh", STARTED, || {
                application::psql(host, DB_UPSTREAM, "select 1")
            })?;
        }
        Ok(())
    }

    /// Starts the server or agent of that host, anew if it ended, on the data it left.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_hawser(&mut self, name: &str) -> Result<()> {
        let host = Host::named(name)?;
        let mut command = host.command(&self.options.binary);
        let role = if name.starts_with('s') { "server" } else { "agent" };
        command.arg(role).arg("--config-dir").arg(self.folder(name).join("config"));
        command.env("RUST_BACKTRACE", "1").current_dir(self.folder(name));
        let process = Process::spawn(name, command, &self.log(name))?;
        self.processes.insert(name.to_owned(), process);
        Ok(())
    }

    /// The running program of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn process(&mut self, name: &str) -> Result<&mut Process> {
        self.processes.get_mut(name).with_context(|| format!("no process {name:?}"))
    }

    /// The `hawser` that runs here.
    #[must_use]
    pub fn binary(&self) -> &Path {
        &self.options.binary
    }

    /// The hosts' network.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Leaves everything running when this value goes, and says where its files are.
    pub fn leave(mut self) -> PathBuf {
        self.net.keep();
        for process in std::mem::take(&mut self.processes).into_values() {
            // Its destructor would end it.
            std::mem::forget(process);
        }
        self.options.folder.clone()
    }

    /// A folder of that host's own.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.options.folder.join(name)
    }

    /// Where that server or agent logs.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder(name).join("hawser.log")
    }

    /// The access log lines of an agent so far, each parsed.
    ///
    /// # Errors
    /// A line is not JSON.
    pub fn access(&self, agent: &str) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.folder(agent).join("access.log")).unwrap_or_default();
        // A last line without its end is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// Runs `hawser` on a host with the arguments given, against that host's own API.
    ///
    /// # Errors
    /// It fails or takes longer than 20 s.
    pub fn hawser(&self, host: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Host::named(host)?.command(&self.options.binary);
        command.args(arguments);
        told(command, COMMAND)
    }

    /// Asks the HTTP API of a host; gives up after `limit`.
    ///
    /// # Errors
    /// No answer within the limit.
    pub fn ask(
        &self,
        host: &str,
        method: &str,
        path: &str,
        body: &[u8],
        limit: Duration,
    ) -> Result<Reply> {
        ask(Host::named(host)?, method, &format!("http://127.0.0.1:8500{path}"), body, limit)
    }

    /// `GET` on the HTTP API of a host, parsed.
    ///
    /// # Errors
    /// No answer within 5 s, a status that is not 2xx, or no JSON.
    pub fn get(&self, host: &str, path: &str) -> Result<Value> {
        self.ask(host, "GET", path, b"", ASK)?.json()
    }

    /// `PUT` of a JSON body on the HTTP API of a host.
    ///
    /// # Errors
    /// No answer within 5 s or a status that is not 2xx.
    pub fn put(&self, host: &str, path: &str, body: &Value) -> Result<()> {
        let reply = self.ask(host, "PUT", path, body.to_string().as_bytes(), ASK)?;
        ensure!((200..300).contains(&reply.status), "{path}: {} {}", reply.status, reply.body);
        Ok(())
    }

    /// Writes the intention `source` → `destination` through the first server that takes it.
    ///
    /// # Errors
    /// None takes it.
    pub fn intend(&self, source: &str, destination: &str, action: &str) -> Result<()> {
        let path =
            format!("/v1/connect/intentions/exact?source={source}&destination={destination}");
        let body = json!({ "SourceType": "consul", "Action": action });
        let mut refusals = String::new();
        for server in SERVERS {
            match self.put(server, &path, &body) {
                Ok(()) => return Ok(()),
                Err(why) => write!(refusals, "\n{server}: {why:#}")?,
            }
        }
        bail!("{action} {source} -> {destination}:{refusals}")
    }

    /// The server that leads, as `server` sees it.
    ///
    /// # Errors
    /// It sees none.
    pub fn leader(&self, server: &str) -> Result<&'static str> {
        let told = self.get(server, "/v1/status/leader")?;
        let address = told.as_str().unwrap_or_default();
        SERVERS
            .into_iter()
            .find(|name| {
                Host::named(name)
                    .is_ok_and(|host| address.starts_with(&format!("{}:", host.address)))
            })
            .with_context(|| format!("{server} names the leader {told}"))
    }

    /// Waits until `server` sees a leader.
    ///
    /// # Errors
    /// It does not within `deadline`.
    pub fn await_leader(&self, server: &str, deadline: Duration) -> Result<&'static str> {
        Ok(wait_for("a leader", deadline, || self.leader(server))?.0)
    }

    /// Waits until exactly `instances` of `service` pass, as the API of `host` tells.
    ///
    /// # Errors
    /// They do not within `deadline`.
    pub fn await_healthy(
        &self,
        host: &str,
        service: &str,
        instances: usize,
        deadline: Duration,
    ) -> Result<()> {
        let path = format!("/v1/health/service/{service}?passing");
        wait_for(format_args!("{instances} healthy {service}"), deadline, || {
            let told = self.get(host, &path)?;
            let found = told.as_array().map_or(0, Vec::len);
            if found == instances { Ok(()) } else { bail!("{found} pass: {told}") }
        })?;
        Ok(())
    }

    /// Waits until an HTTP request to the upstream on that port is answered by its service.
    ///
    /// # Errors
    /// It is not within `deadline`.
    pub fn await_carried(&self, host: &str, port: u16, deadline: Duration) -> Result<Duration> {
        let waited =
            wait_for(format_args!("127.0.0.1:{port} on {host} to carry"), deadline, || {
                self.through(host, port, "/")
            })?;
        Ok(waited.1)
    }

    /// One HTTP request by `curl` through an upstream; the answer must be 200.
    ///
    /// # Errors
    /// It is not, or there is none within 2 s.
    pub fn through(&self, host: &str, port: u16, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{port}{path}");
        let reply = ask(Host::named(host)?, "GET", &url, b"", Duration::from_secs(2))?;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.body);
        Ok(reply.body)
    }

    /// The addresses that the DNS of `host` gives for `name`, each once, sorted.
    ///
    /// # Errors
    /// `dig` gets no answer within 3 s.
    pub fn dig(&self, host: &str, name: &str) -> Result<Vec<String>> {
        let arguments = ["@127.0.0.1", "-p", "8600", "+short", "+time=3", "+tries=1", name, "A"];
        let told = Host::named(host)?.run("dig", &arguments)?;
        let mut addresses: Vec<String> =
            told.lines().filter(|line| !line.starts_with(';')).map(str::to_owned).collect();
        addresses.sort();
        addresses.dedup();
        Ok(addresses)
    }

    /// Where the inbound mTLS listener of an instance of `service` on that host's address is.
    ///
    /// # Errors
    /// The catalog does not name one.
    pub fn mesh_port(&self, service: &str, host: &str) -> Result<u16> {
        let address = Host::named(host)?.address.to_string();
        let told = self.get("s1", &format!("/v1/health/connect/{service}"))?;
        let entries = told.as_array().cloned().unwrap_or_default();
        let at = |entry: &&Value| {
            entry["Node"]["Address"] == address.as_str()
                || entry["Service"]["Address"] == address.as_str()
        };
        let port = entries.iter().find(at).and_then(|entry| entry["Service"]["Port"].as_u64());
        let port =
            port.with_context(|| format!("no mesh port of {service} on {host} in {told}"))?;
        Ok(u16::try_from(port)?)
    }

    /// The Prometheus text of an agent.
    ///
    /// # Errors
    /// No answer, or not 200.
    pub fn metrics(&self, agent: &str) -> Result<String> {
        let reply = self.ask(agent, "GET", "/v1/agent/metrics?format=prometheus", b"", ASK)?;
        ensure!(reply.status == 200, "metrics: {} {}", reply.status, reply.body);
        Ok(reply.body)
    }

    /// Prints the last lines of every log, for a run that failed.
    #[allow(clippy::print_stderr, reason = "it is read by whoever sees the test fail")]
    pub fn tell_logs(&self) {
        eprintln!("files of this run: {}", self.options.folder.display());
        self.processes.values().for_each(Process::tell);
    }

    fn start_applications(&mut self) -> Result<()> {
        let (a1, a2, a3) = (Host::named("a1")?, Host::named("a2")?, Host::named("a3")?);
        self.keep_running(application::python(a1, "web-1", 8000, &self.folder("web-1"))?);
        for (host, name, port) in [(a2, "api-1", 8080), (a3, "api-2", 8080), (a3, "api-3", 8081)] {
            self.keep_running(application::nginx(host, name, port, &self.folder(name))?);
        }
        if self.options.postgres {
            self.keep_running(application::postgres(a3, 5432, &self.folder("postgres"))?);
        }
        Ok(())
    }

    /// Holds `process` by its name until the scene goes, and tells its log if the test fails.
    pub fn keep_running(&mut self, process: Process) {
        self.processes.insert(process.name().to_owned(), process);
    }

    /// Starts an `api` instance again after it was killed.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_api(&mut self, name: &str, host: &str, port: u16) -> Result<()> {
        let process = application::nginx(Host::named(host)?, name, port, &self.folder(name))?;
        self.keep_running(process);
        Ok(())
    }

    fn write_servers(&self) -> Result<()> {
        let mut command = Command::new(&self.options.binary);
        command.arg("keygen");
        let key = told(command, COMMAND)?;
        let others: Vec<String> = SERVERS
            .iter()
            .map(|name| Host::named(name).map(|host| format!("{:?}", host.address.to_string())))
            .collect::<Result<_>>()?;
        for name in SERVERS {
            let address = Host::named(name)?.address;
            let folder = self.folder(name);
            fs::create_dir_all(folder.join("config"))?;
            let key_file = folder.join("operator.key");
            secret(&key_file, &key)?;
            let data = folder.join("data");
            let text = format!(
                r#"node_name = "{name}"
datacenter = "dc1"
data_dir = {data:?}
bind_addr = "{address}"
advertise_addr = "{address}"
client_addr = "127.0.0.1"
bootstrap_expect = {count}
retry_join = [{others}]
operator_key_file = {key_file:?}
default_intention_policy = "deny"
ports {{
  http = 8500
  dns = 8600
  server = 8300
}}
"#,
                count = SERVERS.len(),
                others = others.join(", "),
            );
            fs::write(folder.join("config/server.hcl"), text)?;
        }
        Ok(())
    }

    /// An agent's configuration and a fresh join token for it.
    ///
    /// # Errors
    /// No server makes a token.
    pub fn write_agent(&self, name: &str) -> Result<()> {
        let host = Host::named(name)?;
        let folder = self.folder(name);
        fs::create_dir_all(folder.join("config"))?;
        let token = self.hawser(
            SERVERS[0],
            &["token", "create", "--node", name, "-http-addr", "http://127.0.0.1:8500"],
        )?;
        let token_file = folder.join("join.token");
        secret(&token_file, token.trim())?;
        let servers: Vec<String> = SERVERS
            .iter()
            .map(|server| Host::named(server).map(|host| format!("{:?}", host.address.to_string())))
            .collect::<Result<_>>()?;
        let (data, access) = (folder.join("data"), folder.join("access.log"));
        let text = format!(
            r#"node_name = "{name}"
datacenter = "dc1"
data_dir = {data:?}
bind_addr = "{address}"
advertise_addr = "{address}"
client_addr = "127.0.0.1"
retry_join = [{servers}]
join_token_file = {token_file:?}
access_log = {access:?}
ports {{
  http = 8500
  dns = 8600
}}
"#,
            address = host.address,
            servers = servers.join(", "),
        );
        fs::write(folder.join("config/agent.hcl"), text)?;
        self.write_services(name)
    }

    /// Definitions in both formats: a1 has HCL, the others JSON.
    fn write_services(&self, agent: &str) -> Result<()> {
        let config = self.folder(agent).join("config");
        match agent {
            "a1" => fs::write(config.join("services.hcl"), WEB)?,
            "a2" => {
                let cron = json!({
                    "name": "cron", "id": "cron-1", "port": 8100, "protocol": "http",
                    "connect": { "sidecar_service": { "proxy": { "upstreams": [
                        { "destination_name": "api", "local_bind_port": API_UPSTREAM },
                    ] } } },
                });
                let services = json!({ "services": [api("api-1", 8080), cron] });
                fs::write(config.join("services.json"), services.to_string())?;
            }
            _ => {
                let mut services = vec![api("api-2", 8080), api("api-3", 8081)];
                if self.options.postgres {
                    services.push(json!({
                        "name": "db", "id": "db-1", "port": 5432,
                        "connect": { "sidecar_service": {} },
                        "check": { "tcp": "127.0.0.1:5432", "interval": "1s", "timeout": "1s" },
                    }));
                }
                let services = json!({ "services": services });
                fs::write(config.join("services.json"), services.to_string())?;
            }
        }
        Ok(())
    }
}

/// One HTTP request by `curl` on `host`.
///
/// # Errors
/// No answer within `limit`.
pub fn ask(host: Host, method: &str, url: &str, body: &[u8], limit: Duration) -> Result<Reply> {
    let mut command = host.command("curl");
    command.args(["-sS", "--noproxy", "*", "-X", method, "-w", "\n%{http_code}"]);
    command.args(["--max-time", &format!("{:.3}", limit.as_secs_f64())]);
    if !body.is_empty() {
        command.args([
            "-H",
            "Content-Type: application/json",
            "-H",
            "Expect:",
            "--data-binary",
            "@-",
        ]);
    }
    command.arg(url);
    let output = finish(command, body, limit + Duration::from_secs(5))?;
    if !output.status.success() {
        bail!("curl {url}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    let (body, status) = printed.rsplit_once('\n').context("curl printed no status")?;
    Ok(Reply { status: status.trim().parse()?, body: body.to_owned() })
}

pub(crate) fn api(id: &str, port: u16) -> Value {
    json!({
        "name": "api", "id": id, "port": port, "protocol": "http",
        "connect": { "sidecar_service": {} },
        "check": {
            "http": format!("http://127.0.0.1:{port}/health"), "interval": "1s", "timeout": "1s",
        },
    })
}

pub(crate) fn secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}

/// The hosts with a server.
pub const SERVERS: [&str; 3] = ["s1", "s2", "s3"];

/// The hosts with an agent.
pub const AGENTS: [&str; 3] = ["a1", "a2", "a3"];

/// Where an upstream `api` listens on loopback: a1 for `web`, a2 for `cron`.
pub const API_UPSTREAM: u16 = 5001;

/// Where the upstream `db` of `web` listens on a1's loopback.
pub const DB_UPSTREAM: u16 = 5433;

const WEB: &str = r#"services {
  name     = "web"
  id       = "web-1"
  port     = 8000
  protocol = "http"
  connect {
    sidecar_service {
      proxy {
        upstreams = [
          { destination_name = "api", local_bind_port = 5001 },
          { destination_name = "db", local_bind_port = 5433 },
        ]
      }
    }
  }
  check {
    http     = "http://127.0.0.1:8000/health"
    interval = "1s"
    timeout  = "1s"
  }
}
"#;

const STARTED: Duration = Duration::from_secs(60);
const COMMAND: Duration = Duration::from_secs(20);
const ASK: Duration = Duration::from_secs(5);
