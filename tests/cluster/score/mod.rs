//! Scored runs: a fault, a load, and one line with the figure that a promise is about.
//!
//! As plain tests they are short, and judge only what holds on any machine: counts. With
//! `HAWSER_SCORE=full`, as `cargo xtask score` runs them, they take as long as the promise says and
//! judge the times, too. `docs/scoreboard.md` has the results.

mod app;
mod faults;
mod load;
mod overload;
mod scene;
mod storm;

use std::fmt;
use std::io::Write as _;

/// Whether times are judged, and the runs are long.
fn is_full() -> bool {
    std::env::var_os("HAWSER_SCORE").is_some_and(|form| form == "full")
}

/// The first where the run is a full one.
fn sized<T>(full: T, quick: T) -> T {
    if is_full() { full } else { quick }
}

/// Prints a line that `--nocapture` is not needed for.
fn tell(line: fmt::Arguments<'_>) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).expect("written");
}

/// What a run promises: prints its line, and fails where one of `promises` is not kept. Those about
/// times are for full runs.
fn judge(name: &str, figure: &str, counts: &[(&str, bool)], times: &[(&str, bool)]) {
    let judged = || counts.iter().chain(times.iter().filter(|_| is_full()));
    let broken: Vec<&str> =
        judged().filter(|(_, is_kept)| !is_kept).map(|(what, _)| *what).collect();
    let verdict = if broken.is_empty() { "met".to_owned() } else { format!("NOT MET: {broken:?}") };
    tell(format_args!("score {name}: {figure}: {verdict}"));
    assert!(broken.is_empty(), "{name}: {figure}: {broken:?}");
}
