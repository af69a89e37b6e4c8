//! Keeps the tokens in order: the two that are there without being asked for, and no expired one.

use std::time::Duration;

use hawser_core::acl::{ANONYMOUS_ACCESSOR, ANONYMOUS_SECRET, Change, Grants, Token};
use hawser_core::state::{Command, Rejection};

use super::{Duties, every};
use crate::acl::{management, secret};
use crate::identity::now;
use crate::propose::ProposeError;

/// For as long as this server leads; at once nothing, where access control is off.
pub(super) async fn run(duties: &Duties) {
    if duties.acl.default.is_none() {
        return std::future::pending().await;
    }
    let mut tick = every(EVERY);
    loop {
        tick.tick().await;
        for change in due(duties) {
            match duties.proposer.propose(Command::Acl(change)).await {
                Ok(_) => {}
                Err(ProposeError::Rejected(Rejection::Acl(refusal))) => {
                    tracing::error!(%refusal, "access control cannot be set up as configured");
                }
                Err(failure) => {
                    tracing::warn!(error = %failure, "tokens are not in order yet");
                    break;
                }
            }
        }
    }
}

fn due(duties: &Duties) -> Vec<Change> {
    let state = duties.reader.current();
    let (tables, now) = (state.acl(), now());
    let mut changes = Vec::new();
    if tables.token(ANONYMOUS_ACCESSOR).is_none() {
        changes.push(Change::PutToken(Token {
            accessor: ANONYMOUS_ACCESSOR.into(),
            secret: secret(ANONYMOUS_SECRET),
            description: "Anonymous Token".into(),
            grants: Grants::default(),
            roles: Vec::new(),
            is_local: false,
            method: None,
            created_at: now,
            expires_at: None,
        }));
    }
    if let Some(text) = &duties.acl.initial_management
        && tables.token_by_secret(secret(text).hash()).is_none()
    {
        let token = management(text, "Initial Management Token", now);
        changes.push(match tables.bootstrapped() {
            None => Change::Bootstrap { token, reset: None },
            Some(_) => Change::PutToken(token),
        });
    }
    let expired = tables.expired(now, TOGETHER_MAX);
    if !expired.is_empty() {
        changes.push(Change::DropTokens(expired));
    }
    changes
}

const EVERY: Duration = Duration::from_secs(1);
const TOGETHER_MAX: usize = 1_000;
