//! The watchlist: open connections whose right to be open is looked at again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use hawser_core::clock::UnixTime;
use hawser_core::intention::{self, Decision};
use hawser_core::name::ServiceName;
use hawser_core::reason::Reason;
use hawser_core::view::View;
use hawser_identity::{Anchors, Proven};
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;

/// What decided whether a caller may call.
pub(crate) struct Policy {
    pub(crate) rule: intention::Reason,
    /// The intention's id; none where none decided.
    pub(crate) id: Option<Arc<str>>,
}

/// One open mTLS connection.
pub(crate) struct Watched {
    /// Who is at the other end.
    pub(crate) peer: Proven,
    /// The chain that proved it, to be proved again when the roots change.
    chain: Vec<CertificateDer<'static>>,
    /// The service on this host that is called; none for connections that this host made.
    destination: Option<ServiceName>,
    /// Why the peer may not call now; none when it may.
    refusal: Cell<Option<Reason>>,
    /// What decided that; none for connections that this host made.
    policy: RefCell<Option<Rc<Policy>>>,
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
            intention::Reason::Intention(pair) => {
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
}

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
    /// Watches a connection to or from `peer` until the answer is dropped.
    pub(crate) fn watch(
        self: &Rc<Self>,
        peer: Proven,
        chain: Vec<CertificateDer<'static>>,
        verdict: Option<(&ServiceName, &Decision)>,
    ) -> OnList {
        let number = self.next.get();
        self.next.set(number + 1);
        self.quiet_until.set(self.quiet_until.get().min(peer.validity.not_after));
        let watched = Rc::new(Watched {
            peer,
            chain,
            destination: verdict.map(|(destination, _)| destination.clone()),
            refusal: Cell::new(verdict.and_then(|(_, decision)| refusal(decision))),
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
            let decision = view.decide(&watched.peer.id, destination);
            let refusal = refusal(&decision);
            watched.note(view, decision.reason);
            if watched.refusal.replace(refusal).is_none() && refusal.is_some() {
                watched.cut();
            }
        }
    }

    /// Proves every peer anew under changed roots, and cuts those that fail.
    pub(crate) fn prove(&self, anchors: &Anchors) {
        let now = crate::clock::wall();
        for watched in self.open.borrow().values() {
            if anchors.verify(&watched.chain, now).is_err() {
                watched.cut();
            }
        }
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

/// The mesh's word for a decision that does not allow.
fn refusal(decision: &Decision) -> Option<Reason> {
    if decision.is_allowed() {
        return None;
    }
    Some(match decision.reason {
        intention::Reason::NotExported => Reason::NotExported,
        intention::Reason::Intention(_) | intention::Reason::Default => Reason::IntentionDenied,
    })
}
