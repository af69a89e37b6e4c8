//! `hawser acl auth-method`.

use anyhow::{Context, Result};
use hawser_api::client::{Client, segment};
use serde_json::{Map, Value};

use super::{deleted, lines, said, text};
use crate::cli::output::{Formatted, Table};

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum What {
    /// Store a new way to log in.
    Create(Create),
    /// Print one.
    Read(Read),
    /// Print all of them.
    List(List),
    /// Change one; what is not said stays.
    Update(Update),
    /// Remove one, with its binding rules and the tokens that it gave.
    Delete(Named),
}

/// One auth method.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Named {
    /// Its name.
    #[arg(long, value_name = "NAME")]
    name: String,
}

/// What may be said of one.
#[derive(Clone, Debug, clap::Args)]
struct Said {
    /// Its name for people.
    #[arg(long, value_name = "TEXT")]
    display_name: Option<String>,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// How long its tokens hold, such as 10m; otherwise until they are logged out.
    #[arg(long, value_name = "DURATION")]
    max_token_ttl: Option<String>,
    /// Where its tokens hold: local or global.
    #[arg(long, value_name = "WHERE")]
    token_locality: Option<String>,
    /// What its type needs to know, as JSON; @FILE reads a file, - standard input.
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Create {
    #[command(flatten)]
    named: Named,
    /// jwt or aws-iam.
    #[arg(long = "type", value_name = "TYPE")]
    kind: String,
    #[command(flatten)]
    said: Said,
    #[command(flatten)]
    formatted: Formatted,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Read {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    formatted: Formatted,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    formatted: Formatted,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Update {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    said: Said,
    #[command(flatten)]
    formatted: Formatted,
}

pub(super) async fn run(what: What, client: &Client) -> Result<()> {
    match what {
        What::Create(create) => {
            let mut body = Map::new();
            body.insert("Name".to_owned(), create.named.name.into());
            body.insert("Type".to_owned(), create.kind.into());
            create.said.set(&mut body)?;
            let made: Value = client.put("/v1/acl/auth-method", &[], &body).await?;
            create.formatted.print(&made, pretty)
        }
        What::Read(read) => read.formatted.print(&held(&read.named, client).await?, pretty),
        What::List(list) => {
            let (all, _): (Vec<Value>, _) = client.get("/v1/acl/auth-methods", &[]).await?;
            list.formatted.print(&all, |all| table(all))
        }
        What::Update(update) => {
            let held = held(&update.named, client).await?;
            let mut body = held.as_object().cloned().unwrap_or_default();
            update.said.set(&mut body)?;
            let made: Value = client.put(&path(&update.named), &[], &body).await?;
            update.formatted.print(&made, pretty)
        }
        What::Delete(named) => {
            let _: Value = client.delete(&path(&named), &[]).await?;
            deleted("Auth method", &named.name)
        }
    }
}

fn path(named: &Named) -> String {
    format!("/v1/acl/auth-method/{}", segment(&named.name))
}

async fn held(named: &Named, client: &Client) -> Result<Value> {
    Ok(client.get(&path(named), &[]).await?.0)
}

impl Said {
    fn set(self, body: &mut Map<String, Value>) -> Result<()> {
        let texts = [
            ("DisplayName", self.display_name),
            ("Description", self.description),
            ("MaxTokenTTL", self.max_token_ttl),
            ("TokenLocality", self.token_locality),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                body.insert(name.to_owned(), text.into());
            }
        }
        if let Some(config) = self.config {
            let config = serde_json::from_str(&said(&config)?).context("-config: no JSON")?;
            body.insert("Config".to_owned(), config);
        }
        Ok(())
    }
}

fn pretty(method: &Value) -> String {
    let keys = [
        ("Name", "Name"),
        ("Type", "Type"),
        ("Display Name", "DisplayName"),
        ("Description", "Description"),
        ("Max Token TTL", "MaxTokenTTL"),
        ("Token Locality", "TokenLocality"),
    ];
    let config = serde_json::to_string_pretty(&method["Config"]).unwrap_or_default();
    format!("{}Config:\n{config}\n", lines(method, &keys))
}

fn table(all: &[Value]) -> String {
    let mut table = Table::new(["Name", "Type", "Description"]);
    for method in all {
        table.row([text(method, "Name"), text(method, "Type"), text(method, "Description")]);
    }
    table.into_text()
}
