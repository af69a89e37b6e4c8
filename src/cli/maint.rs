//! `hawser maint`: take the local node or one of its services out of use, and back.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use hawser_api::client::{Client, segment};
use hawser_api::json::HealthCheck;
use hyper::Method;

use super::output::{self, visible};

/// What is taken out of use; with neither option, what is out of use is listed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Take it out of use.
    #[arg(long, conflicts_with = "disable")]
    enable: bool,
    /// Bring it back.
    #[arg(long)]
    disable: bool,
    /// Why, for people.
    #[arg(long, value_name = "TEXT", requires = "enable")]
    reason: Option<String>,
    /// The service's id; without it, the whole node.
    #[arg(long, value_name = "ID")]
    service: Option<String>,
}

/// Does what was asked for.
///
/// # Errors
/// A service without being told what to do with it, and the API's.
pub(crate) async fn run(arguments: Arguments, client: &Client) -> Result<ExitCode> {
    let Arguments { enable, disable, reason, service } = arguments;
    if !enable && !disable {
        ensure!(service.is_none(), "-service: say -enable or -disable, too");
        return list(client).await;
    }
    let (path, what) = match &service {
        Some(id) => (format!("/v1/agent/service/maintenance/{}", segment(id)), visible(id)),
        None => ("/v1/agent/maintenance".to_owned(), "the node".to_owned()),
    };
    let reason = reason.unwrap_or_default();
    let mut query = vec![("enable", if enable { "true" } else { "false" })];
    if !reason.is_empty() {
        query.push(("reason", reason.as_str()));
    }
    client.send(Method::PUT, &path, &query, None).await?;
    let now = if enable { "enabled" } else { "disabled" };
    output::print(&format!("Maintenance mode of {what} is now {now}\n"))?;
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client) -> Result<ExitCode> {
    let (checks, _) = client.get::<BTreeMap<String, HealthCheck>>("/v1/agent/checks", &[]).await?;
    output::print(&shown(&checks))?;
    Ok(ExitCode::SUCCESS)
}

fn shown(checks: &BTreeMap<String, HealthCheck>) -> String {
    let mut text = String::new();
    for (id, check) in checks {
        let (kind, name) = match id.strip_prefix("_service_maintenance:") {
            Some(service) => ("Service", service),
            None if id == "_node_maintenance" => ("Node", check.node.as_str()),
            None => continue,
        };
        let (name, notes) = (visible(name), visible(&check.notes));
        text.push_str(&format!("{kind}:\n  Name:   {name}\n  Reason: {notes}\n\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_use_is_listed_with_its_reason() {
        let check = |notes: &str| HealthCheck {
            node: "n1".to_owned(),
            notes: notes.to_owned(),
            ..HealthCheck::default()
        };
        let checks = BTreeMap::from([
            ("_node_maintenance".to_owned(), check("disk")),
            ("_service_maintenance:web-1".to_owned(), check("upgrade")),
            ("service:web-1".to_owned(), check("")),
        ]);
        assert_eq!(
            shown(&checks),
            "Node:\n  Name:   n1\n  Reason: disk\n\nService:\n  Name:   web-1\n  Reason: upgrade\n\n"
        );
    }
}
