//! Who a secret stands for: the tables' answer, remembered for as long as it holds.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hawser_core::acl::{
    ANONYMOUS_SECRET, Authorizer, DefaultPolicy, Grants, MANAGEMENT_ID, Secret, Tables, Token,
};
use hawser_core::clock::{Index, UnixTime};
use hawser_core::state::State;
use sha2::{Digest, Sha256};

use crate::audit::Audit;
use crate::identity::now;
use crate::login::Logins;

/// How access control is set up. Off, it lets everybody do everything.
#[derive(Clone, Default)]
pub struct Settings {
    /// What holds where no rule does; [`None`] while access control is off.
    pub default: Option<DefaultPolicy>,
    /// The secret of a first token that may do everything, instead of a bootstrap.
    pub initial_management: Option<String>,
    /// A file that allows one more bootstrap when it holds the index of the last one.
    pub reset_file: Option<PathBuf>,
    /// Where each write is noted.
    pub audit: crate::audit::Settings,
}

/// Access control of one server.
pub struct Acl {
    settings: Settings,
    known: Mutex<Known>,
    /// What is remembered for those who log in.
    pub(crate) logins: Logins,
    /// Where writes are noted.
    pub(crate) audit: Audit,
}

/// A secret that is of no token, or of one that expired or was deleted: never said which.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("ACL not found")]
pub struct Unknown;

/// What secrets stand for, as of one version of the tables.
#[derive(Default)]
struct Known {
    index: Index,
    by_hash: HashMap<[u8; 32], (Arc<Authorizer>, Option<UnixTime>)>,
}

impl Acl {
    pub(crate) fn new(settings: Settings) -> Self {
        let audit = Audit::new(settings.audit.clone());
        Self { settings, known: Mutex::default(), logins: Logins::default(), audit }
    }

    /// Whether access control is on.
    pub fn is_enabled(&self) -> bool {
        self.settings.default.is_some()
    }

    /// How it is set up.
    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What holds where no rule does, as clients are told it.
    pub(crate) fn default_word(&self) -> &'static str {
        match self.settings.default {
            None | Some(DefaultPolicy::Allow | DefaultPolicy::Off) => "allow",
            Some(DefaultPolicy::Deny) => "deny",
        }
    }

    /// What the holder of `secret` may do, as of `state`. An empty secret is the anonymous token's.
    ///
    /// # Errors
    /// [`Unknown`]
    pub fn resolve(&self, state: &State, secret: &str) -> Result<Arc<Authorizer>, Unknown> {
        let Some(default) = self.settings.default else { return Ok(Arc::new(Authorizer::off())) };
        if secret.len() > SECRET_OCTETS_MAX {
            return Err(Unknown);
        }
        let shown = if secret.is_empty() { ANONYMOUS_SECRET } else { secret };
        let (hash, now) = (hash(shown), now());
        if let Some(known) = self.recall(state.acl().index(), &hash, now) {
            return Ok(known);
        }
        let datacenter = state.cluster().map_or("", |cluster| cluster.datacenter.as_str());
        let (authorizer, expires_at) = match state.acl().resolve(&hash, now, datacenter, default) {
            Some(resolved) => (resolved.authorizer, resolved.expires_at),
            // The leader makes its token soon after it leads.
            None if shown == ANONYMOUS_SECRET => (Tables::anonymous(default), None),
            None => return Err(Unknown),
        };
        let authorizer = Arc::new(authorizer);
        self.remember(state.acl().index(), hash, authorizer.clone(), expires_at);
        Ok(authorizer)
    }

    /// The moment from which `secret` stands for nothing; none for one without an end.
    pub(crate) fn expiry(&self, state: &State, secret: &str) -> Option<UnixTime> {
        state.acl().token_by_secret(&hash(secret))?.value.expires_at
    }

    fn recall(&self, index: Index, hash: &[u8; 32], now: UnixTime) -> Option<Arc<Authorizer>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.index != index {
            return None;
        }
        let (authorizer, expires_at) = known.by_hash.get(hash)?;
        expires_at.is_none_or(|at| at > now).then(|| authorizer.clone())
    }

    fn remember(
        &self,
        index: Index,
        hash: [u8; 32],
        authorizer: Arc<Authorizer>,
        expires_at: Option<UnixTime>,
    ) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader of an older state does not turn back what others know of a newer one.
        if known.index > index {
            return;
        }
        if known.index < index || known.by_hash.len() >= KNOWN_MAX {
            known.by_hash.clear();
            known.index = index;
        }
        known.by_hash.insert(hash, (authorizer, expires_at));
    }
}

/// The secret `text` with its hash.
pub(crate) fn secret(text: &str) -> Secret {
    Secret::new(text, hash(text))
}

/// A token that may do everything, with the secret `text`.
pub(crate) fn management(text: &str, description: &str, at: UnixTime) -> Token {
    Token {
        accessor: random_uuid().into(),
        secret: secret(text),
        description: description.into(),
        grants: Grants { policies: vec![MANAGEMENT_ID.into()], ..Grants::default() },
        roles: Vec::new(),
        is_local: false,
        method: None,
        created_at: at,
        expires_at: None,
    }
}

/// A UUID that nobody can guess.
pub(crate) fn random_uuid() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// A UUID has 36; those of Consul's users may be longer.
const SECRET_OCTETS_MAX: usize = 256;
const KNOWN_MAX: usize = 8_192;

#[cfg(test)]
mod tests {
    use hawser_core::acl::{ANONYMOUS_ACCESSOR, Change};
    use hawser_core::clock::Stamp;
    use hawser_core::state::Command;

    use super::*;

    fn token(accessor: &str, text: &str, policies: &[&str]) -> Token {
        Token {
            accessor: accessor.into(),
            secret: secret(text),
            description: "".into(),
            grants: Grants {
                policies: policies.iter().map(|id| (*id).into()).collect(),
                ..Grants::default()
            },
            roles: Vec::new(),
            is_local: false,
            method: None,
            created_at: now(),
            expires_at: None,
        }
    }

    fn apply(state: &mut State, change: Change) {
        let stamp = Stamp { index: Index(state.applied().0 + 1), time: now() };
        state.apply(stamp, Command::Acl(change)).expect("applied");
    }

    #[test]
    fn what_is_remembered_is_forgotten_with_the_next_change() {
        let settings = Settings { default: Some(DefaultPolicy::Deny), ..Settings::default() };
        let acl = Acl::new(settings);
        let mut state = State::default();
        apply(&mut state, Change::PutToken(token("a", "s", &[MANAGEMENT_ID])));
        let old = state.clone();
        for _ in 0..2 {
            assert!(acl.resolve(&state, "s").expect("a token").service_write("x"));
        }
        apply(&mut state, Change::DropTokens(["a".into()].into()));
        assert_eq!(acl.resolve(&state, "s").map(drop), Err(Unknown));
        assert!(acl.resolve(&old, "s").is_ok(), "as of then it stood for something");
        assert_eq!(acl.resolve(&state, "s").map(drop), Err(Unknown), "and that teaches nothing");
    }

    #[test]
    fn unknown_and_overlong_secrets_are_the_same_and_none_is_anonymous() {
        let settings = Settings { default: Some(DefaultPolicy::Deny), ..Settings::default() };
        let acl = Acl::new(settings);
        let state = State::default();
        for secret in ["x", "<hidden>", &"x".repeat(1 << 20)] {
            assert_eq!(acl.resolve(&state, secret).map(drop), Err(Unknown));
        }
        let anonymous = acl.resolve(&state, "").expect("anonymous");
        assert_eq!(&**anonymous.accessor(), ANONYMOUS_ACCESSOR);
        assert!(!anonymous.service_read("x"));
        let off = Acl::new(Settings::default());
        assert!(off.resolve(&state, "x").expect("all may").service_write("x"));
    }
}
