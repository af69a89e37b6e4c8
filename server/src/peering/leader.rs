//! What the leader does about peerings: dials those that are its to dial, and judges all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_core::state::{Command, State, Topic};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::dial;
use super::session::live;
use crate::handle::Handle;
use crate::propose::RETRY_EVERY;
use crate::read::Consistency;

/// Keeps the streams with peers whenever this server leads, until `drain`.
pub(crate) async fn run(handle: Handle, drain: CancellationToken) {
    let mut status = handle.roster.changes();
    loop {
        let term = tokio::select! {
            () = drain.cancelled() => return,
            led = status.wait_for(|status| status.is_leader || status.is_stopped) => match led {
                Ok(led) if led.is_leader => led.term,
                _ => return,
            },
        };
        tokio::select! {
            () = drain.cancelled() => return,
            () = lead(&handle, &drain) => {}
            _ = status.wait_for(|status| !status.is_leader || status.term != term) => {}
        }
    }
}

async fn lead(handle: &Handle, drain: &CancellationToken) {
    while handle.reader.read(Consistency::Default).await.is_err() {
        sleep(RETRY_EVERY).await;
    }
    let led_since = Instant::now();
    let mut watch = handle.watches.subscribe([Topic::Peers].into());
    let mut tick = interval(JUDGE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // One for each peering at most, and ended with the term.
    let mut tasks: JoinSet<Arc<str>> = JoinSet::new();
    let mut running: BTreeSet<Arc<str>> = BTreeSet::new();
    loop {
        let state = handle.reader.current();
        for row in state.peerings().iter() {
            let peering = &row.value;
            let is_ours = peering.dials() && peering.remote.is_some();
            if is_ours && live(&state, peering).is_some() && running.insert(peering.id.clone()) {
                tasks.spawn(dial::keep(handle.clone(), peering.clone(), drain.clone()));
            }
        }
        let known = |id: &str| state.peerings().iter().any(|row| *row.value.id == *id);
        handle.contacts.retain(known);
        judge(handle, &state, led_since).await;
        tokio::select! {
            _ = tick.tick() => {}
            _ = watch.changed() => {}
            Some(ended) = tasks.join_next() => match ended {
                Ok(id) => drop(running.remove(&id)),
                Err(failure) => {
                    tracing::error!(%failure, "a peering's task failed");
                    // Which one is not said: all are begun anew, and the newest streams count.
                    tasks.abort_all();
                    running.clear();
                }
            },
        }
    }
}

/// Stores how peers stand, where that is another way than it was.
async fn judge(handle: &Handle, state: &State, led_since: Instant) {
    for row in state.peerings().iter() {
        let peering = &row.value;
        let contact = handle.contacts.of(&peering.id);
        let Some(state) = contact.verdict(peering, led_since, Instant::now()) else { continue };
        let (name, id) = (peering.name.clone(), peering.id.clone());
        let peer = name.clone();
        match handle.proposer.propose(Command::SetPeerState { name, id, state }).await {
            Ok(_) => tracing::info!(%peer, %state, "a peering stands otherwise"),
            Err(error) => tracing::warn!(%peer, %error, "how a peering stands is not stored"),
        }
    }
}

const JUDGE_EVERY: Duration = Duration::from_millis(200);
