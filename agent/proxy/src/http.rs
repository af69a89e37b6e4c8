//! HTTP as it passes: what is refused, what is stripped, bodies that report their end.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hawser_core::normal::Forwarded;
use hawser_core::reason::{DecidedBy, Reason};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::bounded::{Bounded, Broke, Exceeded};
pub(crate) use crate::report::{ATTEMPT_HEADER, REQUEST_ID_HEADER};
use crate::report::{Trail, answered};
use crate::tee::Tee;
use crate::throttle::Throttle;
use crate::trailers::Trailers;

/// A word of [`Reason`]: set on answers that a proxy gave itself.
pub(crate) const REASON_HEADER: HeaderName = HeaderName::from_static("x-hawser-reason");
/// Which proxy gave the answer.
pub(crate) const DECIDED_BY_HEADER: HeaderName = HeaderName::from_static("x-hawser-decided-by");
/// How many milliseconds the caller still waits, from one proxy to the next.
pub(crate) const DEADLINE_HEADER: HeaderName = HeaderName::from_static("x-hawser-deadline-ms");
/// gRPC's own deadline.
const GRPC_TIMEOUT_HEADER: HeaderName = HeaderName::from_static("grpc-timeout");
/// Who calls, as its certificate proved.
pub(crate) const CALLER_HEADER: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// Which host calls.
const FORWARDED_FOR_HEADER: HeaderName = HeaderName::from_static("x-forwarded-for");
/// How the application there called its proxy.
const FORWARDED_PROTO_HEADER: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}

/// Removes what belongs to one hop only, what the sender nominates for removal, and what only a
/// proxy may say. Returns whether the message asks for an upgrade, and to what.
pub(crate) fn strip(headers: &mut HeaderMap, forwarded: Forwarded) -> Option<HeaderValue> {
    let mut doomed: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        let is_hop = *name == header::CONNECTION
            || *name == header::TRANSFER_ENCODING
            || *name == header::UPGRADE
            || *name == header::TE
            // Whoever reads the body here has said `100 Continue` already.
            || *name == header::EXPECT
            || *name == header::PROXY_AUTHENTICATE
            || *name == header::PROXY_AUTHORIZATION
            || *name == CALLER_HEADER
            || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
            || matches!(name.as_str(), "x-original-url" | "x-consul-token")
            || name.as_str().starts_with("x-envoy-")
            || name.as_str().starts_with("x-hawser-");
        if is_hop || (forwarded == Forwarded::Replace && is_forwarded(name)) {
            doomed.push(name.clone());
        }
    }
    if doomed.is_empty() {
        return None;
    }
    let mut asks_upgrade = false;
    for value in headers.get_all(header::CONNECTION) {
        for token in value.as_bytes().split(|octet| *octet == b',') {
            let token = token.trim_ascii();
            if token.eq_ignore_ascii_case(b"upgrade") {
                asks_upgrade = true;
            } else if let Ok(name) = HeaderName::from_bytes(token)
                && !matches!(name, header::HOST | header::CONTENT_LENGTH)
            {
                doomed.push(name);
            }
        }
    }
    let upgrade = headers.get(header::UPGRADE).filter(|_| asks_upgrade).cloned();
    let keeps_trailers =
        headers.get(header::TE).is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"));
    for name in doomed {
        headers.remove(name);
    }
    if keeps_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    upgrade.filter(is_bytes)
}

/// Whether an upgrade is to one protocol, and to none that carries further requests: those would
/// pass unseen by everything that judges requests.
fn is_bytes(to: &HeaderValue) -> bool {
    let to = to.as_bytes().to_ascii_lowercase();
    !to.contains(&b',') && ![&b"h2"[..], b"http", b"tls"].iter().any(|it| to.starts_with(it))
}

/// Whether a field says where a request came from: the sender's word only.
fn is_forwarded(name: &HeaderName) -> bool {
    *name == header::FORWARDED
        || *name == FORWARDED_FOR_HEADER
        || matches!(name.as_str(), "x-forwarded-proto" | "x-forwarded-host")
}

/// Says where a request came from, where nothing does: from which host, and that its application
/// called in the clear, as it does its own proxy.
pub(crate) fn attest_origin(headers: &mut HeaderMap, from: &HeaderValue) {
    if !headers.contains_key(FORWARDED_FOR_HEADER) {
        headers.insert(FORWARDED_FOR_HEADER, from.clone());
        headers.insert(FORWARDED_PROTO_HEADER, HeaderValue::from_static("http"));
    }
}

/// Whether a request may be sent twice without doing its work twice.
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

/// Whether a request may be sent twice: by its method, or because its sender names it.
pub(crate) fn is_repeatable(parts: &http::request::Parts) -> bool {
    is_idempotent(&parts.method) || parts.headers.contains_key("idempotency-key")
}

/// Whether a message is gRPC.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Whether an answer goes on for as long as both like.
pub(crate) fn is_stream(headers: &HeaderMap) -> bool {
    is_grpc(headers)
        || headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// How the caller is told what a proxy answers itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Manner {
    /// By fields of gRPC.
    Grpc,
    /// By a status, and a text for people.
    Text,
    /// As by a text, but for the text: it is an answer to HEAD.
    Head,
}

impl Manner {
    /// That of answers to a request.
    pub(crate) fn new(is_grpc: bool, method: &Method) -> Self {
        match is_grpc {
            true => Self::Grpc,
            false if *method == Method::HEAD => Self::Head,
            false => Self::Text,
        }
    }
}

/// The answer that a proxy gives itself, in the caller's protocol.
pub(crate) fn refusal(
    status: StatusCode,
    reason: Reason,
    decided_by: DecidedBy,
    manner: Manner,
) -> Response<Body> {
    let is_grpc = manner == Manner::Grpc;
    let text = if is_grpc { String::new() } else { format!("{reason}: {}\n", reason.doc().trim()) };
    let length = HeaderValue::from(text.len());
    let body = if manner == Manner::Head { Bytes::new() } else { Bytes::from(text) };
    let mut response = Response::new(Body::full(body));
    let headers = response.headers_mut();
    if manner == Manner::Head {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    headers.insert(REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    headers.insert(DECIDED_BY_HEADER, HeaderValue::from_static(decided_by.as_str()));
    if is_grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from(u16::from(reason.grpc_status())));
        headers.insert("grpc-message", HeaderValue::from_static(reason.as_str()));
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        if status == StatusCode::UNAUTHORIZED {
            let challenge = match reason {
                Reason::TokenInvalid => "Bearer error=\"invalid_token\"",
                _ => "Bearer",
            };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        *response.status_mut() = status;
    }
    response
}

/// Tells the caller the id that its request is known by.
pub(crate) fn named<B>(mut response: Response<B>, id: &HeaderValue) -> Response<B> {
    response.headers_mut().insert(REQUEST_ID_HEADER, id.clone());
    response
}

/// Says when to come again, in whole seconds.
pub(crate) fn come_again(mut response: Response<Body>, after: Duration) -> Response<Body> {
    let secs = after.as_millis().div_ceil(1_000).max(1);
    let secs = HeaderValue::from(u64::try_from(secs).unwrap_or(u64::MAX));
    response.headers_mut().insert(header::RETRY_AFTER, secs);
    response
}

/// How long the caller still waits, as its proxy says.
pub(crate) fn deadline(headers: &HeaderMap) -> Option<Duration> {
    headers.get(DEADLINE_HEADER)?.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// How long a gRPC caller waits, as it says itself.
pub(crate) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(GRPC_TIMEOUT_HEADER)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = match digits.len() {
        1..=8 if digits.bytes().all(|octet| octet.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    Some(match unit {
        "H" => Duration::from_secs(count * 3_600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Tells a gRPC application how long it still has, where its caller asked for a deadline.
pub(crate) fn tell_grpc(headers: &mut HeaderMap, left: Duration) {
    if grpc_timeout(headers).is_some_and(|asked| asked > left) {
        let millis = left.as_millis().min(99_999_999);
        if let Ok(value) = HeaderValue::try_from(format!("{millis}m")) {
            headers.insert(GRPC_TIMEOUT_HEADER, value);
        }
    }
}

/// The status that goes with `reason`.
pub(crate) fn status(reason: Reason) -> StatusCode {
    StatusCode::from_u16(reason.http_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}

/// Who gave an answer, and why, where a peer's proxy did and not its application.
pub(crate) fn verdict(headers: &HeaderMap) -> Option<Reason> {
    let word = headers.get(REASON_HEADER)?.to_str().ok()?;
    Some(word.parse().unwrap_or(Reason::UpstreamProtocol))
}

/// A message's body as it arrives, in either protocol.
pub(crate) enum Incoming {
    Http1(hawser_http1::Body),
    Http2(hyper::body::Incoming),
    /// Either of them.
    Bounded(Box<Bounded<Incoming>>),
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the connection of the body failed")]
    Http1(#[source] hawser_http1::Error),
    #[error("the stream of the body failed")]
    Http2(#[source] hyper::Error),
    #[error("another try goes on with the body")]
    Superseded,
    #[error("{0}")]
    Bound(Reason),
}

impl Broken {
    /// The reason that it is for a request to be answered.
    pub(crate) const fn reason(&self) -> Reason {
        match self {
            Self::Bound(reason) => *reason,
            Self::Http1(_) | Self::Http2(_) | Self::Superseded => Reason::DownstreamReset,
        }
    }
}

impl Incoming {
    /// Whether the message asks for a change of its connection's protocol.
    pub(crate) fn is_upgrade(&self) -> bool {
        matches!(self, Self::Http1(body) if body.is_upgrade())
    }

    /// What becomes of the connection, where the message asks to change its protocol.
    pub(crate) fn on_upgrade(&mut self) -> Option<hawser_http1::OnUpgrade> {
        match self {
            Self::Http1(body) => body.on_upgrade(),
            Self::Http2(_) | Self::Bounded(_) => None,
        }
    }

    /// Lets it break off after `most` bytes, or when nothing came for `idle`. Answers where it is
    /// said why.
    pub(crate) fn bound(self, most: Option<u64>, idle: Option<Duration>) -> (Self, Broke) {
        let bounded = Bounded::new(self, most, idle);
        let broke = bounded.broke();
        (Self::Bounded(Box::new(bounded)), broke)
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(Broken::Http1),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(Broken::Http2),
            Self::Bounded(body) => body.poll_frame(cx).map_err(|exceeded| match exceeded {
                Exceeded::Bound(reason) => Broken::Bound(reason),
                Exceeded::Body(broken) => broken,
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Bounded(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) => body.size_hint(),
            Self::Bounded(body) => body.size_hint(),
        }
    }
}

/// A request's body on its way: kept where it is small, so that it can be sent again.
pub(crate) enum Outgoing {
    /// Nothing.
    Empty,
    /// All of it, in memory, with what follows it.
    Kept(Bytes, Option<Box<HeaderMap>>, Rc<Trailers>),
    /// Of unknown length, kept while it is sent.
    Teed(Rc<RefCell<Tee<Incoming>>>, Rc<Trailers>),
    /// Still arriving, with what may follow it; none once it was handed to a connection.
    Arriving(Option<Incoming>, Rc<Trailers>),
}

impl Outgoing {
    /// Keeps a body that says it is at most `most` bytes long, for which it may take `within`, and as
    /// much of one that does not say how long it is; `trailers` says what may follow.
    ///
    /// # Errors
    /// When the sender breaks off before its end, or takes too long for one that is kept.
    pub(crate) async fn prepare(
        incoming: Incoming,
        most: u64,
        trailers: Rc<Trailers>,
        within: impl FnOnce() -> Option<Duration>,
    ) -> Result<Self, Broken> {
        if incoming.is_end_stream() {
            return Ok(Self::Empty);
        }
        match incoming.size_hint().exact() {
            Some(length) if length <= most => {
                let collected = match within() {
                    None => incoming.collect().await?,
                    Some(within) => tokio::time::timeout(within, incoming.collect())
                        .await
                        .map_err(|_| Broken::Bound(Reason::RequestStalled))??,
                };
                let behind = collected.trailers().cloned().map(Box::new);
                Ok(Self::Kept(collected.to_bytes(), behind, trailers))
            }
            Some(_) => Ok(Self::Arriving(Some(incoming), trailers)),
            None => Ok(Self::Teed(Rc::new(RefCell::new(Tee::new(incoming, most))), trailers)),
        }
    }

    /// The same once more; none where it is not in memory.
    pub(crate) fn copy(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Kept(bytes, behind, trailers) => {
                Some(Self::Kept(bytes.clone(), behind.clone(), trailers.clone()))
            }
            Self::Teed(..) | Self::Arriving(..) => None,
        }
    }

    /// The same for another try, to be sent once [`Outgoing::is_repeatable`]; none where it never is.
    pub(crate) fn share(&self) -> Option<Self> {
        match self {
            Self::Teed(tee, trailers) => Some(Self::Teed(tee.clone(), trailers.clone())),
            other => other.copy(),
        }
    }

    /// Whether it can be sent, again or for the first time.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Empty | Self::Kept(..) => true,
            Self::Teed(tee, _) => tee.borrow().is_kept(),
            Self::Arriving(incoming, _) => incoming.is_some(),
        }
    }

    /// Whether all of it is in memory, so that it can be sent more than once.
    pub(crate) fn is_repeatable(&self) -> bool {
        match self {
            Self::Empty | Self::Kept(..) => true,
            Self::Teed(tee, _) => tee.borrow().is_kept() && tee.borrow().ended_at().is_some(),
            Self::Arriving(..) => false,
        }
    }

    /// Whether it may be [`Outgoing::is_repeatable`] by the time that it has been sent.
    pub(crate) fn may_repeat(&self) -> bool {
        self.is_whole() && !matches!(self, Self::Arriving(..))
    }

    /// Whether nobody knows yet how long it is.
    pub(crate) const fn is_open_ended(&self) -> bool {
        matches!(self, Self::Teed(..))
    }

    /// When the last of an open-ended one came.
    pub(crate) fn ended_at(&self) -> Option<Instant> {
        match self {
            Self::Teed(tee, _) => tee.borrow().ended_at(),
            Self::Empty | Self::Kept(..) | Self::Arriving(..) => None,
        }
    }

    /// The body for one try.
    pub(crate) fn body(&mut self, sent: &Rc<Passed>) -> Sending {
        let (kind, trailers) = match self {
            Self::Empty => (Kind::Full(None), None),
            Self::Kept(bytes, None, _) => (Kind::Full(Some(bytes.clone())), None),
            Self::Kept(bytes, Some(behind), trailers) => {
                let (bytes, behind) = (Some(bytes.clone()), Some(behind.clone()));
                (Kind::Trailed(bytes, behind, true), Some(trailers.clone()))
            }
            Self::Teed(tee, trailers) => (Kind::of(tee), Some(trailers.clone())),
            Self::Arriving(incoming, trailers) => {
                let kind = incoming.take().map_or(Kind::Full(None), Kind::Stream);
                (kind, Some(trailers.clone()))
            }
        };
        Sending { kind, trailers, sent: sent.clone() }
    }

    /// Takes back the body of a try whose connection never took it.
    pub(crate) fn restore(&mut self, unsent: Sending) {
        if let (Self::Arriving(place, _), Kind::Stream(incoming)) = (self, unsent.kind) {
            *place = Some(incoming);
        }
    }
}

/// A request's body in one try.
pub(crate) struct Sending {
    kind: Kind,
    /// What may follow it; none where nothing can.
    trailers: Option<Rc<Trailers>>,
    sent: Rc<Passed>,
}

impl Sending {
    /// Keeps its length to itself where trailers follow, which HTTP/1.1 has behind chunks only. Says
    /// whether it does.
    pub(crate) const fn in_chunks(&mut self) -> bool {
        match &mut self.kind {
            Kind::Trailed(_, Some(_), is_told) => {
                *is_told = false;
                true
            }
            _ => false,
        }
    }
}

/// What passed of a request's body.
#[derive(Default)]
pub(crate) struct Passed {
    pub(crate) bytes: Cell<u64>,
    /// Whether it broke a rule of its sender's protocol.
    is_faulty: Cell<bool>,
}

impl Passed {
    /// Why a request could not be sent on: for `reason`, unless it broke off because its body
    /// breaks a rule.
    pub(crate) fn why(&self, reason: Reason) -> Reason {
        if self.is_faulty.get() { Reason::BadRequest } else { reason }
    }
}

enum Kind {
    Full(Option<Bytes>),
    /// All of it and what follows it, and whether its length is told beforehand.
    Trailed(Option<Bytes>, Option<Box<HeaderMap>>, bool),
    /// What came before this try, and the number of its reader.
    Teed(Rc<RefCell<Tee<Incoming>>>, Option<Bytes>, u32),
    Stream(Incoming),
}

impl Kind {
    /// The next reading of what is teed.
    fn of(tee: &Rc<RefCell<Tee<Incoming>>>) -> Self {
        let mut reading = tee.borrow_mut();
        if let Some((bytes, behind)) = reading.whole() {
            let bytes = (!bytes.is_empty()).then_some(bytes);
            return Self::Trailed(bytes, behind.map(Box::new), false);
        }
        let (ahead, reader) = reading.begin();
        Self::Teed(tee.clone(), ahead, reader)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Trailed(bytes, behind, _) => bytes.is_none() && behind.is_none(),
            Self::Teed(tee, ahead, reader) => {
                let tee = tee.borrow();
                ahead.is_none() && tee.is_reader(*reader) && tee.is_end_stream()
            }
            Self::Stream(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let exact = |bytes: &Option<Bytes>| {
            SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
        };
        match self {
            Self::Full(bytes) | Self::Trailed(bytes, _, true) => exact(bytes),
            Self::Trailed(_, _, false) | Self::Teed(..) => SizeHint::default(),
            Self::Stream(incoming) => incoming.size_hint(),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        Poll::Ready(match self {
            Self::Full(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Self::Trailed(bytes, behind, _) => match bytes.take() {
                Some(bytes) => Some(Ok(Frame::data(bytes))),
                None => behind.take().map(|behind| Ok(Frame::trailers(*behind))),
            },
            Self::Teed(tee, ahead, reader) => {
                if let Some(ahead) = ahead.take() {
                    return Poll::Ready(Some(Ok(Frame::data(ahead))));
                }
                // Once its answer is passed on there is no other try.
                let is_last = Rc::strong_count(tee) == 1;
                let mut tee = tee.borrow_mut();
                if is_last {
                    tee.forget();
                }
                if !tee.is_reader(*reader) {
                    return Poll::Ready(Some(Err(Broken::Superseded)));
                }
                ready!(tee.poll_frame(cx))
            }
            Self::Stream(incoming) => ready!(Pin::new(incoming).poll_frame(cx)),
        })
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        let frame = ready!(this.kind.poll_frame(cx));
        if let Some(Err(Broken::Http1(error))) = &frame {
            this.sent.is_faulty.set(error.fault().is_some());
        }
        Poll::Ready(frame.map(|frame| {
            frame.map(|mut frame| {
                if let Some(data) = frame.data_ref() {
                    this.sent.bytes.set(this.sent.bytes.get() + data.len() as u64);
                } else if let Some(trailers) = frame.trailers_mut() {
                    // Some applications take them for fields of the head.
                    strip(trailers, Forwarded::Replace);
                    if let Some(rules) = &this.trailers {
                        rules.clean(trailers);
                    }
                }
                frame
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.kind.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.kind.size_hint()
    }
}

/// How an answer's body ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// With its last byte.
    Complete,
    /// The upstream broke off.
    Upstream,
    /// The downstream went away.
    Downstream,
    /// It took too long.
    Timeout,
    /// What it answers is no longer allowed.
    Cut,
}

/// The status that is recorded of a request whose sender went away before it had an answer; nobody
/// is sent it.
pub(crate) const GONE: u16 = 499;

/// Called once with how a body ended and how many bytes it had.
pub(crate) type OnEnd = Box<dyn FnOnce(End, u64)>;

/// An answer's body.
pub(crate) struct Body {
    kind: Kind,
    bytes: u64,
    on_end: Option<OnEnd>,
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Told of trailers.
    trail: Option<Rc<Trail>>,
    /// Longest silence.
    idle: Option<Duration>,
    silence: Option<Pin<Box<Sleep>>>,
    /// How fast it may pass; none at any rate.
    throttle: Option<Box<Throttle>>,
    /// Ready when what it answers is no longer allowed.
    cut: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the upstream broke off")]
    Upstream(#[source] Broken),
    #[error("the answer took longer than the request's timeout")]
    Timeout,
    #[error("the request is no longer allowed")]
    Cut,
}

impl Body {
    /// A body that is here already.
    pub(crate) fn full(bytes: Bytes) -> Self {
        let kind = Kind::Full((!bytes.is_empty()).then_some(bytes));
        Self {
            kind,
            bytes: 0,
            on_end: None,
            deadline: None,
            timer: None,
            idle: None,
            silence: None,
            throttle: None,
            trail: None,
            cut: None,
        }
    }

    /// A body that arrives, until `deadline` at the latest.
    pub(crate) fn arriving(incoming: Incoming, deadline: Option<Instant>, on_end: OnEnd) -> Self {
        let is_over = incoming.is_end_stream();
        let mut body = Self {
            kind: Kind::Stream(incoming),
            bytes: 0,
            on_end: Some(on_end),
            deadline,
            timer: None,
            trail: None,
            idle: None,
            silence: None,
            throttle: None,
            cut: None,
        };
        if is_over {
            body.end(End::Complete);
        }
        body
    }

    /// Tells `trail` of the trailers, where there is one.
    pub(crate) fn noting(mut self, trail: Option<Rc<Trail>>) -> Self {
        self.trail = trail;
        self
    }

    /// The same, broken off when nothing came for `idle`.
    pub(crate) fn silent_for(mut self, idle: Option<Duration>) -> Self {
        self.idle = idle;
        self
    }

    /// The same, at no more bytes in a second.
    pub(crate) fn at_rate(mut self, per_second: Option<u64>) -> Self {
        self.throttle = per_second.map(|per_second| Box::new(Throttle::new(per_second)));
        self
    }

    /// The same, broken off when `cut` is cancelled.
    pub(crate) fn until(mut self, cut: Option<CancellationToken>) -> Self {
        self.cut = cut.map(|cut| Box::pin(cut.cancelled_owned()));
        self
    }

    /// Ready when it took too long, or was silent for too long. Most bodies never wait: timers are
    /// made for those that do.
    fn poll_timers(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(idle) = self.idle {
            let sleep = || Box::pin(tokio::time::sleep(idle));
            if self.silence.get_or_insert_with(sleep).as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
        }
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = || Box::pin(tokio::time::sleep_until(deadline));
        self.timer.get_or_insert_with(sleep).as_mut().poll(cx)
    }

    fn end(&mut self, end: End) {
        if let Some(on_end) = self.on_end.take() {
            on_end(end, self.bytes);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let incoming = match &mut this.kind {
            Kind::Stream(incoming) => incoming,
            here => return here.poll_frame(cx).map_err(BodyError::Upstream),
        };
        if let Some(cut) = &mut this.cut
            && cut.as_mut().poll(cx).is_ready()
        {
            this.end(End::Cut);
            return Poll::Ready(Some(Err(BodyError::Cut)));
        }
        let polled = match &mut this.throttle {
            None => Pin::new(&mut *incoming).poll_frame(cx),
            Some(throttle) => throttle.poll_frame(cx, incoming),
        };
        match polled {
            Poll::Ready(Some(Ok(mut frame))) => {
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                if let Some(trailers) = frame.trailers_mut() {
                    strip(trailers, Forwarded::Replace);
                    answered(this.trail.as_ref(), trailers);
                }
                this.silence = None;
                let holds = this.throttle.as_ref().is_some_and(|throttle| throttle.holds());
                if !holds && incoming.is_end_stream() {
                    this.end(End::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.end(End::Complete);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                this.end(End::Upstream);
                Poll::Ready(Some(Err(BodyError::Upstream(error))))
            }
            Poll::Pending => {
                ready!(this.poll_timers(cx));
                this.end(End::Timeout);
                Poll::Ready(Some(Err(BodyError::Timeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let holds = self.throttle.as_ref().is_some_and(|throttle| throttle.holds());
        !holds && self.kind.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.kind.size_hint()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.end(End::Downstream);
    }
}

/// Makes an answer of a hop fit for the next: its version, and no field that was for that hop.
pub(crate) fn pass_on<B>(response: &mut Response<B>) {
    *response.version_mut() = Version::HTTP_11;
    strip(response.headers_mut(), Forwarded::Replace);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn what_is_for_one_hop_or_for_proxies_only_is_stripped() {
        type Fields = &'static [(&'static str, &'static str)];
        let cases: &[(Fields, &[&str], Option<&str>, &str)] = &[
            (&[("accept", "x")], &["accept"], None, "the rest passes"),
            (&[("connection", "close, x-a"), ("x-a", "1")], &[], None, "nominated fields go too"),
            (&[("connection", "host"), ("host", "a")], &["host"], None, "but never the host"),
            (&[("x-hawser-reason", "ok"), ("x-forwarded-client-cert", "me")], &[], None, "forged"),
            (&[("x-envoy-original-path", "/a"), ("x-original-url", "/b")], &[], None, "forged"),
            (&[("x-forwarded-for", "::1"), ("forwarded", "for=::1")], &[], None, "hearsay"),
            (&[("x-forwarded-proto", "https"), ("x-forwarded-host", "a")], &[], None, "hearsay"),
            (&[("te", "trailers"), ("keep-alive", "5")], &["te"], None, "trailers may be wanted"),
            (&[("te", "gzip")], &[], None, "other codings may not"),
            (
                &[("connection", "Upgrade"), ("upgrade", "websocket")],
                &[],
                Some("websocket"),
                "an upgrade is told of",
            ),
            (&[("upgrade", "websocket")], &[], None, "not without the connection's word"),
            (&[("connection", "upgrade"), ("upgrade", "h2c")], &[], None, "never to h2c"),
        ];
        for (given, left, upgrade, why) in cases {
            let mut headers = headers(given);
            let found = strip(&mut headers, Forwarded::Replace);
            let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            assert_eq!(names, *left, "{why}");
            assert_eq!(found.as_ref().map(|to| to.to_str().expect("ASCII")), *upgrade, "{why}");
        }
    }

    #[test]
    fn a_grpc_deadline_is_read_and_cut_short() {
        for (text, expected) in [
            ("2S", Some(Duration::from_secs(2))),
            ("1500m", Some(Duration::from_millis(1_500))),
            ("3M", Some(Duration::from_secs(180))),
            ("", None),
            ("5", None),
            ("S", None),
            ("+1S", None),
            ("123456789m", None),
            ("1s", None),
        ] {
            let mut headers = headers(&[("grpc-timeout", text)]);
            assert_eq!(grpc_timeout(&headers), expected, "{text:?}");
            tell_grpc(&mut headers, Duration::from_secs(1));
            let told = if expected.is_some() { "1000m" } else { text };
            assert_eq!(headers["grpc-timeout"], told, "{text:?}");
        }
    }

    #[test]
    fn a_refusal_is_told_in_the_callers_protocol() {
        let denied = Reason::IntentionDenied;
        let told = |manner| refusal(status(denied), denied, DecidedBy::ServerProxy, manner);
        let plain = told(Manner::new(false, &Method::GET));
        assert_eq!(plain.status(), StatusCode::FORBIDDEN);
        assert_eq!(plain.headers()[REASON_HEADER], "intention_denied");
        let text = plain.body().size_hint().exact().expect("it is here already");
        let head = told(Manner::new(false, &Method::HEAD));
        assert_eq!(head.status(), StatusCode::FORBIDDEN);
        assert_eq!(head.headers()[header::CONTENT_LENGTH], text.to_string());
        assert!(head.body().is_end_stream(), "a head alone");
        let grpc = told(Manner::new(true, &Method::POST));
        assert_eq!(grpc.status(), StatusCode::OK);
        assert_eq!(grpc.headers()["grpc-status"], "7");
    }
}
