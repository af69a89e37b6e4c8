//! Frames: eight bytes that say what and for which stream, and what follows them.
//!
//! | byte | |
//! |---|---|
//! | 0 | kind |
//! | 1 | code: a verdict, a reason, or a flag; 0 where the kind has none |
//! | 2–3 | how many bytes follow the header, big-endian |
//! | 4–7 | the stream, big-endian; 0 for frames of the whole connection |

use std::num::NonZeroU32;

/// One stream of a connection. The caller counts up from 1; no number is used twice.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct StreamId(NonZeroU32);

impl StreamId {
    pub(crate) fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// Its number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// What a peer did that no sound peer does. It ends the session.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
pub enum Violation {
    /// No frame that this version knows, or one with a field that must be 0.
    #[error("the peer sent a malformed frame")]
    Malformed,
    /// A frame that the peer may not send now, or never.
    #[error("the peer sent a frame out of turn")]
    OutOfTurn,
    /// A frame for a stream that nobody opened.
    #[error("the peer named a stream that was never opened")]
    UnknownStream,
    /// A stream was opened under a number that was used before.
    #[error("the peer opened a stream under a number that was used before")]
    ReusedStream,
    /// More than [`crate::STREAMS_MAX`] streams at once.
    #[error("the peer opened too many streams")]
    TooManyStreams,
    /// More bytes than there was credit for.
    #[error("the peer sent more than it had credit for")]
    CreditExceeded,
    /// More credit than a window can be.
    #[error("the peer gave more credit than there is")]
    CreditOverflow,
    /// More than [`crate::RESETS_MAX`] streams were given up before their verdict.
    #[error("the peer opened and gave up too many streams")]
    ResetFlood,
    /// It asked again before it was answered.
    #[error("the peer asks without waiting for an answer")]
    PingFlood,
}

impl Violation {
    /// Its code in a frame that says goodbye; 0 there is a departure in peace.
    pub const fn code(self) -> u8 {
        match self {
            Self::Malformed => 1,
            Self::OutOfTurn => 2,
            Self::UnknownStream => 3,
            Self::ReusedStream => 4,
            Self::TooManyStreams => 5,
            Self::CreditExceeded => 6,
            Self::CreditOverflow => 7,
            Self::ResetFlood => 8,
            Self::PingFlood => 9,
        }
    }
}

/// One frame; of DATA only what stands before the bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Frame {
    /// The caller asks for a stream.
    Open { stream: StreamId },
    /// The callee accepts it with 0, or says why not.
    Verdict { stream: StreamId, code: u8 },
    /// So many bytes follow. `is_starved`: they took the last credit.
    Data { stream: StreamId, length: u16, is_starved: bool },
    /// So many bytes more may be sent.
    Window { stream: StreamId, credit: NonZeroU32 },
    /// No bytes follow in this direction.
    Finish { stream: StreamId },
    /// The stream is over, in both directions.
    Reset { stream: StreamId, code: u8 },
    /// Asks for a [`Frame::Pong`] with the same token.
    Ping { token: u32 },
    /// The answer.
    Pong { token: u32 },
    /// No more streams, please: 0 in peace, or the code of a [`Violation`].
    Leave { code: u8 },
}

impl Frame {
    /// Writes it to the beginning of `out`, and answers how long it is; none without room.
    pub(crate) fn encode(self, out: &mut [u8]) -> Option<usize> {
        let (kind, code, stream, length, rest) = match self {
            Self::Open { stream } => (OPEN, 0, stream.get(), 0, None),
            Self::Verdict { stream, code } => (VERDICT, code, stream.get(), 0, None),
            Self::Data { stream, length, is_starved } => {
                (DATA, u8::from(is_starved), stream.get(), length, None)
            }
            Self::Window { stream, credit } => (WINDOW, 0, stream.get(), 4, Some(credit.get())),
            Self::Finish { stream } => (FINISH, 0, stream.get(), 0, None),
            Self::Reset { stream, code } => (RESET, code, stream.get(), 0, None),
            Self::Ping { token } => (PING, 0, 0, 4, Some(token)),
            Self::Pong { token } => (PONG, 0, 0, 4, Some(token)),
            Self::Leave { code } => (LEAVE, code, 0, 0, None),
        };
        let [high, low] = length.to_be_bytes();
        let [a, b, c, d] = stream.to_be_bytes();
        *out.first_chunk_mut()? = [kind, code, high, low, a, b, c, d];
        let Some(rest) = rest else { return Some(HEADER_BYTES) };
        *out.get_mut(HEADER_BYTES..)?.first_chunk_mut()? = rest.to_be_bytes();
        Some(CONTROL_BYTES)
    }

    /// Reads the frame that `bytes` begin with, and how many they are; none while some are
    /// missing.
    ///
    /// # Errors
    /// [`Violation::Malformed`]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let Some((&[kind, code, high, low, a, b, c, d], rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let length = u16::from_be_bytes([high, low]);
        let number = u32::from_be_bytes([a, b, c, d]);
        let has_stream = !matches!(kind, PING | PONG | LEAVE);
        let (has_code, follow) = match kind {
            OPEN | FINISH => (false, Some(0)),
            VERDICT | RESET | LEAVE => (true, Some(0)),
            DATA => (code <= 1, None),
            WINDOW | PING | PONG => (false, Some(4)),
            _ => return Err(Violation::Malformed),
        };
        let is_sound = (has_code || code == 0)
            && follow.map_or(length > 0, |follow| length == follow)
            && has_stream == (number > 0);
        if !is_sound {
            return Err(Violation::Malformed);
        }
        let argument = match follow {
            Some(4) => match rest.first_chunk() {
                Some(argument) => u32::from_be_bytes(*argument),
                None => return Ok(None),
            },
            _ => 0,
        };
        let used = if follow == Some(4) { CONTROL_BYTES } else { HEADER_BYTES };
        let frame = match (kind, StreamId::new(number)) {
            (PING, _) => Self::Ping { token: argument },
            (PONG, _) => Self::Pong { token: argument },
            (LEAVE, _) => Self::Leave { code },
            (_, None) => return Err(Violation::Malformed),
            (OPEN, Some(stream)) => Self::Open { stream },
            (VERDICT, Some(stream)) => Self::Verdict { stream, code },
            (DATA, Some(stream)) => Self::Data { stream, length, is_starved: code == 1 },
            (FINISH, Some(stream)) => Self::Finish { stream },
            (RESET, Some(stream)) => Self::Reset { stream, code },
            (_, Some(stream)) => {
                let credit = NonZeroU32::new(argument).ok_or(Violation::Malformed)?;
                Self::Window { stream, credit }
            }
        };
        Ok(Some((frame, used)))
    }
}

/// What stands before the bytes of a frame.
pub const HEADER_BYTES: usize = 8;
/// The longest frame that carries no bytes of a stream.
pub const CONTROL_BYTES: usize = 12;
/// Most bytes of a stream in one frame: with its header, four full TLS records.
pub const DATA_BYTES_MAX: usize = 64 * 1024 - HEADER_BYTES;

const OPEN: u8 = 1;
const VERDICT: u8 = 2;
const DATA: u8 = 3;
const WINDOW: u8 = 4;
const FINISH: u8 = 5;
const RESET: u8 = 6;
const PING: u8 = 7;
const PONG: u8 = 8;
const LEAVE: u8 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let stream = StreamId::new(0x0102_0304).expect("not 0");
        let credit = NonZeroU32::new(70_000).expect("not 0");
        let cases = [
            Frame::Open { stream },
            Frame::Verdict { stream, code: 0 },
            Frame::Verdict { stream, code: 255 },
            Frame::Data { stream, length: 1, is_starved: false },
            Frame::Data { stream, length: u16::MAX, is_starved: true },
            Frame::Window { stream, credit },
            Frame::Finish { stream },
            Frame::Reset { stream, code: 7 },
            Frame::Ping { token: 0 },
            Frame::Pong { token: u32::MAX },
            Frame::Leave { code: 0 },
        ];
        for frame in cases {
            let mut bytes = [0xff; CONTROL_BYTES + 1];
            let length = frame.encode(&mut bytes).expect("room");
            for cut in 0..length {
                assert_eq!(Frame::decode(&bytes[..cut]), Ok(None), "{frame:?}, {cut} bytes");
                assert_eq!(frame.encode(&mut { bytes }[..cut]), None, "{frame:?}");
            }
            assert_eq!(Frame::decode(&bytes), Ok(Some((frame, length))), "{frame:?}");
        }
    }

    #[test]
    fn what_no_sound_peer_sends_is_refused() {
        let cases: &[(&[u8], &str)] = &[
            (&[0, 0, 0, 0, 0, 0, 0, 1], "kind 0"),
            (&[10, 0, 0, 0, 0, 0, 0, 1], "a kind that is not known"),
            (&[OPEN, 0, 0, 0, 0, 0, 0, 0], "a stream 0"),
            (&[OPEN, 1, 0, 0, 0, 0, 0, 1], "a code where there is none"),
            (&[OPEN, 0, 0, 1, 0, 0, 0, 1], "bytes where there are none"),
            (&[VERDICT, 0, 0, 4, 0, 0, 0, 1], "a verdict with more"),
            (&[DATA, 2, 0, 1, 0, 0, 0, 1], "a flag that is not known"),
            (&[DATA, 0, 0, 0, 0, 0, 0, 1], "no bytes"),
            (&[WINDOW, 0, 0, 3, 0, 0, 0, 1], "three bytes of credit"),
            (&[WINDOW, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0], "no credit"),
            (&[PING, 0, 0, 4, 0, 0, 0, 1], "a ping for a stream"),
            (&[LEAVE, 0, 0, 0, 0, 0, 0, 9], "a goodbye for a stream"),
            (&[FINISH, 3, 0, 0, 0, 0, 0, 1], "an end with a code"),
            (b"GET / HT", "another protocol"),
            (&[22, 3, 1, 2, 0, 1, 0, 1], "TLS in TLS"),
        ];
        for (bytes, why) in cases {
            assert_eq!(Frame::decode(bytes), Err(Violation::Malformed), "{why}");
        }
    }
}
