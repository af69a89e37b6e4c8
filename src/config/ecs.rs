//! What an ECS task's metadata fills into a configuration: name, address, place and service.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_agent::ecs::{Config, Endpoint, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Raw, into_list, span};

/// What files may say about life in a task.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawEcs {
    enabled: Option<bool>,
    service_name: Option<String>,
    service_port: Option<u16>,
    containers: Option<BTreeSet<String>>,
    stop_timeout: Option<String>,
}

/// What the environment says about the task.
#[derive(Clone, Debug, Default)]
pub(crate) struct Variables {
    metadata_uri: Option<String>,
    may_be_loopback: bool,
    service_name: Option<String>,
    service_port: Option<String>,
}

/// The task around this agent, as it was when the agent started.
#[derive(Clone, Debug)]
pub(crate) struct Sidecar {
    task: Task,
    own: String,
    address: Option<IpAddr>,
    endpoint: Endpoint,
    variables: Variables,
}

impl Variables {
    /// Reads them: ECS sets the first, the task definition may set the others.
    pub(crate) fn from_environment() -> Self {
        let stated = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            metadata_uri: stated("ECS_CONTAINER_METADATA_URI_V4"),
            may_be_loopback: stated("HAWSER_ECS_METADATA_LOOPBACK").as_deref() == Some("1"),
            service_name: stated("HAWSER_SERVICE_NAME"),
            service_port: stated("HAWSER_SERVICE_PORT"),
        }
    }
}

impl Sidecar {
    /// Asks the metadata endpoint about the task; none outside of tasks, or where `ecs` is off.
    ///
    /// # Errors
    /// An endpoint where none may be, or one that gives no metadata for some seconds.
    pub(crate) async fn find(raw: &Raw, variables: Variables) -> Result<Option<Self>> {
        if raw.ecs.as_ref().is_some_and(|ecs| ecs.enabled == Some(false)) {
            return Ok(None);
        }
        let Some(uri) = &variables.metadata_uri else {
            ensure!(
                raw.ecs.is_none(),
                "ecs: ECS_CONTAINER_METADATA_URI_V4 is not set: outside of a task leave `ecs` out"
            );
            return Ok(None);
        };
        let parsed = match variables.may_be_loopback {
            true => Endpoint::on_loopback(uri),
            false => uri.parse(),
        };
        let endpoint = parsed.context("ECS_CONTAINER_METADATA_URI_V4")?;
        let mut tries = 1;
        let (own, task) = loop {
            let asked =
                async { Ok::<_, anyhow::Error>((endpoint.own().await?, endpoint.task().await?)) };
            match asked.await {
                Ok(found) => break found,
                Err(why) if tries == TRIES => {
                    return Err(why).context("the task's metadata does not come");
                }
                Err(_) => sleep(PAUSE).await,
            }
            tries += 1;
        };
        let shared = || task.containers.iter().find_map(|container| container.address);
        let address = own.address.or_else(shared);
        Ok(Some(Self { own: own.name, address, task, endpoint, variables }))
    }

    /// Sets what the configuration left out. What it says stands.
    ///
    /// # Errors
    /// A task without an address of its own, or whose family is no service's name.
    pub(crate) fn fill(&self, raw: &mut Raw) -> Result<()> {
        let task = &self.task;
        raw.node_name.get_or_insert_with(|| format!("ecs-{}", task.id));
        if raw.advertise_addr.is_none() {
            raw.advertise_addr = Some(self.address.context(
                "advertise_addr: the task has no address of its own: use network mode awsvpc, or \
                 say the address",
            )?);
        }
        raw.data_dir.get_or_insert_with(|| DATA_DIR.into());
        let locality = raw.locality.get_or_insert_default();
        locality.region.get_or_insert_with(|| task.region.clone());
        locality.zone = locality.zone.take().or_else(|| task.zone.clone());
        let meta = raw.node_meta.get_or_insert_default();
        let said = [
            ("task-arn", &task.arn),
            ("cluster", &task.cluster),
            ("family", &task.family),
            ("revision", &task.revision),
        ];
        for (key, value) in said {
            meta.entry(key.to_owned()).or_insert_with(|| value.clone());
        }
        let proxy = raw.proxy.get_or_insert_default();
        proxy.drain.get_or_insert_with(|| DRAIN.to_owned());
        self.fill_service(raw)
    }

    /// How the agent watches the task.
    ///
    /// # Errors
    /// A stop timeout that is no duration.
    pub(crate) fn watch(&self, raw: &Raw) -> Result<Config> {
        let ecs = raw.ecs.clone().unwrap_or_default();
        Ok(Config {
            endpoint: self.endpoint.clone(),
            own: self.own.clone(),
            containers: ecs.containers,
            stop_timeout: span("ecs.stop_timeout", ecs.stop_timeout.as_deref(), STOP_TIMEOUT)?,
        })
    }

    /// A task is a service: the one that is declared without a name or an id is given them, and
    /// where none is declared the task's is made up.
    fn fill_service(&self, raw: &mut Raw) -> Result<()> {
        let ecs = raw.ecs.clone().unwrap_or_default();
        let mut declared: Vec<&mut Value> = Vec::new();
        for held in [&mut raw.service, &mut raw.services].into_iter().flatten() {
            *held = Value::Array(into_list(held.take()));
            declared.extend(held.as_array_mut().into_iter().flatten());
        }
        if let [one] = &mut declared[..] {
            let Some(fields) = one.as_object_mut() else { return Ok(()) };
            let text = |key: &str| {
                let found = fields.iter().find(|(held, _)| held.eq_ignore_ascii_case(key));
                found.and_then(|(_, value)| value.as_str()).map(ToOwned::to_owned)
            };
            let (name, id) = (text("name"), text("id"));
            let name = match name {
                Some(name) => name,
                None => {
                    let name = self.service_name(&ecs)?;
                    fields.insert("name".to_owned(), name.clone().into());
                    name
                }
            };
            if id.is_none() {
                fields.insert("id".to_owned(), self.instance_id(&name).into());
            }
            return Ok(());
        }
        // A task that is a mesh gateway, and says nothing of a service, is nothing else.
        let is_named = ecs.service_name.is_some() || self.variables.service_name.is_some();
        if declared.is_empty() && (is_named || raw.mesh_gateway.is_none()) {
            let name = self.service_name(&ecs)?;
            let mut service = json!({
                "name": name,
                "id": self.instance_id(&name),
                "connect": { "sidecar_service": {} },
            });
            if let Some(port) = self.service_port(&ecs)? {
                service["port"] = port.into();
            }
            raw.service = Some(service);
        }
        Ok(())
    }

    fn service_name(&self, ecs: &RawEcs) -> Result<String> {
        if let Some(name) = self.variables.service_name.clone().or(ecs.service_name.clone()) {
            return Ok(name);
        }
        let name = self.task.family.to_ascii_lowercase().replace('_', "-");
        let parsed = hawser_core::name::ServiceName::in_mesh(&name);
        parsed.with_context(|| {
            format!(
                "the family {:?} is no service's name: set HAWSER_SERVICE_NAME",
                self.task.family
            )
        })?;
        Ok(name)
    }

    fn service_port(&self, ecs: &RawEcs) -> Result<Option<u16>> {
        match &self.variables.service_port {
            None => Ok(ecs.service_port),
            Some(text) => {
                Ok(Some(text.parse().with_context(|| format!("HAWSER_SERVICE_PORT: {text:?}"))?))
            }
        }
    }

    fn instance_id(&self, name: &str) -> String {
        format!("{name}-{}", self.task.id)
    }
}

const DATA_DIR: &str = "/var/lib/hawser";
/// Together within the two minutes that ECS gives a container at most.
const STOP_TIMEOUT: Duration = Duration::from_secs(100);
const DRAIN: &str = "10s";
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn sidecar(family: &str, variables: Variables) -> Sidecar {
        let task = json!({
            "Cluster": "prod",
            "TaskARN": "arn:aws:ecs:eu-west-1:111122223333:task/prod/0af1",
            "Family": family, "Revision": "7", "AvailabilityZone": "eu-west-1b",
        });
        Sidecar {
            task: Task::parse(task.to_string().as_bytes()).expect("a task"),
            own: "hawser".to_owned(),
            address: Some(IpAddr::from([10, 0, 3, 4])),
            endpoint: "http://169.254.170.2/v4/x".parse().expect("an endpoint"),
            variables,
        }
    }

    fn filled(sidecar: &Sidecar, said: Value) -> Result<Value> {
        let mut raw: Raw = serde_json::from_value(said).expect("a configuration");
        sidecar.fill(&mut raw)?;
        Ok(serde_json::to_value(&raw).expect("JSON"))
    }

    #[test]
    fn a_task_is_a_node_and_a_service_by_itself() {
        let raw = filled(&sidecar("Shop_Web", Variables::default()), json!({})).expect("filled");
        let expected = [
            ("/node_name", json!("ecs-0af1")),
            ("/advertise_addr", json!("10.0.3.4")),
            ("/data_dir", json!("/var/lib/hawser")),
            ("/locality", json!({ "region": "eu-west-1", "zone": "eu-west-1b" })),
            ("/node_meta/task-arn", json!("arn:aws:ecs:eu-west-1:111122223333:task/prod/0af1")),
            ("/node_meta/cluster", json!("prod")),
            ("/node_meta/family", json!("Shop_Web")),
            ("/node_meta/revision", json!("7")),
            ("/proxy/drain", json!("10s")),
            ("/service/name", json!("shop-web")),
            ("/service/id", json!("shop-web-0af1")),
            ("/service/connect", json!({ "sidecar_service": {} })),
        ];
        for (pointer, value) in expected {
            assert_eq!(raw.pointer(pointer), Some(&value), "{pointer}");
        }
    }

    #[test]
    fn what_is_said_stands() {
        let said = json!({
            "node_name": "only-one", "advertise_addr": "10.0.0.1", "data_dir": "/data",
            "locality": { "zone": "z" }, "node_meta": { "family": "mine" },
            "proxy": { "drain": "1s" },
            "services": [{ "Name": "api", "Port": 80 }],
        });
        let raw = filled(&sidecar("web", Variables::default()), said).expect("filled");
        let expected = [
            ("/node_name", json!("only-one")),
            ("/advertise_addr", json!("10.0.0.1")),
            ("/data_dir", json!("/data")),
            ("/locality", json!({ "region": "eu-west-1", "zone": "z" })),
            ("/node_meta/family", json!("mine")),
            ("/proxy/drain", json!("1s")),
            ("/services/0", json!({ "Name": "api", "Port": 80, "id": "api-0af1" })),
        ];
        for (pointer, value) in expected {
            assert_eq!(raw.pointer(pointer), Some(&value), "{pointer}");
        }
    }

    #[test]
    fn the_service_s_name_and_port_come_from_where_they_are_said_first() {
        let named = |name: &str, port: &str| Variables {
            service_name: Some(name.to_owned()),
            service_port: Some(port.to_owned()),
            ..Variables::default()
        };
        let cases = [
            // family, variables, file, name and port, or part of the error
            ("web", Variables::default(), json!({}), Ok(("web", None))),
            ("web", named("api", "81"), json!({}), Ok(("api", Some(81)))),
            (
                "web",
                named("api", "81"),
                json!({ "ecs": { "service_name": "x", "service_port": 9 } }),
                Ok(("api", Some(81))),
            ),
            (
                "web",
                Variables::default(),
                json!({ "ecs": { "service_name": "x", "service_port": 9 } }),
                Ok(("x", Some(9))),
            ),
            ("web", named("api", "81"), json!({ "service": { "port": 7 } }), Ok(("api", Some(7)))),
            ("web-", Variables::default(), json!({}), Err("set HAWSER_SERVICE_NAME")),
            ("web", named("api", "many"), json!({}), Err("HAWSER_SERVICE_PORT")),
        ];
        for (family, variables, file, expected) in cases {
            match (filled(&sidecar(family, variables), file.clone()), expected) {
                (Ok(raw), Ok((name, port))) => {
                    let services = into_list(raw["service"].clone());
                    assert_eq!(services[0]["name"], name, "{file}");
                    assert_eq!(services[0].get("port").and_then(Value::as_u64), port, "{file}");
                }
                (Err(why), Err(part)) => assert!(format!("{why:#}").contains(part), "{why:#}"),
                (filled, _) => panic!("{family} {file}: {filled:?}"),
            }
        }
    }

    #[test]
    fn several_services_are_left_as_they_are_and_a_task_needs_an_address() {
        let two = json!({ "services": [{ "name": "a" }, { "name": "b", "id": "b1" }] });
        let mut web = sidecar("web", Variables::default());
        assert_eq!(filled(&web, two.clone()).expect("filled")["services"], two["services"]);
        web.address = None;
        let refused = filled(&web, json!({})).expect_err("it cannot be reached");
        assert!(format!("{refused:#}").contains("awsvpc"), "{refused:#}");
        assert!(filled(&web, json!({ "advertise_addr": "10.0.0.1" })).is_ok());
    }

    #[tokio::test]
    async fn only_a_task_has_a_sidecar() {
        let uri =
            |text: &str| Variables { metadata_uri: Some(text.to_owned()), ..Variables::default() };
        let cases = [
            // file, variables, part of the error; none: no sidecar
            (json!({}), Variables::default(), None),
            (json!({ "ecs": { "enabled": false } }), uri("http://10.0.0.1/"), None),
            (json!({ "ecs": {} }), Variables::default(), Some("outside of a task")),
            (json!({}), uri("http://10.0.0.1/v4/x"), Some("no task metadata endpoint")),
            (json!({}), uri("http://127.0.0.1:1/v4/x"), Some("no task metadata endpoint")),
        ];
        for (file, variables, expected) in cases {
            let raw: Raw = serde_json::from_value(file.clone()).expect("a configuration");
            match (Sidecar::find(&raw, variables).await, expected) {
                (Ok(None), None) => {}
                (Err(why), Some(part)) => assert!(format!("{why:#}").contains(part), "{why:#}"),
                (found, _) => panic!("{file}: {found:?}"),
            }
        }
    }
}
