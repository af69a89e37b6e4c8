//! Connections of TCP services: an instance is found, and bytes are relayed.

use std::rc::Rc;
use std::time::Duration;

use hawser_core::balance::{Ask, Pick};
use hawser_core::chain::Chain;
use hawser_core::name::PeerName;
use hawser_core::reason::{DecidedBy, Reason};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::Port;
use super::reach::Instance;
use super::streams::{Opened, Sessions};
use super::terms::Affinity;
use crate::lifespan::{Lifespan, Moves};
use crate::relay::Moved;
use crate::report::{Record, Upstream};
use crate::socket::Wide;
use crate::streams::{Lost, Stream};
use crate::tls::{self, ALPN_TCP};
use crate::watch::OnList;

/// A connection to an instance whose application accepts it.
struct Connected {
    way: Way,
    pick: Pick,
    upstream: Rc<Upstream>,
    cluster: Option<PeerName>,
    moves: Option<Moves>,
}

/// How an accepted connection is carried.
enum Way {
    Shared(Stream),
    Own(Box<TlsStream<Wide>>, OnList),
}

/// How a relay went, and whose doing that was.
type Carried = (Moved, Result<(), (Reason, DecidedBy)>);

impl Port {
    pub(super) async fn serve_tcp(&self, downstream: TcpStream, chain: &Chain) {
        let context = &self.context;
        let started = context.clock.now();
        let mut attempts = 0;
        let terms = self.terms();
        let source = if terms.hashes_source() { downstream.peer_addr().ok() } else { None };
        let hash = source.and_then(|source| Affinity::of_source(&terms, Some(source)));
        let connected = self.connect_tcp(chain, hash, &mut attempts).await;
        let Connected { way, pick, upstream, cluster, moves } = match connected {
            Ok(connected) => connected,
            Err((reason, decided_by)) => {
                let record = self.record(reason, started);
                self.pair.record(&Record { decided_by, attempts, ..record });
                // An error for the application to see, and not an empty answer.
                let _ = socket2::SockRef::from(&downstream).set_linger(Some(Duration::ZERO));
                return;
            }
        };
        self.balancer.borrow_mut().open(pick.peer);
        let life = Lifespan::new(&chain.policies, context.limits.tcp_idle).moving(moves);
        let (moved, ended) = match way {
            Way::Shared(stream) => carry(downstream, &stream, &life).await,
            Way::Own(stream, listed) => {
                Box::pin(self.relay_alone(downstream, stream, listed, &life)).await
            }
        };
        self.balancer.borrow_mut().close(pick.peer);
        let (reason, decided_by) = match ended {
            Ok(()) => (Reason::Ok, DecidedBy::Application),
            Err(ended) => ended,
        };
        self.pair.record(&Record {
            decided_by,
            bytes_sent: moved.sent,
            bytes_received: moved.received,
            attempts,
            upstream: Some(upstream),
            cluster,
            ..self.record(reason, started)
        });
    }

    /// Relays over a connection that carries nothing else.
    async fn relay_alone(
        &self,
        mut downstream: TcpStream,
        mut peer: Box<TlsStream<Wide>>,
        listed: OnList,
        life: &Lifespan,
    ) -> Carried {
        let mut moved = Moved::default();
        let buffers = &self.context.buffers;
        let ended = tokio::select! {
            biased;
            () = listed.watched.cut.cancelled() => Err(listed.watched.why()),
            ended = life.relay(&mut downstream, &mut *peer, buffers, &mut moved) => ended,
        };
        part(&downstream, ended);
        let decided_by = |reason: Reason| match reason {
            reason if reason.ends_connections() => DecidedBy::ClientProxy,
            _ => DecidedBy::Application,
        };
        (moved, ended.map_err(|reason| (reason, decided_by(reason))))
    }

    /// Finds an instance whose application accepts the connection. Nothing of the application's
    /// own bytes is sent before, so every failure may be tried again elsewhere.
    async fn connect_tcp(
        &self,
        chain: &Chain,
        hash: Option<u64>,
        attempts: &mut u8,
    ) -> Result<Connected, (Reason, DecidedBy)> {
        let limits = &self.context.limits;
        let mut tried = Vec::new();
        let mut last = (Reason::NoEndpoint, DecidedBy::ClientProxy);
        while *attempts < limits.connect_tries {
            let ask = Ask { tried: &tried, may_probe: true, hash };
            let Ok(picked) = self.pick(ask) else { break };
            *attempts += 1;
            let (pick, began) = (picked.pick, self.context.clock.now());
            tried.push(pick.peer);
            match Box::pin(self.open_tcp(chain, &picked.instance)).await {
                Ok(way) => {
                    let cluster = picked.instance.peer().cloned();
                    let upstream = picked.instance.upstream.clone();
                    let moves = self.moves(&picked.instance, &chain.policies);
                    let now = self.context.clock.now();
                    picked.answered(now.saturating_sub(began), now);
                    return Ok(Connected { way, pick, upstream, cluster, moves });
                }
                Err((Reason::NoIdentity, by)) => return Err((Reason::NoIdentity, by)),
                Err((reason, DecidedBy::ServerProxy)) if !reason.is_before_request() => {
                    // The callee's proxy answered, and will not change its mind elsewhere.
                    let now = self.context.clock.now();
                    picked.answered(now.saturating_sub(began), now);
                    return Err((reason, DecidedBy::ServerProxy));
                }
                Err((reason, by)) => {
                    picked.failed(reason, began);
                    last = (reason, by);
                }
            }
        }
        Err(last)
    }

    /// # Errors
    /// Why the instance or its application takes no connection, and who says so.
    async fn open_tcp(
        &self,
        chain: &Chain,
        instance: &Rc<Instance>,
    ) -> Result<Way, (Reason, DecidedBy)> {
        let own = |reason| (reason, DecidedBy::ClientProxy);
        let within = chain.connect_timeout + chain.local_connect_timeout;
        let mut may_again = true;
        loop {
            instance.reach().map_err(own)?;
            let opening = Sessions::open(&self.context, instance, chain.connect_timeout);
            let stream = match Box::pin(opening).await.map_err(own)? {
                Opened::Own(stream, listed) => {
                    return Box::pin(alone(stream, listed, within)).await;
                }
                Opened::Shared(stream) => stream,
            };
            return match tokio::time::timeout(within, stream.verdict()).await {
                Err(_) => {
                    stream.give_up(Reason::ConnectTimeout);
                    Err(own(Reason::ConnectTimeout))
                }
                Ok(Ok(code)) => accepted(code).map(|()| Way::Shared(stream)),
                // The connection ended under a stream that came too late for it.
                Ok(Err(Lost { was_good: true, .. })) if may_again => {
                    may_again = false;
                    continue;
                }
                Ok(Err(Lost { reason, .. })) => Err(unanswered(reason)),
            };
        }
    }
}

/// Relays over a place in a connection with others.
async fn carry(downstream: TcpStream, stream: &Stream, life: &Lifespan) -> Carried {
    let ended = stream.carry(downstream, life).await;
    if let Some(downstream) = stream.detach() {
        part(&downstream, ended.map_err(|(reason, _)| reason));
    }
    (stream.moved(), ended)
}

/// Lets the application see that its connection broke, and not an end. Where it only was time,
/// nothing broke.
fn part(downstream: &TcpStream, ended: Result<(), Reason>) {
    if !matches!(ended, Ok(()) | Err(Reason::DurationLimit | Reason::ConnectionMoved)) {
        let _ = socket2::SockRef::from(downstream).set_linger(Some(Duration::ZERO));
    }
}

/// Waits for the verdict on a connection of its own.
async fn alone(
    mut stream: Box<TlsStream<Wide>>,
    listed: OnList,
    within: Duration,
) -> Result<Way, (Reason, DecidedBy)> {
    if stream.get_ref().1.alpn_protocol() != Some(ALPN_TCP) {
        // Consul's own proxies say nothing: relaying begins at once.
        return Ok(Way::Own(stream, listed));
    }
    match tokio::time::timeout(within, stream.read_u8()).await {
        Err(_) => Err((Reason::ConnectTimeout, DecidedBy::ClientProxy)),
        Ok(Err(error)) => Err(unanswered(tls::reason(&error))),
        Ok(Ok(code)) => accepted(code).map(|()| Way::Own(stream, listed)),
    }
}

/// What a callee's verdict says.
fn accepted(code: u8) -> Result<(), (Reason, DecidedBy)> {
    match Reason::from_code(code).unwrap_or(Reason::UpstreamProtocol) {
        Reason::Ok => Ok(()),
        reason => Err((reason, DecidedBy::ServerProxy)),
    }
}

/// What it means that a connection ended for `reason` before the verdict. A refusal of our
/// certificate arrives only then: TLS 1.3 lets the client finish first.
fn unanswered(reason: Reason) -> (Reason, DecidedBy) {
    match reason {
        Reason::PolicyCut | Reason::Draining | Reason::ConnectTimeout => {
            (reason, DecidedBy::ClientProxy)
        }
        Reason::Ok | Reason::HandshakeFailed | Reason::HandshakeTimeout | Reason::UpstreamReset => {
            (Reason::ConnectFailed, DecidedBy::ClientProxy)
        }
        reason => (reason, DecidedBy::ServerProxy),
    }
}
