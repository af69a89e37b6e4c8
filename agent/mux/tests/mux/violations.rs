//! What no sound peer does ends the session, and says which it was.

use hawser_mux::{
    Entry, RESETS_MAX, STREAMS_MAX, Session, Side, Violation, WINDOW_FIRST, WINDOWS_SPARE,
};

use super::{Shown, feed, said};

const fn frame(kind: u8, code: u8, stream: u8) -> [u8; 8] {
    [kind, code, 0, 0, 0, 0, 0, stream]
}

const fn number(kind: u8, stream: u8, number: u32) -> [u8; 12] {
    let [a, b, c, d] = number.to_be_bytes();
    [kind, 0, 0, 4, 0, 0, 0, stream, a, b, c, d]
}

const fn data(stream: u8) -> [u8; 9] {
    [3, 0, 0, 1, 0, 0, 0, stream, 42]
}

const OPEN: u8 = 1;
const VERDICT: u8 = 2;
const FINISH: u8 = 5;
const RESET: u8 = 6;

/// A callee with stream 1 asked for and let in, and 2 asked for.
fn callee() -> Session<Shown> {
    let mut session = Session::new(Side::Callee, Entry::Judged);
    let both = [frame(OPEN, 0, 1), frame(OPEN, 0, 2)].concat();
    let opened = feed(&mut session, &both).expect("sound");
    session.accept(opened[0].0);
    said(&mut session);
    session
}

/// A caller with streams 1 and 2, of which 1 is let in.
fn caller() -> Session<Shown> {
    let mut session = Session::new(Side::Caller, Entry::Judged);
    session.open().expect("room");
    session.open().expect("room");
    said(&mut session);
    feed(&mut session, &frame(VERDICT, 0, 1)).expect("sound");
    session
}

#[test]
fn what_a_callee_refuses() {
    use Violation as V;
    let cases: &[(&[u8], Result<(), V>, &str)] = &[
        (&data(1), Ok(()), "bytes of a stream that is let in"),
        (&data(2), Err(V::OutOfTurn), "bytes before the verdict"),
        (&frame(FINISH, 0, 2), Err(V::OutOfTurn), "an end before the verdict"),
        (&number(4, 2, 1), Err(V::OutOfTurn), "credit before the verdict"),
        (&data(3), Err(V::UnknownStream), "bytes of a stream that nobody opened"),
        (&frame(RESET, 0, 9), Err(V::UnknownStream), "a reset of a stream that nobody opened"),
        (&frame(OPEN, 0, 1), Err(V::ReusedStream), "a number twice"),
        (&frame(OPEN, 0, 9), Ok(()), "numbers may be left out"),
        (&[frame(OPEN, 0, 9), frame(OPEN, 0, 8)].concat(), Err(V::ReusedStream), "downwards"),
        (&frame(VERDICT, 0, 1), Err(V::OutOfTurn), "a caller decides nothing"),
        (&[&frame(FINISH, 0, 1)[..], &data(1)].concat(), Err(V::OutOfTurn), "bytes after the end"),
        (&[frame(FINISH, 0, 1); 2].concat(), Err(V::OutOfTurn), "two ends"),
        (&[&frame(RESET, 0, 1)[..], &data(1)].concat(), Ok(()), "what a reset overtook is dropped"),
        (&number(4, 1, i32::MAX as u32), Err(V::CreditOverflow), "more credit than there is"),
        (&number(4, 1, i32::MAX as u32 - WINDOW_FIRST), Ok(()), "as much credit as there is"),
        (&number(8, 0, 7), Err(V::OutOfTurn), "an answer to no question"),
        (&number(7, 0, 7), Ok(()), "a question"),
        (&[number(7, 0, 7); 2].concat(), Err(V::PingFlood), "two questions at once"),
        (&frame(9, 0, 0), Ok(()), "a goodbye"),
        (b"PRI * HTTP/2.0\r\n\r\n", Err(V::Malformed), "another protocol"),
    ];
    for (input, expected, why) in cases {
        for piece in [1, 3, usize::MAX] {
            let mut session = callee();
            let mut pieces = input.chunks(piece.min(input.len()));
            let fed = pieces.try_for_each(|piece| feed(&mut session, piece).map(drop));
            assert_eq!(&fed, expected, "{why}, by {piece}");
        }
    }
}

#[test]
fn what_a_caller_refuses() {
    use Violation as V;
    let cases: &[(&[u8], Result<(), V>, &str)] = &[
        (&data(1), Ok(()), "bytes of a stream that is let in"),
        (&data(2), Err(V::OutOfTurn), "bytes before the verdict"),
        (&frame(OPEN, 0, 3), Err(V::OutOfTurn), "a callee opens nothing"),
        (&frame(VERDICT, 0, 1), Err(V::OutOfTurn), "a second verdict"),
        (&frame(VERDICT, 0, 3), Err(V::UnknownStream), "a verdict on nothing"),
        (&[&frame(VERDICT, 1, 2)[..], &data(2)].concat(), Ok(()), "bytes of what is over: dropped"),
        (&frame(RESET, 1, 2), Ok(()), "a reset in place of a verdict"),
    ];
    for (input, expected, why) in cases {
        let mut session = caller();
        assert_eq!(&feed(&mut session, input).map(drop), expected, "{why}");
    }
    let mut early = Session::<Shown>::new(Side::Caller, Entry::Judged);
    early.open().expect("room");
    let fed = feed(&mut early, &frame(VERDICT, 0, 1)).map(drop);
    assert_eq!(fed, Err(V::OutOfTurn), "an answer to what was not asked yet");
}

#[test]
fn where_every_stream_is_let_in_nobody_decides() {
    use Violation as V;
    let opened = frame(OPEN, 0, 1);
    let cases: &[(&[u8], Result<(), V>, &str)] = &[
        (&data(1), Ok(()), "bytes at once"),
        (&frame(FINISH, 0, 1), Ok(()), "an end at once"),
        (&number(4, 1, 1), Ok(()), "credit at once"),
        (&frame(VERDICT, 0, 1), Err(V::OutOfTurn), "a caller decides nothing"),
        (&data(2), Err(V::UnknownStream), "bytes of a stream that nobody opened"),
    ];
    for (input, expected, why) in cases {
        let mut callee = Session::<Shown>::new(Side::Callee, Entry::Open);
        let fed = feed(&mut callee, &[&opened[..], input].concat()).map(drop);
        assert_eq!(&fed, expected, "{why}");
    }
    let mut caller = Session::<Shown>::new(Side::Caller, Entry::Open);
    let (id, _) = caller.open().expect("room");
    assert_eq!(caller.data(id, 1), None, "what is said goes first: that there is a stream");
    said(&mut caller);
    assert!(caller.data(id, 1).is_some(), "then its bytes, without an answer");
    feed(&mut caller, &data(1)).expect("bytes come as they are");
    assert_eq!(feed(&mut caller, &frame(VERDICT, 0, 1)).map(drop), Err(V::OutOfTurn), "a verdict");
}

#[test]
fn streams_that_nobody_took_up_are_given_up_only_so_often() {
    let round = [frame(OPEN, 0, 0), frame(RESET, 0, 0)];
    let feed_round = |session: &mut Session<Shown>, nth: u32, takes: bool| {
        let mut bytes = round;
        bytes.iter_mut().for_each(|frame| frame[4..].copy_from_slice(&(nth + 1).to_be_bytes()));
        let [open, reset] = bytes;
        for (id, _) in feed(session, &open)? {
            if takes {
                session.accept(id);
            }
        }
        feed(session, &reset).map(drop)
    };
    for (takes, expected) in [(true, Ok(())), (false, Err(Violation::ResetFlood))] {
        let mut session = Session::<Shown>::new(Side::Callee, Entry::Open);
        let mut all = (0..2 * RESETS_MAX).map(|nth| feed_round(&mut session, nth, takes));
        assert_eq!(all.find(Result::is_err).unwrap_or(Ok(())), expected, "taken up: {takes}");
    }
}

#[test]
fn nobody_sends_more_than_there_is_credit_for() {
    let mut session = callee();
    let mut most = vec![3, 1, 0xff, 0xff, 0, 0, 0, 1];
    most.resize(8 + 0xffff, 0);
    feed(&mut session, &most).expect("one byte less than the first window");
    feed(&mut session, &data(1)).expect("the last byte");
    let fed = feed(&mut session, &data(1)).map(drop);
    assert_eq!(fed, Err(Violation::CreditExceeded), "one more");
}

#[test]
fn what_is_not_read_is_bounded_however_windows_grow() {
    let mut session = Session::new(Side::Callee, Entry::Judged);
    let opens: Vec<u8> = (1..=STREAMS_MAX as u8).flat_map(|id| frame(OPEN, 0, id)).collect();
    let streams = feed(&mut session, &opens).expect("as many as may be");
    streams.iter().for_each(|(id, _)| session.accept(*id));
    said(&mut session);
    let mut given = [0; STREAMS_MAX];
    // Each asks for more and is read, until no window grows any further.
    for _ in 0..12 {
        for (id, seen) in &streams {
            let mut some = vec![3, 1, 0x80, 0, 0, 0, 0, id.get() as u8];
            some.resize(8 + 0x8000, 0);
            feed(&mut session, &some).expect("within credit");
            session.consumed(*id, std::mem::take(&mut seen.borrow_mut().unread));
        }
        for frame in said(&mut session).chunks(12) {
            let number =
                |at: usize| u32::from_be_bytes([0, frame[at], frame[at + 1], frame[at + 2]]);
            assert_eq!(frame[0], 4, "only credit is given");
            given[number(5) as usize - 1] += number(9) as usize;
        }
    }
    // What each may send now, if none is read.
    let mut held = 0;
    for (id, seen) in &streams {
        let credit = given[usize::try_from(id.get()).expect("small") - 1] + WINDOW_FIRST as usize;
        held += credit - seen.borrow().received.len();
    }
    let most = STREAMS_MAX * WINDOW_FIRST as usize + WINDOWS_SPARE as usize;
    assert!(held <= most, "{held} bytes of at most {most}");
    assert!(held > WINDOWS_SPARE as usize, "the windows did grow: {held}");
}

#[test]
fn streams_and_resets_are_counted() {
    let mut session = Session::<Shown>::new(Side::Callee, Entry::Judged);
    for id in 1..=STREAMS_MAX as u8 {
        feed(&mut session, &frame(OPEN, 0, id)).expect("room");
    }
    let fed = feed(&mut session, &frame(OPEN, 0, STREAMS_MAX as u8 + 1)).map(drop);
    assert_eq!(fed, Err(Violation::TooManyStreams));

    let mut session = Session::<Shown>::new(Side::Callee, Entry::Judged);
    let flood = |session: &mut Session<Shown>, id: u32, waits: bool| {
        let [a, b, c, d] = id.to_be_bytes();
        let opened = feed(session, &[OPEN, 0, 0, 0, a, b, c, d])?;
        if waits {
            session.accept(opened[0].0);
            said(session);
        }
        feed(session, &[RESET, 0, 0, 0, a, b, c, d]).map(drop)
    };
    for id in 1..=4 * RESETS_MAX {
        flood(&mut session, id, true).expect("whoever waits for the verdict may go");
    }
    for id in 0..RESETS_MAX {
        flood(&mut session, 10_000 + id, false).expect("some may go before");
    }
    assert_eq!(flood(&mut session, 20_000, false), Err(Violation::ResetFlood));
    assert_eq!(session.live(), 0, "and nothing is kept of them");
}

#[test]
fn resets_that_cross_each_other_take_no_room() {
    let mut callee = Session::<Shown>::new(Side::Callee, Entry::Judged);
    for id in 1..=STREAMS_MAX as u8 {
        let opened = feed(&mut callee, &frame(OPEN, 0, id)).expect("room");
        callee.accept(opened[0].0);
        said(&mut callee);
        callee.reset(opened[0].0, 3);
    }
    // Its own have yet to leave when those of the caller come, with new streams behind them.
    for id in 1..=STREAMS_MAX as u8 {
        feed(&mut callee, &frame(RESET, 0, id)).expect("no news");
    }
    assert_eq!(callee.live(), 0);
    for id in 1..=STREAMS_MAX as u32 {
        let [a, b, c, d] = (STREAMS_MAX as u32 + id).to_be_bytes();
        feed(&mut callee, &[OPEN, 0, 0, 0, a, b, c, d]).expect("room again");
    }
    said(&mut callee);
    assert_eq!(callee.live(), STREAMS_MAX, "what was to be said of those before is no news either");
}
