//! Slots: what a session's driver and a stream's own task share.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::task::{Context, Waker};

use hawser_core::reason::Reason;
use tokio::net::TcpStream;

/// Why a stream is over before its time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Broken {
    /// The application's socket broke.
    Socket,
    /// The peer gave it up, with this code.
    Peer(u8),
    /// The connection ended.
    Session(Reason),
}

/// The shared part of one stream.
#[derive(Default)]
pub(crate) struct Slot {
    task: RefCell<Option<Waker>>,
    /// Who waits to write, where that may be another task.
    writer: RefCell<Option<Waker>>,
    verdict: Cell<Option<u8>>,
    /// The application's.
    pub(super) socket: RefCell<Option<TcpStream>>,
    /// What came and the socket did not take yet: no more than the stream's window.
    pub(super) inbox: RefCell<VecDeque<u8>>,
    /// The peer sends nothing more.
    pub(super) has_ended: Cell<bool>,
    /// The socket knows that.
    pub(super) has_given_all: Cell<bool>,
    /// The socket will send nothing more, and the peer is told.
    pub(super) has_taken_all: Cell<bool>,
    /// It is among those that wait for room in the batch.
    pub(super) is_waiting: Cell<bool>,
    pub(super) broken: Cell<Option<Broken>>,
    /// Bytes that went to the socket.
    pub(super) given: Cell<u64>,
    /// Bytes that came from it.
    pub(super) taken: Cell<u64>,
}

impl Slot {
    /// Has this stream's task woken when something happens.
    pub(super) fn wait(&self, cx: &Context<'_>) {
        note(&self.task, cx);
    }

    /// Has the task woken that waits to write.
    pub(super) fn wait_to_write(&self, cx: &Context<'_>) {
        note(&self.writer, cx);
    }

    pub(super) fn wake(&self) {
        for waiting in [&self.task, &self.writer] {
            if let Some(task) = &*waiting.borrow() {
                task.wake_by_ref();
            }
        }
    }

    pub(super) fn verdict(&self) -> Option<u8> {
        self.verdict.get()
    }

    pub(super) fn decided(&self, code: u8) {
        self.verdict.set(Some(code));
        self.wake();
    }

    pub(super) fn finished(&self) {
        self.has_ended.set(true);
        self.wake();
    }

    pub(super) fn reset(&self, code: u8) {
        self.fail(Broken::Peer(code));
    }

    /// The connection ended. A stream that both ends had finished does not mind.
    pub(super) fn lost(&self, reason: Reason) {
        if !(self.has_ended.get() && self.has_taken_all.get()) {
            self.fail(Broken::Session(reason));
        }
    }

    /// The peer may never answer.
    pub(super) fn despair(&self, reason: Reason) {
        if self.verdict.get().is_none() {
            self.fail(Broken::Session(reason));
        }
    }

    fn fail(&self, broken: Broken) {
        if self.broken.get().is_none() {
            self.broken.set(Some(broken));
        }
        self.wake();
    }

    /// Whether bytes go straight to a socket.
    pub(super) fn takes_straight(&self) -> bool {
        self.socket.borrow().is_some() && self.inbox.borrow().is_empty()
    }

    /// Passes bytes on, straight to the socket where it takes them and nothing waits before them.
    /// Answers how many need not be kept any more.
    pub(super) fn give(&self, bytes: &[u8]) -> usize {
        if self.broken.get().is_some() {
            return bytes.len();
        }
        let mut inbox = self.inbox.borrow_mut();
        let written = match &*self.socket.borrow() {
            Some(socket) if inbox.is_empty() => socket.try_write(bytes),
            _ => Ok(0),
        };
        let written = match written {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                drop(inbox);
                self.fail(Broken::Socket);
                return bytes.len();
            }
        };
        self.given.set(self.given.get() + written as u64);
        if written < bytes.len() {
            inbox.extend(&bytes[written..]);
            drop(inbox);
            self.wake();
        }
        written
    }

    /// Forgets what nobody will read.
    pub(super) fn discard(&self) {
        self.inbox.take();
        self.task.take();
        self.writer.take();
        self.socket.take();
    }
}

fn note(place: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let mut place = place.borrow_mut();
    if place.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
    }
}
