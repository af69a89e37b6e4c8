//! Lifespans: when a connection ends though both of its ends would go on.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::policy::Policies;
use hawser_core::reason::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::relay::{Moved, relay};
use crate::socket::Buffers;

/// How long one connection may live.
pub(crate) struct Lifespan {
    idle: Duration,
    longest: Option<Duration>,
    moves: Option<Moves>,
}

/// When a connection should move.
pub(crate) struct Moves {
    /// Cancelled when its instance may take no more.
    pub(crate) gone: CancellationToken,
    /// Cancelled when what decides where it goes changed.
    pub(crate) changed: CancellationToken,
    /// How long it then stays, so that not all move at once.
    pub(crate) wait: Duration,
}

impl Lifespan {
    /// What `policies` say, with `usual` as the longest silence where they do not.
    pub(crate) fn new(policies: &Policies, usual: Duration) -> Self {
        let said = policies.connections.as_ref();
        Self {
            idle: said.map_or(Some(usual), |it| it.idle(usual)).unwrap_or(FOR_EVER),
            longest: said.and_then(|it| it.longest()),
            moves: None,
        }
    }

    /// The same, for a connection that moves with its target.
    pub(crate) fn moving(self, moves: Option<Moves>) -> Self {
        Self { moves, ..self }
    }

    /// Relays until both directions are closed or the time is over.
    ///
    /// # Errors
    /// Those of [`relay`], [`Reason::DurationLimit`] and [`Reason::ConnectionMoved`].
    pub(crate) async fn relay<D, U>(
        &self,
        downstream: &mut D,
        upstream: &mut U,
        buffers: &Arc<Buffers>,
        moved: &mut Moved,
    ) -> Result<(), Reason>
    where
        D: AsyncRead + AsyncWrite + Unpin,
        U: AsyncRead + AsyncWrite + Unpin,
    {
        self.bound(relay(downstream, upstream, buffers, self.idle, moved), |reason| reason).await
    }

    /// The longest silence.
    pub(crate) fn idle(&self) -> Duration {
        self.idle
    }

    /// Lets `relaying` go on until it ends or the time is over; `over` says how the latter is told.
    ///
    /// # Errors
    /// Those of `relaying`, [`Reason::DurationLimit`] and [`Reason::ConnectionMoved`].
    pub(crate) async fn bound<E>(
        &self,
        relaying: impl Future<Output = Result<(), E>>,
        over: impl Fn(Reason) -> E,
    ) -> Result<(), E> {
        tokio::select! {
            biased;
            ended = relaying => ended,
            () = self.longest() => Err(over(Reason::DurationLimit)),
            () = self.moves() => Err(over(Reason::ConnectionMoved)),
        }
    }

    async fn longest(&self) {
        match self.longest {
            Some(span) => tokio::time::sleep(span).await,
            None => pending().await,
        }
    }

    async fn moves(&self) {
        let Some(Moves { gone, changed, wait }) = &self.moves else { return pending().await };
        tokio::select! {
            () = gone.cancelled() => {}
            () = changed.cancelled() => {}
        }
        tokio::time::sleep(*wait).await;
    }
}

/// Beyond the life of any process, and still a time that clocks can hold.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 86_400);

#[cfg(test)]
mod tests {
    use tokio::io::duplex;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_its_time_is_over() {
        let within = |secs| Some(Duration::from_secs(secs));
        let cases = [
            // entry, seconds until its target changes, ended as, after seconds
            ("{}", None, Reason::IdleTimeout, 60),
            (r#"{"IdleTimeout":"5s"}"#, None, Reason::IdleTimeout, 5),
            (r#"{"IdleTimeout":"0s","MaxDuration":"900s"}"#, None, Reason::DurationLimit, 900),
            (r#"{"MaxDuration":"30s"}"#, None, Reason::DurationLimit, 30),
            ("{}", within(10), Reason::ConnectionMoved, 13),
            (r#"{"MaxDuration":"12s"}"#, within(10), Reason::DurationLimit, 12),
        ];
        for (json, changes, expected, secs) in cases {
            let json = format!(r#"{{"connections":{json}}}"#);
            let policies: Policies = serde_json::from_str(&json).expect(&json);
            let changed = CancellationToken::new();
            let moves = changes.map(|after| {
                let token = changed.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    token.cancel();
                });
                let (gone, wait) = (CancellationToken::new(), Duration::from_secs(3));
                Moves { gone, changed: changed.clone(), wait }
            });
            let life = Lifespan::new(&policies, Duration::from_secs(60)).moving(moves);
            let (_app, mut downstream) = duplex(16);
            let (mut upstream, _server) = duplex(16);
            let (began, mut moved) = (Instant::now(), Moved::default());
            let buffers = Arc::new(Buffers::default());
            let ended = life.relay(&mut downstream, &mut upstream, &buffers, &mut moved).await;
            assert_eq!((ended, began.elapsed().as_secs()), (Err(expected), secs), "{json}");
        }
    }
}
