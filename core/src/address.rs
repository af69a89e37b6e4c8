//! Addresses on one host: where applications listen, and where they are listened for.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// The path of a Unix socket: absolute, without steps that lead elsewhere, and short enough for
/// the kernel.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SocketPath(Arc<str>);

/// Why a text is not the path of a socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidSocketPath {
    /// It is relative, or ends like a folder.
    #[error("use the socket's absolute path, such as /run/app/app.sock")]
    NotAbsolute,
    /// It is too long for the kernel.
    #[error("it is longer than {SOCKET_PATH_OCTETS_MAX} octets, the most that the kernel takes")]
    TooLong,
    /// It has a segment that is empty, `.` or `..`.
    #[error("it has an empty, . or .. segment: write the path without them")]
    Step,
    /// It has a control character.
    #[error("it has a control character")]
    Control,
}

impl SocketPath {
    /// The path's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SocketPath {
    type Err = InvalidSocketPath;

    fn from_str(text: &str) -> Result<Self, InvalidSocketPath> {
        let Some(segments) = text.strip_prefix('/').filter(|rest| !rest.ends_with('/')) else {
            return Err(InvalidSocketPath::NotAbsolute);
        };
        if text.len() > SOCKET_PATH_OCTETS_MAX {
            return Err(InvalidSocketPath::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(InvalidSocketPath::Control);
        }
        if segments.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return Err(InvalidSocketPath::Step);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for SocketPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where something on this host listens.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Address {
    /// At an IP address and a TCP port.
    Tcp(SocketAddr),
    /// At a Unix socket.
    Unix(SocketPath),
}

impl Address {
    /// The IP address and port; none for a Unix socket.
    pub const fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<SocketPath> for Address {
    fn from(path: SocketPath) -> Self {
        Self::Unix(path)
    }
}

impl fmt::Display for Address {
    /// `unix:` stands before a path, which no host can be called.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `sun_path` has room for 108, and the last is a zero.
const SOCKET_PATH_OCTETS_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_one_socket_is_a_path() {
        let long = |octets: usize| format!("/{}", "x".repeat(octets - 1));
        let cases = [
            ("/run/app/app.sock", Ok(()), "a path"),
            ("/run/a b:c.sock", Ok(()), "files may be called so"),
            ("app.sock", Err(InvalidSocketPath::NotAbsolute), "relative to what?"),
            ("", Err(InvalidSocketPath::NotAbsolute), "nothing"),
            ("@abstract", Err(InvalidSocketPath::NotAbsolute), "it has no mode"),
            ("/run/app/", Err(InvalidSocketPath::NotAbsolute), "a folder"),
            ("/", Err(InvalidSocketPath::Step), "the root"),
            ("/run/../etc/x", Err(InvalidSocketPath::Step), "it leads elsewhere"),
            ("/run/./x", Err(InvalidSocketPath::Step), "two spellings of one"),
            ("/run//x", Err(InvalidSocketPath::Step), "two spellings of one"),
            ("/run/\n", Err(InvalidSocketPath::Control), "a line break"),
            (&long(107), Ok(()), "the most"),
            (&long(108), Err(InvalidSocketPath::TooLong), "no room for the zero"),
        ];
        for (text, expected, why) in cases {
            assert_eq!(text.parse::<SocketPath>().map(|_| ()), expected, "{text:?}: {why}");
        }
    }
}
