//! Metrics as Prometheus text and as Consul's JSON.

use hawser_api::error::ApiError;
use http::StatusCode;
use prometheus::proto::{Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
use serde_json::{Value, json};

use super::{Ask, Reply, reply};
use crate::clock;
use crate::host::Host;

/// Text that Prometheus scrapes.
pub(super) fn prometheus(host: &Host) -> Result<Reply, ApiError> {
    host.measure();
    let mut text = Vec::new();
    TextEncoder::new()
        .encode(&host.registry.gather(), &mut text)
        .map_err(|why| ApiError::Unavailable(why.to_string()))?;
    Ok(reply::made(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text))
}

/// What `/v1/agent/metrics` answers.
pub(super) fn answer(host: &Host, ask: &Ask) -> Result<Reply, ApiError> {
    let wants_text = ask.query.first("format") == Some("prometheus")
        || ask.headers.get(http::header::ACCEPT).is_some_and(|accept| {
            accept.to_str().is_ok_and(|accept| accept.contains("openmetrics-text"))
        });
    if wants_text {
        return prometheus(host);
    }
    host.measure();
    let (mut gauges, mut counters, mut samples) = (vec![], vec![], vec![]);
    for family in host.registry.gather() {
        for metric in family.get_metric() {
            match family.get_field_type() {
                MetricType::GAUGE => {
                    gauges.push(plain(&family, metric, metric.get_gauge().get_value()))
                }
                MetricType::COUNTER => {
                    let value = metric.get_counter().get_value();
                    counters.push(sample(&family, metric, value, 1));
                }
                MetricType::HISTOGRAM => {
                    let histogram = metric.get_histogram();
                    let (sum, count) = (histogram.get_sample_sum(), histogram.get_sample_count());
                    samples.push(sample(&family, metric, sum, count));
                }
                _ => {}
            }
        }
    }
    let timestamp = hawser_api::json::timestamp(clock::now());
    let body = json!({
        "Timestamp": timestamp, "Gauges": gauges, "Points": [], "Counters": counters,
        "Samples": samples,
    });
    Ok(reply::json(ask, &body))
}

fn plain(family: &MetricFamily, metric: &Metric, value: f64) -> Value {
    json!({ "Name": family.name(), "Value": value, "Labels": labels(metric) })
}

fn sample(family: &MetricFamily, metric: &Metric, sum: f64, count: u64) -> Value {
    let mean = if count == 0 { 0.0 } else { sum / count as f64 };
    json!({
        "Name": family.name(), "Count": count, "Rate": mean, "Sum": sum, "Min": mean, "Max": mean,
        "Mean": mean, "Stddev": 0.0, "Labels": labels(metric),
    })
}

fn labels(metric: &Metric) -> Value {
    let pairs = metric.get_label().iter();
    pairs.map(|pair| (pair.name().to_owned(), Value::from(pair.value()))).collect()
}
