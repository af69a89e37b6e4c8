//! What agents ask of servers: parse, then propose, read, watch or sign, then encode.
//!
//! Tasks: one per subscription, ended by its agent, by `drain`, or with its connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hawser_core::anti_entropy::Rows;
use hawser_core::clock::Index;
use hawser_core::edge::{EdgeKey, Tally};
use hawser_core::health::NODE_LIVENESS_CHECK;
use hawser_core::name::{NodeName, ServiceName};
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

use crate::ca::{Buckets, Issued, Pace};
use crate::handle::Handle;
use crate::identity::now;
use crate::propose::ProposeError;
use crate::read::{Consistency, Reader};
use crate::rpc::status;
use crate::tls::{Peer, Source};
use crate::watch::Watches;

/// The agents' service. Every call but [`Agent::join`] acts for the node that the caller's
/// certificate names, and for no other.
pub(crate) struct AgentRpc {
    handle: Handle,
    /// How long a heartbeat counts.
    lease: Duration,
    drain: CancellationToken,
    joins: Buckets<IpAddr>,
    reports: Buckets<NodeName>,
}

impl AgentRpc {
    /// The service, ready to be routed to. `lease` is how long a heartbeat counts; `drain` ends
    /// subscriptions and what waits in [`Agent::http`].
    pub(crate) fn service(
        handle: Handle,
        lease: Duration,
        drain: CancellationToken,
    ) -> AgentServer<Self> {
        let (joins, reports) = (Buckets::new(JOIN_PACE), Buckets::new(REPORT_PACE));
        AgentServer::new(Self { handle, lease, drain, joins, reports })
            .max_decoding_message_size(MESSAGE_OCTETS_MAX)
    }

    /// Uses up a join token for `node`, and signs its first certificate.
    async fn admit(&self, request: &v1::JoinRequest) -> Result<v1::JoinReply, Status> {
        let node: NodeName = parsed("join_request.node", &request.node)?;
        if request.secret.len() != SECRET_OCTETS {
            return Err(status::invalid(&Invalid::new(
                "join_request.secret",
                format_args!("it has {} octets, not {SECRET_OCTETS}", request.secret.len()),
            )));
        }
        // A token is spent only on a request that can be signed.
        self.handle.ca.check(self.handle.reader.current().authority(), &request.csr)?;
        let hash = Sha256::digest(&request.secret).into();
        let used = Command::UseJoinToken { hash, node: node.clone() };
        self.handle.proposer.propose(used).await?;
        tracing::info!(%node, "joined");
        let certificate = self.sign(node, None, request.csr.clone()).await?;
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
        let source = request.extensions().get::<Source>().map(|source| source.0.ip());
        let source = source.ok_or_else(|| Status::internal("the connection has no address"))?;
        let source = network_of(source);
        // Taken before, and given back after, so that trying in parallel gains nothing.
        self.joins.take(&source, Instant::now()).map_err(|wait| {
            let wait = wait.as_secs() + 1;
            Status::resource_exhausted(format!(
                "too many failed attempts to join from {source}: try again in {wait} s"
            ))
        })?;
        let joined = self.admit(request.get_ref()).await;
        match &joined {
            Ok(_) => self.joins.give_back(&source),
            // Not the caller's fault.
            Err(failed) if matches!(failed.code(), Code::Unavailable | Code::Internal) => {
                self.joins.give_back(&source);
            }
            Err(refused) => {
                tracing::warn!(%source, code = ?refused.code(), "an attempt to join was refused");
            }
        }
        joined.map(Response::new)
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
        let node_index = node_index(&self.handle.reader.current(), &node);
        self.handle.leases.renew(node);
        let interval = self.lease / HEARTBEATS_PER_LEASE;
        Ok(Response::new(v1::HeartbeatReply {
            servers: self.handle.roster.members().iter().map(Into::into).collect(),
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
            node_index: node_index.0,
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

    async fn http(
        &self,
        request: Request<v1::HttpRequest>,
    ) -> Result<Response<v1::HttpReply>, Status> {
        let peer = peer(request.extensions())?;
        let request = http_request(request.into_inner(), peer)?;
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
        // Subscribed first and read after, so that no change is missed in between.
        let mut watch = self.watches.subscribe(view::topics(&interest));
        self.send(&view::snapshot(&self.reader.current(), &interest)).await?;
        let mut next_at = tokio::time::Instant::now();
        loop {
            let topics = tokio::select! {
                biased;
                () = self.drain.cancelled() => return Err(stopping()),
                () = self.deltas.closed() => return Ok(()),
                message = self.interests.message() => {
                    let Some(next) = message? else { return Ok(()) };
                    let next = interest_of(next)?;
                    watch.retopic(view::topics(&next));
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
            let delta = view::delta(&self.reader.current(), &interest, &topics);
            if !delta.changes.is_empty() {
                self.send(&delta).await?;
            }
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
    let mut topics: BTreeSet<Topic> = services.chain(nodes).collect();
    if old.locals != next.locals {
        topics.insert(Topic::Intentions);
    }
    topics
}

fn interest_of(message: v1::Interest) -> Result<Interest, Status> {
    let names = [
        ("interest.services", message.services.len()),
        ("interest.locals", message.locals.len()),
        ("interest.nodes", message.nodes.len()),
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

/// What one who joins is counted under: hosts on IPv6 have a whole network each.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
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
    let long = |text: &str| text.len() > CHECK_TEXT_OCTETS_MAX;
    if changes.put_checks.iter().any(|check| long(&check.output) || long(&check.notes)) {
        let why = format_args!("it is longer than {CHECK_TEXT_OCTETS_MAX} octets");
        return Err(status::invalid(&Invalid::new("node_changes.put_checks.output", why)));
    }
    Ok(())
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
    let mut request = http::Request::new(Bytes::from(message.body));
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
    v1::HttpReply {
        status: u32::from(head.status.as_u16()),
        headers: headers.collect(),
        body: body.into(),
    }
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
const REPORT_PACE: Pace = Pace { burst: 6, every: Duration::from_secs(5) };
const HEARTBEATS_PER_LEASE: u32 = 3;
const DELTAS_IN_FLIGHT: usize = 1;
/// The first change goes out at once; those in the next moments go together.
const BETWEEN_DELTAS: Duration = Duration::from_millis(20);
const FIRST_INTEREST_MAX: Duration = Duration::from_secs(10);
const INTEREST_MAX: usize = 4096;
const EDGES_MAX: usize = 4096;
const HEADERS_MAX: usize = 128;
const CHECK_TEXT_OCTETS_MAX: usize = 64 * 1024;
