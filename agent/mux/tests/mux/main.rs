//! Two ends of a connection with streams, and what one end makes of a peer that misbehaves.

mod mutation;
mod pair;
mod violations;

use std::cell::RefCell;
use std::rc::Rc;

use hawser_mux::{Event, Session, StreamId, Violation};

/// What one end knows of a stream by its events.
#[derive(Debug, Default)]
struct Seen {
    verdict: Option<u8>,
    received: Vec<u8>,
    /// How many of those it has not passed on.
    unread: usize,
    has_finished: bool,
    reset: Option<u8>,
}

type Shown = Rc<RefCell<Seen>>;

/// Gives all of `input` to a session; answers the streams that it opened.
fn feed(
    session: &mut Session<Shown>,
    mut input: &[u8],
) -> Result<Vec<(StreamId, Shown)>, Violation> {
    let mut opened = Vec::new();
    while !input.is_empty() {
        let (used, event) = session.read(input)?;
        assert!(used > 0, "it stands still");
        input = &input[used..];
        match event {
            Some(Event::Opened(id, seen)) => opened.push((id, seen)),
            Some(Event::Verdict(seen, code)) => seen.borrow_mut().verdict = Some(code),
            Some(Event::Data(_, seen, bytes)) => {
                seen.borrow_mut().received.extend_from_slice(bytes);
                seen.borrow_mut().unread += bytes.len();
            }
            Some(Event::Finished(seen)) => seen.borrow_mut().has_finished = true,
            Some(Event::Reset(seen, code)) => seen.borrow_mut().reset = Some(code),
            Some(Event::Credit(_) | Event::Left(_)) | None => {}
        }
    }
    Ok(opened)
}

/// All that a session has to say.
fn said(session: &mut Session<Shown>) -> Vec<u8> {
    let mut out = vec![0; 64 * 1024];
    let written = session.write(&mut out);
    assert!(!session.has_news(), "64 KiB were enough");
    out.truncate(written);
    out
}
