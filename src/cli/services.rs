//! `hawser services`: register and deregister services with the local agent, and export them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use hawser_api::client::{Client, segment};
use hawser_api::definition::{Definitions, ServiceDefinition};
use hyper::Method;
use serde_json::{Map, Value, json};

use super::output::Formatted;
use super::{exports, input, output};

/// Services of the local agent, and what is exchanged with peers.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Register services, from files or from options.
    Register {
        /// Files of service definitions, HCL or JSON; - is standard input.
        #[arg(value_name = "FILE", required_unless_present = "name", conflicts_with = "name")]
        files: Vec<PathBuf>,
        /// The service's name.
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// The instance's id; the name unless it is said.
        #[arg(long, value_name = "ID", requires = "name")]
        id: Option<String>,
        /// The instance's address; the node's unless it is said.
        #[arg(long, value_name = "ADDRESS", requires = "name")]
        address: Option<String>,
        /// The instance's port.
        #[arg(long, value_name = "PORT", requires = "name")]
        port: Option<u16>,
        /// A tag; may be given several times.
        #[arg(long = "tag", value_name = "TAG", requires = "name")]
        tags: Vec<String>,
        /// A pair; may be given several times.
        #[arg(long = "meta", value_name = "KEY=VALUE", requires = "name", value_parser = pair)]
        meta: Vec<(String, String)>,
    },
    /// Let peers use a service.
    Export {
        /// The service; * for all.
        #[arg(long)]
        name: String,
        /// What this cluster calls the peers: comma-separated, or given several times.
        #[arg(long, value_name = "PEER", value_delimiter = ',', required = true)]
        consumer_peers: Vec<String>,
    },
    /// List which services peers may use.
    ExportedServices {
        #[command(flatten)]
        formatted: Formatted,
    },
    /// List which services peers offer.
    ImportedServices {
        #[command(flatten)]
        formatted: Formatted,
    },
    /// Deregister services, by files or by id.
    Deregister {
        /// Files of service definitions, HCL or JSON; - is standard input.
        #[arg(value_name = "FILE", required_unless_present = "id", conflicts_with = "id")]
        files: Vec<PathBuf>,
        /// The instance's id.
        #[arg(long, value_name = "ID")]
        id: Option<String>,
    },
}

/// Parses `key=value`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

/// Registers or deregisters. Every file is read before anything is changed.
///
/// # Errors
/// A file or option that is no good definition, and the API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    match arguments.what {
        What::Register { files, name: None, .. } => {
            register(client, &definitions(&files)?).await?;
        }
        What::Register { name: Some(name), id, address, port, tags, meta, .. } => {
            let mut written = Map::from_iter([("Name".to_owned(), json!(name))]);
            let mut say = |key: &str, value: Value| written.insert(key.to_owned(), value);
            if let Some(id) = id {
                say("ID", json!(id));
            }
            if let Some(address) = address {
                say("Address", json!(address));
            }
            if let Some(port) = port {
                say("Port", json!(port));
            }
            if !tags.is_empty() {
                say("Tags", json!(tags));
            }
            if !meta.is_empty() {
                say("Meta", meta.into_iter().map(|(key, value)| (key, json!(value))).collect());
            }
            let definition = ServiceDefinition::try_from(Value::Object(written))?;
            register(client, &[definition]).await?;
        }
        What::Export { name, consumer_peers } => {
            exports::export(client, &name, &consumer_peers).await?;
        }
        What::ExportedServices { formatted } => exports::exported(client, formatted).await?,
        What::ImportedServices { formatted } => exports::imported(client, formatted).await?,
        What::Deregister { id: Some(id), .. } => deregister(client, &id).await?,
        What::Deregister { files, id: None } => {
            for definition in definitions(&files)? {
                deregister(client, definition.service().instance.id.as_str()).await?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn definitions(files: &[PathBuf]) -> Result<Vec<ServiceDefinition>> {
    let mut services = Vec::new();
    for file in files {
        let named = || Path::display(file).to_string();
        let found = Definitions::from_json(&input::read(file)?).with_context(named)?;
        ensure!(!found.services.is_empty(), "{}: it defines no service", named());
        ensure!(
            found.checks.is_empty(),
            "{}: it defines a check by itself: write it inside its service",
            named()
        );
        services.extend(found.services);
    }
    Ok(services)
}

async fn register(client: &Client, services: &[ServiceDefinition]) -> Result<()> {
    for definition in services {
        let name = &definition.service().instance.service;
        client
            .put::<_, Value>("/v1/agent/service/register", &[], definition)
            .await
            .with_context(|| format!("registering service {name}"))?;
        output::print(&format!("Registered service: {name}\n"))?;
    }
    Ok(())
}

async fn deregister(client: &Client, id: &str) -> Result<()> {
    let path = format!("/v1/agent/service/deregister/{}", segment(id));
    client
        .send(Method::PUT, &path, &[], None)
        .await
        .with_context(|| format!("deregistering service {id}"))?;
    output::print(&format!("Deregistered service: {}\n", output::visible(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};
    use std::io::Write as _;

    const FILE: &str = "service {\n  name = \"web\"\n  id = \"web 1\"\n  port = 80\n}\n";

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("room");
        file
    }

    #[tokio::test]
    async fn a_file_is_registered_as_it_was_written() {
        let (stub, file) = (Stub::answering(&[(200, "")]).await, file(FILE));
        asked!(Arguments, format!("register {}", file.path().display()), &stub).expect("done");
        let [request] = &stub.requests()[..] else { panic!("one request") };
        let body = request.strip_prefix("PUT /v1/agent/service/register ").expect("a register");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body, json!({"name": "web", "id": "web 1", "port": 80}));
    }

    #[tokio::test]
    async fn options_are_a_definition_too() {
        let stub = Stub::answering(&[(200, "")]).await;
        let line = "register --name web --id w1 --port 80 --address 10.0.0.9 --tag a --tag b \
                    --meta k=v=w";
        asked!(Arguments, line, &stub).expect("done");
        let [request] = &stub.requests()[..] else { panic!("one request") };
        let (_, body) = request.split_once("register ").expect("a register");
        let expected = json!({
            "Name": "web", "ID": "w1", "Port": 80, "Address": "10.0.0.9", "Tags": ["a", "b"],
            "Meta": {"k": "v=w"},
        });
        assert_eq!(serde_json::from_str::<Value>(body).expect("JSON"), expected);
    }

    #[tokio::test]
    async fn deregistering_takes_an_id_or_the_file() {
        let file = file(FILE);
        for line in
            ["deregister --id web%1".to_owned(), format!("deregister {}", file.path().display())]
        {
            let stub = Stub::answering(&[(200, "")]).await;
            asked!(Arguments, &line, &stub).expect(&line);
            let [request] = &stub.requests()[..] else { panic!("one request") };
            let (_, id) = request.split_once("/deregister/").expect("a deregister");
            assert!(matches!(id, "web%251" | "web%201"), "{request}");
        }
    }

    #[tokio::test]
    async fn nothing_is_registered_while_one_file_is_bad() {
        let good = file(FILE);
        for (text, why) in [
            ("service { port = 80 }", "Name"),
            ("node_name = \"a\"", "node_name"),
            ("check { name = \"a\" ttl = \"10s\" }", "it"),
        ] {
            let (stub, bad) = (Stub::answering(&[]).await, file(text));
            let line = format!("register {} {}", good.path().display(), bad.path().display());
            let refused = asked!(Arguments, line, &stub).expect_err(text);
            assert!(format!("{refused:#}").contains(why), "{refused:#}");
            assert_eq!(stub.requests(), [""; 0], "{text}");
        }
    }
}
