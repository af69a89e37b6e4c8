//! Joining: a token that works once, a pin to know servers by, and what is kept ever after.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hawser_aws::{Ambient, AmzDate, Challenge, Credentials, CredentialsError};
use hawser_core::name::{Datacenter, NodeName};
use hawser_core::spiffe::{Role, SpiffeId, TrustDomain};
use hawser_identity::{Anchors, find_pinned, id_of};
use hawser_proto::v1;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tonic::Code;
use zeroize::Zeroizing;

use super::{Credential, Damaged, InvalidReply, Kept, Request};
use crate::config::Pin;
use crate::disk;
use crate::servers::{self, ConnectError, Link, Servers};
use crate::tls;

/// A right to join once: `hj1.<secret>.<pin>`. Not printable.
pub(crate) struct Token {
    secret: Zeroizing<Vec<u8>>,
    /// SHA-256 of the public key of the root that vouches for servers.
    pub(crate) pin: [u8; 32],
}

/// A text that is no join token.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "it is no join token: it must look like hj1.<secret>.<pin>, as `hawser token create` prints it"
)]
pub struct InvalidToken;

impl Token {
    /// Parses a token.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidToken> {
        let rest = text.trim().strip_prefix("hj1.").ok_or(InvalidToken)?;
        let (secret, pin) = rest.split_once('.').ok_or(InvalidToken)?;
        let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidToken);
        let secret = Zeroizing::new(decoded(secret)?);
        let pin = decoded(pin)?.try_into().map_err(|_| InvalidToken)?;
        if secret.len() != SECRET_OCTETS {
            return Err(InvalidToken);
        }
        Ok(Self { secret, pin })
    }
}

/// What a host is in its cluster: kept on disk from the day it joined.
pub(crate) struct Membership {
    /// The cluster's id.
    pub(crate) cluster_id: String,
    /// The root that vouches for servers, DER.
    pub(crate) server_root: CertificateDer<'static>,
    /// The host's own identity.
    pub(crate) credential: Credential,
}

impl Membership {
    /// The name that the host joined under; none for a credential that is not an agent's.
    pub(crate) fn node(&self) -> Option<&NodeName> {
        match &self.credential.id.role {
            Role::Agent(node) => Some(node),
            Role::Service(_) | Role::Server(_) | Role::MeshGateway => None,
        }
    }

    /// The trust domain.
    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.credential.id.trust_domain
    }

    /// The identity of `role` beside this host's own.
    pub(crate) fn beside(&self, role: Role) -> SpiffeId {
        SpiffeId { role, ..self.credential.id.clone() }
    }

    /// How servers are dialled as this host.
    pub(crate) fn client(&self) -> Result<rustls::ClientConfig, rustls::Error> {
        let SpiffeId { trust_domain, datacenter, .. } = self.credential.id.clone();
        let anchors = Anchors::new(trust_domain, datacenter).servers([&self.server_root[..]]);
        tls::client(anchors, Some(&self.credential.leaf()))
    }

    /// Keeps it in `folder`, 0600.
    pub(crate) fn keep(&self, folder: &Path) -> std::io::Result<()> {
        let kept = KeptMembership {
            cluster_id: self.cluster_id.clone(),
            server_root: STANDARD.encode(&self.server_root),
            credential: self.credential.kept(),
        };
        disk::write(&path(folder), &Zeroizing::new(serde_json::to_vec(&kept)?))
    }

    /// What `folder` keeps; none when the host never joined, or the file is damaged, which is set
    /// aside and said.
    pub(crate) fn kept(folder: &Path) -> std::io::Result<Option<Self>> {
        let path = path(folder);
        let Some(bytes) = disk::read(&path)?.map(Zeroizing::new) else { return Ok(None) };
        match Self::parse(&bytes) {
            Ok(membership) => Ok(Some(membership)),
            Err(why) => {
                disk::set_aside(&path, &why.to_string());
                Ok(None)
            }
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, Damaged> {
        let kept: KeptMembership = serde_json::from_slice(bytes)?;
        Ok(Self {
            cluster_id: kept.cluster_id,
            server_root: STANDARD.decode(kept.server_root)?.into(),
            credential: kept.credential.try_into()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct KeptMembership {
    cluster_id: String,
    server_root: String,
    credential: Kept,
}

/// Why joining failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The servers said no: another attempt with this token is in vain.
    #[error(
        "the servers refuse to let this host join: {0}: ask for a new token with `hawser \
             join-token`"
    )]
    Refused(String),
    /// The servers said no to the role: their `aws_iam` or the role must change.
    #[error("the servers refuse to let this host join by AWS IAM: {0}")]
    RefusedRole(String),
    /// There is nothing to sign with yet.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// No server could be asked: another attempt may succeed.
    #[error("no server could be asked: {0}")]
    Unreachable(String),
    /// The reply is not what was asked for.
    #[error("{0}")]
    Reply(String),
}

impl JoinError {
    /// Whether another attempt may succeed.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Credentials(_))
    }
}

impl From<ConnectError> for JoinError {
    fn from(why: ConnectError) -> Self {
        Self::Unreachable(why.to_string())
    }
}

impl From<InvalidReply> for JoinError {
    fn from(why: InvalidReply) -> Self {
        Self::Reply(why.to_string())
    }
}

/// What a host joins by.
pub(crate) enum Right {
    Token(Token),
    AwsIam(Pin),
}

impl Right {
    fn pin(&self) -> [u8; 32] {
        match self {
            Self::Token(token) => token.pin,
            Self::AwsIam(pin) => pin.0,
        }
    }
}

/// Joins as `node`, with the key of `request`, asking one server after the other.
///
/// A token is good for one key: who repeats an attempt whose answer was lost must show the same.
pub(crate) async fn join(
    servers: &Servers,
    node: &NodeName,
    datacenter: &Datacenter,
    right: &Right,
    request: &Request,
) -> Result<Membership, JoinError> {
    let mut last = JoinError::from(ConnectError::NoServers);
    let mut round = servers.round();
    while let Some(server) = round.next().await {
        match join_at(&server, node, datacenter, right, request).await {
            Err(why) if why.is_passing() => {
                tracing::debug!(server, %why, "this server could not be asked to join");
                last = why;
            }
            decided => return decided,
        }
    }
    Err(last)
}

async fn join_at(
    server: &str,
    node: &NodeName,
    datacenter: &Datacenter,
    right: &Right,
    request: &Request,
) -> Result<Membership, JoinError> {
    let unreachable = |why: &dyn std::fmt::Display| JoinError::Unreachable(why.to_string());
    let anchors = Anchors::pinned(right.pin(), datacenter.clone());
    let config = tls::client(anchors, None).map_err(|why| unreachable(&why))?;
    let link = servers::connect(server, Arc::new(config)).await?;
    // The handshake proved that the one leads to the other.
    let met = link.shown();
    let server = id_of(met.first().ok_or(InvalidReply::Missing("server"))?)
        .map_err(InvalidReply::Certificate)?;
    let asked = timeout(JOIN, ask(&link, node, &server.trust_domain, request, right)).await;
    link.retire();
    let reply = asked.map_err(|_| unreachable(&"no answer in time"))??;
    let root = find_pinned(met, &right.pin()).ok_or(InvalidReply::Missing("server root"))?;
    let id = SpiffeId {
        trust_domain: server.trust_domain,
        datacenter: datacenter.clone(),
        role: Role::Agent(node.clone()),
    };
    let certificate = reply.certificate.ok_or(InvalidReply::Missing("certificate"))?;
    Ok(Membership {
        cluster_id: reply.cluster_id,
        server_root: root.clone(),
        credential: request.answered(certificate, &id)?,
    })
}

/// Asks the server at the other end of `link`, of the cluster that `trust_domain` names.
async fn ask(
    link: &Link,
    node: &NodeName,
    trust_domain: &TrustDomain,
    request: &Request,
    right: &Right,
) -> Result<v1::JoinReply, JoinError> {
    let mut client = link.client();
    let (node, csr) = (node.to_string(), request.csr.clone());
    let answered = match right {
        Right::Token(token) => {
            let ask = v1::JoinRequest { node, secret: token.secret.to_vec(), csr };
            client.join(ask).await.map_err(|status| (status, JoinError::Refused as fn(_) -> _))
        }
        Right::AwsIam(_) => {
            let refused = |status| (status, JoinError::RefusedRole as fn(_) -> _);
            let credentials = Credentials::load(&Ambient::of_process()).await?;
            match client.join_nonce(v1::JoinNonceRequest {}).await {
                Err(status) => Err(refused(status)),
                Ok(reply) => {
                    let reply = reply.into_inner();
                    let server_id = trust_domain.to_string();
                    let key = request.key_hash();
                    let challenge = Challenge::new(&reply.nonce, key, &server_id);
                    let region =
                        reply.region.parse().map_err(|_| InvalidReply::Missing("region"))?;
                    let proof =
                        credentials.prove(&region, &reply.sts_host, &challenge, AmzDate::now());
                    let ask = v1::JoinAwsRequest {
                        node,
                        csr,
                        nonce: reply.nonce,
                        access_key_id: proof.access_key_id().to_owned(),
                        date: proof.date().as_str().to_owned(),
                        session_token: proof.session_token().to_owned(),
                        signature: proof.signature().to_owned(),
                    };
                    client.join_aws(ask).await.map_err(refused)
                }
            }
        }
    };
    answered.map(tonic::Response::into_inner).map_err(|(status, refused)| match status.code() {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown
        | Code::Internal
        | Code::ResourceExhausted
        | Code::Aborted => JoinError::Unreachable(status.message().to_owned()),
        _ => refused(status.message().to_owned()),
    })
}

fn path(folder: &Path) -> PathBuf {
    folder.join("identity.json")
}

const SECRET_OCTETS: usize = 32;
const JOIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use hawser_fuzz::Target;

    use super::*;

    #[test]
    fn a_token_is_whole_or_refused() {
        let part = URL_SAFE_NO_PAD.encode([7; 32]);
        let short = URL_SAFE_NO_PAD.encode([7; 31]);
        for (text, is_good) in [
            (format!("hj1.{part}.{part}"), true),
            (format!(" hj1.{part}.{part}\n"), true),
            (format!("hj2.{part}.{part}"), false),
            (format!("hj1.{part}"), false),
            (format!("hj1.{short}.{part}"), false),
            (format!("hj1.{part}.{short}"), false),
            (format!("hj1.{part}.{part}.x"), false),
            (String::new(), false),
        ] {
            assert_eq!(Token::parse(&text).is_ok(), is_good, "{text:?}");
        }
    }

    #[test]
    fn a_text_is_a_token_or_none() {
        let part = URL_SAFE_NO_PAD.encode([7; 32]);
        let good = format!("hj1.{part}.{part}").into_bytes();
        Target::new("join_token").also([good]).run(|input| {
            let Ok(token) = Token::parse(&String::from_utf8_lossy(input)) else { return false };
            assert_eq!(token.secret.len(), SECRET_OCTETS);
            true
        });
    }
}
