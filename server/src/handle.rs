//! What the rest of the process asks of a running server.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_core::name::NodeName;
use hawser_core::state::{Command, JoinToken};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::acl::Acl;
use crate::ca::Ca;
use crate::contacts::Contacts;
use crate::dial::Dialer;
use crate::history::History;
use crate::identity::{Identity, now};
use crate::leader::Leases;
use crate::operate::Operator;
use crate::propose::{ProposeError, Proposer, RETRY_EVERY};
use crate::read::{Consistency, Reader};
use crate::request_limits::RequestLimits;
use crate::roster::Roster;
use crate::shares::Shares;
use crate::watch::Watches;

/// A running server, to those in its own process. Clones share it.
#[derive(Clone)]
pub struct Handle {
    /// The door for writes.
    pub proposer: Proposer,
    /// The door for reads.
    pub reader: Reader,
    /// Where to wait for changes.
    pub watches: Watches,
    /// Where heartbeats of agents go.
    pub leases: Leases,
    /// The servers, and what this one knows of the consensus.
    pub roster: Roster,
    /// Who this server is.
    pub identity: Arc<Identity>,
    /// The signer of certificates.
    pub ca: Arc<Ca>,
    /// This server's share of the traffic history.
    pub history: History,
    /// Access control of the API.
    pub acl: Arc<Acl>,
    pub(crate) operator: Operator,
    pub(crate) dialer: Dialer,
    pub(crate) contacts: Contacts,
    pub(crate) shares: Shares,
    pub(crate) limits: RequestLimits,
}

/// Why there is no join token.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// It would be worthless at once, or valid for too long.
    #[error("a join token holds for more than 0 s and at most {} s", LIFETIME_MAX.as_secs())]
    Lifetime,
    /// The system has no random numbers to give.
    #[error("this system gives no random numbers")]
    NoRandomness,
    /// It could not be stored.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

impl Handle {
    /// Makes a token by which the agent called `node` may join, once, within `lifetime`.
    ///
    /// The text is `hj1.<secret>.<pin>`, both base64url: the servers keep a hash of the secret
    /// only, and the pin lets the agent know the servers.
    ///
    /// # Errors
    /// [`MintError`]
    pub async fn mint_join_token(
        &self,
        node: &NodeName,
        lifetime: Duration,
    ) -> Result<String, MintError> {
        if lifetime.is_zero() || lifetime > LIFETIME_MAX {
            return Err(MintError::Lifetime);
        }
        let mut secret = Zeroizing::new([0; 32]);
        aws_lc_rs::rand::fill(&mut *secret).map_err(|_| MintError::NoRandomness)?;
        let hash = Sha256::digest(*secret).into();
        let expires_at = now().plus(lifetime);
        let token = JoinToken { hash, node: node.clone(), expires_at, used_by: None };
        self.proposer.propose(Command::PutJoinToken(token)).await?;
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(*secret));
        let pin = URL_SAFE_NO_PAD.encode(self.identity.pin());
        Ok(format!("hj1.{}.{pin}", *secret))
    }

    /// Returns once a leader is known and this server has caught up with it.
    pub async fn ready(&self) {
        while self.reader.read(Consistency::Default).await.is_err() {
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }
}

/// The longest that a join token may be valid.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
