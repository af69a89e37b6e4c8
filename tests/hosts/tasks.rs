//! ECS: a task alone, ten of them, all ten replaced, and one killed: under load, and no request
//! fails. The figures of a sidecar are taken on the way.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use hawser_rig::net::TASKS;
use hawser_rig::{Cluster, Host, wait_for};

use crate::load::{Answer, Load, failures, quantile};
use crate::scene::on_servers;
use crate::task::{Definition, Manner, SERVICE, Task, pss_kib};

#[test]
fn ten_tasks_are_replaced_under_load_and_no_request_fails() {
    on_servers("tasks", |cluster| {
        let definition = Definition::from_guide()?;
        start_caller(cluster)?;
        // A file of its own: a task shares no page with servers and other tasks.
        let own = cluster.folder("hawser");
        fs::copy(cluster.binary(), &own)?;
        let mut fleet = Fleet { definition, tasks: Vec::new(), healthy: Vec::new() };
        fleet.start(cluster, TASKS[0], &own, 1)?;
        cluster.await_carried("a1", UPSTREAM.port(), STARTED)?;
        let idle = fleet.tasks[0].pss_kib(cluster)?;

        let load = Load::start(Host::named("a1")?, UPSTREAM, RATE, LOAD_MAX);
        wait_for("one task under load", STARTED, || {
            ensure!(load.elapsed() > ALONE, "not yet");
            Ok(())
        })?;
        let loaded = fleet.tasks[0].pss_kib(cluster)?;
        println!("sidecar PSS: {idle} KiB idle, {loaded} KiB at {RATE} req/s");
        println!("caller's agent PSS: {} KiB", pss_kib(cluster.process("a1")?)?);
        let binary = cluster.binary().to_owned();
        for (host, count) in TASKS[1..10].iter().zip(2..) {
            fleet.start(cluster, *host, &binary, count)?;
        }
        fleet.replace_all(cluster, &TASKS[10..], &binary)?;

        let killed = load.elapsed();
        fleet.tasks[14].kill(cluster)?;
        let gone = fleet.tasks[14].await_absent(cluster, LEASE_RAN_OUT)?;
        println!("a killed task left {gone:.1?} after it");
        for task in &fleet.tasks[..10] {
            task.await_end(cluster, &fleet.definition)?;
        }
        fleet.tell();
        judge(&load.finish(RATE)?, killed)
    });
}

/// The tasks so far, in the order of [`TASKS`].
struct Fleet {
    definition: Definition,
    tasks: Vec<Task>,
    /// How long each took from its start to its sidecar's being healthy.
    healthy: Vec<Duration>,
}

impl Fleet {
    /// Starts a task on `host`, its application once its sidecar is healthy, and waits until
    /// `count` tasks pass.
    fn start(
        &mut self,
        cluster: &mut Cluster,
        host: Host,
        binary: &Path,
        count: usize,
    ) -> Result<()> {
        let task = Task::start(cluster, host, &self.definition, binary)?;
        self.healthy.push(task.await_healthy(&self.definition)?);
        task.start_application(cluster)?;
        self.tasks.push(task);
        cluster.await_healthy("s1", SERVICE, count, STARTED)
    }

    /// Replaces the first ten by `hosts`, one after the other, as a rolling deployment does.
    fn replace_all(&mut self, cluster: &mut Cluster, hosts: &[Host], binary: &Path) -> Result<()> {
        let manners = [Manner::AtOnce, Manner::Stubborn, Manner::Together];
        for ((at, host), manner) in hosts.iter().enumerate().zip(manners.into_iter().cycle()) {
            self.start(cluster, *host, binary, 11)?;
            let left = match manner {
                Manner::Stubborn => stop_under_posts(cluster, &self.tasks[at])?,
                Manner::AtOnce | Manner::Together => self.tasks[at].stop(cluster, manner)?,
            };
            println!("{manner:?}: left the catalog after {left:.2?}");
            cluster.await_healthy("s1", SERVICE, 10, STARTED)?;
        }
        Ok(())
    }

    fn tell(&mut self) {
        self.healthy.sort();
        if let [least, .., most] = self.healthy[..] {
            let (count, median) = (self.healthy.len(), self.healthy[self.healthy.len() / 2]);
            println!("start to HEALTHY of {count}: {median:.1?} [{least:.1?}–{most:.1?}]");
        }
    }
}

/// Stops a task whose application serves for as long as it may: then not even what cannot be
/// repeated fails, since callers have stopped calling before anything ends.
fn stop_under_posts(cluster: &mut Cluster, task: &Task) -> Result<Duration> {
    let load = Load::posts(Host::named("a1")?, UPSTREAM, POSTS, LOAD_MAX);
    let left = task.stop(cluster, Manner::Stubborn)?;
    let answers = load.finish(POSTS)?;
    let shown = failures(&answers);
    ensure!(shown.is_empty(), "of {} POSTs failed: {shown:#?}", answers.len());
    Ok(left)
}

/// A host that calls the tasks' service.
fn start_caller(cluster: &mut Cluster) -> Result<()> {
    cluster.write_agent("a1")?;
    fs::write(cluster.folder("a1").join("config/services.hcl"), CALLER)?;
    cluster.start_hawser("a1")?;
    cluster.intend("shop", SERVICE, "allow")
}

fn judge(answers: &[Answer], killed: Duration) -> Result<()> {
    let failed = answers.iter().filter(|answer| answer.outcome.is_err()).count();
    let used: BTreeSet<&str> =
        answers.iter().filter_map(|answer| answer.outcome.as_deref().ok()).collect();
    println!(
        "{} requests to {} tasks, {failed} failed; p50 {:?}, p99 {:?}, slowest {:?}",
        answers.len(),
        used.len(),
        quantile(answers, Duration::ZERO, 500),
        quantile(answers, Duration::ZERO, 990),
        quantile(answers, Duration::ZERO, 1000),
    );
    let shown = failures(answers);
    ensure!(shown.is_empty(), "clients saw errors; the kill was at {killed:?}: {shown:#?}");
    ensure!(used.len() == TASKS.len(), "only these were ever used: {used:?}");
    Ok(())
}

const UPSTREAM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5001);
const RATE: u32 = 500;
const POSTS: u32 = 50;
const STARTED: Duration = Duration::from_secs(60);
const LOAD_MAX: Duration = Duration::from_secs(180);

/// How long one task has the whole load.
const ALONE: Duration = Duration::from_secs(4);

/// A lease of 15 s, the look at it once a second, and what the write takes.
const LEASE_RAN_OUT: Duration = Duration::from_secs(20);

const CALLER: &str = r#"service {
  name     = "shop"
  port     = 8000
  protocol = "http"
  connect {
    sidecar_service {
      proxy {
        upstreams = [{ destination_name = "web", local_bind_port = 5001 }]
      }
    }
  }
}
"#;
