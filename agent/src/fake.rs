//! A server's Agent service for tests: real TLS and HTTP/2 on loopback, the real state behind it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::Stream;
use hawser_core::anti_entropy::Rows;
use hawser_core::ca::{Authority, Intermediate, Policy, Root, Validity};
use hawser_core::clock::{Index, Stamp};
use hawser_core::health::NODE_LIVENESS_CHECK;
use hawser_core::intention::Action;
use hawser_core::name::{NodeName, ServiceName};
use hawser_core::revocation::{Revoked, Serial};
use hawser_core::state::{Cluster, Command, State};
use hawser_core::view::{Interest, snapshot};
use hawser_identity::{Anchors, Callers};
use hawser_proto::v1::agent_server::{Agent, AgentServer};
use hawser_proto::v1::{self, NodeChanges};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::clock;

/// A cluster of one server that can die and come back.
#[derive(Clone)]
pub(crate) struct Fake {
    inner: Arc<Inner>,
}

struct Inner {
    server_root: Made,
    mesh_root: Made,
    held: Mutex<Held>,
    changed: watch::Sender<u64>,
}

struct Held {
    state: State,
    leaf_lifetime: Duration,
    refused: BTreeSet<ServiceName>,
    leaves_signed: u32,
    left: u32,
    address: Option<SocketAddr>,
    cut_off: bool,
    revoked: Arc<Revoked>,
}

struct Made {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// The fake while it listens.
pub(crate) struct Listening {
    pub(crate) address: SocketAddr,
    stop: CancellationToken,
    stopped: tokio::task::JoinHandle<()>,
}

impl Listening {
    /// Dies: every connection with it.
    pub(crate) async fn kill(self) {
        self.stop.cancel();
        let _ = self.stopped.await;
    }
}

pub(crate) const TRUST_DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

impl Fake {
    pub(crate) fn new() -> Self {
        let (server_root, mesh_root) = (root("server root"), root("mesh root"));
        let held = Held {
            state: founded(&mesh_root),
            leaf_lifetime: Duration::from_secs(3600),
            refused: BTreeSet::new(),
            leaves_signed: 0,
            left: 0,
            address: None,
            cut_off: false,
            revoked: Arc::default(),
        };
        let inner = Inner {
            server_root,
            mesh_root,
            held: Mutex::new(held),
            changed: watch::Sender::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Becomes a new cluster with the same roots: its catalog is empty and its log starts anew.
    pub(crate) fn rebuild(&self) {
        self.held().state = founded(&self.inner.mesh_root);
        self.inner.changed.send_modify(|count| *count += 1);
    }

    /// A join token that this fake takes.
    pub(crate) fn token(&self) -> String {
        let pin = crate::tls::pin_of(&self.inner.server_root.der).expect("a certificate");
        token(SECRET, &pin)
    }

    /// A join token with its secret, but the pin of somebody else.
    pub(crate) fn token_with_other_pin(&self) -> String {
        token(SECRET, &[9; 32])
    }

    pub(crate) fn wrong_token(&self) -> String {
        let pin = crate::tls::pin_of(&self.inner.server_root.der).expect("a certificate");
        token(&[8; 32], &pin)
    }

    pub(crate) fn sign_for(&self, lifetime: Duration) {
        self.held().leaf_lifetime = lifetime;
    }

    pub(crate) fn refuse(&self, service: &str) {
        self.held().refused.insert(service.parse().expect("a name"));
    }

    /// Says from now on that it is cut off from the other servers.
    pub(crate) fn cut_off(&self) {
        self.held().cut_off = true;
    }

    /// Believes no one from now on who shows the certificate with this serial number.
    pub(crate) fn revoke(&self, serial: Serial) {
        let certificates = BTreeSet::from([serial]);
        self.held().revoked = Arc::new(Revoked { certificates, ..Revoked::default() });
    }

    pub(crate) fn leaves_signed(&self) -> u32 {
        self.held().leaves_signed
    }

    pub(crate) fn left(&self) -> u32 {
        self.held().left
    }

    pub(crate) fn services(&self) -> Vec<String> {
        self.held().state.catalog().services().map(ToString::to_string).collect()
    }

    /// Writes to the state as another server would.
    pub(crate) fn apply(&self, command: Command) {
        apply(&mut self.held().state, command);
        self.inner.changed.send_modify(|count| *count += 1);
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.inner.held.lock().expect("not poisoned")
    }

    /// Listens with the certificate of a server; at `address`, or anywhere.
    pub(crate) async fn listen(&self, address: Option<SocketAddr>) -> Listening {
        self.listen_as("agent/server/dc/dc1/id/s1", address).await
    }

    /// Listens with a certificate under the server root for any path.
    pub(crate) async fn listen_as(&self, path: &str, address: Option<SocketAddr>) -> Listening {
        let address = address.unwrap_or_else(|| "127.0.0.1:0".parse().expect("an address"));
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        self.held().address = Some(address);
        let key = KeyPair::generate().expect("a key");
        let uri = format!("spiffe://{TRUST_DOMAIN}/{path}");
        let leaf = leaf(&uri, &key, Duration::from_secs(3600), &self.inner.server_root);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let anchors = Anchors::new(
            TRUST_DOMAIN.parse().expect("a trust domain"),
            "dc1".parse().expect("a name"),
        );
        let anchors =
            anchors.agents([&self.inner.mesh_root.der[..]]).revoked(self.held().revoked.clone());
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("supported")
            .with_client_cert_verifier(Arc::new(Callers::or_strangers(Arc::new(anchors))))
            .with_single_cert(vec![leaf, self.inner.server_root.der.clone()], key)
            .expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let (stop, fake) = (CancellationToken::new(), self.clone());
        let until = stop.clone();
        let stopped = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (socket, _) = tokio::select! {
                    () = until.cancelled() => break,
                    accepted = listener.accept() => accepted.expect("accepted"),
                };
                let (acceptor, fake) = (acceptor.clone(), fake.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let node = stream
                        .get_ref()
                        .1
                        .peer_certificates()
                        .and_then(|chain| hawser_identity::id_of(chain.first()?).ok());
                    let service = tower::service_fn(move |mut request: http::Request<_>| {
                        if let Some(node) = &node {
                            request.extensions_mut().insert(node.clone());
                        }
                        let mut service = AgentServer::new(fake.clone());
                        tower::Service::call(&mut service, request)
                    });
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                        .await;
                });
            }
            connections.shutdown().await;
        });
        Listening { address, stop, stopped }
    }

    fn certificate(&self, uri: &str, csr: &[u8], lifetime: Duration) -> v1::CertificateReply {
        let csr = rcgen::CertificateSigningRequestParams::from_der(&csr.to_vec().into())
            .expect("a request");
        let certificate = leaf(uri, &csr.public_key, lifetime, &self.inner.mesh_root);
        let validity =
            Validity { not_before: clock::now(), not_after: clock::now().plus(lifetime) };
        v1::CertificateReply {
            chain: vec![certificate.to_vec()],
            roots: vec![self.inner.mesh_root.der.to_vec()],
            validity: Some((&validity).into()),
            issuing_root: "00".to_owned(),
        }
    }
}

fn token(secret: &[u8], pin: &[u8]) -> String {
    format!("hj1.{}.{}", URL_SAFE_NO_PAD.encode(secret), URL_SAFE_NO_PAD.encode(pin))
}

/// The state of a cluster that was just founded.
fn founded(mesh_root: &Made) -> State {
    let mut state = State::default();
    let cluster = Cluster {
        id: "11111111-2222-3333-4444-555555555555".into(),
        trust_domain: TRUST_DOMAIN.parse().expect("a trust domain"),
        datacenter: "dc1".parse().expect("a name"),
        default_action: Action::Allow,
    };
    let validity = Validity { not_before: clock::now(), not_after: clock::now() };
    let authority = Authority {
        roots: vec![Root {
            id: "00".into(),
            name: "root".into(),
            certificate: mesh_root.der.to_vec().into(),
            serial: 1,
            validity,
            active: true,
            sealed_key: Arc::new([]),
            cross: None,
            rotated_out: None,
            created: Index(0),
            modified: Index(0),
        }],
        intermediate: Intermediate {
            certificate: Arc::new([]),
            validity,
            sealed_key: Arc::new([]),
        },
        leaf_lifetime: Duration::from_secs(3600),
        policy: Policy::default(),
        retired: Vec::new(),
        created: Index(0),
        index: Index(0),
    };
    apply(&mut state, Command::Found(cluster));
    apply(&mut state, Command::SetAuthority { authority, expected: Index(0) });
    state
}

fn apply(state: &mut State, command: Command) {
    let stamp = Stamp { index: Index(state.applied().0 + 1), time: clock::now() };
    state.apply(stamp, command).expect("accepted");
}

fn root(name: &str) -> Made {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let der = params.self_signed(&key).expect("signed").der().clone();
    Made { der, issuer: Issuer::new(params, key) }
}

fn leaf(
    uri: &str,
    key: &impl rcgen::PublicKeyData,
    lifetime: Duration,
    by: &Made,
) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - Duration::from_secs(60);
    params.not_after = now + lifetime;
    params.signed_by(key, &by.issuer).expect("signed").der().clone()
}

fn node_of<T>(request: &Request<T>) -> Result<NodeName, Status> {
    let id = request.extensions().get::<hawser_core::spiffe::SpiffeId>();
    match id.map(|id| &id.role) {
        Some(hawser_core::spiffe::Role::Agent(node)) => Ok(node.clone()),
        _ => Err(Status::unauthenticated("no agent's certificate")),
    }
}

#[tonic::async_trait]
impl Agent for Fake {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        let request = request.into_inner();
        let same = digest::digest(&digest::SHA256, &request.secret).as_ref()
            == digest::digest(&digest::SHA256, SECRET).as_ref();
        if !same {
            return Err(Status::permission_denied("the join token is not valid"));
        }
        let uri = format!("spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/{}", request.node);
        Ok(Response::new(v1::JoinReply {
            certificate: Some(self.certificate(&uri, &request.csr, Duration::from_secs(3600))),
            cluster_id: "11111111-2222-3333-4444-555555555555".into(),
            datacenter: "dc1".into(),
            trust_domain: TRUST_DOMAIN.into(),
        }))
    }

    async fn join_nonce(
        &self,
        _: Request<v1::JoinNonceRequest>,
    ) -> Result<Response<v1::JoinNonceReply>, Status> {
        Err(Status::failed_precondition("nobody joins this server by AWS IAM"))
    }

    async fn join_aws(
        &self,
        _: Request<v1::JoinAwsRequest>,
    ) -> Result<Response<v1::JoinReply>, Status> {
        Err(Status::failed_precondition("nobody joins this server by AWS IAM"))
    }

    async fn renew_node(
        &self,
        request: Request<v1::RenewNodeRequest>,
    ) -> Result<Response<v1::CertificateReply>, Status> {
        let node = node_of(&request)?;
        let uri = format!("spiffe://{TRUST_DOMAIN}/agent/client/dc/dc1/id/{node}");
        let csr = request.into_inner().csr;
        Ok(Response::new(self.certificate(&uri, &csr, Duration::from_secs(3600))))
    }

    async fn sign_leaf(
        &self,
        request: Request<v1::SignLeafRequest>,
    ) -> Result<Response<v1::CertificateReply>, Status> {
        let node = node_of(&request)?;
        let request = request.into_inner();
        let lifetime = {
            let mut held = self.held();
            let runs = held
                .state
                .catalog()
                .instances_on(&node)
                .any(|row| row.value.service.as_str() == request.service);
            if !runs {
                return Err(Status::permission_denied("the node has no such service"));
            }
            held.leaves_signed += 1;
            held.leaf_lifetime
        };
        let uri = format!("spiffe://{TRUST_DOMAIN}/ns/default/dc/dc1/svc/{}", request.service);
        Ok(Response::new(self.certificate(&uri, &request.csr, lifetime)))
    }

    async fn declared(
        &self,
        request: Request<v1::DeclaredRequest>,
    ) -> Result<Response<v1::DeclaredReply>, Status> {
        let node = node_of(&request)?;
        let held = self.held();
        let catalog = held.state.catalog();
        let rows = Rows {
            node: catalog.node(&node).map(|row| (*row.value).clone()),
            instances: catalog
                .instances_on(&node)
                .map(|row| (row.value.id.clone(), (*row.value).clone()))
                .collect(),
            checks: catalog
                .checks()
                .filter(|(on, row)| **on == node && row.value.id.as_str() != NODE_LIVENESS_CHECK)
                .map(|(_, row)| (row.value.id.clone(), (*row.value).clone()))
                .collect(),
        };
        Ok(Response::new((&rows, held.state.applied()).into()))
    }

    async fn sync(&self, request: Request<NodeChanges>) -> Result<Response<v1::SyncReply>, Status> {
        let node = node_of(&request)?;
        let changes: hawser_core::state::NodeChanges = request
            .into_inner()
            .try_into()
            .map_err(|why: hawser_proto::Invalid| Status::invalid_argument(why.to_string()))?;
        if changes.node.name != node {
            return Err(Status::permission_denied("not your node"));
        }
        let refused = self.held().refused.clone();
        if let Some(bad) = changes.put_instances.iter().find(|row| refused.contains(&row.service)) {
            return Err(Status::failed_precondition(format!("{} is refused", bad.service)));
        }
        self.apply(Command::SyncNode(changes));
        Ok(Response::new(v1::SyncReply { index: self.held().state.applied().0 }))
    }

    async fn leave(
        &self,
        request: Request<v1::LeaveRequest>,
    ) -> Result<Response<v1::SyncReply>, Status> {
        let node = node_of(&request)?;
        self.held().left += 1;
        self.apply(Command::DropNode(node));
        Ok(Response::new(v1::SyncReply { index: self.held().state.applied().0 }))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        let node = node_of(&request)?;
        let held = self.held();
        let address = held.address.expect("listening").to_string();
        let node_index = held.state.catalog().node(&node).map_or(0, |row| row.modified.0);
        Ok(Response::new(v1::HeartbeatReply {
            servers: vec![v1::Member { id: 1, name: "s1".into(), address }],
            interval_ms: 1000,
            node_index,
            cut_off: held.cut_off,
        }))
    }

    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<v1::Delta, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::Interest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        node_of(&request)?;
        let mut interests = request.into_inner();
        let (send, deltas) = mpsc::channel(16);
        let (fake, mut changed) = (self.clone(), self.inner.changed.subscribe());
        tokio::spawn(async move {
            let mut interest: Option<Interest> = None;
            loop {
                if let Some(interest) = &interest {
                    let delta = v1::Delta::from(&snapshot(&fake.held().state, interest));
                    if send.send(Ok(delta)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = send.closed() => return,
                    next = interests.message() => match next {
                        Ok(Some(next)) => interest = Some(next.try_into().expect("well formed")),
                        _ => return,
                    },
                    changed = changed.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(deltas))))
    }

    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportReply>, Status> {
        node_of(&request)?;
        Ok(Response::new(v1::ReportReply {}))
    }

    async fn lease(
        &self,
        request: Request<v1::LeaseRequest>,
    ) -> Result<Response<v1::LeaseReply>, Status> {
        node_of(&request)?;
        // As a server of a release that does not know it.
        Err(Status::unimplemented("no shares are leased here"))
    }

    async fn resolve(
        &self,
        _: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveReply>, Status> {
        Ok(Response::new(v1::ResolveReply { known: true, ..v1::ResolveReply::default() }))
    }

    async fn http(
        &self,
        request: Request<v1::HttpRequest>,
    ) -> Result<Response<v1::HttpReply>, Status> {
        node_of(&request)?;
        let request = request.into_inner();
        let body = format!("{} {}", request.method, request.target);
        let index = v1::Header { name: "X-Consul-Index".into(), value: b"7".to_vec() };
        Ok(Response::new(v1::HttpReply {
            status: 200,
            headers: vec![index],
            body: Bytes::from(body),
        }))
    }
}

const SECRET: &[u8] = &[7; 32];
