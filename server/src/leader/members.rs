//! Keeps the membership in order as autopilot's rules say, and the cluster's level as high as all
//! of its servers reach.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use hawser_core::operation::LEVEL;
use hawser_core::state::Command;
use hawser_proto::{Member, v1};
use tokio::time::timeout;

use super::{Duties, every};
use crate::autopilot::Step;
use crate::dial::Lane;
use crate::identity::now;
use crate::raft::ChangeError;

/// Changes the membership step by step, for as long as this server leads.
pub(super) async fn run(duties: &Duties) {
    let Duties { raft, pilot, reader, .. } = duties;
    let mut tick = every(LOOK_EVERY);
    let status = raft.status();
    loop {
        tick.tick().await;
        let step = {
            let (status, state) = (status.borrow(), reader.current());
            let rules = &state.operation().autopilot().value;
            let moment = Instant::now();
            pilot.observe(&status, rules, (moment, now()));
            pilot.next(&status, rules, moment)
        };
        let Some(step) = step else { continue };
        if let Err(failure) = take(duties, step).await {
            tracing::debug!(error = %failure, "the membership stays for the moment");
        }
    }
}

async fn take(duties: &Duties, step: Step) -> Result<(), ChangeError> {
    let raft = &duties.raft;
    match step {
        Step::Finish => raft.finish_change().await,
        Step::Promote { id, replaced } => {
            tracing::info!(id, ?replaced, "a server that caught up votes now");
            raft.promote(id, replaced).await
        }
        Step::DropLearners(ids) => {
            tracing::warn!(?ids, "servers that died before they voted are removed");
            raft.remove_learners(ids).await
        }
        Step::DropVoter(id) => {
            tracing::warn!(id, "a server that died is removed: it joins again when it is back");
            raft.remove_voter(id).await
        }
    }
}

/// Asks the servers what they run, and raises the cluster's level once all have reached a higher
/// one, for as long as this server leads.
pub(super) async fn level(duties: &Duties) {
    let mut tick = every(ASK_EVERY);
    loop {
        tick.tick().await;
        let status = duties.raft.status();
        let members = status.borrow().members.clone();
        let others = members.into_iter().filter(|member| member.id != duties.own.id);
        let asked = others.map(|member| async move {
            let said = hello(duties, &member).await?;
            duties.pilot.heard(member.id, &said.release, said.level);
            Some(())
        });
        stream::iter(asked).buffer_unordered(ASKED_TOGETHER).count().await;

        let held = duties.reader.current().operation().level();
        let _turn = duties.pilot.turn.lock().await;
        let least = duties.pilot.least_level(&status.borrow());
        if let Some(level) = least.map(|level| level.min(LEVEL)).filter(|level| *level > held) {
            match duties.proposer.propose(Command::SetLevel(level)).await {
                Ok(_) => tracing::info!(level, "every server has reached a higher level"),
                Err(failure) => tracing::warn!(error = %failure, "the level stays for now"),
            }
        }
    }
}

async fn hello(duties: &Duties, member: &Member) -> Option<v1::HelloReply> {
    let mut client = duties.dialer.client_of(member, Lane::Request).ok()?;
    let request = v1::HelloRequest { from: Some((&duties.own).into()), bootstrap_expect: 0 };
    let said = timeout(HELLO_MAX, client.hello(request)).await.ok()?.ok()?.into_inner();
    let is_it = said.member.as_ref().is_some_and(|said| said.id == member.id);
    is_it.then_some(said)
}

const LOOK_EVERY: Duration = Duration::from_millis(200);
const ASK_EVERY: Duration = Duration::from_millis(500);
const HELLO_MAX: Duration = Duration::from_secs(2);
const ASKED_TOGETHER: usize = 16;
