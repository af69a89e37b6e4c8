//! The audit log: one line of JSON for each write that was tried, whoever tried it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hawser_api::json::timestamp;
use serde_json::json;

use crate::identity::now;

/// Where writes are noted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Settings {
    /// Nowhere.
    Off,
    /// In the process's log, under the target `audit`.
    #[default]
    Log,
    /// In a file of their own, appended to.
    File(PathBuf),
}

/// Notes writes. Clones share the file.
#[derive(Clone)]
pub(crate) struct Audit {
    settings: Settings,
    file: Arc<Mutex<Option<File>>>,
}

/// One write, as it is noted. Neither bodies nor queries are in it: they may hold secrets.
pub(crate) struct Entry {
    /// Whose token it was; empty when it is of none.
    pub(crate) accessor: String,
    /// The method.
    pub(crate) method: String,
    /// Which operation: the pattern of its path.
    pub(crate) operation: &'static str,
    /// What it was about: the parts of the path that the pattern leaves open.
    pub(crate) what: Vec<String>,
    /// The status that it was answered with.
    pub(crate) status: u16,
    /// How far the log was then.
    pub(crate) index: u64,
}

impl Audit {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, file: Arc::default() }
    }

    /// Notes `entry` before its answer leaves.
    pub(crate) async fn note(&self, entry: Entry) {
        let line = line(&entry);
        match &self.settings {
            Settings::Off => {}
            Settings::Log => tracing::info!(target: "audit", "{line}"),
            Settings::File(path) => {
                let (path, file) = (path.clone(), self.file.clone());
                let written = tokio::task::spawn_blocking(move || append(&path, &file, &line));
                match written.await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::error!(%error, "the audit log cannot be written"),
                    Err(error) => tracing::error!(%error, "writing the audit log failed"),
                }
            }
        }
    }
}

fn line(entry: &Entry) -> String {
    let outcome = match entry.status {
        200..=299 => "done",
        401 | 403 => "denied",
        _ => "failed",
    };
    let line = json!({
        "time": timestamp(now()),
        "accessor": entry.accessor,
        "operation": format!("{} /v1/{}", entry.method, entry.operation),
        "what": entry.what.iter().map(|part| short(part)).collect::<Vec<_>>(),
        "outcome": outcome,
        "status": entry.status,
        "index": entry.index,
    });
    line.to_string()
}

fn short(part: &str) -> String {
    part.chars().take(SHOWN_MAX).collect()
}

/// Opens the file where it is not open, and again once it is no longer there: it may have been
/// moved away by whoever rotates logs.
fn append(path: &PathBuf, file: &Mutex<Option<File>>, line: &str) -> std::io::Result<()> {
    let mut held = file.lock().unwrap_or_else(PoisonError::into_inner);
    let file = match held.take().filter(|_| path.exists()) {
        Some(file) => file,
        None => OpenOptions::new().append(true).create(true).mode(0o600).open(path)?,
    };
    let mut octets = line.as_bytes().to_vec();
    octets.push(b'\n');
    held.insert(file).write_all(&octets)
}

const SHOWN_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(status: u16) -> Entry {
        Entry {
            accessor: "a1".into(),
            method: "PUT".into(),
            operation: "config/:",
            what: vec!["x".repeat(1_000)],
            status,
            index: 7,
        }
    }

    #[tokio::test]
    async fn each_write_is_a_line_and_a_file_moved_away_is_begun_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.log");
        let audit = Audit::new(Settings::File(path.clone()));
        audit.note(entry(200)).await;
        audit.note(entry(403)).await;
        std::fs::rename(&path, folder.path().join("old")).expect("moved");
        audit.note(entry(500)).await;
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect(name);
        let outcomes = |text: &str| -> Vec<String> {
            let of = |line: &str| -> serde_json::Value { serde_json::from_str(line).expect(line) };
            text.lines().map(|line| of(line)["outcome"].as_str().expect("one").into()).collect()
        };
        assert_eq!(outcomes(&read("old")), ["done", "denied"]);
        let line = read("audit.log");
        assert_eq!(outcomes(&line), ["failed"]);
        assert!(line.contains("\"operation\":\"PUT /v1/config/:\"") && line.len() < 600, "{line}");
    }
}
