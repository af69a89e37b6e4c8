//! What operators ask of the servers: done by the leader, asked for at any of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_core::clock::UnixTime;
use hawser_core::operation::Autopilot;
use hawser_proto::{Member, v1};
use tokio::time::timeout;
use tonic::Code;

use crate::autopilot::{Assessment, Pilot, Standing};
use crate::dial::{Dialer, Lane};
use crate::raft::{Raft, Status};
use crate::read::Reader;

/// Operates the servers, from any of them. Clones share it.
#[derive(Clone)]
pub(crate) struct Operator {
    pub(crate) raft: Raft,
    pub(crate) dialer: Dialer,
    pub(crate) pilot: Pilot,
    pub(crate) reader: Reader,
}

/// Why something was not done.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum OperateError {
    /// Nobody leads, or who leads does not answer.
    #[error("the servers have no leader now: try again")]
    NoLeader,
    /// It would do harm, or cannot be; the text says what to do.
    #[error("{0}")]
    Refused(String),
}

impl Operator {
    /// The servers, as the leader sees them.
    pub(crate) async fn assess(&self) -> Result<Assessment, OperateError> {
        let Some(leader) = self.other_leader()? else { return Ok(self.assess_here()) };
        let mut client = self.client(&leader)?;
        let asked = timeout(ASK_MAX, client.assess(v1::AssessRequest {})).await;
        let reply =
            asked.map_err(|_| OperateError::NoLeader)?.map_err(|status| refused(&status))?;
        Ok(reply.into_inner().into())
    }

    /// The same, by what this server knows.
    pub(crate) fn assess_here(&self) -> Assessment {
        self.pilot.assess(&self.status(), &self.rules(), Instant::now())
    }

    /// Removes server `id` from the membership.
    pub(crate) async fn remove(&self, id: u64) -> Result<(), OperateError> {
        let Some(leader) = self.other_leader()? else { return self.remove_here(id).await };
        let mut client = self.client(&leader)?;
        let asked = timeout(ASK_MAX, client.remove_member(v1::RemoveRequest { id })).await;
        asked.map_err(|_| OperateError::NoLeader)?.map_err(|status| refused(&status)).map(drop)
    }

    pub(crate) async fn remove_here(&self, id: u64) -> Result<(), OperateError> {
        let status = self.status();
        if !status.is_leader {
            return Err(OperateError::NoLeader);
        }
        let unknown = || OperateError::Refused(format!("there is no server with id {id:?}"));
        let member = status.member(id).ok_or_else(unknown)?;
        if id == self.raft.id() {
            let why = format!("{} leads: transfer the leadership first", member.name);
            return Err(OperateError::Refused(why));
        }
        let done = if status.voters.contains(&id) {
            if !self.pilot.may_go(&status, id, &self.rules(), Instant::now()) {
                let why = "of those that would be left no majority is heard: bring one back first";
                return Err(OperateError::Refused(why.to_owned()));
            }
            self.raft.remove_voter(id).await
        } else {
            self.raft.remove_learners(BTreeSet::from([id])).await
        };
        done.map_err(|failure| OperateError::Refused(failure.to_string()))?;
        tracing::warn!(id, name = %member.name, "a server was removed, as asked for");
        Ok(())
    }

    /// Lets `to` lead, or whoever is most fit where none is named.
    pub(crate) async fn hand_over(&self, to: Option<u64>) -> Result<(), OperateError> {
        let Some(leader) = self.other_leader()? else { return self.hand_over_here(to).await };
        let mut client = self.client(&leader)?;
        let request = v1::HandOverRequest { to: to.unwrap_or(0) };
        let asked = timeout(ASK_MAX, client.hand_over(request)).await;
        asked.map_err(|_| OperateError::NoLeader)?.map_err(|status| refused(&status)).map(drop)
    }

    pub(crate) async fn hand_over_here(&self, to: Option<u64>) -> Result<(), OperateError> {
        let status = self.status();
        if !status.is_leader {
            return Err(OperateError::NoLeader);
        }
        let others = || OperateError::Refused("there is no other server that votes".to_owned());
        let to = match to {
            None => self.raft.heir().ok_or_else(others)?,
            Some(id) if id == self.raft.id() => {
                return Err(OperateError::Refused(format!("server {id} leads already")));
            }
            Some(id) if !status.voters.contains(&id) => {
                let why = format!("there is no server with id {id} that votes");
                return Err(OperateError::Refused(why));
            }
            Some(id) => id,
        };
        let mut status = self.raft.status();
        self.raft.transfer_leader(to).await;
        let handed = status.wait_for(|it| !it.is_leader && it.leader.is_some_and(|id| id == to));
        match timeout(HAND_OVER_MAX, handed).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(OperateError::Refused(format!("server {to} did not take over in time"))),
        }
    }

    /// The leader, where it is another; none where this server leads.
    fn other_leader(&self) -> Result<Option<Member>, OperateError> {
        let status = self.status();
        if status.is_leader {
            return Ok(None);
        }
        let leader = status.leader.filter(|id| *id != self.raft.id());
        leader.and_then(|id| status.member(id)).cloned().map(Some).ok_or(OperateError::NoLeader)
    }

    fn client(
        &self,
        leader: &Member,
    ) -> Result<v1::raft_client::RaftClient<tonic::transport::Channel>, OperateError> {
        self.dialer.client_of(leader, Lane::Request).map_err(|_| OperateError::NoLeader)
    }

    fn status(&self) -> Arc<Status> {
        Arc::clone(&self.raft.status().borrow())
    }

    fn rules(&self) -> Arc<Autopilot> {
        self.reader.current().operation().autopilot().value.clone()
    }
}

/// What a leader's refusal means.
fn refused(status: &tonic::Status) -> OperateError {
    match status.code() {
        Code::FailedPrecondition => OperateError::Refused(status.message().to_owned()),
        _ => OperateError::NoLeader,
    }
}

impl From<OperateError> for tonic::Status {
    fn from(why: OperateError) -> Self {
        match why {
            OperateError::NoLeader => Self::aborted("this server does not lead"),
            OperateError::Refused(why) => Self::failed_precondition(why),
        }
    }
}

impl From<Assessment> for v1::Assessment {
    fn from(assessment: Assessment) -> Self {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let servers = assessment.servers.into_iter().map(|server| v1::ServerStanding {
            member: Some((&server.member).into()),
            is_leader: server.is_leader,
            is_voter: server.is_voter,
            is_well: server.is_well,
            silence_ms: server.silence.map(millis),
            last_index: server.last_index,
            well_since_ms: server.well_since.map(UnixTime::as_millis),
            release: server.release,
        });
        Self { term: assessment.term, servers: servers.collect() }
    }
}

impl From<v1::Assessment> for Assessment {
    fn from(message: v1::Assessment) -> Self {
        let servers = message.servers.into_iter().filter_map(|server| {
            Some(Standing {
                member: server.member?.try_into().ok()?,
                is_leader: server.is_leader,
                is_voter: server.is_voter,
                is_well: server.is_well,
                silence: server.silence_ms.map(Duration::from_millis),
                last_index: server.last_index,
                well_since: server.well_since_ms.map(UnixTime::from_millis),
                release: server.release,
            })
        });
        Self { term: message.term, servers: servers.collect() }
    }
}

/// How long the leader may take: a hand-over waits for an election.
const ASK_MAX: Duration = Duration::from_secs(5);
const HAND_OVER_MAX: Duration = Duration::from_secs(3);
