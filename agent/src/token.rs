//! Who a token is, asked of a server and remembered: so that the agent's own API is guarded even
//! while no server can be reached.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_api::error::ApiError;
use hawser_core::acl::{Authorizer, DefaultPolicy};
use hawser_core::clock::UnixTime;
use hawser_proto::{acl, v1};
use tokio::time::{Instant, timeout};

use crate::acl::{DownPolicy, Settings};
use crate::clock;
use crate::servers::Servers;

/// Access control of one host.
pub(crate) struct Acl {
    settings: Settings,
    known: Mutex<HashMap<String, Known>>,
}

/// What a server said of one secret.
#[derive(Clone)]
struct Known {
    at: Instant,
    /// None: it is of no token.
    may: Option<Arc<Authorizer>>,
    /// The moment from which it stands for nothing.
    expires_at: Option<UnixTime>,
}

impl Known {
    /// What its holder may do at `now`, if it is a token's still.
    fn at(&self, now: UnixTime) -> Result<Arc<Authorizer>, ApiError> {
        let holds = self.expires_at.is_none_or(|end| now < end);
        self.may.clone().filter(|_| holds).ok_or_else(unknown)
    }
}

impl Acl {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, known: Mutex::default() }
    }

    /// Whether it is on.
    pub(crate) fn is_enabled(&self) -> bool {
        self.settings.is_enabled
    }

    /// For how long a server's answer is taken for the present one.
    pub(crate) fn token_ttl(&self) -> Duration {
        self.settings.token_ttl.max(TTL_MIN)
    }

    /// What those show who show nothing, if the host has something for them.
    pub(crate) fn default_secret(&self) -> Option<&str> {
        self.settings.default.as_deref()
    }

    /// The secret that DNS asks with.
    pub(crate) fn dns_secret(&self) -> &str {
        self.settings.dns.as_deref().or(self.default_secret()).unwrap_or_default()
    }

    /// What the holder of `secret` may do.
    ///
    /// # Errors
    /// It is of no token, or of one that nobody can be asked about and that must not pass.
    pub(crate) async fn resolve(
        &self,
        servers: &Servers,
        secret: &str,
    ) -> Result<Arc<Authorizer>, ApiError> {
        if !self.settings.is_enabled {
            return Ok(Arc::new(Authorizer::off()));
        }
        if secret.len() > SECRET_OCTETS_MAX {
            return Err(unknown());
        }
        let held = self.known().get(secret).cloned();
        if let Some(known) = &held
            && known.at.elapsed() < self.token_ttl()
        {
            return known.at(clock::now());
        }
        match ask(servers, secret).await {
            Some(known) => {
                let mut all = self.known();
                if all.len() >= KNOWN_MAX {
                    all.clear();
                }
                all.insert(secret.to_owned(), known.clone());
                known.at(clock::now())
            }
            None => self.while_down(held),
        }
    }

    fn while_down(&self, held: Option<Known>) -> Result<Arc<Authorizer>, ApiError> {
        match (self.settings.down, held) {
            (DownPolicy::Allow, _) => Ok(Arc::new(Authorizer::off())),
            // Nobody extends what has an end of its own.
            (DownPolicy::ExtendCache, Some(known)) => known.at(clock::now()),
            (DownPolicy::ExtendCache, None) | (DownPolicy::Deny, _) => Err(ApiError::Forbidden(
                "Permission denied: no server can be asked who this token is, and acl.down_policy \
                 lets nobody pass unasked"
                    .to_owned(),
            )),
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server says of `secret`; none when no server says anything.
async fn ask(servers: &Servers, secret: &str) -> Option<Known> {
    let mut client = servers.link()?.client();
    let request = v1::ResolveRequest { secret: secret.to_owned() };
    let reply = timeout(ASK_MAX, client.resolve(request)).await.ok()?.ok()?.into_inner();
    if !reply.known {
        return Some(Known { at: Instant::now(), may: None, expires_at: None });
    }
    let default = match v1::AclDefault::try_from(reply.default_policy).ok()? {
        v1::AclDefault::Allow => DefaultPolicy::Allow,
        v1::AclDefault::Deny => DefaultPolicy::Deny,
        // Servers without access control let everybody do everything.
        v1::AclDefault::Unspecified => DefaultPolicy::Off,
    };
    let rules = acl::rules(reply.rules).ok()?;
    let may = Arc::new(Authorizer::new(reply.accessor.into(), default, [&rules]));
    let end = (reply.expires_at_ms > 0).then(|| UnixTime::from_millis(reply.expires_at_ms));
    Some(Known { at: Instant::now(), may: Some(may), expires_at: end })
}

fn unknown() -> ApiError {
    ApiError::Forbidden("ACL not found".to_owned())
}

const SECRET_OCTETS_MAX: usize = 256;
const TTL_MIN: Duration = Duration::from_secs(1);
const KNOWN_MAX: usize = 1_024;
const ASK_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(down: DownPolicy) -> Acl {
        Acl::new(Settings { is_enabled: true, down, ..Settings::default() })
    }

    #[test]
    fn while_no_server_answers_the_down_policy_decides() {
        let until = |may, expires_at| Some(Known { at: Instant::now(), may, expires_at });
        let seen = |may| until(may, None);
        let (past, ahead) = (UnixTime::from_secs(1), UnixTime::from_millis(u64::MAX));
        let somebody = || Some(Arc::new(Authorizer::new("a".into(), DefaultPolicy::Deny, [])));
        let cases = [
            // down policy, what a server said last, who passes
            (DownPolicy::ExtendCache, seen(somebody()), Some("a")),
            (DownPolicy::ExtendCache, seen(None), None),
            (DownPolicy::ExtendCache, until(somebody(), Some(ahead)), Some("a")),
            (DownPolicy::ExtendCache, until(somebody(), Some(past)), None),
            (DownPolicy::ExtendCache, None, None),
            (DownPolicy::Deny, seen(somebody()), None),
            (DownPolicy::Allow, None, Some("")),
        ];
        for (down, held, expected) in cases {
            let passed = acl(down).while_down(held).ok();
            let passed = passed.as_ref().map(|may| &**may.accessor());
            assert_eq!(passed, expected, "{down:?}");
        }
    }
}
