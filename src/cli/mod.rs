//! The command line: what `hawser` is asked to do.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Part;

mod agent_calls;
mod ask;
mod catalog;
mod connection;
mod dev;
mod entries;
mod input;
mod intention;
mod join;
mod keygen;
mod map;
mod members;
mod operator;
mod output;
mod serve;
mod services;
mod spelling;
#[cfg(test)]
mod stub;
mod token;
mod validate;

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
    Agent(serve::Arguments),
    /// Make this host, under systemd, a member of a cluster: configure, start and wait.
    Join(join::Arguments),
    /// Print a new operator key, which makes hosts servers of one cluster.
    Keygen,
    /// Check configuration files without starting anything.
    Validate(validate::Arguments),
    #[command(flatten)]
    Ask(ask::Ask),
}

/// Does what the command line asks.
pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::parse_from(spelling::with_two_dashes(std::env::args_os()));
    let done = match arguments.command {
        Command::Dev(arguments) => dev::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Server(arguments) => {
            serve::run(arguments, Part::Server).map(|()| ExitCode::SUCCESS)
        }
        Command::Agent(arguments) => serve::run(arguments, Part::Agent).map(|()| ExitCode::SUCCESS),
        Command::Join(arguments) => join::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Keygen => keygen::run().map(|()| ExitCode::SUCCESS),
        Command::Validate(arguments) => validate::run(&arguments),
        Command::Ask(ask) => ask::run(ask),
    };
    done.unwrap_or_else(|error| {
        // Standard error that is gone leaves nobody to tell.
        drop(writeln!(std::io::stderr().lock(), "hawser: {error:#}"));
        ExitCode::FAILURE
    })
}
