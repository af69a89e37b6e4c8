//! The ports of one instance behind one mTLS listener: which of them a connection is for.

use std::rc::Rc;

use hawser_core::address::Address;
use hawser_core::reason::Reason;

use super::Port;
use crate::NamedPort;
use crate::select::{Selector, Unknown};

impl Port {
    /// Takes over the ports that the instance has by name now.
    pub(crate) fn set_ports(&self, named: &[NamedPort]) {
        let mut others = self.others.borrow_mut();
        others.retain(|selector, other| match selector {
            Selector::Port(name) => named.iter().any(|port| port.name == *name),
            Selector::Detected(_) => {
                other.retarget(&self.application());
                true
            }
        });
        for port in named {
            let selector = Selector::Port(port.name.clone());
            let other =
                others.entry(selector).or_insert_with(|| Rc::new(self.beside(&port.application)));
            other.retarget(&port.application);
            other.spoken.set(port.protocol);
        }
    }

    /// The port that a connection is for whose caller offers `offered`.
    ///
    /// # Errors
    /// [`Reason::PortUnknown`]: the instance has none of that name, or it is not said so that this
    /// version can read it.
    pub(super) fn selected<'a>(
        self: &Rc<Self>,
        offered: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Rc<Self>, Reason> {
        match Selector::among(offered).map_err(|Unknown| Reason::PortUnknown)? {
            None => Ok(self.clone()),
            Some(Selector::Detected(_)) if !self.detects() => Ok(self.clone()),
            Some(selector @ Selector::Detected(protocol)) => {
                let mut others = self.others.borrow_mut();
                let other = others.entry(selector).or_insert_with(|| {
                    let other = self.beside(&self.application());
                    other.spoken.set(Some(protocol));
                    Rc::new(other)
                });
                Ok(other.clone())
            }
            Some(selector) => {
                self.others.borrow().get(&selector).cloned().ok_or(Reason::PortUnknown)
            }
        }
    }

    /// Whether what is spoken here is detected.
    fn detects(&self) -> bool {
        let view = self.context.view.borrow();
        let service = view.services.get(&self.service);
        service.is_some_and(|service| service.chain.policies.detects_protocol)
    }

    /// Whether requests, and not just bytes, are seen here.
    pub(super) fn is_http(&self) -> bool {
        if let Some(spoken) = self.spoken.get() {
            return spoken.is_http();
        }
        let view = self.context.view.borrow();
        let service = view.services.get(&self.service);
        service.is_some_and(|service| service.chain.protocol.is_http())
    }

    /// Another port of the same instance: what counts for the instance counts for both.
    fn beside(&self, application: &Address) -> Self {
        Self::new(
            self.context.clone(),
            self.service.clone(),
            self.instance.clone(),
            application.clone(),
            self.open.clone(),
            self.intake.clone(),
        )
    }
}
