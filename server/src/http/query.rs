//! `/v1/query`: prepared queries, written, asked and explained.

use hawser_api::error::ApiError;
use hawser_api::fields::{Field, Fields, InvalidField};
use hawser_api::json;
use hawser_core::acl::{Access, Resource};
use hawser_core::answer::{self, Instances};
use hawser_core::catalog::Row;
use hawser_core::name::{NodeName, SessionId};
use hawser_core::query::{Body, Dns, Failover, PreparedQuery, Selection, Target, Template};
use hawser_core::state::{Command, State, Topic};
use serde_json::{Value, json as object};

use super::ask::{Ask, Draw, Found, Plan, Reply};
use super::catalog::datacenter;
use super::encode;
use super::imports::{self, Socket};

pub(crate) fn create(ask: &Ask, _: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let query = read(ask, &draw.uuid(0))?;
    let reply = Reply::Json(object!({ "ID": &*query.id }));
    Ok(Plan { commands: vec![Command::PutQuery(query)], reply })
}

pub(crate) fn update(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let query = read(ask, ask.name())?;
    if state.queries().get(ask.name()).is_none() {
        // Whether it is there is told to those only who could have written it.
        ask.sight.demand(Resource::Query, Access::Write, &query.name)?;
        return Err(missing());
    }
    Ok(Plan { commands: vec![Command::PutQuery(query)], reply: Reply::Json(Value::Null) })
}

pub(crate) fn delete(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    if state.queries().get(ask.name()).is_none() {
        ask.sight.demand(Resource::Query, Access::Write, "")?;
    }
    let commands = vec![Command::DropQuery(ask.name().into())];
    Ok(Plan { commands, reply: Reply::Json(Value::Null) })
}

pub(crate) fn list<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let queries = state.queries();
    Ok(Found::list(ask, queries.index(), [Topic::Queries], move || {
        queries.iter().filter(|row| is_seen(ask, &row.value)).map(shown).collect::<Vec<_>>()
    }))
}

pub(crate) fn get<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let row = state.queries().get(ask.name()).filter(|row| may_read(ask, &row.value));
    let index = row.map_or(state.queries().index(), |row| row.modified);
    Ok(Found::lazily(index, [Topic::Queries], move || match row {
        Some(row) => ask.write(&[shown(row)]),
        None => Err(missing()),
    }))
}

/// What the query finds now. It never waits, as Consul's never does.
pub(crate) fn execute<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let limit = ask.query.number("limit")?.unwrap_or(0);
    let connect = ask.query.flag("connect")?;
    Ok(Found::at_once(state.applied(), move || {
        let mut body = rendered(ask, state)?;
        body.service.connect |= connect;
        ask.write(&found(ask, state, &body, usize::try_from(limit).unwrap_or(usize::MAX)))
    }))
}

/// What the query asks when it is asked for like that.
pub(crate) fn explain<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    Ok(Found::at_once(state.applied(), move || {
        let row = state.queries().find(ask.name()).ok_or_else(missing)?;
        if !may_read(ask, &row.value) {
            return Err(missing());
        }
        let mut shown = shown(row);
        let body = rendered(ask, state)?;
        shown["Service"] = object!(body.service);
        shown["DNS"] = object!(body.dns);
        ask.write(&object!({ "Query": shown }))
    }))
}

fn rendered(ask: &Ask, state: &State) -> Result<Body, ApiError> {
    let row = state.queries().find(ask.name()).ok_or_else(missing)?;
    row.value.rendered(ask.name()).map_err(|why| ApiError::Refused(why.to_string()))
}

fn found(ask: &Ask, state: &State, body: &Body, limit: usize) -> Value {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let is_seen = |service: &str, node: &str| ask.sight.service(service) && ask.sight.node(node);
    let found = answer::execute(state, &body.service, is_seen);
    let socket = if body.service.connect { Socket::Mesh } else { Socket::Application };
    let (nodes, datacenter): (Vec<json::ServiceEntry>, String) = match found.instances {
        Instances::Own(mut placed) => {
            answer::order(&mut placed, near(ask, state, body), rand::random());
            let shape = match socket {
                Socket::Mesh => encode::sidecar,
                Socket::Application => encode::node_service_of,
            };
            let entries = placed.iter().filter_map(|placed| {
                let service = shape(placed.instance)?;
                Some(encode::service_entry(placed, service, &ask.datacenter))
            });
            (entries.take(limit).collect(), ask.datacenter.to_string())
        }
        Instances::Of(peer, endpoints) => {
            let service = &body.service.service;
            let entries = imports::entries(state, peer, service, &endpoints, (socket, limit));
            let peering = state.peerings().get(peer);
            let remote = peering.and_then(|row| row.value.remote.as_ref());
            let datacenter = remote.map(|remote| remote.datacenter.to_string());
            (entries, datacenter.unwrap_or_default())
        }
    };
    object!({
        "Service": body.service.service,
        "Nodes": nodes,
        "DNS": body.dns,
        "Datacenter": datacenter,
        "Failovers": found.failovers,
    })
}

/// The node that the answer is ordered by the distance from: the client's word, or the query's.
fn near<'s>(ask: &Ask, state: &'s State, body: &Body) -> Option<&'s hawser_core::catalog::Node> {
    let said = ask.options.near.as_deref().unwrap_or(&body.service.near);
    let name: Option<NodeName> = match said {
        "" => None,
        "_agent" | "_ip" => ask.from.clone(),
        name => name.parse().ok(),
    };
    let name = name.filter(|name| ask.sight.may().node_read(name.as_str()))?;
    state.catalog().node(&name).map(|row| &*row.value)
}

/// Whether a query is listed. Who cannot write one without a name cannot have been told its id.
fn is_seen(ask: &Ask, query: &PreparedQuery) -> bool {
    let may = |access| ask.sight.may().may(Resource::Query, access, &query.name);
    match query.name.is_empty() && !query.is_template() {
        true => may(Access::Write),
        false => may(Access::Read),
    }
}

/// Whether a query may be read by who knows its id.
fn may_read(ask: &Ask, query: &PreparedQuery) -> bool {
    ask.sight.may().may(Resource::Query, Access::Read, &query.name)
}

fn shown(row: &Row<PreparedQuery>) -> Value {
    let query = &*row.value;
    let session = query.session.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut shown = object!({
        "ID": &*query.id,
        "Name": &*query.name,
        "Session": session,
        "Token": "",
        "Service": query.body.service,
        "DNS": query.body.dns,
        "CreateIndex": row.created.0,
        "ModifyIndex": row.modified.0,
    });
    if query.is_template() {
        shown["Template"] = object!(query.body.template);
    }
    shown
}

fn missing() -> ApiError {
    ApiError::NotFound("Query not found".to_owned())
}

fn read(ask: &Ask, id: &str) -> Result<PreparedQuery, ApiError> {
    let written = ask.json()?;
    let mut fields = Fields::open(&written, "")?;
    datacenter(&mut fields, ask)?;
    fields.default_tenancy()?;
    let name = fields.text(&["Name"])?.map_or("", |(_, text)| text);
    let session = fields.parsed::<SessionId>(&["Session"])?;
    fields.refuse(&["Token"], "a query runs with the rights of who asks it: leave it out")?;
    let template = match fields.object(&["Template"])? {
        None => Template::default(),
        Some(fields) => template(fields)?,
    };
    let service = fields.object(&["Service"])?;
    let service = service.ok_or_else(|| InvalidField::new("Service", "is missing"))?;
    let service = selection(service)?;
    let dns = match fields.object(&["DNS"])? {
        None => Dns::default(),
        Some(mut fields) => {
            let ttl = fields.duration(&["TTL"])?.map(hawser_core::duration::format);
            fields.finish()?;
            Dns { ttl: ttl.unwrap_or_default() }
        }
    };
    fields.ignore(&["ID", "CreateIndex", "ModifyIndex", "RaftIndex"]);
    fields.finish()?;
    if name.len() > NAME_OCTETS_MAX {
        let why = format_args!("{NAME_OCTETS_MAX} octets is the most");
        return Err(InvalidField::new("Name", why).into());
    }
    let body = Body { template, service, dns };
    let query = PreparedQuery { id: id.into(), name: name.into(), session, body };
    query.check().map_err(ApiError::bad_request)?;
    Ok(query)
}

fn template(mut fields: Fields<'_>) -> Result<Template, ApiError> {
    let template = Template {
        kind: owned(&mut fields, "Type")?,
        regexp: owned(&mut fields, "Regexp")?,
        remove_empty_tags: fields.flag(&["RemoveEmptyTags"])?,
    };
    fields.finish()?;
    Ok(template)
}

fn selection(mut fields: Fields<'_>) -> Result<Selection, ApiError> {
    fields.default_tenancy()?;
    fields.refuse(&["SamenessGroup"], "name the peers in Failover.Targets")?;
    let pairs = |meta: hawser_core::catalog::Meta| encode::pairs(&meta);
    let selection = Selection {
        service: owned(&mut fields, "Service")?,
        failover: match fields.object(&["Failover"])? {
            None => Failover::default(),
            Some(fields) => failover(fields)?,
        },
        only_passing: fields.flag(&["OnlyPassing"])?,
        ignore_check_ids: fields.texts(&["IgnoreCheckIDs"])?,
        near: owned(&mut fields, "Near")?,
        tags: fields.texts(&["Tags"])?,
        node_meta: pairs(fields.meta(&["NodeMeta"])?),
        service_meta: pairs(fields.meta(&["ServiceMeta"])?),
        connect: fields.flag(&["Connect"])?,
    };
    fields.ignore(&["Peer"]);
    fields.finish()?;
    Ok(selection)
}

fn failover(mut fields: Fields<'_>) -> Result<Failover, ApiError> {
    // The bound is u16's own, so nothing is cut off.
    let nearest_n = fields.whole(&["NearestN"], u16::MAX.into())?.unwrap_or(0) as u16;
    let datacenters = fields.texts(&["Datacenters"])?;
    let mut targets = Vec::new();
    for Field { path, value } in fields.list(&["Targets"])? {
        let mut fields = Fields::open(value, &path)?;
        fields.default_tenancy()?;
        let [peer, datacenter] = ["Peer", "Datacenter"].map(|name| owned(&mut fields, name));
        targets.push(Target { peer: peer?, datacenter: datacenter? });
        fields.finish()?;
    }
    fields.finish()?;
    Ok(Failover { nearest_n, datacenters, targets })
}

fn owned(fields: &mut Fields<'_>, name: &str) -> Result<String, InvalidField> {
    Ok(fields.text(&[name])?.map_or_else(String::new, |(_, text)| text.to_owned()))
}

const NAME_OCTETS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use http::Method;

    use super::super::tests::{get, pick, state, write};
    use super::*;

    fn create(state: &mut State, body: &Value) -> Result<String, ApiError> {
        match write(state, &Method::POST, "/v1/query", body)? {
            Reply::Json(reply) => Ok(reply["ID"].as_str().expect("an id").to_owned()),
            other => panic!("{other:?}"),
        }
    }

    fn instances(state: &State, path: &str) -> Vec<String> {
        let (_, reply) = get(state, path).expect(path);
        pick(&reply["Nodes"], "/Service/ID").into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn a_query_is_kept_asked_changed_and_removed() {
        let mut state = state();
        let body = object!({ "Name": "geo-web", "service": { "service": "web" },
                             "DNS": { "TTL": "10s" } });
        let id = create(&mut state, &body).expect("good");
        let (_, listed) = get(&state, "/v1/query").expect("a list");
        assert_eq!(pick(&listed, "/Name"), ["geo-web"]);
        assert_eq!(listed[0]["DNS"]["TTL"], "10s");
        for asked in [id.as_str(), "geo-web"] {
            let path = format!("/v1/query/{asked}/execute");
            assert_eq!(instances(&state, &path), ["web-1"], "the critical one is left out");
        }
        let (_, reply) = get(&state, "/v1/query/geo-web/execute").expect("good");
        assert_eq!(
            (reply["Datacenter"].as_str(), reply["Failovers"].as_u64()),
            (Some("dc1"), Some(0))
        );

        let again = create(&mut state, &body).expect_err("the name is taken");
        assert!(again.to_string().contains("aliases an existing query name"), "{again}");
        let change = object!({ "Name": "geo-web", "Service": { "Service": "db" } });
        write(&mut state, &Method::PUT, &format!("/v1/query/{id}"), &change).expect("changed");
        assert_eq!(instances(&state, "/v1/query/geo-web/execute"), ["db"]);
        write(&mut state, &Method::DELETE, &format!("/v1/query/{id}"), &Value::Null).expect("gone");
        let gone = get(&state, "/v1/query/geo-web/execute").expect_err("gone");
        assert_eq!((gone.status().as_u16(), gone.to_string().as_str()), (404, "Query not found"));
    }

    #[test]
    fn what_a_query_wants_is_all_it_finds() {
        let cases = [
            (object!({ "Tags": ["blue"] }), "", vec!["web-1"]),
            (object!({ "Tags": ["!blue"] }), "", vec![]),
            (object!({ "IgnoreCheckIDs": ["service:web-2"] }), "", vec!["web-1", "web-2"]),
            (object!({ "IgnoreCheckIDs": ["service:web-2"] }), "?limit=1", vec!["1"]),
            (object!({ "NodeMeta": { "rack": "b" } }), "", vec![]),
            (object!({ "Connect": true }), "", vec!["web-1-sidecar-proxy"]),
            (object!({}), "?connect", vec!["web-1-sidecar-proxy"]),
            (object!({}), "?near=_agent", vec!["web-1"]),
        ];
        for (wanted, query, expected) in cases {
            let mut state = state();
            let mut service = wanted.clone();
            service["Service"] = "web".into();
            create(&mut state, &object!({ "Name": "q", "Service": service })).expect("good");
            let mut found = instances(&state, &format!("/v1/query/q/execute{query}"));
            found.sort();
            match expected[..] {
                ["1"] => assert_eq!(found.len(), 1, "{wanted}{query}"),
                _ => assert_eq!(found, expected, "{wanted}{query}"),
            }
        }
    }

    #[test]
    fn a_template_answers_every_name_below_its_own() {
        let mut state = state();
        let body = object!({ "Name": "geo-", "Template": { "Type": "name_prefix_match" },
                             "Service": { "Service": "${name.suffix}" } });
        create(&mut state, &body).expect("good");
        assert_eq!(instances(&state, "/v1/query/geo-db/execute"), ["db"]);
        let (_, explained) = get(&state, "/v1/query/geo-db/explain").expect("good");
        assert_eq!(explained["Query"]["Service"]["Service"], "db");
        assert!(get(&state, "/v1/query/other/execute").is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, expected) in [
            (object!({}), "Service: is missing"),
            (object!({ "Service": {} }), "Must provide a Service name"),
            (object!({ "Service": { "Service": "a" }, "Token": "x" }), "Token"),
            (object!({ "Service": { "Service": "a", "Wanted": 1 } }), "Service.Wanted"),
            (object!({ "Service": { "Service": "a" }, "Session": "s" }), "session"),
        ] {
            let refused = create(&mut state(), &body).expect_err(expected).to_string();
            assert!(refused.contains(expected), "{body}: {refused}");
        }
    }
}
