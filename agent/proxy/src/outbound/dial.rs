//! Dialling: to an instance's proxy, or to it through a gateway, until the callee is proven.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use hawser_core::reason::Reason;
use hawser_identity::Anchors;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::reach::Instance;
use crate::context::Context;
use crate::gateways::Gateway;
use crate::socket::{self, Wide};
use crate::tls::{self, ALPN_H2, ALPN_STREAMS};
use crate::watch::OnList;

/// A connection to the proxy of an instance, which has proved that it is the callee.
pub(super) struct Dialled {
    pub(super) stream: TlsStream<Wide>,
    pub(super) listed: OnList,
    /// The gateway that it passes.
    pub(super) gateway: Option<Rc<Gateway>>,
}

/// Dials `instance`, whichever way there is. All that it takes shares `within`.
///
/// # Errors
/// [`Reason::GatewayUnavailable`] when no gateway that leads there answers, or else what
/// happened.
pub(super) async fn dial(
    context: &Rc<Context>,
    instance: &Instance,
    config: Arc<ClientConfig>,
    within: Duration,
) -> Result<Dialled, Reason> {
    let (reach, now) = (instance.reach()?, context.clock.now());
    let (stream, listed, gateway) = match (reach.gateways(now), &instance.name) {
        (Some(gateways), Some(name)) => {
            let anchors = reach.anchors();
            let race = Race { context, name, config, anchors, started: now, within };
            Box::pin(race.run(gateways)).await?
        }
        _ => {
            let (name, anchors) = (reach.name.clone(), reach.anchors());
            let opened = open(context, name, config, instance.address, anchors, within);
            let (stream, listed) = opened.await?;
            (stream, listed, None)
        }
    };
    reach.heard(context.clock.now());
    Ok(Dialled { stream, listed, gateway })
}

type Opened = (TlsStream<Wide>, OnList);
type Attempt<'a> = LocalBoxFuture<'a, (Rc<Gateway>, Duration, Result<Opened, Reason>)>;

/// One dial through any of several gateways.
///
/// One that says nothing is not waited for: the next begins beside it, and the first through which
/// the callee proves itself wins. So a gateway that hangs costs a fraction of the time there is,
/// and one that is far still has all of it.
struct Race<'a> {
    context: &'a Rc<Context>,
    name: &'a ServerName<'static>,
    config: Arc<ClientConfig>,
    anchors: &'a Arc<Anchors>,
    started: Duration,
    within: Duration,
}

impl<'a> Race<'a> {
    async fn run(
        self,
        gateways: Vec<Rc<Gateway>>,
    ) -> Result<(TlsStream<Wide>, OnList, Option<Rc<Gateway>>), Reason> {
        let clock = self.context.clock;
        let mut waiting = gateways.into_iter();
        let mut racing: FuturesUnordered<Attempt<'a>> = FuturesUnordered::new();
        let mut under_way: Vec<(Rc<Gateway>, Duration)> = Vec::new();
        let mut last = None;
        loop {
            if self.may_begin(under_way.len())
                && let Some(gateway) = waiting.next()
            {
                under_way.push((gateway.clone(), clock.now()));
                racing.push(self.attempt(gateway));
            }
            let may_begin = waiting.len() > 0 && self.may_begin(under_way.len());
            let (gateway, began, opened) = tokio::select! {
                biased;
                ended = racing.next() => match ended {
                    Some(ended) => ended,
                    None => break,
                },
                () = tokio::time::sleep(self.within / STAGGER), if may_begin => continue,
            };
            under_way.retain(|(other, _)| !Rc::ptr_eq(other, &gateway));
            let now = clock.now();
            match opened {
                Ok((stream, listed)) => {
                    gateway.heard(now);
                    left_behind(&under_way, now.saturating_sub(began), now);
                    return Ok((stream, listed, Some(gateway)));
                }
                Err(Reason::ConnectFailed | Reason::ConnectTimeout) => gateway.failed(began, now),
                Err(Reason::HandshakeTimeout) if gateway.is_silent_since(began) => {
                    gateway.failed(began, now);
                }
                // It passes others on meanwhile, so the instance does not answer. Or it does not
                // pass this on, and another may know more.
                Err(reason @ (Reason::HandshakeTimeout | Reason::HandshakeFailed)) => {
                    last = Some(reason);
                }
                // The callee itself spoke.
                Err(reason) => {
                    gateway.heard(now);
                    return Err(reason);
                }
            }
        }
        // Some that work may be left: not all is lost then.
        let left = (waiting.len() > 0).then_some(Reason::ConnectTimeout);
        Err(last.or(left).unwrap_or(Reason::GatewayUnavailable))
    }

    /// Whether one more may begin beside `under_way` others: there must be time for it.
    fn may_begin(&self, under_way: usize) -> bool {
        let left = (self.started + self.within).saturating_sub(self.context.clock.now());
        under_way < GATEWAYS_AT_ONCE && left >= self.within / STAGGER
    }

    fn attempt(&self, gateway: Rc<Gateway>) -> Attempt<'a> {
        let (context, name, anchors) = (self.context, self.name.clone(), self.anchors);
        let config = self.config.clone();
        let began = context.clock.now();
        let within = self.within.saturating_sub(began.saturating_sub(self.started));
        Box::pin(async move {
            let opened = open(context, name, config, gateway.address, anchors, within).await;
            (gateway, began, opened)
        })
    }
}

/// Marks those that said nothing for much longer than the winner took.
fn left_behind(under_way: &[(Rc<Gateway>, Duration)], winner_took: Duration, now: Duration) {
    for (gateway, began) in under_way {
        let took = now.saturating_sub(*began);
        if took > winner_took.saturating_mul(MUCH_LONGER) && gateway.is_silent_since(*began) {
            gateway.failed(*began, now);
        }
    }
}

/// Connects to `address` and proves who answers. TCP and TLS share `within`.
async fn open(
    context: &Rc<Context>,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    address: SocketAddr,
    anchors: &Arc<Anchors>,
    within: Duration,
) -> Result<Opened, Reason> {
    let deadline = Instant::now() + within;
    let socket = socket::connect(address, within).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    })?;
    socket::tune(&socket);
    let socket = Wide::new(socket, context.buffers.clone());
    let handshake = TlsConnector::from(config).connect(name, socket);
    let stream = tokio::time::timeout_at(deadline, Box::pin(handshake))
        .await
        .map_err(|_| Reason::HandshakeTimeout)?
        .map_err(|error| tls::reason(&error))?;
    if matches!(stream.get_ref().1.alpn_protocol(), Some(ALPN_H2 | ALPN_STREAMS)) {
        stream.get_ref().0.expect_reader(&context.limits);
    }
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
    let peer = tls::read(chain.first().ok_or(Reason::UntrustedCertificate)?)?;
    let listed = context.watched.watch(peer, chain, None, anchors)?;
    Ok((stream, listed))
}

/// Most gateways that one dial tries at the same time.
const GATEWAYS_AT_ONCE: usize = 3;
/// The next gateway begins after this part of the time there is.
const STAGGER: u32 = 4;
const MUCH_LONGER: u32 = 2;
