//! Outbound: connections from the application, routed, balanced and carried to the peer.
//!
//! Tasks: one for each connection; one for each request in an HTTP/2 connection (by hyper); one
//! for each connection to a peer; one for each upgraded connection.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::balance::{Balancer, Effect, Outcome, PeerId, Pick};
use hawser_core::chain::Chain;
use hawser_core::name::ServiceName;
use hawser_core::reason::{DecidedBy, Reason};
use hawser_core::route::route;
use hawser_core::sni::Sni;
use hawser_core::spiffe::{Role, SpiffeId};
use hawser_core::view::ServiceView;
use hawser_identity::LeafError;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::RngCore as _;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::budget::Budget;
use crate::context::Context;
use crate::http::{self as hygiene, Body, End, LocalExecutor, Outgoing, Sending};
use crate::inbound::{hygiene_uri, is_unprocessed, relay_upgraded};
use crate::pool::{Line, Lines};
use crate::relay::{Moved, relay};
use crate::report::{Pair, Record, Reporter};
use crate::socket::{self, Wide};
use crate::tls::{self, ALPN_H2, ALPN_HTTP1, ALPN_TCP, Identity};
use crate::watch::OnList;

/// One upstream of one local service, in one worker.
pub(crate) struct Port {
    pub(crate) context: Rc<Context>,
    pub(crate) service: ServiceName,
    pub(crate) destination: ServiceName,
    pair: Rc<Pair>,
    dial: RefCell<Option<Rc<Dial>>>,
    current: RefCell<Option<Arc<ServiceView>>>,
    balancer: RefCell<Balancer>,
    upstreams: RefCell<BTreeMap<PeerId, Rc<Lines>>>,
    budget: RefCell<Budget>,
}

/// What it takes to call the destination as this service.
struct Dial {
    identity: Rc<Identity>,
    name: ServerName<'static>,
    h2: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    tcp: Arc<ClientConfig>,
}

impl Port {
    pub(crate) fn new(
        context: Rc<Context>,
        service: ServiceName,
        destination: ServiceName,
    ) -> Self {
        let pair = context.report.pair(Reporter::Client, &service, &destination);
        Self {
            context,
            service,
            destination,
            pair,
            dial: RefCell::default(),
            current: RefCell::default(),
            balancer: RefCell::default(),
            upstreams: RefCell::default(),
            budget: RefCell::default(),
        }
    }

    /// Takes over a new identity, or none. Pooled connections of the one before end in peace.
    ///
    /// # Errors
    /// [`LeafError`] when TLS refuses the identity.
    pub(crate) fn identify(&self, identity: Option<&Rc<Identity>>) -> Result<(), LeafError> {
        let is_same = match (&*self.dial.borrow(), identity) {
            (Some(dial), Some(identity)) => Rc::ptr_eq(&dial.identity, identity),
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return Ok(());
        }
        for lines in std::mem::take(&mut *self.upstreams.borrow_mut()).into_values() {
            lines.clear();
        }
        *self.dial.borrow_mut() = None;
        let Some(identity) = identity else { return Ok(()) };
        let callee = SpiffeId {
            trust_domain: identity.id.trust_domain.clone(),
            datacenter: identity.id.datacenter.clone(),
            role: Role::Service(self.destination.clone()),
        };
        let sni = Sni::Internal {
            service: self.destination.clone(),
            datacenter: callee.datacenter.clone(),
            trust_domain: callee.trust_domain.clone(),
        };
        // A name that is too long for DNS is not sent: the verifier goes by the identity alone.
        let name = ServerName::try_from(sni.to_string())
            .unwrap_or(ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
        *self.dial.borrow_mut() = Some(Rc::new(Dial {
            identity: identity.clone(),
            name,
            h2: identity.dial(callee.clone(), ALPN_H2)?,
            http1: identity.dial(callee.clone(), ALPN_HTTP1)?,
            tcp: identity.dial(callee, ALPN_TCP)?,
        }));
        Ok(())
    }

    /// Takes over what the view says now of the destination.
    pub(crate) fn refresh(&self) {
        let view = self.context.view.borrow().clone();
        let service = view.services.get(&self.destination).cloned();
        let is_same = match (&*self.current.borrow(), &service) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if is_same {
            return;
        }
        let groups =
            service.as_deref().map(|service| route(&view, service, &self.context.locality));
        let mut balancer = self.balancer.borrow_mut();
        balancer.update(&groups.unwrap_or_default(), self.context.clock.now());
        let known: Vec<PeerId> = balancer.peers().collect();
        // Connections to instances that are gone take no more requests and end with their last.
        self.upstreams.borrow_mut().retain(|peer, lines| {
            let stays = known.contains(peer);
            if !stays {
                lines.clear();
            }
            stays
        });
        *self.current.borrow_mut() = service;
    }

    /// Carries one connection of the application.
    pub(crate) async fn serve(self: Rc<Self>, socket: TcpStream) {
        socket::tune(&socket, &self.context.limits);
        let chain = self.current.borrow().as_ref().map(|service| service.chain.clone());
        match chain {
            None => {
                self.context.report.refuse(
                    Reporter::Client,
                    &self.destination,
                    Reason::ViewMissing,
                );
            }
            Some(chain) if chain.protocol.is_http() => Box::pin(self.serve_http(socket)).await,
            Some(chain) => Box::pin(self.serve_tcp(socket, &chain)).await,
        }
    }

    fn pick(&self, tried: &[PeerId], may_probe: bool) -> Result<Picked<'_>, Reason> {
        let now = self.context.clock.now();
        let mut random = self.context.random.borrow_mut();
        let pick = self
            .balancer
            .borrow_mut()
            .pick(now, tried, may_probe, || random.next_u64())
            .ok_or(Reason::NoEndpoint)?;
        Ok(Picked { port: self, pick, is_finished: false })
    }

    fn lines(&self, peer: PeerId) -> Rc<Lines> {
        self.upstreams.borrow_mut().entry(peer).or_default().clone()
    }

    fn dialler(&self) -> Result<Rc<Dial>, Reason> {
        let dial = self.dial.borrow().clone().ok_or(Reason::NoIdentity)?;
        if dial.identity.holds_at(crate::clock::wall()) {
            Ok(dial)
        } else {
            Err(Reason::NoIdentity)
        }
    }

    fn record(&self, reason: Reason, started: Duration) -> Record {
        Record {
            reason,
            decided_by: DecidedBy::ClientProxy,
            status: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration: self.context.clock.now().saturating_sub(started),
            view_index: self.context.view.borrow().index,
            attempts: 1,
            upstream: None,
        }
    }
}

/// An instance that was picked; says that nobody waited when it is dropped unfinished.
struct Picked<'a> {
    port: &'a Port,
    pick: Pick,
    is_finished: bool,
}

impl Picked<'_> {
    fn finish(mut self, outcome: Outcome) {
        self.settle(outcome);
    }

    fn settle(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        let port = self.port;
        let now = port.context.clock.now();
        let effect = port.balancer.borrow_mut().finish(self.pick, outcome, now);
        let (destination, address) = (&port.destination, self.pick.address);
        match effect {
            Effect::None => {}
            Effect::Ejected(span) => {
                port.pair.ejected();
                tracing::warn!(%destination, %address, ?span, "instance ejected");
                // What is stuck there would go on holding up requests: new ones begin anew.
                port.lines(self.pick.peer).clear();
            }
            Effect::Returned => tracing::info!(%destination, %address, "instance is back"),
        }
    }
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        self.settle(Outcome::Unknown);
    }
}

/// Dials an instance's proxy and proves that it is the callee. TCP and TLS share `within`.
async fn dial(
    context: &Rc<Context>,
    dial: &Dial,
    config: Arc<ClientConfig>,
    address: SocketAddr,
    within: Duration,
) -> Result<(TlsStream<Wide>, OnList), Reason> {
    let deadline = Instant::now() + within;
    let socket = socket::connect(address, within).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    })?;
    socket::tune(&socket, &context.limits);
    let socket = Wide::new(socket, context.buffers.clone());
    let handshake = TlsConnector::from(config).connect(dial.name.clone(), socket);
    let stream = tokio::time::timeout_at(deadline, Box::pin(handshake))
        .await
        .map_err(|_| Reason::HandshakeTimeout)?
        .map_err(|error| tls::reason(&error))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let peer = tls::read(chain.first().ok_or(Reason::UntrustedCertificate)?)?;
    let listed = context.watched.watch(peer, chain, None);
    Ok((stream, listed))
}

impl Port {
    async fn serve_tcp(&self, mut downstream: TcpStream, chain: &Chain) {
        let context = &self.context;
        let started = context.clock.now();
        let mut attempts = 0;
        let connected = self.connect_tcp(chain, &mut attempts).await;
        let (mut upstream, listed, pick) = match connected {
            Ok(connected) => connected,
            Err((reason, decided_by)) => {
                let record = self.record(reason, started);
                self.pair.record(&Record { decided_by, attempts, ..record });
                // An error for the application to see, and not an empty answer.
                let _ = socket2::SockRef::from(&downstream).set_linger(Some(Duration::ZERO));
                return;
            }
        };
        self.balancer.borrow_mut().open(pick.peer);
        let mut moved = Moved::default();
        let idle = context.limits.tcp_idle;
        let ended = tokio::select! {
            biased;
            () = listed.watched.cut.cancelled() => Err(listed.watched.why()),
            ended = relay(&mut downstream, &mut upstream, &context.buffers, idle, &mut moved) => {
                ended
            }
        };
        self.balancer.borrow_mut().close(pick.peer);
        let reason = ended.err().unwrap_or(Reason::Ok);
        let decided_by = match reason {
            Reason::PolicyCut | Reason::IdleTimeout | Reason::Draining => DecidedBy::ClientProxy,
            _ => DecidedBy::Application,
        };
        if !reason.is_ok() {
            let _ = socket2::SockRef::from(&downstream).set_linger(Some(Duration::ZERO));
        }
        self.pair.record(&Record {
            decided_by,
            bytes_sent: moved.sent,
            bytes_received: moved.received,
            attempts,
            upstream: Some(pick.address),
            ..self.record(reason, started)
        });
    }

    /// Finds an instance whose application accepts the connection. Nothing of the application's
    /// own bytes is sent before, so every failure may be tried again elsewhere.
    async fn connect_tcp(
        &self,
        chain: &Chain,
        attempts: &mut u8,
    ) -> Result<(TlsStream<Wide>, OnList, Pick), (Reason, DecidedBy)> {
        let limits = &self.context.limits;
        let mut tried = Vec::new();
        let mut last = (Reason::NoEndpoint, DecidedBy::ClientProxy);
        while *attempts < limits.connect_tries {
            let Ok(picked) = self.pick(&tried, true) else { break };
            *attempts += 1;
            let (pick, began) = (picked.pick, self.context.clock.now());
            tried.push(pick.peer);
            match Box::pin(self.open_tcp(chain, pick.address)).await {
                Ok((stream, listed)) => {
                    let latency = self.context.clock.now().saturating_sub(began);
                    picked.finish(Outcome::Answered(latency));
                    return Ok((stream, listed, pick));
                }
                Err((Reason::NoIdentity, by)) => return Err((Reason::NoIdentity, by)),
                Err((reason, DecidedBy::ServerProxy)) if !reason.is_before_request() => {
                    // The callee's proxy answered, and will not change its mind elsewhere.
                    picked.finish(Outcome::Answered(self.context.clock.now() - began));
                    return Err((reason, DecidedBy::ServerProxy));
                }
                Err(failed) => {
                    picked.finish(Outcome::Failed);
                    last = failed;
                }
            }
        }
        Err(last)
    }

    async fn open_tcp(
        &self,
        chain: &Chain,
        address: SocketAddr,
    ) -> Result<(TlsStream<Wide>, OnList), (Reason, DecidedBy)> {
        let own = |reason| (reason, DecidedBy::ClientProxy);
        let with = self.dialler().map_err(own)?;
        let within = chain.connect_timeout;
        let dialled = dial(&self.context, &with, with.tcp.clone(), address, within).await;
        let (mut stream, listed) = dialled.map_err(own)?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_TCP) {
            // Consul's own proxies say nothing: relaying begins at once.
            return Ok((stream, listed));
        }
        let verdict = stream.read_u8();
        let within = chain.connect_timeout + chain.local_connect_timeout;
        match tokio::time::timeout(within, verdict).await {
            Err(_) => Err(own(Reason::ConnectTimeout)),
            // A refusal of our certificate arrives only now: TLS 1.3 lets the client finish first.
            Ok(Err(error)) => match tls::reason(&error) {
                Reason::HandshakeFailed => Err(own(Reason::ConnectFailed)),
                reason => Err((reason, DecidedBy::ServerProxy)),
            },
            Ok(Ok(code)) => match Reason::from_code(code).unwrap_or(Reason::UpstreamProtocol) {
                Reason::Ok => Ok((stream, listed)),
                reason => Err((reason, DecidedBy::ServerProxy)),
            },
        }
    }

    async fn serve_http(self: Rc<Self>, socket: TcpStream) {
        let context = self.context.clone();
        let limits = &context.limits;
        let port = self;
        let service = service_fn(move |request| {
            let port = port.clone();
            async move { Ok::<_, std::convert::Infallible>(port.answer(request).await) }
        });
        let mut builder = hyper_util::server::conn::auto::Builder::new(LocalExecutor);
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_headers(limits.headers)
            .max_buf_size(limits.header_bytes as usize);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.header_bytes)
            .initial_stream_window_size(crate::context::STREAM_WINDOW)
            .initial_connection_window_size(crate::context::CONNECTION_WINDOW);
        let io = TokioIo::new(socket);
        let mut serving = std::pin::pin!(builder.serve_connection_with_upgrades(io, service));
        tokio::select! {
            biased;
            _ = serving.as_mut() => return,
            () = context.drain.cancelled() => serving.as_mut().graceful_shutdown(),
        }
        let _ = serving.await;
    }

    /// Answers one request of the application: checks it, tries instances, reports once.
    async fn answer(self: Rc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let context = self.context.clone();
        let started = context.clock.now();
        let is_grpc = hygiene::is_grpc(request.headers());
        let refuse = |status: StatusCode, reason: Reason, attempts: u8| {
            let record = self.record(reason, started);
            self.pair.record(&Record { status: Some(status.as_u16()), attempts, ..record });
            hygiene::refusal(status, reason, DecidedBy::ClientProxy, is_grpc)
        };
        let Some(slot) = context.request_slot() else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Overloaded, 0);
        };
        let authority = match hygiene::authority(&request, &context.limits) {
            Ok(authority) => authority,
            Err(bad) => return refuse(bad.0, Reason::BadRequest, 0),
        };
        let chain = self.current.borrow().as_ref().map(|service| service.chain.clone());
        let Some(chain) = chain else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::ViewMissing, 0);
        };
        // The application passes on that it was itself called by a retry: one layer retries.
        let was_retried = request.headers().contains_key(hygiene::ATTEMPT_HEADER);
        let upgrade = hygiene::strip(request.headers_mut());
        if !request.headers().contains_key(hygiene::REQUEST_ID_HEADER) {
            let id = format!("{:016x}", context.random.borrow_mut().next_u64());
            if let Ok(id) = HeaderValue::try_from(id) {
                request.headers_mut().insert(hygiene::REQUEST_ID_HEADER, id);
            }
        }
        let Some(uri) = hygiene_uri(&authority, request.uri()) else {
            return refuse(StatusCode::BAD_REQUEST, Reason::BadRequest, 0);
        };
        if let Some(to) = upgrade.filter(|_| request.version() == Version::HTTP_11) {
            let upgraded = Box::pin(self.clone().upgrade(request, to, &chain, started)).await;
            return upgraded.unwrap_or_else(|reason| refuse(hygiene::status(reason), reason, 1));
        }
        request.headers_mut().remove(header::HOST);
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;

        let deadline = Instant::now() + chain.request_timeout;
        let (parts, incoming) = request.into_parts();
        let body = Outgoing::prepare(incoming, context.limits.replay_bytes);
        let body = match tokio::time::timeout_at(deadline, body).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => return refuse(StatusCode::BAD_REQUEST, Reason::DownstreamReset, 0),
            Err(_) => return refuse(StatusCode::REQUEST_TIMEOUT, Reason::RequestTimeout, 0),
        };
        let mut exchange = Exchange {
            port: &self,
            chain: &chain,
            is_idempotent: hygiene::is_idempotent(&parts.method),
            parts,
            body,
            was_retried,
            deadline,
            attempts: 0,
            tried: Vec::new(),
            sent: Rc::new(Cell::new(0)),
        };
        let exchanged = Box::pin(exchange.run()).await;
        let (attempts, sent) = (exchange.attempts, exchange.sent.clone());
        let Answer { mut response, decided, place, upstream } = match exchanged {
            Ok(answer) => answer,
            Err(reason) => return refuse(hygiene::status(reason), reason, attempts),
        };
        let said = response.headers().get(hygiene::REASON_HEADER).cloned();
        hygiene::pass_on(&mut response);
        if let Some(said) = said {
            response.headers_mut().insert(hygiene::REASON_HEADER, said);
            let by = HeaderValue::from_static(DecidedBy::ServerProxy.as_str());
            response.headers_mut().insert(hygiene::DECIDED_BY_HEADER, by);
        }
        let deadline = (!hygiene::is_stream(response.headers())).then_some(deadline);
        let status = response.status().as_u16();
        let port = self.clone();
        let on_end = move |end: End, bytes: u64| {
            let _held = (slot, place);
            let (reason, decided_by) = match (end, decided) {
                (End::Complete, Some(reason)) => (reason, DecidedBy::ServerProxy),
                (End::Complete, None) => (Reason::Ok, DecidedBy::Application),
                (End::Upstream, _) => (Reason::UpstreamReset, DecidedBy::Application),
                (End::Downstream, _) => (Reason::DownstreamReset, DecidedBy::Application),
                (End::Timeout, _) => (Reason::RequestTimeout, DecidedBy::ClientProxy),
            };
            port.pair.record(&Record {
                decided_by,
                status: Some(status),
                bytes_sent: sent.get(),
                bytes_received: bytes,
                attempts,
                upstream: Some(upstream),
                ..port.record(reason, started)
            });
        };
        response.map(|body| Body::arriving(body, deadline, Box::new(on_end)))
    }

    /// Carries an upgrade over a connection of its own, in HTTP/1.1 inside mTLS.
    async fn upgrade(
        self: Rc<Self>,
        mut request: Request<Incoming>,
        to: HeaderValue,
        chain: &Chain,
        started: Duration,
    ) -> Result<Response<Body>, Reason> {
        let context = self.context.clone();
        let with = self.dialler()?;
        let mut tried = Vec::new();
        let (stream, listed, upstream) = loop {
            let picked = self.pick(&tried, true)?;
            tried.push(picked.pick.peer);
            let (address, began) = (picked.pick.address, context.clock.now());
            let within = chain.connect_timeout;
            match Box::pin(dial(&context, &with, with.http1.clone(), address, within)).await {
                Ok((stream, listed)) => {
                    picked.finish(Outcome::Answered(context.clock.now().saturating_sub(began)));
                    break (stream, listed, address);
                }
                Err(reason) => {
                    picked.finish(Outcome::Failed);
                    if tried.len() >= usize::from(context.limits.connect_tries) {
                        return Err(reason);
                    }
                }
            }
        };
        let broken = |error: hyper::Error| peer_reason(&error);
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let listed = Rc::new(listed);
        let held = listed.clone();
        context.tracker.spawn_local(async move {
            tokio::select! {
                () = held.watched.cut.cancelled() => {}
                _ = connection.with_upgrades() => {}
            }
        });
        let downstream = hyper::upgrade::on(&mut request);
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, to);
        let sent = Rc::new(Cell::new(0));
        let target = request.uri().path_and_query().cloned();
        *request.uri_mut() = target.map_or_else(http::Uri::default, http::Uri::from);
        let request = request.map(|incoming| Outgoing::Arriving(Some(incoming)).body(&sent));
        let sending = sender.send_request(request);
        let mut response = tokio::time::timeout(chain.request_timeout, sending)
            .await
            .map_err(|_| Reason::RequestTimeout)?
            .map_err(broken)?;
        let status = response.status();
        let record = Record {
            status: Some(status.as_u16()),
            upstream: Some(upstream),
            decided_by: DecidedBy::Application,
            ..self.record(Reason::Ok, started)
        };
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let verdict = hygiene::verdict(response.headers());
            let said = response.headers().get(hygiene::REASON_HEADER).cloned();
            hygiene::pass_on(&mut response);
            if let Some(said) = said {
                response.headers_mut().insert(hygiene::REASON_HEADER, said);
            }
            let on_end = move |_: End, bytes: u64| {
                drop(sender);
                let reason = verdict.unwrap_or(Reason::Ok);
                self.pair.record(&Record { reason, bytes_received: bytes, ..record });
            };
            return Ok(response.map(|body| Body::arriving(body, None, Box::new(on_end))));
        }
        let onward = hyper::upgrade::on(&mut response);
        context.clone().tracker.spawn_local(async move {
            let cut = &listed.watched.cut;
            let moved = relay_upgraded(&context, downstream, onward, cut).await;
            self.pair.record(&Record {
                bytes_sent: moved.sent,
                bytes_received: moved.received,
                duration: context.clock.now().saturating_sub(started),
                ..record
            });
        });
        Ok(response.map(|_| Body::full(bytes::Bytes::new())))
    }
}

/// One request and its tries.
struct Exchange<'a> {
    port: &'a Rc<Port>,
    chain: &'a Chain,
    parts: http::request::Parts,
    is_idempotent: bool,
    body: Outgoing,
    /// Whether the request is itself part of a retry further up.
    was_retried: bool,
    /// When all tries together must have given an answer.
    deadline: Instant,
    attempts: u8,
    tried: Vec<PeerId>,
    sent: Rc<Cell<u64>>,
}

/// An answer worth passing on.
struct Answer {
    response: Response<Incoming>,
    /// Set where the callee's proxy answered, and not its application.
    decided: Option<Reason>,
    place: crate::pool::Place,
    upstream: SocketAddr,
}

/// Why a try did not give an answer to pass on.
struct Failure {
    reason: Reason,
    /// Whether no application can have seen the request.
    is_unseen: bool,
    /// An answer that may still be the best there is.
    answer: Option<Answer>,
}

impl Exchange<'_> {
    /// Tries instances until one answers.
    ///
    /// # Errors
    /// The reason of the last try.
    async fn run(&mut self) -> Result<Answer, Reason> {
        let (port, limits) = (self.port, &self.port.context.limits);
        port.budget.borrow_mut().request(port.context.clock.now());
        let mut last = Failure { reason: Reason::NoEndpoint, is_unseen: true, answer: None };
        loop {
            let may_probe = self.body.is_repeatable() && self.is_idempotent;
            let mut picked = port.pick(&self.tried, may_probe);
            if picked.is_err() && last.reason == Reason::UpstreamReset {
                // A connection that broke says little about the next one to the same instance.
                self.tried.clear();
                picked = port.pick(&self.tried, may_probe);
            }
            let Ok(picked) = picked else { break };
            if self.attempts > 0 {
                // Where not even a connection was made, another try costs the callee nothing.
                let is_free = matches!(last.reason, Reason::ConnectFailed | Reason::ConnectTimeout);
                let now = port.context.clock.now();
                let (percent, floor) = (limits.retry_budget_percent, limits.retry_budget_floor);
                let allowed = is_free || port.budget.borrow_mut().retry(now, percent, floor);
                port.pair.retried(allowed);
                if !allowed {
                    break;
                }
            }
            self.attempts += 1;
            self.tried.push(picked.pick.peer);
            let may_retry = self.attempts <= limits.retries
                && self.is_idempotent
                && self.body.is_repeatable()
                && !self.was_retried
                && port.balancer.borrow().has_other(&self.tried);
            let per_try = may_retry.then_some(limits.per_try);
            match self.attempt(picked, per_try).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => last = failure,
            }
            let is_safe = last.is_unseen || (self.is_idempotent && !self.was_retried);
            let is_late = Instant::now() >= self.deadline;
            if self.attempts > limits.retries || !is_safe || is_late || !self.body.is_whole() {
                break;
            }
        }
        last.answer.ok_or(last.reason)
    }

    /// Makes one try.
    async fn attempt(
        &mut self,
        picked: Picked<'_>,
        per_try: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let (port, context) = (self.port, &self.port.context);
        let limits = &context.limits;
        let began = context.clock.now();
        let address = picked.pick.address;
        let lines = port.lines(picked.pick.peer);
        let within = self.chain.connect_timeout;
        let connect = || {
            let port = port.clone();
            async move { port.line(address, within).await }
        };
        let place =
            match lines.place(limits.connections_per_endpoint, limits.streams, connect).await {
                Ok(place) => place,
                Err(reason) => {
                    // Our own lack is not the instance's fault.
                    let is_ours = matches!(reason, Reason::NoIdentity | Reason::Overloaded);
                    picked.finish(if is_ours { Outcome::Unknown } else { Outcome::Failed });
                    return Err(Failure { reason, is_unseen: true, answer: None });
                }
            };
        let mut request = Request::from_parts(self.parts.clone(), self.body.body(&self.sent));
        if self.attempts > 1 {
            let attempt = HeaderValue::from(u16::from(self.attempts));
            request.headers_mut().insert(hygiene::ATTEMPT_HEADER, attempt);
        }
        let mut sender = place.sender();
        let sending = sender.try_send_request(request);
        let Some(sent) = self.awaited(sending, per_try).await else {
            picked.finish(Outcome::Failed);
            let reason = Reason::RequestTimeout;
            return Err(Failure { reason, is_unseen: false, answer: None });
        };
        let response = match sent {
            Ok(response) => response,
            Err(mut failed) => {
                let unsent = failed.take_message();
                let was_taken = unsent.is_none();
                if let Some(unsent) = unsent {
                    self.body.restore(unsent.into_body());
                }
                let error = failed.into_error();
                let reason = peer_reason(&error);
                let is_unseen = !was_taken
                    || is_unprocessed(&error)
                    || (reason.is_before_request() && reason != Reason::HandshakeFailed);
                let is_ours = reason == Reason::DownstreamReset;
                picked.finish(if is_ours { Outcome::Unknown } else { Outcome::Failed });
                return Err(Failure { reason, is_unseen, answer: None });
            }
        };
        let latency = context.clock.now().saturating_sub(began);
        let decided = hygiene::verdict(response.headers());
        let answer = Answer { response, decided, place, upstream: address };
        match decided {
            Some(reason) if reason.http_status() >= 500 => {
                picked.finish(Outcome::Failed);
                let is_unseen = reason.is_before_request();
                Err(Failure { reason, is_unseen, answer: Some(answer) })
            }
            _ => {
                picked.finish(Outcome::Answered(latency));
                Ok(answer)
            }
        }
    }

    /// Waits for an answer, no longer than `per_try` where that leaves another try its turn: with the
    /// budget used up, giving up on a slow answer would only make a failure of it.
    async fn awaited<T>(
        &self,
        sending: impl Future<Output = T>,
        per_try: Option<Duration>,
    ) -> Option<T> {
        let mut sending = std::pin::pin!(sending);
        if let Some(span) = per_try {
            let until = self.deadline.min(Instant::now() + span);
            if let Ok(sent) = tokio::time::timeout_at(until, &mut sending).await {
                return Some(sent);
            }
            let Context { limits, clock, .. } = &*self.port.context;
            let (percent, floor) = (limits.retry_budget_percent, limits.retry_budget_floor);
            if self.port.budget.borrow_mut().has_room(clock.now(), percent, floor) {
                return None;
            }
            self.port.pair.retried(false);
        }
        tokio::time::timeout_at(self.deadline, sending).await.ok()
    }
}

impl Port {
    /// Opens an HTTP/2 connection to an instance's proxy.
    async fn line(&self, address: SocketAddr, within: Duration) -> Result<Line, Reason> {
        let context = &self.context;
        let with = self.dialler()?;
        let dialled = dial(context, &with, with.h2.clone(), address, within);
        let (stream, listed) = Box::pin(dialled).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_H2) {
            return Err(Reason::UpstreamProtocol);
        }
        let mut builder = http2::Builder::new(LocalExecutor);
        context.tune_http2_client(&mut builder);
        let (sender, connection) = builder
            .handshake::<_, Sending>(TokioIo::new(stream))
            .await
            .map_err(|error| peer_reason(&error))?;
        tokio::task::spawn_local(async move {
            tokio::select! {
                biased;
                () = listed.watched.cut.cancelled() => {}
                ended = connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "connection to a peer ended");
                    }
                }
            }
        });
        Ok(Line::new(sender))
    }
}

/// The reason behind a failure in a connection to a peer's proxy.
fn peer_reason(error: &hyper::Error) -> Reason {
    if error.is_user() || error.is_body_write_aborted() {
        return Reason::DownstreamReset;
    }
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<std::io::Error>() {
            let of_tls =
                error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some();
            if of_tls {
                return tls::reason(error);
            }
        }
        if let Some(error) = inner.downcast_ref::<rustls::Error>() {
            return tls::tls_reason(error);
        }
        source = inner.source();
    }
    Reason::UpstreamReset
}
