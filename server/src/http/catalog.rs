//! `/v1/catalog`: what the catalog holds, and writing to it for nodes without an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hawser_api::definition;
use hawser_api::error::ApiError;
use hawser_api::fields::{Field, Fields, InvalidField};
use hawser_api::json;
use hawser_core::acl::{Access, Resource};
use hawser_core::catalog::bounds::{DEFINITION_OCTETS_MAX, ID_OCTETS_MAX, SPAN_OCTETS_MAX};
use hawser_core::catalog::{
    Catalog, Check, CheckRun, EXTERNAL_META, Instance, Locality, Node, Row, TaggedAddresses,
    liveness_id,
};
use hawser_core::clock::Index;
use hawser_core::health::Status;
use hawser_core::name::{CheckId, InstanceId, NodeName};
use hawser_core::state::{Command, NodeChanges, State, Topic};

use super::ask::{Ask, Draw, Found, Plan};
use super::encode;
use super::imports::{self, Socket};

pub(crate) fn datacenters<'a>(ask: &'a Ask, _: &'a State) -> Result<Found<'a>, ApiError> {
    Ok(Found::new(ask, Index(1), [], || [ask.datacenter.as_str()]))
}

pub(crate) fn nodes<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    if imports::peer(ask).is_some() {
        return Ok(imports::nodes(ask, state));
    }
    let catalog = state.catalog();
    let distance = ask.distance(state);
    Ok(Found::list(ask, catalog.nodes_index(), [Topic::Nodes], move || {
        let wanted = catalog.nodes().filter(|row| ask.wants_node(&row.value.meta));
        let mut rows: Vec<_> =
            wanted.filter(|row| ask.sight.node(row.value.name.as_str())).collect();
        rows.sort_by_key(|row| distance(&row.value));
        rows.into_iter().map(|row| encode::node(row, &ask.datacenter)).collect::<Vec<_>>()
    }))
}

pub(crate) fn services<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    if imports::peer(ask).is_some() {
        return Ok(imports::services(ask, state));
    }
    let catalog = state.catalog();
    let (mut index, mut topics) = (catalog.names_index(), vec![Topic::Names]);
    if !ask.options.node_meta.is_empty() || ask.options.filter.is_some() {
        index = index.max(catalog.nodes_index());
        topics.push(Topic::Nodes);
    }
    if ask.options.filter.is_some() {
        index = catalog.instances().map(|(_, row)| row.modified).fold(index, Index::max);
    }
    Ok(Found::lazily(index, topics, move || {
        let is_of_wanted_node = |node: &NodeName| {
            ask.options.node_meta.is_empty()
                || catalog.node(node).is_some_and(|node| ask.wants_node(&node.value.meta))
        };
        let mut tags_by_name: BTreeMap<&str, BTreeSet<Arc<str>>> = BTreeMap::new();
        // Who asks about nodes or more is told of nodes, so it must see them.
        let asks_of_nodes = !ask.options.node_meta.is_empty() || ask.options.filter.is_some();
        for (node, row) in catalog.instances().filter(|(node, _)| is_of_wanted_node(node)) {
            let is_seen = ask.sight.service(row.value.service.as_str())
                && (!asks_of_nodes || ask.sight.node(node.as_str()));
            if is_seen && is_wanted_instance(ask, catalog, node, row)? {
                let tags = tags_by_name.entry(row.value.service.as_str()).or_default();
                tags.extend(row.value.tags.iter().cloned());
            }
        }
        ask.write(&tags_by_name)
    }))
}

/// Whether the filter, which speaks of an instance flat with its node, wants this one.
fn is_wanted_instance(
    ask: &Ask,
    catalog: &Catalog,
    node: &NodeName,
    row: &Row<Instance>,
) -> Result<bool, ApiError> {
    if ask.options.filter.is_none() {
        return Ok(true);
    }
    let Some(host) = catalog.node(node) else { return Ok(false) };
    ask.wants(&encode::service_node(host, encode::node_service(row), &ask.datacenter))
}

pub(crate) fn service<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    match imports::peer(ask) {
        Some(_) => Ok(imports::instances(ask, state, Socket::Application)),
        None => instances(ask, state, encode::node_service_of),
    }
}

pub(crate) fn connect<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    match imports::peer(ask) {
        Some(_) => Ok(imports::instances(ask, state, Socket::Mesh)),
        None => instances(ask, state, encode::sidecar),
    }
}

/// Which of an instance's shapes is listed, if any.
type Shape = fn(&Row<Instance>) -> Option<json::NodeService>;

fn instances<'a>(ask: &'a Ask, state: &'a State, shape: Shape) -> Result<Found<'a>, ApiError> {
    let catalog = state.catalog();
    let Some(name) = ask.service() else {
        let none = Vec::<json::ServiceNode>::new;
        return Ok(Found::list(ask, catalog.emptied_index(), [Topic::Names], none));
    };
    let index = catalog.service_index(&name);
    let distance = ask.distance(state);
    Ok(Found::list(ask, index, [Topic::Service(name.clone())], move || {
        let mut placed: Vec<_> = catalog
            .placed(&name)
            .filter(|placed| ask.sight.node(placed.node.value.name.as_str()))
            .filter(|placed| ask.wants_node(&placed.node.value.meta))
            .filter(|placed| ask.wants_tags(&placed.instance.value.tags))
            .collect();
        placed.sort_by_key(|placed| distance(&placed.node.value));
        placed
            .into_iter()
            .filter_map(|placed| {
                let service = shape(placed.instance)?;
                Some(encode::service_node(placed.node, service, &ask.datacenter))
            })
            .collect::<Vec<_>>()
    }))
}

pub(crate) fn node<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let catalog = state.catalog();
    let Some(name) = ask.node(state) else {
        let none = || ask.write(&());
        return Ok(Found::lazily(catalog.nodes_index(), [Topic::Nodes], none));
    };
    let index = node_index(catalog, &name);
    Ok(Found::lazily(index, [Topic::Node(name.clone()), Topic::Nodes], move || {
        let services = seen_on(ask, catalog, &name);
        let by_id: serde_json::Map<_, _> = ask
            .filtered(&services)?
            .into_iter()
            .filter_map(|service| Some((service["ID"].as_str()?.to_owned(), service)))
            .collect();
        let node = catalog.node(&name).map(|row| encode::node(row, &ask.datacenter));
        ask.write(&serde_json::json!({ "Node": node, "Services": by_id }))
    }))
}

pub(crate) fn node_services<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let catalog = state.catalog();
    let Some(name) = ask.node(state) else {
        let none = || ask.write(&json::NodeServiceList::default());
        return Ok(Found::lazily(catalog.nodes_index(), [Topic::Nodes], none));
    };
    let index = node_index(catalog, &name);
    Ok(Found::lazily(index, [Topic::Node(name.clone()), Topic::Nodes], move || {
        let services = seen_on(ask, catalog, &name);
        let node = catalog.node(&name).map(|row| encode::node(row, &ask.datacenter));
        ask.write(&serde_json::json!({ "Node": node, "Services": ask.filtered(&services)? }))
    }))
}

/// The instances on `node` that the client may see.
fn seen_on(ask: &Ask, catalog: &Catalog, node: &NodeName) -> Vec<json::NodeService> {
    let seen = |row: &&Row<Instance>| ask.sight.service(row.value.service.as_str());
    catalog.instances_on(node).filter(seen).map(encode::node_service).collect()
}

/// The last entry that could have changed what stands on `node`.
///
/// Removing an instance moves the names' index and removing a node the nodes', so that the index
/// never goes back.
fn node_index(catalog: &Catalog, node: &NodeName) -> Index {
    let instances = catalog.instances_on(node).map(|row| row.modified);
    instances.fold(catalog.nodes_index().max(catalog.names_index()), Index::max)
}

pub(crate) fn register(ask: &Ask, state: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let body = ask.json()?;
    let registration = Registration::read(Fields::open(&body, "")?, ask)?;
    let name = registration.name.clone();
    if let Some(service) = registration.service.as_ref().filter(|one| !one.service.is_label()) {
        tracing::warn!(
            service = ?service.service.as_str(), node = ?name.as_str(),
            "this name is none in DNS and in the mesh: only a-z, 0-9 and - are, 63 at most"
        );
    }
    let node = registration.node(state.catalog().node(&name), draw, 0)?;
    let checks = registration.checks;
    if checks.iter().any(|check| Some(&check.id) == liveness_id().as_ref()) && !node.is_external() {
        return Err(ApiError::bad_request(format_args!(
            "Check.CheckID: that check of node {name} belongs to the servers: choose another id"
        )));
    }
    Ok(Plan::new([Command::SyncNode(NodeChanges {
        node,
        put_instances: registration.service.into_iter().collect(),
        put_checks: checks,
        drop_instances: Vec::new(),
        drop_checks: Vec::new(),
    })]))
}

pub(crate) fn deregister(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let node: NodeName = fields
        .parsed(&["Node"])?
        .ok_or_else(|| ApiError::bad_request("Must provide node: set Node to its name"))?;
    let instance = fields.parsed::<InstanceId>(&["ServiceID"])?;
    let check = fields.parsed::<CheckId>(&["CheckID"])?;
    datacenter(&mut fields, ask)?;
    fields.default_tenancy()?;
    fields.ignore(&["Address", "WriteRequest", "PeerName", "Token"]);
    fields.finish()?;
    let Some(row) = state.catalog().node(&node) else {
        // Whether it is there is told to those only who could have removed it.
        ask.sight.demand(Resource::Node, Access::Write, node.as_str())?;
        return Ok(Plan::new([]));
    };
    if instance.is_none() && check.is_none() {
        return Ok(Plan::new([Command::DropNode(node)]));
    }
    if instance.is_none() && check == liveness_id() && !row.value.is_external() {
        return Err(ApiError::bad_request(format_args!(
            "CheckID: that check of node {node} belongs to the servers: it cannot be removed"
        )));
    }
    Ok(Plan::new([Command::SyncNode(NodeChanges {
        node: (*row.value).clone(),
        put_instances: Vec::new(),
        put_checks: Vec::new(),
        // Consul looks at the service first, and then not at the check.
        drop_checks: if instance.is_none() { check.into_iter().collect() } else { Vec::new() },
        drop_instances: instance.into_iter().collect(),
    })]))
}

/// What `/v1/catalog/register` is told.
pub(crate) struct Registration {
    pub(crate) name: NodeName,
    id: Option<String>,
    address: Option<std::net::IpAddr>,
    meta: hawser_core::catalog::Meta,
    locality: Locality,
    tagged: TaggedAddresses,
    skip_node_update: bool,
    service: Option<Instance>,
    checks: Vec<Check>,
}

impl Registration {
    fn read(mut fields: Fields<'_>, ask: &Ask) -> Result<Self, ApiError> {
        datacenter(&mut fields, ask)?;
        fields.default_tenancy()?;
        let name: NodeName = fields
            .parsed(&["Node"])?
            .ok_or_else(|| ApiError::bad_request("Must provide node: set Node to its name"))?;
        let id = node_id(&mut fields)?;
        let address = fields.parsed(&["Address"])?;
        let meta = fields.meta(&["NodeMeta"])?;
        let locality = locality(&mut fields)?;
        let tagged = definition::tagged_addresses(&mut fields)?;
        let service = match fields.take(&["Service"])? {
            None => None,
            Some(Field { path, value }) => Some(instance(Fields::open(value, &path)?, &path)?),
        };
        let mut checks = Vec::new();
        for names in [["Check"], ["Checks"]] {
            for Field { path, value } in fields.list(&names)? {
                checks.push(check(Fields::open(value, &path)?, &name)?);
            }
        }
        let skip_node_update = fields.flag(&["SkipNodeUpdate"])?;
        fields.ignore(&["WriteRequest", "PeerName", "Token", "RaftIndex"]);
        fields.finish()?;
        Ok(Self { name, id, address, meta, locality, tagged, skip_node_update, service, checks })
    }

    /// What an operation of a transaction says of a node alone.
    pub(crate) fn of_node(mut fields: Fields<'_>, ask: &Ask) -> Result<Self, ApiError> {
        datacenter(&mut fields, ask)?;
        fields.default_tenancy()?;
        let missing = InvalidField::new(fields.path_of("Node"), "is missing: name the node");
        let name = fields.parsed(&["Node"])?.ok_or(missing)?;
        let id = node_id(&mut fields)?;
        let address = fields.parsed(&["Address"])?;
        let meta = fields.meta(&["Meta"])?;
        let locality = locality(&mut fields)?;
        let tagged = definition::tagged_addresses(&mut fields)?;
        fields.ignore(&["CreateIndex", "ModifyIndex", "PeerName"]);
        fields.finish()?;
        let (service, checks, skip_node_update) = (None, Vec::new(), false);
        Ok(Self { name, id, address, meta, locality, tagged, skip_node_update, service, checks })
    }

    /// The node as it is from now on. The row of a node that has an agent is the agent's.
    ///
    /// One that is new is given the `number`th id of `draw`.
    pub(crate) fn node(
        &self,
        held: Option<&Row<Node>>,
        draw: &Draw,
        number: u128,
    ) -> Result<Node, ApiError> {
        if let Some(row) = held
            && (self.skip_node_update || !row.value.is_external())
        {
            let held = (*row.value).clone();
            if self.id.as_deref().is_some_and(|id| id != &*held.id) {
                return Err(ApiError::Refused(format!(
                    "node {} has another id: choose another name",
                    self.name
                )));
            }
            return Ok(held);
        }
        let Some(address) = self.address else {
            return Err(ApiError::bad_request(
                "Must provide address if SkipNodeUpdate is not set: set Address",
            ));
        };
        let held_id = held.map(|row| row.value.id.to_string());
        let id = self.id.clone().or(held_id).unwrap_or_else(|| draw.uuid(number));
        let mut meta = self.meta.clone();
        meta.insert(EXTERNAL_META.into(), "true".into());
        let locality = self.locality.clone();
        let (name, tagged) = (self.name.clone(), self.tagged.clone());
        Ok(Node { name, id: id.into(), address, locality, meta, tagged })
    }
}

fn node_id(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    match fields.text(&["ID"])? {
        Some((path, text)) if text.len() > ID_OCTETS_MAX => {
            let why = format_args!("{ID_OCTETS_MAX} octets is the most");
            Err(InvalidField::new(path, why).into())
        }
        id => Ok(id.map(|(_, text)| text.to_owned())),
    }
}

fn locality(fields: &mut Fields<'_>) -> Result<Locality, ApiError> {
    let Some(mut fields) = fields.object(&["Locality"])? else { return Ok(Locality::default()) };
    let region = fields.text(&["Region"])?.map(|(_, text)| text.into());
    let zone = fields.text(&["Zone"])?.map(|(_, text)| text.into());
    fields.finish()?;
    Ok(Locality { region, zone })
}

pub(crate) fn instance(fields: Fields<'_>, path: &str) -> Result<Instance, ApiError> {
    let service = definition::service(fields)?;
    if !service.checks.is_empty() || service.sidecar.is_some() {
        return Err(InvalidField::new(
            path,
            "checks stand in Checks beside it, and sidecars run only on hosts with an agent",
        )
        .into());
    }
    Ok(service.instance)
}

pub(crate) fn check(mut fields: Fields<'_>, node: &NodeName) -> Result<Check, ApiError> {
    if let Some((path, text)) = fields.text(&["Node"])?
        && text != node.as_str()
    {
        return Err(InvalidField::new(path, format_args!("is not {node}")).into());
    }
    let stated_id = fields.parsed::<CheckId>(&["CheckID", "ID"])?;
    let name = fields.text(&["Name"])?.map(|(_, text)| text.to_owned());
    let id = match (stated_id, &name) {
        (Some(id), _) => id,
        (None, Some(name)) => name.parse().map_err(|why| {
            InvalidField::new(fields.path_of("Name"), format_args!("{name:?}: {why}"))
        })?,
        (None, None) => return Err(InvalidField::new(fields.path_of("CheckID"), "missing").into()),
    };
    let output_path = fields.path_of("Output");
    let output = fields.text(&["Output"])?.map_or("", |(_, text)| text);
    if output.len() > OUTPUT_OCTETS_MAX {
        let why = format_args!("{OUTPUT_OCTETS_MAX} octets is the most");
        return Err(InvalidField::new(output_path, why).into());
    }
    let check = Check {
        name: name.unwrap_or_else(|| id.to_string()).into(),
        id,
        kind: fields.text(&["Type"])?.map_or("", |(_, text)| text).into(),
        status: fields.parsed::<Status>(&["Status"])?.unwrap_or(Status::Critical),
        notes: fields.text(&["Notes"])?.map_or("", |(_, text)| text).into(),
        output: output.into(),
        instance: fields.parsed::<InstanceId>(&["ServiceID"])?,
        run: run(&mut fields)?,
    };
    fields.ignore(&["ServiceName", "ServiceTags"]);
    fields.ignore(&["ExposedPort", "CreateIndex", "ModifyIndex", "PeerName"]);
    fields.default_tenancy()?;
    fields.finish()?;
    check.check_bounds().map_err(ApiError::bad_request)?;
    Ok(check)
}

/// How the registrar runs the check: kept and told, and run by nobody here.
fn run(fields: &mut Fields<'_>) -> Result<CheckRun, ApiError> {
    let mut text = |name: &str| -> Result<Arc<str>, ApiError> {
        match fields.text(&[name])? {
            Some((path, text)) if text.len() > SPAN_OCTETS_MAX => {
                Err(InvalidField::new(path, "must be a duration such as \"10s\"").into())
            }
            found => Ok(found.map_or("", |(_, text)| text).into()),
        }
    };
    let (interval, timeout) = (text("Interval")?, text("Timeout")?);
    let definition: Arc<str> = match fields.take(&["Definition"])? {
        Some(Field { value: serde_json::Value::Object(object), path }) => {
            let written = serde_json::Value::Object(object.clone()).to_string();
            if written.len() > DEFINITION_OCTETS_MAX {
                let why = format_args!("{DEFINITION_OCTETS_MAX} octets is the most");
                return Err(InvalidField::new(path, why).into());
            }
            if object.is_empty() { "".into() } else { written.into() }
        }
        Some(Field { path, .. }) => {
            return Err(InvalidField::new(path, "must be an object").into());
        }
        None => "".into(),
    };
    Ok(CheckRun { interval, timeout, definition })
}

/// Takes the datacenter that a body names: it must be this one.
pub(crate) fn datacenter(fields: &mut Fields<'_>, ask: &Ask) -> Result<(), ApiError> {
    match fields.text(&["Datacenter"])? {
        Some((_, text)) if text != ask.datacenter.as_str() => Err(ApiError::UnknownDatacenter),
        _ => Ok(()),
    }
}

const OUTPUT_OCTETS_MAX: usize = 16 * 1024;
