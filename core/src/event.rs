//! User events: a name and a few octets that whoever fires one means for whoever watches.

use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::clock::Index;
use crate::name::EventName;

/// An event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// A UUID.
    pub id: Arc<str>,
    /// What happened.
    pub name: EventName,
    /// What its watchers are told: at most [`PAYLOAD_OCTETS_MAX`], which is the border's to check.
    pub payload: Arc<[u8]>,
    /// Which nodes it is for, as whoever fired it put it; empty is all.
    pub node_filter: Arc<str>,
    /// Which services it is for.
    pub service_filter: Arc<str>,
    /// Which tags of those services it is for.
    pub tag_filter: Arc<str>,
}

/// The latest events, in the order of the log.
#[derive(Clone, Debug, Default)]
pub struct Events {
    rows: RedBlackTreeMapSync<Index, Arc<Event>>,
}

impl Events {
    /// The events that are kept, oldest first, each with the entry that fired it.
    pub fn iter(&self) -> impl Iterator<Item = (Index, &Arc<Event>)> {
        self.rows.iter().map(|(at, event)| (*at, event))
    }

    /// The entry that fired the last one.
    pub fn index(&self) -> Index {
        self.rows.last().map_or(Index(0), |(at, _)| *at)
    }

    /// At or after the entry that fired the last one which is kept no more; zero while all are.
    pub fn forgotten(&self) -> Index {
        match self.rows.first() {
            Some((oldest, _)) if self.rows.size() >= KEPT_MAX => *oldest,
            _ => Index(0),
        }
    }

    pub(crate) fn fire(&mut self, event: Event, at: Index) {
        self.rows.insert_mut(at, Arc::new(event));
        while self.rows.size() > KEPT_MAX {
            let Some((oldest, _)) = self.rows.first() else { return };
            let oldest = *oldest;
            self.rows.remove_mut(&oldest);
        }
    }

    pub(crate) fn restore(rows: Vec<(Index, Arc<Event>)>) -> Self {
        Self { rows: rows.into_iter().collect() }
    }
}

/// The most octets that an event may carry.
pub const PAYLOAD_OCTETS_MAX: usize = 512;
/// Events that are kept: as many as an agent of Consul keeps.
const KEPT_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_in_order() {
        let mut events = Events::default();
        let event = |number: u64| Event {
            id: number.to_string().into(),
            name: "deploy".parse().expect("a name"),
            payload: Arc::from(*b""),
            node_filter: "".into(),
            service_filter: "".into(),
            tag_filter: "".into(),
        };
        for number in 1..=KEPT_MAX as u64 + 2 {
            events.fire(event(number), Index(number));
        }
        assert_eq!(events.iter().count(), KEPT_MAX);
        assert_eq!(events.iter().next().map(|(at, _)| at), Some(Index(3)), "the oldest are gone");
        assert_eq!(events.index(), Index(KEPT_MAX as u64 + 2));
    }
}
