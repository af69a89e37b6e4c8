//! A bounded load of HTTP requests at a steady rate from one host, each answer kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_rig::Host;
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// One request and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// When it was sent, from the start of the load.
    pub(crate) at: Duration,
    /// How long until the last byte of the answer, or until it failed.
    pub(crate) took: Duration,
    /// The first word of a 200's body, which is the instance's name; anything else failed.
    pub(crate) outcome: Result<String, String>,
}

/// A running load.
pub(crate) struct Load {
    began: Instant,
    stop: Arc<AtomicBool>,
    worker: JoinHandle<Result<Vec<Answer>>>,
}

impl Load {
    /// Starts `rate` GETs a second from `host` to `target`; ends by itself after `at_most`.
    pub(crate) fn start(host: Host, target: SocketAddr, rate: u32, at_most: Duration) -> Self {
        Self::of(Method::GET, host, target, rate, at_most)
    }

    /// The same of POSTs, which nobody may send a second time once they have reached an
    /// application.
    pub(crate) fn posts(host: Host, target: SocketAddr, rate: u32, at_most: Duration) -> Self {
        Self::of(Method::POST, host, target, rate, at_most)
    }

    fn of(method: Method, host: Host, target: SocketAddr, rate: u32, at_most: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let began = Instant::now();
        let worker = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                // The sockets are made by this thread alone, so they are all the host's.
                host.enter()?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(send(method, target, rate, began, at_most, &stop))
            }
        });
        Self { began, stop, worker }
    }

    /// How long it has run.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Stops it, waits for the requests under way, and returns every answer in sending order.
    ///
    /// # Errors
    /// The generator itself failed, or sent less than half of what it should have: then nothing
    /// was shown.
    pub(crate) fn finish(self, rate: u32) -> Result<Vec<Answer>> {
        let span = self.began.elapsed();
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.worker.join().ok().context("the load generator panicked")?;
        let mut answers = ended?;
        answers.sort_by_key(|answer| answer.at);
        let floor = span.as_secs_f64() * f64::from(rate) * FLOOR;
        let sent = answers.len();
        ensure!(sent as f64 >= floor, "only {sent} requests in {span:?}: that shows nothing");
        Ok(answers)
    }
}

/// The answers that are not a 200, as text for an assertion; bounded.
pub(crate) fn failures(answers: &[Answer]) -> Vec<String> {
    let failed = answers.iter().filter_map(|answer| {
        let why = answer.outcome.as_ref().err()?;
        Some(format!("at {:?} after {:?}: {why}", answer.at, answer.took))
    });
    failed.take(SHOWN).collect()
}

/// The slowest of the answers sent in `from..`, in the given permille.
pub(crate) fn quantile(answers: &[Answer], from: Duration, permille: usize) -> Duration {
    let mut took: Vec<Duration> =
        answers.iter().filter(|answer| answer.at >= from).map(|answer| answer.took).collect();
    took.sort();
    let last = took.len().saturating_sub(1);
    took.get(last * permille / 1000).copied().unwrap_or_default()
}

async fn send(
    method: Method,
    target: SocketAddr,
    rate: u32,
    began: Instant,
    at_most: Duration,
    stop: &AtomicBool,
) -> Result<Vec<Answer>> {
    let uri: Uri = format!("http://{target}/load").parse()?;
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .build::<_, Empty<Bytes>>(HttpConnector::new());
    let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let (done, mut answers) = mpsc::unbounded_channel();
    let mut tick = interval(Duration::from_secs(1) / rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !stop.load(Ordering::Relaxed) && began.elapsed() < at_most {
        tick.tick().await;
        let (client, method, uri, done) =
            (client.clone(), method.clone(), uri.clone(), done.clone());
        let at = began.elapsed();
        let Ok(place) = Arc::clone(&under_way).try_acquire_owned() else {
            let outcome = Err(format!("{UNDER_WAY_MAX} requests hang already"));
            let _ = done.send(Answer { at, took: Duration::ZERO, outcome });
            continue;
        };
        tokio::spawn(async move {
            let sent = Instant::now();
            let outcome = match timeout(PATIENCE, ask(&client, method, uri)).await {
                Ok(outcome) => outcome.map_err(|why| format!("{why:#}")),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            drop(place);
            // The receiver outlives every sender.
            let _ = done.send(Answer { at, took: sent.elapsed(), outcome });
        });
    }
    drop(done);
    let mut all = Vec::new();
    while let Some(answer) = answers.recv().await {
        all.push(answer);
    }
    Ok(all)
}

async fn ask(
    client: &Client<HttpConnector, Empty<Bytes>>,
    method: Method,
    uri: Uri,
) -> Result<String> {
    let request = Request::builder().method(method).uri(uri).body(Empty::new())?;
    let response = client.request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let text = String::from_utf8_lossy(&body);
    ensure!(status == 200, "{status}: {}", text.trim());
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Requests that may be under way at once.
const UNDER_WAY_MAX: usize = 2_000;

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The share of the asked rate below which a load has shown nothing.
const FLOOR: f64 = 0.5;

const SHOWN: usize = 10;
