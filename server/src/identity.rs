//! Who a server is: everything that follows from the operator key, and the certificate it shows.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf;
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hawser_core::ca::Validity;
use hawser_core::clock::UnixTime;
use hawser_core::name::{Datacenter, NodeName};
use hawser_core::spiffe::{Role, SpiffeId, TrustDomain};
use hawser_identity::pin_of;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// The secret that all servers of one cluster share, and nobody else knows.
///
/// The cluster's name, the root of its servers' identities and the key that seals its
/// certificate authority all follow from it: a server that holds it needs nothing else to prove
/// itself to its peers. It is wiped from memory when dropped and cannot be printed.
#[derive(Clone)]
pub struct OperatorKey(Zeroizing<[u8; KEY_OCTETS]>);

/// Why a text is no operator key. The text itself is never repeated.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidOperatorKey {
    /// It is not base64.
    #[error("the operator key is not base64: make one with `hawser keygen`")]
    Encoding,
    /// It does not decode to 32 octets.
    #[error("the operator key has {octets} octets, not 32: make one with `hawser keygen`")]
    Length {
        /// How many it has.
        octets: usize,
    },
    /// Every octet is the same.
    #[error("the operator key is not random: make one with `hawser keygen`")]
    NotRandom,
}

impl OperatorKey {
    /// A new key, from the system's random source.
    ///
    /// # Errors
    /// [`NoRandomness`] when that source fails.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut key = Zeroizing::new([0; KEY_OCTETS]);
        aws_lc_rs::rand::fill(&mut *key).map_err(|_| NoRandomness)?;
        Ok(Self(key))
    }

    /// The key as its file holds it: base64, for `hawser keygen` alone.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.0.as_slice()))
    }

    /// Reads the key from a file that only its owner can read.
    ///
    /// # Errors
    /// [`ReadKeyError`], which names the file and says what to do.
    pub fn read(path: &Path) -> Result<Self, ReadKeyError> {
        let refused = |source| ReadKeyError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(refused)?;
        check_private(path, &file)?;
        let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_OCTETS_MAX));
        file.take(KEY_FILE_OCTETS_MAX as u64).read_to_string(&mut text).map_err(refused)?;
        text.parse().map_err(|source| ReadKeyError::Invalid { path: path.to_owned(), source })
    }

    /// Another secret that follows from this one, for `purpose` alone (HKDF-SHA256, RFC 5869).
    fn derive(&self, purpose: &str, out: &mut [u8]) {
        struct Octets(usize);
        impl hkdf::KeyType for Octets {
            fn len(&self) -> usize {
                self.0
            }
        }
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, HKDF_SALT);
        let octets = Octets(out.len());
        salt.extract(&*self.0)
            .expand(&[purpose.as_bytes()], octets)
            .and_then(|material| material.fill(out))
            .expect("HKDF yields up to 255 blocks, and all that is asked for here is one");
    }
}

impl FromStr for OperatorKey {
    type Err = InvalidOperatorKey;

    fn from_str(text: &str) -> Result<Self, InvalidOperatorKey> {
        let decoded = BASE64.decode(text.trim()).map_err(|_| InvalidOperatorKey::Encoding)?;
        let decoded = Zeroizing::new(decoded);
        let length = InvalidOperatorKey::Length { octets: decoded.len() };
        let key = Zeroizing::new(<[u8; KEY_OCTETS]>::try_from(&decoded[..]).map_err(|_| length)?);
        if key.iter().all(|octet| *octet == key[0]) {
            return Err(InvalidOperatorKey::NotRandom);
        }
        Ok(Self(key))
    }
}

/// Why an operator key file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadKeyError {
    /// It cannot be read.
    #[error("cannot read the operator key {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner can get at it.
    #[error(
        "the operator key {} can be read by others (mode {mode:04o}): run `chmod 600 {}`, and \
         make a new key if it was exposed",
        path.display(), path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no regular file.
    #[error("the operator key {} is not a regular file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
    },
    /// It holds no key.
    #[error("in {}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Why.
        source: InvalidOperatorKey,
    },
}

/// Refuses a secret's file that others may read, or that its group may change.
///
/// Reading by the group is let through: systemd hands credentials to an unprivileged service by an
/// access list, and its mask shows as the group's bits.
///
/// # Errors
/// [`ReadKeyError`] saying what is wrong with it.
pub fn check_private(path: &Path, file: &File) -> Result<(), ReadKeyError> {
    let metadata =
        file.metadata().map_err(|source| ReadKeyError::Io { path: path.to_owned(), source })?;
    if !metadata.is_file() {
        return Err(ReadKeyError::NotAFile { path: path.to_owned() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & EXPOSED_BITS != 0 {
        return Err(ReadKeyError::Exposed { path: path.to_owned(), mode });
    }
    Ok(())
}

/// The system's random source failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the system's random source failed")]
pub struct NoRandomness;

/// Why a server's identity could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A certificate could not be made.
    #[error("cannot make the server's certificate")]
    Certificate(#[from] rcgen::Error),
    /// TLS does not take the key that was just made.
    #[error("cannot use the server's key")]
    Key(#[from] rustls::Error),
    /// No random numbers.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Seals what the servers keep in the log and in snapshots, so that neither is worth stealing.
pub struct Sealer {
    key: RandomizedNonceKey,
    bound_to: String,
}

/// Why sealed octets do not open.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// Sealed by a later version.
    #[error("it was sealed by a version that this one does not know")]
    Version,
    /// Sealed with another operator key, or changed since.
    #[error("it does not open with this operator key: every server needs the same one")]
    Mismatch,
}

impl Sealer {
    /// Seals `secret` (AES-256-GCM, a nonce of its own each time).
    ///
    /// # Panics
    /// When the system's random source fails.
    pub fn seal(&self, secret: &[u8]) -> Vec<u8> {
        let mut body = Vec::with_capacity(secret.len() + TAG_OCTETS);
        body.extend_from_slice(secret);
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(self.bound_to.as_bytes()), &mut body)
            .expect("sealing fails only without random numbers or beyond 64 GiB");
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(SEAL_VERSION);
        sealed.extend_from_slice(nonce.as_ref());
        sealed.append(&mut body);
        sealed
    }

    /// What was sealed.
    ///
    /// # Errors
    /// [`OpenError`]
    pub fn open(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (version, rest) = sealed.split_first().ok_or(OpenError::Mismatch)?;
        if *version != SEAL_VERSION {
            return Err(OpenError::Version);
        }
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or(OpenError::Mismatch)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError::Mismatch)?;
        let mut body = Zeroizing::new(body.to_vec());
        let opened = self
            .key
            .open_in_place(nonce, Aad::from(self.bound_to.as_bytes()), &mut body)
            .map_err(|_| OpenError::Mismatch)?
            .len();
        body.truncate(opened);
        Ok(body)
    }
}

/// Who this server is.
///
/// Its own key is new in each process and never leaves it; what it shares with its peers follows
/// from the operator key and is the same on all of them, down to the octet.
pub struct Identity {
    cluster_id: String,
    id: SpiffeId,
    root_der: CertificateDer<'static>,
    pin: [u8; 32],
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
    tls_key: Arc<dyn rustls::sign::SigningKey>,
    sealer: Sealer,
    shown: ArcSwap<Shown>,
}

/// The certificate that is shown at present.
struct Shown {
    validity: Validity,
    certified: Arc<CertifiedKey>,
}

impl Identity {
    /// The identity of server `node` in the cluster that `operator_key` makes.
    ///
    /// # Errors
    /// [`IdentityError`] when the system has no random numbers to make a key of.
    pub fn new(
        operator_key: &OperatorKey,
        datacenter: &Datacenter,
        node: &NodeName,
    ) -> Result<Self, IdentityError> {
        let cluster_id = operator_key.cluster_id();
        let trust_domain: TrustDomain = format!("{cluster_id}.consul")
            .parse()
            .expect("a UUID in lower case is a valid first label of a trust domain");
        let (root_der, pin, issuer) = server_root(operator_key, &cluster_id)?;
        let mut seal = Zeroizing::new([0; KEY_OCTETS]);
        operator_key.derive("seal", &mut *seal);
        let sealer = Sealer {
            key: RandomizedNonceKey::new(&AES_256_GCM, &*seal)
                .expect("AES-256-GCM takes 32 octets"),
            bound_to: cluster_id.clone(),
        };
        let key = KeyPair::generate()?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der().to_vec()));
        let tls_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?;
        let role = Role::Server(node.clone());
        let id = SpiffeId { trust_domain, datacenter: datacenter.clone(), role };
        let shown = show(&id, &issuer, &root_der, &key, &tls_key, now())?;
        let shown = ArcSwap::from_pointee(shown);
        Ok(Self { cluster_id, id, root_der, pin, issuer, key, tls_key, sealer, shown })
    }

    /// The cluster's UUID.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// `<cluster id>.consul`
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.id.trust_domain
    }

    /// The cluster's datacenter.
    pub fn datacenter(&self) -> &Datacenter {
        &self.id.datacenter
    }

    /// This server's own identity.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// SHA-256 of the public key (SPKI) of the root of all server identities: what a join token
    /// tells an agent to trust.
    pub fn pin(&self) -> [u8; 32] {
        self.pin
    }

    /// The root of all server identities, DER. No agent or service can get a certificate of it.
    pub fn server_root_der(&self) -> &[u8] {
        &self.root_der
    }

    /// Seals what this cluster's servers keep for each other.
    pub fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// The certificate to show at present, with its key: made anew once half its life has passed.
    pub fn certificate(&self) -> Arc<CertifiedKey> {
        self.certificate_at(now())
    }

    fn certificate_at(&self, now: UnixTime) -> Arc<CertifiedKey> {
        let shown = self.shown.load();
        let fresh_until = shown.validity.renew_at(now, 0).unwrap_or_default();
        // A clock that was set back makes the present certificate one of the future.
        if now < fresh_until && shown.validity.holds_at(now) {
            return shown.certified.clone();
        }
        match show(&self.id, &self.issuer, &self.root_der, &self.key, &self.tls_key, now) {
            Ok(next) => {
                let certified = next.certified.clone();
                self.shown.store(Arc::new(next));
                certified
            }
            Err(error) => {
                tracing::error!(%error, "cannot renew the server's own certificate");
                shown.certified.clone()
            }
        }
    }
}

impl OperatorKey {
    /// [`Identity::pin`] of every server that has this key. It is no secret.
    ///
    /// # Errors
    /// [`IdentityError`] when the root cannot be made.
    pub fn pin(&self) -> Result<[u8; 32], IdentityError> {
        Ok(server_root(self, &self.cluster_id())?.1)
    }

    fn cluster_id(&self) -> String {
        let mut uuid = [0; 16];
        self.derive("cluster id", &mut uuid);
        uuid::Builder::from_random_bytes(uuid).into_uuid().to_string()
    }
}

/// The root of all server identities: a fixed certificate over a derived Ed25519 key.
///
/// Ed25519 signs without random numbers, so every server makes the same octets.
fn server_root(
    operator_key: &OperatorKey,
    cluster_id: &str,
) -> Result<(CertificateDer<'static>, [u8; 32], Issuer<'static, KeyPair>), IdentityError> {
    let mut seed = Zeroizing::new([0; KEY_OCTETS]);
    operator_key.derive("server root", &mut *seed);
    let pkcs8 = Ed25519KeyPair::from_seed_unchecked(&*seed)
        .expect("every 32 octets are an Ed25519 seed")
        .to_pkcs8()
        .expect("a key pair held in memory serialises");
    let key = KeyPair::from_pkcs8_der_and_sign_algo(
        &PrivatePkcs8KeyDer::from(pkcs8.as_ref()),
        &rcgen::PKCS_ED25519,
    )?;
    let mut params = CertificateParams::default();
    params.not_before = time::macros::datetime!(2025-01-01 00:00 UTC);
    params.not_after = time::macros::datetime!(2125-01-01 00:00 UTC);
    params.serial_number = Some(SerialNumber::from(1));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Hawser servers {cluster_id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?.der().clone();
    let pin = pin_of(&certificate).expect("what was just made can be read");
    Ok((certificate, pin, Issuer::new(params, key)))
}

/// A server certificate that holds from a little before `now`.
fn show(
    id: &SpiffeId,
    issuer: &Issuer<'static, KeyPair>,
    root: &CertificateDer<'static>,
    key: &KeyPair,
    tls_key: &Arc<dyn rustls::sign::SigningKey>,
    now: UnixTime,
) -> Result<Shown, IdentityError> {
    let validity = validity(now, SERVER_LIFETIME);
    let leaf = leaf_params(id, validity, &serial::<16>()?)?.signed_by(key, issuer)?;
    // The root goes along, because a joining agent knows only its hash.
    let chain = vec![leaf.der().clone(), root.clone()];
    Ok(Shown { validity, certified: Arc::new(CertifiedKey::new(chain, tls_key.clone())) })
}

/// What every certificate of an identity says: one URI, both usages, and nothing else.
pub(crate) fn leaf_params(
    id: &SpiffeId,
    validity: Validity,
    serial: &[u8],
) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.not_before = offset_time(validity.not_before);
    params.not_after = offset_time(validity.not_after);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// `lifetime` from now on, begun a little early for clocks that run behind, in whole seconds
/// because that is what a certificate can say.
pub(crate) fn validity(now: UnixTime, lifetime: Duration) -> Validity {
    let whole = UnixTime::from_secs(now.as_secs());
    Validity { not_before: whole.minus(BACKDATED), not_after: whole.plus(lifetime) }
}

/// A random positive serial number of `OCTETS` octets (RFC 5280 §4.1.2.2).
pub(crate) fn serial<const OCTETS: usize>() -> Result<[u8; OCTETS], NoRandomness> {
    let mut serial = [0; OCTETS];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| NoRandomness)?;
    // Positive, and no shorter than it looks.
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

/// A moment as the certificate library has it.
pub(crate) fn offset_time(time: UnixTime) -> OffsetDateTime {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|secs| OffsetDateTime::from_unix_timestamp(secs).ok())
        .unwrap_or(time::macros::datetime!(9999-12-31 23:59:59 UTC))
}

/// A certificate as PEM text.
pub(crate) fn pem(der: &[u8]) -> String {
    let encoded = BASE64.encode(der);
    let mut text = String::with_capacity(encoded.len() + encoded.len() / PEM_COLUMNS + 64);
    text.push_str("-----BEGIN CERTIFICATE-----\n");
    for (at, octet) in encoded.char_indices() {
        text.push(octet);
        if (at + 1) % PEM_COLUMNS == 0 {
            text.push('\n');
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// The wall clock.
pub(crate) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

const PEM_COLUMNS: usize = 64;
const KEY_OCTETS: usize = 32;
const KEY_FILE_OCTETS_MAX: usize = 4096;
/// Anything for others; changing for the group.
const EXPOSED_BITS: u32 = 0o027;
const HKDF_SALT: &[u8] = b"hawser operator key v1";
const SEAL_VERSION: u8 = 1;
const TAG_OCTETS: usize = 16;
const SERVER_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How far a peer's clock may run behind the issuer's.
const BACKDATED: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use sha2::{Digest, Sha256};

    use super::*;

    fn key(octet: u8) -> OperatorKey {
        let mut octets = [octet; KEY_OCTETS];
        octets[0] ^= 1;
        OperatorKey(Zeroizing::new(octets))
    }

    fn identity(key: &OperatorKey, node: &str) -> Identity {
        let datacenter = "dc1".parse().expect("a name");
        Identity::new(key, &datacenter, &node.parse().expect("a name")).expect("an identity")
    }

    #[test]
    fn only_32_random_octets_are_a_key() {
        let made = OperatorKey::generate().expect("randomness");
        let again: OperatorKey = format!("{}\n", &*made.reveal()).parse().expect("its own text");
        assert_eq!(*again.0, *made.0);
        let cases = [
            ("", InvalidOperatorKey::Length { octets: 0 }),
            ("???", InvalidOperatorKey::Encoding),
            ("c2hvcnQ=", InvalidOperatorKey::Length { octets: 5 }),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", InvalidOperatorKey::NotRandom),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<OperatorKey>().err(), Some(expected), "{text:?}");
        }
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("operator.key");
        std::fs::write(&path, &*key(7).reveal()).expect("written");
        for (mode, good) in
            [(0o600, true), (0o400, true), (0o440, true), (0o644, false), (0o660, false)]
        {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
            let read = OperatorKey::read(&path);
            assert_eq!(read.is_ok(), good, "{mode:o}");
            if let Err(error) = read {
                assert!(error.to_string().contains("chmod 600"), "{error}");
            }
        }
        assert!(matches!(OperatorKey::read(folder.path()), Err(ReadKeyError::NotAFile { .. })));
    }

    #[test]
    fn what_servers_share_is_the_same_on_all_and_on_no_other_cluster() {
        let (one, two, other) =
            (identity(&key(1), "s1"), identity(&key(1), "s2"), identity(&key(2), "s1"));
        assert_eq!(one.cluster_id(), two.cluster_id());
        assert_eq!(one.server_root_der(), two.server_root_der());
        assert_eq!(one.pin(), two.pin());
        assert_ne!(one.cluster_id(), other.cluster_id());
        assert_ne!(one.pin(), other.pin());
        let uri = format!("spiffe://{}.consul/agent/server/dc/dc1/id/s1", one.cluster_id());
        assert_eq!(one.id().to_string(), uri);
    }

    #[test]
    fn the_pin_is_the_hash_of_the_roots_public_key() {
        let identity = identity(&key(1), "s1");
        let (rest, root) =
            x509_parser::parse_x509_certificate(identity.server_root_der()).expect("DER");
        assert!(rest.is_empty());
        assert_eq!(<[u8; 32]>::from(Sha256::digest(root.public_key().raw)), identity.pin());
        assert_eq!(key(1).pin().expect("made"), identity.pin());
    }

    #[test]
    fn what_is_sealed_opens_on_every_server_and_nowhere_else() {
        let (one, two, other) =
            (identity(&key(1), "s1"), identity(&key(1), "s2"), identity(&key(2), "s1"));
        let sealed = one.sealer().seal(b"secret");
        assert!(!sealed.windows(6).any(|window| window == b"secret"));
        assert_ne!(sealed, one.sealer().seal(b"secret"), "each nonce is new");
        assert_eq!(&two.sealer().open(&sealed).expect("the same key")[..], b"secret");
        assert_eq!(other.sealer().open(&sealed).err(), Some(OpenError::Mismatch));
        for at in 1..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(one.sealer().open(&changed).err(), Some(OpenError::Mismatch), "octet {at}");
        }
        assert_eq!(one.sealer().open(&[]).err(), Some(OpenError::Mismatch));
        assert_eq!(one.sealer().open(&[1, 2, 3]).err(), Some(OpenError::Mismatch));
        assert_eq!(one.sealer().open(&[9, 2, 3]).err(), Some(OpenError::Version));
    }

    #[test]
    fn the_certificate_is_made_anew_at_half_its_life_and_when_the_clock_goes_back() {
        let identity = identity(&key(1), "s1");
        let now = now();
        let first = identity.certificate_at(now);
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        assert!(Arc::ptr_eq(&first, &identity.certificate_at(now.plus(hours(11)))));
        let second = identity.certificate_at(now.plus(hours(13)));
        assert!(!Arc::ptr_eq(&first, &second), "half its life has passed");
        let third = identity.certificate_at(now.plus(hours(100)));
        assert!(!Arc::ptr_eq(&second, &third), "it ran out");
        let fourth = identity.certificate_at(now);
        assert!(!Arc::ptr_eq(&third, &fourth), "it lies in the future");
    }
}
