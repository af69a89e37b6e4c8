//! A session: what one end knows of all streams in one connection.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use crate::credit::{WINDOW_FIRST, WINDOWS_SPARE, Window};
use crate::frame::{CONTROL_BYTES, DATA_BYTES_MAX, Frame, HEADER_BYTES, StreamId, Violation};

/// Which end of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// Opens streams.
    Caller,
    /// Answers them.
    Callee,
}

/// Who lets a stream in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry {
    /// The callee decides about each stream before any byte of it passes.
    Judged,
    /// Every stream is let in, and bytes may pass at once: what they say is judged by itself.
    Open,
}

/// What came of reading. `T` is what the reader keeps with the stream.
#[derive(Debug)]
pub enum Event<'a, T> {
    /// The peer asks for a stream: [`Session::accept`] it or [`Session::refuse`] it. Where every
    /// stream is let in, say that it is taken up by [`Session::accept`].
    Opened(StreamId, T),
    /// The peer accepts a stream with 0, or says why not; then the stream is over.
    Verdict(T, u8),
    /// Bytes of a stream. Say [`Session::consumed`] once they are passed on.
    Data(StreamId, T, &'a [u8]),
    /// A stream that had no credit has some.
    Credit(T),
    /// The peer sends nothing more in a stream.
    Finished(T),
    /// The peer gave up a stream, and says why.
    Reset(T, u8),
    /// The peer wants no more streams in this connection.
    Left(u8),
}

/// One end of a connection with streams.
#[derive(Debug)]
pub struct Session<T> {
    side: Side,
    entry: Entry,
    streams: BTreeMap<StreamId, Stream<T>>,
    /// The highest number that was opened.
    last: u32,
    /// Streams that are not over in both directions.
    live: usize,
    /// Streams with something due, each once.
    queue: VecDeque<StreamId>,
    decoder: Decoder,
    ping: Option<u32>,
    pong: Option<u32>,
    asked: Option<u32>,
    leave: Option<u8>,
    has_left: bool,
    spare: u32,
    /// Streams that the peer gave up before their verdict, less those that waited for it.
    resets: u32,
    turn: u64,
    bulk_at: Option<u64>,
}

#[derive(Debug)]
struct Stream<T> {
    value: T,
    /// The callee has decided; where every stream is let in, it has taken it up.
    is_decided: bool,
    /// Bytes pass before the callee has decided.
    is_open: bool,
    /// What may still be sent.
    credit: u32,
    window: Window,
    has_finished: bool,
    peer_has_finished: bool,
    /// Given up by this end: what still arrives is dropped.
    is_reset: bool,
    /// Over in both directions; kept until what came is read.
    is_over: bool,
    due: Due,
    is_queued: bool,
    turn: u64,
    carried: u32,
}

/// What is to be said of a stream. So a stream that says much takes no more room than one that
/// says little.
#[derive(Clone, Copy, Debug, Default)]
struct Due {
    open: bool,
    verdict: Option<u8>,
    window: bool,
    finish: bool,
    reset: Option<u8>,
}

impl<T: Clone + Default> Session<T> {
    /// One end of a new connection. Both ends must agree on `entry`.
    pub fn new(side: Side, entry: Entry) -> Self {
        Self {
            side,
            entry,
            streams: BTreeMap::new(),
            last: 0,
            live: 0,
            queue: VecDeque::new(),
            decoder: Decoder::default(),
            ping: None,
            pong: None,
            asked: None,
            leave: None,
            has_left: false,
            spare: WINDOWS_SPARE,
            resets: 0,
            turn: 0,
            bulk_at: None,
        }
    }

    /// How many streams are not over.
    pub fn live(&self) -> usize {
        self.live
    }

    /// Whether the peer takes another stream.
    pub fn has_room(&self) -> bool {
        !self.has_left
            && self.live < STREAMS_MAX
            && self.streams.len() < 2 * STREAMS_MAX
            && self.last < u32::MAX
    }

    /// Whether so much of ended streams waits to be read that another had better be refused.
    pub fn is_crowded(&self) -> bool {
        self.streams.len() - self.live >= STREAMS_MAX
    }

    /// What is kept with each stream that is not over, or was not read to its end.
    pub fn streams(&self) -> impl Iterator<Item = &T> {
        self.streams.values().map(|stream| &stream.value)
    }

    /// Asks for a stream; none when there is no room, and for a callee.
    pub fn open(&mut self) -> Option<(StreamId, T)> {
        if self.side == Side::Callee || !self.has_room() {
            return None;
        }
        let id = StreamId::new(self.last.checked_add(1)?)?;
        let value = self.begin(id);
        self.say(id, |due| due.open = true);
        Some((id, value))
    }

    /// Lets a stream in that the peer asked for.
    pub fn accept(&mut self, id: StreamId) {
        self.decide(id, 0);
    }

    /// Refuses a stream that the peer asked for: `code` says why, and is not 0.
    pub fn refuse(&mut self, id: StreamId, code: u8) {
        debug_assert!(code != 0, "0 accepts");
        self.decide(id, code);
    }

    /// How many bytes may be sent in one frame of a stream now.
    pub fn room(&self, id: StreamId) -> usize {
        match self.streams.get(&id) {
            Some(stream) if stream.may_send() => (stream.credit as usize).min(DATA_BYTES_MAX),
            _ => 0,
        }
    }

    /// What stands before `count` bytes of a stream, which follow it: no more than
    /// [`Session::room`] said, and none where that is 0. What [`Session::write`] had goes first.
    pub fn data(&mut self, id: StreamId, count: usize) -> Option<[u8; HEADER_BYTES]> {
        let stream = self.streams.get_mut(&id).filter(|stream| stream.may_send())?;
        let length = u16::try_from(count).ok().filter(|length| *length > 0)?;
        stream.credit = stream.credit.checked_sub(length.into())?;
        let is_starved = stream.credit == 0;
        let is_bulk = stream.carry(length.into(), self.turn);
        self.note(is_bulk);
        let mut header = [0; HEADER_BYTES];
        Frame::Data { stream: id, length, is_starved }.encode(&mut header)?;
        Some(header)
    }

    /// Says that `count` bytes of an [`Event::Data`] were passed on: the peer may send as many
    /// again.
    pub fn consumed(&mut self, id: StreamId, count: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.window.consume(u32::try_from(count).unwrap_or(u32::MAX));
        if stream.is_over {
            self.settle(id);
        } else if !stream.peer_has_finished && !stream.is_reset && stream.window.is_due() {
            self.say(id, |due| due.window = true);
        }
    }

    /// Ends what this end sends in a stream.
    pub fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.is_let_in() && !stream.has_finished && !stream.is_reset {
            stream.has_finished = true;
            self.say(id, |due| due.finish = true);
        }
    }

    /// Gives up a stream in both directions, and says why.
    pub fn reset(&mut self, id: StreamId, code: u8) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.is_over || stream.due.open {
            // The peer knows of its end, or never heard of it.
            let was_live = !stream.is_over;
            self.forget(id, was_live);
        } else if !stream.is_reset {
            stream.is_reset = true;
            stream.due = Due::default();
            self.say(id, |due| due.reset = Some(code));
        }
    }

    /// Asks the peer whether it lives; not while an answer is outstanding.
    pub fn ping(&mut self, token: u32) {
        if self.asked.is_none() {
            (self.asked, self.ping) = (Some(token), Some(token));
        }
    }

    /// Whether the peer was asked and has not answered.
    pub fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// Asks the peer for no more streams: 0 in peace, or the code of a [`Violation`].
    pub fn leave(&mut self, code: u8) {
        self.leave = Some(code);
    }

    /// Begins a new span of time, by which [`Session::is_bulk`] judges.
    pub fn turn(&mut self) {
        self.turn += 1;
    }

    /// Whether one stream carried more than [`BULK_BYTES`] in this turn or the one before.
    pub fn is_bulk(&self) -> bool {
        self.bulk_at.is_some_and(|turn| turn + 1 >= self.turn)
    }

    /// Whether [`Session::write`] has anything.
    pub fn has_news(&self) -> bool {
        self.leave.is_some() || self.ping.is_some() || self.pong.is_some() || !self.queue.is_empty()
    }

    /// Writes what is due and fits into `out`, and answers how much that was. Room of
    /// [`CONTROL_BYTES`] is enough for some of it.
    pub fn write(&mut self, out: &mut [u8]) -> usize {
        let mut out = Writer { out, at: 0 };
        if let Some(code) = self.leave
            && out.put(Frame::Leave { code })
        {
            self.leave = None;
        }
        if let Some(token) = self.pong
            && out.put(Frame::Pong { token })
        {
            self.pong = None;
        }
        if let Some(token) = self.ping
            && out.put(Frame::Ping { token })
        {
            self.ping = None;
        }
        while let Some(id) = self.queue.front().copied() {
            if !self.write_stream(id, &mut out) {
                break;
            }
            self.queue.pop_front();
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.is_queued = false;
            }
            self.settle(id);
        }
        out.at
    }

    /// Reads from `input`: answers how much of it was used, and what came of that. Call it until
    /// all is used.
    ///
    /// # Errors
    /// A [`Violation`]: the session is over.
    pub fn read<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<(usize, Option<Event<'a, T>>), Violation> {
        if let Some((id, left)) = self.decoder.under_way {
            let bytes = &input[..input.len().min(left.into())];
            let left = usize::from(left) - bytes.len();
            self.decoder.under_way =
                u16::try_from(left).ok().filter(|left| *left > 0).map(|left| (id, left));
            let stream = self.streams.get(&id).filter(|stream| !stream.is_reset);
            let event = stream.map(|stream| Event::Data(id, stream.value.clone(), bytes));
            return Ok((bytes.len(), event.filter(|_| !bytes.is_empty())));
        }
        match self.decoder.next(input)? {
            (used, None) => Ok((used, None)),
            (used, Some(frame)) => Ok((used, self.take(frame)?)),
        }
    }

    fn take(&mut self, frame: Frame) -> Result<Option<Event<'static, T>>, Violation> {
        match frame {
            Frame::Open { stream } => self.take_open(stream).map(Some),
            Frame::Verdict { stream, code } => self.take_verdict(stream, code),
            Frame::Data { stream, length, is_starved } => {
                self.take_data(stream, length, is_starved)?;
                Ok(None)
            }
            Frame::Window { stream, credit } => self.take_credit(stream, credit),
            Frame::Finish { stream } => self.take_finish(stream),
            Frame::Reset { stream, code } => self.take_reset(stream, code),
            Frame::Ping { token } => match self.pong.replace(token) {
                Some(_) => Err(Violation::PingFlood),
                None => Ok(None),
            },
            Frame::Pong { token } if self.asked == Some(token) => {
                self.asked = None;
                Ok(None)
            }
            Frame::Pong { .. } => Err(Violation::OutOfTurn),
            Frame::Leave { code } => {
                self.has_left = true;
                Ok(Some(Event::Left(code)))
            }
        }
    }

    fn take_open(&mut self, id: StreamId) -> Result<Event<'static, T>, Violation> {
        if self.side == Side::Caller {
            return Err(Violation::OutOfTurn);
        }
        if id.get() <= self.last {
            return Err(Violation::ReusedStream);
        }
        if self.live >= STREAMS_MAX {
            return Err(Violation::TooManyStreams);
        }
        let value = self.begin(id);
        Ok(Event::Opened(id, value))
    }

    fn take_verdict(
        &mut self,
        id: StreamId,
        code: u8,
    ) -> Result<Option<Event<'static, T>>, Violation> {
        if self.side == Side::Callee {
            return Err(Violation::OutOfTurn);
        }
        let Some(stream) = self.known(id)? else { return Ok(None) };
        if stream.is_decided || stream.due.open {
            return Err(Violation::OutOfTurn);
        }
        stream.is_decided = true;
        let value = stream.value.clone();
        if code != 0 {
            self.forget(id, true);
        }
        Ok(Some(Event::Verdict(value, code)))
    }

    fn take_data(&mut self, id: StreamId, length: u16, is_starved: bool) -> Result<(), Violation> {
        self.decoder.under_way = Some((id, length));
        let turn = self.turn;
        let Some(stream) = self.known(id)? else { return Ok(()) };
        stream.hears()?;
        stream.window.arrive(length.into(), is_starved)?;
        let is_bulk = stream.carry(length.into(), turn);
        self.note(is_bulk);
        Ok(())
    }

    fn take_credit(
        &mut self,
        id: StreamId,
        credit: NonZeroU32,
    ) -> Result<Option<Event<'static, T>>, Violation> {
        let Some(stream) = self.known(id)? else { return Ok(None) };
        if !stream.is_let_in() {
            return Err(Violation::OutOfTurn);
        }
        let had_none = stream.credit == 0;
        let sum = stream.credit.checked_add(credit.get());
        stream.credit = sum.filter(|sum| *sum <= CREDIT_MAX).ok_or(Violation::CreditOverflow)?;
        Ok(had_none.then(|| Event::Credit(stream.value.clone())))
    }

    fn take_finish(&mut self, id: StreamId) -> Result<Option<Event<'static, T>>, Violation> {
        let Some(stream) = self.known(id)? else { return Ok(None) };
        stream.hears()?;
        stream.peer_has_finished = true;
        stream.due.window = false;
        let value = stream.value.clone();
        self.settle(id);
        Ok(Some(Event::Finished(value)))
    }

    fn take_reset(
        &mut self,
        id: StreamId,
        code: u8,
    ) -> Result<Option<Event<'static, T>>, Violation> {
        let side = self.side;
        let Some(stream) = self.known(id)? else {
            if self.streams.get(&id).is_some_and(|stream| stream.is_reset) {
                // Both gave it up: whatever was to be said of it is no news to the peer.
                self.forget(id, true);
            }
            return Ok(None);
        };
        if stream.due.open {
            return Err(Violation::OutOfTurn);
        }
        let is_premature = side == Side::Callee && (!stream.is_decided || stream.is_untold());
        let value = stream.value.clone();
        self.forget(id, true);
        if is_premature {
            self.resets += 1;
            if self.resets > RESETS_MAX {
                return Err(Violation::ResetFlood);
            }
        }
        Ok(Some(Event::Reset(value, code)))
    }

    /// A stream that frames may still be about; none where they are no news.
    fn known(&mut self, id: StreamId) -> Result<Option<&mut Stream<T>>, Violation> {
        if id.get() > self.last {
            return Err(Violation::UnknownStream);
        }
        let is_news = |stream: &&mut Stream<T>| !stream.is_reset && !stream.is_over;
        Ok(self.streams.get_mut(&id).filter(is_news))
    }

    fn begin(&mut self, id: StreamId) -> T {
        let value = T::default();
        self.last = id.get();
        self.live += 1;
        let mut stream = Stream::new(value.clone());
        stream.is_open = self.entry == Entry::Open;
        stream.is_decided = stream.is_open && self.side == Side::Caller;
        self.streams.insert(id, stream);
        value
    }

    fn decide(&mut self, id: StreamId, code: u8) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.is_decided || stream.is_reset {
            return;
        }
        stream.is_decided = true;
        match self.entry {
            Entry::Judged => self.say(id, |due| due.verdict = Some(code)),
            // It waited for its turn: a caller that gives it up now gives up what is under way.
            Entry::Open => self.resets = self.resets.saturating_sub(1),
        }
    }

    fn say(&mut self, id: StreamId, what: impl FnOnce(&mut Due)) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        what(&mut stream.due);
        if !std::mem::replace(&mut stream.is_queued, true) {
            self.queue.push_back(id);
        }
    }

    /// Writes all that is due of a stream; says whether it fitted.
    fn write_stream(&mut self, id: StreamId, out: &mut Writer<'_>) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        if stream.due.open {
            if !out.put(Frame::Open { stream: id }) {
                return false;
            }
            stream.due.open = false;
        }
        if let Some(code) = stream.due.verdict {
            if !out.put(Frame::Verdict { stream: id, code }) {
                return false;
            }
            stream.due.verdict = None;
            self.resets = self.resets.saturating_sub(1);
            if code != 0 {
                self.forget(id, true);
                return true;
            }
        }
        if stream.due.window {
            if !out.has_room() {
                return false;
            }
            stream.due.window = false;
            if let Some(credit) = stream.window.grant(&mut self.spare) {
                out.put(Frame::Window { stream: id, credit });
            }
        }
        if stream.due.finish {
            if !out.put(Frame::Finish { stream: id }) {
                return false;
            }
            stream.due.finish = false;
        }
        if let Some(code) = stream.due.reset {
            if !out.put(Frame::Reset { stream: id, code }) {
                return false;
            }
            self.forget(id, true);
        }
        true
    }

    /// Takes a stream off that is over in both directions and read to its end.
    fn settle(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let has_ended = stream.has_finished && !stream.due.finish && stream.peer_has_finished;
        if !has_ended || stream.is_reset {
            return;
        }
        let was_live = !std::mem::replace(&mut stream.is_over, true);
        if stream.window.has_unread() {
            self.live -= usize::from(was_live);
        } else {
            self.forget(id, was_live);
        }
    }

    fn forget(&mut self, id: StreamId, is_live: bool) {
        if let Some(stream) = self.streams.remove(&id) {
            self.live -= usize::from(is_live);
            self.spare += stream.window.growth();
        }
    }

    fn note(&mut self, is_bulk: bool) {
        if is_bulk {
            self.bulk_at = Some(self.turn);
        }
    }
}

impl<T> Stream<T> {
    fn new(value: T) -> Self {
        Self {
            value,
            is_decided: false,
            is_open: false,
            credit: WINDOW_FIRST,
            window: Window::new(),
            has_finished: false,
            peer_has_finished: false,
            is_reset: false,
            is_over: false,
            due: Due::default(),
            is_queued: false,
            turn: 0,
            carried: 0,
        }
    }

    fn is_untold(&self) -> bool {
        self.due.open || self.due.verdict.is_some()
    }

    /// Whether bytes may pass.
    fn is_let_in(&self) -> bool {
        self.is_decided || self.is_open
    }

    fn may_send(&self) -> bool {
        self.is_let_in() && !self.is_untold() && !self.has_finished && !self.is_reset
    }

    /// # Errors
    /// [`Violation::OutOfTurn`] when the peer may send no bytes, nor their end.
    fn hears(&self) -> Result<(), Violation> {
        let may = self.is_let_in() && !self.is_untold() && !self.peer_has_finished;
        if may { Ok(()) } else { Err(Violation::OutOfTurn) }
    }

    /// Counts bytes in either direction; says whether that is bulk.
    fn carry(&mut self, count: u32, turn: u64) -> bool {
        if self.turn != turn {
            (self.turn, self.carried) = (turn, 0);
        }
        self.carried = self.carried.saturating_add(count);
        self.carried >= BULK_BYTES
    }
}

/// Puts frames together that arrive in pieces.
#[derive(Debug, Default)]
struct Decoder {
    held: [u8; CONTROL_BYTES],
    length: usize,
    /// The stream whose bytes come now, and how many.
    under_way: Option<(StreamId, u16)>,
}

impl Decoder {
    fn next(&mut self, input: &[u8]) -> Result<(usize, Option<Frame>), Violation> {
        if self.length == 0
            && let Some((frame, used)) = Frame::decode(input)?
        {
            return Ok((used, Some(frame)));
        }
        for (used, byte) in (1..).zip(input) {
            // The longest frame fills what is held, so there is always a place.
            let Some(place) = self.held.get_mut(self.length) else { break };
            *place = *byte;
            self.length += 1;
            if let Some((frame, _)) = Frame::decode(&self.held[..self.length])? {
                self.length = 0;
                return Ok((used, Some(frame)));
            }
        }
        Ok((input.len(), None))
    }
}

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn has_room(&self) -> bool {
        self.out.len() - self.at >= CONTROL_BYTES
    }

    fn put(&mut self, frame: Frame) -> bool {
        let written = frame.encode(&mut self.out[self.at..]);
        self.at += written.unwrap_or(0);
        written.is_some()
    }
}

/// Most streams in one connection. More would share the fate of one lost packet.
pub const STREAMS_MAX: usize = 128;
/// Most streams that a caller may give up before they are decided about, less those that waited
/// for that.
pub const RESETS_MAX: u32 = 128;
/// What one stream carries in one turn when it is in bulk.
pub const BULK_BYTES: u32 = 512 * 1024;
const CREDIT_MAX: u32 = i32::MAX as u32;
