//! Callers without TLS: taken while a service moves into the mesh, and counted by their address.
//!
//! Nobody knows who they are. So they pass only where no intention says who may not, and only to
//! services that carry bytes: requests would pass without all that is checked of requests.

use std::io;
use std::time::Duration;

use hawser_core::chain::Chain;
use hawser_core::reason::Reason;
use tokio::net::TcpStream;

use crate::inbound::Port;
use crate::lifespan::Lifespan;
use crate::relay::Moved;

impl Port {
    /// Whether callers without TLS may pass, as the view says now.
    pub(crate) fn takes_plaintext(&self) -> bool {
        let view = self.context.view.borrow();
        let Some(service) = view.services.get(&self.service) else { return false };
        let chain = &service.chain;
        chain.policies.takes_plaintext
            && !chain.protocol.is_http()
            && !view.intentions.need_callers_of(&self.service)
    }

    /// Whether `socket` is of a caller without TLS that may pass.
    ///
    /// # Errors
    /// [`Reason::DownstreamReset`] when it is gone.
    pub(crate) async fn is_plaintext(&self, socket: &TcpStream) -> Result<bool, Reason> {
        let is_plain = is_plain(socket).await.map_err(|_| Reason::DownstreamReset)?;
        // Asked last: it may have changed while the caller was silent.
        Ok(is_plain && self.takes_plaintext())
    }

    /// Carries a connection without TLS to the application.
    ///
    /// # Errors
    /// The reason for which it was not carried.
    pub(crate) async fn serve_plain(
        &self,
        mut downstream: TcpStream,
        chain: &Chain,
    ) -> Result<(), Reason> {
        let context = &self.context;
        // From the moment that it was let in: what changes while the application is dialled counts.
        let cut = self.plain.borrow().clone();
        let from = downstream.peer_addr().map_err(|_| Reason::DownstreamReset)?.ip();
        context.report.plaintext(&self.service, from);
        let mut upstream = self.dial(chain.local_connect_timeout).await?;
        let life = Lifespan::new(&chain.policies, context.limits.tcp_idle);
        let mut moved = Moved::default();
        tokio::select! {
            biased;
            () = cut.cancelled() => Err(Reason::PolicyCut),
            _ = life.relay(&mut downstream, &mut upstream, &context.buffers, &mut moved) => Ok(()),
        }
    }
}

/// Whether a caller speaks without TLS: what it says first is no handshake, or it says nothing, as
/// where servers speak first. Callers in the mesh speak at once.
async fn is_plain(socket: &TcpStream) -> io::Result<bool> {
    let mut first = [0; 1];
    match tokio::time::timeout(SILENCE, socket.peek(&mut first)).await {
        Ok(peeked) => Ok(peeked? > 0 && first[0] != HANDSHAKE),
        Err(_) => Ok(true),
    }
}

const SILENCE: Duration = Duration::from_secs(1);
/// The type of the first record of TLS (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
