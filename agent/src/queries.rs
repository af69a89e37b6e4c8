//! Prepared queries for DNS: a server says what one finds, and it is repeated for a moment, or for
//! as long as no server can say.
//!
//! Tasks: `run` is one, and one for each query that a server is asked about.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::error::ApiError;
use hawser_api::json::ServiceEntry;
use hawser_core::catalog::{Endpoint, Locality, Weights};
use hawser_core::dns::query::{FOUND_MAX, Found};
use hawser_core::duration;
use hawser_core::health::Status;
use hawser_dns::QueryAsk;
use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::forward::Forwarding;
use crate::host::Host;

/// Answers `asks` until `drain`; what a server said is repeated for `stale_max` at most.
pub(crate) async fn run(
    host: Arc<Host>,
    mut asks: mpsc::Receiver<QueryAsk>,
    stale_max: Duration,
    drain: CancellationToken,
) {
    let forwarding = Arc::new(Forwarding::default());
    let mut kept = Kept { stale_max, answers: BTreeMap::new() };
    let mut waiting: BTreeMap<Box<str>, Vec<oneshot::Sender<Arc<Found>>>> = BTreeMap::new();
    let mut asking = JoinSet::new();
    loop {
        tokio::select! {
            () = drain.cancelled() => return,
            Some(ask) = asks.recv() => {
                if let Some(found) = kept.fresh(&ask.name) {
                    // Whoever asked may have gone.
                    let _gone = ask.answer.send(found);
                } else if let Some(others) = waiting.get_mut(&ask.name) {
                    others.push(ask.answer);
                } else if waiting.len() < ASKED_AT_ONCE {
                    let (host, forwarding, name) = (host.clone(), forwarding.clone(), ask.name);
                    waiting.insert(name.clone(), vec![ask.answer]);
                    asking.spawn(async move {
                        let told = told(&host, &forwarding, &name).await;
                        (name, told)
                    });
                }
            }
            Some(Ok((name, told))) = asking.join_next() => {
                let found = match told {
                    Ok(found) => Some(kept.keep(name.clone(), found)),
                    Err(why) => {
                        tracing::debug!(query = %name, %why, "a prepared query was not answered");
                        kept.stale(&name)
                    }
                };
                for answer in waiting.remove(&name).into_iter().flatten() {
                    if let Some(found) = &found {
                        let _gone = answer.send(found.clone());
                    }
                }
            }
        }
    }
}

/// What queries found, and when a server said so; bounded.
struct Kept {
    stale_max: Duration,
    answers: BTreeMap<Box<str>, (Instant, Arc<Found>)>,
}

impl Kept {
    fn fresh(&self, name: &str) -> Option<Arc<Found>> {
        self.within(name, FRESH)
    }

    fn stale(&self, name: &str) -> Option<Arc<Found>> {
        self.within(name, self.stale_max)
    }

    fn within(&self, name: &str, age_max: Duration) -> Option<Arc<Found>> {
        let (at, found) = self.answers.get(name)?;
        (at.elapsed() <= age_max).then(|| found.clone())
    }

    /// Keeps what exists. Names that nobody has could be as many as somebody likes to ask for.
    fn keep(&mut self, name: Box<str>, found: Found) -> Arc<Found> {
        let found = Arc::new(found);
        if found.endpoints.is_empty() {
            self.answers.remove(&name);
            return found;
        }
        self.answers.insert(name, (Instant::now(), found.clone()));
        if self.answers.len() > KEPT_MAX
            && let Some((oldest, _)) = self.answers.iter().min_by_key(|(_, (at, _))| *at)
        {
            let oldest = oldest.clone();
            self.answers.remove(&oldest);
        }
        found
    }
}

/// What a server says that the query `name` finds. One that is not there finds nothing.
async fn told(host: &Host, forwarding: &Forwarding, name: &str) -> Result<Found, ApiError> {
    let encoded = utf8_percent_encode(name, NON_ALPHANUMERIC);
    let path = format!("/v1/query/{encoded}/execute?stale&limit={}", FOUND_MAX + 1);
    let reply = forwarding.own(host, host.acl.dns_secret(), "GET", &path, Vec::new()).await?;
    let malformed = || ApiError::Unavailable("the server's reply is malformed".to_owned());
    let status = u16::try_from(reply.status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    match status.ok_or_else(malformed)? {
        StatusCode::OK => {
            let executed: Executed =
                serde_json::from_slice(&reply.body).map_err(|_| malformed())?;
            Ok(executed.found())
        }
        StatusCode::NOT_FOUND => Ok(Found::default()),
        status => Err(ApiError::Unavailable(format!("the server answered {status}"))),
    }
}

/// The reply to `/v1/query/:id/execute`, as far as DNS has use for it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Executed {
    nodes: Vec<ServiceEntry>,
    #[serde(rename = "DNS", default)]
    dns: Terms,
    #[serde(default)]
    failovers: u64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Terms {
    #[serde(rename = "TTL")]
    ttl: String,
}

impl Executed {
    fn found(self) -> Found {
        // The first place that is looked at is the cluster itself; all others are peers.
        let is_foreign = self.failovers > 0;
        Found {
            endpoints: self.nodes.into_iter().filter_map(endpoint).collect(),
            ttl: duration::parse(&self.dns.ttl).ok(),
            is_foreign,
        }
    }
}

/// An instance as DNS shows it; none for one whose names or address DNS has no words for.
fn endpoint(entry: ServiceEntry) -> Option<Endpoint> {
    let ServiceEntry { node, service, checks } = entry;
    let own: Option<IpAddr> = service.address.parse().ok();
    let worst = checks.iter().filter_map(|check| check.status.parse::<Status>().ok()).max();
    Some(Endpoint {
        node: node.node.parse().ok()?,
        instance: service.id.parse().ok()?,
        address: own.or_else(|| node.address.parse().ok())?,
        has_own_address: own.is_some(),
        ports: Default::default(),
        port: service.port,
        mesh: None,
        locality: Locality::default(),
        tags: Default::default(),
        weights: Weights { passing: service.weights.passing, warning: service.weights.warning },
        status: worst.unwrap_or(Status::Passing),
    })
}

/// How long an answer is repeated without asking.
const FRESH: Duration = Duration::from_secs(1);
const KEPT_MAX: usize = 1_024;
/// Queries that servers are asked about at once; further ones fail.
const ASKED_AT_ONCE: usize = 64;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(reply: serde_json::Value) -> Found {
        let executed: Executed = serde_json::from_value(reply).expect("a reply");
        executed.found()
    }

    fn reply(failovers: u64) -> serde_json::Value {
        let entry = |node: &str, id: &str, own: &str, statuses: &[&str]| {
            let checks: Vec<_> = statuses.iter().map(|it| json!({ "Status": it })).collect();
            json!({
                "Node": { "Node": node, "Address": "10.0.0.1" },
                "Service": { "ID": id, "Address": own, "Port": 80,
                             "Weights": { "Passing": 3, "Warning": 2 } },
                "Checks": checks,
            })
        };
        json!({
            "Nodes": [
                entry("a", "web-1", "", &["passing", "warning"]),
                entry("b", "web-2", "10.0.0.7", &[]),
                entry("", "web-3", "", &[]),
            ],
            "DNS": { "TTL": "30s" },
            "Failovers": failovers,
        })
    }

    #[test]
    fn a_reply_is_read_as_dns_needs_it() {
        let found = read(reply(0));
        let shown: Vec<_> = found
            .endpoints
            .iter()
            .map(|it| (it.node.as_str(), it.address.to_string(), it.has_own_address, it.status))
            .collect();
        let expected = [
            ("a", "10.0.0.1".to_owned(), false, Status::Warning),
            ("b", "10.0.0.7".to_owned(), true, Status::Passing),
        ];
        assert_eq!(shown, expected, "what has no name is left out");
        assert_eq!((found.ttl, found.is_foreign), (Some(Duration::from_secs(30)), false));
        assert!(read(reply(2)).is_foreign);
        assert_eq!(read(json!({ "Nodes": [] })), Found::default());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_repeated_for_a_moment_and_stands_in_for_longer() {
        let mut kept = Kept { stale_max: Duration::from_secs(60), answers: BTreeMap::new() };
        kept.keep("geo".into(), read(reply(0)));
        assert!(kept.fresh("geo").is_some() && kept.fresh("other").is_none());
        tokio::time::advance(FRESH + Duration::from_millis(1)).await;
        assert!(kept.fresh("geo").is_none() && kept.stale("geo").is_some());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(kept.stale("geo").is_none());

        for at in 0..=KEPT_MAX {
            kept.keep(format!("q{at}").into(), read(reply(0)));
        }
        assert_eq!(kept.answers.len(), KEPT_MAX, "the oldest makes room");
        assert!(!kept.answers.contains_key("geo"));
        kept.keep("q7".into(), Found::default());
        assert!(kept.stale("q7").is_none(), "what finds nothing any more is not repeated");
    }
}
