//! The batch: what all streams of a session have to say, encrypted and sent as one.

use std::rc::Rc;
use std::sync::Arc;

use hawser_mux::{HEADER_BYTES, Session as Machine};

use super::slot::Slot;
use crate::socket::Buffers;

/// Bytes on their way into a connection, in a buffer that is borrowed only while it holds some.
pub(super) struct Batch {
    buffers: Arc<Buffers>,
    held: Option<Box<[u8]>>,
    from: usize,
    to: usize,
}

impl Batch {
    pub(super) fn new(buffers: Arc<Buffers>) -> Self {
        Self { buffers, held: None, from: 0, to: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.held.as_ref().map_or(&[], |held| &held[self.from..self.to])
    }

    /// Notes that the first `count` of [`Batch::bytes`] have left.
    pub(super) fn sent(&mut self, count: usize) {
        self.from += count;
        self.release();
    }

    /// Adds what the machine has to say, as far as it fits.
    pub(super) fn say(&mut self, machine: &mut Machine<Rc<Slot>>) {
        if machine.has_news() {
            let to = self.to;
            self.to += machine.write(&mut self.lend()[to..]);
        }
    }

    /// Room for a frame, header first, of `least` bytes or of so many that it is worth it; none
    /// when those before it must leave first. Say [`Batch::filled`] or [`Batch::release`]
    /// afterwards.
    pub(super) fn room(&mut self, least: usize) -> Option<&mut [u8]> {
        let to = self.to;
        Some(&mut self.lend()[to..]).filter(|room| room.len() >= least.min(ROOM_MIN))
    }

    /// Notes that a frame of `count` bytes was put into [`Batch::room`].
    pub(super) fn filled(&mut self, count: usize) {
        self.to += count;
    }

    /// Gives the buffer back when it holds nothing.
    pub(super) fn release(&mut self) {
        if self.from == self.to
            && let Some(held) = self.held.take()
        {
            self.buffers.give(held);
            (self.from, self.to) = (0, 0);
        }
    }

    fn lend(&mut self) -> &mut [u8] {
        let buffers = &self.buffers;
        self.held.get_or_insert_with(|| buffers.lend())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.from = self.to;
        self.release();
    }
}

/// Less room is left alone: it would make many small frames.
const ROOM_MIN: usize = 8 * 1024 + HEADER_BYTES;
