//! The commands that ask an agent's or server's HTTP API: Consul's verbs and flags.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use super::connection::Connection;
use super::{
    acl, agent_calls, catalog, connect, entries, event, intention, kv, lock, login, maint, map,
    members, operator, peering, services, snapshot, token, watch,
};

/// A command that is a client of the API.
#[derive(Clone, Subcommand)]
pub(crate) enum Ask {
    /// Read the catalog: datacenters, nodes and services.
    Catalog(With<catalog::Arguments>),
    /// List the hosts, and whether they live.
    Members(With<members::Arguments>),
    /// Register and deregister services with the local agent, and export them to peers.
    Services(With<services::Arguments>),
    /// Say and ask who may call whom.
    Intention(With<intention::Arguments>),
    /// Read and write config entries.
    Config(With<entries::Arguments>),
    /// Read and write the key-value store.
    Kv(With<kv::Arguments>),
    /// Peer with other clusters.
    Peering(With<peering::Arguments>),
    /// Run a program while holding a lock.
    Lock(With<lock::Arguments>),
    /// Print something of the cluster, or run a program with it whenever it changes.
    Watch(With<watch::Arguments>),
    /// Take the local node or a service of it out of use, and back.
    Maint(With<maint::Arguments>),
    /// Take a host that is gone out of the catalog.
    ForceLeave(With<agent_calls::ForceLeave>),
    /// Fire a user event.
    Event(With<event::Arguments>),
    /// Look at the authority that certifies services.
    Connect(With<connect::Arguments>),
    /// Look after the servers.
    Operator(With<operator::Arguments>),
    /// Save the servers' state into a file, and restore it.
    Snapshot(With<snapshot::Arguments>),
    /// Say who may use the API: tokens, policies and roles.
    Acl(With<acl::Arguments>),
    /// Get a token for a proof of who you are.
    Login(With<login::Arguments>),
    /// End a token that was logged in for.
    Logout(With<login::Logout>),
    /// Make join tokens for new hosts.
    Token(With<token::Arguments>),
    /// Print a token with which one host may join, once: `token create`.
    JoinToken(With<token::Create>),
    /// Print who calls whom, with rates, errors and latencies.
    Map(With<map::Arguments>),
    /// Tell whether the local agent serves: exit status 0 or 1.
    Health(With<agent_calls::Health>),
    /// Print what the local agent says of itself.
    Info(With<agent_calls::Info>),
    /// Print the local agent's log as it comes.
    Monitor(With<agent_calls::Monitor>),
    /// Take the host out of the cluster and stop its agent.
    Leave(With<Nothing>),
    /// Let the local agent read its services and checks anew.
    Reload(With<Nothing>),
}

/// A command's own options, and where the API is.
#[derive(Clone, Args)]
pub(crate) struct With<A: Args> {
    #[command(flatten)]
    arguments: A,
    #[command(flatten)]
    connection: Connection,
}

/// No options of its own.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Nothing {}

/// Asks, and prints the answer.
///
/// # Errors
/// An address or token that cannot be, the API's refusals, and what each command says.
pub(crate) fn run(ask: Ask) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(answer(ask))
}

async fn answer(ask: Ask) -> Result<ExitCode> {
    /// Runs one command with the client that its options name.
    macro_rules! with_client {
        ($with:ident, $run:path) => {{
            let client = $with.connection.client(environment)?;
            $run($with.arguments, &client).await
        }};
    }
    match ask {
        Ask::Catalog(with) => with_client!(with, catalog::run),
        Ask::Members(with) => with_client!(with, members::run),
        Ask::Services(with) => with_client!(with, services::run),
        Ask::Intention(with) => with_client!(with, intention::run),
        Ask::Config(with) => with_client!(with, entries::run),
        Ask::Kv(with) => with_client!(with, kv::run),
        Ask::Peering(with) => with_client!(with, peering::run),
        Ask::Lock(with) => with_client!(with, lock::run),
        Ask::Event(with) => with_client!(with, event::run),
        Ask::Watch(with) => with_client!(with, watch::run),
        Ask::Maint(with) => with_client!(with, maint::run),
        Ask::ForceLeave(with) => with_client!(with, agent_calls::force_leave),
        Ask::Connect(with) => with_client!(with, connect::run),
        Ask::Operator(with) => with_client!(with, operator::run),
        Ask::Snapshot(with) => with_client!(with, snapshot::run),
        Ask::Acl(with) => with_client!(with, acl::run),
        Ask::Login(with) => with_client!(with, login::run),
        Ask::Logout(with) => with_client!(with, login::log_out),
        Ask::Token(with) => with_client!(with, token::run),
        Ask::JoinToken(with) => with_client!(with, token::create),
        Ask::Map(with) => with_client!(with, map::run),
        Ask::Health(with) => with_client!(with, agent_calls::health),
        Ask::Info(with) => with_client!(with, agent_calls::info),
        Ask::Monitor(with) => with_client!(with, agent_calls::monitor),
        Ask::Leave(with) => agent_calls::leave(&with.connection.client(environment)?).await,
        Ask::Reload(with) => agent_calls::reload(&with.connection.client(environment)?).await,
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::spelling::with_two_dashes;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        ask: Ask,
    }

    fn parse(line: &str) -> Result<Line, clap::Error> {
        let words = line.split_whitespace().map(Into::into);
        Line::try_parse_from(with_two_dashes(words))
    }

    #[test]
    fn the_tree_of_commands_is_sound() {
        use clap::CommandFactory as _;
        Line::command().debug_assert();
    }

    #[test]
    fn consuls_users_type_what_they_are_used_to() {
        for line in [
            "hawser members -detailed -http-addr=10.0.0.1:8500",
            "hawser acl bootstrap -format=json",
            "hawser acl policy create -name ops -rules @ops.hcl -description d",
            "hawser acl token create -policy-name=ops -service-identity=web:dc1 -token=abc",
            "hawser acl token create -templated-policy builtin/service -var name:api",
            "hawser acl token read -self",
            "hawser acl token update -id a1 -policy-id p1",
            "hawser acl role update -name r -node-identity n1:dc1",
            "hawser catalog nodes -detailed -http-addr 10.0.0.1:8500 -token=abc",
            "hawser catalog services -tags -datacenter=dc1 -stale",
            "hawser catalog -http-addr=unix:///run/h.sock datacenters",
            "hawser services register web.hcl",
            "hawser services register -name=web -port=80",
            "hawser services deregister -id=web",
            "hawser intention create -allow web db",
            "hawser intention create -deny -replace web api",
            "hawser intention create --deny * db",
            "hawser intention check web db",
            "hawser intention match -source web",
            "hawser config read -kind service-defaults -name web",
            "hawser config write -",
            "hawser config write -cas -modify-index=7 web.hcl",
            "hawser operator raft list-peers -stale",
            "hawser token create --node vm-1 -http-addr http://127.0.0.1:8500",
            "hawser join-token -node vm-1 -ttl 5m",
            "hawser kv get -recurse -detailed app/",
            "hawser kv get -keys -separator=: -stale",
            "hawser kv put -cas -modify-index=7 -flags=42 app/a @value",
            "hawser kv put -acquire -session=s lock",
            "hawser kv put lock -",
            "hawser kv delete -recurse app/",
            "hawser kv export app/",
            "hawser kv import -prefix=new/ @dump.json",
            "hawser event -name=deploy -service=web -tag=v1 1609030",
            "hawser lock -child-exit-code -try=5s -name=backup jobs/backup ./backup.sh",
            "hawser lock -verbose jobs/backup -- tar -czf x.tgz -C / etc",
            "hawser connect ca get-config",
            "hawser connect ca set-config -config-file ca.json",
            "hawser connect ca rotate",
            "hawser connect revoke -node n1 -reason stolen",
            "hawser snapshot save backup.snap",
            "hawser snapshot restore -with-ca backup.snap",
            "hawser snapshot inspect backup.snap",
            "hawser connect ca roots -format=json",
            "hawser peering generate-token -name west -server-external-addresses=a:8300,b:8300",
            "hawser peering generate-token -name=west -meta a=b -meta c=d -format json",
            "hawser peering establish -name east -peering-token=c2VjcmV0",
            "hawser peering establish -name east -peering-token -",
            "hawser peering establish -name east -peering-token @/run/token",
            "hawser peering list -format json",
            "hawser peering read -name west",
            "hawser peering delete -name west",
            "hawser peering exported-services -name west",
            "hawser intention create -allow peer:west/web db",
            "hawser services export -name=web -consumer-peers=west,north",
            "hawser services exported-services -format json",
            "hawser services imported-services",
            "hawser map -minutes 10 -format json",
            "hawser health -timeout=1s",
            "hawser info -format=json",
            "hawser leave",
            "hawser maint",
            "hawser maint -enable -service=web -reason=upgrade",
            "hawser maint -disable",
            "hawser force-leave -prune n1",
            "hawser watch -type=key -key=app/a ./handler.sh -x",
            "hawser watch -type service -service web -passingonly",
            "hawser reload -token-file=/run/token",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_contradicts_itself_or_lacks_something_is_refused() {
        for line in [
            "hawser intention create -allow -deny web db",
            "hawser intention create web",
            "hawser services register",
            "hawser services register web.hcl -name=web",
            "hawser services deregister",
            "hawser config write -cas web.hcl",
            "hawser kv put -acquire lock",
            "hawser kv delete -cas app/a",
            "hawser config read -kind service-defaults",
            "hawser map -minutes 0",
            "hawser token create",
            "hawser members -format=yaml",
            "hawser maint -enable -disable",
            "hawser force-leave",
            "hawser watch",
            "hawser watch -type=weather",
            "hawser peering establish -name east",
            "hawser peering read",
            "hawser connect revoke",
            "hawser connect revoke -node n1 -service web",
            "hawser services export -name web",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
