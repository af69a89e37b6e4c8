//! Peering tokens: what one cluster gives another by hand, so that each knows whom it talks to.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hawser_core::name::Datacenter;
use hawser_core::sni::Sni;
use hawser_core::spiffe::TrustDomain;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::join::Seed;
use crate::tls::PeerServers;

/// A token, as it is used. Its secret is wiped from memory when it is dropped.
pub(crate) struct Token {
    /// The root of the servers that gave it out, DER.
    pub(crate) root: Vec<u8>,
    /// Where they are, `host:port`.
    pub(crate) servers: Vec<String>,
    /// Whether a person said where: then the list stands in the place of what the servers know.
    pub(crate) is_manual: bool,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) datacenter: Datacenter,
    /// The UUID of the peering in the cluster that gave it out.
    pub(crate) peering: String,
    pub(crate) secret: Zeroizing<Vec<u8>>,
}

/// The token's text under its base64, in Consul's keys.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Raw {
    #[serde(rename = "CA", default, deserialize_with = "or_default")]
    ca: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    manual_server_addresses: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    server_addresses: Vec<String>,
    #[serde(default)]
    server_name: String,
    #[serde(rename = "PeerID", default)]
    peer_id: String,
    #[serde(default)]
    establishment_secret: Zeroizing<String>,
    #[serde(default)]
    remote: RawRemote,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRemote {
    partition: String,
    datacenter: String,
}

/// Why a text is no peering token. The text itself is never repeated.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum InvalidToken {
    #[error("it is longer than {TOKEN_OCTETS_MAX} octets")]
    TooLong,
    #[error("it is not base64: copy it whole, as it was printed")]
    Encoding,
    #[error("it holds no JSON of a token: copy it whole, as it was printed")]
    Json,
    #[error("{field}: {why}")]
    Field { field: &'static str, why: String },
}

fn field(field: &'static str, why: impl Into<String>) -> InvalidToken {
    InvalidToken::Field { field, why: why.into() }
}

impl Token {
    /// The text that is handed over.
    pub(crate) fn reveal(&self) -> Zeroizing<String> {
        let addresses = |wanted| if wanted { self.servers.clone() } else { Vec::new() };
        let raw = Raw {
            ca: vec![crate::identity::pem(&self.root)],
            manual_server_addresses: addresses(self.is_manual),
            server_addresses: addresses(!self.is_manual),
            server_name: self.server_name().to_string(),
            peer_id: self.peering.clone(),
            establishment_secret: Zeroizing::new(URL_SAFE_NO_PAD.encode(&*self.secret)),
            remote: RawRemote { partition: String::new(), datacenter: self.datacenter.to_string() },
        };
        let json = serde_json::to_vec(&raw).map(Zeroizing::new).unwrap_or_default();
        Zeroizing::new(STANDARD.encode(&*json))
    }

    /// Reads a token. Addresses given by hand come in the place of others.
    ///
    /// # Errors
    /// [`InvalidToken`], which names the key.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidToken> {
        if text.len() > TOKEN_OCTETS_MAX {
            return Err(InvalidToken::TooLong);
        }
        let json = STANDARD.decode(text.trim()).map_err(|_| InvalidToken::Encoding)?;
        let json = Zeroizing::new(json);
        let raw: Raw = serde_json::from_slice(&json).map_err(|_| InvalidToken::Json)?;
        let [pem] = raw.ca.as_slice() else {
            return Err(field("CA", "there must be one, the root of the peer's servers"));
        };
        let root = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| field("CA", "it is no certificate in PEM"))?;
        let Ok(Sni::Servers { datacenter, trust_domain }) = raw.server_name.parse() else {
            return Err(field("ServerName", "it is not server.<dc>.peering.<trust domain>"));
        };
        if raw.remote.datacenter != datacenter.as_str() {
            return Err(field("Remote.Datacenter", "it is not that of ServerName"));
        }
        let is_manual = !raw.manual_server_addresses.is_empty();
        let servers = if is_manual { raw.manual_server_addresses } else { raw.server_addresses };
        check_addresses(&servers).map_err(|why| field("ServerAddresses", why))?;
        let secret = URL_SAFE_NO_PAD.decode(&*raw.establishment_secret);
        let secret = Zeroizing::new(secret.unwrap_or_default());
        if secret.len() != SECRET_OCTETS {
            return Err(field("EstablishmentSecret", "it is no secret of 32 octets in base64url"));
        }
        if raw.peer_id.is_empty() || raw.peer_id.len() > PEERING_ID_OCTETS_MAX {
            return Err(field("PeerID", "it is no UUID"));
        }
        let (root, peering) = (root.to_vec(), raw.peer_id);
        Ok(Self { root, servers, is_manual, trust_domain, datacenter, peering, secret })
    }

    /// What the servers that gave it out are asked for.
    pub(crate) fn server_name(&self) -> Sni {
        let (datacenter, trust_domain) = (self.datacenter.clone(), self.trust_domain.clone());
        Sni::Servers { datacenter, trust_domain }
    }

    /// What those servers are believed by.
    pub(crate) fn believes(&self) -> PeerServers {
        PeerServers {
            trust_domain: self.trust_domain.clone(),
            datacenter: self.datacenter.clone(),
            roots: vec![Arc::from(&self.root[..])],
        }
    }
}

/// What of a secret is stored.
pub(crate) fn hash(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Whether `addresses` are some, not too many, and each `host:port`.
///
/// # Errors
/// The text says which is not.
pub(crate) fn check_addresses(addresses: &[String]) -> Result<(), String> {
    if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
        return Err(format!("there are {}, and 1 to {ADDRESSES_MAX} must be", addresses.len()));
    }
    let is_good = |text: &&String| Seed::parse(text).is_ok() && has_port(text);
    match addresses.iter().find(|text| !is_good(text)) {
        Some(wrong) => {
            let shown: String = wrong.chars().take(ADDRESS_SHOWN).collect();
            Err(format!("{shown:?} is not host:port"))
        }
        None => Ok(()),
    }
}

fn has_port(text: &str) -> bool {
    text.parse::<std::net::SocketAddr>().is_ok()
        || text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.contains(':') && port.parse::<u16>().is_ok_and(|port| port > 0)
        })
}

/// Go writes an empty list as null.
fn or_default<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

pub(crate) const SECRET_OCTETS: usize = 32;
pub(crate) const ADDRESSES_MAX: usize = 64;
pub(crate) const PEERING_ID_OCTETS_MAX: usize = 64;
const TOKEN_OCTETS_MAX: usize = 32 * 1024;
const ADDRESS_SHOWN: usize = 64;

#[cfg(test)]
mod tests {
    use hawser_fuzz::Target;
    use serde_json::{Value, json};

    use super::*;
    use crate::identity::{Identity, OperatorKey};

    fn token(is_manual: bool) -> Token {
        let key = OperatorKey::generate().expect("randomness");
        let (datacenter, node) = ("dc1".parse().expect("a name"), "s1".parse().expect("a name"));
        let identity = Identity::new(&key, &datacenter, &node).expect("an identity");
        Token {
            root: identity.server_root_der().to_vec(),
            servers: vec!["10.0.0.1:8300".to_owned(), "peer.example.com:8443".to_owned()],
            is_manual,
            trust_domain: identity.trust_domain().clone(),
            datacenter,
            peering: "b9f7c1f0".to_owned(),
            secret: Zeroizing::new(vec![7; SECRET_OCTETS]),
        }
    }

    fn json_of(token: &Token) -> Value {
        let json = STANDARD.decode(&*token.reveal()).expect("base64");
        serde_json::from_slice(&json).expect("JSON")
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        for is_manual in [false, true] {
            let made = token(is_manual);
            let read = Token::parse(&format!("{}\n", &*made.reveal())).expect("its own text");
            assert_eq!((&read.root, &read.servers), (&made.root, &made.servers));
            assert_eq!((&*read.secret, &read.peering), (&*made.secret, &made.peering));
            assert_eq!((read.is_manual, read.server_name()), (is_manual, made.server_name()));
        }
        let json = json_of(&token(true));
        assert_eq!(json["ServerAddresses"], json!([]));
        assert_eq!(json["ManualServerAddresses"][0], "10.0.0.1:8300");
        assert_eq!(json["Remote"], json!({ "Partition": "", "Datacenter": "dc1" }));
    }

    #[test]
    fn what_is_no_token_is_refused_by_its_key() {
        let with = |key: &str, value: Value| {
            let mut json = json_of(&token(false));
            json[key] = value;
            STANDARD.encode(json.to_string())
        };
        let cases = [
            ("%".to_owned(), "base64"),
            (STANDARD.encode("{"), "JSON"),
            ("A".repeat(TOKEN_OCTETS_MAX + 1), "longer"),
            (with("CA", json!([])), "CA"),
            (with("CA", Value::Null), "CA"),
            (with("CA", json!(["-----BEGIN"])), "CA"),
            (with("ServerName", json!("web.default.dc1.internal.x.consul")), "ServerName"),
            (with("Remote", json!({ "Datacenter": "dc2" })), "Remote.Datacenter"),
            (with("ServerAddresses", json!([])), "ServerAddresses"),
            (with("ServerAddresses", json!(["nowhere"])), "\"nowhere\""),
            (with("ServerAddresses", json!(["a:0"])), "\"a:0\""),
            (with("EstablishmentSecret", json!("c2hvcnQ")), "EstablishmentSecret"),
            (with("PeerID", json!("")), "PeerID"),
        ];
        for (text, why) in cases {
            let refused = Token::parse(&text).err().expect(why).to_string();
            assert!(refused.contains(why), "{refused} has no {why}");
        }
    }

    /// What is changed is the JSON: in base64 nearly every change is none.
    #[test]
    fn a_token_is_refused_or_the_same_again() {
        let made = [true, false].map(|is_manual| json_of(&token(is_manual)).to_string());
        let made = made.map(String::into_bytes);
        Target::new("peering_token").also(made).cases(5_000).run(|input| {
            let Ok(token) = Token::parse(&STANDARD.encode(input)) else { return false };
            let same = Token::parse(&token.reveal()).expect("its own text");
            assert_eq!((same.root, same.servers), (token.root, token.servers));
            true
        });
    }
}
