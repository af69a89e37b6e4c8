//! Two sessions, whatever happens between them: every byte arrives once and in order.

use std::collections::{BTreeMap, VecDeque};

use hawser_mux::{Entry, HEADER_BYTES, STREAMS_MAX, Session, Side, StreamId};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::{Shown, feed, said};

/// One end, with applications that send and read at random.
struct End {
    session: Session<Shown>,
    streams: BTreeMap<StreamId, Mine>,
    /// Frames on their way to the other end.
    wire: VecDeque<u8>,
    /// Streams that were given up, by either end.
    lost: usize,
}

/// What this end did in one stream.
struct Mine {
    seen: Shown,
    sent: Vec<u8>,
    has_finished: bool,
    has_reset: bool,
    is_open: bool,
}

impl End {
    fn new(side: Side) -> Self {
        let (streams, wire) = (BTreeMap::new(), VecDeque::new());
        Self { session: Session::new(side, Entry::Judged), streams, wire, lost: 0 }
    }

    fn add(&mut self, id: StreamId, seen: Shown, is_open: bool) {
        let (sent, has_finished, has_reset) = (Vec::new(), false, false);
        self.streams.insert(id, Mine { seen, sent, has_finished, has_reset, is_open });
    }

    fn any(&self, random: &mut SmallRng) -> Option<StreamId> {
        let count = self.streams.len();
        (count > 0)
            .then(|| random.random_range(0..count))
            .and_then(|nth| self.streams.keys().nth(nth).copied())
    }

    /// Takes up to `most` bytes from the wire of the other end.
    fn hear(&mut self, other: &mut Self, most: usize) {
        let count = most.min(other.wire.len());
        let bytes: Vec<u8> = other.wire.drain(..count).collect();
        for (id, seen) in feed(&mut self.session, &bytes).expect("a sound peer") {
            self.add(id, seen, false);
        }
    }

    fn speak(&mut self, most: usize) {
        let mut out = vec![0; most];
        let written = self.session.write(&mut out);
        self.wire.extend(&out[..written]);
    }

    fn send(&mut self, id: StreamId, most: usize) {
        // What is due goes before what is sent.
        self.wire.extend(said(&mut self.session));
        let count = self.session.room(id).min(most);
        let Some(mine) = self.streams.get_mut(&id) else { return };
        if count == 0 || mine.has_finished || mine.has_reset {
            return;
        }
        let header = self.session.data(id, count).expect("there was room");
        assert_eq!(header.len(), HEADER_BYTES);
        let from = mine.sent.len();
        let bytes = (from..from + count).map(|at| byte(id, at));
        mine.sent.extend(bytes.clone());
        self.wire.extend(header);
        self.wire.extend(bytes);
    }

    fn consume(&mut self, id: StreamId, most: usize) {
        let Some(mine) = self.streams.get_mut(&id) else { return };
        let mut seen = mine.seen.borrow_mut();
        let count = seen.unread.min(most);
        seen.unread -= count;
        drop(seen);
        self.session.consumed(id, count);
    }

    fn finish(&mut self, id: StreamId) {
        if let Some(mine) = self.streams.get_mut(&id)
            && mine.is_open
        {
            mine.has_finished = true;
            self.session.finish(id);
        }
    }

    fn decide(&mut self, id: StreamId, accepts: bool) {
        let Some(mine) = self.streams.get_mut(&id) else { return };
        if mine.is_open {
            return;
        }
        if accepts {
            mine.is_open = true;
            self.session.accept(id);
        } else {
            self.session.refuse(id, 9);
            self.streams.remove(&id);
            self.lost += 1;
        }
    }

    /// One random act.
    fn act(&mut self, side: Side, random: &mut SmallRng) {
        let any = self.any(random);
        match (random.random_range(0..100), any) {
            (0..12, _) if side == Side::Caller => {
                if let Some((id, seen)) = self.session.open() {
                    self.add(id, seen, true);
                }
            }
            (0..30, Some(id)) if side == Side::Callee => {
                self.decide(id, random.random_range(0..20) > 0);
            }
            (30..55, Some(id)) => self.send(id, random.random_range(1..40_000)),
            (55..80, Some(id)) => self.consume(id, random.random_range(1..80_000)),
            (80..84, Some(id)) => {
                let is_decided = self.streams[&id].seen.borrow().verdict == Some(0);
                if side == Side::Callee || is_decided {
                    self.finish(id);
                }
            }
            (84, Some(id)) => {
                if let Some(mine) = self.streams.get_mut(&id) {
                    mine.has_reset = true;
                }
                self.session.reset(id, 5);
            }
            (85, _) => self.session.ping(random.random()),
            (86, _) => self.session.turn(),
            _ => self.speak(random.random_range(0..200)),
        }
    }

    /// Brings everything to its end.
    fn wind_up(&mut self, side: Side) {
        for id in self.streams.keys().copied().collect::<Vec<_>>() {
            self.decide(id, true);
            self.consume(id, usize::MAX);
            let has_verdict = self.streams[&id].seen.borrow().verdict.is_some();
            if side == Side::Callee || has_verdict {
                self.finish(id);
            }
        }
        self.speak(64 * 1024);
    }
}

fn byte(id: StreamId, at: usize) -> u8 {
    (at as u32).wrapping_mul(2_654_435_761).wrapping_add(id.get()).to_le_bytes()[3]
}

/// What `from` sent in a stream is what `to` received, as far as it came.
fn compare(from: &End, to: &End, why: &str) {
    for (id, mine) in &from.streams {
        let Some(theirs) = to.streams.get(id) else { continue };
        let seen = theirs.seen.borrow();
        let is_lost = mine.has_reset
            || theirs.has_reset
            || seen.reset.is_some()
            || mine.seen.borrow().reset.is_some();
        let count = seen.received.len();
        assert!(mine.sent.starts_with(&seen.received), "{why}: stream {id:?} differs");
        assert!(is_lost || count == mine.sent.len(), "{why}: stream {id:?} lacks bytes");
        assert!(is_lost || seen.has_finished, "{why}: stream {id:?} has no end");
    }
}

#[test]
fn whatever_happens_every_byte_arrives_once_and_in_order() {
    let mut carried = 0;
    for seed in 0..8 {
        let why = format!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut caller, mut callee) = (End::new(Side::Caller), End::new(Side::Callee));
        for _ in 0..1_500 {
            caller.act(Side::Caller, &mut random);
            callee.act(Side::Callee, &mut random);
            let pieces = [1, 7, 8, 9, 100, 5_000, 100_000];
            let most = pieces[random.random_range(0..pieces.len())];
            if random.random() {
                caller.hear(&mut callee, most);
            }
            if random.random() {
                callee.hear(&mut caller, most);
            }
            assert!(caller.session.live() <= STREAMS_MAX, "{why}");
            assert!(callee.session.live() <= caller.session.live() + STREAMS_MAX, "{why}");
        }
        for _ in 0..10 {
            caller.wind_up(Side::Caller);
            callee.hear(&mut caller, usize::MAX);
            callee.wind_up(Side::Callee);
            caller.hear(&mut callee, usize::MAX);
        }
        assert_eq!((caller.session.live(), callee.session.live()), (0, 0), "{why}");
        assert!(!caller.session.is_asking() && !callee.session.is_asking(), "{why}");
        compare(&caller, &callee, &why);
        compare(&callee, &caller, &why);
        carried += caller.streams.values().map(|mine| mine.sent.len()).sum::<usize>();
    }
    assert!(carried > 1_000_000, "{carried} bytes were carried in all");
}

#[test]
fn a_stream_that_is_not_read_holds_up_no_other() {
    let (mut caller, mut callee) = (End::new(Side::Caller), End::new(Side::Callee));
    let opened: Vec<_> = (0..2).map(|_| caller.session.open().expect("room")).collect();
    let [stuck, free] = [opened[0].0, opened[1].0];
    for (id, seen) in opened {
        caller.add(id, seen, true);
    }
    caller.speak(100);
    callee.hear(&mut caller, usize::MAX);
    callee.decide(stuck, true);
    callee.decide(free, true);
    callee.speak(100);
    caller.hear(&mut callee, usize::MAX);
    for _ in 0..200 {
        caller.send(stuck, usize::MAX);
        caller.send(free, usize::MAX);
        callee.hear(&mut caller, usize::MAX);
        callee.consume(free, usize::MAX);
        callee.speak(1_000);
        caller.hear(&mut callee, usize::MAX);
    }
    let sent = |id: StreamId| caller.streams[&id].sent.len();
    assert_eq!(sent(stuck), hawser_mux::WINDOW_FIRST as usize, "as much as there was credit");
    assert!(sent(free) > 10_000_000, "{} bytes", sent(free));
    assert!(caller.session.is_bulk(), "one of them is in bulk");
    caller.session.turn();
    caller.session.turn();
    assert!(!caller.session.is_bulk(), "and it was a while ago");
}
