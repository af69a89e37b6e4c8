//! A stream: one application's connection, carried in a session.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hawser_core::reason::{DecidedBy, Reason};
use hawser_mux::{HEADER_BYTES, Side, StreamId};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Session;
use super::slot::{Broken, Slot};
use crate::lifespan::Lifespan;
use crate::relay::Moved;

/// One end of one stream. Dropped before its end, it is given up.
pub(crate) struct Stream {
    pub(super) session: Rc<Session>,
    pub(super) id: StreamId,
    pub(super) slot: Rc<Slot>,
    /// What the peer is told where it is given up.
    code: Cell<u8>,
    pub(super) is_over: Cell<bool>,
}

/// Why there is no verdict.
pub(crate) struct Lost {
    /// Why the connection ended.
    pub(crate) reason: Reason,
    /// It had served others before: another may serve this one.
    pub(crate) was_good: bool,
}

impl Stream {
    pub(super) fn new(session: Rc<Session>, id: StreamId, slot: Rc<Slot>) -> Self {
        let code = match session.side {
            Side::Caller => Reason::DownstreamReset,
            Side::Callee => Reason::UpstreamReset,
        };
        Self { session, id, slot, code: Cell::new(code.code()), is_over: Cell::new(false) }
    }

    /// Waits for what the callee decides: the code of a [`Reason`].
    ///
    /// # Errors
    /// [`Lost`] when the connection ends before.
    pub(crate) async fn verdict(&self) -> Result<u8, Lost> {
        poll_fn(|cx| {
            self.slot.wait(cx);
            if let Some(code) = self.slot.verdict() {
                self.is_over.set(code != Reason::Ok.code());
                return Poll::Ready(Ok(code));
            }
            match self.slot.broken.get() {
                None => Poll::Pending,
                Some(Broken::Peer(0)) => Poll::Ready(Ok(Reason::UpstreamProtocol.code())),
                Some(Broken::Peer(code)) => Poll::Ready(Ok(code)),
                Some(Broken::Socket) => Poll::Ready(Ok(Reason::DownstreamReset.code())),
                Some(Broken::Session(reason)) => {
                    let was_good = self.session.has_served.get();
                    Poll::Ready(Err(Lost { reason, was_good }))
                }
            }
        })
        .await
    }

    /// Whether so much waits in this session to be read that it takes no more.
    pub(crate) fn is_crowded(&self) -> bool {
        self.session.machine.borrow().is_crowded()
    }

    /// Has its session take no more streams.
    pub(crate) fn leave(&self) {
        self.session.leave();
    }

    /// Lets it in.
    pub(crate) fn accept(&self) {
        self.session.machine.borrow_mut().accept(self.id);
        self.session.wake();
    }

    /// Refuses it.
    pub(crate) fn refuse(&self, reason: Reason) {
        self.is_over.set(true);
        self.session.machine.borrow_mut().refuse(self.id, reason.code());
        self.session.wake();
    }

    /// Gives it up for `reason`, once it is dropped.
    pub(crate) fn give_up(&self, reason: Reason) {
        self.code.set(reason.code());
    }

    /// Takes the application's socket back.
    pub(crate) fn detach(&self) -> Option<TcpStream> {
        self.slot.socket.take()
    }

    /// What was carried so far.
    pub(crate) fn moved(&self) -> Moved {
        let (given, taken) = (self.slot.given.get(), self.slot.taken.get());
        match self.session.side {
            Side::Caller => Moved { sent: taken, received: given },
            Side::Callee => Moved { sent: given, received: taken },
        }
    }

    /// Relays between `socket` and the stream until both directions are closed or its time is
    /// over. The socket stays with the stream; see [`Stream::detach`].
    ///
    /// # Errors
    /// Why it ended before, and who said so.
    pub(crate) async fn carry(
        &self,
        socket: TcpStream,
        life: &Lifespan,
    ) -> Result<(), (Reason, DecidedBy)> {
        self.slot.socket.replace(Some(socket));
        let relaying = self.relay(life.idle());
        let ended = life.bound(relaying, |reason| (reason, self.own_proxy())).await;
        match ended {
            Ok(()) => self.is_over.set(true),
            Err((reason, _)) => self.give_up(reason),
        }
        ended
    }

    async fn relay(&self, idle: Duration) -> Result<(), (Reason, DecidedBy)> {
        let mut timer = std::pin::pin!(tokio::time::sleep(idle));
        let mut seen = Moved::default();
        poll_fn(|cx| {
            match self.poll(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(broken)) => return Poll::Ready(Err(self.why(broken))),
                Poll::Pending => {}
            }
            while timer.as_mut().poll(cx).is_ready() {
                if seen == self.moved() {
                    return Poll::Ready(Err((Reason::IdleTimeout, self.own_proxy())));
                }
                seen = self.moved();
                timer.as_mut().reset(Instant::now() + idle);
            }
            Poll::Pending
        })
        .await
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.slot.wait(cx);
        if let Some(broken) = self.slot.broken.get() {
            return Poll::Ready(Err(broken));
        }
        let mut socket = self.slot.socket.borrow_mut();
        let Some(socket) = &mut *socket else { return Poll::Ready(Err(Broken::Socket)) };
        let given = self.poll_give(cx, socket).map_err(|_| Broken::Socket)?;
        let taken = self.poll_take(cx, socket).map_err(|_| Broken::Socket)?;
        ready!(given);
        ready!(taken);
        Poll::Ready(Ok(()))
    }

    /// What came, to the socket; ready when all did and the socket knows.
    fn poll_give(&self, cx: &mut Context<'_>, socket: &mut TcpStream) -> Poll<io::Result<()>> {
        let slot = &self.slot;
        loop {
            let mut inbox = slot.inbox.borrow_mut();
            let (bytes, _) = inbox.as_slices();
            if bytes.is_empty() {
                // An idle stream keeps no memory.
                *inbox = Default::default();
                break;
            }
            let count = ready!(Pin::new(&mut *socket).poll_write(cx, bytes))?;
            inbox.drain(..count);
            slot.given.set(slot.given.get() + count as u64);
            let mut machine = self.session.machine.borrow_mut();
            machine.consumed(self.id, count);
            if machine.has_news() {
                self.session.wake();
            }
        }
        if slot.has_given_all.get() {
            return Poll::Ready(Ok(()));
        }
        if !slot.has_ended.get() {
            return Poll::Pending;
        }
        slot.has_given_all.set(true);
        match ready!(Pin::new(socket).poll_shutdown(cx)) {
            // Whoever is closed already has nothing left to close.
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// What the socket sends, into the batch; ready when it sends nothing more.
    fn poll_take(&self, cx: &mut Context<'_>, socket: &mut TcpStream) -> Poll<io::Result<()>> {
        let (slot, session) = (&self.slot, &self.session);
        // What it may take before it waits behind others; none while it has not found room.
        let mut share = None;
        while !slot.has_taken_all.get() {
            let (mut machine, mut batch) =
                (session.machine.borrow_mut(), session.batch.borrow_mut());
            // What is said goes before what is sent: a verdict before its stream's bytes.
            batch.say(&mut machine);
            let has_said_all = !machine.has_news();
            let credit = machine.room(self.id);
            if has_said_all && credit == 0 {
                session.leave_queue(slot);
                batch.release();
                return Poll::Pending;
            }
            let room = batch.room(usize::MAX);
            let Some(room) = room.filter(|_| has_said_all && share != Some(0)) else {
                session.queue(slot);
                return Poll::Pending;
            };
            let share = share.get_or_insert_with(|| session.leave_queue(slot));
            let (header, bytes) = room.split_at_mut(HEADER_BYTES);
            let most = credit.min(bytes.len()).min(*share);
            let mut into = ReadBuf::new(&mut bytes[..most]);
            let polled = Pin::new(&mut *socket).poll_read(cx, &mut into);
            let count = into.filled().len();
            if polled.is_ready() && count > 0 {
                let made = machine.data(self.id, count);
                header.copy_from_slice(&made.ok_or(io::ErrorKind::InvalidInput)?);
                batch.filled(HEADER_BYTES + count);
                slot.taken.set(slot.taken.get() + count as u64);
                *share -= count;
                session.wake();
                continue;
            }
            batch.release();
            ready!(polled)?;
            slot.has_taken_all.set(true);
            machine.finish(self.id);
            session.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn own_proxy(&self) -> DecidedBy {
        match self.session.side {
            Side::Caller => DecidedBy::ClientProxy,
            Side::Callee => DecidedBy::ServerProxy,
        }
    }

    /// The mesh's word for what broke it, and who said so.
    fn why(&self, broken: Broken) -> (Reason, DecidedBy) {
        let (at_socket, at_peer) = match self.session.side {
            Side::Caller => (Reason::DownstreamReset, Reason::UpstreamReset),
            Side::Callee => (Reason::UpstreamReset, Reason::DownstreamReset),
        };
        match (broken, self.session.side) {
            (Broken::Socket, _) => (at_socket, DecidedBy::Application),
            (Broken::Peer(code), Side::Caller) => match Reason::from_code(code) {
                Some(reason) if reason.ends_connections() => (reason, DecidedBy::ServerProxy),
                _ => (at_peer, DecidedBy::Application),
            },
            (Broken::Session(reason), _) if reason.ends_connections() => (reason, self.own_proxy()),
            _ => (at_peer, DecidedBy::Application),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.session.leave_queue(&self.slot);
        self.slot.discard();
        if !self.is_over.get() {
            self.session.machine.borrow_mut().reset(self.id, self.code.get());
            self.session.wake();
        }
    }
}
