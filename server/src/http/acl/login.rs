//! `/v1/acl/login` and `/v1/acl/logout`: a token for a proof, and its end.

use std::collections::BTreeMap;

use hawser_api::error::ApiError;
use hawser_api::fields::Fields;
use hawser_core::acl::{Change, Token};
use hawser_core::state::Command;
use http::StatusCode;

use super::super::ask::Ask;
use super::super::cluster::Said;
use super::shown::{Stored, shown};
use crate::Handle;
use crate::acl::{random_uuid, secret};
use crate::identity::now;
use crate::login::{self, Refused};
use crate::read::Consistency;

/// Makes a token for who brings a proof that an auth method takes.
pub(crate) async fn login(handle: Handle, ask: Ask) -> Said {
    let body = ask.json()?;
    let mut fields = Fields::open(&body, "")?;
    let method = fields.text(&["AuthMethod"])?.map_or("", |(_, name)| name);
    let bearer = fields.text(&["BearerToken"])?.map_or("", |(_, token)| token);
    let meta = fields.meta(&["Meta"])?;
    fields.default_tenancy()?;
    fields.finish()?;
    if bearer.is_empty() {
        return Err(ApiError::bad_request("BearerToken: is missing"));
    }
    // A method that was just changed must not let in whom it no longer takes.
    let reading = handle.reader.read(Consistency::Default).await.map_err(super::super::unread)?;
    let state = &reading.state;
    let unknown =
        || ApiError::Forbidden(format!("ACL not found: auth method {method:?} not found"));
    let method = state.acl().method(method).ok_or_else(unknown)?.value.clone();
    let identity =
        handle.acl.logins.identify(&method, bearer, now()).await.map_err(|why| refused(&why))?;
    let granted = login::granted(state, &method, &identity).map_err(|why| refused(&why))?;
    let (grants, roles) = granted.ok_or_else(|| {
        let why = "Permission denied: no binding rule is about who logs in";
        ApiError::Forbidden(why.to_owned())
    })?;
    let meta: BTreeMap<_, _> = meta.iter().collect();
    let description = match meta.is_empty() {
        true => "token created via login".to_owned(),
        false => {
            let meta = serde_json::to_string(&meta).unwrap_or_default();
            format!("token created via login: {meta}")
        }
    };
    let at = now();
    let token = Token {
        accessor: random_uuid().into(),
        secret: secret(&random_uuid()),
        description: description.into(),
        grants,
        roles,
        is_local: !method.is_global,
        method: Some(method.name.clone()),
        created_at: at,
        expires_at: method.token_ttl.map(|ttl| at.plus(ttl)),
    };
    let accessor = token.accessor.clone();
    let change = Command::Acl(Change::PutToken(token));
    let index = handle.proposer.propose(change).await.map_err(super::super::unwritten)?;
    let reading = handle.reader.wait_for(index).await.map_err(super::super::unread)?;
    let made = shown(&reading.state, &Stored::Token(accessor));
    Ok((StatusCode::OK, ask.write(&made)?))
}

/// Ends the token that asks, if it was logged in for.
pub(crate) async fn logout(handle: Handle, ask: Ask) -> Said {
    let reading = handle.reader.read(Consistency::Default).await.map_err(super::super::unread)?;
    let accessor = ask.sight.may().accessor().clone();
    let row = reading.state.acl().token(&accessor);
    if row.is_none_or(|row| row.value.method.is_none()) {
        let why = "Permission denied: only a token that was logged in for can be logged out";
        return Err(ApiError::Forbidden(why.to_owned()));
    }
    let change = Command::Acl(Change::DropTokens([accessor].into()));
    handle.proposer.propose(change).await.map_err(super::super::unwritten)?;
    Ok((StatusCode::OK, ask.write(&true)?))
}

fn refused(why: &Refused) -> ApiError {
    match why {
        Refused::Unfit(_) | Refused::Aws(_) => {
            ApiError::Forbidden(format!("Permission denied: {why}"))
        }
        Refused::Config(_) | Refused::Bind(_) => ApiError::Refused(why.to_string()),
        Refused::NoKeys(_) | Refused::Busy => ApiError::Unavailable(why.to_string()),
    }
}
