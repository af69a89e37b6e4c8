//! `hawser kv`: keys, read and written as Consul's are.

use std::io::Read as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hawser_api::client::{Client, ClientError, segment};
use hawser_api::json::KvPair;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::catalog::Read;
use super::output;

/// The key-value store.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// Print a value, or what is below a prefix.
    Get(Get),
    /// Write a value: DATA, @FILE, or - for standard input.
    Put(Put),
    /// Remove a key, or all below a prefix.
    Delete(Delete),
    /// Print all below a prefix as JSON that `import` takes.
    Export {
        /// The prefix; all keys without one.
        #[arg(default_value = "")]
        prefix: String,
        #[command(flatten)]
        read: Read,
    },
    /// Write what `export` printed: DATA, @FILE, or - for standard input.
    Import {
        /// The JSON.
        #[arg(default_value = "-")]
        data: String,
        /// Put before each key.
        #[arg(long, value_name = "TEXT", default_value = "")]
        prefix: String,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Get {
    /// The key or prefix.
    #[arg(default_value = "")]
    key: String,
    /// With flags, indexes and the lock's holder.
    #[arg(long)]
    detailed: bool,
    /// All whose key begins so.
    #[arg(long)]
    recurse: bool,
    /// Only the keys that begin so.
    #[arg(long, conflicts_with = "recurse")]
    keys: bool,
    /// With -keys: show keys up to the next of these only.
    #[arg(long, value_name = "TEXT", default_value = "/")]
    separator: String,
    /// Print values in base64.
    #[arg(long)]
    base64: bool,
    #[command(flatten)]
    read: Read,
}

#[derive(Clone, Debug, clap::Args)]
struct Put {
    /// The key.
    key: String,
    /// The value; empty where it is left out.
    data: Option<String>,
    /// The data is base64.
    #[arg(long)]
    base64: bool,
    /// A number to keep with the value.
    #[arg(long, value_name = "NUMBER")]
    flags: Option<u64>,
    /// Only while the key's index is that of -modify-index; without one, only while there is none.
    #[arg(long)]
    cas: bool,
    /// The index that the key must have.
    #[arg(long, value_name = "INDEX", requires = "cas")]
    modify_index: Option<u64>,
    /// Take the key's lock for the session.
    #[arg(long, requires = "session", conflicts_with_all = ["cas", "release"])]
    acquire: bool,
    /// Give up the key's lock.
    #[arg(long, requires = "session", conflicts_with = "cas")]
    release: bool,
    /// The session that takes or gives up the lock.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
struct Delete {
    /// The key or prefix.
    #[arg(default_value = "")]
    key: String,
    /// All whose key begins so.
    #[arg(long, conflicts_with = "cas")]
    recurse: bool,
    /// Only while the key's index is that of -modify-index.
    #[arg(long, requires = "modify_index")]
    cas: bool,
    /// The index that the key must have.
    #[arg(long, value_name = "INDEX", requires = "cas")]
    modify_index: Option<u64>,
}

/// A key as `export` writes it and `import` reads it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Exported {
    key: String,
    #[serde(default)]
    flags: u64,
    #[serde(default)]
    value: String,
}

/// Does what was asked for.
///
/// # Errors
/// A key that is not there or was changed meanwhile, data that cannot be read, and the API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    match arguments.what {
        What::Get(get) => read(&get, client).await?,
        What::Put(put) => write(&put, client).await?,
        What::Delete(delete) => remove(&delete, client).await?,
        What::Export { prefix, read } => export(&prefix, &read, client).await?,
        What::Import { data, prefix } => import(&data, &prefix, client).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn read(get: &Get, client: &Client) -> Result<()> {
    let mut query = get.read.query();
    if get.keys {
        query.extend([("keys", ""), ("separator", get.separator.as_str())]);
        let keys: Option<Vec<String>> = found(client, &get.key, &query).await?;
        let lines = keys.into_iter().flatten().map(|key| output::visible(&key) + "\n");
        return output::print(&lines.collect::<String>());
    }
    if get.recurse {
        query.push(("recurse", ""));
    }
    ensure!(get.recurse || !get.key.is_empty(), "which key? Name it, or give -recurse or -keys");
    let pairs: Option<Vec<KvPair>> = found(client, &get.key, &query).await?;
    let Some(pairs) = pairs else {
        if get.recurse {
            return Ok(());
        }
        bail!("Error! No key exists at: {}", output::visible(&get.key));
    };
    let mut shown = Vec::new();
    for (number, pair) in pairs.iter().enumerate() {
        let value = value(pair, get.base64)?;
        if get.detailed {
            if number > 0 {
                shown.push(b'\n');
            }
            shown.extend(detailed(pair, &value));
        } else {
            if get.recurse {
                shown.extend(output::visible(&pair.key).into_bytes());
                shown.push(b':');
            }
            shown.extend(value);
            shown.push(b'\n');
        }
    }
    output::print_octets(&shown)
}

/// A key or what is below it; none where there is nothing.
async fn found<T: serde::de::DeserializeOwned>(
    client: &Client,
    key: &str,
    query: &[(&str, &str)],
) -> Result<Option<T>> {
    match client.get::<T>(&path(key), query).await {
        Ok((found, _)) => Ok(Some(found)),
        Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
        Err(refused) => Err(refused.into()),
    }
}

fn value(pair: &KvPair, as_base64: bool) -> Result<Vec<u8>> {
    let text = pair.value.as_deref().unwrap_or_default();
    if as_base64 {
        return Ok(text.as_bytes().to_vec());
    }
    STANDARD.decode(text).with_context(|| format!("the value of {} is no base64", pair.key))
}

fn detailed(pair: &KvPair, value: &[u8]) -> Vec<u8> {
    let KvPair { lock_index, key, flags, session, create_index, modify_index, .. } = pair;
    let session = session.as_deref().unwrap_or("-");
    let (key, session) = (output::visible(key), output::visible(session));
    let mut text = format!(
        "CreateIndex      {create_index}\nFlags            {flags}\nKey              {key}\n\
         LockIndex        {lock_index}\nModifyIndex      {modify_index}\n\
         Session          {session}\nValue            "
    )
    .into_bytes();
    text.extend(value);
    text.push(b'\n');
    text
}

async fn write(put: &Put, client: &Client) -> Result<()> {
    let mut data = data(put.data.as_deref().unwrap_or_default())?;
    if put.base64 {
        data = STANDARD.decode(data.trim_ascii()).context("the data is no base64")?;
    }
    let (flags, index) = (put.flags.map(|flags| flags.to_string()), put.modify_index.unwrap_or(0));
    let index = index.to_string();
    let session = put.session.as_deref().unwrap_or_default();
    let mut query: Vec<(&str, &str)> = Vec::new();
    query.extend(flags.iter().map(|flags| ("flags", flags.as_str())));
    let key = output::visible(&put.key);
    let (done, refused) = if put.cas {
        query.push(("cas", &index));
        (format!("Data written to: {key}"), format!("Did not write to {key}: CAS failed"))
    } else if put.acquire {
        query.push(("acquire", session));
        (format!("Lock acquired on: {key}"), format!("Did not acquire lock on {key}"))
    } else if put.release {
        query.push(("release", session));
        (format!("Lock released on: {key}"), format!("Did not release lock on {key}"))
    } else {
        (format!("Data written to: {key}"), format!("Did not write to {key}"))
    };
    let body = Some(Bytes::from(data));
    let answer = client.send(Method::PUT, &path(&put.key), &query, body).await?;
    ensure!(answer.body.trim_ascii() == b"true", "Error! {refused}");
    output::print(&format!("Success! {done}\n"))
}

async fn remove(delete: &Delete, client: &Client) -> Result<()> {
    let index = delete.modify_index.map(|index| index.to_string());
    let mut query: Vec<(&str, &str)> = Vec::new();
    query.extend(index.iter().map(|index| ("cas", index.as_str())));
    if delete.recurse {
        query.push(("recurse", ""));
    }
    ensure!(delete.recurse || !delete.key.is_empty(), "which key? Name it, or give -recurse");
    let is_done: bool = client.delete(&path(&delete.key), &query).await?;
    let key = output::visible(&delete.key);
    ensure!(is_done, "Error! Did not delete key {key}: CAS failed");
    output::print(&match delete.recurse {
        true => format!("Success! Deleted keys with prefix: {key}\n"),
        false => format!("Success! Deleted key: {key}\n"),
    })
}

async fn export(prefix: &str, read: &Read, client: &Client) -> Result<()> {
    let mut query = read.query();
    query.push(("recurse", ""));
    let pairs: Option<Vec<KvPair>> = found(client, prefix, &query).await?;
    let exported = |pair: KvPair| Exported {
        key: pair.key,
        flags: pair.flags,
        value: pair.value.unwrap_or_default(),
    };
    output::print_json(&pairs.into_iter().flatten().map(exported).collect::<Vec<_>>())
}

async fn import(text: &str, prefix: &str, client: &Client) -> Result<()> {
    let all: Vec<Exported> =
        serde_json::from_slice(&data(text)?).context("it is not what `kv export` prints")?;
    for Exported { key, flags, value } in all {
        let key = format!("{prefix}{key}");
        let value = STANDARD.decode(&value).with_context(|| format!("{key}: it is no base64"))?;
        let flags = flags.to_string();
        let body = Some(Bytes::from(value));
        client
            .send(Method::PUT, &path(&key), &[("flags", &flags)], body)
            .await
            .with_context(|| format!("writing {key}"))?;
        output::print(&format!("Imported: {}\n", output::visible(&key)))?;
    }
    Ok(())
}

/// What an argument stands for: itself, the file after its `@`, or standard input.
fn data(argument: &str) -> Result<Vec<u8>> {
    let mut octets = Vec::new();
    let length = match (argument, argument.strip_prefix('@')) {
        ("-", _) => {
            let input = std::io::stdin().lock();
            input.take(OCTETS_MAX + 1).read_to_end(&mut octets).context("reading standard input")?
        }
        (_, Some(file)) => std::fs::File::open(file)
            .and_then(|opened| opened.take(OCTETS_MAX + 1).read_to_end(&mut octets))
            .with_context(|| format!("reading {file}"))?,
        (text, None) => return Ok(text.as_bytes().to_vec()),
    };
    ensure!(length as u64 <= OCTETS_MAX, "it is longer than {OCTETS_MAX} bytes");
    Ok(octets)
}

/// Where a key is: its slashes stay, so that folders are readable in logs.
fn path(key: &str) -> String {
    let parts: Vec<String> = key.split('/').map(segment).collect();
    format!("/v1/kv/{}", parts.join("/"))
}

/// More than any one value, and than an export is likely to have.
const OCTETS_MAX: u64 = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    #[tokio::test]
    async fn each_verb_asks_its_endpoint() {
        let pair = r#"[{"Key":"a","Value":"eA=="}]"#;
        let cases = [
            ("get app/a", pair, "GET /v1/kv/app/a"),
            ("get --recurse app/ --stale", pair, "GET /v1/kv/app/?stale&recurse"),
            ("get --keys", "[]", "GET /v1/kv/?keys&separator=%2F"),
            ("put a#b 1", "true", "PUT /v1/kv/a%23b 1"),
            ("put a --flags 7 --cas 1", "true", "PUT /v1/kv/a?flags=7&cas=0 1"),
            ("put a eA== --base64 --cas --modify-index 9", "true", "PUT /v1/kv/a?cas=9 x"),
            ("put a 1 --acquire --session s", "true", "PUT /v1/kv/a?acquire=s 1"),
            ("put a --release --session s", "true", "PUT /v1/kv/a?release=s"),
            ("delete a --cas --modify-index 9", "true", "DELETE /v1/kv/a?cas=9"),
            ("delete --recurse a/", "true", "DELETE /v1/kv/a/?recurse"),
            ("export a", pair, "GET /v1/kv/a?recurse"),
            (
                r#"import [{"key":"a","flags":7,"value":"eA=="}] --prefix p/"#,
                "true",
                "PUT /v1/kv/p/a?flags=7 x",
            ),
        ];
        for (line, reply, expected) in cases {
            let stub = Stub::answering(&[(200, reply)]).await;
            assert_eq!(asked!(Arguments, line, &stub).expect(line), ExitCode::SUCCESS, "{line}");
            assert_eq!(stub.requests(), [expected], "{line}");
        }
    }

    #[tokio::test]
    async fn what_did_not_happen_is_an_error_in_consuls_words() {
        let cases = [
            ("get a", 404, "", "Error! No key exists at: a"),
            ("put a 1 --cas", 200, "false", "Error! Did not write to a: CAS failed"),
            ("put a --acquire --session s", 200, "false", "Error! Did not acquire lock on a"),
            ("put a --release --session s", 200, "false", "Error! Did not release lock on a"),
            (
                "delete a --cas --modify-index 1",
                200,
                "false",
                "Error! Did not delete key a: CAS failed",
            ),
            ("put a *** --base64", 200, "true", "the data is no base64"),
            ("import {}", 200, "true", "it is not what `kv export` prints"),
            ("delete", 200, "true", "which key? Name it, or give -recurse"),
        ];
        for (line, status, reply, expected) in cases {
            let stub = Stub::answering(&[(status, reply)]).await;
            let refused = asked!(Arguments, line, &stub).expect_err(line);
            assert_eq!(refused.to_string(), expected, "{line}");
        }
    }

    #[test]
    fn all_of_a_key_is_shown_where_asked() {
        let pair = KvPair {
            key: "a".into(),
            value: Some("eA==".into()),
            flags: 7,
            create_index: 1,
            modify_index: 2,
            ..KvPair::default()
        };
        let shown = detailed(&pair, &value(&pair, false).expect("base64"));
        let expected = "CreateIndex      1\nFlags            7\nKey              a\n\
                        LockIndex        0\nModifyIndex      2\nSession          -\n\
                        Value            x\n";
        assert_eq!(String::from_utf8_lossy(&shown), expected);
    }
}
