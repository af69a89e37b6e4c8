//! Intentions that decide about requests, through two proxies: permissions, tokens, open upgrades.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hawser_core::catalog::Protocol;
use http_body_util::BodyExt as _;
use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{self, World, get_with};

fn requests(json: Value) -> hawser_core::permission::Requests {
    serde_json::from_value(json).expect("Consul's shape")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_is_decided_by_the_path_that_the_application_gets() {
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    world.requests = Some(requests(json!({ "Permissions": [
        { "Action": "deny", "HTTP": { "PathPrefix": "/admin" } },
        { "Action": "deny", "HTTP": { "Header": [{ "Name": "x-role", "Exact": "guest" }] } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/", "Methods": ["GET"] } },
    ] })));
    world.start().await;
    type Fields = &'static [(&'static str, &'static str)];
    let cases: &[(&str, Fields, u16, &str)] = &[
        ("/pub", &[], 200, "a GET /pub "),
        ("/pub/../pub//x", &[], 200, "a GET /pub/x "),
        ("/admin", &[], 403, "permission_denied"),
        ("/pub/../admin", &[], 403, "permission_denied"),
        ("//admin", &[], 403, "permission_denied"),
        ("/%61dmin", &[], 403, "permission_denied"),
        ("/pub/%2e%2e/admin", &[], 403, "permission_denied"),
        ("/pub%2f..%2fadmin", &[], 400, "bad_request"),
        ("/pub", &[("x-role", "user"), ("x-role", "guest")], 403, "permission_denied"),
        ("/pub", &[("x-role", "user, guest")], 403, "permission_denied"),
        ("/pub", &[("x_role", "guest")], 400, "bad_request"),
    ];
    for (path, fields, status, expected) in cases {
        let answer = get_with(world.outbound, path, fields).await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        assert_eq!(answer.status(), *status, "{path} {fields:?}: {text}");
        assert!(text.starts_with(expected), "{path} {fields:?}: {text}");
    }
    let post = Request::post("/pub").header("host", "db").body(Default::default()).expect("good");
    let answer = world::call(world.outbound, post).await.expect("answered");
    assert_eq!(answer.status(), StatusCode::FORBIDDEN, "the default decides");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_requests_are_carried_rules_about_them_refuse() {
    let mut world = World::new(Protocol::Tcp);
    world.tcp_echo().await;
    world.requests = Some(requests(json!({ "Permissions": [
        { "Action": "allow", "HTTP": { "PathPrefix": "/" } },
    ] })));
    world.start().await;
    let mut rest = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(world.outbound).await {
        let _ = stream.read_to_end(&mut rest).await;
    }
    assert_eq!(rest, b"", "nothing was let through");
    world::eventually("the reason is an edge", || {
        world.client_edges().iter().any(|(verdict, _)| verdict == "permissions_need_http")
    })
    .await;
}

/// A key, its set as a provider shows it, and tokens by it.
struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref()).expect("good");
        Self { pair, random }
    }

    fn set(&self) -> String {
        let point = self.pair.public_key().as_ref();
        let part = |octets: &[u8]| URL_SAFE_NO_PAD.encode(octets);
        let (x, y) = (part(&point[1..33]), part(&point[33..]));
        let key = json!({ "kty": "EC", "crv": "P-256", "kid": "k1", "x": x, "y": y });
        STANDARD.encode(json!({ "keys": [key] }).to_string())
    }

    fn token(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "ES256", "kid": "k1" })), part(claims));
        let signature = self.pair.sign(&self.random, signed.as_bytes()).expect("signed");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_passes_with_its_token_and_the_application_gets_its_claims() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let provider = json!({
        "JSONWebKeySet": { "Local": { "JWKS": signer.set() } },
        "Issuer": "https://issuer",
        "Forwarding": { "HeaderName": "x-claims" },
    });
    let mut world = World::new(Protocol::Http);
    world.http_echo("a").await;
    let provider = serde_json::from_value(provider).expect("Consul's shape");
    world.providers.insert("okta".into(), std::sync::Arc::new(provider));
    let role = json!({ "Path": ["role"], "Value": "admin" });
    world.requests = Some(requests(json!({ "Permissions": [
        { "Action": "allow", "HTTP": { "PathPrefix": "/admin" },
          "JWT": { "Providers": [{ "Name": "okta", "VerifyClaims": [role] }] } },
        { "Action": "allow", "HTTP": { "PathExact": "/nobody" },
          "JWT": { "Providers": [{ "Name": "undeclared" }] } },
        { "Action": "allow", "HTTP": { "PathPrefix": "/pub" } },
    ] })));
    world.start().await;
    let end = u64::MAX >> 16;
    let claims =
        |role: &str, issuer: &str, end: u64| json!({ "iss": issuer, "exp": end, "role": role });
    let good = signer.token(&claims("admin", "https://issuer", end));
    let cases = [
        ("/admin", Some(good.clone()), 200, "a GET /admin "),
        ("/admin", None, 401, "token_missing"),
        (
            "/admin",
            Some(signer.token(&claims("user", "https://issuer", end))),
            403,
            "permission_denied",
        ),
        ("/admin", Some(signer.token(&claims("admin", "https://else", end))), 401, "token_invalid"),
        ("/admin", Some(signer.token(&claims("admin", "https://issuer", 1))), 401, "token_invalid"),
        (
            "/admin",
            Some(stranger.token(&claims("admin", "https://issuer", end))),
            401,
            "token_invalid",
        ),
        ("/nobody", Some(good.clone()), 503, "token_keys_missing"),
        ("/pub", None, 200, "a GET /pub "),
    ];
    for (path, token, status, expected) in cases {
        let bearer = token.map(|token| format!("Bearer {token}"));
        // A caller has no say in claims, with or without a token.
        let mut fields = vec![("x-claims", "forged")];
        fields.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
        let answer = get_with(world.outbound, path, &fields).await;
        let text = String::from_utf8_lossy(answer.body()).into_owned();
        assert_eq!(answer.status(), status, "{path}: {text}");
        assert!(text.starts_with(expected) && !text.contains("forged"), "{path}: {text}");
        assert!(!text.contains("Bearer ey"), "the token is not passed on: {text}");
        assert_eq!(text.contains("x-claims"), path == "/admin" && status == 200, "{text}");
        assert_eq!(answer.headers().contains_key("www-authenticate"), status == 401, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_became_is_cut_when_it_is_no_longer_allowed() {
    let mut world = World::new(Protocol::Http);
    world.upgrading().await;
    let allow = |path: &str| {
        let http = json!({ "PathPrefix": path });
        Some(requests(json!({ "Permissions": [{ "Action": "allow", "HTTP": http }] })))
    };
    world.requests = allow("/");
    world.start().await;
    let mut stream = TcpStream::connect(world.outbound).await.expect("listening");
    let head =
        "GET /chat HTTP/1.1\r\nhost: db\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("open");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("an answer"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    let mut echo = [0; 5];
    // Another rule that allows it lets it live.
    world.requests = allow("/chat");
    world.republish();
    world.until_guarded("/other").await;
    stream.write_all(b"hello").await.expect("open");
    stream.read_exact(&mut echo).await.expect("echoed");
    world.requests = allow("/other");
    world.republish();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut echo)).await;
    assert!(matches!(ended, Ok(Ok(0) | Err(_))), "still open: {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_is_told_in_its_own_words() {
    let mut world = World::new(Protocol::Grpc);
    world.grpc_echo().await;
    world.requests = Some(requests(json!({ "Permissions": [
        { "Action": "allow", "HTTP": { "PathExact": "/pkg.Service/Read" } },
    ] })));
    world.start().await;
    let mut sender = world::http2(world.outbound).await;
    for (path, status) in [("/pkg.Service/Read", None), ("/pkg.Service/Write", Some("7"))] {
        let request = Request::post(format!("http://db{path}"))
            .header("content-type", "application/grpc")
            .body(http_body_util::Full::default())
            .expect("good");
        let answer = sender.send_request(request).await.expect("answered");
        let told =
            answer.headers().get("grpc-status").map(|it| it.to_str().expect("ASCII").to_owned());
        assert_eq!(told.as_deref(), status, "{path}");
        let _ = answer.into_body().collect().await;
    }
}
