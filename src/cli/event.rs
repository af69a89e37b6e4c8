//! `hawser event`: fire a user event.

use std::process::ExitCode;

use anyhow::{Context, Result};
use bytes::Bytes;
use hawser_api::client::{Client, segment};
use hawser_api::json::Event;
use hyper::Method;

use super::output;

/// A user event.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What happened.
    #[arg(long)]
    name: String,
    /// A regular expression: the nodes it is for.
    #[arg(long, value_name = "REGEX")]
    node: Option<String>,
    /// A regular expression: the services it is for.
    #[arg(long, value_name = "REGEX")]
    service: Option<String>,
    /// A regular expression: the tags of those services.
    #[arg(long, value_name = "REGEX", requires = "service")]
    tag: Option<String>,
    /// What watchers are told.
    #[arg(default_value = "")]
    payload: String,
}

/// Fires it, and prints its id.
///
/// # Errors
/// The API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let Arguments { name, node, service, tag, payload } = arguments;
    let query: Vec<(&str, &str)> = [("node", &node), ("service", &service), ("tag", &tag)]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value.as_deref()?)))
        .collect();
    let path = format!("/v1/event/fire/{}", segment(&name));
    let answer =
        client.send(Method::PUT, &path, &query, Some(Bytes::from(payload.into_bytes()))).await?;
    let event: Event = serde_json::from_slice(&answer.body).context("the answer is no event")?;
    output::print(&format!("Event ID: {}\n", output::visible(&event.id)))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    #[tokio::test]
    async fn an_event_is_fired_with_its_filters() {
        let cases = [
            ("--name deploy", "PUT /v1/event/fire/deploy"),
            (
                "--name deploy --node n --service web --tag v1 1609030",
                "PUT /v1/event/fire/deploy?node=n&service=web&tag=v1 1609030",
            ),
        ];
        for (line, expected) in cases {
            let stub = Stub::answering(&[(200, r#"{"ID":"b54f"}"#)]).await;
            assert_eq!(asked!(Arguments, line, &stub).expect(line), ExitCode::SUCCESS, "{line}");
            assert_eq!(stub.requests(), [expected], "{line}");
        }
    }
}
