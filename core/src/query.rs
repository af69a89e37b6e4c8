//! Prepared queries: questions that operators write once and clients ask by name, with what to do
//! when nobody is well.

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::{Captures, Regex, RegexBuilder};
use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize};

use crate::catalog::{Row, upsert};
use crate::clock::Index;
use crate::name::SessionId;

/// A prepared query.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PreparedQuery {
    /// A UUID.
    pub id: Arc<str>,
    /// What it is asked for by; empty where only its id will do. Of a template: what the names
    /// that it answers begin with.
    pub name: Arc<str>,
    /// The session that it ends with.
    pub session: Option<SessionId>,
    /// What is asked.
    pub body: Body,
}

/// What a prepared query asks, in Consul's JSON shape.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Body {
    /// Whether it answers every name that begins with its own.
    #[serde(skip_serializing_if = "Template::is_none")]
    pub template: Template,
    /// Which instances.
    pub service: Selection,
    /// How DNS answers it.
    #[serde(rename = "DNS")]
    pub dns: Dns,
}

/// How names are made into a query.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Template {
    /// `name_prefix_match`, or empty for a query that is no template.
    #[serde(rename = "Type")]
    pub kind: String,
    /// What `${match(n)}` takes its groups from.
    pub regexp: String,
    /// Whether tags that come out empty are left out.
    pub remove_empty_tags: bool,
}

impl Template {
    fn is_none(&self) -> bool {
        self.kind.is_empty()
    }
}

/// Which instances a query wants, and where else to look.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Selection {
    /// The service.
    pub service: String,
    /// Where to look when no instance here will do.
    pub failover: Failover,
    /// Whether an instance that warns will not do.
    pub only_passing: bool,
    /// Checks that are not looked at.
    #[serde(rename = "IgnoreCheckIDs")]
    pub ignore_check_ids: Vec<String>,
    /// The node, or `_agent`, that answers are ordered by the distance from.
    pub near: String,
    /// Tags that an instance must have, or with `!` must not.
    pub tags: Vec<String>,
    /// Pairs that its node must have.
    pub node_meta: BTreeMap<String, String>,
    /// Pairs that it must have.
    pub service_meta: BTreeMap<String, String>,
    /// Whether its place in the mesh is wanted.
    pub connect: bool,
}

/// Where to look next.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Failover {
    /// How many peers to ask, nearest first, before those that are named.
    pub nearest_n: u16,
    /// Datacenters of peers, in order.
    pub datacenters: Vec<String>,
    /// Peers or datacenters, in order.
    pub targets: Vec<Target>,
}

/// One place to look at.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Target {
    /// A peer.
    pub peer: String,
    /// The datacenter of a peer.
    pub datacenter: String,
}

/// How DNS answers a query.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Dns {
    /// For how long an answer may be kept: a duration; empty for the default.
    #[serde(rename = "TTL")]
    pub ttl: String,
}

/// Why a query cannot be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidQuery {
    /// It names no service.
    #[error("Must provide a Service name to query")]
    NoService,
    /// Its template is of a kind that does not exist.
    #[error("Bad Template.Type {0:?}: must be \"name_prefix_match\"")]
    Kind(String),
    /// A template's expression is none.
    #[error("Bad Template.Regexp {0:?}")]
    Pattern(String),
    /// A `${…}` that means nothing, or is not closed.
    #[error("Bad template in {0:?}: use name.full, name.prefix, name.suffix or match(n)")]
    Variable(String),
    /// More targets or tags than a query may have, or a longer text.
    #[error(
        "Service: at most {LIST_MAX} tags, targets and pairs, of {TEXT_OCTETS_MAX} octets each"
    )]
    TooMuch,
    /// It is asked for by a longer name than any may have.
    #[error("Query names have at most {NAME_OCTETS_MAX} bytes")]
    LongName,
    /// A target that says nothing, or too much.
    #[error("Service.Failover.Targets: name a Peer or a Datacenter, and not both")]
    Target,
    /// It says where else to look in two ways.
    #[error("Service.Failover: Targets cannot be said together with NearestN or Datacenters")]
    TwoWays,
}

impl PreparedQuery {
    /// Whether it answers every name that begins with its own.
    pub fn is_template(&self) -> bool {
        !self.body.template.is_none()
    }

    /// Checks what is written; a template is tried with a name.
    ///
    /// # Errors
    /// [`InvalidQuery`]
    pub fn check(&self) -> Result<(), InvalidQuery> {
        let Body { template, service, .. } = &self.body;
        if service.service.is_empty() {
            return Err(InvalidQuery::NoService);
        }
        if !matches!(template.kind.as_str(), "" | "name_prefix_match") {
            return Err(InvalidQuery::Kind(template.kind.clone()));
        }
        let Failover { nearest_n, datacenters, targets } = &service.failover;
        let pairs = service.node_meta.iter().chain(&service.service_meta);
        let lists = [service.tags.len(), datacenters.len(), targets.len()];
        let texts = [&service.service, &service.near, &template.regexp].into_iter();
        let texts = texts.chain(&service.tags).chain(datacenters).chain(&service.ignore_check_ids);
        let texts = texts.chain(targets.iter().flat_map(|it| [&it.peer, &it.datacenter]));
        let is_long = |text: &String| text.len() > TEXT_OCTETS_MAX;
        if lists.into_iter().any(|count| count > LIST_MAX)
            || service.ignore_check_ids.len() > LIST_MAX
            || pairs.clone().count() > LIST_MAX
            || texts.into_iter().any(is_long)
            || pairs.into_iter().any(|(key, value)| is_long(key) || is_long(value))
        {
            return Err(InvalidQuery::TooMuch);
        }
        if targets.iter().any(|target| target.peer.is_empty() == target.datacenter.is_empty()) {
            return Err(InvalidQuery::Target);
        }
        if !targets.is_empty() && (*nearest_n > 0 || !datacenters.is_empty()) {
            return Err(InvalidQuery::TwoWays);
        }
        self.rendered(&self.name).map(drop)
    }

    /// What it asks when it is asked for as `name`: as it is, unless it is a template.
    ///
    /// # Errors
    /// [`InvalidQuery`] for a template that means nothing; none for one that was checked.
    pub fn rendered(&self, name: &str) -> Result<Body, InvalidQuery> {
        let mut body = self.body.clone();
        if !self.is_template() {
            return Ok(body);
        }
        if name.len() > NAME_OCTETS_MAX {
            return Err(InvalidQuery::LongName);
        }
        let pattern = match body.template.regexp.as_str() {
            "" => None,
            text => Some(pattern(text)?),
        };
        let parts = pattern.as_ref().and_then(|pattern| pattern.captures(name));
        let suffix = name.get(self.name.len()..).unwrap_or_default();
        let names = Names { full: name, prefix: &self.name, suffix, parts };
        let Selection { service, near, failover, tags, node_meta, service_meta, .. } =
            &mut body.service;
        let targets = failover.targets.iter_mut();
        let targets = targets.flat_map(|target| [&mut target.peer, &mut target.datacenter]);
        let metas = node_meta.values_mut().chain(service_meta.values_mut());
        let texts = [service, near].into_iter().chain(&mut failover.datacenters).chain(targets);
        for text in texts.chain(tags.iter_mut()).chain(metas).chain([&mut body.dns.ttl]) {
            *text = names.fill(text)?;
        }
        if body.template.remove_empty_tags {
            tags.retain(|tag| !tag.is_empty());
        }
        Ok(body)
    }
}

/// What `${…}` may stand for.
struct Names<'n> {
    full: &'n str,
    prefix: &'n str,
    suffix: &'n str,
    /// What the template's expression finds in the name.
    parts: Option<Captures<'n>>,
}

impl Names<'_> {
    fn fill(&self, text: &str) -> Result<String, InvalidQuery> {
        let wrong = || InvalidQuery::Variable(text.to_owned());
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (variable, after) = after.split_once('}').ok_or_else(wrong)?;
            filled.push_str(before);
            filled.push_str(match variable.trim() {
                "name.full" => self.full,
                "name.prefix" => self.prefix,
                "name.suffix" => self.suffix,
                // There are no network segments here.
                "agent.segment" => "",
                variable => {
                    let group = variable.strip_prefix("match(").and_then(|n| n.strip_suffix(')'));
                    let group: usize =
                        group.and_then(|n| n.trim().parse().ok()).ok_or_else(wrong)?;
                    let found = self.parts.as_ref().and_then(|parts| parts.get(group));
                    found.map_or("", |part| part.as_str())
                }
            });
            if filled.len() > TEXT_OCTETS_MAX {
                return Err(InvalidQuery::TooMuch);
            }
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }
}

fn pattern(text: &str) -> Result<Regex, InvalidQuery> {
    let built = RegexBuilder::new(text).size_limit(PATTERN_OCTETS_MAX).build();
    built.map_err(|_| InvalidQuery::Pattern(text.to_owned()))
}

/// The queries: a persistent table.
#[derive(Clone, Debug, Default)]
pub struct Queries {
    rows: RedBlackTreeMapSync<Arc<str>, Row<PreparedQuery>>,
    index: Index,
}

impl Queries {
    /// The last entry that changed any of them.
    pub fn index(&self) -> Index {
        self.index
    }

    /// Every query, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Row<PreparedQuery>> {
        self.rows.values()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rows.size()
    }

    /// The query of that id.
    pub fn get(&self, id: &str) -> Option<&Row<PreparedQuery>> {
        self.rows.get(id)
    }

    /// The query of that name, in any case of letters, or the template of exactly that prefix.
    pub fn named(&self, name: &str, is_template: bool) -> Option<&Row<PreparedQuery>> {
        self.iter().find(|row| {
            row.value.name.eq_ignore_ascii_case(name)
                && row.value.is_template() == is_template
                && is_named(&row.value)
        })
    }

    /// What is asked for as `asked`: by id, by name, or else by the template of the longest prefix.
    pub fn find(&self, asked: &str) -> Option<&Row<PreparedQuery>> {
        let template = || {
            let begins = |name: &str| {
                asked.get(..name.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(name))
            };
            let fitting =
                self.iter().filter(|row| row.value.is_template() && begins(&row.value.name));
            fitting.max_by_key(|row| row.value.name.len())
        };
        self.get(asked).or_else(|| self.named(asked, false)).or_else(template)
    }

    pub(crate) fn put(&mut self, query: PreparedQuery, at: Index) {
        upsert(&mut self.rows, query.id.clone(), query, at);
        self.index = at;
    }

    /// Removes a query; whether it was there.
    pub(crate) fn remove(&mut self, id: &str, at: Index) -> bool {
        let was_there = self.rows.remove_mut(id);
        if was_there {
            self.index = at;
        }
        was_there
    }

    /// Removes what ends with `session`; whether there was anything.
    pub(crate) fn end(&mut self, session: &SessionId, at: Index) -> bool {
        let ended = self.iter().filter(|row| row.value.session.as_ref() == Some(session));
        let ended: Vec<Arc<str>> = ended.map(|row| row.value.id.clone()).collect();
        for id in &ended {
            self.remove(id, at);
        }
        !ended.is_empty()
    }

    pub(crate) fn restore(rows: Vec<Row<PreparedQuery>>, index: Index) -> Self {
        let rows = rows.into_iter().map(|row| (row.value.id.clone(), row)).collect();
        Self { rows, index }
    }
}

/// Whether others may not have its name: those without one are asked for by id.
fn is_named(query: &PreparedQuery) -> bool {
    !query.name.is_empty() || query.is_template()
}

/// Queries that there may be.
pub const QUERIES_MAX: usize = 10_000;
const NAME_OCTETS_MAX: usize = 512;
const LIST_MAX: usize = 64;
const TEXT_OCTETS_MAX: usize = 512;
const PATTERN_OCTETS_MAX: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn query(id: &str, name: &str, service: &str) -> PreparedQuery {
        let service = Selection { service: service.to_owned(), ..Selection::default() };
        PreparedQuery {
            id: id.into(),
            name: name.into(),
            session: None,
            body: Body { service, ..Body::default() },
        }
    }

    fn template(id: &str, name: &str, service: &str) -> PreparedQuery {
        let mut template = query(id, name, service);
        template.body.template.kind = "name_prefix_match".to_owned();
        template
    }

    #[test]
    fn a_name_finds_its_own_query_and_else_the_longest_template() {
        let mut queries = Queries::default();
        for (at, query) in (1..).zip([
            query("1", "geo-web", "web"),
            query("2", "", "db"),
            template("3", "geo-", "${name.suffix}"),
            template("4", "geo-db-", "db"),
            template("5", "", "any"),
        ]) {
            queries.put(query, Index(at));
        }
        for (asked, expected) in [
            ("1", "1"),
            ("geo-web", "1"),
            ("Geo-Web", "1"),
            ("GEO-DB-1", "4"),
            ("2", "2"),
            ("geo-api", "3"),
            ("geo-db-1", "4"),
            ("geo-", "3"),
            ("other", "5"),
        ] {
            let found = queries.find(asked).map(|row| &*row.value.id);
            assert_eq!(found, Some(expected), "{asked:?}");
        }
        assert!(queries.remove("5", Index(9)));
        assert!(queries.find("other").is_none());
        assert_eq!(queries.index(), Index(9), "removing counts");
    }

    #[test]
    fn a_template_is_filled_in() {
        let mut template = template("1", "geo-", "${name.suffix}");
        template.body.template.regexp = "^geo-([a-z]+)-(.*)$".to_owned();
        template.body.service.tags =
            vec!["${match(1)}".to_owned(), "${match(7)}".to_owned(), "v1".to_owned()];
        let body = template.rendered("geo-db-eu").expect("good");
        assert_eq!(body.service.service, "db-eu");
        assert_eq!(body.service.tags, ["db", "", "v1"]);
        template.body.template.remove_empty_tags = true;
        let body = template.rendered("geo-x").expect("good");
        assert_eq!(body.service.tags, ["v1"], "the expression does not match");
    }

    #[test]
    fn what_is_filled_in_has_a_bound_whoever_asks() {
        let template = template("1", "q-", &"${name.full}".repeat(40));
        assert!(template.check().is_ok());
        assert!(template.rendered("q-short").is_ok());
        let refused = template.rendered(&format!("q-{}", "x".repeat(200)));
        assert_eq!(refused, Err(InvalidQuery::TooMuch));
        let refused = template.rendered(&format!("q-{}", "x".repeat(8_000)));
        assert_eq!(refused, Err(InvalidQuery::LongName));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |change: fn(&mut PreparedQuery)| {
            let mut query = template("1", "a", "web");
            change(&mut query);
            query.check()
        };
        assert_eq!(with(|_| {}), Ok(()));
        for (refused, expected) in [
            (with(|q| q.body.service.service.clear()), "Service name"),
            (with(|q| q.body.template.kind = "other".into()), "name_prefix_match"),
            (with(|q| q.body.template.regexp = "(".into()), "Regexp"),
            (with(|q| q.body.service.near = "${name.fool}".into()), "name.full"),
            (with(|q| q.body.service.near = "${name.full".into()), "name.full"),
            (with(|q| q.body.service.near = "${match(x)}".into()), "match(n)"),
            (with(|q| q.body.service.tags = vec![String::new(); 65]), "at most"),
            (with(|q| q.body.service.tags = vec!["x".repeat(513)]), "at most"),
            (with(|q| q.body.service.failover.targets = vec![Target::default()]), "Targets"),
            (
                with(|q| {
                    let target = Target { peer: "x".repeat(513), ..Target::default() };
                    q.body.service.failover.targets = vec![target];
                }),
                "at most",
            ),
            (
                with(|q| {
                    let target = Target { peer: "p".into(), ..Target::default() };
                    q.body.service.failover =
                        Failover { nearest_n: 1, datacenters: vec![], targets: vec![target] };
                }),
                "together",
            ),
        ] {
            let refused = refused.expect_err(expected).to_string();
            assert!(refused.contains(expected), "{refused}");
        }
    }
}
