//! Streams of TCP services that share an mTLS connection: who drives it, and what ends it.
//!
//! One task drives a session: it reads the connection, passes what comes straight on to the
//! applications' sockets, and writes what all streams have to say as one batch. Each stream's own
//! task reads its application's socket straight into that batch.

mod batch;
mod gather;
mod slot;
mod stream;
mod channel;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hawser_core::reason::Reason;
pub(crate) use hawser_mux::{Entry, Side};
use hawser_mux::{Event, Session as Machine, Violation};
use tokio::io::{AsyncBufRead, AsyncWrite};

use self::batch::Batch;
use self::gather::Gather;
use self::slot::Slot;
use crate::limits::Limits;
use crate::socket::{BUFFER_BYTES, Buffers};
use crate::tls;

pub(crate) use self::channel::{Channel, reason};
pub(crate) use self::stream::{Lost, Stream};

/// One end of an mTLS connection with streams.
pub(crate) struct Session {
    side: Side,
    entry: Entry,
    machine: RefCell<Machine<Rc<Slot>>>,
    batch: RefCell<Batch>,
    buffers: Arc<Buffers>,
    driver: RefCell<Option<Waker>>,
    is_woken: Cell<bool>,
    /// Bytes that the connection took since it was made.
    sent: Cell<u64>,
    /// Streams that wait for room in the batch, in this order. Each leaves when it finds some.
    waiting: RefCell<VecDeque<Rc<Slot>>>,
    /// No streams are opened any more; a caller closes it with the last.
    is_leaving: Cell<bool>,
    /// Why there are no streams any more.
    ended: Cell<Option<Reason>>,
    /// How many streams there were.
    opened: Cell<u64>,
    /// Whether the callee ever decided about one.
    has_served: Cell<bool>,
    has_heard: Cell<bool>,
    silence: Cell<Silence>,
    /// Since when there is no stream.
    idle_since: Cell<Option<Duration>>,
}

/// How long the peer has said nothing.
#[derive(Clone, Copy, Default)]
struct Silence {
    since: Duration,
    /// It was asked, and has not answered in time: no more streams until it does.
    is_suspect: bool,
    /// It will not come back.
    is_dead: bool,
}

/// How a session watches its peer.
#[derive(Clone, Copy)]
pub(crate) struct Pings {
    /// How long it may be silent before it is asked whether it lives.
    pub(crate) after: Duration,
    /// How long the answer may take before streams go elsewhere.
    pub(crate) within: Duration,
}

impl Session {
    pub(crate) fn new(side: Side, entry: Entry, buffers: &Arc<Buffers>) -> Rc<Self> {
        Rc::new(Self {
            side,
            entry,
            machine: RefCell::new(Machine::new(side, entry)),
            batch: RefCell::new(Batch::new(buffers.clone())),
            buffers: buffers.clone(),
            driver: RefCell::default(),
            is_woken: Cell::new(false),
            sent: Cell::new(0),
            waiting: RefCell::default(),
            is_leaving: Cell::new(false),
            ended: Cell::new(None),
            opened: Cell::new(0),
            has_served: Cell::new(false),
            has_heard: Cell::new(false),
            silence: Cell::default(),
            idle_since: Cell::default(),
        })
    }

    /// How many streams are open.
    pub(crate) fn live(&self) -> usize {
        self.machine.borrow().live()
    }

    /// Whether a stream carries so much that others had better be in another connection.
    pub(crate) fn is_bulk(&self) -> bool {
        self.machine.borrow().is_bulk()
    }

    /// Whether it may have more streams, now or later.
    pub(crate) fn is_usable(&self) -> bool {
        !self.is_leaving.get() && self.ended.get().is_none() && !self.silence.get().is_suspect
    }

    /// Whether it ends with its last stream.
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving.get()
    }

    /// Whether it never had a stream.
    pub(crate) fn is_new(&self) -> bool {
        self.opened.get() == 0
    }

    /// Whether it ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get().is_some()
    }

    /// Asks for a stream; none when there is no room for one.
    pub(crate) fn open(self: &Rc<Self>) -> Option<Stream> {
        if !self.is_usable() {
            return None;
        }
        let (id, slot) = self.machine.borrow_mut().open()?;
        self.opened.set(self.opened.get() + 1);
        self.wake();
        Some(Stream::new(self.clone(), id, slot))
    }

    /// Whether another stream may be opened now.
    pub(crate) fn has_room(&self) -> bool {
        self.is_usable() && self.machine.borrow().has_room()
    }

    /// Where in what is sent the next byte will stand.
    pub(crate) fn mark(&self) -> u64 {
        self.sent.get() + self.batch.borrow().bytes().len() as u64
    }

    /// Whether the connection took anything that stands at `mark` or behind it.
    pub(crate) fn has_sent(&self, mark: u64) -> bool {
        self.sent.get() > mark
    }

    /// Whether it ended because the peer said nothing.
    pub(crate) fn was_silent(&self) -> bool {
        self.silence.get().is_dead
    }

    /// Ends with its last stream, and has no more. A callee says so to the caller, who closes it.
    pub(crate) fn leave(&self) {
        if self.is_leaving.replace(true) {
            return;
        }
        if self.side == Side::Callee {
            self.machine.borrow_mut().leave(0);
        }
        self.wake();
    }

    /// Ends once there was no stream for `span`.
    pub(crate) async fn idle(&self, span: Duration) {
        loop {
            let opened = self.opened.get();
            tokio::time::sleep(span).await;
            if self.live() == 0 && self.opened.get() == opened {
                return;
            }
        }
    }

    /// A turn of the caller's clock: notices silence, bulk, and that nobody needs the session.
    pub(crate) fn tick(&self, now: Duration, pings: Pings, limits: &Limits) {
        let mut machine = self.machine.borrow_mut();
        machine.turn();
        if machine.live() > 0 {
            self.idle_since.set(None);
        } else if now.saturating_sub(self.idle_since.get().unwrap_or(now)) > limits.session_idle {
            drop(machine);
            return self.leave();
        } else if self.idle_since.get().is_none() {
            self.idle_since.set(Some(now));
        }
        if self.has_heard.replace(false) || self.silence.get().since.is_zero() {
            self.silence.set(Silence { since: now, ..Silence::default() });
            return;
        }
        let silent = now.saturating_sub(self.silence.get().since);
        let is_asking = machine.is_asking();
        if silent >= pings.after && !is_asking {
            machine.ping(1);
            self.wake();
        }
        let is_suspect = is_asking && silent >= pings.after + pings.within;
        // What waits for an answer must hear soon that there will be none. What only carries bytes
        // may wait for the network to come back.
        let grace = match self.entry {
            Entry::Open => Duration::ZERO,
            Entry::Judged => limits.user_timeout,
        };
        let is_dead = is_suspect && silent >= pings.after + pings.within + grace;
        if is_suspect && !self.silence.get().is_suspect && self.entry == Entry::Judged {
            // Who waits to be let in has lost nothing yet, and may try elsewhere.
            machine.streams().for_each(|slot| slot.despair(Reason::ConnectTimeout));
        }
        self.silence.set(Silence { is_suspect, is_dead, ..self.silence.get() });
        if is_dead {
            self.wake();
        }
    }

    /// Carries bytes between `tls` and the streams until either end closes or breaks, and answers
    /// why it ended. Streams that the peer opens are given to `on_open`.
    pub(crate) async fn drive<S>(
        self: &Rc<Self>,
        tls: &mut S,
        mut on_open: impl FnMut(Stream),
    ) -> Reason
    where
        S: AsyncBufRead + AsyncWrite + Unpin,
    {
        let mut must_flush = false;
        poll_fn(|cx| {
            self.is_woken.set(false);
            if self.driver.borrow().as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                *self.driver.borrow_mut() = Some(cx.waker().clone());
            }
            if self.silence.get().is_dead {
                return Poll::Ready(Reason::UpstreamReset);
            }
            let read = self.poll_read(cx, tls, &mut on_open);
            let written = match self.poll_write(cx, tls, &mut must_flush) {
                Poll::Ready(Err(error)) => return Poll::Ready(tls::reason(&error)),
                Poll::Ready(Ok(())) => true,
                Poll::Pending => false,
            };
            let is_through = written
                && self.side == Side::Caller
                && self.is_leaving.get()
                && self.machine.borrow().live() == 0;
            if is_through { Poll::Ready(Reason::Ok) } else { read }
        })
        .await
    }

    /// What comes; ready when nothing more can.
    fn poll_read<S>(
        self: &Rc<Self>,
        cx: &mut Context<'_>,
        tls: &mut S,
        on_open: &mut impl FnMut(Stream),
    ) -> Poll<Reason>
    where
        S: AsyncBufRead + Unpin,
    {
        let mut gather = Gather::new(&self.buffers, &self.machine);
        for _ in 0..READS_MAX {
            let bytes = match ready!(Pin::new(&mut *tls).poll_fill_buf(cx)) {
                Ok([]) => return Poll::Ready(Reason::Ok),
                Ok(bytes) => bytes,
                Err(error) => return Poll::Ready(tls::reason(&error)),
            };
            let count = bytes.len();
            self.has_heard.set(true);
            if let Err(violation) = self.take(bytes, on_open, &mut gather) {
                tracing::warn!(%violation, "session ended");
                self.machine.borrow_mut().leave(violation.code());
                return Poll::Ready(Reason::UpstreamProtocol);
            }
            Pin::new(&mut *tls).consume(count);
        }
        // Others have their turn first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn take(
        self: &Rc<Self>,
        mut bytes: &[u8],
        on_open: &mut impl FnMut(Stream),
        gather: &mut Gather<'_>,
    ) -> Result<(), Violation> {
        while !bytes.is_empty() {
            let (used, event) = self.machine.borrow_mut().read(bytes)?;
            bytes = &bytes[used..];
            match event {
                None => {}
                Some(Event::Opened(id, slot)) => {
                    self.opened.set(self.opened.get() + 1);
                    on_open(Stream::new(self.clone(), id, slot));
                }
                Some(Event::Verdict(slot, code)) => {
                    self.has_served.set(true);
                    slot.decided(code);
                }
                Some(Event::Data(id, slot, bytes)) => gather.add(id, slot, bytes),
                Some(Event::Credit(slot)) => slot.wake(),
                Some(Event::Finished(slot)) => slot.finished(),
                Some(Event::Reset(slot, code)) => slot.reset(code),
                Some(Event::Left(code)) => {
                    if code != 0 {
                        tracing::warn!(code, "the peer ends the session");
                    }
                    self.is_leaving.set(true);
                }
            }
        }
        Ok(())
    }

    /// Writes what there is, as one batch; ready when all has left.
    fn poll_write<S>(
        &self,
        cx: &mut Context<'_>,
        tls: &mut S,
        must_flush: &mut bool,
    ) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        loop {
            let mut batch = self.batch.borrow_mut();
            batch.say(&mut self.machine.borrow_mut());
            if batch.bytes().is_empty() {
                break;
            }
            let count = ready!(Pin::new(&mut *tls).poll_write(cx, batch.bytes()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *must_flush = true;
            batch.sent(count);
            self.sent.set(self.sent.get() + count as u64);
            if batch.bytes().is_empty() {
                self.waiting.borrow().iter().for_each(|slot| slot.wake());
            }
        }
        if *must_flush {
            ready!(Pin::new(tls).poll_flush(cx))?;
            *must_flush = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Puts a stream behind those that wait for room in the batch. It is woken when there is some.
    fn queue(&self, slot: &Rc<Slot>) {
        if !slot.is_waiting.replace(true) {
            self.waiting.borrow_mut().push_back(slot.clone());
        }
        self.wake();
    }

    /// Takes a stream off those that wait, and answers how much it may take of the room that it
    /// found: all, or an equal share where others wait.
    fn leave_queue(&self, slot: &Rc<Slot>) -> usize {
        let mut waiting = self.waiting.borrow_mut();
        if slot.is_waiting.replace(false)
            && let Some(at) = waiting.iter().position(|other| Rc::ptr_eq(other, slot))
        {
            waiting.remove(at);
        }
        match waiting.len() {
            0 => usize::MAX,
            others => (BUFFER_BYTES / (others + 1)).max(SHARE_MIN),
        }
    }

    /// Lets the driver look for what there is to write.
    fn wake(&self) {
        if !self.is_woken.replace(true)
            && let Some(driver) = &*self.driver.borrow()
        {
            driver.wake_by_ref();
        }
    }

    /// Ends what streams are left, for `reason`.
    pub(crate) fn end(&self, reason: Reason) {
        self.ended.set(Some(reason));
        for slot in self.machine.borrow().streams() {
            slot.lost(reason);
        }
        self.waiting.borrow_mut().clear();
    }
}

/// Most records that are read before others have their turn.
const READS_MAX: usize = 16;
/// The least that a stream may take in its turn: a smaller frame costs more than it carries.
const SHARE_MIN: usize = 8 * 1024;
