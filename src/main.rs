//! Hawser: a service mesh for VMs and AWS ECS, in one binary.

mod cli;
mod config;
mod signal;
mod telemetry;

fn main() -> std::process::ExitCode {
    cli::main()
}
