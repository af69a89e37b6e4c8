//! The command line: what `hawser` is asked to do.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Part;

mod dev;
mod keygen;
mod serve;

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
    /// Print a new operator key, which makes hosts servers of one cluster.
    Keygen,
}

/// Does what the command line asks.
pub(crate) fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Dev(arguments) => dev::run(arguments),
        Command::Server(arguments) => serve::run(arguments, Part::Server),
        Command::Agent(arguments) => serve::run(arguments, Part::Agent),
        Command::Keygen => keygen::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            // Standard error that is gone leaves nobody to tell.
            drop(writeln!(std::io::stderr().lock(), "hawser: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
