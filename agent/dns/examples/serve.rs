//! A discovery plane with a made-up view, for load tests.
//!
//! `serve --listen 127.0.0.1:8600 [--services 1000] [--instances 1] [--threads 1]
//! [--domain consul]` knows `web-0` to `web-<services - 1>`, each with so many instances:
//! `web-7.service.<domain> A`, `_web-7._tcp.service.<domain> SRV`. Ends when killed.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hawser_core::catalog::{Locality, Weights};
use hawser_core::chain;
use hawser_core::clock::Index;
use hawser_core::entry::Entries;
use hawser_core::health::Status;
use hawser_core::name::ServiceName;
use hawser_core::view::{Endpoint, ServiceView, View};
use hawser_dns::{Config, Feed};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let listen: SocketAddr = option("--listen", "127.0.0.1:8600")?;
    let services: u32 = option("--services", "1000")?;
    let instances: u32 = option("--instances", "1")?;
    let threads: usize = option("--threads", "1")?;
    let config = Config {
        domain: option("--domain", "consul")?,
        alt_domain: None,
        datacenter: "dc1".parse()?,
        ttl: Duration::from_secs(5),
        only_passing: false,
        recursors: Vec::new(),
        stale_max: Duration::from_secs(86_400),
        node: "serve".parse()?,
        address: listen.ip(),
    };
    let sockets = hawser_dns::bind(listen, threads)?;
    let view = Arc::new(view(services, instances)?);
    let (_views, receiver) = watch::channel(view);
    let (wants, _asked) = mpsc::channel(1);
    let (queries, _prepared) = mpsc::channel(1);
    let last_contact_ms = Arc::new(AtomicU64::new(u64::MAX));
    let feed = Feed { views: receiver, wants, queries, last_contact_ms };
    let registry = prometheus::Registry::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let drain = CancellationToken::new();
    Ok(runtime.block_on(hawser_dns::run(config, sockets, feed, &registry, drain))?)
}

fn view(services: u32, instances: u32) -> Result<View, Failure> {
    let mut view = View::default();
    for service in 0..services {
        let name: ServiceName = format!("web-{service}").parse()?;
        let endpoints = (0..instances).map(|at| endpoint(service * instances + at));
        let view_of = ServiceView::alone(
            chain::compile(&Entries::default(), None, &name),
            endpoints.collect::<Result<_, _>>()?,
            Index::default(),
        );
        view.services.insert(name, Arc::new(view_of));
    }
    Ok(view)
}

fn endpoint(at: u32) -> Result<Endpoint, Failure> {
    Ok(Endpoint {
        node: format!("node-{at}").parse()?,
        instance: format!("web-{at}").parse()?,
        address: Ipv4Addr::from_bits(0x0a00_0001 + at).into(),
        has_own_address: false,
        ports: Default::default(),
        port: 8_080,
        mesh: None,
        locality: Locality::default(),
        tags: Default::default(),
        weights: Weights::default(),
        status: Status::Passing,
    })
}

/// The value after `flag`, or `default`.
fn option<T: FromStr<Err: std::error::Error + 'static>>(
    flag: &str,
    default: &str,
) -> Result<T, Failure> {
    let mut arguments = std::env::args().skip_while(|argument| argument != flag).skip(1);
    Ok(arguments.next().as_deref().unwrap_or(default).parse()?)
}
