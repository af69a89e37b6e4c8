//! Bounded bodies: they break off where they are too large, or silent for too long.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hawser_core::reason::Reason;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

/// Why a bounded body was broken off; none while it was not. What sends it on tells only that it was.
pub(crate) type Broke = Rc<Cell<Option<Reason>>>;

/// A body within its bounds.
pub(crate) struct Bounded<B> {
    body: B,
    /// How many bytes more may come.
    left: u64,
    /// Longest silence.
    idle: Option<Duration>,
    /// Made for a body that is waited for.
    silence: Option<Pin<Box<Sleep>>>,
    broke: Broke,
}

/// What a bounded body breaks off with.
pub(crate) enum Exceeded<E> {
    /// It went beyond a bound.
    Bound(Reason),
    /// Its own fault.
    Body(E),
}

type Next<E> = Poll<Option<Result<Frame<Bytes>, Exceeded<E>>>>;

impl<B: Body<Data = Bytes> + Unpin> Bounded<B> {
    /// `body`, of at most `most` bytes and silent for `idle` at the longest.
    pub(crate) fn new(body: B, most: Option<u64>, idle: Option<Duration>) -> Self {
        let left = most.unwrap_or(u64::MAX);
        Self { body, left, idle, silence: None, broke: Broke::default() }
    }

    /// Where it is said if it breaks off.
    pub(crate) fn broke(&self) -> Broke {
        self.broke.clone()
    }

    fn exceed(&self, reason: Reason) -> Next<B::Error> {
        self.broke.set(Some(reason));
        Poll::Ready(Some(Err(Exceeded::Bound(reason))))
    }

    /// What comes next.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Next<B::Error> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            let Some(idle) = self.idle else { return Poll::Pending };
            let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
            return match silence.as_mut().poll(cx) {
                Poll::Ready(()) => self.exceed(Reason::RequestStalled),
                Poll::Pending => Poll::Pending,
            };
        };
        if let (Some(idle), Some(silence)) = (self.idle, &mut self.silence) {
            silence.as_mut().reset(Instant::now() + idle);
        }
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(_)) | None => 0,
        };
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => return self.exceed(Reason::RequestTooLarge),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Exceeded::Body)))
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;

    use futures_util::{StreamExt as _, stream};
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_breaks_off_at_its_bounds_and_not_before() {
        let idle = Some(Duration::from_secs(30));
        type Case<'a> = (&'a [u64], bool, Option<u64>, Option<Duration>, Option<Reason>, &'a str);
        let cases: &[Case<'_>] = &[
            // seconds before each piece of four bytes, whether it then hangs, bounds, how it breaks off
            (&[0, 0], false, Some(8), idle, None, "as large as it may be"),
            (&[0, 0, 0], false, Some(8), idle, Some(Reason::RequestTooLarge), "larger"),
            (&[29, 29, 29], false, None, idle, None, "slow, but never silent for too long"),
            (&[0, 31], false, None, idle, Some(Reason::RequestStalled), "silent for too long"),
            (&[0], true, None, idle, Some(Reason::RequestStalled), "for ever"),
            (&[0, 3_600], false, None, None, None, "nobody minds"),
        ];
        for (pauses, hangs, most, idle, expected, why) in cases {
            let pieces = stream::iter(pauses.to_vec()).then(|pause| async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"four")))
            });
            let rest = match hangs {
                true => stream::pending().left_stream(),
                false => stream::empty().right_stream(),
            };
            let body = StreamBody::new(Box::pin(pieces.chain(rest)));
            let mut body = Bounded::new(body, *most, *idle);
            let broke = body.broke();
            let ended = loop {
                match poll_fn(|cx| body.poll_frame(cx)).await {
                    None => break None,
                    Some(Ok(_)) => {}
                    Some(Err(Exceeded::Bound(reason))) => break Some(reason),
                }
            };
            assert_eq!((ended, broke.get()), (*expected, *expected), "{why}");
        }
    }
}
