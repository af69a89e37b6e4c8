//! Mirrors: copies of requests, whose answers nobody waits for and that are never tried again.
//!
//! Tasks: one for each copy under way.

use std::rc::Rc;

use hawser_core::balance::Ask;
use hawser_core::reason::Reason;
use http::request::Parts;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::Port;
use super::branch::Way;
use super::http::Exchange;
use crate::http::Outgoing;

impl Way {
    /// Sends a copy of the request to where its route says, if it does.
    pub(super) fn copy(&self, parts: &Parts, body: &Outgoing) {
        if let Some(port) = &self.mirror {
            send(port, parts, body);
        }
    }
}

/// Sends a copy of a request to an instance of `port`'s, beside everything else. A body that is
/// not in memory is not copied, and there is a bound to how many copies are under way.
fn send(port: &Rc<Port>, parts: &Parts, body: &Outgoing) {
    let Some(body) = body.copy() else { return port.pair.mirrored("too_large") };
    let Some(slot) = port.context.mirror_slot() else { return port.pair.mirrored("dropped") };
    let (port, parts) = (port.clone(), parts.clone());
    let drain = port.context.drain.clone();
    port.context.clone().tracker.spawn_local(async move {
        let _slot = slot;
        let sent = tokio::select! {
            biased;
            () = drain.cancelled() => Err(Reason::Draining),
            sent = carry(&port, parts, body) => sent,
        };
        port.pair.mirrored(if sent.is_ok() { "answered" } else { "failed" });
    });
}

async fn carry(port: &Rc<Port>, parts: Parts, body: Outgoing) -> Result<(), Reason> {
    let terms = port.terms();
    let chain = terms.chain.clone().ok_or(Reason::ViewMissing)?;
    let deadline = Instant::now() + chain.request_timeout;
    let mut exchange = Exchange::new(port, &chain, &terms, parts, body, deadline);
    let picked = port.pick(Ask::default())?;
    let answer = exchange.once(picked).await?;
    let mut body = answer.into_body();
    // Read to its end, for a stream that is reset counts as an error with many applications.
    let read = async {
        while let Some(frame) = body.frame().await {
            frame.map_err(|_| Reason::UpstreamReset)?;
        }
        Ok(())
    };
    timeout_at(deadline, read).await.map_err(|_| Reason::RequestTimeout)?
}
