//! `/v1/peering` and `/v1/peerings`: the clusters that this one exchanges services with.

use std::collections::BTreeMap;

use hawser_api::error::ApiError;
use hawser_api::fields::{Fields, InvalidField};
use hawser_api::json;
use hawser_core::catalog::Row;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::name::PeerName;
use hawser_core::peering::{Peering, Remote};
use hawser_core::sni::Sni;
use hawser_core::state::{Command, State, Topic};
use http::StatusCode;

use super::ask::{Ask, Draw, Found, Plan};
use super::cluster::Said;
use super::encode;
use crate::Handle;
use crate::peering::establish::{self, PeeringError};
use crate::peering::export;
use crate::propose::ProposeError;

pub(crate) fn list<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    Ok(Found::list(ask, index(state), topics(), move || {
        state.peerings().iter().map(|row| peering(ask, state, row)).collect()
    }))
}

pub(crate) fn get<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let name: Option<PeerName> = ask.name().parse().ok();
    match name.and_then(|name| state.peerings().get(&name)) {
        Some(row) => Ok(Found::new(ask, index(state), topics(), move || peering(ask, state, row))),
        None => {
            let why = format!("Peering not found for {:?}", ask.name());
            Ok(Found::missing(index(state), topics(), why))
        }
    }
}

/// The last entry that changed what is shown of any peering.
fn index(state: &State) -> Index {
    let (peerings, catalog) = (state.peerings(), state.catalog());
    let exported = state.entries().index().max(catalog.names_index());
    peerings.index().max(peerings.imports_index()).max(exported)
}

fn topics() -> [Topic; 4] {
    [Topic::Peers, Topic::Imports, Topic::Exports, Topic::Names]
}

pub(crate) fn delete(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let name: PeerName = ask.name().parse().map_err(|why| {
        ApiError::bad_request(format_args!("{:?} is no name of a peer: {why}", ask.name()))
    })?;
    let is_there = state.peerings().get(&name).is_some();
    Ok(Plan::new(is_there.then_some(Command::DropPeering(name))))
}

/// Makes a token for a cluster that is to become a peer. The reply is the only place where its
/// secret is ever shown.
pub(crate) async fn token(handle: Handle, ask: Ask) -> Said {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let name = peer_name(&mut fields)?;
    let meta = fields.meta(&["Meta"])?;
    let external = fields.texts(&["ServerExternalAddresses"])?;
    fields.default_tenancy()?;
    fields.finish()?;
    let token = establish::generate(&handle, name, meta, external).await.map_err(refusal)?;
    let reply = json::PeeringToken { peering_token: token.to_string() };
    Ok((StatusCode::OK, ask.write(&reply)?))
}

/// Takes up a token: the other cluster is asked before this answers.
pub(crate) async fn establish(handle: Handle, ask: Ask) -> Said {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let name = peer_name(&mut fields)?;
    let meta = fields.meta(&["Meta"])?;
    let path = fields.path_of("PeeringToken");
    let (_, token) = fields
        .text(&["PeeringToken"])?
        .ok_or_else(|| InvalidField::new(path, "is missing: make one in the other cluster"))?;
    fields.default_tenancy()?;
    fields.finish()?;
    establish::establish(&handle, name, meta, token).await.map_err(refusal)?;
    Ok((StatusCode::OK, ask.write(&serde_json::json!({}))?))
}

fn peer_name(fields: &mut Fields<'_>) -> Result<PeerName, ApiError> {
    let path = fields.path_of("PeerName");
    let name = fields.parsed(&["PeerName"])?;
    Ok(name.ok_or_else(|| InvalidField::new(path, "is missing: say what to call the peer"))?)
}

fn refusal(why: PeeringError) -> ApiError {
    match why {
        PeeringError::Token(_)
        | PeeringError::Addresses(_)
        | PeeringError::DialsAlready { .. }
        | PeeringError::InvitedAlready { .. } => ApiError::bad_request(why),
        PeeringError::Propose(ProposeError::NoLeader) => ApiError::NoLeader,
        PeeringError::Propose(ProposeError::Unknown) => ApiError::Unknown,
        PeeringError::Propose(ProposeError::ShuttingDown | ProposeError::DiskFull)
        | PeeringError::Read(_) => ApiError::Unavailable(why.to_string()),
        _ => ApiError::Refused(why.to_string()),
    }
}

/// One peering in Consul's shape. When it was heard is what the server that answers knows: the
/// leader alone has a stream with the peer.
fn peering(ask: &Ask, state: &State, row: &Row<Peering>) -> json::Peering {
    let Peering { id, name, meta, state: stands, remote, .. } = &*row.value;
    let contact = ask.contacts.of(id);
    let time = |time: Option<UnixTime>| time.map(json::timestamp);
    let pems =
        |roots: &[std::sync::Arc<[u8]>]| roots.iter().map(|root| encode::pem(root)).collect();
    let imported: Vec<String> =
        state.peerings().imported_from(name).map(ToString::to_string).collect();
    let exported = export::names(state, name).iter().map(ToString::to_string).collect();
    let server_name = |remote: &Remote| {
        let (datacenter, trust_domain) = (remote.datacenter.clone(), remote.trust_domain.clone());
        Sni::Servers { datacenter, trust_domain }.to_string()
    };
    let place = remote.as_ref();
    json::Peering {
        id: id.to_string(),
        name: name.to_string(),
        state: stands.to_string(),
        meta: encode::pairs(meta),
        peer_id: place.map(|remote| remote.peering.to_string()).unwrap_or_default(),
        peer_ca_pems: place.map(|remote| pems(&remote.server_roots)).unwrap_or_default(),
        peer_server_name: place.map(server_name).unwrap_or_default(),
        peer_server_addresses: place
            .map(|remote| remote.servers.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        peer_gateways: place
            .map(|remote| remote.gateways.iter().map(|one| one.address.to_string()).collect())
            .unwrap_or_default(),
        round_trip_ms: place.and_then(|remote| remote.rtt_ms).unwrap_or_default(),
        stream_status: json::PeeringStreamStatus {
            imported_services: imported,
            exported_services: exported,
            last_heartbeat: time(contact.last_heartbeat),
            last_receive: time(contact.last_receive),
            last_send: time(contact.last_send),
        },
        remote: json::PeeringRemote {
            partition: String::new(),
            datacenter: place.map(|remote| remote.datacenter.to_string()).unwrap_or_default(),
            locality: BTreeMap::new(),
        },
        create_index: row.created.0,
        modify_index: row.modified.0,
    }
}
