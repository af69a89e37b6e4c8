//! `access_log` and `telemetry`: what the proxies log and trace, and where to.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, ensure};
use hawser_agent::proxy::{AccessLog, LogSink};
use hawser_agent::{Otlp, Telemetry};
use serde::{Deserialize, Serialize};

/// `access_log = "stdout"`, or a block with more to say.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum RawAccessLog {
    /// Where to.
    Path(String),
    /// Where to, and which.
    Full(RawAccessLogBlock),
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAccessLogBlock {
    path: Option<String>,
    filter: Option<Filter>,
    sample_ratio: Option<f64>,
}

/// Which records are written.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Filter {
    All,
    Errors,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTelemetry {
    otlp: Option<RawOtlp>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawOtlp {
    endpoint: Option<String>,
    sample_ratio: Option<f64>,
    headers: Option<BTreeMap<String, String>>,
    ca_file: Option<PathBuf>,
}

/// # Errors
/// A value that cannot be, named by its key.
pub(super) fn resolve(
    log: Option<&RawAccessLog>,
    telemetry: Option<&RawTelemetry>,
) -> Result<Telemetry> {
    let otlp = telemetry.and_then(|telemetry| telemetry.otlp.as_ref());
    Ok(Telemetry {
        access_log: log.map_or_else(|| Ok(AccessLog::default()), RawAccessLog::resolve)?,
        otlp: otlp.map(RawOtlp::resolve).transpose()?,
    })
}

impl RawAccessLog {
    fn resolve(&self) -> Result<AccessLog> {
        let block = match self {
            Self::Path(path) => {
                &RawAccessLogBlock { path: Some(path.clone()), ..RawAccessLogBlock::default() }
            }
            Self::Full(block) => block,
        };
        let to = match block.path.as_deref() {
            Some("off") => LogSink::Off,
            None | Some("stdout") => LogSink::Stdout,
            Some(path) => LogSink::File(path.into()),
        };
        let asked = ppm("access_log.sample_ratio", block.sample_ratio, 1.0)?;
        let sample_ppm = if block.filter == Some(Filter::Errors) { 0 } else { asked };
        Ok(AccessLog { to, sample_ppm })
    }
}

impl RawOtlp {
    fn resolve(&self) -> Result<Otlp> {
        let endpoint = self.endpoint.as_deref().context(
            "telemetry.otlp.endpoint: say where the collector takes OTLP over HTTP, such as \
             \"http://127.0.0.1:4318\"",
        )?;
        let share = ppm("telemetry.otlp.sample_ratio", self.sample_ratio, SAMPLE_RATIO)?;
        let roots = match &self.ca_file {
            None => None,
            Some(file) => Some(
                std::fs::read(file)
                    .with_context(|| format!("telemetry.otlp.ca_file {}", file.display()))?,
            ),
        };
        let headers = self.headers.clone().unwrap_or_default();
        Otlp::new(endpoint, share, headers, roots).map_err(|why| anyhow!("telemetry.otlp.{why}"))
    }
}

/// A share from 0 to 1, in millionths.
fn ppm(key: &str, ratio: Option<f64>, default: f64) -> Result<u32> {
    let ratio = ratio.unwrap_or(default);
    ensure!((0.0..=1.0).contains(&ratio), "{key}: {ratio} is no share; use 0 to 1");
    Ok((ratio * f64::from(AccessLog::ALL_PPM)).round() as u32)
}

/// Of traces that nobody else began, where no share is given.
const SAMPLE_RATIO: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn resolved(log: Value, telemetry: Value) -> Result<Telemetry> {
        let log: Option<RawAccessLog> = serde_json::from_value(log)?;
        let telemetry: Option<RawTelemetry> = serde_json::from_value(telemetry)?;
        resolve(log.as_ref(), telemetry.as_ref())
    }

    #[test]
    fn an_access_log_is_a_path_or_a_block() {
        let file = || LogSink::File("/var/log/hawser/access.log".into());
        let cases = [
            // access_log, where to, how many of what went well
            (json!(null), LogSink::Off, 1_000_000),
            (json!("off"), LogSink::Off, 1_000_000),
            (json!("stdout"), LogSink::Stdout, 1_000_000),
            (json!("/var/log/hawser/access.log"), file(), 1_000_000),
            (json!({"path": "/var/log/hawser/access.log"}), file(), 1_000_000),
            (json!({"sample_ratio": 0.01}), LogSink::Stdout, 10_000),
            (json!({"filter": "errors"}), LogSink::Stdout, 0),
            (json!({"filter": "all", "sample_ratio": 0.5}), LogSink::Stdout, 500_000),
        ];
        for (log, to, sample_ppm) in cases {
            let telemetry = resolved(log.clone(), json!(null)).expect("good");
            assert_eq!(telemetry.access_log, AccessLog { to, sample_ppm }, "{log}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        let otlp = |otlp: Value| (json!(null), json!({ "otlp": otlp }));
        let collector = "http://127.0.0.1:4318";
        let cases = [
            ((json!({"sample_ratio": -0.1}), json!(null)), "access_log.sample_ratio"),
            (otlp(json!({})), "telemetry.otlp.endpoint"),
            (otlp(json!({"endpoint": "ftp://collector"})), "endpoint"),
            (otlp(json!({"endpoint": collector, "sample_ratio": 1.1})), "sample_ratio"),
            (otlp(json!({"endpoint": collector, "headers": {"a b": "c"}})), "headers"),
            (otlp(json!({"endpoint": collector, "ca_file": "/no/file"})), "ca_file"),
        ];
        for ((log, telemetry), key) in cases {
            let refused = resolved(log, telemetry.clone()).expect_err(key);
            assert!(format!("{refused:#}").contains(key), "{telemetry}: {refused:#}");
        }
    }
}
