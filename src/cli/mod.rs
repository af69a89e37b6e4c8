//! The command line: what `hawser` is asked to do.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::config::Part;

mod acl;
mod agent;
mod agent_calls;
mod ask;
mod catalog;
mod connect;
mod connection;
mod dev;
mod entries;
mod exports;
mod help;
mod event;
mod input;
mod intention;
mod join;
mod keygen;
mod kv;
mod lock;
mod login;
mod maint;
mod map;
mod members;
mod operator;
mod output;
mod peering;
mod pin;
mod reasons;
mod recover;
mod serve;
mod services;
mod snapshot;
mod spelling;
#[cfg(test)]
mod stub;
mod token;
mod validate;
mod watch;

#[derive(Parser)]
#[command(name = "hawser", version, about = "A service mesh for VMs and AWS ECS")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a whole mesh in one process, to try it.
    Dev(dev::Arguments),
    /// Run a server, with an agent inside.
    Server(serve::Arguments),
    /// Run the agent of a host.
    Agent(agent::Arguments),
    /// Make this host, under systemd, a member of a cluster: configure, start and wait.
    Join(join::Arguments),
    /// Print a new operator key, which makes hosts servers of one cluster.
    Keygen,
    /// Print what hosts that join by AWS IAM know the servers by; it is no secret.
    Pin(pin::Arguments),
    /// Go on with this server alone, after a majority of the servers was lost for ever.
    Recover(recover::Arguments),
    /// Say why traffic goes or does not: the words of access logs, metrics and refusals.
    Reasons(reasons::Arguments),
    /// Print the release.
    Version,
    /// Check configuration files without starting anything.
    Validate(validate::Arguments),
    /// Print what completes these commands in a shell.
    Completion(help::Completion),
    /// Write manual pages of these commands to a folder.
    Man(help::Man),
    #[command(flatten)]
    Ask(ask::Ask),
}

/// Does what the command line asks.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse_from(spelling::with_two_dashes(std::env::args_os()));
    let done = match arguments.command {
        Command::Dev(arguments) => dev::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Server(arguments) => {
            serve::run(arguments, Part::Server, false).map(|()| ExitCode::SUCCESS)
        }
        Command::Agent(arguments) => agent::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Join(arguments) => join::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Keygen => keygen::run().map(|()| ExitCode::SUCCESS),
        Command::Pin(arguments) => pin::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Recover(arguments) => recover::run(&arguments),
        Command::Reasons(arguments) => reasons::run(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Version => output::print(concat!("Hawser v", env!("CARGO_PKG_VERSION"), "\n"))
            .map(|()| ExitCode::SUCCESS),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Completion(arguments) => {
            help::completion(&arguments, command()).map(|()| ExitCode::SUCCESS)
        }
        Command::Man(arguments) => help::man(&arguments, command()).map(|()| ExitCode::SUCCESS),
        Command::Ask(ask) => ask::run(ask),
    };
    done.unwrap_or_else(|error| {
        // Standard error that is gone leaves nobody to tell.
        drop(writeln!(std::io::stderr().lock(), "hawser: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Every command, for those who describe them.
pub(crate) fn command() -> clap::Command {
    Arguments::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn agents_start_as_consuls_users_start_them() {
        for line in [
            "hawser agent -dev -client=0.0.0.0 -log-level trace",
            "hawser agent -dev -config-file=/tmp/x.json -http-port=-1 -dns-port -1",
            "hawser agent -server -bootstrap-expect=3 -data-dir=/tmp/x -node=s1 -ui",
            "hawser agent -config-dir /etc/hawser -retry-join 10.0.0.1 -datacenter dc2",
        ] {
            let words = line.split_whitespace().map(Into::into);
            if let Err(error) = Arguments::try_parse_from(spelling::with_two_dashes(words)) {
                panic!("{line}: {error}");
            }
        }
    }
}
