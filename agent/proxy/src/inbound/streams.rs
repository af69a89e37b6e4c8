//! Inbound streams: many connections of one caller in one mTLS connection, each judged by itself.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use hawser_core::name::ServiceName;
use hawser_core::reason::{DecidedBy, Reason};
use hawser_core::spiffe::SpiffeId;
use hawser_http1::server;
use http::Request;
use http::header::HeaderValue;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{Connection, FAREWELL, Open, Port, RENEWED_WITHIN};
use crate::http::Incoming;
use crate::lifespan::Lifespan;
use crate::report::{Pair, Record, Reporter};
use crate::socket::Wide;
use crate::streams::{Channel, Entry, Session, Side, Stream};
use crate::watch::{OnList, Ruled};

/// One authenticated connection that carries streams.
pub(super) struct Carrier {
    pub(super) port: Rc<Port>,
    /// Watched for its caller's certificate; each stream is watched for what it may.
    pub(super) listed: OnList,
    pub(super) source: ServiceName,
    pub(super) pair: Rc<Pair>,
    /// The host that the connection came from.
    pub(super) from: HeaderValue,
    /// Who proved to be at its other end, and to whom.
    pub(super) caller: HeaderValue,
}

impl Carrier {
    /// Carries streams until the caller closes the connection, or nobody needs it.
    ///
    /// Where it drains, or has a new leaf, the caller is told to open others elsewhere. It closes
    /// this connection with its last stream, so none that it has asked for meanwhile is lost.
    pub(super) async fn serve(self, mut stream: TlsStream<Wide>, superseded: CancellationToken) {
        let (context, carrier) = (self.port.context.clone(), Rc::new(self));
        // What is counted is what applications take for connections.
        context.report.connections(Reporter::Server, -1);
        let session = Session::new(Side::Callee, Entry::Judged, &context.buffers);
        let watched = carrier.listed.watched.clone();
        let idle = context.limits.session_idle.saturating_mul(CALLERS_FIRST);
        let why = {
            let mut driving = std::pin::pin!(session.drive(&mut stream, |stream| {
                context.tracker.spawn_local(carrier.clone().admit(stream));
            }));
            let first = tokio::select! {
                biased;
                () = watched.cut.cancelled() => Some(watched.why()),
                why = driving.as_mut() => Some(why),
                () = context.drain.cancelled() => None,
                () = context.after(superseded, RENEWED_WITHIN) => None,
                () = session.idle(idle) => None,
            };
            match first {
                Some(why) => why,
                None => {
                    session.leave();
                    tokio::select! {
                        biased;
                        () = watched.cut.cancelled() => watched.why(),
                        why = driving => why,
                        () = session.idle(idle) => Reason::Ok,
                    }
                }
            }
        };
        session.end(why);
        context.report.connections(Reporter::Server, 1);
        let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
    }

    /// Counts and watches one stream, and carries it.
    async fn admit(self: Rc<Self>, stream: Stream) {
        let (port, context) = (&self.port, &self.port.context);
        let open = Open::new(&port.open);
        let is_full = context.connections.get() >= context.connections_max;
        let _counted = context.hold_connection();
        let caller: &SpiffeId = &self.listed.watched.peer.id;
        let ruled = Ruled::new(&context.view.borrow(), caller, &port.service, false);
        let (rule, before) = (ruled.rule(), open.before);
        let listed = context.watched.watch_stream(&self.listed.watched, ruled);
        listed.watched.note(&context.view.borrow(), rule);
        let connection = Connection {
            port: port.clone(),
            listed: Rc::new((listed, open)),
            source: self.source.clone(),
            pair: self.pair.clone(),
            protocol: hawser_core::catalog::Protocol::Tcp,
            from: self.from.clone(),
            caller: self.caller.clone(),
        };
        context.report.connections(Reporter::Server, 1);
        let is_full = is_full || stream.is_crowded();
        connection.serve_stream(stream, before, is_full).await;
        context.report.connections(Reporter::Server, -1);
    }
}

impl Connection {
    /// Serves a caller whose proxy sends requests in streams of this connection; until its leaf is
    /// to be shown anew, when `renewed` ends, or it drains.
    ///
    /// Then the caller is told to ask elsewhere. It closes the connection when it has its last
    /// answer, so nothing that it has asked for meanwhile is lost.
    pub(super) async fn serve_requests(
        self,
        mut stream: TlsStream<Wide>,
        renewed: impl Future<Output = ()>,
    ) {
        let (context, listed) = (self.port.context.clone(), self.listed.clone());
        let session = Session::new(Side::Callee, Entry::Open, &context.buffers);
        let watched = &listed.0.watched;
        let why = {
            let mut driving = std::pin::pin!(session.drive(&mut stream, |stream| {
                context.tracker.spawn_local(self.clone().serve_channel(stream));
            }));
            let first = tokio::select! {
                biased;
                () = watched.cut.cancelled() => Some(watched.why()),
                why = driving.as_mut() => Some(why),
                () = context.drain.cancelled() => None,
                () = renewed => None,
            };
            match first {
                Some(why) => why,
                None => {
                    session.leave();
                    tokio::select! {
                        biased;
                        () = watched.cut.cancelled() => watched.why(),
                        why = driving => why,
                    }
                }
            }
        };
        session.end(why);
        let _ = tokio::time::timeout(FAREWELL, stream.shutdown()).await;
    }

    /// Answers the requests of one stream, one after another.
    async fn serve_channel(self, stream: Stream) {
        stream.accept();
        let (context, connection) = (self.port.context.clone(), self.clone());
        let answer = move |request: Request<_>| self.clone().answer(request.map(Incoming::Http1));
        let settings = &context.http1.between;
        let (channel, ahead) = (Channel::new(stream), BytesMut::new());
        // The caller ends it, for it knows whether it has asked for anything.
        let never = std::future::pending();
        let ended = server::serve(channel, ahead, settings, answer, &context.drain, never).await;
        if let Some(fault) = ended.err().and_then(|error| error.fault()) {
            connection.broken_request(fault);
        }
    }

    /// Carries one stream. The order is the security argument: authorize, only then dial.
    async fn serve_stream(self, stream: Stream, before: usize, is_full: bool) {
        let context = &self.port.context;
        let started = context.clock.now();
        let chain = match self.port.chain() {
            None => return self.refuse(&stream, Reason::ViewMissing, started),
            Some(chain) => chain,
        };
        if chain.protocol.is_http() {
            // It carried bytes when the connection began: others will be judged by what they ask.
            stream.leave();
            return self.refuse(&stream, Reason::Draining, started);
        }
        if let Some(refusal) = self.watched().refusal() {
            return self.refuse(&stream, refusal, started);
        }
        if is_full || chain.inbound_connections_max.is_some_and(|most| before >= most as usize) {
            return self.refuse(&stream, Reason::Overloaded, started);
        }
        let application = match self.port.dial(chain.local_connect_timeout).await {
            Ok(application) => application,
            Err(reason) => return self.refuse(&stream, reason, started),
        };
        stream.accept();
        let life = Lifespan::new(&chain.policies, context.limits.tcp_idle);
        let ended = tokio::select! {
            biased;
            () = self.watched().cut.cancelled() => {
                let why = self.watched().why();
                stream.give_up(why);
                Err((why, DecidedBy::ServerProxy))
            }
            ended = stream.carry(application, &life) => ended,
        };
        let (reason, decided_by) = match ended {
            Ok(()) => (Reason::Ok, DecidedBy::Application),
            Err(ended) => ended,
        };
        if let Some(application) = stream.detach().filter(|_| !is_timely(reason)) {
            // An error for the application to see, and not an end.
            let _ = socket2::SockRef::from(&application).set_linger(Some(Duration::ZERO));
        }
        let moved = stream.moved();
        self.pair.record(&Record {
            decided_by,
            bytes_sent: moved.sent,
            bytes_received: moved.received,
            ..self.record(reason, started)
        });
    }

    fn refuse(&self, stream: &Stream, reason: Reason, started: Duration) {
        stream.refuse(reason);
        self.pair.record(&self.record(reason, started));
    }
}

/// Whether a connection that ended for `reason` ended well, or only because its time was over.
fn is_timely(reason: Reason) -> bool {
    matches!(reason, Reason::Ok | Reason::DurationLimit | Reason::ConnectionMoved)
}

/// Callers close idle connections first, for they know that they have asked for nothing.
const CALLERS_FIRST: u32 = 4;
