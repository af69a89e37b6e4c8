//! Pools: connections that many requests share, HTTP/1.1 connections that one has at once.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};
use hawser_core::reason::Reason;
use hawser_http1::client::{self, SendRequest};
use hyper::client::conn::http2;
use tokio::net::TcpStream;

use crate::gateways::Gateway;
use crate::http::Sending;
use crate::limits::Limits;
use crate::streams::{Channel, Pings, Session};

/// One connection that many requests share.
pub(crate) struct Line {
    carrier: Carrier,
    in_flight: Cell<u32>,
    /// The gateway that it passes.
    gateway: Option<Rc<Gateway>>,
}

/// What carries requests.
enum Carrier {
    H2(http2::SendRequest<Sending>),
    Streams(Channels),
}

/// Streams of one session, each of which carries one request after another.
pub(crate) struct Channels {
    session: Rc<Session>,
    limits: Rc<hawser_http1::Limits>,
    /// Those without a request, with when they had their last.
    idle: RefCell<Vec<(SendRequest<Channel>, Duration)>>,
    /// The clock as the last sweep saw it.
    now: Cell<Duration>,
}

impl Channels {
    pub(crate) fn new(session: Rc<Session>, limits: Rc<hawser_http1::Limits>) -> Self {
        Self { session, limits, idle: RefCell::default(), now: Cell::default() }
    }

    /// A stream without a request, or a new one.
    fn take(&self) -> Option<SendRequest<Channel>> {
        let mut idle = self.idle.borrow_mut();
        while let Some((mut sender, _)) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        let stream = self.session.open()?;
        Some(client::handshake(Channel::new(stream), self.limits.clone()))
    }

    fn keep(&self, sender: SendRequest<Channel>) {
        if !sender.is_closed() && self.session.is_usable() {
            self.idle.borrow_mut().push((sender, self.now.get()));
        }
    }
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
        Self { carrier: Carrier::H2(sender), in_flight: Cell::new(0), gateway }
    }

    /// The same, with streams of HTTP/1.1.
    pub(crate) fn streams(channels: Channels, gateway: Option<Rc<Gateway>>) -> Self {
        Self { carrier: Carrier::Streams(channels), in_flight: Cell::new(0), gateway }
    }

    fn is_usable(&self) -> bool {
        let takes_more = match &self.carrier {
            Carrier::H2(sender) => !sender.is_closed(),
            Carrier::Streams(channels) => channels.session.is_usable(),
        };
        takes_more && !self.gateway.as_ref().is_some_and(|gateway| gateway.is_bad())
    }

    /// Whether there is a place beside the requests under way, of which there may be `most`.
    fn has_room(&self, most: u32) -> bool {
        let has_room = match &self.carrier {
            Carrier::H2(_) => true,
            Carrier::Streams(channels) => {
                channels.session.has_room() || !channels.idle.borrow().is_empty()
            }
        };
        has_room && self.in_flight.get() < most
    }

    fn sweep(&self, now: Duration, pings: Pings, limits: &Limits) {
        if let Carrier::Streams(channels) = &self.carrier {
            channels.now.set(now);
            let is_fresh = |since: &Duration| now.saturating_sub(*since) <= limits.session_idle;
            channels.idle.borrow_mut().retain(|(_, since)| is_fresh(since));
            channels.session.tick(now, pings, limits);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Carrier::Streams(channels) = &self.carrier {
            channels.idle.borrow_mut().clear();
            channels.session.leave();
        }
    }
}

/// One request's place in a connection.
pub(crate) struct Place {
    line: Rc<Line>,
    /// The stream that it has, in a connection with streams.
    channel: Option<SendRequest<Channel>>,
    /// Where in that connection it begins.
    mark: u64,
}

impl Place {
    fn new(line: &Rc<Line>) -> Option<Self> {
        let (channel, mark) = match &line.carrier {
            Carrier::H2(_) => (None, 0),
            Carrier::Streams(channels) => (Some(channels.take()?), channels.session.mark()),
        };
        line.in_flight.set(line.in_flight.get() + 1);
        Some(Self { line: line.clone(), channel, mark })
    }

    /// What sends requests in HTTP/2; none in a connection with streams.
    pub(crate) fn sender(&self) -> Option<http2::SendRequest<Sending>> {
        match &self.line.carrier {
            Carrier::H2(sender) => Some(sender.clone()),
            Carrier::Streams(_) => None,
        }
    }

    /// What sends requests in HTTP/1.1, in a connection with streams.
    pub(crate) fn channel(&mut self) -> Option<&mut SendRequest<Channel>> {
        self.channel.as_mut()
    }

    /// In a connection with streams: whether it took anything of the request, as far as is known.
    pub(crate) fn was_sent(&self) -> bool {
        match &self.line.carrier {
            Carrier::H2(_) => true,
            Carrier::Streams(channels) => channels.session.has_sent(self.mark),
        }
    }

    /// In a connection with streams: whether it died of silence.
    pub(crate) fn was_silent(&self) -> bool {
        match &self.line.carrier {
            Carrier::H2(_) => false,
            Carrier::Streams(channels) => channels.session.was_silent(),
        }
    }

    /// The gateway that it passes.
    pub(crate) fn gateway(&self) -> Option<&Gateway> {
        self.line.gateway.as_deref()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.in_flight.set(self.line.in_flight.get().saturating_sub(1));
        if let (Some(sender), Carrier::Streams(channels)) =
            (self.channel.take(), &self.line.carrier)
        {
            channels.keep(sender);
        }
    }
}

type Connecting = Shared<LocalBoxFuture<'static, Result<(), Reason>>>;

/// The connections of one worker to one instance, or to one application, that requests share.
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
        let free = lines.iter().filter(|line| line.has_room(streams));
        free.min_by_key(|line| line.in_flight.get()).and_then(Place::new)
    }

    /// Looks after the connections, a few times a second.
    pub(crate) fn sweep(&self, now: Duration, pings: Pings, limits: &Limits) {
        let mut lines = self.lines.borrow_mut();
        lines.iter().for_each(|line| line.sweep(now, pings, limits));
        lines.retain(|line| line.is_usable());
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
