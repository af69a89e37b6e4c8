//! Reach: how one target is called, made once for each target and identity.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::catalog::Endpoint;
use hawser_core::entry::{GatewayMode, Target};
use hawser_core::name::PeerName;
use hawser_core::reason::Reason;
use hawser_core::route::{Way, way};
use hawser_core::sni::{InstanceLabel, Sni};
use hawser_core::spiffe::{Role, SpiffeId};
use hawser_core::view::{PeerView, View};
use hawser_identity::{Anchors, LeafError};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;

use super::streams::Sessions;
use crate::context::Context;
use crate::gateways::{Choice, Gateway};
use crate::pool::Lines;
use crate::report::Upstream;
use crate::select::Selector;
use crate::streams::Pings;
use crate::tls::{ALPN_H2, ALPN_HTTP1, ALPN_REQUESTS, ALPN_STREAMS, ALPN_TCP, Identity};

/// How one target is called as one service: who must answer, under which name, and which way.
pub(super) struct Reach {
    target: Target,
    /// Who must answer, and nobody else.
    callee: SpiffeId,
    /// What the target's cluster calls this one.
    calls_us: Option<PeerName>,
    identity: Rc<Identity>,
    pub(super) name: ServerName<'static>,
    /// For connections that requests share.
    pub(super) shared: Arc<ClientConfig>,
    pub(super) http1: Arc<ClientConfig>,
    pub(super) tcp: Arc<ClientConfig>,
    /// The gateways that lead to it; none where its instances are called at their own addresses.
    gateways: RefCell<Option<Choice>>,
    /// When any of its instances answered last.
    heard_at: Cell<Duration>,
    /// How many connections in a row failed, to whichever instance.
    misses: Cell<u32>,
}

impl Reach {
    /// How `target` is called under `identity`; `peer` is its cluster, where that is another, and
    /// `selector` which of its ports, where that is not the default one.
    ///
    /// # Errors
    /// [`LeafError`] when TLS refuses the identity.
    pub(super) fn new(
        identity: &Rc<Identity>,
        target: &Target,
        peer: Option<&PeerView>,
        selector: Option<&Selector>,
    ) -> Result<Self, LeafError> {
        let offer = selector.map(Selector::offer);
        let dial = |callee: &SpiffeId, protocols: &[&[u8]]| {
            let offered: Vec<&[u8]> = protocols.iter().copied().chain(offer.as_deref()).collect();
            identity.dial(callee.clone(), &offered)
        };
        let callee = callee(identity, target, peer);
        let calls_us = peer.map(|peer| peer.calls_us.clone());
        let name = server_name(&sni(&callee, target, calls_us.as_ref(), None));
        Ok(Self {
            target: target.clone(),
            identity: identity.clone(),
            name,
            shared: dial(&callee, &[ALPN_REQUESTS, ALPN_H2])?,
            http1: dial(&callee, &[ALPN_HTTP1])?,
            tcp: dial(&callee, &[ALPN_STREAMS, ALPN_TCP])?,
            callee,
            calls_us,
            gateways: RefCell::default(),
            heard_at: Cell::default(),
            misses: Cell::default(),
        })
    }

    /// Whether [`Reach::new`] would make the same again.
    pub(super) fn is_of(&self, identity: &Rc<Identity>, peer: Option<&PeerView>) -> bool {
        Rc::ptr_eq(&self.identity, identity)
            && self.callee == callee(identity, &self.target, peer)
            && self.calls_us.as_ref() == peer.map(|peer| &peer.calls_us)
    }

    /// Takes over the way that there is now.
    pub(super) fn find_way(&self, context: &Context, view: &View, mode: GatewayMode) {
        let way = self.target.peer.as_ref().and_then(|peer| way(view, peer, mode));
        let gateways = match way {
            Some(Way::Through(listed)) => {
                Some(Choice::new(&context.gateways, &context.locality, listed))
            }
            Some(Way::Direct) | None => None,
        };
        *self.gateways.borrow_mut() = gateways;
    }

    /// By what those are proved that are called.
    pub(super) fn anchors(&self) -> &Arc<Anchors> {
        self.identity.anchors()
    }

    /// The gateways to try now, in this order; none where there is no need of one.
    pub(super) fn gateways(&self, now: Duration) -> Option<Vec<Rc<Gateway>>> {
        self.gateways.borrow().as_ref().map(|gateways| gateways.order(now))
    }

    /// Whether the identity that it calls with holds.
    ///
    /// # Errors
    /// [`Reason::NoIdentity`] when it does not.
    pub(super) fn check(&self) -> Result<(), Reason> {
        let holds = self.identity.holds_at(crate::clock::wall());
        if holds { Ok(()) } else { Err(Reason::NoIdentity) }
    }

    /// One of its instances answered.
    pub(super) fn heard(&self, now: Duration) {
        self.heard_at.set(now);
        self.misses.set(0);
    }

    /// A connection to one of its instances failed at once; says whether by now that is more than
    /// the instance's: it is in another cluster, and none there answered in between.
    pub(super) fn missed(&self) -> bool {
        self.misses.set(self.misses.get().saturating_add(1));
        self.target.peer.is_some() && self.misses.get() >= MISSES_TO_CUT
    }

    /// Whether silence from `since` on is that of a whole other cluster, and not of one instance:
    /// none of the instances there answered anything.
    pub(super) fn is_cut_since(&self, since: Duration) -> bool {
        self.target.peer.is_some() && self.heard_at.get() < since
    }
}

/// One instance that can be picked.
pub(super) struct Instance {
    pub(super) address: SocketAddr,
    /// What is reported of it.
    pub(super) upstream: Rc<Upstream>,
    pub(super) lines: Rc<Lines>,
    pub(super) sessions: Sessions,
    /// None without an identity to call it with.
    pub(super) reach: Option<Rc<Reach>>,
    /// Its own name for gateways.
    pub(super) name: Option<ServerName<'static>>,
    /// Cancelled when it may take no more, while others may.
    pub(super) gone: CancellationToken,
}

impl Instance {
    pub(super) fn new(endpoint: &Endpoint, address: SocketAddr, reach: Option<Rc<Reach>>) -> Self {
        let name = reach.as_ref().and_then(|reach| {
            let peer = reach.calls_us.as_ref()?;
            let label = InstanceLabel::of(&endpoint.node, &endpoint.instance);
            Some(server_name(&sni(&reach.callee, &reach.target, Some(peer), Some(label))))
        });
        let upstream = Upstream {
            address: address.into(),
            instance: Some((endpoint.node.clone(), endpoint.instance.clone())),
            locality: endpoint.locality.clone(),
            identity: reach.as_ref().map(|reach| reach.callee.clone()),
        };
        let (upstream, lines, gone) = (Rc::new(upstream), Rc::default(), CancellationToken::new());
        Self { address, upstream, lines, sessions: Sessions::default(), reach, name, gone }
    }

    /// Looks after the connections to it, ten times a second.
    pub(super) fn sweep(&self, context: &Context) {
        let limits = &context.limits;
        let pings = match self.peer() {
            Some(_) => Pings { after: limits.peer_ping_interval, within: limits.peer_ping_timeout },
            None => Pings { after: limits.ping_interval, within: limits.ping_timeout },
        };
        let now = context.clock.now();
        self.sessions.sweep(now, pings, limits);
        self.lines.sweep(now, pings, limits);
    }

    /// Forgets all connections to it: what is under way in them ends in peace.
    pub(super) fn forget(&self) {
        self.lines.clear();
        self.sessions.clear();
    }

    /// How it is called.
    ///
    /// # Errors
    /// [`Reason::NoIdentity`] when there is no identity to call it with, or that has run out.
    pub(super) fn reach(&self) -> Result<&Rc<Reach>, Reason> {
        let reach = self.reach.as_ref().ok_or(Reason::NoIdentity)?;
        reach.check()?;
        Ok(reach)
    }

    /// The cluster that it is in, where that is another.
    pub(super) fn peer(&self) -> Option<&PeerName> {
        self.reach.as_ref()?.target.peer.as_ref()
    }

    /// Whether it is called the way `reach` says.
    pub(super) fn is_within(&self, reach: Option<&Rc<Reach>>) -> bool {
        match (&self.reach, reach) {
            (Some(old), Some(new)) => Rc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        }
    }
}

fn callee(identity: &Identity, target: &Target, peer: Option<&PeerView>) -> SpiffeId {
    let (trust_domain, datacenter) = match peer {
        Some(peer) => (&peer.trust_domain, &peer.datacenter),
        None => (&identity.id.trust_domain, &identity.id.datacenter),
    };
    SpiffeId {
        trust_domain: trust_domain.clone(),
        datacenter: datacenter.clone(),
        role: Role::Service(target.service.clone()),
    }
}

fn sni(
    callee: &SpiffeId,
    target: &Target,
    calls_us: Option<&PeerName>,
    instance: Option<InstanceLabel>,
) -> Sni {
    let (service, trust_domain) = (target.service.clone(), callee.trust_domain.clone());
    match calls_us {
        Some(peer) => Sni::External { instance, service, peer: peer.clone(), trust_domain },
        None => Sni::Internal { service, datacenter: callee.datacenter.clone(), trust_domain },
    }
}

/// A name that is too long for DNS is not sent: the verifier goes by the identity alone.
fn server_name(sni: &Sni) -> ServerName<'static> {
    ServerName::try_from(sni.to_string())
        .unwrap_or(ServerName::IpAddress(Ipv4Addr::LOCALHOST.into()))
}

/// Fewer than the tries of a connection, so that there are some for another target.
const MISSES_TO_CUT: u32 = 2;
