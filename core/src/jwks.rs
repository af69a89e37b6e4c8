//! Key sets: whose signatures on tokens count, as RFC 7517 writes them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// A signature's algorithm: those with a public key, and no others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// The algorithm that a token or key names. `none` and those with a shared secret are none.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// A public key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Material {
    /// RSA: modulus and exponent, big-endian.
    Rsa(Vec<u8>, Vec<u8>),
    /// A point on P-256, uncompressed.
    P256(Vec<u8>),
    /// A point on P-384, uncompressed.
    P384(Vec<u8>),
    /// Ed25519.
    Ed25519(Vec<u8>),
}

/// One key of a set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// Its name.
    pub id: Option<String>,
    /// The one algorithm that it is for; none: any that fits it.
    pub algorithm: Option<Algorithm>,
    /// The key itself.
    pub material: Material,
}

impl Key {
    /// Whether a signature by `algorithm` may be checked with this key.
    pub fn is_for(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384};
        let fits = match self.material {
            Material::Rsa(..) => !matches!(algorithm, EdDsa | Es256 | Es384),
            Material::P256(_) => algorithm == Es256,
            Material::P384(_) => algorithm == Es384,
            Material::Ed25519(_) => algorithm == EdDsa,
        };
        fits && self.algorithm.is_none_or(|own| own == algorithm)
    }
}

/// A provider's keys.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeySet {
    /// At least one, at most [`KEYS_MAX`].
    pub keys: Vec<Key>,
}

/// Why a text is no key set.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidKeySet {
    /// It is no JSON object with a list of keys.
    #[error("it is no JSON object with a list \"keys\"")]
    NoKeys,
    /// No key in it is of use here.
    #[error(
        "no key in it is one that tokens may be signed with: RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519"
    )]
    NoneUsable,
    /// There are too many.
    #[error("{KEYS_MAX} keys are the most")]
    TooMany,
}

impl KeySet {
    /// Reads a key set. Keys of other kinds, or for other uses, are left out, as RFC 7517 §5 asks.
    ///
    /// # Errors
    /// [`InvalidKeySet`].
    pub fn read(json: &[u8]) -> Result<Self, InvalidKeySet> {
        let set: Value = serde_json::from_slice(json).map_err(|_| InvalidKeySet::NoKeys)?;
        let list = set.get("keys").and_then(Value::as_array).ok_or(InvalidKeySet::NoKeys)?;
        if list.len() > KEYS_MAX {
            return Err(InvalidKeySet::TooMany);
        }
        let keys: Vec<Key> = list.iter().filter_map(key).collect();
        if keys.is_empty() { Err(InvalidKeySet::NoneUsable) } else { Ok(Self { keys }) }
    }
}

fn key(jwk: &Value) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let octets = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    let algorithm = match jwk.get("alg") {
        None => None,
        Some(name) => Some(Algorithm::named(name.as_str()?)?),
    };
    let point = |length: usize| {
        let (x, y) = (octets("x")?, octets("y")?);
        (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())
    };
    let material = match (text("kty")?, text("crv")) {
        ("RSA", _) => {
            let (modulus, exponent) = (octets("n")?, octets("e")?);
            let is_fit = RSA_OCTETS.contains(&modulus.len()) && modulus[0] != 0;
            is_fit.then_some(Material::Rsa(modulus, exponent))?
        }
        ("EC", Some("P-256")) => Material::P256(point(32)?),
        ("EC", Some("P-384")) => Material::P384(point(48)?),
        ("OKP", Some("Ed25519")) => {
            Material::Ed25519(octets("x").filter(|octets| octets.len() == 32)?)
        }
        _ => return None,
    };
    Some(Key { id: text("kid").map(str::to_owned), algorithm, material })
}

/// The most keys of one provider.
pub const KEYS_MAX: usize = 64;
const RSA_OCTETS: std::ops::RangeInclusive<usize> = 256..=1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_keys_for_signatures_are_read() {
        let n = URL_SAFE_NO_PAD.encode([0xC5; 256]);
        let small = URL_SAFE_NO_PAD.encode([0xC5; 128]);
        let x = URL_SAFE_NO_PAD.encode([1; 32]);
        let cases = [
            (format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","kid":"a"}}"#), true, "RSA"),
            (format!(r#"{{"kty":"RSA","n":"{small}","e":"AQAB"}}"#), false, "of 1024 bits"),
            (format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","use":"enc"}}"#), false, "to encrypt"),
            (format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","alg":"HS256"}}"#), false, "for HMAC"),
            (format!(r#"{{"kty":"EC","crv":"P-256","x":"{x}","y":"{x}"}}"#), true, "P-256"),
            (format!(r#"{{"kty":"EC","crv":"P-384","x":"{x}","y":"{x}"}}"#), false, "too short"),
            (format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}"#), true, "Ed25519"),
            (format!(r#"{{"kty":"oct","k":"{x}"}}"#), false, "a shared secret"),
            ("7".to_owned(), false, "no key"),
        ];
        for (key, expected, why) in cases {
            let set = KeySet::read(format!(r#"{{"keys":[{key}]}}"#).as_bytes());
            assert_eq!(set.is_ok(), expected, "{why}: {set:?}");
        }
        assert_eq!(KeySet::read(b"[]"), Err(InvalidKeySet::NoKeys));
        let many = format!(r#"{{"keys":[{}0]}}"#, "0,".repeat(KEYS_MAX));
        assert_eq!(KeySet::read(many.as_bytes()), Err(InvalidKeySet::TooMany));
    }

    #[test]
    fn a_key_checks_its_own_algorithm_only() {
        let key = |algorithm, material| Key { id: None, algorithm, material };
        let rsa = || Material::Rsa(vec![], vec![]);
        let cases = [
            (key(None, rsa()), Algorithm::Ps384, true),
            (key(Some(Algorithm::Rs256), rsa()), Algorithm::Ps256, false),
            (key(None, rsa()), Algorithm::Es256, false),
            (key(None, Material::P256(vec![])), Algorithm::Es256, true),
            (key(None, Material::P256(vec![])), Algorithm::Es384, false),
            (key(None, Material::Ed25519(vec![])), Algorithm::EdDsa, true),
        ];
        for (key, algorithm, expected) in cases {
            assert_eq!(key.is_for(algorithm), expected, "{key:?} {algorithm:?}");
        }
        assert_eq!(Algorithm::named("none"), None);
        assert_eq!(Algorithm::named("HS256"), None);
    }
}
