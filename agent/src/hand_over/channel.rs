//! The channel between two processes: messages, each with the descriptors that it is about.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::{HandOverError, Message};

/// Waits at the socket `name` in `folder`. What stood there before is replaced.
pub(super) fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let _ = std::fs::remove_file(folder.join(name));
    let listener = within(folder, name, |path| UnixListener::bind(path))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Calls whoever waits there; nobody, where nobody does.
pub(super) fn connect(folder: &Path, name: &str) -> io::Result<Option<UnixStream>> {
    match within(folder, name, |path| UnixStream::connect(path)) {
        Ok(socket) => Ok(Some(socket)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Makes every wait on `socket` end after `patience`.
pub(super) fn be_patient(socket: &UnixStream, patience: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))
}

/// Checks that who is at the other end runs as the same user, or as root, and says its pid.
pub(super) fn peer(socket: &UnixStream) -> Result<u32, HandOverError> {
    let peer = socket_peercred(socket).map_err(io::Error::from)?;
    if peer.uid != rustix::process::geteuid() && !peer.uid.is_root() {
        return Err(HandOverError::Stranger(peer.uid.as_raw()));
    }
    Ok(peer.pid.as_raw_pid().unsigned_abs())
}

/// Sends `message` and at most [`DESCRIPTORS_MAX`] descriptors.
pub(super) fn send(
    mut socket: &UnixStream,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), HandOverError> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).map_err(|_| HandOverError::Unexpected)?;
    socket.write_all(&length.to_be_bytes())?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(HandOverError::Unexpected);
    }
    let parts = [IoSlice::new(&bytes)];
    let sent = rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)
        .map_err(io::Error::from)?;
    // The descriptors went with the first octet.
    Ok(socket.write_all(&bytes[sent..])?)
}

/// Receives one message and its descriptors.
pub(super) fn receive(mut socket: &UnixStream) -> Result<(Message, Vec<OwnedFd>), HandOverError> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if !(1..=MESSAGE_MAX).contains(&length) {
        return Err(HandOverError::Unexpected);
    }
    let mut bytes = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
        .map_err(io::Error::from)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            descriptors.extend(some);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(HandOverError::Unexpected);
    }
    socket.read_exact(&mut bytes[received.bytes..])?;
    let message = serde_json::from_slice(&bytes);
    Ok((message.map_err(|_| HandOverError::Unexpected)?, descriptors))
}

/// Does something at the path of `name` in `folder`, however long that is: a Unix socket's address
/// has room for 107 octets.
fn within<T>(folder: &Path, name: &str, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    act(Path::new(&format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())))
}

/// The kernel takes 253 in one message.
pub(super) const DESCRIPTORS_MAX: usize = 200;
/// Names of so many sockets, with room to spare.
const MESSAGE_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_message() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let long = folder.path().join("x".repeat(120));
        std::fs::create_dir(&long).expect("made");
        assert!(connect(&long, "s").expect("no error").is_none(), "nobody waits");
        let waiting = listen(&long, "s").expect("bound");
        let caller = connect(&long, "s").expect("no error").expect("somebody waits");
        waiting.set_nonblocking(false).expect("set");
        let (called, _) = waiting.accept().expect("it called");
        assert_eq!(peer(&called).expect("the same user"), std::process::id());
        let sent = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let message = Message::Sockets { names: vec!["proxy".to_owned()], more: false };
        send(&caller, &message, &[sent.as_fd()]).expect("sent");
        let (received, mut descriptors) = receive(&called).expect("received");
        assert_eq!(received, message);
        let received = std::net::TcpListener::from(descriptors.pop().expect("one"));
        assert_eq!(received.local_addr().expect("bound"), sent.local_addr().expect("bound"));
        drop(caller);
        assert!(matches!(receive(&called), Err(HandOverError::Io(_))), "the end is an error");
    }
}
