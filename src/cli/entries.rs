//! `hawser config`: config entries, read and written as Consul's are.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use hawser_api::client::{Client, ClientError, segment};
use hyper::StatusCode;
use serde_json::Value;

use super::{input, output};

/// Config entries.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Print an entry as JSON.
    Read {
        /// Its kind, such as service-defaults.
        #[arg(long)]
        kind: String,
        /// Its name.
        #[arg(long)]
        name: String,
    },
    /// Write an entry from a file, HCL or JSON; - is standard input.
    Write {
        /// The file.
        file: PathBuf,
        /// Only while the entry's index is that of -modify-index.
        #[arg(long, requires = "modify_index")]
        cas: bool,
        /// The index that the entry must have; 0 for one that must not be there.
        #[arg(long, value_name = "INDEX", requires = "cas")]
        modify_index: Option<u64>,
    },
    /// List the names of a kind's entries.
    List {
        /// The kind.
        #[arg(long)]
        kind: String,
    },
    /// Remove an entry.
    Delete {
        /// Its kind.
        #[arg(long)]
        kind: String,
        /// Its name.
        #[arg(long)]
        name: String,
        /// Only while the entry's index is that of -modify-index.
        #[arg(long, requires = "modify_index")]
        cas: bool,
        /// The index that the entry must have.
        #[arg(long, value_name = "INDEX", requires = "cas")]
        modify_index: Option<u64>,
    },
}

/// Does what was asked for.
///
/// # Errors
/// A file that is no entry, an entry that is not there or was changed meanwhile, and the API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    match arguments.what {
        What::Read { kind, name } => {
            let path = format!("/v1/config/{}/{}", segment(&kind), segment(&name));
            let entry = match client.get::<Value>(&path, &[]).await {
                Ok((entry, _)) => entry,
                Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
                    bail!("there is no config entry {kind}/{name}")
                }
                Err(error) => return Err(error.into()),
            };
            output::print_json(&entry)?;
        }
        What::Write { file, modify_index, .. } => {
            let entry = input::read(&file)?;
            let kind = text(&entry, "Kind")?;
            // The one entry of some kinds needs no name; of the others the server asks for it.
            let what = text(&entry, "Name").map_or(kind.into(), |name| format!("{kind}/{name}"));
            let index = modify_index.map(|index| index.to_string());
            let query: Vec<_> = index.iter().map(|index| ("cas", index.as_str())).collect();
            let written = client
                .put::<_, Value>("/v1/config", &query, &entry)
                .await
                .with_context(|| format!("writing config entry {what}"))?;
            unless_changed(&written, &what)?;
            output::print(&format!("Config entry written: {what}\n"))?;
        }
        What::List { kind } => {
            let path = format!("/v1/config/{}", segment(&kind));
            let (entries, _) = client.get::<Vec<Value>>(&path, &[]).await?;
            let names = entries.iter().map(|entry| text(entry, "Name"));
            let lines: String = names
                .map(|name| name.map(|name| output::visible(name) + "\n"))
                .collect::<Result<_>>()?;
            output::print(&lines)?;
        }
        What::Delete { kind, name, modify_index, .. } => {
            let path = format!("/v1/config/{}/{}", segment(&kind), segment(&name));
            let index = modify_index.map(|index| index.to_string());
            let query: Vec<_> = index.iter().map(|index| ("cas", index.as_str())).collect();
            let what = format!("{kind}/{name}");
            let deleted = client
                .delete::<Value>(&path, &query)
                .await
                .with_context(|| format!("removing config entry {what}"))?;
            unless_changed(&deleted, &what)?;
            output::print(&format!("Config entry deleted: {what}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The API answers `false` where an entry did not have the index it should.
fn unless_changed(answer: &Value, what: &str) -> Result<()> {
    if answer == &Value::Bool(false) {
        bail!("config entry {what} was changed meanwhile: read it again, and write what you mean");
    }
    Ok(())
}

/// A text inside an entry; keys are written in either case.
fn text<'a>(entry: &'a Value, key: &str) -> Result<&'a str> {
    let fields = entry.as_object().context("it is no config entry")?;
    let value = fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
    value.and_then(|(_, value)| value.as_str()).with_context(|| format!("{key}: it is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};
    use std::io::Write as _;

    #[tokio::test]
    async fn each_verb_asks_its_endpoint() {
        let cases = [
            (
                "read --kind service-defaults --name web",
                "{}",
                "GET /v1/config/service-defaults/web",
            ),
            ("list --kind service-defaults", "[]", "GET /v1/config/service-defaults"),
            ("delete --kind a/b --name c", "{}", "DELETE /v1/config/a%2Fb/c"),
            (
                "delete --kind a --name c --cas --modify-index 7",
                "true",
                "DELETE /v1/config/a/c?cas=7",
            ),
        ];
        for (line, reply, expected) in cases {
            let stub = Stub::answering(&[(200, reply)]).await;
            assert_eq!(asked!(Arguments, line, &stub).expect(line), ExitCode::SUCCESS);
            assert_eq!(stub.requests(), [expected], "{line}");
        }
    }

    #[tokio::test]
    async fn an_entry_is_written_from_a_file() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"kind = \"service-defaults\"\nName = \"web\"\nProtocol = \"http\"\n")
            .expect("room");
        let path = file.path().display();
        let body = r#"{"Name":"web","Protocol":"http","kind":"service-defaults"}"#;
        for (line, reply, query) in [
            (format!("write {path}"), "true", ""),
            (format!("write --cas --modify-index 0 {path}"), "true", "?cas=0"),
        ] {
            let stub = Stub::answering(&[(200, reply)]).await;
            asked!(Arguments, &line, &stub).expect(&line);
            let [request] = &stub.requests()[..] else { panic!("one request") };
            let sent = request.strip_prefix(&format!("PUT /v1/config{query} ")).expect(request);
            let same: fn(&str) -> Value = |text| serde_json::from_str(text).expect("JSON");
            assert_eq!(same(sent), same(body), "{line}");
        }
        let stub = Stub::answering(&[(200, "false")]).await;
        let line = format!("write --cas --modify-index 3 {path}");
        let refused = asked!(Arguments, line, &stub).expect_err("changed");
        assert!(refused.to_string().contains("changed meanwhile"), "{refused}");
    }

    #[tokio::test]
    async fn what_is_no_entry_is_not_sent() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(b"Name = \"web\"\n").expect("room");
        let stub = Stub::answering(&[]).await;
        let line = format!("write {}", file.path().display());
        let refused = asked!(Arguments, line, &stub).expect_err("no kind");
        assert_eq!(refused.to_string(), "Kind: it is missing");
        assert_eq!(stub.requests(), [""; 0]);
    }

    #[tokio::test]
    async fn an_entry_that_is_not_there_is_named() {
        let stub = Stub::answering(&[(404, "Config entry not found")]).await;
        let refused = asked!(Arguments, "read --kind a --name b", &stub).expect_err("none");
        assert_eq!(refused.to_string(), "there is no config entry a/b");
    }
}
