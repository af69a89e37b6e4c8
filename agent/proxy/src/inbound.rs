//! Inbound: connections from other hosts, authenticated, authorized, and only then relayed.
//!
//! Tasks: one for each connection; one for each request in an HTTP/2 connection (by hyper); one
//! for each connection to the application; one for each upgraded connection.

mod ports;
mod streams;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hawser_core::address::Address;
use hawser_core::catalog::Protocol;
use hawser_core::chain::Chain;
use hawser_core::jwt::Proved;
use hawser_core::name::{InstanceId, ServiceName};
use hawser_core::normal::Forwarded;
use hawser_core::permission::By;
use hawser_core::policy::Policies;
use hawser_core::reason::{DecidedBy, Reason};
use hawser_core::view::ServiceView;
use hawser_http1::{Fault, OnUpgrade, client, server};
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::Authority;
use http::{Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use self::streams::Carrier;
use crate::admit::{admit, sound};
use crate::bounded::Broke;
use crate::calm::Calm;
use crate::context::{Context, Slot};
use crate::datagrams;
use crate::guard::{Admitted, Guard, Intake, Load, Refused};
use crate::http::{self as hygiene, Body, End, Incoming, LocalExecutor, Manner, Outgoing, Passed};
use crate::judge::{UnderWay, judge};
use crate::lifespan::Lifespan;
use crate::pool::{Idle, Line, Lines};
use crate::relay::Moved;
use crate::report::{
    Owner, Pair, Record, Reporter, Trail, Unanswered, Upstream, answered, decided, forward,
};
use crate::select::Selector;
use crate::socket::{self, Wide};
use crate::tls::{self, Identity, Wire};
use crate::usage::Held;
use crate::watch::{OnList, Ruled, Watched};

/// One service's inbound port, in one worker.
pub(crate) struct Port {
    pub(crate) context: Rc<Context>,
    pub(crate) service: ServiceName,
    instance: InstanceId,
    application: RefCell<Rc<Address>>,
    /// What is reported of the application.
    upstream: RefCell<Rc<Upstream>>,
    pub(crate) identity: RefCell<Option<Rc<Identity>>>,
    /// Open connections of all workers.
    open: Arc<AtomicUsize>,
    idle: Idle,
    lines: Rc<Lines>,
    intake: Arc<Intake>,
    load: Rc<RefCell<Load>>,
    /// What the view says of the service, and the guard that was made of it.
    current: RefCell<(Option<Arc<ServiceView>>, Rc<Guard>)>,
    /// What is spoken here, where that is not what the view says of the service.
    spoken: Cell<Option<Protocol>>,
    /// The instance's other ports, by what selects them.
    others: RefCell<BTreeMap<Selector, Rc<Self>>>,
    /// Cancelled when callers without TLS may pass no more.
    pub(crate) plain: RefCell<CancellationToken>,
}

impl Port {
    pub(crate) fn new(
        context: Rc<Context>,
        service: ServiceName,
        instance: InstanceId,
        application: Address,
        open: Arc<AtomicUsize>,
        intake: Arc<Intake>,
    ) -> Self {
        let load = Rc::<RefCell<Load>>::default();
        let (nothing, clock) = (Policies::default(), context.clock);
        let guard = Guard::new(&nothing, intake.clone(), load.clone(), clock);
        let port = Self {
            context,
            service,
            instance,
            upstream: RefCell::new(Rc::new(Upstream::application(application.clone()))),
            application: RefCell::new(Rc::new(application)),
            identity: RefCell::default(),
            open,
            idle: Idle::default(),
            lines: Rc::default(),
            intake,
            load,
            current: RefCell::new((None, Rc::new(guard))),
            spoken: Cell::default(),
            others: RefCell::default(),
            plain: RefCell::default(),
        };
        port.refresh();
        port
    }

    /// Takes over what the view says now of the service.
    pub(crate) fn refresh(&self) {
        self.others.borrow().values().for_each(|other| other.refresh());
        if !self.takes_plaintext() {
            self.plain.replace(CancellationToken::new()).cancel();
        }
        let service = self.context.view.borrow().services.get(&self.service).cloned();
        let mut current = self.current.borrow_mut();
        if current.0.as_ref().map(Arc::as_ptr) == service.as_ref().map(Arc::as_ptr) {
            return;
        }
        let policies = |service: &Arc<ServiceView>| service.chain.policies.clone();
        let policies = service.as_ref().map(policies).unwrap_or_default();
        let (intake, load) = (self.intake.clone(), self.load.clone());
        let guard = Guard::new(&policies, intake, load, self.context.clock);
        guard.among(|| service.as_ref().map_or(1, |service| service.alive()));
        *current = (service, Rc::new(guard));
    }

    fn guard(&self) -> Rc<Guard> {
        self.current.borrow().1.clone()
    }

    /// Longest time in which nothing comes of a request's body that is not over; none is for ever.
    fn request_idle(&self) -> Option<Duration> {
        let said = self.guard().bodies.idle_timeout;
        Some(said.unwrap_or(self.context.limits.request_idle)).filter(|idle| !idle.is_zero())
    }

    /// Closes connections to the application that nobody used for a while.
    pub(crate) fn sweep(&self) {
        self.others.borrow().values().for_each(|other| other.sweep());
        self.idle.sweep(self.context.clock.now(), self.context.limits.application_idle);
    }

    /// Takes over a new address of the application.
    pub(crate) fn retarget(&self, application: &Address) {
        if *self.application() != *application {
            self.application.replace(Rc::new(application.clone()));
            *self.upstream.borrow_mut() = Rc::new(Upstream::application(application.clone()));
            self.idle.sweep(Duration::MAX, Duration::ZERO);
            self.lines.clear();
        }
    }

    /// Where the application listens: the same one for as long as it stays there.
    fn application(&self) -> Rc<Address> {
        self.application.borrow().clone()
    }

    fn speaks_udp(&self) -> bool {
        let current = self.current.borrow();
        current.0.as_ref().is_some_and(|service| service.chain.policies.datagrams)
    }

    fn chain(&self) -> Option<Chain> {
        let view = self.context.view.borrow();
        let mut chain = view.services.get(&self.service)?.chain.clone();
        if let Some(spoken) = self.spoken.get() {
            chain.protocol = spoken;
        }
        Some(chain)
    }

    /// Carries one connection from its first byte to its last.
    ///
    /// The order is the security argument: authenticate, authorize, only then dial. The verdict is
    /// watched for as long as the connection lives.
    pub(crate) async fn serve(self: Rc<Self>, socket: TcpStream) {
        let open = Open::new(&self.open);
        let from = socket.peer_addr().ok().map(|from| from.ip());
        let served = match from {
            Some(from) => self.clone().authenticate(socket, from, open).await,
            None => Err(Reason::DownstreamReset),
        };
        if let Err(reason) = served {
            self.context.report.refuse(Reporter::Server, &self.service, reason, from);
        }
    }

    /// # Errors
    /// The reason for which the connection was refused before it had a caller.
    async fn authenticate(
        self: Rc<Self>,
        socket: TcpStream,
        address: IpAddr,
        open: Open,
    ) -> Result<(), Reason> {
        let (context, limits) = (&self.context, &self.context.limits);
        let chain = self.chain().ok_or(Reason::ViewMissing)?;
        if chain.inbound_connections_max.is_some_and(|most| open.before >= most as usize) {
            return Err(Reason::Overloaded);
        }
        if chain.policies.takes_plaintext && Box::pin(self.is_plaintext(&socket)).await? {
            return Box::pin(self.serve_plain(socket, &chain)).await;
        }
        let from = HeaderValue::try_from(address.to_string());
        let from = from.map_err(|_| Reason::DownstreamReset)?;
        let identity = self.identity.borrow().clone().ok_or(Reason::NoIdentity)?;
        if !identity.holds_at(crate::clock::wall()) {
            return Err(Reason::NoIdentity);
        }
        socket::tune(&socket);
        let (stream, wire, port) = Box::pin(self.shake(socket, address, &identity)).await?;
        let chain = match Rc::ptr_eq(&port, &self) {
            true => chain,
            false => port.chain().ok_or(Reason::ViewMissing)?,
        };
        let is_http = chain.protocol.is_http();
        if matches!(wire, Wire::H2 | Wire::Streams) {
            stream.get_ref().0.expect_reader(limits);
        }
        let peer = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let caller = tls::read(peer.first().ok_or(Reason::NoClientCertificate)?)?;
        let source = caller.id.service().ok_or(Reason::WrongRole)?.clone();
        let pair = context.report.pair(Reporter::Server, &source, &self.service);
        let made_known = HeaderValue::try_from(format!("By={};URI={}", identity.id, caller.id))
            .map_err(|_| Reason::MalformedIdentity)?;
        if wire == Wire::Streams {
            drop(open);
            let listed = context.watched.watch(caller, peer, None, identity.anchors())?;
            let caller = made_known;
            let carrier = Carrier { port, listed, source, pair, from, caller };
            Box::pin(carrier.serve(stream, identity.superseded.clone())).await;
            return Ok(());
        }
        let ruled = Ruled::new(&context.view.borrow(), &caller.id, &self.service, is_http);
        let rule = ruled.rule();
        let listed = context.watched.watch(caller, peer, Some(ruled), identity.anchors())?;
        listed.watched.note(&context.view.borrow(), rule);
        let (listed, protocol) = (Rc::new((listed, open)), chain.protocol);
        let caller = made_known;
        let connection = Connection { port, listed, source, pair, protocol, from, caller };
        if is_http {
            let superseded = identity.superseded.clone();
            Box::pin(connection.serve_http(stream, wire, superseded)).await;
        } else {
            Box::pin(connection.serve_tcp(stream, wire, &chain)).await;
        }
        Ok(())
    }

    /// The handshake, in which the caller shows who it is; what is spoken from then on, and which
    /// port that is for.
    async fn shake(
        self: &Rc<Self>,
        socket: TcpStream,
        from: IpAddr,
        identity: &Identity,
    ) -> Result<(TlsStream<Wide>, Wire, Rc<Self>), Reason> {
        let socket = Wide::new(socket, self.context.buffers.clone());
        let failed = |error: io::Error| tls::reason(&error);
        let handshake = async {
            let _place = self.context.handshakes.enter(from).await;
            let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket);
            let hello = hello.await.map_err(failed)?;
            let port = match hello.client_hello().alpn() {
                Some(offered) => self.selected(offered)?,
                None => self.clone(),
            };
            let wire = match hello.client_hello().alpn() {
                Some(mut offered) => Wire::choose(port.is_http(), &mut offered),
                None => Wire::Native,
            };
            let stream = hello.into_stream(identity.accept(wire)).await.map_err(failed)?;
            Ok((stream, wire, port))
        };
        tokio::time::timeout(self.context.limits.handshake, handshake)
            .await
            .map_err(|_| Reason::HandshakeTimeout)?
    }

    /// Connects to the application.
    pub(crate) async fn dial(&self, within: Duration) -> Result<TcpStream, Reason> {
        let application = self.application();
        let dialled = match &*application {
            Address::Tcp(address) if self.speaks_udp() => datagrams::dial(*address).await,
            application => socket::call(application, within).await,
        };
        dialled.map_err(|_| Reason::ApplicationUnreachable)
    }
}

/// One of a port's open connections.
struct Open {
    count: Arc<AtomicUsize>,
    /// How many others there were.
    before: usize,
}

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        Self { before: count.fetch_add(1, Ordering::Relaxed), count: count.clone() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One authenticated connection.
#[derive(Clone)]
struct Connection {
    port: Rc<Port>,
    /// Held by all that it becomes: it is watched, and counted, for as long.
    listed: Rc<(OnList, Open)>,
    /// The calling service.
    source: ServiceName,
    pair: Rc<Pair>,
    protocol: Protocol,
    /// The host that the connection came from.
    from: HeaderValue,
    /// Who proved to be at its other end, and to whom.
    caller: HeaderValue,
}

impl Connection {
    fn watched(&self) -> &Watched {
        &self.listed.0.watched
    }

    fn record(&self, reason: Reason, started: Duration) -> Record {
        Record {
            reason,
            decided_by: DecidedBy::ServerProxy,
            protocol: Some(self.protocol),
            status: None,
            bytes_sent: 0,
            bytes_received: 0,
            first_byte: None,
            duration: self.port.context.clock.now().saturating_sub(started),
            view_index: self.port.context.view.borrow().index,
            attempts: 1,
            upstream: Some(self.port.upstream.borrow().clone()),
            cluster: None,
            route: None,
            caller: Some(self.listed.0.watched.clone()),
            trail: None,
        }
    }

    async fn serve_tcp(self, mut downstream: TlsStream<Wide>, wire: Wire, chain: &Chain) {
        let context = &self.port.context;
        let started = context.clock.now();
        let dialled = match self.watched().refusal() {
            None => self.port.dial(chain.local_connect_timeout).await,
            Some(refusal) => Err(refusal),
        };
        let mut upstream = match dialled {
            Ok(upstream) => upstream,
            Err(reason) => {
                self.pair.record(&self.record(reason, started));
                let farewell = async {
                    if wire == Wire::Tcp {
                        downstream.write_all(&[reason.code()]).await?;
                    }
                    downstream.shutdown().await?;
                    // Closing on unread bytes would reset the connection and lose the verdict.
                    let mut rest = [0; 1024];
                    while downstream.read(&mut rest).await? > 0 {}
                    Ok::<_, io::Error>(())
                };
                let _ = tokio::time::timeout(FAREWELL, Box::pin(farewell)).await;
                return;
            }
        };
        if wire == Wire::Tcp
            && (downstream.write_all(&[Reason::Ok.code()]).await.is_err()
                || downstream.flush().await.is_err())
        {
            self.pair.record(&self.record(Reason::DownstreamReset, started));
            return;
        }
        let mut moved = Moved::default();
        let life = Lifespan::new(&chain.policies, context.limits.tcp_idle);
        let ended = tokio::select! {
            biased;
            () = self.watched().cut.cancelled() => Err(self.watched().why()),
            ended = life.relay(&mut downstream, &mut upstream, &context.buffers, &mut moved) => {
                ended
            }
        };
        let reason = ended.err().unwrap_or(Reason::Ok);
        self.pair.record(&Record {
            decided_by: who_ended(reason),
            bytes_sent: moved.sent,
            bytes_received: moved.received,
            ..self.record(reason, started)
        });
    }

    async fn serve_http(self, stream: TlsStream<Wide>, wire: Wire, superseded: CancellationToken) {
        let (context, listed) = (self.port.context.clone(), self.listed.clone());
        let renewed = context.after(superseded, RENEWED_WITHIN);
        match wire {
            Wire::H2 => {}
            Wire::Requests => return Box::pin(self.serve_requests(stream, renewed)).await,
            _ => return self.serve_http1(stream, renewed).await,
        }
        let cut = &listed.0.watched.cut;
        let service = service_fn(move |request: Request<_>| {
            let answering = self.clone().answer(request.map(Incoming::Http2));
            async move { Ok::<_, std::convert::Infallible>(answering.await) }
        });
        let mut builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
        context.tune_http2(&mut builder);
        let mut serving = std::pin::pin!(
            builder.serve_connection(TokioIo::new(Calm::new(stream, context.clock)), service)
        );
        tokio::select! {
            biased;
            () = cut.cancelled() => return,
            _ = serving.as_mut() => return,
            () = context.drain.cancelled() => serving.as_mut().graceful_shutdown(),
            () = renewed => serving.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            () = cut.cancelled() => {}
            _ = serving => {}
        }
    }

    /// Serves a caller whose proxy is not one of ours; until its leaf is to be shown anew, when
    /// `renewed` ends.
    async fn serve_http1(self, stream: TlsStream<Wide>, renewed: impl Future<Output = ()>) {
        let (context, listed) = (self.port.context.clone(), self.listed.clone());
        let (connection, ending) = (self.clone(), context.drain.child_token());
        let answer = move |request: Request<_>| self.clone().answer(request.map(Incoming::Http1));
        let idle_ends = async {
            ending.cancelled().await;
            if context.drain.is_cancelled() {
                context.idle_ends().await;
            }
        };
        let (ahead, settings) = (BytesMut::new(), &context.http1.inbound);
        let serving = server::serve(stream, ahead, settings, answer, &ending, idle_ends);
        let (mut serving, mut renewed) = (std::pin::pin!(serving), std::pin::pin!(renewed));
        let ended = loop {
            tokio::select! {
                biased;
                () = listed.0.watched.cut.cancelled() => return,
                ended = serving.as_mut() => break ended,
                () = renewed.as_mut(), if !ending.is_cancelled() => ending.cancel(),
            }
        };
        if let Some(fault) = ended.err().and_then(|error| error.fault()) {
            connection.broken_request(fault);
        }
    }

    /// Reports a request that breaks a rule of HTTP/1.1.
    fn broken_request(&self, fault: Fault) {
        let record = self.record(Reason::BadRequest, self.port.context.clock.now());
        self.pair.record(&Record { status: Some(fault.status().as_u16()), ..record });
    }

    /// Answers one request, and reports it once its answer has ended.
    async fn answer(self, mut request: Request<Incoming>) -> Response<Body> {
        let context = self.port.context.clone();
        let started = context.clock.now();
        let is_grpc = hygiene::is_grpc(request.headers());
        let manner = Manner::new(is_grpc, request.method());
        let owner = Owner { service: &self.port.service, instance: &self.port.instance };
        let (_, trail) = context.report.begin(owner, &mut request, is_grpc);
        let refuse = |status: StatusCode, reason: Reason| {
            let (record, trail) = (self.record(reason, started), trail.clone());
            self.pair.record(&Record { status: Some(status.as_u16()), trail, ..record });
            hygiene::refusal(status, reason, DecidedBy::ServerProxy, manner)
        };
        if let Some(refusal) = self.watched().refusal() {
            return refuse(StatusCode::FORBIDDEN, refusal);
        }
        let Some(slot) = context.request_slot() else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Overloaded);
        };
        let rules = context.view.borrow().normal;
        let authority = match admit(&mut request, &context.limits, &rules) {
            Ok(authority) => authority,
            Err(bad) => return refuse(bad.0, Reason::BadRequest),
        };
        let Some(chain) = self.port.chain() else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::ViewMissing);
        };
        let within = hygiene::deadline(request.headers());
        let upgrade = self.cleanse(request.headers_mut(), rules.forwarded, within);
        let upgrade = upgrade.filter(|_| request.body().is_upgrade());
        forward(trail.as_ref(), request.headers_mut());
        let came = self.is_kept(upgrade.as_ref()).then(|| request.headers().clone());
        let (by, judged) = self.judge(&mut request, &authority);
        decided(trail.as_ref(), by);
        let proved = match judged {
            Ok(proved) => proved,
            Err(reason) => return refuse(hygiene::status(reason), reason),
        };
        // Only what may be asked at all counts against rates and load.
        let admitted = match self.admit(&request, started) {
            Ok(admitted) => admitted,
            Err(Refused { reason, after }) => {
                return hygiene::come_again(refuse(hygiene::status(reason), reason), after);
            }
        };
        let broke = match self.bound(request.body_mut(), is_grpc) {
            Ok(broke) => broke,
            Err(reason) => return refuse(hygiene::status(reason), reason),
        };
        let under_way = came.map(|came| self.keep(&request, &authority, (came, proved)));
        let upgrade = upgrade.zip(under_way.clone());
        let is_http1 = chain.protocol == Protocol::Http;
        if address(&mut request, &authority, is_http1 || upgrade.is_some()).is_none() {
            return refuse(StatusCode::BAD_REQUEST, Reason::BadRequest);
        }
        let sent = Rc::<Passed>::default();
        let unanswered = Unanswered::then(|| self.abandoned(started, trail.as_ref()));
        let sending =
            self.send(request, upgrade, &chain, Limit::of(within, is_grpc, &chain), &sent);
        let sending = self.until_cut(under_way.as_deref(), sending).await;
        unanswered.answered();
        let answer = match sending.map_err(|reason| sent.why(reason)) {
            Ok(sent) => sent,
            Err(reason) => {
                let reason = broke.and_then(|broke| broke.get()).unwrap_or(reason);
                return refuse(hygiene::status(reason), reason);
            }
        };
        let held = (slot, admitted.answered(context.clock.now()));
        self.deliver(answer, under_way, Told { held, sent, started, trail })
    }

    /// Passes an answer on, and reports once when it, or what the request became, has ended.
    fn deliver(
        self,
        (mut response, on_end): Sent,
        under_way: Option<Rc<UnderWay>>,
        told: Told,
    ) -> Response<Body> {
        let Told { held, sent, started, trail } = told;
        let status = response.status();
        let first_byte = Some(self.port.context.clock.now().saturating_sub(started));
        let answer = Record {
            status: Some(status.as_u16()),
            first_byte,
            trail: trail.clone(),
            ..self.record(Reason::Ok, started)
        };
        let is_switch = status == StatusCode::SWITCHING_PROTOCOLS;
        if let Some(became) = under_way.as_ref().filter(|_| is_switch) {
            became.then(move |relayed| {
                // It was under way for as long as the connection that it became.
                let _held = held;
                self.closed(answer, relayed, started);
            });
            return response.map(|_| Body::full(Bytes::new()));
        }
        hygiene::pass_on(&mut response);
        answered(trail.as_ref(), response.headers());
        let cut = under_way.as_ref().map(|request| request.cut.clone());
        let record: hygiene::OnEnd = Box::new(move |end, bytes| {
            let _held = (held, under_way);
            let reason = self.ended(end);
            on_end(end);
            let moved = Moved { sent: sent.bytes.get(), received: bytes };
            self.report(answer, reason, moved, started);
        });
        response.map(|body| Body::arriving(body, None, record).noting(trail).until(cut))
    }

    /// Sends to the application, in what it speaks, and waits for a sound answer no longer than
    /// `limit` says.
    async fn send(
        &self,
        request: Request<Incoming>,
        upgrade: Option<(HeaderValue, Rc<UnderWay>)>,
        chain: &Chain,
        limit: Option<Limit>,
        sent: &Rc<Passed>,
    ) -> Result<Sent, Reason> {
        let is_http1 = chain.protocol == Protocol::Http;
        let sending = async {
            match upgrade {
                Some((to, became)) => {
                    Box::pin(self.upgrade(request, to, became, chain, sent)).await
                }
                None if is_http1 => Box::pin(self.send_http1(request, chain, sent)).await,
                None => Box::pin(self.send_http2(request, chain, sent)).await,
            }
        };
        let (response, on_end) = in_time(limit, sending).await?;
        if let Err(reason) = sound(&response) {
            on_end(End::Upstream);
            return Err(reason);
        }
        Ok((response, on_end))
    }

    /// Waits for an answer to `request` for as long as that is allowed.
    async fn until_cut(
        &self,
        request: Option<&UnderWay>,
        sending: impl Future<Output = Result<Sent, Reason>>,
    ) -> Result<Sent, Reason> {
        let Some(request) = request else { return sending.await };
        tokio::select! {
            biased;
            () = request.cut.cancelled() => Err(self.ended(End::Cut)),
            sent = sending => sent,
        }
    }

    /// Why an answer ended.
    fn ended(&self, end: End) -> Reason {
        let watched = self.watched();
        match end {
            End::Complete => Reason::Ok,
            End::Upstream | End::Timeout => Reason::UpstreamReset,
            End::Downstream | End::Cut if watched.cut.is_cancelled() => watched.why(),
            End::Downstream => Reason::DownstreamReset,
            End::Cut => Reason::PolicyCut,
        }
    }

    /// Holds the body of a request to what the instance takes, where it must be seen while it comes.
    /// Answers where it is said then that it went beyond that.
    ///
    /// # Errors
    /// [`Reason::RequestTooLarge`] where its head says so.
    fn bound(&self, body: &mut Incoming, is_grpc: bool) -> Result<Option<Broke>, Reason> {
        if body.is_end_stream() || body.is_upgrade() {
            return Ok(None);
        }
        let (length, most) = (body.size_hint().exact(), self.port.guard().bodies.max_bytes);
        if most > 0 && length.is_some_and(|length| length > most) {
            return Err(Reason::RequestTooLarge);
        }
        // What is kept is waited for no longer than this before it is sent.
        let is_kept = length.is_some_and(|length| length <= self.port.context.limits.replay_bytes);
        let idle = self.port.request_idle().filter(|_| !is_grpc && !is_kept);
        let most = (most > 0 && length.is_none()).then_some(most);
        if most.is_none() && idle.is_none() {
            return Ok(None);
        }
        let unbound = std::mem::replace(body, Incoming::Http1(hawser_http1::Body::empty()));
        let (bounded, broke) = unbound.bound(most, idle);
        *body = bounded;
        Ok(Some(broke))
    }

    /// What the instance's limits say of a request that may be asked at all.
    fn admit(&self, request: &Request<Incoming>, now: Duration) -> Result<Admitted, Refused> {
        self.port.guard().admit(request.uri().path(), &self.source, now)
    }

    /// Reports a request whose sender went away, or was cut off, before there was an answer.
    fn abandoned(&self, started: Duration, trail: Option<&Rc<Trail>>) {
        let reason = self.why(Reason::DownstreamReset);
        let (decided_by, trail) = (who_ended(reason), trail.cloned());
        let record = self.record(reason, started);
        self.pair.record(&Record { status: Some(hygiene::GONE), decided_by, trail, ..record });
    }

    /// Why the connection was cut; `otherwise` where it was not.
    fn why(&self, otherwise: Reason) -> Reason {
        if self.watched().cut.is_cancelled() { self.watched().why() } else { otherwise }
    }

    /// Reports what a request became, once that has ended.
    fn closed(&self, answer: Record, (moved, ended): (Moved, Result<(), Reason>), began: Duration) {
        let reason = match ended.err().filter(|reason| reason.ends_connections()) {
            None => Reason::Ok,
            Some(Reason::PolicyCut) => self.why(Reason::PolicyCut),
            Some(reason) => reason,
        };
        self.report(answer, reason, moved, began);
    }

    /// Reports an answer, or what its request became, that ended now for `reason`.
    fn report(&self, answer: Record, reason: Reason, moved: Moved, began: Duration) {
        let context = &self.port.context;
        self.pair.record(&Record {
            reason,
            decided_by: who_ended(reason),
            bytes_sent: moved.sent,
            bytes_received: moved.received,
            duration: context.clock.now().saturating_sub(began),
            view_index: context.view.borrow().index,
            ..answer
        });
    }

    /// Sends to an application that speaks HTTP/1.1, over a connection kept from before or new.
    ///
    /// A kept connection may have been closed by the application in this very moment. Where the
    /// request was not taken, or may be repeated, it goes out once more over a new one.
    async fn send_http1(
        &self,
        request: Request<Incoming>,
        chain: &Chain,
        sent: &Rc<Passed>,
    ) -> Result<Sent, Reason> {
        let (port, context) = (&self.port, &self.port.context);
        let limits = &context.limits;
        let (parts, incoming) = request.into_parts();
        let idle = || port.request_idle();
        let mut body = Outgoing::prepare(incoming, limits.replay_bytes, context.trailers(), idle)
            .await
            .map_err(|broken| broken.reason())?;
        let mut kept = port.idle.take(context.clock.now(), limits.application_idle);
        loop {
            let (is_kept, address) = (kept.is_some(), port.application());
            let mut sender = match kept.take() {
                Some(sender) => sender,
                None => {
                    let stream = port.dial(chain.local_connect_timeout).await?;
                    client::handshake(stream, context.http1.client.clone())
                }
            };
            match sender.try_send_request(&parts, body.body(sent)).await {
                Ok(response) => {
                    let (port, clock) = (port.clone(), context.clock);
                    let keep = move |end: End| {
                        // The application may be elsewhere now.
                        if end == End::Complete && Rc::ptr_eq(&port.application(), &address) {
                            let most = port.context.limits.application_pool;
                            port.idle.keep(sender, clock.now(), most);
                        }
                    };
                    return Ok((response.map(Incoming::Http1), Box::new(keep)));
                }
                Err(failed) => {
                    if let Some(unsent) = failed.body {
                        body.restore(unsent);
                    }
                    let may_repeat = body.is_whole()
                        && (!failed.was_sent
                            || (hygiene::is_idempotent(&parts.method) && body.is_repeatable()));
                    if is_kept && may_repeat && failed.error.fault().is_none() {
                        continue;
                    }
                    return Err(http1_reason(&failed.error, failed.was_sent));
                }
            }
        }
    }

    /// Sends to an application that speaks HTTP/2.
    async fn send_http2(
        &self,
        request: Request<Incoming>,
        chain: &Chain,
        sent: &Rc<Passed>,
    ) -> Result<Sent, Reason> {
        let port = &self.port;
        let limits = &port.context.limits;
        let (parts, incoming) = request.into_parts();
        let (trailers, idle) = (port.context.trailers(), || port.request_idle());
        let mut body = Outgoing::prepare(incoming, limits.replay_bytes, trailers, idle)
            .await
            .map_err(|broken| broken.reason())?;
        let within = chain.local_connect_timeout;
        for is_last in [false, true] {
            let connect = || {
                let port = port.clone();
                async move {
                    let stream = port.dial(within).await?;
                    let mut builder = http2::Builder::new(LocalExecutor);
                    port.context.tune_http2_client(&mut builder);
                    let (sender, connection) = builder
                        .handshake(TokioIo::new(stream))
                        .await
                        .map_err(|_| Reason::ApplicationUnreachable)?;
                    tokio::task::spawn_local(connection);
                    Ok(Line::new(sender))
                }
            };
            let most = limits.connections_per_endpoint;
            let place = port.lines.place(most, limits.streams, connect).await?;
            let try_ = Request::from_parts(parts.clone(), body.body(sent));
            let Some(mut sender) = place.sender() else { break };
            match sender.try_send_request(try_).await {
                Ok(response) => {
                    let response = response.map(Incoming::Http2);
                    return Ok((response, Box::new(move |_| drop(place))));
                }
                Err(mut failed) => {
                    let is_untaken = failed.take_message().map(|unsent| {
                        body.restore(unsent.into_body());
                    });
                    let error = failed.into_error();
                    let may_repeat = is_untaken.is_some()
                        || is_unprocessed(&error)
                        || (hygiene::is_idempotent(&parts.method) && body.is_repeatable());
                    if is_last || !may_repeat || !body.is_whole() {
                        return Err(application_reason(&error));
                    }
                }
            }
        }
        Err(Reason::ApplicationUnreachable)
    }

    /// Passes an upgrade on over a connection of its own, and relays bytes once both have agreed.
    async fn upgrade(
        &self,
        mut request: Request<Incoming>,
        to: HeaderValue,
        became: Rc<UnderWay>,
        chain: &Chain,
        sent: &Rc<Passed>,
    ) -> Result<Sent, Reason> {
        let port = &self.port;
        let stream = port.dial(chain.local_connect_timeout).await?;
        let mut sender = client::handshake(stream, port.context.http1.client.clone());
        let downstream = request.body_mut().on_upgrade();
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, to);
        let (parts, incoming) = request.into_parts();
        let body = Outgoing::Arriving(Some(incoming), port.context.trailers()).body(sent);
        let sending = sender.try_send_request(&parts, body).await;
        let response = sending.map_err(|failed| http1_reason(&failed.error, failed.was_sent))?;
        let mut response = response.map(Incoming::Http1);
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upstream = response.body_mut().on_upgrade();
            let (downstream, upstream) =
                downstream.zip(upstream).ok_or(Reason::UpstreamProtocol)?;
            let (context, listed) = (port.context.clone(), self.listed.clone());
            let life = Lifespan::new(&chain.policies, context.limits.tcp_idle);
            context.clone().tracker.spawn_local(async move {
                // What it became is watched as it was.
                let _listed = listed;
                let cut = &became.cut;
                let relayed = relay_upgraded(&context, downstream, upstream, cut, &life).await;
                became.ended(relayed);
            });
        }
        Ok((response, Box::new(move |_| drop(sender))))
    }

    /// Leaves of a caller's fields those that are its to say, and adds those that are this proxy's.
    /// A gRPC application is told of the deadline that the caller has. Answers whether an upgrade
    /// is asked for, and to what.
    fn cleanse(
        &self,
        headers: &mut HeaderMap,
        forwarded: Forwarded,
        deadline: Option<Duration>,
    ) -> Option<HeaderValue> {
        let attempt = headers.get(hygiene::ATTEMPT_HEADER).cloned();
        let upgrade = hygiene::strip(headers, forwarded);
        if let Some(attempt) = attempt {
            headers.insert(hygiene::ATTEMPT_HEADER, attempt);
        }
        headers.insert(hygiene::CALLER_HEADER, self.caller.clone());
        hygiene::attest_origin(headers, &self.from);
        if let Some(left) = deadline {
            hygiene::tell_grpc(headers, left);
        }
        upgrade
    }

    /// What the guard says of a request, and what decided it, where there is one.
    fn judge(
        &self,
        request: &mut Request<Incoming>,
        to: &Authority,
    ) -> (Option<By>, Result<Proved, Reason>) {
        let context = &self.port.context;
        let (view, keys) = (context.view.borrow(), context.keys.borrow());
        judge(self.watched().guard().as_deref(), &view, &keys, request, to)
    }

    /// Whether a request is judged again while it is under way. Where nothing judges requests, only
    /// those are that become connections: something may, by and by.
    fn is_kept(&self, upgrade: Option<&HeaderValue>) -> bool {
        upgrade.is_some() || self.watched().is_guarded()
    }

    /// Keeps a request, to be judged again while it is under way.
    fn keep(
        &self,
        request: &Request<Incoming>,
        to: &Authority,
        judged: (HeaderMap, Proved),
    ) -> Rc<UnderWay> {
        let request = UnderWay::new(request, to, judged, &self.watched().cut);
        self.watched().under_way.keep(&request);
        request
    }
}

/// Who ended what ended for `reason`, where an application had begun to answer it.
const fn who_ended(reason: Reason) -> DecidedBy {
    match reason.ends_connections() {
        true => DecidedBy::ServerProxy,
        false => DecidedBy::Application,
    }
}

/// How long an answer may take to begin, and what it means that it takes longer.
struct Limit {
    within: Duration,
    reason: Reason,
}

impl Limit {
    /// As long as the caller waits. One that does not say so waits for as long as the service's
    /// chain has it: what it leaves half sent would hold its place in the instance for ever. A
    /// stream of gRPC may well send for as long as it likes.
    fn of(deadline: Option<Duration>, is_grpc: bool, chain: &Chain) -> Option<Self> {
        match deadline {
            Some(within) => Some(Self { within, reason: Reason::DeadlineExceeded }),
            None if is_grpc => None,
            None => Some(Self { within: chain.request_timeout, reason: Reason::RequestTimeout }),
        }
    }
}

/// Waits for an answer for as long as it may take.
async fn in_time(
    limit: Option<Limit>,
    sending: impl Future<Output = Result<Sent, Reason>>,
) -> Result<Sent, Reason> {
    let Some(Limit { within, reason }) = limit else { return sending.await };
    tokio::time::timeout(within, sending).await.unwrap_or(Err(reason))
}

/// What the report of a request tells beside its answer.
struct Told {
    /// The request's places, held until its answer has ended.
    held: (Slot, Held),
    sent: Rc<Passed>,
    started: Duration,
    trail: Option<Rc<Trail>>,
}

/// An answer, and what to do when it has ended.
type Sent = (Response<Incoming>, Box<dyn FnOnce(End)>);

/// Relays two upgraded connections until they end or are cut.
pub(crate) async fn relay_upgraded(
    context: &Rc<Context>,
    downstream: OnUpgrade,
    upstream: OnUpgrade,
    cut: &CancellationToken,
    life: &Lifespan,
) -> (Moved, Result<(), Reason>) {
    let _counted = context.hold_connection();
    let mut moved = Moved::default();
    let Ok((mut downstream, mut upstream)) = tokio::try_join!(downstream, upstream) else {
        return (moved, Err(Reason::DownstreamReset));
    };
    let ended = tokio::select! {
        biased;
        () = cut.cancelled() => Err(Reason::PolicyCut),
        ended = life.relay(&mut downstream, &mut upstream, &context.buffers, &mut moved) => ended,
    };
    (moved, ended)
}

/// Addresses a request to `authority` as its version does: HTTP/1.1 has it in `host` beside a bare
/// path, HTTP/2 in the target. None when it cannot.
pub(crate) fn address<B>(
    request: &mut Request<B>,
    authority: &Authority,
    is_http1: bool,
) -> Option<()> {
    let target = request.uri().path_and_query().cloned();
    if is_http1 {
        let host = HeaderValue::try_from(authority.as_str()).ok()?;
        request.headers_mut().insert(header::HOST, host);
        *request.uri_mut() = target.map_or_else(Uri::default, Uri::from);
        *request.version_mut() = Version::HTTP_11;
    } else {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(http::uri::Scheme::HTTP);
        parts.authority = Some(authority.clone());
        parts.path_and_query = target;
        *request.uri_mut() = Uri::from_parts(parts).ok()?;
        request.headers_mut().remove(header::HOST);
        *request.version_mut() = Version::HTTP_2;
    }
    Some(())
}

/// Whether the peer said that it did not begin to process the request.
pub(crate) fn is_unprocessed(error: &hyper::Error) -> bool {
    h2_error(error)
        .is_some_and(|h2| h2.reason() == Some(h2::Reason::REFUSED_STREAM) || is_farewell(h2))
}

/// Whether the peer said that it takes no more requests in this connection, and did not begin to
/// process this one: nothing against it, which may take it in the next connection.
pub(crate) fn is_leaving(error: &hyper::Error) -> bool {
    h2_error(error).is_some_and(is_farewell)
}

fn is_farewell(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

/// The fault in HTTP/2 behind an error.
fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            return Some(h2);
        }
        source = inner.source();
    }
    None
}

/// The reason behind a failed exchange with an application that speaks HTTP/1.1.
fn http1_reason(error: &hawser_http1::Error, was_sent: bool) -> Reason {
    if error.fault().is_some() {
        Reason::UpstreamProtocol
    } else if error.is_message() {
        Reason::DownstreamReset
    } else if was_sent {
        Reason::UpstreamReset
    } else {
        Reason::ApplicationUnreachable
    }
}

fn application_reason(error: &hyper::Error) -> Reason {
    if error.is_parse() || error.is_parse_status() {
        Reason::UpstreamProtocol
    } else if error.is_canceled() || error.is_closed() {
        Reason::ApplicationUnreachable
    } else if error.is_user() || error.is_body_write_aborted() {
        Reason::DownstreamReset
    } else {
        Reason::UpstreamReset
    }
}

/// How long a refused caller may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// Over how long callers move to connections with a new leaf.
const RENEWED_WITHIN: Duration = Duration::from_secs(3);
