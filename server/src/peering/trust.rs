//! Who a cluster says that it is: what this one tells its peers, and what it takes from them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hawser_core::health::Status;
use hawser_core::peering::{Peering, Remote};
use hawser_core::state::State;
use hawser_core::view::GATEWAY_SERVICE;
use hawser_identity::Anchors;
use hawser_proto::v1;

use super::token::{ADDRESSES_MAX, PEERING_ID_OCTETS_MAX};
use crate::handle::Handle;
use crate::join::{Seed, look_up};

/// Why what a peer says of itself is not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}")]
    Invalid(#[from] hawser_proto::Invalid),
    #[error("remote.{field}: there are {count}, and {max} is the most")]
    TooMany { field: &'static str, count: usize, max: usize },
    #[error("remote.{0}: it is too long or not as it must be")]
    Malformed(&'static str),
    /// It is another cluster than at establishment: nobody may become somebody else.
    #[error("remote: it says that it is {said}, but this peering is with {held}")]
    Another { said: String, held: String },
}

/// Who this cluster is, as it tells the peer of `peering`.
pub(crate) fn own(handle: &Handle, state: &State, peering: &Peering) -> v1::Remote {
    let identity = &handle.identity;
    let roots = state
        .authority()
        .map(|authority| authority.roots.iter().map(|root| root.certificate.to_vec()).collect());
    v1::Remote {
        peering: peering.id.to_string(),
        trust_domain: identity.trust_domain().to_string(),
        datacenter: identity.datacenter().to_string(),
        calls_us: peering.name.to_string(),
        server_roots: vec![identity.server_root_der().to_vec()],
        roots: roots.unwrap_or_default(),
        servers: servers(handle),
        gateways: gateways(state),
        rtt_ms: 0,
        revoked: Some((&state.revocations().revoked()).into()),
    }
}

/// Where this cluster's servers are.
pub(crate) fn servers(handle: &Handle) -> Vec<String> {
    let members = handle.roster.members();
    let mut servers: Vec<String> = members.into_iter().map(|member| member.address).collect();
    servers.sort();
    servers.dedup();
    servers.truncate(ADDRESSES_MAX);
    servers
}

/// The mesh gateways that may take traffic, as other clusters dial them.
fn gateways(state: &State) -> Vec<v1::PeerGateway> {
    let Ok(name) = GATEWAY_SERVICE.parse() else { return Vec::new() };
    let placed = state.catalog().placed(&name);
    placed
        .filter(|placed| placed.status() != Status::Critical)
        .filter_map(|placed| {
            let address = placed.instance.value.gateway.as_ref()?.to_string();
            let locality = Some((&placed.node.value.locality).into());
            Some(v1::PeerGateway { address, locality })
        })
        .take(GATEWAYS_MAX)
        .collect()
}

/// Refuses what is beyond its bounds, or could not be used.
///
/// # Errors
/// [`Refused`], which names the field.
pub(crate) fn check(remote: &v1::Remote) -> Result<(), Refused> {
    let counts = [
        ("server_roots", remote.server_roots.len(), ROOTS_MAX),
        ("roots", remote.roots.len(), ROOTS_MAX),
        ("servers", remote.servers.len(), ADDRESSES_MAX),
        ("gateways", remote.gateways.len(), GATEWAYS_MAX),
        ("revoked", remote.revoked.as_ref().map_or(0, revoked_len), REVOKED_MAX),
    ];
    for (field, count, max) in counts {
        if count > max {
            return Err(Refused::TooMany { field, count, max });
        }
    }
    if remote.peering.is_empty() || remote.peering.len() > PEERING_ID_OCTETS_MAX {
        return Err(Refused::Malformed("peering"));
    }
    let is_long = |root: &Vec<u8>| root.len() > ROOT_OCTETS_MAX;
    if remote.server_roots.is_empty() || remote.server_roots.iter().any(is_long) {
        return Err(Refused::Malformed("server_roots"));
    }
    if remote.roots.iter().any(is_long) {
        return Err(Refused::Malformed("roots"));
    }
    if remote.servers.is_empty() || remote.servers.iter().any(|text| Seed::parse(text).is_err()) {
        return Err(Refused::Malformed("servers"));
    }
    if remote.gateways.iter().any(|gateway| Seed::parse(&gateway.address).is_err()) {
        return Err(Refused::Malformed("gateways"));
    }
    Ok(())
}

fn revoked_len(revoked: &v1::Revoked) -> usize {
    revoked.nodes.len() + revoked.services.len() + revoked.certificates.len()
}

/// What the peer of `peering` says of itself, checked, with the names of its gateways resolved.
/// While one does not resolve, the gateways that are known stay.
///
/// # Errors
/// [`Refused`]
pub(crate) async fn received(
    handle: &Handle,
    remote: v1::Remote,
    peering: &Peering,
) -> Result<Remote, Refused> {
    check(&remote)?;
    let said = remote.gateways.clone();
    let mut remote = Remote::try_from(v1::Remote { gateways: Vec::new(), rtt_ms: 0, ..remote })?;
    let (gateways, is_whole) = resolved(said).await;
    remote.gateways = gateways;
    let state = handle.reader.current();
    if !is_whole {
        let held = state.peerings().get(&peering.name).and_then(|row| row.value.remote.as_ref());
        let known = held.into_iter().flat_map(|held| held.gateways.iter().cloned());
        let known: Vec<_> = known.filter(|known| !remote.gateways.contains(known)).collect();
        remote.gateways.extend(known);
    }
    let ours: BTreeSet<IpAddr> = state.catalog().nodes().map(|row| row.value.address).collect();
    remote.gateways.retain(|gateway| may_dial(gateway.address.ip(), &ours));
    remote.gateways.truncate(GATEWAYS_MAX);
    let der = |roots: &[Arc<[u8]>]| roots.to_vec();
    let (servers, services) = (der(&remote.server_roots), der(&remote.roots));
    let anchors = Anchors::new(remote.trust_domain.clone(), remote.datacenter.clone())
        .servers(servers.iter().map(|root| &root[..]))
        .services(services.iter().map(|root| &root[..]));
    if anchors.malformed() > 0 {
        return Err(Refused::Malformed("roots"));
    }
    Ok(remote)
}

/// Refuses a cluster that is another than `held`, with which the peering is.
///
/// # Errors
/// [`Refused::Another`]
pub(crate) fn check_same(said: &Remote, held: &Remote) -> Result<(), Refused> {
    let name = |remote: &Remote| format!("{} in {}", remote.trust_domain, remote.datacenter);
    if (&said.trust_domain, &said.datacenter) == (&held.trust_domain, &held.datacenter) {
        return Ok(());
    }
    Err(Refused::Another { said: name(said), held: name(held) })
}

/// Whether a peer's gateway may be at `address`: what a peer says must not lead our hosts to
/// themselves, to each other, or to services of a link such as a cloud's metadata. Clusters whose
/// own hosts are at loopback are one machine's.
fn may_dial(address: IpAddr, ours: &BTreeSet<IpAddr>) -> bool {
    let address = address.to_canonical();
    if address.is_loopback() {
        return ours.iter().all(IpAddr::is_loopback);
    }
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(is_link_local
        || address.is_unspecified()
        || address.is_multicast()
        || ours.contains(&address))
}

/// The gateways at their addresses, and whether all names resolved.
async fn resolved(said: Vec<v1::PeerGateway>) -> (Vec<hawser_core::peering::PeerGateway>, bool) {
    let one = |gateway: v1::PeerGateway| async move {
        let locality: hawser_core::catalog::Locality =
            gateway.locality.map(Into::into).unwrap_or_default();
        let mut addresses: Vec<SocketAddr> = match Seed::parse(&gateway.address) {
            Ok(Seed::Address(address)) => vec![address],
            Ok(Seed::Name { host, port }) => {
                look_up(&host).await.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
            }
            Err(_) => Vec::new(),
        };
        addresses.sort_unstable();
        let gateway = move |address| hawser_core::peering::PeerGateway {
            address,
            locality: locality.clone(),
        };
        addresses.into_iter().map(gateway).collect::<Vec<_>>()
    };
    let found = futures_util::future::join_all(said.into_iter().map(one)).await;
    let is_whole = found.iter().all(|gateways| !gateways.is_empty());
    (found.into_iter().flatten().collect(), is_whole)
}

const ROOTS_MAX: usize = 16;
const ROOT_OCTETS_MAX: usize = 16 * 1024;
const GATEWAYS_MAX: usize = 256;
/// As many as a cluster may hold.
const REVOKED_MAX: usize = 10_000;
