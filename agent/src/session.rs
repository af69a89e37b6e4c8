//! The host's standing in its cluster: joins where that is needed, and keeps a connection to a server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_core::clock::UnixTime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::clock::{self, Backoff};
use crate::config::Join;
use crate::host::Host;
use crate::identity::join::{self, JoinError, Membership, Right, Token};
use crate::identity::{Request, leaves};
use crate::servers::Ended;
use crate::{RunError, tls};

/// Joins where that is needed, and keeps a connection to some server, until `drain`.
///
/// # Errors
/// [`RunError::Join`] for a host that never joined and is refused.
pub(crate) async fn run(
    host: Arc<Host>,
    join: Join,
    folder: PathBuf,
    drain: CancellationToken,
) -> Result<&'static str, RunError> {
    let mut entry = Entry::new(host.clone(), join, folder);
    loop {
        if let Some(reason) = entry.reason() {
            let goes_on = tokio::select! {
                () = drain.cancelled() => return Ok("session"),
                goes_on = entry.join(reason) => goes_on?,
            };
            if !goes_on {
                continue;
            }
        }
        let until = drain.child_token();
        let membership = host.membership.subscribe();
        let config = || match membership.borrow().as_ref() {
            Some(membership) => membership.client(),
            None => Err(rustls::Error::General("the host has not joined".to_owned())),
        };
        let mut running = std::pin::pin!(host.servers.run(config, until.clone()));
        let ended = tokio::select! {
            ended = &mut running => ended,
            () = ran_out(&host) => {
                tracing::error!("the host's own certificate ran out");
                until.cancel();
                running.await;
                continue;
            }
        };
        match ended {
            Ended::Drained => return Ok("session"),
            Ended::Revoked => entry.is_revoked = true,
        }
        tracing::error!(
            "the servers say that this host's own certificate is revoked: it can only join anew"
        );
        tokio::select! {
            () = drain.cancelled() => return Ok("session"),
            () = sleep(entry.backoff.next()) => {}
        }
    }
}

/// Why a host must join.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reason {
    /// It never did.
    Never,
    /// Its token is for another cluster than the one it is in.
    Elsewhere,
    /// Its certificate ran out, so that it cannot even ask for another.
    RanOut,
    /// Its certificate is revoked: whoever stole it may hold it as well, so that only what it
    /// first joined by tells the two apart.
    Revoked,
}

/// A host's way into its cluster.
struct Entry {
    host: Arc<Host>,
    by: Join,
    folder: PathBuf,
    backoff: Backoff,
    attempts: u32,
    /// The key to join with: the same until it is certified, for an answer may be lost.
    request: Option<Request>,
    /// Another cluster refused it: it is in the one that it joined before, for good.
    stays: bool,
    is_revoked: bool,
}

impl Entry {
    fn new(host: Arc<Host>, by: Join, folder: PathBuf) -> Self {
        let backoff = Backoff::new(JOIN_BACKOFF_BASE, JOIN_BACKOFF_MAX);
        Self {
            host,
            by,
            folder,
            backoff,
            attempts: 0,
            request: None,
            stays: false,
            is_revoked: false,
        }
    }

    /// Why the host must join now; none when it need not, or cannot.
    fn reason(&self) -> Option<Reason> {
        let held = self.host.membership.borrow().clone();
        let Some(held) = held.as_deref() else { return Some(Reason::Never) };
        if !self.stays && is_elsewhere(held, &self.by) {
            return Some(Reason::Elsewhere);
        }
        let can_join = !matches!(self.by, Join::None | Join::Missing(_));
        let has_run_out = clock::now() >= held.credential.validity.not_after;
        match (can_join, has_run_out, self.is_revoked) {
            (true, true, _) => Some(Reason::RanOut),
            (true, false, true) => Some(Reason::Revoked),
            _ => None,
        }
    }

    /// Tries once; answers whether the host now goes on as the member that it is.
    async fn join(&mut self, reason: Reason) -> Result<bool, JoinError> {
        // Whether or not it joins: the old certificate is tried again if not, for it may have been
        // reinstated.
        self.is_revoked = false;
        let request = match self.request.take() {
            Some(request) => request,
            None => Request::make().map_err(|why| JoinError::Reply(why.to_string()))?,
        };
        let joined = join_once(&self.host, &self.by, &request).await;
        let why = match joined {
            Ok(membership) => {
                self.backoff.reset();
                tracing::info!(id = %membership.credential.id, "joined the cluster");
                enter(&self.host, membership, &self.folder);
                return Ok(true);
            }
            Err(why) => why,
        };
        self.request = Some(request);
        match reason {
            Reason::Elsewhere if !why.is_passing() => {
                tracing::error!(%why, "the host stays in the cluster that it joined before");
                self.stays = true;
                return Ok(true);
            }
            Reason::Never if !why.is_passing() => return Err(why),
            Reason::Revoked => tracing::error!(%why, "the host did not join anew"),
            _ => self.say(&why),
        }
        sleep(self.backoff.next()).await;
        Ok(reason == Reason::Revoked)
    }

    fn say(&mut self, why: &JoinError) {
        self.attempts = self.attempts.saturating_add(1);
        // The server beside this agent may still found its cluster.
        match (self.attempts, &self.by) {
            (..=QUIET_JOINS, Join::Mint(_)) => tracing::debug!(%why, "not joined yet"),
            _ => tracing::warn!(%why, "not joined yet"),
        }
    }
}

/// Whether `by` leads to another cluster than the one that the host is in.
fn is_elsewhere(held: &Membership, by: &Join) -> bool {
    let pin = match by {
        Join::Token(text) => Token::parse(text).ok().map(|token| token.pin),
        Join::AwsIam(pin) => Some(pin.0),
        Join::Mint(_) | Join::None | Join::Missing(_) => None,
    };
    pin.is_some_and(|wanted| tls::pin_of(&held.server_root).is_ok_and(|pin| pin != wanted))
}

async fn join_once(host: &Host, how: &Join, request: &Request) -> Result<Membership, JoinError> {
    let right = match how {
        Join::Token(text) => Right::Token(token(text)?),
        Join::Mint(mint) => {
            let text = mint().await.map_err(JoinError::Unreachable)?;
            Right::Token(token(&text)?)
        }
        Join::AwsIam(pin) => Right::AwsIam(*pin),
        Join::None | Join::Missing(_) => {
            return Err(JoinError::Refused("there is no join token".to_owned()));
        }
    };
    join::join(&host.servers, &host.node.name, &host.datacenter, &right, request).await
}

fn token(text: &str) -> Result<Token, JoinError> {
    Token::parse(text).map_err(|why| JoinError::Refused(why.to_string()))
}

/// Takes a new membership up, and drops what belonged to another cluster.
fn enter(host: &Host, membership: Membership, folder: &Path) {
    let held = host.membership.borrow().clone();
    let is_other = held.is_some_and(|held| held.trust_domain() != membership.trust_domain());
    if is_other {
        host.leaves.send_replace(leaves::All::default());
        host.views.send_replace(Arc::default());
    }
    if let Err(why) = membership.keep(folder) {
        tracing::error!(%why, "the host's identity could not be kept: it is lost with a restart");
    }
    host.membership.send_replace(Some(Arc::new(membership)));
}

/// Ends when the host's own certificate has run out.
async fn ran_out(host: &Host) {
    loop {
        let until = host
            .membership
            .borrow()
            .as_ref()
            .map_or(UnixTime::from_millis(u64::MAX), |held| held.credential.validity.not_after);
        let left = until.since(clock::now());
        if left.is_zero() {
            // Only joining again helps, and that is tried at its own pace.
            sleep(JOIN_BACKOFF_BASE).await;
            return;
        }
        sleep(left.min(LOOK_EVERY)).await;
    }
}

/// A server founds its cluster in the time of so many attempts, or waits for others to.
const QUIET_JOINS: u32 = 3;
const JOIN_BACKOFF_BASE: Duration = Duration::from_millis(500);
const JOIN_BACKOFF_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(60);
