//! `cargo xtask gen`: compiles `proto/hawser/v1/*.proto` into `proto/src/gen`, without protoc.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Writes the generated code; with `check`, fails instead when it differs from what is there.
///
/// # Errors
/// A proto file that does not compile, or generated code that is out of date.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let source = root.join("proto");
    let mut files: Vec<_> = fs::read_dir(source.join("hawser/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "proto"));
    files.sort();
    let descriptors =
        protox::compile(&files, [&source]).context("compiling proto/hawser/v1/*.proto")?;
    let out = root.join("target/gen");
    fs::create_dir_all(&out)?;
    tonic_prost_build::configure()
        .build_transport(false)
        // Maps in one order, so that equal values are equal bytes, on disk and in goldens.
        .btree_map(".")
        .bytes(".hawser.v1.HttpRequest.body")
        .bytes(".hawser.v1.HttpReply.body")
        .bytes(".hawser.v1.SnapshotChunk.data")
        .out_dir(&out)
        .compile_fds(descriptors)?;
    let generated = fs::read_to_string(out.join("hawser.v1.rs"))?;
    let target = source.join("src/gen/hawser.v1.rs");
    if !check {
        fs::create_dir_all(source.join("src/gen"))?;
        fs::write(&target, generated)?;
    } else if fs::read_to_string(&target).unwrap_or_default() != generated {
        bail!("proto/src/gen is out of date: run `cargo xtask gen` and commit what it writes");
    }
    Ok(())
}
