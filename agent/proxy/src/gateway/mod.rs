//! The mesh gateway: connections of other clusters' proxies, passed on by the server name that they
//! ask for, and never decrypted.
//!
//! It holds no key and proves nobody: callers and callees prove themselves to each other, end to
//! end. What it decides is whom a stranger may knock at.
//!
//! Tasks: one for each connection.

mod hello;
mod alert;
mod report;
mod route;
mod permits;
mod targets;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hawser_core::reason::Reason;
use hawser_core::view::View;
use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::relay::{Moved, relay};
use crate::socket;
use hello::{Hello, Unreadable};
use permits::{Hold, Permits};
use report::{Local, Passing};
use route::{Permit, Route};
use targets::{Open, Targets};

pub(crate) use report::Shared;

/// The gateway, in one worker. Its listeners come and go; this stays, and with it what is open.
pub(crate) struct Gateway {
    context: Rc<Context>,
    report: Local,
    permits: Rc<Permits>,
    targets: Rc<Targets>,
    servers: RefCell<Arc<[SocketAddr]>>,
    waiting: Rc<Waiting>,
}

/// A connection on its way: what is dropped with it.
struct Upstream {
    stream: TcpStream,
    hold: Hold,
    _open: Open,
    _passing: Option<Passing>,
}

impl Gateway {
    /// The part of a gateway that is one worker's of `workers`.
    pub(crate) fn new(context: Rc<Context>, shared: Arc<Shared>, workers: usize) -> Self {
        let max = (context.limits.handshakes / workers).max(1);
        Self {
            context,
            report: Local::new(shared),
            permits: Rc::default(),
            targets: Rc::default(),
            servers: RefCell::new(Arc::new([])),
            waiting: Rc::new(Waiting { max, ..Waiting::default() }),
        }
    }

    /// Takes over where the cluster's servers are.
    pub(crate) fn servers(&self, servers: &Arc<[SocketAddr]>) {
        *self.servers.borrow_mut() = servers.clone();
    }

    /// Cuts what is open and no longer may be under `view`.
    pub(crate) fn decide(&self, view: &View) {
        self.permits.decide(view);
    }

    /// Cuts everything, because the proxy ends.
    pub(crate) fn cut_all(&self) {
        self.permits.cut_all();
        self.waiting.cut_all();
    }

    /// Does what is due a few times a second.
    pub(crate) fn tick(&self) {
        self.targets.sweep(self.context.clock.now());
        self.flush();
    }

    /// Hands over what was counted.
    pub(crate) fn flush(&self) {
        self.report.flush();
    }

    /// Counts accepted connections up or down.
    pub(crate) fn connections(&self, change: i64) {
        self.report.open(change);
    }

    /// Counts a connection that is dropped because there are too many.
    pub(crate) fn overloaded(&self) {
        self.report.refused(Reason::Overloaded, None, None, self.context.clock.now());
    }

    /// Carries one connection from its first byte to its last.
    pub(crate) async fn serve(self: Rc<Self>, mut downstream: TcpStream) {
        socket::tune(&downstream);
        let from = downstream.peer_addr().ok();
        let (hello, raw) = match self.listen_to(&mut downstream).await {
            Ok(heard) => heard,
            // Whoever only looks whether the port is open is no news.
            Err(Reason::DownstreamReset) => return self.report.looked_at(Reason::DownstreamReset),
            Err(reason) => return self.refuse(downstream, reason, from, None).await,
        };
        match self.reach(&hello).await {
            Ok(upstream) => self.pass_on(downstream, upstream, raw).await,
            Err(reason) => {
                self.refuse(downstream, reason, from, hello.name.as_deref()).await;
            }
        }
    }

    /// Reads the ClientHello.
    ///
    /// Those that wait are bounded, and when there are too many the one that waited longest is
    /// given up: an honest client's comes at once.
    async fn listen_to(&self, downstream: &mut TcpStream) -> Result<(Hello, Vec<u8>), Reason> {
        let waits = self.waiting.enter();
        let reading = async {
            // Nothing is set aside for a connection that has said nothing yet.
            downstream.readable().await.map_err(|_| Unreadable::Cut)?;
            hello::Reader::default().read(downstream).await
        };
        tokio::select! {
            biased;
            () = waits.given_up.cancelled() => Err(Reason::Overloaded),
            read = tokio::time::timeout(self.context.limits.handshake, reading) => match read {
                Err(_) => Err(Reason::HandshakeTimeout),
                Ok(read) => read.map_err(Unreadable::reason),
            },
        }
    }

    /// Connects to where the name leads, by the view of now.
    async fn reach(&self, hello: &Hello) -> Result<Upstream, Reason> {
        let context = &self.context;
        let Route { permit, candidates } = {
            let (view, servers) = (context.view.borrow(), self.servers.borrow());
            route::route(&view, &servers, &context.locality, hello.name.as_deref())?
        };
        let passing = match permit {
            Permit::Peer(_) => {
                Some(self.report.pass(hello.random).ok_or(Reason::GatewayUnavailable)?)
            }
            _ => None,
        };
        let failed = match permit {
            Permit::Peer(_) => Reason::GatewayUnavailable,
            _ => Reason::ConnectFailed,
        };
        let hold = self.permits.hold(permit);
        let dialling = async {
            let mut tried = Vec::new();
            while tried.len() < usize::from(context.limits.connect_tries) {
                let draw = || context.random.borrow_mut().random();
                let now = context.clock.now();
                let Some(open) = self.targets.choose(&candidates, &tried, now, draw) else { break };
                tried.push(open.address());
                match socket::connect(open.address(), CONNECT).await {
                    Ok(stream) => {
                        open.succeeded();
                        return Ok((stream, open));
                    }
                    Err(error) => {
                        tracing::debug!(address = %open.address(), %error, "cannot be reached");
                        open.failed(context.clock.now());
                    }
                }
            }
            Err(failed)
        };
        let (stream, open) = tokio::select! {
            biased;
            reason = hold.ended() => return Err(reason),
            dialled = tokio::time::timeout(context.limits.handshake, dialling) => {
                dialled.map_err(|_| Reason::ConnectTimeout)??
            }
        };
        socket::tune(&stream);
        Ok(Upstream { stream, hold, _open: open, _passing: passing })
    }

    /// Sends on what was read, then relays until both sides have closed or the permit ends.
    async fn pass_on(&self, mut downstream: TcpStream, mut upstream: Upstream, raw: Vec<u8>) {
        let context = &self.context;
        let mut moved = Moved::default();
        let ended = tokio::select! {
            biased;
            reason = upstream.hold.ended() => Err(reason),
            ended = async {
                let sent = upstream.stream.write_all(&raw).await;
                sent.map_err(|_| Reason::UpstreamReset)?;
                moved.sent = raw.len() as u64;
                drop(raw);
                let (buffers, idle) = (&context.buffers, context.limits.tcp_idle);
                relay(&mut downstream, &mut upstream.stream, buffers, idle, &mut moved).await
            } => ended,
        };
        self.report.relayed(ended.err().unwrap_or(Reason::Ok), moved);
    }

    /// Says no.
    async fn refuse(
        &self,
        mut downstream: TcpStream,
        reason: Reason,
        from: Option<SocketAddr>,
        name: Option<&str>,
    ) {
        self.report.refused(reason, from, name, self.context.clock.now());
        let farewell = async {
            downstream.write_all(&alert::record(reason)).await?;
            downstream.shutdown().await?;
            // Closing on unread bytes would reset the connection and lose the alert.
            let (mut rest, mut left) = ([0; 1024], FAREWELL_READS);
            while left > 0 && downstream.read(&mut rest).await? > 0 {
                left -= 1;
            }
            Ok::<_, io::Error>(())
        };
        let _ = tokio::time::timeout(FAREWELL, Box::pin(farewell)).await;
    }
}

/// The connections whose ClientHello has not come yet, in the order of their arrival.
#[derive(Default)]
struct Waiting {
    max: usize,
    next: Cell<u64>,
    all: RefCell<BTreeMap<u64, CancellationToken>>,
}

/// One of them; leaves when dropped.
struct Waits {
    waiting: Rc<Waiting>,
    number: u64,
    given_up: CancellationToken,
}

impl Waiting {
    fn enter(self: &Rc<Self>) -> Waits {
        let number = self.next.get();
        self.next.set(number + 1);
        let given_up = CancellationToken::new();
        let mut all = self.all.borrow_mut();
        if all.len() >= self.max
            && let Some((_, oldest)) = all.pop_first()
        {
            oldest.cancel();
        }
        all.insert(number, given_up.clone());
        Waits { waiting: self.clone(), number, given_up }
    }

    fn cut_all(&self) {
        for given_up in self.all.take().into_values() {
            given_up.cancel();
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.waiting.all.borrow_mut().remove(&self.number);
    }
}

/// Longest wait for one of several to answer a connection: the caller waits too.
const CONNECT: Duration = Duration::from_millis(1_500);
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_READS: u32 = 64;
