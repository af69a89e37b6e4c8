//! What clients did and were told, and whether one register could have told them so.

use std::collections::BTreeMap;
use std::time::Instant;

use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

/// What one operation on a key did, as its client was told it. Each write has a value of its own;
/// zero stands for a key that is not there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Done {
    /// It read this.
    Read(u64),
    /// It wrote this.
    Wrote(u64),
    /// It was to write `to` in the place of `from`, and did so or was told that it is too late.
    Swapped { from: u64, to: u64, is_done: bool },
    /// It was to write `to` in the place of `from`, and was told nothing.
    MaySwap { from: u64, to: u64 },
}

/// One operation of one client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    /// Which key.
    pub(super) key: usize,
    /// When it began.
    pub(super) called: Instant,
    /// When its outcome was told; none for a write that may have happened, or may still.
    pub(super) told: Option<Instant>,
    /// What it did.
    pub(super) done: Done,
}

/// A key that holds one value, and an operation on it that may have happened or not.
struct Register;

impl Specification for Register {
    type State = u64;
    type Operation = Done;

    fn init() -> u64 {
        0
    }

    fn apply(done: &Done, state: &u64) -> (bool, u64) {
        match *done {
            Done::Read(value) => (value == *state, *state),
            Done::Wrote(value) => (true, value),
            Done::Swapped { from, to, is_done } if is_done == (from == *state) => {
                (true, if is_done { to } else { *state })
            }
            Done::Swapped { .. } => (false, *state),
            Done::MaySwap { from, to } => (true, if from == *state { to } else { *state }),
        }
    }
}

/// The keys of which `events` are no history of a register: none, for servers that agree.
pub(super) fn violations(events: &[Event]) -> Vec<usize> {
    let mut keys: BTreeMap<usize, Vec<Event>> = BTreeMap::new();
    for event in events {
        keys.entry(event.key).or_default().push(*event);
    }
    // Registers are independent: a history is linearizable when that of each key is.
    let wrong = keys.iter().filter(|(_, events)| !is_linearizable(events));
    wrong.map(|(key, _)| *key).collect()
}

fn is_linearizable(events: &[Event]) -> bool {
    // Each operation is a process of its own, so that one without an outcome holds up no other:
    // it ends after all others, and so may have happened at any time, or as good as never.
    let mut actions = Vec::new();
    for (process, event) in events.iter().enumerate() {
        actions.push((event.called, process, Action::Call(event.done)));
        if let Some(told) = event.told {
            actions.push((told, process, Action::Response(event.done)));
        }
    }
    actions.sort_by_key(|(at, _, _)| *at);
    let late = events.iter().enumerate().filter(|(_, event)| event.told.is_none());
    let late = late.map(|(process, event)| (process, Action::Response(event.done)));
    let actions = actions.into_iter().map(|(_, process, action)| (process, action)).chain(late);
    WGLChecker::<Register>::is_linearizable(History::from_actions(actions.collect()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// An operation as `(from, to, what)`, in milliseconds; a `to` of zero is never told.
    type Row = (u64, u64, Done);

    fn history(events: &[Row]) -> Vec<Event> {
        let began = Instant::now();
        let at = |millis| began + Duration::from_millis(millis);
        let event = |(called, told, done): &Row| Event {
            key: 0,
            called: at(*called),
            told: (*told > 0).then(|| at(*told)),
            done: *done,
        };
        events.iter().map(event).collect()
    }

    #[test]
    fn what_no_register_could_have_said_is_found() {
        use Done::{Read, Wrote};
        let swap = |from, to, is_done| Done::Swapped { from, to, is_done };
        let cases: [(&[Row], bool, &str); 9] = [
            (&[(1, 2, Wrote(1)), (3, 4, Read(1))], true, "in turn"),
            (&[(1, 2, Wrote(1)), (3, 4, Read(0))], false, "a stale read"),
            (&[(1, 5, Wrote(1)), (2, 3, Read(0)), (4, 6, Read(1))], true, "during the write"),
            (&[(1, 9, Wrote(1)), (2, 3, Read(1)), (4, 5, Read(0))], false, "back in time"),
            (&[(1, 0, Wrote(1)), (3, 4, Read(0)), (5, 6, Read(1))], true, "it happened late"),
            (&[(1, 0, Wrote(1)), (3, 4, Read(1)), (5, 6, Read(0))], false, "it happened once"),
            (&[(1, 2, Wrote(1)), (3, 4, Wrote(2)), (5, 6, Read(1))], false, "a write is lost"),
            (&[(1, 2, Wrote(1)), (3, 6, swap(1, 2, true)), (4, 5, swap(1, 3, true))], false, "two"),
            (&[(1, 2, Wrote(1)), (3, 6, swap(1, 2, true)), (4, 5, swap(1, 3, false))], true, "one"),
        ];
        for (events, expected, why) in cases {
            let wrong = violations(&history(events));
            assert_eq!(wrong.is_empty(), expected, "{why}");
        }
    }
}
