//! The side that takes over: asks the running agent for its sockets, and tells it once it serves.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{HandOverError, Message, SOCKET, Sockets, VERSION, channel};

/// What a running agent sent.
pub(crate) struct Taken {
    /// The sockets.
    pub(crate) sockets: Sockets,
    /// To call [`ready`] with.
    pub(crate) connection: UnixStream,
}

/// Asks the agent that runs in `folder` for its sockets; none where none runs.
///
/// # Errors
/// [`HandOverError`] when it runs and does not give them. It goes on then.
pub(crate) fn take(folder: &Path) -> Result<Option<Taken>, HandOverError> {
    let Some(connection) = channel::connect(folder, SOCKET)? else { return Ok(None) };
    channel::peer(&connection)?;
    channel::be_patient(&connection, PATIENCE)?;
    channel::send(&connection, &Message::Ask { version: VERSION }, &[])?;
    let mut sockets = Sockets::default();
    loop {
        let (names, descriptors, more) = match channel::receive(&connection)? {
            (Message::Sockets { names, more }, descriptors) => (names, descriptors, more),
            (Message::Refused { why }, _) => return Err(HandOverError::Refused(why)),
            _ => return Err(HandOverError::Unexpected),
        };
        if names.len() != descriptors.len() {
            return Err(HandOverError::Unexpected);
        }
        for (name, socket) in names.iter().zip(descriptors) {
            sockets.take(name, socket);
        }
        if !more {
            return Ok(Some(Taken { sockets, connection }));
        }
    }
}

/// Says that this process serves, and waits until the other speaks for the node no more.
///
/// # Errors
/// [`HandOverError`] when the other cannot be told, or waits for another successor already: then it
/// still serves, and this one must not.
pub(crate) fn ready(connection: &UnixStream, folder: &Path) -> Result<(), HandOverError> {
    channel::send(connection, &Message::Ready, &[])?;
    match channel::receive(connection) {
        Ok((Message::Leaving, _)) => Ok(()),
        Ok(_) => Err(HandOverError::Unexpected),
        // It stopped waiting for this one, and went back to serve.
        Err(why) if channel::connect(folder, SOCKET)?.is_some() => Err(why),
        // It was told, or it is gone: either way it does not speak for long.
        Err(why) => {
            tracing::warn!(%why, "the agent before this one did not say that it leaves");
            Ok(())
        }
    }
}

/// The other finishes what its API was asked before it answers.
const PATIENCE: Duration = Duration::from_secs(15);
