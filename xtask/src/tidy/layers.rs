//! Who may name whom among the crates (`ARCHITECTURE.md` draws the arrows).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::step::cargo;

/// A crate of the workspace.
#[derive(Deserialize)]
pub(super) struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev` or `build`; none for a plain one.
    kind: Option<String>,
    path: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    src_path: PathBuf,
    kind: Vec<String>,
}

impl Package {
    /// The crate's name, as its manifest has it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The crate's folder, from the root of the repository; empty for the root's own.
    pub(super) fn folder(&self, root: &Path) -> PathBuf {
        let folder = self.manifest_path.parent().unwrap_or(root);
        folder.strip_prefix(root).unwrap_or(folder).to_owned()
    }

    /// The files that the compiler is given, from the root of the repository, and whether each is
    /// the library or binary itself rather than a test, bench or example beside it.
    pub(super) fn entrances(&self, root: &Path) -> Vec<(PathBuf, bool)> {
        let own = |target: &Target| target.kind.iter().any(|kind| kind == "lib" || kind == "bin");
        let path = |target: &Target| {
            target.src_path.strip_prefix(root).unwrap_or(&target.src_path).to_owned()
        };
        self.targets.iter().map(|target| (path(target), own(target))).collect()
    }
}

/// Asks cargo for the crates of the workspace at `root`.
pub(super) fn packages(root: &Path) -> Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let mut command = cargo(root, &["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let output = command.output().context("starting cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut packages = serde_json::from_slice::<Metadata>(&output.stdout)?.packages;
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

/// Every arrow between our own crates that is not one of [`ARROWS`].
pub(super) fn faults(packages: &[Package]) -> Vec<String> {
    let mut faults = Vec::new();
    for package in packages {
        let place = manifest(package, packages);
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
            faults.push(format!(
                "{place}: xtask/src/tidy/layers.rs does not say what {} may name",
                package.name
            ));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some())
        {
            let test_only = dependency.kind.as_deref() == Some("dev")
                && [RIG, FUZZ].contains(&dependency.name.as_str());
            if !allowed.contains(&dependency.name.as_str()) && !test_only {
                faults.push(format!("{place}: {} may not name {}", package.name, dependency.name));
            }
        }
    }
    faults
}

fn manifest(package: &Package, packages: &[Package]) -> String {
    let root = packages
        .iter()
        .filter_map(|package| package.manifest_path.parent())
        .min_by_key(|folder| folder.components().count());
    let shown = root.and_then(|root| package.manifest_path.strip_prefix(root).ok());
    shown.unwrap_or(&package.manifest_path).display().to_string()
}

/// Each crate and those it may name. No other arrows; none back.
const ARROWS: [(&str, &[&str]); 15] = [
    ("hawser", &["hawser-server", "hawser-agent", "hawser-api", "hawser-core"]),
    ("hawser-server", &["hawser-aws", "hawser-proto", "hawser-api", IDENTITY, "hawser-core"]),
    (
        "hawser-agent",
        &[
            "hawser-aws",
            "hawser-proto",
            "hawser-api",
            IDENTITY,
            "hawser-core",
            "hawser-dns",
            "hawser-proxy",
        ],
    ),
    ("hawser-dns", &["hawser-core"]),
    ("hawser-proxy", &[IDENTITY, "hawser-http1", "hawser-mux", "hawser-core"]),
    ("hawser-http1", &[]),
    ("hawser-mux", &[]),
    (IDENTITY, &["hawser-core"]),
    ("hawser-proto", &["hawser-core"]),
    ("hawser-api", &["hawser-core"]),
    ("hawser-aws", &[]),
    ("hawser-core", &[]),
    (RIG, &[]),
    (FUZZ, &[]),
    ("xtask", &[RIG]),
];

/// Who is at the other end of a connection: read once, by all who speak TLS in the mesh.
const IDENTITY: &str = "hawser-identity";
/// The hosts that tests stand on: any crate's tests may.
const RIG: &str = "hawser-rig";
/// Inputs that are almost right: any crate's tests may ask for some.
const FUZZ: &str = "hawser-fuzz";
