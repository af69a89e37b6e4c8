//! Sessions: the mTLS connections of one worker to one instance that TCP streams share.
//!
//! Tasks: one for each connection.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{LocalBoxFuture, Shared};
use hawser_core::reason::Reason;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::client::TlsStream;

use super::dial::{Dialled, dial};
use super::reach::Instance;
use crate::context::Context;
use crate::gateways::Gateway;
use crate::limits::Limits;
use crate::socket::Wide;
use crate::streams::{Entry, Pings, Session, Side, Stream};
use crate::tls::ALPN_STREAMS;
use crate::watch::OnList;

/// A connection for one stream, however it is carried.
pub(super) enum Opened {
    /// A place in a connection with others.
    Shared(Stream),
    /// A connection of its own: the instance's proxy knows nothing else.
    Own(Box<TlsStream<Wide>>, OnList),
}

/// The connections of one worker to one instance.
#[derive(Default)]
pub(super) struct Sessions {
    lines: RefCell<Vec<Line>>,
    connecting: RefCell<Option<Connecting>>,
    /// What was connected turned out to carry one stream alone; for whoever comes first.
    single: RefCell<Option<(Box<TlsStream<Wide>>, OnList)>>,
    /// The instance's proxy carried one stream alone when it was asked last.
    is_single: Cell<bool>,
}

struct Line {
    session: Rc<Session>,
    /// The gateway that it passes.
    gateway: Option<Rc<Gateway>>,
}

type Connecting = Shared<LocalBoxFuture<'static, Result<(), Reason>>>;

impl Sessions {
    /// A stream to `instance`, in a connection that has room; connects when none has.
    ///
    /// However many wait, one connects, and all hear what became of it.
    ///
    /// # Errors
    /// The [`Reason`] why no connection could be made.
    pub(super) async fn open(
        context: &Rc<Context>,
        instance: &Rc<Instance>,
        within: Duration,
    ) -> Result<Opened, Reason> {
        let pool = &instance.sessions;
        for _ in 0..WAITS_MAX {
            if let Some(stream) = pool.free() {
                return Ok(Opened::Shared(stream));
            }
            if let Some((stream, listed)) = pool.single.take() {
                return Ok(Opened::Own(stream, listed));
            }
            if pool.is_single.get() {
                // Each connects for itself, and asks anew: proxies are upgraded.
                Self::connect(context, instance, within).await?;
                continue;
            }
            let waiting = pool.connecting.borrow().clone();
            let waiting = waiting.unwrap_or_else(|| Self::begin(context, instance, within));
            waiting.await?;
        }
        Err(Reason::Overloaded)
    }

    /// Begins to connect, in a task of its own: it must end even when all who wait have gone.
    fn begin(context: &Rc<Context>, instance: &Rc<Instance>, within: Duration) -> Connecting {
        let (context, of) = (context.clone(), instance.clone());
        let task = tokio::task::spawn_local(async move {
            let made = Self::connect(&context, &of, within).await;
            *of.sessions.connecting.borrow_mut() = None;
            made
        });
        let waiting = async move { task.await.unwrap_or(Err(Reason::ConnectFailed)) };
        let waiting = waiting.boxed_local().shared();
        *instance.sessions.connecting.borrow_mut() = Some(waiting.clone());
        waiting
    }

    async fn connect(
        context: &Rc<Context>,
        instance: &Rc<Instance>,
        within: Duration,
    ) -> Result<(), Reason> {
        let pool = &instance.sessions;
        let config = instance.reach()?.tcp.clone();
        let Dialled { stream, listed, gateway } =
            Box::pin(dial(context, instance, config, within)).await?;
        let is_single = stream.get_ref().1.alpn_protocol() != Some(ALPN_STREAMS);
        pool.is_single.set(is_single);
        if is_single {
            *pool.single.borrow_mut() = Some((Box::new(stream), listed));
        } else {
            let session = Session::new(Side::Caller, Entry::Judged, &context.buffers);
            let line = Line { session: session.clone(), gateway };
            pool.lines.borrow_mut().push(line);
            // What is said at last must be sent before the worker ends.
            context.tracker.spawn_local(Box::pin(run(context.clone(), session, stream, listed)));
        }
        Ok(())
    }

    /// A stream in the connection with the fewest.
    ///
    /// One in which a stream is in bulk is left alone while there are few: what is in the sockets'
    /// buffers before a new stream would hold it up.
    fn free(&self) -> Option<Stream> {
        let mut lines = self.lines.borrow_mut();
        lines.retain(Line::stays);
        let may_part = lines.len() < SESSIONS_APART;
        let is_taken = |line: &Line| may_part && line.session.is_bulk() && line.session.live() > 0;
        let free = lines.iter().filter(|line| line.is_usable() && !is_taken(line));
        free.min_by_key(|line| (line.session.is_bulk(), line.session.live()))
            .and_then(|line| line.session.open())
    }

    /// Forgets all connections: what is under way in them ends in peace.
    pub(super) fn clear(&self) {
        self.lines.borrow_mut().drain(..).for_each(|line| line.session.leave());
        self.single.take();
    }

    /// Looks after the connections, ten times a second.
    pub(super) fn sweep(&self, now: Duration, pings: Pings, limits: &Limits) {
        if self.lines.borrow().is_empty() && self.single.borrow().is_none() {
            return;
        }
        let mut lines = self.lines.borrow_mut();
        lines.iter().for_each(|line| line.session.tick(now, pings, limits));
        lines.retain(Line::stays);
        self.single.take();
    }
}

impl Line {
    /// Whether it may have more streams now.
    fn is_usable(&self) -> bool {
        self.session.is_usable() && !self.gateway.as_ref().is_some_and(|gateway| gateway.is_bad())
    }

    /// Whether it is worth looking at again. One that leaves ends with its last stream.
    fn stays(&self) -> bool {
        !self.session.has_ended() && !self.session.is_leaving()
    }
}

/// Drives a session until it ends, or is cut.
pub(super) async fn drive(session: Rc<Session>, mut stream: TlsStream<Wide>, listed: OnList) {
    let watched = &listed.watched;
    let why = tokio::select! {
        biased;
        () = watched.cut.cancelled() => watched.why(),
        why = session.drive(&mut stream, drop) => why,
    };
    session.end(why);
    let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
}

/// The same, which ends with its last stream once the worker drains.
async fn run(
    context: Rc<Context>,
    session: Rc<Session>,
    mut stream: TlsStream<Wide>,
    listed: OnList,
) {
    let watched = &listed.watched;
    let why = {
        let mut driving = std::pin::pin!(session.drive(&mut stream, drop));
        let first = tokio::select! {
            biased;
            () = watched.cut.cancelled() => Some(watched.why()),
            why = driving.as_mut() => Some(why),
            () = draining(&context, &session) => None,
        };
        match first {
            Some(why) => why,
            None => {
                session.leave();
                tokio::select! {
                    biased;
                    () = watched.cut.cancelled() => watched.why(),
                    why = driving => why,
                }
            }
        }
    };
    session.end(why);
    let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
}

/// Ends when a session must end with its last stream. One that was only made for somebody who waits
/// has time to be used.
async fn draining(context: &Context, session: &Session) {
    context.drain.cancelled().await;
    if session.is_new() {
        tokio::time::sleep(TAKEN_WITHIN).await;
    }
}

/// One connection more for each wait.
const WAITS_MAX: usize = 64;
/// Most connections to one instance among which streams in bulk keep theirs for themselves.
const SESSIONS_APART: usize = 8;
/// How long a connection that somebody waits for may stay without a stream.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);
/// How long a goodbye may take.
const FAREWELL: Duration = Duration::from_secs(1);
