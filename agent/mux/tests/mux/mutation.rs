//! Changed and broken transcripts: whatever comes, a session refuses or goes on, within bounds.

use hawser_fuzz::Target;
use hawser_mux::{Entry, STREAMS_MAX, Session, Side};

use super::{Shown, feed, said};

/// Gives one transcript to both sides, in pieces of its own choice and with answers in between;
/// says whether either took all of it.
fn run(bytes: &[u8]) -> bool {
    let piece = bytes.first().map_or(1, |first| usize::from(*first) % 13 + 1);
    let mut is_good = false;
    let ends = [
        (Side::Caller, Entry::Judged),
        (Side::Callee, Entry::Judged),
        (Side::Caller, Entry::Open),
        (Side::Callee, Entry::Open),
    ];
    for (side, entry) in ends {
        let mut session = Session::<Shown>::new(side, entry);
        for _ in 0..3 {
            session.open();
        }
        said(&mut session);
        is_good |= bytes.chunks(piece).enumerate().all(|(nth, piece)| {
            let Ok(opened) = feed(&mut session, piece) else { return false };
            for (id, seen) in opened {
                match id.get() % 5 {
                    0 => session.refuse(id, 3),
                    4 => session.reset(id, 3),
                    _ => session.accept(id),
                }
                session.consumed(id, seen.borrow().unread);
                session.finish(id);
            }
            assert!(session.live() <= STREAMS_MAX);
            if nth % 2 == 1 {
                said(&mut session);
            }
            true
        });
    }
    is_good
}

#[test]
fn nothing_that_comes_breaks_a_session() {
    Target::new("session").run(run);
}
