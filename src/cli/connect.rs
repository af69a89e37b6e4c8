//! `hawser connect`: the authority that certifies the services of the mesh.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use hawser_api::client::Client;
use hawser_api::client::segment;
use hawser_api::json::{CaRoots, Revocation};
use hawser_core::name::{NodeName, ServiceName};
use hawser_core::revocation::Serial;
use hyper::Method;
use serde_json::{Value, json};

use super::input;
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
    /// Revoke an identity: every proxy refuses it, and cuts what it has open, within seconds.
    Revoke(Revoke),
    /// Undo a revocation.
    Reinstate(Subject),
    /// List what is revoked, since when and why.
    Revocations {
        #[command(flatten)]
        formatted: Formatted,
    },
}

/// What is revoked, and why.
#[derive(Clone, Debug, clap::Args)]
struct Revoke {
    #[command(flatten)]
    subject: Subject,
    /// Why, for those who read the list.
    #[arg(long, default_value = "")]
    reason: String,
}

/// Exactly one of these.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Subject {
    /// A node: nothing that was or will be certified for it is believed.
    #[arg(long, value_name = "NAME")]
    node: Option<NodeName>,
    /// A service's identity, on every node.
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,
    /// One certificate, by its serial number; its owner gets another.
    #[arg(long, value_name = "HEX")]
    serial: Option<Serial>,
}

impl Subject {
    /// Consul's word for the field, and what stands in it.
    fn named(&self) -> (&'static str, String) {
        let Self { node, service, serial } = self;
        let node = node.iter().map(|name| ("node", name.to_string()));
        let service = service.iter().map(|name| ("service", name.to_string()));
        let serial = serial.iter().map(|serial| ("serial", serial.to_string()));
        node.chain(service).chain(serial).next().unwrap_or_default()
    }
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Ca {
    /// Print how certificates are made, as JSON.
    GetConfig,
    /// Change how certificates are made, or bring a root of your own, from a JSON file.
    SetConfig {
        /// A file of JSON or HCL, or - for standard input; what it leaves out stays.
        #[arg(long, value_name = "FILE")]
        config_file: PathBuf,
    },
    /// Begin a rotation to a new root: it signs once every host trusts it.
    Rotate,
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
    match arguments.area {
        Area::Ca { what } => authority(what, client).await?,
        Area::Revoke(Revoke { subject, reason }) => {
            let (kind, name) = subject.named();
            let field = match kind {
                "node" => "Node",
                "service" => "Service",
                _ => "Serial",
            };
            let body = json!({ field: name, "Reason": reason });
            let _: bool = client.put("/v1/hawser/connect/revocation", &[], &body).await?;
            output::print(&format!("Revoked: {kind} {name}\n"))?;
        }
        Area::Reinstate(subject) => {
            let (kind, name) = subject.named();
            let path = format!("/v1/hawser/connect/revocation/{kind}/{}", segment(&name));
            let _: bool = client.delete(&path, &[]).await?;
            output::print(&format!("Reinstated: {kind} {name}\n"))?;
        }
        Area::Revocations { formatted } => {
            let path = "/v1/hawser/connect/revocations";
            let (all, _) = client.get::<Vec<Revocation>>(path, &[]).await?;
            formatted.print(&all, |all| revoked(all))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn authority(what: Ca, client: &Client) -> Result<()> {
    match what {
        Ca::GetConfig => {
            let (made, _) = client.get::<Value>(CONFIGURATION, &[]).await?;
            output::print_json(&made)?;
        }
        Ca::SetConfig { config_file } => {
            let body = serde_json::to_vec(&input::read(&config_file)?)?;
            client.send(Method::PUT, CONFIGURATION, &[], Some(body.into())).await?;
            output::print("Configuration updated!\n")?;
        }
        Ca::Rotate => {
            let path = "/v1/hawser/connect/ca/rotate";
            client.send(Method::PUT, path, &[], None).await?;
            output::print("A new root is introduced; `hawser connect ca roots` shows it.\n")?;
        }
        Ca::Roots { formatted } => {
            let (roots, _) = client.get::<CaRoots>("/v1/connect/ca/roots", &[]).await?;
            formatted.print(&roots, table)?;
        }
    }
    Ok(())
}

fn revoked(all: &[Revocation]) -> String {
    let mut table = Table::new(["Kind", "Name", "Since", "Reason"]);
    for Revocation { node, service, serial, reason, since, .. } in all {
        let named = [("node", node), ("service", service), ("serial", serial)];
        let named = named.into_iter().find(|(_, name)| !name.is_empty());
        let (kind, name) = named.map_or(("", ""), |(kind, name)| (kind, name.as_str()));
        table.row([kind, name, since, reason]);
    }
    table.into_text()
}

const CONFIGURATION: &str = "/v1/connect/ca/configuration";

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
            ("ca rotate", "", "PUT /v1/hawser/connect/ca/rotate"),
            (
                "revoke --node n1 --reason stolen",
                "true",
                r#"PUT /v1/hawser/connect/revocation {"Node":"n1","Reason":"stolen"}"#,
            ),
            (
                "revoke --serial 5F0A",
                "true",
                r#"PUT /v1/hawser/connect/revocation {"Reason":"","Serial":"5f:0a"}"#,
            ),
            ("reinstate --service web", "true", "DELETE /v1/hawser/connect/revocation/service/web"),
            ("revocations", "[]", "GET /v1/hawser/connect/revocations"),
        ] {
            let stub = Stub::answering(&[(200, reply)]).await;
            asked!(Arguments, line, &stub).expect(line);
            assert_eq!(stub.requests(), [expected]);
        }
    }
}
