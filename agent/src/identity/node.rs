//! The host's own certificate: renewed in good time, with a new key each time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::view::View;
use hawser_proto::v1;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Request;
use super::join::Membership;
use crate::clock::{self, Backoff};
use crate::servers::Servers;

/// Renews the host's certificate until `drain`; while it cannot, the old one stays.
pub(crate) async fn run(
    servers: Arc<Servers>,
    membership: watch::Sender<Option<Arc<Membership>>>,
    mut views: watch::Receiver<Arc<View>>,
    folder: PathBuf,
    drain: CancellationToken,
) {
    let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
    let mut changes = membership.subscribe();
    let mut renewed_at: Option<Instant> = None;
    loop {
        let Some(held) = changes.borrow_and_update().clone() else {
            tokio::select! {
                () = drain.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return } else { continue },
            }
        };
        // One that ran out is renewed by joining again; asking goes on, in case clocks were wrong.
        let now = clock::now();
        let due = held.credential.validity.renew_at(now, clock::permille()).unwrap_or(now);
        let due = match views.borrow_and_update().trust.as_deref() {
            // One that is revoked is not renewed by: whoever stole it could do the same.
            Some(trust) if held.credential.is_superseded(trust) => {
                due.min(now.plus(clock::up_to(trust.issuing.reissue_within).max(GAP_MIN)))
            }
            _ => due,
        };
        let due = due.max(now.plus(gap(renewed_at, Instant::now())));
        // What changes is looked at again, but not what is due already put off by it.
        let waits = due.since(now) > VIEWS_WITHIN;
        tokio::select! {
            () = drain.cancelled() => return,
            () = sleep(due.since(now).min(LOOK_EVERY)) => {}
            Ok(()) = views.changed(), if waits => continue,
            changed = changes.changed() => if changed.is_err() { return } else { continue },
        }
        if clock::now() < due {
            continue;
        }
        match renew(&servers, &held).await {
            Ok(renewed) => {
                backoff.reset();
                renewed_at = Some(Instant::now());
                if let Err(why) = renewed.keep(&folder) {
                    tracing::error!(%why, "the node certificate could not be kept on disk");
                }
                tracing::info!("the node certificate was renewed");
                membership.send_replace(Some(Arc::new(renewed)));
            }
            Err(why) => {
                tracing::warn!(%why, "the node certificate was not renewed");
                tokio::select! {
                    () = drain.cancelled() => return,
                    () = sleep(backoff.next()) => {}
                }
            }
        }
    }
}

/// How long to leave a certificate alone that was renewed at `renewed_at`: where the host's clock is
/// ahead, each new one has run out as it comes.
fn gap(renewed_at: Option<Instant>, now: Instant) -> Duration {
    let since = renewed_at.map(|at| now.duration_since(at));
    since.map_or(Duration::ZERO, |since| AGAIN_AFTER.saturating_sub(since))
}

async fn renew(servers: &Servers, held: &Membership) -> Result<Membership, RenewError> {
    let link = servers.link().ok_or(RenewError::CutOff)?;
    let request = Request::make()?;
    let ask = v1::RenewNodeRequest { csr: request.csr.clone() };
    let reply = timeout(CALL, link.client().renew_node(ask))
        .await
        .map_err(|_| RenewError::CutOff)?
        .map_err(Box::new)?;
    let credential = request.answered(reply.into_inner(), &held.credential.id)?;
    Ok(Membership {
        cluster_id: held.cluster_id.clone(),
        server_root: held.server_root.clone(),
        credential,
    })
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewError {
    /// No server can be asked.
    #[error("no server answers")]
    CutOff,
    /// The server refused.
    #[error("the server refused: {}", .0.message())]
    Refused(#[from] Box<tonic::Status>),
    /// The key could not be made.
    #[error("{0}")]
    Key(#[from] rcgen::Error),
    /// The reply is not what was asked for.
    #[error("{0}")]
    Reply(#[from] super::InvalidReply),
}

const CALL: Duration = Duration::from_secs(10);
/// Never in a tight loop, whatever a server signs.
const GAP_MIN: Duration = Duration::from_secs(1);
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Longer than a fleet takes to ask for new certificates.
const VIEWS_WITHIN: Duration = Duration::from_secs(90);
const BACKOFF_BASE: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Sleeps are cut short, so that a clock that jumps is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_was_just_renewed_is_left_alone() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for (renewed_at, now, expected) in
            [(None, 0, 0), (Some(at(0)), 0, 10), (Some(at(0)), 9, 1), (Some(at(0)), 60, 0)]
        {
            assert_eq!(gap(renewed_at, at(now)), Duration::from_secs(expected), "{now} s");
        }
    }
}
