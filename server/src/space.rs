//! Room on the data folder's disk: writes stop while some is left, so that a full disk stops
//! nothing else.
//!
//! A log that meets a full disk ends its process, for good reasons, and every restart would end
//! the same way. With a reserve the server lives on: it votes, answers reads, and takes writes
//! again as soon as there is room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::IntGauge;
use tokio_util::sync::CancellationToken;

/// Whether the disk is full. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    folder: Arc<Path>,
    is_full: Arc<AtomicBool>,
    free_bytes: IntGauge,
}

impl Space {
    /// The disk that `folder` is on, looked at once now.
    pub(crate) fn new(folder: PathBuf, free_bytes: IntGauge) -> Self {
        let space = Self { folder: folder.into(), is_full: Arc::default(), free_bytes };
        space.look();
        space
    }

    /// Whether writes must wait for room.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Whether `bytes` more fit and leave the reserve untouched.
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        self.free().is_ok_and(|free| free >= bytes.saturating_add(FULL_BELOW_BYTES))
    }

    /// Whether entries of the log of `bytes` in all may be written: small ones still, from the
    /// first half of the reserve, so that a new leader can take office while disks are full.
    pub(crate) fn takes(&self, bytes: usize) -> bool {
        !self.is_full() || self.free().is_ok_and(|free| takes_when_full(bytes, free))
    }

    /// Looks again and again, until `drain`.
    pub(crate) async fn run(self, drain: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = drain.cancelled() => return,
                _ = tick.tick() => self.look(),
            }
        }
    }

    fn look(&self) {
        let free = match self.free() {
            Ok(free) => free,
            Err(failure) => {
                tracing::warn!(error = %failure, "the data folder's disk cannot be looked at");
                return;
            }
        };
        self.free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        let was_full = self.is_full();
        let is_full = judge(was_full, free);
        self.is_full.store(is_full, Ordering::Relaxed);
        let folder = self.folder.display();
        match (was_full, is_full) {
            (false, true) => {
                tracing::error!(%folder, free, "the disk is full: no more writes until it is freed");
            }
            (true, false) => tracing::info!(%folder, free, "the disk has room: writes go on"),
            _ => {}
        }
    }

    fn free(&self) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(&*self.folder)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

/// Full below one bound, with room above another: between them it stays as it was.
fn judge(was_full: bool, free: u64) -> bool {
    free < if was_full { ROOM_ABOVE_BYTES } else { FULL_BELOW_BYTES }
}

fn takes_when_full(bytes: usize, free: u64) -> bool {
    bytes <= SMALL_BYTES && free >= FULL_BELOW_BYTES / 2
}

const LOOK_EVERY: Duration = Duration::from_millis(500);
const FULL_BELOW_BYTES: u64 = 64 << 20;
const ROOM_ABOVE_BYTES: u64 = 80 << 20;
const SMALL_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_leader_takes_office_while_disks_are_full_and_nothing_eats_the_reserve() {
        let cases = [
            // bytes, MiB free, taken, why
            (100, 63, true, "an entry without a command"),
            (SMALL_BYTES + 1, 63, false, "a command"),
            (100, 31, false, "half of the reserve is gone"),
        ];
        for (bytes, free, expected, why) in cases {
            assert_eq!(takes_when_full(bytes, free << 20), expected, "{why}");
        }
    }

    #[test]
    fn it_does_not_flap_at_the_bound() {
        let cases = [
            // was full, MiB free, is full, why
            (false, 65, false, "the reserve is whole"),
            (false, 63, true, "the reserve is touched"),
            (true, 65, true, "a little room is soon gone"),
            (true, 81, false, "there is room"),
        ];
        for (was_full, free, expected, why) in cases {
            assert_eq!(judge(was_full, free << 20), expected, "{why}");
        }
    }
}
