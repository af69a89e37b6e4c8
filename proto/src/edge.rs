//! Edges of the call graph, as agents report them and servers ask each other for them.

use hawser_core::edge::{EdgeKey, Sketch, Tally};
use hawser_core::name::ServiceName;

use crate::field::Invalid;
use crate::v1;

impl From<(&EdgeKey, &Tally)> for v1::Edge {
    fn from((key, tally): (&EdgeKey, &Tally)) -> Self {
        let verdict = if &*key.verdict == OK { "" } else { &*key.verdict };
        Self {
            source: key.source.to_string(),
            destination: key.destination.to_string(),
            cluster: key.cluster.to_string(),
            verdict: verdict.to_owned(),
            count: tally.count,
            errors: tally.errors,
            bytes_sent: tally.bytes_sent,
            bytes_received: tally.bytes_received,
            latency: Some((&tally.latency).into()),
        }
    }
}

/// The name of a service of the mesh: it becomes a label of metrics.
fn service(field: &'static str, text: &str) -> Result<ServiceName, Invalid> {
    ServiceName::in_mesh(text).map_err(|why| Invalid::new(field, why))
}

impl TryFrom<v1::Edge> for (EdgeKey, Tally) {
    type Error = Invalid;

    /// # Errors
    /// Also for a cluster or verdict that is no plain word: both become labels of metrics.
    fn try_from(edge: v1::Edge) -> Result<Self, Invalid> {
        let key = EdgeKey {
            source: service("edge.source", &edge.source)?,
            destination: service("edge.destination", &edge.destination)?,
            cluster: word("edge.cluster", &edge.cluster)?.into(),
            verdict: match word("edge.verdict", &edge.verdict)? {
                "" => OK.into(),
                verdict => verdict.into(),
            },
        };
        let tally = Tally {
            count: edge.count,
            errors: edge.errors,
            bytes_sent: edge.bytes_sent,
            bytes_received: edge.bytes_received,
            latency: edge.latency.map(Sketch::try_from).transpose()?.unwrap_or_default(),
        };
        Ok((key, tally))
    }
}

impl From<&Sketch> for v1::LatencySketch {
    fn from(sketch: &Sketch) -> Self {
        let (buckets, counts) = sketch.buckets().map(|(b, count)| (u32::from(b), count)).unzip();
        Self { buckets, counts }
    }
}

impl TryFrom<v1::LatencySketch> for Sketch {
    type Error = Invalid;

    fn try_from(sketch: v1::LatencySketch) -> Result<Self, Invalid> {
        let refuse = |why: &str| Err(Invalid::new("latency_sketch.buckets", why));
        if sketch.buckets.len() != sketch.counts.len() {
            return refuse("there is not one count for each");
        }
        if !sketch.buckets.is_sorted_by(|one, next| one < next) {
            return refuse("they do not ascend");
        }
        let Some(&greatest) = sketch.buckets.last() else { return Ok(Self::default()) };
        // What lies above the greatest bucket is counted in it; so nothing there may be given.
        let numbered = sketch.buckets.iter().zip(&sketch.counts);
        let kept: Self = numbered
            .map(|(bucket, count)| (u16::try_from(*bucket).unwrap_or(u16::MAX), *count))
            .collect();
        if kept.buckets().last().map(|(bucket, _)| u32::from(bucket)) != Some(greatest) {
            return refuse("one is above the greatest there is");
        }
        Ok(kept)
    }
}

fn word<'a>(field: &'static str, text: &'a str) -> Result<&'a str, Invalid> {
    let allowed = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.');
    if text.len() > WORD_OCTETS_MAX || !text.bytes().all(allowed) {
        return Err(Invalid::new(field, "it is no word of letters, digits, -, _ and ."));
    }
    Ok(text)
}

/// The verdict of success, which travels as nothing.
const OK: &str = "ok";
const WORD_OCTETS_MAX: usize = 253;
