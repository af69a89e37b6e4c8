//! The trail of one request: what is noted on its way, beside how it ended.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::name::{InstanceId, ServiceName};
use hawser_core::permission::By;
use hawser_core::reason::Reason;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request};
use rand::RngCore as _;
use rand::rngs::SmallRng;

use super::Upstream;
use super::log::Queue;
use crate::trace::{Attribute, Context, Span, SpanKind};

/// Which try this is, where it is not the first.
pub(crate) const ATTEMPT_HEADER: HeaderName = HeaderName::from_static("x-hawser-attempt");
/// Ties what is logged about one request together.
pub(crate) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// What a worker reports by until its settings change, and the spans that it has gathered.
pub(crate) struct Live {
    pub(super) log: RefCell<Option<Queue>>,
    pub(super) log_ppm: Cell<u32>,
    /// Which share of new traces is sampled; none while there are no traces.
    pub(super) trace_ppm: Cell<Option<u32>>,
    pub(super) spans: RefCell<Vec<Span>>,
    pub(super) spans_dropped: Cell<u64>,
    pub(super) random: RefCell<SmallRng>,
}

impl Live {
    pub(super) fn push(&self, span: Span) {
        let mut spans = self.spans.borrow_mut();
        if spans.len() < SPANS_GATHERED_MAX {
            spans.push(span);
        } else {
            self.spans_dropped.set(self.spans_dropped.get() + 1);
        }
    }

    fn draw(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }
}

/// The local end of a request: whose proxy notes it.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) service: &'a ServiceName,
    pub(crate) instance: &'a InstanceId,
}

/// What is noted of one request on its way. There is none where nobody would look at it.
pub(crate) struct Trail {
    pub(super) request_id: HeaderValue,
    pub(super) method: Method,
    path: Option<PathAndQuery>,
    pub(super) is_grpc: bool,
    pub(super) grpc_status: Cell<Option<u8>>,
    /// What decided about it by itself, where an intention does.
    pub(super) permission: Cell<Option<By>>,
    /// Which try of the caller's this is.
    pub(super) attempt: u8,
    pub(super) trace: Option<Traced>,
    live: Rc<Live>,
}

/// Its place in a trace.
pub(super) struct Traced {
    pub(super) context: Context,
    /// Whether spans of it are exported.
    pub(super) is_sampled: bool,
    /// Whether the headers of what goes on must say something else than those that came.
    is_news: bool,
    pub(super) span: u64,
    pub(super) state: Option<Arc<str>>,
    pub(super) started_ns: u64,
    pub(super) owner: Option<(ServiceName, InstanceId)>,
}

impl Trail {
    /// Begins the trail of `request`, where the access log, traces or gRPC ask for one.
    pub(super) fn begin<B>(
        live: &Rc<Live>,
        owner: Owner<'_>,
        request: &Request<B>,
        request_id: &HeaderValue,
        is_grpc: bool,
    ) -> Option<Rc<Self>> {
        let (has_log, trace_ppm) = (live.log.borrow().is_some(), live.trace_ppm.get());
        if !has_log && trace_ppm.is_none() && !is_grpc {
            return None;
        }
        let headers = request.headers();
        let trace = match trace_ppm {
            None if !has_log => None,
            None => Context::read(headers).map(Traced::passing),
            Some(share_ppm) => Some(Traced::begin(live, owner, headers, share_ppm)),
        };
        let attempt = headers.get(ATTEMPT_HEADER).and_then(|value| value.to_str().ok());
        Some(Rc::new(Self {
            request_id: request_id.clone(),
            method: request.method().clone(),
            path: request.uri().path_and_query().cloned(),
            is_grpc,
            grpc_status: Cell::new(None),
            permission: Cell::new(None),
            attempt: attempt.and_then(|text| text.parse().ok()).unwrap_or(1),
            trace,
            live: live.clone(),
        }))
    }

    /// The path, without what may hold credentials, and no longer than a line has room for.
    pub(super) fn path(&self) -> Option<&str> {
        // What follows a `;` may be a session's id.
        let path = self.path.as_ref()?.path().split(';').next()?;
        let most = (0..=PATH_BYTES_MAX.min(path.len())).rev();
        let end = most.into_iter().find(|end| path.is_char_boundary(*end))?;
        Some(&path[..end])
    }

    /// The method, no longer than a line has room for.
    pub(super) fn method(&self) -> &str {
        let method = self.method.as_str();
        &method[..METHOD_BYTES_MAX.min(method.len())]
    }

    /// Says in the headers of what goes on that it was sent from this hop.
    fn forward(&self, headers: &mut HeaderMap) {
        if let Some(trace) = &self.trace
            && trace.is_news
        {
            trace.context.write(headers, trace.span, trace.is_sampled);
        }
    }

    /// Notes what the answer's head, or its trailers, say of a gRPC call.
    fn answered(&self, headers: &HeaderMap) {
        if self.is_grpc
            && let Some(status) = headers.get("grpc-status")
            && let Some(status) = status.to_str().ok().and_then(|text| text.parse::<u8>().ok())
        {
            // It becomes a label: what gRPC does not know is UNKNOWN.
            let status = if status <= GRPC_STATUS_MAX { status } else { GRPC_UNKNOWN };
            self.grpc_status.set(Some(status));
        }
    }

    /// The gRPC status that the answer came to so far.
    pub(crate) fn grpc_status(&self) -> Option<u32> {
        self.grpc_status.get().map(u32::from)
    }

    /// Begins a try, and says in the headers that go out that it was sent from there.
    pub(crate) fn try_begins(
        self: &Rc<Self>,
        headers: &mut HeaderMap,
        attempt: u8,
        upstream: &Rc<Upstream>,
    ) -> Option<Try> {
        let trace = self.trace.as_ref()?;
        if !trace.is_sampled {
            self.forward(headers);
            return None;
        }
        let span = self.live.draw().max(1);
        trace.context.below(trace.span).write(headers, span, true);
        if trace.context.parent.is_none() {
            // It belongs to a trace that this one does not continue.
            headers.remove("tracestate");
        }
        Some(Try {
            trail: self.clone(),
            span,
            attempt,
            started_ns: crate::clock::wall_ns(),
            upstream: upstream.clone(),
            ended: None,
        })
    }

    /// A span of this trace, around `owner`'s part of it.
    pub(super) fn span(&self, kind: SpanKind, span: u64, parent: Option<u64>) -> Option<Span> {
        let trace = self.trace.as_ref().filter(|trace| trace.is_sampled)?;
        let (service, instance) = trace.owner.clone()?;
        Some(Span {
            trace_id: trace.context.trace_id.to_be_bytes(),
            span_id: span.to_be_bytes(),
            parent: parent.map(u64::to_be_bytes),
            state: trace.state.clone(),
            service,
            instance,
            kind,
            name: self.method().into(),
            started_ns: trace.started_ns,
            ended_ns: trace.started_ns,
            attributes: Vec::new(),
            error: None,
        })
    }

    pub(super) fn live(&self) -> &Live {
        &self.live
    }
}

impl Traced {
    /// A context that is only looked at.
    fn passing(context: Context) -> Self {
        Self {
            context,
            is_sampled: false,
            is_news: false,
            span: 0,
            state: None,
            started_ns: 0,
            owner: None,
        }
    }

    /// Goes on with the trace that the headers name, or begins one. Whoever began it decided
    /// whether it is sampled; where nobody did, the share decides, the same on every host.
    fn begin(live: &Live, owner: Owner<'_>, headers: &HeaderMap, share_ppm: u32) -> Self {
        let context = Context::read(headers).unwrap_or_else(|| {
            Context::root(u128::from(live.draw()) << 64 | u128::from(live.draw()))
        });
        let is_sampled = context.sampled.unwrap_or_else(|| context.is_within(share_ppm));
        if !is_sampled {
            let is_news = context.sampled.is_none();
            let span = if is_news { live.draw().max(1) } else { 0 };
            return Self { is_news, span, ..Self::passing(context) };
        }
        Self {
            state: context.state(headers),
            context,
            is_sampled,
            is_news: true,
            span: live.draw().max(1),
            started_ns: crate::clock::wall_ns(),
            owner: Some((owner.service.clone(), owner.instance.clone())),
        }
    }
}

/// Says in the headers of what goes on that it was sent from this hop, where there is a trail.
pub(crate) fn forward(trail: Option<&Rc<Trail>>, headers: &mut HeaderMap) {
    if let Some(trail) = trail {
        trail.forward(headers);
    }
}

/// Notes what an answer's head, or its trailers, say of a gRPC call, where there is a trail.
pub(crate) fn answered(trail: Option<&Rc<Trail>>, headers: &HeaderMap) {
    if let Some(trail) = trail {
        trail.answered(headers);
    }
}

/// Notes what decided whether the request may, where an intention decides about each.
pub(crate) fn decided(trail: Option<&Rc<Trail>>, by: Option<By>) {
    if let Some(trail) = trail {
        trail.permission.set(by);
    }
}

/// One try of a sampled request; exported when it is dropped.
pub(crate) struct Try {
    trail: Rc<Trail>,
    span: u64,
    attempt: u8,
    started_ns: u64,
    upstream: Rc<Upstream>,
    ended: Option<(Reason, Option<u16>)>,
}

impl Try {
    /// It came to an answer's head, or to nothing. A try that is dropped without was given up.
    pub(crate) fn ended(mut self, reason: Reason, status: Option<u16>) {
        self.ended = Some((reason, status));
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        let trail = &self.trail;
        let parent = trail.trace.as_ref().map(|trace| trace.span);
        let Some(span) = trail.span(SpanKind::Client, self.span, parent) else { return };
        let (reason, status) = self.ended.unwrap_or((Reason::DownstreamReset, None));
        let mut attributes = vec![
            ("http.request.method", Attribute::Text(span.name.clone())),
            ("hawser.attempt", Attribute::Number(self.attempt.into())),
            ("hawser.reason", Attribute::Word(reason.as_str())),
        ];
        if self.attempt > 1 {
            let resent = Attribute::Number(i64::from(self.attempt) - 1);
            attributes.push(("http.request.resend_count", resent));
        }
        attributes.extend(status.map(status_attribute));
        self.upstream.describe(&mut attributes);
        let ended_ns = crate::clock::wall_ns().max(self.started_ns);
        let error = (!reason.is_ok()).then_some(reason.as_str());
        let started_ns = self.started_ns;
        trail.live.push(Span { started_ns, ended_ns, attributes, error, ..span });
    }
}

/// Adds nanoseconds that passed to a moment.
pub(super) fn after(started_ns: u64, span: Duration) -> u64 {
    started_ns.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX))
}

pub(super) fn status_attribute(status: u16) -> (&'static str, Attribute) {
    ("http.response.status_code", Attribute::Number(status.into()))
}

/// The id that a request is known by: its own, where that is one, or a new one.
///
/// It goes into logs, headers and people's searches, so it has a bounded length and no character
/// that means anything there.
pub(super) fn request_id(headers: &mut HeaderMap, live: &Live) -> HeaderValue {
    let mut all = headers.get_all(REQUEST_ID_HEADER).iter();
    if let (Some(id), None) = (all.next(), all.next())
        && is_sane(id.as_bytes())
    {
        return id.clone();
    }
    let id = format!("{:016x}{:016x}", live.draw(), live.draw());
    let id = HeaderValue::try_from(id).unwrap_or(HeaderValue::from_static("none"));
    headers.insert(REQUEST_ID_HEADER, id.clone());
    id
}

fn is_sane(id: &[u8]) -> bool {
    let allowed = |octet: &u8| octet.is_ascii_alphanumeric() || b"-_.:+/=@~".contains(octet);
    (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(allowed)
}

/// Whether a share of all requests has this one, by its id: both ends log the same requests.
pub(super) fn is_within(id: &[u8], share_ppm: u32) -> bool {
    // FNV-1a, and its high bits, which its last multiplication has mixed.
    let hash = id.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash >> 32) * 1_000_000 < u64::from(share_ppm) << 32
}

/// Spans of one worker between two turns of it, a tenth of a second apart.
const SPANS_GATHERED_MAX: usize = 1_024;
const REQUEST_ID_BYTES_MAX: usize = 128;
const PATH_BYTES_MAX: usize = 512;
const METHOD_BYTES_MAX: usize = 32;

const GRPC_STATUS_MAX: u8 = 16;
const GRPC_UNKNOWN: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_would_not_be_safe_to_show_is_none() {
        let long = "a".repeat(REQUEST_ID_BYTES_MAX + 1);
        let cases = [
            ("a", true),
            ("0af7651916cd43dd8448eb211c80319c", true),
            ("11111111-2222-3333-4444-555555555555", true),
            ("Root=1-67891233-abcdef012345678912345678", true),
            (&long[1..], true),
            (&long, false),
            ("", false),
            ("a b", false),
            ("a\"b", false),
            ("a,b", false),
            ("<script>", false),
            ("a\u{e9}", false),
        ];
        for (id, expected) in cases {
            assert_eq!(is_sane(id.as_bytes()), expected, "{id:?}");
        }
    }

    #[test]
    fn a_share_of_requests_is_about_that_share_and_its_ends_are_exact() {
        let within =
            |ppm| (0..10_000).filter(move |n| is_within(format!("{n:x}-id").as_bytes(), ppm));
        assert_eq!(within(0).count(), 0);
        assert_eq!(within(1_000_000).count(), 10_000);
        let tenth = within(100_000).count();
        assert!((700..1_300).contains(&tenth), "{tenth}");
    }
}
