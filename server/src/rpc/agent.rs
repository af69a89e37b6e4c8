//! What agents ask of servers: parse, then propose, read, watch or sign, then encode.
//!
//! Tasks: one per subscription, ended by its agent, by `drain`, or with its connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hawser_aws::Proof;
use hawser_core::acl::DefaultPolicy;
use hawser_core::anti_entropy::Rows;
use hawser_core::ca::{Authority, Root};
use hawser_core::clock::{Index, UnixTime};
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::health::{self, NODE_LIVENESS_CHECK};
use hawser_core::name::{NodeName, ServiceName};
use hawser_core::revocation::Subject;
use hawser_core::spiffe::Role;
use hawser_core::state::{Command, NodeChanges, Rejection, State, Topic};
use hawser_core::view::{self, Delta, Interest};
use hawser_proto::v1::agent_server::{Agent, AgentServer};
use hawser_proto::{Invalid, v1};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::{sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Extensions, Request, Response, Status, Streaming};

use crate::aws_iam::{NoRandomness, Verifier};
use crate::ca::{self, Buckets, Issued, Pace, SignError};
use crate::handle::Handle;
use crate::identity::now;
use crate::leader::Standing;
use crate::propose::ProposeError;
use crate::read::{Consistency, Reader};
use crate::request_limits::{Access, Area};
use crate::rpc::status;
use crate::tls::{Peer, Source};
use crate::watch::{Watch, Watches};

/// The agents' service. Every call but those that join acts for the node that the caller's
/// certificate names, and for no other.
pub(crate) struct AgentRpc {
    handle: Handle,
    /// How long a heartbeat counts.
    lease: Duration,
    drain: CancellationToken,
    joins: Buckets<IpAddr>,
    nonces: Buckets<IpAddr>,
    aws_iam: Option<Verifier>,
    reports: Buckets<NodeName>,
}

impl AgentRpc {
    /// The service, ready to be routed to. `lease` is how long a heartbeat counts; `aws_iam`
    /// lets roles of AWS join; `drain` ends subscriptions and what waits in [`Agent::http`].
    pub(crate) fn service(
        handle: Handle,
        lease: Duration,
        aws_iam: Option<Verifier>,
        drain: CancellationToken,
    ) -> AgentServer<Self> {
        let (joins, nonces) = (Buckets::new(JOIN_PACE), Buckets::new(NONCE_PACE));
        let reports = Buckets::new(REPORT_PACE);
        AgentServer::new(Self { handle, lease, drain, joins, nonces, aws_iam, reports })
            .max_decoding_message_size(MESSAGE_OCTETS_MAX)
    }

    /// Uses up a join token for `node`, and signs its first certificate.
    async fn admit(&self, request: &v1::JoinRequest) -> Result<v1::JoinReply, Status> {
        let node = agent_name("join_request.node", &request.node)?;
        if request.secret.len() != SECRET_OCTETS {
            return Err(status::invalid(&Invalid::new(
                "join_request.secret",
                format_args!("it has {} octets, not {SECRET_OCTETS}", request.secret.len()),
            )));
        }
        refuse_revoked(&self.handle.reader.current(), &node, None)?;
        // A token is spent only on a request that can be signed.
        self.handle.ca.check(self.handle.reader.current().authority(), &request.csr)?;
        let hash = Sha256::digest(&request.secret).into();
        // Who asks again with the same key did not hear the answer.
        let key = Some(ca::key_hash(&request.csr)?);
        let used = Command::UseJoinToken { hash, node: node.clone(), key };
        self.handle.proposer.propose(used).await?;
        tracing::info!(%node, "joined");
        self.welcome(node, request.csr.clone()).await
    }

    /// Lets in the role that signed, under a name that it may have, and signs its certificate.
    async fn admit_role(&self, request: &v1::JoinAwsRequest) -> Result<v1::JoinReply, Status> {
        let verifier = self.aws_iam()?;
        let node = agent_name("join_aws_request.node", &request.node)?;
        let v1::JoinAwsRequest { access_key_id, date, session_token, signature, .. } = request;
        let proof = Proof::parse(access_key_id, date, session_token, signature)
            .map_err(|why| Status::invalid_argument(format!("join_aws_request.{why}")))?;
        // A question at STS is spent only on a request that can be signed.
        self.handle.ca.check(self.handle.reader.current().authority(), &request.csr)?;
        let key = ca::key_hash(&request.csr)?;
        let caller = verifier.identify(&node, &request.nonce, key, &proof, now()).await?;
        // A name is its first owner's for as long as that lives, whoever else may have it.
        let reading = self.handle.reader.read(Consistency::Default).await?;
        if is_alive(&reading.state, &node) {
            return Err(Status::aborted(format!(
                "a node called {node} is alive: stop it first, or take another name"
            )));
        }
        tracing::info!(%node, arn = caller.arn(), "joined by AWS IAM");
        self.welcome(node, request.csr.clone()).await
    }

    fn aws_iam(&self) -> Result<&Verifier, Status> {
        self.aws_iam.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "this server lets nobody join by AWS IAM: set aws_iam in its configuration",
            )
        })
    }

    /// Counts an attempt to join against where it comes from, unless it was no fault of the caller.
    async fn counted(
        &self,
        extensions: &Extensions,
        admitted: impl Future<Output = Result<v1::JoinReply, Status>>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        let source = source(extensions)?;
        // Taken before, and given back after, so that trying in parallel gains nothing.
        self.joins.take(&source, Instant::now()).map_err(|wait| {
            let wait = wait.as_secs() + 1;
            Status::resource_exhausted(format!(
                "too many failed attempts to join from {source}: try again in {wait} s"
            ))
        })?;
        let joined = admitted.await;
        match &joined {
            Ok(_) => self.joins.give_back(&source),
            // Not the caller's fault.
            Err(failed)
                if matches!(
                    failed.code(),
                    Code::Unavailable | Code::Internal | Code::Unknown | Code::ResourceExhausted
                ) =>
            {
                self.joins.give_back(&source);
            }
            Err(refused) => {
                let (code, why) = (refused.code(), refused.message());
                tracing::warn!(%source, ?code, ?why, "an attempt to join was refused");
            }
        }
        joined.map(Response::new)
    }

    async fn welcome(&self, node: NodeName, csr: Vec<u8>) -> Result<v1::JoinReply, Status> {
        let certificate = self.sign(node, None, csr).await?;
        let identity = &self.handle.identity;
        Ok(v1::JoinReply {
            certificate: Some(certificate),
            cluster_id: identity.cluster_id().to_owned(),
            datacenter: identity.datacenter().to_string(),
            trust_domain: identity.trust_domain().to_string(),
        })
    }

    /// Signs for `node`, or for `service` on it, away from the threads that carry consensus.
    async fn sign(
        &self,
        node: NodeName,
        service: Option<ServiceName>,
        csr: Vec<u8>,
    ) -> Result<v1::CertificateReply, Status> {
        let (ca, state) = (self.handle.ca.clone(), self.handle.reader.current());
        refuse_revoked(&state, &node, service.as_ref())?;
        let signed = tokio::task::spawn_blocking(move || match service {
            Some(service) => ca.sign_leaf(state.authority(), &csr, &node, &service, now()),
            None => ca.sign_node(state.authority(), &csr, &node, now()),
        });
        let signed = signed.await.map_err(|_| Status::internal("signing failed"))?;
        Ok(reply(&signed?))
    }

    /// Whether the catalog has an instance of `service` on `node`, as far as any server knows.
    async fn runs(&self, node: &NodeName, service: &ServiceName) -> Result<bool, Status> {
        if has_instance(&self.handle.reader.current(), node, service) {
            return Ok(true);
        }
        // It may have been registered at another server, and not have come here yet.
        let reading = self.handle.reader.read(Consistency::Default).await?;
        Ok(has_instance(&reading.state, node, service))
    }
}

#[tonic::async_trait]
impl Agent for AgentRpc {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        Box::pin(self.counted(request.extensions(), self.admit(request.get_ref()))).await
    }

    async fn join_nonce(
        &self,
        request: Request<v1::JoinNonceRequest>,
    ) -> Result<Response<v1::JoinNonceReply>, Status> {
        let verifier = self.aws_iam()?;
        let source = source(request.extensions())?;
        self.nonces.take(&source, Instant::now()).map_err(|_| {
            Status::resource_exhausted(format!("too many attempts to join from {source}"))
        })?;
        let nonce = verifier.nonce().map_err(|why: NoRandomness| Status::internal(why.to_string()));
        Ok(Response::new(v1::JoinNonceReply {
            nonce: nonce?,
            region: verifier.sts().region().as_str().to_owned(),
            sts_host: verifier.sts().host(),
        }))
    }

    async fn join_aws(
        &self,
        request: Request<v1::JoinAwsRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        self.counted(request.extensions(), self.admit_role(request.get_ref())).await
    }

    async fn renew_node(
        &self,
        request: Request<v1::RenewNodeRequest>,
    ) -> Result<Response<v1::CertificateReply>, Status> {
        let node = caller(request.extensions())?;
        self.sign(node, None, request.into_inner().csr).await.map(Response::new)
    }

    async fn sign_leaf(
        &self,
        request: Request<v1::SignLeafRequest>,
    ) -> Result<Response<v1::CertificateReply>, Status> {
        let node = caller(request.extensions())?;
        self.handle.limits.permit(&node, Area::ConnectCa, Access::Write)?;
        let v1::SignLeafRequest { service, csr } = request.into_inner();
        let service: ServiceName = parsed("sign_leaf_request.service", &service)?;
        if !self.runs(&node, &service).await? {
            return Err(Status::permission_denied(format!(
                "node {node} has no instance of {service}: register one first"
            )));
        }
        self.sign(node, Some(service), csr).await.map(Response::new)
    }

    async fn declared(
        &self,
        request: Request<v1::DeclaredRequest>,
    ) -> Result<Response<v1::DeclaredReply>, Status> {
        let node = caller(request.extensions())?;
        self.handle.limits.permit(&node, Area::Catalog, Access::Read)?;
        let reading = self.handle.reader.read(Consistency::Default).await?;
        let rows = rows_of(&reading.state, &node);
        Ok(Response::new((&rows, reading.state.applied()).into()))
    }

    async fn sync(
        &self,
        request: Request<v1::NodeChanges>,
    ) -> Result<Response<v1::SyncReply>, Status> {
        let node = caller(request.extensions())?;
        let changes = NodeChanges::try_from(request.into_inner())
            .map_err(|invalid| status::invalid(&invalid))?;
        check_changes(&changes, &node)?;
        self.handle.limits.permit(&node, Area::Catalog, Access::Write)?;
        let index = self.handle.proposer.propose(Command::SyncNode(changes)).await?;
        self.handle.leases.renew(node);
        Ok(Response::new(v1::SyncReply { index: index.0 }))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::SyncReply>, Status> {
        let node = caller(request.extensions())?;
        let index = match self.handle.proposer.propose(Command::DropNode(node)).await {
            // It had left before, or never registered: what was asked for holds.
            Err(ProposeError::Rejected(Rejection::UnknownNode { .. })) => {
                self.handle.reader.current().applied()
            }
            proposed => proposed?,
        };
        Ok(Response::new(v1::SyncReply { index: index.0 }))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        let node = caller(request.extensions())?;
        let reading = self.handle.reader.read(Consistency::Stale).await?;
        let state = &reading.state;
        let node_index = node_index(state, &node);
        let standing = state.authority().and_then(|held| standing(held, request.get_ref()));
        match standing {
            Some(standing) => self.handle.leases.renew_in_rotation(node, standing),
            None => self.handle.leases.renew(node),
        }
        let interval = self.lease / HEARTBEATS_PER_LEASE;
        Ok(Response::new(v1::HeartbeatReply {
            servers: self.handle.roster.members().iter().map(Into::into).collect(),
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            node_index: node_index.0,
            cut_off: reading.is_cut_off(self.lease),
        }))
    }

    type SubscribeStream = ReceiverStream<Result<v1::Delta, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::Interest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let node = caller(request.extensions())?;
        // A server that has just started knows nothing, and must not say that nothing is there.
        self.handle.reader.read(Consistency::Default).await?;
        let (deltas, stream) = mpsc::channel(DELTAS_IN_FLIGHT);
        let subscription = Subscription {
            reader: self.handle.reader.clone(),
            watches: self.handle.watches.clone(),
            drain: self.drain.clone(),
            interests: request.into_inner(),
            deltas,
        };
        tokio::spawn(async move {
            if let Err(ended) = subscription.run().await {
                tracing::debug!(%node, code = ?ended.code(), "subscription ended");
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportReply>, Status> {
        let node = caller(request.extensions())?;
        self.reports
            .take(&node, Instant::now())
            .map_err(|_| Status::resource_exhausted("reports come too fast: one each 10 s"))?;
        let edges = request.into_inner().edges;
        if edges.len() > EDGES_MAX {
            return Err(too_many("report_request.edges", edges.len(), EDGES_MAX));
        }
        let edges: Vec<(EdgeKey, Tally)> = edges
            .into_iter()
            .map(TryInto::try_into)
            .collect::<Result<_, Invalid>>()
            .map_err(|invalid| status::invalid(&invalid))?;
        let edges = seen_by(&self.handle.reader.current(), &node, edges);
        let history = self.handle.history.clone();
        let recorded = tokio::task::spawn_blocking(move || history.record(now(), edges));
        match recorded.await {
            Ok(Ok(0)) => {}
            Ok(Ok(lost)) => tracing::warn!(lost, "too many different edges in one minute"),
            // What is lost here is history; the agent has nothing better to do with it.
            Ok(Err(error)) => tracing::error!(%error, "cannot record traffic"),
            Err(error) => tracing::error!(%error, "recording traffic failed"),
        }
        Ok(Response::new(v1::ReportReply {}))
    }

    async fn lease(
        &self,
        request: Request<v1::LeaseRequest>,
    ) -> Result<Response<v1::LeaseReply>, Status> {
        let node = caller(request.extensions())?;
        self.handle.shares.lease(node, request.into_inner()).await.map(Response::new)
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveReply>, Status> {
        caller(request.extensions())?;
        let secret = request.into_inner().secret;
        let state = self.handle.reader.read(Consistency::Default).await?.state;
        let Ok(may) = self.handle.acl.resolve(&state, &secret) else {
            return Ok(Response::new(v1::ResolveReply::default()));
        };
        let expires_at = self.handle.acl.expiry(&state, &secret);
        let default = match may.default_policy() {
            DefaultPolicy::Allow => v1::AclDefault::Allow,
            DefaultPolicy::Deny => v1::AclDefault::Deny,
            DefaultPolicy::Off => v1::AclDefault::Unspecified,
        };
        Ok(Response::new(v1::ResolveReply {
            known: true,
            accessor: may.accessor().to_string(),
            default_policy: default.into(),
            rules: hawser_proto::acl::rules_out(&may.rules()),
            expires_at_ms: expires_at.map_or(0, UnixTime::as_millis),
        }))
    }

    async fn http(
        &self,
        request: Request<v1::HttpRequest>,
    ) -> Result<Response<v1::HttpReply>, Status> {
        let peer = peer(request.extensions())?;
        let request = http_request(request.into_inner(), peer)?;
        if !request.method().is_safe() {
            // A write goes on, and into the audit log, whether or not its caller waits for it.
            let handle = self.handle.clone();
            let written = tokio::spawn(async move { crate::http::respond(&handle, request).await });
            let reply = written.await.map_err(|_| Status::internal("the request failed"))?;
            return Ok(Response::new(http_reply(reply)));
        }
        tokio::select! {
            biased;
            reply = crate::http::respond(&self.handle, request) => {
                Ok(Response::new(http_reply(reply)))
            }
            () = self.drain.cancelled() => Err(stopping()),
        }
    }
}

/// One host's stream of deltas.
struct Subscription {
    reader: Reader,
    watches: Watches,
    drain: CancellationToken,
    interests: Streaming<v1::Interest>,
    deltas: mpsc::Sender<Result<v1::Delta, Status>>,
}

impl Subscription {
    /// Sends the whole picture, then what changes of it: each change at once, many together.
    async fn run(mut self) -> Result<(), Status> {
        let ended = self.stream().await;
        if let Err(status) = &ended {
            // Nobody hears it if the agent is gone.
            drop(self.deltas.try_send(Err(status.clone())));
        }
        ended
    }

    async fn stream(&mut self) -> Result<(), Status> {
        let first = timeout(FIRST_INTEREST_MAX, self.interests.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no interest was sent"))??;
        let Some(first) = first else { return Ok(()) };
        let mut interest = interest_of(first)?;
        let mut watched = BTreeSet::new();
        let mut watch = self.watches.subscribe(watched.clone());
        let state = self.follow(&interest, &mut watched, &mut watch, &mut BTreeSet::new());
        self.send(&view::snapshot(&state, &interest)).await?;
        let mut next_at = tokio::time::Instant::now();
        loop {
            let mut topics = tokio::select! {
                biased;
                () = self.drain.cancelled() => return Err(stopping()),
                () = self.deltas.closed() => return Ok(()),
                message = self.interests.message() => {
                    let Some(next) = message? else { return Ok(()) };
                    let next = interest_of(next)?;
                    let added = added(&interest, &next);
                    interest = next;
                    added
                }
                changed = async {
                    sleep_until(next_at).await;
                    watch.changed().await
                } => {
                    next_at = tokio::time::Instant::now() + BETWEEN_DELTAS;
                    changed
                }
            };
            let state = self.follow(&interest, &mut watched, &mut watch, &mut topics);
            let delta = view::delta(&state, &interest, &topics);
            if !delta.changes.is_empty() {
                self.send(&delta).await?;
            }
        }
    }

    /// A state of which every topic was watched before it was read, so that no change after it is
    /// missed; what was not watched before counts as changed.
    fn follow(
        &self,
        interest: &Interest,
        watched: &mut BTreeSet<Topic>,
        watch: &mut Watch,
        changed: &mut BTreeSet<Topic>,
    ) -> Arc<State> {
        loop {
            let state = self.reader.current();
            let topics = view::topics(&state, interest);
            if topics == *watched {
                return state;
            }
            changed.extend(topics.difference(watched).cloned());
            watch.retopic(topics.clone());
            *watched = topics;
        }
    }

    /// Sends, while nothing else goes on: an agent that does not read gets no more changes, and
    /// what it missed comes as one.
    async fn send(&self, delta: &Delta) -> Result<(), Status> {
        let sent = tokio::select! {
            sent = self.deltas.send(Ok(delta.into())) => sent,
            () = self.drain.cancelled() => return Err(stopping()),
        };
        sent.map_err(|_| Status::cancelled("the agent is gone"))
    }
}

/// The topics that make up what `next` asks for and `old` did not.
fn added(old: &Interest, next: &Interest) -> BTreeSet<Topic> {
    let had = |name: &&ServiceName| !old.services.contains(*name) && !old.locals.contains(*name);
    let services = next.services.union(&next.locals).filter(had).cloned().map(Topic::Service);
    let nodes = next.nodes.difference(&old.nodes).cloned().map(Topic::Node);
    let imports = next.imports.difference(&old.imports);
    let imports = imports.map(|key| Topic::Import(key.service.clone()));
    let mut topics: BTreeSet<Topic> = services.chain(nodes).chain(imports).collect();
    if old.locals != next.locals {
        topics.extend([Topic::Intentions, Topic::Exports]);
    }
    if old.gateway != next.gateway {
        topics.insert(Topic::Exports);
    }
    topics
}

fn interest_of(message: v1::Interest) -> Result<Interest, Status> {
    let names = [
        ("interest.services", message.services.len()),
        ("interest.locals", message.locals.len()),
        ("interest.nodes", message.nodes.len()),
        ("interest.imports", message.imports.len()),
    ];
    for (field, count) in names {
        if count > INTEREST_MAX {
            return Err(too_many(field, count, INTEREST_MAX));
        }
    }
    Interest::try_from(message).map_err(|invalid| status::invalid(&invalid))
}

/// Who calls, verified by the handshake.
fn peer(extensions: &Extensions) -> Result<Peer, Status> {
    extensions.get::<Peer>().cloned().ok_or_else(|| {
        Status::unauthenticated("this call needs a node certificate: join with a join token first")
    })
}

/// The node that the caller's certificate names.
fn caller(extensions: &Extensions) -> Result<NodeName, Status> {
    match peer(extensions)?.id.role {
        Role::Agent(node) => Ok(node),
        Role::Server(_) | Role::Service(_) | Role::MeshGateway => {
            Err(Status::permission_denied("only a node's agent may call this"))
        }
    }
}

/// What one who has no certificate yet is counted under.
fn source(extensions: &Extensions) -> Result<IpAddr, Status> {
    let source = extensions.get::<Source>().copied().map(Source::network);
    source.ok_or_else(|| Status::internal("the connection has no address"))
}

/// Whether the catalog has `node`, and no word that it is dead.
/// The name of a node that may have an agent: one that an identity can carry.
fn agent_name(field: &'static str, text: &str) -> Result<NodeName, Status> {
    NodeName::of_agent(text).map_err(|why| status::invalid(&Invalid::new(field, why)))
}

fn is_alive(state: &State, node: &NodeName) -> bool {
    let catalog = state.catalog();
    let is_dead = catalog.checks_on(node).any(|row| {
        row.value.id.as_str() == NODE_LIVENESS_CHECK && row.value.status == health::Status::Critical
    });
    catalog.node(node).is_some() && !is_dead
}

/// Refuses changes to another node, and to what belongs to the servers.
fn check_changes(changes: &NodeChanges, caller: &NodeName) -> Result<(), Status> {
    if changes.node.name != *caller {
        return Err(Status::permission_denied(format!(
            "node {caller} may not change node {}",
            changes.node.name
        )));
    }
    let reserved = |field| {
        let why = format_args!("{NODE_LIVENESS_CHECK} belongs to the servers: choose another id");
        Err(status::invalid(&Invalid::new(field, why)))
    };
    if changes.put_checks.iter().any(|check| check.id.as_str() == NODE_LIVENESS_CHECK) {
        return reserved("node_changes.put_checks.id");
    }
    if changes.drop_checks.iter().any(|id| id.as_str() == NODE_LIVENESS_CHECK) {
        return reserved("node_changes.drop_checks");
    }
    changes.check_bounds().map_err(|why| Status::invalid_argument(format!("node_changes.{why}")))
}

/// Refuses to certify what is revoked.
fn refuse_revoked(
    state: &State,
    node: &NodeName,
    service: Option<&ServiceName>,
) -> Result<(), Status> {
    let subjects = [Some(Subject::Node(node.clone())), service.cloned().map(Subject::Service)];
    match subjects.into_iter().flatten().find(|it| state.revocations().get(it).is_some()) {
        Some(subject) => Err(SignError::Revoked(subject).into()),
        None => Ok(()),
    }
}

/// How far an agent has come with the rotation of `authority`; none while there is none.
fn standing(authority: &Authority, beat: &v1::HeartbeatRequest) -> Option<Standing> {
    let active = authority.active().filter(|_| authority.roots.len() > 1)?;
    let is_trusted = |root: &Root| beat.trusts.iter().any(|id| **id == *root.id);
    Some(Standing {
        authority: authority.index,
        trusts: authority.roots.iter().all(is_trusted),
        // An agent that says nothing is of a release that cannot.
        reissued: !beat.shows.is_empty() && beat.shows.iter().all(|id| **id == *active.id),
    })
}

fn has_instance(state: &State, node: &NodeName, service: &ServiceName) -> bool {
    state.catalog().instances_on(node).any(|row| row.value.service == *service)
}

/// The node's rows, without its liveness, which is not the agent's to declare.
fn rows_of(state: &State, node: &NodeName) -> Rows {
    let catalog = state.catalog();
    let own = |id: &str| id != NODE_LIVENESS_CHECK;
    Rows {
        node: catalog.node(node).map(|row| row.value.as_ref().clone()),
        instances: catalog
            .instances_on(node)
            .map(|row| (row.value.id.clone(), row.value.as_ref().clone()))
            .collect::<BTreeMap<_, _>>(),
        checks: catalog
            .checks_on(node)
            .filter(|row| own(row.value.id.as_str()))
            .map(|row| (row.value.id.clone(), row.value.as_ref().clone()))
            .collect::<BTreeMap<_, _>>(),
    }
}

/// The last entry that put one of the node's own rows; zero when the catalog does not know it.
fn node_index(state: &State, node: &NodeName) -> Index {
    let catalog = state.catalog();
    let Some(row) = catalog.node(node) else { return Index(0) };
    let instances = catalog.instances_on(node).map(|row| row.modified);
    let checks = catalog
        .checks_on(node)
        .filter(|row| row.value.id.as_str() != NODE_LIVENESS_CHECK)
        .map(|row| row.modified);
    instances.chain(checks).fold(row.modified, Index::max)
}

/// The edges that a proxy on `node` can have seen: those that one of its services is an end of.
fn seen_by(state: &State, node: &NodeName, edges: Vec<(EdgeKey, Tally)>) -> Vec<(EdgeKey, Tally)> {
    let services: BTreeSet<&ServiceName> =
        state.catalog().instances_on(node).map(|row| &row.value.service).collect();
    edges
        .into_iter()
        .filter(|(key, _)| services.contains(&key.source) || services.contains(&key.destination))
        .collect()
}

fn reply(issued: &Issued) -> v1::CertificateReply {
    v1::CertificateReply {
        chain: issued.chain.iter().map(|certificate| certificate.to_vec()).collect(),
        roots: issued.roots.iter().map(|root| root.to_vec()).collect(),
        validity: Some((&issued.validity).into()),
        issuing_root: issued.root.to_string(),
    }
}

fn http_request(message: v1::HttpRequest, peer: Peer) -> Result<http::Request<Bytes>, Status> {
    if message.headers.len() > HEADERS_MAX {
        return Err(too_many("http_request.headers", message.headers.len(), HEADERS_MAX));
    }
    let invalid = |field, why: String| status::invalid(&Invalid::new(field, why));
    let method: http::Method =
        message.method.parse().map_err(|_| invalid("http_request.method", "no method".into()))?;
    let target: http::Uri = message
        .target
        .parse()
        .map_err(|why: http::uri::InvalidUri| invalid("http_request.target", why.to_string()))?;
    let mut request = http::Request::new(message.body);
    *request.method_mut() = method;
    *request.uri_mut() = target;
    for header in message.headers {
        let name = http::HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|why| invalid("http_request.headers.name", why.to_string()))?;
        let value = http::HeaderValue::from_bytes(&header.value)
            .map_err(|why| invalid("http_request.headers.value", why.to_string()))?;
        request.headers_mut().append(name, value);
    }
    request.extensions_mut().insert(peer);
    Ok(request)
}

fn http_reply(reply: http::Response<Bytes>) -> v1::HttpReply {
    let (head, body) = reply.into_parts();
    let headers = head.headers.iter().map(|(name, value)| v1::Header {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_vec(),
    });
    v1::HttpReply { status: u32::from(head.status.as_u16()), headers: headers.collect(), body }
}

fn parsed<T>(field: &'static str, text: &str) -> Result<T, Status>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|why| status::invalid(&Invalid::new(field, why)))
}

fn too_many(field: &'static str, count: usize, max: usize) -> Status {
    status::invalid(&Invalid::new(field, format_args!("there are {count}, and {max} is the most")))
}

fn stopping() -> Status {
    Status::unavailable("this server is stopping: ask another")
}

const SECRET_OCTETS: usize = 32;
const MESSAGE_OCTETS_MAX: usize = 8 * 1024 * 1024;
/// Attempts that failed, per source.
const JOIN_PACE: Pace = Pace { burst: 5, every: Duration::from_secs(12) };
/// Giving one out costs little; using one counts as an attempt to join.
const NONCE_PACE: Pace = Pace { burst: 30, every: Duration::from_secs(2) };
const REPORT_PACE: Pace = Pace { burst: 6, every: Duration::from_secs(5) };
const HEARTBEATS_PER_LEASE: u32 = 3;
const DELTAS_IN_FLIGHT: usize = 1;
/// The first change goes out at once; those in the next moments go together.
const BETWEEN_DELTAS: Duration = Duration::from_millis(20);
const FIRST_INTEREST_MAX: Duration = Duration::from_secs(10);
const INTEREST_MAX: usize = 4096;
const EDGES_MAX: usize = 4096;
const HEADERS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use hawser_core::catalog::{Check, Instance, Node};
    use hawser_core::intention::Action;
    use hawser_core::view::View;
    use hawser_proto::v1::agent_client::AgentClient;
    use rustls::pki_types::CertificateDer;
    use tempfile::TempDir;
    use tonic::transport::Channel;

    use super::*;
    use crate::aws_iam::{AwsIam, Policy};
    use crate::identity::OperatorKey;
    use crate::tls::tests::{config_of, csr};
    use crate::{Config, RaftTiming, Server, config, history, tls, traffic};

    type Client = AgentClient<Channel>;

    /// A cluster of one server.
    struct Fixture {
        handle: Handle,
        address: String,
        drain: CancellationToken,
        _folder: TempDir,
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            self.drain.cancel();
        }
    }

    impl Fixture {
        async fn new() -> Self {
            Self::with(None).await
        }

        async fn with(aws_iam: Option<AwsIam>) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let advertise = listener.local_addr().expect("bound");
            let config = Config {
                node: "s1".parse().expect("a name"),
                datacenter: "dc1".parse().expect("a name"),
                data_dir: folder.path().to_owned(),
                advertise,
                bootstrap_expect: 1,
                retry_join: Vec::new(),
                operator_key: OperatorKey::generate().expect("randomness"),
                default_action: Action::Deny,
                reap_after: config::REAP_AFTER,
                leaf_lifetime: Duration::from_secs(3600),
                timing: RaftTiming::default(),
                lease: config::LEASE,
                history: history::Limits::default(),
                aws_iam: aws_iam.clone(),
                acl: crate::acl::Settings::default(),
                snapshot_every: config::SNAPSHOT_EVERY,
                log_bytes_max: config::LOG_BYTES_MAX,
                planted: crate::planted::Planted::default(),
            };
            let registry = prometheus::Registry::new();
            let server = Server::start(config, listener, &registry).await.expect("starts");
            let (handle, drain) = (server.handle(), CancellationToken::new());
            tokio::spawn(server.run(drain.clone()));
            let fixture = Self { handle, address: advertise.to_string(), drain, _folder: folder };
            fixture.until(|state| state.authority().is_some()).await;
            fixture
        }

        /// Waits until the state is as `wanted`.
        async fn until(&self, wanted: impl Fn(&State) -> bool) {
            let topics = BTreeSet::from([Topic::Authority, Topic::Nodes, Topic::Names]);
            let mut watch = self.handle.watches.subscribe(topics);
            let wait = async {
                while !wanted(&self.handle.reader.current()) {
                    watch.changed().await;
                }
            };
            timeout(Duration::from_secs(30), wait).await.expect("in time");
        }

        /// A client without a certificate.
        fn stranger(&self) -> Client {
            let config = config_of(&self.handle.identity, None);
            AgentClient::new(tls::channel(config.into(), &self.address).expect("an address"))
        }

        /// The agent of `node`, joined.
        async fn agent(&self, node: &str) -> Client {
            let (csr, key) = csr();
            let secret = self.secret(node, Duration::from_secs(60)).await;
            let request = v1::JoinRequest { node: node.to_owned(), secret, csr };
            let reply = self.stranger().join(request).await.expect("joined").into_inner();
            assert_eq!(reply.cluster_id, self.handle.identity.cluster_id());
            let chain = reply.certificate.expect("a certificate").chain;
            let chain = chain.into_iter().map(CertificateDer::from).collect();
            let config = config_of(&self.handle.identity, Some((chain, key)));
            AgentClient::new(tls::channel(config.into(), &self.address).expect("an address"))
        }

        /// The secret of a token for `node`.
        async fn secret(&self, node: &str, lifetime: Duration) -> Vec<u8> {
            let node = node.parse().expect("a name");
            let token = self.handle.mint_join_token(&node, lifetime).await.expect("minted");
            let secret = token.split('.').nth(1).expect("three parts");
            URL_SAFE_NO_PAD.decode(secret).expect("base64")
        }
    }

    fn changes(node: &str, services: &[&str]) -> NodeChanges {
        NodeChanges {
            node: Node {
                name: node.parse().expect("a name"),
                id: format!("id of {node}").into(),
                address: "10.0.0.1".parse().expect("an address"),
                locality: Default::default(),
                meta: Default::default(),
                tagged: Default::default(),
            },
            put_instances: services.iter().map(|service| instance(service)).collect(),
            put_checks: Vec::new(),
            drop_instances: Vec::new(),
            drop_checks: Vec::new(),
        }
    }

    fn instance(service: &str) -> Instance {
        Instance {
            id: service.parse().expect("an id"),
            service: service.parse().expect("a name"),
            address: None,
            port: 80,
            tags: BTreeSet::new(),
            meta: Default::default(),
            weights: Default::default(),
            protocol: None,
            mesh_port: Some(21_000),
            enable_tag_override: false,
            gateway: None,
            socket: None,
            ports: Default::default(),
            tagged: Default::default(),
        }
    }

    fn check(id: &str) -> Check {
        Check {
            id: id.parse().expect("an id"),
            name: "".into(),
            kind: "ttl".into(),
            status: health::Status::Passing,
            notes: "".into(),
            output: "".into(),
            instance: None,
            run: Default::default(),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_token_lets_its_node_in_once_and_nobody_else() {
        let fixture = Fixture::new().await;
        let good = fixture.secret("n1", Duration::from_secs(60)).await;
        let lapsed = fixture.secret("n3", Duration::from_millis(1)).await;
        let mut client = fixture.stranger();
        let cases = [
            ("n1", good.clone(), Vec::new(), Code::InvalidArgument, "no request: nothing is spent"),
            ("N/1", good.clone(), csr().0, Code::InvalidArgument, "no node name"),
            ("n2", good.clone(), csr().0, Code::PermissionDenied, "another node's token"),
            ("n1", good.clone(), csr().0, Code::Ok, "the node that it was made for"),
            ("n1", good.clone(), csr().0, Code::PermissionDenied, "J1: used before"),
            ("n3", lapsed, csr().0, Code::PermissionDenied, "J1: lapsed"),
            ("n1", good.clone(), csr().0, Code::ResourceExhausted, "J1: too many failed"),
        ];
        for (node, secret, csr, expected, why) in cases {
            let request = v1::JoinRequest { node: node.to_owned(), secret, csr };
            let code = client.join(request).await.err().map_or(Code::Ok, |refused| refused.code());
            assert_eq!(code, expected, "{why}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_call_but_join_is_for_strangers_or_servers() {
        let fixture = Fixture::new().await;
        let server = tls::dial_config(&fixture.handle.identity).expect("supported");
        let server = AgentClient::new(tls::channel(server, &fixture.address).expect("an address"));
        let stranger = fixture.stranger();
        for (mut client, expected) in
            [(stranger, Code::Unauthenticated), (server, Code::PermissionDenied)]
        {
            let leaf = v1::SignLeafRequest { service: "web".into(), csr: csr().0 };
            let sync: v1::NodeChanges = (&changes("s1", &["web"])).into();
            let nothing = tokio_stream::empty::<v1::Interest>();
            let refused = [
                client.renew_node(v1::RenewNodeRequest { csr: csr().0 }).await.err(),
                client.sign_leaf(leaf).await.err(),
                client.declared(v1::DeclaredRequest {}).await.err(),
                client.sync(sync).await.err(),
                client.leave(v1::LeaveRequest {}).await.err(),
                client.heartbeat(v1::HeartbeatRequest::default()).await.err(),
                client.subscribe(nothing).await.err(),
                client.report(v1::ReportRequest { edges: Vec::new() }).await.err(),
            ];
            for (call, refused) in refused.into_iter().enumerate() {
                assert_eq!(refused.map(|refused| refused.code()), Some(expected), "call {call}");
            }
        }
        let mut stranger = fixture.stranger();
        let refused = stranger.http(v1::HttpRequest::default()).await.expect_err("a stranger");
        assert_eq!(refused.code(), Code::Unauthenticated);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_agent_changes_its_own_node_and_gets_leaves_for_what_runs_there() {
        let fixture = Fixture::new().await;
        let mut client = fixture.agent("n1").await;
        let leaf = |service: &str| v1::SignLeafRequest { service: service.into(), csr: csr().0 };
        let refused = client.sign_leaf(leaf("web")).await.expect_err("J6: not registered");
        assert_eq!(refused.code(), Code::PermissionDenied);

        let mut reserved = changes("n1", &[]);
        reserved.put_checks = vec![check(NODE_LIVENESS_CHECK)];
        let mut dropped = changes("n1", &[]);
        dropped.drop_checks = vec![NODE_LIVENESS_CHECK.parse().expect("an id")];
        let mut long = changes("n1", &[]);
        long.put_checks = vec![Check { output: "x".repeat(70_000).into(), ..check("c") }];
        let mut nameless: v1::NodeChanges = (&changes("n1", &[])).into();
        nameless.node.as_mut().expect("a node").name = "N\n1".into();
        let cases: [(v1::NodeChanges, Code, &str); 5] = [
            ((&changes("n2", &["web"])).into(), Code::PermissionDenied, "n2"),
            ((&reserved).into(), Code::InvalidArgument, "put_checks"),
            ((&dropped).into(), Code::InvalidArgument, "drop_checks"),
            ((&long).into(), Code::InvalidArgument, "output"),
            (nameless, Code::InvalidArgument, "name"),
        ];
        for (message, code, names) in cases {
            let refused = client.sync(message).await.expect_err(names);
            assert_eq!(refused.code(), code, "{names}");
            assert!(refused.message().contains(names), "{refused}");
        }

        let before =
            client.heartbeat(v1::HeartbeatRequest::default()).await.expect("alive").into_inner();
        assert_eq!((before.node_index, before.interval_ms), (0, 5000));
        assert_eq!(before.servers.len(), 1);
        assert_eq!(before.servers[0].address, fixture.address);
        let message: v1::NodeChanges = (&changes("n1", &["web"])).into();
        let index = client.sync(message).await.expect("synced").into_inner().index;
        let after =
            client.heartbeat(v1::HeartbeatRequest::default()).await.expect("alive").into_inner();
        assert_eq!(after.node_index, index);
        let declared = client.declared(v1::DeclaredRequest {}).await.expect("read").into_inner();
        assert_eq!(declared.node.expect("registered").name, "n1");
        assert_eq!(declared.instances.len(), 1);
        assert_eq!(declared.checks, [], "liveness is the servers'");

        let signed = client.sign_leaf(leaf("web")).await.expect("registered").into_inner();
        let (_, certificate) = x509_parser::parse_x509_certificate(&signed.chain[0]).expect("DER");
        let names = certificate.subject_alternative_name().expect("once").expect("there").value;
        assert!(format!("{:?}", names.general_names).contains("/ns/default/dc/dc1/svc/web"));
        let refused = client.sign_leaf(leaf("db")).await.expect_err("T24: not on this node");
        assert_eq!(refused.code(), Code::PermissionDenied);
        let mut other = fixture.agent("n2").await;
        let refused = other.sign_leaf(leaf("web")).await.expect_err("T24: on another node");
        assert_eq!(refused.code(), Code::PermissionDenied);
        let renewed = client.renew_node(v1::RenewNodeRequest { csr: csr().0 }).await;
        assert_eq!(renewed.expect("renewed").into_inner().chain.len(), 2);

        client.leave(v1::LeaveRequest {}).await.expect("left");
        let node = "n1".parse().expect("a name");
        assert!(fixture.handle.reader.current().catalog().node(&node).is_none());
        client.leave(v1::LeaveRequest {}).await.expect("and again");
        let refused = client.sign_leaf(leaf("web")).await.expect_err("it left");
        assert_eq!(refused.code(), Code::PermissionDenied);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_subscription_begins_with_all_and_goes_on_with_what_changes() {
        let fixture = Fixture::new().await;
        let mut client = fixture.agent("n1").await;
        let sync = |services: &[&str]| -> v1::NodeChanges { (&changes("n1", services)).into() };
        client.sync(sync(&["web"])).await.expect("synced");
        let (interests, stream) = mpsc::channel(4);
        let interest = |services: &[&str]| v1::Interest {
            services: services.iter().map(|name| (*name).to_owned()).collect(),
            ..v1::Interest::default()
        };
        interests.send(interest(&["web"])).await.expect("open");
        let deltas = client.subscribe(ReceiverStream::new(stream)).await.expect("subscribed");
        let mut deltas = deltas.into_inner();
        let mut view = View::default();
        let (web, db): (ServiceName, ServiceName) =
            ("web".parse().expect("a name"), "db".parse().expect("a name"));
        let mut next = async |view: &mut View| {
            let delta = timeout(Duration::from_secs(30), deltas.message()).await.expect("in time");
            let delta: Delta = delta?.expect("not the end").try_into().expect("well formed");
            let is_snapshot = delta.is_snapshot;
            *view = view.advanced(delta);
            Ok::<_, Status>(is_snapshot)
        };
        assert!(next(&mut view).await.expect("a delta"), "first the whole picture");
        assert_eq!(view.services[&web].endpoints.len(), 1);
        assert_eq!(view.trust.as_ref().expect("founded").roots.len(), 1);

        client.sync(sync(&["db"])).await.expect("synced");
        interests.send(interest(&["web", "db"])).await.expect("open");
        while view.services.get(&db).is_none_or(|db| db.endpoints.is_empty()) {
            assert!(!next(&mut view).await.expect("a delta"), "then steps");
        }
        assert_eq!(view.services[&web].endpoints.len(), 1, "what was there stays");
        client.leave(v1::LeaveRequest {}).await.expect("left");
        while view.services.values().any(|service| !service.endpoints.is_empty()) {
            assert!(!next(&mut view).await.expect("a delta"));
        }

        let many: Vec<String> = (0..=INTEREST_MAX).map(|at| format!("s{at}")).collect();
        let many = v1::Interest { services: many, ..v1::Interest::default() };
        interests.send(many).await.expect("open");
        let refused = loop {
            if let Err(refused) = next(&mut view).await {
                break refused;
            }
        };
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("interest.services"), "{refused}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_report_counts_edges_of_the_callers_own_services_only() {
        let fixture = Fixture::new().await;
        let mut client = fixture.agent("n1").await;
        let message: v1::NodeChanges = (&changes("n1", &["web"])).into();
        client.sync(message).await.expect("synced");
        let edge = |source: &str, destination: &str| v1::Edge {
            source: source.into(),
            destination: destination.into(),
            count: 3,
            ..v1::Edge::default()
        };
        let edges = vec![edge("web", "db"), edge("app", "web"), edge("app", "db")];
        client.report(v1::ReportRequest { edges }).await.expect("recorded");
        let merged = traffic::merged(&fixture.handle, 5).await;
        assert_eq!(merged.silent, []);
        let counted: Vec<_> = merged
            .edges
            .iter()
            .map(|(key, tally)| (key.source.as_str(), key.destination.as_str(), tally.count))
            .collect();
        assert_eq!(counted, [("app", "web", 3), ("web", "db", 3)]);
        for edges in [vec![edge("web", "db"); EDGES_MAX + 1], vec![edge("web", "D B")]] {
            let refused = client.report(v1::ReportRequest { edges }).await.expect_err("refused");
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_http_request_is_answered_or_refused_by_its_field() {
        let fixture = Fixture::new().await;
        let mut client = fixture.agent("n1").await;
        let get = |target: &str| v1::HttpRequest {
            method: "GET".into(),
            target: target.into(),
            ..v1::HttpRequest::default()
        };
        let reply = client.http(get("/v1/status/leader")).await.expect("answered").into_inner();
        assert_eq!(reply.status, 200);
        assert_eq!(reply.body, format!("\"{}\"", fixture.address).into_bytes());
        let bad_header = v1::Header { name: "a b".into(), value: Vec::new() };
        let cases = [
            (get("/v1/\u{7f}"), "target"),
            (v1::HttpRequest { method: "G T".into(), ..get("/") }, "method"),
            (v1::HttpRequest { headers: vec![bad_header.clone()], ..get("/") }, "headers.name"),
            (v1::HttpRequest { headers: vec![bad_header; HEADERS_MAX + 1], ..get("/") }, "129"),
        ];
        for (request, names) in cases {
            let refused = client.http(request).await.expect_err(names);
            assert_eq!(refused.code(), Code::InvalidArgument, "{names}");
            assert!(refused.message().contains(names), "{refused}");
        }
    }

    #[test]
    fn hosts_on_ipv6_are_counted_by_their_network() {
        for (address, network) in [
            ("10.1.2.3", "10.1.2.3"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            let parsed: IpAddr = address.parse().expect("an address");
            assert_eq!(
                Source(std::net::SocketAddr::new(parsed, 1)).network().to_string(),
                network,
                "{address}"
            );
        }
    }

    /// An STS that knows everybody as `arn`, and where it is asked.
    async fn sts(arn: &'static str) -> AwsIam {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let account = arn.split(':').nth(4).expect("an ARN").to_owned();
        tokio::spawn(crate::aws_iam::tests::answering(listener, move |_| {
            (200, crate::aws_iam::tests::identity(arn, &account))
        }));
        let rules = [("arn:aws:iam::123456789012:role/web", "n*")];
        AwsIam {
            sts: hawser_aws::Sts::new(
                "eu-west-1".parse().expect("a region"),
                endpoint.parse().expect("an endpoint"),
            ),
            policy: Policy::new(["123456789012"], rules).expect("a policy"),
        }
    }

    async fn signed(client: &mut Client, node: &str) -> v1::JoinAwsRequest {
        let nonce = client.join_nonce(v1::JoinNonceRequest {}).await.expect("one").into_inner();
        assert_eq!(nonce.region, "eu-west-1");
        v1::JoinAwsRequest {
            node: node.into(),
            csr: csr().0,
            nonce: nonce.nonce,
            access_key_id: "ASIAEXAMPLEEXAMPLE".into(),
            date: hawser_aws::AmzDate::now().as_str().into(),
            session_token: String::new(),
            signature: "ab".repeat(32),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_role_joins_under_its_names_and_under_no_living_ones() {
        let iam = sts("arn:aws:sts::123456789012:assumed-role/web/i-1").await;
        let fixture = Fixture::with(Some(iam)).await;
        let mut client = fixture.stranger();
        let good = signed(&mut client, "n1").await;
        let joined = client.join_aws(good.clone()).await.expect("joined").into_inner();
        assert_eq!(joined.certificate.expect("a certificate").chain.len(), 2);
        let again = client.join_aws(good).await.expect_err("replayed");
        assert_eq!(again.code(), Code::PermissionDenied);
        assert!(again.message().contains("used before"), "{again}");
        let other = signed(&mut client, "db1").await;
        let other = client.join_aws(other).await.expect_err("not its name");
        assert!(other.message().contains("may not be node db1"), "{other}");
        let unsigned = v1::JoinAwsRequest { csr: vec![1], ..signed(&mut client, "n1").await };
        let unsigned = client.join_aws(unsigned).await.expect_err("no CSR");
        assert_eq!(unsigned.code(), Code::InvalidArgument);
        let header = signed(&mut client, "n1").await;
        let header = v1::JoinAwsRequest { session_token: "a\r\nHost: b".into(), ..header };
        let header = client.join_aws(header).await.expect_err("a header");
        assert!(header.message().contains("session_token"), "{header}");

        let fixture = {
            let iam = sts("arn:aws:sts::123456789012:assumed-role/web/i-1").await;
            Fixture::with(Some(iam)).await
        };
        let mut owner = fixture.agent("n1").await;
        let message: v1::NodeChanges = (&changes("n1", &["web"])).into();
        owner.sync(message).await.expect("synced");
        let mut client = fixture.stranger();
        let taken = signed(&mut client, "n1").await;
        let taken = client.join_aws(taken).await.expect_err("the name is taken");
        assert_eq!(taken.code(), Code::Aborted, "{taken}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn refused_roles_are_counted_and_no_policy_lets_nobody_in() {
        let iam = sts("arn:aws:sts::123456789012:assumed-role/other/i-1").await;
        let fixture = Fixture::with(Some(iam)).await;
        let mut client = fixture.stranger();
        for _ in 0..JOIN_PACE.burst {
            let request = signed(&mut client, "n1").await;
            let refused = client.join_aws(request).await.expect_err("refused");
            assert!(refused.message().contains("role/other may not join"), "{refused}");
        }
        let request = signed(&mut client, "n1").await;
        let paced = client.join_aws(request).await.expect_err("too many");
        assert_eq!(paced.code(), Code::ResourceExhausted, "{paced}");

        let fixture = Fixture::new().await;
        let mut client = fixture.stranger();
        let none = client.join_nonce(v1::JoinNonceRequest {}).await.expect_err("no policy");
        assert_eq!(none.code(), Code::FailedPrecondition);
        let none = client.join_aws(v1::JoinAwsRequest::default()).await.expect_err("no policy");
        assert!(none.message().contains("set aws_iam"), "{none}");
    }
}
