//! `hawser operator`: the servers' Raft group, and autopilot.

use std::process::ExitCode;

use anyhow::{Result, bail};
use hawser_api::client::Client;
use hawser_api::json::{AutopilotConfiguration, RaftConfiguration, RaftServer};
use hyper::Method;
use serde_json::Value;

use super::output::{self, Formatted, Table};

/// For those who keep the cluster running.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    area: Area,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Area {
    /// The servers' Raft group.
    Raft {
        #[command(subcommand)]
        what: Raft,
    },
    /// The rules by which the servers keep in order, and how they stand.
    Autopilot {
        #[command(subcommand)]
        what: Autopilot,
    },
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Raft {
    /// List the servers and who leads.
    ListPeers {
        /// Take what any server has, also while there is no leader.
        #[arg(long)]
        stale: bool,
        #[command(flatten)]
        formatted: Formatted,
    },
    /// Remove a server that is gone for ever. One that runs asks to be let in again: stop it first.
    RemovePeer(Peer),
    /// Let another server lead.
    TransferLeader {
        /// Which; whoever is most fit where none is named.
        #[arg(long)]
        id: Option<String>,
    },
}

/// Exactly one of these.
#[derive(Clone, Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Peer {
    /// The server's id, as `list-peers` shows it.
    #[arg(long)]
    id: Option<String>,
    /// The server's address with its port.
    #[arg(long)]
    address: Option<String>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Autopilot {
    /// Print the rules.
    GetConfig {
        #[command(flatten)]
        formatted: Formatted,
    },
    /// Change some of the rules.
    SetConfig(Rules),
    /// Print how the servers stand, as the leader sees them.
    State {
        #[command(flatten)]
        formatted: Formatted,
    },
}

/// What is not named stays as it is.
#[derive(Clone, Debug, clap::Args)]
struct Rules {
    /// Remove servers that died, while a majority lives.
    #[arg(long)]
    cleanup_dead_servers: Option<bool>,
    /// How long an answer may be overdue before a server is unwell.
    #[arg(long, value_name = "DURATION")]
    last_contact_threshold: Option<String>,
    /// How many entries a server may be behind before it is unwell.
    #[arg(long, value_name = "COUNT")]
    max_trailing_logs: Option<u64>,
    /// Never leave fewer voters than this by removing dead ones.
    #[arg(long, value_name = "COUNT")]
    min_quorum: Option<u32>,
    /// How long a new server must be well before it votes; three times as long is dead.
    #[arg(long, value_name = "DURATION")]
    server_stabilization_time: Option<String>,
}

/// Does what was asked for.
///
/// # Errors
/// The API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    match arguments.area {
        Area::Raft { what } => raft(what, client).await?,
        Area::Autopilot { what } => autopilot(what, client).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn raft(what: Raft, client: &Client) -> Result<()> {
    match what {
        Raft::ListPeers { stale, formatted } => {
            let query: &[(&str, &str)] = if stale { &[("stale", "")] } else { &[] };
            let path = "/v1/operator/raft/configuration";
            let (configuration, _) = client.get::<RaftConfiguration>(path, query).await?;
            formatted.print(&configuration, |configuration| table(&configuration.servers))
        }
        Raft::RemovePeer(Peer { id, address }) => {
            let (key, value) = match (&id, &address) {
                (Some(id), _) => ("id", id),
                (None, Some(address)) => ("address", address),
                (None, None) => bail!("say -id or -address"),
            };
            let query = [(key, value.as_str())];
            client.send(Method::DELETE, "/v1/operator/raft/peer", &query, None).await?;
            output::print(&format!("Removed peer with {key} {value:?}\n"))
        }
        Raft::TransferLeader { id } => {
            let query: Vec<(&str, &str)> = id.iter().map(|id| ("id", id.as_str())).collect();
            let path = "/v1/operator/raft/transfer-leader";
            client.send(Method::POST, path, &query, None).await?;
            output::print("Success\n")
        }
    }
}

async fn autopilot(what: Autopilot, client: &Client) -> Result<()> {
    match what {
        Autopilot::GetConfig { formatted } => {
            let (rules, _) = client.get::<AutopilotConfiguration>(CONFIGURATION, &[]).await?;
            formatted.print(&rules, written)
        }
        Autopilot::SetConfig(changes) => {
            let (rules, _) = client.get::<AutopilotConfiguration>(CONFIGURATION, &[]).await?;
            let cas = rules.modify_index.to_string();
            let body = serde_json::to_vec(&changes.over(rules))?;
            let query = [("cas", cas.as_str())];
            let reply = client.send(Method::PUT, CONFIGURATION, &query, Some(body.into())).await?;
            if reply.body.trim_ascii() != b"true" {
                bail!("Configuration could not be atomically updated, please try again");
            }
            output::print("Configuration updated!\n")
        }
        Autopilot::State { formatted } => {
            let (state, _) = client.get::<Value>("/v1/operator/autopilot/state", &[]).await?;
            formatted.print(&state, standing)
        }
    }
}

impl Rules {
    fn over(self, held: AutopilotConfiguration) -> AutopilotConfiguration {
        AutopilotConfiguration {
            cleanup_dead_servers: self.cleanup_dead_servers.unwrap_or(held.cleanup_dead_servers),
            last_contact_threshold: self
                .last_contact_threshold
                .unwrap_or(held.last_contact_threshold),
            max_trailing_logs: self.max_trailing_logs.unwrap_or(held.max_trailing_logs),
            min_quorum: self.min_quorum.unwrap_or(held.min_quorum),
            server_stabilization_time: self
                .server_stabilization_time
                .unwrap_or(held.server_stabilization_time),
            ..held
        }
    }
}

fn written(rules: &AutopilotConfiguration) -> String {
    format!(
        "CleanupDeadServers = {}\nLastContactThreshold = {}\nMaxTrailingLogs = {}\n\
         MinQuorum = {}\nServerStabilizationTime = {}\nRedundancyZoneTag = {:?}\n\
         DisableUpgradeMigration = {}\nUpgradeVersionTag = {:?}\n",
        rules.cleanup_dead_servers,
        rules.last_contact_threshold,
        rules.max_trailing_logs,
        rules.min_quorum,
        rules.server_stabilization_time,
        rules.redundancy_zone_tag,
        rules.disable_upgrade_migration,
        rules.upgrade_version_tag,
    )
}

fn standing(state: &Value) -> String {
    let mut table = Table::new([
        "Name",
        "ID",
        "Address",
        "Status",
        "Healthy",
        "LastContact",
        "LastIndex",
        "StableSince",
        "Version",
    ]);
    for server in state["Servers"].as_object().into_iter().flat_map(|servers| servers.values()) {
        let text = |key: &str| match &server[key] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let row = [
            "Name",
            "ID",
            "Address",
            "Status",
            "Healthy",
            "LastContact",
            "LastIndex",
            "StableSince",
            "Version",
        ]
        .map(text);
        table.row(row.each_ref().map(String::as_str));
    }
    format!(
        "Healthy:          {}\nFailureTolerance: {}\nLeader:           {}\n\n{}",
        state["Healthy"],
        state["FailureTolerance"],
        state["Leader"].as_str().unwrap_or_default(),
        table.into_text()
    )
}

fn table(servers: &[RaftServer]) -> String {
    let mut table =
        Table::new(["Node", "ID", "Address", "State", "Voter", "RaftProtocol", "Last Index"]);
    for server in servers {
        let state = if server.leader { "leader" } else { "follower" };
        table.row([
            &server.node,
            &server.id,
            &server.address,
            state,
            &server.voter.to_string(),
            &server.protocol_version,
            &server.last_index.to_string(),
        ]);
    }
    table.into_text()
}

const CONFIGURATION: &str = "/v1/operator/autopilot/configuration";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    #[tokio::test]
    async fn peers_are_asked_for_stale_where_there_is_no_leader() {
        for (line, expected) in [
            ("raft list-peers", "GET /v1/operator/raft/configuration"),
            ("raft list-peers --stale", "GET /v1/operator/raft/configuration?stale"),
        ] {
            let stub = Stub::answering(&[(200, r#"{"Servers": [], "Index": 0}"#)]).await;
            asked!(Arguments, line, &stub).expect(line);
            assert_eq!(stub.requests(), [expected]);
        }
    }

    #[tokio::test]
    async fn servers_are_removed_and_office_is_handed_over() {
        for (line, expected) in [
            ("raft remove-peer --id 77", "DELETE /v1/operator/raft/peer?id=77"),
            (
                "raft remove-peer --address 10.0.0.1:8300",
                "DELETE /v1/operator/raft/peer?address=10.0.0.1%3A8300",
            ),
            ("raft transfer-leader", "POST /v1/operator/raft/transfer-leader"),
            ("raft transfer-leader --id 7", "POST /v1/operator/raft/transfer-leader?id=7"),
        ] {
            let stub = Stub::answering(&[(200, "{}")]).await;
            asked!(Arguments, line, &stub).expect(line);
            assert_eq!(stub.requests(), [expected]);
        }
    }

    #[test]
    fn rules_that_are_not_named_stay() {
        let held = AutopilotConfiguration {
            cleanup_dead_servers: true,
            max_trailing_logs: 9,
            ..Default::default()
        };
        let changes = Rules {
            cleanup_dead_servers: Some(false),
            last_contact_threshold: None,
            max_trailing_logs: None,
            min_quorum: Some(3),
            server_stabilization_time: None,
        };
        let new = changes.over(held);
        assert!(!new.cleanup_dead_servers);
        assert_eq!((new.max_trailing_logs, new.min_quorum), (9, 3));
        assert!(written(&new).starts_with("CleanupDeadServers = false\n"));
    }

    #[test]
    fn the_leader_is_marked() {
        let server = |node: &str, leader| RaftServer {
            id: "77".into(),
            node: node.into(),
            address: "10.0.0.1:8300".into(),
            leader,
            protocol_version: "3".into(),
            voter: true,
            last_index: 1234,
        };
        let expected = "\
Node  ID  Address        State     Voter  RaftProtocol  Last Index
s1    77  10.0.0.1:8300  leader    true   3             1234
s2    77  10.0.0.1:8300  follower  true   3             1234
";
        assert_eq!(table(&[server("s1", true), server("s2", false)]), expected);
    }
}
