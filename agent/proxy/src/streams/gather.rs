//! The gatherer: what arrives for one stream in a row goes to its application as one write.
//!
//! A record has at most 16 KiB, and a write of that much costs nearly what one of 64 KiB does.

use std::cell::RefCell;
use std::rc::Rc;

use hawser_mux::{Session as Machine, StreamId};

use super::slot::Slot;
use crate::socket::Buffers;

/// Bytes of one stream, in a buffer that is borrowed only while it holds some. What is left when it
/// is dropped is passed on.
pub(super) struct Gather<'a> {
    buffers: &'a Buffers,
    machine: &'a RefCell<Machine<Rc<Slot>>>,
    held: Option<Held>,
}

struct Held {
    id: StreamId,
    slot: Rc<Slot>,
    buffer: Box<[u8]>,
    length: usize,
}

impl<'a> Gather<'a> {
    pub(super) fn new(buffers: &'a Buffers, machine: &'a RefCell<Machine<Rc<Slot>>>) -> Self {
        Self { buffers, machine, held: None }
    }

    /// Takes in what came for a stream.
    pub(super) fn add(&mut self, id: StreamId, slot: Rc<Slot>, bytes: &[u8]) {
        if !slot.takes_straight() {
            self.pass_on();
            return self.give(id, &slot, bytes);
        }
        let fits = |held: &Held| held.id == id && held.length + bytes.len() <= held.buffer.len();
        if !self.held.as_ref().is_some_and(fits) {
            self.pass_on();
        }
        let lend = || Held { id, slot, buffer: self.buffers.lend(), length: 0 };
        let held = self.held.get_or_insert_with(lend);
        let room = &mut held.buffer[held.length..][..bytes.len()];
        // Larger pieces are copied by an instruction that is slow on many processors.
        for (room, bytes) in room.chunks_mut(COPIED_AT_ONCE).zip(bytes.chunks(COPIED_AT_ONCE)) {
            room.copy_from_slice(bytes);
        }
        held.length += bytes.len();
    }

    fn pass_on(&mut self) {
        if let Some(Held { id, slot, buffer, length }) = self.held.take() {
            self.give(id, &slot, &buffer[..length]);
            self.buffers.give(buffer);
        }
    }

    fn give(&self, id: StreamId, slot: &Slot, bytes: &[u8]) {
        let count = slot.give(bytes);
        self.machine.borrow_mut().consumed(id, count);
    }
}

impl Drop for Gather<'_> {
    fn drop(&mut self) {
        self.pass_on();
    }
}

const COPIED_AT_ONCE: usize = 4 * 1024;
