//! The checks of `cargo xtask image --test`: from an empty image to a task that came and went.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hawser_rig::wait_for;
use serde_json::{Value, json};

use super::scene::{Scene, Side, TASK_ID};
use super::store::{IMAGE, Store};

/// Runs them in order, up to the first that fails.
///
/// # Errors
/// The scene does not come up, or a check failed.
pub(super) fn run(binary: &Path, folder: &Path, store: Store) -> Result<()> {
    let scene = Scene::start(binary, &folder.join("scene"), store)?;
    let mut walk = Walk { scene, token: String::new() };
    let mut passed = 0;
    for (name, check) in CHECKS {
        let began = Instant::now();
        match check(&mut walk) {
            Ok(said) => println!("ok    {name} ({:.1} s) {said}", began.elapsed().as_secs_f64()),
            Err(why) => {
                println!("FAIL  {name}: {why:#}");
                if let Ok(log) = walk.scene.podman(&["logs", "sidecar"]) {
                    println!("--- sidecar ---\n{log}");
                }
                println!("{passed} passed, 1 failed");
                bail!("image --test");
            }
        }
        passed += 1;
    }
    println!("{passed} passed, 0 failed");
    Ok(())
}

struct Walk {
    scene: Scene,
    token: String,
}

/// What a check is called, and what it does; it answers with what is worth telling.
type Check = (&'static str, fn(&mut Walk) -> Result<String>);

const CHECKS: [Check; 12] = [
    ("the image holds a binary and a folder, and no shell", Walk::is_bare),
    ("it runs as nobody, on a root that cannot be written", Walk::runs_as_nobody),
    ("without an agent its health check fails", Walk::is_unhealthy_alone),
    ("a sidecar joins by its environment and turns healthy", Walk::joins),
    ("the task is a node with its place", Walk::is_a_node),
    ("without its application the instance is critical", Walk::waits_for_the_application),
    ("the healthy application passes and is called through the mesh", Walk::serves),
    ("the application calls out through its sidecar", Walk::calls_out),
    ("an unhealthy container turns the instance critical, and back", Walk::follows_health),
    ("a stopped task leaves the catalog within 5 s", Walk::leaves),
    ("the proxy outlives the application", Walk::outlives),
    ("then the sidecar ends with 0 and has told no secret", Walk::ends),
];

impl Walk {
    fn is_bare(&mut self) -> Result<String> {
        let id = self.scene.podman(&["create", IMAGE])?;
        let id = id.trim();
        let mounted = self.scene.podman(&["mount", id])?;
        let mut files = Vec::new();
        list(Path::new(mounted.trim()), Path::new("/"), &mut files)?;
        self.scene.podman(&["umount", id])?;
        self.scene.podman(&["rm", "--volumes", id])?;
        files.retain(|file| !MADE_BY_THE_ENGINE.iter().any(|made| file.starts_with(made)));
        ensure!(files == ["/usr/bin/hawser"], "{files:?}");
        Ok(String::new())
    }

    fn runs_as_nobody(&mut self) -> Result<String> {
        let user = self.scene.podman(&["inspect", "--format", "{{.User}}", IMAGE])?;
        ensure!(user.trim() == "65532:65532", "{user}");
        let ran = self.scene.once(&["--version"])?;
        let said = String::from_utf8_lossy(&ran.stdout);
        ensure!(ran.status.success() && said.starts_with("hawser "), "{ran:?}");
        Ok(said.trim().to_owned())
    }

    fn is_unhealthy_alone(&mut self) -> Result<String> {
        let health = self.scene.once(&["health"])?;
        ensure!(health.status.code() == Some(1), "{health:?}");
        Ok(String::new())
    }

    fn joins(&mut self) -> Result<String> {
        let body = json!({ "Node": format!("ecs-{TASK_ID}"), "TTL": "120s" }).to_string();
        let put = ["--request", "PUT", "--data", &body];
        let (minted, _) =
            wait_for("a join token", PATIENCE, || self.scene.ask(&put, "/v1/hawser/join-token"))?;
        minted["Token"].as_str().context("a token")?.clone_into(&mut self.token);
        self.scene.start_sidecar(&self.token)?;
        let (_, took) = wait_for("the image's health check to pass", PATIENCE, || {
            self.scene.podman(&["healthcheck", "run", "sidecar"])
        })?;
        Ok(format!("healthy {took:.1?} after its start"))
    }

    fn is_a_node(&mut self) -> Result<String> {
        let all = self.instances("")?;
        let [one] = &all[..] else { bail!("{} instances", all.len()) };
        let node = &one["Node"];
        ensure!(node["Node"] == format!("ecs-{TASK_ID}"), "{node}");
        ensure!(
            node["Locality"] == json!({ "Region": "eu-west-1", "Zone": "eu-west-1a" }),
            "{node}"
        );
        ensure!(node["Meta"]["family"] == "web" && node["Address"] == "10.203.0.2", "{node}");
        ensure!(one["Service"]["ID"] == format!("web-{TASK_ID}"), "{one}");
        Ok(String::new())
    }

    fn waits_for_the_application(&mut self) -> Result<String> {
        ensure!(self.instances("?passing")?.is_empty(), "callers would be sent to nobody");
        Ok(String::new())
    }

    fn serves(&mut self) -> Result<String> {
        self.scene.start_application()?;
        self.scene.say("/Containers/1/KnownStatus", &json!("RUNNING"))?;
        self.scene.say("/Containers/1/Health/status", &json!("HEALTHY"))?;
        self.until_passing(1)?;
        let (said, took) = wait_for("an answer through the mesh", PATIENCE, || {
            self.scene.fetch(Side::Server, &[], "http://127.0.0.1:5001/")
        })?;
        ensure!(said == "from the task\n", "{said}");
        Ok(format!("called {took:.1?} after it passed"))
    }

    fn calls_out(&mut self) -> Result<String> {
        self.call_out()?;
        Ok(String::new())
    }

    fn follows_health(&mut self) -> Result<String> {
        self.scene.say("/Containers/1/Health/status", &json!("UNHEALTHY"))?;
        let down = self.until_passing(0)?;
        self.scene.say("/Containers/1/Health/status", &json!("HEALTHY"))?;
        let up = self.until_passing(1)?;
        Ok(format!("seen after {down:.1?} and {up:.1?}"))
    }

    fn leaves(&mut self) -> Result<String> {
        self.scene.podman(&["kill", "--signal", "TERM", "sidecar"])?;
        let (_, took) = wait_for("the task to leave the catalog", LEAVE_WITHIN, || {
            let left = self.instances("")?;
            ensure!(left.is_empty(), "{} instances", left.len());
            Ok(())
        })?;
        Ok(format!("left after {took:.1?}"))
    }

    fn outlives(&mut self) -> Result<String> {
        self.call_out()?;
        let unready = self.scene.podman(&["healthcheck", "run", "sidecar"]);
        ensure!(unready.is_err(), "a sidecar that stops must not be healthy");
        Ok(String::new())
    }

    fn ends(&mut self) -> Result<String> {
        self.scene.podman(&["stop", "--time", "1", "application"])?;
        self.scene.say("/Containers/1/KnownStatus", &json!("STOPPED"))?;
        let began = Instant::now();
        let code = self.scene.podman(&["wait", "sidecar"])?;
        ensure!(code.trim() == "0", "exit code {code}");
        let log = self.scene.podman(&["logs", "sidecar"])?;
        ensure!(!log.contains(&self.token), "the join token is in the log");
        Ok(format!("ended {:.1?} after its application", began.elapsed()))
    }

    /// From inside the application's container, as the application would.
    fn call_out(&self) -> Result<()> {
        let call = ["exec", "application", "/busybox", "wget", "-qO-", "http://127.0.0.1:5002/"];
        let (said, _) = wait_for("the backend's answer", PATIENCE, || self.scene.podman(&call))?;
        ensure!(said == "from the backend\n", "{said}");
        Ok(())
    }

    fn instances(&self, only: &str) -> Result<Vec<Value>> {
        let found = self.scene.ask(&[], &format!("/v1/health/service/web{only}"))?;
        found.as_array().cloned().context("a list")
    }

    fn until_passing(&self, count: usize) -> Result<Duration> {
        let (_, took) = wait_for("the instance's health", PATIENCE, || {
            let passing = self.instances("?passing")?.len();
            ensure!(passing == count, "{passing} passing, not {count}");
            Ok(())
        })?;
        Ok(took)
    }
}

/// Every file below `folder`, as seen from `root`.
fn list(folder: &Path, root: &Path, files: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = root.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &path, files)?;
        } else {
            files.push(path.display().to_string());
        }
    }
    Ok(())
}

/// Mount points that a container needs, empty in the image itself.
const MADE_BY_THE_ENGINE: [&str; 5] = ["/dev", "/etc", "/proc", "/run", "/sys"];
const PATIENCE: Duration = Duration::from_secs(40);
/// What the mission asks for.
const LEAVE_WITHIN: Duration = Duration::from_secs(5);
