//! Signatures on tokens, checked in one place for servers and proxies alike.

use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use hawser_core::jwks::{Algorithm, Key, Material};
use hawser_core::jwt::Verifier;

/// Checks signatures with the library that also does TLS.
#[derive(Clone, Copy, Debug)]
pub struct Signatures;

impl Verifier for Signatures {
    fn is_signed(&self, key: &Key, algorithm: Algorithm, signed: &[u8], signature: &[u8]) -> bool {
        let plain = |algorithm: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(signed, signature).is_ok()
        };
        match (&key.material, algorithm) {
            (Material::Rsa(n, e), algorithm) => {
                let parameters = match algorithm {
                    Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::Rs384 => &signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::Rs512 => &signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::Ps256 => &signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::Ps384 => &signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::Ps512 => &signature::RSA_PSS_2048_8192_SHA512,
                    Algorithm::Es256 | Algorithm::Es384 | Algorithm::EdDsa => return false,
                };
                let key = RsaPublicKeyComponents { n, e };
                key.verify(parameters, signed, signature).is_ok()
            }
            (Material::P256(point), Algorithm::Es256) => {
                plain(&signature::ECDSA_P256_SHA256_FIXED, point)
            }
            (Material::P384(point), Algorithm::Es384) => {
                plain(&signature::ECDSA_P384_SHA384_FIXED, point)
            }
            (Material::Ed25519(point), Algorithm::EdDsa) => plain(&signature::ED25519, point),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    };

    use super::*;

    #[test]
    fn a_signature_counts_only_by_its_own_key_algorithm_and_text() {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random);
        let pkcs8 = pkcs8.expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref())
            .expect("good");
        let signature = pair.sign(&random, b"text").expect("signed");
        let key = |material| Key { id: None, algorithm: None, material };
        let p256 = key(Material::P256(pair.public_key().as_ref().to_vec()));
        let is = |key: &Key, algorithm, text: &[u8]| {
            Signatures.is_signed(key, algorithm, text, signature.as_ref())
        };
        assert!(is(&p256, Algorithm::Es256, b"text"));
        assert!(!is(&p256, Algorithm::Es256, b"Text"));
        assert!(!is(&p256, Algorithm::Rs256, b"text"));
        let other = key(Material::P256(vec![4; 65]));
        assert!(!is(&other, Algorithm::Es256, b"text"), "no point on the curve");

        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("good");
        let signature = pair.sign(b"text");
        let ed25519 = key(Material::Ed25519(pair.public_key().as_ref().to_vec()));
        let is = |algorithm, signature: &[u8]| {
            Signatures.is_signed(&ed25519, algorithm, b"text", signature)
        };
        assert!(is(Algorithm::EdDsa, signature.as_ref()));
        assert!(!is(Algorithm::Es256, signature.as_ref()));
        assert!(!is(Algorithm::EdDsa, &[]));
    }
}
