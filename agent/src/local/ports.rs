//! Mesh ports: an instance keeps the port that it was once given.

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener};
use std::ops::RangeInclusive;

use hawser_core::name::InstanceId;

/// Which instance has which port, those that are gone included, in case they come back.
#[derive(Default)]
pub(super) struct Ports(BTreeMap<InstanceId, u16>);

impl Ports {
    /// The ports as they were kept.
    pub(super) fn new(kept: BTreeMap<InstanceId, u16>) -> Self {
        Self(kept)
    }

    /// All of them, for keeping.
    pub(super) fn all(&self) -> &BTreeMap<InstanceId, u16> {
        &self.0
    }

    /// The port of `id`: the one it had, or one that nobody uses, or one whose owner is gone;
    /// none when the range is used up. `taken` are the ports of the other living instances.
    pub(super) fn choose(
        &mut self,
        id: &InstanceId,
        range: &RangeInclusive<u16>,
        bind: IpAddr,
        taken: &BTreeMap<u16, InstanceId>,
    ) -> Option<u16> {
        let held = self.0.get(id).copied();
        if let Some(port) = held.filter(|port| range.contains(port) && !taken.contains_key(port)) {
            return Some(port);
        }
        let is_free =
            |port: &u16| !taken.contains_key(port) && TcpListener::bind((bind, *port)).is_ok();
        let is_remembered = |port: &u16| self.0.values().any(|held| held == port);
        let fresh = range.clone().find(|port| !is_remembered(port) && is_free(port));
        let port = fresh.or_else(|| range.clone().find(is_free))?;
        self.0.retain(|_, held| *held != port);
        self.0.insert(id.clone(), port);
        Some(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_kept_and_only_those_of_the_gone_are_given_again() {
        let bind = IpAddr::from([127, 0, 0, 1]);
        // A range of the system's own choice, so that the test disturbs nobody.
        let holder = TcpListener::bind((bind, 0)).expect("a free port");
        let busy = holder.local_addr().expect("bound").port();
        let id = |text: &str| text.parse::<InstanceId>().expect("an id");
        let mut ports = Ports::default();
        let none = BTreeMap::new();
        assert_eq!(ports.choose(&id("a"), &(busy..=busy), bind, &none), None, "in use by another");
        drop(holder);
        assert_eq!(ports.choose(&id("a"), &(busy..=busy), bind, &none), Some(busy));
        let again = TcpListener::bind((bind, busy)).expect("free");
        assert_eq!(ports.choose(&id("a"), &(busy..=busy), bind, &none), Some(busy), "its own");
        drop(again);
        let taken = BTreeMap::from([(busy, id("a"))]);
        assert_eq!(ports.choose(&id("b"), &(busy..=busy), bind, &taken), None, "used up");
        assert_eq!(ports.choose(&id("b"), &(busy..=busy), bind, &none), Some(busy), "a is gone");
        assert_eq!(ports.all().len(), 1);
    }
}
