//! Faults that a route makes on purpose: a wait, and an answer in place of the application's.

use std::rc::Rc;
use std::time::Duration;

use hawser_core::entry::{FaultInjection, Injected};
use hawser_core::reason::{DecidedBy, Reason};
use http::header::HeaderValue;
use http::{Response, StatusCode};
use rand::RngCore as _;

use super::Port;
use super::branch::Way;
use super::http::{Admitted, within};
use crate::http::{self as hygiene, Body, Manner};
use crate::report::Record;

/// What a request met that is on its way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Met {
    /// How long it waited: part of the time that it has.
    pub(super) late: Duration,
    /// How many bytes of its answer may pass in a second.
    pub(super) bytes_per_second: Option<u64>,
}

impl Way {
    /// Whether its route makes faults.
    pub(super) fn makes_faults(&self) -> bool {
        self.faults().is_some()
    }

    /// How much is left of `whole`, the time that its request has.
    pub(super) fn left(&self, whole: Duration) -> Duration {
        whole.saturating_sub(self.met.late)
    }

    fn faults(&self) -> Option<&FaultInjection> {
        self.policy()?.faults.as_ref()
    }
}

impl Port {
    /// Carries a request as [`Port::carry`] does, through the faults that its route makes.
    pub(super) async fn carry_through_faults(
        self: Rc<Self>,
        mut way: Way,
        admitted: Admitted,
    ) -> Response<Body> {
        let Injected { delay, abort, bytes_per_second } = {
            let mut random = self.context.random.borrow_mut();
            let drawn = way.faults().map(|faults| faults.draw(|| random.next_u64()));
            drawn.unwrap_or_default()
        };
        let late = delay.unwrap_or_default();
        if delay.is_some() {
            self.pair.injected("delay");
            let left = self.time_of(&way, &admitted);
            tokio::time::sleep(late.min(left)).await;
            if late >= left {
                let reason = Reason::RequestTimeout;
                return self.stop(admitted, reason, hygiene::status(reason), None);
            }
        }
        if let Some((status, grpc)) = abort {
            self.pair.injected("abort");
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            return self.stop(admitted, Reason::FaultInjected, status, Some(grpc));
        }
        if bytes_per_second.is_some() {
            self.pair.injected("bandwidth");
        }
        way.met = Met { late, bytes_per_second };
        self.carry(way, admitted).await
    }

    /// How long a request has.
    fn time_of(&self, way: &Way, admitted: &Admitted) -> Duration {
        let terms = self.terms();
        let Some(mut chain) = terms.chain.clone() else { return Duration::ZERO };
        if let Some(own) = way.policy().and_then(|policy| policy.request_timeout) {
            Rc::make_mut(&mut chain).request_timeout = own;
        }
        within(&chain, admitted.request.headers())
    }

    /// Answers a request in place of the application, and reports it.
    fn stop(
        &self,
        admitted: Admitted,
        reason: Reason,
        status: StatusCode,
        grpc: Option<u8>,
    ) -> Response<Body> {
        let Admitted { request, started, id, trail, .. } = admitted;
        let record = self.record(reason, started);
        self.pair.record(&Record { status: Some(status.as_u16()), attempts: 0, trail, ..record });
        let is_grpc = hygiene::is_grpc(request.headers());
        let manner = Manner::new(is_grpc, request.method());
        let mut response = hygiene::refusal(status, reason, DecidedBy::ClientProxy, manner);
        if let Some(status) = grpc.filter(|_| is_grpc) {
            response.headers_mut().insert("grpc-status", HeaderValue::from(u16::from(status)));
        }
        hygiene::named(response, &id)
    }
}
