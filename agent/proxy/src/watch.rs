//! The watchlist: open connections whose right to be open is looked at again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use hawser_core::clock::UnixTime;
use hawser_core::intention::{self, Decision};
use hawser_core::name::ServiceName;
use hawser_core::permission::Guard;
use hawser_core::reason::Reason;
use hawser_core::spiffe::SpiffeId;
use hawser_core::view::View;
use hawser_identity::{Anchors, Proven};
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

use crate::judge::{Kept, UnderWay};

/// What decided whether a caller may call.
pub(crate) struct Policy {
    pub(crate) rule: intention::Reason,
    /// The intention's id; none where none decided.
    pub(crate) id: Option<Arc<str>>,
}

/// One open mTLS connection, or one stream in it.
pub(crate) struct Watched {
    /// Who is at the other end.
    pub(crate) peer: Rc<Proven>,
    /// The chain that proved it, to be proved again when the roots change.
    chain: Rc<[CertificateDer<'static>]>,
    /// The service on this host that is called; none for connections that this host made.
    destination: Option<ServiceName>,
    /// Whether what is carried are requests.
    is_http: bool,
    /// Why the peer may not call now; none when it may.
    refusal: Cell<Option<Reason>>,
    /// What decided that; none for connections that this host made.
    policy: RefCell<Option<Rc<Policy>>>,
    /// What decides about each request; none where it is decided about all alike.
    guard: RefCell<Option<Arc<Guard>>>,
    /// The requests in it, and what it became.
    pub(crate) under_way: Kept,
    /// Cancelled when the connection must end at once.
    pub(crate) cut: CancellationToken,
    /// Why it was cut.
    why: Cell<Reason>,
}

impl Watched {
    /// Why the peer may not call now; none when it may.
    pub(crate) fn refusal(&self) -> Option<Reason> {
        self.refusal.get()
    }

    /// What decides about each request; none where it is decided about all alike.
    pub(crate) fn guard(&self) -> Option<Arc<Guard>> {
        self.guard.borrow().clone()
    }

    /// Whether each request is decided about by itself.
    pub(crate) fn is_guarded(&self) -> bool {
        self.guard.borrow().is_some()
    }

    pub(crate) fn why(&self) -> Reason {
        self.why.get()
    }

    /// What decided whether the peer may call.
    pub(crate) fn policy(&self) -> Option<Rc<Policy>> {
        self.policy.borrow().clone()
    }

    /// Notes what decided, as of `view`, for those who ask afterwards.
    pub(crate) fn note(&self, view: &View, rule: intention::Reason) {
        if self.policy.borrow().as_ref().is_some_and(|known| known.rule == rule) {
            return;
        }
        let id = match &rule {
            intention::Reason::Intention(pair) | intention::Reason::Requests(pair) => {
                view.intentions.get(pair).map(|row| row.value.id.clone())
            }
            intention::Reason::Default | intention::Reason::NotExported => None,
        };
        *self.policy.borrow_mut() = Some(Rc::new(Policy { rule, id }));
    }

    fn cut(&self) {
        self.why.set(Reason::PolicyCut);
        self.cut.cancel();
    }
}

/// All watched connections of one worker.
#[derive(Default)]
pub(crate) struct Watchlist {
    open: RefCell<BTreeMap<u64, Rc<Watched>>>,
    next: Cell<u64>,
    /// No certificate runs out before this.
    quiet_until: Cell<UnixTime>,
    /// By what peers are proved now; none where nobody is believed.
    anchors: RefCell<Option<Arc<Anchors>>>,
    /// Requests that were cut and have not ended.
    cutting: RefCell<Vec<Cutting>>,
}

/// A request that was cut, its connection, and how many more ticks it has to end.
type Cutting = (Weak<UnderWay>, Rc<Watched>, u8);

/// Takes its connection off the list when dropped; all that the connection became must hold it.
pub(crate) struct OnList {
    list: Rc<Watchlist>,
    number: u64,
    pub(crate) watched: Rc<Watched>,
}

impl Drop for OnList {
    fn drop(&mut self) {
        self.list.open.borrow_mut().remove(&self.number);
    }
}

impl Watchlist {
    /// Watches a connection to or from `peer`, which proved itself by `anchors`, until the answer
    /// is dropped. Where others count by now, it is proved by those once more: a handshake takes
    /// as long as its peer likes.
    ///
    /// # Errors
    /// The [`Reason`] for which it is no longer believed.
    pub(crate) fn watch(
        self: &Rc<Self>,
        peer: Proven,
        chain: Vec<CertificateDer<'static>>,
        ruled: Option<Ruled<'_>>,
        anchors: &Arc<Anchors>,
    ) -> Result<OnList, Reason> {
        let current = self.anchors.borrow().clone().ok_or(Reason::ViewMissing)?;
        if !Arc::ptr_eq(&current, anchors) {
            let proven = current.verify(&chain, crate::clock::wall());
            proven.map_err(|refusal| crate::tls::refusal_reason(&refusal))?;
        }
        Ok(self.enter(Rc::new(peer), chain.into(), ruled))
    }

    /// Watches a stream in the connection `of`, by itself.
    pub(crate) fn watch_stream(self: &Rc<Self>, of: &Watched, ruled: Ruled<'_>) -> OnList {
        self.enter(of.peer.clone(), of.chain.clone(), Some(ruled))
    }

    fn enter(
        self: &Rc<Self>,
        peer: Rc<Proven>,
        chain: Rc<[CertificateDer<'static>]>,
        ruled: Option<Ruled<'_>>,
    ) -> OnList {
        let number = self.next.get();
        self.next.set(number + 1);
        self.quiet_until.set(self.quiet_until.get().min(peer.validity.not_after));
        let watched = Rc::new(Watched {
            peer,
            chain,
            destination: ruled.as_ref().map(|ruled| ruled.destination.clone()),
            is_http: ruled.as_ref().is_some_and(|ruled| ruled.is_http),
            refusal: Cell::new(ruled.as_ref().and_then(Ruled::refusal)),
            guard: RefCell::new(ruled.and_then(|ruled| ruled.guard)),
            under_way: Kept::default(),
            policy: RefCell::default(),
            cut: CancellationToken::new(),
            why: Cell::new(Reason::Ok),
        });
        self.open.borrow_mut().insert(number, watched.clone());
        OnList { list: self.clone(), number, watched }
    }

    /// Decides anew for every connection, and cuts those that were allowed and no longer are.
    pub(crate) fn decide(&self, view: &View) {
        for watched in self.open.borrow().values() {
            let Some(destination) = &watched.destination else { continue };
            let ruled = Ruled::new(view, &watched.peer.id, destination, watched.is_http);
            let refusal = ruled.refusal();
            watched.note(view, ruled.rule());
            if watched.refusal.replace(refusal).is_none() && refusal.is_some() {
                watched.cut();
            }
            let cut = watched.under_way.judge(ruled.guard.as_ref(), view);
            let cutting = cut.into_iter().map(|it| (it, watched.clone(), TICKS_TO_END));
            self.cutting.borrow_mut().extend(cutting);
            watched.guard.replace(ruled.guard);
        }
    }

    /// Proves every peer anew by `anchors`, and cuts those that fail. Without any nobody is
    /// believed.
    pub(crate) fn prove(&self, anchors: Option<&Arc<Anchors>>) {
        self.anchors.replace(anchors.cloned());
        let Some(anchors) = anchors else { return self.cut_all() };
        let now = crate::clock::wall();
        // A connection and its streams, which mostly stand side by side, are proved once.
        let mut last: Option<(&Rc<[CertificateDer<'static>]>, bool)> = None;
        let open = self.open.borrow();
        for watched in open.values() {
            let known = last.filter(|(chain, _)| Rc::ptr_eq(chain, &watched.chain));
            let is_proven = known
                .map_or_else(|| anchors.verify(&watched.chain, now).is_ok(), |(_, known)| known);
            last = Some((&watched.chain, is_proven));
            if !is_proven {
                watched.cut();
            }
        }
    }

    /// Cuts the connections of requests that were cut and do not end: a caller that reads nothing
    /// of an answer would otherwise keep what it sends under way.
    pub(crate) fn tick(&self) {
        self.cutting.borrow_mut().retain_mut(|(request, watched, ticks)| {
            *ticks = ticks.saturating_sub(1);
            let goes_on = request.strong_count() > 0;
            if goes_on && *ticks == 0 {
                watched.cut();
            }
            goes_on && *ticks > 0
        });
    }

    /// Cuts every connection whose peer's certificate has run out.
    pub(crate) fn expire(&self, now: UnixTime) {
        if now < self.quiet_until.get() {
            return;
        }
        let open = self.open.borrow();
        let mut next = UnixTime::from_millis(u64::MAX);
        for watched in open.values() {
            let not_after = watched.peer.validity.not_after;
            if not_after <= now {
                watched.cut();
            } else {
                next = next.min(not_after);
            }
        }
        self.quiet_until.set(next);
    }

    /// Cuts everything.
    pub(crate) fn cut_all(&self) {
        for watched in self.open.borrow().values() {
            watched.why.set(Reason::Draining);
            watched.cut.cancel();
        }
    }
}

/// What a view says of a caller.
pub(crate) struct Ruled<'a> {
    destination: &'a ServiceName,
    decision: Decision,
    guard: Option<Arc<Guard>>,
    is_http: bool,
}

impl<'a> Ruled<'a> {
    /// What `view` says of calls by the owner of `caller` to `destination`.
    pub(crate) fn new(
        view: &View,
        caller: &SpiffeId,
        destination: &'a ServiceName,
        is_http: bool,
    ) -> Self {
        let decision = view.decide(caller, destination);
        let guard = view.guard(&decision).cloned();
        Self { destination, decision, guard, is_http }
    }

    /// What decided it.
    pub(crate) fn rule(&self) -> intention::Reason {
        self.decision.reason.clone()
    }

    /// The mesh's word for why the caller may not connect; none when it may.
    fn refusal(&self) -> Option<Reason> {
        if self.decision.is_allowed() {
            return None;
        }
        match self.decision.reason {
            intention::Reason::NotExported => Some(Reason::NotExported),
            intention::Reason::Requests(_) if !self.is_http => Some(Reason::PermissionsNeedHttp),
            intention::Reason::Requests(_) if self.guard.is_some() => None,
            intention::Reason::Intention(_)
            | intention::Reason::Requests(_)
            | intention::Reason::Default => Some(Reason::IntentionDenied),
        }
    }
}

/// How long a request that was cut may take to end: a second.
const TICKS_TO_END: u8 = 10;
