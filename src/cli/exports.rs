//! `hawser services export` and its lists: which services peers may use, and which they offer.

use anyhow::{Context, Result, bail};
use hawser_api::client::{Client, ClientError};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::output::{self, Formatted, Table, visible};

/// Lets `peers` use `service`, besides those who may already.
///
/// # Errors
/// An entry that somebody else changed meanwhile, and the API's.
pub(crate) async fn export(client: &Client, service: &str, peers: &[String]) -> Result<()> {
    let (entry, index) = match client.get::<Value>(ENTRY, &[]).await {
        Ok((entry, _)) => {
            let index = entry["ModifyIndex"].as_u64().unwrap_or_default();
            (entry, index)
        }
        Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
            (json!({"Kind": "exported-services", "Name": "default", "Services": []}), 0)
        }
        Err(error) => return Err(error.into()),
    };
    let entry = with_consumers(entry, service, peers)?;
    let index = index.to_string();
    let written = client
        .put::<_, Value>("/v1/config", &[("cas", index.as_str())], &entry)
        .await
        .with_context(|| format!("exporting {}", visible(service)))?;
    if written == Value::Bool(false) {
        bail!("the entry exported-services/default was changed meanwhile: try again");
    }
    let peers: Vec<String> = peers.iter().map(|peer| visible(peer)).collect();
    output::print(&format!("Exported {} to {}.\n", visible(service), peers.join(", ")))
}

/// `entry` with `peers` among the consumers of `service`.
fn with_consumers(mut entry: Value, service: &str, peers: &[String]) -> Result<Value> {
    let services = entry["Services"].as_array_mut().context("the entry has no Services")?;
    let at = match services.iter().position(|held| held["Name"] == service) {
        Some(at) => at,
        None => {
            services.push(json!({"Name": service, "Consumers": []}));
            services.len() - 1
        }
    };
    let held = services[at]["Consumers"].as_array_mut().context("a service has no Consumers")?;
    for peer in peers {
        let consumer = json!({"Peer": peer});
        if !held.contains(&consumer) {
            held.push(consumer);
        }
    }
    Ok(entry)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Exported {
    service: String,
    consumers: Consumers,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Consumers {
    peers: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Imported {
    service: String,
    source_peer: String,
}

/// Lists which services peers may use.
///
/// # Errors
/// The API's.
pub(crate) async fn exported(client: &Client, formatted: Formatted) -> Result<()> {
    let (all, _) = client.get::<Value>("/v1/exported-services", &[]).await?;
    let services = Vec::<Exported>::deserialize(&all).context("the reply is no list")?;
    formatted.print(&all, |_| {
        let mut table = Table::new(["Service", "Consumer Peers"]);
        for Exported { service, consumers } in &services {
            table.row([service, &consumers.peers.join(", ")]);
        }
        table.into_text()
    })
}

/// Lists which services peers offer.
///
/// # Errors
/// The API's.
pub(crate) async fn imported(client: &Client, formatted: Formatted) -> Result<()> {
    let (all, _) = client.get::<Value>("/v1/imported-services", &[]).await?;
    let services = Vec::<Imported>::deserialize(&all).context("the reply is no list")?;
    formatted.print(&all, |_| {
        let mut table = Table::new(["Service", "Source Peer"]);
        for Imported { service, source_peer } in &services {
            table.row([service, source_peer]);
        }
        table.into_text()
    })
}

const ENTRY: &str = "/v1/config/exported-services/default";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::Stub;

    #[tokio::test]
    async fn what_is_exported_already_stays_so() {
        let held = r#"{"Kind": "exported-services", "Name": "default", "ModifyIndex": 7,
            "Services": [{"Name": "db", "Consumers": [{"Peer": "north"}]},
                         {"Name": "api", "Consumers": [{"Peer": "west"}]}]}"#;
        let stub = Stub::answering(&[(200, held), (200, "true")]).await;
        let peers = ["west".to_owned(), "south".to_owned()];
        export(&stub.client(), "api", &peers).await.expect("exported");
        let requests = stub.requests();
        assert_eq!(requests[0], format!("GET {ENTRY}"));
        let body = requests[1].strip_prefix("PUT /v1/config?cas=7 ").expect("by its index");
        let body: Value = serde_json::from_str(body).expect("JSON");
        let expected = json!([
            {"Name": "db", "Consumers": [{"Peer": "north"}]},
            {"Name": "api", "Consumers": [{"Peer": "west"}, {"Peer": "south"}]},
        ]);
        assert_eq!(body["Services"], expected);
    }

    #[tokio::test]
    async fn the_first_export_makes_the_entry_and_a_race_is_told() {
        let stub = Stub::answering(&[(404, ""), (200, "false")]).await;
        let refused = export(&stub.client(), "api", &["west".to_owned()]).await.expect_err("late");
        assert!(refused.to_string().contains("try again"), "{refused}");
        let expected = r#"PUT /v1/config?cas=0 {"Kind":"exported-services","Name":"default","Services":[{"Consumers":[{"Peer":"west"}],"Name":"api"}]}"#;
        assert_eq!(stub.requests()[1], expected);
    }
}
