//! Tokens that are good and tokens that are not, as tables.

use serde_json::json;

use super::*;
use crate::jwks::Material;

/// Takes a signature for good if it is the key's name.
struct ByName;

impl Verifier for ByName {
    fn is_signed(&self, key: &Key, _: Algorithm, _: &[u8], signature: &[u8]) -> bool {
        key.id.as_deref().map(str::as_bytes) == Some(signature)
    }
}

struct Sent(Vec<(&'static str, String)>);

impl Fields for Sent {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let of_name = self.0.iter().filter(|(own, _)| *own == name);
        of_name.for_each(|(_, value)| see(value.as_bytes()));
    }
}

fn token(head: &Value, claims: &Value, signature: &str) -> String {
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    let (head, claims) = (part(head.to_string()), part(claims.to_string()));
    format!("{head}.{claims}.{}", part(signature.to_owned()))
}

fn good() -> String {
    token(&head(), &claims(), "k1")
}

fn head() -> Value {
    json!({ "alg": "ES256", "kid": "k1" })
}

fn claims() -> Value {
    json!({ "iss": "https://a", "aud": ["x", "db"], "exp": 1_060, "nbf": 940, "role": "admin" })
}

#[allow(clippy::needless_pass_by_value, reason = "rows read better without &")]
fn provider(more: Value) -> JwtProvider {
    let mut whole = json!({
        "JSONWebKeySet": { "Local": { "Filename": "/k" } },
        "Issuer": "https://a",
        "Audiences": ["db"],
    });
    whole.as_object_mut().expect("one").extend(more.as_object().expect("one").clone());
    serde_json::from_value(whole).expect("Consul's shape")
}

fn proved(
    provider: JwtProvider,
    query: &str,
    sent: &Sent,
    now: u64,
) -> (Result<Arc<Value>, Unproven>, Vec<Edit>) {
    let key = |name: &str| Key {
        id: Some(name.to_owned()),
        algorithm: None,
        material: Material::P256(vec![]),
    };
    let set = KeySet { keys: vec![key("k0"), key("k1")] };
    let providers = Providers::from([("p".into(), Arc::new(provider))]);
    let fetched = KeyRing::from([("p".into(), Arc::new(set))]);
    let inline = inline(&providers);
    let keys = Keys { inline: &inline, fetched: &fetched };
    let brought = (query, sent as &dyn Fields);
    let mut bearer = Bearer::new(&providers, keys, &ByName, brought, UnixTime::from_secs(now));
    let claims = bearer.claims("p");
    assert_eq!(bearer.claims("other"), Err(Unproven::NoKeys), "nobody declared it");
    (claims, bearer.edits())
}

#[test]
fn a_token_is_good_or_it_is_not() {
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        token(&head(), &claims, "k1")
    };
    let headed = |head: Value| token(&head, &claims(), "k1");
    let without_end = {
        let mut claims = claims();
        claims.as_object_mut().expect("one").remove("exp");
        token(&head(), &claims, "k1")
    };
    let good = good();
    let cases: Vec<(String, u64, bool, &str)> = vec![
        (good.clone(), 1_000, true, "as it should be"),
        (good.clone(), 1_089, true, "within the skew after its end"),
        (good.clone(), 1_090, false, "after that"),
        (good.clone(), 910, true, "within the skew before its begin"),
        (good.clone(), 909, false, "before that"),
        (with("exp", json!(1_060.5)), 1_090, true, "a fraction of a second"),
        (with("exp", json!("1060")), 1_000, false, "an end that is no number"),
        (without_end, 1_000, false, "no end"),
        (with("nbf", json!(true)), 1_000, false, "a begin that is no number"),
        (with("iss", json!("https://b")), 1_000, false, "another issuer"),
        (with("iss", json!(["https://a"])), 1_000, false, "a list of issuers"),
        (with("aud", json!("db")), 1_000, true, "one audience"),
        (with("aud", json!("web")), 1_000, false, "another"),
        (with("aud", json!(null)), 1_000, false, "none"),
        (token(&head(), &claims(), "k2"), 1_000, false, "another's signature"),
        (token(&head(), &claims(), ""), 1_000, false, "no signature"),
        (token(&head(), &claims(), "k0"), 1_000, false, "the signature of another key of the set"),
        (headed(json!({ "alg": "ES256" })), 1_000, true, "no key named: any of the set"),
        (headed(json!({ "alg": "ES256", "kid": 1 })), 1_000, false, "a key's name is a text"),
        (headed(json!({ "alg": "none", "kid": "k1" })), 1_000, false, "no algorithm"),
        (headed(json!({ "alg": "HS256", "kid": "k1" })), 1_000, false, "a shared secret"),
        (headed(json!({ "alg": "RS256", "kid": "k1" })), 1_000, false, "not the key's"),
        (headed(json!({ "alg": "ES256", "kid": "k1", "crit": ["b64"] })), 1_000, false, "crit"),
        (token(&head(), &json!([]), "k1"), 1_000, false, "claims are an object"),
        (format!("{good}.{good}"), 1_000, false, "too many parts"),
        ("a.b".to_owned(), 1_000, false, "too few"),
        (format!("{good}="), 1_000, false, "padding"),
        ("x".repeat(20_000), 1_000, false, "too long"),
    ];
    for (token, now, expected, why) in cases {
        let sent = Sent(vec![("authorization", format!("Bearer {token}"))]);
        let (got, _) = proved(provider(json!({})), "", &sent, now);
        let expected = if expected { Ok(()) } else { Err(Unproven::Invalid) };
        assert_eq!(got.map(drop), expected, "{why}");
    }
}

#[test]
fn a_token_is_looked_for_where_the_provider_says() {
    let token = good();
    let at = |location: Value| provider(json!({ "Locations": [location] }));
    let field = |name: &'static str, value: String| Sent(vec![(name, value)]);
    let bearer = || format!("Bearer {token}");
    let query = format!("a=b&access_token={token}");
    let cookie = format!("a=b; session={token}");
    let cases = [
        (provider(json!({})), "", field("authorization", bearer()), Ok(()), "the usual place"),
        (provider(json!({})), &*query, Sent(vec![]), Ok(()), "the other"),
        (provider(json!({})), &query, field("authorization", bearer()), Ok(()), "one and the same"),
        (
            provider(json!({})),
            &query,
            field("authorization", "Bearer x.y.z".into()),
            Err(Unproven::Invalid),
            "two tokens",
        ),
        (
            provider(json!({})),
            "",
            Sent(vec![("authorization", bearer()), ("authorization", "Bearer a".into())]),
            Err(Unproven::Invalid),
            "two lines",
        ),
        (
            provider(json!({})),
            "",
            field("authorization", "Basic eDp5".into()),
            Err(Unproven::Missing),
            "another scheme",
        ),
        (at(json!({"Cookie":{"Name":"session"}})), "", field("cookie", cookie), Ok(()), "a cookie"),
        (
            at(json!({ "Header": { "Name": "X-Token" } })),
            "",
            field("x-token", token.clone()),
            Ok(()),
            "a field of its own",
        ),
        (
            at(json!({ "QueryParam": { "Name": "t" } })),
            &query,
            Sent(vec![]),
            Err(Unproven::Missing),
            "nowhere else",
        ),
    ];
    for (provider, query, sent, expected, why) in cases {
        let (got, _) = proved(provider, query, &sent, 1_000);
        assert_eq!(got.map(drop), expected, "{why}");
    }
}

#[test]
fn the_application_gets_claims_and_not_the_token() {
    let sent = Sent(vec![("authorization", format!("Bearer {}", good()))]);
    let forwarding = json!({ "Forwarding": { "HeaderName": "X-Claims" } });
    let (got, edits) = proved(provider(forwarding), "", &sent, 1_000);
    assert_eq!(got.expect("good")["role"], "admin");
    let payload = URL_SAFE_NO_PAD.encode(claims().to_string());
    let expected = [Edit::Drop("authorization".into()), Edit::Set("x-claims".into(), payload)];
    assert_eq!(edits, expected);
    let kept = json!({ "Locations": [
        { "Header": { "Name": "Authorization", "ValuePrefix": "bearer ", "Forward": true } },
    ] });
    let (_, edits) = proved(provider(kept), "", &sent, 1_000);
    assert_eq!(edits, [], "it may have it, too");
}

/// The fuzz target: no text breaks the reader of tokens, and no text without a key's signature is good.
#[test]
fn no_text_is_a_good_token_by_chance() {
    let good = good().into_bytes();
    let mut draw = 0x5EED_u64;
    let mut below = |bound: usize| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(draw >> 33).unwrap_or(0) % bound
    };
    let end = good.iter().rposition(|octet| *octet == b'.').expect("three parts");
    for _ in 0..5_000 {
        let mut text = good.clone();
        for _ in 0..=below(4) {
            let at = below(end);
            match below(3) {
                0 => text[at] = b"AZaz09-_.=\xFF"[below(11)],
                1 => drop(text.remove(at)),
                _ => text.insert(at, b"AZ.{}\""[below(6)]),
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        // The verifier here knows no contents: what must hold is that nothing panics.
        let _ =
            Token::parse(&text).map(|token| token.holds(&provider(json!({})), UnixTime::default()));
    }
}
