//! Credentials of this process: from its variables, its ECS task or its EC2 instance, in that order.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::ambient::{self, Ambient};
use crate::call::{Answer, CallError, call_within};
use crate::endpoint::{Endpoint, InvalidEndpoint, InvalidRegion, Region};

/// A key that signs. Not printable.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) secret: Zeroizing<String>,
    pub(crate) session_token: Option<Zeroizing<String>>,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// No place has any.
    #[error(
        "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the task or \
         instance a role (the instance's metadata service says: {0})"
    )]
    Nowhere(CallError),
    /// They are asked for where they must not be.
    #[error("{name}: {why}")]
    Endpoint {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A file that a variable names cannot be read.
    #[error("{name}: {source}")]
    File {
        /// The variable.
        name: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody answered.
    #[error("AWS credentials: {0}")]
    Call(#[from] CallError),
    /// What was answered is none.
    #[error("AWS credentials: {from} answered {status}: {why}")]
    Answer {
        /// Who.
        from: String,
        /// With what.
        status: u16,
        /// What to do.
        why: &'static str,
    },
    /// No region is known.
    #[error("no AWS region: say region=..., or set AWS_REGION")]
    Region(#[from] InvalidRegion),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    token: Option<Zeroizing<String>>,
}

impl Credentials {
    /// A key that is known already.
    pub fn new(access_key_id: String, secret: String, session_token: Option<String>) -> Self {
        Self {
            access_key_id,
            secret: Zeroizing::new(secret),
            session_token: session_token.map(Zeroizing::new),
        }
    }

    /// Those that hold at present: asked for anew each time, because roles' keys change.
    ///
    /// # Errors
    /// [`CredentialsError`]
    pub async fn load(ambient: &Ambient) -> Result<Self, CredentialsError> {
        let said = (ambient.get(ambient::ACCESS_KEY_ID), ambient.get(ambient::SECRET_ACCESS_KEY));
        if let (Some(id), Some(secret)) = said {
            let token = ambient.get(ambient::SESSION_TOKEN).map(str::to_owned);
            return Ok(Self::new(id.to_owned(), secret.to_owned(), token));
        }
        if let Some(path) = ambient.get(ambient::CONTAINER_RELATIVE) {
            let endpoint = parsed(ambient::CONTAINER_RELATIVE, CONTAINER)?;
            return of_container(ambient, &endpoint, path).await;
        }
        if let Some(uri) = ambient.get(ambient::CONTAINER_FULL) {
            let start = uri.find("://").map_or(0, |at| at + 3);
            let slash = uri.get(start..).and_then(|rest| rest.find('/'));
            let (base, path) = slash.map_or((uri, "/"), |at| uri.split_at(start + at));
            let endpoint = parsed(ambient::CONTAINER_FULL, base)?;
            return of_container(ambient, &endpoint, path).await;
        }
        of_instance(ambient).await
    }
}

/// The region of this process.
///
/// # Errors
/// [`CredentialsError`] when neither its variables nor its instance tell.
pub(crate) async fn region(ambient: &Ambient) -> Result<Region, CredentialsError> {
    let said = ambient.get(ambient::REGION).or_else(|| ambient.get(ambient::DEFAULT_REGION));
    if let Some(said) = said {
        return Ok(said.parse()?);
    }
    let text = metadata(ambient, "/latest/meta-data/placement/region").await?;
    Ok(text.trim().parse()?)
}

fn parsed(name: &'static str, text: &str) -> Result<Endpoint, CredentialsError> {
    let wrong = |why: InvalidEndpoint| CredentialsError::Endpoint { name, why: why.to_string() };
    text.parse().map_err(wrong)
}

async fn of_container(
    ambient: &Ambient,
    endpoint: &Endpoint,
    path: &str,
) -> Result<Credentials, CredentialsError> {
    let token = match ambient.get(ambient::CONTAINER_TOKEN_FILE) {
        None => ambient.get(ambient::CONTAINER_TOKEN).map(|said| Zeroizing::new(said.to_owned())),
        Some(file) => {
            let name = ambient::CONTAINER_TOKEN_FILE;
            let read = tokio::fs::read_to_string(file).await;
            Some(Zeroizing::new(read.map_err(|source| CredentialsError::File { name, source })?))
        }
    };
    let mut request = Request::get(path).header("host", endpoint.authority());
    if let Some(token) = token {
        request = request.header("authorization", token.trim());
    }
    let answer = ask(endpoint, request).await?;
    told(endpoint, &answer)
}

async fn of_instance(ambient: &Ambient) -> Result<Credentials, CredentialsError> {
    let endpoint = instance(ambient)?;
    let token = session(&endpoint).await.map_err(|why| match why {
        CredentialsError::Call(why) => CredentialsError::Nowhere(why),
        other => other,
    })?;
    let role = get(&endpoint, &token, ROLES).await?;
    let role = text(&endpoint, &role)?;
    let role = role.lines().next().unwrap_or_default().trim();
    let fits = |octet: u8| octet.is_ascii_alphanumeric() || b"+=,.@-_".contains(&octet);
    if role.is_empty() || !role.bytes().all(fits) {
        return Err(wrong(&endpoint, 200, "the instance has no role"));
    }
    let answer = get(&endpoint, &token, &format!("{ROLES}{role}")).await?;
    told(&endpoint, &answer)
}

async fn metadata(ambient: &Ambient, path: &str) -> Result<String, CredentialsError> {
    let endpoint = instance(ambient)?;
    let token = session(&endpoint).await?;
    text(&endpoint, &get(&endpoint, &token, path).await?)
}

fn instance(ambient: &Ambient) -> Result<Endpoint, CredentialsError> {
    let is_off = |said: &str| said.eq_ignore_ascii_case("true");
    if ambient.get(ambient::METADATA_DISABLED).is_some_and(is_off) {
        let off = CallError::Resolve("AWS_EC2_METADATA_DISABLED is set: the service".to_owned());
        return Err(CredentialsError::Nowhere(off));
    }
    let said = ambient.get(ambient::METADATA_ENDPOINT).unwrap_or(INSTANCE);
    parsed(ambient::METADATA_ENDPOINT, said)
}

/// A session with the instance's metadata service, version 2: version 1 is never spoken.
async fn session(endpoint: &Endpoint) -> Result<Zeroizing<String>, CredentialsError> {
    let request = Request::put("/latest/api/token")
        .header("host", endpoint.authority())
        .header("x-aws-ec2-metadata-token-ttl-seconds", "60")
        .header("content-length", "0");
    let answer = ask(endpoint, request).await?;
    text(endpoint, &answer).map(Zeroizing::new)
}

async fn get(endpoint: &Endpoint, token: &str, path: &str) -> Result<Answer, CredentialsError> {
    let request = Request::get(path)
        .header("host", endpoint.authority())
        .header("x-aws-ec2-metadata-token", token.trim());
    ask(endpoint, request).await
}

async fn ask(
    endpoint: &Endpoint,
    request: http::request::Builder,
) -> Result<Answer, CredentialsError> {
    let request = request
        .body(Bytes::new())
        .map_err(|_| wrong(endpoint, 0, "its path or token is none that HTTP has"))?;
    Ok(call_within(endpoint, request, PATIENCE).await?)
}

fn text(endpoint: &Endpoint, answer: &Answer) -> Result<String, CredentialsError> {
    let text = String::from_utf8(answer.body.to_vec());
    match (answer.status, text) {
        (200, Ok(text)) if text.len() <= TEXT_OCTETS_MAX => Ok(text),
        (404, _) => Err(wrong(endpoint, 404, "it has no role")),
        (status, _) => Err(wrong(endpoint, status, "that is no answer of AWS")),
    }
}

fn told(endpoint: &Endpoint, answer: &Answer) -> Result<Credentials, CredentialsError> {
    let text = Zeroizing::new(text(endpoint, answer)?);
    let told: Told = serde_json::from_str(&text)
        .map_err(|_| wrong(endpoint, answer.status, "that is no set of credentials"))?;
    Ok(Credentials {
        access_key_id: told.access_key_id,
        secret: told.secret_access_key,
        session_token: told.token,
    })
}

fn wrong(endpoint: &Endpoint, status: u16, why: &'static str) -> CredentialsError {
    CredentialsError::Answer { from: endpoint.to_string(), status, why }
}

const CONTAINER: &str = "http://169.254.170.2";
const INSTANCE: &str = "http://169.254.169.254";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// Both services are on this host; one that is not there must not hold up a start.
const PATIENCE: Duration = Duration::from_secs(2);
const TEXT_OCTETS_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Fake;

    const KEYS: &str = r#"{"AccessKeyId":"ASIA1","SecretAccessKey":"s","Token":"t","Expiration":"2030-01-01T00:00:00Z"}"#;

    fn ambient(pairs: &[(&str, &str)]) -> Ambient {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    async fn id(ambient: &Ambient) -> Result<String, String> {
        let loaded = Credentials::load(ambient).await;
        loaded.map(|keys| keys.access_key_id).map_err(|why| why.to_string())
    }

    #[tokio::test]
    async fn variables_come_before_the_container_before_the_instance() {
        let container = Fake::answering(|asked| {
            let is_known = asked.headers().get("authorization").is_some_and(|said| said == "pass");
            if is_known { (200, KEYS.to_owned()) } else { (403, String::new()) }
        })
        .await;
        let full = format!("{}/v1/credentials?a=b", container.endpoint);
        let with_token = [(ambient::CONTAINER_FULL, &*full), (ambient::CONTAINER_TOKEN, "pass")];
        assert_eq!(id(&ambient(&with_token)).await.as_deref(), Ok("ASIA1"));
        assert_eq!(container.asked()[0].uri(), "/v1/credentials?a=b");
        let mut all = with_token.to_vec();
        all.extend([(ambient::ACCESS_KEY_ID, "AKIA9"), (ambient::SECRET_ACCESS_KEY, "x")]);
        assert_eq!(id(&ambient(&all)).await.as_deref(), Ok("AKIA9"));
        let without = id(&ambient(&with_token[..1])).await.expect_err("refused");
        assert!(without.contains("403"), "{without}");
        let far = [(ambient::CONTAINER_FULL, "http://203.0.113.1/x")];
        let far = id(&ambient(&far)).await.expect_err("refused");
        assert!(far.contains("in the clear"), "{far}");
    }

    #[tokio::test]
    async fn the_instance_is_asked_by_session_only() {
        let instance = Fake::answering(|asked| {
            let has_session = asked
                .headers()
                .get("x-aws-ec2-metadata-token")
                .is_some_and(|token| token == "session");
            match (asked.method().as_str(), asked.uri().path(), has_session) {
                ("PUT", "/latest/api/token", _) => (200, "session".to_owned()),
                ("GET", ROLES, true) => (200, "web\n".to_owned()),
                ("GET", "/latest/meta-data/iam/security-credentials/web", true) => {
                    (200, KEYS.to_owned())
                }
                ("GET", "/latest/meta-data/placement/region", true) => {
                    (200, "eu-west-1".to_owned())
                }
                _ => (401, String::new()),
            }
        })
        .await;
        let at = instance.endpoint.to_string();
        let ambient = ambient(&[(ambient::METADATA_ENDPOINT, &at)]);
        assert_eq!(id(&ambient).await.as_deref(), Ok("ASIA1"));
        assert_eq!(region(&ambient).await.expect("told").as_str(), "eu-west-1");
    }

    #[tokio::test]
    async fn nowhere_is_said_with_what_to_do() {
        let off = ambient(&[(ambient::METADATA_DISABLED, "true")]);
        let why = id(&off).await.expect_err("none");
        assert!(why.contains("AWS_ACCESS_KEY_ID"), "{why}");
    }
}
