//! A server and an ECS task in two network namespaces on one cable.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_rig::process::{Process, finish, told};
use serde_json::{Value, json};

use super::store::{IMAGE, Store};

/// Both namespaces and what runs in them; dropped, all of it is gone.
pub(super) struct Scene {
    store: Store,
    folder: PathBuf,
    task: Value,
    processes: Vec<Process>,
}

impl Scene {
    /// Sets up the namespaces, the server, and the task's metadata endpoint.
    pub(super) fn start(binary: &Path, folder: &Path, store: Store) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder.join("www"))?;
        let mut scene =
            Self { store, folder: folder.to_owned(), task: task(), processes: Vec::new() };
        scene.cable()?;
        scene.server(binary)?;
        scene.metadata()?;
        scene.application_image()?;
        Ok(scene)
    }

    fn cable(&self) -> Result<()> {
        let (server, task) = (Side::Server.name(), Side::Task.name());
        ip(&["netns", "add", &server])?;
        ip(&["netns", "add", &task])?;
        ip(&[
            "-n", &server, "link", "add", "c", "type", "veth", "peer", "name", "c", "netns", &task,
        ])?;
        for (side, address) in [(&server, SERVER), (&task, TASK)] {
            ip(&["-n", side, "link", "set", "lo", "up"])?;
            ip(&["-n", side, "address", "add", &format!("{address}/24"), "dev", "c"])?;
            ip(&["-n", side, "link", "set", "c", "up"])?;
        }
        // The true address, so that the sidecar's rule about it is under test too.
        ip(&["-n", &task, "address", "add", "169.254.170.2/32", "dev", "lo"])
    }

    fn server(&mut self, binary: &Path) -> Result<()> {
        let mut keygen = Command::new(binary);
        keygen.arg("keygen");
        let key = self.write("operator.key", &told(keygen, COMMAND)?)?;
        let upstreams = json!([{ "destination_name": "web", "local_bind_port": 5001 }]);
        let config = json!({
            "node_name": "s1",
            "data_dir": self.folder.join("server"),
            "bind_addr": SERVER,
            "bootstrap_expect": 1,
            "operator_key_file": key,
            "default_intention_policy": "allow",
            "proxy": { "workers": 1, "drain": "1s" },
            "services": [
                { "name": "caller", "connect": { "sidecar_service": {
                    "proxy": { "upstreams": upstreams } } } },
                { "name": "backend", "port": 9100, "connect": { "sidecar_service": {} } },
            ],
        });
        let config = self.write("server.json", &config.to_string())?;
        let mut server = Side::Server.command(binary);
        server.args(["server", "--config-file"]).arg(config);
        self.run("server", server)?;
        self.write("www/index.html", "from the backend\n")?;
        let mut backend = Side::Server.command("busybox");
        backend.args(["httpd", "-f", "-p", "127.0.0.1:9100", "-h"]).arg(self.folder.join("www"));
        self.run("backend", backend)
    }

    fn metadata(&mut self) -> Result<()> {
        let script = self.write("metadata.py", include_str!("metadata.py"))?;
        self.tell()?;
        let mut endpoint = Side::Task.command("python3");
        endpoint.arg(script).arg(self.folder.join("task.json")).args(["169.254.170.2", "80"]);
        self.run("metadata", endpoint)
    }

    /// The application's image: a web server and nothing else.
    fn application_image(&self) -> Result<()> {
        let context = self.folder.join("application");
        fs::create_dir_all(context.join("www"))?;
        fs::copy("/bin/busybox", context.join("busybox"))
            .context("copying /bin/busybox, of Debian's busybox-static")?;
        fs::write(context.join("www/index.html"), "from the task\n")?;
        let dockerfile = "FROM scratch\nCOPY busybox /busybox\nCOPY www /www\n\
                          USER 65533:65533\nENTRYPOINT [\"/busybox\"]\n\
                          CMD [\"httpd\", \"-f\", \"-p\", \"127.0.0.1:9000\", \"-h\", \"/www\"]\n";
        fs::write(context.join("Dockerfile"), dockerfile)?;
        let mut build = self.store.buildah();
        build.args(["build", "--quiet", "--tag", APPLICATION]).arg(&context);
        told(build, COMMAND).map(drop)
    }

    /// Starts the sidecar as ECS would: configured by its environment alone.
    pub(super) fn start_sidecar(&self, token: &str) -> Result<()> {
        let upstreams = json!([{ "destination_name": "backend", "local_bind_port": 5002 }]);
        let config = json!({
            // A name: the static binary resolves it without the C library.
            "retry_join": ["server.test"],
            "proxy": { "workers": 1 },
            "service": { "port": 9000, "connect": { "sidecar_service": {
                "proxy": { "upstreams": upstreams } } } },
        });
        let environment = [
            ("ECS_CONTAINER_METADATA_URI_V4", "http://169.254.170.2/v4/id"),
            ("HAWSER_CONFIG_JSON", &config.to_string()),
            ("HAWSER_JOIN_TOKEN", token),
        ];
        let mut run = self.contained("sidecar");
        run.args(["--network", &format!("ns:/run/netns/{}", Side::Task.name())]);
        run.args(["--add-host", &format!("server.test:{SERVER}")]);
        for (name, value) in environment {
            run.args(["--env", &format!("{name}={value}")]);
        }
        told(with(run, &[IMAGE]), COMMAND).map(drop)
    }

    /// Starts the application beside it.
    pub(super) fn start_application(&self) -> Result<()> {
        let mut run = self.contained("application");
        run.args(["--network", "container:sidecar"]);
        told(with(run, &[APPLICATION]), COMMAND).map(drop)
    }

    /// A container with as few rights as Fargate lets one have.
    fn contained(&self, name: &str) -> Command {
        let mut run = self.store.podman();
        run.args(["run", "--detach", "--name", name, "--read-only", "--cap-drop", "all"]);
        run.args(["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1000:1000"]);
        run
    }

    /// One run of the image to its end, and what it printed.
    pub(super) fn once(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let mut run = self.store.podman();
        run.args(["run", "--rm", "--network", "none", "--read-only", "--cap-drop", "all"]);
        run.args(["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=1000:1000", IMAGE]);
        finish(with(run, arguments), b"", COMMAND)
    }

    /// Podman to its end, and what it printed.
    pub(super) fn podman(&self, arguments: &[&str]) -> Result<String> {
        told(with(self.store.podman(), arguments), COMMAND)
    }

    /// Changes what the metadata says.
    pub(super) fn say(&mut self, pointer: &str, value: &Value) -> Result<()> {
        *self.task.pointer_mut(pointer).context("no such field")? = value.clone();
        self.tell()
    }

    fn tell(&self) -> Result<()> {
        let fresh = self.write("task.json.new", &self.task.to_string())?;
        Ok(fs::rename(fresh, self.folder.join("task.json"))?)
    }

    /// What the server's HTTP API answers.
    pub(super) fn ask(&self, arguments: &[&str], path: &str) -> Result<Value> {
        let text = self.fetch(Side::Server, arguments, &format!("http://127.0.0.1:8500{path}"))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What a URL answers when asked from one side.
    pub(super) fn fetch(&self, side: Side, arguments: &[&str], url: &str) -> Result<String> {
        let mut curl = side.command("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--max-time", "5"]);
        curl.args(arguments).arg(url);
        told(curl, COMMAND)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(path)
    }

    fn run(&mut self, name: &str, command: Command) -> Result<()> {
        let log = self.folder.join(format!("{name}.log"));
        self.processes.push(Process::spawn(name, command, &log)?);
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for name in ["application", "sidecar"] {
            // What never started cannot be removed.
            let mut remove = self.store.podman();
            remove.args(["rm", "--force", "--volumes", "--time", "0", name]);
            let _ = told(remove, COMMAND);
        }
        self.processes.clear();
        for side in [Side::Task, Side::Server] {
            let _ = ip(&["netns", "delete", &side.name()]);
        }
    }
}

/// One of the two namespaces.
#[derive(Clone, Copy)]
pub(super) enum Side {
    /// Where the server is.
    Server,
    /// Where the task is.
    Task,
}

impl Side {
    fn name(self) -> String {
        // The process id keeps two tests on one machine apart.
        let kind = match self {
            Self::Server => "server",
            Self::Task => "task",
        };
        format!("hawser-image-{}-{kind}", std::process::id())
    }

    fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name()]).arg(program);
        command
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = finish(with(Command::new("ip"), arguments), b"", COMMAND)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "ip {}: {said}", arguments.join(" "));
    Ok(())
}

fn with(mut command: Command, arguments: &[&str]) -> Command {
    command.args(arguments);
    command
}

/// What ECS would say of the task before its application has started.
fn task() -> Value {
    let networks = json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": [TASK] }]);
    json!({
        "Cluster": "arn:aws:ecs:eu-west-1:111122223333:cluster/prod",
        "TaskARN": format!("arn:aws:ecs:eu-west-1:111122223333:task/prod/{TASK_ID}"),
        "Family": "web", "Revision": "1", "AvailabilityZone": "eu-west-1a",
        "DesiredStatus": "RUNNING", "KnownStatus": "NONE",
        "Containers": [
            { "Name": "hawser", "Type": "NORMAL", "KnownStatus": "RUNNING", "Networks": networks },
            {
                "Name": "application", "Type": "NORMAL", "KnownStatus": "PULLED",
                "Health": { "status": "UNKNOWN" }, "Networks": networks,
            },
        ],
    })
}

/// The task's id.
pub(super) const TASK_ID: &str = "0af1e2c39d8e4f258373e7b93ce9a3c3";
/// The longest that one command may take on a loaded machine.
pub(super) const COMMAND: Duration = Duration::from_secs(60);
const APPLICATION: &str = "application:test";
const SERVER: &str = "10.203.0.1";
const TASK: &str = "10.203.0.2";
