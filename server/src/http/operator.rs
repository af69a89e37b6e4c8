//! `/v1/operator`: who the servers are, how they stand, and by which rules they keep in order.

use std::time::Duration;

use bytes::Bytes;
use hawser_api::error::ApiError;
use hawser_api::fields::{Field, Fields, InvalidField};
use hawser_api::json;
use hawser_core::clock::Index;
use hawser_core::duration;
use hawser_core::operation::Autopilot;
use hawser_core::state::{Command, State, Topic};
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::ask::{Ask, Draw, Found, Plan, Reply};
use super::cluster::Said;
use crate::Handle;
use crate::autopilot::{Assessment, Standing};
use crate::operate::OperateError;

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
        last_index: match member.id == own {
            true => status.last_index,
            false => status.matched.get(&member.id).copied().unwrap_or(0),
        },
    });
    let configuration = json::RaftConfiguration { index: 0, servers: servers.collect() };
    Ok((StatusCode::OK, ask.write(&configuration)?))
}

/// Removes one server, by id or by address.
pub(crate) async fn remove_peer(handle: Handle, ask: Ask) -> Said {
    let status = handle.roster.status();
    let id = match (ask.query.text("id"), ask.query.text("address")) {
        (Some(id), None) => id.parse().ok().filter(|id| status.member(*id).is_some()),
        (None, Some(address)) => {
            let found = status.members.iter().find(|member| member.address == address);
            found.map(|member| member.id)
        }
        _ => {
            let why = "Must specify either ?id with the server's ID or ?address with IP:port of \
                       peer to remove";
            return Err(ApiError::bad_request(why));
        }
    };
    let named = ask.query.text("id").or_else(|| ask.query.text("address")).unwrap_or_default();
    let unknown = || {
        let what = if ask.query.text("id").is_some() { "id" } else { "address" };
        ApiError::Refused(format!("{what} {named:?} was not found in the Raft configuration"))
    };
    handle.operator.remove(id.ok_or_else(unknown)?).await.map_err(undone)?;
    Ok((StatusCode::OK, Bytes::new()))
}

/// Lets another server lead.
pub(crate) async fn transfer_leader(handle: Handle, ask: Ask) -> Said {
    let to = match ask.query.text("id").filter(|id| !id.is_empty()) {
        None => None,
        Some(id) => Some(id.parse().map_err(|_| {
            ApiError::Refused(format!("id {id:?} was not found in the Raft configuration"))
        })?),
    };
    handle.operator.hand_over(to).await.map_err(undone)?;
    Ok((StatusCode::OK, ask.write(&json!({ "Success": true }))?))
}

fn undone(why: OperateError) -> ApiError {
    match why {
        OperateError::NoLeader => ApiError::NoLeader,
        OperateError::Refused(why) => ApiError::Refused(why),
    }
}

pub(crate) fn configuration<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let row = state.operation().autopilot();
    Ok(Found::new(ask, row.modified, [Topic::Operation], || {
        let rules = &row.value;
        json::AutopilotConfiguration {
            cleanup_dead_servers: rules.cleanup_dead_servers,
            last_contact_threshold: duration::format(rules.last_contact_threshold),
            max_trailing_logs: rules.max_trailing_logs,
            min_quorum: rules.min_quorum,
            server_stabilization_time: duration::format(rules.server_stabilization_time),
            create_index: row.created.0,
            modify_index: row.modified.0,
            ..Default::default()
        }
    }))
}

pub(crate) fn configure(ask: &Ask, _: &State, _: &Draw) -> Result<Plan, ApiError> {
    let expected = ask.query.number("cas")?.map(Index);
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let held = Autopilot::default();
    let cleanup = match fields.take(&["CleanupDeadServers"])? {
        None => held.cleanup_dead_servers,
        Some(Field { value: Value::Bool(cleanup), .. }) => *cleanup,
        Some(Field { path, .. }) => {
            return Err(InvalidField::new(path, "must be true or false").into());
        }
    };
    let quorum = fields.whole(&["MinQuorum"], QUORUM_MAX)?;
    let rules = Autopilot {
        cleanup_dead_servers: cleanup,
        last_contact_threshold: span(&mut fields, "LastContactThreshold")?
            .unwrap_or(held.last_contact_threshold),
        max_trailing_logs: fields
            .whole(&["MaxTrailingLogs"], u64::from(u32::MAX))?
            .unwrap_or(held.max_trailing_logs),
        min_quorum: quorum.and_then(|quorum| u32::try_from(quorum).ok()).unwrap_or(held.min_quorum),
        server_stabilization_time: span(&mut fields, "ServerStabilizationTime")?
            .unwrap_or(held.server_stabilization_time),
    };
    for tag in ["RedundancyZoneTag", "UpgradeVersionTag"] {
        if let Some((path, text)) = fields.text(&[tag])?
            && !text.is_empty()
        {
            return Err(InvalidField::new(path, "is not supported: leave it empty").into());
        }
    }
    // Servers are upgraded one by one, so that there is no migration to switch off.
    fields.ignore(&["DisableUpgradeMigration", "CreateIndex", "ModifyIndex"]);
    fields.finish()?;
    let reply = match expected {
        Some(_) => Reply::Swapped,
        None => Reply::Json(Value::Bool(true)),
    };
    Ok(Plan { commands: vec![Command::SetAutopilot { rules, expected }], reply })
}

fn span(fields: &mut Fields<'_>, name: &str) -> Result<Option<Duration>, ApiError> {
    let path = fields.path_of(name);
    match fields.duration(&[name])? {
        Some(span) if span > SPAN_MAX => {
            let most = duration::format(SPAN_MAX);
            Err(InvalidField::new(path, format_args!("{most} is the most")).into())
        }
        span => Ok(span),
    }
}

/// The health of the servers: 200 when all are well, and 429, as monitors expect, when not.
pub(crate) async fn health(handle: Handle, ask: Ask) -> Said {
    let assessment = assess(&handle).await;
    let health = json::ClusterHealth {
        healthy: assessment.is_well(),
        failure_tolerance: assessment.failure_tolerance(),
        servers: assessment.servers.iter().map(|it| server(it, assessment.term)).collect(),
    };
    let code = if health.healthy { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
    Ok((code, ask.write(&health)?))
}

/// The same with who votes and what each server is.
pub(crate) async fn state(handle: Handle, ask: Ask) -> Said {
    let assessment = assess(&handle).await;
    let servers = &assessment.servers;
    let ids = |wanted: fn(&&Standing) -> bool| {
        servers.iter().filter(wanted).map(|server| server.member.id.to_string())
    };
    let all = servers.iter().map(|standing| {
        let health = server(standing, assessment.term);
        let status = match standing {
            Standing { is_leader: true, .. } => "leader",
            Standing { is_voter: true, .. } => "voter",
            _ => "non-voter",
        };
        let value = json!({
            "ID": health.id, "Name": health.name, "Address": health.address,
            "NodeStatus": health.serf_status, "Version": health.version,
            "LastContact": health.last_contact, "LastTerm": health.last_term,
            "LastIndex": health.last_index, "Healthy": health.healthy,
            "StableSince": health.stable_since, "ReadReplica": false, "Status": status,
            "Meta": {}, "NodeType": "voter",
        });
        (standing.member.id.to_string(), value)
    });
    let reply = json!({
        "Healthy": assessment.is_well(),
        "FailureTolerance": assessment.failure_tolerance(),
        "OptimisticFailureTolerance": assessment.failure_tolerance(),
        "Leader": ids(|server| server.is_leader).next().unwrap_or_default(),
        "Voters": ids(|server| server.is_voter).collect::<Vec<_>>(),
        "Servers": all.collect::<Map<_, _>>(),
    });
    Ok((StatusCode::OK, ask.write(&reply)?))
}

/// As the leader sees it; without one nobody is known to be well.
async fn assess(handle: &Handle) -> Assessment {
    handle.operator.assess().await.unwrap_or_else(|_| handle.operator.assess_here())
}

fn server(standing: &Standing, term: u64) -> json::ServerHealth {
    json::ServerHealth {
        id: standing.member.id.to_string(),
        name: standing.member.name.to_string(),
        address: standing.member.address.clone(),
        serf_status: if standing.is_well { "alive" } else { "failed" }.to_owned(),
        version: standing.release.clone(),
        leader: standing.is_leader,
        // Go's clients read it as a duration, so it must be one even where nobody knows.
        last_contact: duration::format(standing.silence.unwrap_or_default()),
        last_term: term,
        last_index: standing.last_index,
        healthy: standing.is_well,
        voter: standing.is_voter,
        stable_since: standing.well_since.map_or_else(|| UNKNOWN_TIME.to_owned(), json::timestamp),
    }
}

/// Go's zero time, for a server that is not well.
const UNKNOWN_TIME: &str = "0001-01-01T00:00:00Z";
const QUORUM_MAX: u64 = 99;
const SPAN_MAX: Duration = Duration::from_secs(24 * 3_600);
