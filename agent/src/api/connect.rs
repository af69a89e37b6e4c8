//! `/v1/agent/connect/…`: may this caller, which roots, which leaf.

use std::time::Duration;

use hawser_api::error::ApiError;
use hawser_api::fields::{self, Fields};
use hawser_api::json::{Authorization, CaRoot, CaRoots, timestamp};
use hawser_api::query::QueryOptions;
use hawser_core::name::ServiceName;
use hawser_core::spiffe::SpiffeId;
use hawser_core::view::View;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use x509_parser::prelude::FromDer;

use super::access::Caller;
use super::{Api, Ask, Reply, reply};
use crate::clock;
use crate::identity::{Credential, pem};

pub(super) async fn answer(
    api: &Api,
    ask: &Ask,
    path: &[&str],
    caller: &Caller,
) -> Result<Reply, ApiError> {
    match path {
        ["authorize"] => {
            ask.must_be(&[Method::POST, Method::PUT])?;
            authorize(api, ask, caller).await
        }
        ["ca", "roots"] => {
            ask.must_be(&[Method::GET])?;
            roots(api, ask).await
        }
        ["ca", "leaf", service] => {
            ask.must_be(&[Method::GET])?;
            leaf(api, ask, service).await
        }
        _ => Err(ApiError::UnknownPath),
    }
}

/// Whether the cluster that `caller` is of has revoked it, or its certificate of this number.
fn is_revoked(view: &View, caller: &SpiffeId, serial: &[u8]) -> bool {
    let own = view.trust.as_ref().filter(|trust| trust.trust_domain == caller.trust_domain);
    let revoked = match own {
        Some(trust) => Some(&trust.revoked),
        None => view.peer_of(caller).and_then(|peer| view.peers.get(peer)).map(|it| &it.revoked),
    };
    revoked.is_some_and(|revoked| revoked.covers(caller, serial))
}

/// The octets of a serial number as `openssl` and Go print it: `04:0a:…` or `040a…`.
fn octets(text: &str) -> Vec<u8> {
    let digits: Vec<u8> =
        text.chars().filter_map(|it| it.to_digit(16)).map(|it| it as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// May the owner of this certificate call this service?
async fn authorize(api: &Api, ask: &Ask, asks: &Caller) -> Result<Reply, ApiError> {
    let body = fields::parse(&ask.body)?;
    let mut fields = Fields::open(&body, "")?;
    let needed = |name: &str| ApiError::bad_request(format_args!("{name} is missing"));
    let target: ServiceName = fields.parsed(&["Target"])?.ok_or_else(|| needed("Target"))?;
    if !target.is_label() {
        let why = format!("Target {target:?} can be in no mesh: use a-z, 0-9 and -");
        return Err(ApiError::BadRequest(why));
    }
    let (_, uri) = fields.text(&["ClientCertURI"])?.ok_or_else(|| needed("ClientCertURI"))?;
    let caller: SpiffeId = uri
        .parse()
        .map_err(|why| ApiError::bad_request(format_args!("ClientCertURI {uri:?}: {why}")))?;
    let serial = fields.text(&["ClientCertSerial"])?.map(|(_, text)| octets(text));
    fields.finish()?;
    let Some(source) = caller.service() else {
        return Ok(verdict(ask, false, "the caller is no service".to_owned()));
    };
    if is_revoked(&api.host.views.borrow(), &caller, &serial.unwrap_or_default()) {
        return Ok(verdict(ask, false, "the caller's identity is revoked".to_owned()));
    }
    if api.host.local.names().contains(&target) {
        let decision = api.host.views.borrow().decide(&caller, &target);
        return Ok(verdict(ask, decision.is_allowed(), format!("Matched {}", decision.reason)));
    }
    // The view holds the intentions of local services only.
    let trusts = api.host.views.borrow().trust.clone();
    if trusts.is_none_or(|trust| trust.trust_domain != caller.trust_domain) {
        return Ok(verdict(ask, false, "the caller is of another trust domain".to_owned()));
    }
    let path = format!("/v1/connect/intentions/check?source={source}&destination={target}");
    let checked = api.forwarding.own(&api.host, &asks.secret, "GET", &path, vec![]).await?;
    if checked.status == 403 {
        return Err(ApiError::Forbidden(String::from_utf8_lossy(&checked.body).into_owned()));
    }
    let checked: Value = serde_json::from_slice(&checked.body).unwrap_or_default();
    match checked.get("Allowed").and_then(Value::as_bool) {
        Some(allowed) => Ok(verdict(ask, allowed, "Checked by a server".to_owned())),
        None => Err(ApiError::NoLeader),
    }
}

fn verdict(ask: &Ask, authorized: bool, reason: String) -> Reply {
    reply::json(ask, &Authorization { authorized, reason })
}

/// The trusted roots: a server knows most about them, the view enough to serve by.
async fn roots(api: &Api, ask: &Ask) -> Result<Reply, ApiError> {
    if api.host.servers.link().is_some() {
        let target = match ask.target.split_once('?') {
            Some((_, query)) => format!("/v1/connect/ca/roots?{query}"),
            None => "/v1/connect/ca/roots".to_owned(),
        };
        let asked = Ask {
            method: Method::GET,
            path: vec![],
            query: ask.query.clone(),
            target,
            headers: ask.headers.clone(),
            body: bytes::Bytes::new(),
            from: ask.from,
        };
        match api.forwarding.pass(&api.host, &asked, &api.drain).await {
            Err(ApiError::NoLeader) => {}
            answered => return answered,
        }
    }
    let view = api.host.views.borrow().clone();
    let Some(trust) = &view.trust else { return Err(ApiError::NoLeader) };
    let all: Vec<CaRoot> = trust.roots.iter().filter_map(|der| root(der)).collect();
    let active_root_id = all.iter().find(|root| root.active).map(|root| root.id.clone());
    let body = CaRoots {
        active_root_id: active_root_id.unwrap_or_default(),
        trust_domain: trust.trust_domain.to_string(),
        roots: all,
    };
    Ok(reply::with_index(reply::json(ask, &body), view.index.0))
}

fn root(der: &[u8]) -> Option<CaRoot> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(der).ok()?;
    let moment = |secs: i64| {
        timestamp(hawser_core::clock::UnixTime::from_secs(u64::try_from(secs).unwrap_or(0)))
    };
    Some(CaRoot {
        id: hawser_identity::root_id(der),
        name: parsed.subject().to_string(),
        not_before: moment(parsed.validity().not_before.timestamp()),
        not_after: moment(parsed.validity().not_after.timestamp()),
        root_cert: pem("CERTIFICATE", der),
        // A view does not say which; the first is the one that was there first.
        active: true,
        private_key_type: "ec".to_owned(),
        private_key_bits: 256,
        ..CaRoot::default()
    })
}

/// The certificate and key of a local service.
async fn leaf(api: &Api, ask: &Ask, service: &str) -> Result<Reply, ApiError> {
    let options = QueryOptions::from_query(&ask.query)?;
    let shown = utf8_percent_encode(service, NON_ALPHANUMERIC);
    let name: ServiceName =
        service.parse().map_err(|why| ApiError::bad_request(format_args!("{shown}: {why}")))?;
    if !api.host.local.names().contains(&name) {
        // A host gets certificates for what runs on it, and for nothing else.
        return Err(ApiError::NotFound(format!("service {name} is not registered on this node")));
    }
    let wait = match options.index {
        Some(_) => options.wait_with_jitter(clock::permille()),
        None => FIRST_LEAF,
    };
    let deadline = Instant::now() + wait;
    let mut leaves = api.host.leaves.subscribe();
    loop {
        let held = leaves.borrow_and_update().get(&name).cloned();
        if let Some(held) = &held
            && options.index.is_none_or(|index| modified(held) > index.0)
        {
            return Ok(shown_leaf(ask, &name, held));
        }
        let changed = tokio::select! {
            () = api.drain.cancelled() => return Err(ApiError::Unavailable("the agent stops".into())),
            changed = timeout_at(deadline, leaves.changed()) => changed,
        };
        if !matches!(changed, Ok(Ok(()))) {
            return match held {
                Some(held) => Ok(shown_leaf(ask, &name, &held)),
                None => Err(ApiError::NoLeader),
            };
        }
    }
}

fn shown_leaf(ask: &Ask, name: &ServiceName, held: &Credential) -> Reply {
    let serial = held.chain.first().and_then(|leaf| {
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(leaf).ok()?;
        Some(parsed.raw_serial_as_string())
    });
    let index = modified(held);
    let body = json!({
        "SerialNumber": serial.unwrap_or_default(),
        "CertPEM": held.chain_pem(),
        "PrivateKeyPEM": held.key_pem(),
        "Service": name.as_str(),
        "ServiceURI": held.id.to_string(),
        "ValidAfter": timestamp(held.validity.not_before),
        "ValidBefore": timestamp(held.validity.not_after),
        "CreateIndex": index,
        "ModifyIndex": index,
    });
    reply::with_index(reply::json(ask, &body), index)
}

/// A number that grows with each new leaf of a service: they are never made in the same second.
fn modified(held: &Credential) -> u64 {
    held.validity.not_before.as_secs()
}

/// How long a read waits for a leaf that is being made.
const FIRST_LEAF: Duration = Duration::from_secs(5);
