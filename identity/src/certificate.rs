//! What one certificate says by itself: its only name, key, usages and lifetime.

use std::time::Duration;

use aws_lc_rs::digest;
use hawser_core::ca::Validity;
use hawser_core::clock::UnixTime;
use hawser_core::revocation::Serial;
use hawser_core::spiffe::SpiffeId;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519};
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::refusal::Refusal;

/// An identity that a certificate proved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proven {
    /// Who.
    pub id: SpiffeId,
    /// When the certificate holds.
    pub validity: Validity,
}

/// The serial number of a certificate.
///
/// # Errors
/// [`Refusal::Malformed`]
pub fn serial_of(certificate: &[u8]) -> Result<Serial, Refusal> {
    Serial::new(parse(certificate)?.raw_serial()).map_err(|_| Refusal::Malformed)
}

/// Reads who holds `leaf`, whose chain a handshake has verified already: all of
/// [`Anchors::verify`](crate::Anchors::verify) that needs no roots and no clock.
///
/// # Errors
/// [`Refusal`], for what the certificate itself says.
pub fn read(leaf: &[u8]) -> Result<Proven, Refusal> {
    let certificate = parse(leaf)?;
    let id = only_id(&certificate)?;
    Ok(Proven { id, validity: check_fitness(&certificate)? })
}

/// Whom a certificate names: for one's own, which nobody has to prove.
///
/// # Errors
/// [`Refusal`] unless it names exactly one identity and nothing else.
pub fn id_of(certificate: &[u8]) -> Result<SpiffeId, Refusal> {
    only_id(&parse(certificate)?)
}

/// The SubjectPublicKeyInfo of a certificate, DER.
///
/// # Errors
/// [`Refusal::Malformed`]
pub fn public_key_of(certificate: &[u8]) -> Result<Vec<u8>, Refusal> {
    Ok(parse(certificate)?.public_key().raw.to_vec())
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: what a join token pins.
///
/// # Errors
/// [`Refusal::Malformed`]
pub fn pin_of(certificate: &[u8]) -> Result<[u8; 32], Refusal> {
    let key = public_key_of(certificate)?;
    let mut pin = [0; 32];
    pin.copy_from_slice(digest::digest(&digest::SHA256, &key).as_ref());
    Ok(pin)
}

/// Consul's id of a root: SHA-1 of its DER in colon-separated hex. A name, not a protection.
pub fn root_id(der: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der);
    digest.as_ref().iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
}

/// The certificate of `shown` whose key `pin` is the hash of. That alone proves nothing: who shows
/// it need not hold that key.
pub fn find_pinned<'a, 'der>(
    shown: &'a [CertificateDer<'der>],
    pin: &[u8; 32],
) -> Option<&'a CertificateDer<'der>> {
    shown.iter().find(|certificate| pin_of(certificate).is_ok_and(|found| found == *pin))
}

/// The kinds of keys that identities have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyKind {
    /// ECDSA over NIST P-256.
    P256,
    /// Ed25519.
    Ed25519,
}

impl KeyKind {
    /// The kind of a public key; none when it is one that no identity has.
    pub fn of(key: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        let AlgorithmIdentifier { algorithm, parameters } = &key.algorithm;
        if *algorithm == OID_SIG_ED25519 {
            return Some(Self::Ed25519);
        }
        let curve = parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let is_p256 = *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
            && curve.is_some_and(|curve| curve == OID_EC_P256);
        is_p256.then_some(Self::P256)
    }
}

/// A certificate, and nothing after it.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Refusal> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Refusal::Malformed),
    }
}

/// The one name that the certificate holds, a URI. The subject is never read: two names are two
/// ways round a policy.
pub(crate) fn only_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, Refusal> {
    let names = certificate.subject_alternative_name().map_err(|_| Refusal::Malformed)?;
    match names.map(|extension| &extension.value.general_names[..]) {
        Some([GeneralName::URI(uri)]) => Ok(uri.parse()?),
        _ => Err(Refusal::NotOneUri),
    }
}

/// Checks usages, key and lifetime, which webpki leaves to its user.
pub(crate) fn check_fitness(certificate: &X509Certificate<'_>) -> Result<Validity, Refusal> {
    check_usage(certificate)?;
    KeyKind::of(certificate.public_key()).ok_or(Refusal::Key)?;
    check_lifetime(certificate)
}

fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let key_usage = certificate.key_usage().map_err(|_| Refusal::Malformed)?;
    let extended = certificate.extended_key_usage().map_err(|_| Refusal::Malformed)?;
    let constraints = certificate.basic_constraints().map_err(|_| Refusal::Malformed)?;
    let signs_only = key_usage.is_some_and(|extension| {
        let usage = extension.value;
        usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign()
    });
    let authenticates_only = extended.is_some_and(|extension| {
        let usage = extension.value;
        let others = usage.any
            || usage.code_signing
            || usage.email_protection
            || usage.time_stamping
            || usage.ocsp_signing
            || !usage.other.is_empty();
        usage.client_auth && usage.server_auth && !others
    });
    let is_ca = constraints.is_some_and(|extension| extension.value.ca);
    if signs_only && authenticates_only && !is_ca { Ok(()) } else { Err(Refusal::Usage) }
}

fn check_lifetime(certificate: &X509Certificate<'_>) -> Result<Validity, Refusal> {
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let moment = |secs: i64| u64::try_from(secs).map_err(|_| Refusal::Lifetime);
    let (from, until) = (moment(from)?, moment(until)?);
    if until.saturating_sub(from) > LIFETIME_MAX.as_secs() {
        return Err(Refusal::Lifetime);
    }
    Ok(Validity { not_before: UnixTime::from_secs(from), not_after: UnixTime::from_secs(until) })
}

/// What a stolen certificate, or one that a stolen authority signed, is good for at most.
pub const LIFETIME_MAX: Duration = Duration::from_secs(7 * 86_400);
