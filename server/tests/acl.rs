//! Access control of a real server on loopback: tokens are made, shown, refused and forgotten.

use std::net::TcpListener;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hawser_core::acl::DefaultPolicy;
use hawser_core::intention::Action;
use hawser_server::acl::Settings;
use hawser_server::identity::OperatorKey;
use hawser_server::{AuditSettings, Config, Handle, RaftTiming, Server, history, http};
use prometheus::Registry;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);

/// One server with access control on; it stops when this is dropped.
struct Guarded {
    handle: Handle,
    drain: CancellationToken,
    folder: TempDir,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: ::http::HeaderMap,
    body: Value,
    text: String,
}

impl Guarded {
    async fn start(initial_management: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let advertise = listener.local_addr().expect("bound");
        let config = Config {
            node: "s1".parse().expect("a name"),
            datacenter: "dc1".parse().expect("a datacenter"),
            data_dir: folder.path().join("server"),
            advertise,
            bootstrap_expect: 1,
            retry_join: vec![],
            operator_key: OperatorKey::generate().expect("randomness"),
            default_action: Action::Deny,
            reap_after: Duration::from_secs(3_600),
            leaf_lifetime: Duration::from_secs(24 * 3_600),
            timing: RaftTiming::default(),
            lease: Duration::from_secs(15),
            history: history::Limits::default(),
            aws_iam: None,
            acl: Settings {
                default: Some(DefaultPolicy::Deny),
                initial_management: initial_management.map(str::to_owned),
                reset_file: Some(folder.path().join("acl-bootstrap-reset")),
                audit: AuditSettings::File(folder.path().join("audit.log")),
            },
            snapshot_every: 1_024,
            log_bytes_max: hawser_server::config::LOG_BYTES_MAX,
            planted: hawser_server::planted::Planted::default(),
        };
        let server = Server::start(config, listener, &Registry::new()).await.expect("it starts");
        let (handle, drain) = (server.handle(), CancellationToken::new());
        tokio::spawn(server.run(drain.clone()));
        tokio::time::timeout(PATIENCE, handle.ready()).await.expect("a leader");
        Self { handle, drain, folder }
    }

    async fn ask(&self, method: &str, path: &str, token: &str, body: &Value) -> Reply {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut request = ::http::Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header("x-consul-token", token);
        }
        let request = request.body(Bytes::from(body)).expect("a request");
        let (head, body) = http::respond(&self.handle, request).await.into_parts();
        let text = String::from_utf8_lossy(&body).into_owned();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        Reply { status: head.status.as_u16(), headers: head.headers, body, text }
    }

    async fn get(&self, path: &str, token: &str) -> Reply {
        self.ask("GET", path, token, &Value::Null).await
    }

    /// As [`Self::ask`], of what must succeed.
    async fn done(&self, method: &str, path: &str, token: &str, body: Value) -> Value {
        let reply = self.ask(method, path, token, &body).await;
        assert_eq!(reply.status, 200, "{method} {path}: {}", reply.text);
        reply.body
    }

    /// The secret of a new token with the rules.
    async fn token(&self, manager: &str, name: &str, rules: &str) -> (String, String) {
        let policy = json!({ "Name": name, "Rules": rules });
        self.done("PUT", "/v1/acl/policy", manager, policy).await;
        let token = json!({ "Policies": [{ "Name": name }] });
        let made = self.done("PUT", "/v1/acl/token", manager, token).await;
        let text = |key: &str| made[key].as_str().expect(key).to_owned();
        (text("SecretID"), text("AccessorID"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_token_is_made_once_and_again_by_who_reaches_the_disk() {
    let server = Guarded::start(None).await;
    let refused = server.get("/v1/acl/tokens", "").await;
    assert_eq!((refused.status, refused.text.contains("Permission denied")), (403, true));
    let first = server.done("PUT", "/v1/acl/bootstrap", "", Value::Null).await;
    assert_eq!(first["Policies"][0]["Name"], "global-management");
    let again = server.ask("PUT", "/v1/acl/bootstrap", "", &Value::Null).await;
    assert_eq!(again.status, 403, "{}", again.text);
    let index: u64 = again
        .text
        .rsplit_once("reset index: ")
        .and_then(|(_, rest)| rest.trim_end_matches(')').parse().ok())
        .expect("the index to reset by");
    let file = server.folder.path().join("acl-bootstrap-reset");
    std::fs::write(&file, (index - 1).to_string()).expect("written");
    assert_eq!(server.ask("PUT", "/v1/acl/bootstrap", "", &Value::Null).await.status, 403);
    std::fs::write(&file, index.to_string()).expect("written");
    let second = server.done("PUT", "/v1/acl/bootstrap", "", Value::Null).await;
    assert_eq!(server.ask("PUT", "/v1/acl/bootstrap", "", &Value::Null).await.status, 403);
    for token in [first, second] {
        let secret = token["SecretID"].as_str().expect("a secret");
        let own = server.get("/v1/acl/token/self", secret).await;
        assert_eq!(own.body["AccessorID"], token["AccessorID"], "{}", own.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_policies_and_roles_are_kept_as_clients_write_them() {
    let root = "root-secret";
    let server = Guarded::start(Some(root)).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while server.get("/v1/acl/token/self", root).await.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the configured token is not there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // As py-consul writes rules: JSON in a text, lower-case keys.
    let rules = r#"{"key": {"": {"policy": "read"}}, "operator": "write"}"#;
    let policy = json!({ "Name": "ops", "Rules": rules, "Description": "d" });
    let made = server.done("PUT", "/v1/acl/policy", root, policy).await;
    assert_eq!((&made["Rules"], &made["Datacenters"]), (&json!(rules), &Value::Null));
    let id = made["ID"].as_str().expect("an id").to_owned();
    let read = server.done("GET", "/v1/acl/policy/name/ops", root, Value::Null).await;
    assert_eq!(read, made);
    let taken = server.ask("PUT", "/v1/acl/policy", root, &json!({ "Name": "ops" })).await;
    assert!(taken.text.contains("already exists"), "{}", taken.text);
    let role = json!({ "Name": "clerk", "Policies": [{ "ID": id }],
                       "ServiceIdentities": [{ "ServiceName": "web" }] });
    let role = server.done("PUT", "/v1/acl/role", root, role).await;
    let token = json!({
        "Description": "of a clerk", "Local": true, "ExpirationTTL": "10m",
        "Roles": [{ "Name": "clerk" }],
        "NodeIdentities": [{ "NodeName": "n1", "Datacenter": "dc1" }],
        "TemplatedPolicies": [{ "TemplateName": "builtin/dns" }],
    });
    let made = server.done("PUT", "/v1/acl/token", root, token).await;
    assert_eq!(made["Roles"], json!([{ "ID": role["ID"], "Name": "clerk" }]));
    assert!(made["ExpirationTime"].is_string() && made["Local"] == true, "{made}");
    let secret = made["SecretID"].as_str().expect("a secret").to_owned();
    let path = format!("/v1/acl/token/{}", made["AccessorID"].as_str().expect("one"));
    assert_eq!(server.done("GET", &path, root, Value::Null).await, made);
    let clone = server.done("PUT", &format!("{path}/clone"), root, Value::Null).await;
    assert_ne!(clone["SecretID"], made["SecretID"]);
    assert_eq!(clone["Roles"], made["Roles"]);
    // Who may read tokens sees no secrets.
    let (reader, _) = server.token(root, "reader", "acl = \"read\"").await;
    let seen = server.get(&path, &reader).await;
    assert_eq!(seen.body["SecretID"], "<hidden>", "{}", seen.text);
    let listed = server.get("/v1/acl/tokens", &reader).await;
    assert!(!listed.text.contains(&secret) && !listed.text.contains(root), "{}", listed.text);
    assert_eq!(server.get("/v1/acl/token/self", &secret).await.body["SecretID"], json!(secret));
    // What the role gives, it gives while it is there.
    assert_eq!(server.get("/v1/operator/raft/configuration", &secret).await.status, 200);
    let role = format!("/v1/acl/role/{}", role["ID"].as_str().expect("an id"));
    assert_eq!(server.done("DELETE", &role, root, Value::Null).await, true);
    assert_eq!(server.get("/v1/operator/raft/configuration", &secret).await.status, 403);
    assert_eq!(server.done("DELETE", &path, root, Value::Null).await, true);
    let gone = server.get("/v1/catalog/services", &secret).await;
    assert_eq!((gone.status, gone.text.as_str()), (403, "ACL not found"));
    let missing = server.get(&path, root).await;
    assert_eq!((missing.status, missing.text.as_str()), (404, "ACL not found"));
    let bad = [
        (json!({ "Policies": [{ "Name": "no-such" }] }), "no-such"),
        (json!({ "ExpirationTTL": "1s" }), "ExpirationTTL"),
        (json!({ "SecretID": "short" }), "SecretID"),
        (json!({ "AccessorID": "00000000-0000-0000-0000-000000000002" }), "AccessorID"),
        (json!({ "TemplatedPolicies": [{ "TemplateName": "builtin/service" }] }), "TemplateName"),
        (json!({ "Secrets": 1 }), "Secrets"),
    ];
    for (body, names) in bad {
        let refused = server.ask("PUT", "/v1/acl/token", root, &body).await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text);
        assert!(refused.text.contains(names), "{body}: {}", refused.text);
    }
    let preview = "/v1/acl/templated-policy/preview/builtin/service";
    let preview = server.done("POST", preview, root, json!({ "Name": "api" })).await;
    assert!(preview["Rules"].as_str().is_some_and(|rules| rules.contains("\"api\"")), "{preview}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_sees_and_changes_what_its_token_allows_and_writes_are_noted() {
    let server = Guarded::start(None).await;
    let root = server.done("PUT", "/v1/acl/bootstrap", "", Value::Null).await;
    let root = root["SecretID"].as_str().expect("a secret").to_owned();
    for service in ["web", "db"] {
        let node = format!("on-{service}");
        let body =
            json!({ "Node": node, "Address": "10.0.0.1", "Service": { "Service": service } });
        server.done("PUT", "/v1/catalog/register", &root, body).await;
    }
    let rules = "service \"web\" { policy = \"write\" } node_prefix \"\" { policy = \"read\" }";
    let (web, accessor) = server.token(&root, "web", rules).await;
    let seen = server.get("/v1/catalog/services", &web).await;
    assert_eq!(seen.body, json!({ "web": [] }));
    let filtered = |reply: &Reply| reply.headers.contains_key("x-consul-results-filtered-by-acls");
    assert!(filtered(&seen));
    assert_eq!(seen.headers["x-consul-default-acl-policy"], "deny");
    let anonymous = server.get("/v1/catalog/services", "").await;
    assert_eq!((anonymous.body.clone(), filtered(&anonymous)), (json!({}), false));
    let all = server.get("/v1/catalog/services", &root).await;
    assert_eq!((all.body.clone(), filtered(&all)), (json!({ "db": [], "web": [] }), false));

    let put = |service: &str| json!({ "Node": "on-web", "SkipNodeUpdate": true, "Service": { "Service": service } });
    server.done("PUT", "/v1/catalog/register", &web, put("web")).await;
    for (body, why) in [(put("db"), "another's"), (put("websocket"), "no prefix is meant")] {
        let refused = server.ask("PUT", "/v1/catalog/register", &web, &body).await;
        assert_eq!(refused.status, 403, "{why}: {}", refused.text);
        assert!(refused.text.contains(&accessor) && !refused.text.contains(&web), "{why}");
    }
    assert_eq!(server.ask("PUT", "/v1/hawser/join-token", &web, &json!({})).await.status, 403);
    assert_eq!(server.get("/v1/status/leader", "").await.status, 200, "probes have no token");

    // A reader who waits is turned away once its token is gone.
    let index = seen.headers["x-consul-index"].to_str().expect("a number").to_owned();
    let path = format!("/v1/catalog/services?index={index}&wait=30s");
    let (waited, ()) = tokio::join!(server.get(&path, &web), async {
        let path = format!("/v1/acl/token/{accessor}");
        server.done("DELETE", &path, &root, Value::Null).await;
        let body = json!({ "Node": "x", "Address": "10.0.0.2", "Service": { "Service": "new" } });
        server.done("PUT", "/v1/catalog/register", &root, body).await;
    });
    assert_eq!((waited.status, waited.text.as_str()), (403, "ACL not found"));

    let log = std::fs::read_to_string(server.folder.path().join("audit.log")).expect("a log");
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let noted = |operation: &str, outcome: &str, by: &str| {
        lines.iter().any(|line| {
            line["operation"] == operation && line["outcome"] == outcome && line["accessor"] == by
        })
    };
    assert!(noted("PUT /v1/catalog/register", "done", &accessor), "{log}");
    assert!(noted("PUT /v1/catalog/register", "denied", &accessor), "{log}");
    assert!(noted("PUT /v1/hawser/join-token", "denied", &accessor), "{log}");
    assert!(!log.contains(&web) && !log.contains(&root), "no secret is noted");
    assert!(lines.iter().all(|line| line["index"].as_u64() > Some(0)), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_at_its_time_and_its_row_is_removed() {
    let server = Guarded::start(None).await;
    let root = server.done("PUT", "/v1/acl/bootstrap", "", Value::Null).await;
    let root = root["SecretID"].as_str().expect("a secret").to_owned();
    let soon = time::OffsetDateTime::now_utc() + Duration::from_secs(2);
    let soon = soon.format(&time::format_description::well_known::Rfc3339).expect("a time");
    let token = json!({ "ExpirationTime": soon });
    let token = server.done("PUT", "/v1/acl/token", &root, token).await;
    let accessor = token["AccessorID"].as_str().expect("one").to_owned();
    let secret = token["SecretID"].as_str().expect("one").to_owned();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while server.handle.reader.current().acl().token(&accessor).is_some() {
        assert!(tokio::time::Instant::now() < deadline, "it is not removed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.get("/v1/acl/token/self", &secret).await.text, "ACL not found");
}

/// A token of an issuer whose key is `pair`, with `claims`.
fn jwt(pair: &rcgen::KeyPair, claims: &Value) -> String {
    let coded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", coded(&json!({ "alg": "ES256", "typ": "JWT" })), coded(claims));
    let random = aws_lc_rs::rand::SystemRandom::new();
    let key = aws_lc_rs::signature::EcdsaKeyPair::from_pkcs8(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
        &pair.serialize_der(),
    );
    let signature = key.expect("a key").sign(&random, signed.as_bytes()).expect("signed");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn at(seconds: i64) -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp() + seconds
}

#[tokio::test(flavor = "multi_thread")]
async fn who_proves_who_they_are_gets_what_binding_rules_say() {
    let server = Guarded::start(None).await;
    let root = server.done("PUT", "/v1/acl/bootstrap", "", Value::Null).await;
    let root = root["SecretID"].as_str().expect("a secret").to_owned();
    let (own, other) = (rcgen::KeyPair::generate(), rcgen::KeyPair::generate());
    let (own, other) = (own.expect("a key"), other.expect("a key"));
    let method = json!({
        "Name": "ci", "Type": "jwt", "MaxTokenTTL": "10m", "Description": "builds",
        "Config": {
            "JWTValidationPubKeys": [own.public_key_pem()],
            "JWTSupportedAlgs": ["ES256"],
            "BoundIssuer": "ci.example", "BoundAudiences": ["mesh"],
            "ClaimMappings": { "/project/name": "project", "branch": "branch" },
            "ListClaimMappings": { "groups": "groups" },
        },
    });
    let made = server.done("PUT", "/v1/acl/auth-method", &root, method.clone()).await;
    assert_eq!((&made["MaxTokenTTL"], &made["TokenLocality"]), (&json!("10m0s"), &json!("local")));
    assert_eq!(server.done("GET", "/v1/acl/auth-method/ci", &root, Value::Null).await, made);
    let role = json!({ "Name": "release", "ServiceIdentities": [{ "ServiceName": "gate" }] });
    server.done("PUT", "/v1/acl/role", &root, role).await;
    let rules = [
        json!({ "AuthMethod": "ci", "BindType": "service", "BindName": "${value.project}",
                "Selector": "value.branch == main" }),
        json!({ "AuthMethod": "ci", "BindType": "role", "BindName": "release",
                "Selector": "\"ops\" in list.groups" }),
        json!({ "AuthMethod": "ci", "BindType": "role", "BindName": "not-there" }),
    ];
    let mut ids = Vec::new();
    for rule in rules {
        let made = server.done("PUT", "/v1/acl/binding-rule", &root, rule).await;
        ids.push(made["ID"].as_str().expect("an id").to_owned());
    }
    let claims = |branch: &str, groups: &[&str]| {
        json!({ "iss": "ci.example", "aud": ["mesh"], "exp": at(300), "branch": branch,
                "project": { "name": "Web" }, "groups": groups })
    };
    let with = |name: &str, value: Value| {
        let mut claims = claims("main", &[]);
        claims[name] = value;
        claims
    };
    let refused = [
        // claims, the issuer's key, what is said of it
        (claims("main", &["ops"]), &other, "no key signed it"),
        (with("iss", json!("other")), &own, "BoundIssuer"),
        (with("aud", json!("other")), &own, "BoundAudiences"),
        (with("exp", json!(at(-300))), &own, "expired"),
        (with("nbf", json!(at(300))), &own, "not hold yet"),
        (with("exp", json!("soon")), &own, "no JSON Web Token"),
        (claims("other", &["dev"]), &own, "no binding rule"),
    ];
    for (claims, key, said) in refused {
        let body = json!({ "AuthMethod": "ci", "BearerToken": jwt(key, &claims) });
        let reply = server.ask("POST", "/v1/acl/login", "", &body).await;
        assert_eq!(reply.status, 403, "{claims}: {}", reply.text);
        assert!(reply.text.contains(said), "{claims}: {}", reply.text);
    }
    let unsigned = format!("{}.{}.", URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}"), "e30");
    for bearer in [unsigned.as_str(), "x", &"x".repeat(1 << 16)] {
        let body = json!({ "AuthMethod": "ci", "BearerToken": bearer });
        assert_eq!(server.ask("POST", "/v1/acl/login", "", &body).await.status, 403);
    }
    let bearer = jwt(&own, &claims("main", &["ops"]));
    let body = json!({ "AuthMethod": "ci", "BearerToken": bearer, "Meta": { "run": "7" } });
    let token = server.done("POST", "/v1/acl/login", "", body.clone()).await;
    assert_eq!((&token["AuthMethod"], &token["Local"]), (&json!("ci"), &json!(true)), "{token}");
    assert_eq!(token["ServiceIdentities"], json!([{ "ServiceName": "web" }]));
    assert_eq!(token["Roles"][0]["Name"], "release");
    assert_eq!(token["Description"], "token created via login: {\"run\":\"7\"}");
    assert!(token["ExpirationTime"].is_string(), "{token}");
    let secret = token["SecretID"].as_str().expect("a secret").to_owned();
    let accessor = token["AccessorID"].as_str().expect("one").to_owned();
    let register = json!({ "Node": "n", "Address": "10.0.0.1", "Service": { "Service": "web" } });
    server.done("PUT", "/v1/catalog/register", &root, register.clone()).await;
    server.done("PUT", "/v1/catalog/register", &secret, register).await;
    let clone = format!("/v1/acl/token/{accessor}/clone");
    assert_eq!(server.ask("PUT", &clone, &root, &Value::Null).await.status, 400);
    let listed = server.get("/v1/acl/tokens?authmethod=ci", &root).await;
    assert_eq!(listed.body.as_array().map(Vec::len), Some(1), "{}", listed.text);
    server.done("POST", "/v1/acl/logout", &secret, Value::Null).await;
    assert_eq!(server.get("/v1/acl/token/self", &secret).await.status, 403);
    for token in [&secret, &root, &String::new()] {
        let again = server.ask("POST", "/v1/acl/logout", token, &Value::Null).await;
        assert_eq!(again.status, 403, "{}", again.text);
    }
    // The method goes, and everything that came of it.
    let token = server.done("POST", "/v1/acl/login", "", body.clone()).await;
    let secret = token["SecretID"].as_str().expect("a secret").to_owned();
    server.done("DELETE", "/v1/acl/auth-method/ci", &root, Value::Null).await;
    assert_eq!(server.get("/v1/acl/token/self", &secret).await.status, 403);
    let rule = server.get(&format!("/v1/acl/binding-rule/{}", ids[0]), &root).await;
    assert_eq!(rule.status, 404, "{}", rule.text);
    let gone = server.ask("POST", "/v1/acl/login", "", &body).await;
    assert_eq!(gone.status, 403, "{}", gone.text);
    let log = std::fs::read_to_string(server.folder.path().join("audit.log")).expect("a log");
    assert!(!log.contains(&secret) && !log.contains(&bearer), "no secret is noted");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_auth_method_or_rule_that_makes_no_sense_is_refused_by_its_field() {
    let server = Guarded::start(None).await;
    let root = server.done("PUT", "/v1/acl/bootstrap", "", Value::Null).await;
    let root = root["SecretID"].as_str().expect("a secret").to_owned();
    let keys = json!({ "JWKSURL": "https://ci.example/keys",
                       "ClaimMappings": { "sub": "user" } });
    let good = json!({ "Name": "ci", "Type": "jwt", "Config": keys });
    server.done("PUT", "/v1/acl/auth-method", &root, good).await;
    let methods = [
        (json!({ "Name": "a", "Type": "oidc", "Config": {} }), "oidc"),
        (json!({ "Name": "a", "Type": "jwt" }), "Config"),
        (json!({ "Name": "a", "Type": "jwt", "Config": {} }), "exactly one"),
        (
            json!({ "Name": "a", "Type": "jwt", "Config": { "JWTValidationPubKeys": ["x"] } }),
            "JWTValidationPubKeys[0]",
        ),
        (json!({ "Name": "a", "Type": "aws-iam", "Config": {} }), "BoundIAMPrincipalARNs"),
        (json!({ "Name": "a b", "Type": "jwt", "Config": keys }), "Name"),
        (json!({ "Name": "a", "Type": "jwt", "Config": keys, "MaxTokenTTL": "1s" }), "MaxTokenTTL"),
        (
            json!({ "Name": "a", "Type": "jwt", "Config": keys, "TokenLocality": "here" }),
            "TokenLocality",
        ),
    ];
    for (body, names) in methods {
        let refused = server.ask("PUT", "/v1/acl/auth-method", &root, &body).await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text);
        assert!(refused.text.contains(names), "{body}: {}", refused.text);
    }
    let rule = |kind: &str, name: &str, selector: &str| json!({ "AuthMethod": "ci", "BindType": kind, "BindName": name, "Selector": selector });
    let rules = [
        (json!({ "AuthMethod": "no", "BindType": "role", "BindName": "r" }), "AuthMethod"),
        (rule("team", "x", ""), "BindType"),
        (rule("role", "", ""), "BindName"),
        (rule("role", "x", "value.user ="), "Selector"),
        (rule("service", "${value.team}", ""), "value.team"),
        (rule("service", "Not A Name", ""), "BindName"),
        (rule("templated-policy", "builtin/none", ""), "BindName"),
    ];
    for (body, names) in rules {
        let refused = server.ask("PUT", "/v1/acl/binding-rule", &root, &body).await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text);
        assert!(refused.text.contains(names), "{body}: {}", refused.text);
    }
}
