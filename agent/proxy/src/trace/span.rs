//! Spans: what a proxy did for a request, from when to when.

use std::sync::Arc;

use hawser_core::name::{InstanceId, ServiceName};

/// One stretch of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace that it is part of.
    pub trace_id: [u8; 16],
    /// Its own id.
    pub span_id: [u8; 8],
    /// The span that it is part of; none at the root of a trace.
    pub parent: Option<[u8; 8]>,
    /// What other tracing systems noted in `tracestate`, as it came.
    pub state: Option<Arc<str>>,
    /// The local service that it was done for.
    pub service: ServiceName,
    /// The local instance of it.
    pub instance: InstanceId,
    /// Which end of a call it is.
    pub kind: SpanKind,
    /// In a few words that are the same for many requests.
    pub name: Arc<str>,
    /// Nanoseconds since the Unix epoch.
    pub started_ns: u64,
    /// Nanoseconds since the Unix epoch.
    pub ended_ns: u64,
    /// What there is to know about it.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// The word for why it failed; none where it did not.
    pub error: Option<&'static str>,
}

/// Which end of a call a span is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SpanKind {
    /// A request of a local application, with all tries that were made for it.
    Internal,
    /// One try: its parent is an [`SpanKind::Internal`] span, and the callee's its child.
    Client,
    /// A request that came from another host.
    Server,
}

/// The value of an attribute.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Attribute {
    /// Words.
    Text(Arc<str>),
    /// A word of ours.
    Word(&'static str),
    /// A number.
    Number(i64),
}
