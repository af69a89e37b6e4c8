//! `/v1/connect/ca/configuration` and what Hawser adds to it: rotation, and revocation.

use std::time::Duration;

use bytes::Bytes;
use hawser_api::error::ApiError;
use hawser_api::fields::{Fields, InvalidField};
use hawser_api::json;
use hawser_core::ca::Authority;
use hawser_core::catalog::Row;
use hawser_core::clock::UnixTime;
use hawser_core::duration;
use hawser_core::name::NodeName;
use hawser_core::revocation::{Revocation, Subject};
use hawser_core::state::{Command, State, Topic};
use http::StatusCode;
use serde_json::{Value, json};

use super::ask::{Ask, Draw, Found, Plan};
use super::cluster::Said;
use super::connect::in_mesh;
use crate::Handle;
use crate::ca::{OwnRoot, SignError};
use crate::identity::now;

/// How certificates are made, in the words of Consul's built-in provider.
pub(crate) fn configuration<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let authority = present(state)?;
    Ok(Found::new(ask, authority.index, [Topic::Authority], move || {
        json!({
            "Provider": "consul",
            "Config": {
                "LeafCertTTL": duration::format(authority.leaf_lifetime),
                "IntermediateCertTTL": duration::format(authority.policy.intermediate_lifetime),
                "RootCertTTL": duration::format(authority.policy.root_lifetime),
                "RootOverlap": duration::format(authority.policy.overlap),
                "PrivateKeyType": "ec",
                "PrivateKeyBits": 256,
            },
            "State": null,
            "ForceWithoutCrossSigning": false,
            "CreateIndex": authority.created.0,
            "ModifyIndex": authority.index.0,
        })
    }))
}

/// Sets how certificates are made; with a root of the operator's own, rotates to it.
pub(crate) async fn configure(handle: Handle, ask: Ask) -> Said {
    let body = ask.json()?;
    let wanted = Wanted::read(&body, now())?;
    let state = handle.reader.current();
    let held = present(&state)?;
    let mut authority = held.clone();
    wanted.set(&mut authority)?;
    if let Some(own) = wanted.root {
        authority = match handle.ca.introduced(&authority, Some(own), now()) {
            Ok(authority) => authority,
            // Saying again what is so already changes nothing.
            Err(SignError::Known) => authority,
            Err(refused) => return Err(ApiError::bad_request(refused)),
        };
    }
    store(&handle, held, authority).await
}

/// Begins a rotation to a new root.
pub(crate) async fn rotate(handle: Handle, _: Ask) -> Said {
    let state = handle.reader.current();
    let held = present(&state)?;
    let rotating = handle.ca.introduced(held, None, now()).map_err(ApiError::bad_request)?;
    store(&handle, held, rotating).await
}

async fn store(handle: &Handle, held: &Authority, authority: Authority) -> Said {
    let command = Command::SetAuthority { authority, expected: held.index };
    handle.proposer.propose(command).await.map_err(super::unwritten)?;
    Ok((StatusCode::OK, Bytes::new()))
}

fn present(state: &State) -> Result<&Authority, ApiError> {
    state.authority().ok_or_else(|| {
        ApiError::Refused(
            "the certificate authority is not there yet: a leader makes it at first start"
                .to_owned(),
        )
    })
}

/// A configuration as a client writes it. What it leaves out stays as it is.
struct Wanted {
    leaf: Option<Duration>,
    intermediate: Option<Duration>,
    root_lifetime: Option<Duration>,
    overlap: Option<Duration>,
    root: Option<OwnRoot>,
}

impl Wanted {
    fn read(body: &Value, now: UnixTime) -> Result<Self, ApiError> {
        let mut fields = Fields::open(body, "")?;
        if let Some((path, provider)) = fields.text(&["Provider"])?
            && provider != "consul"
        {
            let why = "only \"consul\" is supported: Hawser signs by itself; for your own PKI, \
                       give RootCert and PrivateKey";
            return Err(InvalidField::new(path, why).into());
        }
        let config = fields.object(&["Config"])?;
        // What a client read it may write back. Every rotation is cross-signed.
        fields.ignore(&["State", "ForceWithoutCrossSigning", "CreateIndex", "ModifyIndex"]);
        fields.finish()?;
        let mut wanted =
            Self { leaf: None, intermediate: None, root_lifetime: None, overlap: None, root: None };
        let Some(mut config) = config else { return Ok(wanted) };
        wanted.leaf = config.duration(&["LeafCertTTL"])?;
        wanted.intermediate = config.duration(&["IntermediateCertTTL"])?;
        wanted.root_lifetime = config.duration(&["RootCertTTL"])?;
        wanted.overlap = config.duration(&["RootOverlap"])?;
        if let Some((path, kind)) = config.text(&["PrivateKeyType"])?
            && kind != "ec"
        {
            return Err(InvalidField::new(path, "only \"ec\" is supported").into());
        }
        let bits_path = config.path_of("PrivateKeyBits");
        if config.whole(&["PrivateKeyBits"], u64::MAX)?.is_some_and(|bits| bits != 256) {
            return Err(InvalidField::new(bits_path, "only 256 is supported").into());
        }
        let certificate = config.text(&["RootCert"])?.map(|(_, text)| text);
        let key = config.text(&["PrivateKey"])?.map(|(_, text)| text);
        wanted.root = match (certificate, key) {
            (Some(certificate), Some(key)) => {
                Some(OwnRoot::parse(certificate, key, now).map_err(ApiError::bad_request)?)
            }
            (None, None) => None,
            (Some(_), None) => {
                let path = config.path_of("PrivateKey");
                return Err(InvalidField::new(path, "is missing: RootCert needs its key").into());
            }
            (None, Some(_)) => {
                let why = "is missing: PrivateKey needs its certificate; for a new key of \
                           Hawser's own, PUT /v1/hawser/connect/ca/rotate";
                return Err(InvalidField::new(config.path_of("RootCert"), why).into());
            }
        };
        // Signing is paced by node here, which needs no setting.
        config.ignore(&["CSRMaxPerSecond", "CSRMaxConcurrent", "RotationPeriod"]);
        config.finish()?;
        Ok(wanted)
    }

    /// Sets what was written, if all of it fits together.
    fn set(&self, authority: &mut Authority) -> Result<(), ApiError> {
        let policy = &mut authority.policy;
        authority.leaf_lifetime = self.leaf.unwrap_or(authority.leaf_lifetime);
        policy.intermediate_lifetime = self.intermediate.unwrap_or(policy.intermediate_lifetime);
        policy.root_lifetime = self.root_lifetime.unwrap_or(policy.root_lifetime);
        policy.overlap = self.overlap.unwrap_or(policy.overlap);
        policy.is_set = true;
        let refused = |field: &str, why: String| {
            Err(InvalidField::new(format!("Config.{field}"), why).into())
        };
        let leaf = authority.leaf_lifetime;
        if !(LEAF_MIN..=LEAF_MAX).contains(&leaf) {
            let (least, most) = (duration::format(LEAF_MIN), duration::format(LEAF_MAX));
            return refused("LeafCertTTL", format!("is from {least} to {most}"));
        }
        if policy.intermediate_lifetime < leaf * 3 {
            let least = duration::format(leaf * 3);
            return refused(
                "IntermediateCertTTL",
                format!("is at least three times LeafCertTTL: {least} or more"),
            );
        }
        if policy.root_lifetime < policy.intermediate_lifetime {
            let least = duration::format(policy.intermediate_lifetime);
            return refused("RootCertTTL", format!("is at least IntermediateCertTTL: {least}"));
        }
        if policy.root_lifetime > ROOT_MAX {
            return refused("RootCertTTL", format!("is at most {}", duration::format(ROOT_MAX)));
        }
        if policy.overlap > OVERLAP_MAX {
            let most = duration::format(OVERLAP_MAX);
            return refused("RootOverlap", format!("is at most {most}"));
        }
        Ok(())
    }
}

/// Whom nobody believes any more.
pub(crate) fn revocations<'a>(ask: &'a Ask, state: &'a State) -> Result<Found<'a>, ApiError> {
    let all = state.revocations();
    Ok(Found::list(ask, all.index(), [Topic::Authority], move || {
        all.iter().map(shown).collect::<Vec<_>>()
    }))
}

fn shown(row: &Row<Revocation>) -> json::Revocation {
    let Revocation { subject, reason, at } = &*row.value;
    let mut shown = json::Revocation {
        reason: reason.to_string(),
        since: json::timestamp(*at),
        create_index: row.created.0,
        modify_index: row.modified.0,
        ..json::Revocation::default()
    };
    match subject {
        Subject::Node(node) => shown.node = node.to_string(),
        Subject::Service(service) => shown.service = service.to_string(),
        Subject::Certificate(serial) => shown.serial = serial.to_string(),
    }
    shown
}

/// Revokes an identity: every proxy hears of it, and cuts what it has open.
pub(crate) fn revoke(ask: &Ask, _: &State, draw: &Draw) -> Result<Plan, ApiError> {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    // What no identity spells would be revoked without effect.
    let node = |text| NodeName::of_agent(text).map_err(|why| InvalidField::new("Node", why));
    let node = fields.text(&["Node"])?.map(|(_, text)| node(text)).transpose()?;
    let service = fields.text(&["Service"])?;
    let service = service.map(|(path, text)| in_mesh(&path, text)).transpose()?;
    let subjects = [
        node.map(Subject::Node),
        service.map(Subject::Service),
        fields.parsed(&["Serial"])?.map(Subject::Certificate),
    ];
    let reason = match fields.text(&["Reason"])? {
        Some((path, text)) if text.len() > REASON_OCTETS_MAX => {
            let why = format_args!("{REASON_OCTETS_MAX} octets is the most");
            return Err(InvalidField::new(path, why).into());
        }
        text => text.map_or("", |(_, text)| text).into(),
    };
    fields.finish()?;
    let mut named = subjects.into_iter().flatten();
    let (Some(subject), None) = (named.next(), named.next()) else {
        return Err(ApiError::bad_request("name one of Node, Service and Serial"));
    };
    Ok(Plan::new([Command::Revoke(Revocation { subject, reason, at: draw.now })]))
}

/// Undoes a revocation.
pub(crate) fn reinstate(ask: &Ask, state: &State, _: &Draw) -> Result<Plan, ApiError> {
    let [kind, name] = ask.params.as_slice() else { return Err(ApiError::UnknownPath) };
    let invalid = |why: &dyn std::fmt::Display| InvalidField::new(kind.as_str(), why);
    let subject = match kind.as_str() {
        "node" => Subject::Node(name.parse().map_err(|why| invalid(&why))?),
        "service" => Subject::Service(name.parse().map_err(|why| invalid(&why))?),
        "serial" => Subject::Certificate(name.parse().map_err(|why| invalid(&why))?),
        _ => return Err(ApiError::UnknownPath),
    };
    if state.revocations().get(&subject).is_none() {
        return Err(ApiError::NotFound(format!("{subject} is not revoked")));
    }
    Ok(Plan::new([Command::Reinstate(subject)]))
}

const LEAF_MIN: Duration = Duration::from_secs(60);
/// Peers refuse certificates that hold for more than seven days.
const LEAF_MAX: Duration = Duration::from_secs(6 * 86_400);
const ROOT_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);
const OVERLAP_MAX: Duration = Duration::from_secs(365 * 86_400);
const REASON_OCTETS_MAX: usize = 512;
