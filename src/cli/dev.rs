//! `hawser dev`: a whole mesh in one process, with something to curl.

mod regions;

use std::convert::Infallible;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::serve::{self, Mesh};
use crate::config::{self, Part};
use crate::signal::Signals;

/// What the mesh of one process listens on.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Port of the HTTP API.
    #[arg(long, default_value_t = 8500)]
    http_port: u16,
    /// Port of DNS.
    #[arg(long, default_value_t = 8600)]
    dns_port: u16,
    /// Port of the server.
    #[arg(long, default_value_t = 8300)]
    server_port: u16,
    /// Port at which `web` reaches `api` through the mesh.
    #[arg(long, default_value_t = 9191)]
    upstream_port: u16,
    /// First of 64 ports for the proxies' mTLS listeners.
    #[arg(long, default_value_t = 21_000)]
    mesh_port: u16,
    /// How many clusters: two are peered, each with a mesh gateway, and the second's ports are 1000
    /// above the first's.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    clusters: u8,
    /// Port of the first cluster's mesh gateway, where there are two.
    #[arg(long, default_value_t = 8443)]
    gateway_port: u16,
    /// Where to keep data; left out, a temporary folder that goes with the process.
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// How much to log.
    #[arg(long, default_value = "warn")]
    log_level: String,
}

/// Runs a server, an agent and three demo instances, or two peered clusters, until interrupted.
///
/// # Errors
/// A port that is taken, or a part that failed.
pub(crate) fn run(arguments: Arguments) -> Result<()> {
    serve::seed_randomness();
    serve::runtime()?.block_on(async move {
        let signals = Signals::new()?;
        let drain = CancellationToken::new();
        let temporary = match &arguments.data_dir {
            Some(_) => None,
            None => Some(tempfile::tempdir().context("making a temporary folder")?),
        };
        let folder = match (&arguments.data_dir, &temporary) {
            (Some(folder), _) => folder.clone(),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => anyhow::bail!("no folder to keep data in"),
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        if arguments.clusters > 1 {
            tokio::spawn(signals.obey(drain.clone(), || {}, || {}));
            return Box::pin(regions::run(&arguments, &folder, drain)).await;
        }
        let mut demo = Vec::new();
        for instance in 1..=DEMO_INSTANCES {
            demo.push(start_demo(format!("api, instance {instance}\n")).await?);
        }
        let config = folder.join("dev.json");
        let key_file = operator_key(&folder)?;
        let value = configuration(&arguments, &folder, &key_file, &demo);
        std::fs::write(&config, serde_json::to_vec_pretty(&value)?)?;
        let mut settings = config::read(&[config])?.resolve(Part::Server)?;
        settings.start_logging()?;
        let mesh = Mesh::start(settings, drain.clone()).await?;
        let mut ready = mesh.agent().ready();
        let welcome = arguments.clone();
        tokio::spawn(async move {
            if ready.wait_for(|is_ready| *is_ready).await.is_ok() {
                drop(write_welcome(&welcome));
            }
        });
        tokio::spawn(signals.obey(drain, || {}, || {}));
        mesh.run().await
    })
}

/// The operator key of the folder's cluster, made if there is none.
pub(super) fn operator_key(folder: &std::path::Path) -> Result<PathBuf> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = folder.join("operator.key");
    if !path.exists() {
        let key = hawser_server::identity::OperatorKey::generate()?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        writeln!(file, "{}", *key.reveal())?;
    }
    Ok(path)
}

fn configuration(
    arguments: &Arguments,
    folder: &std::path::Path,
    key_file: &std::path::Path,
    demo: &[SocketAddr],
) -> Value {
    let mut services: Vec<Value> = (1..)
        .zip(demo)
        .map(|(instance, address)| {
            json!({
                "name": "api",
                "id": format!("api-{instance}"),
                "port": address.port(),
                "protocol": "http",
                "check": { "http": format!("http://{address}/"), "interval": "1s" },
                "connect": { "sidecar_service": {} },
            })
        })
        .collect();
    services.push(json!({
        "name": "web",
        "connect": { "sidecar_service": { "proxy": { "upstreams": [{
            "destination_name": "api",
            "local_bind_port": arguments.upstream_port,
        }] } } },
    }));
    json!({
        "node_name": "dev",
        "data_dir": folder,
        "bind_addr": "127.0.0.1",
        "ports": {
            "http": arguments.http_port,
            "dns": arguments.dns_port,
            "server": arguments.server_port,
            "sidecar_min_port": arguments.mesh_port,
            "sidecar_max_port": arguments.mesh_port.saturating_add(63),
        },
        "bootstrap_expect": 1,
        "operator_key_file": key_file,
        "default_intention_policy": "allow",
        "log_level": arguments.log_level,
        "services": services,
    })
}

/// Starts one instance of the demo service: it answers with `text`, which says which it is.
async fn start_demo(text: String) -> Result<SocketAddr> {
    let text = Bytes::from(text);
    let listener = TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else { return };
            let text = text.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |_: Request<Incoming>| {
                    std::future::ready(Ok::<_, Infallible>(Response::new(Full::new(text.clone()))))
                });
                // A demo client that goes away is nobody's trouble.
                let served = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(socket), answer)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "a demo connection ended early");
                }
            });
        }
    });
    Ok(address)
}

fn write_welcome(arguments: &Arguments) -> std::io::Result<()> {
    let Arguments { http_port, dns_port, upstream_port, .. } = arguments;
    writeln!(
        std::io::stdout().lock(),
        "Hawser runs a whole mesh in this process: one server, one agent, service `web` and\n\
         {DEMO_INSTANCES} instances of service `api`. Nothing is kept, and every call is \
         allowed by default.\n\n\
         call api as web, through both proxies and mTLS:\n    \
             curl http://127.0.0.1:{upstream_port}/\n\
         find it by DNS:\n    \
             dig @127.0.0.1 -p {dns_port} api.service.consul SRV\n\
         forbid the call, and allow it again:\n    \
             hawser intention create -deny web api -http-addr 127.0.0.1:{http_port}\n    \
             hawser intention delete web api -http-addr 127.0.0.1:{http_port}\n\
         see who calls whom:\n    \
             hawser map -http-addr 127.0.0.1:{http_port}\n\
         the API, as Consul's clients speak it:\n    \
             curl http://127.0.0.1:{http_port}/v1/health/service/api?passing\n\
         metrics, for Prometheus:\n    \
             curl http://127.0.0.1:{http_port}/metrics"
    )
}

const DEMO_INSTANCES: usize = 3;
