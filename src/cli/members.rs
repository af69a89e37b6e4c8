//! `hawser members`: every host that the cluster knows, and whether it lives.

use std::process::ExitCode;

use anyhow::Result;
use hawser_api::client::Client;
use hawser_api::json::Member;

use super::output::{Formatted, Table, pairs};

/// Hosts, and whether they live.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// With all tags.
    #[arg(long)]
    detailed: bool,
    /// Only members with this status: alive, leaving, left or failed.
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    #[command(flatten)]
    formatted: Formatted,
}

/// Lists the members.
///
/// # Errors
/// The API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let (mut members, _) = client.get::<Vec<Member>>("/v1/agent/members", &[]).await?;
    if let Some(wanted) = &arguments.status {
        members.retain(|member| status(member.status) == wanted);
    }
    members.sort_by(|one, other| one.name.cmp(&other.name));
    arguments.formatted.print(&members, |members| table(members, arguments.detailed))?;
    Ok(ExitCode::SUCCESS)
}

fn table(members: &[Member], is_detailed: bool) -> String {
    let address = |member: &Member| match (member.port, member.addr.contains(':')) {
        (0, _) => member.addr.clone(),
        (port, true) => format!("[{}]:{port}", member.addr),
        (port, false) => format!("{}:{port}", member.addr),
    };
    if is_detailed {
        let mut table = Table::new(["Node", "Address", "Status", "Tags"]);
        for member in members {
            let (address, tags) = (address(member), pairs(&member.tags));
            table.row([&member.name, &address, status(member.status), &tags]);
        }
        return table.into_text();
    }
    let mut table = Table::new(["Node", "Address", "Status", "Type", "Build", "DC"]);
    for member in members {
        let tag = |key: &str| member.tags.get(key).map_or("", String::as_str);
        let kind = if tag("role") == "consul" { "server" } else { "client" };
        let address = address(member);
        table.row([&member.name, &address, status(member.status), kind, tag("build"), tag("dc")]);
    }
    table.into_text()
}

/// Consul's word for a member's status.
const fn status(number: u8) -> &'static str {
    match number {
        1 => "alive",
        2 => "leaving",
        3 => "left",
        4 => "failed",
        _ => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::stub::{Stub, asked};

    fn member(name: &str, addr: &str, port: u16, role: &str, status: u8) -> Member {
        let tags = [("role", role), ("dc", "dc1"), ("build", "0.1.0")];
        Member {
            name: name.into(),
            addr: addr.into(),
            port,
            tags: tags.map(|(key, value)| (key.into(), value.into())).into(),
            status,
            ..Member::default()
        }
    }

    #[test]
    fn servers_and_clients_are_told_apart() {
        let members = [
            member("s1", "10.0.0.1", 8300, "consul", 1),
            member("vm-1", "2001:db8::1", 8301, "node", 4),
            member("vm-2", "10.0.0.3", 0, "node", 9),
        ];
        let expected = "\
Node  Address             Status  Type    Build  DC
s1    10.0.0.1:8300       alive   server  0.1.0  dc1
vm-1  [2001:db8::1]:8301  failed  client  0.1.0  dc1
vm-2  10.0.0.3            none    client  0.1.0  dc1
";
        assert_eq!(table(&members, false), expected);
        assert!(table(&members, true).contains("failed  build=0.1.0,dc=dc1,role=node\n"));
    }

    #[tokio::test]
    async fn members_are_asked_of_the_agent() {
        let stub = Stub::answering(&[(200, "[]")]).await;
        let code = asked!(Arguments, "--detailed --status alive", &stub).expect("an answer");
        assert_eq!(code, ExitCode::SUCCESS);
        assert_eq!(stub.requests(), ["GET /v1/agent/members"]);
    }
}
