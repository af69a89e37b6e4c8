//! `hawser login` and `hawser logout`: a token for a proof, and its end.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use hawser_api::client::Client;
use serde_json::{Map, Value, json};

use super::output;

/// Gets a token for what an auth method takes as a proof, and keeps its secret in a file.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The auth method.
    #[arg(long, value_name = "NAME")]
    method: String,
    /// A file with the proof, such as a JSON Web Token.
    #[arg(long, value_name = "FILE")]
    bearer_token_file: PathBuf,
    /// Where the new token's secret is written to, readable by its owner alone.
    #[arg(long, value_name = "FILE")]
    token_sink_file: PathBuf,
    /// What is noted with the token; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    meta: Vec<String>,
}

/// Ends the token that is shown, which was logged in for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Logout {}

/// Logs in.
///
/// # Errors
/// The API's, and files that cannot be read or written.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let file = &arguments.bearer_token_file;
    let bearer = std::fs::read_to_string(file)
        .with_context(|| format!("-bearer-token-file: reading {}", file.display()))?;
    let bearer = bearer.trim();
    if bearer.is_empty() {
        bail!("-bearer-token-file: {} is empty", file.display());
    }
    let mut meta = Map::new();
    for pair in &arguments.meta {
        let (key, value) = pair.split_once('=').context("-meta: write KEY=VALUE")?;
        meta.insert(key.to_owned(), value.into());
    }
    let mut body = json!({ "AuthMethod": arguments.method, "BearerToken": bearer });
    if !meta.is_empty() {
        body["Meta"] = meta.into();
    }
    let made: Value = client.post("/v1/acl/login", &[], &body).await?;
    let secret = made["SecretID"].as_str().context("the reply holds no token")?;
    let sink = &arguments.token_sink_file;
    write(sink, secret).with_context(|| format!("-token-sink-file: {}", sink.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Logs out.
///
/// # Errors
/// The API's.
pub(crate) async fn log_out(_: Logout, client: &Client) -> Result<ExitCode> {
    let _: Value = client.post("/v1/acl/logout", &[], &json!({})).await?;
    output::print("The token is no more\n")?;
    Ok(ExitCode::SUCCESS)
}

/// Replaces the file as a whole: whoever reads it meanwhile has the old secret or the new one.
fn write(path: &Path, secret: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    let beside = PathBuf::from(beside);
    // One that is there may be readable by more than its owner.
    match std::fs::remove_file(&beside) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    let mut file =
        std::fs::File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(secret.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::cli::stub::{Stub, asked};

    #[tokio::test]
    async fn the_secret_goes_into_a_file_of_its_owner_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(at("jwt"), "a.b.c\n").expect("written");
        let stub = Stub::answering(&[(200, r#"{"SecretID":"s3"}"#)]).await;
        let line = format!(
            "--method ci --bearer-token-file {} --token-sink-file {} --meta run=7",
            at("jwt"),
            at("token")
        );
        assert_eq!(asked!(Arguments, &line, &stub).expect("done"), ExitCode::SUCCESS);
        let asked =
            r#"POST /v1/acl/login {"AuthMethod":"ci","BearerToken":"a.b.c","Meta":{"run":"7"}}"#;
        assert_eq!(stub.requests(), [asked]);
        assert_eq!(std::fs::read_to_string(at("token")).expect("there"), "s3");
        let mode = std::fs::metadata(at("token")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
