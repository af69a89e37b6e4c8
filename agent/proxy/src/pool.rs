//! Pools: HTTP/2 connections that many requests share, HTTP/1.1 connections that one has at once.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};
use hawser_core::reason::Reason;
use hawser_http1::client::SendRequest;
use hyper::client::conn::http2;
use tokio::net::TcpStream;

use crate::gateways::Gateway;
use crate::http::Sending;

/// One HTTP/2 connection.
pub(crate) struct Line {
    sender: http2::SendRequest<Sending>,
    in_flight: Cell<u32>,
    /// The gateway that it passes.
    gateway: Option<Rc<Gateway>>,
}

impl Line {
    pub(crate) fn new(sender: http2::SendRequest<Sending>) -> Self {
        Self::through(sender, None)
    }

    /// A connection that passes a gateway. While that does not answer, it takes no requests.
    pub(crate) fn through(
        sender: http2::SendRequest<Sending>,
        gateway: Option<Rc<Gateway>>,
    ) -> Self {
        Self { sender, in_flight: Cell::new(0), gateway }
    }

    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && !self.gateway.as_ref().is_some_and(|gateway| gateway.is_bad())
    }

    /// A sender for one request.
    pub(crate) fn sender(&self) -> http2::SendRequest<Sending> {
        self.sender.clone()
    }
}

/// One request's place in a connection.
pub(crate) struct Place(Rc<Line>);

impl Place {
    fn new(line: &Rc<Line>) -> Self {
        line.in_flight.set(line.in_flight.get() + 1);
        Self(line.clone())
    }

    pub(crate) fn sender(&self) -> http2::SendRequest<Sending> {
        self.0.sender()
    }

    /// The gateway that it passes.
    pub(crate) fn gateway(&self) -> Option<&Gateway> {
        self.0.gateway.as_deref()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
    }
}

type Connecting = Shared<LocalBoxFuture<'static, Result<(), Reason>>>;

/// The HTTP/2 connections of one worker to one instance, or to one application.
#[derive(Default)]
pub(crate) struct Lines {
    lines: RefCell<Vec<Rc<Line>>>,
    connecting: RefCell<Option<Connecting>>,
    /// How often all were forgotten.
    cleared: Cell<u64>,
}

impl Lines {
    /// A place in a connection that has room; connects when none has.
    ///
    /// However many wait, one connects, and all hear what became of it.
    ///
    /// # Errors
    /// The [`Reason`] why no connection could be made, or [`Reason::Overloaded`] when `most`
    /// connections are full.
    pub(crate) async fn place<F>(
        self: &Rc<Self>,
        most: usize,
        streams: u32,
        connect: impl Fn() -> F,
    ) -> Result<Place, Reason>
    where
        F: Future<Output = Result<Line, Reason>> + 'static,
    {
        for _ in 0..WAITS_MAX {
            if let Some(place) = self.free(streams) {
                return Ok(place);
            }
            let waiting = self.connecting.borrow().clone();
            let waiting = match waiting {
                Some(waiting) => waiting,
                None if self.lines.borrow().len() >= most => return Err(Reason::Overloaded),
                None => {
                    let (pool, connect) = (self.clone(), connect());
                    let begun = self.cleared.get();
                    let task = async move {
                        let made = connect.await;
                        if pool.cleared.get() != begun {
                            // Whoever waits looks for another.
                            return Ok(());
                        }
                        *pool.connecting.borrow_mut() = None;
                        pool.lines.borrow_mut().push(Rc::new(made?));
                        Ok(())
                    };
                    // A task of its own: it must end even when all who wait have gone.
                    let task = tokio::task::spawn_local(task);
                    let waiting = async move { task.await.unwrap_or(Err(Reason::ConnectFailed)) }
                        .boxed_local()
                        .shared();
                    *self.connecting.borrow_mut() = Some(waiting.clone());
                    waiting
                }
            };
            waiting.await?;
        }
        Err(Reason::Overloaded)
    }

    /// Forgets all connections, also one that is being made: what is under way in them ends in
    /// peace.
    pub(crate) fn clear(&self) {
        self.cleared.set(self.cleared.get() + 1);
        self.connecting.take();
        self.lines.borrow_mut().clear();
    }

    /// A place in a connection that is there and has room.
    pub(crate) fn free(&self, streams: u32) -> Option<Place> {
        let mut lines = self.lines.borrow_mut();
        lines.retain(|line| line.is_usable());
        let least = lines.iter().min_by_key(|line| line.in_flight.get())?;
        (least.in_flight.get() < streams).then(|| Place::new(least))
    }
}

/// Idle HTTP/1.1 connections of one worker to one application.
#[derive(Default)]
pub(crate) struct Idle {
    senders: RefCell<Vec<(SendRequest<TcpStream>, Duration)>>,
}

impl Idle {
    /// The connection used last, if it was used within `within` and still lives.
    pub(crate) fn take(&self, now: Duration, within: Duration) -> Option<SendRequest<TcpStream>> {
        let mut senders = self.senders.borrow_mut();
        while let Some((mut sender, since)) = senders.pop() {
            if now.saturating_sub(since) > within {
                // Those below it are older still.
                senders.clear();
                return None;
            }
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps a connection for the next request, if there is room.
    pub(crate) fn keep(&self, sender: SendRequest<TcpStream>, now: Duration, most: usize) {
        let mut senders = self.senders.borrow_mut();
        if senders.len() < most && !sender.is_closed() {
            senders.push((sender, now));
        }
    }

    /// Closes those that were not used within `within`, and those that the application closed.
    pub(crate) fn sweep(&self, now: Duration, within: Duration) {
        let is_fresh = |since: &Duration| now.saturating_sub(*since) <= within;
        self.senders
            .borrow_mut()
            .retain_mut(|(sender, since)| is_fresh(since) && sender.is_ready());
    }
}

/// One connection more for each wait: enough to make as many as are allowed.
const WAITS_MAX: usize = 64;
