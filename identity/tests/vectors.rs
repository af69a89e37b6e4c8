//! Certificates that must not be believed (T1–T16 and T18 of the attack catalogue): each is shown
//! to the verifier of callers and to the verifier of callees, alone and in a whole handshake.

use std::mem::discriminant;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_core::clock::UnixTime;
use hawser_core::spiffe::{InvalidSpiffeId, SpiffeId};
use hawser_identity::{
    Anchors, Callee, Callers, LIFETIME_MAX, Refusal, accept, dial, find_pinned, id_of, pin_of, read,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SignatureAlgorithm,
};
use rustls::client::danger::ServerCertVerifier as _;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{self, CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier as _;
use rustls::server::{ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, ServerConfig, ServerConnection,
};
use time::OffsetDateTime;

const DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";
const WEB: &str = "/ns/default/dc/dc1/svc/web";
const SERVER: &str = "/agent/server/dc/dc1/id/s1";

/// What spoils a certificate.
type Spoil = fn(&mut CertificateParams);

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    UnixTime::from_secs(since.as_secs())
}

fn id(path: &str) -> String {
    format!("spiffe://{DOMAIN}{path}")
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a key")
}

/// An authority that signs.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Signer {
    fn root(name: &str) -> Self {
        let (params, key) = (authority(name), key());
        let der = params.self_signed(&key).expect("signed").der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    /// An authority, or what passes for one, under this one.
    fn below(&self, params: CertificateParams, key: KeyPair) -> Self {
        let der = params.signed_by(&key, &self.issuer).expect("signed").der().clone();
        Self { issuer: Issuer::new(params, key), der }
    }

    fn sign(&self, params: &CertificateParams, key: &KeyPair) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).expect("signed").der().clone()
    }
}

/// A leaf that is as it should be.
fn good(path: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![uri(&id(path))];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = moment(-300);
    params.not_after = moment(86_400);
    params
}

/// So many seconds from now.
fn moment(secs: i64) -> OffsetDateTime {
    let now = i64::try_from(now().as_secs()).expect("small");
    OffsetDateTime::from_unix_timestamp(now + secs).expect("a time")
}

/// A chain and the key of its leaf.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

impl Shown {
    fn certified(&self) -> Arc<SingleCertAndKey> {
        let key = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("a key");
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(self.chain.clone(), key)))
    }
}

/// The roots of one mesh: services are trusted by the one, servers by the other, agents not at all.
struct Mesh {
    root: Signer,
    intermediate: Signer,
    server_root: Signer,
}

impl Mesh {
    fn new() -> Self {
        let root = Signer::root("mesh root");
        let intermediate = root.below(authority("intermediate"), key());
        Self { root, intermediate, server_root: Signer::root("server root") }
    }

    fn anchors(&self) -> Arc<Anchors> {
        let (domain, dc) = (DOMAIN.parse().expect("good"), "dc1".parse().expect("a name"));
        let anchors = Anchors::new(domain, dc);
        Arc::new(anchors.services([&self.root.der[..]]).servers([&self.server_root.der[..]]))
    }

    /// A leaf by the real intermediate, spoilt.
    fn leaf(&self, spoil: impl FnOnce(&mut CertificateParams)) -> Shown {
        self.leaf_with(key(), spoil)
    }

    fn leaf_with(&self, key: KeyPair, spoil: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = good(WEB);
        spoil(&mut params);
        let leaf = self.intermediate.sign(&params, &key);
        Shown { chain: vec![leaf, self.intermediate.der.clone()], key }
    }

    fn named(&self, names: Vec<SanType>) -> Shown {
        self.leaf(|params| params.subject_alt_names = names)
    }

    /// A good leaf by `signers`, the nearest first.
    fn by(&self, signers: &[&Signer]) -> Shown {
        let key = key();
        let mut chain = vec![signers[0].sign(&good(WEB), &key)];
        chain.extend(signers.iter().map(|signer| signer.der.clone()));
        Shown { chain, key }
    }

    /// A good leaf by an intermediate of the real root that is spoilt.
    fn by_spoilt(&self, spoil: Spoil) -> Shown {
        let mut params = authority("spoilt");
        spoil(&mut params);
        self.by(&[&self.root.below(params, key())])
    }

    fn accepts(&self) -> ServerConfig {
        accept(Callers::new(self.anchors()), self.good().certified(), &[b"h2"]).expect("good")
    }

    fn dials(&self) -> ClientConfig {
        let shows: Arc<dyn ResolvesClientCert> = self.good().certified();
        dial(Callee::any(self.anchors()), Some(shows), &[b"h2"]).expect("good")
    }

    fn good(&self) -> Shown {
        self.leaf(|_| {})
    }

    /// How `shown` fares with the chain's verifier, as a caller, and as a callee.
    fn verdicts(&self, shown: &Shown) -> [(&'static str, Option<Refusal>); 5] {
        let refusal = |error: rustls::Error| {
            Refusal::behind(&error).unwrap_or_else(|| panic!("no refusal: {error:?}"))
        };
        let (leaf, rest) = shown.chain.split_first().expect("a leaf");
        let at = pki_types::UnixTime::now();
        let name = ServerName::try_from("anything").expect("a name");
        let chain = self.anchors().verify(&shown.chain, now()).err();
        let caller = Callers::new(self.anchors()).verify_client_cert(leaf, rest, at).err();
        let callee = Callee::any(self.anchors()).verify_server_cert(leaf, rest, &name, &[], at);

        let shows: Arc<dyn ResolvesClientCert> = shown.certified();
        let dials = dial(Callee::any(self.anchors()), Some(shows), &[b"h2"]).expect("good");
        let called = meet(dials, self.accepts()).server_error;
        let shows: Arc<dyn ResolvesServerCert> = shown.certified();
        let accepts = accept(Callers::new(self.anchors()), shows, &[b"h2"]).expect("good");
        let answered = meet(self.dials(), accepts).client_error;
        [
            ("the chain alone", chain),
            ("as a caller's", caller.map(refusal)),
            ("as a callee's", callee.err().map(refusal)),
            // A key that TLS does not sign with here is not even shown.
            (
                "from a caller",
                called.map(|error| match refusal(error) {
                    Refusal::Absent => Refusal::Key,
                    other => other,
                }),
            ),
            (
                "from a callee",
                answered.map(|error| Refusal::behind(&error).unwrap_or(Refusal::Key)),
            ),
        ]
    }
}

/// A handshake that is over.
struct Met {
    client: Connection,
    client_error: Option<rustls::Error>,
    server_error: Option<rustls::Error>,
}

/// Lets a client and a server shake hands in memory.
fn meet(client: impl Into<Arc<ClientConfig>>, server: impl Into<Arc<ServerConfig>>) -> Met {
    let name = ServerName::try_from("anything").expect("a name");
    let mut client = Connection::from(ClientConnection::new(client.into(), name).expect("good"));
    let mut server = Connection::from(ServerConnection::new(server.into()).expect("good"));
    let (mut client_error, mut server_error) = (None, None);
    loop {
        let forth = carry(&mut client, &mut server, &mut server_error);
        let back = carry(&mut server, &mut client, &mut client_error);
        if !forth && !back {
            return Met { client, client_error, server_error };
        }
    }
}

/// Carries what `from` has to say to `to`, unless it has failed already; whether there was any.
fn carry(from: &mut Connection, to: &mut Connection, error: &mut Option<rustls::Error>) -> bool {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).expect("memory takes all");
    }
    let said = !wire.is_empty();
    let mut rest = &wire[..];
    while error.is_none() && !rest.is_empty() && to.read_tls(&mut rest).expect("memory") > 0 {
        *error = to.process_new_packets().err();
    }
    said
}

fn of_kind(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("a key")
}

#[test]
fn a_good_certificate_is_believed_on_both_sides_for_exactly_what_it_says() {
    let mesh = Mesh::new();
    let server = {
        let key = key();
        let leaf = mesh.server_root.sign(&good(SERVER), &key);
        Shown { chain: vec![leaf, mesh.server_root.der.clone()], key }
    };
    let above = mesh.root.below(authority("above"), key());
    let cases = [
        ("P-256", mesh.leaf_with(of_kind(&rcgen::PKCS_ECDSA_P256_SHA256), |_| {}), WEB),
        ("Ed25519", mesh.leaf_with(of_kind(&rcgen::PKCS_ED25519), |_| {}), WEB),
        ("under the root itself", mesh.by(&[&mesh.root]), WEB),
        (
            "under two intermediates",
            mesh.by(&[&above.below(authority("under"), key()), &above]),
            WEB,
        ),
        (
            "an intermediate with both usages",
            mesh.by_spoilt(|params| params.extended_key_usages = good(WEB).extended_key_usages),
            WEB,
        ),
        (
            "the longest lifetime",
            mesh.leaf(|params| params.not_after = params.not_before + LIFETIME_MAX),
            WEB,
        ),
        ("a server by the servers' root", server, SERVER),
    ];
    for (why, shown, path) in cases {
        let proven = mesh.anchors().verify(&shown.chain, now()).expect(why);
        assert_eq!(proven.id.to_string(), id(path), "{why}");
        assert_eq!(read(&shown.chain[0]), Ok(proven.clone()), "{why}");
        assert_eq!(id_of(&shown.chain[0]), Ok(proven.id), "{why}");
        for (side, refusal) in mesh.verdicts(&shown) {
            assert_eq!(refusal, None, "{why}, {side}");
        }
    }
}

fn assert_refused(mesh: &Mesh, cases: Vec<(&str, Shown, Refusal)>) {
    for (why, shown, expected) in cases {
        for (side, refusal) in mesh.verdicts(&shown) {
            let refusal = refusal.unwrap_or_else(|| panic!("{why} is believed, {side}"));
            assert_eq!(discriminant(&refusal), discriminant(&expected), "{why}, {side}: {refusal}");
        }
    }
}

/// Some refusal for the chain; which rule of RFC 5280 it breaks is for webpki to tell.
fn chain() -> Refusal {
    Refusal::Chain(webpki::Error::BadDer)
}

#[test]
fn who_shows_no_certificate_is_refused_unless_strangers_are_admitted() {
    let mesh = Mesh::new();
    let nobody = || dial(Callee::any(mesh.anchors()), None, &[b"h2"]).expect("good");
    let refused = meet(nobody(), mesh.accepts()).server_error.expect("T1");
    assert_eq!(Refusal::behind(&refused), Some(Refusal::Absent), "T1");
    assert_eq!(mesh.anchors().verify(&[], now()).err(), Some(Refusal::Absent), "T1");

    let callers = Callers::or_strangers(mesh.anchors());
    let open = Arc::new(accept(callers, mesh.good().certified(), &[b"h2"]).expect("good"));
    assert_eq!(meet(nobody(), open.clone()).server_error, None, "a stranger");
    let spoilt = mesh.named(vec![]);
    let shows: Arc<dyn ResolvesClientCert> = spoilt.certified();
    let spoilt = dial(Callee::any(mesh.anchors()), Some(shows), &[b"h2"]).expect("good");
    let refused = meet(spoilt, open).server_error.expect("who shows one is no stranger");
    assert_eq!(Refusal::behind(&refused), Some(Refusal::NotOneUri));
}

#[test]
fn names_that_are_no_identity_of_ours_are_refused() {
    let mesh = Mesh::new();
    let (web, path) = (id(WEB), Refusal::Uri(InvalidSpiffeId::Path));
    let one = |text: &str| mesh.named(vec![uri(text)]);
    let no = |_: &str| path.clone();
    let cases = vec![
        ("T4", one("spiffe://other.consul/ns/default/dc/dc1/svc/web"), Refusal::TrustDomain),
        ("T4 datacenter", one(&id("/ns/default/dc/dc2/svc/web")), Refusal::Datacenter),
        (
            "T5",
            mesh.named(vec![uri(&web), uri(&id("/ns/default/dc/dc1/svc/db"))]),
            Refusal::NotOneUri,
        ),
        ("T5 the same twice", mesh.named(vec![uri(&web), uri(&web)]), Refusal::NotOneUri),
        (
            "T6 the subject's",
            mesh.leaf(|params| {
                params.subject_alt_names.clear();
                params.distinguished_name.push(DnType::CommonName, id(WEB));
            }),
            Refusal::NotOneUri,
        ),
        ("T6 DNS", mesh.named(vec![dns("web")]), Refusal::NotOneUri),
        ("T6 URI and DNS", mesh.named(vec![uri(&web), dns("web")]), Refusal::NotOneUri),
        ("T7 scheme", one(&web.replace("spiffe:", "SPIFFE:")), no("scheme")),
        ("T7 no scheme", one(&web.replace("spiffe://", "")), no("scheme")),
        ("T7 dots", one(&id("/ns/default/dc/dc1/svc/../svc/web")), no("dots")),
        ("T7 query", one(&format!("{web}?x#y")), no("query")),
        ("T7 percent", one(&id("/ns/default/dc/dc1/svc/%77eb")), no("percent")),
        ("T7 user", one(&web.replace("//", "//u@")), no("user")),
        ("T7 port", one(&web.replace(".consul", ".consul:1")), no("port")),
        ("T7 capitals", one(&web.replace(".consul", ".CONSUL")), no("capitals")),
        ("T7 NUL", one(&format!("{web}\0")), no("NUL")),
        ("T7 slash", one(&format!("{web}/")), no("slash")),
        ("T7 empty segment", one(&id(&format!("/{WEB}"))), no("empty")),
        ("T7 long", one(&format!("{web}{}", "a".repeat(2048))), no("long")),
        ("T7 empty", one(""), no("empty")),
        ("T8 the authority's", one(&id("")), no("authority")),
        ("T8 an agent", one(&id("/agent/client/dc/dc1/id/n1")), Refusal::Role),
        ("T8 a gateway", one(&id("/gateway/mesh/dc/dc1")), Refusal::Role),
        ("J8 a server by the mesh's root", one(&id(SERVER)), Refusal::UnknownIssuer),
        (
            "J8 a service by the servers' root",
            mesh.by(&[&mesh.server_root]),
            Refusal::UnknownIssuer,
        ),
    ];
    assert_refused(&mesh, cases);
}

#[test]
fn leaves_that_are_unfit_are_refused() {
    let mesh = Mesh::new();
    let leaf = |spoil: Spoil| mesh.leaf(spoil);
    let cut = |change: fn(&mut Vec<u8>)| {
        let mut shown = mesh.good();
        let mut octets = shown.chain[0].to_vec();
        change(&mut octets);
        shown.chain[0] = CertificateDer::from(octets);
        shown
    };
    use ExtendedKeyUsagePurpose as Eku;
    let cases = vec![
        ("T3 1 s ago", leaf(|p| p.not_after = moment(-1)), Refusal::Expired),
        ("T3 1 h ago", leaf(|p| (p.not_before, p.not_after) = (moment(-7200), moment(-3600))), {
            Refusal::Expired
        }),
        ("T3 not yet", leaf(|p| p.not_before = moment(360)), Refusal::NotYetValid),
        ("T9 none", leaf(|p| p.extended_key_usages.clear()), Refusal::Usage),
        ("T9 server only", leaf(|p| p.extended_key_usages = vec![Eku::ServerAuth]), Refusal::Usage),
        ("T9 client only", leaf(|p| p.extended_key_usages = vec![Eku::ClientAuth]), Refusal::Usage),
        ("T9 one more", leaf(|p| p.extended_key_usages.push(Eku::CodeSigning)), Refusal::Usage),
        ("T9 any", leaf(|p| p.extended_key_usages.push(Eku::Any)), Refusal::Usage),
        ("T9 no key usage", leaf(|p| p.key_usages.clear()), Refusal::Usage),
        ("T10 an authority", leaf(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), {
            Refusal::Usage
        }),
        (
            "T10 signs certificates",
            leaf(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            Refusal::Usage,
        ),
        (
            "T11",
            leaf(|p| {
                let mut unknown = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                unknown.set_criticality(true);
                p.custom_extensions.push(unknown);
            }),
            chain(),
        ),
        ("T12 ten years", leaf(|p| p.not_after = moment(315_360_000)), Refusal::Lifetime),
        (
            "T12 1 s more than a week",
            leaf(|p| p.not_after = p.not_before + LIFETIME_MAX + Duration::from_secs(1)),
            Refusal::Lifetime,
        ),
        ("cut short", cut(|octets| octets.truncate(octets.len() / 2)), Refusal::Malformed),
        ("with an octet after it", cut(|octets| octets.push(0)), Refusal::Malformed),
        ("with another signature", cut(|octets| *octets.last_mut().expect("octets") ^= 1), chain()),
    ];
    assert_refused(&mesh, cases);
    let good = mesh.good();
    for cut in 0..good.chain[0].len() {
        let part = [CertificateDer::from(&good.chain[0][..cut]), good.chain[1].clone()];
        let refused = mesh.anchors().verify(&part, now()).err();
        assert_eq!(refused, Some(Refusal::Malformed), "cut at {cut}");
    }
}

#[test]
fn keys_of_other_kinds_are_refused() {
    let mesh = Mesh::new();
    let with = |algorithm| mesh.leaf_with(of_kind(algorithm), |_| {});
    let under = |algorithm| {
        let strange = mesh.root.below(authority("strange"), of_kind(algorithm));
        mesh.by(&[&strange])
    };
    let cases = vec![
        ("T13 P-384", with(&rcgen::PKCS_ECDSA_P384_SHA384), Refusal::Key),
        ("T13 P-521", with(&rcgen::PKCS_ECDSA_P521_SHA512), Refusal::Key),
        ("T13 RSA", with(&rcgen::PKCS_RSA_SHA256), Refusal::Key),
        ("T13 an authority's P-384", under(&rcgen::PKCS_ECDSA_P384_SHA384), chain()),
        ("T13 an authority's RSA", under(&rcgen::PKCS_RSA_SHA256), chain()),
    ];
    assert_refused(&mesh, cases);
}

#[test]
fn chains_that_do_not_hold_are_refused() {
    let mesh = Mesh::new();
    let other = Signer::root("mesh root");
    let alone = {
        let key = key();
        let leaf = good(WEB).self_signed(&key).expect("signed").der().clone();
        Shown { chain: vec![leaf], key }
    };
    let without_intermediate = {
        let mut shown = mesh.good();
        shown.chain.truncate(1);
        shown
    };
    let leaf_by_leaf = {
        let above = mesh.intermediate.below(good(WEB), key());
        mesh.by(&[&above, &mesh.intermediate])
    };
    let short = {
        let mut params = authority("short");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let short = mesh.root.below(params, key());
        mesh.by(&[&short.below(authority("below"), key()), &short])
    };
    let many = {
        let mut shown = mesh.good();
        shown.chain.extend(std::iter::repeat_n(mesh.intermediate.der.clone(), 98));
        shown
    };
    let four = {
        let mut shown = mesh.good();
        shown.chain.extend([mesh.root.der.clone(), mesh.root.der.clone()]);
        shown
    };
    let cases = vec![
        ("T2 another authority", mesh.by(&[&Signer::root("other")]), Refusal::UnknownIssuer),
        ("T2 another authority of the same name", mesh.by(&[&other]), chain()),
        ("T2 self-signed", alone, Refusal::UnknownIssuer),
        ("without its intermediate", without_intermediate, Refusal::UnknownIssuer),
        (
            "T9 an authority for servers only",
            mesh.by_spoilt(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            Refusal::Usage,
        ),
        ("T10 a leaf signs a leaf", leaf_by_leaf, chain()),
        ("T10 CA:false", mesh.by_spoilt(|params| params.is_ca = IsCa::ExplicitNoCa), chain()),
        ("T10 no constraints", mesh.by_spoilt(|params| params.is_ca = IsCa::NoCa), chain()),
        (
            "T10 an authority that ran out",
            mesh.by_spoilt(|params| params.not_after = moment(-1)),
            Refusal::Expired,
        ),
        ("T10 the path is too long", short, chain()),
        (
            "T11 a constraint on URIs",
            mesh.by_spoilt(|params| {
                // Permitted: URIs of example.com. Written by hand: rcgen has no such constraint.
                let permitted = b"\x30\x11\xa0\x0f\x30\x0d\x86\x0bexample.com".to_vec();
                let mut constraint = CustomExtension::from_oid_content(&[2, 5, 29, 30], permitted);
                constraint.set_criticality(true);
                params.custom_extensions.push(constraint);
            }),
            chain(),
        ),
        ("T14 a hundred", many, Refusal::ChainTooLong),
        ("T14 four", four, Refusal::ChainTooLong),
        (
            "T14 17 KiB",
            mesh.by_spoilt(|params| {
                let padding = [b"\x04\x82\x44\x00".to_vec(), vec![0; 17 * 1024]].concat();
                params
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(&[1, 2, 3, 4], padding));
            }),
            Refusal::ChainTooLong,
        ),
    ];
    assert_refused(&mesh, cases);
}

#[test]
fn nothing_but_tls_1_3_is_spoken() {
    let mesh = Mesh::new();
    let hello: &[u8] = b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03\
        \x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\
        \x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\
        \x00\x00\x04\xc0\x2b\xc0\x2f\x01\x00";
    let mut server = ServerConnection::new(Arc::new(mesh.accepts())).expect("good");
    server.read_tls(&mut &hello[..]).expect("memory");
    let refused = server.process_new_packets().expect_err("T15: a client of 1.2");
    assert!(matches!(refused, rustls::Error::PeerIncompatible(_)), "{refused:?}");

    let hello: &[u8] = b"\x16\x03\x03\x00\x2a\x02\x00\x00\x26\x03\x03\
        \x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\
        \x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\
        \x00\xc0\x2b\x00";
    let name = ServerName::try_from("anything").expect("a name");
    let mut client = ClientConnection::new(Arc::new(mesh.dials()), name).expect("good");
    client.write_tls(&mut Vec::new()).expect("memory");
    client.read_tls(&mut &hello[..]).expect("memory");
    let refused = client.process_new_packets().expect_err("T15: a server of 1.2");
    let is_version =
        matches!(refused, rustls::Error::PeerIncompatible(_) | rustls::Error::PeerMisbehaved(_));
    assert!(is_version, "{refused:?}");

    assert_eq!(mesh.accepts().max_early_data_size, 0, "T15: no early data");
    assert!(!mesh.dials().enable_early_data, "T15: no early data");
    let met = meet(mesh.dials(), mesh.accepts());
    let group = met.client.negotiated_key_exchange_group().map(|group| group.name());
    assert_eq!(group, Some(rustls::NamedGroup::X25519));
    let suite = met.client.negotiated_cipher_suite().map(|suite| suite.suite());
    assert_eq!(suite, Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256));
}

#[test]
fn no_session_is_resumed_whatever_the_other_side_would_do() {
    let mesh = Mesh::new();
    let mut keen = mesh.dials();
    keen.resumption = Resumption::in_memory_sessions(8);
    let (keen, strict) = (Arc::new(keen), Arc::new(mesh.accepts()));
    let mut generous = mesh.accepts();
    generous.send_tls13_tickets = 2;
    generous.session_storage = ServerSessionMemoryCache::new(8);
    let (dials, generous) = (Arc::new(mesh.dials()), Arc::new(generous));
    for round in 0..2 {
        let met = meet(keen.clone(), strict.clone());
        assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full), "T16: {round}");
        let Connection::Client(client) = met.client else { panic!("it is one") };
        assert_eq!(client.tls13_tickets_received(), 0, "T16: {round}");
        let met = meet(dials.clone(), generous.clone());
        assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full), "T16: {round}");
    }
    // The test can fail: these two would resume.
    meet(keen.clone(), generous.clone());
    let met = meet(keen, generous);
    assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[test]
fn only_the_one_that_was_called_may_answer() {
    let mesh = Mesh::new();
    let call = |path: &str| {
        let expected: SpiffeId = id(path).parse().expect("an identity");
        let callee = Callee::only(mesh.anchors(), expected);
        let shows: Arc<dyn ResolvesClientCert> = mesh.good().certified();
        let config = dial(callee, Some(shows), &[b"h2"]).expect("good");
        meet(config, mesh.accepts()).client_error.map(|error| Refusal::behind(&error))
    };
    assert_eq!(call(WEB), None);
    assert_eq!(call("/ns/default/dc/dc1/svc/db"), Some(Some(Refusal::Unexpected)), "T18");
}

#[test]
fn a_pin_stands_for_its_root_and_for_servers_alone() {
    let mesh = Mesh::new();
    let other = Signer::root("server root");
    let pin = pin_of(&mesh.server_root.der).expect("a certificate");
    let server = |signer: &Signer, path: &str, root: Option<&Signer>| {
        let mut chain = vec![signer.sign(&good(path), &key())];
        chain.extend(root.map(|root| root.der.clone()));
        chain
    };
    let verify = |pin: [u8; 32], datacenter: &str, chain: &[CertificateDer<'_>]| {
        let anchors = Anchors::pinned(pin, datacenter.parse().expect("a name"));
        anchors.verify(chain, now()).map(|proven| proven.id.to_string())
    };
    let (ours, root) = (&mesh.server_root, Some(&mesh.server_root));
    let whole = server(ours, SERVER, root);
    assert_eq!(verify(pin, "dc1", &whole), Ok(id(SERVER)));
    assert_eq!(find_pinned(&whole, &pin), Some(&ours.der));
    let cases = [
        ("another pin", [9; 32], "dc1", whole.clone(), Refusal::UnknownIssuer),
        ("another datacenter", pin, "dc2", whole, Refusal::Datacenter),
        ("no root shown", pin, "dc1", server(ours, SERVER, None), Refusal::UnknownIssuer),
        ("another's root", pin, "dc1", server(&other, SERVER, Some(&other)), {
            Refusal::UnknownIssuer
        }),
        (
            "the root is only shown",
            pin,
            "dc1",
            server(&other, SERVER, root),
            Refusal::UnknownIssuer,
        ),
        ("a service", pin, "dc1", server(ours, WEB, root), Refusal::Role),
        ("an agent", pin, "dc1", server(ours, "/agent/client/dc/dc1/id/n1", root), Refusal::Role),
    ];
    for (why, pin, datacenter, chain, expected) in cases {
        let refused = verify(pin, datacenter, &chain).expect_err(why);
        assert!(
            discriminant(&refused) == discriminant(&expected)
                // The forger's name is the true root's: then the signature is what fails.
                || matches!(refused, Refusal::Chain(_)) && expected == Refusal::UnknownIssuer,
            "{why}: {refused:?}"
        );
    }
}

#[test]
fn a_root_that_cannot_be_read_vouches_for_nobody_and_is_counted() {
    let mesh = Mesh::new();
    let (domain, dc) = (DOMAIN.parse().expect("good"), "dc1".parse().expect("a name"));
    let anchors = Anchors::new(domain, dc).services([&b"garbage"[..]]);
    assert_eq!(anchors.malformed(), 1);
    let refused = anchors.verify(&mesh.good().chain, now()).err();
    assert_eq!(refused, Some(Refusal::UnknownIssuer));
}
