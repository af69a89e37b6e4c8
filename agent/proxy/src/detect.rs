//! Detection: what an application speaks to an upstream whose protocol nobody stated.
//!
//! A fallback, and asked for (`Protocol` `auto`). It only looks: what it has seen is still read by
//! whoever serves the connection. What is no request is bytes, and bytes are refused at the callee
//! where an intention decides about requests.

use std::io;
use std::time::Duration;

use hawser_core::catalog::Protocol;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

/// What is spoken on `socket`, by what its application says first. One that says nothing within
/// `within` waits for the other side to speak: bytes.
///
/// # Errors
/// The connection broke.
pub(crate) async fn detect(socket: &TcpStream, within: Duration) -> io::Result<Protocol> {
    let deadline = Instant::now() + within;
    let mut first = [0; PREFACE.len()];
    loop {
        let Ok(peeked) = timeout_at(deadline, socket.peek(&mut first)).await else {
            return Ok(Protocol::Tcp);
        };
        let count = peeked?;
        if let Some(spoken) = spoken(&first[..count]) {
            return Ok(spoken);
        }
        if count == 0 || Instant::now() + LOOK_AGAIN_AFTER > deadline {
            return Ok(Protocol::Tcp);
        }
        // What is there already stays readable, so nothing tells when there is more.
        sleep(LOOK_AGAIN_AFTER).await;
    }
}

/// What begins with `first`; none where that is too little to tell.
fn spoken(first: &[u8]) -> Option<Protocol> {
    if first.starts_with(PREFACE) {
        return Some(Protocol::Http2);
    }
    if PREFACE.starts_with(first) {
        return None;
    }
    for method in METHODS {
        let Some(rest) = first.strip_prefix(method.as_bytes()) else {
            if method.as_bytes().starts_with(first) {
                return None;
            }
            continue;
        };
        return match rest {
            [] | [b' '] => None,
            // A path, an address of one's own, or all of the server (RFC 9112 §3.2).
            [b' ', b'/' | b'h' | b'*', ..] => Some(Protocol::Http),
            _ => Some(Protocol::Tcp),
        };
    }
    Some(Protocol::Tcp)
}

/// What a client of HTTP/2 says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Those of RFC 9110 §9 and RFC 5789 but CONNECT, which is refused in any case.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"];
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_first_bytes_tell_what_is_spoken() {
        let cases: [(&[u8], Option<Protocol>, &str); 17] = [
            (b"", None, "nothing yet"),
            (b"G", None, "GET, perhaps"),
            (b"GET", None, "and then?"),
            (b"GET ", None, "and then?"),
            (b"GET / HTTP/1.1\r\n", Some(Protocol::Http), "a request"),
            (b"POST http://api/x HTTP/1.1", Some(Protocol::Http), "to a proxy"),
            (b"OPTIONS * HTTP/1.1", Some(Protocol::Http), "of the whole server"),
            (b"P", None, "PUT, POST, PATCH or PRI"),
            (b"PRI * HTTP/2.0\r\n", None, "not all of it"),
            (PREFACE, Some(Protocol::Http2), "the preface"),
            (b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", Some(Protocol::Tcp), "no preface"),
            (b"GETTER /", Some(Protocol::Tcp), "no method"),
            (b"GET key\r\n", Some(Protocol::Tcp), "redis, by hand"),
            (b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Tcp), "redis"),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Some(Protocol::Tcp), "PostgreSQL"),
            (b"\x16\x03\x01", Some(Protocol::Tcp), "TLS of the application's own"),
            (b"get / HTTP/1.1", Some(Protocol::Tcp), "methods are told apart by case"),
        ];
        for (first, expected, why) in cases {
            assert_eq!(spoken(first), expected, "{why}");
        }
    }

    #[tokio::test]
    async fn who_waits_to_be_spoken_to_is_not_waited_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let within = Duration::from_millis(50);
        for (says, expected) in [
            (&b""[..], Protocol::Tcp),
            (b"PRI * HT", Protocol::Tcp),
            (b"GET / HTTP/1.1\r\n", Protocol::Http),
        ] {
            let mut client = TcpStream::connect(address).await.expect("listening");
            let (socket, _) = listener.accept().await.expect("it called");
            client.write_all(says).await.expect("open");
            assert_eq!(detect(&socket, within).await.expect("open"), expected);
            if !says.is_empty() {
                let peeked = socket.peek(&mut [0; 64]).await.expect("open");
                assert_eq!(peeked, says.len(), "it only looked");
            }
            drop(client);
        }
        let gone = TcpStream::connect(address).await.expect("listening");
        let (socket, _) = listener.accept().await.expect("it called");
        drop(gone);
        let end = detect(&socket, Duration::from_secs(60)).await.expect("an end");
        assert_eq!(end, Protocol::Tcp, "an end is an end");
    }
}
