//! The mesh's certificate authority: custody of its keys, and certificates for nodes and services.
//!
//! From a signing request only the public key is taken. Everything else in a certificate follows
//! from what the servers know themselves.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hawser_core::ca::{Authority, Due, Intermediate, Policy, Progress, Root, Validity};
use hawser_core::clock::{Index, UnixTime};
use hawser_core::name::{NodeName, ServiceName};
use hawser_core::revocation::{Subject, node_tag};
use hawser_core::spiffe::{Role, SpiffeId};
use hawser_core::state::{Command, State};
use hawser_identity::{KeyKind, LIFETIME_MAX, root_id};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest as _, Sha256};
use x509_parser::asn1_rs::Tag;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{
    Identity, IdentityError, NoRandomness, OpenError, leaf_params, offset_time, serial, validity,
};

/// A certificate as its owner gets it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, then the intermediate that signed it, DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots to trust others by, DER.
    pub roots: Vec<Arc<[u8]>>,
    /// The id of the root that vouches for it.
    pub root: Arc<str>,
    /// When it holds.
    pub validity: Validity,
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// There is no authority yet: the cluster has just begun.
    #[error("the cluster has no certificate authority yet: try again in a moment")]
    NoAuthority,
    /// More than 16 KiB.
    #[error("the signing request is longer than {CSR_OCTETS_MAX} octets")]
    TooLong,
    /// It is no PKCS #10 request, DER.
    #[error("the signing request is malformed: send PKCS #10 as DER")]
    Malformed,
    /// It is not signed by the key that it asks for.
    #[error("the signing request is not signed by its own key")]
    NoProof,
    /// The key is neither P-256 nor Ed25519.
    #[error("the signing request's key is not allowed: use ECDSA P-256 or Ed25519")]
    Key,
    /// The name cannot stand in an identity.
    #[error(
        "the name can stand in no SPIFFE ID: use a-z, 0-9 and - for services, and letters, \
             digits, -, _ and . for nodes"
    )]
    Name,
    /// Too many requests of one node, or of all.
    #[error("too many signing requests: try again in {} ms", retry_after.as_millis())]
    TooMany {
        /// When to try again.
        retry_after: Duration,
    },
    /// The authority's key does not open.
    #[error("cannot open the certificate authority's key")]
    Sealed(#[from] OpenError),
    /// What is asked for is revoked.
    #[error("{0} is revoked: nothing is signed for it until that is undone")]
    Revoked(Subject),
    /// A rotation goes on.
    #[error("a rotation of roots is under way: wait until `hawser connect ca roots` shows one")]
    Rotating,
    /// The root that was given is trusted already.
    #[error("this root is trusted already")]
    Known,
    /// The name of the root that was given cannot be put into another certificate.
    #[error("RootCert: its subject must be of UTF8String, PrintableString and IA5String, one each")]
    Subject,
    /// The authority ran out, and no leader renewed it.
    #[error("the certificate authority ran out: a leader must renew it")]
    RanOut,
    /// The certificate could not be made.
    #[error("cannot make the certificate")]
    Make(#[from] IdentityError),
}

impl From<rcgen::Error> for SignError {
    fn from(error: rcgen::Error) -> Self {
        Self::Make(error.into())
    }
}

impl From<NoRandomness> for SignError {
    fn from(error: NoRandomness) -> Self {
        Self::Make(error.into())
    }
}

/// A root with its key, before that is sealed: one that was just made, or an operator's own.
pub struct OwnRoot {
    certificate: Vec<u8>,
    key: KeyPair,
    name: String,
    serial: u64,
    validity: Validity,
}

/// Why an operator's root is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidRoot {
    /// It is no certificate.
    #[error("RootCert must be one certificate as PEM")]
    Certificate,
    /// It is no key that signs here.
    #[error("PrivateKey must be an ECDSA P-256 key as PEM, PKCS #8 or SEC 1")]
    Key,
    /// They do not belong together.
    #[error("PrivateKey is not the key of RootCert")]
    Mismatch,
    /// It may not vouch for others.
    #[error(
        "RootCert must be a self-signed certificate authority that may sign an intermediate: \
         CA:TRUE, without a path length of 0, with the usage keyCertSign"
    )]
    NoAuthority,
    /// It does not hold.
    #[error("RootCert does not hold now, or ends within a day")]
    Expired,
}

impl OwnRoot {
    /// Reads an operator's root and its key, both PEM.
    ///
    /// # Errors
    /// [`InvalidRoot`]
    pub fn parse(certificate: &str, key: &str, now: UnixTime) -> Result<Self, InvalidRoot> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| InvalidRoot::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| InvalidRoot::Key)?;
        let algorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
        let key = KeyPair::from_der_and_sign_algo(&key, algorithm).map_err(|_| InvalidRoot::Key)?;
        let (rest, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|_| InvalidRoot::Certificate)?;
        if !rest.is_empty() {
            return Err(InvalidRoot::Certificate);
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(InvalidRoot::Mismatch);
        }
        let constraints = parsed.basic_constraints().ok().flatten();
        let may_sign = constraints.is_some_and(|constraints| {
            constraints.value.ca && constraints.value.path_len_constraint != Some(0)
        });
        let usage = parsed.key_usage().ok().flatten();
        let has_usage = usage.is_none_or(|usage| usage.value.key_cert_sign());
        if !may_sign || !has_usage || parsed.verify_signature(None).is_err() {
            return Err(InvalidRoot::NoAuthority);
        }
        let moment = |secs: i64| UnixTime::from_secs(u64::try_from(secs).unwrap_or(0));
        let validity = Validity {
            not_before: moment(parsed.validity().not_before.timestamp()),
            not_after: moment(parsed.validity().not_after.timestamp()),
        };
        if !validity.holds_at(now) || !validity.holds_at(now.plus(DAY)) {
            return Err(InvalidRoot::Expired);
        }
        let serial = parsed.raw_serial().iter().rev().take(8).rev();
        let serial = serial.fold(0, |sum, octet| sum << 8 | u64::from(*octet));
        let name = parsed.subject().to_string();
        Ok(Self { certificate: der.to_vec(), key, name, serial, validity })
    }
}

/// Signs for nodes and services, with the key that the servers keep sealed in their state.
pub struct Ca {
    identity: Arc<Identity>,
    leaf_lifetime: Duration,
    opened: Mutex<Option<Arc<Opened>>>,
    of_node: Buckets<NodeName>,
    of_all: Buckets<()>,
}

/// SHA-256 of the public key (SPKI) that a signing request is for and proves to hold.
///
/// # Errors
/// [`SignError`] for what is no such request.
pub fn key_hash(csr: &[u8]) -> Result<[u8; 32], SignError> {
    Ok(Sha256::digest(RequestedKey::parse(csr)?.subject_public_key_info()).into())
}

/// An intermediate with its key, ready to sign.
struct Opened {
    certificate: Arc<[u8]>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// The authority of `identity`'s cluster. `leaf_lifetime` is for authorities that this server
    /// makes as leader; at most 7 days, which is the longest that a peer accepts.
    pub fn new(identity: Arc<Identity>, leaf_lifetime: Duration) -> Self {
        Self {
            identity,
            leaf_lifetime: leaf_lifetime.min(LIFETIME_MAX.saturating_sub(SLACK)),
            opened: Mutex::new(None),
            of_node: Buckets::new(NODE_PACE),
            of_all: Buckets::new(ALL_PACE),
        }
    }

    /// What a leader must propose for the authority to be in order; none when it is.
    ///
    /// That is: a root and an intermediate where there are none, and then the next step of
    /// [`Authority::due`], which depends on how far the fleet has come.
    ///
    /// # Errors
    /// [`SignError::Sealed`] when the operator key is not the one that the authority was made
    /// with; [`SignError::Make`] without random numbers.
    pub fn due(
        &self,
        state: &State,
        now: UnixTime,
        progress: Progress,
    ) -> Result<Option<Command>, SignError> {
        let Some(present) = state.authority() else {
            let authority = self.begin(now)?;
            return Ok(Some(Command::SetAuthority { authority, expected: Index(0) }));
        };
        let mut authority = present.clone();
        if !present.policy.is_set {
            authority.leaf_lifetime = self.leaf_lifetime;
        }
        let longest = present.leaf_lifetime.max(NODE_LIFETIME) + SLACK;
        match present.due(now, progress, longest) {
            Due::Nothing if authority.leaf_lifetime == present.leaf_lifetime => return Ok(None),
            Due::Nothing => {}
            Due::Intermediate => {
                authority.intermediate = self.successor(present.active(), &present.policy, now)?;
            }
            Due::Introduce => authority = self.introduced(present, None, now)?,
            Due::Activate => self.activate(&mut authority, now)?,
            Due::Retire(ids) => {
                tracing::info!(roots = ?ids, "roots are trusted no more");
                authority.retire(&ids);
            }
        }
        Ok(Some(Command::SetAuthority { authority, expected: present.index }))
    }

    /// `present` with a root that is to take the active one's place: a new one, or `own`, an
    /// operator's. It is trusted from now on, and signs once all know it.
    ///
    /// # Errors
    /// [`SignError::Rotating`] while another rotation goes on; [`SignError::Sealed`].
    pub fn introduced(
        &self,
        present: &Authority,
        own: Option<OwnRoot>,
        now: UnixTime,
    ) -> Result<Authority, SignError> {
        if present.introduced().is_some() || present.roots.len() >= ROOTS_MAX {
            return Err(SignError::Rotating);
        }
        let mut authority = present.clone();
        let root = match own {
            Some(OwnRoot { certificate, .. })
                if present.roots.iter().any(|root| *root.certificate == *certificate) =>
            {
                return Err(SignError::Known);
            }
            Some(own) => own,
            None => self.new_root(validity(now, present.policy.root_lifetime))?,
        };
        let cross = match present.active() {
            Some(active) if active.validity.holds_at(now) => {
                let issuer = self.issuer(&active.certificate, &active.sealed_key)?;
                Some(self.cross_signed(&root, &issuer, active.validity, now)?)
            }
            _ => None,
        };
        authority.roots.push(self.sealed(root, cross));
        Ok(authority)
    }

    /// Lets the root that was introduced sign.
    fn activate(&self, authority: &mut Authority, now: UnixTime) -> Result<(), SignError> {
        let next = authority.introduced().ok_or(SignError::NoAuthority)?;
        let id = next.id.clone();
        authority.intermediate = self.successor(Some(next), &authority.policy, now)?;
        for root in &mut authority.roots {
            if root.active {
                root.rotated_out = Some(now);
            }
            root.active = root.id == id;
        }
        tracing::info!(root = %id, "a new root signs");
        Ok(())
    }

    /// A new intermediate under `root`.
    fn successor(
        &self,
        root: Option<&Root>,
        policy: &Policy,
        now: UnixTime,
    ) -> Result<Intermediate, SignError> {
        let root = root.ok_or(SignError::NoAuthority)?;
        let issuer = self.issuer(&root.certificate, &root.sealed_key)?;
        self.intermediate(&issuer, root.validity, policy.intermediate_lifetime, now)
    }

    /// A root's key, certified by the root before it.
    fn cross_signed(
        &self,
        root: &OwnRoot,
        issuer: &Issuer<'static, KeyPair>,
        until: Validity,
        now: UnixTime,
    ) -> Result<Arc<[u8]>, SignError> {
        let not_after = root.validity.not_after.min(until.not_after);
        let validity = Validity { not_before: now.minus(SLACK), not_after };
        let (mut params, _) =
            self.ca_params(&root.name, validity, BasicConstraints::Constrained(1))?;
        params.distinguished_name = subject_of(&root.certificate)?;
        params.use_authority_key_identifier_extension = true;
        let crossed = params.signed_by(&root.key, issuer)?.der().to_vec();
        // Chains are built by names: they must be the same to the octet.
        let is_same = match (parsed(&root.certificate), parsed(&crossed)) {
            (Some(root), Some(crossed)) => root.subject().as_raw() == crossed.subject().as_raw(),
            _ => false,
        };
        if is_same { Ok(crossed.into()) } else { Err(SignError::Subject) }
    }

    /// Whether a request would be signed, without counting it: for those who must spend
    /// something on it first.
    ///
    /// # Errors
    /// [`SignError`]
    pub fn check(&self, authority: Option<&Authority>, csr: &[u8]) -> Result<(), SignError> {
        let authority = authority.ok_or(SignError::NoAuthority)?;
        RequestedKey::parse(csr)?;
        self.opened(&authority.intermediate).map(drop)
    }

    /// A certificate for `service` on `node`, whose right to it the caller has checked.
    ///
    /// # Errors
    /// [`SignError`]
    pub fn sign_leaf(
        &self,
        authority: Option<&Authority>,
        csr: &[u8],
        node: &NodeName,
        service: &ServiceName,
        now: UnixTime,
    ) -> Result<Issued, SignError> {
        let authority = authority.ok_or(SignError::NoAuthority)?;
        let role = Role::Service(service.clone());
        self.sign(authority, csr, node, role, authority.leaf_lifetime, now)
    }

    /// A certificate for `node` itself, whose right to it the caller has checked.
    ///
    /// # Errors
    /// [`SignError`]
    pub fn sign_node(
        &self,
        authority: Option<&Authority>,
        csr: &[u8],
        node: &NodeName,
        now: UnixTime,
    ) -> Result<Issued, SignError> {
        let authority = authority.ok_or(SignError::NoAuthority)?;
        self.sign(authority, csr, node, Role::Agent(node.clone()), NODE_LIFETIME, now)
    }

    fn sign(
        &self,
        authority: &Authority,
        csr: &[u8],
        node: &NodeName,
        role: Role,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Issued, SignError> {
        let instant = Instant::now();
        self.of_node
            .take(node, instant)
            .map_err(|retry_after| SignError::TooMany { retry_after })?;
        self.of_all.take(&(), instant).map_err(|retry_after| SignError::TooMany { retry_after })?;
        let key = RequestedKey::parse(csr)?;
        let signer = self.opened(&authority.intermediate)?;
        let id = SpiffeId {
            trust_domain: self.identity.trust_domain().clone(),
            datacenter: self.identity.datacenter().clone(),
            role,
        };
        // The catalog has names that no identity can carry, and one that read as another's would be.
        if id.to_string().parse() != Ok(id.clone()) {
            return Err(SignError::Name);
        }
        let mut validity = validity(now, lifetime);
        validity.not_after = validity.not_after.min(authority.intermediate.validity.not_after);
        if validity.not_after <= now {
            return Err(SignError::RanOut);
        }
        let mut serial = serial::<LEAF_SERIAL_OCTETS>()?;
        serial[..node_tag(node).len()].copy_from_slice(&node_tag(node));
        let leaf = leaf_params(&id, validity, &serial)?.signed_by(&key, &signer.issuer)?;
        let active = authority.active().ok_or(SignError::NoAuthority)?;
        // Only while there are some who may know nothing but the root before.
        let is_needed = authority.roots.len() > 1;
        let cross = active.cross.as_ref().filter(|_| is_needed);
        let signers = [Some(&signer.certificate), cross];
        let signers = signers.into_iter().flatten().map(|der| CertificateDer::from(der.to_vec()));
        Ok(Issued {
            chain: std::iter::once(leaf.der().clone()).chain(signers).collect(),
            roots: authority.roots.iter().map(|root| root.certificate.clone()).collect(),
            root: active.id.clone(),
            validity,
        })
    }

    /// The intermediate with its key; opened once and then kept.
    fn opened(&self, intermediate: &Intermediate) -> Result<Arc<Opened>, SignError> {
        let mut kept = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = &*kept
            && opened.certificate == intermediate.certificate
        {
            return Ok(opened.clone());
        }
        let issuer = self.issuer(&intermediate.certificate, &intermediate.sealed_key)?;
        let certificate = intermediate.certificate.clone();
        let opened = Arc::new(Opened { certificate, issuer });
        *kept = Some(opened.clone());
        Ok(opened)
    }

    fn issuer(
        &self,
        certificate: &[u8],
        sealed_key: &[u8],
    ) -> Result<Issuer<'static, KeyPair>, SignError> {
        let key = self.identity.sealer().open(sealed_key)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(&key[..]),
            &rcgen::PKCS_ECDSA_P256_SHA256,
        )?;
        Ok(Issuer::from_ca_cert_der(&CertificateDer::from(certificate), key)?)
    }

    /// A root and an intermediate under it.
    fn begin(&self, now: UnixTime) -> Result<Authority, SignError> {
        let policy = Policy::default();
        let root = self.new_root(validity(now, policy.root_lifetime))?;
        let mut root = self.sealed(root, None);
        root.active = true;
        let intermediate = self.successor(Some(&root), &policy, now)?;
        Ok(Authority {
            roots: vec![root],
            intermediate,
            leaf_lifetime: self.leaf_lifetime,
            policy,
            retired: Vec::new(),
            created: Index(0),
            index: Index(0),
        })
    }

    fn new_root(&self, validity: Validity) -> Result<OwnRoot, SignError> {
        let key = KeyPair::generate()?;
        // Two intermediates below it: one that signs, and a successor that it certifies.
        let constraints = BasicConstraints::Constrained(2);
        let cluster = self.identity.cluster_id();
        // Chains are built by names: no two roots may have the same.
        let number = u32::from_be_bytes(serial::<4>()?);
        let name = format!("Hawser root {number:08x} {cluster}");
        let (params, serial) = self.ca_params(&name, validity, constraints)?;
        let certificate = params.self_signed(&key)?.der().to_vec();
        Ok(OwnRoot { certificate, key, name, serial, validity })
    }

    fn sealed(&self, root: OwnRoot, cross: Option<Arc<[u8]>>) -> Root {
        Root {
            id: root_id(&root.certificate).into(),
            name: root.name.into(),
            certificate: root.certificate.into(),
            serial: root.serial,
            validity: root.validity,
            active: false,
            sealed_key: self.identity.sealer().seal(root.key.serialized_der()).into(),
            cross,
            rotated_out: None,
            created: Index(0),
            modified: Index(0),
        }
    }

    fn intermediate(
        &self,
        root: &Issuer<'static, KeyPair>,
        root_validity: Validity,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Intermediate, SignError> {
        let key = KeyPair::generate()?;
        let mut validity = validity(now, lifetime);
        validity.not_after = validity.not_after.min(root_validity.not_after);
        let name = format!("Hawser intermediate {}", self.identity.cluster_id());
        let (mut params, _) = self.ca_params(&name, validity, BasicConstraints::Constrained(0))?;
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, root)?;
        Ok(Intermediate {
            certificate: certificate.der().to_vec().into(),
            validity,
            sealed_key: self.identity.sealer().seal(key.serialized_der()).into(),
        })
    }

    /// A certificate authority's fields, with its serial number.
    fn ca_params(
        &self,
        name: &str,
        validity: Validity,
        constraints: BasicConstraints,
    ) -> Result<(CertificateParams, u64), SignError> {
        let serial = serial::<CA_SERIAL_OCTETS>()?;
        let number = serial.iter().fold(0, |sum, octet| sum << 8 | u64::from(*octet));
        let mut params = CertificateParams::default();
        params.not_before = offset_time(validity.not_before);
        params.not_after = offset_time(validity.not_after);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        // Consul's clients read the trust domain from here.
        let uri = format!("spiffe://{}", self.identity.trust_domain());
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        params.is_ca = IsCa::Ca(constraints);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok((params, number))
    }
}

fn parsed(der: &[u8]) -> Option<X509Certificate<'_>> {
    x509_parser::parse_x509_certificate(der).ok().map(|(_, certificate)| certificate)
}

/// The name of a certificate, for another one.
fn subject_of(certificate: &[u8]) -> Result<DistinguishedName, SignError> {
    let certificate = parsed(certificate).ok_or(SignError::Subject)?;
    let mut name = DistinguishedName::new();
    for part in certificate.subject().iter_attributes() {
        let oid: Vec<u64> = part.attr_type().iter().ok_or(SignError::Subject)?.collect();
        let text = part.as_str().map_err(|_| SignError::Subject)?;
        let value = match part.attr_value().tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => {
                DnValue::PrintableString(text.try_into().map_err(|_| SignError::Subject)?)
            }
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(|_| SignError::Subject)?),
            _ => return Err(SignError::Subject),
        };
        name.push(DnType::from_oid(&oid), value);
    }
    Ok(name)
}

/// The public key of a signing request whose sender has shown to hold its private half.
struct RequestedKey {
    octets: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl RequestedKey {
    fn parse(csr: &[u8]) -> Result<Self, SignError> {
        if csr.len() > CSR_OCTETS_MAX {
            return Err(SignError::TooLong);
        }
        let (rest, request) =
            X509CertificationRequest::from_der(csr).map_err(|_| SignError::Malformed)?;
        if !rest.is_empty() {
            return Err(SignError::Malformed);
        }
        let key = &request.certification_request_info.subject_pki;
        // Before the proof: a key of a kind that is refused is not worth a signature's check.
        let algorithm = match KeyKind::of(key) {
            Some(KeyKind::P256) => &rcgen::PKCS_ECDSA_P256_SHA256,
            Some(KeyKind::Ed25519) => &rcgen::PKCS_ED25519,
            None => return Err(SignError::Key),
        };
        request.verify_signature().map_err(|_| SignError::NoProof)?;
        Ok(Self { octets: key.subject_public_key.data.to_vec(), algorithm })
    }
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.octets
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

/// How fast something may go on: `burst` at once, then one each `every`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) burst: u32,
    pub(crate) every: Duration,
}

/// Token buckets, one per key, in a bounded table.
pub(crate) struct Buckets<K> {
    pace: Pace,
    /// When each bucket will be full again.
    full_at: Mutex<HashMap<K, Instant>>,
}

impl<K: Clone + Eq + Hash> Buckets<K> {
    pub(crate) fn new(pace: Pace) -> Self {
        Self { pace, full_at: Mutex::new(HashMap::new()) }
    }

    /// Takes one token of `key`'s, or says when there will be one.
    pub(crate) fn take(&self, key: &K, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let empty_for = full_at
            .get(key)
            .map_or(Duration::ZERO, |full_at| full_at.saturating_duration_since(now));
        let most = self.pace.every * self.pace.burst.saturating_sub(1);
        if empty_for > most {
            return Err(empty_for - most);
        }
        if full_at.len() >= BUCKETS_MAX && !full_at.contains_key(key) {
            full_at.retain(|_, full_at| *full_at > now);
        }
        if full_at.len() >= BUCKETS_MAX && !full_at.contains_key(key) {
            // Full of the hasty: the newcomer goes unwatched, and the table stays bounded.
            return Ok(());
        }
        let entry = full_at.entry(key.clone()).or_insert(now);
        *entry = (*entry).max(now) + self.pace.every;
        Ok(())
    }

    /// Gives one token back to `key`.
    pub(crate) fn give_back(&self, key: &K) {
        let mut full_at = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(full_at) = full_at.get_mut(key) {
            *full_at = full_at.checked_sub(self.pace.every).unwrap_or(*full_at);
        }
    }
}

const CSR_OCTETS_MAX: usize = 16 * 1024;
const CA_SERIAL_OCTETS: usize = 6;
const DAY: Duration = Duration::from_secs(86_400);
const LEAF_SERIAL_OCTETS: usize = 16;
/// The old, the new, and what is left of rotations before.
const ROOTS_MAX: usize = 4;
const NODE_LIFETIME: Duration = Duration::from_secs(3 * DAY.as_secs());
/// What back-dating adds to a lifetime.
const SLACK: Duration = Duration::from_secs(600);
/// A host that starts asks for all its leaves at once, and renews them over half a day.
const NODE_PACE: Pace = Pace { burst: 256, every: Duration::from_millis(100) };
/// What one server signs: a fleet of 20,000 leaves in 20 s, and never all its processors.
const ALL_PACE: Pace = Pace { burst: 2000, every: Duration::from_millis(1) };
const BUCKETS_MAX: usize = 16_384;

#[cfg(test)]
mod tests {
    use hawser_core::clock::Stamp;
    use hawser_identity::{Anchors, Refusal};
    use rcgen::ExtendedKeyUsagePurpose;
    use x509_parser::extensions::GeneralName;

    use super::*;
    use crate::identity::{self, OperatorKey};
    use crate::tls::{Trusted, believed};

    /// What spoils a request.
    type Change = Box<dyn FnOnce(&mut CertificateParams)>;

    /// One cluster with a certificate authority.
    struct Fixture {
        identity: Arc<Identity>,
        ca: Ca,
        state: State,
        now: UnixTime,
        progress: Progress,
    }

    impl Fixture {
        fn new() -> Self {
            let key = OperatorKey::generate().expect("randomness");
            let (datacenter, node) = ("dc1".parse(), "s1".parse());
            let (datacenter, node) = (datacenter.expect("a name"), node.expect("a name"));
            let identity = Arc::new(Identity::new(&key, &datacenter, &node).expect("an identity"));
            let ca = Ca::new(identity.clone(), DAY);
            let now = identity::now();
            let (state, progress) = (State::default(), Progress::default());
            let mut fixture = Self { identity, ca, state, now, progress };
            assert!(fixture.apply_due(now), "there is none yet");
            fixture
        }

        /// Applies what is due, if anything is.
        fn apply_due(&mut self, now: UnixTime) -> bool {
            let progress = self.progress;
            let due = self.ca.due(&self.state, now, progress).expect("due");
            let Some(command) = due else { return false };
            let index = Index(self.state.applied().0 + 1);
            self.state.apply(Stamp { index, time: now }, command).expect("applied");
            true
        }

        fn authority(&self) -> &Authority {
            self.state.authority().expect("made above")
        }

        fn anchors(&self) -> Anchors {
            let roots: Vec<_> =
                self.authority().roots.iter().map(|root| root.certificate.clone()).collect();
            believed(&self.identity, &Trusted { roots, ..Trusted::default() })
        }

        fn id(&self, path: &str) -> String {
            format!("spiffe://{}{path}", self.identity.trust_domain())
        }

        /// A certificate for any path, signed by the real intermediate.
        fn leaf(&self, path: &str) -> Vec<CertificateDer<'static>> {
            let signer = self.ca.opened(&self.authority().intermediate).expect("opens");
            let id = self.id(path).parse().expect("an identity");
            let params =
                leaf_params(&id, validity(self.now, DAY), &[0x41; 16]).expect("randomness");
            let key = KeyPair::generate().expect("a key");
            let leaf = params.signed_by(&key, &signer.issuer).expect("signed");
            vec![leaf.der().clone(), CertificateDer::from(signer.certificate.to_vec())]
        }

        fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, Refusal> {
            self.anchors().verify(chain, self.now).map(|proven| proven.id)
        }

        fn sign_node(&self, csr: &[u8]) -> Result<Issued, SignError> {
            let node = "n1".parse().expect("a name");
            self.ca.sign_node(Some(self.authority()), csr, &node, self.now)
        }
    }

    fn csr_of(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        change(&mut params);
        params.serialize_request(key).expect("a request").der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().expect("ASCII"))
    }

    #[test]
    fn a_leaf_holds_what_the_servers_say_and_nothing_that_its_request_says() {
        let fixture = Fixture::new();
        let requests: [(&str, Change); 4] = [
            ("a plain one", Box::new(|_| {})),
            (
                "another's identity",
                Box::new(|params| {
                    let other = uri("spiffe://x.consul/ns/default/dc/dc1/svc/db");
                    params.subject_alt_names =
                        vec![other, SanType::DnsName("a.b".try_into().expect("a name"))];
                    params.distinguished_name.push(DnType::CommonName, "db");
                }),
            ),
            (
                "an authority",
                Box::new(|params| {
                    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
                }),
            ),
            (
                "other usages",
                Box::new(|params| {
                    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
                }),
            ),
        ];
        for (why, change) in requests {
            let key = KeyPair::generate().expect("a key");
            let (node, service) = ("n1".parse().expect("name"), "web".parse().expect("name"));
            let issued = fixture
                .ca
                .sign_leaf(
                    Some(fixture.authority()),
                    &csr_of(&key, change),
                    &node,
                    &service,
                    fixture.now,
                )
                .expect(why);
            assert_eq!(issued.chain.len(), 2, "{why}");
            let (_, leaf) =
                x509_parser::parse_x509_certificate(&issued.chain[0]).expect("a certificate");
            let names = leaf.subject_alternative_name().expect("once").expect("present");
            let expected = fixture.id("/ns/default/dc/dc1/svc/web");
            assert_eq!(names.value.general_names, [GeneralName::URI(&expected)], "{why}");
            assert!(names.critical, "{why}: the subject is empty");
            assert_eq!(leaf.subject().iter().count(), 0, "{why}");
            assert!(!leaf.is_ca(), "{why}");
            assert_eq!(leaf.key_usage().expect("once").expect("present").value.flags, 1, "{why}");
            let usage = leaf.extended_key_usage().expect("once").expect("present").value;
            assert!(usage.client_auth && usage.server_auth && !usage.code_signing, "{why}");
            assert_eq!(leaf.public_key().raw, key.subject_public_key_info(), "{why}");
            assert_eq!(leaf.raw_serial().len(), 16, "{why}");
            let holds = leaf.validity();
            let from = fixture.now.as_secs() as i64 - 300;
            assert_eq!(holds.not_before.timestamp(), from, "{why}");
            assert_eq!(holds.not_after.timestamp(), from + 300 + 86_400, "{why}");
            assert_eq!(fixture.verify(&issued.chain), Err(Refusal::Role), "{why}: no agent");
        }
    }

    #[test]
    fn only_a_proven_key_of_an_allowed_kind_is_signed() {
        let fixture = Fixture::new();
        let make = |algorithm| KeyPair::generate_for(algorithm).expect("a key");
        let good = csr_of(&make(&rcgen::PKCS_ECDSA_P256_SHA256), |_| {});
        let mut unproven = good.clone();
        let last = unproven.len() - 1;
        unproven[last] ^= 1;
        let mut extended = good.clone();
        extended.push(0);
        let mut long = good.clone();
        long.resize(CSR_OCTETS_MAX + 1, 0);
        let p384 = csr_of(&make(&rcgen::PKCS_ECDSA_P384_SHA384), |_| {});
        let p521 = csr_of(&make(&rcgen::PKCS_ECDSA_P521_SHA512), |_| {});
        let rsa = csr_of(&make(&rcgen::PKCS_RSA_SHA256), |_| {});
        let name = |signed: Result<Issued, SignError>| match signed {
            Ok(_) => "signed",
            Err(SignError::TooLong) => "too long",
            Err(SignError::Malformed) => "malformed",
            Err(SignError::NoProof) => "no proof",
            Err(SignError::Key) => "key",
            Err(_) => "other",
        };
        let cases = [
            (&good[..], "signed"),
            (&csr_of(&make(&rcgen::PKCS_ED25519), |_| {}), "signed"),
            (&unproven, "no proof"),
            (&extended, "malformed"),
            (&long, "too long"),
            (&p384, "key"),
            (&p521, "key"),
            (&rsa, "key"),
            (b"", "malformed"),
            (b"garbage", "malformed"),
        ];
        for (at, (csr, expected)) in cases.into_iter().enumerate() {
            assert_eq!(name(fixture.sign_node(csr)), expected, "case {at}");
        }
        for cut in 0..good.len() {
            let signed = fixture.ca.of_node.full_at.lock().map(|mut all| all.clear());
            signed.expect("nobody panicked");
            assert_eq!(name(fixture.sign_node(&good[..cut])), "malformed", "cut at {cut}");
        }
    }

    #[test]
    fn a_node_certificate_is_let_in_and_ends_after_three_days() {
        let fixture = Fixture::new();
        let key = KeyPair::generate().expect("a key");
        let issued = fixture.sign_node(&csr_of(&key, |_| {})).expect("signed");
        let id = fixture.verify(&issued.chain).expect("an agent");
        assert_eq!(id.to_string(), fixture.id("/agent/client/dc/dc1/id/n1"));
        assert_eq!(issued.validity.not_after.since(issued.validity.not_before).as_secs(), 259_500);
        let at = |secs: u64| {
            let now = UnixTime::from_secs(secs);
            fixture.anchors().verify(&issued.chain, now).is_ok()
        };
        let (from, until) = (issued.validity.not_before, issued.validity.not_after);
        for (secs, good) in [
            (from.as_secs() - 1, false),
            (from.as_secs(), true),
            (until.as_secs(), true),
            (until.as_secs() + 1, false),
        ] {
            assert_eq!(at(secs), good, "T3: at {secs}, holds {from} to {until}");
        }
    }

    #[test]
    fn a_certificate_of_the_mesh_never_passes_for_a_servers() {
        let fixture = Fixture::new();
        let unknown = Err(Refusal::UnknownIssuer);
        let agent = fixture.leaf("/agent/client/dc/dc1/id/n1");
        assert!(fixture.verify(&agent).is_ok());
        let server = fixture.leaf("/agent/server/dc/dc1/id/s1");
        assert_eq!(fixture.verify(&server), unknown, "J8");
        let shown = fixture.identity.certificate();
        assert!(fixture.verify(&shown.cert).is_ok(), "a server by the servers' root");
        let without_mesh = believed(&fixture.identity, &Trusted::default());
        let refused = without_mesh.verify(&agent, fixture.now).map(|proven| proven.id);
        assert_eq!(refused, unknown, "no union");
        let other = Fixture::new();
        assert_eq!(other.verify(&agent), Err(Refusal::TrustDomain), "another cluster");
    }

    #[test]
    fn the_authority_is_made_once_and_its_intermediate_renewed_at_half_life() {
        let mut fixture = Fixture::new();
        let begun = fixture.authority().clone();
        let (_, root) =
            x509_parser::parse_x509_certificate(&begun.roots[0].certificate).expect("a root");
        assert_eq!(
            root.raw_serial().iter().fold(0, |sum, octet| sum << 8 | u64::from(*octet)),
            begun.roots[0].serial
        );
        assert_eq!(begun.roots[0].id.len(), 59);
        let now = fixture.now;
        let days = |days: u64| now.plus(Duration::from_secs(days * 86_400));
        assert!(!fixture.apply_due(days(100)), "in order");
        let key = KeyPair::generate().expect("a key");
        let csr = csr_of(&key, |_| {});
        let before = fixture.sign_node(&csr).expect("signed");
        assert!(fixture.apply_due(days(183)), "past half its life");
        assert_ne!(fixture.authority().intermediate, begun.intermediate);
        assert_eq!(fixture.authority().roots[0].certificate, begun.roots[0].certificate);
        assert!(fixture.verify(&before.chain).is_ok(), "what was signed before still holds");
        fixture.now = days(183);
        let after = fixture.sign_node(&csr).expect("signed");
        assert!(fixture.verify(&after.chain).is_ok());
        assert_ne!(after.chain[1], before.chain[1]);
    }

    /// Introduces a root: Hawser's own, or an operator's.
    fn introduce(fixture: &mut Fixture, own: Option<OwnRoot>) {
        let authority = fixture.ca.introduced(fixture.authority(), own, fixture.now);
        let command = Command::SetAuthority {
            authority: authority.expect("introduced"),
            expected: fixture.authority().index,
        };
        let index = Index(fixture.state.applied().0 + 1);
        let stamp = Stamp { index, time: fixture.now };
        fixture.state.apply(stamp, command).expect("applied");
    }

    #[test]
    fn a_new_root_signs_when_all_know_it_and_the_old_one_believes_what_it_signs() {
        let mut fixture = Fixture::new();
        let key = KeyPair::generate().expect("a key");
        let csr = csr_of(&key, |_| {});
        let only_old = fixture.anchors();
        let before = fixture.sign_node(&csr).expect("signed");
        introduce(&mut fixture, None);
        let twice = fixture.ca.introduced(fixture.authority(), None, fixture.now);
        assert!(matches!(twice, Err(SignError::Rotating)), "one at a time");
        let old = fixture.authority().roots[0].id.clone();
        assert!(!fixture.apply_due(fixture.now), "nobody knows it yet");
        assert_eq!(fixture.sign_node(&csr).expect("signed").root, old);

        fixture.progress = Progress { trusted: true, reissued: false };
        assert!(fixture.apply_due(fixture.now), "all know it");
        let after = fixture.sign_node(&csr).expect("signed");
        assert_ne!(after.root, old);
        assert_eq!(after.chain.len(), 3, "the leaf, its signer, and the new root cross-signed");
        let by_old = only_old.verify(&after.chain, fixture.now).map(drop);
        assert_eq!(by_old, Ok(()), "who knows only the old root believes it");
        assert!(fixture.verify(&after.chain).is_ok() && fixture.verify(&before.chain).is_ok());
        assert!(!fixture.apply_due(fixture.now), "some still show the old root's");

        fixture.progress = Progress { trusted: true, reissued: true };
        assert!(!fixture.apply_due(fixture.now), "the overlap");
        fixture.now = fixture.now.plus(Policy::default().overlap);
        assert!(fixture.apply_due(fixture.now));
        assert_eq!(fixture.authority().roots.len(), 1);
        assert_eq!(fixture.verify(&before.chain), Err(Refusal::UnknownIssuer));
        assert!(fixture.verify(&after.chain).is_ok());
        let last = fixture.sign_node(&csr).expect("signed");
        assert_eq!(last.chain.len(), 2, "nobody needs the cross-signed one any more");
    }

    #[test]
    fn an_operators_root_is_taken_when_it_may_sign_and_its_key_is_shown() {
        let mut fixture = Fixture::new();
        let make = |constraints, days: u64| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "Acme");
            params.distinguished_name.push(DnType::CommonName, "Acme Root R1");
            params.is_ca = constraints;
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.not_after = offset_time(fixture.now.plus(DAY * days as u32));
            let pem = params.self_signed(&key).expect("signed").pem();
            (pem, key.serialize_pem())
        };
        let any = || IsCa::Ca(BasicConstraints::Unconstrained);
        let (root, key) = make(any(), 900);
        let (other, _) = make(any(), 900);
        let (blind, blind_key) = make(IsCa::Ca(BasicConstraints::Constrained(0)), 900);
        let (leaf, leaf_key) = make(IsCa::ExplicitNoCa, 900);
        let (old, old_key) = make(any(), 0);
        for (root, key, expected) in [
            ("no PEM", &key, InvalidRoot::Certificate),
            (&root, &"no PEM".to_owned(), InvalidRoot::Key),
            (&other, &key, InvalidRoot::Mismatch),
            (&blind, &blind_key, InvalidRoot::NoAuthority),
            (&leaf, &leaf_key, InvalidRoot::NoAuthority),
            (&old, &old_key, InvalidRoot::Expired),
        ] {
            let refused = OwnRoot::parse(root, key, fixture.now).map(drop);
            assert_eq!(refused, Err(expected));
        }
        let only_old = fixture.anchors();
        let own = OwnRoot::parse(&root, &key, fixture.now).expect("good");
        introduce(&mut fixture, Some(own));
        fixture.progress.trusted = true;
        assert!(fixture.apply_due(fixture.now));
        let csr = csr_of(&KeyPair::generate().expect("a key"), |_| {});
        let issued = fixture.sign_node(&csr).expect("signed");
        assert!(fixture.verify(&issued.chain).is_ok());
        let by_old = only_old.verify(&issued.chain, fixture.now).map(drop);
        assert_eq!(by_old, Ok(()), "the old root certifies the operator's too");
        let own = OwnRoot::parse(&root, &key, fixture.now).expect("good");
        let again = fixture.ca.introduced(fixture.authority(), Some(own), fixture.now);
        assert!(matches!(again, Err(SignError::Known)));
    }

    #[test]
    fn certificates_of_one_node_share_a_tag_by_which_they_are_refused_together() {
        let fixture = Fixture::new();
        let csr = csr_of(&KeyPair::generate().expect("a key"), |_| {});
        let serial = || {
            let issued = fixture.sign_node(&csr).expect("signed");
            let serial = hawser_identity::serial_of(&issued.chain[0]).expect("a serial number");
            (serial, issued.chain)
        };
        let ((first, chain), (second, _)) = (serial(), serial());
        assert_ne!(first, second);
        let node = "n1".parse().expect("a name");
        assert_eq!(first.octets()[..8], node_tag(&node));
        let revoked = hawser_core::revocation::Revoked {
            nodes: [(node_tag(&node), node)].into(),
            ..Default::default()
        };
        let anchors = fixture.anchors().revoked(Arc::new(revoked));
        let refused = anchors.verify(&chain, fixture.now).map(drop);
        assert_eq!(refused, Err(Refusal::Revoked));
    }

    #[test]
    fn another_operator_key_signs_nothing() {
        let (fixture, other) = (Fixture::new(), Fixture::new());
        let csr = csr_of(&KeyPair::generate().expect("a key"), |_| {});
        let node = "n1".parse().expect("a name");
        let signed = other.ca.sign_node(Some(fixture.authority()), &csr, &node, fixture.now);
        assert!(matches!(signed, Err(SignError::Sealed(OpenError::Mismatch))));
        let none = fixture.ca.sign_node(None, &csr, &node, fixture.now);
        assert!(matches!(none, Err(SignError::NoAuthority)));
    }

    #[test]
    fn a_hasty_node_waits_and_another_does_not() {
        let buckets = Buckets::new(Pace { burst: 3, every: Duration::from_secs(10) });
        let start = Instant::now();
        let at = |secs: u64| start + Duration::from_secs(secs);
        let waits = |secs: u64| Err(Duration::from_secs(secs));
        let cases = [
            ("a", 0, Ok(()), "the first"),
            ("a", 0, Ok(()), "the second"),
            ("a", 0, Ok(()), "the third"),
            ("a", 0, waits(10), "the burst is used up"),
            ("b", 0, Ok(()), "another has its own"),
            ("a", 4, waits(6), "a refusal costs nothing"),
            ("a", 10, Ok(()), "one is there again"),
            ("a", 10, waits(10), "and only one"),
            ("a", 100, Ok(()), "full again"),
            ("a", 100, Ok(()), "two of three"),
            ("a", 100, Ok(()), "three of three"),
        ];
        for (key, secs, expected, why) in cases {
            assert_eq!(buckets.take(&key, at(secs)), expected, "{why}");
        }
        buckets.give_back(&"a");
        assert_eq!(buckets.take(&"a", at(100)), Ok(()), "what was given back");
        assert_eq!(buckets.take(&"a", at(100)), waits(10), "and no more");
    }
}
