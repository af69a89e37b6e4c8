//! The leader's task for one peering that this cluster dials: a stream, and another when it ends.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::peering::{PeerState, Peering, Remote};
use hawser_core::sni::Sni;
use hawser_core::state::Command;
use hawser_proto::v1;
use hawser_proto::v1::peer_message::Kind;
use hawser_proto::v1::peering_client::PeeringClient;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::MESSAGE_OCTETS_MAX;
use super::session::{Ended, Session, live};
use crate::handle::Handle;
use crate::tls::{self, ConnectPeerError, PeerServers};

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error(transparent)]
    Connect(#[from] ConnectPeerError),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Refused(#[from] Status),
}

/// Holds a stream with `peering` for as long as it is this cluster's to dial. Answers its id.
pub(crate) async fn keep(
    handle: Handle,
    peering: Arc<Peering>,
    drain: CancellationToken,
) -> Arc<str> {
    let (peer, id) = (peering.name.clone(), peering.id.clone());
    let mut way: Option<String> = None;
    let mut round = 0_usize;
    loop {
        let state = handle.reader.current();
        let Some(row) = live(&state, &peering) else { return id };
        let peering = row.value.clone();
        let Some(remote) = peering.remote.as_ref().filter(|_| peering.dials()) else { return id };
        let ways = ways(remote);
        // What led there last is tried first, and then the others in turn.
        let Some(next) = way.take().or_else(|| ways.get(round % ways.len().max(1)).cloned()) else {
            tracing::error!(%peer, "no address of the peer's servers is known");
            tokio::select! {
                () = drain.cancelled() => return id,
                () = sleep(WAYLESS) => continue,
            }
        };
        round = round.wrapping_add(1);
        let began = Instant::now();
        match open(&handle, remote, &next, &peering).await {
            Ok((out, inbound)) => {
                tracing::info!(%peer, server = %next, "a peering's stream is open");
                let (handle, drain) = (handle.clone(), drain.clone());
                let dialled = Some(next.clone());
                let session = Session { handle, peering, dialled, out, inbound, drain };
                let ended = Box::pin(session.run()).await;
                tracing::info!(%peer, %ended, "a peering's stream ended");
                if matches!(ended, Ended::Stopping | Ended::NotLeading) {
                    return id;
                }
                if began.elapsed() > SETTLED_AFTER {
                    (way, round) = (Some(next), 0);
                }
            }
            Err(DialError::Refused(status)) if status.code() == Code::NotFound => {
                // A server of the peer says under its own identity that there is no such peering.
                terminate(&handle, &peering).await;
            }
            Err(error) => tracing::debug!(%peer, server = %next, %error, "no stream with a peer"),
        }
        tokio::select! {
            () = drain.cancelled() => return id,
            () = sleep(pause(round, ways.len())) => {}
        }
    }
}

/// Where servers of a peer may be reached: its servers, then its gateways, which pass it on.
pub(crate) fn ways(remote: &Remote) -> Vec<String> {
    let servers = remote.servers.iter().map(ToString::to_string);
    let gateways = remote.gateways.iter().map(|gateway| gateway.address.to_string());
    servers.chain(gateways).collect()
}

/// The name that a peer's servers are asked for by.
fn server_name(remote: &Remote) -> Sni {
    Sni::Servers {
        datacenter: remote.datacenter.clone(),
        trust_domain: remote.trust_domain.clone(),
    }
}

type Ends = (mpsc::Sender<v1::PeerMessage>, tonic::Streaming<v1::PeerMessage>);

async fn open(
    handle: &Handle,
    remote: &Remote,
    way: &str,
    peering: &Peering,
) -> Result<Ends, DialError> {
    let config = tls::peer_dial_config(&PeerServers::of(remote), Some(&handle.identity))?;
    let channel = tls::connect_peer(config, way, &server_name(remote), CONNECT_MAX).await?;
    let mut client = PeeringClient::new(channel)
        .max_decoding_message_size(MESSAGE_OCTETS_MAX)
        .max_encoding_message_size(MESSAGE_OCTETS_MAX);
    let (out, messages) = mpsc::channel(MESSAGES_IN_FLIGHT);
    let first = v1::PeerMessage { kind: Some(Kind::Open(remote.peering.to_string())) };
    drop(out.try_send(first));
    let opened = timeout(OPEN_MAX, client.stream(ReceiverStream::new(messages))).await;
    let opened = opened.map_err(|_| Status::deadline_exceeded("no answer"))??;
    tracing::trace!(peer = %peering.name, "opened");
    Ok((out, opened.into_inner()))
}

async fn terminate(handle: &Handle, peering: &Peering) {
    let (name, id) = (peering.name.clone(), peering.id.clone());
    tracing::warn!(peer = %name, "the peer does not know this peering any more");
    let command = Command::SetPeerState { name, id, state: PeerState::Terminated };
    if let Err(error) = handle.proposer.propose(command).await {
        tracing::warn!(%error, "a peering's end is not stored");
    }
}

/// Quick through all addresses once, since one of them leads; then slower.
fn pause(round: usize, ways: usize) -> Duration {
    let most = if round <= ways { 150 } else { 1_000 };
    Duration::from_millis(rand::random_range(50..=most))
}

/// Messages that wait for the peer to read.
pub(crate) const MESSAGES_IN_FLIGHT: usize = 16;
/// A host that is gone must not use up the time in which a peer is missed.
const WAYLESS: Duration = Duration::from_secs(5);
const CONNECT_MAX: Duration = Duration::from_secs(2);
const OPEN_MAX: Duration = Duration::from_secs(6);
const SETTLED_AFTER: Duration = Duration::from_secs(5);
