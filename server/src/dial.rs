//! Channels to other servers, kept by address and purpose.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hawser_proto::Member;
use hawser_proto::v1::raft_client::RaftClient;
use rustls::ClientConfig;
use tonic::transport::{Channel, Error};

use crate::tls;

/// Dials other servers. Clones share their channels.
#[derive(Clone)]
pub(crate) struct Dialer {
    config: Arc<ClientConfig>,
    channels: Arc<Mutex<HashMap<(String, Lane), Channel>>>,
    moved: Arc<Mutex<HashMap<u64, String>>>,
}

/// What a channel is for. Each has a connection of its own, so that no heartbeat stands behind a
/// snapshot.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Lane {
    Heartbeat,
    Log,
    Snapshot,
    Request,
}

impl Dialer {
    pub(crate) fn new(config: Arc<ClientConfig>) -> Self {
        Self { config, channels: Arc::default(), moved: Arc::default() }
    }

    /// Notes where server `id` is now, by its own word or by a newer membership. Servers that all
    /// moved at once find each other by this: without a leader no membership can say so.
    pub(crate) fn note(&self, id: u64, address: &str) {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.len() < CHANNELS_MAX || moved.contains_key(&id) {
            moved.insert(id, address.to_owned());
        }
    }

    /// Where a member is, by the last word on it.
    pub(crate) fn address(&self, member: &Member) -> String {
        let moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.get(&member.id).unwrap_or(&member.address).clone()
    }

    /// A client of a member, wherever it is now.
    ///
    /// # Errors
    /// When its address can be no address.
    pub(crate) fn client_of(
        &self,
        member: &Member,
        lane: Lane,
    ) -> Result<RaftClient<Channel>, Error> {
        self.client(&self.address(member), lane)
    }

    /// A client of the server at `address` (`host:port`); it dials when it is first used, and
    /// again when the connection broke.
    ///
    /// # Errors
    /// When `address` can be no address.
    pub(crate) fn client(&self, address: &str, lane: Lane) -> Result<RaftClient<Channel>, Error> {
        let key = (address.to_owned(), lane);
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                if channels.len() >= CHANNELS_MAX {
                    // Only addresses that nobody has any more can make so many.
                    channels.clear();
                }
                let channel = tls::channel(Arc::clone(&self.config), address)?;
                channels.insert(key, channel.clone());
                channel
            }
        };
        Ok(RaftClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

/// The largest message between servers: a batch of entries, of which one may be large.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 << 20;
const CHANNELS_MAX: usize = 256;
