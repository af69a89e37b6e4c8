//! `hawser operator`: the servers' Raft group.

use std::process::ExitCode;

use anyhow::Result;
use hawser_api::client::Client;
use hawser_api::json::{RaftConfiguration, RaftServer};

use super::output::{Formatted, Table};

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
}

/// Does what was asked for.
///
/// # Errors
/// The API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let Area::Raft { what: Raft::ListPeers { stale, formatted } } = arguments.area;
    let query: &[(&str, &str)] = if stale { &[("stale", "")] } else { &[] };
    let path = "/v1/operator/raft/configuration";
    let (configuration, _) = client.get::<RaftConfiguration>(path, query).await?;
    formatted.print(&configuration, |configuration| table(&configuration.servers))?;
    Ok(ExitCode::SUCCESS)
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
