//! What the process says about itself: structured logs on standard error, and to who watches.

use anyhow::{Context, Result};
use hawser_agent::monitor::{Line, Logs};
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, layer, reload};

/// How the process logs.
pub(crate) struct Log {
    filter: String,
    as_json: bool,
}

impl Log {
    /// Logs at Consul's `level` (`trace`, `debug`, `info`, `warn`, `error`), as JSON if asked.
    ///
    /// # Errors
    /// A word that is no level.
    pub(crate) fn new(level: &str, as_json: bool) -> Result<Self> {
        let level = match level.to_ascii_lowercase().as_str() {
            "err" => "error".to_owned(),
            other => other.to_owned(),
        };
        level.parse::<tracing_subscriber::filter::LevelFilter>().ok().with_context(|| {
            format!("log_level: {level:?} is none of trace, debug, info, warn, error")
        })?;
        // Libraries speak up from warnings on; their details drown ours.
        let filter = format!(
            "warn,hawser={level}{}",
            CRATES.map(|name| format!(",{name}={level}")).concat()
        );
        Ok(Self { filter, as_json })
    }

    /// Starts logging to standard error, and to those who watch what is given back. `HAWSER_LOG`
    /// overrides the filter of the former.
    ///
    /// # Errors
    /// A filter in the environment that does not parse.
    pub(crate) fn start(&self) -> Result<Logs> {
        let mut text = std::env::var("HAWSER_LOG").unwrap_or_else(|_| self.filter.clone());
        // Who wrote what is noted at any level, unless a filter says otherwise by its name.
        if !text.contains("audit") {
            text.push_str(",audit=info");
        }
        let filter = EnvFilter::try_new(&text).with_context(|| format!("HAWSER_LOG: {text:?}"))?;
        let (watched, level) = reload::Layer::new(LevelFilter::OFF);
        let logs = Logs::new(move |finest| {
            // It fails only once the subscriber is gone, and with it all that could be watched.
            let _ = level.reload(finest);
        });
        let shown = tracing_subscriber::registry().with(Watched(logs.clone()).with_filter(watched));
        let to_stderr = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        if self.as_json {
            shown.with(to_stderr.json().with_filter(filter)).init();
        } else {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            shown.with(to_stderr.with_ansi(is_terminal).with_filter(filter)).init();
        }
        Ok(logs)
    }
}

/// Shows events to those who watch them over the API.
struct Watched(Logs);

impl<S: Subscriber> Layer<S> for Watched {
    fn on_event(&self, event: &Event<'_>, _: layer::Context<'_, S>) {
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        // Libraries speak up from warnings on, as on standard error.
        if level > Level::WARN && !target.starts_with("hawser") {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.0.remove("message").unwrap_or_default();
        let message = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
        let text: String =
            fields.0.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let text = format!("{level:>5} {target}: {}{text}", message.escape_debug());
        let json = serde_json::json!({
            "level": level.as_str(), "target": target, "message": message, "fields": fields.0,
        });
        self.0.publish(Line { level, text, json: json.to_string() });
    }
}

/// An event's fields, by name.
#[derive(Default)]
struct Fields(serde_json::Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

const CRATES: [&str; 5] =
    ["hawser_agent", "hawser_dns", "hawser_proxy", "hawser_server", "hawser_proto"];
