//! `/v1/status` and `/v1/hawser`: the servers themselves.

use std::time::Duration;

use bytes::Bytes;
use hawser_api::error::ApiError;
use hawser_api::fields::{Fields, InvalidField};
use hawser_api::json;
use hawser_core::clock::UnixTime;
use hawser_core::duration;
use hawser_core::name::NodeName;
use http::StatusCode;

use super::ask::Ask;
use super::encode;
use crate::identity::now;
use crate::{Handle, traffic};

/// A reply that is not a state's: with its status.
pub(crate) type Said = Result<(StatusCode, Bytes), ApiError>;

pub(crate) async fn leader(handle: Handle, ask: Ask) -> Said {
    let address = handle.roster.leader().map(|leader| leader.address).unwrap_or_default();
    Ok((StatusCode::OK, ask.write(&address)?))
}

pub(crate) async fn peers(handle: Handle, ask: Ask) -> Said {
    let status = handle.roster.status();
    let voters = status.members.iter().filter(|member| status.voters.contains(&member.id));
    let addresses: Vec<&str> = voters.map(|member| member.address.as_str()).collect();
    Ok((StatusCode::OK, ask.write(&addresses)?))
}

/// Makes a join token for one node. The reply is the only place where it is ever shown.
pub(crate) async fn join_token(handle: Handle, ask: Ask) -> Said {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let node: NodeName = fields
        .parsed(&["Node"])?
        .ok_or_else(|| InvalidField::new("Node", "is missing: name the node that will join"))?;
    if !node.is_segment() {
        let why = "agents have names of letters, digits, -, _ and .";
        return Err(InvalidField::new("Node", why).into());
    }
    let ttl_path = fields.path_of("TTL");
    let lifetime = fields.duration(&["TTL"])?.unwrap_or(TOKEN_LIFETIME);
    fields.finish()?;
    if lifetime > TOKEN_LIFETIME_MAX {
        let most = duration::format(TOKEN_LIFETIME_MAX);
        return Err(InvalidField::new(ttl_path, format_args!("{most} is the most")).into());
    }
    let token = handle
        .mint_join_token(&node, lifetime)
        .await
        .map_err(|why| ApiError::Refused(why.to_string()))?;
    let reply = json::JoinToken { token, node: node.to_string(), ttl: duration::format(lifetime) };
    Ok((StatusCode::OK, ask.write(&reply)?))
}

/// Who called whom over the last minutes, as all servers counted it.
pub(crate) async fn edges(handle: Handle, ask: Ask) -> Said {
    let minutes = ask.query.number("minutes")?.unwrap_or(MINUTES);
    if !(1..=MINUTES_MAX).contains(&minutes) {
        return Err(ApiError::bad_request(format_args!("minutes is from 1 to {MINUTES_MAX}")));
    }
    let merged = traffic::merged(&handle, minutes).await;
    // The present minute is not over: what it counted came in the seconds that have passed.
    let seconds = now().since(UnixTime::from_secs(merged.from_minute * 60)).as_secs_f64();
    let reply = json::Edges {
        minutes: u32::try_from(minutes).unwrap_or(u32::MAX),
        missing: merged.silent.iter().map(|silent| silent.server.to_string()).collect(),
        edges: merged.edges.iter().map(|(key, tally)| encode::edge(key, tally, seconds)).collect(),
    };
    Ok((StatusCode::OK, ask.write(&reply)?))
}

const TOKEN_LIFETIME: Duration = Duration::from_secs(600);
const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
const MINUTES: u64 = 15;
const MINUTES_MAX: u64 = 24 * 60;
