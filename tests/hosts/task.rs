//! One ECS task on a host of its own: started, checked and stopped in the order in which ECS does
//! it, from the container definitions that docs/ecs.md shows.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_rig::cluster::SERVERS;
use hawser_rig::metadata::{Metadata, task};
use hawser_rig::{Cluster, Host, Process, application, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

/// What docs/ecs.md tells its reader to write, as far as the test can do it as it stands.
pub(crate) struct Definition {
    /// What the sidecar is configured by.
    config: Value,
    /// What ECS runs in the sidecar's container to learn whether it is healthy.
    health: Vec<String>,
    /// How long ECS lets the sidecar end.
    stop_timeout: Duration,
}

/// How an application takes being stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manner {
    /// It ends at SIGTERM, before its sidecar can have heard of it.
    AtOnce,
    /// It serves on until ECS kills it.
    Stubborn,
    /// It is no `dependsOn` of the sidecar's: both are signalled together.
    Together,
}

/// A task whose sidecar runs.
pub(crate) struct Task {
    host: Host,
    metadata: Metadata,
    started: Instant,
    folder: PathBuf,
    binary: PathBuf,
}

impl Definition {
    /// Reads the guide.
    pub(crate) fn from_guide() -> Result<Self> {
        let block = GUIDE.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        let containers: Value = serde_json::from_str(&format!("[{}]", block.context("no JSON")?))?;
        let [sidecar, app] = containers.as_array().map_or(&[][..], Vec::as_slice) else {
            anyhow::bail!("the guide shows two containers: {containers}");
        };
        ensure!(
            app["dependsOn"] == json!([{ "containerName": "hawser", "condition": "HEALTHY" }]),
            "{app}"
        );
        let config = &sidecar["environment"][0];
        ensure!(config["name"] == "HAWSER_CONFIG_JSON", "{config}");
        let mut config: Value = serde_json::from_str(config["value"].as_str().unwrap_or_default())?;
        // A role needs AWS: a token takes its place.
        ensure!(config["join_method"] == "aws-iam", "{config}");
        config.as_object_mut().context("an object")?.remove("join_method");
        let servers = SERVERS.iter().map(|name| Ok(Host::named(name)?.address.to_string()));
        config["retry_join"] = servers.collect::<Result<Vec<_>>>()?.into();
        ensure!(config["service"]["name"] == SERVICE, "{config}");
        ensure!(config["service"]["port"] == PORT, "the application listens on {PORT}: {config}");
        let words = sidecar["healthCheck"]["command"].as_array().cloned().unwrap_or_default();
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        let ["CMD", "/usr/bin/hawser", health @ ..] = &words[..] else {
            anyhow::bail!("the guide's health check is {words:?}");
        };
        let stop_timeout = sidecar["stopTimeout"].as_u64().context("a stopTimeout")?;
        Ok(Self {
            config,
            health: health.iter().map(|&word| word.to_owned()).collect(),
            stop_timeout: Duration::from_secs(stop_timeout),
        })
    }
}

impl Task {
    /// Sets up the host and its metadata endpoint, and starts `binary` there as the sidecar.
    pub(crate) fn start(
        cluster: &mut Cluster,
        host: Host,
        definition: &Definition,
        binary: &Path,
    ) -> Result<Self> {
        cluster.net().attach(host)?;
        let endpoint = format!("{}/32", Ipv4Addr::new(169, 254, 170, 2));
        host.run("ip", &["address", "add", &endpoint, "dev", "lo"])?;
        let metadata = Metadata::serve(listener(host)?, task(&id(host), "family", host.ip()))?;
        let folder = cluster.folder(host.name);
        fs::create_dir_all(&folder)?;
        let node = format!("ecs-{}", id(host));
        let token = cluster.hawser(SERVERS[0], &["token", "create", "--node", &node])?;
        let mut config = definition.config.clone();
        config["data_dir"] = json!(folder.join("data"));
        let mut command = host.command(binary);
        command
            .arg("agent")
            .env("ECS_CONTAINER_METADATA_URI_V4", metadata.uri())
            .env("HAWSER_CONFIG_JSON", config.to_string())
            .env("HAWSER_JOIN_TOKEN", token.trim());
        let started = Instant::now();
        let sidecar = Process::spawn(host.name, command, &folder.join("hawser.log"))?;
        cluster.keep_running(sidecar);
        Ok(Self { host, metadata, started, folder, binary: binary.to_owned() })
    }

    /// Waits until the sidecar is HEALTHY, and answers how long that took from its start.
    pub(crate) fn await_healthy(&self, definition: &Definition) -> Result<Duration> {
        let words: Vec<&str> = definition.health.iter().map(String::as_str).collect();
        let binary = self.binary.to_str().context("a path in UTF-8")?;
        wait_for(format_args!("{} to be HEALTHY", self.host.name), STARTED, || {
            self.host.run(binary, &words)
        })?;
        Ok(self.started.elapsed())
    }

    /// Starts the application, whose health check passes as soon as it answers.
    pub(crate) fn start_application(&self, cluster: &mut Cluster) -> Result<()> {
        let application =
            application::nginx(self.host, &self.application(), PORT, &self.folder.join("app"))?;
        cluster.keep_running(application);
        self.metadata.tell("/Containers/1/Health/status", "HEALTHY");
        Ok(())
    }

    /// Stops the task as ECS does, up to the sidecar's own end, and waits until the catalog has
    /// lost it. The application ends as it likes.
    pub(crate) fn stop(&self, cluster: &mut Cluster, manner: Manner) -> Result<Duration> {
        let application = self.application();
        let began = Instant::now();
        self.metadata.tell("/DesiredStatus", "STOPPED");
        match manner {
            Manner::AtOnce => self.end_application(cluster, Signal::TERM)?,
            Manner::Together => {
                cluster.process(self.host.name)?.signal(Signal::TERM)?;
                self.end_application(cluster, Signal::TERM)?;
            }
            // It does not hear the signal, so that none is sent.
            Manner::Stubborn => ensure!(cluster.process(&application)?.alive()?, "it ended"),
        }
        let left = self.await_absent(cluster, LEFT.saturating_sub(began.elapsed()))?;
        if matches!(manner, Manner::Stubborn) {
            ensure!(
                cluster.process(self.host.name)?.alive()?,
                "it did not outlive its application"
            );
            wait_for("the application's stopTimeout", STARTED, || {
                ensure!(began.elapsed() >= APPLICATION_STOP, "not yet");
                Ok(())
            })?;
            self.end_application(cluster, Signal::KILL)?;
        }
        if !matches!(manner, Manner::Together) && cluster.process(self.host.name)?.alive()? {
            cluster.process(self.host.name)?.signal(Signal::TERM)?;
        }
        Ok(left)
    }

    /// `kill -9` of both containers.
    pub(crate) fn kill(&self, cluster: &mut Cluster) -> Result<()> {
        cluster.process(self.host.name)?.kill()?;
        cluster.process(&self.application())?.kill()
    }

    /// Waits until the sidecar of a stopped task has ended, which must be with 0.
    pub(crate) fn await_end(&self, cluster: &mut Cluster, definition: &Definition) -> Result<()> {
        let (status, _) = cluster.process(self.host.name)?.ended(definition.stop_timeout)?;
        ensure!(status.success(), "{} ended with {status}", self.host.name);
        let log = fs::read_to_string(cluster.log(self.host.name))?;
        ensure!(log.contains("left the catalog"), "{} did not say that it left", self.host.name);
        Ok(())
    }

    /// Waits until no caller is told of this task any more.
    pub(crate) fn await_absent(&self, cluster: &Cluster, deadline: Duration) -> Result<Duration> {
        let address = self.host.address.to_string();
        let path = format!("/v1/health/service/{SERVICE}?passing");
        let waited = wait_for(format_args!("{} to leave", self.host.name), deadline, || {
            let told = cluster.get(SERVERS[0], &path)?;
            let all = told.as_array().context("a list")?;
            let stays = all.iter().any(|one| one["Node"]["Address"] == address.as_str());
            ensure!(!stays, "it is still among {}", all.len());
            Ok(())
        })?;
        Ok(waited.1)
    }

    /// The memory of the sidecar that is its own, in KiB: shared pages count by their share.
    pub(crate) fn pss_kib(&self, cluster: &mut Cluster) -> Result<u64> {
        pss_kib(cluster.process(self.host.name)?)
    }

    fn end_application(&self, cluster: &mut Cluster, signal: Signal) -> Result<()> {
        let process = cluster.process(&self.application())?;
        process.signal(signal)?;
        process.ended(STARTED)?;
        self.metadata.tell("/Containers/1/KnownStatus", "STOPPED");
        Ok(())
    }

    fn application(&self) -> String {
        format!("{SERVICE}-{}", self.host.name)
    }
}

/// The proportional set size of a process, in KiB.
pub(crate) fn pss_kib(process: &Process) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.id()))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("no Pss")?;
    Ok(kib.parse()?)
}

/// A listener at the one address that a metadata endpoint has, on `host`.
fn listener(host: Host) -> Result<TcpListener> {
    let bound = std::thread::spawn(move || {
        host.enter()?;
        Ok(TcpListener::bind((Ipv4Addr::new(169, 254, 170, 2), 80))?)
    });
    bound.join().ok().context("the thread panicked")?
}

fn id(host: Host) -> String {
    format!("{:0>32}", host.name)
}

/// The service that the tasks are.
pub(crate) const SERVICE: &str = "web";

const GUIDE: &str = include_str!("../../docs/ecs.md");
const PORT: u16 = 9000;
const STARTED: Duration = Duration::from_secs(60);
/// The issue's bound for a stopped task.
const LEFT: Duration = Duration::from_secs(5);
/// The `stopTimeout` of an application that does not hear SIGTERM.
const APPLICATION_STOP: Duration = Duration::from_secs(3);
