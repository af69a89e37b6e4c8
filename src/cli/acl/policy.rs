//! `hawser acl policy`.

use anyhow::Result;
use hawser_api::client::{Client, segment};
use serde_json::{Map, Value};

use super::{Which, deleted, lines, said, text};
use crate::cli::output::{self, Formatted, Table};

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum What {
    /// Store a new policy.
    Create(Create),
    /// Print one.
    Read(Read),
    /// Print all of them.
    List(List),
    /// Change one; what is not said stays.
    Update(Update),
    /// Remove one; tokens that link to it lose what it allows.
    Delete(Which),
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Create {
    /// Its name.
    #[arg(long, value_name = "NAME")]
    name: String,
    #[command(flatten)]
    contents: Contents,
    #[command(flatten)]
    formatted: Formatted,
}

#[derive(Clone, Debug, clap::Args)]
struct Contents {
    /// The rules, HCL or JSON: the text itself, @FILE, or - for standard input.
    #[arg(long, value_name = "RULES")]
    rules: Option<String>,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Where it holds; may be given several times.
    #[arg(long, value_name = "DC")]
    valid_datacenter: Vec<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Read {
    #[command(flatten)]
    which: Which,
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
    which: Which,
    #[command(flatten)]
    contents: Contents,
    #[command(flatten)]
    formatted: Formatted,
}

impl Contents {
    fn set(&self, body: &mut Map<String, Value>) -> Result<()> {
        if let Some(rules) = &self.rules {
            body.insert("Rules".to_owned(), said(rules)?.into());
        }
        if let Some(description) = &self.description {
            body.insert("Description".to_owned(), description.as_str().into());
        }
        if !self.valid_datacenter.is_empty() {
            body.insert("Datacenters".to_owned(), self.valid_datacenter.clone().into());
        }
        Ok(())
    }
}

pub(super) async fn run(what: What, client: &Client) -> Result<()> {
    match what {
        What::Create(create) => {
            let mut body = Map::new();
            body.insert("Name".to_owned(), create.name.into());
            create.contents.set(&mut body)?;
            let made: Value = client.put("/v1/acl/policy", &[], &body).await?;
            create.formatted.print(&made, pretty)
        }
        What::Read(read) => read.formatted.print(&read.which.read("policy", client).await?, pretty),
        What::List(list) => {
            let (all, _): (Vec<Value>, _) = client.get("/v1/acl/policies", &[]).await?;
            list.formatted.print(&all, |all| table(all))
        }
        What::Update(update) => {
            let held = update.which.read("policy", client).await?;
            let path = format!("/v1/acl/policy/{}", segment(text(&held, "ID")));
            let mut body = held.as_object().cloned().unwrap_or_default();
            update.contents.set(&mut body)?;
            let made: Value = client.put(&path, &[], &body).await?;
            update.formatted.print(&made, pretty)
        }
        What::Delete(which) => {
            let id = which.id("policy", client).await?;
            let path = format!("/v1/acl/policy/{}", segment(&id));
            let _: Value = client.delete(&path, &[]).await?;
            deleted("Policy", &id)
        }
    }
}

fn pretty(policy: &Value) -> String {
    let keys = [
        ("ID", "ID"),
        ("Name", "Name"),
        ("Description", "Description"),
        ("Datacenters", "Datacenters"),
    ];
    let rules: String =
        text(policy, "Rules").lines().map(|line| format!("{}\n", output::visible(line))).collect();
    format!("{}Rules:\n{rules}", lines(policy, &keys))
}

fn table(all: &[Value]) -> String {
    let mut table = Table::new(["Name", "ID", "Description"]);
    for policy in all {
        table.row([text(policy, "Name"), text(policy, "ID"), text(policy, "Description")]);
    }
    table.into_text()
}
