//! `hawser dev --clusters 2`: two peered clusters in one process, to watch a service fail over.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hawser_api::client::{Address, Client};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Arguments, operator_key, start_demo};
use crate::cli::serve::Mesh;
use crate::config::{self, Part, Settings};

/// One of the two clusters: its name, and how far its ports are from those of the first.
#[derive(Clone, Copy)]
struct Cluster {
    datacenter: &'static str,
    peer: &'static str,
    offset: u16,
}

const CLUSTERS: [Cluster; 2] = [
    Cluster { datacenter: "dc1", peer: "dc2", offset: 0 },
    Cluster { datacenter: "dc2", peer: "dc1", offset: PORTS_APART },
];

/// Runs both clusters until `drain`, and peers them as soon as they serve.
///
/// # Errors
/// A port that is taken, a part that failed, or clusters that cannot be peered.
pub(super) async fn run(
    arguments: &Arguments,
    folder: &Path,
    drain: CancellationToken,
) -> Result<()> {
    let mut logs = None;
    let mut meshes = Vec::new();
    for cluster in CLUSTERS {
        let mut settings = settings(arguments, folder, cluster).await?;
        // One process has one log: both agents show it.
        match &logs {
            None => {
                settings.start_logging()?;
                logs.clone_from(&settings.agent.logs);
            }
            Some(_) => settings.agent.logs.clone_from(&logs),
        }
        meshes.push(Mesh::start(settings, drain.clone()).await?);
    }
    let ready: Vec<_> = meshes.iter().map(|mesh| mesh.agent().ready()).collect();
    let mut running = tokio::task::JoinSet::new();
    for mesh in meshes {
        running.spawn(mesh.run());
    }
    let (peered, over) = (arguments.clone(), drain.clone());
    running.spawn(async move {
        let peering = async {
            for mut ready in ready {
                ready.wait_for(|is_ready| *is_ready).await?;
            }
            peer(&peered).await?;
            write_welcome(&peered)?;
            Ok(())
        };
        tokio::select! {
            () = over.cancelled() => Ok(()),
            done = peering => done,
        }
    });
    // The first to fail ends the others; their peering ends well and ends nothing.
    let mut outcome = Ok(());
    while let Some(ended) = running.join_next().await {
        let ended = ended.context("a cluster's task").flatten();
        if ended.is_err() {
            drain.cancel();
            outcome = outcome.and(ended);
        }
    }
    outcome
}

async fn settings(arguments: &Arguments, folder: &Path, cluster: Cluster) -> Result<Settings> {
    let Cluster { datacenter, offset, .. } = cluster;
    let folder = folder.join(datacenter);
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let port = |first: u16| {
        first.checked_add(offset).with_context(|| {
            format!("port {first}: {datacenter} needs the one {offset} above: choose a lower one")
        })
    };
    let api = start_demo(format!("api, {datacenter}\n")).await?;
    let mut services = vec![json!({
        "name": "api",
        "id": "api-1",
        "port": api.port(),
        "protocol": "http",
        "check": { "http": format!("http://{api}/"), "interval": "1s" },
        "connect": { "sidecar_service": {} },
    })];
    if offset == 0 {
        services.push(json!({
            "name": "web",
            "connect": { "sidecar_service": { "proxy": { "upstreams": [{
                "destination_name": "api",
                "local_bind_port": arguments.upstream_port,
            }] } } },
        }));
    }
    let mesh_port = port(arguments.mesh_port)?;
    let value = json!({
        "node_name": format!("dev-{datacenter}"),
        "datacenter": datacenter,
        "data_dir": folder,
        "bind_addr": "127.0.0.1",
        "ports": {
            "http": port(arguments.http_port)?,
            "dns": port(arguments.dns_port)?,
            "server": port(arguments.server_port)?,
            "sidecar_min_port": mesh_port,
            "sidecar_max_port": mesh_port.saturating_add(63),
        },
        "mesh_gateway": { "bind": format!("127.0.0.1:{}", port(arguments.gateway_port)?) },
        "bootstrap_expect": 1,
        "operator_key_file": operator_key(&folder)?,
        "default_intention_policy": "allow",
        "log_level": arguments.log_level,
        "services": services,
    });
    let file = folder.join("dev.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&value)?)?;
    config::read(&[file])?.resolve(Part::Server)
}

/// Peers the two as an operator would: by their HTTP APIs, with a token and exports both ways.
async fn peer(arguments: &Arguments) -> Result<()> {
    let [first, second] = CLUSTERS;
    let client = |cluster: Cluster| -> Result<Client> {
        let address: Address =
            format!("127.0.0.1:{}", arguments.http_port + cluster.offset).parse()?;
        Ok(Client::new(address).with_timeout(Duration::from_secs(60)))
    };
    let (dialler, acceptor) = (client(first)?, client(second)?);
    let (peerings, _) = dialler.get::<Option<Vec<Value>>>("/v1/peerings", &[]).await?;
    // A folder that is kept has the peering already.
    if peerings.unwrap_or_default().is_empty() {
        let asked = json!({ "PeerName": second.peer });
        let made: Value = acceptor.post("/v1/peering/token", &[], &asked).await?;
        let shown = json!({ "PeerName": first.peer, "PeeringToken": made["PeeringToken"] });
        let established = dialler.post::<_, Value>("/v1/peering/establish", &[], &shown).await;
        established.context("peering dc1 with dc2")?;
    }
    for (cluster, client) in [(first, &dialler), (second, &acceptor)] {
        let exports = json!({
            "Kind": "exported-services",
            "Name": "default",
            "Services": [{ "Name": "api", "Consumers": [{ "Peer": cluster.peer }] }],
        });
        client.put::<_, Value>("/v1/config", &[], &exports).await?;
    }
    for (cluster, client) in [(first, &dialler), (second, &acceptor)] {
        imported(client, cluster.peer).await?;
    }
    Ok(())
}

/// Waits until what `peer` exports has come in.
async fn imported(client: &Client, peer: &str) -> Result<()> {
    let mut index = String::from("0");
    for _ in 0..READS_MAX {
        let query = [("peer", peer), ("passing", ""), ("index", index.as_str()), ("wait", "10s")];
        let (found, at) = client.get::<Vec<Value>>("/v1/health/service/api", &query).await?;
        if !found.is_empty() {
            return Ok(());
        }
        index = at.map_or(0, |at| at.0).to_string();
    }
    bail!("nothing that {peer} exports has come in: see hawser peering list")
}

fn write_welcome(arguments: &Arguments) -> std::io::Result<()> {
    let Arguments { http_port, dns_port, upstream_port, gateway_port, .. } = arguments;
    let (other_port, other_gateway) = (http_port + PORTS_APART, gateway_port + PORTS_APART);
    writeln!(
        std::io::stdout().lock(),
        "Hawser runs two clusters in this process, dc1 and dc2: each has a server, an agent, a \
         mesh gateway\nand service `api`, exported to the other; `web` runs in dc1. Every call is \
         allowed by default.\n\n\
         call api as web, and dc1 answers:\n    \
             curl http://127.0.0.1:{upstream_port}/\n\
         see the peer and what it exports:\n    \
             hawser peering list -http-addr 127.0.0.1:{http_port}\n    \
             dig @127.0.0.1 -p {dns_port} api.service.dc2.peer.consul SRV\n\
         stop api in dc1, and dc2 answers, through its gateway at port {other_gateway}:\n    \
             curl -X PUT 'http://127.0.0.1:{http_port}/v1/agent/service/maintenance/api-1\
             ?enable=true'\n\
         start it, and dc1 answers again once it has settled, within some seconds:\n    \
             curl -X PUT 'http://127.0.0.1:{http_port}/v1/agent/service/maintenance/api-1\
             ?enable=false'\n\
         the API of dc2:\n    \
             curl http://127.0.0.1:{other_port}/v1/peerings"
    )
}

/// How far the second cluster's ports are from the first's.
const PORTS_APART: u16 = 1_000;
/// Each waits for ten seconds at most, and ends with the first change.
const READS_MAX: usize = 30;
