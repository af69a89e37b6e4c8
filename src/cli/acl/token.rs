//! `hawser acl token`.

use anyhow::{Context, Result, bail};
use hawser_api::client::{Client, segment};
use serde_json::{Map, Value, json};

use super::grants::{Grants, links, put};
use super::{deleted, lines, text};
use crate::cli::output::{self, Formatted, Table};

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum What {
    /// Make a new token.
    Create(Create),
    /// Print one.
    Read(Read),
    /// Print all of them; secrets only to who may write tokens.
    List(List),
    /// Change one; what is not said stays.
    Update(Update),
    /// Make another one that may do the same.
    Clone(Copy),
    /// Remove one; whoever shows it is refused from then on.
    Delete(Which),
}

/// One token, by accessor.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Which {
    /// Its accessor.
    #[arg(long, alias = "id", value_name = "UUID")]
    accessor_id: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Create {
    /// What it is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// The accessor to use; otherwise the servers draw one.
    #[arg(long, value_name = "UUID")]
    accessor: Option<String>,
    /// The secret to use; otherwise the servers draw one.
    #[arg(long, value_name = "UUID")]
    secret: Option<String>,
    /// Let it hold in this datacenter only.
    #[arg(long)]
    local: bool,
    /// For how long it holds, such as 10m; otherwise until it is deleted.
    #[arg(long, value_name = "DURATION")]
    expires_ttl: Option<String>,
    /// A role, by name; may be given several times.
    #[arg(long, value_name = "NAME")]
    role_name: Vec<String>,
    /// A role, by id; may be given several times.
    #[arg(long, value_name = "UUID")]
    role_id: Vec<String>,
    #[command(flatten)]
    grants: Grants,
    #[command(flatten)]
    formatted: Formatted,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Read {
    #[command(flatten)]
    which: Which,
    /// The token that asks.
    #[arg(long = "self")]
    own: bool,
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
    /// A role, by name, instead of those it has; may be given several times.
    #[arg(long, value_name = "NAME")]
    role_name: Vec<String>,
    /// A role, by id, instead of those it has; may be given several times.
    #[arg(long, value_name = "UUID")]
    role_id: Vec<String>,
    /// One more policy, by name; may be given several times.
    #[arg(long, value_name = "NAME")]
    append_policy_name: Vec<String>,
    /// One more policy, by id; may be given several times.
    #[arg(long, value_name = "UUID")]
    append_policy_id: Vec<String>,
    #[command(flatten)]
    grants: Grants,
    #[command(flatten)]
    formatted: Formatted,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Copy {
    #[command(flatten)]
    which: Which,
    /// What the new one is for.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    #[command(flatten)]
    formatted: Formatted,
}

impl Which {
    fn path(&self) -> Result<String> {
        let accessor = self.accessor_id.as_deref();
        let accessor = accessor.context("say -accessor-id: which token is meant")?;
        Ok(format!("/v1/acl/token/{}", segment(accessor)))
    }
}

pub(super) async fn run(what: What, client: &Client) -> Result<()> {
    match what {
        What::Create(create) => {
            let made: Value = client.put("/v1/acl/token", &[], &create.body()?).await?;
            create.formatted.print(&made, pretty)
        }
        What::Read(read) => {
            let path = match (read.own, &read.which.accessor_id) {
                (true, None) => "/v1/acl/token/self".to_owned(),
                (true, Some(_)) => bail!("-self and -accessor-id: say one of them"),
                (false, _) => read.which.path()?,
            };
            read.formatted.print(&client.get::<Value>(&path, &[]).await?.0, pretty)
        }
        What::List(list) => {
            let (all, _): (Vec<Value>, _) = client.get("/v1/acl/tokens", &[]).await?;
            list.formatted.print(&all, |all| table(all))
        }
        What::Update(update) => {
            let path = update.which.path()?;
            let (held, _): (Value, _) = client.get(&path, &[]).await?;
            let made: Value = client.put(&path, &[], &update.body(&held)?).await?;
            update.formatted.print(&made, pretty)
        }
        What::Clone(copy) => {
            let path = format!("{}/clone", copy.which.path()?);
            let body = match &copy.description {
                Some(description) => json!({ "Description": description }),
                None => json!({}),
            };
            let made: Value = client.put(&path, &[], &body).await?;
            copy.formatted.print(&made, pretty)
        }
        What::Delete(which) => {
            let _: Value = client.delete(&which.path()?, &[]).await?;
            deleted("Token", which.accessor_id.as_deref().unwrap_or_default())
        }
    }
}

impl Create {
    fn body(&self) -> Result<Map<String, Value>> {
        let mut body = Map::new();
        for (key, value) in [
            ("Description", &self.description),
            ("AccessorID", &self.accessor),
            ("SecretID", &self.secret),
            ("ExpirationTTL", &self.expires_ttl),
        ] {
            if let Some(value) = value {
                body.insert(key.to_owned(), value.as_str().into());
            }
        }
        if self.local {
            body.insert("Local".to_owned(), true.into());
        }
        put(&mut body, "Roles", links(&self.role_name, &self.role_id));
        self.grants.set(&mut body)?;
        Ok(body)
    }
}

impl Update {
    /// `held`, with what was said in the place of what was there.
    fn body(&self, held: &Value) -> Result<Map<String, Value>> {
        let mut body = held.as_object().cloned().unwrap_or_default();
        if let Some(description) = &self.description {
            body.insert("Description".to_owned(), description.as_str().into());
        }
        put(&mut body, "Roles", links(&self.role_name, &self.role_id));
        self.grants.set(&mut body)?;
        let more = links(&self.append_policy_name, &self.append_policy_id);
        let policies = body.get("Policies").and_then(Value::as_array).cloned().unwrap_or_default();
        put(&mut body, "Policies", policies.into_iter().chain(more).collect());
        Ok(body)
    }
}

/// One token, for people. Its secret is in it: that is what they want.
pub(super) fn pretty(token: &Value) -> String {
    let keys = [
        ("AccessorID", "AccessorID"),
        ("SecretID", "SecretID"),
        ("Description", "Description"),
        ("Local", "Local"),
        ("Create Time", "CreateTime"),
        ("Expiration Time", "ExpirationTime"),
    ];
    format!("{}{}", lines(token, &keys), granted(token))
}

/// What a token or a role is given, for people.
pub(super) fn granted(value: &Value) -> String {
    let mut shown = String::new();
    for (list, label, name, id) in [
        ("Policies", "Policies", "Name", "ID"),
        ("Roles", "Roles", "Name", "ID"),
        ("ServiceIdentities", "Service Identities", "ServiceName", "Datacenters"),
        ("NodeIdentities", "Node Identities", "NodeName", "Datacenter"),
        ("TemplatedPolicies", "Templated Policies", "TemplateName", "TemplateVariables"),
    ] {
        let items = value[list].as_array().map(Vec::as_slice).unwrap_or_default();
        if items.is_empty() {
            continue;
        }
        shown.push_str(&format!("{label}:\n"));
        for item in items {
            let beside = match &item[id] {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let line = format!("   {} - {beside}", text(item, name));
            shown.push_str(&output::visible(line.trim_end_matches(" - ")));
            shown.push('\n');
        }
    }
    shown
}

fn table(all: &[Value]) -> String {
    let mut table = Table::new(["AccessorID", "SecretID", "Description", "Policies"]);
    for token in all {
        let policies = token["Policies"].as_array().map(Vec::as_slice).unwrap_or_default();
        let policies: Vec<&str> = policies.iter().map(|policy| text(policy, "Name")).collect();
        let [accessor, secret, description] =
            ["AccessorID", "SecretID", "Description"].map(|key| text(token, key));
        table.row([accessor, secret, description, &policies.join(",")]);
    }
    table.into_text()
}
