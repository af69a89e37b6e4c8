//! How openraft reaches the other servers: the Raft service over mTLS.

use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::future::{Either, select};
use hawser_proto::v1::raft_client::RaftClient;
use hawser_proto::{Invalid, Member, v1};
use openraft::RaftNetworkFactory;
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::SNAPSHOT_TRANSFER_MAX;
use super::types::{
    Place, Snapshot, Types, Vote, entry_to, log_id_from, log_id_to, meta_to, vote_from, vote_to,
};
use crate::dial::{Dialer, Lane};
use crate::snapshot;

/// Makes a [`Link`] to each member.
pub(crate) struct Network {
    from: u64,
    dialer: Dialer,
}

/// The way to one member.
pub(crate) struct Link {
    from: u64,
    target: u64,
    lane: Lane,
    /// None when its name can be no name, which none is that was admitted.
    member: Option<Member>,
    dialer: Dialer,
}

impl Network {
    pub(crate) fn new(from: u64, dialer: Dialer) -> Self {
        Self { from, dialer }
    }

    fn link(&self, target: u64, place: &Place, lane: Lane) -> Link {
        let name = place.name.parse().ok();
        let member = name.map(|name| Member { id: target, name, address: place.address.clone() });
        Link { from: self.from, target, lane, member, dialer: self.dialer.clone() }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, place: &Place) -> Link {
        self.link(target, place, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, place: &Place) -> Link {
        self.link(target, place, Lane::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, place: &Place) -> Link {
        self.link(target, place, Lane::Snapshot)
    }
}

impl Link {
    fn client(&self) -> Result<RaftClient<Channel>, RPCError<Types>> {
        let Some(member) = &self.member else {
            return Err(Unreachable::from_string("it has no name").into());
        };
        self.dialer
            .client_of(member, self.lane)
            .map_err(|failure| Unreachable::new(&failure).into())
    }

    /// Calls within `limit`.
    async fn call<T, F>(
        &self,
        action: RPCTypes,
        limit: Duration,
        call: impl FnOnce(RaftClient<Channel>) -> F,
    ) -> Result<T, RPCError<Types>>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let client = self.client()?;
        match tokio::time::timeout(limit, call(client)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(refused(&status)),
            Err(_) => {
                let (id, target) = (self.from, self.target);
                Err(Timeout { action, id, target, timeout: limit }.into())
            }
        }
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<Types>,
        pre_vote: bool,
        limit: Duration,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let message = v1::VoteRequest {
            target: self.target,
            vote: Some(vote_to(&request.vote)),
            last: request.last_log_id.as_ref().map(log_id_to),
            pre_vote,
            leadership_transfer: request.leadership_transfer,
        };
        let reply = self
            .call(RPCTypes::Vote, limit, |mut client| async move { client.vote(message).await })
            .await?;
        let vote = vote_from(reply.vote).map_err(garbled)?;
        Ok(VoteResponse::new(vote, reply.last.map(log_id_from), reply.granted))
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = snapshot::Snapshot;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        use v1::append_reply::Kind;
        // A heartbeat is worth nothing when late. Entries wait for the follower's disk.
        let limit = match self.lane {
            Lane::Log => option.hard_ttl().max(APPEND_MAX),
            Lane::Heartbeat | Lane::Snapshot | Lane::Request => option.hard_ttl(),
        };
        let message = v1::AppendRequest {
            target: self.target,
            vote: Some(vote_to(&request.vote)),
            previous: request.prev_log_id.as_ref().map(log_id_to),
            entries: request.entries.iter().map(entry_to).collect(),
            committed: request.leader_commit.as_ref().map(log_id_to),
        };
        let reply = self
            .call(RPCTypes::AppendEntries, limit, |mut client| async move {
                client.append(message).await
            })
            .await?;
        Ok(match reply.kind {
            Some(Kind::Success(v1::Nothing {})) => AppendEntriesResponse::Success,
            Some(Kind::Partial(partial)) => {
                AppendEntriesResponse::PartialSuccess(partial.matched.map(log_id_from))
            }
            Some(Kind::Conflict(v1::Nothing {})) => AppendEntriesResponse::Conflict,
            Some(Kind::HigherVote(vote)) => {
                AppendEntriesResponse::HigherVote(vote_from(Some(vote)).map_err(garbled)?)
            }
            None => return Err(garbled(Invalid::new("append_reply.kind", "it is missing"))),
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(request, false, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(request, true, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut client = self.client()?;
        let (chunks, stream) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let meta = v1::SnapshotMeta {
            target: self.target,
            vote: Some(vote_to(&vote)),
            length: snapshot.snapshot.length(),
            ..meta_to(&snapshot.meta)
        };
        let transfer = async {
            let send = send(meta, &snapshot.snapshot, chunks);
            let reply = async {
                client
                    .install_snapshot(ReceiverStream::new(stream))
                    .await
                    .map_err(|status| StreamingError::from(refused(&status)))
            };
            // An answer before the end of sending is a refusal, and ends the sending.
            let (send, reply) = (std::pin::pin!(send), std::pin::pin!(reply));
            let reply = match select(send, reply).await {
                Either::Left((Ok(()), reply)) => {
                    tokio::time::timeout(SNAPSHOT_TRANSFER_MAX, reply).await.map_err(|_| {
                        StreamingError::Timeout(Timeout {
                            action: RPCTypes::InstallSnapshot,
                            id: self.from,
                            target: self.target,
                            timeout: SNAPSHOT_TRANSFER_MAX,
                        })
                    })?
                }
                Either::Left((Err(failure), _)) => Err(NetworkError::new(&failure).into()),
                Either::Right((reply, _)) => reply,
            }?;
            let vote = vote_from(reply.into_inner().vote).map_err(garbled)?;
            Ok(SnapshotResponse::new(vote))
        };
        match select(std::pin::pin!(transfer), std::pin::pin!(cancel)).await {
            Either::Left((sent, _)) => sent,
            Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let message = v1::TransferRequest {
            target: self.target,
            vote: Some(vote_to(request.from_leader())),
            to: *request.to_node_id(),
            last: request.last_log_id().map(log_id_to),
        };
        self.call(RPCTypes::TransferLeader, option.hard_ttl(), |mut client| async move {
            client.transfer_leader(message).await
        })
        .await?;
        Ok(Ok(()))
    }
}

/// Sends a snapshot in chunks; fails when the follower takes none for too long.
async fn send(
    meta: v1::SnapshotMeta,
    file: &snapshot::Snapshot,
    chunks: mpsc::Sender<v1::SnapshotChunk>,
) -> io::Result<()> {
    use v1::snapshot_chunk::Kind;
    let mut offset = 0;
    let mut next = Kind::Meta(meta);
    loop {
        let chunk = v1::SnapshotChunk { kind: Some(next) };
        match tokio::time::timeout(SNAPSHOT_TRANSFER_MAX, chunks.send(chunk)).await {
            Ok(Ok(())) => {}
            // The call ended: its answer says why.
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
        let reader = file.clone();
        let bytes = tokio::task::spawn_blocking(move || reader.chunk(offset, CHUNK_BYTES))
            .await
            .map_err(io::Error::other)??;
        if bytes.is_empty() {
            return Ok(());
        }
        offset += bytes.len() as u64;
        next = Kind::Data(bytes.into());
    }
}

/// A member that cannot be reached or is another than it should be is left alone for a while;
/// one that only failed is asked again at once.
fn refused(status: &Status) -> RPCError<Types> {
    match status.code() {
        Code::Unavailable
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::ResourceExhausted => Unreachable::new(status).into(),
        _ => NetworkError::new(status).into(),
    }
}

#[allow(clippy::needless_pass_by_value)] // It is the shape that map_err takes.
fn garbled(why: Invalid) -> RPCError<Types> {
    NetworkError::new(&why).into()
}

const APPEND_MAX: Duration = Duration::from_secs(2);
const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_IN_FLIGHT: usize = 2;
