//! One stream between the leaders of two peers: both sides do the same on it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hawser_core::catalog::Row;
use hawser_core::peering::{PeerState, Peering, Remote};
use hawser_core::state::{Command, Rejection, State};
use hawser_proto::v1;
use hawser_proto::v1::peer_message::Kind;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::export::{self, Exported};
use super::pending::{self, Pending, RoundTrip};
use super::trust;
use crate::contacts::{Moved, SILENCE_MAX};
use crate::handle::Handle;
use crate::propose::ProposeError;

/// A stream, and what it is of.
pub(crate) struct Session {
    pub(crate) handle: Handle,
    pub(crate) peering: Arc<Peering>,
    /// Where this side dialled; none where the peer did.
    pub(crate) dialled: Option<String>,
    pub(crate) out: mpsc::Sender<v1::PeerMessage>,
    pub(crate) inbound: Streaming<v1::PeerMessage>,
    pub(crate) drain: CancellationToken,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the peering was deleted here")]
    Deleted,
    #[error("the peer ended the peering")]
    ByPeer,
    #[error("this server does not lead any more")]
    NotLeading,
    #[error("this server stops")]
    Stopping,
    #[error("the peer opened a newer stream")]
    Superseded,
    #[error("the peer is silent")]
    Silent,
    #[error("the peer closed the stream")]
    Closed,
    #[error("the stream broke: {0}")]
    Broken(#[from] Status),
    #[error("the peer said what it may not: {0}")]
    Said(&'static str),
    #[error("the peer said what it may not: {0}")]
    Trust(#[from] trust::Refused),
    #[error("the peer said what it may not: {0}")]
    Exported(#[from] pending::Refused),
    #[error("what the peer said was not stored: {0}")]
    Propose(#[from] ProposeError),
}

/// What the halves of a session share.
struct Shared<'a> {
    handle: &'a Handle,
    peering: &'a Peering,
    dialled: Option<&'a str>,
    out: &'a mpsc::Sender<v1::PeerMessage>,
    pending: Pending,
    beat: Mutex<(u64, Instant)>,
}

impl Session {
    /// Speaks and listens until something ends it; says goodbye where the peering was deleted.
    pub(crate) async fn run(mut self) -> Ended {
        let newest = self.handle.contacts.begin(&self.peering.id);
        let shared = Shared {
            handle: &self.handle,
            peering: &self.peering,
            dialled: self.dialled.as_deref(),
            out: &self.out,
            pending: Pending::default(),
            beat: Mutex::new((0, Instant::now())),
        };
        let mut status = self.handle.roster.changes();
        let ended = tokio::select! {
            biased;
            () = self.drain.cancelled() => Ended::Stopping,
            () = newest.cancelled() => Ended::Superseded,
            _ = status.wait_for(|status| !status.is_leader) => Ended::NotLeading,
            Err(ended) = shared.speak() => ended,
            Err(ended) = shared.import() => ended,
            Err(ended) = shared.listen(&mut self.inbound) => ended,
        };
        match ended {
            Ended::Deleted => self.say_goodbye().await,
            Ended::ByPeer => self.terminate().await,
            _ => {}
        }
        ended
    }

    /// Tells the peer that the peering is no more, and waits for it to hang up.
    async fn say_goodbye(&mut self) {
        let farewell = async {
            let ended = Kind::Ended(v1::PeeringEnded {});
            if self.out.send(v1::PeerMessage { kind: Some(ended) }).await.is_ok() {
                while let Ok(Some(_)) = self.inbound.message().await {}
            }
        };
        drop(timeout(FAREWELL_MAX, farewell).await);
    }

    async fn terminate(&self) {
        let Peering { name, id, .. } = &*self.peering;
        let state = PeerState::Terminated;
        let command = Command::SetPeerState { name: name.clone(), id: id.clone(), state };
        match self.handle.proposer.propose(command).await {
            Ok(_) => tracing::warn!(peer = %name, "the peer ended the peering"),
            Err(error) => tracing::warn!(peer = %name, %error, "a peering's end is not stored"),
        }
    }
}

/// The row of `peering`, while it is there and has not ended.
pub(crate) fn live<'a>(state: &'a State, peering: &Peering) -> Option<&'a Row<Peering>> {
    let row = state.peerings().get(&peering.name)?;
    (row.value.id == peering.id && row.value.state != PeerState::Terminated).then_some(row)
}

impl Shared<'_> {
    async fn say(&self, kind: Kind) -> Result<(), Ended> {
        let message = v1::PeerMessage { kind: Some(kind) };
        match timeout(SILENCE_MAX, self.out.send(message)).await {
            Ok(Ok(())) => {
                self.handle.contacts.note(&self.peering.id, Moved::Sent);
                Ok(())
            }
            Ok(Err(_)) => Err(Ended::Closed),
            // It does not read: to us it is as good as gone.
            Err(_) => Err(Ended::Silent),
        }
    }

    async fn say_heartbeat(&self) -> Result<(), Ended> {
        let number = {
            let mut beat = self.beat.lock().unwrap_or_else(PoisonError::into_inner);
            *beat = (beat.0 + 1, Instant::now());
            beat.0
        };
        self.say(Kind::Heartbeat(v1::Heartbeat { number, is_answer: false })).await
    }

    /// Says who this cluster is and what it exports, whenever that changes, and that it lives.
    async fn speak(&self) -> Result<Infallible, Ended> {
        let peer = &self.peering.name;
        let topics = |state: &State| export::topics(state, peer);
        let mut watch = self.handle.watches.subscribe(topics(&self.handle.reader.current()));
        let mut beat = interval(BEAT_EVERY);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said: (Option<v1::Remote>, Option<Exported>) = (None, None);
        let mut is_beat = false;
        let mut next_at = tokio::time::Instant::now();
        loop {
            let mut state = self.handle.reader.current();
            // What is watched may change with the state: watched first, read after.
            loop {
                let wanted = topics(&state);
                watch.retopic(wanted.clone());
                state = self.handle.reader.current();
                if topics(&state) == wanted {
                    break;
                }
            }
            let Some(row) = live(&state, self.peering) else { return Err(Ended::Deleted) };
            let own = trust::own(self.handle, &state, &row.value);
            if said.0.as_ref() != Some(&own) {
                self.say(Kind::Remote(own.clone())).await?;
                (said.0, is_beat) = (Some(own), true);
            }
            let now = export::exported(&state, peer);
            let changes = match &said.1 {
                None => export::snapshot(&now),
                Some(before) => export::changes(before, &now),
            };
            for change in changes {
                self.say(Kind::Exported(change)).await?;
                is_beat = true;
            }
            said.1 = Some(now);
            // A heartbeat also says that what came before it is whole.
            if std::mem::take(&mut is_beat) {
                self.say_heartbeat().await?;
            }
            tokio::select! {
                _ = beat.tick() => is_beat = true,
                _ = async {
                    sleep_until(next_at).await;
                    watch.changed().await
                } => {}
            }
            next_at = tokio::time::Instant::now() + BETWEEN_CHANGES;
        }
    }

    /// Takes note of all that the peer says.
    async fn listen(&self, inbound: &mut Streaming<v1::PeerMessage>) -> Result<Infallible, Ended> {
        let stored = self.peering.remote.as_ref().and_then(|remote| remote.rtt_ms);
        let mut rtt = RoundTrip::new(stored);
        loop {
            let message = timeout(SILENCE_MAX, inbound.message());
            let Some(message) = message.await.map_err(|_| Ended::Silent)?? else {
                return Err(Ended::Closed);
            };
            let kind = message.kind.ok_or(Ended::Said("a message of an unknown kind"))?;
            let is_heartbeat = matches!(kind, Kind::Heartbeat(_));
            self.handle.contacts.note(&self.peering.id, Moved::Received { is_heartbeat });
            match kind {
                Kind::Heartbeat(v1::Heartbeat { number, is_answer: false }) => {
                    self.pending.whole();
                    self.say(Kind::Heartbeat(v1::Heartbeat { number, is_answer: true })).await?;
                }
                Kind::Heartbeat(v1::Heartbeat { number, is_answer: true }) => {
                    let beat = *self.beat.lock().unwrap_or_else(PoisonError::into_inner);
                    if beat.0 == number
                        && let Some(news) = rtt.measured(beat.1.elapsed(), Instant::now())
                    {
                        self.pending.rtt(news);
                    }
                }
                Kind::Remote(remote) => {
                    trust::check(&remote)?;
                    self.pending.remote(remote);
                }
                Kind::Exported(change) => self.pending.exported(change)?,
                Kind::Ended(_) => return Err(Ended::ByPeer),
                Kind::Open(_) => return Err(Ended::Said("open, for a second time")),
            }
        }
    }

    /// Proposes what the peer said, once it is whole and where it is news; looks its gateways'
    /// names up again from time to time.
    async fn import(&self) -> Result<Infallible, Ended> {
        let mut said: Option<v1::Remote> = None;
        let mut look_up = interval(LOOK_UP_EVERY);
        look_up.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (mut batch, mut is_due) = tokio::select! {
                batch = self.pending.take() => (batch, false),
                _ = look_up.tick(), if said.is_some() => (pending::Batch::default(), true),
            };
            if let Some(remote) = batch.remote.take() {
                (said, is_due) = (Some(remote), true);
            }
            let known = match said.clone().filter(|_| is_due) {
                Some(said) => Some(trust::received(self.handle, said, self.peering).await?),
                None => None,
            };
            let state = self.handle.reader.current();
            let Some(row) = live(&state, self.peering) else { return Err(Ended::Deleted) };
            let Some(held) = &row.value.remote else { return Err(Ended::Deleted) };
            let mut remote = known.unwrap_or_else(|| held.clone());
            trust::check_same(&remote, held)?;
            remote.rtt_ms = batch.rtt_ms.or(held.rtt_ms);
            self.keep_way(&mut remote);
            for update in batch.updates(&state, &row.value, Some(remote)) {
                match self.handle.proposer.propose(Command::SyncPeer(update)).await {
                    Ok(_) => {}
                    Err(ProposeError::Rejected(Rejection::UnknownPeering { .. })) => {
                        return Err(Ended::Deleted);
                    }
                    Err(ProposeError::Rejected(full @ Rejection::Full { .. })) => {
                        let peer = &self.peering.name;
                        tracing::error!(%peer, error = %full, "exports of a peer are not taken");
                    }
                    Err(failure) => return Err(failure.into()),
                }
            }
            // However fast a peer talks, the log is written at this pace.
            sleep(BETWEEN_CHANGES).await;
        }
    }

    /// The address that led here stays known, whatever the peer takes its addresses for: it may
    /// be that of a gateway or balancer before it, which a person put into the token.
    fn keep_way(&self, remote: &mut Remote) {
        let Some(way) = self.dialled else { return };
        let is_gateway =
            |way: &str| remote.gateways.iter().any(|gateway| gateway.address.to_string() == way);
        if !is_gateway(way) && !remote.servers.iter().any(|server| **server == *way) {
            remote.servers.insert(0, way.into());
        }
    }
}

const BEAT_EVERY: Duration = Duration::from_secs(1);
/// The first change goes out at once; those in the next moments go together.
const BETWEEN_CHANGES: Duration = Duration::from_millis(50);
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);
const FAREWELL_MAX: Duration = Duration::from_millis(1500);
