//! The Raft service: what servers say to each other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::clock::Index;
use hawser_core::name::NodeName;
use hawser_core::operation::LEVEL;
use hawser_core::spiffe::Role;
use hawser_proto::v1::raft_server::{Raft as Service, RaftServer};
use hawser_proto::{Member, v1};
use prost::Message;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::dial::{Dialer, Lane, MESSAGE_BYTES_MAX};
use crate::history::History;
use crate::join::{Acquaintances, is_living};
use crate::leader::{Leases, Standing};
use crate::operate::Operator;
use crate::propose::Proposer;
use crate::raft::{Raft, SNAPSHOT_TRANSFER_MAX};
use crate::read::Contact;
use crate::shares::Shares;
use crate::snapshot::Snapshots;
use crate::space::Space;
use crate::tls::Peer;

/// Answers other servers.
pub(crate) struct Answers {
    pub(crate) own: Member,
    pub(crate) bootstrap_expect: u8,
    pub(crate) raft: Raft,
    pub(crate) dialer: Dialer,
    pub(crate) snapshots: Snapshots,
    pub(crate) proposer: Proposer,
    pub(crate) leases: Leases,
    pub(crate) contact: Contact,
    pub(crate) space: Space,
    pub(crate) history: History,
    pub(crate) acquaintances: Acquaintances,
    /// A member that was not heard for so long does not keep its name from another.
    pub(crate) silence: Duration,
    pub(crate) operator: Operator,
    pub(crate) shares: Shares,
}

impl Answers {
    pub(crate) fn service(self) -> RaftServer<Self> {
        RaftServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// A message for another server must not be taken for this one's: addresses move.
    fn expect_target(&self, target: u64) -> Result<(), Status> {
        if target == self.own.id {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this is server {} ({}), not {target}",
            self.own.id, self.own.name
        )))
    }

    /// Whether `new` may be one of this cluster's servers: one that a recovery gave up may know of
    /// writes that this cluster never had, and one of an older release cannot read its log.
    async fn expect_able(&self, new: &Member) -> Result<(), Status> {
        let state = self.operator.reader.current();
        let operation = state.operation();
        if operation.given_up().contains(&new.id) {
            return Err(Status::failed_precondition(format!(
                "server {} ({}) was given up when the cluster was recovered without it, and may \
                 hold other writes: move its data folder away, and it joins as a new server",
                new.id, new.name
            )));
        }
        if operation.level() == 0 {
            return Ok(());
        }
        let client = self.dialer.client(&new.address, Lane::Request);
        let mut client = client.map_err(|why| Status::invalid_argument(why.to_string()))?;
        let request = v1::HelloRequest { from: Some((&self.own).into()), bootstrap_expect: 0 };
        let said = timeout(HELLO_MAX, client.hello(request)).await;
        let said = said.map_err(|_| Status::aborted("it does not answer at its address"))??;
        let v1::HelloReply { level, release, .. } = said.into_inner();
        if level < operation.level() {
            return Err(Status::failed_precondition(format!(
                "{} runs release {release:?} of level {level}, and the cluster has reached level \
                 {}: upgrade it",
                new.name,
                operation.level()
            )));
        }
        Ok(())
    }
}

/// The server that calls; the connection's certificate says who it is.
fn caller<T>(request: &Request<T>) -> Result<NodeName, Status> {
    match request.extensions().get::<Peer>().map(|peer| &peer.id.role) {
        Some(Role::Server(node)) => Ok(node.clone()),
        _ => Err(Status::permission_denied("only servers may call this")),
    }
}

/// The server that calls, which must be the one that its message is about.
fn caller_as(request_from: &NodeName, member: &Member) -> Result<(), Status> {
    if *request_from == member.name {
        return Ok(());
    }
    Err(Status::permission_denied(format!("{request_from} may not speak for {}", member.name)))
}

fn member(message: Option<v1::Member>) -> Result<Member, Status> {
    message
        .ok_or_else(|| Status::invalid_argument("member: it is missing"))?
        .try_into()
        .map_err(|why: hawser_proto::Invalid| Status::invalid_argument(why.to_string()))
}

#[tonic::async_trait]
impl Service for Answers {
    async fn vote(
        &self,
        request: Request<v1::VoteRequest>,
    ) -> Result<Response<v1::VoteReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        self.expect_target(message.target)?;
        Ok(Response::new(self.raft.vote(message).await?))
    }

    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        self.expect_target(message.target)?;
        // Heartbeats go on, so that the leader stays, and so does what makes one a leader: entries
        // of no size. Others come again when there is room.
        if !message.entries.is_empty() && !self.space.takes(message.encoded_len()) {
            return Err(Status::resource_exhausted("this server's disk is full"));
        }
        let committed = message.committed.as_ref().map_or(0, |id| id.index);
        let reply = self.raft.append(message).await?;
        // Who cannot follow has heard the leader, and nothing of what happened.
        let is_left = self.space.is_full() && committed > self.raft.status().borrow().applied;
        if !is_left && !matches!(reply.kind, Some(v1::append_reply::Kind::HigherVote(_))) {
            self.contact.heard();
        }
        Ok(Response::new(reply))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<v1::SnapshotChunk>>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        use v1::snapshot_chunk::Kind;
        caller(&request)?;
        let mut chunks = request.into_inner();
        let first = next(&mut chunks).await?.and_then(|chunk| chunk.kind);
        let Some(Kind::Meta(meta)) = first else {
            return Err(Status::invalid_argument("a snapshot begins with its description"));
        };
        self.expect_target(meta.target)?;
        if !self.space.fits(meta.length) {
            return Err(Status::resource_exhausted("this server's disk is full"));
        }
        let disk = |failure: std::io::Error| Status::internal(failure.to_string());
        let mut incoming = self.snapshots.receive().map_err(disk)?;
        loop {
            let chunk = match next(&mut chunks).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(status) => return Err(status),
            };
            let Some(Kind::Data(bytes)) = chunk.kind else {
                return Err(Status::invalid_argument("a snapshot goes on with data"));
            };
            if incoming.length() + bytes.len() as u64 > meta.length {
                return Err(Status::invalid_argument("a snapshot is longer than said"));
            }
            incoming = match tokio::task::spawn_blocking(move || {
                let mut incoming = incoming;
                let written = incoming.write(&bytes);
                (incoming, written)
            })
            .await
            {
                Ok((incoming, Ok(()))) => incoming,
                Ok((_, Err(failure))) => return Err(disk(failure)),
                Err(failure) => return Err(Status::internal(failure.to_string())),
            };
            self.contact.heard();
        }
        if incoming.length() != meta.length {
            return Err(Status::data_loss("a snapshot is shorter than said"));
        }
        let file = tokio::task::spawn_blocking(move || incoming.finish())
            .await
            .map_err(|failure| Status::internal(failure.to_string()))?
            .map_err(disk)?;
        // What is damaged here was damaged on its way: it is refused, and nothing is lost.
        let checked = file.clone();
        if let Err(failure) = tokio::task::spawn_blocking(move || checked.read().map(drop))
            .await
            .map_err(|failure| Status::internal(failure.to_string()))?
        {
            return Err(Status::data_loss(failure.to_string()));
        }
        tracing::info!(bytes = meta.length, "installing a snapshot");
        Ok(Response::new(self.raft.install(meta, file).await?))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferReply>, Status> {
        caller(&request)?;
        let message = request.into_inner();
        self.expect_target(message.target)?;
        self.raft.hear_transfer(message).await?;
        Ok(Response::new(v1::TransferReply {}))
    }

    async fn propose(
        &self,
        request: Request<v1::Command>,
    ) -> Result<Response<v1::Outcome>, Status> {
        caller(&request)?;
        Ok(Response::new(self.proposer.accept(request.into_inner()).await?))
    }

    async fn read_index(
        &self,
        request: Request<v1::ReadIndexRequest>,
    ) -> Result<Response<v1::ReadIndexReply>, Status> {
        caller(&request)?;
        let index = self
            .raft
            .read_index(request.into_inner().quorum)
            .await
            .map_err(|failure| Status::aborted(failure.to_string()))?;
        Ok(Response::new(v1::ReadIndexReply { index: index.0 }))
    }

    async fn renew_leases(
        &self,
        request: Request<v1::Leases>,
    ) -> Result<Response<v1::LeasesReply>, Status> {
        caller(&request)?;
        if !self.raft.status().borrow().is_leader {
            return Err(Status::aborted("this server does not lead"));
        }
        let v1::Leases { nodes, sessions, standings } = request.into_inner();
        self.leases.stand_all(standings.into_iter().filter_map(|said| {
            let authority = Index(said.authority);
            let standing = Standing { authority, trusts: said.trusts, reissued: said.reissued };
            Some((said.node.parse().ok()?, standing))
        }));
        self.leases.renew_all(nodes.iter().filter_map(|node| node.parse().ok()));
        self.leases.renew_sessions(sessions.iter().filter_map(|session| session.parse().ok()));
        Ok(Response::new(v1::LeasesReply {}))
    }

    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        let name = caller(&request)?;
        let message = request.into_inner();
        let from = member(message.from)?;
        caller_as(&name, &from)?;
        self.dialer.note(from.id, &from.address);
        let is_initialised = self.raft.is_initialised().await;
        let status = Arc::clone(&self.raft.status().borrow());
        let members = if is_initialised {
            status.members.clone()
        } else {
            if from.id != self.own.id {
                self.acquaintances.note(from);
            }
            self.acquaintances.list()
        };
        let leader = status.leader.and_then(|id| status.member(id));
        Ok(Response::new(v1::HelloReply {
            member: Some((&self.own).into()),
            is_initialised,
            bootstrap_expect: self.bootstrap_expect.into(),
            leader: leader.map(v1::Member::from),
            members: members.iter().map(v1::Member::from).collect(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            level: LEVEL,
            is_full: self.space.is_full(),
        }))
    }

    async fn admit(
        &self,
        request: Request<v1::Member>,
    ) -> Result<Response<v1::AdmitReply>, Status> {
        let name = caller(&request)?;
        let new = member(Some(request.into_inner()))?;
        caller_as(&name, &new)?;
        let status = Arc::clone(&self.raft.status().borrow());
        if !status.is_leader {
            return Err(Status::aborted("this server does not lead"));
        }
        if status.member(new.id) == Some(&new) {
            return Ok(Response::new(v1::AdmitReply {}));
        }
        let _turn = self.operator.pilot.turn.lock().await;
        self.expect_able(&new).await?;
        let namesakes: Vec<u64> = status
            .members
            .iter()
            .filter(|member| member.name == new.name && member.id != new.id)
            .map(|member| member.id)
            .collect();
        let lives = |id: &u64| *id == self.own.id || is_living(&status, *id, self.silence);
        if let Some(living) = namesakes.iter().find(|id| lives(id)) {
            return Err(Status::already_exists(format!(
                "server {living} has the name {} and lives: choose another name, or stop it first",
                new.name
            )));
        }
        let learners: BTreeSet<u64> =
            namesakes.into_iter().filter(|id| !status.voters.contains(id)).collect();
        if !learners.is_empty() {
            self.raft.remove_learners(learners).await?;
        }
        // It votes, in the place of a voter of its name, once it caught up: see leader::members.
        self.raft.put_member(&new).await?;
        tracing::info!(id = new.id, name = %new.name, address = new.address, "a server is admitted");
        Ok(Response::new(v1::AdmitReply {}))
    }

    async fn assess(
        &self,
        request: Request<v1::AssessRequest>,
    ) -> Result<Response<v1::Assessment>, Status> {
        caller(&request)?;
        if !self.raft.status().borrow().is_leader {
            return Err(Status::aborted("this server does not lead"));
        }
        Ok(Response::new(self.operator.assess_here().into()))
    }

    async fn lease_shares(
        &self,
        request: Request<v1::LeaseSharesRequest>,
    ) -> Result<Response<v1::LeaseReply>, Status> {
        caller(&request)?;
        let v1::LeaseSharesRequest { node, request } = request.into_inner();
        let node = node.parse().map_err(|why: hawser_core::name::InvalidName| {
            Status::invalid_argument(format!("lease_shares_request.node: {why}"))
        })?;
        Ok(Response::new(self.shares.lease_here(&node, request.unwrap_or_default())?))
    }

    async fn remove_member(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveReply>, Status> {
        caller(&request)?;
        self.operator.remove_here(request.into_inner().id).await?;
        Ok(Response::new(v1::RemoveReply {}))
    }

    async fn hand_over(
        &self,
        request: Request<v1::HandOverRequest>,
    ) -> Result<Response<v1::HandOverReply>, Status> {
        caller(&request)?;
        let to = request.into_inner().to;
        self.operator.hand_over_here((to != 0).then_some(to)).await?;
        Ok(Response::new(v1::HandOverReply {}))
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryReply>, Status> {
        caller(&request)?;
        let v1::HistoryRequest { from_minute, to_minute } = request.into_inner();
        let history = self.history.clone();
        let rows = tokio::task::spawn_blocking(move || history.range(from_minute, to_minute))
            .await
            .map_err(|failure| Status::internal(failure.to_string()))?
            .map_err(|failure| Status::internal(failure.to_string()))?;
        let edges = rows.iter().map(v1::EdgeMinute::from).collect();
        Ok(Response::new(v1::HistoryReply { edges }))
    }
}

async fn next(
    chunks: &mut Streaming<v1::SnapshotChunk>,
) -> Result<Option<v1::SnapshotChunk>, Status> {
    timeout(SNAPSHOT_TRANSFER_MAX, chunks.message())
        .await
        .map_err(|_| Status::deadline_exceeded("no chunk came for too long"))?
}

const HELLO_MAX: Duration = Duration::from_secs(2);
