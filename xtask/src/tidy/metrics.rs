//! Every metric stands in the operators' guide, and every rule, panel and guide names one that is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::layers::Package;
use super::tree::Tree;

/// What is wrong between the metrics that there are and those that are spoken of.
pub(super) fn faults(tree: &Tree, packages: &[Package]) -> Result<Vec<String>> {
    let crates: BTreeSet<String> = packages.iter().map(|it| it.name().replace('-', "_")).collect();
    let mut defined = BTreeMap::new();
    for path in tree.sources().filter(|path| !path.starts_with("xtask")) {
        for name in quoted(&tree.read(path)?) {
            if !crates.contains(name.as_str()) {
                defined.entry(name).or_insert_with(|| path.clone());
            }
        }
    }
    let mut faults = Vec::new();
    let mut told = BTreeSet::new();
    for path in tree.files.iter().filter(|path| speaks_of_metrics(path)) {
        for (at, line) in tree.read(path)?.lines().enumerate() {
            for word in words(line) {
                if path == Path::new(GUIDE) {
                    told.insert(word.to_owned());
                }
                if !crates.contains(word) && !is_defined(&defined, word) {
                    let place = format!("{}:{}", path.display(), at + 1);
                    faults.push(format!("{place}: there is no metric {word}"));
                }
            }
        }
    }
    for (name, path) in &defined {
        if !told.contains(name) {
            faults.push(format!("{}: {GUIDE} does not tell of {name}", path.display()));
        }
    }
    Ok(faults)
}

/// Where an operator reads of metrics.
fn speaks_of_metrics(path: &Path) -> bool {
    path.starts_with("docs")
        && path.extension().is_some_and(|end| end == "md" || end == "yml" || end == "json")
}

/// What a histogram is asked for counts as the histogram.
fn is_defined(defined: &BTreeMap<String, PathBuf>, word: &str) -> bool {
    let parts = ["_bucket", "_sum", "_count"];
    defined.contains_key(word)
        || parts
            .iter()
            .any(|part| word.strip_suffix(part).is_some_and(|it| defined.contains_key(it)))
}

/// The string literals that are nothing but a metric's name.
fn quoted(text: &str) -> impl Iterator<Item = String> + '_ {
    let literals = text.split('"').skip(1);
    literals.filter(|it| it.starts_with(PREFIX) && it.chars().all(is_inside)).map(str::to_owned)
}

/// The words of a line that look like a metric's name.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let is_apart = |c: char| !is_inside(c) && !matches!(c, '-' | '.' | ':' | '/');
    line.split(is_apart)
        .map(|word| word.trim_matches(['.', ':', '-', '/']))
        .filter(|word| word.len() > PREFIX.len())
        .filter(|word| word.starts_with(PREFIX) && word.chars().all(is_inside))
}

fn is_inside(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

const GUIDE: &str = "docs/observability.md";
const PREFIX: &str = "hawser_";
