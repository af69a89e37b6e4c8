//! Making a peering: giving a token out, taking one up, and being shown one.

use std::sync::Arc;
use std::time::Duration;

use hawser_core::catalog::Meta;
use hawser_core::name::PeerName;
use hawser_core::peering::{PeerState, Peering, Remote};
use hawser_core::state::{Command, PeerConflict, Rejection, State};
use hawser_proto::v1;
use hawser_proto::v1::peering_client::PeeringClient;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};
use zeroize::Zeroizing;

use super::token::{self, InvalidToken, SECRET_OCTETS, Token};
use super::{MESSAGE_OCTETS_MAX, trust};
use crate::handle::Handle;
use crate::identity::NoRandomness;
use crate::propose::ProposeError;
use crate::read::{Consistency, ReadError};
use crate::tls;

/// Why there is no peering.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeeringError {
    #[error("PeeringToken: {0}")]
    Token(#[from] InvalidToken),
    #[error("ServerExternalAddresses: {0}")]
    Addresses(String),
    #[error("{name} gave this cluster a token: delete that peering first, or choose another name")]
    DialsAlready { name: PeerName },
    #[error("a token was given to {name}: delete that peering first, or choose another name")]
    InvitedAlready { name: PeerName },
    #[error("no server of the peer could be reached: {0}")]
    Unreachable(String),
    #[error("the peer refused: {0}")]
    Refused(String),
    #[error("the peer answered what it may not: {0}")]
    Answer(#[from] trust::Refused),
    #[error("the peer's servers are not those that gave the token out")]
    AnotherCluster,
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// Makes a token for the cluster to be called `name`. The last one made is the one that counts.
///
/// # Errors
/// [`PeeringError`]
pub(crate) async fn generate(
    handle: &Handle,
    name: PeerName,
    meta: Meta,
    external: Vec<String>,
) -> Result<Zeroizing<String>, PeeringError> {
    let is_manual = !external.is_empty();
    if is_manual {
        token::check_addresses(&external).map_err(PeeringError::Addresses)?;
    }
    let state = handle.reader.read(Consistency::Default).await?.state;
    let old = existing(&state, &name);
    if old.is_some_and(Peering::dials) {
        return Err(PeeringError::DialsAlready { name });
    }
    let mut secret = Zeroizing::new(vec![0; SECRET_OCTETS]);
    aws_lc_rs::rand::fill(&mut secret).map_err(|_| NoRandomness)?;
    let row = state.peerings().get(&name);
    let id = row.map_or_else(new_id, |row| row.value.id.clone());
    let made = Peering {
        id: id.clone(),
        name,
        meta,
        state: PeerState::Pending,
        invitation: Some(token::hash(&secret)),
        remote: None,
    };
    stored(handle, Command::PutPeering(made)).await?;
    let token = Token {
        root: handle.identity.server_root_der().to_vec(),
        servers: if is_manual { external } else { trust::servers(handle) },
        is_manual,
        trust_domain: handle.identity.trust_domain().clone(),
        datacenter: handle.identity.datacenter().clone(),
        peering: id.to_string(),
        secret,
    };
    Ok(token.reveal())
}

/// Takes up the token that the cluster to be called `name` gave out: its servers are asked here
/// and now, and nothing is stored unless they agree. May be repeated.
///
/// # Errors
/// [`PeeringError`]
pub(crate) async fn establish(
    handle: &Handle,
    name: PeerName,
    meta: Meta,
    text: &str,
) -> Result<(), PeeringError> {
    let token = Token::parse(text)?;
    let state = handle.reader.read(Consistency::Default).await?.state;
    let old = existing(&state, &name);
    if old.is_some_and(|old| !old.dials()) {
        return Err(PeeringError::InvitedAlready { name });
    }
    check_free(handle, &state, &name, &token)?;
    let row = state.peerings().get(&name);
    let id = row.map_or_else(new_id, |row| row.value.id.clone());
    let made =
        Peering { id, name, meta, state: PeerState::Establishing, invitation: None, remote: None };
    let secret = token.secret.to_vec();
    let own = trust::own(handle, &state, &made);
    let request = v1::ExchangeRequest { secret, remote: Some(own) };
    let answered = exchange(&token, request).await?;
    let mut remote = trust::received(handle, answered, &made).await?;
    let vouched = |remote: &Remote| remote.server_roots.iter().any(|root| **root == *token.root);
    if remote.trust_domain != token.trust_domain
        || remote.datacenter != token.datacenter
        || *remote.peering != *token.peering
        || !vouched(&remote)
    {
        return Err(PeeringError::AnotherCluster);
    }
    if token.is_manual {
        // What a person said comes first: the servers' own addresses may lead nowhere from here.
        let own = std::mem::take(&mut remote.servers);
        remote.servers = token.servers.iter().map(|text| Arc::from(&**text)).collect();
        let is_new = |server: &Arc<str>| !token.servers.iter().any(|text| **text == **server);
        remote.servers.extend(own.into_iter().filter(is_new));
    }
    stored(handle, Command::PutPeering(Peering { remote: Some(remote), ..made })).await
}

/// The peering called `name`, unless it has ended.
fn existing<'a>(state: &'a State, name: &PeerName) -> Option<&'a Peering> {
    let peering = &*state.peerings().get(name)?.value;
    (peering.state != PeerState::Terminated).then_some(peering)
}

/// Refuses, before the token is spent, what the state would refuse after.
fn check_free(
    handle: &Handle,
    state: &State,
    name: &PeerName,
    token: &Token,
) -> Result<(), PeeringError> {
    let held = |name| state.peerings().get(name).and_then(|row| row.value.remote.as_ref());
    let why = if token.trust_domain == *handle.identity.trust_domain() {
        PeerConflict::Own
    } else if state.peerings().with(&token.trust_domain).is_some_and(|row| row.value.name != *name)
    {
        PeerConflict::OtherName
    } else if held(name).is_some_and(|held| held.trust_domain != token.trust_domain) {
        PeerConflict::OtherCluster
    } else {
        return Ok(());
    };
    let (name, trust_domain) = (name.clone(), token.trust_domain.clone());
    Err(ProposeError::from(Rejection::PeerTaken { name, trust_domain, why }).into())
}

/// Shows the token to its servers, one after the other, until one says yes or no.
async fn exchange(token: &Token, request: v1::ExchangeRequest) -> Result<v1::Remote, PeeringError> {
    // Without a certificate: they do not know this cluster yet, and would refuse one.
    let config = tls::peer_dial_config(&token.believes(), None)?;
    let deadline = Instant::now() + EXCHANGE_MAX;
    let mut failures: Vec<String> = Vec::new();
    for server in &token.servers {
        let asked = async {
            let sni = token.server_name();
            let channel = tls::connect_peer(config.clone(), server, &sni, CONNECT_MAX).await;
            let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
            let mut client = PeeringClient::new(channel)
                .max_decoding_message_size(MESSAGE_OCTETS_MAX)
                .max_encoding_message_size(MESSAGE_OCTETS_MAX);
            timeout(ANSWER_MAX, client.exchange(request.clone()))
                .await
                .map_err(|_| Status::unavailable("it did not answer in time"))?
        };
        match timeout_at(deadline, asked).await {
            Ok(Ok(reply)) => {
                return reply.into_inner().remote.ok_or(PeeringError::AnotherCluster);
            }
            Ok(Err(status)) => match status.code() {
                Code::PermissionDenied
                | Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::ResourceExhausted => {
                    return Err(PeeringError::Refused(status.message().to_owned()));
                }
                _ => failures.push(format!("{server}: {}", status.message())),
            },
            Err(_) => {
                failures.push(format!("{server}: there was no time left to ask it"));
                break;
            }
        }
    }
    Err(PeeringError::Unreachable(failures.join("; ")))
}

/// Answers one who shows a token's secret: the peer of that token from now on.
///
/// # Errors
/// A status that the other side tells its operator.
pub(crate) async fn accept(
    handle: &Handle,
    request: v1::ExchangeRequest,
) -> Result<v1::ExchangeReply, Status> {
    let v1::ExchangeRequest { secret, remote } = request;
    let secret = Zeroizing::new(secret);
    let remote = remote.ok_or_else(|| Status::invalid_argument("remote: it is missing"))?;
    let invitation = token::hash(&secret);
    // Nothing of a stranger is looked at or written down before the secret is right.
    let state = handle.reader.read(Consistency::Default).await?.state;
    let mut rows = state.peerings().iter();
    let invited = rows.find(|row| row.value.invitation == Some(invitation));
    let Some(peering) = invited.filter(|_| secret.len() == SECRET_OCTETS) else {
        return Err(ProposeError::from(Rejection::PeeringToken).into());
    };
    let invalid = |why: trust::Refused| Status::invalid_argument(why.to_string());
    let remote = trust::received(handle, remote, &peering.value).await.map_err(invalid)?;
    let trust_domain = remote.trust_domain.clone();
    let index = handle.proposer.propose(Command::AcceptPeering { invitation, remote }).await?;
    let state = handle.reader.wait_for(index).await?.state;
    let row = state.peerings().with(&trust_domain);
    let row = row.ok_or_else(|| Status::aborted("the peering was deleted meanwhile"))?;
    tracing::info!(peer = %row.value.name, %trust_domain, "a peering token was taken up");
    Ok(v1::ExchangeReply { remote: Some(trust::own(handle, &state, &row.value)) })
}

async fn stored(handle: &Handle, command: Command) -> Result<(), PeeringError> {
    let index = handle.proposer.propose(command).await?;
    // Then even a stale read here sees it. It is applied already, so this cannot fail it.
    drop(handle.reader.wait_for(index).await);
    Ok(())
}

fn new_id() -> Arc<str> {
    let octets = rand::random::<u128>().to_be_bytes();
    uuid::Builder::from_random_bytes(octets).into_uuid().to_string().into()
}

const CONNECT_MAX: Duration = Duration::from_secs(3);
const ANSWER_MAX: Duration = Duration::from_secs(10);
const EXCHANGE_MAX: Duration = Duration::from_secs(20);
