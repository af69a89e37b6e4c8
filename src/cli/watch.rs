//! `hawser watch`: print something of the cluster, or run a program with it whenever it changes.

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use hawser_api::client::{Client, ClientError, segment};
use hyper::{Method, StatusCode};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::sleep;

use super::output;

/// What is watched.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Kind {
    Key,
    Keyprefix,
    Services,
    Nodes,
    Service,
    Checks,
    Event,
}

/// What is watched, and who is told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// What to watch.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Kind,
    /// The key, of -type=key.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// What the keys begin with, of -type=keyprefix.
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// The service, of -type=service and -type=checks.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// A tag that instances must have, of -type=service; may be given several times.
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Passing instances only, of -type=service.
    #[arg(long)]
    passingonly: bool,
    /// The state of checks, of -type=checks.
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// The event's name, of -type=event.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Which elements, as an expression.
    #[arg(long, value_name = "EXPRESSION")]
    filter: Option<String>,
    /// The program to run, with JSON on its standard input; without one, the present answer is
    /// printed, and that is all. A single word is a shell's command line.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<String>,
}

/// Watches until it is told to stop.
///
/// # Errors
/// An option that is missing, a program that does not start, and the API's refusals.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let (path, mut query) = asked(&arguments)?;
    if let Some(filter) = &arguments.filter {
        query.push(("filter", filter.clone()));
    }
    // Longer than the wait, its jitter, and the answer's way.
    let client = client.clone().with_timeout(WAIT + WAIT / 16 + Duration::from_secs(10));
    let (mut index, mut failed) = (0_u64, 0_u32);
    loop {
        let waits = [("index", index.to_string()), ("wait", format!("{}s", WAIT.as_secs()))];
        let asked = query.iter().chain(&waits).map(|(key, value)| (*key, value.as_str()));
        let asked: Vec<(&str, &str)> = asked.collect();
        let answer = match client.send_any(Method::GET, &path, &asked, None).await {
            Ok(answer) if answer.status.is_success() => answer,
            // A key that is not there is an answer, too.
            Ok(answer) if answer.status == StatusCode::NOT_FOUND && answer.index().is_some() => {
                answer
            }
            Ok(answer) if answer.status.is_client_error() => {
                let body = String::from_utf8_lossy(&answer.body).trim().to_owned();
                return Err(ClientError::Refused { status: answer.status, body }.into());
            }
            _ if arguments.program.is_empty() => bail!("the API does not answer"),
            _ => {
                failed = failed.saturating_add(1);
                sleep(RETRY * failed.min(RETRIES_MAX)).await;
                continue;
            }
        };
        failed = 0;
        let now = answer.index().map_or(0, |index| index.0);
        let is_news = now != index;
        // An index that went back says nothing: it is begun anew.
        index = if now < index { 0 } else { now };
        let body = if answer.body.is_empty() { b"null".to_vec() } else { answer.body.to_vec() };
        if arguments.program.is_empty() {
            output::print(&format!("{}\n", String::from_utf8_lossy(&body).trim()))?;
            return Ok(ExitCode::SUCCESS);
        }
        if is_news {
            tell(&arguments.program, &body, now).await?;
        }
    }
}

/// The path and the query that a watch of this kind asks.
fn asked(arguments: &Arguments) -> Result<(String, Vec<(&'static str, String)>)> {
    let needed = |option: &Option<String>, name: &str| -> Result<String> {
        option.clone().with_context(|| format!("-{name}: a watch of this type needs it"))
    };
    let key = |key: &str| key.split('/').map(segment).collect::<Vec<_>>().join("/");
    let mut query = Vec::new();
    let path = match arguments.kind {
        Kind::Key => format!("/v1/kv/{}", key(&needed(&arguments.key, "key")?)),
        Kind::Keyprefix => {
            query.push(("recurse", String::new()));
            format!("/v1/kv/{}", key(&needed(&arguments.prefix, "prefix")?))
        }
        Kind::Services => "/v1/catalog/services".to_owned(),
        Kind::Nodes => "/v1/catalog/nodes".to_owned(),
        Kind::Service => {
            query.extend(arguments.tag.iter().map(|tag| ("tag", tag.clone())));
            if arguments.passingonly {
                query.push(("passing", "1".to_owned()));
            }
            format!("/v1/health/service/{}", segment(&needed(&arguments.service, "service")?))
        }
        Kind::Checks => match (&arguments.service, &arguments.state) {
            (Some(_), Some(_)) => bail!("-service and -state: say one of the two"),
            (Some(service), None) => format!("/v1/health/checks/{}", segment(service)),
            (None, state) => {
                format!("/v1/health/state/{}", segment(state.as_deref().unwrap_or("any")))
            }
        },
        Kind::Event => {
            query.extend(arguments.name.iter().map(|name| ("name", name.clone())));
            "/v1/event/list".to_owned()
        }
    };
    Ok((path, query))
}

/// Runs the program with what changed, and waits for it.
async fn tell(program: &[String], body: &[u8], index: u64) -> Result<()> {
    let mut command = match program {
        [line] => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", line]);
            shell
        }
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        [] => return Ok(()),
    };
    command.env("CONSUL_INDEX", index.to_string()).stdin(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("starting {}", program[0]))?;
    if let Some(mut input) = child.stdin.take() {
        // A program that does not read is none of our concern.
        let _ = input.write_all(body).await;
    }
    child.wait().await.context("waiting for the program")?;
    Ok(())
}

const WAIT: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(5);
const RETRIES_MAX: u32 = 12;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn each_type_asks_its_own() {
        for (line, expected, query) in [
            ("--type=key --key=a/b", "/v1/kv/a/b", vec![]),
            ("--type=keyprefix --prefix=a/", "/v1/kv/a/", vec!["recurse"]),
            ("--type=services", "/v1/catalog/services", vec![]),
            ("--type=nodes", "/v1/catalog/nodes", vec![]),
            (
                "--type=service --service=web --tag=v1 --passingonly",
                "/v1/health/service/web",
                vec!["tag", "passing"],
            ),
            ("--type=checks --state=critical", "/v1/health/state/critical", vec![]),
            ("--type=checks", "/v1/health/state/any", vec![]),
            ("--type=checks --service=web", "/v1/health/checks/web", vec![]),
            ("--type=event --name=deploy cat", "/v1/event/list", vec!["name"]),
        ] {
            let words = std::iter::once("watch").chain(line.split(' '));
            let parsed = Line::try_parse_from(words).expect(line);
            let (path, asked) = asked(&parsed.arguments).expect(line);
            let keys: Vec<&str> = asked.iter().map(|(key, _)| *key).collect();
            assert_eq!((path.as_str(), keys), (expected, query), "{line}");
        }
        for line in ["--type=key", "--type=service", "--type=checks --service=a --state=any"] {
            let words = std::iter::once("watch").chain(line.split(' '));
            let parsed = Line::try_parse_from(words).expect(line);
            assert!(asked(&parsed.arguments).is_err(), "{line}");
        }
    }
}
