//! `hawser catalog`: datacenters, nodes and services.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, bail};
use hawser_api::client::{Client, segment};
use hawser_api::json::{Node, NodeServices, ServiceNode};

use super::output::{Formatted, Table, pairs, visible};

/// What is in the catalog.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum What {
    /// List the datacenters.
    Datacenters {
        #[command(flatten)]
        formatted: Formatted,
    },
    /// List the nodes.
    Nodes {
        /// With tagged addresses and meta, and whole ids.
        #[arg(long)]
        detailed: bool,
        /// Only nodes with an instance of this service.
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Only nodes with this pair; may be given several times.
        #[arg(long, value_name = "KEY=VALUE")]
        node_meta: Vec<String>,
        #[command(flatten)]
        read: Read,
        #[command(flatten)]
        formatted: Formatted,
    },
    /// List the services.
    Services {
        /// With their tags.
        #[arg(long)]
        tags: bool,
        /// Only services with an instance on this node.
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Only services on nodes with this pair; may be given several times.
        #[arg(long, value_name = "KEY=VALUE")]
        node_meta: Vec<String>,
        #[command(flatten)]
        read: Read,
        #[command(flatten)]
        formatted: Formatted,
    },
}

/// Which datacenter to read from, and how fresh.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Read {
    /// The datacenter; the agent's own unless it is said.
    #[arg(long, value_name = "NAME")]
    datacenter: Option<String>,
    /// Take what any server has, also while there is no leader.
    #[arg(long)]
    stale: bool,
}

impl Read {
    /// The query that says so.
    pub(crate) fn query(&self) -> Vec<(&'static str, &str)> {
        let datacenter = self.datacenter.as_deref().map(|name| ("dc", name));
        datacenter.into_iter().chain(self.stale.then_some(("stale", ""))).collect()
    }
}

/// Lists what was asked for.
///
/// # Errors
/// The API's, and a node that does not exist.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    match arguments.what {
        What::Datacenters { formatted } => {
            let (all, _) = client.get::<Vec<String>>("/v1/catalog/datacenters", &[]).await?;
            formatted.print(&all, |all| lines(all))?;
        }
        What::Nodes { detailed, service, node_meta, read, formatted } => {
            let nodes = nodes(client, service.as_deref(), &node_meta, &read).await?;
            formatted.print(&nodes, |nodes| nodes_table(nodes, detailed))?;
        }
        What::Services { tags, node, node_meta, read, formatted } => {
            let services = services(client, node.as_deref(), &node_meta, &read).await?;
            formatted.print(&services, |services| services_table(services, tags))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn nodes(
    client: &Client,
    service: Option<&str>,
    node_meta: &[String],
    read: &Read,
) -> Result<Vec<Node>> {
    let metas = metas(node_meta);
    let query = with_metas(read, &metas);
    let Some(service) = service else {
        return Ok(client.get("/v1/catalog/nodes", &query).await?.0);
    };
    let path = format!("/v1/catalog/service/{}", segment(service));
    let (instances, _) = client.get::<Vec<ServiceNode>>(&path, &query).await?;
    let nodes: BTreeMap<String, Node> = instances
        .into_iter()
        .map(|instance| {
            let node = Node {
                id: instance.id,
                node: instance.node.clone(),
                address: instance.address,
                datacenter: instance.datacenter,
                tagged_addresses: instance.tagged_addresses,
                meta: instance.node_meta,
                ..Node::default()
            };
            (instance.node, node)
        })
        .collect();
    Ok(nodes.into_values().collect())
}

async fn services(
    client: &Client,
    node: Option<&str>,
    node_meta: &[String],
    read: &Read,
) -> Result<BTreeMap<String, Vec<String>>> {
    let metas = metas(node_meta);
    let query = with_metas(read, &metas);
    let Some(node) = node else {
        return Ok(client.get("/v1/catalog/services", &query).await?.0);
    };
    let path = format!("/v1/catalog/node/{}", segment(node));
    let (found, _) = client.get::<Option<NodeServices>>(&path, &query).await?;
    let Some(found) = found else { bail!("there is no node {}", visible(node)) };
    let mut services: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for instance in found.services.into_values() {
        let tags = services.entry(instance.service).or_default();
        tags.extend(instance.tags);
        tags.sort();
        tags.dedup();
    }
    Ok(services)
}

/// `key=value`, as people write it, to `key:value`, as the API reads it.
fn metas(node_meta: &[String]) -> Vec<String> {
    node_meta.iter().map(|pair| pair.replacen('=', ":", 1)).collect()
}

fn with_metas<'a>(read: &'a Read, metas: &'a [String]) -> Vec<(&'static str, &'a str)> {
    let mut query = read.query();
    query.extend(metas.iter().map(|pair| ("node-meta", pair.as_str())));
    query
}

fn nodes_table(nodes: &[Node], is_detailed: bool) -> String {
    if is_detailed {
        let headings = ["Node", "ID", "Address", "DC", "TaggedAddresses", "Meta"];
        let mut table = Table::new(headings);
        for Node { node, id, address, datacenter, tagged_addresses, meta, .. } in nodes {
            let (tagged, meta) = (pairs(tagged_addresses), pairs(meta));
            table.row([node, id, address, datacenter, &tagged, &meta]);
        }
        return table.into_text();
    }
    let mut table = Table::new(["Node", "ID", "Address", "DC"]);
    for Node { node, id, address, datacenter, .. } in nodes {
        let short: String = id.chars().take(ID_CHARACTERS).collect();
        table.row([node, &short, address, datacenter]);
    }
    table.into_text()
}

fn services_table(services: &BTreeMap<String, Vec<String>>, with_tags: bool) -> String {
    if !with_tags {
        return lines(services.keys());
    }
    let mut table = Table::new(["Service", "Tags"]);
    for (name, tags) in services {
        table.row([name, &tags.join(",")]);
    }
    table.into_text()
}

fn lines<'a>(texts: impl IntoIterator<Item = &'a String>) -> String {
    texts.into_iter().map(|text| visible(text) + "\n").collect()
}

/// Enough of a UUID to tell hosts apart, as Consul shows it.
const ID_CHARACTERS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    #[tokio::test]
    async fn each_list_asks_its_endpoint() {
        let cases = [
            ("datacenters", "[\"dc1\"]", "GET /v1/catalog/datacenters"),
            ("nodes", "[]", "GET /v1/catalog/nodes"),
            ("nodes --stale --datacenter dc2", "[]", "GET /v1/catalog/nodes?dc=dc2&stale"),
            ("nodes --node-meta a=b=c", "[]", "GET /v1/catalog/nodes?node-meta=a%3Ab%3Dc"),
            ("nodes --service a/b", "[]", "GET /v1/catalog/service/a%2Fb"),
            ("services", "{\"web\":[]}", "GET /v1/catalog/services"),
            ("services --node vm-1", "{\"Node\":{},\"Services\":{}}", "GET /v1/catalog/node/vm-1"),
        ];
        for (line, reply, expected) in cases {
            let stub = Stub::answering(&[(200, reply)]).await;
            let code = asked!(Arguments, line, &stub).expect(line);
            assert_eq!(code, ExitCode::SUCCESS, "{line}");
            assert_eq!(stub.requests(), [expected], "{line}");
        }
    }

    #[tokio::test]
    async fn a_node_that_does_not_exist_is_an_error() {
        let stub = Stub::answering(&[(200, "null")]).await;
        let refused = asked!(Arguments, "services --node vm-9", &stub).expect_err("no node");
        assert_eq!(refused.to_string(), "there is no node vm-9");
    }

    #[test]
    fn nodes_are_shown_short_or_whole() {
        let node = Node {
            node: "vm-1".into(),
            id: "5d1f5f04-7c0e-4f0e-9f4e-0b7c3e1f2a3b".into(),
            address: "10.0.0.1".into(),
            datacenter: "dc1".into(),
            tagged_addresses: [("lan".into(), "10.0.0.1".into())].into(),
            meta: [("a".into(), "1".into()), ("b".into(), "2".into())].into(),
            ..Node::default()
        };
        let nodes = [node];
        assert_eq!(
            nodes_table(&nodes, false),
            "Node  ID        Address   DC\nvm-1  5d1f5f04  10.0.0.1  dc1\n"
        );
        let whole = nodes_table(&nodes, true);
        assert!(whole.contains("4f0e-9f4e-0b7c3e1f2a3b  10.0.0.1  dc1  lan=10.0.0.1"), "{whole}");
        assert!(whole.ends_with("a=1,b=2\n"), "{whole}");
    }

    #[test]
    fn services_are_shown_with_tags_when_asked() {
        let services: BTreeMap<String, Vec<String>> = [
            ("api".to_owned(), vec![]),
            ("web".to_owned(), vec!["blue".to_owned(), "v1".to_owned()]),
        ]
        .into();
        assert_eq!(services_table(&services, false), "api\nweb\n");
        assert_eq!(services_table(&services, true), "Service  Tags\napi\nweb      blue,v1\n");
    }
}
