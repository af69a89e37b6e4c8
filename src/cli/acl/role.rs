//! `hawser acl role`.

use anyhow::Result;
use hawser_api::client::{Client, segment};
use serde_json::{Map, Value};

use super::grants::Grants;
use super::{Which, deleted, lines, text};
use crate::cli::output::{Formatted, Table};

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum What {
    /// Store a new role.
    Create(Create),
    /// Print one.
    Read(Read),
    /// Print all of them.
    List(List),
    /// Change one; what is not said stays.
    Update(Update),
    /// Remove one; its tokens lose what it allows.
    Delete(Which),
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Create {
    /// Its name.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    #[command(flatten)]
    grants: Grants,
    #[command(flatten)]
    formatted: Formatted,
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
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    #[command(flatten)]
    grants: Grants,
    #[command(flatten)]
    formatted: Formatted,
}

pub(super) async fn run(what: What, client: &Client) -> Result<()> {
    match what {
        What::Create(create) => {
            let mut body = Map::new();
            body.insert("Name".to_owned(), create.name.into());
            describe(&mut body, create.description);
            create.grants.set(&mut body)?;
            let made: Value = client.put("/v1/acl/role", &[], &body).await?;
            create.formatted.print(&made, pretty)
        }
        What::Read(read) => read.formatted.print(&read.which.read("role", client).await?, pretty),
        What::List(list) => {
            let (all, _): (Vec<Value>, _) = client.get("/v1/acl/roles", &[]).await?;
            list.formatted.print(&all, |all| table(all))
        }
        What::Update(update) => {
            let held = update.which.read("role", client).await?;
            let path = format!("/v1/acl/role/{}", segment(text(&held, "ID")));
            let mut body = held.as_object().cloned().unwrap_or_default();
            describe(&mut body, update.description);
            update.grants.set(&mut body)?;
            let made: Value = client.put(&path, &[], &body).await?;
            update.formatted.print(&made, pretty)
        }
        What::Delete(which) => {
            let id = which.id("role", client).await?;
            let path = format!("/v1/acl/role/{}", segment(&id));
            let _: Value = client.delete(&path, &[]).await?;
            deleted("Role", &id)
        }
    }
}

fn describe(body: &mut Map<String, Value>, description: Option<String>) {
    if let Some(description) = description {
        body.insert("Description".to_owned(), description.into());
    }
}

fn pretty(role: &Value) -> String {
    let keys = [("ID", "ID"), ("Name", "Name"), ("Description", "Description")];
    format!("{}{}", lines(role, &keys), super::token::granted(role))
}

fn table(all: &[Value]) -> String {
    let mut table = Table::new(["Name", "ID", "Description"]);
    for role in all {
        table.row([text(role, "Name"), text(role, "ID"), text(role, "Description")]);
    }
    table.into_text()
}
