//! A task as its metadata describes it, made into what the mesh needs or refused by field.
//!
//! Source: AWS, "Amazon ECS task metadata V4 JSON response".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hawser_core::health::Status;
use serde::Deserialize;

/// One task.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Task {
    /// The last part of its ARN: unique for ever.
    pub id: String,
    /// Its ARN.
    pub arn: String,
    /// The region, from the ARN.
    pub region: String,
    /// The availability zone; ECS leaves it out on some launch types.
    pub zone: Option<String>,
    /// The cluster's name or ARN.
    pub cluster: String,
    /// The task definition's family.
    pub family: String,
    /// The task definition's revision.
    pub revision: String,
    /// Whether ECS wants it stopped.
    pub is_stopping: bool,
    /// Its containers, without those that ECS adds by itself.
    pub containers: Vec<Container>,
}

/// One container of a task.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Container {
    /// Its name in the task definition.
    pub name: String,
    /// How far it is.
    pub known: Known,
    /// What its health check says; none when it has none.
    pub health: Option<Health>,
    /// Its address in the VPC, when its network mode is awsvpc.
    pub address: Option<IpAddr>,
}

/// How far a container is, as far as that matters here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    /// Not running yet.
    Starting,
    /// Running.
    Running,
    /// Ended.
    Stopped,
}

/// What a container's health check says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Health {
    /// It passes.
    Healthy,
    /// It fails.
    Unhealthy,
    /// There is no result yet.
    Unknown,
}

/// Metadata that describes no task.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTask {
    /// It is no JSON, or a field has another type.
    #[error("the metadata is no JSON of a task: {0}")]
    Json(#[from] serde_json::Error),
    /// A field is not there.
    #[error("the metadata has no {0}")]
    Missing(&'static str),
    /// The ARN is none of a task.
    #[error("TaskARN {0:?} is no ARN of an ECS task")]
    Arn(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct RawTask {
    cluster: String,
    #[serde(rename = "TaskARN")]
    task_arn: String,
    family: String,
    revision: String,
    availability_zone: String,
    desired_status: String,
    containers: Vec<RawContainer>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawContainer {
    name: String,
    r#type: String,
    known_status: String,
    health: Option<RawHealth>,
    networks: Vec<RawNetwork>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawHealth {
    status: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNetwork {
    #[serde(rename = "NetworkMode")]
    mode: String,
    #[serde(rename = "IPv4Addresses")]
    v4: Vec<Ipv4Addr>,
    #[serde(rename = "IPv6Addresses")]
    v6: Vec<Ipv6Addr>,
}

impl Task {
    /// Reads the answer of `/task`.
    ///
    /// # Errors
    /// [`InvalidTask`]
    pub fn parse(json: &[u8]) -> Result<Self, InvalidTask> {
        let raw: RawTask = serde_json::from_slice(json)?;
        let stated = |field, text: String| match text.is_empty() {
            true => Err(InvalidTask::Missing(field)),
            false => Ok(text),
        };
        let arn = stated("TaskARN", raw.task_arn)?;
        let (region, id) = region_and_id(&arn).ok_or_else(|| InvalidTask::Arn(arn.clone()))?;
        Ok(Self {
            id: id.to_owned(),
            region: region.to_owned(),
            zone: Some(raw.availability_zone).filter(|zone| !zone.is_empty()),
            cluster: raw.cluster,
            family: stated("Family", raw.family)?,
            revision: raw.revision,
            is_stopping: raw.desired_status == "STOPPED",
            containers: raw
                .containers
                .into_iter()
                // The others are ECS's own: the pause container, Service Connect.
                .filter(|container| matches!(container.r#type.as_str(), "" | "NORMAL"))
                .take(CONTAINERS_MAX)
                .map(Container::from)
                .collect(),
            arn,
        })
    }

    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.name == name)
    }
}

impl Container {
    /// Reads the answer about one container.
    ///
    /// # Errors
    /// [`InvalidTask`]
    pub fn parse(json: &[u8]) -> Result<Self, InvalidTask> {
        let raw: RawContainer = serde_json::from_slice(json)?;
        match raw.name.is_empty() {
            true => Err(InvalidTask::Missing("Name")),
            false => Ok(raw.into()),
        }
    }

    /// What the mesh should think of it, and why in words.
    pub(crate) fn verdict(&self) -> (Status, &'static str) {
        match (self.known, self.health) {
            (Known::Stopped, _) => (Status::Critical, "the container has stopped"),
            (Known::Starting, _) => (Status::Critical, "the container does not run yet"),
            (Known::Running, None) => (Status::Passing, "the container runs"),
            (_, Some(Health::Healthy)) => (Status::Passing, "the container is HEALTHY"),
            (_, Some(Health::Unhealthy)) => (Status::Critical, "the container is UNHEALTHY"),
            (_, Some(Health::Unknown)) => {
                (Status::Critical, "the container's health check has no result yet")
            }
        }
    }
}

impl From<RawContainer> for Container {
    fn from(raw: RawContainer) -> Self {
        let networks = || raw.networks.iter().filter(|network| network.mode == "awsvpc");
        let v4 = networks().flat_map(|network| &network.v4).map(|ip| IpAddr::V4(*ip)).next();
        let v6 = networks().flat_map(|network| &network.v6).map(|ip| IpAddr::V6(*ip)).next();
        Self {
            known: match raw.known_status.as_str() {
                "RUNNING" | "RESOURCES_PROVISIONED" => Known::Running,
                "STOPPED" => Known::Stopped,
                _ => Known::Starting,
            },
            health: raw.health.map(|health| match health.status.as_str() {
                "HEALTHY" => Health::Healthy,
                "UNHEALTHY" => Health::Unhealthy,
                _ => Health::Unknown,
            }),
            address: v4.or(v6),
            name: raw.name,
        }
    }
}

/// `arn:<partition>:ecs:<region>:<account>:task/[<cluster>/]<id>`
fn region_and_id(arn: &str) -> Option<(&str, &str)> {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", _, "ecs", region, _, resource] = parts[..] else { return None };
    let id = resource.strip_prefix("task/")?.rsplit('/').next()?;
    let is_label = |text: &str, most: usize| {
        let fits = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-';
        !text.is_empty() && text.len() <= most && text.bytes().all(fits)
    };
    (is_label(region, REGION_OCTETS_MAX) && is_label(id, ID_OCTETS_MAX)).then_some((region, id))
}

/// ECS takes 10 containers in a task.
const CONTAINERS_MAX: usize = 64;
const REGION_OCTETS_MAX: usize = 32;
/// With its prefix it must fit a node's name.
const ID_OCTETS_MAX: usize = 48;

#[cfg(test)]
pub(crate) mod tests {
    use hawser_fuzz::Target;
    use serde_json::{Value, json};

    use super::*;

    /// A task on Fargate with an application that has a health check, and a sidecar.
    pub(crate) fn fargate() -> Value {
        json!({
            "Cluster": "arn:aws:ecs:us-west-2:111122223333:cluster/default",
            "TaskARN": "arn:aws:ecs:us-west-2:111122223333:task/default/\
                        e9028f8d5d8e4f258373e7b93ce9a3c3",
            "Family": "web", "Revision": "3",
            "DesiredStatus": "RUNNING", "KnownStatus": "NONE",
            "Limits": { "CPU": 0.25, "Memory": 512 },
            "AvailabilityZone": "us-west-2a", "LaunchType": "FARGATE",
            "Containers": [
                {
                    "DockerId": "1", "Name": "app", "Type": "NORMAL",
                    "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING",
                    "Health": { "status": "HEALTHY", "statusSince": "2026-11-20T16:00:00Z" },
                    "Networks": [{
                        "NetworkMode": "awsvpc", "IPv4Addresses": ["192.0.2.3"],
                        "AttachmentIndex": 0, "PrivateDNSName": "ip-192-0-2-3.example",
                    }],
                },
                { "Name": "hawser", "Type": "NORMAL", "KnownStatus": "RUNNING" },
                { "Name": "~internal~ecs~pause", "Type": "CNI_PAUSE", "KnownStatus": "RUNNING" },
            ],
        })
    }

    fn parse(value: &Value) -> Result<Task, InvalidTask> {
        Task::parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_task_says_who_and_where_it_is() {
        let task = parse(&fargate()).expect("a task");
        assert_eq!(task.id, "e9028f8d5d8e4f258373e7b93ce9a3c3");
        assert_eq!((task.region.as_str(), task.zone.as_deref()), ("us-west-2", Some("us-west-2a")));
        assert_eq!((task.family.as_str(), task.revision.as_str()), ("web", "3"));
        assert!(!task.is_stopping);
        let names: Vec<&str> = task.containers.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["app", "hawser"], "what ECS adds is no part of the application");
        let app = task.container("app").expect("there");
        assert_eq!(app.address, Some(IpAddr::from([192, 0, 2, 3])));
    }

    #[test]
    fn arns_of_tasks_have_a_region_and_an_id() {
        let cases = [
            ("arn:aws:ecs:us-east-1:1:task/default/0af1", Some(("us-east-1", "0af1"))),
            ("arn:aws:ecs:us-east-1:1:task/0af1-22", Some(("us-east-1", "0af1-22"))),
            ("arn:aws-cn:ecs:cn-north-1:1:task/c/0af1", Some(("cn-north-1", "0af1"))),
            ("arn:aws:ecs:us-east-1:1:cluster/default", None),
            ("arn:aws:ec2:us-east-1:1:task/default/0af1", None),
            ("arn:aws:ecs:us-east-1:1:task/default/", None),
            ("arn:aws:ecs:us-east-1:1:task/default/a b", None),
            ("arn:aws:ecs::1:task/default/0af1", None),
            ("task/default/0af1", None),
        ];
        for (arn, expected) in cases {
            assert_eq!(region_and_id(arn), expected, "{arn}");
        }
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        let cases = [
            // field, value, part of the error; none means that it may be so
            ("TaskARN", Value::Null, Some("TaskARN")),
            ("TaskARN", json!(""), Some("no TaskARN")),
            ("TaskARN", json!("arn:aws:s3:::x"), Some("no ARN of an ECS task")),
            ("Family", json!(""), Some("no Family")),
            ("Containers", json!("many"), Some("no JSON of a task")),
            ("AvailabilityZone", json!(""), None),
            ("Containers", json!([]), None),
            ("Novelty", json!({ "of": "2027" }), None),
        ];
        for (field, value, expected) in cases {
            let mut task = fargate();
            task[field] = value;
            match (parse(&task), expected) {
                (Ok(_), None) => {}
                (Err(why), Some(part)) => {
                    let why = why.to_string();
                    assert!(why.contains(part) || part == "TaskARN", "{field}: {why}");
                }
                (parsed, _) => panic!("{field}: {parsed:?}"),
            }
        }
    }

    #[test]
    fn health_is_the_check_s_word_or_that_it_runs() {
        let cases = [
            // known, health, expected
            ("RUNNING", None, Status::Passing),
            ("RUNNING", Some("HEALTHY"), Status::Passing),
            ("RUNNING", Some("UNHEALTHY"), Status::Critical),
            ("RUNNING", Some("UNKNOWN"), Status::Critical),
            ("RUNNING", Some("NEW WORD"), Status::Critical),
            ("STOPPED", Some("HEALTHY"), Status::Critical),
            ("STOPPED", None, Status::Critical),
            ("PULLED", None, Status::Critical),
            ("CREATED", Some("UNKNOWN"), Status::Critical),
            ("", None, Status::Critical),
        ];
        for (known, health, expected) in cases {
            let mut one = json!({ "Name": "app", "KnownStatus": known });
            if let Some(health) = health {
                one["Health"] = json!({ "status": health });
            }
            let container = Container::parse(one.to_string().as_bytes()).expect("a container");
            assert_eq!(container.verdict().0, expected, "{known} {health:?}");
        }
    }

    #[test]
    fn only_an_address_of_its_own_counts() {
        let cases = [
            (json!([{ "NetworkMode": "awsvpc", "IPv4Addresses": ["10.0.0.7"] }]), "10.0.0.7"),
            (
                json!([{ "NetworkMode": "awsvpc", "IPv6Addresses": ["2001:db8::7"],
                         "IPv4Addresses": ["10.0.0.7"] }]),
                "10.0.0.7",
            ),
            (json!([{ "NetworkMode": "awsvpc", "IPv6Addresses": ["2001:db8::7"] }]), "2001:db8::7"),
            (json!([{ "NetworkMode": "bridge", "IPv4Addresses": ["172.17.0.2"] }]), ""),
            (json!([]), ""),
        ];
        for (networks, expected) in cases {
            let one = json!({ "Name": "app", "Networks": networks });
            let container = Container::parse(one.to_string().as_bytes()).expect("a container");
            assert_eq!(container.address, expected.parse().ok(), "{networks}");
        }
    }

    #[test]
    fn what_the_platform_says_is_read_or_refused() {
        let made = [fargate().to_string().into_bytes()];
        Target::new("ecs_task").also(made).cases(5_000).run(|input| {
            let _ = Container::parse(input);
            Task::parse(input).is_ok()
        });
    }
}
