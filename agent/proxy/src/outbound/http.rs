//! Requests of HTTP services: each is sent to one instance after another until one answers.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use hawser_core::balance::{Ask, Fault, Outcome, PeerId, Pick};
use hawser_core::chain::Chain;
use hawser_core::name::PeerName;
use hawser_core::reason::{DecidedBy, Reason};
use hawser_core::retry::{self, Again};
use hawser_core::traffic::{Policy, Retries};
use hawser_http1::{ReadAhead, client, server};
use http::header::{self, HeaderValue};
use http::uri::Authority;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rand::RngCore as _;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::branch::Way;
use super::dial::{Dialled, dial};
use super::reach::Instance;
use super::terms::{self, Affinity, Terms};
use super::{Picked, Port};
use crate::admit::{admit, sound};
use crate::calm::Calm;
use crate::context::{Context, Slot};
use crate::http::{
    self as hygiene, Body, End, Incoming, LocalExecutor, Manner, Outgoing, Passed, Sending,
};
use crate::inbound::{address, is_leaving, is_unprocessed, relay_upgraded};
use crate::lifespan::Lifespan;
use crate::pool::{Channels, Line, Place};
use crate::relay::Moved;
use crate::report::{Owner, Record, Trail, Try, Unanswered, Upstream, answered};
use crate::socket::Severable;
use crate::streams::{self, Entry, Session, Side};
use crate::tls::{self, ALPN_H2, ALPN_REQUESTS};
use crate::usage::Held;

impl Port {
    pub(super) async fn serve_http(self: Rc<Self>, socket: TcpStream) {
        let context = self.context.clone();
        let source = if self.hashes_source() { socket.peer_addr().ok() } else { None };
        let mut ahead = BytesMut::new();
        let is_http2 = tokio::select! {
            biased;
            () = context.idle_ends() => return,
            read = tokio::time::timeout(context.limits.http_idle, is_http2(&socket, &mut ahead)) => {
                match read {
                    Ok(Ok(is_http2)) => is_http2,
                    Ok(Err(_)) | Err(_) => return,
                }
            }
        };
        if is_http2 {
            let stream = ReadAhead::new(ahead.freeze(), socket);
            return Box::pin(self.serve_http2(stream, source)).await;
        }
        let port = &self;
        let answer =
            |request: Request<_>| port.clone().answer(request.map(Incoming::Http1), source);
        let (settings, drain) = (&context.http1.outbound, &context.drain);
        let ended =
            server::serve(socket, ahead, settings, answer, drain, context.idle_ends()).await;
        if let Some(fault) = ended.err().and_then(|error| error.fault()) {
            let record = self.record(Reason::BadRequest, context.clock.now());
            let status = Some(fault.status().as_u16());
            self.pair.record(&Record { status, attempts: 0, ..record });
        }
    }

    /// Serves HTTP/2 without TLS, from an application that knows that it is spoken here.
    async fn serve_http2(self: Rc<Self>, stream: ReadAhead<TcpStream>, source: Option<SocketAddr>) {
        let context = self.context.clone();
        let limits = &context.limits;
        let has_asked = Rc::new(Notify::new());
        let asked = has_asked.clone();
        let service = service_fn(move |request: Request<_>| {
            let answering = self.clone().answer(request.map(Incoming::Http2), source);
            let (context, asked) = (self.context.clone(), asked.clone());
            async move {
                let response = answering.await;
                if context.drain.is_cancelled() {
                    asked.notify_one();
                }
                Ok::<_, std::convert::Infallible>(response)
            }
        });
        let mut builder = hyper::server::conn::http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.header_bytes)
            .max_pending_accept_reset_streams(crate::context::PENDING_RESETS_MAX)
            .max_local_error_reset_streams(crate::context::ERROR_RESETS_MAX)
            .initial_stream_window_size(crate::context::STREAM_WINDOW)
            .initial_connection_window_size(crate::context::CONNECTION_WINDOW);
        let mut serving = std::pin::pin!(
            builder.serve_connection(TokioIo::new(Calm::new(stream, context.clock)), service)
        );
        tokio::select! {
            biased;
            _ = serving.as_mut() => return,
            () = context.finishing(&has_asked) => serving.as_mut().graceful_shutdown(),
        }
        let _ = serving.await;
    }

    /// Answers one request of the application: checks it, tries instances, reports once.
    async fn answer(
        self: Rc<Self>,
        mut request: Request<Incoming>,
        source: Option<SocketAddr>,
    ) -> Response<Body> {
        let context = self.context.clone();
        let started = context.clock.now();
        let is_grpc = hygiene::is_grpc(request.headers());
        let manner = Manner::new(is_grpc, request.method());
        let owner = Owner { service: &self.service, instance: &self.instance };
        let (id, trail) = context.report.begin(owner, &mut request, is_grpc);
        let refuse = |status: StatusCode, reason: Reason, attempts: u8| {
            let (record, trail) = (self.record(reason, started), trail.clone());
            self.pair.record(&Record { status: Some(status.as_u16()), attempts, trail, ..record });
            hygiene::named(hygiene::refusal(status, reason, DecidedBy::ClientProxy, manner), &id)
        };
        let Some(slot) = context.request_slot() else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::Overloaded, 0);
        };
        let rules = context.view.borrow().normal;
        let authority = match admit(&mut request, &context.limits, &rules) {
            Ok(authority) => authority,
            Err(bad) => return refuse(bad.0, Reason::BadRequest, 0),
        };
        // The application passes on that it was itself called by a retry: one layer retries.
        let was_retried = request.headers().contains_key(hygiene::ATTEMPT_HEADER);
        let upgrade = hygiene::strip(request.headers_mut(), rules.forwarded);
        // What was for one hop, or is a proxy's to say, has no say in where it goes.
        let way = match self.way(&request, &authority) {
            Ok(way) => way,
            Err(reason) => return refuse(hygiene::status(reason), reason, 0),
        };
        if let Err(reason) = way.change(&mut request) {
            return refuse(hygiene::status(reason), reason, 0);
        }
        let upgrade = upgrade.filter(|_| request.body().is_upgrade());
        if upgrade.is_none() && address(&mut request, &authority, true).is_none() {
            return refuse(StatusCode::BAD_REQUEST, Reason::BadRequest, 0);
        }
        let admitted = Admitted { request, source, upgrade, slot, was_retried, started, id, trail };
        let port = way.port.clone();
        match way.makes_faults() {
            false => port.carry(way, admitted).await,
            true => Box::pin(port.carry_through_faults(way, admitted)).await,
        }
    }

    /// Carries a request that was checked on its way: tries instances, reports once.
    pub(super) async fn carry(self: Rc<Self>, way: Way, admitted: Admitted) -> Response<Body> {
        let Admitted { request, source, upgrade, slot, was_retried, started, id, trail } = admitted;
        let context = self.context.clone();
        let manner = Manner::new(hygiene::is_grpc(request.headers()), request.method());
        let refuse = |said: StatusCode, reason: Reason, attempts: u8| {
            let (status, trail, route) = (Some(said.as_u16()), trail.clone(), way.class());
            let own = self.record(reason, started);
            self.pair.record(&Record { status, attempts, trail, route, ..own });
            hygiene::named(hygiene::refusal(said, reason, DecidedBy::ClientProxy, manner), &id)
        };
        let (policy, terms) = (way.policy(), self.terms());
        let Some(mut chain) = terms.chain.clone() else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, Reason::ViewMissing, 0);
        };
        let held = match self.enter(&terms, upgrade.is_some()) {
            Ok(held) => held,
            Err(reason) => return refuse(StatusCode::SERVICE_UNAVAILABLE, reason, 0),
        };
        if let Some(span) = policy.and_then(|policy| policy.request_timeout) {
            Rc::make_mut(&mut chain).request_timeout = span;
        }
        let (parts, incoming) = request.into_parts();
        let draw = || context.random.borrow_mut().next_u64();
        let affinity = Affinity::of(&terms, &parts, source, draw);
        if let Some(to) = upgrade {
            let request = Request::from_parts(parts, incoming);
            let switch = Switch { to, affinity, held: (slot, held), started, trail: trail.clone() };
            return match Box::pin(self.clone().upgrade(request, &chain, &way, switch)).await {
                Ok(response) => hygiene::named(response, &id),
                Err(reason) => refuse(hygiene::status(reason), reason, 1),
            };
        }
        let span = way.left(within(&chain, &parts.headers));
        let deadline = Instant::now() + span;
        let body = match prepared(incoming, &context, deadline).await {
            Ok(body) => body,
            Err((status, reason)) => return refuse(status, reason, 0),
        };
        way.copy(&parts, &body);
        let mut exchange = Exchange {
            hash: affinity.hash,
            policy,
            was_retried,
            trail: trail.clone(),
            ..Exchange::new(&self, &chain, &terms, parts, body, deadline)
        };
        exchange.follow_body(manner == Manner::Grpc, span, |asked| way.left(asked));
        let unanswered = Unanswered::then(|| self.abandoned(started, trail.as_ref(), &way));
        let exchanged = Box::pin(exchange.run()).await;
        unanswered.answered();
        let (attempts, sent, deadline) = (exchange.attempts, exchange.sent.clone(), exchange.due());
        match exchanged.map_err(|reason| sent.why(reason)) {
            Ok(answer) => {
                let (trail, cookie) = (trail.clone(), affinity.cookie);
                let told = Told { attempts, sent, started, deadline, slot, held, cookie, trail };
                hygiene::named(self.clone().deliver(answer, &way, told), &id)
            }
            Err(reason) => refuse(hygiene::status(reason), reason, attempts),
        }
    }

    /// Passes an answer on, and reports once when it has ended.
    fn deliver(self: Rc<Self>, answer: Answer, way: &Way, told: Told) -> Response<Body> {
        let Answer { mut response, decided, place, upstream, cluster, at, open } = answer;
        let Told { attempts, sent, started, deadline, slot, held, cookie, trail } = told;
        hand_over(&mut response, way, cookie);
        let deadline = (!hygiene::is_stream(response.headers())).then_some(deadline);
        let status = response.status().as_u16();
        let (noted, route) = (trail.clone(), way.class());
        answered(trail.as_ref(), response.headers());
        let on_end = move |end: End, bytes: u64| {
            let _held = (slot, place, held);
            let (reason, decided_by) = match (end, decided) {
                (End::Complete, Some(reason)) => (reason, DecidedBy::ServerProxy),
                (End::Complete, None) => (Reason::Ok, DecidedBy::Application),
                (End::Upstream, _) => (Reason::UpstreamReset, DecidedBy::Application),
                (End::Downstream, _) => (Reason::DownstreamReset, DecidedBy::Application),
                (End::Cut, _) => (Reason::PolicyCut, DecidedBy::ClientProxy),
                (End::Timeout, _) => (Reason::RequestTimeout, DecidedBy::ClientProxy),
            };
            if let (Some(pick), End::Complete) = (open, end) {
                let status = noted.as_ref().and_then(|trail| trail.grpc_status());
                self.concluded(pick, status.and_then(terms::grpc_fault));
            }
            self.pair.record(&Record {
                decided_by,
                status: Some(status),
                bytes_sent: sent.bytes.get(),
                bytes_received: bytes,
                first_byte: Some(at.saturating_sub(started)),
                attempts,
                upstream: Some(upstream),
                cluster,
                route,
                trail: noted,
                ..self.record(reason, started)
            });
        };
        let idle = way.policy().and_then(|policy| policy.idle_timeout);
        let arriving = |body| Body::arriving(body, deadline, Box::new(on_end));
        let rate = way.met.bytes_per_second;
        response.map(|body| arriving(body).noting(trail).silent_for(idle).at_rate(rate))
    }

    /// Reports a request whose sender went away before there was an answer.
    fn abandoned(&self, started: Duration, trail: Option<&Rc<Trail>>, way: &Way) {
        let record = self.record(Reason::DownstreamReset, started);
        let (status, decided_by) = (Some(hygiene::GONE), DecidedBy::Application);
        let (trail, route) = (trail.cloned(), way.class());
        self.pair.record(&Record { status, decided_by, trail, route, ..record });
    }

    /// Carries an upgrade over a connection of its own, in HTTP/1.1 inside mTLS.
    async fn upgrade(
        self: Rc<Self>,
        mut request: Request<Incoming>,
        chain: &Chain,
        way: &Way,
        switch: Switch,
    ) -> Result<Response<Body>, Reason> {
        let Switch { to, affinity, held: places, started, trail } = switch;
        let context = self.context.clone();
        let (Dialled { stream, listed, .. }, instance, peer, tried) =
            self.dial_http1(chain, affinity.hash, trail.as_ref(), request.headers_mut()).await?;
        let (upstream, cluster) = (instance.upstream.clone(), instance.peer().cloned());
        let (listed, limits) = (Rc::new(listed), context.http1.client.clone());
        let stream = Severable::new(stream, &listed.watched.cut);
        let mut sender = client::handshake(stream, limits);
        let downstream = request.body_mut().on_upgrade();
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(header::UPGRADE, to);
        let target = request.uri().path_and_query().cloned();
        *request.uri_mut() = target.map_or_else(http::Uri::default, http::Uri::from);
        let (parts, incoming) = request.into_parts();
        let body = Outgoing::Arriving(Some(incoming), context.trailers()).body(&Rc::default());
        let sending = sender.try_send_request(&parts, body);
        let response = match tokio::time::timeout(chain.request_timeout, sending).await {
            Ok(sent) => sent.map_err(|failed| http1_reason(&failed.error)),
            Err(_) => Err(Reason::RequestTimeout),
        };
        end_try(tried, &response);
        let mut response = response?.map(Incoming::Http1);
        let status = sound(&response)?.status();
        if let Some(cookie) = affinity.cookie {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        let record = Record {
            status: Some(status.as_u16()),
            upstream: Some(upstream),
            cluster,
            decided_by: DecidedBy::Application,
            first_byte: Some(context.clock.now().saturating_sub(started)),
            route: way.class(),
            trail,
            ..self.record(Reason::Ok, started)
        };
        if status != StatusCode::SWITCHING_PROTOCOLS {
            let verdict = hygiene::verdict(response.headers());
            let said = response.headers().get(hygiene::REASON_HEADER).cloned();
            hygiene::pass_on(&mut response);
            way.change_answer(response.headers_mut());
            if let Some(said) = said {
                response.headers_mut().insert(hygiene::REASON_HEADER, said);
            }
            let on_end = move |_: End, bytes: u64| {
                let _held = (sender, listed, places);
                let reason = verdict.unwrap_or(Reason::Ok);
                self.pair.record(&Record { reason, bytes_received: bytes, ..record });
            };
            return Ok(response.map(|body| Body::arriving(body, None, Box::new(on_end))));
        }
        let onward = response.body_mut().on_upgrade();
        let (downstream, onward) = downstream.zip(onward).ok_or(Reason::UpstreamProtocol)?;
        let moves = self.moves(&instance, &chain.policies);
        let life = Lifespan::new(&chain.policies, context.limits.tcp_idle).moving(moves);
        self.balancer.borrow_mut().open(peer);
        context.clone().tracker.spawn_local(async move {
            let _places = places;
            let cut = &listed.watched.cut;
            let relayed = relay_upgraded(&context, downstream, onward, cut, &life).await;
            self.balancer.borrow_mut().close(peer);
            self.closed(record, relayed, started);
        });
        Ok(response.map(|_| Body::full(bytes::Bytes::new())))
    }
}
impl Port {
    /// Reports what a request became, once it has ended.
    fn closed(&self, record: Record, (moved, ended): (Moved, Result<(), Reason>), began: Duration) {
        let reason = ended.err().filter(|reason| reason.ends_connections());
        self.pair.record(&Record {
            reason: reason.unwrap_or(Reason::Ok),
            decided_by: reason.map_or(record.decided_by, |_| DecidedBy::ClientProxy),
            bytes_sent: moved.sent,
            bytes_received: moved.received,
            duration: self.context.clock.now().saturating_sub(began),
            ..record
        });
    }

    /// Finds an instance for a connection of its own, in HTTP/1.1. Each try that `trail` traces says
    /// so in the `headers` of the request that is to be sent in it.
    async fn dial_http1(
        &self,
        chain: &Chain,
        hash: Option<u64>,
        trail: Option<&Rc<Trail>>,
        headers: &mut HeaderMap,
    ) -> Result<(Dialled, Rc<Instance>, PeerId, Option<Try>), Reason> {
        let mut tried = Vec::new();
        loop {
            let picked = self.pick(Ask { tried: &tried, may_probe: true, hash })?;
            let peer = picked.pick.peer;
            tried.push(peer);
            let attempt = u8::try_from(tried.len()).unwrap_or(u8::MAX);
            let traced = trail
                .and_then(|trail| trail.try_begins(headers, attempt, &picked.instance.upstream));
            let (instance, began) = (picked.instance.clone(), self.context.clock.now());
            let config = picked.instance.reach()?.http1.clone();
            let within = chain.connect_timeout;
            match Box::pin(dial(&self.context, &picked.instance, config, within)).await {
                Ok(dialled) => {
                    let now = self.context.clock.now();
                    picked.answered(now.saturating_sub(began), now);
                    return Ok((dialled, instance, peer, traced));
                }
                Err(reason) => {
                    picked.failed(reason, began);
                    if let Some(traced) = traced {
                        traced.ended(reason, None);
                    }
                    if tried.len() >= usize::from(self.context.limits.connect_tries) {
                        return Err(reason);
                    }
                }
            }
        }
    }
}

/// A request that may go on, and what its end needs.
pub(super) struct Admitted {
    pub(super) request: Request<Incoming>,
    /// Where it comes from, if that has a say in where it goes.
    source: Option<SocketAddr>,
    /// What it is to be upgraded to.
    upgrade: Option<HeaderValue>,
    slot: Slot,
    /// Whether it is itself part of a retry further up.
    was_retried: bool,
    pub(super) started: Duration,
    pub(super) id: HeaderValue,
    pub(super) trail: Option<Rc<Trail>>,
}

/// What the upgrade of a request needs beside the request.
struct Switch {
    /// To what.
    to: HeaderValue,
    affinity: Affinity,
    /// The request's places, held for as long as the connection that it becomes.
    held: (Slot, [Held; 2]),
    started: Duration,
    trail: Option<Rc<Trail>>,
}

/// What the report of a request tells beside its answer.
struct Told {
    attempts: u8,
    sent: Rc<Passed>,
    started: Duration,
    /// When the whole answer must have passed.
    deadline: Instant,
    /// The request's places, held until then.
    slot: Slot,
    held: [Held; 2],
    /// What the answer should set.
    cookie: Option<HeaderValue>,
    trail: Option<Rc<Trail>>,
}

/// One request and its tries.
pub(super) struct Exchange<'a> {
    pub(super) port: &'a Rc<Port>,
    chain: &'a Chain,
    /// What its route says.
    policy: Option<&'a Policy>,
    pub(super) terms: &'a Terms,
    /// What leads it to its instance.
    hash: Option<u64>,
    parts: http::request::Parts,
    pub(super) is_idempotent: bool,
    pub(super) body: Outgoing,
    /// Whether the request is itself part of a retry further up.
    pub(super) was_retried: bool,
    /// When all tries together must have given an answer, at the latest.
    deadline: Instant,
    /// How long they may take once the request's body has come; none where that makes no difference.
    after_body: Option<Duration>,
    pub(super) attempts: u8,
    /// How many of the attempts reached no application.
    free: u8,
    pub(super) tried: Vec<PeerId>,
    sent: Rc<Passed>,
    trail: Option<Rc<Trail>>,
}

/// An answer worth passing on.
pub(super) struct Answer {
    response: Response<Incoming>,
    /// Set where the callee's proxy answered, and not its application.
    decided: Option<Reason>,
    place: Place,
    upstream: Rc<Upstream>,
    cluster: Option<PeerName>,
    /// When its head came.
    at: Duration,
    /// Set where its end says how the instance did.
    open: Option<Pick>,
}

/// Why a try did not give an answer to pass on.
pub(super) struct Failure {
    /// Ok where the application answered, with an error.
    reason: Reason,
    end: retry::End,
    /// Whether the connection had died of silence: then another try goes elsewhere, once, and what
    /// is silent gets no load by it.
    was_silent: bool,
    /// Whether the connection took no more requests when this one came: it was never sent, or the
    /// peer said that it goes unread.
    was_untaken: bool,
    /// Whether somebody listed its status: then the same instance may be asked again.
    is_wanted: bool,
    /// An answer that may still be the best there is.
    answer: Option<Box<Answer>>,
}

impl Failure {
    fn of(reason: Reason, end: retry::End) -> Self {
        Self { reason, end, was_silent: false, was_untaken: false, is_wanted: false, answer: None }
    }

    /// Whether no application was reached, so that another try costs none anything.
    fn was_free(&self) -> bool {
        self.was_untaken
            || self.end == retry::End::Unseen
                && matches!(
                    self.reason,
                    Reason::ConnectFailed
                        | Reason::ConnectTimeout
                        | Reason::HandshakeTimeout
                        | Reason::GatewayUnavailable
                        | Reason::ApplicationUnreachable
                        | Reason::Draining
                )
    }
}

/// How long all tries of a request together may take: as long as the chain says, or its own gRPC
/// deadline where that is shorter.
pub(super) fn within(chain: &Chain, headers: &HeaderMap) -> Duration {
    let asked = hygiene::grpc_timeout(headers);
    asked.map_or(chain.request_timeout, |asked| asked.min(chain.request_timeout))
}

/// Ends the span of a try, where there is one, with the head that it came to, or why it did not.
fn end_try<B>(tried: Option<Try>, answer: &Result<Response<B>, Reason>) {
    let Some(tried) = tried else { return };
    match answer {
        Ok(answer) => {
            let reason = hygiene::verdict(answer.headers()).unwrap_or(Reason::Ok);
            tried.ended(reason, Some(answer.status().as_u16()));
        }
        Err(reason) => tried.ended(*reason, None),
    }
}

/// The body of a request as it is sent on, or what its sender is told by `deadline`.
async fn prepared(
    incoming: Incoming,
    context: &Context,
    deadline: Instant,
) -> Result<Outgoing, (StatusCode, Reason)> {
    let most = context.limits.replay_bytes;
    let body = Outgoing::prepare(incoming, most, context.trailers(), || None);
    match tokio::time::timeout_at(deadline, body).await {
        Ok(body) => body.map_err(|_| (StatusCode::BAD_REQUEST, Reason::DownstreamReset)),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, Reason::RequestTimeout)),
    }
}

/// Makes an answer fit for the application: its way changes it, who decided it stays, and it may
/// set a cookie.
fn hand_over(response: &mut Response<Incoming>, way: &Way, cookie: Option<HeaderValue>) {
    let said = response.headers().get(hygiene::REASON_HEADER).cloned();
    hygiene::pass_on(response);
    way.change_answer(response.headers_mut());
    let headers = response.headers_mut();
    if let Some(cookie) = cookie {
        headers.append(header::SET_COOKIE, cookie);
    }
    if let Some(said) = said {
        headers.insert(hygiene::REASON_HEADER, said);
        let by = HeaderValue::from_static(DecidedBy::ServerProxy.as_str());
        headers.insert(hygiene::DECIDED_BY_HEADER, by);
    }
}

impl Answer {
    /// Its body.
    pub(super) fn into_body(self) -> Incoming {
        self.response.into_body()
    }
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        port: &'a Rc<Port>,
        chain: &'a Chain,
        terms: &'a Terms,
        parts: http::request::Parts,
        body: Outgoing,
        deadline: Instant,
    ) -> Self {
        Self {
            port,
            chain,
            terms,
            policy: None,
            hash: None,
            is_idempotent: hygiene::is_repeatable(&parts),
            parts,
            body,
            was_retried: false,
            deadline,
            after_body: None,
            attempts: 0,
            free: 0,
            tried: Vec::new(),
            sent: Rc::default(),
            trail: None,
        }
    }

    /// The same request for a second try beside the first, to be sent once its body can be sent
    /// again; none where it never can.
    pub(super) fn twin(&self) -> Option<Self> {
        let (parts, body) = (self.parts.clone(), self.body.share()?);
        let twin = Self::new(self.port, self.chain, self.terms, parts, body, self.deadline);
        let tried = self.tried.clone();
        let (policy, was_retried, after_body) = (self.policy, self.was_retried, self.after_body);
        let (attempts, trail) = (self.attempts + 1, self.trail.clone());
        Some(Self { policy, was_retried, after_body, attempts, tried, trail, ..twin })
    }

    /// Counts the time for an answer from the end of the request's body where that is a stream of
    /// gRPC, which may go on for as long as both like: `span` from there, and never longer than the
    /// caller's own deadline, of which `left` says what is left.
    fn follow_body(&mut self, is_grpc: bool, span: Duration, left: impl Fn(Duration) -> Duration) {
        if !is_grpc || !self.body.is_open_ended() {
            return;
        }
        let asked = hygiene::grpc_timeout(&self.parts.headers).map_or(NO_DEADLINE, left);
        self.deadline = Instant::now() + asked;
        self.after_body = Some(span);
    }

    /// When there must be an answer, as far as that is known by now.
    fn due(&self) -> Instant {
        let due = self.after_body.and_then(|span| Some(self.body.ended_at()? + span));
        due.map_or(self.deadline, |due| due.min(self.deadline))
    }

    /// No later than the first moment at which an answer can be due.
    fn due_from(&self) -> Instant {
        match self.after_body {
            Some(span) if self.body.ended_at().is_none() => {
                self.deadline.min(Instant::now() + span)
            }
            _ => self.due(),
        }
    }
}

impl Exchange<'_> {
    /// Makes one try, and no other.
    ///
    /// # Errors
    /// Why it gave no good answer.
    pub(super) async fn once(&mut self, picked: Picked<'_>) -> Result<Answer, Reason> {
        self.attempts += 1;
        let attempted = Box::pin(self.attempt(picked, None)).await;
        attempted.or_else(|failure| failure.answer.map(|answer| *answer).ok_or(failure.reason))
    }

    /// Tries instances until one answers.
    ///
    /// # Errors
    /// The reason of the last try.
    async fn run(&mut self) -> Result<Answer, Reason> {
        let port = self.port;
        port.budget.borrow_mut().request(port.context.clock.now());
        let mut last = Failure::of(Reason::NoEndpoint, retry::End::Unseen);
        loop {
            let may_probe = self.body.is_repeatable() && self.is_idempotent;
            let mut picked = port.pick(self.ask(may_probe));
            let broke = last.reason == Reason::UpstreamReset && !last.was_silent;
            if picked.is_err() && (broke || last.is_wanted) {
                // A connection that broke says little about the next one to the same instance.
                self.tried.clear();
                picked = port.pick(self.ask(may_probe));
            }
            let Ok(picked) = picked else { break };
            if self.attempts > 0
                && let Err(held_back) = self.may_go_on(&last).await
            {
                last.reason = held_back.unwrap_or(last.reason);
                break;
            }
            self.attempts += 1;
            self.tried.push(picked.pick.peer);
            let may_retry = self.has_tries()
                && self.covers(retry::End::TimedOut)
                && self.body.may_repeat()
                && port.balancer.borrow().has_other(&self.tried);
            let per_try = self.policy.and_then(|policy| policy.per_try_timeout);
            let per_try = may_retry.then_some(per_try.unwrap_or(self.terms.retry.per_try));
            let attempted = match self.hedged_after() {
                None => self.traced(picked, per_try).await,
                Some(after) => Box::pin(self.hedged(picked, per_try, after)).await,
            };
            match attempted {
                Ok(answer) => return Ok(answer),
                Err(failure) => last = failure,
            }
            self.free += u8::from(last.was_free());
            let is_covered = self.covers(last.end);
            let is_late = Instant::now() >= self.due();
            if !self.has_tries() || !is_covered || is_late || !self.body.is_whole() {
                break;
            }
        }
        last.answer.map(|answer| *answer).ok_or(last.reason)
    }

    fn ask(&self, may_probe: bool) -> Ask<'_> {
        Ask { tried: &self.tried, may_probe, hash: self.hash }
    }

    /// Waits for as long as another try should. A try that cost no application anything goes on at
    /// once.
    ///
    /// # Errors
    /// It may not be made: there is no time left, the answer forbids it, or there is no room in the
    /// budget, which is the reason then.
    async fn may_go_on(&self, last: &Failure) -> Result<(), Option<Reason>> {
        if last.was_free() || last.was_silent {
            self.port.pair.retried(true);
            return Ok(());
        }
        let after = match &last.answer {
            // What a proxy sheds, another instance may take at once.
            Some(answer) if answer.decided.is_none() => {
                terms::again(answer.response.status(), answer.response.headers())
            }
            _ => None,
        };
        let after = match after {
            Some(Again::Never) => return Err(None),
            Some(Again::After(span)) => Some(span),
            None => None,
        };
        let (port, retry, clock) = (self.port, &self.terms.retry, self.port.context.clock);
        let (percent, floor) = (retry.budget_percent, retry.budget_floor);
        let allowed = port.budget.borrow_mut().retry(clock.now(), percent, floor);
        port.pair.retried(allowed);
        if !allowed {
            return Err(Some(Reason::RetryBudget));
        }
        let left = self.due().saturating_duration_since(Instant::now());
        let draw = port.context.random.borrow_mut().next_u64();
        let number = self.attempts - self.free;
        let pause = retry.pause(number, after, left, draw).ok_or(None)?;
        if !pause.is_zero() && last.end != retry::End::Unseen {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Begins the trace of a try, where there is one, in the headers that it is sent with.
    fn begins(&mut self, picked: &Picked<'_>) -> Option<Try> {
        let trail = self.trail.as_ref()?;
        trail.try_begins(&mut self.parts.headers, self.attempts, &picked.instance.upstream)
    }

    /// Whether there may be one try more. Those that reached no application have a bound of their
    /// own, so that a service whose instances here are all dead is still served elsewhere.
    fn has_tries(&self) -> bool {
        let listed = self.listed().and_then(|retries| retries.most);
        let most = listed.unwrap_or(self.terms.retry.retries);
        self.attempts - self.free <= most && self.free < self.port.context.limits.connect_tries
    }

    /// What its route says of retries, which outranks what its service says.
    fn listed(&self) -> Option<&Retries> {
        self.policy.and_then(|policy| policy.retries.as_ref())
    }

    /// Whether a try that ended so may be followed by another.
    fn covers(&self, end: retry::End) -> bool {
        match self.listed().and_then(|retries| retries.on.as_ref()) {
            Some(on) => on.cover(end, self.is_idempotent, self.was_retried),
            None => self.terms.retry.covers(end, self.is_idempotent, self.was_retried),
        }
    }

    /// A place in a connection to `instance`.
    async fn place(&self, instance: &Rc<Instance>) -> Result<Place, Reason> {
        let (limits, within) = (&self.port.context.limits, self.chain.connect_timeout);
        let connect = || {
            let (port, instance) = (self.port.clone(), instance.clone());
            async move { port.line(&instance, within).await }
        };
        let (most, streams) = (limits.connections_per_endpoint, limits.streams);
        if let Some(place) = instance.lines.free(streams) {
            return Ok(place);
        }
        let pending = self.port.usage.pending.take(self.terms.limits.max_pending_requests);
        let _waiting = pending.ok_or(Reason::PendingLimit)?;
        instance.lines.place(most, streams, connect).await
    }

    /// Says in the request how long its caller still waits, and which try it is.
    fn prepare(&mut self) {
        // While a stream goes on, its caller waits for as long as it says itself.
        if self.after_body.is_none() || hygiene::grpc_timeout(&self.parts.headers).is_some() {
            let left = self.deadline.saturating_duration_since(Instant::now()).as_millis();
            let left = HeaderValue::from(u64::try_from(left).unwrap_or(u64::MAX));
            self.parts.headers.insert(hygiene::DEADLINE_HEADER, left);
        }
        if self.attempts > 1 {
            let attempt = HeaderValue::from(u16::from(self.attempts));
            self.parts.headers.insert(hygiene::ATTEMPT_HEADER, attempt);
        }
    }

    /// The request as HTTP/2 has it.
    fn request(&mut self) -> Option<Request<Sending>> {
        let mut request = Request::from_parts(self.parts.clone(), self.body.body(&self.sent));
        let host = request.headers().get(header::HOST)?;
        let authority = Authority::try_from(host.as_bytes()).ok()?;
        address(&mut request, &authority, false)?;
        Some(request)
    }

    /// Sends the request over `place`, and waits for the head of its answer.
    ///
    /// # Errors
    /// [`Broke`], and none when the time is over.
    async fn send(
        &mut self,
        place: &mut Place,
        per_try: Option<Duration>,
    ) -> Result<Response<Incoming>, Option<Broke>> {
        self.prepare();
        if let Some(mut sender) = place.sender() {
            let request = self.request().ok_or(Some(Broke::unfit()))?;
            let sending = sender.try_send_request(request);
            let sent = self.awaited(sending, per_try).await.ok_or(None)?;
            return sent.map(|response| response.map(Incoming::Http2)).map_err(|mut failed| {
                let unsent = failed.take_message();
                let was_taken = unsent.is_none();
                if let Some(unsent) = unsent {
                    self.body.restore(unsent.into_body());
                }
                Some(Broke::of_http2(&failed.into_error(), was_taken))
            });
        }
        let sender = place.channel().ok_or(Some(Broke::unfit()))?;
        let mut body = self.body.body(&self.sent);
        if body.in_chunks() {
            self.parts.headers.remove(header::CONTENT_LENGTH);
        }
        let sending = sender.try_send_request(&self.parts, body);
        let sent = self.awaited(sending, per_try).await.ok_or(None)?;
        sent.map(|response| response.map(Incoming::Http1)).map_err(|failed| {
            if let Some(unsent) = failed.body {
                self.body.restore(unsent);
            }
            Some(Broke::of_stream(&failed.error, failed.was_sent && place.was_sent(), place))
        })
    }

    /// Makes one try, with a span of its own where there is a trace.
    pub(super) async fn traced(
        &mut self,
        picked: Picked<'_>,
        per_try: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let tried = self.begins(&picked);
        let attempted = self.attempt(picked, per_try).await;
        if let Some(tried) = tried {
            let (reason, answer) = match &attempted {
                Ok(answer) => (answer.decided.unwrap_or(Reason::Ok), Some(answer)),
                Err(failure) => (failure.reason, failure.answer.as_deref()),
            };
            tried.ended(reason, answer.map(|answer| answer.response.status().as_u16()));
        }
        attempted
    }

    /// Makes one try.
    async fn attempt(
        &mut self,
        picked: Picked<'_>,
        per_try: Option<Duration>,
    ) -> Result<Answer, Failure> {
        let context = &self.port.context;
        let (began, upstream) = (context.clock.now(), picked.instance.upstream.clone());
        let mut place = match self.place(&picked.instance).await {
            Ok(place) => place,
            Err(reason) => {
                picked.failed(reason, began);
                return Err(Failure::of(reason, retry::End::Unseen));
            }
        };
        let response = match self.send(&mut place, per_try).await {
            Ok(response) => response,
            Err(None) => {
                picked.finish(Outcome::Failed);
                return Err(Failure::of(Reason::RequestTimeout, retry::End::TimedOut));
            }
            Err(Some(broke)) => return Err(in_vain(picked, &place, &broke, began)),
        };
        let now = context.clock.now();
        if let Some(gateway) = place.gateway() {
            gateway.heard(now);
        }
        let decided = hygiene::verdict(response.headers());
        let cluster = picked.instance.peer().cloned();
        let answer = Answer { response, decided, place, upstream, cluster, at: now, open: None };
        let latency = now.saturating_sub(began);
        match decided {
            // It gave up for us, a moment before we did.
            Some(Reason::DeadlineExceeded) => {
                picked.finish(Outcome::Failed);
                Err(Failure::of(Reason::RequestTimeout, retry::End::TimedOut))
            }
            Some(reason) if reason.http_status() >= 500 => {
                match reason.is_busy() {
                    true => picked.erred(latency, now, Fault::Busy),
                    false => picked.finish(Outcome::Failed),
                }
                let failure = Failure::of(reason, end_of(reason));
                Err(Failure { answer: Some(Box::new(answer)), ..failure })
            }
            _ => self.judge(picked, answer, latency, now),
        }
    }

    /// Takes an answer of the application, or sees that another instance should be asked.
    fn judge(
        &self,
        picked: Picked<'_>,
        mut answer: Answer,
        latency: Duration,
        now: Duration,
    ) -> Result<Answer, Failure> {
        let (status, headers) = (answer.response.status(), answer.response.headers());
        match terms::fault(status, headers) {
            Some(fault) => picked.erred(latency, now, fault),
            None if terms::is_told_at_its_end(status, headers) => {
                answer.open = Some(picked.began(latency, now));
            }
            None => picked.answered(latency, now),
        }
        let headers = answer.response.headers();
        self.took(latency);
        let end = match terms::grpc_status(headers) {
            Some(code) => retry::End::Grpc(code),
            None => retry::End::Status(status.as_u16()),
        };
        if !self.covers(end) {
            return Ok(answer);
        }
        let by_route = self.listed().is_some_and(|retries| retries.on.is_some());
        let is_wanted = by_route || self.terms.retry.is_listed();
        let answer = Some(Box::new(answer));
        Err(Failure { is_wanted, answer, ..Failure::of(Reason::Ok, end) })
    }

    /// Waits for an answer, no longer than `per_try` where that leaves another try its turn: with the
    /// budget used up, or more of the body to come, giving up on a slow answer would only make a
    /// failure of it.
    async fn awaited<T>(
        &self,
        sending: impl Future<Output = T>,
        per_try: Option<Duration>,
    ) -> Option<T> {
        let mut sending = std::pin::pin!(sending);
        if let Some(span) = per_try {
            let until = self.due().min(Instant::now() + span);
            if let Ok(sent) = tokio::time::timeout_at(until, &mut sending).await {
                return Some(sent);
            }
            if !self.body.is_repeatable() {
                return self.awaited_to_the_end(sending).await;
            }
            let (retry, clock) = (&self.terms.retry, self.port.context.clock);
            let (percent, floor) = (retry.budget_percent, retry.budget_floor);
            if self.port.budget.borrow_mut().has_room(clock.now(), percent, floor) {
                return None;
            }
            self.port.pair.retried(false);
        }
        self.awaited_to_the_end(sending).await
    }

    /// Waits for an answer until it is due, which the end of the request's body may have a say in.
    async fn awaited_to_the_end<T>(
        &self,
        mut sending: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        loop {
            if let Ok(sent) = tokio::time::timeout_at(self.due_from(), &mut sending).await {
                return Some(sent);
            }
            if Instant::now() >= self.due() {
                return None;
            }
        }
    }
}

/// How a try ended that a peer's proxy answered for `reason`.
fn end_of(reason: Reason) -> retry::End {
    match reason {
        Reason::RequestTimeout => retry::End::TimedOut,
        reason if reason.is_before_request() => retry::End::Unseen,
        _ => retry::End::Reset,
    }
}

/// How a connection broke before there was an answer.
struct Broke {
    reason: Reason,
    /// The application never saw the request.
    is_unseen: bool,
    /// Pings were not answered either.
    was_silent: bool,
    /// It never left, or came upon a proxy that is being replaced.
    was_untaken: bool,
}

impl Broke {
    fn new(reason: Reason, is_unseen: bool) -> Self {
        let is_early = reason.is_before_request() && reason != Reason::HandshakeFailed;
        let is_unseen = is_unseen || is_early;
        Self { reason, is_unseen, was_silent: false, was_untaken: false }
    }

    fn of_http2(error: &hyper::Error, was_taken: bool) -> Self {
        let is_unseen = !was_taken || is_unprocessed(error);
        // A proxy that is replaced ends its connections so, whatever waits to be sent in them.
        let was_untaken = !was_taken || is_leaving(error);
        let was_silent = error.is_timeout();
        Self { was_silent, was_untaken, ..Self::new(peer_reason(error), is_unseen) }
    }

    fn of_stream(error: &hawser_http1::Error, was_sent: bool, place: &Place) -> Self {
        let reason = match error {
            hawser_http1::Error::Io(error) => streams::reason(error),
            error => http1_reason(error),
        };
        let was_silent = place.was_silent();
        Self { was_silent, was_untaken: !was_sent, ..Self::new(reason, !was_sent) }
    }

    /// It has no place for the request after all.
    fn unfit() -> Self {
        Self { was_untaken: true, ..Self::new(Reason::UpstreamReset, true) }
    }
}

/// A try whose connection broke before there was an answer.
fn in_vain(picked: Picked<'_>, place: &Place, broke: &Broke, began: Duration) -> Failure {
    let reason = broke.reason;
    let outcome = match reason {
        Reason::DownstreamReset => Outcome::Unknown,
        _ if broke.was_silent => {
            let now = picked.port.context.clock.now();
            let silent = place.gateway().filter(|gateway| gateway.is_silent_since(began));
            silent.inspect(|gateway| gateway.failed(began, now));
            picked.silence_since(began)
        }
        _ if broke.was_untaken => Outcome::Unknown,
        _ => Outcome::Failed,
    };
    picked.finish(outcome);
    let end = if broke.is_unseen { retry::End::Unseen } else { retry::End::Reset };
    let (was_silent, was_untaken) = (broke.was_silent, broke.was_untaken);
    Failure { was_silent, was_untaken, ..Failure::of(reason, end) }
}

impl Port {
    /// Opens a connection to an instance's proxy that requests share.
    async fn line(&self, instance: &Instance, within: Duration) -> Result<Line, Reason> {
        let context = &self.context;
        let config = instance.reach()?.shared.clone();
        let Dialled { stream, listed, gateway } =
            Box::pin(dial(context, instance, config, within)).await?;
        match stream.get_ref().1.alpn_protocol() {
            Some(ALPN_REQUESTS) => {
                let session = Session::new(Side::Caller, Entry::Open, &context.buffers);
                let channels = Channels::new(session.clone(), context.http1.client.clone());
                tokio::task::spawn_local(Box::pin(super::streams::drive(session, stream, listed)));
                return Ok(Line::streams(channels, gateway));
            }
            Some(ALPN_H2) => {}
            _ => return Err(Reason::UpstreamProtocol),
        }
        let mut builder = http2::Builder::new(LocalExecutor);
        context.tune_http2_client(&mut builder);
        if instance.peer().is_some() {
            context.hasten_pings(&mut builder);
        }
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
        Ok(Line::through(sender, gateway))
    }
}

/// Whether the first bytes that arrive are those of HTTP/2; keeps them in `ahead`.
async fn is_http2(socket: &TcpStream, ahead: &mut BytesMut) -> std::io::Result<bool> {
    while ahead.len() < PREFACE.len() && PREFACE.starts_with(ahead) {
        socket.readable().await?;
        // On the stack: a connection that says nothing holds no buffer.
        let mut first = [0; 4 * 1024];
        match socket.try_read(&mut first) {
            Ok(0) => return Ok(false),
            Ok(count) => ahead.extend_from_slice(&first[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ahead.starts_with(PREFACE))
}

/// The reason behind a failed exchange in HTTP/1.1 with a peer's proxy.
fn http1_reason(error: &hawser_http1::Error) -> Reason {
    match error {
        hawser_http1::Error::Fault(_) => Reason::UpstreamProtocol,
        hawser_http1::Error::Message(_) => Reason::DownstreamReset,
        hawser_http1::Error::Io(error) => match tls::reason(error) {
            Reason::HandshakeFailed | Reason::HandshakeTimeout => Reason::UpstreamReset,
            reason => reason,
        },
        hawser_http1::Error::Incomplete | hawser_http1::Error::Closed => Reason::UpstreamReset,
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

/// Beyond the life of any call, and still a time that clocks can hold.
const NO_DEADLINE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// What a client of HTTP/2 says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
