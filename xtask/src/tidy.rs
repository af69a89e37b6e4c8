//! `cargo xtask tidy`: what the compiler does not check about how the house is built.

use std::path::Path;

use anyhow::{Result, bail};

mod tree;
mod layers;
mod modules;
mod length;
mod metrics;
mod prose;

use tree::Tree;

/// Checks everything and prints each fault with its place.
///
/// # Errors
/// There are faults, or a file cannot be read or parsed.
pub(crate) fn run(root: &Path) -> Result<()> {
    let faults = faults(&Tree::committed(root)?)?;
    for fault in &faults {
        println!("{fault}");
    }
    if !faults.is_empty() {
        bail!("{} faults", faults.len());
    }
    Ok(())
}

fn faults(tree: &Tree) -> Result<Vec<String>> {
    let packages = layers::packages(&tree.root)?;
    let mut faults = layers::faults(&packages);
    faults.extend(modules::faults(tree, &packages)?);
    faults.extend(length::faults(tree)?);
    faults.extend(metrics::faults(tree, &packages)?);
    faults.extend(prose::faults(tree, &packages)?);
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small repository that is in order, to be spoilt in one place per test.
    fn house() -> (tempfile::TempDir, Vec<(&'static str, &'static str)>) {
        let files = vec![
            (
                "Cargo.toml",
                "[workspace]\nmembers = [\"core\"]\nresolver = \"3\"\n[package]\nname = \"hawser\"\n\
                 version = \"0.1.0\"\nedition = \"2024\"\n[dependencies]\n\
                 hawser-core = { path = \"core\" }\n",
            ),
            ("src/main.rs", "//! The binary.\nfn main() {}\n"),
            (
                "core/Cargo.toml",
                "[package]\nname = \"hawser-core\"\nversion = \"0.1.0\"\nedition = \"2024\"\n",
            ),
            ("core/src/lib.rs", "//! Rules.\npub mod name;\npub mod state;\n"),
            ("core/src/name.rs", "//! Names.\npub struct Name;\n"),
            ("core/src/state.rs", "//! State.\nuse crate::name::Name;\npub fn f(_: Name) {}\n"),
            ("xtask/tidy.toml", "max_lines = 5\n[longer]\n"),
            ("ARCHITECTURE.md", "`core/`, `src/`, `xtask/` and `core/src/state.rs`.\n"),
            ("README.md", "See [the map](ARCHITECTURE.md).\n"),
        ];
        (tempfile::tempdir().expect("a temporary folder"), files)
    }

    fn told(spoil: &[(&'static str, &'static str)]) -> Vec<String> {
        let (folder, mut files) = house();
        files.retain(|(path, _)| !spoil.iter().any(|(spoilt, _)| spoilt == path));
        files.extend_from_slice(spoil);
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
            std::fs::write(path, text).expect("writable");
        }
        faults(&Tree::all(folder.path()).expect("readable")).expect("parses")
    }

    #[test]
    fn a_house_in_order_has_no_fault() {
        assert_eq!(told(&[]), Vec::<String>::new());
    }

    #[test]
    fn metrics_and_what_is_told_of_them_agree() {
        let source =
            ("core/src/state.rs", "//! State.\npub const M: &str = \"hawser_raft_term\";\n");
        let guide = |text| ("docs/observability.md", text);
        let map = ("ARCHITECTURE.md", "`core/`, `docs/`, `src/`, `xtask/`\n");
        assert_eq!(
            told(&[map, source, guide("`hawser_raft_term` says it.\n")]),
            Vec::<String>::new()
        );
        let untold = told(&[map, source, guide("Nothing.\n")]);
        let missing = "core/src/state.rs: docs/observability.md does not tell of hawser_raft_term";
        assert_eq!(untold, [missing]);
        let rules = ("docs/rules.yml", "expr: rate(hawser_raft_terms_total[5m]) > 1\n");
        let wrong = told(&[map, source, rules, guide("`hawser_raft_term`, `hawser_core`\n")]);
        assert_eq!(wrong, ["docs/rules.yml:1: there is no metric hawser_raft_terms_total"]);
    }

    #[test]
    fn each_disorder_is_told_with_its_place() {
        type Case = (&'static [(&'static str, &'static str)], &'static str, &'static str);
        let cases: &[Case] = &[
            // what is spoilt, what must be told, why
            (
                &[
                    (
                        "core/Cargo.toml",
                        "[package]\nname = \"hawser-core\"\nversion = \"0.1.0\"\n\
                   edition = \"2024\"\n[dependencies]\nhawser-api = { path = \"../api\" }\n",
                    ),
                    (
                        "api/Cargo.toml",
                        "[package]\nname = \"hawser-api\"\nversion = \"0.1.0\"\n\
                   edition = \"2024\"\n",
                    ),
                    ("api/src/lib.rs", "//! Api.\n"),
                    ("ARCHITECTURE.md", "`core/`, `api/`, `src/`, `xtask/`\n"),
                ],
                "core/Cargo.toml: hawser-core may not name hawser-api",
                "core names nobody",
            ),
            (
                &[(
                    "core/src/name.rs",
                    "//! Names.\npub type T = crate::state::S;\n\
                   pub struct Name;\n",
                )],
                "core/src/name.rs:2: `name` uses `state`, which stands below it in core/src/lib.rs",
                "a path in a type counts as a use",
            ),
            (
                &[("core/src/name.rs", "//! Names.\nuse super::state as s;\npub struct Name;\n")],
                "core/src: modules use each other in a circle: name -> state -> name",
                "super counts too, and the circle is named",
            ),
            (
                &[(
                    "core/src/name.rs",
                    "//! Names.\npub struct Name;\nfn f() { \
                   println!(\"{}\", crate::state::N) }\n",
                )],
                "core/src/name.rs:3: `name` uses `state`, which stands below it in core/src/lib.rs",
                "what stands inside a macro counts",
            ),
            (
                &[("core/src/name.rs", "// Names.\npub struct Name;\n")],
                "core/src/name.rs:1: a file opens with one `//!` sentence",
                "a plain comment is no header",
            ),
            (
                &[("core/src/old.rs", "//! Gone.\n")],
                "core/src/old.rs:1: no `mod` leads to this file",
                "nobody names it",
            ),
            (
                &[(
                    "core/src/name.rs",
                    "//! Names.\npub struct Name;\nimpl Name {\n pub fn f() {\n\
                   \n\n\n\n }\n}\n",
                )],
                "core/src/name.rs:4: Name::f has 6 lines, allowed are 5",
                "six lines from `fn` to the brace",
            ),
            (
                &[
                    ("xtask/tidy.toml", "max_lines = 5\n[longer]\n\"core/src/name.rs f\" = 9\n"),
                    ("core/src/name.rs", "//! Names.\npub struct Name;\nfn f() {\n\n\n\n\n\n}\n"),
                ],
                "core/src/name.rs: f has 7 lines now: lower 9 in xtask/tidy.toml to that",
                "an exception shrinks with the function",
            ),
            (
                &[("xtask/tidy.toml", "max_lines = 5\n[longer]\n\"core/src/name.rs g\" = 9\n")],
                "core/src/name.rs: g needs no exception: take it out of xtask/tidy.toml",
                "an exception for nothing goes",
            ),
            (
                &[("ARCHITECTURE.md", "`src/`, `xtask/`\n")],
                "ARCHITECTURE.md: does not name the crate `core`",
                "every crate is on the map",
            ),
            (
                &[("ARCHITECTURE.md", "`core/`, `src/`, `xtask/`\n"), ("docs/a.md", "text\n")],
                "ARCHITECTURE.md: does not name the folder `docs/`",
                "every folder is on the map",
            ),
            (
                &[("ARCHITECTURE.md", "`core/`, `src/`, `xtask/`, `core/src/gone.rs`\n")],
                "ARCHITECTURE.md:1: names `core/src/gone.rs`, which does not exist",
                "nothing gone is on the map",
            ),
            (
                &[("README.md", "text\n\n[x](docs/none.md#top) [y](http://example.com/none)\n")],
                "README.md:3: links to docs/none.md, which does not exist",
                "an address elsewhere is not ours to check",
            ),
            (
                &[("src/main.rs", concat!("//! The binary.\nfn main() {} // TO", "DO later\n"))],
                concat!("src/main.rs:2: says TO", "DO"),
                "nothing is left for later",
            ),
            (
                &[("src/main.rs", concat!("//! See \"/wo", "rk/x\".\nfn main() {}\n"))],
                concat!("src/main.rs:1: says /wo", "rk/"),
                "a path of one machine",
            ),
        ];
        for (spoil, expected, why) in cases {
            let told = told(spoil);
            assert!(told.iter().any(|fault| fault.starts_with(expected)), "{why}: {told:#?}");
        }
    }

    #[test]
    fn what_looks_like_disorder_and_is_none() {
        type Case = (&'static [(&'static str, &'static str)], &'static str);
        let cases: &[Case] = &[
            (
                &[(
                    "core/src/name.rs",
                    "//! Names.\npub struct Name;\n#[cfg(test)]\nmod tests {\n\
                   use crate::state::f;\n#[test]\nfn t() {\n\n\n\n\n\n\n\nf(super::Name)\n}\n}\n",
                )],
                "tests use what they need and are as long as their tables",
            ),
            (
                &[
                    (
                        "core/src/state.rs",
                        "//! State.\nmod inner;\nuse crate::name::Name;\n\
                   pub fn f(_: Name) {}\n",
                    ),
                    (
                        "core/src/state/inner.rs",
                        "//! Inside.\nuse super::super::name::Name;\n\
                   pub fn g(_: Name) {}\n",
                    ),
                ],
                "a room inside a room, and two steps up",
            ),
            (
                &[(
                    "src/main.rs",
                    "//! A fra\u{6d}ework/work/day, and mastodon TODOS.\nfn main() {}\n",
                )],
                "words inside words",
            ),
            (
                &[
                    (
                        "core/src/lib.rs",
                        "//! Rules.\npub mod name;\npub mod state;\n/// Made.\n\
                   pub mod v1 {\n    include!(\"gen/v1.rs\");\n}\n",
                    ),
                    ("core/src/gen/v1.rs", "// made by a program\n"),
                ],
                "generated code is included, and has its own header",
            ),
        ];
        for (spoil, why) in cases {
            assert_eq!(told(spoil), Vec::<String>::new(), "{why}");
        }
    }
}
