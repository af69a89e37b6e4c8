//! One server: everything wired in start order.
//!
//! Tasks, all spawned by [`Server::run`]: the listener, the leader's duties, joining, reports of
//! leases, room on the disk, streams with peers, and whom the listener trusts. The first that ends ends all.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_aws::{Ambient, Finder, InvalidQuery, Query};
use hawser_core::peering::PeerState;
use hawser_core::state::{Cluster, Topic};
use hawser_proto::Member;
use prometheus::{IntCounterVec, Registry};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::acl::Acl;
use crate::autopilot::Pilot;
use crate::aws_iam::{self, Verifier};
use crate::ca::Ca;
use crate::config::Config;
use crate::contacts::Contacts;
use crate::dial::Dialer;
use crate::handle::Handle;
use crate::history::{self, History};
use crate::identity::{Identity, IdentityError};
use crate::join::{self, Acquaintances, InvalidSeed, Join, Seed};
use crate::leader::{self, Duties, Leases, expire};
use crate::metrics::Metrics;
use crate::operate::Operator;
use crate::peering::{self, PeeringRpc};
use crate::propose::Proposer;
use crate::raft::{Raft, Setup};
use crate::read::{Contact, Reader};
use crate::request_limits::RequestLimits;
use crate::roster::Roster;
use crate::rpc::agent::AgentRpc;
use crate::rpc::raft::Answers;
use crate::shares::Shares;
use crate::snapshot::Snapshots;
use crate::space::Space;
use crate::store::{self, Store};
use crate::tls::{self, PeerServers, Trusted};
use crate::watch::{Published, Watches};

/// A server that has opened its store and takes part in the consensus once it [runs](Self::run).
pub struct Server {
    handle: Handle,
    raft: Raft,
    store_failed: watch::Receiver<Option<Arc<str>>>,
    listener: tokio::net::TcpListener,
    routes: Routes,
    trusted: watch::Sender<Trusted>,
    refused: IntCounterVec,
    duties: Duties,
    join: Join,
    /// Cancelled when writes are no longer taken.
    stopping: CancellationToken,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its own certificate cannot be made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There is nothing to make nonces of.
    #[error(transparent)]
    Random(#[from] aws_iam::NoRandomness),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The data folder cannot be used.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// The snapshots or the log cannot be read.
    #[error("{path}: {source}")]
    State {
        /// The data folder.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The traffic history can be neither opened nor begun anew.
    #[error(transparent)]
    History(#[from] history::OpenError),
    /// An entry of `retry_join` can be no address.
    #[error(transparent)]
    Seed(#[from] InvalidSeed),
    /// An entry of `retry_join` asks AWS for nothing that there is.
    #[error("retry_join: {0}")]
    Query(#[from] InvalidQuery),
    /// The listener cannot be used.
    #[error("the server's port cannot be used: {0}")]
    Listener(io::Error),
    /// A metric is registered twice.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Why a server ended other than by its drain.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log could not be written. The process must end: after a failed fsync nobody knows what
    /// is on the disk.
    #[error("the Raft log could not be written: {0}")]
    Storage(Arc<str>),
    /// Consensus ended here.
    #[error("consensus ended on this server: see the log")]
    Consensus,
    /// A task ended that should not.
    #[error("a task ended: {0}")]
    Task(String),
}

impl Server {
    /// Opens the store and starts consensus from what it holds; `listener` is bound to the port
    /// that `config.advertise` leads to.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn start(
        config: Config,
        listener: TcpListener,
        registry: &Registry,
    ) -> Result<Self, StartError> {
        let (finders, seeds) = seeds(&config.retry_join)?;
        listener.set_nonblocking(true).map_err(StartError::Listener)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(StartError::Listener)?;
        let metrics = Metrics::register(registry)?;
        let identity =
            Arc::new(Identity::new(&config.operator_key, &config.datacenter, &config.node)?);
        let aws_iam = verifier(&config, &identity)?;
        let dialer = Dialer::new(tls::dial_config(&identity)?);
        let (store, snapshots, history) = open(&config, &identity, &metrics).await?;

        let store_failed = store.failed();
        let refused = metrics.connections_refused.clone();
        let watches = Watches::new(metrics.watches.clone());
        let published = Published::new(watches.clone());
        let space = Space::new(config.data_dir.clone(), metrics.disk_free_bytes.clone());
        let setup = Setup {
            cluster_id: identity.cluster_id(),
            config: &config,
            store: Arc::new(store),
            snapshots: snapshots.clone(),
            published: published.clone(),
            dialer: dialer.clone(),
            space: space.clone(),
            metrics: metrics.clone(),
        };
        let raft = Raft::start(setup)
            .await
            .map_err(|source| StartError::State { path: config.data_dir.clone(), source })?;

        let own = Member {
            id: raft.id(),
            name: config.node.clone(),
            address: config.advertise.to_string(),
        };
        let (stopping, contact) = (CancellationToken::new(), Contact::new());
        let lease = config.timing.election_max;
        let reader =
            Reader::new(raft.clone(), dialer.clone(), published.clone(), contact.clone(), &config);
        let pilot = Pilot::new(raft.id(), lease);
        let limited = metrics.requests_limited.clone();
        let handle = Handle {
            proposer: Proposer::new(
                raft.clone(),
                dialer.clone(),
                metrics,
                space.clone(),
                published,
                stopping.clone(),
            ),
            reader: reader.clone(),
            watches,
            leases: Leases::default(),
            roster: Roster::new(own.clone(), raft.clone(), contact.clone()),
            identity: identity.clone(),
            ca: Arc::new(Ca::new(identity.clone(), config.leaf_lifetime)),
            history,
            acl: Arc::new(Acl::new(config.acl.clone())),
            shares: Shares::new(raft.clone(), dialer.clone(), reader.clone(), lease),
            limits: RequestLimits::new(reader.clone(), limited),
            operator: Operator { raft: raft.clone(), dialer: dialer.clone(), pilot, reader },
            dialer: dialer.clone(),
            contacts: Contacts::default(),
        };
        let acquaintances = Acquaintances::default();
        let answers = Answers {
            own: own.clone(),
            bootstrap_expect: config.bootstrap_expect,
            raft: raft.clone(),
            dialer: dialer.clone(),
            snapshots,
            proposer: handle.proposer.clone(),
            leases: handle.leases.clone(),
            contact: contact.clone(),
            space: space.clone(),
            history: handle.history.clone(),
            acquaintances: acquaintances.clone(),
            silence: lease * 2,
            operator: handle.operator.clone(),
            shares: handle.shares.clone(),
        };
        let (trusted, _) = watch::channel(trusted_by(&handle));
        let duties = duties(&config, &handle, &own, space);
        let join = Join {
            own,
            bootstrap_expect: config.bootstrap_expect,
            retry_join: seeds,
            finders,
            raft: raft.clone(),
            dialer,
            acquaintances,
            contact,
            silence: lease * 2,
        };
        let agents = AgentRpc::service(handle.clone(), config.lease, aws_iam, stopping.clone());
        let peers = PeeringRpc::service(handle.clone(), stopping.clone());
        let routes = Routes::new(answers.service()).add_service(agents).add_service(peers);
        Ok(Self {
            handle,
            raft,
            store_failed,
            listener,
            routes,
            trusted,
            refused,
            duties,
            join,
            stopping,
        })
    }

    /// What the rest of the process asks of this server.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `drain`; then hands leadership over, finishes what is under way and stops.
    ///
    /// # Errors
    /// [`RunError`]: the process must end.
    pub async fn run(self, drain: CancellationToken) -> Result<(), RunError> {
        let Self {
            handle,
            raft,
            mut store_failed,
            listener,
            routes,
            trusted,
            refused,
            duties,
            join,
            stopping,
        } = self;
        let stop = stopping.clone();
        let mut tasks: JoinSet<Result<(), RunError>> = JoinSet::new();
        let served = tls::serve(
            listener,
            handle.identity.clone(),
            trusted.subscribe(),
            routes,
            refused,
            stop.clone(),
        );
        tasks.spawn(
            async move { served.await.map_err(|failure| RunError::Task(failure.to_string())) },
        );
        tasks.spawn(done(follow_trust(handle.clone(), trusted, stop.clone())));
        let report = expire::report(
            handle.leases.clone(),
            raft.clone(),
            handle.dialer.clone(),
            stop.clone(),
        );
        tasks.spawn(done(report));
        tasks.spawn(done(duties.space.clone().run(stop.clone())));
        tasks.spawn(done(raft.clone().bound_log(stop.clone())));
        tasks.spawn(done(leader::run(duties, stop.clone())));
        tasks.spawn(done(join::run(join, stop.clone())));
        tasks.spawn(done(peering::run(handle.clone(), stop.clone())));

        let mut status = raft.status();
        let outcome = tokio::select! {
            () = async {
                drain.cancelled().await;
                hand_over(&raft).await;
            } => Ok(()),
            Ok(failed) = store_failed.wait_for(Option::is_some) => {
                Err(RunError::Storage(failed.clone().unwrap_or_default()))
            }
            _ = status.wait_for(|status| status.is_stopped) => Err(RunError::Consensus),
            Some(ended) = tasks.join_next() => match ended {
                Ok(Ok(())) => Err(RunError::Task("it returned before its time".to_owned())),
                Ok(Err(failure)) => Err(failure),
                Err(failure) => Err(RunError::Task(failure.to_string())),
            },
        };
        stop.cancel();
        while let Some(ended) = tasks.join_next().await {
            if let Ok(Err(failure)) = ended {
                tracing::warn!(error = %failure, "a task ended badly");
            }
        }
        raft.stop().await;
        // A failed write also ends consensus: the disk is the reason to give.
        match (outcome, store_failed.borrow().clone()) {
            (Err(_), Some(failed)) => Err(RunError::Storage(failed)),
            (outcome, _) => outcome,
        }
    }
}

/// What this server does while it leads.
fn duties(config: &Config, handle: &Handle, own: &Member, space: Space) -> Duties {
    Duties {
        raft: handle.operator.raft.clone(),
        proposer: handle.proposer.clone(),
        reader: handle.reader.clone(),
        leases: handle.leases.clone(),
        space,
        ca: handle.ca.clone(),
        pilot: handle.operator.pilot.clone(),
        dialer: handle.dialer.clone(),
        own: own.clone(),
        cluster: cluster(config, &handle.identity),
        lease: config.lease,
        reap_after: config.reap_after,
        disk_patience: config.timing.election_max * 2,
        acl: config.acl.clone(),
    }
}

/// The cluster that this server founds, if it does.
fn cluster(config: &Config, identity: &Identity) -> Cluster {
    Cluster {
        id: identity.cluster_id().into(),
        trust_domain: identity.trust_domain().clone(),
        datacenter: config.datacenter.clone(),
        default_action: config.default_action,
    }
}

/// What tells who may join by AWS IAM, where anybody may.
fn verifier(config: &Config, identity: &Identity) -> Result<Option<Verifier>, StartError> {
    let server_id = identity.trust_domain().to_string();
    let verifier = |config| Verifier::new(config, server_id);
    Ok(config.aws_iam.clone().map(verifier).transpose()?)
}

/// The entries of `retry_join`: those to ask AWS for, and the rest.
fn seeds(retry_join: &[String]) -> Result<(Vec<Finder>, Vec<Seed>), StartError> {
    let (mut finders, mut seeds) = (Vec::new(), Vec::new());
    for text in retry_join {
        if hawser_aws::is_provider(text) {
            finders.push(Finder::new(Query::parse(text)?, Ambient::of_process()));
        } else {
            seeds.push(Seed::parse(text)?);
        }
    }
    Ok((finders, seeds))
}

async fn open(
    config: &Config,
    identity: &Arc<Identity>,
    metrics: &Metrics,
) -> Result<(Store, Snapshots, History), StartError> {
    let folder = config.data_dir.clone();
    let (cluster_id, node) = (identity.cluster_id().to_owned(), config.node.to_string());
    let (fsync, limits) = (metrics.fsync_seconds.clone(), config.history);
    let planted = config.planted;
    let opened = tokio::task::spawn_blocking(move || {
        let store = Store::open(&folder, &cluster_id, &node, fsync)?;
        store.plant(planted);
        let snapshots = Snapshots::open(&folder)
            .map_err(|source| StartError::State { path: folder.clone(), source })?;
        let history = History::open(&folder.join("history"), limits)?;
        Ok((store, snapshots, history))
    });
    opened.await.unwrap_or_else(|failure| {
        let (path, source) = (config.data_dir.clone(), io::Error::other(failure));
        Err(StartError::State { path, source })
    })
}

/// Lets another lead before this server goes, so that nobody waits for an election.
async fn hand_over(raft: &Raft) {
    let mut status = raft.status();
    if !status.borrow_and_update().is_leader {
        return;
    }
    let Some(heir) = raft.heir() else { return };
    raft.transfer_leader(heir).await;
    let handed = status
        .wait_for(|status| status.is_stopped || (!status.is_leader && status.leader.is_some()));
    match timeout(HAND_OVER_MAX, handed).await {
        Ok(_) => tracing::info!(to = heir, "leadership is handed over"),
        Err(_) => tracing::warn!("leadership was not handed over in time"),
    }
}

/// Keeps whom the listener believes as the state has it.
async fn follow_trust(handle: Handle, trusted: watch::Sender<Trusted>, drain: CancellationToken) {
    let mut watch = handle.watches.subscribe([Topic::Authority, Topic::Peers].into());
    loop {
        let now = trusted_by(&handle);
        trusted.send_if_modified(|held| {
            let differs = *held != now;
            if differs {
                *held = now;
            }
            differs
        });
        tokio::select! {
            () = drain.cancelled() => return,
            _ = watch.changed() => {}
        }
    }
}

fn trusted_by(handle: &Handle) -> Trusted {
    let state = handle.reader.current();
    let roots = state.authority().map(|authority| {
        authority.roots.iter().map(|root| Arc::clone(&root.certificate)).collect()
    });
    let peerings = state.peerings().iter().map(|row| &row.value);
    let peers = peerings.filter(|peering| peering.state != PeerState::Terminated);
    let servers = peers.filter_map(|peering| peering.remote.as_ref()).map(PeerServers::of);
    Trusted {
        roots: roots.unwrap_or_default(),
        peers: servers.collect(),
        revoked: Arc::new(state.revocations().revoked()),
    }
}

async fn done(task: impl Future<Output = ()>) -> Result<(), RunError> {
    task.await;
    Ok(())
}

const HAND_OVER_MAX: Duration = Duration::from_secs(3);
