//! `hawser acl`: tokens, policies and roles, as Consul's users type it.

mod binding;
mod grants;
mod method;
mod policy;
mod role;
mod template;
mod token;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use hawser_api::client::{Client, segment};
use serde_json::{Value, json};

use super::output::{self, Formatted};

/// Access control.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Make the first token, which may do everything; this works once.
    Bootstrap(Bootstrap),
    /// Say what may be done.
    #[command(subcommand)]
    Policy(policy::What),
    /// Group policies under a name.
    #[command(subcommand)]
    Role(role::What),
    /// Make tokens and look after them.
    #[command(subcommand)]
    Token(Box<token::What>),
    /// Say by which proofs somebody may log in.
    #[command(subcommand)]
    AuthMethod(Box<method::What>),
    /// Say what those get who log in.
    #[command(subcommand)]
    BindingRule(Box<binding::What>),
    /// Look at policies that are made for a name.
    #[command(subcommand)]
    TemplatedPolicy(template::What),
}

#[derive(Clone, Debug, clap::Args)]
struct Bootstrap {
    /// A file with the secret to use, or - for standard input; otherwise the servers draw one.
    #[arg(value_name = "FILE")]
    secret_file: Option<std::path::PathBuf>,
    #[command(flatten)]
    formatted: Formatted,
}

/// Does what was asked for.
///
/// # Errors
/// The API's, and files that cannot be read.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    match arguments.what {
        What::Bootstrap(bootstrap) => {
            let body = match bootstrap.secret_file {
                None => json!({}),
                Some(file) => json!({ "BootstrapSecret": text_of(&file)?.trim() }),
            };
            let made: Value = client.put("/v1/acl/bootstrap", &[], &body).await?;
            bootstrap.formatted.print(&made, token::pretty)?;
        }
        What::Policy(what) => policy::run(what, client).await?,
        What::Role(what) => role::run(what, client).await?,
        What::Token(what) => token::run(*what, client).await?,
        What::AuthMethod(what) => method::run(*what, client).await?,
        What::BindingRule(what) => binding::run(*what, client).await?,
        What::TemplatedPolicy(what) => template::run(what, client).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// One object, by id or by name.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Its id.
    #[arg(long, value_name = "UUID")]
    id: Option<String>,
    /// Its name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl Which {
    /// The object, one of `kind`s.
    async fn read(&self, kind: &str, client: &Client) -> Result<Value> {
        let path = match (&self.id, &self.name) {
            (Some(id), _) => format!("/v1/acl/{kind}/{}", segment(id)),
            (None, Some(name)) => format!("/v1/acl/{kind}/name/{}", segment(name)),
            (None, None) => bail!("say -id or -name"),
        };
        Ok(client.get(&path, &[]).await?.0)
    }

    /// Its id.
    async fn id(&self, kind: &str, client: &Client) -> Result<String> {
        match &self.id {
            Some(id) => Ok(id.clone()),
            None => Ok(text(&self.read(kind, client).await?, "ID").to_owned()),
        }
    }
}

/// What an option holds: the text itself, of `@FILE` the file's, of `-` standard input's.
fn said(option: &str) -> Result<String> {
    match option.strip_prefix('@') {
        Some(file) => text_of(file.as_ref()),
        None if option == "-" => text_of(option.as_ref()),
        None => Ok(option.to_owned()),
    }
}

fn text_of(file: &std::path::Path) -> Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let limit = 1024 * 1024;
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin().lock().take(limit).read_to_string(&mut text),
        false => {
            std::fs::File::open(file).and_then(|file| file.take(limit).read_to_string(&mut text))
        }
    };
    read.with_context(|| format!("reading {}", file.display()))?;
    Ok(text)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// `Key: value` lines, as Consul prints one object.
fn lines(value: &Value, keys: &[(&str, &str)]) -> String {
    let shown = |(label, key): &(&str, &str)| {
        let field = &value[*key];
        let text = match field {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Array(list) => {
                list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        format!("{:<18}{}\n", format!("{label}:"), output::visible(&text))
    };
    keys.iter().map(shown).collect()
}

/// Says that one is gone.
fn deleted(what: &str, id: &str) -> Result<()> {
    output::print(&format!("{what} \"{}\" deleted successfully\n", output::visible(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    /// Each row: a line as Consul's users type it, what the API answers, and what it was asked.
    #[tokio::test]
    async fn lines_become_requests() {
        let token = r#"{"AccessorID": "a1", "Description": "old", "Policies": [{"ID": "p1"}]}"#;
        let policy = r#"{"ID": "p1", "Name": "ops", "Rules": "", "Description": ""}"#;
        let cases: Vec<(&str, Vec<&str>, Vec<&str>)> = vec![
            ("bootstrap", vec!["{}"], vec!["PUT /v1/acl/bootstrap {}"]),
            ("policy list", vec!["[]"], vec!["GET /v1/acl/policies"]),
            ("policy read --name ops", vec![policy], vec!["GET /v1/acl/policy/name/ops"]),
            (
                "policy create --name ops --rules operator=\"read\"",
                vec![policy],
                vec![r#"PUT /v1/acl/policy {"Name":"ops","Rules":"operator=\"read\""}"#],
            ),
            (
                "policy delete --name ops",
                vec![policy, "true"],
                vec!["GET /v1/acl/policy/name/ops", "DELETE /v1/acl/policy/p1"],
            ),
            (
                "role create --name r --policy-name ops --service-identity web:dc1,dc2",
                vec!["{}"],
                vec![concat!(
                    r#"PUT /v1/acl/role {"Name":"r","Policies":[{"Name":"ops"}],"#,
                    r#""ServiceIdentities":[{"Datacenters":["dc1","dc2"],"ServiceName":"web"}]}"#
                )],
            ),
            (
                "token create --description d --policy-name ops --expires-ttl 10m --local",
                vec!["{}"],
                vec![concat!(
                    r#"PUT /v1/acl/token {"Description":"d","ExpirationTTL":"10m","Local":true,"#,
                    r#""Policies":[{"Name":"ops"}]}"#
                )],
            ),
            (
                "token update --accessor-id a1 --append-policy-name ops",
                vec![token, "{}"],
                vec![
                    "GET /v1/acl/token/a1",
                    concat!(
                        r#"PUT /v1/acl/token/a1 {"AccessorID":"a1","Description":"old","#,
                        r#""Policies":[{"ID":"p1"},{"Name":"ops"}]}"#
                    ),
                ],
            ),
            ("token read --self", vec!["{}"], vec!["GET /v1/acl/token/self"]),
            ("token clone --accessor-id a1", vec!["{}"], vec!["PUT /v1/acl/token/a1/clone {}"]),
            ("token delete --id a1", vec!["true"], vec!["DELETE /v1/acl/token/a1"]),
            (
                "auth-method create --name ci --type jwt --max-token-ttl 10m --config {}",
                vec!["{}"],
                vec![concat!(
                    r#"PUT /v1/acl/auth-method {"Config":{},"MaxTokenTTL":"10m","Name":"ci","#,
                    r#""Type":"jwt"}"#
                )],
            ),
            (
                "auth-method update --name ci --description d",
                vec![r#"{"Name":"ci","Type":"jwt"}"#, "{}"],
                vec![
                    "GET /v1/acl/auth-method/ci",
                    r#"PUT /v1/acl/auth-method/ci {"Description":"d","Name":"ci","Type":"jwt"}"#,
                ],
            ),
            ("auth-method delete --name ci", vec!["true"], vec!["DELETE /v1/acl/auth-method/ci"]),
            (
                "binding-rule create --method ci --bind-type role --bind-name ops",
                vec!["{}"],
                vec![concat!(
                    r#"PUT /v1/acl/binding-rule {"AuthMethod":"ci","BindName":"ops","#,
                    r#""BindType":"role"}"#
                )],
            ),
            (
                "binding-rule list --method ci",
                vec!["[]"],
                vec!["GET /v1/acl/binding-rules?authmethod=ci"],
            ),
            ("templated-policy list", vec!["{}"], vec!["GET /v1/acl/templated-policies"]),
        ];
        for (line, replies, expected) in cases {
            let replies: Vec<(u16, &str)> = replies.into_iter().map(|body| (200, body)).collect();
            let stub = Stub::answering(&replies).await;
            assert_eq!(asked!(Arguments, line, &stub).expect(line), ExitCode::SUCCESS);
            assert_eq!(stub.requests(), expected, "{line}");
        }
    }
}
