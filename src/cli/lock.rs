//! `hawser lock`: run a program while holding a lock, as Consul's users do.

use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hawser_api::client::{Client, ClientError, segment};
use hawser_api::json::{KvPair, Session};
use hawser_core::duration;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use super::output;

/// A lock and the program to run under it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Exit with the program's own status.
    #[arg(long)]
    child_exit_code: bool,
    /// What to call the session.
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Give up when the lock is not free within this time; without it, wait.
    #[arg(long = "try", value_name = "DURATION", value_parser = duration::parse)]
    patience: Option<Duration>,
    /// Let the program read standard input.
    #[arg(long)]
    pass_stdin: bool,
    /// Say what is done.
    #[arg(long)]
    verbose: bool,
    /// The lock is the key .lock in this folder.
    prefix: String,
    /// The program with its arguments, after -- where they have long options with one dash; a
    /// single word is a shell's command line.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<String>,
}

/// Takes the lock, runs the program, and gives the lock up. A program that is still running when
/// the lock is lost is told to stop, and killed when it does not.
///
/// # Errors
/// A lock that is not free in time or was lost, a program that does not start or fails, and the
/// API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let prefix = arguments.prefix.trim_matches('/');
    ensure!(!prefix.is_empty(), "which lock? Name a folder of keys");
    let parts: Vec<String> = prefix.split('/').map(segment).collect();
    let path = format!("/v1/kv/{}/.lock", parts.join("/"));
    let held = Held { client, path, session: begin(&arguments, client).await? };
    let ended = tokio::select! {
        ended = held.work(&arguments) => ended,
        lost = held.renew() => Err(lost),
    };
    // Also when the work failed: a lock that nobody needs must not wait for its TTL.
    let given_up = held.end().await;
    let code = ended?;
    given_up?;
    Ok(code)
}

async fn begin(arguments: &Arguments, client: &Client) -> Result<String> {
    let name =
        arguments.name.clone().unwrap_or_else(|| format!("hawser lock {}", arguments.prefix));
    let body = json!({ "Name": name, "TTL": duration::format(TTL) });
    let made: Value = client.put("/v1/session/create", &[], &body).await?;
    made["ID"].as_str().map(str::to_owned).context("the answer has no session")
}

/// A session and the lock that it takes.
struct Held<'a> {
    client: &'a Client,
    path: String,
    session: String,
}

impl Held<'_> {
    async fn work(&self, arguments: &Arguments) -> Result<ExitCode> {
        let say = |text: &str| match arguments.verbose {
            true => output::print(&format!("{text}\n")),
            false => Ok(()),
        };
        say("Setting up lock at path")?;
        match arguments.patience {
            None => self.acquire().await?,
            Some(patience) => match timeout(patience, self.acquire()).await {
                Ok(acquired) => acquired?,
                Err(_) => bail!("the lock was not free within {}", duration::format(patience)),
            },
        }
        say("Lock acquired: starting the program")?;
        let mut child = start(arguments)?;
        let status = tokio::select! {
            status = child.wait() => status.context("waiting for the program")?,
            lost = self.watch() => {
                stop(&mut child).await;
                return Err(lost);
            }
            () = told_to_stop() => {
                stop(&mut child).await;
                bail!("told to stop: the program was, too");
            }
        };
        say("The program ended: giving the lock up")?;
        match status.code() {
            Some(0) => Ok(ExitCode::SUCCESS),
            Some(code) if arguments.child_exit_code => {
                Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
            }
            _ => bail!("the program failed: {status}"),
        }
    }

    /// Waits until the lock is this session's.
    async fn acquire(&self) -> Result<()> {
        let mut seen = None;
        loop {
            let query = [("acquire", self.session.as_str()), ("flags", LOCK_FLAG)];
            let body = Some(Bytes::new());
            let answer = self.client.send(Method::PUT, &self.path, &query, body).await?;
            if answer.body.trim_ascii() == b"true" {
                return Ok(());
            }
            let index = self.next(seen).await?;
            // Free, but for a lock delay: nothing wakes its end.
            if index.is_free {
                sleep(RETRY_EVERY).await;
            }
            seen = Some(index.index);
        }
    }

    /// Returns once the lock is no longer this session's.
    async fn watch(&self) -> anyhow::Error {
        let mut seen = None;
        loop {
            match self.next(seen).await {
                Ok(Seen { holder, .. }) if holder.as_ref() != Some(&self.session) => {
                    return anyhow::anyhow!("the lock was lost: the program was stopped");
                }
                Ok(found) => {
                    // Nothing changed for a whole wait, or nobody waits: no hurry either way.
                    if seen == Some(found.index) {
                        sleep(RETRY_EVERY).await;
                    }
                    seen = Some(found.index);
                }
                // The session says whether the lock is: it is renewed meanwhile.
                Err(_) => sleep(RETRY_EVERY).await,
            }
        }
    }

    /// What the lock is once it is not what it was.
    async fn next(&self, seen: Option<u64>) -> Result<Seen> {
        let index = seen.map(|seen| seen.to_string()).unwrap_or_default();
        let mut query = vec![("wait", WAIT)];
        query.extend((!index.is_empty()).then_some(("index", index.as_str())));
        let answer = self.client.send_any(Method::GET, &self.path, &query, None).await?;
        let index = answer.index().map_or(0, |index| index.0);
        let holder = match answer.status {
            StatusCode::OK => {
                let pairs: Vec<KvPair> = serde_json::from_slice(&answer.body)?;
                pairs.into_iter().next().and_then(|pair| pair.session)
            }
            StatusCode::NOT_FOUND => None,
            status => bail!("reading the lock: {status}"),
        };
        Ok(Seen { index, is_free: holder.is_none(), holder })
    }

    /// Keeps the session alive; returns once it is dead.
    async fn renew(&self) -> anyhow::Error {
        let path = format!("/v1/session/renew/{}", segment(&self.session));
        let mut renewed = Instant::now();
        loop {
            sleep(TTL / 3).await;
            match self.client.put::<_, Vec<Session>>(&path, &[], &json!({})).await {
                Ok(_) => renewed = Instant::now(),
                Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => {
                    return anyhow::anyhow!("the session ended, and the lock with it");
                }
                Err(failure) if renewed.elapsed() > TTL => {
                    return anyhow::Error::new(failure).context("the session cannot be renewed");
                }
                Err(_) => {}
            }
        }
    }

    /// Gives the lock up, if it is held, and ends the session.
    async fn end(&self) -> Result<()> {
        let query = [("release", self.session.as_str()), ("flags", LOCK_FLAG)];
        self.client.send(Method::PUT, &self.path, &query, Some(Bytes::new())).await?;
        let path = format!("/v1/session/destroy/{}", segment(&self.session));
        self.client.send(Method::PUT, &path, &[], Some(Bytes::new())).await?;
        Ok(())
    }
}

/// The lock as it was read.
struct Seen {
    index: u64,
    is_free: bool,
    holder: Option<String>,
}

fn start(arguments: &Arguments) -> Result<Child> {
    let mut command = match &arguments.program[..] {
        [line] => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", line]);
            shell
        }
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest);
            command
        }
        [] => bail!("which program? Name it after the lock"),
    };
    if !arguments.pass_stdin {
        command.stdin(Stdio::null());
    }
    command.env("HAWSER_LOCK_HELD", "true").env("CONSUL_LOCK_HELD", "true");
    // What this process does not outlive, its lock would not either.
    command.kill_on_drop(true).spawn().context("starting the program")
}

/// Tells the program to stop, and kills it when it does not.
async fn stop(child: &mut Child) {
    let pid =
        child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // One that has ended already needs no signal.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    if timeout(STOP_PATIENCE, child.wait()).await.is_err() {
        drop(child.kill().await);
    }
}

/// Returns once somebody tells this process to stop.
async fn told_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// What Consul marks keys with that are locks and nothing else.
const LOCK_FLAG: &str = "3304740253564472344";
const TTL: Duration = Duration::from_secs(15);
/// Shorter than what the client waits for any answer.
const WAIT: &str = "5s";
const RETRY_EVERY: Duration = Duration::from_secs(1);
const STOP_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    #[tokio::test]
    async fn a_program_runs_between_taking_the_lock_and_giving_it_up() {
        let made = (200, r#"{"ID":"s1"}"#);
        let held = (200, r#"[{"Key":"a/.lock","Session":"s1"}]"#);
        // The lock is read while the program runs, or not at all when it is quick.
        let stub = Stub::answering(&[made, (200, "true"), held, held, held, held, held]).await;
        let code = asked!(Arguments, "--child-exit-code a sh -c exit", &stub);
        let requests = stub.requests();
        let is_first = |request: &String| request.starts_with("PUT /v1/session/create");
        assert!(requests.first().is_some_and(is_first), "{requests:?}");
        assert_eq!(requests[1], format!("PUT /v1/kv/a/.lock?acquire=s1&flags={LOCK_FLAG}"));
        let last_two = &requests[requests.len() - 2..];
        assert!(last_two[0].starts_with("PUT /v1/kv/a/.lock?release=s1"), "{requests:?}");
        assert!(last_two[1].starts_with("PUT /v1/session/destroy/s1"), "{requests:?}");
        assert_eq!(code.expect("it ran"), ExitCode::SUCCESS);
    }

    #[tokio::test]
    async fn a_lock_without_a_name_is_refused() {
        let stub = Stub::answering(&[]).await;
        let refused = asked!(Arguments, "/ true", &stub).expect_err("no lock");
        assert!(refused.to_string().starts_with("which lock?"), "{refused}");
        assert_eq!(stub.requests(), [""; 0]);
    }
}
