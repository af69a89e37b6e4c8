//! `/v1/txn`: several operations on keys and the catalog, together or not at all.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::error::ApiError;
use hawser_api::fields::{Field, Fields, InvalidField};
use hawser_api::json;
use hawser_core::authorize;
use hawser_core::catalog::{Node, Row, liveness_id};
use hawser_core::clock::Index;
use hawser_core::kv::{Change, VALUE_OCTETS_MAX, Write};
use hawser_core::name::{CheckId, Key, NodeName, SessionId};
use hawser_core::state::{Command, Rejection, State};
use hawser_core::txn::{Failure, Found, OPS_MAX, Op};
use http::StatusCode;
use serde_json::{Value, json as object};

use super::ask::{Ask, Draw};
use super::catalog::{Registration, check, instance};
use super::cluster::Said;
use super::sight::denied;
use super::{encode, kv, unread, unwritten};
use crate::Handle;
use crate::identity::now;
use crate::propose::ProposeError;
use crate::read::Consistency;

/// Does what the body lists. What only reads is answered by this server's state, as fresh as any
/// read; what writes is one entry of the log.
pub(crate) async fn run(handle: Handle, ask: Ask) -> Said {
    if ask.body.len() > VALUE_OCTETS_MAX {
        return Err(ApiError::TooLarge { max: VALUE_OCTETS_MAX });
    }
    let reading = handle.reader.read(Consistency::Default).await.map_err(unread)?;
    let draw = Draw { now: now(), random: rand::random(), secret: rand::random() };
    let ops = operations(&ask, &reading.state, &draw)?;
    for op in &ops {
        let allowed = authorize::operation(ask.sight.may(), &reading.state, op);
        allowed.map_err(|why| denied(&why))?;
    }
    if let Some(looked_up) = reading.state.look_up(&ops) {
        return match looked_up {
            Ok(found) => done(&ask, &reading.state, &found),
            Err(failures) => failed(&ask, &failures),
        };
    }
    match handle.proposer.propose(Command::Txn(ops)).await {
        Ok(index) => {
            let reading = handle.reader.wait_for(index).await.map_err(unread)?;
            match reading.state.found_at(index) {
                Some(found) => done(&ask, &reading.state, found),
                None => Err(ApiError::Unavailable(
                    "the transaction happened, but what it found is no longer known: read it"
                        .to_owned(),
                )),
            }
        }
        Err(ProposeError::Rejected(Rejection::Txn { failures })) => failed(&ask, &failures),
        Err(refused) => Err(unwritten(refused)),
    }
}

fn done(ask: &Ask, state: &State, found: &[Found]) -> Said {
    // What was allowed was judged by an earlier state: others may have written since.
    let may = ask.sight.may();
    let is_seen = |found: &&Found| match found {
        Found::Item(key, _) => may.key_read(key.as_str()),
        Found::Stored(..) | Found::Absent(_) => true,
        Found::Node(row) => may.node_read(row.value.name.as_str()),
        Found::Instance(_, row) => may.service_read(row.value.service.as_str()),
        Found::Check(node, row) => match &row.value.instance {
            None => may.node_read(node.as_str()),
            Some(id) => {
                let mut on_node = state.catalog().instances_on(node);
                on_node
                    .find(|row| row.value.id == *id)
                    .is_some_and(|row| may.service_read(row.value.service.as_str()))
            }
        },
    };
    let results: Vec<Value> = found
        .iter()
        .filter(is_seen)
        .map(|found| match found {
            Found::Item(key, row) => object!({ "KV": kv::item(key, row) }),
            Found::Stored(key, row) => object!({ "KV": kv::stored(key, row) }),
            Found::Absent(key) => object!({ "KV": json::KvPair {
                key: key.to_string(),
                ..json::KvPair::default()
            } }),
            Found::Node(row) => object!({ "Node": encode::node(row, &ask.datacenter) }),
            Found::Instance(_, row) => object!({ "Service": encode::node_service(row) }),
            Found::Check(node, row) => {
                object!({ "Check": encode::check_in(state.catalog(), node, row) })
            }
        })
        .collect();
    let reply = object!({ "Results": results, "Errors": Value::Null });
    Ok((StatusCode::OK, ask.write(&reply)?))
}

fn failed(ask: &Ask, failures: &[Failure]) -> Said {
    let errors: Vec<Value> = failures
        .iter()
        .map(|failure| object!({ "OpIndex": failure.op, "What": failure.why }))
        .collect();
    let reply = object!({ "Results": Value::Null, "Errors": errors });
    Ok((StatusCode::CONFLICT, ask.write(&reply)?))
}

/// The operations that a body lists.
pub(crate) fn operations(ask: &Ask, state: &State, draw: &Draw) -> Result<Vec<Op>, ApiError> {
    let body = ask.json()?;
    let list = body
        .as_array()
        .ok_or_else(|| ApiError::bad_request("Request decode failed: the body must be a list"))?;
    if list.len() > OPS_MAX {
        let many = list.len();
        return Err(ApiError::bad_request(format_args!(
            "Transaction contains too many operations ({many} > {OPS_MAX})"
        )));
    }
    let each = (0..).zip(list).map(|(number, value)| {
        let reader = Reader { ask, state, draw, number };
        reader.operation(&Field { path: format!("[{number}]"), value })
    });
    each.collect()
}

/// What operations are read with.
struct Reader<'a> {
    ask: &'a Ask,
    state: &'a State,
    draw: &'a Draw,
    /// Which of the operations is read.
    number: u128,
}

impl Reader<'_> {
    fn operation(&self, field: &Field<'_>) -> Result<Op, ApiError> {
        let mut fields = Fields::open(field.value, &field.path)?;
        let mut ops = Vec::new();
        if let Some(kv) = fields.object(&["KV"])? {
            ops.push(key_operation(kv)?);
        }
        if let Some(node) = fields.object(&["Node"])? {
            ops.push(self.node_operation(node)?);
        }
        if let Some(service) = fields.object(&["Service"])? {
            ops.push(service_operation(service)?);
        }
        if let Some(check) = fields.object(&["Check"])? {
            ops.push(self.check_operation(check)?);
        }
        if let Some(session) = fields.object(&["Session"])? {
            ops.push(session_operation(session)?);
        }
        fields.finish()?;
        let [op] = <[Op; 1]>::try_from(ops).map_err(|_| {
            InvalidField::new(&field.path, "must be one of KV, Node, Service, Check and Session")
        })?;
        Ok(op)
    }

    fn node_operation(&self, mut fields: Fields<'_>) -> Result<Op, ApiError> {
        let verb = verb(&mut fields)?;
        let mut node = inner(&mut fields, "Node")?;
        fields.finish()?;
        let index = index(&mut node)?;
        let registration = Registration::of_node(node, self.ask)?;
        let name = registration.name.clone();
        let put = || -> Result<Node, ApiError> {
            let held = self.state.catalog().node(&registration.name);
            registration.node(held, self.draw, self.number)
        };
        Ok(match verb.1.as_str() {
            "set" => Op::PutNode(put()?, None),
            "cas" => Op::PutNode(put()?, Some(index)),
            "get" => Op::GetNode(name),
            "delete" => Op::DropNode(name, None),
            "delete-cas" => Op::DropNode(name, Some(index)),
            _ => return Err(unknown(verb)),
        })
    }

    fn check_operation(&self, mut fields: Fields<'_>) -> Result<Op, ApiError> {
        let verb = verb(&mut fields)?;
        let value = fields.take(&["Check"])?;
        let value =
            value.ok_or_else(|| InvalidField::new(fields.path_of("Check"), "is missing"))?;
        fields.finish()?;
        let (path, object) = (value.path, value.value);
        let mut named = Fields::open(object, &path)?;
        let node: NodeName = named.parsed(&["Node"])?.ok_or_else(|| {
            InvalidField::new(named.path_of("Node"), "is missing: name the node of the check")
        })?;
        let index = index(&mut named)?;
        if matches!(verb.1.as_str(), "get" | "delete" | "delete-cas") {
            let id: CheckId = named.parsed(&["CheckID", "ID"])?.ok_or_else(|| {
                InvalidField::new(named.path_of("CheckID"), "is missing: name the check")
            })?;
            let is_own = |row: &Row<Node>| !row.value.is_external();
            let is_ours = self.state.catalog().node(&node).is_some_and(is_own);
            if verb.1 != "get" && is_ours && Some(&id) == liveness_id().as_ref() {
                return Err(ApiError::bad_request(format_args!(
                    "{path}.CheckID: that check of node {node} belongs to the servers"
                )));
            }
            return Ok(match verb.1.as_str() {
                "get" => Op::GetCheck(node, id),
                "delete" => Op::DropCheck(node, id, None),
                _ => Op::DropCheck(node, id, Some(index)),
            });
        }
        let check = check(Fields::open(object, &path)?, &node)?;
        let is_external = |node: &NodeName| {
            self.state.catalog().node(node).is_none_or(|row| row.value.is_external())
        };
        if Some(&check.id) == liveness_id().as_ref() && !is_external(&node) {
            return Err(ApiError::bad_request(format_args!(
                "{path}.CheckID: that check of node {node} belongs to the servers: choose another id"
            )));
        }
        Ok(match verb.1.as_str() {
            "set" => Op::PutCheck(node, check, None),
            "cas" => Op::PutCheck(node, check, Some(index)),
            _ => return Err(unknown(verb)),
        })
    }
}

fn key_operation(mut fields: Fields<'_>) -> Result<Op, ApiError> {
    let verb = verb(&mut fields)?;
    let key_path = fields.path_of("Key");
    let text = fields.text(&["Key"])?.map_or("", |(_, text)| text);
    let value = value(&mut fields)?;
    let flags = fields.whole(&["Flags"], u64::MAX)?.unwrap_or(0);
    let index = Index(fields.whole(&["Index"], u64::MAX)?.unwrap_or(0));
    let session_path = fields.path_of("Session");
    let session = fields.parsed::<SessionId>(&["Session"])?;
    fields.ignore(&["CreateIndex", "ModifyIndex", "LockIndex"]);
    fields.default_tenancy()?;
    fields.finish()?;
    let key = || -> Result<Key, ApiError> {
        let parsed = text.parse().map_err(|why| InvalidField::new(&key_path, why));
        Ok(parsed?)
    };
    let holder = || -> Result<SessionId, ApiError> {
        let missing = || InvalidField::new(&session_path, "is missing: name the session");
        Ok(session.clone().ok_or_else(missing)?)
    };
    let write = || -> Result<Write, ApiError> {
        Ok(Write { key: key()?, value: Arc::clone(&value), flags })
    };
    Ok(match verb.1.as_str() {
        "set" => Op::Change(Change::Set(write()?)),
        "cas" => Op::Change(Change::Cas(write()?, index)),
        "lock" => Op::Change(Change::Lock(write()?, holder()?)),
        "unlock" => Op::Change(Change::Unlock(write()?, holder()?)),
        "delete" => Op::Change(Change::Delete(key()?)),
        "delete-cas" => Op::Change(Change::DeleteCas(key()?, index)),
        "delete-tree" => Op::Change(Change::DeleteTree(text.into())),
        "get" => Op::Get(key()?),
        "get-or-empty" => Op::GetOrEmpty(key()?),
        "get-tree" => Op::GetTree(text.into()),
        "check-index" => Op::CheckIndex(key()?, index),
        "check-session" => Op::CheckSession(key()?, holder()?),
        "check-not-exists" => Op::CheckNotExists(key()?),
        _ => return Err(unknown(verb)),
    })
}

fn service_operation(mut fields: Fields<'_>) -> Result<Op, ApiError> {
    let verb = verb(&mut fields)?;
    let node: NodeName = fields.parsed(&["Node"])?.ok_or_else(|| {
        InvalidField::new(fields.path_of("Node"), "is missing: name the node of the service")
    })?;
    let value = fields.take(&["Service"])?;
    let value = value.ok_or_else(|| InvalidField::new(fields.path_of("Service"), "is missing"))?;
    fields.finish()?;
    let (path, object) = (value.path, value.value);
    let mut named = Fields::open(object, &path)?;
    let index = index(&mut named)?;
    if matches!(verb.1.as_str(), "get" | "delete" | "delete-cas") {
        let id = named.parsed(&["ID", "Service"])?.ok_or_else(|| {
            InvalidField::new(named.path_of("ID"), "is missing: name the service's instance")
        })?;
        return Ok(match verb.1.as_str() {
            "get" => Op::GetInstance(node, id),
            "delete" => Op::DropInstance(node, id, None),
            _ => Op::DropInstance(node, id, Some(index)),
        });
    }
    let instance = instance(Fields::open(object, &path)?, &path)?;
    Ok(match verb.1.as_str() {
        "set" => Op::PutInstance(node, instance, None),
        "cas" => Op::PutInstance(node, instance, Some(index)),
        _ => return Err(unknown(verb)),
    })
}

fn session_operation(mut fields: Fields<'_>) -> Result<Op, ApiError> {
    let verb = verb(&mut fields)?;
    let mut session = inner(&mut fields, "Session")?;
    fields.finish()?;
    let id = session.parsed(&["ID"])?;
    let id = id.ok_or_else(|| InvalidField::new(session.path_of("ID"), "is missing"))?;
    match verb.1.as_str() {
        "delete" => Ok(Op::EndSession(id)),
        _ => Err(unknown(verb)),
    }
}

/// A verb and where it stands.
fn verb(fields: &mut Fields<'_>) -> Result<(String, String), ApiError> {
    let missing = InvalidField::new(fields.path_of("Verb"), "is missing");
    let (path, text) = fields.text(&["Verb"])?.ok_or(missing)?;
    Ok((path, text.to_owned()))
}

fn unknown((path, verb): (String, String)) -> ApiError {
    InvalidField::new(path, format_args!("{verb:?} is no verb here")).into()
}

fn inner<'a>(fields: &mut Fields<'a>, name: &str) -> Result<Fields<'a>, ApiError> {
    let missing = InvalidField::new(fields.path_of(name), "is missing");
    Ok(fields.object(&[name])?.ok_or(missing)?)
}

/// The index that compare-and-set goes by, which a client got with what it read.
fn index(fields: &mut Fields<'_>) -> Result<Index, ApiError> {
    Ok(Index(fields.whole(&["ModifyIndex"], u64::MAX)?.unwrap_or(0)))
}

/// The value in base64, as JSON carries octets.
fn value(fields: &mut Fields<'_>) -> Result<Arc<[u8]>, ApiError> {
    let Some((path, text)) = fields.text(&["Value"])? else { return Ok(Arc::from(*b"")) };
    let octets = STANDARD
        .decode(text)
        .map_err(|why| InvalidField::new(path, format_args!("no base64: {why}")))?;
    Ok(octets.into())
}
