//! Published states, and those who wait for a topic to change.
//!
//! Each watch wakes for its own topics only, and once for any number of changes: what it gets is
//! the set of topics that changed since it last asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use hawser_core::clock::Index;
use hawser_core::state::{State, Topic};
use prometheus::IntGauge;
use tokio::sync::{Notify, watch};

/// The current state, and how far it is. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    current: Arc<ArcSwap<State>>,
    applied: watch::Sender<Index>,
    watches: Watches,
}

/// Where readers subscribe. Clones share it.
#[derive(Clone, Debug)]
pub struct Watches(Arc<Inner>);

/// A subscription to some topics; it ends when it is dropped.
#[derive(Debug)]
pub struct Watch {
    watches: Watches,
    slot: Arc<Slot>,
    topics: BTreeSet<Topic>,
}

#[derive(Debug)]
struct Inner {
    held: IntGauge,
    registry: Mutex<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    slots: BTreeMap<u64, Arc<Slot>>,
    by_topic: HashMap<Topic, BTreeSet<u64>>,
}

#[derive(Debug)]
struct Slot {
    id: u64,
    /// Never more than the topics that are subscribed to.
    changed: Mutex<BTreeSet<Topic>>,
    wake: Notify,
}

impl Published {
    pub(crate) fn new(watches: Watches) -> Self {
        let (applied, _) = watch::channel(Index(0));
        Self { current: Arc::new(ArcSwap::from_pointee(State::default())), applied, watches }
    }

    /// The state as of the last publication.
    pub(crate) fn current(&self) -> Arc<State> {
        self.current.load_full()
    }

    /// How far the published state is.
    pub(crate) fn applied(&self) -> watch::Receiver<Index> {
        self.applied.subscribe()
    }

    /// Publishes `state`, then wakes those whose topics changed: who wakes sees it.
    pub(crate) fn publish(&self, state: State, changed: &BTreeSet<Topic>) {
        let index = state.applied();
        self.current.store(Arc::new(state));
        self.applied.send_replace(index);
        if changed.contains(&Topic::Everything) {
            self.watches.wake_all();
        } else {
            self.watches.wake(changed);
        }
    }

    /// Publishes a state that replaces the former as a whole.
    pub(crate) fn replace(&self, state: State) {
        let index = state.applied();
        self.current.store(Arc::new(state));
        self.applied.send_replace(index);
        self.watches.wake_all();
    }
}

impl Watches {
    /// No watches yet; `held` follows how many there are.
    pub(crate) fn new(held: IntGauge) -> Self {
        Self(Arc::new(Inner { held, registry: Mutex::default() }))
    }

    /// Watches `topics` from now on. Subscribe first and read the state after: then no change is
    /// missed.
    pub fn subscribe(&self, topics: BTreeSet<Topic>) -> Watch {
        let mut registry = self.registry();
        registry.next += 1;
        let id = registry.next;
        let slot = Arc::new(Slot { id, changed: Mutex::new(BTreeSet::new()), wake: Notify::new() });
        registry.slots.insert(id, Arc::clone(&slot));
        registry.add(id, &topics);
        self.0.held.inc();
        Watch { watches: self.clone(), slot, topics }
    }

    /// How many subscriptions there are now.
    pub fn held(&self) -> usize {
        self.registry().slots.len()
    }

    fn wake(&self, changed: &BTreeSet<Topic>) {
        let registry = self.registry();
        for topic in changed {
            let Some(ids) = registry.by_topic.get(topic) else { continue };
            for slot in ids.iter().filter_map(|id| registry.slots.get(id)) {
                slot.changed().insert(topic.clone());
                slot.wake.notify_one();
            }
        }
    }

    fn wake_all(&self) {
        let registry = self.registry();
        for (topic, ids) in &registry.by_topic {
            for slot in ids.iter().filter_map(|id| registry.slots.get(id)) {
                slot.changed().insert(topic.clone());
                slot.wake.notify_one();
            }
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn add(&mut self, id: u64, topics: &BTreeSet<Topic>) {
        for topic in topics {
            self.by_topic.entry(topic.clone()).or_default().insert(id);
        }
    }

    fn remove(&mut self, id: u64, topics: &BTreeSet<Topic>) {
        for topic in topics {
            if let Some(ids) = self.by_topic.get_mut(topic) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_topic.remove(topic);
                }
            }
        }
    }
}

impl Watch {
    /// Waits until one of its topics changed, and takes all that did since the last call.
    ///
    /// Cancel-safe: what changed stays for the next call.
    pub async fn changed(&mut self) -> BTreeSet<Topic> {
        loop {
            let taken = std::mem::take(&mut *self.slot.changed());
            if !taken.is_empty() {
                return taken;
            }
            self.slot.wake.notified().await;
        }
    }

    /// Watches other topics from now on; changes of those it no longer watches are forgotten.
    pub fn retopic(&mut self, topics: BTreeSet<Topic>) {
        let mut registry = self.watches.registry();
        let gone = self.topics.difference(&topics).cloned().collect();
        let new = topics.difference(&self.topics).cloned().collect();
        registry.remove(self.slot.id, &gone);
        registry.add(self.slot.id, &new);
        drop(registry);
        self.slot.changed().retain(|topic| topics.contains(topic));
        self.topics = topics;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut registry = self.watches.registry();
        registry.slots.remove(&self.slot.id);
        registry.remove(self.slot.id, &self.topics);
        self.watches.0.held.dec();
    }
}

impl Slot {
    fn changed(&self) -> MutexGuard<'_, BTreeSet<Topic>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn watches() -> Watches {
        Watches::new(IntGauge::new("held", "held").expect("a valid name"))
    }

    fn now(watch: &mut Watch) -> Option<BTreeSet<Topic>> {
        match pin!(watch.changed()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(changed) => Some(changed),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_watch_wakes_for_its_topics_only_and_once() {
        let watches = watches();
        let mut watch = watches.subscribe([Topic::Nodes, Topic::Intentions].into());
        watches.wake(&[Topic::Names].into());
        assert_eq!(now(&mut watch), None, "not its topic");
        watches.wake(&[Topic::Nodes].into());
        watches.wake(&[Topic::Nodes, Topic::Intentions, Topic::Names].into());
        assert_eq!(now(&mut watch), Some([Topic::Nodes, Topic::Intentions].into()));
        assert_eq!(now(&mut watch), None, "taken once");
        watch.retopic([Topic::Names].into());
        watches.wake(&[Topic::Nodes].into());
        assert_eq!(now(&mut watch), None, "no longer its topic");
        watches.wake_all();
        assert_eq!(now(&mut watch), Some([Topic::Names].into()));
        drop(watch);
        assert_eq!(watches.0.held.get(), 0);
        assert!(watches.registry().by_topic.is_empty(), "nothing is left behind");
    }
}
