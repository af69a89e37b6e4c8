//! Why connections through a gateway are open: each reason is decided anew with every view.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use hawser_core::reason::Reason;
use hawser_core::view::View;
use tokio_util::sync::CancellationToken;

use super::route::Permit;

/// The permits by which connections of one worker are open, however many share one.
#[derive(Default)]
pub(crate) struct Permits {
    held: RefCell<BTreeMap<Permit, Held>>,
}

struct Held {
    shared: Rc<Shared>,
    holders: usize,
}

struct Shared {
    cut: CancellationToken,
    why: Cell<Reason>,
}

/// A connection's hold of its permit; given back when dropped.
pub(crate) struct Hold {
    permits: Rc<Permits>,
    permit: Permit,
    shared: Rc<Shared>,
}

impl Hold {
    /// Ends when the permit does.
    pub(crate) async fn ended(&self) -> Reason {
        self.shared.cut.cancelled().await;
        self.shared.why.get()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.permits.held.borrow_mut();
        let Some(entry) = held.get_mut(&self.permit) else { return };
        // A permit that ended and was given again is another.
        if Rc::ptr_eq(&entry.shared, &self.shared) {
            entry.holders -= 1;
            if entry.holders == 0 {
                held.remove(&self.permit);
            }
        }
    }
}

impl Permits {
    /// Holds `permit`, which was decided under the view of now.
    pub(crate) fn hold(self: &Rc<Self>, permit: Permit) -> Hold {
        let mut held = self.held.borrow_mut();
        let entry = held.entry(permit.clone()).or_insert_with(|| Held {
            shared: Rc::new(Shared {
                cut: CancellationToken::new(),
                why: Cell::new(Reason::PolicyCut),
            }),
            holders: 0,
        });
        entry.holders += 1;
        Hold { permits: self.clone(), permit, shared: entry.shared.clone() }
    }

    /// Ends every permit that does not hold under `view`.
    pub(crate) fn decide(&self, view: &View) {
        self.held.borrow_mut().retain(|permit, entry| {
            let holds = permit.holds(view);
            if !holds {
                entry.shared.cut.cancel();
            }
            holds
        });
    }

    /// Ends every permit because the proxy does.
    pub(crate) fn cut_all(&self) {
        for entry in std::mem::take(&mut *self.held.borrow_mut()).into_values() {
            entry.shared.why.set(Reason::Draining);
            entry.shared.cut.cancel();
        }
    }
}
