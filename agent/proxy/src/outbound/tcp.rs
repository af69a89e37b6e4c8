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
use super::dial::dial;
use super::reach::Instance;
use super::terms::Affinity;
use crate::lifespan::{Lifespan, Moves};
use crate::relay::Moved;
use crate::report::{Record, Upstream};
use crate::socket::Wide;
use crate::tls::{self, ALPN_TCP};
use crate::watch::OnList;

/// A connection to an instance whose application accepts it.
struct Connected {
    stream: TlsStream<Wide>,
    listed: OnList,
    pick: Pick,
    upstream: Rc<Upstream>,
    cluster: Option<PeerName>,
    moves: Option<Moves>,
}

impl Port {
    pub(super) async fn serve_tcp(&self, mut downstream: TcpStream, chain: &Chain) {
        let context = &self.context;
        let started = context.clock.now();
        let mut attempts = 0;
        let terms = self.terms();
        let source = if terms.hashes_source() { downstream.peer_addr().ok() } else { None };
        let hash = source.and_then(|source| Affinity::of_source(&terms, Some(source)));
        let connected = self.connect_tcp(chain, hash, &mut attempts).await;
        let Connected { stream: mut peer, listed, pick, upstream, cluster, moves } = match connected
        {
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
        let mut moved = Moved::default();
        let life = Lifespan::new(&chain.policies, context.limits.tcp_idle).moving(moves);
        let ended = tokio::select! {
            biased;
            () = listed.watched.cut.cancelled() => Err(listed.watched.why()),
            ended = life.relay(&mut downstream, &mut peer, &context.buffers, &mut moved) => ended,
        };
        self.balancer.borrow_mut().close(pick.peer);
        let reason = ended.err().unwrap_or(Reason::Ok);
        let decided_by = match reason {
            reason if reason.ends_connections() => DecidedBy::ClientProxy,
            _ => DecidedBy::Application,
        };
        // Where it only was time, nothing broke.
        if !matches!(reason, Reason::Ok | Reason::DurationLimit | Reason::ConnectionMoved) {
            let _ = socket2::SockRef::from(&downstream).set_linger(Some(Duration::ZERO));
        }
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
                Ok((stream, listed)) => {
                    let cluster = picked.instance.peer().cloned();
                    let upstream = picked.instance.upstream.clone();
                    let moves = self.moves(&picked.instance, &chain.policies);
                    let now = self.context.clock.now();
                    picked.answered(now.saturating_sub(began), now);
                    return Ok(Connected { stream, listed, pick, upstream, cluster, moves });
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

    async fn open_tcp(
        &self,
        chain: &Chain,
        instance: &Rc<Instance>,
    ) -> Result<(TlsStream<Wide>, OnList), (Reason, DecidedBy)> {
        let own = |reason| (reason, DecidedBy::ClientProxy);
        let config = instance.reach().map_err(own)?.tcp.clone();
        let dialled = dial(&self.context, instance, config, chain.connect_timeout).await;
        let dialled = dialled.map_err(own)?;
        let (mut stream, listed) = (dialled.stream, dialled.listed);
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_TCP) {
            // Consul's own proxies say nothing: relaying begins at once.
            return Ok((stream, listed));
        }
        let verdict = stream.read_u8();
        let within = chain.connect_timeout + chain.local_connect_timeout;
        match tokio::time::timeout(within, verdict).await {
            Err(_) => Err(own(Reason::ConnectTimeout)),
            // A refusal of our certificate arrives only now: TLS 1.3 lets the client finish first.
            Ok(Err(error)) => match tls::reason(&error) {
                Reason::HandshakeFailed => Err(own(Reason::ConnectFailed)),
                reason => Err((reason, DecidedBy::ServerProxy)),
            },
            Ok(Ok(code)) => match Reason::from_code(code).unwrap_or(Reason::UpstreamProtocol) {
                Reason::Ok => Ok((stream, listed)),
                reason => Err((reason, DecidedBy::ServerProxy)),
            },
        }
    }
}
