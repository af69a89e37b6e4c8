//! HTTP/2 as attackers write it: frames by hand, on a connection of their own.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// A connection's first octets, with settings that ask for nothing.
pub(super) fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()
}

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// Fields in HPACK, none indexed and none compressed.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(name, &mut block);
        text(value, &mut block);
    }
    block
}

pub(super) fn text(text: &str, onto: &mut Vec<u8>) {
    let mut left = text.len();
    if left < 127 {
        onto.push(u8::try_from(left).expect("below 127"));
    } else {
        onto.push(127);
        left -= 127;
        while left >= 128 {
            onto.push(u8::try_from(left % 128).expect("below 128") | 128);
            left /= 128;
        }
        onto.push(u8::try_from(left).expect("below 128"));
    }
    onto.extend_from_slice(text.as_bytes());
}

/// A whole request.
pub(super) fn request(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields))
}

/// What came back.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// The code of RST_STREAM, of GOAWAY.
    pub(super) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        let octets = self.payload.get(at..at + 4).and_then(|four| four.first_chunk::<4>());
        octets.map_or(u32::MAX, |four| u32::from_be_bytes(*four))
    }

    /// The status of an answer's head, which stands first in it.
    pub(super) fn status(&self) -> u16 {
        match self.payload[..] {
            // The static table has some.
            [index @ 0x88..=0x8e, ..] => {
                [200, 204, 206, 304, 400, 404, 500][usize::from(index) - 0x88]
            }
            // Any other is three digits in Huffman's code, 17 or 18 bits of three octets.
            [0x48, 0x83, a, b, c, ..] => {
                let bits = u32::from_be_bytes([a, b, c, 0]);
                let mut at = 0;
                (0..3).fold(0, |status, _| {
                    let rest = bits << at;
                    let short = rest >> 27;
                    let (digit, length) =
                        if short < 3 { (short, 5) } else { ((rest >> 26) - 0x16, 6) };
                    at += length;
                    status * 10 + u16::try_from(digit).expect("a digit")
                })
            }
            _ => 0,
        }
    }
}

/// The next frame; none at the connection's end.
pub(super) async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Option<Frame> {
    let reading = async {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("24 bits")];
        stream.read_exact(&mut payload).await?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        io::Result::Ok(Frame { kind: head[3], flags: head[4], stream, payload })
    };
    let read = tokio::time::timeout(Duration::from_secs(30), reading).await;
    read.expect("a frame, or the connection's end, within 30 s").ok()
}

/// Writes `octets` over and over until the other side ends the connection, at most `count` times,
/// and reads all the while. What came back until it ended.
pub(super) async fn flood(
    stream: impl AsyncRead + AsyncWrite,
    first: &[u8],
    count: u32,
    octets: impl Fn(u32) -> Vec<u8>,
) -> Vec<Frame> {
    let (mut reader, mut writer) = tokio::io::split(Box::pin(stream));
    let writing = async {
        writer.write_all(first).await?;
        // Each write is a batch, as a flood is.
        for from in (0..count).step_by(50) {
            let batch: Vec<u8> = (from..(from + 50).min(count)).flat_map(&octets).collect();
            writer.write_all(&batch).await?;
            writer.flush().await?;
        }
        io::Result::Ok(())
    };
    let reading = async {
        let mut frames = Vec::new();
        while let Some(frame) = next(&mut reader).await {
            let is_last = frame.kind == GOAWAY;
            frames.push(frame);
            if is_last {
                break;
            }
        }
        frames
    };
    tokio::pin!(reading);
    tokio::select! {
        frames = &mut reading => frames,
        // What was said before it ended may still be there.
        Err(_) = writing => reading.await,
    }
}
