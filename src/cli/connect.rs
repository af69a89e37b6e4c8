//! `hawser connect`: the authority that certifies the services of the mesh.

use std::process::ExitCode;

use anyhow::Result;
use hawser_api::client::Client;
use hawser_api::json::CaRoots;
use serde_json::Value;

use super::output::{self, Formatted, Table};

/// The mesh.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    area: Area,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Area {
    /// The certificate authority.
    Ca {
        #[command(subcommand)]
        what: Ca,
    },
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Ca {
    /// Print how certificates are made, as JSON.
    GetConfig,
    /// List the roots that services trust.
    Roots {
        #[command(flatten)]
        formatted: Formatted,
    },
}

/// Does what was asked for.
///
/// # Errors
/// The API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let Area::Ca { what } = arguments.area;
    match what {
        Ca::GetConfig => {
            let (made, _) = client.get::<Value>("/v1/connect/ca/configuration", &[]).await?;
            output::print_json(&made)?;
        }
        Ca::Roots { formatted } => {
            let (roots, _) = client.get::<CaRoots>("/v1/connect/ca/roots", &[]).await?;
            formatted.print(&roots, table)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn table(roots: &CaRoots) -> String {
    let mut table = Table::new(["Name", "Active", "Not after", "Trust domain", "ID"]);
    for root in &roots.roots {
        let active = root.active.to_string();
        table.row([&root.name, &active, &root.not_after, &roots.trust_domain, &root.id]);
    }
    table.into_text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    #[tokio::test]
    async fn the_authority_is_asked_for_by_its_part() {
        for (line, reply, expected) in [
            ("ca get-config", r#"{"Provider": "consul"}"#, "GET /v1/connect/ca/configuration"),
            ("ca roots", r#"{"Roots": []}"#, "GET /v1/connect/ca/roots"),
            ("ca roots --format json", r#"{"Roots": []}"#, "GET /v1/connect/ca/roots"),
        ] {
            let stub = Stub::answering(&[(200, reply)]).await;
            asked!(Arguments, line, &stub).expect(line);
            assert_eq!(stub.requests(), [expected]);
        }
    }
}
