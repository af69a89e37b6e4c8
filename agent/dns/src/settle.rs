//! Queries that cannot be answered at once: wait for the view, or ask a recursor; all bounded.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_core::dns::Want;
use hawser_core::view::View;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::{Feed, QueryAsk};
use crate::respond::{Client, Responder, Step};
use crate::{recurse, wire};

/// Settles what [`Responder::respond`] could not.
#[derive(Debug)]
pub(crate) struct Settler {
    pub(crate) responder: Responder,
    recursors: Vec<SocketAddr>,
    views: watch::Receiver<Arc<View>>,
    wants: mpsc::Sender<Want>,
    queries: mpsc::Sender<QueryAsk>,
    /// Names that were asked of the agent and how many queries wait for each.
    waiting: Mutex<BTreeMap<Want, usize>>,
    waits: Arc<Semaphore>,
    recursions: Arc<Semaphore>,
}

/// A place among the queries that wait.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

impl Settler {
    pub(crate) fn new(responder: Responder, recursors: Vec<SocketAddr>, feed: Feed) -> Self {
        Self {
            responder,
            recursors,
            views: feed.views,
            wants: feed.wants,
            queries: feed.queries,
            waiting: Mutex::default(),
            waits: Arc::new(Semaphore::new(WAITS_MAX)),
            recursions: Arc::new(Semaphore::new(RECURSIONS_MAX)),
        }
    }

    pub(crate) fn views(&self) -> watch::Receiver<Arc<View>> {
        self.views.clone()
    }

    /// A place for a query that `step` delays; none when too many wait already.
    pub(crate) fn admit(&self, step: &Step) -> Option<Place> {
        let places = match step {
            Step::Recurse => &self.recursions,
            Step::Want(_) | Step::Query(_) | Step::Reply | Step::Silence => &self.waits,
        };
        let place = places.clone().try_acquire_owned().ok().map(Place);
        if place.is_none() {
            self.responder.metrics.overloaded.inc();
        }
        place
    }

    /// Brings `step` to its end: a reply in `out`, or silence.
    pub(crate) async fn settle(
        &self,
        packet: &[u8],
        client: Client,
        step: Step,
        draw: u64,
        out: &mut Vec<u8>,
    ) -> Step {
        match step {
            Step::Want(_) => self.wait(packet, client, draw, out).await,
            Step::Query(name) => self.query(packet, client, name, out).await,
            Step::Recurse => self.recurse(packet, client, out).await,
            Step::Reply | Step::Silence => step,
        }
    }

    /// Asks the agent for what is missing and answers once the view has it.
    async fn wait(&self, packet: &[u8], client: Client, draw: u64, out: &mut Vec<u8>) -> Step {
        let deadline = Instant::now() + WANT_WAIT;
        let mut views = self.views.clone();
        let mut asked: Vec<Asked<'_>> = Vec::new();
        loop {
            let view = views.borrow_and_update().clone();
            let want = match self.responder.respond(packet, client, &view, draw, out) {
                Step::Want(want) => want,
                settled => {
                    self.responder.metrics.wants_answered.inc();
                    return settled;
                }
            };
            if asked.iter().all(|earlier| earlier.want != want) {
                let (is_first, guard) = self.enlist(want.clone());
                asked.push(guard);
                if is_first
                    && !matches!(timeout_at(deadline, self.wants.send(want)).await, Ok(Ok(())))
                {
                    break;
                }
            }
            if !matches!(timeout_at(deadline, views.changed()).await, Ok(Ok(()))) {
                break;
            }
        }
        self.responder.metrics.wants_timed_out.inc();
        self.responder.give_up(packet, out)
    }

    /// Counts one more query that waits for `want`; whether it is the first.
    fn enlist(&self, want: Want) -> (bool, Asked<'_>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(want.clone()).or_default();
        *count += 1;
        (*count == 1, Asked { waiting: &self.waiting, want })
    }

    /// Has the agent ask what the prepared query finds.
    async fn query(
        &self,
        packet: &[u8],
        client: Client,
        name: Box<str>,
        out: &mut Vec<u8>,
    ) -> Step {
        let asked = async {
            let (answer, answered) = oneshot::channel();
            self.queries.send(QueryAsk { name, answer }).await.ok()?;
            answered.await.ok()
        };
        match timeout(QUERY_WAIT, asked).await {
            Ok(Some(found)) => {
                self.responder.metrics.queries_answered.inc();
                self.responder.answer_query(packet, client, &found, out)
            }
            Ok(None) | Err(_) => {
                self.responder.metrics.queries_failed.inc();
                self.responder.give_up(packet, out)
            }
        }
    }

    async fn recurse(&self, packet: &[u8], client: Client, out: &mut Vec<u8>) -> Step {
        let reply = match wire::decode(packet) {
            Ok(query) => recurse::ask(&self.recursors, &query).await,
            Err(_) => None,
        };
        match reply {
            Some(reply) if self.responder.relay(packet, client, &reply, out) => {
                self.responder.metrics.recursed.inc();
                Step::Reply
            }
            _ => {
                self.responder.metrics.recursions_failed.inc();
                self.responder.give_up(packet, out)
            }
        }
    }
}

/// One query's entry among those that wait for a name.
struct Asked<'s> {
    waiting: &'s Mutex<BTreeMap<Want, usize>>,
    want: Want,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.want) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.want);
            }
        }
    }
}

/// How long a query waits for its name to enter the view.
const WANT_WAIT: Duration = Duration::from_secs(1);
/// How long a query waits for what a prepared query finds: programs ask again after 5 s.
const QUERY_WAIT: Duration = Duration::from_secs(3);
/// Queries that wait for the view at once; each wakes once per change of the view.
const WAITS_MAX: usize = 512;
/// Queries that wait for recursors at once; each holds a socket.
const RECURSIONS_MAX: usize = 256;
