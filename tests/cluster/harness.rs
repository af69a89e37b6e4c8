//! Processes of the real binary on loopback addresses of their own, and a client to ask them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A loopback network of its own for one test: `127.<test>.<process>.N`.
pub(crate) struct Net {
    prefix: String,
    folder: TempDir,
}

/// One running process; killed when it goes out of scope.
pub(crate) struct Process {
    child: Child,
    /// Those that it replaced, while they finish.
    replaced: Vec<Child>,
    config: PathBuf,
    part: &'static str,
    log: PathBuf,
    /// The bug on purpose that it has.
    bug: Option<String>,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Net {
    /// A network that no other test of this process uses.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let own = NEXT.fetch_add(1, Ordering::Relaxed);
        // The process id keeps two runs of the tests on one machine apart.
        let process = std::process::id() % 200 + 20;
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self { prefix: format!("127.{process}.{own}"), folder }
    }

    /// The `n`th host's address.
    pub(crate) fn address(&self, n: u8) -> String {
        format!("{}.{n}", self.prefix)
    }

    pub(crate) fn http(&self, n: u8) -> SocketAddr {
        format!("{}:8500", self.address(n)).parse().expect("an address")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the operator key that this network's servers share.
    pub(crate) fn operator_key(&self) -> PathBuf {
        let path = self.folder().join("operator.key");
        if !path.exists() {
            let made = hawser(&["keygen"]);
            assert!(made.status.success(), "{made:?}");
            std::fs::write(&path, made.stdout).expect("written");
            restrict(&path);
        }
        path
    }

    /// Starts host `n` as one of `expect` servers.
    pub(crate) fn server(&self, n: u8, expect: u8, extra: Value) -> Process {
        let join: Vec<String> = (1..=expect.max(1)).map(|n| self.address(n)).collect();
        let own = json!({
            "operator_key_file": self.operator_key(),
            "bootstrap_expect": expect,
            "retry_join": join,
            "default_intention_policy": "deny",
        });
        self.start("server", n, &[own, extra])
    }

    /// Starts host `n` as an agent that joins through host 1 of `servers`.
    pub(crate) fn agent(&self, n: u8, servers: u8, extra: Value) -> Process {
        let token = self.folder().join(format!("token-{n}"));
        if !token.exists() {
            std::fs::write(&token, self.join_token(1, n)).expect("written");
            restrict(&token);
        }
        let join: Vec<String> = (1..=servers).map(|n| self.address(n)).collect();
        self.start("agent", n, &[json!({ "join_token_file": token, "retry_join": join }), extra])
    }

    /// A token with which host `n` may join, made by server `server`.
    pub(crate) fn join_token(&self, server: u8, n: u8) -> String {
        let http = self.http(server);
        let body = json!({ "Node": format!("n{n}"), "TTL": "60s" });
        let reply = eventually("a join token", || {
            let reply = request(http, "PUT", "/v1/hawser/join-token", Some(&body))?;
            (reply.status == 200).then_some(reply)
        });
        let value: Value = serde_json::from_str(&reply.body).expect("JSON");
        value["Token"].as_str().expect("a token").to_owned()
    }

    /// As [`Self::server`], and other servers come to it through host `100 + n`'s address.
    pub(crate) fn server_behind(&self, n: u8, expect: u8, bug: Option<&str>) -> Process {
        let join: Vec<String> = (1..=3).map(|n| self.address(100 + n)).collect();
        let own = json!({
            "operator_key_file": self.operator_key(),
            "bootstrap_expect": expect,
            "retry_join": join,
            "advertise_addr": self.address(100 + n),
        });
        let config = self.configure(n, &[own]);
        let log = self.folder().join(format!("n{n}.log"));
        Process::start("server", config, log, bug)
    }

    fn start(&self, part: &'static str, n: u8, layers: &[Value]) -> Process {
        let log = self.folder().join(format!("n{n}.log"));
        Process::start(part, self.configure(n, layers), log, None)
    }

    /// Writes the configuration of host `n`: what all have, and then `layers`.
    fn configure(&self, n: u8, layers: &[Value]) -> PathBuf {
        let address = self.address(n);
        let mut config = json!({
            "node_name": format!("n{n}"),
            "data_dir": self.folder().join(format!("n{n}")),
            "bind_addr": address,
            "client_addr": address,
            "access_log": self.folder().join(format!("n{n}.access")),
            "proxy": { "workers": 1, "drain": "10s" },
        });
        let object = config.as_object_mut().expect("an object");
        for layer in layers {
            for (key, value) in layer.as_object().into_iter().flatten() {
                object.insert(key.clone(), value.clone());
            }
        }
        let path = self.folder().join(format!("n{n}.json"));
        std::fs::write(&path, config.to_string()).expect("written");
        path
    }
}

impl Process {
    fn start(part: &'static str, config: PathBuf, log: PathBuf, bug: Option<&str>) -> Self {
        let bug = bug.map(str::to_owned);
        let child = spawn(part, &config, &log, &[], bug.as_deref());
        Self { child, replaced: Vec::new(), config, part, log, bug }
    }

    /// Ends the process as a power cut of the process would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    /// Starts it again with the same configuration and data.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.part, &self.config, &self.log, &[], self.bug.as_deref());
    }

    /// Changes its configuration, which holds from the next start on.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(&mut Value)) {
        let text = std::fs::read_to_string(&self.config).expect("its configuration");
        let mut config = serde_json::from_str(&text).expect("JSON");
        change(&mut config);
        std::fs::write(&self.config, config.to_string()).expect("written");
    }

    /// Asks it to stop and waits for it.
    pub(crate) fn stop(&mut self) -> std::process::ExitStatus {
        self.signal("-TERM");
        self.ended()
    }

    /// Starts the binary again beside it, to take everything over from it.
    pub(crate) fn replace(&mut self) {
        let next = spawn(self.part, &self.config, &self.log, &["--take-over"], None);
        self.replaced.push(std::mem::replace(&mut self.child, next));
    }

    /// How many of those that it replaced have not ended yet. All ended well.
    pub(crate) fn finishing(&mut self) -> usize {
        self.replaced.retain_mut(|child| match child.try_wait().expect("waited for") {
            Some(status) => {
                assert!(status.success(), "{status}");
                false
            }
            None => true,
        });
        self.replaced.len()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Waits for it to end by itself.
    pub(crate) fn ended(&mut self) -> std::process::ExitStatus {
        eventually("the process to end", || self.child.try_wait().expect("waited for"))
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has ended already cannot be killed again, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for child in &mut self.replaced {
            let _ = child.kill();
            let _ = child.wait();
        }
        // One that the process started by itself is in its group.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        if std::thread::panicking() {
            let told = format!("--- {} ---\n{}\n", self.log.display(), self.log());
            // A test that fails anyway has nobody else to tell.
            let _ = std::io::stderr().write_all(told.as_bytes());
        }
    }
}

fn spawn(part: &str, config: &Path, log: &Path, arguments: &[&str], bug: Option<&str>) -> Child {
    let out = File::options().create(true).append(true).open(log).expect("a log file");
    Command::new(binary())
        .args([part, "--config-file"])
        .arg(config)
        .args(arguments)
        .process_group(0)
        .env("HAWSER_LOG", "warn,hawser=info,hawser_server=info,hawser_agent=info")
        .envs(bug.map(|bug| ("HAWSER_PLANTED_BUG", bug)))
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a second handle"))
        .stderr(out)
        .spawn()
        .expect("the binary runs")
}

/// Runs the binary to its end.
pub(crate) fn hawser(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).stdin(Stdio::null()).output().expect("the binary runs")
}

/// One HTTP request; none when nobody answered whole.
pub(crate) fn request(
    to: SocketAddr,
    method: &str,
    target: &str,
    body: Option<&Value>,
) -> Option<Reply> {
    let text = body.map(Value::to_string).unwrap_or_default();
    let mut socket = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    write!(
        socket,
        "{method} {target} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
        text.len()
    )
    .ok()?;
    let mut whole = Vec::new();
    socket.read_to_end(&mut whole).ok()?;
    let text = String::from_utf8_lossy(&whole).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

pub(crate) fn get(to: SocketAddr, target: &str) -> Option<Reply> {
    request(to, "GET", target, None)
}

/// A JSON document; none while it is not answered with 200.
pub(crate) fn get_json(to: SocketAddr, target: &str) -> Option<Value> {
    let reply = get(to, target)?;
    (reply.status == 200).then(|| serde_json::from_str(&reply.body).ok()).flatten()
}

/// Waits until `probe` finds something, for as long as a loaded machine may need.
///
/// # Panics
/// When it finds nothing in time.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(PROBE_INTERVAL);
    }
}

fn restrict(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("restricted");
}

/// The binary: the one that was built with the tests, or what `HAWSER_BINARY` names.
fn binary() -> PathBuf {
    std::env::var_os("HAWSER_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_hawser").into(), From::from)
}

const PATIENCE: Duration = Duration::from_secs(60);
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
