//! Asks a server for shares of rates that all instances of a service count together, each second.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::share::Lease;
use hawser_proto::{Invalid, v1};
use hawser_proxy::{Asked, Shares};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::metrics::Metrics;
use crate::servers::{Link, Servers};

/// Asks until `drain`. Where no instance here has such a rate, nothing is asked; where no server
/// answers, the instances come to their fair share by themselves.
pub(crate) async fn run(
    servers: Arc<Servers>,
    shares: Shares,
    metrics: Metrics,
    drain: CancellationToken,
) {
    loop {
        tokio::select! {
            () = drain.cancelled() => return,
            () = sleep(clock::jittered(EVERY)) => {}
        }
        let (leased, fair) = shares.standing();
        metrics.rate_shares.with_label_values(&["leased"]).set(gauged(leased));
        metrics.rate_shares.with_label_values(&["fair"]).set(gauged(fair));
        let asked = shares.ask();
        let Some(link) = servers.link().filter(|_| !asked.is_empty()) else { continue };
        tokio::select! {
            () = drain.cancelled() => return,
            () = ask(&link, asked) => {}
        }
    }
}

async fn ask(link: &Link, asked: Vec<Asked>) {
    let shares = |one: &Asked| v1::InstanceShares {
        instance: one.instance.to_string(),
        asks: one.asks.iter().map(Into::into).collect(),
    };
    let request = v1::LeaseRequest { instances: asked.iter().map(shares).collect() };
    let mut client = link.client();
    let reply = match timeout(CALL, client.lease(request)).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => {
            return tracing::debug!(why = status.message(), "no shares were leased");
        }
        Err(_) => return tracing::debug!("no shares were leased: no answer"),
    };
    for (asked, leased) in asked.into_iter().zip(reply.instances) {
        match leased.leases.into_iter().map(read).collect::<Result<Vec<_>, _>>() {
            Ok(leases) => asked.lease(leases),
            Err(why) => tracing::warn!(%why, "a lease is malformed"),
        }
    }
}

fn read(leased: v1::LeasedShare) -> Result<Option<Lease>, Invalid> {
    leased.lease.map(TryInto::try_into).transpose()
}

fn gauged(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

const EVERY: Duration = Duration::from_secs(1);
/// Shorter than a lease holds: who hears nothing can ask again in time.
const CALL: Duration = Duration::from_secs(2);
