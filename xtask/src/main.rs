//! Chores of this repository, each one command: `cargo xtask help`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod r#gen;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of this repository")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Compile the proto files into proto/src/gen.
    Gen {
        /// Only check that what is committed is up to date.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    match Arguments::parse().chore {
        Chore::Gen { check } => r#gen::run(&root, check),
    }
}
