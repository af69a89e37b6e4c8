//! Who a token is, asked of a server and remembered: so that the agent's own API is guarded even
//! while no server can be reached.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::error::ApiError;
use hawser_core::acl::{Authorizer, DefaultPolicy};
use hawser_core::clock::UnixTime;
use hawser_proto::{acl, v1};
use prost::Message;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::acl::{DownPolicy, Settings};
use crate::clock;
use crate::disk;
use crate::servers::Servers;

/// Access control of one host.
pub(crate) struct Acl {
    settings: Settings,
    known: Mutex<HashMap<String, Known>>,
    kept: Kept,
    /// Whether the servers allow what no rule speaks of, as one said last.
    allows: AtomicBool,
}

/// What a server said of one secret.
#[derive(Clone)]
struct Known {
    /// None: before this process began, so that it counts only while nobody can be asked.
    at: Option<Instant>,
    /// None: it is of no token.
    may: Option<Arc<Authorizer>>,
    /// The moment from which it stands for nothing.
    expires_at: Option<UnixTime>,
}

impl Known {
    /// What `reply` says; none when it says nothing that is understood.
    fn said(reply: v1::ResolveReply, at: Option<Instant>) -> Option<Self> {
        if !reply.known {
            return Some(Self { at, may: None, expires_at: None });
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
        Some(Self { at, may: Some(may), expires_at: end })
    }

    /// Whether it is the present answer, by the word of `ttl`.
    fn is_fresh(&self, ttl: Duration) -> bool {
        self.at.is_some_and(|at| at.elapsed() < ttl)
    }

    /// What its holder may do at `now`, if it is a token's still.
    fn at(&self, now: UnixTime) -> Result<Arc<Authorizer>, ApiError> {
        let holds = self.expires_at.is_none_or(|end| now < end);
        self.may.clone().filter(|_| holds).ok_or_else(unknown)
    }
}

impl Acl {
    /// Takes back what `folder` keeps on the tokens of the host itself, and keeps more of it until
    /// `until`.
    pub(crate) fn open(settings: Settings, folder: &Path, until: CancellationToken) -> Self {
        Self::new(settings, Kept::open(folder.join(TOKENS), until))
    }

    fn new(settings: Settings, kept: Kept) -> Self {
        let acl = Self { settings, known: Mutex::default(), kept, allows: AtomicBool::new(false) };
        if acl.is_enabled() {
            let known = acl.kept.load(acl.own_secrets());
            acl.known().extend(known);
        }
        acl
    }

    /// The secrets of the host itself: DNS's, and that of those who show none.
    fn own_secrets(&self) -> impl Iterator<Item = &str> {
        [Some(self.dns_secret()), self.default_secret()].into_iter().flatten()
    }

    /// Whether it is on.
    pub(crate) fn is_enabled(&self) -> bool {
        self.settings.is_enabled
    }

    /// What holds for what no rule speaks of, in Consul's word: as a server said last.
    pub(crate) fn default_word(&self) -> &'static str {
        match !self.settings.is_enabled || self.allows.load(Ordering::Relaxed) {
            true => "allow",
            false => "deny",
        }
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
            && known.is_fresh(self.token_ttl())
        {
            return known.at(clock::now());
        }
        match ask(servers, secret).await {
            Some((known, reply)) => {
                if let Some(may) = &known.may {
                    let allows = may.default_policy() != DefaultPolicy::Deny;
                    self.allows.store(allows, Ordering::Relaxed);
                }
                if self.own_secrets().any(|own| own == secret) {
                    self.kept.put(secret, &reply);
                }
                self.remember(secret, known.clone());
                known.at(clock::now())
            }
            None => self.while_down(held),
        }
    }

    /// Notes `known`. When there is no more room it takes the place of a secret that is no token's,
    /// or else of what was asked longest ago: whoever makes secrets up must not push out those in
    /// use, and nobody the host's own.
    fn remember(&self, secret: &str, known: Known) {
        let mut all = self.known();
        if all.len() >= KNOWN_MAX && !all.contains_key(secret) {
            let others =
                all.iter().filter(|(held, _)| self.own_secrets().all(|own| own != held.as_str()));
            let oldest = others.min_by_key(|(_, known)| (known.may.is_some(), known.at));
            if let Some(oldest) = oldest.map(|(secret, _)| secret.clone()) {
                all.remove(&oldest);
            }
        }
        all.insert(secret.to_owned(), known);
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

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a server says of `secret`; none when no server says anything.
async fn ask(servers: &Servers, secret: &str) -> Option<(Known, v1::ResolveReply)> {
    let mut client = servers.link()?.client();
    let request = v1::ResolveRequest { secret: secret.to_owned() };
    let reply = timeout(ASK_MAX, client.resolve(request)).await.ok()?.ok()?.into_inner();
    let known = Known::said(reply.clone(), Some(Instant::now()))?;
    Some((known, reply))
}

/// What servers said last of the host's own tokens, on disk: so that a host that restarts without
/// servers goes on answering DNS. Secrets are not in it, only their SHA-256.
struct Kept {
    path: PathBuf,
    /// From then on another process writes here.
    until: CancellationToken,
    replies: Mutex<BTreeMap<String, String>>,
}

impl Kept {
    /// What `path` keeps, written until `until`; a damaged file is set aside and said.
    fn open(path: PathBuf, until: CancellationToken) -> Self {
        let bytes = disk::read(&path).unwrap_or_else(|why| {
            tracing::error!(file = %path.display(), %why, "what tokens may do cannot be read");
            None
        });
        let replies = bytes.and_then(|bytes| {
            let parsed = serde_json::from_slice(&bytes);
            parsed.inspect_err(|why| disk::set_aside(&path, &why.to_string())).ok()
        });
        Self { path, until, replies: Mutex::new(replies.unwrap_or_default()) }
    }

    /// What is kept of `secrets`; the rest is forgotten with the next write.
    fn load<'a>(&self, secrets: impl Iterator<Item = &'a str>) -> Vec<(String, Known)> {
        let mut all = self.replies();
        let mut stays = BTreeMap::new();
        let mut known = Vec::new();
        for secret in secrets {
            let key = digest_of(secret);
            let Some(reply) = all.get(&key) else { continue };
            let bytes = STANDARD.decode(reply).ok();
            let said = bytes.and_then(|bytes| v1::ResolveReply::decode(&bytes[..]).ok());
            if let Some(said) = said.and_then(|reply| Known::said(reply, None)) {
                known.push((secret.to_owned(), said));
                stays.insert(key, reply.clone());
            }
        }
        *all = stays;
        known
    }

    fn put(&self, secret: &str, reply: &v1::ResolveReply) {
        if self.until.is_cancelled() {
            return;
        }
        let (key, text) = (digest_of(secret), STANDARD.encode(reply.encode_to_vec()));
        let mut all = self.replies();
        if all.get(&key) == Some(&text) {
            return;
        }
        all.insert(key, text);
        let written = serde_json::to_vec(&*all).map_err(std::io::Error::from);
        if let Err(why) = written.and_then(|bytes| disk::write(&self.path, &bytes)) {
            tracing::warn!(file = %self.path.display(), %why, "what tokens may do is not kept");
        }
    }

    fn replies(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest_of(secret: &str) -> String {
    STANDARD.encode(digest::digest(&digest::SHA256, secret.as_bytes()))
}

fn unknown() -> ApiError {
    ApiError::Forbidden("ACL not found".to_owned())
}

const TOKENS: &str = "tokens.json";
const SECRET_OCTETS_MAX: usize = 256;
const TTL_MIN: Duration = Duration::from_secs(1);
const KNOWN_MAX: usize = 1_024;
const ASK_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::Contact;

    fn acl(down: DownPolicy) -> Acl {
        let kept = Kept::open(PathBuf::from("/nowhere"), CancellationToken::new());
        Acl::new(Settings { is_enabled: true, down, ..Settings::default() }, kept)
    }

    #[tokio::test]
    async fn what_dns_may_tell_outlives_a_restart_without_servers() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tokens.json");
        let until = CancellationToken::new();
        let of = |secret: &str| Settings {
            is_enabled: true,
            dns: Some(secret.to_owned()),
            ..Settings::default()
        };
        let reply = |accessor: &str| v1::ResolveReply {
            known: true,
            accessor: accessor.to_owned(),
            default_policy: v1::AclDefault::Deny.into(),
            ..v1::ResolveReply::default()
        };
        let kept = || Kept::open(path.clone(), until.clone());
        kept().put("s3cret", &reply("a"));
        let text = std::fs::read_to_string(&path).expect("written");
        assert!(!text.contains("s3cret"), "{text}");
        let servers = Servers::open(&[], folder.path().join("s"), Contact::default());
        for (secret, expected, why) in [
            ("s3cret", Some("a"), "as a server said last"),
            ("other", None, "nobody said anything of it"),
            ("s3cret", Some("a"), "a host with another token wrote nothing"),
        ] {
            let acl = Acl::new(of(secret), kept());
            let passed = acl.resolve(&servers, secret).await.ok();
            assert_eq!(passed.as_ref().map(|may| &**may.accessor()), expected, "{why}");
        }
        kept().put("s3cret", &v1::ResolveReply::default());
        let acl = Acl::new(of("s3cret"), kept());
        assert!(acl.resolve(&servers, "s3cret").await.is_err(), "it is of no token any more");
        until.cancel();
        kept().put("s3cret", &reply("a"));
        let acl = Acl::new(of("s3cret"), kept());
        assert!(acl.resolve(&servers, "s3cret").await.is_err(), "another process writes now");
        std::fs::write(&path, "{").expect("written");
        assert!(kept().replies().is_empty() && !path.exists(), "a damaged file is set aside");
    }

    #[test]
    fn what_was_asked_longest_ago_makes_room() {
        let acl = acl(DownPolicy::ExtendCache);
        let start = Instant::now();
        for n in 0..=KNOWN_MAX as u64 {
            let at = Some(start + Duration::from_secs(n));
            acl.remember(&format!("s{n}"), Known { at, may: None, expires_at: None });
        }
        let known = acl.known();
        assert_eq!((known.len(), known.contains_key("s0")), (KNOWN_MAX, false));
        assert!(known.contains_key("s1"));
    }

    #[test]
    fn secrets_that_are_no_tokens_push_out_no_token_and_nobody_the_hosts_own() {
        let settings =
            Settings { is_enabled: true, dns: Some("own".to_owned()), ..Settings::default() };
        let kept = Kept::open(PathBuf::from("/nowhere"), CancellationToken::new());
        let acl = Acl::new(settings, kept);
        let start = Instant::now();
        let somebody = Some(Arc::new(Authorizer::new("a".into(), DefaultPolicy::Deny, [])));
        acl.remember("own", Known { at: None, may: None, expires_at: None });
        acl.remember("operator", Known { at: Some(start), may: somebody, expires_at: None });
        for n in 1..=2 * KNOWN_MAX as u64 {
            let at = Some(start + Duration::from_secs(n));
            acl.remember(&format!("made-up-{n}"), Known { at, may: None, expires_at: None });
        }
        let known = acl.known();
        assert!(known.contains_key("own") && known.contains_key("operator"));
        assert_eq!(known.len(), KNOWN_MAX);
    }

    #[test]
    fn while_no_server_answers_the_down_policy_decides() {
        let until = |may, expires_at| Some(Known { at: Some(Instant::now()), may, expires_at });
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
