//! What the process logs, for those who watch it over the API.
//!
//! While nobody watches, the process makes no line for it: the watchers' wishes set the level.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;
use tracing::Level;
use tracing::level_filters::LevelFilter;

/// One logged event.
#[derive(Clone, Debug)]
pub struct Line {
    /// How grave it is.
    pub level: Level,
    /// As a person reads it, without a line end.
    pub text: String,
    /// As a program reads it: one JSON object.
    pub json: String,
}

/// The lines of the process. Clones share them.
#[derive(Clone)]
pub struct Logs(Arc<Inner>);

struct Inner {
    lines: broadcast::Sender<Arc<Line>>,
    /// How many watch at each level, from error to trace.
    watching: Mutex<[usize; LEVELS.len()]>,
    raise: Box<dyn Fn(LevelFilter) + Send + Sync>,
}

impl Logs {
    /// Lines that nobody watches yet. `raise` is told which events must be published from now on.
    pub fn new(raise: impl Fn(LevelFilter) + Send + Sync + 'static) -> Self {
        let lines = broadcast::Sender::new(LINES_MAX);
        Self(Arc::new(Inner { lines, watching: Mutex::default(), raise: Box::new(raise) }))
    }

    /// Shows `line` to those who watch.
    pub fn publish(&self, line: Line) {
        // Nobody there is as good as somebody.
        let _ = self.0.lines.send(Arc::new(line));
    }

    /// Watches events of `level` and graver ones, until the watch is dropped.
    pub(crate) fn watch(&self, level: Level) -> Watch {
        let lines = self.0.lines.subscribe();
        self.change(level, |count| count.saturating_add(1));
        Watch { logs: self.clone(), level, lines }
    }

    fn change(&self, level: Level, change: impl Fn(usize) -> usize) {
        let mut watching = self.watching();
        if let Some(at) = LEVELS.iter().position(|known| *known == level) {
            watching[at] = change(watching[at]);
        }
        let finest = LEVELS.iter().zip(watching.iter()).rev().find(|(_, count)| **count > 0);
        (self.0.raise)(finest.map_or(LevelFilter::OFF, |(level, _)| LevelFilter::from(*level)));
    }

    fn watching(&self) -> MutexGuard<'_, [usize; LEVELS.len()]> {
        self.0.watching.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who watches.
pub(crate) struct Watch {
    logs: Logs,
    level: Level,
    lines: broadcast::Receiver<Arc<Line>>,
}

/// What a watcher gets next.
#[derive(Debug)]
pub(crate) enum Seen {
    /// A line.
    Line(Arc<Line>),
    /// So many were logged faster than they were taken.
    Missed(u64),
}

impl Watch {
    /// The next line at the watched level; none once the process stops logging.
    pub(crate) async fn next(&mut self) -> Option<Seen> {
        loop {
            match self.lines.recv().await {
                Ok(line) if line.level <= self.level => return Some(Seen::Line(line)),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    return Some(Seen::Missed(missed));
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.logs.change(self.level, |count| count.saturating_sub(1));
    }
}

/// From the gravest to the finest.
const LEVELS: [Level; 5] = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE];
/// How many lines wait for a slow watcher.
const LINES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, text: &str) -> Line {
        Line { level, text: text.to_owned(), json: "{}".to_owned() }
    }

    #[tokio::test]
    async fn a_watcher_sees_its_level_and_the_process_makes_no_more_than_is_watched() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let told = asked.clone();
        let logs = Logs::new(move |level| told.lock().expect("not poisoned").push(level));
        let mut grave = logs.watch(Level::WARN);
        let fine = logs.watch(Level::DEBUG);
        logs.publish(line(Level::DEBUG, "fine"));
        logs.publish(line(Level::ERROR, "grave"));
        let Some(Seen::Line(seen)) = grave.next().await else { panic!("a line") };
        assert_eq!(seen.text, "grave");
        drop(fine);
        drop(grave);
        let asked = asked.lock().expect("not poisoned").clone();
        let (warn, debug, off) = (LevelFilter::WARN, LevelFilter::DEBUG, LevelFilter::OFF);
        assert_eq!(asked, [warn, debug, warn, off]);
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told_what_it_missed() {
        let logs = Logs::new(|_| {});
        let mut watch = logs.watch(Level::INFO);
        for number in 0..=LINES_MAX {
            logs.publish(line(Level::INFO, &number.to_string()));
        }
        assert!(matches!(watch.next().await, Some(Seen::Missed(1))));
        assert!(matches!(watch.next().await, Some(Seen::Line(_))));
    }
}
