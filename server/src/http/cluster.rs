//! `/v1/status`, `/v1/operator` and `/v1/hawser`: the servers themselves.

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
use crate::{Handle, Status, traffic};

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

pub(crate) async fn raft_configuration(handle: Handle, ask: Ask) -> Said {
    let status = handle.roster.status();
    let own = handle.roster.own().id;
    let servers = status.members.iter().map(|member| json::RaftServer {
        id: member.id.to_string(),
        node: member.name.to_string(),
        address: member.address.clone(),
        leader: status.leader == Some(member.id),
        protocol_version: "3".to_owned(),
        voter: status.voters.contains(&member.id),
        last_index: last_index(&status, member.id, own),
    });
    let configuration = json::RaftConfiguration { index: 0, servers: servers.collect() };
    Ok((StatusCode::OK, ask.write(&configuration)?))
}

/// The health of the servers: 200 when all are well, and 429, as monitors expect, when not.
pub(crate) async fn health(handle: Handle, ask: Ask) -> Said {
    let status = handle.roster.status();
    let own = handle.roster.own().id;
    let health = cluster_health(&status, own, handle.roster.last_contact());
    let code = if health.healthy { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
    Ok((code, ask.write(&health)?))
}

/// What one server knows of the others. Only the leader hears from all of them; a follower knows
/// itself and its leader, and counts the rest as it is told: as members.
fn cluster_health(status: &Status, own: u64, contact: Duration) -> json::ClusterHealth {
    let servers: Vec<json::ServerHealth> = status
        .members
        .iter()
        .map(|member| {
            let silence = match status.heard.get(&member.id) {
                _ if member.id == own => Some(Duration::ZERO),
                Some(heard) => Some(heard.elapsed()),
                None if status.is_leader => None,
                None if status.leader == Some(member.id) => Some(contact),
                None => Some(Duration::ZERO),
            };
            let is_well =
                status.leader.is_some() && silence.is_some_and(|silence| silence < SILENCE_MAX);
            json::ServerHealth {
                id: member.id.to_string(),
                name: member.name.to_string(),
                address: member.address.clone(),
                serf_status: if is_well { "alive" } else { "failed" }.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                leader: status.leader == Some(member.id),
                // Go's clients read it as a duration, so it must be one even where nobody knows.
                last_contact: duration::format(silence.unwrap_or_default()),
                last_term: status.term,
                last_index: last_index(status, member.id, own),
                healthy: is_well,
                voter: status.voters.contains(&member.id),
                stable_since: UNKNOWN_TIME.to_owned(),
            }
        })
        .collect();
    let voters = servers.iter().filter(|server| server.voter).count();
    let well = servers.iter().filter(|server| server.voter && server.healthy).count();
    json::ClusterHealth {
        healthy: !servers.is_empty() && servers.iter().all(|server| server.healthy),
        failure_tolerance: well.saturating_sub(voters / 2 + 1),
        servers,
    }
}

fn last_index(status: &Status, id: u64, own: u64) -> u64 {
    if id == own { status.last_index } else { status.matched.get(&id).copied().unwrap_or(0) }
}

/// Makes a join token for one node. The reply is the only place where it is ever shown.
pub(crate) async fn join_token(handle: Handle, ask: Ask) -> Said {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let node: NodeName = fields
        .parsed(&["Node"])?
        .ok_or_else(|| InvalidField::new("Node", "is missing: name the node that will join"))?;
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

/// Go's zero time: since when a server is well is not recorded.
const UNKNOWN_TIME: &str = "0001-01-01T00:00:00Z";
/// A server that was not heard for longer is not well.
const SILENCE_MAX: Duration = Duration::from_secs(2);
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);
const TOKEN_LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
const MINUTES: u64 = 15;
const MINUTES_MAX: u64 = 24 * 60;
