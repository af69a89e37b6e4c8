//! Traces: what the proxies did, batched and sent to a collector by OTLP over HTTP.
//!
//! No request waits for it. What the collector does not take in time is dropped, and counted.

mod message;
mod send;

use std::collections::VecDeque;
use std::time::Duration;

use hawser_proxy::Span;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::message::Export;
use self::send::{SendError, send};
use crate::clock::Backoff;
use crate::metrics::Metrics;

pub(crate) use self::message::Origin;
pub use self::send::{InvalidOtlp, Otlp};

/// Spans on their way to the collector.
pub(crate) struct Exporter {
    origin: Origin,
    metrics: Metrics,
    held: VecDeque<Span>,
    backoff: Backoff,
    /// When the next batch goes out.
    due: Instant,
    is_failing: bool,
}

impl Exporter {
    pub(crate) fn new(origin: Origin, metrics: Metrics) -> Self {
        Self {
            origin,
            metrics,
            held: VecDeque::new(),
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_MAX),
            due: Instant::now(),
            is_failing: false,
        }
    }

    /// Sends what `spans` brings to where `configs` says, until `drain`, and what is held then
    /// once more.
    pub(crate) async fn run(
        mut self,
        mut spans: mpsc::Receiver<Vec<Span>>,
        mut configs: watch::Receiver<Option<Otlp>>,
        drain: CancellationToken,
    ) {
        let mut has_more = true;
        loop {
            let due = self.due;
            tokio::select! {
                biased;
                () = drain.cancelled() => break,
                Ok(()) = configs.changed() => {
                    (self.due, self.is_failing) = (Instant::now(), false);
                    self.backoff.reset();
                }
                batch = spans.recv(), if has_more => match batch {
                    Some(batch) => self.hold(batch),
                    None => has_more = false,
                },
                () = sleep_until(due), if !self.held.is_empty() => {
                    let config = configs.borrow().clone();
                    self.export(config.as_ref()).await;
                }
            }
        }
        while let Ok(batch) = spans.try_recv() {
            self.hold(batch);
        }
        let config = configs.borrow().clone();
        // Whatever came before: this is the last chance.
        self.is_failing = false;
        let last = async {
            while !self.held.is_empty() && !self.is_failing {
                self.export(config.as_ref()).await;
            }
        };
        let _ = timeout(LAST_WORD, last).await;
        self.drop_held(self.held.len(), "stopped");
    }

    fn hold(&mut self, batch: Vec<Span>) {
        if self.held.is_empty() && !self.is_failing {
            // Others of the same traces come within moments: they go out together.
            self.due = Instant::now() + GATHER;
        }
        self.held.extend(batch);
        let excess = self.held.len().saturating_sub(HELD_MAX);
        self.drop_held(excess, "queue");
    }

    /// Drops the oldest `count`.
    fn drop_held(&mut self, count: usize, why: &str) {
        if count > 0 {
            self.held.drain(..count);
            self.metrics.spans_dropped.with_label_values(&[why]).inc_by(count as u64);
        }
    }

    async fn export(&mut self, config: Option<&Otlp>) {
        let Some(config) = config else {
            // Traces were switched off with these on their way.
            self.held.clear();
            return;
        };
        let count = self.held.len().min(BATCH_MAX);
        let batch = Export::of(&self.origin, self.held.iter().take(count)).encode_to_vec();
        match send(&config.collector, batch).await {
            Ok(rejected) => {
                let rejected = rejected.min(count as u64);
                self.metrics.spans_exported.inc_by(count as u64 - rejected);
                self.metrics.spans_dropped.with_label_values(&["refused"]).inc_by(rejected);
                self.held.drain(..count);
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("spans are exported again");
                }
                self.backoff.reset();
                self.due = if self.held.len() >= BATCH_MAX {
                    Instant::now()
                } else {
                    Instant::now() + GATHER
                };
            }
            Err(why) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(%why, "spans are not exported");
                }
                let pause = self.backoff.next();
                let wait = match why {
                    SendError::Passing(_, wait) => wait,
                    SendError::Refused(_) => {
                        self.drop_held(count, "refused");
                        None
                    }
                };
                self.due = Instant::now() + wait.unwrap_or(pause);
            }
        }
    }
}

/// How long spans wait for others.
const GATHER: Duration = Duration::from_secs(1);
const BATCH_MAX: usize = 512;
/// About 4 MiB.
const HELD_MAX: usize = 8_192;
const BACKOFF_BASE: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// For what is held when the agent stops.
const LAST_WORD: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper::{Request, Response};
    use hyper_util::rt::TokioIo;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prometheus::Registry;
    use tokio::net::TcpListener;

    use super::message::tests::{origin, span};
    use super::*;

    /// A collector that answers with what it is told to, and notes how many spans came.
    struct Collector {
        endpoint: String,
        answers: Arc<Mutex<VecDeque<u16>>>,
        batches: Arc<Mutex<Vec<(u16, usize, String)>>>,
    }

    impl Collector {
        async fn answering(answers: &[u16]) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound");
            let answers = Arc::new(Mutex::new(answers.iter().copied().collect::<VecDeque<_>>()));
            let batches = Arc::<Mutex<Vec<_>>>::default();
            let (to_give, noted) = (answers.clone(), batches.clone());
            let answer = move |request: Request<Incoming>| {
                let (to_give, noted) = (to_give.clone(), noted.clone());
                async move {
                    assert_eq!(request.uri().path(), "/v1/traces");
                    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
                    let key = request.headers()["x-key"].to_str().expect("text").to_owned();
                    let body = request.into_body().collect().await.expect("whole").to_bytes();
                    let read = ExportTraceServiceRequest::decode(body).expect("OTLP");
                    let scopes = read.resource_spans.iter().flat_map(|of| &of.scope_spans);
                    let count = scopes.map(|scope| scope.spans.len()).sum();
                    let status = to_give.lock().expect("whole").pop_front().unwrap_or(200);
                    noted.lock().expect("whole").push((status, count, key));
                    let response = Response::builder().status(status).header("retry-after", "0");
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::new())).expect("good"))
                }
            };
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let serving = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service_fn(answer.clone()));
                    tokio::spawn(serving);
                }
            });
            Self { endpoint: format!("http://{address}"), answers, batches }
        }

        fn otlp(&self) -> Option<Otlp> {
            let headers = BTreeMap::from([("x-key".to_owned(), "k".to_owned())]);
            Some(Otlp::new(&self.endpoint, 1_000_000, headers, None).expect("good"))
        }

        async fn until(&self, what: &str, holds: impl Fn(&[(u16, usize, String)]) -> bool) {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while !holds(&self.batches.lock().expect("whole")) {
                assert!(std::time::Instant::now() < deadline, "not in time: {what}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    #[tokio::test]
    async fn what_may_be_sent_again_is_and_what_may_not_is_dropped() {
        let collector = Collector::answering(&[503, 429, 200, 400]).await;
        let metrics = Metrics::register(&Registry::new()).expect("fresh");
        let (sender, spans) = mpsc::channel(4);
        let (configs, config) = watch::channel(collector.otlp());
        let drain = CancellationToken::new();
        let exporter = Exporter::new(origin(), metrics.clone());
        let running = tokio::spawn(exporter.run(spans, config, drain.clone()));
        sender.send(vec![span("web"), span("db")]).await.expect("it runs");
        collector.until("three tries", |batches| batches.len() >= 3).await;
        sender.send(vec![span("web")]).await.expect("it runs");
        collector.until("a refusal", |batches| batches.len() >= 4).await;
        // What is held goes out when the agent stops.
        sender.send(vec![span("db")]).await.expect("it runs");
        configs.send_replace(collector.otlp());
        drain.cancel();
        running.await.expect("no panic");
        let key = || "k".to_owned();
        let expected =
            [(503, 2, key()), (429, 2, key()), (200, 2, key()), (400, 1, key()), (200, 1, key())];
        assert_eq!(*collector.batches.lock().expect("whole"), expected);
        assert!(collector.answers.lock().expect("whole").is_empty());
        assert_eq!(metrics.spans_exported.get(), 3);
        assert_eq!(metrics.spans_dropped.with_label_values(&["refused"]).get(), 1);
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_the_oldest_goes_first() {
        let metrics = Metrics::register(&Registry::new()).expect("fresh");
        let mut exporter = Exporter::new(origin(), metrics.clone());
        for n in 0..HELD_MAX as u64 + 10 {
            exporter.hold(vec![Span { started_ns: n, ..span("web") }]);
        }
        assert_eq!(exporter.held.len(), HELD_MAX);
        assert_eq!(exporter.held.front().map(|span| span.started_ns), Some(10));
        assert_eq!(metrics.spans_dropped.with_label_values(&["queue"]).get(), 10);
    }
}
