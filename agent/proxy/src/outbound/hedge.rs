//! Hedging: a request whose answer takes long goes to a second instance, and the first good answer
//! counts.

use std::time::Duration;

use hawser_core::balance::Ask;
use hawser_core::hedge::After;

use super::Picked;
use super::http::{Answer, Exchange, Failure};

impl Exchange<'_> {
    /// After how long this try is hedged; none where it is not: only the first try is, of a request
    /// that may be repeated and is no retry of somebody else's.
    pub(super) fn hedged_after(&self) -> Option<Duration> {
        let after = self.terms.retry.hedge?;
        let may = self.attempts == 1 && self.is_idempotent && !self.was_retried;
        if !may || !self.body.may_repeat() {
            return None;
        }
        match after {
            After::Fixed(span) => Some(span),
            After::Percentile(percent) => self.port.latencies.borrow().as_ref()?.within(percent),
        }
    }

    /// Makes one try as [`Exchange::traced`] does, and a second one beside it if there is no answer
    /// `after` so long, there is another instance, and the retry budget has room.
    pub(super) async fn hedged(
        &mut self,
        picked: Picked<'_>,
        per_try: Option<Duration>,
        after: Duration,
    ) -> Result<Answer, Failure> {
        let (port, retry) = (self.port, &self.terms.retry);
        let mut twin = self.twin();
        let (ended, other) = {
            let mut first = std::pin::pin!(self.traced(picked, per_try));
            tokio::select! {
                biased;
                ended = &mut first => return ended,
                () = tokio::time::sleep(after) => {}
            }
            let Some(twin) = twin.as_mut().filter(|twin| twin.body.is_repeatable()) else {
                return first.await;
            };
            if !port.balancer.borrow().has_other(&twin.tried) {
                return first.await;
            }
            let (percent, floor) = (retry.budget_percent, retry.budget_floor);
            let now = port.context.clock.now();
            if !port.budget.borrow_mut().retry(now, percent, floor) {
                port.pair.retried(false);
                return first.await;
            }
            let ask = Ask { tried: &twin.tried, may_probe: false, hash: None };
            let Ok(picked) = port.pick(ask) else { return first.await };
            port.pair.hedged();
            let other = picked.pick.peer;
            let mut second = std::pin::pin!(twin.traced(picked, None));
            let ended = tokio::select! {
                biased;
                ended = &mut first => match ended {
                    Ok(answer) => Ok(answer),
                    Err(_) => second.await,
                },
                ended = &mut second => match ended {
                    Ok(answer) => Ok(answer),
                    Err(_) => first.await,
                },
            };
            (ended, other)
        };
        self.attempts = self.attempts.saturating_add(1);
        self.tried.push(other);
        ended
    }

    /// Takes in how long an answer took, where hedging goes by that.
    pub(super) fn took(&self, latency: Duration) {
        if let Some(After::Percentile(_)) = self.terms.retry.hedge {
            let mut latencies = self.port.latencies.borrow_mut();
            latencies.get_or_insert_default().observe(latency);
        }
    }
}
