//! Flows of datagrams: what comes from one address to a UDP upstream goes to one instance.
//!
//! Tasks: one for each socket, and one for each flow.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{UdpSocket, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Port;
use crate::datagrams::{self, DATAGRAM_BYTES_MAX};
use crate::report::Reporter;

/// The flows of one socket, by the address that they come from.
struct Flows {
    port: Rc<Port>,
    socket: Rc<UdpSocket>,
    open: RefCell<HashMap<SocketAddr, Flow>>,
    opened: Cell<u64>,
}

/// One flow, as the socket's task sees it.
struct Flow {
    number: u64,
    datagrams: mpsc::Sender<Vec<u8>>,
    heard: Duration,
    stop: CancellationToken,
}

impl Port {
    /// Whether what it carries are datagrams.
    pub(crate) fn carries_datagrams(&self) -> bool {
        self.terms.borrow().chain.as_ref().is_some_and(|chain| chain.policies.datagrams)
    }

    /// Carries what comes to `socket`, until `stop`.
    pub(crate) async fn serve_datagrams(
        self: Rc<Self>,
        socket: UdpSocket,
        stop: CancellationToken,
    ) {
        let flows = Rc::new(Flows {
            port: self,
            socket: Rc::new(socket),
            open: RefCell::default(),
            opened: Cell::new(0),
        });
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            let received = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                received = flows.socket.recv_from(&mut buffer) => received,
            };
            // An error tells of an answer that reached nobody.
            if let Ok((length, from)) = received {
                flows.take(from, &buffer[..length], &stop);
            }
        }
        flows.open.borrow().values().for_each(|flow| flow.stop.cancel());
    }
}

impl Flows {
    /// Passes on what came `from` an address: to its flow, or to one that it begins.
    fn take(self: &Rc<Self>, from: SocketAddr, datagram: &[u8], stop: &CancellationToken) {
        let now = self.port.context.clock.now();
        let mut open = self.open.borrow_mut();
        if !open.contains_key(&from) {
            if open.len() >= FLOWS_MAX {
                let oldest = open.iter().min_by_key(|(_, flow)| flow.heard);
                if let Some(oldest) = oldest.map(|(from, _)| *from)
                    && let Some(flow) = open.remove(&oldest)
                {
                    flow.stop.cancel();
                    self.port.pair.datagram_dropped("evicted");
                }
            }
            open.insert(from, self.begin(from, stop));
        }
        let Some(flow) = open.get_mut(&from) else { return };
        flow.heard = now;
        if let Err(refused) = flow.datagrams.try_send(datagram.to_vec()) {
            self.port.pair.datagram_dropped(match refused {
                mpsc::error::TrySendError::Full(_) => "queue_full",
                mpsc::error::TrySendError::Closed(_) => "flow_ended",
            });
        }
    }

    fn begin(self: &Rc<Self>, from: SocketAddr, stop: &CancellationToken) -> Flow {
        let (datagrams, queue) = mpsc::channel(QUEUE_MAX);
        let (number, stop) = (self.opened.get(), stop.child_token());
        self.opened.set(number + 1);
        let (flows, ends) = (self.clone(), stop.clone());
        let context = &self.port.context;
        context.tracker.spawn_local(async move {
            let began = flows.port.context.clock.now();
            let carried = Box::pin(flows.carry(from, queue, &ends)).await;
            if let Err(error) = carried {
                tracing::debug!(%from, %error, "a flow of datagrams ended");
            }
            // Who was refused is not asked for again with each datagram.
            let lived = flows.port.context.clock.now().saturating_sub(began);
            tokio::select! {
                () = ends.cancelled() => {}
                () = flows.port.context.drain.cancelled() => {}
                () = tokio::time::sleep(LIVES_MIN.saturating_sub(lived)) => {}
            }
            let mut open = flows.open.borrow_mut();
            if open.get(&from).is_some_and(|flow| flow.number == number) {
                open.remove(&from);
            }
        });
        Flow { number, datagrams, heard: self.port.context.clock.now(), stop }
    }

    /// Carries one flow until nothing moved for long, its connection ends, or it is stopped.
    async fn carry(
        &self,
        from: SocketAddr,
        queue: mpsc::Receiver<Vec<u8>>,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        let (near, far) = datagrams::pair()?;
        let context = &self.port.context;
        if context.connections.get() >= context.connections_max {
            self.port.pair.datagram_dropped("overloaded");
            return Ok(());
        }
        let _held = context.hold_connection();
        context.report.connections(Reporter::Client, 1);
        let moved = Cell::new(context.clock.now());
        let moving = async {
            tokio::select! {
                biased;
                () = stop.cancelled() => Ok(()),
                ended = self.exchange(from, queue, far, &moved) => ended,
                () = self.idle(&moved) => Ok(()),
            }
            // The far end is dropped here: what carries the flow sees its end.
        };
        let ((), ended) = tokio::join!(self.port.clone().serve(near), moving);
        context.report.connections(Reporter::Client, -1);
        ended
    }

    /// Passes datagrams both ways.
    async fn exchange(
        &self,
        from: SocketAddr,
        mut queue: mpsc::Receiver<Vec<u8>>,
        mut far: UnixStream,
        moved: &Cell<Duration>,
    ) -> io::Result<()> {
        let clock = self.port.context.clock;
        let (mut reader, mut writer) = far.split();
        let there = async {
            while let Some(datagram) = queue.recv().await {
                moved.set(clock.now());
                datagrams::write(&mut writer, &datagram).await?;
            }
            Ok(())
        };
        let back = async {
            let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
            loop {
                let datagram = datagrams::read(&mut reader, &mut buffer).await?;
                moved.set(clock.now());
                if self.socket.send_to(datagram, from).await.is_err() {
                    self.port.pair.datagram_dropped("unsent");
                }
            }
        };
        tokio::select! {
            ended = there => ended,
            ended = back => ended,
        }
    }

    /// Ends once nothing moved for as long as a flow may be silent.
    async fn idle(&self, moved: &Cell<Duration>) {
        let said = self.port.terms().chain.as_ref().and_then(|chain| {
            chain.policies.connections.as_ref().map(|connections| connections.idle(FLOW_IDLE))
        });
        let Some(most) = said.unwrap_or(Some(FLOW_IDLE)) else {
            return std::future::pending().await;
        };
        loop {
            let silent = self.port.context.clock.now().saturating_sub(moved.get());
            if silent >= most {
                return;
            }
            tokio::time::sleep(most - silent).await;
        }
    }
}

/// Most flows of one socket; the one that was silent for longest makes room.
const FLOWS_MAX: usize = 1_024;
/// Most datagrams of one flow that wait.
const QUEUE_MAX: usize = 64;
/// How long a flow may be silent where nothing is said.
const FLOW_IDLE: Duration = Duration::from_secs(60);
/// An address whose flow ended sooner begins another only then.
const LIVES_MIN: Duration = Duration::from_secs(1);
