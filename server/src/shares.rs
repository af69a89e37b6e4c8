//! Shares of rates that hold for all instances of a service: leased by the leader, in its memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hawser_core::health::Status as Health;
use hawser_core::name::{InstanceId, NodeName};
use hawser_core::share::{Ask, Book, Holder};
use hawser_core::state::State;
use hawser_proto::{Invalid, v1};
use tokio::time::timeout;
use tonic::Status;

use crate::dial::{Dialer, Lane};
use crate::raft::Raft;
use crate::read::Reader;

/// Leases shares, at the leader; asks it for them elsewhere. Clones share it.
#[derive(Clone)]
pub(crate) struct Shares {
    raft: Raft,
    dialer: Dialer,
    reader: Reader,
    /// How long a leader may be without its majority and still be the only one.
    lease: Duration,
    began: Instant,
    book: Arc<Mutex<(u64, Book)>>,
}

impl Shares {
    pub(crate) fn new(raft: Raft, dialer: Dialer, reader: Reader, lease: Duration) -> Self {
        let book = Arc::new(Mutex::new((0, Book::new(0, Duration::ZERO))));
        Self { raft, dialer, reader, lease, began: Instant::now(), book }
    }

    /// Leases what instances on `node` ask for.
    ///
    /// # Errors
    /// Too much or something malformed is asked for, or there is no leader to ask.
    pub(crate) async fn lease(
        &self,
        node: NodeName,
        request: v1::LeaseRequest,
    ) -> Result<v1::LeaseReply, Status> {
        let status = Arc::clone(&self.raft.status().borrow());
        if status.is_leader {
            return self.lease_here(&node, request);
        }
        let leader = status.leader.filter(|id| *id != self.raft.id());
        let leader = leader.and_then(|id| status.member(id)).ok_or_else(nobody_leads)?;
        let client = self.dialer.client_of(leader, Lane::Request);
        let mut client = client.map_err(|_| nobody_leads())?;
        let request = v1::LeaseSharesRequest { node: node.to_string(), request: Some(request) };
        let asked = timeout(ASK_MAX, client.lease_shares(request)).await;
        Ok(asked.map_err(|_| nobody_leads())??.into_inner())
    }

    /// The same, at the leader.
    pub(crate) fn lease_here(
        &self,
        node: &NodeName,
        request: v1::LeaseRequest,
    ) -> Result<v1::LeaseReply, Status> {
        let asks: usize = request.instances.iter().map(|instance| instance.asks.len()).sum();
        if request.instances.len() > INSTANCES_MAX || asks > ASKS_MAX {
            let why = format_args!("{INSTANCES_MAX} instances and {ASKS_MAX} asks are the most");
            return Err(invalid(&Invalid::new("lease_request.instances", why)));
        }
        let instances = request.instances.into_iter().map(parse);
        let instances: Vec<(InstanceId, Vec<Ask>)> =
            instances.collect::<Result<_, Invalid>>().map_err(|why| invalid(&why))?;
        let raft = Arc::clone(&self.raft.status().borrow());
        if !raft.is_leader || !raft.leads_within(self.lease) {
            return Err(nobody_leads());
        }
        let state = self.reader.current();
        let now = self.began.elapsed();
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if book.0 != raft.term {
            *book = (raft.term, Book::new(raft.term << TERM_SHIFT, now));
        }
        let leased = |(instance, asks): (InstanceId, Vec<Ask>)| {
            let leases = match state.catalog().instance(node, &instance) {
                None => vec![None; asks.len()],
                Some(row) => {
                    let service = &row.value.service;
                    let holder = Holder { node: node.clone(), instance };
                    let known = alive(&state, service);
                    book.1.lease(service, &holder, &known, &asks, now)
                }
            };
            let leases = leases.into_iter();
            let leases =
                leases.map(|lease| v1::LeasedShare { lease: lease.map(Into::into) }).collect();
            v1::InstanceLeases { leases }
        };
        Ok(v1::LeaseReply { instances: instances.into_iter().map(leased).collect() })
    }
}

fn parse(message: v1::InstanceShares) -> Result<(InstanceId, Vec<Ask>), Invalid> {
    let id = message.instance.parse();
    let id = id.map_err(|why| Invalid::new("instance_shares.instance", why))?;
    let asks = message.asks.into_iter().map(TryInto::try_into);
    Ok((id, asks.collect::<Result<_, _>>()?))
}

/// The instances of `service` in the mesh that may take traffic.
fn alive(state: &State, service: &hawser_core::name::ServiceName) -> Vec<Holder> {
    let may = state.catalog().placed(service).filter(|placed| placed.status() != Health::Critical);
    let holder = |placed: hawser_core::catalog::Placed<'_>| Holder {
        node: placed.node.value.name.clone(),
        instance: placed.instance.value.id.clone(),
    };
    may.map(holder).collect()
}

fn invalid(why: &Invalid) -> Status {
    Status::invalid_argument(why.to_string())
}

fn nobody_leads() -> Status {
    Status::unavailable("the servers have no leader now: the last lease holds until it ends")
}

const ASK_MAX: Duration = Duration::from_millis(1_500);
const INSTANCES_MAX: usize = 1_024;
const ASKS_MAX: usize = 8_192;
/// Leases of one term: more than one each microsecond for an hour.
const TERM_SHIFT: u32 = 32;
