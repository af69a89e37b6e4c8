//! `hawser acl templated-policy`.

use anyhow::Result;
use hawser_api::client::Client;
use serde_json::{Value, json};

use super::grants::templated;
use super::text;
use crate::cli::output::{self, Formatted};

#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum What {
    /// Print the names of all of them.
    List(List),
    /// Print one.
    Read(Read),
    /// Print the rules that one makes for a name.
    Preview(Preview),
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    formatted: Formatted,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Read {
    /// Which, such as builtin/service.
    #[arg(long, value_name = "TEMPLATE")]
    name: String,
    #[command(flatten)]
    formatted: Formatted,
}

#[derive(Clone, Debug, clap::Args)]
pub(super) struct Preview {
    /// Which, such as builtin/service.
    #[arg(long, value_name = "TEMPLATE")]
    name: String,
    /// What it is made for: name:web.
    #[arg(long = "var", value_name = "name:VALUE")]
    variable: Option<String>,
    #[command(flatten)]
    formatted: Formatted,
}

pub(super) async fn run(what: What, client: &Client) -> Result<()> {
    match what {
        What::List(list) => {
            let (all, _): (Value, _) = client.get("/v1/acl/templated-policies", &[]).await?;
            list.formatted.print(&all, |all| {
                let names = all.as_object().into_iter().flatten();
                names.map(|(name, _)| format!("{}\n", output::visible(name))).collect()
            })
        }
        What::Read(read) => {
            let path = format!("/v1/acl/templated-policy/name/{}", read.name);
            let (found, _): (Value, _) = client.get(&path, &[]).await?;
            read.formatted.print(&found, |found| rules(found, "Template"))
        }
        What::Preview(preview) => {
            let templated = templated(&preview.name, preview.variable.as_deref())?;
            let path = format!("/v1/acl/templated-policy/preview/{}", preview.name);
            let name = templated["TemplateVariables"]["Name"].as_str();
            let body = name.map_or_else(|| json!({}), |name| json!({ "Name": name }));
            let made: Value = client.post(&path, &[], &body).await?;
            preview.formatted.print(&made, |made| rules(made, "Rules"))
        }
    }
}

fn rules(value: &Value, key: &str) -> String {
    text(value, key).lines().map(|line| format!("{}\n", output::visible(line))).collect()
}
