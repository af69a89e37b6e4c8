//! An upstream's ports: one that it was asked for by name, or what its connections turn out to speak.

use std::rc::Rc;
use std::sync::Arc;

use hawser_core::catalog::Protocol;
use hawser_core::view::ServiceView;
use tokio::net::TcpStream;

use super::Port;
use crate::detect::detect;
use crate::select::Selector;

/// A service as a view has it, and as it is through a selector.
pub(super) type Seen = (Arc<ServiceView>, Arc<ServiceView>);

impl Port {
    /// `service` as it is through this port: the same one for as long as the view's is.
    pub(super) fn seen(&self, service: Arc<ServiceView>) -> Arc<ServiceView> {
        let Some(selector) = &self.selector else { return service };
        if let Some((of, seen)) = &*self.seen.borrow()
            && Arc::ptr_eq(of, &service)
        {
            return seen.clone();
        }
        let seen = Arc::new(selector.of(&service));
        *self.seen.borrow_mut() = Some((service, seen.clone()));
        seen
    }

    /// The port for the requests that are spoken on `socket`; none where that is bytes.
    pub(super) async fn detected(&self, socket: &TcpStream) -> Option<Rc<Self>> {
        match detect(socket, self.context.limits.detect).await {
            Ok(Protocol::Tcp) | Err(_) => None,
            Ok(protocol) => Some(self.speaking(protocol)),
        }
    }

    fn speaking(&self, protocol: Protocol) -> Rc<Self> {
        if let Some(known) = self.speaking.borrow().get(&protocol) {
            return known.clone();
        }
        let port = Self::new(
            self.context.clone(),
            self.service.clone(),
            self.instance.clone(),
            self.destination.clone(),
            self.usage.clone(),
            Some(Rc::new(Selector::Detected(protocol))),
        );
        port.identify(self.identity.borrow().as_ref());
        port.refresh();
        let port = Rc::new(port);
        self.speaking.borrow_mut().insert(protocol, port.clone());
        port
    }

    /// The ports for what was detected so far.
    pub(super) fn spoken_here(&self) -> Vec<Rc<Self>> {
        self.speaking.borrow().values().cloned().collect()
    }
}
