//! Spans as OTLP has them: the few messages of its protocol that a proxy needs.
//!
//! Source: `opentelemetry/proto/trace/v1/trace.proto`, 1.x. Written out by hand, because the crate
//! that has them brings an SDK along; a test reads what is written here by that crate.

use std::collections::BTreeMap;

use hawser_proxy::{Attribute, Span as Done, SpanKind};

/// What the agent says of itself with every span.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// The host's name in the catalog.
    pub(crate) node: String,
    /// The datacenter of its cluster.
    pub(crate) datacenter: String,
    /// Where the host stands.
    pub(crate) region: Option<String>,
    /// Where in the region.
    pub(crate) zone: Option<String>,
    /// The release.
    pub(crate) version: &'static str,
}

/// `ExportTraceServiceRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 3")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

/// `ExportTraceServiceResponse`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Exported {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<Partial>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Partial {
    #[prost(int64, tag = "1")]
    rejected_spans: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

impl Exported {
    /// How many spans the collector did not take though it took the request.
    pub(super) fn rejected(&self) -> u64 {
        let partial = self.partial_success.as_ref();
        partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0))
    }
}

impl Export {
    /// `spans`, each under the service and instance that it was done for.
    pub(super) fn of<'a>(origin: &Origin, spans: impl Iterator<Item = &'a Done>) -> Self {
        let mut by_owner = BTreeMap::<_, Vec<Span>>::new();
        for span in spans {
            by_owner.entry((&span.service, &span.instance)).or_default().push(Span::from(span));
        }
        let resource_spans = by_owner.into_iter().map(|((service, instance), spans)| {
            let scope = Scope { name: "hawser".to_owned(), version: origin.version.to_owned() };
            ResourceSpans {
                resource: Some(resource(origin, service.as_str(), instance.as_str())),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
            }
        });
        Self { resource_spans: resource_spans.collect() }
    }
}

fn resource(origin: &Origin, service: &str, instance: &str) -> Resource {
    let said = [
        ("service.name", Some(service)),
        ("service.instance.id", Some(instance)),
        ("host.name", Some(origin.node.as_str())),
        ("hawser.datacenter", Some(origin.datacenter.as_str())),
        ("cloud.region", origin.region.as_deref()),
        ("cloud.availability_zone", origin.zone.as_deref()),
    ];
    let attributes = said.into_iter().filter_map(|(key, text)| Some(KeyValue::text(key, text?)));
    Resource { attributes: attributes.collect() }
}

impl From<&Done> for Span {
    fn from(span: &Done) -> Self {
        let status = span.error.map(|why| Status { message: why.to_owned(), code: STATUS_ERROR });
        Self {
            trace_id: span.trace_id.to_vec(),
            span_id: span.span_id.to_vec(),
            trace_state: span.state.as_deref().unwrap_or_default().to_owned(),
            parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
            name: span.name.to_string(),
            kind: match span.kind {
                SpanKind::Internal => 1,
                SpanKind::Server => 2,
                SpanKind::Client => 3,
            },
            start_time_unix_nano: span.started_ns,
            end_time_unix_nano: span.ended_ns,
            attributes: span.attributes.iter().map(KeyValue::from).collect(),
            status,
            flags: FLAG_SAMPLED,
        }
    }
}

impl KeyValue {
    fn text(key: &str, text: &str) -> Self {
        let value = Some(AnyValue { value: Some(Any::Text(text.to_owned())) });
        Self { key: key.to_owned(), value }
    }
}

impl From<&(&'static str, Attribute)> for KeyValue {
    fn from((key, value): &(&'static str, Attribute)) -> Self {
        let value = match value {
            Attribute::Text(text) => return Self::text(key, text),
            Attribute::Word(word) => return Self::text(key, word),
            Attribute::Number(number) => Any::Number(*number),
        };
        Self { key: (*key).to_owned(), value: Some(AnyValue { value: Some(value) }) }
    }
}

const STATUS_ERROR: i32 = 2;
const FLAG_SAMPLED: u32 = 1;

#[cfg(test)]
pub(super) mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    };
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use prost::Message as _;

    use super::*;

    pub(in crate::otlp) fn origin() -> Origin {
        Origin {
            node: "host-1".to_owned(),
            datacenter: "dc1".to_owned(),
            region: Some("eu-west-1".to_owned()),
            zone: None,
            version: "0.1.0",
        }
    }

    pub(in crate::otlp) fn span(service: &str) -> Done {
        Done {
            trace_id: [7; 16],
            span_id: [1, 2, 3, 4, 5, 6, 7, 8],
            parent: Some([9; 8]),
            state: Some("a=1".into()),
            service: service.parse().expect("a name"),
            instance: "i-1".parse().expect("an id"),
            kind: SpanKind::Client,
            name: "GET".into(),
            started_ns: 10,
            ended_ns: 30,
            attributes: vec![
                ("http.response.status_code", Attribute::Number(503)),
                ("hawser.reason", Attribute::Word("draining")),
                ("url.path", Attribute::Text("/x".into())),
            ],
            error: Some("draining"),
        }
    }

    #[test]
    fn what_is_written_is_what_the_field_reads() {
        let spans = [span("web"), span("db"), span("web")];
        let bytes = Export::of(&origin(), spans.iter()).encode_to_vec();
        let read = ExportTraceServiceRequest::decode(bytes.as_slice()).expect("OTLP");
        let owners: Vec<_> = read
            .resource_spans
            .iter()
            .map(|of| {
                let attributes = &of.resource.as_ref().expect("there").attributes;
                let text = |key: &str| {
                    let found = attributes.iter().find(|it| it.key == key)?.value.clone()?.value?;
                    match found {
                        Value::StringValue(text) => Some(text),
                        other => panic!("{key}: {other:?}"),
                    }
                };
                assert_eq!(text("service.instance.id").as_deref(), Some("i-1"));
                assert_eq!(text("host.name").as_deref(), Some("host-1"));
                assert_eq!(text("cloud.region").as_deref(), Some("eu-west-1"));
                assert_eq!(text("cloud.availability_zone"), None);
                (text("service.name").expect("there"), of.scope_spans[0].spans.len())
            })
            .collect();
        assert_eq!(owners, [("db".to_owned(), 1), ("web".to_owned(), 2)]);
        let span = &read.resource_spans[0].scope_spans[0].spans[0];
        assert_eq!((span.trace_id.as_slice(), span.span_id.len()), ([7; 16].as_slice(), 8));
        assert_eq!(
            (span.parent_span_id.as_slice(), &*span.trace_state),
            ([9; 8].as_slice(), "a=1")
        );
        assert_eq!((span.kind, span.start_time_unix_nano, span.end_time_unix_nano), (3, 10, 30));
        let status = span.status.as_ref().expect("it failed");
        assert_eq!((status.code, status.message.as_str()), (2, "draining"));
        let values: Vec<_> = span
            .attributes
            .iter()
            .map(|it| (it.key.as_str(), it.value.clone().and_then(|value| value.value)))
            .collect();
        let text = |text: &str| Some(Value::StringValue(text.to_owned()));
        let expected = [
            ("http.response.status_code", Some(Value::IntValue(503))),
            ("hawser.reason", text("draining")),
            ("url.path", text("/x")),
        ];
        assert_eq!(values, expected);
    }

    #[test]
    fn a_partial_success_is_understood() {
        for (rejected_spans, expected) in [(0, 0), (3, 3), (-1, 0)] {
            let partial =
                ExportTracePartialSuccess { rejected_spans, error_message: String::new() };
            let answer = ExportTraceServiceResponse { partial_success: Some(partial) };
            let read = Exported::decode(answer.encode_to_vec().as_slice()).expect("OTLP");
            assert_eq!(read.rejected(), expected);
        }
    }
}
