//! What a token or a role is given, as options.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// What a token or a role may do.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct Grants {
    /// A policy, by name; may be given several times.
    #[arg(long, value_name = "NAME")]
    policy_name: Vec<String>,
    /// A policy, by id; may be given several times.
    #[arg(long, value_name = "UUID")]
    policy_id: Vec<String>,
    /// A service that may be registered: NAME or NAME:DC1,DC2.
    #[arg(long, value_name = "NAME[:DCS]")]
    service_identity: Vec<String>,
    /// A node that may be registered: NAME:DC.
    #[arg(long, value_name = "NAME:DC")]
    node_identity: Vec<String>,
    /// A templated policy, such as builtin/service.
    #[arg(long, value_name = "TEMPLATE")]
    templated_policy: Option<String>,
    /// What the templated policy is made for: name:web.
    #[arg(long = "var", value_name = "name:VALUE", requires = "templated_policy")]
    variable: Option<String>,
}

impl Grants {
    /// Puts into `body` what was said, in the place of what was there.
    pub(super) fn set(&self, body: &mut Map<String, Value>) -> Result<()> {
        let policies = links(&self.policy_name, &self.policy_id);
        let services: Vec<Value> = self.service_identity.iter().map(|text| service(text)).collect();
        let nodes: Vec<Value> =
            self.node_identity.iter().map(|text| node(text)).collect::<Result<_>>()?;
        let templates: Vec<Value> = self
            .templated_policy
            .iter()
            .map(|name| templated(name, self.variable.as_deref()))
            .collect::<Result<_>>()?;
        for (key, list) in [
            ("Policies", policies),
            ("ServiceIdentities", services),
            ("NodeIdentities", nodes),
            ("TemplatedPolicies", templates),
        ] {
            put(body, key, list);
        }
        Ok(())
    }
}

/// Puts `list` into `body`, unless there is nothing in it.
pub(super) fn put(body: &mut Map<String, Value>, key: &str, list: Vec<Value>) {
    if !list.is_empty() {
        body.insert(key.to_owned(), list.into());
    }
}

/// Links to policies or roles, by name and by id.
pub(super) fn links(names: &[String], ids: &[String]) -> Vec<Value> {
    let names = names.iter().map(|name| json!({ "Name": name }));
    names.chain(ids.iter().map(|id| json!({ "ID": id }))).collect()
}

fn service(text: &str) -> Value {
    match text.split_once(':') {
        None => json!({ "ServiceName": text }),
        Some((name, datacenters)) => {
            let datacenters: Vec<&str> = datacenters.split(',').collect();
            json!({ "ServiceName": name, "Datacenters": datacenters })
        }
    }
}

fn node(text: &str) -> Result<Value> {
    let (name, datacenter) =
        text.split_once(':').with_context(|| format!("-node-identity: {text:?} is not NAME:DC"))?;
    Ok(json!({ "NodeName": name, "Datacenter": datacenter }))
}

/// A templated policy, made for what `variable` says.
pub(super) fn templated(name: &str, variable: Option<&str>) -> Result<Value> {
    let mut templated = json!({ "TemplateName": name });
    if let Some(text) = variable {
        let value = text
            .split_once(':')
            .filter(|(key, _)| key.eq_ignore_ascii_case("name"))
            .with_context(|| format!("-var: {text:?} is not name:VALUE"))?
            .1;
        templated["TemplateVariables"] = json!({ "Name": value });
    }
    Ok(templated)
}
