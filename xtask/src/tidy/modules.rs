//! Modules stand in reading order, every file has its sentence, and none is dead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ExprLit, Item, ItemMod, ItemUse, Lit, Meta, UseTree};

use super::layers::Package;
use super::tree::Tree;

/// What is wrong with the modules of every crate.
pub(super) fn faults(tree: &Tree, packages: &[Package]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    let mut reached = BTreeSet::new();
    for (entrance, own) in packages.iter().flat_map(|package| package.entrances(&tree.root)) {
        let krate = Crate::read(tree, &entrance)?;
        if own {
            faults.extend(krate.disorder());
        }
        reached.extend(krate.reached);
    }
    for path in tree.sources() {
        let shown = path.display();
        if !tree.read(path)?.starts_with("//!") {
            faults.push(format!("{shown}:1: a file opens with one `//!` sentence"));
        }
        if !reached.contains(path) {
            faults.push(format!("{shown}:1: no `mod` leads to this file"));
        }
    }
    Ok(faults)
}

/// One place where a top-level module names another.
struct Edge {
    from: String,
    to: String,
    file: PathBuf,
    line: usize,
}

/// One crate as its `mod` lines lay it out.
struct Crate {
    entrance: PathBuf,
    /// Top-level modules in the order of their `mod` lines.
    order: Vec<String>,
    /// Names that the root re-exports, and the module each comes from.
    aliases: BTreeMap<String, String>,
    edges: Vec<Edge>,
    reached: BTreeSet<PathBuf>,
}

impl Crate {
    fn read(tree: &Tree, entrance: &Path) -> Result<Self> {
        let mut krate = Self {
            entrance: entrance.to_owned(),
            order: Vec::new(),
            aliases: BTreeMap::new(),
            edges: Vec::new(),
            reached: BTreeSet::new(),
        };
        let root = parse(tree, entrance)?;
        for item in &root.items {
            match item {
                Item::Mod(module) => krate.order.push(module.ident.to_string()),
                Item::Use(item) => krate.remember_aliases(&item.tree, &[]),
                _ => {}
            }
        }
        let folder = entrance.parent().unwrap_or(Path::new("")).to_owned();
        krate.walk(tree, entrance, &folder, &[], &root.items)?;
        krate.reached.insert(entrance.to_owned());
        Ok(krate)
    }

    fn remember_aliases(&mut self, tree: &UseTree, before: &[String]) {
        match tree {
            UseTree::Path(path) => {
                self.remember_aliases(&path.tree, &[before, &[path.ident.to_string()]].concat());
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.remember_aliases(tree, before));
            }
            UseTree::Name(name) => self.remember_alias(name.ident.to_string(), before),
            UseTree::Rename(name) => self.remember_alias(name.rename.to_string(), before),
            UseTree::Glob(_) => {}
        }
    }

    fn remember_alias(&mut self, name: String, before: &[String]) {
        let module = before.iter().find(|part| !["self", "crate"].contains(&part.as_str()));
        if let Some(module) = module {
            self.aliases.insert(name, module.clone());
        }
    }

    /// Reads the items of one module, and the files that its `mod` lines lead to. `folder` is
    /// where those are looked for.
    fn walk(
        &mut self,
        tree: &Tree,
        file: &Path,
        folder: &Path,
        module: &[String],
        items: &[Item],
    ) -> Result<()> {
        for item in items {
            if let Item::Mod(inner) = item {
                self.walk_module(tree, file, folder, module, inner)?;
                continue;
            }
            if is_test(attributes(item)) {
                continue;
            }
            let mut uses =
                Uses { module: module.to_vec(), found: Vec::new(), included: Vec::new() };
            uses.visit_item(item);
            for included in uses.included {
                self.reached.insert(file.parent().unwrap_or(folder).join(included));
            }
            for (path, line) in uses.found {
                self.add_edge(file, module, &path, line);
            }
        }
        Ok(())
    }

    fn walk_module(
        &mut self,
        tree: &Tree,
        file: &Path,
        folder: &Path,
        outer: &[String],
        module: &ItemMod,
    ) -> Result<()> {
        let name = module.ident.to_string();
        let name = name.trim_start_matches("r#");
        let path = [outer, &[name.to_owned()]].concat();
        let below = folder.join(name);
        if let Some((_, items)) = &module.content {
            // Tests use what they need, in whatever order.
            if is_test(&module.attrs) {
                return self.walk_tests(tree, file, &below, &path, items);
            }
            return self.walk(tree, file, &below, &path, items);
        }
        let candidates = match named_path(&module.attrs) {
            Some(named) => vec![file.parent().unwrap_or(folder).join(named)],
            None => vec![folder.join(format!("{name}.rs")), below.join("mod.rs")],
        };
        let found = candidates.into_iter().find(|path| tree.root.join(path).is_file());
        let found =
            found.with_context(|| format!("{}: no file for `mod {name}`", file.display()))?;
        let parsed = parse(tree, &found)?;
        self.reached.insert(found.clone());
        if is_test(&module.attrs) {
            return self.walk_tests(tree, &found, &below, &path, &parsed.items);
        }
        self.walk(tree, &found, &below, &path, &parsed.items)
    }

    /// Follows the files of a test module without looking at what they use.
    fn walk_tests(
        &mut self,
        tree: &Tree,
        file: &Path,
        folder: &Path,
        module: &[String],
        items: &[Item],
    ) -> Result<()> {
        let edges = self.edges.len();
        self.walk(tree, file, folder, module, items)?;
        self.edges.truncate(edges);
        Ok(())
    }

    fn add_edge(&mut self, file: &Path, module: &[String], path: &[String], line: usize) {
        let (Some(from), Some(first)) = (module.first(), path.first()) else { return };
        let to = if self.order.contains(first) { Some(first) } else { self.aliases.get(first) };
        if let Some(to) = to
            && to != from
            && self.order.contains(to)
        {
            let edge = Edge { from: from.clone(), to: to.clone(), file: file.to_owned(), line };
            self.edges.push(edge);
        }
    }

    fn disorder(&self) -> Vec<String> {
        let place = |name: &String| self.order.iter().position(|known| known == name);
        let mut faults: Vec<String> = Vec::new();
        for edge in self.edges.iter().filter(|edge| place(&edge.from) < place(&edge.to)) {
            faults.push(format!(
                "{}:{}: `{}` uses `{}`, which stands below it in {}",
                edge.file.display(),
                edge.line,
                edge.from,
                edge.to,
                self.entrance.display(),
            ));
        }
        faults.dedup();
        if let Some(circle) = self.circle() {
            let folder = self.entrance.parent().unwrap_or(Path::new(""));
            faults.push(format!(
                "{}: modules use each other in a circle: {}",
                folder.display(),
                circle.join(" -> ")
            ));
        }
        faults
    }

    /// The first circle of modules, beginning and ending with the same one.
    fn circle(&self) -> Option<Vec<String>> {
        let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for edge in &self.edges {
            uses.entry(&edge.from).or_default().insert(&edge.to);
        }
        let mut cleared = BTreeSet::new();
        for start in &self.order {
            let mut trail = Vec::new();
            if follow(start, &uses, &mut trail, &mut cleared) {
                let first = trail.iter().position(|name| trail.last() == Some(name))?;
                return Some(trail[first..].iter().map(|name| (*name).to_owned()).collect());
            }
        }
        None
    }
}

/// Walks `uses` from `name` in depth; true when the trail has come round to a name on it.
fn follow<'a>(
    name: &'a str,
    uses: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    trail: &mut Vec<&'a str>,
    cleared: &mut BTreeSet<&'a str>,
) -> bool {
    if cleared.contains(name) {
        return false;
    }
    let round = trail.contains(&name);
    trail.push(name);
    if round {
        return true;
    }
    for next in uses.get(name).into_iter().flatten() {
        if follow(next, uses, trail, cleared) {
            return true;
        }
    }
    trail.pop();
    cleared.insert(name);
    false
}

/// Collects the paths that an item names, from the crate's root.
struct Uses {
    module: Vec<String>,
    found: Vec<(Vec<String>, usize)>,
    included: Vec<String>,
}

impl Uses {
    fn note(&mut self, path: &[String], line: usize) {
        let mut resolved = match path.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self" | "super") => self.module.clone(),
            _ => return,
        };
        for part in path {
            match part.as_str() {
                "crate" | "self" => {}
                "super" => {
                    resolved.pop();
                }
                name => resolved.push(name.to_owned()),
            }
        }
        self.found.push((resolved, line));
    }

    fn note_tree(&mut self, tree: &UseTree, before: &[String]) {
        let line = tree.span().start().line;
        match tree {
            UseTree::Path(path) => {
                self.note_tree(&path.tree, &[before, &[path.ident.to_string()]].concat());
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.note_tree(tree, before));
            }
            UseTree::Name(name) => self.note(&[before, &[name.ident.to_string()]].concat(), line),
            UseTree::Rename(name) => self.note(&[before, &[name.ident.to_string()]].concat(), line),
            UseTree::Glob(_) => self.note(before, line),
        }
    }

    /// A macro's content is no syntax tree yet: `crate::x` is looked for among its tokens.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => self.note_tokens(group.stream()),
                TokenTree::Ident(ident) if *ident == "crate" => {
                    if let [TokenTree::Punct(_), TokenTree::Punct(_), TokenTree::Ident(name), ..] =
                        &tokens[at + 1..]
                    {
                        let line = ident.span().start().line;
                        self.note(&["crate".to_owned(), name.to_string()], line);
                    }
                }
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Uses {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.note_tree(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let parts: Vec<String> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.note(&parts, path.span().start().line);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, called: &'ast syn::Macro) {
        if called.path.is_ident("include")
            && let Ok(name) = called.parse_body::<syn::LitStr>()
        {
            self.included.push(name.value());
        }
        self.note_tokens(called.tokens.clone());
        visit::visit_macro(self, called);
    }
}

fn parse(tree: &Tree, path: &Path) -> Result<syn::File> {
    syn::parse_file(&tree.read(path)?).with_context(|| format!("parsing {}", path.display()))
}

/// Whether an item is there for tests only.
pub(super) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            list.tokens.to_string().split(|c: char| !c.is_alphanumeric()).any(|word| word == "test")
        }
        Meta::Path(path) => path.segments.last().is_some_and(|segment| segment.ident == "test"),
        Meta::List(list) => {
            list.path.segments.last().is_some_and(|segment| segment.ident == "test")
        }
        Meta::NameValue(_) => false,
    })
}

/// The attributes of the kinds of item that are made for tests only.
fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn named_path(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}
