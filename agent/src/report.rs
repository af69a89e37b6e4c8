//! Sends what the proxies counted to a server, every ten seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::edge::{EdgeKey, Tally};
use hawser_proto::v1;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::metrics::Metrics;
use crate::servers::Servers;

/// Reports until `drain`, and once more then.
///
/// While cut off, counts of one edge add up in place; edges beyond [`EDGES_MAX`] are dropped and
/// counted.
pub(crate) async fn run(
    servers: Arc<Servers>,
    take: impl Fn() -> Vec<(EdgeKey, Tally)>,
    metrics: Metrics,
    drain: CancellationToken,
) {
    let mut held = BTreeMap::new();
    loop {
        let is_last = tokio::select! {
            () = drain.cancelled() => true,
            () = sleep(clock::jittered(EVERY)) => false,
        };
        let dropped = gather(&mut held, take());
        metrics.edges_dropped.inc_by(dropped);
        send(&servers, &mut held).await;
        if is_last {
            return;
        }
    }
}

/// Adds `new` to what is held; answers how many edges found no room.
fn gather(held: &mut BTreeMap<EdgeKey, Tally>, new: Vec<(EdgeKey, Tally)>) -> u64 {
    let mut dropped = 0;
    for (key, tally) in new {
        if let Some(sum) = held.get_mut(&key) {
            sum.merge(&tally);
        } else if held.len() < EDGES_MAX {
            held.insert(key, tally);
        } else {
            dropped += 1;
        }
    }
    dropped
}

async fn send(servers: &Servers, held: &mut BTreeMap<EdgeKey, Tally>) {
    let Some(link) = servers.link().filter(|_| !held.is_empty()) else { return };
    let edges = held.iter().map(|edge| v1::Edge::from((edge.0, edge.1))).collect();
    let mut client = link.client();
    match timeout(CALL, client.report(v1::ReportRequest { edges })).await {
        Ok(Ok(_)) => held.clear(),
        Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => {
            tracing::error!(why = status.message(), "the server refuses what the proxies counted");
            held.clear();
        }
        Ok(Err(status)) => tracing::debug!(why = status.message(), "edges were not reported"),
        Err(_) => tracing::debug!("edges were not reported in time"),
    }
}

const EVERY: Duration = Duration::from_secs(10);
const CALL: Duration = Duration::from_secs(5);
const EDGES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_adds_up() {
        let key = |n: usize| EdgeKey {
            source: "web".parse().expect("a name"),
            destination: format!("s{n}").parse().expect("a name"),
            cluster: "".into(),
            verdict: "ok".into(),
        };
        let one = || Tally { count: 1, ..Tally::default() };
        let mut held = BTreeMap::new();
        let all = || (0..EDGES_MAX + 2).map(|n| (key(n), one())).collect::<Vec<_>>();
        assert_eq!(gather(&mut held, all()), 2);
        assert_eq!(gather(&mut held, all()), 2);
        assert_eq!(held.len(), EDGES_MAX);
        assert_eq!(held[&key(0)].count, 2);
    }
}
