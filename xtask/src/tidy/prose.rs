//! The map names what is there, links lead somewhere, and nothing is left for later.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use anyhow::Result;

use super::layers::Package;
use super::tree::Tree;

/// What is wrong with the words of the repository.
pub(super) fn faults(tree: &Tree, packages: &[Package]) -> Result<Vec<String>> {
    let mut faults = map(tree, packages)?;
    for path in &tree.files {
        let Ok(text) = std::fs::read_to_string(tree.root.join(path)) else {
            continue; // Not text, so no words.
        };
        for (at, line) in text.lines().enumerate() {
            let place = format!("{}:{}", path.display(), at + 1);
            if is_prose(path) {
                faults.extend(
                    links(tree, path, line).map(|to| {
                        format!("{place}: links to {}, which does not exist", to.display())
                    }),
                );
            }
            if path != Path::new("Cargo.lock") {
                faults.extend(forbidden(line).map(|word| format!("{place}: says {word}")));
            }
        }
    }
    Ok(faults)
}

/// `ARCHITECTURE.md` beside what it maps.
fn map(tree: &Tree, packages: &[Package]) -> Result<Vec<String>> {
    if !tree.files.iter().any(|path| path == Path::new(MAP)) {
        return Ok(vec![format!("{MAP}: there is no map of the house")]);
    }
    let text = tree.read(Path::new(MAP))?;
    let mut faults = Vec::new();
    for package in packages {
        let folder = package.folder(&tree.root).display().to_string();
        if !is_named(&text, &folder) {
            faults.push(format!("{MAP}: does not name the crate `{folder}`"));
        }
    }
    for folder in top_folders(tree) {
        if !is_named(&text, &folder) {
            faults.push(format!("{MAP}: does not name the folder `{folder}/`"));
        }
    }
    for (at, line) in text.lines().enumerate() {
        for path in paths(tree, line) {
            if !tree.root.join(path).exists() {
                faults.push(format!("{MAP}:{}: names `{path}`, which does not exist", at + 1));
            }
        }
    }
    Ok(faults)
}

fn is_named(text: &str, folder: &str) -> bool {
    text.contains(&format!("{folder}/")) || text.contains(&format!("`{folder}`"))
}

fn top_folders(tree: &Tree) -> BTreeSet<String> {
    let folder = |path: &PathBuf| match (path.components().next(), path.components().nth(1)) {
        (Some(Component::Normal(first)), Some(_)) => first.to_str().map(str::to_owned),
        _ => None,
    };
    tree.files.iter().filter_map(folder).filter(|name| !name.starts_with('.')).collect()
}

/// What in a line between backticks, or at the start of a listing, is a path of this repository.
fn paths<'a>(tree: &Tree, line: &'a str) -> Vec<&'a str> {
    let top = top_folders(tree);
    let quoted = line.split('`').skip(1).step_by(2);
    let listed = line.split_whitespace().next().filter(|word| word.ends_with('/'));
    let is_path = |word: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        let first = word.split('/').next().unwrap_or_default();
        word.contains('/') && word.chars().all(plain) && top.contains(first)
    };
    quoted.chain(listed).filter(is_path).collect()
}

fn is_prose(path: &Path) -> bool {
    let markdown = path.extension().is_some_and(|ending| ending == "md");
    markdown && (path.components().count() == 1 || path.starts_with("docs"))
}

/// The relative links of a line that lead nowhere.
fn links<'a>(tree: &'a Tree, from: &'a Path, line: &'a str) -> impl Iterator<Item = PathBuf> + 'a {
    let folder = from.parent().unwrap_or(Path::new(""));
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let ours =
        |target: &&str| !target.is_empty() && !target.starts_with('#') && !target.contains(':');
    targets
        .filter(ours)
        .map(move |target| folder.join(target.split('#').next().unwrap_or(target)))
        .filter(|path| !tree.root.join(path).exists())
}

/// The words that no committed file may hold. They are pieced together here, so that this file
/// holds none.
fn forbidden(line: &str) -> impl Iterator<Item = &'static str> {
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("to", "do!"),
        concat!("un", "implemented!"),
        concat!("#[ig", "nore"),
        concat!("/wo", "rk/"),
    ];
    words.into_iter().filter(|word| {
        line.match_indices(word).any(|(at, found)| {
            let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let before = line[..at].chars().next_back();
            let after = line[at + found.len()..].chars().next();
            let is_word = found.chars().all(inside);
            // "./x" and "a/x" are somebody's relative paths.
            let joined = before.is_some_and(|c| inside(c) || c == '.')
                || is_word && after.is_some_and(inside);
            !joined
        })
    })
}

const MAP: &str = "ARCHITECTURE.md";
