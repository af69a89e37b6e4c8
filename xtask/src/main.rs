//! Chores of this repository, each one command: `cargo xtask help`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a chore talks to who runs it")]

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod step;
mod r#gen;
mod tidy;
mod fix;
mod hosts;
mod dist;
mod image;
mod systemd;
mod powercut;
mod terraform;
mod aws;
mod clients;
mod score;
mod ci;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of this repository")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// All that a change must pass: format, lints, docs, tests, generated code, tidy, licences.
    Ci {
        /// Leave this step out; may be given several times.
        #[arg(long = "without", value_name = "STEP")]
        without: Vec<String>,
    },
    /// Mend what can be mended by a program: format, lints, generated code.
    Fix,
    /// Compile the proto files into proto/src/gen.
    Gen {
        /// Only check that what is committed is up to date.
        #[arg(long)]
        check: bool,
    },
    /// Check layers, module order, headers, dead files, the docs map, function lengths and words.
    Tidy,
    /// Network namespaces with Hawser and real applications on them (needs root).
    Hosts {
        #[command(subcommand)]
        action: hosts::Action,
    },
    /// The real binary against moto, an AWS on loopback that checks signatures (needs PyPI once).
    Aws,
    /// Clients of Consul that people have, against the real binary (needs PyPI once).
    Clients,
    /// Cut the power under the server's store, again and again (needs root).
    Powercut {
        /// How many cuts.
        #[arg(long, default_value_t = 20)]
        cuts: u32,
    },
    /// Run what ends in a figure, each with what was promised: docs/scoreboard.md.
    Score(score::Arguments),
    /// Check the Terraform modules, and boot what they render (needs root, python3-venv and npm).
    Terraform {
        /// Leave this step out; may be given several times.
        #[arg(long = "without", value_name = "STEP")]
        without: Vec<String>,
        /// Boot this binary, instead of the one of `cargo build`.
        #[arg(long, value_name = "FILE")]
        binary: Option<PathBuf>,
    },
    /// Build the static binary and pack it: target/dist/hawser_VERSION_ARCH.deb and a tarball.
    Dist {
        /// Pack the binary of `cargo build` instead, for tests.
        #[arg(long)]
        debug_binary: bool,
    },
    /// Build the container image: target/image/hawser-VERSION.tar (needs buildah).
    Image {
        /// Build the binary with the dev profile, for speed.
        #[arg(long)]
        debug: bool,
        /// Then run an ECS task of it (needs root, podman, runc, busybox-static and python3).
        #[arg(long)]
        test: bool,
    },
    /// Install the package on hosts that systemd boots, and walk docs/vm.md on them (needs root).
    Systemd {
        /// The package to test, instead of one with the binary of `cargo build`.
        #[arg(long, value_name = "DEB")]
        package: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    match Arguments::parse().chore {
        Chore::Ci { without } => ci::run(&root, &without),
        Chore::Fix => fix::run(&root),
        Chore::Gen { check } => r#gen::run(&root, check),
        Chore::Tidy => tidy::run(&root),
        Chore::Hosts { action } => hosts::run(&root, &action),
        Chore::Dist { debug_binary } => dist::run(&root, debug_binary).map(drop),
        Chore::Image { debug, test } => image::run(&root, debug, test),
        Chore::Systemd { package } => systemd::run(&root, package),
        Chore::Terraform { without, binary } => terraform::run(&root, &without, binary),
        Chore::Aws => aws::run(&root),
        Chore::Clients => clients::run(&root),
        Chore::Score(arguments) => score::run(&root, &arguments),
        Chore::Powercut { cuts } => powercut::run(&root, cuts),
    }
}
