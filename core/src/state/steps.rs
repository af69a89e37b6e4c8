//! Changes of intentions as one command after another, for as long as a server of a cluster is of a
//! release that knows no other way.

use super::{Command, Rejection, State};
use crate::intention::{Action, Changes, Intention, Pair};
use crate::operation::INTENTIONS_LEVEL;

impl State {
    /// `command` as servers of this cluster understand it: itself, or its steps.
    ///
    /// What a writer has seen is compared here then, as the log cannot. What denies comes first
    /// and goes last, so that no caller is let in by a change half done.
    ///
    /// # Errors
    /// [`Rejection::IndexMismatch`].
    pub fn in_steps(&self, command: Command) -> Result<Vec<Command>, Rejection> {
        let changes = match command {
            Command::ChangeIntentions { changes, .. }
                if self.operation.level() < INTENTIONS_LEVEL =>
            {
                changes
            }
            command => return Ok(vec![command]),
        };
        self.expect_intentions(&changes)?;
        let Changes { put, mut remove, only, .. } = changes;
        let is_kept = |pair: &Pair| put.iter().any(|intention| intention.pair == *pair);
        let others = only.iter().flat_map(|only| self.intentions.about(only));
        let others = others.map(|row| &row.value.pair).filter(|pair| !is_kept(pair));
        remove.extend(others.cloned());
        let whole = |put: Intention| match only {
            Some(_) => put,
            None => self.intentions.inheriting(put),
        };
        let put = put.into_iter().map(whole).map(|intention| {
            let denies = intention.action == Action::Deny;
            (if denies { 0 } else { 2 }, Command::PutIntention(intention))
        });
        let held = remove.into_iter().filter_map(|pair| Some((self.intentions.get(&pair)?, pair)));
        let drop = held.map(|(row, pair)| {
            let denies = row.value.action == Action::Deny;
            (if denies { 3 } else { 1 }, Command::DropIntention(pair))
        });
        let mut steps: Vec<(u8, Command)> = put.chain(drop).collect();
        steps.sort_by_key(|(turn, _)| *turn);
        Ok(steps.into_iter().map(|(_, command)| command).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Index, Stamp, UnixTime};
    use crate::intention::{Expected, Side};

    fn side(text: &str) -> Side {
        text.parse().expect("a side")
    }

    fn intention(source: &str, action: Action) -> Intention {
        Intention {
            id: "".into(),
            pair: Pair { source: side(source), destination: side("db"), peer: None },
            action,
            requests: None,
            description: "".into(),
            meta: Default::default(),
            created_at: UnixTime::default(),
            updated_at: UnixTime::default(),
        }
    }

    #[test]
    fn older_servers_get_steps_of_which_none_lets_anybody_in() {
        use Action::{Allow, Deny};
        let mut state = State::default();
        let apply = |state: &mut State, command| {
            let index = Index(state.applied().0 + 1);
            state.apply(Stamp { index, time: UnixTime::default() }, command).expect("applied");
        };
        for (source, action) in [("denied", Deny), ("allowed", Allow), ("kept", Allow)] {
            apply(&mut state, Command::PutIntention(intention(source, action)));
        }
        let change = |expected| Command::ChangeIntentions {
            changes: Changes {
                put: vec![intention("new", Allow), intention("kept", Deny)],
                remove: vec![],
                only: Some(side("db")),
                expected: Some(Expected::Callee(side("db"), Index(expected))),
            },
            fits: None,
        };
        let steps = state.in_steps(change(3)).expect("as it was seen");
        let shown = |command: &Command| match command {
            Command::PutIntention(it) => format!("put {} {}", it.pair.source, it.action.as_str()),
            Command::DropIntention(pair) => format!("drop {}", pair.source),
            other => panic!("{other:?}"),
        };
        let shown: Vec<String> = steps.iter().map(shown).collect();
        assert_eq!(shown, ["put kept deny", "drop allowed", "put new allow", "drop denied"]);
        assert!(matches!(state.in_steps(change(2)), Err(Rejection::IndexMismatch { .. })));

        let mut together = state.clone();
        for step in steps {
            apply(&mut state, step);
        }
        apply(&mut together, Command::SetLevel(INTENTIONS_LEVEL));
        let [whole] = &together.in_steps(change(3)).expect("known")[..] else {
            panic!("one command")
        };
        apply(&mut together, whole.clone());
        let said = |state: &State| -> Vec<(Pair, Action)> {
            state.intentions().iter().map(|it| (it.value.pair.clone(), it.value.action)).collect()
        };
        assert_eq!(said(&state), said(&together));
    }
}
