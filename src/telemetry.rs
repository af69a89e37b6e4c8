//! What the process says about itself: structured logs on standard error.

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

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

    /// Starts logging to standard error. `HAWSER_LOG` overrides the filter.
    ///
    /// # Errors
    /// A filter in the environment that does not parse.
    pub(crate) fn start(&self) -> Result<()> {
        let text = std::env::var("HAWSER_LOG").unwrap_or_else(|_| self.filter.clone());
        let filter = EnvFilter::try_new(&text).with_context(|| format!("HAWSER_LOG: {text:?}"))?;
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        if self.as_json {
            builder.json().init();
        } else {
            builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
        }
        Ok(())
    }
}

const CRATES: [&str; 5] =
    ["hawser_agent", "hawser_dns", "hawser_proxy", "hawser_server", "hawser_proto"];
