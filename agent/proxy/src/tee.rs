//! Tees: bodies of unknown length that are kept while they pass, so that they can be sent again.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::time::Instant;

/// A body on its way, and a copy of what came of it while that is small.
///
/// One reader at a time goes on reading; each begins with what came before it.
pub(crate) struct Tee<B> {
    incoming: B,
    /// Most bytes that are kept.
    most: u64,
    /// All that came; none once that was too much, or it broke off.
    kept: Option<Copy>,
    trailers: Option<HeaderMap>,
    /// When the last of it came.
    ended_at: Option<Instant>,
    reader: u32,
}

/// In one piece, whatever it came in: a small piece of a large buffer would hold all of that.
enum Copy {
    Nothing,
    /// As it came, which for most calls is all there is.
    One(Bytes),
    Many(BytesMut),
}

impl<B: Body<Data = Bytes> + Unpin> Tee<B> {
    /// Keeps up to `most` bytes of `incoming`.
    pub(crate) fn new(incoming: B, most: u64) -> Self {
        let kept = Some(Copy::Nothing);
        Self { incoming, most, kept, trailers: None, ended_at: None, reader: 0 }
    }

    /// Whether it can be sent, again or for the first time: what came of it is all kept.
    pub(crate) const fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// When the last of it came; none while more is to come.
    pub(crate) const fn ended_at(&self) -> Option<Instant> {
        self.ended_at
    }

    /// Lets another reader take over: what it has to read first, and its number. Those before it
    /// may read no more.
    pub(crate) fn begin(&mut self) -> (Option<Bytes>, u32) {
        self.reader = self.reader.wrapping_add(1);
        let ahead = self.bytes().filter(|bytes| !bytes.is_empty());
        (ahead, self.reader)
    }

    /// Whether `reader` may go on reading.
    pub(crate) const fn is_reader(&self, reader: u32) -> bool {
        self.reader == reader
    }

    /// Keeps no more of it, and nothing of what came.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    /// All of it with its trailers, once it has ended, where it was kept.
    pub(crate) fn whole(&self) -> Option<(Bytes, Option<HeaderMap>)> {
        self.ended_at?;
        Some((self.bytes()?, self.trailers.clone()))
    }

    /// Whether nothing of it is to come that has not come.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.ended_at.is_some() || self.incoming.is_end_stream()
    }

    /// What comes next.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.ended_at.is_some() {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        let mut is_over = false;
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data);
                } else if let Some(trailers) = frame.trailers_ref() {
                    self.trailers = Some(trailers.clone());
                    is_over = true;
                }
                is_over |= self.incoming.is_end_stream();
            }
            Some(Err(_)) => self.kept = None,
            None => is_over = true,
        }
        if is_over {
            self.ended_at = Some(Instant::now());
        }
        Poll::Ready(frame)
    }

    fn keep(&mut self, data: &Bytes) {
        if data.is_empty() {
            return;
        }
        let Some(kept) = self.kept.take() else { return };
        if (kept.len() + data.len()) as u64 > self.most {
            return;
        }
        self.kept = Some(match kept {
            Copy::Nothing => Copy::One(data.clone()),
            Copy::One(first) => {
                let mut all = BytesMut::with_capacity(first.len() + data.len());
                all.extend_from_slice(&first);
                all.extend_from_slice(data);
                Copy::Many(all)
            }
            Copy::Many(mut all) => {
                all.extend_from_slice(data);
                Copy::Many(all)
            }
        });
    }

    fn bytes(&self) -> Option<Bytes> {
        Some(match self.kept.as_ref()? {
            Copy::Nothing => Bytes::new(),
            Copy::One(bytes) => bytes.clone(),
            Copy::Many(bytes) => Bytes::copy_from_slice(bytes),
        })
    }
}

impl Copy {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;

    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    type Piece = Result<Frame<Bytes>, Infallible>;

    fn body(pieces: &[&'static str], trailers: bool) -> Tee<impl Body<Data = Bytes> + Unpin> {
        let mut frames: Vec<Piece> = pieces
            .iter()
            .map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))))
            .collect();
        if trailers {
            let mut fields = HeaderMap::new();
            fields.insert("x-checksum", http::HeaderValue::from_static("1"));
            frames.push(Ok(Frame::trailers(fields)));
        }
        Tee::new(StreamBody::new(stream::iter(frames)), 8)
    }

    async fn next<B: Body<Data = Bytes> + Unpin>(tee: &mut Tee<B>) -> bool {
        poll_fn(|cx| tee.poll_frame(cx)).await.is_some()
    }

    #[tokio::test]
    async fn a_body_that_passed_is_whole_only_if_it_was_small_and_came_to_its_end() {
        let cases: &[(&[&'static str], bool, Option<&str>, &str)] = &[
            (&[], false, Some(""), "nothing came"),
            (&["one"], false, Some("one"), "in one piece"),
            (&["one", "", "two"], true, Some("onetwo"), "in several, with trailers"),
            (&["12345678"], false, Some("12345678"), "as much as is kept"),
            (&["1234", "56789"], false, None, "more than is kept"),
        ];
        for (pieces, trailers, expected, why) in cases {
            let mut tee = body(pieces, *trailers);
            assert!(tee.is_kept() && tee.whole().is_none(), "{why}: it has not begun");
            while next(&mut tee).await {
                if tee.ended_at().is_none() {
                    assert!(tee.whole().is_none(), "{why}: more may come");
                }
            }
            assert!(tee.ended_at().is_some(), "{why}");
            let whole = tee.whole();
            assert_eq!(whole.as_ref().map(|it| &it.0[..]), expected.map(str::as_bytes), "{why}");
            assert_eq!(tee.is_kept(), expected.is_some(), "{why}");
            let kept = whole.and_then(|(_, trailers)| trailers).is_some();
            assert_eq!(kept, *trailers && expected.is_some(), "{why}: trailers");
        }
    }

    #[tokio::test]
    async fn another_reader_begins_with_what_came_and_alone_goes_on() {
        let mut tee = body(&["one", "two"], false);
        let (ahead, first) = tee.begin();
        assert_eq!(ahead, None);
        assert!(next(&mut tee).await);
        let (ahead, second) = tee.begin();
        assert_eq!(ahead.as_deref(), Some(&b"one"[..]));
        assert!(!tee.is_reader(first) && tee.is_reader(second));
        while next(&mut tee).await {}
        assert_eq!(tee.whole().map(|it| it.0).as_deref(), Some(&b"onetwo"[..]));
    }
}
