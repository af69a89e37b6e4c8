//! What servers of other clusters ask of this one.

use std::net::IpAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use hawser_core::peering::Peering as Row;
use hawser_core::state::State;
use hawser_proto::v1;
use hawser_proto::v1::peer_message::Kind;
use hawser_proto::v1::peering_server::{Peering, PeeringServer};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use super::dial::MESSAGES_IN_FLIGHT;
use super::session::{Session, live};
use super::{MESSAGE_OCTETS_MAX, establish};
use crate::ca::{Buckets, Pace};
use crate::handle::Handle;
use crate::read::Consistency;
use crate::tls::{ForeignPeer, Source};

/// The peers' service.
pub(crate) struct PeeringRpc {
    handle: Handle,
    drain: CancellationToken,
    tries: Buckets<IpAddr>,
}

impl PeeringRpc {
    /// The service, ready to be routed to; `drain` ends its streams.
    pub(crate) fn service(handle: Handle, drain: CancellationToken) -> PeeringServer<Self> {
        PeeringServer::new(Self { handle, drain, tries: Buckets::new(TRY_PACE) })
            .max_decoding_message_size(MESSAGE_OCTETS_MAX)
            .max_encoding_message_size(MESSAGE_OCTETS_MAX)
    }

    /// The leader alone speaks for the cluster; the answer says who that is.
    fn expect_leader(&self) -> Result<(), Status> {
        if self.handle.roster.is_leader() {
            return Ok(());
        }
        let mut metadata = MetadataMap::new();
        let leader = self.handle.roster.leader().and_then(|leader| leader.address.parse().ok());
        if let Some(leader) = leader {
            metadata.insert(LEADER, leader);
        }
        let why = "this server does not lead: ask another";
        Err(Status::with_metadata(Code::FailedPrecondition, why, metadata))
    }
}

#[tonic::async_trait]
impl Peering for PeeringRpc {
    async fn exchange(
        &self,
        request: Request<v1::ExchangeRequest>,
    ) -> Result<Response<v1::ExchangeReply>, Status> {
        let source = request.extensions().get::<Source>().copied().map(Source::network);
        let source = source.ok_or_else(|| Status::internal("the connection has no address"))?;
        self.tries.take(&source, Instant::now()).map_err(|wait| {
            let wait = wait.as_secs() + 1;
            Status::resource_exhausted(format!("too many failed attempts: try again in {wait} s"))
        })?;
        let answered = establish::accept(&self.handle, request.into_inner()).await;
        match &answered {
            // The caller's fault, and counted.
            Err(refused)
                if matches!(refused.code(), Code::FailedPrecondition | Code::InvalidArgument) =>
            {
                tracing::warn!(%source, why = refused.message(), "a peering token was refused");
            }
            _ => self.tries.give_back(&source),
        }
        answered.map(Response::new)
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<v1::PeerMessage, Status>> + Send>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::PeerMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let foreign = request.extensions().get::<ForeignPeer>().cloned();
        let caller = foreign
            .ok_or_else(|| Status::permission_denied("only a peer's servers may call this"))?;
        self.expect_leader()?;
        let mut inbound = request.into_inner();
        let opened = timeout(OPEN_MAX, inbound.message()).await;
        let opened = opened.map_err(|_| Status::deadline_exceeded("nothing was opened"))??;
        let Some(Kind::Open(id)) = opened.and_then(|message| message.kind) else {
            return Err(Status::invalid_argument("a stream begins with open"));
        };
        // A server that has just begun to lead must not say that something is not there.
        let state = self.handle.reader.read(Consistency::Default).await?.state;
        self.expect_leader()?;
        let peering = opened_by(&state, &id, &caller)?;
        let (out, messages) = mpsc::channel(MESSAGES_IN_FLIGHT);
        let (handle, drain) = (self.handle.clone(), self.drain.clone());
        let peer = peering.name.clone();
        let session = Session { handle, peering, dialled: None, out, inbound, drain };
        tokio::spawn(async move {
            tracing::info!(%peer, "a peer opened its stream");
            let ended = Box::pin(session.run()).await;
            tracing::info!(%peer, %ended, "a peer's stream ended");
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(messages).map(Ok))))
    }
}

/// The peering with `id`, if `caller` is a server of its peer.
fn opened_by(state: &State, id: &str, caller: &ForeignPeer) -> Result<std::sync::Arc<Row>, Status> {
    let row = state.peerings().iter().find(|row| *row.value.id == *id);
    let unknown = || Status::not_found("there is no such peering any more");
    let row = row.filter(|row| live(state, &row.value).is_some()).ok_or_else(unknown)?;
    let is_theirs = row.value.remote.as_ref().is_some_and(|remote| {
        remote.trust_domain == caller.id.trust_domain && remote.datacenter == caller.id.datacenter
    });
    if !is_theirs {
        return Err(Status::permission_denied("this peering is another cluster's"));
    }
    if row.value.dials() {
        return Err(Status::failed_precondition("this cluster dials for this peering itself"));
    }
    Ok(row.value.clone())
}

/// Under which a follower names its leader.
const LEADER: &str = "hawser-leader";
const OPEN_MAX: Duration = Duration::from_secs(5);
/// Attempts that failed, per source.
const TRY_PACE: Pace = Pace { burst: 10, every: Duration::from_secs(6) };
