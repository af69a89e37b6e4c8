//! Running ECS tasks by tag: their arns, then what they are.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::json;

use crate::query::Query;

/// The operations that are asked for, as the service calls them.
pub(crate) const LIST: &str = "AmazonEC2ContainerServiceV20141113.ListTasks";
pub(crate) const DESCRIBE: &str = "AmazonEC2ContainerServiceV20141113.DescribeTasks";

/// One page of tasks.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listed {
    #[serde(default)]
    pub(crate) task_arns: Vec<String>,
    #[serde(default)]
    pub(crate) next_token: Option<String>,
}

#[derive(Deserialize)]
struct Described {
    #[serde(default)]
    tasks: Vec<Task>,
}

#[derive(Deserialize)]
struct Task {
    #[serde(default)]
    tags: Vec<Pair>,
    #[serde(default)]
    attachments: Vec<Attachment>,
}

#[derive(Deserialize)]
struct Pair {
    #[serde(alias = "name")]
    key: Option<String>,
    value: Option<String>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(default)]
    details: Vec<Pair>,
}

/// The body that asks for the page of arns at `next`.
pub(crate) fn list(cluster: &str, family: Option<&str>, next: Option<&str>) -> String {
    let mut asked = json!({ "cluster": cluster, "desiredStatus": "RUNNING", "maxResults": 100 });
    if let Some(family) = family {
        asked["family"] = family.into();
    }
    if let Some(next) = next {
        asked["nextToken"] = next.into();
    }
    asked.to_string()
}

/// The body that asks what `tasks` are, at most a hundred.
pub(crate) fn describe(cluster: &str, tasks: &[String]) -> String {
    json!({ "cluster": cluster, "tasks": tasks, "include": ["TAGS"] }).to_string()
}

/// The addresses of the tasks in an answer that carry the tag.
pub(crate) fn addresses(body: &[u8], query: &Query) -> Result<Vec<IpAddr>, serde_json::Error> {
    let described: Described = serde_json::from_slice(body)?;
    let is = |pair: &Pair, key: &str| pair.key.as_deref() == Some(key);
    let tagged = |task: &Task| {
        let value = Some(query.tag_value.as_str());
        task.tags.iter().any(|tag| is(tag, &query.tag_key) && tag.value.as_deref() == value)
    };
    let address = |task: &Task| {
        let details = task.attachments.iter().flat_map(|attachment| &attachment.details);
        let mut found = details.filter(|detail| is(detail, "privateIPv4Address"));
        found.find_map(|detail| detail.value.as_deref()?.parse().ok())
    };
    Ok(described.tasks.iter().filter(|task| tagged(task)).filter_map(address).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_counts_by_its_tag_and_has_its_interfaces_address() {
        let query = Query::parse("provider=aws tag_key=role tag_value=mesh").expect("a query");
        let task = |value: &str, address: &str| {
            json!({
                "tags": [{ "key": "role", "value": value }],
                "attachments": [{ "type": "ElasticNetworkInterface", "details": [
                    { "name": "subnetId", "value": "s" },
                    { "name": "privateIPv4Address", "value": address },
                ] }],
            })
        };
        let cases = [
            (json!({ "tasks": [task("mesh", "10.0.0.1"), task("web", "10.0.0.2")] }), 1),
            (json!({ "tasks": [task("mesh", "evil")] }), 0),
            (json!({ "tasks": [{}] }), 0),
            (json!({}), 0),
        ];
        for (answer, count) in cases {
            let found = addresses(answer.to_string().as_bytes(), &query).expect("an answer");
            assert_eq!(found.len(), count, "{answer}");
        }
        assert!(addresses(b"<xml/>", &query).is_err());
    }
}
