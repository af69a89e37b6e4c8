//! Whom to trust for what: each role has a root set of its own, never a union.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::clock::UnixTime;
use hawser_core::name::Datacenter;
use hawser_core::revocation::Revoked;
use hawser_core::spiffe::{Role, SpiffeId, TrustDomain};
use rustls::pki_types::{self, CertificateDer, TrustAnchor};
use webpki::{ExtendedKeyUsageValidator, KeyPurposeIdIter};

use crate::certificate::{self, Proven, find_pinned};
use crate::provider::ALGORITHMS;
use crate::refusal::Refusal;

/// The roots of each role that may speak, in one trust domain and datacenter, and in those of
/// peers: each trust domain is vouched for by its own roots only.
#[derive(Clone)]
pub struct Anchors {
    /// None while only a pin is known, and the trust domain is yet to be learnt from a server.
    trust_domain: Option<TrustDomain>,
    datacenter: Datacenter,
    servers: Roots,
    agents: Roots,
    services: Roots,
    peers: Vec<Foreign>,
    revoked: Arc<Revoked>,
    malformed: usize,
}

/// The roots of one peer.
#[derive(Clone)]
struct Foreign {
    trust_domain: TrustDomain,
    datacenter: Datacenter,
    servers: Roots,
    services: Roots,
    revoked: Arc<Revoked>,
}

/// Who vouches for one role.
#[derive(Clone)]
enum Roots {
    /// The role may not speak here.
    None,
    Known(Vec<TrustAnchor<'static>>),
    /// SHA-256 of the public key of a root that the peer itself must show.
    Pinned([u8; 32]),
}

impl Anchors {
    /// Trusts nobody yet.
    pub fn new(trust_domain: TrustDomain, datacenter: Datacenter) -> Self {
        Self { trust_domain: Some(trust_domain), ..Self::nowhere(datacenter) }
    }

    /// Trusts servers by the `pin` of their root alone, in whatever trust domain: for a host that
    /// joins.
    pub fn pinned(pin: [u8; 32], datacenter: Datacenter) -> Self {
        Self { servers: Roots::Pinned(pin), ..Self::nowhere(datacenter) }
    }

    fn nowhere(datacenter: Datacenter) -> Self {
        let (servers, agents, services) = (Roots::None, Roots::None, Roots::None);
        Self {
            trust_domain: None,
            datacenter,
            servers,
            agents,
            services,
            peers: Vec::new(),
            revoked: Arc::default(),
            malformed: 0,
        }
    }

    /// Trusts servers by these roots, DER. One that does not parse vouches for nobody.
    #[must_use]
    pub fn servers<'a>(mut self, roots: impl IntoIterator<Item = &'a [u8]>) -> Self {
        self.servers = self.known(roots);
        self
    }

    /// Trusts agents by these roots, DER. One that does not parse vouches for nobody.
    #[must_use]
    pub fn agents<'a>(mut self, roots: impl IntoIterator<Item = &'a [u8]>) -> Self {
        self.agents = self.known(roots);
        self
    }

    /// Trusts services by these roots, DER. One that does not parse vouches for nobody.
    #[must_use]
    pub fn services<'a>(mut self, roots: impl IntoIterator<Item = &'a [u8]>) -> Self {
        self.services = self.known(roots);
        self
    }

    /// Believes none of these, of this trust domain, whoever vouches for them.
    #[must_use]
    pub fn revoked(mut self, revoked: Arc<Revoked>) -> Self {
        self.revoked = revoked;
        self
    }

    /// Trusts services of a peer by these roots, DER, but for those that it `revoked`. A peer that says it is of this very trust
    /// domain, or of another peer's, gains nothing: the first that is known counts.
    #[must_use]
    pub fn peer_services<'a>(
        mut self,
        trust_domain: TrustDomain,
        datacenter: Datacenter,
        roots: impl IntoIterator<Item = &'a [u8]>,
        revoked: Arc<Revoked>,
    ) -> Self {
        let (servers, services) = (Roots::None, self.known(roots));
        self.peers.push(Foreign { trust_domain, datacenter, servers, services, revoked });
        self
    }

    /// Trusts servers of a peer by these roots, DER, with the same caution.
    #[must_use]
    pub fn peer_servers<'a>(
        mut self,
        trust_domain: TrustDomain,
        datacenter: Datacenter,
        roots: impl IntoIterator<Item = &'a [u8]>,
    ) -> Self {
        let (servers, services) = (self.known(roots), Roots::None);
        let revoked = Arc::default();
        self.peers.push(Foreign { trust_domain, datacenter, servers, services, revoked });
        self
    }

    fn known<'a>(&mut self, roots: impl IntoIterator<Item = &'a [u8]>) -> Roots {
        let mut known = Vec::new();
        for root in roots {
            match webpki::anchor_from_trusted_cert(&CertificateDer::from(root)) {
                Ok(anchor) => known.push(anchor.to_owned()),
                Err(_) => self.malformed += 1,
            }
        }
        Roots::Known(known)
    }

    /// How many roots did not parse: worth an alarm.
    pub fn malformed(&self) -> usize {
        self.malformed
    }

    /// Proves who shows `chain`, a leaf and then intermediates, if all of it holds at `now`.
    ///
    /// # Errors
    /// [`Refusal`]: anything but one identity of this trust domain and datacenter, in a role that
    /// may speak here, vouched for by that role's roots.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<Proven, Refusal> {
        let (leaf, intermediates) = chain.split_first().ok_or(Refusal::Absent)?;
        self.verify_parts(leaf, intermediates, now)
    }

    /// [`Anchors::verify`] of a chain in two parts, as TLS has it.
    pub(crate) fn verify_parts(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Proven, Refusal> {
        let octets = intermediates.iter().fold(leaf.len(), |sum, next| sum + next.len());
        if intermediates.len() + 1 > CHAIN_MAX || octets > CHAIN_OCTETS_MAX {
            return Err(Refusal::ChainTooLong);
        }
        let parsed = certificate::parse(leaf)?;
        let id = certificate::only_id(&parsed)?;
        let (roots, revoked) = self.believed(&id)?;
        let pinned;
        let roots = match roots {
            Roots::None => return Err(Refusal::Role),
            Roots::Known(roots) => &roots[..],
            Roots::Pinned(pin) => {
                let root = find_pinned(intermediates, pin).ok_or(Refusal::UnknownIssuer)?;
                pinned = [webpki::anchor_from_trusted_cert(root)?];
                &pinned[..]
            }
        };
        let validity = certificate::check_fitness(&parsed)?;
        let at = pki_types::UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()));
        webpki::EndEntityCert::try_from(leaf)?.verify_for_usage(
            ALGORITHMS.all,
            roots,
            intermediates,
            at,
            BothUsages,
            None,
            None,
        )?;
        if revoked.covers(&id, parsed.raw_serial()) {
            return Err(Refusal::Revoked);
        }
        Ok(Proven { id, validity })
    }

    /// Who alone can vouch for `id`, and who of them is revoked: its trust domain and role pick
    /// the roots.
    fn believed(&self, id: &SpiffeId) -> Result<(&Roots, &Revoked), Refusal> {
        let is_own = self.trust_domain.as_ref().is_none_or(|ours| id.trust_domain == *ours);
        let (datacenter, servers, agents, services, revoked) = if is_own {
            (&self.datacenter, &self.servers, &self.agents, &self.services, &self.revoked)
        } else {
            let peer = self.peers.iter().find(|peer| peer.trust_domain == id.trust_domain);
            let peer = peer.ok_or(Refusal::TrustDomain)?;
            (&peer.datacenter, &peer.servers, &Roots::None, &peer.services, &peer.revoked)
        };
        if id.datacenter != *datacenter {
            return Err(Refusal::Datacenter);
        }
        let roots = match &id.role {
            Role::Server(_) => servers,
            Role::Agent(_) => agents,
            Role::Service(_) => services,
            Role::MeshGateway => &Roots::None,
        };
        Ok((roots, revoked))
    }
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, datacenter, .. } = self;
        f.debug_struct("Anchors")
            .field("trust_domain", trust_domain)
            .field("datacenter", datacenter)
            .finish_non_exhaustive()
    }
}

/// Whoever names usages must name both sides of a handshake, so that neither can be borrowed.
/// Intermediates may name none; a leaf's own are checked apart, and more strictly.
struct BothUsages;

impl ExtendedKeyUsageValidator for BothUsages {
    fn validate(&self, iter: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let (mut client, mut server, mut none) = (false, false, true);
        for id in iter {
            none = false;
            let id = id?.to_decoded_oid();
            client |= id == [1, 3, 6, 1, 5, 5, 7, 3, 2];
            server |= id == [1, 3, 6, 1, 5, 5, 7, 3, 1];
        }
        if none || (client && server) { Ok(()) } else { Err(webpki::Error::EmptyEkuExtension) }
    }
}

/// A leaf, an intermediate, and a root or one that is cross-signed in a rotation.
const CHAIN_MAX: usize = 3;
const CHAIN_OCTETS_MAX: usize = 16 * 1024;
