//! Bodies as they arrive: so many bytes, chunks (RFC 9112 §7.1), or all until the end.

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;

use crate::fault::Fault;
use crate::head::{self, Framing, Scan};
use crate::limits::{CHUNK_LINE_BYTES_MAX, EXTENSION_BYTES_MAX, Limits};

/// Where in a body the reading stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Decoder {
    /// It has ended, or there was none.
    Done,
    /// So many bytes are left.
    Length(u64),
    /// Somewhere between chunks or in one.
    Chunked(Chunked),
    /// It ends with the connection.
    UntilClose,
    /// It was broken off: what is left of it never comes.
    Cut,
}

/// Where in a chunked body the reading stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunked {
    place: Place,
    extension_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Size,
    Data(u64),
    DataEnd,
    Trailers(Scan),
}

/// What the bytes at hand amount to.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Piece {
    /// Bytes of the body.
    Data(Bytes),
    /// The fields after it; the body has ended.
    Trailers(HeaderMap),
    /// The body has ended.
    End,
    /// More must arrive; up to so many bytes are known to come.
    More(usize),
}

impl From<Framing> for Decoder {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Empty => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked { place: Place::Size, extension_bytes: 0 }),
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

impl Decoder {
    pub(crate) const fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// How many bytes are left, where that is known.
    pub(crate) const fn left(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose | Self::Cut => None,
        }
    }

    /// Takes the next piece of the body out of `input`.
    ///
    /// # Errors
    /// The [`Fault`] in it.
    pub(crate) fn decode(&mut self, input: &mut BytesMut, limits: &Limits) -> Result<Piece, Fault> {
        match self {
            Self::Done => Ok(Piece::End),
            Self::Cut => Ok(Piece::More(1)),
            Self::Length(left) => {
                let Some(data) = take(input, left) else { return Ok(Piece::More(room(*left))) };
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Piece::Data(data))
            }
            Self::UntilClose if input.is_empty() => Ok(Piece::More(usize::MAX)),
            Self::UntilClose => Ok(Piece::Data(input.split().freeze())),
            Self::Chunked(chunked) => {
                let piece = chunked.decode(input, limits)?;
                // Its end has often arrived with it: then it is known at once.
                let is_over = match &piece {
                    Piece::Data(_) if matches!(chunked.place, Place::DataEnd) => {
                        let is_over = input.starts_with(LAST);
                        input.advance(if is_over { LAST.len() } else { 0 });
                        is_over
                    }
                    Piece::Trailers(_) | Piece::End => true,
                    Piece::Data(_) | Piece::More(_) => false,
                };
                if is_over {
                    *self = Self::Done;
                }
                Ok(piece)
            }
        }
    }
}

impl Chunked {
    fn decode(&mut self, input: &mut BytesMut, limits: &Limits) -> Result<Piece, Fault> {
        loop {
            match &mut self.place {
                Place::Size => match self.size(input)? {
                    None => return Ok(Piece::More(1)),
                    Some(0) => self.place = Place::Trailers(Scan::default()),
                    Some(size) => self.place = Place::Data(size),
                },
                Place::Data(left) => {
                    let Some(data) = take(input, left) else {
                        return Ok(Piece::More(room(*left)));
                    };
                    if *left == 0 {
                        self.place = Place::DataEnd;
                    }
                    return Ok(Piece::Data(data));
                }
                Place::DataEnd => match &input[..] {
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        self.place = Place::Size;
                    }
                    [] | [b'\r'] => return Ok(Piece::More(1)),
                    _ => return Err(Fault::ChunkEnd),
                },
                Place::Trailers(scan) => {
                    let Some(end) = scan.end(input).map_err(|_| Fault::Trailer)? else {
                        if input.len() >= limits.head_bytes {
                            return Err(Fault::Trailer);
                        }
                        return Ok(Piece::More(1));
                    };
                    if end > limits.head_bytes {
                        return Err(Fault::Trailer);
                    }
                    let section = input.split_to(end).freeze();
                    if section.len() == 2 {
                        return Ok(Piece::End);
                    }
                    return Ok(Piece::Trailers(head::trailers(&section, limits)?));
                }
            }
        }
    }

    /// The size that begins a chunk; none while its line has not all arrived.
    fn size(&mut self, input: &mut BytesMut) -> Result<Option<u64>, Fault> {
        let seen = &input[..input.len().min(CHUNK_LINE_BYTES_MAX)];
        let Some(end) = memchr::memchr(b'\n', seen) else {
            // What cannot become a size is not waited for.
            let digits = seen.iter().take_while(|octet| octet.is_ascii_hexdigit()).count();
            return match seen.get(digits) {
                _ if digits > SIZE_DIGITS_MAX => Err(Fault::ChunkSize),
                None => Ok(None),
                Some(b';' | b'\r') if digits > 0 && seen.len() < CHUNK_LINE_BYTES_MAX => Ok(None),
                Some(b';') if digits > 0 => Err(Fault::ChunkExtension),
                Some(_) => Err(Fault::ChunkSize),
            };
        };
        let [line @ .., b'\r'] = &seen[..end] else { return Err(Fault::ChunkSize) };
        let digits = line.iter().take_while(|octet| octet.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        if !(1..=SIZE_DIGITS_MAX).contains(&digits) {
            return Err(Fault::ChunkSize);
        }
        match extension {
            [] => {}
            [b';', rest @ ..] => {
                let is_text = |octet: &u8| matches!(octet, b'\t' | b' '..=b'~' | 0x80..);
                self.extension_bytes += extension.len();
                if !rest.iter().all(is_text) || self.extension_bytes > EXTENSION_BYTES_MAX {
                    return Err(Fault::ChunkExtension);
                }
            }
            _ => return Err(Fault::ChunkSize),
        }
        let size = size.iter().fold(0_u64, |size, octet| {
            size << 4 | u64::from(char::from(*octet).to_digit(16).unwrap_or_default())
        });
        input.advance(end + 1);
        Ok(Some(size))
    }
}

/// What `input` has of the `left` bytes.
fn take(input: &mut BytesMut, left: &mut u64) -> Option<Bytes> {
    let count = input.len().min(room(*left));
    *left -= count as u64;
    (count > 0).then(|| input.split_to(count).freeze())
}

fn room(left: u64) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// What ends a chunked body without trailers.
const LAST: &[u8] = b"\r\n0\r\n\r\n";
/// An exabyte: no sum of these overflows.
const SIZE_DIGITS_MAX: usize = 15;
