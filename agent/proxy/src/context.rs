//! What everything in one worker shares: its limits, its view, its report, its counts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hawser_core::budget::Budget;
use hawser_core::catalog::Locality;
use hawser_core::entry::Target;
use hawser_core::jwt::KeyRing;
use hawser_core::name::ServiceName;
use hawser_core::view::View;
use hawser_http1::server::Settings;
use hyper_util::rt::TokioTimer;
use rand::Rng as _;
use rand::rngs::SmallRng;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Monotonic;
use crate::gateways::Gateways;
use crate::handshakes::Handshakes;
use crate::http::LocalExecutor;
use crate::limits::Limits;
use crate::report::Local;
use crate::socket::Buffers;
use crate::trailers::Trailers;
use crate::watch::Watchlist;

/// What everything in one worker needs.
pub(crate) struct Context {
    pub(crate) limits: Limits,
    /// What HTTP/1.1 connections of callers, of applications here, and to applications share.
    pub(crate) http1: Http1,
    pub(crate) locality: Locality,
    pub(crate) clock: Monotonic,
    pub(crate) view: RefCell<Arc<View>>,
    pub(crate) keys: RefCell<Arc<KeyRing>>,
    /// What the view lets pass behind bodies.
    pub(crate) trailers: RefCell<Rc<Trailers>>,
    pub(crate) report: Local,
    pub(crate) buffers: Arc<Buffers>,
    pub(crate) watched: Rc<Watchlist>,
    pub(crate) gateways: Gateways,
    pub(crate) budgets: Budgets,
    pub(crate) handshakes: Handshakes,
    pub(crate) random: RefCell<SmallRng>,
    /// Cancelled: accept nothing more, finish what is open.
    pub(crate) drain: CancellationToken,
    /// Whether another process accepts in this one's place: what is open need not hurry then.
    pub(crate) is_succeeded: Arc<AtomicBool>,
    /// The connections.
    pub(crate) tracker: TaskTracker,
    pub(crate) connections: Cell<usize>,
    pub(crate) connections_max: usize,
    pub(crate) requests: Rc<Cell<usize>>,
    pub(crate) requests_max: usize,
    /// Copies of requests under way.
    pub(crate) mirrors: Rc<Cell<usize>>,
}

/// Retry budgets: one for each caller and target, whichever way leads there.
#[derive(Default)]
pub(crate) struct Budgets(RefCell<BTreeMap<CallerAndTarget, Weak<RefCell<Budget>>>>);

type CallerAndTarget = (ServiceName, Target);

impl Budgets {
    pub(crate) fn of(&self, caller: &ServiceName, target: &Target) -> Rc<RefCell<Budget>> {
        let mut all = self.0.borrow_mut();
        all.retain(|_, budget| budget.strong_count() > 0);
        let key = (caller.clone(), target.clone());
        let known = all.get(&key).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let budget = Rc::<RefCell<Budget>>::default();
            all.insert(key, Rc::downgrade(&budget));
            budget
        })
    }
}

/// What HTTP/1.1 connections share.
pub(crate) struct Http1 {
    pub(crate) inbound: Settings,
    pub(crate) outbound: Settings,
    /// Of streams between proxies.
    pub(crate) between: Settings,
    pub(crate) client: Rc<hawser_http1::Limits>,
}

impl Http1 {
    pub(crate) fn new(limits: &Limits) -> Self {
        let (limits, date) = (Rc::new(limits.http1()), Rc::default());
        let settings = |refusal| Settings {
            limits: limits.clone(),
            date: Rc::clone(&date),
            refusal,
            passes_trailers: false,
        };
        let inbound =
            settings("x-hawser-reason: bad_request\r\nx-hawser-decided-by: server_proxy\r\n");
        // Callers close what they do not use, for they know that they have asked for nothing.
        let patient = hawser_http1::Limits { idle: STREAM_IDLE, ..(*limits).clone() };
        let between =
            Settings { limits: Rc::new(patient), passes_trailers: true, ..inbound.clone() };
        Self {
            between,
            inbound,
            outbound: settings(
                "x-hawser-reason: bad_request\r\nx-hawser-decided-by: client_proxy\r\n",
            ),
            client: limits.clone(),
        }
    }
}

/// One request's place under the limit.
pub(crate) struct Slot(Rc<Cell<usize>>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// A connection that is counted.
pub(crate) struct ConnectionHeld(Rc<Context>);

impl Drop for ConnectionHeld {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get().saturating_sub(1));
    }
}

impl Context {
    /// Ends when an idle HTTP/1.1 connection is to be closed.
    ///
    /// Where another process accepts in this one's place, nothing hurries: closing an idle
    /// connection would lose the request that may be on its way in it. So it ends with its next
    /// answer then, which says so.
    pub(crate) async fn idle_ends(&self) {
        self.drain.cancelled().await;
        if self.is_succeeded.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when an HTTP/2 connection must be told to finish: where nothing hurries, once it has
    /// shown by a request, with `has_asked`, that it is used.
    pub(crate) async fn finishing(&self, has_asked: &Notify) {
        self.drain.cancelled().await;
        if self.is_succeeded.load(Ordering::Acquire) {
            has_asked.notified().await;
        }
    }

    /// What may follow the body of a request.
    pub(crate) fn trailers(&self) -> Rc<Trailers> {
        self.trailers.borrow().clone()
    }

    /// Counts a connection beyond the task that accepted it, until the answer is dropped.
    pub(crate) fn hold_connection(self: &Rc<Self>) -> ConnectionHeld {
        self.connections.set(self.connections.get() + 1);
        ConnectionHeld(self.clone())
    }

    /// A place for one more request; none when the limit is reached.
    pub(crate) fn request_slot(&self) -> Option<Slot> {
        let count = self.requests.get();
        (count < self.requests_max).then(|| {
            self.requests.set(count + 1);
            Slot(self.requests.clone())
        })
    }

    /// A place for one more copy of a request; none when there are too many.
    pub(crate) fn mirror_slot(&self) -> Option<Slot> {
        let count = self.mirrors.get();
        (count < MIRRORS_MAX).then(|| {
            self.mirrors.set(count + 1);
            Slot(self.mirrors.clone())
        })
    }

    /// Returns within `span` after `token` is cancelled, at a moment of its own: those who wait
    /// for the same do not all act at once.
    pub(crate) async fn after(&self, token: CancellationToken, span: Duration) {
        token.cancelled().await;
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let wait = self.random.borrow_mut().random_range(0..=millis);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }

    /// Sets what every HTTP/2 server between proxies has.
    pub(crate) fn tune_http2(
        &self,
        builder: &mut hyper::server::conn::http2::Builder<LocalExecutor>,
    ) {
        let limits = &self.limits;
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams)
            .max_header_list_size(limits.header_bytes)
            .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
            .max_local_error_reset_streams(ERROR_RESETS_MAX)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(limits.ping_interval)
            .keep_alive_timeout(limits.ping_timeout);
    }

    /// Sets what every HTTP/2 client has.
    pub(crate) fn tune_http2_client(
        &self,
        builder: &mut hyper::client::conn::http2::Builder<LocalExecutor>,
    ) {
        let limits = &self.limits;
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(limits.header_bytes)
            .initial_max_send_streams(limits.streams as usize)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(limits.ping_interval)
            .keep_alive_timeout(limits.ping_timeout)
            .keep_alive_while_idle(true);
    }

    /// Sets what an HTTP/2 client of another cluster has in place of that: what it waits for may
    /// be cut off as a whole, and without a word.
    pub(crate) fn hasten_pings(
        &self,
        builder: &mut hyper::client::conn::http2::Builder<LocalExecutor>,
    ) {
        builder
            .keep_alive_interval(self.limits.peer_ping_interval)
            .keep_alive_timeout(self.limits.peer_ping_timeout);
    }
}

/// How long a stream between proxies may wait for a request: the caller ends it long before.
const STREAM_IDLE: Duration = Duration::from_secs(24 * 3_600);
/// Copies of requests that one worker has under way: none is worth more than what is copied.
const MIRRORS_MAX: usize = 64;
/// Flow-control windows: enough for a full stream over a region, bounded for a slow reader.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
pub(crate) const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Streams that a peer opened and reset before they were looked at (CVE-2023-44487).
pub(crate) const PENDING_RESETS_MAX: usize = 20;
/// Streams that were reset for the peer's errors (CVE-2025-8671): no honest peer makes many.
pub(crate) const ERROR_RESETS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_of_caller_and_target() {
        let budgets = Budgets::default();
        let target = |service: &str, peer: Option<&str>| Target {
            service: service.parse().expect("a name"),
            peer: peer.map(|peer| peer.parse().expect("a name")),
        };
        let (web, cron) = ("web".parse().expect("a name"), "cron".parse().expect("a name"));
        let db = budgets.of(&web, &target("db", None));
        let cases = [
            (&web, target("db", None), true, "the same, whichever upstream leads there"),
            (&cron, target("db", None), false, "another caller"),
            (&web, target("api", None), false, "another target"),
            (&web, target("db", Some("west")), false, "of another cluster"),
        ];
        for (caller, target, expected, why) in cases {
            assert_eq!(Rc::ptr_eq(&db, &budgets.of(caller, &target)), expected, "{why}");
        }
        db.borrow_mut().request(Duration::ZERO);
        drop(db);
        let _other = budgets.of(&cron, &target("db", None));
        assert_eq!(budgets.0.borrow().len(), 1, "what nobody uses is forgotten");
    }
}
