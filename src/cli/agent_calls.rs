//! `hawser health`, `info`, `monitor`, `leave` and `reload`: what the local agent says and is told.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use hawser_api::client::{Client, segment};
use hawser_core::duration;
use hyper::Method;
use serde::Deserialize;
use serde_json::Value;

use super::output::{self, Formatted, visible};

/// Whether the agent serves.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Health {
    /// How long to wait for an answer.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration::parse)]
    timeout: Duration,
}

/// The agent's log as it comes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Monitor {
    /// Show events of this level and graver ones: trace, debug, info, warn or error.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
    /// Show each event as a JSON object.
    #[arg(long)]
    log_json: bool,
}

/// A host that is gone.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ForceLeave {
    /// Nothing: the host is out of every list at once.
    #[arg(long, hide = true)]
    prune: bool,
    /// The host's name.
    node: String,
}

/// What the agent says of itself.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Info {
    #[command(flatten)]
    formatted: Formatted,
}

/// The part of `/v1/agent/self` that is read here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Own {
    config: OwnConfig,
    stats: BTreeMap<String, BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct OwnConfig {
    node_name: String,
}

/// Prints whether the agent serves; exit status 1 where it does not, for container health checks.
///
/// # Errors
/// The API's: nobody listens, or the answer did not come in time.
pub(crate) async fn health(arguments: Health, client: &Client) -> Result<ExitCode> {
    let client = client.clone().with_timeout(arguments.timeout);
    let (own, _) = client.get::<Own>(SELF, &[]).await?;
    let node = visible(&own.config.node_name);
    let ready = client.send_any(Method::GET, "/v1/hawser/ready", &[], None).await?;
    if ready.status.is_success() {
        output::print(&format!("{node} is ready\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let why = visible(String::from_utf8_lossy(&ready.body).trim());
    output::print(&format!("{node} is not ready ({}): {why}\n", ready.status.as_u16()))?;
    Ok(ExitCode::FAILURE)
}

/// Prints what the agent counts and knows, section by section.
///
/// # Errors
/// The API's.
pub(crate) async fn info(arguments: Info, client: &Client) -> Result<ExitCode> {
    let (own, _) = client.get::<Own>(SELF, &[]).await?;
    arguments.formatted.print(&own.stats, sections)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the agent's log as it comes, until the agent stops or nobody reads.
///
/// # Errors
/// The API's.
pub(crate) async fn monitor(arguments: Monitor, client: &Client) -> Result<ExitCode> {
    let mut query = vec![("loglevel", arguments.log_level.as_str())];
    if arguments.log_json {
        query.push(("logjson", ""));
    }
    let print = |piece: &bytes::Bytes| match output::print(&String::from_utf8_lossy(piece)) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    client.follow("/v1/agent/monitor", &query, print).await?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the host out of the cluster and stops its agent.
///
/// # Errors
/// The API's.
pub(crate) async fn leave(client: &Client) -> Result<ExitCode> {
    client.send(Method::PUT, "/v1/agent/leave", &[], None).await.context("leaving")?;
    output::print("Graceful leave complete\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Takes a host that is gone out of the catalog.
///
/// # Errors
/// The API's.
pub(crate) async fn force_leave(arguments: ForceLeave, client: &Client) -> Result<ExitCode> {
    let path = format!("/v1/agent/force-leave/{}", segment(&arguments.node));
    client.send(Method::PUT, &path, &[], None).await?;
    Ok(ExitCode::SUCCESS)
}

/// Lets the agent read its services and checks anew.
///
/// # Errors
/// The API's, which says what was wrong with the files.
pub(crate) async fn reload(client: &Client) -> Result<ExitCode> {
    client.send(Method::PUT, "/v1/agent/reload", &[], None).await.context("reloading")?;
    output::print("Configuration reload triggered\n")?;
    Ok(ExitCode::SUCCESS)
}

fn sections(stats: &BTreeMap<String, BTreeMap<String, Value>>) -> String {
    let mut text = String::new();
    for (name, values) in stats {
        text += &format!("{}:\n", visible(name));
        for (key, value) in values {
            let value = match value {
                Value::String(value) => visible(value),
                other => other.to_string(),
            };
            text += &format!("\t{} = {value}\n", visible(key));
        }
    }
    text
}

const SELF: &str = "/v1/agent/self";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::Stub;
    use serde_json::json;

    const OWN: &str = r#"{"Config": {"NodeName": "vm-1"}, "Stats": {"agent": {"checks": "2"}}}"#;

    #[tokio::test]
    async fn health_is_an_exit_status() {
        let health = |stub: &Stub| {
            let (client, timeout) = (stub.client(), Duration::from_secs(30));
            async move { health(Health { timeout }, &client).await }
        };
        for (status, expected) in [(200, ExitCode::SUCCESS), (503, ExitCode::FAILURE)] {
            let stub = Stub::answering(&[(200, OWN), (status, "waiting for a leaf")]).await;
            assert_eq!(health(&stub).await.expect("an answer"), expected, "{status}");
            assert_eq!(stub.requests(), ["GET /v1/agent/self", "GET /v1/hawser/ready"]);
        }
        let stub = Stub::answering(&[(500, "No cluster leader")]).await;
        assert!(health(&stub).await.is_err(), "an agent that cannot answer is not healthy");
    }

    #[tokio::test]
    async fn a_dead_agent_is_an_error_that_says_where() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound").to_string();
        drop(listener);
        let client = Client::new(address.parse().expect("an address"));
        let refused = leave(&client).await.expect_err("nobody listens");
        assert!(format!("{refused:#}").contains(&address), "{refused:#}");
    }

    #[tokio::test]
    async fn leave_and_reload_are_told_to_the_agent() {
        let stub = Stub::answering(&[(200, ""), (200, ""), (500, "services[0].Name: empty")]).await;
        leave(&stub.client()).await.expect("left");
        reload(&stub.client()).await.expect("reloaded");
        let refused = reload(&stub.client()).await.expect_err("a bad file");
        assert!(format!("{refused:#}").contains("services[0].Name"), "{refused:#}");
        let expected = ["PUT /v1/agent/leave", "PUT /v1/agent/reload", "PUT /v1/agent/reload"];
        assert_eq!(stub.requests(), expected);
    }

    #[test]
    fn info_is_shown_by_section() {
        let stats = [
            ("raft".to_owned(), [("term".to_owned(), json!(7))].into()),
            ("agent".to_owned(), [("build".to_owned(), json!("a\nb"))].into()),
        ];
        let expected = "agent:\n\tbuild = a\\nb\nraft:\n\tterm = 7\n";
        assert_eq!(sections(&stats.into()), expected);
    }
}
