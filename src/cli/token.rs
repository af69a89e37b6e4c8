//! `hawser token`: join tokens, with which new hosts get their first certificate.

use std::process::ExitCode;

use anyhow::Result;
use hawser_api::client::Client;
use hawser_api::json::JoinToken;
use hawser_core::duration;
use hawser_core::name::NodeName;
use serde_json::json;

use super::output;

/// Join tokens.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Print a token with which one host may join, once.
    Create(Create),
}

/// A new join token.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Create {
    /// The name of the host that may use it.
    #[arg(long, value_name = "NAME", value_parser = NodeName::of_agent)]
    node: NodeName,
    /// How long it may be used, such as 10m.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = span)]
    ttl: String,
}

/// Does what was asked for. Nothing but the token is printed, for `$(…)`.
///
/// # Errors
/// The API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let What::Create(create) = arguments.what;
    self::create(create, client).await
}

/// Prints a new token.
///
/// # Errors
/// The API's.
pub(crate) async fn create(create: Create, client: &Client) -> Result<ExitCode> {
    let Create { node, ttl } = create;
    let body = json!({"Node": node, "TTL": ttl});
    let made: JoinToken = client.put("/v1/hawser/join-token", &[], &body).await?;
    output::print(&format!("{}\n", made.token))?;
    Ok(ExitCode::SUCCESS)
}

/// A duration, as it was written.
fn span(text: &str) -> Result<String, duration::InvalidDuration> {
    duration::parse(text).map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    #[tokio::test]
    async fn a_token_is_asked_for_by_node_and_lifetime() {
        for (line, ttl) in [("create --node vm-1", "10m"), ("create --node vm-1 --ttl 1h", "1h")] {
            let stub = Stub::answering(&[(200, r#"{"Token": "hj1.a.b"}"#)]).await;
            assert_eq!(asked!(Arguments, line, &stub).expect(line), ExitCode::SUCCESS);
            let body = format!(r#"{{"Node":"vm-1","TTL":"{ttl}"}}"#);
            assert_eq!(stub.requests(), [format!("PUT /v1/hawser/join-token {body}")]);
        }
    }

    #[test]
    fn a_bad_name_or_lifetime_is_refused_before_anybody_is_asked() {
        use clap::Args as _;
        for line in ["create", "create --node a/b", "create --node a --ttl 10"] {
            let words = std::iter::once("token").chain(line.split(' '));
            let command = Arguments::augment_args(clap::Command::new("token"));
            assert!(command.try_get_matches_from(words).is_err(), "{line}");
        }
    }
}
