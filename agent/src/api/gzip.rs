//! Replies in gzip, for clients that ask for it.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt as _, Full};

use super::Reply;

/// Whether a client takes gzip.
pub(super) fn is_wanted(headers: &HeaderMap) -> bool {
    let offered = headers.get_all(header::ACCEPT_ENCODING).iter();
    offered.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|one| {
        let (name, parameters) = one.split_once(';').unwrap_or((one, ""));
        let is_gzip = matches!(name.trim(), "gzip" | "x-gzip" | "*");
        let quality = parameters.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
        is_gzip && quality.is_ok_and(|quality| quality > 0.0)
    })
}

/// The same reply, smaller; as it is where that would not help.
pub(super) async fn compressed(reply: Reply) -> Reply {
    let (mut head, body) = reply.into_parts();
    // A body in memory is there at once.
    let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes);
    head.headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    if body.len() < WORTH_IT || head.headers.contains_key(header::CONTENT_ENCODING) {
        return Reply::from_parts(head, Full::new(body));
    }
    let packed = match body.len() < AT_ONCE {
        true => pack(&body),
        false => {
            let body = body.clone();
            tokio::task::spawn_blocking(move || pack(&body)).await.ok().flatten()
        }
    };
    let body = match packed {
        Some(packed) => {
            head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            head.headers.remove(header::CONTENT_LENGTH);
            packed
        }
        None => body,
    };
    Reply::from_parts(head, Full::new(body))
}

fn pack(body: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// Smaller bodies fit one packet anyway.
const WORTH_IT: usize = 1024;
/// Larger bodies take milliseconds, which other connections of the thread should not wait.
const AT_ONCE: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn who_asks_for_gzip_gets_it() {
        for (offered, expected) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("br, deflate", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(offered));
            assert_eq!(is_wanted(&headers), expected, "{offered:?}");
        }
        assert!(!is_wanted(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn what_is_worth_it_is_packed() {
        for (length, is_packed) in [(10, false), (5_000, true), (500_000, true)] {
            let body = vec![b'a'; length];
            let reply = compressed(Reply::new(Full::new(Bytes::from(body.clone())))).await;
            let encoding = reply.headers().get(header::CONTENT_ENCODING).cloned();
            assert_eq!(encoding.is_some(), is_packed, "{length}");
            let sent = reply.into_body().collect().await.expect("in memory").to_bytes();
            let mut read = Vec::new();
            match is_packed {
                true => {
                    assert!(sent.len() < length / 10);
                    flate2::read::GzDecoder::new(&sent[..]).read_to_end(&mut read).expect("gzip");
                }
                false => read.extend_from_slice(&sent),
            }
            assert_eq!(read, body);
        }
    }
}
