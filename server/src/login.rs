//! Logging in: what an auth method's proof says of who brings it, and the token that it is worth.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hawser_aws::{AmzDate, Endpoint, IdentifyError, Region, SignedCall, Sts};
use hawser_core::acl::{
    AuthMethod, AwsConfig, BindError, Identity, JwtConfig, KeySource, MethodKind,
};
use hawser_core::clock::UnixTime;
use hawser_core::jwks::{Key, KeySet, Material};
use hawser_core::jwt::{Terms, Unfit, prove};
use hawser_core::state::State;
use hawser_identity::Signatures;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Why somebody does not get a token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// The token is not one that counts.
    #[error("the bearer token is refused: {0}")]
    Unfit(#[from] Unfit),
    /// AWS does not vouch for who signed, or for somebody else.
    #[error("the signed request is refused: {0}")]
    Aws(String),
    /// What is stored of the method makes no sense to this release.
    #[error("the auth method is configured wrongly: {0}")]
    Config(String),
    /// Nobody can say whether the token counts.
    #[error("who vouches for the bearer token cannot be asked: {0}")]
    NoKeys(String),
    /// A binding rule makes no sense for who logs in.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Too many log in.
    #[error("too many log in at this moment: try again")]
    Busy,
}

/// What this server remembers between logins: keys that it fetched.
pub(crate) struct Logins {
    fetched: Mutex<HashMap<String, Fetched>>,
    fetching: Semaphore,
}

#[derive(Clone)]
struct Fetched {
    keys: Arc<KeySet>,
    at: Instant,
}

impl Default for Logins {
    fn default() -> Self {
        Self { fetched: Mutex::default(), fetching: Semaphore::new(FETCHED_TOGETHER) }
    }
}

impl Logins {
    /// Who brings `bearer`, by the word of `method`, at `now`.
    ///
    /// # Errors
    /// [`Refused`]
    pub(crate) async fn identify(
        &self,
        method: &AuthMethod,
        bearer: &str,
        now: UnixTime,
    ) -> Result<Identity, Refused> {
        let config: Value =
            serde_json::from_str(&method.config).map_err(|why| Refused::Config(why.to_string()))?;
        match method.kind {
            MethodKind::Jwt => self.by_jwt(&config, bearer, now).await,
            MethodKind::AwsIam => self.by_aws(&config, bearer, now).await,
        }
    }

    async fn by_aws(
        &self,
        config: &Value,
        bearer: &str,
        now: UnixTime,
    ) -> Result<Identity, Refused> {
        let wrong = |why: &dyn std::fmt::Display| Refused::Config(why.to_string());
        let config = AwsConfig::parse(config).map_err(|why| wrong(&why))?;
        let sts = sts(&config).map_err(|why| wrong(&why))?;
        let signed = SignedCall::parse(bearer).map_err(|why| Refused::Aws(why.to_string()))?;
        let skew = signed.date().apart(&AmzDate::at(now.as_secs()));
        if skew > SIGNED_MAX {
            let why = format!("it was signed {} s from this server's time", skew.as_secs());
            return Err(Refused::Aws(why));
        }
        if !config.server_id.is_empty() && signed.server_id() != Some(&config.server_id) {
            let why = "it is not signed for ServerIDHeaderValue".to_owned();
            return Err(Refused::Aws(why));
        }
        let _asking = self.fetching.try_acquire().map_err(|_| Refused::Busy)?;
        let caller = sts.identify_call(&signed).await.map_err(|why| match why {
            IdentifyError::Refused(_) | IdentifyError::Answer(_) => Refused::Aws(why.to_string()),
            IdentifyError::Busy(_) | IdentifyError::Call(_) => Refused::NoKeys(why.to_string()),
        })?;
        let principal = caller.principal().filter(|principal| config.admits(principal));
        if principal.is_none() {
            return Err(Refused::Aws(format!(
                "{}: BoundIAMPrincipalARNs does not name it",
                caller.arn()
            )));
        }
        let (name, id) =
            (caller.name().unwrap_or_default(), caller.entity_id().unwrap_or_default());
        let known = [("entity_name", name), ("entity_id", id), ("account_id", caller.account())];
        let texts = known.map(|(name, text)| (name.to_owned(), text.to_owned()));
        Ok(Identity { fields: known.into_iter().collect(), variables: texts.into() })
    }

    async fn by_jwt(
        &self,
        config: &Value,
        bearer: &str,
        now: UnixTime,
    ) -> Result<Identity, Refused> {
        let wrong = |why: &dyn std::fmt::Display| Refused::Config(why.to_string());
        let config = JwtConfig::parse(config).map_err(|why| wrong(&why))?;
        let algorithms = config.algorithms().map_err(|why| wrong(&why))?;
        let terms = Terms {
            issuer: &config.issuer,
            audiences: &config.audiences,
            algorithms: &algorithms,
            skew: config.skew.unwrap_or(SKEW),
            expiration_leeway: config.expiration_leeway.unwrap_or(LEEWAY),
            not_before_leeway: config.not_before_leeway.unwrap_or(LEEWAY),
        };
        let proved = |keys: &KeySet| prove(bearer, keys, &Signatures, &terms, now);
        let claims = match config.source().map_err(|why| wrong(&why))? {
            KeySource::Here(pems) => proved(&keys(pems).map_err(Refused::Config)?)?,
            elsewhere => {
                let held = self.keys_at(elsewhere, KEYS_FRESH).await?;
                match proved(&held) {
                    // The issuer may have changed its keys; it is not asked for each bad token.
                    Err(Unfit::Signature) => proved(&*self.keys_at(elsewhere, KEYS_RECENT).await?)?,
                    told => told?,
                }
            }
        };
        Ok(config.identity(&claims))
    }

    /// The keys at `source`, fetched no longer than `fresh` ago; old ones where no newer can be had.
    async fn keys_at(
        &self,
        source: KeySource<'_>,
        fresh: Duration,
    ) -> Result<Arc<KeySet>, Refused> {
        let place = format!("{source:?}");
        let held = self.held(&place);
        if let Some(held) = held.as_ref().filter(|held| held.at.elapsed() < fresh) {
            return Ok(held.keys.clone());
        }
        let _fetching = self.fetching.try_acquire().map_err(|_| Refused::Busy)?;
        match (fetch(source).await, held) {
            (Ok(keys), _) => {
                let keys = Arc::new(keys);
                self.hold(place, Fetched { keys: keys.clone(), at: Instant::now() });
                Ok(keys)
            }
            (Err(why), Some(held)) => {
                tracing::warn!(%why, "the keys of an auth method are not renewed");
                self.hold(place, Fetched { at: Instant::now(), ..held.clone() });
                Ok(held.keys)
            }
            (Err(why), None) => Err(Refused::NoKeys(why)),
        }
    }

    fn held(&self, place: &str) -> Option<Fetched> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner).get(place).cloned()
    }

    fn hold(&self, place: String, fetched: Fetched) {
        let mut all = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= PLACES_MAX && !all.contains_key(&place) {
            all.clear();
        }
        all.insert(place, fetched);
    }
}

async fn fetch(source: KeySource<'_>) -> Result<KeySet, String> {
    let octets = match source {
        KeySource::Here(_) => return Err("they are not elsewhere".to_owned()),
        KeySource::Set { url, ca } => document(url, ca).await?,
        KeySource::Discovered { url, ca } => {
            let issuer = url.trim_end_matches('/');
            let told = document(&format!("{issuer}/.well-known/openid-configuration"), ca).await?;
            let told: Value = serde_json::from_slice(&told)
                .map_err(|why| format!("{issuer} tells no JSON: {why}"))?;
            if told["issuer"].as_str().map(|said| said.trim_end_matches('/')) != Some(issuer) {
                return Err(format!("{issuer} says that it is the issuer {}", told["issuer"]));
            }
            let keys = told["jwks_uri"].as_str();
            let keys = keys.ok_or_else(|| format!("{issuer} names no jwks_uri"))?;
            document(keys, ca).await?
        }
    };
    KeySet::read(&octets).map_err(|why| why.to_string())
}

async fn document(url: &str, ca: &str) -> Result<Vec<u8>, String> {
    let got = match ca.is_empty() {
        true => hawser_aws::get(url, FETCH).await,
        false => hawser_aws::get_trusting(url, ca, FETCH).await,
    };
    got.map(|octets| octets.to_vec()).map_err(|why| why.to_string())
}

/// The STS that `config` has signatures checked by.
///
/// # Errors
/// Which field names none.
pub(crate) fn sts(config: &AwsConfig) -> Result<Sts, String> {
    let stated = if config.sts_region.is_empty() { GLOBAL_REGION } else { &config.sts_region };
    let region: Region = stated.parse().map_err(|why| format!("STSRegion: {why}"))?;
    let endpoint = match (config.sts_endpoint.as_str(), config.sts_region.as_str()) {
        ("", "") => GLOBAL_STS.parse(),
        ("", _) => Ok(Endpoint::sts(&region)),
        (stated, _) => stated.trim_end_matches('/').parse(),
    };
    let endpoint = endpoint.map_err(|why| format!("STSEndpoint: {why}"))?;
    Ok(Sts::new(region, endpoint))
}

/// The keys in `pems`, each a public key in PEM.
///
/// # Errors
/// Which of them is none, and why.
pub(crate) fn keys(pems: &[String]) -> Result<KeySet, String> {
    let read = pems.iter().enumerate().map(|(at, pem)| {
        let material = key(pem).map_err(|why| format!("JWTValidationPubKeys[{at}]: {why}"))?;
        Ok(Key { id: None, algorithm: None, material })
    });
    Ok(KeySet { keys: read.collect::<Result<_, String>>()? })
}

fn key(pem: &str) -> Result<Material, String> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| "it is no PEM with a PUBLIC KEY".to_owned())?;
    let (rest, info) =
        SubjectPublicKeyInfo::from_der(&der).map_err(|why| format!("it cannot be read: {why}"))?;
    if !rest.is_empty() {
        return Err("something stands behind it".to_owned());
    }
    let unusual = || "use RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519".to_owned();
    if info.algorithm.algorithm == ED25519 {
        return Ok(Material::Ed25519(info.subject_public_key.data.to_vec()));
    }
    match info.parsed().map_err(|why| format!("it cannot be read: {why}"))? {
        PublicKey::RSA(rsa) if (2048..=8192).contains(&rsa.key_size()) => {
            let whole = |octets: &[u8]| {
                let start = octets.iter().position(|octet| *octet != 0).unwrap_or(octets.len());
                octets[start..].to_vec()
            };
            Ok(Material::Rsa(whole(rsa.modulus), whole(rsa.exponent)))
        }
        PublicKey::EC(point) => match point.data().len() {
            65 => Ok(Material::P256(point.data().to_vec())),
            97 => Ok(Material::P384(point.data().to_vec())),
            _ => Err(unusual()),
        },
        _ => Err(unusual()),
    }
}

/// What binding rules give: grants, and the roles by id.
pub(crate) type Granted = (hawser_core::acl::Grants, Vec<Arc<str>>);

/// What `identity` gets that logged in by `method`, or [`None`] where no binding rule is about it.
///
/// # Errors
/// [`Refused::Bind`]
pub(crate) fn granted(
    state: &State,
    method: &AuthMethod,
    identity: &Identity,
) -> Result<Option<Granted>, Refused> {
    let datacenter = state.cluster().map_or("", |cluster| cluster.datacenter.as_str());
    let (grants, roles) = state.acl().bind(&method.name, identity, datacenter)?;
    let is_nothing = roles.is_empty() && grants == hawser_core::acl::Grants::default();
    Ok((!is_nothing).then_some((grants, roles)))
}

const ED25519: x509_parser::der_parser::Oid<'static> = x509_parser::der_parser::oid!(1.3.101.112);
/// Consul's defaults.
const SKEW: Duration = Duration::from_secs(60);
const LEEWAY: Duration = Duration::from_secs(150);
/// How long fetched keys are used before they are fetched again, and how soon they may be.
const KEYS_FRESH: Duration = Duration::from_secs(300);
const KEYS_RECENT: Duration = Duration::from_secs(10);
/// How old a signature may be.
const SIGNED_MAX: Duration = Duration::from_secs(300);
/// Where signatures without a region of their own are checked.
const GLOBAL_REGION: &str = "us-east-1";
const GLOBAL_STS: &str = "https://sts.amazonaws.com";
const FETCH: Duration = Duration::from_secs(5);
const FETCHED_TOGETHER: usize = 16;
const PLACES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_read_or_refused_by_its_place() {
        let pair = rcgen::KeyPair::generate().expect("a key");
        let pem = pair.public_key_pem();
        let read = keys(std::slice::from_ref(&pem)).expect("a key");
        assert!(matches!(&read.keys[0].material, Material::P256(point) if point.len() == 65));
        let ed = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let read = keys(&[ed.public_key_pem()]).expect("a key");
        assert!(matches!(&read.keys[0].material, Material::Ed25519(point) if point.len() == 32));
        for bad in [
            "",
            "x",
            &pair.serialize_pem(),
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ] {
            let why = keys(&[pem.clone(), bad.to_owned()]).expect_err("no key");
            assert!(why.starts_with("JWTValidationPubKeys[1]"), "{why}");
        }
    }
}
