//! Peering: the clusters that this one exchanges services with, and what each of them exports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use rpds::RedBlackTreeMapSync;

use crate::catalog::{Endpoint, Locality, Meta, Protocol, Row, upsert};
use crate::clock::Index;
use crate::name::{Datacenter, PeerName, ServiceName};
use crate::revocation::Revoked;
use crate::spiffe::TrustDomain;

/// How a peering stands, in Consul's words.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PeerState {
    /// A token was given out and not used yet.
    Pending,
    /// Both know each other, and their servers have not spoken since.
    Establishing,
    /// Their servers hear from each other.
    Active,
    /// The peer's servers are silent. What was last known of it stays in use, after what is known
    /// better.
    Failing,
    /// The peer has ended the peering. Nothing of it is used any more.
    Terminated,
}

impl PeerState {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Establishing, Self::Active, Self::Failing, Self::Terminated];

    /// Consul's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Establishing => "ESTABLISHING",
            Self::Active => "ACTIVE",
            Self::Failing => "FAILING",
            Self::Terminated => "TERMINATED",
        }
    }
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no state of a peering.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it is no state of a peering")]
pub struct UnknownPeerState;

impl FromStr for PeerState {
    type Err = UnknownPeerState;

    fn from_str(word: &str) -> Result<Self, UnknownPeerState> {
        Self::ALL.into_iter().find(|state| state.as_str() == word).ok_or(UnknownPeerState)
    }
}

/// One peering, as this cluster knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peering {
    /// A UUID by which the peer's cluster names it.
    pub id: Arc<str>,
    /// What this cluster calls the peer.
    pub name: PeerName,
    /// Free pairs.
    pub meta: Meta,
    /// How it stands.
    pub state: PeerState,
    /// SHA-256 of the secret of the last token given out; none when the peer gave out the token.
    pub invitation: Option<[u8; 32]>,
    /// Who the peer is, once that is known.
    pub remote: Option<Remote>,
}

impl Peering {
    /// Whether this cluster's leader dials the peer, and not the other way round.
    pub fn dials(&self) -> bool {
        self.invitation.is_none()
    }
}

/// Who a peer is, as it said under its own identity.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Remote {
    /// The UUID of the peering in the peer's cluster.
    pub peering: Arc<str>,
    /// Its trust domain: never changes.
    pub trust_domain: TrustDomain,
    /// Its datacenter: never changes.
    pub datacenter: Datacenter,
    /// What the peer calls this cluster: part of the names that its gateways route by.
    pub calls_us: PeerName,
    /// Who vouches for its servers, DER.
    pub server_roots: Vec<Arc<[u8]>>,
    /// Who vouches for its services, DER.
    pub roots: Vec<Arc<[u8]>>,
    /// Which of its services and nodes it revoked.
    pub revoked: Arc<Revoked>,
    /// Where its servers listen, `host:port`.
    pub servers: Vec<Arc<str>>,
    /// Its mesh gateways.
    pub gateways: Vec<PeerGateway>,
    /// The round trip between the leaders in milliseconds, in steps of powers of two.
    pub rtt_ms: Option<u32>,
}

/// A mesh gateway of a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerGateway {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where it stands.
    pub locality: Locality,
}

/// A service of a peer: the two names together.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerService {
    /// The peer.
    pub peer: PeerName,
    /// The service in it.
    pub service: ServiceName,
}

impl fmt::Display for PeerService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service, self.peer)
    }
}

/// What a peer exports of one service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Import {
    /// The service.
    pub service: ServiceName,
    /// What its instances speak.
    pub protocol: Protocol,
    /// Its instances, healthy or not, by node and id.
    pub endpoints: Arc<[Endpoint]>,
}

/// What a peer said of itself and its services in one message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerUpdate {
    /// Which peering.
    pub name: PeerName,
    /// The peering's id here: an update of one that was removed and made anew is refused.
    pub id: Arc<str>,
    /// Who the peer is now; none when that is as before.
    pub remote: Option<Remote>,
    /// Whether services that `put` does not have are exported no more.
    pub is_snapshot: bool,
    /// Services as they are now.
    pub put: Vec<Import>,
    /// Services that are exported no more.
    pub drop: Vec<ServiceName>,
}

/// All peerings, and all services that peers export.
#[derive(Clone, Debug, Default)]
pub struct Peerings {
    rows: RedBlackTreeMapSync<PeerName, Row<Peering>>,
    imports: RedBlackTreeMapSync<PeerService, Row<Import>>,
    index: Index,
    imports_index: Index,
}

/// What a change to peerings touched.
#[derive(Clone, Debug, Default)]
pub(crate) struct PeeringTouched {
    pub(crate) peers: bool,
    pub(crate) imports: BTreeSet<ServiceName>,
}

impl Peerings {
    /// The last entry of the log that changed a peering.
    pub fn index(&self) -> Index {
        self.index
    }

    /// The last entry of the log that changed an imported service.
    pub fn imports_index(&self) -> Index {
        self.imports_index
    }

    /// Every peering, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Row<Peering>> {
        self.rows.values()
    }

    /// One peering.
    pub fn get(&self, name: &PeerName) -> Option<&Row<Peering>> {
        self.rows.get(name)
    }

    /// The peering with the cluster of `trust_domain`.
    pub fn with(&self, trust_domain: &TrustDomain) -> Option<&Row<Peering>> {
        let is_it = |row: &&Row<Peering>| {
            row.value.remote.as_ref().is_some_and(|remote| remote.trust_domain == *trust_domain)
        };
        self.rows.values().find(is_it)
    }

    /// Every imported service, by peer and name.
    pub fn imports(&self) -> impl Iterator<Item = (&PeerName, &Row<Import>)> {
        self.imports.iter().map(|(key, row)| (&key.peer, row))
    }

    /// One imported service.
    pub fn import(&self, key: &PeerService) -> Option<&Row<Import>> {
        self.imports.get(key)
    }

    /// The peers that export a service called `service` and have not ended the peering: nearest
    /// first by round trip, then by name. Those whose servers are silent come last.
    pub fn exporters(&self, service: &ServiceName) -> Vec<&Peering> {
        let mut peers: Vec<&Peering> = self
            .rows
            .values()
            .map(|row| &*row.value)
            .filter(|peer| peer.state != PeerState::Terminated)
            .filter(|peer| {
                let key = PeerService { peer: peer.name.clone(), service: service.clone() };
                self.imports.contains_key(&key)
            })
            .collect();
        peers.sort_by_key(|peer| {
            let rtt = peer.remote.as_ref().and_then(|remote| remote.rtt_ms);
            (peer.state == PeerState::Failing, rtt.unwrap_or(u32::MAX))
        });
        peers
    }

    pub(crate) fn put(&mut self, peering: Peering, at: Index, touched: &mut PeeringTouched) {
        if self.rows.get(&peering.name).is_some_and(|row| *row.value == peering) {
            return;
        }
        if peering.state == PeerState::Terminated {
            self.drop_imports(&peering.name, at, touched);
        }
        upsert(&mut self.rows, peering.name.clone(), peering, at);
        self.index = at;
        touched.peers = true;
    }

    pub(crate) fn remove(&mut self, name: &PeerName, at: Index, touched: &mut PeeringTouched) {
        if self.rows.remove_mut(name) {
            self.drop_imports(name, at, touched);
            self.index = at;
            touched.peers = true;
        }
    }

    pub(crate) fn put_import(
        &mut self,
        peer: &PeerName,
        import: Import,
        at: Index,
        touched: &mut PeeringTouched,
    ) {
        let key = PeerService { peer: peer.clone(), service: import.service.clone() };
        if self.imports.get(&key).is_some_and(|row| *row.value == import) {
            return;
        }
        touched.imports.insert(import.service.clone());
        upsert(&mut self.imports, key, import, at);
        self.imports_index = at;
    }

    pub(crate) fn drop_import(
        &mut self,
        peer: &PeerName,
        service: &ServiceName,
        at: Index,
        touched: &mut PeeringTouched,
    ) {
        let key = PeerService { peer: peer.clone(), service: service.clone() };
        if self.imports.remove_mut(&key) {
            touched.imports.insert(key.service);
            self.imports_index = at;
        }
    }

    /// The services that `peer` exports.
    pub fn imported_from<'a>(
        &'a self,
        peer: &'a PeerName,
    ) -> impl Iterator<Item = &'a ServiceName> + 'a {
        self.imports.keys().filter(move |key| key.peer == *peer).map(|key| &key.service)
    }

    fn drop_imports(&mut self, peer: &PeerName, at: Index, touched: &mut PeeringTouched) {
        let services: Vec<ServiceName> = self.imported_from(peer).cloned().collect();
        for service in services {
            self.drop_import(peer, &service, at, touched);
        }
    }

    /// Puts rows back as a snapshot holds them.
    pub fn restore(
        rows: impl IntoIterator<Item = Row<Peering>>,
        imports: impl IntoIterator<Item = (PeerName, Row<Import>)>,
        index: Index,
        imports_index: Index,
    ) -> Self {
        let key =
            |peer, row: &Row<Import>| PeerService { peer, service: row.value.service.clone() };
        Self {
            rows: rows.into_iter().map(|row| (row.value.name.clone(), row)).collect(),
            imports: imports.into_iter().map(|(peer, row)| (key(peer, &row), row)).collect(),
            index,
            imports_index,
        }
    }
}

/// Which services each peer may use: what `exported-services` says, name by name.
pub type Exports = BTreeMap<ServiceName, BTreeSet<PeerName>>;
