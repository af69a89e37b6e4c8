//! The side that gives way: waits for a successor, sends it the sockets, and learns when it serves.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;

use super::{HandOverError, Message, SOCKET, Sockets, VERSION, channel};

/// Where successors ask.
pub(crate) struct Offer(UnixListener);

/// A process that has asked to take over, and nothing more yet.
pub(crate) struct Asker {
    connection: UnixStream,
    pid: u32,
}

/// A process that serves in this one's place.
pub(crate) struct Successor {
    connection: UnixStream,
    /// Its process.
    pub(crate) pid: u32,
}

impl Offer {
    /// Begins to wait in `folder`.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self(UnixListener::from_std(channel::listen(folder, SOCKET)?)?))
    }

    /// The next process that asks.
    ///
    /// # Errors
    /// [`HandOverError`]; the one after may do better.
    pub(crate) async fn next(&self) -> Result<Asker, HandOverError> {
        let (connection, _) = self.0.accept().await?;
        let connection = connection.into_std()?;
        connection.set_nonblocking(false)?;
        blocking(move || {
            let pid = channel::peer(&connection)?;
            channel::be_patient(&connection, ASKS_WITHIN)?;
            match channel::receive(&connection)? {
                (Message::Ask { version: VERSION }, _) => Ok(Asker { connection, pid }),
                (Message::Ask { version }, _) => {
                    let why = format!("it hands over by version {VERSION}, not {version}");
                    channel::send(&connection, &Message::Refused { why }, &[])?;
                    Err(HandOverError::Unexpected)
                }
                _ => Err(HandOverError::Unexpected),
            }
        })
        .await
    }
}

impl Asker {
    /// Tells it that it will not take over now, and why.
    pub(crate) async fn refuse(self, why: String) {
        let Self { connection, .. } = self;
        let refused = Message::Refused { why };
        let told = blocking(move || channel::send(&connection, &refused, &[])).await;
        if let Err(why) = told {
            tracing::debug!(%why, "the successor was not told that it is refused");
        }
    }

    /// Sends it `sockets` and waits until it serves from them.
    ///
    /// # Errors
    /// [`HandOverError`] when it does not get there.
    pub(crate) async fn give(self, sockets: Sockets) -> Result<Successor, HandOverError> {
        let Self { connection, pid } = self;
        blocking(move || {
            let named = sockets.named();
            let mut left = named.chunks(channel::DESCRIPTORS_MAX).peekable();
            while let Some(some) = left.next() {
                let names = some.iter().map(|(name, _)| name.clone()).collect();
                let sockets: Vec<BorrowedFd<'_>> = some.iter().map(|(_, socket)| *socket).collect();
                let message = Message::Sockets { names, more: left.peek().is_some() };
                channel::send(&connection, &message, &sockets)?;
            }
            channel::be_patient(&connection, READY_WITHIN)?;
            match channel::receive(&connection)? {
                (Message::Ready, _) => Ok(Successor { connection, pid }),
                _ => Err(HandOverError::Unexpected),
            }
        })
        .await
    }
}

impl Successor {
    /// Tells it that it alone speaks for the node now.
    pub(crate) fn leave(self) {
        if let Err(why) = channel::send(&self.connection, &Message::Leaving, &[]) {
            // It goes on by itself after a while.
            tracing::warn!(%why, "the successor was not told that this process leaves");
        }
    }
}

async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, HandOverError> + Send + 'static,
) -> Result<T, HandOverError> {
    let done = tokio::task::spawn_blocking(act).await;
    done.unwrap_or_else(|panicked| Err(io::Error::other(panicked).into()))
}

const ASKS_WITHIN: Duration = Duration::from_secs(2);
/// It reads a disk, no more; but that may be on a machine that is just as busy as it can be.
const READY_WITHIN: Duration = Duration::from_secs(30);
