//! `hawser acl binding-rule`.

use anyhow::{Result, ensure};
use hawser_api::client::{Client, segment};
use serde_json::{Map, Value, json};

use super::{deleted, lines, text};
use crate::cli::output::{Formatted, Table};

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum What {
    /// Store a new rule.
    Create(Create),
    /// Print one.
    Read(Read),
    /// Print all of them.
    List(List),
    /// Change one; what is not said stays.
    Update(Update),
    /// Remove one; tokens that were given by it stay.
    Delete(Which),
}

/// One rule.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Which {
    /// Its id.
    #[arg(long, value_name = "UUID")]
    id: String,
}

/// What may be said of one.
#[derive(Clone, Debug, clap::Args)]
struct Said {
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Whom it is about, as a filter over what is known of who logs in; otherwise everybody.
    #[arg(long, value_name = "FILTER")]
    selector: Option<String>,
    /// What they get: service, node, role, policy or templated-policy.
    #[arg(long, value_name = "TYPE")]
    bind_type: Option<String>,
    /// Of which name; ${value.NAME} stands for what is known of who logs in.
    #[arg(long, value_name = "NAME")]
    bind_name: Option<String>,
    /// What a templated policy is made for: name:web.
    #[arg(long, value_name = "name:VALUE")]
    bind_vars: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Create {
    /// The auth method whose logins it is about.
    #[arg(long, value_name = "NAME")]
    method: String,
    #[command(flatten)]
    said: Said,
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
    /// Only the rules of this auth method.
    #[arg(long, value_name = "NAME")]
    method: Option<String>,
    #[command(flatten)]
    formatted: Formatted,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Update {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    said: Said,
    #[command(flatten)]
    formatted: Formatted,
}

pub(super) async fn run(what: What, client: &Client) -> Result<()> {
    match what {
        What::Create(create) => {
            let mut body = Map::new();
            body.insert("AuthMethod".to_owned(), create.method.into());
            create.said.set(&mut body)?;
            let made: Value = client.put("/v1/acl/binding-rule", &[], &body).await?;
            create.formatted.print(&made, pretty)
        }
        What::Read(read) => read.formatted.print(&held(&read.which, client).await?, pretty),
        What::List(list) => {
            let method = list.method.as_deref().map(|method| ("authmethod", method));
            let query: Vec<(&str, &str)> = method.into_iter().collect();
            let (all, _): (Vec<Value>, _) = client.get("/v1/acl/binding-rules", &query).await?;
            list.formatted.print(&all, |all| table(all))
        }
        What::Update(update) => {
            let held = held(&update.which, client).await?;
            let mut body = held.as_object().cloned().unwrap_or_default();
            update.said.set(&mut body)?;
            let made: Value = client.put(&path(&update.which), &[], &body).await?;
            update.formatted.print(&made, pretty)
        }
        What::Delete(which) => {
            let _: Value = client.delete(&path(&which), &[]).await?;
            deleted("Binding rule", &which.id)
        }
    }
}

fn path(which: &Which) -> String {
    format!("/v1/acl/binding-rule/{}", segment(&which.id))
}

async fn held(which: &Which, client: &Client) -> Result<Value> {
    Ok(client.get(&path(which), &[]).await?.0)
}

impl Said {
    fn set(self, body: &mut Map<String, Value>) -> Result<()> {
        let texts = [
            ("Description", self.description),
            ("Selector", self.selector),
            ("BindType", self.bind_type),
            ("BindName", self.bind_name),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                body.insert(name.to_owned(), text.into());
            }
        }
        if let Some(variable) = self.bind_vars {
            let name = variable.strip_prefix("name:");
            ensure!(name.is_some(), "-bind-vars: write name:VALUE");
            body.insert("BindVars".to_owned(), json!({ "Name": name }));
        }
        Ok(())
    }
}

fn pretty(rule: &Value) -> String {
    let keys = [
        ("ID", "ID"),
        ("AuthMethod", "AuthMethod"),
        ("Description", "Description"),
        ("BindType", "BindType"),
        ("BindName", "BindName"),
        ("Selector", "Selector"),
    ];
    lines(rule, &keys)
}

fn table(all: &[Value]) -> String {
    let mut table = Table::new(["ID", "AuthMethod", "BindType", "BindName", "Selector"]);
    for rule in all {
        table.row(
            ["ID", "AuthMethod", "BindType", "BindName", "Selector"].map(|key| text(rule, key)),
        );
    }
    table.into_text()
}
