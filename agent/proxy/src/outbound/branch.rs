//! Branches: the ends that what is sent to one upstream may go to, and which of them it takes.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use hawser_core::discovery::Destination;
use hawser_core::entry::HeaderEdits;
use hawser_core::reason::Reason;
use hawser_core::traffic::{Head, Policy, Rotation, Table};
use hawser_core::view::Routing;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Request, Uri};
use rand::RngCore as _;

use super::inject::Met;
use super::{Current, Port};

/// Where what is sent to one upstream goes.
pub(super) struct Branches {
    routing: Arc<Routing>,
    rules: Rc<Rules>,
    /// One for each end.
    ports: Vec<Rc<Port>>,
}

/// What is made of routes when they arrive, so that requests need not.
struct Rules {
    table: Table,
    routes: Vec<Route>,
}

struct Route {
    /// What it is called in records; none for what matches all that no other does.
    class: Option<Arc<str>>,
    rotation: RefCell<Rotation>,
    edits: Both,
    /// Those of each share.
    shares: Vec<Both>,
}

/// What is changed in requests and in their answers.
struct Both {
    request: Edits,
    response: Edits,
}

#[derive(Default)]
struct Edits {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
}

/// The way that one request takes.
pub(super) struct Way {
    /// The end.
    pub(super) port: Rc<Port>,
    /// The rules, and which route and share of them; none where there is but one way.
    taken: Option<(Rc<Rules>, usize, usize)>,
    /// Where a copy of the request goes.
    pub(super) mirror: Option<Rc<Port>>,
    /// What it met on purpose.
    pub(super) met: Met,
}

impl Branches {
    /// The branches that `routing` asks for, which keep what `old` knows of the same ends.
    pub(super) fn new(
        port: &Port,
        routing: &Arc<Routing>,
        current: &Current,
        old: Option<&Self>,
    ) -> Self {
        let known = |end: &Destination| {
            let old = old?;
            let at = old.routing.ends.iter().position(|(known, _)| known == end)?;
            old.ports.get(at).cloned()
        };
        let ports = routing.ends.iter().map(|(end, service)| {
            let branch = known(end).unwrap_or_else(|| {
                let (context, service) = (port.context.clone(), port.service.clone());
                let (instance, usage) = (port.instance.clone(), port.usage.clone());
                let branch = Port::new(
                    context,
                    service,
                    instance,
                    end.target(),
                    usage,
                    port.selector.clone(),
                );
                // Limits are of all that goes to the upstream, wherever that leads.
                Rc::new(Port { named: port.named.clone(), ..branch })
            });
            let identity = port.identity.borrow().clone();
            branch.adopt(identity, Current { service: Some(service.clone()), ..current.clone() });
            branch
        });
        let ports = ports.collect();
        let same = old.filter(|old| old.routing.routes == routing.routes);
        let rules = match same {
            Some(old) => old.rules.clone(),
            None => {
                let mut random = port.context.random.borrow_mut();
                Rc::new(Rules::new(routing, || random.next_u64()))
            }
        };
        Self { routing: routing.clone(), rules, ports }
    }

    /// What it was made of.
    pub(super) fn routing(&self) -> &Routing {
        &self.routing
    }

    /// The ends.
    pub(super) fn ports(&self) -> &[Rc<Port>] {
        &self.ports
    }

    /// The end of the next connection.
    pub(super) fn next(&self) -> Option<Rc<Port>> {
        let (at, rule) = self.rules.table.last()?;
        let mut rotation = self.rules.routes.get(at)?.rotation.borrow_mut();
        let (_, end) = rule.next_share(&mut rotation)?;
        self.ports.get(end).cloned()
    }

    fn way<B>(&self, request: &Request<B>, authority: &Authority) -> Option<Way> {
        let head = RequestHead { request, authority };
        let (at, rule) = self.rules.table.route(&head)?;
        let mut rotation = self.rules.routes.get(at)?.rotation.borrow_mut();
        let (share, end) = rule.share(&head, &mut rotation)?;
        let port = self.ports.get(end)?.clone();
        let mirror = rule.mirror.filter(|(_, percentage)| {
            percentage.takes(port.context.random.borrow_mut().next_u64())
        });
        let mirror = mirror.and_then(|(end, _)| self.ports.get(end).cloned());
        Some(Way {
            port,
            taken: Some((self.rules.clone(), at, share)),
            mirror,
            met: Met::default(),
        })
    }
}

impl Port {
    /// The way that `request` takes.
    ///
    /// # Errors
    /// [`Reason::NoEndpoint`] when its route leads nowhere.
    pub(super) fn way<B>(
        self: &Rc<Self>,
        request: &Request<B>,
        authority: &Authority,
    ) -> Result<Way, Reason> {
        match &*self.branches.borrow() {
            None => Ok(Way { port: self.clone(), taken: None, mirror: None, met: Met::default() }),
            Some(branches) => branches.way(request, authority).ok_or(Reason::NoEndpoint),
        }
    }
}

impl Way {
    /// What its route is called; none where it took none of a router's.
    pub(super) fn class(&self) -> Option<Arc<str>> {
        let (rules, route, _) = self.taken.as_ref()?;
        rules.routes.get(*route)?.class.clone()
    }

    /// How the request is sent, where its route says.
    pub(super) fn policy(&self) -> Option<&Policy> {
        let (rules, route, _) = self.taken.as_ref()?;
        rules.table.rule(*route).map(|rule| &rule.policy)
    }

    /// Changes in a request what the route says, and its share.
    ///
    /// # Errors
    /// [`Reason::BadRequest`] when its path cannot be rewritten.
    pub(super) fn change<B>(&self, request: &mut Request<B>) -> Result<(), Reason> {
        let path = self.policy().and_then(|policy| policy.rewritten(request.uri().path()));
        if let Some(path) = path {
            retarget(request.uri_mut(), path).ok_or(Reason::BadRequest)?;
        }
        for both in self.edits() {
            both.request.apply(request.headers_mut());
        }
        Ok(())
    }

    /// Changes in an answer what the share says, and its route.
    pub(super) fn change_answer(&self, headers: &mut HeaderMap) {
        for both in self.edits().rev() {
            both.response.apply(headers);
        }
    }

    fn edits(&self) -> impl DoubleEndedIterator<Item = &Both> {
        let taken = self.taken.as_ref();
        let route = taken.and_then(|(rules, at, _)| rules.routes.get(*at));
        let share = route.zip(taken).and_then(|(route, (_, _, share))| route.shares.get(*share));
        route.map(|route| &route.edits).into_iter().chain(share)
    }
}

impl Rules {
    fn new(routing: &Routing, mut draw: impl FnMut() -> u64) -> Self {
        let table = Table::new(routing);
        let routes = routing.routes.iter().enumerate().map(|(at, route)| {
            let definition = route.definition.as_ref().and_then(|it| it.destination.as_ref());
            let shares = route.splits.iter().map(|split| {
                Both::new(split.request_headers.as_ref(), split.response_headers.as_ref())
            });
            let rotation = table.rule(at).map(|rule| Rotation::starting_at(rule, draw()));
            Route {
                class: table.class(at),
                rotation: RefCell::new(rotation.unwrap_or_default()),
                edits: Both::new(
                    definition.and_then(|it| it.request_headers.as_ref()),
                    definition.and_then(|it| it.response_headers.as_ref()),
                ),
                shares: shares.collect(),
            }
        });
        let routes = routes.collect();
        Self { table, routes }
    }
}

impl Both {
    fn new(request: Option<&HeaderEdits>, response: Option<&HeaderEdits>) -> Self {
        Self {
            request: request.map(Edits::new).unwrap_or_default(),
            response: response.map(Edits::new).unwrap_or_default(),
        }
    }
}

impl Edits {
    /// Names and values were checked when the entry was written.
    fn new(edits: &HeaderEdits) -> Self {
        let pair = |(name, value): (&String, &String)| {
            Some((name.parse().ok()?, HeaderValue::try_from(value).ok()?))
        };
        Self {
            remove: edits.remove.iter().filter_map(|name| name.parse().ok()).collect(),
            set: edits.set.iter().filter_map(pair).collect(),
            add: edits.add.iter().filter_map(pair).collect(),
        }
    }

    fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
    }
}

struct RequestHead<'a, B> {
    request: &'a Request<B>,
    authority: &'a Authority,
}

impl<B> Head for RequestHead<'_, B> {
    fn method(&self) -> &str {
        self.request.method().as_str()
    }

    fn path(&self) -> &str {
        self.request.uri().path()
    }

    fn query(&self) -> Option<&str> {
        self.request.uri().query()
    }

    fn authority(&self) -> &str {
        self.authority.as_str()
    }

    fn field(&self, name: &str, test: &mut dyn FnMut(&str) -> bool) -> Option<bool> {
        let values = self.request.headers().get_all(name);
        let mut found = None;
        for value in &values {
            let holds = value.to_str().is_ok_and(&mut *test);
            found = Some(found.unwrap_or_default() || holds);
        }
        found
    }
}

/// Puts another path in front of the same query.
fn retarget(uri: &mut Uri, mut path: String) -> Option<()> {
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    *uri = Uri::from_parts(parts).ok()?;
    Some(())
}
