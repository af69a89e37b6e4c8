//! Traces and access logs of real processes, as a collector and whoever moves log files see them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use serde_json::{Value, json};

use crate::data::{http_application, mesh_with, set_intention, upstream};
use crate::harness::{Net, eventually, get};

/// Whose span it is, and the span.
type Noted = Arc<Mutex<Vec<(String, String, Span)>>>;

/// A collector that takes everything, and what it took.
fn collector() -> (SocketAddr, Noted) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    let noted = Noted::default();
    let notes = noted.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let notes = notes.clone();
            std::thread::spawn(move || take(socket, &notes));
        }
    });
    (address, noted)
}

fn take(socket: TcpStream, notes: &Noted) -> Option<()> {
    let mut reader = BufReader::new(socket);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request = ExportTraceServiceRequest::decode(body.as_slice()).expect("OTLP");
    for of in request.resource_spans {
        let resource = of.resource.expect("a resource");
        let (service, host) = (text(&resource, "service.name"), text(&resource, "host.name"));
        for span in of.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
            notes.push((service.clone(), host.clone(), span));
        }
    }
    write!(reader.get_mut(), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()
}

fn text(resource: &Resource, key: &str) -> String {
    let found = resource.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|it| it.value.as_ref()?.value.clone()) {
        Some(Any::StringValue(text)) => text,
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn a_collector_sees_one_trace_through_both_proxies() {
    let net = Net::new();
    let (address, noted) = collector();
    let otlp = json!({ "otlp": { "endpoint": format!("http://{address}"), "sample_ratio": 1 } });
    let _mesh = mesh_with(&net, "http", http_application("hello"), &otlp);
    set_intention(&net, "allow");
    eventually("the call to be allowed", || {
        get(upstream(&net), "/traced").filter(|reply| reply.status == 200)
    });
    let [whole, attempt, callee] = eventually("three spans of one trace", || {
        let notes = noted.lock().unwrap_or_else(PoisonError::into_inner);
        let of_kind = |kind: SpanKind, parent: &[u8]| {
            notes.iter().find(|(_, _, span)| {
                span.kind() == kind && span.parent_span_id == parent && span.status.is_none()
            })
        };
        notes.iter().find_map(|root| {
            if root.2.kind() != SpanKind::Internal || !root.2.parent_span_id.is_empty() {
                return None;
            }
            let attempt = of_kind(SpanKind::Client, &root.2.span_id)?;
            let callee = of_kind(SpanKind::Server, &attempt.2.span_id)?;
            Some([root.clone(), attempt.clone(), callee.clone()])
        })
    });
    for (service, host, span) in [&whole, &attempt] {
        assert_eq!((service.as_str(), host.as_str()), ("web", "n3"), "{span:?}");
    }
    assert_eq!((callee.0.as_str(), callee.1.as_str()), ("api", "n2"));
    for (_, _, span) in [&attempt, &callee] {
        assert_eq!(span.trace_id, whole.2.trace_id);
    }
    let path = callee.2.attributes.iter().find(|it| it.key == "url.path");
    let path = path.and_then(|it| it.value.clone()?.value).expect("a path");
    assert_eq!(path, Any::StringValue("/traced".to_owned()));
}

#[test]
fn a_reload_opens_the_access_log_anew() {
    let net = Net::new();
    let (_server, _callee, caller) = mesh_with(&net, "http", http_application("hello"), &json!({}));
    set_intention(&net, "allow");
    let path = net.folder().join("n3.access");
    let lines = |path: &std::path::Path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<Value>>()
    };
    let line = eventually("a call to be logged as allowed", || {
        get(upstream(&net), "/before?token=hidden")?;
        lines(&path).into_iter().find(|line| line["reason"] == "ok")
    });
    assert_eq!((&line["path"], &line["upstream_node"]), (&"/before".into(), &"n2".into()));
    std::fs::rename(&path, net.folder().join("n3.access.1")).expect("moved");
    caller.signal("-HUP");
    eventually("a new file with the calls since", || {
        get(upstream(&net), "/after")?;
        lines(&path).into_iter().find(|line| line["path"] == "/after")
    });
}
