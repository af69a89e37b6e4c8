//! No function is longer than a screen or two; those that are may only shrink.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Block, ImplItemFn, ItemFn, ItemImpl, ItemMod, ItemTrait, Signature, TraitItemFn, Type};

use super::modules::is_test;
use super::tree::Tree;

/// Functions longer than allowed, and exceptions that have outlived their reason.
pub(super) fn faults(tree: &Tree) -> Result<Vec<String>> {
    let mut rules = Rules::parse(&tree.read(Path::new(RULES))?)?;
    let mut faults = Vec::new();
    for path in tree.sources().filter(|path| !in_tests(path)) {
        let parsed = syn::parse_file(&tree.read(path)?)
            .with_context(|| format!("parsing {}", path.display()))?;
        let mut functions = Functions::default();
        functions.visit_file(&parsed);
        let shown = path.display();
        for (name, (line, lines)) in functions.longest {
            let key = format!("{shown} {name}");
            match rules.longer.remove(&key) {
                None if lines > rules.max_lines => faults.push(format!(
                    "{shown}:{line}: {name} has {lines} lines, allowed are {}",
                    rules.max_lines
                )),
                Some(allowed) if lines > allowed => faults.push(format!(
                    "{shown}:{line}: {name} has {lines} lines, and had {allowed}: it may only shrink"
                )),
                Some(_) if lines <= rules.max_lines => faults.push(outlived(&shown, &name)),
                Some(allowed) if lines < allowed => faults.push(format!(
                    "{shown}: {name} has {lines} lines now: lower {allowed} in {RULES} to that"
                )),
                _ => {}
            }
        }
    }
    for key in rules.longer.keys() {
        let (path, name) = key.split_once(' ').unwrap_or((key, ""));
        faults.push(outlived(&path, name));
    }
    Ok(faults)
}

fn outlived(path: &dyn std::fmt::Display, name: &str) -> String {
    format!("{path}: {name} needs no exception: take it out of {RULES}")
}

fn in_tests(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str() == "tests")
}

/// What `xtask/tidy.toml` says.
#[derive(Debug, Eq, PartialEq)]
struct Rules {
    max_lines: usize,
    /// `file function` → the lines it may have.
    longer: BTreeMap<String, usize>,
}

impl Rules {
    /// Reads the few lines of TOML that the file may hold.
    fn parse(text: &str) -> Result<Self> {
        let mut max_lines = None;
        let mut longer = BTreeMap::new();
        let mut in_longer = false;
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line == "[longer]" {
                in_longer = true;
                continue;
            }
            let place = || format!("{RULES}:{}: {line}", at + 1);
            let (key, value) = line.split_once('=').with_context(place)?;
            let value: usize = value.trim().parse().with_context(place)?;
            match key.trim() {
                "max_lines" if !in_longer => max_lines = Some(value),
                key if in_longer => {
                    longer.insert(key.trim_matches('"').to_owned(), value);
                }
                _ => bail!(place()),
            }
        }
        Ok(Self { max_lines: max_lines.with_context(|| format!("{RULES}: no max_lines"))?, longer })
    }
}

/// The length of each function of a file; of two with one name, the longer.
#[derive(Default)]
struct Functions {
    owner: Vec<String>,
    longest: BTreeMap<String, (usize, usize)>,
}

impl Functions {
    fn note(&mut self, signature: &Signature, block: &Block) {
        let (first, last) = (signature.span().start().line, block.span().end().line);
        let lines = last + 1 - first;
        let mut name = self.owner.join("::");
        if !name.is_empty() {
            name.push_str("::");
        }
        name.push_str(&signature.ident.to_string());
        let known = self.longest.entry(name).or_insert((first, lines));
        if lines > known.1 {
            *known = (first, lines);
        }
    }

    fn within(&mut self, owner: String, inside: impl FnOnce(&mut Self)) {
        self.owner.push(owner);
        inside(self);
        self.owner.pop();
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_test(&module.attrs) {
            self.within(module.ident.to_string(), |this| visit::visit_item_mod(this, module));
        }
    }

    fn visit_item_impl(&mut self, item: &'ast ItemImpl) {
        let owner = match &*item.self_ty {
            Type::Path(path) => path.path.segments.last().map(|part| part.ident.to_string()),
            _ => None,
        };
        let owner = owner.unwrap_or_else(|| "impl".to_owned());
        self.within(owner, |this| visit::visit_item_impl(this, item));
    }

    fn visit_item_trait(&mut self, item: &'ast ItemTrait) {
        self.within(item.ident.to_string(), |this| visit::visit_item_trait(this, item));
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        if !is_test(&item.attrs) {
            self.note(&item.sig, &item.block);
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast ImplItemFn) {
        self.note(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast TraitItemFn) {
        if let Some(block) = &item.default {
            self.note(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

/// Where the limit and its exceptions are committed.
const RULES: &str = "xtask/tidy.toml";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_or_refused_with_their_line() {
        let longer = BTreeMap::from([("a/b.rs A::f".to_owned(), 80)]);
        let text = "# why\nmax_lines = 60\n\n[longer]\n\"a/b.rs A::f\" = 80\n";
        assert_eq!(Rules::parse(text).ok(), Some(Rules { max_lines: 60, longer }));
        let cases = [
            // text, what is told
            ("", "xtask/tidy.toml: no max_lines"),
            ("max_lines = x\n", "xtask/tidy.toml:1: max_lines = x"),
            ("max_lines = 1\nother = 2\n", "xtask/tidy.toml:2: other = 2"),
            ("max_lines = 1\nnonsense\n", "xtask/tidy.toml:2: nonsense"),
        ];
        for (text, expected) in cases {
            let told = Rules::parse(text).err().map(|why| why.to_string());
            assert_eq!(told.as_deref(), Some(expected), "{text}");
        }
    }
}
