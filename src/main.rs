//! Hawser: a service mesh for VMs and AWS ECS, in one binary.

mod telemetry;
mod config;
mod consul;
mod signal;
mod succession;
mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
