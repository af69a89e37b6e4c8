//! What one client may see: every list and every object passes here before it is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hawser_api::error::ApiError;
use hawser_api::json::HealthCheck;
use hawser_core::acl::{ANONYMOUS_ACCESSOR, Access, Authorizer, DefaultPolicy, Denied, Resource};
use hawser_core::authorize;
use hawser_core::entry::{EntryKey, Kind};
use hawser_core::intention::{Pair, Side};

/// The client's rights, and whether anything was held back from it.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    may: Arc<Authorizer>,
    hid: Arc<AtomicBool>,
}

impl Sight {
    pub(crate) fn new(may: Arc<Authorizer>) -> Self {
        Self { may, hid: Arc::default() }
    }

    /// Sees nothing.
    pub(crate) fn nothing() -> Self {
        Self::new(Arc::new(Authorizer::new("".into(), DefaultPolicy::Deny, [])))
    }

    /// Sees everything: access control is off.
    pub(crate) fn off() -> Self {
        Self::new(Arc::new(Authorizer::off()))
    }

    /// What the client may do.
    pub(crate) fn may(&self) -> &Authorizer {
        &self.may
    }

    /// Whether to tell the client that something was held back. Those without a token are not
    /// told: it would tell them that there is something.
    pub(crate) fn has_hidden(&self) -> bool {
        self.hid.load(Ordering::Relaxed) && &**self.may.accessor() != ANONYMOUS_ACCESSOR
    }

    /// Whether `service` is shown.
    pub(crate) fn service(&self, service: &str) -> bool {
        self.noted(self.may.service_read(service))
    }

    /// Whether `node` is shown.
    pub(crate) fn node(&self, node: &str) -> bool {
        self.noted(self.may.node_read(node))
    }

    /// Whether a key is shown.
    pub(crate) fn key(&self, key: &str) -> bool {
        self.noted(self.may.key_read(key))
    }

    /// Whether the sessions of `node` are shown.
    pub(crate) fn session(&self, node: &str) -> bool {
        self.noted(self.may.may(Resource::Session, Access::Read, node))
    }

    /// Whether the events called `name` are shown.
    pub(crate) fn event(&self, name: &str) -> bool {
        self.noted(self.may.may(Resource::Event, Access::Read, name))
    }

    /// Whether a check is shown: both its node and its service must be.
    pub(crate) fn check(&self, check: &HealthCheck) -> bool {
        let service = &check.service_name;
        self.node(&check.node) && (service.is_empty() || self.service(service))
    }

    /// Whether the intention about `pair` is shown: to those who manage either side of it.
    pub(crate) fn intention(&self, pair: &Pair) -> bool {
        let reads = |side: &Side| self.may.intention_read(&side.to_string());
        self.noted(reads(&pair.destination) || reads(&pair.source))
    }

    /// Whether the config entry called `key` is shown.
    pub(crate) fn entry(&self, key: &EntryKey) -> bool {
        self.noted(authorize::entry_read(&self.may, key))
    }

    /// Whether the intentions to `destination` are shown together.
    pub(crate) fn destination(&self, destination: &Side) -> bool {
        self.noted(self.may.intention_read(&destination.to_string()))
    }

    /// Whether the config entry called `key` may be asked for.
    pub(crate) fn demand_entry(&self, key: &EntryKey) -> Result<(), ApiError> {
        match (authorize::entry_read(&self.may, key), key.kind) {
            (true, _) => Ok(()),
            (false, Kind::ExportedServices | Kind::JwtProvider | Kind::Mesh) => {
                self.demand(Resource::Mesh, Access::Read, "")
            }
            (false, Kind::RequestLimit) => self.demand(Resource::Operator, Access::Read, ""),
            (false, _) => self.demand(Resource::Service, Access::Read, &key.name),
        }
    }

    /// Whether intentions about `side` may be asked for.
    pub(crate) fn demand_intention(&self, side: &Side, access: Access) -> Result<(), ApiError> {
        let name = side.to_string();
        let may = match access {
            Access::Write => self.may.intention_write(&name),
            _ => self.may.intention_read(&name),
        };
        if may {
            return Ok(());
        }
        let (accessor, name) = (self.may.accessor().clone(), Some(name.into()));
        Err(denied(&Denied { accessor, resource: Resource::Intention, access, name }))
    }

    /// Whether `access` on `name` is allowed.
    pub(crate) fn demand(
        &self,
        resource: Resource,
        access: Access,
        name: &str,
    ) -> Result<(), ApiError> {
        self.may.demand(resource, access, name).map_err(|why| denied(&why))
    }

    fn noted(&self, is_shown: bool) -> bool {
        if !is_shown {
            self.hid.store(true, Ordering::Relaxed);
        }
        is_shown
    }
}

/// A lack of permission, as clients of Consul know it.
pub(crate) fn denied(why: &Denied) -> ApiError {
    ApiError::Forbidden(why.to_string())
}
