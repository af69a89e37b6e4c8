//! Watching an ECS task: its containers' health becomes checks, its end the host's leaving.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::definition::{CheckKind, CheckSpec};
use hawser_core::health::{Status, Thresholds};
use hawser_core::name::{CheckId, InstanceId};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::ecs::{Config, Container, Known, Task};
use crate::local::{Local, Unknown};

/// What watching needs.
pub(crate) struct Watch {
    pub(crate) config: Config,
    pub(crate) local: Arc<Local>,
    /// Cancelled once ECS wants the task stopped: with `dependsOn`, ECS ends the application first
    /// and signals the sidecar only afterwards, which is too late to leave the catalog.
    pub(crate) leave: CancellationToken,
    /// Told whether the application's containers still run.
    pub(crate) application_runs: watch::Sender<bool>,
}

/// One check of the task.
struct Finding {
    name: String,
    status: Status,
    output: String,
}

impl Watch {
    /// Looks at the task every second until `drain`. Metadata that does not come changes nothing:
    /// what was known last stands.
    pub(crate) async fn run(self, drain: CancellationToken) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = BTreeSet::new();
        let mut is_answered = true;
        loop {
            tokio::select! {
                () = drain.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let task = match self.config.endpoint.task().await {
                Ok(task) => task,
                Err(why) => {
                    if std::mem::take(&mut is_answered) {
                        tracing::warn!(%why, "the task's metadata does not come");
                    }
                    continue;
                }
            };
            if !std::mem::replace(&mut is_answered, true) {
                tracing::info!("the task's metadata comes again");
            }
            report(&self.local, &findings(&self.config, &task, &mut seen));
            self.application_runs.send_replace(application_runs(&self.config, &task));
            if task.is_stopping && !self.leave.is_cancelled() {
                tracing::info!("ECS stops the task: leaving");
                self.leave.cancel();
            }
        }
    }
}

/// Declares what is known to be checked before anything is known of it, so that no instance
/// counts as healthy before its application runs.
pub(crate) fn declare(config: &Config, local: &Local) {
    let named = config.containers.iter().flatten().map(|name| Finding::unseen(name));
    let findings: Vec<Finding> = std::iter::once(Finding::nothing_runs()).chain(named).collect();
    for instance in instances(local) {
        for finding in &findings {
            declare_one(local, &instance, finding);
        }
    }
}

/// Waits until the application's containers have stopped, at most `within`.
pub(crate) async fn outlive(mut application_runs: watch::Receiver<bool>, within: Duration) {
    if timeout(within, application_runs.wait_for(|runs| !runs)).await.is_err() {
        tracing::warn!(?within, "the application still runs: stopping all the same");
    }
}

/// How the task and its containers do; `seen` grows by those that have a health check.
fn findings(config: &Config, task: &Task, seen: &mut BTreeSet<String>) -> Vec<Finding> {
    let whole = match task.is_stopping {
        true => Finding {
            name: WHOLE.to_owned(),
            status: Status::Critical,
            output: "ECS stops the task".to_owned(),
        },
        false if application_runs(config, task) => Finding {
            name: WHOLE.to_owned(),
            status: Status::Passing,
            output: "the application's containers run".to_owned(),
        },
        false => Finding::nothing_runs(),
    };
    let with_check = application(config, task).filter(|one| one.health.is_some());
    seen.extend(with_check.map(|one| one.name.clone()));
    let checked = config.containers.as_ref().unwrap_or(seen);
    let each = checked.iter().map(|name| match task.container(name) {
        None => Finding::unseen(name),
        Some(container) => {
            let (status, output) = container.verdict();
            Finding { name: name.clone(), status, output: output.to_owned() }
        }
    });
    std::iter::once(whole).chain(each).collect()
}

fn application_runs(config: &Config, task: &Task) -> bool {
    application(config, task).any(|one| one.known == Known::Running)
}

/// The application's containers.
fn application<'a>(config: &'a Config, task: &'a Task) -> impl Iterator<Item = &'a Container> {
    task.containers.iter().filter(|one| match &config.containers {
        Some(named) => named.contains(&one.name),
        None => one.name != config.own,
    })
}

fn report(local: &Local, findings: &[Finding]) {
    for instance in instances(local) {
        for finding in findings {
            let Some(id) = check_id(&instance, &finding.name) else { continue };
            let told = local.report(&id, finding.status, &finding.output);
            if matches!(told, Err(Unknown::Check(_))) {
                declare_one(local, &instance, finding);
                // Refused a second time there is nothing to report to, and the log says why.
                let _ = local.report(&id, finding.status, &finding.output);
            }
        }
    }
}

/// The services that the task's own configuration declares. A gateway is the agent itself.
fn instances(local: &Local) -> Vec<InstanceId> {
    let services = local.services();
    let applications = services.iter().filter(|held| held.instance.gateway.is_none());
    applications.map(|held| held.instance.id.clone()).collect()
}

fn declare_one(local: &Local, instance: &InstanceId, finding: &Finding) {
    let Some(id) = check_id(instance, &finding.name) else { return };
    let spec = CheckSpec {
        id,
        name: format!("ECS {}", finding.name).into(),
        notes: "".into(),
        instance: Some(instance.clone()),
        initial: Status::Critical,
        thresholds: Thresholds::default(),
        kind: CheckKind::Ttl(STANDS_FOR),
        interval: LOOK_EVERY,
        timeout: LOOK_EVERY,
        output_max: OUTPUT_OCTETS_MAX,
        deregister_after: None,
    };
    if let Err(why) = local.declare_for_task(spec) {
        tracing::error!(%why, "a container is not checked");
    }
}

/// As Consul's sidecars for ECS call theirs.
fn check_id(instance: &InstanceId, name: &str) -> Option<CheckId> {
    let id = format!("{instance}-{name}").parse();
    id.inspect_err(|why| tracing::debug!(%why, name, "no check can be called so")).ok()
}

impl Finding {
    fn unseen(name: &str) -> Self {
        let output = "the task has no such container yet".to_owned();
        Self { name: name.to_owned(), status: Status::Critical, output }
    }

    fn nothing_runs() -> Self {
        let output = "no container of the application runs".to_owned();
        Self { name: WHOLE.to_owned(), status: Status::Critical, output }
    }
}

/// The check about the task as a whole. No container can be called so.
const WHOLE: &str = "ecs.task";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Metadata that stays away must not take down what still serves.
const STANDS_FOR: Duration = Duration::from_secs(24 * 3600);
const OUTPUT_OCTETS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::ecs::Endpoint;
    use crate::ecs::tests::fargate;

    fn config(containers: Option<&[&str]>) -> Config {
        let named = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Config {
            endpoint: Endpoint::on_loopback("http://127.0.0.1:9/v4/x").expect("an endpoint"),
            own: "hawser".to_owned(),
            containers: containers.map(named),
            stop_timeout: Duration::from_secs(1),
        }
    }

    fn task(change: impl Fn(&mut Value)) -> Task {
        let mut value = fargate();
        change(&mut value);
        Task::parse(value.to_string().as_bytes()).expect("a task")
    }

    fn found(config: &Config, task: &Task) -> Vec<(String, Status)> {
        let found = findings(config, task, &mut BTreeSet::new());
        found.into_iter().map(|one| (one.name, one.status)).collect()
    }

    #[test]
    fn the_application_decides_about_health_and_the_sidecar_does_not() {
        use Status::{Critical, Passing};
        type Rows<'a> = &'a [(&'a str, Status)];
        let cases: &[(&str, Task, Option<&[&str]>, Rows<'_>)] = &[
            ("as it is", task(|_| {}), None, &[(WHOLE, Passing), ("app", Passing)]),
            (
                "the application is not there yet",
                task(|task| {
                    task["Containers"] = json!([{ "Name": "hawser", "KnownStatus": "RUNNING" }])
                }),
                None,
                &[(WHOLE, Critical)],
            ),
            (
                "its health check fails",
                task(|task| task["Containers"][0]["Health"]["status"] = json!("UNHEALTHY")),
                None,
                &[(WHOLE, Passing), ("app", Critical)],
            ),
            (
                "it has no health check",
                task(|task| task["Containers"][0]["Health"] = Value::Null),
                None,
                &[(WHOLE, Passing)],
            ),
            (
                "it has none and is named",
                task(|task| task["Containers"][0]["Health"] = Value::Null),
                Some(&["app"]),
                &[(WHOLE, Passing), ("app", Passing)],
            ),
            (
                "another is named that is not there",
                task(|_| {}),
                Some(&["db"]),
                &[(WHOLE, Critical), ("db", Critical)],
            ),
            (
                "it has stopped",
                task(|task| task["Containers"][0]["KnownStatus"] = json!("STOPPED")),
                None,
                &[(WHOLE, Critical), ("app", Critical)],
            ),
            (
                "ECS stops the task",
                task(|task| task["DesiredStatus"] = json!("STOPPED")),
                None,
                &[(WHOLE, Critical), ("app", Passing)],
            ),
        ];
        for (why, task, named, expected) in cases {
            let found = found(&config(*named), task);
            let expected: Vec<_> =
                expected.iter().map(|(name, status)| ((*name).to_owned(), *status)).collect();
            assert_eq!(found, expected, "{why}");
        }
    }

    #[test]
    fn a_container_that_had_a_health_check_is_missed_when_it_goes() {
        let (config, mut seen) = (config(None), BTreeSet::new());
        findings(&config, &task(|_| {}), &mut seen);
        let later = findings(&config, &task(|task| task["Containers"] = json!([])), &mut seen);
        let app = later.iter().find(|one| one.name == "app").expect("still looked for");
        assert_eq!(app.status, Status::Critical);
    }

    #[tokio::test]
    async fn the_proxy_outlives_the_application_but_not_for_ever() {
        let (tell, told) = watch::channel(true);
        let waiting = tokio::spawn(outlive(told, Duration::from_secs(3600)));
        tell.send_replace(false);
        waiting.await.expect("it ends with the application");
        let (_tell, told) = watch::channel(true);
        outlive(told, Duration::ZERO).await;
    }
}
