//! What the verifiers refuse, certificate by certificate.

use super::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use time::OffsetDateTime;

const DOMAIN: &str = "spiffe://11111111-2222-3333-4444-555555555555.consul";

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    der: CertificateDer<'static>,
}

fn ca() -> Ca {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let der = params.self_signed(&key).expect("a root").der().clone();
    Ca { issuer: Issuer::new(params, key), der }
}

fn good() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(&format!("{DOMAIN}/ns/default/dc/dc1/svc/web"))];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = OffsetDateTime::from_unix_timestamp(NOW as i64 - 300).expect("a time");
    params.not_after = OffsetDateTime::from_unix_timestamp(NOW as i64 + 86_400).expect("a time");
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().expect("ASCII"))
}

fn anchors(ca: &Ca) -> Anchors {
    Anchors::new(&Trust {
        trust_domain: DOMAIN
            .strip_prefix("spiffe://")
            .expect("it begins so")
            .parse()
            .expect("good"),
        datacenter: "dc1".parse().expect("a name"),
        roots: vec![ca.der.as_ref().into()],
        default_action: hawser_core::intention::Action::Deny,
    })
}

fn verify(anchors: &Anchors, ca: &Ca, params: &CertificateParams) -> Result<SpiffeId, Reason> {
    verify_key(anchors, ca, params, &KeyPair::generate().expect("a key"))
}

fn verify_key(
    anchors: &Anchors,
    ca: &Ca,
    params: &CertificateParams,
    key: &KeyPair,
) -> Result<SpiffeId, Reason> {
    let leaf = params.signed_by(key, &ca.issuer).expect("signed");
    let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    anchors.verify(leaf.der(), &[], now).map(|proven| proven.id)
}

#[test]
fn a_leaf_is_accepted_for_exactly_what_it_says() {
    let ca = ca();
    let id = verify(&anchors(&ca), &ca, &good()).expect("a good leaf");
    assert_eq!(id.to_string(), format!("{DOMAIN}/ns/default/dc/dc1/svc/web"));
}

/// T2–T13 of the attack catalogue.
#[test]
fn every_unfit_leaf_is_refused_with_its_reason() {
    type Spoil = fn(&mut CertificateParams);
    let cases: &[(&str, Spoil, Reason)] = &[
        ("no name at all", |p| p.subject_alt_names.clear(), Reason::MalformedIdentity),
        (
            "the identity in a DNS name",
            |p| p.subject_alt_names = vec![SanType::DnsName("web".try_into().expect("ASCII"))],
            Reason::MalformedIdentity,
        ),
        (
            "two identities",
            |p| p.subject_alt_names.push(uri(&format!("{DOMAIN}/ns/default/dc/dc1/svc/db"))),
            Reason::MalformedIdentity,
        ),
        (
            "the same identity twice",
            |p| p.subject_alt_names.push(uri(&format!("{DOMAIN}/ns/default/dc/dc1/svc/web"))),
            Reason::MalformedIdentity,
        ),
        (
            "another trust domain",
            |p| p.subject_alt_names = vec![uri("spiffe://other.consul/ns/default/dc/dc1/svc/web")],
            Reason::WrongTrustDomain,
        ),
        (
            "the authority's own id",
            |p| p.subject_alt_names = vec![uri(DOMAIN)],
            Reason::MalformedIdentity,
        ),
        (
            "an agent",
            |p| {
                p.subject_alt_names = vec![uri(&format!("{DOMAIN}/agent/client/dc/dc1/id/vm"))];
            },
            Reason::WrongRole,
        ),
        (
            "a server",
            |p| p.subject_alt_names = vec![uri(&format!("{DOMAIN}/agent/server/dc/dc1/id/s"))],
            Reason::WrongRole,
        ),
        (
            "dot segments",
            |p| {
                p.subject_alt_names =
                    vec![uri(&format!("{DOMAIN}/ns/default/dc/dc1/svc/../svc/web"))];
            },
            Reason::MalformedIdentity,
        ),
        (
            "a query",
            |p| p.subject_alt_names = vec![uri(&format!("{DOMAIN}/ns/default/dc/dc1/svc/web?x"))],
            Reason::MalformedIdentity,
        ),
        (
            "a NUL",
            |p| p.subject_alt_names = vec![uri(&format!("{DOMAIN}/ns/default/dc/dc1/svc/web\0"))],
            Reason::MalformedIdentity,
        ),
        ("no usages", |p| p.extended_key_usages.clear(), Reason::UnfitCertificate),
        (
            "for servers only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            Reason::UnfitCertificate,
        ),
        (
            "for clients only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Reason::UnfitCertificate,
        ),
        (
            "run out",
            |p| {
                p.not_after = OffsetDateTime::from_unix_timestamp(NOW as i64 - 1).expect("a time");
            },
            Reason::CertificateExpired,
        ),
        (
            "not yet valid",
            |p| {
                p.not_before =
                    OffsetDateTime::from_unix_timestamp(NOW as i64 + 60).expect("a time");
            },
            Reason::CertificateExpired,
        ),
        (
            "ten years",
            |p| {
                p.not_after =
                    OffsetDateTime::from_unix_timestamp(NOW as i64 + 315_360_000).expect("a time");
            },
            Reason::UnfitCertificate,
        ),
        (
            "an authority",
            |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            Reason::UntrustedCertificate,
        ),
    ];
    let ca = ca();
    let anchors = anchors(&ca);
    for (why, spoil, expected) in cases {
        let mut params = good();
        spoil(&mut params);
        assert_eq!(verify(&anchors, &ca, &params), Err(*expected), "{why}");
    }
}

#[test]
fn a_leaf_of_another_authority_or_with_another_key_is_refused() {
    let (ours, theirs) = (ca(), ca());
    let anchors = anchors(&ours);
    assert_eq!(verify(&anchors, &theirs, &good()), Err(Reason::UntrustedCertificate));
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    assert_eq!(verify_key(&anchors, &ours, &good(), &p384), Err(Reason::UnfitCertificate));
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    assert!(verify_key(&anchors, &ours, &good(), &ed25519).is_ok());
}

#[test]
fn a_chain_that_is_too_long_is_not_even_read() {
    let ca = ca();
    let leaf = good().signed_by(&KeyPair::generate().expect("a key"), &ca.issuer).expect("signed");
    let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let long = vec![ca.der.clone(); INTERMEDIATES_MAX + 1];
    assert_eq!(anchors(&ca).verify(leaf.der(), &long, now), Err(Reason::UnfitCertificate));
}

#[test]
fn what_is_spoken_is_what_both_know() {
    let cases: &[(bool, &[&[u8]], Wire, &str)] = &[
        (true, &[ALPN_H2, ALPN_HTTP1], Wire::H2, "HTTP/2 where it is offered"),
        (true, &[ALPN_HTTP1, ALPN_H2], Wire::H2, "in whatever order"),
        (true, &[ALPN_HTTP1], Wire::Http1, "or HTTP/1.1"),
        (true, &[], Wire::Native, "a native client says nothing"),
        (true, &[ALPN_TCP], Wire::Native, "a TCP caller of an HTTP service"),
        (false, &[ALPN_TCP], Wire::Tcp, "bytes with a verdict"),
        (false, &[ALPN_H2], Wire::Native, "bytes, whatever they are"),
    ];
    for (is_http, offered, expected, why) in cases {
        assert_eq!(Wire::choose(*is_http, offered.iter().copied()), *expected, "{why}");
    }
}

const NOW: u64 = 1_800_000_000;
