//! A message's body as it arrives: whoever asks for the next frame reads it from the connection.

use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::fault::Error;
use crate::upgrade::OnUpgrade;

/// What a body is read from.
pub(crate) trait Source {
    /// The next frame of the body.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>>;

    /// How much of it is left, where that is known.
    fn left(&self) -> Option<u64>;

    /// Whether it has ended.
    fn is_done(&self) -> bool;

    /// Nobody will ask for the rest.
    fn abandon(&mut self);
}

/// The body of a message, read from its connection as it is asked for.
///
/// Dropping one before its end ends its connection's use.
pub struct Body {
    source: Option<Rc<RefCell<dyn Source>>>,
    upgrade: Option<OnUpgrade>,
}

impl Body {
    /// A body that has no bytes.
    pub const fn empty() -> Self {
        Self { source: None, upgrade: None }
    }

    pub(crate) fn new(source: Option<Rc<RefCell<dyn Source>>>, upgrade: Option<OnUpgrade>) -> Self {
        Self { source, upgrade }
    }

    /// Whether the message asks for a change of protocol, or grants one.
    pub const fn is_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }

    /// Where the message asks for a change of protocol, or grants it: what becomes of its
    /// connection. None the second time.
    pub fn on_upgrade(&mut self) -> Option<OnUpgrade> {
        self.upgrade.take()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("is_empty", &self.source.is_none()).finish_non_exhaustive()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Some(source) = &self.source else { return Poll::Ready(None) };
        let polled = source.borrow_mut().poll_piece(cx);
        if source.borrow().is_done() {
            // What comes after it over the same connection is not its concern.
            self.source = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.borrow().is_done())
    }

    fn size_hint(&self) -> SizeHint {
        match self.source.as_ref().map(|source| source.borrow().left()) {
            None => SizeHint::with_exact(0),
            Some(Some(left)) => SizeHint::with_exact(left),
            Some(None) => SizeHint::default(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(source) = &self.source {
            source.borrow_mut().abandon();
        }
    }
}
