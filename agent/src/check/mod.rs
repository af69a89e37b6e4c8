//! Health checks: one task per declared check, started and stopped as declarations change.
//!
//! Tasks: `run` supervises one `watch_one` per check.

pub(crate) mod probe;
mod script;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::definition::{CheckKind, CheckSpec};
use hawser_core::health::Status;
use hawser_core::name::CheckId;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::local::Local;
use crate::target;
use probe::{Found, HttpRequest};
use tls::Trust;

/// Runs every declared check until `drain`.
pub(crate) async fn run(local: Arc<Local>, drain: CancellationToken) {
    let mut changes = local.changes();
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<CheckId, (Arc<CheckSpec>, AbortHandle)> = BTreeMap::new();
    let mut reaping = tokio::time::interval(REAP_EVERY);
    reaping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        changes.borrow_and_update();
        let declared: BTreeMap<CheckId, Arc<CheckSpec>> = local
            .checks()
            .into_iter()
            .map(|standing| (standing.spec.id.clone(), standing.spec))
            .collect();
        running.retain(|id, (spec, task)| {
            let stays = declared.get(id).is_some_and(|now| Arc::ptr_eq(now, spec));
            if !stays {
                task.abort();
            }
            stays
        });
        for (id, spec) in declared {
            running.entry(id).or_insert_with(|| {
                let task = tasks.spawn(watch_one(local.clone(), spec.clone()));
                (spec, task)
            });
        }
        tokio::select! {
            () = drain.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
            _ = reaping.tick() => local.reap(),
            Some(_) = tasks.join_next() => {}
        }
    }
    tasks.shutdown().await;
}

/// Watches one check for as long as it is declared as `spec`.
async fn watch_one(local: Arc<Local>, spec: Arc<CheckSpec>) {
    match &spec.kind {
        CheckKind::Ttl(_) => lapse(&local, &spec).await,
        CheckKind::Alias { instance } => {
            let mut changes = local.changes();
            loop {
                changes.borrow_and_update();
                match local.status_of(instance, &spec.id) {
                    Some(status) => {
                        local.observe(
                            &spec,
                            status,
                            &format!("All checks of {instance}: {status}"),
                        );
                    }
                    None => {
                        let gone = format!("No service {instance} on this node");
                        local.observe(&spec, Status::Critical, &gone);
                    }
                }
                if changes.changed().await.is_err() {
                    return;
                }
            }
        }
        _ => {
            sleep(clock::up_to(spec.interval.min(FIRST_RUN_WITHIN))).await;
            loop {
                let started = Instant::now();
                let run = once(&spec.kind, local.shows_answer(&spec));
                let found = timeout(spec.timeout, run).await.unwrap_or_else(|_| {
                    Found::critical(format_args!("no answer within {:?}", spec.timeout))
                });
                local.observe(&spec, found.status, &found.output);
                let next = clock::jittered(spec.interval).max(INTERVAL_MIN);
                sleep_until(started + next).await;
            }
        }
    }
}

/// Turns a TTL check critical whenever nobody reported in time.
async fn lapse(local: &Local, spec: &Arc<CheckSpec>) {
    let mut said = None;
    while let Some(at) = local.lapses_at(spec) {
        if at <= Instant::now() {
            if said != Some(at) {
                local.observe(spec, Status::Critical, "TTL expired");
                said = Some(at);
            }
            // The next report wakes nobody; look again soon.
            sleep(TTL_LOOK_EVERY).await;
        } else {
            sleep_until(at).await;
        }
    }
}

/// Runs a check once; `shows_answer`: what an HTTP check was answered is part of the finding.
async fn once(kind: &CheckKind, shows_answer: bool) -> Found {
    let target = match target::of(kind) {
        Some(Ok(target)) => Some(target),
        Some(Err(why)) => return Found::critical(why),
        None => None,
    };
    let trust = |skip: bool| if skip { Trust::Any } else { Trust::System };
    let found = match (kind, target) {
        (
            CheckKind::Http { url, method, headers, body, tls_skip_verify, tls_server_name },
            Some(target),
        ) => {
            let host = target.host.clone();
            let name = tls_server_name.as_deref().unwrap_or(&host);
            let is_secure = url.scheme_str() == Some("https");
            let tls = is_secure.then(|| (trust(*tls_skip_verify), name));
            let ask = HttpRequest { target, url, method, headers, body, tls, shows_answer };
            probe::http(ask).await
        }
        (CheckKind::Tcp { .. }, Some(target)) => probe::tcp(&target).await,
        (CheckKind::Socket { path }, _) => probe::socket(path).await,
        (
            CheckKind::Grpc { service, use_tls, tls_skip_verify, tls_server_name, .. },
            Some(target),
        ) => {
            let name = tls_server_name.as_deref().unwrap_or(&target.host);
            let tls = use_tls.then(|| (trust(*tls_skip_verify), name));
            probe::grpc(&target, service, tls).await
        }
        (CheckKind::Script { args }, _) => {
            return script::run(args)
                .await
                .unwrap_or_else(|why| Found::critical(format_args!("it cannot be run: {why}")));
        }
        // Reported by others or read from them: `watch_one` never runs these.
        _ => return Found::critical("this kind of check is not run"),
    };
    found.unwrap_or_else(Found::critical)
}

const REAP_EVERY: Duration = Duration::from_secs(30);
const INTERVAL_MIN: Duration = Duration::from_millis(500);
/// However long the interval, a new service is looked at soon.
const FIRST_RUN_WITHIN: Duration = Duration::from_secs(2);
const TTL_LOOK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::{Method, Uri};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::ScriptChecks;
    use crate::local::Rules;

    /// An HTTP server that gives every connection the same answer.
    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = socket.read(&mut request).await;
                let _ = socket.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    fn http(address: SocketAddr) -> CheckKind {
        let url: Uri = format!("http://{address}/up?key=s3cret").parse().expect("a URL");
        CheckKind::Http {
            url,
            method: Method::GET,
            headers: vec![],
            body: "".into(),
            tls_skip_verify: false,
            tls_server_name: None,
        }
    }

    #[tokio::test]
    async fn an_answer_s_status_is_the_finding() {
        for (answer, status) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Status::Passing),
            ("HTTP/1.1 429 Slow\r\ncontent-length: 2\r\n\r\nhm", Status::Warning),
            ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/\r\n\r\n", Status::Critical),
            ("HTTP/1.1 500 Oh\r\n\r\n", Status::Critical),
            ("SSH-2.0-x\r\n", Status::Critical),
        ] {
            let found = once(&http(answering(answer).await), true).await;
            assert_eq!(found.status, status, "{answer:?}: {}", found.output);
            assert!(!found.output.contains("s3cret"), "{}", found.output);
        }
    }

    #[tokio::test]
    async fn what_a_foreign_address_answers_is_not_shown() {
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\ns3cret";
        for (shows_answer, expected) in [(true, true), (false, false)] {
            let found = once(&http(answering(answer).await), shows_answer).await;
            assert_eq!(found.status, Status::Passing);
            assert_eq!(found.output.contains("Output: s3cret"), expected, "{}", found.output);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ttl_check_lapses_by_a_clock_that_nobody_sets() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let definition = serde_json::json!({ "Name": "web", "Check": { "TTL": "10s" } });
        let rules = Rules {
            scripts: ScriptChecks::Off,
            address: [127, 0, 0, 1].into(),
            bind: [127, 0, 0, 1].into(),
            ports: 21_000..=21_255,
        };
        let services = vec![definition.try_into().expect("good")];
        let opened = Local::open(rules, folder.path().to_owned(), services, vec![]);
        let local = Arc::new(opened.expect("opened").0);
        let id: CheckId = "service:web".parse().expect("an id");
        local.report(&id, Status::Passing, "ok").expect("a ttl");
        let drain = CancellationToken::new();
        let running = tokio::spawn(run(local.clone(), drain.clone()));
        let mut changes = local.changes();
        // The wall stands still meanwhile: only the other clock is moved.
        let lapsed = timeout(Duration::from_secs(60), async {
            while local.all_checks()[0].status != Status::Critical {
                changes.changed().await.expect("it lives");
            }
        });
        lapsed.await.expect("it lapsed");
        drain.cancel();
        running.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_long_body_is_cut() {
        let body = "x".repeat(100_000);
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n{body}");
        let found = once(&http(answering(answer.leak()).await), true).await;
        assert_eq!(found.status, Status::Passing);
        assert!(found.output.len() < 5000, "{}", found.output.len());
    }

    #[tokio::test]
    async fn a_tcp_check_connects_or_fails() {
        let address = answering("").await;
        let kind = |address: String| CheckKind::Tcp { address: address.into() };
        assert_eq!(once(&kind(address.to_string()), true).await.status, Status::Passing);
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = closed.local_addr().expect("bound");
        drop(closed);
        assert_eq!(once(&kind(address.to_string()), true).await.status, Status::Critical);
        let metadata = once(&kind("169.254.169.254:80".into()), true).await;
        assert!(metadata.output.contains("checks do not ask there"), "{}", metadata.output);
    }
}
