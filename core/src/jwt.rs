//! Tokens: where a request brings them, and what they prove. Only signatures are checked elsewhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::Value;

use crate::clock::UnixTime;
use crate::entry::{JwtProvider, Location};
use crate::jwks::{Algorithm, Key, KeySet};
use crate::permission::{Fields, Tokens, Unproven};

/// Providers by name, as a host sees those that its own services' intentions name.
pub type Providers = BTreeMap<Arc<str>, Arc<JwtProvider>>;

/// Key sets by provider, as far as they are known.
pub type KeyRing = BTreeMap<Arc<str>, Arc<KeySet>>;

/// The key sets that `providers` hold themselves.
pub fn inline(providers: &Providers) -> KeyRing {
    let held = |(name, provider): (&Arc<str>, &Arc<JwtProvider>)| {
        Some((name.clone(), Arc::new(provider.inline_keys()?)))
    };
    providers.iter().filter_map(held).collect()
}

/// By which keys tokens are proved.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// Those that providers hold themselves.
    pub inline: &'a KeyRing,
    /// Those that were read or fetched.
    pub fetched: &'a KeyRing,
}

impl Keys<'_> {
    fn of(&self, provider: &str) -> Option<&KeySet> {
        self.inline.get(provider).or_else(|| self.fetched.get(provider)).map(|keys| &**keys)
    }
}

/// Checks signatures: arithmetic that belongs to a library for it.
pub trait Verifier {
    /// Whether `signature` over `signed` is one by `algorithm` and the owner of `key`.
    fn is_signed(&self, key: &Key, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool;
}

/// What all tokens of one request are proved with.
pub struct Bearer<'a> {
    /// Whose tokens count.
    pub providers: &'a Providers,
    /// By which keys.
    pub keys: Keys<'a>,
    /// Who checks signatures.
    pub verifier: &'a dyn Verifier,
    /// The request's query, without `?`.
    pub query: &'a str,
    /// The request's fields, as the caller sent them.
    pub fields: &'a dyn Fields,
    /// The time.
    pub now: UnixTime,
    /// What was proved so far.
    proven: BTreeMap<String, Result<Proof, Unproven>>,
}

/// What a token proved.
#[derive(Clone, Debug)]
struct Proof {
    claims: Arc<Value>,
    /// The claims as they came, base64 for URLs without padding.
    payload: String,
}

/// A field that a token's provider changes in a request that passes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Edit {
    /// It is dropped: a token that the application is not to get.
    Drop(String),
    /// It is set: the claims.
    Set(String, String),
}

impl<'a> Bearer<'a> {
    /// What one request's tokens are proved with.
    pub fn new(
        providers: &'a Providers,
        keys: Keys<'a>,
        verifier: &'a dyn Verifier,
        (query, fields): (&'a str, &'a dyn Fields),
        now: UnixTime,
    ) -> Self {
        Self { providers, keys, verifier, query, fields, now, proven: BTreeMap::new() }
    }

    /// What the providers whose tokens were proved change in the request.
    pub fn edits(&self) -> Vec<Edit> {
        let mut edits = Vec::new();
        for (name, proof) in &self.proven {
            let (Some(provider), Ok(proof)) = (self.providers.get(name.as_str()), proof) else {
                continue;
            };
            for header in provider.locations().into_iter().filter_map(|it| it.header) {
                if !header.forward {
                    edits.push(Edit::Drop(header.name.to_ascii_lowercase()));
                }
            }
            if let Some(forwarding) = &provider.forwarding {
                let payload = match (forwarding.pad, URL_SAFE_NO_PAD.decode(&proof.payload)) {
                    (true, Ok(octets)) => URL_SAFE.encode(octets),
                    _ => proof.payload.clone(),
                };
                edits.push(Edit::Set(forwarding.header_name.to_ascii_lowercase(), payload));
            }
        }
        edits
    }

    /// The claims that were proved, by provider.
    pub fn proved(&self) -> Proved {
        let claims = self.proven.iter().filter_map(|(name, proof)| {
            proof.as_ref().ok().map(|proof| (name.clone(), proof.claims.clone()))
        });
        Proved(claims.collect())
    }

    fn prove(&self, name: &str) -> Result<Proof, Unproven> {
        // A provider that nobody declares proves nothing, for ever.
        let provider = self.providers.get(name).ok_or(Unproven::NoKeys)?;
        let token = self.token(provider)?.ok_or(Unproven::Missing)?;
        let token = Token::parse(&token).ok_or(Unproven::Invalid)?;
        let keys = self.keys.of(name).ok_or(Unproven::NoKeys)?;
        let is_signed = token.is_signed(keys, self.verifier);
        if !is_signed || !token.holds(provider, self.now) {
            return Err(Unproven::Invalid);
        }
        Ok(Proof { claims: Arc::new(token.claims), payload: token.payload })
    }

    /// The one token in all places of the provider.
    ///
    /// # Errors
    /// [`Unproven::Invalid`] for two: which one is meant is not ours to guess.
    fn token(&self, provider: &JwtProvider) -> Result<Option<String>, Unproven> {
        let mut found: Vec<String> = Vec::new();
        for location in provider.locations() {
            self.tokens_at(&location, &mut found);
        }
        found.dedup();
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(Unproven::Invalid),
        }
    }

    fn tokens_at(&self, location: &Location, found: &mut Vec<String>) {
        let mut take = |octets: &[u8]| found.push(String::from_utf8_lossy(octets).into_owned());
        if let Some(header) = &location.header {
            let prefix = header.value_prefix.as_bytes();
            self.fields.each(&header.name.to_ascii_lowercase(), &mut |value| {
                let value = value.trim_ascii();
                let starts = value
                    .get(..prefix.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(prefix));
                if starts {
                    take(value[prefix.len()..].trim_ascii());
                }
            });
        }
        if let Some(parameter) = &location.query_param {
            let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .filter(|(name, _)| *name == parameter.name)
                .for_each(|(_, it)| take(it.as_bytes()));
        }
        if let Some(cookie) = &location.cookie {
            self.fields.each("cookie", &mut |value| {
                for pair in value.split(|octet| *octet == b';') {
                    let pair = pair.trim_ascii();
                    let at = pair.iter().position(|octet| *octet == b'=');
                    if let Some((name, value)) = at.map(|at| (&pair[..at], &pair[at + 1..]))
                        && name == cookie.name.as_bytes()
                    {
                        take(value);
                    }
                }
            });
        }
    }
}

impl Tokens for Bearer<'_> {
    fn claims(&mut self, name: &str) -> Result<Arc<Value>, Unproven> {
        if let Some(known) = self.proven.get(name) {
            return known.as_ref().map(|proof| proof.claims.clone()).map_err(|why| *why);
        }
        let proof = self.prove(name);
        let claims = proof.as_ref().map(|proof| proof.claims.clone()).map_err(|why| *why);
        self.proven.insert(name.to_owned(), proof);
        claims
    }
}

/// What one request's tokens proved when it came: claims by provider.
#[derive(Clone, Debug, Default)]
pub struct Proved(BTreeMap<String, Arc<Value>>);

impl Tokens for Proved {
    fn claims(&mut self, name: &str) -> Result<Arc<Value>, Unproven> {
        self.0.get(name).cloned().ok_or(Unproven::Missing)
    }
}

/// A token in its parts, of which nothing is believed yet.
struct Token<'a> {
    algorithm: Algorithm,
    key: Option<String>,
    signed: &'a str,
    signature: Vec<u8>,
    payload: String,
    claims: Value,
}

impl<'a> Token<'a> {
    /// Reads a token in compact form. What it does not know how to check is none.
    fn parse(text: &'a str) -> Option<Self> {
        if text.len() > TOKEN_OCTETS_MAX {
            return None;
        }
        let (signed, signature) = text.rsplit_once('.')?;
        let (head, payload) = signed.split_once('.')?;
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let head: Value = serde_json::from_slice(&decoded(head)?).ok()?;
        let claims: Value = serde_json::from_slice(&decoded(payload)?).ok()?;
        let head = head.as_object()?;
        // An extension that must be understood (RFC 7515 §4.1.11): there is none that is.
        if head.contains_key("crit") || !claims.is_object() {
            return None;
        }
        let key = match head.get("kid") {
            None => None,
            Some(id) => Some(id.as_str()?.to_owned()),
        };
        Some(Self {
            algorithm: Algorithm::named(head.get("alg")?.as_str()?)?,
            key,
            signed,
            signature: decoded(signature)?,
            payload: payload.to_owned(),
            claims,
        })
    }

    fn is_signed(&self, keys: &KeySet, verifier: &dyn Verifier) -> bool {
        let is_named = |key: &&Key| match (&self.key, &key.id) {
            (Some(named), Some(id)) => named == id,
            // Either side may leave it out: the signature decides.
            _ => true,
        };
        let mut fit = keys.keys.iter().filter(is_named).filter(|key| key.is_for(self.algorithm));
        let signed = self.signed.as_bytes();
        fit.any(|key| verifier.is_signed(key, self.algorithm, signed, &self.signature))
    }

    /// Whether the claims are those of a token of `provider` that is good now.
    fn holds(&self, provider: &JwtProvider, now: UnixTime) -> bool {
        let claims = &self.claims;
        let is_issuer = provider.issuer.is_empty()
            || claims.get("iss").and_then(Value::as_str) == Some(provider.issuer.as_str());
        let is_audience = provider.audiences.is_empty() || is_for(claims, &provider.audiences);
        // Seconds may have a fraction (RFC 7519 §2).
        let moment = |name: &str| match claims.get(name) {
            None => Some(None),
            Some(value) => value.as_f64().filter(|it| it.is_finite() && *it >= 0.0).map(Some),
        };
        let skew = provider.skew().as_secs_f64();
        #[allow(clippy::cast_precision_loss, reason = "seconds of this era are far below 2^52")]
        let now = now.as_secs() as f64;
        let is_current = match (moment("exp"), moment("nbf")) {
            // What never ends cannot be taken back.
            (Some(Some(end)), Some(begin)) => {
                now < end + skew && begin.is_none_or(|begin| now + skew >= begin)
            }
            _ => false,
        };
        is_issuer && is_audience && is_current
    }
}

/// What a token must be that somebody logs in with.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// What its `iss` must be; empty: anything.
    pub issuer: &'a str,
    /// One of these must be in its `aud`; none: anything.
    pub audiences: &'a [String],
    /// How it may be signed.
    pub algorithms: &'a [Algorithm],
    /// How far clocks may differ.
    pub skew: Duration,
    /// How long it holds, from when it was issued, if it does not say.
    pub expiration_leeway: Duration,
    /// How long before it was issued it holds already, if it does not say.
    pub not_before_leeway: Duration,
}

/// Why a token lets nobody log in.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unfit {
    /// It is no token in compact form.
    #[error("it is no JSON Web Token")]
    Malformed,
    /// It is signed in a way that does not count.
    #[error("it is signed by an algorithm that JWTSupportedAlgs does not name")]
    Algorithm,
    /// No key of the issuer's signed it.
    #[error("no key signed it that counts")]
    Signature,
    /// Somebody else issued it.
    #[error("its iss is not BoundIssuer")]
    Issuer,
    /// It is for somebody else.
    #[error("its aud is none of BoundAudiences")]
    Audience,
    /// It neither says when it ends nor when it began.
    #[error("it has none of exp, iat and nbf, so nobody could say when it ends")]
    Endless,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it does not hold yet")]
    Early,
}

/// The claims of `text`, a token in compact form, where `keys` and `terms` take it at `now`.
///
/// # Errors
/// [`Unfit`], the first thing that is wrong with it.
pub fn prove(
    text: &str,
    keys: &KeySet,
    verifier: &dyn Verifier,
    terms: &Terms<'_>,
    now: UnixTime,
) -> Result<Value, Unfit> {
    let token = Token::parse(text).ok_or(Unfit::Malformed)?;
    if !terms.algorithms.contains(&token.algorithm) {
        return Err(Unfit::Algorithm);
    }
    if !token.is_signed(keys, verifier) {
        return Err(Unfit::Signature);
    }
    let claims = &token.claims;
    let is_issuer = claims.get("iss").and_then(Value::as_str) == Some(terms.issuer);
    if !terms.issuer.is_empty() && !is_issuer {
        return Err(Unfit::Issuer);
    }
    if !terms.audiences.is_empty() && !is_for(claims, terms.audiences) {
        return Err(Unfit::Audience);
    }
    let moment = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => {
            let seconds = value.as_f64().filter(|it| it.is_finite() && *it >= 0.0);
            seconds.map(Some).ok_or(Unfit::Malformed)
        }
    };
    let (end, begin, issued) = (moment("exp")?, moment("nbf")?, moment("iat")?);
    let assumed = begin.or(issued).map(|since| since + terms.expiration_leeway.as_secs_f64());
    let end = end.or(assumed).ok_or(Unfit::Endless)?;
    let begin = begin
        .or_else(|| issued.map(|issued| issued - terms.not_before_leeway.as_secs_f64()))
        .unwrap_or(0.0);
    #[allow(clippy::cast_precision_loss, reason = "seconds of this era are far below 2^52")]
    let (now, skew) = (now.as_secs() as f64, terms.skew.as_secs_f64());
    if now >= end + skew {
        return Err(Unfit::Expired);
    }
    if now + skew < begin {
        return Err(Unfit::Early);
    }
    Ok(token.claims)
}

/// Whether one of `audiences` is in the `aud` of `claims`.
fn is_for(claims: &Value, audiences: &[String]) -> bool {
    let is_one = |audience: &Value| {
        audience.as_str().is_some_and(|text| audiences.iter().any(|one| one == text))
    };
    match claims.get("aud") {
        Some(Value::Array(all)) => all.iter().any(is_one),
        Some(one) => is_one(one),
        None => false,
    }
}

const TOKEN_OCTETS_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests;
