//! `hawser peering`: clusters that exchange services with this one.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use hawser_api::client::{Client, ClientError, segment};
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::output::{self, Formatted, Table, pairs, visible};
use super::services::pair;

/// Peered clusters.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Print a token with which another cluster may peer with this one: a secret, for one use.
    GenerateToken {
        /// What this cluster calls the other.
        #[arg(long)]
        name: String,
        /// Where the other cluster reaches this one's servers, HOST:PORT; comma-separated, or
        /// given several times. Left out, the servers' own addresses.
        #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
        server_external_addresses: Vec<String>,
        /// A pair; may be given several times.
        #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
        meta: Vec<(String, String)>,
        #[command(flatten)]
        formatted: Formatted,
    },
    /// Peer with the cluster that made a token.
    Establish {
        /// What this cluster calls the other.
        #[arg(long)]
        name: String,
        /// The token; - reads it from standard input and @FILE from a file, so that other users
        /// do not see it in the list of processes.
        #[arg(long, value_name = "TOKEN")]
        peering_token: String,
        /// A pair; may be given several times.
        #[arg(long = "meta", value_name = "KEY=VALUE", value_parser = pair)]
        meta: Vec<(String, String)>,
    },
    /// List the peers and how they stand.
    List {
        #[command(flatten)]
        formatted: Formatted,
    },
    /// Show one peer.
    Read {
        /// What this cluster calls it.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        formatted: Formatted,
    },
    /// End a peering, on both sides.
    Delete {
        /// What this cluster calls the peer.
        #[arg(long)]
        name: String,
    },
    /// List the services that a peer may use.
    ExportedServices {
        /// What this cluster calls the peer.
        #[arg(long)]
        name: String,
        #[command(flatten)]
        formatted: Formatted,
    },
}

/// Does what was asked for.
///
/// # Errors
/// A token that cannot be read, a peer that is not there, and the API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    match arguments.what {
        What::GenerateToken { name, server_external_addresses, meta, formatted } => {
            let meta: BTreeMap<String, String> = meta.into_iter().collect();
            let body = json!({
                "PeerName": name,
                "Meta": meta,
                "ServerExternalAddresses": server_external_addresses,
            });
            let made: Value = client
                .post("/v1/peering/token", &[], &body)
                .await
                .with_context(|| format!("making a token for peer {}", visible(&name)))?;
            let Some(token) = made["PeeringToken"].as_str() else {
                bail!("the reply has no PeeringToken");
            };
            formatted.print(&made, |_| format!("{}\n", visible(token)))?;
        }
        What::Establish { name, peering_token, meta } => {
            let meta: BTreeMap<String, String> = meta.into_iter().collect();
            let token = token(&peering_token)?;
            let body = json!({"PeerName": name, "PeeringToken": token, "Meta": meta});
            client
                .post::<_, Value>("/v1/peering/establish", &[], &body)
                .await
                .with_context(|| format!("peering with {}", visible(&name)))?;
            output::print(&format!("Established peering with {}.\n", visible(&name)))?;
        }
        What::List { formatted } => {
            let (all, _) = client.get::<Value>("/v1/peerings", &[]).await?;
            let peerings = decoded::<Option<Vec<Peering>>>(&all)?.unwrap_or_default();
            formatted.print(&all, |_| table(&peerings))?;
        }
        What::Read { name, formatted } => {
            let found = find(client, &name).await?;
            let peering: Peering = decoded(&found)?;
            formatted.print(&found, |_| details(&peering))?;
        }
        What::Delete { name } => {
            find(client, &name).await?;
            let path = format!("/v1/peering/{}", segment(&name));
            client
                .send(Method::DELETE, &path, &[], None)
                .await
                .with_context(|| format!("ending the peering with {}", visible(&name)))?;
            output::print(&format!("Ended the peering with {}.\n", visible(&name)))?;
        }
        What::ExportedServices { name, formatted } => {
            let peering: Peering = decoded(&find(client, &name).await?)?;
            let services = peering.stream_status.exported_services.unwrap_or_default();
            formatted.print(&services, |all| {
                all.iter().map(|service| format!("{}\n", visible(service))).collect()
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A peering, as far as it is shown to people.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Peering {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    state: String,
    meta: Option<BTreeMap<String, String>>,
    #[serde(rename = "PeerID")]
    peer_id: String,
    peer_server_name: String,
    peer_server_addresses: Option<Vec<String>>,
    stream_status: StreamStatus,
    remote: Remote,
    create_index: u64,
    modify_index: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StreamStatus {
    imported_services: Option<Vec<String>>,
    exported_services: Option<Vec<String>>,
    last_heartbeat: Option<String>,
    last_receive: Option<String>,
    last_send: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Remote {
    datacenter: String,
}

async fn find(client: &Client, name: &str) -> Result<Value> {
    match client.get(&format!("/v1/peering/{}", segment(name)), &[]).await {
        Ok((Value::Null, _)) | Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
            bail!("there is no peer {}: see hawser peering list", visible(name))
        }
        Ok((found, _)) => Ok(found),
        Err(error) => Err(error.into()),
    }
}

fn decoded<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T> {
    T::deserialize(value).context("the reply is no peering")
}

/// The token that `given` is, or that is where it points to. No error holds any of it.
fn token(given: &str) -> Result<String> {
    let read = |from: &mut dyn std::io::Read, named: &str| {
        let mut text = String::new();
        let length = from
            .take(TOKEN_OCTETS_MAX + 1)
            .read_to_string(&mut text)
            .with_context(|| format!("-peering-token: reading {named}"))?;
        ensure!(
            length as u64 <= TOKEN_OCTETS_MAX,
            "-peering-token: {named} is longer than {TOKEN_OCTETS_MAX} bytes"
        );
        Ok(text)
    };
    let text = match given.strip_prefix('@') {
        Some(file) => {
            let mut opened = std::fs::File::open(file)
                .with_context(|| format!("-peering-token: reading {file}"))?;
            read(&mut opened, file)?
        }
        None if given == "-" => read(&mut std::io::stdin().lock(), "standard input")?,
        None => given.to_owned(),
    };
    let token = text.trim();
    ensure!(!token.is_empty(), "-peering-token: it is empty");
    Ok(token.to_owned())
}

fn table(peerings: &[Peering]) -> String {
    if peerings.is_empty() {
        return "There are no peers.\n".to_owned();
    }
    let mut table = Table::new(["Name", "State", "Imported Svcs", "Exported Svcs", "Meta"]);
    for Peering { name, state, meta, stream_status, .. } in peerings {
        let count = |services: &Option<Vec<String>>| services.iter().flatten().count().to_string();
        let imported = count(&stream_status.imported_services);
        let exported = count(&stream_status.exported_services);
        table.row([name, state, &imported, &exported, &pairs(meta.iter().flatten())]);
    }
    table.into_text()
}

fn details(peering: &Peering) -> String {
    let Peering { stream_status: stream, .. } = peering;
    let list = |texts: &Option<Vec<String>>| texts.iter().flatten().cloned().collect::<Vec<_>>();
    let lines = [
        ("Name", peering.name.clone()),
        ("ID", peering.id.clone()),
        ("State", peering.state.clone()),
        ("Meta", pairs(peering.meta.iter().flatten())),
        ("Peer ID", peering.peer_id.clone()),
        ("Peer Datacenter", peering.remote.datacenter.clone()),
        ("Peer Server Name", peering.peer_server_name.clone()),
        ("Peer Server Addresses", list(&peering.peer_server_addresses).join(",")),
        ("Imported Services", list(&stream.imported_services).join(",")),
        ("Exported Services", list(&stream.exported_services).join(",")),
        ("Last Heartbeat", stream.last_heartbeat.clone().unwrap_or_default()),
        ("Last Send", stream.last_send.clone().unwrap_or_default()),
        ("Last Receive", stream.last_receive.clone().unwrap_or_default()),
        ("Create Index", peering.create_index.to_string()),
        ("Modify Index", peering.modify_index.to_string()),
    ];
    let said = lines.iter().filter(|(_, value)| !value.is_empty());
    said.map(|(name, value)| format!("{:<24}{}\n", format!("{name}:"), visible(value))).collect()
}

/// Far above any token.
const TOKEN_OCTETS_MAX: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};
    use std::io::Write as _;

    const WEST: &str = r#"{"ID": "8f24", "Name": "west", "State": "ACTIVE", "Meta": {"env": "prod"},
        "PeerID": "11aa", "PeerServerAddresses": ["192.0.2.1:8300"], "Remote": {"Datacenter": "dc2"},
        "StreamStatus": {"ImportedServices": ["api", "db"], "ExportedServices": ["web"]},
        "ModifyIndex": 9}"#;

    #[tokio::test]
    async fn a_token_is_asked_for_as_consuls_users_type_it() {
        let cases = [
            // line, meta, addresses
            ("generate-token --name west", "{}", "[]"),
            (
                "generate-token --name west --meta env=prod --server-external-addresses a:1,b:2",
                r#"{"env":"prod"}"#,
                r#"["a:1","b:2"]"#,
            ),
        ];
        for (line, meta, addresses) in cases {
            let stub = Stub::answering(&[(200, r#"{"PeeringToken": "c2VjcmV0"}"#)]).await;
            asked!(Arguments, line, &stub).expect(line);
            let body = format!(
                r#"{{"Meta":{meta},"PeerName":"west","ServerExternalAddresses":{addresses}}}"#
            );
            assert_eq!(stub.requests(), [format!("POST /v1/peering/token {body}")], "{line}");
        }
    }

    #[tokio::test]
    async fn a_token_is_taken_as_it_stands_or_from_a_file() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        writeln!(file, "c2VjcmV0").expect("room");
        for given in ["c2VjcmV0".to_owned(), format!("@{}", file.path().display())] {
            let stub = Stub::answering(&[(200, "{}")]).await;
            let line = format!("establish --name east --peering-token {given}");
            asked!(Arguments, &line, &stub).expect(&line);
            let body = r#"{"Meta":{},"PeerName":"east","PeeringToken":"c2VjcmV0"}"#;
            assert_eq!(stub.requests(), [format!("POST /v1/peering/establish {body}")]);
        }
        let stub = Stub::answering(&[]).await;
        for (given, why) in [("@/there/is/no/such", "/there/is/no/such"), ("@/dev/null", "empty")] {
            let line = format!("establish --name east --peering-token {given}");
            let refused = asked!(Arguments, &line, &stub).expect_err(why);
            assert!(format!("{refused:#}").contains(why), "{refused:#}");
        }
        assert_eq!(stub.requests(), [""; 0], "nothing is sent without a token");
    }

    #[tokio::test]
    async fn a_refusal_says_what_was_tried_and_nothing_of_the_token() {
        let stub = Stub::answering(&[(500, "192.0.2.1:8300: connection refused")]).await;
        let line = "establish --name east --peering-token c2VjcmV0";
        let refused = asked!(Arguments, line, &stub).expect_err("refused");
        let text = format!("{refused:#}");
        assert!(text.contains("peering with east") && text.contains("192.0.2.1:8300"), "{text}");
        assert!(!text.contains("c2VjcmV0"), "{text}");
    }

    #[tokio::test]
    async fn a_peer_that_is_not_there_is_not_shown_or_removed() {
        for line in ["read --name no", "delete --name no", "exported-services --name no"] {
            let stub = Stub::answering(&[(404, "Peering not found")]).await;
            let refused = asked!(Arguments, line, &stub).expect_err(line);
            assert!(refused.to_string().contains("there is no peer no"), "{refused}");
            assert_eq!(stub.requests(), ["GET /v1/peering/no"], "{line}");
        }
        let stub = Stub::answering(&[(200, WEST), (200, "")]).await;
        asked!(Arguments, "delete --name west", &stub).expect("deleted");
        assert_eq!(stub.requests(), ["GET /v1/peering/west", "DELETE /v1/peering/west"]);
    }

    #[test]
    fn peers_are_shown_in_a_row_or_whole() {
        let west: Peering = serde_json::from_str(WEST).expect("a peering");
        let expected = "\
Name  State   Imported Svcs  Exported Svcs  Meta
west  ACTIVE  2              1              env=prod
";
        assert_eq!(table(std::slice::from_ref(&west)), expected);
        assert_eq!(table(&[]), "There are no peers.\n");
        let expected = "\
Name:                   west
ID:                     8f24
State:                  ACTIVE
Meta:                   env=prod
Peer ID:                11aa
Peer Datacenter:        dc2
Peer Server Addresses:  192.0.2.1:8300
Imported Services:      api,db
Exported Services:      web
Create Index:           0
Modify Index:           9
";
        assert_eq!(details(&west), expected);
    }
}
