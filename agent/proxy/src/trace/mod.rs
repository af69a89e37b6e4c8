//! Traces: which request belongs to which, as W3C's and Zipkin's headers carry it, and the spans
//! that a proxy adds.

mod context;
mod span;

pub(crate) use self::context::Context;
pub use self::span::{Attribute, Span, SpanKind};
