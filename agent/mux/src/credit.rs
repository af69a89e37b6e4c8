//! Credit: how much a peer may send in one stream before what it sent is read.

use std::num::NonZeroU32;

use crate::frame::Violation;

/// The receiver's side of one direction of one stream.
///
/// `granted + unread + owed == size`, always: what may still come, what came and is not read, and
/// what was read and not given back.
#[derive(Debug)]
pub(crate) struct Window {
    size: u32,
    granted: u32,
    unread: u32,
    owed: u32,
    /// The sender used up its credit: a larger window would have helped it.
    is_starved: bool,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { size: WINDOW_FIRST, granted: WINDOW_FIRST, unread: 0, owed: 0, is_starved: false }
    }

    /// Takes in `count` bytes.
    ///
    /// # Errors
    /// [`Violation::CreditExceeded`]
    pub(crate) fn arrive(&mut self, count: u32, is_starved: bool) -> Result<(), Violation> {
        self.granted = self.granted.checked_sub(count).ok_or(Violation::CreditExceeded)?;
        self.unread += count;
        self.is_starved = is_starved;
        Ok(())
    }

    /// Notes that `count` of those that arrived were read.
    pub(crate) fn consume(&mut self, count: u32) {
        let count = count.min(self.unread);
        self.unread -= count;
        self.owed += count;
    }

    /// Whether credit should be given back: often enough that the sender need not stop, and not
    /// for every byte.
    pub(crate) fn is_due(&self) -> bool {
        self.owed >= self.size / 2
    }

    pub(crate) fn has_unread(&self) -> bool {
        self.unread > 0
    }

    /// Gives back what is owed. A window that held up its sender while the reader kept pace grows,
    /// by at most `spare`.
    pub(crate) fn grant(&mut self, spare: &mut u32) -> Option<NonZeroU32> {
        let mut credit = std::mem::take(&mut self.owed);
        if self.is_starved && self.unread == 0 {
            let growth = self.size.min(WINDOW_MAX - self.size).min(*spare);
            *spare -= growth;
            self.size += growth;
            credit += growth;
        }
        self.granted += credit;
        NonZeroU32::new(credit)
    }

    /// What it took of the spare.
    pub(crate) fn growth(&self) -> u32 {
        self.size - WINDOW_FIRST
    }

    #[cfg(test)]
    fn is_whole(&self) -> bool {
        self.granted + self.unread + self.owed == self.size
    }
}

/// What may be sent in a stream before any credit was given: both ends begin with it.
pub const WINDOW_FIRST: u32 = 64 * 1024;
/// The largest window: 50 MB/s over 80 ms.
pub const WINDOW_MAX: u32 = 4 * 1024 * 1024;
/// By how much all windows of one end may have grown at once.
pub const WINDOWS_SPARE: u32 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_only_for_who_needs_it_and_within_the_spare() {
        let mut spare = 100_000;
        let mut window = Window::new();
        let cases = [
            // arrives, starved, read, given back, why
            (WINDOW_FIRST, false, WINDOW_FIRST, WINDOW_FIRST, "what was read"),
            (WINDOW_FIRST, true, 40_000, 40_000, "the reader is behind: no more"),
            (1, true, WINDOW_FIRST - 40_000 + 1, 2 * WINDOW_FIRST - 40_000 + 1, "twice as much"),
            (10, true, 10, 10 + 100_000 - WINDOW_FIRST, "what the spare has left"),
            (10, true, 10, 10, "nothing is left"),
        ];
        for (arrives, is_starved, read, expected, why) in cases {
            window.arrive(arrives, is_starved).expect(why);
            window.consume(read);
            let given = window.grant(&mut spare).map_or(0, NonZeroU32::get);
            assert_eq!(given, expected, "{why}");
            assert!(window.is_whole(), "{why}");
        }
        assert_eq!((spare, window.growth()), (0, 100_000));
        let whole = window.granted;
        assert_eq!(window.arrive(whole + 1, true), Err(Violation::CreditExceeded));
        assert!(window.is_whole(), "a refused frame changes nothing");
    }
}
