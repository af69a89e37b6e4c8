//! The discovery graph: what a service's name leads to, from its router over splitters to targets.
//!
//! Config entries are compiled together: here it shows that one asks for what another does not
//! have, that they lead in a circle, or that requests would go to what takes bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Protocol;
use crate::chain::{self, REQUEST_TIMEOUT};
use crate::duration;
use crate::entry::{
    Entries, EntryKey, FailoverTarget, HeaderEdits, Kind, ServiceRoute, ServiceSplit, Sticky,
    Target, WHOLE, Weight,
};
use crate::name::{PeerName, ServiceName};

/// Where a name leads in the end: a service, or a part of its instances.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Destination {
    /// The service.
    pub service: ServiceName,
    /// Its subset; none for all instances.
    pub subset: Option<Arc<str>>,
    /// The peer; none for one's own cluster.
    pub peer: Option<PeerName>,
}

impl Destination {
    /// All instances of `service` in one's own cluster.
    pub fn whole(service: &ServiceName) -> Self {
        Self { service: service.clone(), subset: None, peer: None }
    }

    /// The service that its instances prove to be.
    pub fn target(&self) -> Target {
        Target { service: self.service.clone(), peer: self.peer.clone() }
    }
}

/// What a service's name leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Graph {
    /// The service that was asked for.
    pub service: ServiceName,
    /// What its callers speak, as far as entries say.
    pub protocol: Protocol,
    /// With a router: its routes in their order, and one for the rest.
    pub routes: Vec<Route>,
    /// Where all goes without a router.
    pub start: Next,
    /// The splitters on the way, those inside each other made one.
    pub splitters: BTreeMap<ServiceName, Splitter>,
    /// The ends of all ways.
    pub resolvers: BTreeMap<Destination, Resolver>,
    /// The services whose entries were read.
    pub consulted: BTreeSet<ServiceName>,
}

/// One route of a router.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// What the entry says; of the route for the rest it says nothing.
    pub definition: Option<ServiceRoute>,
    /// Where its requests go.
    pub next: Next,
    /// Where copies of them go.
    pub mirror: Option<Destination>,
}

/// Where requests go next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Next {
    /// To the splitter of this service.
    Splitter(ServiceName),
    /// To this end.
    Resolver(Destination),
}

/// How requests are shared out.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Splitter {
    /// What requests must have in common to go to the same end.
    pub sticky: Option<Sticky>,
    /// The shares.
    pub splits: Vec<Split>,
}

/// One share.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Split {
    /// What the entries say, one inside the other; its weight is their product.
    pub definition: ServiceSplit,
    /// Where its requests go.
    pub next: Destination,
}

/// One end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolver {
    /// Longest wait for a connection to an instance.
    pub connect_timeout: Duration,
    /// Longest wait for a whole answer.
    pub request_timeout: Duration,
    /// What stands in for it; none where no entry says.
    pub failover: Option<Vec<Destination>>,
    /// Whether no entry is about it.
    pub is_default: bool,
}

/// Why entries do not fit together: one of them, its field, what is wrong and how to put it right.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}/{}: {field}: {why}", key.kind, key.name)]
pub struct Misfit {
    /// The entry that asks for what there is not.
    pub key: EntryKey,
    /// Its field.
    pub field: String,
    /// What is wrong, and what to do.
    pub why: String,
}

impl Graph {
    /// Whether the name leads to all instances of its own service, and that is all.
    pub fn is_trivial(&self) -> bool {
        self.routes.is_empty() && self.start == Next::Resolver(Destination::whole(&self.service))
    }

    /// Whether no entry had a say but those on protocols.
    pub fn is_default(&self) -> bool {
        self.is_trivial() && self.resolvers.values().all(|resolver| resolver.is_default)
    }
}

/// Compiles what `service` leads to.
///
/// # Errors
/// [`Misfit`], the first thing that does not fit.
pub fn compile(entries: &Entries, service: &ServiceName) -> Result<Graph, Misfit> {
    compile_as(entries, service, None)
}

/// The same, for callers that speak `protocol` whatever the entries say. Where that makes bytes of
/// requests, routers and splitters have no say.
///
/// # Errors
/// [`Misfit`], the first thing that does not fit.
pub fn compile_as(
    entries: &Entries,
    service: &ServiceName,
    protocol: Option<Protocol>,
) -> Result<Graph, Misfit> {
    let written = entries.protocol(service).unwrap_or_default();
    let spoken = protocol.unwrap_or(written);
    let graph = Graph {
        service: service.clone(),
        protocol: spoken,
        routes: Vec::new(),
        start: Next::Resolver(Destination::whole(service)),
        splitters: BTreeMap::new(),
        resolvers: BTreeMap::new(),
        consulted: BTreeSet::new(),
    };
    let is_overridden = protocol.is_some_and(|protocol| protocol.is_http() != written.is_http());
    let mut compiler = Compiler { entries, graph, is_overridden };
    compiler.start()?;
    Ok(compiler.graph)
}

/// What does not fit in `new` and did in `old`, where they differ in the entry `key`.
///
/// # Errors
/// [`Misfit`], the first thing that does not fit.
pub fn check(old: &Entries, new: &Entries, key: &EntryKey) -> Result<(), Misfit> {
    check_plaintext(old, new, key)?;
    if !CONCERN_CHAINS.contains(&key.kind) {
        return Ok(());
    }
    let is_of_one = key.kind.fixed_name().is_none();
    let about = key.name.parse::<ServiceName>().ok().filter(|_| is_of_one);
    let is_concerned = |graph: &Result<Graph, Misfit>| match (graph, &about) {
        (Ok(graph), Some(about)) => graph.consulted.contains(about),
        _ => true,
    };
    for service in new.with_chains() {
        let before = compile(old, &service);
        if is_concerned(&before) || about.as_ref() == Some(&service) {
            compile(new, &service).map(drop).or_else(|misfit| match before {
                Err(known) if known == misfit => Ok(()),
                _ => Err(misfit),
            })?;
        }
    }
    Ok(())
}

/// Callers without TLS pass only where `mesh` allows it, so that nobody opens a service by chance.
fn check_plaintext(old: &Entries, new: &Entries, key: &EntryKey) -> Result<(), Misfit> {
    let Some(permissive) = new.unallowed_plaintext() else { return Ok(()) };
    if old.unallowed_plaintext().is_some() && key != permissive {
        return Ok(());
    }
    let allow = "AllowEnablingPermissiveMutualTLS";
    let (field, why) = if key.kind == Kind::Mesh {
        let EntryKey { kind, name } = permissive;
        (allow, format!("{kind}/{name} has MutualTLSMode permissive: make it strict first"))
    } else {
        let why = format!("permissive needs {allow}: true in mesh/mesh: write that first");
        ("MutualTLSMode", why)
    };
    Err(Misfit { key: key.clone(), field: field.to_owned(), why })
}

struct Compiler<'a> {
    entries: &'a Entries,
    graph: Graph,
    is_overridden: bool,
}

/// The field that leads somewhere.
#[derive(Clone)]
struct Origin {
    key: EntryKey,
    field: String,
    /// Whether it leads to what must be known to take requests.
    needs_http: bool,
}

impl Origin {
    fn new(kind: Kind, service: &ServiceName, field: impl Into<String>) -> Self {
        let key = EntryKey { kind, name: service.as_str().into() };
        let needs_http = matches!(kind, Kind::ServiceRouter | Kind::ServiceSplitter);
        Self { key, field: field.into(), needs_http }
    }

    fn misfit(&self, field: &str, why: String) -> Misfit {
        Misfit { key: self.key.clone(), field: format!("{}{field}", self.field), why }
    }
}

impl Compiler<'_> {
    fn start(&mut self) -> Result<(), Misfit> {
        let service = self.graph.service.clone();
        let is_http = self.graph.protocol.is_http();
        let (router, splitter) =
            (self.entries.service_router(&service), self.entries.service_splitter(&service));
        let needs_http = [
            router.map(|_| Origin::new(Kind::ServiceRouter, &service, "")),
            splitter.map(|_| Origin::new(Kind::ServiceSplitter, &service, "")),
        ];
        let needs_http = needs_http.into_iter().flatten().next();
        if let Some(origin) = needs_http.filter(|_| !is_http && !self.is_overridden) {
            return Err(origin.misfit("Name", speaks_bytes(&service)));
        }
        let origin = Origin::new(Kind::ServiceResolver, &service, "");
        self.graph.start = self.split_or_resolve(&service, &origin, is_http)?;
        if let Some(router) = router.filter(|_| is_http) {
            let mut routes = Vec::with_capacity(router.routes.len() + 1);
            for (n, definition) in router.routes.iter().enumerate() {
                let next = self.route(&service, n, definition)?;
                let mirror = self.mirror(&service, n, definition)?;
                routes.push(Route { definition: Some(definition.clone()), next, mirror });
            }
            routes.push(Route { definition: None, next: self.graph.start.clone(), mirror: None });
            self.graph.routes = routes;
        }
        self.keep_reachable();
        Ok(())
    }

    /// Where the requests of one route go.
    fn route(
        &mut self,
        service: &ServiceName,
        n: usize,
        definition: &ServiceRoute,
    ) -> Result<Next, Misfit> {
        let origin = Origin::new(Kind::ServiceRouter, service, format!("Routes[{n}].Destination."));
        let Some(destination) = &definition.destination else {
            return self.split_or_resolve(service, &origin, true);
        };
        let to = named(&destination.service, service);
        let next = match destination.service_subset.as_str() {
            "" => self.split_or_resolve(&to, &origin, true)?,
            subset => Next::Resolver(self.resolve(&to, Some(subset), &origin)?),
        };
        let total =
            destination.request_timeout.filter(|span| !span.is_zero()).unwrap_or_else(|| {
                let resolvers =
                    self.graph.resolvers.iter().filter(|(end, _)| self.leads(&next, end));
                resolvers.map(|(_, end)| end.request_timeout).min().unwrap_or(REQUEST_TIMEOUT)
            });
        match destination.per_try_timeout {
            Some(per_try) if per_try >= total => {
                let total = duration::format(total);
                let why = format!("it must be below the timeout of the request, which is {total}");
                Err(origin.misfit("PerTryTimeout", why))
            }
            _ => Ok(next),
        }
    }

    /// Where copies of the requests of one route go.
    fn mirror(
        &mut self,
        service: &ServiceName,
        n: usize,
        definition: &ServiceRoute,
    ) -> Result<Option<Destination>, Misfit> {
        let mirror = definition.destination.as_ref().and_then(|it| it.mirror.as_ref());
        let Some(mirror) = mirror else { return Ok(None) };
        let field = format!("Routes[{n}].Destination.Mirror.");
        let origin = Origin::new(Kind::ServiceRouter, service, field);
        let to = named(&mirror.service, service);
        let subset = Some(mirror.service_subset.as_str()).filter(|subset| !subset.is_empty());
        self.resolve(&to, subset, &origin).map(Some)
    }

    fn leads(&self, next: &Next, end: &Destination) -> bool {
        match next {
            Next::Resolver(destination) => destination == end,
            Next::Splitter(service) => {
                let splitter = self.graph.splitters.get(service);
                splitter.is_some_and(|it| it.splits.iter().any(|split| split.next == *end))
            }
        }
    }

    fn split_or_resolve(
        &mut self,
        service: &ServiceName,
        origin: &Origin,
        is_http: bool,
    ) -> Result<Next, Misfit> {
        let Some(splitter) = self.entries.service_splitter(service).filter(|_| is_http) else {
            return self.resolve(service, None, origin).map(Next::Resolver);
        };
        self.consult(service, origin)?;
        if !self.graph.splitters.contains_key(service) {
            let whole = ServiceSplit { weight: WHOLE, ..ServiceSplit::default() };
            let mut splits = Vec::new();
            self.split(service, &whole, &mut Vec::new(), origin, &mut splits)?;
            if splits.len() > SPLITS_MAX {
                let why =
                    format!("it leads to more than {SPLITS_MAX} places: nest fewer splitters");
                return Err(Origin::new(Kind::ServiceSplitter, service, "").misfit("Splits", why));
            }
            let sticky = splitter.sticky.clone();
            self.graph.splitters.insert(service.clone(), Splitter { sticky, splits });
        }
        Ok(Next::Splitter(service.clone()))
    }

    /// Shares `outer` out as the splitter of `service` says, and those that it leads to.
    fn split(
        &mut self,
        service: &ServiceName,
        outer: &ServiceSplit,
        within: &mut Vec<ServiceName>,
        origin: &Origin,
        found: &mut Vec<Split>,
    ) -> Result<(), Misfit> {
        if within.contains(service) {
            within.push(service.clone());
            return Err(origin.misfit("Service", circle(within)));
        }
        self.consult(service, origin)?;
        within.push(service.clone());
        let splits =
            self.entries.service_splitter(service).map_or(&[][..], |entry| &entry.splits[..]);
        for (n, inner) in splits.iter().enumerate() {
            let origin = Origin::new(Kind::ServiceSplitter, service, format!("Splits[{n}]."));
            let to = named(&inner.service, service);
            let both = nested(outer, inner);
            let has_own = to != *service && self.entries.service_splitter(&to).is_some();
            if inner.service_subset.is_empty() && has_own {
                self.split(&to, &both, within, &origin, found)?;
                continue;
            }
            let subset = Some(inner.service_subset.as_str()).filter(|subset| !subset.is_empty());
            let next = self.resolve(&to, subset, &origin)?;
            found.push(Split { definition: both, next });
        }
        within.pop();
        Ok(())
    }

    /// The end that `service` leads to, noted with what stands in for it.
    fn resolve(
        &mut self,
        service: &ServiceName,
        subset: Option<&str>,
        origin: &Origin,
    ) -> Result<Destination, Misfit> {
        let end = self.locate(service, subset, origin)?;
        if self.graph.resolvers.contains_key(&end) {
            return Ok(end);
        }
        let entry = self.entries.service_resolver(&end.service);
        let chain = chain::compile(self.entries, None, &end.service);
        let rule = entry.filter(|_| end.peer.is_none());
        let rule = rule.and_then(|entry| entry.failover_of(end.subset.as_deref()));
        let failover = match rule {
            None => None,
            Some(rule) => {
                let short = FailoverTarget {
                    service: rule.service.clone(),
                    service_subset: rule.service_subset.clone(),
                    peer: String::new(),
                };
                let is_short = !(short.service.is_empty() && short.service_subset.is_empty());
                let short = is_short.then_some(&short);
                let mut others = Vec::new();
                for target in short.into_iter().chain(&rule.targets) {
                    let other = self.stand_in(&end, target)?;
                    if other != end && !others.contains(&other) {
                        others.push(other);
                    }
                }
                Some(others)
            }
        };
        let resolver = Resolver {
            connect_timeout: chain.connect_timeout,
            request_timeout: chain.request_timeout,
            failover,
            is_default: entry.is_none(),
        };
        self.graph.resolvers.insert(end.clone(), resolver);
        Ok(end)
    }

    /// One end that stands in for another; what stands in for it in turn has no say.
    fn stand_in(
        &mut self,
        end: &Destination,
        target: &FailoverTarget,
    ) -> Result<Destination, Misfit> {
        let service = named(&target.service, &end.service);
        if let Ok(peer) = target.peer.parse() {
            return Ok(Destination { service, subset: None, peer: Some(peer) });
        }
        let subset = Some(target.service_subset.as_str()).filter(|subset| !subset.is_empty());
        let origin = Origin::new(Kind::ServiceResolver, &end.service, "Failover.");
        self.locate(&service, subset, &origin)
    }

    /// Follows redirects to an end.
    fn locate(
        &mut self,
        service: &ServiceName,
        subset: Option<&str>,
        origin: &Origin,
    ) -> Result<Destination, Misfit> {
        let (mut service, mut subset) = (service.clone(), subset.map(str::to_owned));
        let (mut origin, mut seen) = (origin.clone(), Vec::new());
        loop {
            let is_seen = seen.contains(&service);
            seen.push(service.clone());
            if is_seen {
                return Err(origin.misfit("Service", circle(&seen)));
            }
            self.consult(&service, &origin)?;
            let entry = self.entries.service_resolver(&service);
            if let Some(redirect) = entry.and_then(|entry| entry.redirect.as_ref()) {
                if let Some(subset) = subset {
                    let why = format!(
                        "{subset:?} is no subset of {service}: its service-resolver redirects; \
                         name the service that it leads to"
                    );
                    return Err(origin.misfit("ServiceSubset", why));
                }
                let to = named(&redirect.service, &service);
                if let Ok(peer) = redirect.peer.parse() {
                    return Ok(Destination { service: to, subset: None, peer: Some(peer) });
                }
                origin = Origin::new(Kind::ServiceResolver, &service, "Redirect.");
                let named = redirect.service_subset.clone();
                (service, subset) = (to, Some(named).filter(|subset| !subset.is_empty()));
                continue;
            }
            let default = entry.map(|entry| entry.default_subset.clone());
            let subset = subset.or(default).filter(|subset| !subset.is_empty());
            let has = |subset: &String| entry.is_some_and(|it| it.subsets.contains_key(subset));
            if let Some(subset) = subset.as_ref().filter(|subset| !has(subset)) {
                let why = format!(
                    "{subset:?} is no subset of {service}: add it to Subsets of \
                     service-resolver/{service}"
                );
                return Err(origin.misfit("ServiceSubset", why));
            }
            return Ok(Destination { service, subset: subset.map(Arc::from), peer: None });
        }
    }

    /// Notes that the entries of `service` have a say, and checks that it takes what callers send.
    fn consult(&mut self, service: &ServiceName, origin: &Origin) -> Result<(), Misfit> {
        self.graph.consulted.insert(service.clone());
        if self.is_overridden || *service == self.graph.service {
            return Ok(());
        }
        let is_http = self.graph.protocol.is_http();
        match self.entries.protocol(service) {
            // An instance may still say that it does.
            None if !(origin.needs_http && is_http) => Ok(()),
            Some(protocol) if protocol.is_http() == is_http => Ok(()),
            _ if is_http => Err(origin.misfit("Service", speaks_bytes(service))),
            _ => {
                let why = format!(
                    "{service} takes requests, and {} does not speak HTTP: give them one Protocol \
                     in service-defaults",
                    self.graph.service
                );
                Err(origin.misfit("Service", why))
            }
        }
    }

    /// Drops the ends that were only looked at on the way.
    fn keep_reachable(&mut self) {
        let nexts: Vec<&Next> = match self.graph.routes.as_slice() {
            [] => vec![&self.graph.start],
            routes => routes.iter().map(|route| &route.next).collect(),
        };
        let kept: BTreeSet<Destination> = self
            .graph
            .resolvers
            .keys()
            .filter(|end| {
                let is_mirror = |route: &Route| route.mirror.as_ref() == Some(*end);
                nexts.iter().any(|next| self.leads(next, end))
                    || self.graph.routes.iter().any(is_mirror)
            })
            .cloned()
            .collect();
        self.graph.resolvers.retain(|end, _| kept.contains(end));
    }
}

fn speaks_bytes(service: &ServiceName) -> String {
    format!(
        "{service} is not known to speak HTTP: set Protocol of service-defaults/{service} to http, \
         http2 or grpc first"
    )
}

fn circle(services: &[ServiceName]) -> String {
    let names: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
    format!("it leads in a circle: {}; let one of them lead elsewhere", names.join(" to "))
}

/// The service that a field names; its entry's own where it names none.
fn named(field: &str, own: &ServiceName) -> ServiceName {
    field.parse().unwrap_or_else(|_| own.clone())
}

/// A share of a share.
fn nested(outer: &ServiceSplit, inner: &ServiceSplit) -> ServiceSplit {
    let product = u32::from(outer.weight.0) * u32::from(inner.weight.0);
    let whole = u32::from(WHOLE.0);
    // A share of a share that rounds to nothing still gets its hundredth of a percent.
    let least = u32::from(product > 0);
    let weight = ((product + whole / 2) / whole).max(least);
    let edits = |outer: &Option<HeaderEdits>, inner: &Option<HeaderEdits>| match (outer, inner) {
        (Some(outer), Some(inner)) => Some(outer.overlaid(inner)),
        (outer, inner) => outer.clone().or_else(|| inner.clone()),
    };
    ServiceSplit {
        weight: Weight(u16::try_from(weight).unwrap_or(WHOLE.0)),
        request_headers: edits(&outer.request_headers, &inner.request_headers),
        response_headers: edits(&outer.response_headers, &inner.response_headers),
        ..inner.clone()
    }
}

const CONCERN_CHAINS: [Kind; 5] = [
    Kind::ProxyDefaults,
    Kind::ServiceDefaults,
    Kind::ServiceResolver,
    Kind::ServiceSplitter,
    Kind::ServiceRouter,
];
const SPLITS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Index;
    use crate::entry::{Body, Entry};

    fn entries(all: &[(&str, &str)]) -> Entries {
        let mut entries = Entries::default();
        for (key, json) in all {
            entries.put(entry(key, json), Index(1));
        }
        entries
    }

    fn entry(key: &str, json: &str) -> Entry {
        let (kind, name) = key.split_once('/').expect("kind/name");
        let kind: Kind = kind.parse().expect(kind);
        let body = Body::read(kind, &mut serde_json::Deserializer::from_str(json)).expect(json);
        Entry::new(name, body).expect(json)
    }

    fn name(text: &str) -> ServiceName {
        text.parse().expect("a name")
    }

    const HTTP: (&str, &str) = ("proxy-defaults/global", r#"{"Config":{"protocol":"http"}}"#);
    const SUBSETS: (&str, &str) = (
        "service-resolver/api",
        r#"{"DefaultSubset":"v1","Subsets":{"v1":{"Filter":"Service.Meta.version == v1"},
            "v2":{"OnlyPassing":true}},"Failover":{"v2":{"ServiceSubset":"v1"},
            "*":{"Targets":[{"Service":"spare"},{"Service":"api"},{"Peer":"west"}]}}}"#,
    );

    fn shown(end: &Destination) -> String {
        let subset = end.subset.iter().map(|subset| format!("{subset}."));
        let peer = end.peer.iter().map(|peer| format!("@{peer}"));
        subset.chain([end.service.to_string()]).chain(peer).collect()
    }

    #[test]
    fn a_name_leads_over_routes_and_splits_to_ends() {
        let entries = entries(&[
            HTTP,
            SUBSETS,
            (
                "service-router/web",
                r#"{"Routes":[{"Match":{"HTTP":{"PathPrefix":"/api"}},"Destination":{"Service":"api"}},
                   {"Match":{"HTTP":{"PathExact":"/2"}},"Destination":{"Service":"api","ServiceSubset":"v2"}}]}"#,
            ),
            (
                "service-splitter/web",
                r#"{"Splits":[{"Weight":90},{"Weight":10,"Service":"canary"}]}"#,
            ),
            (
                "service-splitter/canary",
                r#"{"Splits":[{"Weight":50,"Service":"api","ServiceSubset":"v2"},
                   {"Weight":50,"Service":"old"}]}"#,
            ),
            ("service-resolver/old", r#"{"Redirect":{"Service":"older"}}"#),
        ]);
        let graph = compile(&entries, &name("web")).expect("it fits");
        let nexts: Vec<String> = graph
            .routes
            .iter()
            .map(|route| match &route.next {
                Next::Splitter(service) => format!("split {service}"),
                Next::Resolver(end) => shown(end),
            })
            .collect();
        assert_eq!(nexts, ["v1.api", "v2.api", "split web"]);
        let splits = &graph.splitters[&name("web")].splits;
        let splits: Vec<(u16, String)> =
            splits.iter().map(|split| (split.definition.weight.0, shown(&split.next))).collect();
        let expected = [(9000, "web"), (500, "v2.api"), (500, "older")];
        assert_eq!(splits, expected.map(|(weight, end)| (weight, end.to_owned())));
        let ends: Vec<String> = graph.resolvers.keys().map(shown).collect();
        assert_eq!(ends, ["v1.api", "v2.api", "older", "web"]);
        let failover = |end: &str| -> Vec<String> {
            let (_, found) = graph.resolvers.iter().find(|(key, _)| shown(key) == end).expect(end);
            found.failover.iter().flatten().map(shown).collect()
        };
        assert_eq!(failover("v1.api"), ["spare", "api@west"], "itself is left out");
        assert_eq!(failover("v2.api"), ["v1.api"], "the subset's own rule counts");
        assert!(!graph.is_trivial());
        let plain = compile(&entries, &name("plain")).expect("it fits");
        assert!(plain.is_trivial() && plain.is_default());
    }

    /// An entry's kind and name, and its body.
    type Written = (&'static str, &'static str);

    #[test]
    fn what_does_not_fit_is_refused_with_entry_field_and_fix() {
        let cases: &[(&[Written], Written, &str)] = &[
            (
                &[],
                ("service-router/web", r#"{"Routes":[]}"#),
                "service-router/web: Name: web is not known to speak HTTP: set Protocol",
            ),
            (
                &[("service-defaults/web", r#"{"Protocol":"http"}"#)],
                ("service-splitter/web", r#"{"Splits":[{"Weight":100,"Service":"api"}]}"#),
                "service-splitter/web: Splits[0].Service: api is not known to speak HTTP",
            ),
            (
                &[HTTP, SUBSETS],
                (
                    "service-router/web",
                    r#"{"Routes":[{"Destination":{"Service":"api","ServiceSubset":"v9"}}]}"#,
                ),
                "service-router/web: Routes[0].Destination.ServiceSubset: \"v9\" is no subset of api",
            ),
            (
                &[("service-resolver/a", r#"{"Redirect":{"Service":"b"}}"#)],
                ("service-resolver/b", r#"{"Redirect":{"Service":"a"}}"#),
                "Redirect.Service: it leads in a circle: ",
            ),
            (
                &[HTTP, ("service-splitter/a", r#"{"Splits":[{"Weight":100,"Service":"b"}]}"#)],
                ("service-splitter/b", r#"{"Splits":[{"Weight":100,"Service":"a"}]}"#),
                "Service: it leads in a circle: a to b to a",
            ),
            (
                &[
                    HTTP,
                    SUBSETS,
                    ("service-splitter/api", r#"{"Splits":[{"Weight":100,"ServiceSubset":"v2"}]}"#),
                ],
                ("service-resolver/api", "{}"),
                "service-splitter/api: Splits[0].ServiceSubset: \"v2\" is no subset of api",
            ),
            (
                &[HTTP, ("service-resolver/web", r#"{"RequestTimeout":"2s"}"#)],
                ("service-router/web", r#"{"Routes":[{"Destination":{"PerTryTimeout":"2s"}}]}"#),
                "service-router/web: Routes[0].Destination.PerTryTimeout: it must be below",
            ),
            (
                &[
                    ("service-defaults/web", r#"{"Protocol":"http"}"#),
                    ("service-defaults/db", r#"{"Protocol":"tcp"}"#),
                ],
                ("service-resolver/web", r#"{"Failover":{"*":{"Service":"db"}}}"#),
                "service-resolver/web: Failover.Service: db is not known to speak HTTP",
            ),
            (
                &[
                    ("service-defaults/web", r#"{"Protocol":"http"}"#),
                    ("service-defaults/api", r#"{"Protocol":"http"}"#),
                    ("service-router/web", r#"{"Routes":[{"Destination":{"Service":"api"}}]}"#),
                ],
                ("service-defaults/api", r#"{"Protocol":"tcp"}"#),
                "service-router/web: Routes[0].Destination.Service: api is not known to speak HTTP",
            ),
        ];
        for (before, (key, json), expected) in cases {
            let old = entries(before);
            let mut new = old.clone();
            let entry = entry(key, json);
            new.put(entry.clone(), Index(2));
            let refused = check(&old, &new, entry.key()).expect_err(expected).to_string();
            assert!(refused.contains(expected), "{refused:?} has no {expected:?}");
        }
    }

    #[test]
    fn what_another_entry_needs_cannot_be_deleted() {
        let old = entries(&[
            HTTP,
            SUBSETS,
            (
                "service-router/web",
                r#"{"Routes":[{"Destination":{"Service":"api","ServiceSubset":"v2"}}]}"#,
            ),
        ]);
        let cases = [
            ("proxy-defaults/global", Some("service-router/web: Name: web is not known")),
            ("service-resolver/api", Some("service-router/web: Routes[0].Destination.Service")),
            ("service-router/web", None),
        ];
        for (key, expected) in cases {
            let (kind, name) = key.split_once('/').expect("kind/name");
            let key = EntryKey { kind: kind.parse().expect(kind), name: name.into() };
            let mut new = old.clone();
            new.remove(&key, Index(2));
            match (check(&old, &new, &key), expected) {
                (Ok(()), None) => {}
                (Err(refused), Some(expected)) => {
                    assert!(refused.to_string().contains(expected), "{refused}");
                }
                (other, _) => panic!("{key:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn plaintext_needs_the_word_of_the_mesh() {
        let permissive = r#"{"MutualTLSMode":"permissive"}"#;
        let allowed = ("mesh/mesh", r#"{"AllowEnablingPermissiveMutualTLS":true}"#);
        let web = ("service-defaults/web", permissive);
        let strict = ("service-defaults/web", r#"{"MutualTLSMode":"strict"}"#);
        let all = ("proxy-defaults/global", permissive);
        type Written<'a> = (&'a str, &'a str);
        let cases: &[(&[Written<'_>], Written<'_>, Option<&str>)] = &[
            // what there is, what is written, refused
            (&[], web, Some("service-defaults/web: MutualTLSMode: permissive needs")),
            (&[], all, Some("proxy-defaults/global: MutualTLSMode: permissive needs")),
            (&[], strict, None),
            (&[allowed], web, None),
            (&[allowed], all, None),
            (&[allowed, web], ("mesh/mesh", "{}"), Some("service-defaults/web has MutualTLSMode")),
            (&[allowed, web], strict, None),
        ];
        for (there, (key, json), expected) in cases {
            let old = entries(there);
            let mut new = old.clone();
            let entry = entry(key, json);
            new.put(entry.clone(), Index(9));
            match (check(&old, &new, entry.key()), expected) {
                (Ok(()), None) => {}
                (Err(refused), Some(expected)) => {
                    assert!(refused.to_string().contains(expected), "{refused}");
                }
                (other, _) => panic!("{key} {json}: {other:?}"),
            }
        }
        let both = entries(&[allowed, all, strict]);
        assert!(both.takes_plaintext(&name("db")) && !both.takes_plaintext(&name("web")));
    }

    #[test]
    fn what_was_wrong_before_does_not_stop_what_is_right() {
        let old = entries(&[("service-router/web", r#"{"Routes":[]}"#)]);
        let mut new = old.clone();
        let entry = entry("service-resolver/db", "{}");
        new.put(entry.clone(), Index(2));
        assert_eq!(check(&old, &new, entry.key()), Ok(()));
    }

    #[test]
    fn bytes_are_neither_routed_nor_split() {
        let entries = entries(&[
            HTTP,
            ("service-splitter/web", r#"{"Splits":[{"Weight":100,"Service":"api"}]}"#),
        ]);
        let graph = compile_as(&entries, &name("web"), Some(Protocol::Tcp)).expect("it fits");
        assert!(graph.is_trivial() && graph.protocol == Protocol::Tcp);
        let graph = compile_as(&entries, &name("web"), Some(Protocol::Grpc)).expect("it fits");
        assert_eq!(graph.start, Next::Splitter(name("web")));
    }
}
