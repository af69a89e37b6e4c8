//! Unix sockets: bound with their mode before anybody can connect, and stale ones cleared away.
//!
//! A connection over one is carried in a [`TcpStream`]: what the proxy asks of it (read, write,
//! peek, shut down) are calls of sockets and not of TCP, and the rest of the way need not know.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use hawser_core::address::SocketPath;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Which file a socket was bound to: its device and inode.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct File(u64, u64);

impl File {
    /// The socket that stands at `path` now; none where nothing or something else does.
    pub(crate) fn at(path: &SocketPath) -> Option<Self> {
        let found = fs::symlink_metadata(path.as_str()).ok()?;
        found.file_type().is_socket().then(|| Self(found.dev(), found.ino()))
    }
}

/// Binds `path` with `mode`. A socket that nobody listens on any more is replaced.
///
/// # Errors
/// The system's; and where something else stands there: that is never removed.
pub(crate) fn bind(path: &SocketPath, mode: u32) -> io::Result<UnixListener> {
    clear(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path.as_str())?)?;
    // Nobody can connect before it listens, and by then its mode holds.
    let listening = set_mode(path, mode).and_then(|()| socket.listen(BACKLOG));
    if let Err(error) = listening {
        let _ = fs::remove_file(path.as_str());
        return Err(error);
    }
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

/// Gives the socket at `path` another mode.
///
/// # Errors
/// The system's.
pub(crate) fn set_mode(path: &SocketPath, mode: u32) -> io::Result<()> {
    fs::set_permissions(path.as_str(), Permissions::from_mode(mode))
}

/// Removes `file` from `path`, if that is what stands there still.
pub(crate) fn remove(path: &SocketPath, file: File) {
    if File::at(path) == Some(file)
        && let Err(error) = fs::remove_file(path.as_str())
    {
        tracing::warn!(%path, %error, "a socket that nobody listens on any more stays");
    }
}

/// Removes a socket that nobody listens on.
fn clear(path: &SocketPath) -> io::Result<()> {
    let found = match fs::symlink_metadata(path.as_str()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        let why = "the file that stands there is no socket: remove it or choose another path";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    match call(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path.as_str())
        }
        // It listens, and may be too busy to answer.
        Ok(_) | Err(_) => {
            let why = "another process listens there: stop it or choose another path";
            Err(io::Error::new(io::ErrorKind::AddrInUse, why))
        }
    }
}

/// Connects to the application that listens at `path`, within `within`.
///
/// # Errors
/// The system's, or [`io::ErrorKind::TimedOut`] where its queue stays full.
pub(crate) async fn connect(path: &SocketPath, within: Duration) -> io::Result<TcpStream> {
    let deadline = Instant::now() + within;
    loop {
        match call(path) {
            Ok(socket) => return TcpStream::from_std(socket.into()),
            // Unlike TCP, the kernel tells nobody when there is room again.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() + AGAIN_AFTER > deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Calls whoever listens at `path`; it is known at once whether anybody does.
fn call(path: &SocketPath) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path.as_str())?)?;
    Ok(socket)
}

/// A connection that does not block, as the rest of the proxy carries it.
///
/// # Errors
/// The system's.
pub(crate) fn carried(stream: UnixStream) -> io::Result<TcpStream> {
    TcpStream::from_std(OwnedFd::from(stream).into())
}

const BACKLOG: i32 = 1_024;
const AGAIN_AFTER: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn path(folder: &tempfile::TempDir, name: &str) -> SocketPath {
        let path = folder.path().join(name);
        path.to_str().expect("printable").parse().expect("a path")
    }

    #[test]
    fn what_stands_at_a_path_is_replaced_only_where_nobody_listens() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = path(&folder, "a.sock");
        let first = bind(&at, 0o640).expect("nothing is there");
        let mode = fs::metadata(at.as_str()).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o640);
        let refused = bind(&at, 0o640).expect_err("it is served").to_string();
        assert!(refused.contains("another process listens"), "{refused}");
        let file = File::at(&at).expect("a socket");
        drop(first);
        let again = bind(&at, 0o600).expect("nobody listens any more");
        assert_eq!(again.local_addr().expect("bound").as_pathname(), Some(at.as_str().as_ref()));

        let stays = File::at(&at).expect("a socket");
        if stays != file {
            remove(&at, file);
            assert!(File::at(&at).is_some(), "another's stays");
        }
        remove(&at, stays);
        assert_eq!(File::at(&at), None);

        fs::write(at.as_str(), "precious").expect("written");
        let refused = bind(&at, 0o600).expect_err("it is a file").to_string();
        assert!(refused.contains("no socket"), "{refused}");
        remove(&at, stays);
        assert_eq!(fs::read_to_string(at.as_str()).expect("there"), "precious");
        std::os::unix::fs::symlink(at.as_str(), path(&folder, "link").as_str()).expect("linked");
        let refused = bind(&path(&folder, "link"), 0o600).expect_err("it is a link").to_string();
        assert!(refused.contains("no socket"), "{refused}");
        assert!(bind(&path(&folder, "missing/a.sock"), 0o600).is_err(), "there is no such folder");
    }

    #[tokio::test]
    async fn connections_carry_bytes_both_ways_and_end_apart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = path(&folder, "a.sock");
        let within = Duration::from_secs(5);
        assert!(connect(&at, within).await.is_err(), "nobody listens");
        let listener = bind(&at, 0o600).expect("bound");
        let mut caller = connect(&at, within).await.expect("it listens");
        let (called, _) = listener.accept().expect("it called");
        called.set_nonblocking(true).expect("set");
        let mut called = carried(called).expect("a socket");
        caller.write_all(b"question").await.expect("open");
        caller.shutdown().await.expect("open");
        let mut first = [0; 3];
        assert_eq!(called.peek(&mut first).await.expect("something came"), 3);
        let mut question = String::new();
        called.read_to_string(&mut question).await.expect("it ends");
        called.write_all(b"answer").await.expect("still open this way");
        drop(called);
        let mut answer = String::new();
        caller.read_to_string(&mut answer).await.expect("it ends");
        assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    }
}
