//! What a handler is given and what it gives back: values, so that handlers are plain functions of
//! a request and a state.

use std::collections::BTreeSet;

use bytes::Bytes;
use hawser_api::error::ApiError;
use hawser_api::fields;
use hawser_api::query::{Query, QueryOptions};
use hawser_core::acl::{Access, Resource};
use hawser_core::catalog::Node;
use hawser_core::clock::{Index, UnixTime};
use hawser_core::name::{Datacenter, NodeName, ServiceName};
use hawser_core::state::{Command, State, Topic};
use serde::Serialize;
use serde_json::Value;

use super::acl::Stored;
use super::sight::Sight;
use crate::contacts::Contacts;

/// A request that found its route.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    /// The parts of the path that the pattern left open, decoded.
    pub(crate) params: Vec<String>,
    /// Everything after the question mark.
    pub(crate) query: Query,
    /// What every read takes.
    pub(crate) options: QueryOptions,
    /// The cluster's datacenter.
    pub(crate) datacenter: Datacenter,
    /// The body, within its bound.
    pub(crate) body: Bytes,
    /// When peers were heard, as far as this server knows.
    pub(crate) contacts: Contacts,
    /// The node whose agent passed it on, where one did.
    pub(crate) from: Option<NodeName>,
    /// What the client may see.
    pub(crate) sight: Sight,
}

impl Ask {
    /// The first open part of the path.
    pub(crate) fn name(&self) -> &str {
        self.params.first().map_or("", String::as_str)
    }

    /// The first open part as a service; none when no service can have that name, or the client
    /// may not know of it: the two look the same to it.
    pub(crate) fn service(&self) -> Option<ServiceName> {
        let name: ServiceName = self.name().parse().ok()?;
        self.sight.service(name.as_str()).then_some(name)
    }

    /// Whether secrets of tokens are shown: to who could make such tokens.
    pub(crate) fn reveals_secrets(&self) -> bool {
        self.sight.may().may(Resource::Acl, Access::Write, "")
    }

    /// The first open part as a node, by name or by id; none where there is no such node, or the
    /// client may not know of it.
    pub(crate) fn node(&self, state: &State) -> Option<NodeName> {
        self.any_node(state).filter(|node| self.sight.node(node.as_str()))
    }

    /// The same, whatever the client may know.
    pub(crate) fn any_node(&self, state: &State) -> Option<NodeName> {
        let catalog = state.catalog();
        let by_name: Option<NodeName> = self.name().parse().ok();
        by_name.filter(|name| catalog.node(name).is_some()).or_else(|| {
            let row = catalog.nodes().find(|row| &*row.value.id == self.name())?;
            Some(row.value.name.clone())
        })
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Result<Value, ApiError> {
        if self.body.is_empty() {
            return Err(ApiError::bad_request("Request decode failed: the body is empty"));
        }
        Ok(fields::parse(&self.body)?)
    }

    /// Whether a node has every pair that was asked for.
    pub(crate) fn wants_node(&self, meta: &hawser_core::catalog::Meta) -> bool {
        self.options
            .node_meta
            .iter()
            .all(|(key, value)| meta.get(key.as_str()).is_some_and(|held| **held == **value))
    }

    /// Whether an instance has every tag that was asked for.
    pub(crate) fn wants_tags(&self, tags: &BTreeSet<std::sync::Arc<str>>) -> bool {
        self.options.tags.iter().all(|tag| tags.contains(tag.as_str()))
    }

    /// Whether the filter wants `item`.
    pub(crate) fn wants(&self, item: &impl Serialize) -> Result<bool, ApiError> {
        let Some(filter) = &self.options.filter else { return Ok(true) };
        let item = serde_json::to_value(item).map_err(unwritable)?;
        filter.matches(&item).map_err(ApiError::bad_request)
    }

    /// How far a node is from the one that the client wants answers near to: on it, in its zone,
    /// in its region, or elsewhere. Where none is named, or it is not there, all are alike.
    pub(crate) fn distance<'s>(&self, state: &'s State) -> impl Fn(&Node) -> u8 + use<'s> {
        let near = match self.options.near.as_deref() {
            // The address that a request comes from is its agent's, too.
            Some("_agent" | "_ip") => self.from.clone(),
            Some(name) => name.parse().ok(),
            None => None,
        };
        let near = near.filter(|near: &NodeName| self.sight.may().node_read(near.as_str()));
        let near = near.and_then(|name: NodeName| state.catalog().node(&name));
        move |node| near.map_or(0, |near| near.value.distance(node))
    }

    /// Those elements of `list` that the filter wants.
    pub(crate) fn filtered<T: Serialize>(&self, list: &[T]) -> Result<Vec<Value>, ApiError> {
        let values: Result<Vec<Value>, _> = list.iter().map(serde_json::to_value).collect();
        let mut values = values.map_err(unwritable)?;
        if let Some(filter) = &self.options.filter {
            filter.retain(&mut values).map_err(ApiError::bad_request)?;
        }
        Ok(values)
    }

    /// Writes those elements of `list` that the filter wants.
    pub(crate) fn write_list<T: Serialize>(&self, list: &[T]) -> Result<Bytes, ApiError> {
        match self.options.filter {
            None => self.write(list),
            Some(_) => self.write(&self.filtered(list)?),
        }
    }

    /// Writes `value` as the client wants it.
    pub(crate) fn write<T: Serialize + ?Sized>(&self, value: &T) -> Result<Bytes, ApiError> {
        let written = if self.options.pretty {
            serde_json::to_vec_pretty(value).map(|mut text| {
                text.push(b'\n');
                text
            })
        } else {
            serde_json::to_vec(value)
        };
        written.map(Bytes::from).map_err(unwritable)
    }
}

fn unwritable(why: impl std::fmt::Display) -> ApiError {
    ApiError::Refused(format!("the reply cannot be written: {why}"))
}

/// What a read found: how new it is, what would change it, and how to write it.
pub(crate) struct Found<'a> {
    /// The last entry that could have changed the answer.
    pub(crate) index: Index,
    /// What wakes a reader that waits for a newer answer.
    pub(crate) topics: BTreeSet<Topic>,
    /// Writes the answer; not called while the reader waits.
    pub(crate) answer: Box<dyn FnOnce() -> Result<Bytes, ApiError> + 'a>,
    /// Whether the answer is whatever somebody stored, and no document of ours.
    pub(crate) is_raw: bool,
    /// Whether a client that names an index waits for a newer answer.
    pub(crate) waits: bool,
}

impl<'a> Found<'a> {
    /// An answer that `one` makes when it is wanted, and that no filter applies to.
    pub(crate) fn new<T: Serialize>(
        ask: &'a Ask,
        index: Index,
        topics: impl IntoIterator<Item = Topic>,
        one: impl FnOnce() -> T + 'a,
    ) -> Self {
        Self::lazily(index, topics, move || match ask.options.filter {
            None => ask.write(&one()),
            Some(_) => Err(ApiError::bad_request(
                "Invalid query parameter: \"filter\" is not supported here",
            )),
        })
    }

    /// A list that `list` makes when it is wanted, and that a filter thins out.
    pub(crate) fn list<T: Serialize>(
        ask: &'a Ask,
        index: Index,
        topics: impl IntoIterator<Item = Topic>,
        list: impl FnOnce() -> Vec<T> + 'a,
    ) -> Self {
        Self::lazily(index, topics, move || ask.write_list(&list()))
    }

    /// An answer that `answer` writes when it is wanted.
    pub(crate) fn lazily(
        index: Index,
        topics: impl IntoIterator<Item = Topic>,
        answer: impl FnOnce() -> Result<Bytes, ApiError> + 'a,
    ) -> Self {
        let topics = topics.into_iter().collect();
        Self { index, topics, answer: Box::new(answer), is_raw: false, waits: true }
    }

    /// An answer that never waits, whatever the client has seen.
    pub(crate) fn at_once(
        index: Index,
        answer: impl FnOnce() -> Result<Bytes, ApiError> + 'a,
    ) -> Self {
        Self { waits: false, ..Self::lazily(index, [], answer) }
    }

    /// Octets that somebody stored, as they are.
    pub(crate) fn raw(
        index: Index,
        topics: impl IntoIterator<Item = Topic>,
        octets: impl FnOnce() -> Bytes + 'a,
    ) -> Self {
        Self { is_raw: true, ..Self::lazily(index, topics, move || Ok(octets())) }
    }

    /// There is no such object yet.
    pub(crate) fn missing(
        index: Index,
        topics: impl IntoIterator<Item = Topic>,
        why: String,
    ) -> Self {
        Self::lazily(index, topics, move || Err(ApiError::NotFound(why)))
    }
}

/// What `apply` cannot have: drawn before a command is proposed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    /// The proposer's wall clock.
    pub(crate) now: UnixTime,
    /// 128 random bits.
    pub(crate) random: u128,
    /// 128 others, of which nothing that is public is made.
    pub(crate) secret: u128,
}

impl Draw {
    /// The `number`th UUID of this draw.
    pub(crate) fn uuid(&self, number: u128) -> String {
        let octets = self.random.wrapping_add(number).to_be_bytes();
        uuid::Builder::from_random_bytes(octets).into_uuid().to_string()
    }

    /// A UUID for a secret.
    pub(crate) fn secret_uuid(&self) -> String {
        uuid::Builder::from_random_bytes(self.secret.to_be_bytes()).into_uuid().to_string()
    }
}

/// What a write does: commands in order, and what is answered once they are applied.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// To be proposed one after the other.
    pub(crate) commands: Vec<Command>,
    /// The answer.
    pub(crate) reply: Reply,
}

impl Plan {
    /// Commands that are answered with `true`.
    pub(crate) fn new(commands: impl IntoIterator<Item = Command>) -> Self {
        Self { commands: commands.into_iter().collect(), reply: Reply::Json(Value::Bool(true)) }
    }
}

/// What a write answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reply {
    /// This.
    Json(Value),
    /// `true`, or `false` when somebody else wrote first.
    Swapped,
    /// What was stored.
    Acl(Stored),
}
