//! Throttles: bodies that pass no faster than so many bytes in a second.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};

/// Lets so many bytes of a body pass in a second, in pieces of a tenth of that.
pub(crate) struct Throttle {
    per_second: u64,
    /// When what passed last is paid for.
    free_at: Instant,
    timer: Pin<Box<Sleep>>,
    /// What came and has not passed.
    held: Bytes,
}

impl Throttle {
    pub(crate) fn new(per_second: u64) -> Self {
        let free_at = Instant::now();
        let timer = Box::pin(tokio::time::sleep_until(free_at));
        Self { per_second: per_second.max(1), free_at, timer, held: Bytes::new() }
    }

    /// Whether something of the body has come and not passed.
    pub(crate) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// The next frame of `body` that may pass.
    pub(crate) fn poll_frame<B: Body<Data = Bytes> + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut B,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        ready!(self.timer.as_mut().poll(cx));
        if !self.holds() {
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.held = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        let most = usize::try_from(self.per_second / 10).unwrap_or(usize::MAX).max(1);
        let piece = self.held.split_to(most.min(self.held.len()));
        let nanos = (piece.len() as u64).saturating_mul(1_000_000_000) / self.per_second;
        self.free_at = self.free_at.max(Instant::now()) + Duration::from_nanos(nanos);
        self.timer.as_mut().reset(self.free_at);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body_util::Full;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate_and_not_faster() {
        let cases = [
            // bytes in a second, of the body, milliseconds until the last has passed
            (1_000, 3_000, 2_900),
            (1_000, 100, 0),
            (1, 5, 4_000),
            (0, 2, 1_000),
        ];
        for (per_second, bytes, millis) in cases {
            let began = Instant::now();
            let mut body = Full::new(Bytes::from(vec![7; bytes]));
            let mut throttle = Throttle::new(per_second);
            let mut passed = 0;
            while passed < bytes {
                let frame = poll_fn(|cx| throttle.poll_frame(cx, &mut body)).await;
                let data = frame.expect("not all").expect("good").into_data().expect("data");
                passed += data.len();
            }
            assert!(!throttle.holds());
            let took = began.elapsed().as_millis();
            assert!(took.abs_diff(millis) <= 40, "{bytes} at {per_second} a second: {took} ms");
        }
    }
}
